"""Figures of result files, for report.py, which chooses the runs.

Each function draws one figure from rows {name: {(fold, seed): result}} and returns its caption, or
None where the runs do not give it. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; markers and line styles say the same once more, for print in grey.
"""

import collections
import textwrap

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

import metrics
import results
from data import load
from results import DEBIASED, DECISIONS, RULES, TRAINING, TWO_POINTS, main_rule

COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000 #999999 #7a5c00 #b8a800".split()
MARKERS, STYLES = "osD^vPX*<>", ["-", "--", "-.", ":"]
plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def look(n):
    """Colour, marker and line style of the n-th row."""
    return {
        "color": COLOURS[n % len(COLOURS)],
        "marker": MARKERS[n % len(MARKERS)],
        "ls": STYLES[n % len(STYLES)],
    }


def three_models(rows):
    """{name: (row, network)} of the teacher, its student and a debiased student; or {}."""
    debiased = next((name for name in DEBIASED if name in rows), None)
    if "CKD" not in rows or not debiased:
        return {}
    return {"teacher": ("CKD", "teacher"), "CKD": ("CKD", "last"), debiased: (debiased, "last")}


def band(axes, x, curve, n, label=None, alpha=0.2, **more):
    """The line of the n-th row and its interval; curve (X, 3) is mean, low, high."""
    axes.plot(x, curve[:, 0], label=label, **look(n), **more)
    axes.fill_between(x, curve[:, 1], curve[:, 2], color=look(n)["color"], alpha=alpha, lw=0)


def save(figure, path, title=None, legend_of=None, where="outside right center"):
    """Add the title and, outside the axes, the legend of `legend_of`; write the file."""
    if legend_of:
        figure.legend(*legend_of.get_legend_handles_labels(), loc=where)
    if title:
        width = int(12 * figure.get_figwidth())  # of letters in a line
        figure.suptitle("\n".join(textwrap.fill(line, width) for line in title.splitlines()))
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ----- one method against another -----------------------------------------------------------------


def two_points(rows, pooled, where, path):
    """FairDi's figure 1: each method at the epochs best on validation overall and in a group."""
    rows = {name: rows[name] for name in TWO_POINTS if name in rows}
    ## Folds need logits, and of a method's former usual weight only the last epoch's were kept.
    kept = {n: all({*RULES} <= {*r["arrays"][1]} for r in rows[n].values()) for n in rows if pooled}
    rows = {name: runs for name, runs in rows.items() if kept.get(name, True)}
    if len(rows) < 3:
        return None
    names = next(iter(next(iter(rows.values())).values()))["group_names"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for n, (name, runs) in enumerate(rows.items()):
        line = []
        for rule, fill in zip(RULES, (look(n)["color"], "white")):
            label = name if fill != "white" else ""
            style = look(n) | {"ls": "", "ms": 8, "mfc": fill, "label": label}
            groups = range(len(names))
            areas = [results.point(runs, "auroc", rule, g, pooled) for g in groups]
            best, worst = np.fmax.reduce(areas), np.fmin.reduce(areas)  # of those that are defined
            left.plot(*(areas if len(names) == 2 else (best, worst)), **style)
            both = ("auroc", "auroc_gap")
            line.append([results.point(runs, metric, rule, None, pooled) for metric in both])
            right.plot(*line[-1], **style)
        right.plot(*zip(*line), color=look(n)["color"], lw=0.8, zorder=0)
    ends = [*left.get_xlim(), *left.get_ylim()]
    ends = (max(min(ends), 0), min(max(ends), 100.5))
    left.plot(ends, ends, color="0.7", lw=1, ls="--", zorder=0)
    at = {"xytext": (12, 2), "textcoords": "offset points", "color": "0.4"}
    left.annotate("equal", (ends[0], ends[0]), **at)
    names = names if len(names) == 2 else ("best group", "worst group")
    left.set(xlabel=f"AUROC of {names[0]} (%)", ylabel=f"AUROC of {names[1]} (%)")
    left.set_title("Groups: nearer to the line is fairer")
    right.set(xlabel="AUROC of all (%)", ylabel="AUROC gap between groups (points)")
    right.set_ylim(bottom=0)
    right.set_title("Good is at the lower right")
    title = f"{where}\nfilled = epoch best overall, hollow = epoch best in the worst group"
    save(figure, path, title, left)
    return (
        "AUROC of the groups, and the gap between them against AUROC: each method at two epochs "
        "chosen on validation (the layout of FairDi's first figure)."
    )


def ranks(scores):
    """Rank of each column in each row of scores (N, k), 1 is the highest, ties share the mean."""
    return scipy.stats.rankdata(-scores, axis=1)


def friedman(scores):
    """p of Friedman's test, corrected for ties: do the columns of scores (N, k > 2) differ?"""
    if (scores == scores[:, :1]).all():  # nothing differs, and the statistic is 0 / 0
        return 1.0
    return scipy.stats.friedmanchisquare(*ranks(scores).T).pvalue


def nemenyi(k, n, level=0.95):
    """Critical difference of mean ranks: q/√2 · √(k(k+1)/6n), q of the studentized range."""
    q = scipy.stats.studentized_range.ppf(level, k, np.inf)
    return q / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))


