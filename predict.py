"""What a saved student says about new pictures, or files of it for other programs.

    python predict.py STUDENT picture.jpg folder/         classes, probabilities
    python predict.py STUDENT folder/ --csv answers.csv   the same as a table
    python predict.py STUDENT folder/ --labels labels.csv how good, how fair
    python predict.py STUDENT --export                    for other programs
    python predict.py STUDENT folder/ --masks DIR         of --task segment

STUDENT is a student.pt, or the folder of a finished run, runs/<data
set>/<method>/<name>. Pictures are cut to a square and scaled as in training.
The student is not told to which group a person belongs. Each picture has two
answers: the class with the largest output, and, corrected, the class that would
be most likely if all were equally frequent (see metrics.py).

A table of labels has the columns by which the student was trained on own
pictures or, where they lack, file, label, group; and, if there, subject,
patient_id or the like. Without PICTURES all its files are read. A picture that
cannot be read is named and left out. With --labels metrics.py reads what --csv
writes, to compare two models. --export writes a folder export-RULE with
student.pt2 (torch.export), student.onnx and a model card, card.md and
card.json: use, numbers by group, limits, data, licence.

A student of --task segment says which pixels are inside, as NAME-mask.png (0
and 255, as large as the picture), and draws its outline into NAME-outline.png,
the centre square, which is all it sees. So the mask is 0 also outside of this
square. With --labels, whose table then has a column mask, masks are compared as
in the test of its training: scaled to as few pixels.
"""

import argparse
import collections
import contextlib
import csv
import importlib
import io
import json
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import metrics
from data import InputError, end_with_reader, files_of, name_codes, put_back, restore, save
from datasets import WHITE, decode, decode_mask, upright_size
from datasets._show import outlined
from datasets._tables import (
    attribute,
    columns_of,
    forms,
    locate,
    meaning,
    missing,
    pictures_below,
    read_rows,
    refuse_repeated,
    require,
    subject_column,
    written,
)
from networks import as_saved, first_line
from predictions import in_order, refuse_alike

METHODS = {path.stem: path for path in Path(__file__).resolve().parent.glob("methods/*.py")}
RULES = ("last", "best_overall", "best_worst_group")
KEYS = "method settings classes outputs group_names mean std states network size class_shares "
KEYS += "preprocessing licence notes test trained_on"


