"""Bad input gives one clear sentence and an exit code that is not 0, never a traceback.

Most cases run the real script inside this process, as if it were the main program; a few, and the
runs that must come out equal, are processes of their own.
"""

import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures, read_table, write_table
from PIL import Image

import data as D
import readers
import runs

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "methods" / "ckd.py"
HAM, CSV = "HAM10000_metadata.csv", "labels.csv"
SMALL = ["--image-size", "16", "--teacher", "convnet4", "--student", "convnet2", "--smoke",
         "--device", "cpu"]  # fmt: skip


def one_sentence(text):
    """The message of the script, which must be a single line."""
    assert text.startswith("ckd.py: ") and "Traceback" not in text
    assert len(text.strip().splitlines()) == 1 and len(text) > 30
    return text


def outcome(*arguments):
    """Run the script in this process: the sentence with which it ends, or None if all is well."""
    before = sys.argv, sys.path[:]
    try:
        sys.argv = [str(SCRIPT), *map(str, arguments)]
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:  # a text: Python prints it to stderr and exits with 1
        assert isinstance(end.code, str), f"exit code {end.code}"
        return one_sentence(end.code)
    finally:
        sys.argv, sys.path[:] = before
    return None


def process(*arguments, cwd):
    """Run the script as a user does."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=one_thread, capture_output=True, text=True)


# ---------------------------------------------------------------- what can be wrong with the files


def rows(table, change):
    """A fault: `change(list of rows)` in a table, in place or as a new list."""

    def spoil(root):
        content = read_table(root / table)
        write_table(root / table, change(content) or content)

    return spoil


def cell(table, line, column, value):
    """A fault: another value in one cell; lines are counted as editors do."""
    return rows(table, lambda content: content[line - 2].update({column: value}))


def text(table, change):
    """A fault: `change(text)` of a table."""
    return lambda root: (root / table).write_text(change((root / table).read_text()))


def without(table, column):
    return rows(table, lambda content: [row.pop(column) for row in content] and None)


def repeat(table, line):
    return rows(table, lambda content: content.insert(0, dict(content[line - 2])))


def cut(file):
    """A fault: the second half of a picture is missing."""

    def spoil(root):
        image = Image.effect_noise((60, 60), 90).convert("RGB")
        image.save(root / file)
        content = (root / file).read_bytes()
        (root / file).write_bytes(content[: len(content) // 2])

    return spoil


def bomb(root):
    """A fault: a small PNG that says it has 10 billion pixels."""
    content = (root / "pictures/018.png").read_bytes()
    head = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    head += struct.pack(">I", zlib.crc32(head))
    (root / "pictures/018.png").write_bytes(content[:12] + head + content[33:])


def keep_subfolder(root):
    """A fault: the data set lies one folder deeper than the user says."""
    for child in list(root.iterdir()):
        (root / "deeper").mkdir(exist_ok=True)
        child.rename(root / "deeper" / child.name)


def part_of(row):
    """A third of the persons each for training, validation and test."""
    return ("train", "val", "test")[int(row["subject"][1:]) % 3]


def divided(change):
    """labels.csv with a split, and change(part, row) made to every row of it."""

    def divide(content):
        for row in content:
            change(part_of(row), row)
        return [{**row, "split": part_of(row)} for row in content]

    return rows(CSV, divide)


def moved(line, part):
    """labels.csv with a split, in which one row is moved to another part."""

    def divide(content):
        divided = [{**row, "split": part_of(row)} for row in content]
        divided[line - 2]["split"] = part
        return divided

    return rows(CSV, divide)


HAM_FAULTS = {  # name: (fault, more arguments, what the sentence must contain)
    "missing folder": (shutil.rmtree, [], ["does not exist", "--data-dir"]),
    "one level deeper": (keep_subfolder, [], ["no HAM10000_metadata.csv", "{root}/deeper"]),
    "no table": (lambda r: (r / HAM).unlink(), [],
                 ["no HAM10000_metadata.csv", "HAM10000_images_part_1", "doi.org", "--download"]),
    "no pictures": (lambda r: [shutil.rmtree(p) for p in r.glob("*part*")], [],
                    ["none of its pictures", "HAM10000_images_part_1"]),
    "one part missing": (lambda r: shutil.rmtree(r / "HAM10000_images_part_2"), [],
                         ["pictures cannot be read", "ISIC_0000001", "--skip-bad"]),
    "truncated": (cut("HAM10000_images_part_2/ISIC_0000017.jpg"), [],
                  ["1 of 117", "ISIC_0000017", "truncated", "--skip-bad"]),
    "sex": (cell(HAM, 5, "sex", "Male"), [], ["sex is 'Male'", "ISIC_0"]),
    "age": (cell(HAM, 5, "age", "old"), [], ["age is 'old'", "ISIC_0"]),
    "negative age": (cell(HAM, 5, "age", "-1"), [], ["age is '-1'", "ISIC_0"]),
    "age that is no number": (cell(HAM, 5, "age", "nan"), [], ["age is 'nan'", "ISIC_0"]),
    "dx": (cell(HAM, 5, "dx", "wart"), [], ["dx is 'wart'", "akiec"]),
    "twice": (repeat(HAM, 9), [], ["ISIC_", "2 times"]),
    "no lesion_id": (without(HAM, "lesion_id"), [], ["no column 'lesion_id'", "image_id"]),
    "no image_id": (without(HAM, "image_id"), [], ["no column 'image_id'", "lesion_id"]),
    "header only": (text(HAM, lambda t: t.splitlines()[0] + "\n"), [], [HAM, "no rows"]),
    "no group left": (rows(HAM, lambda c: [r.update(sex="male") for r in c] and None), [],
                      ["'female' has no picture", "split of ham10000"]),
    "target": (None, ["--target", "cancer"], ["--target 'cancer'", "malignant+bcc", "dx"]),
    "sensitive": (None, ["--sensitive", "gender"], ["--sensitive 'gender'", "sex", "age"]),
    "sensitive twice": (None, ["--sensitive", "sex+sex"], ["--sensitive 'sex+sex'"]),
    "fold": (None, ["--fold", "5"], ["--fold 5", "0, 1, 2, 3 or 4"]),
}  # fmt: skip

CSV_FAULTS = {
    "missing folder": (shutil.rmtree, [], ["does not exist", "--data-dir"]),
    "one level deeper": (keep_subfolder, [], ["no labels.csv", "deeper"]),
    "no table": (lambda r: (r / CSV).unlink(), [], ["no labels.csv", "it holds pictures"]),
    "truncated JPEG": (cut("pictures/017.jpg"), [], ["1 of 96", "pictures/017.jpg", "truncated"]),
    "truncated PNG": (cut("pictures/018.png"), [], ["1 of 96", "pictures/018.png", "truncated"]),
    "decompression bomb": (bomb, [], ["1 of 96", "pictures/018.png", "bomb"]),
    "empty picture": (lambda r: (r / "pictures/017.jpg").write_bytes(b""), [],
                      ["1 of 96", "pictures/017.jpg"]),
    "text as picture": (lambda r: (r / "pictures/017.jpg").write_text("a cat"), [],
                        ["1 of 96", "pictures/017.jpg"]),
    "missing pictures": (lambda r: [(r / f"pictures/{n}.jpg").unlink() for n in ("017", "033")], [],
                         ["2 of 96", "pictures/017.jpg", "no such file"]),
    "twice": (repeat(CSV, 9), [], ["'pictures/007.jpg' 2 times"]),
    "no label": (without(CSV, "label"), [], ["no column 'label'", "it needs file, label, group"]),
    "header only": (text(CSV, lambda t: t.splitlines()[0] + "\n"), [], [CSV, "no rows"]),
    "empty table": (text(CSV, lambda t: ""), [], [CSV, "no column 'file'"]),
    "semicolons": (text(CSV, lambda t: t.replace(",", ";")), [], [CSV, "file;label;group"]),
    "Latin-1": (lambda r: (r / CSV).write_bytes((r / CSV).read_bytes().replace(b"cat", b"ch\xe2t")),
                [], [CSV, "UTF-8"]),
    "UTF-16": (lambda r: (r / CSV).write_text((r / CSV).read_text(), "utf-16"), [], [CSV, "UTF-8"]),
    "short row": (text(CSV, lambda t: t.replace("008.png,", "008.png\n", 1)), [],
                  [CSV, "line 10", "fewer fields"]),
    "long row": (text(CSV, lambda t: t.replace("008.png", "0,08.png", 1)), [],
                 [CSV, "line 10", "more fields"]),
    "open quote": (text(CSV, lambda t: t.replace("pictures/008", '"pictures/008', 1)), [],
                   [CSV, "line 10"]),
    "open quote in a long table": (
        text(CSV, lambda t: t.replace("pictures/008", '"pictures/008', 1) + 20_000 * "x.png,a,b\n"),
        [], [CSV, "quote"]),
    "empty label": (cell(CSV, 10, "label", ""), [], [CSV, "line 10", "label"]),
    "blank group": (cell(CSV, 10, "group", "  "), [], [CSV, "line 10", "group"]),
    "empty name": (cell(CSV, 10, "file", ""), [], [CSV, "line 10", "file"]),
    "outside": (cell(CSV, 10, "file", "../x.png"), [], [CSV, "line 10", "../x.png"]),
    "very long name": (cell(CSV, 10, "file", "x" * 5000), [], ["1 of 96"]),
    "NUL in a name": (text(CSV, lambda t: t.replace("008.png", "0\0.png", 1)), [], []),
    "one class": (rows(CSV, lambda c: [r.update(label="cat") for r in c] and None), [],
                  ["'cat'", "two classes"]),
    "group absent": (divided(lambda part, row: part == "val" and row.update(group="indoor")), [],
                     ["'outdoor' has no picture in the val split"]),
    "class absent": (
        divided(lambda part, row: part == "train" and row["label"] == "fox" and
                row.update(label="cat")),
        [], ["'fox' has no picture in the train split"]),
    "split word": (moved(7, "dev"), [], ["split 'dev'", "train, val or test"]),
    "empty split": (moved(7, " "), [], ["split ''", "train, val or test"]),
    "subject in test and val": (moved(5, "test"), [], ["subject 'p1'"]),
    "subject in train and val": (moved(5, "train"), [], ["subject 'p1'"]),
    "subject with a space": (
        rows(CSV, lambda c: [{**r, "split": "train" if n == 3 else part_of(r),
                              "subject": r["subject"] + " " * (n == 3)} for n, r in enumerate(c)]),
        [], ["subject 'p1'"]),
    "target": (None, ["--target", "species"], ["no column 'species'", "label, group"]),
    "sensitive": (None, ["--sensitive", "sex"], ["no column 'sex'", "label, group"]),
    "fold": (None, ["--fold", "-1"], ["--fold -1", "0, 1, 2, 3 or 4"]),
    "batch": (None, ["--no-smoke", "--batch-size", "500"], ["batch of 500", "--batch-size"]),
    "teacher": (None, ["--teacher", "resnet19"], ["'resnet19'", "resnet18"]),
    "student": (None, ["--student", "shufflenet_v2_x0_6"], ["shufflenet_v2_x0_5"]),
    "student convnet": (None, ["--student", "convnet"], ["'convnet'", "convnet8"]),
    "student convnet0": (None, ["--student", "convnet0"], ["convnet0"]),
    "small pictures": (None, ["--teacher", "alexnet"], ["alexnet", "16"]),
    "patches": (None, ["--student", "vit_b_16", "--image-size", "24"], ["vit_b_16", "24"]),
    "image size 2": (None, ["--image-size", "2"], ["--image-size", "at least 8"]),
    "image size 0": (None, ["--image-size", "0"], ["--image-size", "at least 8"]),
    "epochs 0": (None, ["--epochs", "0"], ["--epochs", "at least 1"]),
    "batch size 1": (None, ["--batch-size", "1"], ["--batch-size", "at least 2"]),
    "alpha 2": (None, ["--alpha", "2"], ["--alpha", "0 to 1"]),
    "alpha nan": (None, ["--alpha", "nan"], ["--alpha"]),
    "temperature 0": (None, ["--temperature", "0"], ["--temperature", "at least"]),
    "negative lr": (None, ["--lr", "-0.1"], ["--lr", "at least"]),
    "exploding lr": (None, ["--lr", "1e30"], ["loss", "epoch 1", "--lr"]),
    "negative weight decay": (None, ["--weight-decay", "-1"], ["--weight-decay", "at least 0"]),
    "negative seed": (None, ["--seed", "-1"], ["--seed", "at least 0"]),
    "seed too large": (None, ["--seed", "1000000000000000"], ["--seed", "at most"]),
    "device without a driver": (None, ["--device", "cuda:99"], ["--device cuda:99", "cpu"]),
    "unknown device": (None, ["--device", "gpu"], ["--device gpu", "cpu"]),
    "device without numbers": (None, ["--device", "meta"], ["--device meta", "cpu"]),
}  # fmt: skip


def lines(table, change):
    """A fault: `change(list of lines)` of a text file, in place."""

    def spoil(root):
        content = (root / table).read_text().split("\n")
        change(content)
        (root / table).write_text("\n".join(content))

    return spoil


def images(change, part="trainval"):
    """A fault: `change(list of images)` of one of WIDER's JSON files, in place."""

    def spoil(root):
        path = root / f"wider_attribute_{part}.json"
        content = json.loads(path.read_text())
        change(content["images"])
        path.write_text(json.dumps(content))

    return spoil


