"""Results to tables, pages and figures; every number in them is computed here.

    python report.py                    runs/, your own: to runs/report/
    python report.py --pack             add runs/ to the packed ones, results/
    python report.py --results results  to results/, and the README's tables
    python report.py --html             report.html of each run, and of all
    python report.py --compare A B      two runs, or folders of seeds: paired

What a row is, and how two of them are compared, is in results.py. In a table:

    mean ± half        over seeds or folds: half of Student's 95 % interval,
                       which may pass 0 or 100 where few runs differ much
    value [low, high]  of one test set, or all folds together: 95 % bootstrap
                       over subjects (lesions, persons); of a change in percent
                       of a mean over seeds, Fieller's interval
    worst group, gap   AUROC of the worst group; of the best minus of the worst
    ES-AUC, PSD        AUROC / (1 + Σ |AUROC - a group's|); deviation of the
                       groups' AUROC (PSD max: gap) / AUROC
    mean-DEO, max-DEO  recall of the best minus that of the worst group: mean,
                       maximum over classes; disparity: the mean, which has a
                       sign for each class of two groups
    parity             difference in how often groups are given a class
    decisions          at the largest output or prior-corrected, as metrics.py
                       says; where a class is rare the corrected ones come first
    train worst cell   recall of the worst class x group cell in training
    of masks           means over pictures. SER: 100 - Dice of the worst group,
                       in percent of 100 - Dice of the best; failed: share of
                       pictures with a Dice below 70; standardised: as if each
                       class had the same share in every group
    (pre-trained)      a row whose student, or as said its teacher, starts from
                       weights that were learnt elsewhere
    bold               the best of a column. A collapsed run (a class never
                       named, a group given one class, or macro recall within 5
                       points of chance, by the decisions that count or the
                       corrected ones) is marked and cannot be best in fairness:
                       equally useless is not fair. Useless by these decisions:
                       the same at the largest output, where others count
"""

import argparse
import collections
import csv
import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import figures
import metrics
import results
import webpages
from data import InputError, digest, end_with_reader, explained, save
from results import CEILING, MASKS, METRICS, NAMES, OWN_NETWORKS, UTILITY, Refused, Value, metric_of

ROOT = Path(__file__).resolve().parent
## Names of rows, in the order of a table.
SLIDES = ["ERM", "CKD", "CKD, T = 1", "RKD", "CTKD", "KD++", "FitNet", "AT", "re-balancing"]
POSTER = ["ERM", "CKD", "FitNet", "AT", "AD", "MFD", "BIRD", "BIRD, gates fixed", "adversarial KD"]
POSTER += ["re-balancing"]
TEACHER = "*the teacher*"
README = [TEACHER, "ERM", "re-balancing", "CKD", "CKD, both balanced", "RKD", "CTKD", "KD++"]
README += ["FitNet", "AT", "adversarial KD", "MFD", "BIRD", "GroupDRO by class, balanced"]
README += ["SWAD", "FairDi"]
## The same at its top, in short.
FIRST = [TEACHER, "ERM", "re-balancing", "CKD", "CKD, both balanced", "adversarial KD", "FairDi"]
## Rows that are ranked, of classes and of masks: what else stands behind a comma is a variant, and
## FairTune's have another network than the others.
RANKED_TOO = ("CKD, both balanced", "GroupDRO by class, balanced")
RANKED = [
    name
    for key, name in NAMES.items()
    if key.split()[0] not in OWN_NETWORKS and ("," not in name or name in RANKED_TOO)
]
RANKED.remove(CEILING)


class Table:
    """Rows of texts and Values under a header, as Markdown; bold is the best of each column."""

    def __init__(self, header):
        self.header, self.rows, self.notes = list(header), [], []
        self.ranked, self.collapsed = set(), set()  # places of rows

    def add(self, name, cells, runs=None, rule="last", ranked=True):
        """A row. The name says how many of `runs` have collapsed; an unranked row is never bold."""
        place, runs = len(self.rows), runs or {}
        name += results.marks(runs, rule)
        self.ranked |= {place} if ranked else set()
        self.collapsed |= {place} if results.number_collapsed(runs, rule) else set()
        weight = results.weight_of(runs) if runs else ""
        if weight and name[0].isalpha() and weight not in name:  # no number of a sweep
            self.notes.append(f"{name}{weight}")
        for run in runs.values():
            for g, c in np.argwhere(metrics.cell_sizes(run[rule]["test"]) == 0):
                where = f"{run['classes'][c]}, {run['group_names'][g]}"
                self.notes.append(f"a test set has no picture of {where}: means leave it out")
        gains = results.gains(runs) if name.startswith("FairDi") else {}
        if gains and not any(gain.low > 0 for gain in gains.values()):
            self.notes.append(f"{name}: of no teacher a gain on its own group is shown")
        self.rows.append([name, *cells])

    def best(self):
        """{(row, column)} of the best values: collapsed rows cannot be best in fairness."""
        best = set()
        for c, column in enumerate(self.header if len(self.ranked) > 1 else ()):
            points = {}
            for r in self.ranked if METRICS.get(column, (None, 0))[1] else ():
                value = self.rows[r][c]
                if isinstance(value, Value) and (column in UTILITY or r not in self.collapsed):
                    points[r] = METRICS[column][1] * value.point
            top = max((p for p in points.values() if not np.isnan(p)), default=None)
            best |= {(r, c) for r, p in points.items() if p == top}
        return best

    def markdown(self):
        rows = [self.header, *self.rows]
        header, *rows = ([str(value).replace("|", "\\|") for value in row] for row in rows)
        best, lines = self.best(), [header, ["---"] * len(header)]
        for r, row in enumerate(rows):
            lines.append([f"**{v}**" if (r, c) in best else v for c, v in enumerate(row)])
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join([text, *(f"*{note}*" for note in dict.fromkeys(self.notes))])


def named(dataset, label):
    """A data set and conditions in words: those of PLACES by their names there."""
    if short := next((name for name, place in PLACES.items() if place == (dataset, label)), None):
        return short
    parts = re.split(f"-(?=(?:{'|'.join(results.CONDITIONS)})_)", label)  # names of files have "-"
    return ", ".join([results.titled(dataset), *(p.replace("_", " ") for p in parts if p)])


# ----- tables of one data set ---------------------------------------------------------------------

LAYOUTS = {  # the columns of each kind of table
    "slides": "student by|top-1|recall|precision|F1|disparity|disparity, − teacher|change in %|"
    "train worst cell",
    "poster": "method|AUROC|F1|mean-DEO|max-DEO|AUROC, − CKD|mean-DEO, − CKD|mean-DEO, change in %|"
    "train worst cell",
    "overview": "method|top-1|F1|AUROC|worst group|gap|ES-AUC|mean-DEO|max-DEO|top-1, − CKD|"
    "mean-DEO, − CKD|train worst cell|parameters|MB",
    "sweep": "λ|top-1|AUROC|disparity|mean-DEO|top-1, λ − 0|disparity, λ − 0|"
    "disparity, change in %|train worst cell",
    "temperature": "T|top-1|AUROC|mean-DEO|parity|top-1, T − 1|mean-DEO, T − 1|parity, T − 1|"
    "parity, − teacher|train worst cell",
    "masks": "method|Dice|IoU|ES-Dice|SER|failed|worst Dice|Dice gap|Dice gap, standardised|"
    "Dice, − ERM|Dice gap, − ERM|Dice, − CKD|Dice gap, − CKD|train worst cell",
}
EVERYTHING = ("overview", "masks")  # the tables that have all rows, also those with fewer runs
## The end of a column's name: the row that is taken off. "change in %" is the column before it, in
## percent of the other row.
BASES = {"− teacher": "teacher", "− CKD": "CKD", "− ERM": "ERM", "λ − 0": "0", "T − 1": "1"}


