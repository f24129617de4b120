"""Adversarial KD: the reversal, the adversary, what λ does, and that no strength breaks it."""

import copy
import itertools
from pathlib import Path

import adversarial_kd as adv
import ckd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments, load_toy

from data import batches, times_shown

PARITY = np.load(Path(__file__).parent / "parity" / "fair_kd.npz")
SWEEP = (0, 0.1, 0.5, 1, 2, 5, 10, 50, 150)  # the values of λ that run_all.sh compares


def uneven():
    """The smoke toy with a tenth of the training pictures of class 1, group 0."""
    data = copy.copy(load_toy())
    train = data["train"]
    rare = ((train.labels == 1) & (train.groups == 0)).nonzero()[4:, 0]
    data.splits = {**data.splits, "train": train.subset(np.delete(np.arange(len(train)), rare))}
    return data


def made(*flags, module=adv, data=None):
    """A Method of `module` on the smoke toy, and a few of its batches."""
    args, data = arguments(module, *flags), data or load_toy()
    late = batches(data["train"], 32, seed=0, epoch=99)  # λ is fully in force
    given = [batch for batch, _ in zip(late, range(4))]
    torch.manual_seed(0)
    teacher = module.Teacher(module.Network(args, "convnet8", 6))
    torch.manual_seed(1)
    student = module.Network(args, "convnet4", 6).train()
    return module.Method(args, data, student, teacher), given


def trained(*flags, module=adv):
    """The student's weights after a few steps, and the losses of the last."""
    method, given = made(*flags, module=module)
    for batch in given:
        losses = method.step(batch)
    return method.student.state_dict(), losses


def official(dtype):
    """The published adversaries (one per class, two layers), their inputs and λ."""
    P = {k.removeprefix("ad/"): PARITY[k] for k in PARITY if k.startswith("ad/")}
    classes, hidden, _ = P["W1"].shape
    adversary = adv.Adversary(classes, classes, P["W2"].shape[1], hidden).to(dtype)
    weights = (P["W1"].reshape(-1, classes), P["b1"].ravel(), P["W2"].reshape(-1, hidden))
    for parameter, value in zip(adversary.parameters(), (*weights, P["b2"].ravel())):
        parameter.data = torch.tensor(value, dtype=dtype)
    logits = torch.tensor(P["logits"], dtype=dtype, requires_grad=True)
    return adversary, logits, torch.tensor(P["labels"]), torch.tensor(P["groups"]), P


