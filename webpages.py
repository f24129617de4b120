"""Web pages of runs, and two runs compared: for report.py, which has the command line.

A page is one file that needs no other and no network. Its numbers are those of the result file, or
of the functions of results.py and metrics.py that also make the tables; only curves are computed
here, from the kept answers to the test pictures.
"""

import base64
import csv
import html
import io
import itertools
import math
import textwrap
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import figures
import metrics
import results
from data import InputError, restore, save
from datasets._show import outlined
from results import HARD, MASKS, METRICS, Refused, Value, metric_of, said

STYLE = """body{font:15px/1.45 sans-serif;color:#222;max-width:1100px;margin:1em auto;padding:0 1em}
table{border-collapse:collapse;margin:.7em 0}td,th{padding:2px 12px 2px 0;text-align:left;
vertical-align:top;border-bottom:1px solid #ddd}td{white-space:nowrap}th{cursor:default}
.sort th{cursor:pointer}.wide{overflow-x:auto}img{max-width:100%}.said{font-size:18px}
.cells{display:inline-block;margin-right:2em}.cells td{text-align:right}.note{color:#666}"""
SORT = """<script>
document.querySelectorAll(".sort th").forEach(head => head.onclick = () => {
  const body = head.closest("table").tBodies[0], sign = head.dataset.up ? -1 : 1;
  const value = row => row.cells[head.cellIndex].dataset.v ?? row.cells[head.cellIndex].textContent;
  const order = (x, y) => isNaN(x - y) ? x.localeCompare(y) : x - y;
  head.dataset.up = sign > 0 ? "1" : "";
  [...body.rows].sort((a, b) => sign * order(value(a), value(b))).forEach(row => body.append(row));
});
</script>"""


def document(title, *parts):
    """A whole page as text."""
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    body = "\n".join(part for part in parts if part)
    return f"{head}<style>{STYLE}</style></head><body><h1>{title}</h1>\n{body}</body></html>\n"


class Link(str):
    """HTML that stands in a cell as it is."""


def table(header, rows, kind=""):
    """Rows of texts and Values as HTML; of Values, the points are what they are sorted by."""
    text = f'<div class="wide"><table class="{kind}"><thead><tr>'
    text += "".join(f"<th>{html.escape(name)}" for name in header) + "<tbody>"
    for row in rows:
        text += "<tr>"
        for cell in row:
            sorted_by = f' data-v="{cell.point}"' if isinstance(cell, Value) else ""
            shown = cell if isinstance(cell, Link) else html.escape(str(cell))
            text += f"<td{sorted_by}>{shown}"
    return text + "</table></div>"


def picture(figure, kind="svg"):
    """A figure of matplotlib inside a page."""
    figure.savefig(file := io.BytesIO(), format=kind, dpi=110)
    plt.close(figure)
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/{kind.replace("svg", "svg+xml")};base64,{content}">'


# ----- two runs, or a run and its teacher ---------------------------------------------------------


def read(path):
    """{(fold, seed): result} of a result file, or of all in a folder, which differ in these."""
    runs, files = {}, [path] if path.is_file() else sorted(path.rglob("result.json"))
    if not path.exists():  # the name of a run up to its digest stands for all its seeds
        files = sorted(path.parent.glob(f"{path.name}-{'[0-9a-f]' * 12}-seed*/result.json"))
    for file in files:
        result = restore(file, keys=("method", "settings", "changed", "last"))
        key = result["settings"]["fold"] or 0, result["settings"]["seed"]
        if key in runs:
            raise InputError(
                f"{path} holds several runs with seed {key[1]}: name one of them, or several seeds "
                "of one by its path up to the digest, such as runs/toy/ckd/default"
            )
        runs[key] = results.with_arrays(result, file)
    if len({results.identity(run)[:3] for run in runs.values()}) > 1:
        raise InputError(f"{path} holds runs that differ in more than their seed: name one of them")
    if not runs:
        raise InputError(f"{path} is no result file and holds none: name a finished run")
    return runs


