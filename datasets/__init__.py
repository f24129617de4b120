"""What the files of this folder share, and how their tables get pixels.

Each of them is one data set, and all have the same order:

    manual     what it is, where to get it, how its files lie, labels, groups, split, licence
    DEFAULTS   what a run uses where its command line says nothing
    SEGMENT    what it uses instead with --task segment, if the data set has masks
    constants and helpers of this data set alone
    read       a function from the folder with the files to a Table

`read` opens no picture. It says which pictures there are, their labels, groups and split, and what
it left out and why; `decode_all` below decodes them. To add a data set, copy csv.py and change it.
"""

import collections
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data import (
    InputError,
    defaults,
    digest,
    locked,
    reader_of,
    refuse_batch,
    replacing,
    restore,
    save,
    with_bar,
)
from datasets._show import describe
from datasets._tables import alike, columns_of, is_number

WHITE = "level that is white, of grey of more than 8 bits"  # a note, which predict.py needs, too
CACHE_VERSION = 4  # raised when pictures are decoded differently, so that old files are not used

# ===== TABLES, AND WHAT READERS NEED ==============================================================


@dataclass
class Table:
    """What a folder holds, one entry for each picture."""

    files: list  # paths, also of pictures that are missing; None where `images` are given
    ids: list  # unique names
    labels: np.ndarray  # (N,) int64 codes into classes
    groups: np.ndarray  # (N,) int64 codes into group_names
    subjects: np.ndarray  # (N,) texts: pictures of one lesion or person stay in one split
    split: np.ndarray  # (N,) texts train / val / test, or "" = not used
    classes: list
    group_names: list
    notes: dict = field(default_factory=dict)  # what was left out and why, with counts
    images: np.ndarray = None  # (N, H, W, 3) uint8 where no picture file is to be decoded
    mask_files: object = None  # a function to a list as `files`, None for a picture without a mask
    masks: np.ndarray = None  # (N, H, W) uint8, above 0 inside, where no file is to be decoded
    inside: str = "inside"  # what is inside of a mask
    views: list = None  # N tuples, what `decode` is told besides file and size: (box, in grey?)
    incomplete: dict = field(default_factory=dict)  # {id: why} of rows without a label or group

    def first_of_each_cell(self, most):
        """The table of the first `most` pictures of each split x class x group, for a quick try."""
        counts, rows = {}, []
        for n, cell in enumerate(zip(self.split, self.labels, self.groups)):
            counts[cell] = counts.get(cell, 0) + 1
            if cell[0] and counts[cell] <= most:
                rows.append(n)

        def some(values):
            return values[rows] if isinstance(values, np.ndarray) else [values[n] for n in rows]

        once = ("classes", "group_names", "notes", "incomplete", "inside")  # same for all pictures
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in once}
        return replace(self, **{k: some(v) for k, v in values.items() if v is not None})

    def leave_out(self, why, ids):
        """Use the pictures `ids` in no split, and note why."""
        if ids:
            self.notes[f"left out: {why}"] = sorted(ids)
            self.split = np.where(np.isin(self.ids, list(ids)), "", self.split)

    def keep_share(self, share):
        """Use the pictures of this share of the training subjects alone, the same for all seeds."""
        training = self.split == "train"
        subjects = np.random.default_rng(0).permutation(np.unique(self.subjects[training]))
        kept = np.isin(self.subjects, subjects[: math.ceil(share * len(subjects))])
        self.split = np.where(training & ~kept, "", self.split)

    def refuse_gaps(self, name):
        """Raise InputError, after a table of all counts, where a split lacks a class or a group.

        A class without a training picture cannot be learnt, and a class or group without a picture
        has no recall, no AUC and no gap: better to say so now than to report meaningless numbers.
        Where masks are learnt, classes only tell pictures apart, and may be anywhere.
        """
        if (number := len({*self.subjects})) < 3 <= len(self.ids):
            raise InputError(
                f"{name} has pictures of {number} subject{'s'[: number - 1]} alone, and those of "
                "one stay in one of three splits: name another column by --subject (with that of "
                "the files, each picture is its own)"
            )
        parts, fault = {part: self.split == part for part in ("train", "val", "test")}, ""
        checked = [("group", self.groups, self.group_names)]
        if self.masks is None and self.mask_files is None:
            checked.insert(0, ("class", self.labels, self.classes))
        for kind, values, names in checked:
            if not fault and (pair := alike(names)):
                fault = f"{pair[0]!r} and {pair[1]!r} of {name} say the same: write them alike"
            for k, what in enumerate(names):
                counts = {part: (values[rows] == k).sum() for part, rows in parts.items()}
                if not fault and not all(counts.values()):
                    lacking, told = min(counts, key=counts.get), [*map(str, counts.values())]
                    fault = f"{what!r} has no picture in the {lacking} split of {name} (train, val "
                    fault += f"and test have {', '.join(told)}): merge it with another {kind}, "
                    fault += "leave it out, or bring more pictures (or a larger --train-share)"
                    if what[0].isdigit() and len(names) > 4:
                        fault += ", or make bins, such as "
                        fault += "age:18,40" if is_number(what) else "date:2019 (2021-06-30)"
            if len(names) == 1:
                fault = f"{name} has the {kind} {names[0]!r} alone: it takes two"
        if fault:
            parts = {part: (self.labels[rows], self.groups[rows]) for part, rows in parts.items()}
            print(describe(name, self.classes, self.group_names, parts, self.notes))
            raise InputError(fault)

    def note_one_class(self):
        """Note the groups that have no AUROC: a worst group of AUROC is that of the others."""
        for part in ("val", "test"):
            cells = np.stack([self.groups, self.labels])[:, self.split == part]
            held = np.bincount(np.unique(cells, axis=1)[0])  # (G,) classes of each group
            if alone := [name for name, classes in zip(self.group_names, held) if classes == 1]:
                what = f"GROUPS OF ONE CLASS IN {part}, left out of the worst group of AUROC there"
                self.notes[what] = alone

    def refuse_empty(self, flat, name):
        """Raise InputError where all masks of a split, or of a group, are in `flat`, the ids of
        those that are empty or full."""
        ids, used = np.array(self.ids), self.split != ""
        places = {f"the {part} split": self.split == part for part in ("train", "val", "test")}
        for g, group in enumerate(self.group_names):
            places[f"the group {group!r}"] = used & (self.groups == g)
        for where, there in places.items():
            if there.any() and flat.issuperset(ids[there].tolist()):  # without any: refuse_gaps
                raise InputError(
                    f"all {there.sum()} masks of {where} of {name} are empty, or full, so nothing "
                    "can be learnt or tested: look at their files"
                )


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


