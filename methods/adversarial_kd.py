"""Adversarial KD: distillation against an opponent that looks for the group. After the slides
"Enhancing Knowledge Distillation via Bias Mitigation" (Bolner, Hutton, Morin and Bang, 2023).

IDEA. A second network guesses the group from the student's logits and the true label. Where it
succeeds, the student treats pictures of one class differently by group: that makes recall gaps.
The student learns to agree with labels and teacher, and to leave this adversary guessing.

CHANGES RELATIVE TO ckd.py.
    - own settings: λ (--adversary-weight) and the adversary's learning rate.
    - section 4: Reverse, Adversary and adversary_loss; Method owns the adversary and its optimiser.

EQUATIONS. z, z': logits of student and teacher (B, C); y: labels; T: temperature; α, λ: weights;
a: groups; w_ya ∝ 1 / number of training pictures of class y and group a, on average 1.
    Eq. (1)  p' = softmax(z'/T),  p = softmax(z/T)                        kd_loss
    Eq. (2)  L_KD = T² · mean over samples of Σ_c p'_c log(p'_c / p_c)    kd_loss
    Eq. (3)  L = (1 - α) · CE(z, y) + α · L_KD                            Method.step
    Eq. (4)  v = A_y(z): group logits (B, G), a network A_y per class     Adversary.forward
    Eq. (5)  L_A = mean over samples of w_ya · min(CE(v, a), cap)         adversary_loss
    Eq. (6)  z forward; backward -λ g, shortened to 2/√B, times a ramp    Reverse.backward
    Eq. (7)  A: down L_A, cap ∞;  student: down Eq. (3) - λ L_A, cap log G  Method.step

DIFFERENCES FROM THE PAPER. Slides have no formula. Published: an adversary, its λ, up to 150. Our
reading is gradient reversal (Ganin and Lempitsky, 2015): λ turns the step towards fairness. Others:
    1. Projection (Zhang et al., 2018): of the task's gradient g, the part along the adversary's u
       goes, too: g - (u*g).sum() / (u*u).sum() · u - λ u, per weight tensor (fairlearn's inner is
       wrong for matrices). Two backward passes, and even a clueless u takes its part of g away.
    2. The critic gate (Savani et al., 2020; the slides' code): a critic regresses the batch's gap b
       in recall; L is multiplied by max(1, λ (|b| - ε + margin) + 1). Steps get longer, but hardly
       turn. (Their first code has 1/L_A and -λ L_A without a gradient: λ does nothing.)
DIFFERENCES FROM PUBLIC CODE (AD in DQle38/Fair-Feature-Distillation-for-Visual-Recognition).
    1. A mean over samples, not a sum of means per class: there λ grows with the number of classes.
    2. w_ya: with most of a class in one group, always naming that group would be hard to beat.
    3. The cap. L_A has no bound: to see the adversary surely wrong, logits went to infinity.
    4. The cut of Eq. (6), as if each picture pulled by 2; CE pulls by at most √2, L_KD by T√2. It
       does not follow the task's gradient: that grows while the student is being ruined.
    5. The ramp, from 0 to 1 at half-time. A strong adversary in the first epochs ends in collapse.
    6. The adversary moves first and fast (Adam, 0.01).

RUN.  python methods/adversarial_kd.py                         the toy, two CPU cores: 2 minutes
      python methods/adversarial_kd.py --adversary-weight 0.5  less of it; 0 is CKD
      python methods/adversarial_kd.py --alpha 0               AD: the adversary without a teacher
EXPECT. On the toy λ = 5 removes most of the gaps, and the student becomes more accurate.
"""

# ===== 1. IMPORTS (shared) ========================================================================

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder
import data as D  # noqa: E402
import metrics as M  # noqa: E402
import networks as N  # noqa: E402
import runs as R  # noqa: E402

# ===== 2. SETTINGS (shared, then the method's own) ================================================


