"""wider: 13,789 images of 30 kinds of events, with their people (WIDER Attribute, Li et al., 2016).

WHERE. http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html
FILES. wider_attribute_trainval.json, wider_attribute_test.json and Image/train|val|test/<event>/.
LABELS. --target event: the events in 16 classes, as in the code of Bolner et al. (2023).
--target event-person: the same for each person of known gender, in a square around the box.
GROUPS. gender. An image is male where at least half of its people of known gender are men; a tie is
male, as in the published code, which however counts people of unknown gender as women. Here they
count for nobody, and images without anyone of known gender are left out and counted.
SPLIT. The official one.
LICENCE. For research, see the owner's page; cite the paper. This reader was tested on miniatures of
the layout, not on the images themselves.
"""

import collections
import json

import numpy as np

from data import InputError
from datasets import Table, contents, find, refuse_choices

DEFAULTS = {
    "image_size": 224,
    "teacher": "efficientnet_b3",
    "student": "efficientnet_b0",
    "target": "event",
    "sensitive": "gender",
    "epochs": 12,
    "batch_size": 64,
    "lr": 0.05,
    "teacher_epochs": 12,
    "teacher_lr": 0.05,
}
PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html"
CLASSES = {  # the classes of Bolner et al., and the numbers of their events in folder names
    "Team Sports": [35, 36, 37, 58],
    "Celebration": [6, 17, 50],
    "Parade": [0],
    "Waiter or Waitress": [31],
    "Individual Sports": [33, 39, 44],
    "Surgeons": [30],
    "Spa": [27],
    "Law Enforcement": [3, 25],
    "Business": [1, 11, 15],
    "Dresses": [51],
    "Water Activities": [43, 57],
    "Picnic": [22],
    "Rescue": [54],
    "Cheering": [7, 28],
    "Performance and Entertainment": [4, 18],
    "Family": [19, 20],
}


def read_images(path, parts):
    """(split, event, file name, [(gender, box) of each person]) of each image in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON ({error}), perhaps cut off: get it anew from {PAGE}"
        ) from None
    images = content.get("images") if isinstance(content, dict) else None
    if not images or not isinstance(images, list):
        raise InputError(f"{path} has no list 'images': get it anew from {PAGE}")
    for n, image in enumerate(images):
        try:
            part, folder, _ = image["file_name"].split("/")
            event = int(folder.partition("--")[0])
            people = [(t["attribute"][0], tuple(map(float, t["bbox"]))) for t in image["targets"]]
            right = part in parts and event in {e for c in CLASSES.values() for e in c}
            right &= all(gender in (-1, 0, 1) and len(box) == 4 for gender, box in people)
            fault = f"{image['file_name']} with {len(people)} people"
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            right, fault = False, f"{type(error).__name__}: {error}"
        if not right:
            raise InputError(
                f"{path}, image {n} ({fault}): it needs 'file_name' like {parts[0]}/0--Parade/1.jpg"
                " and 'targets', each with 'attribute' (first -1, 0 or 1) and 'bbox' (4 numbers)"
            )
        yield part, event, image["file_name"], people


def read(root, target, sensitive, fold, download):
    """The Table of images, or with --target event-person of their people."""
    refuse_choices("wider", fold)
    if target not in ("event", "event-person") or sensitive != "gender":
        raise InputError("wider knows --target event or event-person, and --sensitive gender")
    class_of = {e: c for c, events in enumerate(CLASSES.values()) for e in events}
    advice, notes = f"get it from {PAGE} and unpack it there", collections.Counter()
    folder = find(root, ["Image"], advice, below=True)
    rows = []  # (id, file name, split, label, is it male?, view)
    for name, parts in {"trainval": ("train", "val"), "test": ("test",)}.items():
        path = find(root, [f"wider_attribute_{name}.json"], advice, below=True)
        for part, event, name, people in read_images(path, parts):
            known = [(gender == 1, box) for gender, box in people if gender != 0]
            men = sum(male for male, _ in known)
            notes["images"] += 1
            notes["people"] += len(people)
            notes["people of unknown gender, not counted"] += len(people) - len(known)
            notes["left out: images without anyone of known gender"] += not known
            notes["images with as many men as women"] += len(known) == 2 * men > 0
            row = (name, part, class_of[event])
            if target == "event" and known:
                rows.append((name, *row, 2 * men >= len(known), ()))
            elif target == "event-person":
                for k, (male, (x, y, w, h)) in enumerate(known):
                    ## The square around a standing person shows more of the scene beside it.
                    left, top, side = x + (w - max(w, h)) / 2, y + (h - max(w, h)) / 2, max(w, h)
                    box = tuple(map(round, (left, top, left + side, top + side)))
                    rows.append((f"{name} person {k}", *row, male, (box,)))
    ids, names, split, labels, groups, views = map(list, zip(*rows)) if rows else ([],) * 6
    if len(set(ids)) < len(ids):
        twice = collections.Counter(ids).most_common(1)[0][0]
        raise InputError(f"{root}: {twice} is there twice, get the JSON anew from {PAGE}")
    files = [folder / name for name in names]
    if not any(path.is_file() for path in files):
        raise InputError(
            f"{folder} has none of the images, such as {names[0] if names else 'any'} (it holds "
            f"{contents(folder)}): get them from {PAGE} and unpack them there"
        )
    return Table(
        files,
        ids,
        np.array(labels),
        np.array(groups, dtype=np.int64),
        np.array(names),
        np.array(split),
        list(CLASSES),
        ["female", "male"],
        dict(notes),
        views=views if any(views) else None,
    )
