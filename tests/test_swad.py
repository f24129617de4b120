"""SWAD: start and end of the average against the authors' code, and the average itself."""

from pathlib import Path

import numpy as np
import pytest
import swad
import torch
from conftest import arguments, method_of, random

from data import batches, put_back, restore, save

PARITY = np.load(Path(__file__).parent / "parity" / "medical.npz")
CASES = ("medfair", "official", "short", "noconv")


def case(name):
    """v of each segment, (N, P, r), the segments that the authors' code averages, its threshold."""
    converge, tolerance, ratio = PARITY[f"swad/in/{name}/nconv_ntol_ratio"].tolist()
    values = PARITY[f"swad/in/{name}/val"].astype(float).tolist()
    theirs = PARITY[f"swad/own/{name}/segments_averaged"].tolist()
    return values, (int(converge), int(tolerance), ratio), theirs


def by_definition(values, converge, tolerance, ratio):
    """Eqs. (2) to (4) as nested loops over sets."""
    n = len(values)
    starts = [s for s in range(n) if s + converge <= n]
    starts = [s for s in starts if all(values[s] <= values[s + k] for k in range(converge))]
    if not starts:
        return [n - 1]
    start = starts[0]
    highest = (1 + ratio) * np.mean(values[start : start + converge])
    chosen = []
    for t in range(start, n):
        if not any(v <= highest for v in values[t : min(n, t + tolerance)]):
            break
        chosen.append(t)
    return chosen


@pytest.mark.parametrize("name", CASES)
def test_parity_of_the_average(name):
    """Segment means and the plain mean of the segments that the authors' code lists are its
    result: their running means and ours agree."""
    path = torch.tensor(PARITY["swad/in/param_trajectory"]).view(14, 2, 3)
    segments = []
    for steps in path:
        mean = steps[0]
        for count, new in enumerate(steps, 1):
            mean = swad.running_mean(mean, new, count)
        segments.append(mean)
    theirs = case(name)[2]
    got = torch.stack([segments[e] for e in theirs]).mean(dim=0)
    np.testing.assert_allclose(got, PARITY[f"swad/out/{name}/final_param"], atol=2e-7)


@pytest.mark.parametrize("name", CASES)
def test_the_same_segments_as_the_authors_each_once(name):
    """The same end, the same threshold, no gap; the start that they lose is there, and what they
    add before the start or a second time is not."""
    values, settings, theirs = case(name)
    ours = list(swad.valley(values, *settings))
    assert ours == by_definition(values, *settings)
    assert ours[-1] == max(theirs) and len(set(ours)) == len(ours)
    if name == "noconv":
        assert ours == theirs == [13]
        return
    threshold = (1 + settings[2]) * np.mean(values[ours[0] : ours[0] + settings[0]])
    assert threshold == pytest.approx(PARITY[f"swad/out/{name}/threshold"].item(), rel=1e-6)
    assert ours[0] == 3 == int(np.argmin(values))
    differences = {"medfair": set(), "official": {2}, "short": {3}}  # stated in the header
    assert set(theirs) ^ set(ours) == differences[name]
    assert len(theirs) - len(set(theirs)) == {"medfair": 2, "official": 1, "short": 0}[name]


def test_valley_is_its_definition_on_random_paths():
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(500):
        values = rng.random(rng.integers(1, 16)).tolist()
        settings = (
            int(rng.integers(1, 5)),
            int(rng.integers(1, 5)),
            float(rng.choice([0, 0.1, 0.5])),
        )
        got = list(swad.valley(values, *settings))
        assert got == by_definition(values, *settings) and got
        ends.add((got[0] == 0, got[-1] == len(values) - 1))
    assert len(ends) == 4  # all kinds of valleys were met


def test_n_p_and_r_are_those_of_the_command_line(toy):
    """Each of them decides here."""
    method = method_of(swad, toy, "--converge", "2", "--tolerance", "1", "--threshold", "0.1")
    method.averaging.values = [0.7, 0.72, 0.5, 0.6, 0.55, 0.9, 0.5]
    assert list(method.averaged()) == [0, 1, 2, 3, 4]


def test_running_mean():
    path, mean = random(7, 3, 2), torch.zeros(3, 2, dtype=torch.float64)
    for count, new in enumerate(path, 1):
        mean = swad.running_mean(mean, new, count)
    assert torch.allclose(mean, path.mean(dim=0))


