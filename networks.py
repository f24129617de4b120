"""Networks: their bodies, where these come from, and how they start from weights of others.

A Network is a body, pictures (B, 3, H, H) to features, and a head, features to logits: methods see
no more of it, whichever it is. Bodies are called

    convnet8, convnet16 ...    tiny ones of this file, for small pictures on a CPU
    resnet18, vit_b_16 ...     of torchvision
    timm:NAME                  of timm, where this package is installed
    flava                      FLAVA's image encoder, where transformers is installed
    FILE.py:FUNCTION           yours: FUNCTION(pixels a side) makes a classifier

Of masks, bodies make maps (B, D, H', W'):

    unet8, transunet8 ...      small ones of this file
    fcn_resnet50 ...           of torchvision, and lraspp_..., deeplabv3_...
    timm:NAME                  an encoder of timm with a decoder of this file
    FILE.py:FUNCTION           yours, without a last layer

NAME@224 sees pictures enlarged to 224 pixels a side.
"""

import argparse
import math
import os
import re
import runpy
import sys
import traceback
import warnings
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from data import InputError, near

## On a GPU: float32 is float32, and a convolution twice gives the same numbers.
torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True

## Mean and deviation of red, green and blue, from 0 to 1. They belong to the weights, not to the
## architecture: two files for one network may need different ones.
STATISTICS = {
    "data": None,  # those of the training pictures, as everywhere in these scripts
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

# ===== BODIES =====================================================================================


def layers(*widths):
    """Convolutions from one number of channels to the next, with batch norm and ReLU: a list."""
    found = []
    for inputs, outputs in zip(widths, widths[1:]):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        found += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return found


def convnet(width):
    """A tiny classifier for small pictures on a CPU: three stages of 1, 1 and 2 convolutions.

    Pictures (B, 3, H, H) to (B, 1): like all bodies it loses its last layer in `body`.
    """
    stages, inputs = [], 3
    for outputs, depth in ((width, 1), (2 * width, 1), (4 * width, 2)):
        stages.append(nn.Sequential(*layers(inputs, *[outputs] * depth), nn.MaxPool2d(2)))
        inputs = outputs
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1))


class Chain(nn.Sequential):
    """nn.Sequential, whose own `forward` torch 2.11 does not compile."""

    def forward(self, images):
        return super().forward(images)


