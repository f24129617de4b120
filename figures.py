"""Figures of result files, for report.py, which chooses the runs.

Each function draws one figure from rows {name: {(fold, seed): result}} and returns its caption, or
None where the runs do not give it. The title is a sentence made from the numbers of the tables; the
caption says how many runs there are, and what is left out. In every figure

- a method has one colour, marker and line (LOOK), and the row that the tables show for it;
- an interval is the tables' own, without Student's of two or three runs, which is mostly the
  quantile (12.7 or 4.3 times the error); what is undefined is not drawn;
- a row with collapsed runs is crossed out: to be equally useless is not to be fair.
"""

import collections
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
from PIL import Image

import metrics
import results
from data import InputError, batches, load, outlined, put_back, restore
from networks import Network, as_saved
from results import DEBIASED, DECISIONS, RULES, TRAINING, TWO_POINTS, Value, number_collapsed, said

plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

## Methods of one family share a colour and differ in marker and line. The seven colours also differ
## for readers who lack one kind of cone; a test simulates them.
RIGHT, WRONG, INDIGO = "#0072b2", "#b2182b", "#332288"
FAMILIES = {
    "#000000": {"teacher": "o-"},
    "#8c8c8c": {"ERM": "s:", "re-balancing": "D--", "SWAD": "<-."},
    RIGHT: {"CKD": "o-", "RKD": "v--", "KD++": "P-."},
    "#56b4e9": {"CTKD": "^-.", "FitNet": "s-", "AT": "D--"},
    WRONG: {"adversarial KD": "D--", "AD": "v:"},
    "#e69f00": {"BIRD": "^-.", "MFD": "P-", "GroupDRO": "v:", "GroupDRO by class": "s--"},
    INDIGO: {"FIS": ">-", "FEBS": "<:", "FairDi": "D--", "own group's teacher": "o-"}
    | {"FairTune": "*:", "linear probe": "p-.", "full fine-tuning": "h-"},
}
LOOK = {
    name: {"color": colour, "marker": form[0], "ls": form[1:]}
    for colour, family in FAMILIES.items()
    for name, form in family.items()
}
FEWEST = 4  # runs, for an interval over runs


def look(name):
    """Colour, marker and line of a row; a variant has its method's, a reader's own script CKD's."""
    method = name.partition(" (")[0].partition(",")[0]
    return LOOK.get(method, LOOK["CKD"])


def chosen(rows, methods):
    """{row: runs} of the methods, in the variant that the tables show, of those that have a row."""
    names = [results.variant(rows, method) for method in methods]
    return {name: rows[name] for name in names if name}


def kept(runs, rule):
    """Whether the answers of a network of all runs to the test pictures are kept."""
    return all(rule in run.get("arrays", (None, {}))[1] for run in runs.values())


def sure(value, runs):
    """A value, without its interval if that is Student's over fewer than FEWEST runs."""
    return Value(value.point) if value.style == "±" and len(runs) < FEWEST else value


def measured(runs, metric, rule="last", group=None, pooled=False):
    """The tables' value of a row; the bootstrap of a group in a single run, which no table has."""
    pooled = pooled or (group is not None and len(runs) == 1 and kept(runs, rule))
    return sure(results.cell(runs, metric, rule, group, pooled), runs)


def ahead(runs, metric, rule, pooled):
    """Values of the numbers behind `results.signed`: the second group minus the first."""
    pictures = pooled or (len(runs) == 1 and kept(runs, rule))
    columns = 100 * results.signed(runs, metric, rule, pictures).T
    if not pictures:
        return [sure(results.over_runs(column), runs) for column in columns]
    return [Value(c[0], *metrics.interval(draws=c[1:], point=c[0])) for c in columns]


def cross_out(axes, *at):
    """The mark of a row with collapsed runs, in every figure."""
    axes.plot(*([x] for x in at), "x", color="black", ms=11, label="collapsed", zorder=4)


