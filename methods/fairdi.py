"""FairDi. Masroor et al.: "Fair Distillation: Teaching Fairness from Biased Teachers in Medical
Imaging", 2024, arXiv 2411.11939. Its step 0, FIS: Luo et al., FairVision, 2024, arXiv 2310.02492.

IDEA. A network that must be good for all groups ends in a compromise. So a fair pre-training (step
0) is followed by one teacher for each group, as good as can be for it alone (step 1), and a student
learns from every picture's own teacher (step 2). It never sees a group: only training needs them.

CHANGES RELATIVE TO ckd.py.
    - section 2: settings of FIS; whether step 2 trains the backbone.
    - section 4: FairScaling (step 0), train_head (step 1); Method runs both, then is step 2.

EQUATIONS. l_i: cross-entropy; a_i: group; u_g: losses of B pictures of group g, u: of all; φ: the
network up to its features; h_g: teacher's head; c, t: of FIS; α, T: as in ckd.py (here λ and τ).
    Eq. (1)  d_g = ½ W₂²(u_g, u), exact optimal transport                  half_w2_squared
    Eq. (2)  wI = softmax(l / t), wG_i = softmax(d_{a_i} / t), over i      fis_loss
    Eq. (3)  L_FIS = Σ_i ((1 - c) · wI_i + c · wG_i) · l_i                 fis_loss
    Eq. (4)  L_g = mean of CE(h_g(φ(x_i)), y_i) over group g               train_head
    Eq. (5)  z'_i = h_{a_i}(φ(x_i))                                        Method.__init__
    Eq. (6)  L_KD = T² · mean of KL(softmax(z'/T) ‖ softmax(z/T))          kd_loss
    Eq. (7)  L = (1 - α) · CE(z, y) + α · L_KD                             Method.step

DIFFERENCES FROM THE PAPER. Abstract and captions could be read, and a review that quotes step 0.
    1. The paper's: FIS, a teacher for each group, one student, parts frozen, two points reported.
    2. Our reading: what is frozen (φ), linear heads that all start from step 0's, Eqs. (4) to (7),
       and what AUC on validation chooses: of the worst group step 0's epoch, of its own a teacher.
DIFFERENCES FROM PUBLIC CODE (FairVision, of FIS by its authors; of FairDi there is none).
    1. Its distance, a Sinkhorn divergence stopped early, can be negative; Eq. (1) is exact.
    2. It divides Eq. (3) by B. Adam does not feel that, SGD would: a learning rate B times too low.
    3. u is measured in evaluation mode, not augmented; there it moves batch norm's statistics.

RUN.  python methods/fairdi.py                   the embedded toy data, two CPU cores: 2 minutes
EXPECT. "fis", "fis_best_overall" and "fis_best_worst_group" in the result are step 0. On the toy
(t chosen on its validation) fairer recalls than ERM, more accurate, no better worst-group AUC.
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
    add("--fusion", type=float, default=0.5, help="c: share of wG in L_FIS (FairVision: 0.5)")
    add("--fis-temperature", type=float, default=10, help="t: softens both (FairVision: 1, 3-D 10)")
    add("--train-backbone", action=switch, default=False, help="step 2: φ as well, not only a head")
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


def half_w2_squared(a, b):
    """Eq. (1): ½ W₂² of samples a (n,) and b (m,). In one dimension the lowest go to the lowest."""
    n, m = len(a), len(b)
    ## Both quantile functions are stairs. In units of 1/(nm) their steps end at whole numbers.
    ends = torch.cat([torch.arange(m, n * m + 1, m), torch.arange(n, n * m + 1, n)]).sort()[0]
    width = ends.diff(prepend=ends.new_zeros(1)).to(a)  # (n + m,)
    moved = a.sort().values[(ends - 1) // m] - b.sort().values[(ends - 1) // n]
    # Eq. (1)
    return (width * moved.square()).sum() / (2 * n * m)


def fis_loss(losses, groups, distances, fusion=0.5, temperature=1.0):
    """Eq. (3): fair identity scaling of losses (B,), for groups (B,) at distances d (G,)."""
    # Eq. (2)
    ## wI is not detached, as in the public code: bad pictures also pull through their weights.
    ## wG is for groups whose losses are unlike all, lower ones too, and the more for large groups.
    w_individual = torch.softmax(losses / temperature, dim=0)  # (B,)
    w_group = torch.softmax(distances[groups] / temperature, dim=0)  # (B,)
    # Eq. (3)
    return (((1 - fusion) * w_individual + fusion * w_group) * losses).sum()


class FairScaling(CrossEntropy):
    """Step 0: the student, trained by Eq. (3)."""

    def __init__(self, args, data, student):
        super().__init__(args, data, student)
        groups = data["train"].groups.cpu()
        self.members = [(groups == g).nonzero()[:, 0] for g in groups.unique()]

    def step(self, batch):
        ## Distances from n other pictures of each group: a batch may have one of a group, or none.
        args, n, train = self.args, self.args.batch_size, self.data["train"]
        drawn = torch.cat([m[torch.randint(len(m), (n,))] for m in self.members])  # (G·n,)
        few = next(D.batches(train.subset(drawn), len(drawn)))
        self.student.eval()
        with torch.no_grad():
            every = F.cross_entropy(self.student(few.images)[1], few.labels, reduction="none")
        self.student.train()
        distances = torch.stack([half_w2_squared(part, every) for part in every.split(n)])  # (G,)
        losses = F.cross_entropy(self.student(batch.images)[1], batch.labels, reduction="none")
        loss = fis_loss(losses, batch.groups, distances, args.fusion, args.fis_temperature)
        self.update(loss)
        return {"loss": loss, "loss_ce": losses.mean(), "distance": distances.max()}


def train_head(head, train, val, args):
    """Step 1 on features (n, D) and labels (n,) of one group: its best AUC, and the first."""
    area = lambda: M.auroc(labels=val[1].cpu(), probs=head(val[0]).detach().softmax(dim=1).cpu())
    areas, states = [area()], [copy.deepcopy(head.state_dict())]
    trainer, order = CrossEntropy(args, None, head), torch.Generator().manual_seed(args.seed)
    for _ in range(args.epochs):
        for index in torch.randperm(len(train[1]), generator=order).split(args.batch_size):
            # Eq. (4)
            trainer.update(F.cross_entropy(head(train[0][index]), train[1][index]))
        ## Biased on purpose: only its own group is asked whether it is good.
        areas, states = [*areas, area()], [*states, copy.deepcopy(head.state_dict())]
    head.load_state_dict(states[areas.index(max(areas))])
    return max(areas), areas[0]


def kd_loss(logits_s, logits_t, temperature):
    """Eq. (6), as in ckd.py: teacher first, mean over pictures, a scalar."""
    # Eq. (6)
    log_p_s, log_p_t = (F.log_softmax(z / temperature, dim=1) for z in (logits_s, logits_t))
    return temperature**2 * (log_p_t.exp() * (log_p_t - log_p_s)).sum(dim=1).mean()


class Method(CrossEntropy):
    """Steps 0 and 1 when it is made, step 2 batch by batch."""

    needs_teacher = False  # it makes its own

    def __init__(self, args, data, student, teacher=None):
        super().__init__(args, data, student, teacher)
        if not (0 <= args.fusion <= 1 and args.fis_temperature > 0):
            raise D.InputError("FIS takes --fusion from 0 to 1 and --fis-temperature above 0")
        ## Step 0, made once for all runs that share it; its states are reported as FIS.
        others = "alpha temperature teacher live_teacher train_backbone".split()
        made_of = {k: v for k, v in R.made_of(args, "step 0").items() if k not in others}
        made_of["pictures"] = data.hash("train", "val")  # validation chooses the epoch
        path = R.runs_folder(args) / "fairdi" / f"step0-{R.digest(made_of)}.pt"
        plain = argparse.Namespace(**made_of, device=args.device)  # nothing else decides
        first = (plain, data, FairScaling(plain, data, student), path.with_suffix(".checkpoint"))
        states = R.once(path, made_of, lambda: {"states": fit(*first, "step 0")[0]})["states"]
        for rule in ("last", "best_overall", "best_worst_group"):  # the student keeps the last one
            R.restore(student, states[rule], path)
            self.reported[f"fis_{rule}".removesuffix("_last")] = copy.deepcopy(student)
        ## φ stands still from here on: its features are computed once, of pictures as they are.
        student.eval()
        every = lambda part: [student(batch.images)[0] for batch in D.batches(data[part], 256)]
        with torch.no_grad():
            self.feats, feats_val = torch.cat(every("train")), torch.cat(every("val"))  # (N, D)
        self.logits_t = self.feats.new_empty(len(self.feats), len(data.classes))  # (N, C)
        ## Step 1. With one class in training there is nothing to teach, in validation no choice.
        parts = ((self.feats, data["train"]), (feats_val, data["val"]))
        for g, name in enumerate(data.group_names):
            own = [(x[part.groups == g], part.labels[part.groups == g]) for x, part in parts]
            head, what = copy.deepcopy(student.head), "one class only, step 0 stands in for it"
            if min(len(labels.unique()) for _, labels in own) > 1:
                what = "val auroc {:.1%}, was {:.1%}".format(*train_head(head, *own, args))
            print(f"teacher of {name}: {what}")
            # Eq. (5)
            self.logits_t[data["train"].groups == g] = head(own[0][0]).detach()

    def step(self, batch):
        """One batch of step 2: forward, losses, backward, update. Returns the losses by name."""
        if self.args.train_backbone:
            _, logits_s = self.student(batch.images)  # (B, C); no teacher saw this very view
        else:  # nothing but the head gets a gradient, so that a step costs next to nothing
            logits_s = self.student.head(self.feats[batch.index])  # (B, C)
        logits_t = self.logits_t[batch.index]  # (B, C): here the group comes in, and only here
        loss_ce = F.cross_entropy(logits_s, batch.labels)
        loss_kd = kd_loss(logits_s, logits_t, self.args.temperature)
        # Eq. (7)
        loss = (1 - self.args.alpha) * loss_ce + self.args.alpha * loss_kd
        self.update(loss)
        return {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd}


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
