"""Result files as the rows of tables, and how two rows are compared: for report.py.

A row is a method with its own settings. Runs are grouped by all else that they were made with (data
set, networks, epochs ...), and rows of one table must have the same pictures and seeds.

    {(data set, conditions): {row: {(fold, seed): result}}}     what `collect` returns

Results come from runs/, as the scripts leave them, or from results/, as `pack` has packed them: one
line of JSON for each run, and one file of arrays for each data set.

Intervals are 95 %. Over seeds or folds they are Student's, of the mean; over the pictures of a test
set they are a bootstrap of its subjects (lesions, persons). A difference is paired: over the same
seeds, or over the same pictures in the same resamples.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

import metrics
from data import InputError, restore, save

## Rows in the order of the tables: a script and those of its own settings that were changed.
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
## Settings that all scripts have. Those in CONDITIONS are shared by the rows of a table; those in
## OF_A_ROW make a row, as do all settings that only one script has.
OF_A_ROW = ("balance", "alpha", "temperature")
CONDITIONS = "skip_bad image_size target sensitive skew teacher student pretrained epochs".split()
CONDITIONS += "batch_size lr weight_decay precision compile smoke".split()
## What two runs must share to stand in one table.
SAME = "pictures image_size target sensitive epochs batch_size teacher student".split()
OWN_NETWORKS = {"fairtune"}  # it tunes a transformer of its own, whatever student the others train
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
DEBIASED = ("adversarial KD", "adversarial KD, λ = 0.5", "BIRD")  # one stands in figures
## Rows of the figures of two chosen epochs and of training.
TWO_POINTS = ("ERM", "re-balancing", "GroupDRO", "SWAD", "FIS", "FairDi", "FairTune", "CKD")
TWO_POINTS += ("adversarial KD", "BIRD")
TRAINING = ("ERM", "CKD", "CTKD", "BIRD", "adversarial KD")
UTILITY = ("top-1", "recall", "precision", "F1", "AUROC")


class Refused(InputError):
    """Runs that cannot stand in one table."""


# ----- reading and packing ------------------------------------------------------------------------


TRUTH = ("labels", "groups", "ids", "subjects")  # of the test pictures


def tested(result):
    """{name: part} of a result's networks: "teacher", "last", "best_overall", "fis" ..."""
    return {k: part for k, part in result.items() if isinstance(part, dict) and "test" in part}


def read(folder):
    """All results in `folder`, fresh or packed, but for smoke runs.

    Each has a further entry "arrays": the file of its arrays, and what they are called in there.
    """
    results = []
    for path in sorted(Path(folder).glob("*/*/*/result.json")):
        result = restore(path)
        if not {"method", "settings", "changed", "last"} <= result.keys():
            raise Refused(f"{path} lacks its settings or its student: delete it and run again")
        names = {name: name for name in (*tested(result), *TRUTH)}
        results.append(result | {"arrays": (path.with_name("logits.npz"), names)})
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            results.append(result | {"arrays": (path.with_suffix(".npz"), result["arrays"])})
    return results


OPENED = {}  # {path: {name: array}}


def arrays_of(result):
    """{name: array}: test logits (N, C) of each network, labels, groups, ids, subjects (N,)."""
    path, names = result["arrays"]
    try:
        if path not in OPENED:
            with np.load(path, allow_pickle=False) as file:
                OPENED[path] = dict(file)
        return {name: OPENED[path][place] for name, place in names.items()}
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{path} cannot be read ({error}): run {result['method']} again") from None


def identity(result):
    """What makes a run another run than the others of its data set; results are packed by it."""
    settings, changed = result["settings"], result["changed"]
    words = "-".join(f"{k}_{v}" for k, v in changed.items() if k != "fold") or "default"
    return result["method"], f"{words}-seed", str(settings["fold"]), settings["seed"]


def lean(result, intervals):
    """What tables and figures read of a result: metrics with twelve digits, its log with five."""
    kept = ("method", "settings", "changed", "classes", "group_names", "log", "search", "times")
    packed = {name: result[name] for name in kept if name in result}
    shown = [name for name, _ in METRICS.values()]
    for name, part in tested(result).items():
        test = part["test"]
        packed[name] = {k: part[k] for k in ("epoch", "network", "parameters", "megabytes")}
        packed[name]["test"] = {k: test[k] for k in (*shown, "counts", "n")} | {
            "interval": {k: test["interval"][k] for k in shown if intervals and test["interval"]},
            "groups": [{"auroc": group["auroc"]} for group in test["groups"]],
            "classes": [{"disparity": one["disparity"]} for one in test["classes"]],
        }
    packed = rounded(packed, 12)
    log = rounded(packed["log"], 5) if row_name(result) in TRAINING else []
    return packed | {"log": log}