def shown_metrics(rows):
    """(name, metric, column) of the rows' task; decisions by both rules where a class is rare."""
    masks, main = results.of_masks(rows), results.main_rule(rows)
    for column in METRICS:
        for end in dict.fromkeys((main, "")) if column in HARD else [""]:
            rule = results.DECISIONS[end].partition(": ")[2] if main and column in HARD else ""
            if (column in MASKS) == masks:
                yield ", ".join(filter(None, (column, rule))), metric_of(column, end), column


def with_arrow(name, column):
    """The name of a metric, with an arrow in the direction that is good."""
    return name + metrics.ARROWS[METRICS[column][1]]


def compared(rows, runs, base, difference, base_rule="last", pooled=False):
    """Lines of a table: a metric's name, its value for `base` and `runs`, and what they differ by.

    rows          of the table in which both stand: they say which decisions count
    difference    {metric: Value}
    """
    for name, metric, column in shown_metrics(rows):
        values = [results.cell(base, metric, base_rule, None, pooled)]
        values += [results.cell(runs, metric, "last", None, pooled)]
        yield [with_arrow(name, column), *values, difference.get(metric, "")]


DIGESTS = {  # settings whose values are checksums, which say nothing to a reader
    "pictures": "pictures: not the same",
    "words": "names of classes or groups, or which subject is in which picture: not the same",
    "files": "files of networks or weights: not the same",
}


def compare(first, second):
    """Two runs, or rows of runs over seeds, as text: values, and B minus A, paired."""
    base, runs = results.in_both(read(first), read(second))
    folds = [run["settings"]["fold"] for run in runs.values()]
    if pooled := len(runs) > 1 and None not in folds:  # five folds are one training
        base, runs = ({key: row[key] for key in results.folds_of(runs)} for row in (base, runs))
    for key in runs:
        both = base[key], runs[key]
        kept = [results.arrays(run, ("ids", "labels", "groups")) for run in both]
        same = all(map(np.array_equal, *kept)) and len(set(map(results.task_of, both))) == 1
        if not same:
            raise Refused(f"{first} and {second} have other test pictures, labels, groups or tasks")
    if not runs:
        raise Refused(f"{first} and {second} have no seed and fold in common")
    (a, b), rows = (next(iter(row.values())) for row in (base, runs)), {"A": base, "B": runs}
    ends = "last", None, pooled
    found = {m: results.change(runs, base, m, *ends) for _, m, _ in shown_metrics(rows)}
    lines = [["percent", "A", "B", "B - A"], *compared(rows, runs, base, found, pooled=pooled)]
    lines = [[*map(str, line)] for line in lines]
    wide = [max(map(len, column)) for column in zip(*lines)]
    lines = ["  ".join(map(str.ljust, line, wide)).rstrip() for line in lines]
    for name in sorted({*a["settings"], *b["settings"]} - {"seed"}):
        both = [run["settings"].get(name) for run in (a, b)]
        said = "{}: A {}, B {}".format(name, *both)
        lines += [DIGESTS.get(name, said)] if both[0] != both[1] else []
    lines.append(f"paired over {results.what_both_have(runs, base, pooled)}, with 95 % intervals")
    names = [f"A: {results.row_name(a)}, {first}", f"B: {results.row_name(b)}, {second}"]
    bad, rule = map(results.number_collapsed, (base, runs)), results.main_rule(rows)
    tests = {  # of each row's first run what all of its runs share, and how many collapsed
        name: run["last"]["test"] | {"collapsed": number, "main_rule": rule}
        for name, run, number in zip("AB", (a, b), bad)
    }
    if len(a["group_names"]) == 2:
        key = "dice_gap_standardised" if results.of_masks(rows) else f"mean_deo{rule}"
        found[f"{key}_directed"] = results.directed(runs, base, key, *ends)
    found = {metric: np.array(value[:3]) / 100 for metric, value in found.items()}
    sentence = metrics.verdict(tests, found, 1 if pooled else len(runs))
    return "\n".join([*names, *lines, *textwrap.wrap(sentence, 80)])


# ----- a run --------------------------------------------------------------------------------------

STYLES = {"teacher": "--", "student": "-"}
COLOURS = [figures.RIGHT, "#e69f00", figures.WRONG, figures.INDIGO, "#56b4e9", "#8c8c8c"]