def test_the_game_equals_the_published_one():
    """For each class the mean loss of its adversary behind the reversal: loss and all gradients."""
    adversary, logits, labels, groups, P = official(torch.float32)
    seen = adv.Reverse.apply(logits, float(P["adv_lambda"]), 1.0)
    guess = adversary(seen, labels)
    ## Their mean within a class, summed over classes, as weights of our mean over samples.
    weights = (len(labels) / torch.bincount(labels))[:, None].expand(-1, 2)
    loss_adv = adv.adversary_loss(guess, labels, groups, weights)
    np.testing.assert_allclose(loss_adv.item(), P["adv_loss"], rtol=1e-5)
    (loss_adv / 4).backward()  # so little that Eq. (6) shortens nothing
    for parameter, key in zip(adversary.parameters(), ("W1", "b1", "W2", "b2")):
        want = P[f"grad_{key}"].reshape(parameter.shape)
        np.testing.assert_allclose(4 * parameter.grad, want, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(4 * logits.grad, P["grad_logits"], rtol=1e-4, atol=1e-7)


def test_one_network_per_class():
    """The published loop over classes gives the same as our two wide layers."""
    adversary, logits, labels, _, P = official(torch.float64)
    guess = adversary(logits, labels)
    for n, y in enumerate(labels.tolist()):
        W1, b1, W2, b2 = (torch.tensor(P[k][y], dtype=torch.float64) for k in "W1 b1 W2 b2".split())
        want = W2 @ (W1 @ logits[n] + b1).relu() + b2
        torch.testing.assert_close(guess[n], want, rtol=1e-12, atol=1e-12)


def test_reverse():
    """The same forward; backward -λ times the gradient, shortened to log(1 + λ)/√B, not turned."""
    torch.manual_seed(0)
    logits, grad = torch.randn(16, 3, requires_grad=True), torch.randn(16, 3)
    grad = 0.1 * grad / grad.norm()
    for strength in SWEEP:
        seen = adv.Reverse.apply(logits, strength, 1.0)
        assert torch.equal(seen, logits)
        (back,) = torch.autograd.grad(seen, logits, grad)
        torch.testing.assert_close(back, -min(strength, np.log(1 + strength) / 4 / 0.1) * grad)
    (back,) = torch.autograd.grad(adv.Reverse.apply(logits, 150.0, 1.0), logits, 0 * grad)
    assert back.abs().max() == 0  # a clueless adversary: no pull, and no NaN
    (back,) = torch.autograd.grad(adv.Reverse.apply(logits, 150.0, 0.5), logits, grad)
    torch.testing.assert_close(back, -0.5 * np.log(151) / 4 / 0.1 * grad)  # the ramp after the cut


def test_adversary_loss_is_capped():
    """Beyond the cap a student gains nothing, neither value nor gradient."""
    guess = torch.tensor([[3.0, 0.0], [0.0, 3.0]], requires_grad=True)  # surely right, surely wrong
    rows = torch.tensor([0, 0]), torch.tensor([0, 0]), torch.ones(1, 2)
    loss = adv.adversary_loss(guess, *rows, cap=np.log(2))
    right = np.log1p(np.exp(-3))
    np.testing.assert_allclose(loss.item(), (right + np.log(2)) / 2, rtol=1e-5)
    loss.backward()
    assert guess.grad[0].abs().min() > 0 and guess.grad[1].abs().max() == 0


def test_adversary_loss():
    """Against its definition; with weights 1/N every cell counts alike."""
    torch.manual_seed(0)
    labels, groups = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 0, 1])
    guess, weights = torch.randn(5, 2), torch.tensor([[5 / 8, 5 / 4], [5 / 4, 5 / 4]])
    each = -guess.log_softmax(1)[range(5), groups]
    cells = torch.stack([each[:2].mean(), each[2], each[3], each[4]])
    torch.testing.assert_close(adv.adversary_loss(guess, labels, groups, weights), cells.mean())
    torch.testing.assert_close(
        adv.adversary_loss(torch.zeros(5, 2), labels, groups, torch.ones(2, 2)).item(), np.log(2.0)
    )


def test_weights_of_the_cells():
    """w is the inverse of the cell's size, its mean over the training pictures 1; no infinity."""
    method, _ = made()
    train = method.data["train"]
    w = method.weights[train.labels, train.groups]
    np.testing.assert_allclose(w.mean(), 1, rtol=1e-5)
    for y, a in ((0, 0), (1, 0), (5, 1)):
        inside = w[(train.labels == y) & (train.groups == a)]
        np.testing.assert_allclose(inside.sum(), len(train) / 12, rtol=1e-5)
    data = copy.copy(method.data)
    keep = (train.labels != 0) | (train.groups != 0)
    data.splits = {**data.splits, "train": train.subset(keep.nonzero()[:, 0])}
    emptied = adv.Method(method.args, data, method.student, method.teacher)
    assert emptied.weights.isfinite().all()
    train = data["train"]  # the eleven cells that there are have equal shares
    w = emptied.weights[train.labels, train.groups]
    shares = torch.zeros(12).index_add(0, train.labels * 2 + train.groups, w) / len(train)
    torch.testing.assert_close(shares[1:], torch.full((11,), 1 / 11))


