"""csv: your own pictures, with a table and without code.

    python methods/ckd.py --dataset csv --data-dir MY_FOLDER --student mobilenet_v3_small

FILES. A folder with labels.csv and with the pictures that it names; --data-dir MY_FOLDER/FILE.csv
for a table with another name. Commas, semicolons or tabs, as CSV. Its columns are file (or what
--file-column says), label, group and, if you have them, split and subject. Pictures have any size;
they are cut to the centre square and scaled to --image-size. A file is also found where its ending,
case or leading zeros differ, and in a deeper folder than the table says.
For --task segment there is a column mask, too: the name of a picture as large as that of the file,
with two values, 0 outside and any other inside (a PNG; a JPEG has more values). --target none then
does without labels.
LABELS and GROUPS. Texts or numbers. --target and --sensitive name other columns than label, group,
numbers or dates in bins (age:18,40,60; dates as 2021-06-30), or several crossed (gender+race).
Without a column label it is the folder in which a picture lies, as in cat/1.jpg. Cells that are
empty, ?, -, NA, NaN, none, null, missing or unknown are missing: --skip-bad leaves such rows out
and counts them.
SPLIT. The column split with train, val and test, or else 70/10/20 percent by subject, or --fold 0
to 4, with equal shares of every class x group. So another --target or --sensitive is another split:
the training of one has seen test pictures of the other. The column split keeps one for all.
Pictures of one subject, such as one patient, stay in one split: --subject names the column, else
one called subject, patient_id, lesion_id, person or the like is taken, which the notes say.
Pictures without a subject are each their own; all are with --subject and the column of files.
GREY of more than 8 bits is spread from black to white in one way for all pictures of the folder:
white is the end of the smallest usual range (8, 12 or 16 bits; floats to 1) that holds them all.
LICENCE. Yours.

Labels in file names: this makes a table for UTKFace, whose files are AGE_GENDER_RACE_DATE.jpg. With
it, try --target gender --sensitive race, or age:18,40,60, or race+age:40.

    import csv, pathlib
    with open("UTKFace/labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "age", "gender", "race"])
        for path in sorted(pathlib.Path("UTKFace").glob("*.jpg")):
            age, gender, race, *date = path.name.split("_")
            if date:  # a few names lack something
                table.writerow([path.name, age, ["male", "female"][int(gender)], "race " + race])

Several tables: this makes one for FairFace (its folder has train/, val/ and a table of each). The
published validation pictures test, and every tenth of the others validates.

    import csv
    with open("fairface/labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "age", "gender", "race", "split"])
        for part in ("train", "val"):
            rows = csv.DictReader(open(f"fairface/fairface_label_{part}.csv"))
            for n, row in enumerate(rows):
                split = "test" if part == "val" else "train" if n % 10 else "val"
                table.writerow([row["file"], row["age"], row["gender"], row["race"], split])
"""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data import InputError
from datasets import Table, find, split_by_subject
from datasets._tables import (
    attribute,
    codes,
    columns_of,
    locate,
    meaning,
    missing,
    read_rows,
    refuse_repeated,
    require,
    subject_column,
    written,
)

