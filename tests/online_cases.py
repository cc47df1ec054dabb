"""Small streams and heads that the tests of torchdfa.online share."""

from __future__ import annotations

import numpy as np
import torch

from torchdfa.online import OnlineHead
from torchdfa.online.store import state


def blobs(rows=120, classes=3, features=8, seed=0):
    """Rows of Gaussian classes that overlap a little, (rows, features) float32, and their labels."""
    random = np.random.default_rng(seed)
    centres, y = 2 * random.standard_normal((classes, features)), random.integers(0, classes, rows)
    return (centres[y] + random.standard_normal((rows, features))).astype(np.float32), y


def small(**parameters) -> OnlineHead:
    return OnlineHead(**{"hidden_layer_sizes": (16,), "learning_rate": 0.02, **parameters})


def same_state(a: OnlineHead, b: OnlineHead) -> bool:
    """Whether everything that is saved is equal, bit for bit."""
    left, right = state(a), state(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
