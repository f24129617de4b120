"""FairDi: FIS against its authors' code, exact transport against other ways to compute it, each
group's teacher, and the student that learns from them."""

import copy
import math
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import ckd
import fairdi
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    arguments,
    assert_step_2_is_plain_distillation,
    load_toy,
    random,
    regrouped,
    stopping,
    write_table,
)
from PIL import Image
from scipy.optimize import linprog

import metrics
from data import batches, load, restore

PARITY = np.load(Path(__file__).parent / "parity" / "medical.npz")
FIS = {k.removeprefix("fis/"): PARITY[k] for k in PARITY if k.startswith("fis/")}
GROUP_LOSSES = [torch.tensor(FIS[f"in/group_sample_losses_{g}"]).double() for g in range(4)]


def make(data, out, *flags):
    """FairDi on `data`, ready for step 2; steps 0 and 1 are real, in smoke mode."""
    args = arguments(fairdi, "--out", str(out), "--student", "convnet2", *flags)
    args.epochs = 1
    torch.manual_seed(0)
    student = fairdi.Network(args, args.student, len(data.classes))
    return fairdi.Method(args, data, student)


def heads_of(method):
    """The weights of all teachers."""
    return method.heads.state_dict().values()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A method on the toy; tests that change it take a copy."""
    return make(load_toy(), tmp_path_factory.mktemp("usual"))


def test_distance_is_the_reference_s():
    """Four groups of 64 and 48 losses against all 224."""
    got = [fairdi.half_w2_squared(u, torch.cat(GROUP_LOSSES)) for u in GROUP_LOSSES]
    np.testing.assert_allclose(got, FIS["own/exact_half_W2sq"], rtol=1e-6)


@pytest.mark.parametrize("n, m", [(1, 1), (1, 5), (4, 4), (3, 7), (6, 4), (8, 12), (5, 10)])
def test_distance_is_the_optimum_of_the_transport_problem(n, m):
    """Linear programming knows nothing of sorting."""
    a, b = random(n, seed=n), random(m, seed=10 + m)
    cost = (a[:, None] - b).square().div(2).numpy().ravel()
    sums = [np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))]
    margins = [np.full(n, 1 / n), np.full(m, 1 / m)]
    best = linprog(cost, A_eq=np.vstack(sums), b_eq=np.concatenate(margins)).fun
    assert fairdi.half_w2_squared(a, b).item() == pytest.approx(best, abs=1e-9)
    assert fairdi.half_w2_squared(b, a).item() == pytest.approx(best, abs=1e-9)


def test_distance_of_equal_sizes_is_the_best_pairing():
    a, b = random(5, seed=1), random(5, seed=2)
    best = min((a - b[list(order)]).square().mean() / 2 for order in permutations(range(5)))
    assert fairdi.half_w2_squared(a, b).item() == pytest.approx(best.item())


def test_distance_is_zero_for_repeated_samples_and_never_negative():
    """The public code's is negative for one group of the reference."""
    a = random(6)
    assert fairdi.half_w2_squared(a, a.repeat(7)).item() == 0
    assert fairdi.half_w2_squared(a + 3, a).item() == pytest.approx(4.5)
    assert FIS["out/group_sinkhorn_distance"].min() < 0
    every = torch.cat(GROUP_LOSSES)
    assert all(fairdi.half_w2_squared(u, every) > 0 for u in GROUP_LOSSES)


@pytest.mark.parametrize(
    "name, fusion, temperature", [("default", 0.5, 1), ("c0", 0, 1), ("c1", 1, 1), ("T10", 0.5, 10)]
)
def test_fis_loss_and_gradient_given_the_distances(name, fusion, temperature):
    """Its authors' loss and gradient with their distances, times B; the gradient also goes through
    the individual weights."""
    logits = torch.tensor(FIS["in/logits"]).double().requires_grad_()
    losses = F.binary_cross_entropy_with_logits(
        logits, torch.tensor(FIS["in/targets"]).double(), reduction="none"
    )
    np.testing.assert_allclose(losses.detach(), FIS["out/per_sample_loss"], atol=1e-6)
    groups = torch.tensor(FIS["in/attr"])
    distances = torch.tensor(FIS["out/group_sinkhorn_distance"])
    loss = fairdi.fis_loss(losses, groups, distances, fusion, temperature)
    loss.backward()
    assert loss.item() / 32 == pytest.approx(FIS[f"out/{name}/loss"].item(), rel=1e-5)
    np.testing.assert_allclose(logits.grad / 32, FIS[f"out/{name}/grad_logits"], atol=1e-8)
    if name == "default":
        exact = fairdi.fis_loss(losses, groups, torch.tensor(FIS["own/exact_half_W2sq"]), 0.5, 1.0)
        want = FIS["own/loss_exact_half_W2sq_official_reduction"].item()
        assert exact.item() / 32 == pytest.approx(want, rel=1e-5)
        inside = torch.tensor(FIS["own/inbatch_half_W2sq_group_vs_batch"])
        want = FIS["own/paper_form_sum_inbatch_half_W2sq_c0.5"].item()
        assert fairdi.fis_loss(losses, groups, inside, 0.5, 1.0).item() == pytest.approx(
            want, rel=1e-5
        )


