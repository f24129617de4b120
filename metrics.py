"""What every number means: how good a model is, how fair, and how sure we can be of both.

    python metrics.py predictions.csv    all this for any model, from a table; see predictions.py

After the arg max a model is one table, and all metrics of its decisions are ratios of sums of it:

    counts[..., g, y, p] = how many samples of group g and true class y were predicted as class p

N samples, C classes, G groups. The leading axes `...` are absent for the measurement itself; for R
bootstrap resamples they are one axis of length R, and every function computes all R at once.
Values are fractions. Arguments are given by keyword, because no error would show that truth and
prediction were swapped. What cannot be measured is NaN and never 0, since 0 would read as perfectly
fair (a gap) or as worse than chance (an AUROC). Means and extremes leave NaN out.

Every metric of decisions is computed for two decisions, from logits z and the shares π of the
classes among what a network was trained on:

    metric              arg max over c of z_c, the largest output: few errors, if classes are as
                        frequent as in training
    metric_corrected    arg max over c of z_c - log π_c: as if all classes were equally frequent

Where a class is rare, the first hardly ever names it, and a gap in its recall is small because the
recall is small. The second has nothing to tune: logit adjustment (Menon et al., ICLR 2021).

Masks (--task segment) have a section of their own, and every metric there is one of their areas.
"""

import datetime
import itertools
import json
import textwrap

import numpy as np
import scipy  # which loads scipy.stats when it is first used


# ----- helpers ------------------------------------------------------------------------------------
def _ratio(top, bottom):
    """top / bottom, element by element; NaN where bottom is 0, such as in an empty group."""
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)[()]


def _mean(values):
    """Mean over the last axis without the NaN in it; NaN if there is nothing else."""
    return _ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1))


def _codes(name, values, number, size=None):
    """`values` as integers (N,) from 0 to number - 1; ValueError if they are anything else."""
    values = np.asarray(values)
    fits = values.ndim == 1 and 0 < len(values) == (len(values) if size is None else size)
    if not fits or values.dtype.kind not in "iub" or values.min() < 0 or values.max() >= number:
        raise ValueError(f"{name} must be integers below {number}, one per sample, not empty.")
    return values.astype(np.int64)


def _weights(weights, size):
    """How often each sample counts, (..., N); None stands for once each."""
    weights = np.asarray(np.ones(size) if weights is None else weights, float)
    if weights.shape[-1:] != (size,) or not (weights >= 0).all():  # "not >=" also catches NaN
        raise ValueError(f"weights must be non-negative, (..., {size}), not {weights.shape}.")
    return weights


def _scores(labels, probs):
    """Checked labels (N,) and probs (N, C); scores (N,) of class 1 become two columns."""
    probs = np.asarray(probs)
    probs = np.stack([1 - probs, probs], axis=1) if probs.ndim == 1 else probs
    if probs.ndim != 2 or probs.shape[1] < 2 or not np.isfinite(probs).all():
        raise ValueError(f"scores must be finite, (N,) or (N, C), not NaN or {probs.shape}.")
    return _codes("labels", labels, probs.shape[1], len(probs)), probs


# ----- metrics of decisions: from the table of counts ---------------------------------------------
def confusion(*, labels, predictions, groups, num_classes, num_groups, weights=None):
    """The table counts (..., G, C, C) from integers (N,); the leading axes are those of weights."""
    labels = _codes("labels", labels, num_classes)
    predictions = _codes("predictions", predictions, num_classes, len(labels))
    groups = _codes("groups", groups, num_groups, len(labels))
    weights = _weights(weights, len(labels))
    cell = (groups * num_classes + labels) * num_classes + predictions
    size = num_groups * num_classes**2
    rows = [np.bincount(cell, row, size) for row in weights.reshape(-1, len(labels))]
    return np.reshape(rows, (*weights.shape[:-1], num_groups, num_classes, num_classes))


def _margins(counts):
    """Of a table (..., C, C), by class: hits (right), samples, predictions; each (..., C)."""
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)


def _average(values, samples, average):
    """Over classes: "macro" = plain mean, "weighted" = by the number of true samples."""
    weighted = _ratio((np.nan_to_num(values) * samples).sum(-1), samples.sum(-1))
    return {"macro": _mean(values), "weighted": weighted}[average]


def accuracy(*, counts):
    """Share of right predictions, all groups together: (...,) in [0, 1]; NaN for an empty table."""
    return recall(counts=counts, average="weighted")  # Σ_c samples_c/N · hits_c/samples_c


def recall(*, counts, average="macro"):
    """Mean of hits / samples over the classes that have samples: (...,) in [0, 1]."""
    ## Macro is scikit-learn's balanced accuracy. Weighted is accuracy, because samples_c cancels.
    hits, samples, _ = _margins(counts.sum(-3))
    return _average(_ratio(hits, samples), samples, average)


def precision(*, counts, average="macro"):
    """Mean over classes of hits / predictions: (...,) in [0, 1]; scikit-learn, zero_division=0."""
    ## A class that has samples but no predictions counts as 0: if it were left out, a model that
    ## gives up a class would be rewarded. A class without samples and predictions is left out.
    hits, samples, predicted = _margins(counts.sum(-3))
    value = np.where((predicted == 0) & (samples > 0), 0.0, _ratio(hits, predicted))
    return _average(value, samples, average)


def f1(*, counts, average="macro"):
    """Mean over classes of 2 hits / (samples + predictions): (...,) in [0, 1]; as `precision`."""
    hits, samples, predicted = _margins(counts.sum(-3))
    return _average(_ratio(2 * hits, samples + predicted), samples, average)


def recall_per_group(*, counts):
    """R[g, c] = hits / samples of class c in group g: (..., G, C) in [0, 1]; NaN if no samples."""
    return _ratio(*_margins(counts)[:2])


def group_accuracy(*, counts):
    """Accuracy inside each group: (..., G) in [0, 1]; NaN for an empty group."""
    return accuracy(counts=counts[..., None, :, :])


