"""Every notebook's code runs, is short, and was committed executed.

python tests/test_notebooks.py executes all of them in place, after results or code have changed.
"""

import ast
import sys
import time
from pathlib import Path

import matplotlib
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OUT = "../runs/notebooks"  # where the notebooks train


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def plain(cell):
    """The Python of a cell, without what only Jupyter understands."""
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))


def execute(book):
    """Run a notebook in a fresh kernel."""
    options = {"timeout": 1800, "resources": {"metadata": {"path": str(ROOT / "notebooks")}}}
    nbclient.NotebookClient(book, kernel_name="python3", **options).execute()


def test_there_are_four():
    assert [path.name[0] for path in NOTEBOOKS] == list("1234")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_defines_no_method_and_was_executed(path):
    first, cells = nbformat.read(path, 4).cells[0], code_cells(path)
    assert "**Inputs:**" in first.source and "**Time:**" in first.source
    assert len(cells) <= 12 and all(len(c.source.splitlines()) <= 15 for c in cells)
    assert "assert " in cells[-1].source
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in out.get("data", {}) for c in cells for out in c.outputs)
    for cell in cells:
        defined = (ast.FunctionDef, ast.ClassDef)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(plain(cell))))
        assert not any(out.output_type == "error" for out in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_runs(path, monkeypatch, tmp_path, capsys):
    """On a few pictures, in this process, with results in a folder of its own."""
    monkeypatch.setenv("FAIRKD_SMOKE", "1")
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    matplotlib.use("Agg")
    names = {}
    for cell in code_cells(path):
        exec(compile(plain(cell).replace(OUT, str(tmp_path)), path.name, "exec"), names)
    capsys.readouterr()
    assert list(tmp_path.glob("smoke/toy/*/*/result.json"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_fresh_kernel(path, monkeypatch, tmp_path):
    monkeypatch.setenv("FAIRKD_SMOKE", "1")
    book = nbformat.read(path, 4)
    for cell in book.cells:
        cell.source = cell.source.replace(OUT, tmp_path.as_posix())
    execute(book)
    assert list(tmp_path.glob("smoke/toy/*/*/result.json"))


if __name__ == "__main__":
    for path in NOTEBOOKS:
        book, start = nbformat.read(path, 4), time.time()
        execute(book)
        for cell in book.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":  # nothing about this machine
                cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
                for out in cell.outputs:
                    if "text" in out:
                        out["text"] = out["text"].replace(str(ROOT), "..")
        nbformat.write(book, path)
        print(f"executed {path.name} in {time.time() - start:.0f} s", flush=True)