def split_by_subject(subjects, cells, fold):
    """(N,) of "train" / "val" / "test", whole subjects at a time, each cell in its share.

    cells (N,) are codes of class x group; a subject in several counts for the rarest of them. The
    shuffled subjects are sorted by cell and dealt like cards. Without a fold, train, val and test
    get 7, 1 and 2 of ten. For folds 0 to 4 they are dealt into five parts: the part of that number
    is the test set, and an eighth of the rest (a tenth of all) the validation set. So five runs
    test every picture once.
    """
    rare = np.lexsort((cells, np.bincount(cells)[cells]))  # (N,) rows of rare cells first
    names, first = np.unique(subjects[rare], return_index=True)
    order = np.random.RandomState(0).permutation(len(names))
    names = names[order[np.argsort(cells[rare][first][order], kind="stable")]]
    if fold is None:
        test, val = np.concatenate([names[1::10], names[6::10]]), names[3::10]
    else:
        test = names[fold::5]
        val = names[~np.isin(names, test)][3::8]
    split = np.where(np.isin(subjects, val), "val", "train")
    split[np.isin(subjects, test)] = "test"
    return split


# ===== FROM FILES TO PIXELS =======================================================================


def in_grey(images):
    """(..., 3) uint8 in grey: all three channels are the brightness, as PIL rounds it (mode L)."""
    red, green, blue = (images[..., k].astype(np.uint32) for k in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # 0.299, 0.587, 0.114 of 2¹⁶
    return np.repeat(luma[..., None].astype(np.uint8), 3, axis=-1)


def grey_range(pixels):
    """The end of the smallest usual range that holds a grey picture (H, W) of more than 8 bits: 1
    (of floats), 8, 12 or 16 bits."""
    floats = np.issubdtype(pixels.dtype, np.floating)
    for most in (1, 255, 4095, 65535)[not floats :]:
        if pixels.min() >= 0 and pixels.max() <= most:
            return most
    raise ValueError(
        f"its grey goes from {pixels.min():g} to {pixels.max():g}: save it with 8 or 16 bits"
    )


def decode(file, size, box=None, grey=False, white=None, ranges=None):
    """One picture as (size, size, 3) uint8: upright, RGB, the centre square, antialiased.

    box     (left, top, right, bottom), to see only that part of it
    grey    without its colours
    white   the level that becomes 255 in grey of more than 8 bits; None: the end of its own range,
            so that 12 bits stored in 16 are not nearly black
    ranges  a dict, in which such grey notes {file: (the end of its own range, its brightest level)}
    """
    with Image.open(file) as image:
        bits = getattr(image, "tag_v2", {}).get(258, [8])  # of a TIFF
        deep = max(bits) > 8 or re.search(";16[BLN]", str(image.tile))  # how Pillow unpacks it
        if deep and image.mode[0] not in "IF":
            raise ValueError("it has 16 bits for each colour, of which 8 are lost: save it with 8")
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":  # convert() would clip nearly all to white, or to black
            pixels = np.asarray(image)
            own = grey_range(pixels)
            if white and own > white:
                raise ValueError(f"its grey goes up to {pixels.max():g}, where {white:g} is white")
            if ranges is not None:
                ranges[file] = own, float(pixels.max())
            levels = (pixels * (255 / (white or own))).round()
            image = Image.fromarray(levels.astype(np.uint8))
        if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
            ## Below what is transparent any colours can be hidden, which nobody meant to show.
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB").crop(box) if box else image.convert("RGB")
        square = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return in_grey(square) if grey else square


def upright_size(file):
    """(width, height) of a picture, upright as EXIF says."""
    with Image.open(file) as image:  # of a turned TIFF `size` is upright already, of a JPEG not
        turned = image.getexif().get(0x0112, 1) > 4
        return ImageOps.exif_transpose(image).size if turned else image.size


def decode_mask(file, size, picture):
    """The mask of `picture` as (size, size) uint8, 0 outside and 255 inside: cut as pictures are.

    Raises ValueError unless it has the picture's size, and two values at most, of which 0 is one.
    """
    (width, height), (wide, high) = upright_size(file), upright_size(picture)
    if (width, height) != (wide, high):
        raise ValueError(f"it has {width} x {height} pixels, and its picture {wide} x {high}")
    with Image.open(file) as image:
        if image.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError("it has transparent pixels: save it in black and white, without them")
        ## The numbers of a palette mean nothing by themselves. In 402 masks of HAM10000 number 0 is
        ## white, the lesion: read as numbers, they would be inside out.
        upright = ImageOps.exif_transpose(image)
        ## As 8 bits, 300 and 700 of 16 bits would be one value, and 0.4 would be 0.
        values = np.asarray(upright if upright.mode[0] in "IF" else upright.convert("L"))
        words = "grey values"
        if upright.mode[0] not in "IF1L":
            colours = np.asarray(upright.convert("RGB"), int)
            if np.ptp(colours, axis=2).any():  # as grey, blue of 1 would be 0
                values, words = colours @ (65536, 256, 1), "colours"  # a number for each
    there = np.unique(values)
    if len(there) > 2 or (len(there) == 2 and 0 not in there):
        few = ", ".join(f"#{v:06x}" if words == "colours" else str(v) for v in there[:4])
        few += ", ..." * (len(there) > 4)
        raise ValueError(f"it has the {words} {few}: 0 must be outside, one other inside")
    inside = Image.fromarray(255 * (values != 0).astype(np.uint8))
    square = np.asarray(ImageOps.fit(inside, (size, size), Image.Resampling.BILINEAR))
    return 255 * (square > 127).astype(np.uint8)  # a pixel is inside or outside, never grey


def compare_kinds(kinds, notes, what="files of mode"):
    """Note how much is inside of masks, by kind of file, or group, {kind: (number, share)}.

    Files of one kind, or of one group, that are inside out show nowhere else.
    """
    told = [f"{share:.1%} in {n} {what} {kind}" for kind, (n, share) in kinds.items()]
    before = notes.get(key := "inside of masks, share of pixels")
    notes[key] = ", ".join(filter(None, [before, *told]))
    shares = [share for n, share in kinds.values() if n >= 5]
    if shares and max(shares) - min(shares) > 0.2:
        notes["KINDS OF MASKS DISAGREE"] = "is one of them inside out? Look at --describe"


def refuse_faults(faults, total, skip_bad, what, advice="mend them"):
    """Raise InputError for faults {id: why} of pictures, naming one, unless `skip_bad`."""
    if faults and not skip_bad:
        name = min(faults)
        raise InputError(
            f"{len(faults)} of {total} {what}, the first is {name} ({faults[name]}): {advice}, or "
            "leave them out with --skip-bad"
        )


def decode_into(path, table, views, shape, skip_bad, masks):
    """Decode all pictures of a table, or all masks, into the file `path`, and write into a .json
    beside it what `decode_all` returns as found."""
    start, faults, flat, ranges, grey, kinds = time.time(), {}, set(), {}, None, {}
    what = "masks" if masks else "pictures"
    with replacing(path) as temporary:
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            ## The file has its length but no place on the disk yet. Asked for now, a lack of room
            ## is an error; met while pixels are written, it would kill the process.
            with open(temporary, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))

        def decode_one(n, white=None):
            if masks and table.mask_files[n] is None:
                return  # known before, and left out
            try:
                if masks:
                    images[n] = decode_mask(table.mask_files[n], shape[1], table.files[n])
                    with Image.open(table.mask_files[n]) as image:
                        kinds.setdefault(image.mode, []).append(float(images[n].mean() / 255))
                else:
                    more = {"white": white, "ranges": ranges}
                    images[n] = decode(table.files[n], shape[1], *views[n], **more)
            except FileNotFoundError:
                return  # known before, and left out
            except Exception as error:  # decoders raise all kinds of errors
                faults[table.ids[n]] = (
                    f"{table.mask_files[n].name}: {error}" if masks else str(error)
                )
            else:
                one_colour = np.ptp(images[n], axis=(0, 1)).max() < 8
                (flat.add if one_colour else flat.discard)(table.ids[n])

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(decode_one, range(len(images)))
            list(with_bar(decoded, f"reading {what}", len(images)))
            if ranges:  # one white for all: a bright pixel must not make one picture darker
                grey = white, _ = np.max([*ranges.values()], axis=0).tolist()
                darker = [n for n, f in enumerate(table.files) if ranges.get(f, grey)[0] < white]
                list(pool.map(lambda n: decode_one(n, white), darker))
        images.flush()
        number = len(images)
        images = None  # closed: Windows renames no file that is open
        refuse_faults(faults, number, skip_bad, f"{what} cannot be read")  # the disk's fault?
        kinds = {kind: (len(shares), np.mean(shares)) for kind, shares in sorted(kinds.items())}
        found = {"faults": faults, "flat": sorted(flat), "grey": grey, "kinds": kinds}
        save(path.with_suffix(".json"), json.dumps(found))
    print(f"decoded {number} {what} in {time.time() - start:.1f} s into {path}")


