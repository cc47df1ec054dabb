"""The transforms of Winograd's convolutions: the plain ones by their definition, the compiled ones by those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchdfa.ops import tiles, tiles_cpu, tiles_torch

COMPILED = tiles_cpu.load()
needs_the_library = pytest.mark.skipif(isinstance(COMPILED, str), reason=f"no compiled transforms here: {COMPILED}")
SIDES = st.integers(1, 13)
CHANNELS = st.sampled_from([8, 16, 40])


@pytest.fixture
def loader(forget: Callable[[Any], None]) -> None:
    forget(tiles_cpu)


def assert_equal(name: str, *arguments: object, **named: object) -> None:
    found, expected = (getattr(where, name)(*arguments, **named) for where in (COMPILED, tiles_torch))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def formed(shape: tuple[int, ...], form: str) -> Tensor:
    x = torch.randn(shape)
    if form == "expanded":
        return torch.randn(1, shape[1], 1, 1).expand(shape)
    return x.contiguous(memory_format=torch.channels_last) if form == "last" else x


FORMS = st.sampled_from(["first", "last", "expanded"])


@needs_the_library
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3), CHANNELS, SIDES, SIDES, FORMS, st.sampled_from([(0, 1), (1, 1), (0, 2)]), st.integers(1, 3))
def test_tiles_of_images(n, channels, height, width, form, border_and_stride, threads):
    border, stride = border_and_stride
    taps = 3 if stride == 1 else 5
    size = tuple((side + 2 * border - taps) // stride + 1 for side in (height, width))
    if min(size) < 1:
        return
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal("image_tiles", formed((n, channels, height, width), form), 4, size, border=border, stride=stride)
    finally:
        torch.set_num_threads(was)


@needs_the_library
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), CHANNELS, SIDES, SIDES, FORMS)
def test_images_and_their_gradients(n, channels, height, width, form):
    products = torch.randn(36, n * -(-height // 4) * -(-width // 4), channels)
    assert_equal("images", products, 4, (n, height, width))
    assert_equal("gradient_tiles", formed((n, channels, height, width), form), 4)


@needs_the_library
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), CHANNELS, FORMS, st.booleans())
def test_kernels_and_their_gradients(kernels, channels, form, turned):
    assert_equal("kernel_tiles", formed((kernels, channels, 3, 3), form), 4, turned=turned)
    assert_equal("kernels", torch.randn(36, kernels, channels), 4)


@needs_the_library
def test_pixels_that_are_not_there_are_neither_read_nor_written():
    """Around an image that is a part of a larger one lie NaN, and around the output a mark."""
    around = torch.full((2, 9, 9, 8), torch.nan)
    around[:, 2:7, 2:7] = torch.randn(2, 5, 5, 8)
    inside = around[:, 2:7, 2:7].permute(0, 3, 1, 2)
    side = tiles_cpu._image(around[:, 2:7, 2:7], 4, 1, (-1, -1))
    out = torch.full((36, 8, 8), 7.0)
    COMPILED._run(tiles_cpu._IMAGE_TILES, side, tiles_cpu._planes(out, (2, 2, 2)), (2, 2, 2), 8)
    torch.testing.assert_close(out, tiles_torch.image_tiles(inside, 4, (5, 5), border=1), rtol=1e-4, atol=1e-4)
    marked = torch.full((2, 9, 9, 8), 7.0)
    products = torch.randn(36, 8, 8)
    COMPILED._run(
        tiles_cpu._IMAGES,
        tiles_cpu._planes(products, (2, 2, 2)),
        tiles_cpu._image(marked[:, 2:7, 2:7], 4),
        (2, 2, 2),
        8,
    )
    torch.testing.assert_close(
        marked[:, 2:7, 2:7].permute(0, 3, 1, 2), tiles_torch.images(products, 4, (2, 5, 5)), rtol=1e-4, atol=1e-4
    )
    marked[:, 2:7, 2:7] = 7.0
    assert torch.equal(marked, torch.full_like(marked, 7.0))


@needs_the_library
def test_what_the_library_takes():
    like = torch.zeros(1)
    assert tiles.transforms(4, like, 64, 128) is COMPILED
    assert tiles.transforms(2, like, 64, 128) is tiles_torch
    assert tiles.transforms(4, like, 64, 100) is tiles_torch
    assert tiles.transforms(4, like.double(), 64) is tiles_torch
    assert tiles.transforms(4, like.to("meta"), 64) is tiles_torch


def test_without_the_library_torch_computes_it(loader, reason):
    assert tiles.transforms(4, torch.zeros(1), 64) is tiles_torch
    assert reason in tiles_cpu.load()


@needs_the_library
def test_a_wrong_library_fails_its_self_test(loader, monkeypatch, caplog):
    monkeypatch.setattr(tiles_cpu.Kernel, "gradient_tiles", lambda self, grad, m: tiles_torch.gradient_tiles(-grad, m))
    assert "its gradient_tiles fails its self-test" in tiles_cpu.load()
    assert "plain torch" in caplog.messages[0]


@pytest.mark.parametrize("m", [2, 4])
def test_a_convolution_by_the_definition(m):
    """One tile of outputs: the transformed image times the transformed kernel, transformed back (Eq. 8 there)."""
    x, weight = torch.randn(1, 1, m + 2, m + 2, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    products = tiles_torch.image_tiles(x, m, (m, m), border=0) * tiles_torch.kernel_tiles(weight, m)
    expected = torch.tensor(
        [[(x[0, 0, r : r + 3, c : c + 3] * weight[0, 0]).sum() for c in range(m)] for r in range(m)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(tiles_torch.images(products, m, (1, m, m))[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [2, 4])
def test_adjoints(m):
    """<A x, y> = <x, A^T y> for both transforms that are run backwards."""
    products = torch.randn((m + 2) ** 2, 12, 3, dtype=torch.float64)
    image = torch.randn(2, 3, 2 * m, 3 * m, dtype=torch.float64)
    forth = (tiles_torch.images(products, m, (2, 2 * m, 3 * m)) * image).sum()
    torch.testing.assert_close(forth, (products * tiles_torch.gradient_tiles(image, m)).sum())
    weight = torch.randn(12, 3, 3, 3, dtype=torch.float64)
    forth = (tiles_torch.kernel_tiles(weight, m) * products).sum()
    torch.testing.assert_close(forth, (weight * tiles_torch.kernels(products, m)).sum())
