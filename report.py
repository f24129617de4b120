"""Results to tables, pages and figures; every number in them is computed here.

    python report.py                      runs/, your own results: pages, figures in runs/report/
    python report.py --pack               add runs/ to the packed results in results/
    python report.py --results results    pages and figures in results/, and the README's table

What a row is, and how two of them are compared, is in results.py. In a table:

    mean ± half          over seeds or folds: half of the 95 % interval of the mean (Student's t)
    value [low, high]    of one test set: 95 % bootstrap interval over its subjects (lesions,
                         persons); for a change in percent of a mean over seeds, Fieller's interval
    bold                 the best of a column. A collapsed run (a class never predicted, a group
                         answered with one class, or macro recall within 5 points of chance) is
                         marked and cannot be best in fairness: equally useless is not fair
"""

import argparse
import csv
import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np

import figures
from data import InputError, save
from results import (
    METRICS,
    NAMES,
    OWN_NETWORKS,
    POINTS,
    TWO_POINTS,
    UTILITY,
    Refused,
    Value,
    cell,
    change,
    collapsed,
    collect,
    comparable,
    folds_of,
    measured,
    number_collapsed,
    own_settings,
    pack,
    paired,
    paired_over,
    relative,
    scores,
    select,
    unusual,
)

ROOT = Path(__file__).resolve().parent
SLIDES = ["ERM", "CKD", "CKD, T = 1", "RKD", "CTKD", "KD++", "FitNet", "AT", "re-balancing"]
POSTER = ["ERM", "CKD", "FitNet", "AT", "AD", "MFD", "BIRD", "BIRD, gates fixed", "BIRD, μ = 0.1"]
POSTER += ["BIRD, μ = 0.3", "adversarial KD", "adversarial KD, λ = 0.5", "re-balancing"]
FAIRDI = ["ERM", "re-balancing", "GroupDRO", "SWAD", "FIS", "FairDi", "FairTune"]
## The README's rows, and what stands there where every run of a row has collapsed.
HEADLINE = ["ERM", "re-balancing", "CKD", "RKD", "CTKD", "KD++", "FitNet", "AT", "adversarial KD"]
HEADLINE += ["MFD", "BIRD", "GroupDRO by class", "SWAD", "FairDi", "FairTune"]
WEAKER = {"adversarial KD": ["λ = 0.5"], "BIRD": ["μ = 0.3", "μ = 0.1"]}


# ----- tables -------------------------------------------------------------------------------------


class Table:
    """Rows of texts and Values under a header, as Markdown."""

    def __init__(self, header, better=None):
        self.header, self.rows, self.note = header, [], ""
        self.barred, self.unranked = set(), set()  # rows that cannot be best: in fairness, in all
        self.better = {k: v[1] for k, v in METRICS.items()} if better is None else better

    def add(self, name, cells, bad=0, of=1, ranked=True):
        """A row. `bad` of its `of` runs have collapsed; an unranked row is never bold."""
        note = "" if not bad else f" ({bad} of {of} collapsed)" if of > 1 else " (collapsed)"
        self.barred |= {len(self.rows)} if bad else set()
        self.unranked |= set() if ranked else {len(self.rows)}
        self.rows.append([name + note, *cells])

    def best(self):
        """{(row, column)} of the best values: collapsed rows cannot be best in fairness."""
        best = set()
        if len(self.rows) - len(self.unranked) < 2:
            return best
        for c, column in enumerate(self.header):
            out = self.unranked | (set() if column in UTILITY else self.barred)
            points = {
                r: self.better[column] * row[c].point
                for r, row in enumerate(self.rows)
                if column in self.better and r not in out and isinstance(row[c], Value)
            }
            highest = np.nanmax([*points.values(), -np.inf])
            best |= {(r, c) for r, point in points.items() if point == highest}
        return best

    def markdown(self):
        best, lines = self.best(), [self.header, ["---"] * len(self.header)]
        for r, row in enumerate(self.rows):
            texts = [str(cell) for cell in row]
            lines.append([f"**{t}**" if (r, c) in best else t for c, t in enumerate(texts)])
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{text}\n\n*{self.note}*" if self.note else text


