"""FairDi. Masroor et al.: "Fair Distillation: Teaching Fairness from Biased Teachers in Medical
Imaging", 2024, arXiv 2411.11939. Its step 0, FIS: Luo et al., FairVision, 2024, arXiv 2310.02492.

IDEA. A network that must be good for all groups ends in a compromise. So a fair pre-training (step
0) is followed by one teacher for each group, as good as can be for it alone (step 1), and a student
learns from every picture's own teacher (step 2). It never sees a group: only training needs them.

CHANGES RELATIVE TO ckd.py.
    - section 2: settings of step 0, which on masks can also be FEBS (FairSeg, Tian et al., 2024),
      its loss as published (½ CE + ½ Eq. (9)) or mended; whether step 2 trains the backbone.
    - section 4: FairScaling (step 0), train_head (step 1); Method runs both, then is step 2.

EQUATIONS. l_i: loss; a_i: group; u_g: losses of B pictures of group g, u: of all B · G; φ: the
network up to its features; h_g: teacher's head; κ, t: of FIS; z, α, T: as in ckd.py. Of FEBS, p:
probabilities, m: masks, one-hot; E_g: Dice loss of group g in the batch, summed over classes; Ē_g:
running mean, from 1, of 1 - soft Dice of its pictures in a batch.
    Eq. (1)  p' = softmax(z'/T),  p = softmax(z/T)                         kd_loss
    Eq. (2)  L_KD = T² · mean over samples of Σ_c p'_c log(p'_c / p_c)     kd_loss
    Eq. (3)  L = (1 - α) · CE(z, y) + α · L_KD, in step 2                  Method.step
    Eq. (4)  d_g = ½ W₂²(u_g, u), exact optimal transport                  half_w2_squared
    Eq. (5)  wI = softmax(l / t), wG_i = softmax(d_{a_i} / t), over i      fis_loss
    Eq. (6)  L_FIS = Σ_i ((1 - κ) · wI_i + κ · wG_i) · l_i                 fis_loss
    Eq. (7)  L_g = mean of CE(h_g(φ(x_i)), y_i) over group g               train_head
    Eq. (8)  z'_i = h_{a_i}(φ(x_i))                                        Method.taught
    Eq. (9)  FEBS: Dice loss of w_{a_i} p and m,  w_g = tanh(min_j E_j / E_g)  febs_loss
    Eq. (10)  mended: L = mean of l_i · Ē_{a_i} / mean_j Ē_j               FairScaling.febs_step

DIFFERENCES FROM THE PAPER. Abstract and captions could be read, and a review that quotes step 0.
    1. The paper's: FIS, a teacher for each group, one student, parts frozen, two points reported.
    2. Our reading: what is frozen (φ), linear heads that all start from step 0's, Eqs. (3), (7),
       (8), α, T. Epochs are chosen by AUC (Dice) on validation: step 0's by its worst group, maybe
       an early one (--step0-epoch last: the last), a teacher's by its own group, maybe its start.
       Step 1: --teacher-epochs, --teacher-optimizer, fixed --teacher-lr; not --teacher, --balance.
    3. Before step 2 it is printed what a teacher gains on its own group over a control, the same
       head trained on as many pictures of everybody, both chosen on the pictures that measure it.
DIFFERENCES FROM PUBLIC CODE (FairVision, of FIS by its authors; FairSeg, of FEBS; of FairDi none).
    1. Its distance, a Sinkhorn divergence stopped early, can be negative; Eq. (4) is exact.
    2. It divides Eq. (6) by B. Its AdamW does not feel that; our SGD would, as a rate of lr/B.
    3. u_g: B pictures of a group, drawn with replacement, in evaluation mode, not augmented; there
       64 (3-D: 8 or 6), drawn without, and they move batch norm's statistics.
    4. t = 30; there 1 (ViT from ImageNet) or 10 (3-D ResNet). Of 1, 3, 10, 30 validation chose 30
       or 10 for FIS, on CelebA once 3. At 30 step 0 is nearly plain training.
    5. FEBS fine-tunes there, 5 epochs after 300 of plain training; here it has all epochs. Its Dice
       is not that of `label_loss`: it squares below the line, and background is a class. It scales
       maps, not losses, the worst group's least, and so looks away from it. Where a batch lacks a
       group, E = 0, all w = 0: the term is 1. Eq. (10) weighs losses, most the worst group's.

RUN.  python methods/fairdi.py                   the toy data, two CPU cores: 2 minutes
      python methods/fairdi.py --task segment    masks of the toy: 2 minutes
EXPECT. "fis", "fis_best_overall" and "fis_best_worst_group" in the result are step 0, also FEBS; of
masks "teacher_0" ... are step 1. Step 2 moves little, because only a head is trained.
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
    add("--fusion", type=share, default=0.5, help="κ: share of wG in L_FIS (FairVision: 0.5)")
    add("--fis-temperature", type=number(1e-6), default=30.0, help="t: softens both; theirs: 1, 10")
    ways = "of masks also FEBS: as published, or mended"
    add("--step0", default="fis", choices=["fis", "febs", "febs-mended"], help=ways)
    epochs = ["best_worst_group", "last"]
    add("--step0-epoch", default=epochs[0], choices=epochs, help="epoch of step 0 for steps 1, 2")
    add("--train-backbone", action=switch, default=False, help="step 2: φ as well, not only a head")
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

import copy

from torch import nn


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


def half_w2_squared(a, b):
    """Eq. (4): ½ W₂² of samples a (n,) and b (m,). In one dimension the lowest go to the lowest."""
    n, m = len(a), len(b)
    ## W₂² is the integral over q in (0, 1) of the squared difference of both quantile functions.
    ## They are constant between multiples of 1/n and of 1/m: `ends` are these multiples times n·m.
    ends = torch.cat([torch.arange(k, n * m + 1, k, device=a.device) for k in (m, n)]).sort()[0]
    width = ends.diff(prepend=ends.new_zeros(1)).to(a)  # (n + m,)
    moved = a.sort().values[(ends - 1) // m] - b.sort().values[(ends - 1) // n]  # (n + m,)
    # Eq. (4)
    return (width * moved.square()).sum() / (2 * n * m)


def fis_loss(losses, groups, distances, fusion, temperature):
    """Eq. (6): fair identity scaling of losses (B,), for groups (B,) at distances d (G,)."""
    # Eq. (5)
    ## As in public code, wI is not detached: bad pictures also pull through their weights. wG is
    ## high for a group whose losses differ from all's, also if they are lower.
    w_individual = torch.softmax(losses / temperature, dim=0)  # (B,)
    w_group = torch.softmax(distances[groups] / temperature, dim=0)  # (B,)
    # Eq. (6)
    return (((1 - fusion) * w_individual + fusion * w_group) * losses).sum()


def dice_losses(p, t):
    """1 - (2 Σ p t + ε) / (Σ p² + Σ t² + ε) of each class, (C,), from maps p and t (n, C, H·W)."""
    both, squares = (p * t).sum(dim=(0, 2)), (p * p + t * t).sum(dim=(0, 2))  # (C,)
    return 1 - (2 * both + 1e-5) / (squares + 1e-5)


def febs_loss(logits, masks, groups, num_groups):
    """Eq. (9): fair error-bound scaling as published, from (B, C, H, W), (B, H, W) and (B,)."""
    p = logits.softmax(dim=1).flatten(2)  # (B, C, H·W)
    t = F.one_hot(masks.flatten(1), p.shape[1]).transpose(1, 2).to(p)  # (B, C, H·W)
    # Eq. (9)
    every = [dice_losses(p[groups == g], t[groups == g]).sum() for g in range(num_groups)]
    errors = torch.stack(every).detach()  # (G,), 0 of a group that is absent
    weights = torch.tanh(errors.min() / errors.clamp(min=1e-7))[groups]  # (B,); never 0/0
    return dice_losses(weights[:, None, None] * p, t).mean()


class FairScaling(PlainTraining):
    """Step 0: the student, trained by Eq. (6), or by FEBS."""

    def __init__(self, args, data, student):
        super().__init__(args, data, student)
        groups = data["train"].groups.cpu()
        self.members = [(groups == g).nonzero()[:, 0] for g in range(len(data.group_names))]
        errors = torch.ones(len(data.group_names), device=args.device)
        self.saved["running"] = nn.ParameterDict({"errors": errors}).requires_grad_(False)

    def step(self, batch):
        if self.args.step0 != "fis":
            return self.febs_step(batch)
        ## Distances from n pictures of each group: a batch may have one of a group, or none.
        args, n, train = self.args, self.args.batch_size, self.data["train"]
        drawn = torch.cat([m[torch.randint(len(m), (n,))] for m in self.members])  # (G·n,)
        others = next(batches(train.subset(drawn), len(drawn)))
        self.student.eval()
        with torch.no_grad():
            _, logits = self.student(others.images)  # (G·n, C)
            every = label_loss(logits, others.labels)  # (G·n,) losses
        self.student.train()
        distances = torch.stack([half_w2_squared(part, every) for part in every.split(n)])  # (G,)
        losses = label_loss(self.student(batch.images)[1], batch.labels)  # (B,)
        loss = fis_loss(losses, batch.groups, distances, args.fusion, args.fis_temperature)
        self.update(loss)
        return {"loss": loss, "loss_ce": losses.mean(), "distance": distances.max()}

    def febs_step(self, batch):
        """A step of FEBS, as published or mended."""
        _, logits = self.student(batch.images)  # (B, 2, H, W)
        losses, groups = label_loss(logits, batch.labels), batch.groups  # (B,)
        errors = self.saved["running"]["errors"]  # (G,), Ē
        if self.args.step0 == "febs":
            loss = 0.5 * F.cross_entropy(logits, batch.labels)
            loss = loss + 0.5 * febs_loss(logits, batch.labels, groups, len(errors))
        else:
            wrong = 1 - soft_dice(logits.detach(), batch.labels)  # (B,)
            for g in groups.unique():
                errors[g] += 0.1 * (wrong[groups == g].mean() - errors[g])
            # Eq. (10)
            loss = (errors[groups] / errors.mean() * losses).mean()
        self.update(loss)
        return {"loss": loss, "loss_ce": losses.mean()}


class Frozen:
    """φ, which learns no more: the features of a split's pictures."""

    def __init__(self, network, split):
        self.network, self.split = copy.deepcopy(network).eval().requires_grad_(False), split
        ## Features (N, D) are computed once, without augmentation. Maps of all pictures would not
        ## fit into memory, and are computed whenever they are asked for.
        self.kept = None if network.segment else outputs(self.network, split)[0]

    def of(self, batch):
        """Features of a batch, (B, D), or maps of its very views, (B, D, H', W')."""
        return self.network(batch.images)[0] if self.kept is None else self.kept[batch.index]

    def at(self, index):
        """Features and labels of the pictures at positions `index` (n,), without augmentation."""
        if self.kept is not None:
            return self.kept[index], self.split.labels[index]
        batch = next(batches(self.split.subset(index), len(index)))
        return self.of(batch), batch.labels

    def answers(self, head, index):
        """What a head says of them: logits (n, C), or of masks `areas` (n, 3), as an array."""
        if self.kept is not None:
            return head(self.kept[index]).detach().cpu().numpy()
        parts = [(head(feats).detach(), masks) for feats, masks in map(self.at, index.split(256))]
        return torch.cat([areas(*part) for part in parts]).cpu().numpy()


