"""The training loop: plain PyTorch on Lightning Fabric, which brings precision, devices and several processes."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

import torchdfa
from torchdfa.errors import RunError
from torchdfa.train import checkpoint, im2col, models, runs, winograd
from torchdfa.train.batches import Batches
from torchdfa.train.config import TrainConfig, learning_rate
from torchdfa.train.datasets import Data
from torchdfa.train.metrics import metrics
from torchdfa.train.progress import Display, Stopwatch
from torchdfa.train.stop import Stopped, StopSignals

# Every so many steps the loss is read off the device, and several processes agree whether to stop.
STEPS_BETWEEN_CHECKS = 20
SECONDS_BETWEEN_CHECKPOINTS = 300.0
# Writing a checkpoint of VGG-16 takes half a second; on a GPU an epoch of few images takes little more.
SECONDS_BETWEEN_EPOCHS_SAVED = 10.0
# A run has exploded when its mean loss between two checks is above this multiple of ln(classes), what guessing costs.
# VGG-16 in its first 20 steps of CBDFA product: 1.1 times at the default rate, 1.6 at 0.01; with raw +-1 feedback, 7e5.
EXPLODED = 10.0


class Diverged(RunError):
    """The loss exploded, or weights or outputs are not finite."""


class Trainer:
    """A run in progress; `fit` trains on from wherever it stands. `checkpoint` saves and restores its attributes."""

    def __init__(
        self, config: TrainConfig, data: Data, fabric: Fabric, folder: Path, data_digest: str, *, convolutions: str
    ) -> None:
        self.config, self.data, self.fabric, self.folder = config, data, fabric, folder
        self.data_digest = data_digest  # sha256 of the images, by which a resumed run knows them again
        self.net = build(config, data)
        if convolutions == "winograd":
            winograd.use_(self.net)
        elif convolutions == "im2col":
            im2col.use_(self.net)
        groups = parameter_groups(self.net, config.conv_lr_factor)
        sgd = torch.optim.SGD(groups, config.base_lr, config.momentum, weight_decay=config.weight_decay, fused=True)
        model: Any = torch.compile(self.net) if config.compile else self.net
        self.model, self.optimizer = fabric.setup(model, sgd)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.batches = self._batches(data.train_x, data.train_y, train=True)
        self.test_batches = self._batches(data.test_x, data.test_y, train=False)
        self.epoch = 0  # finished epochs
        self.done = 0  # finished steps of the present epoch
        self.epoch_rng = self.generator.get_state()  # of the sampler, as the present epoch began
        self.sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)  # loss, hits, images of the epoch
        self.recent = torch.zeros(2, device=fabric.device)  # loss and steps since the last check
        self.clock = Stopwatch(fabric.device)  # training time of the run
        self.epoch_began = 0.0  # on that clock
        self.outputs: Tensor | None = None  # of the last test, (N, classes) on the CPU
        self._saved_at = time.monotonic()
        torch.manual_seed(config.seed + fabric.global_rank)  # dropout differs between the processes

    def _batches(self, x: Tensor, y: Tensor, *, train: bool) -> Batches:
        rank, world = (self.fabric.global_rank, self.fabric.world_size) if train else (0, 1)
        return Batches(
            x, y, self.config.batch_size // world, mean=self.data.mean, std=self.data.std,
            augment=train and self.config.augment, shuffle=train, generator=self.generator,
            device=self.fabric.device, channels_last=True, rank=rank, world_size=world,
        )  # fmt: skip

    @property
    def step_number(self) -> int:
        """Finished steps of the whole run."""
        return self.epoch * len(self.batches) + self.done

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate(self.config, self.step_number, self.config.epochs * len(self.batches))

    def fit(self, display: Display, signals: StopSignals) -> None:
        """Train until `config.epochs`; raises Stopped at a signal and RunError where the loss explodes."""
        while self.epoch < self.config.epochs:
            self.train_epoch(display, signals)
            tested = self.epoch + 1 == self.config.epochs or (self.epoch + 1) % self.config.test_every == 0
            if tested:
                self.record(self.figures() | self.test_figures(signals), display)
            self._next_epoch()
            if tested:
                self.save_epoch()

    def record(self, figures: dict[str, Any], display: Display) -> None:
        """Write and show the figures of the epoch just trained and tested."""
        if self.fabric.is_global_zero:
            runs.append(self.folder / runs.METRICS, figures)
            display.epoch(figures)
        self.fabric.log_dict({k: v for k, v in figures.items() if v is not None}, step=self.step_number)

    def test_figures(self, signals: StopSignals) -> dict[str, Any]:
        """Figures on the test images, as a line of metrics.jsonl names them."""
        tested = self.evaluate(signals)
        return {f"test_{name}": tested[name] for name in ("loss", "top1", "top5")}

    def _next_epoch(self) -> None:
        self.epoch, self.done = self.epoch + 1, 0
        self.epoch_rng, self.epoch_began = self.generator.get_state(), self.clock.seconds
        self.sums.zero_()

    def train_epoch(self, display: Display, signals: StopSignals) -> None:
        """The rest of the present epoch. The batches before it are drawn and dropped, so that the sampler agrees."""
        self.model.train()
        with self.clock:
            for x, y in itertools.islice(self.batches, self.done, None):
                self.step(x, y)
                self.done += 1
                self.after_step(x, y, display, signals)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One update of the weights; nothing is read off the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("factor", 1.0)
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(loss.detach(), logits.detach(), y)

    def _count(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        self.recent += torch.stack([loss, torch.ones_like(loss)])
        self.sums += torch.stack([loss * len(y), (logits.argmax(1) == y).sum(), torch.full_like(loss, len(y))])

    def after_step(self, x: Tensor, y: Tensor, display: Display, signals: StopSignals) -> None:
        """What happens between two steps."""
        check = self.done % STEPS_BETWEEN_CHECKS == 0 or self.done == len(self.batches)
        if check:
            self.check_loss()
        if display.due():
            loss, hits, images = self.sums.tolist()
            speed = images / max(self.clock.seconds - self.epoch_began, 1e-9)
            display.step(self.step_number, loss / images, 100 * hits / images, speed)
        if self.config.log_alignment and self.step_number % self.config.log_alignment == 0:
            with self.clock.aside():
                self.log_alignment(x, y)
        if check or self.fabric.world_size == 1:
            self.save_or_stop(signals)

    def check_loss(self) -> None:
        """RunError where the mean loss since the last check is not finite or has exploded."""
        total, steps = self._all_reduced(self.recent)
        self.recent.zero_()
        if steps and not total / steps <= EXPLODED * math.log(len(self.data.classes)):
            self._diverged(f"mean loss {total / steps:.3g} in the last {steps:.0f} steps")

    def _diverged(self, found: str) -> None:
        """Name the step, what was found and the way out."""
        raw = self.config.rule in ("fa", "dfa", "bdfa") and self.config.scale not in (None, "match", "he")
        raise Diverged(
            f"training diverged by step {self.step_number}: {found}, where guessing costs "
            f"{math.log(len(self.data.classes)):.2f}; take --lr below {self.config.base_lr:g}"
            f"{', or --scale match' if raw else ''}; the last good checkpoint is kept in {self.folder}"
        )

    def save_or_stop(self, signals: StopSignals) -> None:
        """Save where it is time; save and raise Stopped where a signal came. The processes do as the first does."""
        due = time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS
        signum, due = self.fabric.broadcast((signals.signum, due))
        if signum or due:
            with self.clock.aside():
                self.save()
        if signum:
            raise Stopped(signum, self.folder, self.step_number, self.config.epochs * len(self.batches))

    def save_epoch(self) -> None:
        """Save after the last epoch, and after another where the last checkpoint is not from a moment ago."""
        recent = time.monotonic() - self._saved_at < SECONDS_BETWEEN_EPOCHS_SAVED
        if self.epoch == self.config.epochs or not self.fabric.broadcast(recent):
            self.save()

    def save(self) -> None:
        """Write the checkpoint, unless the run has gone wrong: the file there is always the last good one."""
        self.check_loss()
        if not all(torch.isfinite(p).all() for p in self.net.parameters()):
            self._diverged("weights that are not finite")
        state = checkpoint.capture(self)
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / runs.CHECKPOINT, state)
        self._saved_at = time.monotonic()

    @torch.no_grad()
    def evaluate(self, signals: StopSignals) -> dict[str, Any]:
        """Figures on the test images. Each process computes all of them, so that all agree without exchanging any."""
        self.model.eval()
        logits = []
        for x, _ in self.test_batches:
            logits.append(self.model(x))
            if self.fabric.world_size == 1:
                self.save_or_stop(signals)
        self.outputs = torch.cat(logits).float().cpu()
        if not torch.isfinite(self.outputs).all():
            self._diverged("outputs that are not finite")
        return metrics(self.outputs, self.data.test_y, self.data.classes)

    def figures(self) -> dict[str, Any]:
        """Figures of the epoch just trained; test figures come beside them."""
        loss, hits, images = self._all_reduced(self.sums)
        seconds = self.clock.seconds
        return {
            "epoch": self.epoch + 1,
            "step": self.step_number,
            "train_loss": loss / images,
            "train_top1": 100 * hits / images,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / (seconds - self.epoch_began), 2),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def _all_reduced(self, values: Tensor) -> list[float]:
        """The sum over all processes."""
        total = self.fabric.all_reduce(values.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.tolist()

    def log_alignment(self, x: Tensor, y: Tensor) -> None:
        """Compare the rule's updates with true gradients on this batch, in a line of metrics.jsonl."""
        if not self.fabric.is_global_zero:
            return

        def loss() -> Tensor:
            with self.fabric.autocast():
                logits = self.net(x)
            return F.cross_entropy(logits.float(), y)

        found = torchdfa.diagnostics.measure(self.net, loss).to_dict()
        runs.append(self.folder / runs.METRICS, {"kind": "alignment", "step": self.step_number, **found})