def worst_group(*, values):
    """The smallest of values (..., G) over the groups: (...,); NaN only if all groups are NaN."""
    return np.fmin.reduce(values, axis=-1)  # unlike min, fmin prefers a number to NaN


def gap(*, values):
    """Largest minus smallest of values (..., G): (...,), at least 0; NaN for fewer than two."""
    spread = -worst_group(values=-values) - worst_group(values=values)
    return np.where((~np.isnan(values)).sum(-1) >= 2, spread, np.nan)[()]


def deo(*, counts):
    """Difference in equal opportunity of each class, D_c = max_g R[g, c] - min_g R[g, c].

    Returns D (..., C), mean-DEO = mean_c D_c (...,) and max-DEO = max_c D_c (...,), in [0, 1]. A
    class with samples in fewer than two groups is NaN and left out. From MFD (Jung et al., 2021),
    whose code returns NaN for all of them where one class is NaN.
    """
    per_class = gap(values=np.swapaxes(recall_per_group(counts=counts), -1, -2))
    return per_class, _mean(per_class), -worst_group(values=-per_class)


def disparity(*, counts):
    """d_c = R[1, c] - R[0, c], (..., C) in [-1, 1], and the mean over classes of |d_c|, (...,).

    Groups (female, male) give male minus female. For more than two groups d_c is D_c of `deo`,
    which has no sign. A class in fewer than two groups is NaN and left out. From Bolner et al.
    (2023), "Enhancing Knowledge Distillation via Bias Mitigation", a capstone of the course W210.
    """
    ## The capstone's code takes 0 for the recall of a class that a group lacks, which looks like
    ## unfairness, and leaves out classes of d_c = 0, so that a fair class does not help.
    recalls, (spread, _, _) = recall_per_group(counts=counts), deo(counts=counts)
    signed = recalls[..., 1, :] - recalls[..., 0, :] if recalls.shape[-2] == 2 else spread
    return signed, _mean(np.abs(signed))


def demographic_parity_difference(*, counts):
    """Gap of the share predicted as c, mean over classes: (...,) in [0, 1]; C = 2: fairlearn's."""
    ## It ignores the truth: where a class is more frequent in one group, a perfect model has a gap.
    chosen = _ratio(counts.sum(-2), counts.sum((-1, -2))[..., None])  # (..., G, C)
    return _mean(gap(values=np.swapaxes(chosen, -1, -2)))


def equalized_odds_difference(*, counts):
    """The larger gap, of true or false positive rates, mean over classes: (...,) in [0, 1].

    A class with an undefined gap is left out. C = 2: fairlearn's. Rates are given the truth;
    FairVision's, for more classes, are given the prediction.
    """
    hits, samples, predicted = _margins(counts)  # (..., G, C) each
    false_positive = _ratio(predicted - hits, samples.sum(-1, keepdims=True) - samples)
    rates = _ratio(hits, samples), false_positive
    gaps = [gap(values=np.swapaxes(rate, -1, -2)) for rate in rates]
    return _mean(np.maximum(*gaps))  # np.maximum keeps NaN


def decisions(*, counts):
    """All metrics of a table of counts by name, (...,); see `headline` for group_ and class_.

    Tables show some; a run's result.json has all.
    """
    shares = group_accuracy(counts=counts)
    out = {"counts": counts, "group_accuracy": shares}
    out |= {"accuracy_worst_group": worst_group(values=shares), "accuracy_gap": gap(values=shares)}
    for metric in (recall, precision, f1):
        out[metric.__name__] = metric(counts=counts)
        out[f"{metric.__name__}_weighted"] = metric(counts=counts, average="weighted")
    for metric in (accuracy, equalized_odds_difference, demographic_parity_difference):
        out[metric.__name__] = metric(counts=counts)
    _, out["mean_deo"], out["max_deo"] = deo(counts=counts)
    out["class_disparity"], out["disparity"] = disparity(counts=counts)
    cells = recall_per_group(counts=counts)  # (..., G, C)
    out["worst_cell"] = worst_group(values=cells.reshape(*cells.shape[:-2], -1))
    return out


# ----- metrics of scores --------------------------------------------------------------------------
def _area(positive, score, weights, strata):
    """P(a positive scores above a negative of its stratum), ties count half: (...,).

    NaN if no stratum has both.
    """
    ## Scores are sorted once; then a resample, a row of weights, costs one cumulative sum.
    order, won, pairs = np.argsort(score, kind="stable"), 0.0, 0.0
    for inside in (order[strata[order] == s] for s in np.unique(strata)):
        positives, negatives = inside[positive[inside]], inside[~positive[inside]]
        below = np.zeros((*weights.shape[:-1], len(negatives) + 1))  # [k]: weight of the k lowest
        np.cumsum(weights[..., negatives], axis=-1, out=below[..., 1:])
        low = np.searchsorted(score[negatives], score[positives], "left")
        high = np.searchsorted(score[negatives], score[positives], "right")
        own = weights[..., positives]
        ## below[low] is the weight of the negatives that score lower than a positive, below[high]
        ## of those that score lower or equal: their mean counts ties half.
        won = won + (own * (below[..., low] + below[..., high])).sum(-1) / 2
        pairs = pairs + own.sum(-1) * below[..., -1]
    return _ratio(won, pairs)


def auroc(*, labels, probs, weights=None, strata=None):
    """Area under the ROC curve: (...,) in [0, 1], 0.5 by chance. labels (N,), probs (N, C) or (N,).

    Two classes: P(a sample of class 1 has a higher probs[:, 1] than one of class 0), ties count
    half. More: the mean over classes of one against the rest, without those that have no sample.
    NaN if all samples are of one class.

    strata (N,): only samples of the same one are compared. Where each fold has a network of its
    own, their scores are on different scales (Forman and Scholz, 2010).
    """
    more = {"weights": weights, "strata": strata}
    one_group = {"groups": np.zeros(len(labels), int), "num_groups": 1}
    return auroc_per_group(labels=labels, probs=probs, **more, **one_group)[..., 0]