def put(axes, value, at, name, bad=0, hollow=False, label=None, upright=False):
    """A value at a place of the other axis: a light interval, and a marker above it."""

    def plot(numbers, **more):
        places = [at] * len(numbers)
        axes.plot(*((places, numbers) if upright else (numbers, places)), **more)

    style = look(name) | {"ls": ""}
    plot([value.low, value.high], color=style["color"], alpha=0.4, lw=2.5, zorder=1)
    style |= {"mfc": "none", "ms": 9} if hollow else {"ms": 6}
    plot([value.point], label=label, zorder=3, **style)
    if bad:
        cross_out(axes, *((at, value.point) if upright else (value.point, at)))


def better(words, more, upright=False):
    """The name of an axis, with an arrow that says which way is good."""
    return f"{words}\nbetter {('↓↑' if upright else '←→')[more]}"


def listed(before, names):
    """A sentence about names, "" for none."""
    return f" {before}: {', '.join(names)}." if names else ""


def labels_of(rows, but=()):
    """What rows are called in figures, `but` for some of them."""
    return [results.label(name, runs) for name, runs in rows.items() if name not in but]


def over(runs, pooled=False):
    """What values and intervals are over, as a text."""
    if pooled:
        return f"N = {len(results.folds_of(runs))} folds, intervals over all their test pictures"
    few = ", too few for intervals" if 1 < len(runs) < FEWEST else ""
    return f"N = {len(runs)} runs{few}" if len(runs) > 1 else "one run, intervals over its pictures"


