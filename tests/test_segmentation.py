"""Masks: their metrics against scikit-learn, their loss against a loop, views, files, and networks;
every script that has a meaning for --task segment, and the sentence of every one that has none."""

import contextlib
import copy
import importlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import adversarial_kd
import bird
import ckd
import conftest
import fairdi
import groupdro
import numpy as np
import pytest
import swad
import torch
import torch.nn.functional as F
from conftest import (
    add_masks,
    arguments,
    assert_step_2_is_plain_distillation,
    cells_of,
    check_colours,
    load_toy,
    mask_of,
    number_of,
    read_table,
    regrouped,
    stopping,
    write_table,
)
from forked import SCRIPTS, run_script
from PIL import Image, ImageOps
from sklearn.metrics import f1_score, jaccard_score

import figures
import metrics
import networks
import results
from data import InputError, batches, load, save
from datasets import compare_kinds, decode_mask, upright_size

SEGMENT = ["--task", "segment"]
ABLE = [
    name for name in SCRIPTS if "--task segment" not in importlib.import_module(name).Method.refuses
]


@pytest.fixture(scope="module")
def stars():
    """A few pictures of every cell of the toy, with their masks."""
    return load("toy", task="segment", smoke=True)


@pytest.fixture(scope="module")
def few(stars):
    """A third of them, for whole runs."""
    splits = {part: split.subset(range(0, len(split), 3)) for part, split in stars.splits.items()}
    return replace(stars, splits=splits)


def segmenting(module, *flags):
    """A script's settings in smoke mode on the CPU, for masks of the toy."""
    return arguments(module, *SEGMENT, *flags)


def method_of(module, data, *flags, networks=("unet4", "unet2")):
    """The method, built like a run builds it, with an untrained teacher, for masks."""
    return conftest.method_of(module, data, *SEGMENT, *flags, networks=networks)


# ----- metrics ------------------------------------------------------------------------------------
def masks_and_areas(n=40, seed=0, empty=True):
    """Predicted and true masks (n, 8, 8), of which some are empty, and their areas (n, 3)."""
    rng = np.random.default_rng(seed)
    said, true = rng.random((2, n, 8, 8)) < rng.random((2, n, 1, 1))
    if empty:
        said[0], said[1], true[1], true[2] = False, False, False, False
    return said, true, np.stack([m.sum((1, 2)) for m in (said, true, said & true)], axis=1)


def test_dice_and_iou_are_scikit_learn_s_of_each_picture():
    said, true, areas = masks_and_areas()
    pairs = [(t.ravel(), s.ravel()) for s, t in zip(said, true)]
    want = [f1_score(*pair, zero_division=1.0) for pair in pairs]
    np.testing.assert_allclose(metrics.dice(areas=areas), want, rtol=1e-12)
    want = [jaccard_score(*pair, zero_division=1.0) for pair in pairs]
    np.testing.assert_allclose(metrics.iou(areas=areas), want, rtol=1e-12)
    assert metrics.dice(areas=areas)[:3].tolist() == metrics.iou(areas=areas)[:3].tolist()
    assert metrics.dice(areas=areas)[:3].tolist() == [0, 1, 0]  # one empty, both, the other one


def test_areas_are_what_the_logits_say():
    said, true, areas = masks_and_areas()
    logits = torch.stack([-torch.from_numpy(said).float(), torch.from_numpy(said).float()], 1)
    assert ckd.areas(logits, torch.from_numpy(true).long()).tolist() == areas.tolist()
    logits[3, 0, 2, 2] = np.nan
    with pytest.raises(InputError, match="a logit is nan"):
        ckd.areas(logits, torch.from_numpy(true).long())


def truth(n=40):
    labels, groups = np.arange(n) % 3, np.arange(n) // 3 % 2
    return {"labels": labels, "groups": groups, "num_classes": 3, "num_groups": 2}


def test_every_metric_of_masks_by_hand():
    areas, given = masks_and_areas()[2], truth()
    out, d = metrics.headline_masks(**given, areas=areas), metrics.dice(areas=areas)
    group = [d[given["groups"] == g].mean() for g in (0, 1)]
    assert out["dice"] == pytest.approx(d.mean()) and out["loss"] == pytest.approx(1 - d.mean())
    np.testing.assert_allclose(out["group_dice"], group)
    assert out["dice_difference"] == pytest.approx(group[1] - group[0])
    assert out["dice_gap"] == pytest.approx(abs(group[1] - group[0]))
    assert out["dice_worst_group"] == pytest.approx(min(group))
    spread = sum(abs(g - d.mean()) for g in group)
    assert out["es_dice"] == pytest.approx(d.mean() / (1 + spread))
    assert out["dice_sd"] == pytest.approx(np.std(group))
    assert out["dice_ser"] == pytest.approx((1 - min(group)) / (1 - max(group)))
    failed = d < 0.7
    assert out["failure"] == pytest.approx(failed.mean())
    shares = [failed[given["groups"] == g].mean() for g in (0, 1)]
    assert out["failure_difference"] == pytest.approx(shares[1] - shares[0])
    assert out["failure_gap"] == pytest.approx(abs(shares[1] - shares[0]))
    assert out["failure_worst_group"] == pytest.approx(max(shares))
    cells = [
        d[(given["groups"] == g) & (given["labels"] == c)].mean() for g in (0, 1) for c in range(3)
    ]
    assert out["worst_cell"] == pytest.approx(min(cells))
    ## Standardised: the gap inside each class, weighted by the share of the class.
    pi = np.bincount(given["labels"]) / 40
    want = sum(pi[c] * (cells[3 + c] - cells[c]) for c in range(3))
    assert out["dice_difference_standardised"] == pytest.approx(want)
    assert out["dice_gap_standardised"] == pytest.approx(abs(want))
    assert out["dice_standardised"] == pytest.approx(d.mean())


def test_the_mix_of_classes_is_no_gap_when_standardised():
    """Class 1 is hard for everybody, and group 1 has more of it: that is all of the raw gap."""
    labels = np.repeat([0, 1, 0, 1], [30, 10, 10, 30])
    groups, hits = np.repeat([0, 1], 40), np.where(labels == 0, 9, 5)
    areas = np.stack([np.full(80, 10), np.full(80, 10), hits], axis=1)
    given = {"labels": labels, "groups": groups, "num_classes": 2, "num_groups": 2}
    out = metrics.headline_masks(**given, areas=areas)
    assert out["dice_difference"] == pytest.approx(-0.2)
    assert out["dice_gap_standardised"] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(out["group_dice_standardised"], [0.7, 0.7])
    ## A class that a group lacks is left out, also of the shares.
    some = ~((labels == 1) & (groups == 0))
    cut = {k: v[some] if isinstance(v, np.ndarray) else v for k, v in given.items()}
    out = metrics.headline_masks(**cut, areas=areas[some])
    np.testing.assert_allclose(out["group_dice_standardised"], [0.9, 0.9])
    assert out["dice_standardised"] == pytest.approx(0.9) and out["dice"] < 0.8


