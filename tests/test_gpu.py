"""tests/gpu.sh refuses a machine without a GPU; slowly, its parts are rehearsed on the CPU: all but
three of six loops, whose networks, sizes and precisions the other three have."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu as measures
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
    out = tmp_path / "out put"
    flags = ["--device", "cpu", "--smoke", "--out", out, "--cifar", cifar10]
    out.mkdir()
    loops = {"b3-b0-224": "bf16", "resnet18-224": "float32", "resnet18-32": "bf16"}
    for kind, precision in loops.items():  # as if they were done: three of six loops are enough
        (out / f"{kind}-{precision}.done").touch()
    done = gpu(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {path.stem for path in out.glob("*.done")}
    for kind, precision in loops.items():
        found = {path.name for path in out.glob(f"{kind}-*.json")}
        assert found == {f"{kind}-{'float32' if precision == 'bf16' else 'bf16'}.json"}
        parts -= {f"{kind}-bf16", f"{kind}-float32"}
    assert parts == {"cifar10s-0", "compiled", "correct", "masks", "rates", "whole"}
    rows = json.loads((out / "correct.json").read_text())["rows"]
    scripts = {path.stem for path in (ROOT / "methods").glob("*.py")}
    assert {name.split()[0] for name in rows} == scripts
    assert all(row["right"] for row in rows.values())
    results = list((out / "runs" / "smoke" / "cifar10s").rglob("result.json"))
    lines = (out / "commands-0").read_text().splitlines()
    assert len(results) == 2 and len({*lines}) == 17  # all rows are listed, two of them rehearsed
    with tarfile.open(out / "results.tgz") as packed:
        names = packed.getnames()
    assert {Path(name).suffix for name in names} == {".json", ".log", ".done"}
    assert sum(name.endswith("/result.json") for name in names) == 5  # of two parts and masks
    for line in lines:
        _, script, *settings = shlex.split(line)
        importlib.import_module(Path(script).stem).parse(settings)
    again = gpu(*flags)
    assert again.returncode == 0 and "==" not in again.stdout


def test_what_is_over_time_ends_and_goes_on(cifar10, tmp_path):
    """No row outlives the time that was given, and none begins after it."""
    flags = ["--device", "cpu", "--smoke", "--out", tmp_path / "out", "--cifar", cifar10]
    done = gpu(*flags, "--minutes", "0")
    assert done.returncode == 0 and done.stdout.count("no time was left for ") == 12, done.stdout
    code = (
        'end=$(($(date +%s) + 8)); export end; xargs -d "\\n" -P 2 -I{} bash -c \'line "$1"\' _ {}'
    )
    lines = re.search(r"^line\(\) .*?^}\n", (ROOT / "tests" / "gpu.sh").read_text(), re.M | re.S)[0]
    command = ["bash", "-c", f"{lines}export -f line\n{code}"]
    work = "".join(f"touch {tmp_path}/{n}; sleep 30\n" for n in range(6)) + "true\n"
    begun = time.monotonic()
    done = subprocess.run(command, input=work, text=True)
    assert done.returncode == 124 and time.monotonic() - begun < 20
    assert len(list(tmp_path.glob("[0-9]"))) == 2


def test_what_cifar_10_is_not_is_said_before_anything_is_measured(tmp_path):
    done = gpu("--device", "cpu", "--out", tmp_path / "out", "--cifar", tmp_path / "none.tgz")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "none.tgz: name a folder or a .tgz" in done.stderr and not (tmp_path / "out").exists()


def test_a_row_that_failed_is_measured_again(tmp_path, monkeypatch):
    """What was out of memory, or had no optuna, may do now; what is measured stays."""
    tries = []

    def rows(device, smoke):
        for name in ("lost", "kept"):
            yield name, lambda name=name: tries.append(name) or {"right": len(tries) > 2}

    monkeypatch.setattr(measures, "rates", rows)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": {"lost": {"error": "x", "right": False}, "kept": {}}}))
    with pytest.raises(SystemExit, match="1 rows are wrong: lost"):
        measures.main(["rates", str(path), "--device", "cpu"])
    assert tries == ["lost"]


def test_a_wrong_number_ends_it_with_an_error(tmp_path):
    wrong = {"rows": {"ckd classify float32": {"worst": 0.5, "at_most": 0.001, "right": False}}}
    (tmp_path / "rows.json").write_text(json.dumps(wrong))
    code = "import gpu, sys; gpu.correct = lambda *_: []; gpu.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "correct", tmp_path / "rows.json", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 1 and "ckd classify float32" in done.stderr
