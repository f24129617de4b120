"""Result files as rows of tables, and the difference of two rows: for report.py and figures.py.

Runs that differ in seed and fold alone are a row. Rows stand in one table if data set, networks,
epochs and the like are equal; what was changed among these is called their conditions:

    {(data set, conditions): {row: {(fold, seed): result}}}     what `collect` returns

Results come from runs/, as the scripts leave them, or from results/, as `pack` leaves them: one
line of JSON for each run, and for each data set one file of arrays. Of masks (--task segment) a
data set has another name, `data_of`, and other METRICS; all the rest is the same for both tasks.

Intervals are 95 %. Over seeds or folds they are Student's, of the mean; over the pictures of a test
set they are a bootstrap of its subjects (lesions, persons). A difference is paired: by seed or
fold, or by drawing the same pictures for both.

Metrics of decisions have two values (see metrics.py). Where a class is rare, tables and figures
show the corrected one first, elsewhere that of the largest output: `main_rule`.
"""

import collections
import functools
import gzip
import hashlib
import io
import itertools
import json
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats

import metrics
from data import InputError, restore, save
from networks import offered

## A row is a script with some of its settings changed. Tables have the rows in this order.
NAMES = {
    "ckd alpha=0.0": "ERM",
    "ckd alpha=0.0 balance=cells": "re-balancing",
    "ckd alpha=0.0 balance=groups": "re-balancing, by group",
    "ckd alpha=0.0 balance=classes": "re-balancing, by class",
    "ckd": "CKD",
    "ckd teacher_balance=cells": "CKD, balanced teacher",
    "ckd balance=cells": "CKD, balanced student",
    "ckd balance=cells teacher_balance=cells": "CKD, both balanced",
    "ckd temperature=1.0": "CKD, T = 1",
    "rkd": "RKD",
    "rkd normalize=True": "RKD, normalised",
    "ctkd": "CTKD",
    "ctkd ramp_epochs=1": "CTKD, no curriculum",
    "kdpp": "KD++",
    "kdpp nd_weight=0.0": "KD++, no L_ND",
    "fitnet": "FitNet",
    "at": "AT",
    "adversarial_kd alpha=0.0": "AD",
    "adversarial_kd": "adversarial KD",
    "mfd": "MFD",
    "mfd balance=cells": "MFD, balanced",
    "bird": "BIRD",
    "bird phi_lr=0.0": "BIRD, gates fixed",
    "groupdro": "GroupDRO",
    "groupdro by_class=True": "GroupDRO by class",
    "groupdro balance=cells by_class=True": "GroupDRO by class, balanced",
    "swad": "SWAD",
    "fis": "FIS",
    "febs": "FEBS",
    "febs-mended": "FEBS, mended",
    "fairdi": "FairDi",
    "fairdi balance=cells": "FairDi, balanced",
    "fairdi train_backbone=True": "FairDi, φ trained",
    "fairdi alpha=0.0": "FairDi, no teachers",
    "fairdi step0_epoch=last": "FairDi, from step 0's last epoch",
    "fairdi step0=febs": "FairDi, FEBS",
    "fairdi step0=febs-mended": "FairDi, FEBS mended",
    "own": "own group's teacher",
    "fairtune mask=none": "linear probe",
    "fairtune mask=all": "FairTune, all parts",
    "fairtune mask=full": "full fine-tuning",
    "fairtune": "FairTune",
}
## Rows that are a part of FairDi, and no script; and what their names begin with.
NO_SCRIPTS = {"fis", "febs", "febs-mended", "own"}
PARTS = tuple(NAMES[name] for name in NO_SCRIPTS)
CEILING = NAMES["own"]  # it is told the group of a test picture: no competitor
SYMBOLS = {"adversary_weight": "λ", "temperature": "T", "alpha": "α", "fair_weight": "μ"}
SYMBOLS |= {"attention_weight": "β", "hint_weight": "β", "feature_weight": "γ"}
SYMBOLS |= {"mfd_weight": "λ", "weight_step": "η", "fis_temperature": "t", "threshold": "r"}
## The scripts that learn masks, too.
OF_MASKS = "ckd ctkd fitnet at adversarial_kd bird groupdro swad fairdi".split()
## The weight of each fairness method, and the four values of which validation chooses one. They are
## trained with the lowest seed and fold; a method's row is at the value chosen, see `tuned`.
GRID = {
    "adversarial_kd": ("adversary_weight", (0.5, 1, 2, 5)),
    "bird": ("fair_weight", (0.1, 0.3, 1, 3)),
    "mfd": ("mfd_weight", (0.1, 0.3, 1, 3)),
    "groupdro": ("weight_step", (0.001, 0.01, 0.1, 1)),
    "fairdi": ("fis_temperature", (1, 3, 10, 30)),
    "swad": ("threshold", (0.05, 0.3, 1, 3)),
}
## Of masks also the weights of feature maps, because those that are usual for classes leave a small
## student no room for its own answer: it fits maps of twice its channels, at every pixel.
MASK_GRID = GRID | {
    "at": ("attention_weight", (1, 10, 100, 1000)),
    "fitnet": ("hint_weight", (0.1, 1, 10, 100)),
    "bird": ("feature_weight", (0.01, 0.1, 1, 10)),
}
## Settings that the rows of a table share; all others make rows.
CONDITIONS = "skip_bad image_size target sensitive skew teacher student pretrained weights".split()
CONDITIONS += "subject file_column teacher_weights epochs teacher_epochs batch_size lr".split()
CONDITIONS += "teacher_lr weight_decay precision compile smoke optimizer teacher_optimizer".split()
CONDITIONS += "views statistics teacher_statistics teacher_train teacher_sees train_share".split()
NETWORKS = {"teacher", "student", "epochs", "teacher_epochs", "batch_size"}
SAME = ["pictures", "image_size", "target", "sensitive", *sorted(NETWORKS)]
## It tunes a transformer of its own at a budget of its own, whatever student the others train.
OWN_NETWORKS = {"fairtune"}
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
MASKS = {  # of --task segment
    "Dice": ("dice", 1),
    "IoU": ("iou", 1),
    "ES-Dice": ("es_dice", 1),
    "SER": ("dice_ser", 0),  # no verdict: it also falls where all masks are bad
    "failed": ("failure", -1),
    "worst Dice": ("dice_worst_group", 1),
    "Dice gap": ("dice_gap", -1),
    "Dice gap, standardised": ("dice_gap_standardised", -1),
}
METRICS |= MASKS
SIGNED = ("dice_difference", "dice_difference_standardised")  # of masks and two groups
SCORE = {"classify": ("AUROC", "auroc"), "segment": ("Dice", "dice")}  # what makes an epoch good
UTILITY = ("top-1", "recall", "precision", "F1", "AUROC", "Dice", "IoU")
HARD = (*UTILITY[:4], "mean-DEO", "max-DEO", "disparity", "parity")  # those of decisions
DECISIONS = {"": "decisions: largest output", "_corrected": "decisions: prior-corrected"}
## Mean sizes of what has a sign, of two groups.
GAPS = ("gap", "mean-DEO", "disparity", "parity", "Dice gap", "Dice gap, standardised")
## Rows of figures: debiased students, of which one is shown beside CKD; rows whose log is drawn;
## rows that are shown at two chosen epochs, which SWAD's averages have not. See `variant`.
DEBIASED = ("adversarial KD", "BIRD")
TRAINING = ("ERM", "CKD", "CTKD", "BIRD", "adversarial KD")
TWO_POINTS = ("ERM", "re-balancing", "GroupDRO", "FIS", "FEBS", "FairDi", "FairTune", "CKD")
TWO_POINTS += ("adversarial KD", "BIRD")


