"""Scripts can be read side by side: only what is a method's own differs.

    python side_by_side.py           check this, show how far scripts differ
    python side_by_side.py --fix     copy ckd.py's shared sections to others
    python side_by_side.py --html    all of them as a web page: choose two

A gate is a function of the project's folder that yields a sentence for each
fault. Only the standard library is needed: gates run before anything is
installed.
"""

import argparse
import ast
import base64
import difflib
import html
import io
import json
import keyword
import re
import signal
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
    of networks come from is in datasets/ and networks.py; predictions.py is of no method."""
    texts, read = python_files(root, "methods"), {"data", "metrics", "networks"}
    house = {Path(name).stem for name in python_files(root, ".", "methods", "tests")} | {"datasets"}
    for name, text in texts.items():
        for other in imported(text) & (house - read):
            yield f"{name} imports {other}, which a reader would have to open"
    modules = python_files(root, ".", "datasets")
    common = {f"{stem}.py" for stem in read} & modules.keys()
    for name in {*common, *python_files(root, "datasets")}:
        for other in imported(modules[name]) & (house - read - {"datasets", "predictions"}):
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
        rows = re.findall(r"^ +Eq\. \((\w+)\)(?:.* (\S+))?$", table, re.M)
        sources = definitions(method)
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
        for what, part, most in (("of its own", own, 325), ("shared with others", common, 675)):
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


REPORTS = ("report.py", "results.py", "figures.py", "webpages.py")


def report(root):
    """Reports find all they need in results: they import no script and no test, and read none."""
    closed = {Path(name).stem for name in python_files(root, "methods", "tests")} | {"tests"}
    closed |= {"ast", "importlib", "inspect", "methods", "runpy", "tokenize"}  # the ways around
    texts = python_files(root, ".")
    for name in [name for name in REPORTS if name in texts]:
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
        number = len(text.splitlines())
        lines.append(f"| {name} | {number} | {share:.0%} | {changed} | {ratio:.2f} |")
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


def coloured(text):
    """The lines of a Python text as HTML: comments (c, those that teach t), strings, keywords."""
    lines, kinds = text.split("\n"), {tokenize.COMMENT: "c", tokenize.STRING: "s"}
    for token in [*tokenize.generate_tokens(io.StringIO(text).readline)][::-1]:
        kind = "k" if keyword.iskeyword(token.string) else kinds.get(token.type)
        kind = "t" if token.string.startswith("##") else kind
        (top, first), (bottom, last) = token.start, token.end
        for n in range(top, bottom + 1) if kind else ():  # from the end: columns before it stay
            line = lines[n - 1]
            a, b = first if n == top else 0, last if n == bottom else len(line)
            lines[n - 1] = f"{line[:a]}\0{kind}{line[a:b]}\1{line[b:]}"
    marked = re.sub("\0(.)", r"<i class=\1>", html.escape("\n".join(lines), quote=False))
    return marked.replace("\1", "</i>").split("\n")


def formula(text):
    """Plain text of a header as HTML: the i of x_i is lowered, `code` is code."""
    parts = html.escape(text, quote=False).split("`")
    for n, part in enumerate(parts):
        if n % 2:
            parts[n] = f"<code>{part}</code>"
        for _ in range(0 if n % 2 else 2):  # an index may have an index
            parts[n] = re.sub(r"_(?:\{([^{}]*)\}|(\w+))", r"<sub>\1\2</sub>", parts[n])
    return re.sub(r"(?<=[\s(])-(?=[\s\w∂])", "−", "".join(parts))


def introduction(header, picture):
    """A header's title and idea with its diagram, an SVG, and its equations: both as HTML."""
    title, _, rest = header.strip().strip('"').partition("\n\n")
    idea, table = (rest.partition(f"{field} ")[2].split("\n\n")[0] for field in FIELDS[:3:2])
    words, rows = [], ""
    for line in table.split("\n"):
        if row := re.match(r" +Eq\. \((\w+)\)  (.*\S) +(\S+)$", line):
            number, what, where = row.groups()
            rows += f"<tr><td>({number})<td>{formula(what)}<td><code>{where}</code>"
        elif rows:
            rows += f"<tr><td><td>{formula(line.strip())}<td>"
        else:
            words.append(line)
    drawn = base64.b64encode(picture).decode()
    drawn = f'<img alt="what is trained and by what" src="data:image/svg+xml;base64,{drawn}">'
    return {
        "about": f"<h2>{formula(title)}</h2><p>{formula(idea)}</p>{drawn if picture else ''}",
        "equations": f"<p>{formula(' '.join(words))}</p><table class=eq>{rows}</table>",
    }


