"""Nothing lost, nothing silent: kills, full disks, second processes, files that nobody trusts.

Runs are processes of their own, see tests/forked.py; what save, restore and locked promise by
themselves is tested in tests/test_data.py.
"""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from forked import ROOT, SCRIPTS, SERVER, DeathAtEachFile, FullFrom, Script, run_script, small

import networks
from data import InputError

kill = pytest.importorskip("kill", reason="this system cannot fork")
SMALL = small("ckd")


@pytest.fixture(scope="module")
def whole(originals, tmp_path_factory):
    """The folder of a run of ckd.py that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(originals / "csv", folder / "pictures")
    done = run_script("ckd", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(originals, tmp_path):
    """A folder for a run, with its pictures."""
    shutil.copytree(originals / "csv", tmp_path / "run" / "pictures")
    return tmp_path / "run"


def sentence_of(done):
    """The one sentence with which a run ended."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("ckd.py: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def temporary(folder):
    return list(folder.rglob("*.tmp"))


def good(folder):
    """The contents of all files that runs have made; no half of a file among them."""
    assert not temporary(folder)
    return {name: kill.content(path) for name, path in kill.files(folder).items()}


# ----- killed -------------------------------------------------------------------------------------


def test_a_run_killed_in_the_middle_of_each_of_its_files_ends_the_same(whole, folder):
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        done = run_script("ckd", *SMALL, cwd=folder, before=DeathAtEachFile())
        code = done.returncode
        assert len(temporary(folder)) <= 2, "pixels and the list of faults, at most"
    assert code == 0, done.stderr
    deaths = [Path(line).name for line in (folder / "deaths.txt").read_text().splitlines()]
    assert len(deaths) >= 12 and "checkpoint.pt False" in deaths and "checkpoint.pt True" in deaths
    victims = {"teacher.pt", "epoch-001.pt", "student.pt", "logits.npz", "result.json"}
    assert victims <= {death.split()[0] for death in deaths}
    assert kill.differences(folder, whole) == []


@pytest.mark.parametrize("name", ["ckd", "bird"])
def test_a_run_killed_at_a_random_moment_ends_the_same(name, folder, tmp_path):
    """Two of the kills of tests/kill.py, whose fifty are recorded in results/."""
    reference = shutil.copytree(folder, tmp_path / "whole")
    undisturbed = kill.attempt(name, small(name), reference)
    assert undisturbed.code == 0, undisturbed.text
    for seed in range(5, 9):  # a run that ends before its kill says nothing: another one is tried
        here = shutil.copytree(folder, tmp_path / f"{seed}")
        outcome = kill.kill(name, random.Random(seed), undisturbed, reference, here)
        assert outcome["right"], outcome
        if not outcome["had_ended"]:
            return
    pytest.fail("no run was killed")


def test_the_recorded_kills_ended_right():
    kills = json.loads((ROOT / "results" / "kills.json").read_text())["kills"]
    assert len(kills) >= 50 and all(outcome["right"] for outcome in kills)
    assert {outcome["script"] for outcome in kills} == set(SCRIPTS)
    assert sum(outcome["in_the_middle_of_a_file"] for outcome in kills) >= 5


# ----- disks that are full or not for us ----------------------------------------------------------


@pytest.mark.parametrize(
    "victim",
    [
        "decoded-",
        "teachers/convnet4",  # its checkpoint
        "epoch-001.pt",
        "/ckd/batch_size",  # the student's checkpoint
        "student.pt",
        "logits.npz",
        "result.json",
    ],
)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(victim, whole, folder):
    before = FullFrom(victim, 2000)  # enough for what it prints
    sentence = sentence_of(run_script("ckd", *SMALL, cwd=folder, before=before))
    assert victim in sentence and "cannot be written (File too large" in sentence
    assert victim == "decoded-" or any("decoded-" in name for name in good(folder))
    ## With room, the same command goes on from what there was.
    assert run_script("ckd", *SMALL, cwd=folder).returncode == 0
    assert kill.differences(folder, whole) == []


