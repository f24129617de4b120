"""A teacher's remembered answers are its live ones, and a wrong file is never used."""

import importlib
import json
import shutil
import sys

import ckd
import pytest
import torch
from conftest import arguments

import data as D
import runs as R


def run(name, out, monkeypatch, *flags):
    """A script's main on the toy in smoke mode: (result without times, states of the student)."""
    module = importlib.import_module(name)
    small = ["--smoke", "--device", "cpu", "--teacher", "convnet8", "--student", "convnet4"]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *small, "--out", str(out), *flags])
    module.main()
    newest = lambda folder, names: max(folder.glob(names), key=lambda path: path.stat().st_mtime_ns)
    path = newest(out / "smoke" / "toy" / name, "*.json")
    result = {k: v for k, v in json.loads(path.read_text()).items() if k != "times"}
    student = newest(out.parent / "runs" / "smoke" / "toy" / name, "*/student.pt")
    return result, torch.load(student, weights_only=True)["states"]


def same(one, other):
    """Two runs have equal results and, bit by bit, equal students."""
    assert one[0] == other[0] and one[1].keys() == other[1].keys()
    for rule, state in one[1].items():
        for weight, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[1][rule][weight]))


@pytest.fixture
def counted(monkeypatch):
    """Counts the batches that teachers answer live."""
    calls, live = [], R.live
    count = lambda network, batch: calls.append(batch) or live(network, batch)
    monkeypatch.setattr(R, "live", count)
    return calls


@pytest.mark.parametrize(
    "name, flags",
    [
        ("ckd", []),
        ("ckd", ["--balance"]),
        ("kdpp", []),
        ("adversarial_kd", []),
        ("bird", ["--alpha", "0.5"]),  # takes a meta set out of the training pictures
        ("at", []),  # hooks its teacher
    ],
)
def test_remembered_is_live_bit_by_bit(name, flags, tmp_path, monkeypatch, counted):
    """Whole runs: live, remembering, and reading what the one before has remembered."""
    alive = run(name, tmp_path / "live" / "results", monkeypatch, *flags, "--live-teacher")
    answers = tmp_path / "runs" / "smoke" / "toy" / "answers"
    assert not answers.exists()
    counted.clear()
    same(alive, run(name, tmp_path / "first", monkeypatch, *flags))
    first = len(counted)
    same(alive, run(name, tmp_path / "second", monkeypatch, *flags, "--restart"))
    files = len([*answers.glob("*.pt")]) if answers.exists() else 0
    steps = (0 if name == "at" else 2) * ((420 if name == "bird" else 480) // 32)
    assert first - (len(counted) - first) == steps and files == (2 if steps else 0)


def test_other_methods_and_settings_read_the_same_files(tmp_path, monkeypatch, counted):
    run("ckd", tmp_path / "results", monkeypatch)
    counted.clear()
    for flags in (["--alpha", "0.5"], ["--temperature", "1"]):
        run("ckd", tmp_path / flags[1], monkeypatch, *flags)
    run("rkd", tmp_path / "results", monkeypatch)
    assert not counted
    for flags in (["--seed", "1"], ["--balance"], ["--batch-size", "16"], ["--lr", "0.01"]):
        run("ckd", tmp_path / flags[0], monkeypatch, *flags)
        assert counted, flags
        counted.clear()


def epoch(args, data, teacher, number=0, split=None, seed=0, balance=False):
    """The teacher's answers to an epoch as `fit` asks for them."""
    split, answers = split or data["train"], []
    views = (args.batch_size, seed, number, True, balance)
    for batch in D.batches(split, *views):
        R.mark(batch, split, views)
        answers.append(teacher(batch))
    return answers


def setting(folder, seed=0, *flags):
    """Arguments, the data, and a function that makes the same teacher again and again."""
    args, data = arguments(ckd, *flags), D.load("toy", smoke=True)

    def make():
        torch.manual_seed(seed)
        return ckd.Teacher(ckd.Network(args, "convnet2", 6), R.Memory(folder))

    return args, data, make


def expected(args, data, teacher, **views):
    return epoch(args, data, ckd.Teacher(teacher.network), **views)


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other) for a, b in zip(*pair)
    )


def test_an_epoch_is_read_again_and_answers_are_the_callers_own(tmp_path, counted):
    args, data, make = setting(tmp_path)
    first = epoch(args, data, make())
    counted.clear()
    for feats, logits in epoch(args, data, make()):
        feats.zero_(), logits.zero_()
    teacher = make()
    assert equal(epoch(args, data, teacher), first) and not counted
    assert equal(first, expected(args, data, teacher))
    views = (args.batch_size, 0, 0, True, False)
    batch = next(D.batches(data["train"], *views))
    R.mark(batch, data["train"], views)
    for answers in (teacher(batch), teacher(batch)):  # twice, and changed in between
        assert torch.equal(answers[0], first[0][0])
        answers[0].zero_()


