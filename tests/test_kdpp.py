"""KD++ against the authors' code (loss, objective, centres) and against what it must be."""

from pathlib import Path

import ckd
import kdpp
import numpy as np
import pytest
import torch
from conftest import arguments, method_of, random
from torch import nn

from data import Batch, batches

PARITY = dict(np.load(Path(__file__).parent / "parity" / "kd.npz"))


def tensor(key, dtype=torch.float64):
    return torch.tensor(PARITY[key], dtype=dtype)


# ===== L_ND =======================================================================================


def test_nd_loss_equals_the_published_code():
    """DirectNormLoss of the authors, loss and gradient, with longer and shorter students."""
    labels = tensor("kdpp/labels", torch.int64)
    for dtype, suffix, tolerance in (
        (torch.float64, "64", {"rtol": 1e-9, "atol": 1e-15}),
        (torch.float32, "", {"rtol": 1e-5, "atol": 1e-7}),
    ):
        feats_s, feats_t, centers = (
            tensor(f"kdpp/{k}", dtype) for k in ("student", "teacher", "centers")
        )
        longer = feats_s.norm(dim=1) > feats_t.norm(dim=1)
        np.testing.assert_array_equal(longer, PARITY["kdpp/student_norm_is_larger"])
        feats_s.requires_grad_()
        loss = kdpp.nd_loss(feats_s, feats_t, centers, labels)
        loss.backward()
        np.testing.assert_allclose(loss.detach(), PARITY[f"kdpp/loss{suffix}"], **tolerance)
        np.testing.assert_allclose(feats_s.grad, PARITY[f"kdpp/grad{suffix}"], **tolerance)


@pytest.mark.parametrize("epoch", [0, 10, 30])
def test_a_step_is_half_the_published_objective(epoch):
    """CE + min(1, epoch/20) · KL + 2 · ND of the authors: twice what our defaults minimise."""
    logits_s = tensor("kdpp/student_logits").requires_grad_()
    feats_s = tensor("kdpp/student").requires_grad_()
    method = object.__new__(kdpp.Method)  # without networks: their outputs are given
    method.args = arguments(kdpp)
    method.warmup, method.centers, method.adapter = 20, tensor("kdpp/centers"), nn.Identity()
    method.student = lambda images: (feats_s, logits_s)
    method.teacher = lambda batch: (tensor("kdpp/teacher"), tensor("kdpp/teacher_logits"))
    method.update = lambda loss: loss.backward()
    labels = tensor("kdpp/labels", torch.int64)
    losses = method.step(Batch(None, labels, None, None, epoch, 0))
    found = {
        "loss64": losses["loss"].detach(),
        "grad64": logits_s.grad,
        "grad_s64": feats_s.grad,
    }
    for key, value in found.items():
        expected = PARITY[f"kdpp_total/e{epoch}/{key}"]
        np.testing.assert_allclose(2 * value, expected, rtol=1e-9, atol=1e-15)


def test_nd_loss_is_bounded_and_reaches_its_bounds():
    centers, labels, feats_t = random(5, 7), torch.arange(5), random(5, 7, seed=1)
    far = 10 * feats_t.norm(dim=1, keepdim=True) * centers / centers.norm(dim=1, keepdim=True)
    assert kdpp.nd_loss(far, feats_t, centers, labels).abs() < 1e-14  # along the centre and longer
    assert (kdpp.nd_loss(-far, feats_t, centers, labels) - 2).abs() < 1e-14
    short = far / 100  # a tenth of the teacher's length: right direction, too short
    assert (kdpp.nd_loss(short, feats_t, centers, labels) - 0.9).abs() < 1e-14
    for seed in range(20):
        loss = kdpp.nd_loss(10.0 ** (seed - 10) * random(5, 7, seed=seed), feats_t, centers, labels)
        assert 0 <= loss <= 2