class Refused(InputError):
    """Results that a table cannot use: they may not be mixed, or something of them is missing."""


# ----- reading and packing ------------------------------------------------------------------------

TRUTH = ("labels", "groups", "ids", "subjects")  # of the test pictures
WEIGHTS = ("weights", "teacher_weights")  # settings that are files
OWN_NAME = "name on pages"  # a note of datasets/csv.py


def tested(result):
    """{name: part} of a result's networks: "teacher", "last", "best_overall", "fis" ..."""
    return {k: part for k, part in result.items() if isinstance(part, dict) and "test" in part}


def task_of(result):
    """The task of a result, which older ones do not tell: "classify" or "segment"."""
    return result["settings"].get("task", "classify")


def of_masks(rows):
    """Whether the rows of a table are about masks."""
    return any(task_of(run) == "segment" for runs in rows.values() for run in runs.values())


def score_of(rows):
    """What makes an epoch of these rows a good one: its name in tables, and in metrics.py."""
    return SCORE["segment" if of_masks(rows) else "classify"]


def data_of(result):
    """What has pages of its own: a data set, the name of one's own folder or table, and masks."""
    own, masks = result.get("notes", {}).get(OWN_NAME), task_of(result) == "segment"
    return "-".join(filter(None, (result["settings"]["dataset"], own, masks and "segment")))


def first_of(rows):
    """A result of the first row of a table."""
    return next(iter(next(iter(rows.values())).values()))


def identity(result):
    """What tells a result from all others: data set, conditions, row, fold and seed."""
    settings = result["settings"]
    return data_of(result), conditions(result), row_name(result), settings["fold"], settings["seed"]


def with_arrays(result, path):
    """A result, read from the file `path`, with the place of its arrays: see `read`."""
    names = {name: name for name in (*tested(result), *TRUTH)}
    return result | {"arrays": (path.with_name("logits.npz"), names)}


def read(folder, smoke=False):
    """All results in `folder`, fresh or packed, smoke runs only if they are asked for.

    Each gets an entry "arrays": the path of a file of arrays, and {name: name in that file}.
    Of runs that tables cannot tell apart, such as on pictures that have changed, the newest counts.
    """
    runs, homes = [], {}
    for path in sorted(Path(folder).glob("*/*/*/result.json")):
        result = restore(path)
        whole = isinstance(result, dict) and "test" in result.get("last", ())
        if not whole or not {"method", "settings", "changed"} <= result.keys():
            raise Refused(f"{path} lacks its settings or its student: delete it and run again")
        ## With its folder a file of weights would make another table; "files" has its digest.
        for part in (result["settings"], result["changed"]):
            part |= {key: Path(part[key]).name for key in WEIGHTS if part.get(key)}
        if smoke or not result["settings"].get("smoke"):
            homes.setdefault(identity(result), []).append((path.stat().st_mtime, path, result))
    for twins in homes.values():
        *older, (_, path, result) = sorted(twins, key=lambda twin: twin[:2])
        runs.append(with_arrays(result, path))
        for _, old, _ in older:
            why = "tables cannot tell them apart"
            print(f"left out: {old.parent}, which is older than {path.parent} ({why})")
    for path in sorted(Path(folder).glob("*.jsonl.gz")):
        packed = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        decide([part for result in packed for part in tested(result).values()])
        arrays = path.with_suffix("").with_suffix(".npz")
        runs += [result | {"arrays": (arrays, result["arrays"])} for result in packed]
    return runs


def decide(parts):
    """Give the packed tests what their counts say: metrics of decisions, and if one collapsed."""
    tables = {}  # {shape: [(test, end, counts)]}: thousands at once take a tenth of the time
    for test, shares in ((p["test"], p["class_shares"]) for p in parts if "counts" in p["test"]):
        both = {end: test.get(f"counts{end}", test["counts"]) for end in metrics.ENDS}
        test |= {f"counts{end}": counts for end, counts in both.items()}
        test["collapsed"] = metrics.is_useless(tables=both, class_shares=shares)
        for end, counts in both.items():
            tables.setdefault(np.shape(counts), []).append((test, end, counts))
    for rows in tables.values():
        hard = metrics.decisions(counts=np.array([counts for *_, counts in rows]))
        for n, (test, end, _) in enumerate(rows):
            test |= {metric_of(name, end): hard[METRICS[name][0]][n] for name in HARD}