def gap_columns(rows):
    """{column: metric} of the gap in Dice, raw and standardised; of two groups with its sign."""
    if not results.of_masks(rows):
        return {}
    names, ends = results.first_of(rows)["group_names"], ("", ", standardised")
    if len(names) == 2:
        columns = [f"{names[1]} − {names[0]}{end}" for end in ends]
        return dict(zip(columns, results.SIGNED))
    return {f"Dice gap{end}": MASKS[f"Dice gap{end}"][0] for end in ends}


def runs_of(runs):
    """How many runs these are, as a text."""
    return f"{len(runs)} run{'s' * (len(runs) > 1)}"


def strangers(runs, base):
    """The seeds in which the teachers of two rows, trained alike, are not the same networks."""
    found, (runs, base) = [], results.in_both(runs, base)
    for key, own in runs.items():
        other = base[key]
        ways = {run["settings"].get("teacher_balance") or "" for run in (own, other)}
        if len(ways) == 1 and "teacher" in own.keys() & other.keys():
            tests = [run["teacher"]["test"] for run in (own, other)]
            told = [test.get("counts", test.get("dice")) for test in tests]
            found += [str(key[1])] if told[0] != told[1] else []
    return found


def layout_table(kind, rows, end=None):
    """The rows {name: runs} in one of LAYOUTS, below their teacher, which does not compete.

    end    of the names of metrics of decisions, "" or "_corrected"; None: `results.main_rule`
    """
    table, pair, gaps = Table(LAYOUTS[kind].split("|")), None, gap_columns(rows)
    main = results.main_rule(rows)
    end = main if end is None else end
    table.notes += [] if results.of_masks(rows) else [results.DECISIONS[end]]
    first = next(iter(rows.values()))
    if kind in SWEEPS and len(results.folds_of(first)) == 1:
        table.notes.append(f"seeds: {results.seeds_of(first)}")  # the page's others may have more
    groups, (words, score) = results.first_of(rows)["group_names"], results.score_of(rows)
    every = kind in EVERYTHING
    if any(run["method"] in OWN_NETWORKS for runs in rows.values() for run in runs.values()):
        table.notes.append("(pre-trained): a network, a budget and a search of their own")
    if every:
        table.header += [column for column in gaps if column not in METRICS]
        table.header += [f"{words} of groups"] if len(groups) > 2 else []
    results.comparable(rows, whole=not every)
    if every:
        results.comparable(results.complete(rows)[0])  # those with most runs have the same seeds
    lines = [(name, runs, "last") for name, runs in rows.items()]
    taught = {name: r for name, r in rows.items() if all("teacher" in run for run in r.values())}
    ## A balanced teacher is another one.
    usual = [r for r in taught.values() if "teacher_balance" not in r[min(r)]["changed"]]
    if usual and kind in ("slides", "overview", "temperature", "masks"):
        lines.insert(0, (TEACHER, usual[0], "teacher"))
    most = max(len(runs) for _, runs, _ in lines)
    for name, runs, rule in lines:
        row, model = {}, next(iter(runs.values()))[rule]
        ## No times: runs share processors with others now and then; tests/speed.py measures them.
        more = {"parameters": f"{model['parameters']:,}", "MB": f"{model['megabytes']:.2f}"}
        more |= {"train worst cell": results.trained(runs, rule, end)}
        more |= {column: results.cell(runs, metric, rule) for column, metric in gaps.items()}
        for column in table.header[1:]:
            metric, _, words = column.rpartition(", ")
            if column in METRICS:
                row[column] = results.cell(runs, metric_of(column, end), rule)
            elif words in BASES:
                base, pair = BASES[words], None
                if base == "teacher" and name in taught:
                    pair = runs, runs, metric_of(metric, end), "last", "teacher"
                elif base != name and rule == "last" and runs.keys() & rows.get(base, {}).keys():
                    pair = runs, rows[base], metric_of(metric, end)
                    if seeds := strangers(*pair[:2]):
                        words = f"not the teachers of {base} in seeds {', '.join(seeds)}"
                        table.notes.append(f"{name}: {words}")
                row[column] = results.change(*pair) if pair else ""
            elif column.endswith("change in %"):
                row[column] = results.relative(*pair) if pair else ""
            elif column in more:
                row[column] = more[column]
            else:  # of groups
                each = [results.cell(runs, score, rule, g).point for g in range(len(groups))]
                row[column] = ", ".join(f"{name} {v:.1f}" for name, v in zip(groups, each))
        competes = rule == "last" and name != CEILING and len(runs) == most
        ## By decisions that do not count, others may be useless.
        if bad := results.number_collapsed(runs, rule, end) if end != main else 0:
            name, competes = f"{name} ({bad} of {len(runs)} useless by these decisions)", False
        name += f" ({runs_of(runs)}, not {most})" if len(runs) < most else ""
        table.add(name, row.values(), runs, rule, ranked=competes)
    return table


def published(**wanted):
    """The lines of published.csv that have these values; none where results/ was removed."""
    path = ROOT / "results" / "published.csv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in csv.DictReader(lines) if wanted.items() <= line.items()]


def beside_published(table, dataset, layout):
    """The table with the numbers of the paper whose layout it has, where they are published."""
    lines = published(dataset=dataset, table=layout)
    columns = list(dict.fromkeys(line["metric"] for line in lines))
    printed = {(r["method"], r["metric"]): f"{float(r['percent']):.1f}" for r in lines}
    table.notes += [f"published: {line['source']}" for line in lines[:1]]
    table.header += [f"{column}, published" for column in columns]
    for row in table.rows:
        row += [printed.get((row[0].partition(" (")[0], column), "") for column in columns]
    return table


SWEEPS = {  # script, what is varied, and the value with which others are compared
    "sweep": ("adversarial_kd", "adversary_weight", 0.0),
    "temperature": ("ckd", "temperature", 1.0),
}


def sweep(rows, kind):
    """{value: row} of the rows that differ in one setting alone, the value as text.

    {} without the value to compare with, or with fewer than three rows.
    """
    (script, setting, base), row_of = SWEEPS[kind], {}
    for name, runs in rows.items():
        result = next(iter(runs.values()))
        if result["method"] == script and not results.own_settings(result).keys() - {setting}:
            row_of[result["settings"][setting]] = name
    enough = base in row_of and len(row_of) > 2
    return {f"{value:g}": row_of[value] for value in sorted(row_of)} if enough else {}


def swept(rows, kind):
    """{value: runs} of `sweep`: those runs that the value compared with has, of values that have
    them all. {} with fewer than three values.
    """
    found = {value: rows[name] for value, name in sweep(rows, kind).items()}
    base = found.get(f"{SWEEPS[kind][2]:g}", {})
    whole = {value: runs for value, runs in found.items() if base.keys() <= runs.keys()}
    cut = {value: {key: runs[key] for key in base} for value, runs in whole.items()}
    return cut if len(cut) > 2 else {}


