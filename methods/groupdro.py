"""GroupDRO, group distributionally robust optimisation. Sagawa, Koh, Hashimoto and Liang:
"Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, arXiv 1911.08731; here as the
baseline that it is in MEDFAIR (Zong, Yang and Hospedales, ICLR 2023) and in FairDi's comparison.

IDEA. Plain training minimises the mean loss of all pictures, so that a small or hard group hardly
counts. GroupDRO keeps one weight for each group and raises, after every batch, the weights of the
groups that are served badly; the network minimises the loss so weighted. There is no teacher.

CHANGES RELATIVE TO ckd.py.
    - section 2: the step size of the weights; whether a group is split by class. α, T and all of
      the teacher's settings are unused: they are there so that one command line fits every script.
    - section 4: group_losses and group_weights; Method without a teacher; its weights are saved.

EQUATIONS. l_i: loss of picture i, CE or that of its mask; a_i: its group; q: weights (G,) of G
groups, 1/G each at first; η: their step size.
    Eq. (1)  m_g = mean of l_i over pictures of the batch with a_i = g     group_losses
    Eq. (2)  q_g ← q_g · exp(η · m_g), divided by the sum over g           group_weights
    Eq. (3)  L = Σ_g q_g · m_g, with q fixed                               Method.step

DIFFERENCES FROM THE PAPER.
    1. A group is a value of the sensitive attribute, as in MEDFAIR and in all scripts here. In the
       paper it is one class with one value: --by-class. Where each group has its own easy classes
       (the toy), no group as a whole is served badly, and weights of whole groups change little.
    2. η = 0.01 is theirs. With --by-class --balance, of 0.001, 0.01, 0.1 and 1, validation chose
       one of the first two on every data set, and 1 ruined every student (results/: weights chosen
       on validation). They add strong weight decay or stop early, or else all training losses end
       near 0 and no weight matters any more; ours is the weight decay of every other script.
    3. The paper's generalisation adjustment (C) is left out; MEDFAIR sets it to 0, too.
    4. Its algorithm draws one group a step. Here, as in both codes below, a batch moves all q.
DIFFERENCES FROM PUBLIC CODE (MEDFAIR; group_DRO, the authors' own).
    1. Validation never moves q. MEDFAIR's validation loop calls the training loss, which does.
    2. Pictures are drawn as they come, so that what q alone does can be seen. Both codes draw all
       groups equally often on top of q: --by-class --balance, or --balance groups. Without it a
       rare group is absent from most batches, counts as served perfectly there, and can lose its
       weight although its loss is the highest.
    3. No running averages: MEDFAIR keeps them, with their graphs, and uses them for nothing.

RUN.  python methods/groupdro.py                 the toy data, two CPU cores: 1 minute
      python methods/groupdro.py --by-class --balance    groups of the paper, drawn as there
      python methods/groupdro.py --dataset ham10000 --data-dir DIR --sensitive age
EXPECT. On the toy (seed 0) whole groups give what plain CE gives, 99.0 % and a mean-DEO of 2.0
(CE: 99.1, 1.7); --by-class 99.3 and 1.1; --by-class --balance 100.0 and 0.1. On CIFAR10-S, where a
rare cell is one picture in 200, the last two have 48.5 and 3.6 (η = 0.001, five seeds), and
re-balancing alone has 2.1.
"""

# ===== 1. IMPORTS (shared) ========================================================================

import argparse
import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C during the seconds of the next imports shall be silent
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not {"-h", "--help", "--about"} & {*sys.argv}:
        print("loading PyTorch ...", flush=True)

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder
import metrics
import networks
from data import DATASETS, VIEWS, InputError, Settings, batches, check_finite, class_shares
from data import defaults, digest, files_of, keep_newest, load, locked, made_once, manual
from data import name_codes, number, put_back, restore, save, with_bar
from networks import Network

# ===== 2. SETTINGS (shared, then the method's own) ================================================