class Encoder(nn.Module):
    """Pictures (B, 3, H, H) to four maps: (B, widths[0], H, H) to (B, widths[3], H/8, H/8).

    attention: between all places of the smallest maps, as in TransUNet, by two layers (there: 12)
    """

    def __init__(self, widths, size, attention):
        super().__init__()
        pairs = zip([3, *widths], widths)
        self.stages = nn.ModuleList(nn.Sequential(*layers(a, b, b)) for a, b in pairs)
        self.attention = None
        if attention:
            wide = widths[-1]
            self.position = nn.Parameter(0.02 * torch.randn((size // 8) ** 2, wide))  # learnt
            shape = {"dropout": 0, "batch_first": True, "norm_first": True}
            two = [nn.TransformerEncoderLayer(wide, 4, 4 * wide, **shape) for _ in range(2)]
            self.attention = nn.Sequential(*two, nn.LayerNorm(wide))

    def forward(self, maps):
        found = []
        for stage in self.stages:
            maps = stage(F.max_pool2d(maps, 2) if found else maps)
            found.append(maps)
        if self.attention:
            words = maps.flatten(2).transpose(1, 2) + self.position  # (B, H/8 · H/8, widths[3])
            found[-1] = self.attention(words).transpose(1, 2).reshape(maps.shape)
        return found


class UNet(nn.Module):
    """Maps (B, D, H', W') of pictures: an encoder's smallest maps are enlarged and joined with the
    next larger ones, and so on.

    widths  channels of the encoder's maps, the largest map first
    most    channels of joined maps
    """

    def __init__(self, encoder, widths, most):
        super().__init__()
        self.encoder, self.joins, below = encoder, nn.ModuleList(), widths[-1]
        for width in reversed(widths[:-1]):
            both, below = below + width, min(width, most)
            self.joins.append(nn.Sequential(*layers(both, below, below)))

    def forward(self, images):
        *larger, maps = self.encoder(images)
        for skip, join in zip(reversed(larger), self.joins):
            maps = join(torch.cat([skip, F.interpolate(maps, skip.shape[2:])], dim=1))
        return maps


def unet(width, size, attention=False):
    """U-Net (Ronneberger et al., 2015), small; with attention a TransUNet (Chen et al., 2021)."""
    widths = [width, 2 * width, 4 * width, 8 * width]
    return UNet(Encoder(widths, size, attention), widths, most=4 * width)


class Headless(nn.Module):
    """A segmentation network of torchvision without its last layer: pictures to maps."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier
        if isinstance(self.classifier, nn.Sequential):  # of fcn and deeplabv3
            self.classifier[-1] = nn.Identity()
        else:
            self.classifier.low_classifier = self.classifier.high_classifier = None

    def forward(self, images):
        maps = self.backbone(images)
        if "out" in maps:
            return self.classifier(maps["out"])
        ## lraspp adds up what a layer makes of large maps and another one of small, enlarged maps:
        ## the same as one layer that sees both.
        small = self.classifier.cbr(maps["high"]) * self.classifier.scale(maps["high"])
        large = maps["low"]
        return torch.cat([large, F.interpolate(small, large.shape[2:], mode="bilinear")], dim=1)


def flava(size):
    """FLAVA's image encoder: (B, 3, 224, 224) to its first token, (B, 768), and then (B, 1)."""
    if size != 224:
        raise TypeError("it has positions for 224: write flava@224, which enlarges pictures")
    try:
        from transformers import FlavaImageConfig, FlavaImageModel  # a package that few need
    except ImportError as error:
        reason = f"flava needs the package transformers ({first_line(error)}): install it"
        raise InputError(reason) from None

    class FirstToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = FlavaImageModel(FlavaImageConfig(), add_pooling_layer=False)
            self.last = nn.Linear(768, 1)

        def forward(self, images):
            ## Its "pooler_output" would not be this token: it went through a layer and tanh.
            return self.last(self.model(images).last_hidden_state[:, 0])

    return FirstToken()


OWN = {"flava": flava}  # {name: function of the pixels a side}: scripts may add some
SMALL = re.compile(r"(convnet|unet|transunet)([1-9]\d*)")  # those of this file, and their widths


def offered(name):
    """Whether somebody offers weights of a network: of those of this file, and of yours, nobody."""
    return not (SMALL.fullmatch(name.partition("@")[0]) or ".py:" in name)


def first_line(error):
    """The first line of what an error says, without the codes that make text bold."""
    return re.sub("\x1b\\[\\d+m", "", str(error)).partition("\n")[0]


def of_timm(name, size, pretrained, segment):
    """timm:NAME, without its last layer."""
    what, lacking = name.removeprefix("timm:"), f"there is no network {name}"
    advice = "it is timm:NAME, where the package timm is installed, or FILE.py:FUNCTION"
    try:
        import timm  # a package that few need

        if pretrained and timm.is_model(what):
            lacking = f"the weights of {name} cannot be had"
            advice = "connect once, or download their file and name it by --weights"
        if segment:
            encoder = timm.create_model(what, pretrained, features_only=True)
            return UNet(encoder, encoder.feature_info.channels(), most=64)
        try:  # transformers are built for one size
            return timm.create_model(what, pretrained, num_classes=0, img_size=size)
        except TypeError:
            return timm.create_model(what, pretrained, num_classes=0)
    except Exception as error:  # no such package, network or connection
        told = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{lacking} ({told}): {advice}") from None


def of_file(name, size):
    """What FUNCTION of FILE.py:FUNCTION makes of `size`."""
    refuse_unknown([name], [])
    where, _, what = name.rpartition(":")
    sys.path.append(str(Path(where).resolve().parent))  # it may import its neighbours
    try:
        found = runpy.run_path(where)
        net = found[what](size) if what in found else None
    except Exception as error:
        calls = traceback.extract_tb(error.__traceback__)
        lines = [call.lineno for call in calls if call.filename == where] or ["?"]
        raise InputError(
            f"{name} fails in line {lines[-1]} ({type(error).__name__}: {first_line(error)}): it "
            "is called with the number of pixels a side, and returns a network"
        ) from None
    if what not in found:
        raise InputError(f"{where} has no function {what}: name one that it has")
    if not isinstance(net, nn.Module):
        raise InputError(f"{name} returns no torch.nn.Module, but {net!r:.50}")
    return net


def refuse_unknown(networks, files, segment=False):
    """Raise InputError where a name is of no network or a file is not there.

    Nothing is built, so that it can be said before pictures are read.
    """
    for name in networks:
        name = re.sub(r"@\d+$", "", name)
        module = name.rpartition(":")[0]
        if module not in ("", "timm") and not Path(module).is_file():
            why = f"no such file: {module}); write FILE.py:FUNCTION, or timm:NAME by its short name"
            raise InputError(f"there is no network {name} ({why}")
        if name.endswith(".py"):
            raise InputError(f"{name} alone is no network: write FILE.py:FUNCTION")
        small = SMALL.fullmatch(name)
        if small and segment == (small[1] == "convnet"):
            raise InputError(f"{name} is {'not ' * segment}for --task segment")
        if not (module or small or name in OWN):
            from torchvision import models  # takes 1.6 seconds: only where it is needed

            known = models.list_models(module=models.segmentation if segment else models)
            if name not in known:
                own = ["unet8", "transunet8"] if segment else [*OWN, "convnet8", "convnet32"]
                similar, what = near(name, [*known, *own], 0.3), "of --task segment " * segment
                raise InputError(f"no network {what}is called {name!r}: did you mean {similar}?")
        if module == "timm" and find_spec("timm"):
            import timm  # takes seconds: only where it is needed

            if not timm.is_model(what := name.removeprefix("timm:")):
                similar = near(what, timm.list_models(), 0.3)
                raise InputError(f"timm has no network {what!r}: did you mean {similar}?")
    for file in filter(None, files):
        if not Path(file).is_file():
            what = "it is a folder: name a file in it" if Path(file).is_dir() else "no such file"
            raise InputError(f"{file} gives no weights: {what}")


def of_torchvision(name, size, started, pretrained, segment=False):
    """A network of torchvision: `started`, built as those with weights are; with its own."""
    import torchvision

    refuse_unknown([name], [], segment)
    sized = {"image_size": size} if name.startswith("vit_") else {}
    sized = {"weights_backbone": None} if segment else sized  # or else it would be downloaded
    ## A file of weights may hold code, which loading it would run. This forbids that.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    weights = "DEFAULT" if pretrained else None
    try:
        net = torchvision.models.get_model(name, weights=weights, **sized)
    except Exception as error:  # no connection; a size that the weights are not for; a bad file
        if not weights:
            raise
        reason = (str(error) or "their file is empty: delete it").partition("\n")[0]
        raise InputError(
            f"the weights of {name} cannot be had ({reason}): connect once, or copy their file "
            f"into {torch.hub.get_dir()}/checkpoints, or use --no-pretrained, or, if it is about "
            f"the size of pictures, {name}@224"
        ) from None
    if segment:
        return Headless(net)
    if name.startswith("resnet") and size <= 32 and not started:
        ## The ImageNet stem shrinks 224 pixels to 56; it would shrink 32 to 8 and see little.
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    if name.startswith("squeezenet"):  # its classifier is a convolution, we need a linear layer
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1))
    if started and hasattr(net, "transform_input"):  # from ImageNet's statistics to its own
        net.transform_input = True
    if getattr(net, "aux_logits", False):  # side outputs of googlenet and inception_v3
        net.aux_logits, net.AuxLogits, net.aux1, net.aux2 = False, None, None, None
    return net


def body(name, size, started=False, pretrained=False, segment=False):
    """A network without its last layer: pictures (B, 3, size, size) to features (B, D); and D.

    started       whether it will have weights that others trained, `pretrained` or from a file
    pretrained    with those that torchvision or timm fetch
    segment       features are maps (B, D, H', W')
    Raises InputError where there is no such network, or where it cannot take such pictures.
    """
    small = SMALL.fullmatch(name)
    try:
        if name == "flava" and pretrained:
            what = "--weights or --teacher-weights"
            raise InputError(f"flava's weights are not fetched: name their file by {what}")
        if name in OWN:
            net = OWN[name](size)
        elif small and small[1] == "convnet":
            net = convnet(int(small[2]))
        elif small:
            net = unet(int(small[2]), size, small[1] == "transunet")
        elif ":" in name:
            timm = name.startswith("timm:")
            net = of_timm(name, size, pretrained, segment) if timm else of_file(name, size)
        else:
            net = of_torchvision(name, size, started, pretrained, segment)
        black = torch.zeros(1, 3, size, size)
        used = []  # the layers, in the order of their answers
        with torch.no_grad():
            with register_module_forward_hook(lambda layer, *_: used.append(layer)):
                answers = {"": net.eval()(black)}
            if ".py:" in name:  # it may give something else while it learns
                before = {k: v.clone() for k, v in net.state_dict().items()}
                with torch.random.fork_rng(devices=[]):
                    answers[" in training"] = net.train()(black.repeat(2, 1, 1, 1))
                net.eval().load_state_dict(before)
            for when, given in answers.items():
                if not isinstance(given, torch.Tensor):
                    kind, what = type(given).__name__, "maps" if segment else "logits"
                    raise InputError(f"{name} gives a {kind}{when}: let it give {what} alone")
                number, pictures = (2, "two pictures") if when else (1, "one picture")
                if given.ndim < 2 or len(given) != number:
                    raise InputError(
                        f"{name} gives the shape {[*given.shape]} for {pictures}{when}: let its "
                        f"first dimension be {number}, that of the pictures"
                    )
            feats = answers[""]
            if segment:
                if feats.ndim != 4:
                    raise TypeError("it gives no maps, which --task segment needs")
                if ".py:" in name and feats.shape[1] < 4:
                    what = "let it return what its last layer would see"
                    print(f"beware: {name} gives {feats.shape[1]} channels: {what}")
            elif not name.startswith("timm:"):  # which comes without a last layer
                names = {layer: where for where, layer in net.named_modules()}
                linear = [x for x in used if isinstance(x, nn.Linear) and x in names]
                if linear:  # its place is taken by the script's head
                    net.set_submodule(names[linear[-1]], nn.Identity())
                    logits, feats = feats, net(black)
                if not (linear and torch.allclose(linear[-1](feats), logits)):
                    raise InputError(
                        f"{name} does not end in a linear layer, whose input would be the "
                        "features, or gives NaN, or other numbers at each call: let its FUNCTION "
                        "return a classifier without softmax"
                    )
    except InputError:
        raise
    except Exception as error:  # too small, no multiple of its patches, no classifier; its own code
        raise InputError(
            f"{name} cannot take pictures of {size} pixels a side ({first_line(error)}): choose "
            f"another network or --image-size, or {name}@224, which enlarges them"
        ) from None
    return net, feats.shape[1] if segment else feats.flatten(1).shape[1]


# ===== WEIGHTS ====================================================================================


def by_timm(net):
    """What timm says of the weights it has for a network, or for an encoder of masks; else {}."""
    return getattr(getattr(net, "encoder", net), "pretrained_cfg", {})


def usual_statistics(name, net):
    """Mean and deviation of the pixels that the weights of others expect, or None: the data's."""
    if SMALL.fullmatch(name) or name == "vit_tiny":  # others have no weights for these
        return None
    if name == "flava":
        return STATISTICS["clip"]
    if timm := by_timm(net):
        return tuple(timm["mean"]), tuple(timm["std"])
    if ":" in name:
        return STATISTICS["imagenet"]
    from torchvision.models import get_model_weights

    theirs = next(iter(get_model_weights(name))).transforms()
    return tuple(theirs.mean), tuple(theirs.std)


def beware(name, net, size):
    """Print what a network of timm needs for its weights to be what they were."""
    theirs = by_timm(net)
    if "QuickGELU" in str(theirs.get("notes")) and "quickgelu" not in name:
        print(f"beware: weights of {name} want QuickGELU: take the network with it in its name")
    if hasattr(net, "pos_embed") and theirs and theirs["input_size"][-1] != size:
        sides = f"{theirs['input_size'][-1]} pixels a side, not {size}"
        print(f"beware: {name} learnt from {sides}: positions are resampled; {name}@224 enlarges")


def resampled(state, net):
    """A state_dict for timm's `net`, with positions for its number of patches; others as it is.

    timm's networks also know the names that others use, such as CLIP's authors.
    """
    module = sys.modules.get(type(net).__module__)  # None: of a network in a user's file
    own = getattr(module, "checkpoint_filter_fn", None)
    return own(state, net) if own else state


def tensors_of(path, net):
    """{name: tensor} in the file `path`, as `net` would name them; and whether a script of this
    project has written it."""
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file  # a package that few need

            content = load_file(path)
        else:
            with warnings.catch_warnings():  # of TorchScript, which is refused anyway
                warnings.simplefilter("ignore", UserWarning)
                content = torch.load(path, map_location="cpu", weights_only=True)
        both = {"state", "log"}, {"states", "class_shares"}  # of a teacher, of a student
        ours = any(keys <= content.keys() for keys in both)
        wraps = "state_dict_ema state_dict model_state_dict model net network student"
        for key in f"{wraps} state states last".split():  # who wraps them
            inner = content.get(key)
            content = inner if isinstance(inner, dict) else content
        tensors = {k: v for k, v in content.items() if torch.is_tensor(v)}
        if not tensors:
            raise ValueError(f"it holds {', '.join(map(str, content)) or 'nothing'}"[:90])
        return resampled(tensors, net), ours
    except Exception as error:  # no file, no package, a damaged file, code in it
        known = Path(path).suffix in (".pt", ".pth", ".bin", ".safetensors")
        told = f"{type(error).__name__}: {first_line(error)}" if known else "an unknown ending"
        if re.search("weights.only", told, re.I):  # PyTorch advises to run the code in it
            told = "it holds code: save model.state_dict() alone; or is another page or program"
        raise InputError(
            f"{path} gives no weights ({told}): it must be a file of tensors by name, .pt, .pth, "
            ".bin or, with the package of that name, .safetensors"
        ) from None


def bare(state):
    """{name: tensor} without the prefixes that programs put before names, and without counters."""
    prefix = re.compile(r"^((module|model|_orig_mod|backbone|body|flava|image_model)\.)+")
    pairs = [(prefix.sub("", name), tensor) for name, tensor in state.items()]
    for old, new in ((".mlp.linear_1.", ".mlp.0."), (".mlp.linear_2.", ".mlp.3.")):
        pairs = [(name.replace(old, new), tensor) for name, tensor in pairs]  # torchvision's, once
    return {name: tensor for name, tensor in pairs if not name.endswith("num_batches_tracked")}


def start_from(net, path):
    """Give the body `net` the weights in a file, and say what was taken.

    Returns whether a script of this project has written the file. Weights are taken by name, if
    nine in ten of the network's tensors are there, or else in order, if shapes and kinds (weight,
    bias, ...) of all agree, which finds a network that only names its parts otherwise. With fewer
    it would start from random numbers, and nothing would show it. Raises InputError.
    """
    if isinstance(net, UNet) and not isinstance(net.encoder, Encoder):
        net = net.encoder  # others have weights of encoders, and decoders of their own
    given, ours = tensors_of(path, net)
    own, given = bare(net.state_dict()), bare(given)
    named = [k for k in own if k in given and given[k].shape == own[k].shape]
    if len(named) >= 0.9 * len(own):
        for name in (own.keys() & given.keys()) - {*named}:  # such as positions of fewer patches
            raise InputError(
                f"{path}: {name} is {[*given[name].shape]}, but {[*own[name].shape]} here: the "
                "weights are for pictures of another size, such as 224 (write NETWORK@224), or for "
                "another network of this name"
            )
        how, taken = "by name", {k: given[k] for k in named}
        unused = [k for k in given if k not in taken]
    else:
        how, taken, unused = "in order", dict(zip(own, given.values())), [*given][len(own) :]
        ## Files in which names are sorted, such as .safetensors, have another order in each layer.
        kinds = {"weight", "bias", "running_mean", "running_var"}
        last = [[name.rpartition(".")[2] for name in names] for names in (own, given)]
        sorted_anew = [k for k, a, b in zip(own, *last) if a != b and b in kinds]
        wrong = [k for k in own if k not in taken or taken[k].shape != own[k].shape] + sorted_anew
        if named and len(named) == len(given):
            lost = [k for k in own if k not in given]
            raise InputError(
                f"{path} is not whole: it lacks {len(lost)} tensors, such as {lost[0]}"
            )
        if wrong:
            raise InputError(
                f"{path} is not for this network: {len(named)} of {len(own)} tensors agree in name "
                f"and shape, and in order {wrong[0]} has another shape or kind; the network "
                f"begins with {', '.join([*own][:2])}, the file with "
                f"{', '.join([*given][:2]) or 'nothing'}"
            )
    for name, tensor in taken.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} has numbers that are NaN or infinite: take another")
        own[name].copy_(tensor)
    random = [k for k in own if k not in taken]
    for what, names in (("not used", unused), ("left random", random)):
        how += f", {what}: {', '.join(names[:4])}{' ...' if names[4:] else ''}" if names else ""
    print(f"{path}: {len(taken)} of {len(own)} tensors taken {how}; the last layer starts anew")
    return ours