def move(name, place):
    return lambda root: (root / name).rename(root / place)


CIFAR_FAULTS = {
    "missing folder": (shutil.rmtree, [], ["does not exist", "--data-dir"]),
    "one level deeper": (keep_subfolder, [],
                         ["neither cifar-10-batches-py nor train", "pass {root}/deeper as"]),
    "empty folder": (lambda r: [shutil.rmtree(r / p) for p in ("train", "test")], [],
                     ["it holds nothing", "cs.toronto.edu", "--download"]),
    "no test": (lambda r: shutil.rmtree(r / "test"), [], ["{root}/test has no folder"]),
    "no cats": (lambda r: shutil.rmtree(r / "train/cat"), [], ["{root}/train has no folder 'cat'"]),
    "empty class": (lambda r: [p.unlink() for p in (r / "train/cat").iterdir()], [], ["'cat'"]),
    "another class": (lambda r: (r / "test/kitten").mkdir(), [],
                      ["{root}/test/kitten", "airplane, automobile", "folder of its class"]),
    "picture without label": (lambda r: shutil.copy(next((r / "train/cat").iterdir()),
                                                    r / "train/x.png"), [], ["{root}/train/x.png"]),
    "truncated": (lambda r: [p.write_bytes(b"PNG") for p in (r / "test/cat").iterdir()],
                  [], ["4 of", "test/cat/000", "--skip-bad"]),
    "not unpacked": (lambda r: [shutil.rmtree(r / p) for p in ("train", "test")]
                     and (r / "cifar-10-python.tar.gz").touch(), [],
                     ["it holds cifar-10-python.tar.gz", "--download"]),
    "no batches": (lambda r: [shutil.rmtree(r / p) for p in ("train", "test")]
                   and (r / "cifar-10-batches-py").mkdir(), [],
                   ["{root}/cifar-10-batches-py is damaged or incomplete", "--download"]),
    "skew": (None, ["--skew", "1.5"], ["--skew 1.5", "between 0 and 1"]),
    "target": (None, ["--target", "animal"], ["one label and one group"]),
    "fold": (None, ["--fold", "0"], ["cifar10s has one split"]),
}  # fmt: skip

