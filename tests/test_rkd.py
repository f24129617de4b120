"""RKD's two losses against the authors' code, and against what they must be whatever the code."""

from pathlib import Path

import ckd
import numpy as np
import pytest
import rkd
import torch
import torch.nn.functional as F
from conftest import arguments

from data import Batch

PARITY = dict(np.load(Path(__file__).parent / "parity" / "kd.npz"))
LOSSES = {"distance": rkd.rkd_distance_loss, "angle": rkd.rkd_angle_loss}
LOSSES["total"] = lambda s, t: 25 * LOSSES["distance"](s, t) + 50 * LOSSES["angle"](s, t)
BOTH = pytest.mark.parametrize("name", ["distance", "angle"])


def points(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient_of(loss, feats_s, feats_t):
    feats_s = feats_s.detach().clone().requires_grad_()
    value = loss(feats_s, feats_t)
    value.backward()
    return value.detach(), feats_s.grad


def plain_losses(feats_s, feats_t):
    """Both losses written out in numpy, one pair and one triplet after the other."""

    def relations(f):
        n = len(f)
        length = np.array([[np.linalg.norm(f[j] - f[i]) for j in range(n)] for i in range(n)])
        mean = length.sum() / (n * (n - 1))
        angle = np.zeros((n, n, n))
        for i, j, k in np.ndindex(n, n, n):
            if i != j and i != k:
                angle[i, j, k] = (f[j] - f[i]) @ (f[k] - f[i]) / length[i, j] / length[i, k]
        return length / mean, angle

    def huber(x):
        return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5).mean()

    return [huber(s - t) for s, t in zip(relations(feats_s), relations(feats_t))]


@pytest.mark.parametrize("key", ["rkd_distance", "rkd_angle", "rkd_total", "rkd_dup_distance"])
def test_losses_equal_the_published_code(key):
    """RkdDistance and RKdAngle of the authors, RKDLoss of RepDistiller: loss and gradient."""
    loss, rough = LOSSES[key.split("_")[-1]], 2e-3 if "dup" in key else 1e-5
    for dtype, suffix, rtol, atol in (
        (torch.float64, "64", 1e-9, 1e-15),
        (torch.float32, "", rough, rough / 100),  # float32 there: see the header, public code, 3
    ):
        feats_s, feats_t = (torch.tensor(PARITY[f"{key}/{s}"]) for s in ("student", "teacher"))
        value, grad = gradient_of(loss, feats_s.to(dtype), feats_t.to(dtype))
        assert value.dtype == grad.dtype == dtype
        np.testing.assert_allclose(value, PARITY[f"{key}/loss{suffix}"], rtol=rtol)
        np.testing.assert_allclose(grad, PARITY[f"{key}/grad{suffix}"], rtol=rtol, atol=atol)


def test_the_gradient_that_explodes_in_public_code_is_small_here():
    """Rows 0 and 1 are equal: the same loss, a gradient of 3e9 there, of the usual size here."""
    feats_s, feats_t = (torch.tensor(PARITY[f"rkd_dup_angle/{s}"]) for s in ("student", "teacher"))
    assert np.abs(PARITY["rkd_dup_angle/grad"]).max() > 1e9
    for dtype, suffix, rtol in ((torch.float64, "64", 1e-9), (torch.float32, "", 1e-5)):
        value, grad = gradient_of(LOSSES["angle"], feats_s.to(dtype), feats_t.to(dtype))
        np.testing.assert_allclose(value, PARITY[f"rkd_dup_angle/loss{suffix}"], rtol=rtol)
        usual = np.abs(PARITY["rkd_angle/grad64"]).max()
        assert 0 < grad.abs().max() < 10 * usual


def test_intermediate_values_equal_the_published_code():
    for side in ("student", "teacher"):
        feats = torch.tensor(PARITY[f"rkd_distance/{side}"])
        distances = rkd.relative_distances(feats)
        expected = PARITY[f"rkd_distance/{side}_normalised"]
        np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-7)
        lengths = PARITY[f"rkd_distance/{side}_pdist"] / PARITY[f"rkd_distance/{side}_mean"]
        np.testing.assert_allclose(distances, lengths, rtol=1e-5, atol=1e-7)
        cosines = rkd.angle_cosines(torch.tensor(PARITY[f"rkd_angle/{side}"]))
        np.testing.assert_allclose(cosines, PARITY[f"rkd_angle/{side}_cos"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-3])
