"""Result files to tables and figures: nothing here is typed by hand but the published numbers.

    python report.py                                         of results/, into results/tables/
    python report.py --results results/reference --readme    and the tables of both README.md
    python report.py --diff ckd bird                         two scripts side by side, as HTML

results/reference/ holds the result files behind README.md; your own runs go to results/.

What a row is, and how two of them are compared, is in compare.py. In a table:

    mean ± half          over seeds or folds: half of the 95 % interval of the mean (Student's t)
    value [low, high]    of one test set: 95 % bootstrap interval over its subjects (lesions,
                         persons); for a change in percent of a mean over seeds, Fieller's interval
    bold                 the best of a column. A collapsed run (a class never predicted, a group
                         answered with one class, or macro recall within 5 points of chance) is
                         marked and cannot be best in fairness: equally useless is not fair
"""

import argparse
import ast
import csv
import difflib
import functools
import importlib
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np

from compare import (
    METRICS,
    NAMES,
    OWN_NETWORKS,
    POINTS,
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
    paired,
    paired_over,
    relative,
    scores,
    select,
    unfinished,
    unusual,
)
from readers import InputError, atomic, make_folder

ROOT = Path(__file__).resolve().parent
SLIDES = ["ERM", "CKD", "CKD, T = 1", "RKD", "CTKD", "KD++", "FitNet", "AT", "re-balancing"]
POSTER = ["ERM", "CKD", "FitNet", "AT", "AD", "MFD", "BIRD", "BIRD, gates fixed", "BIRD, μ = 0.1"]
POSTER += ["BIRD, μ = 0.3", "adversarial KD", "adversarial KD, λ = 0.5", "re-balancing"]
FAIRDI = ["ERM", "re-balancing", "GroupDRO", "SWAD", "FIS", "FairDi", "FairTune"]
## What the papers print, in percent, for the data set of the paper: their columns, then their rows
## under our names. Nothing else in this file is a number from elsewhere.
PUBLISHED = {
    ("cifar10s", "poster"): (
        "published: poster of BIRD (Java et al. 2023), ResNet-18 to ResNet-18, five runs; its skew "
        "of the training set, epochs and learning rates are not published",
        ["AUROC", "F1", "mean-DEO", "max-DEO"],
        {
            "ERM": (98.91, 88.34, 26.26, 47.94),
            "CKD": (98.95, 88.90, 25.30, 46.92),
            "FitNet": (98.89, 88.15, 26.55, 48.86),
            "AT": (98.99, 88.95, 25.16, 46.08),
            "AD": (98.44, 85.98, 16.20, 31.94),
            "MFD": (98.93, 88.32, 27.27, 49.16),
            "BIRD": (99.12, 89.45, 19.77, 38.26),
        },
    ),
    ("celeba", "poster"): (
        "published: poster of BIRD (Java et al. 2023), teacher CLIP-R50, five runs; which "
        "attributes are target and group, and the student's network, are not published",
        ["AUROC", "mean-DEO", "max-DEO"],
        {
            "ERM": (87.72, 21.11, 21.97),
            "CKD": (87.72, 21.10, 22.07),
            "FitNet": (87.54, 22.01, 23.30),
            "AD": (88.51, 5.33, 7.93),
            "MFD": (87.49, 22.56, 23.52),
            "BIRD": (87.93, 2.65, 4.49),
        },
    ),
    ("wider", "slides"): (
        "published: slides of W210 (Bolner et al. 2023), EfficientNet-B3 to B0, one run each, "
        "another split than the official one, recall, precision and F1 weighted by class; in its "
        "public code the teacher has no part in the students of CKD, CTKD and KD++",
        ["top-1", "recall", "precision", "F1", "disparity"],
        {
            "CKD": (65.0, 65.0, 65.0, 64.7, 9.8),
            "RKD": (65.6, 65.6, 65.7, 65.2, 12.3),
            "CTKD": (63.7, 63.7, 64.2, 63.4, 12.3),
            "KD++": (59.6, 59.6, 60.6, 59.6, 11.0),
        },
    ),
}


# ==================================================================================================
# Tables
# ==================================================================================================


