"""Tables as people have them, in tests/field/: each is a habit met in the field, with invented
names and numbers. Picture n has label n mod 2 and, unless told, group (n div 2) mod 2."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import colour, read_table, write_table
from forked import run_script
from PIL import Image

import datasets.csv
import report
from data import InputError, load
from datasets import _tables, split_by_subject

FIELD, NUMBERS = Path(__file__).parent / "field", range(1, 49)


def folder(root, table, name, as_name="labels.csv"):
    """A folder with a table of tests/field and the pictures called name(n)."""
    for n in NUMBERS:
        path = root / name(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 18), colour(n)).save(path)
    shutil.copy(FIELD / table, root / as_name)
    return root


def check(data, number, group=None):
    """All pictures, labels and groups are those that the number of the picture says."""
    for split in data.splits.values():
        numbers = np.array([number(i) for i in split.ids])
        shown = split.images.float().mean(dim=(2, 3)).numpy()
        np.testing.assert_allclose(shown, [colour(n) for n in numbers], atol=4)
        assert split.labels.tolist() == (numbers % 2).tolist()
        groups = (numbers // 2) % 2 if group is None else [group(n) for n in numbers]
        assert split.groups.tolist() == list(groups)
    return sorted(number(i) for split in data.splits.values() for i in split.ids)


def last_number(name):
    return int(re.findall(r"\d+", name)[-1])


def test_excel_with_semicolons_empty_rows_capitals_and_decomposed_accents(tmp_path):
    root = folder(
        tmp_path, "excel.csv", lambda n: unicodedata.normalize("NFD", f"Größe {n:03}.jpg")
    )
    choices = {"file_column": "Datei", "target": "befund", "sensitive": "GESCHLECHT"}
    data = load("csv", root, 16, **choices)
    assert data.classes == ["ja", "nein"] and data.group_names == ["m", "w"]
    for split in data.splits.values():  # in the alphabet's order, which is the other one here
        split.labels, split.groups = 1 - split.labels, 1 - split.groups
    assert check(data, last_number) == [*NUMBERS]
    assert data.notes["subjects"] == "13 of the column 'patient' (see --subject)"


def test_a_clinics_table_with_lost_zeros_and_missing_values(tmp_path, capsys):
    root = folder(tmp_path, "clinic.csv", lambda n: f"images/{n:04}.png")
    choices = {"file_column": "image", "target": "finding"}
    with pytest.raises(
        InputError, match="3 of 48 rows .* missing.*line 18: sex is .N/A., which is read as missing"
    ):
        load("csv", root, 16, sensitive="sex", **choices)
    data = load("csv", root, 16, sensitive="sex", skip_bad=True, **choices)
    assert data.classes == ["abnormal", "normal"] and data.group_names == ["F", "M"]
    assert data.notes["left out: label or group missing"] == ["17", "5", "6"]
    for split in data.splits.values():
        split.labels = 1 - split.labels
    assert check(data, int) == sorted({*NUMBERS} - {5, 6, 17})
    ## Four rows without a patient are four subjects, not one that fills a split.
    assert data.notes["pictures without a subject, each its own"] == 4
    patients = {f"{700 + n // 3}" for n in NUMBERS if n not in (5, 6, 17, 9, 10, 11, 12)}
    subjects = {s for split in data.splits.values() for s in split.subjects}
    assert subjects == patients | {"9", "10", "11", "12"}
    assert sum(len(set(s.subjects)) for s in data.splits.values()) == len(subjects)


@pytest.mark.parametrize(
    ("choice", "names", "group"),
    [
        ("age:40,60", ["age<=40", "40<age<=60", "age>60"], lambda a, y: 1 * (a > 40) + (a > 60)),
        ("exam_date:2019", ["exam_date<=2019", "exam_date>2019"], lambda a, y: y > 2019),
        (
            "Exam_Date:2020+age:47.5",
            [
                "exam_date<=2020, age<=47.5",
                "exam_date<=2020, age>47.5",
                "exam_date>2020, age<=47.5",
                "exam_date>2020, age>47.5",
            ],
            lambda a, y: 2 * (y > 2020) + (a > 47.5),
        ),
    ],
)
def test_numbers_and_dates_in_bins_and_crossed(tmp_path, choice, names, group):
    root = folder(tmp_path, "clinic.csv", lambda n: f"images/{n:04}.png")
    table = datasets.csv.read(root, "finding", choice, None, False, file_column="image")
    assert table.group_names == names
    numbers = np.array([int(i) for i in table.ids])
    meant = group(18 + numbers * 7 % 60, 2018 + numbers % 4)
    assert table.groups.tolist() == meant.astype(int).tolist()


def test_numbers_with_commas_in_a_table_of_semicolons(tmp_path):
    root = folder(tmp_path, "comma.csv", lambda n: f"{n}.png")
    data = load("csv", root, 16, sensitive="Messwert:0,5".replace(",", "."))
    assert data.group_names == ["messwert<=0.5", "messwert>0.5"]
    assert check(data, lambda i: int(i.split(".")[0]), lambda n: n % 10 > 5) == [*NUMBERS]
    assert data.notes["subjects"].startswith("17 of the column 'pat.-nr.'")


@pytest.mark.parametrize("before", ["", "SEP=;\n", '"sep=;"\n', "\n\n", "\ufeff\n"])
def test_what_can_stand_before_the_header(tmp_path, before):
    (tmp_path / "t.csv").write_text(f"{before}file;label\na;1\n\nb;2\n")
    lines = before.count("\n")
    rows = _tables.read_rows(tmp_path / "t.csv", ["file"])
    first, second = {"file": "a", "label": "1"}, {"file": "b", "label": "2"}
    assert rows == {lines + 2: first, lines + 4: second}
    (tmp_path / "t.csv").write_text("file|label\na|1,5\n")
    assert _tables.read_rows(tmp_path / "t.csv", ["file"]) == {2: {"file": "a", "label": "1,5"}}


def test_folders_are_labels_only_with_a_word(tmp_path):
    """Where a column label is missing and --target forgotten."""
    root = folder(tmp_path, "clinic.csv", lambda n: f"batch{n % 2}/{n}.png")
    choices = {"file_column": "image", "sensitive": "age:40"}
    data = load("csv", root, 16, **choices)
    assert data.classes == ["batch0", "batch1"]
    said = "labels: the folders of the pictures, such as 'batch0' (see --target)"
    assert said in " ".join(data.describe().split())
    assert "labels:" not in load("csv", root, 16, target="finding", **choices).describe()
    with pytest.raises(
        InputError, match="lie in one folder: .* one with --target, it has .*finding"
    ):
        load("csv", folder(tmp_path / "b", "clinic.csv", lambda n: f"b/{n}.png"), 16, **choices)


def test_words_for_splits_and_a_subject_column_by_another_writing(tmp_path):
    root = folder(tmp_path, "clinic.csv", lambda n: f"{n}.png")
    rows = read_table(root / "labels.csv")
    words = ["Training", "train", "validation", "testing"]
    for row in rows:
        row["split"] = words[int(row["image"]) // 9 % 4]
    write_table(root / "labels.csv", rows)
    choices = {"file_column": "image", "target": "finding", "sensitive": "age:40"}
    data = load("csv", root, 16, subject="Image", **choices)
    assert {part: len(s) for part, s in data.splits.items()} == {"train": 30, "val": 9, "test": 9}
    assert "split" not in data.notes  # one for all targets
    rows = [{k: v for k, v in row.items() if k != "split"} for row in rows]
    write_table(root / "labels.csv", rows)
    notes = load("csv", root, 16, subject="patientid", **choices).notes
    assert notes["subjects"] == "16 of the column 'patient_id' (see --subject)"
    assert notes["split"] == "by subject; another with another --target or --sensitive"


def test_windows_paths_tabs_and_a_subject_id(tmp_path):
    root = folder(tmp_path, "windows.csv", lambda n: f"scans/{'AB'[n % 2]}/img_{n:04}.jpg")
    data = load("csv", root, 16)
    assert check(data, last_number) == [*NUMBERS]
    assert data.notes["subjects"] == "25 of the column 'subject id' (see --subject)"
    other = datasets.csv.read(root, "label", "group", None, False, subject="GROUP")
    assert set(other.subjects) == {"site 1", "site 2"}


def test_an_index_column_dots_and_nan(tmp_path):
    root = folder(tmp_path, "pandas.csv", lambda n: f"img/{n}.png")
    with pytest.raises(
        InputError, match="3 of 48 rows .*line 4: label is .NaN., which is read.*--skip-bad"
    ):
        load("csv", root, 16)
    data = load("csv", root, 16, skip_bad=True)
    assert check(data, last_number) == sorted({*NUMBERS} - {3, 4, 7})
    assert data.group_names == ["0.0", "1.0"] and data.classes == ["cat", "dog"]
    assert len(data.notes["left out: label or group missing"]) == 3


def test_class_folders_with_a_table_of_groups(tmp_path):
    root = folder(tmp_path, "folders.csv", lambda n: f"{'ab'[n % 2]} class/{n:03}.jpg")
    data = load("csv", root, 16)
    assert data.classes == ["a class", "b class"] and data.group_names == ["old", "young"]
    for split in data.splits.values():
        split.groups = 1 - split.groups
    assert check(data, last_number) == [*NUMBERS]
    Image.new("RGB", (9, 9)).save(root / "b class/002.jpg")
    with pytest.raises(InputError, match="002.jpg can be a class/002.jpg or b class/002.jpg"):
        load("csv", root, 16)


def test_a_table_of_any_name_with_ids_without_endings(tmp_path):
    root = folder(tmp_path, "kaggle.csv", lambda n: f"train_images/{n:04x}f0.PNG", "train.csv")
    with pytest.raises(InputError, match="no labels.csv .it holds train.csv.*or pass your table"):
        load("csv", root, 16)
    more = {"file_column": "id_code", "target": "diagnosis", "sensitive": "skin_tone:3"}
    data = load("csv", root / "train.csv", 16, **more)
    assert data.group_names == ["skin_tone<=3", "skin_tone>3"]
    assert check(data, lambda i: int(i[:4], 16), lambda n: n % 6 > 2) == [*NUMBERS]


@pytest.mark.parametrize(
    ("written", "there", "found"),
    [
        ("a.jpg", ["a.JPG"], 0),
        ("a.jpg", ["a.png"], 0),
        ("a", ["b/c/a.tiff"], 0),
        ("images/a.jpg", ["x/images/a.jpg", "a.jpg"], 0),
        ("{root}/a.jpg", ["a.jpeg"], 0),
        ("train/1.jpg", ["val/1.jpg"], None),  # another picture
        ("a.jpg", ["a.jpg.txt", "aa.jpg"], None),
        ("10.jpg", ["0010.jpg", "1.jpg"], 0),
        ("x01.jpg", ["x1.jpg"], None),
        ("a.b.jpg", ["a.png"], None),
        ("a.b", ["a.b.png", "a.png"], 0),
    ],
)
def test_names_of_pictures(tmp_path, written, there, found):
    root = tmp_path / "set"
    for name in there:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    written = written.format(root=root.name)
    path = _tables.locate(root, [written], "table")[written]
    assert path == (root / written if found is None else root / there[found])


def test_missing_values():
    for text in ["", " ", "NaN", "nan", "NA", "n/a", "None", "NULL", "Unknown", "?", "<NA>"]:
        assert _tables.missing(text), text
    for text in ["#N/A", "NaT", "N.A.", "-", "--", ".", "unk", "UNK", "missing", "not known"]:
        assert _tables.missing(text), text
    for text in ["0", "no", "none of these", "-1", "normal", "nano", "+", "0.", "not"]:
        assert not _tables.missing(text), text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0", "0.0", True),
        ("1", "01", True),
        ("age 1, m", "Age 1.0,  M", True),
        ("b\u00f6s", "bo\u0308s", True),
        ("very bad", "very\u00a0bad", True),
        ("1", "10", False),
        ("-1", "1", False),
        ("ab", "a b", False),
        ("2019", "2019-01", False),
    ],
)
def test_what_two_texts_say(one, other, same):
    assert (_tables.meaning(one) == _tables.meaning(other)) == same


def test_a_subject_in_two_ways_of_writing_is_one(tmp_path):
    """As after a join that made numbers of one half of the table 1.0."""
    root = folder(tmp_path, "clinic.csv", lambda n: f"{n}.png")
    rows = read_table(root / "labels.csv")
    choices = {"file_column": "image", "target": "finding", "sensitive": "age:40"}
    spellings = {}
    for way in (["{}"], ["{}", "{}.0", "0{}"]):
        for n, row in enumerate(rows):
            row["patient_id"] = way[n % len(way)].format(n // 3)
        write_table(root / "labels.csv", rows)
        data = load("csv", root, 16, **choices)
        assert data.notes["subjects"] == "16 of the column 'patient_id' (see --subject)"
        spellings[len(way)] = [data[part].ids for part in data.splits]
    assert spellings[1] == spellings[3]
    for n, row in enumerate(rows):
        row["split"] = ["train", "val", "test"][n % 3]
    write_table(root / "labels.csv", rows)
    with pytest.raises(InputError, match="subject '0' is in train and in val"):
        load("csv", root, 16, **choices)


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("file Patient_ID label", "patient_id"),
        ("file lesion_id patientid", "patientid"),
        ("file lesion-id", "lesion-id"),
        ("file Case_ID case", "case_id"),
        ("file case label", None),  # or control: a label, by which nobody would be counted
        ("file identity", "identity"),
        ("file Patient-ID lesion_id", "patient-id"),
        ("lesion_id SUBJID patient_no", "subjid"),
        ("anon_patient_id study_id", "anon_patient_id"),
        ("label StudyID", "studyid"),
        ("file Patienten-Nr.", "patienten-nr."),
        ("file subject_name", "subject_name"),
        *(
            (name, name.lower())
            for name in "patient_number Pat.-Nr. patient_code patient.id".split()
        ),
        *((name, name.lower()) for name in "pat_id PID MRN subjid study_id subject_no".split()),
        ("file subjective patients study identifier number personal pidgin", None),
    ],
)
def test_columns_of_subjects(header, column):
    assert datasets.csv.subject_column(header.lower().split()) == column


def test_a_column_of_labels_or_groups_is_none_of_subjects():
    header = "file lesion patient age".split()
    assert _tables.subject_column(header, "label", "age:18,60") == "patient"
    assert _tables.subject_column(header, "Patient", "age") == "lesion"
    assert _tables.subject_column(header, "lesion", "age:40+patient:3") is None


def test_the_file_of_another_name_stands_in_for_nothing(tmp_path):
    """1.jpg is there, and 01.jpg, b.png, 7.jpg are not, whatever lies in their places."""
    for name in ("1.jpg", "b.jpg", "masks/7.png", "8.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["1.jpg", "01.jpg", "b.png", "b.jpg", "7.jpg", "08.jpg"]
    found = _tables.locate(tmp_path, names, "table", ["masks/7.png"])
    assert found.pop("08.jpg") == tmp_path / "8.jpg"  # nobody else's
    assert found == {name: tmp_path / name for name in names[:-1]}


def test_a_mask_is_not_read_as_its_lost_picture(tmp_path):
    rows = []
    for n in NUMBERS:
        Image.new("RGB", (20, 18), colour(n)).save(tmp_path / f"{n}.jpg")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (20, 18), 255).save(tmp_path / f"masks/{n}.png")
        rows.append({"file": f"{n}.jpg", "label": n % 2, "group": n // 2 % 2})
        rows[-1]["mask"] = f"masks/{n}.png"
    write_table(tmp_path / "labels.csv", rows)
    (tmp_path / "7.jpg").rename(tmp_path / "lost")
    for task in ("classify", "segment"):
        with pytest.raises(InputError, match="1 of 48 pictures are missing.*7.jpg"):
            datasets.read_table("csv", tmp_path, 16, task=task, out=tmp_path / "runs")
    (tmp_path / "lost").rename(tmp_path / "7.jpg")  # nor is a picture its own lost mask
    write_table(tmp_path / "labels.csv", [row | {"mask": row["mask"][6:]} for row in rows])
    (tmp_path / "masks/7.png").unlink()
    with pytest.raises(InputError, match="1 of 48 pictures have no mask.*7.png"):
        datasets.read_table("csv", tmp_path, 16, task="segment", out=tmp_path / "runs")


# ----- splits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_cell_has_its_share_of_every_split(seed):
    """Subjects with 1 to 4 pictures, in six cells of very different sizes."""
    rng = np.random.default_rng(seed)
    cell_of = np.repeat(range(6), [300, 150, 80, 40, 20, 10])
    subjects = np.repeat(np.arange(600), rng.integers(1, 5, 600))
    order = rng.permutation(len(subjects))
    subjects, names = subjects[order], subjects[order].astype(str)
    cells = cell_of[subjects]
    for fold in (None, 0, 3, 4):
        split = split_by_subject(names, cells, fold)
        assert split.tolist() == split_by_subject(names, cells, fold).tolist()
        for cell in range(6):
            there = {n: part for n, part, c in zip(names, split, cells) if c == cell}
            assert len(set(zip(names[cells == cell], split[cells == cell]))) == len(there)
            parts = [list(there.values()).count(part) for part in ("train", "val", "test")]
            np.testing.assert_allclose(parts, np.array([0.7, 0.1, 0.2]) * len(there), atol=2)
            assert min(parts) > 0 or len(there) == 10


def test_a_subject_of_several_cells_counts_for_the_rarest():
    """Each of 20 patients has one picture of a rare class, in which all splits have a share."""
    names = np.repeat(np.arange(200).astype(str), 5)
    cells = np.zeros(1000, int)
    cells[np.arange(20) * 50 + 3] = 1
    split = split_by_subject(names, cells, None)
    assert [(split[cells == 1] == part).sum() for part in ("train", "val", "test")] == [14, 2, 4]


def test_of_crossed_columns_the_missing_cell_is_named(tmp_path):
    root = folder(tmp_path, "clinic.csv", lambda n: f"images/{n:04}.png")
    choices = {"file_column": "image", "target": "finding", "sensitive": "age:60+sex"}
    told = r"line 18: age:60\+sex is 'N/A', which is read as missing"
    with pytest.raises(InputError, match=told):
        load("csv", root, 16, **choices)


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    """Nor where subjects have several labels, and cells are as frequent as others."""
    rng = np.random.default_rng(0)
    names = np.array([f"p{n}" for n in rng.integers(0, 40, 180)])
    cells = np.repeat(np.arange(6), 30)
    moved = rng.permutation(180)
    for fold in (None, *range(5)):
        split = split_by_subject(names, cells, fold)
        assert split[moved].tolist() == split_by_subject(names[moved], cells[moved], fold).tolist()


# ----- UTKFace: labels in file names; FairFace: two tables ----------------------------------------


def run_snippet(number, folder):
    """Run the lines that datasets/csv.py gives for the first or second of these data sets."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", datasets.csv.__doc__, re.MULTILINE)
    lines = [block for block in blocks if "csv.writer" in block][number]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(textwrap.dedent(lines), {})


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Files as UTKFace names them, and the table that the lines in datasets/csv.py make of them."""
    root, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    (root / "UTKFace").mkdir()
    for n in range(400):
        age, gender, race = 1 + n * 7 % 90, rng.integers(2), n % 5
        name = f"{age}_{gender}_{race}_20170{n:03}182736451.jpg.chip.jpg"
        if n in (10, 20):
            name = f"{age}_{gender}_20170{n:03}182736451.jpg.chip.jpg"[: -len(".jpg.chip.jpg")]
            name += ".jpg"
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "UTKFace" / name)
    run_snippet(0, root)
    return root / "UTKFace"


def test_the_table_of_utkface(faces):
    rows = read_table(faces / "labels.csv")
    assert len(rows) == 398  # two names lack the race
    for row in rows:
        age, gender, race, _ = row["file"].split("_")
        assert row["age"] == age and row["race"] == f"race {race}"
        assert row["gender"] == ["male", "female"][int(gender)]


def test_the_table_of_fairface(tmp_path):
    (tmp_path / "fairface").mkdir()
    for part, number in (("train", 40), ("val", 12)):
        lines = [f"{part}/{n}.jpg,20-29,{'MF'[n % 2]},race {n % 7},True\n" for n in range(number)]
        header = "file,age,gender,race,service_test\n"
        (tmp_path / f"fairface/fairface_label_{part}.csv").write_text(header + "".join(lines))
    run_snippet(1, tmp_path)
    rows = read_table(tmp_path / "fairface/labels.csv")
    assert len(rows) == 52 and {row["race"] for row in rows} == {f"race {n}" for n in range(7)}
    parts = [[row["file"] for row in rows if row["split"] == p] for p in ("train", "val", "test")]
    assert [len(part) for part in parts] == [36, 4, 12]
    assert parts[1] == [f"train/{n}.jpg" for n in (0, 10, 20, 30)]
    assert all(name.startswith("val/") for name in parts[2])


def test_windows_allows_the_names_of_all_figures(tmp_path, monkeypatch):
    for name in "gallery per_class training two_points sweep mean_ranks".split():
        monkeypatch.setattr(report.figures, name, lambda *_: "a caption")
    monkeypatch.setattr(report, "rank_blocks", lambda *_: ([], [], [], []))
    monkeypatch.setattr(report.results, "scene", lambda rows: "a title")
    place = "csv", "sensitive_age:30,60+sex-teacher_timm:a/b"
    names = [
        name for made in report.draw({place: {}}, tmp_path, (), None).values() for name in made
    ]
    assert len(names) > 8 and "csv-sensitive_age_30,60+sex-teacher_timm_a_b-gallery.png" in names
    assert not re.search(r'[<>:"/\\|?*]', "".join(names))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "sensitive", "groups"),
    [
        ("gender", "race", 5),
        ("race", "gender", 2),
        ("gender", "age:18,40,60", 4),
        ("race", "age:40+gender", 4),
    ],
)
def test_utkface_from_file_names_to_report(faces, tmp_path, target, sensitive, groups):
    """Plain and distilled students, --smoke, and report.py with its figures."""
    flags = ["--dataset", "csv", "--data-dir", faces, "--target", target, "--sensitive", sensitive]
    flags += "--device cpu --image-size 16 --teacher convnet4 --student convnet2".split()
    short = ["--epochs", "2", "--teacher-epochs", "2"]
    for more in (["--smoke"], short, [*short, "--alpha", "0"]):
        done = run_script("ckd", *flags, *more, cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr, done.stderr
    for path in tmp_path.rglob("result.json"):
        assert len(json.loads(path.read_text())["group_names"]) == groups
    command = [sys.executable, Path(datasets.__file__).parent.parent / "report.py"]
    done = subprocess.run([*command, "--data-dir", faces], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    made = {path.suffix for path in (tmp_path / "runs/report").iterdir()}
    assert made >= {".md", ".png"}
