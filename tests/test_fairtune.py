"""What a bit frees, against the authors' code; the search: its objective, pruning, resuming after
a kill, two processes on one study; and that the last run uses what the search has found."""

import copy
import gc
import json
import math
import shutil
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import fairtune
import numpy as np
import optuna
import pytest
import torch
from conftest import arguments
from forked import SERVER, Script, run_script, small

import metrics
from data import Diverged, InputError, load, restore

PARITY = dict(np.load(Path(__file__).parent / "parity" / "medical.npz"))


def network(*flags, name="vit_tiny"):
    args = arguments(fairtune, *flags)
    torch.manual_seed(0)
    return fairtune.Network(args, name, 6)


needs_timm = pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed")


@pytest.mark.parametrize(
    "name", ["vit_b_16", pytest.param("timm:vit_base_patch16_224", marks=needs_timm)]
)
def test_masks_free_as_many_parameters_as_in_the_published_code(name):
    """auto_peft1 on ViT-B/16 with two classes; the head is always free, positions never."""
    args = arguments(fairtune, "--dataset", "csv", "--image-size", "224")
    net = fairtune.Network(args, name, int(PARITY["fairtune_mask/in/num_classes"]))
    assert sum(p.numel() for p in net.parameters()) == PARITY["fairtune_mask/out/total_params"]
    masks = PARITY["fairtune_mask/in/auto_peft1"]
    for bits, count in zip(masks, PARITY["fairtune_mask/out/auto_peft1_trainable_params"]):
        params = fairtune.free(net, "".join(map(str, bits)))
        assert sum(p.numel() for p in params) == count
    everything = sum(p.numel() for p in fairtune.free(net, "full"))
    assert everything == PARITY["fairtune_mask/out/total_params"]
    with pytest.raises(ValueError):
        fairtune.free(net, "1" * 35)


@needs_timm
def test_bits_of_timms_small_transformer():
    """12 blocks of width 192 have 36 parts; each block has 4 · 192 numbers in its two norms."""
    args = arguments(fairtune, "--dataset", "csv", "--image-size", "64")
    net = fairtune.Network(args, "timm:vit_tiny_patch16_224", 2)
    norms, attention, mlp = 4 * 192, 4 * 192**2 + 4 * 192, 8 * 192**2 + 5 * 192
    for bits, count in (("100", norms), ("010", attention), ("001", mlp)):
        free = fairtune.free(net, bits + "0" * 33)
        assert sum(p.numel() for p in free) == count + 2 * 192 + 2  # and the head
    assert len(fairtune.parts(net)) == 36


