"""The scripts in methods/ can be read side by side: only what is a method's own differs.

    pytest tests/test_side_by_side.py           the gates
    python tests/test_side_by_side.py           the gates and the table of differences from ckd.py
    python tests/test_side_by_side.py --fix     copy ckd.py's shared sections into the other scripts

Standard library only, so that it runs before anything is installed.
"""

import ast
import difflib
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "methods").glob("*.py"))
HUB = ROOT / "methods" / "ckd.py"
BANNER = re.compile(r"^# ===== (\d)\. (.+?) =+$", re.M)
OWN, OWN_END = "    # ----- the method's own", "    # ----- end of the method's own"
FIELDS = [
    "IDEA.",
    "CHANGES RELATIVE TO ckd.py.",
    "EQUATIONS.",
    "DIFFERENCES FROM THE PAPER.",
    "DIFFERENCES FROM PUBLIC CODE",
    "RUN.",
    "EXPECT.",
]
PROJECT = {"data", "metrics", "networks", "runs", "readers", "compare", "report"} | {
    s.stem for s in SCRIPTS
}
MAY_IMPORT = {"data", "metrics", "networks", "runs"}


def sections(text):
    """{name: text} in order; section 2 in three parts: before, the own flags, after."""
    marks = [*BANNER.finditer(text)]
    parts = {"0 header": text[: marks[0].start()]}
    for mark, following in zip(marks, [*marks[1:], None]):
        body = text[mark.start() : following.start() if following else None]
        name = f"{mark[1]} {mark[2]}"
        if mark[1] == "2":
            first, own, rest = body.partition(OWN)
            own, end, last = (own + rest).partition(OWN_END)
            parts |= {name: first, "2 own flags": own, "2 after the own flags": end + last}
        else:
            parts[name] = body
    return parts


def shared(text):
    """The sections that must be equal in all scripts."""
    own = ("0 ", "2 own", "4 ")
    return {name: part for name, part in sections(text).items() if not name.startswith(own)}


def code_lines(text):
    """The lines of code, without comments, docstrings and blank lines."""
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(getattr(body[0].value, "value", None), str):
                docstrings.update(range(body[0].lineno, body[0].end_lineno + 1))
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = [line.rstrip() for n, line in enumerate(lines, 1) if n not in docstrings]
    return [line for line in kept if line]


def commentary(text):
    """Share of the non-blank lines that carry a comment or belong to a docstring."""
    bare = {n for n, line in enumerate(text.split("\n"), 1) if line.strip()}
    spoken = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            spoken.add(token.start[0])
        if token.type == tokenize.STRING and token.string.startswith('"""'):
            spoken.update(range(token.start[0], token.end[0] + 1))
    return len(spoken & bare) / len(bare)


def difference(path):
    """(changed code lines, ratio) from ckd.py to a script; added and removed lines both count."""
    a, b = code_lines(HUB.read_text()), code_lines(path.read_text())
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    changed = sum(
        i2 - i1 + j2 - j1 for op, i1, i2, j1, j2 in matcher.get_opcodes() if op != "equal"
    )
    return changed, matcher.ratio()


def table():
    """The gate table as Markdown."""
    lines = ["| script | lines | commentary | code lines changed from ckd.py | ratio |"]
    lines.append("|---|---|---|---|---|")
    for path in SCRIPTS:
        text = path.read_text()
        changed, ratio = difference(path)
        length, share = len(text.splitlines()), commentary(text)
        lines.append(f"| {path.name} | {length} | {share:.0%} | {changed} | {ratio:.2f} |")
    return "\n".join(lines)


def test_shared_sections_are_identical():
    """Containment and one version of every helper: shared sections are equal byte for byte."""
    want = shared(HUB.read_text())
    for path in SCRIPTS:
        have = shared(path.read_text())
        assert list(have) == list(want), f"{path.name}: banners {list(have)}, not {list(want)}"
        for name in want:
            diff = "\n".join(
                difflib.unified_diff(
                    want[name].splitlines(), have[name].splitlines(), "ckd.py", path.name, "", "", 1
                )
            )
            assert not diff, f"{path.name}, section {name} (python {__file__} --fix):\n{diff}"


