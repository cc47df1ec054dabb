"""Multi-domain pretraining (Nam & Han 2016, section 3.2): the layers shared by all clips, one last layer for each.

Every step draws from a generator of its own, seeded with the run's seed and the step's number; so a resumed run goes
on bit for bit with no more than weights, momentum and the step in its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchdfa.counter import stream_key
from torchdfa.errors import RunError, UsageError
from torchdfa.track import weights as weights_file
from torchdfa.track.augment import vary
from torchdfa.track.checks import use_bf16
from torchdfa.track.clips import find_clips
from torchdfa.track.crops import crop, prepared
from torchdfa.track.frames import pixels
from torchdfa.track.lrn import NORMS
from torchdfa.track.mdnet import CROP, VGGM, MDNet, initialise_
from torchdfa.track.pretrain_options import MACHINE, PretrainConfig
from torchdfa.track.samples import Spread, draw_overlapping
from torchdfa.track.sequences import Sequence
from torchdfa.track.stopping import TrackingStopped
from torchdfa.train import checkpoint, machine, runs
from torchdfa.train.stop import StopSignals

POSITIVE, NEGATIVE = Spread("gaussian", 0.1, 1.2, 1.1), Spread("uniform", 1.0, 1.2, 1.1)
WEIGHTS = "weights.safetensors"
_STATE = ("settings", "clips", "step", "model", "optimizer")


class Pretraining:
    """A pretraining in progress; ``fit`` goes on from wherever it stands."""

    def __init__(
        self, config: PretrainConfig, clips: Seq[Sequence], features: VGGM | None = None, **sizes: int
    ) -> None:
        self.config, self.clips = config, list(clips)
        self.device = torch.device(machine.choose_device(config.device))
        self.bf16 = use_bf16(config.precision, self.device.type)
        self.network = _network(config, len(self.clips), features, sizes).to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            list(self.network.parameter_groups(config.lr, config.last)), lr=config.lr, momentum=config.momentum,
            weight_decay=config.weight_decay,
        )  # fmt: skip
        self.step = 0

    @property
    def steps(self) -> int:
        return self.config.cycles * len(self.clips)

    def take_step(self) -> tuple[float, float]:
        """One step on one clip; returns the loss and the share of positives that rank first (precision)."""
        generator = torch.Generator().manual_seed(stream_key(self.config.seed, f"pretrain/{self.step}"))
        branch = self._branch()
        positive, negative = self._batch(self.clips[branch], generator)
        self.network.train()
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # of dropout
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                scores = self.network(torch.cat([positive, negative]), branch).float()
        labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).long().to(self.device)
        loss = F.cross_entropy(scores, labels)
        if not torch.isfinite(loss):
            raise RunError(f"the loss of step {self.step} is not finite; take a smaller --lr or --precision fp32")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        first = scores[:, 1].topk(len(positive)).indices
        return float(loss.detach()), float((first < len(positive)).float().mean())

    def _branch(self) -> int:
        """Each cycle goes through the clips in an order of its own."""
        cycle, place = divmod(self.step, len(self.clips))
        order = torch.Generator().manual_seed(stream_key(self.config.seed, f"pretrain/cycle/{cycle}"))
        return int(torch.randperm(len(self.clips), generator=order)[place])

    def _batch(self, clip: Sequence, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        config, found = self.config, ([], [])  # type: tuple[PretrainConfig, tuple[list[Tensor], list[Tensor]]]
        order = torch.randperm(len(clip), generator=generator).tolist()
        for frame in order:
            if len(found[0]) == config.frames:
                break
            self._examples(clip, frame, generator, found)
        if not found[0]:
            raise RunError(f"the clip {clip.name} has no frame around whose target crops can be drawn; leave it out")
        return torch.cat(found[0]), torch.cat(found[1])

    def _examples(
        self, clip: Sequence, frame: int, generator: torch.Generator, found: tuple[list[Tensor], list[Tensor]]
    ) -> None:
        config = self.config
        image = prepared(pixels(clip.images[frame]), self.device)
        box = torch.from_numpy(clip.boxes[frame])
        size = (image.shape[3], image.shape[2])
        n, m = config.positives // config.frames, config.negatives // config.frames
        near = draw_overlapping(POSITIVE, box, n, size, generator, low=0.7)
        far = draw_overlapping(NEGATIVE, box, m, size, generator, high=0.5)
        if len(near) < n or len(far) < m:
            return  # a target at the edge, or as large as the image: another frame serves
        crops = crop(image, torch.cat([near, far]), config.context, CROP)
        crops = vary(crops, generator) if config.augment else crops
        crops = crops.contiguous(memory_format=torch.channels_last)
        found[0].append(crops[:n])
        found[1].append(crops[n:])

    def state(self) -> dict[str, Any]:
        return {
            "settings": self.config.to_dict(), "clips": [clip.name for clip in self.clips], "step": self.step,
            "model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; UsageError where its settings or clips are others."""
        _require_same(self.config, self.clips, state, "the checkpoint")
        try:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except Exception as error:  # any part may have been changed to anything
            raise UsageError(f"the checkpoint does not fit its run and is not used ({error})") from None