def save(figure, path, sentence, where):
    """Add the title and, below, a legend of what has a label; write the file."""
    known = [axes.get_legend_handles_labels() for axes in figure.axes]
    named = {text: handle for pair in known for handle, text in zip(*pair)}
    letters = int(11.5 * figure.get_figwidth())  # in a line
    if named:
        columns = min(len(named), letters // (8 + max(map(len, named))))
        place = {"loc": "outside lower center", "ncols": max(columns, 1)}
        figure.legend(named.values(), named.keys(), **place)
    lines = [line[0].upper() + line[1:] for line in (sentence, where)]
    figure.suptitle("\n".join(textwrap.fill(line, letters) for line in lines))
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ----- one method against another -----------------------------------------------------------------


def two_points(rows, pooled, where, path):
    """FairDi's figure 1: each method at the epochs best on validation overall and in a group."""
    every = chosen(rows, TWO_POINTS)
    ## Folds need logits, and of a method's former usual weight only the last epoch's were kept.
    rows = {n: r for n, r in every.items() if not pooled or all(kept(r, rule) for rule in RULES)}
    if len(rows) < 3:
        return None
    runs = next(iter(rows.values()))
    groups = [said(name) for name in next(iter(runs.values()))["group_names"]]
    what, score = results.score_of(rows)
    panels = [(f"{what}, {name} (%)", score, g, True) for g, name in enumerate(groups)]
    if len(groups) != 2:
        panels = [(f"{what}, worst group (%)", f"{score}_worst_group", None, True)]
    panels = [(f"{what} of all (%)", score, None, True), *panels]
    words = "gap (points)" if results.of_masks(rows) else "gap between groups (points)"
    panels += [(words, f"{score}_gap", None, False)]
    if results.of_masks(rows):
        panels += [("gap inside classes (points)", f"{score}_gap_standardised", None, False)]
    size = {"figsize": (10, 2 + 0.36 * len(rows)), "layout": "constrained"}
    figure, all_axes = plt.subplots(1, len(panels), sharey=True, **size)
    for axes, (words, metric, group, more) in zip(all_axes, panels):
        for y, (name, runs) in enumerate(rows.items()):
            for rule, shift in zip(RULES, (-0.17, 0.17)):
                value = measured(runs, metric, rule, group, pooled)
                put(axes, value, y + shift, name, number_collapsed(runs, rule), shift > 0)
        axes.set_xlabel(better(words, more))
        axes.margins(x=0.08)
    axes.set(yticks=range(len(rows)), yticklabels=labels_of(rows), ylim=(len(rows) - 0.5, -0.5))
    for words, form in (("best epoch overall", {"ms": 6}), ("in the worst group", {"ms": 9})):
        fill = "none" if form["ms"] == 9 else "0.4"
        axes.plot([], [], "o", color="0.4", mfc=fill, label=words, **form)
    save(figure, path, gap_sentence(rows, groups, pooled), where)
    return (
        f"{what} and its gap between groups: each method at two epochs chosen on validation (the "
        f"numbers of FairDi's first figure); N = {len(rows)} methods, {over(runs, pooled)}."
        + listed("Left out, their outputs at these epochs not kept", labels_of(every, but=rows))
    )


def gap_sentence(rows, groups, pooled):
    """Which of two groups is served worse, by how many methods, as intervals show it."""
    what, score = results.score_of(rows)
    if len(groups) != 2:
        gaps = {results.point(r, f"{score}_gap", "best_overall"): n for n, r in rows.items()}
        gaps = {gap: name for gap, name in gaps.items() if not np.isnan(gap)}
        smallest = f"is smallest with {gaps[min(gaps)]}" if gaps else "is undefined"
        return f"The gap in {what} {smallest}"
    signed = [ahead(r, f"{score}_gap", "best_overall", pooled)[0] for r in rows.values()]
    first, second = [v.point for v in signed if v.low > 0], [-v.point for v in signed if v.high < 0]
    group, gaps = max(zip(groups, (first, second)), key=lambda pair: len(pair[1]))
    if not gaps:
        return f"No method is shown to serve {groups[0]} and {groups[1]} differently in {what}"
    ends = f"by {min(gaps):.1f} to {max(gaps):.1f} points"
    return f"{what} is lower in the group {group} with {len(gaps)} of {len(rows)} methods, {ends}"


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


def critical_difference(names, scores, lost, title, path):
    """Mean ranks of the methods, with bars half of Nemenyi's distance long to either side.

    scores    (N, k), higher is better: N data sets, folds or seeds, k methods
    lost      methods that not every block has
    """
    n, k = scores.shape
    if n < 2 or k < 3:
        return None
    p, mean, half = friedman(scores), ranks(scores).mean(0), nemenyi(k, n) / 2
    half = half if p < 0.05 else np.nan  # the gate: Friedman's test comes first
    order, behind = np.argsort(mean, kind="stable"), (mean - mean.min() > 2 * half).sum()
    figure, axes = plt.subplots(figsize=(7, 1.6 + 0.26 * k), layout="constrained")
    for y, m in enumerate(order):
        put(axes, Value(mean[m], mean[m] - half, mean[m] + half), y, names[m])
    axes.set_yticks(range(k), [f"{names[m]}: {mean[m]:.1f}" for m in order])
    axes.set(ylim=(k - 0.5, -0.5), xlabel=better(f"mean rank of {k} methods", False))
    axes.margins(x=0.05)
    sentence = f"No method is shown to rank best in {title}"
    if p < 0.05:
        sentence = (
            f"In {title}, {names[order[0]]} ranks best; {behind} of {k - 1} others are shown "
        )
        sentence += "to rank lower"
    save(figure, path, sentence, f"N = {n} repetitions, Friedman's test: p = {p:.2g}")
    return (
        f"Mean ranks over N = {n} repetitions (seeds, or folds, of which the attributes are "
        "averaged; those of one data set share pictures, so that the test is optimistic; decisions "
        "are prior-corrected where a class is rare; what has collapsed ranks last there). Where "
        "bars overlap (Nemenyi) no difference is shown; without bars Friedman's test finds none."
        + listed("Left out, because some repetitions lack them", lost)
    )


def three_models(rows):
    """{name: (row, network)} of the teacher, its student and a debiased student; or {}.

    The debiased one is the first of DEBIASED that is of use, or the first. And the others' names.
    """
    debiased = chosen(rows, DEBIASED)
    useful = [name for name, runs in debiased.items() if number_collapsed(runs) < len(runs)]
    if "CKD" not in rows or not debiased:
        return {}, []
    row = [*useful, *debiased][0]
    shown = (("teacher", "CKD", "teacher"), ("CKD", "CKD", "last"), (row, row, "last"))
    models = {results.label(name, rows[r], rule): (r, rule) for name, r, rule in shown}
    return models, labels_of(debiased, but=[row])


def effect(change, less="lowers", more="raises"):
    """A verb for a paired difference; none where its interval holds 0, or where it has none."""
    return less if change.high < 0 else more if change.low > 0 else "is not shown to change"


def per_class(rows, where, path):
    """Signed disparity of each class: the teacher, its student, a debiased student."""
    models, others = three_models(rows)
    if not models or results.of_masks(rows):
        return None
    first, end = next(iter(rows["CKD"].values())), results.main_rule(rows)
    pooled, metric, undefined = first["settings"]["fold"] is not None, f"disparity{end}", {}
    classes, groups = ([*map(said, first[name])] for name in ("classes", "group_names"))
    figure, axes = plt.subplots(figsize=(7, 2 + 0.5 * len(classes)), layout="constrained")
    for n, (name, (row, rule)) in enumerate(models.items()):
        bad = number_collapsed(rows[row], rule)
        for y, value in enumerate(ahead(rows[row], metric, rule, pooled)):
            ends = np.clip(value[1:3], -100, 100)  # Student's t knows no limits of a recall
            text = None if y else name
            put(axes, Value(value.point, *ends), y + 0.22 * (n - 1), name, bad, label=text)
            undefined |= {classes[y]: None} if np.isnan(value.point) else {}
    axes.axvline(0, color="0.6", lw=1, zorder=0)
    axes.set(yticks=range(len(classes)), yticklabels=classes, ylim=(len(classes) - 0.5, -0.5))
    axes.set_xlabel("spread of recall (points)")
    if len(groups) == 2:
        ends = f"← favours {groups[0]}", f"favours {groups[1]} →"
        axes.set_xlabel("     difference of recall (points)     ".join(ends))
    axes.margins(x=0.08)
    verb = effect(results.change(rows[row], rows["CKD"], metric, pooled=pooled))
    verb = "has collapsed, which is no way to change" if bad else verb
    ends = [Value(results.point(rows[r], metric, pooled=pooled)) for r in ("CKD", row)]
    sentence = f"{name} {verb} the disparity of CKD (from {ends[0]} to {ends[1]} points)"
    save(figure, path, sentence, where)
    return (
        "Disparity of each class for the teacher, the student distilled from it, and a debiased "
        f"student ({DECISIONS[end]}); {over(rows['CKD'], pooled)}; in the title its mean size."
        + listed("Other debiased students, not shown", others)
        + listed("Undefined, because a group lacks the class", undefined)
    )


def gallery(rows, data_dir, where, path):
    """Test pictures that a debiased student gets right and CKD's does not, and the other way."""
    models, others = three_models(rows)
    common = set.intersection(*({*rows[row]} for row, _ in models.values())) if models else ()
    if not common or (data := pictures_of(rows["CKD"][min(common)], data_dir)) is None:
        return None
    if results.of_masks(rows):
        runs = {name: (rows[row][min(common)], rule) for name, (row, rule) in models.items()}
        return outlines(runs, data, where, path)
    test, answers, end = data["test"], {}, results.main_rule(rows)
    for name, (row, rule) in models.items():
        run = rows[row][min(common)]
        logits, ids = results.arrays(run, (rule, "ids"))
        if ids.tolist() != test.ids:
            return None  # made from other pictures
        answers[name] = (logits - (np.log(run[rule]["class_shares"]) if end else 0)).argmax(1)
    labels, groups = test.labels.numpy(), test.groups.numpy()
    _, plain, fair = (answer == labels for answer in answers.values())  # (N,) right or not
    kinds = {"repaired": np.flatnonzero(fair & ~plain), "broken": np.flatnonzero(plain & ~fair)}
    figure = plt.figure(figsize=(10, 1 + 2.4 * 2), layout="constrained")
    for part, (kind, places) in zip(figure.subfigures(2, 1), kinds.items()):
        part.suptitle(f"{kind}: {len(places)} pictures", x=0.01, ha="left", weight="bold")
        for k, n in enumerate(in_turn(places, labels, groups)):
            axes = part.add_subplot(1, 6, k + 1)
            axes.imshow(test.subset([n]).images[0].permute(1, 2, 0).numpy())
            axes.axis("off")
            axes.set_anchor("N")
            lines = [(f"{said(data.classes[labels[n]])}, {said(data.group_names[groups[n]])}", "k")]
            for name, answer in answers.items():
                sign, colour = ("✓", RIGHT) if answer[n] == labels[n] else ("✗", WRONG)
                text = f"{sign} {name.partition(',')[0]}: {said(data.classes[answer[n]])}"
                lines.append((text, colour))
            for line, (text, colour) in enumerate(lines[::-1]):
                at = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 7.5}
                axes.annotate(text, (0, 1), (0, 3 + 10 * line), color=colour, **at)
    sentence = f"{name} repairs {len(kinds['repaired'])} of the {sum(~plain)} errors of CKD and "
    sentence += f"breaks {len(kinds['broken'])} of its {sum(plain)} right answers"
    save(figure, path, sentence, where)
    return (
        "Test pictures that the debiased student gets right and the distilled one does not, and the"
        f" other way: true class and group, then the answers ({DECISIONS[end]}). The first of each "
        f"class and group, not a choice; N = {len(labels)} pictures, one run."
        + listed("Other debiased students, not shown", others)
    )