def gradients(scale):
    """(feats_s, feats_t, directions of their classes, gradient times B)."""
    centers, labels = random(4, 6), torch.tensor([0, 3, 3, 1, 2])
    feats_s, feats_t = random(5, 6, seed=1), random(5, 6, seed=2)
    feats_s = (
        feats_s * scale * feats_t.norm(dim=1, keepdim=True) / feats_s.norm(dim=1, keepdim=True)
    )
    feats_s.requires_grad_()
    loss = kdpp.nd_loss(feats_s, feats_t, centers, labels)
    loss.backward()
    directions = centers[labels] / centers[labels].norm(dim=1, keepdim=True)
    return loss.detach(), feats_s.detach(), feats_t, directions, 5 * feats_s.grad


def test_a_short_student_is_pushed_out_along_the_centre():
    _, _, feats_t, directions, grad = gradients(scale=0.3)
    torch.testing.assert_close(grad, -directions / feats_t.norm(dim=1, keepdim=True))


def test_a_long_student_only_turns():
    """|f| > |f'|: the loss is 1 - cos and the gradient is orthogonal to f."""
    loss, feats_s, _, directions, grad = gradients(scale=3.0)
    torch.testing.assert_close(loss, (1 - torch.cosine_similarity(feats_s, directions)).mean())
    assert (grad * feats_s).sum(dim=1).abs().max() < 1e-14
    assert grad.norm(dim=1).min() > 1e-3


