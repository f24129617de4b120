"""FitNet against the authors' code; its regressor; the layers that are found in networks."""

import copy
import inspect
from pathlib import Path

import at
import ckd
import fitnet
import numpy as np
import pytest
import torch
import torchvision
from conftest import arguments
from torch import nn

from data import Batch, InputError

PARITY = dict(np.load(Path(__file__).parent / "parity" / "kd.npz"))


def make(*flags, teacher="convnet4", student="convnet2", module=fitnet):
    """A Method on three classes, its networks and its losses a function of the flags alone."""
    args = arguments(module, *flags)
    torch.manual_seed(0)
    teacher = module.Teacher(module.Network(args, teacher, 3))
    student = module.Network(args, student, 3)
    return module.Method(args, {"train": None}, student, teacher)


def batch_of(size, pictures=4):
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(pictures, 3, size, size, generator=rng)
    labels = torch.arange(pictures) % 3
    return Batch(images, labels, labels % 2, torch.arange(pictures), 0, 0)


# ------------------------------------------------------------------ the published numbers
@pytest.mark.parametrize(
    "dtype, suffix, rtol", [(torch.float64, "64", 1e-9), (torch.float32, "", 1e-5)]
)
def test_hint_loss_equals_the_published_code(dtype, suffix, rtol):
    """RepDistiller's HintLoss."""
    mapped_s = torch.tensor(PARITY["fitnet/student"], dtype=dtype, requires_grad=True)
    loss = fitnet.hint_loss(mapped_s, torch.tensor(PARITY["fitnet/teacher"], dtype=dtype))
    loss.backward()
    close = dict(rtol=rtol, atol=1e-15 if suffix else 1e-7)
    np.testing.assert_allclose(loss.detach(), PARITY[f"fitnet/loss{suffix}"], **close)
    np.testing.assert_allclose(mapped_s.grad, PARITY[f"fitnet/grad{suffix}"], **close)