def without_sweeps(rows):
    """`rows` without those that only the tables of a sweep, or of a grid, need, if others stay."""
    by_method = results.grids(rows)  # a method is named as its row at the weight that is shown
    needed = [*by_method.values(), *(sweep(rows, kind) for kind in SWEEPS)]
    extra = {name for row_of in needed for name in row_of.values()} - {*NAMES.values(), *by_method}
    return {name: runs for name, runs in rows.items() if name not in extra} or rows


def weights_table(rows, second):
    """The weights of `results.grids` on validation, and which of them `results.choose` takes.

    second    the rows of a second training, whose seed may be the lower one, see `trainings`
    """
    words, score = results.score_of(rows)
    ## In `second` keys have the seed of the first training, not their own.
    rows = {
        name: {(key[0], run["settings"]["seed"]): run for part in both for key, run in part.items()}
        for name, both in ((name, (rows[name], second.get(name, {}))) for name in rows)
    }
    columns = [f"{words}, validation", "worst group, validation", "train worst cell", "collapsed"]
    table = Table(["method", "weight", *columns, "chosen"])
    for method, row_of in results.grids(rows).items():
        ## The validation of the ceiling is that of FairDi's student.
        if method == CEILING or not (best := results.choose(rows, row_of)):
            continue
        for weight, row in row_of.items():
            first = {min(rows[row]): rows[row][min(rows[row])]}
            areas = [results.values(first, m, split="val") for m in (score, f"{score}_worst_group")]
            cells = [weight.strip(", "), *(Value(*area) for area in areas)]
            cells += [results.trained(first, "last", results.main_rule(rows))]
            cells += ["yes" if first[min(first)]["last"]["val"]["collapsed"] else ""]
            late = "" if row == method else ", but shown is the usual one, which has more runs"
            table.add(method, [*cells, f"chosen{late}" if weight == best else ""])
    table.notes.append(
        f"the best worst group of those within a point of the best {words}, of equal ones the "
        "smallest weight; a collapsed one only where all are; trained with the lowest seed and fold"
    )
    return table


POOLED = {  # columns of folds together: of classes, and of masks
    False: "AUROC|worst group|gap|ES-AUC|PSD mean|PSD max|mean-DEO",
    True: "Dice|IoU|ES-Dice|SER|failed|worst Dice",
}


def seen_twice(value, second):
    """A difference, marked ² where that of a second training leaves out 0 on the same side."""
    shown = all(v.low > 0 for v in (value, second)) or all(v.high < 0 for v in (value, second))
    return value._replace(mark="²") if shown else value


def pooled_tables(rows, rules, second):
    """Folds together, so that every picture is tested once: values, and differences to ERM or CKD.

    rules     {network: what is added to a row's name}
    second    the rows of a second training, see `trainings`

    In front stands CKD's teacher, if its answers are kept. A row with fewer folds than the most is
    compared on its own folds alone.
    """
    results.comparable(rows, whole=False)
    masks, end = results.of_masks(rows), results.main_rule(rows)
    groups = results.first_of(rows)["group_names"]
    shown = {name: metric_of(name, end) for name in POOLED[masks].split("|")}
    shown |= gap_columns(rows) | ({"mean-DEO, largest output": "mean_deo"} if end else {})
    words, score = results.score_of(rows)
    areas = [f"{words}, {name}" for name in groups]
    two = len(groups) == 2 and not masks
    areas += [f"{words}, {groups[1]} − {groups[0]}"] if two else []
    table = Table(["method", "n", *shown, *areas, "train worst cell"])
    bases = [name for name in ("ERM", "CKD") if name in rows]
    base = max(bases, key=lambda name: len(rows[name]), default="")  # of equals ERM
    differences = Table(["method", *(f"{s}, − {base}" for s in shown)])
    for part in (table, differences):
        part.notes += [] if masks else [results.DECISIONS[end]]
    most = max(rows.values(), key=len).keys()
    twice = {n for n, r in rows.items() if r.keys() == most == second.get(n, {}).keys()}
    lost = [name for name in rows if base and not rows[name].keys() <= rows[base].keys()]
    differences.notes += [f"{base} lacks runs of these: {', '.join(lost)}"] if lost else []
    once = [name for name in rows if name not in (base, *twice)]
    without = f"; without one: {', '.join(once)}" if once else ""
    differences.notes += [f"²: a second training shows it, too{without}"] if base in twice else []
    table.notes += [f"{len(most)} of 5 folds: not every picture is tested"] if len(most) < 5 else []
    lines = [(name, rule, name + words) for name in rows for rule, words in rules.items()]
    if end:  # a column is of decisions that do not count
        bad = {label: results.number_collapsed(rows[n], rule, "") for n, rule, label in lines}
        told = [f"{label} ({number})" for label, number in bad.items() if number]
        words = "useless at the largest output (of how many folds)"
        table.notes += [f"{words}: {', '.join(told)}"] if told else []
    if "last" in rules and "CKD" in rows and results.kept(rows["CKD"], "teacher"):
        lines.insert(0, ("CKD", "teacher", TEACHER))
    for name, rule, label in lines:
        runs, taught = rows[name], rule == "teacher"
        few = len(runs) < len(most)
        competes = not (few or taught or name == CEILING)
        label += f" (folds {', '.join(str(fold) for fold, _ in sorted(runs))})" if few else ""
        more = {"runs": runs, "rule": rule, "ranked": competes}
        cells = [str(len(results.pool(runs, rule).ids))]
        cells += [results.cell(runs, m, rule, None, True) for m in shown.values()]
        cells += [results.cell(runs, score, rule, g, True) for g in range(len(groups))]
        cells += figures.ahead(runs, "auroc_gap", rule, True) if two else []
        table.add(label, [*cells, results.trained(runs, rule, end)], **more)
        if base and (name != base or taught) and name not in lost:
            ends = rule, "last" if taught else rule, True
            cells = [results.change(runs, rows[base], m, *ends) for m in shown.values()]
            if {name, base} <= twice and results.kept(second[name], rule):
                pair = second[name], second[base]
                again = [results.change(*pair, m, *ends) for m in shown.values()]
                cells = [*map(seen_twice, cells, again)]
            differences.add(label, cells, **more)
    return {"": table, "-differences": differences}


def gains_table(rows):
    """What each group's teacher of FairDi gains on its own group over a control, in each run."""
    runs = rows.get("FairDi", {})
    folds = runs and next(iter(runs.values()))["settings"]["fold"] is not None
    told = [f"fold {fold}" if folds else f"seed {seed}" for fold, seed in sorted(runs)]
    table = Table(["teacher of", "gain", *told])
    each = [results.gains({key: runs[key]}) for key in sorted(runs)]
    for name, gain in results.gains(runs).items():
        table.add(name, [gain, *(one.get(name, "") for one in each)])
    words, _ = results.score_of(rows)
    table.notes.append(
        f"{words} of a teacher on its own group minus that of a control, the same head trained on "
        "as many pictures of everybody, both on the validation pictures that chose them: where no "
        "gain is above 0, FairDi is plain distillation from the network of its step 0"
    )
    return table


# ----- tables across data sets --------------------------------------------------------------------

