"""What the notebooks share: a script's run with its log folded, a function's source, one table and
three pictures. Each row of results {(fold, seed): result} is as in results.py.
"""

import html
import inspect
import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Image, Markdown, display

import figures
import metrics
import results

OUT = Path("../runs/notebooks")


def train(folder, script, *settings):
    """Run methods/<script>.py on the CPU, as from the command line, and show its log folded.

    Returns {row: results} of all that was run into this folder. Raises RuntimeError with the
    script's own words if it fails.
    """
    where = ["--device", "cpu", "--out", str(OUT / folder)]
    command = [sys.executable, f"../methods/{script}.py", *settings, *where]
    ## One thread, so that another number of cores does not give other numbers.
    own = os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=own)
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    title = f"<code>python methods/{script}.py {' '.join(settings)}</code>"
    log = f"<pre>{html.escape(ran.stdout)}</pre>"
    display(HTML(f"<details><summary>log of {title}</summary>{log}</details>"))
    (rows,) = results.collect(OUT / folder).values()
    return rows


def source(function):
    """Show the code of a function or class."""
    display(Markdown(f"```python\n{inspect.getsource(function)}```"))


def side_by_side(rows, *names):
    """{name: (results, network)} for `table` and `recalls`; "teacher" is that of CKD's students."""
    return {n: (rows["CKD"], "teacher") if n == "teacher" else (rows[n], "last") for n in names}


def table(models, columns):
    """Show a line for each model {name: (results, network)}, a column for each {words: metric}.

    The metric "train", of the last column, is the recall of the worst class x group cell of the
    training pictures.
    """
    lines = ["| test pictures, % | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    most = max(len(runs) for runs, _ in models.values())
    for name, (runs, network) in models.items():
        name += f" (N = {len(runs)})" if len(runs) < most else ""
        name += results.marks(runs, network)
        cells = [results.cell(runs, k, network) for k in columns.values() if k != "train"]
        cells += [results.trained(runs, network, "")] * ("train" in columns.values())
        lines.append(f"| {' | '.join([name, *map(str, cells)])} |")
    display(Markdown("\n".join(lines)))


def show(figure):
    """Show a figure as a picture."""
    figure.savefig(buffer := io.BytesIO(), dpi=110)
    plt.close(figure)
    display(Image(buffer.getvalue()))


def recalls(models):
    """A panel for each model: the recalls of a class in both groups. A long line is unfair."""
    size = {"figsize": (2 + 1.9 * len(models), 2.9), "layout": "constrained"}
    figure, panels = plt.subplots(1, len(models), sharex=True, sharey=True, **size)
    for axes, (name, (runs, network)) in zip(panels, models.items()):
        first = next(iter(runs.values()))
        counts = sum(np.array(run[network]["test"]["counts"]) for run in runs.values())
        cells = 100 * metrics.recall_per_group(counts=counts)  # (2, C), all runs together
        places, colour = range(len(first["classes"])), figures.look(name)["color"]
        axes.hlines(places, *cells, color=colour, lw=2)
        for recall, group, form in zip(cells, first["group_names"], ({"ms": 5}, {"mfc": "none"})):
            label = group if axes is panels[0] else None
            axes.plot(recall, places, "o", color=colour, label=label, **{"ms": 9} | form)
        axes.set(xlabel="recall (%)", title=name)
        axes.set_yticks(places, first["classes"])
    panels[0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    show(figure)


def curves(along, ylabel):
    """Lines {name: (runs, epochs)} along training: each run thin, their mean thick."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for name, numbers in along.items():
        epochs, colour = range(1, numbers.shape[1] + 1), figures.look(name)["color"]
        axes.plot(epochs, numbers.T, color=colour, lw=0.6, alpha=0.5)
        axes.plot(epochs, numbers.mean(axis=0), color=colour, lw=2.2)
        words = name.partition(", ")[2] or name
        axes.text(epochs[-1] + 0.5, numbers.mean(axis=0)[-1], words, color=colour, va="center")
    axes.set(xlabel="epoch", ylabel=ylabel)
    show(figure)


def differences(values, xlabel):
    """Differences to a base {name: Value} with their intervals; the base is the line at 0."""
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.4 * len(values)), layout="constrained")
    for y, (name, value) in enumerate(values.items()):
        colour = figures.look(name)["color"]
        axes.plot([value.low, value.high], [y, y], color=colour, lw=2)
        axes.plot(value.point, y, "o", color=colour)
    axes.axvline(0, color="0.6", lw=1, zorder=0)
    axes.set(xlabel=xlabel, ylim=(len(values) - 0.5, -0.5))
    axes.set_yticks(range(len(values)), [*values])
    show(figure)
