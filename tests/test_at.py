"""AT: attention maps and their loss against the authors' code, invariances, pairs of layers."""

import copy
import shutil
from pathlib import Path

import at
import ckd
import fitnet
import numpy as np
import pytest
import torch
from conftest import arguments

from data import Batch, InputError

PARITY = dict(np.load(Path(__file__).parent / "parity" / "kd.npz"))
DTYPES = pytest.mark.parametrize("dtype, suffix", [(torch.float64, "64"), (torch.float32, "")])


def make(*flags, teacher="convnet4", student="convnet2", module=at, ways=1):
    """A Method on three classes; networks and losses are a function of the flags alone."""
    args = arguments(module, *flags)
    torch.manual_seed(0)
    teacher = module.Teacher(module.Network(args, teacher, 3))
    teacher.network.ways = ways
    student = module.Network(args, student, 3)
    return module.Method(args, {"train": None}, student, teacher)


def batch_of(size, pictures=4):
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(pictures, 3, size, size, generator=rng)
    labels = torch.arange(pictures) % 3
    return Batch(images, labels, labels % 2, torch.arange(pictures), 0, 0)


def maps(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def close(suffix):
    return dict(rtol=1e-9, atol=1e-15) if suffix else dict(rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------ the published numbers
@DTYPES
@pytest.mark.parametrize("key", ["at", "at_student_larger", "at_student_smaller"])
def test_attention_loss_equals_the_published_code(key, dtype, suffix):
    """attention-transfer's at_loss; RepDistiller's Attention for maps of two sizes."""
    map_s = torch.tensor(PARITY[f"{key}/student"], dtype=dtype, requires_grad=True)
    loss = at.attention_loss(map_s, torch.tensor(PARITY[f"{key}/teacher"], dtype=dtype))
    loss.backward()
    np.testing.assert_allclose(loss.detach(), PARITY[f"{key}/loss{suffix}"], **close(suffix))
    np.testing.assert_allclose(map_s.grad, PARITY[f"{key}/grad{suffix}"], **close(suffix))


def test_attention_maps_equal_the_published_ones():
    for who in ("student", "teacher"):
        q = at.attention_map(torch.tensor(PARITY[f"at/{who}"]))
        np.testing.assert_allclose(q, PARITY[f"at/{who}_map"], rtol=1e-5, atol=1e-7)


@DTYPES
def test_sum_over_stages_equals_the_published_one(dtype, suffix):
    """RepDistiller: β = 1000 times the sum of two stages."""

    def of(key):
        return torch.tensor(PARITY[f"at_groups/{key}"], dtype=dtype)

    stages = [of(f"student{k}").requires_grad_() for k in (0, 1)]
    loss = 1000 * sum(at.attention_loss(s, of(f"teacher{k}")) for k, s in enumerate(stages))
    loss.backward()
    np.testing.assert_allclose(loss.detach(), PARITY[f"at_groups/loss{suffix}"], **close(suffix))
    for stage, key in zip(stages, ("grad", "grad_s1")):
        np.testing.assert_allclose(stage.grad, PARITY[f"at_groups/{key}{suffix}"], rtol=1e-5)


def test_the_paper_has_another_loss():
    """The header's first difference: there it is the mean length of q - q', not of its square."""

    def of(key):
        return torch.tensor(PARITY[f"at_paper/{key}"], dtype=torch.float64)

    map_s, map_t = of("student"), of("teacher")
    lengths = (at.attention_map(map_s) - at.attention_map(map_t)).norm(dim=1)
    np.testing.assert_allclose(lengths.mean(), PARITY["at_paper/loss64"], rtol=1e-9)
    ours = at.attention_loss(map_s, map_t)
    np.testing.assert_allclose(ours, lengths.square().mean() / 16, rtol=1e-12)


# ------------------------------------------------------------------ properties
def test_attention_has_no_scale():
    """A factor for each sample changes nothing; each sample's own, not one for the batch."""
    map_s, map_t = maps(0, 5, 3, 4, 4), maps(1, 5, 7, 4, 4)
    factors = torch.tensor([0.01, 0.5, 1.0, 3.0, 100.0], dtype=torch.float64).view(5, 1, 1, 1)
    loss = at.attention_loss(map_s, map_t)
    assert loss > 0.001
    torch.testing.assert_close(at.attention_loss(map_s * factors, map_t), loss)
    torch.testing.assert_close(at.attention_loss(map_s, -map_t * factors), loss)
    whole = at.attention_map(map_s)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5, dtype=torch.float64))
    for n in range(5):
        torch.testing.assert_close(at.attention_map(map_s[n : n + 1])[0], whole[n])


