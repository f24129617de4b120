"""The gates of side_by_side.py hold on the project, and each of them fails on a made-up fault."""

import html
import json
import re
import shutil
import subprocess
import sys

import pytest

import side_by_side

HEADER = '''"""{name}. Somebody: "A paper".

IDEA. One.
CHANGES RELATIVE TO ckd.py. {changes}
EQUATIONS. z: logits.
    Eq. (1)  p = softmax(z)                        loss
    Eq. (2)  L = -log p                            Method.step
DIFFERENCES FROM THE PAPER. None.
DIFFERENCES FROM PUBLIC CODE. None.
RUN. python methods/ckd.py
EXPECT. Nothing.
"""
'''
REST = """
# ===== 1. IMPORTS (shared) =====
import math

import data
import metrics

# ===== 2. SETTINGS (shared, then the method's own) =====
def settings():
    shared_flag = 1
    # ----- the method's own -----
    own_flag = "{name}"
    # ----- end of the method's own -----
    return shared_flag, own_flag

# ===== 3. NETWORKS (shared) =====
def network():
    return 3

# ===== 4. THE METHOD =====
def loss(z):
    # Eq. (1)
    return z

class Method:
    def step(self, z):
        # Eq. (2)
        return "{name}"

# ===== 5. FIT (shared) =====
{padding}
# ===== 6. TEACHER (shared) =====
def teacher():
    return 6

# ===== 7. MAIN (shared) =====
def main():
    return 7
"""
PADDING = "# why\n" * 120 + "x = 0\n" * 240


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def house(tmp_path):
    """A project of three scripts in which all gates hold."""
    for name in ("ckd", "bird", "at"):
        own = {"name": name, "changes": "The flag.", "padding": PADDING}
        write(tmp_path, f"methods/{name}.py", (HEADER + REST).format(**own))
    write(tmp_path, "data.py", "import numpy as np\n\ndef load(path):\n    np.add.at(path, 0, 1)\n")
    write(tmp_path, "metrics.py", "def accuracy(counts):\n    return counts\n")
    write(tmp_path, "datasets/__init__.py", "class Table:\n    pass\n")
    write(tmp_path, "datasets/toy.py", "from data import load\nfrom datasets import Table\n")
    write(tmp_path, "tests/test_ckd.py", "import ckd\n")
    write(tmp_path, "results.py", "import json\n\nimport metrics\n")
    write(tmp_path, "report.py", "import results\n\nprint('python methods/ckd.py')\n")
    write(tmp_path, "figures.py", "import results\n")
    return tmp_path


@pytest.mark.parametrize("gate", side_by_side.GATES)
def test_gate_holds(gate):
    assert not list(gate(side_by_side.ROOT))


def test_the_gates_look_at_the_project():
    """They would hold in an empty folder: these files must be there."""
    assert len(side_by_side.python_files(side_by_side.ROOT, "methods")) >= 13
    files = side_by_side.python_files(side_by_side.ROOT, ".", "datasets")
    assert {"data.py", "metrics.py", "__init__.py", "toy.py"} <= set(files)
    assert {*side_by_side.REPORTS} <= set(files)


@pytest.mark.parametrize("gate", side_by_side.GATES)
def test_gate_holds_on_a_made_up_project(gate, house):
    assert not list(gate(house))


