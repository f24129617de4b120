"""BIRD: the gated features, the recall gap, the meta-gradient, and what stage I must not touch."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import bird
import ckd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments, load_toy, method_of
from torch import nn

import metrics
from data import batches

PARITY = np.load(Path(__file__).parent / "parity" / "fair_kd.npz")
REF = {k.removeprefix("bird_ref/"): PARITY[k] for k in PARITY if k.startswith("bird_ref/")}


class Tiny(nn.Module):
    """The student of the reference: h = tanh(x U), z = h V."""

    def __init__(self):
        super().__init__()
        self.U, self.V = (nn.Parameter(torch.tensor(REF[k], dtype=torch.float64)) for k in "UV")

    def forward(self, x):
        h = (x @ self.U).tanh()
        return h, h @ self.V


def gated_loss(feats_s, feats_t, phi):
    """The distance of Eq. (4), by its definition."""
    return (feats_s - feats_t * torch.sigmoid(phi)).square().mean()


def tally(classes=3, groups=2):
    """What `soft_deo` has counted before the first batch: nothing."""
    return torch.zeros(2, classes, groups, dtype=torch.float64)


def reference():
    """The reference's inputs in float64: model, phi, training pictures, meta batch."""
    numbers = {k: torch.tensor(v) for k, v in REF.items()}
    numbers = {k: v.double() if v.is_floating_point() else v for k, v in numbers.items()}
    meta = SimpleNamespace(
        images=numbers["x_meta"], labels=numbers["y_meta"], groups=numbers["a_meta"]
    )
    return Tiny(), numbers["phi"].clone().requires_grad_(), numbers, meta


def small(width=8, seed=0):
    """A real student with batch norm, its map, pictures and features of a teacher; float64."""
    torch.manual_seed(seed)
    args = arguments(bird)
    student = bird.Network(args, "convnet2", 3).double().train()
    mapped = nn.Identity() if width == 8 else nn.Linear(8, width).double()
    pictures = torch.randn(2, 12, 3, 8, 8).double()
    meta = SimpleNamespace(
        images=pictures[1], labels=torch.arange(12) % 3, groups=torch.arange(12) // 3 % 2
    )
    return student, mapped, pictures[0], torch.rand(12, width).double(), meta


def made(*flags, module=bird):
    """A Method of `module` on the smoke toy, and a few of its batches."""
    args, data = arguments(module, *flags), load_toy()
    given = [batch for batch, _ in zip(batches(data["train"], 32, seed=0), range(3))]
    torch.manual_seed(0)
    teacher = module.Teacher(module.Network(args, "convnet8", 6))
    torch.manual_seed(1)
    student = module.Network(args, "convnet4", 6).train()
    return module.Method(args, data, student, teacher), given


# ----- the losses ---------------------------------------------------------------------------------