def test_nd_gradient_equals_finite_differences():
    centers, labels, feats_t = random(4, 6), torch.tensor([0, 3, 3, 1]), random(4, 6, seed=2)
    lengths = torch.tensor([0.1, 3.0, 0.5, 8.0], dtype=torch.float64)[:, None]
    feats_s = (lengths * random(4, 6, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: kdpp.nd_loss(f, feats_t, centers, labels), feats_s)


def test_zeros_give_finite_losses_and_gradients():
    labels = torch.tensor([0, 1, 1, 1])  # class 0 has a zero centre
    centers, feats_s, feats_t = random(2, 6), random(4, 6, seed=1), random(4, 6, seed=2)
    centers[0], feats_s[1:3], feats_t[2:] = 0, 0, 0  # row 1: student, 2: both, 3: teacher
    feats_s.requires_grad_()
    loss = kdpp.nd_loss(feats_s, feats_t, centers, labels)
    loss.backward()
    cosine = torch.cosine_similarity(feats_s[3], centers[1], dim=0)
    torch.testing.assert_close(loss, (3 + 1 - cosine) / 4)
    assert feats_s.grad.isfinite().all()
    assert (feats_s.grad[0] == 0).all()  # no direction, no pull
    assert (feats_s.grad[1:3] @ centers[1] < 0).all()  # outwards
    torch.testing.assert_close(
        feats_s.grad[1], -centers[1] / centers[1].norm() / feats_t[1].norm() / 4
    )


# ===== centres ====================================================================================


def test_centers_equal_the_published_code():
    """Theirs are rounded to four decimals."""
    centers = kdpp.class_centers(
        tensor("kdpp_centers/emb"), tensor("kdpp_centers/labels", torch.int64), 10
    )
    np.testing.assert_allclose(centers, PARITY["kdpp_centers/centers"], rtol=0, atol=1.01e-4)


def test_centers_are_means_and_zero_for_an_absent_class():
    feats_t, labels = random(9, 4), torch.tensor([2, 0, 0, 2, 4, 0, 2, 2, 4])
    centers = kdpp.class_centers(feats_t, labels, 6)
    assert centers.shape == (6, 4) and centers.dtype == feats_t.dtype
    for k in (0, 2, 4):
        torch.testing.assert_close(centers[k], feats_t[labels == k].mean(dim=0))
    assert (centers[[1, 3, 5]] == 0).all()


def test_centers_are_of_all_plain_training_pictures(toy):
    """Every picture once, the teacher in eval mode: --balance and --seed do not matter."""
    method, train = method_of(kdpp, toy), toy["train"]
    images = (train.images.float() - train.mean) / train.std
    feats_t, _ = method.teacher.network(images)
    for k in range(6):
        expected = feats_t[train.labels == k].mean(dim=0)
        torch.testing.assert_close(method.centers[k], expected, rtol=1e-4, atol=1e-6)
    assert not method.teacher.network.training and not method.centers.requires_grad
    other = method_of(kdpp, toy, "--balance", "--seed", "3")
    assert torch.equal(other.centers, method.centers)


# ===== the step ===================================================================================


@pytest.mark.parametrize("alpha", ["0", "0.5", "0.9"])
@pytest.mark.parametrize("networks", [("convnet4", "convnet2"), ("convnet2", "convnet2")])
def test_without_its_own_term_it_is_ckd(toy, alpha, networks):
    """--nd-weight 0 without warm-up: ckd.py's losses and students, bit by bit."""
    own = "--nd-weight", "0", "--warmup-epochs", "0"
    ours = method_of(kdpp, toy, "--alpha", alpha, *own, networks=networks)
    hub = method_of(ckd, toy, "--alpha", alpha, networks=networks)
    for batch in batches(toy["train"], 32, seed=0, views="mirrored"):
        a, b = ours.step(batch), hub.step(batch)
        assert all(torch.equal(a[name], b[name]) for name in b)
    for x, y in zip(ours.student.state_dict().values(), hub.student.state_dict().values()):
        assert torch.equal(x, y)


def test_the_own_term_moves_the_student(toy):
    batch, heads = next(batches(toy["train"], 32, seed=0)), []
    for weight in ("0", "1"):
        method = method_of(kdpp, toy, "--nd-weight", weight)
        torch.manual_seed(0)
        method.step(batch)
        heads.append(method.student.body[0][0].weight.grad.clone())
    assert not torch.allclose(*heads, rtol=0.1)


@pytest.mark.parametrize(
    "epochs, flags, shares",
    [
        (12, [], [0, 1, 1]),
        (24, [], [0, 0.5, 1, 1]),
        (240, [], [e / 20 for e in range(21)]),
        (12, ["--warmup-epochs", "4"], [0, 0.25, 0.5, 0.75, 1, 1]),
        (12, ["--warmup-epochs", "0"], [1, 1]),
        (1, [], [0]),
    ],
)
def test_the_weight_of_kd_warms_up(toy, epochs, flags, shares):
    """A twelfth of the epochs, or as long as the flag says; CE and ND keep their weights."""
    args = arguments(kdpp, *flags)
    args.epochs = epochs
    teacher = kdpp.Teacher(kdpp.Network(args, "convnet2", 6))
    student = kdpp.Network(args, "convnet2", 6).eval()
    method = kdpp.Method(args, toy, student, teacher)
    method.update = lambda loss: None
    batch = next(batches(toy["train"], 32, seed=0))
    for epoch, share in enumerate(shares):
        losses = {k: v.item() for k, v in method.step(batch._replace(epoch=epoch)).items()}
        expected = 0.5 * losses["loss_ce"] + 0.5 * share * losses["loss_kd"] + losses["loss_nd"]
        assert losses["loss_kd"] > 0 and losses["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_adapter_learns_and_stays_out_of_the_student(toy):
    method = method_of(kdpp, toy)  # features of width 8 and 16
    assert [type(m) for m in method.adapter] == [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert method.saved["adapter"] is method.adapter and method.adapter[1].p == 0.5
    rest = [p for group in method.optimizer.param_groups[1:] for p in group["params"]]
    assert {id(p) for p in rest} == {id(p) for p in method.adapter.parameters()}
    assert method.optimizer.param_groups[1]["initial_lr"] == method.args.lr
    plain = kdpp.Network(method.args, "convnet2", 6)
    assert method.student.state_dict().keys() == plain.state_dict().keys()
    before = [p.detach().clone() for p in method.adapter.parameters()]
    method.step(next(batches(toy["train"], 32, seed=0)))
    assert not any(torch.equal(a, b) for a, b in zip(before, method.adapter.parameters()))


def test_equal_widths_need_no_adapter(toy):
    method = method_of(kdpp, toy, networks=("convnet2", "convnet2"))
    assert not list(method.adapter.parameters()) and len(method.optimizer.param_groups) == 1
