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
from conftest import arguments, load_toy
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
    settings = (float(ref["eta_inner"]), float(ref["mu_fair"]), 2)
    loss_inner = gated_loss(model(ref["x_train"])[0], ref["h_teacher"], phi)
    np.testing.assert_allclose(loss_inner.item(), ref["L_inner"], rtol=1e-9)
    outer = bird.outer_loss(
        phi, model, nn.Identity(), ref["x_train"], ref["h_teacher"], meta, *settings
    )
    np.testing.assert_allclose(outer.item(), ref["L_outer"], rtol=1e-9)
    (grad,) = torch.autograd.grad(outer, phi)
    np.testing.assert_allclose(grad, ref["grad_phi"], rtol=1e-9)
    # stage III, from the original weights, with the new φ
    feats, logits = model(ref["x_train"])
    gap = bird.soft_deo(logits, ref["y_train"], ref["a_train"], 2)
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
    *inputs, meta = small(width)
    phi = torch.linspace(-1, 2, width).double().requires_grad_()

    def outer(phi):
        return bird.outer_loss(phi, *inputs, meta, 0.5, 1.0, 2)

    (grad,) = torch.autograd.grad(outer(phi), phi)
    assert grad.abs().min() > 0
    for j in range(width):
        step = 1e-4 * torch.eye(width).double()[j]
        slope = (outer(phi.detach() + step) - outer(phi.detach() - step)) / 2e-4
        np.testing.assert_allclose(grad[j], slope.item(), rtol=1e-5, atol=1e-9)


def test_phi_acts_through_the_step_of_the_copy_alone():
    """With η = 0 the copy is the student, and φ has no say: there is no first-order shortcut."""
    *inputs, meta = small()
    phi = torch.zeros(8).double().requires_grad_()
    outer = bird.outer_loss(phi, *inputs, meta, 0.0, 1.0, 2)
    assert torch.autograd.grad(outer, phi)[0].abs().max() == 0


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
    phi = torch.zeros(2, requires_grad=True)
    outer = bird.outer_loss(phi, Linear(), nn.Identity(), images, 3 * images, meta, 0.5, 1.0, 2)
    useful, misleading = torch.autograd.grad(outer, phi)[0]
    assert useful < 0 < misleading  # a step down the gradient opens the first, closes the second


def test_soft_deo_is_the_mean_deo_when_the_student_is_sure():
    rng = np.random.default_rng(0)
    labels, groups, predictions = (rng.integers(0, n, 200) for n in (4, 3, 4))
    counts = metrics.confusion(
        labels=labels, predictions=predictions, groups=groups, num_classes=4, num_groups=3
    )
    logits = 100.0 * F.one_hot(torch.tensor(predictions), 4)
    value = bird.soft_deo(logits, torch.tensor(labels), torch.tensor(groups), 3)
    np.testing.assert_allclose(value, metrics.deo(counts=counts)[1], rtol=1e-6)


def test_soft_deo_with_empty_cells():
    """Classes that two groups share count; the others give neither value nor gradient, nor NaN."""
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    labels = torch.tensor([0, 0, 1, 1])
    logits = probs.log().requires_grad_()
    gap = bird.soft_deo(logits, labels, torch.tensor([0, 1, 1, 1]), 2)  # class 2: no sample
    np.testing.assert_allclose(gap.item(), 0.9 - 0.5, rtol=1e-6)
    gap.backward()
    assert logits.grad[:2].abs().min() > 0 and logits.grad[2:].abs().max() == 0
    logits.grad = None
    gap = bird.soft_deo(logits, labels, torch.tensor([1, 1, 1, 1]), 2)  # one group only
    gap.backward()
    assert gap.item() == 0 and logits.grad.abs().max() == 0


# ----- the step -----------------------------------------------------------------------------------


def test_stages_one_and_two_leave_the_student_alone():
    """Weights, batch-norm statistics, gradients and momentum are as before."""
    method, given = made()
    method.step(given[0])  # momentum and statistics are no longer those of the start
    before = copy.deepcopy([part.state_dict() for part in method.saved.values()])
    gradients = [p.grad.clone() for p in method.student.parameters()]
    feats_t, meta = method.teacher(given[1])[0], method.meta_batch(given[1])
    networks = method.gates["phi"], method.student, method.map
    outer = bird.outer_loss(*networks, given[1].images, feats_t, meta, 0.5, 1.0, 2)
    torch.autograd.grad(outer, method.gates["phi"])
    after = [part.state_dict() for part in method.saved.values()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    for p, gradient in zip(method.student.parameters(), gradients):
        assert torch.equal(p.grad, gradient)


def test_stage_three_starts_from_the_original_weights():
    """A step with φ learnt equals a step with φ set to the same values and frozen."""
    learnt, given = made("--alpha", "0.5")
    start = learnt.gates["phi"].detach().clone()
    learnt.step(given[0])
    assert (learnt.gates["phi"] != start).all()
    frozen, _ = made("--alpha", "0.5", "--phi-lr", "0")
    frozen.gates["phi"].data = learnt.gates["phi"].data.clone()
    frozen.step(given[0])
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


def test_a_step_logs_the_gates():
    """Their range, and the norm of φ's gradient."""
    method, given = made()
    losses = method.step(given[0])
    assert losses["phi_grad"] > 0
    gate = method.gates["phi"].detach().sigmoid()
    assert losses["gate_min"] == gate.min() and losses["gate_max"] == gate.max()


def test_a_student_with_hardsigmoid():
    """mobilenet_v3: the layer that PyTorch cannot derive twice is replaced by its equal."""
    args = arguments(bird)
    torch.manual_seed(0)
    student = bird.Network(args, "mobilenet_v3_small", 6).eval()
    images = torch.randn(2, 3, 32, 32)
    before = student(images)[1]
    method = bird.Method(args, load_toy(), student, bird.Teacher(bird.Network(args, "convnet2", 6)))
    torch.testing.assert_close(student(images)[1], before)
    student.train()
    assert method.step(next(batches(method.split, 16, 0)))["phi_grad"] > 0
