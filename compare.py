"""Result files as the rows of tables, and how two rows are compared: for report.py.

A row is a method with its settings. Runs are grouped by everything else that they were made with
(data set, networks, epochs, ...); rows of one table must have the same pictures and seeds; if not,
the table is refused with the list of what differs.

    {(data set, conditions): {row: {(fold, seed): result}}}     what `collect` reads, "found" below

Intervals are 95 %: over seeds or folds Student's, of the mean; over the pictures of a test set a
bootstrap of its subjects (lesions, persons). A difference is paired: the same seeds, or the same
pictures in the same resamples.
"""

import argparse
import functools
import importlib
import json
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import metrics as M
import runs as R
from readers import InputError

sys.path.insert(0, str(Path(__file__).resolve().parent / "methods"))
## Rows, in the order of the tables: a script and those of its settings that are not the usual ones.
NAMES = {
    "ckd alpha=0.0": "ERM",
    "ckd alpha=0.0 balance=True": "re-balancing",
    "ckd": "CKD",
    "ckd temperature=1.0": "CKD, T = 1",
    "rkd": "RKD",
    "ctkd": "CTKD",
    "kdpp": "KD++",
    "fitnet": "FitNet",
    "at": "AT",
    "adversarial_kd alpha=0.0": "AD",
    "adversarial_kd adversary_weight=0.5 alpha=0.0": "AD, λ = 0.5",
    "adversarial_kd": "adversarial KD",
    "mfd": "MFD",
    "bird": "BIRD",
    "bird phi_lr=0.0": "BIRD, gates fixed",
    "groupdro": "GroupDRO",
    "groupdro by_class=True": "GroupDRO by class",
    "swad": "SWAD",
    "fis": "FIS",
    "fairdi": "FairDi",
    "fairdi balance=True": "FairDi, balanced",
    "fairdi train_backbone=True": "FairDi, φ trained",
    "fairdi alpha=0.0": "FairDi, no teachers",
    "fairtune mask=none trials=4": "linear probe",
    "fairtune mask=all trials=4": "full fine-tuning",
    "fairtune": "FairTune",
}
SYMBOLS = {"adversary_weight": "λ", "temperature": "T", "alpha": "α", "fair_weight": "μ"}
## What two runs must share to stand in one table.
SAME = "pictures image_size target sensitive epochs batch_size teacher student".split()
## Settings of ckd.py, and so of all scripts, that make a row; its other ones are shared by a table.
OF_A_ROW = ("balance", "alpha", "temperature")
OWN_NETWORKS = {"fairtune"}  # tunes its own transformer, whatever student the others train
POINTS = {"best_overall": "best overall", "best_worst_group": "best worst group"}
## name in a table -> (name in metrics.py, which end is better)
METRICS = {
    "top-1": ("accuracy", 1),
    "recall": ("recall", 1),
    "precision": ("precision", 1),
    "F1": ("f1", 1),
    "AUROC": ("auroc", 1),
    "worst group": ("auroc_worst_group", 1),
    "gap": ("auroc_gap", -1),
    "ES-AUC": ("es_auc", 1),
    "PSD mean": ("psd_mean", -1),
    "PSD max": ("psd_max", -1),
    "mean-DEO": ("mean_deo", -1),
    "max-DEO": ("max_deo", -1),
    "disparity": ("disparity", -1),
    "parity": ("demographic_parity_difference", -1),
}
UTILITY = ("top-1", "recall", "precision", "F1", "AUROC")


class Refused(ValueError):
    """Runs that cannot stand in one table."""


# ==================================================================================================
# Runs
# ==================================================================================================


@functools.cache
def usual(script, dataset):
    """The settings of a script for a data set when its command line names none."""
    parser = importlib.import_module(script).settings()
    return vars(R.complete(parser.parse_args(["--dataset", dataset])))


def own_settings(result):
    """{setting: value} that make the row: of the script alone, or of OF_A_ROW, and not usual."""
    script, settings = result["method"], result["settings"]
    normal, shared = usual(script, settings["dataset"]), usual("ckd", settings["dataset"])
    own = {k: v for k, v in settings.items() if k not in shared or k in OF_A_ROW}
    own.pop("source", None)  # what FairTune starts from: no other row has it
    return {k: own[k] for k in sorted(own) if k in normal and own[k] != normal[k]}


def row_name(result):
    """The name of a result's row: from NAMES, or the script's with the unusual settings."""
    own, script = own_settings(result), result["method"]
    key = " ".join([script, *(f"{k}={v}" for k, v in own.items())])
    extra = ", ".join(f"{SYMBOLS.get(k, k)} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
                      for k, v in own.items())  # fmt: skip
    return NAMES.get(key) or f"{NAMES[script]}, {extra}"


