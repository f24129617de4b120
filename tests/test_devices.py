"""Every script on a GPU that is not there: a tensor that stayed on the CPU is found without a card.

A `Pretended` tensor says that it is on another device. Its numbers are on the CPU, so everything
can be computed, also what depends on values. PyTorch's own rules for CUDA (FakeTensorMode) decide
which tensors an operation may mix and where its outputs are. Faults of kernels, of autocast and of
pinned memory cannot be found so: for these there is tests/gpu.sh, on a real card.
"""

import contextlib
import importlib
import sys
from dataclasses import replace

import ckd
import pytest
import torch
from conftest import add_masks
from forked import SCRIPTS, small
from test_methods import result_of
from torch._subclasses import fake_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import data
import results

if torch.__version__.startswith("2.6"):
    pytest.skip("PyTorch 2.6 refuses a fake tensor for the meta device", allow_module_level=True)

THERE = torch.device("meta")  # the only other device that PyTorch has without hardware
UNKNOWN = fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException


class Pretended(torch.Tensor):
    """A tensor on the device THERE; its numbers are those of `here`, a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_meta = False  # those have no numbers

    @staticmethod
    def __new__(cls, here):
        layout = {"strides": here.stride(), "dtype": here.dtype, "device": THERE}
        tensor = torch.Tensor._make_wrapper_subclass(cls, here.shape, **layout)
        tensor.here = here.detach()
        return tensor

    def __reduce_ex__(self, protocol):
        return self.here.__reduce_ex__(protocol)  # is saved like any other tensor

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} was called outside of Pretence")


def here(value):
    """A tensor with its numbers, and the CPU for any device; everything else as it is."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.here if isinstance(value, Pretended) else value


class Pretence(TorchDispatchMode):
    """Within it THERE is a GPU whose numbers are those of the CPU, bit by bit."""

    def __init__(self):
        super().__init__()
        self.rules, self.known = fake_tensor.FakeTensorMode(), {}

    def judge(self, function, args, kwargs):
        """Where the outputs are: a tree of devices, or None where that depends on values."""

        def fake(value):
            if isinstance(value, torch.device):
                return torch.device("cuda") if value == THERE else value
            if not isinstance(value, torch.Tensor):
                return value
            device = torch.device("cuda" if isinstance(value, Pretended) else "cpu")
            layout = value.shape, value.stride()
            empty = torch.empty_strided(*layout, dtype=value.dtype, device=THERE)
            return fake_tensor.FakeTensor(self.rules, empty, device)

        def describe(value):
            if isinstance(value, torch.Tensor):
                return value.shape, value.stride(), value.dtype, isinstance(value, Pretended)
            return str(value)

        key = function, *map(describe, tree_leaves((args, kwargs)))
        if key not in self.known:  # a step is judged once
            try:
                with self.rules:
                    outputs = function(*tree_map(fake, args), **tree_map(fake, kwargs))
                self.known[key] = tree_map(lambda v: getattr(v, "device", None), outputs)
            except UNKNOWN:
                self.known[key] = None
        return self.known[key]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        theirs = {id(t.here): t for t in tensors if isinstance(t, Pretended)}
        if not theirs and kwargs.get("device") != THERE:
            return function(*args, **kwargs)
        if function.overloadpacket == torch.ops.aten.index and type(tensors[0]) is torch.Tensor:
            raise RuntimeError("indices on the GPU cannot index a tensor on the CPU")  # no rule
        places = self.judge(function, args, kwargs)

        def there(value, place="cuda"):
            if not isinstance(value, torch.Tensor) or torch.device(place).type == "cpu":
                return value
            return theirs[id(value)] if id(value) in theirs else Pretended(value)  # in place?

        outputs = function(*tree_map(here, args), **tree_map(here, kwargs))
        if torch.Tag.inplace_view in function.tags:  # another shape for the tensor itself
            with no_dispatch():
                function(*args, **kwargs)
        return tree_map(there, outputs) if places is None else tree_map(there, outputs, places)


def run(script, folder, device, *flags, resident=True):
    """The result of a short run of a script on `device`, "cpu" or "meta": all of its main.

    resident: whether the pixels are on the device, as where they fit, and not mapped into memory.
    """
    module, restore, autocast = importlib.import_module(script), data.restore, torch.autocast
    load_pictures = module.load_pictures

    def loaded(args):
        pictures = load_pictures(args)
        for part, split in pictures.splits.items() if resident else ():
            names = ("store", "rows") if split.masks is None else ("store", "rows", "masks")
            there = {name: getattr(split, name).to(device) for name in names}
            pictures.splits[part] = replace(split, **there)
        return pictures

    def restored(path, device="cpu", keys=()):  # what torch.load does with a device that exists
        content = restore(path, "cpu", keys)
        return tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, content)

    own = ["--data-dir", "pictures", "--source-dir", "pictures", "--trials", "1"]
    own = own if script == "fairtune" else own[:2]
    own += ["--batch-size", "16", "--epochs", "1", "--device", device, "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *small(script), *own, *flags])
        patch.setattr(module, "load_pictures", loaded)
        patch.setattr(data, "restore", restored)
        patch.setattr(torch, "autocast", lambda kind, *how, **more: autocast("cpu", *how, **more))
        mode = Pretence() if device == "meta" else contextlib.nullcontext()
        with mode, sdpa_kernel(SDPBackend.MATH):  # others exist for real devices alone
            module.main()
    return result_of(folder)


@pytest.fixture(autouse=True)
def beside_the_pictures(pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    return pictures


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_on_a_gpu_that_is_not_there_is_that_on_the_cpu(script):
    assert run(script, "gpu", "meta") == run(script, "cpu", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("script", results.OF_MASKS)
def test_a_run_with_masks(script, beside_the_pictures):
    add_masks(beside_the_pictures)
    flags = ["--task", "segment", "--teacher", "unet4", "--student", "unet2"]
    assert run(script, "gpu", "meta", *flags) == run(script, "cpu", "cpu", *flags)


def test_pictures_that_do_not_fit_stay_in_memory_and_come_in_batches():
    flags = ["--balance", "--views", "turned", "--live-teacher"]
    assert run("ckd", "gpu", "meta", *flags, resident=False) == run("ckd", "cpu", "cpu", *flags)


OTHER_DEVICE = "same device|two different devices"  # the words depend on PyTorch's version
FAULTS = {  # what people write, as a change of CKD's loss: its error
    "a weight for each sample": (lambda z: z * torch.ones(len(z), 1), OTHER_DEVICE),
    "a mask": (lambda z: torch.where(torch.arange(len(z))[:, None] >= 0, z, 0), OTHER_DEVICE),
    "a table": (lambda z: z + 0 * torch.eye(len(z))[z.argmax(dim=1)].sum(), "on the CPU"),
    "numpy": (lambda z: z * float(z.detach().numpy().std() > 0), "numpy"),
    "a product": (lambda z: z @ torch.eye(z.shape[1]), OTHER_DEVICE),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_stays_on_the_cpu_is_found(fault, monkeypatch):
    kd_loss, (change, error) = ckd.kd_loss, FAULTS[fault]
    monkeypatch.setattr(ckd, "kd_loss", lambda s, t, T: kd_loss(change(s), t, T))
    run("ckd", "cpu", "cpu")  # which nobody notices without a GPU
    with pytest.raises((RuntimeError, TypeError), match=error):
        run("ckd", "gpu", "meta")