def cliques(mean_ranks, distance):
    """Longest stretches of sorted ranks that lie within the distance: [(first, last)] positions."""
    stretches = []
    for i, first in enumerate(mean_ranks):
        last = max(j for j, r in enumerate(mean_ranks) if r - first <= distance)
        if last > i and (not stretches or last > stretches[-1][1]):
            stretches.append((i, last))
    return stretches


def critical_difference(names, scores, title, path):
    """Mean ranks of the methods; those that the Nemenyi test cannot tell apart are joined.

    scores    (N, k), higher is better: N data sets, folds or seeds, k methods
    """
    n, k = scores.shape
    if n < 2 or k < 3:
        return None
    p = friedman(scores)
    mean, distance = ranks(scores).mean(0), nemenyi(k, n)
    order = np.argsort(mean, kind="stable")
    joined = cliques(mean[order], distance) if p < 0.05 else []  # the gate
    half, height, top = (k + 1) // 2, 0.55, 0.7 + 0.28 * len(joined)
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.24 * k), layout="constrained")
    axes.hlines(0, 1, k, color="black", lw=1)
    axes.vlines(range(1, k + 1), -0.15, 0, color="black", lw=1)
    for r in range(1, k + 1):
        axes.text(r, -0.3, str(r), ha="center", va="bottom")
    for place, m in enumerate(order):
        left = place < half
        y = top + height * (place if left else k - 1 - place)
        end = 1 - 0.03 * k if left else k + 0.03 * k
        axes.plot([mean[m], mean[m], end], [0, y, y], color="0.35", lw=0.8)
        side = "right" if left else "left"
        axes.text(end, y, f" {names[m]} ({mean[m]:.1f}) ", ha=side, va="center")
    verdict = f"Friedman test: p = {p:.2g}"
    for level, (i, j) in enumerate(joined):
        y, ends = 0.35 + 0.28 * level, mean[order][[i, j]] + [-0.04, 0.04]
        axes.plot(ends, [y, y], color="black", lw=3.5, solid_capstyle="round")
    different = "; a bar joins those of which no difference is shown"
    verdict += different if p < 0.05 else ": no difference between any of them is shown"
    axes.plot([1, 1 + distance], [-1.25, -1.25], color="black", lw=1.5, marker="|", ms=8)
    words = f"critical difference {distance:.2f}"
    axes.text(1 + distance / 2, -1.4, words, ha="center", va="bottom")
    axes.set(xlim=(-0.22 * k, 1.22 * k + 1), ylim=(top + 0.2 + height * half, -1.9))
    axes.axis("off")
    axes.set_title(f"{title}: mean rank, 1 is best\n{verdict}")
    save(figure, path)
    return (
        f"Mean ranks over {n} repetitions (seeds, or folds, of which the attributes are averaged; "
        "those of one data set share pictures, so that the test is optimistic; decisions are "
        "prior-corrected where a class is rare). Bars join methods closer than Nemenyi's distance, "
        "drawn only if Friedman's test finds any difference."
    )


