"""Nothing lost, nothing silent: kills, full disks, second processes, files that nobody trusts.

Runs are processes of their own, forked by tests/kill.py from a server that has imported torch.
"""

import importlib
import json
import os
import pickle
import random as stdlib_random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import make_pictures

import data as D
import networks as N
import readers
import runs as R

kill = pytest.importorskip("kill", reason="this system cannot fork")
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS, SMALL = kill.SCRIPTS, kill.small("ckd")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of ckd.py that nobody disturbed, and the files it wrote, in order."""
    folder = tmp_path_factory.mktemp("whole")
    make_pictures(folder / "pictures")
    code, _, written = kill.attempt("ckd", SMALL, folder)
    assert code == 0, log(folder)
    return folder, written


@pytest.fixture
def folder(originals, tmp_path):
    """A folder for a run, with its pictures."""
    shutil.copytree(originals / "csv", tmp_path / "run" / "pictures")
    return tmp_path / "run"


def log(folder):
    return (folder / "log.txt").read_text()


def last_words(folder):
    """The sentence with which a run ended."""
    text = log(folder)
    assert "Traceback" not in text and "Warning" not in text, text
    sentence = text.splitlines()[-1]
    assert sentence.startswith("ckd.py: ") and len(sentence) > 40, text
    return sentence


def temporary(folder):
    return [path for path in folder.rglob("*.tmp")]


def good(folder):
    """The contents of all files that runs have made; no half of a file among them."""
    found = kill.files(folder)
    assert not temporary(folder)
    return {name: kill.content(path) for name, path in found.items()}


# ----------------------------------------------------------------------------------------- killed


class DeathAtEachFile:
    """In the child: cut the first file that no run has died of in half, and die before its name.

    A file that is there already counts as another one: its old content must survive.
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


def test_a_run_killed_in_the_middle_of_each_of_its_files_ends_the_same(whole, folder):
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        code, _, _ = kill.attempt("ckd", SMALL, folder, before=DeathAtEachFile())
        assert len(temporary(folder)) <= 2, "pixels and the list of faults, at most"
    assert code == 0, log(folder)
    deaths = [Path(line).name for line in (folder / "deaths.txt").read_text().splitlines()]
    assert len(deaths) >= 10 and "checkpoint.pt False" in deaths and "checkpoint.pt True" in deaths
    assert kill.differences(folder, whole[0]) == []


@pytest.mark.parametrize("name", ["ckd", "bird"])
def test_a_run_killed_at_a_random_moment_ends_the_same(name, folder, tmp_path):
    """Two of the kills of tests/kill.py, whose fifty are recorded in results/reference."""
    reference = shutil.copytree(folder, tmp_path / "whole")
    code, seconds, written = kill.attempt(name, SMALL, reference)
    assert code == 0, log(reference)
    outcome = kill.kill(name, stdlib_random.Random(5), (seconds, written, reference), folder)
    assert outcome["right"] and not outcome["had_ended"], outcome


def test_the_recorded_kills_ended_right():
    record = ROOT / "results" / "reference" / "kills.json"
    kills = json.loads(record.read_text())["kills"]
    assert len(kills) >= 50 and all(outcome["right"] for outcome in kills)
    assert {outcome["script"] for outcome in kills} == set(SCRIPTS)
    assert sum(outcome["in_the_middle_of_a_file"] for outcome in kills) >= 5


# --------------------------------------------------------------- disks that are full or not for us