PAPER, SOFT = "Mohammadshahi and Ioannou", "CKD, T = 20"
## The claim; the row; against which row, or the student's own teacher; in which metric; 1 if it
## shall rise, -1 if it shall fall.
CLAIMS = (
    ("slides: a student is less fair than its teacher", "CKD", "teacher", "disparity", 1),
    ("adversarial KD: less disparity than CKD", "adversarial KD", "CKD", "disparity", -1),
    ("BIRD: lower mean-DEO than CKD", "BIRD", "CKD", "mean-DEO", -1),
    ("BIRD: AUROC not below CKD's", "BIRD", "CKD", "AUROC", 1),
    ("FairDi: higher AUROC in the worst group than ERM", "FairDi", "ERM", "worst group", 1),
    ("FairTune: smaller gap than full fine-tuning", "FairTune", "full fine-tuning", "gap", -1),
    (f"{PAPER}: T = 20 fairer (parity) than T = 1", SOFT, "CKD, T = 1", "parity", -1),
    (f"{PAPER}: at T = 20 fairer (parity) than the teacher", SOFT, "teacher", "parity", -1),
    ("masks: a student is less fair than its teacher", "CKD", "teacher", "Dice gap", 1),
    ("masks: FairDi has a higher worst Dice than ERM", "FairDi", "ERM", "worst Dice", 1),
    ("masks: FEBS has a higher ES-Dice than ERM", "FEBS", "ERM", "ES-Dice", 1),
    ("masks: GroupDRO has a smaller gap than ERM", "GroupDRO", "ERM", "Dice gap", -1),
    ("masks: re-balancing has a smaller gap than ERM", "re-balancing", "ERM", "Dice gap", -1),
    ("masks: BIRD has a smaller gap than CKD", "BIRD", "CKD", "Dice gap", -1),
    ("masks: own teachers have a higher worst Dice than ERM", CEILING, "ERM", "worst Dice", 1),
)
## What one part of a method does: two rows that no other table puts side by side.
PAIRS = (
    ("re-balancing", "ERM"),
    ("CKD, both balanced", "CKD"),
    ("CKD, balanced teacher", "CKD"),
    ("CKD, balanced student", "CKD"),
    ("CKD, both balanced", "CKD, balanced student"),
    ("CKD, both balanced", "CKD, balanced teacher"),
    ("CKD, both balanced", "re-balancing"),
    ("adversarial KD", "CKD"),
    ("adversarial KD, λ = 5", "CKD"),  # where validation chose another λ
    ("adversarial KD, λ = 5", "AD"),
    ("BIRD", "BIRD, gates fixed"),
    ("RKD, normalised", "RKD"),
    ("CTKD, no curriculum", "CTKD"),
    ("KD++", "KD++, no L_ND"),
    ("MFD, balanced", "re-balancing"),
    ("GroupDRO by class, balanced", "re-balancing"),
    ("FairDi", "CKD"),
    ("FairDi", "FIS"),
    ("FairDi", "FairDi, no teachers"),
    ("FairDi, no teachers", "FIS"),
    ("FairDi, from step 0's last epoch", "FairDi"),
    ("FairTune", "full fine-tuning"),
    ("FairTune, all parts", "full fine-tuning"),
    ("linear probe", "full fine-tuning"),
    ("FEBS, mended", "FEBS"),
    (CEILING, "FIS"),
)


VERDICTS = {1: "confirmed", -1: "contradicted", 0: "undecided"}  # by sign: for, against, neither
FEWER = {1: {1: "seen once", -1: "the contrary seen once", 0: "undecided"}}  # than three trainings
FEWER[2] = {sign: words.replace("once", "twice") for sign, words in FEWER[1].items()}


def ruled(place, rows):
    """A place in words, and the rule of decisions if it is the corrected one."""
    return named(*place) + (", prior-corrected" if results.main_rule(rows) else "")


def claims_table(by_place):
    """Each claim on each data set that has its rows: confirmed, contradicted, or undecided.

    A verdict needs three trainings; all folds together are one, for another training of them may
    say otherwise. Of two groups, a gap must differ as a size and in its direction
    (`results.directed`): a size alone cannot reach 0.
    """
    table = Table(["claim", "data set", "over", "difference", "in its direction", "verdict"])
    table.notes.append("in its direction: the same with a sign, see `directed` in results.py")
    three = "confirmed and contradicted need three trainings, and all folds are one; what fewer "
    table.notes.append(f"{three}show is seen once, or twice")
    for line, (place, rows) in itertools.product(CLAIMS, by_place.items()):
        claim, row, against, shown, sign = line
        if (shown in MASKS) != results.of_masks(rows):
            continue
        runs = rows.get(row, {})
        base = runs if against == "teacher" else rows.get(against, {})
        both, _ = results.in_both(runs, base)
        if not both:
            continue
        rule, pooled = "teacher" if against == "teacher" else "last", results.in_folds(place)
        pair = runs, base, metric_of(shown, results.main_rule(rows)), "last", rule, pooled
        values, two = [results.change(*pair)], len(both[min(both)]["group_names"]) == 2
        values += [results.directed(*pair)] if two and shown in results.GAPS else []
        ends = [sorted((sign * value.low, sign * value.high)) for value in values]
        signs = {(low > 0) - (high < 0) for low, high in ends}
        number = 1 if pooled else len(both)
        verdict = FEWER.get(number, VERDICTS)[signs.pop() if len(signs) == 1 else 0]
        others = "teachers" if against == "teacher" else f"runs of {against}"
        for who, side, end in (("runs", runs, "last"), (others, base, rule)):
            if bad := results.number_collapsed(side, end):
                verdict += f", but {bad} of {len(side)} {who} collapsed"
        over = results.what_both_have(runs, base, pooled)
        claim += results.label("", both)
        table.add(claim, [ruled(place, rows), over, values[0], *(values[1:] or [""]), verdict])
    return table


def inflation_table(by_place):
    """Disparity of every student minus its own teacher's, on every data set with teachers.

    Of masks it is the gap in Dice. Plain students that have no teacher stand beside CKD's: how far
    they are above it is no work of distillation.
    """
    taught = {}
    for place, rows in by_place.items():
        students = {n: r for n, r in rows.items() if all("teacher" in run for run in r.values())}
        taught |= {place: students} if students else {}
    table = Table(["student by", *(ruled(*item) for item in taught.items())])
    for name in NAMES.values():
        cells = []
        for place, rows in taught.items():
            runs, text, end = rows.get(name, {}), "", results.main_rule(rows)
            taught_by = runs
            if name == "ERM" and not runs:
                runs, taught_by = by_place[place].get(name, {}), rows.get("CKD", {})
            if runs.keys() & taught_by.keys():
                metric = "dice_gap" if results.of_masks(rows) else f"disparity{end}"
                pair = (runs, taught_by, metric, "last", "teacher")
                value = results.change(*pair, pooled=results.in_folds(place))
                text = f"{value}{results.marks(runs)}"
                bad = results.number_collapsed(taught_by, "teacher")
                text += f" ({bad} of {len(taught_by)} teachers collapsed)" if bad else ""
            cells.append(text)
        if any(cells):
            table.add(name, cells)
    table.notes.append("ERM has no teacher (but on the toy): minus that of CKD")
    return table


def causes_table(by_place):
    """CKD's unfairness beside that of its teacher and of plain training, in every setting.

    Rows that differ in one setting (epochs, networks, T, skew) tell what the differences are made
    of. The last columns are the recall of the worst cell of the training pictures.
    """
    told = ["teacher", "ERM", "CKD"]
    header = ["CKD", "data set", "over", *(f"mean-DEO, {name}" for name in told)]
    header += ["CKD − teacher", "CKD − ERM", *(f"train worst cell, {name}" for name in told)]
    table = Table(header)
    for name, (place, rows) in itertools.product(("CKD", "CKD, T = 1", SOFT), by_place.items()):
        runs, plain = results.in_both(rows.get(name, {}), rows.get("ERM", {}))
        if not runs or results.of_masks(rows):
            continue
        end, pooled = results.main_rule(rows), results.in_folds(place)
        metric, networks = metric_of("mean-DEO", end), [(runs, "teacher"), (plain, "last")]
        both = [results.change(runs, b, metric, "last", rule, pooled) for b, rule in networks]
        networks.append((runs, "last"))
        cells = [results.cell(row, metric, rule, pooled=pooled) for row, rule in networks]
        cells += [*both, *(results.trained(row, rule, end) for row, rule in networks)]
        over = results.what_both_have(runs, plain, pooled)
        table.add(name, [ruled(place, rows), over, *cells], runs)
    return table