@functools.cache
def opened(path):
    """All arrays of a file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def arrays(result, names):
    """The named arrays of a result: a network's test logits (N, C), labels, groups, ids ... (N,)

    Of masks not logits are kept but `areas` (N, 3). Where several networks stand at one place, the
    group of a picture says whose answer it gets.
    """
    path, places = result["arrays"]

    def at(place):
        if not isinstance(place, str):
            groups = opened(path)[places["groups"]]
            return np.stack([at(p) for p in place])[groups, np.arange(len(groups))]
        array = opened(path)[place]
        if "inside" not in places or array.ndim < 2:
            return array
        false, missed = array.astype(np.int32).T  # as `small` leaves them
        both = opened(path)[places["inside"]] - missed
        return np.stack([both + false, both + missed, both], axis=1)

    try:
        return [at(places[name]) for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        what = f"{path} cannot be read, or lacks the test logits of {row_name(result)}"
        raise Refused(f"{what} ({error}): run {result['method']} again") from None


def kept(runs, rule):
    """Whether the answers of a network of all runs to the test pictures are kept."""
    return all(rule in run["arrays"][1] and run["arrays"][0].exists() for run in runs.values())


def lean(result, intervals):
    """What tables and figures read of a result: metrics with twelve digits, its log with five.

    Metrics of decisions are left out: the counts give them again, see `decide`.
    """
    kept = "method settings changed classes group_names log search gains times".split()
    packed = {name: result[name] for name in kept if name in result}
    if own := result.get("notes", {}).get(OWN_NAME):  # other notes may name pictures
        packed["notes"] = {OWN_NAME: own}
    soft = [*(METRICS[name][0] for name in METRICS if name not in HARD), *SIGNED]
    shown = [*soft, *(metric_of(name, end) for name in HARD for end in metrics.ENDS)]
    more, (_, score) = {"train": ["worst_cell", "worst_cell_corrected"]}, SCORE[task_of(result)]
    more["val"] = [score, f"{score}_worst_group", "collapsed"]
    for name, part in tested(result).items():
        test, own = part["test"], "epoch network parameters megabytes class_shares".split()
        packed[name] = {k: part[k] for k in own}
        packed[name] |= {k: {m: part[k][m] for m in more[k] if m in part[k]} for k in more}
        ends = test["interval"] if intervals else {}
        told = {k: test[k] for k in (*soft, "counts", "pictures", "n", "collapsed") if k in test}
        told["interval"] = {k: ends[k] for k in shown if k in ends}
        told["groups"] = [{score: group[score]} for group in test["groups"]]
        if test.get("counts_corrected") != test.get("counts"):
            told["counts_corrected"] = test["counts_corrected"]
        packed[name]["test"] = told
    drawn = row_name(result) in TRAINING and score == "auroc"  # no figure has the logs of masks
    log = rounded(packed["log"], 5) if drawn else []
    return rounded(packed, 12) | {"log": log}


def rounded(content, digits):
    """A JSON-ready value whose numbers have at most so many significant digits."""
    text = json.dumps(content)
    return json.loads(text, parse_float=lambda number: float(f"{float(number):.{digits}g}"))


def small(content):
    """Arrays {name: array} of a run on masks in half the space: the true areas stand there once.

    Areas (N, 3) become two columns, of pixels that are falsely inside, and missed.
    """
    pairs = {}
    for name, array in content.items():
        if array.ndim == 2:
            said, true, both = array.T
            pairs |= {name: np.stack([said - both, true - both], axis=1), "inside": true}
    fitting = {name: array.astype(np.min_scalar_type(array.max())) for name, array in pairs.items()}
    return content | fitting


def shifted(array):
    """Two logits (N, 2) as 0 and z₂ - z₁, of which softmax and decisions are the same.

    Packed they need less space: the array is transposed, so that NumPy writes it column by column,
    and one column is all zeros. Other arrays as is.
    """
    if array.dtype != np.float16 or array.shape[1:] != (2,):
        return array
    first, second = array.astype(np.float32).T
    return np.stack([np.zeros_like(first), second - first]).T


def unnamed(content, orders):
    """The arrays of a test set, its pictures and subjects in random order and by random numbers.

    orders    {ids of a test set: its order}, filled, so that runs can still be paired
    """
    if "ids" not in content:
        return content
    order = np.random.default_rng().permutation(len(content["ids"]))
    order = orders.setdefault(content["ids"].tobytes(), order)
    content = {name: array[order] for name, array in content.items()}
    number = {subject: n for n, subject in enumerate(dict.fromkeys(content["subjects"].tolist()))}
    subjects = np.array([f"{number[subject]:05}" for subject in content["subjects"].tolist()])
    ids = np.array([f"{n:05}" for n in range(len(order))])
    return content | {"ids": ids, "subjects": subjects}


## Whose agreement bars passing on any part: not even which pictures were tested, or who they show.
PRIVATE = ("celeba",)


def pack(source, target):
    """Add the results in the folder `source` to the packed ones in `target`; equal runs anew.

    Each distinct array is kept once, and only what tables and figures read. Where intervals are
    over seeds no logits are needed, but for the runs whose answers a figure shows, nor of a weight
    that was not chosen, nor of chosen epochs of a second training. Of what is packed already, only
    the logits of both of these are lost.
    """
    datasets, weights, orders, fresh = {}, {}, {}, read(source)
    for result in [*read(target), *fresh]:
        data, place, row, fold, seed = identity(result)
        datasets.setdefault(data, {})[place, row, fold, seed] = result
        setting, values = grid_of(result)
        if result["settings"].get(setting) in values:
            plain = row.removesuffix(weight_of({0: result}))  # whatever weight will be chosen
            weights.setdefault((data, place, plain), set()).add(row)
    for dataset in dict.fromkeys(map(data_of, fresh)):
        lines, kept, by_place, runs = [], {}, {}, collections.Counter()
        for (place, row, fold, seed), result in datasets[dataset].items():
            runs[place, row] += 1
            for name, part in as_rows(result):
                rows = by_place.setdefault((dataset, place), {})
                rows.setdefault(name, {})[fold or 0, seed] = part
        firsts, _ = trainings(by_place)
        firsts = [run for rows in firsts.values() for row in rows.values() for run in row.values()]
        firsts = {identity(run) for run in firsts}
        for (place, row, fold, seed), result in datasets[dataset].items():
            is_packed = result["arrays"][0].name != "logits.npz"
            over_seeds = fold is None and runs[place, row] > 1 and not is_packed
            names, digests = list(result["arrays"][1]), {}
            plain = row.removesuffix(weight_of({0: result}))
            others = weights.get((dataset, place, plain), ())
            if own_settings(result).keys() - {"fis_temperature"}:  # its teachers are no row
                names = [name for name in names if not name.startswith("teacher_")]
                if result["settings"].get("step0", "fis") != "fis":  # no figure has FEBS's epochs
                    names = [name for name in names if name not in RULES]
            if over_seeds and (row not in (*DEBIASED, "CKD") or seed > 0):
                taught = [name for name in names if name.startswith("teacher_")]
                names = [*taught, *TRUTH] if taught else []
            elif not is_packed and plain not in TWO_POINTS and result["method"] != "fairdi":
                names = [name for name in names if name in ("teacher", "last", *TRUTH)]
            if row in others and runs[place, row] < max(runs[place, other] for other in others):
                names = []  # another weight has more runs, because it was chosen
            if identity(result) not in firsts:
                names = [name for name in names if not name.endswith((*RULES,))]
            content = dict(zip(names, arrays(result, names)))
            masks = task_of(result) == "segment"
            content = small(content) if masks else {n: shifted(a) for n, a in content.items()}
            if dataset in PRIVATE and not is_packed:
                content = unnamed(content, orders)
            for name, array in content.items():
                digests[name] = hashlib.sha256(array.tobytes()).hexdigest()[:12]
                kept[digests[name]] = array
            line = lean(result, fold is None and not over_seeds) | {"arrays": digests}
            lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        if kept:
            ## A seventh smaller than what np.savez_compressed writes; np.load reads both.
            with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_LZMA) as archive:
                for name, array in kept.items():
                    with archive.open(f"{name}.npy", "w") as file:
                        np.save(file, array)
            save(Path(target) / f"{dataset}.npz", packed.getvalue())
        text = "\n".join(lines) + "\n"
        save(Path(target) / f"{dataset}.jsonl.gz", gzip.compress(text.encode(), mtime=0))
    opened.cache_clear()  # it holds what the files were


# ----- rows ---------------------------------------------------------------------------------------


def own_settings(result):
    """{setting: value} of what was changed and makes the row."""
    ## All of FairTune's rows start from the same source of pictures; no other row has one.
    shared = {*CONDITIONS, "fold", "source"}
    if result["changed"].get("alpha") == 0:  # nothing is distilled
        shared.add("temperature")
    return {k: v for k, v in sorted(result["changed"].items()) if k not in shared}


def grid_of(result):
    """The weight that is chosen for the method of a result, and its values; ("", ()) without."""
    grid = MASK_GRID if task_of(result) == "segment" else GRID
    return grid.get(result["method"], ("", ()))


def row_name(result):
    """The name of a result's row: from NAMES, or the script's with the changed settings."""
    own, script = own_settings(result), result["method"]
    own.pop(grid_of(result)[0], None)
    key = " ".join([script, *(f"{k}={v}" for k, v in own.items())])
    words = [f"{SYMBOLS.get(k, k)} = {v:g}" for k, v in own.items() if isinstance(v, float)]
    words += [f"{k} = {v}" for k, v in own.items() if not isinstance(v, float)]
    name = NAMES.get(key) or ", ".join([NAMES.get(script, script), *words])
    return name + weight_of({0: result})


def weight_words(setting, value):
    """How the name of a row with another weight than its method's ends."""
    return f", {SYMBOLS[setting]} = {value:g}"


