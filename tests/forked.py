"""Runs scripts as a user does, each in a process of its own, without the seconds of its imports.

A server process imports torch, torchvision and optuna once, and forks itself for every run:

    done = run_script("ckd", "--smoke", cwd=folder)      as subprocess.run: returncode, stdout, ...
    script = Script("ckd", "--smoke", cwd=folder)        the same, while it runs; script.kill()
"""

import importlib
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy.event
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["forked", "torch._dynamo", "torchvision", "optuna", "alembic.command", "PIL.Image", "pytest"]
    + ["sqlalchemy.dialects.sqlite", "optuna.storages._rdb.models", "scipy.stats", "filelock"]
)

## What a killed process has written is there without waiting for the disk, which may take longer
## than all else. Only a power cut needs that wait, and tests of it count the calls.
os.fsync = lambda file: None


@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
def never_wait(connection, _):
    """The same in FairTune's study, an SQLite file."""
    if hasattr(connection, "executescript"):
        connection.execute("PRAGMA synchronous=OFF")


def small(script):
    """The flags of a run of a second on the pictures of conftest.make_pictures in pictures/."""
    flags = ["--dataset", "csv", "--data-dir", "pictures", "--image-size", "16", "--smoke"]
    flags += ["--teacher", "convnet4", "--batch-size", "8", "--device", "cpu"]
    if importlib.import_module(script).settings().get_default("student"):  # FairTune's transformer
        return [*flags, "--source", "csv", "--source-dir", "pictures"]
    return [*flags, "--student", "convnet2"]


def main_of(path, flags, folder, environment, outputs, tell, before):
    """In the new process: what Python does with `python PATH FLAGS` in the folder `folder`.

    It tells "start", and then the name of each temporary file when it is opened for writing.
    """
    os.chdir(folder)
    for descriptor, output in zip((1, 2), outputs):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [str(path), *flags]
    ## The tests find the project's modules in these places; a script must find them by itself.
    ours = {"", *map(str, (ROOT, ROOT / "methods", ROOT / "tests"))}
    sys.path[:] = [str(path.parent), *(place for place in sys.path if place not in ours)]

    def watch(event, details):
        if event == "open" and str(details[0]).endswith(".tmp") and details[2] & os.O_TRUNC:
            tell.send(Path(details[0]).name.removesuffix(".tmp"))

    sys.addaudithook(watch)
    if before:
        before()
    tell.send("start")
    runpy.run_path(str(path), run_name="__main__")


class Script:
    """A running script.

    script  a name such as "ckd" (methods/ckd.py), or a path
    before  is called in the new process first; see the classes below
    """

    def __init__(self, script, *flags, cwd=".", before=None):
        script = str(script)
        self.path = Path(script) if script.endswith(".py") else ROOT / "methods" / f"{script}.py"
        self.flags, self.places = [str(flag) for flag in flags], Path(tempfile.mkdtemp())
        self.outputs = [self.places / "stdout", self.places / "stderr"]
        for output in self.outputs:
            output.touch()
        self.told, tell = SERVER.Pipe(duplex=False)
        details = (self.path, self.flags, str(cwd), dict(os.environ), self.outputs, tell, before)
        self.process = SERVER.Process(target=main_of, args=details)
        self.process.start()
        tell.close()

    def text(self):
        """What it has printed so far, errors last."""
        return "".join(output.read_text() for output in self.outputs)

    def wait_for(self, words, seconds=600):
        """Return when it has printed `words`."""
        end = time.monotonic() + seconds
        while words not in self.text():
            assert self.process.is_alive() and time.monotonic() < end, self.text()
            time.sleep(0.02)

    def kill(self):
        """End it at once, so that it can clean up nothing."""
        os.kill(self.process.pid, signal.SIGKILL)
        return self.wait()

    def wait(self, seconds=600):
        """Its end, as subprocess.run returns it; -9 is the code of a killed one."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.path.name} takes more than {seconds} s:\n{self.text()}")
        texts = [output.read_text() for output in self.outputs]
        shutil.rmtree(self.places)
        self.told.close()
        command = [str(self.path), *self.flags]
        return subprocess.CompletedProcess(command, self.process.exitcode, *texts)


def run_script(script, *flags, cwd=".", before=None):
    """The end of a script: a CompletedProcess with returncode, stdout and stderr (text)."""
    return Script(script, *flags, cwd=cwd, before=before).wait()


class DeathAtEachFile:
    """Cut in half the first file of which no run has died yet, and die before it has its name.

    Where there is an older file of that name, that counts as another file: it must survive.
    """

    def __call__(self):
        sys.addaudithook(self.watch)

    def watch(self, event, details):
        if event == "os.rename":
            victim = f"{details[1]} {os.path.exists(details[1])}"
            deaths = Path("deaths.txt")
            if not deaths.exists() or victim not in deaths.read_text().splitlines():
                with open(deaths, "a") as handle:
                    handle.write(victim + "\n")
                os.truncate(details[0], os.path.getsize(details[0]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)


class FullFrom:
    """From the opening of the file `victim` on, no file can grow beyond `size` bytes.

    This limit of a process stands for a full disk, because it works everywhere.
    """

    def __init__(self, victim, size):
        self.victim, self.size = victim, size

    def __call__(self):
        sys.addaudithook(self.watch)

    def watch(self, event, details):
        if event == "open" and self.victim in str(details[0]) and details[2] & os.O_TRUNC:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
