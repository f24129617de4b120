"""What a run leaves behind: settings, teachers, checkpoints and results, as files.

Nothing here knows a method. A result is written last, so a run is finished exactly when its result
is there; it is never overwritten by a run with other settings. Files appear whole or not at all.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import data as D
from networks import Deployed
from readers import DATASETS, InputError, atomic, locked, make_folder

## A file of weights may hold code, which unpickling would run. torchvision loads downloaded weights
## without a check of its own; this forbids it for every file that this process opens.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

SOURCES = ("data", "readers", "networks", "metrics", "runs")  # their hash is in every result
TABLE = (
    "accuracy", "f1", "auroc", "auroc_worst_group", "auroc_gap", "es_auc", "mean_deo", "max_deo",
    "disparity",
)  # fmt: skip
LOGGED = ("accuracy", "auroc", "auroc_worst_group", "auroc_gap", "mean_deo", "disparity")
## Settings that change no number.
PLACES = (
    "data_dir", "source_dir", "download", "describe", "device", "out", "restart", "live_teacher",
    "export",
)  # fmt: skip


def complete(args):
    """Fill in the settings that depend on data set and machine; refuse those that cannot be."""
    kind = DATASETS[args.dataset]
    args.image_size = kind.size if args.image_size is None else args.image_size
    for name in ("target", "sensitive", "skew", "teacher", "student"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(kind, name))
    if args.smoke:
        args.epochs, args.batch_size = min(args.epochs, 2), min(args.batch_size, 32)
        args.lr /= 5  # a few steps are too few to warm up to more
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {args.device} cannot be used ({reason}): try cpu") from None
    least = {"epochs": 1, "batch_size": 2, "image_size": 8, "lr": 1e-12, "weight_decay": 0,
             "temperature": 1e-6, "alpha": 0, "seed": 0}  # fmt: skip
    for name, low in least.items():
        if not low <= getattr(args, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be at least {low:g}")
    ## Beyond T = 1000 the softened outputs differ by less than float32 can tell.
    for name, high in {"image_size": 1024, "seed": 2**32 - 1, "temperature": 1000}.items():
        if getattr(args, name) > high:
            raise InputError(f"--{name.replace('_', '-')} must be at most {high}")
    for name, value in vars(args).items():
        if isinstance(value, float) and not 0 <= value < math.inf:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is {value}: it must be a number, at least 0")
    if args.compile and args.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError("--compile needs a C++ compiler (g++) for the CPU: leave it out")
    if args.alpha > 1:
        raise InputError("--alpha shares the loss between labels and teacher: choose 0 to 1")
    return args


def runs_folder(args):
    """Where teachers and checkpoints live: runs/ beside the folder of the results."""
    return Path(args.out).resolve().parent / "runs" / ("smoke" * args.smoke) / args.dataset


def digest(content):
    """12 hex digits that stand for a JSON-ready value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def save(path, **content):
    """torch.save of a dict, whole or not at all."""
    buffer = io.BytesIO()  # torch.save itself would not say that the disk is full
    torch.save(content, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path, made_of, device="cpu"):
    """The dict in `path` if it was made of `made_of`, a dict of settings; nothing in it is run."""
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        old = saved["made_of"]
        differences = changes(old, made_of)
    except Exception as error:  # damaged files raise all kinds of errors
        raise InputError(
            f"{path} is damaged, or not a file of these scripts, or holds code "
            f"({type(error).__name__}): delete it"
        ) from None
    if differences:
        raise InputError(
            f"{path} was made with other settings ({differences}): delete it, or choose another "
            "--out, or --restart"
        )
    return saved


def changes(old, new):
    """How two dicts of settings differ, for an error message; "" if they are equal."""
    return "; ".join(
        f"{k} was {old.get(k)!r} and is now {new.get(k)!r}"
        for k in {**old, **new}
        if old.get(k) != new.get(k)
    )


def made_of(args, label):
    """What a checkpoint of `label` is made of: all settings that change a number, and the pictures
    (their hash, which Run or get_teacher adds)."""
    plain = (str, int, float, bool, type(None))
    settings = {k: v for k, v in vars(args).items() if k not in PLACES and isinstance(v, plain)}
    return {"checkpoint of": label, **settings}


def restore(part, state, path):
    """Put a state, as `fit` returns or saves it, into a network, an optimiser or the like."""
    try:
        part.load_state_dict({name: value for name, value in state.items() if name != "epoch"})
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error) or "nothing there").splitlines()[0]
        raise InputError(
            f"{path} does not fit ({reason}): another version of these scripts made it; delete it"
        ) from None