def _require_same(config: PretrainConfig, clips: Seq[Sequence], found: dict[str, Any], what: str) -> None:
    """UsageError where a checkpoint or config.json is of another pretraining; it may be of another machine."""
    mine, theirs = config.to_dict(), found.get("settings")
    if not isinstance(theirs, dict) or not isinstance(found.get("clips"), (dict, list)):
        raise UsageError(f"{what} is damaged: it names no settings and clips; take another --out")
    decisive = [key for key in mine if key not in MACHINE]
    others = [f"{key} {theirs.get(key)}, not {mine[key]}" for key in decisive if theirs.get(key) != mine[key]]
    if others:
        raise UsageError(f"{what} has other settings ({'; '.join(others)}); take another --out")
    if list(found["clips"]) != [clip.name for clip in clips]:
        raise UsageError(f"{what} has other clips ({', '.join(map(str, found['clips']))}); take another --out")


def _network(config: PretrainConfig, branches: int, features: VGGM | None, sizes: dict[str, int]) -> MDNet:
    network = MDNet(branches, features or VGGM(NORMS[config.norm]), **sizes)
    initialise_(network, torch.Generator().manual_seed(config.seed))
    if config.start is not None:
        network.load_state_dict(
            weights_file.load(config.start, norm=config.norm, seed=config.seed).tensors, strict=False
        )
    return network


def pretrain(
    roots: Seq[str | Path],
    out: str | Path,
    config: PretrainConfig | None = None,
    *,
    show: Callable[[int, int, float, float], None] = lambda step, steps, loss, precision: None,
    seconds_between_checkpoints: float = 120.0,
    deadline: float | None = None,
) -> Path:
    """Pretrain on the clips under ``roots`` and write ``out``/weights.safetensors; returns its path.

    Goes on from ``out``/checkpoint.pt where that stands, and does nothing where the weights do; UsageError where
    either is of other settings or clips. ``show`` is called after each step. Raises TrackingStopped after saving, at
    Ctrl-C, SIGTERM or ``deadline`` (Unix time).
    """
    config, out, clips = config or PretrainConfig(), Path(out), find_clips([Path(root) for root in roots])
    if (out / WEIGHTS).is_file():
        return _finished(out, config, clips)
    runs.make(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    run = Pretraining(config, clips)
    with runs.hold(out), StopSignals(deadline) as signals:
        if (out / runs.CHECKPOINT).is_file():
            run.restore(checkpoint.load(out / runs.CHECKPOINT, _STATE))
            _forget_after(out, run.step)
        else:
            _write_config(out, run)
        _fit(run, out, signals, show, seconds_between_checkpoints)
    return _finish(run, out)


def _finished(out: Path, config: PretrainConfig, clips: Seq[Sequence]) -> Path:
    described = out / runs.CONFIG
    if not described.is_file():
        raise UsageError(f"{out} holds weights without the {runs.CONFIG} of their pretraining; take another --out")
    _require_same(config, clips, runs.read_json(described), f"the finished pretraining in {out}")
    return out / WEIGHTS


def _fit(run: Pretraining, out: Path, signals: StopSignals, show: Callable[..., None], seconds: float) -> None:
    saved = time.monotonic()
    while run.step < run.steps:
        began = time.perf_counter()
        loss, precision = run.take_step()
        figures = {"step": run.step, "loss": loss, "precision": precision, "seconds": time.perf_counter() - began}
        runs.append(out / runs.METRICS, figures)
        show(run.step, run.steps, loss, precision)
        if signals.signum or time.monotonic() - saved > seconds:
            checkpoint.save(out / runs.CHECKPOINT, run.state())
            saved = time.monotonic()
        if signals.signum:
            raise TrackingStopped(
                signals.signum, out, f"stopped at step {run.step} of {run.steps}; the same command goes on"
            )


def _write_config(out: Path, run: Pretraining) -> None:
    clips = {clip.name: len(clip) for clip in run.clips}
    value = {"format": runs.FORMAT, "settings": run.config.to_dict(), "clips": clips, "bf16": run.bf16,
             "machine": machine.describe()}  # fmt: skip
    runs.write_json(out / runs.CONFIG, value)
    runs.write_lines(out / runs.METRICS, [])


def _forget_after(out: Path, step: int) -> None:
    lines = runs.read_lines(out / runs.METRICS)
    runs.write_lines(out / runs.METRICS, [line for line in lines if line["step"] <= step])


def _finish(run: Pretraining, out: Path) -> Path:
    lines = runs.read_lines(out / runs.METRICS)
    last = lines[-len(run.clips) :]
    figures = {
        "steps": run.step, "clips": len(run.clips), "loss": _mean(last, "loss"), "precision": _mean(last, "precision"),
        "seconds": sum(line["seconds"] for line in lines),
    }  # fmt: skip
    record = {"pretrain": run.config.to_dict(), "clips": [clip.name for clip in run.clips], "result": figures}
    found = weights_file.of_network(
        run.network, f"pretrained on {len(run.clips)} clips, seed {run.config.seed}", record
    )
    runs.write_json(out / runs.RESULT, figures)
    weights_file.save(out / WEIGHTS, found)
    return out / WEIGHTS


def _mean(lines: list[dict[str, Any]], key: str) -> float:
    return sum(line[key] for line in lines) / max(1, len(lines))