@pytest.mark.parametrize("flags", [["--balance"], ["--balance", "groups"], []])
def test_weights_do_what_the_batches_do_not(flags):
    """The mean weight of what is drawn is 1, and each cell has an equal share of the weights;
    batches of --balance hold all cells equally often already, so that their weights are 1."""
    method, _ = made(*flags, data=uneven())
    balance = method.args.balance
    drawn = [*batches(method.data["train"], 32, seed=0, balance=balance)]
    labels, groups = (torch.cat([getattr(b, part) for b in drawn]) for part in ("labels", "groups"))
    weights = method.weights[labels, groups]
    np.testing.assert_allclose(weights.mean(), 1, rtol=0.05)  # the last batch is incomplete
    train = method.data["train"]
    shown = times_shown(train, balance) * method.weights[train.labels, train.groups]
    cells = torch.zeros(12).index_add(0, train.labels * 2 + train.groups, shown.float())
    np.testing.assert_allclose(cells / len(train), 1 / 12, rtol=1e-5)
    assert (torch.bincount(labels * 2 + groups)[2] < 10) == (balance != "cells")
    assert (balance == "cells") == (method.weights - 1).abs().max().lt(1e-6).item()


@pytest.mark.parametrize("flags", [["--balance"], ["--balance", "groups"], []])
def test_the_logged_accuracy_is_an_accuracy(flags, monkeypatch):
    """It is 1 for an adversary that is always right, also where a batch holds few rare pictures."""
    method, given = made(*flags, data=uneven())
    batch = given[0]
    rare = batch._replace(  # one cell alone, whose pictures weigh 10 times as much as others
        labels=torch.ones_like(batch.labels), groups=torch.zeros_like(batch.groups)
    )
    for each in (batch, rare):
        told = F.one_hot(each.groups, 2) * 9.0
        monkeypatch.setattr(
            adv.Adversary, "forward", lambda self, z, y, told=told: told + 0 * self.second.bias[:2]
        )
        torch.testing.assert_close(method.step(each)["accuracy_adv"].item(), 1.0)
    always_0 = torch.tensor([9.0, 0.0]).expand(len(batch.groups), 2)  # right in group 0 alone
    monkeypatch.setattr(
        adv.Adversary, "forward", lambda self, z, y: always_0 + 0 * self.second.bias[:2]
    )
    w = method.weights[batch.labels, batch.groups]
    expected = w[batch.groups == 0].sum() / w.sum()
    torch.testing.assert_close(method.step(batch)["accuracy_adv"], expected)


def test_zero_strength_is_ckd():
    """After several steps the students' weights are equal, not only close."""
    own, losses = trained("--adversary-weight", "0")
    hub, of_hub = trained(module=ckd)
    assert torch.equal(losses["loss"], of_hub["loss"])
    assert all(torch.equal(own[name], hub[name]) for name in hub)


def test_strength_changes_the_student():
    """A detached adversary fails here: λ must reach the student's gradient, more λ more of it."""
    gradients = []
    for strength in ("0", "0.001", "0.002", "10"):
        method, given = made("--adversary-weight", strength)
        method.step(given[0])
        gradients.append(torch.cat([p.grad.flatten() for p in method.student.parameters()]))
    little, twice, much = (g - gradients[0] for g in gradients[1:])
    assert little.norm() > 0
    torch.testing.assert_close(twice, 2 * little, rtol=0.02, atol=1e-6)
    assert much.norm() > 10 * twice.norm()


def test_the_student_gets_the_opposite_of_what_the_adversary_wants():
    """-λ times the gradient of the adversary that has just made its own step."""
    method, given = made("--adversary-weight", "0.01")
    task, _ = made("--adversary-weight", "0")
    before, batch = copy.deepcopy(method.adversary), given[0]
    cells = (batch.labels, batch.groups, method.weights)
    logits = copy.deepcopy(method.student)(batch.images)[1].detach().requires_grad_()
    own = adv.adversary_loss(before(logits, batch.labels), *cells)
    own = torch.autograd.grad(own, list(before.parameters()))
    for parameter, gradient in zip(before.parameters(), own):
        parameter.grad = gradient
    torch.optim.Adam(before.parameters(), method.args.adversary_lr).step()
    seen = adv.adversary_loss(before(logits, batch.labels), *cells, cap=np.log(2))
    (wanted,) = torch.autograd.grad(seen, logits)
    method.step(batch), task.step(batch)
    for ours, updated in zip(method.adversary.parameters(), before.parameters()):
        torch.testing.assert_close(ours, updated)  # its own step: not reversed, not times λ
    bias = method.student.head.bias.grad - task.student.head.bias.grad
    torch.testing.assert_close(bias, -0.01 * wanted.sum(dim=0), rtol=1e-2, atol=1e-6)