def pretrained(runs, rule="last"):
    """What of a row starts from weights that were learnt elsewhere, in words, or ""."""
    first = next(iter(runs.values()))
    settings = first["settings"]

    def learnt(role, file):
        published = settings.get("pretrained") and offered(settings.get(role, ""))
        return bool(settings.get(file) or published)

    if rule == "teacher":
        return "pre-trained" if learnt("teacher", "teacher_weights") else ""
    if first["method"] in OWN_NETWORKS or learnt("student", "weights"):
        return "pre-trained"
    taught = "teacher" in first and learnt("teacher", "teacher_weights")
    return "pre-trained teacher" if taught else ""


def marks(runs, rule="last"):
    """What tables say of a row behind its name: pre-trained, and how many runs have collapsed."""
    bad, words = number_collapsed(runs, rule), [pretrained(runs, rule)] if runs else []
    if bad:
        words.append(f"{bad} of {len(runs)} collapsed" if len(runs) > 1 else "collapsed")
    return "".join(f" ({word})" for word in words if word)


def variant(rows, method):
    """The row of a method that every figure shows: the tables' own choice, see `tuned`.

    Where that left several weights, none of which is the usual one, it is the first. None if the
    method has no row.
    """
    weights = (name for name, runs in rows.items() if name == method + weight_of(runs))
    return method if method in rows else next(weights, None)


def label(name, runs, rule="last"):
    """A row's name with its weight, if that is not the usual one, and whether it is pre-trained."""
    name += "" if "," in name or rule == "teacher" else weight_of(runs)
    words = pretrained(runs, rule)
    return f"{name} ({words})" if words else name