def test_whatever_answers_depend_on_makes_another_file(tmp_path, monkeypatch):
    """Each of these, changed alone, is answered as live and not with the file of another."""
    args, data, make = setting(tmp_path)
    epoch(args, data, make())
    train, files = data["train"], 1

    def check(what, teacher=None, **views):
        nonlocal files
        teacher = teacher or make()
        assert equal(epoch(args, data, teacher, **views), expected(args, data, teacher, **views))
        files += 1
        assert len([*tmp_path.glob("*.pt")]) == files, what

    check("epoch", number=1)
    check("seed", seed=1)
    check("balance", balance=True)
    check("weights", setting(tmp_path, 1)[2]())
    check("a part of the split", split=train.subset(range(len(train) - 40)))
    check("another order", split=train.subset(torch.arange(len(train)).flip(0)))
    changed = train.subset(range(len(train)))
    changed.labels = train.labels.flip(0)
    check("cells to draw from", split=changed, balance=True)
    assert equal(epoch(args, data, make(), split=changed), expected(args, data, make()))
    assert len([*tmp_path.glob("*.pt")]) == files, "groups that decide nothing"
    changed = train.subset(range(len(train)))
    changed.mean = train.mean + 1
    check("normalisation", split=changed)
    changed = train.subset(range(len(train)))
    changed.store = train.store.clone()
    changed.store[train.rows[3], 0, 0, 0] ^= 1
    check("one bit of one picture", split=changed)
    changed.store[train.rows[3], 0, 0, 0] ^= 2  # in place, under the eyes of the same memory
    check("another bit", split=changed)
    statistics = make()
    statistics.network.body[0][1].running_var.mul_(2)
    check("a statistic", statistics)

    class Other(ckd.Network):  # the same weights in other code
        def forward(self, images):
            return super().forward(images * 1.01)

    teacher = make()
    teacher.network.__class__ = Other
    check("code of the network", teacher)
    args.batch_size = 16
    check("batch size")
    args.batch_size = 32
    text = type(tmp_path)(D.__file__).read_text()
    (tmp_path / "data").mkdir()
    shutil.copy(D.__file__, tmp_path / "data" / "data.py")
    (tmp_path / "data" / "data.py").write_text(text.replace("height // 8", "height // 4"))
    monkeypatch.setattr(D, "__file__", str(tmp_path / "data" / "data.py"))
    check("data.py")
    monkeypatch.setattr(R, "machine", lambda device: {"device": "another"})
    check("machine")


def test_only_the_marked_pictures_themselves_are_known(tmp_path, counted):
    """Parts, changed copies, pictures changed in place and unmarked ones are answered live."""
    args, data, make = setting(tmp_path)
    epoch(args, data, make())
    views, teacher = (args.batch_size, 0, 0, True, False), make()
    for change in (
        lambda batch: batch._replace(images=batch.images[:5]),
        lambda batch: batch._replace(images=batch.images.flip(3)),
        lambda batch: batch._replace(images=batch.images.clone()),
        lambda batch: batch.images.add_(1) is None or batch,
    ):
        counted.clear()
        batch = next(D.batches(data["train"], *views))
        R.mark(batch, data["train"], views)
        changed = change(batch)
        answer = teacher(changed)
        assert torch.equal(answer[1], teacher.network(changed.images)[1]) and len(counted) == 1
    counted.clear()
    teacher(next(D.batches(data["train"], *views)))
    teacher.network.train()
    batch = next(D.batches(data["train"], *views))
    R.mark(batch, data["train"], views)
    teacher(batch)
    assert len(counted) == 2


def test_hooks_see_every_pass(tmp_path):
    args, data, make = setting(tmp_path)
    epoch(args, data, make())
    teacher, seen = make(), []
    teacher.network.body[1].register_forward_hook(lambda *all: seen.append(all))
    assert len(epoch(args, data, teacher)) == len(seen) > 3


def test_a_teacher_that_changes_is_live_and_leaves_no_file(tmp_path):
    args, data, make = setting(tmp_path)
    for prepare in (lambda: None, lambda: epoch(args, data, make())):  # nothing to read; a file
        prepare()
        files = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
        teacher, views = make(), (args.batch_size, 0, 0, True, False)
        for batch in D.batches(data["train"], *views):
            R.mark(batch, data["train"], views)
            answer = teacher(batch)
            with torch.no_grad():
                assert torch.equal(answer[1], teacher.network(batch.images)[1]), batch.step
                teacher.network.head.weight.mul_(1.01)
        assert files == {path: path.read_bytes() for path in tmp_path.glob("*.pt")}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("something else"),
        lambda path: torch.save({"key": "of another"}, path),
        lambda path: torch.save({**torch.load(path), "key": "of another"}, path),
        lambda path: torch.save([], path),
    ],
)
def test_spoilt_and_foreign_files_are_ignored_and_made_anew(spoil, tmp_path):
    args, data, make = setting(tmp_path)
    first = epoch(args, data, make())
    (path,) = tmp_path.glob("*.pt")
    whole = torch.load(path)
    spoil(path)
    assert equal(epoch(args, data, make()), first)
    assert torch.equal(torch.load(path)["answers"][0], whole["answers"][0])


