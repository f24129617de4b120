"""The statistics behind the figures against other sources; every figure is drawn."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import compare
import figures
import report

ROOT = Path(__file__).resolve().parent.parent


def test_ranks_friedman_and_nemenyi_against_the_parity_file():
    with np.load(ROOT / "tests" / "parity" / "medical.npz") as file:
        cd = {key[3:]: file[key] for key in file if key.startswith("cd/")}
    scores = cd["in/scores_dataset_by_method"]
    assert np.array_equal(figures.ranks(scores), cd["out/ranks"])
    assert np.allclose(figures.ranks(scores).mean(0), cd["out/avg_rank"])
    assert np.allclose(figures.friedman(scores), cd["out/friedman_scipy_tie_corrected_stat_p"])
    distance = figures.nemenyi(scores.shape[1], len(scores))
    assert np.isclose(distance, cd["out/nemenyi_cd_05_studentized"], atol=1e-5)
    assert np.isclose(distance, cd["out/nemenyi_cd_05_table"], atol=1e-3)


@pytest.mark.parametrize("k", [2, 3, 4, 7, 13])
def test_friedman_and_nemenyi_against_scipy(k):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 6, (8, k)) + np.arange(k) / 3  # some ties
    if k > 2:
        want = scipy.stats.friedmanchisquare(*-scores.T)
        assert np.allclose(figures.friedman(scores), want)
    q = scipy.stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2)
    assert np.isclose(figures.nemenyi(k, 8), q * np.sqrt(k * (k + 1) / 48), rtol=1e-5)
    assert figures.friedman(np.ones((5, k)))[1] == 1


def test_cliques_are_the_longest_stretches():
    assert figures.cliques([1, 2, 2.5, 4, 6], 1.6) == [(0, 2), (2, 3)]
    assert figures.cliques([1, 3, 5], 1) == []


@pytest.fixture(scope="module")
def found():
    """The toy results that the README shows."""
    found = compare.collect(ROOT / "results" / "reference")
    return {key: rows for key, rows in found.items() if key == ("toy", "")}


def test_every_figure_is_drawn(found, tmp_path, capsys):
    """A page lists them with the command."""
    report.draw(found, tmp_path, "results/reference", None)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    kinds = ("disparity", "training", "gallery", "two-points")
    assert {f"toy-{kind}.png" for kind in kinds} | {"ranks-mean-DEO.png"} <= drawn
    page = (tmp_path / "figures.md").read_text()
    assert all(f"]({name})" in page for name in drawn)
    assert page.count("`python report.py --results results/reference`") == len(drawn)


def test_titles_fit(found, monkeypatch):
    """With the longest name of a table that the committed results have."""
    rows = found["toy", ""]
    where = "ham10000, folds, sensitive age, teacher convnet16, student convnet8, epochs 6"
    drawn = []

    def checked(figure, path):
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert where in figure.get_suptitle() and 0 <= box.x0 and box.x1 <= figure.bbox.x1, path
        drawn.append(path)

    monkeypatch.setattr(figures, "save", checked)
    chosen = report.temperatures(rows)
    figures.sweep(chosen, "temperature", [False] * len(chosen), where, "temperature")
    figures.per_class(rows, where, "disparity")
    figures.training(rows, where, "training")
    figures.fairtune_masks(rows, where, "masks")
    assert len(drawn) == 4


def test_the_search_of_fairtune_is_drawn(tmp_path):
    """A figure for a search of masks; none where only the learning rate was searched."""
    rng = np.random.default_rng(0)
    trials = []
    for n in range(8):
        params = {f"bit {k:02}": int(rng.integers(2)) for k in range(6)} | {"lr": rng.random()}
        state = ("complete", "pruned")[n % 2]
        trials.append({"params": params, "state": state, "values": [0.5, 0.4][: 2 - n % 2]})
    search = {"settings": {"objective": "auroc"}, "search": {"trials": trials}}
    path = tmp_path / "masks.png"
    assert "trials" in figures.fairtune_masks({"FairTune": {0: search}}, "toy", path)
    assert path.stat().st_size > 10_000
    for trial in trials:
        trial["params"] = {"lr": 0.1}
    assert figures.fairtune_masks({"FairTune": {0: search}}, "toy", path) is None