def test_nothing_of_one_step_is_left_in_the_next_one_of_the_adversary():
    """Its gradient is that of the batch, without the student's pass of the step before."""
    method, given = made("--adversary-weight", "10")
    method.step(given[0])
    adversary, optimizer = copy.deepcopy(method.adversary), method.optimizer_adv.state_dict()
    own = torch.optim.Adam(adversary.parameters(), method.args.adversary_lr)
    own.load_state_dict(copy.deepcopy(optimizer))
    batch = given[1]
    with torch.no_grad():
        logits = copy.deepcopy(method.student)(batch.images)[1]
    own.zero_grad()
    cells = (batch.labels, batch.groups, method.weights)
    adv.adversary_loss(adversary(logits, batch.labels), *cells).backward()
    own.step()
    method.step(batch)
    for ours, updated in zip(method.adversary.parameters(), adversary.parameters()):
        torch.testing.assert_close(ours, updated)


def test_the_ramp_ends_at_half_time():
    """Half of the pull at a quarter of the epochs, all of it from the middle on."""
    pulls = []
    for epoch in (0, 2, 4, 7):
        method, given = made("--adversary-weight", "10")
        method.args.epochs = 8
        method.step(given[0]._replace(epoch=epoch))
        pulls.append(method.student.head.bias.grad)
    pulls = [pull - pulls[0] for pull in pulls[1:]]
    assert pulls[1].norm() > 0 and torch.equal(pulls[1], pulls[2])
    torch.testing.assert_close(pulls[0], pulls[1] / 2, rtol=1e-3, atol=1e-6)


def test_every_strength_of_the_sweep_is_a_setting_of_its_own():
    """No two give the same student, also where every pull is shortened (a sure adversary)."""
    students, pulls = [], []
    logits = torch.zeros(16, 6, requires_grad=True)
    for strength in SWEEP:
        state, _ = trained("--adversary-weight", str(strength))
        students.append(torch.cat([value.flatten().float() for value in state.values()]))
        seen = adv.Reverse.apply(logits, strength, 1.0)
        (back,) = torch.autograd.grad(seen, logits, torch.full((16, 6), 9.0))
        pulls.append(back.norm().item())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(students, 2))
    assert all(more > 1.2 * less for less, more in itertools.pairwise(pulls))
    assert pulls[-1] * 4 < 4 * 2**0.5  # no picture's mean pull is above the most that L_KD has


@pytest.mark.parametrize("strength", ["0.1", "150"])
def test_every_strength_stays_finite(strength):
    method, given = made("--adversary-weight", strength)
    for _ in range(10):
        for batch in given:
            losses = method.step(batch)
    values = [*losses.values(), *method.student.state_dict().values()]
    assert all(value.isfinite().all() for value in values)


def test_the_adversary_learns():
    """Where logits and class give the group away, its accuracy rises."""
    torch.manual_seed(0)
    labels, groups = torch.arange(256) % 2, torch.arange(256) // 2 % 2
    logits = 0.3 * torch.randn(256, 2)
    logits[:, 0] += (2.0 * groups - 1) * (2.0 * labels - 1)  # the sign depends on the class
    adversary = adv.Adversary(2, 2, 2)
    optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
    for _ in range(60):
        loss = adv.adversary_loss(adversary(logits, labels), labels, groups, torch.ones(2, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (adversary(logits, labels).argmax(1) == groups).float().mean() > 0.95


def test_the_first_epoch_is_ckd():
    """The ramp starts at 0: the adversary learns, the student does not hear of it yet."""
    method, given = made("--adversary-weight", "150")
    task, _ = made("--adversary-weight", "0")
    for each in (method, task):
        each.step(given[0]._replace(epoch=0))
    for ours, other in zip(method.student.parameters(), task.student.parameters()):
        assert torch.equal(ours.grad, other.grad)
    assert method.adversary.first.weight.grad.abs().max() > 0


def test_negative_strength_is_refused(capsys):
    with pytest.raises(SystemExit):
        made("--adversary-weight", "-1")
    assert "--adversary-weight: -1 must be at least 0" in capsys.readouterr().err