def beside_published(table, dataset, layout):
    """The table with the numbers of the paper whose layout it has, where they are published."""
    with open(ROOT / "results" / "published.csv", encoding="utf-8", newline="") as file:
        lines = [r for r in csv.DictReader(file) if (r["dataset"], r["table"]) == (dataset, layout)]
    columns = list(dict.fromkeys(line["metric"] for line in lines))
    printed = {(line["method"], line["metric"]): f"{float(line['percent']):.1f}" for line in lines}
    table.note = f"published: {lines[0]['source']}" if lines else ""
    table.header += [f"{column}, published" for column in columns]
    for row in table.rows:
        row += [printed.get((row[0].partition(" (")[0], column), "") for column in columns]
    return table


def pooled_rows(rows, rules):
    """(label, runs, keys, rule, base runs) for each row of a table of pooled folds.

    A method with fewer folds than the most is compared on its own folds alone: the base, ERM or
    CKD, stands above it once more, on these folds.
    """
    comparable(rows, whole=False)
    every = max((folds_of(runs) for runs in rows.values()), key=len)
    base = next((name for name in ("ERM", "CKD") if name in rows), None)
    for keys in sorted({folds_of(runs) for runs in rows.values()}, key=lambda k: -len(k)):
        there = base if base and set(keys) <= set(rows[base]) else None
        folds = "" if keys == every else f" (folds {', '.join(str(fold) for fold, _ in keys)})"
        for (name, runs), (rule, words) in itertools.product(rows.items(), rules.items()):
            if folds_of(runs) == keys or (name == there and keys != every):
                yield name + words + folds, runs, keys, rule, rows.get(there)


def pooled_tables(rows, rules):
    """Folds pooled so that every picture is tested once: values, and paired differences to ERM."""
    plan = list(pooled_rows(rows, rules))
    names = next(iter(plan[0][1].values()))["group_names"]
    shown = "AUROC,worst group,gap,ES-AUC,PSD mean,PSD max,mean-DEO".split(",")
    table = Table(["method", "n", *shown, *(f"AUROC, {name}" for name in names)])
    differences = Table(["method", *(f"{s}, − base" for s in shown)])
    for label, runs, keys, rule, base in plan:
        own = scores(runs, rule, keys)
        bad = number_collapsed({key: runs[key] for key in keys}, rule)
        cells = [measured(own, METRICS[s][0]) for s in shown]
        cells += [measured(own, "group_auroc", g) for g in range(len(names))]
        whole = len(keys) == len(plan[0][2])
        table.add(label, [str(len(own["ids"])), *cells], bad, len(keys), whole)
        if base is not None and base is not runs:
            other = scores(base, rule, keys)
            cells = [paired(own, other, METRICS[s][0]) for s in shown]
            differences.add(label, cells, bad, len(keys))
    return {"": table, "-differences": differences}


def taught(rows):
    """The first runs in `rows` that all have a teacher, or None."""
    return next((r for r in rows.values() if all("teacher" in run for run in r.values())), None)


def table_of(first, rows, shown, differences, teacher=True):
    """A table with a row for each of `rows`: metrics over its runs, and paired differences.

    first          header of the names
    shown          names of the metrics
    differences    {column: (metric, name of the base row or "teacher", change or relative)}
    teacher        whether the teacher is a row, the first, which does not compete
    """
    table = Table([first, *shown, *differences])
    lines = [(name, runs, "last") for name, runs in comparable(rows).items()]
    if teacher and taught(rows):
        lines.insert(0, ("*the teacher*", taught(rows), "teacher"))
    for name, runs, rule in lines:
        cells = [cell(runs, METRICS[s][0], rule) for s in shown]
        for metric, against, compare in differences.values():
            base, base_rule = rows.get(against), rule
            if against == "teacher" and taught({name: runs}):
                base, base_rule = runs, "teacher"
            there = base and rule == "last" and (base is not runs or base_rule != rule)
            pair = (runs, base, METRICS[metric][0], rule, base_rule)
            cells.append(compare(*pair) if there else "")
        name = name if isinstance(name, str) else f"{name:g}"
        table.add(name, cells, number_collapsed(runs, rule), len(runs), rule == "last")
    return table


def slides_table(rows, dataset=None):
    """The layout of the W210 slides: teacher and students, and the paired change of disparity."""
    shown = ["top-1", "recall", "precision", "F1", "disparity"]
    differences = {
        "disparity, − teacher": ("disparity", "teacher", change),
        "change in %": ("disparity", "teacher", relative),
    }
    table = table_of("student by", select(rows, SLIDES), shown, differences)
    return beside_published(table, dataset, "slides")