def rounded(content, digits):
    """A JSON-ready value whose numbers have at most so many significant digits."""
    text = json.dumps(content)
    return json.loads(text, parse_float=lambda number: float(f"{float(number):.{digits}g}"))


def pack(source, target):
    """Add the results in the folder `source` to the packed ones in `target`; the same run anew.

    Of a data set each distinct array is kept once, and only what tables and figures read: where a
    row has many seeds its intervals are over seeds and need no logits, but for the one run whose
    answers a figure shows; the epochs that are best on validation, and the log, for some rows.
    """
    by_dataset = {}
    for result in [*read(target), *read(source)]:
        by_dataset.setdefault(result["settings"]["dataset"], {})[identity(result)] = result
    for dataset, results in by_dataset.items():
        lines, kept = [], {}
        seeds = len({result["settings"]["seed"] for result in results.values()}) > 1
        for _, result in sorted(results.items()):
            row, settings, names = row_name(result), result["settings"], {}
            wanted = {"teacher", "last", "fis", *TRUTH}
            if row in TWO_POINTS or result["method"] == "fairdi":
                wanted |= result["arrays"][1].keys()
            shown = row in (*DEBIASED, "CKD") and settings["seed"] == 0
            if (shown or not seeds) and result["arrays"][0].exists():
                for name, array in arrays_of(result).items():
                    if name in wanted:
                        names[name] = hashlib.sha256(array.tobytes()).hexdigest()[:12]
                        kept[names[name]] = array
            single = not seeds and settings["fold"] is None  # its intervals are over its pictures
            line = lean(result, single) | {"arrays": names}
            lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        if kept:
            np.savez_compressed(packed := io.BytesIO(), **kept)
            save(Path(target) / f"{dataset}.npz", packed.getvalue())
        save(Path(target) / f"{dataset}.jsonl", "\n".join(lines) + "\n")


# ----- rows ---------------------------------------------------------------------------------------


def own_settings(result):
    """{setting: value} that make the row: changed ones of the script alone, or of OF_A_ROW."""
    own = {k: v for k, v in result["changed"].items() if k not in (*CONDITIONS, "fold")}
    own.pop("source", None)  # what FairTune starts from: no other row has it
    return dict(sorted(own.items()))


def row_name(result):
    """The name of a result's row: from NAMES, or the script's with the changed settings."""
    own, script = own_settings(result), result["method"]
    key = " ".join([script, *(f"{k}={v}" for k, v in own.items())])
    words = [f"{k} = {v}" for k, v in own.items() if not isinstance(v, float)]
    words += [f"{SYMBOLS.get(k, k)} = {v:g}" for k, v in own.items() if isinstance(v, float)]
    return NAMES.get(key) or f"{NAMES[script]}, {', '.join(words)}"


def unusual(result, without=()):
    """{setting: value} that a run shares with all of its tables and that were changed."""
    skip = {"fold", *OF_A_ROW, *without}
    return {k: v for k, v in result["changed"].items() if k in CONDITIONS and k not in skip}


def conditions(result, without=()):
    """`unusual` as a text, "" for none; in front "folds", where the test set is one of five."""
    parts = [] if result["settings"]["fold"] is None else ["folds"]
    parts += [f"{k}_{v}".replace("/", "_") for k, v in unusual(result, without).items()]
    return "-".join(parts)


def collect(folder):
    """{(dataset, conditions): {row: {(fold, seed): result}}} of all result files but smoke runs."""
    found, free = {}, []
    for result in read(folder):
        settings = result["settings"]
        key = (settings["fold"] or 0, settings["seed"])
        group = (settings["dataset"], conditions(result))
        if result["method"] in OWN_NETWORKS:
            free.append((key, result))
            continue
        found.setdefault(group, {}).setdefault(row_name(result), {})[key] = result
        if "fis" in result:  # FairDi's step 0, which is a method of its own
            names = {"last": "fis", **{rule: f"fis_{rule}" for rule in POINTS}}
            names = {rule: name if name in result else "fis" for rule, name in names.items()}
            step = {rule: result[name] for rule, name in names.items()}
            path, places = result["arrays"]
            renamed = {rule: places[name] for rule, name in names.items() if name in places}
            result = {**result, **step, "arrays": (path, places | renamed)}
            found[group].setdefault("FIS", {})[key] = result
    ## FairTune's runs stand in every table of the same conditions but for the networks, or alone.
    homes = {}
    for (dataset, _), rows in found.items():
        first = next(result for runs in rows.values() for result in runs.values())
        place = dataset, conditions(first, ("teacher", "student"))
        homes.setdefault(place, []).append(rows)
    for key, result in free:
        dataset = result["settings"]["dataset"]
        like = dataset, conditions(result, ("teacher", "student"))
        alone = found.setdefault((dataset, conditions(result)), {}) if like not in homes else {}
        for rows in homes.get(like, [alone]):
            rows.setdefault(row_name(result), {})[key] = result
    order = {name: place for place, name in enumerate(NAMES.values())}
    ordered = {}
    for group, rows in sorted(found.items()):
        names = sorted(rows, key=lambda name: order.get(name, len(order)))
        ordered[group] = {name: rows[name] for name in names}
    return ordered


