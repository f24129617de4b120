"""What every number means: utility, per group, fairness, and how sure we are. NumPy only.

After the arg max a model is one table, and all hard metrics are ratios of its sums:
    counts[..., g, y, ŷ] = how many samples of group g and true class y were predicted as ŷ
Leading axes `...` broadcast: none for the measurement itself, one of length R for R bootstrap
resamples. AUROC sorts the scores once, and a resample (a row of `weights`) is one cumulative sum.
N samples, C classes, G groups. Values are fractions. Arguments are by keyword, because swapping
truth and prediction raises no error. What cannot be measured is NaN, never 0: a 0 would read as
"perfectly fair" (a gap) or as "worse than chance" (an AUROC). Means and extremes skip NaN."""
import json

import numpy as np


def _ratio(top, bottom):
    """top / bottom; NaN where bottom is 0 (an empty cell), without a warning."""
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)[()]

def _mean(values):
    """Mean over the last axis of the defined entries; NaN if there is none."""
    return _ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1))

def _codes(name, values, number, size=None):
    """`values` as integers (N,) from 0 to number-1, or an error that says what is wrong."""
    values = np.asarray(values)
    fits = values.ndim == 1 and 0 < len(values) == (size or len(values))
    if not fits or values.dtype.kind not in "iub" or values.min() < 0 or values.max() >= number:
        raise ValueError(f"{name} must be integers below {number}, one per sample, not empty.")
    return values.astype(np.int64)

def _weights(weights, size):
    """How often each sample counts, float64 (..., N); None = once each."""
    weights = np.asarray(np.ones(size) if weights is None else weights, float)
    if weights.shape[-1:] != (size,) or not (weights >= 0).all():  # "not >=" also catches NaN
        raise ValueError(f"weights must be non-negative, (..., {size}), not {weights.shape}.")
    return weights
# ------------------------------------------------------------------ from the table of counts
def confusion(*, labels, predictions, groups, num_classes, num_groups, weights=None):
    """The table counts (..., G, C, C) from codes (N,); weights (..., N) bring the leading axes."""
    labels = _codes("labels", labels, num_classes)
    predictions = _codes("predictions", predictions, num_classes, len(labels))
    groups = _codes("groups", groups, num_groups, len(labels))
    weights = _weights(weights, len(labels))
    cell = (groups * num_classes + labels) * num_classes + predictions
    order = np.argsort(cell, kind="stable")  # samples of one cell become neighbours ...
    present, starts = np.unique(cell[order], return_index=True)
    counts = np.zeros((*weights.shape[:-1], num_groups * num_classes**2))
    counts[..., present] = np.add.reduceat(weights[..., order], starts, axis=-1)  # ... and add up
    return counts.reshape(*weights.shape[:-1], num_groups, num_classes, num_classes)

def _margins(counts):
    """Of a table (..., C, C): hits, samples and predictions of each class, each (..., C)."""
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)

def _average(values, samples, average):
    """Over classes: "macro" = plain mean, "weighted" = by the number of true samples."""
    weighted = _ratio((np.nan_to_num(values) * samples).sum(-1), samples.sum(-1))
    return {"macro": _mean(values), "weighted": weighted}[average]

def accuracy(*, counts):
    """Σ_c hits_c / N, all groups together: (...,) in [0, 1]; NaN for an empty table."""
    return recall(counts=counts, average="weighted")  # Σ_c samples_c/N · hits_c/samples_c

def recall(*, counts, average="macro"):
    """Mean of hits_c / samples_c: (...,) in [0, 1]; a class without samples is NaN, left out.
    Macro is scikit-learn's balanced accuracy. ## Weighted IS accuracy: samples_c cancels."""
    hits, samples, _ = _margins(counts.sum(-3))
    return _average(_ratio(hits, samples), samples, average)

