"""Pages of runs say what result files and tables say, and two runs are compared in pairs."""

import base64
import csv
import html
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from forked import ROOT
from test_methods import run
from test_report import put, put_folds, result

import metrics
import report
import results
import webpages
from data import InputError

SMALL = "--device cpu --teacher convnet4 --student convnet2".split()
TWO = "--dataset csv --data-dir pictures --target group --sensitive label --image-size 16".split()
TWO += "--epochs 1 --teacher-epochs 1 --batch-size 8".split()


@pytest.fixture(scope="module")
def source(originals, tmp_path_factory):
    """A folder with runs: six classes with and without a teacher, two classes, and masks."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(originals / "csv", folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, flags in (
            ("ckd", []),
            ("ckd", ["--seed", "1"]),
            ("ckd", ["--alpha", "0"]),
            ("ckd", ["--alpha", "0", "--seed", "1"]),
            ("adversarial_kd", TWO),  # not --smoke, whose pictures a gallery does not show
            ("ckd", ["--task", "segment", "--teacher", "unet4", "--student", "unet2"]),
        ):
            smoke = [] if flags is TWO else ["--smoke"]
            run(name, *SMALL, *smoke, *flags, "--out", folder / "runs")
    shutil.copytree(folder / "runs" / "csv", folder / "runs" / "smoke" / "csv")
    return folder / "runs" / "smoke"


@pytest.fixture(scope="module")
def pages(source):
    """{folder of a run: its page}, and the page and the table of all runs."""
    told = webpages.write(source, source.parents[1] / "pictures")
    files = [*source.glob("*/*/*/report.html")]
    assert f"wrote {len(files)} pages" in told and len(files) == 6
    every = {file.parent: file.read_text("utf-8") for file in files}
    return every, (source / "family.html").read_text("utf-8"), source / "family.csv"


def the(pages, *words):
    """The one page whose folder has these words in its path, and its result."""
    (folder,) = [f for f in pages[0] if all(word in str(f) for word in words)]
    (result,) = webpages.read(folder / "result.json").values()
    return pages[0][folder], result


def test_every_page_is_whole_and_needs_nothing_else(pages):
    for page in [*pages[0].values(), pages[1]]:
        assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
        assert not re.search("(src|href)=.https?:|@import|<link", page)
        for svg in re.findall('src="data:image/svg[+]xml;base64,([^"]*)"', page):
            assert ElementTree.fromstring(base64.b64decode(svg)).tag.endswith("svg")


def test_numbers_of_a_page_are_those_of_the_result(pages):
    for words, sections in (
        (("smoke/toy/ckd", "seed0", "alpha_0.0"), ["ROC", "Calibration", "Confusion"]),
        (("smoke/csv/adversarial_kd",), ["ROC", "Calibration", "threshold", "Confusion", "wrong"]),
        (("toy-segment",), ["Dice of the test pictures"]),
    ):
        page, result = the(pages, *words)
        heads = re.findall("<h2>(.*?)</h2>", page)
        assert all(any(word in head for head in heads) for word in sections)
        for absent in {"ROC", "Calibration", "threshold", "Confusion"} - {*sections}:
            assert not any(absent in head for head in heads), (words, absent)
        for metric in ("auroc", "mean_deo", "dice", "dice_gap_standardised"):
            if metric in result["last"]["test"]:
                for name in {"teacher", "last"} & {*result}:
                    value = results.cell({0: result}, metric, name)
                    assert f"<td>{value}" in re.sub(" data-v=.*?>", ">", page)
        for part in result["last"]["test"]["groups"]:
            assert f"<td>{part['n']}" in page
        if "counts" in result["last"]["test"]:
            cells = [int(n) for n in re.findall(r'rgba.*?">(\d+)', page)]
            end = results.main_rule({"": {0: result}})
            assert cells == np.array(result["last"]["test"][f"counts{end}"]).ravel().tolist()
        for name, value in result["changed"].items():
            assert f"<td>{name}<td>{html.escape(str(value))}" in page


def test_areas_under_drawn_curves_are_those_of_the_result(pages):
    """The legend's AUROC of two classes is that of the group in the result."""
    _, result = the(pages, "smoke/csv/adversarial_kd")
    shown = webpages.Run(result, {"": {0: result}})
    for name, logits, _, group, inside, _ in shown.lines():
        if len({*shown.labels[inside]}) == 2:
            labels, score = shown.labels[inside], metrics.log_odds(logits[inside])[:, 1]
            g = shown.names.index(group)
            area = shown.parts[name]["test"]["groups"][g]["auroc"]
            assert metrics.auroc(labels=labels, probs=score) == pytest.approx(area)


