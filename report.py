"""Result files to tables and figures: nothing here is typed by hand, nothing else draws.

    python report.py                                         of results/, into results/tables/
    python report.py --results results/reference --readme    and the tables of README.md

results/reference/ holds the result files behind README.md; your own runs go to results/.

A row is a method with its settings, over seeds: mean ± half of the 95 % interval (Student's t).
Rows of one table must have been made with the same pictures, networks, epochs and seeds; if not,
the table is refused with the list of what differs. A collapsed run (a class never predicted, or
macro recall within 5 points of chance) is marked: equal for all groups because equally useless, it
must not pass as fair.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

import metrics

ROOT = Path(__file__).resolve().parent
## Rows that are settings of a script: (script, settings that differ from its usual ones) -> name.
NAMES = {
    ("ckd", "alpha_0.0"): "ERM",
    ("ckd", "balance_True-alpha_0.0"): "re-balancing",
    ("ckd", "default"): "CKD",
    ("ckd", "temperature_1.0"): "CKD, T = 1",
    ("rkd", "default"): "RKD",
    ("ctkd", "default"): "CTKD",
    ("kdpp", "default"): "KD++",
    ("fitnet", "default"): "FitNet",
    ("at", "default"): "AT",
    ("adversarial_kd", "default"): "adversarial KD",
    ("adversarial_kd", "alpha_0.0"): "AD",
    ("mfd", "default"): "MFD",
    ("bird", "default"): "BIRD",
    ("fairtune", "default"): "FairTune",
    ("fairtune", "mask_all"): "full fine-tuning",
    ("fairtune", "mask_none"): "linear probe",
}
## What two runs must share to stand in one table.
SAME = "pictures image_size target sensitive epochs batch_size teacher student".split()


class Refused(ValueError):
    """Runs that cannot stand in one table."""


# ==================================================================================================
# Runs
# ==================================================================================================


def collect(folder):
    """{(dataset, script, setting): {seed: result}} of all result files, smoke runs left out."""
    found = {}
    for path in sorted(Path(folder).glob("*/*/*-seed*.json")):
        setting, _, seed = path.stem.rpartition("-seed")
        key = (path.parent.parent.name, path.parent.name, setting)
        found.setdefault(key, {})[int(seed)] = json.loads(path.read_text())
    return found


def comparable(rows):
    """`rows` {name: {seed: result}} as they are; raises Refused when a table must not mix them."""
    wrong, first = [], next(iter(rows), None)
    for name, seeds in rows.items():
        if sorted(seeds) != sorted(rows[first]):
            wrong.append(f"{name} has seeds {sorted(seeds)}, {first} {sorted(rows[first])}")
        for seed in seeds.keys() & rows[first].keys():
            a, b = rows[first][seed]["settings"], seeds[seed]["settings"]
            wrong += [f"{k} of {first} is {a[k]}, of {name} {b[k]}" for k in SAME if a[k] != b[k]]
    if wrong:
        raise Refused("these runs cannot be compared: " + "; ".join(dict.fromkeys(wrong)))
    return rows


def select(found, dataset, names):
    """The named rows of a data set that are there, in the order of `names`."""
    there = {NAMES.get(key[1:]): seeds for key, seeds in found.items() if key[0] == dataset}
    return comparable({name: there[name] for name in names if name in there})


def values(seeds, model, metric):
    """One test metric of one model in percent, an array over seeds; undefined is NaN."""
    numbers = [seeds[seed][model]["test"][metric] for seed in sorted(seeds)]
    return 100 * np.array([np.nan if n is None else n for n in numbers], float)


def collapsed(test):
    """Whether predictions on a test set have collapsed: see the top of this file."""
    counts = np.array(test["counts"]).sum(0)  # (C, C), true x predicted
    return bool((counts.sum(0) == 0).any() or test["recall"] < 1 / len(counts) + 0.05)


def mark(seeds, model="last"):
    """ " (n of m collapsed)" where there are any."""
    n = sum(collapsed(result[model]["test"]) for result in seeds.values())
    return f" ({n} of {len(seeds)} collapsed)" if n else ""


# ==================================================================================================
# Tables
# ==================================================================================================


def interval(numbers):
    """`mean ± half-width of the 95 % interval` over seeds; the mean alone for one seed."""
    mean, low, high = metrics.seed_interval(values=numbers)
    return f"{mean:.1f} ± {(high - low) / 2:.1f}" if np.isfinite(low) else f"{mean:.1f}"


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def slides_table(found, dataset, names):
    """The layout of the W210 slides: teacher and students, and the paired change of disparity."""
    shown = {"top-1": "accuracy", "recall": "recall", "precision": "precision", "F1": "f1"}
    shown["disparity"] = "disparity"
    chosen, rows = select(found, dataset, names), []
    for name, seeds in chosen.items():
        cells = [interval(values(seeds, "last", metric)) for metric in shown.values()]
        change = values(seeds, "last", "disparity") - values(seeds, "teacher", "disparity")
        rows.append([name + mark(seeds), *cells, interval(change)])
    for seeds in list(chosen.values())[:1]:
        cells = [interval(values(seeds, "teacher", metric)) for metric in shown.values()]
        rows.insert(0, ["*the teacher*" + mark(seeds, "teacher"), *cells, ""])
    return markdown(["student by", *shown, "disparity, student − teacher"], rows)


def poster_table(found, dataset, names):
    """The layout of the BIRD poster, and the paired difference of mean-DEO to CKD."""
    shown = {"AUROC": "auroc", "F1": "f1", "mean-DEO": "mean_deo", "max-DEO": "max_deo"}
    chosen, rows = select(found, dataset, names), []
    for name, seeds in chosen.items():
        cells = [interval(values(seeds, "last", metric)) for metric in shown.values()]
        change = ""
        if "CKD" in chosen and name != "CKD":
            base = values(chosen["CKD"], "last", "mean_deo")
            change = interval(values(seeds, "last", "mean_deo") - base)
        rows.append([name + mark(seeds), *cells, change])
    return markdown(["method", *shown, "mean-DEO, method − CKD"], rows)


def one_seed_table(found, dataset, setting, scripts, seed=0):
    """Runs of one seed on one data set: a row for each model, 95 % bootstrap intervals."""
    rows, chosen = [], {s: found.get((dataset, s, setting), {}) for s in scripts}
    chosen = comparable({script: seeds for script, seeds in chosen.items() if seed in seeds})
    metrics_shown = ["auroc", "auroc_worst_group", "auroc_gap", "es_auc", "mean_deo"]
    for number, (script, seeds) in enumerate(chosen.items()):
        result = seeds[seed]
        models = (
            {f"*teacher, {result['teacher']['network']}*": result["teacher"]} if not number else {}
        )
        models[f"{script}.py, {result['last']['network']}"] = result["last"]
        for name, model in models.items():
            test = model["test"]
            parts = [(test, metric) for metric in metrics_shown]
            parts += [(group, "auroc") for group in test["groups"]]
            shown = [(100 * part[m], *part["interval"][m]) for part, m in parts]
            shown = [f"{v:.1f} [{100 * a:.1f}, {100 * b:.1f}]" for v, a, b in shown]
            rows.append([name + " (collapsed)" * collapsed(test), *shown])
    groups = next(iter(chosen.values()))[seed]["group_names"] if chosen else []
    header = ["model", "AUROC", "worst group", "gap", "ES-AUC", "mean-DEO"]
    return markdown([*header, *(f"AUROC, {group}" for group in groups)], rows)


def sweep(found, dataset):
    """{λ: {seed: result}} of adversarial_kd.py where nothing but λ differs."""
    rows = {}
    for (where, script, _), seeds in found.items():
        settings = next(iter(seeds.values()))["settings"]
        if where == dataset and script == "adversarial_kd" and settings["alpha"] > 0:
            rows[settings["adversary_weight"]] = seeds
    return comparable(dict(sorted(rows.items()))) if 0.0 in rows else {}


def sweep_table(found, dataset):
    """The strength of the adversary against accuracy and fairness, paired with λ = 0."""
    rows, chosen = [], sweep(found, dataset)
    for strength, seeds in chosen.items():
        cells = [f"{strength:g}" + mark(seeds)]
        for metric in ("accuracy", "auroc", "disparity", "mean_deo"):
            cells.append(interval(values(seeds, "last", metric)))
        for metric in ("accuracy", "disparity"):
            base = values(chosen[0.0], "last", metric)
            cells.append(interval(values(seeds, "last", metric) - base) if strength else "")
        rows.append(cells)
    header = ["λ", "accuracy", "AUROC", "disparity", "mean-DEO"]
    return markdown([*header, "accuracy, λ − 0", "disparity, λ − 0"], rows)


def gates_table():
    """How far each script is from ckd.py, from the side-by-side test."""
    sys.path.insert(0, str(ROOT / "tests"))
    import test_side_by_side

    return test_side_by_side.table()


CLASSIC = ["ERM", "CKD", "CKD, T = 1", "RKD", "CTKD", "KD++", "FitNet", "AT", "re-balancing"]
POSTER = ["ERM", "CKD", "FitNet", "AT", "AD", "MFD", "BIRD", "adversarial KD", "re-balancing"]
SCRIPTS = "ckd rkd ctkd kdpp fitnet at adversarial_kd bird mfd".split()
SMALL = "image_size_32-teacher_convnet32-student_convnet8-epochs_6"
TABLES = {
    "toy-slides": lambda found: slides_table(found, "toy", CLASSIC),
    "toy-poster": lambda found: poster_table(found, "toy", POSTER),
    "toy-sweep": lambda found: sweep_table(found, "toy"),
    "ham10000-ckd": lambda found: one_seed_table(found, "ham10000", "epochs_10", ["ckd"]),
    "ham10000-small": lambda found: one_seed_table(found, "ham10000", SMALL, SCRIPTS),
    "gates": lambda found: gates_table(),
}


def fill(text, found):
    """README text with the part between `<!-- table NAME -->` and `<!-- end -->` made anew."""
    pattern = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.S)
    return pattern.sub(lambda m: f"{m[1]}{TABLES[m[2]](found)}\n{m[3]}", text)


# ==================================================================================================
# Figures
# ==================================================================================================


def sweep_figures(found, dataset, folder):
    """λ against disparity and accuracy, with 95 % bands over seeds; and the three in one view."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    chosen = sweep(found, dataset)
    if len(chosen) < 2:
        return
    strengths, places = list(chosen), np.arange(len(chosen))
    curves = {
        metric: np.array(
            [metrics.seed_interval(values=values(s, "last", metric)) for s in chosen.values()]
        )
        for metric in ("disparity", "accuracy")
    }  # (λ, 3): mean, low, high
    bad = [bool(mark(seeds)) for seeds in chosen.values()]
    colours, styles = (
        {"disparity": "#d55e00", "accuracy": "#0072b2"},
        {"disparity": "-", "accuracy": "--"},
    )
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for metric, curve in curves.items():
        axes.plot(
            places, curve[:, 0], styles[metric], color=colours[metric], marker="o", label=metric
        )
        axes.fill_between(places, curve[:, 1], curve[:, 2], color=colours[metric], alpha=0.2, lw=0)
    if any(bad):
        low = [curves["accuracy"][n, 0] for n in places if bad[n]]
        axes.plot(places[bad], low, "x", color="black", ms=11, label="some seeds collapsed")
    axes.set_xticks(places, [f"{s:g}" for s in strengths])
    axes.set(xlabel="strength λ of the adversary", ylabel="percent of the test set", ylim=(0, 100))
    axes.set_title(f"A stronger adversary: disparity and accuracy on {dataset}")
    axes.legend()
    figure.savefig(folder / f"{dataset}-sweep.png", dpi=150)

    figure = plt.figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    axes.plot(places, curves["disparity"][:, 0], curves["accuracy"][:, 0], color="0.6")
    points = axes.scatter(
        places, curves["disparity"][:, 0], curves["accuracy"][:, 0], c=places, cmap="cividis", s=50
    )
    points.set_depthshade(False)
    axes.set_xticks(places, [f"{s:g}" for s in strengths], rotation=45, fontsize=8)
    axes.set(xlabel="λ", ylabel="disparity (%)", zlabel="accuracy (%)")
    axes.set_title(f"λ, disparity and accuracy of adversarial KD on {dataset}")
    figure.savefig(folder / f"{dataset}-sweep-3d.png", dpi=150)
    plt.close("all")


