"""Pictures, labels and groups, as batches on the device.

    data = load("ham10000", "data/ham10000", size=64)     # three splits of uint8 pictures
    for batch in batches(data["train"], 64, seed=0, epoch=3, augment=True): ...

Order and augmentation are functions of (seed, epoch) alone: two methods with the same seed see the
same views, and a run that was killed continues exactly, because there is no random state to lose.

Which files make a data set, and how a picture is decoded, is said in readers.py.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from readers import DATASETS, InputError, atomic, decode_all

# ==================================================================================================
# Splits and batches
# ==================================================================================================


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

    def __len__(self):
        return len(self.ids)

    @property
    def images(self):
        """The pictures themselves, (N, 3, H, W) uint8."""
        return self.store[self.rows].permute(0, 3, 1, 2)

    def subset(self, index):
        """The pictures at positions `index` (K,) as a split of their own: a group, a meta set."""
        index = torch.as_tensor(index).cpu()
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()  # or a mask
        names = index.tolist()
        return replace(
            self,
            rows=self.rows[index.to(self.rows.device)],
            labels=self.labels[index.to(self.labels.device)],
            groups=self.groups[index.to(self.groups.device)],
            ids=[self.ids[n] for n in names],
            subjects=self.subjects[names],
        )


@dataclass
class Data:
    """A data set: data["train"], data["val"] and data["test"] are Splits."""

    name: str
    classes: list
    group_names: list
    size: int  # pixels per side
    splits: dict
    notes: dict = field(default_factory=dict)  # what was left out and why

    def __getitem__(self, split):
        return self.splits[split]

    def hash(self, *names, groups=True):
        """16 hex digits of SHA-256 over ids, labels and groups of the splits `names` (default all),
        and over the sum of all pixels in their first 1,000 pictures.

        Equal hashes say that two runs trained and were tested on the same pictures.
        """
        digest = hashlib.sha256(f"{self.name} {self.size}".encode())
        for name in names or self.splits:
            split = self[name]
            digest.update("\n".join([name, *split.ids]).encode())
            pixels = split.store[split.rows[:1000]].sum(dtype=torch.int64).item()
            digest.update(str(pixels).encode())
            digest.update(split.labels.cpu().numpy().tobytes())
            digest.update(split.groups.cpu().numpy().tobytes() if groups else b"")
        return digest.hexdigest()[:16]

    def describe(self):
        """What was left out, and a table: classes x groups of each split, as numbers and rates."""
        columns = [["pictures, share of the group", "", *self.classes, "all"]]
        for name, split in self.splits.items():
            for g, group in enumerate(self.group_names):
                labels = split.labels[split.groups == g].cpu()
                counts = torch.bincount(labels, minlength=len(self.classes)).tolist()
                cells = [f"{n} {n / max(len(labels), 1):6.1%}" for n in counts]
                columns.append([name, group, *cells, f"{len(labels)}   100%"])
        first, *others = columns
        cells = [[cell.ljust(max(map(len, first))) for cell in first]]
        cells += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
        lines = [f"{self.name}, {self.size} pixels a side"]
        lines += [f"  {what}: {n}" for what, n in self.notes.items() if n]
        return "\n".join(lines + ["  ".join(row) for row in zip(*cells)])

    def contact_sheet(self, folder, shown=10):
        """Write a PNG into `folder`: training pictures of each class and group, in rows."""
        split, side = self["train"], max(self.size, 64) + 2
        text = 12 + 9 * max(map(len, [*self.classes, *self.group_names, "00000 in training"]))
        cells = [(c, g) for c in range(len(self.classes)) for g in range(len(self.group_names))]
        sheet = Image.new("RGB", (text + shown * side, len(cells) * side), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
        for k, (c, g) in enumerate(cells):
            where = ((split.labels == c) & (split.groups == g)).nonzero()[:, 0]
            name = f"{self.classes[c]}\n{self.group_names[g]}\n{len(where)} in training"
            pen.text((6, k * side + 4), name, "black", font)
            for n, image in enumerate(split.subset(where[:: -(-len(where) // shown) or 1]).images):
                picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
                picture = picture.resize((side - 2, side - 2), Image.Resampling.NEAREST)
                sheet.paste(picture, (text + n * side, k * side))
        path = Path(folder) / f"contact-sheet-{self.name}-{self.hash()}.png"
        with atomic(path) as temporary:
            sheet.save(temporary, "PNG")
        print(f"wrote {path}")

    def truth(self, part):
        """What metrics.evaluate needs to know of a split. Pictures of one subject are a cluster."""
        split = self[part]
        return {
            "labels": split.labels.cpu().numpy(),
            "groups": split.groups.cpu().numpy(),
            "num_classes": len(self.classes),
            "num_groups": len(self.group_names),
            "clusters": split.subjects,
        }


class Batch(NamedTuple):
    images: torch.Tensor  # (B, 3, H, W) float32, normalised per channel, channels-last in memory
    labels: torch.Tensor  # (B,) int64
    groups: torch.Tensor  # (B,) int64
    index: torch.Tensor  # (B,) int64, positions in the split
    epoch: int  # from 0
    step: int  # from 0 in each epoch


def balanced_order(labels, groups, rng):
    """(N,) positions, drawn with replacement: every class x group cell has an equal share."""
    _, cells, sizes = np.unique(
        np.stack([labels, groups]), axis=1, return_inverse=True, return_counts=True
    )
    start = np.cumsum(sizes) - sizes  # where each cell begins once the pictures are sorted by cell
    cell = rng.permutation(np.arange(len(labels)) % len(sizes))  # (N,) the cell of each draw
    place = start[cell] + rng.integers(0, sizes[cell])
    return np.argsort(cells.ravel(), kind="stable")[place]


def batches(split, batch_size, seed=None, epoch=0, augment=False, balance=False):
    """The batches of one epoch.

    seed     None: every picture once, in order (evaluation). A number: a new order in each epoch,
             without the last, incomplete batch, so that batch norm never meets a single picture
    augment  random horizontal flip, and a random crop after padding by an eighth of the side
    balance  every class x group cell equally often (with replacement), not every picture once
    Raises InputError when there are fewer training pictures than one batch holds.
    """
    n, (height, width) = len(split), split.store.shape[1:3]
    if seed is not None and n < batch_size:
        raise InputError(
            f"a batch of {batch_size} needs as many training pictures, but there are {n}: choose a "
            "smaller --batch-size"
        )
    ## All random numbers of the epoch come from (seed, epoch), before the first batch.
    rng = np.random.default_rng((seed or 0, epoch))
    order = np.arange(n) if seed is None else rng.permutation(n)
    if balance:
        order = balanced_order(split.labels.cpu().numpy(), split.groups.cpu().numpy(), rng)
    pad = height // 8 if augment else 0
    flip = rng.random(n) < (0.5 if augment else 0)  # (N,)
    shift = rng.integers(-pad, pad + 1, (2, n))  # (2, N) down and right
    where, device = split.store.device, split.labels.device
    order, flip, (down, right) = (torch.from_numpy(a).to(where) for a in (order, flip, shift))

    pixels = split.store.view(-1, 3)  # (M·H·W, 3)
    line, column = torch.arange(height, device=where), torch.arange(width, device=where)
    ## One long row is subtracted faster than three numbers again and again.
    mean, std = (t.flatten().repeat(width) for t in (split.mean, split.std))  # (3·W,)
    for step in range(-(-n // batch_size) if seed is None else n // batch_size):
        now = slice(step * batch_size, (step + 1) * batch_size)
        index = order[now]  # (B,)
        if augment:
            ## One gather of pixels crops and flips the whole batch. Coordinates beyond the edge are
            ## clamped to it: skin goes on as skin, no black border tells one view from another.
            lines = (line + down[now, None]).clamp(0, height - 1)  # (B, H)
            columns = (column + right[now, None]).clamp(0, width - 1)  # (B, W)
            columns = torch.where(flip[now, None], columns.flip(1), columns)
            place = (split.rows[index, None] * height + lines)[:, :, None] * width + columns[
                :, None
            ]
            images = pixels.index_select(0, place.view(-1)).view(-1, height, width, 3)
        else:
            images = split.store[split.rows[index]]  # (B, H, W, 3)
        if device.type == "cuda" and where.type == "cpu":
            images = images.pin_memory()
        images = images.to(device, non_blocking=True).view(len(index), height, 3 * width)
        images = images.float().sub_(mean).div_(std).view(len(index), height, width, 3)
        images = images.permute(0, 3, 1, 2)  # (B, 3, H, W), "channels last" in memory: faster
        index = index.to(device, non_blocking=True)
        yield Batch(images, split.labels[index], split.groups[index], index, epoch, step)


def first_of_each_cell(table, most):
    """The table with at most `most` pictures of each split x class x group, for a quick try."""
    seen, keep = {}, []
    for n, cell in enumerate(zip(table.split, table.labels, table.groups)):
        seen[cell] = seen.get(cell, 0) + 1
        if cell[0] and seen[cell] <= most:
            keep.append(n)
    fields = {f: getattr(table, f) for f in ("labels", "groups", "subjects", "split", "images")}
    lists = {f: getattr(table, f) for f in ("files", "ids", "views")}
    return replace(
        table,
        **{f: None if values is None else [values[n] for n in keep] for f, values in lists.items()},
        **{f: None if values is None else values[keep] for f, values in fields.items()},
    )


def load(
    name,
    root=None,
    size=None,
    *,
    target=None,
    sensitive=None,
    fold=None,
    skew=None,
    device="cpu",
    download=False,
    skip_bad=False,
    smoke=False,
):
    """The data set `name` (a key of readers.DATASETS) in the folder `root`, as Data.

    size    pixels per side;  target, sensitive  what is a label and a group: see the reader
    fold    None for the data set's own split, or 0..4;  skew  of cifar10s, see its reader
    smoke   only the first 40 pictures of each class and group in each split
    Raises InputError, in one sentence, for anything wrong with folder, table or pictures.
    """
    kind, device = DATASETS[name], torch.device(device)
    size = kind.size if size is None else size
    if fold not in (None, 0, 1, 2, 3, 4):
        raise InputError(f"--fold {fold} does not exist: choose 0, 1, 2, 3 or 4")
    root = Path(root or f"data/{name}")
    if not name.startswith("toy") and not root.is_dir() and not download:
        raise InputError(
            f"the folder {root} does not exist: pass the folder that holds the {name} files as "
            "--data-dir"
        )
    if skew is not None and kind.skew is None:
        raise InputError(f"--skew is for cifar10s alone, {name} is as it is: leave it out")
    more = {} if kind.skew is None else {"skew": kind.skew if skew is None else skew}
    chosen = (target or kind.target, sensitive or kind.sensitive, fold, download)
    table = kind.read(root, *chosen, **more)
    if smoke:
        table = first_of_each_cell(table, 40)
    images, notes = table.images, dict(table.notes)
    if images is None:
        images, faults = decode_all(table, size, root, skip_bad)
        notes["left out: unreadable"] = sorted(faults)
        table.split = np.where(np.isin(table.ids, list(faults)), "", table.split)
    elif size != images.shape[1]:
        raise InputError(f"{name} has {images.shape[1]} pixels a side, --image-size says {size}")
    if len(table.classes) < 2:
        raise InputError(f"all labels of {name} are {table.classes[0]!r}: it takes two classes")
    store = torch.from_numpy(images)
    if device.type == "cuda" and store.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        store = store.to(device)  # everything lives on the device where it fits
    splits = {}
    for part in ("train", "val", "test"):
        rows = np.flatnonzero(table.split == part)
        splits[part] = Split(
            store,
            torch.from_numpy(rows).to(store.device),
            torch.from_numpy(table.labels[rows]).to(device),
            torch.from_numpy(table.groups[rows]).to(device),
            [table.ids[n] for n in rows],
            table.subjects[rows],
        )
        ## A group without a picture has no recall, no AUC, no gap; a class without one in training
        ## cannot be learnt. Better to say so now than to report numbers that mean nothing.
        absent = set(table.group_names) - {table.group_names[g] for g in table.groups[rows]}
        if part == "train":
            absent |= set(table.classes) - {table.classes[c] for c in table.labels[rows]}
        if absent:
            raise InputError(
                f"{min(absent)!r} has no picture in the {part} split of {name}: merge it with "
                "another group or class, or leave it out"
            )
    train = splits["train"]
    some = train.store[train.rows[:: -(-len(train) // 2000)]].float()  # plenty for six numbers
    for split in splits.values():
        split.mean = some.mean(dim=(0, 1, 2))[:, None, None].to(device)
        split.std = some.std(dim=(0, 1, 2))[:, None, None].clamp(min=1).to(device)
    return Data(name, table.classes, table.group_names, size, splits, notes)


def load_for(args):
    """`load` with the settings of a run."""
    return load(
        args.dataset,
        args.data_dir,
        args.image_size,
        target=args.target,
        sensitive=args.sensitive,
        fold=args.fold,
        skew=args.skew,
        device=args.device,
        download=args.download,
        skip_bad=args.skip_bad,
        smoke=args.smoke,
    )
