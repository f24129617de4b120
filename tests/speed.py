"""How fast is the training loop, and what does it lose? A program, not a timed test.

    OMP_NUM_THREADS=1 python tests/speed.py                      the toy with its usual networks
    OMP_NUM_THREADS=1 python tests/speed.py --dataset ham10000 --data-dir DIR --student convnet8 ...
    OMP_NUM_THREADS=1 python tests/speed.py --scaling [PART ...] cost against size of everything
    OMP_NUM_THREADS=1 python tests/speed.py --profile            where a step of four methods goes
    python tests/speed.py --table                                results/speed/*.json as speed.md
    further: --rounds N, --steps N, --json FILE; all other flags are those of methods/ckd.py

Loops, a round of each in turn, so that a busy machine is busy for all of them:

    A live         ckd.fit as it is, without validation and checkpoint; the teacher runs every step
    A remembered   the same, with the answers that an earlier run has kept
    B usual        as most code has it: a PIL transform for each picture in a DataLoader, NCHW, the
                   teacher in every step, losses to Python by .item(). It is spared decoding files
    C bare         one step of plain training on one batch that is there already, again and again
    C bare KD      the same step with L_KD and the teacher's logits given
    D bare + T     C and the bare forward pass of the teacher
    E data         the batches alone

Before that, ten float32 steps of A and B from equal pictures must agree to 1e-5 (GPU: 1e-3), and
on a CPU A remembered must be A live bit by bit. Rates are pictures per second of CPU time (all
threads; on a GPU: per second).
"""

import argparse
import contextlib
import copy
import functools
import importlib
import importlib.metadata
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "methods")]
import ckd  # noqa: E402

import metrics  # noqa: E402
from data import batches, defaults, save  # noqa: E402
from datasets import decode_all  # noqa: E402

TARGETS = {  # quotient of rates: (least, on a GPU)
    "A live / D bare + T": (0.95, 0.85),
    "A remembered / C bare": (0.95, 0.85),
    "A remembered / C bare KD": (None, None),
    "A remembered / A live": (None, None),
    "A live / B usual": (None, None),
    "A remembered / B usual": (2.5, None),
    "E data / C bare": (5, None),
}


def pictures_of(args):
    """`ckd.load_pictures`; of the toy in any size, its pixels repeated."""
    side, small = args.image_size, copy.copy(args)
    small.image_size = defaults("toy")["image_size"]
    if args.dataset != "toy" or side == small.image_size:
        return ckd.load_pictures(args)
    data = ckd.load_pictures(small)
    pixels = F.interpolate(data["train"].store.permute(0, 3, 1, 2), side)
    enlarged = {"store": pixels.permute(0, 2, 3, 1)}
    if data["train"].masks is not None:
        enlarged["masks"] = F.interpolate(data["train"].masks[:, None], side)[:, 0]
    splits = {name: replace(split, **enlarged) for name, split in data.splits.items()}
    return replace(data, size=side, splits=splits)