def page(root):
    """All scripts in one HTML page, of which a reader chooses two."""
    texts, scripts, same = python_files(root, "methods"), {}, ""
    for name, text in texts.items():
        lines, start, parts = coloured(text), 0, {}
        for title, part in sections(text).items():
            end = start + part.count("\n")
            if title in OWN:
                first = start + (title != OWN[0])  # without the banner, which the page shows
                parts[title] = {"from": first + 1, "lines": lines[first:end]}
            elif name == HUB:
                code = "\n".join(lines[start:end])
                same += f"<details><summary>{title}: the same in all scripts</summary>"
                same += f"<pre>{code}</pre></details>"
            start = end
        drawn = (root / "methods" / name).with_suffix(".svg")
        picture = drawn.read_bytes() if drawn.exists() else b""
        scripts[name] = {"parts": parts} | introduction(sections(text)[OWN[0]], picture)
    content = json.dumps(scripts, ensure_ascii=False).replace("</", r"<\/")
    return PAGE.replace("SAME", same).replace("SCRIPTS", content)


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Methods side by side</title><style>
body{margin:0;font:15px/1.45 sans-serif;color:#222} main{padding:0 8px}
header,.about{display:grid;grid-template-columns:1fr 1fr;gap:0 16px}
header{position:sticky;top:0;z-index:1;background:#eee;padding:5px 8px;border-bottom:1px solid #aaa}
select{font:bold 16px monospace} h2{font-size:15px} .about img{max-width:100%;max-height:340px}
.about{grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr))}
.eq td{font-family:"STIX Two Math","Cambria Math",serif;padding:0 12px 0 0;vertical-align:top}
sub{font-size:70%;line-height:0} code{font-size:85%} summary{cursor:pointer;padding:5px 0}
summary b{font-size:16px} .code{border-collapse:collapse;table-layout:fixed;width:100%}
.code td,pre{font:clamp(9.5px,calc((50vw - 56px)/60.5),13.5px)/1.4 monospace}
.code td{white-space:pre-wrap;vertical-align:top;padding:0 0 0 calc(var(--in)*1ch + 2ch);
text-indent:calc(var(--in)*-1ch - 2ch)} .code td.n{padding:0 4px 0 0;text-indent:0;color:#999;
text-align:right;user-select:none} td.l{background:#fbe3cf} td.r{background:#d6e9f8} i{font-style:
normal} .k{color:#7b2d8b} .s{color:#1b6b35} .c{color:#777} .t{color:#0b5394;font-style:italic}
</style></head><body>
<header><select aria-label="left"></select><select aria-label="right"></select></header>
<main><p id="unknown"></p><div class="about"></div><details><summary><b>Equations</b></summary>
<div class="about"></div></details><div id="own"></div>SAME</main>
<script type="application/json" id="scripts">SCRIPTS</script>
<script>
const scripts = JSON.parse(document.getElementById("scripts").textContent);
const chosen = document.querySelectorAll("select"), own = document.getElementById("own");
function aligned(a, b) {  // rows [line of a, line of b] along their longest common subsequence
  const long = Array.from({length: a.length + 1}, () => new Uint16Array(b.length + 1)), rows = [];
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--)
    long[i][j] = a[i] === b[j] ? long[i + 1][j + 1] + /\\w/.test(a[i])  // an empty line is no match
      : Math.max(long[i + 1][j], long[i][j + 1]);
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    const left = [], right = [], same = () => i < a.length && j < b.length && a[i] === b[j];
    while (!same() && (i < a.length || j < b.length))
      if (j === b.length || i < a.length && long[i + 1][j] >= long[i][j + 1]) left.push(i++);
      else right.push(j++);
    for (let k = 0; k < Math.max(left.length, right.length); k++) rows.push([left[k], right[k]]);
    while (same()) rows.push([i++, j++]);
  }
  return rows;
}
function cell(part, n, only) {  // the number of a line and the line
  if (n === undefined) return "<td class=n><td>";
  const line = part.lines[n], [, indent] = line.match(/^(?:<i class=.>)?( *)/);
  return `<td class=n>${part.from + n}<td class="${only}" style="--in:${indent.length}">${line}`;
}
function show() {
  const names = [...chosen].map(one => one.value), [a, b] = names.map(name => scripts[name]);
  document.querySelectorAll(".about").forEach((place, n) => {
    const part = ["about", "equations"][n];
    place.innerHTML = `<div>${a[part]}</div><div>${b[part]}</div>`;
  });
  const parts = Object.keys(a.parts).sort((x, y) => (y[0] === "4") - (x[0] === "4"));
  own.innerHTML = parts.map(title => {
    const [left, right] = [a.parts[title], b.parts[title]], rows = aligned(left.lines, right.lines);
    const equal = rows.filter(([i, j]) => left.lines[i] === right.lines[j]).length;
    const only = [left, right].map((p, n) => `${p.lines.length - equal} in ${names[n]} alone`);
    const code = rows.map(([i, j]) => {
      const differ = left.lines[i] !== right.lines[j];
      return `<tr>${cell(left, i, differ ? "l" : "")}${cell(right, j, differ ? "r" : "")}`;
    }).join("");
    return `<details ${title[0] === "4" ? "open" : ""}><summary><b>${title}</b>: ${equal} lines are
      equal, ${only.join(", ")}</summary><table class=code><colgroup><col width=32><col>
      <col width=32><col></colgroup>${code}</table></details>`;
  }).join("");
  history.replaceState(null, "", "#" + names.join());
}
const wanted = decodeURIComponent(location.hash.slice(1)).split(",").filter(name => name);
chosen.forEach((one, n) => {
  for (const name in scripts) one.add(new Option(name));
  const name = wanted[n]?.replace(/(\\.py)?$/, ".py"), usual = ["ckd.py", "bird.py"][n];
  one.value = name in scripts ? name : usual;
  if (name && !(name in scripts))
    document.getElementById("unknown").textContent += `There is no ${name}: this is ${usual}. `;
  one.onchange = show;
});
show();
</script></body></html>
"""


def main(argv=None, root=ROOT):
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--fix", action="store_true", help="copy ckd.py's shared sections")
    words = "write a page that shows two scripts side by side (default: side_by_side.html)"
    parser.add_argument("--html", nargs="?", const="side_by_side.html", metavar="FILE", help=words)
    args = parser.parse_args(argv)
    if args.fix:
        return fix(root)
    if args.html:
        Path(args.html).write_text(page(root), "utf-8")
        return print(f"wrote {args.html}: open it in a browser and choose two scripts")
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
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    try:
        main()
    except (OSError, SyntaxError) as error:
        sys.exit(f"side_by_side.py: {error}")
