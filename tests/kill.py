"""Runs that are killed at random moments and started again must end as if nothing had happened.

    python tests/kill.py                               50 kills over all scripts in methods/
    python tests/kill.py --kills 200 --out other.json  more of them, recorded elsewhere

Each kill: a fresh folder, a run, SIGKILL, the same command again until its end. Half of the kills
come at a random moment, half within 8 ms after the run has opened one of its files for writing.
Then every file it has left must equal those of a run that was not killed: the weights bit by bit,
the results but for times, and no file more or less. The record is written after each kill, and a
program that was itself interrupted goes on from it.
"""

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from forked import ROOT, SCRIPTS, Script, small

TIMES = {"times", "seconds"}  # what may differ between two runs


class Attempt(NamedTuple):
    code: int  # as the shell says; -9: killed
    seconds: float  # since its start
    written: list  # names of the files that it opened for writing
    text: str  # what it printed


def attempt(script, flags, folder, write=None, after=float("inf"), before=None):
    """A run in `folder`, killed `after` seconds: of its start, or of its opening file `write`."""
    run = Script(script, *flags, cwd=folder, before=before)
    written, began, deadline = [], None, float("inf")
    while True:
        wait = deadline - time.monotonic()
        if not run.told.poll(min(max(wait, 0), 600)):
            run.process.kill()
            break
        try:
            name = run.told.recv()
        except EOFError:  # it has ended
            break
        if name == "start":
            began = time.monotonic()
            deadline = began + after if write is None else deadline
        else:
            written.append(name)
            if len(written) - 1 == write:
                deadline = time.monotonic() + after
    done, now = run.wait(), time.monotonic()
    return Attempt(done.returncode, now - (began or now), written, done.stdout + done.stderr)


# ----- what it leaves behind ----------------------------------------------------------------------


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
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def files(folder):
    """The files that runs have made in a folder, by name, that of decoded pictures without digits:
    they stand for the moment when the pictures were copied there."""
    found = [
        p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in (".lock", ".txt")
    ]
    names = [re.sub(r"(decoded-.*-)\w{16}\b", r"\1", str(p.relative_to(folder))) for p in found]
    return dict(zip(names, found))


def differences(folder, whole):
    """Names of the files that are not what they are in the folder of an uninterrupted run."""
    here, there = files(folder), files(whole)
    wrong = sorted(here.keys() ^ there.keys())
    both = sorted(here.keys() & there.keys())
    return wrong + [name for name in both if not equal(content(here[name]), content(there[name]))]


# ----- fifty of them ------------------------------------------------------------------------------


def kill(script, rng, whole, reference, folder):
    """One kill and its end. whole: the Attempt that nobody disturbed, in the folder `reference`."""
    moment = {"after": rng.uniform(0, whole.seconds)}
    if rng.random() < 0.5:
        moment = {"write": rng.randrange(len(whole.written)), "after": rng.uniform(0, 0.008)}
    killed = attempt(script, small(script), folder, **moment)
    left = [name for name in files(folder) if name.endswith(".tmp")]
    after = f"opening {whole.written[moment['write']]}" if "write" in moment else "its start"
    outcome = {
        "script": script,
        "killed": f"{1000 * moment['after']:.1f} ms after {after}",
        "lived_ms": round(1000 * killed.seconds),
        "in_the_middle_of_a_file": bool(left),
        "had_ended": killed.code == 0,  # it was faster than the kill
    }
    code = attempt(script, small(script), folder).code
    wrong = differences(folder, reference)
    return {**outcome, "exit_code": code, "wrong_files": wrong, "right": code == 0 and not wrong}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many, over all scripts in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "results/kills.json")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "methods")]
    from conftest import make_pictures

    from data import save

    about = {"seed": args.seed, "scripts": SCRIPTS, "torch": torch.__version__}
    record = {**about, "kills": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
        if {k: record[k] for k in about} != about:
            sys.exit(f"{args.out} is of other scripts, another seed or torch: choose another --out")
    wholes = {}
    with tempfile.TemporaryDirectory() as place:
        make_pictures(Path(place) / "pictures")
        for n in range(len(record["kills"]), args.kills):
            script = SCRIPTS[n % len(SCRIPTS)]
            reference, folder = Path(place) / script, Path(place) / f"{n}"
            if script not in wholes:
                shutil.copytree(Path(place) / "pictures", reference / "pictures")
                wholes[script] = attempt(script, small(script), reference)
                if wholes[script].code:
                    sys.exit(wholes[script].text)
            rng, outcome = random.Random(f"{args.seed} {n}"), None
            while not outcome or outcome["had_ended"] and outcome["right"]:  # until it was a kill
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(Path(place) / "pictures", folder / "pictures")
                outcome = kill(script, rng, wholes[script], reference, folder)
            print(n + 1, json.dumps(outcome), flush=True)
            record["kills"].append(outcome)
            save(args.out, json.dumps(record, indent=1))
            if outcome["right"]:
                shutil.rmtree(folder)
    right = sum(outcome["right"] for outcome in record["kills"])
    print(f"{len(record['kills'])} kills, {right} right endings")
    sys.exit(right < len(record["kills"]))


if __name__ == "__main__":
    main()