def test_a_page_says_who_is_less_fair_and_marks_what_has_collapsed(pages):
    for folder, page in pages[0].items():
        (result,) = webpages.read(folder).values()
        sentence = html.unescape(re.search("<p class=said>(.*?)</p>", page)[1])
        bad = [result[rule]["test"]["collapsed"] for rule in ("last", "teacher") if rule in result]
        assert ("collapsed" in sentence) == any(bad)
        assert ("no one teacher" in sentence) == ("teacher" not in result)
        ## The closing sentence of the terminal, and its differences, stand on the page.
        if "teacher" in result:
            terminal = " ".join(metrics.summary(result).split())
            assert terminal.endswith(sentence)
            smoke = result["settings"]["smoke"]
            assert ("That is expected of a smoke run" in terminal) == (any(bad) and smoke)
        drawn = result.get("difference", {})
        shown = [metric for _, metric, _ in webpages.shown_metrics({"": {(0, 0): result}})]
        assert not drawn or len(drawn.keys() & {*shown}) >= 5
        for metric in drawn.keys() & {*shown}:
            three = np.array(drawn[metric], float)
            assert html.escape(str(results.in_percent(*three))) in page


def value(point, low, high):
    return results.Value(point, low, high)


def test_the_page_of_all_runs_and_its_table(pages, source):
    _, page, table = pages
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_place = results.collect(source, smoke=True)
    assert {(r["data"], r["conditions"]) for r in rows} == {*by_place}
    for row in rows:
        runs = by_place[row["data"], row["conditions"]][row["row"]]
        assert int(row["runs"]) == len(runs)
        if row["metric"] in ("AUROC", "Dice", "gap"):
            expected = results.cell(runs, results.METRICS[row["metric"]][0])
            numbers = [float(row[name]) for name in ("percent", "low", "high")]
            np.testing.assert_allclose(numbers, expected[:3], rtol=1e-3, atol=1e-3)
            assert html.escape(str(expected)) in page
    for address in re.findall('href="(.*?)"', page):
        assert (source / address).is_file()
    assert page.count("<a href=") >= 6