class Table:
    """Rows of texts and Values under a header, as Markdown and as CSV."""

    def __init__(self, header, better=None):
        self.header, self.rows, self.barred, self.out, self.note = header, [], set(), set(), ""
        self.better = {k: v[1] for k, v in METRICS.items()} if better is None else better

    def add(self, name, cells, bad=0, of=1, ranked=True):
        """A row. `bad` of its `of` runs have collapsed; an unranked row is never bold."""
        note = f" ({bad} of {of} collapsed)" if of > 1 else " (collapsed)"
        self.barred |= {len(self.rows)} if bad else set()
        self.out |= set() if ranked else {len(self.rows)}
        self.rows.append([name + note * bool(bad), *cells])

    def best(self):
        """{(row, column)} of the best values: collapsed rows cannot be best in fairness."""
        found = set()
        for c, column in enumerate(self.header):
            barred = self.out | (set() if column in UTILITY else self.barred)
            points = {
                r: self.better[column] * row[c].point
                for r, row in enumerate(self.rows)
                if column in self.better and r not in barred and isinstance(row[c], Value)
                and not np.isnan(row[c].point)
            }  # fmt: skip
            if len(self.rows) - len(self.out) > 1:
                found |= {(r, c) for r, point in points.items() if point == max(points.values())}
        return found

    def markdown(self):
        best, lines = self.best(), [self.header, ["---"] * len(self.header)]
        for r, row in enumerate(self.rows):
            cells = [str(cell) for cell in row]
            lines.append([f"**{t}**" if (r, c) in best else t for c, t in enumerate(cells)])
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return text + f"\n\n*{self.note}*" * bool(self.note)

    def csv(self, path):
        """One column for a text, three (value, low, high) for Values, with all digits."""
        wide = [any(isinstance(row[c], Value) for row in self.rows)
                for c in range(len(self.header))]  # fmt: skip
        spread = lambda cells: [x for cell in cells for x in cell]
        with atomic(path) as temporary, open(temporary, "w", newline="") as handle:
            write = csv.writer(handle, lineterminator="\n").writerow
            write(spread([h, f"{h} low", f"{h} high"] if w else [h]
                         for h, w in zip(self.header, wide)))  # fmt: skip
            for row in self.rows:
                cells = [[f"{x:.6g}" for x in v[:3]] if isinstance(v, Value) else [v] for v in row]
                write(spread(c if len(c) == 3 or not w else [*c, "", ""]
                             for c, w in zip(cells, wide)))  # fmt: skip


def beside_published(table, dataset, kind):
    """The table with the paper's columns and their source, where the data set is the paper's."""
    if (dataset, kind) in PUBLISHED:
        table.note, columns, printed = PUBLISHED[dataset, kind]
        table.header += [f"{column}, published" for column in columns]
        for row in table.rows:
            name = row[0].partition(" (")[0]
            row += [f"{v:.1f}" for v in printed[name]] if name in printed else [""] * len(columns)
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


# ==================================================================================================
# Tables of the papers, and everything on one page
# ==================================================================================================


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
    for name, runs, rule in [("*the teacher*", teacher, "teacher")] * bool(teacher) + [
        (name, runs, "last") for name, runs in chosen.items()
    ]:
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


# ==================================================================================================
# What the papers claim, on every data set
# ==================================================================================================

## The claim; whose rows, at the usual settings and, where it ran, at a weaker one; against which
## row, or the student's own teacher; in which metric; 1 if it shall rise, -1 if it shall fall.
CLAIMS = (
    ("slides: a student is less fair than its teacher", ("CKD",), "teacher", "disparity", 1),
    ("adversarial KD: less disparity than CKD", ("adversarial KD", "adversarial KD, λ = 0.5"),
     "CKD", "disparity", -1),
    ("BIRD: lower mean-DEO than CKD", ("BIRD", "BIRD, μ = 0.3", "BIRD, μ = 0.1"), "CKD",
     "mean-DEO", -1),
    ("BIRD: AUROC not below CKD's", ("BIRD", "BIRD, μ = 0.3", "BIRD, μ = 0.1"), "CKD", "AUROC", 1),
    ("FairDi: higher AUROC in the worst group than ERM", ("FairDi",), "ERM", "worst group", 1),
    ("FairTune: smaller gap than full fine-tuning", ("FairTune",), "full fine-tuning", "gap", -1),
    ("Mohammadshahi and Ioannou: T = 20 fairer than T = 1", ("CKD, T = 20",), "CKD, T = 1",
     "parity", -1),
    ("Mohammadshahi and Ioannou: at T = 20 fairer than the teacher", ("CKD, T = 20",), "teacher",
     "parity", -1),
)  # fmt: skip


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
    ("adversarial KD, λ = 0.5", "CKD"), ("BIRD", "BIRD, gates fixed"), ("FairDi", "CKD"),
    ("FairDi", "FIS"), ("FairDi", "FairDi, no teachers"), ("FairDi, no teachers", "FIS"),
    ("FairTune", "full fine-tuning"), ("linear probe", "full fine-tuning"),
)  # fmt: skip


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
        name = " − ".join(f"{name}{' (collapsed)' * (number_collapsed(runs) > 0)}"
                          for name, runs in zip(pair, parts))  # fmt: skip
        add_difference(table, name, place, *parts)
    return table