def test_a_gap_of_masks_has_no_sign_and_only_two_groups_have_a_difference():
    areas, given = masks_and_areas()[2], truth()
    three = given | {"groups": np.arange(40) // 3 % 3, "num_groups": 3}
    for each, two in ((given, True), (three, False)):
        swapped = each | {"groups": each["num_groups"] - 1 - each["groups"]}
        out, other = (metrics.headline_masks(**x, areas=areas) for x in (each, swapped))
        for key in ("dice_gap", "dice_gap_standardised", "failure_gap"):
            assert out[key] >= 0 and out[key] == pytest.approx(other[key])
        assert ("dice_difference" in out) == two
        names = ["a", "b", "c"][: each["num_groups"]]
        text = metrics.show({"x": metrics.evaluate_masks(**each, areas=areas)}, "abc", names)
        assert ("difference: the second group minus the first" in text) == two
        assert ("\n difference " in text) == two and "\n gap ↓" in text
    assert out["dice_gap"] == pytest.approx(np.ptp(out["group_dice"]))


def test_resamples_standardise_by_the_classes_of_the_measurement():
    """Class 1 has one picture in group 0. Where a resample lacks it, the gap is not that of class
    0 alone, which would be another quantity: there is none."""
    labels, groups = np.array([0, 0, 1, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 1])
    hits = np.array([9, 9, 1, 9, 9, 5, 5])
    areas = np.stack([np.full(7, 10), np.full(7, 10), hits], 1)
    given = {"labels": labels, "groups": groups, "num_classes": 2, "num_groups": 2, "areas": areas}
    weights = np.array([[1, 1, 1, 1, 1, 1, 1], [2, 1, 0, 1, 1, 1, 1]], float)
    out = metrics.headline_masks(**given, weights=weights)
    whole = metrics.headline_masks(**given)["dice_gap_standardised"]
    assert out["dice_gap_standardised"][0] == whole == pytest.approx(0.4 * 3 / 7)
    assert np.isnan(out["dice_gap_standardised"][1]) and out["dice_standardised"][1] > 0
    assert np.isnan(out["group_dice_standardised"][1]).tolist() == [True, False]
    alone = metrics.headline_masks(**given, weights=weights[1])
    assert np.isnan(alone["dice_gap_standardised"])


def test_a_perfect_model_has_not_collapsed_where_most_true_masks_are_empty():
    size = np.array([0, 0, 0, 0, 5, 9, 7])
    given = {"labels": 0 * size, "groups": np.arange(7) % 2, "num_classes": 1, "num_groups": 2}
    most, few = size * (size > 5), size * (size > 7)  # of the three masks two are found, or one
    all_of_them = (size, False), (0 * size, True), (0 * size + 6, True), (most, False), (few, True)
    for said, collapsed in all_of_them:
        areas = np.stack([said, size, np.minimum(said, size)], 1)
        out = metrics.evaluate_masks(**given, areas=areas, replicates=0)
        assert out["collapsed"] is collapsed
    for same in (0, 4):  # nothing to be found, or the same everywhere
        areas = np.full((7, 3), same)
        out = metrics.evaluate_masks(**given, areas=areas, replicates=0)
        assert out["collapsed"] is False


def test_the_mean_is_over_pictures_and_not_over_pixels():
    areas = [[1000, 1000, 1000], [0, 4, 0]]  # a large mask found, a small one missed
    given = {"labels": [0, 0], "groups": [0, 1], "num_classes": 1, "num_groups": 2}
    assert metrics.headline_masks(**given, areas=areas)["dice"] == 0.5


def test_resamples_are_repeated_pictures_and_pairs_share_them():
    areas, given = masks_and_areas()[2], truth()
    weights = metrics.bootstrap_weights(n=40, replicates=5, clusters=np.arange(40) // 2)
    draws = metrics.bootstrap(
        **given, areas=areas, weights=weights, measured=metrics.headline_masks
    )
    for r, row in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), row)
        again = {k: v[rows] if isinstance(v, np.ndarray) else v for k, v in given.items()}
        for name, value in metrics.headline_masks(**again, areas=areas[rows]).items():
            np.testing.assert_allclose(draws[name][r], value, atol=1e-9, err_msg=name)
    better = areas.copy()
    better[:, 2] = np.minimum(better[:, 0], better[:, 1])
    others = metrics.bootstrap(
        **given, areas=better, weights=weights, measured=metrics.headline_masks
    )
    points = [metrics.headline_masks(**given, areas=a)["dice"] for a in (better, areas)]
    pair = dict(zip(("point_a", "point_b"), points))
    found = metrics.paired_difference(**pair, draws_a=others["dice"], draws_b=draws["dice"])
    assert 0 < found["low"] < found["difference"] < found["high"]


def test_what_is_reported_of_masks_is_json_and_a_table():
    areas, given = masks_and_areas()[2], truth()
    out = metrics.evaluate_masks(**given, areas=areas, clusters=np.arange(40), replicates=50)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["n"] == 40 and sum(map(sum, out["pictures"])) == 40 and not out["collapsed"]
    for key in ("dice", "dice_gap_standardised", "failure"):
        low, high = out["interval"][key]
        assert low <= out[key] <= high
    text = metrics.show({"student": out}, ["a", "b", "c"], ["women", "men"])
    cells = cells_of(text)
    assert ("fairness of Dice", "Dice gap", "standardised") in cells
    assert {("failed by group", "men", ""), ("Dice by class", "c", "")} <= cells.keys()
    for words in ("standardised: as if each", "sd: standard dev", "ES: equity", "Dice below 70%"):
        assert f"\n{words}" in text or words in text.partition("\nfailed: ")[2]
    assert "SER" not in text and out["dice_ser"] >= 1  # a ratio, among percentages
    assert out["dice"] == pytest.approx(out["dice_standardised"])
    assert ("utility", "Dice", "standardised") not in cells  # a row that says the same
    assert {k for k in out["interval"] if "iou" in k} == {
        "iou",
        "es_iou",
        "iou_standardised",
        "es_iou_standardised",
    }
    pairs = given | {k: np.repeat(given[k], 2) for k in ("labels", "groups")}  # of one subject each
    pairs |= {"areas": np.repeat(areas, 2, axis=0), "clusters": np.repeat(np.arange(40), 2)}
    twice = metrics.evaluate_masks(**pairs, replicates=50)
    assert (twice["subjects"], twice["n"]) == (40, 80)
    for key, ends in out["interval"].items():
        assert twice["interval"][key] == pytest.approx(ends, abs=1e-9), key
    alike = given | {"labels": 0 * given["labels"], "num_classes": 1}
    same = metrics.evaluate_masks(**alike, areas=areas, replicates=20)
    assert "standardised" not in metrics.show({"student": same}, ["a"], ["women", "men"])
    nothing = np.stack([0 * areas[:, 0], areas[:, 1], 0 * areas[:, 0]], axis=1)
    out = metrics.evaluate_masks(**given, areas=nothing, replicates=0)
    text = " ".join(metrics.show({"x": out}, "abc", "gh").split())
    assert out["collapsed"] and "half of the masks that it should find are empty" in text


# ----- the loss of a picture ----------------------------------------------------------------------
def test_the_loss_of_a_picture_is_that_of_a_plain_loop():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 5, generator=rng, dtype=torch.float64)
    masks = (torch.rand(3, 4, 5, generator=rng) < 0.4).long()
    masks[2] = 0
    for z, t, got in zip(logits, masks, ckd.label_loss(logits, masks)):
        entropy, both, said = 0.0, 0.0, 0.0
        for y, x in np.ndindex(4, 5):
            p = torch.softmax(z[:, y, x], 0)
            entropy -= p[t[y, x]].log() / 20
            both, said = both + p[1] * t[y, x], said + p[1]
        dice = (2 * both + 1) / (said + t.sum() + 1)
        assert got.item() == pytest.approx((0.5 * entropy + 0.5 * (1 - dice)).item(), rel=1e-12)
    perfect = 40 * torch.stack([1 - 2 * masks, 2 * masks - 1], 1).double()
    assert ckd.label_loss(perfect, masks).abs().max() < 1e-12  # also of the empty mask
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ckd.label_loss(z, masks), logits)
    labels = torch.tensor([1, 0, 1])
    flat = logits[:, :, 0, 0]
    assert torch.equal(ckd.label_loss(flat, labels).mean(), F.cross_entropy(flat, labels))