def precision(*, counts, average="macro"):
    """Mean of hits_c / predictions_c: (...,) in [0, 1]; scikit-learn's with zero_division=0.
    ## Never predicted counts 0: skipped, it would reward collapse. Skipped if no samples either."""
    hits, samples, predicted = _margins(counts.sum(-3))
    value = np.where((predicted == 0) & (samples > 0), 0.0, _ratio(hits, predicted))
    return _average(value, samples, average)

def f1(*, counts, average="macro"):
    """Mean of 2 hits_c / (samples_c + predictions_c): (...,) in [0, 1]; left out as above."""
    hits, samples, predicted = _margins(counts.sum(-3))
    return _average(_ratio(2 * hits, samples + predicted), samples, average)

def recall_per_group(*, counts):
    """R[g, c] = hits / samples of class c in group g: (..., G, C) in [0, 1]; empty cell NaN."""
    return _ratio(*_margins(counts)[:2])

def group_accuracy(*, counts):
    """Accuracy inside each group: (..., G) in [0, 1]; NaN for an empty group."""
    return accuracy(counts=counts[..., None, :, :])

def worst_group(*, values):
    """min_g values[..., g] over the defined groups: (...,); NaN if there is none."""
    return np.fmin.reduce(values, axis=-1)  # fmin ignores NaN unless all are

def gap(*, values):
    """max_g - min_g over the defined groups: (...,) ≥ 0; NaN if fewer than two are defined."""
    spread = -worst_group(values=-values) - worst_group(values=values)
    return np.where((~np.isnan(values)).sum(-1) >= 2, spread, np.nan)[()]

def deo(*, counts):
    """Difference in equal opportunity D_c = max_g R[g, c] - min_g R[g, c] (MFD, Jung 2021).
    Returns D (..., C), mean-DEO = mean_c D_c and max-DEO = max_c D_c, (...,), in [0, 1]. A class
    with samples in fewer than two groups is NaN, left out; the authors' code makes all NaN then."""
    per_class = gap(values=np.swapaxes(recall_per_group(counts=counts), -1, -2))
    return per_class, _mean(per_class), -worst_group(values=-per_class)

def disparity(*, counts):
    """d_c = R[1, c] - R[0, c], (..., C) in [-1, 1], and mean_c |d_c|, (...,); W210-Capstone's.
    Groups (female, male) give male minus female, as there. For G > 2, d_c is D_c of `deo`,
    unsigned. A class that a group lacks is NaN, left out. ## The capstone's code takes 0 for an
    ## undefined recall (so absence looks like a gap) and drops d_c = 0 (so a fair class hurts)."""
    recalls, (spread, _, _) = recall_per_group(counts=counts), deo(counts=counts)
    signed = recalls[..., 1, :] - recalls[..., 0, :] if recalls.shape[-2] == 2 else spread
    return signed, _mean(np.abs(signed))

def demographic_parity_difference(*, counts):
    """max_g - min_g of P(ŷ = c | g), mean over classes: (...,) in [0, 1]; empty groups left out.
    C = 2: fairlearn's. ## It ignores the truth: a perfect model differs where prevalence does."""
    chosen = _ratio(counts.sum(-2), counts.sum((-1, -2))[..., None])  # (..., G, C)
    return _mean(gap(values=np.swapaxes(chosen, -1, -2)))

def equalized_odds_difference(*, counts):
    """max(TPR gap, FPR gap), mean over classes: (...,) in [0, 1]; undefined gap: class left out.
    C = 2: fairlearn's. Rates are given the TRUTH (FairVision, multi-class: the prediction)."""
    hits, samples, predicted = _margins(counts)  # (..., G, C) each
    fpr = _ratio(predicted - hits, samples.sum(-1, keepdims=True) - samples)
    gaps = [gap(values=np.swapaxes(rate, -1, -2)) for rate in (_ratio(hits, samples), fpr)]
    return _mean(np.maximum(*gaps))  # np.maximum keeps NaN