AGAIN = "another-processor"  # the folder with results of commands that were run once more


def again_table(found, again):
    """The same command on another processor, minus the first time: what rounding changes.

    ## Sums are rounded in another order there; after some thousand steps it is another training.
    ## So these differences are also how far two trainings lie apart, which no bootstrap over test
    ## pictures shows. CelebA's committed pictures carry numbers drawn anew each time: not paired.
    """
    shown = ["AUROC", "worst group", "gap", "ES-AUC", "mean-DEO", "disparity"]
    table = Table(["row", "data set", "over", *shown], better={})
    for place, rows in again.items():
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
    flags = unusual(first, ("sensitive",) if folds and not single else ())  # it takes all of them
    if single:
        fold = first["settings"]["fold"]
        flags |= own_settings(first) | ({} if fold is None else {"fold": fold})
    words = []
    for k, v in flags.items():
        words.append(f"--{'no-' * (v is False)}{k}".replace("_", "-"))
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
    taught = {(r["settings"]["fold"], r["settings"]["seed"]): r["times"]["teacher"]
              for r in runs if "teacher" in r}  # fmt: skip
    ## The total of the run that trained the teacher has the teacher in it.
    own = lambda t: t["total"] - t["teacher"] * (t["total"] > t["teacher"] + sum(t["epochs"]))
    return (sum(own(r["times"]) for r in runs) + sum(taught.values())) / 3600


def made_table(found):
    """The command behind each group of runs, how many they are, what they took, and where."""
    table = Table(["data set", "command", "runs", "hours", "made on"])
    for (dataset, label), rows in found.items():
        ## By file: FairDi and its step 0, FIS, are two rows of one run.
        runs = [*{r["npz"]: r for row in rows.values() for r in row.values()}.values()]
        devices = ", ".join(dict.fromkeys(r["times"]["device"] for r in runs))
        versions = ", ".join(sorted({r["times"]["torch"].partition("+")[0] for r in runs}))
        cells = [f"`{command_of(dataset, label, runs)}`", str(len(runs)), f"{hours_of(runs):.1f}"]
        table.add(named(dataset, label), [*cells, f"{devices} torch {versions}"])
    return table


def speeds(folder):
    """{name: content} of the files of tests/speed.py in `folder` that compare loops."""
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: run for name, run in runs.items() if "ratios" in run}


def speed_table(folder):
    """The training loop beside others: a column for each file of tests/speed.py."""
    runs = {name: run["ratios"] for name, run in speeds(folder).items()}
    table = Table(["quotient of rates", "at least", *runs])
    for name in next(iter(runs.values()), {}):
        parts = [ratios[name] for ratios in runs.values()]
        cells = [f"{p['median']:.2f} [{p['min']:.2f}, {p['max']:.2f}]" for p in parts]
        table.add(name, [f"{parts[0]['target'] or ''}", *cells])
    return table


