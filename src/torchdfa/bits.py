"""Signs as bits: the one place where bit order and padding are defined.

Row-wise, little-endian: element ``j`` of a row is bit ``j % 8`` of byte ``j // 8``; a set bit is +1.
The padding bits of a row's last byte are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def packed_width(n: int) -> int:
    """Bytes that hold ``n`` signs."""
    return (n + 7) // 8


def pack(values: Tensor) -> Tensor:
    """Pack the signs of ``values`` (..., n) into uint8 (..., ceil(n / 8)); sign(0) is +1 (Eq. 9)."""
    n = values.shape[-1]
    positive = F.pad((values >= 0).to(torch.uint8), (0, packed_width(n) * 8 - n))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=values.device)
    return (positive.unflatten(-1, (packed_width(n), 8)) * weights).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack uint8 (..., ceil(n / 8)) into +1 and -1 of ``dtype``, shape (..., n)."""
    codes = torch.arange(256, dtype=torch.int32, device=bits.device).unsqueeze(-1)
    shifts = torch.arange(8, dtype=torch.int32, device=bits.device)
    signs = (codes >> shifts & 1).to(dtype).mul_(2).sub_(1)
    # One lookup for each byte takes a third of the time of shifting and masking its bits.
    return F.embedding(bits.int(), signs).flatten(-2)[..., :n].contiguous()
