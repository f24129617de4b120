"""FairTune. Dutt, Bohdal, Tsaftaris and Hospedales: "FairTune: Optimizing Parameter Efficient Fine
Tuning for Fairness in Medical Image Analysis", ICLR 2024.

IDEA. A large network fits its training pictures nearly perfectly, those of every group; unfairness
appears on new pictures. So a search chooses WHICH parts of a pre-trained vision transformer are
tuned and which stay as they are, by how fair the result is on the validation split.

CHANGES RELATIVE TO ckd.py.
    - no teacher, no distillation: the student is a pre-trained transformer.
    - own settings, and section 4: what a bit frees, pre-training, a search, one run with its best.

EQUATIONS. θ₀: pre-trained weights; ω: a bit for each part; δ: what tuning adds.
    Eq. (1)  θ(ω) = θ₀ + ω ⊙ δ,  δ by CE on the training split            free
    Eq. (2)  L_fair = the largest mean CE of a group, on validation       Tuning.end_epoch
    Eq. (3)  ω* = argmin over ω (and the learning rate) of L_fair(θ(ω))   search

DIFFERENCES FROM THE PAPER. We could read its abstract, reviews and the code, not the full text.
    1. Eq. (2) is a review's "largest loss of a subgroup"; --objective has others from the code.
    2. 20 trials; the paper had 50, a follow-up says. All sizes here are for small computers.
    3. --mask all and none search the learning rate, too: else the comparison would be unfair.
DIFFERENCES FROM PUBLIC CODE (Raman1121/FairTune).
    1. The objective is the whole split's; there a mean over shuffled batches (in an example AUC
       0.862, not 0.865), and the largest loss the last batch's.
    2. The pruner hears of every epoch. There of the last one only: it saves nothing.
    3. The last run takes the learning rate found. There it is written down and not used.
    4. AdamW: by SGD, rates of 1e-5 to 1e-3 change little in a few epochs. One layout of bits.

RUN.  python methods/fairtune.py                the toy; in two terminals, both share the trials
      python methods/fairtune.py --mask all     full tuning; --mask none: a linear probe
      python methods/fairtune.py --mask 110100000001 --lr 3e-4 --trials 0     a mask found before
      ... --dataset ham10000 --data-dir DIR --student vit_b_16 --pretrained --image-size 224
      ... --dataset ham10000 --data-dir DIR --source csv --source-dir DIR2      own pre-training
EXPECT. On the toy 20 trials cost half of 20 full ones or less; several masks end near the best.
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
    parser.set_defaults(student="vit_tiny", lr=3e-4)  # this --lr counts where none is searched
    add("--mask", default="search", help="search, all, none, or a 0 or 1 for each part")
    goals = ["loss_worst_group", "auroc_worst_group", "auroc_gap", "auroc"]
    add("--objective", default=goals[0], choices=goals, help="of the search, on validation")
    add("--trials", type=int, default=20, help="of the search; 0: take --mask and --lr as they are")
    add("--source", choices=D.DATASETS, help="where no weights are --pretrained: learn these first")
    add("--source-dir", help="folder of its files (default: data/NAME)")
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

import optuna  # noqa: E402

RATES = 1e-5, 1e-3  # learning rates of the search, log-uniform (authors' code)


def parts(network):
    """What bits decide on, lists of modules: norms, attention, MLP of block 1, of block 2, ...

    ## ViT-B/16: 36. Norms are 3,072 of a block's 7 million weights, but scale all it computes.
    """
    if not hasattr(network.body, "encoder"):
        raise D.InputError(f"{network.name} has no transformer blocks: use --student vit_tiny")
    three = lambda block: ([block.ln_1, block.ln_2], [block.self_attention], [block.mlp])
    return [part for block in network.body.encoder.layers for part in three(block)]


def free(network, bits):
    """Let the parts with bit 1 be trained, and the head always; returns their parameters."""
    ## Class token, positions, embedding of the patches and last norm have no bit: always frozen.
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    # Eq. (1): ω ⊙ δ; without gradient and outside the optimiser, δ is 0 and θ remains θ₀
    for bit, modules in zip(bits, parts(network), strict=True):
        nn.ModuleList(modules).requires_grad_(bit == "1")
    return [p for p in network.parameters() if p.requires_grad]


class Tuning(CrossEntropy):
    """Training of what is free, by AdamW: in a trial of the search and in the run itself."""

    def __init__(self, args, data, student, bits, lr, trial=None):
        super().__init__(args, data, student)
        groups = [{"params": free(student, bits), "initial_lr": lr}]
        self.optimizer = torch.optim.AdamW(groups, lr, weight_decay=args.weight_decay)
        self.saved["optimizer"], self.trial = self.optimizer, trial

    def end_epoch(self, epoch, validation):
        # Eq. (2), or another --objective
        self.value = R.defined(validation, self.args.objective)
        if self.trial:
            self.trial.report(self.value, epoch + 1)
            ## A trial that is behind what others had reached at its age ends here and saves time.
            if epoch + 1 < self.args.epochs and self.trial.should_prune():
                raise optuna.TrialPruned


def theta_0(args, data):
    """A network with weights θ₀ and a new head. Pre-trains it, the first time, on --source.

    ## Like downloaded weights, all seeds share it. readers.read_toy_source says what it has seen.
    """
    torch.manual_seed(args.seed)
    network = Network(args, args.student, len(data.classes)).to(args.device)
    source = args.source or ("toy-source" if args.dataset == "toy" else None)
    if parts(network) and args.pretrained:
        return network
    if not source:
        raise D.InputError(f"{args.student} must be pre-trained: name a data set by --source")
    ## To pre-train is to make a teacher for the source's pictures, at a teacher's learning rate.
    plain = copy.copy(args)
    plain.dataset, plain.data_dir, plain.teacher = source, args.source_dir, args.student
    vars(plain).update(target=None, sensitive=None, fold=None, skew=None, seed=0, lr=0.05)
    teacher, _ = get_teacher(plain, D.load_for(plain))
    network.body.load_state_dict(teacher.network.body.state_dict())
    return network


def search(args, data, start, anew=False):
    """Bits ω* and learning rate of the best trial, and all trials for the result file."""
    count, anything = len(parts(start)), args.mask == "search"
    fixed = {"all": "1" * count, "none": "0" * count}.get(args.mask, args.mask)
    if not anything and (len(fixed) != count or set(fixed) - {"0", "1"}) or args.trials < anything:
        raise D.InputError(f"--mask: all, none, {count} bits, or search with 1 or more --trials")
    if args.trials == 0:
        return fixed, args.lr, []
    names = [f"bit {n:02}" for n in range(count * anything)]
    mask = lambda params: "".join(str(params[name]) for name in names) or fixed
    space = dict.fromkeys(names, optuna.distributions.IntDistribution(0, 1))
    space["lr"] = optuna.distributions.FloatDistribution(*RATES, log=True)

    def attempt(trial, checkpoint):
        """L_fair after args.epochs of training with the bits and the learning rate of a trial."""
        bits, lr = mask(trial.params), trial.params["lr"]
        method = Tuning(args, data, copy.deepcopy(start), bits, lr, trial)
        fit(args, data, method, checkpoint, f"trial {trial.number} {bits} {lr:.1e}", rules={})
        return method.value

    ## Successive halving: who is not in the best quarter of the trials so far after one epoch, or
    ## again after four, ends there.
    pruner = optuna.pruners.SuccessiveHalvingPruner(1, 4)
    better = "minimize" if args.objective in ("loss_worst_group", "auroc_gap") else "maximize"
    # Eq. (3): the parameters of the best trial
    best, trials = R.shared_search(args, attempt, space, anew, pruner=pruner, direction=better)
    return mask(best), best["lr"], trials


class Method(Tuning):
    """One more run with the bits and the learning rate that the search chose."""

    needs_teacher = False

    @staticmethod
    def prepare(args, data):
        if args.compile:
            raise D.InputError("--compile is not for fairtune.py, which trains copies")
        search(args, data, theta_0(args, data), args.restart)

    def __init__(self, args, data, student, teacher=None):
        start = theta_0(args, data)
        bits, lr, trials = search(args, data, start)
        student.load_state_dict(start.state_dict())
        super().__init__(args, data, student, bits, lr)
        trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        print(f"mask {bits}: {trained} parameters of {args.student} are trained, lr {lr:.2e}")
        self.extra["search"] = {"bits": bits, "lr": lr, "trained": trained, "trials": trials}
        self.extra["search"]["theta_0"] = R.hash_of(start.body.state_dict().values())


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