def test_no_function_has_two_versions():
    """A shared name means the same in every script: section 4 defines none of them anew."""
    for path in SCRIPTS:
        own = ast.parse(sections(path.read_text())["4 THE METHOD"])
        names = {n.name for n in own.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        common = ast.parse("\n".join(shared(HUB.read_text()).values()))
        taken = {n.name for n in common.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert not names & taken, f"{path.name}: section 4 defines {names & taken} anew"
        assert "Method" in names, f"{path.name}: section 4 has no class Method"


def test_header_fields():
    for path in SCRIPTS:
        header = sections(path.read_text())["0 header"]
        places = [header.find(f"\n{field}") for field in FIELDS]
        missing = [field for field, place in zip(FIELDS, places) if place < 0]
        assert not missing, f"{path.name}: the header lacks {missing}"
        assert places == sorted(places), f"{path.name}: the header's fields are out of order"


def test_equation_tags():
    """Every equation of the header is tagged in the function it names; every tag has a row."""
    for path in SCRIPTS:
        text = path.read_text()
        header, method = sections(text)["0 header"], sections(text)["4 THE METHOD"]
        start, end = header.index("\nEQUATIONS."), header.index("\nDIFFERENCES FROM THE PAPER.")
        rows = re.findall(r"^    Eq\. \((\w+)\)  .*?  +(\S+)$", header[start:end], re.M)
        table = re.findall(r"^ +Eq\. \((\w+)\)", header[start:end], re.M)
        assert [tag for tag, _ in rows] == table, f"{path.name}: a row names no function: {table}"
        tags = set(re.findall(r"Eq\. \((\w+)\)", method))
        assert tags == set(table), f"{path.name}: header {sorted(table)}, code {sorted(tags)}"
        sources = {}
        for node in ast.parse(method).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                sources[node.name] = ast.get_source_segment(method, node)
                for inner in getattr(node, "body", []):
                    if isinstance(inner, ast.FunctionDef):
                        sources[f"{node.name}.{inner.name}"] = ast.get_source_segment(method, inner)
        for tag, where in rows:
            assert where in sources, f"{path.name}: Eq. ({tag}) names {where}, which is not there"
            assert f"# Eq. ({tag})" in sources[where], (
                f"{path.name}: {where} has no '# Eq. ({tag})'"
            )


def test_reading_set():
    """A reader of a method opens the script and the shared files it imports, nothing else."""
    for path in SCRIPTS:
        tree, found = ast.parse(path.read_text()), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
        assert found & PROJECT <= MAY_IMPORT, f"{path.name} imports {found & PROJECT - MAY_IMPORT}"


def test_size_and_commentary():
    for path in SCRIPTS:
        text = path.read_text()
        length, share = len(text.splitlines()), commentary(text)
        assert 300 <= length <= 450, f"{path.name} has {length} lines, not 300 to 450"
        assert 0.30 <= share <= 0.42, f"{path.name}: {share:.0%} of its lines carry commentary"
        wide = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 100]
        assert not wide, f"{path.name}: lines {wide} are wider than 100"


def test_distance_from_the_hub():
    others = [difference(path) for path in SCRIPTS if path != HUB]
    print("\n" + table())
    if others:
        changed, ratio = (statistics.median(values) for values in zip(*others))
        assert changed <= 90, f"the median script changes {changed} code lines, more than 90"
        assert ratio >= 0.78, f"the median ratio is {ratio:.2f}, less than 0.78"


def fix():
    """Write ckd.py's shared sections into every other script."""
    want = shared(HUB.read_text())
    for path in SCRIPTS:
        text = path.read_text()
        whole = "".join(want.get(name, part) for name, part in sections(text).items())
        if whole != text:
            path.write_text(whole)
            print(f"mended {path.name}")


if __name__ == "__main__":
    if "--fix" in sys.argv:
        fix()
    failures = 0
    for name, gate in list(globals().items()):
        if name.startswith("test_"):
            try:
                gate()
            except AssertionError as error:
                failures += 1
                print(f"{name}: {error}")
    sys.exit(f"{failures} gates fail" if failures else 0)