def pictures_of(run, data_dir):
    """The pictures of a run, or None if they are not drawn and nobody said where they are."""
    names = "task target sensitive fold train_share skip_bad subject file_column".split()
    choices = {k: run["settings"][k] for k in names if k in run["settings"]}
    if run["settings"]["dataset"] != "toy" and data_dir is None:
        return None
    return load(run["settings"]["dataset"], data_dir, run["settings"]["image_size"], **choices)


def outlines(models, data, where, path):
    """Masks of test pictures, as outlines: the truth, and what teacher and students find.

    models    {name: (run, network)}

    Results keep how large masks are, not the masks. So the networks are asked again, where the runs
    have left them, and there is no figure unless they give masks as large as those of the results.
    """
    test, areas = data["test"], {}
    for name, (run, rule) in models.items():
        areas[name], ids = results.arrays(run, (rule, "ids"))
        if ids.tolist() != test.ids:
            return None  # made from other pictures
    values = np.stack([metrics.dice(areas=found) for found in areas.values()])  # (3, N)
    failed, labels, groups = values < metrics.FAILED, test.labels.numpy(), test.groups.numpy()
    kinds = {"repaired": failed[1] & ~failed[2], "broken": failed[2] & ~failed[1]}
    first, more = (in_turn(np.flatnonzero(k), labels, groups, 4) for k in kinds.values())
    if not (places := first + more):  # both find the same
        return None
    some = test.subset(places)
    masks = {"truth": some.masks[some.rows].numpy()}
    for name, (run, rule) in models.items():
        masks[name] = asked(run, rule, some, areas[name][places])
        if masks[name] is None:
            return None
    figure = plt.figure(figsize=(1.2 + 1.2 * len(some), 7.5), layout="constrained")
    for row, (name, found) in enumerate({"picture": 0 * masks["truth"], **masks}.items()):
        for n, place in enumerate(places):
            axes = figure.add_subplot(len(masks) + 1, len(some), row * len(some) + n + 1)
            picture = Image.fromarray(some.images[n].permute(1, 2, 0).numpy())
            axes.imshow(outlined(picture.resize((160, 160), Image.NEAREST), found[n]))
            axes.axis("off")
            text = f"{[*kinds][n >= len(first)]}\n{said(data.classes[labels[place]])}"
            if name in areas:
                dice = 100 * values[list(areas).index(name), place]
                text = f"Dice {dice:.0f}"
            elif name == "truth":
                text = said(data.group_names[groups[place]])
            axes.set_title(text, fontsize=7.5)
            if n == 0:
                axes.annotate(name, (-0.08, 0.5), xycoords="axes fraction", ha="right", va="center")
    name, number = list(models)[2], [k.sum() for k in kinds.values()]
    sentence = f"{name} mends {number[0]} of the {failed[1].sum()} failed masks of CKD and spoils "
    save(figure, path, sentence + f"{number[1]} of the others", where)
    return (
        f"Masks of {len(first)} test pictures that fail (Dice below {metrics.FAILED:.0%}) with "
        f"CKD alone, then of {len(more)} that fail with {name} alone. The first of each class "
        f"and group, not a choice; N = {len(labels)} pictures, one run."
    )


