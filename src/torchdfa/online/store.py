"""A head as one safetensors file that says by itself what it is; loading it runs no code and goes on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.online import parameters
from torchdfa.online.memory import of_sizes
from torchdfa.train import runs

if TYPE_CHECKING:
    from torchdfa.online.head import OnlineHead

H = TypeVar("H", bound="OnlineHead")
FORMAT = 1
_KEY = "torchdfa.online"


def save(head: OnlineHead, path: Path) -> None:
    """Write ``head`` whole or not at all. UsageError before its first batch, RunError where it cannot be written."""
    if not hasattr(head, "network_"):
        raise UsageError("save() before the first batch: there is no state yet; keep the parameters instead")
    tensors = state(head) | {"counts": _counts(head), "scaler.weights": _weights(head)}
    runs.write(path, safetensors.torch.save(tensors, {_KEY: json.dumps(_describe(head))}))


def load(kind: type[H], path: Path) -> H:
    """The head in a file; UsageError where it is missing, damaged, no head, or of a newer format."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist; pass a file that OnlineHead.save wrote")
    try:
        with safe_open(path, framework="pt") as stored:
            head = _empty(kind, (stored.metadata() or {}).get(_KEY), path.stat().st_size)
            _fill(head, {name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged or no safetensors file ({error})") from None
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    return head


def state(head: OnlineHead) -> dict[str, Tensor]:
    """Everything that learning changes, and the feedback, as tensors that share the head's memory."""
    found: dict[str, Tensor] = {}
    for layer in head.network_.layers:
        arrays = {"weight": layer.weight, "bias": layer.bias}
        if layer.momentum is not None:
            arrays |= {"weight_momentum": layer.momentum[0], "bias_momentum": layer.momentum[1]}
        found |= {f"layers.{layer.name}.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        buffers = layer.feedback.state_dict() if layer.feedback is not None else {}
        found |= {f"layers.{layer.name}.feedback.{name}": buffer for name, buffer in buffers.items()}
    scaler = head.scaler_._asdict()
    found |= {f"scaler.{name}": torch.from_numpy(scaler[name]) for name in ("mean", "squares", "inverse")}
    if head.replay_ is not None:
        found |= {
            "replay.rows": torch.from_numpy(head.replay_.rows),
            "replay.came": torch.from_numpy(head.replay_.came),
        }
    return found


def _counts(head: OnlineHead) -> Tensor:
    return torch.tensor([head.updates_, head.undone_, head.replay_.drawn if head.replay_ is not None else 0])


def _weights(head: OnlineHead) -> Tensor:
    return torch.tensor([head.scaler_.weight, head.scaler_.taken_at], dtype=torch.float64)


def _describe(head: OnlineHead) -> dict[str, Any]:
    """Nothing in it grows with the stream."""
    names = getattr(head, "feature_names_in_", None)
    return {
        "format": FORMAT,
        "parameters": plain_parameters(head),
        "features": head.n_features_in_,
        "classes": head.classes_.tolist(),
        "feature_names": None if names is None else names.tolist(),
    }


def plain_parameters(head: OnlineHead) -> dict[str, Any]:
    """What the head was made with, JSON-able."""
    return {name: _plain(value) for name, value in head.get_params().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _empty(kind: type[H], text: str | None, file_bytes: int) -> H:
    """A head of the sizes that a header describes, with none of its values; ValueError where the header is wrong."""
    if text is None:
        raise ValueError("its header does not describe a head")
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise ValueError("its header names no format")
    if value["format"] > FORMAT:
        raise ValueError(f"it has format {value['format']}, and this version reads up to {FORMAT}; install a newer one")
    given, features, labels = (value.get(name) for name in ("parameters", "features", "classes"))
    if not isinstance(given, dict) or not isinstance(labels, list) or not labels or not parameters.is_count(features):
        raise ValueError("its header lacks parameters, features or classes")
    sizes = given.get("hidden_layer_sizes")
    head = kind(**given | {"hidden_layer_sizes": tuple(sizes) if isinstance(sizes, list) else sizes})
    parameters.check(head)
    memory = of_sizes(head, parameters.widths(head, int(str(features)), len(labels)))
    if memory.weights + memory.replay > file_bytes:
        raise ValueError("its header describes a larger head than the file holds")
    head._begin(int(str(features)), _classes(labels))
    if value.get("feature_names") is not None:
        head.feature_names_in_ = np.array(value["feature_names"], dtype=object)
    return head


def _classes(labels: list[Any]) -> Any:
    found = np.array(labels)
    if found.ndim != 1 or found.dtype.kind not in "biufU" or len(set(found.tolist())) < len(labels):
        raise ValueError("its classes are not labels that all differ")
    return found


def _fill(head: OnlineHead, stored: dict[str, Tensor]) -> None:
    """Copy what was stored into the memory of ``head``."""
    counts, weights = stored.pop("counts", None), stored.pop("scaler.weights", None)
    own = state(head)
    if set(own) != set(stored) or counts is None or weights is None:
        odd = min(set(own) ^ set(stored), default="counts")
        raise ValueError(f"its tensors are not those of the head it describes: {odd!r} is in one of them only")
    pairs = {name: (own[name], stored[name]) for name in own}
    pairs |= {"counts": (_counts(head), counts), "scaler.weights": (_weights(head), weights)}
    for name, (target, source) in pairs.items():
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"{name!r} must be {target.dtype} {tuple(target.shape)}")
        if not torch.isfinite(source).all() or (name in _COUNTS and bool((source < 0).any())):
            raise ValueError(f"{name!r} holds values that cannot be")
        target.copy_(source)
    for layer in head.network_.layers:
        if layer.feedback is not None:
            layer.set_feedback(layer.feedback, keep_signs=head.keep_signs)
    head.scaler_ = head.scaler_._replace(weight=float(weights[0]), taken_at=float(weights[1]))
    head.updates_, head.undone_, drawn = (int(value) for value in counts)
    if head.replay_ is not None:
        head.replay_.drawn = drawn


_COUNTS = ("counts", "scaler.weights", "scaler.squares", "scaler.inverse", "replay.came")
