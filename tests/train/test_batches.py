"""Batches: what an epoch yields, how it is drawn, and that the fast augmentation equals a slow one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchdfa.errors import UsageError
from torchdfa.train.batches import PADDING, Batches, crop_and_flip

DEVICE = os.environ.get("TORCHDFA_TEST_DEVICE", "cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def data(n: int, size: int = 6, channels: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randint(256, (n, channels, size, size), generator=torch.Generator().manual_seed(1))
    return x.to(torch.uint8), torch.arange(n)


def batches(n: int = 23, batch_size: int = 5, *, seed: int = 0, **changes: Any) -> Batches:
    x, y = data(n)
    options: dict[str, Any] = {
        "mean": MEAN,
        "std": STD,
        "augment": False,
        "shuffle": True,
        "generator": torch.Generator().manual_seed(seed),
        "device": DEVICE,
        "channels_last": False,
    }
    return Batches(x, y, batch_size, **(options | changes))


def labels(epoch: Batches) -> list[int]:
    return [int(label) for _, y in epoch for label in y]


def test_an_epoch_holds_each_image_once_and_keeps_the_last_smaller_batch() -> None:
    epoch = batches(23, 5)
    assert [len(y) for _, y in epoch] == [5, 5, 5, 5, 3]
    assert len(epoch) == 5
    assert sorted(labels(epoch)) == list(range(23))
    assert labels(epoch) != list(range(23))
    assert labels(batches(shuffle=False)) == list(range(23))


def test_images_are_normalised_and_follow_their_labels() -> None:
    x, _ = data(23)
    for images, y in batches(channels_last=True):
        expected = (x[y.cpu()].double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert (images.dtype, images.device.type, y.device.type) == (torch.float32, DEVICE, DEVICE)
        torch.testing.assert_close(images.double().cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment", [False, True])
def test_memory_format_is_as_asked(augment: bool) -> None:
    for channels_last in (False, True):
        images, _ = next(iter(batches(augment=augment, channels_last=channels_last)))
        assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert images.is_contiguous() != channels_last


def slow_crop_and_flip(image: Tensor, top: int, left: int, flip: bool) -> Tensor:
    """One image, one pixel at a time: what lies outside the image is black."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row = i + top - PADDING
                column = (width - 1 - j if flip else j) + left - PADDING
                if 0 <= row < height and 0 <= column < width:
                    out[c, i, j] = image[c, row, column]
    return out


def test_crop_and_flip_equals_the_slow_reference() -> None:
    corners = [(t, s, f) for t in (0, 3, 4, 8) for s in (0, 4, 5, 8) for f in (0, 1)]
    x = data(len(corners))[0][..., :5]  # not square, so that rows and columns cannot be mistaken
    top, left, flip = torch.tensor(corners).unbind(1)
    expected = torch.stack([slow_crop_and_flip(x[k], t, s, bool(f)) for k, (t, s, f) in enumerate(corners)])
    moves = (top.to(DEVICE), left.to(DEVICE), flip.bool().to(DEVICE))
    assert torch.equal(crop_and_flip(x.to(DEVICE), *moves).cpu(), expected)


def test_augmented_images_are_crops_of_black_padded_ones_of_both_orientations_and_all_corners() -> None:
    n, size = 3000, 6
    image = torch.arange(1, size * size + 1).reshape(1, 1, size, size).to(torch.uint8)
    epoch = Batches(
        image.expand(n, 1, size, size),
        torch.arange(n),
        100,
        mean=(0.0,),
        std=(1.0,),
        augment=True,
        shuffle=False,
        generator=torch.Generator().manual_seed(0),
        device=DEVICE,
        channels_last=False,
    )
    seen = torch.cat([x.cpu() for x, _ in epoch]).mul(255).round().to(torch.uint8)
    moves = [(t, s, f) for t in range(2 * PADDING + 1) for s in range(2 * PADDING + 1) for f in (False, True)]
    every = [tuple(slow_crop_and_flip(image[0], *m).flatten().tolist()) for m in moves]
    found = [tuple(x.flatten().tolist()) for x in seen]
    # No window lies wholly in the padding, so all 162 results differ.
    assert len(set(every)) == 162
    assert set(found) == set(every)
    counts = torch.bincount(torch.tensor([every.index(image) for image in found]), minlength=162)
    assert counts.max() < 50  # 18.5 expected of each


def test_the_generator_state_repeats_an_epoch_bit_for_bit() -> None:
    epoch = batches(augment=True)
    list(epoch)
    state = epoch.generator.get_state()
    first = list(epoch)
    other = list(epoch)
    epoch.generator.set_state(state)
    again = list(epoch)
    assert all(torch.equal(a, b) and torch.equal(ya, yb) for (a, ya), (b, yb) in zip(first, again, strict=True))
    assert not torch.equal(first[0][1], other[0][1])


def test_everything_is_drawn_when_the_epoch_starts() -> None:
    epoch = batches(augment=True)
    iterator = iter(epoch)
    state = epoch.generator.get_state()
    list(iterator)
    assert torch.equal(state, epoch.generator.get_state())


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    list(batches(augment=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("n, batch_size, world_size", [(23, 5, 2), (24, 5, 2), (21, 5, 2), (17, 4, 4), (7, 100, 3)])
def test_shards_are_disjoint_cover_the_epoch_and_have_equally_many_batches(
    n: int, batch_size: int, world_size: int
) -> None:
    ranks = [batches(n, batch_size, rank=r, world_size=world_size, augment=True) for r in range(world_size)]
    shards = [labels(rank) for rank in ranks]
    assert sorted(label for shard in shards for label in shard) == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    counts = [[len(y) for _, y in rank] for rank in ranks]
    assert {len(count) for count in counts} == {len(ranks[0])}
    assert all(0 < size <= batch_size + 1 for count in counts for size in count)
    states = [rank.generator.get_state() for rank in ranks]
    assert all(torch.equal(states[0], state) for state in states)


def test_ranks_together_see_the_images_that_one_process_sees() -> None:
    whole = {int(y): x for xs, ys in batches(24, augment=True) for x, y in zip(xs, ys, strict=True)}
    for rank in range(2):
        for xs, ys in batches(24, augment=True, rank=rank, world_size=2):
            assert all(torch.equal(whole[int(y)], x) for x, y in zip(xs, ys, strict=True))


class LargestFloat(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.numel = max(self.numel, out.numel())
        return out


def test_no_float_copy_of_the_data_set_is_made() -> None:
    epoch = batches(augment=True)
    with LargestFloat() as largest:
        list(epoch)
    assert largest.numel == 5 * 3 * 6 * 6
    x, y = data(4)
    options = {"mean": MEAN, "std": STD, "augment": False, "shuffle": False, "channels_last": False}
    same = Batches(x, y, 2, generator=torch.Generator(), device="cpu", **options)  # type: ignore[arg-type]
    assert same.x.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0 \.\. 1"),
        ({"n": 1, "world_size": 2}, "1 images cannot be shared among 2 processes"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (0.5,)}, "need 3 values each"),
    ],
)
def test_wrong_arguments_get_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        batches(**changes)


def test_wrong_tensors_get_one_sentence() -> None:
    x, y = data(4)
    options = {"mean": MEAN, "std": STD, "augment": False, "shuffle": False, "channels_last": False}
    for images, targets, sentence in [
        (x.float(), y, "must be uint8 images"),
        (x, y[:2], "one label for each of the 4"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            Batches(images, targets, 2, generator=torch.Generator(), device="cpu", **options)  # type: ignore[arg-type]