def test_fis_loss_of_equal_losses_is_the_mean():
    """Nothing to scale: weights are 1/B each, and the size is that of a usual loss."""
    losses, groups = torch.full((12,), 0.7), torch.arange(12) % 3
    assert fairdi.fis_loss(losses, groups, torch.full((3,), 0.2), 0.5, 1.0).item() == pytest.approx(
        0.7
    )


def test_step_0_meets_groups_that_a_batch_lacks(toy, tmp_path):
    """Distances come from pictures of their own; batch norm does not see them."""
    args = arguments(fairdi)
    torch.manual_seed(0)
    method = fairdi.FairScaling(args, toy, fairdi.Network(args, "convnet2", 6))
    method.student.train()
    train = toy["train"]
    batch = next(batches(train.subset(train.groups == 1), 32, seed=0))
    before = {k: v.clone() for k, v in method.student.state_dict().items()}
    losses = method.step(batch)
    assert all(torch.isfinite(v) for v in losses.values()) and losses["distance"] >= 0
    assert method.student.training
    after = method.student.state_dict()
    assert after["body.0.1.num_batches_tracked"] == before["body.0.1.num_batches_tracked"] + 1
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_step_0_follows_equation_6(toy):
    """Distances are those of pictures of each group to all that were drawn, by the student as it
    is in evaluation; κ and t are those of the command line."""
    args = arguments(fairdi, "--fusion", "0.3", "--fis-temperature", "0.5")
    torch.manual_seed(0)
    method = fairdi.FairScaling(args, toy, fairdi.Network(args, "convnet2", 6))
    with torch.no_grad():
        method.student.head.weight.mul_(30)  # losses that differ
    train, batch = toy["train"], next(batches(toy["train"], 32, seed=0))
    student, n = copy.deepcopy(method.student), args.batch_size
    torch.manual_seed(1)
    places = [(train.groups == g).nonzero()[:, 0] for g in (0, 1)]
    drawn = torch.cat([own[torch.randint(len(own), (n,))] for own in places])
    others = next(batches(train.subset(drawn), 2 * n))
    logits = student.eval()(others.images)[1].detach()
    every = F.cross_entropy(logits, others.labels, reduction="none")
    distances = [fairdi.half_w2_squared(every[others.groups == g], every) for g in (0, 1)]
    distances = torch.stack(distances)
    logits = student.train()(batch.images)[1]
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    expected = fairdi.fis_loss(losses, batch.groups, distances, 0.3, 0.5)
    torch.manual_seed(1)
    method.student.train()
    found = method.step(batch)
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["distance"], distances.max())
    torch.testing.assert_close(found["loss_ce"], losses.mean())
    assert distances.max() > 1e-4


def test_every_picture_has_its_own_group_s_teacher(usual, toy, monkeypatch, tmp_path):
    """Heads that are told apart by their bias; the other group's says something else."""

    def mark(args, data, head, train, val, number):
        """A teacher that answers with the number of pictures it was trained on."""
        head.weight.data.zero_()
        head.bias.data.fill_(float(len(train[1])))
        assert number <= len(train[1]) and len(train[0].kept) == len(data["train"])
        return val[0].answers(head, val[1]), 0.5, 0.5

    train = toy["train"]
    uneven = regrouped(toy, lambda s: (s.labels < 2).long() + s.groups.mul(0), ["many", "few"])
    monkeypatch.setattr(fairdi, "train_head", mark)
    method = make(uneven, tmp_path)
    few = train.labels < 2
    logits_t = method.taught(method.phi.kept, method.data["train"].groups)
    assert logits_t[few].unique().tolist() == [float(few.sum())]
    assert logits_t[~few].unique().tolist() == [float((~few).sum())]


