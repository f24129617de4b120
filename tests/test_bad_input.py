"""Bad input gives one clear sentence and an exit code that is not 0, never a traceback.

Most cases run the real script inside this process, as if it were the main program; the runs that
must come out equal are processes of their own.
"""

import importlib
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
from forked import run_script
from PIL import Image

import data as data_module
import datasets
from data import InputError, load

METHODS = Path(__file__).resolve().parent.parent / "methods"
SCRIPTS = sorted(path.stem for path in METHODS.glob("*.py"))
HAM, CSV = "HAM10000_metadata.csv", "labels.csv"
SMALL = "--smoke --device cpu --image-size 16 --teacher convnet4 --student convnet2".split()
SMALL += ["--batch-size", "32"]


def one_sentence(text, script="ckd"):
    """The message of the script, which must be a single line."""
    assert text.startswith(f"{script}.py: ") and "Traceback" not in text
    assert len(text.strip().splitlines()) == 1 and len(text) > 30
    return text


def outcome(*arguments, script="ckd"):
    """Run the script in this process: the sentence with which it ends, or None if all is well."""
    path, before = METHODS / f"{script}.py", (sys.argv, sys.path[:])
    try:
        sys.argv = [str(path), *map(str, arguments)]
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:  # a text: Python prints it to stderr and exits with 1
        assert isinstance(end.code, str), f"exit code {end.code}"
        return one_sentence(end.code, script)
    finally:
        sys.argv, sys.path[:] = before
    return None


# ----- what can be wrong with the files: functions that spoil a folder `root` ---------------------


def rows(table, change):
    """`change(list of rows)` in a table, in place or as a new list."""

    def spoil(root):
        content = read_table(root / table)
        write_table(root / table, change(content) or content)

    return spoil


def cell(table, line, column, value):
    """Another value in one cell; lines are counted as editors do."""
    return rows(table, lambda content: content[line - 2].update({column: value}))


def column(table, name, value=None):
    """Another value in a whole column; None: the column is not there."""

    def change(content):
        for row in content:
            row.pop(name) if value is None else row.update({name: value})

    return rows(table, change)


def repeat(table, line):
    return rows(table, lambda content: content.insert(0, dict(content[line - 2])))


def text(table, change):
    """`change(text)` of a table."""
    return lambda root: (root / table).write_text(change((root / table).read_text()))


def swap(table, old, new):
    """Other words in the text of a table, at their first place."""
    return text(table, lambda content: content.replace(old, new, 1))


def lines(table, place, new=()):
    """Other lines at a place (a slice) of a text file; none: they are cut out."""

    def spoil(root):
        content = (root / table).read_text().split("\n")
        content[place] = new
        (root / table).write_text("\n".join(content))

    return spoil


def header_only(table):
    return text(table, lambda content: content.splitlines()[0] + "\n")


def gone(*names):
    """Files or folders that are not there."""

    def spoil(root):
        for path in [path for name in names for path in root.glob(name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def no_folder(root):
    shutil.rmtree(root)


def file(name, content):
    """A file with this content, bytes."""
    return lambda root: (root / name).write_bytes(content)


def move(name, place):
    return lambda root: (root / name).rename(root / place)


def both(*faults):
    return lambda root: [fault(root) for fault in faults]


def cut(name):
    """The second half of a picture is missing."""

    def spoil(root):
        Image.effect_noise((60, 60), 90).convert("RGB").save(root / name)
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])

    return spoil


def bomb(root):
    """A small PNG that says it has 10 billion pixels."""
    content = (root / "pictures/018.png").read_bytes()
    head = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    head += struct.pack(">I", zlib.crc32(head))
    (root / "pictures/018.png").write_bytes(content[:12] + head + content[33:])


def deeper(root):
    """The data set lies one folder deeper than the user says."""
    for child in list(root.iterdir()):
        (root / "deeper").mkdir(exist_ok=True)
        child.rename(root / "deeper" / child.name)


def part_of(row):
    """A third of the persons each for training, validation and test."""
    return ("train", "val", "test")[int(row["subject"][1:]) % 3]


def divided(change):
    """labels.csv with a split; then change(part, row) is called for every row."""

    def divide(content):
        for row in content:
            row["split"] = part_of(row)
            change(row["split"], row)

    return rows(CSV, divide)


def moved(line, part):
    """labels.csv with a split, in which one row is moved to another part."""
    return both(divided(nothing), cell(CSV, line, "split", part))


def no_outdoor_in_validation(part, row):
    if part == "val":
        row["group"] = "indoor"


def nothing(part, row):
    pass


def no_fox_in_validation(part, row):
    if part == "val" and row["label"] == "fox":
        row["label"] = "cat"


def numbered(content):
    """labels.csv in which nearly all have an age of their own."""
    head, *others = content.splitlines()
    return "\n".join([head, *(line.rpartition(",")[0] + f",{n}" for n, line in enumerate(others))])


