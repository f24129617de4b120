"""python metrics.py: a model that is not ours, from a table; probabilities in place of logits."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import cells_of, write_table
from forked import ROOT, run_script

import metrics
import predictions

NAMES = ["akiec", "Melanoma", "nv"]  # as they are sorted


def table(seed=0, subjects=True, shift=0.0):
    """Rows of 150 samples of 60 persons, and what `evaluate` needs of them."""
    rng = np.random.default_rng(7)
    labels, groups = rng.integers(0, 3, 150), rng.integers(0, 2, 150)
    persons = rng.integers(0, 60, 150)
    noise = np.random.default_rng(seed).normal(size=(150, 3))
    logits = (noise + (1.5 + shift * groups[:, None]) * np.eye(3)[labels]).round(6)
    rows = []
    for n in range(150):
        row = {"file": f"{n:03}.png", "label": NAMES[labels[n]], "group": "fm"[groups[n]]}
        row |= {"subject": f"p{persons[n]}"} if subjects else {}
        rows.append(row | {f"score_{name}": logits[n, c] for c, name in enumerate(NAMES)})
    clusters = np.array([f"p{p}" for p in persons]) if subjects else np.arange(150).astype(str)
    data = {"labels": labels, "groups": groups, "logits": logits, "num_groups": 2}
    return rows, data, clusters


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """`python metrics.py` with these tables, rows or texts; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*tables, **how):
        names = [f"{letter}.csv" for letter, _ in zip("abc", tables)]
        for name, rows in zip(names, tables):
            if isinstance(rows, str):
                (tmp_path / name).write_text(rows)
            else:
                write_table(tmp_path / name, rows)
        predictions.compare(names, **how)
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("subjects", [True, False])
def test_the_table_is_that_of_evaluate(main, subjects):
    rows, data, clusters = table(subjects=subjects)
    out = metrics.evaluate(**data, num_classes=3, clusters=clusters)
    expected = metrics.show({"a.csv": out}, NAMES, ["f", "m"])
    told = f"{len({*clusters})} of the column 'subject'" if subjects else "each row is its own"
    expected = f"a.csv: the scores are read as logits; subjects: {told}\n{expected}\n"
    assert main(rows) == expected
    assert main(rows[::-1]) == expected  # the files' order, not the table's
    if subjects:
        renamed = [{"Patient-ID" if k == "subject" else k: v for k, v in r.items()} for r in rows]
        assert main(renamed) == expected.replace("'subject'", "'patient-id'")
        for row in rows[:9]:
            row["subject"] = "unknown"
        told = "of the column 'subject', and 9 rows that are their own\n"
        clusters[:9] = [f"r{n}" for n in range(9)]
        out = metrics.evaluate(**data, num_classes=3, clusters=clusters)
        expected = f"{told}{metrics.show({'a.csv': out}, NAMES, ['f', 'm'])}\n"
        assert main(rows).endswith(expected)


def test_probabilities_are_recognised_and_logits_of_two_classes(main):
    rows, data, clusters = table()
    shares = np.exp(data["logits"]) / np.exp(data["logits"]).sum(1, keepdims=True)
    for row, values in zip(rows, shares):
        row.update({f"score_{name}": f"{p:.4f}" for name, p in zip(NAMES, values)})
    printed = main(rows)
    assert printed.startswith("a.csv: the scores are read as probabilities; subjects: 5")
    out = metrics.evaluate(**data, num_classes=3, clusters=clusters)
    assert f"{100 * out['auroc']:.1f} [" in printed and f"{100 * out['mean_deo']:.1f} [" in printed
    ## One column: of the label that is sorted last; above 0.5 or, of logits, above 0 it is said.
    two = [row for row in rows if row["label"] != "nv"]
    for row in two:
        said = float(row.pop("score_Melanoma")) / (1 - float(row.pop("score_nv")) + 1e-9)
        row["score"] = said  # of Melanoma, which is after akiec: capitals do not count
        del row["score_akiec"]
    hits = np.mean([(row["score"] > 0.5) == (row["label"] == "Melanoma") for row in two])
    of_probabilities, corrected = main(two), main(two, shares=[0.8, 0.2])
    told = "are read as probabilities of 'Melanoma', the last of both labels;"
    assert told in of_probabilities
    assert f"{100 * hits:.1f} [" in of_probabilities.splitlines()[3]
    for row in two:
        row["score"] = np.log((row["score"] + 1e-12) / (1 - row["score"] + 1e-12))
    assert main(two) == of_probabilities.replace("as probabilities", "as logits")
    assert main(two, shares=[0.8, 0.2]) == corrected.replace("as probabilities", "as logits")
    for n, row in enumerate(two):  # however small, it is no tie
        row["score"] = (1 + n) * 1e-22 * (1 + 1e3 * (row["label"] == "Melanoma"))
    assert cells_of(main(two))["utility", "AUROC", ""][0].startswith("100.0")


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_rounded_probabilities_are_probabilities(main, classes, digits):
    rng = np.random.default_rng(digits)
    shares = rng.dirichlet(np.ones(classes), 60).round(digits)
    assert classes == 2 or (abs(shares.sum(1) - 1) > 1e-3).any()
    rows = [{"label": f"c{n % classes}", "group": "fm"[n % 7 < 3]} for n in range(60)]
    for row, values in zip(rows, shares):
        row |= {f"score_c{c}": f"{p:.{digits}f}" for c, p in enumerate(values)}
    assert main(rows).startswith("a.csv: the scores are read as probabilities; subjects: each row")
    data = {"labels": np.arange(60) % classes, "groups": np.arange(60) % 2, "num_groups": 2}
    with pytest.raises(ValueError, match="must not be probabilities"):
        metrics.headline(**data, logits=shares)
    for row in rows:  # the same as percent
        row |= {k: f"{100 * float(v):.1f}" for k, v in row.items() if k.startswith("score")}
    with pytest.raises(ValueError, match="a.csv: the scores are percent: divide them by 100"):
        main(rows)