def data_table(folder):
    """From files to batches: a row for each file of tests/speed.py."""
    rates = ["data path, images/s", "student's step, images/s", "quotient"]
    sizes = ["train / val / test", "pixels a side", "decoding, CPU s", "MB decoded"]
    table = Table(["data set", "pictures", *sizes, *rates])
    for name, run in speeds(folder).items():
        if name != run["dataset"]:  # other networks or threads, the same pictures
            continue
        data, speed = run["data"], run["images_per_cpu_second"]
        parts = " / ".join(f"{n:,}" for n in data["splits"].values())
        seconds = data.get("decoding_cpu_seconds")
        cells = [f"{data['pictures']:,}", parts, str(run["image_size"])]
        cells += ["drawn" if seconds is None else f"{seconds:.0f}", f"{data['megabytes']:.0f}"]
        cells += [f"{speed[loop]['median']:,.0f}" for loop in ("E data", "C bare")]
        cells.append(f"{run['ratios']['E data / C bare']['median']:.0f}")
        table.add(run["dataset"], cells)
    return table


GROWS = {  # what is varied in scaling.json: the name of its values, and what is measured
    "pictures": ("n", {
        "order_seconds": "order of an epoch, s", "data_microseconds": "data path, µs a picture",
        "hash_seconds": "hash of all pixels, s", "megabytes": "memory, MB",
        "file_megabytes": "pixels on disk, MB",
    }),
    "size": ("side", {
        "step_microseconds": "student's step, µs a picture",
        "teacher_microseconds": "teacher's answer, µs a picture",
        "data_microseconds": "data path, µs a picture",
        "activation_megabytes": "activations of a batch, MB",
    }),
    "groups": ("n", {"metrics_seconds": "metrics, s", "intervals_seconds": "with intervals, s"}),
    "classes": ("n", {
        "step_microseconds": "student's step, µs a picture", "metrics_seconds": "metrics, s",
        "intervals_seconds": "with intervals, s",
    }),
}  # fmt: skip


def scaling_table(folder):
    """How cost grows, from scaling.json: the last column is b of cost ~ size^b, least squares."""
    table = Table(["what grows", "values", "cost", "measured", "power"])
    path = folder / "scaling.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    number = lambda x: f"{x:,.0f}" if abs(x) >= 100 else f"{x:.2g}"
    for what, (key, costs) in GROWS.items() if found else ():
        sizes = [row[key] for row in found[what]]
        for cost, label in costs.items():
            values = [row[cost] for row in found[what]]
            logs = np.log(np.maximum([sizes, values], 1e-9))
            cells = [" / ".join(f"{n:,}" for n in sizes), label]
            cells += [" / ".join(number(v) for v in values), f"{np.polyfit(*logs, 1)[0]:.2f}"]
            table.add(what, cells)
    return table


def profile_table(folder):
    """Where a step of some methods goes, from profile.json."""
    table = Table(["method", "ms a step", "of CKD's", "its five dearest operators"])
    path = folder / "profile.json"
    steps = json.loads(path.read_text())["steps"] if path.exists() else {}
    for name, row in steps.items():
        parts = ", ".join(f"{key} {share:.0%}" for key, share in row["operators"].items())
        times = row["milliseconds"] / steps["CKD"]["milliseconds"]
        table.add(name, [f"{row['milliseconds']:.1f}", f"{times:.1f}", parts])
    return table


def gates_table():
    """How far each script is from ckd.py, as Markdown, from the side-by-side test."""
    sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("test_side_by_side").table()


def sources_table():
    """What each script implements, as Markdown, from the first sentences of its header."""
    table = Table(["script", "source"])
    for path in sorted((ROOT / "methods").glob("*.py")):
        header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0]
        table.add(path.name, [" ".join(header.split())])
    return table.markdown()


OF_THE_CODE = {"gates": gates_table, "sources": sources_table}  # need no results


