"""GroupDRO: its weights against MEDFAIR's own code, and what moves them and what must not."""

import copy
from dataclasses import replace
from pathlib import Path

import ckd
import groupdro
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments, method_of, random

from data import batches

PARITY = np.load(Path(__file__).parent / "parity" / "medical.npz")


def official_steps():
    """The six batches of the reference: (logits, targets, groups); the last is its validation."""
    return zip(*(PARITY[f"groupdro/in/{k}"] for k in ("logits", "targets", "group")), strict=True)


def test_parity_with_medfair():
    """Group losses, weights, loss and gradient of six calls; group 0 is absent from the fourth.

    The last call is the reference's validation, which moves its weights: the same function, called
    where we would not call it.
    """
    weights = torch.full((4,), 0.25)
    for n, (logits, targets, groups) in enumerate(official_steps()):
        logits = torch.tensor(logits).requires_grad_()
        losses = F.binary_cross_entropy_with_logits(
            logits, torch.tensor(targets), reduction="none"
        )[:, 0]
        means = groupdro.group_losses(losses, torch.tensor(groups), 4)
        weights = groupdro.group_weights(weights, means.detach(), 0.01)
        loss = weights @ means
        loss.backward()
        want = {k: PARITY[f"groupdro/out/{k}"][n] for k in ("group_mean_loss", "q_after")}
        np.testing.assert_allclose(means.detach(), want["group_mean_loss"], rtol=1e-6)
        np.testing.assert_allclose(weights, want["q_after"], atol=2e-7, rtol=0)
        np.testing.assert_allclose(loss.item(), PARITY["groupdro/out/robust_loss"][n], rtol=1e-6)
        np.testing.assert_allclose(logits.grad, PARITY["groupdro/out/grad_logits"][n], atol=1e-7)
        assert n != 3 or (0 not in groups and means[0] == 0)


def test_group_losses_are_means_of_their_pictures():
    losses, groups = random(40).abs(), torch.arange(40) % 3
    means = groupdro.group_losses(losses, groups, 5)
    for g in range(3):
        assert torch.allclose(means[g], losses[groups == g].mean())
    assert means[3:].tolist() == [0, 0]


def test_weights_by_the_formula_and_without_overflow():
    weights, losses = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), random(3).abs()
    plain = weights * torch.exp(0.7 * losses)
    got = groupdro.group_weights(weights, losses, 0.7)
    assert torch.allclose(got, plain / plain.sum())
    huge = groupdro.group_weights(torch.tensor([0.5, 0.5]), torch.tensor([1e6, 0.0]), 1.0)
    assert huge.tolist() == [1, 0]


def test_the_worst_group_gains_and_an_absent_one_loses():
    """Weights go where losses are highest, whatever the size of the group."""
    weights = torch.full((3,), 1 / 3)
    groups = torch.tensor([0] * 30 + [1] * 2)
    losses = torch.where(groups == 1, 2.0, 0.5)
    for _ in range(100):
        means = groupdro.group_losses(losses, groups, 3)
        weights = groupdro.group_weights(weights, means, 0.05)
    assert weights[1] > 0.9 > weights[0] > weights[2]
    assert weights.sum().item() == pytest.approx(1)


def test_one_step_by_hand(toy):
    """The update of the network is SGD on Σ q m with the new q as a constant."""
    method = method_of(groupdro, toy, "--weight-step", "0.5", "--lr", "1", "--weight-decay", "0")
    batch = next(batches(toy["train"], 32, seed=0))
    again = method_of(groupdro, toy)
    losses = F.cross_entropy(again.student.train()(batch.images)[1], batch.labels, reduction="none")
    means = torch.stack([losses[batch.groups == g].mean() for g in (0, 1)])
    q = torch.softmax(0.5 * means.detach(), dim=0)
    (q * means).sum().backward()
    rate = method.optimizer.param_groups[0]["lr"]
    want = again.student.head.weight - rate * again.student.head.weight.grad
    method.student.train()
    returned = method.step(batch)
    assert torch.allclose(method.student.head.weight, want, atol=1e-6)
    assert torch.allclose(method.weights.q, q)
    assert returned["loss"].item() == pytest.approx((q * means).sum().item(), rel=1e-5)


def test_validation_never_moves_the_weights(toy):
    method = method_of(groupdro, toy)
    method.step(next(batches(toy["train"], 32, seed=0)))
    before = method.weights.q.clone()
    _, validation = groupdro.measure(method.student, toy, "val")
    method.end_epoch(0, validation)
    method.finish()
    assert torch.equal(method.weights.q, before) and before[0] != before[1]


