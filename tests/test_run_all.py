"""run_all.sh with a stand-in for python: every command once, failures named, none stopped."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(folder, *flags):
    """run_all.sh in a folder of its own; the stand-in notes its arguments and fails for rkd.py."""
    shutil.copy(ROOT / "run_all.sh", folder)
    stand_in = folder / "bin" / "python"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >>"{folder}/calls"\ncase "$*" in *rkd.py*) exit 1;; esac\n'
    )
    stand_in.chmod(0o755)
    path = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    command = ["bash", str(folder / "run_all.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | path)


def test_the_list_names_every_script_and_only_those(tmp_path):
    done = run(tmp_path, "--list", "--seeds", "2")
    lines = done.stdout.splitlines()
    named = {line.split()[2] for line in lines}
    assert named == {f"methods/{path.name}" for path in (ROOT / "methods").glob("*.py")}
    assert len(set(lines)) == len(lines) and all(
        line.startswith("OMP_NUM_THREADS=1 ") for line in lines
    )
    assert not (tmp_path / "calls").exists()


def test_failures_are_named_and_stop_nothing(tmp_path):
    done = run(tmp_path, "--seeds", "2", "--jobs", "2")
    calls = (tmp_path / "calls").read_text().splitlines()
    listed = run(tmp_path, "--list", "--seeds", "2").stdout.splitlines()
    assert sorted(calls[:-1]) == sorted(line.split(" ", 2)[2] for line in listed)
    assert calls[-1] == "report.py"  # after all others
    assert done.returncode == 1 and "2 failed:" in done.stdout
    for seed in (0, 1):
        assert f"python methods/rkd.py --seed {seed}" in done.stdout.split("2 failed:")[1]


def test_unknown_options_are_refused(tmp_path):
    done = run(tmp_path, "--sedes", "2")
    assert done.returncode == 2 and "--sedes" in done.stderr
