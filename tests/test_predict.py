"""predict.py says what the run's student said, and so do the files that it exports."""

import argparse
import csv
import importlib
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
from forked import run_script
from PIL import Image

import predict
from data import InputError
from datasets import decode

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
    """The names of the run's test pictures, and their pixels: (N, 3, 16, 16), 0 to 255."""
    files = np.load(run / "logits.npz")["ids"]
    pixels = np.stack([decode(originals / "csv" / file, 16) for file in files])
    return files, torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("rule", ["last", "best_overall", "best_worst_group"])
def test_the_logits_are_those_of_the_run(run, originals, rule):
    student, classes, size = predict.load_student(run, rule)
    assert (classes, size) == (["cat", "dog", "fox"], 16) and not student.training
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
    assert lines[0] == ["picture", "class", "cat", "dog", "fox"] and len(lines) == 98
    assert [line[0] for line in lines[1:97]] == [str(file) for file in sorted(folder.glob("*.*g"))]
    logits = np.load(run / "logits.npz")["last"].astype(np.float32)
    expected = dict(zip(files, torch.from_numpy(logits).softmax(1)))
    printed = dict(line.split(": ") for line in printed.splitlines())
    compared = 0
    for name, likely, *shares in lines[1:]:
        assert printed[name].startswith(f"{likely} (cat {float(shares[0]):.3f}, dog ")
        assert likely == ["cat", "dog", "fox"][np.argmax([float(share) for share in shares])]
        key = "pictures/" + name.rsplit("/", 1)[1]
        if key in expected:
            np.testing.assert_allclose([float(p) for p in shares], expected[key], atol=1e-3)
            compared += 1
    assert compared == len(files) + 1


def with_student(run, folder, module, name, **settings):
    """A copy of a run in which a script's untrained network stands for the student."""
    shutil.copytree(run, folder)
    saved = torch.load(folder / "student.pt", weights_only=True)
    saved["settings"] |= {"student": name, **settings}
    args = argparse.Namespace(**saved["settings"])
    state = module.Network(args, name, 3).state_dict()
    saved |= {"method": module.__name__, "states": {"last": {"epoch": 1, **state}}}
    torch.save(saved, folder / "student.pt")
    return folder


@pytest.mark.parametrize("name", ["convnet2", "shufflenet_v2_x0_5", "vit_tiny"])
def test_the_exported_student_says_the_same_for_any_number_of_pictures(
    run, originals, main, tmp_path, name
):
    module = fairtune if name == "vit_tiny" else ckd  # a network that only this script knows
    folder = with_student(run, tmp_path / "run", module, name)
    assert "student.pt2" in main("--export", folder)
    eager, _, _ = predict.load_student(folder)
    exported = torch.export.load(folder / "student.pt2").module()
    _, pictures = pictures_of_the_test(run, originals)
    numbers = (1, 7, len(pictures))
    with torch.no_grad():
        expected = [eager(pictures[:number]) for number in numbers]
    for number, logits in zip(numbers, expected):
        torch.testing.assert_close(exported(pictures[:number]), logits)
    if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        onnxruntime = importlib.import_module("onnxruntime")
        session = onnxruntime.InferenceSession(folder / "student.onnx")
        for number, logits in zip(numbers, expected):
            fed = {session.get_inputs()[0].name: pictures[:number].numpy()}
            np.testing.assert_allclose(session.run(None, fed)[0], logits, atol=1e-4)


class Code:
    """A pickle that writes a file when it is opened."""

    def __reduce__(self):
        return open, ("trap", "w")


FAULTS = {  # name: (what student.pt holds, arguments after RUN, words of the sentence)
    "no student": (None, [], ["student.pt does not exist", "folder of a finished run"]),
    "no picture": ({}, ["none.png"], ["none.png cannot be read as a picture", "No such file"]),
    "text": ({}, ["text.png"], ["text.png cannot be read as a picture"]),
    "empty folder": ({}, ["empty"], ["empty holds no picture"]),
    "unwritable": ({}, ["picture.png", "--csv", "text.png/table.csv"], ["text.png"]),
    "damaged": ("damaged", [], ["student.pt", "delete it"]),
    "code": (Code(), [], ["student.pt", "delete it"]),
    "a list": ([1], [], ["student.pt"]),
    "no states": ({"states": None}, [], ["student.pt is not a student of a script in methods/"]),
    "another method": ({"method": "os"}, [], ["student.pt is not a student of a script"]),
    "another network": ({"settings": {"student": "convnet4"}}, [], ["student.pt"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_sentence(run, fault, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, arguments, words = FAULTS[fault]
    shutil.copytree(run, "run")
    Image.new("RGB", (30, 20)).save("picture.png")
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
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
    with pytest.raises(InputError) as error:
        main("run", *(arguments or ["picture.png"]))
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message and len(message) < 300
    assert not Path("trap").exists()


def test_a_run_deeper_in_the_folder_is_named(run, main):
    with pytest.raises(InputError, match=f"such as {run}"):
        main(run.parent.parent, "picture.png")


def test_as_a_user_starts_it(run, originals, tmp_path):
    program, picture = Path(predict.__file__), originals / "csv" / "pictures" / "000.png"
    done = run_script(program, run, picture, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"{picture}: ") and not done.stderr
    done = run_script(program, run, "nothing.png", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("predict.py: nothing.png cannot be")
    assert len(done.stderr.splitlines()) == 1
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
    student, _, _ = predict.load_student(folder)
    assert asked == ["DEFAULT", "DEFAULT"] and student.network.body.conv1.stride == (2, 2)