# ------------------------------------------------------------------ from the scores
def _area(positive, score, weights):
    """P(a positive scores above a negative), ties half: (...,); NaN if either is missing."""
    order = np.argsort(score, kind="stable")
    positives, negatives = order[positive[order]], order[~positive[order]]
    below = np.zeros((*weights.shape[:-1], len(negatives) + 1))  # [k]: of the k lowest negatives
    np.cumsum(weights[..., negatives], axis=-1, out=below[..., 1:])
    low, high = (np.searchsorted(score[negatives], score[positives], s) for s in ("left", "right"))
    weights = weights[..., positives]
    ## A tied negative counts in below[high] and not in below[low]: half of it in their mean.
    won = (weights * (below[..., low] + below[..., high])).sum(-1) / 2
    return _ratio(won, weights.sum(-1) * below[..., -1])

def _scores(labels, probs):
    """Checked labels (N,) and probs (N, C); scores (N,) of class 1 become two columns."""
    probs = np.asarray(probs)
    probs = np.stack([1 - probs, probs], axis=1) if probs.ndim == 1 else probs
    if probs.ndim != 2 or probs.shape[1] < 2 or not np.isfinite(probs).all():
        raise ValueError(f"scores must be finite, (N,) or (N, C), not NaN or {probs.shape}.")
    return _codes("labels", labels, probs.shape[1], len(probs)), probs

def _areas(labels, probs, weights):
    """`auroc` of checked arguments, which may be empty."""
    classes = range(probs.shape[1]) if probs.shape[1] > 2 else [1]
    return _mean(np.stack([_area(labels == c, probs[:, c], weights) for c in classes], axis=-1))

def auroc(*, labels, probs, weights=None):
    """Area under the ROC curve: (...,) in [0, 1], chance 0.5. labels (N,), probs (N, C) or (N,).
    C = 2: P(probs[i, 1] > probs[j, 1]), i positive, j negative, ties half. C > 2:
    mean over classes one-versus-rest; a class without samples is left out; NaN if none is left."""
    labels, probs = _scores(labels, probs)
    return _areas(labels, probs, _weights(weights, len(labels)))

def auroc_per_group(*, labels, probs, groups, num_groups, weights=None):
    """`auroc` inside each group: (..., G). One class only: NaN (FairVision puts -1)."""
    labels, probs = _scores(labels, probs)
    groups = _codes("groups", groups, num_groups, len(labels))
    weights = _weights(weights, len(labels))
    own = [groups == g for g in range(num_groups)]
    return np.stack([_areas(labels[o], probs[o], weights[..., o]) for o in own], axis=-1)

def es_auc(*, overall, per_group):
    """Equity-scaled AUC / (1 + Σ_g |AUC_g - AUC|): (...,) in [0, 1], from (...,) and (..., G).
    FairVision's. Undefined groups are left out, NaN if fewer than two remain. It falls with G."""
    away = np.nansum(np.abs(per_group - np.asarray(overall)[..., None]), axis=-1)
    return _ratio(np.where(np.isnan(gap(values=per_group)), np.nan, overall), 1 + away)

def psd(*, overall, per_group):
    """FairVision's (std_g AUC_g / AUC, (max - min) / AUC), (...,) ≥ 0; undefined as `es_auc`."""
    std = np.sqrt(_mean((per_group - _mean(per_group)[..., None]) ** 2))
    spread = gap(values=per_group)
    return _ratio(np.where(np.isnan(spread), np.nan, std), overall), _ratio(spread, overall)

def calibration_error(*, labels, probs, bins=10, weights=None):
    """ECE = Σ_b n_b/N |accuracy_b - mean confidence_b|: (...,) in [0, 1], confidence = max_c probs.
    Guo 2017: bins ((b-1)/B, b/B]. MEDFAIR's: class 1, ten bins from smallest to largest value."""
    labels, probs = _scores(labels, probs)
    confidence, weights = probs.max(1), _weights(weights, len(labels))
    bin_of = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    ## n_b cancels: n_b/N |Σ correct/n_b - Σ confidence/n_b| = |Σ (correct - confidence)| / N.
    excess = ((probs.argmax(1) == labels) - confidence)[:, None] * (bin_of[:, None] == range(bins))
    return _ratio(np.abs(weights @ excess).sum(-1), weights.sum(-1))