class Pictures(torch.utils.data.Dataset):
    """One PIL picture at a time through torchvision's transforms, as tutorials have it."""

    def __init__(self, split):
        size = split.store.shape[1]
        self.pixels, self.labels = split.store[split.rows].cpu().numpy(), split.labels.cpu()
        steps = [transforms.RandomCrop(size, size // 8), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor()]
        mean, std = ((t.flatten().cpu() / 255).tolist() for t in (split.mean, split.std))
        self.transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, n):
        return self.transform(Image.fromarray(self.pixels[n])), self.labels[n]


class Usual:
    """Distillation written the usual way."""

    def __init__(self, args, student, teacher):
        self.args, self.student, self.teacher = args, student, teacher
        for network in (student, teacher):
            network.to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.SGD(
            student.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay
        )
        self.kl, self.sums = torch.nn.KLDivLoss(reduction="batchmean"), {"loss": 0.0}

    def step(self, images, labels):
        args, T = self.args, self.args.temperature
        logits_s = self.student(images)[1]
        with torch.no_grad():
            logits_t = self.teacher(images)[1]
        kd = self.kl(F.log_softmax(logits_s / T, 1), F.softmax(logits_t / T, 1)) * T**2
        loss = (1 - args.alpha) * F.cross_entropy(logits_s, labels) + args.alpha * kd
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.sums["loss"] += loss.item()
        return loss

    def epoch(self, loader):
        for images, labels in loader:
            self.step(images.to(self.args.device), labels.to(self.args.device))


def machine(device):
    """Where and with what the times were taken."""
    gpu = torch.cuda.get_device_name(device) if "cuda" in device else None
    return {
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }


class Bench:
    """The loops, on the first `steps` batches' worth of training pictures."""

    def __init__(self, args, steps, folder):
        self.args, self.folder, args.epochs = args, Path(folder), 1
        self.data = pictures_of(args)
        train = self.data["train"]
        self.sizes = {name: len(split) for name, split in self.data.splits.items()}
        self.steps = min(steps, len(train) // args.batch_size)
        self.images = self.steps * args.batch_size
        spread = torch.arange(self.images) * len(train) // self.images
        self.data.splits["train"] = train.subset(spread)
        torch.manual_seed(args.seed)
        self.teacher = self.network(args.teacher).eval().requires_grad_(False)
        self.student = self.network(args.student)
        self.batch = next(self.batches())
        self.live = ckd.Teacher(self.teacher)
        self.kept = ckd.Teacher(self.teacher, self.folder / "answers")

    def network(self, name):
        return ckd.Network(self.args, name, len(self.data.classes)).to(self.args.device)

    def batches(self):
        return batches(self.data["train"], self.args.batch_size, self.args.seed, 0, "mirrored")

    def method(self, teacher):
        return ckd.Method(self.args, self.data, copy.deepcopy(self.student).train(), teacher)

    def plain(self, student):
        return ckd.PlainTraining(self.args, self.data, student)

    def fit(self, method):
        """An epoch by the scripts' own `fit`, without the validation after its last batch."""
        measure = ckd.measure
        try:
            nothing = dict.fromkeys(ckd.LOGGED) | {"loss": 0.0}
            ckd.measure = lambda model, data, part, shares: (None, nothing)
            with contextlib.redirect_stdout(io.StringIO()):
                ckd.fit(self.args, self.data, method, "speed", rules={})
        finally:
            ckd.measure = measure
        return method.student

    def usual(self, bf16=False):
        args = copy.copy(self.args)
        student, teacher = copy.deepcopy(self.student).train(), copy.deepcopy(self.teacher)
        usual = Usual(args, student, teacher)
        for network in (student, teacher) if bf16 else ():
            network.bf16 = True
            network.to(memory_format=torch.channels_last)
        return usual

    def loops(self):
        """{name: function that trains on, or prepares, self.images pictures}."""
        args, pictures, more = self.args, Pictures(self.data["train"]), {}
        if args.device != "cpu":  # its workers are not started anew in each round
            workers = len(os.sched_getaffinity(0))
            more = {"num_workers": workers, "persistent_workers": True, "pin_memory": True}
        more |= {"shuffle": True, "drop_last": True}
        usually = torch.utils.data.DataLoader(pictures, args.batch_size, **more)
        live, remembered = self.method(self.live), self.method(self.kept)
        plain, usual = self.plain(copy.deepcopy(self.student).train()), self.usual()
        distilled = self.method(self.live)
        given = self.batch._replace(answers=self.live(self.batch))

        def again(step, *batch):
            for _ in range(self.steps):
                step(*batch)

        def with_teacher(batch):
            self.live(batch)
            plain.step(batch)

        def data_alone():
            for _ in self.batches():
                pass

        loops = {
            "A live": lambda: self.fit(live),
            "A remembered": lambda: self.fit(remembered),
            "B usual": lambda: usual.epoch(usually),
            "C bare": lambda: again(plain.step, self.batch),
            "C bare KD": lambda: again(distilled.step, given),
            "D bare + T": lambda: again(with_teacher, self.batch),
            "E data": data_alone,
        }
        if args.device != "cpu":
            fast, compiled = self.usual(bf16=True), copy.deepcopy(self.student).train()
            compiled.compile()
            compiled = self.plain(compiled)
            loops["B usual, bf16, channels last"] = lambda: fast.epoch(usually)
            loops["C bare, compiled"] = lambda: again(compiled.step, self.batch)
        return loops

    def check(self):
        """How A and B differ in three steps, and whether a remembered epoch is a live one."""
        ours, usual = self.method(self.live), self.usual()
        for group in (*ours.optimizer.param_groups, *usual.optimizer.param_groups):
            group["lr"] = self.args.lr / 10  # as in warm-up
        apart = []
        for batch, n in zip(self.batches(), range(3)):  # later ones enlarge what was rounding
            torch.manual_seed(n)  # both drop the same parts, where a network does
            a = ours.step(batch)["loss"].item()
            torch.manual_seed(n)
            b = usual.step(batch.images.contiguous(), batch.labels).item()
            apart.append(abs(a - b) / abs(a))
        most = 1e-5 if self.args.device == "cpu" else 1e-3
        worst = float(np.max(apart))  # NaN, if there is one
        if self.args.precision == "float32" and not worst <= most:
            raise SystemExit(f"A and B differ by {worst:.1e} in three steps")
        teachers = self.live, self.kept, self.kept  # the third reads the file of the second
        states = [self.fit(self.method(each)).state_dict() for each in teachers]
        equal = all(torch.equal(states[0][k], s[k]) for s in states[1:] for k in states[0])
        if self.args.device == "cpu" and not equal:
            raise SystemExit("a remembered epoch is not the live one")
        return worst, equal


def timed(call, device="cpu"):
    """What `call()` takes: (CPU seconds of all threads, seconds)."""
    if device != "cpu":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak(call, device):
    """Most megabytes that the process, or the GPU, has held during call(); None where unknown."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls
        call()
        return memory("VmHWM")
    except OSError:
        return None


def memory(name):
    """A line of /proc/self/status in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def decoding(args, sizes, folder):
    """From files to pixels, into a fresh folder: how many pictures, how long, how large."""
    reader = importlib.import_module(f"datasets.{args.dataset.replace('-', '_')}")
    skew = {"skew": args.skew} if "skew" in defaults(args.dataset) else {}
    root = Path(args.data_dir or f"data/{args.dataset}")
    table = reader.read(root, args.target, args.sensitive, args.fold, False, **skew)
    if table.images is not None:  # drawn, not read
        return {"splits": sizes, "pictures": len(table.ids), "megabytes": table.images.nbytes / 1e6}
    start = time.process_time(), time.perf_counter()
    images, *_ = decode_all(table, args.image_size, Path(folder), args.skip_bad)
    taken = time.process_time() - start[0], time.perf_counter() - start[1]
    names = dict(zip(("decoding_cpu_seconds", "decoding_seconds"), taken))
    return {"splits": sizes, "pictures": len(images), "megabytes": images.nbytes / 1e6, **names}


def compare(args, own):
    """All loops, interleaved; returns what --json writes."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, own.steps, folder)
        (worst, equal), loops = bench.check(), bench.loops()
        words = "=" if equal else "is not"
        print(f"three steps of A and B agree to {worst:.1e}; remembered {words} live, bit by bit")
        times = {name: [] for name in loops}
        for n in range(own.rounds + 1):
            for name, loop in loops.items():
                taken = timed(loop, args.device)
                if n:  # the first round warms up
                    times[name].append(taken)
        which = 0 if args.device == "cpu" else 1
        rates = {name: [bench.images / t[which] for t in taken] for name, taken in times.items()}
        pairs = {k: [*k.split(" / "), *v] for k, v in TARGETS.items()}
        result = {"machine": machine(args.device), "images_per_round": bench.images}
        result |= {k: getattr(args, k) for k in "dataset image_size teacher student".split()}
        result["data"] = decoding(args, bench.sizes, folder)
        result |= {"precision": args.precision, "batch_size": args.batch_size, "agree": worst}
        result["remembered_is_live"] = equal
        clock = "cpu_second" if which == 0 else "second"
        result[f"images_per_{clock}"] = {name: spread(values) for name, values in rates.items()}
        result["images_per_second"] = {
            name: spread([bench.images / t[1] for t in taken]) for name, taken in times.items()
        }
        result["ratios"] = {
            name: {**spread([a / b for a, b in zip(rates[x], rates[y])]), "target": goals[which]}
            for name, (x, y, *goals) in pairs.items()
        }
        loops = {"nothing": lambda: None, **loops}
        peaks = {name: peak(loop, args.device) for name, loop in loops.items()}
        result["peak_megabytes"] = peaks
    print(f"{'images per ' + clock.replace('_', ' '):32}{'min':>9}{'median':>9}{'max':>9}  peak MB")
    for name, s in result[f"images_per_{clock}"].items():
        numbers = "".join(f"{s[k]:9.0f}" for k in ("min", "median", "max"))
        print(f"{name:32}{numbers}  {peaks[name] or 0:7.0f}")
    print(f"{'(nothing but the data)':59}  {peaks['nothing'] or 0:7.0f}")
    for name, s in result["ratios"].items():
        numbers = "".join(f"{s[k]:9.2f}" for k in ("min", "median", "max"))
        goal = "" if s["target"] is None else f"  at least {s['target']}: "
        print(f"{name:32}{numbers}{goal}{goal and ('no', 'yes')[s['median'] >= s['target']]}")
    return result


MODEL = (
    "Seconds of an epoch = a N + N H^2 (d + s) + V H^2 f + m: N pictures for training and V for "
    "validation of H pixels a side; a order of the epoch, d data path, s step, f forward pass, m "
    "metrics. Memory = networks + activations of a batch, as H^2, + some numbers for each picture. "
    "Disk = 3 N H^2 bytes of pixels, mapped and not read into memory, + 4 N (features + classes) "
    "bytes of the teacher's answers for an epoch."
)


def seconds(call, times=3):
    """CPU seconds of the fastest of some calls."""
    return min(timed(call)[0] for _ in range(times))


def activations(call):
    """Megabytes that autograd keeps from the forward pass to the backward pass."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 1e6


def stretched(split, n, folder):
    """n pictures by repetition, in a memory-mapped file: a split like that of a large data set."""
    path, have = Path(folder) / f"{n}.npy", split.store[split.rows].numpy()
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (n, *have.shape[1:]))
    for start in range(0, n, len(have)):
        file[start : start + len(have)] = have[: n - start]
    file.flush()
    rows = torch.arange(n)
    store = torch.from_numpy(np.load(path, mmap_mode="c"))
    labels, groups = (t[rows % len(have)] for t in (split.labels, split.groups))
    ids, subjects = [str(k) for k in range(n)], np.arange(n).astype(str)
    fields = {"store": store, "rows": rows, "labels": labels, "groups": groups}
    return replace(split, **fields, ids=ids, subjects=subjects)


def take(views, many):
    """Go through the first `many` batches."""
    for _ in zip(range(many), views):
        pass


def grow_pictures(args, train, n, folder):
    """Costs of n training pictures, whatever the network."""
    before, size, many = memory("RssAnon"), args.batch_size, min(100, n // args.batch_size)
    split = stretched(train, n, folder)
    first = seconds(lambda: take(batches(split, size, 0, 0, "mirrored"), 1))
    rest = (seconds(lambda: take(batches(split, size, 0, 1, "mirrored"), many)) - first) / (
        many - 1
    )
    row = {"n": n, "order_seconds": first, "data_microseconds": 1e6 * rest / size}
    row |= {"hash_seconds": seconds(split.hash, 1), "file_megabytes": split.store.nbytes / 1e6}
    row["megabytes"] = memory("RssAnon") - before
    (Path(folder) / f"{n}.npy").unlink()
    return row


def grow_size(args, data, side):
    """Costs of a picture of `side` pixels a side."""
    args, size, row = copy.copy(args), args.batch_size, {"side": side}
    args.image_size = side
    store = torch.randint(0, 256, (256, side, side, 3), dtype=torch.uint8)
    split = replace(data["train"].subset(range(256)), store=store, rows=torch.arange(256))
    batch, classes = next(batches(split, size, 0, 0, "mirrored")), len(data.classes)
    plain = ckd.PlainTraining(args, data, ckd.Network(args, args.student, classes).train())
    teacher = ckd.Teacher(ckd.Network(args, args.teacher, classes))
    parts = {
        "step": (lambda: plain.step(batch), size),
        "teacher": (lambda: teacher(batch), size),
        "data": (lambda: take(batches(split, size, 0, 0, "mirrored"), 256), 256 // size * size),
    }
    for name, (call, pictures) in parts.items():
        call()
        row[f"{name}_microseconds"] = 1e6 * seconds(call) / pictures
    row["activation_megabytes"] = activations(lambda: plain.step(batch))
    return row


def grow_cells(args, data, n, classes, groups, test=2000):
    """Costs of a step and of the metrics with so many classes and groups; n: which grows."""
    size, train, cells = args.batch_size, data["train"], np.arange(test)
    truth = {"labels": cells % classes, "num_classes": classes, "num_groups": groups}
    truth |= {"groups": cells // classes % groups, "clusters": cells.astype(str)}
    logits = np.random.default_rng(0).normal(size=(test, classes)).astype(np.float32)
    some = replace(train.subset(range(size)), labels=torch.arange(size) % classes)
    batch = next(batches(some, size))
    plain = ckd.PlainTraining(args, data, ckd.Network(args, args.student, classes).train())
    plain.step(batch)
    row = {"n": n, "step_microseconds": 1e6 * seconds(lambda: plain.step(batch)) / size}
    few = 1000 if classes <= 100 else 50  # resamples, whose cost is that of all in proportion
    for name, times in (("metrics", 0), ("intervals", few)):
        call = functools.partial(metrics.evaluate, **truth, logits=logits, replicates=times)
        row[f"{name}_seconds"] = seconds(call, 1) * (1000 // times if times else 1)
        tracemalloc.start()  # numpy tells it of its arrays
        call()
        row[f"{name}_megabytes"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    return row


def grow_mapped(args, data, n, folder):
    """Memory of a process that goes through n pictures of 64 pixels once, with a small network."""
    some = replace(data["train"].subset(range(256)), rows=torch.arange(256))
    some.store = torch.randint(0, 256, (256, 64, 64, 3), dtype=torch.uint8)
    split, most, args = stretched(some, n, folder), 0.0, copy.copy(args)
    args.image_size = 64
    plain = ckd.PlainTraining(args, data, ckd.Network(args, "convnet2", len(data.classes)).train())
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls
    for batch in batches(split, args.batch_size, 0, 0, "mirrored"):
        plain.step(batch)
        most = max(most, memory("RssAnon")) if batch.step % 100 == 0 else most
    row = {"n": n, "file_megabytes": split.store.nbytes / 1e6, "own_megabytes": most}
    row["all_megabytes"] = memory("VmHWM")  # with those pages of the file that lie in memory
    (Path(folder) / f"{n}.npy").unlink()
    return row


SIZES = {  # what grows, and how large it becomes
    "pictures": (1_000, 10_000, 100_000, 1_000_000),
    "size": (32, 64, 128, 224),
    "groups": (2, 4, 8, 16, 40),
    "classes": (2, 6, 20, 100, 1000),
    "mapped": (200_000,),  # pictures of 64 pixels
}


def scaling(args, sizes=SIZES):
    """Time and memory against number of pictures, their size, groups and classes."""
    data = ckd.load_pictures(args)
    rows = {what: [] for what in sizes}

    def add(what, row):
        rows[what].append(row)
        print(what, row, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for n in sizes.get("pictures", ()):
            add("pictures", grow_pictures(args, data["train"], n, folder))
        for n in sizes.get("mapped", ()):
            add("mapped", grow_mapped(args, data, n, folder))
    for side in sizes.get("size", ()):
        add("size", grow_size(args, data, side))
    for n in sizes.get("groups", ()):
        add("groups", grow_cells(args, data, n, classes=6, groups=n))
    for n in sizes.get("classes", ()):
        add("classes", grow_cells(args, data, n, classes=n, groups=2))
    names = {k: getattr(args, k) for k in ("dataset", "teacher", "student", "batch_size")}
    return {"machine": machine("cpu"), **names, "model": MODEL, **rows}


def profiled(flags):
    """{name: a method that is ready to train} of four methods, as `profile` compares them."""
    import bird
    import fairdi
    import fairtune  # needs optuna, and the loops do not

    made, data = {}, ckd.load_pictures(ckd.parse(flags))

    def settings_and_student(script):
        args = script.parse(flags)
        return args, script.Network(args, args.student, len(data.classes))

    for name, script in (("CKD", ckd), ("BIRD", bird)):
        args, student = settings_and_student(script)
        teacher = script.Teacher(script.Network(args, args.teacher, len(data.classes)))
        made[name] = script.Method(args, data, student, teacher)
    args, student = settings_and_student(fairdi)
    made["FairDi, step 0"] = fairdi.FairScaling(args, data, student)
    args, student = settings_and_student(fairtune)
    for name, bit in (("FairTune, all parts", "1"), ("linear probe", "0")):
        bits = bit * len(fairtune.parts(student))
        made[name] = fairtune.Tuning(args, data, copy.deepcopy(student), bits, 1e-3)
    return made


def profile(flags, steps=10):
    """CPU milliseconds of a step of four methods, and the share of its dearest operators."""
    rows = {}
    for name, method in profiled(["--device", "cpu", *flags]).items():
        method.student.train()
        size = method.args.batch_size
        views = [
            batch for _, batch in zip(range(steps), batches(method.split, size, 0, 0, "mirrored"))
        ]

        def all_steps(method=method, views=views):
            for batch in views:
                method.step(batch)

        all_steps()
        milliseconds = 1e3 * seconds(all_steps) / len(views)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            all_steps()
        spent = {e.key: e.self_cpu_time_total for e in trace.key_averages()}
        most = sorted(spent, key=spent.get, reverse=True)[:5]
        shares = {key.removeprefix("aten::"): spent[key] / sum(spent.values()) for key in most}
        rows[name] = {"milliseconds": milliseconds, "operators": shares}
        text = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        print(f"{name:22}{milliseconds:7.1f} ms a step of {size} pictures: {text}")
    return {"machine": machine("cpu"), "dataset": "toy", "steps": rows}


# ----- tables of the committed measurements, results/speed.md ------------------------------------


def markdown(header, rows):
    """A table of texts."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comparisons(folder):
    """{name: content} of the files in `folder` that compare loops."""
    contents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: content for name, content in contents.items() if "ratios" in content}


def speed_table(folder):
    """The training loop beside others: a column for each file."""
    ratios = {name: content["ratios"] for name, content in comparisons(folder).items()}
    rows = []
    for name in next(iter(ratios.values())):
        parts = [each[name] for each in ratios.values()]
        cells = [f"{p['median']:.2f} [{p['min']:.2f}, {p['max']:.2f}]" for p in parts]
        rows.append([name, f"{parts[0]['target'] or ''}", *cells])
    return markdown(["quotient of rates", "at least", *ratios], rows)


def data_table(folder):
    """From files to batches: a row for each data set."""
    header = ["data set", "pictures", "train / val / test", "pixels a side", "decoding, CPU s"]
    header += ["MB decoded", "data path, images/s", "student's step, images/s", "quotient"]
    rows = []
    for name, content in comparisons(folder).items():
        if name != content["dataset"]:  # other networks or threads, the same pictures
            continue
        data, rates = content["data"], content["images_per_cpu_second"]
        seconds = data.get("decoding_cpu_seconds")
        row = [name, f"{data['pictures']:,}"]
        row += [" / ".join(f"{n:,}" for n in data["splits"].values()), f"{content['image_size']}"]
        row += ["drawn" if seconds is None else f"{seconds:.0f}", f"{data['megabytes']:.0f}"]
        row += [f"{rates[loop]['median']:,.0f}" for loop in ("E data", "C bare")]
        rows.append([*row, f"{content['ratios']['E data / C bare']['median']:.0f}"])
    return markdown(header, rows)


GROWS = {  # what grows in scaling.json: the name of its values
    "pictures": "n",
    "size": "side",
    "groups": "n",
    "classes": "n",
}
COSTS = {  # what is measured: its name in the table
    "order_seconds": "order of an epoch, s",
    "step_microseconds": "student's step, µs a picture",
    "teacher_microseconds": "teacher's answer, µs a picture",
    "data_microseconds": "data path, µs a picture",
    "hash_seconds": "hash of all pixels, s",
    "megabytes": "memory, MB",
    "file_megabytes": "pixels on disk, MB",
    "activation_megabytes": "activations of a batch, MB",
    "metrics_seconds": "metrics, s",
    "metrics_megabytes": "metrics, MB",
    "intervals_seconds": "with intervals, s",
    "intervals_megabytes": "with intervals, MB",
}


def scaling_table(folder):
    """How cost grows: the last column is b of cost ~ size^b, by least squares."""
    content, rows = json.loads((folder / "scaling.json").read_text()), []
    for what, name in GROWS.items():
        sizes = [row[name] for row in content[what]]
        for cost, words in COSTS.items():
            if cost not in content[what][0] or (what, cost) == ("groups", "step_microseconds"):
                continue
            values = [row[cost] for row in content[what]]
            power = np.polyfit(*np.log(np.maximum([sizes, values], 1e-9)), 1)[0]
            shown = [f"{v:,.0f}" if abs(v) >= 100 else f"{v:.2g}" for v in values]
            texts = [" / ".join(f"{n:,}" for n in sizes), words, " / ".join(shown)]
            rows.append([what, *texts, f"{power:.2f}"])
    return markdown(["what grows", "values", "cost", "measured", "power"], rows)


def mapped_sentence(folder):
    """Does a large data set fit into a small memory?"""
    (row,) = json.loads((folder / "scaling.json").read_text())["mapped"]
    return (
        f"An epoch of {row['n']:,} pictures of 64 pixels, {row['file_megabytes'] / 1e3:.1f} GB on "
        f"the disk, took {row['own_megabytes'] / 1e3:.1f} GB of the process's own memory, and "
        f"{row['all_megabytes'] / 1e3:.1f} GB with the pages of the file, which the system takes "
        "back where memory is short."
    )


def profile_table(folder):
    """Where a step of some methods goes."""
    steps, rows = json.loads((folder / "profile.json").read_text())["steps"], []
    for name, row in steps.items():
        parts = ", ".join(f"{key} {share:.0%}" for key, share in row["operators"].items())
        times = row["milliseconds"] / steps["CKD"]["milliseconds"]
        rows.append([name, f"{row['milliseconds']:.1f}", f"{times:.1f}", parts])
    return markdown(["method", "ms a step", "of CKD's", "its five dearest operators"], rows)


def page(folder):
    """All tables of the measurements in `folder`, with what they mean, as Markdown."""
    return f"""# Speed

Made by `python tests/speed.py --table` from the files in `speed/`, on an x86-64 CPU; no GPU was
measured. CIFAR-10 was here a re-encoded JPEG copy, CelebA a part of 20,140 faces at 64 pixels,
HAM10000 a copy at 200 x 150.

## The training loop beside others

{speed_table(folder)}

Each column is a file, made by `OMP_NUM_THREADS=1 python tests/speed.py --json FILE` with the data
set and its networks: median [lowest, highest] of interleaved rounds, in CPU time. A is the scripts'
own loop, with a live teacher or with remembered answers; B a loop as it is usually written (PIL
transforms in a DataLoader, NCHW, a live teacher, `.item()` in each step); C the bare step of the
student on one batch; D the same and the teacher's forward pass; E the data path alone. A round is
an epoch of the toy and of HAM10000 (a third of one for `ham10000-convnet16`, which is convnet32 to
convnet16), 59 % of CelebA's, 28 % of CIFAR10-S's. Where A remembered stays below 0.95 of C, the
student is the smallest one, whose step takes 12 to 45 ms: the data path alone is a 28th of it, and
L_KD comes on top. With a student of twice the width nothing of it shows.

## From files to batches

{data_table(folder)}

## How cost grows

{scaling_table(folder)}

`OMP_NUM_THREADS=1 python tests/speed.py --scaling --json FILE`; the power is b of cost ~ size^b.
Pictures by repetition of the toy's, in a memory-mapped file; sizes with random pixels; networks and
batch of the toy. So an epoch costs N · (data path + step) for N pictures, both growing with the
square of the side, plus the forward pass on the validation pictures and the metrics; memory is the
activations of a batch and a few numbers for each picture. Metrics are those of 2,000 pictures, with
intervals from 1,000 resamples; their tables of counts grow with groups times classes squared, and
are made for so few resamples at a time that they fit (1,000 classes: 50 resamples, times 20).

{mapped_sentence(folder)}

## Where a step of 64 toy pictures goes

{profile_table(folder)}

`OMP_NUM_THREADS=1 python tests/speed.py --profile --json FILE`.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scaling", nargs="*", choices=SIZES)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--table", action="store_true")
    own, flags = parser.parse_known_args()
    if own.table:
        save(ROOT / "results" / "speed.md", page(ROOT / "results" / "speed"))
        sys.exit()
    if own.profile:
        result = profile(flags)
    else:
        args = ckd.parse(flags)
        chosen = {part: SIZES[part] for part in own.scaling or SIZES}
        result = compare(args, own) if own.scaling is None else scaling(args, chosen)
    if own.scaling and own.json and own.json.exists():  # the other parts stay
        result = json.loads(own.json.read_text()) | result
    if own.json:
        save(own.json, json.dumps(result, indent=1) + "\n")