def decode_all(table, size, folder, skip_bad, source="", masks=False):
    """All pictures of a table, memory-mapped (N, size, size, 3) uint8, or masks (N, size, size).

    And what was found: "faults" {id: why}, what cannot be read; "flat", the ids of those that have
    nearly one colour; "grey", where it has more than 8 bits, the level that became white, one for
    all, and the brightest one; "kinds" of masks, see `compare_kinds`.

    They are decoded once: 200,000 of 224 pixels take 30 GB on the disk. The name of the file that
    keeps them depends on the pictures' names, file sizes and times of change (mtime, which cp -p
    keeps, and ctime), on `size`, the table's views and CACHE_VERSION; it appears only when
    complete. An older file of the same `source` and size is removed.
    Raises InputError, which names a picture that cannot be read, unless `skip_bad`.
    """
    files = [*table.files, *table.mask_files] if masks else table.files
    stats = [os.stat(f) if f and os.path.isfile(f) else None for f in files]
    stamps = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] if s else None for s in stats]
    what, shape = ("masks", (size, size)) if masks else ("pictures", (size, size, 3))
    views, shape = table.views or [()] * len(table.ids), (len(table.ids), *shape)
    key = json.dumps([CACHE_VERSION, size, table.ids, stamps] + ([views] if table.views else []))
    start = Path(folder) / f"{'masks' if masks else 'decoded'}-{size}px-{source}"
    path = Path(f"{start}{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy")
    with locked(start):
        if not (path.exists() and path.with_suffix(".json").exists()):
            decode_into(path, table, views, shape, skip_bad, masks)
            for old in path.parent.glob(f"{start.name}*.*"):
                if old.stem != path.stem and old.suffix in (".npy", ".json"):
                    with contextlib.suppress(OSError):  # on Windows, while a process reads it
                        old.unlink()
        found = restore(path.with_suffix(".json"), keys=("faults", "flat", "grey"))
        try:
            try:
                images = np.lib.format.open_memmap(path, "c")  # who writes keeps it to himself
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                images = np.lib.format.open_memmap(path, "r")  # larger than memory and swap
            if images.shape != shape or images.dtype != np.uint8:
                raise ValueError(f"it holds {images.dtype} {images.shape}")
            if not {*found["faults"], *found["flat"]} <= set(table.ids):
                raise ValueError("the list of faults beside it names other pictures")
        except (OSError, EOFError, ValueError, TypeError) as error:  # cut, or not ours
            raise InputError(
                f"{path} is damaged ({error}): delete it, the pictures are then decoded again"
            ) from None
    refuse_faults(found["faults"], len(images), skip_bad, f"{what} cannot be read")
    return images, found


