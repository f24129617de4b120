"""Tables come from result files alone and refuse to mix runs that cannot be compared."""

import contextlib
import copy
import csv
import gzip
import importlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from forked import ROOT
from sklearn.metrics import roc_auc_score

import figures
import metrics
import report
import results
import webpages
from data import DATASETS, InputError, load

USELESS = [((50, 0), (50, 0))] * 2  # of each group: true x predicted


def table_of(disparity):
    """Counts of two groups whose recalls are 80 % on average and differ so much in each class."""
    return [
        [[50 * r, 50 - 50 * r], [50 - 50 * r, 50 * r]]
        for r in (0.8 - disparity / 2, 0.8 + disparity / 2)
    ]


USUAL = {
    "dataset": "toy",
    "image_size": 32,
    "target": "label",
    "sensitive": "group",
    "fold": None,
    "teacher": "convnet32",
    "student": "convnet8",
    "epochs": 12,
    "teacher_epochs": 12,
    "batch_size": 64,
    "temperature": 4.0,
    "adversary_weight": 5.0,
    "smoke": False,
}


def result(script, seed=0, accuracy=0.8, disparity=0.2, counts=None, pictures="x", **own):
    """A result file's content, as far as reports look at it; `own` settings were changed."""
    shares = own.pop("class_shares", [0.5, 0.5])
    measured, counts = [name for name, _ in results.METRICS.values()], counts or table_of(disparity)
    test = dict.fromkeys(measured, 0.5) | {"accuracy": accuracy, "disparity": disparity}
    test |= {"recall": 0.8, "counts": counts, "auroc": None}
    test |= {f"{name}_corrected": value for name, value in test.items()}
    test |= {"n": 600, "interval": {}, "groups": [{"auroc": 0.5}] * 2}
    test["collapsed"] = metrics.has_collapsed(counts=np.array(counts))
    model = {"test": test, "epoch": 1, "network": "x", "parameters": 1000, "megabytes": 0.1}
    model |= {
        "class_shares": shares,
        "train": dict.fromkeys(("worst_cell", "worst_cell_corrected"), 0.9),
    }
    model["val"] = {"auroc": 0.8, "auroc_worst_group": 0.7, "collapsed": test["collapsed"]}
    times = {"epochs": [1.0], "teacher": 2.0, "total": 3.0}
    times |= {"device": "x86_64 CPU, 1 threads", "torch": "2.6.0+cpu"}
    return {
        "method": script,
        "settings": USUAL | {"seed": seed, "pictures": pictures} | own,
        "changed": {k: v for k, v in own.items() if k != "dataset" and v is not None},
        "classes": ["benign", "malignant"],
        "group_names": ["f", "m"],
        "log": [],
        "times": times,
        **{name: model for name in ("teacher", "last", *results.RULES)},
    }


def put(folder, made, name="default"):
    """Write a result as a script does; the folder of the run."""
    settings = made["settings"]
    path = folder / settings["dataset"] / made["method"] / f"{name}-seed{settings['seed']}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "result.json").write_text(json.dumps(made))
    return path


def changed_test(made, **values):
    """A result whose student has other values in its test."""
    last = made["last"]
    return made | {"last": last | {"test": last["test"] | values}}


def test_hours_of_a_resumed_run_are_those_of_all_its_epochs():
    """Older results tell the total since the last start."""
    made = result("ckd", seed=0)
    del made["teacher"]
    for total, hours in ((60, 3), (4 * 3600, 4)):
        times = made["times"] | {"epochs": [3600] * 3, "teacher": 0, "total": total}
        assert report.hours_of([made | {"times": times}]) == hours


@pytest.fixture
def folder(tmp_path):
    """Three seeds of CKD and RKD on the toy."""
    for script, shift in (("ckd", 0.0), ("rkd", 0.1)):
        for seed in range(3):
            put(tmp_path, result(script, seed, 0.8 + shift + seed / 100))
    put(tmp_path / "smoke", result("ckd", 9, 0.1, 0.1, smoke=True))
    put(tmp_path, result("ckd", 8, 0.1, 0.1, smoke=True))
    return tmp_path


def toy_rows(folder):
    return results.collect(folder)[("toy", "")]


def test_rows_are_means_over_seeds_with_intervals(folder):
    lines = report.layout_table("slides", toy_rows(folder)).markdown().split("\n")
    half = scipy.stats.t.ppf(0.975, 2) / np.sqrt(3)  # times the standard deviation, 1 point
    assert lines[3].startswith(f"| CKD | 81.0 ± {half:.1f} |")
    assert lines[4].startswith(f"| RKD | **91.0 ± {half:.1f}** |")
    assert lines[5:] == ["", "*decisions: largest output*"] and "nan" not in "".join(lines)


@pytest.mark.parametrize("script, more", [("ckd", {}), ("fairtune", {"source": "other"})])
def test_of_runs_that_differ_in_their_pictures_alone_the_newest_counts(
    tmp_path, capsys, script, more
):
    """A label that was corrected must not end all tables, and the older run must not be silent."""
    homes = [put(tmp_path, result(script))]
    homes.append(put(tmp_path, result(script, pictures="y", **more), "other"))
    for newest in homes + homes[:1]:
        for home in homes:
            os.utime(home / "result.json", (9, 2 if home == newest else 1))
        (run,) = results.read(tmp_path)
        assert run["arrays"][0].parent == newest
        (older,) = {*homes} - {newest}
        assert f"left out: {older}, which is older than {newest} (" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_a_sentence(folder, monkeypatch):
    (folder / "report").write_text("in its place")
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(folder)])
    with pytest.raises(InputError, match="report cannot be written .*: make room, or choose"):
        report.main()


def test_smoke_runs_are_left_out(folder):
    assert {seed for runs in toy_rows(folder).values() for _, seed in runs} == {0, 1, 2}


@pytest.mark.parametrize(
    ("script", "own", "name"),
    [
        ("ckd", {"alpha": 0.0}, "ERM"),
        ("ckd", {"alpha": 0.0, "temperature": 3.5}, "ERM"),
        ("ckd", {"balance": "cells", "alpha": 0.0}, "re-balancing"),
        ("bird", {}, "BIRD"),
        ("bird", {"fair_weight": 0.3}, "BIRD, μ = 0.3"),
        ("adversarial_kd", {"adversary_weight": 0.5}, "adversarial KD, λ = 0.5"),
        ("groupdro", {"by_class": True, "weight_step": 0.1}, "GroupDRO by class, η = 0.1"),
        ("mine", {"depth": 3}, "mine, depth = 3"),  # a reader's own script
    ],
)
def test_rows_are_named_by_what_was_changed(script, own, name):
    assert results.row_name(result(script, **own)) == name
    assert results.conditions(result(script, **own)) == ""
    small = result(script, epochs=3, fold=2, **own)
    assert results.row_name(small) == name and results.conditions(small) == "folds-epochs_3"


def test_folds_are_named_in_refusals_the_first_too():
    assert results.seeds_of({(fold, 7): None for fold in (0, 1)}) == "fold 0 seed 7, fold 1 seed 7"
    assert results.seeds_of({(0, seed): None for seed in (3, 4)}) == "3, 4"


def test_different_seeds_or_pictures_are_refused(folder):
    shutil.rmtree(folder / "toy" / "rkd" / "default-seed2")
    with pytest.raises(results.Refused, match=r"RKD has seeds 0, 1, CKD 0, 1, 2"):
        report.layout_table("slides", toy_rows(folder))
    put(folder, result("rkd", 2, pictures="y"))
    with pytest.raises(results.Refused, match="pictures of CKD is x, of RKD y"):
        report.layout_table("slides", toy_rows(folder))
    put(folder, result("rkd", 2, epochs=3))  # other conditions: a table of its own
    by_place = results.collect(folder)
    assert list(by_place) == [("toy", ""), ("toy", "epochs_3")]
    made, refused = report.tables(by_place, {})
    assert "RKD (2)" in made[("toy", ""), "slides"].notes[-1]  # it has fewer runs now
    assert (("toy", "epochs_3"), "overview") in made


def test_the_poster_s_layout_is_for_more_than_two_rows(tmp_path):
    for script, own in (("ckd", {}), ("ckd", {"alpha": 0.0}), ("bird", {})):
        for seed in range(2):
            put(tmp_path, result(script, seed, **own), f"default{len(own)}")
        made, _ = report.tables(results.collect(tmp_path), {})
        assert ((("toy", ""), "poster") in made) == (script == "bird")
    assert (("toy", ""), "slides") in made


@pytest.mark.parametrize("starts", ["aa", "ab"])
def test_tuning_is_compared_from_one_start(folder, starts):
    for mask, start in zip(("full", "search"), starts):
        for seed in range(3):
            made = result("fairtune", seed, mask=mask, trials=4 if mask == "full" else 20)
            put(folder, made | {"search": {"theta_0": start}}, f"mask_{mask}")
    made, refused = report.tables(results.collect(folder), {})
    overview = ("toy", ""), "overview"
    assert (overview in made) == (starts == "aa")
    assert ("different pre-trained weights" in refused.get(overview, "")) == (starts == "ab")


def test_fairtune_stands_beside_other_networks(folder):
    """Its transformer is no condition of a table; without other runs like it, it stands alone."""
    put(folder, result("ckd", epochs=3, student="convnet16"), "epochs_3")
    put(folder, result("fairtune", student="vit_tiny"))
    put(folder, result("fairtune", student="vit_tiny", epochs=3), "epochs_3")
    put(folder, result("fairtune", student="vit_tiny", epochs=4), "epochs_4")
    rows = {place[1]: list(rows) for place, rows in results.collect(folder).items()}
    assert rows == {
        "": ["CKD", "RKD", "FairTune"],
        "student_convnet16-epochs_3": ["CKD", "FairTune"],
        "student_vit_tiny-epochs_4": ["FairTune"],
    }


@pytest.mark.parametrize("bad", [False, True])
def test_collapsed_runs_are_marked_and_never_the_fairest(folder, bad):
    """One definition, metrics.has_collapsed, as the runs have stored it."""
    put(folder, changed_test(result("rkd", 1, 0.9, 0.0), collapsed=bad))
    table = report.layout_table("slides", toy_rows(folder)).markdown()
    assert ("RKD (1 of 3 collapsed)" in table) == bad
    line = next(line for line in table.split("\n") if "CKD |" in line)
    assert ("**20.0 ± 0.0**" in line) == bad  # RKD's disparity is lower


def test_rows_that_are_pretrained_say_so(folder):
    """Their students, or the teachers of students that have one; `weights` alone is the student."""
    for seed in range(3):
        plain = result("ckd", seed, alpha=0.0, teacher_weights="x.pt")
        put(folder, {k: part for k, part in plain.items() if k != "teacher"}, "plain")
        there = ("x.pt", "weights/x.pt", "/home/me/x.pt")[seed]  # is one file, in one table
        put(folder, result("ckd", seed, teacher_weights=there), "taught")
        put(folder, result("groupdro", seed, teacher_weights="x.pt", weights="y.pt"), "started")
        put(folder, result("fairtune", seed, teacher_weights="x.pt"))
    names = set()
    for rows in results.collect(folder).values():
        names |= {row[0] for row in report.layout_table("overview", rows).rows}
    assert {"ERM", "CKD", "RKD", "CKD (pre-trained teacher)", "GroupDRO (pre-trained)"} <= names
    assert {"FairTune (pre-trained)", "*the teacher* (pre-trained)"} <= names
    assert "FairTune" not in names
    rows = next(rows for rows in results.collect(folder).values() if "FairTune" in rows)
    assert report.headline_cell(rows["FairTune"], "", ("toy", ""), 3).endswith(" (pre-trained)")
    for seed in range(3):
        put(folder, result("fairtune", seed, mask="full", teacher_weights="x.pt"), "full")
    claims = [row[0] for row in report.claims_table(results.collect(folder)).rows]
    assert "FairTune: smaller gap than full fine-tuning (pre-trained)" in claims
    for student, teacher, words in (
        ("convnet8@64", "net.py:big", ""),  # of which nobody offers weights
        ("convnet8", "resnet18", "pre-trained teacher"),
        ("timm:x", "convnet8", "pre-trained"),
    ):
        run = result("ckd", pretrained=True, student=student, teacher=teacher)
        assert results.pretrained({(0, 0): run | {"teacher": {}}}) == words


