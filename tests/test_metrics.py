"""metrics.py against scikit-learn, fairlearn, scipy, and numbers from the authors' own code.

tests/parity/medical.npz holds what FairVision, MEDFAIR, FairTune and fairlearn return on fixed
inputs, fair_kd.npz what MFD, cgl_fairness and the W210 capstone return. Left out as other metrics:
MEDFAIR's thresholds tuned on the scored split, its BCE (a logit loss fed with probabilities) and
its calibration error; FairVision's "half" PSD; fairlearn's ratios; pairwise AUROC; batch means.
"""

import json
import pathlib
import warnings

import fairlearn.metrics as fair
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics as sk
from conftest import cells_of
from sklearn.calibration import calibration_curve

import metrics
import results

HERE = pathlib.Path(__file__).resolve().parent

MEDICAL = dict(np.load(HERE / "parity" / "medical.npz"))
FAIR_KD = dict(np.load(HERE / "parity" / "fair_kd.npz"))


@pytest.fixture(autouse=True)
def no_warnings():
    """An empty cell is data, not an accident: nothing in this file may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sample(seed=0, n=240, num_classes=4, num_groups=3):
    """labels, predictions, groups, probs; scores rounded to 0.05 so that there are many ties."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, num_classes, n), rng.integers(0, num_groups, n)
    logits = rng.normal(size=(n, num_classes)) + (1 + groups[:, None]) * np.eye(num_classes)[labels]
    probs = np.round(scipy.special.softmax(logits, axis=1) * 20) / 20
    return labels, logits.argmax(1), groups, probs, logits


def counts_of(labels, predictions, groups, **more):
    return metrics.confusion(
        labels=labels,
        predictions=predictions,
        groups=groups,
        **{
            "num_classes": int(max(labels.max(), predictions.max())) + 1,
            "num_groups": int(groups.max()) + 1,
            **more,
        },
    )


# ------------------------------------------------------------------ counts, against scikit-learn
@pytest.mark.parametrize("seed", range(5))
def test_confusion_and_scores_match_scikit_learn(seed):
    labels, predictions, groups, _, _ = sample(seed)
    weights = np.random.default_rng(seed).random(len(labels))
    for w in (None, weights):
        counts = counts_of(labels, predictions, groups, weights=w)
        for g in range(3):
            inside = groups == g
            expected = sk.confusion_matrix(
                labels[inside], predictions[inside], sample_weight=None if w is None else w[inside]
            )
            np.testing.assert_allclose(counts[g], expected)
            np.testing.assert_allclose(
                metrics.group_accuracy(counts=counts)[g],
                sk.accuracy_score(
                    labels[inside],
                    predictions[inside],
                    sample_weight=None if w is None else w[inside],
                ),
            )
        assert metrics.accuracy(counts=counts) == pytest.approx(
            sk.accuracy_score(labels, predictions, sample_weight=w)
        )
        for ours, theirs in (
            (metrics.recall, sk.recall_score),
            (metrics.precision, sk.precision_score),
            (metrics.f1, sk.f1_score),
        ):
            for average in ("macro", "weighted"):
                assert ours(counts=counts, average=average) == pytest.approx(
                    theirs(labels, predictions, average=average, sample_weight=w)
                )
        assert metrics.recall(counts=counts, average="weighted") == pytest.approx(
            metrics.accuracy(counts=counts)
        )


def test_absent_classes():
    labels = np.array([0, 0, 0, 1, 1, 3])  # class 2 is predicted but absent; 4 is neither
    predictions = np.array([0, 0, 2, 0, 0, 3])  # class 1 is present but never predicted
    counts = counts_of(labels, predictions, np.zeros(6, int), num_classes=5)
    for average in ("macro", "weighted"):
        for ours, theirs in ((metrics.precision, sk.precision_score), (metrics.f1, sk.f1_score)):
            assert ours(counts=counts, average=average) == pytest.approx(
                theirs(labels, predictions, average=average, zero_division=0)
            )
    # recall: macro means over classes that have samples, which is balanced accuracy
    assert metrics.recall(counts=counts) == pytest.approx(np.mean([2 / 3, 0, 1]))
    np.testing.assert_allclose(
        metrics.recall_per_group(counts=counts), [[2 / 3, 0, np.nan, 1, np.nan]]
    )
    with pytest.raises(KeyError):
        metrics.recall(counts=counts, average="micro")


def test_truth_and_prediction_are_not_swapped():
    """A predictor biased by construction: all errors say class 1 and hit group 1."""
    labels = np.repeat([0, 1, 0, 1], 10)
    groups = np.repeat([0, 0, 1, 1], 10)
    predictions = labels.copy()
    predictions[20:24] = 1  # 4 of the 10 samples of class 0 in group 1
    counts = counts_of(labels, predictions, groups)
    assert counts[1].tolist() == [[6, 4], [0, 10]]
    np.testing.assert_allclose(metrics.recall_per_group(counts=counts), [[1, 1], [0.6, 1]])
    assert metrics.recall(counts=counts) == pytest.approx((0.8 + 1) / 2)
    assert metrics.precision(counts=counts) == pytest.approx((1 + 20 / 24) / 2)
    signed, mean_abs = metrics.disparity(counts=counts)
    np.testing.assert_allclose(signed, [-0.4, 0])  # group 1 minus group 0
    assert mean_abs == pytest.approx(0.2)
    per_class, mean, largest = metrics.deo(counts=counts)
    np.testing.assert_allclose(per_class, [0.4, 0])
    assert (mean, largest) == (pytest.approx(0.2), pytest.approx(0.4))
    assert metrics.equalized_odds_difference(counts=counts) == pytest.approx(0.4)
    assert metrics.demographic_parity_difference(counts=counts) == pytest.approx(0.2)