def settings():
    """The command line. A setting without a default gets the data set's own in `parse`."""
    parser, switch = Settings(about=__doc__), argparse.BooleanOptionalAction
    share, count, weight = number(0, 1), number(1, kind=int), number(0)
    add = parser.group("data")
    add("--dataset", default="toy", choices=DATASETS, help="the toy is drawn")
    add("--data-dir", metavar="DIR", help="of the data set's files [data/NAME]; csv: or a table")
    add("--download", action=switch, default=False, help="fetch files where their owner allows it")
    add("--skip-bad", action=switch, default=False, help="leave out what is missing or broken")
    add("--describe", action=switch, default=False, help="only show the data: table, pictures")
    add("--task", default="classify", choices=["classify", "segment"], help="labels, or masks")
    add("--image-size", type=number(8, 1024, int), help="pixels a side")
    add("--target", help="what is learnt: dx, Smiling ... (datasets/*.py)")
    add("--sensitive", help="what makes groups: sex+age, Male ... (datasets/*.py)")
    ## SUPPRESS: data sets without such a column do not have the setting.
    add("--subject", default=argparse.SUPPRESS, help="csv: column of patients [found by its name]")
    add("--file-column", default=argparse.SUPPRESS, help="csv: column of files [file]")
    add("--skew", type=share, help="cifar10s: share of the usual style [0.95]")
    add("--fold", type=number(0, 4, int), help="which of five folds to test on [no folds]")
    add("--train-share", type=number(1e-6, 1), default=1.0, help="of the training subjects")
    parts = {"choices": ["cells", "groups", "classes"], "nargs": "?", "const": "cells"}
    add("--balance", both=True, **parts, default="", help="shown equally often; no value: cells")
    add = parser.group("networks")
    kinds = "of torchvision, timm:NAME, flava, FILE.py:FUNCTION, convnet8, of masks unet8 or "
    kinds += "transunet8; NAME@224 sees 224 pixels"
    add("--teacher", "--teacher-module", metavar="NETWORK", help=kinds)
    add("--student", "--student-module", metavar="NETWORK", help="the small network")
    add("--pretrained", action=switch, default=False, help="start both from published weights")
    add("--weights", both=True, metavar="FILE", help="start from .pt, .pth, .safetensors [random]")
    add("--statistics", both=True, choices=networks.STATISTICS, help="their normalisation [usual]")
    add("--teacher-train", default="all", choices=["all", "head"], help="its trained part")
    ## A view is cropped and flipped anew in each epoch; the others are answered once for all.
    sees = "its input; flips: mean answer"
    add("--teacher-sees", default="view", choices=["view", "picture", "flips"], help=sees)
    add = parser.group("training")
    add("--views", choices=VIEWS, help="in training [mirrored]")
    add("--epochs", type=count, help="passes over the pictures")
    add("--batch-size", type=number(2, kind=int), help="pictures in a step")
    add("--lr", type=number(1e-12), help="highest learning rate (of adamw 5e-4)")
    add("--teacher-epochs", type=count, help="passes of the teacher")
    add("--teacher-lr", type=number(1e-12), help="rate of the teacher")
    ways = ["sgd", "adamw"]
    add("--optimizer", both=True, default="sgd", choices=ways, help="adamw suits given weights")
    add("--weight-decay", type=weight, default=5e-4, help="of both networks (RepDistiller)")
    add("--alpha", type=share, default=0.9, help="α: weight of L_KD, CE has 1 - α")
    ## Beyond T = 1000 the terms of L_KD nearly cancel, and float32 loses their sum.
    add("--temperature", type=number(1e-6, 1000), default=4.0, help="T: divides the logits")
    add("--seed", type=number(0, 2**32 - 1, int), default=0, help="of weights, order and views")
    add = parser.group("running")
    add("--smoke", action=switch, default=False, help="all steps, on too few pictures to learn")
    add("--out", default="runs", metavar="DIR", help="for all that a run leaves behind")
    add("--restart", action=switch, default=False, help="make this run anew; its teacher stays")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add("--precision", default="float32", choices=["float32", "bf16"], help="in the networks")
    add("--compile", action=switch, default=False, help="make networks faster on GPUs")
    add("--live-teacher", action=switch, default=False, help="keep no answers of the teacher")
    add("--log", choices=["tensorboard"], help="writes losses and metrics [no]")
    add("--about", action="version", version=__doc__, help="show paper, equations, examples")
    add("--help", "-h", action="help", help=argparse.SUPPRESS)
    add = parser.group("the method's own")
    # ----- the method's own -----------------------------------------------------------------------
    add("--weight-step", type=weight, default=0.01, help="η: step size of q (both codes: 0.01)")
    add("--by-class", action=switch, default=False, help="one weight for each class of a group")
    # ----- end of the method's own ----------------------------------------------------------------
    return parser


def parse(argv=None):
    """The settings of a run; what the command line leaves out comes from the data set."""
    parser = settings()
    args = parser.parse_args(argv)
    for lr, optimizer in (("lr", args.optimizer), ("teacher_lr", args.teacher_optimizer)):
        if optimizer == "adamw":  # the usual rates of SGD would destroy what is learnt
            parser.set_defaults(**{lr: min(parser.get_default(lr) or 1, 5e-4)})
    args = parser.parse_args(argv)
    for name, value in ({"views": "mirrored"} | defaults(args.dataset, args.task)).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if args.smoke:
        args.epochs, args.teacher_epochs = min(args.epochs, 2), min(args.teacher_epochs, 2)
        args.lr /= 5  # the full rate, reached within a few steps, makes losses diverge
        args.teacher_lr /= 5
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device {args.device} cannot be used ({reason}): try cpu") from None
    if args.task == "segment" and (args.teacher_sees, args.teacher_train) != ("view", "all"):
        raise InputError("--teacher-sees and --teacher-train are not for --task segment")
    if args.teacher_train == "head" and not (args.pretrained or args.teacher_weights):
        raise InputError("--teacher-train head needs --teacher-weights FILE, or --pretrained")
    needed = vars(args).get(Method.needs_teacher, Method.needs_teacher)
    if args.teacher_balance and (args.teacher_train == "head" or not needed):
        raise InputError(
            "--teacher-balance is for a teacher that this run trains in batches, and there is none "
            "(--alpha 0, --teacher-train head, or a method without one teacher): leave it out"
        )
    if args.live_teacher and args.teacher_sees != "view":
        raise InputError(f"--teacher-sees {args.teacher_sees} keeps answers: no --live-teacher")
    compiler = ("CXX", "g++") if args.device == "cpu" else ("CC", "gcc")
    if args.compile and not shutil.which(os.environ.get(*compiler)):
        raise InputError("--compile needs a compiler ({}, or {}): leave it out".format(*compiler))
    return args