def auroc_per_group(*, labels, probs, groups, num_groups, weights=None, strata=None):
    """`auroc` inside each group: (..., G). A group with one class only is NaN (FairVision: -1)."""
    ## All groups may lie above the AUROC of all pictures, which also compares pictures of different
    ## groups: their scores can be shifted against each other.
    labels, probs = _scores(labels, probs)
    groups = _codes("groups", groups, num_groups, len(labels))
    weights, areas = _weights(weights, len(labels)), []
    strata = np.zeros(len(labels)) if strata is None else np.asarray(strata)
    classes = range(probs.shape[1]) if probs.shape[1] > 2 else [1]
    for inside in (groups == g for g in range(num_groups)):
        own, score, more = labels[inside], probs[inside], (weights[..., inside], strata[inside])
        areas.append(np.stack([_area(own == c, score[:, c], *more) for c in classes], axis=-1))
    return _mean(np.stack(areas, axis=-2))  # of (..., G, C)


def es_auc(*, overall, per_group):
    """Equity-scaled AUC / (1 + Σ_g |AUC_g - AUC|): (...,) in [0, 1], from (...,) and (..., G).

    FairVision's. Undefined groups are left out; NaN if fewer than two remain. The sum grows with
    the number of groups, so compare only values of equal G.
    """
    distance = np.nansum(np.abs(per_group - np.asarray(overall)[..., None]), axis=-1)
    return _ratio(np.where(np.isnan(gap(values=per_group)), np.nan, overall), 1 + distance)


def psd(*, overall, per_group):
    """FairVision's (std_g AUC_g / AUC, (max - min) / AUC), (...,) ≥ 0; undefined as `es_auc`."""
    std = np.sqrt(_mean((per_group - _mean(per_group)[..., None]) ** 2))
    spread = gap(values=per_group)
    return _ratio(np.where(np.isnan(spread), np.nan, std), overall), _ratio(spread, overall)


BINS = 10  # of confidence


def calibration_error(*, labels, probs, weights=None):
    """ECE = Σ_b n_b/N |accuracy_b - mean confidence_b|: (...,) in [0, 1] (Guo et al., 2017).

    Confidence is max_c probs; bin b of BINS holds ((b-1)/BINS, b/BINS]. MEDFAIR's number
    of this name is another: it bins the scores of class 1 between their smallest and their largest.
    """
    labels, probs = _scores(labels, probs)
    confidence, weights = probs.max(1), _weights(weights, len(labels))
    bin_of = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1)
    ## n_b cancels: n_b/N |Σ correct/n_b - Σ confidence/n_b| = |Σ (correct - confidence)| / N.
    excess = ((probs.argmax(1) == labels) - confidence)[:, None] * (bin_of[:, None] == range(BINS))
    return _ratio(np.abs(weights @ excess).sum(-1), weights.sum(-1))


# ----- how sure are we ----------------------------------------------------------------------------
def bootstrap_weights(*, n, replicates=1000, seed=0, clusters=None):
    """How often each of n samples is drawn in each of R resamples: (R, n) float32, whole numbers.

    `clusters` (n,) are ids of lesions or subjects, which are drawn whole, because pictures of one
    subject are not independent.
    """
    ## They depend on n, clusters and seed alone: two models get the same resamples (paired).
    ids = np.arange(n) if clusters is None else np.asarray(clusters)
    if n < 1 or ids.shape != (n,):
        raise ValueError(f"clusters must be one id for each of {n} samples, not {ids.shape}.")
    names, ids = np.unique(ids, return_inverse=True)
    rng, weights = np.random.default_rng(seed), np.empty((replicates, n), np.float32)
    for row in weights:  # one by one: all int64 draws at once would take three times the memory
        row[:] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[ids]
    return weights


def interval(*, draws, level=0.95, point=None):
    """Percentile interval (low, high) of draws (R,), without NaN; (NaN, NaN) if half are NaN.

    With `point`, the measurement itself, the interval is widened until it holds it.
    """
    ## A gap is a maximum minus a minimum. Noise raises it, and resampling adds noise: the resamples
    ## of a gap lie above the gap, which may be lower than all of them.
    kept = np.asarray(draws, float)[~np.isnan(draws)]
    kept = kept if 2 * len(kept) > len(draws) else [np.nan]
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return (low, high) if point is None else (min(low, point), max(high, point))


def paired_difference(*, point_a, point_b, draws_a, draws_b):
    """a - b with its 95 % interval; draws (R,) must come from the same resamples."""
    ## Both models see the same resample, so its difficulty cancels in the difference. Two separate
    ## intervals may overlap although one model is better in nearly every resample.
    low, high = interval(draws=np.subtract(draws_a, draws_b))
    return {"difference": float(point_a - point_b), "low": low, "high": high}


def seed_interval(*, values, level=0.95):
    """(mean, low, high) of values (S,) over seeds: mean ± t s/√S, Student's t; NaN for S = 1.

    For two methods pass their differences seed by seed.
    """
    ## The bootstrap tells how much chance is in the choice of test pictures, this in the training.
    values, freedom = np.asarray(values, float), len(values) - 1
    if freedom < 1:
        return float(values.mean()), np.nan, np.nan
    t = scipy.stats.t.ppf((1 + level) / 2, freedom)
    half = t * values.std(ddof=1) / np.sqrt(len(values))
    return tuple((values.mean() + half * np.array([0, -1, 1])).tolist())


# ----- everything about one model -----------------------------------------------------------------
def log_odds(logits):
    """log p_c / (1 - p_c) of softmax probabilities p, from logits: (N, C) both."""
    ## Ranked by p itself, all pictures beyond margins of 37 would tie: p is then 1 in float64.
    none = np.full((len(logits), 1), -np.inf)
    before = np.logaddexp.accumulate(logits[:, :-1], axis=1)  # (N, C - 1) of the classes 0 to c
    after = np.logaddexp.accumulate(logits[:, :0:-1], axis=1)[:, ::-1]  # of c + 1 to the last
    odds = logits - np.logaddexp(np.hstack([none, before]), np.hstack([after, none]))
    return odds.round(9)  # equal p have equal odds, whatever the last bits of the others' sum are