def test_teachers_are_kept_at_their_best(usual, monkeypatch):
    """Never worse on validation than the head of step 0, as good as they say, the same again; of
    equal epochs the first."""
    method, data = usual, usual.data
    frozen = ckd.measure(method.student, data, "val")[1]
    head, seen = copy.deepcopy(method.student.head), data["val"].groups == 1
    mine = (data["train"].groups == 1).nonzero()[:, 0]
    phi_val = fairdi.Frozen(method.student, data["val"])
    own, own_val = (method.phi, mine), (phi_val, seen.nonzero()[:, 0])
    args = copy.copy(method.args)
    args.epochs = 5
    answers, best, first = fairdi.train_head(args, data, head, own, own_val, len(mine))
    assert first == pytest.approx(frozen["groups"][1]["auroc"], abs=2e-3)  # float16 there
    assert best >= first
    logits = head(phi_val.kept[seen]).detach()
    assert np.array_equal(answers, logits.numpy())
    labels = data["val"].labels[seen].numpy()
    area = metrics.auroc(labels=labels, probs=metrics.log_odds(logits.double().numpy()))
    assert area == pytest.approx(best, abs=1e-12)
    again = copy.deepcopy(method.student.head)
    fairdi.train_head(args, data, again, own, own_val, len(mine))
    assert torch.equal(head.weight, again.weight) and not head.weight.equal(
        method.student.head.weight
    )
    args.seed, other = 1, copy.deepcopy(method.student.head)
    fairdi.train_head(args, data, other, own, own_val, len(mine))
    assert not other.weight.equal(head.weight)  # batches in another order
    monkeypatch.setattr(fairdi, "score", lambda *given: 0.5)
    fairdi.train_head(args, data, other := copy.deepcopy(head), own, own_val, len(mine))
    assert torch.equal(other.weight, head.weight)


def test_teachers_and_controls_learn_as_asked(toy, usual, monkeypatch, capsys):
    """By the settings of teachers; a control sees as many pictures, of everybody. A gain counts
    where its interval is above 0."""
    seen, asked, train_head, at = [], [], fairdi.train_head, fairdi.Frozen.at

    def watched(args, data, head, train, val, number):
        how = args.epochs, args.lr, args.optimizer
        seen.append((*how, train[1].tolist(), val[1].tolist(), number))
        return train_head(args, data, head, train, val, number)

    lows = iter((0.1, -0.1))
    gain = {"difference": 0.2, "high": 0.3}
    monkeypatch.setattr(fairdi, "gain", lambda *given: gain | {"low": next(lows)})
    monkeypatch.setattr(fairdi, "train_head", watched)
    watch = lambda self, index: asked.append(len(index)) or at(self, index)  # noqa: E731
    monkeypatch.setattr(fairdi.Frozen, "at", watch)
    make(toy, Path(usual.args.out), "--teacher-lr", "0.05", "--teacher-optimizer", "adamw")
    assert "\n1 of 2 gains are above 0" in capsys.readouterr().out
    groups, val = toy["train"].groups, toy["val"].groups
    for g in (0, 1):
        own, inside = ((part == g).nonzero()[:, 0].tolist() for part in (groups, val))
        for pictures in (own, [*range(len(groups))]):
            assert seen.pop(0) == (2, 0.01, "adamw", pictures, inside, len(own))
    assert not seen and sum(asked) == 2 * 2 * len(groups)  # own and control, two epochs


def test_teachers_that_are_sure_are_still_ranked():
    """Margins of 20 and more: as float32 probabilities all answers would tie, an AUROC of 0.5."""
    margins = np.array([20, 40, 60, 80], np.float32)
    answers = np.stack([0 * margins, margins], 1)
    assert len({*torch.from_numpy(answers).softmax(1)[:, 1].tolist()}) == 1
    assert fairdi.score(answers, np.array([0, 0, 1, 1])) == 1


def test_a_group_of_one_class_is_named_and_step_0_stands_in(toy, tmp_path, capsys):
    """Group "alone": one class only. The run goes on, and its pictures get the head of step 0."""

    def lonely(split):
        return torch.where((split.labels == 0) & (split.groups == 0), 2, split.groups)

    data = regrouped(toy, lonely, ["filled", "outlined", "alone"])
    method = make(data, tmp_path)
    said = capsys.readouterr().out
    told = r"\n[012] of 2 gains are above 0 \(95 %\) on pictures that chose teachers\n"
    assert re.search(told, said)
    assert "teacher of alone: one class only" in said and "teacher of outlined: val auroc" in said
    assert [gained["group"] for gained in method.extra["gains"]] == ["filled", "outlined"]
    assert all(gained["low"] <= gained["high"] for gained in method.extra["gains"])
    alone = data["train"].groups == 2
    with torch.no_grad():
        logits_t = method.taught(method.phi.kept, data["train"].groups)
        assert torch.equal(logits_t[alone], method.student.head(method.phi.kept)[alone])
    losses = method.step(next(batches(data["train"], 32, seed=0)))
    assert all(torch.isfinite(v) for v in losses.values())


