"""The embedded data set is what the README says: pinned, balanced in the test, fair to cure."""

import hashlib
import time

import ckd
import numpy as np
import pytest
import torch

import data as D
import readers
import runs as R


@pytest.fixture(scope="module")
def toy():
    return D.load("toy")


def test_pictures_are_pinned():
    """The bytes of all pictures, labels and groups, on every machine; drawn in under 5 seconds."""
    start = time.process_time()
    table = readers.read_toy(None, "label", "group", None, False)
    assert time.process_time() - start < 5
    content = table.images.tobytes() + table.labels.tobytes() + table.groups.tobytes()
    want = "867b2c700fdf2e4a8b383189c68a5061edf7ac6cc44729fde3f4ffe69cb12ddf"
    assert hashlib.sha256(content).hexdigest() == want


def test_cells(toy):
    """Skewed 9 to 1, alternating by class, in training and validation; balanced in the test."""
    for part, n in (("train", 6000), ("val", 1500), ("test", 3000)):
        split = toy[part]
        counts = torch.zeros(6, 2).index_put_((split.labels, split.groups), torch.ones(n), True)
        share = counts[:, 0] / counts.sum(1)  # of "filled" in each class
        want = [0.5] * 6 if part == "test" else [0.9, 0.1] * 3
        assert len(split) == n and counts.sum(1).tolist() == [n / 6] * 6
        np.testing.assert_allclose(share, want, atol=1e-6)


def test_no_picture_stands_twice(toy):
    every = toy["train"].store.flatten(1).numpy()
    assert len(np.unique(every, axis=0)) == 10_500


def test_the_bias_is_there_and_can_be_cured(toy, tmp_path):
    """The student trained plainly is unfair; seeing every cell equally often halves that at least.

    So most of the gap comes from the skew, and not from one group being harder to see.
    """
    ends = {"plain": [], "balanced": []}
    for seed in (0, 1):
        for name, values in ends.items():
            args = ckd.settings().parse_args(["--seed", str(seed), "--device", "cpu"])
            args = R.complete(args)
            args.balance = name == "balanced"
            torch.manual_seed(seed)
            method = ckd.CrossEntropy(args, toy, ckd.Network(args, "convnet8", 6))
            ckd.fit(args, toy, method, tmp_path / f"{name}{seed}.pt", name)
            _, test = ckd.evaluate(method.student, toy, "test")
            values.append((test["accuracy"], test["mean_deo"]))
    (plain, plain_deo), (balanced, balanced_deo) = (np.mean(v, 0) for v in ends.values())
    assert 0.60 < plain < 0.90 and plain_deo > 0.15
    assert balanced > plain and balanced_deo < plain_deo / 2
