"""data.py, and how datasets/ decodes: files whole or absent, splits, batches, pixels made once."""

import errno
import functools
import importlib
import inspect
import io
import json
import math
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zlib

import filelock
import numpy as np
import pytest
import torch
from conftest import check_colours, read_table, write_table
from PIL import Image, ImageOps

import data
import datasets
from data import Data, InputError, Split, batches, digest, load, locked, restore, save, with_bar
from datasets import Table, decode
from datasets._show import contact_sheet


def picture_split(n=50, size=16, seed=0):
    """A split of random pictures, without any file; 3 classes and 2 groups, unevenly filled."""
    rng = np.random.default_rng(seed)
    store = torch.from_numpy(rng.integers(0, 256, (n + 20, size, size, 3), dtype=np.uint8))
    rows = torch.from_numpy(rng.permutation(n + 20)[:n])
    labels = torch.from_numpy(np.minimum(rng.integers(0, 6, n), 2))
    groups = torch.from_numpy((rng.random(n) < 0.2).astype(np.int64))
    split = Split(store, rows, labels, groups, [f"id{r}" for r in rows], np.arange(n).astype(str))
    split.mean = torch.tensor([120.0, 130.0, 140.0])[:, None, None]
    split.std = torch.tensor([50.0, 60.0, 70.0])[:, None, None]
    return split


def pixels(batch, split):
    """The pictures of a batch before normalisation, (B, H, W, 3) uint8."""
    images = batch.images * split.std + split.mean
    assert (images - images.round()).abs().max() < 1e-3
    return images.round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def epoch_of(split, batch_size, *views, **more):
    return list(batches(split, batch_size, *views, **more))


# ----- the module --------------------------------------------------------------------------------


def test_importing_data_imports_neither_readers_nor_torchvision_nor_optuna():
    code = "import sys, data; print(*sys.modules)"
    folder = os.path.dirname(data.__file__)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    modules = done.stdout.split()
    assert "data" in modules and not {"datasets", "torchvision", "optuna", "scipy"} & set(modules)


def test_every_file_in_datasets_is_a_data_set_with_defaults():
    assert data.DATASETS == "celeba cifar10s csv ham10000 toy toy-source wider".split()
    for name in data.DATASETS:
        usual = data.defaults(name)
        assert list(usual)[:5] == ["image_size", "teacher", "student", "target", "sensitive"]
        assert ("skew" in usual) == (name == "cifar10s")


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_file_in_datasets_has_the_same_order(name):
    """A manual, DEFAULTS, helpers, and at the end `read`."""
    module = importlib.import_module(f"datasets.{name.replace('-', '_')}")
    manual, source = module.__doc__, inspect.getsource(module)
    words = ("WHERE", "FILES", "LABELS", "GROUPS", "SPLIT", "LICENCE")
    places = [manual.find(word) for word in words if word in manual]
    assert manual.startswith(f"{name}: ") and len(places) >= 5 and places == sorted(places)
    places = [source.index(f"\n{start}") for start in ("DEFAULTS = ", "def read(")]
    assert places == sorted(places) and "\ndef " not in source[places[1] + 1 :]


def test_digests_stand_for_values():
    usual = {"lr": 0.1, "weights": {"a": torch.arange(6.0).view(2, 3)}}
    assert digest(usual) == digest(dict(reversed(usual.items()))) == digest(usual)
    assert len(digest(usual)) == 12 and int(digest(usual), 16) >= 0
    other = {**usual, "weights": {"a": torch.arange(6.0).view(2, 3).T}}  # other bytes
    assert len({digest(usual), digest(other), digest({"lr": 0.1}), digest({"lr": "0.1"})}) == 4


def test_numbers_that_are_not_finite_are_named():
    data.check_finite({"loss": 1.0, "loss_kd": 0}, "epoch 3")
    values = {"loss": float("nan"), "loss_ce": 1.0, "loss_kd": float("-inf")}
    with pytest.raises(data.Diverged, match="loss is nan, loss_kd is -inf in epoch 3: .*--lr"):
        data.check_finite(values, "epoch 3")


def test_near_names():
    known = ["resnet18", "mobilenet_v3_small"]
    assert data.near("resnet19", known) == "resnet18" and data.near("xyz", known) == ""


# ----- files -------------------------------------------------------------------------------------


def in_child(work):
    """The number of a forked process that calls `work` and ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


class Code:
    """A pickle that makes the file `trap` when it is opened."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return open, (self.trap, "w")


def test_what_was_saved_is_restored(tmp_path):
    file = tmp_path / "new" / "folder" / "state.pt"
    save(file, {"weights": torch.arange(3), "log": [{"loss": 0.5, "auroc": None}], "epoch": 2})
    back = restore(file)
    assert back["weights"].tolist() == [0, 1, 2] and back["log"] == [{"loss": 0.5, "auroc": None}]
    save(file, {"weights": torch.zeros(1)})  # another takes its place
    assert list(restore(file)) == ["weights"]
    save(file.with_suffix(".json"), json.dumps({"ä": [1, None]}, ensure_ascii=False))
    assert restore(file.with_suffix(".json")) == {"ä": [1, None]}
    save(file.with_suffix(".npz"), b"bytes\r\n")
    assert file.with_suffix(".npz").read_bytes() == b"bytes\r\n"
    assert sorted(p.suffix for p in file.parent.iterdir()) == [".json", ".npz", ".pt"]


