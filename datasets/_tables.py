"""How readers of this folder understand tables that people and programs have written.

Where a cell, a column or the name of a picture can be meant in one way only it is read, else it is
refused by a sentence that says where it stands.
"""

import glob
import itertools
import os
import posixpath
import re
import unicodedata
from collections import Counter
from csv import Error, reader  # not "import csv": datasets.csv is a module of this folder
from pathlib import Path

import numpy as np

from data import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")

# ===== ROWS AND THEIR VALUES ======================================================================


def missing(text):
    """Does a cell of a table say that its value is not known? #N/A, N.A., <NA>, ? and - do, too."""
    word = re.sub(r"[ .?/#<>_-]", "", text.casefold())
    return word in ("", *"na nan nat none null unk unknown missing notknown".split())


def letters(name):
    """The name of a column without capitals, spaces and signs: Patient-ID is patientid."""
    return re.sub(r"[\W_]", "", name.lower())


SUBJECTS = "subject subj patient patienten pat participant person individual identity pid mrn"
SUBJECTS = [*SUBJECTS.split(), "caseid", "studyid", "lesion"]


def columns_of(choice):
    """The columns that --target or --sensitive names: sex and age of sex+age:18,60."""
    return [part.partition(":")[0] for part in choice.lower().split("+")]


def subject_column(header, *used):
    """The first column called like one of SUBJECTS, as patient_id, Pat.-Nr. or anon_patient_id are,
    or None. Those `used` for labels or groups (lesion+sex, age:18,60) say something else."""
    taken = {column for choice in used for column in columns_of(choice)}
    names = {letters(name): name for name in reversed(header) if name not in taken}
    stems = {re.sub("^anon|(id|number|no|nr|code|name)$", "", name): c for name, c in names.items()}
    return next((c for s in SUBJECTS for c in (names.get(s), stems.get(s)) if c), None)


def written(name, header):
    """The column of a header that `name` means: as it is written or, else, but for signs."""
    alike = [column for column in header if letters(column) == letters(name)]
    return name.lower() if name.lower() in header else next(iter(alike), name)


def require(path, header, columns, flag=""):
    """Raise InputError unless all `columns` are in the header of the table `path`.

    flag: the setting by which another column can be named.
    """
    for column in [column for column in columns if column not in header]:
        known = ", ".join(filter(None, header))
        advice = f"choose one with {flag} or write it" if flag else "rename or write one"
        raise InputError(f"{path} has no column {column!r}: {advice}, it has {known}")


def refuse_repeated(path, names):
    """Raise InputError unless all names of pictures in the table `path` differ."""
    ((name, n),) = Counter(names).most_common(1)
    if n > 1:
        raise InputError(f"{path} names '{name}' {n} times: keep one row for each picture")


COMMA = re.compile(r"^(-?\d*),(\d+([eE][-+]?\d+)?)$", re.ASCII)  # a number as in 0,5


def read_rows(path, columns, renamed=None, unique=True, flag=""):
    """{line: row} of a table with a header; rows are dicts of texts without spaces around them.

    Commas, semicolons, tabs or |, with or without a BOM, "sep=;" and empty rows. Where cells end in
    semicolons, numbers have a comma, 0,5, which becomes a point. Names of columns are made lower
    case, and those in `renamed` {theirs: ours} replaced. Raises InputError unless all `columns` are
    there and, if `unique`, the first of them names each row once.
    """
    rows, before = {}, 0
    if Path(path).suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise InputError(f"{path} is a spreadsheet: save it as CSV (UTF-8), and pass that")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            start, first = file.tell(), file.readline()
            while first and not first.strip():
                start, first, before = file.tell(), file.readline(), before + 1
            delimiter = max("\t;,|", key=first.count)
            if told := re.match('"?sep=(.)', first, re.I):  # a line that Excel writes and reads
                delimiter, before = told[1], before + 1
            else:
                file.seek(start)
            lines = reader(file, delimiter=delimiter)
            header = [name.strip().lower() for name in next(lines, ())]
            if not header:
                raise InputError(f"{path} is empty: it needs names of columns, then rows")
            header = [(renamed or {}).get(name, name) for name in header]
            twice = {name for name in header if name and header.count(name) > 1}
            if twice:
                raise InputError(f"{path} has two columns {min(twice)!r}: rename or remove one")
            require(path, header, columns, flag)
            last = lines.line_num
            for cells in lines:  # they can have several lines; the first names them
                line, last = before + last + 1, lines.line_num
                if not any(cell.strip() for cell in cells):
                    continue  # an empty row, as at the end of many exports
                more, lacking = cells[len(header) :], header[len(cells) :]
                if any(more) or any(lacking):
                    few = "more" if any(more) else "fewer"
                    raise InputError(f"{path}, line {line}: {few} fields than the header has names")
                row = {name: cell.strip() for name, cell in zip(header, cells)}
                if delimiter == ";":
                    row = {name: COMMA.sub(r"\1.\2", text) for name, text in row.items()}
                rows[line] = row
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: look at the table's name and folder") from None
    except OSError as error:
        advice = "name a table that you may read"
        raise InputError(f"{path} cannot be read ({error.strerror}): {advice}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the table as CSV (UTF-8)") from None
    except Error as error:
        raise InputError(f"{path} is no table ({error}): look for a quote without an end") from None
    if not rows:
        raise InputError(f"{path} has a header but no rows: fill it in")
    if unique:
        refuse_repeated(path, [row[columns[0]] for row in rows.values()])
    return rows


def codes(values, names):
    """Texts as codes into `names`, (N,) int64."""
    place = {name: k for k, name in enumerate(names)}
    return np.array([place[value] for value in values], dtype=np.int64)


