"""Result files as rows of tables, and the difference of two rows: for report.py and figures.py.

Runs that differ in seed and fold alone are a row. Rows stand in one table if data set, networks,
epochs and the like are equal; what was changed among these is called their conditions:

    {(data set, conditions): {row: {(fold, seed): result}}}     what `collect` returns

Results come from runs/, as the scripts leave them, or from results/, as `pack` leaves them: one
line of JSON for each run, and for each data set one file of arrays.

Intervals are 95 %. Over seeds or folds they are Student's, of the mean; over the pictures of a test
set they are a bootstrap of its subjects (lesions, persons). A difference is paired: by seed or
fold, or by drawing the same pictures for both.
"""

import functools
import hashlib
import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats

import metrics
from data import InputError, restore, save

## A row is a script with some of its settings changed. Tables have the rows in this order.
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
## Settings that the rows of a table share; all others make rows.
CONDITIONS = "skip_bad image_size target sensitive skew teacher student pretrained epochs".split()
CONDITIONS += "batch_size lr weight_decay precision compile smoke".split()
SAME = "pictures image_size target sensitive epochs batch_size teacher student".split()
OWN_NETWORKS = {"fairtune"}  # it tunes a transformer of its own, whatever student the others train
RULES = {"best_overall": "best overall", "best_worst_group": "best worst group"}
## {name in a table: (name in metrics.py, 1 if more is better or -1 if less is)}
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
## Rows of figures: debiased students, of which the first that is there is shown beside CKD; rows
## whose log is drawn; rows that are shown at two chosen epochs.
DEBIASED = ("adversarial KD", "adversarial KD, λ = 0.5", "BIRD")
TRAINING = ("ERM", "CKD", "CTKD", "BIRD", "adversarial KD")
TWO_POINTS = ("ERM", "re-balancing", "GroupDRO", "SWAD", "FIS", "FairDi", "FairTune", "CKD")
TWO_POINTS += ("adversarial KD", "BIRD")


class Refused(InputError):
    """Runs that cannot stand in one table."""


# ----- reading and packing ------------------------------------------------------------------------

TRUTH = ("labels", "groups", "ids", "subjects")  # of the test pictures


def tested(result):
    """{name: part} of a result's networks: "teacher", "last", "best_overall", "fis" ..."""
    return {k: part for k, part in result.items() if isinstance(part, dict) and "test" in part}


def read(folder, smoke=False):
    """All results in `folder`, fresh or packed, smoke runs only if they are asked for.

    Each gets an entry "arrays": the path of a file of arrays, and {name: name in that file}.
    """
    runs = []
    for path in sorted(Path(folder).glob("*/*/*/result.json")):
        result = restore(path)
        if not {"method", "settings", "changed", "last"} <= result.keys():
            raise Refused(f"{path} lacks its settings or its student: delete it and run again")
        names = {name: name for name in (*tested(result), *TRUTH)}
        if smoke or not result["settings"].get("smoke"):
            runs.append(result | {"arrays": (path.with_name("logits.npz"), names)})
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            runs.append(result | {"arrays": (path.with_suffix(".npz"), result["arrays"])})
    return runs


@functools.cache
def opened(path):
    """All arrays of a file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def arrays(result, names):
    """The named arrays of a result: a network's test logits (N, C), labels, groups, ids ... (N,)"""
    path, places = result["arrays"]
    try:
        return [opened(path)[places[name]] for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        what = f"{path} cannot be read, or lacks the test logits of {row_name(result)}"
        raise Refused(f"{what} ({error}): run {result['method']} again") from None


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
            "classes": [{"disparity": own["disparity"]} for own in test["classes"]],
        }
    log = rounded(packed["log"], 5) if row_name(result) in TRAINING else []
    return rounded(packed, 12) | {"log": log}


def rounded(content, digits):
    """A JSON-ready value whose numbers have at most so many significant digits."""
    text = json.dumps(content)
    return json.loads(text, parse_float=lambda number: float(f"{float(number):.{digits}g}"))


