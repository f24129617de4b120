"""Readers: one function for each kind of data set, from a folder as users have it to a `Table`.

A reader opens no picture. It says which files there are, their labels, groups and split, and what
it left out and why; `decode_all` then makes one file of pixels of them.

To add a data set: write one reader and enter it in `DATASETS` at the end.
"""

import collections
import concurrent.futures
import contextlib
import csv
import difflib
import hashlib
import itertools
import json
import os
import platform
import random
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: everything works, but two processes must not share one run
    fcntl = None

CACHE_VERSION = 1  # raised when pictures are decoded differently, so that old files are not used


class InputError(ValueError):
    """Something the reader gave us is wrong; the message says what, where, and what to do."""


@dataclass
class Table:
    """What a folder holds, one entry for each picture."""

    files: list  # paths; None where the picture is missing
    ids: list  # unique names
    labels: np.ndarray  # (N,) int64 codes into classes
    groups: np.ndarray  # (N,) int64 codes into group_names
    subjects: np.ndarray  # (N,) texts: pictures of one lesion or person never part
    split: np.ndarray  # (N,) texts train / val / test, or "" = not used
    classes: list
    group_names: list
    notes: dict = field(default_factory=dict)  # what was left out and why, with counts
    images: np.ndarray = None  # (N, H, W, 3) uint8 where no picture file is to be decoded
    views: list = None  # N tuples, what `decode` is told besides file and size: (box, in grey?)


# ==================================================================================================
# What readers share
# ==================================================================================================


def read_rows(path, columns):
    """The rows of a table with a header, as dicts; commas or tabs, with or without a BOM."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            delimiter = "\t" if "\t" in handle.readline() else ","
            handle.seek(0)
            reader = csv.DictReader(handle, delimiter=delimiter)
            header, rows = reader.fieldnames or ["nothing"], list(reader)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the table as CSV (UTF-8)") from None
    except csv.Error as error:
        raise InputError(f"{path} is no table ({error}): look for a quote without an end") from None
    missing = [c for c in columns if c not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}: it needs {', '.join(columns)} and has "
            f"{', '.join(header)}"
        )
    if not rows:
        raise InputError(f"{path} has a header but no rows: fill it in")
    for line, row in enumerate(rows, 2):
        if None in row or any(row[c] is None for c in columns):
            few = "more" if None in row else "fewer"
            raise InputError(f"{path}, line {line}: {few} fields than the header has columns")
    ids, counts = np.unique([row[columns[0]] for row in rows], return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{path} names '{ids[counts.argmax()]}' {counts.max()} times ({(counts > 1).sum()} "
            "names are not unique): keep one row for each picture"
        )
    return rows


def codes(values, names):
    """Texts as codes into `names`, (N,) int64."""
    place = {name: k for k, name in enumerate(names)}
    return np.array([place[v] for v in values], dtype=np.int64)


def make_folder(path):
    """The folder `path`, made if need be; a clear sentence where nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(0, "it is read-only")
    except OSError as error:
        raise InputError(f"cannot write to the folder {path} ({error.strerror}): choose another "
                         "--out") from None  # fmt: skip


