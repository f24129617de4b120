"""The scripts in methods/ can be read side by side, because only what is a method's own differs.

    python side_by_side.py                      check this, print how far scripts are from ckd.py
    python side_by_side.py --fix                copy ckd.py's shared sections into all others
    python side_by_side.py --html ckd bird      two scripts side by side, equal sections folded

A gate is a function of the project's folder that yields a sentence for each fault. Only the
standard library is needed, so that the gates run before anything is installed.
"""

import argparse
import ast
import difflib
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT, HUB = Path(__file__).resolve().parent, "ckd.py"
START = re.compile(r"^(?=# ===== \d\. |    # ----- (?:end of )?the method's own)", re.M)
OWN = ("0. HEADER", "the method's own", "4. THE METHOD")  # sections that differ between scripts
FIELDS = ["IDEA.", "CHANGES RELATIVE TO ckd.py.", "EQUATIONS.", "DIFFERENCES FROM THE PAPER."]
FIELDS += ["DIFFERENCES FROM PUBLIC CODE", "RUN.", "EXPECT."]  # of a header, in this order


def python_files(root, *folders):
    """{file name: text} of the Python files in some folders of the project."""
    paths = [path for folder in folders for path in sorted((root / folder).glob("*.py"))]
    return {path.name: path.read_text("utf-8") for path in paths}


def sections(text):
    """{title: text} of a script; the titles are OWN and those of the banners in the script."""
    parts = START.split(text)
    titles = [part.partition("\n")[0].strip(" #=-") for part in parts[1:]]
    return dict(zip([OWN[0], *titles], parts))


def shared(text):
    """The sections that must be equal in all scripts."""
    return {title: part for title, part in sections(text).items() if title not in OWN}


def definitions(text):
    """{name: source} of functions, classes and, as Class.method, of the methods of classes."""
    found, nodes = {}, [("", node) for node in ast.parse(text).body]
    for prefix, node in nodes:  # which grows
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[prefix + node.name] = ast.get_source_segment(text, node)
            if isinstance(node, ast.ClassDef):
                nodes += [(f"{node.name}.", inner) for inner in node.body]
    return found


def imported(text):
    """The top-level names of all modules that a text imports, import_module("...") included."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {a.value for a in node.args if isinstance(getattr(a, "value", 0), str)}
    return {name.partition(".")[0] for name in names}


def code_lines(text):
    """The lines of code without comments, and the share of lines that carry commentary."""
    lines, spoken = text.split("\n"), set()
    written = {n for n, line in enumerate(lines) if line.strip()}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = token.start[0] - 1, token.end[0]
        if token.type == tokenize.COMMENT:
            lines[first] = lines[first][: token.start[1]].rstrip()
            spoken.add(first)
        elif token.type == tokenize.STRING and token.string.startswith('"""'):  # a docstring
            lines[first:last] = [""] * (last - first)
            spoken.update(range(first, last))
    return [line for line in lines if line], len(spoken & written) / len(written)


