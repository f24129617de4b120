"""Result files to tables: nothing here is typed by hand, nothing else draws or formats.

    python report.py                 every table of results/ into results/tables/
    python report.py --readme        and the tables of README.md between their markers

A row is a method with its settings, over seeds: mean ± half of the 95 % interval (Student's t).
Rows of one table must have been made with the same pictures, networks, epochs and seeds; if not,
the table is refused with the list of what differs.
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
    ("rkd", "default"): "RKD",
    ("ctkd", "default"): "CTKD",
    ("kdpp", "default"): "KD++",
    ("fitnet", "default"): "FitNet",
    ("at", "default"): "AT",
}
## What two runs must share to stand in one table.
SAME = (
    "pictures",
    "image_size",
    "target",
    "sensitive",
    "epochs",
    "batch_size",
    "teacher",
    "student",
)


class Refused(ValueError):
    """Runs that cannot stand in one table."""


def collect(folder):
    """{(dataset, script, setting): {seed: result}} of all result files in a folder of results."""
    found = {}
    for path in sorted(Path(folder).glob("*/*/*-seed*.json")):
        if path.parent.parent.name == "smoke" or path.parent.parent.parent.name == "smoke":
            continue
        setting, _, seed = path.stem.rpartition("-seed")
        key = (path.parent.parent.name, path.parent.name, setting)
        found.setdefault(key, {})[int(seed)] = json.loads(path.read_text())
    return found


def select(found, dataset, names):
    """{name: {seed: result}} for the named rows that are there, in the order of `names`.

    Raises Refused when two rows differ in what a table must not mix.
    """
    rows = {}
    for name in names:
        for (where, script, setting), seeds in found.items():
            if where == dataset and NAMES.get((script, setting)) == name:
                rows[name] = seeds
    wrong = []
    if rows:
        first, *_ = rows
        for name, seeds in rows.items():
            if sorted(seeds) != sorted(rows[first]):
                wrong.append(f"{name} has seeds {sorted(seeds)}, {first} {sorted(rows[first])}")
            for seed in seeds.keys() & rows[first].keys():
                a, b = rows[first][seed]["settings"], seeds[seed]["settings"]
                wrong += [f"{k}: {first} {a[k]}, {name} {b[k]}" for k in SAME if a[k] != b[k]]
    if wrong:
        raise Refused(
            f"the rows for {dataset} cannot be compared: " + "; ".join(dict.fromkeys(wrong))
        )
    return rows


def values(seeds, model, metric):
    """One metric of one model in percent, an array over seeds; None becomes NaN."""
    numbers = [
        seeds[s][model]["test"][metric] if model in seeds[s] else None for s in sorted(seeds)
    ]
    return 100 * np.array([np.nan if n is None else n for n in numbers], float)


def cell(numbers):
    """`mean ± half-width` over seeds; the mean alone for one seed."""
    mean, low, high = metrics.seed_interval(values=numbers)
    return f"{mean:.1f} ± {(high - low) / 2:.1f}" if np.isfinite(low) else f"{mean:.1f}"


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def slides_table(found, dataset, names):
    """Teacher and student in the layout of the W210 slides, and the paired change of disparity."""
    shown = {"top-1": "accuracy", "recall": "recall", "precision": "precision", "F1": "f1"}
    shown["disparity"] = "disparity"
    rows = []
    for name, seeds in select(found, dataset, names).items():
        cells = [name]
        for metric in shown.values():
            cells.append(cell(values(seeds, "last", metric)))
        change = values(seeds, "last", "disparity") - values(seeds, "teacher", "disparity")
        collapsed = sum(seeds[s]["last"]["test"]["collapsed"] for s in seeds)
        rows.append([*cells, cell(change) + (f" ({collapsed} collapsed)" if collapsed else "")])
    if rows:
        first = next(iter(select(found, dataset, names).values()))
        teacher = [cell(values(first, "teacher", metric)) for metric in shown.values()]
        rows.insert(0, ["the teacher", *teacher, ""])
    return markdown(["student by", *shown, "disparity, student − teacher"], rows)


def gates_table():
    """How far each script is from ckd.py, from the side-by-side test."""
    sys.path.insert(0, str(ROOT / "tests"))
    import test_side_by_side

    return test_side_by_side.table()


CLASSIC = ["ERM", "CKD", "RKD", "CTKD", "KD++", "FitNet", "AT"]
TABLES = {
    "toy-slides": lambda found: slides_table(found, "toy", CLASSIC),
    "gates": lambda found: gates_table(),
}


def fill(text, found):
    """README text with the part between `<!-- table NAME -->` and `<!-- end -->` made anew."""
    pattern = re.compile(r"(<!-- table (\S+) -->\n).*?(\n<!-- end -->)", re.S)
    return pattern.sub(lambda m: m[1] + TABLES[m[2]](found) + m[3], text)


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
        (folder / f"{name}.md").write_text(make(found) + "\n")
        print(f"wrote {folder / name}.md")
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(fill(readme.read_text(), found))


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"report.py: {error}")