def are_probabilities(scores):
    """Whether rows (N, C) are in [0, 1] and sum to 1 but for rounding, as logits never do."""
    decimals = next((d for d in (1, 2) if (abs(scores.round(d) - scores) < 1e-9).all()), 3)
    rounding = max(0.001, 0.5 * 10.0**-decimals) * scores.shape[1] + 1e-9
    return ((scores >= 0) & (scores <= 1)).all() and (abs(scores.sum(1) - 1) <= rounding).all()


def corrected(*, logits, class_shares):
    """The decisions argmax_c z_c - log π_c: (N,), of logits z (N, C) and shares π (C,)."""
    log_shares = np.log(class_shares)
    ## Shares that are equal but for a rounding must not turn a tie into another decision.
    return (np.asarray(logits, float) - (log_shares if np.ptp(log_shares) >= 1e-6 else 0)).argmax(1)


def headline(*, labels, groups, logits, num_groups, class_shares=None, weights=None, strata=None):
    """All metrics by name, from labels (N,), groups (N,), logits (N, C) and class_shares π (C,).

    Values are (...,); those named group_... are (..., G), class_... (..., C), and "counts" is
    (..., G, C, C). Without class_shares all classes were equally frequent in training, and both
    decisions are the same. strata (N,): see `auroc`.
    """
    labels, logits = _scores(labels, np.asarray(logits, float))
    if are_probabilities(logits):
        raise ValueError("logits must not be probabilities: pass their logarithms.")
    weights, num_classes = _weights(weights, len(labels)), logits.shape[1]
    split = {"groups": groups, "num_groups": num_groups}
    scored = {"labels": labels, "probs": log_odds(logits), "weights": weights, "strata": strata}
    overall, areas = auroc(**scored), auroc_per_group(**scored, **split)
    out = {"auroc": overall, "group_auroc": areas}
    out |= {"auroc_worst_group": worst_group(values=areas), "auroc_gap": gap(values=areas)}
    out["es_auc"] = es_auc(overall=overall, per_group=areas)
    out["psd_mean"], out["psd_max"] = psd(overall=overall, per_group=areas)
    said = logits.argmax(1)
    other = said if class_shares is None else corrected(logits=logits, class_shares=class_shares)
    for end, predictions in (("", said), ("_corrected", other)):
        if not end or (other != said).any():
            decided = {"labels": labels, "predictions": predictions, "weights": weights}
            hard = decisions(counts=confusion(**decided, **split, num_classes=num_classes))
        out |= {name + end: value for name, value in hard.items()}
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)  # (N, C)
    calibrated = {"labels": labels, "probs": np.exp(log_probs), "weights": weights}
    out["calibration_error"] = calibration_error(**calibrated)
    losses = -log_probs[np.arange(len(labels)), labels]  # cross-entropy, (N,)
    member = np.eye(num_groups)[groups]  # (N, G)
    out["loss"] = _ratio(weights @ losses, weights.sum(-1))
    out["group_loss"] = _ratio(weights @ (losses[:, None] * member), weights @ member)
    out["loss_worst_group"] = -worst_group(values=-out["group_loss"])  # the highest
    return out