def score(answers, labels, weights=None):
    """AUROC of logits (n, C), which are floats, or mean Dice of integer `areas` (n, 3). (...,)"""
    if answers.dtype.kind == "f":
        ranked = metrics.log_odds(answers.astype(float))  # probabilities would tie near 1
        return metrics.auroc(labels=labels, probs=ranked, weights=weights)
    values = metrics.dice(areas=answers)  # (n,)
    return values.mean() if weights is None else weights @ values / weights.sum(-1)


def gain(own, control, split, replicates):
    """By how much the score of a teacher's `own` answers is above a control's; its interval."""
    labels, many = split.labels.cpu().numpy(), {"n": len(split), "replicates": replicates}
    weights = metrics.bootstrap_weights(**many, clusters=split.subjects)
    points = {"point_a": score(own, labels), "point_b": score(control, labels)}
    draws = {"draws_a": score(own, labels, weights), "draws_b": score(control, labels, weights)}
    return metrics.paired_difference(**points, **draws)


def train_head(args, data, head, train, val, number):
    """Step 1: train a head on `number` pictures an epoch, up to its best one.

    train, val: a Frozen and positions (n,) in it. Returns answers on val, score after, and before.
    """
    (phi, index), (phi_val, index_val) = train, val
    labels_val = phi_val.split.labels[index_val].cpu().numpy()
    answers, states = [phi_val.answers(head, index_val)], [copy.deepcopy(head.state_dict())]
    trainer, order = PlainTraining(args, data, head), torch.Generator().manual_seed(args.seed)
    for _ in range(args.epochs):
        for part in torch.randperm(len(index), generator=order)[:number].split(args.batch_size):
            feats, labels = phi.at(index[part])
            # Eq. (7)
            trainer.update(label_loss(head(feats), labels).mean())
        answers.append(phi_val.answers(head, index_val))
        states.append(copy.deepcopy(head.state_dict()))
    ## A teacher is biased on purpose: only its own group decides which epoch is its best.
    scores = [score(each, labels_val) for each in answers]
    best = scores.index(max(scores))
    head.load_state_dict(states[best])
    return answers[best], scores[best], scores[0]