def difference(hub, text):
    """(changed code lines, ratio) between two scripts; added and removed lines both count."""
    matcher = difflib.SequenceMatcher(None, code_lines(hub)[0], code_lines(text)[0], False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    return sum(i2 - i1 + j2 - j1 for _, i1, i2, j1, j2 in changes), matcher.ratio()


# ----- the gates ----------------------------------------------------------------------------------
def containment(root):
    """Lines that differ between two scripts are in the header, the own settings or section 4."""
    texts = python_files(root, "methods")
    want, titles = shared(texts[HUB]), list(sections(texts[HUB]))
    for name, text in texts.items():
        have = sections(text)
        if list(have) != titles or "".join(have.values()) != text:
            yield f"{name} has the sections {list(have)}, not each of {titles} once"
        for title in want.keys() & have:
            if want[title] != have[title]:
                parts = want[title].split("\n"), have[title].split("\n")
                first = [*difflib.unified_diff(*parts, n=0, lineterm="")][3]
                yield f"{name}, {title}, is not as in {HUB} from here on (see --fix): {first}"


def reading_set(root):
    """To know a method one opens its script, data.py and metrics.py. Where its pictures and bodies
    of networks come from is in datasets/ and networks.py."""
    texts, read = python_files(root, "methods"), {"data", "metrics", "networks"}
    house = {Path(name).stem for name in python_files(root, ".", "methods", "tests")} | {"datasets"}
    for name, text in texts.items():
        for other in imported(text) & (house - read):
            yield f"{name} imports {other}, which a reader would have to open"
    modules = python_files(root, ".", "datasets")
    common = {f"{stem}.py" for stem in read} & modules.keys()
    for name in {*common, *python_files(root, "datasets")}:
        for other in imported(modules[name]) & (house - read - {"datasets"}):
            yield f"{name} imports {other}, which a reader would have to open"
        nodes = [*ast.walk(ast.parse(modules[name]))]
        names = {str(getattr(n, key, "")).lower() for n in nodes for key in ("name", "id", "arg")}
        for stem in (script.removesuffix(".py") for script in texts):
            for word in names:  # a short stem, such as `at`, must be a word between underscores
                if stem in (word if len(stem) > 3 else word.split("_")):
                    yield f"{name}: {word} is named after {stem}.py, but this file is shared"


def one_version(root):
    """A function or class that stands in several scripts is the same in all of them."""
    texts, versions = python_files(root, "methods"), {}
    common = definitions("".join(shared(texts[HUB]).values()))
    for name in sorted(texts, key=lambda name: name != HUB):  # ckd.py comes first and sets it
        own = definitions(sections(texts[name]).get("4. THE METHOD", ""))
        if "Method" not in own:
            yield f"{name}: section 4 has no class Method"
        for what in [what for what in own if "." not in what and what != "Method"]:
            if what in common:
                yield f"{name}: section 4 defines {what} anew, which a shared section has"
            first, version = versions.setdefault(what, (name, own[what]))
            changes = texts[name].partition("\nCHANGES ")[2].partition("\nEQUATIONS.")[0]
            if version != own[what] and what not in re.findall(r"\w+", changes):
                yield f"{name}: {what} is not that of {first}, and CHANGES does not name it"


def tags(root):
    """Each equation of a header is tagged in the function that it names; each tag has a row."""
    for name, text in python_files(root, "methods").items():
        table = text.partition("\nEQUATIONS.")[2].partition("\nDIFFERENCES")[0]
        method = sections(text).get("4. THE METHOD", "")
        rows, sources = (
            re.findall(r"^ +Eq\. \((\w+)\)(?:.* (\S+))?$", table, re.M),
            definitions(method),
        )
        for tag, where in rows:
            if f"# Eq. ({tag})" not in sources.get(where, ""):
                yield f"{name}: Eq. ({tag}) names {where or 'nothing'}, where no '# Eq. ({tag})' is"
        for tag in set(re.findall(r"Eq\. \((\w+)\)", method)) - {tag for tag, _ in rows}:
            yield f"{name}: Eq. ({tag}) is in section 4, but not in the header"


def form(root):
    """Headers have the same fields; what is a method's own is short and explained."""
    for name, text in python_files(root, "methods").items():
        order = re.findall("|".join(f"^{re.escape(one)}" for one in FIELDS), text, re.M)
        if order != FIELDS:
            yield f"{name}: the header has the fields {order}, not {FIELDS}"
        parts, common = sections(text), "".join(shared(text).values())
        own = "".join(parts.get(title, "") for title in OWN)
        for what, part, most in (("of its own", own, 320), ("shared with others", common, 685)):
            if len(part.splitlines()) > most:
                yield f"{name} has {len(part.splitlines())} lines {what}, more than {most}"
        _, share = code_lines(parts.get(OWN[0], "") + parts.get(OWN[2], ""))
        if share < 0.30:
            yield f"{name}: {share:.0%} of its own lines carry commentary, less than 30 %"
        for number in [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 100]:
            yield f"{name}: line {number} has more than 100 characters"


def distance(root):
    """The median script changes at most 90 lines of code of ckd.py, and the ratio is 0.78."""
    texts = python_files(root, "methods")
    others = [difference(texts[HUB], text) for name, text in texts.items() if name != HUB]
    changed, ratio = (statistics.median(values) for values in zip(*others or [(0, 1.0)]))
    if changed > 90:
        yield f"the median script changes {changed:g} lines of code, more than 90"
    if ratio < 0.78:
        yield f"the median ratio is {ratio:.2f}, less than 0.78"


def report(root):
    """Reports find all they need in results: they import no script and no test, and read none."""
    closed = {Path(name).stem for name in python_files(root, "methods", "tests")} | {"tests"}
    closed |= {"ast", "importlib", "inspect", "methods", "runpy", "tokenize"}  # the ways around
    texts = python_files(root, ".")
    for name in [name for name in ("report.py", "results.py", "figures.py") if name in texts]:
        for other in imported(texts[name]) & closed:
            yield f"{name} imports {other}, so it needs scripts or tests"
        if re.search(r"""["']methods(["']|/\*)""", texts[name]):
            yield f"{name} opens the folder methods, so it needs the scripts"


GATES = (containment, reading_set, one_version, tags, form, distance, report)


# ----- what the command prints and writes ---------------------------------------------------------
def table(root):
    """How far each script is from ckd.py, as Markdown."""
    texts = python_files(root, "methods")
    lines = ["| script | lines | commentary | code lines changed from ckd.py | ratio |"]
    lines.append("|---|---|---|---|---|")
    for name, text in texts.items():
        (changed, ratio), (_, share) = difference(texts[HUB], text), code_lines(text)
        lines.append(
            f"| {name} | {len(text.splitlines())} | {share:.0%} | {changed} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def fix(root):
    """Write ckd.py's shared sections into every other script that has all sections once."""
    texts = python_files(root, "methods")
    for name, text in texts.items():
        parts, want = sections(text), sections(texts[HUB])
        if list(parts) != list(want) or "".join(parts.values()) != text:
            print(f"{name} stays as it is, because its sections are not those of {HUB}")
        elif (fixed := "".join((parts | shared(texts[HUB])).values())) != text:
            (root / "methods" / name).write_text(fixed, "utf-8")
            print(f"{name} has the shared sections of {HUB} now")


def page(first, second, left, right):
    """Two scripts, given by name and text, side by side as HTML; equal sections are folded."""
    maker, parts, others = difflib.HtmlDiff(4, 88), [], sections(right)
    for title, part in sections(left).items():
        other = others.get(title, "")
        start, note = ("<details>", "equal") if part == other else ("<details open>", "differs")
        both = maker.make_table(part.splitlines(), other.splitlines(), first, second)
        parts.append(f"{start}<summary>{title} ({note})</summary>{both}</details>")
    style = (
        "body{font-family:sans-serif;margin:1em} table.diff{font-size:11px;width:100%}"
        "summary{font-weight:bold;padding:.4em;cursor:pointer} td{white-space:pre}"
        ".diff_add{background:#cde6f7} .diff_chg{background:#fdf3c0} .diff_sub{background:#f8d9c0}"
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{first}, {second}'
        f"</title><style>{maker._styles}{style}</style></head><body><h1>{first}, {second}</h1>"
        f"<p>Blue: only in {second}. Orange: only in {first}. Yellow: changed. Equal sections are "
        f"folded; click to open them.</p>{''.join(parts)}</body></html>"
    )


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fix", action="store_true", help="copy ckd.py's shared sections")
    parser.add_argument("--html", nargs=2, metavar="SCRIPT", help="write two scripts side by side")
    parser.add_argument("--out", metavar="FILE", help="of --html (default: SCRIPT-SCRIPT.html)")
    args = parser.parse_args(argv)
    if args.fix:
        return fix(root)
    if args.html:
        texts, stems = python_files(root, "methods"), [Path(name).stem for name in args.html]
        names = [f"{stem}.py" for stem in stems]
        if not set(names) <= set(texts):
            sys.exit(
                f"{names[0]} and {names[1]} are not both scripts: choose of {', '.join(texts)}"
            )
        path = Path(args.out or f"{stems[0]}-{stems[1]}.html")
        path.write_text(page(*names, *(texts[name] for name in names)), "utf-8")
        return print(f"wrote {path}")
    for name, text in python_files(root, ".", "methods", "datasets").items():
        ast.parse(text, name)  # a SyntaxError names the file
    faults = {gate.__name__.replace("_", " "): sorted(gate(root)) for gate in GATES}
    for name, sentences in faults.items():
        print(f"{name:12} {'OK' if not sentences else f'{len(sentences)} faults'}")
        for sentence in sentences:
            print("   ", sentence)
    print(f"\n{table(root)}")
    sys.exit(1 if any(faults.values()) else 0)


if __name__ == "__main__":
    try:
        main()
    except (OSError, SyntaxError) as error:
        sys.exit(f"side_by_side.py: {error}")
