"""GroupDRO, group distributionally robust optimisation. Sagawa, Koh, Hashimoto and Liang:
"Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, arXiv 1911.08731; here as the
baseline that it is in MEDFAIR (Zong, Yang and Hospedales, ICLR 2023) and in FairDi's comparison.

IDEA. Plain training minimises the mean loss of all pictures, so that a small or hard group hardly
counts. GroupDRO keeps one weight for each group and raises, after every batch, the weights of the
groups that are served badly; the network minimises the loss so weighted. There is no teacher.

CHANGES RELATIVE TO ckd.py.
    - section 2: the step size of the weights; whether a group is split by class. α and T unused.
    - section 4: group_losses and group_weights; Method without a teacher; its weights are saved.

EQUATIONS. l_i: cross-entropy of picture i; a_i: its group; q: weights (G,), 1/G each at first.
    Eq. (1)  m_g = mean of l_i over pictures of the batch with a_i = g     group_losses
    Eq. (2)  q_g ← q_g · exp(η · m_g), divided by the sum over g           group_weights
    Eq. (3)  L = Σ_g q_g · m_g, with q fixed                               Method.step

DIFFERENCES FROM THE PAPER.
    1. A group is a value of the sensitive attribute, as in MEDFAIR. In the paper it is a class of
       that attribute: --by-class. The difference matters: where each group has its own easy classes
       (the toy), no group as a whole is served badly, and weights of whole groups change nothing.
    2. η = 0.01 is theirs. They add strong weight decay or stop early, or else all training losses
       end near 0 and no weight matters any more; ours is the weight decay of every other script.
    3. The paper's generalisation adjustment (C) is left out; MEDFAIR sets it to 0, too.
DIFFERENCES FROM PUBLIC CODE (MEDFAIR; group_DRO, the authors' own).
    1. Validation never moves q. MEDFAIR's validation loop calls the training loss, which does.
    2. Pictures are drawn as they come. MEDFAIR draws all groups equally often on top of q; here
       that is --balance, off as in every script, so that what q alone does can be seen. It draws
       all classes of a group equally often as well, which MEDFAIR does not.
    3. No running averages: MEDFAIR keeps them, with their graphs, and uses them for nothing.

RUN.  python methods/groupdro.py                 the embedded toy data, two CPU cores: 1 minute
      python methods/groupdro.py --by-class      groups of the paper: class and group
      python methods/groupdro.py --dataset ham10000 --data-dir DIR --sensitive age
EXPECT. On the toy, weights of whole groups change little; --by-class removes most of the gap in
recall between the groups and makes the student more accurate.
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
    add("--weight-step", type=float, default=0.01, help="η: step size of q (both codes: 0.01)")
    add("--by-class", action=switch, default=False, help="one weight for each class of a group")
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


def group_losses(losses, groups, num_groups):
    """Eq. (1): the mean loss of each group in the batch, m (G,); 0 where the batch has none of it.

    losses (B,), groups (B,) in 0..G-1.
    """
    member = F.one_hot(groups, num_groups).to(losses)  # (B, G)
    # Eq. (1)
    ## An absent group counts as served perfectly, as in both public codes: its weight shrinks a
    ## little, relative to the others. Without the clamp it would be 0/0, and NaN for ever after.
    return losses @ member / member.sum(dim=0).clamp(min=1)


def group_weights(weights, losses, step_size):
    """Eq. (2): the new weights q (G,) after the group losses m (G,); they are positive, sum 1."""
    # Eq. (2), as the softmax of logarithms: the same, and exp(η · m) cannot overflow
    ## A step up the gradient of Eq. (3) with respect to q, for weights that must stay positive and
    ## sum to 1: the worst group gains most. It gains by its history: q remembers all batches.
    return torch.softmax(weights.log() + step_size * losses, dim=0)


class Weights(nn.Module):
    """q (G,): a module because a killed run must find them again."""

    def __init__(self, num_groups):
        super().__init__()
        self.register_buffer("q", torch.full((num_groups,), 1 / num_groups))


class Method(CrossEntropy):
    """Training without a teacher, in which the groups that are served badly weigh more."""

    needs_teacher = False

    def __init__(self, args, data, student, teacher=None):
        super().__init__(args, data, student, teacher)
        if not args.weight_step >= 0:
            raise D.InputError("--weight-step must be at least 0: the worst group is to weigh more")
        self.num_groups = len(data.group_names) * (len(data.classes) if args.by_class else 1)
        self.weights = Weights(self.num_groups).to(args.device)
        self.saved["weights"] = self.weights

    def step(self, batch):
        """One batch: forward, weights, weighted loss, update. Returns the losses by name."""
        _, logits_s = self.student(batch.images)  # (B, C)
        losses = F.cross_entropy(logits_s, batch.labels, reduction="none")  # (B,)
        groups = batch.groups  # (B,)
        if self.args.by_class:
            groups = groups * len(self.data.classes) + batch.labels
        means = group_losses(losses, groups, self.num_groups)  # (G,)
        ## First the weights, then the network, both from the same batch. Detached: otherwise the
        ## network could lower the loss by making its weights small instead of its errors.
        self.weights.q = group_weights(self.weights.q, means.detach(), self.args.weight_step)
        # Eq. (3)
        loss = self.weights.q @ means
        self.update(loss)
        return {"loss": loss, "loss_ce": losses.mean(), "highest_weight": self.weights.q.max()}


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
