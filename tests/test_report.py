"""Tables come from result files alone, refuse to mix runs, and the README says what they say."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import report

ROOT = Path(__file__).resolve().parent.parent


def result(seed, accuracy, disparity, counts=((50, 0), (0, 50)), **settings):
    """A result file's content, as far as tables look at it."""
    test = dict(accuracy=accuracy, disparity=disparity, recall=accuracy, precision=0.5, f1=0.5)
    test |= {"counts": [counts, counts], "auroc": None, "mean_deo": 0.1, "max_deo": 0.2}
    same = dict.fromkeys(report.SAME, "x") | {"seed": seed, "alpha": 0.9} | settings
    return {"settings": same, "teacher": {"test": test}, "last": {"test": test}}


@pytest.fixture
def folder(tmp_path):
    """Three seeds of CKD and RKD on the toy."""
    for method, shift in (("ckd", 0.0), ("rkd", 0.1)):
        for seed in range(3):
            path = tmp_path / "toy" / method / f"default-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result(seed, 0.8 + shift + seed / 100, 0.2)))
    smoke = tmp_path / "smoke" / "toy" / "ckd" / "default-seed9.json"
    smoke.parent.mkdir(parents=True)
    smoke.write_text(json.dumps(result(9, 0.1, 0.1)))
    return tmp_path


def test_rows_are_means_over_seeds_with_intervals(folder):
    lines = report.slides_table(report.collect(folder), "toy", ["CKD", "RKD"]).split("\n")
    half = scipy.stats.t.ppf(0.975, 2) / np.sqrt(3)  # times the standard deviation, 1 point
    assert lines[3].startswith(f"| CKD | 81.0 ± {half:.1f} |")
    assert lines[4].startswith(f"| RKD | 91.0 ± {half:.1f} |")
    assert len(lines) == 5 and "nan" not in "".join(lines)


def test_different_seeds_or_settings_are_refused(folder):
    (folder / "toy" / "rkd" / "default-seed2.json").unlink()
    with pytest.raises(report.Refused, match=r"RKD has seeds \[0, 1\], CKD \[0, 1, 2\]"):
        report.slides_table(report.collect(folder), "toy", ["CKD", "RKD"])
    path = folder / "toy" / "rkd" / "default-seed2.json"
    path.write_text(json.dumps(result(2, 0.9, 0.1, epochs=3)))
    with pytest.raises(report.Refused, match="epochs of CKD is x, of RKD 3"):
        report.slides_table(report.collect(folder), "toy", ["CKD", "RKD"])


def test_collapsed_runs_are_marked(folder):
    """A class that is never predicted, or recall near chance."""
    fine = result(0, 0.8, 0.2)["last"]["test"]
    never, chance = copy.deepcopy(fine), copy.deepcopy(fine)
    never["counts"] = [[[50, 0], [50, 0]]] * 2
    chance["recall"] = 0.54
    assert [report.collapsed(t) for t in (fine, never, chance)] == [False, True, True]
    path = folder / "toy" / "rkd" / "default-seed1.json"
    path.write_text(json.dumps(result(1, 0.5, 0.0, counts=((50, 0), (50, 0)))))
    table = report.slides_table(report.collect(folder), "toy", ["CKD", "RKD"])
    assert "RKD (1 of 3 collapsed)" in table and "CKD |" in table


def test_the_search_of_fairtune_is_drawn(tmp_path):
    """A figure for a search of masks; none where only the learning rate was searched."""
    rng = np.random.default_rng(0)
    trials = []
    for n in range(8):
        params = {f"bit {k:02}": int(rng.integers(2)) for k in range(6)} | {"lr": rng.random()}
        state = ("complete", "pruned")[n % 2]
        trials.append({"params": params, "state": state, "values": [0.5, 0.4][: 2 - n % 2]})
    search = {"settings": {"objective": "auroc"}, "search": {"trials": trials}}
    report.fairtune_figures({("toy", "fairtune", "default"): {0: search}}, "toy", tmp_path)
    assert (tmp_path / "toy-fairtune-default.png").stat().st_size > 10_000
    for trial in trials:
        trial["params"] = {"lr": 0.1}
    report.fairtune_figures({("toy", "fairtune", "mask_all"): {0: search}}, "toy", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_readme_is_made_from_the_result_files():
    """Filling the README again changes nothing: no number in its tables was typed."""
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- table ") == text.count("<!-- end -->") >= 2
    assert report.fill(text, report.collect(ROOT / "results" / "reference")) == text
