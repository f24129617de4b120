"""Runs that are killed at random moments and started again must end as if nothing had happened.

    python tests/kill.py                               50 kills over all scripts in methods/
    python tests/kill.py --kills 200 --out other.json  more of them, recorded elsewhere

Each kill: a fresh folder, a run, SIGKILL, the same command again until its end. Half of the kills
come at a random moment, half within 8 ms after the run has opened one of its files for writing.
Then every file it has left must equal those of a run that was not killed: the weights bit by bit,
the results but for times, and no file more or less. The record is written after each kill, and a
program that was itself interrupted goes on from it.

The processes are forked from a server that has imported torch, so that a run takes a second.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
SMALL = ["--dataset", "csv", "--data-dir", "pictures", "--image-size", "16", "--smoke"]
STUDENT = ["--student", "convnet2"]
SMALL += ["--teacher", "convnet4", "--batch-size", "8", "--device", "cpu"]
TIMES = {"times", "seconds"}  # what may differ between two runs
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision", "tqdm"])


# ==================================================================================================
# One process
# ==================================================================================================


def main_of(script, flags, folder, log, tell, before):
    """In the child: the script as a user starts it. Tells when it starts and what it writes."""
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)

    def watch(event, details):
        if event == "open" and str(details[0]).endswith(".tmp") and details[2] & os.O_TRUNC:
            tell.send(Path(details[0]).name.split(f".{platform.node()}.")[0][1:])

    sys.addaudithook(watch)
    if before:
        before()
    path = ROOT / "methods" / f"{script}.py"
    sys.argv = [str(path), *map(str, flags)]
    tell.send("start")
    runpy.run_path(str(path), run_name="__main__")


def small(script):
    """The flags of a short run. FairTune names its own network, which must learn first."""
    own = importlib.import_module(script).settings().get_default("student")
    return SMALL + (["--source", "csv", "--source-dir", "pictures"] if own else STUDENT)


def start(script, flags, folder, log="log.txt", before=None):
    """Start a run in `folder`: (process, what it tells). `before` is called first, in the child."""
    ours, theirs = SERVER.Pipe(duplex=False)
    details = script, flags, str(folder), log, theirs, before
    process = SERVER.Process(target=main_of, args=details)
    process.start()
    theirs.close()
    return process, ours


def attempt(script, flags, folder, write=None, after=float("inf"), before=None):
    """A run in `folder`, killed `after` seconds: of its start, or of its opening file `write`.

    Returns its exit code (-9: killed), its seconds, and the names of the files it has written.
    """
    process, told = start(script, flags, folder, before=before)
    written, began, deadline = [], None, float("inf")
    while True:
        wait = deadline - time.monotonic()
        if not told.poll(min(max(wait, 0), 600)):
            os.kill(process.pid, signal.SIGKILL)
            break
        try:
            name = told.recv()
        except EOFError:  # it has ended
            break
        if name == "start":
            began = time.monotonic()
            deadline = began + after if write is None else deadline
        else:
            written.append(name)
            if len(written) - 1 == write:
                deadline = time.monotonic() + after
    process.join()
    return process.exitcode, time.monotonic() - (began or time.monotonic()), written


# ==================================================================================================
# What it leaves behind
# ==================================================================================================


def content(path):
    """What a file says, as far as two equal runs must agree on it."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix in (".npz", ".npy"):
        saved = np.load(path)
        return {k: saved[k].tolist() for k in saved} if path.suffix == ".npz" else saved.tolist()
    return None


def equal(a, b):
    """Whether two contents are equal, tensors bit by bit, times left out."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        a, b = ({k: v for k, v in d.items() if k not in TIMES} for d in (a, b))
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def files(folder):
    """The files that runs have made in a folder, by name."""
    found = (
        p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in (".lock", ".txt")
    )
    return {str(p.relative_to(folder)): p for p in found}


def differences(folder, whole):
    """Names of the files that are not what they are in the folder of an uninterrupted run."""
    here, there = files(folder), files(whole)
    wrong = sorted(here.keys() ^ there.keys())
    both = sorted(here.keys() & there.keys())
    return wrong + [name for name in both if not equal(content(here[name]), content(there[name]))]


# ==================================================================================================
# Fifty of them
# ==================================================================================================


def kill(script, rng, whole, folder):
    """One kill and its end. whole: (seconds, files written, folder) of the uninterrupted run."""
    seconds, written, reference = whole
    moment = {"after": rng.uniform(0, seconds)}
    if rng.random() < 0.5:
        moment = {"write": rng.randrange(len(written)), "after": rng.uniform(0, 0.008)}
    code, lived, _ = attempt(script, small(script), folder, **moment)
    left = [name for name in files(folder) if name.endswith(".tmp")]
    outcome = {
        "script": script,
        "killed": f"{1000 * moment['after']:.1f} ms after "
        + (f"opening {written[moment['write']]}" if "write" in moment else "its start"),
        "lived_ms": round(1000 * lived),
        "in_the_middle_of_a_file": bool(left),
        "had_ended": code == 0,  # it was faster than the kill
    }
    code, _, _ = attempt(script, small(script), folder)
    wrong = differences(folder, reference)
    return {**outcome, "exit_code": code, "wrong_files": wrong, "right": code == 0 and not wrong}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many, over all scripts in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "results/reference/kills.json")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "methods")]
    from conftest import make_pictures

    from readers import atomic

    about = {"seed": args.seed, "scripts": SCRIPTS, "torch": torch.__version__}
    record = {**about, "kills": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
        if {k: record[k] for k in about} != about:
            sys.exit(f"{args.out} is of other scripts, another seed or torch: choose another --out")
    wholes = {}
    with tempfile.TemporaryDirectory() as work:
        make_pictures(Path(work) / "pictures")
        for n in range(len(record["kills"]), args.kills):
            script = SCRIPTS[n % len(SCRIPTS)]
            folder = Path(work) / f"{n}"
            for place in (Path(work) / script, folder):
                if not place.exists():
                    shutil.copytree(Path(work) / "pictures", place / "pictures")
            if script not in wholes:
                code, seconds, written = attempt(script, small(script), Path(work) / script)
                if code:
                    sys.exit((Path(work) / script / "log.txt").read_text())
                wholes[script] = seconds, written, Path(work) / script
            rng = random.Random(f"{args.seed} {n}")
            outcome = kill(script, rng, wholes[script], folder)
            while outcome["had_ended"] and outcome["right"]:  # no kill: another moment
                shutil.rmtree(folder)
                shutil.copytree(Path(work) / "pictures", folder / "pictures")
                outcome = kill(script, rng, wholes[script], folder)
            print(n + 1, json.dumps(outcome), flush=True)
            record["kills"].append(outcome)
            with atomic(args.out) as temporary:
                temporary.write_text(json.dumps(record, indent=1))
            if outcome["right"]:
                shutil.rmtree(folder)
    right = sum(outcome["right"] for outcome in record["kills"])
    print(f"{len(record['kills'])} kills, {right} right endings")
    sys.exit(right < len(record["kills"]))


if __name__ == "__main__":
    main()