def test_where_each_group_has_one_class_the_worst_group_is_undefined(tmp_path, capsys, toy):
    """No AUROC inside a group: step 0 ends, says so, and the run goes on."""
    data = regrouped(toy, lambda split: split.labels, toy.classes)
    make(data, tmp_path)
    assert ": val auroc of the worst group undefined" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--no-train-backbone", "--train-backbone"])
def test_with_one_group_it_is_plain_distillation(toy, tmp_path, flag, monkeypatch):
    """One group, step 0 replaced by plain training: step 2 is ckd.py with that one teacher."""
    monkeypatch.setattr(fairdi, "FairScaling", fairdi.PlainTraining)
    data = regrouped(toy, lambda split: split.groups * 0, ["all"])
    method = make(data, tmp_path, flag)
    live = flag == "--train-backbone"
    views = batches(data["train"], 32, seed=0, views="mirrored" if live else "")
    assert_step_2_is_plain_distillation(method, live, views)


def test_frozen_or_not(usual):
    """Without --train-backbone only the head moves, whatever the pictures of the batch show."""
    method = copy.deepcopy(usual)
    batch = next(batches(method.data["train"], 32, seed=0))
    before = {k: v.clone() for k, v in method.student.state_dict().items()}
    method.student.train()
    first = method.step(batch._replace(images=None))  # nothing needs them
    assert first["loss_kd"] >= 0
    moved = [k for k, v in method.student.state_dict().items() if not torch.equal(v, before[k])]
    assert moved == ["head.weight", "head.bias"]
    method.args.train_backbone = True
    method.step(batch)
    now = method.student.state_dict()
    assert not torch.equal(now["body.0.0.weight"], before["body.0.0.weight"])


def test_the_student_s_answer_does_not_depend_on_groups(usual):
    """Equal pictures, other groups: other teachers, the same logits of the student."""
    method = copy.deepcopy(usual)
    swapped = regrouped(method.data, lambda split: 1 - split.groups, method.data.group_names)
    ours, _ = fairdi.measure(method.student, method.data, "test")
    theirs, _ = fairdi.measure(method.student, swapped, "test")
    assert np.array_equal(ours, theirs)


def test_step_0_is_made_once_and_reported_as_fis(toy, usual, capsys):
    """Another α uses the same step 0; its three states are reported, the best one is the start."""
    out = Path(usual.args.out)
    capsys.readouterr()
    again = make(toy, out, "--alpha", "0.5")
    assert "step 0 1/1" not in capsys.readouterr().out
    assert set(again.reported) == {"fis", "fis_best_overall", "fis_best_worst_group"}
    best = again.reported["fis_best_worst_group"].state_dict()
    for name, value in again.student.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert all(map(torch.equal, heads_of(again), heads_of(usual)))
    made_of, val = [], toy["val"].subset(range(100))

    def told(path, *others, **more):
        made_of.append(path)
        raise StopIteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fairdi, "made_once", told)
        for data in (toy, replace(toy, splits=toy.splits | {"val": val})):
            with pytest.raises(StopIteration):
                make(data, out)
    assert made_of[0] != made_of[1]  # validation chose the epoch
    other = make(toy, out, "--fusion", "0")
    assert "step 0 1/1" in capsys.readouterr().out
    assert not torch.equal(other.phi.kept, usual.phi.kept)


