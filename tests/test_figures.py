"""The statistics behind the figures against other sources; every figure is drawn and looked at.

What can mislead in a figure is tested here: texts over texts, markers on the frame or hidden, empty
panels, colours that look alike, intervals of two runs, collapsed runs that look like victories, and
titles that do not say what the tables say.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import test_report

import figures
import report
import results
from data import load

ROOT = Path(__file__).resolve().parent.parent


def test_ranks_against_the_parity_file():
    with np.load(ROOT / "tests" / "parity" / "medical.npz") as file:
        cd = {key[3:]: file[key] for key in file if key.startswith("cd/")}
    scores = cd["in/scores_dataset_by_method"]
    assert np.array_equal(figures.ranks(scores), cd["out/ranks"])
    assert np.allclose(figures.ranks(scores).mean(0), cd["out/avg_rank"])


@pytest.mark.parametrize("k", [3, 4, 7, 13])
def test_ranks_written_out(k):
    """From their definition, with scores that tie; the highest has rank 1."""
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 6, (8, k)) + np.arange(k) / 3  # some ties
    ranks = (scores[:, None] > scores[:, :, None]).sum(-1)
    ranks = ranks + ((scores[:, None] == scores[:, :, None]).sum(-1) + 1) / 2
    assert np.array_equal(figures.ranks(scores), ranks)


def test_ranks_are_marked_data_set_by_data_set(tmp_path, monkeypatch):
    """The rank on each, the mean as a bar, who is not ranked, and beside fairness of what use."""
    titles, shown = titles_of(monkeypatch), []
    monkeypatch.setattr(
        figures.plt.Figure, "savefig", lambda figure, *_, **__: shown.append(figure)
    )
    scores, path = np.random.default_rng(0).random((3, 5)), tmp_path / "ranks.png"
    caption = figures.mean_ranks("abcde", scores, ["left"], ["x", "y", "z"], "AUROC", {}, path)
    assert caption.endswith("lack them: left.") and "N = 3 data sets" in caption
    assert "prior-corrected" not in caption and titles[0].endswith("Not ranked: left")
    each, (axes,) = figures.ranks(scores), shown[0].axes
    order = np.argsort(each.mean(0), kind="stable")
    lines = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == 5}
    for row, place in zip(each, "xyz"):
        assert lines[place].get_xdata().tolist() == row[order].tolist()
        assert (abs(lines[place].get_ydata() - np.arange(5)) < 0.5).all()
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 3]
    assert np.allclose(bars, each.mean(0)[order, None].repeat(2, 1))
    behind = max(line.get_zorder() for line in axes.lines if line.get_linewidth() == 3)
    assert all(line.get_zorder() > behind for line in lines.values())
    assert len({line.get_color() for line in axes.lines if line.get_linewidth() == 3}) == 1
    figures.mean_ranks("abc", np.ones((4, 3)), [], "wxyz", "AUROC", {}, path)
    start = "Ranks by AUROC, not tested: a and b and c have the best mean (2.0 of 3)"
    assert titles[1].startswith(start)
    scores, useful = np.array([[3, 2, 1], [3, 1, 2], [2, 3, 1]]), {"a (λ = 3)": 2.5, "c": 2.6}
    names = ["a (λ = 3)", "b", "c"]
    caption = figures.mean_ranks(names, scores, [], "xyz", "mean-DEO", useful, path)
    title = titles[2].replace("\u00a0", " ")  # which keeps a line from breaking there
    start = "Ranks by mean-DEO, not tested: a has the best mean (1.3 of 3), first on 2 of 3"
    assert title.startswith(start)
    assert "prior-corrected" in caption and "In brackets the mean rank by AUROC" in caption
    ticks = [text.get_text() for text in shown[2].axes[0].get_yticklabels()]
    assert ticks[0] == "a (λ = 3): 1.3 (AUROC 2.5)" and ticks[1] == "b: 2.0"
    useful = {"a (λ = 3)": 2.7, "b": 1.3, "c": 2.0}
    figures.mean_ranks(names, scores, [], "xyz", "mean-DEO", useful, path)
    words = " ".join(titles[3].split())
    start = "Ranks by mean-DEO, not tested: a, whose AUROC ranks last, has the best mean (1.3"
    assert words.startswith(start)
    for few in (scores[:1], scores[:, :2]):
        assert figures.mean_ranks(names, few, [], "xyz", "AUROC", {}, path) is None
    figures.mean_ranks("abc", np.ones((12, 3)), [], "mnopqrstuvwx", "AUROC", {}, path)
    marked = [line for line in shown[-1].axes[0].lines if line.get_marker() != "None"]
    assert len({line.get_marker() for line in marked}) == len(marked) == 12


def noted_values(monkeypatch):
    """A list of (value, place, name) of all points that are drawn from now on."""
    calls, put = [], figures.put

    def draw(axes, value, at, name, *rest, **more):
        calls.append((value, at, name))
        return put(axes, value, at, name, *rest, **more)

    monkeypatch.setattr(figures, "put", draw)
    return calls


@pytest.fixture(scope="module")
def everything():
    """All committed results, of folds the first training, as figures show them."""
    return results.trainings(results.collect(ROOT / "results"))[0]


@pytest.fixture(scope="module")
def by_place(everything):
    """The toy results that the README shows."""
    by_place = everything
    if ("toy", "") not in by_place:
        pytest.skip("results/ has no toy at its present defaults")
    return {("toy", ""): by_place["toy", ""]}


def test_every_figure_is_drawn(by_place, tmp_path):
    """Each has a caption, and pages show both."""
    captions = report.draw(by_place, tmp_path, (), None)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    kinds = "disparity training gallery two-points temperature".split()
    assert drawn == {f"toy-{kind}.png" for kind in kinds}  # one data set has no mean rank
    assert list(captions) == [("toy", "")] and {*captions["toy", ""]} == drawn
    texts = report.pages(by_place, {("all", "made"): report.made_table(by_place)}, captions)
    for name, caption in captions["toy", ""].items():
        assert f"]({name})\n\n*{caption}*" in "".join(texts.values())


def test_sweeps_are_drawn(everything, tmp_path):
    """From the committed results: strengths on CelebA, temperatures on CIFAR10-S."""
    drawn = set()
    for place, rows in everything.items():
        for kind in report.SWEEPS:
            path = tmp_path / f"{place[0]}-{kind}.png"
            if figures.sweep(report.swept(rows, kind), kind, "here", path):
                drawn.add(path.name)
    assert {"celeba-sweep.png", "cifar10s-temperature.png"} <= drawn
    assert drawn == {path.name for path in tmp_path.iterdir()}


def test_axes_say_what_legends_say_and_do_not_enlarge(everything, tmp_path, monkeypatch):
    """One word for one thing, the teacher's own marker, and a temperature from 0."""
    shown, path = [], tmp_path / "figure.png"
    monkeypatch.setattr(
        figures.plt.Figure, "savefig", lambda figure, *_, **__: shown.append(figure)
    )
    figures.sweep(report.swept(everything[SWEPT], "sweep"), "sweep", "x", path)
    (axes,) = shown[0].axes
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1]))
    assert axes.get_ylabel() == "accuracy (%, better ↑)\ndisparity (points, better ↓)"
    assert {"accuracy", "disparity"} <= {*handles}
    assert handles["teacher"].get_marker() == figures.look("teacher")["marker"]
    figures.training(everything["toy", ""], "x", path)
    (ctkd,) = (axes for axes in shown[1].axes if axes.get_ylabel() == "temperature")
    assert ctkd.get_ylim()[0] == 0 and ctkd.get_ylim()[1] > max(ctkd.lines[0].get_ydata())