def unusual(result, without=()):
    """{setting: value} that a run shares with all of its tables and that are not usual."""
    script, settings = result["method"], result["settings"]
    normal, shared = usual(script, settings["dataset"]), usual("ckd", settings["dataset"])
    skip = {*OF_A_ROW, *without, "dataset", "seed", "fold"}
    return {k: v for k, v in settings.items()
            if k in shared and k not in skip and v != normal.get(k)}  # fmt: skip


def conditions(result, without=()):
    """`unusual` as a text, "" for none; in front "folds", where the test set is one of five."""
    parts = [f"{k}_{v}".replace("/", "_") for k, v in unusual(result, without).items()]
    return "-".join(["folds"] * (result["settings"]["fold"] is not None) + parts)


def read(path):
    """The content of a result file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if {"method", "settings", "last"} <= result.keys():
            return result
        reason = "it lacks the settings or the student"
    except (OSError, ValueError, AttributeError) as error:
        reason = error
    raise Refused(f"{path} is not a result file ({reason}): delete it and run again")


def collect(folder):
    """{(dataset, conditions): {row: {(fold, seed): result}}} of all result files but smoke runs."""
    found, free = {}, []
    for path in sorted(Path(folder).glob("*/*/*-seed*.json")):
        result = read(path)
        settings = result["settings"]
        key = (settings["fold"] or 0, settings["seed"])
        group = (settings["dataset"], conditions(result))
        result["npz"], result["model"] = path.with_suffix(".npz"), {}
        if result["method"] in OWN_NETWORKS:
            free.append((key, result))
            continue
        found.setdefault(group, {}).setdefault(row_name(result), {})[key] = result
        if "fis" in result:  # FairDi's step 0, which is a method of its own
            names = {"last": "fis", **{rule: f"fis_{rule}" for rule in POINTS}}
            models = {rule: name if name in result else "fis" for rule, name in names.items()}
            step = {rule: result[name] for rule, name in models.items()}
            result = {**result, **step, "model": models}
            found[group].setdefault("FIS", {})[key] = result
    ## FairTune's runs stand in every table of the same conditions but for the networks, or alone.
    networks = ("teacher", "student")
    like = lambda result: (result["settings"]["dataset"], conditions(result, networks))
    others = [(like(next(r for runs in rows.values() for r in runs.values())), rows)
              for rows in found.values()]  # fmt: skip
    for key, result in free:
        own = (result["settings"]["dataset"], conditions(result))
        homes = [rows for place, rows in others if place == like(result)]
        for rows in homes or [found.setdefault(own, {})]:
            rows.setdefault(row_name(result), {})[key] = result
    order = [*NAMES.values()]
    place = lambda name: order.index(name) if name in order else len(order)
    return {group: dict(sorted(rows.items(), key=lambda item: place(item[0])))
            for group, rows in sorted(found.items())}  # fmt: skip


def frozen(method, settings):
    """What makes a run another run, as something that can stand in a set.

    ## What is off is left out: a result is not another because a switch was added since.
    """
    on = {k: v for k, v in settings.items() if k != "pictures" and v is not None and v is not False}
    return method, json.dumps(on, sort_keys=True)


def planned(line):
    """`frozen` of a command of run_all.sh --list, or None where it cannot be read."""
    script, *flags = shlex.split(line)[2:]  # OMP_NUM_THREADS=1 python methods/ckd.py ...
    script = Path(script).stem
    try:
        parser = importlib.import_module(script).settings()
        parser.exit_on_error = False
        args = vars(R.complete(parser.parse_args(flags)))
    except (argparse.ArgumentError, SystemExit, InputError):
        return None
    return frozen(script, {k: v for k, v in args.items() if k not in R.PLACES})


def unfinished(lines, folder):
    """The commands among `lines` that have no result in `folder` yet: what run_all.sh has to do.

    ## Settings are compared without touching a picture: a list of finished runs costs seconds. A
    ## command that cannot be read stays, so that its script says what is wrong with it. The results
    ## that come with the code, in results/reference/, are not those of whoever runs this.
    """
    paths = (
        p
        for p in Path(folder).rglob("*-seed*.json")
        if "reference" not in p.relative_to(folder).parts
    )
    seen = {frozen(result["method"], result["settings"]) for result in map(read, paths)}
    yield from (line for line in lines if planned(line) not in seen)


def comparable(rows, whole=True):
    """`rows` {name: {key: result}} as they are; raises Refused when a table must not mix them.

    whole    every row must have every (fold, seed)
    """
    wrong, first = [], next(iter(rows), None)
    say = lambda runs: ", ".join(f"fold {f} seed {s}" if f else f"{s}" for f, s in sorted(runs))
    for name, runs in rows.items():
        if whole and sorted(runs) != sorted(rows[first]):
            wrong.append(f"{name} has seeds {say(runs)}, {first} {say(rows[first])}")
        for key in runs.keys() & rows[first].keys():
            a, b = rows[first][key]["settings"], runs[key]["settings"]
            free = {r[key]["method"] for r in (rows[first], runs)} & OWN_NETWORKS
            same = [k for k in SAME if not (free and k in ("teacher", "student"))]
            wrong += [f"{k} of {first} is {a[k]}, of {name} {b[k]}" for k in same if a[k] != b[k]]
    every = [result for runs in rows.values() for result in runs.values()]
    if len({r["search"]["theta_0"] for r in every if "theta_0" in r.get("search", {})}) > 1:
        wrong.append("FairTune's runs start from different pre-trained weights")
    if wrong:
        raise Refused("these runs cannot be compared: " + "; ".join(dict.fromkeys(wrong)))
    return rows


def select(rows, names):
    """The named rows that are there, in the order of `names`."""
    return comparable({name: rows[name] for name in names if name in rows})


def values(runs, metric, rule="last"):
    """One test metric in percent, an array over the runs of a row; undefined is NaN."""
    numbers = [runs[key][rule]["test"][metric] for key in sorted(runs)]
    return 100 * np.array([np.nan if n is None else n for n in numbers], float)


def collapsed(test):
    """Whether predictions on a test set have collapsed.

    A class is never predicted, a group is answered with one class, or macro recall is within 5
    points of chance.
    """
    counts = np.array(test["counts"])  # (G, C, C), group x true x predicted
    predicted = counts.sum(1) > 0  # (G, C)
    one_answer = (predicted.sum(-1) == 1).any() or not predicted.any(0).all()
    return bool(one_answer or test["recall"] < 1 / counts.shape[-1] + 0.05)


def number_collapsed(runs, rule="last"):
    return sum(collapsed(result[rule]["test"]) for result in runs.values())


# ==================================================================================================
# Values and their differences
# ==================================================================================================


class Value(NamedTuple):
    """A number in percent with its 95 % interval, from seeds ("±") or a bootstrap ("[]")."""

    point: float
    low: float = np.nan
    high: float = np.nan
    style: str = "[]"

    def __str__(self):
        if np.isnan(self.point):
            return "undefined"
        if np.isnan(self.low):
            return f"{self.point:.1f}"
        if self.style == "±":
            return f"{self.point:.1f} ± {(self.high - self.low) / 2:.1f}"
        return f"{self.point:.1f} [{self.low:.1f}, {self.high:.1f}]"


def over_runs(numbers):
    """Mean of an array over seeds or folds, with its interval."""
    return Value(*M.seed_interval(values=numbers), "±")


def cell(runs, metric, rule="last"):
    """A metric of a row: over its runs, or, for a single run, over its test pictures."""
    if len(runs) > 1:
        return over_runs(values(runs, metric, rule))
    test = next(iter(runs.values()))[rule]["test"]
    parts = [test[metric], *test.get("interval", {}).get(metric, [])]
    return Value(*(np.nan if p is None else 100 * p for p in parts))


def change(runs, base, metric, rule="last", base_rule=None):
    """Paired difference of a metric, row minus base, over the same runs or the same pictures."""
    base_rule = base_rule or rule
    if len(runs) > 1:
        return over_runs(values(runs, metric, rule) - values(base, metric, base_rule))
    keys = list(runs)
    return paired(scores(runs, rule, keys), scores(base, base_rule, keys), metric)


def relative_change(numbers, base):
    """Change of the mean in percent of the base's mean, paired by seed: (value, low, high).

    ## Fieller's interval: all ratios ρ for which the interval of the mean of y - ρx holds 0. It
    ## needs no division by single, perhaps tiny, values. NaN where x may be 0: no bounds then.
    """
    x, y, n = np.asarray(base, float), np.asarray(numbers, float), len(numbers)
    point = 100 * (y.mean() / x.mean() - 1)
    if n < 2:
        return Value(point)
    _, low, high = M.seed_interval(values=np.arange(n))
    t2 = ((high - low) / 2) ** 2 / np.arange(n).var(ddof=1)  # t² / n
    cov = np.cov(x, y)
    a, b, c = (u - t2 * v for u, v in ((x.mean() ** 2, cov[0, 0]),
               (x.mean() * y.mean(), cov[0, 1]), (y.mean() ** 2, cov[1, 1])))  # fmt: skip
    if a <= 0:
        return Value(point)
    root = np.sqrt(max(b * b - a * c, 0))
    return Value(point, 100 * ((b - root) / a - 1), 100 * ((b + root) / a - 1))


def relative(runs, base, metric, rule="last", base_rule=None):
    """`change` in percent of the base's value."""
    base_rule = base_rule or rule
    if len(runs) > 1:
        return relative_change(values(runs, metric, rule), values(base, metric, base_rule))
    keys = list(runs)
    one, other = scores(runs, rule, keys), scores(base, base_rule, keys)
    of = [np.array([x["point"][metric], *x["draws"][metric]], float) for x in (one, other)]
    if np.quantile(of[1], 0.025) <= 0:  # the base may be 0: no bounds, as above
        return Value(100 * (of[0][0] / of[1][0] - 1) if of[1][0] else np.nan)
    point, *draws = 100 * (of[0] / np.where(of[1] > 0, of[1], np.nan) - 1)
    return Value(float(point), *M.interval(draws=np.array(draws)))


