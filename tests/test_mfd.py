"""MFD against the authors' code, against a loop over the cells, and against what it must be."""

from pathlib import Path

import ckd
import mfd
import numpy as np
import pytest
import torch
from conftest import arguments, method_of, random
from torch import nn

from data import batches

PARITY = dict(np.load(Path(__file__).parent / "parity" / "fair_kd.npz"))
LABELS, GROUPS = (
    torch.tensor(PARITY[f"mfd/{key}"], dtype=torch.int64) for key in ("labels", "groups")
)


def by_loop(feats_s, feats_t, labels, groups, sigma):
    """The definition, cell by cell and without a Gram matrix: {(class, group): MMD²}."""

    def square(u, v):
        return (u[:, None] - v[None]).square().sum(dim=2)

    m = square(feats_t, feats_s).mean().detach()

    def mean_kernel(u, v):
        return torch.exp(-square(u, v) / (2 * sigma * m)).mean()

    cells = {}
    for y in labels.unique().tolist():
        for a in groups[labels == y].unique().tolist():
            t, s = feats_t[labels == y], feats_s[(labels == y) & (groups == a)]
            cells[y, a] = mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(t, s)
    return cells


# ===== L_MMD ======================================================================================


@pytest.mark.parametrize(
    "inputs, results, weight, sigma",
    [
        ("mfd", "mfd/rbf", 1.0, 1.0),
        ("mfd", "mfd/rbf_lambf3", 3.0, 1.0),
        ("mfd", "mfd/rbf_sigma05", 1.0, 0.5),
        ("mfd", "mfd/rbf_sigma2", 1.0, 2.0),
        ("mfd4d", "mfd4d", 1.0, 1.0),
    ],
)
def test_mmd_loss_equals_the_published_code(inputs, results, weight, sigma):
    """λ/2 times the sum; one of the six cells is empty."""
    feats_t = torch.tensor(PARITY[f"{inputs}/teacher"])
    feats_s = torch.tensor(PARITY[f"{inputs}/student"], requires_grad=True)
    flat = feats_s.flatten(1), feats_t.flatten(1)  # one of the cases has maps
    loss = weight / 2 * mfd.mmd_loss(*flat, LABELS, GROUPS, sigma)
    loss.backward()
    np.testing.assert_allclose(loss.detach(), PARITY[f"{results}/loss"], rtol=1e-5)
    expected = PARITY[f"{results}/grad_student"]
    np.testing.assert_allclose(feats_s.grad, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_mmd_loss_equals_a_loop_over_the_cells(sigma):
    """In float64, loss and gradient; at σ = 1 each cell's value is the published one, too."""
    feats_t = torch.tensor(PARITY["mfd/teacher"], dtype=torch.float64)
    feats_s = torch.tensor(PARITY["mfd/student"], dtype=torch.float64, requires_grad=True)
    cells = by_loop(feats_s, feats_t, LABELS, GROUPS, sigma)
    assert len(cells) == 5  # class 0 has no picture of group 1
    loss = mfd.mmd_loss(feats_s, feats_t, LABELS, GROUPS, sigma)
    torch.testing.assert_close(loss, sum(cells.values()), rtol=1e-10, atol=0)
    (found,) = torch.autograd.grad(loss, feats_s)
    (expected,) = torch.autograd.grad(sum(cells.values()), feats_s)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    if sigma == 1:
        for (y, a), value in cells.items():
            assert value.item() == pytest.approx(PARITY["mfd/cell_mmd2"][y, a], rel=1e-5)


def test_mmd_gradient_equals_finite_differences():
    """With the bandwidth 2σm held still, as the gradient does: σ makes up for a change of m."""
    feats_t, feats_s = random(10, 3), random(10, 3, seed=1).requires_grad_()
    labels, groups = torch.arange(10) % 3, torch.arange(10) % 2
    (grad,) = torch.autograd.grad(mfd.mmd_loss(feats_s, feats_t, labels, groups, 0.7), feats_s)

    def m(f):
        return (feats_t[:, None] - f).square().sum(dim=2).mean().item()

    still, moving, step = torch.zeros(10, 3), torch.zeros(10, 3), 1e-5
    for n in range(30):
        shift = torch.zeros(30, dtype=torch.float64)
        shift[n] = step
        up, down = feats_s.detach() + shift.view(10, 3), feats_s.detach() - shift.view(10, 3)
        for out, sigma in ((still, lambda f: 0.7 * m(feats_s) / m(f)), (moving, lambda f: 0.7)):
            ends = [mfd.mmd_loss(f, feats_t, labels, groups, sigma(f)) for f in (up, down)]
            out.view(-1)[n] = (ends[0] - ends[1]).item() / (2 * step)
    torch.testing.assert_close(grad.float(), still, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(grad.float(), moving, rtol=1e-2, atol=1e-4)  # m would have one


def test_zero_where_every_cell_is_its_class():
    """Both groups of each class have the teacher's features, in another order."""
    feats_t = random(4, 5).repeat(3, 1)  # two classes, each thrice the same two features
    labels, groups = torch.tensor([0, 0, 1, 1]).repeat(3), torch.arange(3).repeat_interleave(4)
    feats_s = feats_t[[1, 0, 3, 2, 4, 5, 6, 7, 9, 8, 10, 11]]

    def loss(f):
        return mfd.mmd_loss(f, feats_t, labels, groups, 1.0)

    assert loss(feats_s).abs() < 1e-11
    apart = feats_s + (groups == 1)[:, None]  # one group has features of its own
    assert loss(apart) > 0.01
    ## The same shift with half of the class in both groups: the cells differ less from the class.
    assert mfd.mmd_loss(apart, feats_t, labels, groups * 0, 1.0) < loss(apart)


def test_the_target_is_the_class_not_the_cell():
    """A student that copies a teacher whose groups differ is still wrong."""
    feats, labels, groups = random(12, 4), torch.zeros(12, dtype=torch.int64), torch.arange(12) % 2
    feats = feats + 3 * groups[:, None]
    assert mfd.mmd_loss(feats, feats, labels, groups, 1.0) > 0.2
    assert mfd.mmd_loss(feats, feats, labels, groups * 0, 1.0).abs() < 1e-11


def test_bounds_order_and_scale():
    for seed in range(5):
        feats_s, feats_t = random(20, 4, seed=seed), 3 * random(20, 4, seed=seed + 50)
        rng = torch.Generator().manual_seed(seed)
        labels, groups = (torch.randint(3, (20,), generator=rng) for _ in range(2))
        loss = mfd.mmd_loss(feats_s, feats_t, labels, groups, 1.0)
        cells = len({*zip(labels.tolist(), groups.tolist())})
        assert 0 < loss <= 2 * cells
        order = torch.randperm(20, generator=rng)
        shuffled = (x[order] for x in (feats_s, feats_t, labels, groups))
        torch.testing.assert_close(mfd.mmd_loss(*shuffled, 1.0), loss)
        torch.testing.assert_close(
            mfd.mmd_loss(feats_s, feats_t, 7 - labels, groups + 5, 1.0), loss
        )
        torch.testing.assert_close(
            mfd.mmd_loss(9 * feats_s, 9 * feats_t, labels, groups, 1.0), loss
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 12])
def test_degenerate_batches_stay_finite(dtype, size):
    """One picture; one for each cell; all features equal, so that m is as small as it gets."""
    labels, groups = torch.arange(size), torch.arange(size) % 2
    for feats_t in (random(size, 4).to(dtype), torch.zeros(size, 4, dtype=dtype)):
        for shift in (0.0, 1.0):
            feats_s = (feats_t + shift).requires_grad_()
            for y in (labels, labels * 0):
                loss = mfd.mmd_loss(feats_s, feats_t, y, groups, 1.0)
                (grad,) = torch.autograd.grad(loss, feats_s)
                assert loss.isfinite() and loss > -1e-5 and grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    feats_s, feats_t = random(8, 4).requires_grad_(), random(8, 4, seed=1).requires_grad_()
    mfd.mmd_loss(feats_s, feats_t, torch.arange(8) % 2, torch.arange(8) % 3, 1.0).backward()
    assert feats_t.grad is None and feats_s.grad.abs().max() > 0


# ===== the step ===================================================================================


@pytest.mark.parametrize("alpha", ["0", "0.9"])
@pytest.mark.parametrize("networks", [("convnet4", "convnet2"), ("convnet2", "convnet2")])
def test_without_its_own_term_it_is_ckd(toy, alpha, networks):
    """--mfd-weight 0: ckd.py's losses and students, bit by bit."""
    ours = method_of(mfd, toy, "--alpha", alpha, "--mfd-weight", "0", networks=networks)
    hub = method_of(ckd, toy, "--alpha", alpha, networks=networks)
    for batch in batches(toy["train"], 32, seed=0, views="mirrored"):
        a, b = ours.step(batch), hub.step(batch)
        assert all(torch.equal(a[name], b[name]) for name in b)
    for x, y in zip(ours.student.state_dict().values(), hub.student.state_dict().values()):
        assert torch.equal(x, y)


def test_step_follows_equation_7(toy):
    """No L_KD by default, half of λ, and the loss is that of the batch's own cells."""
    batch = next(batches(toy["train"], 32, seed=0))
    assert arguments(mfd).alpha == 0 and arguments(mfd).mfd_weight == 1
    others = ("--alpha", "0.3", "--mfd-weight", "7", "--sigma", "0.5")
    for flags, alpha, weight, sigma in (((), 0, 1, 1), (others, 0.3, 7, 0.5)):
        method = method_of(mfd, toy, *flags, networks=("convnet2", "convnet2"))
        feats_s, feats_t = method.student(batch.images)[0], method.teacher(batch)[0]
        expected = sum(by_loop(feats_s, feats_t, batch.labels, batch.groups, sigma).values())
        losses = {k: v.item() for k, v in method.step(batch).items()}
        assert losses["loss_fair"] == pytest.approx(expected.item(), rel=1e-3)
        expected = (1 - alpha) * losses["loss_ce"] + alpha * losses["loss_kd"]
        assert losses["loss"] == pytest.approx(
            expected + weight / 2 * losses["loss_fair"], rel=1e-6
        )


def test_groups_move_the_student(toy):
    batch, grads = next(batches(toy["train"], 32, seed=0)), []
    for groups in (batch.groups, batch.groups.flip(0)):
        method = method_of(mfd, toy)
        method.step(batch._replace(groups=groups))
        grads.append(method.student.body[0][0].weight.grad.clone())
    assert not torch.allclose(*grads, rtol=0.01)


def test_the_regressor_learns_and_stays_out_of_the_student(toy):
    method = method_of(mfd, toy)  # features of width 8 and 16
    assert isinstance(method.regressor, nn.Linear) and method.regressor.weight.shape == (16, 8)
    assert len(method.regressor.bias) == 16
    assert method.saved["regressor"] is method.regressor
    rest = [p for group in method.optimizer.param_groups[1:] for p in group["params"]]
    assert {id(p) for p in rest} == {id(p) for p in method.regressor.parameters()}
    assert method.optimizer.param_groups[1]["initial_lr"] == method.args.lr
    plain = mfd.Network(method.args, "convnet2", 6)
    assert method.student.state_dict().keys() == plain.state_dict().keys()
    before = [p.detach().clone() for p in method.regressor.parameters()]
    method.step(next(batches(toy["train"], 32, seed=0)))
    assert not any(torch.equal(a, b) for a, b in zip(before, method.regressor.parameters()))


def test_equal_widths_need_no_regressor(toy):
    method = method_of(mfd, toy, networks=("convnet2", "convnet2"))
    assert not list(method.regressor.parameters())


@pytest.mark.parametrize("sigma", ["0", "-1", "nan"])
def test_impossible_bandwidths_are_refused(sigma, capsys):
    with pytest.raises(SystemExit):
        arguments(mfd, "--sigma", sigma)
    assert f"--sigma: {sigma} must be " in capsys.readouterr().err