def once(path, made_of, make):
    """The dict that `make()` returns, kept in `path`: made now, or earlier by any script.

    `made_of` says what it was made of; a file made of something else is refused. A second process
    waits for the first and then finds the file.
    """
    with locked(path):
        if path.exists():
            print(f"{path.stem} is ready in {path.parent}")
        else:
            save(path, made_of=made_of, **make())
        path.with_suffix(".checkpoint").unlink(missing_ok=True)  # of its training
    return load(path, made_of)


def shared_search(args, attempt, space, anew, **how):
    """The best parameters of args.trials trials, and all trials, as dicts for a result file.

    attempt  takes an Optuna trial and a path for a checkpoint; returns its value, or is pruned
    space    {parameter: optuna distribution};  how  goes to optuna.create_study
    anew     begin a new study, unless another process is at work on this one
    The study is a file in the folder of the run, and all processes of the run share it: each takes
    the next trial until there are enough, and waits for those of others.
    """
    import optuna  # here, because only searches need it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna 4: the "liar"
    State, total = optuna.trial.TrialState, min(args.trials, 3) if args.smoke else args.trials
    folder = args.run.folder / f"search-{digest(args.run.settings)}"
    path = folder / "study.db"

    def next_trial(study, worker):
        """A new trial; None while others are at work on the last ones, "none" when all ended."""
        with locked(path):  # one process at a time
            ## A process that was killed leaves a trial that seems to run, but not its lock. Such a
            ## trial fails, and another takes its place.
            for trial in study.get_trials(states=[State.RUNNING]):
                owner = trial.user_attrs.get("worker", worker)
                with locked(folder / f"worker-{owner}", wait=False) as gone:
                    if gone or owner == worker:
                        study.tell(trial.number, state=State.FAIL)
            begun = [trial for trial in study.get_trials() if trial.state != State.FAIL]
            if len(begun) == total:
                return "none" if all(trial.state.is_finished() for trial in begun) else None
            ## The sampler's seed is a number that no other trial has: a search by one process,
            ## killed and resumed, tries the same. "Liar": two processes do not try the same.
            draw = min(set(range(total)) - {trial.user_attrs["draw"] for trial in begun})
            seed = (args.seed * 100_003 + draw) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = study.ask(space)
            trial.set_user_attr("worker", worker)
            trial.set_user_attr("draw", draw)
            return trial

    def work_off(worker):
        checkpoint = folder / f"trial-of-worker-{worker}.pt"
        with locked(path):
            if anew and worker == 0:
                path.unlink(missing_ok=True)
            where = {"storage": f"sqlite:///{path}", "study_name": "search"}
            study = optuna.create_study(load_if_exists=True, **where, **how)
        while (trial := next_trial(study, worker)) != "none":
            if trial is None:
                time.sleep(1)  # should the other process die, its trial is ours
                continue
            checkpoint.unlink(missing_ok=True)  # a trial that was killed begins again
            try:
                study.tell(trial, attempt(trial, checkpoint))
            except optuna.TrialPruned:
                print(f"trial {trial.number} ends here: others were better at its age")
                study.tell(trial, state=State.PRUNED)
            except NotFinite as error:  # one bad learning rate does not end the search
                print(f"trial {trial.number} ends here: {error}")
                study.tell(trial, state=State.PRUNED)
            checkpoint.unlink(missing_ok=True)
        return study

    for worker in range(1000):  # ours is the lowest number that no living process holds
        with locked(folder / f"worker-{worker}", wait=False) as ours:
            if ours:
                study = work_off(worker)
                break
    trials = [
        {
            "params": trial.params,
            "state": trial.state.name.lower(),
            "values": [value for _, value in sorted(trial.intermediate_values.items())],
        }
        for trial in study.get_trials(states=[State.COMPLETE, State.PRUNED])
    ]
    if all(trial["state"] == "pruned" for trial in trials):
        raise InputError("no trial came to its end, see above why: --restart begins a new search")
    return study.best_trial.params, trials