# ==================================================================================================
# Test logits: one test set of several folds, and two models on the same pictures
# ==================================================================================================


def pictures(runs, rule, keys):
    """Logits, labels, groups, ids and subjects of the test pictures of some runs, by id.

    ## Pooling folds mixes models: each fold has its own, and a logit of 1 need not mean the same
    ## in all. AUROC over the pool pays for that; the mean over folds would not, but folds are too
    ## small for groups with few positives. Logits are pooled as they are, for every method.
    """
    parts = []
    for key in keys:
        try:
            with np.load(runs[key]["npz"], allow_pickle=False) as file:
                names = [runs[key]["model"].get(rule, rule), "labels", "groups", "ids", "subjects"]
                parts.append([file[name] for name in names])
        except (OSError, ValueError, KeyError) as error:
            raise Refused(f"{runs[key]['npz']} cannot be read ({error}): run it again") from None
    logits, labels, groups, ids, subjects = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(ids)
    if len(np.unique(ids)) < len(ids):
        raise Refused(f"a picture is tested twice in folds {[f for f, _ in keys]}")
    return [array[order] for array in (logits.astype(float), labels, groups, ids, subjects)]


CACHE = {}  # of `scores`: a base is compared with many rows


def scores(runs, rule, keys, replicates=1000):
    """Point values and bootstrap draws of every metric over the pictures of some runs."""
    name = tuple((str(runs[key]["npz"]), runs[key]["model"].get(rule, rule)) for key in keys)
    if name not in CACHE:
        logits, labels, groups, ids, subjects = pictures(runs, rule, keys)
        groups_there = len(runs[keys[0]]["group_names"])
        data = dict(logits=logits, labels=labels, groups=groups, num_groups=groups_there)
        weights = M.bootstrap_weights(n=len(ids), replicates=replicates, clusters=subjects)
        draws = M.bootstrap(**data, weights=weights)
        CACHE[name] = {"ids": ids, "truth": (labels, groups), "draws": draws,
                       "point": M.headline(**data)}  # fmt: skip
    return CACHE[name]