def test_with_step_size_zero_it_weighs_groups_equally(toy):
    """No step: q stays 1/G, and the loss is the mean of the group means."""
    method = method_of(groupdro, toy, "--weight-step", "0")
    batch = next(batches(toy["train"], 32, seed=0))
    means = [
        F.cross_entropy(method.student.train()(batch.images)[1], batch.labels, reduction="none")[
            batch.groups == g
        ].mean()
        for g in (0, 1)
    ]
    assert method.step(batch)["loss"].item() == pytest.approx(sum(means).item() / 2, rel=1e-5)
    assert method.weights.q.tolist() == [0.5, 0.5]


def test_by_class_gives_every_cell_its_weight(toy):
    """Twelve weights; the ones of cells that are in the batch and hard grow."""
    method = method_of(groupdro, toy, "--by-class", "--weight-step", "1")
    batch = next(batches(toy["train"], 32, seed=0))
    losses = F.cross_entropy(
        method.student.train()(batch.images)[1], batch.labels, reduction="none"
    ).detach()
    method.step(batch)
    assert method.weights.q.shape == (12,)
    means = torch.zeros(12)
    for g in range(2):
        for c in range(6):
            cell = (batch.groups == g) & (batch.labels == c)
            means[6 * g + c] = losses[cell].mean() if cell.any() else 0
    assert torch.allclose(method.weights.q, torch.softmax(means, 0), atol=1e-6)


def test_a_batch_of_one_group(toy):
    """Nothing undefined; the absent group's weight is finite, smaller, and no part of the loss."""
    method = method_of(groupdro, toy)
    batch = next(batches(toy["train"].subset(toy["train"].groups == 1), 32, seed=0))
    losses = method.step(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    assert 0 < method.weights.q[0] < 0.5 < method.weights.q[1] == losses["highest_weight"]
    torch.testing.assert_close(losses["loss"], method.weights.q[1] * losses["loss_ce"])


def test_no_teacher_and_the_weights_are_saved(toy):
    assert not groupdro.Method.needs_teacher and ckd.Method.needs_teacher
    args = arguments(groupdro)
    method = groupdro.Method(args, toy, groupdro.Network(args, "convnet2", 6))
    method.step(next(batches(toy["train"], 32, seed=0)))
    state = method.saved["weights"].state_dict()
    other = groupdro.Method(args, toy, groupdro.Network(args, "convnet2", 6))
    other.saved["weights"].load_state_dict(state)
    assert torch.equal(other.weights.q, method.weights.q) and other.weights.q[0] != 0.5


@pytest.mark.parametrize(
    "flags", [[], ["--by-class"], ["--by-class", "--balance"], ["--balance", "groups"]]
)
def test_class_shares_are_those_of_the_loss(toy, flags):
    """What Eq. (3) gives to the pictures of a class, added up over all pictures at once."""
    data = copy.copy(toy)
    train = data["train"]
    kept = np.delete(np.arange(len(train)), np.flatnonzero(train.labels == 1)[3:-20])
    data.splits = data.splits | {"train": train.subset(kept)}
    method = method_of(groupdro, data, *flags)
    method.weights.q = torch.softmax(torch.arange(method.num_groups) / 4, 0)
    labels, groups = (getattr(data["train"], part) for part in ("labels", "groups"))
    own = groups * 6 + labels if "--by-class" in flags else groups
    losses = torch.ones(len(labels), requires_grad=True)
    (method.weights.q @ groupdro.group_losses(losses, own, method.num_groups)).backward()
    expected = torch.zeros(6).index_add(0, labels, losses.grad)
    torch.testing.assert_close(torch.tensor(method.class_shares()), expected)
    assert abs(sum(method.class_shares()) - 1) < 1e-6 and min(method.class_shares()) < 0.16


def test_a_cell_without_pictures_has_no_share(toy):
    """Its q is there and weighs no loss, whatever it is; nor does that of an empty group."""
    train, q = toy["train"], torch.softmax(torch.arange(12) / 4, 0)
    there = (train.labels != 1) | (train.groups == 0)
    data = replace(toy, splits=toy.splits | {"train": train.subset(np.flatnonzero(there))})
    method = method_of(groupdro, data, "--by-class")
    method.weights.q = q
    cells = q.view(2, 6).clone()
    cells[1, 1] = 0
    expected = cells.sum(0) / cells.sum()
    torch.testing.assert_close(torch.tensor(method.class_shares()), expected)
    data = replace(toy, splits=toy.splits | {"train": train.subset(np.flatnonzero(train.groups))})
    method = method_of(groupdro, data)
    expected = torch.bincount(data["train"].labels) / len(data["train"])
    torch.testing.assert_close(torch.tensor(method.class_shares()), expected)
