"""Every script in methods/, found by looking: run, killed, resumed; the teacher is watched."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MAKERS

import data as D
import metrics as M
import runs as R

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))


def run(module, monkeypatch, out, *flags):
    """The script's main, in this process, on the toy in smoke mode with the smallest networks."""
    small = ["--smoke", "--device", "cpu", "--teacher", "convnet8"]
    if module.settings().get_default("student") is None:  # FairTune names its own: a transformer
        small += ["--student", "convnet4"]
    argv = [f"{module.__name__}.py", *small, "--out", str(out), *flags]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """One folder for all scripts, so that the teacher is trained once."""
    return tmp_path_factory.mktemp("runs") / "results"


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_run(name, teachers):
    """As a user would: the real script, a result file, and metrics that its logits give again."""
    command = [sys.executable, ROOT / "methods" / f"{name}.py", "--smoke", "--out", teachers]
    done = subprocess.run(command, capture_output=True, text=True, cwd=teachers.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "student" in done.stdout
    path = teachers / "smoke" / "toy" / name / "default-seed0.json"
    result, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    assert result["method"] == name and result["settings"]["seed"] == 0
    assert len(result["log"]) == result["settings"]["epochs"]
    for model in {"last", "best_overall", "best_worst_group", "teacher"} & set(result):
        again = M.evaluate(
            labels=arrays["labels"],
            groups=arrays["groups"],
            logits=arrays[model],
            num_classes=6,
            num_groups=2,
            clusters=arrays["subjects"],
            replicates=100,
        )
        assert again == result[model]["test"]
    assert np.array_equal(arrays["ids"], D.load("toy", smoke=True)["test"].ids)


@pytest.fixture(scope="module")
def copies(originals, tmp_path_factory):
    """The miniatures, in a place where decoded pixels may stay from one script to the next."""
    return shutil.copytree(originals, tmp_path_factory.mktemp("copies") / "all")


@pytest.mark.parametrize("dataset", [kind for kind in D.DATASETS if not kind.startswith("toy")])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_runs_on_every_data_set(name, dataset, copies, teachers, monkeypatch):
    """On the miniature of the data set, which whoever adds a data set enters in conftest.MAKERS."""
    assert dataset in MAKERS, f"conftest.MAKERS has no miniature of {dataset}"
    module, flags = importlib.import_module(name), ["--epochs", "1", "--image-size", "32"]
    if "source" in vars(module.settings().parse_args([])):  # FairTune learns something else first
        flags += ["--source", "toy-source", "--trials", "1"]
    where = ["--dataset", dataset, "--data-dir", str(copies / dataset)]
    run(module, monkeypatch, teachers, *where, *flags)
    (path,) = (teachers / "smoke" / dataset / name).glob("*.json")
    result = json.loads(path.read_text())
    assert result["settings"]["dataset"] == dataset and result["method"] == name
    assert 0 < result["last"]["test"]["accuracy"] < 1 and result["last"]["test"]["auroc"] > 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_interrupted_run_ends_the_same(name, tmp_path, monkeypatch):
    """Stopped in the second epoch and started again: the same weights and the same result."""
    module = importlib.import_module(name)
    run(module, monkeypatch, tmp_path / "whole" / "results")
    step, steps = module.Method.step, []

    def stop_late(self, batch):
        steps.append(batch)
        if batch.epoch == 1 and batch.step == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    out = tmp_path / "broken" / "results"
    with monkeypatch.context() as patch:
        patch.setattr(module.Method, "step", stop_late)
        with pytest.raises(KeyboardInterrupt):
            run(module, monkeypatch, out)
    assert steps and not list(out.rglob("*.json"))
    run(module, monkeypatch, out)
    ends = []
    for folder in ("whole", "broken"):
        (path,) = (tmp_path / folder / "results").rglob("*.json")
        (student,) = (tmp_path / folder).rglob("student.pt")
        result = {k: v for k, v in json.loads(path.read_text()).items() if k != "times"}
        ends.append((result, torch.load(student, weights_only=True)["states"]))
    assert ends[0][0] == ends[1][0]
    for rule, state in ends[0][1].items():
        for weight, value in state.items():
            assert np.array_equal(value, ends[1][1][rule][weight]), (rule, weight)


@pytest.mark.parametrize("name", SCRIPTS)
def test_step_moves_the_student_and_never_the_teacher(name, tmp_path):
    """No gradient reaches the teacher and its batch-norm statistics stand still."""
    module = importlib.import_module(name)
    if not module.Method.needs_teacher:
        return
    args = module.settings().parse_args(["--smoke", "--device", "cpu", "--out", str(tmp_path)])
    args, data = R.complete(args), D.load("toy", smoke=True)
    torch.manual_seed(0)
    teacher = module.Teacher(module.Network(args, "convnet8", 6))
    student = module.Network(args, "convnet4", 6)
    before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    start = {k: v.clone() for k, v in student.state_dict().items()}
    method = module.Method(args, data, student, teacher)
    student.train()
    for batch in D.batches(data["train"], 32, seed=0, augment=True):
        losses = method.step(batch)
        assert list(losses)[0] == "loss" and all(v.ndim == 0 for v in losses.values())
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    for weight, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[weight]), weight
    assert not teacher.network.training
    moved = [k for k, v in student.state_dict().items() if not torch.equal(v, start[k])]
    assert "head.weight" in moved and "body.0.0.weight" in moved