class FullFrom:
    """In the child: from the opening of the file `victim`, no file may grow beyond `size` bytes."""

    def __init__(self, victim, size):
        self.victim, self.size = victim, size

    def __call__(self):
        sys.addaudithook(self.watch)

    def watch(self, event, details):
        if event == "open" and self.victim in str(details[0]) and details[2] & os.O_TRUNC:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.mark.parametrize(
    "victim", ["decoded-", ".checkpoint", "checkpoint.pt", "student.pt", "seed0.npz", "seed0.json"]
)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(victim, whole, folder):
    """The limit of a process on the size of its files stands for the disk: it works everywhere."""
    before = FullFrom(victim, 2000)  # enough for what it prints
    code, _, _ = kill.attempt("ckd", SMALL, folder, before=before)
    sentence = last_words(folder)
    assert code == 1 and victim in sentence and "cannot be written (File too large" in sentence
    assert victim == "decoded-" or any("decoded-" in name for name in good(folder))
    ## With room, the same command goes on from what there was.
    assert kill.attempt("ckd", SMALL, folder)[0] == 0
    assert kill.differences(folder, whole[0]) == []


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
    (folder / "pictures" / "pictures").rename(folder / "elsewhere")
    shutil.copy(folder / "pictures" / "labels.csv", disk)
    (disk / "pictures").symlink_to(folder / "elsewhere", target_is_directory=True)
    flags = [str(disk) if flag == "pictures" else flag for flag in SMALL]
    code, _, _ = kill.attempt("ckd", flags, folder)
    assert code == 1 and "No space left" in last_words(folder) and not temporary(disk)
    (disk / "filler").unlink()
    assert kill.attempt("ckd", flags, folder)[0] == 0


def test_a_small_disk_for_the_results(tmpfs, whole, folder):
    disk = tmpfs("disk", "size=96k")
    flags = [*SMALL, "--out", str(disk / "results")]
    code, _, _ = kill.attempt("ckd", flags, folder)
    sentence = last_words(folder)
    assert code == 1 and "No space left" in sentence and str(disk) in sentence
    assert good(disk), "something was written before the disk was full"
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    assert kill.attempt("ckd", flags, folder)[0] == 0
    (student,) = disk.rglob("student.pt")
    (usual,) = whole[0].rglob("student.pt")
    assert kill.equal(kill.content(student), kill.content(usual))


@pytest.mark.parametrize("place", ["results", "runs"])
def test_a_read_only_disk_is_refused_before_training(place, tmpfs, folder):
    disk = tmpfs(f"run/{place}", "size=1m")
    (disk / "smoke" / "csv" / "ckd").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, _, _ = kill.attempt("ckd", SMALL, folder)
    sentence = last_words(folder)
    assert code == 1 and f"{place}/smoke/csv/ckd" in sentence and "--out" in sentence
    assert "teacher 1/2" not in log(folder) and not list(folder.rglob("*.pt"))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    R.save(path, number=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):  # found late, when the disk is asked to keep it
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(D.InputError, match="x.pt cannot be written .No space left"):
                R.save(path, number=2)
        assert torch.load(path, weights_only=True) == {"number": 1} and not temporary(tmp_path)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, r=real, c=call: order.append(c) or r(*a))
    R.save(tmp_path / "x.pt", number=1)
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_temporary_files_of_dead_processes_are_swept_and_no_others(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    node = readers.platform.node()
    stale = tmp_path / f".old.json.{node}.{dead.pid}.tmp"
    kept = [
        tmp_path / name
        for name in (
            f".other.json.{node}.{os.getppid()}.tmp",  # alive
            f".other.json.elsewhere.{dead.pid}.tmp",  # perhaps alive, on another machine
            f".notes.{node}.mine.tmp",
            "mine.tmp",
        )
    ]
    for file in (stale, *kept):
        file.write_text("half")
    R.save(tmp_path / "x.pt", number=1)
    assert not stale.exists() and all(file.exists() for file in kept)


# ----------------------------------------------------------------------------------- two processes


def together(folders, scripts=("ckd", "ckd"), flags=SMALL):
    """Runs started at the same moment; what each has printed."""
    logs = [f"log{n}.txt" for n in range(len(scripts))]
    both = [kill.start(s, flags, f, name) for s, f, name in zip(scripts, folders, logs)]
    for process, _ in both:
        process.join()
    texts = [(folder / name).read_text() for folder, name in zip(folders, logs)]
    assert [process.exitcode for process, _ in both] == [0, 0], texts
    return texts


def count(texts, words):
    return [text.count(words) for text in texts]


def test_two_processes_on_one_run(whole, folder):
    texts = together([folder, folder])
    for words in ("teacher 1/2", "student 1/2", "wrote ", "decoded 96"):
        assert sorted(count(texts, words)) == [0, 1], words
    assert sorted(count(texts, "is there already")) == [0, 1]
    assert kill.differences(folder, whole[0]) == []


@pytest.mark.parametrize("seconds, said", [(0.1, False), (1.5, True)])
def test_who_waits_for_more_than_a_moment_says_so(seconds, said, tmp_path, capsys):
    def second():
        with R.locked(tmp_path / "run"):
            print("my turn")

    thread = threading.Thread(target=second)
    with R.locked(tmp_path / "run"):
        thread.start()
        time.sleep(seconds)
    thread.join()
    text = capsys.readouterr().out
    assert text.endswith("my turn\n") and said == ("another process works on" in text)


def test_two_scripts_and_one_teacher(folder):
    texts = together([folder, folder], ("ckd", "rkd"))
    assert count(texts, "student 1/2") == count(texts, "wrote ") == [1, 1]
    assert sorted(count(texts, "teacher 1/2")) == sorted(count(texts, " is ready in ")) == [0, 1]


def test_two_processes_and_one_set_of_pixels(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "pictures").symlink_to(folder / "pictures", target_is_directory=True)
    texts = together([folder, other])
    assert sorted(count(texts, "decoded 96")) == [0, 1]
    assert count(texts, "teacher 1/2") == [1, 1]


# ----------------------------------------------------------------------------------- other settings


def here(monkeypatch, name, *flags):
    """The script's main in this process: the sentence with which it ends, or None."""
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL, *map(str, flags)])
    try:
        return module.main()
    except D.InputError as error:
        assert "\n" not in str(error)
        return str(error)