def tables(found, again=None):
    """{name: Table} of all tables that the results give, and {name: why} of the refused ones.

    again    `found` of results of the same commands on another processor
    """
    made, refused, again = {}, {}, again or {}

    def make(name, work, *args):
        try:
            result = work(*args)
            parts = result.items() if isinstance(result, dict) else [("", result)]
            made.update({name + end: table for end, table in parts if table.rows})
        except Refused as error:
            refused[name] = str(error)

    for (dataset, label), rows in found.items():
        name = "-".join(filter(None, [dataset, label]))
        only = lambda names, rows=rows: {k: rows[k] for k in names if k in rows}
        if label.startswith("folds"):
            make(f"{name}-pooled", pooled_tables, alone(rows), {"last": ""})
            points = {rule: f", {words}" for rule, words in POINTS.items()}
            if len(only(FAIRDI)) > 1:
                make(f"{name}-fairdi", pooled_tables, only(FAIRDI), points)
        else:
            make(f"{name}-overview", overview_table, rows)
        if len(only(SLIDES)) > 1:
            make(f"{name}-slides", slides_table, rows, dataset)
        if len(only(POSTER)) > 1:
            make(f"{name}-poster", poster_table, rows, dataset)
        make(f"{name}-sweep", sweep_table, rows)
        make(f"{name}-temperature", temperature_table, rows)
    make("claims", claims_table, found)
    make("inflation", inflation_table, found)
    make("pairs", pairs_table, found)
    make("made", made_table, found)
    make("again", again_table, found, again)
    make("again-claims", claims_table, again)
    make("again-inflation", inflation_table, again)
    make("again-pairs", pairs_table, again)
    for (dataset, label), rows in again.items():
        if label.startswith("folds"):
            make(f"again-{dataset}-{label}", pooled_tables, rows, {"last": ""})
    of_speed = {"speed": speed_table, "data": data_table, "scaling": scaling_table}
    for name, work in {**of_speed, "profile": profile_table}.items():
        make(name, work, ROOT / "results" / "reference" / "speed")
    return made, refused


def fill(text, made):
    """README text with the part between `<!-- table NAME -->` and `<!-- end -->` made anew."""

    def new(match):
        name = match[2]
        if name not in made and name not in OF_THE_CODE:
            raise Refused(f"README asks for the table {name}, there are {', '.join(made)}")
        table = OF_THE_CODE[name]() if name in OF_THE_CODE else made[name].markdown()
        return f"{match[1]}{table}\n{match[3]}"

    return re.sub(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", new, text, flags=re.S)


# ==================================================================================================
# Figures, and two scripts side by side
# ==================================================================================================


def two_points(rows, folded):
    """{row: {rule: AUROC, gap and group AUROCs in percent}} for FairDi's figure."""
    found = {}
    for name in [*FAIRDI, "CKD", "adversarial KD", "BIRD"]:
        for rule in POINTS if name in rows else ():
            runs = rows[name]
            if folded:
                point = scores(runs, rule, folds_of(runs))["point"]
                each = [point["auroc"], point["auroc_gap"], *point["group_auroc"]]
            else:
                tests = [result[rule]["test"] for result in runs.values()]
                of = lambda t: [t["auroc"], t["auroc_gap"], *(g["auroc"] for g in t["groups"])]
                each = np.mean([of(t) for t in tests], 0)
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


def draw(found, folder, results, data_dir):
    """Every figure that the results give, and figures.md, a page with their captions."""
    import figures

    captions = {}
    for (dataset, label), rows in found.items():
        name = "-".join(filter(None, [dataset, label]))
        where = named(dataset, label)
        of_use = {k: runs for k, runs in rows.items() if number_collapsed(runs) < len(runs)}
        plan = {
            "disparity": (figures.per_class, of_use),
            "training": (figures.training, rows),
            "masks": (figures.fairtune_masks, rows),
            "gallery": (functools.partial(figures.gallery, data_dir=data_dir), of_use),
        }
        points = two_points(rows, label.startswith("folds"))
        if len(points) > 2:
            names = next(r for runs in rows.values() for r in runs.values())["group_names"]
            plan["two-points"] = (functools.partial(figures.two_points, points), names)
        for kind, choose in (("sweep", sweep), ("temperature", temperatures)):
            try:
                chosen = comparable(choose(rows))
            except Refused:  # `tables` has said why
                chosen = {}
            bad = [number_collapsed(runs) > 0 for runs in chosen.values()]
            if chosen:
                plan[kind] = (functools.partial(figures.sweep, chosen, kind), bad)
            if chosen and kind == "sweep":
                plan["sweep-3d"] = (functools.partial(figures.sweep_3d, chosen), bad)
        for kind, (work, what) in plan.items():
            path = folder / f"{name}-{kind}.png"
            captions[path.name] = work(what, where, path)
    for metric in ("AUROC", "worst group", "mean-DEO"):
        names, values_ = rank_blocks(found, metric)
        if len(names) > 2 and len(values_) > 1:
            path = folder / f"ranks-{metric.replace(' ', '-')}.png"
            captions[path.name] = figures.critical_difference(names, values_, metric, path)
    captions = {name: caption for name, caption in captions.items() if caption}
    command = f"python report.py --results {results}" + f" --data-dir {data_dir}" * bool(data_dir)
    pages = [f"![{n}]({n})\n\n{c} Made by `{command}`.\n" for n, c in captions.items()]
    with atomic(folder / "figures.md") as temporary:
        temporary.write_text("\n".join(pages), encoding="utf-8")
    print(f"wrote {len(captions)} figures to {folder}: {', '.join(captions)}")


def diff_page(first, second):
    """Two scripts side by side as HTML: equal sections are folded, the methods are whole."""
    sys.path.insert(0, str(ROOT / "tests"))
    split = importlib.import_module("test_side_by_side").sections
    texts = [(ROOT / "methods" / f"{name}.py") for name in (first, second)]
    for path in texts:
        if not path.exists():
            names = ", ".join(sorted(p.stem for p in path.parent.glob("*.py")))
            raise Refused(f"there is no script {path.stem}: choose two of {names}")
    a, b = (split(path.read_text(encoding="utf-8")) for path in texts)
    parts = []
    for name in a:
        left, right = a[name].splitlines(), b[name].splitlines()
        table = difflib.HtmlDiff(tabsize=4, wrapcolumn=88).make_table(
            left, right, f"{first}.py", f"{second}.py", context=False
        )
        note = f"{len(left)} lines, equal" if left == right else "differs"
        opened = "" if left == right else " open"
        parts.append(f"<details{opened}><summary>{name} ({note})</summary>{table}</details>")
    style = difflib.HtmlDiff._styles + (
        "body{font-family:sans-serif;margin:1em} table.diff{font-size:11px;width:100%}"
        "summary{font-weight:bold;padding:.4em;cursor:pointer} td{white-space:pre}"
        ".diff_add{background:#cde6f7} .diff_chg{background:#fdf3c0} .diff_sub{background:#f8d9c0}"
    )
    title = f"{first}.py beside {second}.py"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style></head><body><h1>{title}</h1><p>Blue: only in {second}.py. Orange: "
        f"only in {first}.py. Yellow: changed. Equal sections are folded; click to open them.</p>"
        f"{''.join(parts)}</body></html>"
    )