class Method(PlainTraining):
    """Steps 0 and 1 when it is made, step 2 batch by batch."""

    needs_teacher = False  # it makes its own

    def __init__(self, args, data, student, teacher=None):
        super().__init__(args, data, student, teacher)
        if args.step0 != "fis" and not student.segment:
            raise InputError(f"--step0 {args.step0} weighs a Dice loss: it needs --task segment")
        ## Step 0, made once for all runs that share it; its states are reported as FIS.
        others = r"alpha|temperature|teacher.*|train_backbone|step0_epoch"  # of steps 1 and 2
        recipe = {k: v for k, v in chosen(args).items() if not re.fullmatch(others, k)}
        pictures = data.hash("train", "val")  # validation chooses the epoch
        made_of = [recipe, pictures, files_of(args.student, args.weights)]
        folder = data_folder(args) / "teachers" / f"step0-{digest(made_of)}"

        def first_step():
            plain = argparse.Namespace(**recipe, device=args.device)  # nothing else decides
            fis = FairScaling(plain, data, student)
            later = 2 + args.epochs * (1 if args.train_backbone else 0.2)  # heads: a fifth
            states, _, took = fit(plain, data, fis, "step 0", folder / "checkpoint.pt", later=later)
            return states | {"seconds": sum(took)}

        begun = time.time()
        states = made_once(folder / "step0.pt", first_step, keys=("last", "seconds"))
        self.seconds = max(0.0, states["seconds"] - (time.time() - begun))
        for rule in ("last", "best_overall", "best_worst_group"):
            put_back(student, states[rule], folder)
            self.reported[f"fis_{rule}".removesuffix("_last")] = copy.deepcopy(student)
        put_back(student, states[args.step0_epoch], folder)  # steps 1 and 2 begin here
        _, val = measure(student, data, "val")
        what = "dice" if student.segment else "auroc"
        worst = val[f"{what}_worst_group"]  # None: every group has one class there
        told = f"val {what} of the worst group {'undefined' if worst is None else f'{worst:.1%}'}"
        print(f"step 0 ends as in epoch {states[args.step0_epoch]['epoch'] + 1}: {told}")
        ## Step 1. With one class in training there is nothing to teach, in validation no choice.
        plain = copy.copy(args)
        plain.epochs, plain.lr = args.teacher_epochs, args.teacher_lr
        plain.optimizer, draws = args.teacher_optimizer, 100 if args.smoke else 1000
        self.phi, phi_val = (Frozen(student, data[part]) for part in ("train", "val"))
        self.heads, gains = nn.ModuleList(), self.extra.setdefault("gains", [])
        for g, name in enumerate(data.group_names):
            own = [(phi, (phi.split.groups == g).nonzero()[:, 0]) for phi in (self.phi, phi_val)]
            taught = copy.deepcopy(student)
            self.heads.append(taught.head)
            self.reported |= {f"teacher_{g}": taught} if student.segment else {}
            number, classes = len(own[0][1]), [phi.split.labels[index] for phi, index in own]
            if min(len(labels.unique()) for labels in classes) < 2 and not student.segment:
                print(f"teacher of {name}: one class only, step 0 stands in for it")
                continue
            answers, after, before = train_head(plain, data, self.heads[g], *own, number)
            ## Is it worth having? A control sees as many pictures, but of everybody; its best
            ## epoch, too, is chosen on this group. What is left is the gain of a teacher's own.
            pool = self.phi, torch.arange(len(data["train"]), device=own[0][1].device)
            control, *_ = train_head(plain, data, copy.deepcopy(student.head), pool, own[1], number)
            gained = gain(answers, control, data["val"].subset(own[1][1]), draws)
            points = "{difference:+.2%} [{low:+.2%}, {high:+.2%}]".format(**gained)
            numbers = {k: None if math.isnan(v) else v for k, v in gained.items()}
            gains.append({"group": name} | numbers)
            print(f"teacher of {name}: val {what} {after:.1%}, was {before:.1%}; gain {points}")
        self.heads.requires_grad_(False)
        shown = sum((gained["low"] or 0) > 0 for gained in gains)
        print(f"{shown} of {len(gains)} gains are above 0 (95 %) on pictures that chose teachers")

    def taught(self, feats, groups):
        """What each picture's own teacher says, (B, C): here the group comes in, and only here."""
        every = torch.stack([head(feats) for head in self.heads])  # (G, B, C)
        # Eq. (8)
        return every[groups, torch.arange(len(groups), device=groups.device)]

    def step(self, batch):
        """One batch of step 2: forward, losses, backward, update. Returns the losses by name."""
        feats = self.phi.of(batch)  # (B, D), or (B, D, H', W')
        if self.args.train_backbone:
            _, logits_s = self.student(batch.images)  # (B, C); feats are of the plain pictures
        else:  # nothing but the head gets a gradient, so that a step costs next to nothing
            logits_s = self.student.head(feats)  # (B, C)
        logits_t = self.taught(feats, batch.groups)  # (B, C)
        loss_ce = label_loss(logits_s, batch.labels).mean()
        loss_kd = kd_loss(logits_s, logits_t, self.args.temperature)
        # Eq. (3)
        loss = (1 - self.args.alpha) * loss_ce + self.args.alpha * loss_kd
        self.update(loss)
        return {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd}


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