@pytest.mark.parametrize("rule, end", [("best_worst_group", "_best_worst_group"), ("last", "")])
def test_steps_1_and_2_begin_with_the_epoch_asked_for(rule, end, toy, usual, monkeypatch, capsys):
    """Of one and the same step 0; teachers' heads start there, too."""
    made_once, heads = fairdi.made_once, []

    def three_epochs(*args, **more):
        states = made_once(*args, **more)
        for n, name in enumerate(("last", "best_overall", "best_worst_group")):
            bias = states[name]["head.bias"]
            states[name] = states[name] | {"head.bias": torch.full_like(torch.as_tensor(bias), n)}
        return states

    def watched(args, data, head, *more):
        heads.append(head.bias.detach().clone())
        return train_head(args, data, head, *more)

    train_head = fairdi.train_head
    monkeypatch.setattr(fairdi, "made_once", three_epochs)
    monkeypatch.setattr(fairdi, "train_head", watched)
    again = make(toy, Path(usual.args.out), "--step0-epoch", rule)
    assert "step 0 1/1" not in capsys.readouterr().out  # it was not trained anew
    expected = again.reported[f"fis{end}"].head.bias
    assert set(expected.tolist()) == {{"last": 0, "best_worst_group": 2}[rule]}
    assert [fis.head.bias[0].item() for fis in again.reported.values()] == [0, 1, 2]
    assert torch.equal(again.student.head.bias, expected)
    assert len(heads) == 4 and all(torch.equal(bias, expected) for bias in heads)


def test_a_killed_step_0_goes_on(toy, tmp_path):
    """Stopped in its second epoch and started again: the same states, draws of groups included."""

    def states(out):
        args = arguments(fairdi, "--out", str(out))  # two epochs
        torch.manual_seed(0)
        fairdi.Method(args, toy, fairdi.Network(args, "convnet2", 6))
        (path,) = out.rglob("step0.pt")
        return restore(path) | {"seconds": {}}  # which differ

    whole = states(tmp_path / "whole")
    with stopping(fairdi.FairScaling):
        states(tmp_path / "killed")
    assert list((tmp_path / "killed").rglob("step0-*/checkpoint.pt"))
    again = states(tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob("checkpoint.pt"))
    for rule, state in whole.items():
        for weight, value in state.items():
            assert np.array_equal(value, again[rule][weight]), (rule, weight)


def test_easy_pictures_do_not_end_in_one_answer(tmp_path, capsys):
    """Bright or, one in five, dark: the AUROC is 1 from epoch 2 on, when batch norm has not
    settled and nearly all answers are "bright". Step 2 must not start from such an epoch."""
    rng, rows = np.random.default_rng(0), []
    for n in range(400):
        dark, red = rng.random(2) < (0.2, 0.5)
        colour = (90 if dark else 150) + np.array([60 if red else 0, 0, 0])
        pixels = rng.normal(colour, 25, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        label, group = "dark" if dark else "bright", "red" if red else "grey"
        rows.append({"file": f"{n}.png", "label": label, "group": group})
    write_table(tmp_path / "labels.csv", rows)
    data = load("csv", tmp_path, 16)
    flags = ["--dataset", "csv", "--image-size", "16", "--lr", "0.05", "--out", str(tmp_path / "r")]
    args = arguments(fairdi, *flags)
    args.epochs = 4
    torch.manual_seed(0)
    method = fairdi.Method(args, data, fairdi.Network(args, "convnet2", 2))
    said = capsys.readouterr().out
    perfect = re.findall(r"^step 0 [1-4]/4 .* 100\.0 +100\.0 ", said, re.M)  # overall, worst group
    assert len(perfect) > 1 and "step 0 ends as in epoch 4" in said
    fairdi.fit(args, data, method, "student")
    shares = fairdi.class_shares(data["train"], 2)
    assert not fairdi.measure(method.student, data, "test", shares)[1]["collapsed"]


@pytest.mark.parametrize("flag, value", [("--fusion", "1.5"), ("--fis-temperature", "0")])
def test_settings_that_cannot_work_are_refused(flag, value, capsys):
    with pytest.raises(SystemExit):
        arguments(fairdi, flag, value)
    assert f"{flag}: {value} must be " in capsys.readouterr().err


def test_crossed_groups(ham10000, tmp_path, capsys):
    """sex+age on a miniature: cells with a handful of pictures, some of one class."""
    data = load("ham10000", ham10000, 16, sensitive="sex+age")
    args = arguments(
        fairdi, "--dataset", "ham10000", "--out", str(tmp_path / "r"), "--batch-size", "8"
    )
    args.image_size = 16
    student = fairdi.Network(args, "convnet2", 2)
    method = fairdi.Method(args, data, student)
    said = capsys.readouterr().out
    assert said.count("teacher of") == len(data.group_names) == 4
    assert math.isfinite(method.step(next(batches(data["train"], 8, seed=0)))["loss"].item())
    assert list((tmp_path / "r" / "smoke" / "ham10000" / "teachers").glob("step0-*/step0.pt"))