def test_a_flipped_bit_and_the_file_of_another_epoch_are_not_used(tmp_path):
    args, data, make = setting(tmp_path)
    first, second = epoch(args, data, make()), epoch(args, data, make(), number=1)
    one, other = sorted(tmp_path.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    shutil.copy(other, one)
    assert equal(epoch(args, data, make()), first) and not equal(first, second)
    saved = torch.load(one)
    saved["answers"][0][7, 1] += 1
    torch.save(saved, one)
    assert equal(epoch(args, data, make()), first)


def test_an_epoch_broken_off_leaves_nothing(tmp_path, counted):
    """Killed after a few steps, or a file that is being written: the next run computes it all."""
    args, data, make = setting(tmp_path)
    views, teacher = (args.batch_size, 0, 0, True, False), make()
    for batch in D.batches(data["train"], *views):
        R.mark(batch, data["train"], views)
        teacher(batch)
        if batch.step == 3:
            break
    assert not [*tmp_path.iterdir()]
    (tmp_path / ".half.pt.1.tmp").write_bytes(b"half of it")
    counted.clear()
    first = epoch(args, data, teacher)  # the same memory begins anew
    assert len(counted) == len(first)
    assert equal(epoch(args, data, make()), first) and len(counted) == len(first)


def test_disk_is_bounded(tmp_path, monkeypatch):
    args, data, make = setting(tmp_path)
    epoch(args, data, make())
    (path,) = tmp_path.glob("*.pt")
    monkeypatch.setattr(R.Memory, "folder_bytes", int(3.5 * path.stat().st_size))
    teacher, seen = make(), []
    for number in range(1, 6):
        epoch(args, data, teacher, number)
        epoch(args, data, make(), 0)  # used again and again, so it stays
        seen.append({path.name for path in tmp_path.glob("*.pt")})
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= R.Memory.folder_bytes
    assert all(path.name in names for names in seen) and len(set.union(*seen)) == 6
    monkeypatch.setattr(R.Memory, "epoch_bytes", 100)  # too large an epoch is not kept at all
    before = {path.name for path in tmp_path.iterdir()}
    assert equal(epoch(args, data, make(), 9), expected(args, data, make(), number=9))
    assert before == {path.name for path in tmp_path.iterdir()}


def test_a_full_disk_stops_no_run(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    args, data, make = setting(tmp_path)
    monkeypatch.setattr(torch, "save", full)
    assert equal(epoch(args, data, make()), expected(args, data, make()))
    assert "No space left" in capsys.readouterr().out


def test_views_that_are_one_object_are_not_one_epoch(tmp_path, counted):
    """The same tuple for another split, or an epoch begun again, is not gone on with."""
    args, data, make = setting(tmp_path)
    views, teacher, train = (32, 0, 0, True, False), make(), data["train"]
    for split in (train, train.subset(torch.arange(len(train)).flip(0)), train):
        for stop in (3, 10**9):
            for batch in D.batches(split, *views):
                R.mark(batch, split, views)
                with torch.no_grad():
                    live = teacher.network(batch.images)
                assert torch.equal(teacher(batch)[0], live[0])
                if batch.step == stop:
                    break
    assert len([*tmp_path.glob("*.pt")]) == 2


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same_network():
    """Equal names of weights, and equal features, logits and gradients to float rounding."""
    flags = ["--student", "convnet4", "--precision", "float32"]
    images, grads, called = torch.randn(8, 3, 32, 32), [], []
    for compiled in ("--no-compile", "--compile"):
        args = arguments(ckd, *flags, compiled)
        torch.manual_seed(0)
        network = ckd.Network(args, args.student, 6)
        called.append(network.body._compiled_call_impl is not None)
        feats, logits = network(images)
        (feats.sum() + logits.square().sum()).backward()
        grads.append((feats, logits, {k: p.grad for k, p in network.named_parameters()}))
    assert called == [False, True]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bird", "fairtune"])
def test_compile_says_where_it_cannot_be(name, tmp_path, monkeypatch):
    with pytest.raises(D.InputError, match=f"--compile is not for {name}.py, which"):
        run(name, tmp_path / "results", monkeypatch, "--compile")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(D.InputError, match="--compile needs a C"):
        run("ckd", tmp_path / "results", monkeypatch, "--compile")