def test_files_that_cannot_be_written_are_explained_and_the_old_one_stays(tmp_path, monkeypatch):
    file, full = tmp_path / "state.pt", OSError(errno.ENOSPC, "No space left on device")
    save(file, [1])
    (tmp_path / "no folder").write_text("but a file")
    for place in (tmp_path / "no folder" / "x.pt", tmp_path / "no folder" / "below" / "x.pt"):
        for call in (lambda place: save(place, [2]), lambda place: locked(place).__enter__()):
            with pytest.raises(InputError, match=rf"{place} cannot be written \(.*\): make room"):
                call(place)

    def fail(*_):
        raise full

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(InputError, match="state.pt cannot be written .No space left"):
                save(file, [2])
        assert restore(file) == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["no folder", "state.pt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, r=real, n=name: order.append(n) or r(*a))
    save(tmp_path / "state.pt", [1])
    want = ["fsync", "replace", "fsync"]  # the file, its name, the folder
    assert order == (want if os.name == "posix" else want[:2])


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders are not synced")
def test_a_disk_that_syncs_no_folders_is_no_error(tmp_path, monkeypatch):
    def fail_of_folders(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(22, "Invalid argument")

    def lowest_free():
        os.close(number := os.dup(0))
        return number

    monkeypatch.setattr(os, "fsync", fail_of_folders)
    before = lowest_free()
    save(tmp_path / "state.pt", [1])
    assert restore(tmp_path / "state.pt") == [1] and lowest_free() == before


@pytest.mark.parametrize(
    "error", [PermissionError(13, "not yours"), NotImplementedError("no locks")]
)
def test_a_lock_that_cannot_be_had_is_explained(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(InputError, match="run cannot be written .(not yours|no locks).: make room"):
        locked(tmp_path / "run").__enter__()


@pytest.mark.skipif(not hasattr(os, "fork") or os.name == "nt", reason="needs fork and signals")
def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path):
    """As a real error of a real write: the process may make no file larger than 10,000 bytes."""
    import resource

    file = tmp_path / "state.pt"
    save(file, [1])

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            save(file, torch.zeros(100_000))
        except InputError as error:
            (tmp_path / "said").write_text(str(error))

    os.waitpid(in_child(write), 0)
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"{file} cannot be written (") and "\n" not in said
    assert restore(file) == [1] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "state.pt"
    save(file, [1])

    def write():
        monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        with locked(file):
            save(file, [2])

    assert os.waitpid(in_child(write), 0)[1] == signal.SIGKILL
    assert restore(file) == [1] and file.with_name("state.pt.tmp").exists()
    with locked(file):  # neither the lock nor the temporary file is in the way
        save(file, [3])
    assert restore(file) == [3] and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "code"])
@pytest.mark.parametrize("ending", [".pt", ".json"])
def test_damaged_files_and_files_with_code_are_refused(tmp_path, damage, ending):
    file, trap = tmp_path / f"state{ending}", tmp_path / "trap"
    save(file, '{"a": 1}' if ending == ".json" else {"a": torch.zeros(1000)})
    if damage == "cut":
        os.truncate(file, os.path.getsize(file) // 2)
    elif damage == "code":
        torch.save({"state": Code(str(trap))}, file)
    else:
        file.write_text("" if damage == "empty" else "this is no such file")
    with pytest.raises(InputError, match=f"state{ending} is damaged, .* delete it"):
        restore(file)
    assert not trap.exists()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "not yours"), torch.OutOfMemoryError("11 GB")]
)
def test_a_sound_file_that_cannot_be_read_is_not_called_damaged(error, tmp_path, monkeypatch):
    """Whoever deleted it as told would lose hours."""

    def fail(*_, **__):
        raise error

    file = tmp_path / "state.pt"
    with pytest.raises(InputError, match="state.pt cannot be read .FileNotFoundError"):
        restore(file)
    save(file, [1])
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match="state.pt cannot be read .*(not yours|11 GB)") as told:
        restore(file)
    assert "delete" not in str(told.value)


def test_a_state_that_does_not_fit_is_explained(tmp_path):
    layer = torch.nn.Linear(2, 3)
    data.put_back(layer, {"epoch": 4, **torch.nn.Linear(2, 3).state_dict()}, "a.pt")
    for state in (torch.nn.Linear(2, 4).state_dict(), {}, None, {"weight": 3, "bias": 4}):
        with pytest.raises(InputError, match="a.pt does not fit .* delete it") as error:
            data.put_back(layer, state, "a.pt")
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_others_wait_for_a_lock_say_so_once_and_get_it_when_its_owner_is_killed(tmp_path, capfd):
    path, held = tmp_path / "new" / "run", tmp_path / "held"

    def hold():
        with locked(path):
            held.touch()
            time.sleep(60)

    child = in_child(hold)
    while not held.exists():
        time.sleep(0.01)

    def end():
        time.sleep(1.5)
        os.kill(child, signal.SIGKILL)

    start, other = time.time(), in_child(end)
    with locked(path):
        waited = time.time() - start
    os.waitpid(child, 0), os.waitpid(other, 0)
    assert 1 < waited < 30
    assert capfd.readouterr().out == f"another process works on {path}: waiting for its end\n"
    with locked(path), locked(tmp_path / "another"):
        assert not capfd.readouterr().out

    def hold_for_a_moment():
        with locked(path):
            held.touch()
            time.sleep(0.2)

    held.unlink()
    child = in_child(hold_for_a_moment)
    while not held.exists():
        time.sleep(0.01)
    with locked(path):
        assert not capfd.readouterr().out  # nobody needs to hear of a wait that short
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_many_processes_need_is_made_once(tmp_path, capfd):
    file = tmp_path / "teacher" / "teacher.pt"

    def make():
        print("made", flush=True)
        time.sleep(0.2)
        return {"state": torch.ones(3)}

    children = [in_child(lambda: data.made_once(file, make)) for _ in range(3)]
    file.parent.mkdir(exist_ok=True)
    file.with_name("checkpoint.pt").touch()
    assert data.made_once(file, make)["state"].tolist() == [1, 1, 1]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert capfd.readouterr().out.count("made") == 1
    assert [p.name for p in file.parent.iterdir()] == ["teacher.pt"]