BIRD, AT, COPY = "methods/bird.py", "methods/at.py", "\n# ===== 3. NETWORKS (shared) =====\n"
FAULTS = [  # gate, file, regular expression, what replaces its first match, words of the fault
    ("containment", BIRD, "return 3", "return 33", "3. NETWORKS.*return 3"),
    ("containment", BIRD, "shared_flag = 1", "shared_flag = 2", "2. SETTINGS"),
    ("containment", BIRD, "return shared_flag, own_flag", "return 0", "end of the method's own"),
    ("containment", BIRD, "import math\n", "import json\n", "1. IMPORTS"),
    ("containment", BIRD, "return 7\n", "return 7\n\n", "7. MAIN"),
    ("containment", BIRD, "6. TEACHER", "6. PUPIL", "6. PUPIL.*not each of"),
    ("containment", BIRD, "4. THE METHOD", "4. A METHOD", "4. A METHOD.*not each of"),
    ("containment", BIRD, "# ===== 7", "# = 7", "bird.py has the sections"),
    ("containment", BIRD, "    # ----- end of.*\n", "", "bird.py has the sections"),
    ("containment", BIRD, r"\Z", COPY, "bird.py has the sections"),
    ("reading_set", BIRD, "import math", "import report", "bird.py imports report"),
    ("reading_set", BIRD, "import math", "from ckd import loss", "bird.py imports ckd"),
    ("reading_set", BIRD, "import math", "from datasets import toy", "bird.py imports datasets"),
    ("reading_set", BIRD, "return 3", "import report as r", "bird.py imports report"),
    (
        "reading_set",
        BIRD,
        "return 3",
        "importlib.import_module('report')",
        "bird.py imports report",
    ),
    ("reading_set", BIRD, "return 3", "__import__('report.x')", "bird.py imports report"),
    (
        "reading_set",
        "data.py",
        "import numpy",
        "import report\nimport numpy",
        "data.py imports rep",
    ),
    ("reading_set", "datasets/toy.py", "from data", "from ckd", "toy.py imports ckd"),
    ("reading_set", "metrics.py", "accuracy", "bird_accuracy", "bird_accuracy is named after bird"),
    ("reading_set", "data.py", "path", "ckd_path", "data.py: ckd_path is named after ckd"),
    ("reading_set", "data.py", "load", "load_at", "load_at is named after at"),
    ("reading_set", "datasets/__init__.py", "Table", "BirdTable", "birdtable is named after bird"),
    ("one_version", BIRD, "return z", "return -z", "bird.py: loss is not that of ckd.py"),
    ("one_version", AT, r"# Eq. \(1\)", "# Eq. (1), again", "at.py: loss is not that of ckd.py"),
    (
        "one_version",
        BIRD,
        "class Method",
        "def network(): 0\n\nclass Method",
        "defines network anew",
    ),
    ("one_version", BIRD, "class Method", "class Other", "section 4 has no class Method"),
    ("one_version", BIRD, "4. THE METHOD", "4. A METHOD", "section 4 has no class Method"),
    ("tags", BIRD, r"    # Eq. \(1\)\n", "", r"\(1\) names loss, where no"),
    ("tags", BIRD, r"        # Eq. \(2\)\n", "", r"\(2\) names Method.step, where no"),
    ("tags", BIRD, "Method.step", "Method.leap", r"\(2\) names Method.leap, where no"),
    ("tags", BIRD, " +loss\n", "\n", r"\(1\) names "),
    ("tags", BIRD, r"(?<=    # Eq. \()1", "3", r"\(3\) is in section 4, but not in the header"),
    ("tags", BIRD, r"    Eq. \(2\).*\n", "", r"\(2\) is in section 4, but not in the header"),
    ("form", BIRD, "IDEA", "THOUGHT", "bird.py: the header has the fields"),
    ("form", BIRD, "RUN(.*)\nEXPECT", r"EXPECT\1\nRUN", "bird.py: the header has the fields"),
    ("form", BIRD, "x = 0\n", "x = 0\n" * 600, "bird.py has [0-9]+ lines shared with others"),
    ("form", BIRD, "(?<=return z\n)", "# why\n" * 400, "bird.py has [0-9]+ lines of its own"),
    ("form", BIRD, "(?<=return z\n)", "x = 0\n" * 40, "% of its own lines carry commentary"),
    ("form", BIRD, "return z", f"return {'z' * 100}", "line [0-9]+ has more than 100 characters"),
    ("distance", BIRD, "return z", "z += 1\n    " * 100 + "return z", "median .* more than 90"),
    ("distance", BIRD, "(x = 0\n){240}", "y = 0\n" * 240, "median ratio is 0[.]"),
    ("report", "report.py", "import results", "import ckd", "report.py imports ckd"),
    ("report", "results.py", "import json", "import test_ckd", "results.py imports test_ckd"),
    (
        "report",
        "figures.py",
        "import results",
        "from tests import test_ckd",
        "figures.py imports te",
    ),
    ("report", "figures.py", r"\Z", "import importlib\n", "figures.py imports importlib"),
    (
        "report",
        "report.py",
        r"\Z",
        "path = root / 'methods'\n",
        "report.py opens the folder methods",
    ),
    ("report", "report.py", r"\Z", "glob('methods/*.py')\n", "report.py opens the folder methods"),
]