def test_hint_loss_of_a_convolution_equals_the_published_code():
    """RKD's FitNet class: a bare 1 x 1 convolution and the same mean of squares."""

    def of(key):
        return torch.tensor(PARITY[f"fitnet_conv1x1/{key}"], dtype=torch.float64)

    map_s, weight = of("student").requires_grad_(), of("conv_weight").requires_grad_()
    loss = fitnet.hint_loss(nn.functional.conv2d(map_s, weight), of("teacher"))
    loss.backward()
    np.testing.assert_allclose(loss.detach(), PARITY["fitnet_conv1x1/loss64"], rtol=1e-9)
    for tensor, key in ((map_s, "grad64"), (weight, "grad_w64")):
        expected = PARITY[f"fitnet_conv1x1/{key}"]
        np.testing.assert_allclose(tensor.grad, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("shape", ["same", "down", "up"])
@pytest.mark.parametrize("dtype, suffix", [(torch.float64, "64"), (torch.float32, "")])
def test_regressor_equals_the_published_code(shape, dtype, suffix):
    """RepDistiller's ConvReg in training mode: maps, loss, all gradients, running statistics."""

    def of(key):
        return torch.tensor(PARITY[f"fitnet_reg_{shape}/{key}"], dtype=dtype)

    map_s, map_t = of("student").requires_grad_(), of("teacher")
    r = fitnet.regressor(map_s.shape[1:], map_t.shape[1:]).to(dtype)
    conv = next(m for m in r.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
    norm = next(m for m in r.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        conv.weight.copy_(of("conv_weight"))
        conv.bias.copy_(of("conv_bias"))
        norm.weight.copy_(of("bn_weight"))
        norm.bias.copy_(of("bn_bias"))
    mapped = r(map_s)
    loss = fitnet.hint_loss(mapped, map_t)
    loss.backward()
    close = dict(rtol=1e-9, atol=1e-13) if suffix else dict(rtol=1e-5, atol=1e-6)
    results = {
        "loss": loss.detach(),
        "grad": map_s.grad,
        "grad_conv_weight": conv.weight.grad,
        "grad_bn_weight": norm.weight.grad,
    }
    for key, value in results.items():
        np.testing.assert_allclose(value, PARITY[f"fitnet_reg_{shape}/{key}{suffix}"], **close)
    statistics = {"bn_running_mean": norm.running_mean, "bn_running_var": norm.running_var}
    for key, value in {"mapped": mapped.detach(), **statistics}.items():
        np.testing.assert_allclose(value, of(key), rtol=1e-5, atol=1e-6)  # stored as float32


# ------------------------------------------------------------------ properties
@pytest.mark.parametrize(
    "side_s, side_t, kernel",
    [(8, 8, 1), (8, 4, 3), (4, 8, 4), (7, 5, 3), (9, 3, 7), (3, 5, 1), (2, 8, 1), (5, 2, 4)],
)
def test_regressor_gives_the_shape_of_the_hint(side_s, side_t, kernel):
    r = fitnet.regressor((3, side_s, side_s), (5, side_t, side_t))
    out = r(torch.randn(4, 3, side_s, side_s))
    assert out.shape == (4, 5, side_t, side_t) and out.min() >= 0
    conv = next(m for m in r.modules() if hasattr(m, "kernel_size"))
    assert conv.kernel_size == (kernel, kernel) and conv.bias is not None


def test_hint_loss_is_a_mean_of_squares():
    hint = torch.rand(4, 5, 3, 3)
    assert fitnet.hint_loss(hint, hint) == 0
    assert fitnet.hint_loss(hint + 2, hint).item() == pytest.approx(4)


def test_step_follows_equation_6_and_its_weight_counts():
    """L = (1 - α) CE + α L_KD + β L_hint, with the student's gradient linear in β."""
    gradients = []
    for weight in (0.0, 50.0, 100.0):
        method = make("--hint-weight", str(weight), "--alpha", "0.3")
        losses = method.step(batch_of(32))
        own = 0.7 * losses["loss_ce"] + 0.3 * losses["loss_kd"] + weight * losses["loss_hint"]
        assert losses["loss"].item() == pytest.approx(own.item(), rel=1e-6)
        gradients.append(method.student.body[0][0].weight.grad.clone())
    halfway = (gradients[0] + gradients[2]) / 2
    torch.testing.assert_close(gradients[1], halfway, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.1)


@pytest.mark.parametrize("alpha", ["0", "0.9"])
def test_without_its_own_term_it_is_ckd(alpha):
    """With β = 0 loss and student equal those of ckd.py, bit for bit, over three steps."""
    own = make("--hint-weight", "0", "--alpha", alpha)
    hub = make("--alpha", alpha, module=ckd)
    for _ in range(3):
        assert own.step(batch_of(32))["loss"] == hub.step(batch_of(32))["loss"]
    for key, value in hub.student.state_dict().items():
        assert torch.equal(value, own.student.state_dict()[key]), key


def test_alpha_is_off_unless_asked_for():
    assert arguments(fitnet).alpha == 0 and arguments(fitnet, "--alpha", "0.9").alpha == 0.9


def test_regressor_learns_but_is_no_part_of_the_student():
    method = make()
    plain = fitnet.Network(method.args, "convnet2", 3)
    before = copy.deepcopy(method.r.state_dict())
    method.step(batch_of(32))
    assert all(p.grad.abs().sum() > 0 for p in method.r[1].parameters())
    assert method.r[0][1].weight.grad.abs().sum() > 0
    assert not torch.equal(before["0.1.weight"], method.r[0][1].weight)
    assert not torch.equal(before["1.running_mean"], method.r[1].running_mean)  # in training mode
    assert method.student.state_dict().keys() == plain.state_dict().keys()
    assert all(p.grad is None for p in method.teacher.network.parameters())


def test_regressor_survives_a_restart():
    """Two steps, or one, a new Method from what was saved, and the other: the same weights."""
    whole = make()
    whole.step(batch_of(32))
    saved = {name: copy.deepcopy(part.state_dict()) for name, part in whole.saved.items()}
    whole.step(batch_of(32, 5))
    torch.manual_seed(7)
    again = make()
    for name, part in again.saved.items():
        part.load_state_dict(saved[name])
    again.step(batch_of(32, 5))
    for old, new in ((whole.student, again.student), (whole.r, again.r)):
        for key, value in old.state_dict().items():
            assert torch.equal(value, new.state_dict()[key]), key
    rates = [group["initial_lr"] for group in again.optimizer.param_groups]
    assert rates == [again.args.lr] * 2


# ------------------------------------------------------------------ layers of any network
def test_both_scripts_find_maps_in_the_same_way():
    assert inspect.getsource(fitnet.keep_maps) == inspect.getsource(at.keep_maps)


@pytest.mark.parametrize(
    "name, size, ends",
    [
        ("convnet8", 32, {"0": (8, 16), "1": (16, 8), "2": (32, 4)}),
        ("resnet18", 32, {f"layer{k}": (2 ** (5 + k), 2 ** (6 - k)) for k in (1, 2, 3, 4)}),
        ("resnet18", 64, {f"layer{k}": (2 ** (5 + k), 2 ** (5 - k)) for k in (1, 2, 3, 4)}),
        (
            "shufflenet_v2_x0_5",
            64,
            {"maxpool": (24, 16), "stage2": (48, 8), "stage3": (96, 4), "stage4": (192, 2)},
        ),
        (
            "efficientnet_b0",
            64,
            {
                "features.1": (16, 32),
                "features.2": (24, 16),
                "features.3": (40, 8),
                "features.5": (112, 4),
                "features": (1280, 2),
            },
        ),
        (
            "mobilenet_v3_small",
            64,
            {
                "features.1": (16, 16),
                "features.3": (24, 8),
                "features.8": (48, 4),
                "features": (576, 2),
            },
        ),
        (
            "densenet121",
            64,
            {
                "features.denseblock1": (256, 16),
                "features.denseblock2": (512, 8),
                "features.denseblock3": (1024, 4),
                "features": (1024, 2),
            },
        ),
        (
            "convnext_tiny",
            64,
            {
                "features.1": (96, 16),
                "features.3": (192, 8),
                "features.5": (384, 4),
                "features": (768, 2),
            },
        ),
        (
            "squeezenet1_1",
            64,
            {"features.4": (128, 15), "features.7": (256, 7), "features": (512, 3)},
        ),
    ],
)
def test_stages_are_found_and_filled(name, size, ends):
    """The last block of every stage, largest first; every pass puts its own maps there."""
    args = arguments(fitnet, "--dataset", "csv", "--image-size", str(size))
    network = fitnet.Network(args, name, 3).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    maps = fitnet.keep_maps(network, args, None)
    shapes = {layer: (1, channels, side, side) for layer, (channels, side) in ends.items()}
    assert {layer: tuple(output.shape) for layer, output in maps.items()} == shapes
    assert list(maps) == list(ends) and network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    network(batch_of(size).images)
    assert all(output.shape[0] == 4 and output.requires_grad for output in maps.values())


def test_vgg_has_a_stage_for_every_pooling():
    """Its pooling to 7 x 7, which enlarges the last map, ends no stage."""
    args, vgg = arguments(fitnet, "--image-size", "64", "--dataset", "csv"), torchvision.models.vgg
    network = fitnet.Network(args, "convnet2", 3)
    layers = vgg.make_layers(vgg.cfgs["A"])
    network.body = nn.Sequential(layers, nn.AdaptiveAvgPool2d(7), nn.Flatten())
    network.head = nn.Linear(512 * 49, 3)
    maps = fitnet.keep_maps(network, args, None)
    assert [output.shape[2] for output in maps.values()] == [32, 16, 8, 4, 2]


@pytest.mark.parametrize(
    "teacher, student, layer_t, layer_s",
    [
        ("resnet18", "shufflenet_v2_x0_5", "layer2", "stage2"),
        ("convnext_tiny", "mobilenet_v3_small", "features.3", "features.3"),
        ("squeezenet1_1", "efficientnet_b0", "features.7", "features.3"),
        ("densenet121", "convnet4", "features.denseblock2", "1"),
    ],
)
def test_one_step_with_networks_of_torchvision(teacher, student, layer_t, layer_s):
    """The hint comes from the second of three or four stages, or from the third of five."""
    method = make("--dataset", "csv", "--image-size", "64", teacher=teacher, student=student)
    assert (method.layer_t, method.layer_s) == (layer_t, layer_s)
    losses = method.step(batch_of(64))
    assert all(torch.isfinite(loss) for loss in losses.values()) and losses["loss_hint"] > 0
    assert all(p.grad is None for p in method.teacher.network.parameters())


def test_losses_are_float32_where_networks_are_not():
    method = make("--precision", "bf16")
    maps = method.maps_s
    losses = method.step(batch_of(32))
    assert maps["1"].dtype == torch.bfloat16
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_copies_of_the_student_work():
    """A copy is taken after a step, or after an evaluation, and trained by itself."""
    method = make()
    method.step(batch_of(32))
    bare = fitnet.PlainTraining(method.args, {"train": None}, copy.deepcopy(method.student).train())
    bare.step(batch_of(32))
    with torch.no_grad():
        method.student.eval()(batch_of(32).images)
    assert not any(maps.requires_grad for maps in method.maps_s.values())  # no graph is kept alive
    copy.deepcopy(method.student)
    assert torch.isfinite(method.step(batch_of(32))["loss"])


def test_layers_can_be_named():
    method = make("--hint-layer-student", "2.1", "--hint-layer-teacher", "0")
    assert (method.layer_s, method.layer_t) == ("2.1", "0")
    method.step(batch_of(32))
    assert method.maps_s["2.1"].shape == (4, 8, 8, 8) and method.r[1].num_features == 4


@pytest.mark.parametrize(
    "flag, layer, near",
    [
        ("--hint-layer-student", "2.11", "2.1"),  # misspelt
        ("--hint-layer-teacher", "4", "0, 1, 2"),  # there, but no map
        ("--hint-layer-teacher", "3", "0, 1, 2"),  # pooled to one place
    ],
)
def test_wrong_layers_are_explained(flag, layer, near):
    with pytest.raises(InputError, match=rf"convnet\d has no maps at {layer}: choose .*{near}"):
        make(flag, layer)


def test_transformers_are_refused():
    with pytest.raises(InputError, match="^swin_t has no maps at the ends of stages: choose feat"):
        make("--dataset", "csv", "--image-size", "64", student="swin_t")
