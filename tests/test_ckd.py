"""kd_loss against the authors' code and against what it must be; the networks; the shared loop."""

import argparse
import copy
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import ckd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments

from data import InputError, batches

PARITY = dict(np.load(Path(__file__).parent / "parity" / "kd.npz"))


def loss_and_gradient(logits_s, logits_t, temperature, dtype):
    logits_s = torch.tensor(logits_s, dtype=dtype, requires_grad=True)
    loss = ckd.kd_loss(logits_s, torch.tensor(logits_t, dtype=dtype), temperature)
    loss.backward()
    return loss.detach().numpy(), logits_s.grad.numpy()


@pytest.mark.parametrize(
    "key, temperature",
    [("T1", 1.0), ("T4", 4.0), ("T20", 20.0), ("mdistiller_T4", 4.0), ("large", 4.0)],
)
def test_kd_loss_equals_the_published_code(key, temperature):
    """RepDistiller's DistillKL and mdistiller's kd_loss, loss and gradient."""
    inputs = "ckd/large" if key == "large" else "ckd"
    pair = PARITY[f"{inputs}/student"], PARITY[f"{inputs}/teacher"]
    loss, grad = loss_and_gradient(*pair, temperature, torch.float64)
    if f"ckd/{key}/loss64" in PARITY:
        np.testing.assert_allclose(loss, PARITY[f"ckd/{key}/loss64"], rtol=1e-9)
        np.testing.assert_allclose(grad, PARITY[f"ckd/{key}/grad64"], rtol=1e-9, atol=1e-15)
    loss, grad = loss_and_gradient(*pair, temperature, torch.float32)
    np.testing.assert_allclose(loss, PARITY[f"ckd/{key}/loss"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(grad, PARITY[f"ckd/{key}/grad"], rtol=1e-5, atol=1e-7)


def test_the_whole_objective_equals_the_published_one():
    """0.1 CE + 0.9 KL at T = 4, as RepDistiller and attention-transfer have it."""
    logits_s = torch.tensor(PARITY["ckd/student"], dtype=torch.float64, requires_grad=True)
    logits_t = torch.tensor(PARITY["ckd/teacher"], dtype=torch.float64)
    labels = torch.tensor(PARITY["ckd/labels"], dtype=torch.int64)
    loss = 0.1 * F.cross_entropy(logits_s, labels) + 0.9 * ckd.kd_loss(logits_s, logits_t, 4.0)
    loss.backward()
    for key in ("ckd/total", "ckd/szagoruyko_total"):
        np.testing.assert_allclose(loss.detach(), PARITY[f"{key}/loss64"], rtol=1e-9)
        np.testing.assert_allclose(logits_s.grad, PARITY[f"{key}/grad64"], rtol=1e-9, atol=1e-15)


def test_kd_loss_is_zero_only_where_both_agree():
    rng = torch.Generator().manual_seed(0)
    logits_t = torch.randn(8, 5, generator=rng, dtype=torch.float64)
    shifted = logits_t + torch.randn(8, 1, generator=rng, dtype=torch.float64)
    assert ckd.kd_loss(shifted, logits_t, 4.0).abs() < 1e-14  # a constant changes no probability
    assert ckd.kd_loss(logits_t.flip(1), logits_t, 4.0) > 0.1


def test_kd_gradient_is_the_difference_of_the_softened_outputs():
    rng = np.random.default_rng(0)
    logits_s, logits_t, temperature = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), 3.0
    _, grad = loss_and_gradient(logits_s, logits_t, temperature, torch.float64)

    def soft(z):
        return torch.softmax(torch.tensor(z) / temperature, 1).numpy()

    expected = temperature / 6 * (soft(logits_s) - soft(logits_t))
    np.testing.assert_allclose(grad, expected, rtol=1e-12)
    np.testing.assert_allclose(grad.sum(1), 0, atol=1e-15)


def test_kd_loss_at_high_temperature_matches_logits():
    """T → ∞: half the mean over samples of |centred difference|² / C."""
    rng = torch.Generator().manual_seed(1)
    logits_s, logits_t = torch.randn(2, 8, 5, generator=rng, dtype=torch.float64)
    difference = (logits_s - logits_s.mean(1, True)) - (logits_t - logits_t.mean(1, True))
    limit = difference.square().sum(1).mean() / (2 * 5)
    assert ckd.kd_loss(logits_s, logits_t, 1e4) == pytest.approx(limit.item(), rel=1e-3)


def test_step_follows_equation_3(toy):
    """The returned loss is (1 - α) CE + α L_KD, and α moves the student's gradient."""
    batch, gradients = next(batches(toy["train"], 32, seed=0)), []
    for alpha in (0.0, 0.5, 1.0):
        args = arguments(ckd, "--alpha", str(alpha))
        torch.manual_seed(0)
        teacher = ckd.Teacher(ckd.Network(args, "convnet8", 6))
        student = ckd.Network(args, "convnet4", 6)
        losses = ckd.Method(args, toy, student, teacher).step(batch)
        expected = (1 - alpha) * losses["loss_ce"] + alpha * losses["loss_kd"]
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
        assert losses["loss_kd"] > 0
        gradients.append(student.head.weight.grad.clone())
    torch.testing.assert_close(gradients[1], (gradients[0] + gradients[2]) / 2)
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.1)


