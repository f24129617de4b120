"""What the files of this folder share, and how their tables get pixels.

Each of them is one data set, and all have the same order:

    manual     what it is, where to get it, how its files lie, labels, groups, split, licence
    DEFAULTS   what a run uses where its command line says nothing
    constants and helpers of this data set alone
    read       a function from the folder with the files to a Table

`read` opens no picture. It says which pictures there are, their labels, groups and split, and what
it left out and why; `decode_all` below decodes them. To add a data set, copy csv.py and change it.
"""

import concurrent.futures
import hashlib
import json
import os
import time
from csv import DictReader, Error  # not "import csv": datasets.csv is a module of this folder
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from data import InputError, locked, reader_of, replacing, restore, save

CACHE_VERSION = 1  # raised when pictures are decoded differently, so that old files are not used

# ===== TABLES, AND WHAT READERS NEED ==============================================================


@dataclass
class Table:
    """What a folder holds, one entry for each picture."""

    files: list  # paths; None where the picture is missing
    ids: list  # unique names
    labels: np.ndarray  # (N,) int64 codes into classes
    groups: np.ndarray  # (N,) int64 codes into group_names
    subjects: np.ndarray  # (N,) texts: pictures of one lesion or person stay in one split
    split: np.ndarray  # (N,) texts train / val / test, or "" = not used
    classes: list
    group_names: list
    notes: dict = field(default_factory=dict)  # what was left out and why, with counts
    images: np.ndarray = None  # (N, H, W, 3) uint8 where no picture file is to be decoded
    views: list = None  # N tuples, what `decode` is told besides file and size: (box, in grey?)

    def first_of_each_cell(self, most):
        """The table of the first `most` pictures of each split x class x group, for a quick try."""
        counts, rows = {}, []
        for n, cell in enumerate(zip(self.split, self.labels, self.groups)):
            counts[cell] = counts.get(cell, 0) + 1
            if cell[0] and counts[cell] <= most:
                rows.append(n)

        def some(values):
            return values[rows] if isinstance(values, np.ndarray) else [values[n] for n in rows]

        once = ("classes", "group_names", "notes")  # the same for all pictures
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in once}
        return replace(self, **{k: some(v) for k, v in values.items() if v is not None})

    def refuse_empty_groups(self, name):
        """Raise InputError where the data set `name` cannot be learnt, or not be judged.

        A group without a picture has no recall, no AUC and no gap, and a class without a training
        picture cannot be learnt. It is better to say so now than to report meaningless numbers.
        """
        if len(self.classes) < 2:
            raise InputError(f"all labels of {name} are {self.classes[0]!r}: it takes two classes")
        for part in ("train", "val", "test"):
            used = self.split == part
            empty = {g for k, g in enumerate(self.group_names) if k not in self.groups[used]}
            if part == "train":
                empty |= {c for k, c in enumerate(self.classes) if k not in self.labels[used]}
            if empty:
                raise InputError(
                    f"{min(empty)!r} has no picture in the {part} split of {name}: merge it with "
                    "another group or class, or leave it out"
                )


def read_rows(path, columns):
    """The rows of a table with a header, as dicts; commas or tabs, with or without a BOM.

    Raises InputError unless all `columns` are there and the first of them names each row once.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            reader = DictReader(file, delimiter=delimiter)
            header, rows = reader.fieldnames or ["nothing"], list(reader)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): make it readable") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the table as CSV (UTF-8)") from None
    except Error as error:
        raise InputError(f"{path} is no table ({error}): look for a quote without an end") from None
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}: it needs {', '.join(columns)} and has "
            f"{', '.join(header)}"
        )
    if not rows:
        raise InputError(f"{path} has a header but no rows: fill it in")
    for line, row in enumerate(rows, 2):
        if None in row or any(row[column] is None for column in columns):
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
    return np.array([place[value] for value in values], dtype=np.int64)


def contents(folder):
    """The first names in a folder, for an error message."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:5]) or "nothing"


def find(root, names, advice, below=False):
    """The first of `names` that is in the folder `root` or, with `below`, in one of its folders.

    Raises InputError, which says in which folder nearby it is, or else gives `advice`.
    """
    for name in names:
        for path in sorted([*root.glob(name), *(root.glob(f"*/{name}") if below else ())]):
            return path
    nearby = [root.parent, root.parent.parent, *sorted(root.glob("*"))]
    places = [place for place in nearby if any((place / name).exists() for name in names)]
    if places:
        advice = f"it is in {places[0]}, pass that folder as --data-dir"
    elif not root.is_dir():
        advice = f"pass the folder that holds the files as --data-dir, or {advice}"
    holds = f"it holds {contents(root)}" if root.is_dir() else "that folder does not exist"
    raise InputError(f"{root} has no {' or '.join(names)} ({holds}): {advice}")


def refuse_choices(name, fold, target="label", sensitive="group"):
    """Raise InputError for choices that this data set does not have.

    A data set that has labels and groups to choose from, but one split, passes `fold` alone.
    """
    if fold is not None:
        raise InputError(f"{name} has one split, its own: leave out --fold")
    if (target, sensitive) != ("label", "group"):
        raise InputError(f"{name} has one label and one group: leave out --target, --sensitive")


