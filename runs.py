"""What a run leaves behind: settings, teachers, checkpoints and results, as files.

Nothing here knows a method. A result is written last, so a run is finished exactly when its result
is there; it is never overwritten by a run with other settings. Files appear whole or not at all.
"""

import difflib
import hashlib
import json
import math
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig

from data import batches
from readers import DATASETS, InputError, atomic, locked, make_folder

SOURCES = ("data", "readers", "metrics", "runs")  # shared files whose hash a result carries
TABLE = (
    "accuracy", "f1", "auroc", "auroc_worst_group", "auroc_gap", "es_auc", "mean_deo", "max_deo",
    "disparity",
)  # fmt: skip
LOGGED = ("accuracy", "auroc", "auroc_worst_group", "auroc_gap", "mean_deo", "disparity")
PLACES = (
    "data_dir",
    "source_dir",
    "download",
    "device",
    "out",
    "restart",
)  # settings that change no number


def complete(args):
    """Fill in the settings that depend on data set and machine; refuse those that cannot be."""
    kind = DATASETS[args.dataset]
    args.image_size = kind.size if args.image_size is None else args.image_size
    for name in ("target", "sensitive", "teacher", "student"):
        setattr(args, name, getattr(args, name) or getattr(kind, name))
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
    for name, high in {"image_size": 1024, "seed": 2**32 - 1}.items():
        if getattr(args, name) > high:
            raise InputError(f"--{name.replace('_', '-')} must be at most {high}")
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
    with atomic(path) as temporary:
        torch.save(content, temporary)


def restore(part, state, path):
    """Put a state, as `fit` returns or saves it, into a network, an optimiser or the like."""
    try:
        part.load_state_dict({name: value for name, value in state.items() if name != "epoch"})
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
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
        saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved.get("made_of") != made_of:
        raise InputError(f"{path} is not what its name says: delete it")
    return saved


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
        pictures = self.settings["pictures"] = data.hash()
        out = Path(args.out) / ("smoke" * args.smoke)
        self.result = out / args.dataset / self.script.stem / f"{name}.json"
        self.folder = runs_folder(args) / self.script.stem / name
        ## The name of a checkpoint tells the pictures, too: a run that was killed goes on with
        ## its own data or not at all.
        self.checkpoint = self.folder / f"checkpoint-{pictures}.pt"
        self.student = self.folder / "student.pt"
        make_folder(self.result.parent)  # better to fail now than after training

    def finished(self, restart):
        """The result of this run if it is there; refuses one that was made with other settings."""
        if restart:
            for path in (self.result, self.checkpoint):
                path.unlink(missing_ok=True)
        if not self.result.exists():
            return None
        result = json.loads(self.result.read_text())
        old, new = result["settings"], self.settings
        changed = [
            f"{k} was {old.get(k)!r} and is now {new.get(k)!r}"
            for k in {**old, **new}
            if old.get(k) != new.get(k)
        ]
        if changed:
            raise InputError(
                f"{self.result} was made with other settings ({'; '.join(changed)}): choose "
                "another --out, or --restart to replace it"
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


class NotFinite(InputError):
    """A loss or an output has grown beyond all bounds."""


def defined(metrics, name):
    """metrics[name], or a clear sentence if it is undefined."""
    if metrics[name] is None:
        raise InputError(f"{name} is undefined on validation ({'; '.join(metrics['undefined'])})")
    return metrics[name]


def check_finite(values, where):
    """Raises NotFinite when one of the named values is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(
                f"{name} is {value} in {where}: use a smaller --lr or smaller weights of the "
                "losses; the last checkpoint is kept"
            )


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
    batch = next(batches(split, args.batch_size, args.seed))
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


def near(name, known, cutoff=0.6):
    """The names in `known` most like `name`, as a text for an error message; "" if none is."""
    return ", ".join(difflib.get_close_matches(name, known, 3, cutoff))


class StillBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics, too, stand still while its weights are frozen."""

    def train(self, mode=True):
        return super().train(mode and self.weight.requires_grad)


def vit_tiny(size):
    """A small vision transformer: 4 blocks of width 64, patches of 8 pixels.

    Convolutions embed the patches (Xiao et al., 2021): without them, or with layer norm between
    them, it learnt nothing from the toy's 6,000 pictures in ten epochs.
    """
    layers = ((16, 2), (32, 2), (64, 1), (64, 2))  # width and stride: 2 · 2 · 2 = 8 pixels
    stem = [ConvStemConfig(width, 3, stride, StillBatchNorm) for width, stride in layers]
    return torchvision.models.VisionTransformer(size, 8, 4, 4, 64, 128, conv_stem_configs=stem)


def torchvision_net(name, size, pretrained):
    """A classifier of torchvision, or vit_tiny, by its name; clear errors for names and weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name == "vit_tiny" and not pretrained:
        return vit_tiny(size)
    if name not in known:
        known += ["convnet8", "convnet32", "vit_tiny"]
        raise InputError(f"no network is called {name!r}: did you mean {near(name, known, 0.3)}?")
    sized = {"image_size": size} if name.startswith("vit_") else {}
    try:
        net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **sized)
    except (OSError, ValueError) as error:  # no network; or a size that the weights are not for
        raise InputError(
            f"the weights of {name} cannot be had ({error}): connect once, or copy their file into "
            f"{torch.hub.get_dir()}/checkpoints, or use --no-pretrained"
        ) from None
    if name.startswith("resnet") and size <= 32 and not pretrained:
        ## The ImageNet stem shrinks 224 pixels to 56; it would shrink 32 to 8 and see little.
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    if name.startswith("squeezenet"):  # its classifier is a convolution
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1))
    if getattr(net, "aux_logits", False):  # side outputs of googlenet and inception_v3
        net.aux_logits, net.AuxLogits, net.aux1, net.aux2 = False, None, None, None
    return net


def fitting(make, name, size):
    """The network that make() returns, if it can take pictures of `size` pixels a side."""
    try:
        network = make().eval()
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:  # too small, or not a multiple of its patches
        raise InputError(
            f"{name} cannot take pictures of {size} pixels a side ({str(error).splitlines()[0]}): "
            "choose another network or --image-size"
        ) from None
    return network.train()


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
        "torchvision": torchvision.__version__,
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


def show(result):
    """Print teacher beside student (its last epoch) on the test split."""
    columns = {"teacher": result.get("teacher"), "student": result["last"]}
    columns = {name: model["test"] for name, model in columns.items() if model}
    names = {"class_names": result["classes"], "group_names": result["group_names"]}
    print(table(columns=columns, **names))