def comparable(rows, whole=True):
    """`rows` {name: {key: result}} as they are; raises Refused when a table must not mix them.

    whole    every row must have every (fold, seed)
    """
    wrong, first = [], next(iter(rows), None)

    def say(runs):
        return ", ".join(f"fold {f} seed {s}" if f else f"{s}" for f, s in sorted(runs))

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


# ----- values and their differences ---------------------------------------------------------------


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
    return Value(*metrics.seed_interval(values=numbers), "±")


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
    _, low, high = metrics.seed_interval(values=np.arange(n))
    t2 = ((high - low) / 2) ** 2 / np.arange(n).var(ddof=1)  # t² / n
    cov = np.cov(x, y)
    a, b, c = (
        u - t2 * v
        for u, v in (
            (x.mean() ** 2, cov[0, 0]),
            (x.mean() * y.mean(), cov[0, 1]),
            (y.mean() ** 2, cov[1, 1]),
        )
    )
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
    return Value(float(point), *metrics.interval(draws=np.array(draws)))


# ----- test logits: folds together, and two models on the same pictures ---------------------------


def pictures(runs, rule, keys):
    """Logits, labels, groups, ids and subjects of the test pictures of some runs, by id.

    ## Pooling folds mixes models: each fold has its own, and a logit of 1 need not mean the same
    ## in all. AUROC over the pool pays for that; the mean over folds would not, but folds are too
    ## small for groups with few positives. Logits are pooled as they are, for every method.
    """
    parts = []
    for key in keys:
        arrays = arrays_of(runs[key])
        if rule not in arrays:
            raise Refused(f"{runs[key]['arrays'][0]} lacks the logits of {row_name(runs[key])}")
        parts.append([arrays[name] for name in (rule, *TRUTH)])
    logits, labels, groups, ids, subjects = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(ids)
    if len(np.unique(ids)) < len(ids):
        raise Refused(f"a picture is tested twice in folds {[f for f, _ in keys]}")
    return [array[order] for array in (logits.astype(float), labels, groups, ids, subjects)]


CACHE = {}  # of `scores`: a base is compared with many rows


def scores(runs, rule, keys, replicates=1000):
    """Point values and bootstrap draws of every metric over the pictures of some runs."""
    name = (
        rule,
        *((path, *sorted(names.items())) for path, names in (runs[k]["arrays"] for k in keys)),
    )
    if name not in CACHE:
        logits, labels, groups, ids, subjects = pictures(runs, rule, keys)
        groups_there = len(runs[keys[0]]["group_names"])
        data = dict(logits=logits, labels=labels, groups=groups, num_groups=groups_there)
        weights = metrics.bootstrap_weights(n=len(ids), replicates=replicates, clusters=subjects)
        draws = metrics.bootstrap(**data, weights=weights)
        CACHE[name] = {
            "ids": ids,
            "truth": (labels, groups),
            "draws": draws,
            "point": metrics.headline(**data),
        }
    return CACHE[name]


def measured(one, metric, group=None):
    """A metric of `scores` in percent with its bootstrap interval; of one group, if named."""
    point, draws = one["point"][metric], one["draws"][metric]
    point, draws = (point, draws) if group is None else (point[group], draws[:, group])
    low, high = metrics.interval(draws=draws, point=point)
    return Value(100 * float(point), 100 * low, 100 * high)


def paired(one, base, metric):
    """Difference of a metric, one minus base, on the same pictures in the same resamples."""
    same = zip((one["ids"], *one["truth"]), (base["ids"], *base["truth"]))
    if not all(np.array_equal(a, b) for a, b in same):
        raise Refused("paired differences need the same test pictures, labels and groups")
    d = metrics.paired_difference(
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
