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
from torch import Tensor

import torchdfa
from torchdfa.errors import RunError
from torchdfa.train import checkpoint, models, runs
from torchdfa.train.batches import Batches
from torchdfa.train.config import TrainConfig, learning_rate
from torchdfa.train.datasets import Data
from torchdfa.train.metrics import metrics
from torchdfa.train.progress import Display
from torchdfa.train.stop import Stopped, StopSignals

# Every so many steps the loss is read off the device and the processes agree whether to stop.
STEPS_BETWEEN_CHECKS = 20
SECONDS_BETWEEN_CHECKPOINTS = 300.0
# A run has exploded when its mean loss between two checks is above this multiple of ln(classes), the loss of a guess.
EXPLODED = 10.0


class Trainer:
    """A run in progress: `fit` trains from wherever the state stands; `state` and `load_state` save and restore it."""

    def __init__(self, config: TrainConfig, data: Data, fabric: Fabric, folder: Path, data_digest: str) -> None:
        self.config, self.data, self.fabric, self.folder = config, data, fabric, folder
        self.data_digest = data_digest  # sha256 of the images, by which a resumed run knows them again
        torch.manual_seed(config.seed)
        self.net = build(config, data)
        optimizer = torch.optim.SGD(
            self.net.parameters(), config.base_lr, config.momentum, weight_decay=config.weight_decay
        )
        model = torch.compile(self.net) if config.compile else self.net
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.batches = self._batches(data.train_x, data.train_y, train=True)
        self.test_batches = self._batches(data.test_x, data.test_y, train=False)
        self.epoch = 0  # finished epochs
        self.done = 0  # finished steps of the present epoch
        self.epoch_rng = self.generator.get_state()  # of the sampler, as the present epoch began
        self.sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)  # loss, hits, images of the epoch
        self.recent = torch.zeros((), device=fabric.device)  # sum of the losses since the last check
        self.seconds = self.seconds_before_epoch = 0.0
        self._saved_at = time.monotonic()
        self.tested: dict[str, Any] | None = None  # figures of the last test
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

    def fit(self, display: Display, signals: StopSignals) -> None:
        """Train until `config.epochs`; raises Stopped at a signal and RunError where the loss explodes."""
        while self.epoch < self.config.epochs:
            self.train_epoch(display, signals)
            figures = self.figures()
            tested = self.evaluate(signals)
            figures |= {f"test_{name}": tested[name] for name in ("loss", "top1", "top5")}
            if self.fabric.is_global_zero:
                runs.append(self.folder / runs.METRICS, figures)
                display.epoch(figures)
            self.fabric.log_dict(figures, step=self.step_number)
            self.epoch, self.done = self.epoch + 1, 0
            self.epoch_rng = self.generator.get_state()
            self.sums.zero_()
            self.seconds_before_epoch = self.seconds
            self.save()

    def train_epoch(self, display: Display, signals: StopSignals) -> None:
        """The rest of the present epoch. The batches before it are drawn and dropped, so that the sampler agrees."""
        self.model.train()
        started = time.perf_counter() - self.seconds
        for x, y in itertools.islice(self.batches, self.done, None):
            self.step(x, y)
            self.done += 1
            self.seconds = time.perf_counter() - started
            self.after_step(display, signals)
        self.check_loss()
        self.seconds = time.perf_counter() - started

    def step(self, x: Tensor, y: Tensor) -> None:
        """One update of the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = loss.detach()
        self.recent += loss
        self.sums += torch.stack([loss * len(y), (logits.argmax(1) == y).sum(), loss.new_tensor(len(y))])

    @property
    def learning_rate(self) -> float:
        return learning_rate(self.config, self.step_number, self.config.epochs * len(self.batches))

    def after_step(self, display: Display, signals: StopSignals) -> None:
        """What happens between two steps; reads nothing off the device except now and then."""
        check = self.done % STEPS_BETWEEN_CHECKS == 0
        if check:
            self.check_loss()
        if display.due():
            loss, hits, images = self.sums.tolist()
            speed = images / max(self.seconds - self.seconds_before_epoch, 1e-9)
            display.step(self.step_number, loss / images, 100 * hits / images, speed)
        if check or self.fabric.world_size == 1:
            self.save_or_stop(signals)

    def check_loss(self) -> None:
        """RunError where the mean loss since the last check is not finite or has exploded."""
        steps = (self.done - 1) % STEPS_BETWEEN_CHECKS + 1
        loss = self.recent.item() / steps
        self.recent.zero_()
        chance = math.log(len(self.data.classes))
        if not loss <= EXPLODED * chance:
            raise RunError(
                f"training diverged: mean loss {loss:.3g} over the {steps} steps up to step {self.step_number}, where "
                f"guessing gives {chance:.2f}; take a smaller --lr than {self.config.base_lr:g}{self._way_out()} "
                f"(the last good checkpoint is kept in {self.folder})"
            )

    def _way_out(self) -> str:
        feedback = self.config.rule in ("fa", "dfa", "bdfa") and self.config.scale not in (None, "match", "he")
        return ", or --scale match" if feedback else ""

    def save_or_stop(self, signals: StopSignals) -> None:
        """Save where it is time; save and raise Stopped where a signal came. The processes do as the first does."""
        due = time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS
        signum, due = self.fabric.broadcast((signals.signum, due))
        if signum or due:
            self.save()
        if signum:
            raise Stopped(signum)

    @torch.no_grad()
    def evaluate(self, signals: StopSignals) -> dict[str, Any]:
        """Figures on the test images. Each process computes all of them, so that all agree without exchanging any."""
        self.model.eval()
        logits = []
        for x, _ in self.test_batches:
            logits.append(self.model(x))
            if self.fabric.world_size == 1:
                self.save_or_stop(signals)
        self.tested = metrics(torch.cat(logits), self.data.test_y, self.data.classes)
        return self.tested

    def figures(self) -> dict[str, Any]:
        """Figures of the epoch just trained."""
        loss, hits, images = self.fabric.all_reduce(self.sums, reduce_op="sum").tolist()
        return {
            "epoch": self.epoch + 1,
            "step": self.step_number,
            "train_loss": loss / images,
            "train_top1": 100 * hits / images,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(images / (self.seconds - self.seconds_before_epoch), 2),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def save(self) -> None:
        """Write the checkpoint, which from then on is the last good one."""
        state = self.state()
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / runs.CHECKPOINT, state)
        self._saved_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        """All that decides how the run goes on. Python's and numpy's generators do not: nothing draws from them."""
        rng = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self.fabric.device) if self.fabric.device.type == "cuda" else rng[:0]
        return {
            "config": self.config.to_dict(),
            "data": self.data_digest,
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "epoch": self.epoch,
            "done": self.done,
            "epoch_rng": self.epoch_rng,
            "rng": {"cpu": self._of_all(rng), "cuda": self._of_all(cuda)},
            "sums": self._of_all(self.sums),
            "seconds": [self.seconds, self.seconds_before_epoch],
            "world_size": self.fabric.world_size,
        }

    def _of_all(self, value: Tensor) -> Tensor:
        """(world size, n): a vector of each process."""
        return self.fabric.all_gather(value).reshape(self.fabric.world_size, -1).cpu()

    def load_state(self, state: dict[str, Any]) -> None:
        """Put the run where `state` left it."""
        rank = self.fabric.global_rank
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.epoch, self.done = state["epoch"], state["done"]
        self.epoch_rng = state["epoch_rng"]
        self.generator.set_state(self.epoch_rng)
        self.sums.copy_(state["sums"][rank])
        self.seconds, self.seconds_before_epoch = state["seconds"]
        torch.set_rng_state(state["rng"]["cpu"][rank].clone())
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"][rank].clone(), self.fabric.device)


def build(config: TrainConfig, data: Data) -> torch.nn.Module:
    """The converted network in channels_last, on the CPU."""
    net = models.build(config.model, **model_args(config, data))
    torchdfa.convert_(
        net, config.rule, head="classifier", init=config.init, distribution=config.distribution,
        scale=config.scale, boundary=config.boundary, seed=config.seed,
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)


def model_args(config: TrainConfig, data: Data) -> dict[str, Any]:
    """What `models.build` needs besides the name; kept with the exported weights."""
    _, channels, height, _ = data.train_x.shape
    return {
        "classes": len(data.classes),
        "channels": channels,
        "image_size": height,
        "fc_width": config.fc_width,
        "fc_batch_norm": config.fc_batch_norm,
    }
