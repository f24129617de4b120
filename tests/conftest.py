"""Miniature data sets in the layout in which users have the real ones; methods built for a test.

Every picture has one colour, a function of its number, so that a test can tell which one it got.
"""

import contextlib
import copy
import csv
import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import ckd
import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import datasets.cifar10s
import datasets.toy
import datasets.wider
from data import load

datasets.toy.draw = functools.cache(datasets.toy.draw)  # once for all runs in this process

DX = ["nv", "mel", "nv", "bkl", "nv", "bcc", "akiec", "nv", "vasc", "df"]


def colour(number):
    """Red, green and blue of picture `number`."""
    return (7 * number + 20) % 256, (13 * number + 90) % 256, (29 * number + 150) % 256


def mask_of(number, size):
    """The mask of picture `number`, of (width, height) = size: a rectangle inside of it, bool."""
    inside = np.zeros(size[::-1], bool)
    inside[3 + number % 4 : -4, 5 + number % 3 : -6] = True
    return inside


def save_mask(path, number, size):
    """A mask as a file: every third has a palette in which number 0 is white, as in HAM10000."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = mask_of(number, size)
    image = Image.fromarray(255 * mask.astype(np.uint8))
    if number % 3 == 0:
        image = Image.fromarray(1 - mask.astype(np.uint8), mode="P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


def number_of(name):
    """The number of a picture in a miniature, from its name."""
    return int("".join(filter(str.isdigit, Path(name.split()[0]).stem.split("_")[-1])))


def check_colours(split):
    """Every picture of a miniature is the one that its name says."""
    shown = split.images.float().mean(dim=(2, 3)).numpy()
    meant = np.array([colour(number_of(name)) for name in split.ids])
    np.testing.assert_allclose(shown, meant, atol=4)  # JPEG


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
        masks = root / "HAM10000_segmentations_lesion_tschandl"
        save_mask(masks / f"{row['image_id']}_segmentation.png", number, (30, 22))
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


def add_masks(root):
    """Masks of all pictures of `make_pictures`, in masks/ and in the column mask."""
    rows = read_table(root / "labels.csv")
    for n, row in enumerate(rows):
        row["mask"] = f"masks/{n:03}.png"
        with Image.open(root / row["file"]) as image:
            save_mask(root / row["mask"], n, image.size)
    write_table(root / "labels.csv", rows)


def make_cifar10s(root):
    """CIFAR-10 in class folders: 20 training and 2 test pictures of each class, numbered like the
    official ones: k is the k-th picture of its part."""
    for part, number in (("train", 200), ("test", 20)):
        for k, c in enumerate(np.random.default_rng(number).permutation(number) % 10):
            folder = root / part / datasets.cifar10s.CLASSES[c]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour(k)).save(folder / f"{k:05}.png")


CELEBA = "5_o_Clock_Shadow Attractive Male Smiling Young".split()  # of the 40 attributes


def celeba_attributes(number):
    """What is true of picture `number`, 0 or 1 in the order of CELEBA; all 32 cells occur."""
    return [(7 * number + number // 32) % 32 >> k & 1 for k in range(5)]


def make_celeba(root):
    """90 faces of 30 persons; the first 54 are for training, then 18 for validation."""
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{n:06}.jpg" for n in range(1, 91)]
    signs = [" ".join(f"{2 * v - 1:2}" for v in celeba_attributes(n)) for n in range(1, 91)]
    lists = {
        "list_attr_celeba.txt": ["90", " ".join(CELEBA) + " "]
        + [f"{name} {sign}" for name, sign in zip(names, signs)],
        "list_eval_partition.txt": [
            f"{name} {(k >= 54) + (k >= 72)}" for k, name in enumerate(names)
        ],
        "identity_CelebA.txt": [f"{name} {100 + k // 3}" for k, name in enumerate(names)],
    }
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    for n, name in enumerate(names, 1):
        Image.new("RGB", (18, 22), colour(n)).save(root / "img_align_celeba" / name)


def wider_people(number):
    """Gender of the people in image `number`: 1 a man, -1 a woman, 0 unknown."""
    mixed = [[1, -1, 0], [1, 0, 0, 0], [-1, -1, 1], [0, 0], []]
    return mixed[number // 2 % 9 - 4] if number // 2 % 9 >= 4 else [[-1, 0], [1]][number % 2]


def make_wider(root):
    """Six images of each of the 30 events: two for training, two for validation, two for tests.
    The people stand beside each other, 4 x 10 pixels each, image n in colours from 10 n on."""
    contents, number = {"trainval": [], "test": []}, 0
    events = [event for events in datasets.wider.CLASSES.values() for event in events]
    for part in ("train", "val", "test"):
        for event in events * 2:
            people = wider_people(number)
            name = f"{part}/{event}--An_Event/{event}_An_Event_{number}.jpg"
            image = Image.new("RGB", (40, 20), colour(number))
            for k in range(len(people)):
                image.paste(colour(10 * number + k), (8 * k, 5, 8 * k + 4, 15))
            (root / "Image" / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / "Image" / name, quality=95)
            targets = [
                {"attribute": [gender] + 13 * [0], "bbox": [8.0 * k, 5, 4, 10]}
                for k, gender in enumerate(people)
            ]
            content = {"file_name": name, "scene_id": event, "targets": targets}
            contents["test" if part == "test" else "trainval"].append(content)
            number += 1
    for part, images in contents.items():
        text = json.dumps({"images": images, "attribute_id_map": {"0": "Male"}})
        (root / f"wider_attribute_{part}.json").write_text(text)


MAKERS = {  # a miniature for each data set that is not drawn
    "ham10000": make_ham10000,
    "cifar10s": make_cifar10s,
    "celeba": make_celeba,
    "wider": make_wider,
    "csv": make_pictures,
}


@pytest.fixture(scope="session", autouse=True)
def pixels(tmp_path_factory):
    """`load` keeps decoded pixels in a folder of the tests, not in runs/ of the project."""
    usual = datasets.read_table.__defaults__
    folder = tmp_path_factory.mktemp("pixels")
    datasets.read_table.__defaults__ = tuple(folder if v == "runs" else v for v in usual)
    yield folder / "decoded"
    datasets.read_table.__defaults__ = usual


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """All miniatures, made once, in folders with the names of the data sets; tests use copies.

    A test that ran on an original would leave decoded pixels in it, which other tests would copy.
    """
    folder = tmp_path_factory.mktemp("originals")
    for name, make in MAKERS.items():
        make(folder / name)
    before = {*folder.rglob("*")}
    yield folder
    assert {*folder.rglob("*")} == before, "a test ran on an original miniature, not on a copy"


@pytest.fixture
def ham10000(originals, tmp_path):
    """A folder as HAM10000 comes: a table and two folders of pictures."""
    return shutil.copytree(originals / "ham10000", tmp_path / "ham10000")


@pytest.fixture
def pictures(originals, tmp_path):
    """A folder with labels.csv and pictures/."""
    return shutil.copytree(originals / "csv", tmp_path / "pictures")


@pytest.fixture
def cifar10(originals, tmp_path):
    """CIFAR-10 in class folders."""
    return shutil.copytree(originals / "cifar10s", tmp_path / "cifar10")


@pytest.fixture
def celeba(originals, tmp_path):
    """A folder with CelebA's lists and its pictures."""
    return shutil.copytree(originals / "celeba", tmp_path / "celeba")