def contents(folder):
    """The first names in a folder, for an error message."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:5]) or "nothing"


def near(name, known, cutoff=0.6):
    """The names in `known` most like `name`, as a text for an error message; "" if none is."""
    return ", ".join(difflib.get_close_matches(name, known, 3, cutoff))


def find(root, name, page):
    """The file or folder `name` in `root` or in one of its folders; `page` is where to get it."""
    for place in sorted([*root.glob(name), *root.glob(f"*/{name}")]):
        return place
    above = [folder for folder in (root.parent, root.parent.parent) if (folder / name).exists()]
    raise InputError(
        f"{root} has no {name} (it holds {contents(root)}): "
        + (f"it is in {above[0]}, pass that folder as --data-dir" if above else
           f"get it from {page} and unpack it there")
    )  # fmt: skip


def refuse_choices(name, fold, target="label", sensitive="group"):
    """For data sets that come in one way only, or (without the last two) with one split only."""
    if fold is not None:
        raise InputError(f"{name} has one split, its own: leave out --fold")
    if (target, sensitive) != ("label", "group"):
        raise InputError(f"{name} has one label and one group: leave out --target, --sensitive")


def split_by_subject(subjects, fold, shares=(0.7, 0.1, 0.2), seed=0):
    """(N,) of "train" / "val" / "test", whole subjects at a time.

    Without a fold: `shares` of the subjects. Fold k in 0..4: the subjects are dealt into five
    parts; part k is the test set and an eighth of the rest (a tenth of all) the validation set, so
    that five runs test every picture once.
    """
    names = np.unique(subjects)
    names = names[np.random.RandomState(seed).permutation(len(names))]
    if fold is None:
        n_test, n_val = round(shares[2] * len(names)), round(shares[1] * len(names))
        test, val = names[:n_test], names[n_test : n_test + n_val]
    else:
        test = np.array_split(names, 5)[fold]
        rest = names[~np.isin(names, test)]
        val = rest[: len(rest) // 8]
    split = np.where(np.isin(subjects, val), "val", "train")
    split[np.isin(subjects, test)] = "test"
    return split


# ==================================================================================================
# Files that are whole or absent
# ==================================================================================================


@contextlib.contextmanager
def atomic(path):
    """A temporary name beside `path`, renamed to it if the block ends well and removed if not.

    Raises InputError where it cannot be written; a file that was there before stays as it was.
    """
    path = Path(path)
    make_folder(path.parent)
    sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        ## On the disk before it gets its name, and the name before anybody relies on it: after a
        ## power cut, too, there is the old file or the new one, whole.
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        if fcntl:
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:  # a full disk, a quota, a folder that has become read-only
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room, or choose another "
            "folder, and start again; what was complete before is still there"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder):
    """Remove the temporary files that killed processes of this machine have left in a folder."""
    for file in folder.glob(f".*.{platform.node()}.*.tmp") if fcntl else ():
        try:
            os.kill(int(file.suffixes[-2][1:]), 0)  # no signal, only the question who is alive
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except (PermissionError, ValueError, OverflowError):
            pass  # somebody else's process; not a file of ours


@contextlib.contextmanager
def locked(path, wait=True):
    """One process at a time for `path`: others wait, or with wait=False get False instead of True.

    A killed process leaves no lock behind.
    """
    path = Path(path)
    make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        held = True
        try:
            handle = stack.enter_context(open(lock, "w"))
            for _ in range(10 if wait else 1):  # half a second in silence
                try:
                    if fcntl:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05 * wait)
            else:
                held = wait
                if wait:
                    print(f"another process works on {path}: waiting for its end", flush=True)
                    fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(
                f"{lock} cannot be locked ({error.strerror}): choose another folder"
            ) from None
        yield held


# ==================================================================================================
# From a picture file to pixels, once
# ==================================================================================================


def in_grey(images):
    """(..., 3) uint8 in grey: all three channels are the brightness, as PIL rounds it (mode L)."""
    red, green, blue = (images[..., k].astype(np.uint32) for k in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # 0.299, 0.587, 0.114 of 2¹⁶
    return np.repeat(luma[..., None].astype(np.uint8), 3, axis=-1)


def decode(file, size, box=None, grey=False):
    """One picture as (size, size, 3) uint8: upright, RGB, the centre square, antialiased.

    box: (left, top, right, bottom), to see only that part of it; grey: without its colours.
    """
    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey: convert() would clip nearly all to white
            image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
        image = image.convert("RGB").crop(box) if box else image.convert("RGB")
        square = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return in_grey(square) if grey else square


def decode_all(table, size, folder, skip_bad):
    """All pictures of a table, decoded once: memory-mapped (N, size, size, 3) uint8; {id: fault}.

    The file is keyed by names, file sizes, side, views and CACHE_VERSION, and appears only when
    complete.
    Raises InputError, naming a picture that cannot be read, unless `skip_bad`.
    """
    sizes = [os.path.getsize(f) if f else -1 for f in table.files]
    views = table.views or [()] * len(sizes)
    key = json.dumps([CACHE_VERSION, size, table.ids, sizes] + ([views] if table.views else []))
    folder = folder if os.access(folder, os.W_OK) else Path("runs")  # a read-only data folder
    path = folder / f"decoded-{size}px-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    faults_path = path.with_suffix(".json")
    with locked(path):
        if not (path.exists() and faults_path.exists()):
            start, faults = time.time(), {}
            with atomic(path) as temporary:
                shape = (len(table.ids), size, size, 3)
                images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
                    ## The file has a length but no place yet. On a full disk a write to its memory
                    ## would end the process with SIGBUS; asked for now, it is an error with a name.
                    with open(temporary, "rb+") as handle:
                        os.posix_fallocate(handle.fileno(), 0, os.path.getsize(temporary))

                def work(n):
                    try:
                        if table.files[n] is None:
                            raise FileNotFoundError("no such file")
                        images[n] = decode(table.files[n], size, *views[n])
                    except Exception as why:  # decoders raise all kinds of errors
                        faults[table.ids[n]] = str(why)

                with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                    todo = pool.map(work, range(len(table.ids)))
                    list(tqdm(todo, "decoding", len(table.ids), leave=False, disable=None))
                images.flush()
                refuse_faults(faults, len(table.ids), skip_bad)
                with atomic(faults_path) as note:
                    note.write_text(json.dumps(faults))
            print(f"decoded {len(table.ids)} pictures in {time.time() - start:.1f} s into {path}")
    try:
        faults = json.loads(faults_path.read_text())
        images = np.lib.format.open_memmap(path, "c")  # "c": torch wants to write, the file stays
        if (images.shape, images.dtype) != ((len(table.ids), size, size, 3), np.uint8):
            raise ValueError(f"it holds {images.dtype} {images.shape}")
        if not isinstance(faults, dict) or not faults.keys() <= set(table.ids):
            raise ValueError("its list of faults is another's")
    except (OSError, EOFError, ValueError) as error:  # cut short, or not ours
        raise InputError(
            f"{path} is damaged ({error}): delete it, the pictures are then decoded again"
        ) from None
    refuse_faults(faults, len(table.ids), skip_bad)
    return images, faults


def refuse_faults(faults, total, skip_bad):
    """Raises InputError for unreadable pictures {id: fault}, naming one, unless `skip_bad`."""
    if faults and not skip_bad:
        name = min(faults)
        raise InputError(
            f"{len(faults)} of {total} pictures cannot be read, the first is {name} "
            f"({faults[name]}): mend or replace them, or leave them out with --skip-bad"
        )


# ==================================================================================================
# HAM10000
# ==================================================================================================

HAM_PAGE = "https://doi.org/10.7910/DVN/DBW86T"
HAM_SERVER = "https://dataverse.harvard.edu/api/access/datafile/"
HAM_FILES = {  # name: (number at Harvard Dataverse, MD5 that Dataverse publishes)
    "HAM10000_metadata.csv": ("4338392?format=original", "8f85fb1aa29d80a2797247e434deb79d"),
    "HAM10000_images_part_1.zip": ("3172585", "4639bfa73ab251610530a97c898e6e46"),
    "HAM10000_images_part_2.zip": ("3172584", "da43d6cc50f6613013be07e8986b384b"),
}
HAM_CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
HAM_TARGETS = {"malignant": ["akiec", "mel"], "malignant+bcc": ["akiec", "mel", "bcc"], "dx": None}
HAM_GROUPS = {  # attribute: names of its groups, and the group of a row
    "sex": (["female", "male"], lambda row: row["sex"]),
    "age": (["age<=60", "age>60"], lambda row: "age>60" if row["age"] > 60 else "age<=60"),
}


def download_ham10000(root):
    """Fetch HAM10000 (about 2.7 GB) from its owner, check the MD5 sums, unpack into `root`."""
    from torchvision.datasets.utils import download_url

    for name, (number, md5) in HAM_FILES.items():
        if name.endswith(".csv") and (root / name).exists():
            continue  # the reader's own table stays
        try:
            download_url(HAM_SERVER + number, root, name, md5)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{name} cannot be downloaded ({error}): get it from {HAM_PAGE} and put it into "
                f"{root}"
            ) from None
        if name.endswith(".zip"):
            with zipfile.ZipFile(root / name) as archive:
                for member in archive.infolist():
                    member.filename = Path(member.filename).name  # no folders: nothing can leave
                    if member.filename.endswith(".jpg"):
                        archive.extract(member, root / Path(name).stem)


def read_ham10000(root, target, sensitive, fold, download):
    """HAM10000 (Tschandl et al., 2018): 10,015 dermatoscopic pictures of 7,470 lesions.

    The protocol of MEDFAIR (Zong et al., 2023): malignant = akiec + mel; rows with unknown sex or
    without age are left out, 9,948 pictures remain; lesions are split 80/10/10. Old is over 60.
    """
    if download:
        download_ham10000(root)
    names = [f"HAM10000_metadata{ending}" for ending in (".csv", ".tab", "")]
    table = next((root / n for n in names if (root / n).is_file()), None)
    if table is None:
        places = [*root.glob("*/HAM10000_metadata*"), *root.parent.glob("HAM10000_metadata*")]
        near = [p.parent for p in places if p.is_file()]
        raise InputError(
            f"{root} has no HAM10000_metadata.csv (it holds {contents(root)}): "
            + (f"it is in {near[0]}, pass that folder as --data-dir" if near else
               f"get it and the pictures from {HAM_PAGE}, or add --download (2.7 GB)")
        )  # fmt: skip
    if target not in HAM_TARGETS:
        raise InputError(f"--target {target!r} is unknown: choose one of {', '.join(HAM_TARGETS)}")
    attributes = sensitive.split("+")
    if not set(attributes) <= set(HAM_GROUPS) or len(set(attributes)) < len(attributes):
        raise InputError(f"--sensitive {sensitive!r} is unknown: choose sex, age or sex+age")

    rows = read_rows(table, ["image_id", "lesion_id", "dx", "age", "sex"])
    rows.sort(key=lambda row: row["image_id"])
    for row in rows:
        where = f"{table}, picture {row['image_id']}"
        if row["sex"] not in ("male", "female", "unknown", ""):
            raise InputError(f"{where}: sex is {row['sex']!r}, but must be male, female or unknown")
        if row["dx"] not in HAM_CLASSES:
            raise InputError(f"{where}: dx is {row['dx']!r}, but must be one of {HAM_CLASSES}")
        try:
            age = float(row["age"]) if row["age"] not in ("", "unknown") else None
        except ValueError:
            age = -1
        if age is not None and not 0 <= age <= 130:  # NaN, too
            raise InputError(f"{where}: age is {row['age']!r}, but must be a number of years")
        row["age"] = age
    found = {p.stem: p for pattern in ("*.jpg", "*/*.jpg") for p in root.glob(pattern)}
    ids = [row["image_id"] for row in rows]
    if not any(i in found for i in ids):
        raise InputError(
            f"{root} has the table but none of its pictures, such as {ids[0]}.jpg: put them into "
            f"{root / 'HAM10000_images_part_1'} and _part_2, or add --download (2.7 GB)"
        )

    positive = HAM_TARGETS[target]
    classes = ["benign", "malignant"] if positive else HAM_CLASSES
    labels = [classes[row["dx"] in positive] if positive else row["dx"] for row in rows]
    used = np.array([row["sex"] in ("male", "female") and row["age"] is not None for row in rows])
    group_names = HAM_GROUPS[attributes[0]][0]
    for attribute in attributes[1:]:  # crossed attributes: every combination is a group
        group_names = [f"{a} {b}" for a in group_names for b in HAM_GROUPS[attribute][0]]
    groups = [
        " ".join(HAM_GROUPS[a][1](row) for a in attributes) if u else group_names[0]
        for row, u in zip(rows, used)
    ]
    lesions = np.array([row["lesion_id"] for row in rows])
    if fold is None:
        ## The published split: a fifth of the shuffled lesions goes off, and half of that, shuffled
        ## once more, is the test set (scikit-learn's train_test_split, random_state=0, used twice).
        off = np.unique(lesions[used])
        off = off[np.random.RandomState(0).permutation(len(off))][: -(-len(off) // 5)]
        test = off[np.random.RandomState(0).permutation(len(off))][: -(-len(off) // 2)]
        split = np.where(np.isin(lesions, off), "val", "train")
        split[np.isin(lesions, test)] = "test"
    else:
        split = np.full(len(rows), "train", dtype="<U5")
        split[used] = split_by_subject(lesions[used], fold)
    notes = {
        "rows": len(rows),
        "left out: sex unknown or age missing": int((~used).sum()),
        "kept: age 0, probably not recorded": sum(
            row["age"] == 0 for row, u in zip(rows, used) if u
        ),
    }
    return Table(
        [found.get(i) for i in ids], ids, codes(labels, classes), codes(groups, group_names),
        lesions, np.where(used, split, ""), classes, group_names, notes,
    )  # fmt: skip


# ==================================================================================================
# CIFAR10-S
# ==================================================================================================

CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def cifar10_folders(root):
    """Files and labels of both parts of CIFAR-10, from class folders: train/cat/1.png, ..."""
    files, labels = {}, {}
    for part in ("train", "test"):
        there = {p.name: p for p in sorted((root / part).glob("[!.]*"))}
        for name in set(CIFAR_CLASSES) - set(there):
            raise InputError(f"{root / part} has no folder {name!r}: it needs one for each class")
        for name in set(there) - set(CIFAR_CLASSES):
            raise InputError(
                f"{there[name]} is in none of the folders {', '.join(CIFAR_CLASSES)}: move it into "
                "the folder of its class, or away"
            )
        ## Shorter names first: 2.png comes before 10.png, as in the official order.
        order = lambda p: (len(p.name), p.name)
        lists = [sorted(there[name].glob("[!.]*"), key=order) for name in CIFAR_CLASSES]
        files[part] = [file for names in lists for file in names]
        labels[part] = np.repeat(np.arange(10), [len(names) for names in lists])
    return files, labels


def cifar10_batches(root, download):
    """Pixels and labels of both parts of CIFAR-10, from the official batches, checked by MD5."""
    from torchvision.datasets import CIFAR10

    try:
        parts = {
            part: CIFAR10(root, part == "train", download=download) for part in ("train", "test")
        }
    except (OSError, RuntimeError) as error:
        what = "cannot be downloaded" if download else "is damaged or incomplete"
        raise InputError(
            f"{root / 'cifar-10-batches-py'} {what} ({str(error).splitlines()[0]}): get the python "
            f"version from {CIFAR_PAGE} and unpack it in {root}, or add --download (170 MB)"
        ) from None
    return (
        {part: data.data for part, data in parts.items()},
        {part: np.array(data.targets) for part, data in parts.items()},
    )


def read_cifar10s(root, target, sensitive, fold, download, skew):
    """CIFAR10-S (Wang et al., 2020): CIFAR-10, in which some pictures have lost their colours.

    Of each class a share `skew` of the training pictures is in its usual style: grey for airplane,
    bird, deer, frog and ship, colour for the others. The test pictures are there in both styles.
    Wang et al. have no validation split; ours is a tenth of each class and style in training.
    """
    refuse_choices("cifar10s", fold, target, sensitive)
    if not 0 < skew < 1:
        raise InputError(f"--skew {skew} must lie between 0 and 1, such as 0.95")
    folders = any((root / part).is_dir() for part in ("train", "test"))
    if folders:
        sources, labels = cifar10_folders(root)
    elif download or (root / "cifar-10-batches-py").is_dir():
        sources, labels = cifar10_batches(root, download)
    else:
        places = [root.parent, root.parent.parent, *sorted(root.glob("*"))]
        there = lambda place, name: (place / name).is_dir()
        near = [p for p in places if there(p, "cifar-10-batches-py") or there(p, "train/cat")]
        raise InputError(
            f"{root} has neither cifar-10-batches-py nor train and test (it holds "
            f"{contents(root)}): "
            + (f"pass {near[0]} as --data-dir" if near else
               f"get the python version from {CIFAR_PAGE}, or add --download (170 MB)")
        )  # fmt: skip

    ## The published draw: a seed of 42, then class by class in the order of the labels.
    draw, rng = random.Random(42), np.random.RandomState(0)
    grey, split = np.zeros(len(labels["train"]), bool), np.full(len(labels["train"]), "train")
    for c in range(10):
        mine = np.flatnonzero(labels["train"] == c)
        usual = np.isin(mine, mine[draw.sample(range(len(mine)), int(skew * len(mine)))])
        grey[mine] = usual if c % 2 == 0 else ~usual
        for cell in (mine[usual], mine[~usual]):
            split[rng.permutation(cell)[: round(len(cell) / 10)]] = "val"

    n, tests = len(grey), len(labels["test"])
    place = np.concatenate([np.arange(n), np.tile(np.arange(n, n + tests), 2)])  # test: twice
    grey = np.concatenate([grey, np.repeat([False, True], tests)])
    if folders:
        files = sources["train"] + sources["test"]
        names = [file.relative_to(root).as_posix() for file in files]
    else:
        files = [None] * (n + tests)
        names = [f"{part}/{k:05}" for part in ("train", "test") for k in range(len(labels[part]))]
    subjects = np.array(names)[place]  # the two copies of a test picture are one subject
    table = Table(
        [files[k] for k in place],
        [f"{name} {'grey' if g else 'colour'}" for name, g in zip(subjects, grey)],
        np.concatenate([labels["train"], labels["test"]])[place], grey.astype(np.int64),
        subjects, np.concatenate([split, np.full(2 * tests, "test")]),
        CIFAR_CLASSES, ["colour", "grey"],
        {"training pictures": n, "of them in grey": int(grey[:n].sum()),
         "of them held out for validation": int((split == "val").sum())},
    )  # fmt: skip
    if folders:
        table.views = [(None, bool(g)) for g in grey]
    else:
        table.images = np.concatenate([sources["train"], sources["test"]])[place]
        table.images[grey] = in_grey(table.images[grey])
    return table


# ==================================================================================================
# CelebA
# ==================================================================================================

CELEBA_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def celeba_list(path, lines, width, keep=(0,)):
    """{picture: the fields `keep` of its line}; each line is a picture and `width` numbers."""
    rows = {}
    for n, line in lines:
        name, *fields = line.split() or [""]
        if len(fields) != width or not all(f.removeprefix("-").isdecimal() for f in fields):
            raise InputError(
                f"{path}, line {n}: not a picture and {width} numbers, the file is cut off or "
                f"damaged: get it anew from {CELEBA_PAGE}"
            )
        rows[name] = [int(fields[k]) for k in keep]
    return rows


def read_celeba(root, target, sensitive, fold, download):
    """CelebA (Liu et al., 2015): faces with 40 attributes; official split; subjects are persons.

    --target and --sensitive: any attributes, crossed with +, such as Male+Young (four groups).
    Copies with a part of the pictures or of the rows are welcome: what is missing is counted.
    """
    refuse_choices("celeba", fold)
    path = find(root, "list_attr_celeba.txt", CELEBA_PAGE)
    count, header, *lines = [*path.read_text(errors="replace").strip().split("\n"), "", ""]
    known, lines = header.split(), lines[:-2]
    if count.strip() != str(len(lines)):
        raise InputError(
            f"{path} has {len(lines)} rows, but its first line says {count.strip()[:20]!r}: it is "
            f"cut off, get it anew from {CELEBA_PAGE}; or write there how many you want"
        )
    chosen = {"target": target.split("+"), "sensitive": sensitive.split("+")}
    for flag, name in ((flag, name) for flag, names in chosen.items() for name in names):
        if name not in known:
            raise InputError(
                f"--{flag} {name!r} is no attribute of CelebA: did you mean {near(name, known, 0)}?"
            )
    both = chosen["target"] + chosen["sensitive"]
    if len(set(both)) < len(both):
        raise InputError(f"--target {target} --sensitive {sensitive}: name each attribute once")
    keep = [known.index(name) for name in both]
    rows = celeba_list(path, enumerate(lines, 3), len(known), keep)

    folder = find(root, "img_align_celeba", CELEBA_PAGE)
    if (folder / folder.name).is_dir():  # as some programs unpack it
        folder = folder / folder.name
    found = {name for name in os.listdir(folder) if name.endswith(".jpg")}
    ids = sorted(found & set(rows))
    if not ids:
        raise InputError(
            f"{folder} has none of the pictures of {path.name}, such as {next(iter(rows), '?')} "
            f"(it holds {contents(folder)}): put them there"
        )
    path = find(root, "list_eval_partition.txt", CELEBA_PAGE)
    parts = celeba_list(path, enumerate(path.read_text(errors="replace").splitlines(), 1), 1)
    wrong = [i for i in ids if parts.get(i) not in ([0], [1], [2])]
    if wrong:
        raise InputError(f"{path} does not say 0, 1 or 2 for {wrong[0]}, nor for "
                         f"{len(wrong) - 1} others: get it anew from {CELEBA_PAGE}")  # fmt: skip
    persons = {}
    for path in [*root.glob("identity_CelebA.txt"), *root.glob("*/identity_CelebA.txt")]:
        persons = celeba_list(path, enumerate(path.read_text(errors="replace").splitlines(), 1), 1)

    positive = np.array([rows[i] for i in ids]) == 1  # (N, attributes)
    n = len(chosen["target"])
    code = lambda bits: bits @ 2 ** np.arange(bits.shape[1])[::-1]  # the first one counts most
    names = lambda a: [", ".join(v) for v in itertools.product(*((f"not {x}", x) for x in a))]
    return Table(
        [folder / i for i in ids], ids, code(positive[:, :n]), code(positive[:, n:]),
        np.array([str(persons[i][0]) if i in persons else i for i in ids]),
        np.array([("train", "val", "test")[parts[i][0]] for i in ids]),
        names(chosen["target"]), names(chosen["sensitive"]),
        {"left out: rows without a picture": len(set(rows) - found),
         "left out: pictures without a row": len(found - set(rows)),
         "pictures of unknown persons": sum(i not in persons for i in ids)},
    )  # fmt: skip


# ==================================================================================================
# WIDER Attribute
# ==================================================================================================

WIDER_PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html"
WIDER_CLASSES = {  # the classes of Bolner et al., and the numbers of their events in folder names
    "Team Sports": [35, 36, 37, 58],
    "Celebration": [6, 17, 50],
    "Parade": [0],
    "Waiter or Waitress": [31],
    "Individual Sports": [33, 39, 44],
    "Surgeons": [30],
    "Spa": [27],
    "Law Enforcement": [3, 25],
    "Business": [1, 11, 15],
    "Dresses": [51],
    "Water Activities": [43, 57],
    "Picnic": [22],
    "Rescue": [54],
    "Cheering": [7, 28],
    "Performance and Entertainment": [4, 18],
    "Family": [19, 20],
}


def wider_images(path, parts):
    """(split, event, file name, [(gender, box) of each person]) of each image in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON ({error}), perhaps cut off: get it anew from {WIDER_PAGE}"
        ) from None
    images = content.get("images") if isinstance(content, dict) else None
    if not images or not isinstance(images, list):
        raise InputError(f"{path} has no list 'images': get it anew from {WIDER_PAGE}")
    for n, image in enumerate(images):
        try:
            part, folder, _ = image["file_name"].split("/")
            event = int(folder.partition("--")[0])
            people = [(t["attribute"][0], tuple(map(float, t["bbox"]))) for t in image["targets"]]
            right = part in parts and event in {e for c in WIDER_CLASSES.values() for e in c}
            right &= all(gender in (-1, 0, 1) and len(box) == 4 for gender, box in people)
            fault = f"{image['file_name']} with {len(people)} people"
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            right, fault = False, f"{type(error).__name__}: {error}"
        if not right:
            raise InputError(
                f"{path}, image {n} ({fault}): it needs 'file_name' like {parts[0]}/0--Parade/1.jpg"
                " and 'targets', each with 'attribute' (first -1, 0 or 1) and 'bbox' (4 numbers)"
            )
        yield part, event, image["file_name"], people