@pytest.mark.parametrize(
    "name, size, width",
    [
        ("resnet18", 32, 512),
        ("shufflenet_v2_x0_5", 64, 1024),
        ("mobilenet_v3_small", 64, 1024),
        ("efficientnet_b0", 64, 1280),
        ("squeezenet1_1", 64, 512),
        ("googlenet", 64, 1024),
        ("vit_b_16", 32, 768),
        ("convnet8", 32, 32),
    ],
)
def test_any_classifier_gives_features_and_logits(name, size, width):
    """The features are what the last linear layer sees: head(features) = logits."""
    net = ckd.Network(arguments(ckd, "--image-size", str(size), "--dataset", "csv"), name, 3)
    feats, logits = net.train()(torch.randn(2, 3, size, size))
    assert feats.shape == (2, width) and logits.shape == (2, 3)
    torch.testing.assert_close(net.head(feats), logits)


def test_small_resnets_keep_their_resolution():
    """The 3 x 3 stem leaves 32 pixels at 32; the stem for ImageNet would make 8 of them."""
    small = ckd.Network(arguments(ckd, "--image-size", "32", "--dataset", "csv"), "resnet18", 3)
    large = ckd.Network(arguments(ckd, "--image-size", "64", "--dataset", "csv"), "resnet18", 3)

    def width(net):
        return net.body.maxpool(net.body.conv1(torch.zeros(1, 3, 32, 32))).shape[-1]

    assert width(small) == 32 and width(large) == 8


def test_bf16_inside_float32_outside():
    net = ckd.Network(arguments(ckd, "--precision", "bf16"), "convnet8", 3)
    feats, logits = net(torch.randn(4, 3, 32, 32))
    assert feats.dtype == logits.dtype == torch.float32
    assert torch.equal(feats, feats.bfloat16().float())  # computed with eight bits


def test_missing_weights_are_explained(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="resnet18.*--no-pretrained"):
        ckd.Network(arguments(ckd, "--pretrained", "--dataset", "csv"), "resnet18", 3)


def test_learning_rate_warms_up_and_ends_near_zero(toy):
    args, rates = arguments(ckd, "--batch-size", "32"), []
    args.epochs = 4
    method = ckd.PlainTraining(args, toy, ckd.Network(args, "convnet2", 6))
    method.step = lambda batch: rates.append(method.optimizer.param_groups[0]["lr"]) or {}
    ckd.fit(args, toy, method, "test")
    steps = len(rates) // 4
    assert rates[0] == pytest.approx(args.lr / steps)
    assert args.lr / 2 < rates[steps - 1] == max(rates)
    assert rates[-1] < args.lr * 1e-3 and rates[steps:] == sorted(rates[steps:], reverse=True)