def no_fox_in_training(part, row):
    if part == "train" and row["label"] == "fox":
        row["label"] = "cat"


def one_subject_with_a_space(part, row):
    if row["file"] == "pictures/003.jpg":
        row.update(split="train", subject=row["subject"] + " ")


def latin_1(root):
    (root / CSV).write_bytes((root / CSV).read_bytes().replace(b"cat", b"ch\xe2t"))


def images(change, part="trainval"):
    """`change(list of images)` of one of WIDER's JSON files, in place."""

    def spoil(root):
        path = root / f"wider_attribute_{part}.json"
        content = json.loads(path.read_text())
        change(content["images"])
        path.write_text(json.dumps(content))

    return spoil


def first_person(change):
    return images(lambda content: change(content[0]["targets"][0]))


def fifth_image(name):
    return images(lambda content: content[5].update(file_name=name))


TWO = "HAM10000_images_part_2"
PARTS = gone("train", "test")  # of CIFAR-10
ATTR, EVAL, WHO = "list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"
TRAINVAL, FACES = "wider_attribute_trainval.json", "img_align_celeba"
NESTED = both(move("Image", "x"), lambda r: (r / "Image").mkdir(), move("x", "Image/Image"))
A, B, NEW = "--target", "--sensitive", "--data-dir"

