"""The bodies of networks: any classifier of torchvision, and small ones for a CPU.

A body maps pictures (B, 3, H, W) to the outputs of its last linear layer, which the scripts replace
by one of their own: see `Network` there.

torchvision takes 1.6 seconds to import: longer than all else here, so only who needs it does.
"""

import torch
from torch import nn

from readers import InputError, near


def body(name, size, pretrained, compiled=False):
    """The network `name` for pictures of `size` pixels a side.

    name        convnet<width>, vit_tiny, or a classifier of torchvision
    pretrained  whether to start from torchvision's weights
    compiled    whether torch.compile shall make code for it at its first call (not of its copies)
    Raises InputError for unknown names, missing weights, and sizes that the network cannot take.
    """
    width = name.removeprefix("convnet")
    try:
        if width != name and width.isdecimal() and int(width):
            network = convnet(int(width))
        elif name == "vit_tiny" and not pretrained:
            network = vit_tiny(size)
        else:
            network = torchvision_net(name, size, pretrained)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:  # too small, or not a multiple of its patches
        raise InputError(
            f"{name} cannot take pictures of {size} pixels a side ({str(error).splitlines()[0]}): "
            "choose another network or --image-size"
        ) from None
    if compiled:
        network.compile()
    return network.train()


def convnet(width):
    """A tiny classifier for small pictures on a CPU: three stages of 1, 1 and 2 convolutions."""
    stages, inputs = [], 3
    for outputs, depth in ((width, 1), (2 * width, 1), (4 * width, 2)):
        stage = []
        for _ in range(depth):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            stage += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        stages.append(nn.Sequential(*stage, nn.MaxPool2d(2)))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1))


class StillBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics, too, stand still while its weights are frozen."""

    def train(self, mode=True):
        return super().train(mode and self.weight.requires_grad)


def vit_tiny(size):
    """A small vision transformer: 4 blocks of width 64, patches of 8 pixels.

    Convolutions embed the patches (Xiao et al., 2021): without them, or with layer norm between
    them, it learnt nothing from the toy's 6,000 pictures in ten epochs.
    """
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    layers = ((16, 2), (32, 2), (64, 1), (64, 2))  # width and stride: 2 · 2 · 2 = 8 pixels
    stem = [ConvStemConfig(width, 3, stride, StillBatchNorm) for width, stride in layers]
    return VisionTransformer(size, 8, 4, 4, 64, 128, conv_stem_configs=stem)


def torchvision_net(name, size, pretrained):
    """A classifier of torchvision by its name; clear errors for names and weights."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        known += ["convnet8", "convnet32", "vit_tiny"]
        raise InputError(f"no network is called {name!r}: did you mean {near(name, known, 0.3)}?")
    sized = {"image_size": size} if name.startswith("vit_") else {}
    try:
        net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **sized)
    except Exception as error:  # no network; a size that the weights are not for; a bad file
        if not pretrained:
            raise
        known = isinstance(error, (OSError, ValueError))
        reason = error if known else "their file is damaged or holds code: delete it"
        raise InputError(
            f"the weights of {name} cannot be had ({reason}): connect once, or copy their file "
            f"into {torch.hub.get_dir()}/checkpoints, or use --no-pretrained"
        ) from None
    if name.startswith("resnet") and size <= 32 and not pretrained:
        ## The ImageNet stem shrinks 224 pixels to 56; it would shrink 32 to 8 and see little.
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    if name.startswith("squeezenet"):  # its classifier is a convolution
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1))
    if getattr(net, "aux_logits", False):  # side outputs of googlenet and inception_v3
        net.aux_logits, net.AuxLogits, net.aux1, net.aux2 = False, None, None, None
    return net


class Deployed(nn.Module):
    """What a device needs: pictures (B, 3, H, W), float32 from 0 to 255, to logits (B, C)."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images):
        ## Not by Network.forward: torch 2.6 cannot write down its autocast, even where that is off.
        feats = self.network.body((images - self.mean) / self.std).flatten(1)
        return self.network.head(feats)
