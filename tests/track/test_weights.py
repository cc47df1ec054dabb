from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from torchdfa.errors import UsageError
from torchdfa.track import state, weights
from torchdfa.track.lrn import PYMDNET_2019, VGG_M
from torchdfa.track.tracker import Tracker

SHAPES = {"conv1": (96, 3, 7, 7), "conv2": (256, 96, 5, 5), "conv3": (512, 256, 3, 3), "fc4": (512, 4608),
          "fc5": (512, 512)}  # fmt: skip


@pytest.fixture(scope="module")
def some():
    return weights.random(0)


def pymdnet(path, early=False, drop=(), **others):
    """A file as PyMDNet writes it."""
    places = {"conv1": "conv1.0", "conv2": "conv2.0", "conv3": "conv3.0", "fc4": "fc4.1" if early else "fc4.0",
              "fc5": "fc5.1"}  # fmt: skip
    state = {}
    for layer, shape in SHAPES.items():
        state[f"{places[layer]}.weight"] = torch.full(others.get(layer, shape), 0.01)
        state[f"{places[layer]}.bias"] = torch.zeros(shape[0])
    torch.save({"shared_layers": {k: v for k, v in state.items() if k not in drop}}, path)
    return path


def test_what_is_saved_is_loaded_with_its_norm(tmp_path, some):
    record = {"context": 1.3}
    weights.save(tmp_path / "w.safetensors", weights.Weights(some.tensors, VGG_M, "mine", record))
    found = weights.load(tmp_path / "w.safetensors")
    assert (found.norm, found.origin, found.record) == (VGG_M, "mine", record)
    assert all(torch.equal(found.tensors[n], v) for n, v in some.tensors.items())
    assert "branches.0.weight" not in found.tensors, "fc6 is a video's own"
    network = found.network()
    assert network.features.norm1.norm == VGG_M
    assert torch.equal(network.state_dict()["shared.fc4.weight"], some.tensors["shared.fc4.weight"])
    assert Tracker(tmp_path / "w.safetensors").weights.origin == "mine"


@pytest.mark.parametrize("early, norm", [(True, VGG_M), (False, PYMDNET_2019)])
def test_the_year_of_a_pymdnet_file_decides_its_norm(tmp_path, early, norm):
    found = weights.load(pymdnet(tmp_path / "mdnet.pth", early))
    assert found.norm == norm
    assert found.tensors["shared.fc4.weight"][0, 0] == pytest.approx(0.01)
    wrong = "pymdnet-2019" if early else "vgg-m"
    with pytest.raises(UsageError, match="was trained with the norm"):
        weights.load(tmp_path / "mdnet.pth", norm=wrong)


def test_vgg_m_is_turned_from_matlabs_order(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    random = np.random.default_rng(0)
    convs = [random.normal(size=s).astype(np.float32) for s in ((7, 7, 3, 96), (5, 5, 96, 256), (3, 3, 256, 512))]
    layers = np.empty((1, 4), dtype=object)
    for k, conv in enumerate(convs):
        layers[0, k] = {"type": "conv", "name": f"conv{k + 1}", "weights": _cell(conv, np.zeros((1, conv.shape[3])))}
    layers[0, 3] = {"type": "relu", "name": "relu"}
    scipy_io.savemat(tmp_path / "vgg.mat", {"layers": layers})
    found = weights.load(tmp_path / "vgg.mat", seed=3)
    assert found.norm == VGG_M
    with pytest.raises(UsageError, match=r"pass --norm vgg-m \(norm='vgg-m'\)"):
        weights.load(tmp_path / "vgg.mat", norm="pymdnet-2019")
    assert found.tensors["features.conv2.weight"][7, 5, 1, 2] == convs[1][1, 2, 5, 7]
    assert torch.equal(found.tensors["shared.fc4.weight"], weights.random(3, VGG_M).tensors["shared.fc4.weight"])


def _cell(*parts):
    cell = np.empty((1, len(parts)), dtype=object)
    for k, part in enumerate(parts):
        cell[0, k] = part
    return cell


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_bad_files_are_refused_by_name(tmp_path, some, capsys):
    def refused(name, content, words):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=words) as caught:
            weights.load(path)
        assert name in str(caught.value)

    refused("none.pth", None, "does not exist; 'torchdfa pretrain FOLDER' makes weights")
    refused("page.pth", b"<!DOCTYPE html><html>", "web page")
    refused("evil.pth", pickle.dumps({"shared_layers": Evil()}), "code in it could run")
    refused("cut.safetensors", b"\x00" * 20, "damaged")
    refused("cut.mat", b"MATLAB" * 20, "no VGG-M")
    refused("w.onnx", b"x", "weights are .safetensors, .pth or .mat")
    assert "code ran" not in capsys.readouterr().out
    torch.save({"state": {}}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="no file of PyMDNet"):
        weights.load(tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"lacks 'conv3\.0\.bias'"):
        weights.load(pymdnet(tmp_path / "m.pth", drop=("conv3.0.bias",)))
    with pytest.raises(UsageError, match="must be one of vgg-m"):
        weights.load(tmp_path / "m.pth", norm="alexnet")


@pytest.mark.parametrize("header", ["[]", '"x"', "[" * 100_000, '{"kind": "mdnet", "format": "1"}',
    *(json.dumps({"kind": "mdnet", "format": 1, "norm": norm, "origin": "", "record": {}}) for norm in
      ({"size": 0, "k": 1, "alpha": 1}, {"size": "5", "k": 1, "alpha": 1}, {"size": 5, "k": 0, "alpha": 1},
       {"size": 5, "k": 1, "alpha": float("nan")}, {"size": 5}, [5])),
])  # fmt: skip
def test_headers_of_any_content_are_refused_by_name(tmp_path, some, header):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(some.tensors, path, {"torchdfa": header})
    with pytest.raises(UsageError, match=r"w\.safetensors"):
        weights.load(path)
    with pytest.raises(UsageError, match=r"w\.safetensors"):
        state.load(path)


def test_entries_that_are_no_tensors_are_named(tmp_path):
    content = torch.load(pymdnet(tmp_path / "m.pth"), weights_only=True)
    content["shared_layers"]["fc5.1.bias"] = 3
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(UsageError, match=r"'fc5\.1\.bias' is no tensor"):
        weights.load(tmp_path / "m.pth")


def test_shapes_that_do_not_fit_are_listed_by_layer(tmp_path, some):
    with pytest.raises(UsageError, match=r"conv1\.weight: \(96, 1, 7, 7\), should be \(96, 3, 7, 7\)"):
        weights.load(pymdnet(tmp_path / "m.pth", conv1=(96, 1, 7, 7)))
    nan = dict(some.tensors, **{"features.conv1.bias": torch.full((96,), float("nan"))})
    weights.save(tmp_path / "n.safetensors", weights.Weights(nan, VGG_M, "bad"))
    with pytest.raises(UsageError, match="NaN"):
        weights.load(tmp_path / "n.safetensors")