class Student(nn.Module):
    """The network with its normalisation: pictures (B, 3, H, W) uint8 to logits (B, C), or, of
    masks, (B, 2, H, W)."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pictures):
        ## Pictures from 0 to 1 are the usual mistake. Those are no uint8, and both exported files
        ## refuse another type than that of the example with which they were written.
        ## Always float32, and not by Network.forward: torch.export cannot write down its autocast.
        feats = self.network.features((pictures.float() - self.mean) / self.std)  # (B, D)
        return self.network.head(feats)


def load_student(path, rule="last", module=None):
    """The student in a file or a run's folder, as its epoch by `rule` left it; and what else is
    in its file."""
    file = Path(path) / "student.pt" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        like = next((f", such as {p.parent}" for p in Path(path).rglob("student.pt")), "")
        raise InputError(f"{file} does not exist: name it or the folder of a finished run{like}")
    advice = "pass the student.pt of a finished run, or its folder"
    try:
        saved = restore(file)
    except InputError:  # which would advise to delete it
        raise InputError(f"{file} is damaged, no student, or holds code: {advice}") from None
    complete = isinstance(saved, dict) and saved.keys() >= {*KEYS.split()}
    if not complete or saved["method"] not in METHODS or rule not in saved["states"]:
        raise InputError(
            f"{file} is no student that this version reads (it is another file, such as a "
            f"teacher's, or an older version wrote it): {advice}"
        )
    if ".py:" in saved["network"] and not module:
        raise InputError(
            f"the network of {file} is the code {saved['network']}, which is run only if you name "
            "it: --student-module FILE.py:FUNCTION"
        )
    if module:
        ## Another code of the same shapes would give other answers, and nothing would show it.
        same = module.rpartition(":")[2] == saved["network"].rpartition(":")[2]
        sums = files_of(module).get("files")
        if not same or sums and not {*sums} <= {*saved["settings"].get("files", sums)}:
            edited = " (its text, or that of a file which it imports, is another one)" * same
            raise InputError(
                f"{module} is not what {file} was trained with, {saved['network']} as it was "
                f"then{edited}: pass that"
            )
    sys.path.insert(0, str(METHODS[saved["method"]].parent))
    script = importlib.import_module(saved["method"])
    args = as_saved(saved["settings"], saved["states"][rule])
    network = script.Network(args, module or saved["network"], len(saved["outputs"]), load=False)
    try:
        put_back(network, saved["states"][rule], file)
    except InputError as error:  # which would advise to delete it
        reason = str(error).partition(": another version")[0]
        raise InputError(
            f"{reason}: it was trained with {saved['network']}, which has changed or is not what "
            f"{module or 'this version'} makes"
        ) from None
    return Student(network, saved["mean"], saved["std"]).eval(), saved


def pictures_in(path):
    """The picture at `path`, or all in the folder `path`: links followed, hidden ones left out."""
    Image.init()  # fills Image.EXTENSION with all endings that Pillow knows
    read = [ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN]  # not .pdf
    inside = sorted(path / name for name in pictures_below(path, tuple(read)))
    if path.is_dir() and not inside:
        raise InputError(f"{path} holds no picture")
    for file in inside or [path]:
        shown = os.fsencode(file).decode(errors="replace")
        if shown != str(file):
            raise InputError(f"{shown}: this name is not UTF-8: rename it")
    return inside or [path]


def ends_of(path):
    """All ends of a picture's path, the longest first, as 1.png of new/1.png; then, if it is a
    link, those of what it points to."""
    ways = dict.fromkeys((Path(os.path.abspath(path)).parts, Path(path).resolve().parts))
    return ["/".join(steps[k:]) for steps in ways for k in range(1, len(steps))]


def columns_for(table, header, trained):
    """{file, label, group, subject: its column}: those of the student's training, of which
    `trained` has the settings, or, where one is not there, file, label, group.

    The label is None where there is no such column: it is the folder of the picture.
    """
    used = {"file": "file_column", "label": "target", "group": "sensitive"}
    for name, setting in used.items():
        own = trained.get(setting) or name
        used[name] = own if {*columns_of(own)} <= {*header} or name not in header else name
    used["file"] = used["file"].lower()
    used["subject"] = subject_column(header, used["label"], used["group"])
    if trained.get("subject") and written(trained["subject"], header) in header:
        used["subject"] = written(trained["subject"], header)
    words = {k: f"{k} is the column {v}" for k, v in used.items() if v}
    if trained.get("target") == "none":
        used["label"], words["label"] = "none", "label is none"
    elif used["label"] == "label" and "label" not in header:
        used["label"], words["label"] = None, "label is the folder"
    print(f"{table}:", ", ".join(words.values()))
    return used


def label_rows(table, files, saved):
    """{picture: its row in the table of labels, or None}; without files, all of the table. And the
    names of groups, in order."""
    rows = [*read_rows(table, [], unique=False).values()]
    trained = saved["settings"] if saved["settings"]["dataset"] == "csv" else {}
    used = columns_for(table, [*rows[0]], trained)
    masks = ["mask"] if saved["settings"].get("task") == "segment" else []
    require(table, [*rows[0]], [used["file"], *masks])
    names, places = [row[used["file"]] for row in rows], {}
    refuse_repeated(table, names)
    if not used["label"] or not files:
        places = locate(table.parent, names, table)
    groups, order = attribute(table, rows, used["group"])
    for row, name in zip(rows, names):
        if trained.get("target") == "none":
            row["none"] = "all"  # as in datasets/csv.py
        if not used["label"]:  # also as there: of a picture beside the table it is missing
            there = os.path.relpath(places[name], table.parent)
            there = there if places[name].is_file() else name.replace("\\", "/")
            row["label"] = Path(there).parent.name
    labels, _ = attribute(table, rows, used["label"] or "label")
    meant = {meaning(name): name for name in saved["classes"]}  # where capitals do not count
    for row, name, label, group in zip(rows, names, labels, groups):
        row |= {"file": name, "subject": row.get(used["subject"], "")}
        row |= {"label": meant.get(meaning(label), label), "group": group}
    if masks:
        named = [row["mask"] for row in rows if not missing(row["mask"])]
        there = locate(table.parent, named, table, names)
        for row in rows:
            row["mask"] = there.get(row["mask"])
    needed = ["label", "group", *masks]
    known = {row["file"]: row for row in rows if all(row[k] for k in needed)}
    if not known:
        raise InputError(f"{table}: no row has a {' and a '.join(needed)}: fill them in")
    refuse_alike(table, dict.fromkeys(row["group"] for row in known.values()))
    if new := [name for name in order if name not in saved["group_names"]]:
        print(f"groups that its training did not have: {', '.join(new)}")
    if used["subject"] is None and trained.get("subject"):
        print(
            f"beware: no column {trained['subject']}, the training's subject: each picture is one"
        )
    uses = collections.Counter(row["mask"] for row in known.values()) if masks else {}
    if shared := [mask for mask, n in uses.items() if n > 1]:
        print(f"beware: masks that are of several pictures: {len(shared)}, such as {shared[0]}")
    for name, row in known.items():
        if row["label"] not in saved["classes"]:
            classes = ", ".join(saved["classes"])
            raise InputError(f"{table}: {name} is {row['label']!r}, no class of it: {classes}")
    if not files:
        refuse_repeated(table, [os.path.normpath(path) for path in places.values()])
        return {path: known.get(name) for name, path in places.items()}, order
    row_of = names_of(files, names, table)
    taken = {file: name for file, name in row_of.items() if name in known}
    beside = {file: table.parent / name for file, name in taken.items() if file.exists()}
    others = [f for f, there in beside.items() if there.is_file() and not there.samefile(f)]
    if others:
        print(
            f"beware: {len(others)} pictures, such as {others[0]}, have a row by their names, but "
            "are not the files that lie beside the table under these names"
        )
    if not taken or len({*taken.values()}) < len(taken):
        what = "two pictures are the same row" if taken else "it says nothing about these pictures"
        advice = f"write more of their folders into its column {used['file']}"
        raise InputError(f"{table}: {what}: {advice}")
    return {file: known.get(name) for file, name in row_of.items()}, order


def names_of(files, names, table):
    """{picture: how the table calls it, or None}: by its path as given, else by the longest end of
    it that is a name there, if need be in a laxer form, see `forms`."""
    found, index, there = {}, {}, {*names}  # index: {(how lax, form): names}
    for name in names:
        for key in enumerate(forms(name)):
            index.setdefault(key, []).append(name)
    for file in files:
        ends = [str(file), *ends_of(file)]
        exact = [end for end in ends if end in there]
        laxer = ((how, form) for how, each in enumerate(zip(*map(forms, ends))) for form in each)
        these = exact[:1] or next((index[key] for key in laxer if key in index), [None])
        if len(these) > 1:
            raise InputError(f"{table}: {file} can be {these[0]} or {these[1]}: write its ending")
        found[file] = these[0]
    return found


def export(student, saved, rule, folder):
    """Write the student as files that need none of this code and take any number of pictures.

    Raises InputError, after the cards are there, if its network cannot be written so.
    """
    size, classes = saved["size"], saved["classes"]
    answer = {
        "logits": "(B, C), whose softmax is the probabilities of the classes",
        "decisions": "the class of the largest logit; corrected, of the largest logit - log(share)",
        "classes": classes,
        "shares of the classes in training": saved["class_shares"],
    }
    if student.network.segment:
        answer = {
            "logits": f"(B, 2, {size}, {size}), whose softmax is the probabilities of a pixel",
            "decisions": "a pixel is inside where the second logit is the larger one",
            "classes": saved["outputs"],
        }
    white = saved["notes"].get(WHITE)
    deep = f"; of grey of more than 8 bits level {white:g} is 255" if white else ""
    card = {
        "network": f"{saved['network']}, trained by {saved['method']}.py, {rule} epoch",
        "use": 'logits = torch.export.load("student.pt2").module()(pictures)',
        "pictures": f"uint8 (B, 3, {size}, {size}), from 0 to 255, for any B",
        "preprocessing": f"{saved['preprocessing']}{deep}; the program itself does this last step",
        **{name: saved[name].flatten().tolist() for name in ("mean", "std")},
        **answer,
        "groups that were compared": saved["group_names"],
        "metrics on test pictures of the data set": saved["test"][rule],
        "licence of the data": saved["licence"],
        "settings": saved["settings"],
    }
    for name in ("student.pt2", "student.onnx"):  # of an earlier export: perhaps of another run
        (folder / name).unlink(missing_ok=True)
    save(folder / "card.json", json.dumps(card, indent=1))
    save(folder / "card.md", card_of(saved, rule, folder.parent / "result.json", card))
    pictures = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    student.to(memory_format=torch.contiguous_format)  # the order in which it can be written
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it would print what it has so far
            program = torch.export.export(student, (pictures,), dynamic_shapes=(batch,))
    except Exception as error:  # it raises all kinds of errors, some with pages of advice
        raise InputError(
            f"{folder} has cards but no student.pt2, because torch.export cannot write down this "
            f"network ({first_line(error)}): write its forward without len(x) and `if` on values"
        ) from None
    torch.export.save(program, content := io.BytesIO())
    save(folder / "student.pt2", content.getvalue())
    if find_spec("onnx") and find_spec("onnxscript"):
        try:
            ## One file: weights in a second one are lost when only the first is copied.
            how = {"dynamo": True, "external_data": False}
            torch.onnx.export(program, (), folder / "student.onnx", **how)
        except torch.onnx.OnnxExporterError:  # seen with PyTorch 2.6 and an onnxscript of 2026
            print("no ONNX file: install an onnxscript that is as old as this PyTorch")
    else:
        print("no ONNX file: it needs the packages onnx and onnxscript")
    print(f"wrote {', '.join(sorted(path.name for path in folder.iterdir()))} into {folder}")


def card_of(saved, rule, path, card):
    """The model card, Markdown: use, limits, numbers by group, data, training.

    path    of the run's result, which has the groups' numbers and intervals; a student has neither
    """
    settings, classes, groups = saved["settings"], saved["classes"], saved["group_names"]
    numbers = "\n".join(f"{k} {v}" for k, v in saved["test"][rule].items())
    note = f"Groups: {', '.join(groups)}. Their numbers, and intervals, are in the run's "
    note += "result.json, which was not beside the student."
    result = restore(path, keys=(rule, "settings")) if path.is_file() else {}
    if result.get("settings") == settings:
        test = result[rule]["test"]
        numbers = metrics.show({"student": test}, classes, groups)
        sizes = [f"{name} ({part['n']})" for name, part in zip(groups, test["groups"])]
        note = f"On {test['n']} test pictures of groups {', '.join(sizes)}; 95 % intervals over "
        note += "their subjects."
    changed = ", ".join(f"{k} {settings[k]}" for k in saved.get("changed", ())) or "none"
    about = f"{settings['dataset']}, target {settings['target']}, groups by {settings['sensitive']}"
    does = f"tells {' from '.join(classes)}"
    if settings.get("task") == "segment":
        does = f"says which pixels are {saved['outputs'][1]}"
    given = "\n".join(f"- {k}: {v}" for k, v in card.items() if isinstance(v, str))
    return f"""# {saved["network"]}, a student of {saved["method"]}.py

