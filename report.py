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


# ----- tables -------------------------------------------------------------------------------------


class Table:
    """Rows of texts and Values under a header, as Markdown."""

    def __init__(self, header, better=None):
        self.header, self.rows, self.barred, self.out, self.note = header, [], set(), set(), ""
        self.better = {k: v[1] for k, v in METRICS.items()} if better is None else better

    def add(self, name, cells, bad=0, of=1, ranked=True):
        """A row. `bad` of its `of` runs have collapsed; an unranked row is never bold."""
        note = "" if not bad else f" ({bad} of {of} collapsed)" if of > 1 else " (collapsed)"
        self.barred |= {len(self.rows)} if bad else set()
        self.out |= set() if ranked else {len(self.rows)}
        self.rows.append([name + note, *cells])

    def best(self):
        """{(row, column)} of the best values: collapsed rows cannot be best in fairness."""
        found = set()
        for c, column in enumerate(self.header):
            barred = self.out | (set() if column in UTILITY else self.barred)
            points = {
                r: self.better[column] * row[c].point
                for r, row in enumerate(self.rows)
                if column in self.better
                and r not in barred
                and isinstance(row[c], Value)
                and not np.isnan(row[c].point)
            }
            if len(self.rows) - len(self.out) > 1:
                found |= {(r, c) for r, point in points.items() if point == max(points.values())}
        return found

    def markdown(self):
        best, lines = self.best(), [self.header, ["---"] * len(self.header)]
        for r, row in enumerate(self.rows):
            cells = [str(cell) for cell in row]
            lines.append([f"**{t}**" if (r, c) in best else t for c, t in enumerate(cells)])
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{text}\n\n*{self.note}*" if self.note else text


def beside_published(table, dataset, layout):
    """The table with the numbers of the paper whose layout it has, where they are published."""
    with open(ROOT / "results" / "published.csv", encoding="utf-8", newline="") as file:
        lines = [r for r in csv.DictReader(file) if (r["dataset"], r["table"]) == (dataset, layout)]
    columns = list(dict.fromkeys(line["metric"] for line in lines))
    printed = {(line["method"], line["metric"]): float(line["percent"]) for line in lines}
    table.note = f"published: {lines[0]['source']}" if lines else ""
    table.header += [f"{column}, published" for column in columns]
    for row in table.rows:
        values = [printed.get((row[0].partition(" (")[0], column)) for column in columns]
        row += ["" if value is None else f"{value:.1f}" for value in values]
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
        for name, runs in rows.items():
            if folds_of(runs) == keys or (name == there and keys != every):
                for rule, words in rules.items():
                    short = (
                        "" if keys == every else f" (folds {', '.join(str(f) for f, _ in keys)})"
                    )
                    yield name + words + short, runs, keys, rule, rows.get(there)


def pooled_tables(rows, rules):
    """Folds pooled so that every picture is tested once: values, and paired differences to ERM."""
    plan = list(pooled_rows(rows, rules))
    names = next(iter(plan[0][1].values()))["group_names"]
    shown = "AUROC,worst group,gap,ES-AUC,PSD mean,PSD max,mean-DEO".split(",")
    header = ["method", "n", *shown, *(f"AUROC, {g}" for g in names)]
    table, differences = Table(header), Table(["method", *(f"{s}, − base" for s in shown)])
    full = len(plan[0][2])
    for label, runs, keys, rule, base in plan:
        one = scores(runs, rule, keys)
        bad = number_collapsed({key: runs[key] for key in keys}, rule)
        cells = [measured(one, METRICS[s][0]) for s in shown]
        cells += [measured(one, "group_auroc", g) for g in range(len(names))]
        table.add(label, [str(len(one["ids"])), *cells], bad, len(keys), len(keys) == full)
        if base is not None and base is not runs:
            against = scores(base, rule, keys)
            cells = [paired(one, against, METRICS[s][0]) for s in shown]
            differences.add(label, cells, bad, len(keys))
    return {"": table, "-differences": differences}


def add_teacher(table, runs, shown):
    """The teacher of the row `runs` as a row of its own, which does not compete."""
    cells = [cell(runs, METRICS[s][0], "teacher") for s in shown]
    cells += [""] * (len(table.header) - 1 - len(cells))
    table.add("*the teacher*", cells, number_collapsed(runs, "teacher"), len(runs), ranked=False)


