"""MDNet's weights before tracking: convolutions, fc4 and fc5, with the response norm they were trained with.

Files: this library's .safetensors; PyMDNet's .pth (2017 and 2019 differ in the norm); VGG-M's imagenet-vgg-m.mat.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchdfa.errors import UsageError
from torchdfa.track import stored
from torchdfa.track.lrn import NORMS, PYMDNET_2019, VGG_M, Norm
from torchdfa.track.mdnet import VGGM, MDNet, initialise_

_CONVS = tuple(f"features.conv{k}.{part}" for k in (1, 2, 3) for part in ("weight", "bias"))
_HIDDEN = tuple(f"shared.{layer}.{part}" for layer in ("fc4", "fc5") for part in ("weight", "bias"))


@dataclass(frozen=True)
class Weights:
    """Tensors by name ("features.conv1.weight", "shared.fc4.bias", ...), and the norm that goes with them.

    ``origin`` says in words what they are; ``record`` is a JSON-able account, such as of the pretraining.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    norm: Norm
    origin: str
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    def network(self) -> MDNet:
        """An MDNet with one branch that holds them; its fc6 is fresh for every video anyway."""
        network = _blank(self.norm)
        network.load_state_dict(self.tensors, strict=False)
        return network


def random(seed: int, norm: Norm = PYMDNET_2019) -> Weights:
    """Untrained weights: what pretraining starts from, and a tracker that works poorly."""
    network = _blank(norm)
    initialise_(network, torch.Generator().manual_seed(seed))
    return of_network(network, f"untrained, seed {seed}")


def _blank(norm: Norm) -> MDNet:
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation, which is replaced, draws numbers
        return MDNet(1, VGGM(norm))


def of_network(network: MDNet, origin: str, record: Mapping[str, Any] | None = None) -> Weights:
    """The weights of a network without its last layers."""
    kept = (*_CONVS, *_HIDDEN)
    state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items() if name in kept}
    assert isinstance(network.features, VGGM)
    return Weights(state, network.features.norm, origin, dict(record or {}))


def save(path: Path, weights: Weights) -> None:
    """Write them as safetensors; the norm and the account stand in the header."""
    values = {"norm": weights.norm.to_dict(), "origin": weights.origin, "record": weights.record}
    tensors = {name: value.float().contiguous() for name, value in weights.tensors.items()}
    stored.write(path, "mdnet", values, tensors)


def load(path: str | Path, *, norm: str | None = None, seed: int = 0) -> Weights:
    """Weights from a file of any of the three kinds.

    Args:
        norm: ``"vgg-m"`` or ``"pymdnet-2019"``, where it should be checked.
        seed: of the fully-connected layers that VGG-M's file does not bring.

    Raises:
        UsageError: for a file that is absent, damaged, of another kind or of other shapes, and where its norm is
            not the one asked for: wrong norms load without a sign and track worse.
    """
    path = Path(path)
    if norm is not None and norm not in NORMS:
        raise UsageError(f"the norm {norm!r} must be one of {', '.join(NORMS)}")
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist; 'torchdfa pretrain FOLDER' makes weights, and the page on tracking says which "
            "files can be loaded"
        )
    with path.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doc", b"<html", b"<?xml")):
            raise UsageError(f"{path} is a web page, not weights: the download went wrong; fetch the file itself")
    readers = {".safetensors": _safetensors, ".pth": _pth, ".pt": _pth, ".mat": _mat}
    if path.suffix not in readers:
        raise UsageError(f"{path}: weights are .safetensors, .pth or .mat files")
    found = readers[path.suffix](path)
    if norm is not None and found.norm != NORMS[norm]:
        raise UsageError(
            f"{path} was trained with the norm {found.norm}, and {norm!r} is {NORMS[norm]}; {_way(found.norm)}"
        )
    _check(path, found.tensors)
    return Weights(_completed(found.tensors, found.norm, seed), found.norm, found.origin, found.record)


