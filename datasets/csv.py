"""csv: your own pictures, with a table and without code.

    python methods/ckd.py --dataset csv --data-dir MY_FOLDER --student mobilenet_v3_small

FILES. A folder with labels.csv, whose columns are file,label,group and, if you have them, split and
subject, and with the pictures that it names. Pictures have any size; they are cut to the centre
square and scaled to --image-size.
LABELS and GROUPS. Texts or numbers. --target and --sensitive name other columns than label, group.
SPLIT. The column split with train, val and test, or else 70/10/20 percent by subject (by picture
where there is no column subject), or --fold 0 to 4. Pictures of one subject, such as one patient,
stay in one split.
LICENCE. Yours.
"""

import os
from pathlib import Path

import numpy as np

from data import InputError
from datasets import Table, codes, find, read_rows, split_by_subject

DEFAULTS = {
    "image_size": 64,
    "teacher": "resnet18",
    "student": "shufflenet_v2_x0_5",
    "target": "label",
    "sensitive": "group",
    "epochs": 12,
    "batch_size": 64,
    "lr": 0.05,
    "teacher_epochs": 12,
    "teacher_lr": 0.05,
}


def place(value):
    """What texts are sorted by: numbers in their own order, others after them in the alphabet's."""
    digits = value.removeprefix("-").replace(".", "", 1)
    return float(value) if digits.isdecimal() else float("inf"), value


def read(root, target, sensitive, fold, download):
    """The Table that labels.csv describes."""
    advice = "write one with the columns file,label,group and, if you like, split and subject"
    table = find(root, ["labels.csv"], advice)
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
    classes = sorted({row[target] for row in rows}, key=place)
    group_names = sorted({row[sensitive] for row in rows}, key=place)
    return Table(
        files,
        [row["file"] for row in rows],
        codes([row[target] for row in rows], classes),
        codes([row[sensitive] for row in rows], group_names),
        subjects,
        split,
        classes,
        group_names,
        {"rows": len(rows)},
    )