def is_number(text):
    """Is a text a number as people write it, with a point?"""
    return re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", text, re.ASCII) is not None


def is_date(text):
    """Does a text begin with a date as in 2021-06-30, or is it the beginning of one?"""
    return re.match(r"\d{4}(-\d\d|$)", text, re.ASCII) is not None


def meaning(text):
    """What a text says, however it is written: 1.0 is 1; capitals, spaces and forms of accents do
    not count."""
    words = re.split(r"[\s,]+", unicodedata.normalize("NFKC", text).casefold().strip())
    return " ".join(str(float(word)) if is_number(word) else word for word in words)


def alike(names):
    """The first two of the names that say the same, as m and M do; None if there are none."""
    pairs = itertools.pairwise(sorted(names, key=meaning))
    return next((pair for pair in pairs if meaning(pair[0]) == meaning(pair[1])), None)


def place(value):
    """What texts are sorted by: numbers in their own order, others after them in the alphabet's."""
    return float(value) if is_number(value) else float("inf"), value


def bins(where, column, values, cuts):
    """Numbers or dates (2021-06-30) as texts that name their bins; and the names of all bins.

    A cut belongs to the bin below it: the cuts 18,60 make age<=18, 18<age<=60 and age>60.
    """
    for cut in cuts:
        if not is_number(cut) and not is_date(cut):
            raise InputError(
                f"{column}:{','.join(cuts)}: the cut {cut!r} is no number and no date: write it as "
                "in age:18,40 or exam:2021-06-30"
            )
    known = [*filter(None, values), *cuts]
    not_dates, strange = ([t for t in known if not fits(t)] for fits in (is_date, is_number))
    numbers = len(strange) <= len(not_dates)
    for text in strange if numbers else not_dates:
        raise InputError(
            f"{where}: {text!r} of {column} is no {'number' if numbers else 'date'} as others: "
            "write numbers as 0.5 and dates as 2021-06-30"
        )

    def above(value, cut):  # of dates, 2021-06-30 is not above 2021
        return float(value) > float(cut) if numbers else value[: len(cut)] > cut

    pairs = list(itertools.pairwise(cuts))
    if any(not above(b, a) for a, b in pairs):
        raise InputError(f"{column}:{','.join(cuts)}: write the cuts in rising order")
    names = [f"{a}<{column}<={b}" for a, b in pairs]
    names = [f"{column}<={cuts[0]}", *names, f"{column}>{cuts[-1]}"]
    return [names[sum(above(v, cut) for cut in cuts)] if v else "" for v in values], names


def attribute(where, rows, choice, flag=""):
    """What --target or --sensitive `choice` says of rows: a text each, "" where it is missing, and
    the names that occur, in order.

    choice: a column, column:18,40,60 (bins of its numbers or dates), or such crossed with +; it is
    what the setting `flag` says.
    """
    choice, answers = choice.lower(), []
    parts = [choice] if choice in rows[0] else choice.split("+")
    for part in parts:
        column, binned, cuts = (part, "", "") if part in rows[0] else part.partition(":")
        require(where, rows[0], [column], flag)
        values = ["" if missing(row[column]) else row[column] for row in rows]
        names = sorted({*values} - {""}, key=place)
        if binned:
            values, names = bins(where, column, values, [cut.strip() for cut in cuts.split(",")])
        elif len(parts) > 1 and all(map(is_number, names)):  # "gender 1, race 0" says more
            values = [v and f"{column} {v}" for v in values]
            names = [f"{column} {name}" for name in names]
        answers.append((values, names))
    several, orders = zip(*answers)
    values = [", ".join(texts) if all(texts) else "" for texts in zip(*several)]
    there = set(values)
    return values, [n for n in map(", ".join, itertools.product(*orders)) if n in there]


# ===== PICTURES BY THEIR NAMES ====================================================================


def pictures_below(root, endings=ENDINGS):
    """The names of all picture files below a folder: links followed, hidden ones left out."""
    names = glob.iglob("**", root_dir=root, recursive=True)
    return sorted(name for name in names if name.lower().endswith(endings))


def forms(name):
    """Ever laxer forms of a file's name: in any case, without its ending, and without leading zeros
    of a number; accents and slashes of every system."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    name = posixpath.normpath(name)
    bare = name[: name.rfind(".")] if name.endswith(ENDINGS) else name
    folder, slash, stem = bare.rpartition("/")
    return name, bare, folder + slash + (stem.lstrip("0") if stem.isdecimal() else stem)


def locate(root, names, where, others=()):
    """{name: path} of pictures, also where the name in the table is not quite that of the file.

    The folder is searched only for names that are no file. A file that lies deeper than the name
    says is found; one in another folder than the name says is not, it may be another picture. Nor
    is one that another name, or one of `others` (masks), says exactly.
    """
    found = {name: root / name for name in names}
    lost = [name for name in names if not os.path.isfile(root / name)]
    exact = {*map(os.path.normpath, [*others, *names])}
    index = {}  # {(how lax, form): files}
    for file in pictures_below(root) if lost else ():
        if os.path.normpath(file) in exact:
            continue
        for how, form in enumerate(forms(file)):
            steps = form.split("/")
            for k in range(len(steps)):
                index.setdefault((how, "/".join(steps[k:])), []).append(file)
    for name in lost:
        kinds = [
            key for key in enumerate(forms(name.removeprefix(f"{root.name}/"))) if key in index
        ]
        files = index[kinds[0]] if kinds else [name]
        if len(files) > 1:
            raise InputError(
                f"{where}: {name} can be {files[0]} or {files[1]}: write its folder and ending"
            )
        found[name] = root / files[0]
    return found
