"""Bad input gives one clear sentence and an exit code that is not 0, never a traceback.

Most cases run the real script inside this process, as if it were the main program; a few, and the
runs that must come out equal, are processes of their own.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
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
    "NUL in a name": (cell(CSV, 10, "file", "x\0.png"), [], []),
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


@pytest.mark.parametrize("name", HAM_FAULTS)
def test_ham10000(name, ham10000, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check("ham10000", ham10000, tmp_path, *HAM_FAULTS[name])


@pytest.mark.parametrize("name", CSV_FAULTS)
def test_csv(name, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check("csv", pictures, tmp_path, *CSV_FAULTS[name])


def test_a_folder_of_pictures_is_not_the_data_set(ham10000, pictures, tmp_path):
    for dataset, folder, contains in (
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
