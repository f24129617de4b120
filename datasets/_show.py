"""How a data set shows itself: a table of its pictures, a contact sheet, outlines of masks."""

import io
import math
import shutil
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from data import save


def describe(title, classes, group_names, parts, notes):
    """What was left out, and a table: classes x groups of each split, as numbers and rates.

    parts: {split: (labels, groups)}, arrays (N,) of codes.
    """

    def table(parts):
        columns = [["pictures, share", "of the group", *classes, "all"]]
        for name, (labels, groups) in parts.items():
            for g, group in enumerate(group_names):
                counts = np.bincount(labels[groups == g], minlength=len(classes)).tolist()
                total = sum(counts)
                cells = [f"{n} {n / max(total, 1):6.1%}" for n in counts]
                columns.append([name, group, *cells, f"{total}   100%"])
        rows = columns if len(group_names) > len(classes) else list(zip(*columns))  # the shorter
        widths = [max(map(len, column)) for column in zip(*rows)]
        for name, *cells in rows:  # names begin, and numbers end, below each other
            cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
            yield "  ".join([name.ljust(widths[0]), *cells])

    lines, width = [title], shutil.get_terminal_size().columns
    for what, note in notes.items():
        if isinstance(note, list) and note:  # of ids
            note = f"{len(note)}: {', '.join(note[:5])}{', ...' if note[5:] else ''}"
        style = {"width": width, "initial_indent": "  ", "subsequent_indent": "    "}
        lines += textwrap.wrap(f"{what}: {note}", **style) if note else []
    whole = [*table(parts)]
    if max(map(len, whole)) > width:  # one split below the other
        whole = [line for name in parts for line in table({name: parts[name]})]
    return "\n".join(lines + whole)


def contact_sheet(data, folder, shown=10):
    """Write a PNG into `folder`: training pictures of each class and group, in rows."""
    from matplotlib import get_data_path  # its font has more letters than Pillow's

    train, side = data["train"], max(data.size, 64) + 2
    left = 12 + 9 * max(map(len, [*data.classes, *data.group_names, "00000 in training"]))
    shape = len(data.classes), len(data.group_names)
    sheet = Image.new("RGB", (left + shown * side, math.prod(shape) * side), "white")
    pen, font = ImageDraw.Draw(sheet), f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    font = ImageFont.truetype(font, 14)
    for k, (c, g) in enumerate(np.ndindex(shape)):
        cell = train.subset((train.labels == c) & (train.groups == g))
        text = f"{data.classes[c]}\n{data.group_names[g]}\n{len(cell)} in training"
        pen.text((6, k * side + 4), text, "black", font)
        some = cell.subset(range(0, len(cell), math.ceil(len(cell) / shown) or 1))
        for n, image in enumerate(some.images.permute(0, 2, 3, 1).cpu().numpy()):
            picture = Image.fromarray(image).resize((side - 2, side - 2), Image.NEAREST)
            if some.masks is not None:
                picture = outlined(picture, some.masks[some.rows[n]].cpu().numpy())
            sheet.paste(picture, (left + n * side, k * side))
    path = Path(folder) / f"contact-sheet-{data.name}-{data.hash()}.png"
    sheet.save(buffer := io.BytesIO(), "PNG")
    save(path, buffer.getvalue())
    print(f"wrote {path}")


def outlined(picture, mask):
    """A PIL picture with the outline of a mask (H, W), 0 outside, which is scaled to its size."""
    inside = Image.fromarray(255 * (mask > 0).astype(np.uint8)).resize(picture.size, Image.NEAREST)
    eroded = inside.filter(ImageFilter.MinFilter(3))  # without the pixels that touch the outside
    line = ImageChops.subtract(inside, eroded)
    return Image.composite(Image.new("RGB", picture.size, (0, 255, 0)), picture, line)
