"""data.py and readers.py: splits, order, augmentation, the file of pixels, and each reader."""

import csv
import hashlib
import http.server
import os
import threading
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from conftest import colour, read_table, write_table
from PIL import Image
from sklearn.model_selection import train_test_split

import data as D
import readers


def picture_split(n=50, size=16, seed=0):
    """A split of random pictures, without any file; 3 classes and 2 groups, unevenly filled."""
    rng = np.random.default_rng(seed)
    store = torch.from_numpy(rng.integers(0, 256, (n + 20, size, size, 3), dtype=np.uint8))
    rows = torch.from_numpy(rng.permutation(n + 20)[:n])
    labels = torch.from_numpy(np.minimum(rng.integers(0, 6, n), 2))
    groups = torch.from_numpy((rng.random(n) < 0.2).astype(np.int64))
    split = D.Split(store, rows, labels, groups, [f"id{r}" for r in rows], np.arange(n).astype(str))
    split.mean = torch.tensor([120.0, 130.0, 140.0])[:, None, None]
    split.std = torch.tensor([50.0, 60.0, 70.0])[:, None, None]
    return split


def pixels(batch, split):
    """The pictures of a batch before normalisation, (B, H, W, 3) uint8."""
    images = batch.images * split.std + split.mean
    assert (images - images.round()).abs().max() < 1e-3
    return images.round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def epoch_of(split, batch_size, *views, **more):
    return list(D.batches(split, batch_size, *views, **more))


# ------------------------------------------------------------------------- order and augmentation


@pytest.mark.parametrize("balance", [False, True])
def test_same_seed_and_epoch_give_the_same_views_and_others_give_others(balance):
    split = picture_split()
    first = epoch_of(split, 8, 3, 5, True, balance)
    torch.manual_seed(1), np.random.seed(1)  # no global random state takes part
    second = epoch_of(split, 8, 3, 5, True, balance)
    assert [b.epoch for b in first] == [5] * 6 and [b.step for b in first] == list(range(6))
    for a, b in zip(first, second):
        assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4]))
    for other in ((3, 6), (4, 5)):
        others = epoch_of(split, 8, *other, True, balance)
        assert not torch.equal(first[0].index, others[0].index)
    ## The same order with other views would be half a mistake: compare views of equal pictures.
    views = {
        (e, int(i)): image
        for e in (5, 6)
        for b in D.batches(split, 8, 3, e, True, balance)
        for i, image in zip(b.index, b.images)
    }
    twice = [i for i in range(len(split)) if (5, i) in views and (6, i) in views]
    same = sum(torch.equal(views[5, i], views[6, i]) for i in twice)
    assert same < len(twice) / 4


def test_the_batch_size_does_not_change_order_or_views():
    split = picture_split()
    small, large = epoch_of(split, 5, 0, 0, True), epoch_of(split, 25, 0, 0, True)
    for field in ("images", "labels", "groups", "index"):
        joined = [torch.cat([getattr(b, field) for b in batches]) for batches in (small, large)]
        assert torch.equal(*joined)


def test_an_epoch_shows_every_picture_once_without_the_incomplete_batch():
    split = picture_split(50)
    batches = epoch_of(split, 8, 0, 0, True)
    assert [len(b.index) for b in batches] == [8] * 6
    index = torch.cat([b.index for b in batches])
    assert len(index.unique()) == 48
    assert torch.equal(torch.cat([b.labels for b in batches]), split.labels[index])
    assert torch.equal(torch.cat([b.groups for b in batches]), split.groups[index])
    left_out = [
        set(range(50)) - set(torch.cat([b.index for b in D.batches(split, 8, 0, e)]).tolist())
        for e in range(3)
    ]
    assert len(set(map(frozenset, left_out))) > 1  # not always the same ones are left out


def test_evaluation_shows_everything_in_order():
    split = picture_split(50)
    batches = epoch_of(split, 8)
    assert [len(b.index) for b in batches] == [8] * 6 + [2]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(50))
    shown = np.concatenate([pixels(b, split) for b in batches])
    np.testing.assert_array_equal(shown, split.store[split.rows].numpy())
    np.testing.assert_array_equal(shown.transpose(0, 3, 1, 2), split.images.numpy())


