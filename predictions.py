"""How good any model is, how fair, and how sure we can be of both.

    python metrics.py ours.csv              overall and by group, 95 % intervals
    python metrics.py ours.csv other.csv    two models, paired differences

A table has a row for each test picture, such as

    label,group,score_benign,score_malignant,patient_id
    benign,woman,2.1,-0.3,p17

What each number means stands at the functions of metrics.py.
"""

import argparse
import sys

import numpy as np

import metrics
from data import InputError, end_with_reader, number
from datasets._tables import (
    alike,
    meaning,
    missing,
    place,
    read_rows,
    refuse_repeated,
    subject_column,
)


def refuse_alike(path, names):
    """Raise InputError if two of these classes or groups say the same, as m and M do.

    Training refuses them, too: a gap between such groups is none.
    """
    if pair := alike(names):
        raise InputError(f"{path}: {pair[0]!r} and {pair[1]!r} say the same: write them alike")


def in_order(classes):
    """The places of classes by name, where capitals do not count: in --shares, and of a score."""
    ## Columns lose their capitals, and a class without a row has no other name: so no order may
    ## rest on them.
    return sorted(range(len(classes)), key=lambda c: place(classes[c].lower()))


def read(path, skip_bad=False):
    """The arguments of `headline` from a table, its subjects, and names: classes, groups, files.

    Columns are label, group, scores and, if there, file, fold (of which each has a model of its
    own, so that scores are compared inside it) and one of subjects, as datasets/csv.py finds it.
    Scores are logits or probabilities: score_NAME for each class, or one column score, of the last
    of two classes. How all this is read is printed.
    """
    lines = read_rows(path, ["label", "group"], unique=False)
    if files := [row["file"] for row in lines.values() if row.get("file")]:
        refuse_repeated(path, files)
    bad = {line for line, r in lines.items() if missing(r["label"]) or missing(r["group"])}
    if bad and not skip_bad:
        raise ValueError(
            f"{path}, line {min(bad)}: no label or no group; leave such rows out with --skip-bad"
        )
    if len(bad) == len(lines):
        raise ValueError(f"{path}: no row has both a label and a group: fill them in")
    if bad:
        print(f"{path}: left out, without a label or a group: {len(bad)} of {len(lines)} rows")
    lines = {line: row for line, row in lines.items() if line not in bad}
    header = next(iter(lines.values()))
    scored = [name for name in header if name.partition("_")[0] == "score"]
    texts = {row["label"].lower(): row["label"] for row in lines.values()}
    if "score" in scored and len(scored) > 1:
        raise ValueError(f"{path} has a column score and score_NAME, too: leave one kind out")
    for line, row in lines.items():
        if "fold" in row and missing(row["fold"]):
            raise ValueError(f"{path}, line {line}: fold is empty: fill it in or remove the column")
        for name in scored:
            try:
                fits = np.isfinite(float(row[name]))
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"{path}, line {line}, {name}: {row[name]!r} is no finite number: write logits "
                    "or probabilities, with a point"
                )
    rows = sorted(lines.values(), key=lambda row: row.get("file", ""))  # without: as they are
    known, groups = (sorted({row[name] for row in rows}, key=place) for name in ("label", "group"))
    known = [known[c] for c in in_order(known)]
    for names in (known, groups):
        refuse_alike(path, names)
    scores = np.array([[float(row[name]) for name in scored] for row in rows])  # (N, C), or (N, 1)
    inside, of = bool(((scores >= 0) & (scores <= 1)).all()), ""
    if scored == ["score"] and len(known) == 2:
        if not inside and (scores >= 0).all():
            raise ValueError(
                f"{path}: score goes from {scores.min():g} to {scores.max():g}: logits would say "
                f"{known[1]!r} everywhere, probabilities end at 1: divide percent by 100"
            )
        of = f" of {known[1]!r}, the last of both labels"
        scores, classes = np.hstack([1 - scores if inside else 0 * scores, scores]), known
    else:
        classes = [texts.get(name[6:], name[6:]) for name in scored]  # columns lost capitals
    if len(classes) < 2 or not set(known) <= set(classes):
        raise ValueError(
            f"{path} has labels {', '.join(known)} and columns {', '.join(scored) or 'of no score'}"
            ": it needs score_NAME for each class or, for two classes, score"
        )
    order = in_order(classes)
    classes, scores = [classes[c] for c in order], scores[:, order]
    if metrics.are_probabilities(scores / 100):
        raise ValueError(f"{path}: the scores are percent: divide them by 100")
    if probable := metrics.are_probabilities(scores):
        scores = np.log(np.maximum(scores, 1e-30))
    elif inside:
        raise ValueError(
            f"{path}: the scores are from 0 to 1, but rows do not sum to 1: divide probabilities "
            "by the sum of their row, of sigmoids write log(p / (1 - p)), and from logits subtract "
            "1, which changes no metric"
        )
    subject = subject_column(header)
    subjects = [row.get(subject, "") for row in rows]  # who has none is a subject of its own
    own = [missing(s) for s in subjects]
    ## 1.0 is 1, and p1 is P1, as in training.
    subjects = np.array([f"row {n}" if own[n] else meaning(s) for n, s in enumerate(subjects)])
    told = f"{len({*subjects}) - sum(own)} of the column {subject!r}"
    told += f", and {sum(own)} rows that are their own" if any(own) else ""
    kind = "probabilities" if probable else "logits"
    told = told if subject else "each row is its own"
    absent = [name for name in classes if name not in known]
    told += f"; classes without a row: {', '.join(absent)}" if absent else ""
    print(f"{path}: the scores are read as {kind}{of}; subjects: {told}")
    data = {"labels": np.array([classes.index(row["label"]) for row in rows]), "logits": scores}
    data |= {"groups": np.array([groups.index(row["group"]) for row in rows])}
    data["num_groups"] = len(groups)
    if "fold" in header:
        data["strata"] = np.array([row["fold"] for row in rows])
        print(
            f"{path}: AUROC compares rows of one fold: each of {len({*data['strata']})} is a model"
        )
    return data, subjects, [classes, groups, [row.get("file") for row in rows]]