@pytest.mark.parametrize("pair", [("benign", "malignant"), ("disease", "healthy"), ("2", "10")])
def test_the_label_of_a_single_score_is_named(main, pair):
    rows = [{"label": pair[n % 2], "group": "fm"[n % 3 > 0], "score": n % 5 / 5} for n in range(30)]
    assert f"read as probabilities of {pair[1]!r}, the last of both labels;" in main(rows)
    for row in rows:
        row["score"] = 100 * row["score"]
    with pytest.raises(ValueError, match=f"from 0 to 80: .* {pair[1]!r} everywhere.* by 100"):
        main(rows)
    for row in rows:
        row["score"] = row["score"] - 50
    assert f"read as logits of {pair[1]!r}, the last of both labels;" in main(rows)


def test_rows_of_folds_are_compared_inside_them(main):
    """Each fold has a model, whose logits are on a scale of its own."""
    rows, data, clusters = table()
    folds = np.arange(150) % 3
    scaled = {**data, "logits": data["logits"] * (1 + 4 * folds[:, None])}
    for row, z in zip(rows, scaled["logits"].round(6)):
        row |= {f"score_{name}": z[c] for c, name in enumerate(NAMES)}
    mixed = cells_of(main(rows))
    said = main([row | {"fold": f"f{fold}"} for row, fold in zip(rows, folds)])
    assert "a.csv: AUROC compares rows of one fold: each of 3 is a model" in said
    inside = metrics.evaluate(**scaled, num_classes=3, clusters=clusters, strata=folds)
    assert metrics.show({"a.csv": inside}, NAMES, ["f", "m"]) in said
    name = "utility", "AUROC", ""
    assert cells_of(said)[name] != mixed[name]
    for key in (("utility", "top-1", ""), ("fairness of decisions", "mean-DEO", "")):
        assert cells_of(said)[key] == mixed[key]
    other = [row | {"fold": "f0"} for row in rows]
    with pytest.raises(ValueError, match="b.csv differs from a.csv in its folds, f0 for f1"):
        main([row | {"fold": f"f{fold}"} for row, fold in zip(rows, folds)], other)


def test_rows_without_a_label_or_a_group_are_left_out_on_request(main):
    rows, _, _ = table()
    few = main(rows[:140])
    for row, name in zip(rows[140:], 5 * ["label", "group"]):
        row[name] = ""
    printed = main(rows, skip_bad=True)
    told = "a.csv: left out, without a label or a group: 10 of 150 rows\n"
    assert printed == told + few
    assert main(rows, rows, skip_bad=True).startswith(told)


def test_tables_without_files_are_paired_by_their_order_with_a_word(main):
    rows = [{k: v for k, v in row.items() if k != "file"} for row in table()[0]]
    assert "b.csv: there is no column file: its rows are those of a.csv in the same" in main(
        rows, rows
    )
    assert "no column file" not in main(rows)