# ------------------------------------------------------------------ how sure are we
def bootstrap_weights(*, n, replicates=1000, seed=0, clusters=None):
    """How often each of n samples is drawn in each of R resamples: (R, n) float32, whole numbers.
    `clusters` (n,), lesion or subject ids, are drawn whole: their pictures are not independent.
    ## A function of (n, clusters, seed) alone: two models get the same resamples (paired)."""
    ids = np.arange(n) if clusters is None else np.asarray(clusters)
    if n < 1 or ids.shape != (n,):
        raise ValueError(f"clusters must be one id for each of {n} samples, not {ids.shape}.")
    names, ids = np.unique(ids, return_inverse=True)
    rng, weights = np.random.default_rng(seed), np.empty((replicates, n), np.float32)
    for row in weights:  # not all at once: the int64 draws would take three times the memory
        row[:] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[ids]
    return weights

def interval(*, draws, level=0.95, point=None):
    """Percentile interval (low, high) of draws (R,); undefined ones left out, NaN if half are.
    ## Resamples of a gap lie above it (noise adds to max - min): widened to hold the `point`."""
    kept = np.asarray(draws, float)[~np.isnan(draws)]
    kept = kept if 2 * len(kept) > len(draws) else [np.nan]
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return (low, high) if point is None else (min(low, point), max(high, point))

def paired_difference(*, point_a, point_b, draws_a, draws_b, level=0.95):
    """a - b with its percentile interval; draws (R,) must come from the same resamples.
    ## It removes the luck that both models share: intervals that overlap prove nothing."""
    low, high = interval(draws=np.subtract(draws_a, draws_b), level=level)
    return {"difference": float(point_a - point_b), "low": low, "high": high}

def seed_interval(*, values, level=0.95):
    """(mean, low, high) of values (S,) over seeds: mean ± t s/√S, Student's t; NaN for S = 1.
    Two methods: pass differences by seed. ## The bootstrap varies the test set, this training."""
    values, dof = np.asarray(values, float), len(values) - 1
    if dof < 1:
        return float(values.mean()), np.nan, np.nan
    ## With t = √dof tan θ, the density of t is proportional to cos^(dof-1) θ: no Γ needed.
    theta = np.arange(1, 100_001) * np.pi / 200_000  # right ends of small steps up to π/2
    mass = np.cumsum(np.cos(theta - np.pi / 400_000) ** (dof - 1))
    t = np.sqrt(dof) * np.tan(np.interp(level * mass[-1], mass, theta))
    half = t * values.std(ddof=1) / np.sqrt(dof + 1)
    return tuple((values.mean() + half * np.array([0, -1, 1])).tolist())