# ==================================================================================================


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--results", default="results", help="folder of result files")
    add("--readme", action="store_true", help="also fill the tables of both README.md")
    add("--diff", nargs=2, metavar="SCRIPT", help="write two scripts side by side, as HTML")
    add("--data-dir", help="folder of the pictures, for a gallery of other data than the toy")
    add("--unfinished", action="store_true", help="print the commands on stdin without a result")
    args = parser.parse_args()
    if args.unfinished:
        return print("".join(unfinished(sys.stdin, args.results)), end="")
    if args.diff:
        first, second = (Path(name).stem for name in args.diff)
        path = Path(args.results) / "tables" / f"{first}-{second}.html"
        page = diff_page(first, second)
        with atomic(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return print(f"wrote {path}")
    found, folder = collect(args.results), Path(args.results) / "tables"
    if not found:
        raise Refused(f"{args.results} holds no result files: run a script first, or run_all.sh")
    make_folder(folder)
    made, refused = tables(found, collect(Path(args.results) / AGAIN))
    for name, table in made.items():
        with atomic(folder / f"{name}.md") as temporary:
            temporary.write_text(table.markdown() + "\n", encoding="utf-8")
        table.csv(folder / f"{name}.csv")
    print(f"wrote {len(made)} tables to {folder}: {', '.join(made)}")
    draw(found, folder, args.results, args.data_dir)
    if args.readme:
        for readme in (ROOT / "README.md", ROOT / "results" / "README.md"):
            readme.write_text(fill(readme.read_text(encoding="utf-8"), made), encoding="utf-8")
    if refused:
        raise Refused("\n".join(f"no table {name}: {why}" for name, why in refused.items()))


if __name__ == "__main__":
    try:
        main()
    except (Refused, InputError) as error:
        sys.exit(f"report.py: {error}")