def test_kd_loss_of_constant_maps_is_that_of_their_value():
    rng = torch.Generator().manual_seed(0)
    logits_s, logits_t = torch.randn(2, 6, 2, generator=rng, dtype=torch.float64)
    maps = [z[:, :, None, None].expand(6, 2, 8, 8) for z in (logits_s, logits_t)]
    want = ckd.kd_loss(logits_s, logits_t, 4.0).item()
    assert ckd.kd_loss(*maps, 4.0).item() == pytest.approx(want, rel=1e-12)


# ----- views --------------------------------------------------------------------------------------
def test_a_picture_that_is_its_own_mask_stays_so_in_every_view(stars):
    """Cropped, flipped, shuffled and balanced: the mask moves with the picture."""
    train = stars["train"]
    store = train.masks[..., None].expand(*train.masks.shape, 3).contiguous()
    own = replace(train, store=store, mean=torch.zeros(3, 1, 1), std=torch.full((3, 1, 1), 255.0))
    seen = set()
    for how in ({}, {"seed": 1}, {"seed": 1, "views": "mirrored"}, {"seed": 2, "balance": "cells"}):
        for batch in batches(own, 32, **how):
            assert batch.labels.dtype == torch.int64 and batch.labels.shape == (
                len(batch.index),
                32,
                32,
            )
            assert torch.equal(batch.images[:, 1], batch.labels.float())
            assert torch.equal(batch.groups, train.groups[batch.index])
            seen.add(batch.labels.sum().item())
    assert len(seen) > 20
    classified = load_toy()["train"]
    assert classified.masks is None and torch.equal(classified.store, train.store)


def test_masks_are_part_of_the_hash(stars):
    changed = replace(stars["val"], masks=stars["val"].masks.clone())
    changed.masks[changed.rows[5], 3, 4] ^= 255
    assert changed.hash() != stars["val"].hash() != load_toy()["val"].hash()


def test_the_toy_s_masks_are_the_inside_of_its_stars(stars):
    """Filled or not, a star covers a quarter of the picture; ink lies inside or on the line."""
    train = stars["train"]
    masks = (train.masks[train.rows] > 0).float()
    share = [masks[train.groups == g].mean().item() for g in (0, 1)]
    assert 0 < share[1] - share[0] < 0.05 and 0.2 < np.mean(share) < 0.35  # with its line
    filled = train.images[train.groups == 0].float().mean(1)
    inside = masks[train.groups == 0]
    bright = (filled * inside).sum() / inside.sum()
    assert bright > 1.3 * (filled * (1 - inside)).sum() / (1 - inside).sum()
    assert stars.outputs == ["background", "star"] and len(stars.classes) == 6


def test_the_toy_s_masks_end_where_ink_is_half(stars):
    """Of the ink just inside, little is left one pixel outside, for both groups."""
    train = stars["train"]
    masks = (train.masks[train.rows] > 0).float()[:, None]
    wide, narrow = F.max_pool2d(masks, 3, 1, 1), 1 - F.max_pool2d(1 - masks, 3, 1, 1)
    away = 1 - F.max_pool2d(masks, 9, 1, 4)
    for g in (0, 1):
        pixels = train.images[train.groups == g].float()

        def mean(where, pixels=pixels, rows=train.groups == g):
            return (pixels * where[rows]).sum() / where[rows].sum() / 3

        edge, beyond, paper = mean(masks - narrow), mean(wide - masks), mean(away)
        assert abs(beyond - paper) < 0.2 * abs(edge - paper), g


def test_a_contact_sheet_shows_outlines(stars, tmp_path):
    stars.contact_sheet(tmp_path)
    (path,) = tmp_path.glob("*.png")
    colours = np.asarray(Image.open(path)).reshape(-1, 3)
    assert ((colours == (0, 255, 0)).all(1)).sum() > 1000


# ----- files --------------------------------------------------------------------------------------
@pytest.fixture
def masked(pictures):
    """The csv miniature with masks."""
    add_masks(pictures)
    return pictures


def check_masks(split, size):
    """Every mask is that of its picture: cut to the centre square, and cut at one half."""
    for n, name in enumerate(split.ids):
        mask = split.masks[split.rows[n]].numpy()
        assert set(np.unique(mask)) <= {0, 255}
        whole = Image.fromarray(255 * mask_of(number_of(name), size).astype(np.uint8))
        left = (size[0] - size[1]) / 2
        square = (left, 0, left + size[1], size[1])
        want = np.asarray(whole.resize((16, 16), Image.BOX, square)) > 127
        assert ((mask > 0) != want).sum() <= 20, name  # of 256; inside out it would be all


def test_ham10000_has_masks_of_two_kinds_of_file(ham10000):
    """A third of them with the reversed palette of the real ones: read plainly, inside out."""
    data = load("ham10000", ham10000, 16, task="segment")
    kinds = {Image.open(path).mode for path in ham10000.glob("*tschandl/*.png")}
    assert kinds == {"L", "P"} and data.outputs == ["background", "lesion"]
    for split in data.splits.values():
        check_colours(split)
        check_masks(split, (30, 22))
    assert "mode L" in data.describe() and "KINDS OF MASKS DISAGREE" not in data.describe()
    assert data.classes == "akiec bcc bkl df mel nv vasc".split()  # dx, the usual strata
    assert load("ham10000", ham10000, 16, task="segment", target="none").classes == ["all"]
    assert load("ham10000", ham10000, 16)["train"].masks is None
    for path in ham10000.glob("*tschandl/*.png"):
        number = number_of(path.stem.removesuffix("_segmentation"))
        picture = next(ham10000.glob(f"*/{path.stem.removesuffix('_segmentation')}.jpg"))
        side = decode_mask(path, 22, picture) > 0
        assert np.array_equal(side, mask_of(number, (30, 22))[:, 4:26])


def test_ham10000_without_the_folder_of_masks_is_a_sentence(ham10000):
    (folder,) = ham10000.glob("*tschandl")
    folder.rename(ham10000.parent / "elsewhere")
    words = (
        "120 of 120 pictures have no mask, the first is ISIC_0000000 .no such file: .*tschandl/ISIC"
    )
    with pytest.raises(InputError, match=words):
        load("ham10000", ham10000, 16, task="segment")
    load("ham10000", ham10000, 16)


def test_kinds_of_masks_that_disagree_are_said():
    notes = {}
    compare_kinds({"L": (900, 0.26), "P": (40, 0.75)}, notes)
    assert "26.0% in 900 files of mode L, 75.0% in 40" in notes["inside of masks, share of pixels"]
    assert "inside out" in notes["KINDS OF MASKS DISAGREE"]
    for kinds in ({"L": (900, 0.26), "P": (40, 0.3)}, {"L": (900, 0.26), "P": (2, 0.75)}, {}):
        notes = {}
        compare_kinds(kinds, notes)
        assert "KINDS OF MASKS DISAGREE" not in notes


