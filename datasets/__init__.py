"""What the files of this folder share. Each of them is one data set, and all have the same order:

    manual     what it is, where to get it, how its files lie, labels, groups, split, licence
    DEFAULTS   what a run uses where its command line says nothing
    constants and helpers of this data set alone
    read       a function from the folder with the files to a Table

`read` opens no picture. It says which pictures there are, their labels, groups and split, and what
it left out and why; data.py decodes them. To add a data set, copy csv.py and change it.
"""

from csv import DictReader, Error  # not "import csv": datasets.csv is a module of this folder
from dataclasses import dataclass, field, fields, replace

import numpy as np

from data import InputError


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