def settle(args, num_classes):
    """The settings, with each pair of defaults (for two classes, for more) replaced by its own."""
    if args.smoke:  # only now: `load` compares the batch of a whole run with all pictures
        args.batch_size = min(args.batch_size, 32)
    for name, value in vars(args).items():
        if isinstance(value, tuple):
            setattr(args, name, value[num_classes > 2])
    return args


def chosen(args):
    """{setting: value}, but for where files are, what is shown or kept, and which device works."""
    others = ("describe", "device", "download", "live_teacher", "log", "out", "restart")
    return {k: v for k, v in vars(args).items() if k not in others and not k.endswith("_dir")}


# ===== 3. PLAIN TRAINING (shared) =================================================================


def soft_dice(logits, masks):
    """Dice of each picture, (B,), with probabilities for answers: logits (B, 2, H, W), masks."""
    inside, true = logits.softmax(dim=1)[:, 1].flatten(1), masks.flatten(1)  # (B, H · W)
    ## Sums are over the pixels of one picture: over a batch, no picture would have its own loss. A
    ## 1 is added because an empty mask has no Dice; a small number there would let it rule a batch.
    return (2 * (inside * true).sum(dim=1) + 1) / (inside.sum(dim=1) + true.sum(dim=1) + 1)


def label_loss(logits, labels):
    """The loss of each picture, (B,): cross-entropy of logits (B, C) and labels (B,).

    Of logits (B, 2, H, W) and masks (B, H, W): half its mean over pixels, half 1 - soft Dice.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")  # (B,), or (B, H, W)
    if labels.ndim == 1:
        return losses
    return 0.5 * losses.flatten(1).mean(dim=1) + 0.5 * (1 - soft_dice(logits, labels))


class PlainTraining:
    """Training on labels alone, as teachers are trained. Method overrides its hooks:

    __init__    extra networks and optimisers, further teachers
    step        the whole algorithm for one batch; returns the losses by name
    end_epoch   schedules and outer updates, with the metrics on validation
    finish      what remains to be done to the student after the last epoch
    """

    needs_teacher = False  # or True, or a setting's name: needed unless that is 0
    refuses = {}  # settings that cannot be with the method, each with the reason

    def __init__(self, args, data, student, teacher=None):
        self.args, self.data, self.student, self.teacher = args, data, student, teacher
        self.split = data["train"]  # the pictures to train on
        ## `fit` moves the learning rate of every parameter group between 0 and its initial_lr.
        groups = [{"params": student.parameters(), "initial_lr": args.lr}]
        if args.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(groups, args.lr, weight_decay=args.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(groups, args.lr, 0.9, weight_decay=args.weight_decay)
        self.saved = {"student": student, "optimizer": self.optimizer}  # goes into checkpoints
        self.reported = {}  # other networks that are tested at the end, by name
        self.extra = {}  # further entries of the result
        self.seconds = 0.0  # spent by an earlier run on what is reused

    def class_shares(self):
        """The share of each class in what the loss sees, for corrected decisions: a list (C,)."""
        return class_shares(self.split, len(self.data.classes), self.args.balance)

    def update(self, loss):
        """One step down the gradient of `loss`."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self, batch):
        loss = label_loss(self.student(batch.images)[1], batch.labels).mean()
        self.update(loss)
        return {"loss": loss}

    def end_epoch(self, epoch, validation):
        pass

    def finish(self):
        pass


# ===== 4. THE METHOD ==============================================================================

from torch import nn

from data import times_shown


def group_losses(losses, groups, num_groups):
    """Eq. (1): the mean loss of each group in the batch, m (G,); 0 where the batch has none of it.

    losses (B,), groups (B,) in 0..G-1.
    """
    member = F.one_hot(groups, num_groups).to(losses)  # (B, G)
    # Eq. (1)
    ## An absent group counts as served perfectly, as in both public codes: its weight shrinks,
    ## relative to the others. Without the clamp it would be 0/0, and NaN for ever after.
    return losses @ member / member.sum(dim=0).clamp(min=1)