def per_class(rows, where, path):
    """Signed disparity of each class: the teacher, its student, a debiased student."""
    models = three_models(rows)
    if not models:
        return None
    first, end = next(iter(rows["CKD"].values())), main_rule(rows)
    classes, groups = first["classes"], first["group_names"]
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.5 * len(classes)), layout="constrained")
    for n, (name, (row, rule)) in enumerate(models.items()):
        ahead = results.signed(rows[row], f"disparity{end}", rule, False)  # (S, C)
        mean, low, high = 100 * np.array([metrics.seed_interval(values=v) for v in ahead.T]).T
        low, high = low.clip(-100), high.clip(max=100)  # Student's t knows no limits of a recall
        y = np.arange(len(classes)) + 0.22 * (n - 1)
        error = None if np.isnan(low).all() else [mean - low, high - mean]
        style = look(n) | {"ls": ""}
        axes.errorbar(mean, y, xerr=error, label=name, ms=7, capsize=3, **style)
    axes.axvline(0, color="0.6", lw=1)
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    two = f"recall of {groups[-1]} − recall of {groups[0]}"
    axes.set(xlabel=f"{two if len(groups) == 2 else 'spread of recall'} (points)")
    save(figure, path, f"{where}\nwho is favoured in which class?", axes)
    return (
        "Disparity of each class for the teacher, the student distilled from it, and a debiased "
        f"student ({DECISIONS[end]}); bars are 95 % intervals over runs."
    )