def test_losses_equal_loops_over_pairs_and_triplets(gap):
    """Also where two of the points are a thousandth of the usual distance apart."""
    feats_s, feats_t = points(6, 5), points(6, 7, seed=1)
    feats_s[1] = feats_s[0] + gap * points(5, seed=2)
    plain = plain_losses(feats_s.numpy(), feats_t.numpy())
    for name, expected in zip(("distance", "angle"), plain):
        assert LOSSES[name](feats_s, feats_t).item() == pytest.approx(expected, rel=1e-8)


@BOTH
def test_gradient_equals_finite_differences(name):
    """The mean distance μ is part of it: detached, the gradient would be another one."""
    feats_s, feats_t = points(6, 4).requires_grad_(), points(6, 5, seed=1)
    assert torch.autograd.gradcheck(lambda f: LOSSES[name](f, feats_t), feats_s)


@BOTH
def test_shift_rotation_and_scale_change_nothing(name):
    feats_s, feats_t = points(7, 5), points(7, 6, seed=1)
    rotation = torch.linalg.qr(points(5, 5, seed=2))[0]
    value, grad = gradient_of(LOSSES[name], feats_s, feats_t)
    moved = 3.7 * feats_s @ rotation + points(5, seed=3)
    assert LOSSES[name](moved, feats_t).item() == pytest.approx(value.item(), rel=1e-10)
    ## So the gradient can neither shift nor blow up the cloud of points as a whole.
    assert grad.sum(0).abs().max() < 1e-12 and (grad * feats_s).sum().abs() < 1e-12
    assert value > 1e-3 and grad.abs().max() > 1e-4
    stretched = feats_s * torch.tensor([5.0, 1, 1, 1, 1])  # one direction only: this does count
    assert abs(LOSSES[name](stretched, feats_t) - value) > 1e-3


@BOTH
def test_zero_where_the_student_has_the_teachers_shape(name):
    feats_t = points(7, 5)
    rotation = torch.linalg.qr(points(5, 5, seed=2))[0]
    value, grad = gradient_of(LOSSES[name], 0.1 * feats_t @ rotation - 3, feats_t)
    assert value < 1e-25 and grad.abs().max() < 1e-12


@BOTH
def test_order_of_the_pictures_does_not_matter(name):
    feats_s, feats_t, order = points(7, 5), points(7, 6, seed=1), torch.randperm(7)
    value, grad = gradient_of(LOSSES[name], feats_s, feats_t)
    again, permuted = gradient_of(LOSSES[name], feats_s[order], feats_t[order])
    assert again.item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(permuted, grad[order])
    assert abs(LOSSES[name](feats_s.flip(0), feats_t) - value) > 1e-4  # one side alone does matter


@BOTH
@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_pictures_cost_nothing(name, n):
    for feats_s in (points(n, 4), torch.zeros(n, 4)):
        value, grad = gradient_of(LOSSES[name], feats_s, points(n, 5, seed=1))
        assert value == 0 and torch.equal(grad, torch.zeros_like(feats_s))
    three = gradient_of(LOSSES[name], points(3, 4), points(3, 5, seed=1))
    assert three[0] > 1e-6 and three[1].abs().max() > 1e-6


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["two equal", "all but one equal", "all equal", "rounding", "far"])
def test_gradient_is_finite_where_pictures_coincide(name, dtype, case):
    feats_s, feats_t = 3 * points(8, 16, dtype=dtype), points(8, 24, seed=1, dtype=dtype)
    if case == "two equal":
        feats_s[1] = feats_s[0]
    if case == "all but one equal":
        feats_s[1:] = feats_s[1]
    if case == "all equal":
        feats_s[:] = feats_s[0]
    if case == "rounding":  # the same picture twice, up to the last digits of float32
        feats_s[1] = feats_s[0] * (1 + 2e-7)
    if case == "far":  # far from the origin, where short distances drown in rounding
        feats_s[1] = feats_s[0]
        feats_s += 1000
    for student, teacher in ((feats_s, feats_t), (feats_s, feats_s), (feats_t, feats_s)):
        value, grad = gradient_of(LOSSES[name], student, teacher)
        assert value.isfinite() and grad.abs().max() < 1


