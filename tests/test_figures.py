"""The statistics behind the figures against other sources; every figure is drawn."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import figures
import report
import results

ROOT = Path(__file__).resolve().parent.parent


def test_ranks_friedman_and_nemenyi_against_the_parity_file():
    with np.load(ROOT / "tests" / "parity" / "medical.npz") as file:
        cd = {key[3:]: file[key] for key in file if key.startswith("cd/")}
    scores = cd["in/scores_dataset_by_method"]
    assert np.array_equal(figures.ranks(scores), cd["out/ranks"])
    assert np.allclose(figures.ranks(scores).mean(0), cd["out/avg_rank"])
    assert np.isclose(figures.friedman(scores), cd["out/friedman_scipy_tie_corrected_stat_p"][1])
    distance = figures.nemenyi(scores.shape[1], len(scores))
    assert np.isclose(distance, cd["out/nemenyi_cd_05_studentized"], atol=1e-5)
    assert np.isclose(distance, cd["out/nemenyi_cd_05_table"], atol=1e-3)


@pytest.mark.parametrize("k", [3, 4, 7, 13])
def test_friedman_written_out(k):
    """From its definition, with scores that tie; the highest has rank 1."""
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 6, (8, k)) + np.arange(k) / 3  # some ties
    ranks = (scores[:, None] > scores[:, :, None]).sum(-1)
    ranks = ranks + ((scores[:, None] == scores[:, :, None]).sum(-1) + 1) / 2
    assert np.array_equal(figures.ranks(scores), ranks)
    variance = ((ranks - (k + 1) / 2) ** 2).sum() / (8 * (k - 1))
    chi2 = 8 * ((ranks.mean(0) - (k + 1) / 2) ** 2).sum() / variance
    assert np.isclose(figures.friedman(scores), scipy.stats.chi2.sf(chi2, k - 1))
    assert figures.friedman(np.ones((5, k))) == 1


def test_cliques_are_the_longest_stretches():
    assert figures.cliques([1, 2, 2.5, 4, 6], 1.6) == [(0, 2), (2, 3)]
    assert figures.cliques([1, 3, 5], 1) == []


@pytest.fixture(scope="module")
def by_place():
    """The toy results that the README shows."""
    by_place = results.collect(ROOT / "results")
    if ("toy", "") not in by_place:
        pytest.skip("results/ has no toy at its present defaults")
    return {("toy", ""): by_place["toy", ""]}


def test_every_figure_is_drawn(by_place, tmp_path):
    """Each has a caption, and pages show both."""
    captions = report.draw(by_place, tmp_path, (), None)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    kinds = "disparity training gallery two-points masks".split()
    ranks = {f"ranks-{name}.png" for name in ("AUROC", "worst-group", "mean-DEO")}
    assert drawn == {f"toy-{kind}.png" for kind in kinds} | ranks
    assert {*captions["toy", ""], *captions["all"]} == drawn
    texts = report.pages(by_place, {("all", "made"): report.made_table(by_place)}, captions)
    for name, caption in [*captions["toy", ""].items(), *captions["all"].items()]:
        assert f"]({name})\n\n*{caption}*" in "".join(texts.values())


def test_sweeps_are_drawn(tmp_path):
    """From the committed results: strengths on CelebA, temperatures on HAM10000."""
    drawn = set()
    for place, rows in results.collect(ROOT / "results").items():
        for kind in report.SWEEPS:
            path = tmp_path / f"{place[0]}-{kind}.png"
            if figures.sweep(report.swept(rows, kind), kind, "here", path):
                drawn.add(path.name)
    assert {"celeba-sweep.png", "ham10000-temperature.png"} <= drawn
    assert drawn == {path.name for path in tmp_path.iterdir()}


def test_only_wanted_figures_are_drawn(by_place, tmp_path):
    captions = report.draw(by_place, tmp_path, {"toy-disparity.png"}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-disparity.png"]
    assert list(captions) == [("toy", "")]


def test_no_figure_of_what_is_not_there_or_not_comparable(by_place, tmp_path):
    """One row; no logits."""
    rows = by_place["toy", ""]
    assert report.draw({("toy", ""): {"ERM": rows["ERM"]}}, tmp_path, (), None) == {}
    without = {
        name: {key: run | {"arrays": (tmp_path / "x.npz", {})} for key, run in runs.items()}
        for name, runs in rows.items()
    }
    report.draw({("toy", ""): without}, tmp_path, ("toy-gallery.png",), None)
    assert list(tmp_path.iterdir()) == []


def test_the_gallery_shows_how_each_model_answered(by_place, tmp_path, monkeypatch):
    """Above each picture: its class, and the answers, which must be those of the logits."""
    rows, titles = by_place["toy", ""], []
    monkeypatch.setattr(figures.plt.Axes, "set_title", lambda axes, text, **_: titles.append(text))
    figures.gallery(rows, None, "toy", tmp_path / "gallery.png")
    run = rows["CKD"][0, 0]
    logits, truth = results.arrays(run, ("last", "labels"))
    answers = logits.argmax(1)
    assert len(titles) == 15
    for title in titles:
        lines = title.splitlines()
        said = run["classes"].index(lines[2].partition(": ")[2])
        true = run["classes"].index(lines[0].partition(",")[0])
        assert (answers[truth == true] == said).any() and lines[2].startswith("✓✗"[said != true])


def test_titles_fit(by_place, monkeypatch):
    """With the longest name of a table that the committed results have."""
    rows, drawn = by_place["toy", ""], []
    where = "ham10000, folds, sensitive age, teacher convnet16, student convnet8, epochs 6"

    def checked(figure, path, **_):
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert where in figure.get_suptitle() and 0 <= box.x0 and box.x1 <= figure.bbox.x1, path
        drawn.append(path)

    monkeypatch.setattr(figures.plt.Figure, "savefig", checked)
    figures.per_class(rows, where, "disparity")
    figures.training(rows, where, "training")
    figures.fairtune_masks(rows, where, "masks")
    figures.two_points(rows, False, where, "two points")
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


def put_runs(tests, names=("a", "b"), shares=(0.5, 0.5)):
    """{(0, 0): result} of one run whose networks have this test."""
    part = {"test": tests, "class_shares": list(shares)}
    run = {"group_names": list(names), "classes": ["benign", "malignant"], "method": "x"}
    return {(0, 0): run | dict.fromkeys(("teacher", "last", *results.RULES), part)}


def noted(monkeypatch, name):
    """A list to which each call of a drawing method of the axes adds its positional arguments."""
    calls, method = [], getattr(figures.plt.Axes, name)

    def draw(axes, *given, **more):
        calls.append(given)
        return method(axes, *given, **more)

    monkeypatch.setattr(figures.plt.Axes, name, draw)
    return calls


@pytest.mark.parametrize("areas", [(None, 0.8, 0.9), (0.8, None, 0.9), (0.8, None), (None, None)])
def test_two_points_with_an_undefined_auroc(areas, tmp_path, monkeypatch):
    """A group without one class: the best and the worst of the others are shown."""
    known, drawn = [area for area in areas if area], noted(monkeypatch, "plot")
    test = {"auroc": 0.85, "auroc_gap": 0.1 if len(known) > 1 else None}
    test["groups"] = [{"auroc": area} for area in areas]
    rows = {name: put_runs(test, "abc"[: len(areas)]) for name in ("ERM", "CKD", "BIRD")}
    assert figures.two_points(rows, False, "x", tmp_path / "two.png")
    if len(areas) == 3:
        assert np.allclose(drawn[0], (90, 80))


def test_an_undefined_disparity_is_not_drawn_as_fairness(tmp_path, monkeypatch):
    """Group b has no malignant picture; a recall of 0 would be another thing."""
    drawn = noted(monkeypatch, "errorbar")
    counts = [[[40, 10], [10, 40]], [[50, 0], [0, 0]]]
    rows = dict.fromkeys(("CKD", "BIRD"), put_runs({"counts": counts, "counts_corrected": counts}))
    assert "largest output" in figures.per_class(rows, "x", tmp_path / "classes.png")
    assert np.allclose(drawn[0][0], [20, np.nan], equal_nan=True)


def test_where_a_class_is_rare_figures_show_the_corrected_decisions(tmp_path, monkeypatch):
    drawn = noted(monkeypatch, "errorbar")
    plain, corrected = ([[[40, 10], [r, 50 - r]], [[40, 10], [10, 40]]] for r in (50, 20))
    test = {"counts": plain, "counts_corrected": corrected}
    rows = dict.fromkeys(("CKD", "BIRD"), put_runs(test, shares=(0.8, 0.2)))
    assert "prior-corrected" in figures.per_class(rows, "x", tmp_path / "classes.png")
    assert np.allclose(drawn[0][0], [0, 20])