def test_what_was_made_once_is_read_under_its_lock(tmp_path, monkeypatch):
    """So another process, which makes room under that lock, cannot remove it in between."""
    file = tmp_path / "answers" / "epoch-001.pt"

    def watch(*arguments):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(file.parent.with_name(f".{file.parent.name}.lock")).acquire(timeout=0)
        return restore(*arguments)

    monkeypatch.setattr(data, "restore", watch)
    assert data.made_once(file, lambda: 5) == 5 == data.made_once(file, pytest.fail)
    file.unlink()
    with pytest.raises(ZeroDivisionError):
        data.made_once(file, lambda: 1 / 0)
    assert not file.exists()


# ----- order and augmentation --------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["", "cells"])
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
        for b in batches(split, 8, 3, e, "mirrored", balance)
        for i, image in zip(b.index, b.images)
    }
    twice = [i for i in range(len(split)) if (5, i) in views and (6, i) in views]
    same = sum(torch.equal(views[5, i], views[6, i]) for i in twice)
    assert same < len(twice) / 4


def test_the_batch_size_does_not_change_order_or_views():
    split = picture_split()
    small, large = epoch_of(split, 5, 0, 0, True), epoch_of(split, 25, 0, 0, True)
    for field in ("images", "labels", "groups", "index"):
        assert torch.equal(*(torch.cat([getattr(b, field) for b in e]) for e in (small, large)))


def test_an_epoch_shows_every_picture_once_without_the_incomplete_batch():
    split = picture_split(50)
    epoch = epoch_of(split, 8, 0, 0, True)
    assert [len(b.index) for b in epoch] == [8] * 6
    index = torch.cat([b.index for b in epoch])
    assert len(index.unique()) == 48
    assert torch.equal(torch.cat([b.labels for b in epoch]), split.labels[index])
    assert torch.equal(torch.cat([b.groups for b in epoch]), split.groups[index])
    left_out = [
        set(range(50)) - set(torch.cat([b.index for b in batches(split, 8, 0, e)]).tolist())
        for e in range(3)
    ]
    assert len(set(map(frozenset, left_out))) > 1  # not always the same ones are left out


def test_evaluation_shows_everything_in_order_and_normalised():
    split = picture_split(50)
    epoch = epoch_of(split, 8)
    assert [len(b.index) for b in epoch] == [8] * 6 + [2]
    assert torch.cat([b.index for b in epoch]).tolist() == list(range(50))
    shown = np.concatenate([pixels(b, split) for b in epoch])
    np.testing.assert_array_equal(shown, split.store[split.rows].numpy())
    np.testing.assert_array_equal(shown.transpose(0, 3, 1, 2), split.images.numpy())
    (batch,) = batches(split, len(split))
    reference = split.store[split.rows].numpy().astype(np.float64)
    reference = (reference - [120, 130, 140]) / [50, 60, 70]
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1), reference, rtol=1e-6, atol=1e-6)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("views", data.VIEWS)
def test_views_equal_a_slow_reference_pixel_for_pixel(views):
    ## For each picture some lie and shift must explain all of its pixels, and all lies and shifts
    ## must occur: the reference knows the rule, not the order in which random numbers are drawn.
    split, pad = picture_split(200), 2  # an eighth of 16 pixels
    lies = {"cropped": [0], "mirrored": [0, 4], "turned": [*range(8)]}[views]  # 4: mirrored first
    found = []
    for batch in batches(split, 40, 0, 0, views):
        for shown, n in zip(pixels(batch, split), batch.index):
            picture = split.store[split.rows[n]].numpy()
            padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
            explained = [
                (lie, down, right)
                for lie in range(8)
                for down in range(2 * pad + 1)
                for right in range(2 * pad + 1)
                for crop in [padded[down : down + 16, right : right + 16]]
                if np.array_equal(shown, np.rot90(crop[:, ::-1] if lie > 3 else crop, lie % 4))
            ]
            assert len(explained) == 1
            found += explained
    flips, downs, rights = np.array(found).T
    shares = np.bincount(flips, minlength=8)[lies] / 200
    assert {*flips} == {*lies} and abs(shares - 1 / len(lies)).max() < 0.15 / len(lies) ** 0.5
    for shifts in (downs, rights):
        assert (np.bincount(shifts, minlength=5) > 20).all()  # 40 each, on average
    drawn = [downs, rights, *([flips] if lies[1:] else [])]
    assert abs(np.corrcoef(drawn)[np.triu_indices(len(drawn), 1)]).max() < 0.25


def test_training_pictures_are_normalised_to_mean_0_and_std_1(pictures):
    loaded = load("csv", pictures, 16)
    images = torch.cat([b.images for b in batches(loaded["train"], 32)])
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), rtol=1e-4, atol=0)
    for part in ("val", "test"):
        assert torch.equal(loaded[part].mean, loaded["train"].mean)
        assert torch.equal(loaded[part].std, loaded["train"].std)


@pytest.mark.parametrize("balance", ["cells", "groups", "classes"])
@pytest.mark.parametrize("n", [48, 50])
def test_balance_gives_each_cell_an_equal_share(n, balance):
    split = picture_split(n)
    labels, groups = split.labels.numpy(), split.groups.numpy()
    cells = {"cells": 2 * labels + groups, "groups": groups, "classes": labels}[balance]
    there = np.unique(cells)
    assert len(set(np.bincount(cells)[there])) > 1  # the data are not even by themselves
    for epoch in range(3):
        own = data.cells_of(split, balance)
        order = data.balanced_order(own, np.random.default_rng(epoch))
        shares = np.bincount(cells[order], minlength=6)[there]
        assert len(order) == n and shares.max() - shares.min() <= 1
    ## Within a cell every picture has its chance, and the epoch has the usual length.
    epochs = [batches(split, 2, 0, epoch, balance=balance) for epoch in range(40)]
    seen = [torch.cat([batch.index for batch in epoch]) for epoch in epochs]
    assert {len(s) for s in seen} == {n}
    assert set(torch.cat(seen).tolist()) == set(range(n))
    ## What is said about the shares is what is drawn.
    drawn, classes = split.labels[torch.cat(seen)], int(split.labels.max()) + 1
    shares = torch.bincount(drawn, minlength=classes) / len(drawn)
    said = torch.tensor(data.class_shares(split, classes, balance))
    torch.testing.assert_close(shares, said, atol=0.03, rtol=0)
    shown = torch.bincount(torch.cat(seen), minlength=n) / 40
    assert (shown - data.times_shown(split, balance)).abs().max() < 1