def asked(run, rule, split, areas):
    """Masks (n, H, W) that a network of a run finds, or None if it is not there any more.

    areas    (n, 3) of the result, which tell it from other teachers
    """
    folder, role = run["arrays"][0].parent, "teacher" if rule == "teacher" else "student"
    paths = [folder / "student.pt"]
    if rule == "teacher":
        paths = sorted(folder.parent.parent.glob("teachers/*/teacher.pt"))
    for file in filter(Path.is_file, paths):
        saved = restore(file)
        state = saved["state"] if rule == "teacher" else saved["states"][rule]
        args = as_saved(run["settings"], state)
        network = Network(args, run["settings"][role], 2, load=False)
        try:
            put_back(network.eval(), state, file)
        except InputError:
            continue  # the teacher of other runs
        with torch.no_grad():
            _, logits = network(next(batches(split, len(split))).images)  # (n, 2, H, W)
        found = (logits[:, 1] > logits[:, 0]).numpy()  # (n, H, W)
        true = split.masks[split.rows].numpy() > 0
        sizes = [np.sum(mask, axis=(1, 2)) for mask in (found, true, found & true)]
        if np.abs(np.stack(sizes, axis=1) - areas).max() <= 2:  # pixels: of another processor
            return found
    return None


def in_turn(places, labels, groups, most=6):
    """The first of each class and group in turn, in the order of the test set."""
    turns, counts = [], collections.Counter()
    for n in places:
        counts[labels[n], groups[n]] += 1
        turns.append((counts[labels[n], groups[n]], labels[n], groups[n], n))
    return [n for *_, n in sorted(turns)[:most]]