def test_fit_logs_mean_losses_and_moves_each_rate_by_its_own_highest(toy):
    args = arguments(ckd, "--batch-size", "32")
    args.epochs = 1
    method = ckd.PlainTraining(args, toy, ckd.Network(args, "convnet2", 6))
    own = {"params": [torch.nn.Parameter(torch.zeros(1))], "initial_lr": args.lr / 4}
    method.optimizer.add_param_group(own)
    method.step = lambda batch: {"loss": torch.tensor(float(batch.step))}
    _, log, _ = ckd.fit(args, toy, method, "test")
    assert log[0]["loss"] == (len(toy["train"]) // 32 - 1) / 2
    usual, other = (group["lr"] for group in method.optimizer.param_groups)
    assert other == pytest.approx(usual / 4)


def test_what_an_optimizer_and_the_corrected_decisions_are_given(toy):
    for optimizer, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        args = arguments(ckd, "--optimizer", optimizer, "--weight-decay", "0.03")
        method = ckd.PlainTraining(args, toy, ckd.Network(args, "convnet2", 6))
        (group,) = method.optimizer.param_groups
        assert type(method.optimizer) is kind and (optimizer == "adamw" or group["momentum"] == 0.9)
        assert group["weight_decay"] == 0.03 and group["initial_lr"] == group["lr"] == args.lr
        assert len(group["params"]) == len([*method.student.parameters()])
    rare = (toy["train"].labels != 1) | (torch.arange(len(toy["train"])) % 4 == 0)
    data = copy.copy(toy)
    data.splits = toy.splits | {"train": toy["train"].subset(rare.nonzero()[:, 0])}
    sizes = torch.bincount(data["train"].labels, minlength=6)
    for flags, expected in (([], sizes / sizes.sum()), (["--balance"], torch.full((6,), 1 / 6))):
        args = arguments(ckd, *flags)
        method = ckd.PlainTraining(args, data, ckd.Network(args, "convnet2", 6))
        torch.testing.assert_close(torch.tensor(method.class_shares()), expected)


def test_chance_in_steps_depends_on_seed_and_epoch_alone(toy):
    """So that dropout is the same where a run goes on after a kill."""
    drawn = {}
    for seed, again in itertools.product((0, 1), (False, True)):
        torch.manual_seed(100 + again)
        args = arguments(ckd, "--seed", str(seed))
        method, found = ckd.PlainTraining(args, toy, ckd.Network(args, "convnet2", 6)), []
        method.step = lambda batch, found=found: {"loss": found.append(torch.rand(1)) or found[-1]}
        ckd.fit(args, toy, method, "test")
        drawn[seed, again] = torch.cat(found).view(2, -1)[:, 0].tolist()  # of both epochs the first
    assert drawn[0, False] == drawn[0, True] and drawn[1, False] == drawn[1, True]
    assert len({*drawn[0, False], *drawn[1, False]}) == 4


def test_networks_are_measured_as_they_are_in_evaluation(toy):
    """With batch norm at rest, and by decisions corrected by the shares that are given."""
    args, shares = arguments(ckd), [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    torch.manual_seed(0)
    network, (batch,) = ckd.Network(args, "convnet2", 6), batches(toy["val"], len(toy["val"]))
    with torch.no_grad():
        network.head.weight.mul_(30)
        network.head.bias.sub_(copy.deepcopy(network).eval()(batch.images)[1].mean(dim=0))
        expected = copy.deepcopy(network).eval()(batch.images)[1]
    logits, found = ckd.measure(network, toy, "val", shares)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    said = (logits - np.log(shares)).argmax(1)
    counts = np.zeros((2, 6, 6), int)
    np.add.at(counts, (toy["val"].groups.numpy(), toy["val"].labels.numpy(), said), 1)
    assert np.array_equal(found["counts_corrected"], counts)
    assert not np.array_equal(found["counts_corrected"], found["counts"])


def test_fit_keeps_the_epoch_of_each_rule(toy, monkeypatch, capsys):
    """Best overall and best worst group on validation are two different epochs here."""
    args = arguments(ckd)
    args.epochs = 3
    scores = iter([(0.9, 0.5), (0.8, 0.7), (0.7, 0.6)])
    losses = iter([0.3, 0.2, 0.1])

    def pretend(model, data, part, shares):
        assert part == "val" and shares == method.class_shares()  # for corrected decisions
        overall, worst = next(scores)
        none = dict.fromkeys(ckd.LOGGED)
        return None, none | {
            "auroc": overall,
            "auroc_worst_group": worst,
            "loss": next(losses),
        }

    monkeypatch.setattr(ckd, "measure", pretend)
    method = ckd.PlainTraining(args, toy, ckd.Network(args, "convnet2", 6))
    states, log, _ = ckd.fit(args, toy, method, "test")
    epochs = {rule: state["epoch"] for rule, state in states.items()}
    assert epochs == {"last": 2, "best_overall": 0, "best_worst_group": 1} and len(log) == 3
    assert not torch.equal(states["last"]["head.weight"], states["best_overall"]["head.weight"])
    ## Of equal epochs the one with the lowest loss is the best; an undefined one never is.
    scores, losses = iter([(0.9, None), (0.9, 0.4), (0.9, None)]), iter([0.3, 0.1, 0.2])
    states, _, _ = ckd.fit(args, toy, method, "test")
    epochs = {rule: state["epoch"] for rule, state in states.items()}
    assert epochs == {"last": 2, "best_overall": 1, "best_worst_group": 1}
    scores, losses = iter([(0.9, 0.4)] * 3), iter([0.3] * 3)  # and of these the first
    states, _, _ = ckd.fit(args, toy, method, "test")
    assert {states[rule]["epoch"] for rule in ckd.RULES["classify"]} == {0}
    ## Undefined in every epoch: the last one stands, and a line says so.
    scores, losses = iter([(0.7, None), (0.9, None), (0.8, None)]), iter([0.3, 0.1, 0.2])
    states, _, _ = ckd.fit(args, toy, method, "test")
    epochs = {rule: state["epoch"] for rule, state in states.items()}
    assert epochs == {"last": 2, "best_overall": 1, "best_worst_group": 2}
    assert (
        "best_worst_group is the last epoch: auroc_worst_group is undef" in capsys.readouterr().out
    )


def test_the_teacher_has_its_own_start_views_and_budget(toy, tmp_path, monkeypatch):
    """Built alike and trained as long, a plain student is not its teacher once more."""
    same = ["--teacher", "convnet2", "--student", "convnet2", "--alpha", "0"]
    args, seen = arguments(ckd, *same, "--out", str(tmp_path)), []
    args.epochs, args.teacher_epochs, args.lr, args.teacher_lr = 1, 2, 0.05, 0.02
    fit = ckd.fit

    def watch(plain, data, method, label, *more, **others):
        views = next(ckd.training_views(plain, data["train"], 0))
        start = method.student.head.weight.clone()
        seen.append((plain.epochs, plain.lr, start, views.index, views.images))
        return fit(plain, data, method, label, *more, **others)

    monkeypatch.setattr(ckd, "fit", watch)
    torch.manual_seed(args.seed)
    student = ckd.Network(args, args.student, 6)
    teacher, _ = ckd.get_teacher(args, toy)
    watch(args, toy, ckd.Method(args, toy, student, teacher), "student")
    assert [run[:2] for run in seen] == [(2, 0.02), (1, 0.05)]
    for of_teacher, of_student in zip(seen[0][2:], seen[1][2:]):
        assert not torch.equal(of_teacher, of_student)


@pytest.mark.parametrize("student", ["", "cells"])
@pytest.mark.parametrize("teacher", ["", "cells"])
def test_teacher_and_student_are_balanced_apart(teacher, student, toy, tmp_path, monkeypatch):
    """Each sees all cells equally often if its own flag says so, and not if the other's does."""
    flags = [f for f, on in (("--balance", student), ("--teacher-balance", teacher)) if on]
    args, seen, biased = arguments(ckd, *flags, "--out", str(tmp_path)), [], copy.copy(toy)
    cells = toy["train"].labels * 2 + toy["train"].groups
    kept = (cells != 0) | (torch.arange(len(cells)) % 4 == 3)  # of cell 0 one picture in four
    train, cells = toy["train"].subset(kept), cells[kept]
    biased.splits = toy.splits | {"train": train}
    ## Dividing by 0 stops it where the training would begin.
    monkeypatch.setattr(ckd, "fit", lambda plain, *more: seen.append(plain) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ckd.get_teacher(args, biased)
    assert (args.balance, seen[0].balance) == (student, teacher)
    for plain in (args, seen[0]):
        rows = torch.cat([batch.index for batch in ckd.training_views(plain, train, 0)])
        shown = torch.bincount(cells[rows], minlength=12)
        even = shown.max() < 2 * shown.min()  # the last, incomplete batch is left out
        assert even == bool(plain.balance), (plain.balance, shown)


def test_only_a_balanced_teacher_depends_on_groups(toy, tmp_path, monkeypatch):
    """By cells or groups; else one teacher serves all groupings of the same pictures."""
    other, made = copy.copy(toy), []
    other.splits = {name: replace(s, groups=1 - s.groups) for name, s in toy.splits.items()}
    monkeypatch.setattr(ckd, "made_once", lambda path, *_, **__: made.append(path) or 1 / 0)
    balanced = [["--teacher-balance", by] for by in ("classes", "cells", "groups")]
    for flags in ([], *balanced):
        for data in (toy, other):
            with pytest.raises(ZeroDivisionError):
                ckd.get_teacher(arguments(ckd, *flags, "--out", str(tmp_path)), data)
    assert made[0] == made[1] and made[2] == made[3] and len({*made}) == 6


def test_pairs_of_defaults_are_settled_by_the_number_of_classes():
    args = argparse.Namespace(weight=(0.5, 5.0), other=1.0, smoke=False)
    assert ckd.settle(argparse.Namespace(**vars(args)), 2).weight == 0.5
    for classes in (3, 10):
        settled = ckd.settle(argparse.Namespace(**vars(args)), classes)
        assert vars(settled) == {"weight": 5.0, "other": 1.0, "smoke": False}


def test_logits_beyond_float16_end_at_its_largest_number(toy):
    """A large finite logit is no reason to stop a run."""
    args = arguments(ckd)
    network = ckd.Network(args, "convnet2", 6)
    network.head.bias.data[2] = 1e6
    logits, result = ckd.measure(network, toy, "val")
    assert logits.max() == 65504 and result["collapsed"]
    network.head.bias.data[2] = math.nan
    with pytest.raises(InputError):
        ckd.measure(network, toy, "val")


def test_infinite_losses_stop_the_run(toy):
    args = arguments(ckd, "--lr", "1e30")
    method = ckd.PlainTraining(args, toy, ckd.Network(args, "convnet2", 6))
    with pytest.raises(InputError, match="epoch 1 of the student.*--lr"):
        ckd.fit(args, toy, method, "student")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same_network():
    """Equal names of weights, and equal features, logits and gradients to float rounding."""
    images, ends, called = torch.randn(8, 3, 32, 32), [], []
    for compiled in ("--no-compile", "--compile"):
        args = arguments(ckd, "--student", "convnet4", compiled)
        torch.manual_seed(0)
        network = ckd.Network(args, args.student, 6)
        torch._dynamo.utils.counters.clear()
        feats, logits = network(images)
        called.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0)
        (feats.sum() + logits.square().sum()).backward()
        ends.append((feats, logits, {k: p.grad for k, p in network.named_parameters()}))
    assert called == [False, True]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)