def poster_table(rows, dataset=None):
    """The layout of the BIRD poster, and the paired change against CKD."""
    shown, chosen = ["AUROC", "F1", "mean-DEO", "max-DEO"], select(alone(rows), POSTER)
    differences = {
        "AUROC, − CKD": ("AUROC", "CKD", change),
        "mean-DEO, − CKD": ("mean-DEO", "CKD", change),
        "mean-DEO, change in %": ("mean-DEO", "CKD", relative),
    }
    table = table_of("method", chosen, shown, differences, teacher=False)
    return beside_published(table, dataset, "poster")


def overview_table(rows):
    """Everything on one page: utility, fairness, cost, and the paired difference to CKD."""
    shown = ["top-1", "F1", "AUROC", "worst group", "gap", "ES-AUC", "mean-DEO", "max-DEO"]
    differences = {f"{m}, − CKD": (m, "CKD", change) for m in ("top-1", "mean-DEO")}
    chosen = alone(rows)
    table = table_of("method", chosen, shown, differences)
    table.header += ["parameters", "MB", "ms, one picture", "s of training"]
    lines = [(taught(chosen), "teacher")] if taught(chosen) else []
    lines += [(runs, "last") for runs in chosen.values()]
    for row, (runs, rule) in zip(table.rows, lines):
        network, times = next(iter(runs.values()))[rule], [r["times"] for r in runs.values()]
        row += [f"{network['parameters']:,}", f"{network['megabytes']:.2f}"]
        if rule == "teacher":
            row += ["", f"{np.median([t['teacher'] for t in times]):.0f}"]
        else:
            row += [f"{np.median([t['cpu_latency_ms'] for t in times]):.2f}"]
            row += [f"{np.median([sum(t['epochs']) for t in times]):.0f}"]
    return table


def sweep(rows, script="adversarial_kd", setting="adversary_weight", base=0.0):
    """{value: {key: result}} of runs of a script that differ in one setting alone, by its value.

    {} without a run at `base`, or with fewer than three values.
    """
    runs_at = {}
    for runs in rows.values():
        result = next(iter(runs.values()))
        if result["method"] == script and not own_settings(result).keys() - {setting}:
            runs_at[result["settings"][setting]] = runs
    return dict(sorted(runs_at.items())) if base in runs_at and len(runs_at) > 2 else {}


def temperatures(rows):
    """{T: {key: result}} of ckd.py where nothing but T differs."""
    return sweep(rows, "ckd", "temperature", 1.0)


def alone(rows):
    """`rows` without those that stand in the table of a sweep alone.

    ## Where the usual adversary is too strong to be of use, a weaker one stands beside it.
    """
    elsewhere = [id(runs) for choose in (sweep, temperatures) for runs in choose(rows).values()]
    usual, weaker = rows.get("adversarial KD", {}), rows.get("adversarial KD, λ = 0.5", {})
    if usual and number_collapsed(usual) == len(usual):
        elsewhere = [runs for runs in elsewhere if runs != id(weaker)]
    named_rows = NAMES.values()
    return {n: runs for n, runs in rows.items() if n in named_rows or id(runs) not in elsewhere}


def sweep_table(rows):
    """The strength of the adversary, paired with λ = 0: which one buys fairness for little?"""
    differences = {
        "top-1, λ − 0": ("top-1", 0.0, change),
        "disparity, λ − 0": ("disparity", 0.0, change),
        "disparity, change in %": ("disparity", 0.0, relative),
    }
    shown = ["top-1", "AUROC", "disparity", "mean-DEO"]
    table = table_of("λ", sweep(rows), shown, differences, teacher=False)
    table.header.append("30 % for 1 point")
    for r, row in enumerate(table.rows):
        accuracy, _, percent = row[-3:]
        enough = percent and percent.point <= -30 and accuracy.point >= -1 and r not in table.barred
        row.append("" if percent == "" else "yes" if enough else "no")
    return table