ATTR, EVAL = "list_attr_celeba.txt", "list_eval_partition.txt"
CELEBA_FAULTS = {
    "missing folder": (shutil.rmtree, ["--download"], [ATTR, "holds nothing", "mmlab"]),
    "no attributes": (lambda r: (r / ATTR).unlink(), [],
                      [f"no {ATTR}", "identity_CelebA.txt", "mmlab.ie.cuhk.edu.hk"]),
    "no partition": (lambda r: (r / EVAL).unlink(), [], [f"no {EVAL}", "mmlab"]),
    "no pictures": (lambda r: shutil.rmtree(r / "img_align_celeba"), [],
                    ["no img_align_celeba", "unpack"]),
    "other pictures": (lambda r: [p.rename(p.with_suffix(".png"))
                                  for p in (r / "img_align_celeba").iterdir()], [],
                       ["none of the pictures", "000001.jpg", "000001.png"]),
    "truncated": (cut("img_align_celeba/000017.jpg"), [], ["1 of", "000017.jpg", "truncated"]),
    "truncated list": (lines(ATTR, lambda c: c.__delitem__(slice(50, None))), [],
                       [ATTR, "48 rows", "'90'", "cut off"]),
    "truncated line": (lines(ATTR, lambda c: c.__setitem__(-2, c[-2][:15])), [],
                       [ATTR, "line 92", "5 numbers"]),
    "words": (lines(ATTR, lambda c: c.__setitem__(9, "000008.jpg 1 1 yes 1 -1")), [],
              [ATTR, "line 10"]),
    "empty list": (lines(ATTR, lambda c: c.clear()), [], [ATTR, "0 rows"]),
    "binary list": (lambda r: (r / ATTR).write_bytes(bytes(range(256))), [], [ATTR, "first line"]),
    "truncated partition": (lines(EVAL, lambda c: c.__delitem__(slice(85, None))), [],
                            [EVAL, "0, 1 or 2 for 000086.jpg", "4 others"]),
    "partition 3": (lines(EVAL, lambda c: c.__setitem__(9, "000010.jpg 3")), [],
                    [EVAL, "000010.jpg"]),
    "broken identities": (lines("identity_CelebA.txt", lambda c: c.__setitem__(4, "000005")), [],
                          ["identity_CelebA.txt, line 5"]),
    "target": (None, ["--target", "smiling"], ["--target 'smiling'", "did you mean Smiling"]),
    "sensitive": (None, ["--sensitive", "Male+Yuong"], ["--sensitive 'Yuong'", "mean Young"]),
    "the same": (None, ["--target", "Male"], ["name each attribute once"]),
    "fold": (None, ["--fold", "0"], ["celeba has one split"]),
    "skew": (None, ["--skew", "0.9"], ["--skew is for cifar10s alone"]),
}  # fmt: skip