def test_collapsed_is_what_the_counts_say_not_what_was_packed(tmp_path):
    """Results that were packed by an earlier definition have their own answer."""
    packed = tmp_path / "packed"
    packed.mkdir()
    made = result("ckd", counts=USELESS)
    line = results.lean(made, False) | {"arrays": {}}
    line["last"]["test"]["collapsed"] = False
    (packed / "toy.jsonl.gz").write_bytes(gzip.compress(json.dumps(line).encode()))
    (run,) = results.read(packed)
    assert run["last"]["test"]["collapsed"] is True


def test_relative_change_is_fieller_s():
    """At both ends of the interval, the interval of the mean of y - ρx just touches 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(50, 5, 6)
    y = 0.6 * x + rng.normal(0, 3, 6)
    change = results.relative_change(y, x)
    assert np.isclose(change.point, 100 * (y.mean() / x.mean() - 1))
    assert change.low < change.point < change.high
    for end in change[1:3]:
        _, low, high = metrics.seed_interval(values=y - (1 + end / 100) * x)
        assert min(abs(low), abs(high)) < 1e-4
    unsure = results.relative_change([1, 2, 3], [-1.0, 1, 2])  # the mean of x may be 0
    assert np.isnan(unsure.low)


def test_a_student_is_compared_with_its_own_teacher(folder):
    for seed in range(3):
        made = result("rkd", seed)
        put(folder, made | {"teacher": with_disparity(made["teacher"], 0.1)})
    table = report.layout_table("slides", toy_rows(folder))
    rows = {row[0]: dict(zip(table.header, row)) for row in table.rows}
    for name, points, percent in (("CKD", 0, 0), ("RKD", 10, 100)):
        assert np.isclose(rows[name]["disparity, − teacher"].point, points)
        assert np.isclose(rows[name]["change in %"].point, percent)


def test_a_relative_change_is_over_the_seeds_that_both_rows_have(folder):
    rows = toy_rows(folder)
    base, runs = rows["CKD"], {key: run for key, run in rows["RKD"].items() if key[1] > 0}
    both = {key: base[key] for key in runs}
    want = results.relative(runs, both, "disparity")
    assert len(base) > len(runs) > 1 and results.relative(runs, base, "disparity") == want


def test_the_rows_of_a_sweep(tmp_path):
    accuracy = {0.0: 0.8, 1.0: 0.795, 5.0: 0.78, 150.0: 0.8}
    disparity = {0.0: 0.4, 1.0: 0.2, 5.0: 0.1, 150.0: 0.0}
    for strength, seed in itertools.product(accuracy, range(3)):
        # the strongest has collapsed: perfectly fair, and useless
        counts = USELESS if strength > 100 else None
        values = accuracy[strength], disparity[strength] + seed / 100
        own = {} if strength == 5 else {"adversary_weight": strength}
        put(tmp_path, result("adversarial_kd", seed, *values, counts, **own), f"{strength}")
    table = report.layout_table("sweep", report.swept(toy_rows(tmp_path), "sweep"))
    assert [row[0] for row in table.rows] == ["0", "1", "5", "150 (3 of 3 collapsed)"]
    assert np.isclose(table.rows[1][-2].point, 100 * (0.21 / 0.41 - 1))


def answers(parity):
    """Counts of two groups, the second of which gets class 1 so much more often."""
    return [[[50 - 50 * s, 50 * s], [50 - 50 * s, 50 * s]] for s in (0.3, 0.3 + parity)]


def test_temperatures_stand_beside_the_teacher(tmp_path):
    parity = results.METRICS["parity"][0]
    for (n, temperature), seed in itertools.product(enumerate((1.0, 4.0, 20.0)), range(3)):
        own = {} if temperature == 4 else {"temperature": temperature}
        made = result("ckd", seed, 0.7 + n / 100, **own)
        teacher = changed_test(made, **{parity: 0.2}, counts=answers(0.2))["last"]
        parities = {parity: 0.3 - n / 10 + seed / 1e3, "counts": answers(0.3 - n / 10 + seed / 1e3)}
        made = changed_test(made, **parities) | {"teacher": teacher}
        put(tmp_path, made, f"temperature_{temperature}")
    rows = toy_rows(tmp_path)
    table = report.layout_table("temperature", report.swept(rows, "temperature"))
    assert [row[0] for row in table.rows] == ["*the teacher*", "1", "4", "20"]
    columns = dict(zip(table.header, zip(*table.rows)))
    assert columns["parity, − teacher"][0] == ""
    assert np.allclose([v.point for v in columns["parity, − teacher"][1:]], [10.1, 0.1, -9.9])
    assert columns["top-1, T − 1"][1] == ""
    assert np.allclose([v.point for v in columns["top-1, T − 1"][2:]], [1, 2])
    assert not any(r == 0 for r, _ in table.best())  # the teacher does not compete
    names = [
        row[0] for row in report.tables({("toy", ""): rows}, {})[0][("toy", ""), "overview"].rows
    ]
    assert "CKD, T = 1" in names and "CKD, T = 20" not in names
    claims = report.claims_table({("toy", ""): rows}).rows
    assert [row[-1] for row in claims if "T = 20" in row[0]] == ["confirmed"] * 2


# ----- pooled folds -------------------------------------------------------------------------------


def put_arrays(path, lesions, script, here=slice(None)):
    """The arrays of a run: some of the pictures, with a script's logits for all networks."""
    logits = dict.fromkeys(("teacher", "last", *results.RULES), lesions[script][here])
    np.savez(path / "logits.npz", **logits, **{k: lesions[k][here] for k in results.TRUTH})


def put_folds(folder, lesions, script, **own):
    for fold in range(5):
        path = put(folder, result(script, dataset="ham10000", fold=fold, **own), f"fold_{fold}")
        put_arrays(path, lesions, script, lesions["fold"] == fold)


@pytest.fixture
def folded(tmp_path, lesions):
    put_folds(tmp_path, lesions, "ckd", alpha=0.0)
    put_folds(tmp_path, lesions, "groupdro")
    results.opened.cache_clear()
    results.POOLS.clear()
    return tmp_path


def pooled_tables(folder):
    first, _ = results.trainings(results.collect(folder))
    return report.pooled_tables(first["ham10000", "folds"], {"last": ""}, {})


def test_a_second_training_marks_what_it_shows_too(folded, lesions):
    """² stands where both trainings show a difference in one direction, and nowhere else."""

    def tables():
        results.opened.cache_clear()
        results.POOLS.clear()
        first, second = results.trainings(results.collect(folded))
        made, refused = report.tables(first, second)
        table = made[("ham10000", "folds"), "pooled-differences"]
        assert not refused and len(made[("ham10000", "folds"), "pooled"].rows) == 2
        return dict(zip(table.header[1:], table.rows[0][1:])), table.notes, second

    def train_again(**logits):
        for script, own in (("ckd", {"alpha": 0.0}), ("groupdro", {})):
            put_folds(folded, lesions | logits, script, seed=1, **own)

    once, notes, second = tables()
    assert not second and not any(value.mark for value in once.values())
    train_again()
    twice, notes, second = tables()
    assert "²: a second training shows it, too" in notes
    assert second["ham10000", "folds"]["GroupDRO"].keys() == {(fold, 0) for fold in range(5)}
    shown = {name for name, value in once.items() if not value.low <= 0 <= value.high}
    assert shown and {name for name, value in twice.items() if str(value).endswith("²")} == shown
    assert {name: value._replace(mark="") for name, value in twice.items()} == once
    train_again(ckd=lesions["groupdro"])  # of which both rows are the same
    assert tables()[0] == once
    train_again(ckd=lesions["groupdro"], groupdro=lesions["ckd"])  # which shows the contrary
    assert tables()[0] == once
    table = report.repeated_table(*results.trainings(results.collect(folded)))[""]
    other = next(row for row in table.rows if row[0] == "GroupDRO")
    assert np.isclose(other[table.header.index("AUROC")].point, -once["AUROC, − ERM"].point)


def test_each_method_stands_beside_plain_training_on_every_data_set(folded, folder):
    """The differences of the pages of the data sets, side by side; and the poster's."""
    for seed in range(3):
        put(folder, result("ckd", seed, 0.7, 0.1 * seed, alpha=0.0), "plain")
    by_place = results.collect(folder)
    toy, page = by_place["toy", ""], report.tables(by_place, {})[0]
    (groupdro,) = page[("ham10000", "folds"), "pooled-differences"].rows
    header = page[("ham10000", "folds"), "pooled-differences"].header
    lines = csv.DictReader((ROOT / "results" / "published.csv").read_text().splitlines())
    poster = {(r["dataset"], r["method"], r["metric"]): float(r["percent"]) for r in lines}
    made = report.minus_erm_tables(by_place, {}, least=2)
    for metric in ("worst group", "mean-DEO"):
        table = made[f"-{metric.replace(' ', '-')}"]
        row = {name: dict(zip(table.header[1:], cells)) for name, *cells in table.rows}
        folds, seeds, *printed = table.header[1:]
        assert folds.startswith("HAM10000") and seeds.startswith("toy")
        assert row["GroupDRO"][folds] == str(groupdro[header.index(f"{metric}, − ERM")])
        if metric == "mean-DEO":  # these runs on the toy have no AUROC
            found = results.change(toy["CKD"], toy["ERM"], "mean_deo")
            assert row["CKD"][seeds] == str(found) != ""
        assert row["GroupDRO"][seeds] == "" and "ERM" not in row
        shown = [f"{data}, poster of BIRD" for data in ("CelebA", "CIFAR10-S")]
        assert sorted(printed, key=str.lower) == shown * (metric == "mean-DEO")
        if printed:
            bird, erm = (poster["celeba", name, metric] for name in ("BIRD", "ERM"))
            assert row["BIRD"]["CelebA, poster of BIRD"] == f"{bird - erm:.1f}"


def test_places_that_look_alike_keep_their_own_columns(folder):
    """They differ in the teacher alone, which a short heading does not name."""
    for name, better in (("convnet32", 0.0), ("convnet4", 0.1)):
        for script, own in (("ckd", {"alpha": 0.0}), ("rkd", {})):
            for seed in range(3):
                shown = 0.1 * seed + better * (script == "rkd")
                own |= {"teacher": name, "dataset": "cifar10s"}
                made = changed_test(result(script, seed, **own), mean_deo=shown)
                put(folder, made, f"{script}-{name}")
    by_place = results.collect(folder)
    table = report.minus_erm_tables(by_place, {}, least=2)["-mean-DEO"]
    (rkd,) = [dict(zip(table.header, row)) for row in table.rows if row[0] == "RKD"]
    for name, change in (("convnet32", "0.0 ± 0.0"), ("convnet4", "10.0 ± 0.0")):
        (head,) = [head for head in rkd if f"teacher {name}" in head]
        assert rkd[head] == change, head
    assert report.heads({("toy", ""): by_place["toy", ""]})[0].endswith("32 pixels, convnet8")


def test_rows_without_a_run_in_common_are_not_compared(tmp_path):
    put(tmp_path, result("ckd", 1)), put(tmp_path, result("ckd", 2)), put(tmp_path, result("rkd"))
    rows = toy_rows(tmp_path)
    table = report.layout_table("overview", rows)
    assert [dict(zip(table.header, row))["top-1, − CKD"] for row in table.rows] == [""] * 3
    with pytest.raises(results.Refused, match="a seed and fold that both rows have"):
        results.change(rows["RKD"], rows["CKD"], "accuracy")