@pytest.fixture
def wider(originals, tmp_path):
    """A folder with WIDER Attribute's JSON files and images."""
    return shutil.copytree(originals / "wider", tmp_path / "wider")


torch.set_num_threads(1)  # these networks are small, and pytest-xdist keeps all cores busy


def arguments(module, *flags):
    """A script's settings in smoke mode on the CPU, for the toy's six classes, or its masks."""
    args = module.parse(["--smoke", "--device", "cpu", *flags])
    return module.settle(args, 2 if args.task == "segment" else 6)


def cells_of(text):
    """{(block, row, rule): [cells]} of a table of metrics.show; rule: "" or its word."""
    found, block, row = {}, "", ""
    for line in text.splitlines():
        name, *cells = re.split("  +", line.strip())
        if line.startswith(" ") and cells:
            row = row if line.startswith("   ") else name.rstrip(" ↑↓")
            found[block, row, name if line.startswith("   ") else ""] = cells
        else:
            block = line.rstrip(" ↑↓")
    return found


def random(*shape, seed=0):
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.cache
def load_toy():
    """A few pictures of every cell of the embedded data set; no test changes them."""
    return load("toy", smoke=True)


@pytest.fixture(scope="session")
def toy():
    return load_toy()


def method_of(module, data, *flags, networks=("convnet4", "convnet2")):
    """The method, built like a run builds it, with an untrained teacher."""
    args = arguments(module, *flags)
    torch.manual_seed(1)
    teacher = module.Teacher(module.Network(args, networks[0], len(data.outputs)))
    torch.manual_seed(0)
    student = module.Network(args, networks[1], len(data.outputs))
    return module.Method(args, data, student, teacher)


def regrouped(data, change, names):
    """The same pictures in other groups: change(split) gives their numbers."""
    splits = {part: replace(split, groups=change(split)) for part, split in data.splits.items()}
    return replace(data, group_names=names, splits=splits)


@contextlib.contextmanager
def stopping(kind):
    """What trains by `kind`, such as a Method, is stopped in its second epoch, as by Ctrl-C."""
    step = kind.step

    def stop_late(self, batch):
        if batch.epoch == 1 and batch.step == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", stop_late)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_step_2_is_plain_distillation(method, live, views):
    """Step 2 of a FairDi with one group does to its student what ckd.py does with that teacher.

    live: whether the backbone is trained, too; views: batches.
    """
    plain = ckd.Method(method.args, method.data, copy.deepcopy(method.student), None)
    plain.teacher = lambda batch: (None, method.taught(method.phi.of(batch), batch.groups))
    for half in (method, plain):
        half.student.train(live)  # what is frozen is in evaluation mode
    if not live:
        plain.student.body.requires_grad_(False)
    for batch in views:
        ours, theirs = method.step(batch), plain.step(batch)
        for name in ("loss", "loss_ce", "loss_kd"):
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-4)
    states = (half.student.state_dict() for half in (method, plain))
    for (name, a), b in zip(next(states).items(), next(states).values()):
        assert torch.allclose(a, b, atol=1e-5), name


@pytest.fixture(scope="module")
def lesions():
    """600 pictures of 300 lesions in five folds, labels, groups, and the logits of two methods."""
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(300), 2)
    labels, groups = rng.integers(0, 2, 300)[subjects], rng.integers(0, 2, 300)[subjects]
    noise = rng.normal(size=(600, 2))
    good = noise + 1.5 * np.eye(2)[labels]
    fair = np.where(groups[:, None] == 1, good, noise + 1.3 * np.eye(2)[labels])
    return {
        "ids": np.array([f"p{n:03}" for n in range(600)]),
        "subjects": np.array([f"l{n:03}" for n in subjects]),
        "fold": subjects % 5,
        "labels": labels,
        "groups": groups,
        "ckd": good.astype(np.float16),
        "groupdro": fair.astype(np.float16),
    }
