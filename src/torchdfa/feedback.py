"""Feedback stores and how they are filled: random or product (Eq. 7), dense or signs (Eq. 9), and scale.

A feedback matrix D is stored as (K, N): K error elements by N units that receive it, so that a batch of
errors e (rows, K) is projected to ``e @ D`` (rows, N), the D^T e of Eq. 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchdfa.bits import pack, unpack
from torchdfa.errors import ConversionError
from torchdfa.ops import cpu, sign_mm

SignFeedbackT = TypeVar("SignFeedbackT", bound="SignFeedback")

INITS = ("random", "product")
SCALES = ("unit", "he", "match")

# Storage policy: bits are the state. A layer's ±1 copy in the compute dtype is kept beside them up to the first size,
# because nothing beats torch's matmul on it; up to the second where no kernel is quicker than that. Above, sign_mm.
KERNEL_LIMIT_BYTES = 8 * 2**20
UNPACKED_LIMIT_BYTES = 64 * 2**20


class Feedback(nn.Module):
    """A fixed linear map from errors to the units of one layer's input; it holds buffers, never Parameters."""

    store: str
    shape: tuple[int, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """The buffers that ``project`` reads."""
        raise NotImplementedError

    def project(self, error: Tensor, tensors: tuple[Tensor, ...], rows: slice, shape: tuple[int, ...]) -> Tensor:
        """Send ``error`` (..., k), the elements ``rows`` of the whole error, to a tensor of ``shape``.

        ``tensors`` are those of ``self.tensors()``. The first size of ``shape`` may be -1: as many as ``error`` has.
        """
        raise NotImplementedError

    def error_shape(self, rows: slice, shape: tuple[int, ...]) -> tuple[int, ...]:
        """In which shape ``project`` takes the elements ``rows`` of the errors for an input of ``shape``."""
        return math.prod(shape) // self.shape[1], len(range(self.shape[0])[rows])

    def dense(self) -> Tensor:
        """The whole matrix with its scale, in float32."""
        raise NotImplementedError

    def rms(self) -> float:
        """Root mean square of the elements."""
        return _rms(self.dense())

    @property
    def logical_bytes(self) -> int:
        """Bytes of the stored state: what a device must keep."""
        raise NotImplementedError

    @property
    def actual_bytes(self) -> int:
        """Bytes held in memory now, unpacked copies included."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {self.store}"


class DenseFeedback(Feedback):
    """A floating-point matrix (K, N); the scale is inside its elements."""

    store = "dense"
    matrix: Tensor

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.shape = tuple(matrix.shape)
        self.register_buffer("matrix", matrix)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def project(self, error: Tensor, tensors: tuple[Tensor, ...], rows: slice, shape: tuple[int, ...]) -> Tensor:
        matrix = tensors[0][rows].to(error.dtype)
        return (error.reshape(-1, error.shape[-1]) @ matrix).reshape(shape)

    def dense(self) -> Tensor:
        return self.matrix.float()

    @property
    def logical_bytes(self) -> int:
        return self.matrix.numel() * self.matrix.element_size()


class SignFeedback(Feedback):
    """A matrix of +1 and -1 kept as one bit an element, times one scale (Eq. 9 with a recorded factor)."""

    store = "sign bits"
    bits: Tensor
    scale: Tensor
    signs: Tensor | None

    def __init__(self, matrix: Tensor, scale: float, dtype: torch.dtype):
        super().__init__()
        self.shape = tuple(matrix.shape)
        self.register_buffer("bits", pack(matrix))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32, device=matrix.device))
        self.register_buffer("signs", None, persistent=False)
        self.dtype = dtype
        self._keep_copy()

    def _keep_copy(self) -> None:
        if not self._copy_pays(self.dtype):
            self.signs = None
        elif self.signs is None:
            self.signs = self._unpack(self.dtype)

    def _copy_pays(self, dtype: torch.dtype) -> bool:
        size = self.shape[0] * self.shape[1] * dtype.itemsize
        if size <= min(KERNEL_LIMIT_BYTES, UNPACKED_LIMIT_BYTES):
            return True
        return size <= UNPACKED_LIMIT_BYTES and not cpu.beats_torch(self.bits.device, dtype)

    def _unpack(self, dtype: torch.dtype) -> Tensor:
        return unpack(self.bits, self.shape[1], dtype)

    def _apply(self: SignFeedbackT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SignFeedbackT:
        super()._apply(fn, recurse)
        self.dtype = fn(self.bits.new_empty(1, dtype=self.dtype)).dtype
        self._keep_copy()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.signs is not None:  # the bits are the state; their copy follows them
            self.signs.copy_(self._unpack(self.signs.dtype))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.bits if self.signs is None else self.signs, self.scale)

    def project(self, error: Tensor, tensors: tuple[Tensor, ...], rows: slice, shape: tuple[int, ...]) -> Tensor:
        signs, scale = tensors
        scaled = error.reshape(-1, error.shape[-1]) * scale.to(error.dtype)
        if self.signs is None:
            return sign_mm(scaled, signs[rows], self.shape[1]).reshape(shape)
        return (scaled @ signs[rows].to(error.dtype)).reshape(shape)

    def dense(self) -> Tensor:
        return self._unpack(torch.float32) * self.scale.float()

    def rms(self) -> float:
        return float(self.scale)

    @property
    def logical_bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in (self.bits, self.scale))


class ConvFeedback(Feedback):
    """A fixed kernel in place of a convolution's own on the way back (Eq. 5 for a convolution)."""

    store = "dense"
    matrix: Tensor

    def __init__(self, matrix: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d):
        super().__init__()
        self.shape = tuple(matrix.shape)
        self.register_buffer("matrix", matrix)
        dims = len(layer.kernel_size)
        assert not isinstance(layer.padding, str)  # refused at conversion
        self.sliding = (layer.stride, layer.padding, layer.dilation)
        self.geometry = (*self.sliding, False, [0] * dims, layer.groups)

    def error_shape(self, rows: slice, shape: tuple[int, ...]) -> tuple[int, ...]:
        sides = zip(shape[2:], self.shape[2:], *self.sliding, strict=True)
        return shape[0], self.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def project(self, error: Tensor, tensors: tuple[Tensor, ...], rows: slice, shape: tuple[int, ...]) -> Tensor:
        size = (error.shape[0], *shape[1:])
        shape_only = error.new_empty(1).expand(size)  # the backward reads the input's shape, not its values
        kernel = tensors[0].to(error.dtype)
        grads = torch.ops.aten.convolution_backward(
            error, shape_only, kernel, None, *self.geometry, [True, False, False]
        )
        return grads[0]

    def dense(self) -> Tensor:
        return self.matrix.float()

    @property
    def logical_bytes(self) -> int:
        return self.matrix.numel() * self.matrix.element_size()


def chain_product(weights: list[Tensor]) -> Tensor | None:
    """W_L ... W_{i+1} (Eq. 7) for ``weights`` ordered from layer i+1 to the output layer: (K, N_i), at least float32.

    None where the widths do not fit, because something between the layers changes them (GLU, flatten).
    """
    product = at_least_float32(weights[-1])
    for weight in reversed(weights[:-1]):
        if product.shape[1] != weight.shape[0]:
            return None
        product = product @ at_least_float32(weight)
    return product


def at_least_float32(weight: Tensor) -> Tensor:
    """``weight`` detached, in float32 or in its own dtype where that is wider."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _rms(matrix: Tensor) -> float:
    return float(matrix.double().square().mean().sqrt())


def scale_factor(raw: Tensor, scale: float | str, product: Tensor | None, fan_in: int) -> float:
    """The factor that brings ``raw`` (K, N) to ``scale``.

    "unit" keeps the raw values. "he" gives elements of variance 2 / ``fan_in`` (He et al., 2015), what the
    initial weights of a layer in the feedback's place would have. "match" gives the norm of ``product``.
    A number multiplies the raw values.
    """
    if scale == "unit":
        return 1.0
    if not isinstance(scale, str):
        return float(scale)
    if scale == "he":
        return math.sqrt(2 / fan_in) / _rms(raw)
    if product is None:
        raise ConversionError(
            'scale="match" needs the product of fully-connected weights from each converted layer to the output; '
            'here a convolution or an unknown path lies between. Pass scale="he", "unit" or a number.'
        )
    return 1.0 if raw is product else _rms(product) / _rms(raw)


def require_usable(product: Tensor, site: str) -> None:
    """Raise if a product of weights cannot serve as feedback."""
    if not bool(torch.isfinite(product).all()):
        raise ConversionError(f"the product of the weights from {site!r} to the output is not finite.")
    if not bool(product.any()):
        raise ConversionError(
            f"the product of the weights from {site!r} to the output is zero (zero-initialised layer?), so it "
            'carries no feedback. Use init="random" with scale="he", or initialise the weights first.'
        )