def group_weights(weights, losses, step_size):
    """Eq. (2): the new weights q (G,) after the group losses m (G,); at least 0, their sum is 1."""
    # Eq. (2), as the softmax of logarithms: the same, and exp(η · m) cannot overflow
    ## A step up the gradient of Eq. (3) with respect to q, for weights that must stay positive and
    ## sum to 1: of the groups in the batch the worst gains most. q remembers all batches. As in
    ## both public codes a weight below 1e-45, float32's smallest number, becomes 0 and stays it.
    return torch.softmax(weights.log() + step_size * losses, dim=0)


class Weights(nn.Module):
    """q (G,): a module because a killed run must find them again."""

    def __init__(self, num_groups):
        super().__init__()
        self.register_buffer("q", torch.full((num_groups,), 1 / num_groups))


class Method(PlainTraining):
    """Training without a teacher, in which the groups that are served badly weigh more."""

    needs_teacher = False

    def __init__(self, args, data, student, teacher=None):
        super().__init__(args, data, student, teacher)
        self.num_groups = len(data.group_names) * (len(data.classes) if args.by_class else 1)
        self.weights = Weights(self.num_groups).to(args.device)
        self.saved["weights"] = self.weights

    def class_shares(self):
        """The share of each class in Eq. (3), (C,), of a batch that has all groups: q moves it.

        While training, validation is corrected by the q of its epoch; all results by the last q.
        """
        split, shape = self.split, (len(self.data.group_names), len(self.data.classes))
        cell, shown = split.groups * shape[1] + split.labels, times_shown(split, self.args.balance)
        cells = torch.bincount(cell, shown, minlength=math.prod(shape)).float().view(shape)
        inside = cells / cells.sum(dim=1, keepdim=True).clamp(min=1e-6)  # (G, C) shares of classes
        if self.args.by_class:
            q = self.weights.q.view(shape) * (cells > 0)  # that of an empty cell weighs nothing
        else:
            q = self.weights.q[:, None] * inside
        return (q.sum(dim=0) / q.sum()).clamp(min=1e-6).tolist()

    def step(self, batch):
        """One batch: forward, weights, weighted loss, update. Returns the losses by name."""
        _, logits_s = self.student(batch.images)  # (B, C)
        losses = label_loss(logits_s, batch.labels)  # (B,)
        groups = batch.groups  # (B,)
        if self.args.by_class:
            labels = self.split.labels[batch.index]  # of pictures; of the batch, they may be masks
            groups = groups * len(self.data.classes) + labels
        means = group_losses(losses, groups, self.num_groups)  # (G,)
        ## First the weights, then the network, both from the same batch. Detached: otherwise the
        ## network could lower the loss by making its weights small instead of its errors.
        self.weights.q = group_weights(self.weights.q, means.detach(), self.args.weight_step)
        # Eq. (3)
        loss = self.weights.q @ means
        self.update(loss)
        return {"loss": loss, "loss_ce": losses.mean(), "highest_weight": self.weights.q.max()}


# ===== 5. FIT AND EVALUATE (shared) ===============================================================


@torch.no_grad()
def outputs(network, split, folder=None):
    """Features (N, D) and logits (N, C) of `network` for the pictures of a split themselves.

    folder    where the features are kept, of a network whose body never changes; None: nowhere
    """
    network.eval()

    def ask():
        steps = math.ceil(len(split) / network.largest_batch)
        views = with_bar(batches(split, network.largest_batch), f"{network.name} answers", steps)
        return torch.cat([network(batch.images)[0] for batch in views])

    if folder:
        body = {k: v for k, v in network.state_dict().items() if not k.startswith("head.")}
        ## Two networks with the same tensors can compute different things.
        body |= {"name": network.name, "ways": network.ways} | files_of(network.name)
        arithmetic = [torch.__version__, network.bf16, torch.get_num_threads()]
        seen = split.hash(), split.mean, split.std  # of other training pictures, other statistics
        key = digest([*seen, body, *arithmetic, str(split.labels.device)])
        feats = made_once(folder / f"features-{key}.pt", ask, split.labels.device)
    else:
        feats = ask()
    return feats, network.head(feats)


def areas(logits, masks):
    """How many pixels of each picture are said to be inside, are inside, and are both: (B, 3)."""
    said, true = (logits[:, 1] > logits[:, 0]).flatten(1), (masks == 1).flatten(1)  # (B, H · W)
    check_finite({"a logit": float(logits.abs().max())}, "the masks")
    return torch.stack([said.sum(1), true.sum(1), (said & true).sum(1)], dim=1).int()


def measure(model, data, part, shares=None, replicates=0, folder=None, drawn=None):
    """Logits (N, C) of `model` on data[part], and every metric of metrics.py.

    Of masks, not logits are returned, but what all their metrics need: see `areas`.

    shares    (C,) of the classes among what the model was trained on, for corrected decisions
    folder    of a teacher's features, see `outputs`
    drawn     a dict for the metrics of all resamples
    """
    more = {"replicates": replicates, "drawn": drawn} | data.truth(part)
    if model.segment:
        model.eval()
        with torch.no_grad():
            views = batches(data[part], model.largest_batch)
            found = [areas(model(b.images)[1], b.labels) for b in views]
        found = torch.cat(found).cpu().numpy()  # (N, 3)
        return found, metrics.evaluate_masks(**more, areas=found)
    _, logits = outputs(model, data[part], folder)
    ## Logits are stored as float16, whose rounding is finer than any of our intervals. They are
    ## rounded before anything is computed, so that the stored ones give the same numbers again.
    check_finite({"the largest logit": float(abs(logits).max())}, f"{model.name} on {part}")
    logits = logits.clamp(-65504, 65504).half().float().cpu().numpy()  # float16 ends there
    return logits, metrics.evaluate(**more, logits=logits, class_shares=shares)


