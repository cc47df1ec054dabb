"""Trained models as one safetensors file that says by itself what it is; loading it runs no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from torchdfa.errors import RunError, UsageError
from torchdfa.train import models, runs
from torchdfa.train.description import Description

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_KEY = "torchdfa"  # of the description in the header of the weights


@dataclass(frozen=True)
class Prediction:
    """What a model takes a photo for; `top5` holds up to five (class, probability), the likeliest first."""

    top5: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        return self.top5[0][0]

    @property
    def probability(self) -> float:
        return self.top5[0][1]

    def __str__(self) -> str:
        return f"{self.label} ({100 * self.probability:.1f} %)"


class TrainedModel(nn.Module):
    """A trained network that takes images as they are and normalises them itself."""

    factor: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, description: Description) -> None:
        super().__init__()
        self.network, self.description = network, description
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (description.mean, description.std)
        )
        # The same two numbers as in training, so that uint8 images give the same floats bit for bit.
        self.register_buffer("factor", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("offset", (-mean / std).float(), persistent=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.description.classes

    @property
    def image_size(self) -> int:
        return self.description.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in 0..1, to logits (N, classes)."""
        size, channels = self.image_size, len(self.description.mean)
        if images.ndim != 4 or images.shape[1:] != (channels, size, size):
            raise UsageError(
                f"images must have shape (N, {channels}, {size}, {size}); got {tuple(images.shape)}; "
                "predict() takes photos of any size"
            )
        pixels = images.float() if images.dtype == torch.uint8 else images.float() * 255
        return self.network(pixels * self.factor + self.offset)

    @torch.inference_mode()
    def predict(self, photo: str | Path | Image) -> Prediction:
        """The class of one photo: a path, or an image opened with Pillow."""
        from torchdfa.train.folder import decode

        pixels = decode(photo, self.image_size, len(self.description.mean))
        was_training = self.training
        self.eval()  # one photo is no batch to take statistics from
        logits = self(pixels[None].to(self.factor.device))
        self.train(was_training)
        return predictions(logits, self.classes)[0]

    def extra_repr(self) -> str:
        return f"{len(self.classes)} classes, {self.image_size}x{self.image_size} pixels"


def predictions(logits: Tensor, classes: Sequence[str]) -> list[Prediction]:
    """One Prediction a row of `logits` (N, classes); equal outputs rank in class order."""
    if not torch.isfinite(logits).all():
        raise RunError("the model's outputs are not finite, so it predicts nothing; train it again")
    probabilities = logits.double().softmax(dim=1)
    values, indices = probabilities.sort(dim=1, descending=True, stable=True)
    pairs = zip(values[:, :5].tolist(), indices[:, :5].tolist(), strict=True)
    return [Prediction(tuple((classes[i], p) for p, i in zip(*row, strict=True))) for row in pairs]


def save(
    folder: Path,
    model: nn.Module,
    *,
    model_name: str,
    model_args: Mapping[str, Any],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights, not the feedback, of a `model` that `models.build(model_name, **model_args)` made.

    model.safetensors holds everything, the description in its header; model.json is that description to read.
    `record` is any JSON-able account of where the weights come from, such as the rule.
    """
    description = Description(
        model_name, dict(model_args), tuple(classes), tuple(mean), tuple(std), image_size, dict(record or {})
    )
    state, plain = model.state_dict(), _on_meta(description).state_dict()
    if missing := sorted(set(plain) - set(state)):
        raise ValueError(f"model must be one that models.build({model_name!r}) made; it lacks {missing[0]!r}")
    tensors = {name: state[name].detach().to("cpu", like.dtype).contiguous() for name, like in plain.items()}
    text = description.to_json()
    runs.write(folder / WEIGHTS, safetensors.torch.save(tensors, {_KEY: text}))
    runs.write(folder / DESCRIPTION, f"{text}\n".encode())


def load_model(path: str | Path) -> TrainedModel:
    """Load a trained model, in eval mode on the CPU, from its run folder or its .safetensors file.

    Weights and sizes are compared with the network before any memory is taken for them. Raises UsageError
    where the file is missing, damaged, no model of torchdfa, or of a newer format.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file} does not exist; pass the folder of a finished run or its {WEIGHTS}")
    try:
        with safe_open(file, framework="pt") as stored:
            description = _description(stored.metadata())
            network = _on_meta(description)
            _check_shapes(stored, network)
            network.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()}, assign=True)  # noqa: SIM118
    except SafetensorError as error:
        raise UsageError(f"{file} is damaged or no safetensors file ({error})") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be used: {error}") from None
    _check_finite(file, network)
    return TrainedModel(network, description).eval()


def _description(metadata: Mapping[str, str] | None) -> Description:
    if not metadata or _KEY not in metadata:
        raise ValueError("its header does not describe a model of torchdfa")
    return Description.from_json(metadata[_KEY])


def _on_meta(description: Description) -> nn.Module:
    """The network with shapes and no memory."""
    try:
        with torch.device("meta"):
            return models.build(description.model, **description.model_args)
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model_args do not make a {description.model} ({reason})") from None


def _check_shapes(stored: Any, network: nn.Module) -> None:
    plain, names = network.state_dict(), set(stored.keys())
    if names != set(plain):
        odd = min(names ^ set(plain))
        raise ValueError(f"its weights are not those of the network it names: {odd!r} is in one of them only")
    for name, like in plain.items():
        part = stored.get_slice(name)
        found, dtype = tuple(part.get_shape()), part.get_dtype()
        if found != tuple(like.shape) or dtype != _DTYPES[like.dtype]:
            raise ValueError(f"{name!r} must be {_DTYPES[like.dtype]} {tuple(like.shape)}; found {dtype} {found}")


_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


def _check_finite(file: Path, network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{file} cannot be used: {name!r} holds NaN or infinity, as after a failed training")
