"""Feedback that is not stored: the random matrix of a seed, drawn anew whenever an error is sent."""

from __future__ import annotations

import torch
from torch import Tensor

from torchdfa.counter import random_matrix
from torchdfa.feedback import Feedback
from torchdfa.ops import seed_mm


class SeedFeedback(Feedback):
    """The numbers that random feedback of the same seed and layer name has as buffers, at zero bytes.

    ``key`` is that of the stream, ``factor`` what the scale multiplies raw numbers by, and ``dtype`` the one that
    stored feedback would be rounded to.
    """

    store = "seed"

    def __init__(
        self, shape: tuple[int, ...], key: int, distribution: str, factor: float, dtype: torch.dtype, signs: bool
    ):
        super().__init__()
        self.shape, self.key, self.distribution, self.dtype = shape, key, distribution, dtype
        # As stored signs do, the error is multiplied by the scale; for other numbers the matrix is.
        self.error_scale = float(torch.tensor(factor, dtype=torch.float32)) if signs else None
        self.factor = 1.0 if signs else factor

    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def project(self, error: Tensor, tensors: tuple[Tensor, ...], rows: slice, shape: tuple[int, ...]) -> Tensor:
        if self.error_scale is not None:
            error = error * torch.full((), self.error_scale, dtype=error.dtype, device=error.device)
        first = rows.start or 0
        sent = seed_mm(error, self.key, first, self.shape[1], self.distribution, self.factor, self.dtype)
        return sent.reshape(shape)

    def dense(self) -> Tensor:
        rows, units = self.shape
        raw = random_matrix(rows, units, self.distribution, self.key)
        if self.error_scale is not None:
            return raw * self.error_scale
        return (raw * self.factor).to(self.dtype).float()

    def rms(self) -> float:
        return super().rms() if self.error_scale is None else self.error_scale

    @property
    def logical_bytes(self) -> int:
        return 0