# ----- along λ or T, and along training -----------------------------------------------------------

PARITY = "demographic_parity_difference"
STRENGTH = {"accuracy": "accuracy", "disparity": "disparity"}
SOFTNESS = {"accuracy": "accuracy", "mean_deo": "mean-DEO", PARITY: "demographic parity difference"}
ALONG = {  # what is varied: the method, its symbol and name, and the metrics that are shown
    "sweep": ("adversarial KD", "λ", "strength λ of the adversary", STRENGTH),
    "temperature": ("CKD", "T", "temperature T of the softened outputs", SOFTNESS),
}


def sweep(rows, kind, where, path):
    """A setting against accuracy and unfairness."""
    if not results.comparable(rows):
        return None
    (method, symbol, words, shown), end = ALONG[kind], results.main_rule(rows)
    colour, places, first = look(method)["color"], np.arange(len(rows)), next(iter(rows))
    bad = [value for value, runs in rows.items() if number_collapsed(runs)]
    *_, last = (value for value in rows if value not in bad or value == first)
    size = {"figsize": (11 if kind == "sweep" else 7, 4.8), "layout": "constrained"}
    figure, told, lines = plt.figure(**size), [], []
    axes = figure.add_subplot(1, 2 if kind == "sweep" else 1, 1)
    for ls, (metric, label) in zip(("-", "--", ":"), shown.items()):
        values = [measured(runs, metric + end) for runs in rows.values()]
        lines.append([value.point for value in values])
        axes.plot(places, lines[-1], ls, color=colour, label=label, zorder=2)
        for place, value, (name, runs) in zip(places, values, rows.items()):
            put(axes, value, place, method, name in bad, upright=True)
            single = results.values(runs, metric + end) if 1 < len(runs) < FEWEST else []
            axes.plot([place + 0.12] * len(single), single, ".", color=colour, ms=3)
        put(axes, measured(rows[first], metric + end, "teacher"), -0.35, "teacher", upright=True)
        change = results.change(rows[last], rows[first], metric + end)
        points = "undefined" if np.isnan(change.point) else f"{change.point:+.1f} points"
        told.append(f"{label} {effect(change, 'falls', 'rises')} ({points})")
    axes.plot([], [], "o", color="black", label="teacher")
    axes.set_xticks(places, rows)
    axes.set(xlabel=words, ylabel="accuracy (%, better ↑)\nunfairness (points, better ↓)")
    axes.set(ylim=(-6, 106), xlim=(-0.7, len(rows) - 0.5))
    if kind == "sweep":
        in_space(figure.add_subplot(1, 2, 2, projection="3d"), method, rows, bad, lines)
    sentence = f"From {symbol} = {first} to {last}, {' and '.join(told[:2])}"
    sentence += f"; at {', '.join(bad)} students collapse" if bad else ""
    save(figure, path, sentence.replace("-", "−").replace("mean−DEO", "mean-DEO"), where)
    return (
        f"The {words} against {', '.join(shown.values())} ({DECISIONS[end]}); {over(rows[first])}"
        f"{', each a dot' if 1 < len(rows[first]) < FEWEST else ''}; in the title: paired changes."
    )