def temperature_table(rows):
    """T of CKD, paired with T = 1 and with the teacher: is the student of a softer one fairer?"""
    shown = ["top-1", "AUROC", "mean-DEO", "parity"]
    differences = {f"{m}, T − 1": (m, 1.0, change) for m in ("top-1", "mean-DEO", "parity")}
    differences["parity, − teacher"] = ("parity", "teacher", change)
    return table_of("T", temperatures(rows), shown, differences)


# ----- what the papers claim, on every data set ---------------------------------------------------

## The claim; whose row, at the usual settings and, where it ran, at those in WEAKER; against which
## row, or the student's own teacher; in which metric; 1 if it shall rise, -1 if it shall fall.
CLAIMS = (
    ("slides: a student is less fair than its teacher", "CKD", "teacher", "disparity", 1),
    ("adversarial KD: less disparity than CKD", "adversarial KD", "CKD", "disparity", -1),
    ("BIRD: lower mean-DEO than CKD", "BIRD", "CKD", "mean-DEO", -1),
    ("BIRD: AUROC not below CKD's", "BIRD", "CKD", "AUROC", 1),
    ("FairDi: higher AUROC in the worst group than ERM", "FairDi", "ERM", "worst group", 1),
    ("FairTune: smaller gap than full fine-tuning", "FairTune", "full fine-tuning", "gap", -1),
)
CLAIMS += tuple(
    (f"Mohammadshahi and Ioannou: {claim}", "CKD, T = 20", against, "parity", -1)
    for claim, against in (
        ("T = 20 fairer than T = 1", "CKD, T = 1"),
        ("at T = 20 fairer than the teacher", "teacher"),
    )
)


def named(dataset, label):
    return ", ".join(filter(None, [dataset, *label.split("-")])).replace("_", " ")


def with_weaker(name):
    """The name of a row and those of its weaker settings."""
    return [name, *(f"{name}, {weaker}" for weaker in WEAKER.get(name, ()))]


def claims_table(by_place):
    """Each claim on each data set that has its rows: confirmed, contradicted, or undecided."""
    table = Table(["claim", "data set", "over", "difference", "verdict"])
    for claim, usual, against, shown, sign in CLAIMS:
        for (place, rows), name in itertools.product(by_place.items(), with_weaker(usual)):
            runs = rows.get(name, {})
            rule, base = ("teacher", runs) if against == "teacher" else ("last", rows.get(against))
            if not base or not runs.keys() & base.keys():
                continue
            folded = place[1].startswith("folds")
            value, count = paired_over(runs, base, METRICS[shown][0], rule, folded)
            low, high = sorted((sign * value.low, sign * value.high))
            verdict = "confirmed" if low > 0 else "contradicted" if high < 0 else "undecided"
            if number_collapsed(runs):
                verdict += f", but {number_collapsed(runs)} of {len(runs)} runs collapsed"
            weaker = "" if name == usual else f" ({name.partition(', ')[2]})"
            table.add(claim + weaker, [named(*place), count, value, verdict])
    return table


def inflation_table(by_place):
    """Disparity of every student minus its own teacher's, on every data set with teachers."""
    places = {
        place: {name: runs for name, runs in rows.items() if taught({name: runs})}
        for place, rows in by_place.items()
        if taught(rows)
    }
    table = Table(["student by", *(named(*place) for place in places)])
    claimed = [name for _, usual, *_ in CLAIMS for name in with_weaker(usual)]
    for name in dict.fromkeys([*NAMES.values(), *claimed]):
        cells = []
        for (_, label), rows in places.items():
            runs, folded = rows.get(name, {}), label.startswith("folds")
            value = paired_over(runs, runs, "disparity", "teacher", folded)[0] if runs else ""
            cells.append(f"{value} (collapsed)" if number_collapsed(runs) else value)
        if any(name in rows for rows in places.values()):
            table.add(name, cells)
    return table


## What one part of a method does: two rows that no other table puts side by side.
PAIRS = (
    ("adversarial KD, λ = 0.5", "CKD"),
    ("BIRD", "BIRD, gates fixed"),
    ("FairDi", "CKD"),
    ("FairDi", "FIS"),
    ("FairDi", "FairDi, no teachers"),
    ("FairDi, no teachers", "FIS"),
    ("FairTune", "full fine-tuning"),
    ("linear probe", "full fine-tuning"),
)


