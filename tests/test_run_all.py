"""run_all.sh, with a stand-in for python: every run once, failures named; slowly, once for real."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import results

ROOT = Path(__file__).resolve().parent.parent


def start(folder, *flags, programs=None, cwd=None):
    """run_all.sh of `folder`, started there or in `cwd`, in a process group of its own; `programs`:
    where its python is."""
    programs = programs or Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["bash", str(folder / "run_all.sh"), *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    streams |= {"cwd": cwd or folder}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def run(folder, *flags, programs=None, cwd=None):
    process = start(folder, *flags, programs=programs, cwd=cwd)
    out, error = process.communicate()
    return subprocess.CompletedProcess(flags, process.returncode, out, error)


@pytest.fixture
def stand_in(tmp_path):
    """A copy of run_all.sh; its python notes its arguments and fails for rkd.py."""
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    for folder in ("methods", "datasets"):
        (tmp_path / folder).mkdir()
        for path in (ROOT / folder).glob("*.py"):
            (tmp_path / folder / path.name).touch()
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\n'
        'case "$*" in *rkd.py*) echo oh dear; exit 1;; *"--seed 77"*) sleep 600;; esac\n'
    )
    program.chmod(0o755)
    return lambda *flags: run(tmp_path, *flags, programs=program.parent)


def lines_of(stand_in, *flags):
    return stand_in("--list", *flags).stdout.splitlines()


def test_the_list_names_every_script_and_only_those(tmp_path, stand_in):
    lines = lines_of(stand_in, "--seeds", "2")
    named = {line.split()[2] for line in lines}
    assert named == {f"methods/{path.name}" for path in (ROOT / "methods").glob("*.py")}
    assert len(set(lines)) == len(lines)
    assert all(line.startswith("OMP_NUM_THREADS=1 python ") for line in lines)
    default, quick = lines_of(stand_in), lines_of(stand_in, "--quick")
    by_seed = [{line[:-1] for line in default if line.endswith(f"--seed {n}")} for n in range(3)]
    assert by_seed[2] == by_seed[1] < by_seed[0] and len(default) == sum(map(len, by_seed))
    once = {
        re.search(r"--(\S+-weight|\S+-step|\S+-temperature|threshold) ", line)[1]
        for line in by_seed[0] - by_seed[1]
    }  # the candidates of each weight: one run decides
    assert once == {"fair-weight", "mfd-weight", "weight-step", "fis-temperature", "threshold"}
    shorter = " --trials 4| --epochs 4| --teacher-epochs 4"
    assert {re.sub(shorter, "", line) for line in quick} < set(default)
    assert not (tmp_path / "calls").exists() and not (tmp_path / "runs").exists()


def test_fairtune_may_learn_something_else_before(stand_in):
    flags = ("--dataset", "csv", "--data-dir", "x", "--only", "at", "fairtune", "--seeds", "1")
    lines = [line for line in lines_of(stand_in, *flags) if "fairtune" in line]
    assert len(lines) == 4 and not any("--source" in line or "--trials" in line for line in lines)
    listed = lines_of(stand_in, *flags, "--source-dir", "a b")
    lines = [shlex.split(line) for line in listed if "fairtune" in line]
    assert len(lines) == 4 and all("--source-dir" in line and "a b" in line for line in lines)
    assert all(line[line.index("--source") + 1] == "csv" for line in lines)
    listed = lines_of(stand_in, *flags, "--source", "cifar10s", "--source-dir", "a")
    assert all("--source cifar10s --source-dir a" in line for line in listed if "fairtune" in line)
    listed = lines_of(stand_in, *flags, "--source", "cifar10s")  # from its usual folder
    assert all("--source cifar10s" in line for line in listed if "fairtune" in line)


@pytest.mark.parametrize("student, last", [("convnet8", "vit_tiny"), ("vit_b_16", "vit_b_16")])
def test_fairtune_tunes_a_transformer_whatever_the_others_train(stand_in, student, last):
    flags = ("--only", "at", "fairtune", "--", "--teacher", "vit_b_32", "--student", student)
    lines = lines_of(stand_in, *flags)
    students = {line.split("/")[1].split(".")[0]: line.split()[-1] for line in lines}
    assert students == {"at": student, "fairtune": last}


def test_what_only_a_full_run_or_one_data_set_has(stand_in):
    for flags, temperatures, strengths in (
        ((), 5, 9),
        (("--quick",), 1, 0),
        (("--dataset", "celeba"), 5, 9),
        (("--dataset", "cifar10s"), 5, 4),
        (("--dataset", "celeba", "--quick"), 1, 0),
    ):
        text = "\n".join(lines_of(stand_in, *flags))
        assert len(set(re.findall(r"--temperature \S+", text))) == temperatures, flags
        assert len(set(re.findall(r"--adversary-weight \S+", text))) == strengths, flags
        assert ("--fair-weight 0.1" in text) == ("--quick" not in flags)


def test_another_table_is_another_command(tmp_path, stand_in):
    """So that what is in runs/finished is not taken for runs on the rows of today."""
    table, flags = tmp_path / "own data" / "labels.csv", ("--only", "at", "--seeds", "1")
    table.parent.mkdir()
    listed = []
    for content in ("file,label,group", "file,label,group\n1.png,a,f", "file,label,group"):
        table.write_text(content)
        for place in (table, table.parent):
            listed.append(lines_of(stand_in, *flags, "--dataset", "csv", "--data-dir", str(place)))
    assert listed[0] == listed[4] and listed[1] == listed[5]
    assert not {*listed[0]} & {*listed[2]} and not {*listed[1]} & {*listed[3]}
    own = ("--folds", "--dataset", "csv", "--data-dir", str(table))
    assert len(lines_of(stand_in, *flags, *own)) == 5 * len(listed[0])


def test_a_relative_folder_is_that_of_who_starts_it(tmp_path, stand_in):
    flags = ("--list", "--dataset", "csv", "--only", "at", "--seeds", "1", "--data-dir")
    for given, told in (
        ("my data", f"{tmp_path}/bin/my data"),
        ("my-dir/x", f"{tmp_path}/bin/my-dir/x"),
        ("/my data", "/my data"),
    ):
        done = run(tmp_path, *flags, given, programs=tmp_path / "bin", cwd=tmp_path / "bin")
        words = shlex.split(done.stdout.splitlines()[0])
        assert words[words.index("--data-dir") + 1] == told


def test_real_data_sets_get_their_folder_and_folds(stand_in):
    flags = ("--data-dir", "/my data", "--only", "rkd", "at")
    listed = lines_of(stand_in, *flags, "--dataset", "ham10000", "--", "--epochs", "3", "--out", "")
    lines = [shlex.split(line)[2:] for line in listed]
    assert len(lines) == 3 * 5 * 2  # rows, folds, attributes
    other = lines_of(stand_in, *flags, "--dataset", "ham10000", "--", "--sensitive", "sex+age")
    assert len(other) == 3 * 5 and all(line.endswith("--sensitive sex+age") for line in other)
    common = ["--seed", "0", "--dataset", "ham10000", "--data-dir", "/my data", "--epochs", "3"]
    for n, (script, *rest) in enumerate(sorted(lines)):
        assert script == ("methods/at.py", "methods/rkd.py")[n >= 10]
        assert rest[rest.index("--seed") :] == [*common, "--out", ""]
    folds = [line[line.index("--fold") + 1] for line in lines if "--sensitive" in line]
    assert sorted(folds) == sorted("01234" * 3)
    flags = ("--seeds", "2", "--dataset", "csv", "--data-dir", "x", "--only", "at.py")
    assert lines_of(stand_in, *flags) == [
        f"OMP_NUM_THREADS=1 python methods/at.py --seed {seed} --dataset csv --data-dir x"
        for seed in (0, 1)
    ]


def test_masks_are_listed_with_the_toy_and_when_asked_for(stand_in):
    """Of the methods that have a meaning for them; the weights are tried when asked for alone."""

    def masks(*flags):
        lines = [shlex.split(line)[2:] for line in lines_of(stand_in, *flags)]
        return [line for line in lines if "segment" in line], len(lines)

    toy, every = masks()
    alone, number = masks("--task", "segment")
    assert 0 < len(toy) < every and len(alone) == number
    usual = [line for line in alone if line in toy]
    assert len(usual) == len(toy) == 3 * 15  # seeds, rows
    assert {line[0][8:-3] for line in alone} == {*results.OF_MASKS}
    tried = {line[3] for line in alone if line not in toy}
    weights = {"--" + setting.replace("_", "-") for setting, _ in results.MASK_GRID.values()}
    assert tried == weights - {"--mfd-weight"}
    assert not masks("--task", "classify")[0] and not masks("--dataset", "ham10000")[0]
    folds, number = masks("--task", "segment", "--dataset", "ham10000", "--only", "at")
    assert len(folds) == number == 10 + 4 and sum("age" in line for line in folds) == 5


def test_failures_are_named_and_stop_nothing_and_what_has_ended_is_not_run_again(
    tmp_path, stand_in
):
    done = stand_in("--seeds", "2", "--jobs", "2")
    calls = (tmp_path / "calls").read_text().splitlines()
    listed = lines_of(stand_in, "--seeds", "2")
    assert sorted(calls[:-1]) == sorted(line.split(" ", 2)[2] for line in listed)
    assert calls[-1] == "report.py"  # after all others
    ended = [line for line in done.stdout.splitlines() if line.startswith(("done: ", "FAILED "))]
    assert len(ended) == len(listed)
    assert sum("FAILED (oh dear): " in line for line in ended) == 4  # two rows, two seeds
    failed = [line for line in listed if "rkd" in line]
    assert done.returncode == 1 and done.stderr.splitlines() == ["these failed:", *failed]
    (tmp_path / "calls").unlink()
    again = stand_in("--seeds", "3", "--only", "rkd", "at", "--task", "classify")
    assert "9 runs, 7 to do" in again.stdout and again.returncode == 1
    calls = (tmp_path / "calls").read_text().splitlines()
    flags = [f"{own}--seed {seed}" for own in ("", "--normalize ") for seed in (0, 1, 2)]
    failing = [f"methods/rkd.py {each}" for each in flags]
    assert sorted(calls) == ["methods/at.py --seed 2", *sorted(failing), "report.py"]


def test_all_well_is_exit_code_0(tmp_path, stand_in):
    for to_do in (1, 0):
        done = stand_in("--seeds", "1", "--only", "at", "--task", "classify")
        assert done.returncode == 0 and f"1 runs, {to_do} to do" in done.stdout, done.stderr
    assert (tmp_path / "calls").read_text().count("at.py") == 1


def test_a_killed_call_has_finished_what_it_says(tmp_path, stand_in):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "finished").write_text("")
    flags = ("--only", "at", "kdpp", "--jobs", "1", "--seeds", "1", "--", "--seed", "77")
    process = start(tmp_path, *flags, programs=tmp_path / "bin")
    while not (tmp_path / "calls").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
    process.communicate()
    assert (tmp_path / "runs" / "finished").read_text() == ""
    assert (tmp_path / "calls").read_text().count("\n") == 1


def test_it_says_what_is_running_and_how_to_use_it(tmp_path, stand_in):
    one = ("--seeds", "1", "--jobs", "1")
    lines = stand_in(*one, "--only", "at", "--task", "classify").stdout.splitlines()
    done = "done: OMP_NUM_THREADS=1 python methods/at.py --seed 0"
    assert lines == [
        "1 runs, 1 to do (not those in runs/finished), 1 at a time",
        "running: at.py --seed 0",
        done,
    ]
    (tmp_path / "calls").unlink()
    for flag in ("--help", "-h"):
        told = stand_in(flag)
        lines = told.stdout.splitlines()
        assert told.returncode == 0 and lines[0].startswith("Every run behind every table")
        assert max(map(len, lines)) <= 80 and len(lines) < 30 and "#" not in told.stdout
        for option in ("--quick", "--dataset", "--source-dir", "--seeds", "--jobs", "--only"):
            assert option in told.stdout
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sedes", "2"], "--sedes"),
        (["--seeds"], "--seeds needs a value"),
        (["--seeds", "many"], "--seeds and --jobs are whole numbers"),
        (["--seeds", "0"], "--seeds and --jobs are whole numbers"),
        (["--jobs", "0"], "--seeds and --jobs are whole numbers"),
        (["--jobs", ""], "--seeds and --jobs are whole numbers"),
        (["--dataset", "nope", "--list"], "there is no data set nope"),
        (["--source", "nope", "--list"], "there is no data set nope"),
        (["--only", "nokd"], "there is no methods/nokd.py"),
        (["--task", "mask"], "--task is classify or segment"),
        (["--", "--out", "there"], "-- --out is for --list alone: tables are made of runs/"),
    ],
)
def test_wrong_options_are_refused(tmp_path, stand_in, flags, words):
    done = stand_in(*flags)
    assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "calls").exists()


# ----- for real -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_and_a_kill(tmp_path, pictures):
    """Two workers do every run once, a second call none; after a SIGKILL all files are equal."""
    from kill import differences

    leave = shutil.ignore_patterns(".*", "results", "runs", "data", "tests", "__pycache__")
    folder = shutil.copytree(ROOT, tmp_path / "project", ignore=leave)
    data = shutil.move(pictures, tmp_path / "my pictures")
    other = shutil.copytree(folder, tmp_path / "other")
    small = "--image-size 16 --teacher convnet4 --student convnet2 --epochs 2 --batch-size 16"
    flags = ["--dataset", "csv", "--data-dir", str(data), "--seeds", "2", "--only", "at"]
    flags += ["--jobs", "1", "--", *small.split()]
    listed = run(folder, "--list", *flags).stdout.splitlines()
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    workers = subprocess.run(  # every line twice: whoever comes second waits and finds the result
        ["xargs", "-0", "-n", "1", "-P", "2", "bash", "-c"],
        input="\0".join(line for line in listed for _ in range(2)),
        cwd=folder,
        env=os.environ | path,
        capture_output=True,
        text=True,
    )
    assert workers.returncode == 0, workers.stderr
    assert workers.stdout.count("wrote ") == 2
    results = sorted(folder.glob("runs/csv/at/*/result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    again = run(folder, *flags)
    assert again.returncode == 0 and "2 runs, 2 to do" in again.stdout, again.stdout + again.stderr
    assert "2 runs, 0 to do" in run(folder, *flags).stdout
    assert before == [path.stat().st_mtime_ns for path in results] and len(results) == 2

    process = start(other, *flags)
    while process.poll() is None and not list(other.glob("runs/csv/at/*/checkpoint.pt")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(list(other.glob("runs/csv/at/*/result.json"))) < 2
    done = run(other, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(other / "runs" / "csv", folder / "runs" / "csv") == []
