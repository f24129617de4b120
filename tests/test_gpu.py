"""tests/gpu.sh refuses a machine without a GPU; slowly, each part of it is rehearsed on the CPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def gpu(*flags):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "tests" / "gpu.sh"), *map(str, flags)]
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would run")
def test_without_a_gpu_it_says_so(tmp_path):
    done = gpu("--out", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "finds no GPU here" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_rehearsal_leaves_every_file_and_a_second_one_does_nothing_again(cifar10, tmp_path):
    flags = ["--device", "cpu", "--smoke", "--out", tmp_path / "out", "--cifar", cifar10]
    done = gpu(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = sorted(path.stem for path in (tmp_path / "out").glob("*.done"))
    loops = ["resnet18-32-bf16", "resnet18-32-float32"]
    assert parts == ["cifar10s-0", "correct", "masks", "rates", *loops]
    rows = json.loads((tmp_path / "out" / "correct.json").read_text())["rows"]
    scripts = {path.stem for path in (ROOT / "methods").glob("*.py")}
    assert {name.split()[0] for name in rows} == scripts
    assert all(row["right"] for row in rows.values())
    results = list((tmp_path / "out" / "runs" / "smoke" / "cifar10s").rglob("result.json"))
    lines = (tmp_path / "out" / "commands-0").read_text().splitlines()
    assert len(results) == 2 and len({*lines}) == 17  # all rows are listed, two of them rehearsed
    for line in lines:
        _, script, *settings = line.split()
        importlib.import_module(Path(script).stem).parse(settings)
    again = gpu(*flags)
    assert again.returncode == 0 and "==" not in again.stdout


def test_a_wrong_number_ends_it_with_an_error(tmp_path):
    wrong = {"rows": {"ckd classify float32": {"worst": 0.5, "at_most": 0.001, "right": False}}}
    (tmp_path / "rows.json").write_text(json.dumps(wrong))
    code = "import gpu, sys; gpu.correct = lambda *_: []; gpu.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "correct", tmp_path / "rows.json", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 1 and "ckd classify float32" in done.stderr