def test_a_table_beside_itself_is_refused(main):
    main(table()[0])
    with pytest.raises(ValueError, match="a.csv is named twice: two tables are compared"):
        predictions.compare(["a.csv", "a.csv"])


def test_a_picture_with_two_rows_is_refused(main):
    """Answers to two views of a picture are no two pictures: intervals would be too narrow."""
    rows = table()[0]
    with pytest.raises(ValueError, match=f"names '{rows[3]['file']}' 2 times: keep one row"):
        main([*rows, rows[3]])


def test_two_tables_give_paired_differences(main):
    (a, of_a, clusters), (b, of_b, _) = table(0), table(1, shift=2.0)
    drawn = [{}, {}]
    models = [
        metrics.evaluate(**data, num_classes=3, clusters=clusters, drawn=draws)
        for data, draws in zip((of_a, of_b), drawn)
    ]
    columns, found = dict(zip(("a.csv", "b.csv"), models)), metrics.differences(*zip(models, drawn))
    shown = metrics.show(columns, NAMES, ["f", "m"], found) + "\n"
    assert main(a, b[::-1]).split("\n", 2)[2] == shown  # after how each of them was read
    for key in found.keys() & metrics.main_ones(models[0]).keys():
        points = {"point_a": models[1][key], "point_b": models[0][key]}
        pairs = {"draws_a": drawn[1][key], "draws_b": drawn[0][key]}
        assert found[key] == [*metrics.paired_difference(**points, **pairs).values()]
    same = cells_of(main(a, a))
    assert {cells[2] for cells in same.values() if len(cells) > 2} == {"0.0 [0.0, 0.0]"}
    assert main(a, b, a).count("\npercent [95 %]") == 2  # each other one beside the first


def test_a_column_that_may_be_no_class_is_named(main):
    """Of a class, as of another number that begins with score_, there may be no row."""
    rows = [{"label": c, "group": g, "score_a": 1, "score_b": 2} for c in "ab" for g in "fm"]
    assert "without a row" not in main(rows)
    told = main([row | {"score_diff": n} for n, row in enumerate(rows)])
    assert "; classes without a row: diff\n" in told


def test_columns_may_stand_in_any_order(main):
    """Also beside a table with one score; the names of columns lose their capitals."""
    rows = [
        {"label": label, "group": group, "score_Nevus": k % 3, "score_angioma": k % 5}
        for k, (label, group) in enumerate(4 * [("Nevus", "f"), ("angioma", "f"), ("Nevus", "m")])
    ]
    rows += [{**row, "label": "angioma", "group": "m"} for row in rows[:3]]
    turned = [dict(reversed(row.items())) for row in rows]
    kept = ("label", "group")
    single = [
        {k: row[k] for k in kept} | {"score": row["score_angioma"] - row["score_Nevus"]}
        for row in rows
    ]
    for other in (turned, single):
        assert "0.0 [0.0, 0.0]" in main(rows, other)  # the same answers: no difference


