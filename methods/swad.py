"""SWAD, dense averaging of weights. Cha, Chun, Lee, Cho, Park, Lee and Park: "SWAD: Domain
Generalization by Seeking Flat Minima", NeurIPS 2021, arXiv 2102.08604; here as the baseline that it
is in MEDFAIR (Zong, Yang and Hospedales, ICLR 2023) and in FairDi's comparison.

IDEA. Minima that are flat generalise better, to groups that were rare in training as well. The mean
of many weights along the path of training lies further inside a flat valley than its end does. SWAD
averages the weights of every step between two epochs that are found on the validation split:
where it has stopped improving, and where it begins to get worse. There is no teacher.

CHANGES RELATIVE TO ckd.py.
    - section 2: the length of both searches and the threshold; α and T are unused.
    - section 4: running_mean, valley; Method averages while it trains plainly, and its finish puts
      the average into the student.

EQUATIONS. w: weights after a step; v_e: what validation says after epoch e, the lower the better.
    Eq. (1)  W_e = mean of w over the steps of epoch e, one segment        running_mean
    Eq. (2)  s = first epoch with v_s = min(v_s, ..., v_{s+N-1})           valley
    Eq. (3)  θ = (1 + r) · mean(v_s, ..., v_{s+N-1})                       valley
    Eq. (4)  t = first epoch ≥ s with all of v_t, ..., v_{t+P-1} > θ       valley
    Eq. (5)  student = mean(W_s, ..., W_{t-1})                             Method.finish

DIFFERENCES FROM THE PAPER.
    1. v is the loss on validation, as there. MEDFAIR takes 1 - AUC of the worst group: it rests on
       a few dozen positive pictures of one group, and where it is undefined nothing can be found.
    2. The rate stays at its highest after the first epoch, as there, instead of falling along the
       cosine of `fit`: a path that has come to rest has nothing to average.
DIFFERENCES FROM PUBLIC CODE (SWAD, the authors' own; MEDFAIR's copy has the same rule).
    1. Each segment counts once. There the segment that starts the average is overwritten by the
       next one, and a few of the first are added twice: 4 5 3 4 5 6 7 8 where we take 3 to 8.
    2. Their code decides while it trains, ours at the end, by the rule above: the same segments.
    3. A segment is an epoch, as in MEDFAIR; there it is 50 to 500 steps.
    4. N = 3, P = 6 and r = 0.3 are theirs; MEDFAIR has 3, 9 in effect, and 0.05.

RUN.  python methods/swad.py                     the embedded toy data, two CPU cores: 1 minute
      python methods/swad.py --epochs 30         a longer path
EXPECT. Only "last" is the average: the rules best_overall and best_worst_group look at single
epochs of the path, at its high rate. The average is better than the end of the path, but not always
than ERM, whose rate falls to 0: an early epoch with a lucky v can let the average begin too soon.
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
    add("--converge", type=int, default=3, help="N: epochs that show that v has settled (SWAD: 3)")
    add("--tolerance", type=int, default=6, help="P: epochs above θ that end the valley (SWAD: 6)")
    add("--threshold", type=float, default=0.3, help="r: θ is 1 + r times the mean v (SWAD: 0.3)")
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


def running_mean(mean, new, count):
    """Eq. (1): the mean of `count` tensors, from that of the first count - 1 and the last one."""
    # Eq. (1)
    return mean + (new - mean) / count


def valley(values, converge, tolerance, ratio):
    """The segments to average, as range(s, t); values: v of each epoch so far, a list.

    If v never settles, that is the last segment alone.
    """
    for start in range(len(values) - converge + 1):
        settled = values[start : start + converge]
        # Eq. (2)
        if settled[0] == min(settled):
            # Eq. (3)
            highest = (1 + ratio) * sum(settled) / converge
            break
    else:
        return range(len(values) - 1, len(values))
    # Eq. (4)
    ## One bad epoch does not end the valley, `tolerance` in a row do, and none of them is averaged.
    ## After the last epoch fewer will do: there is no later one to say that it was a passing dip.
    above = (min(values[t : t + tolerance]) > highest for t in range(start, len(values)))
    return range(start, next((t for t, ends in enumerate(above, start) if ends), len(values)))


class Averaging:
    """What is averaged, in a form that a killed run finds again."""

    def __init__(self):
        self.mean, self.count = [], 0  # of the weights since the epoch began, tensor by tensor
        self.values, self.segments = [], {}  # v of each epoch; {epoch: its mean}

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Method(CrossEntropy):
    """Plain training without a teacher; the student ends as an average of its own past."""

    needs_teacher = False

    def __init__(self, args, data, student, teacher=None):
        super().__init__(args, data, student, teacher)
        if min(args.converge, args.tolerance) < 1 or not args.threshold >= 0:
            raise D.InputError("--converge and --tolerance are at least 1, --threshold at least 0")
        self.averaging = self.saved["averaging"] = Averaging()

    def valley(self):
        """`valley` of the epochs so far, with the settings of this run."""
        args = self.args
        return valley(self.averaging.values, args.converge, args.tolerance, args.threshold)

    def step(self, batch):
        """One batch: forward, loss, update, average. Returns the losses by name."""
        if batch.epoch > 0:  # after the warm-up; `fit` has just set the rate of its cosine
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"]
        _, logits_s = self.student(batch.images)  # (B, C)
        loss = F.cross_entropy(logits_s, batch.labels)
        self.update(loss)
        now, weights = self.averaging, [p.detach() for p in self.student.parameters()]
        now.count += 1
        ## Every step counts, not the last of an epoch alone: that is what "dense" means. Weights
        ## that one gradient step has knocked aside are knocked back by the next one's.
        now.mean = [running_mean(m, w, now.count) for m, w in zip(now.mean or weights, weights)]
        return {"loss": loss}

    def end_epoch(self, epoch, validation):
        """Close the segment; forget the ones that Eq. (5) can no longer need."""
        now = self.averaging
        now.values.append(validation["loss"])
        now.segments[epoch] = now.mean
        now.mean, now.count = [], 0
        first = min(self.valley().start, epoch + 2 - self.args.converge)  # a start still to come
        now.segments = {e: weights for e, weights in now.segments.items() if e >= first}

    def finish(self):
        """The average becomes the student."""
        chosen = self.valley()
        print(f"averaged epochs {chosen.start + 1} to {chosen.stop} of {self.args.epochs}")
        segments = [self.averaging.segments[epoch] for epoch in chosen]
        for parameter, *each in zip(self.student.parameters(), *segments):
            # Eq. (5)
            parameter.data.copy_(torch.stack(each).mean(dim=0))
        ## Batch norm keeps means and variances of what its layer once received, from weights that
        ## are no longer there: averaged, such a network can be as bad as chance. So the training
        ## pictures pass once more, without gradient, as in an epoch that comes after the last.
        args = self.args
        views = (args.batch_size, args.seed, args.epochs, True, args.balance)
        torch.optim.swa_utils.update_bn(D.batches(self.data["train"], *views), self.student)


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