def add_difference(table, name, place, runs, base):
    """A row minus another, in the measures of the header; nothing where they have no run in common.

    place    (data set, conditions) of both
    """
    if runs.keys() & base.keys():
        folded = place[1].startswith("folds")
        pairs = [paired_over(runs, base, METRICS[s][0], "last", folded) for s in table.header[3:]]
        table.add(name, [named(*place), pairs[0][1], *(value for value, _ in pairs)])


def pairs_table(by_place):
    """Paired differences of PAIRS on every data set: what one part of a method does."""
    shown = ["top-1", "AUROC", "worst group", "gap", "mean-DEO", "disparity"]
    table = Table(["pair", "data set", "over", *shown], better={})
    for pair, (place, rows) in itertools.product(PAIRS, by_place.items()):
        parts = [rows.get(name, {}) for name in pair]
        marks = [f"{n} (collapsed)" if number_collapsed(r) else n for n, r in zip(pair, parts)]
        add_difference(table, " − ".join(marks), place, *parts)
    return table


def repeated_table(by_place, repeated):
    """The same command on another processor, minus the first time: what rounding changes.

    ## Sums are rounded in another order there; after some thousand steps it is another training.
    ## So these differences are also how far two trainings lie apart, which no bootstrap over test
    ## pictures shows. CelebA's committed pictures carry numbers drawn anew each time: not paired.
    """
    shown = ["AUROC", "worst group", "gap", "ES-AUC", "mean-DEO", "disparity"]
    table = Table(["row", "data set", "over", *shown], better={})
    for place, rows in repeated.items():
        for name, runs in rows.items() if place[0] != "celeba" else ():
            add_difference(table, name, place, runs, by_place.get(place, {}).get(name, {}))
    return table


def command_of(dataset, label, runs):
    """The command that makes `runs`, a list of results of one data set and the same conditions.

    It is a command for what run_all.sh lists; other settings of a row are not in it.
    """
    most = [r for r in runs if r["method"] not in OWN_NETWORKS] or runs
    used, first, folds = {r["method"] for r in runs}, most[0], label.startswith("folds")
    settings, single = first["settings"], len(runs) == 1
    flags = unusual(first, ("sensitive",) if folds and not single else ())  # the list has all
    if single:
        flags |= own_settings(first) | ({"fold": settings["fold"]} if folds else {})
    words = [] if dataset == "toy" else ["--dataset", dataset, "--data-dir", "DIR"]
    if single:
        words = ["python", f"methods/{first['method']}.py", *words, "--seed", f"{settings['seed']}"]
    else:
        words = ["bash", "run_all.sh", *words]
        if not folds:
            words += ["--seeds", f"{max(r['settings']['seed'] for r in most) + 1}"]
        if dataset != "toy" and "fairtune" in used:
            words += ["--source-dir", "DIR2"]
        if used != {path.stem for path in (ROOT / "methods").glob("*.py")}:
            words += ["--only", *sorted(used)]
        words += ["--"] if flags else []
    for name, value in flags.items():
        words.append(f"--{'no-' if value is False else ''}{name}".replace("_", "-"))
        words += [] if isinstance(value, bool) else [shlex.quote(f"{value}")]
    return " ".join(words)


def hours_of(runs):
    """What `runs`, a list of results, took: each teacher once, whoever trained it."""
    seconds, teachers = 0, {}
    for result in runs:
        settings, times = result["settings"], result["times"]
        ## The total of the run that trained the teacher has the teacher in it.
        trained = times["total"] > times["teacher"] + sum(times["epochs"])
        seconds += times["total"] - (times["teacher"] if trained else 0)
        if "teacher" in result:
            teachers[settings["fold"], settings["seed"]] = times["teacher"]
    return (seconds + sum(teachers.values())) / 3600


def made_table(by_place):
    """The command behind each group of runs, how many they are, what they took, and where."""
    table = Table(["data set", "command", "runs", "hours", "made on"])
    for (dataset, label), rows in by_place.items():
        runs = [run for name, row in rows.items() if name != "FIS" for run in row.values()]
        devices = ", ".join(dict.fromkeys(r["times"]["device"] for r in runs))
        versions = ", ".join(sorted({r["times"]["torch"].partition("+")[0] for r in runs}))
        cells = [f"`{command_of(dataset, label, runs)}`", str(len(runs)), f"{hours_of(runs):.1f}"]
        table.add(named(dataset, label), [*cells, f"{devices} torch {versions}"])
    return table