def test_masks_of_ones_own(masked):
    data = load("csv", masked, 16, task="segment")
    assert data.outputs == ["background", "inside"] and len(data.classes) == 3
    assert all((split.masks > 0).any(2).any(1).all() for split in data.splits.values())
    hashed = data.hash()
    assert hashed != load("csv", masked, 16).hash()
    rows = read_table(masked / "labels.csv")
    for row in rows:
        del row["label"]
    write_table(masked / "labels.csv", rows)
    assert load("csv", masked, 16, task="segment", target="none").classes == ["all"]
    assert load("csv", masked, 16, task="segment").classes == ["pictures"]  # their folder


GREY = (np.arange(450) % 251).astype(np.uint8).reshape(18, 25)


def two_of_them(path):
    Image.fromarray(np.where(GREY < 40, 7, 9).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda path: path.unlink(),
            "1 of 96 pictures have no mask, the first is pictures/005.jpg",
        ),
        (lambda path: path.write_text("no picture"), "1 of 96 masks cannot be read"),
        (
            lambda path: Image.new("L", (33, 20)).save(path),
            "it has 33 x 20 pixels, and its picture 25 x 18",
        ),
        (
            lambda path: Image.fromarray(GREY).save(path),
            "it has the grey values 0, 1, 2, 3, ...: 0 must be outside, one other inside",
        ),
        (two_of_them, "it has the grey values 7, 9: 0 must be outside"),
    ],
)
def test_masks_that_cannot_be_used_are_a_sentence_each(masked, change, words):
    change(masked / "masks" / "005.png")
    with pytest.raises(InputError, match=words) as error:
        load("csv", masked, 16, task="segment")
    assert "\n" not in str(error.value) and "--skip-bad" in str(error.value)
    data = load("csv", masked, 16, task="segment", skip_bad=True)
    assert sum(len(split) for split in data.splits.values()) == 95
    assert any("pictures/005.jpg" in note for note in data.notes.values() if isinstance(note, list))
    load("csv", masked, 16)  # whoever classifies does not care


def test_a_row_without_a_mask_and_a_table_without_masks(masked):
    rows = read_table(masked / "labels.csv")
    rows[5]["mask"] = ""
    write_table(masked / "labels.csv", rows)
    with pytest.raises(InputError, match="1 of 96 pictures have no mask.*no mask is named"):
        load("csv", masked, 16, task="segment")
    write_table(masked / "labels.csv", [{k: r[k] for k in r if k != "mask"} for r in rows])
    with pytest.raises(InputError, match="labels.csv has no column 'mask': rename or write one"):
        load("csv", masked, 16, task="segment")


def test_any_one_value_besides_0_is_inside(tmp_path):
    """0 and 1, 0 and 255, true and false, 16 bits; a mask that is full, and one that is empty."""
    inside = mask_of(1, (20, 20))
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    for n, pixels in enumerate(
        [
            inside.astype(np.uint8),
            255 * inside.astype(np.uint8),
            inside,
            65535 * inside.astype(np.uint16),
            300 * inside.astype(np.uint16),
            np.float32(0.4) * inside,
            np.float32(-1) * inside,
        ]
    ):
        kind = "tif" if pixels.dtype == np.float32 else "png"
        Image.fromarray(pixels).save(tmp_path / f"{n}.{kind}")
        mask = decode_mask(tmp_path / f"{n}.{kind}", 20, tmp_path / "picture.png")
        assert np.array_equal(mask > 0, inside), n
    for value in (0, 255):
        Image.new("L", (20, 20), value).save(tmp_path / "flat.png")
        assert (decode_mask(tmp_path / "flat.png", 20, tmp_path / "picture.png") == value).all()


def test_three_values_of_more_than_8_bits_are_not_two(tmp_path):
    """As 8 bits both would be white, and a soft edge inside."""
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    inside = mask_of(1, (20, 20))
    pixels = 300 * inside.astype(np.uint16) + 400 * (inside & (np.arange(20) > 9))
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="it has the grey values 0, 300, 700: 0 must be outside"):
        decode_mask(tmp_path / "mask.png", 20, tmp_path / "picture.png")


@pytest.mark.parametrize("value", [0, 255])
def test_masks_of_which_all_are_empty_or_full(masked, value):
    """Their Dice would be 100 %, or 0, whatever was learnt."""
    test = {*load("csv", masked, 16, task="segment")["test"].ids}
    for row in read_table(masked / "labels.csv"):
        if row["file"] in test:
            with Image.open(masked / row["mask"]) as mask:
                Image.new("L", mask.size, value).save(masked / row["mask"])
    words = f"all {len(test)} masks of the test split of csv are empty, or full"
    with pytest.raises(InputError, match=words):
        load("csv", masked, 16, task="segment", skip_bad=True)


def test_masks_of_a_group_that_are_empty_or_inside_out(masked):
    """The first is refused, as of a split: its Dice says nothing. The second is asked."""
    assert "of the group outdoor" in str(load("csv", masked, 16, task="segment").notes)
    for change in (
        lambda mask: ImageOps.invert(mask.convert("L")),
        lambda m: Image.new("L", m.size),
    ):
        for row in read_table(masked / "labels.csv"):
            if row["group"] == "indoor":
                with Image.open(masked / row["mask"]) as mask:
                    changed = change(mask)
                changed.save(masked / row["mask"])
        if change(Image.new("L", (2, 2))).getpixel((0, 0)):
            notes = load("csv", masked, 16, task="segment", skip_bad=True).notes
            assert "inside out" in notes["KINDS OF MASKS DISAGREE"]
    with pytest.raises(InputError, match="masks of the group 'indoor' of csv are empty, or full"):
        load("csv", masked, 16, task="segment", skip_bad=True)


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 0, 1), (255, 255, 255), (0, 200, 9)])
def test_a_mask_in_colour_is_outside_where_it_is_black(tmp_path, colour):
    """As grey, red or blue of 1 would be black, too."""
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    inside = mask_of(1, (20, 20))
    drawn = Image.fromarray(inside[..., None] * np.array(colour, np.uint8))
    drawn.save(tmp_path / "mask.png")
    found = decode_mask(tmp_path / "mask.png", 20, tmp_path / "picture.png")
    assert np.array_equal(found > 0, inside)
    drawn.putpixel((0, 0), (0, 3, 0))
    drawn.save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="it has the colours #000000, #.*: 0 must be outside"):
        decode_mask(tmp_path / "mask.png", 20, tmp_path / "picture.png")


def test_masks_of_several_pictures_are_said(masked):
    """A name that was copied down a column; one empty mask of all healthy pictures is no fault."""
    assert "MASKS OF SEVERAL PICTURES" not in load("csv", masked, 16, task="segment").notes
    rows = read_table(masked / "labels.csv")
    by_size = {}
    for row in rows:
        with Image.open(masked / row["mask"]) as mask:
            by_size.setdefault(mask.size, []).append(row)
    one, other, third = max(by_size.values(), key=len)[:3]
    other["mask"] = third["mask"] = one["mask"]
    write_table(masked / "labels.csv", rows)
    noted = load("csv", masked, 16, task="segment").notes["MASKS OF SEVERAL PICTURES"]
    assert noted == [str(masked / one["mask"])]
    write_table(masked / "labels.csv", [rows[0] | {"mask": ""}, *rows[1:]])
    load("csv", masked, 16, task="segment", skip_bad=True)
    write_table(masked / "labels.csv", rows)
    with Image.open(masked / one["mask"]) as mask:
        Image.new("L", mask.size).save(masked / one["mask"])
    assert "MASKS OF SEVERAL PICTURES" not in load("csv", masked, 16, task="segment").notes