def test_a_difference_of_teachers_is_told(folder):
    """Students are compared; where one had another teacher, trained alike, a note says so."""
    rows = toy_rows(folder)
    assert not [n for n in report.layout_table("overview", rows).notes if "teachers" in n]
    for seed in (0, 2):
        other = copy.deepcopy(rows["RKD"][0, seed])
        counts = np.array(other["teacher"]["test"]["counts"])
        other["teacher"]["test"]["counts"] = counts[..., ::-1].tolist()
        rows["RKD"][0, seed] = other
    told = "RKD: not the teachers of CKD in seeds 0, 2"
    assert told in report.layout_table("overview", rows).notes
    for seed in (0, 2):  # on purpose
        rows["RKD"][0, seed]["settings"]["teacher_balance"] = "cells"
    assert told not in report.layout_table("overview", rows).notes


def test_every_table_has_a_title_on_its_page(of_masks, folded, folder):
    """Also of second trainings, of masks too, so that none is made and shown nowhere."""
    every = of_masks | results.collect(folded) | results.collect(folder)
    made, refused = report.tables(every, every)
    assert not refused and {kind for place, kind in made if place == "all"} <= {*report.ACROSS}
    titles = {*report.KINDS, *report.ACROSS}
    assert {kind.removesuffix(report.LARGEST) for _, kind in made} <= titles
    text = report.pages(every, made, {})["claims.md"]
    for kind in ("repeated-pairs-masks", "repeated-masks", "repeated-pooled-differences"):
        assert f"## {report.ACROSS[kind]}" in text, kind


def inside_folds(lesions, script, rows):
    """AUROC of some pictures (N,), True or False, from pairs of pictures of one fold."""
    score, won, pairs = lesions[script].astype(float) @ [-1, 1], 0, 0
    for fold in np.unique(lesions["fold"][rows]):
        here = rows & (lesions["fold"] == fold)
        count = math.prod(np.bincount(lesions["labels"][here], minlength=2).tolist())
        won += count * roc_auc_score(lesions["labels"][here], score[here]) if count else 0
        pairs += count
    return won / pairs


def test_pooled_folds_test_every_picture_once(folded, lesions):
    made = pooled_tables(folded)
    table, differences = made[""], made["-differences"]
    assert [row[:2] for row in table.rows] == [["ERM", "600"], ["GroupDRO", "600"]]
    want = {}
    for script in ("ckd", "groupdro"):
        each = [inside_folds(lesions, script, lesions["groups"] == g) for g in (0, 1)]
        whole = inside_folds(lesions, script, lesions["groups"] >= 0)
        es = whole / (1 + sum(abs(a - whole) for a in each))
        want[script] = 100 * np.array([whole, min(each), max(each) - min(each), es])
    # percent: scores that tie here may differ in the last bit as probabilities
    near = {"atol": 2e-3}
    for row, script in zip(table.rows, want):
        assert np.allclose([v.point for v in row[2:6]], want[script], **near)
        assert all(v.low < v.point < v.high for v in row[2:4])
    (name, *cells) = differences.rows[0]
    assert name == "GroupDRO"
    assert np.allclose([v.point for v in cells[:4]], want["groupdro"] - want["ckd"], **near)
    # the same resamples for both: much narrower than the two intervals
    assert cells[0].high - cells[0].low < table.rows[0][2].high - table.rows[0][2].low
    # lesions are drawn whole: two pictures of one lesion make the interval wider than single ones
    single = metrics.bootstrap_weights(n=600)
    clustered = metrics.bootstrap_weights(n=600, clusters=np.sort(lesions["subjects"]))
    assert clustered[:, ::2].tolist() == clustered[:, 1::2].tolist() != single[:, 1::2].tolist()


def test_incomplete_folds_are_compared_on_the_same_pictures(folded, lesions):
    for fold in (2, 3, 4):
        shutil.rmtree(folded / "ham10000" / "groupdro" / f"fold_{fold}-seed0")
    made = pooled_tables(folded)
    names = [row[:2] for row in made[""].rows]
    assert names == [["ERM", "600"], ["GroupDRO (folds 0, 1)", "240"]]
    here = lesions["fold"] < 2
    area = [inside_folds(lesions, script, here) for script in ("ckd", "groupdro")]
    assert np.isclose(made[""].rows[1][2].point, 100 * area[1])
    assert len(made["-differences"].rows) == 1
    assert np.isclose(made["-differences"].rows[0][1].point, 100 * (area[1] - area[0]))


def test_fairdi_s_comparison_has_both_points(folded):
    made, refused = report.tables(results.collect(folded), {})
    names = [row[0] for row in made[("ham10000", "folds"), "fairdi"].rows]
    assert names == [
        f"{n}, best {p}" for n in ("ERM", "GroupDRO") for p in ("overall", "worst group")
    ]
    assert not refused


def test_pooled_rows_are_of_the_epoch_that_they_name(folded, lesions):
    """GroupDRO's best epoch overall says what ERM's says, its last one does not."""
    for fold in range(5):
        path = folded / "ham10000" / "groupdro" / f"fold_{fold}-seed0" / "logits.npz"
        best = {"best_overall": lesions["ckd"][lesions["fold"] == fold]}
        np.savez(path, **dict(np.load(path)) | best)
    rows = results.collect(folded)["ham10000", "folds"]
    made = report.pooled_tables(rows, {"best_overall": ""}, {})
    erm, groupdro = (row[1:] for row in made[""].rows)
    assert groupdro == erm and {v.point for v in made["-differences"].rows[0][1:]} == {0}


def test_other_pictures_are_not_paired(folded):
    path = folded / "ham10000" / "groupdro" / "fold_1-seed0" / "logits.npz"
    content = dict(np.load(path))
    content["labels"] = 1 - content["labels"]
    np.savez(path, **content)
    with pytest.raises(results.Refused, match="same test pictures"):
        pooled_tables(folded)


@pytest.mark.parametrize("content", [b"no archive", b"PK\x03\x04 the beginning of one", None])
def test_arrays_that_cannot_be_read_are_named(folded, content):
    path = folded / "ham10000" / "groupdro" / "fold_1-seed0" / "logits.npz"
    path.write_bytes(content) if content else path.unlink()
    with pytest.raises(results.Refused, match=r"fold_1-seed0.logits.npz cannot be read.*groupdro"):
        pooled_tables(folded)


def test_a_picture_is_tested_once(folded):
    path = folded / "ham10000" / "groupdro"
    shutil.copy(path / "fold_0-seed0" / "logits.npz", path / "fold_1-seed0" / "logits.npz")
    with pytest.raises(results.Refused, match=r"tested twice in folds \[0, 1, 2, 3, 4\]"):
        pooled_tables(folded)


# ----- two rules of decisions ---------------------------------------------------------------------


def test_the_corrected_rule_is_main_where_a_class_is_rare(tmp_path):
    """Under half of an equal share, of whatever a run was trained on."""
    for number, (shares, end) in enumerate(
        (
            ((0.74, 0.26), ""),
            ((0.76, 0.24), "_corrected"),
            ((0.5, 0.3, 0.2), ""),
            ((0.6, 0.25, 0.15), "_corrected"),
        )
    ):
        folder = tmp_path / f"{number}"
        for seed in range(3):
            made = result("ckd", seed, class_shares=list(shares))
            made = changed_test(made, accuracy_corrected=0.6 + seed / 100)
            put(folder, made)
            put(folder, result("rkd", seed, balance="cells"), "balance")
        rows = toy_rows(folder)
        assert (
            results.main_rule(rows) == end
            and results.main_rule({"RKD": rows["RKD, balance = cells"]}) == ""
        )
        put(folder, result("rkd", 0, class_shares=list(shares)))
        rows = {name: toy_rows(folder)[name] for name in ("CKD", "RKD, balance = cells")}
        made, _ = report.tables({("toy", ""): rows}, {})
        assert ((("toy", ""), "overview-largest") in made) == bool(end)
        table = made[("toy", ""), "overview"]
        assert np.isclose(table.rows[1][1].point, 61 if end else 80)
        assert table.notes == ["decisions: prior-corrected" if end else "decisions: largest output"]
        if end:
            plain = made[("toy", ""), "overview-largest"]
            assert plain.rows[1][1].point == 80 and plain.notes == ["decisions: largest output"]
            page = report.pages({("toy", ""): rows}, made, {})["toy.md"]
            assert page.index("### Everything\n") < page.index("### Everything, at the largest")


def test_weights_that_move_class_shares_make_no_class_rare(folder):
    put(folder, result("groupdro", 0, by_class=True, class_shares=[0.9, 0.1]))
    assert results.main_rule(toy_rows(folder)) == ""


def test_pooled_folds_are_corrected_by_the_shares_of_their_own_models(tmp_path, lesions):
    """Each picture's logits minus the logarithms of the shares of its fold."""
    shares = np.array([[0.9 - fold / 50, 0.1 + fold / 50] for fold in range(5)])
    for fold in range(5):
        made = result(
            "ckd", dataset="ham10000", fold=fold, alpha=0.0, class_shares=shares[fold].tolist()
        )
        made["teacher"] = made["teacher"] | {"class_shares": [0.5, 0.5]}
        put_arrays(put(tmp_path, made, f"fold_{fold}"), lesions, "ckd", lesions["fold"] == fold)
    results.opened.cache_clear()
    results.POOLS.clear()
    rows = results.collect(tmp_path)["ham10000", "folds"]
    said = (lesions["ckd"].astype(float) - np.log(shares[lesions["fold"]])).argmax(1)
    counts = metrics.confusion(
        labels=lesions["labels"],
        groups=lesions["groups"],
        predictions=said,
        num_classes=2,
        num_groups=2,
    )
    want = 100 * metrics.deo(counts=counts)[1]
    deo = "mean_deo", "mean_deo_corrected"
    assert np.isclose(results.point(rows["ERM"], deo[1], pooled=True), want)
    taught = [results.point(rows["ERM"], metric, "teacher", pooled=True) for metric in deo]
    assert taught[0] == taught[1]
    table = report.pooled_tables(rows, {"last": ""}, {})[""]
    (row,) = table.rows
    columns = dict(zip(table.header, row))
    assert np.isclose(columns["mean-DEO"].point, want)
    plain = results.point(rows["ERM"], "mean_deo", pooled=True)
    assert np.isclose(columns["mean-DEO, largest output"].point, plain) and abs(plain - want) > 0.1


def test_a_pooled_gap_stands_beside_its_signed_difference(folded):
    """m minus f, whose interval may hold 0; the gap's cannot."""
    table = pooled_tables(folded)[""]
    for row in table.rows:
        columns = dict(zip(table.header, row))
        signed = columns["AUROC, m − f"]
        assert np.isclose(signed.point, columns["AUROC, m"].point - columns["AUROC, f"].point)
        assert signed.low < signed.point < 0 <= columns["gap"].low  # f is ahead
        assert str(columns["train worst cell"]) == "90.0 ± 0.0"


def test_tables_say_what_no_test_set_has(folder):
    """The second group has no malignant picture."""
    made = result("rkd", 1, counts=[[[40, 10], [10, 40]], [[40, 10], [0, 0]]])
    put(folder, made)
    text = report.layout_table("slides", toy_rows(folder)).markdown()
    assert "*a test set has no picture of malignant, m: means leave it out*" in text


def test_some_rows_do_not_tell_how_well_they_learnt_their_pictures(folder):
    """A blank, not a zero."""
    made = result("rkd", 1)
    made["last"] = {k: v for k, v in made["last"].items() if k != "train"}
    put(folder, made)
    table = report.layout_table("slides", toy_rows(folder))
    assert [str(row[-1]) for row in table.rows] == ["90.0 ± 0.0", "90.0 ± 0.0", ""]


# ----- masks --------------------------------------------------------------------------------------