def pack(source, target):
    """Add the results in the folder `source` to the packed ones in `target`; equal runs anew.

    Each distinct array is kept once, and only what tables and figures read. Where intervals are
    over seeds no logits are needed, but for the runs whose answers a figure shows. What is packed
    already keeps all that it has, whatever is added.
    """
    datasets, seeds = {}, {}
    for result in [*read(target), *read(source)]:
        settings, row = result["settings"], row_name(result)
        place, fold, seed = conditions(result), settings["fold"], settings["seed"]
        datasets.setdefault(settings["dataset"], {})[place, row, fold, seed] = result
        seeds.setdefault((settings["dataset"], place, row), set()).add(seed)
    for dataset, runs in datasets.items():
        lines, kept = [], {}
        for (place, row, fold, seed), result in runs.items():
            is_packed = result["arrays"][0].name != "logits.npz"
            over_seeds = fold is None and len(seeds[dataset, place, row]) > 1 and not is_packed
            names, digests = list(result["arrays"][1]), {}
            if over_seeds and (row not in (*DEBIASED, "CKD") or seed > 0):
                names = []
            elif not is_packed and row not in TWO_POINTS and result["method"] != "fairdi":
                names = [name for name in names if name in ("teacher", "last", *TRUTH)]
            for name, array in zip(names, arrays(result, names)):
                digests[name] = hashlib.sha256(array.tobytes()).hexdigest()[:12]
                kept[digests[name]] = array
            line = lean(result, fold is None and not over_seeds) | {"arrays": digests}
            lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        if kept:
            np.savez_compressed(packed := io.BytesIO(), **kept)
            save(Path(target) / f"{dataset}.npz", packed.getvalue())
        save(Path(target) / f"{dataset}.jsonl", "\n".join(lines) + "\n")


# ----- rows ---------------------------------------------------------------------------------------


def own_settings(result):
    """{setting: value} of what was changed and makes the row."""
    ## All of FairTune's rows start from the same source of pictures; no other row has one.
    shared = {*CONDITIONS, "fold", "source"}
    return {k: v for k, v in sorted(result["changed"].items()) if k not in shared}


def row_name(result):
    """The name of a result's row: from NAMES, or the script's with the changed settings."""
    own, script = own_settings(result), result["method"]
    key = " ".join([script, *(f"{k}={v}" for k, v in own.items())])
    words = [f"{SYMBOLS.get(k, k)} = {v:g}" for k, v in own.items() if isinstance(v, float)]
    words += [f"{k} = {v}" for k, v in own.items() if not isinstance(v, float)]
    return NAMES.get(key) or ", ".join([NAMES.get(script, script), *words])


def shared_settings(result, but=()):
    """{setting: value} of what was changed and is shared by a table's rows, `but` for some."""
    changed = result["changed"]
    return {k: changed[k] for k in CONDITIONS if k in changed and k not in but}


def conditions(result, but=()):
    """`shared_settings` as a text, "" for none; in front "folds", where the test set is a fold."""
    parts = [] if result["settings"]["fold"] is None else ["folds"]
    parts += [f"{k}_{v}".replace("/", "_") for k, v in shared_settings(result, but).items()]
    return "-".join(parts)


def with_fis(result):
    """A result as rows: its own and, for FairDi, that of its step 0, a method of its own."""
    yield row_name(result), result
    if "fis" in result:
        ## Where step 0 has no other epoch at a rule, its last one stands for that rule.
        names = {"last": "fis"}
        names |= {rule: f"fis_{rule}" if f"fis_{rule}" in result else "fis" for rule in RULES}
        path, places = result["arrays"]
        renamed = {rule: places[name] for rule, name in names.items() if name in places}
        step = {rule: result[name] for rule, name in names.items()}
        yield "FIS", result | step | {"arrays": (path, places | renamed)}


def collect(folder, smoke=False):
    """{(data set, conditions): {row: {(fold, seed): result}}} of all results in a folder."""
    by_place, homes = {}, {}  # homes: the places that differ in their networks alone
    for result in sorted(read(folder, smoke), key=lambda result: result["method"] in OWN_NETWORKS):
        settings = result["settings"]
        place = settings["dataset"], conditions(result)
        like = settings["dataset"], conditions(result, but=("teacher", "student"))
        if result["method"] in OWN_NETWORKS:  # they stand in every table that is alike, or alone
            places = homes.get(like, [place])
        else:
            places = [place]
            homes.setdefault(like, {})[place] = None
        for place, (name, run) in itertools.product(places, with_fis(result)):
            row = by_place.setdefault(place, {}).setdefault(name, {})
            row[settings["fold"] or 0, settings["seed"]] = run
    order = {name: number for number, name in enumerate(NAMES.values())}
    for place, rows in by_place.items():
        names = sorted(rows, key=lambda name: order.get(name, len(order)))
        by_place[place] = {name: rows[name] for name in names}
    return dict(sorted(by_place.items()))