FAULTS = {  # data set: name of the fault: (what is wrong, more arguments, words of the sentence)
    "ham10000": {
        "missing folder": (no_folder, "", f"does not exist | {NEW}"),
        "one level deeper": (deeper, "", f"has no {HAM} | it is in {{root}}/deeper, pass that"),
        "no table": (gone(HAM), "", f"no {HAM} | HAM10000_images_part_1 | doi.org | --download"),
        "no pictures": (gone("*part*"), "", "none of its pictures | HAM10000_images_part_1"),
        "one part missing": (
            gone(TWO),
            "",
            "60 of 120 pictures are missing | no such file: {root}/**/ISIC_0000001.jpg | --skip",
        ),
        "cut": (cut(f"{TWO}/ISIC_0000017.jpg"), "", "1 of 117 | ISIC_0000017 | truncated"),
        "sex": (cell(HAM, 5, "sex", "Male"), "", "sex is 'Male' | ISIC_0"),
        "age": (cell(HAM, 5, "age", "old"), "", "age is 'old' | ISIC_0"),
        "negative age": (cell(HAM, 5, "age", "-1"), "", "age is '-1' | ISIC_0"),
        "age that is no number": (cell(HAM, 5, "age", "1e1"), "", "age is '1e1' | ISIC_0"),
        "dx unknown": (
            cell(HAM, 5, "dx", "NA"),
            "",
            "1 of 120 rows have a label or group missing | --skip-bad",
        ),
        "two ages": (
            text(HAM, lambda t: t.replace("dx_type", "Age", 1)),
            "",
            f"{HAM} has two columns 'age'",
        ),
        "dx": (cell(HAM, 5, "dx", "wart"), "", "dx is 'wart' | akiec"),
        "twice": (repeat(HAM, 9), "", "ISIC_ | 2 times"),
        "no lesion_id": (column(HAM, "lesion_id"), "", "no column 'lesion_id' | image_id"),
        "no image_id": (column(HAM, "image_id"), "", "no column 'image_id' | lesion_id"),
        "header only": (header_only(HAM), "", f"{HAM} | no rows"),
        "men": (column(HAM, "sex", "male"), "", "ham10000 has the group 'male' alone"),
        "target": (None, f"{A} cancer", f"{A} 'cancer' | malignant+bcc | dx"),
        "sensitive": (None, f"{B} gender", f"{B} 'gender' | sex | age"),
        "sensitive twice": (None, f"{B} sex+sex", f"{B} sex+sex: name each only once"),
    },
    "csv": {
        "missing folder": (no_folder, "", f"does not exist | {NEW}"),
        "one level deeper": (deeper, "", f"has no {CSV} | it is in {{root}}/deeper"),
        "no table": (gone(CSV), "", f"has no {CSV} | it holds pictures"),
        "cut JPEG": (cut("pictures/017.jpg"), "", "1 of 96 | pictures/017.jpg | truncated"),
        "cut PNG": (cut("pictures/018.png"), "", "1 of 96 | pictures/018.png | truncated"),
        "decompression bomb": (bomb, "", "1 of 96 | pictures/018.png | bomb"),
        "empty picture": (file("pictures/017.jpg", b""), "", "1 of 96 | pictures/017.jpg"),
        "text as picture": (file("pictures/017.jpg", b"a cat"), "", "1 of 96 | pictures/017.jpg"),
        "gone": (
            gone("*/017.jpg", "*/033.jpg"),
            "",
            "2 of 96 pictures are missing | no such file: {root}/pictures/017.jpg",
        ),
        "twice": (repeat(CSV, 9), "", "'pictures/007.jpg' 2 times"),
        "no label": (column(CSV, "label"), "", "no column 'label' | lie in one folder | --target"),
        "a table that is not there": (
            None,
            "--data-dir {root}/nothere.csv",
            "nothere.csv does not exist: look at the table's name",
        ),
        "Excel": (
            lambda r: (r / CSV).rename(r / "labels.xlsx"),
            "--data-dir {root}/labels.xlsx",
            "labels.xlsx is a spreadsheet: save it as CSV",
        ),
        "no file": (
            column(CSV, "file"),
            "",
            "no column 'file': choose one with --file-column or write it, it has label, group",
        ),
        "two labels": (
            text(CSV, lambda t: t.replace("age", " Label", 1)),
            "",
            f"{CSV} has two columns 'label'",
        ),
        "one picture twice": (
            cell(CSV, 9, "file", "./pictures/006.png"),
            "",
            "pictures/006.png' 2 times",
        ),
        "one picture in two ways": (
            cell(CSV, 9, "file", "006"),
            "",
            "1 of 96 pictures are missing | the first is 006 ",
        ),
        "a name of two pictures": (
            both(file("pictures/1.jpg", b""), cell(CSV, 3, "file", "01")),
            "",
            "01 can be",
        ),
        "header only": (header_only(CSV), "", f"{CSV} | no rows"),
        "empty table": (file(CSV, b""), "", f"{CSV} is empty | names of columns"),
        "Latin-1": (latin_1, "", f"{CSV} | UTF-8"),
        "UTF-16": (file(CSV, "file,label,group".encode("utf-16")), "", f"{CSV} | UTF-8"),
        "short row": (swap(CSV, "008.png,", "008.png\n"), "", f"{CSV}, line 10 | fewer fields"),
        "long row": (swap(CSV, "008.png", "0,08.png"), "", f"{CSV}, line 10 | more fields"),
        "open quote": (swap(CSV, "pictures/008", '"pictures/008'), "", f"{CSV}, line 10"),
        "open quote in a long table": (
            text(CSV, lambda t: t.replace("res/008", '"res/008', 1) + 20_000 * "x.png,a,b\n"),
            "",
            CSV,
        ),
        "capitals": (cell(CSV, 10, "label", "Cat"), "", "'Cat' and 'cat' of csv | write them"),
        "another space": (
            both(cell(CSV, 10, "group", "in door"), cell(CSV, 11, "group", "in\u00a0door")),
            "",
            "of csv say the same: write them alike",
        ),
        "empty label": (cell(CSV, 10, "label", ""), "", "1 of 96 | line 10: label | --skip-bad"),
        "blank group": (cell(CSV, 10, "group", "  "), "", "1 of 96 | line 10: group | --skip-bad"),
        "no group at all": (column(CSV, "group", "NaN"), "", "no row has both a label and a group"),
        "empty name": (cell(CSV, 10, "file", ""), "", f"{CSV}, line 10: file"),
        "outside": (cell(CSV, 10, "file", "../x.png"), "", f"{CSV}, line 10 | ../x.png"),
        "very long name": (cell(CSV, 10, "file", "x" * 5000), "", "1 of 96"),
        "NUL in a name": (swap(CSV, "008.png", "0\0.png"), "", ""),
        "one class": (column(CSV, "label", "cat"), "", "the class 'cat' alone: it takes two"),
        "no group": (
            divided(no_outdoor_in_validation),
            "",
            "'outdoor' has no picture in the val | , 0, ",
        ),
        "no class": (divided(no_fox_in_training), "", "'fox' has no picture in the train split"),
        "split word": (moved(7, "dev"), "", "line 7: split 'dev' | train, val or test"),
        "empty split": (moved(7, " "), "", "line 7: split '' | train, val or test"),
        "no validation split": (
            divided(lambda part, row: row.update(split=row["split"].replace("val", "train"))),
            "",
            "no row has the split 'val': write train, val or test | leave the column out",
        ),
        "subject in test and val": (moved(5, "test"), "", "subject 'p1'"),
        "subject in train and val": (moved(5, "train"), "", "subject 'p1'"),
        "subject with a space": (divided(one_subject_with_a_space), "", "subject 'p1'"),
        "no class in validation": (
            divided(no_fox_in_validation),
            "",
            "'fox' has no picture in the val",
        ),
        "numbers as groups": (
            text(CSV, numbered),
            f"{A} group {B} age",
            "has no picture | or make bins, such as age",
        ),
        "bins of words": (None, f"{B} subject:3", "'p0' of subject is no number"),
        "one word among numbers": (
            cell(CSV, 9, "age", "old"),
            f"{B} age:20",
            "'old' of age is no number | 2021-06-30",
        ),
        "American dates": (
            column(CSV, "age", "3/14/2015"),
            f"{B} age:2015",
            "'3/14/2015' of age | write numbers as 0.5 and dates as 2021-06-30",
        ),
        "cuts with a colon": (None, f"{B} age:5:10", "age:5:10: the cut '5:10' is no number"),
        "a cut of letters": (None, f"{B} age:abc", "age:abc: the cut 'abc' is no number"),
        "a cut too many": (None, f"{B} age:5,", "age:5,: the cut '' is no number and no date"),
        "no cut": (None, f"{B} age:", "age:: the cut '' is no number and no date"),
        "a cut with an exponent": (None, f"{B} age:4e1", "age:4e1: the cut '4e1' is no number"),
        "cuts that fall": (None, f"{B} age:9,5", "age:9,5: write the cuts in rising order"),
        "bins of a column that is not there": (None, f"{B} years:3", "no column 'years'"),
        "target is sensitive": (None, f"{A} group", "name each only once"),
        "target in sensitive": (None, f"{A} age:9 {B} group+Age", "name each only once"),
        "split and fold": (both(divided(nothing)), "--fold 0", "column 'split': leave out --fold"),
        "subject": (None, "--subject patient", "no column 'patient': choose one with --subject"),
        "file column": (None, "--file-column picture", "no column 'picture' | it has file"),
        "target": (
            None,
            f"{A} lable",
            "no column 'lable': choose one with --target or write it, it has file, label, group",
        ),
        "sensitive": (None, f"{B} sex", "no column 'sex': choose one with --sensitive | label"),
        "batch": (None, "--no-smoke --batch-size 500", "batch of 500 | --batch-size"),
        "batch of a whole run": (None, "--batch-size 90", "batch of 90 | there are 6"),
        "teacher": (None, "--teacher resnet19", "'resnet19' | resnet18"),
        "student": (None, "--student shufflenet_v2_x0_6", "shufflenet_v2_x0_5"),
        "student convnet": (None, "--student convnet", "'convnet' | convnet8"),
        "student convnet0": (None, "--student convnet0", "convnet0"),
        "small pictures": (None, "--teacher alexnet", "alexnet | 16"),
        "patches": (None, "--student vit_b_16 --image-size 24", "vit_b_16 | 24"),
        "exploding lr": (None, "--lr 1e30", "loss | epoch 1 | --lr"),
        "device without a driver": (None, "--device cuda:99", "--device cuda:99 | cpu"),
        "unknown device": (None, "--device gpu", "--device gpu | cpu"),
        "device without numbers": (None, "--device meta", "--device meta | cpu"),
        "skew": (None, "--skew 0.9", "--skew is not for csv"),
    },
    "cifar10s": {
        "missing folder": (no_folder, "", f"does not exist | {NEW}"),
        "one level deeper": (deeper, "", "cifar-10-batches-py or train | it is in {root}/deeper"),
        "empty folder": (PARTS, "", "it holds nothing | cs.toronto.edu | --download"),
        "no test": (gone("test"), "", "{root}/test has no folder"),
        "no cats": (gone("train/cat"), "", "{root}/train has no folder 'cat'"),
        "empty class": (gone("train/cat/*"), "", "'cat'"),
        "another class": (
            lambda r: (r / "test/kitten").mkdir(),
            "",
            "{root}/test/kitten | airplane, automobile | folder of its class",
        ),
        "picture without label": (file("train/x.png", b"PNG"), "", "{root}/train/x.png"),
        "bad": (
            lambda r: [p.write_bytes(b"PNG") for p in (r / "test/cat").iterdir()],
            "",
            "4 of | test/cat/000 | --skip-bad",
        ),
        "not unpacked": (
            both(PARTS, file("cifar-10-python.tar.gz", b"")),
            "",
            "it holds cifar-10-python.tar.gz | --download",
        ),
        "no batches": (
            both(PARTS, lambda r: (r / "cifar-10-batches-py").mkdir()),
            "",
            "{root}/cifar-10-batches-py is damaged or incomplete | --download",
        ),
        "skew 0": (None, "--skew 0", "--skew 0.0 | between 0 and 1"),
        "skew 1": (None, "--skew 1", "--skew 1.0 | between 0 and 1"),
        "target": (None, f"{A} animal", "one label and one group"),
        "subject": (None, "--subject x", "--subject is not for cifar10s"),
        "fold": (None, "--fold 0", "cifar10s has one split"),
    },
    "celeba": {
        "missing folder": (no_folder, "--download", f"{ATTR} | does not exist | mmlab"),
        "no attributes": (gone(ATTR), "", f"no {ATTR} | {WHO} | mmlab.ie.cuhk.edu.hk"),
        "no partition": (gone(EVAL), "", f"no {EVAL} | mmlab"),
        "no pictures": (gone(FACES), "", f"no {FACES} | unpack"),
        "other pictures": (
            lambda r: [p.rename(p.with_suffix(".gif")) for p in (r / FACES).iterdir()],
            "",
            "none of the pictures | 000001.jpg | 000001.gif",
        ),
        "cut": (cut(f"{FACES}/000017.jpg"), "", "1 of | 000017.jpg | truncated"),
        "cut list": (lines(ATTR, slice(50, None)), "", f"{ATTR} | 48 rows | '90' | cut off"),
        "cut line": (lines(ATTR, slice(-2, -1), ["000090.jpg 1 1"]), "", "line 92 | 5 numbers"),
        "words": (lines(ATTR, slice(9, 10), ["8.jpg 1 1 yes 1 -1"]), "", f"{ATTR}, line 10"),
        "empty list": (file(ATTR, b""), "", f"{ATTR} | 0 rows"),
        "binary list": (file(ATTR, bytes(range(256))), "", f"{ATTR} | first line"),
        "cut partition": (lines(EVAL, slice(85, None)), "", f"{EVAL} | 000086.jpg | 4 others"),
        "partition 3": (lines(EVAL, slice(9, 10), ["000010.jpg 3"]), "", f"{EVAL} | 000010.jpg"),
        "broken identities": (lines(WHO, slice(4, 5), ["000005"]), "", f"{WHO}, line 5"),
        "target": (None, f"{A} smiling", f"{A} 'smiling' | did you mean Smiling"),
        "sensitive": (None, f"{B} Male+Yuong", f"{B} 'Yuong' | mean Young"),
        "the same": (None, f"{A} Male", "name each only once"),
        "fold": (None, "--fold 0", "celeba has one split"),
        "skew": (None, "--skew 0.9", "--skew is not for celeba"),
    },
    "wider": {
        "missing folder": (no_folder, "", "does not exist"),
        "no images": (gone("Image"), "", "no Image | mmlab.ie.cuhk.edu.hk"),
        "other images": (move("Image/train", "Image/x"), "", "are missing | no such file"),
        "deeper": (NESTED, "", "none of the images | train/ | it holds Image"),
        "no tests": (gone("*test.json"), "", "no wider_attribute_test.json | mmlab"),
        "cut JSON": (text(TRAINVAL, lambda t: t[:-100]), "", f"{TRAINVAL} | no JSON | cut off"),
        "no list": (file(TRAINVAL, b"[]"), "", f"{TRAINVAL} | no list 'images'"),
        "no key": (swap(TRAINVAL, '"images"', '"x"'), "", f"{TRAINVAL} | no list 'images'"),
        "no name": (images(lambda c: c[5].pop("file_name")), "", "image 5 | KeyError: 'file_name'"),
        "no targets": (images(lambda c: c[5].pop("targets")), "", "image 5 | 'targets'"),
        "no bbox": (first_person(lambda p: p.pop("bbox")), "", "image 0 | 'bbox'"),
        "short bbox": (first_person(lambda p: p["bbox"].pop()), "", "image 0 | 4 numbers"),
        "gender 2": (first_person(lambda p: p["attribute"].insert(0, 2)), "", "image 0 | 0 or 1"),
        "no attributes": (first_person(lambda p: p["attribute"].clear()), "", "0 | IndexError"),
        "another event": (fifth_image("train/99--X/1.jpg"), "", "image 5 | train/99--X/1.jpg"),
        "test in training": (fifth_image("test/0--P/1.jpg"), "", "image 5 | test/0--P/1.jpg"),
        "outside": (fifth_image("train/0--P/../../../1.jpg"), "", "image 5"),
        "a word": (images(lambda c: c.__setitem__(5, "x")), "", "image 5"),
        "twice": (images(lambda c: c.append(c[0])), "", "train/ | is there twice"),
        "target": (None, f"{A} scene", "event or event-person | gender"),
        "sensitive": (None, f"{B} age", "event or event-person | gender"),
        "fold": (None, "--fold 0", "wider has one split"),
    },
}


