"""FairTune. Dutt, Bohdal, Tsaftaris and Hospedales: "FairTune: Optimizing Parameter Efficient Fine
Tuning for Fairness in Medical Image Analysis", ICLR 2024.

IDEA. A large network fits its training pictures nearly perfectly, those of every group; unfairness
appears on new pictures. So a search chooses WHICH parts of a pre-trained vision transformer are
tuned and which stay as they are, by how fair the result is on the validation split.

CHANGES RELATIVE TO ckd.py.
    - no teacher: --teacher-epochs, -lr, -optimizer are of pre-training; α, T, --optimizer unused.
    - own settings, and section 4: what a bit frees, pre-training, a search, one run with its best.

EQUATIONS. θ₀: pre-trained weights; ω: a bit for each part; δ: what tuning adds.
    Eq. (1)  θ(ω) = θ₀ + ω ⊙ δ,  δ by CE on the training split            free
    Eq. (2)  L_fair = the largest mean CE of a group, on validation       Tuning.end_epoch
    Eq. (3)  ω* = argmin over ω (and the learning rate) of L_fair(θ(ω))   search

DIFFERENCES FROM THE PAPER. We could read its abstract, reviews and the code, not the full text.
    1. Eq. (2) is a review's "largest loss of a subgroup"; the code's default: the lowest accuracy.
    2. 20 trials; the paper had 50, says a student project. All sizes are for small computers.
    3. --mask full, all and none search, too: the learning rate alone, same trials, same range.
    4. θ₀ is of ImageNet there and, by --pretrained or --weights, here. Twenty trainings of a ViT-B
       take days without a GPU. So by default a small ViT learns toy-source first, too little for
       photographs. An unfinished θ₀ (12 epochs, not 30) favours full tuning, which finishes it.
DIFFERENCES FROM PUBLIC CODE (Raman1121/FairTune).
    1. The objective is the whole split's; there a mean over shuffled batches (in an example AUC
       0.862, not 0.865), and the largest loss the last batch's.
    2. The pruner hears of every epoch; there of the last alone, which saves nothing. Here it ends
       most trials after one epoch, when the rate has just warmed up: a few of 20 reach the end.
    3. The last run repeats the best trial: its rate, its seed. There the rate found is not used.
    4. AdamW, whatever --optimizer says: by SGD, such rates change little. One layout of bits.
    5. Rates up to 1e-1, not 1e-3, because a head alone needs them. Else the recipe is ckd.py's.

RUN.  python methods/fairtune.py                the toy; in two terminals, both share the trials
      python methods/fairtune.py --mask full    full tuning; all: every bit 1; none: a linear probe
      python methods/fairtune.py --mask 110100000001 --lr 3e-4 --trials 0     a mask found before
      ... --dataset ham10000 --data-dir DIR --student vit_b_16 --pretrained --image-size 224
      ... the same with --student timm:vit_tiny_patch16_224 --weights FILE
      ... --dataset ham10000 --data-dir DIR --source cifar10s --source-dir DIR2   or csv
EXPECT. On the toy (accuracy and mean-DEO, three seeds) full tuning has 98.9 and 2.0; all parts 99.3
and 1.4, the searched mask 99.3 and 1.3, the head alone 99.6 and 0.5: θ₀ is fair. HAM10000 by age
(from CIFAR10-S; AUROC of all, of the old): full 87.2, 81.0; mask 85.8, 79.2; head 82.6, 75.5.
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
    ## A budget of its own, the same for all data sets: the search trains 20 times. This --lr counts
    ## where none is searched; a teacher's budget is that of pre-training.
    parser.set_defaults(student="vit_tiny", epochs=12, batch_size=64, lr=3e-4)
    parser.set_defaults(teacher_epochs=30, teacher_lr=0.05)
    add("--mask", default="search", help="search, full, all, none, or 0/1 bits")
    goals = ["loss_worst_group", "auroc_worst_group", "auroc_gap", "auroc"]
    add("--objective", default=goals[0], choices=goals, help="on validation")
    trials = "of the search; 0: --mask and --lr as they are"
    add("--trials", type=number(0, kind=int), default=20, help=trials)
    first = "learnt first, without given weights"
    add("--source", default="toy-source", choices=DATASETS, metavar="DATASET", help=first)
    add("--source-dir", metavar="DIR", help="of its files [data/NAME]")
    ## Its name ends in _dir, so that it is no setting of the result: see `chosen`.
    add("--study-dir", metavar="DIR", help="or URL of a database, for several machines")
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
import warnings
from datetime import datetime

import optuna
from data import Diverged
from filelock import FileLock, Timeout
from torch import nn


## Learning rates of all searches, even in their logarithms. The authors' end at 1e-3, but a head
## alone, which --mask none and a mask of zeros leave, learns best at rates ten times as high.
RATES = 1e-5, 1e-1


class StillBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics, too, stand still while its weights are frozen."""

    def train(self, mode=True):
        return super().train(mode and self.weight.requires_grad)