# ===== A BODY AND A HEAD ==========================================================================


def forget_start(network, steps):
    """Let batch norms forget their start where `steps` are too few for that: a function of a step.

    Evaluation uses running means, of which each step replaces a share, the momentum. torchvision's
    mobilenet_v3, for ImageNet's many steps, has 0.01: after 70 steps half of each mean was still
    its start, which no picture has, and a student gave all pictures the same answer. Where more
    than e^-5 of the start would be left, the function, called before each step (from 0), sets a
    larger one: at first 1, from step 15 on 1/16, in the end 5/steps (at most 0.1, the usual one).
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:  # a second training of a network begins like the first one
        norm.momentum = norm.usual = getattr(norm, "usual", norm.momentum)
    least = min(0.1, 5 / steps)
    slow = [norm for norm in norms if norm.momentum and norm.momentum < least]
    if slow:
        was = f"{min(norm.momentum for norm in slow):g}"
        print(f"batch norm's momentum is {least:.2g}, not {was}: there are only {steps} steps")

    def before(step):
        for norm in slow:  # few values, because --compile compiles anew for each
            norm.momentum = max(least, 1.0 if step < 15 else 1 / 16 if step < 255 else 0)

    return before


def all_flips(images):
    """(B, 3, H, H) in the eight ways in which a square can lie: [as it is, flipped, ...]."""
    ways = [images, images.flip(3)]
    ways += [way.flip(2) for way in ways]
    return ways + [way.mT for way in ways]


class Network(nn.Module):
    """A network that returns what distillation needs: features (B, D) and logits (B, C).

    The features are what the last linear layer sees. Both are float32, also with bf16 inside. Of
    masks there are maps of features (B, D, H', W'), and logits (B, 2, H, W) of each pixel.
    load: False to be given saved weights; then it needs no file and no connection.
    """

    def __init__(self, args, name, num_classes, load=True):
        super().__init__()
        self.name, self.bf16 = name, args.precision == "bf16"
        self.segment = args.task == "segment"
        self.ways = 1  # of all_flips: in how many it sees each picture, except in training
        name, _, size = name.rpartition("@") if re.search(r"@\d+$", name) else (name, "", 0)
        if 0 < int(size) < args.image_size:
            raise InputError(f"{self.name} would shrink the pictures: choose an --image-size")
        self.size, started = int(size) or args.image_size, bool(args.pretrained or args.weights)
        fetch = args.pretrained and not args.weights and load
        self.body, self.width = body(name, self.size, started, fetch, self.segment)
        if args.compile:
            if type(self.body) is nn.Sequential:
                self.body = Chain(OrderedDict(self.body.named_children()))
            self.body.compile()
        if args.pretrained and not args.weights and not offered(name):
            print(f"nobody offers weights of {name}: it starts from random ones")
        ours = args.weights and load and start_from(self.body, args.weights)
        foreign = started and not ours  # weights that others have trained
        self.statistics = usual_statistics(name, self.body) if foreign else None
        if foreign and load:
            beware(name, self.body, self.size)
        if args.statistics:
            self.statistics = STATISTICS[args.statistics]
        if self.statistics:  # NaN until `expect`, so that nobody can forget to call it
            self.register_buffer("scale", torch.full((3, 1, 1), math.nan))
            self.register_buffer("shift", torch.full((3, 1, 1), math.nan))
        self.head = nn.Linear(self.width, num_classes)
        if self.segment:
            enlarge = nn.Upsample(args.image_size, mode="bilinear")
            self.head = nn.Sequential(nn.Conv2d(self.width, num_classes, 1), enlarge)
        self.train().to(memory_format=torch.channels_last)  # faster convolutions

    @property
    def largest_batch(self):
        """How many pictures it answers at once: of large ones fewer, which fit into memory."""
        return max(1, min(256, 2**22 // self.size**2))

    def expect(self, split):
        """Take pictures normalised as those of `split`, and normalise them anew; returns self."""
        if self.statistics:
            mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in self.statistics)
            self.scale.copy_(split.std.cpu() / std)
            self.shift.copy_((split.mean.cpu() - mean) / std)
            print(f"{self.name} expects pixels of mean, deviation {self.statistics}")
        return self

    def features(self, images):
        """What the head sees: (B, D), or of masks (B, D, H', W')."""
        images = images * self.scale + self.shift if self.statistics else images
        if images.shape[-1] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear")
        if self.segment:
            return self.body(images)
        ways = [images] if self.training or self.ways == 1 else all_flips(images)[: self.ways]
        return sum(self.body(way).flatten(1) for way in ways) / len(ways)

    def forward(self, images):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            feats = self.features(images)
        feats = feats.float() if self.bf16 else feats  # the last layer is small
        return feats, self.head(feats)  # (B, C), or (B, 2, H, W)


def as_saved(settings, state):
    """The settings for a `Network` that is then given the saved weights `state`, of any version."""
    older = {"task": "classify", "weights": None, "statistics": None, "pretrained": False}
    ## Whether it normalises pixels anew is seen in its tensors, how stands in them.
    own = {"compile": False, "statistics": "imagenet" if "scale" in state else "data"}
    return argparse.Namespace(**older | settings | own)