class Run:
    """The files of one run. Its name tells the settings that are not the usual ones."""

    def __init__(self, script, args, usual, data):
        self.script, self.data = Path(script), data
        self.settings = {k: v for k, v in vars(args).items() if k not in PLACES}
        name = "-".join(
            f"{k}_{v}".replace("/", "_")
            for k, v in self.settings.items()
            if v != getattr(usual, k) and k not in ("dataset", "seed")
        )
        if len(name) > 120:  # file systems end at 255 characters
            name = f"{name[:100]}-{digest(name)}"
        name = f"{name or 'default'}-seed{args.seed}"
        args.pictures = self.settings["pictures"] = data.hash()
        out = Path(args.out) / ("smoke" * args.smoke)
        self.result = out / args.dataset / self.script.stem / f"{name}.json"
        self.folder = runs_folder(args) / self.script.stem / name
        self.checkpoint, self.made_of = self.folder / "checkpoint.pt", made_of(args, "student")
        self.student = self.folder / "student.pt"
        make_folder(self.result.parent)  # better to fail now than after training

    def finished(self, restart):
        """The result of this run if it is there; refuses one that was made with other settings."""
        if restart:
            for path in (self.result, self.checkpoint):
                path.unlink(missing_ok=True)
        if not self.result.exists():
            if self.checkpoint.exists():
                load(self.checkpoint, self.made_of)  # refused now, not after the teacher's training
            return None
        self.checkpoint.unlink(missing_ok=True)  # killed between its last two steps
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
            differences = changes(result["settings"], self.settings)
            table(**shown(result))
        except Exception as error:  # a damaged or foreign file can lack anything
            raise InputError(
                f"{self.result} is damaged or no result of these scripts ({type(error).__name__}): "
                "delete it, or --restart to replace it"
            ) from None
        if differences:
            raise InputError(
                f"{self.result} was made with other settings ({differences}): choose another --out,"
                " or --restart to replace it"
            )
        print(f"{self.result} is there already; --restart makes it anew")
        return result

    def write(self, result, logits, states, times):
        """Write the student's states, the test logits and, last of all, the result."""
        test, folder = self.data["test"], self.script.parent.parent
        save(self.student, network=self.settings["student"], states=states)
        arrays = {name: values.astype(np.float16) for name, values in logits.items()}
        arrays |= {"labels": test.labels.cpu().numpy(), "groups": test.groups.cpu().numpy()}
        arrays |= {"ids": np.array(test.ids), "subjects": np.array(test.subjects)}
        with atomic(self.result.with_suffix(".npz")) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **arrays)
        sources = [self.script, *(folder / f"{name}.py" for name in SOURCES)]
        sources = b"".join(path.read_bytes() for path in sources)
        result = {
            "method": self.script.stem,
            "settings": self.settings,
            "classes": [str(c) for c in self.data.classes],
            "group_names": [str(g) for g in self.data.group_names],
            "notes": self.data.notes,
            **result,
            "source": hashlib.sha256(sources).hexdigest()[:16],
            "times": times,
        }
        with atomic(self.result) as temporary:
            temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
        self.checkpoint.unlink(missing_ok=True)
        print(f"wrote {self.result}")
        return result

    def export(self, network):
        """The student of the last epoch beside its result, as `.pt2` and, if onnx is there, ONNX.

        Normalisation is inside, the group is not an input, and any number of pictures will do.
        """
        if not self.student.exists():
            raise InputError(f"{self.student} is gone: --restart trains this student anew")
        saved = torch.load(self.student, map_location="cpu", weights_only=True)
        restore(network, saved["states"]["last"], self.student)
        test = self.data["test"]
        model = Deployed(network.eval(), test.mean.cpu(), test.std.cpu())
        shape = {0: torch.export.Dim("batch", min=1)}
        pictures = torch.zeros(2, 3, self.data.size, self.data.size)
        program = torch.export.export(model, (pictures,), dynamic_shapes=(shape,))
        path = self.result.with_suffix(".pt2")
        with atomic(path) as temporary, open(temporary, "wb") as handle:
            torch.export.save(program, handle)
        print(f"wrote {path}: torch.export.load(...).module() takes pictures from 0 to 255")
        if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
            torch.onnx.export(program, (), self.result.with_suffix(".onnx"), dynamo=True)
            print(f"wrote {self.result.with_suffix('.onnx')}")
        else:
            print("no ONNX file: it needs the packages onnx and onnxscript")