def test_pictures_of_ham10000_are_credited(tmp_path):
    """In the caption of a figure that was drawn before, too."""
    (tmp_path / report.DRAWN_BEFORE).touch()
    (captions,) = report.draw({}, tmp_path, {"none.png"}, None).values()
    assert "(Tschandl et al., 2018), CC BY-NC 4.0" in captions[report.DRAWN_BEFORE]


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
    """Above each picture its class and the answers of the logits; repaired, then broken ones."""
    rows, texts, titles = by_place["toy", ""], [], titles_of(monkeypatch)
    write = figures.plt.Axes.annotate

    def annotate(axes, text, *at, **more):
        texts.append((text, more["color"]))
        return write(axes, text, *at, **more)

    monkeypatch.setattr(figures.plt.Axes, "annotate", annotate)
    figures.gallery(rows, None, "toy", tmp_path / "gallery.png")
    run, other = (rows[name][0, 0] for name in ("CKD", "adversarial KD"))
    (logits, truth), (fair,) = (
        results.arrays(run, ("last", "labels")),
        results.arrays(other, ["last"]),
    )
    plain, fair = logits.argmax(1), fair.argmax(1)
    repaired, broken = (plain != truth) & (fair == truth), (plain == truth) & (fair != truth)
    assert len(texts) == 4 * 12  # lines of twelve pictures, from below
    for n in range(0, len(texts), 4):
        (debiased, _), (ckd, colour), _, (first, _) = texts[n : n + 4]
        said = run["classes"].index(ckd.partition(": ")[2])
        true = run["classes"].index(first.partition(",")[0])
        assert (plain[truth == true] == said).any() and ckd.startswith("✓✗"[said != true])
        assert colour == (figures.RIGHT if said == true else figures.WRONG)
        assert debiased[0] + ckd[0] == ("✓✗" if n < 24 else "✗✓")
    assert titles[-1].endswith("; in one run, seed 0")
    counts = f"repairs {repaired.sum()} of the {(plain != truth).sum()} errors of CKD and breaks "
    assert titles[-1].startswith(f"Adversarial KD {counts}{broken.sum()} of its ")