def test_proportional_maps_cost_nothing():
    map_t = maps(2, 3, 4, 5, 5)
    assert at.attention_loss(0.3 * map_t, map_t) < 1e-15
    doubled = torch.cat([map_t, map_t], dim=1)  # more channels of the same
    assert at.attention_loss(doubled, map_t) < 1e-15
    assert at.attention_loss(map_t.flip(3), map_t) > 0.001


def test_attention_loss_is_bounded():
    """Two pictures without a place in common: 2 / (H·W), the most there is."""
    map_s, map_t = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    map_s[:, :, :2], map_t[:, :, 2:] = 1, 1
    assert at.attention_loss(map_s, map_t).item() == pytest.approx(2 / 16)


def test_larger_maps_are_averaged_before_they_are_squared():
    """A fine chessboard of both signs averages to nothing; squared first, it would be all ones."""
    line = torch.tensor([1.0, -1.0]).repeat(4)
    chess = (line[:, None] * line).expand(2, 3, 8, 8)
    small = torch.rand(2, 3, 4, 4)
    expected = at.attention_map(small).square().mean()
    for pair in ((chess, small), (small, chess)):
        torch.testing.assert_close(at.attention_loss(*pair), expected)


def test_empty_maps_have_a_finite_gradient():
    map_s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = at.attention_loss(map_s, torch.rand(2, 3, 4, 4))
    loss.backward()
    assert torch.isfinite(loss) and torch.equal(map_s.grad, torch.zeros_like(map_s))


def test_gradient_equals_finite_differences():
    map_s, map_t = maps(3, 2, 3, 4, 4).requires_grad_(), maps(4, 2, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda m: at.attention_loss(m, map_t), map_s)


# ------------------------------------------------------------------ the method
def test_step_follows_equation_6_and_its_weight_counts():
    """L = (1 - α) CE + α L_KD + β Σ L_AT, with the student's gradient linear in β."""
    gradients = []
    for weight in (0.0, 500.0, 1000.0):
        method = make("--attention-weight", str(weight), "--alpha", "0.3")
        losses = method.step(batch_of(32))
        own = 0.7 * losses["loss_ce"] + 0.3 * losses["loss_kd"] + weight * losses["loss_at"]
        assert losses["loss"].item() == pytest.approx(own.item(), rel=1e-6)
        stages = [at.attention_loss(method.maps_s[k], method.maps_t[k]) for k in ("0", "1", "2")]
        assert losses["loss_at"].item() == pytest.approx(sum(stages).item(), rel=1e-6)
        gradients.append(method.student.body[0][0].weight.grad.clone())
    halfway = (gradients[0] + gradients[2]) / 2
    torch.testing.assert_close(gradients[1], halfway, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.1)
    assert all(p.grad is None for p in method.teacher.network.parameters())


@pytest.mark.parametrize("alpha", ["0", "0.9"])
def test_without_its_own_term_it_is_ckd(alpha):
    """With β = 0 loss and student equal those of ckd.py, bit for bit, over three steps."""
    own = make("--attention-weight", "0", "--alpha", alpha)
    hub = make("--alpha", alpha, module=ckd)
    for _ in range(3):
        assert own.step(batch_of(32))["loss"] == hub.step(batch_of(32))["loss"]
    for key, value in hub.student.state_dict().items():
        assert torch.equal(value, own.student.state_dict()[key]), key


def test_alpha_is_off_unless_asked_for():
    assert make().args.alpha == 0 and make("--alpha", "0.9").args.alpha == 0.9