def bootstrap(*, weights, measured=headline, tables=False, **data):
    """`headline` of all resamples `weights` (R, N): {metric: (R,), "group_...": (R, G), ...}.

    measured: `headline_masks`, where it is about masks; tables: keep those of counts, (R, G, C, C),
    which may be large and have no interval.
    """
    classes = np.shape(data.get("logits", [[]]))[1]
    counts = len(weights) * data["num_groups"] * classes**2  # what `confusion` would hold of all
    number = 1 + max(weights.size // 2**21, counts // 2**24)  # few rows at once need little memory
    parts = []
    for rows in np.array_split(weights, number):
        out = measured(**data, weights=rows)
        parts.append({k: v for k, v in out.items() if tables or not k.startswith("counts")})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


ENDS = "", "_corrected"  # of the names of metrics of decisions


def has_collapsed(*, counts):
    """Whether decisions (G, C, C) are so useless that fairness values mean nothing.

    A class that has samples is never predicted, a group of ten samples or more, of two classes or
    more, gets one answer, or macro recall is less than 5 points above chance.
    """
    there, predicted = counts.sum(-1) > 0, counts.sum(-2) > 0  # (G, C) each
    present = there.any(0)  # (C,)
    many = counts.sum((-1, -2)) >= 10  # (G,); fewer samples may get one answer by chance
    one_answer = (many & (predicted.sum(-1) == 1) & (there.sum(-1) > 1)).any()
    never = (present & ~predicted.any(0)).any()
    return bool(never or one_answer or recall(counts=counts) < 1 / max(present.sum(), 2) + 0.05)


def is_useless(*, tables, class_shares):
    """Whether a model has collapsed, by the decisions that count or by the corrected ones.

    tables: {"": counts at the largest output, "_corrected": ...}, (G, C, C) each
    """
    both = {"_corrected", main_rule(class_shares)}
    return any(has_collapsed(counts=np.asarray(tables[end])) for end in both)


def main_rule(shares):
    """The end of the names of the metrics of decisions that count: corrected where a class is rare.

    Rare is a class with under half of an equal share of what was trained on; shares (C,).
    """
    return ENDS[bool(min(shares) < 0.5 / len(shares))]


def _resampled(data, clusters, replicates, drawn, measured=headline):
    """The metrics of all resamples, which also go into the dict `drawn`, and {"subjects": n}.

    Both are {} with replicates=0. Of one subject there are no resamples: all would be the same.
    """
    n = len(data["labels"])
    subjects = n if clusters is None else len(np.unique(clusters))
    number = replicates if subjects > 1 else 0
    weights = bootstrap_weights(n=n, replicates=number, clusters=clusters)
    draws = bootstrap(**data, weights=weights, measured=measured) if number else {}
    if drawn is not None:
        drawn.update(draws)
    return draws, {"subjects": subjects} if replicates else {}


def _add_intervals(out, draws, sizes):
    """Add to `out` the intervals of its metrics, and "groups", made of group_... (G,)."""
    within = {name[6:]: out.pop(name) for name in list(out) if name.startswith("group_")}
    out["interval"] = {k: interval(draws=draws[k], point=out[k]) for k in out if draws}
    out["groups"] = []
    for g, n in enumerate(sizes):
        own = {k: values[g] for k, values in within.items()} | {"n": int(n)}
        ends = {k: draws[f"group_{k}"][:, g] for k in own if f"group_{k}" in draws}  # (R,) each
        own["interval"] = {k: interval(draws=ends[k], point=own[k]) for k in ends}
        out["groups"].append(own)


def _plain(out):
    """A dict as JSON has it: arrays become lists, and NaN, which JSON lacks, becomes None."""
    return json.loads(json.dumps(out, default=np.ndarray.tolist), parse_constant=lambda _: None)


def evaluate(
    *,
    labels,
    groups,
    logits,
    num_classes,
    num_groups,
    class_shares=None,
    clusters=None,
    replicates=1000,
    drawn=None,
    strata=None,
):
    """One model on one split as a dict for JSON. labels, groups, clusters (N,), logits (N, C).

    "n"                  number of samples
    "accuracy", ...      the metrics of `headline`; None is undefined, and "undefined" says why
    "groups", "classes"  a dict of metrics for each of them
    "counts"             the table (G, C, C); "counts_corrected", too
    "interval"           {metric: [low, high]}, 95 %; empty with replicates=0, which is fast
    "collapsed"          see `is_useless`
    "main_rule"          see there
    "subjects"           number of clusters, over which intervals are; of one there is none

    drawn: a dict that gets the metrics of all resamples, (R, ...), for `differences`. strata (N,):
    see `auroc`.
    """
    if np.shape(logits)[1:] != (num_classes,):
        raise ValueError(f"logits must be (N, {num_classes}), not {np.shape(logits)}.")
    data = {"labels": labels, "groups": groups, "logits": logits, "num_groups": num_groups}
    data |= {"class_shares": class_shares, "strata": strata}
    out = headline(**data)  # before the resamples, because it checks the arguments
    draws, subjects = _resampled(data, clusters, replicates, drawn)
    tables = {end: out.pop(f"counts{end}") for end in ENDS}
    of_class = {name[6:]: out.pop(name) for name in list(out) if name.startswith("class_")}
    samples = tables[""].sum(-1)  # (G, C), the same in both tables
    for end, counts in tables.items():
        recalls = recall_per_group(counts=counts)  # (G, C)
        out[f"group_recall{end}"] = _mean(recalls)  # (G,)
        of_class[f"recall{end}"] = recall_per_group(counts=counts.sum(0))  # (C,)
        of_class[f"recall_per_group{end}"] = recalls.T
        of_class[f"deo{end}"] = deo(counts=counts)[0]
    _add_intervals(out, draws, samples.sum(-1))
    out |= {"n": len(labels)} | subjects
    out |= {f"counts{end}": counts.astype(int) for end, counts in tables.items()}
    out["classes"] = [{k: v[c] for k, v in of_class.items()} for c in range(num_classes)]
    shares = [1] if class_shares is None else class_shares
    out["collapsed"] = is_useless(tables=tables, class_shares=shares)
    out["main_rule"] = main_rule(shares)
    empty = np.argwhere(samples == 0)
    out["undefined"] = [f"group {g} has no sample of class {c}" for g, c in empty]
    if num_groups == 1:
        out["undefined"].insert(0, "there is one group only: nothing to compare")
    return _plain(out)


# ----- masks --------------------------------------------------------------------------------------
## All metrics of masks come from three numbers of pixels for each picture, its areas |A|, |B| and
## |A∩B|, where A is said to be inside and B is. Means are over pictures: over the pixels of all
## pictures together, small masks would hardly count.
FAILED = 0.7  # a Dice below which a mask counts as failed
MASK_ENDS = "", "_standardised"


def dice(*, areas):
    """2 |A∩B| / (|A| + |B|), (N,) in [0, 1], from areas (N, 3); 1 where both are empty."""
    said, true, both = np.asarray(areas, float).T  # (N,) each
    return np.where(said + true > 0, _ratio(2 * both, said + true), 1.0)


def iou(*, areas):
    """|A∩B| / |A∪B|, (N,) in [0, 1], from areas (N, 3); 1 where both are empty."""
    said, true, both = np.asarray(areas, float).T  # (N,) each
    return np.where(said + true > 0, _ratio(both, said + true - both), 1.0)


def comparisons(*, name, overall, per_group):
    """Metrics of a score's means (...,) and (..., G), by names such as dice_gap.

    "difference", of two groups only: second minus first. "es": equity-scaled, as `es_auc`. "sd":
    standard deviation of the groups. "ser", skewed error ratio: (1 - lowest) / (1 - highest). The
    last two are named by Puyol-Antón et al. (2021); the formula of the ratio is ours.
    """
    lowest, highest = worst_group(values=per_group), -worst_group(values=-per_group)
    out = {name: overall, f"group_{name}": per_group}
    if name == "iou":  # it says what Dice says: two rows of the table are enough
        return out | {"es_iou": es_auc(overall=overall, per_group=per_group)}
    out[f"{name}_gap"] = gap(values=per_group)
    if per_group.shape[-1] == 2:
        out[f"{name}_difference"] = per_group[..., 1] - per_group[..., 0]
    if name == "failure":  # the only score of which less is better
        return out | {"failure_worst_group": highest}
    out[f"{name}_worst_group"] = lowest
    out[f"es_{name}"] = es_auc(overall=overall, per_group=per_group)
    out[f"{name}_sd"] = psd(overall=np.ones_like(overall), per_group=per_group)[0]
    return out | {f"{name}_ser": _ratio(1 - lowest, 1 - highest)}


def headline_masks(*, areas, labels, groups, num_classes, num_groups, weights=None):
    """All metrics of masks by name, from areas (N, 3), classes (N,) and groups (N,) of pictures.

    Values are shaped as in `headline`. Each stands twice, the second time as name_standardised: the
    mean of a group is then Σ_c π_c D_gc, where D_gc is its mean in class c, and π_c the share of
    class c among the pictures of those classes that every group has. So groups are compared inside
    classes: if one group has more of the pictures that are hard for everybody, that is no gap.
    Weights do not change which classes these are, so that an interval is of one quantity: where a
    resample lacks one of them in a group, the mean of this group is NaN.
    """
    labels = _codes("labels", labels, num_classes, len(areas))
    groups = _codes("groups", groups, num_groups, len(areas))
    weights, out = _weights(weights, len(areas)), {}
    shape = *weights.shape[:-1], num_groups, num_classes
    cells = np.eye(num_groups * num_classes)[groups * num_classes + labels]  # (N, G · C)
    size = (weights @ cells).reshape(shape)  # (..., G, C) pictures
    there = cells.sum(0).reshape(num_groups, num_classes) > 0  # whatever the weights are
    common = there[there.any(1)].all(0)  # (C,), the classes that every group with pictures has
    sizes = size[..., common].sum(-2)  # (..., c), which are π · their sum
    scores = {"dice": dice(areas=areas), "iou": iou(areas=areas)}
    scores["failure"] = (scores["dice"] < FAILED).astype(float)
    for name, values in scores.items():
        sums = (weights @ (values[:, None] * cells)).reshape(shape)  # (..., G, C)
        raw = _ratio(sums.sum((-1, -2)), size.sum((-1, -2))), _ratio(sums.sum(-1), size.sum(-1))
        overall = _ratio(sums[..., common].sum((-1, -2)), sizes.sum(-1))  # (...,)
        inside = _ratio(sums, size)[..., common] * sizes[..., None, :]  # (..., G, c)
        alike = overall, _ratio(inside.sum(-1), sizes.sum(-1)[..., None])
        for end, (mean, means) in zip(MASK_ENDS, (raw, alike)):
            found = comparisons(name=name, overall=mean, per_group=means)
            out |= {key + end: value for key, value in found.items()}
        if name == "dice":
            cell = _ratio(sums, size).reshape(*shape[:-2], -1)  # (..., G · C)
            out |= {"loss": 1 - raw[0], "worst_cell": worst_group(values=cell)}
    return out


def evaluate_masks(
    *,
    areas,
    labels,
    groups,
    num_classes,
    num_groups,
    clusters=None,
    replicates=1000,
    drawn=None,
):
    """One model's masks of one split as a dict for JSON, as `evaluate`, with "pictures" (G, C)."""
    areas = np.asarray(areas)
    data = {"areas": areas, "labels": labels, "groups": groups}
    data |= {"num_classes": num_classes, "num_groups": num_groups}
    out = headline_masks(**data)
    draws, subjects = _resampled(data, clusters, replicates, drawn, headline_masks)
    size = np.zeros((num_groups, num_classes), int)
    np.add.at(size, (groups, labels), 1)
    _add_intervals(out, draws, size.sum(-1))
    values = dice(areas=areas)
    of_class = [values[np.asarray(labels) == c] for c in range(num_classes)]
    out["classes"] = [{"dice": v.mean() if len(v) else None, "n": len(v)} for v in of_class]
    out |= {"n": len(areas), "pictures": size} | subjects
    ## Nothing is found in half of the pictures, or the same number of pixels in all. Where nothing
    ## is to be found, an empty mask is right.
    said, true, _ = areas[areas[:, 1] > 0].T
    same = np.ptp(said) == 0 < np.ptp(true) if len(said) else False
    out["collapsed"] = bool(same or len(said) and np.median(said) == 0)
    out["undefined"] = [f"group {g} has no sample of class {c}" for g, c in np.argwhere(size == 0)]
    return _plain(out)


# ----- show and time ------------------------------------------------------------------------------
## {block of the table: {metric: (its word, 1 if more is better, -1 if less is, 0 if neither)}}; the
## words are those of all pages. Rows that a model lacks are left out: some are of classes alone,
## others of masks.
BLOCKS = {
    "utility": {
        "accuracy": ("top-1", 1),
        "f1": ("F1", 1),
        "auroc": ("AUROC", 1),
        "dice": ("Dice", 1),
        "iou": ("IoU", 1),
        "failure": ("failed", -1),
    },
    "fairness of AUROC": {
        "auroc_worst_group": ("worst group", 1),
        "auroc_gap": ("gap", -1),
        "es_auc": ("ES-AUC", 1),
    },
    "fairness of decisions": {
        "mean_deo": ("mean-DEO", -1),
        "max_deo": ("max-DEO", -1),
        "disparity": ("disparity", -1),
    },
    "fairness of Dice": {
        "dice_worst_group": ("worst Dice", 1),
        "dice_gap": ("Dice gap", -1),
        "dice_difference": ("difference", 0),
        "es_dice": ("ES-Dice", 1),
        "dice_sd": ("sd", -1),
    },
    "fairness of IoU and failures": {"es_iou": ("ES-IoU", 1), "failure_gap": ("gap", -1)},
    "class x group": {"worst_cell": ("worst cell", 1), "worst_cell_train": ("in training", 1)},
}
WORDS = {key: word for block in BLOCKS.values() for key, word in block.items()}
BRIEF = "auroc auroc_worst_group mean_deo dice dice_worst_group dice_gap".split()
ARROWS = {1: " ↑", -1: " ↓", 0: ""}
## Why a metric is undefined. Of others: there is no sample.
UNDEFINED = {"auroc": "without samples of two classes there is no AUROC"}
UNDEFINED["auroc_worst_group"] = UNDEFINED["auroc"]
UNDEFINED |= dict.fromkeys(["auroc_gap", "es_auc"], "fewer than two groups have an AUROC")
UNDEFINED |= dict.fromkeys(
    ["mean_deo", "max_deo", "disparity"], "a class needs samples in two groups"
)


def cell_sizes(evaluated):
    """How many pictures each group has of each class, (G, C), by what `evaluate` returned."""
    ## Of masks there are no counts of decisions.
    return np.array(evaluated.get("pictures") or np.sum(evaluated["counts"], axis=-1))


def main_ones(evaluated):
    """{metric: value} of what `evaluate` or `evaluate_masks` returned: BLOCKS, and `collapsed`."""
    return {name: evaluated[name] for name in (*WORDS, "collapsed") if name in evaluated}


def differences(first, second):
    """{metric: [second minus first, low, high]}, from the same resamples of subjects, for JSON.

    first, second: each what `evaluate` or `evaluate_masks` returned, and what was `drawn` then.
    """
    (a, draws_a), (b, draws_b) = first, second
    both = [k + end for k in WORDS for end in (*ENDS, MASK_ENDS[1]) if k + end in draws_a]
    out = {}
    for key in [key for key in both if None not in (a[key], b[key])]:
        points = {"point_a": b[key], "point_b": a[key]}
        found = paired_difference(**points, draws_a=draws_b[key], draws_b=draws_a[key])
        out[key] = [*found.values()]
    for key in [key for key in out if key.startswith(("mean_deo", "dice_gap"))]:
        (x, drawn_x), (y, drawn_y) = directed(key, a, draws_a), directed(key, b, draws_b)
        found = paired_difference(point_a=y, point_b=x, draws_a=drawn_y, draws_b=drawn_x)
        out[f"{key}_directed"] = [*found.values()]
    return _plain(out)


def directed(key, evaluated, draws):
    """A gap, () and of all resamples (R,), in its direction on the test pictures.

    A gap is a size: noise raises it, and it cannot reach 0 where groups are equal. So a verdict
    also asks for the signed differences of two groups, each in the direction of all pictures.
    """
    if key.startswith("mean_deo"):
        name = key.replace("mean_deo", "disparity")
        ahead, drawn = [c[name] for c in evaluated["classes"]], draws[f"class_{name}"]
    elif (name := key.replace("gap", "difference")) in evaluated:
        ahead, drawn = [evaluated[name]], draws[name][:, None]
    else:  # masks, more than two groups
        return evaluated[key], draws[key]
    ahead = np.array(ahead, float)
    return tuple(_mean(np.sign(ahead) * values) for values in (ahead, drawn))


def verdict(columns, difference, runs=1):
    """Which of two models is fairer, as far as test pictures, or several `runs`, tell: a sentence.

    columns: {name: what `evaluate` returned} of both; difference: of `differences`.
    """
    (a, first), (b, second) = columns.items()
    ends = {"mean_deo": first.get("main_rule"), "dice_gap": "_standardised"}
    key = next(key for key in ends if key in first)
    word = f"{WORDS[key][0]} ({ends[key][1:]})" if ends[key] else WORDS[key][0]
    sized = difference.get(key + (ends[key] or ""), [None] * 3)
    known = np.array([sized, difference.get(f"{key}{ends[key] or ''}_directed", sized)], float)
    a, b = ({"teacher": "its teacher", "student": "the student"}.get(n, n) for n in (a, b))
    if bad := [name for name, model in ((a, first), (b, second)) if model["collapsed"]]:
        words = " and ".join(bad)
        return f"{words[0].upper()}{words[1:]} collapsed: to be equally useless is not to be fair."
    if np.isnan(known).any():
        return f"Whether {b} is fairer than {a} cannot be told: {word} has no interval."
    (point, low, high), (_, *directed) = (100 * known).tolist()
    end = "" if runs > 1 else "; another training may differ"
    where = f"Over {runs} trainings" if runs > 1 else "On these test pictures"
    signs = [(ends[0] > 0) - (ends[1] < 0) for ends in ((low, high), directed)]
    if 0 in signs or len({*signs}) > 1:
        why = "the interval holds 0"
        if signs[0]:
            why = "it differs in size alone, in its direction by [{:.1f}, {:.1f}]".format(*directed)
        return (
            f"{where}, {b} is not shown to be fairer or less fair than {a}: {word} differs by "
            f"{point:+.1f} points [{low:.1f}, {high:.1f}], and {why}."
        )
    low, high = sorted((abs(low), abs(high)))
    return (
        f"{where}, {b} is {'less fair' if point > 0 else 'fairer'} than {a} by {abs(point):.1f} "
        f"points of {word} [{low:.1f}, {high:.1f}]{end}."
    )


FEW = 10  # subjects, over fewer of which intervals are too narrow
ADVICE = "Try --balance, more --epochs, or less weight on fairness"  # where a model collapsed


def show(columns, class_names, group_names, difference=None, advice=ADVICE):
    """A table as text, in percent with 95 % intervals: a column for each model.

    columns: {"teacher": evaluate(...), "student": ...}; difference: `differences` of two, for one
    more column and the `verdict`; advice: for models that collapsed. The blocks are those of
    BLOCKS, then AUROC and top-1 by group and the signed disparity by class; of masks Dice and
    failures. Where both decisions differ, each metric of decisions has a second row; a metric of
    masks has one where standardising changes it.
    """
    models, masks = [*columns.values()], "dice" in [*columns.values()][0]
    blocks = {}  # {title: rows}, a row: its first cell, the dicts that hold the value, their key
    for title, words in BLOCKS.items():
        blocks[title] = [(w + ARROWS[sign], models, key) for key, (w, sign) in words.items()]
    for key in ("auroc", "accuracy", "dice", "failure"):
        parts = [[model["groups"][g] for model in models] for g in range(len(group_names))]
        title = f"{WORDS[key][0]} by group{ARROWS[WORDS[key][1]]}"
        blocks[title] = [(name, part, key) for name, part in zip(group_names, parts)]
    minus = ", {1} minus {0}".format(*group_names) if len(group_names) == 2 else ""
    for title, key in ((f"disparity by class{minus}", "disparity"), ("Dice by class ↑", "dice")):
        parts = [[model["classes"][c] for model in models] for c in range(len(class_names))]
        blocks[title] = [(name, part, key) for name, part in zip(class_names, parts)]
    two = any(model.get("counts") != model.get("counts_corrected") for model in models)
    ends = MASK_ENDS if masks else ENDS if two else ENDS[:1]
    heads = [f"{k} (collapsed)" if model["collapsed"] else k for k, model in columns.items()]
    heads += [" - ".join([*columns][::-1])] if difference else []
    space = 15 if masks else 14  # for names, in all blocks but those of long names
    cells, reasons = [["percent [95 %]".ljust(space), *heads]], {}
    for title, rows in blocks.items():
        block = []
        for (first, parts, key), end in itertools.product(rows, ends):
            if key + end not in parts[0]:
                continue
            row = [f"   {end[1:]}" if end else f" {first}"]
            shown = [
                [part[key + end], *part.get("interval", {}).get(key + end, [])] for part in parts
            ]
            if difference and key + end in difference:
                shown += [difference[key + end]] if parts is models else []
            for n, values in enumerate(shown):
                style = ".1f" if n < len(models) else "+.1f"
                texts = ["undefined" if v is None else f"{100 * v:{style}}" for v in values]
                texts = ["0.0" if text in ("+0.0", "-0.0") else text for text in texts]
                value, bounds = texts[0], ", ".join(texts[1:]).replace("+", "")
                bounds = "undefined" if "undefined" in bounds else bounds
                row.append(f"{value} [{bounds}]" if bounds and value != "undefined" else value)
                name = WORDS[key][0] + (f", {first}" if parts is not models else "")
                if value == "undefined":
                    reasons.setdefault(UNDEFINED.get(key, "there is no sample"), {})[name] = None
                elif "undefined" in bounds:
                    reasons.setdefault("half of the resamples have no value", {})[name] = None
            row += [""] * (len(heads) + 1 - len(row))
            if not (masks and end) or row[1:] != block[-1][1:]:
                block.append(row)
        longest = max((len(row[0]) for row in block), default=0)  # each block has its own
        block = [[row[0].ljust(max(space, longest)), *row[1:]] for row in block]
        cells += [[title], *block] if block else []
    widths = [max(map(len, column)) for column in zip(*(row[1:] for row in cells if row[1:]))]
    lines = ["  ".join(map(str.ljust, row, [0, *widths])).rstrip() for row in cells]
    notes = ["↑ more is better, ↓ less is"]
    if masks:
        if any("standardised" in row[0] for row in cells):
            notes.append("standardised: as if each class had the same share in every group")
        if "dice_difference" in models[0]:
            notes.append("difference: the second group minus the first; gap: without its sign")
        notes.append(f"failed: share of masks with a Dice below {FAILED:.0%}")
        notes.append("sd: standard deviation of the groups")
        notes.append("ES: equity-scaled, divided by 1 + the sum of the groups' distances from it")
    else:
        notes.append("mean-DEO: recall of the best group minus that of the worst, mean of classes")
    if two and not masks:
        notes.append("corrected: decisions by z - log π, π the shares of the classes in training")
    if (subjects := models[0].get("subjects", FEW)) < FEW:
        one = "one subject: no interval" if subjects == 1 else f"{subjects} subjects: too narrow"
        notes.append(f"beware: intervals are over subjects, and these are pictures of {one}")
    for reason, names in reasons.items():
        notes.append(f"undefined, because {reason}: {'; '.join(names)}")
    areas = [group.get("auroc", 0) for group in models[0]["groups"]]  # of masks there are none
    if None in areas and any(areas):
        notes.append("worst group: of those that have an AUROC")
    for g, c in np.argwhere(cell_sizes(models[0]) == 0):
        notes.append(f"no picture of {class_names[c]}, {group_names[g]}: means leave it out")
    why = "it gives up a class, gives a group one answer, or is about as good as chance"
    if masks:
        why = "half of the masks that it should find are empty, or all are equally large"
    if bad := [name for name, model in columns.items() if model["collapsed"]]:
        notes.append(f"{' and '.join(bad)} collapsed: {why}. {advice}".rstrip())
    notes += [verdict(columns, difference)] if difference else []
    return "\n".join(lines + [textwrap.fill(note, 80, subsequent_indent="  ") for note in notes])


def summary(result):
    """The table of a run's teacher, if it has one, and of its student after the last epoch."""
    tests, models = {}, {"teacher": result.get("teacher"), "student": result["last"]}
    for name, model in [pair for pair in models.items() if pair[1]]:
        cells = {end: model["train"].get(f"worst_cell{end}") for end in ENDS}
        cells = {f"worst_cell_train{end}": v for end, v in cells.items() if v is not None}
        tests[name] = model["test"] | cells
    names = result["classes"], result["group_names"]
    advice = "That is expected of a smoke run" if result["settings"]["smoke"] else ADVICE
    return show(tests, *names, result.get("difference"), advice)


def row_of(label, losses, validation, left):
    """The line above the rows of epochs, and the row of one: in 80 columns, as many losses as fit.

    losses, validation: {name: value}; left: seconds, to the end of all.
    """
    known = {WORDS[name][0]: validation[name] for name in BRIEF if name in validation}
    values = {name: "-" if v is None else f"{100 * v:.1f}" for name, v in known.items()}
    values["left"] = str(datetime.timedelta(seconds=round(left))).removeprefix("0:")
    width, cells, space = max(13, len(label)), {}, 4  # of "val "
    space += width + sum(1 + max(len(name), 5) for name in values)
    for name, value in losses.items():
        space += 1 + max(len(name.removeprefix("loss_")), 5)
        if space <= 80:
            style = ".3f" if abs(value) < 10 else ".4g"
            cells[name.removeprefix("loss_")] = f"{value:{style}}"
    cells |= {"val": ""} | values
    head, row = (
        " ".join(f"{texts[name]:>{3 if name == 'val' else max(len(name), 5)}}" for name in cells)
        for texts in ({name: name for name in cells}, cells)
    )
    return f"{'':{width}} {head}", f"{label:{width}} {row}"


if __name__ == "__main__":
    import predictions

    predictions.main()
