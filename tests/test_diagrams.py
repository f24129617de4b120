"""The diagrams of methods/ are those of diagrams.py, and say what a step of each method does."""

import copy
import importlib
import re
from xml.etree import ElementTree

import pytest
import torch
from conftest import method_of

import diagrams
import side_by_side
from data import batches

SCRIPTS = side_by_side.python_files(side_by_side.ROOT, "methods")
NAMES = [name.removesuffix(".py") for name in SCRIPTS]
PARTS = {  # a box of a diagram: what it is in a Method
    "teacher": "teacher.network",
    "student": "student",
    "student θ": "student",
    "θ": "temperature",
    "adapter": "adapter",
    "regressor r": "r",
    "linear map": "regressor",
    "adversary A": "adversary",
    "gates φ": "gates",
    "weights q": "weights",
    "φ": "student.body",
    "head": "student.head",
    "head hₐ": "heads",
}


def boxes(table):
    """{name of a box: "trained", "frozen", "loss" or "given"}, of the last step that has it."""
    cells = [c.strip() for line in table.split("\n") if "|" in line for c in line.split("|")]
    kinds = {c.lstrip("*~=").partition(": ")[0]: diagrams.SIGNS.get(c[:1], "given") for c in cells}
    return {name: kind for name, kind in kinds.items() if name}


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_that_of_the_table_and_its_equations_are_the_headers(name):
    table = diagrams.TABLES[name]
    text = (side_by_side.ROOT / "methods" / f"{name}.svg").read_text("utf-8")
    assert text == diagrams.draw(table), "run python diagrams.py"
    ElementTree.fromstring(text)
    header = SCRIPTS[f"{name}.py"].partition("IMPORTS")[0]
    for number in re.findall(r"Eq\. \((\d+)\)", table):
        assert f"    Eq. ({number})  " in header
    for box, kind in boxes(table).items():
        if kind == "loss" and box != "CE":
            assert re.search(rf"\b{re.escape(box)}", header), box


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fairtune"])
def test_what_is_said_to_be_trained_moves_in_a_step_and_what_is_frozen_does_not(name, toy):
    method = method_of(importlib.import_module(name), toy)
    kinds = {PARTS[box]: kind for box, kind in boxes(diagrams.TABLES[name]).items() if box in PARTS}
    parts = {}
    for path in kinds:
        parts[path] = method
        for step in path.split("."):
            parts[path] = getattr(parts[path], step)
    before = {path: copy.deepcopy(part.state_dict()) for path, part in parts.items()}
    method.optimizer.param_groups[0]["lr"] = 0.1
    for batch in batches(method.split, 32, seed=0, views="mirrored"):
        method.step(batch._replace(epoch=1))
    for path, part in parts.items():
        now = part.state_dict()
        moved = any(not torch.equal(now[key], value) for key, value in before[path].items())
        assert moved == (kinds[path] == "trained"), path
