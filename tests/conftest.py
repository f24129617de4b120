"""Miniature data sets in the layout in which users have the real ones; methods built for a test.

Every picture has one colour, a function of its number, so that a test can tell which one it got.
"""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import data as D
import runs as R

DX = ["nv", "mel", "nv", "bkl", "nv", "bcc", "akiec", "nv", "vasc", "df"]


def colour(number):
    """Red, green and blue of picture `number`."""
    return (7 * number + 20) % 256, (13 * number + 90) % 256, (29 * number + 150) % 256


def read_table(path):
    """The rows of a table as dicts."""
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_table(path, rows, **style):
    """Rows (dicts) as a table with the columns of the first row."""
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0], **{"lineterminator": "\n", **style})
        writer.writeheader()
        writer.writerows(rows)


def make_ham10000(root):
    """120 pictures of 80 lesions; every fourth lesion has three. Two lesions without sex, one
    without age."""
    rng = np.random.default_rng(2)
    rows = []
    for k in range(80):
        sex, age = ("female", "male")[rng.integers(2)], (35.0, 60.0, 65.0, 80.0)[rng.integers(4)]
        sex, age = "unknown" if k in (3, 13) else sex, "" if k == 27 else age
        for _ in range(3 if k % 4 == 0 else 1):
            row = {"lesion_id": f"HAM_{k:07}", "image_id": "", "dx": DX[k % 10], "dx_type": "histo"}
            rows.append({**row, "age": age, "sex": sex, "localization": "back"})
    for row, number in zip(rows, rng.permutation(len(rows))):
        row["image_id"] = f"ISIC_{number:07}"
        folder = root / f"HAM10000_images_part_{1 + number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 22), colour(number)).save(folder / f"{row['image_id']}.jpg")
    write_table(root / "HAM10000_metadata.csv", rows)


def make_pictures(root):
    """96 pictures of 32 persons, PNG and JPEG of many sizes; three labels, two groups, and the
    age as a column that the reader does not know."""
    rng = np.random.default_rng(3)
    rows = []
    (root / "pictures").mkdir(parents=True)
    for n in range(96):
        file = f"pictures/{n:03}.{'jpg' if n % 2 else 'png'}"
        Image.new("RGB", (20 + n % 7, 18 + n % 5), colour(n)).save(root / file)
        label, group = ("cat", "dog", "fox")[rng.integers(3)], ("indoor", "outdoor")[n % 2]
        age = ("5", "10", "30")[n % 3]
        row = {"file": file, "label": label, "group": group, "subject": f"p{n // 3}", "age": age}
        rows.append(row)
    write_table(root / "labels.csv", rows)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Both miniatures, made once; tests get copies of them."""
    folder = tmp_path_factory.mktemp("originals")
    make_ham10000(folder / "ham10000")
    make_pictures(folder / "pictures")
    return folder


@pytest.fixture
def ham10000(originals, tmp_path):
    """A folder as HAM10000 comes: a table and two folders of pictures."""
    return shutil.copytree(originals / "ham10000", tmp_path / "ham10000")


@pytest.fixture
def pictures(originals, tmp_path):
    """A folder with labels.csv and pictures/."""
    return shutil.copytree(originals / "pictures", tmp_path / "pictures")


def arguments(module, *flags):
    """A script's settings in smoke mode on the CPU."""
    return R.complete(module.settings().parse_args(["--smoke", "--device", "cpu", *flags]))


def random(*shape, seed=0):
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def toy():
    """A few pictures of every cell of the embedded data set."""
    return D.load("toy", smoke=True)


def method_of(module, toy, *flags, networks=("convnet4", "convnet2")):
    """The method, built like a run builds it, with an untrained teacher."""
    args = arguments(module, *flags)
    torch.manual_seed(1)
    teacher = module.Teacher(module.Network(args, networks[0], 6))
    torch.manual_seed(0)
    student = module.Network(args, networks[1], 6)
    return module.Method(args, toy, student, teacher)