TRAINVAL = "wider_attribute_trainval.json"
WIDER_FAULTS = {
    "missing folder": (shutil.rmtree, [], ["does not exist"]),
    "no images": (lambda r: shutil.rmtree(r / "Image"), [], ["no Image", "mmlab.ie.cuhk.edu.hk"]),
    "other images": (move("Image/train", "Image/training"), [], ["cannot be read", "no such file"]),
    "images one level deeper": (lambda r: [(r / "Image").rename(r / "x"), (r / "Image").mkdir(),
                                           (r / "x").rename(r / "Image/Image")], [],
                                ["none of the images", "train/", "it holds Image"]),
    "no JSON for tests": (lambda r: (r / "wider_attribute_test.json").unlink(), [],
                          ["no wider_attribute_test.json", "mmlab"]),
    "truncated JSON": (text(TRAINVAL, lambda t: t[:-100]), [], [TRAINVAL, "no JSON", "cut off"]),
    "no list": (text(TRAINVAL, lambda t: "[]"), [], [TRAINVAL, "no list 'images'"]),
    "no key images": (text(TRAINVAL, lambda t: t.replace('"images"', '"pictures"')), [],
                      [TRAINVAL, "no list 'images'"]),
    "no file_name": (images(lambda c: c[5].pop("file_name")), [],
                     [TRAINVAL, "image 5", "KeyError: 'file_name'"]),
    "no targets": (images(lambda c: c[5].pop("targets")), [], ["image 5", "'targets'"]),
    "no bbox": (images(lambda c: c[0]["targets"][0].pop("bbox")), [], ["image 0", "'bbox'"]),
    "short bbox": (images(lambda c: c[0]["targets"][0]["bbox"].pop()), [],
                   ["image 0", "4 numbers"]),
    "gender 2": (images(lambda c: c[0]["targets"][0]["attribute"].insert(0, 2)), [],
                 ["image 0", "-1, 0 or 1"]),
    "no attributes": (images(lambda c: c[0]["targets"][0]["attribute"].clear()), [],
                      ["image 0", "IndexError"]),
    "another event": (images(lambda c: c[5].update(file_name="train/99--X/1.jpg")), [],
                      ["image 5", "train/99--X/1.jpg"]),
    "test in training": (images(lambda c: c[5].update(file_name="test/0--Parade/1.jpg")), [],
                         ["image 5", "test/0--Parade/1.jpg"]),
    "outside": (images(lambda c: c[5].update(file_name="train/0--Parade/../../../1.jpg")), [],
                ["image 5"]),
    "a word": (images(lambda c: c.__setitem__(5, "x")), [], ["image 5"]),
    "twice": (images(lambda c: c.append(c[0])), [], ["train/", "is there twice"]),
    "target": (None, ["--target", "scene"], ["event or event-person", "gender"]),
    "sensitive": (None, ["--sensitive", "age"], ["event or event-person", "gender"]),
    "fold": (None, ["--fold", "0"], ["wider has one split"]),
}  # fmt: skip