def in_space(axes, method, rows, bad, lines):
    """The slides' view: strength, accuracy and disparity in space, with lines down to the floor."""
    style, places = look(method), np.arange(len(rows))
    for place, name, x, y in zip(places, rows, *lines):
        axes.plot([place] * 2, [x] * 2, [0, y], ":", color="0.3", lw=1.2)
        axes.plot([place], [x], [y], **style)
        axes.text(place, x, y + 3, f"   λ = {name}")
        if name in bad:
            cross_out(axes, place, x, y)
    axes.plot(places, *lines, color=style["color"], lw=0.8)
    axes.set(xlabel="λ", xticks=places, xticklabels=[], ylabel="accuracy (%)")
    axes.set(zlabel="disparity (points)", zlim=(0, max(lines[1]) + 8))
    axes.locator_params("y", nbins=5)
    axes.view_init(20, -60)
    axes.set_box_aspect(None, zoom=0.9)


def curves(rows, name, part=None):
    """(epochs, 3) mean, low, high over the runs of a row of a number in the log of an epoch."""
    logs = [[epoch[part] if part else epoch for epoch in r["log"]] for r in rows.values()]
    numbers = np.array([[epoch.get(name) for epoch in log] for log in logs], float)  # None: NaN
    values = [sure(results.over_runs(column), rows) for column in numbers.T]
    return np.array([value[:3] for value in values])