def hash_of(tensors):
    """SHA-256 over types, shapes and bytes of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.detach().cpu().contiguous().numpy())
    return total.hexdigest()


def live(network, batch):
    """What a teacher without a memory answers: features (B, D') and logits (B, C), computed now."""
    return network(batch.images)


def mark(batch, split, views):
    """Write on the pictures of a batch which views they are, for Memory.

    views: (batch size, seed, epoch, augment, balance), one object for all batches of an epoch. The
    mark sticks to this very tensor: whatever is made of it has none, and its version tells whether
    it was changed in place.
    """
    batch.images.views = split, views, batch.step, batch.images._version


class Memory:
    """The answers of a teacher in earlier runs, a file for each epoch.

    Views depend on (seed, epoch) alone and a teacher never changes, so that all methods, settings
    and weights of losses ask it the same questions again. The key of a file holds all that answers
    depend on: the teacher's weights; its answers to noise, hence the code of the network and the
    machine's arithmetic; data.py, hence order and augmentation; every pixel of the split; batch
    size, seed, epoch, and with --balance the cells that it draws from. What is read is what was
    computed, bit by bit. Computed live and not kept are answers to pictures without a mark, and
    those of a teacher in training mode, with hooks (who sets one wants every pass), or changed in
    the middle of an epoch.
    """

    ## Disk is bounded: larger epochs are not kept; in a fuller folder the longest unused files go.
    epoch_bytes, folder_bytes = 512 * 2**20, 8 * 2**30

    def __init__(self, folder):
        self.folder, self.asked, self.pixels = folder, (None,) * 3, {}

    def __call__(self, network, batch):
        split, views, step, version = getattr(batch.images, "views", (None,) * 4)
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        if split is None or version != batch.images._version or hooked or network.training:
            return live(network, batch)
        if step == 0 or any(a is not b for a, b in zip(self.asked, (network, split, views))):
            self.begin(network, batch, split, views)
        if [t._version for t in self.tensors] != self.versions:
            self.kept = self.done = None  # the teacher is not what it was: live till the epoch ends
        rows = slice(step * views[0], (step + 1) * views[0])
        if self.kept and self.done == self.steps:
            return tuple(part[rows].clone() for part in self.kept)  # the caller's own
        answers = live(network, batch)
        if self.done == step == 0:
            shapes = [(self.steps * views[0], answer.shape[1]) for answer in answers]
            small = sum(4 * n * width for n, width in shapes) <= self.epoch_bytes
            self.kept = [a.new_empty(shape) for a, shape in zip(answers, shapes)] if small else None
        if self.kept and self.done == step:
            for part, answer in zip(self.kept, answers):
                part[rows] = answer
            self.done += 1
            if self.done == self.steps:
                self.write()
        return answers

    def begin(self, network, batch, split, views):
        """A new epoch: `kept` are features and logits for its first `done` steps, of its file."""
        self.tensors = [*network.parameters(), *network.buffers()]
        self.versions = [t._version for t in self.tensors]
        noise = torch.randn(2, *batch.images.shape[1:], generator=torch.Generator().manual_seed(0))
        rows, store = hash_of([split.rows]), split.store
        pixels = rows, store, store._version
        if pixels not in self.pixels:  # once a run: a large set takes seconds to read
            self.pixels[pixels] = hash_of(store[some] for some in split.rows.split(1024))
        key = {
            "teacher": [hash_of(self.tensors), hash_of(network(noise.to(batch.images)))],
            "split": [split.ids, rows, self.pixels[pixels]],
            "normalised by": hash_of([split.mean, split.std]),
            "drawn by": hash_of([split.labels, split.groups] if views[-1] else []),
            "views": [views, Path(D.__file__).read_text()],
            "machine": [machine(batch.images.device), torch.backends.cpu.get_cpu_capability()],
        }
        self.key = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self.path = self.folder / f"{self.key[:16]}.pt"
        self.asked, self.steps = (network, split, views), len(split) // views[0]
        self.done, self.kept = 0, None
        try:
            saved = torch.load(self.path, map_location=batch.images.device, weights_only=True)
            if saved["key"] == self.key and saved["hash"] == hash_of(saved["answers"]):
                self.kept, self.done = saved["answers"], self.steps
                os.utime(self.path)  # used now
        except Exception:  # absent, cut short, something else: torch raises all kinds of errors
            pass

    def write(self):
        """The complete epoch into its file; then as many of the oldest files away as must be."""
        answers = [part.cpu() for part in self.kept]
        try:
            save(self.path, key=self.key, hash=hash_of(answers), answers=answers)
            files = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
            surplus = sum(path.stat().st_size for path in files) - self.folder_bytes
            for path in files:
                if surplus > 0:
                    surplus -= path.stat().st_size
                    path.unlink()
        except (OSError, RuntimeError, InputError) as error:  # a full disk; another removed a file
            print(f"answers of the teacher are not kept: {error}")


class NotFinite(InputError):
    """A loss or an output has grown beyond all bounds."""


def check_finite(values, where):
    """Raises NotFinite when one of the named values is NaN or infinite; names all that are."""
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NotFinite(
            f"{', '.join(bad)} in {where}: use a smaller --lr or smaller weights of the losses; "
            "the last checkpoint is kept"
        )


def defined(metrics, name):
    """metrics[name], or a clear sentence if it is undefined."""
    if metrics[name] is None:
        raise InputError(f"{name} is undefined on validation ({'; '.join(metrics['undefined'])})")
    return metrics[name]


def log_line(label, epochs, row, speed, seconds):
    """One line for an epoch: losses, validation in percent, images per second, time left."""
    losses = {k.removeprefix("loss_"): v for k, v in row.items() if k not in ("epoch", "val")}
    losses = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    val = {k: "?" if v is None else f"{100 * v:.1f}" for k, v in row["val"].items()}
    left = round((epochs - row["epoch"] - 1) * seconds)
    return (
        f"{label} {row['epoch'] + 1}/{epochs}  {losses}  | val auroc {val['auroc']}, worst group "
        f"{val['auroc_worst_group']}, mean-DEO {val['mean_deo']} | {speed:.0f} images/s, "
        f"{left // 60}:{left % 60:02} left"
    )


def seconds_per_call(work, times, device="cpu"):
    """Mean seconds of work(), after two calls that are not counted; waits for the device."""
    wait = torch.cuda.synchronize if str(device).startswith("cuda") else lambda: None
    for n in range(times + 2):
        if n == 2:
            wait()
            start = time.perf_counter()
        work()
    wait()
    return (time.perf_counter() - start) / times


def speed(args, split, bare, seconds):
    """How fast the run was: {images_per_second, bare_..., cpu_latency_ms, and the machine}.

    bare     a method whose step on one batch, repeated, is the fastest this student could train
    seconds  of each epoch of the run, validation and checkpoint included
    """
    batch = next(D.batches(split, args.batch_size, args.seed))
    fastest = args.batch_size / seconds_per_call(lambda: bare.step(batch), 10, args.device)
    images = len(split) * len(seconds) / sum(seconds)
    network, picture, threads = (
        bare.student.cpu().eval(),
        batch.images[:1].cpu(),
        torch.get_num_threads(),
    )
    torch.set_num_threads(1)  # latency as on a small device: one picture, one thread
    with torch.no_grad():
        latency = 1000 * seconds_per_call(lambda: network(picture), 20)
    torch.set_num_threads(threads)
    print(
        f"student: {images:.0f} images/s, {images / fastest:.0%} of the bare step's {fastest:.0f}; "
        f"{latency:.1f} ms for one picture on one CPU thread"
    )
    rates = {"images_per_second": images, "bare_images_per_second": fastest}
    return {**rates, "cpu_latency_ms": latency, **machine(args.device)}


def size_of(network):
    """Name, number of parameters, and megabytes on disk of a network."""
    sizes = [v.numel() * v.element_size() for v in network.state_dict().values()]
    parameters = sum(p.numel() for p in network.parameters())
    return {"network": network.name, "parameters": parameters, "megabytes": sum(sizes) / 1e6}


def machine(device):
    """Where and with what a run was made."""
    gpu = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else None
    return {
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": np.__version__,
    }


def table(*, columns, class_names, group_names):
    """Metrics as text, in percent with 95 % intervals: a column for each model.

    columns: {"teacher": metrics.evaluate(...), ...}. A row for each metric under its name there,
    then for each group, then the signed disparity of each class.
    """

    def cell(part, key):
        shown = [part[key], *part.get("interval", {}).get(key, [])]
        shown = ["undefined" if v is None else f"{100 * v:.1f}" for v in shown]
        return shown[0] + (f" [{shown[1]}, {shown[2]}]" if shown[1:] else "")

    rows, models = [["percent", *columns]], columns.values()
    for key in TABLE:
        rows.append([key, *(cell(model, key) for model in models)])
    for key in ("auroc", "accuracy"):
        for g, name in enumerate(group_names):
            rows.append([f"{key}, {name}", *(cell(model["groups"][g], key) for model in models)])
    for c, name in enumerate(class_names):
        parts = [model["classes"][c] for model in models]
        rows.append([f"disparity, {name}", *(cell(part, "disparity") for part in parts)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for name, model in columns.items():
        if model["collapsed"]:
            lines.append(f"{name} has collapsed: it predicts one class for every picture")
    return "\n".join(lines)


def shown(result):
    """What `table` shows of a result: teacher beside student (its last epoch) on the test split."""
    columns = {"teacher": result.get("teacher"), "student": result["last"]}
    columns = {name: model["test"] for name, model in columns.items() if model}
    names = {"class_names": result["classes"], "group_names": result["group_names"]}
    return {"columns": columns, **names}


def show(result):
    """Print the table of a result."""
    print(table(**shown(result)))
