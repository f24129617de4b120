"""celeba: 202,599 faces with 40 attributes (Liu et al., 2015); a part of them will do.

WHERE. https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. Its agreement bars passing copies on, so
there is no --download.
FILES. img_align_celeba/ or img_align_celeba_png/, list_attr_celeba.txt, list_eval_partition.txt
and, if you have it, identity_CelebA.txt, together or in Anno/, Eval/, Img/ as packed; or the lists
of Kaggle, which end in .csv. Rows without a picture and pictures without a row are left out and
counted.
LABELS and GROUPS. --target and --sensitive: any attributes, crossed with +, such as Male+Young,
which makes four groups.
SPLIT. The official one. Persons, where identity_CelebA.txt is there, are the bootstrap's clusters.
LICENCE. For non-commercial research; cite the paper.
"""

import itertools
import os
import re
from pathlib import Path

import numpy as np

from data import InputError, near
from datasets import Table, contents, find, refuse_choices

DEFAULTS = {
    "image_size": 64,
    "teacher": "resnet50",
    "student": "resnet18",
    "target": "Attractive",
    "sensitive": "Male",
    "epochs": 12,
    "batch_size": 64,
    "lr": 0.05,
    "teacher_epochs": 12,
    "teacher_lr": 0.05,
}
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def read_lines(path):
    """The lines of a list; commas, which Kaggle's have, or Excel's semicolons become spaces."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return re.sub("[,;]", " ", text.strip()).split("\n")


def read_list(path, before=0, width=1, keep=(0,)):
    """{picture: the fields `keep` of its line}; each line is a picture and `width` numbers.

    The first lines, as many as `before`, are skipped, and so is the header of a list of Kaggle's.
    """
    rows = {}
    for n, line in enumerate(read_lines(path), 1):
        name, *fields = line.split() or [""]
        if n <= before or name == "image_id":
            continue
        if len(fields) != width or not all(f.removeprefix("-").isdecimal() for f in fields):
            raise InputError(
                f"{path}, line {n}: not a picture and {width} numbers, the file is cut off or "
                f"damaged: get it anew from {PAGE}"
            )
        rows[name] = [int(fields[k]) for k in keep]
    return rows


def combination(positive):
    """Codes into `combinations`, (N,), for pictures of which (N, attributes) says what is true."""
    return positive @ 2 ** np.arange(positive.shape[1])[::-1]  # the first attribute counts most


def combinations(attributes):
    """The names of all combinations of attributes, such as "not Male, Young"."""
    signs = ((f"not {name}", name) for name in attributes)
    return [", ".join(values) for values in itertools.product(*signs)]


def read(root, target, sensitive, fold, download):
    """The Table of the pictures that have a row; those without, and missing ones, are counted."""
    refuse_choices("celeba", fold)
    advice = f"get it from {PAGE} and unpack it there"
    path = find(root, ["list_attr_celeba.txt", "list_attr_celeba.csv"], advice, below=True)
    count, header, *lines = [*read_lines(path), ""]
    if count.startswith("image_id"):  # a list of Kaggle's, which does not count its rows
        before, known = 1, count.split()[1:]
    elif count.strip() == str(len(lines) - 1):
        before, known = 2, header.split()
    else:
        raise InputError(
            f"{path} has {max(len(lines) - 1, 0)} rows, but its first line says "
            f"{count.strip()[:20]!r}: it is cut off, get it anew from {PAGE}; or write there how "
            "many you want"
        )
    chosen = {"target": target.split("+"), "sensitive": sensitive.split("+")}
    for flag, names in chosen.items():
        for name in [name for name in names if name not in known]:
            raise InputError(
                f"--{flag} {name!r} is no attribute of CelebA: did you mean {near(name, known, 0)}?"
            )
    keep = [known.index(name) for names in chosen.values() for name in names]
    rows = read_list(path, before, len(known), keep)

    folder = find(root, ["img_align_celeba", "img_align_celeba_png"], advice, below=True)
    if (folder / folder.name).is_dir():  # as some programs unpack it
        folder = folder / folder.name
    files = {Path(n).stem: n for n in os.listdir(folder) if n.lower().endswith((".jpg", ".png"))}
    ids = sorted(name for name in rows if Path(name).stem in files)
    if not ids:
        raise InputError(
            f"{folder} has none of the pictures of {path.name}, such as {next(iter(rows), '?')} "
            f"(it holds {contents(folder)}): put them there"
        )
    lists = ["list_eval_partition.txt", "list_eval_partition.csv"]
    path = find(root, lists, advice, below=True)
    parts = read_list(path)
    wrong = [i for i in ids if parts.get(i) not in ([0], [1], [2])]
    if wrong:
        raise InputError(
            f"{path} does not say 0, 1 or 2 for {wrong[0]}, nor for "
            f"{len(wrong) - 1} others: get it anew from {PAGE}"
        )
    persons = {}
    for path in [*root.glob("identity_CelebA.txt"), *root.glob("*/identity_CelebA.txt")]:
        persons = read_list(path)

    positive = np.array([rows[i] for i in ids]) == 1  # (N, attributes)
    n = len(chosen["target"])
    return Table(
        [folder / files[Path(i).stem] for i in ids],
        ids,
        combination(positive[:, :n]),
        combination(positive[:, n:]),
        np.array([str(persons[i][0]) if i in persons else i for i in ids]),
        np.array([("train", "val", "test")[parts[i][0]] for i in ids]),
        combinations(chosen["target"]),
        combinations(chosen["sensitive"]),
        {
            "left out: rows without a picture": len(rows) - len(ids),
            "left out: pictures without a row": len(files) - len(ids),
            "pictures of unknown persons": sum(i not in persons for i in ids),
        },
    )