# ------------------------------------------------------------------ all of it
def headline(*, labels, groups, logits, num_groups, weights=None):
    """{metric: (...,), "group_accuracy", ...: (..., G), "counts": (..., G, C, C)}, logits (N, C)"""
    labels, logits = _scores(labels, np.asarray(logits, float))
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    weights, probs = _weights(weights, len(labels)), np.exp(log_probs)
    scored, split = dict(labels=labels, weights=weights), dict(groups=groups, num_groups=num_groups)
    counts = confusion(**scored, **split, predictions=probs.argmax(1), num_classes=probs.shape[1])
    out = {f.__name__ + end: f(counts=counts, average=average) for f in (recall, precision, f1)
           for average, end in (("macro", ""), ("weighted", "_weighted"))}
    out |= {f.__name__: f(counts=counts) for f in (
        accuracy, group_accuracy, equalized_odds_difference, demographic_parity_difference)}
    out |= {f.__name__: f(**scored, probs=probs) for f in (auroc, calibration_error)}
    areas = out["group_auroc"] = auroc_per_group(**scored, **split, probs=probs)
    for name, each in (("auroc", areas), ("accuracy", out["group_accuracy"])):
        out |= {f"{name}_worst_group": worst_group(values=each), f"{name}_gap": gap(values=each)}
    out["psd_mean"], out["psd_max"] = psd(overall=out["auroc"], per_group=areas)
    out["es_auc"] = es_auc(overall=out["auroc"], per_group=areas)
    _, out["mean_deo"], out["max_deo"] = deo(counts=counts)
    out["disparity"], out["counts"] = disparity(counts=counts)[1], counts
    losses = -weights * log_probs[np.arange(len(labels)), labels]  # cross-entropy (..., N)
    out["loss"], member = _ratio(losses.sum(-1), weights.sum(-1)), np.eye(num_groups)[groups]
    out["group_loss"] = _ratio(losses @ member, weights @ member)  # member (N, G)
    return out | {"loss_worst_group": -worst_group(values=-out["group_loss"])}  # the highest

def bootstrap(*, weights, **data):
    """`headline`, same arguments, of all resamples `weights` (R, N): {metric: (R,) or (R, G)}.
    ## A gap is a maximum minus a minimum, so noise pushes it up, and once more in a resample."""
    parts = [headline(**data, weights=few)  # a few resamples at a time: little memory
             for few in np.array_split(weights, 1 + weights.size // 2**21)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

def evaluate(*, labels, groups, logits, num_classes, num_groups, clusters=None, replicates=1000,
             seed=0):
    """One model on one split, ready for JSON: None is undefined, and "undefined" says why.
    Keys: "n", the metrics of `headline`, "groups" and "classes" (a dict each), "counts" (G, C, C),
    "interval" {metric: [low, high]}, 95 % (replicates=0: none, fast), "collapsed": all predictions
    are one class, so that fairness values mean nothing."""
    if np.shape(logits)[1:] != (num_classes,):
        raise ValueError(f"logits must be (N, {num_classes}), not {np.shape(logits)}.")
    data = dict(labels=labels, groups=groups, logits=logits, num_groups=num_groups)
    out = headline(**data)  # first, as it checks the arguments
    weights = bootstrap_weights(n=len(labels), replicates=replicates, seed=seed, clusters=clusters)
    draws = bootstrap(**data, weights=weights) if replicates else {}
    counts = out.pop("counts")
    samples, recalls = counts.sum(-1), recall_per_group(counts=counts)  # (G, C) both
    within = {name[6:]: out.pop(name) for name in list(out) if name.startswith("group_")}
    out["interval"] = {k: interval(draws=draws[k], point=out[k]) for k in out if draws}
    out["n"] = len(labels)
    out["groups"] = [{k: v[g] for k, v in within.items()} | {
        "n": int(samples[g].sum()), "recall": _mean(recalls[g]),
        "interval": {k: interval(draws=draws["group_" + k][:, g], point=within[k][g])
                     for k in within if draws},
    } for g in range(num_groups)]
    of_class = {"recall": _ratio(*_margins(counts.sum(0))[:2]), "recall_per_group": recalls.T,
                "disparity": disparity(counts=counts)[0], "deo": deo(counts=counts)[0]}
    out["classes"] = [{k: v[c] for k, v in of_class.items()} for c in range(num_classes)]
    out |= {"counts": counts.astype(int), "collapsed": int((counts.sum((0, 1)) > 0).sum()) == 1}
    out["undefined"] = ["there is one group only: nothing to compare"] * (num_groups == 1) + [
        f"group {g} has no sample of class {c}" for g, c in np.argwhere(samples == 0)]
    return json.loads(json.dumps(out, default=np.ndarray.tolist), parse_constant=lambda _: None)