class Run:
    """A run as its page needs it.

    parts            {"teacher" if there is one, and "student": what the result says of it}
    kept             {the same: its answers to the test pictures}, logits (N, C) or `areas` (N, 3)
    labels, groups   of the test pictures, (N,)
    masks, end       whether it learnt masks; the end of the metrics of decisions that count
    """

    def __init__(self, result, rows):
        rules = {"teacher": "teacher", "student": "last"}
        rules = {name: rule for name, rule in rules.items() if rule in result}
        self.result, self.rules = result, rules
        self.parts = {name: result[rule] for name, rule in rules.items()}
        self.labels, self.groups, self.ids, *kept = results.arrays(
            result, ("labels", "groups", "ids", *rules.values())
        )
        self.kept = {name: part.astype(float) for name, part in zip(rules, kept)}
        self.masks, self.end = results.of_masks(rows), results.main_rule(rows)
        names = result["classes"], result["group_names"]
        own = result["settings"]["dataset"] == "csv"  # names of others are left as they are
        self.classes, self.names = names if own else ([*map(said, some)] for some in names)

    def lines(self):
        """(network, its answers, its line, group, which pictures are in it (N,), colour)."""
        colours = itertools.cycle(COLOURS)
        groups = [(n, self.groups == g, next(colours)) for g, n in enumerate(self.names)]
        for (name, part), (group, inside, colour) in itertools.product(self.kept.items(), groups):
            if inside.any():
                yield name, part, STYLES[name], group, inside, colour


def panels(number, height=3.6):
    """A figure with so many axes, at most four in a row."""
    rows, columns = math.ceil(number / 4), min(number, 4)
    size = {"figsize": (3.3 * columns, height * rows), "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, squeeze=False, **size)
    for spare in axes.flat[number:]:
        spare.remove()
    return figure, axes.flat


def training(run):
    """Losses and validation, epoch by epoch."""
    log = run.result["log"]
    val = {k: [epoch["val"][k] for epoch in log] for k in log[0]["val"]}
    losses = [k for k in log[0] if k.startswith("loss")]
    shown = {"losses": {k: [epoch[k] for epoch in log] for k in losses}}
    metrics_of = {"use": "auroc auroc_worst_group dice dice_worst_group"}
    metrics_of["unfairness"] = f"auroc_gap mean_deo{run.end} dice_gap dice_gap_standardised"
    for title, names in metrics_of.items():
        curves = {k: 100 * np.array(val[k], float) for k in names.split() if k in val}
        shown[f"{title}, validation (%)"] = curves
    figure, axes = panels(3)
    for place, (title, curves) in zip(axes, shown.items()):
        for name, values in curves.items():
            place.plot(range(1, len(log) + 1), values, label=name.replace("_", " "))
        place.set(title=title, xlabel="epoch")
        place.xaxis.get_major_locator().set_params(integer=True)
        place.legend(fontsize=8)
    return picture(figure)


def roc(run):
    """ROC curves of each group; of more than two classes, each against the rest."""
    shown = [1] if len(run.classes) == 2 else range(len(run.classes))
    figure, axes = panels(len(shown))
    for (c, place), line in itertools.product(zip(shown, axes), [*run.lines()]):
        name, logits, style, group, inside, colour = line
        positive, score = run.labels[inside] == c, metrics.log_odds(logits[inside])[:, c]
        if 0 < positive.sum() < len(positive):
            order = np.argsort(-score, kind="stable")
            last = np.append(np.diff(score[order]) < 0, True)  # of pictures that tie
            rates = [np.append(0, p[order].cumsum()[last] / p.sum()) for p in (~positive, positive)]
            area = 100 * metrics.auroc(labels=positive.astype(int), probs=score)
            place.plot(*rates, style, color=colour, label=f"{name}, {group}: {area:.1f}")
        place.plot([0, 1], [0, 1], ":", color="0.7", zorder=0)  # by chance
        place.set(title=run.classes[c], xlabel="false positive rate", ylabel="true positive rate")
        if len(place.lines) > 1:  # else there is no group with both
            place.legend(fontsize=8, title="AUROC (%)", title_fontsize=8)
    return picture(figure)


def calibration(run):
    """How often answers are right, by how sure they are, for each group."""
    figure, axes = panels(len(run.kept))
    places = dict(zip(run.kept, axes))
    for name, logits, style, group, inside, colour in run.lines():
        logits, labels = logits[inside], run.labels[inside]
        probs = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))  # (n, C)
        right, sure = probs.argmax(1) == labels, probs.max(1)
        bins = [np.ceil(metrics.BINS * sure) == b + 1 for b in range(metrics.BINS)]
        points = [(sure[part].mean(), right[part].mean()) for part in bins if part.any()]
        error = 100 * metrics.calibration_error(labels=labels, probs=probs)
        words = f"{group}: error {error:.1f}"
        places[name].plot(*zip(*points), "o" + style, ms=4, color=colour, label=words)
        places[name].plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
        words = {"xlabel": "probability of the answer", "ylabel": "share that is right"}
        places[name].set(title=name, **words)
        places[name].legend(fontsize=8)
    return picture(figure)