SAID = {"not Male": "women", "Male": "men", "female": "women", "male": "men", "group": ""}
SAID |= {"celeba": "CelebA", "ham10000": "HAM10000", "cifar10s": "CIFAR10-S", "label": ""}
SAID |= {"wider": "WIDER", "csv-fairface": "FairFace"}
SAID |= {"nv": "nevus", "mel": "melanoma", "bkl": "benign keratosis", "df": "dermatofibroma"}
SAID |= {"akiec": "actinic keratosis", "bcc": "basal cell carcinoma", "vasc": "vascular lesion"}


def said(name):
    """The name of a class, a group, an attribute or a data set as people say it."""
    if ", " in name:  # groups that are crossed
        return ", ".join(map(said, name.split(", ")))
    if years := re.fullmatch(r"(?:(\d+)<)?age(<=|>)(\d+)", name):
        low, sign, high = years.groups()
        bounded = f"{low} to {high}" if low else f"{high} or younger"
        return f"over {high}" if sign == ">" else bounded
    plain = name.replace("_", " ").replace("<=", " up to ").replace(">", " over ")
    if name.startswith("csv-") and name not in SAID:  # a folder of one's own
        return name.removeprefix("csv-")
    return SAID.get(name, plain if name.isupper() else plain.lower())


def titled(data):
    """A name that `data_of` gives as people say it, masks as such."""
    source = data.removesuffix("-segment")
    return said(source) + (", masks" if source != data else "")


def scene(rows):
    """Data set, what is recognised, and what makes the groups: "CelebA: blond hair, by sex"."""
    first = first_of(rows)
    settings, groups = first["settings"], first["group_names"]
    usual = {} if settings["dataset"] == "csv" else {"Male": "sex", "gender": "sex"}
    by = usual.get(settings["sensitive"], said(settings["sensitive"]))
    by = f"by {by}" if by else f"of {' and '.join(map(said, groups))}"
    target = "" if of_masks(rows) else said(settings["target"])
    return f"{titled(data_of(first))}{target and ': '}{target}, groups {by}"


def shared_settings(result, but=()):
    """{setting: value} of what was changed and is shared by a table's rows, `but` for some."""
    changed = result["changed"]
    return {k: changed[k] for k in CONDITIONS if k in changed and k not in but}


def in_folds(place):
    """Whether the test sets of a place are folds, which then are put together."""
    return place[1].startswith("folds")


def conditions(result, but=()):
    """`shared_settings` as a text, "" for none; in front "folds", where the test set is a fold."""
    parts = [] if result["settings"]["fold"] is None else ["folds"]
    parts += [f"{k}_{v}".replace("/", "_") for k, v in shared_settings(result, but).items()]
    return "-".join(parts)


def as_rows(result):
    """A result as rows: its own; of FairDi, if nothing else was changed, also that of its step 0
    and, of masks, that of its teachers, each on its own group, which has a test of its own alone.
    """
    yield row_name(result), result
    own, (path, places) = own_settings(result), result["arrays"]
    own.pop(grid_of(result)[0], None)
    weight = weight_of({0: result})
    ## Balanced pictures, or another mixture κ of its weights, make another FIS.
    if "fis" in result and not own.keys() & {"balance", "fusion"}:
        names = {"last": "fis"} | {rule: f"fis_{rule}" for rule in RULES}
        renamed = {rule: places[name] for rule, name in names.items() if name in places}
        step = {rule: result[name] for rule, name in names.items()}
        row = NAMES[result["settings"].get("step0", "fis")]
        yield row + weight, result | step | {"arrays": (path, places | renamed)}
    if "teacher_0" in places and not own:  # of masks
        names = tuple(places[f"teacher_{g}"] for g in range(len(result["group_names"])))
        run = result | {"arrays": (path, places | dict.fromkeys(("last", *RULES), names))}
        areas, labels, groups = arrays(run, ("last", "labels", "groups"))
        sizes = {"num_classes": len(result["classes"]), "num_groups": len(names), "replicates": 0}
        test = metrics.evaluate_masks(areas=areas, labels=labels, groups=groups, **sizes)
        part = {k: v for k, v in result["last"].items() if k != "train"} | {"test": test}
        yield CEILING + weight, run | dict.fromkeys(("last", *RULES), part)


def collect(folder, smoke=False):
    """{(data set, conditions): {row: {(fold, seed): result}}} of all results in a folder."""
    by_place, homes = {}, {}  # homes: the places that differ in their networks alone
    for result in sorted(read(folder, smoke), key=lambda result: result["method"] in OWN_NETWORKS):
        settings, data = result["settings"], data_of(result)
        home = data, conditions(result)
        free = ("student", "teacher", "teacher_epochs", "teacher_lr")  # it has no teacher
        like = data, conditions(result, but=free)
        places = [home]
        if result["method"] in OWN_NETWORKS:  # they stand in every table that is alike, or alone
            places = homes.get(like, places)
        else:
            homes.setdefault(like, {})[home] = None
        for place, (name, run) in itertools.product(places, as_rows(result)):
            row = by_place.setdefault(place, {}).setdefault(name, {})
            if row and conditions(next(iter(row.values()))) != home[1]:
                raise Refused(
                    f"{folder} holds {name} with several networks or budgets, which no table tells "
                    "apart: keep each in a folder of its own (--out)"
                )
            row[settings["fold"] or 0, settings["seed"]] = run
    order = {name: number for number, name in enumerate(NAMES.values())}
    for place, rows in by_place.items():
        rows = tuned(rows)
        names = sorted(rows, key=lambda name: order.get(name, len(order)))
        by_place[place] = {name: rows[name] for name in names}
    return dict(sorted(by_place.items()))