def read_wider(root, target, sensitive, fold, download):
    """WIDER Attribute (Li et al., 2016): 30 kinds of events in 16 classes; official split.

    --target event: whole images. An image is male when at least half of its people of known gender
    are men: ties are male, as in the code of Bolner et al., which counts everyone of unknown gender
    as a woman, too. Here an image without anyone of known gender is left out.
    --target event-person: each person of known gender, in a square that holds the whole person.
    """
    refuse_choices("wider", fold)
    if target not in ("event", "event-person") or sensitive != "gender":
        raise InputError("wider knows --target event or event-person, and --sensitive gender")
    class_of = {e: c for c, events in enumerate(WIDER_CLASSES.values()) for e in events}
    folder, notes = find(root, "Image", WIDER_PAGE), collections.Counter()
    rows = []  # (id, file name, split, label, is it male?, view)
    for name, parts in {"trainval": ("train", "val"), "test": ("test",)}.items():
        path = find(root, f"wider_attribute_{name}.json", WIDER_PAGE)
        for part, event, name, people in wider_images(path, parts):
            known = [(gender == 1, box) for gender, box in people if gender != 0]
            men = sum(male for male, _ in known)
            notes["images"] += 1
            notes["people"] += len(people)
            notes["people of unknown gender, not counted"] += len(people) - len(known)
            notes["left out: images without anyone of known gender"] += not known
            notes["images with as many men as women"] += len(known) == 2 * men > 0
            row = (name, part, class_of[event])
            if target == "event" and known:
                rows.append((name, *row, 2 * men >= len(known), ()))
            elif target == "event-person":
                for k, (male, (x, y, w, h)) in enumerate(known):
                    ## The square around a standing person shows more of the scene beside it.
                    left, top, side = x + (w - max(w, h)) / 2, y + (h - max(w, h)) / 2, max(w, h)
                    box = tuple(map(round, (left, top, left + side, top + side)))
                    rows.append((f"{name} person {k}", *row, male, (box,)))
    ids, names, split, labels, groups, views = map(list, zip(*rows)) if rows else ([],) * 6
    if len(set(ids)) < len(ids):
        twice = collections.Counter(ids).most_common(1)[0][0]
        raise InputError(f"{root}: {twice} is there twice, get the JSON anew from {WIDER_PAGE}")
    files = [path if path.is_file() else None for path in (folder / name for name in names)]
    if not any(files):
        raise InputError(
            f"{folder} has none of the images, such as {names[0] if names else 'any'} (it holds "
            f"{contents(folder)}): get them from {WIDER_PAGE} and unpack them there"
        )
    return Table(
        files, ids, np.array(labels), np.array(groups, dtype=np.int64), np.array(names),
        np.array(split), list(WIDER_CLASSES), ["female", "male"], dict(notes),
        views=views if any(views) else None,
    )  # fmt: skip


