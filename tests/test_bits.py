from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchdfa.bits import pack, packed_width, unpack


def test_bit_order_and_padding_are_as_documented() -> None:
    signs = torch.tensor([[1.0, -1, -1, -1, -1, -1, -1, -1, -1, 1]])
    assert pack(signs).tolist() == [[0b00000001, 0b00000010]]


def test_zero_is_positive_and_minus_zero_too() -> None:
    assert pack(torch.tensor([0.0, -0.0, -1e-45])).tolist() == [0b011]


@given(st.integers(0, 4), st.integers(0, 70), st.integers(0, 2**31))
def test_unpack_undoes_pack(rows: int, n: int, seed: int) -> None:
    values = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    bits = pack(values)
    assert bits.shape == (rows, packed_width(n))
    assert bits.dtype == torch.uint8
    assert torch.equal(unpack(bits, n), torch.where(values >= 0, 1.0, -1.0))


def test_one_bit_an_element() -> None:
    """The paper's -96.9 % against 32-bit numbers."""
    signs = torch.ones(10, 512)
    assert 1 - pack(signs).numel() / (signs.numel() * 4) == 0.96875