def comparable(rows, whole=True):
    """`rows` {name: {(fold, seed): result}} as they are, or Refused if a table must not mix them.

    whole    every row must have every (fold, seed)
    """
    wrong, (top, base) = [], next(iter(rows.items()), (None, {}))
    seen = {}  # {fold: the first row that has it, its run}: all seeds of it share their pictures
    for name, runs in rows.items():
        if whole and runs.keys() != base.keys():
            wrong.append(f"{name} has seeds {seeds_of(runs)}, {top} {seeds_of(base)}")
        for key, b in sorted(runs.items()):
            first, a = seen.setdefault(key[0], (name, b))
            free = NETWORKS if {a["method"], b["method"]} & OWN_NETWORKS else set()
            for k in [k for k in SAME if k not in free and a["settings"][k] != b["settings"][k]]:
                where = f" ({b['arrays'][0].parent.name})" if k == "pictures" else ""
                values = a["settings"][k], b["settings"][k]
                wrong.append(f"{k} of {first} is {values[0]}, of {name} {values[1]}{where}")
    searches = [run.get("search", {}) for runs in rows.values() for run in runs.values()]
    if len({search["theta_0"] for search in searches if "theta_0" in search}) > 1:
        wrong.append("FairTune's runs start from different pre-trained weights")
    if wrong:
        raise Refused("these runs cannot be compared: " + "; ".join(dict.fromkeys(wrong)))
    return rows


def complete(rows):
    """The rows with as many runs as any row has; and {name: number of runs} of the others."""
    most = max(map(len, rows.values()))
    few = {name: len(runs) for name, runs in rows.items() if len(runs) < most}
    return {name: runs for name, runs in rows.items() if name not in few}, few


def seeds_of(runs):
    """The seeds, and folds if there are any, of a row as a text."""
    folds = any(fold for fold, _ in runs)
    names = [f"fold {fold} seed {seed}" if folds else str(seed) for fold, seed in sorted(runs)]
    return ", ".join(names)


def number_collapsed(runs, rule="last", end=None):
    """How many runs of a row give useless decisions; see metrics.has_collapsed.

    end    by the decisions of this end, "" or "_corrected"; None: by those of metrics.is_useless
    """
    tests = [result[rule]["test"] for result in runs.values()]
    if end is None:
        return sum(bool(test["collapsed"]) for test in tests)
    return sum(metrics.has_collapsed(counts=np.array(test[f"counts{end}"])) for test in tests)


def main_rule(rows):
    """The end of the names of the metrics of decisions that count in a table of these rows.

    "_corrected" where it is that of any network, see `metrics.main_rule`. Masks know no such
    decisions.
    """
    if of_masks(rows):
        return ""
    runs = [run for row in rows.values() for run in row.values()]
    runs = [run for run in runs if run["method"] != "groupdro"]  # whose weights move its shares
    shares = [part["class_shares"] for run in runs for part in tested(run).values()]
    return "_corrected" if any(map(metrics.main_rule, shares)) else ""


def metric_of(shown, end):
    """The name in metrics.py of a column, with the end of its decisions if it is one of them."""
    return METRICS[shown][0] + (end if shown in HARD else "")


# ----- which weight? ------------------------------------------------------------------------------


def grids(rows):
    """{method: {weight in words: row}} of rows that differ in their weight alone.

    Weights of GRID or, of masks, MASK_GRID, where every one has a row. A method is named as its row
    without the weight.
    """
    found = {}
    for name, runs in rows.items():
        first = runs[min(runs)]
        setting, values = grid_of(first)
        value = first["settings"].get(setting)
        if value in values:
            words = [weight_words(setting, v) for v in values]
            method = name.removesuffix(weight_words(setting, value))
            found.setdefault(method, dict.fromkeys(words))[weight_words(setting, value)] = name
    return {method: row_of for method, row_of in found.items() if None not in row_of.values()}


def choose(rows, row_of):
    """The weight, of {weight: row}, with the best score in the worst group on validation.

    Of those within a point of the best score overall, AUROC or Dice, and of equal ones the smallest
    weight; never a collapsed one, unless all are. The run with the lowest fold and seed decides;
    "" where weights have not the same one.
    """
    lowest = {min(rows[row]) for row in row_of.values()}
    if len(lowest) > 1:
        return ""
    (key,), (_, score) = lowest, score_of(rows)
    val = {weight: rows[row][key]["last"]["val"] for weight, row in row_of.items()}
    useful = {w: v for w, v in val.items() if not v["collapsed"]} or val
    ## An undefined score is -1 here, below all others.
    overall, worst = (
        {w: -1 if v[name] is None else v[name] for w, v in useful.items()}
        for name in (score, f"{score}_worst_group")
    )
    return max((w for w in useful if overall[w] >= max(overall.values()) - 0.01), key=worst.get)


def weight_of(runs):
    """The weight of a row in words, "" for its method's usual one, or if it has none."""
    first = runs[min(runs)]
    setting, _ = grid_of(first)
    changed = first["changed"]
    return weight_words(setting, changed[setting]) if setting in changed else ""


def tuned(rows):
    """`rows`, each method of a grid at the chosen weight, if that has every run of the usual one.

    A method that was trained at a single weight stands at that one.
    """
    methods = [name.removesuffix(weight_of(runs)) for name, runs in rows.items()]
    single = {name: m if methods.count(m) == 1 else name for name, m in zip(rows, methods)}
    rows = {single[name]: runs for name, runs in rows.items()}
    for method, row_of in grids(rows).items():
        if not (best := choose(rows, row_of)):
            continue
        runs_of = {w: rows.pop(row) for w, row in row_of.items()}
        usual = next((w for w, row in row_of.items() if row == method), best)
        shown = best if runs_of[best].keys() >= runs_of[usual].keys() else usual
        rows |= {method + ("" if w == shown else w): runs for w, runs in runs_of.items()}
    return rows


# ----- test pictures of several folds together ----------------------------------------------------