def test_the_three_stages_equal_the_reference():
    model, phi, ref, meta = reference()
    classes = model(ref["x_train"])[1].shape[1]
    settings = float(ref["eta_inner"]), (1.0, float(ref["mu_fair"])), tally(classes)
    loss_inner = gated_loss(model(ref["x_train"])[0], ref["h_teacher"], phi)
    np.testing.assert_allclose(loss_inner.item(), ref["L_inner"], rtol=1e-9)
    feats = model(ref["x_train"])[0]
    outer = bird.outer_loss(phi, model, feats, ref["h_teacher"], meta, *settings)
    np.testing.assert_allclose(outer.item(), ref["L_outer"], rtol=1e-9)
    (grad,) = torch.autograd.grad(outer, phi)
    np.testing.assert_allclose(grad, ref["grad_phi"], rtol=1e-9)
    # stage III, from the original weights, with the new φ
    feats, logits = model(ref["x_train"])
    gap = bird.soft_deo(logits, ref["y_train"], ref["a_train"], tally(classes))
    np.testing.assert_allclose(gap.item(), ref["joint_fair"], rtol=1e-9)
    far = gated_loss(feats, ref["h_teacher"], ref["phi_new"])
    np.testing.assert_allclose(far.item(), ref["joint_kd"], rtol=1e-9)
    joint = F.cross_entropy(logits, ref["y_train"]) + ref["gamma_kd"] * far + ref["mu_fair"] * gap
    joint.backward()
    np.testing.assert_allclose(joint.item(), ref["L_joint"], rtol=1e-9)
    np.testing.assert_allclose(model.U.grad, ref["grad_U_joint"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(model.V.grad, ref["grad_V_joint"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("width", [8, 5])
def test_the_gradient_of_phi_equals_finite_differences(width):
    """Through a network with convolutions, batch norm and, at width 5, the map."""
    student, mapped, images, feats_t, meta = small(width)
    phi = torch.linspace(-1, 2, width).double().requires_grad_()
    history = 5 * torch.rand(2, 3, 2).double()  # of earlier batches

    def outer(phi):
        feats_s = mapped(student(images)[0])
        settings = 0.05, (10.0, 1.0), history.clone()
        return bird.outer_loss(phi, student, feats_s, feats_t, meta, *settings)

    (grad,) = torch.autograd.grad(outer(phi), phi)
    assert grad.abs().min() > 0
    for j in range(width):
        step = 1e-4 * torch.eye(width).double()[j]
        slope = (outer(phi.detach() + step) - outer(phi.detach() - step)) / 2e-4
        np.testing.assert_allclose(grad[j], slope.item(), rtol=1e-5, atol=1e-9)


def test_phi_acts_through_the_step_of_the_copy_alone():
    """With η or γ = 0 the copy is the student, and φ has no say: there is no other way.

    γ in front of the loss and η in front of the step are one factor.
    """
    student, mapped, images, feats_t, meta = small()
    phi = torch.zeros(8).double().requires_grad_()

    def gradient(rate, feature_weight):
        settings = rate, (feature_weight, 1.0), tally()
        feats_s = mapped(student(images)[0])
        outer = bird.outer_loss(phi, student, feats_s, feats_t, meta, *settings)
        return torch.autograd.grad(outer, phi)[0]

    assert gradient(0.0, 1.0).abs().max() == gradient(0.5, 0.0).abs().max() == 0
    torch.testing.assert_close(gradient(0.01, 50.0), gradient(0.5, 1.0))
    assert (gradient(0.5, 1.0) - gradient(0.01, 1.0)).abs().max() > 0


def test_a_misleading_feature_of_the_teacher_is_closed():
    """Of two features, one of which only says the group, the gate of that one falls."""
    torch.manual_seed(0)
    labels, groups = torch.arange(64) % 2, torch.arange(64) // 2 % 2
    images = torch.stack([labels * 2.0 - 1, groups * 2.0 - 1], dim=1)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)
            self.body.weight.data, self.head.weight.data = (
                torch.eye(2),
                torch.tensor(
                    [[-1.0, -1.0], [1.0, 1.0]]  # it takes the group for a sign of class 1
                ),
            )

        def forward(self, x):
            return self.body(x), self.head(self.body(x))

    meta = SimpleNamespace(images=images, labels=labels, groups=groups)
    phi, student = torch.zeros(2, requires_grad=True), Linear()
    settings = 0.5, (1.0, 1.0), tally(2)
    outer = bird.outer_loss(phi, student, student(images)[0], 3 * images, meta, *settings)
    useful, misleading = torch.autograd.grad(outer, phi)[0]
    assert useful < 0 < misleading  # a step down the gradient opens the first, closes the second


def test_soft_deo_is_the_mean_deo_when_the_student_is_sure():
    rng = np.random.default_rng(0)
    labels, groups, predictions = (rng.integers(0, n, 200) for n in (4, 3, 4))
    counts = metrics.confusion(
        labels=labels, predictions=predictions, groups=groups, num_classes=4, num_groups=3
    )
    logits = 100.0 * F.one_hot(torch.tensor(predictions), 4)
    value = bird.soft_deo(logits, torch.tensor(labels), torch.tensor(groups), tally(4, 3))
    np.testing.assert_allclose(value, metrics.deo(counts=counts)[1], rtol=1e-6)


def test_soft_deo_equals_its_definition_batch_after_batch():
    """Against loops over classes and groups, with cells that some batches lack, and a class and a
    cell that all lack; and its gradient against finite differences."""
    rng, counted = np.random.default_rng(0), tally(5, 3)
    hits, seen = np.zeros((2, 5, 3))
    for _ in range(30):
        labels, groups = rng.integers(0, 4, 20), rng.integers(0, 3, 20)
        groups[labels == 3] = 1  # class 3 is in one group alone, and no picture is of class 4
        groups[(labels == 2) & (groups == 0)] = 2
        logits = torch.tensor(rng.normal(size=(20, 5)), requires_grad=True)
        before, truth = counted.clone(), (torch.tensor(labels), torch.tensor(groups))
        value = bird.soft_deo(logits, *truth, counted)

        p = logits.detach().softmax(1).numpy()[np.arange(20), labels]
        hits, seen, gaps = 0.99 * hits, 0.99 * seen, []
        for y, a in zip(labels, groups):
            seen[y, a] += 1
        for y, a, probability in zip(labels, groups, p):
            hits[y, a] += probability
        for y in range(5):
            running = {a: hits[y, a] / seen[y, a] for a in range(3) if seen[y, a]}
            if len(running) < 2:
                continue
            first, last = max(running, key=running.get), min(running, key=running.get)
            ahead, behind = (p[(labels == y) & (groups == a)] for a in (first, last))
            if len(ahead) and len(behind):
                gaps.append(ahead.mean() - behind.mean())
        np.testing.assert_allclose(value.item(), np.mean(gaps), rtol=1e-12)
        np.testing.assert_allclose(counted, np.stack([hits, seen]), rtol=1e-12)
        (grad,) = torch.autograd.grad(value, logits)
        for i, c in ((0, 0), (7, 2), (13, 4)):
            step = torch.zeros(20, 5).double()
            step[i, c] = 1e-6
            up, down = (
                bird.soft_deo(logits.detach() + sign * step, *truth, before.clone())
                for sign in (1, -1)
            )
            np.testing.assert_allclose(grad[i, c], (up - down) / 2e-6, rtol=1e-4, atol=1e-9)


def test_a_fair_student_is_nearly_fair_on_small_batches():
    """And a gap is found: the mean over batches of 64 is that of the whole population."""

    def mean_gap(lead, keep):
        rng, counted, found = np.random.default_rng(1), tally(6), []
        for _ in range(600):
            labels, groups = rng.integers(0, 6, 64), (rng.random(64) < 0.3).astype(int)
            sure = rng.random(64) < 0.6 + lead * groups * np.where(labels < 3, 1, -1)
            answers = torch.tensor(np.where(sure, labels, (labels + 1) % 6))
            truth = torch.tensor(labels), torch.tensor(groups)
            counted *= keep
            found.append(bird.soft_deo(100.0 * F.one_hot(answers, 6).double(), *truth, counted))
        return np.mean(found[100:])

    assert mean_gap(lead=0, keep=False) > 0.25  # each batch's own extremes: noise
    assert abs(mean_gap(lead=0, keep=True)) < 0.05
    assert abs(mean_gap(lead=0.2, keep=True) - 0.2) < 0.02


def test_soft_deo_with_empty_cells():
    """Classes that two groups share count; the others give neither value nor gradient, nor NaN."""
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    labels = torch.tensor([0, 0, 1, 1])
    logits = probs.log().requires_grad_()
    gap = bird.soft_deo(logits, labels, torch.tensor([0, 1, 1, 1]), tally())  # class 2: no sample
    np.testing.assert_allclose(gap.item(), 0.9 - 0.5, rtol=1e-6)
    gap.backward()
    assert logits.grad[:2].abs().min() > 0 and logits.grad[2:].abs().max() == 0
    logits.grad = None
    gap = bird.soft_deo(logits, labels, torch.tensor([1, 1, 1, 1]), tally())  # one group only
    gap.backward()
    assert gap.item() == 0 and logits.grad.abs().max() == 0


def test_the_weight_of_the_gap_counts_in_the_outer_loss():
    """Eq. (7): linear in μ."""
    student, mapped, images, feats_t, meta = small()
    phi, lost = torch.zeros(8).double(), []
    for weight in (0.0, 1.0, 3.0):
        feats_s, settings = mapped(student(images)[0]), (0.5, (1.0, weight), tally())
        lost.append(bird.outer_loss(phi, student, feats_s, feats_t, meta, *settings).item())
    assert lost[1] - lost[0] > 1e-4
    assert lost[2] - lost[0] == pytest.approx(3 * (lost[1] - lost[0]))


# ----- the step -----------------------------------------------------------------------------------


def test_stages_one_and_two_leave_the_student_alone():
    """Weights, batch-norm statistics, gradients and momentum are as before."""
    method, given = made()
    method.step(given[0])  # momentum and statistics are no longer those of the start
    feats_t, meta = method.teacher(given[1])[0], method.meta_batch(given[1])
    feats_s, phi = method.map(method.student(given[1].images)[0]), method.gates["phi"]
    before = copy.deepcopy([part.state_dict() for part in method.saved.values()])
    gradients = [p.grad.clone() for p in method.student.parameters()]
    settings = 0.5, (1.0, 1.0), torch.zeros(2, 6, 2)
    outer = bird.outer_loss(phi, method.student, feats_s, feats_t, meta, *settings)
    torch.autograd.grad(outer, phi)
    after = [part.state_dict() for part in method.saved.values()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    for p, gradient in zip(method.student.parameters(), gradients):
        assert torch.equal(p.grad, gradient)


def test_stage_three_starts_from_the_original_weights():
    """A step with φ learnt equals a step with φ set to the same values and frozen."""
    learnt, given = made("--alpha", "0.5")
    start = learnt.gates["phi"].detach().clone()
    assert (start.sigmoid() > 0.95).all()  # nearly open
    learnt.step(given[0])
    assert (learnt.gates["phi"] != start).all()
    frozen, _ = made("--alpha", "0.5", "--phi-lr", "0")
    frozen.gates["phi"].data = learnt.gates["phi"].data.clone()
    frozen.step(given[0])
    assert (learnt.tallies["batch"][1] > 0).any() and (learnt.tallies["meta"][1] > 0).all()
    for name, value in learnt.student.state_dict().items():
        assert torch.equal(value, frozen.student.state_dict()[name]), name


def test_frozen_open_gates_are_plain_feature_distillation():
    """CE + γ · mean (h_S - h_T)², trained here by hand, and nothing else."""
    flags = ("--phi-lr", "0", "--fair-weight", "0", "--feature-weight", "2")
    method, given = made(*flags)
    method.gates["phi"].data.fill_(40)  # sigm(40) is 1
    student = copy.deepcopy(method.student)
    mapped = copy.deepcopy(method.map)
    params = [*student.parameters(), *mapped.parameters()]
    optimizer = torch.optim.SGD(params, method.args.lr, 0.9, weight_decay=5e-4)
    for batch in given:
        method.step(batch)
        feats_s, logits_s = student(batch.images)
        distance = (mapped(feats_s) - method.teacher(batch)[0]).square().mean()
        optimizer.zero_grad()
        (F.cross_entropy(logits_s, batch.labels) + 2 * distance).backward()
        optimizer.step()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, method.student.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_step_follows_equation_8():
    """(1 - α) CE + α L_KD + γ L_feat + μ R, in the value and in the student's gradient."""
    gradients = []
    for weight in ("0", "1", "2"):
        method, given = made("--alpha", "0.3", "--feature-weight", "3", "--fair-weight", weight)
        losses = {name: value.item() for name, value in method.step(given[0]).items()}
        expected = 0.7 * losses["loss_ce"] + 0.3 * losses["loss_kd"] + 3 * losses["loss_feat"]
        expected += float(weight) * losses["loss_fair"]
        assert losses["loss"] == pytest.approx(expected, rel=1e-6) and losses["loss_fair"] > 1e-3
        gradients.append(method.student.head.bias.grad)
    torch.testing.assert_close(gradients[1], (gradients[0] + gradients[2]) / 2)
    batch, tallies = given[0], torch.zeros(2, 6, 2)
    logits = made()[0].student(batch.images)[1]
    gap = bird.soft_deo(logits, batch.labels, batch.groups, tallies)
    (slope,) = torch.autograd.grad(gap, logits)  # down which the student goes
    torch.testing.assert_close(gradients[1] - gradients[0], slope.sum(dim=0))


def test_without_its_own_weights_it_is_ckd():
    own, given = made("--alpha", "0.9", "--feature-weight", "0", "--fair-weight", "0")
    hub, _ = made("--alpha", "0.9", module=ckd)
    for batch in given:
        assert torch.equal(own.step(batch)["loss"], hub.step(batch)["loss"])
    for name, value in hub.student.state_dict().items():
        assert torch.equal(value, own.student.state_dict()[name]), name


def test_meta_split():
    """A fixed share of each cell, drawn from the seed; no picture is on both sides."""
    whole = load_toy()["train"]
    method, given = made()
    meta, rest = method.meta, method.split
    assert method.data["train"] is whole  # others still see all pictures
    assert sorted(meta.ids + rest.ids) == sorted(whole.ids)
    assert len(meta) == math.ceil(len(whole) / method.args.meta_every)
    for y in range(6):
        for a in range(2):
            inside, of = (((s.labels == y) & (s.groups == a)).sum().item() for s in (meta, whole))
            assert abs(inside - of / method.args.meta_every) <= 1
    assert made()[0].meta.ids == meta.ids and made("--seed", "1")[0].meta.ids != meta.ids
    batch = method.meta_batch(given[1])
    assert torch.equal(batch.images, method.meta_batch(given[1]).images)
    others = given[1]._replace(step=9), given[1]._replace(epoch=9)
    assert all(not torch.equal(batch.images, method.meta_batch(b).images) for b in others)
    args = method.args
    for changed in ({"views": ""}, {"seed": 9}):  # other views, another draw
        method.args = SimpleNamespace(**vars(args) | changed)
        assert not torch.equal(batch.images, method.meta_batch(given[1]).images)


def test_meta_batches_show_all_cells_equally_often():
    """Also a cell that is rare in training."""
    data = copy.copy(load_toy())
    rare = ((data["train"].labels == 1) & (data["train"].groups == 0)).nonzero()[8:, 0]
    kept = np.delete(np.arange(len(data["train"])), rare)
    data.splits = data.splits | {"train": data["train"].subset(kept)}
    method = method_of(bird, data)
    batch = method.meta_batch(next(batches(data["train"], 32, seed=0)))
    shown = torch.bincount(batch.labels * 2 + batch.groups, minlength=12)
    assert (method.meta.labels * 2 + method.meta.groups == 2).sum() == 1 and len(batch.labels) > 50
    assert shown.max() - shown.min() <= 1


def test_stage_one_steps_at_the_rate_of_the_student():
    """η follows the schedule: at rate 0 no gate has a gradient, at twice the rate about twice."""
    norms = []
    for rate in (0.0, 1e-4, 2e-4):
        method, given = made()
        for group in method.optimizer.param_groups:
            group["lr"] = rate
        norms.append(float(method.step(given[0])["phi_grad"]))
    assert norms[0] == 0 and 1.5 < norms[2] / norms[1] < 2.5


def test_gates_learn_by_the_weights_and_the_rate_asked_for():
    """γ and μ of Eq. (7), η of the optimiser; the student then learns by the new gates."""
    method, given = made("--feature-weight", "3", "--fair-weight", "2", "--phi-lr", "0.02")
    phi, rate = method.gates["phi"], method.optimizer.param_groups[0]["lr"]
    student, old = copy.deepcopy(method.student), phi.detach().clone().requires_grad_()
    feats_s = copy.deepcopy(method.map)(student(given[0].images)[0])
    feats_t, meta = method.teacher(given[0])[0], method.meta_batch(given[0])
    settings = rate, (3.0, 2.0), torch.zeros(2, 6, 2)
    outer = bird.outer_loss(old, student, feats_s, feats_t, meta, *settings)
    slope = torch.autograd.grad(outer, old)[0].norm().item()
    assert method.step(given[0])["phi_grad"].item() == pytest.approx(slope, rel=1e-3)
    assert (phi - old).abs().max().item() == pytest.approx(0.02, rel=1e-2)  # Adam's first step
    phi.data -= 3
    feats_s = copy.deepcopy(method.map)(copy.deepcopy(method.student)(given[1].images)[0])
    losses = method.step(given[1])
    far = gated_loss(feats_s, method.teacher(given[1])[0], phi)
    torch.testing.assert_close(losses["loss_feat"], far)


def test_what_a_killed_run_kept_is_all_that_a_step_needs():
    """`saved`, put into another Method, gives the same next steps bit by bit, tallies included."""
    whole, given = made()
    whole.step(given[0])
    resumed, _ = made()
    for name, part in resumed.saved.items():
        part.load_state_dict(copy.deepcopy(whole.saved[name].state_dict()))
    for batch in given[1:]:
        assert torch.equal(whole.step(batch)["loss"], resumed.step(batch)["loss"])
    for name in ("student", "gates", "tallies"):
        states = whole.saved[name].state_dict(), resumed.saved[name].state_dict()
        torch.testing.assert_close(*states, rtol=0, atol=0)
    del resumed.saved["tallies"]  # without the tallies they are others
    forgetful, _ = made()
    for name in resumed.saved:
        forgetful.saved[name].load_state_dict(copy.deepcopy(whole.saved[name].state_dict()))
    batch = given[0]
    assert whole.step(batch)["loss_fair"] != forgetful.step(batch)["loss_fair"]


def test_a_step_logs_the_gates():
    """Their range, and the norm of φ's gradient."""
    method, given = made()
    losses = method.step(given[0])
    assert losses["phi_grad"] > 0
    gate = method.gates["phi"].detach().sigmoid()
    assert losses["gate_min"] == gate.min() and losses["gate_max"] == gate.max()


def test_a_student_with_hardsigmoid():
    """mobilenet_v3: the layer that PyTorch cannot derive twice is replaced by its equal."""
    x = torch.linspace(-5, 5, 41)
    torch.testing.assert_close(bird.hardsigmoid(x), F.hardsigmoid(x))
    args = arguments(bird)
    torch.manual_seed(0)
    student = bird.Network(args, "mobilenet_v3_small", 6).eval()
    images = torch.randn(2, 3, 32, 32)
    before = student(images)[1]
    method = bird.Method(args, load_toy(), student, bird.Teacher(bird.Network(args, "convnet2", 6)))
    torch.testing.assert_close(student(images)[1], before)
    student.train()
    assert method.step(next(batches(method.split, 16, 0)))["phi_grad"] > 0