def test_the_gallery_shows_real_pictures_too(celeba, tmp_path, monkeypatch):
    """With their folder; from all answers of a distilled and a debiased student."""
    chosen, titles = {"target": "Attractive", "sensitive": "Male"}, titles_of(monkeypatch)
    test = load("celeba", celeba, 16, **chosen)["test"]
    truth, path = test.labels.numpy(), tmp_path / "logits.npz"
    plain, fair = np.arange(len(truth)) % 2, (np.arange(len(truth)) // 2) % 2
    np.savez(path, plain=np.eye(2)[plain], fair=np.eye(2)[fair], ids=np.array(test.ids))
    settings, rows = {"dataset": "celeba", "image_size": 16, "fold": None} | chosen, {}
    for name, answers in (("CKD", "plain"), ("BIRD", "fair")):
        (key, run), *_ = put_runs({"mean_deo": 0.125}).items()
        places = {"teacher": "fair", "last": answers, "ids": "ids"}
        rows[name] = {key: run | {"settings": settings, "arrays": (path, places)}}
    assert figures.gallery(rows, None, "x", tmp_path / "gallery.png") is None
    caption = figures.gallery(rows, celeba, "x", tmp_path / "gallery.png")
    assert "Mean-DEO in this run, and in all 1: teacher 12.5 (12.5), CKD 12.5 (12.5)," in caption
    repaired = ((plain != truth) & (fair == truth)).sum()
    assert f"repairs {repaired} of the {(plain != truth).sum()} errors" in titles[-1]


def test_the_smallest_gap_of_many_groups_is_that_of_the_drawing(everything):
    """Over all folds together: the mean of the folds would name another method here."""
    places = results.trainings(everything)[0].items()
    rows = next(v for p, v in places if p[0] == "ham10000" and "sex+age" in p[1])
    rows, _ = figures.at_two_points(report.without_sweeps(rows), pooled=True)
    rows.pop("re-balancing")
    gaps = {n: results.point(r, "auroc_gap", "best_overall", True) for n, r in rows.items()}
    sentence = figures.gap_sentence(rows, "abcd", True)
    assert sentence == f"The gap in AUROC is smallest with {min(gaps, key=gaps.get)}"


def titles_of(monkeypatch):
    """A list of the titles of all figures from now on."""
    titles, write = [], figures.plt.Figure.suptitle

    def suptitle(figure, text, **more):
        titles.append(text)
        return write(figure, text, **more)

    monkeypatch.setattr(figures.plt.Figure, "suptitle", suptitle)
    return titles


def test_titles_fit(by_place, monkeypatch):
    """With a long name of a table."""
    rows, drawn = by_place["toy", ""], []
    where = "HAM10000, folds, sensitive age, teacher convnet16, student convnet8, epochs 6"

    def checked(figure, path, **_):
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert where[1:] in figure.get_suptitle() and 0 <= box.x0 and box.x1 <= figure.bbox.x1, path
        drawn.append(path)

    monkeypatch.setattr(figures.plt.Figure, "savefig", checked)
    figures.per_class(rows, where, "disparity")
    figures.training(rows, where, "training")
    figures.two_points(rows, False, where, "two points")
    assert len(drawn) == 3


def test_lines_of_titles_are_of_like_length():
    """No word or two alone in the last one, and words are never broken."""
    text = "Ranks by AUROC of the worst group: re-balancing has the best mean, first on 4 of 5"
    first, last = figures.evenly(text, 80).split("\n")
    assert f"{first} {last}" == text and abs(len(first) - len(last)) < 16
    assert (
        figures.evenly("one line", 80) == "one line" and figures.evenly("longest", 3) == "longest"
    )


def test_the_pictures_of_outlines_are_chosen_by_a_rule():
    """The lowest, the median and nine tenths of each group; of three groups, of two of them."""
    scores, groups = np.arange(40.0)[::-1] % 20, np.arange(40) // 20
    found = figures.at_shares(scores + groups, groups)
    assert [n for n, _ in found] == [19, 9, 1, 39, 29, 21]
    assert [words for _, words in found] == [*figures.SHARES.values()] * 2
    three = np.array([5.0, 6, 1, 2, 9, 9]), np.array([0, 0, 1, 1, 2, 2])
    assert {three[1][n] for n, _ in figures.at_shares(*three)} == {1, 2}


def test_the_title_of_training_names_what_intervals_separate_alone(tmp_path, monkeypatch):
    """Not three runs, not collapsed ones, and not the lowest of means that lie together."""
    titles, rows, rng = titles_of(monkeypatch), {}, np.random.default_rng(1)
    ends = {"CKD": (0.2, 5), "ERM": (0.21, 5), "CTKD": (0.4, 5), "BIRD": (0.0, 3)}
    for name, (deo, number) in (ends | {"adversarial KD": (0.0, 5)}).items():
        rows[name] = put_runs({}, runs=number)
        for (_, seed), run in [*rows[name].items()]:
            noise = 0.05 * rng.random()
            last = run["last"]["test"] | {"collapsed": name == "adversarial KD"}
            log = [{"val": {"mean_deo": deo + noise, "auroc": 0.9}, "temperature": 1.0}]
            log[0] |= {"gate": 0.5, "gate_min": 0.1, "gate_max": 0.9}
            rows[name][0, seed] = run | {"log": log, "last": run["last"] | {"test": last}}
    caption = figures.training(rows, "x", tmp_path / "training.png")
    assert titles[0] == "On validation mean-DEO ends above CKD's with CTKD\nX"
    assert "; N = 5, BIRD 3; bands" in caption
    del rows["CTKD"]
    assert figures.training(rows, "x", tmp_path / "training.png")
    assert titles[1] == "On validation no mean-DEO is shown to end apart from CKD's\nX"


def put_runs(tests, names=("a", "b"), shares=(0.5, 0.5), runs=2):
    """{(0, seed): result} of runs whose networks have this test."""
    part = {"test": tests | {"collapsed": False}, "class_shares": list(shares)}
    run = {"group_names": list(names), "classes": ["benign", "malignant"], "method": "x"}
    run |= {"changed": {}, "settings": {"fold": None}}
    run |= dict.fromkeys(("teacher", "last", *results.RULES), part)
    return {(0, seed): run for seed in range(runs)}


@pytest.mark.parametrize("areas", [(None, 0.8, 0.9), (0.8, None, 0.9), (0.8, None), (None, None)])
def test_two_points_with_an_undefined_auroc(areas, tmp_path, monkeypatch):
    """A group without one class: the worst of the others is shown, and of two groups the known."""
    known, drawn = [area for area in areas if area], noted_values(monkeypatch)
    test = {"auroc": 0.85, "auroc_gap": 0.1 if len(known) > 1 else None}
    test |= {"groups": [{"auroc": area} for area in areas], "auroc_worst_group": 0.8}
    rows = {name: put_runs(test, "abc"[: len(areas)]) for name in ("ERM", "CKD", "BIRD")}
    assert figures.two_points(rows, False, "x", tmp_path / "two.png")
    points = [value.point for value, _, _ in drawn[:: 2 * len(rows)]]  # the first of each panel
    middle = (80,) if len(areas) == 3 else tuple(100 * area if area else np.nan for area in areas)
    gap = 10 if len(known) > 1 else np.nan
    assert np.allclose(points, (85, *middle, gap), equal_nan=True)


def test_a_title_says_how_far_the_intervals_of_both_epochs_reach(tmp_path, monkeypatch):
    """The widest that is drawn, here that of an open marker."""
    titles, drawn = titles_of(monkeypatch), noted_values(monkeypatch)
    rows = {name: put_runs({}, runs=5) for name in ("ERM", "CKD", "BIRD")}
    for runs, (rule, wide) in itertools.product(rows.values(), zip(results.RULES, (0.1, 0.2))):
        for (_, seed), run in [*runs.items()]:
            first, second = 0.8 + wide * (seed % 2), 0.8 + wide * (seed % 3 > 0)
            test = {"auroc": 0.8, "auroc_gap": abs(second - first), "collapsed": False}
            test |= {"groups": [{"auroc": area} for area in (first, second)]}
            runs[0, seed] = run | {rule: {"test": test}}
    assert figures.two_points(rows, False, "x", tmp_path / "two.png")
    most = max(value.high for value, _, _ in drawn[-2 * len(rows) :])
    assert most > 20 and titles[0].replace("\n", " ").startswith(
        "None of the 3 methods drawn is shown to serve a and b differently in AUROC; "
        f"the gaps' intervals reach {most:.1f} points"
    )


def test_an_undefined_disparity_is_not_drawn_as_fairness(tmp_path, monkeypatch):
    """Group b has no malignant picture; a recall of 0 would be another thing."""
    drawn, counts = noted_values(monkeypatch), [[[40, 10], [10, 40]], [[50, 0], [0, 0]]]
    titles = titles_of(monkeypatch)
    test = {"counts": counts, "counts_corrected": counts, "disparity": None}
    caption = figures.per_class(dict.fromkeys(("CKD", "BIRD"), put_runs(test)), "x", tmp_path / "c")
    assert "largest output" in caption and "a group lacks the class: malignant." in caption
    assert np.allclose([value.point for value, _, _ in drawn[:2]], [20, np.nan], equal_nan=True)
    assert "(from undefined to undefined points)" in " ".join(titles[0].split())
    log = {"log": [{"val": {"mean_deo": None, "auroc": 0.9}}]}
    rows = {n: {k: r | log for k, r in put_runs({}).items()} for n in ("ERM", "CKD")}
    assert figures.training(rows, "x", tmp_path / "training.png")
    assert titles[1] == "Validation along training\nX"


def test_where_a_class_is_rare_figures_show_the_corrected_decisions(tmp_path, monkeypatch):
    drawn = noted_values(monkeypatch)
    plain, corrected = ([[[40, 10], [r, 50 - r]], [[40, 10], [10, 40]]] for r in (50, 20))
    test = {"counts": plain, "counts_corrected": corrected, "disparity_corrected": 0.1}
    rows = dict.fromkeys(("CKD", "BIRD"), put_runs(test, shares=(0.8, 0.2)))
    assert "prior-corrected" in figures.per_class(rows, "x", tmp_path / "classes.png")
    assert np.allclose([value.point for value, _, _ in drawn[:2]], [0, 20])


# ----- what can mislead ---------------------------------------------------------------------------

BLOND = "celeba", f"image_size_32-target_Blond_Hair-{report.NETWORKS}"
SWEPT, STYLES = report.PLACES["CelebA, attractive"], report.PLACES["CIFAR10-S"]
FOLDED = report.PLACES["HAM10000, sex"]
LOOKED_AT = [("toy", ""), BLOND, SWEPT, STYLES, pytest.param(FOLDED, marks=pytest.mark.slow)]


def boxes(figure):
    """(text, box) of all that is written in a figure."""
    texts = [text for part in (figure, *figure.subfigs) for text in part.texts]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            texts.append(axis.label)
            low, high = sorted(axis.get_view_interval())
            texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    shown = []
    for text in [text for text in texts if text.get_text().strip() and text.get_visible()]:
        shown.append((text.get_text(), text.get_window_extent()))
    return shown


def look_at(figure, path, **_):
    """What nobody wants to see in a figure."""
    figure.draw_without_rendering()
    assert figure.get_suptitle().strip(), path
    written = boxes(figure)
    for text, box in written:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
        assert inside and box.y1 <= figure.bbox.y1, f"{path}: {text} is cut"
    for (one, a), (two, b) in itertools.combinations(written, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        assert wide < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1, f"{path}: {one} over {two}"
    for axes in figure.axes:
        assert axes.lines or axes.images, f"{path}: an empty panel"
        marked = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
        filled = []
        for line in marked if axes.name != "3d" else ():
            places = line.get_transform().transform(line.get_xydata()).reshape(-1, 2)
            places, size = (
                places[np.isfinite(places).all(1)],
                line.get_markersize() / 72 * figure.dpi,
            )
            low, high = axes.bbox.min + size / 2, axes.bbox.max - size / 2
            assert ((low <= places) & (places <= high)).all(), f"{path}: a marker on the frame"
            if line.get_marker() not in ("x", ".") and "training" not in str(path):
                filled += [(*place, line.get_markerfacecolor()) for place in places]
        for (x1, y1, one), (x2, y2, two) in itertools.combinations(filled, 2):
            hidden = np.hypot(x1 - x2, y1 - y2) < 3 and one == two
            assert not hidden, f"{path}: a marker over another"


@pytest.mark.parametrize("place", LOOKED_AT)
def test_nothing_is_cut_hidden_empty_or_over_another(everything, place, tmp_path, monkeypatch):
    seen = []

    def look(figure, path, **more):
        look_at(figure, path)
        seen.append(path.name)

    monkeypatch.setattr(figures.plt.Figure, "savefig", look)
    rows = {place: everything[place]}
    report.draw(rows, tmp_path, (), None)
    assert any("two-points" in name or "sweep" in name for name in seen)


def test_figures_of_masks_show_dice(tmp_path, monkeypatch):
    """Each method at two epochs, all and group by group, the gap raw and inside classes."""
    by_place = results.collect(test_report.put_all_masks(tmp_path / "runs"))
    drawn, titles, looked = noted_values(monkeypatch), titles_of(monkeypatch), []
    monkeypatch.setattr(
        figures.plt.Figure, "savefig", lambda *a, **k: looked.append(look_at(*a, **k) or a[1].name)
    )
    captions = report.draw(by_place, tmp_path, (), None)
    folds, toy = "ham10000-segment-folds-sensitive_age-two-points.png", "toy-segment-two-points.png"
    assert {*looked} == {folds, toy} and "all" not in captions  # one data set has no mean rank
    rows = by_place["ham10000-segment", "folds-sensitive_age"]
    names = [name for name in results.TWO_POINTS if name in rows]
    assert len(names) == 7
    shown = [value for value, _, name in drawn[: 2 * 5 * len(names)] if name == "ERM"]
    metric = ["dice", ("dice", 0), ("dice", 1), "dice_gap", "dice_gap_standardised"]
    for value, what in zip(shown[::2], metric):
        name, group = what if isinstance(what, tuple) else (what, None)
        assert value == results.cell(rows["ERM"], name, "best_overall", group, True), what
    title = titles[0].replace("\n", " ")
    assert title.startswith("Dice is lower in the group over 60 with 7 of the 7 methods drawn, by ")
    assert "; inside classes, such as diagnoses, with " in title
    made, _ = report.tables(by_place, {})
    table = made[("ham10000-segment", "folds-sensitive_age"), "fairdi"]
    ends = results.RULES.values()
    assert [row[0] for row in table.rows] == [f"{name}, {end}" for name in names for end in ends]
    assert "HAM10000, masks, groups by age" in titles[0]


def seen_by(colour, kind):
    """CIE Lab of a colour as a person without one kind of cone sees it (Machado et al., 2009)."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    values = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175]]
    to_xyz += [[0.0193339, 0.119192, 0.9503041]]
    xyz = to_xyz @ (kind @ values).clip(0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


KINDS = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216]]
    + [[-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]]
    + [[-0.01182, 0.04294, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602]]
    + [[0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_colours_differ_whatever_cones_a_reader_has(kind):
    """Okabe and Ito's red and orange, which look alike without green cones, are 18 apart."""
    for one, two in itertools.combinations(figures.FAMILIES, 2):
        apart = np.linalg.norm(
            np.subtract(*(seen_by(c, np.array(KINDS[kind])) for c in (one, two)))
        )
        assert apart > 20, (one, two)


def test_every_method_has_one_look_of_its_own():
    methods = {name.partition(",")[0] for name in results.NAMES.values()}
    assert methods | {"teacher"} == set(figures.LOOK)
    for one, two in itertools.combinations(figures.LOOK, 2):  # also where print is grey
        assert any(figures.LOOK[one][k] != figures.LOOK[two][k] for k in ("marker", "ls")), one
    for rows in (results.TRAINING, results.TWO_POINTS, ("CKD", *results.DEBIASED)):
        assert len({figures.LOOK[name]["marker"] for name in ("teacher", *rows)}) == 1 + len(rows)
    assert figures.look("BIRD, μ = 3 (pre-trained teacher)") == figures.look("BIRD")


def test_intervals_are_the_tables_own_and_none_is_over_three_runs(everything):
    three, five = everything[SWEPT]["adversarial KD"], everything["toy", ""]["CKD"]
    assert np.isnan(figures.measured(three, "accuracy").low)
    assert not np.isnan(results.cell(three, "accuracy").low)
    assert figures.measured(five, "accuracy") == results.cell(five, "accuracy")
    one = everything["toy", ""]["GroupDRO, η = 0.01"]
    assert len(one) == 1 and figures.measured(one, "mean_deo") == results.cell(one, "mean_deo")
    for value in figures.ahead(one, "disparity", "last", False):
        assert value.low < value.point < value.high


def test_folds_have_the_interval_of_all_their_pictures(everything, tmp_path, monkeypatch):
    """As in the pooled tables, not Student's over the folds."""
    rows, drawn = everything[FOLDED], noted_values(monkeypatch)
    rows = {name: {k: rows[name][k] for k in [(0, 0), (1, 0)]} for name in ("BIRD", "CKD")}
    caption = figures.per_class(rows, "x", tmp_path / "classes.png")
    assert "N = 2 folds, intervals over all their test pictures" in caption
    assert "BIRD, μ = 0.3" in {name for _, _, name in drawn}
    whole, *draws = 100 * results.signed(rows["CKD"], "disparity_corrected", "last", True)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    ckd = [value for value, _, name in drawn if name == "CKD"]
    assert np.allclose([value[:3] for value in ckd], np.stack([whole, low, high], axis=1))


def test_collapsed_runs_are_crossed_out_in_every_figure(everything, tmp_path, monkeypatch):
    """They give everybody one answer, and have a mean-DEO of nearly 0."""
    crossed, titles, cross = [], titles_of(monkeypatch), figures.cross_out
    monkeypatch.setattr(figures, "cross_out", lambda axes, *at: crossed.append(cross(axes, *at)))
    rows, path, bad = everything[BLOND], tmp_path / "figure.png", {}
    for key, run in rows["CKD"].items():
        last = run["last"] | {"test": run["last"]["test"] | {"collapsed": True}}
        bad[key] = run | dict.fromkeys(("last", *results.RULES), last)
    rows = {"ERM": rows["ERM"], "CKD": rows["CKD"], "adversarial KD": bad}
    for draw in (figures.per_class, figures.training):
        crossed.clear()
        assert draw(rows, "blond", path) and crossed, draw.__name__
    assert "has collapsed" in titles[0] and "lowers" not in titles[0]
    assert "adversarial" not in titles[1]
    crossed.clear()
    assert figures.sweep(report.swept(everything[SWEPT], "sweep"), "sweep", "x", path)
    assert len(crossed) == 2 and "students that collapse: " in titles[2]  # on two curves
    rows = dict.fromkeys(rows, bad)
    crossed.clear()
    assert figures.two_points(rows, False, "x", path) and len(crossed) == 3 * 2 * 4


def test_captions_name_what_is_left_out(everything, tmp_path):
    rows, path = report.without_sweeps(everything[BLOND]), tmp_path / "figure.png"
    assert figures.training(rows, "x", path).endswith("logs not kept: adversarial KD, λ = 0.5.")
    rows = everything[FOLDED] | {}
    lost = {key: run | {"arrays": (0, {})} for key, run in rows["CKD"].items()}
    rows = {"ERM": rows["ERM"], "FIS": rows["FIS"], "FairDi": rows["FairDi"], "CKD": lost}
    few = {name: {key: runs[key] for key in sorted(runs)[:1]} for name, runs in rows.items()}
    caption = figures.two_points(few, True, "x", path)
    assert "N = 3 methods" in caption and caption.endswith("at these epochs: CKD.")
    made, _ = report.tables({FOLDED: few}, {})
    table = made[FOLDED, "fairdi"]  # has the rows of the figure
    assert [row[0].partition(",")[0] for row in table.rows[::2]] == ["ERM", "FIS", "FairDi"]
    assert "Left out, with fewer runs or without their outputs at these epochs: CKD." in table.notes
    names, scores, others, places = report.rank_blocks(everything, "AUROC")
    assert "GroupDRO" in others and not {*names} & {*others}
    assert {place.partition(":")[0].partition(",")[0] for place in places} == {
        "CelebA",
        "CIFAR10-S",
        "FairFace",
        "HAM10000",
    }
    caption = figures.mean_ranks(names, scores, others, places, "AUROC", {}, path)
    assert f"N = {len(scores)} " in caption and ", ".join(others) in caption


def test_titles_say_what_the_tables_say(everything, tmp_path, monkeypatch):
    titles, path = titles_of(monkeypatch), tmp_path / "figure.png"
    figures.per_class(everything[STYLES], "x", path)
    table = report.layout_table("slides", results.complete(everything[STYLES])[0])
    rows = {row[0]: dict(zip(table.header, row)) for row in table.rows}
    ends = [f"{rows[name]['disparity'].point:.1f}" for name in ("CKD", "adversarial KD")]
    assert (
        "Adversarial KD, λ = 0.5 lowers the disparity of CKD (from {} to {} points)".format(*ends)
        in titles[0]
    )
    swept = report.swept(everything[SWEPT], "sweep")
    figures.sweep(swept, "sweep", "x", path)
    table = report.layout_table("sweep", swept)
    (row,) = [dict(zip(table.header, row)) for row in table.rows if row[0] == "2"]
    paid, bought = (-row[f"{name}, λ − 0"].point for name in ("top-1", "disparity"))
    told = f"accuracy falls (−{paid:.1f} points) and disparity falls (−{bought:.1f} "
    assert told in " ".join(titles[1].split())


def test_names_are_those_that_people_say(everything):
    assert results.scene(everything[BLOND]) == "CelebA: blond hair, groups by sex"
    assert results.scene(everything[STYLES]) == "CIFAR10-S, groups of colour and grey"
    assert list(map(results.said, ("age<=60", "age>60", "30<age<=50", "female, age>60"))) == [
        "60 or younger",
        "over 60",
        "30 to 50",
        "women, over 60",
    ]


def test_the_variant_of_a_figure_is_that_of_the_tables():
    runs = {(0, 0): {"method": "bird", "changed": {"fair_weight": 0.1}, "settings": {}}}
    other = {(0, 0): {"method": "bird", "changed": {"phi_lr": 0.0}, "settings": {}}}
    rows = {"BIRD, gates fixed": other, "BIRD, μ = 0.1": runs}
    assert results.variant(rows, "BIRD") == "BIRD, μ = 0.1" and not results.variant(rows, "MFD")
    assert results.variant(rows | {"BIRD": runs}, "BIRD") == "BIRD"
    assert results.label("BIRD", runs) == "BIRD, μ = 0.1"
    tuned = {(0, 0): {"method": "fairtune", "changed": {}, "settings": {}}}
    assert results.label("FairTune", tuned).endswith("(pre-trained)")


def test_names_of_files_are_those_that_windows_allows(by_place, tmp_path):
    rows = {("toy", "teacher_timm:a*"): by_place["toy", ""]}
    report.draw(rows, tmp_path, {"toy-teacher_timm_a_-disparity.png"}, None)
    assert len([*tmp_path.iterdir()]) == 1


def test_names_of_files_are_never_too_long(by_place, tmp_path):
    """Conditions of many settings begin alike: their names differ all the same."""
    rows = {("toy", f"a_{'1' * 300}{end}"): by_place["toy", ""] for end in "xy"}
    report.draw(rows, tmp_path, (), None)
    names = [path.name for path in tmp_path.glob("*-disparity.png")]
    assert len({*names}) == 2 and max(map(len, names)) < 250
