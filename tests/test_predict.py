"""predict.py says what the run's student said, and so do the files that it exports."""

import argparse
import csv
import importlib
import json
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import ckd
import fairtune
import numpy as np
import pytest
import torch
import torchvision
from conftest import cells_of, read_table, write_table
from forked import ROOT, run_script
from PIL import Image

import datasets
import metrics
import predict
from data import InputError, files_of
from datasets import decode
from datasets._tables import pictures_below

SMALL = "--smoke --device cpu --image-size 16 --epochs 2 --teacher convnet4".split()


@pytest.fixture(scope="module")
def run(originals, tmp_path_factory):
    """The folder of a finished run on the miniature of pictures in folders."""
    folder = tmp_path_factory.mktemp("predict")
    pictures = shutil.copytree(originals / "csv", folder / "pictures")
    flags = ["--dataset", "csv", "--data-dir", pictures, *SMALL, "--student", "convnet2"]
    done = run_script("ckd", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("runs/smoke/csv/ckd/*/student.pt")
    return path.parent


@pytest.fixture
def main(monkeypatch, capsys):
    """predict.py's main with these arguments; returns what it prints."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        predict.main()
        return capsys.readouterr().out

    return call


def pictures_of_the_test(run, originals):
    """The names of the run's test pictures, and their pixels: (N, 3, 16, 16) uint8."""
    files = np.load(run / "logits.npz")["ids"]
    pixels = np.stack([decode(originals / "csv" / file, 16) for file in files])
    return files, torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("rule", ["last", "best_overall", "best_worst_group"])
def test_the_logits_are_those_of_the_run(run, originals, rule):
    student, saved = predict.load_student(run / "student.pt", rule)
    assert saved["classes"] == ["cat", "dog", "fox"] and not student.training
    _, pictures = pictures_of_the_test(run, originals)
    with torch.no_grad():
        logits = student(pictures).numpy()
    expected = np.load(run / "logits.npz")[rule]
    assert len(expected) > 5 and expected.dtype == np.float16
    np.testing.assert_allclose(logits, expected.astype(np.float32), rtol=1e-3, atol=1e-3)


def test_classes_and_probabilities_are_printed_and_written(run, originals, main, tmp_path):
    files, pictures = pictures_of_the_test(run, originals)
    folder = shutil.copytree(originals / "csv" / "pictures", tmp_path / "pictures")
    (folder / "notes.txt").write_text("no picture, and not read")
    table = tmp_path / "new" / "table.csv"
    printed = main(run, folder, originals / "csv" / files[0], "--csv", table)
    lines = list(csv.reader(table.read_text().splitlines()))
    scores = ["score_cat", "score_dog", "score_fox"]
    assert lines[0] == ["file", "class", "class_corrected", *scores] and len(lines) == 98
    assert [line[0] for line in lines[1:97]] == [str(file) for file in sorted(folder.glob("*.*g"))]
    logits = np.load(run / "logits.npz")["last"].astype(np.float32)
    expected = dict(zip(files, torch.from_numpy(logits).softmax(1)))
    printed = dict(line.split(": ") for line in printed.splitlines())
    compared, prior = 0, torch.load(run / "student.pt", weights_only=True)["class_shares"]
    for name, likely, corrected, *shares in lines[1:]:
        told = f"{likely}, corrected {corrected} (cat {float(shares[0]):.3f}, dog "
        assert printed[name].startswith(told)
        p = np.array([float(share) for share in shares])
        assert likely == ["cat", "dog", "fox"][np.argmax(p)]
        assert corrected == ["cat", "dog", "fox"][np.argmax(p / prior)]
        key = "pictures/" + name.rsplit("/", 1)[1]
        if key in expected:
            np.testing.assert_allclose([float(p) for p in shares], expected[key], atol=1e-3)
            compared += 1
    assert compared == len(files) + 1


def test_folders_are_read_as_in_training(run, originals, main, tmp_path):
    """Links to folders are followed; hidden files, such as macOS adds, are none of the pictures."""
    picture, folder = originals / "csv" / "pictures" / "000.png", tmp_path / "pictures"
    for name in ("pictures/b.png", "pictures/._b.png", "pictures/.trash/c.png", "store/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    (folder / "linked").symlink_to(tmp_path / "store")
    answered = [line.partition(": ")[0] for line in main(run, folder).splitlines()]
    expected = [str(folder / name) for name in pictures_below(folder)]
    assert [name for name in answered if name.endswith(".png")] == sorted(expected)
    assert sorted(expected) == [str(folder / "b.png"), str(folder / "linked" / "a.png")]


def test_the_file_is_all_it_takes(run, originals, main, tmp_path):
    """A student.pt alone in a folder says what the run's folder says."""
    picture = originals / "csv" / "pictures" / "000.png"
    shutil.copy(run / "student.pt", tmp_path / "mine.pt")
    assert main(tmp_path / "mine.pt", picture) == main(run, picture)
    saved = torch.load(tmp_path / "mine.pt", weights_only=True)
    result = json.loads((run / "result.json").read_text())
    assert saved["licence"] == "Yours." and "(pixel - mean) / std" in saved["preprocessing"]
    assert saved["class_shares"] == result["last"]["class_shares"] and saved["size"] == 16
    assert (saved["network"], saved["settings"]["dataset"]) == ("convnet2", "csv")
    for rule in predict.RULES:
        tested = metrics.main_ones(result[rule]["test"])
        assert {"accuracy", "auroc", "worst_cell"} < tested.keys()
        assert saved["test"][rule] == tested and saved["states"][rule]["epoch"] in (0, 1)


# ----- with a table of labels ---------------------------------------------------------------------
@pytest.fixture
def lively(run, originals, tmp_path):
    """The run's student.pt with outputs so far apart that classes and both decisions differ."""
    saved, (student, _) = (
        torch.load(run / "student.pt", weights_only=True),
        predict.load_student(run),
    )
    with torch.no_grad():
        logits = student(pictures_of_the_test(run, originals)[1])  # nearly the same for all
    state, scale = saved["states"]["last"], 2 / logits.std(0)
    state["head.weight"] *= scale[:, None]
    state["head.bias"] -= logits.mean(0)
    state["head.bias"] *= scale
    torch.save(saved | {"class_shares": [0.9, 0.08, 0.02]}, tmp_path / "lively.pt")
    return tmp_path / "lively.pt"


def test_labels_give_the_metrics_by_group(lively, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    rows = read_table(folder / "labels.csv")
    printed = main(lively, "--labels", folder / "labels.csv", "--csv", tmp_path / "answers.csv")
    assert "96 of 96 pictures have a label and a group" in printed
    student, saved = predict.load_student(lively)
    pixels = np.stack([decode(folder / row["file"], 16) for row in rows])
    with torch.no_grad():
        logits = student(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    groups = ["indoor", "outdoor"]
    result = metrics.evaluate(
        labels=np.array([saved["classes"].index(row["label"]) for row in rows]),
        groups=np.array([groups.index(row["group"]) for row in rows]),
        logits=logits,
        num_classes=3,
        num_groups=2,
        class_shares=[0.9, 0.08, 0.02],
        clusters=[row["subject"] for row in rows],
    )
    assert result["counts"] != result["counts_corrected"]
    expected = metrics.show({"student": result}, saved["classes"], groups)
    if saved["test"]["last"]["collapsed"]:  # when it was tested: such answers are of no use
        expected += "\nbeware: on the test pictures of its data set this student has collapsed"
    assert printed.endswith(f"\n{expected}\n")
    table = [row | {"label": row["label"].upper()} for row in rows]  # capitals do not count
    write_table(folder / "loud.csv", table)
    assert main(lively, "--labels", folder / "loud.csv").endswith(f"\n{expected}\n")
    answers = read_table(tmp_path / "answers.csv")
    assert [row["file"] for row in answers] == [row["file"] for row in rows]
    said = logits.argmax(1), (logits - np.log([0.9, 0.08, 0.02])).argmax(1)
    for key, codes in zip(("class", "class_corrected"), said):
        assert [row[key] for row in answers] == [saved["classes"][c] for c in codes]
    ## What is written can be read by metrics.py, by the command that is printed: the same numbers.
    command = re.search(r"python metrics.py \S+ (.*)", printed)[1].split()
    again = run_script(ROOT / "metrics.py", "answers.csv", *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    ours, theirs = cells_of(expected), cells_of(again.stdout)
    for name in (
        ("utility", "top-1", ""),
        ("fairness of decisions", "mean-DEO", ""),
        ("fairness of decisions", "mean-DEO", "corrected"),
        ("class x group", "worst cell", ""),
        ("top-1 by group", "indoor", ""),
        ("disparity by class, outdoor minus indoor", "fox", ""),
    ):
        assert ours[name] == theirs[name]


def test_rows_without_a_subject_are_subjects_of_their_own(lively, originals, main, tmp_path):
    folder, printed = shutil.copytree(originals / "csv", tmp_path / "pictures"), []
    rows = read_table(folder / "labels.csv")
    for subject in ("unknown", "file"):
        for row in rows[:40]:
            row["subject"] = row.get(subject, subject)
        write_table(folder / "labels.csv", rows)
        printed.append(main(lively, "--labels", folder / "labels.csv"))
    assert printed[0] == printed[1]


def test_a_subject_in_two_ways_of_writing_is_one(lively, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    rows, printed = read_table(folder / "labels.csv"), []
    for way in (str.lower, str.upper):
        for row in rows[::2]:
            row["subject"] = way(row["subject"])
        write_table(folder / "labels.csv", rows)
        printed.append(main(lively, "--labels", folder / "labels.csv"))
    assert printed[0] == printed[1]


@pytest.mark.parametrize("first", ["fox", "Fox"])  # of which there is no row
def test_the_printed_shares_are_in_the_order_of_metrics(lively, originals, main, tmp_path, first):
    """Which sorts classes by their names; a student has them as its data set has."""
    classes, answers = [first, "cat", "dog"], tmp_path / "my answers.csv"
    torch.save(torch.load(lively, weights_only=True) | {"classes": classes}, tmp_path / "other.pt")
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    rows = [row for row in read_table(folder / "labels.csv") if row["label"] in classes]
    write_table(folder / "labels.csv", rows)
    printed = main(tmp_path / "other.pt", "--labels", folder / "labels.csv", "--csv", answers)
    assert "--shares 0.08 0.02 0.9\n" in printed  # of cat, dog, fox
    command = shlex.split(re.search(r"python metrics.py (.*)", printed)[1])
    again = run_script(ROOT / "metrics.py", *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in (("fairness of decisions", "mean-DEO"), ("utility", "top-1")):
        ours, theirs = (cells_of(text)[*name, "corrected"] for text in (printed, again.stdout))
        assert ours == theirs


def test_labels_may_be_the_folders_as_in_training(lively, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    rows = read_table(folder / "labels.csv")
    for row in rows:
        named = Path(row.pop("label")) / Path(row["file"]).name
        (folder / named.parent).mkdir(exist_ok=True)
        row["file"] = str((folder / row["file"]).rename(folder / named).relative_to(folder))
    for sign in "/\\":  # as Windows writes them, too
        named = [row | {"file": row["file"].replace("/", sign)} for row in rows]
        write_table(folder / "labels.csv", named)
        printed = main(lively, "--labels", folder / "labels.csv")
        assert "96 of 96 pictures have a label and a group" in printed
    table = [row | {"file": Path(row["file"]).name} for row in rows]  # found by search
    write_table(folder / "labels.csv", table)
    searched = main(lively, "--labels", folder / "labels.csv")
    assert cells_of(searched) == cells_of(printed)


def test_a_picture_beside_the_table_has_no_label_as_in_training(lively, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "data")
    rows = read_table(folder / "labels.csv")
    for row in rows[1:]:
        named = Path(row["label"]) / Path(row["file"]).name
        (folder / named.parent).mkdir(exist_ok=True)
        row["file"] = str((folder / row["file"]).rename(folder / named).relative_to(folder))
    rows[0]["file"] = str((folder / rows[0]["file"]).rename(folder / "x.png").relative_to(folder))
    for row in rows:
        del row["label"]
    write_table(folder / "labels.csv", rows)
    printed = main(lively, "--labels", folder / "labels.csv")
    assert "label is the folder, group is the column group" in printed
    assert "95 of 96 pictures have a label and a group" in printed
    saved = torch.load(lively, weights_only=True)  # with a column that is called like what it is
    saved["settings"]["sensitive"] = "folder"
    torch.save(saved, tmp_path / "folder.pt")
    rows = [{k if k != "group" else "folder": row[k] for k in row} for row in rows]
    write_table(folder / "labels.csv", rows)
    again = main(tmp_path / "folder.pt", "--labels", folder / "labels.csv")
    assert again == printed.replace("the column group", "the column folder")


def test_what_the_training_had_otherwise_is_said(lively, originals, main, tmp_path):
    """A new group, or a word for an old one; a subject that is not there; others' files."""
    folder = shutil.copytree(originals / "csv", tmp_path / "data")
    rows = read_table(folder / "labels.csv")
    printed = main(lively, "--labels", folder / "labels.csv")
    assert "beside the table" not in printed and "did not have" not in printed
    assert "no column" not in printed
    copies = shutil.copytree(folder / "pictures", tmp_path / "copies/pictures")
    printed = main(lively, copies, "--labels", folder / "labels.csv")
    assert f"beware: {len(rows)} pictures, such as {copies}" in printed
    with pytest.raises(InputError, match="does not exist"):  # but beside the table there is one
        main(lively, tmp_path / "none" / rows[0]["file"], "--labels", folder / "labels.csv")
    saved = torch.load(lively, weights_only=True)
    saved["settings"]["subject"] = "case"
    torch.save(saved, tmp_path / "case.pt")
    rows[0]["group"] = "elsewhere"
    write_table(folder / "labels.csv", [{k: r[k] for k in r if k != "subject"} for r in rows])
    printed = main(tmp_path / "case.pt", "--labels", folder / "labels.csv")
    assert "groups that its training did not have: elsewhere\n" in printed
    assert "beware: no column case, the training's subject: each picture is one" in printed


def test_a_column_of_signs_is_no_subject(lively, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "data")
    rows = read_table(folder / "labels.csv")
    plain = main(lively, "--labels", folder / "labels.csv")
    write_table(folder / "labels.csv", [{"#": str(n)} | row for n, row in enumerate(rows)])
    assert main(lively, "--labels", folder / "labels.csv") == plain


def test_a_link_has_its_own_name_and_that_of_its_picture(run, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "data")
    rows, links = read_table(folder / "labels.csv")[:4], tmp_path / "links"
    links.mkdir()
    for n, row in enumerate(rows):
        (links / f"link{n}.png").symlink_to(folder / row["file"])
    names = [Path(row["file"]).name for row in rows]
    for called in ([f"link{n}.png" for n in range(4)], names):
        write_table(tmp_path / "t.csv", [row | {"file": f} for row, f in zip(rows, called)])
        printed = main(run, links, "--labels", tmp_path / "t.csv")
        assert "4 of 4 pictures have a label and a group" in printed


def test_names_of_the_training_are_known_in_any_writing(run, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    rows = read_table(folder / "labels.csv")
    known = len(torch.load(run / "student.pt", weights_only=True)["trained_on"])
    (folder / "pictures").rename(folder / "PICTURES")
    for name in (lambda f: f, lambda f: f.replace("/", "\\"), str.upper):
        table = [row | {"file": name(row["file"])} for row in rows]
        write_table(folder / "labels.csv", table)
        printed = main(run, "--labels", folder / "labels.csv")
        assert f"{known} of them have names of pictures that this student" in printed
    inside = [row | {"file": Path(row["file"]).name} for row in rows]
    write_table(folder / "PICTURES" / "inside.csv", inside)
    printed = main(run, "--labels", folder / "PICTURES" / "inside.csv")
    assert f"{known} of them have names" in printed and 0 < known < 96


def test_what_is_printed_can_be_run(run, originals, main, tmp_path):
    """Also where some rows have no label."""
    folder = shutil.copytree(originals / "csv", tmp_path / "my pictures")
    rows = read_table(folder / "labels.csv")
    rows[3]["label"] = ""
    write_table(folder / "labels.csv", rows)
    printed = main(run, "--labels", folder / "labels.csv", "--csv", tmp_path / "my answers.csv")
    assert "95 of 96 pictures have a label" in printed
    command = shlex.split(re.search(r"python metrics.py (.*)", printed)[1])
    again = run_script(ROOT / "metrics.py", *command, cwd=tmp_path)
    assert again.returncode == 0 and command[-1] == "--skip-bad", again.stderr


def test_groups_are_in_the_order_of_the_training(lively, originals, main, tmp_path):
    """Bins in rising order, so that a difference has the same sign."""
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    rows = read_table(folder / "labels.csv")
    ages = [row | {"years": "1" if row["group"] == "indoor" else "30"} for row in rows]
    write_table(folder / "labels.csv", ages)
    saved = torch.load(lively, weights_only=True)
    saved["settings"]["sensitive"] = "years:18,60"
    torch.save(saved, tmp_path / "other.pt")
    printed = main(tmp_path / "other.pt", "--labels", folder / "labels.csv")
    assert "18<years<=60 minus years<=18" in printed


def test_pictures_find_their_rows_by_the_end_of_their_paths(run, originals, main, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "elsewhere")
    rows = read_table(folder / "labels.csv")
    table = tmp_path / "table.csv"
    rows = [{**row, "file": row["file"].removeprefix("pictures/")} for row in rows[:10]]
    rows[4]["group"], rows[5]["label"] = "unknown", ""  # predicted, but not judged
    write_table(table, rows)
    printed = main(run, folder / "pictures", "--labels", table)
    assert "8 of 96 pictures have a label and a group" in printed
    for name in (lambda f: f[:-4], lambda f: f"{int(f[:-4])}.PNG", str.upper):  # as people write
        write_table(table, [{**row, "file": name(row["file"])} for row in rows])
        lax = main(run, folder / "pictures", "--labels", table)
        assert lax == printed
    write_table(table, [{**rows[0], "file": f"000.{ending}"} for ending in ("gif", "bmp")])
    with pytest.raises(InputError, match="000.png can be 000.gif or 000.bmp: write its ending"):
        main(run, folder / "pictures/000.png", "--labels", table)
    assert main(run, "--labels", folder / "labels.csv").count(", corrected ") == 96


def test_the_table_of_the_training_is_read_by_the_settings_of_the_training(
    run, originals, main, tmp_path
):
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    before = main(run, "--labels", folder / "labels.csv", "--csv", tmp_path / "before.csv")
    names = {"file": "image", "label": "finding", "group": "place", "subject": "Patient No"}
    rows = read_table(folder / "labels.csv")
    write_table(folder / "labels.csv", [{names.get(k, k): row[k] for k in row} for row in rows])
    saved = torch.load(run / "student.pt", weights_only=True)
    saved["settings"] |= {"file_column": "image", "target": "finding", "sensitive": "place"}
    torch.save(saved, tmp_path / "other.pt")
    after = main(
        tmp_path / "other.pt", "--labels", folder / "labels.csv", "--csv", tmp_path / "after.csv"
    )
    told = "file is the column image, label is the column finding, group is the column place, "
    assert f"{told}subject is the column patient no\n" in after
    after = after.replace("after.csv", "before.csv")
    assert after.partition("\n")[2] == before.partition("\n")[2]  # patients are clusters, too
    assert read_table(tmp_path / "after.csv") == read_table(tmp_path / "before.csv")
    assert read_table(tmp_path / "after.csv")[3]["subject"] == "p1"
    saved["settings"]["subject"] = "patient-NO."  # as it was written for the training
    torch.save(saved, tmp_path / "third.pt")
    rows = read_table(folder / "labels.csv")
    renamed = [{k.replace("Patient No", "The Patient No"): v for k, v in r.items()} for r in rows]
    for table, column in ((rows, "patient no"), (renamed, None)):
        write_table(folder / "labels.csv", table)
        said = main(tmp_path / "third.pt", "--labels", folder / "labels.csv").splitlines()[0]
        assert ("subject is" in said) == bool(column) and said.endswith(column or "place")
    write_table(folder / "labels.csv", rows)
    decoys = {"label": "dog", "group": "elsewhere"}  # which this student was not trained by
    rows = read_table(folder / "labels.csv")
    write_table(folder / "labels.csv", [row | decoys for row in rows])
    again = main(tmp_path / "other.pt", "--labels", folder / "labels.csv")
    assert f"{told}subject is the column patient no\n" in again
    saved["settings"]["sensitive"] = "age:7,20"
    torch.save(saved, tmp_path / "other.pt")
    shown = cells_of(main(tmp_path / "other.pt", "--labels", folder / "labels.csv"))
    assert ("AUROC by group", "7<age<=20", "") in shown


def test_bad_pictures_are_named_and_the_others_are_answered(run, originals, tmp_path):
    folder = shutil.copytree(originals / "csv", tmp_path / "pictures")
    (folder / "pictures/003.jpg").write_text("no picture")
    (folder / "pictures/009.jpg").unlink()
    flags = ["--labels", folder / "labels.csv", "--csv", "answers.csv"]
    done = run_script(Path(predict.__file__), run, *flags, cwd=tmp_path)
    first, second, last = done.stderr.splitlines()
    assert "003.jpg cannot be read as a picture" in first
    assert second.endswith("009.jpg does not exist")
    words = "predict.py: of 96 pictures 2 could not be read, or their masks; the first: "
    assert last.startswith(words)
    assert done.returncode == 1 and "94 of 96 pictures have a label and a group" in done.stdout
    assert "fairness of AUROC" in done.stdout and len(read_table(tmp_path / "answers.csv")) == 94


def test_grey_of_more_than_8_bits_is_spread_as_in_training(run, main, tmp_path):
    """A picture alone does not show in which range its data set lies."""
    levels = np.linspace(0, 200, 256).reshape(16, 16)
    Image.fromarray((levels * 16).astype(np.uint16)).save(tmp_path / "bright.png")
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray((levels / 16).astype(np.uint8)).save(tmp_path / "meant.png")
    saved = torch.load(run / "student.pt", weights_only=True)
    saved["notes"] |= {datasets.WHITE: 4095.0}
    torch.save(saved, tmp_path / "other.pt")
    assert np.ptp(decode(tmp_path / "dark.png", 16, white=4095)) == 12
    dark, meant = (
        main(tmp_path / "other.pt", tmp_path / f"{name}.png", "--csv", tmp_path / "t.csv")
        for name in ("dark", "meant")
    )
    warning = f"beware: 1 pictures, such as {tmp_path / 'dark.png'}, are grey of a smaller range"
    assert warning in dark and "beware: 1 pictures" not in meant
    (answer, *_), (expected, *_) = (said.partition(": ")[2].splitlines() for said in (dark, meant))
    assert answer == expected
    told = "1 pictures are grey of more than 8 bits, as none was in training: white is the end of"
    assert told in main(run, tmp_path / "dark.png") and told not in main(
        run, tmp_path / "meant.png"
    )
    saved["notes"][datasets.WHITE] = 255.0
    torch.save(saved, tmp_path / "other.pt")
    with pytest.raises(InputError, match="its grey goes up to 3200, where 255 is white"):
        main(tmp_path / "other.pt", tmp_path / "bright.png")


def test_the_code_of_a_network_must_be_that_of_the_training(run, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = "import torch\ndef {}(size):\n    return torch.nn.Sequential(torch.nn.Flatten(), {})\n"
    linear, code = "torch.nn.Linear(3 * size * size, 1)", Path("net.py")
    code.write_text(body.format("head", linear) + body.format("other", linear))
    folder = with_student(run, tmp_path / "run", ckd, f"{code}:head")
    saved = torch.load(folder / "student.pt", weights_only=True)
    saved["settings"] |= files_of(f"{code}:head")
    torch.save(saved, folder / "student.pt")
    Image.new("RGB", (30, 20)).save("picture.png")
    said = main(folder, "picture.png", "--student-module", "net.py:head")
    shutil.copy(code, "moved.py")
    assert main(folder, "picture.png", "--student-module", "moved.py:head") == said
    refused = "is not what run/student.pt was trained with, net.py:head as it was then"
    edited = r" \(its text, or that of a file which it imports, is another one\): pass that"
    for module, words in (("net.py:other", ": pass that"), ("changed.py:head", edited)):
        code.with_name("changed.py").write_text(code.read_text() + "\n")
        with pytest.raises(InputError, match=f"{module} {refused}{words}"):
            main("run", "picture.png", "--student-module", module)
    del saved["settings"]["files"]  # of an older version: then shapes alone can tell
    torch.save(saved, folder / "student.pt")
    code.write_text(
        body.format("head", "torch.nn.Linear(3 * size * size, 9), torch.nn.Linear(9, 1)")
    )
    with pytest.raises(InputError, match="does not fit .* what net.py:head makes") as error:
        main("run", "picture.png", "--student-module", "net.py:head")
    assert "delete" not in str(error.value)


def test_a_student_that_is_older_than_todays_settings_answers_as_before(
    run, originals, main, tmp_path
):
    picture = originals / "csv" / "pictures" / "000.png"
    saved = torch.load(run / "student.pt", weights_only=True)
    for name in ("task", "weights", "statistics", "pretrained"):
        del saved["settings"][name]
    torch.save(saved, tmp_path / "old.pt")
    assert main(tmp_path / "old.pt", picture) == main(run, picture)
    table = "--labels", originals / "csv" / "labels.csv"
    assert main(tmp_path / "old.pt", *table) == main(run, *table)


def test_a_folder_for_masks_is_refused_where_answers_are_classes(run, originals, main, tmp_path):
    picture = originals / "csv" / "pictures" / "000.png"
    with pytest.raises(InputError, match="answers with classes: leave out --masks"):
        main(run, picture, "--masks", tmp_path / "masks")


def names_of(result):
    return result["classes"], result["group_names"]


def with_student(run, folder, module, name, **settings):
    """A copy of a run in which a script's untrained network stands for the student."""
    shutil.copytree(run, folder)
    saved = torch.load(folder / "student.pt", weights_only=True)
    saved["settings"] |= {"student": name, **settings}
    args = argparse.Namespace(**saved["settings"])
    if args.task == "segment":
        saved["outputs"] = ["background", "inside"]
    state = module.Network(args, name, len(saved["outputs"])).state_dict()
    saved |= {"method": module.__name__, "states": {"last": {"epoch": 1, **state}}}
    saved["network"] = name
    torch.save(saved, folder / "student.pt")
    result = json.loads((folder / "result.json").read_text()) | {"settings": saved["settings"]}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_masks_do_not_replace_those_of_the_pictures(run, originals, main, tmp_path):
    """Whose names are the same, NAME-mask.png."""
    folder = with_student(run, tmp_path / "run", ckd, "unet8", task="segment")
    pictures = tmp_path / "masks" / "pictures"
    pictures.mkdir(parents=True)
    shutil.copy(originals / "csv" / "pictures" / "000.png", pictures)
    (pictures / "000-mask.png").write_text("drawn by hand")
    for given in (pictures, pictures / "000.png"):
        with pytest.raises(InputError, match="--masks .* would replace what is read: choose"):
            main(folder, given, "--masks", pictures.parent / ".." / "masks" / "pictures")
    assert [*pictures.glob("*-mask.png")] == [pictures / "000-mask.png"]
    assert (pictures / "000-mask.png").read_text() == "drawn by hand"
    main(folder, pictures / "000.png", "--masks", pictures.parent)  # which holds none itself
    assert (pictures.parent / "000-mask.png").is_file()


def test_a_collapsed_student_of_masks_is_told_as_one_of_classes(run, originals, main, tmp_path):
    masks = with_student(run, tmp_path / "masks", ckd, "unet8", task="segment")
    for folder in (masks, shutil.copytree(run, tmp_path / "classes")):
        saved = torch.load(folder / "student.pt", weights_only=True)
        for bad in (True, False):
            saved["test"]["last"]["collapsed"] = bad
            torch.save(saved, folder / "student.pt")
            more = ["--masks", tmp_path / "drawn"] if folder == masks else []
            said = main(folder, originals / "csv" / "pictures" / "000.png", *more)
            assert said.endswith("this student has collapsed\n") == bad


@pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxscript")), reason="needs onnx")
def test_an_export_without_onnx_still_writes_the_other_files(run, main, tmp_path, monkeypatch):
    """PyTorch and onnxscript of different years do not always understand each other."""

    def refuse(*args, **more):
        raise torch.onnx.OnnxExporterError("step 3/3")

    folder = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert "no ONNX file: install an onnxscript that is as old" in main("--export", folder)
    names = {path.name for path in (folder / "export-last").iterdir()}
    assert names == {"student.pt2", "card.json", "card.md"}


@pytest.mark.parametrize("name", ["convnet2", "shufflenet_v2_x0_5", "vit_tiny"])
def test_the_exported_student_says_the_same_for_any_number_of_pictures(
    run, originals, main, tmp_path, name
):
    module = fairtune if name == "vit_tiny" else ckd  # a network that only this script knows
    folder = with_student(run, tmp_path / "run", module, name)
    assert "card.json, card.md, student" in main("--export", folder)
    eager, saved = predict.load_student(folder)
    folder = folder / "export-last"
    exported = torch.export.load(folder / "student.pt2").module()
    _, pictures = pictures_of_the_test(run, originals)
    numbers = (1, 7, len(pictures))
    with torch.no_grad():
        expected = [eager(pictures[:number]) for number in numbers]
    for number, logits in zip(numbers, expected):
        torch.testing.assert_close(exported(pictures[:number]), logits)
    old = torch.__version__.startswith("2.6")  # which today's onnxscript does not understand
    if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))) and not old:
        onnxruntime = importlib.import_module("onnxruntime")
        assert sorted(path.name for path in folder.iterdir())[2:] == ["student.onnx", "student.pt2"]
        session = onnxruntime.InferenceSession(folder / "student.onnx")
        for number, logits in zip(numbers, expected):
            fed = {session.get_inputs()[0].name: pictures[:number].numpy()}
            np.testing.assert_allclose(session.run(None, fed)[0], logits, atol=1e-4)
        with pytest.raises(Exception, match="Unexpected input data type"):
            session.run(None, {session.get_inputs()[0].name: pictures.numpy() / np.float32(255)})
    if old:
        return  # which takes 0 to 1, too, and misreads it
    with pytest.raises(RuntimeError, match="dtype mismatch"):  # 0 to 1 is refused, not misread
        exported(pictures / 255)
    card = json.loads((folder / "card.json").read_text())
    assert card["licence of the data"] == "Yours." and card["classes"] == ["cat", "dog", "fox"]
    assert "uint8" in card["pictures"] and "from 0 to 255" in card["pictures"]
    text = (folder / "card.md").read_text()
    for words in (f"# {name}, a student of", "It tells cat from dog from fox", "Licence: Yours."):
        assert words in text
    result = json.loads((folder.parent / "result.json").read_text())
    assert metrics.show({"student": result["last"]["test"]}, *names_of(result)) in text


def test_a_card_has_the_numbers_of_its_own_run_alone(run, main, tmp_path, monkeypatch):
    """Also no file of an earlier export stays beside it."""
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "export-last").mkdir()
    (folder / "export-last/student.onnx").write_text("of an earlier export")
    monkeypatch.setattr(predict, "find_spec", lambda name: None)  # as without its packages
    assert "wrote card.json, card.md, student.pt2 into" in main(folder, "--export")
    assert not (folder / "export-last/student.onnx").exists()
    card = (folder / "export-last/card.md").read_text()
    assert "indoor (" in card and "test pictures of groups" in card
    result = json.loads((folder / "result.json").read_text())
    result["settings"]["seed"] = 99
    (folder / "result.json").write_text(json.dumps(result))
    main(folder, "--export")
    card = (folder / "export-last/card.md").read_text()
    assert "Groups: indoor, outdoor. Their numbers, and intervals, are in the run's" in card


def test_an_export_without_pictures_writes_no_answers(run, main, originals, tmp_path, capsys):
    picture, table = originals / "csv/pictures/000.png", tmp_path / "answers.csv"
    main(run, picture, "--csv", table)
    before = table.read_bytes()
    with pytest.raises(SystemExit):
        main(run, "--export", "--csv", table)
    assert "or --export alone" in capsys.readouterr().err and table.read_bytes() == before


BODIES = ["x.reshape(len(x), -1)", "(x if x.max() > 9 else -x).flatten(1)"]


@pytest.mark.parametrize("forward", BODIES)
def test_a_network_that_cannot_be_exported_is_one_sentence(run, main, tmp_path, capsys, forward):
    """The cards are written, and the pictures of the same command are answered."""
    module, picture = tmp_path / "net.py", tmp_path / "picture.png"
    module.write_text(f"""import torch
class Flat(torch.nn.Module):
    def forward(self, x):
        return {forward}
def head(size):
    return torch.nn.Sequential(Flat(), torch.nn.Linear(3 * size * size, 1))
""")
    Image.new("RGB", (30, 20), "red").save(picture)
    folder = with_student(run, tmp_path / "run", ckd, f"{module}:head")
    flags = [folder, picture, "--student-module", f"{module}:head"]
    said = main(*flags)
    with pytest.raises(InputError, match="no student.pt2, because .* without len") as error:
        main(*flags, "--export")
    assert "\n" not in str(error.value) and capsys.readouterr() == (said, "")
    names = sorted(path.name for path in (folder / "export-last").iterdir())
    assert names == ["card.json", "card.md"]


def test_each_rule_is_exported_into_its_own_folder(run, originals, main, tmp_path):
    saved = torch.load(run / "student.pt", weights_only=True)
    for n, rule in enumerate(predict.RULES):
        saved["test"][rule] |= {"accuracy": n / 10, "collapsed": n == 1}
    torch.save(saved, tmp_path / "student.pt")
    _, pictures = pictures_of_the_test(run, originals)
    for n, rule in enumerate(predict.RULES):
        printed = main(tmp_path / "student.pt", "--export", "--rule", rule)
        assert f"export-{rule}" in printed and ("has collapsed" in printed) == (n == 1)
        exported = torch.export.load(tmp_path / f"export-{rule}" / "student.pt2").module()
        expected = np.load(run / "logits.npz")[rule].astype(np.float32)
        np.testing.assert_allclose(exported(pictures).detach(), expected, rtol=1e-3, atol=1e-3)
        card = json.loads((tmp_path / f"export-{rule}" / "card.json").read_text())
        assert rule in card["network"]
        text = (tmp_path / f"export-{rule}" / "card.md").read_text()  # without a result beside it
        assert "result.json, which was not beside the student" in text
        assert card["metrics on test pictures of the data set"]["accuracy"] == n / 10
        assert f"accuracy {n / 10}\n" in text


class Code:
    """A pickle that writes a file when it is opened."""

    def __reduce__(self):
        return open, ("trap", "w")


FAULTS = {  # name: (what student.pt holds, arguments after RUN, words of the sentence)
    "no student": (None, [], ["student.pt does not exist", "folder of a finished run"]),
    "no picture": ({}, ["none.png"], ["none.png does not exist"]),
    "text": ({}, ["text.png"], ["text.png cannot be read as a picture"]),
    "empty folder": ({}, ["empty"], ["empty holds no picture"]),
    "unwritable": ({}, ["picture.png", "--csv", "text.png/table.csv"], ["text.png"]),
    "the table of labels as --csv": (
        {},
        ["--labels", "good.csv", "--csv", "more/../good.csv"],
        ["--csv more/../good.csv would replace what is read: choose another name"],
    ),
    "another table as --csv": (
        {},
        ["picture.png", "--csv", "good.csv"],
        ["is no table of predict"],
    ),
    "another picture as --csv": (
        {},
        ["picture.png", "--csv", "text.png"],
        ["is no table of predic"],
    ),
    "a picture as --csv": ({}, ["more", "--csv", "more/picture.png"], ["would replace what is"]),
    "the student as --csv": (
        {},
        ["picture.png", "--csv", "run/student.pt"],
        ["--csv run/student.pt would replace what is read"],
    ),
    "damaged": ("damaged", [], ["student.pt is damaged, no student, or", "pass the"]),
    "code": (Code(), [], ["student.pt is damaged, no student, or holds code: pass the student"]),
    "a list": ([1], [], ["student.pt is no student"]),
    "no states": ({"states": None}, [], ["student.pt is no student that this version reads"]),
    "an older one": ({"class_shares": None}, [], ["student.pt is no student", "an older version"]),
    "a rule less": ({"states": {}}, [], ["student.pt is no student", "such as a teacher's"]),
    "its own code": ({"network": "net.py:f"}, [], ["net.py:f", "--student-module FILE.py:FUNC"]),
    "labels without a group": (
        {},
        ["--labels", "few.csv"],
        ["'group': rename or write one, it has file, label"],
    ),
    "labels that are empty": (
        {},
        ["picture.png", "--labels", "unknown.csv"],
        ["unknown.csv: no row has a label and a group: fill them in"],
    ),
    "two rows of one picture": (
        {},
        ["--labels", "twice.csv"],
        ["twice.csv names 'double/a.png' 2 times: keep one row for each picture"],
    ),
    "a name in latin-1": ({}, ["latin"], [": this name is not UTF-8: rename it"]),
    "a document": ({}, ["documents"], ["documents holds no picture"]),
    "labels of others": ({}, ["picture.png", "--labels", "other.csv"], ["nothing about these"]),
    "an unknown class": ({}, ["--labels", "bird.csv"], ["'bird', no class of it: cat, dog, fox"]),
    "two of one name": ({}, ["picture.png", "more", "--labels", "good.csv"], ["are the same row"]),
    "two words for a group": (
        {},
        ["--labels", "alike.csv"],
        ["alike.csv: 'm' and 'M' say the same: write them alike"],
    ),
    "a lost picture": ({}, ["--labels", "other.csv"], ["no.png does not exist"]),
    "another method": ({"method": "os"}, [], ["student.pt is no student that this version"]),
    "another network": (
        {"network": "convnet4"},
        [],
        ["student.pt does not fit", "trained with convnet4"],
    ),
    "not its code": (
        {},
        ["picture.png", "--student-module", "net.py:f"],
        ["net.py:f is not what run/student.pt was trained with, convnet2 as it was then: pass"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_sentence(run, fault, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, arguments, words = FAULTS[fault]
    shutil.copytree(run, "run")
    Image.new("RGB", (30, 20)).save("picture.png")
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    Path("more").mkdir()
    shutil.copy("picture.png", "more")
    Path("few.csv").write_text("file,label\npicture.png,cat\n")
    Path("other.csv").write_text("file,label,group\nno.png,cat,f\n")
    Path("unknown.csv").write_text("file,label,group\npicture.png,,f\n")
    Path("twice.csv").write_text("file,label,group\ndouble/a,cat,f\ndouble/a.jpg,dog,f\n")
    Path("double").mkdir()
    shutil.copy("picture.png", "double/a.png")
    Path("latin").mkdir()
    if fault == "a name in latin-1":
        Path(os.fsdecode(b"latin/\xe4.png")).write_bytes(Path("picture.png").read_bytes())
    Path("documents").mkdir()
    Path("documents/report.pdf").write_text("no picture")
    Path("bird.csv").write_text("file,label,group\npicture.png,bird,f\n")
    Path("alike.csv").write_text("file,label,group\npicture.png,cat,m\nmore/picture.png,cat,M\n")
    Path("good.csv").write_text("file,label,group\npicture.png,cat,f\n")
    student = Path("run/student.pt")
    saved = torch.load(student, weights_only=True)
    if content is None:
        student.unlink()
    elif content == "damaged":
        student.write_bytes(student.read_bytes()[:1000])
    elif isinstance(content, dict):
        settings = saved["settings"] | content.get("settings", {})
        saved = {**saved, **content, "settings": settings}
        torch.save({k: v for k, v in saved.items() if v is not None}, student)
    else:
        torch.save(content, student)
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    with pytest.raises(InputError) as error:
        main("run", *(arguments or ["picture.png"]))
    assert before == {path: path.read_bytes() for path in before}
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message and len(message) < 350
    assert "delete" not in message  # a student is what the whole training was for
    assert not Path("trap").exists()


def test_a_run_deeper_in_the_folder_is_named(run, main):
    with pytest.raises(InputError, match=f"such as {run}"):
        main(run.parent.parent, "picture.png")


def test_as_a_user_starts_it(run, originals, tmp_path):
    program, picture = Path(predict.__file__), originals / "csv" / "pictures" / "000.png"
    done = run_script(program, run, picture, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"{picture}: ") and not done.stderr
    done = run_script(program, run, "nothing.png", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("nothing.png does not exist\n")
    assert done.stderr.splitlines()[1].startswith("predict.py: of 1 pictures 1 could not be")
    done = run_script(program, run, cwd=tmp_path)
    assert done.returncode == 2 and "name pictures" in done.stderr


def test_a_pretrained_student_is_built_as_it_was(run, main, tmp_path, monkeypatch):
    """Small pictures keep the stem of the pretrained ResNet; googlenet scales its input."""
    asked, get_model = [], torchvision.models.get_model

    def without_weights(name, weights, **more):
        asked.append(weights)
        return get_model(name, weights=None, **more)

    monkeypatch.setattr(torchvision.models, "get_model", without_weights)
    folder = with_student(run, tmp_path / "run", ckd, "resnet18", pretrained=True)
    student, _ = predict.load_student(folder)
    assert asked == ["DEFAULT", None] and student.network.body.conv1.stride == (2, 2)