def slides_table(rows, dataset=None):
    """The layout of the W210 slides: teacher and students, and the paired change of disparity."""
    shown = ["top-1", "recall", "precision", "F1", "disparity"]
    table = Table(["student by", *shown, "disparity, − teacher", "change in %"])
    chosen = select(rows, SLIDES)
    for name, runs in chosen.items():
        has_teacher = all("teacher" in result for result in runs.values())
        if has_teacher and not table.rows:
            add_teacher(table, runs, shown)
        cells = [cell(runs, METRICS[s][0]) for s in shown] + ["", ""]
        if has_teacher:
            pair = (runs, runs, "disparity", "last", "teacher")
            cells[-2:] = [change(*pair), relative(*pair)]
        table.add(name, cells, number_collapsed(runs), len(runs))
    return beside_published(table, dataset, "slides")


def poster_table(rows, dataset=None):
    """The layout of the BIRD poster, and the paired change against CKD."""
    shown, chosen = ["AUROC", "F1", "mean-DEO", "max-DEO"], select(alone(rows), POSTER)
    more = ["AUROC, − CKD", "mean-DEO, − CKD", "mean-DEO, change in %"]
    table = Table(["method", *shown, *more])
    for name, runs in chosen.items():
        cells = [cell(runs, METRICS[s][0]) for s in shown] + ["", "", ""]
        if "CKD" in chosen and name != "CKD":
            base = chosen["CKD"]
            cells[-3:-1] = [change(runs, base, metric) for metric in ("auroc", "mean_deo")]
            cells[-1] = relative(runs, base, "mean_deo")
        table.add(name, cells, number_collapsed(runs), len(runs))
    return beside_published(table, dataset, "poster")


def overview_table(rows):
    """Everything on one page: utility, fairness, cost, and the paired difference to CKD."""
    shown = ["top-1", "F1", "AUROC", "worst group", "gap", "ES-AUC", "mean-DEO", "max-DEO"]
    costs = ["parameters", "MB", "ms, one picture", "s of training"]
    table = Table(["method", *shown, "top-1, − CKD", "mean-DEO, − CKD", *costs])
    chosen = comparable(alone(rows))
    teacher = next((r for r in chosen.values() if all("teacher" in x for x in r.values())), None)
    lines = [(name, runs, "last") for name, runs in chosen.items()]
    for name, runs, rule in [("*the teacher*", teacher, "teacher"), *lines]:
        if runs is None:
            continue
        cells = [cell(runs, METRICS[s][0], rule) for s in shown] + ["", ""]
        if "CKD" in chosen and name != "CKD" and rule == "last":
            cells[-2:] = [change(runs, chosen["CKD"], m) for m in ("accuracy", "mean_deo")]
        model, last = next(iter(runs.values()))[rule], rule == "last"
        times = [result["times"] for result in runs.values()]
        seconds = [sum(t["epochs"]) if last else t["teacher"] for t in times]
        latency = f"{np.median([t['cpu_latency_ms'] for t in times]):.2f}" if last else ""
        costs = [f"{model['parameters']:,}", f"{model['megabytes']:.2f}", latency]
        costs.append(f"{np.median(seconds):.0f}")
        table.add(name, [*cells, *costs], number_collapsed(runs, rule), len(runs), last)
    return table


def sweep(rows, script="adversarial_kd", setting="adversary_weight", base=0.0):
    """{value: {key: result}} of runs of a script that differ in one setting alone, by its value.

    {} without a run at `base`, or with fewer than three values.
    """
    found = {}
    for runs in rows.values():
        result = next(iter(runs.values()))
        if result["method"] == script and not own_settings(result).keys() - {setting}:
            found[result["settings"][setting]] = runs
    return dict(sorted(found.items())) if base in found and len(found) > 2 else {}


def temperatures(rows):
    """{T: {key: result}} of ckd.py where nothing but T differs."""
    return sweep(rows, "ckd", "temperature", 1.0)


def alone(rows):
    """`rows` without those that stand in the table of a sweep alone.

    ## Where the usual adversary is too strong to be of use, a weaker one stands beside it.
    """
    own = [id(runs) for choose in (sweep, temperatures) for runs in choose(rows).values()]
    usual_one, weaker = rows.get("adversarial KD", {}), rows.get("adversarial KD, λ = 0.5", {})
    if usual_one and number_collapsed(usual_one) == len(usual_one):
        own = [mark for mark in own if mark != id(weaker)]
    return {
        name: runs for name, runs in rows.items() if name in NAMES.values() or id(runs) not in own
    }