def differences_table(first, shown, lines, by_place):
    """Differences of `lines`: of (name, place, runs, base), where both have runs in common.

    by_place    whose rows say which decisions count

    Those of masks are a table of their own.
    """
    masks = ["Dice", "IoU", "worst Dice", "Dice gap", "Dice gap, standardised"]
    shown = {"": shown, "-masks": masks}
    tables = {kind: Table([first, "data set", "over", *s]) for kind, s in shown.items()}
    for name, place, runs, base in lines:
        if runs.keys() & base.keys():
            pooled, rows = results.in_folds(place), by_place[place]
            over, end = results.what_both_have(runs, base, pooled), results.main_rule(rows)
            kind = "-masks" if results.of_masks(rows) else ""
            named = [metric_of(s, end) for s in shown[kind]]
            cells = [results.change(runs, base, metric, pooled=pooled) for metric in named]
            tables[kind].add(name, [ruled(place, rows), over, *cells], ranked=False)
    return tables


def minus_erm_tables(by_place, repeated, least=6):
    """What each method changes of plain training, on every data set with at least so many rows.

    {metric: Table} of the worst group and of unfairness; a column for each data set, and one for
    what the poster of BIRD prints.
    """
    made, every = {}, {place: without_sweeps(rows) for place, rows in by_place.items()}
    every = {p: rows for p, rows in every.items() if "ERM" in rows and len(rows) >= least}
    for metric in ("worst group", "mean-DEO", "worst Dice", "Dice gap"):
        usual = {p: r for p, r in every.items() if (metric in MASKS) == results.of_masks(r)}
        columns = {}
        for (place, rows), head in zip(usual.items(), heads(usual)):
            more = metric, results.in_folds(place), repeated.get(place, {})
            columns[head] = {n: minus_erm(rows, n, *more) for n in rows.keys() - {"ERM"}}
        for dataset, printed in of_the_poster(metric).items() if usual else ():
            changes = {name: f"{value - printed['ERM']:.1f}" for name, value in printed.items()}
            columns[f"{results.said(dataset)}, poster of BIRD"] = changes
        table = Table(["method", *columns])
        for name in [name for name in NAMES.values() if name != "ERM"]:
            cells = [column.get(name, "") for column in columns.values()]
            if any(cells):
                table.add(name, cells)
        table.notes.append("n: trainings, of others more; ²: a second training shows it, too")
        made[f"-{metric.replace(' ', '-')}"] = table
    return made


def heads(by_place):
    """What places are called in columns and legends: data set, groups, pixels and student.

    Places that have all these in common are told apart by all of their conditions.
    """
    short = []
    for rows in by_place.values():
        first = results.first_of(rows)["settings"]
        short.append(f"{results.scene(rows)}, {first['image_size']} pixels, {first['student']}")
    whole = itertools.starmap(ruled, by_place.items())
    return [one if short.count(one) == 1 else long for one, long in zip(short, whole)]


def minus_erm(rows, name, metric, pooled, twice):
    """A row minus ERM in a metric, as text, with its weight, how many runs it has, and marks."""
    runs, base = results.in_both(rows[name], rows["ERM"])
    if not runs:
        return ""
    key = metric_of(metric, results.main_rule(rows))
    most = max(map(len, rows.values()))
    if len(runs) == 1 < most:  # no logits are kept where intervals are over seeds
        value = Value(results.point(runs, key) - results.point(base, key))
    else:
        value = results.change(runs, base, key, pooled=pooled)
    again = twice.get(name, {}), twice.get("ERM", {})
    if all(row.keys() == runs.keys() for row in again):
        value = seen_twice(value, results.change(*again, key, pooled=pooled))
    few = f" (n = {len(runs)})" if len(runs) < most else ""
    weight = results.weight_of(runs).strip(", ")
    return f"{value}{few}{weight and f' ({weight})'}{results.marks(runs)}"


def of_the_poster(metric):
    """{data set: {method: percent}} of a metric, as the poster of BIRD prints it."""
    found = collections.defaultdict(dict)
    for line in published(table="poster", metric=metric):
        found[line["dataset"]][line["method"]] = float(line["percent"])
    return found


def pairs_table(by_place):
    """Paired differences of PAIRS on every data set: what one part of a method does.

    Of a weight that was not chosen, with one run, no answers are kept: it is left out. Where the
    teachers of both are not the same networks, a difference may be theirs: its name says so.
    """
    lines = []
    for pair, (place, rows) in itertools.product(PAIRS, by_place.items()):
        runs = [rows.get(name, {}) for name in pair]
        if not all(runs) or (len(runs[0]) == 1 and pair[0] not in NAMES.values()):
            continue
        weights = map(results.weight_of, runs)  # FairDi's and FIS's may differ
        names = [n if n.endswith(w) else n + w for n, w in zip(pair, weights)]
        names = [n + results.marks(r) for n, r in zip(names, runs)]
        others = " (other teachers)" if strangers(*runs) else ""
        lines.append((" − ".join(names) + others, place, *runs))
    shown = ["top-1", "AUROC", "worst group", "gap", "mean-DEO", "disparity"]
    return differences_table("pair", shown, lines, by_place)


def repeated_table(by_place, repeated):
    """A second training of the same folds, with another seed, minus the first.

    How far two trainings lie apart, which no bootstrap over test pictures shows.
    """
    lines = []
    for place, rows in repeated.items():
        first = without_sweeps(by_place.get(place, {}))
        lines += [(n, place, rows[n], runs) for n, runs in first.items() if n in rows]
    shown = ["AUROC", "worst group", "gap", "ES-AUC", "mean-DEO", "disparity"]
    return differences_table("row", shown, lines, by_place)


def command_of(place, runs):
    """The command behind `runs`, results of one place: of run_all.sh, or of a single run.

    run_all.sh lists more settings than those in the command: what makes a row is in its list.
    """
    first = next((r for r in runs if r["method"] not in OWN_NETWORKS), runs[0])
    methods, settings = sorted({r["method"] for r in runs}), results.shared_settings(first)
    name = first["settings"]["dataset"]
    every = {key.split()[0] for key in NAMES} - results.NO_SCRIPTS
    data = [] if name == "toy" else ["--dataset", name, "--data-dir", "DIR"]
    if results.task_of(first) == "segment":
        data, every = [*data, "--task", "segment"], {*results.OF_MASKS}
    if len(runs) == 1:
        words = ["python", f"methods/{methods[0]}.py", *data, "--seed", first["settings"]["seed"]]
        settings = first["changed"]
    else:
        words = ["bash", "run_all.sh", *data]
        seeds = 1 + max(r["settings"]["seed"] for r in runs)
        words += ["--seeds", seeds] if seeds > 1 or not results.in_folds(place) else []
        words += ["--folds"] if results.in_folds(place) and name != "ham10000" else []
        if source := first["changed"].get("source"):
            words += ["--source", source] if source != "csv" else []
            words += ["--source-dir", "DIR2"]
        if every != {*methods}:
            words += ["--only", *methods]
        words += ["--"] if settings else []
    for name, value in settings.items():
        switch = f"--{'no-' if value is False else ''}{name}".replace("_", "-")
        words += [switch] if isinstance(value, bool) else [switch, value]
    return " ".join(shlex.quote(str(word)) for word in words)


