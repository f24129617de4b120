"""Pictures, labels and groups, as batches on the device; and how files are written and read again.

    data = load("ham10000", "data/ham10000", size=64)     # three splits of uint8 pictures
    for batch in batches(data["train"], 64, seed=0, epoch=3, views="mirrored"): ...

Order and augmentation depend on (seed, epoch) alone. So two methods with the same seed see the same
views, and a run that was killed continues exactly, because there is no random state to lose.

Each file in datasets/ says which files make one data set, and datasets/__init__.py how they are
decoded. How the scripts read their command lines stands here, too, because all of them do it alike.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

## Each file in datasets/ is a data set, so whoever adds a file adds a name.
FILES = Path(__file__).with_name("datasets").glob("[a-z]*.py")
DATASETS = sorted(path.stem.replace("_", "-") for path in FILES)


class InputError(ValueError):
    """What the user gave us cannot be used; the message says what, where, and what to do."""


class Diverged(InputError):
    """A loss or an output has become infinite or NaN."""


def end_with_reader():
    """What prints ends without a traceback when its reader does, as in `| head`."""
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def check_finite(values, where):
    """Raise Diverged, which names them, if some of the values {name: number} are not finite."""
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        advice = "use a smaller --lr (of a teacher: --teacher-lr) or smaller loss weights"
        raise Diverged(f"{', '.join(bad)} in {where}: {advice}")


def near(name, known, cutoff=0.6):
    """The names in `known` that are most like `name`, as text for an error message, or ""."""
    return ", ".join(difflib.get_close_matches(name, known, 3, cutoff))


# ===== COMMAND LINES ==============================================================================


def number(low, high=math.inf, kind=float):
    """A type for argparse: an `int` or `float` from `low` to `high`, neither infinite nor NaN."""

    def read(text):
        value = kind(text)  # argparse explains the ValueError of a text that is no number
        if not low <= value <= high or value == math.inf:
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text} must be {limits}")
        return value

    read.__name__ = "number" if kind is float else "whole number"
    return read


class Help(argparse.HelpFormatter):
    """One line for most settings: the flag with its value, what it means, and [its default]."""

    def __init__(self, prog):
        super().__init__(prog, 2, 28, width=min(shutil.get_terminal_size().columns, 100))

    def _fill_text(self, text, width, indent):
        return text  # as it is written

    def _format_action_invocation(self, action):
        kind = "one of" if action.choices else getattr(action.type, "__name__", "text")
        value = {"one of": "X", "number": "X", "whole number": "N", "text": "NAME"}[kind]
        flag = action.option_strings[0].replace("--", "--[teacher-]" if action.both else "--")
        return flag if action.nargs == 0 else f"{flag} {action.metavar or value}"

    def _get_help_string(self, action):
        words, default = action.help, action.default
        if action.choices and not action.metavar:
            words = f"{', '.join(action.choices)}: {words}"
        default = " or ".join(map(str, default)) if isinstance(default, tuple) else default
        its_own = defaults("toy") if action.type or action.metavar else {}  # numbers, networks
        if default is None and action.dest in its_own:
            default = f"{its_own[action.dest]}, toy"
        silent = action.nargs == 0 or default in (None, "", argparse.SUPPRESS)
        return words if silent else f"{words} [{default}]"


class Settings(argparse.ArgumentParser):
    """A parser with groups of settings, a short --help, and errors of one sentence.

    about: a script's header, of which --help shows the first sentence, and --about all.
    """

    def __init__(self, about):
        notes = "[]: the default; [X, toy]: other data sets have others. --no-x undoes switch x.\n"
        notes += "--[teacher-]x: --x is the student's, and --teacher-x is the teacher's."
        first = about.partition(". ")[0]
        usage = "python methods/%(prog)s [--setting value ...]; none given: toy"
        more = {"formatter_class": Help, "usage": usage, "add_help": False}
        super().__init__(description=first, epilog=notes, **more)

    def format_help(self):
        return super().format_help().replace("\n\n", "\n")  # so that it fits two screens

    def group(self, title):
        """A function like add_argument, for settings of a group; both: the teacher has it, too."""
        group = self.add_argument_group(title)

        def add(flag, *others, both=False, **how):
            group.add_argument(flag, *others, **how).both = both
            if both:
                how["help"] = argparse.SUPPRESS  # because one line shows both
                self.add_argument(flag.replace("--", "--teacher-"), **how)

        return add

    def error(self, message):
        wrong = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        meant = near(wrong[1], self._option_string_actions).partition(",")[0] if wrong else ""
        meant = f" (did you mean {meant}?)" if meant else ""
        self.exit(2, f"{self.prog}: error: {message}{meant}; --help lists all settings\n")


def with_bar(work, label, total, **more):
    """`work` itself, with a bar on a terminal where it takes more than a second."""
    shape = "{desc} {percentage:3.0f}%|{bar}| {remaining} left"
    bar = {"bar_format": shape, "ncols": 79, "delay": 1, "leave": False, "disable": None}
    return tqdm(work, label, total, **bar, **more)


# ===== FILES ======================================================================================


def digest(content):
    """12 hex digits that stand for a value: anything that JSON can hold, and tensors."""

    def of_tensor(tensor):
        return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()

    text = json.dumps(content, sort_keys=True, default=of_tensor)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files_of(*settings):
    """{"files": digests} of those settings that are FILE or FILE.py:FUNCTION; {} if none is.

    So another content under the same name is another run. With a FILE.py come the files beside it
    that it imports, and all .py files of folders that it imports from.
    """
    sums = []
    for setting in settings:
        files = [Path(re.sub(r"\.py:\w+(@\d+)?$", ".py", str(setting)))]
        for path in filter(Path.is_file, files):  # which grows while it is read
            sums.append(hashlib.sha256(path.read_bytes()).hexdigest())
            code = path.read_text(errors="replace") if path.suffix == ".py" else ""
            imported = " ".join(re.findall(r"^[ \t]*(?:from|import)[ \t]+(.+)", code, re.M))
            for name in re.findall(r"\w+", imported):
                beside = [path.with_name(f"{name}.py"), *path.with_name(name).rglob("*.py")]
                files += sorted({*beside} - {*files})
    return {"files": sums} if sums else {}


@contextlib.contextmanager
def explained(path):
    """Make the folder of `path`. Turn system errors, such as a full disk, into a sentence."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, NotImplementedError) as error:  # the second: a disk that knows no locks
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be written ({reason}): make room, or choose another folder, and start "
            "again; what was complete before is still there"
        ) from None