# ==================================================================================================
# The reader's own pictures
# ==================================================================================================


def read_csv(root, target, sensitive, fold, download):
    """`labels.csv` in the folder: columns file,label,group and, if wanted, split and subject.

    Labels and groups are texts or numbers, pictures have any size. Without `split`: 70/10/20 by
    subject, or by picture when there is no `subject`. --target and --sensitive name other columns.
    """
    table = root / "labels.csv"
    if not table.is_file():
        raise InputError(
            f"{root} has no labels.csv (it holds {contents(root)}): write one with the columns "
            "file,label,group and, if you like, split and subject"
        )
    rows = read_rows(table, ["file", target, sensitive])
    for line, row in enumerate(rows, 2):
        row.update({column: (value or "").strip() for column, value in row.items()})
        for column in ("file", target, sensitive):
            if not row[column]:
                raise InputError(f"{table}, line {line}: {column} is empty: fill it in")
        if not Path(os.path.abspath(root / row["file"])).is_relative_to(os.path.abspath(root)):
            raise InputError(
                f"{table}, line {line}: {row['file']} lies outside {root}: use names inside that "
                "folder"
            )

    def names(column):  # numbers in their own order, texts after them in the alphabet's
        bare = lambda v: v.removeprefix("-").replace(".", "", 1)
        number = lambda v: float(v) if bare(v).isdecimal() else float("inf")
        return sorted({row[column] for row in rows}, key=lambda v: (number(v), v))

    subjects = np.array([row.get("subject") or row["file"] for row in rows])
    if "split" in rows[0] and fold is None:
        split = np.array([row["split"].lower() for row in rows])
        wrong = set(split) - {"train", "val", "test"}
        if wrong:
            raise InputError(
                f"{table}: split '{min(wrong)}' is unknown: write train, val or test in every row, "
                "or leave the column out"
            )
        where = {}
        for subject, part in zip(subjects.tolist(), split.tolist()):
            if where.setdefault(subject, part) != part:
                raise InputError(
                    f"{table}: subject {subject!r} is in {where[subject]} and in {part}: keep each "
                    "subject in one split"
                )
    else:
        split = split_by_subject(subjects, fold)
    files = [root / row["file"] for row in rows]
    files = [file if os.path.isfile(file) else None for file in files]
    classes, group_names = names(target), names(sensitive)
    return Table(
        files, [row["file"] for row in rows], codes([row[target] for row in rows], classes),
        codes([row[sensitive] for row in rows], group_names), subjects, split, classes, group_names,
        {"rows": len(rows)},
    )  # fmt: skip


