"""What tests/gpu.sh measures with code of its own.

    python tests/gpu.py correct FILE.json     steps of every script on the GPU beside the CPU's
    python tests/gpu.py compiled FILE.json    the same with --compile
    python tests/gpu.py rates FILE.json       what bf16, channels last and --compile bring a step
    further: --device cpu --smoke             a rehearsal without a GPU; its numbers mean nothing

FILE.json is written after every row; rows that are in it already are not measured again, unless
they failed.
"""

import argparse
import functools
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "methods"), str(ROOT / "tests")]
import ckd  # noqa: E402
from speed import pictures_of  # noqa: E402

from data import batches, save  # noqa: E402

SCRIPTS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
## The largest relative difference of a loss in three steps. Trainings in the making of a Method,
## of FairDi and FairTune, carry rounding further.
WAYS = {
    "float32": ([], 1e-3),
    "bf16": (["--precision", "bf16"], 0.03),
    "compile": (["--compile"], 1e-3),
}
TRAINED = ("fairdi", "fairtune"), 0.1
OF_MASKS = {("at", "bf16"): 0.3}  # β = 1000 multiplies the rounding of its maps
OF_MASKS |= {(name, way): 0.02 for name in ("at", "fitnet") for way in ("float32", "compile")}
PAIRS = [("resnet18", "resnet18", 32), ("resnet18", "resnet18", 224)]
PAIRS += [("efficientnet_b3", "efficientnet_b0", 224), ("unet16", "unet16", 128)]
LAYOUTS = {  # name: precision, layout in memory, compiled?
    "float32, NCHW": ("float32", torch.contiguous_format, False),
    "float32": ("float32", torch.channels_last, False),
    "bf16, NCHW": ("bf16", torch.contiguous_format, False),
    "bf16": ("bf16", torch.channels_last, False),
    "bf16, compiled": ("bf16", torch.channels_last, True),
}


@functools.cache
def pictures(task, device):
    """The toy, drawn once; no script changes it."""
    return ckd.load_pictures(ckd.parse(["--smoke", "--device", device, "--task", task]))


def losses(script, device, *flags, steps=3):
    """The losses of a script's first steps, from the same weights and pictures on any device."""
    module, folder = importlib.import_module(script), tempfile.TemporaryDirectory()
    args = module.parse(["--smoke", "--device", device, "--out", folder.name, *flags])
    args.lr, data = args.lr / 10, pictures(args.task, device)  # as in warm-up
    module.settle(args, len(data.outputs))
    torch.manual_seed(0)
    teacher = module.Network(args, args.teacher, len(data.outputs)).expect(data["train"])
    student = module.Network(args, args.student, len(data.outputs)).expect(data["train"])
    teacher = module.Teacher(teacher.to(device)) if module.Method.needs_teacher else None
    method = module.Method(args, data, student.to(device), teacher)
    views = zip(range(steps), module.training_views(args, method.split, 0))
    return [method.step(batch)["loss"].item() for _, batch in views]


def compiled(device, smoke):
    """`correct` with --compile."""
    return correct(device, smoke, ["compile"])


def correct(device, smoke, ways=("float32", "bf16")):
    """Yields, row by row, its name and a function that measures it."""

    def compared(script, flags, extra, most):
        on_cpu, here = losses(script, "cpu", *flags), losses(script, device, *flags, *extra)
        apart = [abs(a - b) / abs(a) for a, b in zip(on_cpu, here)]
        ## A NaN is at most nothing, so it is wrong; max() could pass over it.
        right = all(each <= most for each in apart)
        return {"losses": here, "apart": apart, "at_most": most, "right": right}

    for way in ways:
        for script in SCRIPTS:
            extra, most = WAYS[way]
            try:
                method = importlib.import_module(script).Method
            except ImportError as error:  # a package is missing, which is no fault of the script
                row = {"skipped": str(error)}
                yield f"{script} classify {way}", functools.partial(dict, row)
                continue
            if (smoke and way != "float32") or (way == "compile" and "--compile" in method.refuses):
                continue
            most = max(most, TRAINED[1]) if script in TRAINED[0] else most
            width = 2 if smoke else 8  # of both networks: with two, KD++ would draw its dropout
            own = [f"--student=convnet{width}", f"--teacher=convnet{width}"]
            tasks = {"classify": [] if script == "fairtune" else own}
            if "--task segment" not in method.refuses:
                own = [f"--student=unet{width}", f"--teacher=unet{width}"]
                tasks["segment"] = ["--task", "segment", *own]
            for task, flags in tasks.items():
                wide = OF_MASKS.get((script, way), most) if task == "segment" else most
                row = f"{script} {task} {way}"
                yield row, functools.partial(compared, script, flags, extra, wide)


def rates(device, smoke):
    """Yields, row by row, its name and a function that measures it."""
    drawn = {}  # the pictures of each pair, drawn once

    def measured(pair, precision, layout, compiled, seconds=0.1 if smoke else 3.0):
        teacher, student, side = pair
        flags = ["--teacher", teacher, "--student", student, "--image-size", str(side)]
        flags += ["--precision", precision, "--smoke", *["--compile"][:compiled]]
        flags += ["--task", "segment"] if "unet" in student else []
        args = ckd.settle(ckd.parse([*flags, "--device", device]), 2)
        args.batch_size = 8 if smoke else 64
        data = drawn[pair] = drawn.get(pair) or pictures_of(args)
        made = [ckd.Network(args, name, len(data.outputs)).to(device) for name in pair[:2]]
        for network in made:
            network.to(memory_format=layout)
        method = ckd.Method(args, data, made[1], ckd.Teacher(made[0]))
        batch = next(batches(data["train"], args.batch_size, 0))
        batch = batch._replace(images=batch.images.contiguous(memory_format=layout))
        for _ in range(1 if smoke else 20):  # compiled, and warm
            method.step(batch)["loss"].item()
        start, steps = time.time(), 0
        while time.time() - start < seconds:
            loss = method.step(batch)["loss"]
            steps += 1
            if steps % 10 == 0:
                loss.item()  # waits for the GPU
        loss.item()
        return {"images_per_second": steps * args.batch_size / (time.time() - start)}

    pairs = [("convnet4", "convnet2", 64), ("unet4", "unet2", 64)] if smoke else PAIRS
    for pair in pairs:
        for name, how in LAYOUTS.items():
            if not (smoke and how[2]):
                row = f"{' to '.join(pair[:2])} at {pair[2]}, {name}"
                yield row, functools.partial(measured, pair, *how)


def main(flags=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["correct", "compiled", "rates"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    own = parser.parse_args(flags)
    result = json.loads(own.file.read_text()) if own.file.exists() else {"rows": {}}
    result |= {"device": own.device, "torch": torch.__version__}
    if own.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    parts = {"correct": correct, "compiled": compiled, "rates": rates}
    for name, measure in parts[own.what](own.device, own.smoke):
        if name in result["rows"] and not {"error", "skipped"} & result["rows"][name].keys():
            continue
        torch.compiler.reset()  # else graphs of the row before would serve, or become dynamic
        try:
            row = measure()
        except Exception as error:  # is a finding, too; the next row may do
            said = (str(error).splitlines() or ["no reason told"])[0]
            row = {"error": f"{type(error).__name__}: {said}", "right": False}
        result["rows"][name] = row
        print(name, row, flush=True)
        save(own.file, json.dumps(result, indent=1) + "\n")
    wrong = [name for name, row in result["rows"].items() if not row.get("right", True)]
    if wrong:
        sys.exit(f"gpu.py: {len(wrong)} rows are wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