def sweep_table(rows):
    """The strength of the adversary, paired with λ = 0: which one buys fairness for little?"""
    shown = ["top-1", "AUROC", "disparity", "mean-DEO"]
    more = ["top-1, λ − 0", "disparity, λ − 0", "disparity, change in %", "30 % for 1 point"]
    table, chosen = Table(["λ", *shown, *more]), comparable(sweep(rows))
    for strength, runs in chosen.items():
        cells = [cell(runs, METRICS[s][0]) for s in shown] + [""] * 4
        bad = number_collapsed(runs)
        if strength:
            cells[-4:-2] = [change(runs, chosen[0.0], m) for m in ("accuracy", "disparity")]
            cells[-2] = relative(runs, chosen[0.0], "disparity")
            enough = cells[-2].point <= -30 and cells[-4].point >= -1 and not bad
            cells[-1] = "yes" if enough else "no"
        table.add(f"{strength:g}", cells, bad, len(runs))
    return table


def temperature_table(rows):
    """T of CKD, paired with T = 1 and with the teacher: is the student of a softer one fairer?"""
    shown = ["top-1", "AUROC", "mean-DEO", "parity"]
    more = ["top-1, T − 1", "mean-DEO, T − 1", "parity, T − 1", "parity, − teacher"]
    table, chosen = Table(["T", *shown, *more]), comparable(temperatures(rows))
    parity = METRICS["parity"][0]
    for temperature, runs in chosen.items():
        if not table.rows:
            add_teacher(table, runs, shown)
        cells = [cell(runs, METRICS[s][0]) for s in shown] + [""] * 3
        if temperature != 1:
            measures = ("accuracy", "mean_deo", parity)
            cells[-3:] = [change(runs, chosen[1.0], m) for m in measures]
        cells.append(change(runs, runs, parity, "last", "teacher"))
        table.add(f"{temperature:g}", cells, number_collapsed(runs), len(runs))
    return table


# ----- what the papers claim, on every data set ---------------------------------------------------

## The claim; whose rows, at the usual settings and, where it ran, at a weaker one; against which
## row, or the student's own teacher; in which metric; 1 if it shall rise, -1 if it shall fall.
CLAIMS = (
    ("slides: a student is less fair than its teacher", ("CKD",), "teacher", "disparity", 1),
    (
        "adversarial KD: less disparity than CKD",
        ("adversarial KD", "adversarial KD, λ = 0.5"),
        "CKD",
        "disparity",
        -1,
    ),
    (
        "BIRD: lower mean-DEO than CKD",
        ("BIRD", "BIRD, μ = 0.3", "BIRD, μ = 0.1"),
        "CKD",
        "mean-DEO",
        -1,
    ),
    ("BIRD: AUROC not below CKD's", ("BIRD", "BIRD, μ = 0.3", "BIRD, μ = 0.1"), "CKD", "AUROC", 1),
    ("FairDi: higher AUROC in the worst group than ERM", ("FairDi",), "ERM", "worst group", 1),
    ("FairTune: smaller gap than full fine-tuning", ("FairTune",), "full fine-tuning", "gap", -1),
    (
        "Mohammadshahi and Ioannou: T = 20 fairer than T = 1",
        ("CKD, T = 20",),
        "CKD, T = 1",
        "parity",
        -1,
    ),
    (
        "Mohammadshahi and Ioannou: at T = 20 fairer than the teacher",
        ("CKD, T = 20",),
        "teacher",
        "parity",
        -1,
    ),
)


def named(dataset, label):
    return ", ".join(filter(None, [dataset, *label.split("-")])).replace("_", " ")


def claims_table(found):
    """Each claim on each data set that has its rows: confirmed, contradicted, or undecided."""
    table = Table(["claim", "data set", "over", "difference", "verdict"])
    for claim, names, against, shown, sign in CLAIMS:
        for ((dataset, label), rows), name in itertools.product(found.items(), names):
            runs = rows.get(name, {})
            base = runs if against == "teacher" else rows.get(against, {})
            if not runs.keys() & base.keys():
                continue
            rule = "teacher" if against == "teacher" else "last"
            folded = label.startswith("folds")
            value, count = paired_over(runs, base, METRICS[shown][0], rule, folded)
            low, high = sorted((sign * value.low, sign * value.high))
            verdict = "confirmed" if low > 0 else "contradicted" if high < 0 else "undecided"
            if number_collapsed(runs):
                verdict += f", but {number_collapsed(runs)} of {len(runs)} runs collapsed"
            weaker = "" if name == names[0] else f" ({name.partition(', ')[2]})"
            table.add(claim + weaker, [named(dataset, label), count, value, verdict])
    return table