@pytest.fixture
def tmpfs(tmp_path):
    """Small disks: make(size) mounts one, or skips the test where that is not allowed."""
    places = []

    def make(name, *options):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root and mount")
        places.append(place)
        return place

    yield make
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_pixels_that_do_not_fit_on_the_disk(tmpfs, folder):
    """Written through memory, they would end the process with SIGBUS."""
    disk = tmpfs("disk", "size=100k")  # 96 pictures of 16 x 16 x 3 bytes take 73,728
    (disk / "filler").write_bytes(bytes(50_000))
    (folder / "runs").mkdir()
    (folder / "runs" / "decoded").symlink_to(disk, target_is_directory=True)
    sentence = sentence_of(run_script("ckd", *SMALL, cwd=folder))
    assert "No space left" in sentence and not temporary(disk)
    (disk / "filler").unlink()
    assert run_script("ckd", *SMALL, cwd=folder).returncode == 0


def test_a_small_disk_for_the_results(tmpfs, whole, folder):
    disk = tmpfs("disk", "size=180k")  # of which the pixels take 73,728
    flags = [*SMALL, "--out", str(disk)]
    sentence = sentence_of(run_script("ckd", *flags, cwd=folder))
    assert "No space left" in sentence and str(disk) in sentence
    assert good(disk), "something was written before the disk was full"
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    assert run_script("ckd", *flags, cwd=folder).returncode == 0
    assert kill.differences(disk, whole / "runs") == []


def test_a_read_only_disk_is_refused_before_training(tmpfs, folder):
    disk = tmpfs("run/runs", "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = run_script("ckd", *SMALL, cwd=folder)
    sentence = sentence_of(done)
    assert "runs/decoded" in sentence and "Read-only" in sentence
    assert "teacher 1/2" not in done.stdout and not list(folder.rglob("*.pt"))


# ----- two processes ------------------------------------------------------------------------------


def together(folders, scripts=("ckd", "ckd"), flags=([], [])):
    """What each of two runs has printed that were started at the same moment."""
    both = [Script(s, *small(s), *more, cwd=f) for s, f, more in zip(scripts, folders, flags)]
    ends = [run.wait() for run in both]
    assert [end.returncode for end in ends] == [0, 0], ends
    return [end.stdout for end in ends]


def count(texts, words):
    return sorted(text.count(words) for text in texts)


def test_two_processes_on_one_run(whole, folder):
    texts = together([folder, folder])
    for words in ("decoded 96", "teacher 1/2", "student 1/2", "wrote "):
        assert count(texts, words) == [0, 1], words
    assert count(texts, "\nfairness of AUROC\n") == [1, 1]  # the table
    assert kill.differences(folder, whole) == []


def test_two_scripts_and_one_teacher(folder):
    texts = together([folder, folder], ("ckd", "rkd"))
    assert count(texts, "student 1/2") == count(texts, "wrote ") == [1, 1]
    assert count(texts, "teacher 1/2") == [0, 1] and count(texts, " is ready in") == [1, 1]
    assert len(list(folder.rglob("epoch-*.pt"))) == 2  # and the answers of one teacher


def test_two_runs_of_fairdi_and_one_step_0(folder):
    texts = together([folder, folder], ("fairdi", "fairdi"), ([], ["--alpha", "0.5"]))
    assert count(texts, "step 0 1/2") == [0, 1] and count(texts, "student 1/2") == [1, 1]
    assert len(list(folder.rglob("step0.pt"))) == 1 and len(list(folder.rglob("result.json"))) == 2


def test_two_processes_and_one_set_of_pixels(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "pictures").symlink_to(folder / "pictures", target_is_directory=True)
    (folder / "runs" / "decoded").mkdir(parents=True)
    (other / "runs").mkdir()
    (other / "runs" / "decoded").symlink_to(folder / "runs" / "decoded", target_is_directory=True)
    texts = together([folder, other])
    assert count(texts, "decoded 96") == [0, 1] and count(texts, "teacher 1/2") == [1, 1]


# ----- numbers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(whole, tmp_path_factory):
    """A folder with pictures, a teacher and its answers, for runs in this process."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("teachers") / "run")


@pytest.fixture
def here(teachers, monkeypatch):
    monkeypatch.chdir(teachers)
    return teachers


def ending(name, *flags):
    """The script's main in this process: the sentence with which it ends, or None."""
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *small(name), *map(str, flags)])
        try:
            return module.main()
        except InputError as error:
            assert "\n" not in str(error)
            return str(error)