def settings():
    """The command line. Defaults that depend on the data set are filled in by runs.complete."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--dataset", default="toy", choices=D.DATASETS, help="toy is embedded, others are files")
    add("--data-dir", help="folder of the data set's files (default: data/NAME)")
    add("--download", action=switch, default=False, help="fetch files where their owner allows it")
    add("--skip-bad", action=switch, default=False, help="leave out unreadable pictures")
    add("--describe", action=switch, default=False, help="only show the data: table, contact sheet")
    add("--image-size", type=int, help="pixels a side (default: by data set, see README)")
    add("--target", help="what is learnt, such as dx or Smiling (choices: by data set, see README)")
    add("--sensitive", help="what makes a group, such as sex+age or Male (choices: see README)")
    add("--skew", type=float, help="cifar10s: share of a class in its usual style (default: 0.95)")
    add("--fold", type=int, help="test on part 0..4 of five (default: the data set's own split)")
    add("--balance", action=switch, default=False, help="show the student all cells equally often")
    add("--teacher", help="network: a torchvision name or convnet<width> (default: by data set)")
    add("--student", help="network: a torchvision name or convnet<width> (default: by data set)")
    add("--pretrained", action=switch, default=False, help="start from torchvision's weights")
    add("--epochs", type=int, default=12, help="passes over the training pictures")
    add("--batch-size", type=int, default=64, help="pictures per step (RepDistiller: 64)")
    add("--lr", type=float, default=0.05, help="highest learning rate of SGD (RepDistiller: 0.05)")
    add("--weight-decay", type=float, default=5e-4, help="of SGD (RepDistiller: 5e-4)")
    add("--alpha", type=float, default=0.9, help="α: of L_KD, 1 - α of CE (RepDistiller: 0.9)")
    add("--temperature", type=float, default=4.0, help="T: softens the outputs (RepDistiller: 4)")
    add("--seed", type=int, default=0, help="of weights, order and augmentation; the teacher's too")
    add("--device", default="auto", help="cpu, cuda or auto: cuda where there is one")
    add("--precision", default="float32", choices=["float32", "bf16"], help="inside the networks")
    add("--compile", action=switch, default=False, help="networks by torch.compile: for GPUs")
    add("--out", default="results", help="folder of the results; runs/ appears beside it")
    add("--live-teacher", action=switch, default=False, help="read no answers of earlier runs")
    add("--smoke", action=switch, default=False, help="everything for real, on a few pictures")
    add("--export", action=switch, default=False, help="also write the student for deployment")
    add("--restart", action=switch, default=False, help="forget result and checkpoint of this run")
    # ----- the method's own -----------------------------------------------------------------------
    add("--adversary-weight", type=float, default=5.0, help="λ of the slides: 0 (CKD) to 150")
    add("--adversary-lr", type=float, default=0.01, help="of the adversary's Adam")
    # ----- end of the method's own ----------------------------------------------------------------
    return parser


# ===== 3. NETWORKS AND PLAIN TRAINING (shared) ====================================================


class Network(nn.Module):
    """A network that returns what distillation needs: features (B, D) and logits (B, C).

    The features are what the last linear layer sees. Both are float32, also with bf16 inside.
    """

    def __init__(self, args, name, num_classes):
        super().__init__()
        self.name, self.bf16 = name, args.precision == "bf16"
        self.body = N.body(name, args.image_size, args.pretrained, args.compile)
        last = [where for where, m in self.body.named_modules() if isinstance(m, nn.Linear)][-1]
        width = self.body.get_submodule(last).in_features
        self.body.set_submodule(last, nn.Identity())
        self.head = nn.Linear(width, num_classes)
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def forward(self, images):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            feats = self.body(images).flatten(1)  # (B, D)
            logits = self.head(feats)  # (B, C)
        return (feats.float(), logits.float()) if self.bf16 else (feats, logits)


class CrossEntropy:
    """Plain training of one network, by which teachers are made; Method builds on its five hooks.

    prepare     before all else: a search that several processes of one run may share
    __init__    extra networks, optimisers and further teachers
    step        the whole algorithm for one batch; returns the losses by name
    end_epoch   schedules and outer updates, with the metrics on validation
    finish      what remains to be done to the student after the last epoch
    """

    @staticmethod
    def prepare(args, data):
        pass

    def __init__(self, args, data, student, teacher=None):
        self.args, self.data, self.student, self.teacher = args, data, student, teacher
        ## `fit` moves the learning rate of every parameter group between 0 and its initial_lr.
        groups = [{"params": list(student.parameters()), "initial_lr": args.lr}]
        self.optimizer = torch.optim.SGD(groups, args.lr, 0.9, weight_decay=args.weight_decay)
        self.saved = {"student": student, "optimizer": self.optimizer}  # what a restart needs
        self.reported = {}  # other networks to be tested at the end, by name
        self.extra = {}  # what else the result shall say

    def update(self, loss):
        """One step down the gradient of `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def step(self, batch):
        loss = F.cross_entropy(self.student(batch.images)[1], batch.labels)
        self.update(loss)
        return {"loss": loss}

    def end_epoch(self, epoch, validation):
        pass

    def finish(self):
        pass


# ===== 4. THE METHOD ==============================================================================


def kd_loss(logits_s, logits_t, temperature):
    """Eq. (2): T² · KL(teacher ‖ student) of the softened outputs, averaged over the batch.

    logits_s, logits_t: (B, C). Returns a scalar, at least 0; 0 where both say the same.
    """
    # Eq. (1), as logarithms: the quotient of Eq. (2) becomes a difference that cannot overflow
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)  # (B, C)
    log_p_t = F.log_softmax(logits_t / temperature, dim=1)  # (B, C)
    # Eq. (2)
    divergence = (log_p_t.exp() * (log_p_t - log_p_s)).sum(dim=1)  # (B,)
    ## Softening divides the gradient by T²; times T², α keeps its meaning when T changes.
    ## The mean is over samples only: over classes too, the loss would be C times too small.
    return temperature**2 * divergence.mean()


class Reverse(torch.autograd.Function):
    """Forward: logits (B, C) as they are. Backward: their gradient, against the adversary."""

    @staticmethod
    def forward(ctx, logits_s, strength, ramp):
        ctx.strength, ctx.ramp = strength, ramp
        return logits_s.view_as(logits_s)

    @staticmethod
    def backward(ctx, grad):
        # Eq. (6): here stands the minus of the game
        grad = -ctx.strength * grad  # (B, C)
        cut = (2 / len(grad) ** 0.5 / grad.norm().clamp(min=1e-12)).clamp(max=1)
        return ctx.ramp * cut * grad, None, None


class Adversary(nn.Module):
    """Guesses the group from logits (B, C) and labels (B,): group logits (B, G)."""

    def __init__(self, num_classes, num_groups, hidden=32):
        super().__init__()
        self.first = nn.Linear(num_classes, num_classes * hidden)  # C small layers side by side
        self.second = nn.Linear(hidden, num_classes * num_groups)

    def forward(self, logits_s, labels):
        # Eq. (4) ## Without the label it would punish, too, that a class is rarer in one group.
        own = (torch.arange(len(labels), device=labels.device), labels)
        hidden = self.first(logits_s).view(*logits_s.shape, -1)[own].relu()  # (B, 32)
        return self.second(hidden).view(*logits_s.shape, -1)[own]


def adversary_loss(group_logits, labels, groups, weights, cap=math.inf):
    """Eq. (5) from (B, G), (B,), (B,), (C, G): a scalar, at least 0; pure guessing is log G."""
    loss = F.cross_entropy(group_logits, groups, reduction="none").clamp(max=cap)  # (B,)
    # Eq. (5)
    return (weights[labels, groups] * loss).mean()


class Method(CrossEntropy):
    """Distillation by Eq. (3), with an opponent."""

    needs_teacher = True

    def __init__(self, args, data, student, teacher):
        super().__init__(args, data, student, teacher)
        if args.adversary_weight < 0:
            raise D.InputError("--adversary-weight must be at least 0: the minus is in Reverse")
        shape, train = (len(data.classes), len(data.group_names)), data["train"]
        self.adversary = Adversary(*shape).to(args.device)
        self.opponent = torch.optim.Adam(self.adversary.parameters(), args.adversary_lr)
        self.saved |= {"adversary": self.adversary, "opponent": self.opponent}
        count = torch.bincount(train.labels * shape[1] + train.groups, minlength=math.prod(shape))
        self.weights = len(train) / (count.clamp(min=1) * (count > 0).sum()).view(shape)  # (C, G)

    def step(self, batch):
        """One batch: forward, losses, backward, update. Returns the losses by name."""
        args, cells = self.args, (batch.labels, batch.groups, self.weights)
        _, logits_s = self.student(batch.images)  # (B, C)
        _, logits_t = self.teacher(batch)  # (B, C), without gradient
        loss_ce = F.cross_entropy(logits_s, batch.labels)
        loss_kd = kd_loss(logits_s, logits_t, args.temperature)
        # Eq. (3)
        loss = (1 - args.alpha) * loss_ce + args.alpha * loss_kd
        # Eq. (7): the adversary moves first, without λ; the student answers what it now knows
        group_logits = self.adversary(logits_s.detach(), batch.labels)  # (B, G)
        loss_adv = adversary_loss(group_logits, *cells)
        self.opponent.zero_grad(set_to_none=True)
        loss_adv.backward()
        self.opponent.step()
        ramp = min(1, 2 * batch.epoch / args.epochs)  # fully in force at half-time
        seen = Reverse.apply(logits_s, args.adversary_weight, ramp)  # (B, C)
        seen = self.adversary(seen, batch.labels)  # (B, G)
        self.update(loss + adversary_loss(seen, *cells, cap=math.log(group_logits.shape[1])))
        hits = self.weights[cells[:2]] * (group_logits.argmax(dim=1) == batch.groups)  # chance: 1/G
        losses = {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd, "loss_adv": loss_adv}
        return losses | {"accuracy_adv": hits.mean()}


# ===== 5. FIT AND EVALUATE (shared) ===============================================================


def evaluate(model, data, part, replicates=0):
    """Logits (N, C) of `model` on data[part], and every metric of metrics.py."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch.images)[1] for batch in D.batches(data[part], 256)])
    ## Logits are stored as float16. Rounded before anything is computed from them, they give the
    ## same numbers again later; three digits are finer than any of our intervals.
    logits = logits.half().float().cpu().numpy()
    R.check_finite({"the largest logit": float(abs(logits).max())}, f"{model.name} on {part}")
    return logits, M.evaluate(**data.truth(part), logits=logits, replicates=replicates)


## Which epoch counts? Three rules, fixed in advance, all reported: the last ("last"), the one with
## the best AUROC on validation, and the one with the best AUROC of the worst group there.
RULES = {"best_overall": "auroc", "best_worst_group": "auroc_worst_group"}


def fit(args, data, method, path, label, rules=RULES):
    """Train method.student for args.epochs, going on from the checkpoint `path` if there is one.

    Returns its states by rule, the log (a dict for each epoch) and the seconds of each epoch.
    """
    log, states, best, seconds = [], {}, dict.fromkeys(rules, -math.inf), []
    made_of = R.made_of(args, label)
    if path.exists():
        saved = R.load(path, made_of, args.device)  # or a clear sentence if it is another's
        log, states, best, seconds = (saved[k] for k in ("log", "states", "best", "seconds"))
        for name, part in method.saved.items():
            R.restore(part, saved["parts"].get(name), path)
    model, steps = method.student, len(data["train"]) // args.batch_size
    snapshot = lambda: {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    for epoch in range(len(log), args.epochs):
        start, sums = time.time(), {}
        torch.manual_seed(args.seed * 100_003 + epoch)  # dropout, too, depends on (seed, epoch)
        model.train()
        views = (args.batch_size, args.seed, epoch, True, args.balance)
        for batch in D.batches(data["train"], *views):
            R.mark(batch, data["train"], views)  # by this a teacher knows what it has seen before
            ## An epoch of warm-up spares fresh weights, then half a cosine ends at 0.
            done = epoch + batch.step / steps  # in epochs
            scale = min(1, done + 1 / steps) * (1 + math.cos(math.pi * done / args.epochs)) / 2
            for group in method.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            for name, loss in method.step(batch).items():
                sums[name] = sums.get(name, 0) + loss.detach()  # no .item(): the device runs on
        losses = {name: float(total) / steps for name, total in sums.items()}
        speed = steps * args.batch_size / (time.time() - start)
        R.check_finite(losses, f"epoch {epoch + 1} of the {label}")
        _, validation = evaluate(model, data, "val")
        method.end_epoch(epoch, validation)
        for rule, metric in rules.items():
            if (validation[metric] or 0) > best[rule]:
                best[rule], states[rule] = validation[metric] or 0, {"epoch": epoch, **snapshot()}
        seconds.append(time.time() - start)
        log.append({"epoch": epoch, **losses, "val": {k: validation[k] for k in R.LOGGED}})
        print(R.log_line(label, args.epochs, log[-1], speed, seconds[-1]), flush=True)
        parts = {name: part.state_dict() for name, part in method.saved.items()}
        progress = {"log": log, "states": states, "best": best, "seconds": seconds}
        R.save(path, made_of=made_of, parts=parts, **progress)
    method.finish()
    return {"last": {"epoch": args.epochs - 1, **snapshot()}, **states}, log, seconds


# ===== 6. TEACHER (shared) ========================================================================


class Teacher:
    """A trained network that never changes: no gradient reaches it, its batch norm stands still."""

    def __init__(self, network, answers=R.live):
        self.network, self.answers = network.eval().requires_grad_(False), answers

    def __call__(self, batch):
        """Features (B, D') and logits (B, C) for the pictures of a Batch."""
        ## Whatever the method, equal views get equal answers: only the first run computes them.
        with torch.no_grad():
            return self.answers(self.network, batch)


def get_teacher(args, data):
    """The teacher for these pictures, network and seed: trained now, or earlier by any script."""
    names = "teacher image_size pretrained epochs batch_size lr weight_decay seed precision".split()
    made_of = {name: getattr(args, name) for name in names}
    made_of["pictures"] = data.hash("train", groups=False)  # it never sees a group
    path = R.runs_folder(args) / "teachers" / f"{args.teacher}-{R.digest(made_of)}.pt"
    torch.manual_seed(args.seed)
    network = Network(args, args.teacher, len(data.classes)).to(args.device)

    def train():
        ## Its training sees what the name of its file tells, nothing else. --balance is the
        ## student's: the teacher is as biased as its data.
        plain = argparse.Namespace(**made_of, device=args.device, balance=False)
        method, unfinished = CrossEntropy(plain, data, network), path.with_suffix(".checkpoint")
        states, log, seconds = fit(plain, data, method, unfinished, "teacher", rules={})
        return {"state": states["last"], "log": log, "seconds": sum(seconds)}

    saved = R.once(path, made_of, train)
    R.restore(network, saved["state"], path)
    answers = R.live if args.live_teacher else R.Memory(R.runs_folder(args) / "answers")
    return Teacher(network, answers), saved["seconds"]


# ===== 7. MAIN (shared) ===========================================================================


def main():
    parser = settings()
    args = R.complete(parser.parse_args())
    usual = ["--dataset", args.dataset, "--smoke" if args.smoke else "--no-smoke"]
    usual = R.complete(parser.parse_args(usual))
    data = D.load_for(args)
    print(data.describe())
    if args.describe:
        return data.contact_sheet(args.out)
    args.run = run = R.Run(__file__, args, usual, data)
    if args.restart or not run.result.exists():  # before the lock: processes may share this
        Method.prepare(args, data)
    with R.locked(run.folder):  # a second process on this run waits, and then finds the result
        result = run.finished(args.restart) or work(args, data, run)
    if args.export:
        run.export(Network(args, args.student, len(data.classes)))
    R.show(result)


def work(args, data, run):
    """Teacher, student, test. Writes the result and returns it."""
    start = time.time()
    torch.manual_seed(args.seed)  # all methods start from the same student
    student = Network(args, args.student, len(data.classes)).to(args.device)
    teacher, teacher_seconds = get_teacher(args, data) if Method.needs_teacher else (None, 0.0)
    torch.manual_seed(args.seed + 1)
    method = Method(args, data, student, teacher)
    states, log, seconds = fit(args, data, method, run.checkpoint, "student")

    ## The test split is touched here, once, when nothing is left to choose.
    result, logits = {"log": log, **method.extra}, {}
    networks = {"teacher": teacher.network} if teacher else {}
    networks |= method.reported | dict.fromkeys(states, student)
    for name, network in networks.items():
        if name in states:
            R.restore(network, states[name], name)
        _, val = evaluate(network, data, "val")
        logits[name], test = evaluate(network, data, "test", 100 if args.smoke else 1000)
        epoch = states.get(name, {}).get("epoch")
        result[name] = {"epoch": epoch, **R.size_of(network), "val": val, "test": test}

    ## How fast could this student train at best? The bare step on one batch, again and again.
    bare = CrossEntropy(args, data, copy.deepcopy(student).train())
    times = {"total": time.time() - start, "teacher": teacher_seconds, "epochs": seconds}
    return run.write(result, logits, states, times | R.speed(args, data["train"], bare, seconds))


if __name__ == "__main__":
    try:
        main()
    except D.InputError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