@pytest.mark.parametrize("stage", ["killed", "finished"])
def test_other_settings_under_the_same_name_are_refused(stage, folder, monkeypatch):
    """A default that has changed since does not show in the name of the run."""
    monkeypatch.chdir(folder)
    ckd = importlib.import_module("ckd")
    with monkeypatch.context() as patch:
        if stage == "killed":
            patch.setattr(R.Run, "write", lambda *_: sys.exit("killed"))
            with pytest.raises(SystemExit):
                here(patch, "ckd")
        else:
            here(patch, "ckd")
    before = good(folder)
    settings = ckd.settings

    def changed():
        parser = settings()
        parser.set_defaults(weight_decay=1e-3, temperature=3.0)
        return parser

    monkeypatch.setattr(ckd, "settings", changed)
    message = here(monkeypatch, "ckd")
    file = "checkpoint.pt" if stage == "killed" else "seed0.json"
    assert f"{file} was made with other settings (" in message and "--restart" in message
    for difference in ("weight_decay was 0.0005 and is now 0.001", "temperature was 4.0 and is"):
        assert difference in message
    assert good(folder).keys() == before.keys()  # no teacher was trained for it
    assert here(monkeypatch, "ckd", "--restart") is None


# ----------------------------------------------------------------------------------------- numbers


def poison(name, value, epoch):
    """kd_loss or a step that goes wrong in the second epoch."""
    ckd = importlib.import_module("ckd")
    step = ckd.Method.step

    def wrong(self, batch):
        losses = step(self, batch)
        if batch.epoch == epoch:
            last = len(self.data["train"]) // self.args.batch_size - 1
            if name == "the largest logit" and batch.step == last:
                with torch.no_grad():
                    self.student.head.bias[0] = value
            elif name in losses:
                losses[name] = losses[name] * value
        return losses

    return wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss_kd", "loss_ce", "the largest logit"])