def areas_of(better, seed):
    """Areas (200, 3) of two pictures each of 100 lesions, and what is true of them.

    better    by how much the second group has been helped; class 2 is hard, and it has more of it
    """
    rng, subjects = np.random.default_rng(5), np.arange(200) // 2
    groups = rng.integers(0, 2, 100)[subjects]
    labels = np.where(rng.random(100) < 0.3 + 0.4 * rng.integers(0, 2, 100), 2, 0)[subjects]
    labels = np.where(subjects % 5 == 0, 1, labels)
    true, hard = rng.integers(100, 400, 200), rng.random(200)
    noise = np.random.default_rng((seed, int(1000 * (1 + better)))).random(200)
    missed = 0.1 + 0.2 * hard + 0.1 * (labels == 2) + 0.08 * groups * (1 - better) + 0.02 * noise
    both = (true * (1 - missed)).astype(int)
    truth = {"labels": labels, "groups": groups, "subjects": np.array([f"l{s}" for s in subjects])}
    truth["ids"] = np.array([f"p{n:03}" for n in range(200)])
    return np.stack([both + 10, true, both], axis=1).astype(np.int32), truth


FIRST_STEPS = ("fis", "fis_best_overall", "fis_best_worst_group", "teacher_0", "teacher_1")


def put_masks(folder, script, better, fold=None, seed=0, more=(), **own):
    """A run on masks, as the scripts leave it; of a fold the pictures of a fifth of the lesions."""
    data = {"dataset": "ham10000", "sensitive": "age"} if fold is not None else {}
    made, arrays = result(script, seed, task="segment", fold=fold, **data, **own), {}
    del made["changed"]["task"]
    made |= {"classes": ["akiec", "mel", "nv"], "group_names": ["age<=60", "age>60"]}
    for k, name in enumerate(("teacher", "last", *results.RULES, *more)):
        more_yet = {"teacher": -0.1, "teacher_0": 0.8, "teacher_1": 0.8}.get(name, k / 100)
        areas, truth = areas_of(better + more_yet, seed)
        here = np.isin(
            [int(s[1:]) % 5 for s in truth["subjects"]], range(5) if fold is None else fold
        )
        arrays |= {name: areas[here]} | {k: values[here] for k, values in truth.items()}
        given = {k: arrays[k] for k in ("labels", "groups")} | {"num_classes": 3, "num_groups": 2}
        test = metrics.evaluate_masks(areas=areas[here], **given, replicates=20)
        made[name] = made["last"] | dict.fromkeys(("train", "val", "test"), test)
    if more:
        gain = {"difference": 0.005 * (-1) ** (fold or seed), "low": -0.01, "high": 0.02}
        made["gains"] = [{"group": name} | gain for name in made["group_names"]]
    name = "-".join(f"{k}_{v}" for k, v in own.items()) or "default"
    path = folder / results.data_of(made) / script / f"{name}-{fold}-seed{seed}"
    path.mkdir(parents=True)
    (path / "result.json").write_text(json.dumps(made))
    np.savez(path / "logits.npz", **arrays)


ROWS_OF_MASKS = (
    ("ckd", 0, {"alpha": 0.0}),
    ("ckd", 0.2, {}),
    ("groupdro", 0.4, {}),
    ("adversarial_kd", 0.3, {}),
    ("fairdi", 0.1, {}),
    ("fairdi", -0.2, {"step0": "febs"}),
    ("fairdi", 0.5, {"step0": "febs-mended"}),
)


def put_all_masks(folder):
    """Five folds, and three seeds of the toy, of some rows of masks."""
    for script, better, own in ROWS_OF_MASKS:
        more = FIRST_STEPS if script == "fairdi" else ()
        for fold in range(5):
            put_masks(folder, script, better, fold, more=more, **own)
        for seed in range(3):
            put_masks(folder, script, better, None, seed, more, **own)
    return folder


@pytest.fixture(scope="session")
def masks(tmp_path_factory):
    return put_all_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="session")
def of_masks(masks):
    """Their rows, by place."""
    return results.collect(masks)


ALL_ROWS = ["ERM", "CKD", "adversarial KD", "GroupDRO", "FIS", "FEBS", "FEBS, mended", "FairDi"]
ALL_ROWS += ["FairDi, FEBS", "FairDi, FEBS mended", results.CEILING]
FOLDS_OF_MASKS = "ham10000-segment", "folds-sensitive_age"


def test_masks_of_folds_are_pooled_and_compared(of_masks):
    """Each picture once; Dice is its mean; gaps have a sign and, standardised, no case mix."""
    assert {place: [*rows] for place, rows in of_masks.items()} == {
        FOLDS_OF_MASKS: ALL_ROWS,
        ("toy-segment", ""): ALL_ROWS,
    }
    made, refused = report.tables(of_masks, {})
    assert not refused
    table = made[FOLDS_OF_MASKS, "pooled"]
    rows = {row[0]: dict(zip(table.header, row)) for row in table.rows}
    assert [*rows] == ["*the teacher*", *ALL_ROWS]
    teacher = of_masks[FOLDS_OF_MASKS]["CKD"]
    want = results.cell(teacher, "dice", "teacher", pooled=True)
    assert rows["*the teacher*"]["Dice"] == want
    areas, truth = areas_of(0.01, 0)  # of ERM's student
    given = {"labels": truth["labels"], "groups": truth["groups"]}
    want = metrics.evaluate_masks(
        areas=areas, **given, clusters=truth["subjects"], num_classes=3, num_groups=2
    )
    shown = {k: m for k, (m, _) in results.MASKS.items() if k in table.header}
    gap = "age>60 − age<=60"
    shown |= {gap: "dice_difference", f"{gap}, standardised": "dice_difference_standardised"}
    assert rows["ERM"]["n"] == "200" and len(shown) == 8
    for column, metric in shown.items():
        value = rows["ERM"][column]
        assert np.isclose(value.point, 100 * want[metric]), column
        assert np.allclose((value.low, value.high), 100 * np.array(want["interval"][metric])), (
            column
        )
    assert rows["ERM"][gap].point < rows["ERM"][f"{gap}, standardised"].point < 0
    best = {table.rows[r][0] for r, c in table.best() if table.header[c] == "worst Dice"}
    assert not [
        r for r, c in table.best() if table.header[c] == "SER"
    ]  # a ratio of bad is no merit
    assert best == {"FEBS, mended"}  # and never the ceiling, which is better
    assert rows[results.CEILING]["worst Dice"].point > rows["FEBS, mended"]["worst Dice"].point
    differences = made[FOLDS_OF_MASKS, "pooled-differences"]
    compared = ["*the teacher*", *(name for name in ALL_ROWS if name != "ERM")]
    assert [row[0] for row in differences.rows] == compared
    row = next(row for row in differences.rows if row[0] == "GroupDRO")
    change = rows["GroupDRO"]["Dice"].point - rows["ERM"]["Dice"].point
    assert differences.header[1] == "Dice, − ERM" and np.isclose(row[1].point, change)
    assert "FairDi: of no teacher a gain on its own group is shown" in table.notes
    (young, old) = made[FOLDS_OF_MASKS, "gains"].rows
    assert [str(v) for v in young[2:4]] == ["0.5 [-1.0, 2.0]", "-0.5 [-1.0, 2.0]"]
    assert young[0] == "age<=60" and young[1].low < young[1].point < young[1].high


def test_masks_over_seeds_have_a_table(of_masks):
    made, _ = report.tables(of_masks, {})
    table = made[("toy-segment", ""), "masks"]
    rows = {row[0]: dict(zip(table.header, row)) for row in table.rows}
    assert [*rows] == ["*the teacher*", *ALL_ROWS]
    runs = of_masks["toy-segment", ""]["GroupDRO"]
    dice = [100 * runs[0, seed]["last"]["test"]["dice"] for seed in range(3)]
    assert np.isclose(rows["GroupDRO"]["Dice"].point, np.mean(dice))
    assert rows["GroupDRO"]["Dice gap, − ERM"].high < 0 < rows["FEBS"]["Dice gap, − ERM"].low
    gap = rows["ERM"]["age>60 − age<=60"]
    assert np.isclose(gap.point, -rows["ERM"]["Dice gap"].point) and gap.style == "±"
    assert not any("decisions" in note for note in table.notes)
    kinds = {kind for place, kind in made if place == ("toy-segment", "")}
    assert kinds == {"masks", "gains"}


def test_packed_masks_give_the_same_tables(masks, of_masks, tmp_path, monkeypatch, capsys):
    packed = tmp_path / "results"
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(masks), "--pack"])
    report.main()
    assert (
        f"packed the runs of ham10000-segment, toy-segment in {masks} " in capsys.readouterr().out
    )
    names = {path.name for path in packed.iterdir()}
    assert names == {
        f"{d}-segment.{end}" for d in ("ham10000", "toy") for end in ("npz", "jsonl.gz")
    }
    fresh, again = (report.tables(rows, {}) for rows in (of_masks, results.collect(packed)))
    texts = [{key: t.markdown() for key, t in made.items()} for made, _ in (fresh, again)]
    assert texts[0] == texts[1] and not again[1]
    before = {path: path.read_bytes() for path in packed.iterdir()}
    results.pack(tmp_path / "nothing", packed)
    assert {path: path.read_bytes() for path in packed.glob("*.jsonl.gz")}.items() <= before.items()


def test_claims_about_masks_are_judged_by_dice_alone(of_masks, folder):
    rows = report.claims_table(of_masks | results.collect(folder)).rows
    verdicts = {(row[0].partition(": ")[2], row[1]): row[-1] for row in rows if "masks" in row[0]}
    folds = "HAM10000, masks, folds, sensitive age"
    ## All folds together are one training, however many pictures and folds there are.
    assert verdicts["GroupDRO has a smaller gap than ERM", folds] == "seen once"
    assert verdicts["FEBS has a higher ES-Dice than ERM", folds] == "the contrary seen once"
    assert verdicts["a student is less fair than its teacher", folds] == "the contrary seen once"
    assert all((", masks" in row[1]) == ("masks" in row[0]) for row in rows)
    made, _ = report.tables(of_masks | results.collect(folder), {})
    other = " (other teachers)"  # as these made-up runs have
    pairs = {row[0].removesuffix(other): row for row in made["all", "pairs-masks"].rows}
    assert pairs["FEBS, mended − FEBS"][6].high < 0 and "adversarial KD − CKD" in pairs
    assert ("all", "pairs") not in made  # the other runs have none
    inflated = {row[0]: row[1:] for row in made["all", "inflation"].rows}
    assert inflated["RKD"][:2] == ["", ""] and str(inflated["CKD"][2]) == "0.0 ± 0.0"
    assert float(inflated["GroupDRO"][0].split()[0]) < 0 and "[" in inflated["GroupDRO"][0]


def test_ranks_of_masks_are_theirs(of_masks, folder):
    for metric in ("Dice", "worst Dice"):
        names, scores, lost, _ = report.rank_blocks(of_masks | results.collect(folder), metric)
        expected = ["ERM", "CKD", "adversarial KD", "GroupDRO", "FIS", "FEBS", "FairDi"]
        assert names == expected and scores.shape == (1, 7) and not lost
    assert len(report.rank_blocks(of_masks, "AUROC")[1]) == 0


def test_commands_for_masks(of_masks):
    commands = [row[1] for row in report.made_table(of_masks).rows]
    only, age = "--only adversarial_kd ckd fairdi groupdro", "-- --sensitive age"
    assert commands == [
        f"`bash run_all.sh --dataset ham10000 --data-dir DIR --task segment {only} {age}`",
        f"`bash run_all.sh --task segment --seeds 3 {only}`",
    ]


