"""Every script in methods/, found by looking: started by a user, stopped and started again, on each
data set; the names of its folders; the teacher, which never moves, and its answers, which are kept.
"""

import copy
import importlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MAKERS, arguments, method_of, stopping
from forked import SCRIPTS, run_script, small
from PIL import Image

import metrics
import networks
import side_by_side
from data import DATASETS, InputError, batches, load, put_back, restore

KINDS = [name for name in DATASETS if name != "toy-source"]  # that one is for pre-training alone
FILES = [name for name in KINDS if name != "toy"]
PAIRS = [("ckd", "toy")] + [(name, FILES[n % len(FILES)]) for n, name in enumerate(SCRIPTS)]
STUDENTS = [name for name in SCRIPTS if importlib.import_module(name).Method.needs_teacher]


def run(name, *flags):
    """The script's main, in this process."""
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        module.main()


def result_of(folder):
    """The result of the one run in a folder, without times."""
    (path,) = Path(folder).rglob("result.json")
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "times"}


def states_of(folder):
    """The states of the student of the one run in a folder."""
    (path,) = Path(folder).rglob("student.pt")
    return restore(path)["states"]


def assert_same(first, second):
    """Two folders hold equal results and, bit by bit, equal students."""
    assert result_of(first) == result_of(second)
    first, second = states_of(first), states_of(second)
    assert first.keys() == second.keys()
    for rule, state in first.items():
        for weight, value in state.items():
            assert np.array_equal(value, second[rule][weight]), (rule, weight)


# ----- every script, every data set ---------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(originals, tmp_path_factory):
    """The miniatures, in a place where decoded pixels stay from one script to the next."""
    return shutil.copytree(originals, tmp_path_factory.mktemp("copies") / "all")


def miniature(name, kind, copies):
    """The flags of a short run of a script on the miniature of a data set."""
    flags = [*small(name), "--dataset", kind]
    if kind == "toy":  # drawn, not read
        place = flags.index("--data-dir")
        flags[place : place + 2] = []
        flags += ["--image-size", "32", "--batch-size", "32"]
    else:
        flags += ["--data-dir", str(copies / kind)]
    if "--source" in flags:  # FairTune learns something else first
        flags += ["--source-dir", str(copies / "csv"), "--trials", "2"]
    return flags  # of two equal flags the last one counts