def inflation_table(found):
    """Disparity of every student minus its own teacher's, on every data set with teachers."""
    taught = {
        place: {k: runs for k, runs in rows.items() if all("teacher" in r for r in runs.values())}
        for place, rows in found.items()
    }
    taught = {place: rows for place, rows in taught.items() if rows}
    table = Table(["student by", *(named(*place) for place in taught)])
    names = dict.fromkeys([*NAMES.values(), *(name for _, names, *_ in CLAIMS for name in names)])
    for name in names:
        if not any(name in rows for rows in taught.values()):
            continue
        cells = []
        for (_, label), rows in taught.items():
            runs, folded = rows.get(name, {}), label.startswith("folds")
            value = paired_over(runs, runs, "disparity", "teacher", folded)[0] if runs else ""
            cells.append(f"{value} (collapsed)" if number_collapsed(runs) else value)
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
    if not runs.keys() & base.keys():
        return
    folded = place[1].startswith("folds")
    cells = [paired_over(runs, base, METRICS[s][0], "last", folded) for s in table.header[3:]]
    table.add(name, [named(*place), cells[0][1], *(value for value, _ in cells)])


def pairs_table(found):
    """Paired differences of PAIRS on every data set: what one part of a method does."""
    shown = ["top-1", "AUROC", "worst group", "gap", "mean-DEO", "disparity"]
    table = Table(["pair", "data set", "over", *shown], better={})
    for pair, (place, rows) in itertools.product(PAIRS, found.items()):
        parts = [rows.get(name, {}) for name in pair]
        marks = [f"{n} (collapsed)" if number_collapsed(r) else n for n, r in zip(pair, parts)]
        name = " − ".join(marks)
        add_difference(table, name, place, *parts)
    return table


def repeated_table(found, repeated):
    """The same command on another processor, minus the first time: what rounding changes.

    ## Sums are rounded in another order there; after some thousand steps it is another training.
    ## So these differences are also how far two trainings lie apart, which no bootstrap over test
    ## pictures shows. CelebA's committed pictures carry numbers drawn anew each time: not paired.
    """
    shown = ["AUROC", "worst group", "gap", "ES-AUC", "mean-DEO", "disparity"]
    table = Table(["row", "data set", "over", *shown], better={})
    for place, rows in repeated.items():
        if place[0] == "celeba":
            continue
        for name, runs in rows.items():
            add_difference(table, name, place, runs, found.get(place, {}).get(name, {}))
    return table


def command_of(dataset, label, runs):
    """The command that makes `runs`, a list of results of one data set and the same conditions.

    It is a command for what run_all.sh lists; other settings of a row are not in it.
    """
    most = [r for r in runs if r["method"] not in OWN_NETWORKS] or runs
    first = most[0]
    used, single, folds = {r["method"] for r in runs}, len(runs) == 1, label.startswith("folds")
    flags = unusual(first, ("sensitive",) if folds and not single else ())  # the list has all
    if single:
        fold = first["settings"]["fold"]
        flags |= own_settings(first) | ({} if fold is None else {"fold": fold})
    words = []
    for k, v in flags.items():
        words.append(f"--{'no-' if v is False else ''}{k}".replace("_", "-"))
        words += [] if isinstance(v, bool) else [shlex.quote(f"{v}")]
    where = [] if dataset == "toy" else ["--dataset", dataset, "--data-dir", "DIR"]
    if single:
        seed = ["--seed", f"{first['settings']['seed']}"]
        return " ".join(["python", f"methods/{first['method']}.py", *where, *seed, *words])
    parts = ["bash", "run_all.sh", *where]
    if not folds:
        parts += ["--seeds", f"{max(r['settings']['seed'] for r in most) + 1}"]
    if where and "fairtune" in used:
        parts += ["--source-dir", "DIR2"]
    if used != {path.stem for path in (ROOT / "methods").glob("*.py")}:
        parts += ["--only", *sorted(used)]
    return " ".join([*parts, *(["--", *words] if words else [])])