def test_a_mask_that_is_cut_out_is_refused(tmp_path):
    """White everywhere, or black, and its shape in what is transparent: no grey value says it."""
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    shape = 255 * mask_of(1, (20, 20)).astype(np.uint8)
    for white in (0, 255):
        pixels = np.dstack([np.full((20, 20, 3), white, np.uint8), shape])
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match="it has transparent pixels: save it in black and"):
            decode_mask(tmp_path / "mask.png", 20, tmp_path / "picture.png")
    opaque = np.dstack([np.repeat(shape[..., None], 3, 2), np.full((20, 20), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "mask.png")
    mask = decode_mask(tmp_path / "mask.png", 20, tmp_path / "picture.png")
    assert np.array_equal(mask, shape)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_mask_of_a_turned_picture_is_as_large_as_it_is_shown(tmp_path, kind, orientation):
    turn = Image.Exif()
    turn[0x0112] = orientation
    Image.new("RGB", (60, 20)).save(tmp_path / f"picture.{kind}", exif=turn)
    size = (60, 20) if orientation < 5 else (20, 60)
    Image.new("L", size, 255).save(tmp_path / "mask.png")
    assert upright_size(tmp_path / f"picture.{kind}") == size
    assert (decode_mask(tmp_path / "mask.png", 8, tmp_path / f"picture.{kind}") == 255).all()


def test_classes_of_pictures_need_not_be_everywhere_where_masks_are_learnt(masked):
    rows = [
        r | {"split": ("train", "val", "test")[n % 3]}
        for n, r in enumerate(read_table(masked / "labels.csv"))
    ]
    for row in rows:
        row["subject"] = row["file"]
        row["label"] = "cat" if row["split"] == "val" else row["label"]
    write_table(masked / "labels.csv", rows)
    with pytest.raises(InputError, match="'dog' has no picture in the val split"):
        load("csv", masked, 16)
    assert len(load("csv", masked, 16, task="segment").classes) == 3


def test_a_run_on_masks_of_ones_own_as_a_user_starts_it(masked, tmp_path):
    flags = ["--dataset", "csv", "--data-dir", masked, "--image-size", "16", "--smoke", *SEGMENT]
    flags += ["--teacher", "unet4", "--student", "unet2", "--batch-size", "8", "--device", "cpu"]
    done = run_script("ckd", *flags, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "fairness of Dice" in done.stdout and "AUROC" not in done.stdout


# ----- networks -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, size, shape, parameters",
    [
        ("unet8", 64, (8, 64, 64), 122_474),
        ("unet4", 30, (4, 30, 30), 30_854),
        ("transunet8", 32, (8, 32, 32), None),
        ("lraspp_mobilenet_v3_large", 64, (168, 8, 8), None),
        ("deeplabv3_mobilenet_v3_large", 64, (256, 4, 4), 11_020_594),
    ],
)
def test_networks_give_maps_and_logits_of_the_input_s_size(name, size, shape, parameters):
    net = ckd.Network(segmenting(ckd, "--image-size", str(size)), name, 2)
    feats, logits = net.train()(torch.randn(2, 3, size, size))
    assert feats.shape == (2, *shape) and logits.shape == (2, 2, size, size)
    torch.testing.assert_close(net.head(feats), logits)
    logits.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert parameters in (None, sum(p.numel() for p in net.parameters()))


def test_torchvision_s_networks_are_torchvision_s():
    """With its own last layers put back, Headless says what torchvision's network says."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large as build

    theirs = build(weights=None, weights_backbone=None, num_classes=2).eval()
    low, high = theirs.classifier.low_classifier, theirs.classifier.high_classifier
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = theirs(images)["out"]
        maps = networks.Headless(theirs)(images)
        weight, bias = torch.cat([low.weight, high.weight], 1), low.bias + high.bias
        got = F.interpolate(F.conv2d(maps, weight, bias), 64, mode="bilinear")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, words",
    [
        ("convnet8", "gives no maps, which --task segment needs"),
        ("resnet18", "no network of --task segment is called 'resnet18'"),
        ("unet8", None),
    ],
)
def test_networks_of_the_other_task_are_a_sentence(name, words):
    task = SEGMENT if words else []
    args = ckd.parse(["--dataset", "toy", "--device", "cpu", *task])
    with pytest.raises(InputError, match=words or "does not end in a linear layer"):
        ckd.Network(args, name, 2)


@pytest.mark.parametrize("maps, told", [(1, True), (2, True), (12, False)])
def test_a_last_layer_that_was_left_in_place_is_suspected(
    tmp_path, monkeypatch, capsys, maps, told
):
    """Its answers would be taken for features, and a second last layer be put upon it."""
    monkeypatch.chdir(tmp_path)
    code = f"from torch import nn\ndef net(size):\n    return nn.Conv2d(3, {maps}, 3, padding=1)\n"
    (tmp_path / "mine.py").write_text(code)
    assert ckd.Network(segmenting(ckd), "mine.py:net", 2).width == maps
    words = f"beware: mine.py:net gives {maps} channels: let it return what its last layer would"
    assert (words in capsys.readouterr().out) == told


def test_timm_gives_encoders():
    pytest.importorskip("timm")
    net = ckd.Network(segmenting(ckd), "timm:resnet10t", 2)
    feats, logits = net(torch.randn(2, 3, 32, 32))
    assert feats.shape[:2] == (2, net.width) and logits.shape == (2, 2, 32, 32)
    assert type(net.body) is networks.UNet


# ----- the scripts --------------------------------------------------------------------------------
def test_data_that_has_no_masks_is_a_sentence():
    with pytest.raises(InputError, match="--task segment needs masks, celeba has none: use "):
        ckd.parse(["--dataset", "celeba", *SEGMENT])


def run(name, data, *flags):
    """The script's main, in this process, on a toy that is drawn already."""
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [f"{name}.py", *map(str, flags)])
        patch.setattr(module, "load_pictures", lambda args: data)
        module.main()


def flags_of(out, *more):
    """A run of a few seconds on the toy's masks."""
    networks = ["--teacher", "unet4", "--student", "unet2", "--device", "cpu"]
    return [*SEGMENT, "--smoke", *networks, "--out", out, *more]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder in which the teacher is trained once."""
    return tmp_path_factory.mktemp("runs")


def result_of(out, name):
    """The one result of a script in a folder, and its arrays."""
    (path,) = (out / "smoke" / "toy-segment" / name).rglob("result.json")
    return json.loads(path.read_text()), dict(np.load(path.with_name("logits.npz")))


@pytest.mark.parametrize("name", ABLE)
def test_a_run_on_masks(name, out, few):
    """It ends, its arrays give its numbers again, and they are those of its saved student."""
    run(name, few, *flags_of(out))
    result, arrays = result_of(out, name)
    assert result["outputs"] == ["background", "star"] and len(result["log"]) == 2
    val = result["log"][-1]["val"]
    assert {
        "dice",
        "dice_worst_group",
        "dice_gap_standardised",
    } <= val.keys() and "auroc" not in val
    given = {"labels": arrays["labels"], "groups": arrays["groups"]}
    given |= {"num_classes": 6, "num_groups": 2, "clusters": arrays["subjects"]}
    for model in ("last", "best_overall", "best_worst_group"):
        assert arrays[model].dtype == np.int32 and arrays[model].shape == (len(few["test"]), 3)
        again = metrics.evaluate_masks(**given, areas=arrays[model], replicates=100)
        assert again == result[model]["test"], model
    assert ("teacher" in arrays) == bool(importlib.import_module(name).Method.needs_teacher)


@pytest.mark.parametrize("name", ABLE)
def test_gradients_reach_the_student_and_never_the_teacher(name, stars, tmp_path):
    module = importlib.import_module(name)
    flags = ["--train-backbone"] if name == "fairdi" else []
    method = method_of(module, stars, *flags, "--out", str(tmp_path))
    start = {k: v.clone() for k, v in method.student.state_dict().items()}
    teacher = (
        {k: v.clone() for k, v in method.teacher.network.state_dict().items()}
        if method.teacher
        else {}
    )
    method.student.train()
    for batch in [b for b in batches(method.split, 32, seed=0, views="mirrored") if b.step < 3]:
        losses = method.step(batch)
        assert all(torch.isfinite(v) for v in losses.values())
    still = [k for k, p in method.student.named_parameters() if torch.equal(p, start[k])]
    assert not still
    for weight, value in teacher.items():
        assert torch.equal(value, method.teacher.network.state_dict()[weight]), weight


@pytest.mark.parametrize("name", ["ckd", "fairdi"])
def test_a_stopped_run_ends_the_same(name, tmp_path, few):
    module = importlib.import_module(name)
    flags = flags_of(tmp_path, *(["--step0", "febs-mended"] * (name == "fairdi")))
    with stopping(module.Method):
        run(name, few, *flags)
    assert list(tmp_path.rglob("checkpoint.pt"))
    run(name, few, *flags)
    again, arrays = result_of(tmp_path, name)
    other = tmp_path / "whole"
    run(name, few, *flags, "--out", other)
    whole, want = result_of(other, name)
    assert again["last"] == whole["last"] and again["log"] == whole["log"]
    assert all(np.array_equal(arrays[k], want[k]) for k in want)


def test_predict_writes_masks_and_outlines(masked, tmp_path, monkeypatch, capsys):
    """As large as the picture; what the network says of the centre square; of any shape."""
    import predict

    data = load("csv", masked, 16, task="segment")
    flags = ["--dataset", "csv", "--data-dir", masked, "--image-size", 16, "--batch-size", 8]
    run("ckd", data, *flags_of(tmp_path / "runs"), *flags, "--alpha", 0)
    (student,) = (tmp_path / "runs").rglob("student.pt")
    monkeypatch.chdir(tmp_path)
    picture = masked / "pictures" / "005.jpg"
    Image.open(picture).resize((90, 50)).save(tmp_path / "wide.png")
    pixels = torch.tensor(predict.decode("wide.png", 16)).permute(2, 0, 1)[None]
    outside, inside = predict.load_student(student)[0](pixels)[0].detach()
    saved = torch.load(student, weights_only=True)
    saved["states"]["last"]["head.0.bias"][1] -= (inside - outside).median()  # half of it is inside
    torch.save(saved, student)
    monkeypatch.setattr("sys.argv", ["predict.py", str(student), "wide.png", str(picture)])
    predict.main()
    assert "of the centre square is inside, see masks/wide-outline.png" in capsys.readouterr().out
    mask = np.asarray(Image.open("masks/wide-mask.png"))
    assert mask.shape == (50, 90) and set(np.unique(mask)) <= {0, 255}
    assert Image.open("masks/wide-outline.png").size == (50, 50)
    assert not mask[:, :20].any() and not mask[:, 70:].any()
    saved_as, saved = predict.load_student(student)
    with torch.no_grad():
        logits = F.interpolate(saved_as(pixels), 50, mode="bilinear")[0]
    assert np.array_equal(mask[:, 20:70] > 0, (logits[1] > logits[0]).numpy())
    assert 0.2 < (mask[:, 20:70] > 0).mean() < 0.8
    monkeypatch.setattr("sys.argv", ["predict.py", str(student), "--export"])
    predict.main()
    exported = torch.export.load(student.parent / "export-last" / "student.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels), saved_as(pixels), rtol=1e-4, atol=1e-4)
    card = json.loads((student.parent / "export-last" / "card.json").read_text())
    assert card["classes"] == ["background", "inside"] and "dice" in str(card)
    monkeypatch.setattr("sys.argv", ["predict.py", str(student), "wide.png", "--csv", "x.csv"])
    with pytest.raises(InputError, match="answers with masks: leave out --csv"):
        predict.main()
    monkeypatch.setattr(
        "sys.argv", ["predict.py", str(student), "wide.png", "./wide.png", "wide.png"]
    )
    predict.main()  # the same file twice is one
    (tmp_path / "b").mkdir()
    Image.open("wide.png").save("b/wide.jpg")
    monkeypatch.setattr("sys.argv", ["predict.py", str(student), "wide.png", "b/wide.jpg"])
    with pytest.raises(InputError, match="have one name: write them into two folders"):
        predict.main()
    ## A bad picture is named, and the others are answered.
    (tmp_path / "bad.png").write_text("no picture")
    flags = ["bad.png", "wide.png", "--masks", "two"]
    monkeypatch.setattr("sys.argv", ["predict.py", str(student), *flags])
    with pytest.raises(InputError, match="2 pictures 1 could not be .*; the first: bad.png cannot"):
        predict.main()
    assert "bad.png cannot be read as a picture" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "wide-mask.png",
        "wide-outline.png",
    ]
    ## Grey of more than 8 bits is spread as in training.
    levels = np.linspace(0, 200, 256).reshape(16, 16)
    Image.fromarray(levels.astype(np.uint16)).save("dark.png")
    monkeypatch.setattr("sys.argv", ["predict.py", str(student), "dark.png"])
    predict.main()
    assert "1 pictures are grey of more than 8 bits, as none was" in capsys.readouterr().out
    saved["notes"] |= {predict.WHITE: 4095.0}
    torch.save(saved | {"states": torch.load(student, weights_only=True)["states"]}, "grey.pt")
    seen, network = [], predict.Student.forward
    monkeypatch.setattr(
        predict.Student, "forward", lambda self, x: seen.append(x) or network(self, x)
    )
    monkeypatch.setattr("sys.argv", ["predict.py", "grey.pt", "dark.png"])
    predict.main()
    assert "more than 8 bits" not in capsys.readouterr().out and seen[0].max() == 12


@pytest.mark.parametrize("target", ["label", "none"])
def test_predict_compares_masks_as_the_test_did(target, masked, tmp_path, monkeypatch, capsys):
    """Areas, groups and the whole table are those of the run's own test; what lacks a mask or has
    one that does not fit is left out and counted."""
    import predict

    data = load("csv", masked, 16, task="segment", target=target)
    settings = ["--dataset", "csv", "--data-dir", masked, "--image-size", 16, "--batch-size", 8]
    settings += ["--target", target]
    run("ckd", data, *flags_of(tmp_path / "runs"), *settings, "--alpha", 0)
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("student.pt"))
    saved = torch.load(folder / "student.pt", weights_only=True)
    network = predict.load_student(folder)[0].network.eval()
    with torch.no_grad():
        logits = torch.cat([network(b.images)[1] for b in batches(data["test"], 8)])
    shift = (logits[:, 1] - logits[:, 0]).median()  # half of all pixels are inside then
    saved["states"]["last"]["head.0.bias"][1] -= shift
    torch.save(saved, folder / "student.pt")
    areas, _ = ckd.measure(predict.load_student(folder)[0].network, data, "test")
    assert areas[:, 2].sum() > 100
    rows = {row["file"]: row for row in read_table(masked / "labels.csv")}
    test = [rows[name] for name in data["test"].ids]
    write_table(masked / "new.csv", test)
    found, evaluate = {}, metrics.evaluate_masks
    monkeypatch.setattr(
        metrics, "evaluate_masks", lambda **data: found.update(data) or evaluate(**data)
    )
    monkeypatch.chdir(tmp_path)

    def main(*arguments):
        flags = map(str, [folder, "--labels", masked / "new.csv", *arguments])
        monkeypatch.setattr("sys.argv", ["predict.py", *flags])
        predict.main()

    main()
    printed = capsys.readouterr().out
    assert f"{len(test)} of {len(test)} pictures have a label and a group and a mask" in printed
    assert (
        f"inside of masks: {areas[:, 1].mean() / 256:.1%} of pixels; 0 masks are empty" in printed
    )
    np.testing.assert_allclose(found["areas"], areas, atol=1)  # sums of one picture, not of eight
    truth = data.truth("test")
    assert found["labels"].tolist() == truth["labels"].tolist()
    assert found["groups"].tolist() == truth["groups"].tolist()
    assert (tmp_path / "masks" / f"{Path(test[0]['file']).stem}-mask.png").is_file()
    result = evaluate(**truth, areas=found["areas"])
    assert metrics.show({"student": result}, data.classes, data.group_names) in printed
    same = [row | {"mask": test[0]["mask"]} for row in test]
    write_table(masked / "new.csv", same)
    with contextlib.suppress(InputError):  # some are of another size
        main()
    assert "beware: masks that are of several pictures: 1, such" in capsys.readouterr().out
    assert "beware: masks" not in printed
    ## Left out: one without a mask, one whose mask has another size; and masks stay what they are.
    Image.new("L", (3, 3)).save(masked / test[1]["mask"])
    write_table(masked / "new.csv", [test[0] | {"mask": "NA"}, *test[1:]])
    with pytest.raises(InputError, match=f"of {len(test)} pictures 1 .* as a mask .it has 3 x 3"):
        main()
    assert f"{len(test) - 2} of {len(test)} pictures have" in capsys.readouterr().out
    with pytest.raises(InputError, match="--masks .* would replace what is read"):
        main("--masks", masked / "masks")
    write_table(masked / "new.csv", [{k: v for k, v in row.items() if k != "mask"} for row in test])
    with pytest.raises(InputError, match="has no column 'mask'"):
        main()


def test_reports_read_results_of_masks(out, few):
    """And each picture's own teacher is a row, group by group that of its network."""
    for name in ("ckd", "fairdi"):
        run(name, few, *flags_of(out))  # or it is there already
    ((place, rows),) = results.collect(out / "smoke", smoke=True).items()
    assert place[0] == "toy-segment"
    assert {"CKD", "FIS", "FairDi", results.CEILING} <= {*rows}
    result, arrays = result_of(out, "fairdi")
    (made,) = rows[results.CEILING].values()
    (areas,) = results.arrays(made, ["last"])
    for g in (0, 1):
        dice = result[f"teacher_{g}"]["test"]["groups"][g]["dice"]
        assert made["last"]["test"]["groups"][g]["dice"] == pytest.approx(dice)
        own = arrays["groups"] == g
        assert np.array_equal(areas[own], arrays[f"teacher_{g}"][own])
    gains = results.gains(rows["FairDi"])
    assert [100 * gain["difference"] for gain in result["gains"]] == [
        v.point for v in gains.values()
    ]


def test_outlines_are_those_of_the_saved_networks(few, tmp_path, monkeypatch):
    """Found by what is kept of their answers; without them there is no figure."""
    for name in ("ckd", "adversarial_kd"):
        longer = ["--no-smoke", "--epochs", 8, "--teacher-epochs", 8]
        run(name, few, *flags_of(tmp_path, *longer))
    ((_, rows),) = results.collect(tmp_path).items()
    drawn, path = [], tmp_path / "outlines.png"
    monkeypatch.setattr(figures, "load", lambda *args, **choices: few)
    monkeypatch.setattr(figures, "outlined", lambda image, mask: drawn.append(mask) or image)
    teachers = tmp_path / "toy-segment" / "teachers"
    (file,) = teachers.glob("*/teacher.pt")
    for name, width in (("a-other", 4), ("b-larger", 6)):  # teachers of other runs, met first
        other = networks.Network(segmenting(ckd), f"unet{width}", 2)
        save(teachers / name / "teacher.pt", {"state": other.state_dict(), "seconds": 0.0})
    caption = figures.gallery(rows, None, "toy", path)
    for name in ("a-other", "b-larger"):
        shutil.rmtree(teachers / name)
    number = len(drawn) // 5
    assert number and caption.startswith("Outlines of ") and path.stat().st_size > 10_000
    truth, *found = (np.stack(drawn[k * number : (k + 1) * number]) > 0 for k in range(1, 5))
    kept = [results.arrays(rows[n][0, 0], [k])[0] for n, k in (("CKD", "teacher"), ("CKD", "last"))]
    kept += results.arrays(rows["adversarial KD"][0, 0], ["last"])
    for masks, areas in zip(found, kept):
        sizes = [m.sum((1, 2)) for m in (masks, truth, masks & truth)]
        assert all((np.abs(areas - one).max(1) <= 2).any() for one in np.stack(sizes, axis=1))
    file.rename(tmp_path / "teacher.pt")
    assert figures.gallery(rows, None, "toy", path) is None
    (tmp_path / "teacher.pt").rename(file)


def test_lists_of_runs_know_the_methods_for_masks():
    assert {*results.OF_MASKS} == {*ABLE}


# ----- methods ------------------------------------------------------------------------------------
def test_the_teacher_is_asked_about_the_very_view(stars):
    """Maps are never kept: each step asks the network about the batch it has."""
    method = method_of(ckd, stars)
    method.teacher.folder = "anything"
    assert method.teacher.begin_epoch(method.args, stars["train"], 0) is None


def test_groupdro_weighs_losses_of_pictures(stars):
    method = method_of(groupdro, stars, "--by-class")
    assert method.weights.q.shape == (12,)  # classes of pictures and groups
    batch = next(batches(stars["train"], 32, seed=0))
    with torch.no_grad():
        losses = ckd.label_loss(method.student.train()(batch.images)[1], batch.labels)
    cells = batch.groups * 6 + stars["train"].labels[batch.index]
    torch.manual_seed(0)
    q = torch.full((12,), 1 / 12) * torch.exp(0.01 * groupdro.group_losses(losses, cells, 12))
    want = (q / q.sum()) @ groupdro.group_losses(losses, cells, 12)
    method = method_of(groupdro, stars, "--by-class")
    assert method.step(batch)["loss"].item() == pytest.approx(want.item(), rel=1e-5)


def test_swad_looks_at_the_worst_group_s_dice(stars):
    method = method_of(swad, stars)
    method.averaging.mean = [p.detach() for p in method.student.parameters()]
    method.end_epoch(0, {"loss": 0.5, "dice_worst_group": 0.8})
    assert method.averaging.values == [pytest.approx(0.2)]


def test_bird_s_penalty_is_the_gap_of_soft_dice(stars):
    batch = next(batches(stars["train"], 32, seed=0))
    logits = torch.randn(32, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    logits[batch.groups == 0] += (
        3 * torch.stack([-batch.labels, batch.labels], 1)[batch.groups == 0]
    )
    gap = bird.soft_deo(logits, batch.labels, batch.groups, torch.zeros(2, 2, 2))
    dice = ckd.soft_dice(logits, batch.labels)
    want = dice[batch.groups == 0].mean() - dice[batch.groups == 1].mean()
    assert want > 0.1 and gap.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["unet2", "transunet2", "lraspp_mobilenet_v3_large"])
def test_bird_differentiates_every_network_twice(stars, name):
    method = method_of(bird, stars, networks=("unet4", name))
    method.student.train()
    losses = method.step(next(batches(method.split, 32, seed=0, views="mirrored")))
    assert losses["phi_grad"] > 0 and torch.isfinite(losses["loss"])


def test_the_adversary_sees_the_mean_of_the_features(stars):
    method, seen = method_of(adversarial_kd, stars), []
    forward = type(method.adversary).forward
    method.adversary.forward = lambda x, y: seen.append((x, y)) or forward(method.adversary, x, y)
    batch = next(batches(stars["train"], 32, seed=0))
    method.student.train()
    method.step(batch)
    assert [x.shape for x, _ in seen] == [(32, method.student.width)] * 2
    assert torch.equal(seen[0][1], stars["train"].labels[batch.index])


@pytest.mark.parametrize("flag", ["--no-train-backbone", "--train-backbone"])
def test_fairdi_with_one_group_is_plain_distillation(stars, tmp_path, flag, monkeypatch, capsys):
    """One group, step 0 replaced by plain training: step 2 is ckd.py with that one teacher."""
    monkeypatch.setattr(fairdi, "FairScaling", fairdi.PlainTraining)
    data = regrouped(stars, lambda split: split.groups * 0, ["all"])
    args = segmenting(fairdi, "--out", str(tmp_path), "--student", "unet2", flag)
    args.epochs = args.teacher_epochs = 1
    torch.manual_seed(0)
    method = fairdi.Method(args, data, fairdi.Network(args, args.student, 2))
    assert "0 of 1 gains are above 0 (95 %)" in capsys.readouterr().out
    assert method.extra["gains"][0]["difference"] == 0  # its group is everybody
    views = batches(data["train"], 32, seed=0, views="mirrored")
    assert_step_2_is_plain_distillation(method, flag == "--train-backbone", views)


def test_a_gain_is_a_paired_difference_on_the_own_group(stars):
    split = stars["val"].subset(stars["val"].groups == 0)
    worse = np.stack(
        [np.full(len(split), 10), np.full(len(split), 10), np.arange(len(split)) % 10], 1
    )
    better = worse.copy()
    better[:, 2] += 1
    found = fairdi.gain(better.astype(np.int32), worse.astype(np.int32), split, 50)
    assert found["difference"] == pytest.approx(0.1) and found["low"] == pytest.approx(0.1)
    ## Subjects of several pictures, all of which are drawn together.
    subjects = [f"{math.isqrt(n)}" for n in range(len(split))]
    better[:5, 2] += 5
    given = better.astype(np.int32), worse.astype(np.int32)
    found = fairdi.gain(*given, replace(split, subjects=subjects), 50)
    weights = metrics.bootstrap_weights(n=len(split), replicates=50, clusters=subjects)
    draws = [np.average((better - worse)[:, 2] / 10, weights=w) for w in weights]
    assert [found["low"], found["high"]] == pytest.approx([*metrics.interval(draws=draws)])


def febs_batch():
    """Maps of two groups, of which the second is worse, and three groups in all."""
    rng = torch.Generator().manual_seed(0)
    masks = (torch.rand(6, 8, 8, generator=rng) < 0.4).long()
    signs = 2.0 * torch.stack([1 - 2 * masks, 2 * masks - 1], 1)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    signs[3:] += 2 * torch.randn(3, 2, 8, 8, generator=rng)
    return signs.requires_grad_(), masks, groups


def test_febs_as_published_looks_away_from_the_worse_group():
    """Gradient of a worse group over a better one: less than without weights."""
    logits, masks, groups = febs_batch()
    p = logits.softmax(1).flatten(2)
    t = F.one_hot(masks.flatten(1), 2).transpose(1, 2).float()
    ratios = []
    for loss in (fairdi.dice_losses(p, t).mean(), fairdi.febs_loss(logits, masks, groups, 2)):
        (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
        ratios.append((grad[3:].norm() / grad[:3].norm()).item())
    assert ratios[0] > 1 and ratios[1] < 0.7 * ratios[0]
    ## By hand.
    errors = [fairdi.dice_losses(p[rows], t[rows]).sum().item() for rows in (slice(3), slice(3, 6))]
    w = torch.tensor([np.tanh(1.0)] * 3 + [np.tanh(min(errors) / max(errors))] * 3).float()
    wp = w[:, None, None] * p
    want = 1 - (2 * (wp * t).sum((0, 2)) + 1e-5) / ((wp**2).sum((0, 2)) + t.sum((0, 2)) + 1e-5)
    found = fairdi.febs_loss(logits, masks, groups, 2)
    assert found.item() == pytest.approx(want.mean().item())
    slopes = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, want.mean())]
    torch.testing.assert_close(*slopes)  # none goes through the weights