@pytest.mark.parametrize("source", ["csv", "cifar10s"])
def test_what_fairtune_learnt_first_is_a_command_of_its_own(source):
    other = {"source": source, "teacher_epochs": 20}
    runs = [result("ckd", 0, fold=0), result("ckd", 0, fold=1)]
    runs += [result("fairtune", 0, fold=fold, **other) for fold in (0, 1)]
    one, two = report.commands_of(("ham10000", "folds"), runs).split(" and ")
    assert "--source" not in one and "--only ckd" in one
    said = "" if source == "csv" else f"--source {source} "
    assert f"{said}--source-dir DIR2 --only fairtune -- --teacher-epochs 20" in two


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_every_group_is_shown_where_there_are_more_than_two(tmp_path, task):
    for seed in range(3):
        made = result("ckd", seed, **({} if task == "classify" else {"task": task}))
        made["changed"] = {}
        groups = [{"auroc": 0.5 + g / 10, "dice": 0.6 + g / 10} for g in range(3)]
        made = changed_test(made, groups=groups) | {"group_names": ["a", "b", "c"]}
        made["teacher"] = made["last"]
        path = tmp_path / results.data_of(made) / "ckd" / f"{seed}"
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps(made))
    ((_, rows),) = results.collect(tmp_path).items()
    table = report.layout_table("masks" if task == "segment" else "overview", rows)
    columns = dict(zip(table.header, table.rows[-1]))
    if task == "classify":
        assert columns["AUROC of groups"] == "a 50.0, b 60.0, c 70.0"
    else:
        assert columns["Dice of groups"] == "a 60.0, b 70.0, c 80.0"
        assert "b − a" not in columns and np.isclose(columns["Dice gap"].point, 50)


# ----- packing, pages and the command -------------------------------------------------------------


def test_packed_results_give_the_same_tables(folded, tmp_path):
    packed = tmp_path / "packed"
    results.pack(folded, packed)
    assert {path.name for path in packed.iterdir()} == {"ham10000.jsonl.gz", "ham10000.npz"}
    fresh, again = (report.tables(results.collect(path), {}) for path in (folded, packed))
    assert [t.markdown() for t in fresh[0].values()] == [t.markdown() for t in again[0].values()]
    assert len(fresh[0]) == 6 and not fresh[1]
    with np.load(packed / "ham10000.npz") as file:  # each distinct array once
        contents = [array.tobytes() for array in file.values()]
    assert len(contents) == len(set(contents)) == 5 * (2 + len(results.TRUTH))


def test_packing_adds_runs_and_replaces_equal_ones(folder, lesions, tmp_path):
    packed = tmp_path / "packed"
    put_arrays(folder / "toy" / "ckd" / "default-seed0", lesions, "ckd")  # a figure shows them
    results.pack(folder, packed)
    before = (packed / "toy.jsonl.gz").read_bytes()
    results.pack(tmp_path / "nothing", packed)
    assert (packed / "toy.jsonl.gz").read_bytes() == before  # 12 digits stay 12 digits
    put(tmp_path / "more", changed_test(result("rkd", 2), auroc_worst_group=0.123))
    put_arrays(
        put(tmp_path / "more", result("kdpp", 0)), lesions | {"kdpp": lesions["ckd"]}, "kdpp"
    )
    results.pack(tmp_path / "more", packed)
    rows = toy_rows(packed)
    assert {name: len(runs) for name, runs in rows.items()} == {"CKD": 3, "RKD": 3, "KD++": 1}
    assert np.allclose(results.values(rows["RKD"], "auroc_worst_group"), [50, 50, 12.3])


def test_another_seed_does_not_throw_away_the_logits_of_folds(folded, tmp_path):
    packed = tmp_path / "packed"
    results.pack(folded, packed)
    more = result("groupdro", 1, dataset="ham10000", fold=0)
    shutil.copy(
        folded / "ham10000" / "groupdro" / "fold_0-seed0" / "logits.npz",
        put(tmp_path / "more", more, "fold_0"),
    )
    results.pack(tmp_path / "more", packed)
    assert len(pooled_tables(packed)["-differences"].rows) == 1


def test_of_a_second_training_chosen_epochs_are_not_packed(lesions, tmp_path):
    """No table or figure reads their answers; of the first, two points are shown."""
    for seed, fold in itertools.product(range(2), range(5)):
        made = result("groupdro", seed, dataset="ham10000", fold=fold)
        path = put(tmp_path / "runs", made, f"fold_{fold}")
        put_arrays(path, lesions, "groupdro", lesions["fold"] == fold)
    results.pack(tmp_path / "runs", tmp_path / "packed")
    runs = results.collect(tmp_path / "packed")["ham10000", "folds"]["GroupDRO"]
    kept = {key: run["arrays"][1].keys() - {*results.TRUTH} for key, run in runs.items()}
    both = {"teacher", "last"}, {"teacher", "last", *results.RULES}
    assert kept == {(fold, seed): both[seed == 0] for seed in range(2) for fold in range(5)}


def test_pictures_of_celeba_are_packed_without_their_names(lesions, tmp_path):
    """In another order, persons too, which is the same for all runs: they can be paired."""
    told_apart = np.outer(np.arange(600) / 4, [0, 1]).astype(np.float16)
    lesions = lesions | {"ckd": told_apart}
    for script in ("ckd", "groupdro"):
        path = put(tmp_path / "runs", result(script, dataset="celeba", sensitive="Male"))
        put_arrays(path, lesions, script)
    results.pack(tmp_path / "runs", tmp_path)
    results.opened.cache_clear()
    (rows,) = results.collect(tmp_path).values()
    names = ("ids", "subjects", "labels", "groups", "last")
    ckd, dro = (dict(zip(names, results.arrays(rows[n][0, 0], names))) for n in ("CKD", "GroupDRO"))
    assert all(np.array_equal(ckd[name], dro[name]) for name in names[:-1])
    assert ckd["ids"].tolist() == [f"{n:05}" for n in range(600)]
    assert (ckd["labels"] != lesions["labels"]).any() and len({*ckd["subjects"]}) == 300
    order = (4 * ckd["last"][:, 1]).astype(int)
    for name in ("labels", "groups"):
        assert np.array_equal(ckd[name], lesions[name][order])
    assert np.array_equal(dro["last"], results.shifted(lesions["groupdro"])[order])
    pairs = {*zip(ckd["subjects"].tolist(), lesions["subjects"][order].tolist())}
    assert len(pairs) == 300  # one number for each person


def test_a_weight_that_is_in_no_grid_takes_no_logits_from_those_that_are(lesions, tmp_path):
    """λ = 0 of the sweep has two seeds, the four weights of the grid one."""
    for weight, seed in [(float(w), 0) for w in results.GRID["adversarial_kd"][1]] + [
        (0.0, 0),
        (0.0, 1),
    ]:
        made = result("adversarial_kd", seed, adversary_weight=weight)
        put_arrays(put(tmp_path / "runs", made, f"{weight}"), lesions, "ckd")
    results.pack(tmp_path / "runs", tmp_path / "packed")
    results.opened.cache_clear()
    (rows,) = results.collect(tmp_path / "packed").values()
    kept = {name: "last" in runs[0, 0]["arrays"][1] for name, runs in rows.items()}
    assert kept.pop("adversarial KD, λ = 0") is False and len(kept) == 4 and all(kept.values())


def test_packing_finds_second_trainings_as_tables_do(lesions, tmp_path):
    """FIS, step 0 of FairDi, is a row that counts, too."""
    for fold in range(5):
        here = lesions["fold"] == fold
        for script, seed in (("ckd", 0), ("fairdi", 1), ("groupdro", 0), ("groupdro", 1)):
            made = result(script, seed, dataset="ham10000", fold=fold)
            if script == "fairdi":
                made |= dict.fromkeys(FIRST_STEPS[:3], made["last"])
            path = put(tmp_path / "runs", made, f"fold_{fold}")
            names = ("teacher", "last", *results.RULES, *FIRST_STEPS[:3] * (script == "fairdi"))
            logits = dict.fromkeys(names, lesions["ckd"][here])
            np.savez(path / "logits.npz", **logits, **{k: lesions[k][here] for k in results.TRUTH})
    results.pack(tmp_path / "runs", tmp_path / "packed")
    results.opened.cache_clear()
    for where in ("runs", "packed"):
        first, _ = results.trainings(results.collect(tmp_path / where))
        (rows,) = first.values()
        for name in ("GroupDRO", "FIS", "FairDi", "CKD"):
            assert all(results.kept(rows[name], rule) for rule in results.RULES), (where, name)


def test_what_is_packed_keeps_its_arrays_when_runs_are_added(lesions, tmp_path):
    """A second seed of one row takes no logits from the others, nor from its first seed."""
    packed = tmp_path / "packed"
    for seed, scripts in ((0, ("rkd", "groupdro")), (1, ("rkd",))):
        for script in scripts:
            path = put(tmp_path / f"seed {seed}", result(script, seed, dataset="cifar10s"))
            put_arrays(path, lesions | {"rkd": lesions["ckd"]}, script)
        results.pack(tmp_path / f"seed {seed}", packed)
        results.opened.cache_clear()
    rows = results.collect(packed)["cifar10s", ""]
    assert sorted(rows["RKD"]) == [(0, 0), (0, 1)]
    for row in ("RKD", "GroupDRO"):
        logits, *_ = results.arrays(rows[row][0, 0], ("last", *results.TRUTH))
        want = lesions["ckd" if row == "RKD" else "groupdro"]
        assert np.array_equal(logits[:, 1] - logits[:, 0], np.diff(want.astype(np.float32))[:, 0])
        assert not logits[:, 0].any()  # of two logits their difference says all
    with pytest.raises(results.Refused, match="lacks the test logits of RKD"):
        results.arrays(rows["RKD"][0, 1], ("last",))


def test_conditions_are_all_settings_that_every_script_has():
    """A setting that ckd.py has and that no table knows would make a row of its own."""
    ckd = importlib.import_module("ckd")
    every = {setting for name in DATASETS for setting in ckd.chosen(ckd.parse(["--dataset", name]))}
    known = {*results.CONDITIONS, "balance", "alpha", "temperature", "dataset", "fold", "seed"}
    known.add("teacher_balance")  # like balance it makes a row
    known.add("task")  # runs on masks are another data set, `data_of`
    assert every == known


def test_folders_of_ones_own_are_data_sets_of_their_own(pictures, tmp_path):
    """They stand apart, under the names of their folders or tables; a named subject is no row."""
    shutil.copy(pictures / "labels.csv", pictures / "skin.v2.csv")
    moved = shutil.copytree(pictures, tmp_path / "half of them")
    kept = {"pictures": pictures, "half_of_them": moved, "skin_v2": pictures / "skin.v2.csv"}
    (tmp_path / "packed").mkdir()
    for word, place in kept.items():
        notes = load("csv", place, 16, subject="subject").notes
        notes["left out: no label"] = ["patient_7.png"]
        for seed in range(2):
            made = result("ckd", seed, alpha=0.0, dataset="csv", subject="subject")
            put(tmp_path / "runs", made | {"notes": notes}, word)
    results.pack(tmp_path / "runs", tmp_path / "packed")
    for path in (tmp_path / "packed").glob("*.jsonl.gz"):
        assert b"patient_7" not in gzip.decompress(path.read_bytes())
    for folder in ("runs", "packed"):
        by_place = results.collect(tmp_path / folder)
        titles = {data: results.scene(rows) for (data, _), rows in by_place.items()}
        assert titles.keys() == {f"csv-{word}" for word in kept}
        assert titles["csv-half_of_them"].startswith("half_of_them, groups of ")
        assert all([*rows] == ["ERM"] for rows in by_place.values())


def test_the_command_writes_pages_and_says_what_cannot_be_compared(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(folder)])
    report.main()
    assert "wrote toy.md, claims.md" in capsys.readouterr().out
    page = (folder / "report" / "toy.md").read_text()
    assert "6 runs, 0.0 hours on x86_64 CPU, 1 threads torch 2.6.0, of `bash run_all.sh" in page
    assert "| RKD | **91.0 ± 2.5** |" in page
    shutil.rmtree(folder / "toy" / "rkd" / "default-seed2")
    report.main()  # rows of fewer runs are left out, and named; but for one table, marked
    page = (folder / "report" / "toy.md").read_text()
    rest, everything = page.split("### Everything")
    assert "| RKD" not in rest and "without all runs of others: RKD (2)" in rest
    assert "| RKD (2 runs, not 3) | 90.5 ± " in everything