def gallery(rows, data_dir, where, path):
    """Test pictures on which teacher, student and debiased student disagree."""
    models = three_models(rows)
    common = set.intersection(*({*rows[row]} for row, _ in models.values())) if models else ()
    settings = rows["CKD"][min(common)]["settings"] if common else {}
    if not common or (settings["dataset"] != "toy" and data_dir is None):
        return None
    names = ("target", "sensitive", "fold", "skip_bad", "subject", "file_column")
    choices = {k: settings.get(k) for k in names}
    data = load(settings["dataset"], data_dir, settings["image_size"], **choices)
    test, answers, end = data["test"], {}, main_rule(rows)
    for name, (row, rule) in models.items():
        run = rows[row][min(common)]
        logits, ids = results.arrays(run, (rule, "ids"))
        if ids.tolist() != test.ids:
            return None  # made from other pictures
        answers[name] = (logits - (np.log(run[rule]["class_shares"]) if end else 0)).argmax(1)
    said = np.stack(list(answers.values()))  # (3, N)
    split = np.flatnonzero((said != said[0]).any(0))
    labels, groups = test.labels.numpy(), test.groups.numpy()
    ## The first of each class and group in turn, in the order of the test set: nobody chose them.
    turns, counts = [], collections.Counter()
    for n in split:
        counts[labels[n], groups[n]] += 1
        turns.append((counts[labels[n], groups[n]], labels[n], groups[n], n))
    chosen = [n for *_, n in sorted(turns)[:15]]
    figure, axes = plt.subplots(3, 5, figsize=(10, 8.6), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, n in zip(axes.flat, chosen):
        ax.imshow(test.subset([n]).images[0].permute(1, 2, 0).numpy())
        lines = [f"{data.classes[labels[n]]}, {data.group_names[groups[n]]}"]
        for name, answer in answers.items():
            right = "✓" if answer[n] == labels[n] else "✗"
            lines.append(f"{right} {name}: {data.classes[answer[n]]}")
        ax.set_title("\n".join(lines), fontsize=8.5, loc="left")
    count = f"{len(split)} of {len(labels)} test pictures on which the three disagree"
    save(figure, path, f"{where}: {count}")
    return (
        "Pictures on which teacher, distilled and debiased student disagree: true class and group, "
        f"then the answers ({DECISIONS[end]}). The first of each class and group, not a choice."
    )


# ----- along λ or T, and along training -----------------------------------------------------------

PARITY = "demographic_parity_difference"
STRENGTH = {"accuracy": "accuracy", "disparity": "disparity"}
SOFTNESS = {"accuracy": "accuracy", "mean_deo": "mean-DEO", PARITY: "demographic parity difference"}
ALONG = {  # what is varied: its name, the title, and the metrics that are shown
    "sweep": ("strength λ of the adversary", "what a stronger adversary does", STRENGTH),
    "temperature": ("temperature T of CKD", "what a softer teacher does", SOFTNESS),
}


def sweep(rows, kind, where, path):
    """A setting against accuracy and unfairness, with 95 % bands. rows: {value: runs}."""
    if not results.comparable(rows):
        return None
    places, (words, title, shown), end = np.arange(len(rows)), ALONG[kind], main_rule(rows)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for n, (metric, label) in enumerate(shown.items()):
        curve = np.array([results.cell(runs, metric + end)[:3] for runs in rows.values()])
        band(axes, places, curve, n, label)
        teacher = results.point(next(iter(rows.values())), metric + end, "teacher")
        axes.plot(-0.35, teacher, **look(n) | {"ls": "", "mfc": "white"})
        bad = [p for p, runs in zip(places, rows.values()) if results.number_collapsed(runs)]
        if metric == "accuracy" and bad:
            axes.plot(bad, curve[bad, 0], "x", color="black", ms=11, label="some runs collapsed")
    axes.plot([], [], "o", mfc="white", color="0.4", label="hollow: the teacher")
    axes.set_xticks(places, rows)
    axes.set(xlabel=words, ylabel="percent of the test set", ylim=(0, 100))
    save(figure, path, f"{where}\n{title}", axes)
    bands = "95 % bands over runs, or over the test pictures of a single one"
    return f"The {words} against {' and '.join(shown.values())} ({DECISIONS[end]}), {bands}."


def curves(rows, name, part=None):
    """(epochs, 3) mean, low, high over the runs of a row of a number in the log of an epoch."""
    logs = [[epoch[part] if part else epoch for epoch in r["log"]] for r in rows.values()]
    numbers = np.array([[epoch.get(name) for epoch in log] for log in logs], float)  # None: NaN
    return np.array([metrics.seed_interval(values=column) for column in numbers.T])


def training(rows, where, path):
    """Validation while training; CTKD's temperature; the gates of BIRD."""
    names = [name for name in TRAINING if name in rows]
    if len(names) < 2:
        return None
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    (fair, useful), (warm, gates), end = *axes, main_rule(rows)
    for n, name in enumerate(names):
        for ax, metric in ((fair, f"mean_deo{end}"), (useful, "auroc")):
            curve = 100 * curves(rows[name], metric, "val")
            band(ax, np.arange(1, len(curve) + 1), curve, n, name, alpha=0.12, ms=4)
    fair.set(title="Validation: unfairness", ylabel="mean-DEO (%)", ylim=(0, 100))
    useful.set(title="Validation: use", ylabel="AUROC (%)", ylim=(None, 100.5))
    if "CTKD" in rows:
        curve = curves(rows["CTKD"], "temperature")
        band(warm, np.arange(1, len(curve) + 1), curve, names.index("CTKD"))
        warm.set(title="CTKD: the temperature that it learns", ylabel="T")
    if "BIRD" in rows:
        ends = [curves(rows["BIRD"], name)[:, 0] for name in ("gate", "gate_min", "gate_max")]
        x = np.arange(1, len(ends[0]) + 1)
        band(gates, x, np.stack(ends, 1), names.index("BIRD"), "mean, lowest and highest gate")
        gates.set(title="BIRD: gates on the teacher's features", ylabel="sigm(φ)", ylim=(0, 1.02))
        gates.legend(loc="lower left")
    for ax, there in ((warm, "CTKD" in rows), (gates, "BIRD" in rows)):
        ax.set_visible(there)
    for ax in axes.flat:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    title = f"{where}\nalong training (mean and 95 % band over runs)"
    save(figure, path, title, fair, "outside right upper")
    return (
        f"Fairness ({DECISIONS[end]}) and use on validation along training, CTKD's temperature and "
        "BIRD's gates."
    )


def fairtune_masks(rows, where, path):
    """FairTune's search: which parts each trial tuned, how it ended, and which parts matter.

    All trials have a first epoch, few a last one: the effect of a part is the objective after the
    first epoch, tuned minus frozen, after a line over the logarithm of the learning rate was taken
    off. The sampler prefers what went well, so this is no randomised comparison.
    """
    result = next(iter(rows.get("FairTune", {}).values()), {})
    trials = [t for t in result.get("search", {}).get("trials", []) if t["values"]]
    names = sorted({name for t in trials for name in t["params"]} - {"lr"})
    if len(trials) < 4 or not names:
        return None
    bits = np.array([[t["params"][name] for t in trials] for name in names])  # (P, T)
    first, last = (np.array([t["values"][k] for t in trials]) for k in (0, -1))
    rates = np.log([t["params"]["lr"] for t in trials])
    first = first - np.polyval(np.polyfit(rates, first, 1), rates)
    ended = np.array([t["state"] == "complete" for t in trials])
    labels = [f"{n // 3 + 1} {('norms', 'attention', 'MLP')[n % 3]}" for n in range(len(names))]
    objective, order = result["settings"]["objective"].replace("_", " "), np.arange(len(trials))
    height = 0.22 * len(names)
    figure, ((value, key), (grid, effect)) = plt.subplots(
        2, 2, figsize=(9, 3 + height), width_ratios=[2, 1], height_ratios=[2, height]
    )
    figure.set_layout_engine("constrained")
    value.plot(order[ended], last[ended], "o", color=COLOURS[0], label="trained to the end")
    value.plot(order[~ended], last[~ended], "x", color=COLOURS[1], label="stopped early")
    value.set(ylabel=f"{objective}\n(validation)", xlim=(-0.5, len(trials) - 0.5), xticks=[])
    key.set_axis_off()
    key.legend(*value.get_legend_handles_labels(), loc="center left")
    grid.imshow(bits, cmap="Greys", vmin=0, vmax=1.4, aspect="auto", interpolation="nearest")
    grid.set_yticks(range(len(names)), labels)
    grid.xaxis.get_major_locator().set_params(integer=True)
    grid.set(xlabel="trial, in the order of the search", ylabel="block and part (dark: tuned)")
    for n, row in enumerate(bits == 1):
        if min(row.sum(), (~row).sum()) > 1:
            half = 1.96 * np.sqrt(sum(first[r].var(ddof=1) / r.sum() for r in (row, ~row)))
            mean = first[row].mean() - first[~row].mean()
            effect.errorbar(mean, n, xerr=half, fmt="o", color=COLOURS[0], capsize=3)
    effect.axvline(0, color="0.6")
    effect.set(ylim=grid.get_ylim(), yticks=[], xlabel=f"{objective}, tuned − frozen\n(epoch 1)")
    save(figure, path, f"{where}\nwhat each trial of FairTune tuned, and which parts matter")
    return (
        "The trials of FairTune's search (one seed): objective, tuned parts, and the difference "
        "that a part makes after one epoch, with 95 % intervals."
    )