# ------------------------------------------------------------------ fairness, against fairlearn
@pytest.mark.parametrize("num_groups", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_parity_and_odds_match_fairlearn(seed, num_groups):
    labels, predictions, groups, _, _ = sample(seed, num_classes=2, num_groups=num_groups)
    counts = counts_of(labels, predictions, groups)
    assert metrics.demographic_parity_difference(counts=counts) == pytest.approx(
        fair.demographic_parity_difference(labels, predictions, sensitive_features=groups)
    )
    odds = fair.equalized_odds_difference(labels, predictions, sensitive_features=groups)
    assert metrics.equalized_odds_difference(counts=counts) == pytest.approx(odds)
    # with two classes the two recalls are TPR and TNR, so max-DEO is the same number
    assert metrics.deo(counts=counts)[2] == pytest.approx(odds)
    labels, predictions, groups, _, _ = sample(seed, num_classes=4, num_groups=num_groups)
    counts = counts_of(labels, predictions, groups)
    for ours, theirs in (
        (metrics.demographic_parity_difference, fair.demographic_parity_difference),
        (metrics.equalized_odds_difference, fair.equalized_odds_difference),
    ):
        assert ours(counts=counts) == pytest.approx(
            np.mean(
                [theirs(labels == c, predictions == c, sensitive_features=groups) for c in range(4)]
            )
        )


def test_gap_and_worst_group():
    values = np.array([[0.9, 0.7, 0.8], [np.nan, 0.7, 0.8], [np.nan, 0.7, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(metrics.worst_group(values=values), [0.7, 0.7, 0.7, np.nan])
    np.testing.assert_allclose(metrics.gap(values=values), [0.2, 0.1, np.nan, np.nan])
    np.testing.assert_allclose(
        metrics.es_auc(overall=np.full(4, 0.8), per_group=values),
        [0.8 / 1.2, 0.8 / 1.1, np.nan, np.nan],
    )
    mean_form, max_form = metrics.psd(overall=np.full(4, 0.8), per_group=values)
    np.testing.assert_allclose(
        mean_form, [np.std([0.9, 0.7, 0.8]) / 0.8, 0.05 / 0.8, np.nan, np.nan]
    )
    np.testing.assert_allclose(max_form, [0.2 / 0.8, 0.1 / 0.8, np.nan, np.nan])
    assert metrics.es_auc(overall=0.8, per_group=np.full(3, 0.8)) == pytest.approx(
        0.8
    )  # fair: no cost


def test_disparity_of_three_groups_is_deo():
    labels, predictions, groups, _, _ = sample(7)
    counts = counts_of(labels, predictions, groups)
    np.testing.assert_array_equal(
        metrics.disparity(counts=counts)[0], metrics.deo(counts=counts)[0]
    )


def test_disparities_of_either_sign_add_up():
    """What one class loses in a group another one does not make good."""
    counts = np.array([[[8, 2], [4, 6]], [[6, 4], [2, 8]]])
    signed, mean_abs = metrics.disparity(counts=counts)
    np.testing.assert_allclose(signed, [-0.2, 0.2])
    assert mean_abs == pytest.approx(0.2)


def test_odds_leave_out_a_class_that_one_group_lacks():
    """Its false positive rates alone have a gap, 0, which would look fair."""
    first, second = [[8, 1, 1], [2, 8, 0], [0, 0, 10]], [[9, 0, 1], [4, 6, 0], [0, 0, 0]]
    odds = metrics.equalized_odds_difference(counts=np.array([first, second]))
    assert odds == pytest.approx((0.3 + 0.2) / 2)  # of false positives, of true ones


# ------------------------------------------------------------------ AUROC
@pytest.mark.parametrize("seed", range(5))
def test_auroc_matches_scikit_learn_with_ties_and_weights(seed):
    rng = np.random.default_rng(seed)
    labels, _, groups, probs, _ = sample(seed, num_classes=2)
    weights = rng.integers(0, 4, len(labels)).astype(float) + rng.random(len(labels))
    for w in (None, weights):
        expected = sk.roc_auc_score(labels, probs[:, 1], sample_weight=w)
        assert metrics.auroc(labels=labels, probs=probs, weights=w) == pytest.approx(expected)
        assert metrics.auroc(labels=labels, probs=probs[:, 1], weights=w) == pytest.approx(expected)
        one_sided = np.stack([0 * probs[:, 1], probs[:, 1]], axis=1)  # of class 1 alone
        assert metrics.auroc(labels=labels, probs=one_sided, weights=w) == pytest.approx(expected)
    labels, _, groups, probs, _ = sample(seed)
    one_hot = np.eye(4)[labels]
    for w in (None, weights):
        ours = metrics.auroc_per_group(
            labels=labels, probs=probs, groups=groups, num_groups=3, weights=w
        )
        for g in range(3):
            inside = groups == g
            assert ours[g] == pytest.approx(
                sk.roc_auc_score(
                    one_hot[inside],
                    probs[inside],
                    average="macro",
                    sample_weight=None if w is None else w[inside],
                )
            )
        assert metrics.auroc(labels=labels, probs=probs, weights=w) == pytest.approx(
            sk.roc_auc_score(one_hot, probs, average="macro", sample_weight=w)
        )


@pytest.mark.parametrize("seed", range(3))
def test_auroc_of_folds_compares_inside_them(seed):
    """Pairs inside a fold count alike; a fold's scale and shift, and its order, change nothing."""
    labels, _, groups, probs, _ = sample(seed, num_classes=2)
    rng, score = np.random.default_rng(seed), probs[:, 1]
    folds, weights = rng.integers(0, 3, len(labels)), rng.integers(0, 4, len(labels)).astype(float)
    given = {"labels": labels, "strata": folds}
    for inside in (slice(None), *(groups == g for g in range(3))):
        won = pairs = 0.0
        for fold in range(3):
            rows = np.flatnonzero(folds[inside] == fold)
            y, s, w = (values[inside][rows] for values in (labels, score, weights))
            count = w[y == 1].sum() * w[y == 0].sum()
            if count:  # a fold without one of the classes says nothing
                won += count * sk.roc_auc_score(y, s, sample_weight=w)
                pairs += count
        own = {"labels": labels[inside], "strata": folds[inside], "weights": weights[inside]}
        expected = won / pairs if pairs else np.nan
        assert metrics.auroc(probs=score[inside], **own) == pytest.approx(expected, nan_ok=True)
    shifted = (score + 5 * folds) / (1 + folds) / 20  # as by another network in each fold
    for metric, more in (
        (metrics.auroc, {}),
        (metrics.auroc_per_group, {"groups": groups, "num_groups": 3}),
    ):
        inside = metric(probs=score, **given, **more)
        np.testing.assert_allclose(metric(probs=shifted, **given, **more), inside)
    mixed = metrics.auroc(labels=labels, probs=shifted)
    assert abs(mixed - metrics.auroc(probs=shifted, **given)) > 1e-3
    told = {"labels": labels, "groups": groups, "num_groups": 3, "logits": 30 * (probs - 0.5)}
    drawn = metrics.headline(**told, strata=folds, weights=np.stack([weights, 1 + 0 * weights]))
    assert drawn["auroc"][1] == pytest.approx(metrics.auroc(probs=score, **given))
    areas = metrics.auroc_per_group(probs=score, groups=groups, num_groups=3, **given)
    np.testing.assert_allclose(drawn["group_auroc"][1], areas)
    out = metrics.evaluate(**told, num_classes=2, strata=folds, replicates=0)
    assert out["auroc"] == pytest.approx(drawn["auroc"][1])


def test_undefined_auroc_is_nan_and_a_constant_score_is_half():
    labels, groups = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.9, 0.4, 0.5, 0.6])
    areas = metrics.auroc_per_group(labels=labels, probs=scores, groups=groups, num_groups=3)
    np.testing.assert_array_equal(areas, [1, np.nan, np.nan])  # 1: positives only, 2: nobody
    assert np.isnan(metrics.gap(values=areas)) and np.isnan(
        metrics.auroc(labels=labels * 0, probs=scores)
    )
    assert metrics.auroc(labels=labels, probs=np.full(6, 0.3)) == 0.5
    probs = sample(3)[3]
    labels = np.minimum(sample(3)[0], 2)  # class 3 has no sample: the mean is over the other three
    assert metrics.auroc(labels=labels, probs=probs) == pytest.approx(
        np.mean([sk.roc_auc_score(labels == c, probs[:, c]) for c in range(3)])
    )


def test_calibration_error():
    labels, _, _, _, logits = sample(1)
    probs = scipy.special.softmax(2 * logits, axis=1)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    accuracy_of_bin, confidence_of_bin = calibration_curve(correct, confidence, n_bins=10)
    sizes = np.histogram(confidence, bins=10, range=(0, 1))[0]
    expected = sizes[sizes > 0] @ np.abs(accuracy_of_bin - confidence_of_bin) / len(labels)
    assert metrics.calibration_error(labels=labels, probs=probs) == pytest.approx(expected)
    assert (
        metrics.calibration_error(labels=np.array([1, 0]), probs=np.array([1.0, 0.0])) == 0
    )  # 1 is in bin 10
    assert metrics.calibration_error(labels=np.array([0, 0]), probs=np.array([0.75, 0.75])) == 0.75


def test_a_confidence_on_the_edge_belongs_to_the_bin_below():
    probs = np.array([[0.5, 0.5], [0.55, 0.45]])  # wrong, and right: in one bin they would cancel
    error = metrics.calibration_error(labels=np.array([1, 0]), probs=probs)
    assert error == pytest.approx((0.5 + 0.45) / 2)


# ------------------------------------------------------------------ numbers of the authors' code
@pytest.mark.parametrize("attribute", ["attr2", "attrG"])
def test_parity_binary(attribute):
    """FairVision, MEDFAIR and fairlearn on 400 samples, two or four groups."""
    labels, probs = MEDICAL["metrics/in/label"], MEDICAL["metrics/in/prob"]
    groups = MEDICAL[f"metrics/in/{attribute}"]
    num_groups = {"attr2": 2, "attrG": 4}[attribute]
    overall = metrics.auroc(labels=labels, probs=probs)
    areas = metrics.auroc_per_group(
        labels=labels, probs=probs, groups=groups, num_groups=num_groups
    )
    mean_form, max_form = metrics.psd(overall=overall, per_group=areas)
    counts = counts_of(labels, (probs >= 0.5).astype(int), groups)
    within = metrics.group_accuracy(counts=counts)
    vision = {
        key.split("/")[-1]: value
        for key, value in MEDICAL.items()
        if key.startswith(f"metrics/fairvision/{attribute}/")
    }
    for key, ours in {
        "overall_auc": overall,
        "group_auc": areas,
        "worst_auc": metrics.worst_group(values=areas),
        "auc_gap": metrics.gap(values=areas),
        "es_auc": metrics.es_auc(overall=overall, per_group=areas),
        "psd_mean_std": mean_form,
        "psd_max": max_form,
        "es_acc": metrics.es_auc(overall=metrics.accuracy(counts=counts), per_group=within),
    }.items():
        np.testing.assert_allclose(ours, vision[key], rtol=1e-6, err_msg=key)
    learn = f"metrics/fairlearn/{attribute}"
    assert metrics.demographic_parity_difference(counts=counts) == pytest.approx(
        MEDICAL[f"{learn}/dpd_at_0.5"]
    )
    assert metrics.equalized_odds_difference(counts=counts) == pytest.approx(
        MEDICAL[f"{learn}/eod_at_0.5"]
    )
    medfair = {"attr2": "metrics/medfair2", "attrG": "metrics/medfairG"}[attribute]
    assert overall == pytest.approx(MEDICAL[f"{medfair}/Overall_AUC"])
    assert metrics.worst_group(values=areas) == pytest.approx(MEDICAL[f"{medfair}/worst_auc"])
    for g in range(num_groups):
        assert areas[g] == pytest.approx(MEDICAL[f"{medfair}/auc-group_{g}"])


def test_parity_medfair_at_its_threshold():
    """MEDFAIR's EqOdd = 1 - mean(|FPR gap|, |TPR gap|) and DP = 1 - gap: higher is better there."""
    labels, probs = MEDICAL["metrics/in/label"], MEDICAL["metrics/in/prob"]
    for suffix, predictions in (
        ("", MEDICAL["metrics/medfair2/pred_at_f1"]),
        ("_0.5", (probs > 0.5).astype(int)),
    ):
        counts = counts_of(labels, predictions, MEDICAL["metrics/in/attr2"])
        gaps = metrics.deo(counts=counts)[0]  # of the two recalls: TNR, so also FPR, and TPR
        assert 1 - gaps.mean() == pytest.approx(
            MEDICAL[f"metrics/medfair2/EqOdd{suffix}"], abs=1e-4
        )
        if suffix:
            continue
        assert metrics.accuracy(counts=counts) == pytest.approx(
            MEDICAL["metrics/medfair2/Overall_Acc"]
        )
        for g in range(2):
            assert metrics.group_accuracy(counts=counts)[g] == pytest.approx(
                MEDICAL[f"metrics/medfair2/acc-group_{g}"]
            )
        recalls = metrics.recall_per_group(counts=counts)
        np.testing.assert_allclose(
            1 - recalls[:, 0], MEDICAL["metrics/medfair2/FPR_groups_at_f1_rounded4"], atol=5e-5
        )
        np.testing.assert_allclose(
            1 - recalls[:, 1], MEDICAL["metrics/medfair2/FNR_groups_at_f1_rounded4"], atol=5e-5
        )
        # their EqOpp1 is about class 0 and EqOpp0 about class 1: the names are swapped
        assert 1 - gaps[0] == pytest.approx(MEDICAL["metrics/medfair2/EqOpp1"], abs=2e-4)
        assert 1 - gaps[1] == pytest.approx(MEDICAL["metrics/medfair2/EqOpp0"], abs=2e-4)
        assert 1 - metrics.demographic_parity_difference(counts=counts) == pytest.approx(
            MEDICAL["metrics/medfair2/DP"], abs=2e-4
        )


def test_parity_four_group_accuracy():
    counts = counts_of(
        MEDICAL["metrics/in/label"],
        MEDICAL["metrics/medfair2/pred_at_f1"],
        MEDICAL["metrics/in/attrG"],
    )
    np.testing.assert_allclose(
        metrics.group_accuracy(counts=counts),
        [MEDICAL[f"metrics/medfairG/acc-group_{g}"] for g in range(4)],
    )


def test_parity_fairtune():
    """FairTune's AUCs of the whole set; what it reports are means over batches."""
    labels, groups = MEDICAL["metrics/in/label"], MEDICAL["metrics/in/attr2"]
    logits = MEDICAL["fairtune/in/logits"]
    probs = scipy.special.softmax(logits, axis=1)
    ours = [
        metrics.auroc(labels=labels, probs=probs),
        *metrics.auroc_per_group(labels=labels, probs=probs, groups=groups, num_groups=2),
    ]
    np.testing.assert_allclose(ours, MEDICAL["fairtune/out/dataset_auc_overall_M_F"], rtol=1e-6)


def test_parity_multi_class():
    labels, probs = MEDICAL["metrics_mc/in/label"], MEDICAL["metrics_mc/in/prob"]
    groups = MEDICAL["metrics/in/attrG"]
    overall = metrics.auroc(labels=labels, probs=probs)
    assert overall == pytest.approx(MEDICAL["metrics_mc/out/auc_macro_ovr"])
    areas = metrics.auroc_per_group(labels=labels, probs=probs, groups=groups, num_groups=4)
    assert metrics.es_auc(overall=overall, per_group=areas) == pytest.approx(
        MEDICAL["metrics_mc/out/es_auc_attrG"]
    )
    counts = counts_of(labels, probs.argmax(1), groups)
    assert metrics.es_auc(
        overall=metrics.accuracy(counts=counts), per_group=metrics.group_accuracy(counts=counts)
    ) == (pytest.approx(MEDICAL["metrics_mc/out/es_acc_attrG"]))
    # FairVision hands fairlearn (prediction, truth): swap them back to get its numbers
    swapped = counts_of(probs.argmax(1), labels, groups)
    assert metrics.equalized_odds_difference(counts=swapped) == pytest.approx(
        MEDICAL["metrics_mc/out/eod_official_argument_order_attrG"]
    )
    assert metrics.demographic_parity_difference(counts=swapped) == pytest.approx(
        MEDICAL["metrics_mc/out/dpd_mean_over_classes_attrG"]
    )


def test_parity_deo():
    labels, groups, logits = (FAIR_KD[f"deo/{key}"] for key in ("labels", "groups", "logits"))
    counts = counts_of(labels, logits.argmax(1), groups)
    _, mean, largest = metrics.deo(counts=counts)
    assert largest == pytest.approx(FAIR_KD["deo/mfd_max_deo"])
    assert largest == pytest.approx(FAIR_KD["deo/cgl_max_deo"])
    assert mean == pytest.approx(FAIR_KD["deo/cgl_mean_deo"])
    np.testing.assert_allclose(
        metrics.recall_per_group(counts=counts), FAIR_KD["deo/cgl_subgroup_acc_gxc"], rtol=1e-6
    )
    assert metrics.f1(counts=counts) == pytest.approx(FAIR_KD["deo/f1_macro"])
    assert metrics.f1(counts=counts, average="weighted") == pytest.approx(
        FAIR_KD["deo/f1_weighted"]
    )
    assert metrics.accuracy(counts=counts) == pytest.approx(FAIR_KD["deo/f1_micro"])
    assert metrics.accuracy(counts=counts) == pytest.approx(FAIR_KD["deo/mfd_acc"])
    out = metrics.evaluate(
        labels=labels, groups=groups, logits=logits, num_classes=3, num_groups=2, replicates=0
    )
    assert out["auroc"] == pytest.approx(FAIR_KD["deo/auroc_ovr_macro"])
    assert out["max_deo"] == pytest.approx(FAIR_KD["deo/mfd_max_deo"])
    assert out["loss"] == pytest.approx(FAIR_KD["deo/mfd_eval_loss"], rel=1e-6)
    # an empty (group, class) cell: NaN for everything in their code, that class left out in ours
    keep = FAIR_KD["deo_emptycell/mask_keep"]
    counts = counts_of(labels[keep], logits.argmax(1)[keep], groups[keep])
    per_class, mean, largest = metrics.deo(counts=counts)
    empty = np.isnan(metrics.recall_per_group(counts=counts)).any(0)
    assert empty.sum() == 1 and (np.isnan(per_class) == empty).all()
    assert np.isnan(per_class.mean()) and np.isnan(FAIR_KD["deo_emptycell/mean_deo"])
    assert np.isnan(per_class.max()) and np.isnan(FAIR_KD["deo_emptycell/max_deo"])
    np.testing.assert_allclose([mean, largest], [per_class[~empty].mean(), per_class[~empty].max()])


def test_parity_disparity():
    """The capstone's numbers from our pieces: undefined recall is 0 there, male is group 1."""
    labels, predictions = FAIR_KD["disparity/labels"], FAIR_KD["disparity/preds"]
    male = (FAIR_KD["disparity/male_fraction"] >= 0.5).astype(int)  # a tie is male
    counts = counts_of(labels, predictions, male, num_classes=5)
    np.testing.assert_array_equal(counts[1], FAIR_KD["disparity/conf_male"])
    np.testing.assert_array_equal(counts[0], FAIR_KD["disparity/conf_female"])

    def capstone(counts):
        recalls = np.nan_to_num(metrics.recall_per_group(counts=counts))
        return recalls[1] - recalls[0]

    theirs = capstone(counts)
    np.testing.assert_allclose(theirs, FAIR_KD["disparity/per_class"])
    assert np.abs(theirs[theirs != 0]).mean() == pytest.approx(
        FAIR_KD["disparity/mean_abs_nonzero"]
    )
    assert np.abs(theirs).mean() == pytest.approx(FAIR_KD["disparity/mean_abs_all"])
    # ours agrees wherever both genders have samples; class 4 has no male sample
    signed, mean_abs = metrics.disparity(counts=counts)
    np.testing.assert_allclose(signed, [*FAIR_KD["disparity/per_class"][:4], np.nan])
    assert mean_abs == pytest.approx(np.abs(FAIR_KD["disparity/per_class"][:4]).mean())
    size = int(FAIR_KD["disparity/batch_size"])
    batches = [
        capstone(
            counts_of(
                labels[i : i + size], predictions[i : i + size], male[i : i + size], num_classes=5
            )
        ).mean()
        for i in range(0, len(labels), size)
    ]
    np.testing.assert_allclose(batches, FAIR_KD["disparity/batch_bias_target"])
    # a collapsed predictor: the capstone's mean is over no class at all; ours is 0, beside a flag
    collapsed = counts_of(labels, np.zeros_like(labels), male, num_classes=5)
    np.testing.assert_array_equal(capstone(collapsed), FAIR_KD["disparity_collapse/per_class"])
    assert np.isnan(FAIR_KD["disparity_collapse/mean_abs_nonzero"])
    assert metrics.disparity(counts=collapsed)[1] == 0


# ------------------------------------------------------------------ resampling
def test_replicates_equal_a_loop_over_single_resamples():
    """And equal the metrics of the resampled data set itself, samples repeated."""
    labels, _, groups, _, logits = sample(2, n=60)
    weights = metrics.bootstrap_weights(n=60, replicates=12, seed=1)
    data = dict(labels=labels, groups=groups, logits=logits, num_groups=3)
    together = metrics.bootstrap(**data, weights=weights)
    for r, row in enumerate(weights):
        alone = metrics.headline(**data, weights=row)
        index = np.repeat(np.arange(60), row.astype(int))
        real = metrics.headline(
            labels=labels[index], groups=groups[index], logits=logits[index], num_groups=3
        )
        for name, value in together.items():
            np.testing.assert_allclose(value[r], alone[name], rtol=1e-12, err_msg=name)
            np.testing.assert_allclose(value[r], real[name], rtol=1e-9, err_msg=name)


def test_bootstrap_weights():
    weights = metrics.bootstrap_weights(n=50, replicates=400, seed=3)
    assert weights.shape == (400, 50) and (weights.sum(1) == 50).all()
    assert weights.var() == pytest.approx(1 - 1 / 50, abs=0.05)  # multinomial
    np.testing.assert_array_equal(
        weights[:9], metrics.bootstrap_weights(n=50, replicates=9, seed=3)
    )
    assert (weights != metrics.bootstrap_weights(n=50, replicates=400, seed=4)).any()
    clusters = np.random.default_rng(0).choice(["a", "b", "c", "d", "e"], 50)
    whole = metrics.bootstrap_weights(n=50, replicates=30, seed=3, clusters=clusters)
    for name in np.unique(clusters):  # the pictures of one lesion come and go together
        assert (whole[:, clusters == name] == whole[:, clusters == name][:, :1]).all()
    first = [np.flatnonzero(clusters == name)[0] for name in np.unique(clusters)]
    assert (whole[:, first].sum(1) == 5).all()
    with pytest.raises(ValueError, match="clusters"):
        metrics.bootstrap_weights(n=50, clusters=clusters[:-1])
    with pytest.raises(ValueError, match="clusters"):
        metrics.bootstrap_weights(n=0)


def test_interval():
    draws = np.r_[np.random.default_rng(0).normal(size=900), np.full(100, np.nan)]
    assert metrics.interval(draws=draws) == pytest.approx(
        tuple(np.nanpercentile(draws, [2.5, 97.5]))
    )
    assert np.isnan(metrics.interval(draws=np.r_[draws[:5], np.full(5, np.nan)])).all()
    assert metrics.interval(draws=draws, level=0.5)[0] == pytest.approx(np.nanpercentile(draws, 25))
    low, high = metrics.interval(draws=draws)
    for point, widened in ((9.0, (low, 9.0)), (-9.0, (-9.0, high)), (0.0, (low, high))):
        assert metrics.interval(draws=draws, point=point) == widened  # it holds the measurement


def test_coverage():
    """About 95 % of intervals hold the truth, also of clusters, which plain resampling misses."""
    rng, hits, plain_hits = np.random.default_rng(0), 0, 0
    for trial in range(150):
        right = np.repeat(rng.random(60) < 0.7, 3)  # three pictures of each lesion, all alike
        for clusters in (np.repeat(np.arange(60), 3), None):
            weights = metrics.bootstrap_weights(
                n=180, replicates=200, seed=trial, clusters=clusters
            )
            low, high = metrics.interval(draws=weights @ right / weights.sum(1))
            hits += (low <= 0.7 <= high) * (clusters is not None)
            plain_hits += (low <= 0.7 <= high) * (clusters is None)
    assert 0.88 <= hits / 150 <= 0.99
    assert plain_hits / 150 < 0.85


def test_paired_difference_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    right_a = rng.random(400) < 0.8
    right_b = np.where(rng.random(400) < 0.05, ~right_a, right_a)  # 95 % the same answers
    weights = metrics.bootstrap_weights(n=400, replicates=500)
    draws_a, draws_b = (weights @ right / 400 for right in (right_a, right_b))
    out = metrics.paired_difference(
        point_a=right_a.mean(), point_b=right_b.mean(), draws_a=draws_a, draws_b=draws_b
    )
    assert out["difference"] == pytest.approx(right_a.mean() - right_b.mean())
    assert out["low"] <= out["difference"] <= out["high"]
    low, high = metrics.interval(draws=draws_a - draws_b[::-1])
    assert out["high"] - out["low"] < 0.6 * (high - low)


@pytest.mark.parametrize("size", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_seed_interval_is_students_t(size, level):
    values = np.random.default_rng(size).normal(size=size)
    low, high = scipy.stats.t.interval(level, size - 1, values.mean(), scipy.stats.sem(values))
    assert metrics.seed_interval(values=values, level=level) == pytest.approx(
        (values.mean(), low, high), rel=1e-5
    )


def test_seed_interval_of_a_printed_table():
    """Values 0 and 2: mean 1, s = √2, and t of one degree of freedom is 12.706 in every table."""
    assert metrics.seed_interval(values=[0, 2]) == pytest.approx((1, -11.706, 13.706), abs=1e-3)


def test_seed_interval_of_one_seed():
    mean, low, high = metrics.seed_interval(values=[0.5])
    assert mean == 0.5 and np.isnan(low) and np.isnan(high)


# ------------------------------------------------------------------ evaluate and table
def evaluate_sample(seed=0, replicates=50, **more):
    labels, _, groups, _, logits = sample(seed, num_groups=2)
    return metrics.evaluate(
        **{
            "labels": labels,
            "groups": groups,
            "logits": logits.astype(np.float32),
            "num_classes": 4,
            "num_groups": 2,
            "replicates": replicates,
            **more,
        }
    )


def test_evaluate_is_json_and_agrees_with_the_functions():
    out = evaluate_sample()
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["undefined"] == [] and out["collapsed"] is False and out["n"] == 240
    labels, _, groups, _, logits = sample(0, num_groups=2)
    counts = counts_of(labels, logits.argmax(1), groups)
    assert out["counts"] == counts.astype(int).tolist()
    assert out["accuracy"] == pytest.approx(metrics.accuracy(counts=counts))
    assert out["loss"] == pytest.approx(
        sk.log_loss(labels, scipy.special.softmax(logits, 1)), rel=1e-5
    )
    assert out["loss_worst_group"] == max(group["loss"] for group in out["groups"])
    assert out["auroc_worst_group"] == min(group["auroc"] for group in out["groups"])
    assert out["accuracy_gap"] == pytest.approx(
        abs(out["groups"][0]["accuracy"] - out["groups"][1]["accuracy"])
    )
    assert sum(group["n"] for group in out["groups"]) == 240
    assert out["max_deo"] == max(c["deo"] for c in out["classes"])
    assert out["disparity"] == pytest.approx(np.mean([abs(c["disparity"]) for c in out["classes"]]))
    for c, one in enumerate(out["classes"]):
        assert one["recall_per_group"][1] - one["recall_per_group"][0] == pytest.approx(
            one["disparity"]
        )
        assert one["recall"] == pytest.approx(sk.recall_score(labels == c, logits.argmax(1) == c))
    for name in ("accuracy", "recall", "precision", "f1", "auroc"):
        low, high = out["interval"][name]
        assert low < out[name] < high
    for name in (
        "auroc_worst_group",
        "auroc_gap",
        "es_auc",
        "psd_mean",
        "psd_max",
        "mean_deo",
        "max_deo",
        "disparity",
        "equalized_odds_difference",
        "demographic_parity_difference",
    ):
        assert out["interval"][name][0] < out["interval"][name][1]
    for group in out["groups"]:
        for name in ("accuracy", "auroc"):
            assert group["interval"][name][0] < group[name] < group["interval"][name][1]
    assert evaluate_sample() == out  # the same seed, the same intervals
    quick = evaluate_sample(replicates=0)
    assert quick["interval"] == {} and quick["groups"][0]["interval"] == {}
    assert quick["f1"] == out["f1"]


def test_intervals_of_what_is_measured_are_over_subjects():
    """Three equal pictures of a subject say no more than one; one subject alone says nothing."""
    labels, _, groups, _, logits = sample(0, num_groups=2)
    once = evaluate_sample(logits=logits)
    thrice = {"labels": labels, "groups": groups, "logits": logits}
    thrice = {name: np.repeat(values, 3, axis=0) for name, values in thrice.items()}
    out = evaluate_sample(**thrice, clusters=np.repeat(np.arange(240), 3))
    assert (once["subjects"], out["subjects"], out["n"]) == (240, 240, 720)
    for name, ends in once["interval"].items():
        assert out["interval"][name] == pytest.approx(ends, abs=1e-9), name
    lone = evaluate_sample(clusters=np.zeros(240, int))
    assert lone["subjects"] == 1 and lone["interval"] == {}


def test_every_interval_holds_its_measurement():
    """Also where two resamples both lie beside it."""
    out = evaluate_sample(replicates=2)
    for part in (out, *out["groups"]):
        assert part["interval"]
        for name, (low, high) in part["interval"].items():
            assert low <= part[name] <= high, name


def test_evaluate_does_not_depend_on_the_scale_of_logits_overflowing():
    labels, _, groups, _, logits = sample(0, num_groups=2)
    out = evaluate_sample(replicates=0, logits=logits * 1e4)
    assert np.isfinite(out["loss"]) and out["accuracy"] == evaluate_sample(replicates=0)["accuracy"]


def test_constant_predictor_is_flagged_and_empty_cells_are_none():
    labels, _, groups, _, logits = sample(0, num_groups=2)
    labels = np.where(groups == 1, 2, labels)  # group 1 has class 2 only
    out = evaluate_sample(labels=labels, logits=np.zeros_like(logits) + [2.0, 0, 0, 0])
    assert out["collapsed"] is True
    assert out["auroc"] == 0.5  # every score ties
    assert out["groups"][1]["auroc"] is None and out["auroc_gap"] is None
    assert out["interval"]["auroc_gap"] == [None, None]
    assert out["disparity"] == 0 and out["classes"][0]["disparity"] is None
    assert out["precision"] < 0.2  # giving three classes up is not rewarded
    assert out["undefined"] == [f"group 1 has no sample of class {c}" for c in (0, 1, 3)]
    text = metrics.show({"student": out}, "abcd", ["female", "male"])
    assert "undefined" in text and "student collapsed: " in text
    lonely = evaluate_sample(groups=groups * 0, num_groups=1, replicates=0)
    assert lonely["accuracy_gap"] is None and "one group" in lonely["undefined"][0]
    json.dumps([out, lonely], allow_nan=False)


def test_table():
    out = evaluate_sample()
    text = metrics.show(
        {"teacher": out, "student": evaluate_sample(1)},
        ["akiec", "bcc", "mel", "nv"],
        ["female", "male"],
    )
    lines, cells = text.splitlines(), cells_of(text)
    assert lines[0].split() == ["percent", "[95", "%]", "teacher", "student"]
    low, high = out["interval"]["accuracy"]
    value = f"{100 * out['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert cells["utility", "top-1", ""][0] == value
    for name in (
        ("fairness of AUROC", "worst group", ""),
        ("fairness of decisions", "max-DEO", ""),
        ("AUROC by group", "male", ""),
        ("top-1 by group", "female", ""),
        ("disparity by class, male minus female", "bcc", ""),
    ):
        assert len(cells[name]) == 2
    for word, arrow in (("top-1", "↑"), ("worst group", "↑"), ("gap", "↓"), ("mean-DEO", "↓")):
        assert f"\n {word} {arrow}" in text


def test_words_and_arrows_are_those_of_all_pages():
    """results.METRICS has the columns of pages: {word: (metric, 1 if more is better)}."""
    pages = {metric: (word, sign) for word, (metric, sign) in results.METRICS.items()}
    both = pages.keys() & metrics.WORDS.keys()
    assert len(both) >= 9 and all(pages[k] == metrics.WORDS[k] for k in both)


def test_differences_are_paired_and_those_of_the_pages(tmp_path):
    """As results.change computes them from the stored logits."""
    labels, _, groups, _, logits = sample(0, num_groups=2)
    both = {"teacher": logits, "last": logits + np.random.default_rng(3).normal(size=logits.shape)}
    drawn, run = (
        {name: {} for name in both},
        {"group_names": ["a", "b"], "settings": {"fold": None}},
    )
    given = {"labels": labels, "groups": groups}
    shares = [0.7, 0.2, 0.08, 0.02]
    for name, values in both.items():
        more = {"num_classes": 4, "num_groups": 2, "class_shares": shares, "drawn": drawn[name]}
        run[name] = {"test": metrics.evaluate(**given, **more, logits=values)}
        run[name]["class_shares"] = shares
    found = metrics.differences(*((run[name]["test"], drawn[name]) for name in both))
    ids = np.arange(len(labels)).astype(str)
    np.savez(tmp_path / "x.npz", **both, **given, ids=ids, subjects=np.arange(len(labels)))
    run["arrays"] = tmp_path / "x.npz", {k: k for k in (*both, *results.TRUTH)}
    for key in ("accuracy", "auroc", "mean_deo", "mean_deo_corrected"):
        for end, made in (("", results.change), ("_directed", results.directed)):
            if key + end in found:
                value = made({(0, 0): run}, {(0, 0): run}, key, "last", "teacher")
                expected = [value.point / 100, value.low / 100, value.high / 100]
                np.testing.assert_allclose(found[key + end], expected, atol=1e-9)
    assert {"mean_deo_directed", "mean_deo_corrected_directed"} <= found.keys()


def test_the_table_ends_with_a_verdict():
    """Less fair or fairer only where the interval leaves out 0, and never of a collapsed model."""
    labels, _, groups, _, logits = sample(0, num_groups=2)
    logits = logits + 3 * np.eye(4)[labels]
    worse = logits + 4 * (groups == 1)[:, None] * np.eye(4)[(labels + 1) % 4]
    drawn = [{}, {}]
    made = [evaluate_sample(logits=z, drawn=d) for z, d in zip((logits, worse), drawn)]
    columns = {"teacher": made[0], "student": made[1]}
    difference = metrics.differences(*zip(made, drawn))
    point, low, high = (100 * v for v in difference["mean_deo"])
    text = metrics.show(columns, "abcd", ["female", "male"], difference)
    assert 0 < low < point < high and "student - teacher" in text.splitlines()[0]
    shown = f"{point:+.1f} [{low:.1f}, {high:.1f}]"
    assert cells_of(text)["fairness of decisions", "mean-DEO", ""][2] == shown
    said = " ".join(text.split())
    assert f"the student is less fair than its teacher by {point:.1f} points of mean-DEO" in said
    assert max(map(len, text.splitlines())) <= 80
    swapped = metrics.differences(*zip(made[::-1], drawn[::-1]))
    said = metrics.verdict({"teacher": made[1], "student": made[0]}, swapped)
    assert f"the student is fairer than its teacher by {point:.1f} points" in said
    same = metrics.differences(*zip(made[:1] * 2, drawn[:1] * 2))
    said = metrics.verdict({"teacher": made[0], "student": made[0]}, same)
    assert "not shown to be fairer or less fair than its teacher" in said and "+0.0 points" in said
    ## A gap that is larger, but in no steady direction, may be noise.
    unsteady = difference | {"mean_deo_directed": [point / 100, -0.01, 0.2]}
    said = metrics.verdict(columns, unsteady)
    assert "not shown" in said and "in size alone, in its direction by [-1.0, 20.0]" in said
    against = difference | {"mean_deo_directed": [-0.1, -0.2, -0.1]}
    assert "in size alone" in metrics.verdict(columns, against)
    columns["student"] = made[1] | {"collapsed": True}
    text = metrics.show(columns, "abcd", ["female", "male"], difference)
    assert "student (collapsed)" in text.splitlines()[0] and "student collapsed: " in text
    assert text.endswith("The student collapsed: to be equally useless is not to be fair.")
    assert "That is expected" not in text and "Try --balance" in text
    ## Where a class is rare, the corrected decisions count, as on the pages.
    rare = evaluate_sample(logits=logits, class_shares=[0.8, 0.1, 0.05, 0.05], replicates=20)
    columns = {"teacher": rare, "student": rare}
    known = {"mean_deo_corrected": [0.1, 0.05, 0.2], "mean_deo": [-0.1, -0.2, -0.05]}
    said = metrics.verdict(columns, known)
    assert "less fair than its teacher by 10.0 points of mean-DEO (corrected) [5.0, 20.0]" in said


@pytest.mark.parametrize("shares, collapsed", [((0.7, 0.3), True), ((0.9, 0.1), False)])
def test_one_answer_where_that_counts_is_a_collapse_whatever_the_corrected_ones_are(
    shares, collapsed
):
    """At 30 % the largest output counts; at 10 % the corrected decision, by which it is none."""
    rng = np.random.default_rng(0)
    labels, groups = (rng.random(400) < shares[1]).astype(int), rng.integers(0, 2, 400)
    logits = np.log(shares) + np.eye(2)[labels] * 0.4  # never enough for the rarer class
    found = metrics.evaluate(
        labels=labels,
        groups=groups,
        logits=logits,
        num_classes=2,
        num_groups=2,
        class_shares=shares,
        replicates=20,
    )
    said, corrected = (np.sum(found[f"counts{end}"], axis=(0, 1)) for end in metrics.ENDS)
    assert said[1] == 0 < corrected[1] and found["collapsed"] is collapsed
    fairer = {"mean_deo": [-0.1, -0.2, -0.05]}
    sentence = metrics.verdict({"A": found | {"collapsed": False}, "B": found}, fairer)
    assert ("B collapsed" in sentence) is collapsed


def test_the_row_of_an_epoch_fits_80_columns():
    validation = {"auroc": 0.5, "auroc_worst_group": None, "mean_deo": 1.0, "loss": 3.0}
    losses = {"loss": 1.0, "loss_ce": 22.5, "loss_kd": 1.0, "loss_feat": 1, "loss_fair": 2}
    head, row = metrics.row_of("student 12/48", losses | {"gate": 1.0}, validation, 83)
    assert len(head) == len(row) == 80 and row.startswith("student 12/48 1.000  22.5 ")
    assert head.split() == "loss ce kd feat fair val AUROC worst group mean-DEO left".split()
    assert row.split()[-4:] == ["50.0", "-", "100.0", "01:23"]
    head, row = metrics.row_of("teacher 1/2", {"loss": 0.1}, {"dice": 0.9}, 3723.4)
    assert row.split() == ["teacher", "1/2", "0.100", "90.0", "1:02:03"] and "Dice" in head


def test_both_decisions():
    """With rare classes the corrected decision is the arg max of z - log π, π of the training."""
    labels, _, groups, _, logits = sample(0, num_groups=2)
    shares = np.array([0.7, 0.2, 0.08, 0.02])
    logits = logits + np.log(shares)  # as of a network that has learnt the frequencies
    data = {"labels": labels, "groups": groups, "logits": logits, "replicates": 50}
    out = evaluate_sample(**data, class_shares=shares.tolist())
    fair = evaluate_sample(**data | {"logits": logits - np.log(shares)})
    plain = evaluate_sample(**data)
    hard = [name for name in out if f"{name}_corrected" in out]
    assert {"accuracy", "mean_deo", "disparity", "f1_weighted", "worst_cell", "counts"} <= {*hard}
    for name in hard:
        assert out[name] == plain[name] == plain[f"{name}_corrected"], name
        assert out[f"{name}_corrected"] == fair[name], name
    for name in ("accuracy", "mean_deo", "worst_cell"):
        assert out["interval"][f"{name}_corrected"] == fair["interval"][name]
        assert out["interval"][name] == plain["interval"][name]
    for kind in ("groups", "classes"):
        for ours, theirs in zip(out[kind], fair[kind]):
            assert ours["recall_corrected"] == theirs["recall"]
    assert out["recall_corrected"] > out["recall"] + 0.1  # otherwise this test shows nothing
    for name in ("auroc", "calibration_error", "loss"):
        assert out[name] == plain[name] and f"{name}_corrected" not in out
    cells = cells_of(metrics.show({"student": out}, "abcd", ["female", "male"]))
    for row in (
        ("fairness of decisions", "mean-DEO"),
        ("top-1 by group", "male"),
        ("disparity by class, male minus female", "b"),
    ):
        assert {(*row, ""), (*row, "corrected")} <= cells.keys()
    value = f"{100 * out['mean_deo_corrected']:.1f}"
    assert cells["fairness of decisions", "mean-DEO", "corrected"][0].startswith(value)
    assert "corrected" not in metrics.show({"student": plain}, "abcd", ["female", "male"])


def test_equal_shares_leave_ties_as_they_are():
    """Shares that differ by a rounding must not turn equal logits into another decision."""
    shares = [1 / 3, 1 / 3 + 1e-12, 1 / 3 - 1e-12]
    out = metrics.evaluate(
        labels=np.arange(30) % 3,
        groups=np.arange(30) % 2,
        logits=np.ones((30, 3)),
        num_classes=3,
        num_groups=2,
        class_shares=shares,
        replicates=0,
    )
    assert out["counts"] == out["counts_corrected"]


def test_auroc_of_large_margins():
    """Beyond margins of 37 softmax gives 1 to all; the order of log-odds stays."""
    labels, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    logits = np.array([[0, 50], [0, 45], [0, 70], [0, 60.0]])
    both = {"labels": labels, "groups": groups, "num_groups": 2}
    assert metrics.headline(logits=logits, **both)["auroc"] == 1
    assert metrics.headline(logits=-logits, **both)["auroc"] == 0
    labels, _, groups, _, logits = sample(3)
    odds, probs = metrics.log_odds(logits), scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(odds, np.log(probs / (1 - probs)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_equal_probabilities_tie_whatever_the_others_are(classes, digits):
    rng = np.random.default_rng(digits)
    cuts = np.sort(rng.integers(0, 10**digits + 1, (400, classes - 1)), axis=1)
    probs = np.diff(cuts, axis=1, prepend=0, append=10**digits) / 10**digits
    labels = rng.integers(0, classes, 400)
    logits = np.log(np.maximum(probs, 1e-30))
    out = metrics.headline(labels=labels, groups=0 * labels, logits=logits, num_groups=1)
    areas = [sk.roc_auc_score(labels == c, probs[:, c]) for c in range(classes)]
    assert out["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 4, 50])
def test_log_odds_are_those_of_all_other_classes_together(classes):
    logits = 20 * np.random.default_rng(classes).normal(size=(100, classes))
    others = [np.delete(logits, c, axis=1) for c in range(classes)]
    expected = logits - scipy.special.logsumexp(others, axis=2).T
    np.testing.assert_allclose(metrics.log_odds(logits), expected, rtol=0, atol=1e-9)


def test_resamples_of_many_classes_are_counted_a_few_at_a_time():
    """A table of counts is (G, C, C): of 1000 resamples with 1000 classes it would be 16 GB."""
    rows, data = [], {"logits": np.zeros((9, 1000)), "num_groups": 2}

    def measured(*, weights, **_):
        rows.append(len(weights))
        return {"row": weights[:, 0], "counts": None}

    weights = np.arange(9000.0).reshape(1000, 9)
    together = metrics.bootstrap(weights=weights, measured=measured, **data)
    assert np.array_equal(together["row"], weights[:, 0])
    assert max(rows) * 2 * 1000**2 < 1.1 * 2**24 and sum(rows) == 1000


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([[[9, 1], [1, 9]], [[9, 1], [1, 9]]], False),
        ([[[10, 0], [10, 0]], [[10, 0], [10, 0]]], True),  # everybody gets the first class
        ([[[9, 1], [1, 9]], [[10, 0], [10, 0]]], True),  # one group does
        ([[[9, 1], [1, 9]], [[10, 0], [0, 0]]], False),  # which has no other class
        ([[[9, 1], [1, 9]], [[2, 0], [2, 0]]], False),  # which has so few that it may be chance
        ([[[5, 5], [5, 5]], [[5, 5], [5, 5]]], True),  # chance
        ([[[9, 1], [0, 0]], [[9, 1], [0, 0]]], False),  # one class only: there is no chance level
        ([[[9, 1, 0], [1, 9, 0], [0, 0, 0]]] * 2, False),  # nobody is of the class never named
    ],
)
def test_collapse(counts, expected):
    assert metrics.has_collapsed(counts=np.array(counts)) is expected


def test_a_collapse_of_the_corrected_decisions_counts_whatever_the_others_are():
    good, one_answer = [[[9, 1], [1, 9]]] * 2, [[[10, 0], [10, 0]]] * 2
    for shares, end in (([0.5, 0.5], ""), ([0.9, 0.1], "_corrected")):
        assert metrics.main_rule(shares) == end
        tables = {"": good, "_corrected": one_answer}
        assert metrics.is_useless(tables=tables, class_shares=shares)
        tables = {"": one_answer, "_corrected": good}  # counts where no class is rare
        assert metrics.is_useless(tables=tables, class_shares=shares) == (end == "")


def test_collapse_is_of_the_corrected_decision():
    """A network that never names the rare class at its largest output may still rank well."""
    labels, groups = np.repeat([0, 0, 0, 1], 50), np.arange(200) % 2
    logits = np.stack([np.full(200, 2.0), labels + np.linspace(-0.2, 0.2, 200)], 1)
    data = {"labels": labels, "groups": groups, "logits": logits, "replicates": 0}
    data |= {"num_classes": 2, "num_groups": 2}
    assert metrics.evaluate(**data)["collapsed"] is True
    ranked = metrics.evaluate(**data, class_shares=[0.8, 0.2])
    assert ranked["collapsed"] is False and ranked["recall"] == 0.5
    assert ranked["worst_cell"] == 0 and ranked["worst_cell_corrected"] > 0.9


def test_means_over_undefined_cells_say_so():
    labels, _, groups, _, logits = sample(0, num_groups=2)
    labels = np.where((groups == 1) & (labels == 2), 0, labels)
    out = evaluate_sample(labels=labels, logits=logits)
    text = metrics.show({"student": out}, "abcd", ["female", "male"])
    assert "no picture of c, male: means leave it out" in text


# ------------------------------------------------------------------ what is refused
def test_bad_input_is_named():
    labels, predictions, groups, probs, logits = sample(0)
    good = dict(labels=labels, predictions=predictions, groups=groups, num_classes=4, num_groups=3)
    for bad, name in (
        ({"labels": labels + 1}, "labels"),
        ({"labels": labels * 1.0}, "labels"),
        ({"labels": labels[:0]}, "labels"),
        ({"predictions": predictions[1:]}, "predictions"),
        ({"groups": groups - 1}, "groups"),
        ({"groups": groups[:, None]}, "groups"),
        ({"weights": np.ones(3)}, "weights"),
        ({"weights": -np.ones(240)}, "weights"),
    ):
        with pytest.raises(ValueError, match=name):
            metrics.confusion(**{**good, **bad})
    for bad in (probs[:, :1], np.where(probs > 0.5, np.nan, probs)):
        with pytest.raises(ValueError, match="scores"):
            metrics.auroc(labels=labels, probs=bad)
    with pytest.raises(ValueError, match="labels"):
        metrics.auroc(labels=labels[1:], probs=probs)
    logits[3, 1] = np.inf
    for bad, name in ((logits, "finite"), (logits[:, :2], "logits"), (logits[:0], "empty")):
        with pytest.raises(ValueError, match=name):
            metrics.evaluate(labels=labels, groups=groups, logits=bad, num_classes=4, num_groups=3)
    with pytest.raises(TypeError):
        metrics.auroc(labels, probs)  # keyword-only, so that nobody swaps them