def test_augmentation_equals_a_slow_reference_pixel_for_pixel():
    ## For each picture some flip and shift must explain all of its pixels, and all flips and shifts
    ## must occur: the reference knows the rule, not the order in which random numbers are drawn.
    split, pad = picture_split(200), 2  # an eighth of 16 pixels
    found = []
    for batch in D.batches(split, 40, 0, 0, True):
        for shown, n in zip(pixels(batch, split), batch.index):
            picture = split.store[split.rows[n]].numpy()
            padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
            explained = [
                (flip, down, right)
                for flip in (False, True)
                for down in range(2 * pad + 1)
                for right in range(2 * pad + 1)
                for crop in [padded[down : down + 16, right : right + 16]]
                if np.array_equal(shown, crop[:, ::-1] if flip else crop)
            ]
            assert len(explained) == 1
            found += explained
    flips, downs, rights = np.array(found).T
    assert 70 < flips.sum() < 130  # 200 coins
    for shifts in (downs, rights):
        assert (np.bincount(shifts, minlength=5) > 20).all()  # 40 each, on average
    assert abs(np.corrcoef([flips, downs, rights])[np.triu_indices(3, 1)]).max() < 0.25


def test_normalisation():
    split = picture_split()
    (batch,) = D.batches(split, len(split))
    reference = split.store[split.rows].numpy().astype(np.float64)
    reference = (reference - [120, 130, 140]) / [50, 60, 70]
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1), reference, rtol=1e-6, atol=1e-6)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_training_pictures_are_normalised_to_mean_0_and_std_1(pictures):
    data = D.load("csv", pictures, 16)
    images = torch.cat([b.images for b in D.batches(data["train"], 32)])
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), rtol=1e-4, atol=0)
    for part in ("val", "test"):
        assert torch.equal(data[part].mean, data["train"].mean)
        assert torch.equal(data[part].std, data["train"].std)


@pytest.mark.parametrize("n", [48, 50])
def test_balance_gives_each_cell_an_equal_share(n):
    split = picture_split(n)
    cell = lambda index: (2 * split.labels[index] + split.groups[index]).tolist()
    there = set(cell(torch.arange(n)))
    assert len(set(np.bincount(cell(torch.arange(n))))) > 1  # the data are not even by themselves
    for epoch in range(3):
        order = D.balanced_order(
            split.labels.numpy(), split.groups.numpy(), np.random.default_rng(epoch)
        )
        shares = np.bincount(cell(torch.from_numpy(order)), minlength=6)[sorted(there)]
        assert len(order) == n and shares.max() - shares.min() <= 1
    ## Within a cell every picture has its chance, and the epoch has the usual length.
    epochs = [D.batches(split, 2, 0, epoch, balance=True) for epoch in range(40)]
    seen = [torch.cat([batch.index for batch in epoch]) for epoch in epochs]
    assert {len(s) for s in seen} == {n}
    assert set(torch.cat(seen).tolist()) == set(range(n))


def test_a_batch_larger_than_the_training_set_is_refused_and_evaluation_is_not():
    split = picture_split(20)
    with pytest.raises(D.InputError, match="batch of 32 .* there are 20"):
        next(D.batches(split, 32, 0))
    assert len(next(D.batches(split, 32)).index) == 20