## Which epoch counts? Three rules, fixed in advance, all reported: the last ("last"), the one with
## the best AUROC on validation, and the one with the best AUROC of the worst group there; of masks
## Dice stands for AUROC. Of equal epochs the lowest loss decides, and an epoch without a value (a
## class is missing) is never best.
RULES = {
    "classify": {"best_overall": "auroc", "best_worst_group": "auroc_worst_group"},
    "segment": {"best_overall": "dice", "best_worst_group": "dice_worst_group"},
}
LOGGED = "loss accuracy auroc auroc_worst_group auroc_gap".split()
LOGGED += [f"{k}{end}" for k in ("mean_deo", "disparity") for end in metrics.ENDS]
LOGGED += "dice dice_worst_group dice_gap dice_gap_standardised iou failure".split()


def training_views(args, split, epoch):
    """The batches of an epoch. Kept answers of a teacher are answers to exactly these."""
    return batches(split, args.batch_size, args.seed, epoch, args.views, args.balance)


def fit(args, data, method, label, checkpoint=None, rules=None, later=2):
    """Train method.student for args.epochs, from the epoch on that the file `checkpoint` holds.

    later: how many epochs the work after it would fill, for the time left; testing fills about two.
    Returns states by rule, the log (a dict for each epoch) and the seconds of each epoch.
    """
    log, states, best, seconds = [], {}, {}, []
    rules = RULES[args.task] if rules is None else rules
    if checkpoint and checkpoint.exists():
        keys = "parts log states best seconds".split()
        progress = restore(checkpoint, keys=keys)  # on the CPU, where snapshots are
        parts, log, states, best, seconds = (progress[key] for key in keys)
        for name, part in method.saved.items():
            put_back(part, parts.get(name), checkpoint)
    model, size, steps = method.student, args.batch_size, len(method.split) // args.batch_size
    writer, before = None, networks.forget_start(model, steps * args.epochs)
    if checkpoint and vars(args).get("log"):  # losses and metrics, for tensorboard --logdir runs
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(checkpoint.parent)

    def snapshot(epoch):
        state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return {"epoch": epoch, **state}

    begun = len(log)
    for epoch in range(begun, args.epochs):
        start, sums = time.time(), {}
        teacher = method.teacher
        answers = teacher.begin_epoch(args, method.split, epoch) if teacher else None
        torch.manual_seed(args.seed * 100_003 + epoch)  # dropout, too, depends on (seed, epoch)
        model.train()
        views = training_views(args, method.split, epoch)
        now, whole = f"{label} {epoch + 1}/{args.epochs}", steps * (args.epochs + later)
        bar = with_bar(views, now, whole, initial=steps * epoch, smoothing=0)
        bar.initial, bar.start_t = 0, start - sum(seconds)  # all epochs tell how long it takes
        for batch in bar:
            if answers:
                rows = slice(batch.step * size, (batch.step + 1) * size)
                rows = rows if args.teacher_sees == "view" else batch.index
                batch = batch._replace(answers=tuple(part[rows] for part in answers))
            ## Half a cosine takes the rate down towards 0. In the first epoch it also rises: large
            ## steps would spoil fresh weights.
            done = epoch + batch.step / steps  # in epochs
            scale = min(1, done + 1 / steps) * (1 + math.cos(math.pi * done / args.epochs)) / 2
            for group in method.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            before(steps * epoch + batch.step)
            for name, loss in method.step(batch).items():
                sums[name] = sums.get(name, 0) + loss.detach()  # .item() would stop the device
        losses = {name: float(total) / steps for name, total in sums.items()}
        check_finite(losses, f"epoch {epoch + 1} of the {label} (the last checkpoint is kept)")
        _, validation = measure(model, data, "val", method.class_shares())
        method.end_epoch(epoch, validation)
        for rule, metric in rules.items():
            value = (validation[metric], -validation["loss"])
            if value[0] is not None and (rule not in best or value > best[rule]):
                best[rule], states[rule] = value, snapshot(epoch)
        seconds.append(time.time() - start)
        kept = {name: validation[name] for name in LOGGED if name in validation}
        log.append({"epoch": epoch, **losses, "val": kept})
        if writer:
            for name, value in (losses | {f"val {k}": v for k, v in kept.items()}).items():
                if value is not None:
                    writer.add_scalar(name, value, epoch + 1)
            writer.flush()  # a run that is killed goes on after this epoch
        left = (args.epochs + later - epoch - 1) * np.mean(seconds)
        head, row = metrics.row_of(now, losses, kept, left)
        print(*([head] if epoch == begun else []), row, sep="\n", flush=True)
        if checkpoint:
            parts = {name: part.state_dict() for name, part in method.saved.items()}
            progress = {"log": log, "states": states, "best": best, "seconds": seconds}
            save(checkpoint, progress | {"parts": parts})
    method.finish()
    last = snapshot(args.epochs - 1)
    for rule in rules.keys() - states.keys():
        print(f"{rule} is the last epoch: {rules[rule]} is undefined on validation in all of them")
    return {"last": last, **dict.fromkeys(rules, last), **states}, log, seconds


