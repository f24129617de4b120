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
import itertools
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
from data import InputError, batches, load, put_back, restore
from datasets._show import outlined
from networks import Network, as_saved
from results import DECISIONS, RULES, Value, kept, number_collapsed, said

plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11})
plt.rcParams["text.parse_math"] = False  # "$" may be in a name
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

## Methods of one family share a colour. No two share both marker and line, and those of a figure
## have markers of their own, because print may be grey. The seven colours also differ for readers
## who lack one kind of cone; a test simulates them.
RIGHT, WRONG, INDIGO = "#0072b2", "#b2182b", "#332288"
FAMILIES = {
    "#000000": {"teacher": "*-"},
    "#8c8c8c": {"ERM": "s:", "re-balancing": "p--", "SWAD": "<-."},
    RIGHT: {"CKD": "o-", "RKD": "v--", "KD++": "P-."},
    "#56b4e9": {"CTKD": "v-.", "FitNet": "s-", "AT": "D-."},
    WRONG: {"adversarial KD": "D--", "AD": "d:"},
    "#e69f00": {"BIRD": "^-.", "MFD": "P-", "GroupDRO": "v:", "GroupDRO by class": "s--"},
    INDIGO: {"FIS": ">-", "FEBS": "<:", "FairDi": "P--", "own group's teacher": "o--"}
    | {"FairTune": "h:", "linear probe": "p-.", "full fine-tuning": "h-"},
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


def cross_out(axes, x, y):
    """The mark of a row with collapsed runs, in every figure."""
    axes.plot([x], [y], "x", color="black", ms=11, label="collapsed", zorder=4)


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


def evenly(text, letters):
    """A text in as few lines as `letters` allow, which are about as long as each other."""
    whole = {"break_long_words": False, "break_on_hyphens": False}  # mean-DEO is one word
    fewest = len(textwrap.wrap(text, letters, **whole))
    broken = (textwrap.wrap(text, width, **whole) for width in range(1, letters + 1))
    return "\n".join(next(lines for lines in broken if len(lines) == fewest))


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
    figure.suptitle("\n".join(evenly(line, letters) for line in lines))
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ----- one method against another -----------------------------------------------------------------


def at_two_points(rows, pooled):
    """The rows of TWO_POINTS that figure and table show; and what the others are called."""
    every, whole = chosen(rows, results.TWO_POINTS), results.complete(rows)[0]
    ## Folds together need logits, at both epochs.
    needed = RULES if pooled else ()
    rows = {n: r for n, r in every.items() if n in whole and all(kept(r, rule) for rule in needed)}
    return rows, labels_of(every, but=rows)


def two_points(rows, pooled, where, path):
    """FairDi's figure 1: each method at the epochs best on validation overall and in a group."""
    rows, lost = at_two_points(rows, pooled)
    if len(rows) < 3:
        return None
    groups = [*map(said, results.first_of(rows)["group_names"])]
    what, score = results.score_of(rows)
    panels = [(f"{what}, {name} (%)", score, g, True) for g, name in enumerate(groups)]
    if len(groups) != 2:
        panels = [(f"{what}, worst group (%)", f"{score}_worst_group", None, True)]
    panels = [(f"{what} of all (%)", score, None, True), *panels]
    words = "gap (points)" if results.of_masks(rows) else "gap between groups (points)"
    panels += [(words, f"{score}_gap", None, False)]
    if results.of_masks(rows):
        panels += [("gap inside classes", f"{score}_gap_standardised", None, False)]
    size = {"figsize": (10, 2 + 0.36 * len(rows)), "layout": "constrained"}
    figure, all_axes = plt.subplots(1, len(panels), sharey=True, **size)
    if len(groups) == 2:  # both groups on one scale
        all_axes[2].sharex(all_axes[1])
    for axes, (words, metric, group, more) in zip(all_axes, panels):
        for y, (name, runs) in enumerate(rows.items()):
            for rule, shift in zip(RULES, (-0.17, 0.17)):
                value = measured(runs, metric, rule, group, pooled)
                put(axes, value, y + shift, name, number_collapsed(runs, rule), shift > 0)
        axes.set_xlabel(better(words, more))
        axes.margins(x=0.08)
    axes.set(yticks=range(len(rows)), yticklabels=labels_of(rows), ylim=(len(rows) - 0.5, -0.5))
    for rule, wide, fill in zip(RULES.values(), (6, 9), ("0.4", "none")):
        words = f"epoch {rule} on validation"
        axes.plot([], [], "o", color="0.4", mfc=fill, ms=wide, label=words)
    save(figure, path, gap_sentence(rows, groups, pooled), where)
    most = max(rows.values(), key=len)
    inside = " Inside classes: as if each class had the same share in every group."
    return (
        f"{what} and its gap between groups at two epochs chosen on validation, not the last (the "
        "numbers of FairDi's first figure); the title counts methods at the first of them, and "
        "tells how far intervals of either reach if it counts none; "
        f"N = {len(rows)} methods, {over(most, pooled)}. A gap is a size, which cannot be below 0, "
        "so its intervals begin at 0 or above. CKD, adversarial KD and BIRD stand beside the "
        "methods of that figure where they have runs. All others, which it lacks or which are not "
        "made for fairness, stand at their last epoch in the table of "
        f"{'all folds together' if pooled else 'everything'}."
        + inside * results.of_masks(rows)
        + listed(LEFT_OUT, lost)
    )


LEFT_OUT = "Left out, with fewer runs or without their outputs at these epochs"


def gap_sentence(rows, groups, pooled):
    """Which of two groups is served worse, by how many methods, as intervals show it.

    Of masks also how much of that is left inside classes.
    """
    what, score = results.score_of(rows)
    if len(groups) != 2:
        sizes = [results.point(r, f"{score}_gap", "best_overall", pooled) for r in rows.values()]
        gaps = {name: size for name, size in zip(rows, sizes) if not np.isnan(size)}
        smallest = f"is smallest with {min(gaps, key=gaps.get)}" if gaps else "is undefined"
        return f"The gap in {what} {smallest}"

    def signed(metric):
        return [ahead(runs, metric, "best_overall", pooled)[0] for runs in rows.values()]

    def behind(values):
        """The sizes of shown gaps to the first group's disadvantage, and to the second's."""
        return [v.point for v in values if v.low > 0], [-v.point for v in values if v.high < 0]

    both = behind(signed(f"{score}_gap"))
    worse = max((0, 1), key=lambda g: len(both[g]))
    drawn = f"of the {len(rows)} methods drawn"  # there are others
    if not (gaps := both[worse]):
        pairs = itertools.product(rows.values(), RULES)
        ends = [measured(runs, f"{score}_gap", rule, None, pooled).high for runs, rule in pairs]
        most = max(filter(np.isfinite, ends), default=None)
        shown = f"None {drawn} is shown to serve {groups[0]} and {groups[1]} differently in {what}"
        return shown + (f"; the gaps' intervals reach {most:.1f} points" if most else "")

    def counted(gaps):
        ends = f", by {min(gaps):.1f} to {max(gaps):.1f} points" if gaps else ""
        return f"with {len(gaps)} {drawn}{ends}"

    sentence = f"{what} is lower in the group {groups[worse]} {counted(gaps)}"
    if results.of_masks(rows):
        inside = behind(signed(f"{score}_gap_standardised"))[worse]
        sentence += f"; inside classes, such as diagnoses, {counted(inside)}"
    return sentence


def ranks(scores):
    """Rank of each column in each row of scores (N, k), 1 is the highest, ties share the mean."""
    return scipy.stats.rankdata(-scores, axis=1)


def mean_ranks(names, scores, lost, places, title, useful, path):
    """Rank of each method on each data set, and the mean of them.

    No test: the data sets are few, and attributes of one share their pictures.

    scores    (P, k), higher is better: P data sets, k methods
    lost      methods that not every data set has
    places    the data sets in words
    useful    mean ranks by AUROC, to stand beside those of fairness, or {}
    """
    n, k = scores.shape
    if n < 2 or k < 3:
        return None
    each = ranks(scores)  # (P, k)
    mean, order = each.mean(0), np.argsort(each.mean(0), kind="stable")
    figure, axes = plt.subplots(figsize=(8, 2.2 + 0.3 * k + 0.2 * n), layout="constrained")
    for p, (place, marker) in enumerate(zip(places, itertools.cycle("osD^vP*X<>ph"))):
        y = np.arange(k) + 0.75 * (p - (n - 1) / 2) / n
        form = {"ls": "", "ms": 4.5, "mfc": "none", "color": "0.35", "label": place}
        axes.plot(each[p, order], y, marker, **form, zorder=2)
    for y, m in enumerate(order):
        axes.axhline(y + 0.5, color="0.9", lw=0.8, zorder=0)
        axes.plot([mean[m]] * 2, [y - 0.42, y + 0.42], lw=3, color="0.75", zorder=1)
    beside = [f" (AUROC {useful[name]:.1f})" if name in useful else "" for name in names]
    axes.set_yticks(range(k), [f"{names[m]}: {mean[m]:.1f}{beside[m]}" for m in order])
    axes.set(ylim=(k - 0.5, -0.5), xticks=range(1, k + 1))
    axes.set_xlabel(better(f"rank among {k} methods; the bar is the mean", False))
    axes.margins(x=0.05)
    best = [m for m in order if mean[m] == mean[order[0]]]
    first = sum(each[:, best[0]] == 1)
    words = [names[m].partition(" (")[0] + of_little_use(names[m], useful) for m in best]
    sentence = f"Ranks by {title}, not tested: {' and '.join(words)} "
    sentence += f"{'have' if best[1:] else 'has'} the best mean ({mean[best[0]]:.1f} of {k})"
    sentence += "" if best[1:] else f", first on {first}\u00a0of\u00a0{n}"  # on one line
    save(figure, path, sentence, f"not ranked: {', '.join(lost)}" if lost else "all are ranked")
    return (
        f"Rank of each method on N = {n} data sets and attributes, and its mean. They are few, and "
        "those of one data set share test pictures, so nothing is tested; the toy and what has few "
        "methods are left out. A weight that is not the usual one is named."
        + " Decisions are prior-corrected where a class is rare; what has collapsed ranks last."
        * (title in results.HARD)
        + " In brackets the mean rank by AUROC: who is fair may be of no use." * bool(useful)
        + listed("Not ranked, because some data sets lack them", lost)
    )


def of_little_use(name, useful):
    """What a title adds to the fairest method if its mean rank by AUROC is in the last third."""
    place = sum(mean <= useful[name] for mean in useful.values()) if name in useful else 0
    last = "last" if place == len(useful) else f"only {place} of {len(useful)}"
    return f", whose AUROC ranks {last}," if 3 * place > 2 * len(useful) else ""


def three_models(rows):
    """{name: (row, network)} of the teacher, its student and a debiased student; or {}.

    The debiased one is the first of DEBIASED that is of use, or the first. And the others' names.
    """
    debiased = chosen(rows, results.DEBIASED)
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
    name, (row, rule) = [*models.items()][-1]  # the debiased student
    both = dict(zip((row, "CKD"), results.in_both(rows[row], rows["CKD"])))
    if not both[row]:
        return None
    rows = rows | both
    fair = {"re-balancing": ("re-balancing", "last")} if "re-balancing" in rows else {}
    for n, (model, (shown, network)) in enumerate((models | fair).items()):
        bad = number_collapsed(rows[shown], network)
        for y, value in enumerate(ahead(rows[shown], metric, network, pooled)):
            ends = np.clip(value[1:3], -100, 100)  # Student's t knows no limits of a recall
            at, text = y + 0.2 * (n - 1.5), None if y else model
            put(axes, Value(value.point, *ends), at, model, bad, label=text)
            undefined |= {classes[y]: None} if np.isnan(value.point) else {}
    axes.axvline(0, color="0.6", lw=1, zorder=0)
    axes.set(yticks=range(len(classes)), yticklabels=classes, ylim=(len(classes) - 0.5, -0.5))
    axes.set_xlabel("spread of recall (points)")
    if len(groups) == 2:
        words = f"recall of {groups[1]} minus that of {groups[0]} (points)"
        axes.set_xlabel(f"{words}\n← {groups[0]} served better     {groups[1]} served better →")
    axes.margins(x=0.08)
    verb = effect(results.change(rows[row], rows["CKD"], metric, pooled=pooled))
    bad = number_collapsed(rows[row], rule)
    verb = "has collapsed, which is no way to change" if bad else verb
    ends = [Value(results.point(rows[r], metric, pooled=pooled)) for r in ("CKD", row)]
    sentence = f"{name} {verb} the disparity of CKD (from {ends[0]} to {ends[1]} points)"
    save(figure, path, sentence, where)
    return (
        "Disparity of each class for the teacher, the student distilled from it, and a debiased "
        f"student{', and re-balancing' if fair else ''} ({DECISIONS[end]}); "
        f"{over(rows['CKD'], pooled)}; in the title the mean size."
        + listed("Other debiased students, not shown", others)
        + listed("Rows of a smaller mean size", fairer_than(rows[row], rows, metric, pooled))
        + listed("Undefined, because a group lacks the class", undefined)
    )


def fairer_than(runs, rows, metric, pooled):
    """The rows whose disparity is smaller than that of `runs`, and its size."""
    useful = [name for name, other in rows.items() if not number_collapsed(other)]
    sizes = {name: results.point(rows[name], metric, pooled=pooled) for name in useful}
    least = results.point(runs, metric, pooled=pooled)
    return [f"{name} {size:.1f}" for name, size in sizes.items() if size < least]


def gallery(rows, data_dir, where, path):
    """Test pictures that a debiased student gets right and CKD's does not, and the other way."""
    models, others = three_models(rows)
    common = set.intersection(*({*rows[row]} for row, _ in models.values())) if models else ()
    if not common or (data := pictures_of(rows["CKD"][min(common)], data_dir)) is None:
        return None
    settings, words = rows["CKD"][min(common)]["settings"], f"seed {min(common)[1]}"
    words = words if settings["fold"] is None else f"fold {settings['fold']}, {words}"
    where += f"; in one run, {words}"
    test, found, answers, end = data["test"], {}, {}, results.main_rule(rows)
    runs = {name: (rows[row][min(common)], rule) for name, (row, rule) in models.items()}
    for name, (run, rule) in runs.items():
        found[name], ids = results.arrays(run, (rule, "ids"))
        if ids.tolist() != test.ids:
            return None  # made from other pictures
    if results.of_masks(rows):
        return outlines(runs, found, data, where, path)
    for name, (run, rule) in runs.items():
        shares = run[rule]["class_shares"] if end else np.ones(found[name].shape[1])
        answers[name] = metrics.corrected(logits=found[name], class_shares=shares)
    labels, groups = test.labels.numpy(), test.groups.numpy()
    _, plain, fair = (answer == labels for answer in answers.values())  # (N,) right or not
    kinds = {"repaired": np.flatnonzero(fair & ~plain), "broken": np.flatnonzero(plain & ~fair)}
    figure = plt.figure(figsize=(10, 1 + 2.4 * 2), layout="constrained")
    for part, (kind, places) in zip(figure.subfigures(2, 1), kinds.items()):
        some = in_turn(places, labels, groups)
        words = f"{kind}: {len(some)} of {len(places)} pictures"
        part.suptitle(words, x=0.01, ha="left", weight="bold")
        for k, n in enumerate(some):
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
    plain_too = {"ERM": ("ERM", "last")} if min(common) in rows.get("ERM", {}) else {}
    told = []
    for model, (row, rule) in (models | plain_too).items():
        both = {min(common): rows[row][min(common)]}, rows[row]
        values = [results.point(runs, f"mean_deo{end}", rule) for runs in both]
        told.append("{} {:.1f} ({:.1f})".format(model, *values))
    sentence = f"{name} repairs {len(kinds['repaired'])} of the {sum(~plain)} errors of CKD and "
    sentence += f"breaks {len(kinds['broken'])} of its {sum(plain)} right answers"
    save(figure, path, sentence, where)
    return (
        "Test pictures that the debiased student gets right and the distilled one does not, and the"
        f" other way: true class and group, then the answers ({DECISIONS[end]}). The first of each "
        "class and group in turn, then the second, not a choice; "
        f"N = {len(labels)} pictures, one run."
        + listed(f"Mean-DEO in this run, and in all {len(rows['CKD'])}", told)
        + listed("Other debiased students, not shown", others)
    )


def pictures_of(run, data_dir):
    """The pictures of a run, or None if they are not drawn and nobody said where they are."""
    names = "task target sensitive fold train_share skip_bad subject file_column".split()
    choices = {k: run["settings"][k] for k in names if k in run["settings"]}
    if run["settings"]["dataset"] != "toy" and data_dir is None:
        return None
    return load(run["settings"]["dataset"], data_dir, run["settings"]["image_size"], **choices)


def outlines(models, areas, data, where, path):
    """Masks of test pictures, as outlines: the truth, and what teacher and students find.

    models    {name: (run, network)}
    areas     {name: those of its masks of all test pictures, (N, 3)}

    Results keep how large masks are, not the masks. So the networks are asked again, where the runs
    have left them, and there is no figure unless they give masks as large as those of the results.
    """
    test = data["test"]
    dice = {name: 100 * metrics.dice(areas=found) for name, found in areas.items()}  # (N,)
    labels, groups = test.labels.numpy(), test.groups.numpy()
    places = at_shares(dice["CKD"], groups)
    some = test.subset([n for n, _ in places])
    masks = {"truth": some.masks[some.rows].numpy()}
    for name, (run, rule) in models.items():
        masks[name] = asked(run, rule, some, areas[name][[n for n, _ in places]])
        if masks[name] is None:
            return None
    figure = plt.figure(figsize=(1.4 + 1.4 * len(some), 8), layout="constrained")
    for row, (name, found) in enumerate({"picture": 0 * masks["truth"], **masks}.items()):
        for n, (place, words) in enumerate(places):
            axes = figure.add_subplot(len(masks) + 1, len(some), row * len(some) + n + 1)
            picture = Image.fromarray(some.images[n].permute(1, 2, 0).numpy())
            axes.imshow(outlined(picture.resize((160, 160), Image.NEAREST), found[n]))
            axes.axis("off")
            group, label = said(data.group_names[groups[place]]), said(data.classes[labels[place]])
            text = {"picture": f"{group}:\n{words}", "truth": textwrap.fill(label, 18)}
            axes.set_title(text.get(name, ""), fontsize=7.5)
            if name in dice:
                box = {"facecolor": "white", "pad": 1.5, "lw": 0}
                axes.text(3, 3, f"Dice {dice[name][place]:.0f}", va="top", fontsize=7.5, bbox=box)
            if n == 0:
                axes.annotate(name, (-0.08, 0.5), xycoords="axes fraction", ha="right", va="center")
    means = [f"{dice['CKD'][groups == g].mean():.1f}" for g in range(len(data.group_names))]
    means = ", ".join(f"{said(name)} {mean}" for name, mean in zip(data.group_names, means))
    sentence = f"CKD's worst, median and good masks: examples, no evidence (mean Dice: {means})"
    save(figure, path, sentence, where)
    credit = CREDIT * (data.name == "ham10000")
    return f"{OUTLINES}{credit} N = {len(labels)} pictures, one run."


OUTLINES = (
    "Outlines of the true mask (its class above it) and of those that the networks find, with Dice "
    "in percent. Of all test pictures of a group, ordered by the Dice of CKD's mask: the first, "
    "the one in the middle, and the one at nine tenths. Nobody chose them."
)
CREDIT = " Pictures: HAM10000 (Tschandl et al., 2018), CC BY-NC 4.0."  # whose licence asks for it
SHARES = {0.0: "the worst", 0.5: "the median", 0.9: "better than 9 of 10"}


def at_shares(scores, groups):
    """[(place, words)] of the pictures at SHARES of each group's scores (N,), lowest first.

    Of more than two groups, those whose mean score is the lowest and the highest.
    """
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    if len(members) > 2:
        members.sort(key=lambda places: scores[places].mean())
        members = [members[0], members[-1]]
    found = []
    for places in members:
        ordered = places[np.argsort(scores[places], kind="stable")]
        found += [(ordered[int(share * len(ordered))], words) for share, words in SHARES.items()]
    return found


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
    """The first of each class and group in turn, then the second, in the order of the test set."""
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
    """A setting against accuracy and disparities."""
    if not results.comparable(rows):
        return None
    (method, symbol, words, shown), end = ALONG[kind], results.main_rule(rows)
    colour, places, first = look(method)["color"], np.arange(len(rows)), next(iter(rows))
    bad = [value for value, runs in rows.items() if number_collapsed(runs)]
    dots = 1 < len(rows[first]) < FEWEST  # each run is one, because there is no interval
    last = [value for value in rows if value not in bad or value == first][-1]
    (figure, axes), told = plt.subplots(figsize=(7, 4.8), layout="constrained"), []
    for ls, (metric, label) in zip(("-", "--", ":"), shown.items()):
        values = [measured(runs, metric + end) for runs in rows.values()]
        line = [value.point for value in values]
        axes.plot(places, line, ls, color=colour, label=label, zorder=2)
        for place, value, (name, runs) in zip(places, values, rows.items()):
            put(axes, value, place, method, name in bad, upright=True)
            single = results.values(runs, metric + end) if dots else []
            axes.plot([place + 0.12] * len(single), single, ".", color=colour, ms=3)
        put(axes, measured(rows[first], metric + end, "teacher"), -0.35, "teacher", upright=True)
        change = results.change(rows[last], rows[first], metric + end)
        points = "undefined" if np.isnan(change.point) else f"{change.point:+.1f} points"
        told.append(f"{label} {effect(change, 'falls', 'rises')} ({points})")
    axes.plot([], [], label="teacher", **look("teacher") | {"ls": ""})
    if dots:
        axes.plot([], [], ".", color=colour, ms=3, label="single runs")
    axes.set_xticks(places, [f"{first}\n(CKD)" if kind == "sweep" else first, *[*rows][1:]])
    useful, *unfair = shown.values()
    gaps = ",\n".join(unfair)
    axes.set(xlabel=words, ylabel=f"{useful} (%, better ↑)\n{gaps} (points, better ↓)")
    axes.set(ylim=(-6, 106), xlim=(-0.7, len(rows) - 0.5))
    sentence = f"From {symbol} = {first} to {last}, {' and '.join(told[:2])}"
    lost = [f"{number_collapsed(rows[name])} of {len(rows[name])} at {name}" for name in bad]
    sentence += f"; students that collapse: {', '.join(lost)}" if bad else ""
    save(figure, path, sentence.replace("-", "−").replace("mean−DEO", "mean-DEO"), where)
    return (
        f"The {words} against {', '.join(shown.values())} ({DECISIONS[end]}); {over(rows[first])}"
        f"{', each a dot' if dots else ''}; in the title: paired changes."
    )


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


def ends_apart(last):
    """Which rows {row: {(fold, seed): mean-DEO}} are shown to end below or above CKD, as a title.

    Shown is what a paired interval over at least FEWEST runs without 0 says.
    """
    if "CKD" not in last:
        return "Validation along training"
    apart, base = {"below": [], "above": []}, last["CKD"]
    for name, runs in last.items():
        both = sorted(runs.keys() & base.keys())
        if name == "CKD" or len(both) < FEWEST:
            continue
        change = results.over_runs(np.array([runs[k] - base[k] for k in both]))
        if change.high < 0 or change.low > 0:
            apart["below" if change.high < 0 else "above"].append(name)
    parts = [f"{where} CKD's with {' and '.join(names)}" for where, names in apart.items() if names]
    if not parts:
        return "On validation no mean-DEO is shown to end apart from CKD's"
    return f"On validation mean-DEO ends {', and '.join(parts)}"


def training(rows, where, path):
    """Validation while training; CTKD's temperature; the gates of BIRD."""
    every, end = chosen(rows, results.TRAINING), results.main_rule(rows)
    if results.of_masks(rows):
        return None
    rows = {name: runs for name, runs in every.items() if all(r["log"] for r in runs.values())}
    if len(rows) < 2:
        return None
    own = [name for name in rows if name.partition(",")[0] in ("CTKD", "BIRD")]
    mosaic = [["fair", "useful"], (own * 2)[:2]][: 1 + bool(own)]
    size = {"figsize": (10, 1 + 3.2 * len(mosaic)), "layout": "constrained"}
    figure, panels = plt.subplot_mosaic(mosaic, **size)
    most, last = max(map(len, rows.values())), {}  # {row: {(fold, seed): mean-DEO at the end}}
    for name, runs in rows.items():
        bad, text = number_collapsed(runs), results.label(name, runs)
        text += f" ({len(runs)} runs)" if len(runs) < most else ""
        text += f" ({bad} of {len(runs)} collapsed)" if bad else ""
        for key, metric in (("fair", f"mean_deo{end}"), ("useful", "auroc")):
            curve = np.clip(100 * curves(runs, metric, "val"), 0, 100)  # Student's t has no limits
            band(panels[key], curve, name, text)
            put(panels[key], Value(curve[-1, 0]), len(curve), name, bad, upright=True)
        deo = {k: run["log"][-1]["val"][f"mean_deo{end}"] for k, run in runs.items()}
        last |= {} if bad or None in deo.values() else {name: deo}
    panels["fair"].set(ylabel=better("mean-DEO (points)", False, True), ylim=(-5, 105))
    panels["useful"].set(ylabel=better("AUROC (%)", True, True))
    panels["useful"].set_ylim(panels["useful"].get_ylim()[0], 104)
    for name in own:
        keys = ("temperature",) * 3 if name.startswith("CTKD") else ("gate", "gate_min", "gate_max")
        curve = np.stack([curves(rows[name], key)[:, 0] for key in keys], axis=1)
        band(panels[name], curve, name)
        words = "temperature" if name.startswith("CTKD") else "mean gate"
        panels[name].set(ylabel=words + ", lowest, highest" * ("gate" in words))
        panels[name].set_ylim(0, 1.08 * curve.max())  # from 0: a rise from 17 to 21 is small
        panels[name].set_title(f"The {words} of {name} ends at {curve[-1, 0]:.2f}")
    save(figure, path, ends_apart(last), where)
    few = [f", {name} {len(runs)}" for name, runs in rows.items() if len(runs) < most]
    return (
        f"Fairness ({DECISIONS[end]}) and use on validation along training; "
        f"N = {most}{''.join(few)}; bands are 95 % intervals over at least {FEWEST} runs, of gates "
        f"from lowest to highest. In the title: {FEWEST} runs or more, and a paired difference to "
        "CKD whose interval leaves out 0."
        + listed("Left out, their logs not kept", labels_of(every, but=rows))
    )