@contextlib.contextmanager
def locked(path):
    """Let one process at a time work on `path`; others wait. A killed process leaves no lock."""
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with explained(path):
        try:
            held = lock.acquire(timeout=1)
        except Timeout:
            print(f"another process works on {path}: waiting for its end", flush=True)
            held = lock.acquire()
    with held:  # and released at the end
        yield


@contextlib.contextmanager
def replacing(path):
    """Give a temporary name beside `path`, which is renamed to `path` if the block ends well.

    So a file is whole or absent, even after a power cut. Where several processes may write it, the
    caller holds a lock, because all of them would use the same temporary name.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with explained(path):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # its content is on the disk before it gets its name
            os.replace(temporary, path)
            if os.name == "posix":  # and its name before anybody relies on it
                folder = os.open(path.parent, os.O_RDONLY)
                with contextlib.suppress(OSError):  # some disks cannot
                    os.fsync(folder)
                os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)


def save(path, content):
    """Write `content` into the file `path`: text, bytes, or anything else as torch.save writes it.

    Raises InputError if that is impossible; a file that was there before stays as it was.
    """
    if isinstance(content, str):
        content = content.encode()
    elif not isinstance(content, bytes):
        torch.save(content, buffer := io.BytesIO())  # torch.save does not say that a disk is full
        content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


## Not all of OSError, as PyTorch raises it for a file that was cut.
NOT_THERE = FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError


def restore(path, device="cpu", keys=()):
    """Read what `save` wrote into `path`, JSON or torch.save's form, without running code in it.

    Raises InputError if it cannot be read, or is not a dict that has all of these keys.
    """
    try:
        if Path(path).suffix == ".json":
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        else:
            content = torch.load(path, map_location=device, weights_only=True)
        for key in keys:
            content[key]
        return content
    except (*NOT_THERE, MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    except Exception as error:  # damaged files raise all kinds of errors
        raise InputError(
            f"{path} is damaged, or not a file of these scripts, or holds code "
            f"({type(error).__name__}): delete it"
        ) from None


def put_back(part, state, path):
    """Load the state_dict `state` of the file `path` into a network, an optimiser or the like."""
    try:
        part.load_state_dict({name: value for name, value in state.items() if name != "epoch"})
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error) or "nothing there").splitlines()[0]
        raise InputError(
            f"{path} does not fit ({reason}): another version of these scripts made it; delete it"
        ) from None


def made_once(path, make, device="cpu", keys=()):
    """Return what `make()` returns, kept in the file `path`: only the first process makes it.

    A checkpoint.pt beside it, from which a killed training would have gone on, is removed.
    """
    with locked(path.parent):
        if not path.exists():
            save(path, make())
        path.with_name("checkpoint.pt").unlink(missing_ok=True)  # what is made needs none any more
        return restore(path, device, keys)  # under the lock, so that nobody removes it in between


def keep_newest(folder, most):
    """Remove the oldest .pt files below `folder`, until at most `most` bytes are left."""
    files = sorted(folder.rglob("*.pt"), key=lambda file: -file.stat().st_mtime)
    totals = np.cumsum([file.stat().st_size for file in files])  # the newest first
    for file in [file for file, total in zip(files, totals) if total > most]:
        file.unlink()


def name_codes(names):
    """A number for each name of a picture, without ending, capitals and kind of slash: (N,) int64.

    A student's file holds them, so that it can tell pictures that it was trained on by their names.
    """
    from datasets._tables import forms  # not at the top, because datasets imports this file

    return torch.tensor([zlib.crc32(forms(name)[1].encode()) for name in names])


# ===== SPLITS AND BATCHES =========================================================================


@dataclass
class Split:
    """Some pictures of a data set: `store` holds all of the set, `rows` says which are ours."""

    store: torch.Tensor  # (M, H, W, 3) uint8, on the device or memory-mapped
    rows: torch.Tensor  # (N,) int64, on the store's device
    labels: torch.Tensor  # (N,) int64, on the device
    groups: torch.Tensor  # (N,) int64, on the device
    ids: list  # N names
    subjects: np.ndarray  # (N,) texts: lesions, persons
    mean: torch.Tensor = None  # (3, 1, 1), of the training pictures, in 0..255
    std: torch.Tensor = None  # (3, 1, 1)
    masks: torch.Tensor = None  # (M, H, W) uint8, above 0 inside: of --task segment, like `store`

    def __len__(self):
        return len(self.ids)

    @property
    def images(self):
        """The pictures themselves, (N, 3, H, W) uint8."""
        return self.store[self.rows].permute(0, 3, 1, 2)

    def hash(self, groups=True):
        """16 hex digits for ids, labels, groups (if asked for), and the pixels of pictures and
        masks."""
        content = hashlib.sha256("\n".join(self.ids).encode())
        for store in [self.store] if self.masks is None else [self.store, self.masks]:
            for rows in self.rows.split(1024):  # a part at a time, a checksum for each picture
                pixels = store[rows].contiguous().cpu().numpy()
                sums = [zlib.crc32(picture) for picture in pixels]
                content.update(np.array(sums, np.uint32).tobytes())
        content.update(self.labels.cpu().numpy().tobytes())
        content.update(self.groups.cpu().numpy().tobytes() if groups else b"")
        return content.hexdigest()[:16]

    def subset(self, index):
        """The pictures at positions `index` (K,), or where a mask (N,) is true, as a split."""
        index = torch.as_tensor(index).cpu()  # indexes tensors on any device
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        return replace(
            self,
            rows=self.rows[index],
            labels=self.labels[index],
            groups=self.groups[index],
            ids=[self.ids[n] for n in index.tolist()],
            subjects=self.subjects[index.numpy()],
        )


@dataclass
class Data:
    """A data set: data["train"], data["val"] and data["test"] are Splits."""

    name: str
    classes: list  # of pictures; with masks, too
    group_names: list
    size: int  # pixels per side
    splits: dict
    notes: dict = field(default_factory=dict)  # what was left out and why
    pixel_classes: list = None  # of --task segment: what is outside of a mask, and inside

    def __getitem__(self, split):
        return self.splits[split]

    @property
    def outputs(self):
        """What a network has to tell apart: classes of pictures, or of pixels."""
        return self.pixel_classes or self.classes

    def hash(self, *names, groups=True):
        """12 hex digits for the splits `names` (default: all), which stand for their pictures."""
        parts = [self[name].hash(groups) for name in names or self.splits]
        return digest([self.name, self.size, names, parts])

    def words(self):
        """12 hex digits for the names of classes and groups, and for who is in which picture."""
        subjects = [split.subjects.tolist() for split in self.splits.values()]
        return digest([self.classes, self.group_names, subjects])

    def truth(self, part):
        """What metrics.evaluate needs to know of a split; pictures of one subject are a cluster."""
        split = self[part]
        return {
            "labels": split.labels.cpu().numpy(),
            "groups": split.groups.cpu().numpy(),
            "num_classes": len(self.classes),
            "num_groups": len(self.group_names),
            "clusters": split.subjects,
        }

    def describe(self):
        """What was left out, and the number of pictures in each cell, as text."""
        from datasets._show import describe  # not at the top, because datasets imports this file

        parts = {
            part: (s.labels.cpu().numpy(), s.groups.cpu().numpy())
            for part, s in self.splits.items()
        }
        title = f"{self.name}, {self.size} pixels a side"
        return describe(title, self.classes, self.group_names, parts, self.notes)

    def contact_sheet(self, folder):
        """Write a PNG into `folder`: training pictures of each class and group, in rows."""
        from datasets._show import contact_sheet

        contact_sheet(self, folder)


class Batch(NamedTuple):
    images: torch.Tensor  # (B, 3, H, W) float32, normalised per channel, channels-last in memory
    labels: torch.Tensor  # (B,) int64; of --task segment the masks, (B, H, W) int64, 1 inside
    groups: torch.Tensor  # (B,) int64
    index: torch.Tensor  # (B,) int64, positions in the split
    epoch: int  # from 0
    step: int  # from 0 in each epoch
    answers: tuple = None  # features and logits of a teacher, where they are known already


def cells_of(split, balance):
    """(N,) integers: what each picture counts as when `balance` shows all of that equally often."""
    columns = {"cells": ["labels", "groups"], "classes": ["labels"], "groups": ["groups"]}[balance]
    codes = np.zeros(len(split), int)
    for values in (getattr(split, column).cpu().numpy() for column in columns):
        codes = codes * (values.max() + 1) + values
    return np.unique(codes, return_inverse=True)[1]  # without the cells that hold nothing


def balanced_order(cells, rng):
    """(N,) positions, drawn with replacement: each of the `cells` (N,) has an equal share."""
    sizes = np.bincount(cells)
    by_cell = np.argsort(cells, kind="stable")  # (N,) positions, sorted by their cells
    start = np.cumsum(sizes) - sizes  # (cells,) where each cell begins in by_cell
    drawn = rng.permutation(np.arange(len(cells)) % len(sizes))  # (N,) the cell of each draw
    return by_cell[start[drawn] + rng.integers(0, sizes[drawn])]


def times_shown(split, balance=""):
    """(N,) float64 tensor: how often `batches` shows each picture in an epoch, on average."""
    cells = cells_of(split, balance) if balance else np.arange(len(split))
    sizes = np.bincount(cells)
    return torch.from_numpy(len(cells) / len(sizes) / sizes[cells]).to(split.labels.device)


def class_shares(split, num_classes, balance=""):
    """The share of each class among the pictures that `batches` gives: a list (C,)."""
    shown = times_shown(split, balance).cpu()  # a GPU adds in any order
    counts = torch.bincount(split.labels.cpu(), shown, minlength=num_classes)
    ## A class without a picture counts as one: its share must not be 0, which has no logarithm.
    counts = torch.where(counts > 0, counts, 1.0)  # (C,)
    return (counts / counts.sum()).tolist()


def refuse_batch(batch_size, n):
    """Raise InputError where `n` training pictures are too few for one batch."""
    if n < batch_size:
        raise InputError(
            f"a batch of {batch_size} needs as many training pictures, but there are {n}: choose a "
            "smaller --batch-size"
        )


VIEWS = {"cropped": 1, "mirrored": 2, "turned": 8}  # in how many ways a picture can lie


def batches(split, batch_size, seed=None, epoch=0, views="", balance=""):
    """The batches of one epoch.

    seed     None: every picture once, in order (evaluation). A number: a new order in each epoch,
             without the last, incomplete batch, so that batch norm never meets a single picture
    views    "": pictures as they are. "cropped": at random, after padding by an eighth of the side;
             "mirrored": also left to right; "turned": in all flips and turns of the square
    balance  "cells": every class x group cell equally often (drawn with replacement), not every
             picture once; "groups" or "classes": every group, or every class
    Raises InputError when there are fewer training pictures than one batch holds.
    """
    n, (height, width) = len(split), split.store.shape[1:3]
    if seed is not None:
        refuse_batch(batch_size, n)
    ## All random numbers of the epoch come from (seed, epoch), before the first batch.
    rng = np.random.default_rng((seed or 0, epoch))
    order = np.arange(n) if seed is None else rng.permutation(n)
    if balance:
        order = balanced_order(cells_of(split, balance), rng)
    pad = height // 8 if views else 0
    flip = rng.random(n) < (0.5 if views in ("mirrored", "turned") else 0)  # (N,)
    shift = rng.integers(-pad, pad + 1, (2, n))  # (2, N) down and right
    upside, turned = rng.random((2, n)) < (0.5 if views == "turned" else 0)  # (N,) each
    where, device = split.store.device, split.labels.device
    arrays = order, flip, upside, turned, shift
    order, flip, upside, turned, (down, right) = (torch.from_numpy(a).to(where) for a in arrays)

    pixels = split.store.view(-1, 3)  # (M·H·W, 3)
    line, column = torch.arange(height, device=where), torch.arange(width, device=where)
    ## One long row per line of pixels, because operations on rows of three numbers are slow.
    mean, std = (t.flatten().repeat(width) for t in (split.mean, split.std))  # (3·W,)
    for step in range(math.ceil(n / batch_size) if seed is None else n // batch_size):
        now = slice(step * batch_size, (step + 1) * batch_size)
        index = order[now]  # (B,)
        if views:
            ## One gather of pixels crops and flips the whole batch. Coordinates beyond the edge are
            ## clamped to it, which repeats the pixels of the edge: a black border instead would
            ## tell the network how far the picture was shifted.
            lines = (line + down[now, None]).clamp(0, height - 1)  # (B, H)
            columns = (column + right[now, None]).clamp(0, width - 1)  # (B, W)
            columns = torch.where(flip[now, None], columns.flip(1), columns)
            starts = (split.rows[index, None] * height + lines) * width  # (B, H) of each line
            places = starts[:, :, None] + columns[:, None, :]  # (B, H, W), rows of `pixels`
            if views == "turned":  # pictures are square
                places = torch.where(upside[now, None, None], places.flip(1), places)
                places = torch.where(turned[now, None, None], places.mT, places)
            images = pixels.index_select(0, places.flatten()).view(-1, height, width, 3)
        else:
            images = split.store[split.rows[index]]  # (B, H, W, 3)
        if split.masks is not None:  # cropped and flipped by the very same places
            masks = split.masks.view(-1)[places] if views else split.masks[split.rows[index]]
        if device.type == "cuda" and where.type == "cpu":
            images = images.pin_memory()
        images = images.to(device, non_blocking=True).view(len(index), height, 3 * width)
        images = images.float().sub_(mean).div_(std).view(len(index), height, width, 3)
        images = images.permute(0, 3, 1, 2)  # (B, 3, H, W), "channels last" in memory: faster
        index = index.to(device, non_blocking=True)
        labels = split.labels[index] if split.masks is None else (masks.to(device) > 0).long()
        yield Batch(images, labels, split.groups[index], index, epoch, step)


# ===== LOADING A DATA SET =========================================================================


def reader_of(name):
    """The module of the data set `name`: its DEFAULTS and its function `read`."""
    return importlib.import_module(f"datasets.{name.replace('-', '_')}")


def defaults(name, task="classify"):
    """What a run on the data set `name` uses where its command line says nothing: a dict."""
    reader = reader_of(name)
    if task == "segment" and not hasattr(reader, "SEGMENT"):
        able = [name for name in DATASETS if hasattr(reader_of(name), "SEGMENT")]
        raise InputError(f"--task segment needs masks, {name} has none: use {', '.join(able)}")
    return reader.DEFAULTS | (reader.SEGMENT if task == "segment" else {})


def manual(name):
    """What whoever uses a student of the data set `name` has to know: texts by name."""
    licence = reader_of(name).__doc__.partition("\nLICENCE. ")[2].partition("\n\n")[0]
    pixels = (
        "upright as EXIF says, RGB, over white where it is transparent, the centre square, scaled "
        "to size x size (bilinear, antialiased), pixels from 0 to 255, then (pixel - mean) / std"
    )
    return {"preprocessing": pixels, "licence": " ".join(licence.split())}


def load(name, root=None, size=None, *, device="cpu", **choices):
    """The data set `name`, one of DATASETS, in the folder `root`, as Data.

    size     pixels per side
    device   where batches shall be
    choices  target, sensitive, fold, task, skip_bad and more: see datasets.read_table
    Raises InputError, in one sentence, for anything wrong with folder, table or pictures.
    """
    from datasets import read_table  # not at the top, because datasets imports this file

    table, device = read_table(name, root, size, **choices), torch.device(device)
    with warnings.catch_warnings():  # of torch, that nobody must write into a file that is read
        warnings.simplefilter("ignore", UserWarning)
        store = torch.from_numpy(table.images)  # (M, H, W, 3) uint8
        masks = None if table.masks is None else torch.from_numpy(table.masks)
    if device.type == "cuda" and store.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        store = store.to(device)  # everything lives on the device where it fits
    every = Split(
        store,
        torch.arange(len(store), device=store.device),
        torch.from_numpy(table.labels).to(device),
        torch.from_numpy(table.groups).to(device),
        table.ids,
        table.subjects,
        masks=None if masks is None else masks.to(store.device),
    )
    train = torch.from_numpy(np.flatnonzero(table.split == "train"))
    some = store[train[:: math.ceil(len(train) / 2000)]].float()  # enough for 3 means, 3 deviations
    every.mean = some.mean(dim=(0, 1, 2))[:, None, None].to(device)
    every.std = some.std(dim=(0, 1, 2))[:, None, None].clamp(min=1).to(device)
    splits = {part: every.subset(table.split == part) for part in ("train", "val", "test")}
    pixel_classes = None if table.masks is None else ["background", table.inside]
    names = table.classes, table.group_names
    return Data(name, *names, store.shape[1], splits, table.notes, pixel_classes)
