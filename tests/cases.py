"""The model zoo of the tests: small networks of every shape that people convert."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Handwritten(nn.Module):
    """Layers are attributes called in forward, and registered in another order than they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(8, 5)
        self.fc1 = nn.Linear(4 * 9, 8)
        self.conv = nn.Conv2d(1, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = x.view(x.size(0), -1)
        return self.fc2(nn.functional.dropout(torch.relu(self.fc1(x)), 0.0, self.training))


class Vgg(nn.Module):
    """features / classifier, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Linear(36, 16),
            nn.ReLU(inplace=True),
            nn.Dropout(0.0),
            nn.Linear(16, 12),
            nn.ReLU(True),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class TwoBranch(nn.Module):
    """A shared layer, then two outputs: actor and critic."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
        self.shared = nn.Linear(144, 16)
        self.actor = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
        self.critic = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.shared(self.trunk(x)))
        return self.actor(h), self.critic(h)


class Untraceable(nn.Module):
    """Control flow on data: its code cannot be traced, so converting it takes an example (`batch`)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc1, self.fc2 = nn.Linear(144, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.sum() > 1e9:
            x = x * 0
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Residual(nn.Module):
    """A block of two convolutions with a skip connection, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.b(torch.relu(self.a(x)))))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, 12, bias=False),
        nn.PReLU(),
        nn.Linear(12, 5),
        nn.LogSoftmax(-1),
    )


# Each takes a batch (B, 1, 8, 8); the names are those of the head's layers.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], bool]] = {
    "sequential": (sequential, ("6", "9", "11"), True),
    "vgg": (Vgg, ("classifier.0", "classifier.3", "classifier.5"), True),
    "handwritten": (Handwritten, ("fc1", "fc2"), True),
    "mlp": (mlp, ("1", "3", "5"), False),
    "untraceable": (Untraceable, ("fc1", "fc2"), True),
    "residual": (Residual, ("head.1", "head.3"), True),
}


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name][0]()


def batch(size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(5, (size,), generator=generator)
