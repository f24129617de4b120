"""tests/speed.py measures what it says, and its two ways to train agree.

How fast anything is, is not tested: a busy machine would fail.
"""

import argparse
import json
from dataclasses import replace

import ckd
import pytest
import speed
import torch

SMALL = ["--smoke", "--device", "cpu", "--teacher", "convnet4", "--student", "convnet2"]


@pytest.fixture(autouse=True)
def drawn(toy, monkeypatch):
    """The toy is drawn once for all tests; each has its own splits."""
    monkeypatch.setattr(ckd, "load_pictures", lambda _: replace(toy, splits=dict(toy.splits)))


@pytest.fixture
def bench(tmp_path):
    return speed.Bench(ckd.parse(SMALL), steps=3, folder=tmp_path)


def test_every_loop_is_timed_on_the_same_pictures(tmp_path, monkeypatch, capsys):
    own = argparse.Namespace(steps=2, rounds=1)
    result = json.loads(json.dumps(speed.compare(ckd.parse(SMALL), own)))
    assert result["images_per_round"] == 64 and result["agree"] < 1e-5
    assert result["data"]["splits"]["train"] == 480
    rates, printed = result["images_per_cpu_second"], capsys.readouterr().out
    assert len(rates) == 7 and all(0 < rate["min"] <= rate["max"] for rate in rates.values())
    for name, ratio in result["ratios"].items():
        ours, other = name.split(" / ")
        expected = rates[ours]["median"] / rates[other]["median"]
        assert ratio["median"] == pytest.approx(expected) and name in printed
    assert result["machine"].keys() == {"device", "python", "torch", "torchvision", "numpy"}


def test_each_loop_trains_on_the_pictures_it_is_counted_for(bench, monkeypatch):
    seen, forward = [], ckd.Network.forward

    def count(network, images):
        if network.training:
            seen.append(len(images))
        return forward(network, images)

    monkeypatch.setattr(ckd.Network, "forward", count)
    for name, loop in bench.loops().items():
        seen.clear()
        loop()
        assert sum(seen) == (0 if name == "E data" else bench.images), name


def test_the_answers_that_are_kept_spare_the_teacher_its_passes(bench, monkeypatch):
    asked, forward = [], ckd.Network.forward

    def count(network, images):
        asked.extend([len(images)] * (network is bench.teacher))
        return forward(network, images)

    monkeypatch.setattr(ckd.Network, "forward", count)
    loops = bench.loops()
    for name, expected in (("A live", 96), ("A remembered", 96), ("A remembered", 0)):
        asked.clear()
        loops[name]()
        assert sum(asked) == expected, name


def test_the_check_notices_wrong_answers_and_another_loss(bench, monkeypatch):
    bench.check()
    kd_loss = ckd.kd_loss
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="A and B differ"):
        patch.setattr(ckd, "kd_loss", lambda *logits_and_t: 1.001 * kd_loss(*logits_and_t))
        bench.check()
    (path,) = bench.folder.rglob("epoch-001.pt")
    feats, logits = torch.load(path)
    torch.save((feats, logits + 1e-3 * torch.randn(logits.shape)), path)
    with pytest.raises(SystemExit, match="a remembered epoch is not the live one"):
        bench.check()


def test_decoding_is_timed_from_files_to_pixels(pictures, tmp_path):
    args = ckd.parse(["--dataset", "csv", "--data-dir", str(pictures), "--image-size", "16"])
    result = speed.decoding(args, {"train": 67}, tmp_path)
    assert result["pictures"] == 96 and result["megabytes"] == 96 * 3 * 16**2 / 1e6
    assert result["decoding_cpu_seconds"] > 0 and list(tmp_path.glob("decoded-16px-*.npy"))


def test_costs_against_sizes():
    sizes = {"pictures": (400, 800), "size": (16, 32), "groups": (2, 3), "classes": (2, 4)}
    sizes["mapped"] = (1500,)
    result = json.loads(json.dumps(speed.scaling(ckd.parse(SMALL), sizes)))
    assert [row["n"] for row in result["pictures"]] == [400, 800]
    assert [row["file_megabytes"] for row in result["pictures"]] == [1.2288, 2.4576]
    small, large = result["size"]
    assert large["activation_megabytes"] > 3 * small["activation_megabytes"] > 0
    assert [row["n"] for row in result["classes"]] == [2, 4]
    cells = [row for part in ("groups", "classes") for row in result[part]]
    assert all(value > 0 for row in cells for value in row.values())
    (row,) = result["mapped"]
    assert row["file_megabytes"] == 1500 * 3 * 64**2 / 1e6
    assert 0 < row["own_megabytes"] < row["all_megabytes"]


def test_where_a_step_goes(capsys):
    steps = speed.profile(["--smoke", "--teacher", "convnet4", "--batch-size", "8"], 1)["steps"]
    assert list(steps) == [
        "CKD",
        "BIRD",
        "FairDi, step 0",
        "FairTune, all parts",
        "linear probe",
    ]
    for row in steps.values():
        assert row["milliseconds"] > 0 and len(row["operators"]) == 5
        assert 0 < sum(row["operators"].values()) <= 1


def test_the_committed_page_is_made_from_the_committed_measurements():
    results = speed.ROOT / "results"
    assert speed.page(results / "speed") == (results / "speed.md").read_text()
