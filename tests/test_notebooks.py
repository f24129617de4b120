"""Every notebook is short and quick, was committed executed, and runs; its sentences agree with its
own outputs.

python tests/test_notebooks.py executes those in place whose code, methods or results have changed
since, after it has removed runs/notebooks; with names, those notebooks.
"""

import ast
import gzip
import hashlib
import re
import resource
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 240  # of computing, at most, on a slow core; a fast one takes under half of that
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_of(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def sources(book):
    """A digest of what the outputs depend on: the notebook's code, lesson.py, section 4 of the
    methods that it names (without comments), and the packed results that it reads."""
    code = "\n".join(cell.source for cell in code_of(book))
    nodes = [*ast.walk(ast.parse(code))]
    names = {node.value for node in nodes if isinstance(node, ast.Constant)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = [code.encode(), (ROOT / "notebooks" / "lesson.py").read_bytes()]
    for path in sorted((ROOT / "methods").glob("*.py")):
        if path.stem in names:
            text = path.read_text(encoding="utf-8")
            own = text[text.index("# ===== 4.") : text.index("# ===== 5.")]
            parts.append(ast.unparse(ast.parse(own)).encode())
    packed = [p for p in sorted((ROOT / "results").glob("*.jsonl.gz")) if p.name[:-9] in names]
    parts += [gzip.decompress(path.read_bytes()) for path in packed]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def shown(cell):
    """The texts that a code cell shows; a folded log (HTML) is none of them."""
    found = [out.get("text") or out.get("data", {}).get("text/markdown") for out in cell.outputs]
    return "\n".join(text for text in found if text)


def numbers(text):
    """The numbers in a text but for those of equations and points, such as (5)."""
    text = re.sub(r"\([0-9]\)|(?<=[0-9]),(?=[0-9]{3})", "", text)  # nor commas in thousands
    return {float(number) for number in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)}


def table_rows(text):
    """The cells of all lines of Markdown tables in a text, but for the lines below headers."""
    lines = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if set("".join(line)) != {"-"}]


def execute(book):
    """Run a notebook in a fresh kernel."""
    options = {"timeout": 1800, "resources": {"metadata": {"path": str(ROOT / "notebooks")}}}
    nbclient.NotebookClient(book, kernel_name="python3", **options).execute()


def test_there_are_at_most_five():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345"[: len(NOTEBOOKS)])


@notebooks
def test_a_notebook_is_short_quick_and_was_executed_as_it_is_now(path):
    book = nbformat.read(path, 4)
    first, cells = book.cells[0].source, code_of(book)
    assert all(f"**{word}:**" in first for word in ("Inputs", "Time"))
    assert all(len(cell.source.splitlines()) <= 18 for cell in cells)
    assert all(len(line) <= 100 for cell in cells for line in cell.source.splitlines())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)
    for cell in cells:
        defined = (ast.FunctionDef, ast.ClassDef)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(cell.source)))
        assert len(shown(cell).partition("```")[0].splitlines()) < 25, "a log that is not folded"
        assert not any(out.output_type == "error" for out in cell.outputs)
    made = book.metadata["executed"]
    assert made["sources"] == sources(book), "outputs are old: python tests/test_notebooks.py"
    assert made["seconds"] <= SECONDS and f"{made['seconds']} s" in first


@notebooks
def test_code_that_is_shown_is_as_it_stands_in_the_scripts(path):
    """With its comments, for which outputs need not be made anew."""
    paths = {p.stem: p for p in [*(ROOT / "methods").glob("*.py"), ROOT / "metrics.py"]}
    for cell in code_of(nbformat.read(path, 4)):
        names = re.findall(r"lesson\.source\((\w+)\.", cell.source)
        parts = re.findall(r"```python\n(.*?)```", shown(cell), re.S)
        assert len(parts) == len(names)
        for name, part in zip(names, parts):
            assert part in paths[name].read_text(encoding="utf-8")


@notebooks
def test_below_each_output_stands_what_it_says(path):
    """The cell ends by asserting it, and all of its numbers can be read in the output above."""
    cells = nbformat.read(path, 4).cells
    for cell, below in zip(cells, cells[1:]):
        if cell.cell_type == "code" and cell.outputs:
            assert below.cell_type == "markdown" and below.source.startswith("**Reading.** ")
            assert isinstance(ast.parse(cell.source).body[-1], (ast.Assert, ast.For))
            assert "assert " in cell.source
            assert not numbers(below.source) - numbers(shown(cell)), cell.source


@notebooks
def test_a_table_has_no_empty_cell_and_no_unknown_method(path):
    text, last, name = "", [], re.compile(r"[^(=,]*[^(=, ]")
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            text += cell.source
            continue
        for row in table_rows(shown(cell))[1:]:
            assert all(row) and name.match(row[0])[0] in text, row
        last = [name.match(row[0])[0] for row in table_rows(shown(cell))] or last
    assert {"teacher", "CKD"} < {*last} and {*last} & {"re-balancing", "FairTune", "FairDi"}


@notebooks
def test_formulas_are_whole(path):
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    formulas = [f for source in cells for f in re.findall(r"\$\$(.+?)\$\$", source, re.S)]
    assert formulas and all(f.count("{") == f.count("}") for f in formulas)
    assert all(source.count("$") % 2 == 0 for source in cells)


@pytest.mark.slow
@notebooks
def test_what_a_notebook_asserts_holds_on_this_computer(path):
    execute(nbformat.read(path, 4))


if __name__ == "__main__":
    for path in NOTEBOOKS:
        book = nbformat.read(path, 4)
        if path.stem not in sys.argv[1:] and (
            sys.argv[1:] or book.metadata.get("executed", {}).get("sources") == sources(book)
        ):
            continue
        shutil.rmtree(ROOT / "runs" / "notebooks", ignore_errors=True)  # so that it is trained anew
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        execute(book)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        for cell in book.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":  # nothing about this machine
                cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        book.metadata["executed"] = {"sources": sources(book), "seconds": round(spent)}
        time = f"**Time:** {spent:.0f} s of computing on one CPU core."
        book.cells[0].source = re.sub(r"\*\*Time:\*\* [^.]*\.", time, book.cells[0].source)
        nbformat.write(book, path)
        print(f"executed {path.name}: {spent:.0f} s of computing", flush=True)