if torch.cuda.is_available():

    @pytest.mark.parametrize("store", ["cpu", "cuda"])
    def test_batches_on_the_gpu_are_those_of_the_cpu(store):
        split, there = picture_split(), picture_split()
        there.store, there.rows = split.store.to(store), split.rows.to(store)
        for name in ("labels", "groups", "mean", "std"):
            setattr(there, name, getattr(split, name).cuda())
        for views in ((None, 0, False), (1, 2, True)):
            for a, b in zip(D.batches(split, 8, *views), D.batches(there, 8, *views)):
                assert b.images.device.type == "cuda"
                assert all(torch.equal(x, y.cpu()) for x, y in zip(a[1:4], b[1:4]))
                torch.testing.assert_close(a.images, b.images.cpu(), rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------------------- splits and hash


def test_subset():
    split = picture_split()
    part = split.subset([7, 3, 11])
    assert len(part) == 3 and part.ids == [split.ids[n] for n in (7, 3, 11)]
    assert part.labels.tolist() == split.labels[[7, 3, 11]].tolist()
    assert part.groups.tolist() == split.groups[[7, 3, 11]].tolist()
    assert part.subjects.tolist() == ["7", "3", "11"]
    assert torch.equal(part.images, split.images[[7, 3, 11]])
    assert torch.equal(part.mean, split.mean) and part.store is split.store
    again = part.subset(torch.tensor([2]))
    assert again.ids == [split.ids[11]]
    assert len(split.subset([])) == 0
    (batch,) = D.batches(part, 3)
    np.testing.assert_array_equal(pixels(batch, part), part.images.permute(0, 2, 3, 1).numpy())


def test_subset_takes_a_mask_as_a_mask():
    split = picture_split()
    for mask in (split.groups == 1, (split.groups == 1).numpy()):
        part = split.subset(mask)
        assert len(part) == int((split.groups == 1).sum()) and (part.groups == 1).all()


def test_hash_tells_ids_labels_groups_and_splits_apart():
    def data(change=lambda split: None, name="x", size=16):
        splits = {part: picture_split(seed=n) for n, part in enumerate(("train", "val", "test"))}
        change(splits)
        return D.Data(name, ["a", "b", "c"], ["g", "h"], size, splits)

    usual = data().hash()
    assert usual == data().hash() and len(usual) == 16 and int(usual, 16) >= 0

    def change_id(splits):
        splits["val"].ids[3] = "another"

    def change_label(splits):
        splits["val"].labels[3] = (splits["val"].labels[3] + 1) % 3

    def change_group(splits):
        splits["val"].groups[3] = 1 - splits["val"].groups[3]

    def change_order(splits):
        splits["val"] = splits["val"].subset(list(range(50))[::-1])

    def change_splits(splits):
        splits["val"], splits["test"] = splits["test"], splits["val"]

    for change in (change_id, change_label, change_group, change_order, change_splits):
        assert data(change).hash() != usual, change.__name__
        assert data(change).hash("train") == data().hash("train"), change.__name__
    assert data(name="y").hash() != usual != data(size=32).hash()
    assert data(change_group).hash("val", groups=False) == data().hash("val", groups=False)
    assert data(change_label).hash("val", groups=False) != data().hash("val", groups=False)


def test_describe_counts_every_cell(pictures):
    data = D.load("csv", pictures, 16)
    text, rows = data.describe(), read_table(pictures / "labels.csv")
    cells = {(r["file"]): (r["group"], r["label"]) for r in rows}
    head, notes, *lines = text.splitlines()
    assert (head, notes.strip()) == ("csv, 16 pixels a side", "rows: 96")
    parts = lines[0].removeprefix("pictures, share of the group").split()
    heads = list(zip(parts, lines[1].split()))
    assert heads == [(p, g) for p in ("train", "val", "test") for g in ("indoor", "outdoor")]
    told = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert list(told) == ["cat", "dog", "fox", "all"]
    for n, (part, group) in enumerate(heads):
        there = [cells[i] for i in data[part].ids]
        total = sum(g == group for g, _ in there)
        for label in ("cat", "dog", "fox"):
            count = there.count((group, label))
            assert told[label][2 * n : 2 * n + 2] == [str(count), f"{count / total:.1%}"]
        assert told["all"][2 * n : 2 * n + 2] == [str(total), "100%"]


def test_contact_sheet_shows_training_pictures_of_every_cell(pictures, tmp_path, capsys):
    data = D.load("csv", pictures, 64)
    data.contact_sheet(tmp_path / "new", shown=3)
    (file,) = (tmp_path / "new").iterdir()
    assert str(file) in capsys.readouterr().out
    sheet, train = np.asarray(Image.open(file)).astype(int), data["train"]
    left = sheet.shape[1] - 3 * 66  # of the pictures: there are words before them
    assert len(sheet) == 6 * 66 and left > 50
    for k in range(6):  # cat indoor, cat outdoor, dog indoor, ...
        cell = (train.labels == k // 2) & (train.groups == k % 2)
        meant = train.subset(cell).images.float().mean(dim=(2, 3))
        for n in range(min(3, len(meant))):
            shown = sheet[66 * k + 32, left + 66 * n + 32]
            assert (abs(meant - torch.from_numpy(shown)).max(dim=1).values < 4).any()
        assert (sheet[66 * k : 66 * k + 66, :left] < 100).any()  # something is written there


def test_smoke_takes_some_of_every_cell(ham10000, monkeypatch):
    first = D.first_of_each_cell
    monkeypatch.setattr(D, "first_of_each_cell", lambda table, most: first(table, 3))
    whole, few = D.load("ham10000", ham10000, 16), D.load("ham10000", ham10000, 16, smoke=True)
    for part in ("train", "val", "test"):
        cells = [2 * s.labels + s.groups for s in (whole[part], few[part])]
        counts = [np.bincount(c, minlength=4) for c in cells]
        assert counts[1].tolist() == np.minimum(counts[0], 3).tolist()
        assert set(few[part].ids) <= set(whole[part].ids)
        check_colours(few[part])


# --------------------------------------------------------------------- from a file to pixels, once


def number_of(name):
    return int("".join(filter(str.isdigit, name)))


def check_colours(split):
    """Every picture of a miniature is the one that its name says."""
    shown = split.images.float().mean(dim=(2, 3)).numpy()
    meant = np.array([colour(number_of(name)) for name in split.ids])
    np.testing.assert_allclose(shown, meant, atol=4)  # JPEG


def test_pictures_are_decoded_once(pictures, monkeypatch, capsys):
    first = D.load("csv", pictures, 16)
    (file,) = pictures.glob("decoded-*.npy")
    before = os.stat(file).st_mtime_ns, file.read_bytes()
    assert "decoded 96 pictures" in capsys.readouterr().out
    check_colours(first["train"])

    def fail(*_):
        raise AssertionError("decoded again")

    decode = readers.decode
    monkeypatch.setattr(readers, "decode", fail)
    second = D.load("csv", pictures, 16)
    assert "decoded" not in capsys.readouterr().out
    assert torch.equal(first["test"].images, second["test"].images)
    second["test"].store[:] = 0  # the memory is ours, the file is not
    assert (os.stat(file).st_mtime_ns, file.read_bytes()) == before

    monkeypatch.setattr(readers, "decode", decode)
    other = D.load("csv", pictures, 24)
    assert other["train"].images.shape[1:] == (3, 24, 24)
    assert len(list(pictures.glob("decoded-*.npy"))) == 2
    Image.new("RGB", (50, 50), (1, 2, 3)).save(pictures / "pictures/000.png")  # a new picture
    third = D.load("csv", pictures, 16)
    assert len(list(pictures.glob("decoded-*.npy"))) == 3
    (part,) = [p for p in third.splits.values() if "pictures/000.png" in p.ids]
    picture = part.images[part.ids.index("pictures/000.png")]
    assert picture.float().mean(dim=(1, 2)).tolist() == [1, 2, 3]


def test_the_file_of_pixels_appears_only_when_complete(pictures, monkeypatch):
    decode, there = readers.decode, []

    def watch(file, size):
        there.extend(pictures.glob("decoded-*.npy"))
        return decode(file, size)

    monkeypatch.setattr(readers, "decode", watch)
    (pictures / "pictures/017.jpg").write_bytes(b"no picture")
    with pytest.raises(D.InputError, match="017.jpg"):
        D.load("csv", pictures, 16)
    assert not list(pictures.glob("decoded-*")) and not list(pictures.glob(".*tmp"))
    D.load("csv", pictures, 16, skip_bad=True)
    assert len(list(pictures.glob("decoded-*.npy"))) == 1 and not there

    monkeypatch.setattr(readers, "decode", lambda *_: 1 / 0)  # a fault of ours, not of a picture
    with pytest.raises((ZeroDivisionError, D.InputError)):
        D.load("csv", pictures, 20)
    assert len(list(pictures.glob("decoded-*.npy"))) == 1 and not list(pictures.glob(".*tmp"))


def test_a_read_only_folder_keeps_its_pixels_elsewhere(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != pictures)
    data = D.load("csv", pictures, 16)
    check_colours(data["test"])
    assert not list(pictures.glob("*decoded*")) and list(tmp_path.glob("runs/decoded-*.npy"))


def corner(size=(40, 40), box=(0, 0, 20, 20)):
    """A black picture with a red corner: shows which way is up."""
    image = Image.new("RGB", size)
    image.paste((255, 0, 0), box)
    return image


def test_exif_rotation_is_undone(tmp_path):
    exif, file = Image.Exif(), tmp_path / "turned.png"
    for code, place in {1: (0, 0), 3: (1, 1), 6: (0, 1), 8: (1, 0)}.items():  # row, column
        exif[0x0112] = code
        corner().save(file, exif=exif)
        quarters = readers.decode(file, 2)[..., 0]
        assert np.argwhere(quarters > 128).tolist() == [list(place)], code


def picture_of(mode):
    if mode == "P":
        return Image.new("RGB", (9, 9), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)
    if mode == "I;16":  # 16 bits of grey, as some cameras and scanners write them
        return Image.fromarray(np.full((9, 9), 100 * 257, np.uint16))
    colours = {"L": 100, "1": 1, "LA": (100, 255), "RGBA": (200, 100, 50, 255),
               "CMYK": (10, 20, 30, 40), "RGB": (200, 100, 50)}  # fmt: skip
    return Image.new(mode, (9, 9), colours[mode])


@pytest.mark.parametrize(
    "mode, ending, meant",
    [
        ("RGB", "png", (200, 100, 50)),
        ("RGB", "jpg", (200, 100, 50)),
        ("L", "png", (100, 100, 100)),
        ("L", "jpg", (100, 100, 100)),
        ("LA", "png", (100, 100, 100)),
        ("1", "png", (255, 255, 255)),
        ("RGBA", "png", (200, 100, 50)),
        ("P", "png", (200, 100, 50)),
        ("P", "gif", (200, 100, 50)),
        ("CMYK", "jpg", (207, 198, 190)),  # (1 - C) (1 - K)
        ("I;16", "png", (100, 100, 100)),
    ],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, ending, meant):
    file = tmp_path / f"picture.{ending}"
    picture_of(mode).save(file)
    decoded = readers.decode(file, 4)
    assert decoded.shape == (4, 4, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, np.broadcast_to(meant, (4, 4, 3)), atol=3)


def test_the_centre_square_is_taken_and_shrunk_smoothly(tmp_path):
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    wide.paste((0, 255, 0), (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    assert (readers.decode(tmp_path / "wide.png", 8)[:, 1:-1] == [0, 255, 0]).all()
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    small = readers.decode(tmp_path / "board.png", 8)  # without antialiasing 0 or 255
    assert abs(small.astype(int) - 127).max() < 20


# --------------------------------------------------------------------------------------- HAM10000


def test_ham10000_labels_groups_and_pictures(ham10000):
    rows = {r["image_id"]: r for r in read_table(ham10000 / "HAM10000_metadata.csv")}
    used = {i: r for i, r in rows.items() if r["sex"] != "unknown" and r["age"]}
    data = D.load("ham10000", ham10000, 16)
    assert data.classes == ["benign", "malignant"] and data.group_names == ["female", "male"]
    assert sorted(i for s in data.splits.values() for i in s.ids) == sorted(used)
    assert data.notes["left out: sex unknown or age missing"] == 120 - len(used) > 0
    for split in data.splits.values():
        check_colours(split)
        for i, label, group, lesion in zip(
            split.ids, split.labels.tolist(), split.groups.tolist(), split.subjects
        ):
            assert label == (used[i]["dx"] in ("akiec", "mel"))
            assert data.group_names[group] == used[i]["sex"]
            assert lesion == used[i]["lesion_id"]


@pytest.mark.parametrize("target", ["dx", "malignant+bcc"])
def test_ham10000_targets(ham10000, target):
    rows = {r["image_id"]: r for r in read_table(ham10000 / "HAM10000_metadata.csv")}
    data = D.load("ham10000", ham10000, 16, target=target)
    for split in data.splits.values():
        told = [data.classes[c] for c in split.labels]
        dx = [rows[i]["dx"] for i in split.ids]
        malignant = [("benign", "malignant")[d in ("akiec", "mel", "bcc")] for d in dx]
        assert told == (dx if target == "dx" else malignant)
    assert len(data.classes) == (7 if target == "dx" else 2)


def test_ham10000_age_and_crossed_groups(ham10000):
    rows = {r["image_id"]: r for r in read_table(ham10000 / "HAM10000_metadata.csv")}
    age = {i: "age>60" if float(r["age"] or 0) > 60 else "age<=60" for i, r in rows.items()}
    assert any(r["age"] == "60.0" for r in rows.values())  # exactly 60 is not over 60
    data = D.load("ham10000", ham10000, 16, sensitive="age")
    assert data.group_names == ["age<=60", "age>60"]
    crossed = D.load("ham10000", ham10000, 16, sensitive="sex+age")
    assert crossed.group_names == ["female age<=60", "female age>60", "male age<=60", "male age>60"]
    for part in ("train", "val", "test"):
        split = data[part]
        assert [data.group_names[g] for g in split.groups] == [age[i] for i in split.ids]
        told = [crossed.group_names[g] for g in crossed[part].groups]
        assert told == [f"{rows[i]['sex']} {age[i]}" for i in split.ids]
        assert crossed[part].ids == split.ids  # the split does not depend on the groups


def write_lesions(root, lesions, unknown=()):
    """A HAM10000 table in which the lesions have one or two pictures, in mixed order; one file."""
    rng = np.random.default_rng(len(lesions))
    names = [name for name in lesions for _ in range(rng.integers(1, 3))]
    rows = [
        {"lesion_id": name, "image_id": f"ISIC_{n:07}", "dx": "nv", "age": 50,
         "sex": "unknown" if name in unknown else "male"}
        for n, name in zip(rng.permutation(len(names)), rng.permutation(names))
    ]  # fmt: skip
    root.mkdir()
    write_table(root / "HAM10000_metadata.csv", rows)
    (root / "ISIC_0000000.jpg").touch()


@pytest.mark.parametrize("n", [11, 20, 23, 80, 137, 412])
def test_ham10000_published_split_is_that_of_scikit_learn(tmp_path, n):
    lesions = [f"HAM_{k:07}" for k in np.random.default_rng(n).permutation(1000)[: n + 4]]
    unknown = lesions[:4]  # dropped before the split: they must not shift it
    write_lesions(tmp_path / "x", lesions, unknown)
    table = readers.read_ham10000(tmp_path / "x", "malignant", "sex", None, False)
    train, off = train_test_split(sorted(lesions[4:]), test_size=0.2, random_state=0)
    val, test = train_test_split(off, test_size=0.5, random_state=0)
    for part, meant in {"train": train, "val": val, "test": test, "": unknown}.items():
        assert set(table.subjects[table.split == part]) == set(meant)


def check_folds(read):
    """Five folds: their test sets are a partition, and no subject is in two splits of a fold."""
    tested = []
    for fold in range(5):
        table = read(fold)
        ids = np.array(table.ids)
        parts = [set(table.subjects[table.split == p]) for p in ("train", "val", "test")]
        assert len(set.union(*parts)) == sum(map(len, parts))
        n = sum(map(len, parts))
        assert abs(len(parts[1]) - 0.1 * n) <= 1 and abs(len(parts[2]) - 0.2 * n) <= 1
        tested += ids[table.split == "test"].tolist()
    assert sorted(tested) == sorted(ids[table.split != ""])
    assert table.split.tolist() == read(4).split.tolist()


def test_ham10000_folds(ham10000):
    check_folds(lambda fold: readers.read_ham10000(ham10000, "malignant", "sex", fold, False))
    usual, third = D.load("ham10000", ham10000, 16), D.load("ham10000", ham10000, 16, fold=3)
    assert len(third["test"]) and third.hash("test") != usual.hash("test")
    table = readers.read_ham10000(ham10000, "malignant", "sex", None, False)
    parts = [set(table.subjects[table.split == p]) for p in ("train", "val", "test", "")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 80


def test_ham10000_as_dataverse_gives_it_and_with_other_folders(ham10000):
    usual = D.load("ham10000", ham10000, 16).hash()
    rows = read_table(ham10000 / "HAM10000_metadata.csv")
    (ham10000 / "HAM10000_metadata.csv").unlink()
    tab = ham10000 / "HAM10000_metadata.tab"
    write_table(tab, rows, delimiter="\t", quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    assert D.load("ham10000", ham10000, 16).hash() == usual
    for folder in ("HAM10000_images", "."):  # all in one folder, or beside the table
        (ham10000 / folder).mkdir(exist_ok=True)
        for file in list(ham10000.glob("*/*.jpg")):
            file.rename(ham10000 / folder / file.name)
        data = D.load("ham10000", ham10000, 16)
        assert data.hash() == usual
        check_colours(data["train"])


def test_ham10000_age_0_is_kept_and_counted(ham10000):
    table = ham10000 / "HAM10000_metadata.csv"
    rows = read_table(table)
    known = [r for r in rows if r["sex"] != "unknown" and r["age"]]
    for row in [*known[:4], next(r for r in rows if r["sex"] == "unknown")]:
        row["age"] = "0.0"
    write_table(table, rows)
    data = D.load("ham10000", ham10000, 16)
    assert sum(map(len, data.splits.values())) == len(known)
    assert [n for what, n in data.notes.items() if "age 0" in what] == [4]


if "FAIRKD_HAM10000" in os.environ:  # the folder of the real files

    def test_ham10000_published_figures():
        root = os.environ["FAIRKD_HAM10000"]
        table = readers.read_ham10000(readers.Path(root), "malignant", "sex", None, False)
        assert len(table.ids) == 10015 and None not in table.files
        parts = {p: table.split == p for p in ("train", "val", "test")}
        counts = {p: (int(m.sum()), int(table.labels[m].sum())) for p, m in parts.items()}
        assert counts == {"train": (7967, 1140), "val": (969, 156), "test": (1012, 142)}
        assert sum(n for n, _ in counts.values()) == 9948
        assert len(set(table.subjects[table.split != ""])) == 7414
        men, women = (table.labels[parts["test"] & (table.groups == g)] for g in (1, 0))
        assert (len(men), men.sum(), len(women), women.sum()) == (549, 90, 463, 52)
        lesions = [set(table.subjects[m]) for m in parts.values()]
        assert len(set.union(*lesions)) == sum(map(len, lesions))
        check_folds(lambda f: readers.read_ham10000(readers.Path(root), "dx", "sex+age", f, False))


# --------------------------------------------------------------------------------------- download


@pytest.fixture
def server(ham10000, tmp_path, monkeypatch):
    """A server that stands for Dataverse: the miniature's table and two zips of its pictures."""
    folder, files = tmp_path / "served", {}
    folder.mkdir()
    table = ham10000 / "HAM10000_metadata.csv"
    (folder / "1").write_bytes(table.read_bytes())
    for number, part in (("2", "HAM10000_images_part_1"), ("3", "HAM10000_images_part_2")):
        with zipfile.ZipFile(folder / number, "w") as archive:
            archive.writestr(f"{part}/", "")
            for n, file in enumerate(sorted((ham10000 / part).iterdir())):
                archive.write(file, f"{part}/{file.name}" if n % 2 else file.name)
            archive.writestr("../../evil.jpg", b"evil")
            archive.writestr("/evil.jpg", b"evil")
            archive.writestr("../HAM10000_metadata.csv", b"evil")
            archive.writestr("__MACOSX/._notes.txt", b"notes")
    names = ["HAM10000_metadata.csv", "HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip"]
    for number, name in enumerate(names, 1):
        md5 = hashlib.md5((folder / str(number)).read_bytes()).hexdigest()
        files[name] = (f"{number}?x=y", md5)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        monkeypatch.setattr(readers, "HAM_SERVER", f"http://127.0.0.1:{serving.server_port}/")
        monkeypatch.setattr(readers, "HAM_FILES", files)
        yield folder
        serving.shutdown()


def test_ham10000_is_downloaded_checked_and_unpacked(server, ham10000, tmp_path):
    usual = D.load("ham10000", ham10000, 16).hash()
    root = tmp_path / "deep" / "er" / "downloaded"
    data = D.load("ham10000", root, 16, download=True)
    assert data.hash() == usual
    check_colours(data["test"])
    ## Names in an archive are not trusted: everything lands in the folder of its part.
    evil = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("evil.jpg")]
    parts = [f"deep/er/downloaded/HAM10000_images_part_{k}/evil.jpg" for k in (1, 2)]
    assert sorted(evil) == parts
    assert {p.suffix for p in root.glob("*/*")} == {".jpg"}  # and nothing but pictures
    table = root / "HAM10000_metadata.csv"
    assert table.read_bytes() == (ham10000 / "HAM10000_metadata.csv").read_bytes()
    ## A second time nothing needs the server.
    for file in server.iterdir():
        file.unlink()
    assert D.load("ham10000", root, 16, download=True).hash() == usual


def test_a_download_with_another_md5_is_refused(server, tmp_path):
    name = "HAM10000_images_part_2.zip"
    (server / "3").write_bytes(b"not what was published")
    with pytest.raises(D.InputError, match=rf"{name} cannot be downloaded.*DBW86T") as error:
        D.load("ham10000", tmp_path / "new", 16, download=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new" / "HAM10000_images_part_2").exists()


def test_a_download_without_network_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "HAM_SERVER", "http://127.0.0.1:9/")  # nobody listens there
    with pytest.raises(D.InputError, match="HAM10000_metadata.csv cannot be downloaded.*DBW86T"):
        D.load("ham10000", tmp_path / "new", 16, download=True)


def test_ham10000_checksums_are_those_that_dataverse_publishes():
    assert {name: md5[:8] for name, (_, md5) in readers.HAM_FILES.items()} == {
        "HAM10000_metadata.csv": "8f85fb1a",
        "HAM10000_images_part_1.zip": "4639bfa7",
        "HAM10000_images_part_2.zip": "da43d6cc",
    }
    assert readers.HAM_SERVER.startswith("https://dataverse.harvard.edu/")


# ---------------------------------------------------------------------- the reader's own pictures


def change_rows(root, change):
    """Rewrite labels.csv with rows of `change(n, row)`."""
    table = root / "labels.csv"
    write_table(table, [change(n, row) for n, row in enumerate(read_table(table))])


def columns(*names):
    return lambda n, row: {name: row[name] for name in names}


def read(root, fold=None, target="label", sensitive="group"):
    return readers.read_csv(root, target, sensitive, fold, False)


def test_csv_labels_groups_and_pictures(pictures):
    rows = {r["file"]: r for r in read_table(pictures / "labels.csv")}
    data = D.load("csv", pictures, 16)
    assert data.classes == ["cat", "dog", "fox"] and data.group_names == ["indoor", "outdoor"]
    assert sorted(i for s in data.splits.values() for i in s.ids) == sorted(rows)
    for split in data.splits.values():
        check_colours(split)
        assert split.images.shape[1:] == (3, 16, 16)
        assert [data.classes[c] for c in split.labels] == [rows[i]["label"] for i in split.ids]
        assert [data.group_names[g] for g in split.groups] == [rows[i]["group"] for i in split.ids]
        assert split.subjects.tolist() == [rows[i]["subject"] for i in split.ids]


def test_csv_without_split_is_divided_by_subject(pictures):
    table = read(pictures)
    parts = {p: set(table.subjects[table.split == p]) for p in ("train", "val", "test")}
    assert [len(parts[p]) for p in ("train", "val", "test")] == [23, 3, 6]  # of 32
    assert len(set.union(*parts.values())) == 32
    names = sorted(set.union(*parts.values()))
    assert parts["test"] not in (set(names[:6]), set(names[-6:]))  # drawn, not in the table's order
    assert read(pictures).split.tolist() == table.split.tolist()
    check_folds(partial(read, pictures))


def test_csv_without_subject_is_divided_by_picture(pictures):
    change_rows(pictures, columns("file", "label", "group"))
    table = read(pictures)
    parts, counts = np.unique(table.split, return_counts=True)
    assert dict(zip(parts.tolist(), counts.tolist())) == {"train": 67, "val": 10, "test": 19}
    check_folds(partial(read, pictures))


def test_csv_split_is_that_of_the_table_and_a_fold_overrides_it(pictures):
    part = lambda n: ("train", "train", " Test ", "VAL")[n // 3 % 4]
    change_rows(pictures, lambda n, row: {**row, "split": part(n)})
    meant = [part(n).strip().lower() for n in range(96)]
    assert read(pictures).split.tolist() == meant
    data = D.load("csv", pictures, 16)
    assert {p: len(s) for p, s in data.splits.items()} == {"train": 48, "val": 24, "test": 24}
    check_folds(partial(read, pictures))


def test_csv_as_programs_write_it(pictures):
    table, usual = pictures / "labels.csv", D.load("csv", pictures, 16).hash()
    text = table.read_text()
    forms = {
        "BOM": b"\xef\xbb\xbf" + text.encode(),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "both, and a blank line": b"\xef\xbb\xbf" + (text.replace("\n", "\r\n") + "\r\n").encode(),
        "no last line end": text.rstrip("\n").encode(),
        "tabs": text.replace(",", "\t").encode(),
        "quotes": '"' + text.replace(",", '","').replace("\n", '"\n"')[:-1],
        "spaces around labels": text.replace(",cat,", ", cat ,").replace(",dog,", ",dog ,"),
    }
    for name, form in forms.items():
        table.write_bytes(form if isinstance(form, bytes) else form.encode())
        assert D.load("csv", pictures, 16).hash() == usual, name


def test_csv_columns_in_another_order_and_beyond(pictures):
    usual = D.load("csv", pictures, 16).hash()
    change_rows(pictures, columns("age", "subject", "group", "label", "file"))
    assert D.load("csv", pictures, 16).hash() == usual


def test_csv_target_and_sensitive_name_other_columns(pictures):
    rows = {r["file"]: r for r in read_table(pictures / "labels.csv")}
    data = D.load("csv", pictures, 16, target="group", sensitive="age")
    assert data.classes == ["indoor", "outdoor"]
    assert data.group_names == ["5", "10", "30"]  # numbers in their own order
    split = data["train"]
    assert [data.group_names[g] for g in split.groups] == [rows[i]["age"] for i in split.ids]
    assert [data.classes[c] for c in split.labels] == [rows[i]["group"] for i in split.ids]


@pytest.mark.parametrize(
    "values",
    [
        ["2", "9", "10", "100"],
        ["0.5", "1", "1.5", "10"],
        ["-1", "0", "1", "10"],
        ["a", "b", "²", "③"],  # digits to Python, not numbers
        ["1", "2", "10", "a", "b"],
        ["nan", "no", "yes"],
    ],
)
def test_csv_numbers_are_sorted_as_numbers(pictures, values):
    change_rows(pictures, lambda n, row: {**row, "label": values[::-1][n % len(values)]})
    table = read(pictures)
    assert table.classes == values
    assert [table.classes[c] for c in table.labels][: len(values)] == values[::-1]


def test_csv_names_beside_the_folder_are_refused(pictures, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    table = pictures / "labels.csv"
    usual = table.read_text()
    for name in ("../outside.png", str(tmp_path / "outside.png"), "pictures/../../outside.png"):
        table.write_text(usual.replace("pictures/005.jpg", name))
        with pytest.raises(D.InputError, match="line 7: .*outside.png lies outside"):
            read(pictures)
    table.write_text(usual)
    change_rows(pictures, lambda n, row: {**row, "file": f"pictures/../{row['file']}"})
    assert None not in read(pictures).files  # a detour that stays inside


def test_csv_pictures_may_lie_on_another_disk(pictures, tmp_path):
    (pictures / "pictures").rename(tmp_path / "disk")
    (pictures / "pictures").symlink_to(tmp_path / "disk", target_is_directory=True)
    check_colours(D.load("csv", pictures, 16)["train"])
