"""What a bit frees, against the authors' code; the search: its objective, pruning, resuming after
a kill, two processes on one study; and that the last run uses what the search has found."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fairtune
import numpy as np
import optuna
import pytest
import torch
from conftest import arguments

import data as D
import metrics as M
import runs as R

ROOT = Path(__file__).resolve().parent.parent
PARITY = dict(np.load(ROOT / "tests" / "parity" / "medical.npz"))


def network(*flags, name="vit_tiny"):
    args = arguments(fairtune, *flags)
    torch.manual_seed(0)
    return fairtune.Network(args, name, 6)


def test_masks_free_as_many_parameters_as_in_the_published_code():
    """auto_peft1 on ViT-B/16 with two classes; the head is always free, positions never."""
    args = arguments(fairtune, "--dataset", "csv", "--image-size", "224")
    net = fairtune.Network(args, "vit_b_16", int(PARITY["fairtune_mask/in/num_classes"]))
    assert sum(p.numel() for p in net.parameters()) == PARITY["fairtune_mask/out/total_params"]
    masks = PARITY["fairtune_mask/in/auto_peft1"]
    for bits, count in zip(masks, PARITY["fairtune_mask/out/auto_peft1_trainable_params"]):
        params = fairtune.free(net, "".join(map(str, bits)))
        assert sum(p.numel() for p in params) == count
    with pytest.raises(ValueError):
        fairtune.free(net, "1" * 35)


def test_bits_stand_for_norms_attention_and_mlp_of_each_block():
    net = network()
    for n in range(12):
        fairtune.free(net, "".join("01"[k == n] for k in range(12)))
        names = {name for name, p in net.named_parameters() if p.requires_grad}
        inside = {".".join(name.split(".")[4:5]) for name in names if not name.startswith("head")}
        blocks = {name.split(".")[3] for name in names if not name.startswith("head")}
        assert blocks == {f"encoder_layer_{n // 3}"}
        assert inside == [{"ln_1", "ln_2"}, {"self_attention"}, {"mlp"}][n % 3]
        assert {"head.weight", "head.bias"} <= names


@pytest.mark.parametrize("bits", ["0" * 12, "1" * 12, "100010001110"])
def test_what_is_frozen_stays_bit_by_bit(toy, tmp_path, bits):
    """Neither weight decay nor batch norm's statistics move it; what is free does move."""
    args = arguments(fairtune, "--weight-decay", "0.5")
    net = network()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    method = fairtune.Tuning(args, toy, net, bits, 1e-2)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    fairtune.fit(args, toy, method, tmp_path / "checkpoint.pt", "test")
    for name, value in net.state_dict().items():
        assert torch.equal(value, start[name]) == (name not in trained), name
    assert any("running_mean" in name for name in start)  # batch norm is there


def test_the_objective_is_that_of_the_whole_split():
    """The authors' AUC of the data set, not their mean over batches."""
    truth = {"labels": PARITY["metrics/in/label"], "groups": PARITY["metrics/in/attr2"]}
    logits = PARITY["fairtune/in/logits"]
    ours = M.evaluate(**truth, logits=logits, num_classes=2, num_groups=2, replicates=0)
    areas = [ours["auroc"], *(group["auroc"] for group in ours["groups"])]
    whole = PARITY["fairtune/out/dataset_auc_overall_M_F"]
    np.testing.assert_allclose(areas, whole, rtol=1e-12)
    assert abs(areas - PARITY["fairtune/out/batchmean_auc_overall_M_F"]).min() > 0.003
    assert R.defined(ours, "auroc_worst_group") == pytest.approx(whole.min(), rel=1e-12)
    worst = [-np.log(np.exp(row[y]) / np.exp(row).sum()) for row, y in zip(logits, truth["labels"])]
    worst = max(np.mean(np.array(worst)[truth["groups"] == g]) for g in (0, 1))
    assert R.defined(ours, "loss_worst_group") == pytest.approx(worst, rel=1e-6)


def test_an_undefined_objective_is_explained():
    lonely = M.evaluate(labels=[0, 1, 1], groups=[0, 0, 1], logits=np.eye(2)[[0, 1, 1]],
                        num_classes=2, num_groups=2, replicates=0)  # fmt: skip
    with pytest.raises(D.InputError, match="auroc_gap is undefined.*group 1 has no sample"):
        R.defined(lonely, "auroc_gap")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--mask", "0101"), "12 bits"),
        (("--mask", "01010101010x"), "12 bits"),
        (("--mask", "search", "--trials", "0"), "1 or more"),
        (("--mask", "all", "--trials", "-1"), "1 or more"),
    ],
)
def test_bad_masks_are_refused(toy, flags, message):
    with pytest.raises(D.InputError, match=message):
        fairtune.search(arguments(fairtune, *flags), toy, network())


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--student", "convnet8"), "convnet8 has no transformer blocks"),
        (("--dataset", "csv"), "vit_tiny must be pre-trained.*--source"),
        (("--student", "vit_tiny", "--pretrained"), "vit_tiny"),
    ],
)
def test_networks_that_cannot_be_tuned_are_refused(toy, flags, message):
    with pytest.raises(D.InputError, match=message):
        fairtune.theta_0(arguments(fairtune, *flags), toy)


def test_named_masks_without_a_search(toy):
    for mask, bits in (("all", "1" * 12), ("none", "0" * 12), ("110000000001", "110000000001")):
        args = arguments(fairtune, "--mask", mask, "--trials", "0", "--lr", "0.001")
        assert fairtune.search(args, toy, network()) == (bits, args.lr, [])


# ----- runs.shared_search alone, with an attempt that trains nothing ------------------------------

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


def settings(folder, trials=12):
    run = SimpleNamespace(folder=folder, settings={})
    return SimpleNamespace(trials=trials, smoke=False, seed=0, run=run)