def thresholds(run):
    """Of two classes: accuracy, recall and its gap as the threshold moves."""
    figure, axes = panels(len(run.kept))
    sizes = {"labels": run.labels, "groups": run.groups, "num_groups": len(run.names)}
    for place, (name, logits) in zip(axes, run.kept.items()):
        odds, shares = logits[:, 1] - logits[:, 0], run.parts[name]["class_shares"]
        rules = {"largest output": 0.0, "prior-corrected": np.log(shares[1] / shares[0])}
        inner = np.quantile(odds, np.linspace(0.005, 0.995, 100))
        steps = np.unique([*inner, *rules.values()])
        counts = [metrics.confusion(predictions=odds > t, num_classes=2, **sizes) for t in steps]
        found = metrics.decisions(counts=np.array(counts))
        for words in ("accuracy", "recall", "mean_deo"):
            place.plot(steps, 100 * found[words], label=words.replace("_deo", "-DEO"))
        for (words, at), style in zip(rules.items(), (":", "--")):
            place.axvline(at, color="0.5", ls=style, lw=1, label=words)
        place.set(title=name, xlabel=f"log-odds from which it says {run.classes[1]}", ylabel="%")
        place.set_ylim(-3, 103)
        place.legend(fontsize=8)
    return picture(figure)


def dice_curves(run):
    """Of masks: which share of a group's pictures has at most this Dice."""
    figure, (place,) = panels(1, 4)
    for name, areas, style, group, inside, colour in run.lines():
        values = np.sort(metrics.dice(areas=areas[inside]))
        shares = np.arange(1, len(values) + 1) / len(values)
        place.step(100 * values, 100 * shares, style, color=colour, label=f"{name}, {group}")
    place.axvline(100 * metrics.FAILED, color="0.5", ls=":", lw=1, label="failed below")
    place.set(xlabel="Dice (%)", ylabel="pictures with at most this (%)")
    place.legend(fontsize=8)
    return picture(figure)


def gallery(run, data_dir):
    """The first test pictures of each class and group that the student gets wrong.

    "" if there is none, or if the pictures are not where they were.
    """
    try:
        data = figures.pictures_of(run.result, data_dir)
    except InputError:
        data = None
    if data is None or run.ids.tolist() != data["test"].ids:
        return ""
    said_of, good = {}, {}
    for name, part in run.kept.items():
        if run.masks:
            dice = metrics.dice(areas=part)
            good[name] = dice >= metrics.FAILED
            said_of[name] = [f"Dice {100 * d:.0f}" for d in dice]
        else:
            shares = run.parts[name]["class_shares"] if run.end else np.ones(len(run.classes))
            answers = metrics.corrected(logits=part, class_shares=shares)
            said_of[name], good[name] = [run.classes[c] for c in answers], answers == run.labels
    wrong = np.flatnonzero(~good["student"])
    places = figures.in_turn(wrong, run.labels, run.groups, 8)
    if not places:
        return ""
    some, (figure, axes) = data["test"].subset(np.array(places)), panels(len(places), 3.7)
    for k, (place, n) in enumerate(zip(axes, places)):
        shown = Image.fromarray(some.images[k].permute(1, 2, 0).numpy())
        if run.masks:
            shown = shown.resize((192, 192), Image.NEAREST)
            shown = outlined(shown, some.masks[some.rows[k]].numpy())
        place.imshow(shown)
        place.axis("off")
        words = [f"{run.classes[run.labels[n]]}, {run.names[run.groups[n]]}"]
        words += [f"{'✓' if good[m][n] else '✗'} {m}: {said_of[m][n]}" for m in run.kept]
        place.set_title("\n".join(words), fontsize=8, loc="left")
    what = "The student is wrong about"
    if run.masks:
        what = f"The student's Dice is below {metrics.FAILED:.0%} in"
    words = f"{what} {len(wrong)} of {len(run.labels)} test pictures."
    if "teacher" in good:
        words += f" Of these its teacher gets {good['teacher'][wrong].sum()} right."
    words += " The outlines are the truth's." if run.masks else ""
    return f"<p>{words} The first of each class and group:</p>{picture(figure, 'png')}"


