"""A tracker in the middle of a sequence as one safetensors file, without code in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.track import stored
from torchdfa.track.learner import Learner
from torchdfa.track.lrn import Norm
from torchdfa.track.mdnet import VGGM, MDNet
from torchdfa.track.options import TrackerConfig
from torchdfa.track.regressor import BoxRegressor
from torchdfa.track.tracker import Tracker
from torchdfa.track.weights import Weights


def save(path: str | Path, tracker: Tracker) -> None:
    """Write everything that decides how ``tracker`` goes on; UsageError before its first frame."""
    if not tracker.frame:
        raise UsageError("a tracker without a target has no state to save: call init(image, box) first")
    tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(tracker).items()}
    stored.write(Path(path), "tracker", _values(tracker), tensors)


def _tensors(tracker: Tracker) -> dict[str, Tensor]:
    found = dict(tracker.learner.state())
    found |= {f"positive.{k}": value for k, value in enumerate(tracker.positive)}
    found |= {f"negative.{k}": value for k, value in enumerate(tracker.negative)}
    found |= {f"network.{name}": value for name, value in tracker.network.state_dict().items()}
    found |= {"slope": tracker.regressor.slope, "offset": tracker.regressor.offset, "target": tracker.target}
    found |= {"box": torch.from_numpy(tracker.box.copy()), "generator": tracker.generator.get_state()}
    return {name: value.clone() for name, value in found.items()}


def _values(tracker: Tracker) -> dict[str, Any]:
    network = tracker.network.features
    return {
        "config": tracker.config.to_dict(), "name": tracker.name,
        "norm": network.norm.to_dict() if isinstance(network, VGGM) else None,
        "origin": tracker.weights.origin if tracker.weights else "", "size": list(tracker.size),
        "trans": tracker.trans, "frame": tracker.frame, "score": tracker.score, "lost": tracker.lost,
        "seconds": tracker.seconds, "counts": dict(tracker.counts), "crop": tracker._crop,
        "regresses": tracker.regresses,
        "converted": tracker.learner.converted, "restored": tracker.learner.restored, "steps": tracker.learner.steps,
    }  # fmt: skip


def load(path: str | Path, *, network: MDNet | None = None, **options: Any) -> Tracker:
    """The tracker that ``save`` wrote; it goes on with the same boxes. UsageError where the file is damaged.

    ``network``: an untrained one of the same kind, where features other than VGG-M's were used. ``options``: device,
    precision or threads of the machine it goes on with.
    """
    path = Path(path)
    values, tensors = stored.read(path, "tracker", "saved tracker")
    try:
        return _restored(values, tensors, network, options)
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"{path} is damaged, or its network is another ({error})") from None


def _restored(
    values: dict[str, Any], tensors: dict[str, Tensor], network: MDNet | None, options: dict[str, Any]
) -> Tracker:
    if network is None:
        if values["norm"] is None:
            raise UsageError("this tracker's features are not VGG-M's: pass the network")
        network = MDNet(1, VGGM(Norm(**values["norm"])))
    weights = {n.removeprefix("network."): v for n, v in tensors.items() if n.startswith("network.")}
    network.load_state_dict(weights)
    config = TrackerConfig.from_dict(values["config"] | options)
    tracker = Tracker(None, config, network=network, crop=values["crop"], name=values["name"])
    if values["norm"] is not None:
        tracker.weights = Weights(weights, Norm(**values["norm"]), values["origin"])
    tracker.generator = torch.Generator()
    tracker.generator.set_state(tensors["generator"])
    tracker.target, tracker.box = tensors["target"], tensors["box"].numpy()
    for name in ("trans", "frame", "score", "lost", "seconds", "regresses"):
        setattr(tracker, name, values[name])
    tracker.size = (values["size"][0], values["size"][1])
    tracker.counts.update(values["counts"])
    tracker.positive, tracker.negative = (_list(tensors, kind, tracker.device) for kind in ("positive", "negative"))
    tracker.regressor = BoxRegressor(config.whiten)
    tracker.regressor.slope, tracker.regressor.offset = tensors["slope"], tensors["offset"]
    tracker.learner = Learner(config, network, tracker.device)
    if values["converted"] and not tracker.learner.converted:
        tracker.learner.convert()
    tracker.learner.restore(tensors)
    tracker.learner.restored, tracker.learner.steps = values["restored"], values["steps"]
    return tracker


def _list(tensors: dict[str, Tensor], kind: str, device: torch.device) -> list[Tensor]:
    names = sorted((n for n in tensors if n.startswith(f"{kind}.")), key=lambda n: int(n.split(".")[1]))
    return [tensors[name].to(device) for name in names]
