"""Tables come from result files alone, refuse to mix runs, and the README says what they say."""

import csv
import html
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

import compare
import metrics as M
import report

ROOT = Path(__file__).resolve().parent.parent
FINE = ((40, 10), (10, 40))  # of each group: true x predicted


def result(script, seed=0, accuracy=0.8, disparity=0.2, counts=(FINE, FINE), **settings):
    """A result file's content, as far as tables look at it; other settings are the usual ones."""
    metrics = [name for name, _ in compare.METRICS.values()]
    test = dict.fromkeys(metrics, 0.5) | dict(accuracy=accuracy, disparity=disparity, recall=0.8)
    test |= {"counts": counts, "auroc": None, "n": 600}
    usual = compare.usual(script, settings.get("dataset", "toy"))
    normal = {k: v for k, v in usual.items() if k not in compare.R.PLACES}
    settings = normal | {"seed": seed, "pictures": "x"} | settings
    model = {"test": test, "parameters": 1000, "megabytes": 0.1}
    times = {"epochs": [1.0], "teacher": 2.0, "total": 3.0, "cpu_latency_ms": 0.2}
    times |= {"device": "x86_64 CPU, 1 threads", "torch": "2.6.0+cpu"}
    models = dict.fromkeys(("teacher", "last", "best_overall", "best_worst_group"), model)
    names = {"group_names": ["f", "m"], "classes": ["benign", "malignant"]}
    return {"method": script, "settings": settings, "times": times, **models, **names}


def put(folder, made, name="default"):
    settings = made["settings"]
    path = folder / settings["dataset"] / made["method"] / f"{name}-seed{settings['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three seeds of CKD and RKD on the toy."""
    for script, shift in (("ckd", 0.0), ("rkd", 0.1)):
        for seed in range(3):
            put(tmp_path, result(script, seed, 0.8 + shift + seed / 100))
    put(tmp_path / "smoke", result("ckd", 9, 0.1, 0.1))
    return tmp_path


def toy_rows(folder):
    return compare.collect(folder)[("toy", "")]


def test_rows_are_means_over_seeds_with_intervals(folder):
    lines = report.slides_table(toy_rows(folder)).markdown().split("\n")
    half = scipy.stats.t.ppf(0.975, 2) / np.sqrt(3)  # times the standard deviation, 1 point
    assert lines[3].startswith(f"| CKD | 81.0 ± {half:.1f} |")
    assert lines[4].startswith(f"| RKD | **91.0 ± {half:.1f}** |")
    assert len(lines) == 5 and "nan" not in "".join(lines)


def test_csv_has_the_same_numbers(folder, tmp_path):
    table = report.slides_table(toy_rows(folder))
    table.csv(tmp_path / "t.csv")
    rows = list(csv.DictReader(open(tmp_path / "t.csv")))
    assert [row["student by"] for row in rows] == ["*the teacher*", "CKD", "RKD"]
    mean, low, high = M.seed_interval(values=[90, 91, 92])
    got = [float(rows[2][f"top-1{end}"]) for end in ("", " low", " high")]
    assert np.allclose(got, [mean, low, high], rtol=1e-5)


def test_rows_are_named_by_their_settings(tmp_path):
    for script, name, own in (
        ("ckd", "ERM", {"alpha": 0.0}),
        ("ckd", "re-balancing", {"alpha": 0.0, "balance": True}),
        ("bird", "BIRD", {}),
        ("adversarial_kd", "adversarial KD, λ = 0.5", {"adversary_weight": 0.5}),
    ):
        assert compare.row_name(result(script, **own)) == name
        assert compare.conditions(result(script, **own)) == ""
    small = result("rkd", epochs=3, fold=2)
    assert compare.row_name(small) == "RKD" and compare.conditions(small) == "folds-epochs_3"


def test_different_seeds_or_pictures_are_refused(folder):
    (folder / "toy" / "rkd" / "default-seed2.json").unlink()
    with pytest.raises(compare.Refused, match=r"RKD has seeds 0, 1, CKD 0, 1, 2"):
        report.slides_table(toy_rows(folder))
    put(folder, result("rkd", 2, pictures="y"))
    with pytest.raises(compare.Refused, match="pictures of CKD is x, of RKD y"):
        report.slides_table(toy_rows(folder))
    put(folder, result("rkd", 2, epochs=3))  # other conditions: a table of its own
    found = compare.collect(folder)
    assert list(found) == [("toy", ""), ("toy", "epochs_3")]
    made, refused = report.tables(found)
    assert "toy-slides" in refused and "toy-epochs_3-overview" in made


