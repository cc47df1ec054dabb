"""Tensors with a JSON object beside them as one safetensors file: weights, a tracker in the middle of a sequence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train import runs

FORMAT = 1
_KEY = "torchdfa"


def write(path: Path, kind: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    header = {"format": FORMAT, "kind": kind, **values}
    runs.write(path, safetensors.torch.save(dict(tensors), {_KEY: json.dumps(header)}))


def read(path: Path, kind: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Values and tensors; UsageError where the file is missing, damaged, no ``what`` or of a newer format."""
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is missing, damaged or no safetensors file ({error})") from None
    if not isinstance(values, dict) or values.get("kind") != kind:
        raise UsageError(f"{path} is no {what} (its header does not say so)")
    if not isinstance(values.get("format"), int):
        raise UsageError(f"{path} is damaged: it names no format")
    if values["format"] > FORMAT:
        raise UsageError(f"{path} has format {values['format']}; install a newer torchdfa")
    return values, tensors