def hours_of(runs):
    """What `runs`, a list of results, took: each teacher once, whoever trained it."""
    taught = {
        (r["settings"]["fold"], r["settings"]["seed"]): r["times"]["teacher"]
        for r in runs
        if "teacher" in r
    }
    hours = 0
    for times in (result["times"] for result in runs):
        ## The total of the run that trained the teacher has the teacher in it.
        trained = times["total"] > times["teacher"] + sum(times["epochs"])
        hours += times["total"] - (times["teacher"] if trained else 0)
    return (hours + sum(taught.values())) / 3600


def made_table(found):
    """The command behind each group of runs, how many they are, what they took, and where."""
    table = Table(["data set", "command", "runs", "hours", "made on"])
    for (dataset, label), rows in found.items():
        runs = [run for name, row in rows.items() if name != "FIS" for run in row.values()]
        devices = ", ".join(dict.fromkeys(r["times"]["device"] for r in runs))
        versions = ", ".join(sorted({r["times"]["torch"].partition("+")[0] for r in runs}))
        cells = [f"`{command_of(dataset, label, runs)}`", str(len(runs)), f"{hours_of(runs):.1f}"]
        table.add(named(dataset, label), [*cells, f"{devices} torch {versions}"])
    return table


# ----- the results of the README, on all data sets ------------------------------------------------

HEADLINE = ["ERM", "re-balancing", "CKD", "RKD", "CTKD", "KD++", "FitNet", "AT", "adversarial KD"]
HEADLINE += ["AD", "MFD", "BIRD", "GroupDRO by class", "SWAD", "FairDi", "FairTune"]
WEAKER = {"adversarial KD": (", λ = 0.5",), "AD": (", λ = 0.5",), "BIRD": (", μ = 0.3",)}


def headline_table(found):
    """AUROC / worst group / mean-DEO of all methods on four data sets, one column each.

    Where all students of a method have collapsed at its usual setting, the weaker one is shown.
    """
    small = "teacher_convnet16-student_convnet8-epochs_"
    places = {"toy": ("toy", ""), "HAM10000, sex": ("ham10000", f"folds-{small}6")}
    places |= {"CIFAR10-S": ("cifar10s", f"{small}5")}
    places |= {"CelebA, attractive": ("celeba", "teacher_resnet18-student_convnet8-epochs_5")}
    places = {title: place for title, place in places.items() if place in found}
    table = Table(["method", *places], better={})
    for name in HEADLINE:
        cells = []
        for dataset, label in places.values():
            rows, title = found[dataset, label], name
            runs = rows.get(name, {})
            for weaker in WEAKER.get(name, ()):
                if number_collapsed(runs) == len(runs) and name + weaker in rows:
                    runs, title = rows[name + weaker], weaker.strip(", ")
            shown = "AUROC", "worst group", "mean-DEO"
            if not runs:
                cells.append("")
                continue
            if label.startswith("folds"):
                together = scores(runs, "last", folds_of(runs))
                parts = [measured(together, METRICS[s][0]) for s in shown]
            else:
                parts = [cell(runs, METRICS[s][0]) for s in shown]
            bad = number_collapsed(runs)
            marks = [f"{title}"] if title != name else []
            marks += [f"{bad} of {len(runs)} collapsed"] if bad else []
            text = " / ".join(f"{part.point:.1f}" for part in parts)
            cells.append(f"{text} ({', '.join(marks)})" if marks else text)
        if any(cells):
            table.add(name, cells)
    return table


# ----- pages --------------------------------------------------------------------------------------