def test_cells_without_pictures_take_no_share():
    """Group 0 lacks class 1 and nobody is of class 3: the other cells are shown equally often."""
    split = picture_split(48)
    split = split.subset((split.labels != 1) | (split.groups == 1))
    cells = split.labels * 2 + split.groups
    sizes = torch.bincount(cells)
    there = int((sizes > 0).sum())
    assert there < len(sizes)
    shown = torch.zeros(len(sizes)).index_add(0, cells, data.times_shown(split, "cells").float())
    torch.testing.assert_close(shown[sizes > 0], torch.full((there,), len(split) / there))
    (batch,) = batches(split, len(split), 0, balance="cells")
    drawn = torch.bincount(cells[batch.index], minlength=len(sizes))[sizes > 0]
    assert drawn.max() - drawn.min() <= 1
    shares = data.class_shares(split, 4)  # no logarithm of 0: it counts as one picture
    expected = torch.tensor([*torch.bincount(split.labels, minlength=3), 1.0]) / (len(split) + 1)
    torch.testing.assert_close(torch.tensor(shares), expected)


def test_balanced_batches_hold_cells_by_chance():
    """In another order in each epoch: a small batch is not the same few cells for ever."""
    cells = np.arange(48) % 6
    orders = [data.balanced_order(cells, np.random.default_rng(epoch)) for epoch in (0, 1)]
    assert (cells[orders[0]] != cells[orders[1]]).any()


def test_a_batch_larger_than_the_training_set_is_refused_and_evaluation_is_not():
    split = picture_split(20)
    with pytest.raises(InputError, match="batch of 32 .* there are 20"):
        next(batches(split, 32, 0))
    assert len(next(batches(split, 32)).index) == 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("store", ["cpu", "cuda"])
def test_batches_on_the_gpu_are_those_of_the_cpu(store):
    split, there = picture_split(), picture_split()
    there.store, there.rows = split.store.to(store), split.rows.to(store)
    for name in ("labels", "groups", "mean", "std"):
        setattr(there, name, getattr(split, name).cuda())
    for views in ((None, 0, False), (1, 2, True)):
        for a, b in zip(batches(split, 8, *views), batches(there, 8, *views)):
            assert b.images.device.type == "cuda"
            assert all(torch.equal(x, y.cpu()) for x, y in zip(a[1:4], b[1:4]))
            torch.testing.assert_close(a.images, b.images.cpu(), rtol=1e-6, atol=1e-6)


# ----- splits and hashes -------------------------------------------------------------------------


def test_subset():
    split = picture_split()
    part = split.subset([7, 3, 11])
    assert len(part) == 3 and part.ids == [split.ids[n] for n in (7, 3, 11)]
    assert part.labels.tolist() == split.labels[[7, 3, 11]].tolist()
    assert part.groups.tolist() == split.groups[[7, 3, 11]].tolist()
    assert part.subjects.tolist() == ["7", "3", "11"]
    assert torch.equal(part.images, split.images[[7, 3, 11]])
    assert torch.equal(part.mean, split.mean) and part.store is split.store
    assert part.subset(torch.tensor([2])).ids == [split.ids[11]]
    assert len(split.subset([])) == 0
    (batch,) = batches(part, 3)
    np.testing.assert_array_equal(pixels(batch, part), part.images.permute(0, 2, 3, 1).numpy())
    for mask in (split.groups == 1, (split.groups == 1).numpy()):  # a mask is not two positions
        part = split.subset(mask)
        assert len(part) == int((split.groups == 1).sum()) and (part.groups == 1).all()


def change_id(split):
    split.ids[-1] = "another"


def change_label(split):
    split.labels[-1] = (split.labels[-1] + 1) % 3


def change_group(split):
    split.groups[-1] = 1 - split.groups[-1]


def change_a_pixel(split):
    split.store[split.rows[-1], 3, 4, 1] ^= 1


def flip_a_picture(split):
    split.store[split.rows[-1]] = split.store[split.rows[-1]].flip(1)


def exchange_two_pixels(split):
    picture = split.store[split.rows[-1]].view(-1, 3)
    picture[[0, 1]] = picture[[1, 0]]


def exchange_two_pictures(split):
    split.rows[[0, -1]] = split.rows[[-1, 0]]


@pytest.mark.parametrize(
    "change",
    [change_id, change_label, change_group, change_a_pixel, flip_a_picture]
    + [exchange_two_pixels, exchange_two_pictures],
)
def test_hashes_see_ids_labels_groups_and_every_picture(change):
    def three(change_validation=None):
        splits = {
            part: picture_split(1050, 8, seed=n) for n, part in enumerate(("train", "val", "test"))
        }
        if change_validation:
            change_validation(splits["val"])
        return Data("x", ["a", "b", "c"], ["g", "h"], 8, splits)

    usual, other = three(), three(change)
    assert usual.hash() == three().hash() and len(usual.hash()) == 12
    assert len(usual["val"].hash()) == 16 and int(usual["val"].hash(), 16) >= 0
    assert other.hash() != usual.hash() and other["val"].hash() != usual["val"].hash()
    assert other.hash("train") == usual.hash("train") != usual.hash("test")
    blind = other.hash("val", groups=False) == usual.hash("val", groups=False)
    assert blind == (change is change_group)