GOOD = "label,group,score_a,score_b\na,f,1,2\nb,m,3,1\n"
FAULTS = {  # name: (tables, words of the sentence)
    "no such file": ([], ["a.csv does not exist: look at the table's name"]),
    "no group": (["label,score_a,score_b\na,1,2\n"], ["no column 'group'"]),
    "no scores": (["label,group\na,f\nb,m\n"], ["columns of no score", "score_NAME"]),
    "a class without a score": ([GOOD + "c,f,1,2\n"], ["labels a, b, c", "score_a, score_b"]),
    "one score of three": (["label,group,score\na,f,1\nb,f,2\nc,m,2\n"], ["for two classes"]),
    "a word": ([GOOD + "a,f,high,2\n"], ["a.csv, line 4, score_a: 'high' is no"]),
    "an empty score": ([GOOD + "a,f,,2\n"], ["a.csv, line 4, score_a: ''"]),
    "NaN": ([GOOD + "a,f,nan,2\n"], ["a.csv, line 4, score_a: 'nan' is no finite number: write"]),
    "infinite": ([GOOD + "a,f,1,-inf\n"], ["a.csv, line 4, score_b: '-inf' is no finite number"]),
    "sigmoids": (
        ["label,group,score_a,score_b\na,f,0.9,0.3\nb,m,0.2,0.1\n"],
        ["a.csv: the scores are from 0 to 1, but rows do not sum to 1: divide", "log(p / (1 - p))"],
    ),
    "no row": (["label,group,score_a,score_b\n,f,1,2\n"], ["line 2: no label", "--skip-bad"]),
    "no label": ([GOOD + "NA,f,1,2\n"], ["line 4: no label or no group"]),
    "an unknown group": ([GOOD + "a,unknown,1,2\n"], ["line 4: no label or no group"]),
    "two kinds of scores": (
        ["label,group,score,score_a,score_b\na,f,2,1,2\nb,m,3,3,1\n"],
        ["a.csv has a column score and score_NAME, too: leave one kind out"],
    ),
    "no fold": (
        ["label,group,score_a,score_b,fold\na,f,1,2,0\nb,m,3,1,\n"],
        ["a.csv, line 3: fold is empty: fill it in or remove the column"],
    ),
    "two words for a group": (
        [GOOD + "a,M,1,2\n"],
        ["a.csv: 'M' and 'm' say the same: write them alike"],
    ),
    "two numbers for a label": (
        ["label,group,score\n1,f,1\n1.0,m,2\n"],
        ["a.csv: '1' and '1.0' say the same: write them alike"],
    ),
    "other rows": ([GOOD, GOOD + "a,f,1,2\n"], ["b.csv differs from a.csv", "rows, 3 for 2:"]),
    "other subjects": (
        [GOOD, "patient,label,group,score_a,score_b\np,a,f,1,2\np,b,m,3,1\n"],
        ["differs from a.csv in its subjects, p for row 0:"],
    ),
    "another order": (
        [GOOD, GOOD.replace("a,f,1,2\nb,m", "b,m,1,2\na,f")],
        ["b.csv differs from a.csv in its labels, b for a:"],
    ),
    "other groups": ([GOOD, GOOD.replace("m", "x")], ["b.csv differs", "groups, x for m:"]),
}


def test_shares_in_training_give_corrected_decisions(main):
    """As in the table of a student's own run; without them both decisions are the same."""
    rows, data, clusters = table()
    shares = [0.8, 0.1, 0.1]
    out = metrics.evaluate(**data, num_classes=3, clusters=clusters, class_shares=shares)
    assert main(rows, shares=shares).endswith(
        metrics.show({"a.csv": out}, NAMES, ["f", "m"]) + "\n"
    )
    assert "   corrected" in main(rows, shares=shares) and "   corrected" not in main(rows)
    with pytest.raises(ValueError, match="--shares: write one for each class .* akiec, Melanoma"):
        main(rows, shares=[0.5, 0.5])


def test_a_class_without_a_row_keeps_its_place_among_the_shares(main):
    """Its column has lost its capitals, so they cannot count where classes are sorted."""
    rows, shares = table()[0], {"BCC": 0.7, "MEL": 0.1, "nv": 0.2}
    for row in rows:
        row["label"] = {"akiec": "BCC", "Melanoma": "MEL", "nv": "nv"}[row["label"]]
        row |= {f"score_{name}": row.pop(f"score_{old}") for name, old in zip(shares, NAMES)}
    few = [row for row in rows if row["label"] != "BCC"]
    z, order = np.array([[row[f"score_{name}"] for name in shares] for row in few]), [*shares]
    said = (z - np.log([*shares.values()])).argmax(1)
    hits = np.mean([order[c] == row["label"] for c, row in zip(said, few)])
    printed = main(few, shares=[*shares.values()])
    assert cells_of(printed)["utility", "top-1", "corrected"][0].startswith(f"{100 * hits:.1f} [")


def test_a_subject_in_two_ways_of_writing_is_one(main):
    """As in training: two would be wrong, and intervals too narrow."""
    rows = table()[0]
    expected = main(rows)
    for row in rows[::2]:
        row["subject"] = row["subject"].upper()
    assert main(rows) == expected
    main(rows, table()[0])  # the same subjects, so they can be compared