def vit_tiny(size):
    """A small vision transformer: 4 blocks of width 64, patches of 8 pixels.

    Convolutions embed the patches (Xiao et al., 2021): without them, or with layer norm between
    them, it learnt nothing from the toy's 6,000 pictures in ten epochs.
    """
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    layers = ((16, 2), (32, 2), (64, 1), (64, 2))  # width and stride: 2 · 2 · 2 = 8 pixels
    stem = [ConvStemConfig(width, 3, stride, StillBatchNorm) for width, stride in layers]
    layout = {"patch_size": 8, "num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return VisionTransformer(size, **layout, conv_stem_configs=stem)


networks.OWN["vit_tiny"] = vit_tiny


def parts(network):
    """What bits decide on, lists of modules: norms, attention, MLP of block 1, of block 2, ...

    ViT-B/16 has 36. Norms are 3,072 of a block's 7 million weights, but scale all it computes.
    """
    body = network.body
    if hasattr(body, "encoder"):  # torchvision
        each = [([b.ln_1, b.ln_2], [b.self_attention], [b.mlp]) for b in body.encoder.layers]
    elif hasattr(getattr(body, "blocks", [0])[0], "attn"):  # timm
        each = [([b.norm1, b.norm2], [b.attn], [b.mlp]) for b in body.blocks]
    else:
        raise InputError(f"{network.name} has no transformer blocks: use --student vit_tiny")
    return [part for block in each for part in block]


def free(network, bits):
    """Let parts with bit 1 and the head be trained, or all ("full"); returns their parameters."""
    ## Class token, positions, patch embedding and last norm have no bit: "full" alone frees them.
    network.requires_grad_(bits == "full").head.requires_grad_(True)
    bits = "1" * len(parts(network)) if bits == "full" else bits
    # Eq. (1): ω ⊙ δ; without gradient and outside the optimiser, δ is 0 and θ remains θ₀
    for bit, modules in zip(bits, parts(network), strict=True):
        nn.ModuleList(modules).requires_grad_(bit == "1")
    return [p for p in network.parameters() if p.requires_grad]


class Tuning(PlainTraining):
    """Training of what is free, by AdamW: in a trial of the search and in the run itself."""

    def __init__(self, args, data, student, bits, lr, trial=None):
        super().__init__(args, data, student)
        groups = [{"params": free(student, bits), "initial_lr": lr}]
        self.optimizer = torch.optim.AdamW(groups, lr, weight_decay=args.weight_decay)
        self.saved["optimizer"], self.trial = self.optimizer, trial

    def end_epoch(self, epoch, validation):
        # Eq. (2), or another --objective
        self.value = validation[self.args.objective]
        if self.trial:
            self.trial.report(self.value, epoch + 1)
            ## A trial that is behind what others had reached at its age ends here and saves time.
            if epoch + 1 < self.args.epochs and self.trial.should_prune():
                raise optuna.TrialPruned


def theta_0(args, data):
    """A network with weights θ₀ and a new head. Pre-trains it, the first time, on --source.

    Like downloaded weights, all seeds share it. For the toy the source is datasets/toy_source.py.
    """
    torch.manual_seed(args.seed)
    network = Network(args, args.student, len(data.classes)).expect(data["train"]).to(args.device)
    parts(network)  # raises InputError unless it is a transformer
    photographs = "--student vit_b_16 --pretrained --image-size 224 (ImageNet; wants a GPU)"
    if args.pretrained and args.student == "vit_tiny":
        raise InputError(f"nobody offers weights of {args.student}: use {photographs}")
    if args.pretrained or args.weights:
        return network
    drawn = args.source.startswith("toy")
    if drawn and not args.dataset.startswith("toy"):
        print(
            f"{args.student} is pre-trained on {args.source}: it knows drawn stars alone, which is "
            "enough to try the search and too little to judge it. Weights that know photographs: "
            f"{photographs}, or your own by --source csv --source-dir DIR"
        )
    ## To pre-train is to make a teacher for the source's pictures.
    plain = copy.copy(args)
    plain.dataset, plain.data_dir, plain.teacher = args.source, args.source_dir, args.student
    plain.teacher_train, plain.teacher_sees = "all", "view"
    unset = "target sensitive fold skew subject file_column teacher_weights teacher_statistics"
    vars(plain).update(dict.fromkeys(unset.split()), seed=0, train_share=1.0)
    plain.image_size = 32 if drawn else args.image_size  # stars are drawn in one size
    pictures = load_pictures(plain)
    teacher, _ = get_teacher(plain, pictures)
    _, val = measure(teacher.network, pictures, "val")
    print(f"θ₀ knows its source: accuracy {val['accuracy']:.1%} on the validation pictures there")
    ## Positions of another size are read off between those that were learnt, as in every ViT.
    state, body = teacher.network.body.state_dict(), network.body
    if hasattr(body, "blocks"):
        state = networks.resampled(state, body)
    else:
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(args.image_size, body.patch_size, state)
    body.load_state_dict(state)
    return network


def search(args, data, start):
    """Bits ω* and learning rate of the best trial, all trials for the result file, and the seconds
    of those that were there before.

    The study is a file, which all processes that run this same command share: each takes trials
    that nobody works on. A process that was killed leaves its trial to the next one.
    """
    count, searching = len(parts(start)), args.mask == "search"
    fixed = {"all": "1" * count, "none": "0" * count}.get(args.mask, args.mask)
    if not (args.trials if searching else re.fullmatch(f"full|[01]{{{count}}}", fixed)):
        raise InputError(f"--mask: full, all, none, {count} bits, or search with --trials above 0")
    if args.trials == 0:
        return fixed, args.lr, [], 0.0
    _, validation = measure(start, data, "val")  # whether it is defined does not depend on weights
    if validation[args.objective] is None:
        reasons = "; ".join(validation["undefined"])
        raise InputError(f"{args.objective} is undefined on validation ({reasons})")
    names = [f"bit {n:02}" for n in range(count)] if searching else []
    space = dict.fromkeys(names, optuna.distributions.IntDistribution(0, 1))
    space["lr"] = optuna.distributions.FloatDistribution(*RATES, log=True)

    def mask(params):
        return "".join(str(params[name]) for name in names) or fixed

    better = "minimize" if args.objective in ("loss_worst_group", "auroc_gap") else "maximize"
    name = f"search-{digest([chosen(args), data.hash(), start.state_dict()])}"
    folder = data_folder(args) / "searches" / name
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna 4: the "liar"
    warnings.filterwarnings("ignore", "The reported value is ignored")  # of a trial made again
    State, total = optuna.trial.TrialState, min(args.trials, 3) if args.smoke else args.trials
    begun = datetime.now()
    with locked(folder / "study.db"):
        storage = args.study_dir or f"sqlite:///{folder / 'study.db'}"
        try:
            if "://" not in storage:
                Path(storage).mkdir(parents=True, exist_ok=True)
                journal = optuna.storages.journal.JournalFileBackend(f"{storage}/{name}.journal")
                storage = optuna.storages.JournalStorage(journal)
            known = optuna.get_all_study_names(storage)
        except Exception as error:  # no server, no driver, no folder: of many kinds
            reason = networks.first_line(error)
            raise InputError(f"--study-dir {args.study_dir} cannot be used: {reason}") from None
        first_here = FileLock(folder / "search.lock")
        try:
            first_here.acquire(timeout=0)
            if args.restart and name in known:
                optuna.delete_study(study_name=name, storage=storage)
        except Timeout:  # another process is at work on this study, which must stay
            pass
        ## Successive halving: who is not in the best quarter of the trials so far after one epoch,
        ## or again after four, ends there.
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
        more = {"load_if_exists": True, "direction": better, "pruner": pruner}
        study = optuna.create_study(storage=storage, study_name=name, **more)

    def attempt(draw):
        """Trial number `draw`, unless it is finished: L_fair after args.epochs of training.

        The caller holds its lock, so that one which seems to run was killed. It is made again under
        its own name: else its values would count twice where others are compared with them.
        """
        with locked(folder / "study.db"):
            trial, states = None, [State.RUNNING, State.COMPLETE, State.PRUNED]
            for old in study.get_trials(states=states):
                if "draw" not in old.user_attrs:
                    study.tell(old.number, state=State.FAIL)
                elif old.user_attrs["draw"] == draw:
                    if old.state != State.RUNNING:
                        return
                    trial = optuna.trial.Trial(study, old._trial_id)
            ## A seed for each draw: a killed search tries the same. "Liar": two processes do not.
            seed = (args.seed * 100_003 + draw) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if draw < 10:  # up to here TPE, too, only draws by chance
                ## These rates are one stream in steps of the golden section, the same for all
                ## masks. A few of them lie almost evenly already, where chance leaves gaps.
                place = (np.random.default_rng(args.seed).random() + draw * 0.618034) % 1
                rate = {"lr": RATES[0] * (RATES[1] / RATES[0]) ** place}
                study.sampler = optuna.samplers.PartialFixedSampler(rate, study.sampler)
            if not trial:
                trial = study.ask(space)
                trial.set_user_attr("draw", draw)
        start_of_trial = time.time()
        bits, lr = mask(trial.params), trial.params["lr"]
        method = Tuning(args, data, copy.deepcopy(start), bits, lr, trial)
        try:
            print(f"trial {draw + 1} of {total}: mask {bits}, lr {lr:.1e}")
            more = (total - draw) * args.epochs + 2  # then the other trials, and the chosen one
            fit(args, data, method, f"trial {draw + 1}", rules={}, later=more)
            end = {"values": method.value}
        except (optuna.TrialPruned, Diverged) as why:  # one bad learning rate does not end it all
            print(f"trial {draw + 1} ends here: {str(why) or 'others were better at its age'}")
            end = {"state": State.PRUNED}
        trial.set_user_attr("seconds", time.time() - start_of_trial)
        study.tell(trial, **end)

    ## First the trials that nobody works on (0: do not wait), then those of other processes (-1:
    ## wait for ever), which are finished, or ours if their process was killed.
    for patience in (0, -1):
        for draw in range(total):
            try:
                with FileLock(folder / f"trial-{draw}.lock", timeout=patience):
                    attempt(draw)
            except Timeout:
                pass
    first_here.release()
    trials = []
    for trial in study.get_trials(states=[State.COMPLETE, State.PRUNED]):
        values = [value for _, value in sorted(trial.intermediate_values.items())]
        trials.append({"params": trial.params, "state": trial.state.name.lower(), "values": values})
    if all(trial["state"] == "pruned" for trial in trials):
        raise InputError("no trial came to its end, see above why: --restart begins a new search")
    # Eq. (3): the parameters of the best trial
    best = study.best_trial.params
    old = [t for t in study.trials if t.datetime_complete and t.datetime_complete < begun]
    return mask(best), best["lr"], trials, sum(t.user_attrs.get("seconds", 0.0) for t in old)


class Method(Tuning):
    """One more run with the bits and the learning rate that the search chose."""

    needs_teacher = False
    refuses = {"--compile": "copies of a compiled network are not compiled"}
    refuses["--task segment"] = "it tunes the blocks of a transformer that classifies pictures"

    def __init__(self, args, data, student, teacher=None):
        start = theta_0(args, data)
        bits, lr, trials, earlier = search(args, data, start)
        student.load_state_dict(start.state_dict())
        super().__init__(args, data, student, bits, lr)
        self.seconds = earlier
        trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        print(f"mask {bits}: {trained} parameters of {args.student} are trained, lr {lr:.2e}")
        self.extra["search"] = {"bits": bits, "lr": lr, "trained": trained, "trials": trials}
        self.extra["search"]["theta_0"] = digest(start.body.state_dict())


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
