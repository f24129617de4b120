"""Do the runs of a cluster equal those of one process?  python tests/cluster/same.py COMMANDS OUT

Runs each line of the file COMMANDS (of `run_all.sh --list`) in this one process, beside OUT, and
compares every result, but for its times, and every student with those that are in OUT.
"""

import importlib
import json
import os
import shlex
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as each line says; more threads change the last digits
sys.path[:0] = [str(Path(__file__).resolve().parents[2] / name) for name in (".", "methods")]

import torch  # noqa: E402


def results(folder):
    """{the folder of a run: its result without times, the states of its student}."""
    found = {}
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text())
        states = torch.load(path.with_name("student.pt"))["states"]
        result.get("search", {}).get("trials", []).sort(key=str)  # they end in any order
        found[path.parent.relative_to(folder)] = result | {"times": None}, states
    return found


commands, out = Path(sys.argv[1]), Path(sys.argv[2])
alone = out.with_name(f"{out.name}-one-process")
for line in commands.read_text().splitlines():
    words = shlex.split(line)
    words = words[words.index("python") + 1 :]  # without variables such as OMP_NUM_THREADS=1
    sys.argv = [*words, "--out", str(alone)]
    importlib.import_module(Path(words[0]).stem).main()
there, here = results(out), results(alone)
for run in there.keys() | here.keys():
    (result, states), (expected, weights) = there[run], here[run]
    assert result == expected, f"{run}: another result"
    for rule, state in states.items():
        for name, tensor in state.items():
            same = torch.equal(torch.as_tensor(tensor), torch.as_tensor(weights[rule][name]))
            assert same, f"{run}: another student, {rule} {name}"
print(f"{len(there)} runs, each bit for bit that of one process")
