"""README.md says what is there: files, scripts, flags and lines of code."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 200
    assert len((ROOT / "results" / "README.md").read_text().splitlines()) <= 120


def test_every_file_that_it_names_is_there():
    named = re.findall(r"\]\(([^)#:]+)\)", TEXT) + re.findall(r"`([\w/]+(?:\.\w+|/))`", TEXT)
    made = ("runs/", "result.json", "logits.npz", "student.pt", "labels.csv")  # by whoever runs it
    absent = [n for n in named if not n.startswith(made) and not list(ROOT.rglob(n.strip("/")))]
    assert len(named) > 20 and not absent


def test_every_script_and_data_set_has_a_row():
    for folder in ("methods", "datasets"):
        for path in (ROOT / folder).glob("[a-z]*.py"):
            name = path.name if folder == "methods" else path.stem
            assert re.search(rf"^\| \[?`{name}`", TEXT, re.M) or name == "toy_source", name


@pytest.mark.parametrize("name", ["metrics", "predict", "report", "side_by_side"])
def test_help_fits_a_terminal(name, monkeypatch):
    """Of 80 columns, as that of methods/, which has a test of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    command = [sys.executable, ROOT / f"{name}.py", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert max(map(len, told)) <= 80 and len(told) <= 64


def test_its_commands_can_be_read():
    """Every command of a script is one that the script's own parser takes."""
    lines = re.findall(r"python methods/(\w+)\.py([^`\n#|]*)", TEXT)
    assert len(lines) >= 4
    for script, flags in lines:
        flags = shlex.split(flags.split(" && ")[0])
        if "--help" not in flags and "NAME" not in flags:
            import_module(script).parse(flags)