@pytest.mark.parametrize("name, kind", PAIRS)
def test_a_run_as_a_user_starts_it(name, kind, copies, tmp_path):
    """A run in a process of its own leaves a result whose numbers its logits and its student give
    again; the same command finds it; stopped in the second epoch, it ends the same."""
    assert kind == "toy" or kind in MAKERS, f"conftest.MAKERS has no miniature of {kind}"
    module, flags = importlib.import_module(name), miniature(name, kind, copies)
    done = run_script(name, *flags, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "loading PyTorch ..." and said[1].startswith(f"reading {kind}")
    assert "wrote" in done.stdout and "fairness of AUROC" in said
    ours = [line for line in said if not re.search(r"\w/\w", line)]  # names of files may be long
    assert max(map(len, ours)) <= 80, max(ours, key=len)
    (path,) = (tmp_path / "runs" / "smoke" / kind / name).rglob("result.json")
    assert [*path.parent.parent.glob("[!.]*")] == [path.parent]  # a run is all that NAME/* names
    left = sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")
    assert left == ["logits.npz", "result.json", "student.pt"]
    result, arrays = restore(path), np.load(path.with_name("logits.npz"))
    assert result["method"] == name and result["settings"]["dataset"] == kind
    assert len(result["log"]) == len(result["times"]["epochs"]) == result["settings"]["epochs"] == 2
    args = module.parse(flags)
    data = module.load_pictures(args)
    assert arrays["ids"].tolist() == data["test"].ids
    models = [model for model in result if model in arrays]
    val = {"labels": arrays["labels_val"], "groups": arrays["groups_val"]}
    assert {"last", "best_overall", "best_worst_group"} <= set(models)
    assert ("teacher" in models) == bool(module.Method.needs_teacher)
    truth = {"labels": arrays["labels"], "groups": arrays["groups"]}
    truth |= {"num_classes": len(result["classes"]), "num_groups": len(result["group_names"])}
    for model in models:
        assert 0 < result[model]["test"]["accuracy"] < 1 and result[model]["parameters"] > 100
        shares = {"class_shares": result[model]["class_shares"]}
        again = metrics.evaluate(
            **truth | shares, logits=arrays[model], clusters=arrays["subjects"], replicates=100
        )
        assert again == result[model]["test"], model
        again = metrics.evaluate(
            **truth | shares | val, logits=arrays[f"{model}_val"], replicates=0
        )
        assert again == result[model]["val"], model
        assert result[model]["train"]["n"] == len(data["train"])
    if "teacher" in models:
        change = result["last"]["test"]["accuracy"] - result["teacher"]["test"]["accuracy"]
        assert result["difference"]["accuracy"][0] == pytest.approx(change)
    student = module.Network(args, args.student, len(data.classes))
    for rule, state in restore(path.with_name("student.pt"))["states"].items():
        module.put_back(student, state, path)
        logits, _ = module.measure(student, data, "test")
        assert np.array_equal(logits, arrays[rule]), rule

    before = path.read_bytes()
    done = run_script(name, *flags, cwd=tmp_path)
    assert "is there already" in done.stdout and path.read_bytes() == before
    assert "student 1/2" not in done.stdout

    other = tmp_path / "stopped"
    with stopping(module.Method):
        run(name, *flags, "--out", other)
    assert not list(other.rglob("result.json")) and list(other.rglob("checkpoint.pt"))
    run(name, *flags, "--out", other)
    assert not list(other.rglob("checkpoint.pt"))
    assert_same(other, tmp_path / "runs")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_two_screens_and_about_is_the_header(name, capsys, monkeypatch):
    """Every setting stands in it, with its default; a switch once."""
    module, texts = importlib.import_module(name), {}
    monkeypatch.setenv("COLUMNS", "80")
    for flag in ("--help", "-h", "--about"):
        with pytest.raises(SystemExit) as end:
            module.settings().parse_args([flag])
        texts[flag], _ = capsys.readouterr()
        assert end.value.code == 0
    lines = texts["--help"].splitlines()
    assert texts["-h"] == texts["--help"] and len(lines) <= 64 and max(map(len, lines)) <= 80
    assert lines[0].startswith("usage: python methods/")
    assert texts["--about"].split() == module.__doc__.split() and "--no-smoke" not in texts["-h"]
    for title in ("data:", "networks:", "training:", "running:"):
        assert title in lines
    assert ("the method's own:" in lines) == (name != "ckd")
    said = " ".join(texts["--help"].split())
    for action in module.settings()._actions:
        flag, default = action.option_strings[0], action.default
        twin = f"--[teacher-]{flag.removeprefix('--').removeprefix('teacher-')}"
        shown = next((f for f in (flag, twin) if f" {f} " in said), None)
        assert shown or flag == "--help", flag
        if isinstance(default, float | str) and default not in ("", "==SUPPRESS=="):
            own = said.partition(f" {shown} ")[2].partition(" --")[0]
            assert f"[{default}]" in own, flag


def kinds_of(name):
    """The data sets to run a script on: all if its method sees groups. To another they differ only
    in their numbers of classes, and the code that reads them is the same in all scripts: two."""
    text, place = Path(importlib.import_module(name).__file__).read_text(), SCRIPTS.index(name)
    two = [KINDS[(place + step) % len(KINDS)] for step in (0, 3)]
    return KINDS if ".groups" in side_by_side.sections(text)["4. THE METHOD"] else two


@pytest.mark.slow
@pytest.mark.parametrize("name,kind", [(name, kind) for name in SCRIPTS for kind in kinds_of(name)])
def test_scripts_on_all_data_sets(name, kind, copies, tmp_path):
    run(name, *miniature(name, kind, copies), "--out", tmp_path)
    result = result_of(tmp_path)
    assert result["settings"]["dataset"] == kind and result["method"] == name
    assert 0 < result["last"]["test"]["accuracy"] < 1 and result["last"]["test"]["auroc"] > 0


@pytest.fixture(scope="module")
def place(originals, tmp_path_factory):
    """A folder with the csv miniature in pictures/."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(originals / "csv", folder / "pictures")
    return folder


@pytest.fixture
def here(place, monkeypatch):
    """The same folder as the current one, so that `small` works; use --out for a fresh one."""
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_method_changes_its_student_and_nothing_else(name, here, tmp_path):
    """No gradient reaches the teacher and its batch norm stands still; data and settings stay as
    they were, and settings are plain values."""
    module = importlib.import_module(name)
    args = module.parse([*small(name), "--out", str(tmp_path)])
    data = module.load_pictures(args)
    module.settle(args, len(data.classes))
    settings, splits = dict(vars(args)), {part: vars(data[part]).copy() for part in data.splits}
    assert all(isinstance(v, str | int | float | None) for v in settings.values()), settings
    hashed, teacher = data.hash(), None
    torch.manual_seed(0)
    student = module.Network(args, args.student, 3)
    if module.Method.needs_teacher:
        teacher = module.Teacher(module.Network(args, args.teacher, 3))
        before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    method = module.Method(args, data, student, teacher)
    start = {k: v.clone() for k, v in student.state_dict().items()}
    student.train()
    for batch in batches(method.split, 8, seed=0, views="mirrored"):
        losses = method.step(batch)
        assert list(losses)[0] == "loss" and all(v.ndim == 0 for v in losses.values())
    moved = [k for k, v in student.state_dict().items() if not torch.equal(v, start[k])]
    assert "head.weight" in moved
    if teacher:
        assert "body.0.0.weight" in moved and not teacher.network.training
        for p in teacher.network.parameters():
            assert p.grad is None and not p.requires_grad
        for weight, value in teacher.network.state_dict().items():
            assert torch.equal(value, before[weight]), weight
    assert vars(args) == settings and data.hash() == hashed
    for part, fields in splits.items():
        assert all(vars(data[part])[k] is v for k, v in fields.items()), part


## Others have no teacher, or several, or learn their temperature.
SOFTENED = sorted({*SCRIPTS} - {"ctkd", "fairdi", "fairtune", "groupdro", "swad"})


@pytest.mark.parametrize("name", SOFTENED)
def test_the_losses_that_all_have_are_those_of_the_batch(name, toy):
    """CE of the labels, which no temperature softens, and L_KD at the temperature asked for."""
    module = importlib.import_module(name)
    method = method_of(module, toy, "--temperature", "3", "--alpha", "0.5")
    batch = next(batches(method.split, 32, seed=0))
    _, logits_s = copy.deepcopy(method.student).train()(batch.images)
    with torch.no_grad():
        _, logits_t = method.teacher.network(batch.images)
    losses = method.step(batch)
    expected = F.cross_entropy(logits_s, batch.labels)
    torch.testing.assert_close(losses["loss_ce"], expected)
    torch.testing.assert_close(losses["loss_kd"], module.kd_loss(logits_s, logits_t, 3.0))


REFUSED = {script: {*importlib.import_module(script).Method.refuses} for script in SCRIPTS}


def test_who_refuses_what():
    masks, compiled, adamw = "--task segment", "--compile", "--optimizer adamw"
    refused = {"rkd": {masks}, "kdpp": {masks}, "mfd": {masks}, "fairtune": {masks, compiled}}
    refused |= {"bird": {compiled, adamw}, "ctkd": {adamw}}
    assert REFUSED == dict.fromkeys(SCRIPTS, set()) | refused


@pytest.mark.parametrize("name, flag", [(n, f) for n in SCRIPTS for f in sorted(REFUSED[n])])
def test_what_a_method_refuses_it_says_before_anything_is_read(name, flag, monkeypatch):
    """No picture is decoded and no teacher trained for nothing."""
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "load_pictures", None)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *flag.split()])
    with pytest.raises(InputError, match=f"^{flag} is not for {name}.py: .*; leave it out$"):
        module.main()


@pytest.mark.parametrize("name", SCRIPTS)
def test_compile_says_what_it_needs(name, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"--compile needs a compiler \(CXX, or g\+\+\)"):
        arguments(importlib.import_module(name), "--compile")


# ----- the name of a run's folder -----------------------------------------------------------------


class Stop(Exception):
    """Raised where a run would begin."""


def folder_of(name, *flags, data=None):
    """The folder in which this command would work, and what its result would say of itself."""
    module = importlib.import_module(name)

    def stop(args, data, folder, about):
        raise Stop(folder, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_and_test", stop)
        if data:
            patch.setattr(module, "load_pictures", lambda args: data)
        with pytest.raises(Stop) as stopped:
            run(name, *flags)
    return stopped.value.args


def test_a_teacher_is_corrected_by_the_classes_that_it_saw(here):
    """Uniform ones where it is balanced; its student saw those of the data."""
    run("ckd", *small("ckd"), "--teacher-balance", "classes")
    (path,) = Path("runs").rglob("result.json")
    result = json.loads(path.read_text())
    assert np.ptp(result["teacher"]["class_shares"]) < 1e-9 < np.ptp(result["last"]["class_shares"])


def test_all_methods_start_from_the_student_of_their_seed(here, monkeypatch):
    """With or without a teacher, which draws numbers, too; and go on with the same ones."""
    starts = []

    def stop(self, args, data, student, teacher=None):
        starts.append([student.head.weight.tolist(), torch.rand(3).tolist()])
        raise Stop

    for name, seed in (("ckd", 0), ("rkd", 0), ("groupdro", 0), ("ckd", 1)):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "get_teacher", lambda args, data: (torch.rand(9), 0.0))
        monkeypatch.setattr(module.Method, "__init__", stop)
        with pytest.raises(Stop):
            run(name, *small(name), "--seed", seed)
    assert starts[0] == starts[1] == starts[2]
    assert all(one != other for one, other in zip(starts[0], starts[3]))


OTHER_VALUES = {  # for each setting of all scripts that changes a result
    "image_size": "24",
    "target": "age",
    "sensitive": "label",
    "skew": "0.5",
    "fold": "1",
    "train_share": "0.5",
    "skip_bad": True,
    "balance": "cells",
    "teacher_balance": "groups",
    "teacher": "convnet8",
    "student": "convnet8",
    "pretrained": True,
    "epochs": "1",
    "batch_size": "4",
    "lr": "0.5",
    "teacher_epochs": "1",
    "teacher_lr": "0.25",
    "weight_decay": "0.1",
    "weights": "mine.pt",
    "teacher_weights": "mine.pt",
    "statistics": "half",
    "teacher_statistics": "clip",
    "teacher_train": "head",
    "teacher_sees": "picture",
    "views": "turned",
    "optimizer": "adamw",
    "teacher_optimizer": "adamw",
    "subject": "age",
    "file_column": "picture",
    "alpha": "0.5",
    "temperature": "2.0",
    "precision": "bf16",
    "compile": True,
}
ELSEWHERE = {  # settings that change nothing but where files are and on what it runs
    "data_dir": "pictures/../pictures",
    "download": True,
    "live_teacher": True,
    "log": "tensorboard",
    "restart": True,
    "out": "elsewhere",
}


def flags_of(name, value):
    flag = f"--{name.replace('_', '-')}"
    needed = ["--teacher-weights", "mine.pt"] if name == "teacher_train" else []
    return [flag] if value is True else [flag, value, *needed]


OF_TEACHERS = {  # settings that change what a teacher learns from the same pictures
    *"image_size teacher teacher_balance pretrained batch_size teacher_epochs teacher_lr".split(),
    *"weight_decay teacher_weights teacher_statistics teacher_train views".split(),
    *"teacher_optimizer precision compile".split(),
}
OF_STUDENTS = set("student balance epochs lr weights statistics optimizer alpha".split())
OF_STUDENTS |= {"temperature", "teacher_sees"}


def test_another_setting_of_a_teacher_is_another_teacher(here, monkeypatch):
    """And no setting of the student is: its runs share one."""
    ckd = importlib.import_module("ckd")
    Path("mine.pt").write_text("weights")
    monkeypatch.setattr(ckd, "Network", mock.MagicMock())
    monkeypatch.setattr(ckd, "made_once", mock.Mock(side_effect=lambda path, *_, **__: 1 / 0))
    data = ckd.load_pictures(ckd.parse(small("ckd")))

    def folder(*flags):
        with pytest.raises(ZeroDivisionError):
            ckd.get_teacher(ckd.settle(ckd.parse(small("ckd") + [*flags]), 2), data)
        return ckd.made_once.call_args.args[0].parent.name.rpartition("-")[2]

    usual = folder()
    others = {name: folder(*flags_of(name, OTHER_VALUES[name])) for name in OF_TEACHERS}
    assert len({usual, folder("--seed", "1"), *others.values()}) == len(others) + 2, others
    assert {folder(*flags_of(name, OTHER_VALUES[name])) for name in OF_STUDENTS} == {usual}
    of_data = set("target sensitive skew fold train_share skip_bad subject file_column".split())
    assert {*OTHER_VALUES} == OF_TEACHERS | OF_STUDENTS | of_data


def test_another_setting_is_another_folder(here):
    """Its name tells what was changed, and no two settings have the same digest."""
    ckd = importlib.import_module("ckd")
    Path("mine.pt").touch()
    args = ckd.parse(small("ckd"))
    data = ckd.load_pictures(args)
    folder, about = folder_of("ckd", *small("ckd"), data=data)
    assert folder.parent == Path("runs/smoke/csv/ckd") and folder.name.endswith("-seed0")
    usual = {"image_size": 16, "teacher": "convnet4", "student": "convnet2", "batch_size": 8}
    assert about["changed"] == usual
    words = [f"{k}_{v}" for k, v in usual.items()]
    assert folder.name.startswith("-".join(words[::-1]) + "-")
    assert about["settings"]["pictures"] == data.hash()
    seen, names = {folder.name}, {*OTHER_VALUES, *ELSEWHERE, "dataset", "task", "smoke", "seed"}
    assert names == {*vars(args)} - {"device", "describe"}
    for name, value in OTHER_VALUES.items():
        folder, about = folder_of("ckd", *small("ckd"), *flags_of(name, value), data=data)
        value = float(value) / 5 if name.endswith("lr") else value  # smoke runs have a fifth
        assert str(about["changed"][name]) == str(value)
        said = folder.name.rsplit("-", 2)[0]
        assert f"{name}_{value}" in said or len(said) == 100, "long names are cut"
        seen.add(folder.name)
    assert len(seen) == 1 + len(OTHER_VALUES)
    folder, about = folder_of("ckd", *small("ckd"), "--seed", "1", data=data)
    assert folder.name.endswith("-seed1") and about["changed"] == usual
    for name, value in ELSEWHERE.items():
        folder, _ = folder_of("ckd", *small("ckd"), *flags_of(name, value), data=data)
        assert folder.name in seen, name
    first, subjects = "not " + data.classes[0], data["test"].subjects.copy()
    subjects[0] = subjects[-1]
    splits = data.splits | {"test": replace(data["test"], subjects=subjects)}
    others = {"classes": [first, *data.classes[1:]]}, {"group_names": data.group_names[::-1]}
    for other in (*others, {"splits": splits}):  # the same pictures, and other words for them
        folder, about = folder_of("ckd", *small("ckd"), data=replace(data, **other))
        assert folder.name not in seen and about["settings"]["pictures"] == data.hash()
        seen.add(folder.name)
    for flags in (["--no-smoke"], ["--sensitive", "very/" * 60]):
        folder, _ = folder_of("ckd", *small("ckd"), *flags, data=data)
        assert folder.name not in seen and len(folder.name) < 130
    folder, _ = folder_of("ckd", *small("ckd"), "--sensitive", r"C:\a?\<b>", data=data)
    assert "sensitive_C__a___b_" in folder.name  # on Windows, too, one name that is allowed
    assert folder_of("ckd", data=data)[0].name.startswith("default-")
    folder, _ = folder_of("groupdro", *small("groupdro"), "--weight-step", "0.5", data=data)
    assert folder.name.startswith("weight_step_0.5-"), "its own settings are never cut away"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_of_a_method_is_in_the_digest(name):
    module, ckd = importlib.import_module(name), importlib.import_module("ckd")
    own = set(vars(module.settings().parse_args([]))) - set(vars(ckd.settings().parse_args([])))
    assert set(module.chosen(module.parse([]))) == {
        *ckd.chosen(ckd.parse([])),
        *(setting for setting in own if not setting.endswith("_dir")),
    }


def test_another_picture_is_another_folder(place, tmp_path, monkeypatch):
    """A picture, a label or a group that is not the same; the same ones elsewhere are the same."""
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    table, folders = tmp_path / "pictures" / "labels.csv", []
    for change in (
        lambda: None,
        lambda: Image.new("RGB", (33, 33), "red").save(tmp_path / "pictures/pictures/000.png"),
        lambda: table.write_text(table.read_text().replace(",cat,indoor", ",dog,indoor", 1)),
        lambda: table.write_text(table.read_text().replace(",fox,indoor", ",fox,outdoor", 1)),
    ):
        change()
        monkeypatch.chdir(tmp_path)
        folders.append(folder_of("ckd", *small("ckd"))[0].name)
    assert len(set(folders)) == 4 and len({name.rpartition("-")[0] for name in folders}) == 4
    monkeypatch.chdir(place)
    assert folder_of("ckd", *small("ckd"))[0].name == folders[0]


# ----- the answers of the teacher -----------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The batches, of at most eight, for which teachers had to ask their network."""
    seen = []
    for name in STUDENTS:
        teacher = importlib.import_module(name).Teacher

        def ask(self, batch, real=teacher.__call__):
            if not batch.answers and len(batch.labels) <= 8:  # KD++ asks once about all pictures
                seen.append(batch)
            return real(self, batch)

        monkeypatch.setattr(teacher, "__call__", ask)
    return seen


def answers_in(folder):
    return sorted(path for path in Path(folder).rglob("epoch-*.pt"))


@pytest.mark.parametrize(
    "name, flags",
    [(name, []) for name in STUDENTS] + [("ckd", ["--balance"]), ("bird", ["--alpha", "0.5"])],
)
def test_kept_answers_are_the_live_ones_bit_by_bit(name, flags, here, tmp_path, asked):
    """Whole runs: a live teacher, one whose answers are kept, and one whose answers are there."""
    command = [*small(name), *flags, "--out"]
    run(name, *command, tmp_path / "live", "--live-teacher")
    assert not answers_in(tmp_path)
    steps = len(asked)
    pictures = len(load("csv", "pictures", 16, smoke=True)["train"])
    pictures -= math.ceil(pictures / 8) if name == "bird" else 0  # its meta set
    assert steps == 2 * (pictures // 8)
    asked.clear()
    run(name, *command, tmp_path / "kept")
    assert len(asked) == steps and len(answers_in(tmp_path)) == 2
    assert_same(tmp_path / "live", tmp_path / "kept")
    asked.clear()
    shutil.copytree(tmp_path / "kept", tmp_path / "again")
    run(name, *command, tmp_path / "again", "--restart")
    assert not asked
    assert_same(tmp_path / "live", tmp_path / "again")


@pytest.mark.parametrize("sees", ["picture", "flips"])
def test_a_teacher_that_sees_pictures_answers_once(sees, here, tmp_path, asked, monkeypatch):
    """One answer a picture for all epochs, methods and seeds, the mean over its flips if asked; a
    step gets those to its own pictures."""
    flags = ["--teacher-sees", sees, "--views", "turned", "--out", tmp_path]
    for name in ("ckd", "fitnet", "rkd"):
        run(name, *small(name), *flags)
    assert not asked and not answers_in(tmp_path)
    (folder,) = tmp_path.rglob("answers")
    kept = [torch.load(path, weights_only=True) for path in folder.glob("*.pt")]
    assert len(kept) == 3  # of the pictures to train, validate and test
    data = load("csv", "pictures", 16, smoke=True)
    ckd = importlib.import_module("ckd")
    network = ckd.Network(ckd.parse(small("ckd")), "convnet4", 3)
    (saved,) = folder.parent.glob("teacher.pt")
    put_back(network, torch.load(saved, weights_only=True)["state"], saved)
    images = next(batches(data["train"], 999)).images
    with torch.no_grad():
        network.eval()
        ways = networks.all_flips(images) if sees == "flips" else [images]
        expected = torch.stack([network(way)[0] for way in ways]).mean(0)
    same = [f.shape == expected.shape and torch.allclose(f, expected, atol=1e-5) for f in kept]
    assert sum(same) == 1
    seen, step = [], ckd.Method.step
    monkeypatch.setattr(ckd.Method, "step", lambda m, b: seen.append(b) or step(m, b))
    run("ckd", *small("ckd"), *flags, "--restart")
    for batch in seen:
        torch.testing.assert_close(batch.answers[0], expected[batch.index])
    assert len(seen) > 2 and seen[0].index.tolist() != [*range(len(seen[0].index))]


def test_all_flips_are_the_eight_of_a_square():
    picture = torch.arange(9.0).view(1, 1, 3, 3)
    ways = networks.all_flips(picture)
    turns = [picture.rot90(k, (2, 3)) for k in range(4)]
    turns += [turn.flip(3) for turn in turns]
    ours, theirs = ({str(way.flatten().tolist()) for way in both} for both in (ways, turns))
    assert ours == theirs and len(ours) == 8
    assert torch.equal(ways[0], picture) and torch.equal(ways[1], picture.flip(3))


def test_other_methods_and_settings_read_the_same_answers(here, tmp_path, asked):
    """All that ask the same questions share them; others do not find theirs."""
    run("ckd", *small("ckd"), "--out", tmp_path)
    asked.clear()
    for name, *flags in (["ckd", "--alpha", "0.5"], ["ckd", "--temperature", "1"], ["rkd"]):
        run(name, *small(name), *flags, "--out", tmp_path)
    assert not asked and len(answers_in(tmp_path)) == 2
    run("ckd", *small("ckd"), "--lr=0.2", "--out", tmp_path)  # of the student alone
    assert not asked
    teachers = "--teacher=convnet8 --teacher-lr=0.1 --teacher-epochs=1".split()
    for flags in ("--balance", "--batch-size=4", "--seed=1", *teachers):
        run("ckd", *small("ckd"), *flags.split(), "--out", tmp_path)
        assert asked, flags
        asked.clear()
    assert len(answers_in(tmp_path)) == 14


def epoch(args, split, teacher, number=0):
    """The teacher's answers to an epoch, (N, D') and (N, C), as `fit` has them."""
    views = batches(split, args.batch_size, args.seed, number, args.views, args.balance)
    feats, logits = zip(*(teacher(batch) for batch in views))
    return torch.cat(feats), torch.cat(logits)


@pytest.fixture
def setting(toy, tmp_path):
    """Settings, training pictures, and a function that makes a teacher whose answers are kept."""
    ckd = importlib.import_module("ckd")
    args = arguments(ckd)

    def make(seed=0, **changed):
        torch.manual_seed(seed)
        network = ckd.Network(arguments(ckd), "convnet2", 6)
        return ckd.Teacher(network, tmp_path / "answers")

    return args, toy["train"], make


def test_whatever_answers_depend_on_makes_other_files(setting, tmp_path):
    """Each of these, changed alone, is answered as a live teacher does, and not from the file of
    another one; the same again is read from its file."""
    args, train, make = setting
    files = 0

    def check(what, args, split=train, teacher=None, number=0):
        nonlocal files
        teacher, files = teacher or make(), files + 1
        for _ in range(2):
            kept = teacher.begin_epoch(args, split, number)
            assert all(map(torch.equal, kept, epoch(args, split, teacher, number))), what
            assert len(answers_in(tmp_path)) == files, what

    def settings_with(**changed):
        changed_args = arguments(importlib.import_module("ckd"))
        vars(changed_args).update(changed)
        return changed_args

    check("nothing", args)
    check("epoch", args, number=1)
    check("seed", settings_with(seed=1))
    check("batch size", settings_with(batch_size=16))
    check("balance", settings_with(balance="cells"))
    check("views", settings_with(views="turned"))
    check("teacher", args, teacher=make(seed=1))
    statistics = make()
    statistics.network.body[0][1].running_var.mul_(2)
    check("a statistic of batch norm", args, teacher=statistics)
    check("a part of the pictures", args, train.subset(range(len(train) - 40)))
    check("another order", args, train.subset(torch.arange(len(train)).flip(0)))
    changed = train.subset(range(len(train)))
    changed.labels = train.labels.flip(0)
    check("cells to draw from", settings_with(balance="cells"), changed)
    changed = train.subset(range(len(train)))
    changed.store = train.store.clone()
    changed.store[train.rows[3], 0, 0, 0] ^= 1
    check("one bit of one picture", args, changed)
    changed = train.subset(range(len(train)))  # the same pictures in other hands: the same answers
    files -= 1
    check("nothing", args, changed)


def test_a_batch_of_its_own_is_asked_live(setting):
    """Kept answers are for the loop of `fit`; a method may ask about any other pictures."""
    args, train, make = setting
    teacher = make()
    feats, logits = teacher.begin_epoch(args, train, 0)
    batch = next(batches(train, args.batch_size, args.seed, 0, views="mirrored"))
    for own in (batch, batch._replace(images=batch.images.flip(3)), batch._replace(step=3)):
        with torch.no_grad():
            assert torch.equal(teacher(own)[1], teacher.network(own.images)[1])
    known = batch._replace(answers=(feats[:3], logits[:3]))
    assert all(map(torch.equal, teacher(known), (feats[:3], logits[:3])))


def test_the_disk_for_answers_is_bounded(setting, tmp_path, monkeypatch):
    """The oldest make room, the newest stay; an epoch that is too large is never kept."""
    args, train, make = setting
    teacher, seen = make(), []
    teacher.begin_epoch(args, train, 0)
    size = answers_in(tmp_path)[0].stat().st_size
    monkeypatch.setattr(type(teacher), "folder_bytes", int(3.5 * size))
    for number in range(1, 6):
        teacher.begin_epoch(args, train, number)
        seen.append([path.name for path in answers_in(tmp_path)])
    assert seen[0] == ["epoch-001.pt", "epoch-002.pt"]
    assert seen[-1] == ["epoch-004.pt", "epoch-005.pt", "epoch-006.pt"]
    shape = len(train) * (8 + 6)  # features and logits
    monkeypatch.setattr(type(teacher), "epoch_bytes", 4 * shape - 1)
    assert teacher.begin_epoch(args, train, 9) is None
    assert [path.name for path in answers_in(tmp_path)] == seen[-1]
    monkeypatch.setattr(type(teacher), "epoch_bytes", 4 * shape)
    assert teacher.begin_epoch(args, train, 9)
