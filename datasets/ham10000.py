"""ham10000: 10,015 dermatoscopic pictures of 7,470 lesions (Tschandl, Rosendahl and Kittler, 2018).

WHERE. https://doi.org/10.7910/DVN/DBW86T; --download fetches 2.7 GB and checks the sums.
FILES. HAM10000_metadata.csv (or .tab), or the metadata.csv of the ISIC archive, and the pictures,
JPEG or PNG, in folders beside it, at any depth. So are the masks of the lesions, for --task
segment, which are called <image_id>_segmentation.png (cite Tschandl et al., Nature Medicine, 2020).
LABELS. --target malignant: akiec or mel, as in MEDFAIR (Zong et al., 2023); malignant+bcc; or dx,
the seven diagnoses, or none, one class for all. With --task segment a class is not learnt: it says
inside which pictures groups are compared (standardised gaps), dx by default.
GROUPS. --sensitive sex, age (up to 60, over 60), age in bins (age:30,50,70), localization (head and
neck, trunk, upper and lower extremity; elsewhere or unknown is left out, also acral, palms/soles
and oral/genital, which fit two), or such crossed, as in sex+age. Pictures with unknown sex or
without age are always left out; 9,948 remain.
SPLIT. By lesion, so that no lesion is in two splits. With a split by picture 38 % of the test
pictures would show a lesion seen in training. The published split has 7,967 pictures to train, 969
to validate and 1,012 to test. --fold 0 to 4 test every picture once. All folds have equal shares of
every diagnosis x sex x age (up to 60, over 60), whatever labels and groups are chosen, so that
teachers can be shared. ISIC numbers lesions anew: the split of its table is another one.
LICENCE. CC BY-NC 4.0, not for commercial use; cite the paper.
"""

import math
import re
import zipfile
from pathlib import Path

import numpy as np

from data import InputError
from datasets import Table, find, split_by_subject
from datasets._tables import attribute, codes, is_number, missing, pictures_below, read_rows

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
    "views": "turned",  # the skin has no upright
}
SEGMENT = {  # what --task segment has instead
    "teacher": "unet16",
    "student": "unet8",
    "target": "dx",
    "epochs": 6,
    "lr": 0.2,
    "teacher_epochs": 6,
    "teacher_lr": 0.2,
}
PAGE = "https://doi.org/10.7910/DVN/DBW86T"
SERVER = "https://dataverse.harvard.edu/api/access/datafile/"
FILES = {  # name: (number at Harvard Dataverse, MD5 that Dataverse publishes)
    "HAM10000_metadata.csv": ("4338392?format=original", "8f85fb1aa29d80a2797247e434deb79d"),
    "HAM10000_images_part_1.zip": ("3172585", "4639bfa73ab251610530a97c898e6e46"),
    "HAM10000_images_part_2.zip": ("3172584", "da43d6cc50f6613013be07e8986b384b"),
    "HAM10000_segmentations_lesion_tschandl.zip": ("3838943", "6e8d252e09cfdb0189199f15985a5b84"),
}
CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
TARGETS = {"malignant": ["akiec", "mel"], "malignant+bcc": ["akiec", "mel", "bcc"]}
TARGETS |= {"dx": None, "none": None}
ISIC = {  # what the archive calls columns and diagnoses
    "isic_id": "image_id",
    "age_approx": "age",
    "anatom_site_general": "localization",
    "diagnosis": "dx",
    "diagnosis_3": "dx",  # since 2024; where it is empty, diagnosis_2 says enough
    "nevus": "nv",
    "melanoma": "mel",
    "pigmented benign keratosis": "bkl",
    "basal cell carcinoma": "bcc",
    "actinic keratosis": "akiec",
    "squamous cell carcinoma": "akiec",
    "dermatofibroma": "df",
    "vascular lesion": "vasc",
    "melanoma, nos": "mel",
    "solar or actinic keratosis": "akiec",
    "squamous cell carcinoma, nos": "akiec",
    "benign soft tissue proliferations - vascular": "vasc",
}
REGIONS = {
    "head and neck": ["scalp", "face", "ear", "neck", "head/neck"],
    "trunk": ["back", "trunk", "chest", "abdomen", "genital"]
    + ["anterior torso", "posterior torso", "lateral torso"],
    "upper extremity": ["upper extremity", "hand"],
    "lower extremity": ["lower extremity", "foot"],
}


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
                    ## The archive of masks was packed on a Mac, which adds stubs named "._...".
                    if re.fullmatch(r"ISIC_\d+(_segmentation)?\.(jpg|png)", member.filename):
                        archive.extract(member, root / Path(name).stem)


