"""The networks that `torchdfa train` builds: convolutional `features`, then a fully-connected `classifier`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.errors import UsageError

NAMES = ("cnn", "mlp", "vgg16")
# Figure 3 of Han & Yoo: the 13 convolutions of VGG-16 (Simonyan & Zisserman 2015), M a 2x2 max pooling.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
MAX_FC_LAYERS = 100  # a number in a tampered file must not fill the memory
SMALL_CNN = (32, "M", 64, "M", 64)
_SMALL_CNN_MAP = 4  # the small CNN averages larger maps down to 4x4, so that its head stays small


class Classifier(nn.Module):
    """`classifier(features(x))`."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        return self.classifier(self.features(x))


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int,
    fc_layers: int = 3,
    fc_width: int = 512,
    fc_batch_norm: bool = False,
    dropout: float = 0.0,
    fixed_output: bool = False,
) -> nn.Module:
    """A network with He initial weights (He et al. 2015) for square images of `image_size` pixels.

    "cnn" has three convolutions and averages its last map down to 4x4 where it is larger; "mlp" has none;
    "vgg16" is Figure 3. The head is `fc_layers` fully-connected layers with ReLU between, `fc_width` wide; after each
    hidden one comes batch norm where `fc_batch_norm` (the "w/ BN" columns of Table 1), and dropout. With
    `fixed_output` the output layer has no bias and does not learn: behind hidden layers it keeps its He weights, alone
    it is random signs times He's deviation.
    """
    if name == "vgg16":
        features, width = _vgg16_features(channels, image_size)
    elif name == "cnn":
        features, width = _small_cnn_features(channels, image_size)
    elif name == "mlp":
        features, width = [nn.Flatten()], channels * image_size**2
    else:
        raise UsageError(f"--model must be one of {', '.join(NAMES)}; got {name!r}")
    if fc_layers > MAX_FC_LAYERS:
        raise UsageError(f"--fc-layers must be at most {MAX_FC_LAYERS}; got {fc_layers}")
    head = _head([width] + [fc_width] * (fc_layers - 1), classes, fc_batch_norm, dropout)
    model = he_init_(Classifier(nn.Sequential(*features), head))
    if fixed_output:
        _fix_(head[-1], to_signs=fc_layers == 1)
    return model


def _fix_(layer: nn.Module, *, to_signs: bool) -> None:
    """Take a linear layer out of training, without its bias; `to_signs` makes its weights +-sqrt(2 / in_features)."""
    assert isinstance(layer, nn.Linear)
    if to_signs:
        with torch.no_grad():
            layer.weight.copy_(layer.weight.sign() * math.sqrt(2 / layer.in_features))
    layer.weight.requires_grad_(False)
    layer.register_parameter("bias", None)


def he_init_(model: nn.Module) -> nn.Module:
    """Weights of every convolution and linear layer from N(0, 2 / fan_in), biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _vgg16_features(channels: int, image_size: int) -> tuple[list[nn.Module], int]:
    halvings = VGG16.count("M")
    if image_size % 2**halvings:
        raise UsageError(
            f"--model vgg16 halves the image {halvings} times, so its size must be a multiple of {2**halvings}; "
            f"got {image_size}; take --image-size {_next_multiple(image_size, 2**halvings)} or --model cnn"
        )
    return [*_convs(VGG16, channels), nn.Flatten()], 512 * (image_size // 2**halvings) ** 2


def _small_cnn_features(channels: int, image_size: int) -> tuple[list[nn.Module], int]:
    side = image_size // 4
    if side < 1:
        raise UsageError(
            f"--model cnn needs images of at least 4x4 pixels; got {image_size}x{image_size}; "
            "take a larger --image-size or --model mlp"
        )
    layers = _convs(SMALL_CNN, channels)
    if side > _SMALL_CNN_MAP:
        side = _SMALL_CNN_MAP
        layers.append(nn.AdaptiveAvgPool2d(side))
    return [*layers, nn.Flatten()], 64 * side**2


def _convs(plan: tuple[Any, ...], channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in plan:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        # No bias: the batch norm that follows has one.
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return layers


def _head(widths: list[int], classes: int, batch_norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers.append(nn.Linear(width, following))
        if batch_norm:
            layers.append(nn.BatchNorm1d(following))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _next_multiple(size: int, base: int) -> int:
    return max(1, -(-size // base)) * base