def confusions(run):
    """What the student says of the pictures of each class, a table for each group."""
    tables = f"<p class=note>The student's {results.DECISIONS[run.end]}.</p>"
    for name, counts in zip(run.names, run.parts["student"]["test"][f"counts{run.end}"]):
        head = [f"{name}: true, said", *run.classes]
        rows = "<tr>" + "".join(f"<th>{html.escape(word)}" for word in head)
        for true, line in zip(run.classes, counts):
            rows += f"<tr><th>{html.escape(true)}"
            for count in line:  # the darker, the larger a share of its row
                share = count / max(sum(line), 1)
                rows += f'<td style="background:rgba(0,114,178,{share / 2:.2f})">{count}'
        tables += f'<table class="cells">{rows}</table>'
    return tables


def by_group(run):
    """The numbers of each group, with the intervals of those that have one."""
    words = {"auroc": "AUROC", f"recall{run.end}": "macro recall"}
    words |= {"dice": "Dice", "failure": "failed"}
    groups = run.parts["student"]["test"]["groups"]
    shown = [*itertools.product([key for key in words if key in groups[0]], run.rules.items())]
    rows = [[name, groups[g]["n"]] for g, name in enumerate(run.names)]
    for g, row in enumerate(rows):
        row += [results.cell({0: run.result}, key, rule, g) for key, (_, rule) in shown]
    header = [f"{words[key]}, {name}" for key, (name, _) in shown]
    return table(["group", "pictures", *header], rows)


def of_run(result, rows, data_dir=None):
    """The page of a run, which stands in a table with the other `rows`."""
    run, runs, settings = Run(result, rows), {(0, 0): result}, result["settings"]
    if "teacher" in run.parts:
        found = result.get("difference", {})  # drawn when the run was tested, as in its terminal
        tests = {name: part["test"] for name, part in run.parts.items()}
        sentence = metrics.verdict(tests, found)
        found = {k: results.in_percent(*np.array(three, float)) for k, three in found.items()}
        header = ["percent", "teacher", "student", "student - teacher"]
        lines = compared(rows, runs, runs, found, "teacher")
    else:
        header, shown = ["percent", "student"], shown_metrics(rows)
        lines = [[with_arrow(name, c), results.cell(runs, metric)] for name, metric, c in shown]
        bad = run.parts["student"]["test"]["collapsed"]
        sentence = "There is no one teacher to compare with."
        sentence += " The student has collapsed." if bad else ""
    made = f"methods/{result['method']}.py, seed {settings['seed']}, "
    made += "" if settings["fold"] is None else f"fold {settings['fold']}, "
    made += "{total:.0f} seconds on {device}, torch {torch}".format(**result["times"])
    made += "; a smoke run, on too few pictures to learn from" if settings["smoke"] else ""
    two = len(run.classes) == 2
    sections = {
        "Training": training(run),
        "Groups": by_group(run),
        "Dice of the test pictures": dice_curves(run) if run.masks else "",
        "ROC by group": "" if run.masks else roc(run),
        "Calibration by group": "" if run.masks else calibration(run),
        "As the threshold moves": thresholds(run) if two and not run.masks else "",
        "Confusion by group": "" if run.masks else confusions(run),
        "What the student gets wrong": gallery(run, data_dir),
    }
    others = table(["setting", "value"], settings.items())
    return document(
        html.escape(f"{results.row_name(result)}: {results.scene({'': runs})}"),
        f"<p class=said>{html.escape(sentence)}</p><p>{html.escape(made)}</p>",
        table(["changed setting", "value"], result["changed"].items()) if result["changed"] else "",
        f"<details><summary>all settings</summary>{others}</details>",
        table(header, lines),
        "<p class=note>↑ more is better, ↓ less is. On the test pictures, with 95 % intervals: a "
        "bootstrap of subjects (persons, lesions), the numbers of the run's own last table.</p>",
        *(f"<h2>{title}</h2>{content}" for title, content in sections.items() if content),
    )