@pytest.mark.parametrize("gate, path, old, new, words", FAULTS)
def test_gate_fails(gate, path, old, new, words, house):
    text = (house / path).read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    write(house, path, changed)
    if gate == "distance":  # of two scripts, the median is between them
        write(house, AT, changed)
    faults = list(getattr(side_by_side, gate)(house))
    assert any(re.search(words, fault) for fault in faults), faults
    assert not any("ckd.py: " in fault for fault in faults), "the hub is no fault"


def test_a_header_may_name_another_version(house):
    text = (house / BIRD).read_text().replace("return z", "return -z")
    write(house, BIRD, text.replace("The flag.", "The flag, and loss has another sign."))
    assert not list(side_by_side.one_version(house))


def test_fix(house, capsys):
    before = {name: (house / "methods" / name).read_text() for name in ("bird.py", "at.py")}
    for path in (BIRD, "methods/ckd.py"):
        text = (house / path).read_text()
        write(house, path, text.replace("return 3", f"return {len(path)}").replace("Nothing", path))
    side_by_side.main(["--fix"], house)
    assert not list(side_by_side.containment(house))
    for name, text in before.items():
        fixed = (house / "methods" / name).read_text()
        text = text.replace("return 3", "return 14")
        assert fixed == (text.replace("Nothing", BIRD) if name == "bird.py" else text)
    write(house, AT, text + COPY)  # a section twice: nothing of it may be lost
    side_by_side.main(["--fix"], house)
    assert (house / AT).read_text() == text + COPY
    assert "at.py stays as it is" in capsys.readouterr().out


def test_command(house, capsys):
    with pytest.raises(SystemExit) as end:
        side_by_side.main([], house)
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.count("OK") == len(side_by_side.GATES)
    lines = len((house / BIRD).read_text().splitlines())
    assert re.search(rf"\| bird.py \| {lines} \| 3\d% \| 4 \| 0.99 \|", out), out
    write(house, BIRD, (house / BIRD).read_text().replace("return 3", "return 4"))
    with pytest.raises(SystemExit) as end:
        side_by_side.main([], house)
    assert end.value.code == 1
    assert re.search("containment +1 fault", capsys.readouterr().out)


@pytest.fixture(scope="module")
def web_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("web") / "page.html"
    side_by_side.main(["--html", str(path)])
    return path


def test_the_page_holds_every_line_of_every_script(web_page):
    text = web_page.read_text("utf-8")
    assert len(text.encode()) < 1e6 and "http://" not in text.replace("http://www.w3.org", "")
    assert not re.search("<(script|link|img)[^>]*(src|href)=.https?:", text)
    scripts = json.loads(re.search(r'id="scripts">(.*)</script>\n<script>', text)[1])
    sources = side_by_side.python_files(side_by_side.ROOT, "methods")
    assert list(scripts) == list(sources)
    for name, script in scripts.items():
        lines = sources[name].split("\n")
        own = [title for title in side_by_side.sections(sources[name]) if title in side_by_side.OWN]
        assert list(script["parts"]) == own
        for part in script["parts"].values():
            plain = [html.unescape(re.sub("</?i[^>]*>", "", line)) for line in part["lines"]]
            assert plain == lines[part["from"] - 1 :][: len(plain)]
        equations = re.findall(r"^ +Eq\. \((\w+)\)", sources[name], re.M)
        assert re.findall(r"<td>\((\w+)\)<td>", script["equations"]) == equations
        shown = script["about"] + script["equations"]
        assert "_" not in re.sub("<img.*?>|<code>.*?</code>", "", shown)
    for title, part in side_by_side.shared(sources["ckd.py"]).items():
        folded = text.partition(f"<summary>{title}: the same")[2].partition("<pre>")[2]
        folded = re.sub("</?i[^>]*>", "", folded.partition("</pre>")[0])
        assert html.unescape(folded) == part.removesuffix("\n")