CLICK = """<script>
document.querySelectorAll("table.sort th")[3].click();
document.title = [...document.querySelector("table.sort").tBodies[0].rows].map(
  row => row.cells[3].dataset.v).join();
</script></body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the package chromium")
def test_a_click_sorts(tmp_path):
    rows = [["a", "", "", value(p, 0, 1)] for p in (9.5, 10.5, 1e-5)]
    table = webpages.table(["name", "x", "y", "AUROC"], rows, "sort")
    page = webpages.document("t", table, webpages.SORT)
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", CLICK), "utf-8")
    flags = "--headless=new --no-sandbox --disable-gpu --dump-dom".split()
    dom = subprocess.run(["chromium", *flags, path.as_uri()], capture_output=True, text=True)
    assert "<title>1e-05,9.5,10.5</title>" in dom.stdout


def test_two_runs_compared_are_the_tables_differences(pages, source, monkeypatch, capsys):
    with_teacher, without = (
        [f for f in pages[0] if "toy/ckd" in str(f) and ("alpha" in str(f)) == plain]
        for plain in (False, True)
    )
    first = sorted(with_teacher)[-1]
    seed = first.name[-5:]
    (second,) = [f for f in without if f.name.endswith(seed)]
    monkeypatch.setattr(
        sys, "argv", ["report.py", "--compare", str(first), f"{second}/result.json"]
    )
    report.main()
    out = capsys.readouterr().out
    runs, base = webpages.read(second), webpages.read(first)
    for column in ("AUROC", "mean-DEO"):
        metric = results.METRICS[column][0]
        line = next(line for line in out.splitlines() if line.startswith(f"{column} "))
        assert str(results.change(runs, base, metric)) in line
    assert "percent" in out and f"A: CKD, {first}\n" in out and "B: ERM, " in out
    assert "alpha: A 0.9, B 0.0" in out and "1 seed, " in out


def test_rows_of_seeds_are_compared_seed_by_seed(pages, source, tmp_path):
    for name, plain in (("a", False), ("b", True)):
        for folder in pages[0]:
            if "smoke/toy/ckd" in str(folder) and ("alpha" in folder.name) == plain:
                shutil.copytree(folder, tmp_path / name / folder.name)
    out = webpages.compare(tmp_path / "a", tmp_path / "b")
    assert "paired over 2 seeds" in out and " ± " in out
    with pytest.raises(InputError, match="holds several runs with seed"):
        webpages.compare(source / "toy" / "ckd", tmp_path / "a")
    with pytest.raises(InputError, match="no result file and holds none"):
        webpages.compare(tmp_path / "a", tmp_path / "c")
    ## Or by the start of their names, which differ in the digest behind it.
    several = sorted((tmp_path / "b").glob("*seed*"))
    starts = {re.sub("-[0-9a-f]{12}-seed\\d+$", "", folder.name) for folder in several}
    assert len(several) == 2 and len(starts) == 1
    (start,) = starts
    again = webpages.compare(tmp_path / "a", tmp_path / "b" / start)
    assert again.replace(str(tmp_path / "b" / start), "") == out.replace(str(tmp_path / "b"), "")
    masks = source / "toy-segment"
    with pytest.raises(InputError, match="other test pictures, labels, groups or tasks"):
        webpages.compare(tmp_path / "a", masks)


def test_as_a_user_starts_it(tmp_path):
    program = [sys.executable, ROOT / "report.py"]
    flags = ["--html", "--results", tmp_path]
    done = subprocess.run([*program, *flags], capture_output=True, text=True)
    assert done.returncode == 1 and "holds no results: run a script first" in done.stderr
    done = subprocess.run(
        [*program, "--compare", tmp_path, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_only_seeds_of_one_row_are_compared(tmp_path):
    for seed, script in ((0, "ckd"), (1, "rkd")):
        put(tmp_path / "mixed", result(script, seed))
    put(tmp_path / "other", result("kdpp"))
    with pytest.raises(InputError, match="mixed holds runs that differ in more than their seed"):
        webpages.compare(tmp_path / "mixed", tmp_path / "other")


def test_five_folds_are_one_training(tmp_path, lesions):
    """Compared over the test pictures of all of them, not over folds as if they were seeds."""
    for script in ("ckd", "groupdro"):
        put_folds(tmp_path / script, lesions, script)
    text = webpages.compare(tmp_path / "ckd", tmp_path / "groupdro")
    assert "paired over 5 folds, 600 pictures" in text and "5 trainings" not in text
    rows = results.collect(tmp_path / "ckd") | results.collect(tmp_path / "groupdro")
    assert str(results.cell(rows["ham10000", "folds"]["GroupDRO"], "auroc", pooled=True)) in text


def test_a_second_training_is_no_run_of_the_first(tmp_path, lesions):
    for seed in range(2):
        put_folds(tmp_path, lesions, "ckd", seed=seed)
    page, text = webpages.family(results.collect(tmp_path), {})
    assert {line.split(",")[3] for line in text.splitlines()[1:]} == {"5"}


def test_a_run_without_its_answers_has_no_page_and_all_others_have(source, tmp_path, capsys):
    shutil.copytree(source / "toy", tmp_path / "toy")
    (first, *others) = sorted(tmp_path.glob("toy/ckd/*/"))
    (first / "logits.npz").unlink()
    told = webpages.write(tmp_path, None)
    assert f"wrote {len(others)} page" in told and (tmp_path / "family.html").exists()
    assert "no page" in capsys.readouterr().out and not (first / "report.html").exists()


def test_names_of_groups_are_no_html():
    page = webpages.table(["a"], [["<a onmouseover=alert(1)>"], [webpages.Link("<a href='x'>")]])
    assert "<td>&lt;a onmouseover" in page and "<td><a href='x'>" in page