def check(dataset, root, tmp_path, fault, arguments, contains):
    if fault:
        fault(root)
    out = tmp_path / "out" / "results"
    message = outcome("--dataset", dataset, "--data-dir", root, *SMALL, "--out", out, *arguments)
    assert message, "the run came to its end"
    for words in contains:
        assert words.format(root=root) in message
    ## Nothing half-done is left: no result, and no file of pixels that a later run would trust.
    assert not list(out.rglob("*.json")) and not list(tmp_path.rglob("*.tmp"))


READERS = {  # data set: the fixture with its miniature, and its faults
    "ham10000": ("ham10000", HAM_FAULTS),
    "csv": ("pictures", CSV_FAULTS),
    "cifar10s": ("cifar10", CIFAR_FAULTS),
    "celeba": ("celeba", CELEBA_FAULTS),
    "wider": ("wider", WIDER_FAULTS),
}


@pytest.mark.parametrize(
    ("dataset", "name"), [(d, name) for d, (_, faults) in READERS.items() for name in faults]
)
def test_faults_of_each_data_set(dataset, name, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixture, faults = READERS[dataset]
    check(dataset, request.getfixturevalue(fixture), tmp_path, *faults[name])


def test_a_folder_of_pictures_is_not_the_data_set(
    ham10000, pictures, cifar10, celeba, wider, tmp_path
):
    for dataset, folder, contains in (
        ("celeba", celeba / "img_align_celeba", f"it is in {celeba}, pass that folder"),
        ("wider", wider / "Image", f"it is in {wider}, pass that folder"),
        ("wider", wider / "Image" / "train", f"it is in {wider}, pass that folder"),
        ("cifar10s", cifar10 / "train", f"pass {cifar10} as --data-dir"),
        ("ham10000", ham10000 / "HAM10000_images_part_1", f"it is in {ham10000}, pass that folder"),
        ("csv", pictures / "pictures", "no labels.csv"),
    ):
        assert contains in outcome("--dataset", dataset, "--data-dir", folder, *SMALL,
                                   "--out", tmp_path / "out" / "results")  # fmt: skip


def test_bad_pictures_are_left_out_on_request_and_recorded(ham10000, pictures):
    cut("pictures/017.jpg")(pictures)
    (pictures / "pictures/033.jpg").unlink()
    cut("HAM10000_images_part_2/ISIC_0000017.jpg")(ham10000)
    for name, root, bad, total in (
        ("csv", pictures, ["pictures/017.jpg", "pictures/033.jpg"], 96),
        ("ham10000", ham10000, ["ISIC_0000017"], 117),  # three of 120 without sex or age
    ):
        for _ in range(2):  # decoded now, decoded before
            data = D.load(name, root, 16, skip_bad=True)
            assert data.notes["left out: unreadable"] == bad
            ids = [i for split in data.splits.values() for i in split.ids]
            assert len(ids) == total - len(bad) and not set(ids) & set(bad)
            assert str(bad) in data.describe()
        with pytest.raises(D.InputError, match=f"{len(bad)} of .*{bad[0]}"):
            D.load(name, root, 16)  # the file of pixels is there, but so is the fault


@pytest.mark.parametrize("fault", [RuntimeError, EOFError, KeyError, OSError, ValueError])
def test_whatever_a_decoder_raises_the_picture_is_named(pictures, monkeypatch, fault):
    def decode(file, size):
        if file.name == "017.jpg":
            raise fault("corrupt")
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(readers, "decode", decode)
    with pytest.raises(D.InputError, match="1 of 96 .*pictures/017.jpg .*corrupt"):
        D.load("csv", pictures, 16)


def test_a_size_beyond_all_memory_is_refused(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "decode", lambda *_: 1 / 0)  # a picture would take 30 gigabytes
    message = outcome("--dataset", "csv", "--data-dir", pictures, *SMALL, "--image-size", "100000",
                      "--out", tmp_path / "out" / "results")  # fmt: skip
    assert "--image-size" in message and "at most" in message


@pytest.mark.parametrize("place", [".", "below", "below/that"])
def test_results_that_cannot_be_written_are_refused_before_training(pictures, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    message = outcome("--dataset", "csv", "--data-dir", pictures, *SMALL,
                      "--out", tmp_path / "file" / place)  # fmt: skip
    assert message and str(tmp_path / "file") in message
    assert not list(tmp_path.rglob("*.pt"))


def test_a_wrong_student_is_refused_before_the_teacher_is_trained(pictures, tmp_path):
    message = outcome("--dataset", "csv", "--data-dir", pictures, *SMALL, "--student", "resnet19",
                      "--out", tmp_path / "out" / "results")  # fmt: skip
    assert "resnet18" in message
    assert not list(tmp_path.rglob("*.pt"))


# --------------------------------------------------------- unusual, but right: these come to an end


def picture(mode, size=(40, 30), ending=".png", **how):
    """A change: the first picture of another kind."""

    def replace(root):
        image = Image.new(mode, size, 200 if len(Image.new(mode, (1, 1)).getbands()) == 1 else None)
        image.save(root / "pictures" / f"unusual{ending}", **how)
        rows(CSV, lambda content: content[0].update(file=f"pictures/unusual{ending}"))(root)

    return replace


def renamed(name):
    """A change: the first picture has another name."""

    def rename(root):
        (root / "pictures" / "000.png").rename(root / "pictures" / name)
        rows(CSV, lambda content: content[0].update(file=f"pictures/{name}"))(root)

    return rename


def upside_down(root):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture("RGB", ending=".jpg", exif=exif)(root)


def one_class_in_a_group(part, row):
    if part == "test" and row["group"] == "indoor":
        row["label"] = "cat"


UNUSUAL = {
    "grey": picture("L"),
    "grey and transparent": picture("LA"),
    "black and white": picture("1"),
    "palette": picture("P"),
    "transparent": picture("RGBA"),
    "CMYK": picture("CMYK", ending=".jpg"),
    "16 bits": picture("I;16"),
    "floating point": picture("F", ending=".tiff"),
    "GIF": picture("P", ending=".gif"),
    "BMP": picture("RGB", ending=".bmp"),
    "WebP": picture("RGB", ending=".webp"),
    "one pixel": picture("RGB", (1, 1)),
    "one line": picture("RGB", (500, 1)),
    "huge": picture("1", (4000, 4000)),
    "rotated": upside_down,
    "space": renamed("a b  c.png"),
    "not ASCII": renamed("größe 大きさ.png"),
    "quotes": renamed('it\'s "so".png'),
    "wrong ending": renamed("000.jpeg"),
    "BOM": lambda r: (r / CSV).write_bytes(b"\xef\xbb\xbf" + (r / CSV).read_bytes()),
    "CRLF": lambda r: (r / CSV).write_bytes((r / CSV).read_bytes().replace(b"\n", b"\r\n")),
    "tabs": text(CSV, lambda t: t.replace(",", "\t")),
    "gap in the labels": text(CSV, lambda t: t.replace("cat", "0").replace("dog", "7")),
    "gap in the groups": text(CSV, lambda t: t.replace("indoor", "3").replace("outdoor", "900")),
    "group with one class in the test": divided(one_class_in_a_group),
    "group with one picture in the test": rows(
        CSV,
        lambda content: [
            {**r, "split": part_of(r)}
            for n, r in enumerate(content)
            if part_of(r) != "test" or r["group"] == "outdoor" or n == 8
        ],
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_input_is_read(name, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    UNUSUAL[name](pictures)
    data = D.load("csv", pictures, 16)
    assert sum(map(len, data.splits.values())) >= 70 and len(data.group_names) == 2
    if name.startswith("group with one"):  # what has no value is undefined, not 0
        command = [
            "--dataset",
            "csv",
            "--data-dir",
            pictures,
            *SMALL,
            "--out",
            tmp_path / "results",
        ]
        assert outcome(*command) is None
        (result,) = (tmp_path / "results").rglob("*.json")
        test = json.loads(result.read_text())["last"]["test"]
        assert test["groups"][data.group_names.index("indoor")]["auroc"] is None


# ------------------------------------------------------ files of earlier runs, damaged or another's


class Code:
    """A pickle that writes a file when it is opened."""

    def __reduce__(self):
        return (open, ("trap", "w"))


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a finished run and one killed during the teacher's training have left."""
    folder = tmp_path_factory.mktemp("left")
    make_pictures(folder / "pictures")
    save = runs.save

    def keep(path, **content):
        save(path, **content)
        if path.suffix == ".checkpoint" or path.name == "checkpoint.pt":
            shutil.copy(path, folder / path.name)

    command = ["--dataset", "csv", "--data-dir", folder / "pictures", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "save", keep)
        assert outcome(*command, "--out", folder / "results") is None
    for found in list(folder.glob("*heckpoint*")):  # back to where a killed run has them
        (home,) = (folder / "runs").rglob("teachers" if found.suffix == ".checkpoint" else "ckd/*0")
        found.rename(home / found.name)
    return folder


FILES = {  # what is damaged: what has to be away so that it is read, words of the sentence
    "decoded-*.npy": ([], ["delete it", "decoded again"]),
    "decoded-*.json": ([], ["delete it", "decoded again"]),
    "*-seed0.json": ([], ["delete it", "--restart"]),
    "teachers/*.pt": (["*-seed0.json", "checkpoint.pt"], ["delete it"]),
    "teachers/*.checkpoint": (["*-seed0.json", "checkpoint.pt", "teachers/*.pt"], ["delete it"]),
    "checkpoint.pt": (["*-seed0.json"], ["delete it"]),
}
OTHERS = ["student.pt", "teachers/*.pt", "teachers/*.checkpoint", "checkpoint.pt", "*-seed0.json"]
DAMAGES = ["empty", "text", "cut", "code", "list", *OTHERS]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_of_earlier_runs(name, damage, left, tmp_path, monkeypatch):
    """Teachers, checkpoints, results and pixels: cut short, with code, of another kind."""
    if name == damage:
        return
    folder = shutil.copytree(left, tmp_path / "left")
    monkeypatch.chdir(tmp_path)
    find = lambda pattern: next(folder.rglob(pattern))
    file = find(name)
    if damage in OTHERS:
        shutil.copy(find(damage), file)
    elif damage == "cut":
        os.truncate(file, os.path.getsize(file) // 2)
    elif damage == "code":
        torch.save({"made_of": {}, "x": Code()}, file)
    elif damage == "list":
        file.write_text("[1, 2]") if file.suffix == ".json" else torch.save([1, 2], file)
    else:
        file.write_text("" if damage == "empty" else "this is no such file")
    away, contains = FILES[name]
    for pattern in away:
        for other in folder.rglob(pattern):
            other.unlink()
    before = file.read_bytes()
    message = outcome("--dataset", "csv", "--data-dir", folder / "pictures", *SMALL,
                      "--out", folder / "results")  # fmt: skip
    assert message and str(file.name).split(".")[0] in message
    assert all(words in message for words in contains)
    assert file.read_bytes() == before and not Path("trap").exists()


@pytest.mark.parametrize("wrong", ["another network's", "other classes", "other pictures"])
def test_a_teacher_under_a_wrong_name_is_refused(wrong, left, tmp_path, monkeypatch):
    folder = shutil.copytree(left, tmp_path / "left")
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(left / "pictures", tmp_path / "others")
    change = {
        "another network's": ["--teacher", "convnet8"],
        "other classes": ["--target", "age"],
        "other pictures": [],
    }[wrong]
    if wrong == "other classes":
        text(CSV, lambda t: t.replace(",10\n", ",5\n"))(other)
    if wrong == "other pictures":
        for file in (other / "pictures").iterdir():
            Image.effect_noise((20, 20), 90).convert("RGB").save(file)
    command = ["--dataset", "csv", *SMALL]
    assert outcome(*command, "--data-dir", other, "--out", tmp_path / "results", *change) is None
    (made,), (ours,) = (list(f.rglob("teachers/*.pt")) for f in (tmp_path / "runs", folder))
    shutil.copy(made, ours)
    for pattern in ("*-seed0.json", "checkpoint.pt"):
        for file in (folder / "results" if "json" in pattern else folder).rglob(pattern):
            file.unlink()
    message = outcome(*command, "--data-dir", folder / "pictures", "--out", folder / "results")
    assert ours.name in message and "was made with other settings (" in message


# ------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same run in two folders, each a process of its own: (folder of pictures, two results)."""
    folder = tmp_path_factory.mktemp("twice")
    make_pictures(folder / "pictures")
    results = []
    for name in ("first", "second"):
        out = folder / name / "results"
        done = process("--dataset", "csv", "--data-dir", folder / "pictures", *SMALL, "--out", out,
                       cwd=folder)  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "teacher" in done.stdout and "wrote" in done.stdout
        results += out.rglob("*.json")
    assert len(results) == 2
    return folder, results


def test_the_same_command_twice_gives_the_same_result(twice):
    _, files = twice
    first, second = (json.loads(file.read_text()) for file in files)
    assert first.pop("times") != second.pop("times")
    assert first == second
    arrays = [np.load(file.with_suffix(".npz")) for file in files]
    assert sorted(arrays[0]) == sorted(arrays[1]) and "last" in arrays[0]
    for name in arrays[0]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])


def test_a_result_tells_what_it_was_made_of(twice):
    folder, (file, _) = twice
    result, arrays = json.loads(file.read_text()), np.load(file.with_suffix(".npz"))
    data = D.load("csv", folder / "pictures", 16, smoke=True)
    assert result["settings"]["pictures"] == data.hash()
    assert result["classes"] == data.classes and result["group_names"] == data.group_names
    assert arrays["ids"].tolist() == data["test"].ids
    assert arrays["labels"].tolist() == data["test"].labels.tolist()
    assert arrays["groups"].tolist() == data["test"].groups.tolist()
    assert arrays["last"].shape == (len(data["test"]), 3)


def test_a_finished_run_is_found_and_one_on_other_pictures_is_refused(twice, tmp_path, capsys):
    folder, (file, _) = twice
    root = shutil.copytree(folder / "pictures", tmp_path / "pictures")
    shutil.copytree(folder / "first", tmp_path / "first")
    command = ["--dataset", "csv", "--data-dir", root, *SMALL,
               "--out", tmp_path / "first" / "results"]  # fmt: skip
    copied = tmp_path / file.relative_to(folder)
    before = copied.read_bytes()
    assert outcome(*command) is None
    assert "is there already" in capsys.readouterr().out and copied.read_bytes() == before
    ## Another label is another data set under the same name.
    cell(CSV, 10, "label", "dog" if read_table(root / CSV)[8]["label"] == "cat" else "cat")(root)
    message = outcome(*command)
    assert f"{copied} was made with other settings (pictures was" in message
    assert "--restart" in message and copied.read_bytes() == before
    assert outcome(*command, "--restart") is None
    result = json.loads(copied.read_text())
    assert result["settings"]["pictures"] == D.load("csv", root, 16, smoke=True).hash()


def test_a_killed_run_is_not_continued_on_other_pictures(pictures, tmp_path, monkeypatch):
    command = ["--dataset", "csv", "--data-dir", pictures, *SMALL]
    write = runs.Run.write

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "write", kill)
    with pytest.raises(KeyboardInterrupt):
        outcome(*command, "--out", tmp_path / "a" / "results")
    monkeypatch.setattr(runs.Run, "write", write)
    cell(CSV, 10, "group", "outdoor" if read_table(pictures / CSV)[8]["group"] == "indoor"
         else "indoor")(pictures)  # fmt: skip
    rows(CSV, lambda content: [{**r, "label": {"cat": "dog", "dog": "cat"}.get(r["label"], "fox")}
                               for r in content])(pictures)  # fmt: skip
    message = outcome(*command, "--out", tmp_path / "a" / "results")
    assert "checkpoint.pt was made with other settings (pictures was" in message
    assert "--restart" in message
    results = []
    for name in "ab":
        assert outcome(*command, "--out", tmp_path / name / "results", "--restart") is None
        (file,) = (tmp_path / name / "results").rglob("*.json")
        results.append(json.loads(file.read_text()))
        results[-1].pop("times")
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "fault, arguments, contains",
    [
        (cut("pictures/017.jpg"), [], ["1 of 96", "pictures/017.jpg", "--skip-bad"]),
        (None, ["--out", "labels.csv/x"], ["labels.csv"]),
    ],
    ids=["truncated", "out"],
)
def test_as_a_process_of_its_own(pictures, fault, arguments, contains):
    if fault:
        fault(pictures)
    done = process("--dataset", "csv", "--data-dir", ".", *SMALL, *arguments, cwd=pictures)
    assert done.returncode == 1
    message = one_sentence(done.stderr)
    assert all(words in message for words in contains)
