"""ham10000: 10,015 dermatoscopic pictures of 7,470 lesions (Tschandl, Rosendahl and Kittler, 2018).

WHERE. https://doi.org/10.7910/DVN/DBW86T; --download fetches 2.7 GB and checks the sums.
FILES. HAM10000_metadata.csv (or .tab), and the pictures in HAM10000_images_part_1 and _part_2, in
one folder, or beside the table.
LABELS. --target malignant: akiec or mel, as in MEDFAIR (Zong et al., 2023); malignant+bcc; or dx,
the seven diagnoses.
GROUPS. --sensitive sex, age (up to 60, over 60), or sex+age. Pictures with unknown sex or without
age are left out; 9,948 remain.
SPLIT. By lesion, so that no lesion is in two splits. With a split by picture 38 % of the test
pictures would show a lesion seen in training. The published split has 7,967 pictures to train, 969
to validate and 1,012 to test; --fold 0 to 4 test every picture once.
LICENCE. CC BY-NC 4.0, not for commercial use; cite the paper.
"""

import itertools
import math
import zipfile
from pathlib import Path

import numpy as np

from data import InputError
from datasets import Table, codes, find, read_rows, split_by_subject

DEFAULTS = {
    "image_size": 64,
    "teacher": "resnet18",
    "student": "shufflenet_v2_x0_5",
    "target": "malignant",
    "sensitive": "sex",
    "epochs": 12,
    "batch_size": 64,
    "lr": 0.05,
    "teacher_epochs": 12,
    "teacher_lr": 0.05,
}
PAGE = "https://doi.org/10.7910/DVN/DBW86T"
SERVER = "https://dataverse.harvard.edu/api/access/datafile/"
FILES = {  # name: (number at Harvard Dataverse, MD5 that Dataverse publishes)
    "HAM10000_metadata.csv": ("4338392?format=original", "8f85fb1aa29d80a2797247e434deb79d"),
    "HAM10000_images_part_1.zip": ("3172585", "4639bfa73ab251610530a97c898e6e46"),
    "HAM10000_images_part_2.zip": ("3172584", "da43d6cc50f6613013be07e8986b384b"),
}
CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
TARGETS = {"malignant": ["akiec", "mel"], "malignant+bcc": ["akiec", "mel", "bcc"], "dx": None}
GROUPS = {"sex": ["female", "male"], "age": ["age<=60", "age>60"]}


def fetch(root):
    """Fetch HAM10000 (about 2.7 GB) from its owner, check the MD5 sums, unpack into `root`."""
    from torchvision.datasets.utils import download_url

    for name, (number, md5) in FILES.items():
        if name.endswith(".csv") and (root / name).exists():
            continue  # the reader's own table stays
        try:
            download_url(SERVER + number, root, name, md5)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{name} cannot be downloaded ({error}): get it from {PAGE} and put it into {root}"
            ) from None
        if name.endswith(".zip"):
            with zipfile.ZipFile(root / name) as archive:
                for member in archive.infolist():
                    member.filename = Path(member.filename).name  # no folders: nothing can leave
                    if member.filename.endswith(".jpg"):
                        archive.extract(member, root / Path(name).stem)


def group_of(row, attribute):
    """The group of a row of the table, whose age is a number of years."""
    return row["sex"] if attribute == "sex" else GROUPS["age"][row["age"] > 60]


def read(root, target, sensitive, fold, download):
    """The Table of the pictures; those of unknown sex or age are left out and counted."""
    if download:
        fetch(root)
    names = [f"HAM10000_metadata{ending}" for ending in (".csv", ".tab", "")]
    advice = f"get it and the pictures from {PAGE}, or add --download (2.7 GB)"
    table = find(root, names, advice)
    if target not in TARGETS:
        raise InputError(f"--target {target!r} is unknown: choose one of {', '.join(TARGETS)}")
    attributes = sensitive.split("+")
    if not set(attributes) <= set(GROUPS) or len(set(attributes)) < len(attributes):
        raise InputError(f"--sensitive {sensitive!r} is unknown: choose sex, age or sex+age")

    rows = read_rows(table, ["image_id", "lesion_id", "dx", "age", "sex"])
    rows.sort(key=lambda row: row["image_id"])
    for row in rows:
        where = f"{table}, picture {row['image_id']}"
        if row["sex"] not in ("male", "female", "unknown", ""):
            raise InputError(f"{where}: sex is {row['sex']!r}, but must be male, female or unknown")
        if row["dx"] not in CLASSES:
            raise InputError(f"{where}: dx is {row['dx']!r}, but must be one of {CLASSES}")
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

    positive = TARGETS[target]
    classes = ["benign", "malignant"] if positive else CLASSES
    labels = [classes[row["dx"] in positive] if positive else row["dx"] for row in rows]
    used = np.array([row["sex"] in ("male", "female") and row["age"] is not None for row in rows])
    ## Of crossed attributes every combination is a group.
    group_names = [" ".join(names) for names in itertools.product(*map(GROUPS.get, attributes))]
    groups = [
        " ".join(group_of(row, a) for a in attributes) if u else group_names[0]
        for row, u in zip(rows, used)
    ]
    lesions = np.array([row["lesion_id"] for row in rows])
    if fold is None:
        ## The published split: a fifth of the shuffled lesions goes off, and half of that, shuffled
        ## once more, is the test set (scikit-learn's train_test_split, random_state=0, used twice).
        off = np.unique(lesions[used])
        off = off[np.random.RandomState(0).permutation(len(off))][: math.ceil(len(off) / 5)]
        test = off[np.random.RandomState(0).permutation(len(off))][: math.ceil(len(off) / 2)]
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
        [found.get(i) for i in ids],
        ids,
        codes(labels, classes),
        codes(groups, group_names),
        lesions,
        np.where(used, split, ""),
        classes,
        group_names,
        notes,
    )