def test_faults_end_the_command_with_one_sentence(folder):
    (folder / "toy" / "rkd" / "default-seed1" / "result.json").write_text("{")
    command = [sys.executable, ROOT / "report.py", "--results", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("report.py: ")
    assert "is damaged" in done.stderr and done.stderr.count("\n") == 1


def test_lost_answers_of_one_fold_cost_the_tables_that_need_them_alone(folded, folder, monkeypatch):
    """All other pages are written, and what is refused is named."""
    for fold in range(5):
        put(folded, result("fairdi", dataset="ham10000", fold=fold), f"fold_{fold}")
    (folded / "ham10000" / "groupdro" / "fold_1-seed0" / "logits.npz").unlink()
    monkeypatch.setattr(metrics, "BRIEF", ["auroc"])  # these results have metrics of masks, too
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(folded)])
    with pytest.raises(results.Refused, match="no table pooled of .*cannot be read"):
        report.main()
    assert "| CKD |" in (folded / "report" / "toy.md").read_text()


def test_seeds_of_a_row_that_saw_other_pictures_are_not_averaged(tmp_path):
    """As after a label in the user's table was corrected between two runs."""
    for script in ("ckd", "rkd"):
        put(tmp_path, result(script, 0)), put(tmp_path, result(script, 1, pictures="y"))
    with pytest.raises(results.Refused, match="pictures of CKD is x, of CKD y"):
        results.comparable(toy_rows(tmp_path))


def test_no_mean_is_shown_of_what_tables_refuse(tmp_path):
    """Neither in the terminal nor on the page of all runs: RKD learnt other rows of a table."""
    put(tmp_path, result("ckd", 0)), put(tmp_path, result("rkd", 0, pictures="y"))
    put(tmp_path, result("ckd", 1, pictures="y"))
    by_place = results.collect(tmp_path)
    told = "these runs cannot be compared: pictures of CKD is x, of CKD y (default-seed1)"
    assert told in results.brief(by_place) and "90.0" not in results.brief(by_place)
    page, lines = webpages.family(by_place, {})
    assert told in page and "90.0" not in page and len(lines.splitlines()) == 1


def test_third_trainings_of_a_fold_are_told(folded, monkeypatch, capsys):
    for seed in (1, 2):
        put(folded, result("groupdro", seed, dataset="ham10000", fold=0), "fold_0")
    monkeypatch.setattr(metrics, "BRIEF", ["auroc"])  # these results have metrics of masks, too
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(folded)])
    with contextlib.suppress(results.Refused):  # these have no answers
        report.main()
    assert "third trainings of a fold, in no table: 1 by rows\n" in capsys.readouterr().out


def test_no_results_and_no_place_for_the_table_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path)])
    with pytest.raises(results.Refused, match="holds no results: run a script first"):
        report.main()
    put(tmp_path / "smoke", result("ckd", smoke=True))
    with pytest.raises(results.Refused, match="alone: for them --html --results .*smoke"):
        report.main()
    with pytest.raises(results.Refused, match="no place for the table"):
        report.put("A README without it", "results", "| a |")
    text = "a\n<!-- table results -->\nold\n<!-- end -->\nb"
    assert report.put(text, "results", "| new |") == text.replace("old", "| new |")


@pytest.mark.parametrize("content", [{"method": "ckd"}, [], {"last": {}}, {"last": {"test": {}}}])
def test_a_result_without_its_student_is_named(folder, content):
    path = folder / "toy" / "ckd" / "default-seed0" / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(results.Refused, match="lacks its settings or its student"):
        results.collect(folder)


def test_published_numbers_stand_beside_ours_only_for_the_paper_s_data(folder):
    for dataset, columns in (("wider", 5), ("toy", 0)):
        table = report.layout_table("slides", toy_rows(folder))
        width = len(table.header)
        table = report.beside_published(table, dataset, "slides")
        assert len(table.header) == width + columns == len(table.rows[-1])
        assert ("published: slides" in table.markdown()) == bool(columns)


def with_disparity(part, disparity, counts=None):
    """A network's part of a result whose test has another disparity."""
    counts = counts or table_of(disparity)
    return part | {"test": part["test"] | {"disparity": disparity, "counts": counts}}


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (3, ("confirmed", "undecided", "contradicted")),
        (2, ("seen twice", "undecided", "the contrary seen twice")),
    ],
)
def test_claims_are_judged_by_their_paired_interval(tmp_path, seeds, words):
    """CKD's disparity above, across and below its teacher's; two trainings confirm nothing."""
    for low, verdict in zip((0.15, 0.0, -0.15), words):
        for seed in range(seeds):
            noise = 0.003 * (-1) ** seed
            made = result("ckd", seed)
            made["teacher"] = with_disparity(made["teacher"], 0.2)
            put(tmp_path, made | {"last": with_disparity(made["last"], 0.2 + low + noise)})
        rows = toy_rows(tmp_path)
        (row,) = report.claims_table({("toy", ""): rows}).rows
        assert row[0].startswith("slides") and row[-1] == verdict
        assert abs(row[3].point - 100 * low) < 1 and abs(row[4].point - 100 * low) < 1
        inflated = report.inflation_table({("toy", ""): rows})
        assert inflated.rows[0][0] == "CKD" and inflated.header[1] == "toy"


def test_a_teacher_that_collapsed_is_named_beside_the_verdict(tmp_path):
    """It gives everybody one answer, so that any student is less fair."""
    for seed in range(3):
        made = result("ckd", seed)
        useless = with_disparity(made["teacher"], 0.0)
        useless["test"] |= {"collapsed": seed < 2}
        put(tmp_path, made | {"teacher": useless})
    by_place = {("toy", ""): toy_rows(tmp_path)}
    (row,) = report.claims_table(by_place).rows
    assert row[-1].endswith(", but 2 of 3 teachers collapsed")
    assert report.inflation_table(by_place).rows[0][1].endswith(" (2 of 3 teachers collapsed)")


def test_plain_students_stand_beside_the_teacher_of_ckd(tmp_path):
    """What they lie above it is the control for what distilled ones do."""
    for seed in range(3):
        made, plain = result("ckd", seed), result("ckd", seed, alpha=0.0)
        noise = 0.003 * (-1) ** seed
        put(tmp_path, made | {"teacher": with_disparity(made["teacher"], 0.2)})
        plain["last"] = with_disparity(plain.pop("teacher"), 0.3 + noise)  # it had none
        put(tmp_path, plain, "plain")
    rows = report.inflation_table({("toy", ""): toy_rows(tmp_path)}).rows
    assert [row[0] for row in rows] == ["ERM", "CKD"] and rows[0][1].startswith("10.")


def test_students_stand_beside_teachers_by_the_decisions_that_count(tmp_path):
    for seed in range(3):
        made = result("ckd", seed, class_shares=[0.9, 0.1])
        put(tmp_path, changed_test(made, disparity_corrected=0.3))
    (row,) = report.inflation_table({("toy", ""): toy_rows(tmp_path)}).rows
    assert row[1].startswith("10.0")


def test_pairs_leave_out_weights_of_one_run(tmp_path):
    """Of a weight that was not chosen no answers are packed; several runs need none."""
    for seeds in (1, 3):
        for seed in range(seeds):
            put(tmp_path, result("ckd", seed))
            put(tmp_path, result("adversarial_kd", seed, adversary_weight=5.0))
        rows = {"CKD": {}, "adversarial KD, λ = 5": {}}
        for path in tmp_path.rglob("result.json"):
            made = json.loads(path.read_text())
            (path.parent / "logits.npz").touch()
            name = "CKD" if made["method"] == "ckd" else "adversarial KD, λ = 5"
            rows[name][0, made["settings"]["seed"]] = results.with_arrays(made, path)
        pairs = [row[0] for row in report.pairs_table({("toy", ""): rows})[""].rows]
        assert pairs == ["adversarial KD, λ = 5 − CKD"] * (seeds > 1)


def test_causes_are_told_beside_the_teacher_and_plain_training(tmp_path):
    """In each setting the same four trainings: of the student, two differences, paired by seed."""
    for seed, (epochs, above) in itertools.product(range(4), ((None, 0.1), (9, 0.3))):
        own = {} if epochs is None else {"epochs": epochs}
        plain, distilled = result("ckd", seed, alpha=0.0, **own), result("ckd", seed, **own)
        for run, network, value in (
            (plain, "last", 0.2),
            (distilled, "teacher", 0.15),
            (distilled, "last", 0.2 + above + 0.01 * (-1) ** seed),
        ):
            run[network] = with_disparity(run[network], value)
            run[network]["test"]["mean_deo"] = value
        put(tmp_path, plain, f"plain-{epochs}")
        put(tmp_path, distilled, f"{epochs}")
    table = report.causes_table(results.collect(tmp_path))
    rows = {row[1]: dict(zip(table.header, row)) for row in table.rows}
    assert [*rows] == ["toy", "toy, epochs 9"] and rows["toy"]["over"] == "4 seeds"
    for row, above in zip(rows.values(), (0.1, 0.3)):
        shown = [row[f"mean-DEO, {name}"].point for name in ("teacher", "ERM", "CKD")]
        np.testing.assert_allclose(shown, [15, 20, 20 + 100 * above])
        np.testing.assert_allclose(row["CKD − teacher"].point, 5 + 100 * above)
        np.testing.assert_allclose(row["CKD − ERM"].point, 100 * above)
        assert row["CKD − ERM"].low < 100 * above < row["CKD − ERM"].high
        assert row["train worst cell, CKD"].point == 90


def test_a_gap_that_is_noise_confirms_nothing(tmp_path):
    """The student favours one group now and the other then: a gap each time, and no direction."""
    for seed in range(5):
        made = result("ckd", seed)
        made["teacher"] = with_disparity(made["teacher"], 0.0)
        counts = table_of(0.2 * (-1) ** seed)
        put(tmp_path, made | {"last": with_disparity(made["last"], 0.2 + seed / 100, counts)})
    (row,) = report.claims_table({("toy", ""): toy_rows(tmp_path)}).rows
    assert row[3].low > 0 and row[4].low < 0 and row[-1] == "undecided"


def test_each_row_has_a_direction_of_its_own():
    """It is that of its mean: here the second group's, and of the base the first one's."""

    def runs(*counts):
        return {(None, k): result("ckd", k, counts=each) for k, each in enumerate(counts)}

    def said(*shares):
        return [[[50 - 50 * share, 50 * share]] * 2 for share in shares]

    rows = runs(*(table_of(0.2 * sign) for sign in (-1, 1, 1))), runs(*[table_of(-0.2)] * 3)
    assert np.isclose(results.directed(*rows, "disparity").point, 100 * (0.2 - 0.4 / 3 - 0.2))
    rows = runs(*[said(0.3, 0.5)] * 3), runs(*[said(0.3, 0.2)] * 3)
    assert np.isclose(results.directed(*rows, results.METRICS["parity"][0]).point, 20 - 10)


def test_one_training_is_seen_once(tmp_path, lesions):
    """However narrow the interval over its test pictures."""
    made = result("ckd")
    path = put(tmp_path, made)
    put_arrays(path, lesions, "ckd")
    logits = dict(np.load(path / "logits.npz"))
    unfair = lesions["groups"] == 1
    logits["last"] = np.where(unfair[:, None], -lesions["ckd"], lesions["ckd"])
    np.savez(path / "logits.npz", **logits)
    (row,) = report.claims_table({("toy", ""): toy_rows(tmp_path)}).rows
    assert row[3].low > 10 and row[4].low > 10 and row[-1] == "seen once"


# ----- weights ------------------------------------------------------------------------------------


def measured(overall, worst, collapsed=False):
    return {"auroc": overall, "auroc_worst_group": worst, "collapsed": collapsed}