class Pool:
    """Test pictures of some runs together, each tested by the model of its fold.

    point    {metric: value} of `metrics.headline`, or of `metrics.headline_masks`
    draws    {metric: values of 1000 resamples}

    AUROC compares pictures of one fold only: each fold has a model of its own, and a logit of 1
    need not mean the same in all. Decisions are counted together, because the mean over folds has
    no value where a cell of a fold is empty.
    """

    def __init__(self, runs, rule):
        parts = [arrays(run, (rule, *TRUTH)) for run in runs]
        ## Each picture has the class shares of its model, (N, C) like the logits.
        shares = [np.tile(run[rule]["class_shares"], (len(p[0]), 1)) for run, p in zip(runs, parts)]
        folds = [np.full(len(part[0]), k) for k, part in enumerate(parts)]
        columns = [np.concatenate(column) for column in (*zip(*parts), shares, folds)]
        order = np.argsort(columns[3])  # by id
        columns = [column[order] for column in columns]
        logits, self.labels, self.groups, self.ids, self.subjects, shares, folds = columns
        if len(np.unique(self.ids)) < len(self.ids):
            twice = [run["settings"]["fold"] for run in runs]
            raise Refused(f"a picture is tested twice in folds {twice}")
        self.data = {"labels": self.labels, "groups": self.groups}
        self.data |= {"num_groups": len(runs[0]["group_names"])}
        if task_of(runs[0]) == "segment":
            self.measured = metrics.headline_masks
            self.data |= {"areas": logits, "num_classes": len(runs[0]["classes"])}
        else:
            self.measured = metrics.headline
            self.data |= {"logits": logits.astype(float), "class_shares": shares, "strata": folds}

    @functools.cached_property
    def point(self):
        return self.measured(**self.data)

    @functools.cached_property
    def draws(self):
        weights = resamples(tuple(self.subjects.tolist()))
        more = {"weights": weights, "measured": self.measured, "tables": True}
        return metrics.bootstrap(**self.data, **more)


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
    folds = sorted({fold for fold, _ in runs})
    return [min(key for key in runs if key[0] == fold) for fold in folds]


def trainings(by_place):
    """`by_place` with one training of each fold, and the second ones.

    The first of a fold is that of the seed that most of its place's rows with all folds have there,
    of equals the lowest; a row without it stands at its own lowest. The second is the lowest of the
    others, perhaps a lower seed, and stands under the key (fold, seed) of the first, so that the
    two are pairs; further ones are left out. Rows without folds stay as they are: several seeds are
    one table.
    """
    first, second = dict(by_place), {}
    for place, rows in by_place.items():
        if not in_folds(place):
            continue
        most = max(len(folds_of(runs)) for runs in rows.values())
        whole = [runs for runs in rows.values() if len(folds_of(runs)) == most]
        counts, usual = collections.Counter(key for runs in whole for key in runs), {}
        for key in sorted(counts, key=lambda key: (-counts[key], key[1])):
            usual.setdefault(key[0], key)
        first[place] = {}
        for name, runs in rows.items():
            own = {fold: (fold, seed) for fold, seed in folds_of(runs)}
            own |= {fold: key for fold, key in usual.items() if key in runs}
            first[place][name] = {key: runs[key] for key in own.values()}
            if rest := {key: runs[key] for key in runs.keys() - own.values()}:
                again = {own[fold]: rest[fold, seed] for fold, seed in folds_of(rest)}
                second.setdefault(place, {})[name] = again
    return first, second


# ----- values and their differences ---------------------------------------------------------------


class Value(NamedTuple):
    """A number in percent with its 95 % interval, from seeds ("±") or a bootstrap ("[]")."""

    point: float
    low: float = np.nan
    high: float = np.nan
    style: str = "[]"
    mark: str = ""  # behind the number: ² if a second training shows the difference, too

    def __str__(self):
        if np.isnan(self.point):
            return "undefined"
        point = f"{round(self.point, 1) + 0.0:.1f}"  # + 0.0: never -0.0
        if np.isnan(self.low):
            return f"{point}{self.mark}"
        if self.style == "±":
            return f"{point} ± {(self.high - self.low) / 2:.1f}{self.mark}"
        return f"{point} [{self.low:.1f}, {self.high:.1f}]{self.mark}"


def values(runs, metric, rule="last", group=None, split="test"):
    """A metric in percent, an array over the runs of a row; undefined is NaN."""
    tests = [runs[key][rule][split] for key in sorted(runs)]
    parts = tests if group is None else [test["groups"][group] for test in tests]
    return 100 * np.array([part[metric] for part in parts], float)


def in_percent(*shares):
    """A value and, if there is one, its bootstrap interval."""
    return Value(*(100 * float(share) for share in shares))


def over_runs(numbers):
    """Mean of an array over seeds or folds, with its interval."""
    return Value(*metrics.seed_interval(values=numbers), "±")


def point(runs, metric, rule="last", pooled=False):
    """A metric of a row in percent, without an interval, which takes much longer if pooled."""
    if pooled:
        return 100 * float(pool(runs, rule).point[metric])
    return values(runs, metric, rule).mean()


def drawn(runs, metric, rule="last", group=None):
    """A metric over the test pictures of all folds, and over 1000 resamples of them: (1001,)."""
    pictures, name = pool(runs, rule), metric if group is None else f"group_{metric}"
    whole = np.array([pictures.point[name], *pictures.draws[name]])  # (1001, ...)
    return whole if group is None else whole[:, group]


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
    test = test if group is None else test["groups"][group]  # packed groups have no interval
    parts = [test[metric], *test.get("interval", {}).get(metric, [])]
    return in_percent(*np.array(parts, float))  # where None becomes NaN


def gains(runs):
    """{group: Value} of what its own teacher gains over a control, if the row has such teachers."""
    lists = [runs[key].get("gains", []) for key in sorted(runs)]
    names = dict.fromkeys(gain["group"] for each in lists for gain in each)
    told = {n: [g["difference"] for each in lists for g in each if g["group"] == n] for n in names}
    if len(runs) > 1:
        return {n: over_runs(100 * np.array(numbers, float)) for n, numbers in told.items()}
    ends = [[gain[k] for k in ("difference", "low", "high")] for each in lists for gain in each]
    return {n: in_percent(*np.array(three, float)) for n, three in zip(names, ends)}


def trained(runs, rule, end):
    """Recall of the worst class x group cell of the training pictures; "" where it is not told."""
    if not all("train" in result[rule] for result in runs.values()):
        return ""
    return over_runs(values(runs, f"worst_cell{end}", rule, split="train"))