DEFAULTS = {
    "image_size": 64,
    "teacher": "resnet18",
    "student": "shufflenet_v2_x0_5",
    "target": "label",
    "sensitive": "group",
    "subject": None,
    "file_column": "file",
    "epochs": 12,
    "batch_size": 64,
    "lr": 0.05,
    "teacher_epochs": 12,
    "teacher_lr": 0.05,
}
SEGMENT = {  # what --task segment has instead
    "teacher": "unet16",
    "student": "unet8",
    "lr": 0.1,
    "teacher_lr": 0.1,
}
PARTS = {"train": "train", "val": "val", "test": "test"}  # what a column split says, and means
PARTS |= {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


def read(root, target, sensitive, fold, download, subject=None, file_column="file"):
    """The Table that labels.csv describes, or the file `root`."""
    advice = "write it with the columns file,label,group (see datasets/csv.py), or pass your table"
    given = root.is_file() or (root.suffix and not root.exists())  # a table, if only by its name
    table = root if given else find(root, ["labels.csv"], f"{advice} as --data-dir")
    root, named = table.parent, file_column.lower()
    lines = read_rows(table, [named], flag="--file-column")
    rows = list(lines.values())
    for line, row in lines.items():
        if not row[named]:
            raise InputError(f"{table}, line {line}: {named} is empty: fill it in")
        if not Path(os.path.abspath(root / row[named])).is_relative_to(os.path.abspath(root)):
            raise InputError(
                f"{table}, line {line}: {row[named]} lies outside {root}: use names inside it"
            )
    others, header = [row.get("mask", "") for row in rows], [*rows[0]]
    found = locate(root, [row[named] for row in rows], table, others)
    refuse_repeated(table, [os.path.normpath(found[row[named]]) for row in rows])
    path = table.resolve()
    name = path.parent.name if path.name == "labels.csv" else path.stem
    notes = {"name on pages": re.sub(r"\W+", "_", name), "rows": len(lines)}
    if target == "none":
        for row in rows:
            row["none"] = "all"
    if target == "label" and "label" not in header:
        for row in rows:  # the folder below `root`, as in cat/1.jpg
            row["label"] = Path(os.path.relpath(found[row[named]], root)).parent.name
        folders = sorted({row["label"] for row in rows})
        if len(folders) == 1 and "mask" not in rows[0]:
            raise InputError(
                f"{table} has no column 'label', and all pictures lie in one folder: write the "
                f"column, or choose one with --target, it has {', '.join(header)}"
            )
        notes["labels"] = f"the folders of the pictures, such as {folders[0]!r} (see --target)"

    chosen = ((target, "--target"), (sensitive, "--sensitive"))
    labels, groups = (attribute(table, rows, *choice)[0] for choice in chosen)
    incomplete = {}
    for (line, row), label, group in zip(lines.items(), labels, groups):
        if not label or not group:
            what = sensitive if label else target
            cells = (row.get(column, "") for column in columns_of(what))
            cell = next((cell for cell in cells if cell and missing(cell)), "")
            why = f"is {cell!r}, which is read as missing" if cell else "is missing"
            incomplete[row[named]] = f"line {line}: {what} {why}"
    rows = [row for row in rows if row[named] not in incomplete]
    if not rows:
        raise InputError(f"{table}: no row has both a {target} and a {sensitive}: fill them in")
    (labels, classes), (groups, group_names) = (attribute(table, rows, *c) for c in chosen)
    labels, groups = codes(labels, classes), codes(groups, group_names)

    guess = subject_column(rows[0], target, sensitive)
    subject = written(subject, rows[0]) if subject else guess
    require(table, rows[0], [subject] if subject else [], "--subject")
    own = [subject is None or missing(row[subject]) for row in rows]
    subjects, first = [row[named if alone else subject] for row, alone in zip(rows, own)], {}
    for n, who in enumerate(subjects):  # 1.0 is 1, and p1 is P1: the first way to write it counts
        subjects[n] = who if own[n] else first.setdefault(meaning(who), who)
    notes["subjects"] = "each picture is its own (see --subject)"
    if subject:
        number = len({s for s, alone in zip(subjects, own) if not alone})
        notes["subjects"] = f"{number} of the column {subject!r} (see --subject)"
        notes["pictures without a subject, each its own"] = sum(own)
        who, most = Counter(subjects).most_common(1)[0]
        if most > len(rows) / 10 and most > 3 * len(rows) / len({*subjects}):
            notes["THE LARGEST SUBJECT"] = (
                f"{who!r}, of {most} pictures: is it one subject, or a word for none?"
            )
    subjects = np.array(subjects)
    if "split" not in rows[0]:
        split = split_by_subject(subjects, labels * len(group_names) + groups, fold)
        notes["split"] = "by subject; another with another --target or --sensitive"
    elif fold is not None:
        raise InputError(f"{table} has a column 'split': leave out --fold, or remove the column")
    else:
        advice = "write train, val or test in every row, or leave the column out"
        for line, row in lines.items():
            said = row["split"]
            if said.lower() not in PARTS and row[named] not in incomplete:
                raise InputError(f"{table}, line {line}: split {said!r} is unknown: {advice}")
        split = np.array([PARTS[row["split"].lower()] for row in rows])
        for part in ("train", "val", "test"):
            if part not in split:
                raise InputError(f"{table}: no row has the split {part!r}: {advice}")
        where = {}
        for subject, part in zip(subjects.tolist(), split.tolist()):
            if where.setdefault(subject, part) != part:
                raise InputError(
                    f"{table}: subject {subject!r} is in {where[subject]} and in {part}: keep each "
                    "subject in one split"
                )

    def masks():
        require(table, header, ["mask"])
        names = [row["mask"] for row in rows if not missing(row["mask"])]
        places = locate(root, names, table, [row[named] for row in rows])
        return [places.get(row["mask"]) for row in rows]

    return Table(
        [found[row[named]] for row in rows],
        [row[named] for row in rows],
        labels,
        groups,
        subjects,
        split,
        classes,
        group_names,
        notes,
        incomplete=incomplete,
        mask_files=masks,
    )
