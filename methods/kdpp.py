"""KD++, feature norm and direction. Wang et al.: "Improving Knowledge Distillation via Regularizing
Feature Norm and Direction", 2023, arXiv 2305.17007.

IDEA. A class has a direction: the mean of the teacher's features of that class. The student is
rewarded for going far in it: by growing while its features are shorter than the teacher's, later by
turning only. Our remark: a mean counts pictures, so the largest group sets the direction for all.

CHANGES RELATIVE TO ckd.py.
    - own settings: the flags --nd-weight and --warmup-epochs; α is 0.5, not 0.9.
    - section 4: class_centers, nd_loss; Method makes centres and adapter, adds Eq. (6).

EQUATIONS. z, z': logits of student and teacher (B, C); y: labels; T: temperature; α, w: weights;
f, f': features of student and teacher (B, D'), f after the adapter; e: epoch, from 0; E: warm-up.
    Eq. (1)  p' = softmax(z'/T),  p = softmax(z/T)                             kd_loss
    Eq. (2)  L_KD = T² · mean over samples of Σ_c p'_c log(p'_c / p_c)         kd_loss
    Eq. (3)  L = (1 - α) · CE(z, y) + α · r · L_KD,  r = min(1, e/E)           Method.step
    Eq. (4)  c_k = mean of f' over the training pictures of class k            class_centers
    Eq. (5)  L_ND = mean over samples of 1 - f · (c_y/|c_y|) / max(|f|, |f'|)  nd_loss
    Eq. (6)  L = Eq. (3) + w · L_ND                                            Method.step

DIFFERENCES FROM THE PAPER. We follow the authors' code, which we could check, not the text.
    1. The weights are halved, so that Eq. (3) means the same in all scripts: published, for
       ResNet-56 to -20, is CE + r · L_KD + 2 · L_ND. SGD takes the same steps on half of it at
       twice the learning rate and half the weight decay: their 0.1 and 5e-4 would be 0.2 and 2.5e-4
       here. Their weights u of L_KD and v of L_ND for other pairs: α = u/(1 + u), w = v/(1 + u).
    2. E is a twelfth of the epochs: theirs is 20 of 240, more epochs than a short run has.
DIFFERENCES FROM PUBLIC CODE (WangYZ1608/Knowledge-Distillation-via-ND).
    1. Centres are means over plain pictures, theirs over random crops and flips, rounded: ours
       depend on nothing random. Their CIFAR script always reads the file of one teacher's centres.
    2. A zero centre, or two zero features, give loss 1 and a finite gradient; theirs is 0/0.
    3. The recipe is ours, as in all scripts; theirs has Nesterov momentum and batches of 128.

RUN.  python methods/kdpp.py                   the embedded toy data, two CPU cores: 2 minutes
      python methods/kdpp.py --nd-weight 0     what L_ND adds: the same without it
EXPECT. On the toy more accurate and fairer than ckd.py in the mean of five seeds, and far less
fair than the teacher: L_ND knows no groups.
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
    parser.set_defaults(alpha=0.5)  # published: CE and L_KD weigh the same (ResNet-56 to -20)
    add("--nd-weight", type=float, default=1.0, help="w: weight of L_ND (published: 2, halved)")
    add("--warmup-epochs", type=float, help="E of L_KD's weight (default: a twelfth of --epochs)")
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


def class_centers(feats_t, labels, num_classes):
    """Eq. (4): the mean of the teacher's features of each class; zeros for an absent class.

    feats_t: (N, D'), labels: (N,), of the training pictures. Returns (C, D').
    """
    members = F.one_hot(labels, num_classes).to(feats_t)  # (N, C), 1 where sample n has class c
    # Eq. (4): one product adds up all classes
    return members.T @ feats_t / members.sum(dim=0).clamp(min=1)[:, None]  # (C, D')


def nd_loss(feats_s, feats_t, centers, labels):
    """Eq. (5): how far the student falls short of going along the direction of its class.

    feats_s, feats_t: (B, D'), centers: (C, D'), labels: (B,). Returns a scalar from 0 to 2; 0 where
    f points to its class centre and is at least as long as f'.
    """
    directions = F.normalize(centers, dim=1)  # (C, D') of length 1; a zero centre stays zero
    along = (feats_s * directions[labels]).sum(dim=1)  # (B,) the way f goes in this direction
    ## Dividing by the longer of both lengths joins norm and direction in one term. While |f| < |f'|
    ## the gradient is -c_y/|c_y| / |f'|: f grows along the centre. Once |f| > |f'| this is 1 - cos:
    ## only the angle counts, and f cannot win by growing without end.
    longer = torch.maximum(feats_s.norm(dim=1), feats_t.norm(dim=1))  # (B,)
    longer = torch.where(longer > 0, longer, 1.0)  # two zero features: 0/1, not 0/0
    # Eq. (5)
    return (1 - along / longer).mean()


class Method(CrossEntropy):
    """Distillation by Eq. (6)."""

    needs_teacher = True

    def __init__(self, args, data, student, teacher):
        super().__init__(args, data, student, teacher)
        share = args.epochs / 12  # of the training, as published
        self.warmup = share if args.warmup_epochs is None else args.warmup_epochs
        ## One pass of the teacher over the training pictures, each once and as it is: the centres
        ## depend on teacher and pictures alone, not on --balance or the seed.
        train = data["train"]
        feats_t = torch.cat([teacher(batch)[0] for batch in D.batches(train, 256)])  # (N, D')
        self.centers = class_centers(feats_t, train.labels, len(data.classes))  # (C, D')

        width_s, width_t = student.head.in_features, teacher.network.head.in_features
        self.adapter = nn.Identity()  # equal widths need none
        if width_s != width_t:
            ## From D to D', only for L_ND: the logits come from the student's own features, so it
            ## is thrown away in the end. Dropout keeps it from doing the student's work.
            layers = nn.BatchNorm1d(width_s), nn.Dropout(0.5), nn.Linear(width_s, width_t)
            self.adapter = nn.Sequential(*layers).to(args.device)
            own = list(self.adapter.parameters())
            self.optimizer.add_param_group({"params": own, "initial_lr": args.lr})
        self.saved["adapter"] = self.adapter

    def step(self, batch):
        """One batch: forward, losses, backward, update. Returns the losses by name."""
        feats_s, logits_s = self.student(batch.images)  # (B, D), (B, C)
        feats_t, logits_t = self.teacher(batch)  # (B, D'), (B, C), without gradient
        loss_ce = F.cross_entropy(logits_s, batch.labels)  # labels are matched without temperature
        loss_kd = kd_loss(logits_s, logits_t, self.args.temperature)
        loss_nd = nd_loss(self.adapter(feats_s), feats_t, self.centers, batch.labels)
        ## A fresh student first learns from labels and directions, then from the teacher's outputs.
        ramp = min(1.0, batch.epoch / self.warmup) if self.warmup > 0 else 1.0
        # Eq. (3)
        loss = (1 - self.args.alpha) * loss_ce + self.args.alpha * ramp * loss_kd
        # Eq. (6)
        loss = loss + self.args.nd_weight * loss_nd
        self.update(loss)
        return {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd, "loss_nd": loss_nd}


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