def test_febs_as_published_is_1_without_gradient_where_a_group_is_absent():
    logits, masks, groups = febs_batch()
    loss = fairdi.febs_loss(logits, masks, groups, 3)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(1.0, abs=1e-4) and grad.abs().max() == 0


def test_febs_as_published_is_finite_where_a_group_is_segmented_without_an_error():
    """Then its error is 0 in float32, and that of all groups, divided by its own, was NaN."""
    logits, masks, groups = febs_batch()
    sure = 20.0 * torch.stack([1 - 2 * masks, 2 * masks - 1], 1)
    for perfect in (groups == 0, groups >= 0):
        maps = torch.where(perfect[:, None, None, None], sure, logits)
        loss = fairdi.febs_loss(maps, masks, groups, 2)
        (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert torch.isfinite(loss) and torch.isfinite(grad).all()


def test_febs_mended_looks_at_the_worse_group(stars):
    args = segmenting(fairdi, "--step0", "febs-mended")
    torch.manual_seed(0)
    method = fairdi.FairScaling(args, stars, fairdi.Network(args, "unet2", 2))
    method.saved["running"]["errors"].copy_(torch.tensor([0.1, 0.5]))
    train = stars["train"]
    batch = next(batches(train.subset(train.groups == 1), 32, seed=0))
    logits = copy.deepcopy(method.student).train()(batch.images)[1].detach()
    wrong = 1 - ckd.soft_dice(logits, batch.labels).mean().item()
    method.student.train()
    losses = method.step(batch)  # of group 1 alone: that of group 0 stays as it is
    errors = method.saved["running"]["errors"].tolist()
    assert errors == pytest.approx([0.1, 0.9 * 0.5 + 0.1 * wrong], rel=1e-5)
    weight = errors[1] / np.mean(errors)
    assert losses["loss"].item() == pytest.approx(weight * losses["loss_ce"].item(), rel=1e-5)


def test_febs_needs_masks(toy, tmp_path):
    args = fairdi.parse(["--smoke", "--device", "cpu", "--step0", "febs", "--out", str(tmp_path)])
    with pytest.raises(
        InputError, match="--step0 febs weighs a Dice loss: it needs --task segment"
    ):
        fairdi.Method(args, toy, fairdi.Network(args, "convnet2", 6))