def comparable(rows, whole=True):
    """`rows` {name: {(fold, seed): result}} as they are, or Refused if a table must not mix them.

    whole    every row must have every (fold, seed)
    """
    wrong, (first, base) = [], next(iter(rows.items()), (None, {}))
    for name, runs in rows.items():
        if whole and runs.keys() != base.keys():
            wrong.append(f"{name} has seeds {seeds_of(runs)}, {first} {seeds_of(base)}")
        for key in sorted(runs.keys() & base.keys()):
            a, b = base[key], runs[key]
            free = {"teacher", "student"} if {a["method"], b["method"]} & OWN_NETWORKS else set()
            for k in [k for k in SAME if k not in free and a["settings"][k] != b["settings"][k]]:
                wrong.append(f"{k} of {first} is {a['settings'][k]}, of {name} {b['settings'][k]}")
    searches = [run.get("search", {}) for runs in rows.values() for run in runs.values()]
    if len({search["theta_0"] for search in searches if "theta_0" in search}) > 1:
        wrong.append("FairTune's runs start from different pre-trained weights")
    if wrong:
        raise Refused("these runs cannot be compared: " + "; ".join(dict.fromkeys(wrong)))
    return rows


def seeds_of(runs):
    """The seeds, and folds if there are any, of a row as a text."""
    return ", ".join(
        f"fold {fold} seed {seed}" if fold else f"{seed}" for fold, seed in sorted(runs)
    )


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


# ----- test pictures of several folds together ----------------------------------------------------


class Pool:
    """Test pictures of some runs together, each tested by the model of its fold.

    point    {metric: value} of `metrics.headline`
    draws    {metric: values of 1000 resamples}

    Pooling folds mixes models: each fold has its own, and a logit of 1 need not mean the same in
    all. AUROC over the pool pays for that; the mean over folds would not, but folds are too small
    for groups with few positives. Logits are pooled as they are, for every method.
    """

    def __init__(self, runs, rule):
        parts = [arrays(run, (rule, *TRUTH)) for run in runs]
        columns = [np.concatenate(column) for column in zip(*parts)]
        order = np.argsort(columns[3])  # by id
        logits, self.labels, self.groups, self.ids, self.subjects = (c[order] for c in columns)
        if len(np.unique(self.ids)) < len(self.ids):
            folds = [run["settings"]["fold"] for run in runs]
            raise Refused(f"a picture is tested twice in folds {folds}")
        self.data = {"labels": self.labels, "groups": self.groups, "logits": logits.astype(float)}
        self.data["num_groups"] = len(runs[0]["group_names"])

    @functools.cached_property
    def point(self):
        return metrics.headline(**self.data)

    @functools.cached_property
    def draws(self):
        return metrics.bootstrap(**self.data, weights=resamples(tuple(self.subjects.tolist())))


@functools.lru_cache(maxsize=4)
def resamples(subjects):
    """How often each picture is drawn, (1000, N), given the subject of each."""
    return metrics.bootstrap_weights(n=len(subjects), clusters=np.array(subjects))


POOLS = {}  # each pool is made once, because a base is compared with many rows


def pool(runs, rule="last"):
    """The `Pool` of some runs {(fold, seed): result}: of each fold the run with the lowest seed."""
    chosen = [runs[key] for key in folds_of(runs)]
    name = (rule, *((run["arrays"][0], *sorted(run["arrays"][1].items())) for run in chosen))
    if name not in POOLS:
        POOLS[name] = Pool(chosen, rule)
    return POOLS[name]


def folds_of(runs):
    """One (fold, seed) for each fold of a row, with the lowest seed."""
    return tuple({fold: (fold, seed) for fold, seed in sorted(runs, reverse=True)}.values())[::-1]


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


def values(runs, metric, rule="last", group=None):
    """A test metric in percent, an array over the runs of a row; undefined is NaN."""
    tests = [runs[key][rule]["test"] for key in sorted(runs)]
    parts = tests if group is None else [test["groups"][group] for test in tests]
    return 100 * np.array([part[metric] for part in parts], float)


def in_percent(*shares):
    """A value and, if there is one, its bootstrap interval."""
    return Value(*(100 * float(share) for share in shares))


def over_runs(numbers):
    """Mean of an array over seeds or folds, with its interval."""
    return Value(*metrics.seed_interval(values=numbers), "±")