def test_hashes_tell_names_sizes_and_splits_apart():
    splits = {part: picture_split(seed=n) for n, part in enumerate(("train", "val", "test"))}
    exchanged = {"train": splits["train"], "val": splits["test"], "test": splits["val"]}
    forms = [("x", 16, splits), ("y", 16, splits), ("x", 32, splits), ("x", 16, exchanged)]
    hashes = [Data(name, ["a"], ["g"], size, parts).hash() for name, size, parts in forms]
    assert len(set(hashes)) == 4


def test_a_bar_tells_what_is_left_of_everything(monkeypatch):
    """On a terminal; elsewhere it prints nothing. In 80 columns."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (Terminal(), io.StringIO()):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr", stream)
            bar = with_bar(range(30), "student 3/4", 120, initial=60, smoothing=0, mininterval=0)
            bar.initial, bar.start_t = 0, time.time() - 60  # half of it took a minute
            assert list(bar) == list(range(30))
        shown = [part for part in stream.getvalue().split("\r") if "left" in part]
        if not stream.isatty():
            assert not stream.getvalue()
            continue
        assert shown and max(map(len, shown)) < 80
        assert shown[0].startswith("student 3/4  51%|") and shown[0].endswith("| 00:58 left")


def test_describe_counts_every_cell(pictures, monkeypatch):
    loaded = load("csv", pictures, 16)
    monkeypatch.setenv("COLUMNS", "150")
    text, rows = loaded.describe(), read_table(pictures / "labels.csv")
    cells = {r["file"]: (r["group"], r["label"]) for r in rows}
    head, name, notes, subjects, split, flat, *lines = text.splitlines()
    assert (head, notes.strip()) == ("csv, 16 pixels a side", "rows: 96")
    assert name.strip() == "name on pages: pictures"
    assert subjects.strip() == "subjects: 32 of the column 'subject' (see --subject)"
    assert split.strip() == "split: by subject; another with another --target or --sensitive"
    assert flat.strip().startswith("pictures of nearly one colour: 96: pictures/000.png, ")
    parts = lines[0].removeprefix("pictures, share").split()
    heads = list(zip(parts, lines[1].removeprefix("of the group").split()))
    assert heads == [(p, g) for p in ("train", "val", "test") for g in ("indoor", "outdoor")]
    told = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert list(told) == ["cat", "dog", "fox", "all"]
    for n, (part, group) in enumerate(heads):
        there = [cells[i] for i in loaded[part].ids]
        total = sum(g == group for g, _ in there)
        for label in ("cat", "dog", "fox"):
            count = there.count((group, label))
            assert told[label][2 * n : 2 * n + 2] == [str(count), f"{count / total:.1%}"]
        assert told["all"][2 * n : 2 * n + 2] == [str(total), "100%"]
    assert len({len(line) for line in lines}) == 1  # columns stand below each other
    monkeypatch.setenv("COLUMNS", str(len(lines[0]) - 1))  # too narrow: splits below each other
    told_anew = loaded.describe().splitlines()
    assert max(map(len, told_anew)) < len(lines[0])
    stacked = told_anew[-3 * len(lines) :]
    assert len(stacked) == 3 * len(lines)
    for n, part in enumerate(("train", "val", "test")):
        head, groups, *rows = stacked[n * len(lines) : (n + 1) * len(lines)]
        assert head.split()[2:] == [part, part] and groups.split()[3:] == ["indoor", "outdoor"]
        for name, *numbers in map(str.split, rows):
            assert numbers == told[name][4 * n : 4 * n + 4]


def test_contact_sheet_shows_training_pictures_of_every_cell(pictures, tmp_path, capsys):
    loaded = load("csv", pictures, 64)
    contact_sheet(loaded, tmp_path / "new", shown=3)
    (file,) = (tmp_path / "new").iterdir()
    assert str(file) in capsys.readouterr().out
    sheet, train = np.asarray(Image.open(file)).astype(int), loaded["train"]
    left = sheet.shape[1] - 3 * 66  # of the pictures: there are words before them
    assert len(sheet) == 6 * 66 and left > 50
    for k in range(6):  # cat indoor, cat outdoor, dog indoor, ...
        cell = (train.labels == k // 2) & (train.groups == k % 2)
        meant = train.subset(cell).images.float().mean(dim=(2, 3))
        for n in range(min(3, len(meant))):
            shown = sheet[66 * k + 32, left + 66 * n + 32]
            assert (abs(meant - torch.from_numpy(shown)).max(dim=1).values < 4).any()
        assert (sheet[66 * k : 66 * k + 66, :left] < 100).any()  # something is written there


@pytest.mark.parametrize("name", ["ham10000", "cifar10s"])  # with and without views
def test_smoke_takes_some_of_every_cell(name, originals, tmp_path, monkeypatch):
    root = shutil.copytree(originals / name, tmp_path / name)
    first = Table.first_of_each_cell
    monkeypatch.setattr(Table, "first_of_each_cell", lambda table, most: first(table, 3))
    whole = load(name, root, 16)
    few = load(name, root, 16, smoke=True)
    size = len(whole.classes) * len(whole.group_names)
    assert len(few["train"].store) == sum(map(len, few.splits.values()))  # no other is decoded
    for part in ("train", "val", "test"):
        cells = [len(whole.group_names) * d[part].labels + d[part].groups for d in (whole, few)]
        counts = [np.bincount(c, minlength=size) for c in cells]
        assert counts[1].tolist() == np.minimum(counts[0], 3).tolist()
        assert set(few[part].ids) <= set(whole[part].ids)
        place = [whole[part].ids.index(i) for i in few[part].ids]
        assert torch.equal(few[part].images, whole[part].images[place])
        assert few[part].subjects.tolist() == whole[part].subjects[place].tolist()


def test_train_share_keeps_whole_subjects_and_all_other_splits(originals, tmp_path):
    root = shutil.copytree(originals / "ham10000", tmp_path / "ham10000")
    whole, half = load("ham10000", root, 16), load("ham10000", root, 16, train_share=0.5)
    assert [half[part].ids == whole[part].ids for part in ("val", "test")] == [True, True]
    subjects = set(whole["train"].subjects)
    kept = set(half["train"].subjects)
    assert kept < subjects and len(kept) == math.ceil(len(subjects) / 2)
    same = [i for i, s in zip(whole["train"].ids, whole["train"].subjects) if s in kept]
    assert half["train"].ids == same  # all pictures of the subjects that are kept
    assert load("ham10000", root, 16, train_share=0.5)["train"].ids == same


# ----- from a file to pixels, once ---------------------------------------------------------------


def test_pictures_larger_than_memory_are_only_read(originals, tmp_path, monkeypatch, recwarn):
    """Where the system does not promise a writable copy of all pixels, and without a warning."""
    folder = shutil.copytree(originals / "csv", tmp_path / "csv")
    modes, opened = [], np.lib.format.open_memmap

    def too_large(path, mode, *more):
        modes.append(mode)
        if mode == "c":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return opened(path, mode, *more)

    whole = load("csv", folder, 16, out=tmp_path)
    monkeypatch.setattr(np.lib.format, "open_memmap", too_large)
    read = load("csv", folder, 16, out=tmp_path)
    assert modes == ["c", "r"] and not recwarn
    for one, other in zip(*(batches(d["train"], 8, 0, views="turned") for d in (whole, read))):
        assert torch.equal(one.images, other.images)


def test_pictures_are_decoded_once(pictures, tmp_path, monkeypatch, capsys):
    load = functools.partial(data.load, out=tmp_path)
    first = load("csv", pictures, 16)
    (file,) = tmp_path.glob("decoded/*.npy")
    before = os.stat(file).st_mtime_ns, file.read_bytes()
    assert "decoded 96 pictures" in capsys.readouterr().out
    check_colours(first["train"])

    def fail(*_, **__):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "decode", fail)
        second = load("csv", pictures, 16)
    assert "decoded" not in capsys.readouterr().out
    assert torch.equal(first["test"].images, second["test"].images)
    second["test"].store[:] = 0  # the memory is ours, the file is not
    assert (os.stat(file).st_mtime_ns, file.read_bytes()) == before

    other = load("csv", pictures, 24)
    assert other["train"].images.shape[1:] == (3, 24, 24)
    load("csv", pictures, 16, smoke=True)  # a quick try does not replace the pixels of all
    assert len(list(tmp_path.glob("decoded/*.npy"))) == 3 and file.exists()


def test_a_picture_that_was_replaced_is_decoded_again(pictures, tmp_path):
    """In place, with the same number of bytes; the older pixels are removed."""
    path, shown = pictures / "pictures/000.bmp", []
    cell = read_table(pictures / "labels.csv")
    cell[0]["file"] = "pictures/000.bmp"
    write_table(pictures / "labels.csv", cell)
    for n, colour in enumerate([(200, 30, 30), (0, 250, 0), (0, 250, 0)]):
        if n < 2:
            Image.new("RGB", (20, 18), colour).save(path)
        loaded = load("csv", pictures, 16, out=tmp_path)
        (part,) = [p for p in loaded.splits.values() if "pictures/000.bmp" in p.ids]
        picture = part.images[part.ids.index("pictures/000.bmp")]
        assert picture.float().mean(dim=(1, 2)).tolist() == list(colour)
        shown.append(loaded.hash())
        assert len(list(tmp_path.glob("decoded/*.npy"))) == 1
        assert len(list(tmp_path.glob("decoded/*.json"))) == 1
    assert shown[0] != shown[1] == shown[2]


def test_a_picture_that_kept_size_and_time_is_decoded_again(pictures, tmp_path):
    """As cp -p and rsync -a leave it."""
    path, hashes = pictures / "pictures/000.bmp", []
    rows = read_table(pictures / "labels.csv")
    rows[0]["file"] = "pictures/000.bmp"
    write_table(pictures / "labels.csv", rows)
    picture = Image.new("RGB", (20, 18), "red")
    picture.paste("green", (0, 0, 9, 18))
    for mirrored in (False, True):
        (ImageOps.mirror(picture) if mirrored else picture).save(path)
        os.utime(path, ns=(10**18, 10**18))
        hashes.append(load("csv", pictures, 16, out=tmp_path).hash())
    assert hashes[0] != hashes[1]


def test_the_file_of_pixels_appears_only_when_complete(pictures, tmp_path, monkeypatch):
    there, load = [], functools.partial(data.load, out=tmp_path)

    def watch(*arguments, **more):
        there.extend(tmp_path.glob("decoded/*.npy"))
        return decode(*arguments, **more)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "decode", watch)
    (pictures / "pictures/017.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="017.jpg"):
        load("csv", pictures, 16)
    if hasattr(os, "posix_fallocate"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", fail)
            with pytest.raises(InputError, match="npy cannot be written .No space left on device"):
                load("csv", pictures, 16, skip_bad=True)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "refuse_faults", lambda f, *_: f and 1 / 0)  # a fault of ours
        with pytest.raises(ZeroDivisionError):
            load("csv", pictures, 16)
    assert [p.suffix for p in tmp_path.glob("decoded/*")] == [".lock"]
    load("csv", pictures, 16, skip_bad=True)
    assert len(list(tmp_path.glob("decoded/*.npy"))) == 1 and not there
    assert not list(tmp_path.rglob("*.tmp"))


def test_pixels_are_kept_under_the_folder_of_results_and_not_in_the_users(pictures, tmp_path):
    before = {*pictures.rglob("*")}
    check_colours(load("csv", pictures, 16, out=tmp_path / "results")["test"])
    assert {*pictures.rglob("*")} == before
    assert len(list(tmp_path.glob("results/decoded/decoded-16px-csv-*.npy"))) == 1


def test_exif_rotation_is_undone(tmp_path):
    corner = Image.new("RGB", (40, 40))  # black, with one red corner: it shows which way is up
    corner.paste((255, 0, 0), (0, 0, 20, 20))
    exif, file = Image.Exif(), tmp_path / "turned.png"
    for code, place in {1: (0, 0), 3: (1, 1), 6: (0, 1), 8: (1, 0)}.items():  # row, column
        exif[0x0112] = code
        corner.save(file, exif=exif)
        quarters = decode(file, 2)[..., 0]
        assert np.argwhere(quarters > 128).tolist() == [list(place)], code


GREY, WHITE, BROWN = (100, 100, 100), (255, 255, 255), (200, 100, 50)
KINDS_OF_PICTURES = [  # mode, ending, what its pixels are, what we must see
    ("RGB", "png", BROWN, BROWN),
    ("RGB", "jpg", BROWN, BROWN),
    ("L", "png", 100, GREY),
    ("L", "jpg", 100, GREY),
    ("LA", "png", (100, 255), GREY),
    ("1", "png", 1, WHITE),
    ("RGBA", "png", (*BROWN, 255), BROWN),
    ("P", "png", BROWN, BROWN),
    ("P", "gif", BROWN, BROWN),
    ("CMYK", "jpg", (10, 20, 30, 40), (207, 198, 190)),  # (1 - C) (1 - K)
    ("RGBA", "png", (*BROWN, 0), WHITE),  # a colour that is hidden
    ("RGBA", "png", (0, 0, 0, 51), (204, 204, 204)),
    ("LA", "png", (0, 0), WHITE),
    ("LA", "tiff", (0, 0), WHITE),
    ("P transparent", "png", 0, WHITE),
    ("P transparent", "gif", 0, WHITE),
]


@pytest.mark.parametrize(("mode", "ending", "content", "meant"), KINDS_OF_PICTURES)
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, ending, content, meant):
    file, more = tmp_path / f"picture.{ending}", {}
    if mode == "I;16":
        picture = Image.fromarray(np.full((9, 9), content, np.uint16))
    elif mode == "P":
        picture = Image.new("RGB", (9, 9), content).convert("P", palette=Image.Palette.ADAPTIVE)
    elif mode == "P transparent":
        picture, more = Image.new("P", (9, 9), content), {"transparency": content}
        picture.putpalette([0, 0, 0, 255, 255, 255])
    else:
        picture = Image.new(mode, (9, 9), content)
    picture.save(file, **more)
    decoded = decode(file, 4)
    assert decoded.shape == (4, 4, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, np.broadcast_to(meant, (4, 4, 3)), atol=3)


@pytest.mark.parametrize(
    ("kind", "ending", "top", "white"),
    [
        ("uint16", "png", 65535, 65535),
        ("uint16", "png", 4095, 4095),  # 12 bits stored in 16
        ("uint16", "tiff", 3000, 4095),
        (">u2", "tiff", 3000, 4095),
        ("uint16", "tiff", 200, 255),  # 8 bits stored in 16
        ("int32", "tiff", 65535, 65535),
        ("int32", "tiff", 3000, 4095),
        ("float32", "tiff", 0.9, 1),
        ("float32", "tiff", 200.5, 255),
        ("float32", "tiff", 40000.5, 65535),
        ("int32", "tiff", 65536, "from 0 to 65536: save it with 8 or 16 bits"),
        ("int32", "tiff", -7, "from -7 to 0: save"),
        ("float32", "tiff", -0.5, "from -0.5 to 0: save"),
        ("float32", "tiff", float("nan"), "from nan to nan: save"),
    ],
)
def test_grey_of_more_than_8_bits_keeps_its_levels(tmp_path, kind, ending, top, white):
    levels = np.linspace(0, top, 64).reshape(8, 8)
    Image.fromarray(levels.astype(kind)).save(tmp_path / f"picture.{ending}")
    if isinstance(white, str):
        with pytest.raises(ValueError, match=f"its grey goes {white}"):
            decode(tmp_path / f"picture.{ending}", 8)
        return
    decoded = decode(tmp_path / f"picture.{ending}", 8)
    meant = np.repeat(255 * levels[..., None] / white, 3, axis=-1)
    np.testing.assert_allclose(decoded, meant, atol=1)


@pytest.mark.parametrize(
    ("kind", "tops", "white", "brightest"),
    [
        ("uint16", [4095, 3000, 4200], 65535, 4200),  # one device, and one bright pixel
        ("uint16", [4095, 200, 3000], 4095, 4095),  # one dark picture
        ("float32", [0.9, 1.1, 0.2], 255, 1.1),
        ("float32", [0.9, 0.1, 0.2], 1, 0.9),
    ],
)
def test_grey_has_one_range_in_a_whole_data_set(pictures, kind, tops, white, brightest):
    rows = read_table(pictures / "labels.csv")
    for n, row in enumerate(rows):
        ramp, row["file"] = np.linspace(0, tops[n % 3], 256).reshape(16, 16), f"{n}.tiff"
        Image.fromarray(ramp.astype(kind)).save(pictures / row["file"])
    write_table(pictures / "labels.csv", rows)
    for _ in range(2):  # the second time from the file of pixels
        loaded = load("csv", pictures, 16)
        assert loaded.notes[datasets.WHITE] == white
        told = loaded.notes["the brightest level of these pictures"]
        np.testing.assert_allclose(told, brightest, rtol=1e-6)
        for split in loaded.splits.values():
            for name, picture in zip(split.ids, split.images):
                meant = np.linspace(0, 255 * tops[int(name[:-5]) % 3] / white, 256)
                np.testing.assert_allclose(picture[0].flatten().numpy(), meant, atol=1)


def chunk(kind, content):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png_of_16_bits(path, channels, top):
    """A PNG with 16 bits a channel, which Pillow does not write: 3 are RGB, 4 RGBA, 2 LA."""
    levels = np.linspace(0, top, 64 * channels).astype(">u2").reshape(8, 8 * channels)
    lines = b"".join(b"\0" + line.tobytes() for line in levels)
    header = struct.pack(">IIBBBBB", 8, 8, 16, {3: 2, 4: 6, 2: 4}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def tiff_of_16_bits(path, channels, top, planes=1):
    """A TIFF with 16 bits a channel: 3 are RGB, 4 with transparency; planes: one after another."""
    levels = np.linspace(0, top, 64 * channels).astype("<u2").tobytes()
    per = len(levels) // (channels if planes == 2 else 1)
    number = len(levels) // per
    tags = [(256, 4, [8]), (257, 4, [8]), (258, 3, [16] * channels), (259, 3, [1]), (262, 3, [2])]
    tags += [(273, 4, [0] * number), (277, 3, [channels]), (278, 4, [8]), (279, 4, [per] * number)]
    tags += [(284, 3, [planes])] + [(338, 3, [2])] * (channels == 4)
    start, more = 8 + 2 + 12 * len(tags) + 4, b""
    entries = b""
    for tag, kind, values in tags:
        if tag == 273:
            values = [start + 64 + per * k for k in range(number)]
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place, more = struct.pack("<I", start + len(more)), more + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + place
    assert len(more) <= 64
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    path.write_bytes(head + more.ljust(64, b"\0") + levels)


@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize(
    ("write", "ending", "how"),
    [(png_of_16_bits, "png", (k,)) for k in (2, 3, 4)]
    + [(tiff_of_16_bits, "tiff", how) for how in ((3,), (4,), (3, 2))],
)
def test_colour_of_16_bits_is_refused(tmp_path, write, ending, how, top):
    path = tmp_path / f"picture.{ending}"
    write(path, how[0], top, *how[1:])
    with Image.open(path) as image:
        image.load()  # it is whole: Pillow reads it, and keeps the high bytes alone
        assert image.mode in ("RGB", "RGBA")
    with pytest.raises(ValueError, match="16 bits for each colour, of which 8 are lost: save it"):
        decode(path, 8)


def test_pictures_of_nearly_one_colour_are_named(pictures):
    rng = np.random.default_rng(0)
    for path in sorted(pictures.glob("pictures/*"))[2:]:
        noise = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    loaded = load("csv", pictures, 16)
    told = "pictures of nearly one colour"
    assert loaded.notes[told] == ["pictures/000.png", "pictures/001.jpg"]
    assert f"{told}: 2: pictures/000.png, pictures/001.jpg\n" in loaded.describe()


def test_groups_of_one_class_are_named(pictures):
    """They have no AUROC, and the worst group, by which an epoch may be chosen, leaves them out."""
    rows, told = read_table(pictures / "labels.csv"), "GROUPS OF ONE CLASS IN val"
    group = rows[0]["group"]
    for n, row in enumerate(rows):
        row["split"] = ("train", "train", "val", "test")[n // 3 % 4]  # a person has three pictures
    write_table(pictures / "labels.csv", rows)
    assert not any(told in note for note in load("csv", pictures, 16).notes)
    kept = [r for r in rows if (r["split"], r["group"]) != ("val", group) or r["label"] == "cat"]
    assert len(kept) < len(rows)
    write_table(pictures / "labels.csv", kept)
    ((what, groups),) = [n for n in load("csv", pictures, 16).notes.items() if told in n[0]]
    assert groups == [group] and "left out of the worst group of AUROC" in what


def test_a_word_in_place_of_a_subject_is_noted(pictures):
    """0000 of a quarter of all pictures is no person, and moves them all into one split."""
    rows, told = read_table(pictures / "labels.csv"), "THE LARGEST SUBJECT"
    for n, row in enumerate(rows):
        row["subject"] = f"p{n // 2}"
    write_table(pictures / "labels.csv", rows)
    assert told not in load("csv", pictures, 16).notes
    for row in rows[::4]:
        row["subject"] = "0000"
    write_table(pictures / "labels.csv", rows)
    said = f"'0000', of {len(rows[::4])} pictures: is it one subject, or a word for none?"
    assert load("csv", pictures, 16).notes[told] == said


def test_a_picture_under_the_names_of_two_subjects_is_counted(pictures):
    """They may stand in training and in test; of one subject they cannot."""
    rows, told = read_table(pictures / "labels.csv"), "EQUAL PICTURES OF SEVERAL SUBJECTS"
    rng = np.random.default_rng(0)
    for row in rows:
        row["file"] = row["file"].replace(".jpg", ".png")
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(pictures / row["file"])
    write_table(pictures / "labels.csv", rows)
    assert told not in load("csv", pictures, 16).notes
    first = next(row for row in rows if row["subject"] != rows[0]["subject"])
    own = next(row for row in rows[1:] if row["subject"] == rows[0]["subject"])
    pair = f"{rows[0]['file']} = {first['file']}"
    for other, named in ((own, None), (first, [pair])):
        shutil.copy(pictures / rows[0]["file"], pictures / other["file"])
        loaded = load("csv", pictures, 16)
        assert loaded.notes.get(told) == named
    assert f"{told}: 1: {pair}\n" in loaded.describe()
    (pictures / rows[0]["file"]).unlink()  # what is left out has no pixels to be equal
    (pictures / first["file"]).write_text("no picture")
    (pictures / rows[-1]["file"]).write_text("no picture")
    assert told not in load("csv", pictures, 16, skip_bad=True).notes


def test_the_centre_square_is_taken_and_shrunk_smoothly(tmp_path):
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    wide.paste((0, 255, 0), (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", 8)[:, 1:-1] == [0, 255, 0]).all()
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    small = decode(tmp_path / "board.png", 8)  # without antialiasing 0 or 255
    assert abs(small.astype(int) - 127).max() < 20