It {does}, in pictures like those of its data set.
It is no medical device, and nobody has examined it for use.

## How good and how fair it is

{note}

```
{numbers}
```

## Limits

- The numbers hold for pictures that are made and chosen like those. On others, of another clinic,
  camera or population, it may be worse, and differently so for each group: measure it there, by
  `python predict.py STUDENT --labels TABLE`.
- Groups that are not named above were not compared, nor smaller groups inside of these.
- It is never told to which group a person belongs.

## Data

{about}. Licence: {saved["licence"]}

## Training

By methods/{saved["method"]}.py. Settings that were changed: {changed}. All are in card.json.

## How to call it

{given}
"""


def refuse_replacing(flag, target, read):
    """Raise InputError if what is to be written is one of the files or folders that are read."""
    for path in read:
        if target.exists() and path.exists() and target.samefile(path):
            raise InputError(f"{flag} {target} would replace what is read: choose another name")


def finish(files, bad, ranges, saved, rule, failed):
    """Print that the student has collapsed, or that grey pictures had no common white or a darker
    one than in training; InputError if something was left out, or for what else has `failed`."""
    if saved["test"][rule].get("collapsed"):
        print("beware: on the test pictures of its data set this student has collapsed")
    white = saved["notes"].get(WHITE, 0)  # 0: no picture in training was like these
    if ranges and not white:
        print(
            f"{len(ranges)} pictures are grey of more than 8 bits, as none was in training: white "
            "is the end of each one's own range, so that they may differ in brightness"
        )
    if darker := [file for file, (own, _) in ranges.items() if own < white]:
        print(
            f"beware: {len(darker)} pictures, such as {darker[0]}, are grey of a smaller range "
            f"than those of the training, where {white:g} is white: they are read as dark ones"
        )
    if bad:
        what = f"of {len(files)} pictures {len(bad)} could not be read, or their masks"
        failed.append(f"{what}; the first: {bad[0]}")
    if failed:
        raise InputError("; ".join(failed))


def pixels_of(files, saved, bad, ranges):
    """Each picture that can be read, and its pixels as in training, (3, H, W) uint8.

    bad       list of what is wrong with the others, a sentence each; is filled
    ranges    {picture: (the end of its own range of greys, ...)}, see `decode`; is filled
    """
    for file in files:
        try:
            pixels = decode(file, saved["size"], white=saved["notes"].get(WHITE), ranges=ranges)
        except Exception as why:  # decoders raise all kinds of errors
            gone = isinstance(why, FileNotFoundError)
            bad.append(
                f"{file} {'does not exist' if gone else f'cannot be read as a picture ({why})'}"
            )
            print(bad[-1], file=sys.stderr)
        else:
            yield file, torch.tensor(pixels).permute(2, 0, 1)


def answer_by_masks(student, saved, files, args):
    """Write what is inside of the pictures, as masks and as outlines, into args.masks.

    files    {picture: its row in the table of labels, or None}
    Returns answers {picture: pixels inside as said, in truth, and both (3,)} of those with a row;
    `bad` and `ranges` as of `pixels_of`.
    """
    folder, own = args.masks or Path("masks"), {row["mask"].parent for row in files.values() if row}
    refuse_replacing("--masks", folder, {file.parent for file in files} | own)
    taken, answers, bad, ranges = {}, {}, [], {}
    for file in files:  # before the first is written
        if taken.setdefault(file.stem, file) != file:
            both = f"{file} and {taken[file.stem]}"
            raise InputError(f"{both} have one name: write them into two folders")
    for file, pixels in pixels_of(files, saved, bad, ranges):
        width, height = upright_size(file)
        side = min(width, height)
        square = Image.fromarray(decode(file, side, white=saved["notes"].get(WHITE)))
        left, top = (width - side) // 2, (height - side) // 2
        logits = student(pixels[None])  # (1, 2, H, W)
        if row := files[file]:
            try:
                true = decode_mask(row["mask"], saved["size"], file) > 0  # (H, W)
            except Exception as why:  # decoders raise all kinds of errors
                gone = isinstance(why, FileNotFoundError)
                fault = "does not exist" if gone else f"cannot be read as a mask ({why})"
                bad.append(f"{row['mask']} {fault}")
                print(bad[-1], file=sys.stderr)
            else:
                said = (logits[0, 1] > logits[0, 0]).numpy()
                answers[file] = np.array([said.sum(), true.sum(), (said & true).sum()])
        ## The logits are enlarged, not the answers: an outline of large squares would come of that.
        logits = nn.functional.interpolate(logits, side, mode="bilinear")[0]
        inside = 255 * (logits[1] > logits[0]).byte().numpy()  # (side, side)
        mask = Image.new("L", (width, height))
        mask.paste(Image.fromarray(inside), (left, top))
        for name, drawn in (("mask", mask), ("outline", outlined(square, inside))):
            drawn.save(buffer := io.BytesIO(), "PNG")
            save(folder / f"{file.stem}-{name}.png", buffer.getvalue())
        share = f"{(inside > 0).mean():.1%} of the centre square is {saved['outputs'][1]}"
        print(f"{file}: {share}, see {folder / file.stem}-outline.png")
    return answers, bad, ranges


def answer_by_classes(student, saved, files, args):
    """Print the classes of the pictures, and write them into the table args.csv, if there is one.

    files    {picture: its row in the table of labels, or None}
    Returns answers {picture: logits (C,)} of those with a row; `bad` and `ranges` as of
    `pixels_of`.
    """
    if args.csv:
        read = [args.student, args.student / "student.pt", args.labels, *files]
        refuse_replacing("--csv", args.csv, filter(None, read))
        if args.csv.is_file():
            with open(args.csv, "rb") as file:
                first = file.readline(100_000)
            if first and b"class,class_corrected,score_" not in first:
                raise InputError(f"--csv {args.csv} is no table of predict.py: choose another name")
    classes, taught = saved["classes"], saved["class_shares"]  # (C,) each
    truth = ["label", "group", "subject"] if args.labels else []
    header = ["file", *truth, "class", "class_corrected", *[f"score_{name}" for name in classes]]
    csv.writer(table := io.StringIO()).writerow(header)
    answers, bad, ranges = {}, [], {}
    for file, pixels in pixels_of(files, saved, bad, ranges):
        row = files[file]
        z = student(pixels[None])[0]  # (C,)
        (other,) = metrics.corrected(logits=z[None].numpy(), class_shares=taught)
        likely, corrected = classes[z.argmax()], classes[other]
        shares = z.double().softmax(0).tolist()  # in which outputs stay apart
        told = [(row or {}).get(name, "") for name in truth]
        name = row["file"] if row else file  # as the table of labels calls it
        csv.writer(table).writerow([name, *told, likely, corrected, *shares])
        each = ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, shares))
        print(f"{file}: {likely}, corrected {corrected} ({each})")
        if row:
            answers[file] = z.numpy()
    if args.csv:
        save(args.csv, table.getvalue())
        if args.labels:
            told = " ".join(f"{taught[c]:.4g}" for c in in_order(classes))
            file = shlex.quote(str(args.csv))
            told += " --skip-bad" * (len(answers) < len(files))
            print(f"\nto compare it with others: python metrics.py {file} --shares {told}")
    return answers, bad, ranges


def print_scores(answers, rows, group_names, saved):
    """Print how good and how fair the answers are.

    answers        {picture: logits (C,), or of masks its areas (3,)}
    rows           {picture: its row in the table of labels}
    group_names    of all rows, in order
    """
    known = [rows[file] for file in answers]
    names = [[row["file"], *ends_of(file)] for row, file in zip(known, answers)]
    again = sum(torch.isin(name_codes(each), saved["trained_on"]).any() for each in names)
    if again:
        print(
            f"{again} of them have names of pictures that this student was trained on: if they "
            "are the same, it knows them, and it will be worse on others"
        )
    classes, there = saved["classes"], {row["group"] for row in known}
    groups = [name for name in group_names if name in there]
    subjects = [  # 1.0 is 1, and p1 is P1, as in training
        row["file"] if missing(row["subject"]) else meaning(row["subject"]) for row in known
    ]
    about = {
        "labels": np.array([classes.index(row["label"]) for row in known]),
        "groups": np.array([groups.index(row["group"]) for row in known]),
        "num_classes": len(classes),
        "num_groups": len(groups),
        "clusters": subjects,
    }
    values = np.stack([*answers.values()])  # (N, C), or (N, 3)
    if saved["settings"].get("task") == "segment":
        inside, full = values[:, 1], saved["size"] ** 2
        flat = f"{(inside == 0).sum()} masks are empty, {(inside == full).sum()} full"
        print(f"inside of masks: {inside.mean() / full:.1%} of pixels; {flat}")
        result = metrics.evaluate_masks(**about, areas=values)
    else:
        result = metrics.evaluate(**about, logits=values, class_shares=saved["class_shares"])
    print(metrics.show({"student": result}, classes, groups))


@torch.no_grad()
def main():
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("student", type=Path, help="a student.pt, or the folder of a finished run")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures, or folders of pictures")
    parser.add_argument("--rule", default="last", choices=RULES, help="epoch of the student [last]")
    parser.add_argument("--labels", type=Path, help="table of the true label and the group")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--masks", type=Path, help="where to write NAME-mask.png (default: masks)")
    parser.add_argument("--export", action="store_true", help="write it for other programs")
    parser.add_argument("--student-module", metavar="FILE.py:FUNCTION", help="a network of yours")
    args = parser.parse_intermixed_args()  # flags may stand anywhere
    if not args.pictures and not args.labels and (args.csv or args.masks or not args.export):
        parser.error("name pictures, or folders of pictures, or --labels, or --export alone")
    student, saved = load_student(args.student, args.rule, args.student_module)
    if args.masks and not student.network.segment:
        raise InputError(f"{args.student} answers with classes: leave out --masks")
    if args.csv and student.network.segment:
        raise InputError(f"{args.student} answers with masks: leave out --csv")
    failed = []
    if args.export:
        folder = args.student if args.student.is_dir() else args.student.parent
        try:
            export(student, saved, args.rule, folder / f"export-{args.rule}")
        except InputError as error:  # said last: pictures are answered all the same
            failed.append(str(error))
    files = dict.fromkeys(file for path in args.pictures for file in pictures_in(path))
    group_names = []
    if args.labels:
        files, group_names = label_rows(args.labels, files, saved)
    answer = answer_by_masks if student.network.segment else answer_by_classes
    answers, bad, ranges = answer(student, saved, files, args)
    mask = " and a mask" * student.network.segment
    if answers:
        print(f"\n{len(answers)} of {len(files)} pictures have a label and a group" + mask)
        print_scores(answers, files, group_names, saved)
    finish(files, bad, ranges, saved, args.rule, failed)


if __name__ == "__main__":
    end_with_reader()
    try:
        main()
    except (InputError, KeyboardInterrupt) as error:
        sys.exit(f"predict.py: {str(error) or 'stopped'}")