def test_a_number_that_is_none_stops_at_that_epoch(name, value, folder, monkeypatch):
    monkeypatch.chdir(folder)
    ckd = importlib.import_module("ckd")
    with monkeypatch.context() as patch:
        patch.setattr(ckd.Method, "step", poison(name, value, 1))
        message = here(patch, "ckd")
    assert f"{name} is {value}" in message or f"{name} is nan" in message
    assert "--lr" in message and "checkpoint is kept" in message
    assert "epoch 2 of the student" in message or "convnet2 on val" in message
    (checkpoint,) = folder.rglob("checkpoint.pt")
    saved = torch.load(checkpoint, weights_only=True)
    assert len(saved["log"]) == 1 and not list(folder.rglob("*.json*results*"))
    assert all(v.isfinite().all() for v in saved["parts"]["student"].values())
    assert here(monkeypatch, "ckd") is None  # the cause removed, it goes on


def test_nan_in_pictures_is_found_in_the_first_epoch(folder, monkeypatch):
    """Pictures are bytes and their deviation at least 1; but if they were not, it would show."""
    monkeypatch.chdir(folder)
    load = D.load_for

    def broken(args):
        data = load(args)
        data["train"].std = data["train"].std * float("nan")
        return data

    monkeypatch.setattr(D, "load_for", broken)
    assert "loss is nan in epoch 1 of the teacher" in here(monkeypatch, "ckd")


EXTREMES = {  # flags: words of the sentence, or None for a result
    ("--temperature", "0"): "--temperature must be at least",
    ("--temperature", "1e6"): "--temperature must be at most 1000",
    ("--temperature", "1000"): None,
    ("--temperature", "1e-6"): None,
    ("--temperature", "nan"): "--temperature",
    ("--temperature", "inf"): "--temperature",
    ("--lr", "inf"): "--lr must be",
    ("--lr", "nan"): "--lr must be",
    ("--lr", "1e20"): "epoch 1 of the teacher: use a smaller --lr",
    ("--lr", "0"): "--lr must be at least",
    ("--weight-decay", "1e6"): "use a smaller --lr",
    ("--weight-decay", "inf"): "--weight-decay",
    ("--alpha", "0"): None,
    ("--alpha", "1"): None,
    ("--alpha", "1e6"): "--alpha",
    ("--epochs", "0"): "--epochs must be at least 1",
    ("--epochs", "1"): None,
    ("--batch-size", "1"): "--batch-size must be at least 2",
    ("--batch-size", "2"): None,
    ("--batch-size", "100000", "--no-smoke"): "a batch of 100000 needs",
    ("--image-size", "1025"): "--image-size must be at most 1024",
    ("--image-size", "8"): None,
    ("--seed", "4294967295"): None,
    ("--seed", "4294967296"): "--seed must be at most",
}


@pytest.mark.parametrize("flags", EXTREMES, ids=" ".join)
def test_extreme_settings(flags, folder, monkeypatch):
    monkeypatch.chdir(folder)
    message, words = here(monkeypatch, "ckd", *flags), EXTREMES[flags]
    assert message is None if words is None else words in message
    assert len(list((folder / "results").rglob("*.json"))) == (words is None)


def own_numbers():
    """(script, flag) for every number that only some scripts have: weights of losses, rates."""
    flags = lambda name: {
        option.option_strings[0]: option.type
        for option in importlib.import_module(name).settings()._actions
    }
    shared = flags("ckd")
    return [(s, f) for s in SCRIPTS for f, t in flags(s).items() if t is float and f not in shared]