def test_a_student_like_its_teacher_pays_nothing():
    method = make(teacher="convnet2")
    method.student.load_state_dict(method.teacher.network.state_dict())
    method.student.eval()
    assert method.step(batch_of(32))["loss_at"] == 0


def test_stages_are_paired_from_the_end():
    flags = "--dataset", "csv", "--image-size", "64"
    method = make(*flags, teacher="efficientnet_b0", student="squeezenet1_1")
    assert method.pairs == [
        ("features", "features"),
        ("features.7", "features.5"),
        ("features.4", "features.3"),
    ]


@pytest.mark.parametrize(
    "teacher, student",
    [
        ("resnet18", "shufflenet_v2_x0_5"),
        ("convnext_tiny", "mobilenet_v3_small"),
        ("squeezenet1_1", "efficientnet_b0"),
        ("densenet121", "convnet4"),
    ],
)
def test_one_step_with_networks_of_torchvision(teacher, student):
    method = make("--dataset", "csv", "--image-size", "64", teacher=teacher, student=student)
    losses = method.step(batch_of(64))
    assert all(torch.isfinite(loss) for loss in losses.values()) and losses["loss_at"] > 0
    assert all(p.grad is None for p in method.teacher.network.parameters())


def test_losses_are_float32_where_networks_are_not():
    method = make("--precision", "bf16")
    losses = method.step(batch_of(32))
    assert method.maps_s["0"].dtype == torch.bfloat16
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_copies_of_the_student_work():
    """A copy is taken after a step, or after an evaluation, and trained by itself."""
    method = make()
    method.step(batch_of(32))
    bare = at.PlainTraining(method.args, {"train": None}, copy.deepcopy(method.student).train())
    bare.step(batch_of(32))
    with torch.no_grad():
        method.student.eval()(batch_of(32).images)
    assert not any(output.requires_grad for output in method.maps_s.values())  # no graph is kept
    copy.deepcopy(method.student)
    assert torch.isfinite(method.step(batch_of(32))["loss"])


@pytest.mark.parametrize("module, layer", [(at, 2), (fitnet, 1)])
def test_maps_are_those_of_the_view_where_answers_are_kept(module, layer):
    """Also of a teacher that answers by the mean of all flips, which goes on doing so."""
    first, second = batch_of(32), batch_of(32)._replace(images=batch_of(32).images.flip(3))
    expected = make(module=module).teacher.network.body[: layer + 1](first.images)
    for ways in (1, 8):
        method = make(module=module, ways=ways)
        for batch in (second, first):  # maps of another view are there before
            method.step(batch._replace(answers=method.teacher(batch)))
        torch.testing.assert_close(method.maps_t[str(layer)], expected)
        assert method.teacher.network.ways == ways


def test_layers_can_be_named():
    method = make("--layers-student", "0,2.1", "--layers-teacher", "1,2")
    assert method.pairs == [("2.1", "2"), ("0", "1")]
    assert method.step(batch_of(32))["loss_at"] > 0


def test_wrong_layers_are_explained():
    with pytest.raises(InputError, match="convnet2 has no maps at 2.7: choose 2.6, 2.5, 2.4"):
        make("--layers-student", "1,2.7", "--layers-teacher", "1,2")
    with pytest.raises(InputError, match=r"\['2'\] and \['0', '1', '2'\] make no pairs"):
        make("--layers-student", "2")
    with pytest.raises(InputError, match="^swin_t has no maps at the ends of stages: choose feat"):
        make("--dataset", "csv", "--image-size", "64", teacher="swin_t")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("module", [at, fitnet])
def test_maps_of_a_compiled_student_are_not_those_before_its_hooks(module):
    """The same network was trained before, as its teacher: that graph has no hooks."""
    losses = []
    for compiled in ("--no-compile", "--compile"):
        args = arguments(module, compiled)
        torch.manual_seed(0)
        teacher = module.Network(args, "convnet2", 3)
        given = batch_of(32)
        teacher.train()(given.images)[1].sum().backward()
        student = module.Network(args, "convnet2", 3)
        method = module.Method(args, {"train": None}, student.train(), module.Teacher(teacher))
        losses.append({name: value.detach().item() for name, value in method.step(given).items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
