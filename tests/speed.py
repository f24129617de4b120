"""How fast is the training loop, and what does it lose? A program, not a timed test.

    OMP_NUM_THREADS=1 python tests/speed.py                      the toy with its usual networks
    OMP_NUM_THREADS=1 python tests/speed.py --dataset ham10000 --data-dir DIR --student convnet8 ...
    OMP_NUM_THREADS=1 python tests/speed.py --scaling            cost against size of everything
    OMP_NUM_THREADS=1 python tests/speed.py --profile            where a step of four methods goes
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

Before that, ten steps of A and B from equal pictures must agree to 1e-5, and A remembered must be
A live bit by bit. Rates are pictures per second of CPU time (all threads; on a GPU: per second).
"""

# ruff: noqa: B023  (every function made in a loop is used up in its own round)

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "methods")]
import bird  # noqa: E402
import ckd  # noqa: E402
import fairdi  # noqa: E402
import fairtune  # noqa: E402

import data as D  # noqa: E402
import metrics as M  # noqa: E402
import runs as R  # noqa: E402
from readers import decode_all  # noqa: E402

TARGETS = {  # quotient of rates: (least, on a GPU)
    "A live / D bare + T": (0.95, 0.85),
    "A remembered / C bare": (0.95, 0.85),
    "A remembered / C bare KD": (None, None),
    "A remembered / A live": (None, None),
    "A live / B usual": (None, None),
    "A remembered / B usual": (2.5, None),
    "E data / C bare": (5, None),
}


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

    def epoch(self, pictures, workers):
        device, size = self.args.device, self.args.batch_size
        shuffled = {"shuffle": True, "drop_last": True, "num_workers": workers}
        for images, labels in torch.utils.data.DataLoader(pictures, size, **shuffled):
            self.step(images.to(device), labels.to(device))


