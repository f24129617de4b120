"""BIRD, bias-aware distillation. Java, Jandial and Agarwal: "Towards Fair Knowledge Distillation
using Student Feedback", ICML workshop poster, 2023.

IDEA. Some of the teacher's features help the student, some make it unfair; a gate on each learns
which. A copy of the student tries the gates, other pictures show how accurate and fair the copy has
become, the gates are corrected by that, and only then does the real student learn.

CHANGES RELATIVE TO ckd.py.
    - own settings: γ, μ, φ's learning rate, the size of the meta set; α is 0, not 0.9.
    - section 4: soft_deo, outer_loss; in Method a meta set, gates φ, a linear map, three stages.

EQUATIONS. z, z': logits of student and teacher (B, C); y: labels; T: temperature; α, γ, μ: weights;
h: the student's features after the map, h': the teacher's, both (B, d); φ (d,); θ: the student.
    Eq. (1)  p' = softmax(z'/T),  p = softmax(z/T)                        kd_loss
    Eq. (2)  L_KD = T² · mean over samples of Σ_c p'_c log(p'_c / p_c)    kd_loss
    Eq. (3)  L = (1 - α) · CE(z, y) + α · L_KD                            Method.step
    Eq. (4)  L_F = mean over B and d of (h - h' · sigm(φ))²               outer_loss
    Eq. (5)  R = mean over y of max_a - min_a of mean(p_y | y, a), T = 1  soft_deo
    Eq. (6)  I: θ' = θ - η ∇_θ L_F(θ, φ; batch)                           outer_loss
    Eq. (7)  II: φ goes down L_outer = CE + μ R of θ' on the meta batch   outer_loss
    Eq. (8)  III: θ goes down Eq. (3) + γ L_F(θ, new φ) + μ R             Method.step

DIFFERENCES FROM THE PAPER. No full text is public. The poster has: h' · sigm(φ), the three stages,
the copy, meta-gradients, the losses' names. Public reviews add: a meta split; III starts from θ;
L_joint has a distilling, a CE and a fairness part. The rest is our reading, namely:
    1. L_F is FitNet's mean square and all of L_inner: CE would not involve φ.
    2. L_outer has CE, too: a student that knows nothing would be fair.
    3. R is the poster's mean-DEO with probabilities for hits, over the cells that a batch holds.
    4. φ is one vector for all pictures, 3 at first: gates of 0.95. φ = 0 would halve the target.
    5. φ steps by Adam: its gradient has a factor η/(B d) and is tiny. η is --lr, without momentum.
    6. The meta set is a fixed share of each cell; its batches of 64 hold all cells alike.
    7. The map is part of θ. Its copy need not step: only logits enter L_outer.
    8. α = 0, as published; "can be augmented with different KD methods": --alpha 0.9 adds CKD.
DIFFERENCES FROM PUBLIC CODE. There is none.

RUN.  python methods/bird.py                    the embedded toy data, two CPU cores: 5 minutes
      python methods/bird.py --phi-lr 0         gates frozen: what is left is L_F and R itself
EXPECT. On the toy half the gaps of CKD, or less. R does it: --phi-lr 0 is not shown to differ.
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
    add("--feature-weight", type=float, default=1.0, help="γ: weight of the gated features, L_F")
    add("--fair-weight", type=float, default=1.0, help="μ: weight of the soft mean-DEO, R")
    add("--phi-lr", type=float, default=0.05, help="β: learning rate of φ; 0 freezes the gates")
    add("--meta-every", type=int, default=8, help="one training picture in so many is for Stage II")
    parser.set_defaults(alpha=0.0)
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


def soft_deo(logits, labels, groups, num_groups):
    """Eq. (5) from (B, C), (B,), (B,): a scalar in [0, 1]; 0 if no class is in two groups here."""
    p = logits.softmax(dim=1).gather(1, labels[:, None])  # (B, 1) of the true class
    cells = F.one_hot(labels * num_groups + groups, logits.shape[1] * num_groups).to(p)  # (B, C·G)
    size = cells.sum(dim=0).view(-1, num_groups)  # (C, G)
    recall = (cells.T @ p).view_as(size) / size.clamp(min=1)  # (C, G), 0 in an empty cell
    # Eq. (5): an empty cell must not be the lowest, and a class in one group alone has no gap
    gap = recall.amax(dim=1) - recall.masked_fill(size == 0, 1).amin(dim=1)  # (C,)
    shared = (size > 0).sum(dim=1) > 1  # (C,)
    return (gap * shared).sum() / shared.sum().clamp(min=1)


def outer_loss(phi, student, mapped, images, feats_t, meta, inner_lr, fair_weight, num_groups):
    """Stages I and II: loss of the student's copy on `meta` after a step on `images`. Scalar."""
    theta, copied = dict(student.named_parameters()), torch.func.functional_call
    buffers = {name: b.clone() for name, b in student.named_buffers()}  # the student's stand still
    feats_s, _ = copied(student, (theta, buffers), images)  # (B, D)
    loss = F.mse_loss(mapped(feats_s), feats_t * phi.sigmoid())  # Eq. (4)
    ## φ acts through this step alone: without create_graph its gradient would be 0.
    grads = torch.autograd.grad(loss, [*theta.values()], create_graph=True, materialize_grads=True)
    theta = {name: p - inner_lr * g for (name, p), g in zip(theta.items(), grads)}  # Eq. (6)
    _, logits = copied(student, (theta, buffers), meta.images)  # (B, C)
    gap = soft_deo(logits, meta.labels, meta.groups, num_groups)  # Eq. (7)
    return F.cross_entropy(logits, meta.labels) + fair_weight * gap