@pytest.mark.parametrize("persons, told", [(1, "one subject: no interval"), (3, "3 subjects")])
def test_few_subjects_are_told_and_one_gives_no_interval(main, persons, told):
    """Resamples of one person are all the same: an interval without width would say "shown"."""
    tables = []
    for seed in (0, 1):
        rows, *_ = table(seed)
        tables.append([row | {"subject": f"p{n % persons}"} for n, row in enumerate(rows)])
    printed = " ".join(main(*tables).split())
    assert f"beware: intervals are over subjects, and these are pictures of {told}" in printed
    if persons == 1:
        assert "[" not in printed.partition("percent [95 %]")[2]
        assert "less fair" not in printed and "fairer" not in printed
    assert "beware" not in main(table()[0])


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_sentence(main, fault):
    tables, words = FAULTS[fault]
    with pytest.raises(ValueError) as error:
        main(*tables) if tables else predictions.compare(["a.csv"])
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_as_a_user_starts_it(tmp_path):
    (tmp_path / "a.csv").write_text(GOOD)
    done = run_script(ROOT / "metrics.py", "a.csv", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.splitlines()[1].startswith("percent")
    reason = "undefined, because without samples of two classes there is no AUROC"
    assert reason in " ".join(done.stdout.split())
    done = run_script(ROOT / "metrics.py", "b.csv", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("metrics.py: b.csv does not exist")
    assert len(done.stderr.splitlines()) == 1
    text = run_script(ROOT / "metrics.py", "--help", cwd=tmp_path).stdout
    example = re.search(r"    (label,group,.*)\n    (.*)\n", text)
    (tmp_path / "c.csv").write_text("\n".join([*example.groups(), "malignant,man,0.1,0.2,p2"]))
    assert run_script(ROOT / "metrics.py", "c.csv", cwd=tmp_path).returncode == 0
    assert "of the label that is last when both are sorted" in " ".join(text.split())


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="Windows has no such pipes")
@pytest.mark.parametrize(
    "command, first",
    [
        ("metrics.py a.csv", "a.csv: the scores"),
        ("side_by_side.py", "containment"),
        ("report.py --help", "usage: report.py"),
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, command, first):
    (tmp_path / "a.csv").write_text(GOOD)
    command = f"{sys.executable} -u {ROOT}/{command} | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(first) and not done.stderr


# ----- probabilities in place of logits -----------------------------------------------------------
@pytest.mark.parametrize("digits", [16, 4, 3])
def test_probabilities_are_no_logits(digits):
    _, data, _ = table()
    shares = np.exp(data["logits"]) / np.exp(data["logits"]).sum(1, keepdims=True)
    rounded = data | {"logits": shares.round(digits)}
    for call in (metrics.headline, lambda **d: metrics.evaluate(**d, num_classes=3, replicates=0)):
        with pytest.raises(ValueError, match="must not be probabilities: pass their logarithms"):
            call(**rounded)
    again = metrics.headline(**data | {"logits": np.log(shares)})  # and these are the same model
    for name, value in metrics.headline(**data).items():
        np.testing.assert_allclose(again[name], value, rtol=1e-9, atol=1e-9)


def test_logits_that_only_look_alike_are_none():
    _, data, _ = table()
    shares = np.exp(data["logits"]) / np.exp(data["logits"]).sum(1, keepdims=True)
    for logits in (0.9 * shares, shares + [-1, 1, 0], np.vstack([shares[:-1], [0.5, 0.4, 0.3]])):
        metrics.headline(**data | {"logits": logits})


# ----- why a metric is undefined ------------------------------------------------------------------
def test_the_table_says_why_a_metric_is_undefined():
    _, data, _ = table()
    labels = np.where(data["groups"] == 1, 2, data["labels"])  # group m has one class
    out = metrics.evaluate(**data | {"labels": labels}, num_classes=3, replicates=20)
    text = metrics.show({"student": out}, NAMES, ["f", "m"])
    rows = [line for line in text.splitlines() if line[0] == " " and line.endswith(" undefined")]
    assert len(rows) == 5  # each has a reason
    text = " ".join(text.split())
    assert "undefined, because fewer than two groups have an AUROC: gap; ES-AUC" in text
    assert "undefined, because without samples of two classes there is no AUROC: AUROC, m" in text
    assert "worst group: of those that have an AUROC" in text
    two = "undefined, because a class needs samples in two groups: disparity, akiec; "
    assert two in text
    absent = metrics.evaluate(**data | {"num_groups": 3}, num_classes=3, replicates=0)
    text = metrics.show({"student": absent}, NAMES, ["f", "m", "x"])
    assert "undefined, because there is no sample: top-1, x\n" in text
    ## Half of the resamples lack the one sample of a class: the value has no interval.
    labels = np.where(data["groups"] == 1, 2, data["labels"])
    labels[np.flatnonzero(data["groups"] == 1)[0]] = 0
    rare = metrics.evaluate(
        **data | {"labels": labels}, num_classes=3, clusters=np.arange(150) // 50, replicates=50
    )
    if rare["interval"]["auroc_gap"] == [None, None]:
        assert "half of the resamples" in metrics.show({"student": rare}, NAMES, ["f", "m"])