def compare(tables, skip_bad=False, shares=None):
    """Print the metrics of one table of predictions, or of two and their paired differences.

    shares: of the classes (C,) in training, for corrected decisions; None: equal ones
    """
    a, *others = tables
    if a in others:
        raise ValueError(f"{a} is named twice: two tables are compared")
    models, draws, truths = {}, {}, {}
    for path in tables:
        data, subjects, names = read(path, skip_bad)
        truths[path] = {"number of rows": [len(subjects)]}
        truths[path] |= dict(zip(("classes", "groups", "files"), names))
        truths[path] |= {"labels": [names[0][k] for k in data["labels"]]}
        truths[path] |= {"groups of rows": [names[1][k] for k in data["groups"]]}
        truths[path] |= {"subjects": subjects.tolist(), "folds": [*data.get("strata", ())]}
        for what, own in truths[path].items():
            if own != (first := truths[a][what]):
                pairs = ((x, y) for x, y in zip(own, first) if x != y)
                x, y = next(pairs, (f"{len(own)} of them", f"{len(first)}"))
                raise ValueError(
                    f"{path} differs from {a} in its {what}, {x} for {y}: write both tables of the "
                    "same pictures with the same columns"
                )
        if shares and len(shares) != len(names[0]):
            raise ValueError(f"--shares: write one for each class of {path}, {', '.join(names[0])}")
        if path != a and None in names[2]:
            print(f"{path}: there is no column file: its rows are those of {a} in the same order")
        more = {"clusters": subjects, "drawn": draws.setdefault(path, {}), "class_shares": shares}
        models[path] = metrics.evaluate(**data, num_classes=len(names[0]), **more)
    for b in others or [a]:
        pair = {path: models[path] for path in (a, b)}
        paired = metrics.differences(*((models[k], draws[k]) for k in pair)) if others else None
        print(metrics.show(pair, *names[:2], paired, advice=""))


def main():
    """The command line of metrics.py; what is wrong with a table is one sentence."""
    end_with_reader()
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="metrics.py", description=__doc__, formatter_class=style)
    columns = (
        "columns label, group and, of each class, score_NAME: logits, or probabilities that sum to "
        "1; of two classes score is enough, of the label that is last when both are sorted. If "
        "you have them: file, fold (if each was tested by a model of its "
        "own), and subject, patient_id or the like, who may have several rows"
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=columns)
    skip = "leave out rows that have no label or no group"
    parser.add_argument("--skip-bad", action="store_true", help=skip)
    shares = (
        "how frequent the classes were in training, sorted by name (capitals do not count): "
        "for corrected decisions"
    )
    parser.add_argument("--shares", nargs="+", type=number(1e-9), metavar="SHARE", help=shares)
    args = parser.parse_args()
    try:
        compare(args.tables, args.skip_bad, args.shares)
    except (ValueError, KeyboardInterrupt) as error:  # an InputError is a ValueError
        sys.exit(f"metrics.py: {str(error) or 'stopped'}")


if __name__ == "__main__":
    main()