def _way(norm: Norm) -> str:
    named = [f"pass --norm {name} (norm={name!r})" for name, value in NORMS.items() if value == norm]
    return named[0] if named else "that norm has no name here: load it without norm="


@dataclass
class _Found:
    tensors: dict[str, Tensor]
    norm: Norm
    origin: str
    record: dict[str, Any] = field(default_factory=dict)


def _safetensors(path: Path) -> _Found:
    header, tensors = stored.read(path, "mdnet", "file of MDNet weights")
    try:
        return _Found(tensors, Norm(**header["norm"]), str(header["origin"]), dict(header["record"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error})") from None


def _pth(path: Path) -> _Found:
    """PyMDNet: the place of fc4 in its block tells the year, and the year the norm."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can fail in any way within torch's reader
        raise UsageError(
            f"{path} is damaged or holds more than tensors, and is not loaded: code in it could run"
        ) from None
    state = content.get("shared_layers") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or "conv1.0.weight" not in state:
        raise UsageError(f"{path} is no file of PyMDNet: it should hold 'shared_layers' with 'conv1.0.weight'")
    early = "fc4.1.weight" in state  # 2017: dropout before fc4
    places = {f"conv{k}": f"conv{k}.0" for k in (1, 2, 3)} | {"fc4": "fc4.1" if early else "fc4.0", "fc5": "fc5.1"}
    tensors = {}
    for name in (*_CONVS, *_HIDDEN):
        layer, part = name.split(".")[1:]
        place = f"{places[layer]}.{part}"
        if place not in state:
            raise UsageError(f"{path} is no file of PyMDNet: it lacks '{place}'")
        if not isinstance(state[place], Tensor):
            raise UsageError(f"{path} is no file of PyMDNet: '{place}' is no tensor")
        tensors[name] = state[place].float()
    return _Found(tensors, VGG_M if early else PYMDNET_2019, f"PyMDNet of {2017 if early else 2019}, {path.name}")


def _mat(path: Path) -> _Found:
    from scipy.io import loadmat

    try:
        layers = np.atleast_1d(loadmat(path, simplify_cells=True)["layers"])
        convs = [layer for layer in layers if layer.get("type") == "conv"][:3]
        tensors = {}
        for k, layer in enumerate(convs, 1):
            kernel, bias = layer["weights"] if "weights" in layer else (layer["filters"], layer["biases"])
            # MATLAB keeps (row, column, input, output).
            tensors[f"features.conv{k}.weight"] = torch.from_numpy(
                np.array(kernel).transpose(3, 2, 0, 1).copy()
            ).float()
            tensors[f"features.conv{k}.bias"] = torch.from_numpy(np.array(bias).reshape(-1)).float()
    except Exception:  # as above, within scipy's reader
        raise UsageError(f"{path} is no VGG-M in MATLAB's format: it should hold 'layers' with conv weights") from None
    return _Found(tensors, VGG_M, f"VGG-M, {path.name}")


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    expected = {n: tuple(v.shape) for n, v in _on_meta().state_dict().items() if n in (*_CONVS, *_HIDDEN)}
    faults = [
        f"{name}: {tuple(tensors[name].shape) if name in tensors else 'missing'}, should be {shape}"
        for name, shape in expected.items()
        if (name in _CONVS or name in tensors) and (name not in tensors or tuple(tensors[name].shape) != shape)
    ]
    if faults:
        raise UsageError(f"{path} does not fit MDNet: {'; '.join(faults)}")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UsageError(f"{path} cannot be used: {name} holds NaN or infinity, as after a failed training")


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return MDNet(1)


def _completed(tensors: dict[str, Tensor], norm: Norm, seed: int) -> dict[str, Tensor]:
    """With fresh fully-connected layers where the file has none (VGG-M)."""
    fresh = random(seed, norm).tensors
    return {name: tensors.get(name, fresh[name]) for name in fresh}
