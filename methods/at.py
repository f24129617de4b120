"""AT, attention transfer. Zagoruyko and Komodakis: "Paying More Attention to Attention: Improving
the Performance of Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv
1612.03928.

IDEA. Squared maps, averaged over channels, show as one picture where a network is active. At every
stage the student's picture is to equal the teacher's: it learns where to look. A teacher that looks
at the marks of a group, and not at the object, passes that on.

CHANGES RELATIVE TO ckd.py.
    - section 2: β and the names of the layers; α is 0, as AT is compared without L_KD.
    - section 4: Eq. (4) to (6); keep_maps reaches layers inside any network.

EQUATIONS. As in ckd.py; A, A': maps of student (B, c, H, H) and teacher (B, c', H', H').
    Eq. (1)  p' = softmax(z'/T),  p = softmax(z/T)                        kd_loss
    Eq. (2)  L_KD = T² · mean over samples of Σ_c p'_c log(p'_c / p_c)    kd_loss
    Eq. (3)  L_0 = (1 - α) · CE(z, y) + α · L_KD                          Method.step
    Eq. (4)  q = Q/|Q|,  Q = mean over channels of A², for each sample    attention_map
    Eq. (5)  L_AT = mean over samples and places of (q - q')²             attention_loss
    Eq. (6)  L = L_0 + β · Σ_stages L_AT                                  Method.step

DIFFERENCES FROM THE PAPER.
    1. It adds up lengths |q - q'|. The authors' code has Eq. (5), and others compare with that: the
       mean over places makes maps of 8 x 8 count 16 times as much as maps of 32 x 32.
DIFFERENCES FROM PUBLIC CODE (the authors' attention-transfer; RepDistiller).
    1. Their networks return the ends of their stages. keep_maps sees them in any network. If one
       has more, its first are left out: our choice. Pooling, β and α are RepDistiller's.
    2. The learning rate, and the batches, are those of ckd.py. L_AT is always float32.

RUN.  python methods/at.py                       the embedded toy data, two CPU cores: 2 minutes
      python methods/at.py --layers-student 1,2 --layers-teacher 1,2    the last two stages
EXPECT. On the toy a little less accurate than with ckd.py --alpha 0 (five seeds); between unlike
networks it is so in RepDistiller's tables, too.
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
    parser.set_defaults(alpha=0.0)  # compared without L_KD
    add("--attention-weight", type=float, default=1e3, help="β: of L_AT (RepDistiller: 1000)")
    add("--layers-student", help="such as layer3,layer4 (default: the ends of all stages)")
    add("--layers-teacher", help="as many, in the same order (default: the ends of all stages)")
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


def attention_map(maps):
    """Eq. (4): where a network is active. (B, c, H, H) to q (B, H·H), whose rows have length 1."""
    # Eq. (4)
    ## Squares: negative activity is activity. Each sample has its own length: strength is not to
    ## count, only place. Maps of zeros stay zeros.
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)


def attention_loss(map_s, map_t):
    """Eq. (5): how differently student and teacher look at the same pictures.

    map_s: (B, c, H, H), map_t: (B, c', H', H'); the larger one is averaged to the other's size.
    Returns a scalar from 0, where one is a multiple of the other, to 2 / (places of the smaller).
    """
    side = min(map_s.shape[2], map_t.shape[2])
    # averaged before they are squared, as published: neighbours of opposite sign cancel out
    map_s, map_t = (F.adaptive_avg_pool2d(maps, side) for maps in (map_s, map_t))
    # Eq. (5)
    return F.mse_loss(attention_map(map_s), attention_map(map_t))


def keep_maps(network, args, named):
    """{name: (B, c, H, H)}: the maps to compare, which every pass through `network` puts here anew.

    named: their layers, with commas between. By default the ends of stages, largest map first: for
    each H, of the layers with two convolutions or a pooling the outermost, of several the last.
    """
    # the next layer may change a map in place, most often a ReLU: then the changed map is here
    keep = lambda maps, name: lambda layer, inputs, output: maps.update({name: output})
    probe, outputs, ends = copy.deepcopy(network).eval().requires_grad_(False), {}, {}
    for name, layer in probe.body.named_modules():
        layer.register_forward_hook(keep(outputs, name))
    probe(torch.zeros(1, 3, args.image_size, args.image_size, device=args.device))
    for name in sorted(outputs, key=lambda name: -name.count(".")):  # inner layers first
        shape = getattr(outputs[name], "shape", ())
        kinds = [type(layer) for layer in probe.body.get_submodule(name).modules()]
        if len(shape) != 4 or not 1 < shape[2] == shape[3]:  # maps are square, as pictures are
            del outputs[name]
        elif kinds.count(nn.Conv2d) > 1 or nn.MaxPool2d in kinds:
            ends[shape[2]] = name
    names = named.split(",") if named else [ends[side] for side in sorted(ends)[::-1]]
    for name in set(names or ["all"]) - set(outputs):
        near = N.near(name, outputs) or ", ".join(ends.values())
        raise D.InputError(f"{network.name} has no maps at {name}: choose {near or 'a convnet'}")
    maps = {name: outputs[name] for name in names}  # of an empty picture until the first pass
    for name in names:
        network.body.get_submodule(name).register_forward_hook(keep(maps, name))
    return maps


class Method(CrossEntropy):
    """Distillation of attention by Eq. (6)."""

    needs_teacher = True

    def __init__(self, args, data, student, teacher):
        super().__init__(args, data, student, teacher)
        self.maps_s = keep_maps(student, args, args.layers_student)
        self.maps_t = keep_maps(teacher.network, args, args.layers_teacher)
        if (args.layers_student or args.layers_teacher) and len(self.maps_s) != len(self.maps_t):
            raise D.InputError(f"{[*self.maps_s]} and {[*self.maps_t]} make no pairs: name as many")
        ## Paired from the end: the last stages do the same work, however many there are before.
        self.pairs = [*zip(reversed(self.maps_s), reversed(self.maps_t))]
        print(f"attention, layers of student and teacher: {self.pairs}")

    def step(self, batch):
        """One batch: forward, losses, backward, update. Returns the losses by name."""
        _, logits_s = self.student(batch.images)  # (B, C)
        _, logits_t = self.teacher(batch)  # (B, C), without gradient
        pairs = [(self.maps_s[s].float(), self.maps_t[t].float()) for s, t in self.pairs]  # A, A'
        loss_ce = F.cross_entropy(logits_s, batch.labels)  # labels are matched without temperature
        loss_kd = kd_loss(logits_s, logits_t, self.args.temperature)
        # Eq. (3)
        loss = (1 - self.args.alpha) * loss_ce + self.args.alpha * loss_kd
        loss_at = sum(attention_loss(map_s, map_t) for map_s, map_t in pairs)
        # Eq. (6)
        loss = loss + self.args.attention_weight * loss_at
        self.update(loss)
        return {"loss": loss, "loss_ce": loss_ce, "loss_kd": loss_kd, "loss_at": loss_at}


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
