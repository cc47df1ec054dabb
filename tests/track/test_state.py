from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from torchdfa.errors import UsageError
from torchdfa.track import state
from track.small import frames, network, tracker


@pytest.mark.parametrize("options", [{"rule": "bdfa"}, {"rule": "bp", "keep_momentum": False},
                                     {"rule": "dfa", "moment": "after_first_frame"}])  # fmt: skip
def test_a_tracker_goes_on_with_the_same_boxes(tmp_path, options):
    images, boxes = frames(10)
    whole = tracker(**options)
    whole.init(images[0], boxes[0])
    for image in images[1:6]:
        whole.update(image)
    state.save(tmp_path / "t.safetensors", whole)
    again = state.load(tmp_path / "t.safetensors", network=network(seed=9))
    assert (again.frame, again.score, again.lost) == (6, whole.score, whole.lost)
    for image in images[6:]:
        assert np.array_equal(whole.update(image), again.update(image))
    assert again.counts == whole.counts
    assert again.learner.steps == whole.learner.steps


@pytest.mark.parametrize("change", [{"format": "1"}, {"size": []}, {"config": []}, {"config": {"rule": "hebb"}},
                                    {"norm": {"size": 0, "k": 1, "alpha": 1}}, {"counts": 3}])  # fmt: skip
def test_damaged_values_are_named(tmp_path, change):
    images, boxes = frames(2)
    t = tracker()
    t.init(images[0], boxes[0])
    tensors = {name: value.contiguous() for name, value in state._tensors(t).items()}
    path = tmp_path / "t.safetensors"
    safetensors.torch.save_file(
        tensors, path, {"torchdfa": json.dumps({"format": 1, "kind": "tracker"} | state._values(t) | change)}
    )
    with pytest.raises(UsageError, match=r"t\.safetensors"):
        state.load(path, network=None if "norm" in change else network())


def test_what_is_no_saved_tracker_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(UsageError, match="call init"):
        state.save(path, tracker())
    with pytest.raises(UsageError, match="missing"):
        state.load(path)
    path.write_bytes(b"<html>")
    with pytest.raises(UsageError, match="damaged"):
        state.load(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="no saved tracker"):
        state.load(path)
    images, boxes = frames(2)
    t = tracker()
    t.init(images[0], boxes[0])
    state.save(path, t)
    with pytest.raises(UsageError, match="pass the network"):
        state.load(path)