class Bench:
    """The loops, on the first `steps` batches' worth of training pictures."""

    def __init__(self, args, steps, folder):
        self.args, self.folder = args, Path(folder)
        args.epochs, args.out = 1, str(self.folder / "results")
        self.data = D.load_for(args)
        train = self.data["train"]
        self.sizes = {name: len(split) for name, split in self.data.splits.items()}
        self.steps = min(steps, len(train) // args.batch_size)
        self.images = self.steps * args.batch_size
        spread = torch.arange(self.images) * len(train) // self.images
        self.data.splits["train"] = train.subset(spread)
        torch.manual_seed(args.seed)
        self.teacher = self.network(args.teacher).eval().requires_grad_(False)
        self.student = self.network(args.student)
        self.batch = next(D.batches(self.data["train"], args.batch_size, args.seed, 0, True))
        self.kept = ckd.Teacher(self.teacher, R.Memory(self.folder / "answers"))

    def network(self, name):
        return ckd.Network(self.args, name, len(self.data.classes)).to(self.args.device)

    def method(self, teacher):
        return ckd.Method(self.args, self.data, copy.deepcopy(self.student).train(), teacher)

    def fit(self, teacher):
        """An epoch by the scripts' own `fit`, without what comes after its last batch."""
        method, none = self.method(teacher), dict.fromkeys([*R.LOGGED, *ckd.RULES.values()])
        evaluate, save = ckd.evaluate, R.save
        ckd.evaluate = lambda model, data, part: (None, none)
        R.save = lambda path, **content: save(path, **content) if "answers" in content else None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                ckd.fit(self.args, self.data, method, self.folder / "none.pt", "speed")
        finally:
            ckd.evaluate, R.save = evaluate, save
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
        args, repeat = self.args, range(self.steps)
        plain = ckd.CrossEntropy(args, self.data, copy.deepcopy(self.student).train())
        answer = functools.cache(lambda: ckd.Teacher(self.teacher)(self.batch))
        given = self.method(lambda batch: answer())
        pictures, usual = Pictures(self.data["train"]), self.usual()
        workers = 0 if args.device == "cpu" else len(os.sched_getaffinity(0))
        live = ckd.Teacher(self.teacher)
        both = lambda: (live(self.batch), plain.step(self.batch))
        views = (args.batch_size, args.seed, 0, True)
        loops = {
            "A live": lambda: self.fit(live),
            "A remembered": lambda: self.fit(self.kept),
            "B usual": lambda: usual.epoch(pictures, workers),
            "C bare": lambda: [plain.step(self.batch) for _ in repeat],
            "C bare KD": lambda: [given.step(self.batch) for _ in repeat],
            "D bare + T": lambda: [both() for _ in repeat],
            "E data": lambda: [None for _ in D.batches(self.data["train"], *views)],
        }
        if args.device != "cpu":
            fast, compiled = self.usual(bf16=True), copy.deepcopy(self.student).train()
            compiled.compile()
            compiled = ckd.CrossEntropy(args, self.data, compiled)
            loops["B usual, bf16, channels last"] = lambda: fast.epoch(pictures, workers)
            loops["C bare, compiled"] = lambda: [compiled.step(self.batch) for _ in repeat]
        return loops

    def check(self):
        """Ten steps of A and B agree to 1e-5; a remembered epoch equals a live one bit by bit."""
        ours, usual = self.method(ckd.Teacher(self.teacher)), self.usual()
        for group in (*ours.optimizer.param_groups, *usual.optimizer.param_groups):
            group["lr"] = self.args.lr / 10  # as in warm-up
        worst, batches = 0.0, D.batches(self.data["train"], self.args.batch_size, 0, 0, True)
        for batch, _ in zip(batches, range(10)):
            one = ours.step(batch)["loss"].item()
            other = usual.step(batch.images.contiguous(), batch.labels).item()
            worst = max(worst, abs(one - other) / abs(one))
        if self.args.precision == "float32" and worst > 1e-5:
            raise SystemExit(f"A and B differ by {worst:.1e} in ten steps")
        states = [self.fit(ckd.Teacher(self.teacher)).state_dict()]
        states += [self.fit(self.kept).state_dict() for _ in range(2)]  # the second reads the file
        equal = all(torch.equal(states[0][k], s[k]) for s in states[1:] for k in states[0])
        if self.args.device == "cpu" and not equal:
            raise SystemExit("a remembered epoch is not the live one")
        return worst


def timed(work, device):
    """(CPU seconds of all threads, seconds)."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wait()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak(work, device):
    """Most megabytes that the process, or the GPU, has held during work(); None where unknown."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls
        work()
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
    kind, skew = D.DATASETS[args.dataset], {} if args.skew is None else {"skew": args.skew}
    root = Path(args.data_dir or f"data/{args.dataset}")
    table = kind.read(root, args.target, args.sensitive, args.fold, False, **skew)
    if table.images is not None:  # drawn, not read
        return {"splits": sizes, "pictures": len(table.ids), "megabytes": table.images.nbytes / 1e6}
    start = time.process_time(), time.perf_counter()
    images, _ = decode_all(table, args.image_size, Path(folder), args.skip_bad)
    taken = time.process_time() - start[0], time.perf_counter() - start[1]
    names = dict(zip(("decoding_cpu_seconds", "decoding_seconds"), taken))
    return {"splits": sizes, "pictures": len(images), "megabytes": images.nbytes / 1e6, **names}


def compare(args, own):
    """All loops, interleaved; returns what --json writes."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, own.steps, folder)
        worst, loops = bench.check(), bench.loops()
        print(f"ten steps of A and B agree to {worst:.1e}; remembered = live, bit by bit")
        times = {name: [] for name in loops}
        for n in range(own.rounds + 1):
            for name, loop in loops.items():
                taken = timed(loop, args.device)
                if n:  # the first round warms up
                    times[name].append(taken)
        which = 0 if args.device == "cpu" else 1
        rates = {name: [bench.images / t[which] for t in taken] for name, taken in times.items()}
        pairs = {k: [*k.split(" / "), *v] for k, v in TARGETS.items()}
        result = {"machine": R.machine(args.device), "images_per_round": bench.images}
        result |= {k: getattr(args, k) for k in "dataset image_size teacher student".split()}
        result["data"] = decoding(args, bench.sizes, folder)
        result |= {"precision": args.precision, "batch_size": args.batch_size, "agree": worst}
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


def seconds(work, times=3):
    return min(timed(work, "cpu")[0] for _ in range(times))


def activations(work):
    """Megabytes that autograd keeps from the forward pass to the backward pass."""
    kept = {}
    note = lambda tensor: kept.update({tensor.untyped_storage().data_ptr(): tensor}) or tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
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


def scaling(args):
    """Time and memory against number of pictures, their size, groups and classes."""
    data, rng = D.load_for(args), np.random.default_rng(0)
    train, size, many = data["train"], args.batch_size, 100
    network = lambda name, classes: ckd.Network(args, name, classes)
    rows = {"pictures": [], "size": [], "groups": [], "classes": []}
    with tempfile.TemporaryDirectory() as folder:
        for n in (1_000, 10_000, 100_000, 1_000_000):
            before = memory("RssAnon")
            split = stretched(train, n, folder)
            some = min(many, n // size)
            first = seconds(lambda: next(D.batches(split, size, 0, 0, True)))
            pass_by = lambda: [
                b for b, _ in zip(D.batches(split, size, 0, 1, True), range(some)) if 0
            ]
            batch = (seconds(pass_by) - first) / max(some - 1, 1)
            hashed = seconds(lambda: R.hash_of(split.store[r] for r in split.rows.split(1024)), 1)
            row = {"n": n, "order_seconds": first, "data_microseconds": 1e6 * batch / size}
            row |= {"hash_seconds": hashed, "file_megabytes": split.store.nbytes / 1e6}
            rows["pictures"].append(row | {"megabytes": memory("RssAnon") - before})
            (Path(folder) / f"{n}.npy").unlink()
            print(row, flush=True)
    for side in (32, 64, 128, 224):
        args.image_size = side
        store = torch.randint(0, 256, (256, side, side, 3), dtype=torch.uint8)
        few = {"store": store, "rows": torch.arange(256)}
        split = replace(train.subset(range(256)), **few)
        batch = next(D.batches(split, size, 0, 0, True))
        plain = ckd.CrossEntropy(args, data, network(args.student, len(data.classes)).train())
        teacher = ckd.Teacher(network(args.teacher, len(data.classes)))
        parts = {"step": lambda: plain.step(batch), "teacher": lambda: teacher(batch)}
        parts["data"] = lambda: [None for _ in D.batches(split, size, 0, 0, True)]
        row = {"side": side}
        for name, work in parts.items():
            work()
            pictures = 256 // size * size if name == "data" else size
            row[f"{name}_microseconds"] = 1e6 * seconds(work) / pictures
        row["activation_megabytes"] = activations(parts["step"])
        rows["size"].append(row)
        print(row, flush=True)
    args.image_size = 32
    for what, choices in (("groups", (2, 4, 8, 16)), ("classes", (2, 6, 20, 100))):
        for n in choices:
            classes, groups, test = (6, n, 2000) if what == "groups" else (n, 2, 2000)
            truth = {"labels": np.arange(test) % classes, "num_classes": classes}
            truth |= {"groups": rng.integers(0, groups, test), "num_groups": groups}
            truth |= {"clusters": np.arange(test).astype(str)}
            logits = rng.normal(size=(test, classes)).astype(np.float32)
            store = train.store[train.rows[:size]]
            labels = torch.arange(size) % classes
            few = {"store": store, "rows": torch.arange(size), "labels": labels}
            batch = next(D.batches(replace(train.subset(range(size)), **few), size))
            plain = ckd.CrossEntropy(args, data, network(args.student, classes).train())
            plain.step(batch)
            row = {"n": n, "step_microseconds": 1e6 * seconds(lambda: plain.step(batch)) / size}
            for name, times in (("metrics", 0), ("intervals", 1000)):
                work = lambda: M.evaluate(**truth, logits=logits, replicates=times)
                row[f"{name}_seconds"] = seconds(work, 1)
            rows[what].append(row)
            print(row, flush=True)
    names = {k: getattr(args, k) for k in ("dataset", "teacher", "student", "batch_size")}
    return {"machine": R.machine("cpu"), **names, "model": MODEL, **rows}


def profile(args, steps=10):
    """CPU milliseconds of a step of four methods, and the share of its dearest operators."""
    data = D.load_for(args)
    settings = lambda script, *flags: R.complete(
        script.settings().parse_args(["--dataset", "toy", "--device", "cpu", *flags])
    )
    networks = lambda script, args, *names: [
        script.Network(args, name, len(data.classes)) for name in names
    ]
    made = {}
    for name, script in (("CKD", ckd), ("BIRD", bird)):
        own = settings(script)
        student, teacher = networks(script, own, own.student, own.teacher)
        made[name] = script.Method(own, copy.copy(data), student, script.Teacher(teacher))
    own = settings(fairdi)
    made["FairDi, step 0"] = fairdi.FairScaling(own, data, *networks(fairdi, own, own.student))
    own = settings(fairtune)
    (vit,) = networks(fairtune, own, own.student)
    for name, bit in (("FairTune, all parts", "1"), ("FairTune, no part", "0")):
        bits = bit * len(fairtune.parts(vit))
        made[name] = fairtune.Tuning(own, data, copy.deepcopy(vit), bits, 1e-3)
    rows = {}
    for name, method in made.items():
        method.student.train()
        train = method.data["train"]
        batches = [b for b, _ in zip(D.batches(train, 64, 0, 0, True), range(steps))]
        work = lambda: [method.step(batch) for batch in batches]
        work()
        milliseconds = 1e3 * seconds(work) / steps
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            work()
        spent = {e.key: e.self_cpu_time_total for e in trace.key_averages()}
        most = sorted(spent, key=spent.get, reverse=True)[:5]
        shares = {key.removeprefix("aten::"): spent[key] / sum(spent.values()) for key in most}
        rows[name] = {"milliseconds": milliseconds, "operators": shares}
        text = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        print(f"{name:22}{milliseconds:7.1f} ms a step of 64 pictures: {text}")
    return {"machine": R.machine("cpu"), "dataset": args.dataset, "steps": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--profile", action="store_true")
    own, flags = parser.parse_known_args()
    args = R.complete(ckd.settings().parse_args(flags))
    result = scaling(args) if own.scaling else profile(args) if own.profile else compare(args, own)
    if own.json and result:
        own.json.parent.mkdir(parents=True, exist_ok=True)
        own.json.write_text(json.dumps(result, indent=1) + "\n")