def measured(one, metric, group=None):
    """A metric of `scores` in percent with its bootstrap interval; of one group, if named."""
    point, draws = one["point"][metric], one["draws"][metric]
    point, draws = (point, draws) if group is None else (point[group], draws[:, group])
    low, high = M.interval(draws=draws, point=point)
    return Value(100 * float(point), 100 * low, 100 * high)


def paired(one, base, metric):
    """Difference of a metric, one minus base, on the same pictures in the same resamples."""
    same = zip((one["ids"], *one["truth"]), (base["ids"], *base["truth"]))
    if not all(np.array_equal(a, b) for a, b in same):
        raise Refused("paired differences need the same test pictures, labels and groups")
    d = M.paired_difference(
        point_a=one["point"][metric],
        point_b=base["point"][metric],
        draws_a=one["draws"][metric],
        draws_b=base["draws"][metric],
    )
    return Value(*(100 * d[k] for k in ("difference", "low", "high")))


def folds_of(runs):
    """One (fold, seed) for each fold of a row, with the lowest seed."""
    lowest = {}
    for fold, seed in sorted(runs, reverse=True):
        lowest[fold] = (fold, seed)
    return tuple(sorted(lowest.values()))


def paired_over(runs, base, metric, base_rule, folded):
    """Difference over all that both rows have, and what that is: seeds, or pictures of folds."""
    both = {key: runs[key] for key in sorted(runs.keys() & base.keys())}
    if folded:
        keys = folds_of(both)
        one, other = scores(runs, "last", keys), scores(base, base_rule, keys)
        return paired(one, other, metric), f"{len(keys)} folds, {len(one['ids']):,} pictures"
    other = {key: base[key] for key in both}
    count = f"{len(both)} seeds"
    if len(both) == 1:
        count = f"1 seed, {next(iter(both.values()))['last']['test']['n']:,} pictures"
    return change(both, other, metric, "last", base_rule), count