@pytest.mark.parametrize("value", ["0", "1e6", "-1e6", "nan"])
def test_extreme_weights_of_every_method(value, whole, tmp_path, monkeypatch):
    """Each weight, rate and width ends in a result, whose numbers are finite, or in a sentence."""
    shutil.copytree(whole[0], tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    ended = {}
    for name, flag in own_numbers():
        message = here(monkeypatch, name, f"{flag}={value}")
        assert message is None or flag in message or "--lr" in message, (name, flag)
        assert not (value == "nan" and message is None), (name, flag)
        ended[name, flag] = message
    assert len(ended) >= 12
    for path in (tmp_path / "run" / "results").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN or Infinity


# ---------------------------------------------------------------------------------- untrusted files


class Code:
    """A pickle that writes a file when it is opened."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_a_file_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")  # the other guard, see below
    for n, write in enumerate((torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, 2)))):
        path, trap = tmp_path / f"{n}.pt", tmp_path / f"{n}.trap"
        write({"made_of": {"x": 1}, "state": Code(trap)}, path)
        with pytest.raises(D.InputError, match=f"{n}.pt is damaged.*holds code.*delete it"):
            R.load(path, {"x": 1})
        assert not trap.exists()


@pytest.mark.parametrize("damage", ["code", "cut", "empty", "text", "another network's"])
def test_downloaded_weights_are_not_trusted(damage, tmp_path, monkeypatch):
    """torchvision reads a file in the cache as it is, and would run what is in it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    path, trap = tmp_path / "checkpoints" / url.rpartition("/")[2], tmp_path / "trap"
    path.parent.mkdir()
    if damage == "code":
        torch.save({"fc.weight": Code(trap)}, path)
    elif damage == "text":
        path.write_text("Not Found")
    else:
        net = torchvision.models.get_model("shufflenet_v2_x1_0")
        torch.save(net.state_dict(), path)
        size = {"cut": 9999, "empty": 0}.get(damage)
        if size is not None:
            os.truncate(path, size)
    with pytest.raises(D.InputError, match="the weights of shufflenet_v2_x0_5 cannot be had"):
        N.torchvision_net("shufflenet_v2_x0_5", 64, True)
    assert not trap.exists()


def test_good_weights_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    net = torchvision.models.get_model("shufflenet_v2_x0_5")
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    again = N.torchvision_net("shufflenet_v2_x0_5", 64, True)
    assert torch.equal(again.fc.weight, net.fc.weight)


def test_weights_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(D.InputError, match="not known.*copy their file into .*--no-pretrained"):
        N.torchvision_net("resnet18", 64, True)


def test_nothing_is_loaded_that_could_run():
    """Every file of the project that opens saved files says how; pickle itself is not used."""
    sources = [*ROOT.glob("*.py"), *(ROOT / "methods").glob("*.py")]
    text = {path.name: path.read_text() for path in sources}
    for name, source in text.items():
        harmless = source.replace("unpickling", "").replace("allow_pickle=False", "")
        assert "pickle" not in harmless, name
        calls = source.split("torch.load(")[1:]
        assert all("weights_only=True" in call.split("\n")[0] for call in calls), name
    assert sum(source.count("torch.load(") for source in text.values()) >= 1


# ---------------------------------------------------------------------------------------- long runs


def long_run(folder, epochs, tell):
    """In a child: `epochs` of distillation; memory in MB and open files after each."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.path[:0] = [str(ROOT), str(ROOT / "methods")]
    import ckd

    args = R.complete(ckd.settings().parse_args([*SMALL, "--batch-size", "32"]))
    args.epochs, data = epochs, D.load_for(args)
    teacher = ckd.Teacher(ckd.Network(args, "convnet4", 3))
    method = ckd.Method(args, data, ckd.Network(args, "convnet2", 3), teacher)
    usage = []

    def measure(epoch, validation):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        usage.append((pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd"))))

    method.end_epoch = measure
    ckd.fit(args, data, method, Path("checkpoint.pt"), "student")
    tell.send(usage)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_two_hundred_epochs_need_no_more_memory_and_files_than_three(folder):
    ours, theirs = kill.SERVER.Pipe(duplex=False)
    process = kill.SERVER.Process(target=long_run, args=(str(folder), 200, theirs))
    process.start()
    theirs.close()
    usage = ours.recv()
    process.join()
    memory, opened = zip(*usage)
    assert len(usage) == 200 and max(memory[3:]) < 1.05 * memory[2], memory[::20]
    assert max(opened[3:]) <= opened[2]