def test_the_weight_is_chosen_by_the_worst_group_among_the_best_overall():
    def choose(values):
        run, other = {"settings": {}}, {"last": {"val": measured(0.9, 0.9)}}  # a later seed's
        rows = {v: {(0, 0): run | {"last": {"val": part}}} for v, part in values.items()}
        rows = {v: runs | {(0, 1): run | other} for v, runs in rows.items()}
        return results.choose(rows, {value: value for value in values})

    plain = {0.1: measured(0.90, 0.80), 0.3: measured(0.895, 0.85), 1: measured(0.88, 0.87)}
    assert choose(plain) == 0.3  # 1 is more than a point behind
    assert choose(plain | {0.3: measured(0.95, 0.85, True)}) == 0.1
    assert choose({v: m | {"collapsed": True} for v, m in plain.items()}) == 0.3
    assert choose({1: measured(None, None), 2: measured(0.7, None)}) == 2
    assert choose({1: measured(0.9, 0.8), 2: measured(0.9, 0.8)}) == 1
    assert all([*values] == sorted(values) for _, values in results.GRID.values())


def put_grid(folder, seeds):
    """BIRD at four weights, of which 0.1 (usual: 1) is the best on validation."""
    for weight in results.GRID["bird"][1]:
        for seed in range(3 if weight == 1 else seeds if weight == 0.1 else 1):
            made = result("bird", seed, **({} if weight == 1 else {"fair_weight": float(weight)}))
            made["settings"]["fair_weight"] = float(weight)
            made["last"]["val"] = measured(0.9, 0.9 - weight / 10)
            put(folder, made, f"{weight}")


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_method_stands_at_the_chosen_weight_if_that_has_all_runs(folder, seeds):
    put_grid(folder, seeds)
    rows = toy_rows(folder)
    assert rows["BIRD"][0, 0]["settings"]["fair_weight"] == (0.1 if seeds == 3 else 1)
    assert (
        sorted(rows)[:4] == ["BIRD", "BIRD, μ = 0.1", "BIRD, μ = 0.3", "BIRD, μ = 3"]
        if seeds == 1
        else True
    )
    assert list(report.without_sweeps(rows)) == ["CKD", "RKD", "BIRD"]
    made, refused = report.tables(results.collect(folder), {})
    assert not refused
    lines = made[("toy", ""), "weights"].rows
    assert [*map(str, lines[0][:4])] == ["BIRD", "μ = 0.1", "90.0", "89.0"]
    words = "chosen" if seeds == 3 else "chosen, but shown is the usual one, which has more runs"
    assert [row[-1] for row in lines] == [words, "", "", ""]


def test_a_grid_of_a_changed_method_stands_at_the_chosen_weight(tmp_path):
    """Its name is none of the usual ones, and the row has been left out of all tables."""
    put(tmp_path, result("ckd"))
    for weight in results.GRID["bird"][1]:
        made = result("bird", meta_every=2, fair_weight=float(weight))
        put(tmp_path, made, f"{weight}")
    (rows,) = map(results.tuned, results.collect(tmp_path).values())
    shown = list(report.without_sweeps(rows))
    assert len(rows) == 5 and len(shown) == 2 and shown[0] == "CKD" and "BIRD" in shown[1]


def test_weights_of_other_seeds_are_not_compared(tmp_path):
    """Whichever would win: the rows stand under their own names, and no table says "chosen"."""
    put(tmp_path, result("ckd"))
    for weight in results.GRID["bird"][1]:
        changed = {} if weight == 1 else {"fair_weight": float(weight)}
        made = result("bird", int(weight == 0.1), **changed)
        made["settings"]["fair_weight"] = float(weight)
        put(tmp_path, made, f"{weight}")
    rows = toy_rows(tmp_path)
    assert rows.keys() == {"CKD", "BIRD", "BIRD, μ = 0.1", "BIRD, μ = 0.3", "BIRD, μ = 3"}
    assert rows["BIRD"][0, 0]["settings"]["fair_weight"] == 1
    made, _ = report.tables(results.collect(tmp_path), {})
    assert "weights" not in {kind for _, kind in made}


def test_a_teacher_of_masks_has_no_weights_of_its_own(monkeypatch):
    """Its validation is that of FairDi's student."""
    monkeypatch.setattr(results, "arrays", lambda run, names: (0, 0, 0))
    monkeypatch.setattr(metrics, "evaluate_masks", lambda **_: {"collapsed": False})
    rows = {}
    for t in results.GRID["fairdi"][1]:
        made = result("fairdi", **({} if t == 10 else {"fis_temperature": float(t)}))
        made["settings"] |= {"fis_temperature": float(t), "task": "segment"}
        made["arrays"] = "x", {"teacher_0": 0, "teacher_1": 0}
        made["last"]["val"] = {"dice": 0.8, "dice_worst_group": t / 100, "collapsed": False}
        made["last"]["train"] = {"worst_cell": 0.9}
        rows |= {name: {(0, 0): run} for name, run in results.as_rows(made)}
    assert len(rows) == 8 and results.CEILING in results.grids(rows)
    assert {row[0] for row in report.weights_table(rows, {}).rows} == {"FairDi"}


@pytest.mark.parametrize("lacking", [1, 2])
def test_what_a_sweep_leaves_out_is_said(tmp_path, lacking):
    """Of four values some have fewer runs than the one to compare with; two make no table."""
    weights = (0.0, 1.0, 10.0, 50.0)
    for n, weight in enumerate(weights):
        for seed in range(2 if n <= len(weights) - 1 - lacking else 1):
            put(tmp_path, result("adversarial_kd", seed, adversary_weight=weight), f"{weight}")
    made, refused = report.tables(results.collect(tmp_path), {})
    table = made.get((("toy", ""), "sweep"))
    assert not refused and (table is None) == (lacking == 2)
    if table:
        assert [row[0] for row in table.rows] == ["0", "1", "10"]
        assert "left out, without all runs of others: 50 (1)" in table.notes


def test_rows_of_a_sweep_alone_are_shown(tmp_path):
    """In folds they were a traceback."""
    for weight, fold in itertools.product((0.0, 10.0, 50.0), range(2)):
        made = result("adversarial_kd", adversary_weight=weight, dataset="ham10000", fold=fold)
        put(tmp_path, made, f"{weight}-{fold}")
    by_place = results.collect(tmp_path)
    made, refused = report.tables(by_place, {})
    assert all("again" in why for why in refused.values())  # intervals need answers, lacking here
    assert "sweep" in {kind for _, kind in made}


def test_weights_are_chosen_with_the_lowest_seed_whichever_training_is_the_first(tmp_path):
    """Here it is that of the second seed, with which the chosen weight is the worst."""
    for script, fold in itertools.product(("ckd", "rkd"), range(5)):
        put(tmp_path, result(script, 1, dataset="ham10000", fold=fold), f"{fold}")
    runs = [*itertools.product((1,), (0, 1), range(5)), (0.001, 0, 0), (0.01, 0, 0), (0.1, 0, 0)]
    for weight, seed, fold in runs:
        own = {} if weight == 0.01 else {"weight_step": float(weight)}
        made = result("groupdro", seed, dataset="ham10000", fold=fold, **own)
        made["settings"]["weight_step"] = float(weight)
        val = measured(0.7, 0.6) if seed else measured(0.9, 0.8 + weight / 10)
        made["last"] = made["last"] | {"val": val}
        put(tmp_path, made, f"{fold}-{weight}")
    first, second = results.trainings(results.collect(tmp_path))
    place = "ham10000", "folds"
    assert [*first[place]["GroupDRO"]] == [(fold, 1) for fold in range(5)]
    table = report.weights_table(first[place], second[place])
    assert {row[1]: row[-1] for row in table.rows if row[-1]} == {"η = 1": "chosen"}


def test_a_method_trained_at_one_weight_alone_stands_at_it(folder):
    """And tables, claims and the README's cell say at which."""
    for seed in range(3):
        put(folder, result("bird", seed, fair_weight=0.3), "0.3")
    rows = toy_rows(folder)
    assert list(rows) == ["CKD", "RKD", "BIRD"]
    table = report.layout_table("overview", rows)
    assert table.notes == ["decisions: largest output", "BIRD, μ = 0.3"]
    claims = {row[0] for row in report.claims_table({("toy", ""): rows}).rows}
    assert "BIRD: lower mean-DEO than CKD, μ = 0.3" in claims
    assert report.headline_cell(rows["BIRD"], "", ("toy", ""), 3).endswith(" (μ = 0.3)")
    of_five = report.headline_cell(rows["BIRD"], "", ("toy", ""), 5)
    assert of_five.endswith("(μ = 0.3, 3 runs, not 5)")
    for seed in range(3):
        put(folder, result("bird", seed, fair_weight=0.1), "0.1")
    assert list(toy_rows(folder)) == ["CKD", "RKD", "BIRD, μ = 0.1", "BIRD, μ = 0.3"]


def test_the_readmes_teacher_is_ckds(folder):
    for seed in range(3):
        put(folder, changed_test(result("ckd", seed), accuracy=0.7))
    rows = {("toy", ""): toy_rows(folder)}
    table = report.headline_table(rows, ["CKD", report.TEACHER], ("top-1", "mean-DEO"))
    assert table.rows == [["CKD", "70.0 / 50.0"], [report.TEACHER, "80.0 / 50.0"]]


def test_incomplete_grids_choose_nothing(folder):
    put_grid(folder, 3)
    shutil.rmtree(folder / "toy" / "bird" / "3-seed0")
    assert toy_rows(folder)["BIRD"][0, 0]["settings"]["fair_weight"] == 1
    assert not results.grids(toy_rows(folder))