def poisoned(step, name, value):
    """A step that goes wrong in the second epoch."""

    def wrong(self, batch):
        losses = step(self, batch)
        if batch.epoch == 1:
            last = len(self.split) // self.args.batch_size - 1
            if name == "the largest logit" and batch.step == last:
                with torch.no_grad():
                    self.student.head.bias[0] = value
            elif name in losses:
                losses[name] = losses[name] * value
        return losses

    return wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss_kd", "loss_ce", "the largest logit"])
def test_infinite_numbers_end_the_run_at_that_epoch(name, value, here, tmp_path, monkeypatch):
    ckd, out = importlib.import_module("ckd"), ("--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ckd.Method, "step", poisoned(ckd.Method.step, name, value))
        message = ending("ckd", *out)
    assert f"{name} is {value}" in message or f"{name} is nan" in message
    assert "--lr" in message
    assert "epoch 2 of the student (the last checkpoint is kept)" in message or "on val" in message
    (checkpoint,) = tmp_path.rglob("ckd/*/checkpoint.pt")
    saved = torch.load(checkpoint, weights_only=True)
    assert len(saved["log"]) == 1 and not list(tmp_path.rglob("result.json"))
    assert all(v.isfinite().all() for v in saved["parts"]["student"].values())
    assert ending("ckd", *out) is None  # the cause removed, it goes on


def test_nan_in_pictures_is_found_in_the_first_epoch(here, tmp_path, monkeypatch):
    """Pictures are bytes and their deviation at least 1; but if they were not, it would show."""
    ckd = importlib.import_module("ckd")
    load = ckd.load_pictures

    def broken(args):
        pictures = load(args)
        pictures["train"].std = pictures["train"].std * float("nan")
        return pictures

    monkeypatch.setattr(ckd, "load_pictures", broken)
    assert "loss is nan in epoch 1 of the teacher" in ending("ckd", "--out", tmp_path)


EXTREMES = {  # flags that are no error by themselves: words of the sentence, or None for a result
    ("--temperature", "1000"): None,
    ("--temperature", "1e-6"): None,
    ("--lr", "1e20"): "epoch 1 of the student",
    ("--teacher-lr", "1e20"): "epoch 1 of the teacher",
    ("--weight-decay", "1e6"): "use a smaller --lr",
    ("--alpha", "0"): None,
    ("--alpha", "1"): None,
    ("--epochs", "1"): None,
    ("--batch-size", "2"): None,
    ("--batch-size", "100000", "--no-smoke"): "a batch of 100000 needs",
    ("--image-size", "8"): None,
    ("--seed", "4294967295"): None,
}


@pytest.mark.parametrize("flags", EXTREMES, ids=" ".join)
def test_extreme_settings(flags, here, tmp_path):
    message, words = ending("ckd", *flags, "--out", tmp_path), EXTREMES[flags]
    assert message is None if words is None else words in message
    assert len(list(tmp_path.rglob("result.json"))) == (words is None)


@pytest.mark.parametrize(
    "flag, values",
    {
        "--temperature": ["0", "1e6", "nan", "inf"],
        "--lr": ["0", "nan", "inf"],
        "--weight-decay": ["-1", "inf"],
        "--alpha": ["-0.1", "1e6"],
        "--epochs": ["0", "1.5"],
        "--batch-size": ["1"],
        "--image-size": ["7", "1025"],
        "--seed": ["-1", "4294967296"],
    }.items(),
)
def test_values_out_of_range(flag, values, capsys):
    for value in values:
        with pytest.raises(SystemExit) as end:
            ending("ckd", f"{flag}={value}")
        assert end.value.code == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert flag in sentence and value in sentence


def own_numbers():
    """(script, option) for every number that only some scripts have: weights of losses, rates."""

    def options(name):
        return importlib.import_module(name).settings()._actions

    shared = {option.dest for option in options("ckd")}
    own = [(name, option) for name in SCRIPTS for option in options(name)]
    return [(n, o) for n, o in own if o.dest not in shared and callable(o.type)]


@pytest.mark.parametrize("value", ["0", "1e6"])
def test_extreme_weights_of_every_method(value, here, tmp_path, capsys):
    """Each weight, rate and width ends in a result, whose numbers are finite, or in a sentence."""
    shutil.copytree(here / "runs", tmp_path / "runs")
    tried = 0
    for name, option in own_numbers():
        flag = option.option_strings[0]
        try:
            message = ending(name, f"{flag}={value}", "--out", tmp_path / "runs")
        except SystemExit as end:  # out of the range that the option has
            message = capsys.readouterr().err
            assert end.code == 2 and message.count("\n") == 1
        assert message is None or flag in message or "--lr" in message, (name, flag, message)
        tried += option.type.__name__ == "number"
    assert tried >= 12
    for path in (tmp_path / "runs").rglob("result.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN or Infinity


@pytest.mark.parametrize("value", ["-1e6", "nan"])
def test_impossible_weights_of_every_method(value, capsys):
    for name, option in own_numbers():
        with pytest.raises(SystemExit):
            importlib.import_module(name).parse([f"{option.option_strings[0]}={value}"])
        assert option.option_strings[0] in capsys.readouterr().err


# ----- untrusted files ----------------------------------------------------------------------------


class Code:
    """A pickle that writes a file when it is opened."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Where torchvision looks for downloaded weights of the network "shufflenet_v2_x0_5"."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / url.rpartition("/")[2]


def downloaded():
    return networks.of_torchvision("shufflenet_v2_x0_5", 64, True, True)


@pytest.mark.parametrize("damage", ["code", "cut", "empty", "text", "another network's"])
def test_downloaded_weights_are_not_trusted(damage, weights, tmp_path):
    """torchvision reads a file in the cache as it is, and would run what is in it."""
    trap = tmp_path / "trap"
    if damage == "code":
        torch.save({"fc.weight": Code(trap)}, weights)
    elif damage == "text":
        weights.write_text("Not Found")
    else:
        net = torchvision.models.get_model("shufflenet_v2_x1_0")
        torch.save(net.state_dict(), weights)
        size = {"cut": 9999, "empty": 0}.get(damage)
        if size is not None:
            os.truncate(weights, size)
    with pytest.raises(InputError, match="the weights of shufflenet_v2_x0_5 cannot be had") as end:
        downloaded()
    assert not trap.exists() and "\n" not in str(end.value)


def test_good_weights_are_used(weights):
    net = torchvision.models.get_model("shufflenet_v2_x0_5")
    torch.save(net.state_dict(), weights)
    assert torch.equal(downloaded().fc.weight, net.fc.weight)


def test_weights_without_a_connection(weights, monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match="not known.*copy their file into .*--no-pretrained"):
        downloaded()


def test_nothing_is_loaded_that_could_run():
    """Every file of the project that opens saved files says how; pickle itself is not used."""
    sources = [*ROOT.glob("*.py"), *(ROOT / "methods").glob("*.py"), *ROOT.glob("datasets/*.py")]
    text = {path.name: path.read_text() for path in sources}
    for name, source in text.items():
        harmless = source.replace("unpickling", "").replace("allow_pickle=False", "")
        assert "pickle" not in harmless, name
        calls = source.split("torch.load(")[1:]
        assert all("weights_only=True" in call.split("\n")[0] for call in calls), name
    assert sum(source.count("torch.load(") for source in text.values()) >= 1


# ----- long runs ----------------------------------------------------------------------------------


def long_run(folder, epochs, tell):
    """In a child: `epochs` of distillation; memory in MB and open files after each."""
    os.chdir(folder)
    torch.set_num_threads(1)
    import ckd

    args = ckd.parse([*SMALL, "--batch-size", "32"])
    args.epochs, pictures = epochs, ckd.load_pictures(args)
    teacher = ckd.Teacher(ckd.Network(args, "convnet4", 3), folder / "answers")
    method = ckd.Method(args, pictures, ckd.Network(args, "convnet2", 3), teacher)
    usage = []

    def measure(epoch, validation):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        usage.append((pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd"))))

    method.end_epoch = measure
    ckd.fit(args, pictures, method, "student", folder / "checkpoint.pt")
    tell.send(usage)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_two_hundred_epochs_need_no_more_memory_and_files_than_three(folder):
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=long_run, args=(folder, 200, theirs))
    process.start()
    theirs.close()
    usage = ours.recv()
    process.join()
    memory, opened = zip(*usage)
    assert len(usage) == 200 and max(memory[3:]) < 1.05 * memory[2], memory[::20]
    assert max(opened[3:]) <= opened[2]