# ===== FROM A FOLDER TO A TABLE WITH PICTURES =====================================================


def read_table(
    name,
    root=None,
    size=None,
    target=None,
    sensitive=None,
    fold=None,
    download=False,
    task="classify",
    skip_bad=False,
    smoke=False,
    train_share=1.0,
    batch_size=1,
    out="runs",
    **own,
):
    """The Table of the data set `name`, with its pictures. None: what is usual for this data set.

    root        the folder of its files
    size        pixels per side
    target      what is a label, and `sensitive` what is a group: see the manual of the data set
    fold        None for the data set's own split, or 0 to 4
    download    fetch what is missing from its owner
    task        "segment" reads masks as well
    skip_bad    leave out pictures that are missing or unreadable or have no label or group
    train_share learn from this share of the training subjects alone
    smoke       decode only the first 40 pictures of each class and group in each split
    batch_size  how many training pictures it takes
    out         decoded pictures are kept in out/decoded
    own         skew, of cifar10s; subject and file_column, of csv: see their manuals
    Raises InputError, in one sentence, for anything wrong with folder, table or pictures. All that
    can be known before pictures are decoded is checked before.
    """
    reader = reader_of(name)
    usual = defaults(name, task)
    target, sensitive = target or usual["target"], sensitive or usual["sensitive"]
    own = {flag: value for flag, value in own.items() if value is not None}
    for flag in [flag for flag in own if flag not in usual]:
        raise InputError(f"--{flag.replace('_', '-')} is not for {name}: leave it out")
    if root and name.startswith("toy"):
        raise InputError(f"--data-dir needs a --dataset, such as csv: the {name} is not read")
    columns = columns_of(target) + columns_of(sensitive)
    if len(set(columns)) < len(columns):
        raise InputError(f"--target {target} --sensitive {sensitive}: name each only once")
    size, root = size or usual["image_size"], Path(root or f"data/{name}")
    table = reader.read(root, target, sensitive, fold, download, **own)
    if task != "segment":
        table.masks = table.mask_files = None
    elif table.mask_files:  # looked for only now, because nobody else cares for their column
        table.mask_files = table.mask_files()
    what, total = "label or group missing", len(table.incomplete) + len(table.ids)
    refuse_faults(table.incomplete, total, skip_bad, f"rows have a {what}", "fill them in")
    table.leave_out(what, table.incomplete)
    for what, why, files in (
        ("pictures are missing", "no such file", table.files if table.images is None else ()),
        ("pictures have no mask", "no mask", table.mask_files or ()),
    ):
        lost = {i: f for i, f in zip(table.ids, files) if not (f and os.path.isfile(f))}
        lost = {i: f"no such file: {f}" if f else "no mask is named" for i, f in lost.items()}
        refuse_faults(lost, len(table.ids), skip_bad, what, "put them there")
        table.leave_out(why, lost)
    if train_share < 1:
        table.keep_share(train_share)
    table.refuse_gaps(name)
    refuse_batch(batch_size, (table.split == "train").sum())
    if smoke:
        table = table.first_of_each_cell(40)
    if table.images is None:
        ## One file of pixels for each folder of pictures; that of a quick try is another one.
        source = f"{name}-{'smoke-' * smoke}{digest(os.path.normpath(root))}-"
        cache = Path(out) / "decoded"
        if table.mask_files:
            table.masks, found = decode_all(table, size, cache, skip_bad, source, masks=True)
            table.leave_out("mask unreadable", found["faults"])
            compare_kinds(found["kinds"], table.notes)
            ## One mask at a time, because all together may be larger than the memory.
            shares, uses, flat = {}, collections.Counter(), {*found["flat"]}
            for n in np.flatnonzero(table.split != ""):
                group = table.group_names[table.groups[n]]
                shares.setdefault(group, []).append(table.masks[n].mean() / 255)
                if table.ids[n] not in flat:
                    uses[os.path.normpath(table.mask_files[n])] += 1
            groups = {group: (len(each), np.mean(each)) for group, each in sorted(shares.items())}
            compare_kinds(groups, table.notes, "of the group")
            table.notes["masks that are empty or full"] = found["flat"]
            if shared := [file for file, n in uses.items() if n > 1]:
                table.notes["MASKS OF SEVERAL PICTURES"] = shared
            table.refuse_empty(flat, name)
        table.images, found = decode_all(table, size, cache, skip_bad, source)
        table.leave_out("unreadable", found["faults"])
        if found["flat"]:
            table.notes["pictures of nearly one colour"] = found["flat"]
        if found["grey"]:
            grey = [int(level) if level == int(level) else level for level in found["grey"]]
            table.notes[WHITE], table.notes["the brightest level of these pictures"] = grey
        table.refuse_gaps(name)
        owners, flat = collections.defaultdict(dict), {*found["flat"]}
        rows = zip(table.ids, table.images, table.subjects, table.split)
        for picture, pixels, subject, part in rows:
            if picture not in flat and part:  # "" was left out: its pixels were not read
                owners[hash(pixels.tobytes())].setdefault(subject, picture)
        if several := [" = ".join(same.values()) for same in owners.values() if len(same) > 1]:
            table.notes["EQUAL PICTURES OF SEVERAL SUBJECTS"] = several  # in several splits, maybe
    elif size != table.images.shape[1]:
        side = table.images.shape[1]
        raise InputError(f"{name} has {side} pixels a side, --image-size says {size}")
    if table.masks is None:
        table.note_one_class()
    return table