def fairtune_figures(found, dataset, folder):
    """FairTune's search: which parts each trial tuned and how it ended, and which parts matter.

    Only trials of one search are compared. All of them have a first epoch, few have a last one: the
    effect of a part is the difference in the objective after the first epoch, tuned minus frozen,
    with a 95 % interval, after a line over the logarithm of the learning rate was taken off. The
    sampler prefers what went well, so it is no randomised comparison.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    for (where, script, setting), seeds in found.items():
        result = seeds[min(seeds)]
        trials = result.get("search", {}).get("trials", [])
        trials = [trial for trial in trials if trial["values"] and len(trial["params"]) > 1]
        if where != dataset or script != "fairtune" or len(trials) < 4:
            continue
        names = sorted(name for name in trials[0]["params"] if name != "lr")
        bits = np.array([[trial["params"][name] for trial in trials] for name in names])  # (P, T)
        first, last = (np.array([trial["values"][k] for trial in trials]) for k in (0, -1))
        labels = [f"{k // 3 + 1} {('norms', 'attention', 'MLP')[k % 3]}" for k in range(len(names))]
        rates = np.log([trial["params"]["lr"] for trial in trials])
        first = first - np.polyval(np.polyfit(rates, first, 1), rates)
        ended = np.array([trial["state"] == "complete" for trial in trials])
        objective, order = result["settings"]["objective"].replace("_", " "), np.arange(len(trials))

        figure, axes = plt.subplot_mosaic(
            [["value", "key"], ["grid", "effect"]], figsize=(9, 3 + 0.22 * len(names)),
            layout="constrained", width_ratios=[2, 1], height_ratios=[2, 0.22 * len(names)],
        )  # fmt: skip
        value, grid, effect = axes["value"], axes["grid"], axes["effect"]
        value.plot(order[ended], last[ended], "o", color="#0072b2", label="trained to the end")
        value.plot(order[~ended], last[~ended], "x", color="#d55e00", label="stopped early")
        value.set(ylabel=f"{objective}\n(validation)", xlim=(-0.5, len(trials) - 0.5), xticks=[])
        axes["key"].set_axis_off()
        axes["key"].legend(*value.get_legend_handles_labels(), loc="center left")
        grid.imshow(bits, cmap="Greys", vmin=0, vmax=1.4, aspect="auto", interpolation="nearest")
        grid.set_yticks(range(len(names)), labels, fontsize=8)
        grid.set(xlabel="trial, in the order of the search", ylabel="block and part (dark: tuned)")
        for n, row in enumerate(bits == 1):
            if min(row.sum(), (~row).sum()) > 1:
                parts = first[row], first[~row]
                half = 1.96 * np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts))
                difference = parts[0].mean() - parts[1].mean()
                effect.errorbar(difference, n, xerr=half, fmt="o", color="#0072b2", capsize=3)
        effect.axvline(0, color="0.6")
        effect.set(
            ylim=grid.get_ylim(), yticks=[], xlabel=f"{objective}, tuned − frozen\n(epoch 1)"
        )
        figure.suptitle(f"FairTune on {dataset}: what each trial tuned, and which parts matter")
        figure.savefig(folder / f"{dataset}-fairtune-{setting}.png", dpi=150)
        plt.close("all")


# ==================================================================================================


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="results", help="folder of result files")
    parser.add_argument("--readme", action="store_true", help="also fill the tables of README.md")
    args = parser.parse_args()
    found, folder = collect(args.results), Path(args.results) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        text = make(found)
        if text.count("\n") > 1:  # more than a header
            (folder / f"{name}.md").write_text(text + "\n")
    for dataset in sorted({key[0] for key in found}):
        sweep_figures(found, dataset, folder)
        fairtune_figures(found, dataset, folder)
    print(f"wrote {', '.join(sorted(p.name for p in folder.iterdir()))} in {folder}")
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(fill(readme.read_text(), found))


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"report.py: {error}")