# ----- all runs -----------------------------------------------------------------------------------

COLUMNS = ("top-1", "AUROC", "worst group", "gap", "mean-DEO")  # of the page of all runs
COLUMNS += ("Dice", "failed", "worst Dice", "Dice gap", "Dice gap, standardised")


def family(by_place, links):
    """All rows of `results.collect` on a page, runs that can be compared in one table; and as csv.

    links    {folder of a run: address of its page}
    """
    parts, lines = [], [["data", "conditions", "row", "runs", "collapsed", "metric"]]
    lines[0] += ["percent", "low", "high"]
    first, _ = results.trainings(by_place)
    for place, rows in by_place.items():
        shown, body, refused = [*shown_metrics(rows)], [], ""
        try:
            results.comparable(rows, whole=False)
        except Refused as error:
            shown, refused = [], f"<p>{html.escape(str(error))}</p>"
        kept = [column in COLUMNS for _, _, column in shown]
        for name, runs in rows.items():
            there = [links.get(run["arrays"][0].parent) for _, run in sorted(runs.items())]
            runs = first[place][name]  # the pages are those of all trainings, the numbers are not
            pooled = results.in_folds(place) and len(runs) > 1 and results.kept(runs, "last")
            values = [results.cell(runs, metric, pooled=pooled) for _, metric, _ in shown]
            opened = [f'<a href="{quote(to)}">{n}</a>' for n, to in enumerate(there, 1) if to]
            words = name + results.marks(runs)
            words += " (a part of FairDi)" if name.startswith(results.PARTS) else ""
            body.append([words, Link(" ".join(opened)), *itertools.compress(values, kept)])
            start = [*place, name, len(runs), results.number_collapsed(runs)]
            for (words, *_), value in zip(shown, values):
                lines.append([*start, words, *(f"{number:.4g}" for number in value[:3])])
        shared = results.shared_settings(results.first_of(rows))
        words = ", ".join(f"{name} {value}" for name, value in shared.items())
        title = html.escape(results.scene(rows))
        parts.append(f"<h2>{title}</h2><p>{html.escape(words)}</p>{refused}")
        header = itertools.compress([with_arrow(name, column) for name, _, column in shown], kept)
        parts.append(table(["method", "pages", *header], body, "sort"))
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows(lines)
    note = "Click on a column to sort by it. Percent, with 95 % intervals: over runs (±), or over "
    note += "test pictures, of folds over all of theirs. All metrics are in family.csv."
    return document("Runs side by side", f"<p class=note>{note}</p>", *parts, SORT), text.getvalue()


def write(source, data_dir):
    """The page of each run into its folder, that of all of them into `source`; says what it did."""
    by_place, links = results.collect(source, smoke=True), {}
    if not by_place:
        raise Refused(f"{source} holds no results: run a script first, or name --results")
    for rows in by_place.values():
        for file in {run["arrays"][0] for runs in rows.values() for run in runs.values()}:
            path = file.with_name("result.json")  # packed results have none, and no page
            if path.exists() and file.parent not in links:
                (run,) = read(path).values()
                try:
                    page = of_run(run, rows, data_dir)
                except Refused as error:
                    print(f"no page: {error}")
                    file.with_name("report.html").unlink(missing_ok=True)  # one of before
                    continue
                save(file.with_name("report.html"), page)
                links[file.parent] = file.with_name("report.html").relative_to(source).as_posix()
    page, lines = family(by_place, links)
    save(source / "family.html", page)
    save(source / "family.csv", lines)
    pages = f"{len(links)} page{'s' * (len(links) != 1)}"
    return f"wrote {pages} beside the runs, and family.html and family.csv to {source}"