def band(axes, curve, name, label=None):
    """A row's line along the epochs, and its interval."""
    x = np.arange(1, len(curve) + 1)
    marks = {"ms": 4, "markevery": max(1, len(curve) // 12)}
    axes.plot(x, curve[:, 0], label=label, **marks, **look(name))
    axes.fill_between(x, curve[:, 1], curve[:, 2], color=look(name)["color"], alpha=0.13, lw=0)
    axes.set_xlabel("epoch")
    axes.margins(x=0.04)
    axes.xaxis.get_major_locator().set_params(integer=True)


def training(rows, where, path):
    """Validation while training; CTKD's temperature; the gates of BIRD."""
    every, end = chosen(rows, TRAINING), results.main_rule(rows)
    if results.of_masks(rows):
        return None
    rows = {name: runs for name, runs in every.items() if all(r["log"] for r in runs.values())}
    if len(rows) < 2:
        return None
    logs = [epoch["val"] for runs in rows.values() for r in runs.values() for epoch in r["log"]]
    end = end if all(f"mean_deo{end}" in val for val in logs) else ""  # older logs lack it
    own = [name for name in rows if name.partition(",")[0] in ("CTKD", "BIRD")]
    mosaic = [["fair", "useful"], (own * 2)[:2]][: 1 + bool(own)]
    size = {"figsize": (10, 1 + 3.2 * len(mosaic)), "layout": "constrained"}
    figure, panels = plt.subplot_mosaic(mosaic, **size)
    most, last = max(map(len, rows.values())), {}
    for name, runs in rows.items():
        bad, text = number_collapsed(runs), results.label(name, runs)
        text += f" ({len(runs)} runs)" if len(runs) < most else ""
        text += f" ({bad} of {len(runs)} collapsed)" if bad else ""
        for key, metric in (("fair", f"mean_deo{end}"), ("useful", "auroc")):
            curve = np.clip(100 * curves(runs, metric, "val"), 0, 100)  # Student's t has no limits
            band(panels[key], curve, name, text)
            put(panels[key], Value(curve[-1, 0]), len(curve), name, bad, upright=True)
            defined = not np.isnan(curve[-1, 0])
            last |= {text: curve[-1, 0]} if key == "fair" and defined and not bad else {}
    panels["fair"].set(ylabel=better("mean-DEO (%)", False, True), ylim=(-5, 105))
    panels["useful"].set(ylabel=better("AUROC (%)", True, True))
    panels["useful"].set_ylim(panels["useful"].get_ylim()[0], 104)
    for name in own:
        keys = ("temperature",) * 3 if name.startswith("CTKD") else ("gate", "gate_min", "gate_max")
        curve = np.stack([curves(rows[name], key)[:, 0] for key in keys], axis=1)
        band(panels[name], curve, name)
        words = "temperature" if name.startswith("CTKD") else "mean gate"
        panels[name].set(ylabel=words + ", lowest, highest" * ("gate" in words))
        panels[name].set_title(f"The {words} of {name} ends at {curve[-1, 0]:.2f}")
    sentence = "All of these students have collapsed, or their mean-DEO is undefined"
    if last:
        best, worst = min(last, key=last.get), max(last, key=last.get)
        sentence = f"On validation {best} ends with the lowest mean-DEO ({last[best]:.1f} %), "
        sentence += f"{worst} with the highest ({last[worst]:.1f} %)"
    save(figure, path, sentence, where)
    return (
        f"Fairness ({DECISIONS[end]}) and use on validation along training; N = {most} a method; "
        f"bands are 95 % intervals over at least {FEWEST} runs."
        + listed("Left out, their logs not kept", labels_of(every, but=rows))
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
    good = not objective.startswith("loss")
    height = 0.22 * len(names)
    figure, axes = plt.subplot_mosaic(
        [["value", "."], ["grid", "effect"]],
        figsize=(9, 3.4 + height),
        width_ratios=[2, 1],
        height_ratios=[2, height],
        layout="constrained",
    )
    value, grid, part = (axes[name] for name in ("value", "grid", "effect"))
    for which, fill, words in ((ended, INDIGO, "trained to the end"), (~ended, "none", "stopped")):
        value.plot(order[which], last[which], "o", color=INDIGO, mfc=fill, label=words)
    value.set(ylabel=better(f"{objective}\n(validation)", good, True), xticks=[])
    value.set_xlim(-0.5, len(trials) - 0.5)
    value.margins(y=0.15)
    grid.imshow(bits, cmap="Greys", vmin=0, vmax=1.4, aspect="auto", interpolation="nearest")
    grid.set_yticks(range(len(names)), labels)
    grid.xaxis.get_major_locator().set_params(integer=True)
    grid.set(xlabel="trial, in the order of the search", ylabel="block and part (dark: tuned)")
    shown, unknown = 0, []
    for n, row in enumerate(bits == 1):
        if min(row.sum(), (~row).sum()) < FEWEST:
            unknown.append(labels[n])
            continue
        two = first[row], first[~row]
        ends = scipy.stats.ttest_ind(*two, equal_var=False).confidence_interval()  # Student's t
        put(part, Value(two[0].mean() - two[1].mean(), *ends), n, "FairTune")
        shown += ends.low > 0 or ends.high < 0
    part.axvline(0, color="0.6", zorder=0)
    part.set(ylim=grid.get_ylim(), yticks=[])
    part.margins(x=0.08)
    part.set_xlabel(better(f"{objective},\ntuned − frozen (epoch 1)", good))
    sentence = (
        f"For {shown or 'none'} of {len(names)} parts, trials of FairTune that tune it differ "
    )
    sentence += "after one epoch from those that do not"
    save(figure, path, sentence, where)
    return (
        f"FairTune's search (N = {len(trials)} trials, one run): objective, tuned parts, and the "
        "difference that a part makes after one epoch, with 95 % intervals (Welch's, one by one)."
        + listed(f"Without a difference, fewer than {FEWEST} trials on a side", unknown)
    )