# ==================================================================================================
# The embedded data set
# ==================================================================================================


def draw_toy(seed, n, balanced):
    """`n` synthetic pictures: stars with 2 to 7 lobes (the class) in two styles (the group).

    Group 0 is a filled cyan star on dark ground, group 1 a red outline on light paper with a little
    more noise. Nine in ten stars with 2, 4 or 6 lobes are filled, nine in ten with 3, 5 or 7 are
    outlined, so that style is a shortcut to the class; with `balanced` it is one in two.
    Returns images (n, 32, 32, 3) uint8, labels (n,), groups (n,).
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random(n), kind="stable")
    labels, rank = order % 6, order // 6  # rank: place within the class
    groups = rank % 2 if balanced else (labels + (rank % 10 == 9)) % 2
    y, x = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    images, turn = np.empty((n, 32, 32, 3), np.uint8), 2 * np.pi
    for start in range(0, n, 500):  # in parts, so that little memory is needed
        now = slice(start, start + 500)
        lobes, filled = labels[now, None, None] + 2, groups[now, None, None] == 0

        def between(low, high, *shape, start=start):  # one draw for each picture of the part
            return low + (high - low) * rng.random((min(500, n - start), *(shape or (1, 1))))

        # the outline: a circle with one wave per lobe, bent a little by two slow waves
        right, down = x - between(13, 18), y - between(13, 18)
        angle = np.arctan2(down, right)
        wave = between(0.17, 0.35) * np.cos(lobes * angle + between(0, turn))
        wave += between(0, 0.05) * np.cos(2 * angle + between(0, turn))
        wave += between(0, 0.05) * np.cos(3 * angle + between(0, turn))
        depth = between(7.5, 10.5) * (1 + wave) - np.sqrt(right**2 + down**2)  # inside: > 0
        line = np.clip(1.6 - np.abs(depth - 0.5), 0, 1)
        ink = 0.55 * np.where(filled, np.clip(depth + 0.5, 0, 1), line)
        # a faint spot that means nothing, and light that falls off to one side, in both groups
        spot = np.sqrt((x - between(0, 32)) ** 2 + (y - between(0, 32)) ** 2) / between(2, 4)
        ink = np.maximum(ink, 0.19 * np.clip(1.5 - spot, 0, 1))[..., None]
        light = 0.006 * ((x - 15.5) * between(-1, 1) + (y - 15.5) * between(-1, 1))[..., None]

        filled = filled[..., None]
        paper = np.where(filled, (0.10, 0.16, 0.34), (0.93, 0.84, 0.68))
        paper = paper + between(-0.06, 0.06, 1, 1, 3)
        pen = np.where(filled, (0.45, 0.80, 0.85), (0.55, 0.22, 0.20))
        pen = pen + between(-0.15, 0.15, 1, 1, 3)
        picture = paper + light + (pen - paper) * ink
        noise = rng.random(picture.shape) + rng.random(picture.shape) - 1
        picture += np.where(filled, 0.17, 0.196) * noise  # standard deviation 0.07 or 0.08
        images[now] = np.rint(255 * np.clip(picture, 0, 1))
    return images, labels, groups


def read_toy(root, target, sensitive, fold, download, seed=0, balanced=("test",)):
    """6,000 / 1,500 / 3,000 synthetic pictures; the test set is balanced over class x group."""
    refuse_choices("toy", fold, target, sensitive)
    sizes = {"train": 6000, "val": 1500, "test": 3000}
    parts = [draw_toy(seed + k, n, part in balanced) for k, (part, n) in enumerate(sizes.items())]
    images, labels, groups = (np.concatenate(values) for values in zip(*parts))
    split = np.repeat(list(sizes), list(sizes.values()))
    ids = [f"{part}-{n:05}" for n, part in enumerate(split)]
    return Table(
        files=[None] * len(ids),
        ids=ids,
        labels=labels,
        groups=groups,
        subjects=np.array(ids),
        split=split,
        classes=[f"{lobes} lobes" for lobes in range(2, 8)],
        group_names=["filled", "outlined"],
        images=images,
    )


def read_toy_source(*where):
    """Other pictures by the toy's program, both styles equally often in every class and split: what
    a network for the toy can be pre-trained on, as others are on ImageNet.

    The classes are the toy's, so that a network which learnt them here is nearly fair, and to tune
    it on the skewed toy can spoil that: the case in which the choice of what is tuned matters.
    """
    return read_toy(*where, seed=10, balanced=("train", "val", "test"))


@dataclass
class Kind:
    """A kind of data set: its reader, and what a run uses where the command line says nothing."""

    read: object
    size: int
    teacher: str
    student: str
    target: str = "label"
    sensitive: str = "group"
    skew: float = None


DATASETS = {
    "toy": Kind(read_toy, 32, "convnet32", "convnet8"),
    "toy-source": Kind(read_toy_source, 32, "convnet32", "convnet8"),
    "ham10000": Kind(read_ham10000, 64, "resnet18", "shufflenet_v2_x0_5", "malignant", "sex"),
    "cifar10s": Kind(read_cifar10s, 32, "resnet18", "resnet18", skew=0.95),
    "celeba": Kind(read_celeba, 64, "resnet50", "resnet18", "Attractive", "Male"),
    "wider": Kind(read_wider, 224, "efficientnet_b3", "efficientnet_b0", "event", "gender"),
    "csv": Kind(read_csv, 64, "resnet18", "shufflenet_v2_x0_5"),
}