@pytest.mark.parametrize(
    ("dataset", "name"), [(dataset, name) for dataset, faults in FAULTS.items() for name in faults]
)
def test_faults_of_each_data_set(dataset, name, originals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(originals / dataset, tmp_path / dataset)
    fault, arguments, words = FAULTS[dataset][name]
    if fault:
        fault(root)
    more = arguments.format(root=root).split()
    message = outcome("--dataset", dataset, "--data-dir", root, *SMALL, *more)
    assert message, "the run came to its end"
    for expected in words.split(" | "):
        assert expected.format(root=root) in message
    ## Nothing half-done is left: no result, and no file of pixels that a later run would trust.
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("*.tmp"))


def test_the_counts_are_shown_before_a_split_is_refused(pictures, tmp_path, monkeypatch, capsys):
    """And nothing has been decoded by then."""
    monkeypatch.chdir(tmp_path)
    divided(no_fox_in_validation)(pictures)
    monkeypatch.setenv("COLUMNS", "150")
    message = outcome("--dataset", "csv", "--data-dir", pictures, *SMALL, "--describe")
    assert "'fox' has no picture in the val split of csv (train, val and test have " in message
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fox")]
    assert len(shown) == 1 and shown[0].split()[5:9] == ["0", "0.0%", "0", "0.0%"]
    assert not list(tmp_path.rglob("*.npy"))