# ===== 6. TEACHER (shared) ========================================================================


def data_folder(args):
    """The folder of all runs on a data set; smoke runs have another one."""
    name = args.dataset if args.task == "classify" else f"{args.dataset}-{args.task}"
    return Path(args.out) / ("smoke" if args.smoke else "") / name


class Teacher:
    """A trained network that never changes: no gradient reaches it, its batch norm stands still.

    The views of the pictures, cropped or flipped, are drawn from (seed, epoch) alone. So most
    methods ask a teacher the same questions: the first run writes its answers, features and logits,
    to the views of an epoch into a file, and the others read it. A teacher that sees the pictures
    themselves, or all their flips, has one answer to each of them for all seeds and epochs.
    """

    epoch_bytes, folder_bytes = 512 * 2**20, 8 * 2**30  # the most that is kept

    def __init__(self, network, folder=None):
        self.network = network.eval().requires_grad_(False)
        self.folder = folder  # of the answers; None: each step asks the network itself
        self.split, self.key, self.kept = None, None, None  # last split, digest, its answers

    def __call__(self, batch):
        """Features (B, D') and logits (B, C) for the pictures of a Batch."""
        if batch.answers:
            return batch.answers
        with torch.no_grad():
            return self.network(batch.images)

    def begin_epoch(self, args, split, epoch):
        """The answers to the views of an epoch, (steps · B, D') and (steps · B, C), or None.

        None, where they are not kept, as feature maps never are: each step then asks the network.
        One answer for each picture, (N, D') and (N, C), where the teacher does not see the views.
        """
        if args.teacher_sees != "view":
            if split is not self.split:
                self.split, self.kept = split, outputs(self.network, split, self.folder)
            return self.kept
        if not self.folder or self.network.segment:
            return None
        size = 4 * len(split) * sum(self.network.head.weight.shape)  # bytes of N · (C + D') floats
        if size > self.epoch_bytes:
            return None
        if split is not self.split:  # only once, because it reads every pixel
            views = [split.hash(), args.batch_size, args.seed, args.balance, args.views]
            arithmetic = [args.precision, args.compile, args.device, torch.get_num_threads()]
            own = [self.network.name, files_of(self.network.name), self.network.state_dict()]
            answers = [*own, torch.__version__, *arithmetic]
            self.split, self.key = split, digest(views + answers)

        def ask():
            ## Batch by batch, so that they are bit by bit what each step would compute.
            steps = len(split) // args.batch_size
            views = with_bar(training_views(args, split, epoch), "the teacher's answers", steps)
            feats, logits = zip(*(self(batch) for batch in views))
            return torch.cat(feats), torch.cat(logits)

        path = self.folder / self.key / f"epoch-{epoch + 1:03}.pt"
        with locked(self.folder):  # nobody removes answers while another process reads them
            answers = made_once(path, ask, args.device, keys=(0, 1))
            keep_newest(self.folder, self.folder_bytes)  # the oldest make room for these
        return answers