PLACES = {  # the columns of the README's table
    "toy": ("toy", ""),
    "HAM10000, sex": ("ham10000", "folds-teacher_convnet16-student_convnet8-epochs_6"),
    "CIFAR10-S": ("cifar10s", "teacher_convnet16-student_convnet8-epochs_5"),
    "CelebA, attractive": ("celeba", "teacher_resnet18-student_convnet8-epochs_5"),
}


def headline_table(by_place):
    """AUROC / worst group / mean-DEO of the methods on four data sets, one column each."""
    places = {title: place for title, place in PLACES.items() if place in by_place}
    metrics = [METRICS[shown][0] for shown in ("AUROC", "worst group", "mean-DEO")]
    table = Table(["method", *places], better={})
    for name in HEADLINE:
        cells = []
        for dataset, label in places.values():
            rows = by_place[dataset, label]
            there = [n for n in with_weaker(name) if n in rows]
            some = [n for n in there if number_collapsed(rows[n]) < len(rows[n])] or there
            if not some:
                cells.append("")
                continue
            runs = rows[some[0]]
            if label.startswith("folds"):
                together = scores(runs, "last", folds_of(runs))
                points = [measured(together, metric).point for metric in metrics]
            else:
                points = [cell(runs, metric).point for metric in metrics]
            notes = [some[0].removeprefix(f"{name}, ")] if some[0] != name else []
            if number_collapsed(runs):
                notes.append(f"{number_collapsed(runs)} of {len(runs)} collapsed")
            note = f" ({', '.join(notes)})" if notes else ""
            cells.append(" / ".join(f"{point:.1f}" for point in points) + note)
        if any(cells):
            table.add(name, cells)
    return table


# ----- pages --------------------------------------------------------------------------------------

KINDS = {  # what a table is: its title, in the order of a page
    "slides": "Students beside their teacher (the layout of the slides of Bolner et al., 2023)",
    "poster": "Methods beside CKD (the layout of the poster of BIRD)",
    "pooled": "All folds together: every picture is tested once, by the model that did not see it",
    "pooled-differences": "The same, minus ERM (or CKD) on the same pictures",
    "fairdi": "Two epochs chosen on validation: best overall, best in the worst group",
    "fairdi-differences": "The same, minus ERM (or CKD) on the same pictures",
    "sweep": "How strong an adversary? Paired with λ = 0, which is CKD",
    "temperature": "Is the student of a softer teacher fairer? CKD, paired with T = 1",
    "overview": "Everything",
}
ACROSS = {  # the same for what concerns all data sets
    "claims": "Do the claims of the papers hold?",
    "inflation": "Disparity of every student minus that of its own teacher",
    "pairs": "What one part of a method does",
    "repeated": "A second training minus the first, by the same command on another processor",
    "repeated-claims": "The claims in the second training",
    "repeated-inflation": "Disparity of students minus that of their teachers, second training",
    "repeated-pairs": "What one part of a method does, second training",
    "repeated-pooled": "HAM10000 in the second training, all folds together",
    "repeated-pooled-differences": "The same, minus ERM (or CKD)",
    "made": "How the results were made",
}


def tables(by_place, repeated):
    """{(place, kind): Table} of all tables that the results give; and {(place, kind): why not}.

    by_place   {(data set, conditions): rows}
    repeated   the same of the same commands on another processor
    place      (data set, conditions), or "all" for tables across data sets
    """
    made, refused = {}, {}

    def make(place, kind, function, *arguments):
        try:
            result = function(*arguments)
            parts = result if isinstance(result, dict) else {"": result}
            made.update({(place, kind + end): part for end, part in parts.items() if part.rows})
        except Refused as error:
            refused[place, kind] = str(error)

    for place, rows in by_place.items():
        for kind, function, names in (
            ("slides", slides_table, SLIDES),
            ("poster", poster_table, POSTER),
        ):
            if sum(name in rows for name in names) > 1:
                make(place, kind, function, rows, place[0])
        if place[1].startswith("folds"):
            make(place, "pooled", pooled_tables, alone(rows), {"last": ""})
            chosen = {name: rows[name] for name in FAIRDI if name in rows}
            points = {rule: f", {words}" for rule, words in POINTS.items()}
            if len(chosen) > 1:
                make(place, "fairdi", pooled_tables, chosen, points)
        else:
            make(place, "overview", overview_table, rows)
        make(place, "sweep", sweep_table, rows)
        make(place, "temperature", temperature_table, rows)
    for kind, function in (
        ("claims", claims_table),
        ("inflation", inflation_table),
        ("pairs", pairs_table),
    ):
        make("all", kind, function, by_place)
        make("all", f"repeated-{kind}", function, repeated)
    make("all", "repeated", repeated_table, by_place, repeated)
    for place, rows in repeated.items():
        if place[1].startswith("folds"):
            make(place, "repeated-pooled", pooled_tables, rows, {"last": ""})
    make("all", "made", made_table, by_place)
    return made, refused