def test_the_grid_is_what_run_all_trains_and_has_every_default():
    listed = subprocess.run(
        ["bash", "run_all.sh", "--list", "--dataset", "cifar10s"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    for script, (setting, values) in results.GRID.items():
        for value in values:
            assert f"{script}.py --{setting.replace('_', '-')} {value} " in listed
        module = importlib.import_module(script)
        for number in (2, 10):
            usual = module.settle(module.parse([]), number)
            assert getattr(usual, setting) in values, script


# ----- ranks --------------------------------------------------------------------------------------


def test_ranks_are_of_the_methods_that_every_data_set_has(tmp_path):
    """Three data sets, one without AT; the toy, one without FairDi and one that lacks two methods
    are left out."""
    lacking = {6: ["at"], 7: ["fairdi"], 8: ["ckd", "rkd"]}
    for n, script in enumerate(("ckd", "rkd", "fairdi", "at")):
        for seed, epochs in itertools.product((0, 1), range(4, 9)):
            if script in lacking.get(epochs, []):
                continue
            made = result(script, seed, dataset="cifar10s", epochs=epochs)
            put(tmp_path, changed_test(made, auroc=n / 10 + seed / 50), f"{epochs}-{seed}")
        put(tmp_path, result(script, dataset="toy"))
    names, scores, others, places = report.rank_blocks(results.collect(tmp_path), "AUROC")
    assert names == ["CKD", "RKD", "FairDi"] and others == ["AT"]
    assert len(places) == 3 and all(place.startswith("CIFAR10-S") for place in places)
    assert np.allclose(scores, [[1, 11, 21]] * 3)


def test_sex_and_age_are_ranked_apart_and_incomplete_rows_are_not(tmp_path, lesions):
    """Of folds what all pictures together give; RKD lacks a fold by age; no variant is ranked."""
    for script in ("ckd", "fairdi", "rkd"):
        for own in ({}, {"sensitive": "age"}):
            for fold in range(5):
                if script == "rkd" and fold and own:
                    continue
                path = put(
                    tmp_path, result(script, dataset="ham10000", fold=fold, **own), f"{fold}{own}"
                )
                put_arrays(
                    path,
                    lesions | {s: lesions["ckd"] for s in ("fairdi", "rkd")},
                    script,
                    lesions["fold"] == fold,
                )
    results.opened.cache_clear()
    results.POOLS.clear()
    by_place = results.collect(tmp_path)
    names, scores, lost, places = report.rank_blocks(by_place, "worst group")
    assert names == ["CKD", "FairDi"] and lost == ["RKD"] and len(places) == 2
    pooled = results.point(by_place["ham10000", "folds"]["CKD"], "auroc_worst_group", pooled=True)
    assert np.allclose(scores, pooled)


def test_collapsed_runs_rank_last_in_decisions_alone(tmp_path):
    for script, counts in (("ckd", None), ("fairdi", USELESS)):
        for seed in (0, 1):
            put(
                tmp_path, changed_test(result(script, seed, counts=counts), auroc=0.7, mean_deo=0.0)
            )
    by_place = results.collect(tmp_path)
    assert report.rank_blocks(by_place, "mean-DEO")[1].tolist() == [[0, -np.inf]]
    assert report.rank_blocks(by_place, "AUROC")[1].tolist() == [[70, 70]]


def test_a_single_run_has_intervals_in_percent_of_the_base(tmp_path, lesions):
    """Its accuracy against the base's, resample by resample."""
    right = {}
    for script in ("ckd", "groupdro"):
        put_arrays(put(tmp_path, result(script)), lesions, script)
        right[script] = lesions[script].argmax(1) == lesions["labels"]
    rows = toy_rows(tmp_path)
    weights = metrics.bootstrap_weights(n=600, replicates=1000, clusters=lesions["subjects"])
    rates = {name: (weights * hit).sum(1) / weights.sum(1) for name, hit in right.items()}
    want = np.quantile(100 * (rates["groupdro"] / rates["ckd"] - 1), [0.025, 0.975])
    value = results.relative(rows["GroupDRO"], rows["CKD"], "accuracy")
    assert np.isclose(value.point, 100 * (right["groupdro"].sum() / right["ckd"].sum() - 1))
    assert np.allclose((value.low, value.high), want)
    (path,) = (tmp_path / "toy" / "groupdro").glob("*/logits.npz")
    np.savez(path, **dict(np.load(path)) | {"teacher": lesions["ckd"]})
    results.opened.cache_clear()
    pair = rows["GroupDRO"], rows["GroupDRO"], "accuracy", "last"
    assert results.relative(*pair, "teacher") == value


def test_commands_name_what_was_changed(folder):
    for seed in range(3):
        put(folder, result("ckd", seed, dataset="csv", epochs=3, skip_bad=True), "epochs_3")
    put(folder, result("rkd", 4, dataset="ham10000", target="dx 7", balance="cells", fold=2), "dx")
    commands = [row[1] for row in report.made_table(results.collect(folder)).rows]
    assert commands == [
        "`bash run_all.sh --dataset csv --data-dir DIR --seeds 3 --only ckd "
        "-- --skip-bad --epochs 3`",
        "`python methods/rkd.py --dataset ham10000 --data-dir DIR --seed 4 "
        "--target 'dx 7' --balance cells --fold 2`",
        "`bash run_all.sh --seeds 3 --only ckd rkd`",
    ]


# ----- rows that no table may mix -----------------------------------------------------------------


def test_no_claim_is_made_of_rows_with_other_pictures(tmp_path):
    """Nor any table across data sets: the place is left out, and it is said why."""
    for seed in range(3):
        put(tmp_path, result("ckd", seed)), put(tmp_path, result("rkd", seed))
        put(tmp_path, result("adversarial_kd", seed, disparity=0.1, pictures="y"))
    made, refused = report.tables(results.collect(tmp_path), {})
    assert {kind for place, kind in made if place == "all"} == {"made"}
    why = refused[("toy", ""), "across data sets"]
    assert "pictures of CKD is x, of adversarial KD y" in why


def test_every_row_is_compared_with_all_others(tmp_path):
    """RKD has a seed that CKD, the first row, has not."""
    put(tmp_path, result("ckd", 0)), put(tmp_path, result("rkd", 0))
    put(tmp_path, result("rkd", 1)), put(tmp_path, result("kdpp", 1, pictures="y"))
    with pytest.raises(results.Refused, match="pictures of CKD is x, of KD\\+\\+ y"):
        results.comparable(toy_rows(tmp_path), whole=False)


def test_fairtune_with_two_networks_is_no_row(tmp_path):
    for seed, student in ((0, "vit_tiny"), (1, "vit_tiny"), (0, "vit_small")):
        put(tmp_path, result("fairtune", seed, student=student), student)
    put(tmp_path, result("ckd"))
    with pytest.raises(results.Refused, match="holds FairTune with several networks"):
        results.collect(tmp_path)


def test_fis_is_the_first_step_of_the_usual_fairdi_alone(tmp_path):
    for name, own in (("usual", {}), ("fused", {"fusion": 0.3})):
        made = result("fairdi", fis_temperature=30.0, step0="fis", **own)
        put(tmp_path, made | dict.fromkeys(FIRST_STEPS[:3], made["last"]), name)
    assert len(toy_rows(tmp_path)["FIS"]) == 1


def test_the_teacher_in_front_is_the_usual_one(tmp_path):
    """Not the balanced one of the first row."""
    for script, accuracy, own in (
        ("ckd", 0.5, {"teacher_balance": "cells"}),
        ("rkd", 0.9, {}),
        ("adversarial_kd", 0.9, {}),
    ):
        made = result(script, **own)
        teacher = made["teacher"]["test"] | {"accuracy": accuracy}
        put(tmp_path, made | {"teacher": made["teacher"] | {"test": teacher}})
    name, top1, *_ = report.layout_table("overview", toy_rows(tmp_path)).rows[0]
    assert name == report.TEACHER and top1.point == 90


def test_one_lost_run_does_not_part_rows(tmp_path):
    """Of CKD's third fold the first seed is missing: there the second is that of all rows."""
    for fold, seed, name in itertools.product(range(5), range(2), ("ckd", "rkd", "kdpp")):
        if (fold, seed, name) != (2, 0, "ckd"):
            put(tmp_path, result(name, seed, dataset="ham10000", fold=fold), f"fold_{fold}")
    ((first,), (second,)) = (part.values() for part in results.trainings(results.collect(tmp_path)))
    assert all([*runs] == [(0, 0), (1, 0), (2, 1), (3, 0), (4, 0)] for runs in first.values())
    assert {*second["RKD"]} == {*second["KD++"]} == {*first["RKD"]}
    assert {*second["CKD"]} == {*first["RKD"]} - {(2, 1)}


def test_weights_that_were_tried_on_one_fold_do_not_part_it(tmp_path):
    for fold, seed, name in itertools.product(range(5), range(2), ("ckd", "rkd", "kdpp")):
        if (seed, name) != (0, "kdpp"):
            put(tmp_path, result(name, seed, dataset="ham10000", fold=fold), f"fold_{fold}")
    for step in (0.001, 0.1, 1.0):
        made = result("groupdro", dataset="ham10000", fold=0, weight_step=step)
        put(tmp_path, made, f"fold_0-step_{step}")
    ((first,), _) = (part.values() for part in results.trainings(results.collect(tmp_path)))
    for name in ("CKD", "RKD", "KD++"):
        assert [*first[name]] == [(fold, 1) for fold in range(5)]


def test_a_fold_with_another_seed_alone_is_not_lost(tmp_path):
    for fold, name in itertools.product(range(5), ("ckd", "rkd", "kdpp")):
        seed = int((fold, name) == (4, "ckd"))
        put(tmp_path, result(name, seed, dataset="ham10000", fold=fold), f"fold_{fold}")
    ((first,), second) = (part.values() for part in results.trainings(results.collect(tmp_path)))
    assert [*first["CKD"]] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1)] and not second


def test_a_row_without_a_difference_is_named(folded, lesions):
    """Where the base has fewer folds, or the row another seed; this has all folds all the same."""
    put_folds(folded, lesions | {"rkd": lesions["ckd"]}, "rkd")
    path = folded / "ham10000/groupdro/fold_4-seed0/result.json"
    made = json.loads(path.read_text())
    made["settings"]["seed"] = 1
    path.write_text(json.dumps(made))
    tables = pooled_tables(folded)
    assert "GroupDRO" in [row[0] for row in tables[""].rows] and not results.POOLS.clear()
    (name, *_), (note,) = tables["-differences"].rows, tables["-differences"].notes[1:]
    assert "GroupDRO" != name[0] and note == "ERM lacks runs of these: GroupDRO"
    for fold in (3, 4):
        shutil.rmtree(folded / "ham10000/ckd" / f"fold_{fold}-seed0")
    table = pooled_tables(folded)["-differences"]
    assert not table.rows and "ERM lacks runs of these: RKD, GroupDRO" in table.notes
    for fold in range(5):  # CKD has all folds: it is the base
        path = put(folded, result("ckd", dataset="ham10000", fold=fold), f"ckd_{fold}")
        put_arrays(path, lesions, "ckd", lesions["fold"] == fold)
    table = pooled_tables(folded)["-differences"]
    assert table.header[1].endswith("− CKD") and table.rows


def test_a_difference_without_an_interval_is_not_seen_twice():
    shown = results.Value(2.0, 1.0, 3.0)
    assert report.seen_twice(shown, shown).mark == "²"
    for value, second in ((results.Value(2.0), shown), (shown, results.Value(2.0))):
        assert not report.seen_twice(value, second).mark


def test_a_row_with_few_folds_has_no_second_training(folded, lesions):
    """Nor is it marked: the note names it."""
    for fold in (2, 3, 4):
        shutil.rmtree(folded / "ham10000" / "groupdro" / f"fold_{fold}-seed0")
    for script, own, folds in (("ckd", {"alpha": 0.0}, range(5)), ("groupdro", {}, (0, 1))):
        for fold in folds:
            made = result(script, 1, dataset="ham10000", fold=fold, **own)
            put_arrays(put(folded, made, f"fold_{fold}"), lesions, script, lesions["fold"] == fold)
    made, _ = report.tables(*results.trainings(results.collect(folded)))
    table = made[("ham10000", "folds"), "pooled-differences"]
    assert not any(value.mark for value in table.rows[0][1:])
    assert "²: a second training shows it, too; without one: GroupDRO" in table.notes


def test_pairs_need_the_same_subjects(tmp_path, lesions):
    """They decide which pictures are drawn together."""
    put_arrays(put(tmp_path, result("ckd")), lesions, "ckd")
    alone = lesions | {"subjects": lesions["ids"]}
    put_arrays(put(tmp_path, result("rkd")), alone, "ckd")
    rows = toy_rows(tmp_path)
    with pytest.raises(results.Refused, match="groups and subjects"):
        results.change(rows["RKD"], rows["CKD"], "accuracy")


def test_odd_names_stand_in_tables_figures_and_links(tmp_path):
    made = result("ckd", sensitive="skin tone (self)", dataset="ham10000")
    made["group_names"] = ["a|b", "$0_to_$50k"]
    for seed in range(3):
        settings = made["settings"] | {"seed": seed}
        for script in ("ckd", "adversarial_kd", "rkd"):
            put(tmp_path, made | {"method": script, "settings": settings})
    by_place = results.collect(tmp_path)
    tables, _ = report.tables(by_place, {})
    captions = report.draw(by_place, tmp_path, (), None)
    page = report.pages(by_place, tables, captions)["ham10000.md"]
    assert "](ham10000-sensitive_skin_tone__self_-disparity.png)" in page
    table = report.Table(["method", "a|b"])
    table.add("CKD", ["c|d"])
    assert table.markdown().splitlines()[::2] == ["| method | a\\|b |", "| CKD | c\\|d |"]


def test_pictures_that_are_not_there_cost_a_figure_alone(folder, tmp_path):
    for script, seed in itertools.product(("adversarial_kd", "ckd"), range(3)):
        put(folder, run := result(script, seed, dataset="csv"))
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        figures.pictures_of(run, empty)
    captions = report.draw(results.collect(folder), tmp_path, (), empty)
    (names,) = ([*files] for place, files in captions.items() if place[0] == "csv")
    assert names == ["csv-disparity.png"]


def test_a_script_of_one_s_own_stands_in_the_terminal_s_table(folder):
    put(folder, result("mine"))
    put(folder, result("adversarial_kd", adversary_weight=0.7), "weak")
    lines = results.brief(results.collect(folder)).splitlines()
    assert any(line.startswith("mine ") for line in lines)
    assert not any("λ = 0.7" in line for line in lines)