class Method(CrossEntropy):
    """Distillation by Eq. (3), of gated features by Eq. (8), and a direct penalty on the gap."""

    needs_teacher = True

    @staticmethod
    def prepare(args, data):
        if args.compile:
            raise D.InputError("--compile is not for bird.py, which derives its student twice")

    def __init__(self, args, data, student, teacher):
        super().__init__(args, data, student, teacher)
        own, width = student.head.in_features, teacher.network.head.in_features
        for layer in student.modules():  # mobilenet_v3: PyTorch cannot derive its hardsigmoid twice
            if isinstance(layer, nn.Hardsigmoid):
                layer.forward = lambda x: F.relu6(x + 3) / 6  # the same function
        self.map = (nn.Identity() if own == width else nn.Linear(own, width)).to(args.device)
        self.optimizer.add_param_group({"params": [*self.map.parameters()], "initial_lr": args.lr})
        self.gates = nn.ParameterDict({"phi": torch.full((width,), 3.0)}).to(args.device)
        self.adam = torch.optim.Adam(self.gates.parameters(), args.phi_lr)
        self.saved |= {"map": self.map, "gates": self.gates, "adam": self.adam}
        ## Every k-th picture, shuffled and sorted by cell: the meta set holds a k-th of each cell.
        train, self.num_groups = data["train"], len(data.group_names)
        draw = torch.rand(len(train), generator=torch.Generator().manual_seed(args.seed))
        order = ((train.labels * self.num_groups + train.groups).cpu() + draw).argsort()
        every = torch.arange(len(train)) % args.meta_every == 0
        self.meta, data.splits["train"] = train.subset(order[every]), train.subset(order[~every])

    def meta_batch(self, batch):
        size, number = min(64, len(self.meta)), (batch.epoch + 1) * 100_003 + batch.step
        return next(D.batches(self.meta, size, self.args.seed, number, True, balance=True))

    def step(self, batch):
        """One batch: forward, losses, backward, update. Returns the losses by name."""
        args, phi, meta = self.args, self.gates["phi"], self.meta_batch(batch)
        feats_t, logits_t = self.teacher(batch)  # (B, d), (B, C), without gradient
        settings = args.lr, args.fair_weight, self.num_groups
        outer = outer_loss(phi, self.student, self.map, batch.images, feats_t, meta, *settings)
        (phi.grad,) = torch.autograd.grad(outer, phi)
        self.adam.step()
        gate = phi.detach().sigmoid()  # (d,)
        feats_s, logits_s = self.student(batch.images)  # Stage III, from θ: the copy is forgotten
        loss_ce = F.cross_entropy(logits_s, batch.labels)
        loss_kd = kd_loss(logits_s, logits_t, args.temperature)
        loss_feat = F.mse_loss(self.map(feats_s), feats_t * gate)  # Eq. (4)
        loss_fair = soft_deo(logits_s, batch.labels, batch.groups, self.num_groups)
        loss = (1 - args.alpha) * loss_ce + args.alpha * loss_kd  # Eq. (3)
        loss = loss + args.feature_weight * loss_feat + args.fair_weight * loss_fair  # Eq. (8)
        self.update(loss)
        losses = {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd, "loss_feat": loss_feat}
        losses |= {"loss_fair": loss_fair, "phi_grad": phi.grad.norm(), "gate": gate.mean()}
        return losses | {"gate_min": gate.min(), "gate_max": gate.max()}

    def end_epoch(self, epoch, validation):  # φ of every epoch is kept, for a histogram
        R.save(self.args.run.folder / f"phi-{epoch + 1:03}.pt", phi=self.gates["phi"].data.cpu())


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
