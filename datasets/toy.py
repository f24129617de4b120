"""toy: 10,500 stars, drawn from a seed in seconds, so that everything runs on a laptop.

WHERE. Drawn by this file. No claim about the world rests on these pictures.
LABELS. The number of lobes, 2 to 7.
MASKS. The star as it is seen, for --task segment: up to where it has half of its ink, which is 0.6
pixel further out where a line is drawn around it; also the inside of a star that is not filled.
GROUPS. The style: a filled cyan star on dark ground, or a red outline on light paper with a little
more noise. In training and validation nine in ten stars with 2, 4 or 6 lobes are filled, and nine
in ten with 3, 5 or 7 are outlined, so that style is a shortcut to the class. The test set has every
cell of class and group equally often. A student that sees all cells equally often is nearly fair,
so the bias is one that a method can cure. The drawing was settled with plain training and balanced
sampling alone, before any distillation was run on it.
SPLIT. 6,000 pictures to train, 1,500 to validate, 3,000 to test; 32 pixels a side.
LICENCE. That of this code.
"""

import numpy as np

from datasets import Table, refuse_choices

DEFAULTS = {
    "image_size": 32,
    "teacher": "convnet16",
    "student": "convnet8",
    "target": "label",
    "sensitive": "group",
    "epochs": 48,
    "batch_size": 32,
    "lr": 0.1,
    "teacher_epochs": 28,
    "teacher_lr": 0.1,
}
SEGMENT = {  # what --task segment has instead
    "teacher": "unet8",
    "student": "unet4",
    "epochs": 4,
    "lr": 0.1,
    "teacher_epochs": 3,
    "teacher_lr": 0.1,
}


def draw(seed, n, balanced):
    """Draw `n` stars; with `balanced`, half of each class is filled, otherwise nine or one in ten.

    Returns images (n, 32, 32, 3) uint8, masks (n, 32, 32) uint8, labels (n,) = lobes - 2, groups
    (n,) with filled = 0.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random(n), kind="stable")
    labels, rank = order % 6, order // 6  # rank: place within the class
    groups = rank % 2 if balanced else (labels + (rank % 10 == 9)) % 2
    y, x = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    images, masks = np.empty((n, 32, 32, 3), np.uint8), np.empty((n, 32, 32), np.uint8)
    turn = 2 * np.pi
    for start in range(0, n, 500):  # in parts, so that little memory is needed
        now = slice(start, start + 500)
        lobes, filled = labels[now, None, None] + 2, groups[now, None, None] == 0

        def between(low, high, *shape, start=start):  # one draw for each picture of the part
            return low + (high - low) * rng.random((min(500, n - start), *(shape or (1, 1))))

        # the outline: a circle with one wave per lobe, bent a little by two slow waves
        right, down = x - between(13, 18), y - between(13, 18)
        angle = np.arctan2(down, right)
        wave = between(0.17, 0.35) * np.cos(lobes * angle + between(0, turn))
        wave += between(0, 0.05) * np.cos(2 * angle + between(0, turn))
        wave += between(0, 0.05) * np.cos(3 * angle + between(0, turn))
        depth = between(7.5, 10.5) * (1 + wave) - np.sqrt(right**2 + down**2)  # outline: 0
        line = np.clip(1.6 - np.abs(depth - 0.5), 0, 1)
        ink = 0.55 * np.where(filled, np.clip(depth + 0.5, 0, 1), line)
        inside = depth > np.where(filled, 0, -0.6)  # to where the ink is half of the line's
        # a faint spot that means nothing, and light that falls off to one side, in both groups
        spot = np.sqrt((x - between(0, 32)) ** 2 + (y - between(0, 32)) ** 2) / between(2, 4)
        ink = np.maximum(ink, 0.19 * np.clip(1.5 - spot, 0, 1))[..., None]
        light = 0.006 * ((x - 15.5) * between(-1, 1) + (y - 15.5) * between(-1, 1))[..., None]

        filled = filled[..., None]
        paper = np.where(filled, (0.10, 0.16, 0.34), (0.93, 0.84, 0.68))
        paper = paper + between(-0.06, 0.06, 1, 1, 3)
        pen = np.where(filled, (0.45, 0.80, 0.85), (0.55, 0.22, 0.20))
        pen = pen + between(-0.15, 0.15, 1, 1, 3)
        picture = paper + light + (pen - paper) * ink
        noise = rng.random(picture.shape) + rng.random(picture.shape) - 1
        picture += np.where(filled, 0.17, 0.196) * noise  # standard deviation 0.07 or 0.08
        images[now], masks[now] = np.rint(255 * np.clip(picture, 0, 1)), 255 * inside
    return images, masks, labels, groups


def read(root, target, sensitive, fold, download, seed=0, balanced=("test",)):
    """The Table of the toy with its pictures; in `balanced` splits all cells are equally large."""
    refuse_choices("toy", fold, target, sensitive)
    sizes = {"train": 6000, "val": 1500, "test": 3000}
    parts = [draw(seed + k, n, part in balanced) for k, (part, n) in enumerate(sizes.items())]
    images, masks, labels, groups = (np.concatenate(values) for values in zip(*parts))
    split = np.repeat(list(sizes), list(sizes.values()))
    ids = [f"{part}-{n:05}" for n, part in enumerate(split)]
    return Table(
        files=[None] * len(ids),
        ids=ids,
        labels=labels,
        groups=groups,
        subjects=np.array(ids),
        split=split,
        classes=[f"{lobes} lobes" for lobes in range(2, 8)],
        group_names=["filled", "outlined"],
        images=images,
        masks=masks,
        inside="star",
    )