def commands_of(place, runs):
    """One command, or two where FairTune first learnt other pictures than the drawn stars."""
    parts = [[run for run in runs if ("source" in run["changed"]) == own] for own in (False, True)]
    return " and ".join(f"`{command_of(place, part)}`" for part in parts if part)


def hours_of(runs):
    """What results took: each teacher once, whoever trained it."""
    seconds, teachers = 0, {}
    for run in runs:
        times = run["times"]
        total = max(times["total"], sum(times["epochs"]))  # older ones lack what was before a kill
        ## The total of the run that trained the teacher has the teacher in it.
        trained = total > times["teacher"] + sum(times["epochs"])
        seconds += total - (times["teacher"] if trained else 0)
        if "teacher" in run:
            own = [run["settings"].get(key) for key in ("fold", "seed", "teacher_balance")]
            teachers[*own] = times["teacher"]
    return (seconds + sum(teachers.values())) / 3600


def made_table(by_place):
    """The command behind each group of runs, how many they are, what they took, and where."""
    table = Table(["data set", "command", "runs", "hours", "made on"])
    for place, rows in by_place.items():
        own = (row for name, row in rows.items() if not name.startswith(results.PARTS))
        runs = [run for row in own for run in row.values()]
        devices = ", ".join(dict.fromkeys(run["times"]["device"] for run in runs))
        versions = ", ".join(sorted({run["times"]["torch"].partition("+")[0] for run in runs}))
        cells = [commands_of(place, runs), str(len(runs)), f"{hours_of(runs):.1f}"]
        table.add(named(*place), [*cells, f"{devices} torch {versions}"])
    return table


NETWORKS, BY_RACE = "teacher_convnet16-student_convnet8", "target_gender-sensitive_race"
BY_AGE = "folds-image_size_32-sensitive_age"
UNETS = "teacher_unet8-student_unet4-epochs_20-teacher_epochs_20-train_share_0.1"
TRANS = UNETS.replace("unet", "transunet")
PRE_TRAINED = "teacher_weights_efficientnet-lite0-57934424.pth-teacher_epochs_9-teacher_lr_0.0005-"
PRE_TRAINED += "teacher_optimizer_adamw-teacher_statistics_imagenet-teacher_sees_flips"
SHUFFLE = f"teacher_timm:tf_efficientnet_lite0-{PRE_TRAINED}"  # HAM10000's usual student
MOBILE = f"teacher_timm:tf_efficientnet_lite0-student_mobilenet_v3_small-{PRE_TRAINED}"
HEADLINE = {  # the places whose results stand in the README
    "toy": ("toy", ""),
    "HAM10000, age": ("ham10000", f"{BY_AGE}-{NETWORKS}"),
    "CIFAR10-S": ("cifar10s", f"{NETWORKS}-epochs_8-teacher_epochs_8"),
    "CelebA, attractive": ("celeba", f"image_size_32-{NETWORKS}"),
    "FairFace, gender by race": ("csv-fairface", f"image_size_32-{BY_RACE}-{NETWORKS}"),
}
PLACES = HEADLINE | {  # and others that have a short name
    "HAM10000, sex": ("ham10000", f"folds-image_size_32-{NETWORKS}"),
    "HAM10000, sex and age": ("ham10000", f"folds-image_size_32-sensitive_sex+age-{NETWORKS}"),
    "HAM10000, age, ImageNet teacher": ("ham10000", f"folds-image_size_96-sensitive_age-{MOBILE}"),
    "HAM10000, sex, ImageNet teacher": ("ham10000", f"folds-image_size_96-{MOBILE}"),
    "HAM10000, sex, ImageNet teacher, shufflenet": ("ham10000", f"folds-image_size_96-{SHUFFLE}"),
    "CelebA, smiling": ("celeba", f"image_size_32-target_Smiling-{NETWORKS}"),
    "CelebA, blond hair": ("celeba", f"image_size_32-target_Blond_Hair-{NETWORKS}"),
    "HAM10000, masks, age": ("ham10000-segment", f"{BY_AGE}-{UNETS}"),
    "HAM10000, masks, sex": ("ham10000-segment", f"folds-image_size_32-{UNETS}"),
    "HAM10000, masks, age, transunet4": ("ham10000-segment", f"{BY_AGE}-{TRANS}"),
}


def headline_table(by_place, names=README, shown=("AUROC", "worst group", "mean-DEO"), sure=False):
    """Metrics of CKD's teachers and of the README's methods on its data sets, a column each.

    sure    whether the last metric has its interval
    """
    columns = {}
    for title, place in HEADLINE.items():
        if rows := by_place.get(place):
            end, most = results.main_rule(rows), max(map(len, rows.values()))
            keys, head = [metric_of(s, end) for s in shown], ", prior-corrected" if end else ""
            found = [rows.get("CKD" if name == TEACHER else name, {}) for name in names]
            rules = ["teacher" if name == TEACHER else "last" for name in names]
            more = keys, place, most, sure
            cells = [headline_cell(runs, *more, rule) for runs, rule in zip(found, rules)]
            columns[title + head] = cells
    table = Table(["method", *columns])
    for name, *cells in zip(names, *columns.values()):
        table.add(name, cells)
    return table


def headline_cell(runs, shown, place, most, sure=False, rule="last"):
    """The metrics `shown` of a method on one data set, on which others have `most` runs."""
    bad = results.number_collapsed(runs, rule)
    if bad == len(runs):  # also of none
        return "collapsed" if bad else ""
    pooled = results.in_folds(place)
    texts = [f"{results.point(runs, metric, rule, pooled):.1f}" for metric in shown]
    if sure:
        texts[-1] = str(results.cell(runs, shown[-1], rule, pooled=pooled))
    notes = [results.pretrained(runs, rule), results.weight_of(runs).strip(", ")]
    notes += [f"{bad} of {len(runs)} collapsed" if bad else ""]
    notes.append(f"{runs_of(runs)}, not {most}" if len(runs) < most else "")
    note = ", ".join(filter(None, notes))
    return " / ".join(texts) + (note and f" ({note})")


# ----- pages --------------------------------------------------------------------------------------