KINDS = {  # the end of a table's name: its title, in the order of a page
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
ACROSS = {
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


def tables(found, repeated):
    """{(place, kind): Table} of all tables that the results give; and {(place, kind): why not}.

    place      (data set, conditions), or a text for tables across data sets
    repeated   `found` of results of the same commands on another processor
    """
    made, refused = {}, {}

    def make(place, kind, work, *args):
        try:
            result = work(*args)
            parts = result if isinstance(result, dict) else {"": result}
            made.update({(place, kind + end): part for end, part in parts.items() if part.rows})
        except Refused as error:
            refused[place, kind] = str(error)

    for (dataset, label), rows in found.items():
        place = dataset, label
        if sum(name in rows for name in SLIDES) > 1:
            make(place, "slides", slides_table, rows, dataset)
        if sum(name in rows for name in POSTER) > 1:
            make(place, "poster", poster_table, rows, dataset)
        if label.startswith("folds"):
            make(place, "pooled", pooled_tables, alone(rows), {"last": ""})
            chosen = {name: rows[name] for name in FAIRDI if name in rows}
            if len(chosen) > 1:
                points = {rule: f", {words}" for rule, words in POINTS.items()}
                make(place, "fairdi", pooled_tables, chosen, points)
        else:
            make(place, "overview", overview_table, rows)
        make(place, "sweep", sweep_table, rows)
        make(place, "temperature", temperature_table, rows)
    make("all", "claims", claims_table, found)
    make("all", "inflation", inflation_table, found)
    make("all", "pairs", pairs_table, found)
    make("all", "repeated", repeated_table, found, repeated)
    make("all", "repeated-claims", claims_table, repeated)
    make("all", "repeated-inflation", inflation_table, repeated)
    make("all", "repeated-pairs", pairs_table, repeated)
    for place, rows in repeated.items():
        if place[1].startswith("folds"):
            make(place, "repeated-pooled", pooled_tables, rows, {"last": ""})
    make("all", "made", made_table, found)
    return made, refused


def pages(found, made, captions):
    """{file name: Markdown}: a page for each data set, and claims.md for what concerns them all.

    captions    {(data set, conditions): {file name of a figure: its caption}}, "all" for the others
    """

    def figures_of(place):
        return [f"![{c}]({name})\n\n*{c}*" for name, c in captions.get(place, {}).items()]

    texts = {}
    commands = {(row[0]): row[1:] for row in made["all", "made"].rows}
    for dataset, label in found:
        command, count, hours, machine = commands[named(dataset, label)]
        text = [f"## {named(dataset, label)}"]
        text.append(f"{count} runs, {hours} hours on {machine}, of {command}.")
        for kind, title in KINDS.items():
            if ((dataset, label), kind) in made:
                text += [f"### {title}", made[(dataset, label), kind].markdown()]
        texts.setdefault(f"{dataset}.md", []).extend(text + figures_of((dataset, label)))
    text = []
    for kind, title in ACROSS.items():
        for (place, _), table in ((k, table) for k, table in made.items() if k[1] == kind):
            where = "" if place == "all" else f" ({named(*place)})"
            text += [f"## {title}{where}", table.markdown()]
    texts["claims.md"] = text + figures_of("all")
    first = "Made by `python report.py`; what the columns and intervals mean stands at its top."
    return {
        name: "\n\n".join([f"# Results: {name.removesuffix('.md')}", first, *text]) + "\n"
        for name, text in texts.items()
    }


# ----- figures ------------------------------------------------------------------------------------

COMMITTED = [  # the figures of the packed results; your own results get all of them
    "toy-gallery.png",
]


def two_points(rows, folded):
    """{row: {rule: AUROC, gap and group AUROCs in percent}} for FairDi's figure."""
    found = {}
    for name in TWO_POINTS:
        for rule in POINTS if name in rows else ():
            runs = rows[name]
            if folded:
                point = scores(runs, rule, folds_of(runs))["point"]
                each = [point["auroc"], point["auroc_gap"], *point["group_auroc"]]
            else:
                tests = [result[rule]["test"] for result in runs.values()]
                each = np.mean(
                    [
                        [test["auroc"], test["auroc_gap"], *(g["auroc"] for g in test["groups"])]
                        for test in tests
                    ],
                    axis=0,
                )
            whole, gap, *groups = (100 * float(v) for v in each)
            found.setdefault(name, {})[rule] = {"auroc": whole, "gap": gap, "groups": groups}
    return found


def rank_blocks(found, metric):
    """Names and (N, k) values, higher is better, of the rows that every run has.

    A run is a seed or a fold of a data set. FairDi's paper claims the best rank, so that those
    without it are left out; the toy counts alone or not at all. What does not look at groups counts
    a fold once, not for each of its attributes. What is undefined ranks last.
    """
    name_of, sign = METRICS[metric]
    runs = {}
    for place, rows in found.items():
        for name in NAMES.values():
            for key, result in rows.get(name, {}).items():
                runs.setdefault((*place, key), {})[name] = result["last"]["test"]
    runs = {place: tests for place, tests in runs.items() if "FairDi" in tests} or runs
    runs = {place: tests for place, tests in runs.items() if place[0] != "toy"} or runs
    if metric in UTILITY:
        runs = {place: t for place, t in runs.items() if "sensitive_" not in place[1]} or runs
    names = [name for name in NAMES.values() if all(name in tests for tests in runs.values())]

    def score(test):  # a collapsed run ranks last in fairness
        bad = test[name_of] is None or (collapsed(test) and metric not in UTILITY)
        return -np.inf if bad else sign * test[name_of]

    return names, np.array([[score(tests[name]) for name in names] for tests in runs.values()])


def draw(found, folder, wanted, data_dir):
    """Draw the figures that the results give; {place: {file name: caption}}.

    wanted    names of the only files to draw; empty: all of them
    """
    captions = {}

    def make(place, name, work, *args):
        if not wanted or name in wanted:
            caption = work(*args, folder / name)
            if caption:
                captions.setdefault(place, {})[name] = caption

    for (dataset, label), rows in found.items():
        place, where = (dataset, label), named(dataset, label)
        stem = "-".join(filter(None, place))
        useful = {name: runs for name, runs in rows.items() if number_collapsed(runs) < len(runs)}
        make(place, f"{stem}-gallery.png", figures.gallery, useful, where, data_dir)
        make(place, f"{stem}-disparity.png", figures.per_class, useful, where)
        make(place, f"{stem}-training.png", figures.training, rows, where)
        make(place, f"{stem}-masks.png", figures.fairtune_masks, rows, where)
        points = two_points(rows, label.startswith("folds"))
        if len(points) > 2:
            names = next(run for runs in rows.values() for run in runs.values())["group_names"]
            make(place, f"{stem}-two-points.png", figures.two_points, points, names, where)
        for kind, choose in (("sweep", sweep), ("temperature", temperatures)):
            try:
                chosen = comparable(choose(rows))
            except Refused:  # `tables` has said why
                continue
            bad = [number_collapsed(runs) > 0 for runs in chosen.values()]
            if chosen:
                make(place, f"{stem}-{kind}.png", figures.sweep, chosen, kind, bad, where)
            if chosen and kind == "sweep":
                make(place, f"{stem}-sweep-3d.png", figures.sweep_3d, chosen, bad, where)
    for metric in ("AUROC", "worst group", "mean-DEO"):
        names, numbers = rank_blocks(found, metric)
        if len(names) > 2 and len(numbers) > 1:
            name = f"ranks-{metric.replace(' ', '-')}.png"
            make("all", name, figures.critical_difference, names, numbers, metric)
    return captions


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="runs", help="folder of results, fresh or packed")
    parser.add_argument("--pack", action="store_true", help="add the results to those in results/")
    parser.add_argument("--data-dir", help="folder of the pictures, for a gallery of real ones")
    args = parser.parse_args()
    if args.pack:
        pack(args.results, ROOT / "results")
        return print(f"packed {args.results} into {ROOT / 'results'}")
    source = Path(args.results)
    found, repeated = collect(source), collect(source / "again")
    if not found:
        raise Refused(f"{source} holds no results: run a script first, or run_all.sh")
    packed = any(source.glob("*.jsonl"))
    folder = source if packed else source / "report"
    folder.mkdir(exist_ok=True)
    made, refused = tables(found, repeated)
    captions = draw(found, folder, COMMITTED if packed else (), args.data_dir)
    texts = pages(found, made, captions)
    for name, text in texts.items():
        save(folder / name, text)
    print(f"wrote {', '.join(texts)} and {sum(map(len, captions.values()))} figures to {folder}")
    if packed and source.resolve() == ROOT / "results":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        save(ROOT / "README.md", fill(readme, headline_table(found).markdown()))
    if refused:
        lines = [f"no table {kind} of {place}: {why}" for (place, kind), why in refused.items()]
        raise Refused("\n".join(lines))


def fill(text, table):
    """A README with its one generated table made anew."""
    start, end = "<!-- table results -->\n", "\n<!-- end -->"
    if start not in text or end not in text:
        raise Refused(f"README.md has no place for the table, {start.strip()} ... {end.strip()}")
    before, rest = text.split(start, 1)
    return before + start + table + end + rest.split(end, 1)[1]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"report.py: {error}")