@pytest.mark.parametrize("starts", ["aa", "ab"])
def test_tuning_is_compared_from_one_start(folder, starts):
    for mask, start in zip(("all", "search"), starts):
        for seed in range(3):
            made = result("fairtune", seed, mask=mask, trials=4 if mask == "all" else 20)
            put(folder, made | {"search": {"theta_0": start}}, f"mask_{mask}")
    made, refused = report.tables(compare.collect(folder))
    assert ("toy-overview" in made) == (starts == "aa")
    assert ("different pre-trained weights" in refused.get("toy-overview", "")) == (starts == "ab")


@pytest.mark.parametrize(
    ("counts", "recall", "bad"),
    [
        ((FINE, FINE), 0.8, False),
        (((50, 0), (50, 0)), 0.8, True),  # class 1 is never predicted
        ((FINE, ((50, 0), (50, 0))), 0.8, True),  # nor, in group 1
        ((FINE, FINE), 0.54, True),  # near chance
    ],
)
def test_collapsed_runs_are_marked_and_never_the_fairest(folder, counts, recall, bad):
    """A class never predicted, in all groups or in one; recall near chance."""
    counts = [counts, counts] if np.ndim(counts) == 2 else counts
    made = result("rkd", 1, 0.9, 0.0, counts)
    made["last"]["test"]["recall"] = recall
    assert compare.collapsed(made["last"]["test"]) == bad
    put(folder, made)
    table = report.slides_table(toy_rows(folder)).markdown()
    assert ("RKD (1 of 3 collapsed)" in table) == bad
    line = next(line for line in table.split("\n") if "CKD |" in line)
    assert ("**20.0 ± 0.0**" in line) == bad  # RKD's disparity is lower