def build(config: TrainConfig, data: Data) -> nn.Module:
    """The converted network in channels_last, on the CPU; its weights depend on the seed alone."""
    torch.manual_seed(config.seed)
    net = models.build(config.model, **model_args(config, data))
    where: dict[str, Any] = {"head": "classifier"}
    if config.layers == "all":
        where = {"layers": "all", "example_input": torch.zeros(1, *data.train_x.shape[1:])}
    torchdfa.convert_(
        net, config.rule, **where, init=config.init, distribution=config.distribution,
        scale=config.scale, boundary=config.boundary, seed=config.seed,
    )  # fmt: skip
    # mypy does not know this form of .to()
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def model_args(config: TrainConfig, data: Data) -> dict[str, Any]:
    """What `models.build` needs besides the name; kept with the exported weights."""
    return {
        "classes": len(data.classes),
        "channels": data.train_x.shape[1],
        "image_size": data.train_x.shape[2],
        "fc_layers": config.fc_layers,
        "fc_width": config.fc_width,
        "fc_batch_norm": config.fc_batch_norm,
        "dropout": config.dropout,
        "fixed_output": config.fixed_output,
    }


def parameter_groups(net: nn.Module, conv_lr_factor: float) -> list[dict[str, Any]]:
    """The parameters for an optimizer; those of `features` apart where they have a learning rate of their own."""
    if conv_lr_factor == 1.0:
        return [{"params": list(net.parameters())}]
    convs = [p for name, p in net.named_parameters() if name.startswith("features.")]
    rest = [p for name, p in net.named_parameters() if not name.startswith("features.")]
    return [{"params": rest}, {"params": convs, "factor": conv_lr_factor}]
