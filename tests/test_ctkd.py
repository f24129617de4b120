"""CTKD's temperature against the authors' code: schedule, sign and size of its gradient, ascent."""

import copy
from pathlib import Path

import ckd
import ctkd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments

from data import Batch

PARITY = dict(np.load(Path(__file__).parent / "parity" / "kd.npz"))
CASES = [f"ctkd/theta{theta}_e{e}" for theta in ("1", "-1.5") for e in (1, 5, 10, 20)]
CASES = CASES + ["ctkd_peaked"]  # a confident teacher


def logits(scale_t=3.0, shape=(8, 5), seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits_s, logits_t = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    return logits_s, scale_t * logits_t


def temperature_of(theta, dtype=torch.float64, lowest=1.0, span=20.0):
    temperature = ctkd.Temperature(lowest, span).to(dtype)
    with torch.no_grad():
        temperature.theta.fill_(theta)
    return temperature


def test_schedule_equals_the_published_one():
    """CosineDecay(0, -1, 10) for epochs 0 to 15, whose sign is in our Reversal instead."""
    epochs, published = PARITY["ctkd/schedule/epoch"], PARITY["ctkd/schedule/cosine"]
    ours = [ctkd.reversal_weight(int(e), 10) for e in epochs]
    np.testing.assert_allclose(ours, -published, rtol=1e-12, atol=1e-15)
    assert ours[1] == pytest.approx(0.02447, abs=1e-5) and ours[5] == pytest.approx(0.5)


@pytest.mark.parametrize("ramp", [1, 3, 10, 40])
def test_reversal_never_becomes_weaker(ramp):
    weights = [ctkd.reversal_weight(e, ramp, 0.7) for e in range(1, 61)]
    assert weights == sorted(weights) and weights[0] > 0 and weights[-1] == pytest.approx(0.7)
    assert all(w == pytest.approx(0.7) for w in weights[ramp - 1 :])
    assert all(w < 0.69 for w in weights[: max(0, ramp - 4)])


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_published_code(case):
    """Global_T and DistillKL of the authors: τ, L_KD, L, dL/dz and what θ receives."""
    inputs = case.partition("/")[0]
    theta = 1.0 if inputs == "ctkd_peaked" else float(case.partition("theta")[2].partition("_")[0])
    weight = 1.0
    if inputs == "ctkd":
        weight = ctkd.reversal_weight(int(case.partition("_e")[2]), 10)
    assert weight == pytest.approx(-PARITY[f"{case}/lambda"], rel=1e-12)
    for dtype, suffix, rtol, rtol_theta, atol in (
        (torch.float64, "64", 1e-9, 1e-9, 1e-15),
        (torch.float32, "", 1e-5, 5e-5, 1e-7),
    ):
        logits_s = torch.tensor(PARITY[f"{inputs}/student"]).to(dtype).requires_grad_()
        logits_t = torch.tensor(PARITY[f"{inputs}/teacher"]).to(dtype)
        labels = torch.tensor(PARITY[f"{inputs}/labels"])
        temperature = temperature_of(theta, dtype)
        tau = temperature(weight)
        kl = ctkd.kd_loss(logits_s, logits_t, tau)
        loss = 0.1 * F.cross_entropy(logits_s, labels) + 0.9 * kl
        loss.backward()
        for name, ours in (("tau", tau), ("kl", kl), ("loss", loss), ("grad", logits_s.grad)):
            expected = PARITY[f"{case}/{name}{suffix}"]
            np.testing.assert_allclose(ours.detach(), expected, rtol=rtol, atol=atol)
        expected = PARITY[f"{case}/grad_theta{suffix}"]
        np.testing.assert_allclose(temperature.theta.grad, expected, rtol=rtol_theta)


def test_parity_numbers_show_both_signs():
    """A confident teacher makes τ fall, the other one makes it rise: both are ascent."""
    signs = {np.sign(PARITY[f"{case}/grad_theta64"]) for case in CASES}
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("theta", [-4.0, -1.0, 1.0, 3.0])
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_gradient_of_theta_is_minus_lambda_times_the_slope(theta, scale):
    """Against finite differences of L_KD in θ and in τ: θ climbs where the optimiser descends."""
    logits_s, logits_t = logits(scale)

    def kl(tau):
        return ctkd.kd_loss(logits_s, logits_t, tau).item()

    def tau_at(t):
        return 1 + 20 / (1 + np.exp(-t))

    temperature, step = temperature_of(theta), 1e-5
    ctkd.kd_loss(logits_s, logits_t, temperature(0.3)).backward()
    slope = (kl(tau_at(theta + step)) - kl(tau_at(theta - step))) / (2 * step)
    assert temperature.theta.grad.item() == pytest.approx(-0.3 * slope, rel=1e-5)
    tau = tau_at(theta)
    slope_of_tau = (kl(tau + step) - kl(tau - step)) / (2 * step)
    assert np.sign(temperature.theta.grad.item()) == -np.sign(slope_of_tau)


def test_tau_counts_in_all_three_places():
    """τ² and both softmaxes: held fixed in any of them, the gradient is another one."""
    logits_s, logits_t = logits()

    def gradient(squared, student, teacher):
        temperature = temperature_of(1.0)
        tau = temperature(1.0)
        square, tau_s, tau_t = (
            tau if here else tau.detach() for here in (squared, student, teacher)
        )
        soft_t = (logits_t / tau_t).log_softmax(1)
        kl = (soft_t.exp() * (soft_t - (logits_s / tau_s).log_softmax(1))).sum(1).mean()
        (square**2 * kl).backward()
        return temperature.theta.grad.item()

    temperature = temperature_of(1.0)
    ctkd.kd_loss(logits_s, logits_t, temperature(1.0)).backward()
    ours = temperature.theta.grad.item()
    assert ours == pytest.approx(gradient(True, True, True), rel=1e-9)
    for without in ((False, True, True), (True, False, True), (True, True, False)):
        assert abs(gradient(*without) - ours) > 0.1 * abs(ours)


@pytest.mark.parametrize("classes, direction", [(2, 1), (100, -1)])
def test_few_classes_drive_tau_up_and_many_drive_it_down(classes, direction):
    """What the header says under EXPECT; synthetic logits of a confident teacher."""
    labels = torch.arange(400) % classes
    for theta in (-1.0, 1.0, 3.0):  # τ = 6.4, 15.6, 20.1
        logits_s, logits_t = logits(1.0, (400, classes))
        logits_t[range(400), labels] += 10
        temperature = temperature_of(theta)
        ctkd.kd_loss(logits_s, logits_t, temperature(1.0)).backward()
        assert np.sign(-temperature.theta.grad.item()) == direction


def test_tau_stays_within_its_range():
    taus = [temperature_of(theta)(1.0).item() for theta in np.linspace(-30, 30, 61)]
    assert taus == sorted(taus) and 1 < taus[0] < 1.001 and 20.999 < taus[-1] < 21
    assert ctkd.Temperature(1.0, 20.0)(1.0).item() == pytest.approx(15.621, abs=1e-3)
    assert temperature_of(0.0, lowest=2.0, span=6.0)(1.0).item() == 5.0


def test_reversal_does_nothing_forward():
    theta = torch.tensor([1.0, -2.0], requires_grad=True)
    out = ctkd.Reversal.apply(theta, 0.25)
    assert torch.equal(out, theta)
    out.backward(torch.tensor([3.0, 4.0]))
    assert torch.equal(theta.grad, torch.tensor([-0.75, -1.0]))


# ------------------------------------------------------------------------------- the whole method


def method_of(module, *flags):
    """A Method of `module` with tiny networks; the same weights in every script."""
    args = arguments(module, *flags)
    torch.manual_seed(0)
    teacher = module.Teacher(module.Network(args, "convnet4", 3))
    with torch.no_grad():
        teacher.network.head.weight.mul_(3000)  # a teacher with opinions
    return module.Method(args, {"train": None}, module.Network(args, "convnet2", 3), teacher)


def some_batch(step=0, epoch=0, size=8):
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    labels = torch.arange(size) % 3
    return Batch(images, labels, labels % 2, torch.arange(size), epoch, step)


def test_defaults_are_the_published_ones():
    args = ctkd.settings().parse_args([])
    assert (args.alpha, args.temperature, args.span) == (0.9, 1.0, 20.0)
    assert (args.reversal_weight, args.ramp_epochs) == (1.0, 10)
    assert ctkd.Temperature(1.0, 20.0).theta.item() == 1.0


def test_theta_belongs_to_the_students_optimiser():
    """One learning rate, momentum and weight decay for both, and the warm-up of fit as well."""
    method = method_of(ctkd)
    first, second = method.optimizer.param_groups
    assert second["params"] == [method.temperature.theta]
    for name in ("lr", "initial_lr", "momentum", "weight_decay", "nesterov"):
        assert first[name] == second[name], name
    assert second["initial_lr"] == method.args.lr and second["momentum"] == 0.9
    assert second["weight_decay"] == 5e-4
    assert "temperature" in method.saved and not method.reported


@pytest.mark.parametrize("temperature", ["4", "1.5"])
def test_at_a_fixed_temperature_it_is_ckd(temperature):
    """Span 0, λ 0: the losses and the weights of ckd.py at this T, to the last digit."""
    flags = ("--temperature", temperature, "--lr", "0.1")
    ours = method_of(ctkd, *flags, "--span", "0", "--reversal-weight", "0")
    hub = method_of(ckd, *flags)
    for step in range(3):
        mine, theirs = ours.step(some_batch(step)), hub.step(some_batch(step))
        assert mine["temperature"] == float(temperature)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for mine, theirs in zip(ours.student.parameters(), hub.student.parameters()):
        assert torch.equal(mine, theirs)


def test_step_follows_equation_3_at_tau():
    method, batch = method_of(ctkd, "--alpha", "0.7"), some_batch()
    _, logits_s = method.student(batch.images)
    _, logits_t = method.teacher(batch)
    tau = 1 + 20 * torch.sigmoid(torch.tensor(1.0))
    ce, kd = F.cross_entropy(logits_s, batch.labels), ckd.kd_loss(logits_s, logits_t, tau)
    losses = method.step(batch)
    assert list(losses) == ["loss", "loss_ce", "loss_kd", "temperature"]
    assert losses["temperature"].item() == pytest.approx(tau.item())
    assert losses["loss_kd"].item() == pytest.approx(kd.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((0.3 * ce + 0.7 * kd).item(), rel=1e-5)


def test_without_reversal_theta_stands_still():
    """λ = 0 and no weight decay: not a digit changes. Weight decay alone pulls θ to 0, τ to 11."""
    still = method_of(ctkd, "--reversal-weight", "0", "--weight-decay", "0")
    decaying = method_of(ctkd, "--reversal-weight", "0")
    for step in range(4):
        still.step(some_batch(step, epoch=20))
        decaying.step(some_batch(step, epoch=20))
        if step == 0:
            expected = 1 - decaying.args.lr * 5e-4
            assert decaying.temperature.theta.item() == pytest.approx(expected, abs=1e-7)
    assert still.temperature.theta.item() == 1.0
    assert 0.99 < decaying.temperature.theta.item() < expected


def test_the_reversal_follows_the_epoch_and_leaves_the_student_alone():
    """What θ receives grows with λ(epoch); the student's step is the same in every epoch."""
    gradients, students = [], []
    for epoch in (0, 4, 9, 200):
        method = method_of(ctkd)
        method.step(some_batch(epoch=epoch))
        gradients.append(method.temperature.theta.grad.item())
        students.append(method.student.state_dict())
    weights = [ctkd.reversal_weight(e, 10) for e in (1, 5, 10, 201)]
    np.testing.assert_allclose(np.divide(gradients, gradients[2]), weights, rtol=1e-5)
    assert abs(gradients[0]) > 0
    for state in students[1:]:
        assert all(torch.equal(value, students[0][name]) for name, value in state.items())
    shorter = method_of(ctkd, "--ramp-epochs", "5")
    shorter.step(some_batch(epoch=4))
    assert shorter.temperature.theta.grad.item() == pytest.approx(gradients[2], rel=1e-5)


def test_the_step_climbs():
    """With the student held, L_KD on the same batch becomes larger with every step of θ."""
    method = method_of(ctkd, "--weight-decay", "0")
    method.optimizer.param_groups[0]["lr"] = 0.0
    history = [method.step(some_batch(epoch=20)) for _ in range(12)]
    losses = [row["loss_kd"].item() for row in history]
    taus = [row["temperature"].item() for row in history]
    assert losses == sorted(losses) and losses[-1] > 1.003 * losses[0]
    assert taus[0] == pytest.approx(15.621, abs=1e-3)
    assert taus == sorted(taus) and taus[-1] > taus[0] + 1


def test_a_restart_keeps_the_temperature():
    """θ and its momentum come back from what a checkpoint holds: the third step is the same."""
    method = method_of(ctkd)
    for step in range(2):
        method.step(some_batch(step, epoch=12))
    states = copy.deepcopy({name: part.state_dict() for name, part in method.saved.items()})
    again = method_of(ctkd)
    for name, part in again.saved.items():
        part.load_state_dict(states[name])
    assert again.temperature.theta.item() == method.temperature.theta.item() != 1.0
    for run in (method, again):
        run.step(some_batch(2, epoch=12))
    assert again.temperature.theta.item() == method.temperature.theta.item()