def split_by_subject(subjects, fold, shares=(0.7, 0.1, 0.2), seed=0):
    """(N,) of "train" / "val" / "test", whole subjects at a time.

    Without a fold, train, val and test get these `shares` of the subjects. For folds 0 to 4 the
    subjects are dealt into five parts: the part of that number is the test set, and an eighth of
    the rest (a tenth of all) the validation set. So five runs test every picture once.
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


# ===== FROM FILES TO PIXELS =======================================================================


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


def refuse_faults(faults, total, skip_bad):
    """Raise InputError for unreadable pictures {id: why}, naming one, unless `skip_bad`."""
    if faults and not skip_bad:
        name = min(faults)
        raise InputError(
            f"{len(faults)} of {total} pictures cannot be read, the first is {name} "
            f"({faults[name]}): mend or replace them, or leave them out with --skip-bad"
        )


def decode_into(path, table, views, shape, skip_bad):
    """Decode all pictures of a table into the file `path`; write faults into a .json beside it."""
    start, faults = time.time(), {}
    with replacing(path) as temporary:
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            ## The file has its length but no place on the disk yet. Asked for now, a lack of room
            ## is an error; met while pixels are written, it would kill the process.
            with open(temporary, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))

        def decode_one(n):
            try:
                if table.files[n] is None:
                    raise FileNotFoundError("no such file")
                images[n] = decode(table.files[n], shape[1], *views[n])
            except Exception as error:  # decoders raise all kinds of errors
                faults[table.ids[n]] = str(error)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(decode_one, range(len(images)))
            list(tqdm(decoded, "decoding", len(images), leave=False, disable=None))
        images.flush()
        refuse_faults(faults, len(images), skip_bad)
        save(path.with_suffix(".json"), json.dumps(faults))
    print(f"decoded {len(images)} pictures in {time.time() - start:.1f} s into {path}")


def decode_all(table, size, folder, skip_bad):
    """All pictures of a table, memory-mapped (N, size, size, 3) uint8; and the faults {id: why}.

    They are decoded once. The name of the file that keeps them depends on the pictures' names and
    file sizes, on `size`, the table's views and CACHE_VERSION; it appears only when complete.
    Raises InputError, which names a picture that cannot be read, unless `skip_bad`.
    """
    sizes = [os.path.getsize(file) if file else -1 for file in table.files]
    views, shape = table.views or [()] * len(sizes), (len(sizes), size, size, 3)
    key = json.dumps([CACHE_VERSION, size, table.ids, sizes] + ([views] if table.views else []))
    folder = folder if os.access(folder, os.W_OK) else Path("runs")  # the folder may be read-only
    path = folder / f"decoded-{size}px-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    with locked(path):
        if not (path.exists() and path.with_suffix(".json").exists()):
            decode_into(path, table, views, shape, skip_bad)
    faults = restore(path.with_suffix(".json"))
    try:
        images = np.lib.format.open_memmap(path, "c")  # "c": torch wants to write, the file stays
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} {images.shape}")
        if not isinstance(faults, dict) or not faults.keys() <= set(table.ids):
            raise ValueError("the list of faults beside it names other pictures")
    except (OSError, EOFError, ValueError) as error:  # cut short, or not ours
        raise InputError(
            f"{path} is damaged ({error}): delete it, the pictures are then decoded again"
        ) from None
    refuse_faults(faults, len(images), skip_bad)
    return images, faults


# ===== FROM A FOLDER TO A TABLE WITH PICTURES =====================================================


def read_table(
    name,
    root=None,
    size=None,
    target=None,
    sensitive=None,
    fold=None,
    skew=None,
    download=False,
    skip_bad=False,
    smoke=False,
):
    """The Table of the data set `name`, with its pictures. None: what is usual for this data set.

    root       the folder of its files
    size       pixels per side
    target     what is a label, and `sensitive` what is a group: see the manual of the data set
    fold       None for the data set's own split, or 0 to 4
    skew       of cifar10s, see its manual
    download   fetch what is missing from its owner
    skip_bad   leave out pictures that cannot be read
    smoke      read only the first 40 pictures of each class and group in each split
    Raises InputError, in one sentence, for anything wrong with folder, table or pictures.
    """
    reader = reader_of(name)
    usual = reader.DEFAULTS
    size, root = size or usual["image_size"], Path(root or f"data/{name}")
    chosen = [target or usual["target"], sensitive or usual["sensitive"], fold, download]
    if "skew" in usual:
        chosen.append(usual["skew"] if skew is None else skew)
    elif skew is not None:
        raise InputError(f"--skew is not for {name}: leave it out")
    table = reader.read(root, *chosen)
    if smoke:
        table = table.first_of_each_cell(40)
    if table.images is None:
        table.images, faults = decode_all(table, size, root, skip_bad)
        table.notes["left out: unreadable"] = sorted(faults)
        table.split = np.where(np.isin(table.ids, list(faults)), "", table.split)
    elif size != table.images.shape[1]:
        side = table.images.shape[1]
        raise InputError(f"{name} has {side} pixels a side, --image-size says {size}")
    table.refuse_empty_groups(name)
    return table