def pages(by_place, made, captions):
    """{file name: Markdown}: a page for each data set, and claims.md for what concerns them all.

    made        {(place, kind): Table}
    captions    {place: {file name of a figure: its caption}}
    """
    first = "Made by `python report.py`; what the columns and intervals mean stands at its top."
    texts = {}

    def figures_of(place):
        return [f"![{c}]({name})\n\n*{c}*" for name, c in captions.get(place, {}).items()]

    for place, row in zip(by_place, made["all", "made"].rows):
        words, command, count, hours, machine = row
        text = [f"## {words}", f"{count} runs, {hours} hours on {machine}, of {command}."]
        for kind, title in KINDS.items():
            if (place, kind) in made:
                text += [f"### {title}", made[place, kind].markdown()]
        page = texts.setdefault(place[0], [f"# Results: {place[0]}", first])
        page += text + figures_of(place)
    text = ["# Results: claims, and all data sets together", first]
    for kind, title in ACROSS.items():
        for (place, _), table in ((key, table) for key, table in made.items() if key[1] == kind):
            where = "" if place == "all" else f" ({named(*place)})"
            text += [f"## {title}{where}", table.markdown()]
    texts["claims"] = text + figures_of("all")
    return {f"{name}.md": "\n\n".join(text) + "\n" for name, text in texts.items()}


def fill(text, table):
    """A README with its one generated table made anew."""
    start, end = "<!-- table results -->", "<!-- end -->"
    if not re.search(f"{start}.*{end}", text, re.S):
        raise Refused(f"README.md has no place for the table, {start} ... {end}")
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{table}\n{end}", text, flags=re.S)


# ----- figures ------------------------------------------------------------------------------------

SEX = "ham10000-folds-teacher_convnet16-student_convnet8-epochs_6"
AGE = "ham10000-folds-sensitive_age-teacher_convnet16-student_convnet8-epochs_6"
COMMITTED = {  # the figures of the packed results; your own results get all of them
    "toy-gallery.png",
    "toy-sweep.png",
    "toy-temperature.png",
    "toy-training.png",
    "cifar10s-teacher_convnet16-student_convnet8-epochs_5-disparity.png",
    "celeba-teacher_resnet18-student_convnet8-epochs_5-sweep.png",
    f"{SEX}-two-points.png",
    f"{SEX}-masks.png",
    f"{AGE}-two-points.png",
    "ranks-AUROC.png",
    "ranks-worst-group.png",
    "ranks-mean-DEO.png",
}


def two_points(rows, folded):
    """{row: {rule: AUROC, gap and group AUROCs in percent}} for FairDi's figure."""
    points = {}
    for name, rule in itertools.product([n for n in TWO_POINTS if n in rows], POINTS):
        runs = rows[name]
        if folded:
            point = scores(runs, rule, folds_of(runs))["point"]
            numbers = [[point["auroc"], point["auroc_gap"], *point["group_auroc"]]]
        else:
            tests = [result[rule]["test"] for result in runs.values()]
            groups = [[group["auroc"] for group in test["groups"]] for test in tests]
            numbers = [[t["auroc"], t["auroc_gap"], *g] for t, g in zip(tests, groups)]
        whole, gap, *groups = 100 * np.mean(numbers, axis=0)
        points.setdefault(name, {})[rule] = {"auroc": whole, "gap": gap, "groups": groups}
    return points


