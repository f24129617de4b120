"""cifar10s: CIFAR-10 in which some pictures have lost their colours (CIFAR10-S, Wang et al., 2020).

WHERE. https://www.cs.toronto.edu/~kriz/cifar.html; --download fetches 170 MB and checks the sum.
FILES. cifar-10-batches-py, or class folders train/<class>/* and test/<class>/*.
LABELS. The ten classes.
GROUPS. colour and grey. As published, 95 % of the training pictures of a class (--skew) are in its
usual style: grey for airplane, bird, deer, frog and ship, colour for the others. So 25,000 of the
50,000 are grey. They are drawn with the authors' seed and made grey by their formula. In class
folders the draw is theirs only where sorted names give the official order.
SPLIT. Test: the official pictures, each in both styles, 20,000; the two copies of one picture are
one cluster of the bootstrap. Wang et al. have no validation split. Ours is a tenth of each class
and style of the training pictures: 45,000 train and 5,000 validate, equally skewed.
LICENCE. No formal one; cite Krizhevsky, 2009.
"""

import random

import numpy as np

from data import InputError
from datasets import Table, find, in_grey, refuse_choices

DEFAULTS = {
    "image_size": 32,
    "teacher": "resnet18",
    "student": "resnet18",
    "target": "label",
    "sensitive": "group",
    "skew": 0.95,
    "epochs": 12,
    "batch_size": 64,
    "lr": 0.05,
    "teacher_epochs": 12,
    "teacher_lr": 0.05,
}
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def class_folders(root):
    """Files and labels of both parts of CIFAR-10, from class folders: train/cat/1.png, ..."""
    files, labels = {}, {}
    for part in ("train", "test"):
        there = {p.name: p for p in sorted((root / part).glob("[!.]*"))}
        for name in set(CLASSES) - set(there):
            raise InputError(f"{root / part} has no folder {name!r}: it needs one for each class")
        for name in set(there) - set(CLASSES):
            raise InputError(
                f"{there[name]} is in none of the folders {', '.join(CLASSES)}: move it into "
                "the folder of its class, or away"
            )
        ## Shorter names first: 2.png comes before 10.png, as in the official order.
        lists = [
            sorted(there[name].glob("[!.]*"), key=lambda p: (len(p.name), p.name))
            for name in CLASSES
        ]
        files[part] = [file for names in lists for file in names]
        labels[part] = np.repeat(np.arange(10), [len(names) for names in lists])
    return files, labels


def official_batches(root, download):
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
            f"version from {PAGE} and unpack it in {root}, or add --download (170 MB)"
        ) from None
    return (
        {part: data.data for part, data in parts.items()},
        {part: np.array(data.targets) for part, data in parts.items()},
    )


def read(root, target, sensitive, fold, download, skew=DEFAULTS["skew"]):
    """The Table of CIFAR10-S, with its pictures where the official batches are read."""
    refuse_choices("cifar10s", fold, target, sensitive)
    if not 0 < skew < 1:
        raise InputError(f"--skew {skew} must lie between 0 and 1, such as 0.95")
    advice = f"get the python version from {PAGE}, or add --download (170 MB)"
    folders = any((root / part).is_dir() for part in ("train", "test"))
    if not folders and not download:
        find(root, ["cifar-10-batches-py", "train/cat"], advice)
    sources, labels = class_folders(root) if folders else official_batches(root, download)

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
        np.concatenate([labels["train"], labels["test"]])[place],
        grey.astype(np.int64),
        subjects,
        np.concatenate([split, np.full(2 * tests, "test")]),
        CLASSES,
        ["colour", "grey"],
        {
            "training pictures": n,
            "of them in grey": int(grey[:n].sum()),
            "of them held out for validation": int((split == "val").sum()),
        },
    )
    if folders:
        table.views = [(None, bool(g)) for g in grey]
    else:
        table.images = np.concatenate([sources["train"], sources["test"]])[place]
        table.images[grey] = in_grey(table.images[grey])
    return table