def read(root, target, sensitive, fold, download):
    """The Table of the pictures; those of unknown sex or age are left out and counted."""
    if download:
        fetch(root)
    names = [*(f"HAM10000_metadata{ending}" for ending in (".csv", ".tab", "")), "metadata.csv"]
    advice = f"get it and the pictures from {PAGE}, or add --download (2.7 GB)"
    table = find(root, names, advice)
    if target not in TARGETS:
        raise InputError(f"--target {target!r} is unknown: choose one of {', '.join(TARGETS)}")
    parts = ["age:60" if part == "age" else part for part in sensitive.split("+")]
    if not {part.partition(":")[0] for part in parts} <= {"sex", "age", "localization"}:
        raise InputError(
            f"--sensitive {sensitive!r} is unknown: choose sex, age, age:30,50,70, localization, "
            "or such crossed, as sex+age"
        )

    columns = ["image_id", "lesion_id", "dx", "age", "sex"]
    rows = list(read_rows(table, columns, ISIC).values())
    rows.sort(key=lambda row: row["image_id"])
    for row in rows:
        row["dx"] = row.get("diagnosis_2", "") if missing(row["dx"]) else row["dx"]
    incomplete = {row["image_id"]: "dx is missing" for row in rows if missing(row["dx"])}
    rows = [row for row in rows if row["image_id"] not in incomplete]
    region_of = {site: region for region, sites in REGIONS.items() for site in sites}
    for row in rows:
        where = f"{table}, picture {row['image_id']}"
        row["dx"] = ISIC.get(row["dx"].lower(), row["dx"])
        row["localization"] = region_of.get(row.get("localization"), "")
        if row["sex"] not in ("male", "female") and not missing(row["sex"]):
            raise InputError(f"{where}: sex is {row['sex']!r}, but must be male, female or unknown")
        if row["dx"] not in CLASSES:
            raise InputError(f"{where}: dx is {row['dx']!r}, but must be one of {CLASSES}")
        years = float(row["age"]) if is_number(row["age"]) else 0 if missing(row["age"]) else -1
        if not 0 <= years <= 130:
            raise InputError(f"{where}: age is {row['age']!r}, but must be a number of years")
    found = {Path(name).stem: root / name for name in pictures_below(root)[::-1]}
    ids = [row["image_id"] for row in rows]
    if not any(i in found for i in ids):
        raise InputError(
            f"{root} has the table but none of its pictures, such as {ids[0]}.jpg: put them into "
            f"{root / 'HAM10000_images_part_1'} and _part_2, or add --download (2.7 GB)"
        )

    positive = TARGETS[target]
    classes = ["benign", "malignant"] if positive else CLASSES
    labels = [classes[row["dx"] in positive] if positive else row["dx"] for row in rows]
    if target == "none":
        classes, labels = ["all"], ["all"] * len(rows)
    labels = codes(labels, classes)
    groups, group_names = attribute(table, rows, "+".join(parts))
    known = np.array([not (missing(row["sex"]) or missing(row["age"])) for row in rows])
    used = known & np.array([group != "" for group in groups])
    group_names = [name for name in group_names if name in {g for g, u in zip(groups, used) if u}]
    groups = codes([g if u else group_names[0] for g, u in zip(groups, used)], group_names)
    lesions = [row["lesion_id"] for row in rows]
    lesions = np.array([i if missing(lesion) else lesion for lesion, i in zip(lesions, ids)])
    if fold is None:
        ## The published split: a fifth of the shuffled lesions goes off, and half of that, shuffled
        ## once more, is the test set (scikit-learn's train_test_split, random_state=0, used twice).
        off = np.unique(lesions[known])
        off = off[np.random.RandomState(0).permutation(len(off))][: math.ceil(len(off) / 5)]
        test = off[np.random.RandomState(0).permutation(len(off))][: math.ceil(len(off) / 2)]
        split = np.where(np.isin(lesions, off), "val", "train")
        split[np.isin(lesions, test)] = "test"
    else:
        split = np.full(len(rows), "train", dtype="<U5")
        cells = [
            (row["dx"], row["sex"], float(row["age"]) > 60) for row, k in zip(rows, known) if k
        ]
        _, cells = np.unique([f"{cell}" for cell in cells], return_inverse=True)
        split[known] = split_by_subject(lesions[known], cells, fold)
    notes = {
        "rows": len(rows),
        "left out: sex unknown or age missing": int((~known).sum()),
        "left out: elsewhere on the body (such as palms/soles), or unknown where": int(
            (known & ~used).sum()
        ),
        "kept: age 0, probably not recorded": sum(
            float(row["age"]) == 0 for row, u in zip(rows, used) if u
        ),
    }

    def masks():
        names, folder = [f"{i}_segmentation" for i in ids], "HAM10000_segmentations_lesion_tschandl"
        return [found.get(name, root / folder / f"{name}.png") for name in names]

    return Table(
        [found.get(i, root / "**" / f"{i}.jpg") for i in ids],  # looked for at any depth
        ids,
        labels,
        groups,
        lesions,
        np.where(used, split, ""),
        classes,
        group_names,
        notes,
        incomplete=incomplete,
        mask_files=masks,
        inside="lesion",
    )
