"""The head of a tracker: fc4 to fc6, learning online by any rule, on hard negatives."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa
from torchdfa.counter import stream_key
from torchdfa.track import mdnet
from torchdfa.track.mdnet import MDNet, fresh_last_layer_
from torchdfa.track.options import TrackerConfig

LAYERS = ("fc4", "fc5", "fc6")


class Learner:
    """Scores features (n, F) and learns from positive and negative ones; ``restored`` counts updates taken back."""

    def __init__(self, config: TrackerConfig, network: MDNet, device: torch.device) -> None:
        self.config, self.device = config, device
        shared = dict(network.shared.named_parameters())
        hidden, features = shared["fc4.weight"].shape
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, replaced below, draws numbers
            self.head = mdnet.head(features, hidden)
        fresh_last_layer_(self.layer("fc6"), torch.Generator().manual_seed(stream_key(config.seed, "fc6")))
        self.head.load_state_dict(shared, strict=False)
        self.head.to(device)
        self.converted = False
        self.restored = 0
        self.steps = 0
        self._optimizer: torch.optim.SGD | None = None
        if config.moment == "start":
            self.convert()

    def layer(self, name: str) -> nn.Linear:
        found = self.head.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def convert(self) -> None:
        """Give the head its rule; feedback is taken from the weights as they are now, and stays."""
        c = self.config
        scale: Any = c.feedback_scale
        torchdfa.convert_(
            self.head, c.rule, init=c.feedback, distribution=c.distribution, scale=scale, seed=c.seed  # type: ignore[arg-type]
        )  # fmt: skip
        self.converted = True
        self._optimizer = None

    @torch.no_grad()
    def score(self, features: Tensor) -> Tensor:
        """(n,): fc6's output for "target", without dropout."""
        self.head.eval()
        return self.head(features)[:, 1]

    def learn_first(self, positive: Tensor, negative: Tensor, generator: torch.Generator) -> float:
        """The first frame; where the feedback is to be taken after it, it is learnt by back-propagation."""
        loss = self._learn(
            positive, negative, self.config.first_lr, self.config.first_iterations, generator, fresh=True
        )
        if not self.converted:
            self.convert()
        self._optimizer = None
        return loss

    def learn(self, positive: Tensor, negative: Tensor, generator: torch.Generator) -> float:
        """One update; returns the mean loss of its steps."""
        return self._learn(
            positive, negative, self.config.lr, self.config.iterations, generator, fresh=not self.config.keep_momentum
        )

    def _learn(
        self, positive: Tensor, negative: Tensor, lr: float, iterations: int, generator: torch.Generator, *, fresh: bool
    ) -> float:
        if not iterations:
            return 0.0
        before = {name: value.clone() for name, value in self.head.state_dict().items()}
        if fresh or self._optimizer is None:
            self._optimizer = self._sgd(lr)
        near = cycled(len(positive), self.config.positives * iterations, generator)
        far = cycled(len(negative), self.config.mined * iterations, generator)
        losses = []
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # of dropout
            for p, q in zip(near.chunk(iterations), far.chunk(iterations), strict=True):
                losses.append(self._step(positive[p.to(self.device)], negative[q.to(self.device)], self._optimizer))
        mean = float(torch.stack(losses).mean())
        if mean != mean or any(not bool(v.isfinite().all()) for v in self.head.state_dict().values()):
            self._take_back(before)
        return mean

    def _step(self, positive: Tensor, pool: Tensor, optimizer: torch.optim.SGD) -> Tensor:
        """One step on the positives and the hardest negatives of the pool."""
        hardest = self.score(pool).topk(min(self.config.negatives, len(pool))).indices
        self.head.train()
        scores = self.head(torch.cat([positive, pool[hardest]]))
        labels = torch.zeros(len(scores), dtype=torch.long, device=self.device)
        labels[: len(positive)] = 1
        loss = F.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.clip)
        optimizer.step()
        self.steps += 1
        return loss.detach()

    def _sgd(self, lr: float) -> torch.optim.SGD:
        c, groups = self.config, []
        for name in LAYERS:
            rate = lr * (c.last if name == "fc6" else 1)
            layer = self.layer(name)
            for parameter, factor, decay in (
                (layer.weight, 1.0, c.weight_decay),
                (layer.bias, c.bias_factor, c.weight_decay if c.decay_biases else 0.0),
            ):
                if parameter.requires_grad:  # rule "frozen" takes that from the hidden layers
                    groups.append({"params": [parameter], "lr": rate * factor, "weight_decay": decay})
        return torch.optim.SGD(groups, lr=lr, momentum=c.momentum)

    def _take_back(self, before: dict[str, Tensor]) -> None:
        self.head.load_state_dict(before)
        self._optimizer = None
        self.restored += 1
        if self.restored == 1:
            warnings.warn(
                "an update of the tracker gave a loss that is not finite; its weights are those before it, and "
                "tracking goes on.",
                stacklevel=4,
            )

    def state(self) -> dict[str, Tensor]:
        """Tensors: weights, feedback, momentum."""
        found = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        if self._optimizer is not None:
            for k, kept in self._optimizer.state_dict()["state"].items():
                if kept.get("momentum_buffer") is not None:
                    found[f"momentum.{k}"] = kept["momentum_buffer"]
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from ``state()``; the head must have the rule that it had."""
        self.head.load_state_dict({n.removeprefix("head."): v for n, v in tensors.items() if n.startswith("head.")})
        buffers = {int(n.removeprefix("momentum.")): v for n, v in tensors.items() if n.startswith("momentum.")}
        if buffers:
            self._optimizer = self._sgd(self.config.lr)
            state = self._optimizer.state_dict()
            state["state"] = {k: {"momentum_buffer": v} for k, v in buffers.items()}
            self._optimizer.load_state_dict(state)


def cycled(n: int, wanted: int, generator: torch.Generator) -> Tensor:
    """(wanted,) indices below n: shuffled passes through all of them, one after another."""
    passes = [torch.randperm(n, generator=generator) for _ in range(-(-wanted // n))]
    return torch.cat(passes)[:wanted]
