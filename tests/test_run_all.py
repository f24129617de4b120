"""run_all.sh, with a stand-in for python and once for real: every run once, failures named."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ckd
import pytest

import compare
import runs as R

ROOT = Path(__file__).resolve().parent.parent
LIST = "report.py --unfinished"  # passes the list on: here, nothing is ever finished


def start(folder, *flags, path=None, **options):
    """run_all.sh of `folder` in a process group of its own."""
    path = path or Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    command = ["bash", str(folder / "run_all.sh"), *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def run(folder, *flags, **options):
    process = start(folder, *flags, **options)
    out, error = process.communicate()
    return subprocess.CompletedProcess(flags, process.returncode, out, error)


@pytest.fixture
def stand_in(tmp_path):
    """A copy of run_all.sh; its python notes its arguments and fails for rkd.py."""
    for name in ("run_all.sh", "methods"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$*" = "{LIST}" ] && exec cat\necho "$@" >>"{tmp_path}/calls"\n'
        'case "$*" in *rkd.py*) echo oh dear; exit 1;; esac\n'
    )
    program.chmod(0o755)
    return lambda *flags: run(tmp_path, *flags, path=program.parent)


def test_the_list_names_every_script_and_only_those(tmp_path, stand_in):
    lines = stand_in("--list", "--seeds", "2").stdout.splitlines()
    named = {line.split()[2] for line in lines}
    assert named == {f"methods/{path.name}" for path in (ROOT / "methods").glob("*.py")}
    assert len(set(lines)) == len(lines)
    assert all(line.startswith("OMP_NUM_THREADS=1 python ") for line in lines)
    assert not (tmp_path / "calls").exists()
    default = stand_in("--list").stdout.splitlines()
    quick = stand_in("--list", "--quick").stdout.splitlines()
    assert len(default) == 3 * len(lines) / 2
    assert {re.sub(" --trials 4| --epochs 6", "", line) for line in quick} < set(default)


def test_fairtune_needs_something_learnt_before(stand_in):
    flags = ("--dataset", "csv", "--data-dir", "x", "--only", "at", "fairtune", "--seeds", "1")
    assert "fairtune" not in stand_in("--list", *flags).stdout
    assert "FairTune is left out" in stand_in(*flags).stdout
    assert "FairTune" not in stand_in(*flags[:6]).stdout
    nothing = stand_in(*flags[:4], "--only", "fairtune").stdout
    assert "0 to do" in nothing and "done in" not in nothing
    done = stand_in("--list", *flags, "--source-dir", "a b")
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "fairtune" in line]
    assert len(lines) == 3 and all("--source-dir" in line and "a b" in line for line in lines)


@pytest.mark.parametrize("student, last", [("convnet8", "vit_tiny"), ("vit_b_16", "vit_b_16")])
def test_fairtune_tunes_a_transformer_whatever_the_others_train(stand_in, student, last):
    lines = stand_in("--list", "--only", "at", "fairtune", "--", "--student", student).stdout
    students = {line.split("/")[1].split(".")[0]: line.split()[-1] for line in lines.splitlines()}
    assert students == {"at": student, "fairtune": last}


def test_temperatures_but_for_a_first_look(stand_in):
    for flags, there in (((), 5), (("--quick",), 1), (("--dataset", "celeba"), 5)):
        lines = stand_in("--list", *flags, "--only", "ckd").stdout.splitlines()
        found = {re.search(r"temperature (\d+)", line)[1] for line in lines if "--temp" in line}
        assert len(found) == there and "1" in found


def test_real_data_sets_get_their_folder_and_folds(stand_in):
    flags = ("--list", "--data-dir", "/my data", "--only", "rkd", "at")
    done = stand_in(*flags, "--dataset", "ham10000", "--", "--epochs", "3")
    lines = [shlex.split(line)[2:] for line in done.stdout.splitlines()]
    assert len(lines) == 2 * 5 * 2  # scripts, folds, attributes
    for n, (script, *rest) in enumerate(sorted(lines)):
        assert script == ("methods/at.py", "methods/rkd.py")[n // 10]
        assert rest[:4] == ["--dataset", "ham10000", "--data-dir", "/my data"]
        assert rest[-5:] == [rest[-5], "--seed", "0", "--epochs", "3"]
    folds = [line[line.index("--fold") + 1] for line in lines if "--sensitive" in line]
    assert sorted(folds) == sorted("01234" * 2)
    other = stand_in(
        "--list", "--seeds", "2", "--dataset", "csv", "--data-dir", "x", "--only", "at"
    )
    assert other.stdout.splitlines() == [
        f"OMP_NUM_THREADS=1 python methods/at.py --dataset csv --data-dir x --seed {seed}"
        for seed in (0, 1)
    ]


def test_failures_are_named_and_stop_nothing(tmp_path, stand_in):
    done = stand_in("--seeds", "2", "--jobs", "2")
    calls = (tmp_path / "calls").read_text().splitlines()
    listed = stand_in("--list", "--seeds", "2").stdout.splitlines()
    assert sorted(calls[:-1]) == sorted(line.split(" ", 2)[2] for line in listed)
    assert calls[-1] == "report.py"  # after all others
    progress = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(progress) == len(listed) and progress[-1].startswith(f"[{len(listed)}/")
    assert sum("FAILED (oh dear)" in line for line in progress) == 2
    assert done.returncode == 1 and "2 failed:" in done.stdout
    for seed in (0, 1):
        assert f"python methods/rkd.py --seed {seed} " in done.stdout.split("2 failed:")[1]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--sedes", "2"], "--sedes"),
        (["--seeds"], "needs a value"),
        (["--seeds", "many"], "--seeds must be a number"),
        (["--jobs", "0"], "--jobs must be a number"),
        (["--only", "nokd"], "there is no methods/nokd.py"),
    ],
)
def test_wrong_options_are_refused(tmp_path, stand_in, flags, word):
    done = stand_in(*flags)
    assert done.returncode == 2 and word in done.stderr
    assert not (tmp_path / "calls").exists()


# ----- for real -----------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path, pictures):
    """A copy of the project, and the flags of two tiny runs on a folder with a space in it."""
    leave = shutil.ignore_patterns(".*", "results", "runs", "data", "tests", "__pycache__")
    folder = shutil.copytree(ROOT, tmp_path / "project", ignore=leave)
    data = shutil.move(pictures, tmp_path / "my pictures")
    tiny = (
        "--image-size 16 --teacher convnet4 --student convnet2 --epochs 2 --batch-size 16".split()
    )
    flags = ["--dataset", "csv", "--data-dir", str(data), "--seeds", "2", "--only", "rkd"]
    return folder, flags + ["--jobs", "1", "--", *tiny]


def outcome(folder):
    """Losses and metrics of all runs in a folder, without the times."""
    found = {}
    for path in sorted((folder / "results" / "csv").glob("*/*.json")):
        result = json.loads(path.read_text())
        found[path.name] = [result[k] for k in ("settings", "log", "teacher", "last")]
    return found


def test_two_workers_and_a_kill(real, tmp_path):
    """Every run is done once by two workers, none by a second call; SIGKILL changes no number."""
    folder, flags = real
    other = shutil.copytree(folder, tmp_path / "other")
    listed = run(folder, "--list", *flags).stdout
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    workers = subprocess.run(  # every line twice: whoever comes second waits and finds the result
        ["xargs", "-0", "-n", "1", "-P", "2", "bash", "-c"],
        input="\0".join(line for line in listed.splitlines() for _ in range(2)),
        cwd=folder, env=os.environ | path, capture_output=True, text=True,
    )  # fmt: skip
    assert workers.returncode == 0, workers.stderr
    assert workers.stdout.count("wrote ") == workers.stdout.count("is there already") == 2
    once = {p: p.stat().st_mtime_ns for p in folder.glob("results/csv/*/*")}
    again = run(folder, *flags)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 runs, 0 to do" in again.stdout
    assert len(list(folder.glob("results/tables/csv-*.md"))) == 1
    assert once == {p: p.stat().st_mtime_ns for p in folder.glob("results/csv/*/*")}

    process = start(other, *flags)
    while process.poll() is None and not list(other.glob("runs/csv/rkd/*/checkpoint*.pt")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
    process.communicate()
    assert len(outcome(other)) < 2
    done = run(other, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(other) == outcome(folder) and len(outcome(other)) == 2


def test_results_that_come_with_the_code_are_not_the_users(tmp_path):
    command = "OMP_NUM_THREADS=1 python methods/ckd.py --epochs 2"
    args = vars(R.complete(ckd.settings().parse_args(["--epochs", "2"])))
    settings = {k: v for k, v in args.items() if k not in R.PLACES}
    result = json.dumps(
        {"method": "ckd", "settings": settings | {"pictures": "a hash"}, "last": {}}
    )
    for place, left in (("reference/toy", [command]), ("toy", []), ("reference/toy", [command])):
        path = tmp_path / place / "ckd" / "epochs_2-seed0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result)
        assert list(compare.unfinished([command], tmp_path)) == left, place
        path.unlink()