def rank_blocks(by_place, metric):
    """Names and (N, k) values, higher is better, of the rows that every run has.

    A run is a seed or a fold of a data set. FairDi's paper claims the best rank, so that those
    without it are left out; the toy counts alone or not at all. What does not look at groups counts
    a fold once, not for each of its attributes. What is undefined ranks last.
    """
    (metric_name, sign), useful = METRICS[metric], metric in UTILITY
    runs = {}
    for place, rows in by_place.items():
        for name in NAMES.values():
            for key, result in rows.get(name, {}).items():
                runs.setdefault((*place, key), {})[name] = result["last"]["test"]
    runs = {place: tests for place, tests in runs.items() if "FairDi" in tests} or runs
    runs = {place: tests for place, tests in runs.items() if place[0] != "toy"} or runs
    if useful:
        runs = {place: t for place, t in runs.items() if "sensitive_" not in place[1]} or runs
    names = [name for name in NAMES.values() if all(name in tests for tests in runs.values())]

    def score(test):  # a collapsed run ranks last in fairness
        bad = test[metric_name] is None or (collapsed(test) and not useful)
        return -np.inf if bad else sign * test[metric_name]

    return names, np.array([[score(tests[name]) for name in names] for tests in runs.values()])


def draw(by_place, folder, wanted, data_dir):
    """Draw the figures that the results give; {place: {file name: caption}}.

    wanted    names of the only files to draw; empty: all of them
    """
    captions = {}

    def make(place, kind, function, *arguments):
        name = "-".join(filter(None, [*place, kind])) + ".png" if place != "all" else f"{kind}.png"
        caption = function(*arguments, folder / name) if name in (wanted or {name}) else None
        if caption:
            captions.setdefault(place, {})[name] = caption

    for place, rows in by_place.items():
        where, folded = named(*place), place[1].startswith("folds")
        useful = {name: runs for name, runs in rows.items() if number_collapsed(runs) < len(runs)}
        make(place, "gallery", figures.gallery, useful, where, data_dir)
        make(place, "disparity", figures.per_class, useful, where)
        make(place, "training", figures.training, rows, where)
        make(place, "masks", figures.fairtune_masks, rows, where)
        if sum(name in rows for name in TWO_POINTS) > 2:
            groups = next(iter(next(iter(rows.values())).values()))["group_names"]
            make(place, "two-points", figures.two_points, two_points(rows, folded), groups, where)
        for kind, choose in (("sweep", sweep), ("temperature", temperatures)):
            try:
                chosen = comparable(choose(rows))
            except Refused:  # `tables` has said why
                continue
            bad = [number_collapsed(runs) > 0 for runs in chosen.values()]
            if chosen:
                make(place, kind, figures.sweep, chosen, kind, bad, where)
            if chosen and kind == "sweep":
                make(place, "sweep-3d", figures.sweep_3d, chosen, where)
    for metric in ("AUROC", "worst group", "mean-DEO"):
        names, numbers = rank_blocks(by_place, metric)
        if len(names) > 2 and len(numbers) > 1:
            kind = f"ranks-{metric.replace(' ', '-')}"
            make("all", kind, figures.critical_difference, names, numbers, metric)
    return captions


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="runs", help="folder of results, fresh or packed")
    parser.add_argument("--pack", action="store_true", help="add the results to those in results/")
    parser.add_argument("--data-dir", help="folder of the pictures, for a gallery of real ones")
    args = parser.parse_args()
    source = Path(args.results)
    by_place, repeated = collect(source), collect(source / "again")
    if not by_place:
        raise Refused(f"{source} holds no results: run a script first, or run_all.sh")
    if args.pack:
        pack(source, ROOT / "results")
        return print(f"packed {source} into {ROOT / 'results'}")
    packed = any(source.glob("*.jsonl"))
    folder = source if packed else source / "report"
    folder.mkdir(exist_ok=True)
    made, refused = tables(by_place, repeated)
    captions = draw(by_place, folder, COMMITTED if packed else (), args.data_dir)
    texts = pages(by_place, made, captions)
    for name, text in texts.items():
        save(folder / name, text)
    print(f"wrote {', '.join(texts)} and {sum(map(len, captions.values()))} figures to {folder}")
    if source.resolve() == ROOT / "results":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        save(ROOT / "README.md", fill(readme, headline_table(by_place).markdown()))
    if refused:
        lines = [f"no table {kind} of {place}: {why}" for (place, kind), why in refused.items()]
        raise Refused("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"report.py: {error}")