def point(runs, metric, rule="last", group=None, pooled=False):
    """A metric of a row in percent, without an interval, which takes much longer if pooled."""
    if not pooled:
        return values(runs, metric, rule, group).mean()
    points = pool(runs, rule).point
    return 100 * float(points[metric] if group is None else points[f"group_{metric}"][group])


def drawn(runs, metric, rule="last", group=None):
    """A metric over the test pictures of all folds, and over 1000 resamples of them: (1001,)."""
    pictures, name = pool(runs, rule), metric if group is None else f"group_{metric}"
    return np.array([pictures.point[name], *pictures.draws[name]]).T[
        ... if group is None else group
    ]


def cell(runs, metric, rule="last", group=None, pooled=False):
    """A metric of a row, of a group if named: over runs, or over the test pictures of one.

    pooled    over the test pictures of all folds together
    """
    if pooled:
        whole, *draws = drawn(runs, metric, rule, group)
        return in_percent(whole, *metrics.interval(draws=draws, point=whole))
    if len(runs) > 1:
        return over_runs(values(runs, metric, rule, group))
    (result,) = runs.values()
    test = result[rule]["test"]
    parts = [test[metric], *test["interval"].get(metric, [])]
    return in_percent(*np.array(parts, float))  # where None becomes NaN


def change(runs, base, metric, rule="last", base_rule=None, pooled=False):
    """Paired difference of a metric in points, row minus base, over the runs that both have.

    base_rule    the base's network, if it is another one than the row's, such as "teacher"
    pooled       over the test pictures of all folds together
    """
    both, base_rule = runs.keys() & base.keys(), base_rule or rule
    runs, base = ({key: row[key] for key in both} for row in (runs, base))
    if len(both) > 1 and not pooled:
        return over_runs(values(runs, metric, rule) - values(base, metric, base_rule))
    own, other = pool(runs, rule), pool(base, base_rule)
    for name in ("ids", "labels", "groups"):
        if not np.array_equal(getattr(own, name), getattr(other, name)):
            raise Refused("paired differences need the same test pictures, labels and groups")
    points = {"point_a": own.point[metric], "point_b": other.point[metric]}
    draws = {"draws_a": own.draws[metric], "draws_b": other.draws[metric]}
    return in_percent(*metrics.paired_difference(**points, **draws).values())


def relative(runs, base, metric, rule="last", base_rule=None):
    """`change` in percent of the base's value; without an interval if the base's may be 0."""
    base_rule = base_rule or rule
    if len(runs) > 1:
        return relative_change(values(runs, metric, rule), values(base, metric, base_rule))
    x, y = drawn(base, metric, base_rule), drawn(runs, metric, rule)
    whole, *draws = y / np.where(x > 0, x, np.nan) - 1
    ends = metrics.interval(draws=draws) if np.quantile(x, 0.025) > 0 else ()
    return in_percent(whole, *ends)


def relative_change(numbers, base):
    """Change of a mean in percent of the base's mean, paired by seed.

    ## Fieller's interval: all ratios ρ for which the interval of the mean of y - ρx holds 0. It
    ## needs no division by single, perhaps tiny, values. It has no bounds where x may be 0.
    """
    x, y, n = np.asarray(base, float), np.asarray(numbers, float), len(numbers)
    ratio, cov, t2 = (y.mean() / x.mean(), np.cov(x, y), scipy.stats.t.ppf(0.975, n - 1) ** 2 / n)
    ## The ends solve aρ² - 2bρ + c = 0.
    a = x.mean() ** 2 - t2 * cov[0, 0]
    b = x.mean() * y.mean() - t2 * cov[0, 1]
    c = y.mean() ** 2 - t2 * cov[1, 1]
    root = np.sqrt(max(b * b - a * c, 0))
    ends = ((b - root) / a - 1, (b + root) / a - 1) if a > 0 else ()
    return in_percent(ratio - 1, *ends)


def what_both_have(runs, base, pooled=False):
    """What a difference is over, as a text: seeds, or test pictures."""
    both = {key: runs[key] for key in runs.keys() & base.keys()}
    if pooled:
        return f"{len(folds_of(both))} folds, {len(pool(both).ids):,} pictures"
    count = f"{next(iter(both.values()))['last']['test']['n']:,}"
    return f"{len(both)} seeds" if len(both) > 1 else f"1 seed, {count} pictures"