@needs_timm
@pytest.mark.slow
def test_a_search_on_a_transformer_of_timm(originals, tmp_path):
    """It is pre-trained on another size of pictures, so that its positions are resampled."""
    shutil.copytree(originals / "csv", tmp_path / "pictures")
    flags = small("fairtune")[:-4]  # without another source than drawn stars of 32 pixels
    flags += ["--student", "timm:vit_tiny_patch16_224", "--image-size", "48", "--trials", "2"]
    done = run_script("fairtune", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "θ₀ knows its source" in done.stdout
    assert len(result(tmp_path)["search"]["bits"]) == 36


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


@pytest.mark.parametrize("bits", ["0" * 12, "1" * 12, "100010001110", "full"])
def test_what_is_frozen_stays_bit_by_bit(toy, bits):
    """Neither weight decay nor batch norm's statistics move it; what is free does move."""
    args = arguments(fairtune, "--weight-decay", "0.5")
    net = network()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    method = fairtune.Tuning(args, toy, net, bits, 1e-2)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert type(method.optimizer) is torch.optim.AdamW is type(method.saved["optimizer"])
    assert method.optimizer.param_groups[0]["weight_decay"] == 0.5
    fairtune.fit(args, toy, method, "test")
    for name, value in net.state_dict().items():
        still = name not in trained and bits != "full"  # which lets batch norm count, too
        assert torch.equal(value, start[name]) == still, name
    assert any("running_mean" in name for name in start)  # batch norm is there


def objective(name, validation):
    """The value of a trial whose epoch had these metrics on validation."""
    method = object.__new__(fairtune.Tuning)  # without networks: their metrics are given
    method.args, method.trial = arguments(fairtune, "--objective", name), None
    method.end_epoch(0, validation)
    return method.value


def test_the_objective_is_that_of_the_whole_split():
    """The authors' AUC of the data set, not their mean over batches."""
    truth = {"labels": PARITY["metrics/in/label"], "groups": PARITY["metrics/in/attr2"]}
    logits = PARITY["fairtune/in/logits"]
    ours = metrics.evaluate(**truth, logits=logits, num_classes=2, num_groups=2, replicates=0)
    areas = [ours["auroc"], *(group["auroc"] for group in ours["groups"])]
    whole = PARITY["fairtune/out/dataset_auc_overall_M_F"]
    np.testing.assert_allclose(areas, whole, rtol=1e-12)
    assert abs(areas - PARITY["fairtune/out/batchmean_auc_overall_M_F"]).min() > 0.003
    assert objective("auroc_worst_group", ours) == pytest.approx(whole.min(), rel=1e-12)
    worst = [-np.log(np.exp(row[y]) / np.exp(row).sum()) for row, y in zip(logits, truth["labels"])]
    worst = max(np.mean(np.array(worst)[truth["groups"] == g]) for g in (0, 1))
    assert objective("loss_worst_group", ours) == pytest.approx(worst, rel=1e-6)


def test_an_undefined_objective_is_explained_before_any_trial(toy, tmp_path, monkeypatch):
    """A group whose validation pictures are of one class; without a search it does not matter."""
    monkeypatch.setattr(fairtune, "fit", None)  # a trial would call it
    val = toy["val"]
    one = val.subset((val.groups == 0) | (val.labels == 0))
    lonely = replace(toy, splits={**toy.splits, "val": one})
    args = settings(tmp_path, "--objective", "auroc_gap", "--mask", "all")
    with pytest.raises(InputError, match="auroc_gap is undefined.*group 1 has no sample"):
        fairtune.search(args, lonely, network())
    args.trials = 0
    assert fairtune.search(args, lonely, network()) == ("1" * 12, args.lr, [], 0.0)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--mask", "0101"), "12 bits"),
        (("--mask", "01010101010x"), "12 bits"),
        (("--mask", "search", "--trials", "0"), "above 0"),
    ],
)
def test_bad_masks_are_refused(toy, flags, message):
    with pytest.raises(InputError, match=message):
        fairtune.search(arguments(fairtune, *flags), toy, network())


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--student", "convnet8"), "convnet8 has no transformer blocks"),
        (("--pretrained",), "nobody offers weights of vit_tiny: use --student vit_b_16"),
    ],
)
def test_networks_that_cannot_be_tuned_are_refused(toy, flags, message):
    with pytest.raises(InputError, match=message):
        fairtune.theta_0(arguments(fairtune, *flags), toy)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_without_a_source_it_learns_stars_first(pictures, tmp_path, size, capsys):
    """On any data set, in any size: θ₀ is the body that has learnt stars of 32 pixels, once."""
    flags = ["--dataset", "csv", "--image-size", str(size), "--out", str(tmp_path / "runs")]
    data = load("csv", pictures, size)
    start = fairtune.theta_0(arguments(fairtune, *flags), data)
    said = capsys.readouterr().out
    assert "knows drawn stars alone" in said and "--student vit_b_16 --pretrained" in said
    assert "teacher 2/2" in said and "knows its source: accuracy" in said
    (path,) = (tmp_path / "runs").rglob("toy-source/teachers/*/teacher.pt")
    learnt, positions = restore(path)["state"], "body.encoder.pos_embedding"
    assert start.state_dict()[positions].shape == (1, 1 + (size // 8) ** 2, 64)
    for name, value in start.state_dict().items():
        if name.startswith("body.") and (name != positions or size == 32):
            assert torch.equal(value, learnt[name]), name
    again = fairtune.theta_0(arguments(fairtune, *flags, "--seed", "1"), data)  # another head
    assert "teacher 1/2" not in capsys.readouterr().out
    assert torch.equal(again.body.encoder.pos_embedding, start.body.encoder.pos_embedding)
    assert not torch.equal(again.head.weight, start.head.weight)


def test_a_share_of_the_training_pictures_is_none_of_the_source(pictures, tmp_path, monkeypatch):
    learnt_from = []

    def told(plain, data):
        learnt_from.append(len(data["train"]))
        raise StopIteration

    monkeypatch.setattr(fairtune, "get_teacher", told)
    data = load("csv", pictures, 16)
    for share in ("1", "0.3"):
        flags = ["--dataset", "csv", "--train-share", share, "--out", str(tmp_path / "runs")]
        with pytest.raises(StopIteration):
            fairtune.theta_0(arguments(fairtune, *flags), data)
    assert learnt_from[0] == learnt_from[1]


def test_named_masks_without_a_search(toy):
    own = "110000000001"
    for mask, bits in (("all", "1" * 12), ("none", "0" * 12), ("full", "full"), (own, own)):
        args = arguments(fairtune, "--mask", mask, "--trials", "0", "--lr", "0.001")
        assert fairtune.search(args, toy, network()) == (bits, args.lr, [], 0.0)


# ----- the search alone, with trials that train nothing -------------------------------------------


def cost(lr):
    """What a pretended trial reaches with this learning rate: 1e-4 is best."""
    return (math.log10(lr) + 4) ** 2


def pretended_fit(args, data, method, label, checkpoint=None, rules=(), later=0):
    """Three epochs with the same validation, all reported."""
    for epoch in range(args.epochs):
        lr = method.optimizer.param_groups[0]["initial_lr"]
        method.end_epoch(epoch, {args.objective: cost(lr)})


@pytest.fixture
def pretend(monkeypatch):
    monkeypatch.setattr(fairtune, "fit", pretended_fit)


def settings(out, *flags, trials=12):
    """Arguments of a search of `trials` trials, six epochs each."""
    args = arguments(fairtune, "--out", str(out), "--trials", str(trials), *flags)
    args.smoke, args.epochs = False, 6
    return args


def test_pruning_saves_epochs_and_the_best_is_the_best(toy, tmp_path, pretend):
    start = network()
    bits, lr, trials, earlier = fairtune.search(settings(tmp_path), toy, start)
    assert earlier == 0
    ended = [trial for trial in trials if trial["state"] == "complete"]
    assert len(trials) == 12 and 0 < len(ended) < 12
    assert sum(len(trial["values"]) for trial in trials) < 12 * 6
    for n, trial in enumerate(trials):  # of all so far the best quarter goes on
        quarter = sorted(t["values"][0] for t in trials[: n + 1])[: max(1, (n + 1) // 4)]
        assert (len(trial["values"]) > 1) == (trial["values"][0] in quarter)
    best = dict(min(ended, key=lambda trial: trial["values"][-1])["params"])
    assert lr == best.pop("lr") and bits == "".join(str(best[name]) for name in sorted(best))
    assert fairtune.RATES[0] <= lr <= fairtune.RATES[1]
    for goal in ("auroc", "auroc_worst_group"):  # what is larger is better here
        up = settings(tmp_path, "--objective", goal)
        assert cost(fairtune.search(up, toy, start)[1]) > cost(lr)
    down = settings(tmp_path, "--objective", "auroc_gap")
    assert fairtune.search(down, toy, start)[:2] == (bits, lr)
    again = fairtune.search(settings(tmp_path), toy, start)
    assert again[:3] == (bits, lr, trials) and again[3] > 0  # it is there: nothing is tried anew
    other = copy.deepcopy(start)
    other.head.bias.data += 1  # another θ₀ is another search
    assert len(list(tmp_path.rglob("study.db"))) == 4
    fairtune.search(settings(tmp_path, trials=1), toy, other)
    assert len(list(tmp_path.rglob("study.db"))) == 5


def rates(out, data, *flags, trials):
    """log10 of the learning rates that the trials of a search had."""
    _, _, tried, _ = fairtune.search(settings(out, *flags, trials=trials), data, network())
    return np.log10([trial["params"]["lr"] for trial in tried])


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_all_masks_have_equal_chances(toy, tmp_path, pretend, seed):
    """As many trials, and ten first rates in one stream, which leaves no large gap: also four do
    not lie close together, as by chance they did."""
    usual = [fairtune.parse(["--mask", mask]) for mask in ("search", "full", "all", "none")]
    assert len({(args.trials, args.epochs, args.batch_size) for args in usual}) == 1
    low, high = np.log10(fairtune.RATES)
    masks = ("search", "full", "all", "none", "100000000001") if seed == "0" else ("none", "full")
    streams = [rates(tmp_path, toy, "--mask", mask, "--seed", seed, trials=10) for mask in masks]
    for stream in streams:
        np.testing.assert_allclose(stream, streams[0], atol=1e-9)
        for count, widest in ((4, 0.4), (10, 0.15)):
            assert np.diff(np.sort([low, *stream[:count], high])).max() < widest * (high - low)


def test_after_ten_trials_the_sampler_has_learnt(toy, tmp_path, pretend):
    """The next twenty lie closer to the best rate, 1e-4, than those of the stream."""
    tried = np.abs(rates(tmp_path, toy, "--mask", "all", trials=30) + 4)
    assert np.median(tried[10:]) < np.median(tried[:10]) / 2


def test_no_trial_is_pruned_after_its_last_epoch(toy, tmp_path, pretend):
    args = settings(tmp_path, trials=6)
    args.epochs = 1
    _, _, trials, _ = fairtune.search(args, toy, network())
    assert [trial["state"] for trial in trials] == ["complete"] * 6


def test_a_trial_that_diverges_does_not_end_the_search(toy, tmp_path, monkeypatch, capsys):
    def diverging(*args, **more):
        if len(calls) in bad:
            calls.append("bad")
            raise Diverged("loss is nan")
        calls.append("good")
        pretended_fit(*args, **more)

    monkeypatch.setattr(fairtune, "fit", diverging)
    calls, bad = [], (0, 3)
    _, lr, trials, _ = fairtune.search(settings(tmp_path, trials=5), toy, network())
    assert [t["values"] for t in trials].count([]) == 2 and trials[0]["state"] == "pruned"
    assert len(calls) == 5 and "trial 4 ends here: loss is nan" in capsys.readouterr().out
    calls, bad = [], range(9)
    with pytest.raises(InputError, match="no trial came to its end"):
        fairtune.search(settings(tmp_path / "none", trials=2), toy, network())


def test_a_search_that_stops_goes_on_with_the_same_trials(toy, tmp_path, monkeypatch, pretend):
    """An error in each trial that comes to its fifth epoch; it is made again, and the end is that
    of an undisturbed search. With --restart all begins again."""
    start, seed = network(), ["--seed", "5"]  # with which values that count twice prune others
    *whole, earlier = fairtune.search(settings(tmp_path / "whole", *seed), toy, start)
    assert earlier == 0
    calls, errors = [], 0

    def break_once(args, data, method, label, **others):
        lr = method.optimizer.param_groups[0]["initial_lr"]
        calls.append((label, lr))
        if calls.count((label, lr)) == 1:
            for epoch in range(5):
                method.end_epoch(epoch, {args.objective: cost(lr)})
            raise MemoryError
        pretended_fit(args, data, method, label, **others)

    monkeypatch.setattr(fairtune, "fit", break_once)
    args, again = settings(tmp_path / "broken", *seed), None
    while not again:
        try:
            *again, earlier = fairtune.search(args, toy, start)
        except MemoryError:
            errors += 1
    gc.collect()  # a killed process would hold no lock any more
    assert again == whole and earlier > 0
    assert errors > 1 and len(calls) == 12 + errors and len({*calls}) == 12
    args.restart = True
    assert [*fairtune.search(args, toy, start)] == [*whole, 0]


def search_slowly(folder, seconds, tell):
    """In a process of its own: a search whose trials take `seconds`, and what it tried."""

    def slow(args, data, method, label, *more, **others):
        tell.send(label)
        time.sleep(seconds)
        pretended_fit(args, data, method, label)

    fairtune.fit = slow
    torch.set_num_threads(1)
    data = load("csv", folder / "pictures", 16)
    torch.manual_seed(0)
    args = settings(folder / "runs", "--dataset", "csv", "--image-size", "16", trials=6)
    args.device = "cpu"
    tell.send(fairtune.search(args, data, fairtune.Network(args, "vit_tiny", 3)))


def test_two_processes_share_a_search_and_one_dies(originals, tmp_path):
    """The first is killed in a trial: the other repeats it and ends all six."""
    shutil.copytree(originals / "csv", tmp_path / "pictures")
    runs = []
    for seconds in (3600, 0.2):
        ours, theirs = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=search_slowly, args=(tmp_path, seconds, theirs))
        process.start()
        theirs.close()
        runs.append((process, ours, [ours.recv()]))  # has begun a trial
    (first, _, (stuck,)), (second, ours, tried) = runs
    while len(tried) < 5:  # all but that of the first
        tried.append(ours.recv())
    assert not ours.poll(1), "it waits for the first, and does not repeat what another one tries"
    first.kill()
    tried += [ours.recv(), ours.recv()]
    second.join()
    *tried, (_, _, trials, _) = tried
    draws = [label.split()[1] for label in tried]
    assert draws == ["2", "3", "4", "5", "6", "1"] and stuck == "trial 1"
    assert len(trials) == 6 and len({trial["params"]["lr"] for trial in trials}) == 6
    (path,) = tmp_path.rglob("study.db")
    study = optuna.load_study(study_name=path.parent.name, storage=f"sqlite:///{path}")
    states = [trial.state.name for trial in study.get_trials()]
    assert len(states) == 6 and {*states} <= {"COMPLETE", "PRUNED"}  # made again under its own name


# ----- the script, as a user starts it ------------------------------------------------------------


def result(folder):
    (path,) = folder.rglob("result.json")
    content = json.loads(path.read_text())
    return {name: value for name, value in content.items() if name != "times"}


def test_killed_runs_go_on_and_two_runs_share_the_trials(originals, tmp_path):
    """One run killed in its first trial and started again; then two at once: the same result."""
    killed, both = tmp_path / "killed", tmp_path / "both"
    for folder in (killed, both):
        shutil.copytree(originals / "csv", folder / "pictures")
    run = Script("fairtune", *small("fairtune"), cwd=killed)
    run.wait_for("trial 1 of")
    run.kill()
    done = Script("fairtune", *small("fairtune"), cwd=killed).wait()
    assert done.stdout.count("wrote") == 1, done.stderr
    search, last = result(killed)["search"], result(killed)["last"]
    assert [trial["state"] for trial in search["trials"]].count("complete") >= 1
    ## The last run has the bits and the rate of the best trial, and so its value, digit by digit.
    ended = [trial for trial in search["trials"] if trial["state"] == "complete"]
    best = min(ended, key=lambda trial: trial["values"][-1])
    assert best["params"]["lr"] == search["lr"]
    bits = [value for name, value in sorted(best["params"].items()) if name != "lr"]
    assert "".join(map(str, bits)) == search["bits"]
    assert last["val"]["loss_worst_group"] == best["values"][-1]

    runs = [Script("fairtune", *small("fairtune"), cwd=both) for _ in range(2)]
    ends = [run.wait() for run in runs]
    assert [end.returncode for end in ends] == [0, 0], ends
    texts = [end.stdout for end in ends]
    assert sum("wrote" in text for text in texts) == 1  # one trains, the other finds the result
    assert sum(text.count("student 1/2") for text in texts) == 1
    for trial in (1, 2, 3):
        assert sum(f"trial {trial} of" in text for text in texts) == 1  # no trial is tried twice
    assert len(result(both)["search"]["trials"]) == 3


def test_a_search_in_a_journal_is_the_same_search(originals, tmp_path):
    shutil.copytree(originals / "csv", tmp_path / "pictures")
    results = []
    for name, more in (("file", []), ("journal", ["--study-dir", "shared/studies"])):
        run = Script("fairtune", *small("fairtune"), "--out", name, *more, cwd=tmp_path)
        assert run.wait().returncode == 0
        results.append(result(tmp_path / name))
    assert results[0] == results[1]
    journals = list(tmp_path.glob("shared/studies/*.journal"))
    assert len(list(tmp_path.rglob("study.db"))) == len(journals) == 1


@pytest.mark.parametrize("place", ["labels.csv/journal", "no-such-database://here/study"])
def test_a_place_that_cannot_hold_a_search(originals, tmp_path, place):
    pictures = shutil.copytree(originals / "csv", tmp_path / "pictures")
    place = place.replace("labels.csv", str(pictures / "labels.csv"))
    done = Script("fairtune", *small("fairtune"), "--study-dir", place, cwd=tmp_path).wait()
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"fairtune.py: --study-dir {place} cannot be used")