@BOTH
def test_autocast_and_half_precision(name):
    """Under autocast nothing changes; half precision costs only the rounding of its inputs."""
    feats_s, feats_t = points(8, 16, dtype=torch.float32), points(8, 24, seed=1).float()
    value, grad = gradient_of(LOSSES[name], feats_s, feats_t)
    with torch.autocast("cpu", torch.bfloat16):
        again, same = gradient_of(LOSSES[name], feats_s, feats_t)
    assert torch.equal(value, again) and torch.equal(grad, same) and again.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        half, rounded = gradient_of(LOSSES[name], feats_s.to(dtype), feats_t.to(dtype))
        assert half.item() == pytest.approx(value.item(), rel=0.02)
        torch.testing.assert_close(rounded.float(), grad, rtol=0.1, atol=0.05 * grad.abs().max())


@BOTH
def test_the_teacher_gets_no_gradient(name):
    feats_s, feats_t = points(5, 4).requires_grad_(), points(5, 6, seed=1).requires_grad_()
    LOSSES[name](feats_s, feats_t).backward()
    assert feats_t.grad is None and feats_s.grad.abs().max() > 0


# ------------------------------------------------------------------------------- the whole method


def method_of(module, *flags, seed=0):
    """A Method of `module` with tiny networks; the same weights in every script."""
    args = arguments(module, *flags)
    torch.manual_seed(seed)
    teacher = module.Teacher(module.Network(args, "convnet4", 3))
    return module.Method(args, {"train": None}, module.Network(args, "convnet2", 3), teacher)


def some_batch(step=0, size=8):
    labels = torch.arange(size) % 3
    images = points(size, 3, 8, 8, seed=step, dtype=torch.float32)
    return Batch(images, labels, labels % 2, torch.arange(size), 0, step)


def test_defaults_are_the_published_ones():
    args = rkd.settings().parse_args([])
    assert (args.alpha, args.distance_weight, args.angle_weight) == (0.0, 25.0, 50.0)


@pytest.mark.parametrize("alpha", ["0", "0.9"])
def test_without_its_own_weights_it_is_ckd(alpha):
    """λ_D = λ_A = 0: the same losses and the same weights after three steps, to the last digit."""
    none = ("--distance-weight", "0", "--angle-weight", "0")
    ours = method_of(rkd, "--alpha", alpha, *none)
    hub = method_of(ckd, "--alpha", alpha)
    for step in range(3):
        mine, theirs = ours.step(some_batch(step)), hub.step(some_batch(step))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for mine, theirs in zip(ours.student.parameters(), hub.student.parameters()):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "flags", [(), ("--alpha", "0.9", "--distance-weight", "3"), ("--normalize",)]
)
def test_step_follows_equation_8(flags):
    method, batch = method_of(rkd, *flags), some_batch()
    args, (feats_t, logits_t) = method.args, method.teacher(batch)
    feats_s, logits_s = method.student(batch.images)
    ce, kd = F.cross_entropy(logits_s, batch.labels), ckd.kd_loss(logits_s, logits_t, 4.0)
    feats = [f.detach().double().numpy() for f in (feats_s, feats_t)]
    if args.normalize:
        feats = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in feats]
    distance, angle = plain_losses(*feats)
    expected = (1 - args.alpha) * ce + args.alpha * kd
    expected = expected + args.distance_weight * distance + args.angle_weight * angle
    losses = method.step(batch)
    assert list(losses) == ["loss", "loss_ce", "loss_kd", "loss_distance", "loss_angle"]
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss_distance"].item() == pytest.approx(distance, rel=1e-4)
    assert losses["loss_angle"].item() == pytest.approx(angle, rel=1e-4)


def test_each_weight_moves_the_student():
    """With plain training off, the features alone carry the gradient: the head gets none."""
    for flag in ("--distance-weight", "--angle-weight"):
        method = method_of(rkd, "--alpha", "0", flag, "0")
        other = method_of(rkd, "--alpha", "0")
        method.step(some_batch())
        other.step(some_batch())
        first, second = (m.student.body[0][0].weight.grad for m in (method, other))
        assert not torch.allclose(first, second, rtol=1e-3)
        assert torch.equal(method.student.head.weight.grad, other.student.head.weight.grad)


def test_the_student_learns_the_shape():
    """A few steps on one batch make both losses clearly smaller."""
    method = method_of(rkd)
    history = [method.step(some_batch()) for _ in range(60)]
    for name in ("loss_distance", "loss_angle"):
        assert history[-1][name] < 0.7 * history[0][name]
