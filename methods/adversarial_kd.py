"""Adversarial KD: distillation against an opponent that looks for the group. After the slides
"Enhancing Knowledge Distillation via Bias Mitigation" (Bolner, Hutton, Morin and Bang, 2023).

IDEA. A second network guesses the group from the student's logits and the true label. Where it
succeeds, the student treats pictures of one class differently by group: that makes recall gaps.
The student learns to agree with labels and teacher, and to leave this adversary guessing.

CHANGES RELATIVE TO ckd.py.
    - own settings: λ (--adversary-weight) and the adversary's learning rate.
    - section 4: Reverse, Adversary and adversary_loss; Method owns the adversary and its optimiser.
    - of masks, A_y sees the mean of the student's features over all places, (B, D), in place of z,
      and y is the class of the picture.

EQUATIONS. z, z': logits of student and teacher (B, C); y: labels; T: temperature; α, λ: weights;
a: groups; w_ya ∝ 1 / number of pictures of class y and group a in an epoch, on average 1;
g: gradient of L_A in z.
    Eq. (1)  p' = softmax(z'/T),  p = softmax(z/T)                        kd_loss
    Eq. (2)  L_KD = T² · mean over samples of Σ_c p'_c log(p'_c / p_c)    kd_loss
    Eq. (3)  L = (1 - α) · CE(z, y) + α · L_KD                            Method.step
    Eq. (4)  v = A_y(z): group logits (B, G), a network A_y per class     Adversary.forward
    Eq. (5)  L_A = mean over samples of w_ya · min(CE(v, a), cap)         adversary_loss
    Eq. (6)  z forward; backward -λ g, cut to log(1+λ)/√B, times a ramp   Reverse.backward
    Eq. (7)  A: down L_A, cap ∞;  student: down Eq. (3) - λ L_A, cap log G  Method.step

DIFFERENCES FROM THE PAPER. Slides have no formula. Published: an adversary that guesses the gender
from the student's outputs, both networks learning at once; λ up to 150. Our reading is gradient
reversal (Ganin and Lempitsky, 2015): λ turns the step towards fairness. Two others are not used:
    1. Projection (Zhang et al., 2018): of the task's gradient t, the part along the adversary's u
       goes, too: t - (u*t).sum() / (u*u).sum() · u - λ u, per weight tensor (fairlearn's inner is
       wrong for matrices). Two backward passes, and even a clueless u takes its part of t away.
    2. The critic gate (Savani et al., 2020; the slides' code): a critic c learns a batch's gap in
       recall; L is multiplied by max(1, λ (|c| - ε + margin) + 1), in the slides' code with c of
       the first picture alone (and L, for CKD and CTKD, CE alone). That makes steps longer but
       hardly turns them. (Their first code has 1/L_A and -λ L_A without gradient: λ does nothing.)
DIFFERENCES FROM PUBLIC CODE (AD in DQle38/Fair-Feature-Distillation-for-Visual-Recognition).
    1. A mean over samples, not a sum of means per class: there λ grows with the number of classes.
    2. w_ya. Where most of a class is in one group, always naming that group would be hard to beat.
    3. The cap. L_A has no bound, and students let their logits grow without end to raise it.
    4. The cut of Eq. (6): a picture pulls by log(1 + λ) on average, at most: 0.7 at λ = 1, 1.8 at
       5, 5 at 150. CE pulls by at most (1 - α)√2 = 0.14, L_KD by αT√2 = 5.1. One length for all λ
       would make all large ones one setting; the task's gradient grows in a ruined student.
    5. The ramp, from 0 to 1 at half-time. A strong adversary in the first epochs ends in collapse.
    6. The adversary moves first and fast (Adam, 0.01). Theirs moves with the student, at 3e-4,
       slower once its loss on test pictures no longer falls; their λ is 2.
    7. With a teacher their student's loss is CE + 4 · L_KD at T = 3, where the 4 falls to 1, + one
       of features. So CE weighs more there against the adversary than here, as a tenth of Eq. (3).

RUN.  python methods/adversarial_kd.py                         the toy, two CPU cores: 2 minutes
      python methods/adversarial_kd.py --adversary-weight 0.5  less of it; 0 is CKD
      python methods/adversarial_kd.py --alpha 0               AD: the adversary without a teacher
EXPECT. On CelebA (attractive; 20,140 faces, 32 pixels, 12 epochs), test, mean of three seeds:
    λ           0     0.5   1     2     5
    AUROC       85.3  84.9  84.2  82.5  76.7
    mean-DEO    36.6  27.7  21.1  12.6  3.4 (one of the three collapsed)
The best λ, by the AUROC of the worst group among those within a point of the best AUROC, is 0.5
there, on CIFAR10-S and on FairFace, and 0.5, 1 or 5 on HAM10000, where one of five students
collapses at 5: the default for two classes is 1. Validation pictures with the skew of the training
set choose too small a λ: on CIFAR10-S 5 has by far the lower mean-DEO (results/README.md).
The toy's six classes bear 150 (83 % in the worst training cell; CKD 80, λ = 5 98); 1, 2 and 5 are
alike there, with an AUROC of 100, and 5 stays the default. AD lowers mean-DEO on HAM10000 by sex,
by age and by both in two trainings of two: the same λ weighs more where no L_KD pulls against it.
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
    strength = "λ: 0 (CKD) to 150, for two classes, for more"
    add("--adversary-weight", type=weight, default=(1.0, 5.0), help=strength)
    add("--adversary-lr", type=weight, default=0.01, help="of the adversary's Adam")
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


def kd_loss(logits_s, logits_t, temperature):
    """Eq. (2): T² · KL(teacher ‖ student) of the softened outputs, averaged over the batch.

    Logits are (B, C), of masks (B, C, H, W). A scalar, at least 0; 0 where both say the same.
    """
    # Eq. (1), as logarithms: the quotient of Eq. (2) becomes a difference that cannot overflow
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)  # (B, C)
    log_p_t = F.log_softmax(logits_t / temperature, dim=1)  # (B, C)
    # Eq. (2)
    divergence = (log_p_t.exp() * (log_p_t - log_p_s)).sum(dim=1)  # (B,)
    ## Dividing logits by T makes the gradient about T² times smaller. The factor T² undoes that, so
    ## that α keeps its meaning when T changes. The mean is over samples alone: a mean over classes,
    ## too, as by F.kl_div's default, would make the loss C times too small.
    return temperature**2 * divergence.mean()


class Reverse(torch.autograd.Function):
    """Forward: logits (B, C) as they are. Backward: their gradient, against the adversary."""

    @staticmethod
    def forward(ctx, logits_s, strength, ramp):
        ctx.strength, ctx.ramp = strength, ramp
        return logits_s.view_as(logits_s)

    @staticmethod
    def backward(ctx, grad):
        # Eq. (6): because of this minus the student works against the adversary
        grad = -ctx.strength * grad  # (B, C)
        longest = math.log1p(ctx.strength) / len(grad) ** 0.5
        cut = (longest / grad.norm().clamp(min=1e-12)).clamp(max=1)
        return ctx.ramp * cut * grad, None, None


class Adversary(nn.Module):
    """Guesses the group from logits, (B, width), and labels (B,): group logits (B, G)."""

    def __init__(self, width, num_classes, num_groups, hidden=32):
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Linear(width, num_classes * hidden)  # C layers side by side
        self.second = nn.Linear(hidden, num_classes * num_groups)

    def forward(self, logits_s, labels):
        ## Without the label the adversary would also punish that a class is rarer in one group.
        # Eq. (4)
        own = (torch.arange(len(labels), device=labels.device), labels)
        shape = len(labels), self.num_classes, -1
        hidden = self.first(logits_s).view(shape)[own].relu()  # (B, 32)
        return self.second(hidden).view(shape)[own]


def adversary_loss(group_logits, labels, groups, weights, cap=math.inf):
    """Eq. (5) from (B, G), (B,), (B,), (C, G): a scalar, at least 0; pure guessing is log G."""
    loss = F.cross_entropy(group_logits, groups, reduction="none").clamp(max=cap)  # (B,)
    # Eq. (5)
    return (weights[labels, groups] * loss).mean()


class Method(PlainTraining):
    """Distillation by Eq. (3), with an adversary."""

    needs_teacher = "alpha"

    def __init__(self, args, data, student, teacher):
        super().__init__(args, data, student, teacher)
        shape, train = (len(data.classes), len(data.group_names)), data["train"]
        width = student.width if student.segment else shape[0]
        self.adversary = Adversary(width, *shape).to(args.device)
        self.optimizer_adv = torch.optim.Adam(self.adversary.parameters(), args.adversary_lr)
        self.saved |= {"adversary": self.adversary, "optimizer_adv": self.optimizer_adv}
        cell, shown = train.labels * shape[1] + train.groups, times_shown(train, args.balance)
        count = torch.bincount(cell, shown, minlength=math.prod(shape)).float()  # in an epoch
        there = count > 0
        ## (C, G), 1 on average over what is drawn
        self.weights = (count.sum() / (count.where(there, 1.0) * there.sum())).view(shape)

    def step(self, batch):
        """One batch: forward, losses, backward, update. Returns the losses by name."""
        args, classes = self.args, self.split.labels[batch.index]  # (B,) of pictures
        cells = classes, batch.groups, self.weights
        feats_s, logits_s = self.student(batch.images)  # (B, D), (B, C)
        loss_ce, loss_kd = label_loss(logits_s, batch.labels).mean(), torch.zeros(())
        if self.teacher:  # none with α = 0
            _, logits_t = self.teacher(batch)  # (B, C), without gradient
            loss_kd = kd_loss(logits_s, logits_t, args.temperature)
        # Eq. (3)
        loss = (1 - args.alpha) * loss_ce + args.alpha * loss_kd
        # Eq. (7): the adversary moves first, without λ; the student answers what it now knows
        shown = feats_s.mean(dim=(2, 3)) if self.student.segment else logits_s  # (B, D) or (B, C)
        group_logits = self.adversary(shown.detach(), classes)  # (B, G)
        loss_adv = adversary_loss(group_logits, *cells)
        self.optimizer_adv.zero_grad()
        loss_adv.backward()
        self.optimizer_adv.step()
        ramp = min(1, 2 * batch.epoch / args.epochs)  # fully in force at half-time
        seen = Reverse.apply(shown, args.adversary_weight, ramp)  # as `shown`
        seen = self.adversary(seen, classes)  # (B, G)
        self.update(loss + adversary_loss(seen, *cells, cap=math.log(group_logits.shape[1])))
        ## The loss that is logged is Eq. (3); the adversary's share enters the gradient alone.
        weights, hits = self.weights[cells[:2]], group_logits.argmax(dim=1) == batch.groups  # (B,)
        losses = {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd, "loss_adv": loss_adv}
        return losses | {"accuracy_adv": (weights * hits).sum() / weights.sum()}  # chance: 1/G


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