LARGEST = "-largest"  # at the end of the kind of a table: at the largest output
KINDS = {  # the end of a table's name: its title, in the order of a page
    "slides": "Students beside their teacher (the layout of the slides of Bolner et al., 2023)",
    "poster": "Methods beside CKD (the layout of the poster of BIRD)",
    "pooled": "All folds together: every picture is tested once, by the model that did not see it. "
    "AUROC compares pictures of one fold",
    "pooled-differences": "The same, minus ERM (or CKD) on the same pictures",
    "fairdi": "Two epochs chosen on validation: best overall, best in the worst group",
    "fairdi-differences": "The same, minus ERM (or CKD) on the same pictures",
    "sweep": "How strong an adversary? Paired with λ = 0, which is CKD",
    "temperature": "Is the student of a softer teacher fairer? CKD, paired with T = 1",
    "weights": "Weights chosen on validation",
    "gains": "What FairDi's teachers gain on their own groups",
    "overview": "Everything",
    "masks": "Everything",
}
ACROSS = {
    "claims": "Do the claims of the papers hold?",
    "minus-erm-worst-group": "AUROC of the worst group minus plain training's (ERM)",
    "minus-erm-mean-DEO": "mean-DEO minus plain training's (ERM), lower is fairer",
    "minus-erm-worst-Dice": "Dice of the worst group minus plain training's (ERM)",
    "minus-erm-Dice-gap": "Gap in Dice minus plain training's (ERM), lower is fairer",
    "inflation": "Disparity (of masks: gap in Dice) of every student minus that of its own teacher",
    "causes": "Is it distillation? CKD's mean-DEO beside its teacher's and plain training's",
    "pairs": "What one part of a method does",
    "pairs-masks": "What one part of a method does, masks",
    "repeated": "A second training minus the first",
    "repeated-claims": "The claims in the second training",
    "repeated-inflation": "Students minus teachers, disparity or gap in Dice, second training",
    "repeated-causes": "Is it distillation? Second training",
    "repeated-pairs": "What one part of a method does, second training",
    "repeated-masks": "A second training minus the first, masks",
    "repeated-pairs-masks": "What one part of a method does, masks, second training",
    "repeated-pooled": "All folds together, second training",
    "repeated-pooled-differences": "The same, minus ERM (or CKD)",
    "made": "How the results were made",
}


def tables(by_place, repeated):
    """{(place, kind): Table} of all tables that the results give; and {(place, kind): why not}.

    place      (data set, conditions), or "all" for tables across data sets
    repeated   the same of second trainings, see `trainings`
    """
    made, refused = {}, {}

    def make(place, kind, function, *args):
        try:
            result = function(*args)
            parts = result if isinstance(result, dict) else {"": result}
            made.update({(place, kind + end): part for end, part in parts.items() if part.rows})
        except Refused as error:
            refused[place, kind] = str(error)

    def sound(places):
        """Those of `places` whose rows a table may mix."""
        good = {}
        for place, rows in places.items():
            try:
                good[place] = results.comparable(rows, whole=False)
            except Refused as error:
                refused[place, "across data sets"] = str(error)
        return good

    def layout(place, kind, rows, few):
        """The table and, if it has corrected decisions, the same at the largest output.

        few    {row: number of runs} of those that are left out
        """
        main = results.main_rule(rows)
        for end in dict.fromkeys((main, "")):
            name = kind + (LARGEST if main != end else "")
            make(place, name, layout_table, kind, rows, end)
            if (place, name) in made:
                names = [f"{row} ({n})" for row, n in few.items()]
                words = f"left out, without all runs of others: {', '.join(names)}"
                made[place, name].notes += [words] if few else []
                beside_published(made[place, name], place[0], kind)

    for place, rows in by_place.items():
        usual = without_sweeps(rows)
        ## Of two rows the poster's layout would be "Everything" once more.
        layouts = (("slides", SLIDES, 2), ("poster", POSTER, 3))
        for kind, names, least in () if results.of_masks(rows) else layouts:
            chosen = {name: rows[name] for name in names if name in rows}
            if len(chosen) >= least:
                layout(place, kind, *results.complete(chosen))
        if results.in_folds(place):
            make(place, "pooled", pooled_tables, usual, {"last": ""}, repeated.get(place, {}))
            chosen, lost = figures.at_two_points(usual, pooled=True)
            if len(chosen) > 1:
                words = {rule: f", {words}" for rule, words in results.RULES.items()}
                make(place, "fairdi", pooled_tables, chosen, words, {})
                if lost and (place, "fairdi") in made:
                    note = figures.listed(figures.LEFT_OUT, lost).strip()
                    made[place, "fairdi"].notes.append(note)
        else:
            layout(place, "masks" if results.of_masks(rows) else "overview", usual, {})
        make(place, "gains", gains_table, rows)
        for kind in SWEEPS:
            if found := swept(rows, kind):
                names = sweep(rows, kind).items()
                layout(place, kind, found, {v: len(rows[n]) for v, n in names if v not in found})
        make(place, "weights", weights_table, rows, repeated.get(place, {}))
    every = sound(by_place), sound(repeated)
    for prefix, which in zip(("", "repeated-"), every):
        for kind in (claims_table, inflation_table, causes_table, pairs_table):
            make("all", prefix + kind.__name__.removesuffix("_table"), kind, which)
    make("all", "minus-erm", minus_erm_tables, *every)
    make("all", "repeated", repeated_table, *every)
    for place, rows in repeated.items():
        if results.in_folds(place):
            make(place, "repeated-pooled", pooled_tables, rows, {"last": ""}, {})
    make("all", "made", made_table, by_place)
    return made, refused


def pages(by_place, made, captions):
    """{file name: Markdown}: a page for each data set, and claims.md for what concerns them all.

    captions    {(data set, conditions): {file name of a figure: its caption}}, "all" for the others
    """
    start = "Made by `python report.py`; `--help` tells what the columns and intervals mean. The "
    start += "best of a column is bold: no test says that it is better than the next."
    names = "Data sets have the names of the headings on their pages, where their commands stand."
    texts = {}
    for place, (name, command, runs, hours, machine) in zip(by_place, made["all", "made"].rows):
        text = texts.setdefault(f"{place[0]}.md", [f"# Results: {results.titled(place[0])}", start])
        text += [f"## {name}", f"{runs} runs, {hours} hours on {machine}, of {command}."]
        for (kind, title), end in itertools.product(KINDS.items(), ("", LARGEST)):
            if (place, kind + end) in made:
                words = ", at the largest output" if end else ""
                text += [f"### {title}{words}", made[place, kind + end].markdown()]
        text += [f"![{file}]({file})\n\n*{c}*" for file, c in captions.get(place, {}).items()]
    text = texts["claims.md"] = ["# Results: claims, and all data sets together", start, names]
    for kind, title in ACROSS.items():
        for place in [place for place, other in made if other == kind]:
            where = "" if place == "all" else f" ({named(*place)})"
            text += [f"## {title}{where}", made[place, kind].markdown()]
    text += [f"![{file}]({file})\n\n*{c}*" for file, c in captions.get("all", {}).items()]
    return {name: "\n\n".join(text) + "\n" for name, text in texts.items()}


# ----- figures ------------------------------------------------------------------------------------


def stem_of(place):
    """How the names of the figures of a place begin."""
    stem = "-".join(filter(None, place))
    ## Windows forbids some of these in names of files, Markdown the others in links.
    stem = re.sub(r'[\s<>:"/\\|?*()]', "_", stem)
    return stem if len(stem) < 200 else f"{stem[:180]}-{digest(stem)}"  # Linux: 255 at most


## It needs saved networks and pictures, which are not packed, so it is not drawn anew: it is
## the ...-gallery.png of `python report.py --results RUNS --data-dir DIR`, renamed.
DRAWN_BEFORE = "masks-gallery.png"
SHOWN = {  # the figures of the packed results; your own results get all of them
    "toy": ("gallery", "training"),
    "CIFAR10-S": ("disparity",),
    "CelebA, attractive": ("sweep",),
    **dict.fromkeys(("HAM10000, sex", "HAM10000, age", "HAM10000, masks, age"), ("two-points",)),
}
COMMITTED = [f"ranks-{metric}.png" for metric in ("AUROC", "worst-group", "mean-DEO", "worst-Dice")]
COMMITTED += [f"{stem_of(PLACES[p])}-{kind}.png" for p, kinds in SHOWN.items() for kind in kinds]