def test_a_reader_that_has_seen_enough_is_no_traceback(tmp_path):
    """`ckd.py --describe | head -1`: what is printed after that has nobody to read it."""
    command = [sys.executable, str(METHODS / "ckd.py"), *SMALL, "--describe"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as run:
        run.stdout.readline()
        run.stdout.close()
        told = run.stderr.read()
    assert run.returncode and "Traceback" not in told and "Broken pipe" in told


def test_a_folder_of_pictures_is_not_the_data_set(originals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, words in (
        ("celeba/img_align_celeba", "it is in {root}, pass that folder"),
        ("wider/Image", "it is in {root}, pass that folder"),
        ("wider/Image/train", "it is in {root}, pass that folder"),
        ("cifar10s/train", "it is in {root}, pass that folder"),
        ("ham10000/HAM10000_images_part_1", "it is in {root}, pass that folder"),
        ("csv/pictures", "no labels.csv"),
    ):
        dataset = folder.split("/")[0]
        message = outcome("--dataset", dataset, "--data-dir", originals / folder, *SMALL)
        assert words.format(root=originals / dataset) in message


def test_bad_pictures_are_left_out_on_request_and_recorded(ham10000, pictures):
    cut("pictures/017.jpg")(pictures)
    gone("pictures/033.jpg")(pictures)
    cut(f"{TWO}/ISIC_0000017.jpg")(ham10000)
    for name, root, bad, total in (
        ("csv", pictures, ["pictures/017.jpg", "pictures/033.jpg"], 96),
        ("ham10000", ham10000, ["ISIC_0000017"], 117),  # three of 120 without sex or age
    ):
        for _ in range(2):  # decoded now, decoded before
            data = load(name, root, 16, skip_bad=True)
            assert data.notes["left out: unreadable"] == bad[:1]
            assert data.notes.get("left out: no such file", []) == bad[1:]
            ids = [i for split in data.splits.values() for i in split.ids]
            assert len(ids) == total - len(bad) and not set(ids) & set(bad)
            assert all(f"1: {one}" in data.describe() for one in bad)
        with pytest.raises(InputError, match=f"1 of .*{bad[-1]}"):
            load(name, root, 16)  # the file of pixels is there, but so is the fault


@pytest.mark.parametrize("fault", [RuntimeError, EOFError, KeyError, OSError, ValueError])
def test_whatever_a_decoder_raises_the_picture_is_named(pictures, monkeypatch, fault):
    def decode(file, size, **_):
        if file.name == "017.jpg":
            raise fault("corrupt")
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(datasets, "decode", decode)
    with pytest.raises(InputError, match="1 of 96 .*pictures/017.jpg .*corrupt"):
        load("csv", pictures, 16)


@pytest.mark.parametrize("place", [".", "below", "below/that"])
def test_results_that_cannot_be_written_are_refused_before_training(pictures, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / place
    message = outcome("--dataset", "csv", "--data-dir", pictures, *SMALL, "--out", out)
    assert message and str(tmp_path / "file") in message
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_student_is_refused_by_every_script_before_anything_is_trained(
    script, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["--dataset", "csv", "--data-dir", pictures, *SMALL]
    assert "resnet18" in outcome(*command, "--student", "resnet19", script=script)
    assert not list(tmp_path.rglob("*.pt"))


# ----- what argparse refuses: a sentence, exit code 2 ---------------------------------------------


def refused(script, capsys, *arguments):
    """The sentence with which a script refuses these arguments."""
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).parse([str(argument) for argument in arguments])
    (sentence,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and ": error: " in sentence and sentence.endswith("all settings")
    return sentence


OUT_OF_RANGE = """
    --image-size 7, 0, 1025, 100000, 16.5    --epochs 0, -1, 1.5    --batch-size 1, 0
    --lr 0, -0.1    --weight-decay -1    --alpha -0.1, 1.1    --temperature 0, -1, 1001
    --seed -1, 1000000000000000    --fold -1, 5    --skew -0.1, 1.5
"""


@pytest.mark.parametrize("values", [part for part in OUT_OF_RANGE.split("    ") if part.strip()])
def test_numbers_out_of_range_are_refused(values, capsys):
    flag, *values = values.replace(",", "").split()
    for value in values:
        sentence = refused("ckd", capsys, f"{flag}={value}")
        assert f"argument {flag}: " in sentence and value in sentence


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_of_every_script_is_checked(script, capsys):
    module = importlib.import_module(script)
    numbers = [a for a in module.settings()._actions if a.type and a.type is not str]
    assert len(numbers) >= 10
    for action in numbers:
        flag = action.option_strings[-1]
        for value in ("nan", "inf", "-inf", "-1e9", "1e400", "x", "", " "):
            assert f"argument {flag}: " in refused(script, capsys, f"{flag}={value}")


def test_unknown_names_are_refused_with_the_known_ones(capsys):
    assert "ham10000" in refused("ckd", capsys, "--dataset", "ham1000")
    assert "bf16" in refused("ckd", capsys, "--precision", "float16")
    assert "--apha 0.5 (did you mean --alpha?)" in refused("ckd", capsys, "--apha", "0.5")
    assert "(did you mean --teacher-lr" in refused("ckd", capsys, "--techer-lr=0.5")
    assert "did you mean" not in refused("ckd", capsys, "--xyzzy")
    assert "argument --lr: expected one argument" in refused("ckd", capsys, "--lr")
    assert "ignored explicit argument 'False'" in refused("ckd", capsys, "--smoke=False")


# ----- unusual, but right: these come to an end ---------------------------------------------------


def picture(mode, size=(40, 30), ending=".png", **how):
    """A change: the first picture is of another kind."""

    def replace(root):
        image = Image.new(mode, size, 200 if len(Image.new(mode, (1, 1)).getbands()) == 1 else None)
        image.save(root / "pictures" / f"unusual{ending}", **how)
        cell(CSV, 2, "file", f"pictures/unusual{ending}")(root)

    return replace


def renamed(name):
    """A change: the first picture has another name."""
    return both(
        move("pictures/000.png", f"pictures/{name}"), cell(CSV, 2, "file", f"pictures/{name}")
    )


def upside_down(root):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture("RGB", ending=".jpg", exif=exif)(root)


def one_class_in_a_group(part, row):
    if part == "test" and row["group"] == "indoor":
        row["label"] = "cat"


def one_picture_in_a_group(root):
    divided(nothing)(root)
    kept = [r for r in read_table(root / CSV) if r["split"] != "test" or r["group"] == "outdoor"]
    write_table(root / CSV, kept + [read_table(root / CSV)[8]])


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
    "group with one picture in the test": one_picture_in_a_group,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_input_is_read(name, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    UNUSUAL[name](pictures)
    data = load("csv", pictures, 16)
    assert sum(map(len, data.splits.values())) >= 70 and len(data.group_names) == 2
    if name.startswith("group with one"):  # what has no value is undefined, not 0
        assert outcome("--dataset", "csv", "--data-dir", pictures, *SMALL) is None
        (result,) = Path("runs").rglob("result.json")
        test = json.loads(result.read_text())["last"]["test"]
        assert test["groups"][data.group_names.index("indoor")]["auroc"] is None


# ----- files of earlier runs, damaged or another's ------------------------------------------------


class Code:
    """A pickle that writes a file when it is opened."""

    def __reduce__(self):
        return open, ("trap", "w")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a finished run and the checkpoints before its end have left, in pictures/ and runs/."""
    folder = tmp_path_factory.mktemp("left")
    make_pictures(folder / "pictures")
    save = data_module.save

    def keep(path, content):
        save(path, content)
        if path.name == "checkpoint.pt":
            shutil.copy(path, path.with_name("kept"))

    flags = ["--dataset", "csv", "--data-dir", folder / "pictures", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "save", keep)
        assert outcome(*flags, "--out", folder / "runs") is None
    for kept in list(folder.rglob("kept")):
        kept.rename(kept.with_name("checkpoint.pt"))
    return folder


RESULT, OWN = "ckd/*/result.json", "ckd/*/checkpoint.pt"
FILES = {  # what is damaged: what must be away so that it is read
    "decoded/decoded-*.npy": [],
    "decoded/decoded-*.json": [],
    RESULT: [],
    OWN: [RESULT],
    "teacher.pt": [RESULT, OWN],
    "teachers/*/checkpoint.pt": [RESULT, OWN, "teacher.pt"],
    "epoch-001.pt": [RESULT, OWN],
}
DAMAGES = ["empty", "text", "cut", "code"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_of_earlier_runs(name, damage, left, tmp_path, monkeypatch):
    """Pixels, results, checkpoints, teachers and answers."""
    folder = shutil.copytree(left / "runs", tmp_path / "runs")  # a copied picture is another file
    monkeypatch.chdir(tmp_path)
    spoilt = next(folder.rglob(name))
    if damage == "cut":
        os.truncate(spoilt, os.path.getsize(spoilt) // 2)
    elif damage == "code":
        torch.save({"state": Code()}, spoilt)
    else:
        spoilt.write_text("" if damage == "empty" else "this is no such file")
    gone(*(f"**/{pattern}" for pattern in FILES[name]))(folder)
    before = spoilt.read_bytes()
    flags = ["--dataset", "csv", "--data-dir", left / "pictures", *SMALL]
    message = outcome(*flags, "--out", folder)
    assert message and str(spoilt.with_suffix("")) in message and "delete it" in message
    assert spoilt.read_bytes() == before and not Path("trap").exists()


@pytest.mark.parametrize("change", [["--teacher", "convnet8"], ["--target", "age"]])
def test_a_teacher_under_a_wrong_name_is_refused(change, left, tmp_path, monkeypatch):
    """Another network, other classes: what a person copies by hand. Runs themselves cannot."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(left, tmp_path / "left")
    text(CSV, lambda content: content.replace(",30\n", ",5\n"))(folder / "pictures")  # two ages
    flags = ["--dataset", "csv", "--data-dir", folder / "pictures", *SMALL]
    outcome(*flags, *change)
    (other,), (ours,) = (list(f.rglob("teacher.pt")) for f in (tmp_path / "runs", left))
    shutil.copy(other, folder / ours.relative_to(left))
    gone(f"**/{RESULT}", f"**/{OWN}", "**/answers")(folder)
    message = outcome(*flags, "--out", folder / "runs")
    assert str(ours.relative_to(left).parent) in message and "does not fit" in message


# ----- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same run in two folders, each a process of its own: (folder of pictures, two runs)."""
    folder, runs = tmp_path_factory.mktemp("twice"), []
    make_pictures(folder / "pictures")
    for name in ("first", "second"):
        (folder / name).mkdir()
        flags = ["--dataset", "csv", "--data-dir", folder / "pictures", *SMALL]
        done = run_script("ckd", *flags, cwd=folder / name)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "teacher" in done.stdout and "wrote" in done.stdout
        runs += [path.parent for path in (folder / name).rglob("result.json")]
    assert len(runs) == 2
    return folder, runs


def result_of(run):
    return json.loads((run / "result.json").read_text())


def test_the_same_command_twice_gives_the_same_result(twice):
    _, runs = twice
    first, second = map(result_of, runs)
    assert first.pop("times") != second.pop("times")
    assert first == second
    arrays = [np.load(run / "logits.npz") for run in runs]
    assert sorted(arrays[0]) == sorted(arrays[1]) and "last" in arrays[0]
    for name in arrays[0]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])


def test_a_result_tells_what_it_was_made_of(twice):
    folder, (run, _) = twice
    result, arrays = result_of(run), np.load(run / "logits.npz")
    data = load("csv", folder / "pictures", 16, smoke=True)
    assert result["settings"]["pictures"] == data.hash()
    assert result["classes"] == data.classes and result["group_names"] == data.group_names
    assert arrays["ids"].tolist() == data["test"].ids
    assert arrays["labels"].tolist() == data["test"].labels.tolist()
    assert arrays["groups"].tolist() == data["test"].groups.tolist()
    assert arrays["last"].shape == (len(data["test"]), 3)


def test_a_finished_run_is_found_and_one_on_other_pictures_is_another_run(twice, tmp_path, capsys):
    folder, (run, _) = twice
    root = shutil.copytree(folder / "pictures", tmp_path / "pictures")
    shutil.copytree(folder / "first" / "runs", tmp_path / "runs")
    flags = ["--dataset", "csv", "--data-dir", root, *SMALL, "--out", tmp_path / "runs"]
    copied = tmp_path / run.relative_to(folder / "first") / "result.json"
    before = copied.read_bytes()
    assert outcome(*flags) is None
    assert f"{copied} is there already" in capsys.readouterr().out
    ## Another label is another data set under the same name.
    cell(CSV, 10, "label", "dog" if read_table(root / CSV)[8]["label"] == "cat" else "cat")(root)
    assert outcome(*flags) is None
    assert copied.read_bytes() == before
    (other,) = set(tmp_path.rglob("result.json")) - {copied}
    pictures = load("csv", root, 16, smoke=True).hash()
    assert result_of(other.parent)["settings"]["pictures"] == pictures
    assert outcome(*flags, "--restart") is None and other.exists()


def test_a_killed_run_is_not_continued_on_other_pictures(pictures, tmp_path, monkeypatch):
    save = data_module.save

    def die(path, content):
        if path.name == "student.pt":
            raise ZeroDivisionError
        save(path, content)

    flags = ["--dataset", "csv", "--data-dir", pictures, *SMALL]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(data_module, "save", die)
        outcome(*flags, "--out", tmp_path / "a")
    assert len(list(tmp_path.rglob(OWN))) == 1
    group = read_table(pictures / CSV)[8]["group"]
    cell(CSV, 10, "group", {"indoor": "outdoor", "outdoor": "indoor"}[group])(pictures)
    results = []
    for out in (tmp_path / "a", tmp_path / "b"):
        assert outcome(*flags, "--out", out) is None
        (result,) = out.rglob("result.json")
        results.append(result_of(result.parent))
        results[-1].pop("times")
    assert results[0] == results[1]


def test_as_a_process_of_its_own(pictures):
    cut("pictures/017.jpg")(pictures)
    for more, words in (
        ([], "1 of 96 | pictures/017.jpg | --skip-bad"),
        (["--skip-bad", "--out", "labels.csv/x"], "labels.csv"),
    ):
        done = run_script("ckd", "--dataset", "csv", "--data-dir", ".", *SMALL, *more, cwd=pictures)
        assert done.returncode == 1
        assert all(word in one_sentence(done.stderr) for word in words.split(" | "))