def fit_head(network, split, folder, weight_decay):
    """Train the last layer W alone: logistic regression on features that are computed once.

    Minimises the mean cross-entropy + weight_decay / 2 · |W|².
    """
    feats, _ = outputs(network, split, folder)  # (N, D)
    weights = list(network.head.parameters())
    solver = torch.optim.LBFGS(weights, max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = F.cross_entropy(network.head(feats), split.labels)
        value = value + weight_decay / 2 * weights[0].square().sum()
        value.backward()
        return value

    solver.step(loss)
    value = loss().item()
    check_finite({"the loss of the last layer": value}, "the teacher")
    steepest = max(w.grad.abs().max().item() for w in weights)
    print(f"teacher: loss of the last layer {value:.4f}, steepest slope {steepest:.1e}")


def get_teacher(args, data):
    """The teacher for these pictures, network and seed, and how many seconds its training took.

    It is trained now if no script has done so before.
    """
    names = "task teacher image_size pretrained weight_decay precision teacher_statistics".split()
    recipe = {name: getattr(args, name) for name in names}
    head = args.teacher_train == "head"
    ways = VIEWS[args.views] if args.teacher_sees == "flips" else 1
    if head:
        recipe["ways"] = ways  # in which the last layer sees each picture
    else:
        recipe |= {"batch_size": args.batch_size, "views": args.views}
        recipe |= {k: getattr(args, f"teacher_{k}") for k in ("epochs", "lr", "optimizer")}
    ## A seed of its own: else a teacher built like its student would start from the same weights
    ## and see the same views, and plain training would give the teacher once more.
    recipe["seed"] = args.seed + 1_000_003
    ## Nothing but the recipe decides what it learns. Without groups it serves every --sensitive.
    recipe |= {"balance": args.teacher_balance} if args.teacher_balance else {}
    recipe |= {"compile": True} if args.compile else {}  # it rounds differently
    recipe["pictures"] = data.hash("train", groups=args.teacher_balance in ("cells", "groups"))
    recipe |= files_of(args.teacher, args.teacher_weights)
    name, teachers = Path(args.teacher).name.replace(":", "_"), data_folder(args) / "teachers"
    folder = teachers / f"{name}-{digest(recipe)}"
    torch.manual_seed(recipe["seed"])
    given = {"weights": args.teacher_weights, "statistics": args.teacher_statistics}
    given = argparse.Namespace(**vars(args) | given)
    network = Network(given, args.teacher, len(data.outputs)).expect(data["train"]).to(args.device)
    ## Features of a body that is never trained are the same for all seeds.
    kept = None if args.live_teacher else teachers / "frozen" if head else folder / "answers"

    def train():
        if head:
            start, network.ways = time.time(), ways
            fit_head(network, data["train"], kept, args.weight_decay)
            return {"state": network.state_dict(), "log": [], "seconds": time.time() - start}
        print(f"training the teacher, {args.teacher}", flush=True)
        plain = argparse.Namespace(**{"balance": ""} | recipe, device=args.device)
        method, checkpoint = PlainTraining(plain, data, network), folder / "checkpoint.pt"
        states, log, seconds = fit(plain, data, method, "teacher", checkpoint, {}, args.epochs + 2)
        return {"state": states["last"], "log": log, "seconds": sum(seconds)}

    trained = made_once(folder / "teacher.pt", train, keys=("state", "seconds"))
    put_back(network, trained["state"], folder)
    print(f"the teacher, {args.teacher}, is ready in\n    {folder}")
    network.ways = ways
    return Teacher(network, kept), trained["seconds"]


# ===== 7. MAIN (shared) ===========================================================================


def load_pictures(args):
    """The data set that the settings name."""
    names = "task target sensitive fold skew subject file_column device download skip_bad smoke"
    names += " train_share batch_size out"
    more = {name: getattr(args, name, None) for name in names.split()}
    more |= {"batch_size": 1} if args.describe else {}  # to look at few pictures is no training
    return load(args.dataset, args.data_dir, args.image_size, **more)


def main():
    args = parse()
    given = {f"--{name} {value}".removesuffix(" True") for name, value in vars(args).items()}
    for flag, reason in Method.refuses.items():
        if flag in given:
            raise InputError(f"{flag} is not for {Path(__file__).name}: {reason}; leave it out")
    if args.log and not find_spec(args.log):
        raise InputError(f"--log {args.log} needs the package {args.log}: install it")
    names, files = (args.teacher, args.student), (args.teacher_weights, args.weights)
    networks.refuse_unknown(names, files, args.task == "segment")
    print(f"reading {args.dataset} ...", flush=True)
    data = load_pictures(args)
    settle(args, len(data.outputs))
    print(data.describe())
    if args.describe:
        return data.contact_sheet(args.out)
    ## The folder's name tells what was changed, the method's own settings first; its digest covers
    ## all that is `chosen`, the pictures and what is said of them. Another setting has another
    ## folder: no run overwrites another one.
    same = ["--dataset", args.dataset, "--task", args.task, *["--smoke"] * args.smoke]
    usual = settle(parse(same), len(data.outputs))
    changed = {k: v for k, v in chosen(args).items() if v != getattr(usual, k) and k != "seed"}
    words = [re.sub(r'[<>:"/\\|?*]', "_", f"{k}_{v}") for k, v in changed.items()][::-1]
    name = "-".join(words)[:100] or "default"
    everything = chosen(args) | {"pictures": data.hash(), "words": data.words()}
    everything |= files_of(args.student, args.weights, args.teacher, args.teacher_weights)
    name = f"{name}-{digest(everything)}-seed{args.seed}"
    folder = data_folder(args) / Path(__file__).stem / name
    path = folder / "result.json"
    if args.restart:
        path.unlink(missing_ok=True)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    if path.exists():
        print(f"{path} is there already; --restart makes it anew")
    else:
        train_and_test(args, data, folder, {"settings": everything, "changed": changed})
    (folder / "checkpoint.pt").unlink(missing_ok=True)  # no longer needed
    print("\n" + metrics.summary(restore(path, keys=("last", "classes", "group_names"))))
    where = "" if args.out == "runs" else f" --results {shlex.quote(args.out)}"
    then = "" if args.smoke else f"\n      python report.py{where}"  # which leaves out smoke runs
    code = f" --student-module {shlex.quote(args.student)}" if ".py:" in args.student else ""
    print(f"\nnext: python predict.py {shlex.quote(str(folder))} PICTURE{code}{then}")


def train_and_test(args, data, folder, about):
    """Train teacher and student, test them, and write student, logits and, last, the result."""
    start = time.time()
    torch.manual_seed(args.seed)  # all methods start from the same student
    student = Network(args, args.student, len(data.outputs)).expect(data["train"]).to(args.device)
    needed = vars(args).get(Method.needs_teacher, Method.needs_teacher)
    teacher, teacher_seconds = get_teacher(args, data) if needed else (None, 0.0)
    torch.manual_seed(args.seed + 1)
    begun = time.time()
    method = Method(args, data, student, teacher)
    own_seconds = time.time() - begun + method.seconds  # before the epochs, such as first steps
    with locked(folder):  # a second process on this run waits, and then finds the result
        if (folder / "result.json").exists():
            return
        states, log, seconds = fit(args, data, method, "student", folder / "checkpoint.pt")

        ## The test split is touched here, once, when nothing is left to choose.
        print("testing ...", flush=True)
        drawn, result, logits, test, val = {}, {}, {}, data["test"], data["val"]
        tested = {"teacher": teacher.network} if teacher else {}
        taught = class_shares(data["train"], len(data.classes), args.teacher_balance)
        seen, measured = method.class_shares(), {}  # rules often choose one epoch: measured once
        for name, network in (tested | method.reported | dict.fromkeys(states, student)).items():
            if name in states:  # the student is tested with the weights of each rule
                put_back(network, states[name], folder)
            twin = measured.setdefault(digest(network.state_dict()), name)
            if twin != name:
                result[name] = result[twin] | {"epoch": states.get(name, {}).get("epoch")}
                drawn[name] = drawn[twin]
                logits |= {f"{name}{end}": logits[f"{twin}{end}"] for end in ("", "_val")}
                continue
            shares = taught if name == "teacher" else seen
            kept = teacher.folder if name == "teacher" else None
            _, on_train = measure(network, data, "train", shares, 0, kept)
            logits[f"{name}_val"], on_val = measure(network, data, "val", shares, 0, kept)
            draws, drawn[name] = 100 if args.smoke else 1000, {}
            logits[name], on_test = measure(network, data, "test", shares, draws, kept, drawn[name])
            tensors = network.state_dict().values()
            result[name] = {
                "epoch": states.get(name, {}).get("epoch"),
                "network": network.name,
                "ways": network.ways,  # in which it sees each picture, whose mean is its answer
                "parameters": sum(p.numel() for p in network.parameters()),
                "megabytes": sum(t.numel() * t.element_size() for t in tensors) / 1e6,
                "class_shares": shares,
                "train": on_train,
                "val": on_val,
                "test": on_test,
            }

        if teacher:  # how the student differs from its teacher
            pair = [(result[name]["test"], drawn[name]) for name in ("teacher", "last")]
            result["difference"] = metrics.differences(*pair)
        gpu = torch.cuda.get_device_name(args.device) if "cuda" in args.device else None
        times = {
            "total": max(time.time() - start, sum(seconds)),  # of a resumed run
            "teacher": teacher_seconds,
            "method": own_seconds,
            "epochs": seconds,
            "images_per_second": len(method.split) * len(seconds) / sum(seconds),  # with validation
            "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy")},
        }
        code = b"".join(Path(m.__file__).read_bytes() for m in (sys.modules[__name__], metrics))
        about |= {"method": Path(__file__).stem, "source": hashlib.sha256(code).hexdigest()[:16]}
        about |= {"classes": data.classes, "group_names": data.group_names, "notes": data.notes}
        about |= {"outputs": data.outputs}
        weights = {"mean": test.mean.cpu(), "std": test.std.cpu(), "states": states}
        weights |= {"network": student.name, "size": data.size, "class_shares": seen}
        weights |= manual(args.dataset) | {"trained_on": name_codes(data["train"].ids)}
        weights["test"] = {k: metrics.main_ones(result[k]["test"]) for k in states}
        save(folder / "student.pt", about | weights)
        truth = {"labels": test.labels.cpu(), "groups": test.groups.cpu(), "ids": test.ids}
        truth |= {"labels_val": val.labels.cpu(), "groups_val": val.groups.cpu()}
        kind = np.int32 if args.task == "segment" else np.float16  # `areas`, or logits
        arrays = {name: values.astype(kind) for name, values in logits.items()}
        np.savez_compressed(packed := io.BytesIO(), **arrays, **truth, subjects=test.subjects)
        save(folder / "logits.npz", packed.getvalue())
        result = about | {"log": log} | method.extra | result | {"times": times}
        save(folder / "result.json", json.dumps(result, indent=1, allow_nan=False))
    print(f"wrote {folder / 'result.json'}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (InputError, KeyboardInterrupt, BrokenPipeError) as error:
        reason = str(error) or "stopped; the same command goes on after the last finished epoch"
        sys.exit(f"{Path(__file__).name}: {reason}")