def rank_blocks(by_place, metric):
    """Names (k) and values (P, k), higher is better, of the rows of RANKED on every data set and
    attribute; the names of the other rows; the P data sets in words.

    FairDi's paper claims the best rank, so data sets without it are left out. A method that one of
    them lacks is left out of all, so those that lack more than one method are left out themselves.
    The toy counts alone or not at all. What is undefined ranks last, in a metric of decisions also
    a row of which one run has collapsed.
    """
    blocks, weights = {}, collections.defaultdict(dict)  # weights: {name: {data set: "λ = 3"}}
    for place, rows in by_place.items():
        if (metric in MASKS) != results.of_masks(rows) or not results.variant(rows, "FairDi"):
            continue
        key, sign = metric_of(metric, results.main_rule(rows)), METRICS[metric][1]
        most, block = max(map(len, rows.values())), blocks.setdefault(place, {})
        for name, row in {name: results.variant(rows, name) for name in RANKED}.items():
            if row and len(rows[row]) == most:
                value = sign * results.point(rows[row], key, pooled=results.in_folds(place))
                useless = metric in results.HARD and results.number_collapsed(rows[row])
                block[name] = -np.inf if useless or np.isnan(value) else value
                weights[name][place] = results.weight_of(rows[row]).strip(", ")
    real = {place: block for place, block in blocks.items() if not place[0].startswith("toy")}
    blocks = real or blocks
    there = {name for block in blocks.values() for name in block}
    blocks = {k: block for k, block in blocks.items() if len(block) >= len(there) - 1}
    names = [name for name in RANKED if all(name in block for block in blocks.values())]
    lost = [name for name in RANKED if name in there and name not in names]
    scores = [[block[name] for name in names] for block in blocks.values()]
    for n, name in enumerate(names):
        own = sorted({weights[name].get(place) or "usual" for place in blocks})
        names[n] += f" ({' or '.join(own)})" if own != ["usual"] else ""
    where = heads({place: by_place[place] for place in blocks})
    return names, np.array(scores).reshape(len(blocks), len(names)), lost, where


def draw(by_place, folder, wanted, data_dir):
    """Draw the figures that the results give; {place: {file name: caption}}.

    wanted    names of the only files to draw; empty: all of them
    """
    captions = {}
    worst = {"worst group": "AUROC of the worst group", "worst Dice": "Dice of the worst group"}

    def make(place, name, function, *args):
        try:
            if not wanted or name in wanted:
                if caption := function(*args, folder / name):
                    captions.setdefault(place, {})[name] = caption
                    if wanted:  # 256 colours look the same and take a third of the space
                        picture = Image.open(folder / name).convert("RGB").quantize(256)
                        picture.save(folder / name, optimize=True)
        except InputError:  # `tables` says why, or answers or pictures are not there
            return

    def ranked(metric, path):
        """Beside ranks by decisions stand those by AUROC: who is fair may be of no use."""
        names, scores, *more = rank_blocks(by_place, metric)
        known, areas, *_ = rank_blocks(by_place, "AUROC") if metric in results.HARD else ((), ())
        useful = dict(zip(known, figures.ranks(areas).mean(0))) if len(areas) else {}
        return figures.mean_ranks(names, scores, *more, worst.get(metric, metric), useful, path)

    for place, rows in by_place.items():
        stem, where = stem_of(place), results.scene(rows)
        usual, pooled = without_sweeps(rows), results.in_folds(place)
        make(place, f"{stem}-gallery.png", figures.gallery, usual, data_dir, where)
        make(place, f"{stem}-disparity.png", figures.per_class, usual, where)
        make(place, f"{stem}-training.png", figures.training, usual, where)
        make(place, f"{stem}-two-points.png", figures.two_points, usual, pooled, where)
        for kind in SWEEPS:
            make(place, f"{stem}-{kind}.png", figures.sweep, swept(rows, kind), kind, where)
    for metric in ("AUROC", "worst group", "mean-DEO", "Dice", "worst Dice"):
        make("all", f"ranks-{metric.replace(' ', '-')}.png", ranked, metric)
    if (folder / DRAWN_BEFORE).exists():
        place = PLACES["HAM10000, masks, age"]
        captions.setdefault(place, {})[DRAWN_BEFORE] = figures.OUTLINES + figures.CREDIT
    return captions


def fill(text, by_place):
    """A README with its two generated tables made anew."""
    first = headline_table(by_place, FIRST, ("AUROC", "mean-DEO"), sure=True)
    text = put(text, "first", first.markdown())
    return put(text, "results", headline_table(by_place).markdown())


def put(text, name, table):
    """A text with the generated table of this name made anew."""
    start, end = f"<!-- table {name} -->\n", "\n<!-- end -->"
    if start not in text or end not in text:
        raise Refused(f"README.md has no place for the table, {start.strip()} ... {end.strip()}")
    before, rest = text.split(start, 1)
    return before + start + table + end + rest.split(end, 1)[1]


def number_of_runs(by_place):
    """Of all rows of all places."""
    return sum(len(runs) for rows in by_place.values() for runs in rows.values())


def main():
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--results", default="runs", help="folder of results [runs]")
    parser.add_argument("--pack", action="store_true", help="add the results to those in results/")
    parser.add_argument("--data-dir", help="folder of the pictures, for a gallery of real ones")
    parser.add_argument("--html", action="store_true", help="a web page of each run, and of all")
    words = "two runs, or folders of runs that differ in their seed alone: B minus A, paired"
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help=words)
    args = parser.parse_args()
    source, packed = Path(args.results), ROOT / "results"
    if args.compare:
        return print(webpages.compare(*args.compare))
    if args.html:
        return print(webpages.write(source, args.data_dir))
    every = results.collect(source)
    by_place, repeated = results.trainings(every)
    if more := number_of_runs(every) - number_of_runs(by_place) - number_of_runs(repeated):
        print(f"third trainings of a fold, in no table: {more} by rows")
    if not by_place:
        if (source / "smoke").is_dir():
            smoke = source / "smoke"
            raise Refused(f"{source} holds smoke runs alone: for them --html --results {smoke}")
        raise Refused(f"{source} holds no results: run a script first, or run_all.sh")
    if args.pack:
        results.pack(source, packed)
        of = ", ".join(sorted({data for data, _ in every}))
        return print(f"packed the runs of {of} in {source} into {packed}")
    committed = any(source.glob("*.jsonl.gz"))
    folder = source if committed else source / "report"
    made, refused = tables(by_place, repeated)
    with explained(folder):
        folder.mkdir(exist_ok=True)
    captions = draw(by_place, folder, COMMITTED if committed else (), args.data_dir)
    texts = pages(by_place, made, captions)
    for name, text in texts.items():
        save(folder / name, text)
    print(f"wrote {', '.join(texts)} and {sum(map(len, captions.values()))} figures to {folder}")
    if not committed:
        print(results.brief(by_place))
    if source.resolve() == packed:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        save(ROOT / "README.md", fill(readme, by_place))
    if refused:
        lines = []
        for (place, kind), why in refused.items():
            where = place if place == "all" else " ".join(place)
            lines.append(f"no table {kind} of {where}: {why}")
        raise Refused("\n".join(lines))


if __name__ == "__main__":
    end_with_reader()
    try:
        main()
    except InputError as error:
        sys.exit(f"report.py: {error}")
