"""--export writes a student that needs none of this code and says the same."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data as D

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("student", ["convnet2", "shufflenet_v2_x0_5"])
def test_the_exported_student_gives_the_same_logits(tmp_path, student):
    command = [sys.executable, str(ROOT / "methods" / "ckd.py"), "--smoke", "--device", "cpu"]
    command += ["--teacher", "convnet4", "--student", student, "--epochs", "1"]
    command += ["--out", str(tmp_path / "results")]
    for _ in range(2):  # with the run, and of a finished one
        done = subprocess.run([*command, "--export"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / "results").rglob("*.pt2")
        model = torch.export.load(path).module()
        with np.load(path.with_suffix(".npz")) as file:
            want = file["last"].astype(np.float32)
        images = D.load("toy", smoke=True)["test"].images.float()
        for count in (1, 7, len(images)):  # any number of pictures
            logits = model(images[:count]).detach().numpy()
            assert np.allclose(logits, want[:count], rtol=2e-3, atol=2e-3)  # stored as float16
        if all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
            onnxruntime = importlib.import_module("onnxruntime")
            session = onnxruntime.InferenceSession(str(path.with_suffix(".onnx")))
            name = session.get_inputs()[0].name
            for count in (1, 7, len(images)):
                (logits,) = session.run(None, {name: images[:count].numpy()})
                assert np.allclose(logits, want[:count], rtol=2e-3, atol=2e-3)
        path.unlink()
    (tmp_path / "runs").rename(tmp_path / "gone")
    done = subprocess.run([*command, "--export"], capture_output=True, text=True)
    assert done.returncode == 1 and "--restart trains this student anew" in done.stderr
    assert "Traceback" not in done.stderr