def test_relative_change_is_fieller_s():
    """At both ends of the interval, the interval of the mean of y - ρx just touches 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(50, 5, 6)
    y = 0.6 * x + rng.normal(0, 3, 6)
    change = compare.relative_change(y, x)
    assert np.isclose(change.point, 100 * (y.mean() / x.mean() - 1))
    assert change.low < change.point < change.high
    for end in change[1:3]:
        _, low, high = M.seed_interval(values=y - (1 + end / 100) * x)
        assert min(abs(low), abs(high)) < 1e-4
    unsure = compare.relative_change([1, 2, 3], [-1.0, 1, 2])  # the mean of x may be 0
    assert np.isnan(unsure.low)


def test_sweep_says_which_strength_pays(tmp_path):
    accuracy = {0.0: 0.8, 1.0: 0.795, 5.0: 0.78, 150.0: 0.8}
    disparity = {0.0: 0.4, 1.0: 0.2, 5.0: 0.1, 150.0: 0.0}
    for strength in accuracy:
        for seed in range(3):
            # the strongest has collapsed: perfectly fair, and useless
            counts = [((50, 0), (50, 0))] * 2 if strength > 100 else (FINE, FINE)
            made = result("adversarial_kd", seed, accuracy[strength],
                          disparity[strength] + seed / 100, counts)  # fmt: skip
            made["settings"]["adversary_weight"] = strength
            put(tmp_path, made, f"adversary_weight_{strength}")
    table = report.sweep_table(toy_rows(tmp_path))
    assert [row[0] for row in table.rows] == ["0", "1", "5", "150 (3 of 3 collapsed)"]
    assert [row[-1] for row in table.rows] == ["", "yes", "no", "no"]
    assert np.isclose(table.rows[1][-2].point, 100 * (0.21 / 0.41 - 1))


def test_temperatures_stand_beside_the_teacher(tmp_path):
    for n, temperature in enumerate((1.0, 4.0, 20.0)):
        for seed in range(3):
            made = result("ckd", seed, 0.7 + n / 100, 0.4 - n / 10 + seed / 100)
            made["settings"]["temperature"] = temperature
            for rule, parity in (("last", 0.3 - n / 10), ("teacher", 0.2)):
                test = made[rule]["test"] | {"demographic_parity_difference": parity}
                made[rule] = made[rule] | {"test": test}
            put(tmp_path, made, f"temperature_{temperature}")
    rows = toy_rows(tmp_path)
    table = report.temperature_table(rows)
    assert [row[0] for row in table.rows] == ["*the teacher*", "1", "4", "20"]
    of = lambda row, column: row[table.header.index(column)]
    assert [of(row, "parity, − teacher") for row in table.rows][0] == ""
    assert np.allclose([of(r, "parity, − teacher").point for r in table.rows[1:]], [10, 0, -10])
    assert of(table.rows[1], "top-1, T − 1") == ""
    assert np.allclose([of(r, "top-1, T − 1").point for r in table.rows[2:]], [1, 2])
    assert table.best() & {(0, c) for c in range(9)} == set()  # the teacher does not compete
    names = [row[0] for row in report.overview_table(rows).rows]
    assert "CKD, T = 1" in names and "CKD, T = 20" not in names
    claims = report.claims_table({("toy", ""): rows}).rows
    assert [row[-1] for row in claims if "T = 20" in row[0]] == ["confirmed"] * 2


# ----- pooled folds -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesions():
    """600 pictures of 300 lesions in five folds, labels, groups, and the logits of two methods."""
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(300), 2)
    labels, groups = rng.integers(0, 2, 300)[subjects], rng.integers(0, 2, 300)[subjects]
    noise = rng.normal(size=(600, 2))
    good = noise + 1.5 * np.eye(2)[labels]
    fair = np.where(groups[:, None] == 1, good, noise + 1.3 * np.eye(2)[labels])
    return {
        "ids": np.array([f"p{n:03}" for n in range(600)]),
        "subjects": np.array([f"l{n:03}" for n in subjects]),
        "fold": subjects % 5,
        "labels": labels,
        "groups": groups,
        "ckd": good.astype(np.float16),
        "groupdro": fair.astype(np.float16),
    }


def put_folds(folder, lesions, script, folds, **own):
    for fold in folds:
        made = result(script, dataset="ham10000", fold=fold, **own)
        path = put(folder, made, f"fold_{fold}")
        here = lesions["fold"] == fold
        logits = dict.fromkeys(("teacher", *compare.POINTS, "last"), lesions[script][here])
        names = ("labels", "groups", "ids", "subjects")
        np.savez(path.with_suffix(".npz"), **logits, **{k: lesions[k][here] for k in names})


@pytest.fixture
def folded(tmp_path, lesions, monkeypatch):
    monkeypatch.setitem(compare.NAMES, "rkd", "GroupDRO")  # a script that is there
    lesions["rkd"] = lesions["groupdro"]
    put_folds(tmp_path, lesions, "ckd", range(5), alpha=0.0)
    put_folds(tmp_path, lesions, "rkd", range(5))
    return tmp_path


def test_pooled_folds_test_every_picture_once(folded, lesions):
    rows = compare.collect(folded)[("ham10000", "folds")]
    made = report.pooled_tables(rows, {"last": ""})
    table, differences = made[""], made["-differences"]
    assert [row[:2] for row in table.rows] == [["ERM", "600"], ["GroupDRO", "600"]]
    want = {}
    for script in ("ckd", "groupdro"):
        score = lesions[script].astype(float) @ [-1, 1]
        inside = [lesions["groups"] == g for g in (0, 1)]
        each = [roc_auc_score(lesions["labels"][g], score[g]) for g in inside]
        whole = roc_auc_score(lesions["labels"], score)
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
    single = M.bootstrap_weights(n=600)
    clustered = M.bootstrap_weights(n=600, clusters=np.sort(lesions["subjects"]))
    assert clustered[:, ::2].tolist() == clustered[:, 1::2].tolist() != single[:, 1::2].tolist()


def test_incomplete_folds_are_compared_on_the_same_pictures(folded, lesions):
    for fold in (2, 3, 4):
        (folded / "ham10000" / "rkd" / f"fold_{fold}-seed0.json").unlink()
    rows = compare.collect(folded)[("ham10000", "folds")]
    made = report.pooled_tables(rows, {"last": ""})
    names = [row[:2] for row in made[""].rows]
    assert names == [["ERM", "600"], ["ERM (folds 0, 1)", "240"], ["GroupDRO (folds 0, 1)", "240"]]
    here = lesions["fold"] < 2
    area = [
        roc_auc_score(lesions["labels"][here], lesions[s][here].astype(float) @ [-1, 1])
        for s in ("ckd", "groupdro")
    ]
    assert np.isclose(made[""].rows[1][2].point, 100 * area[0])
    assert len(made["-differences"].rows) == 1
    assert np.isclose(made["-differences"].rows[0][1].point, 100 * (area[1] - area[0]))


def test_fairdi_s_comparison_has_both_points(folded):
    made, refused = report.tables(compare.collect(folded))
    names = [row[0] for row in made["ham10000-folds-fairdi"].rows]
    assert names == [
        f"{n}, best {p}" for n in ("ERM", "GroupDRO") for p in ("overall", "worst group")
    ]
    assert not refused


def test_other_pictures_are_not_paired(folded, lesions):
    compare.CACHE.clear()
    path = folded / "ham10000" / "rkd" / "fold_1-seed0.npz"
    content = dict(np.load(path))
    content["labels"] = 1 - content["labels"]
    np.savez(path, **content)
    rows = compare.collect(folded)[("ham10000", "folds")]
    with pytest.raises(compare.Refused, match="same test pictures"):
        report.pooled_tables(rows, {"last": ""})
    path.write_text("no archive")
    compare.CACHE.clear()
    with pytest.raises(compare.Refused, match="cannot be read"):
        report.pooled_tables(rows, {"last": ""})


# ----- README -------------------------------------------------------------------------------------


def test_readme_is_made_from_the_result_files():
    """Filling the README again changes nothing: no number in its tables was typed."""
    folder = ROOT / "results" / "reference"
    made, _ = report.tables(compare.collect(folder), compare.collect(folder / report.AGAIN))
    for path in (ROOT / "README.md", ROOT / "results" / "README.md"):
        text = path.read_text()
        assert text.count("<!-- table ") == text.count("<!-- end -->") >= 2
        assert report.fill(text, made) == text, path


def test_published_numbers_stand_beside_ours_only_for_the_paper_s_data(folder):
    for dataset, columns in (("wider", 5), ("toy", 0)):
        table = report.slides_table(toy_rows(folder))
        width = len(table.header)
        table = report.beside_published(table, dataset, "slides")
        assert len(table.header) == width + columns == len(table.rows[-1])
        assert ("published: slides" in table.markdown()) == bool(columns)


def test_diff_page_folds_what_is_shared_and_shows_the_methods_whole(tmp_path):
    page = report.diff_page("ckd", "bird")
    folded, opened = page.count("<details><summary>"), page.count("<details open><summary>")
    shared = report.importlib.import_module("test_side_by_side").shared
    count = len(shared((ROOT / "methods" / "ckd.py").read_text()))
    assert folded == count and opened == 3  # header, own flags, the method
    method = page.split("<details open><summary>4 THE METHOD")[1].split("</details>")[0]
    words = html.unescape(re.sub("<[^>]*>", "", method)).replace("\xa0", " ")
    for name in ("ckd", "bird"):
        text = (ROOT / "methods" / f"{name}.py").read_text()
        own = text.split("# ===== 4. THE METHOD")[1].split("# ===== 5.")[0]
        lines = [line for line in own.splitlines()[1:] if line.strip() and len(line) < 85]
        assert all(line.strip() in words for line in lines)
    with pytest.raises(compare.Refused, match="there is no script burd"):
        report.diff_page("ckd", "burd")


def test_claims_are_judged_by_their_paired_interval(folder):
    """Three seeds: CKD's disparity above, across and below its teacher's."""
    for low, verdict in ((0.3, "confirmed"), (0.0, "undecided"), (-0.3, "contradicted")):
        rows = toy_rows(folder)
        for n, result in enumerate(rows["CKD"].values()):
            noise = 0.05 * (-1) ** n
            result["teacher"]["test"]["disparity"] = 0.5
            result["last"]["test"]["disparity"] = 0.5 + low + noise
        table = report.claims_table({("toy", ""): {"CKD": rows["CKD"]}})
        (row,) = table.rows
        assert row[0].startswith("slides") and row[4].startswith(verdict)
        assert abs(row[3].point - 100 * low) < 6
        inflated = report.inflation_table({("toy", ""): {"CKD": rows["CKD"]}})
        assert inflated.rows[0][0] == "CKD" and inflated.header[1] == "toy"


def test_claims_name_weaker_settings_and_tables_of_one_strength_keep_it(tmp_path):
    """λ = 0.5 alone is a row like any other; as a part of a sweep it stands in that table."""
    for script, weights in (("ckd", [None]), ("adversarial_kd", [5.0, 0.5])):
        for weight, seed in itertools.product(weights, range(3)):
            own = {} if weight is None else {"adversary_weight": weight}
            put(tmp_path, result(script, seed, disparity=0.2 + seed / 100, **own), f"{weight}")
    rows = toy_rows(tmp_path)
    claims = [row[0] for row in report.claims_table({("toy", ""): rows}).rows]
    weaker = [claim for claim in claims if claim.startswith("adversarial")]
    assert len(weaker) == 2 and weaker[1] == weaker[0] + " (λ = 0.5)"
    shown = lambda: [row[0] for row in report.poster_table(toy_rows(tmp_path)).rows]
    assert shown() == ["CKD", "adversarial KD", "adversarial KD, λ = 0.5"]
    for seed in range(3):
        put(tmp_path, result("adversarial_kd", seed, adversary_weight=0.0), "0.0")
    assert shown() == ["CKD", "adversarial KD"]


def test_ranks_are_of_the_methods_that_every_run_has(tmp_path):
    """Two seeds of four methods and one of three; the toy and a run without FairDi are left out."""
    for n, script in enumerate(("ckd", "rkd", "fairdi", "at")):
        plan = [(0, {}), (1, {}), (2, {"epochs": 5}), (3, {"epochs": 6})]
        for seed, own in plan[: 4 if n < 2 else 3 if n < 3 else 2]:
            made = result(script, seed, dataset="cifar10s", **own)
            made["last"]["test"]["auroc"] = n / 10
            put(tmp_path, made, f"{own}")
        put(tmp_path, result(script, dataset="toy"))
    names, scores = report.rank_blocks(compare.collect(tmp_path), "AUROC")
    assert names == ["CKD", "RKD", "FairDi"]
    assert np.allclose(scores, [[0, 0.1, 0.2]] * 3)


def test_a_single_run_has_intervals_in_percent_of_the_base(tmp_path, lesions):
    """Its accuracy against the base's, resample by resample."""
    names, right = ("labels", "groups", "ids", "subjects"), {}
    lesions["rkd"] = lesions["groupdro"]
    for script in ("ckd", "rkd"):
        path = put(tmp_path, result(script)).with_suffix(".npz")
        logits = dict.fromkeys(("teacher", *compare.POINTS, "last"), lesions[script])
        np.savez(path, **logits, **{k: lesions[k] for k in names})
        right[script] = lesions[script].argmax(1) == lesions["labels"]
    rows = toy_rows(tmp_path)
    weights = M.bootstrap_weights(n=600, replicates=1000, clusters=lesions["subjects"])
    rate = lambda script: (weights * right[script]).sum(1) / weights.sum(1)
    want = np.quantile(100 * (rate("rkd") / rate("ckd") - 1), [0.025, 0.975])
    point, low, high, _ = compare.relative(rows["RKD"], rows["CKD"], "accuracy")
    assert np.isclose(point, 100 * (right["rkd"].sum() / right["ckd"].sum() - 1))
    assert np.allclose((low, high), want)


def test_a_second_processor_s_runs_are_compared_and_stand_in_no_other_table(folder):
    for seed in range(3):
        put(folder / report.AGAIN, result("rkd", seed, disparity=0.25))
        put(folder / report.AGAIN, result("kdpp", seed))  # not run the first time
    found, again = (compare.collect(path) for path in (folder, folder / report.AGAIN))
    assert list(found["toy", ""]) == ["CKD", "RKD"]
    table = report.tables(found, again)[0]["again"]
    (row,) = table.rows
    assert row[0] == "RKD" and row[2] == "3 seeds"
    assert str(row[table.header.index("disparity")]) == "5.0 ± 0.0"