def signed(runs, metric, rule, pictures):
    """Of two groups, the second minus the first, K numbers of which `metric` is the mean size.

    (S, K) over runs, or (1001, K) over the test pictures and their resamples. For the gap of AUROC
    or Dice K is 1, for metrics of decisions the number of classes.
    """
    tests = [runs[key][rule]["test"] for key in sorted(runs)]
    if metric == "auroc_gap":
        areas = [[group["auroc"] for group in test["groups"]] for test in tests]
        areas = drawn(runs, "group_auroc", rule) if pictures else np.array(areas, float)
        return areas[:, 1:] - areas[:, :1]
    if metric.startswith("dice_gap"):
        name = metric.replace("gap", "difference")
        return (drawn(runs, name, rule) if pictures else values(runs, name, rule) / 100)[:, None]
    name = "counts_corrected" if "corrected" in metric else "counts"
    counts = drawn(runs, name, rule) if pictures else [test[name] for test in tests]
    if metric.startswith("demographic"):
        said = np.sum(counts, axis=-2) / np.sum(counts, axis=(-2, -1))[..., None]  # (..., G, C)
        return said[:, 1] - said[:, 0]
    return metrics.disparity(counts=np.array(counts, float))[0]


def directed(runs, base, metric, rule="last", base_rule=None, pooled=False):
    """`change` of a gap between two groups, whose interval does not shy away from 0.

    A gap is a size: noise raises it, and it cannot reach 0 where groups are equal. Here each
    signed difference counts in the direction that it has on average over runs, or on all test
    pictures: what has no steady direction cancels. It says little of models that are unfair in
    one direction now and in another then, so a verdict asks both, see `claims_table`.
    """
    runs, base = in_both(runs, base)
    pictures = pooled or len(runs) == 1
    sizes = []
    for row, name in ((runs, rule), (base, base_rule or rule)):
        ahead = signed(row, metric, name, pictures)
        direction = np.sign(ahead[0] if pictures else ahead.mean(0))  # (K,)
        sizes.append(metrics._mean(direction * ahead))
    difference = sizes[0] - sizes[1]
    if not pictures:
        return over_runs(100 * difference)
    return in_percent(difference[0], *metrics.interval(draws=difference[1:]))


def in_both(runs, base):
    """Two rows, with the runs that both have."""
    both = sorted(runs.keys() & base.keys())
    return [{key: row[key] for key in both} for row in (runs, base)]


def change(runs, base, metric, rule="last", base_rule=None, pooled=False):
    """Paired difference of a metric in points, row minus base, over the runs that both have.

    base_rule    the base's network, if it is another one than the row's, such as "teacher"
    pooled       over the test pictures of all folds together
    """
    (runs, base), base_rule = in_both(runs, base), base_rule or rule
    if not runs:
        raise Refused("paired differences need a seed and fold that both rows have")
    if len(runs) > 1 and not pooled:
        return over_runs(values(runs, metric, rule) - values(base, metric, base_rule))
    own, other = pool(runs, rule), pool(base, base_rule)
    for name in ("ids", "labels", "groups", "subjects"):
        if not np.array_equal(getattr(own, name), getattr(other, name)):
            what = "test pictures, labels, groups and subjects"
            raise Refused(f"paired differences need the same {what}")
    points = {"point_a": own.point[metric], "point_b": other.point[metric]}
    draws = {"draws_a": own.draws[metric], "draws_b": other.draws[metric]}
    return in_percent(*metrics.paired_difference(**points, **draws).values())


def relative(runs, base, metric, rule="last", base_rule=None):
    """`change` in percent of the base's value; without an interval if the base's may be 0."""
    (runs, base), base_rule = in_both(runs, base), base_rule or rule
    if len(runs) > 1:
        return relative_change(values(runs, metric, rule), values(base, metric, base_rule))
    x, y = drawn(base, metric, base_rule), drawn(runs, metric, rule)
    whole, *draws = y / np.where(x > 0, x, np.nan) - 1
    ends = metrics.interval(draws=draws) if np.quantile(x, 0.025) > 0 else ()
    return in_percent(whole, *ends)


def relative_change(numbers, base):
    """Change of a mean in percent of the base's mean, paired by seed.

    Fieller's interval: all ratios ρ for which the interval of the mean of y - ρx holds 0. It
    needs no division by single, perhaps tiny, values. It has no bounds where x may be 0.
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
    both, _ = in_both(runs, base)
    if pooled:
        folds = "1 fold" if len(both) == 1 else f"{len(both)} folds"
        return f"{folds}, {len(pool(both).ids):,} pictures"
    count = f"{next(iter(both.values()))['last']['test']['n']:,}"
    return f"{len(both)} seeds" if len(both) > 1 else f"1 seed, {count} pictures"


def brief(by_place):
    """The rows of all tables that have a name of their own, or else all, in a few columns."""
    lines = []
    for place, rows in by_place.items():
        title = f"{titled(place[0])} {place[1]}".rstrip()
        try:
            comparable(rows, whole=False)
        except Refused as error:
            lines += ["", f"{title}: {error}"]
            continue
        own = {n: runs for n, runs in rows.items() if n in NAMES.values() or "," not in n} or rows
        end = main_rule(rows)
        test = first_of(rows)["last"]["test"]
        keys = {k: k + end if k + end in test else k for k in metrics.BRIEF if k in test}
        heads = [metrics.WORDS[key][0] + metrics.ARROWS[metrics.WORDS[key][1]] for key in keys]
        lines += ["", title, f"{'percent':36}" + "".join(f"{head:>14}" for head in heads)]
        for name, runs in own.items():
            pooled = in_folds(place) and kept(runs, "last")
            cells = [Value(point(runs, key, pooled=pooled)) for key in keys.values()]
            lines.append(f"{name + marks(runs):36}" + "".join(f"{cell!s:>14}" for cell in cells))
    return "\n".join(lines)