def walk(toy, values, *flags):
    """A method led through epochs of three steps with given losses on validation; with the weights
    after every step, {epoch: [list of tensors]}."""
    method = method_of(swad, toy, "--epochs", str(len(values)), *flags)
    method.args.epochs = len(values)
    path = {}
    for epoch, value in enumerate(values):
        method.student.train()
        for batch in list(batches(toy["train"], 32, 0, epoch, "mirrored"))[:3]:
            method.step(batch)
            path.setdefault(epoch, []).append([p.clone() for p in method.student.parameters()])
        method.end_epoch(epoch, {"loss": value})
    return method, path


VALUES = [1.0, 0.6, 0.5, 0.55, 0.52, 0.9, 0.54, 0.9, 0.95, 0.9, 0.96]


def test_the_student_becomes_the_mean_of_every_step_of_the_valley(toy):
    """Epochs 2 to 6: epoch 5 is bad but epoch 6 is not, and then four in a row are."""
    method, path = walk(toy, VALUES, "--tolerance", "3")
    assert list(method.averaged()) == [2, 3, 4, 5, 6]
    last = [p.clone() for p in method.student.parameters()]
    method.finish()
    for n, parameter in enumerate(method.student.parameters()):
        every = torch.stack([weights[n] for e in method.averaged() for weights in path[e]])
        assert torch.allclose(parameter, every.double().mean(0).float(), atol=1e-6)
        assert not torch.equal(parameter, last[n])


def test_no_segment_that_is_still_needed_is_forgotten(toy):
    """Before v settles the last N - 1 are kept, after it all since the start."""
    method, _ = walk(toy, [1.0, 0.9, 0.8, 0.7])
    assert list(method.averaging.segments) == [2, 3]
    method, _ = walk(toy, VALUES)
    assert list(method.averaging.segments) == list(range(2, len(VALUES)))


def test_batch_norm_is_recomputed(toy):
    """Means and variances are those of the averaged weights over one pass, nothing older."""
    method, _ = walk(toy, VALUES)
    first = next(m for m in method.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    first.running_mean.fill_(1e6)
    method.finish()
    conv, means = method.student.body[0][0], []
    views = list(batches(toy["train"], method.args.batch_size, 0, len(VALUES), "mirrored"))
    with torch.no_grad():
        for batch in views:
            means.append(conv(batch.images).mean(dim=(0, 2, 3)))
    assert torch.allclose(first.running_mean, torch.stack(means).mean(dim=0), atol=1e-4)
    assert first.num_batches_tracked == len(views)


def test_the_student_does_not_depend_on_what_was_drawn_before(toy):
    """A network that drops parts by chance draws the same after a kill."""
    ends = []
    for seed in (1, 2):
        method, _ = walk(toy, VALUES[:2])
        first = next(m for m in method.student.modules() if isinstance(m, torch.nn.ReLU))
        first.forward = lambda x: torch.nn.functional.dropout(x, 0.3, training=True)
        torch.manual_seed(seed)
        method.finish()
        ends.append(method.student.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_the_rate_stays_at_its_highest_after_the_warm_up(toy):
    method = method_of(swad, toy)
    batch = next(batches(toy["train"], 32, 0, 0, "mirrored"))
    for epoch, want in ((0, 0.123), (1, method.args.lr), (5, method.args.lr)):
        method.optimizer.param_groups[0]["lr"] = 0.123
        method.step(batch._replace(epoch=epoch))
        assert method.optimizer.param_groups[0]["lr"] == want


def test_a_restart_finds_the_average(toy, tmp_path):
    """State through a file, then the same epochs and the same average, bit for bit."""
    whole, _ = walk(toy, VALUES[:6])
    save(tmp_path / "x.pt", {k: v.state_dict() for k, v in whole.saved.items()})
    saved = restore(tmp_path / "x.pt")
    other = method_of(swad, toy, "--epochs", "6")
    for name, part in other.saved.items():
        put_back(part, saved[name], tmp_path)
    for method in (whole, other):
        method.args.epochs = 7
        method.student.train()
        for batch in list(batches(toy["train"], 32, 0, 6, "mirrored"))[:3]:
            method.step(batch)
        method.end_epoch(6, {"loss": 0.5})
        method.finish()
    assert list(whole.averaged()) == [2, 3, 4, 5, 6]
    for (name, a), b in zip(
        whole.student.state_dict().items(), other.student.state_dict().values()
    ):
        assert torch.equal(a, b), name


def test_one_epoch_and_no_teacher(toy):
    assert not swad.Method.needs_teacher
    args = arguments(swad)
    method = swad.Method(args, toy, swad.Network(args, "convnet2", 6))
    method.step(next(batches(toy["train"], 32, seed=0)))
    method.end_epoch(0, {"loss": 1.0})
    method.finish()
    assert list(method.averaged()) == [0]