def halving(trial, checkpoint):
    """Nearer to 0.3 is better; three epochs, all reported."""
    for epoch in (1, 2, 3):
        trial.report((trial.params["x"] - 0.3) ** 2, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return (trial.params["x"] - 0.3) ** 2


HOW = {"direction": "minimize", "pruner": optuna.pruners.SuccessiveHalvingPruner(1, 2)}


def test_pruning_saves_epochs_and_the_best_is_the_best(tmp_path):
    best, trials = R.shared_search(settings(tmp_path), halving, SPACE, False, **HOW)
    ended = [trial for trial in trials if trial["state"] == "complete"]
    assert len(trials) == 12 and 0 < len(ended) < 12
    assert sum(len(trial["values"]) for trial in trials) < 12 * 3
    assert best == min(ended, key=lambda trial: trial["values"][-1])["params"]
    up = {**HOW, "direction": "maximize"}
    far, others = R.shared_search(settings(tmp_path / "up"), halving, SPACE, False, **up)
    assert abs(far["x"] - 0.3) > abs(best["x"] - 0.3)
    again = R.shared_search(settings(tmp_path), halving, SPACE, False, **HOW)
    assert again == (best, trials)  # it is there: nothing is tried anew


def test_a_trial_that_diverges_does_not_end_the_search(tmp_path):
    def attempt(trial, checkpoint):
        if trial.number in (0, 3):
            raise R.NotFinite("loss is nan")
        return halving(trial, checkpoint)

    best, trials = R.shared_search(settings(tmp_path), attempt, SPACE, False, **HOW)
    assert [t["state"] for t in trials].count("pruned") >= 2 and trials[0]["values"] == []
    always = lambda trial, checkpoint: attempt(SimpleNamespace(number=0), checkpoint)
    with pytest.raises(D.InputError, match="no trial came to its end"):
        R.shared_search(settings(tmp_path / "none", 2), always, SPACE, False, **HOW)


def test_a_search_that_stops_goes_on_with_the_same_trials(tmp_path):
    """An error in the fifth trial; the trial is repeated, and the end is that of an undisturbed
    search. With `anew` all begins again."""
    whole = R.shared_search(settings(tmp_path / "whole"), halving, SPACE, False, **HOW)
    calls = []

    def break_once(trial, checkpoint):
        calls.append(trial.params["x"])
        if len(calls) == 5:
            raise MemoryError
        return halving(trial, checkpoint)

    args = settings(tmp_path / "broken")
    with pytest.raises(MemoryError):
        R.shared_search(args, break_once, SPACE, False, **HOW)
    assert R.shared_search(args, break_once, SPACE, False, **HOW) == whole
    assert calls[4] == calls[5] and len(calls) == 13
    R.shared_search(args, break_once, SPACE, True, **HOW)
    assert len(calls) == 25


WORKER = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
import runs as R, test_fairtune as T
def slow(trial, checkpoint):
    print(trial.number, flush=True)
    time.sleep({seconds})
    return T.halving(trial, checkpoint)
R.shared_search(T.settings(Path({folder!r}), 8), slow, T.SPACE, False, **T.HOW)
"""


def worker(folder, seconds):
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "methods")]
    code = WORKER.format(paths=paths, folder=str(folder), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_study_and_one_dies(tmp_path):
    """The first is killed in a trial: the other repeats it and ends all eight, without waiting."""
    first, second = worker(tmp_path, 3600), worker(tmp_path, 0.3)
    for process in (first, second):  # has begun a trial; the first would stay in it for an hour
        while not process.stdout.readline().strip().isdigit():
            pass  # it says that it waits for the study
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=1800) == 0
    (path,) = tmp_path.glob("*/study.db")
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{path}").get_trials()
    states = [trial.state.name for trial in trials]
    assert states.count("FAIL") == 1 and len(states) == 9 and "RUNNING" not in states
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    assert len({trial.params["x"] for trial in trials if trial.state.name != "FAIL"}) == 8


# ----- the script, as a user starts it ------------------------------------------------------------


def start(out):
    command = [sys.executable, "-u", ROOT / "methods" / "fairtune.py", "--smoke", "--out", out]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(out):
    (path,) = out.rglob("*.json")
    content = json.loads(path.read_text())
    return {name: value for name, value in content.items() if name != "times"}


def test_killed_runs_go_on_and_two_runs_share_the_trials(tmp_path):
    """One run killed in its first trial and started again; then two at once: the same result."""
    out = tmp_path / "killed" / "results"
    run = start(out)
    for line in run.stdout:
        if line.startswith("trial 0"):
            break
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert start(out).communicate()[0].count("wrote") == 1
    killed = result(out)
    search, last = killed["search"], killed["last"]
    assert [trial["state"] for trial in search["trials"]].count("complete") >= 1
    ## The last run has the bits and the rate of the best trial, and so its value, digit by digit.
    ended = [trial for trial in search["trials"] if trial["state"] == "complete"]
    best = min(ended, key=lambda trial: trial["values"][-1])
    assert best["params"]["lr"] == search["lr"]
    bits = [value for name, value in sorted(best["params"].items()) if name != "lr"]
    assert "".join(map(str, bits)) == search["bits"]
    assert last["val"]["loss_worst_group"] == best["values"][-1]

    both = tmp_path / "both" / "results"
    shutil.copytree(
        out.parent / "runs" / "smoke" / "toy-source", both.parent / "runs" / "smoke" / "toy-source"
    )
    ends = [run.communicate()[0] for run in [start(both), start(both)]]
    assert sum("wrote" in end for end in ends) == 1  # one trains, the other finds the result
    assert sum("is there already" in end for end in ends) == 1
    assert len(result(both)["search"]["trials"]) == 3