def test_colours_are_those_of_python():
    lines = side_by_side.coloured('x = 1 < 2  ## why\n# so\nif x: """a\n  b"""\n')
    assert lines[:2] == ["x = 1 &lt; 2  <i class=t>## why</i>", "<i class=c># so</i>"]
    assert lines[2] == '<i class=k>if</i> x: <i class=s>"""a</i>'
    assert lines[3:] == ['<i class=s>  b"""</i>', ""]


def test_formulas():
    assert side_by_side.formula("w_{a_i} · T² - L_KD < `a_b`") == (
        "w<sub>a<sub>i</sub></sub> · T² − L<sub>KD</sub> &lt; <code>a_b</code>"
    )


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the package chromium")
def test_a_browser_shows_two_scripts_line_by_line(web_page):
    flags = (
        "--headless=new --no-sandbox --disable-gpu --virtual-time-budget=5000 --dump-dom".split()
    )
    names = "fairdi.py", "bird.py"

    def opened(address):
        url = f"{web_page.as_uri()}#{address}"
        run = subprocess.run(["chromium", *flags, url], capture_output=True, text=True, timeout=120)
        return run.stdout

    unknown = opened("fairdi,nobody.py")
    assert "There is no nobody.py: this is bird.py." in unknown
    text = opened("fairdi,bird")  # with or without .py
    assert 'id="unknown"></p>' in text
    idea = text.partition("<details")[0]
    assert idea.count("<h2>") == 2 and idea.count("<img") == 2 and "Eq." not in idea
    shown = text.partition('<div id="own">')[2].partition("<script")[0]
    folds = re.findall(r"<details( open)?[^>]*><summary>(?:<b>)?(\d?)", shown)
    assert folds[0] == (" open", "4") and not any(is_open for is_open, _ in folds[1:])
    rows = shown.partition("</table>")[0].split("<tr>")[1:]
    cells = [re.findall(r"<td class=\"n\">(\d*)</td><td[^>]*>(.*?)</td>", row) for row in rows]
    for side, name in enumerate(names):
        lines = [html.unescape(re.sub("<.*?>", "", row[side][1])) for row in cells if row[side][0]]
        text = (side_by_side.ROOT / "methods" / name).read_text("utf-8")
        assert lines == side_by_side.sections(text)["4. THE METHOD"].split("\n")[1:-1]
    for row, (left, right) in zip(rows, cells):  # what is equal stands side by side, uncoloured
        equal = left[1] == right[1] and left[0] and right[0]
        assert bool(equal) != ('class="l"' in row or 'class="r"' in row)
    assert any("kd_loss(" in left[1] and left[1] == right[1] for left, right in cells)


def test_bad_python_is_one_sentence(house):
    """The command as a user gives it, in a Python without any package."""
    source = (side_by_side.ROOT / "side_by_side.py").read_text()
    write(house, "side_by_side.py", source)
    run = [sys.executable, "-S", str(house / "side_by_side.py")]
    assert subprocess.run(run, capture_output=True).returncode == 0
    write(house, BIRD, (house / BIRD).read_text().replace("return 3", "return 3 +"))
    done = subprocess.run(run, capture_output=True, text=True)
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "(bird.py, line 3" in done.stderr
    )
