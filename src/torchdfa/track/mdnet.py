"""MDNet (Nam & Han, CVPR 2016): three convolutions of VGG-M, two shared layers, one last layer for each video."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.ops.norm_pool import norm_pool
from torchdfa.track.lrn import PYMDNET_2019, LocalResponseNorm, Norm
from torchdfa.train.winograd import FixedConv2d

CROP = 107  # pixels each side of the network's input
FEATURES = 512 * 3 * 3
HIDDEN = 512
FC6_STD = 0.01
PIXEL_SPREAD = 64.0
GPU_CHUNK = 256  # of a GPU, where a launch costs more than what stays in a cache saves
CHUNK = 24  # crops at a time: what they need stays in the cache, and small maps still fill a product


class VGGM(nn.Module):
    """conv1 to conv3 of VGG-M: (N, 3, 107, 107), pixels minus 128, to (N, 4608)."""

    def __init__(self, norm: Norm = PYMDNET_2019) -> None:
        super().__init__()
        self.norm = norm
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv3 = nn.Conv2d(256, 512, 3)
        self.norm1, self.norm2 = LocalResponseNorm(96, norm), LocalResponseNorm(256, norm)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self._normed(self.conv1(x), self.norm1)
        x = self._normed(self.conv2(x), self.norm2)
        # In (channel, row, column) order whatever the memory layout: fc4's weights are in that order.
        return F.relu(self.conv3(x), inplace=True).contiguous().flatten(1)

    def _normed(self, x: Tensor, norm: LocalResponseNorm) -> Tensor:
        done = norm_pool(x, **norm.norm.to_dict())
        return self.pool(norm(F.relu(x, inplace=True))) if done is None else done


def fast(network: VGGM) -> VGGM:
    """The same features but for rounding, by Winograd's algorithm; of weights that no longer change."""
    copied = copy.deepcopy(network)
    copied.conv2, copied.conv3 = FixedConv2d(network.conv2), FixedConv2d(network.conv3)  # type: ignore[assignment]
    return copied


def head(features: int = FEATURES, hidden: int = HIDDEN) -> nn.Sequential:
    """fc4, fc5 and fc6, with dropout after the first two: features (N, 4608) to scores (N, 2), target second."""
    return nn.Sequential(
        OrderedDict(
            fc4=nn.Linear(features, hidden), relu4=nn.ReLU(), drop4=nn.Dropout(0.5),
            fc5=nn.Linear(hidden, hidden), relu5=nn.ReLU(), drop5=nn.Dropout(0.5),
            fc6=nn.Linear(hidden, 2),
        )
    )  # fmt: skip


class MDNet(nn.Module):
    """Features, and one head whose fc6 is that of a video; ``branches`` videos are trained together."""

    def __init__(self, branches: int = 1, features: nn.Module | None = None, *, width: int = FEATURES,
                 hidden: int = HIDDEN) -> None:  # fmt: skip
        super().__init__()
        self.features = features if features is not None else VGGM()
        self.shared = nn.Sequential(OrderedDict(list(head(width, hidden).named_children())[:-1]))
        self.branches = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(branches))

    def forward(self, crops: Tensor, branch: int) -> Tensor:
        return self.branches[branch](self.shared(self.features(crops)))

    def parameter_groups(self, lr: float, last: float = 10.0) -> Iterator[dict[str, object]]:
        """Learning rates of pretraining: fully-connected layers learn ``last`` times as fast (PyMDNet)."""
        yield {"params": list(self.features.parameters()), "lr": lr}
        yield {"params": [*self.shared.parameters(), *self.branches.parameters()], "lr": lr * last}


def initialise_(network: nn.Module, generator: torch.Generator) -> None:
    """He initialisation of layers before a ReLU, biases 0.1 in the fully-connected ones as in MDNet, 0 elsewhere.

    The first convolution is scaled to pixels, which spread by about 64 around middle grey.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(_bias(module))
            if name.endswith("conv1"):
                module.weight.data /= PIXEL_SPREAD
        elif isinstance(module, nn.Linear) and module.out_features > 2:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.constant_(_bias(module), 0.1)
        elif isinstance(module, nn.Linear):
            fresh_last_layer_(module, generator)


def fresh_last_layer_(layer: nn.Linear, generator: torch.Generator) -> None:
    """fc6 as at the start of every video: N(0, 0.01), bias 0."""
    nn.init.normal_(layer.weight, std=FC6_STD, generator=generator)
    nn.init.zeros_(_bias(layer))


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    assert layer.bias is not None
    return layer.bias
