"""One named recipe for each table cell, figure curve and control: the settings of a training, without its seed."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.paper.published import TABLE_1, TABLE_2
from torchdfa.paper.tuned import SMALL_TUNED, TUNED
from torchdfa.train.arms import ASIDE
from torchdfa.train.config import TrainConfig

# Rates of the start; a cosine takes them to 0. The paper names neither, only "small" and "large": 0.003 is the best of
# feedback at the default scale, 0.01 that of BP, where feedback with the usual weight decay of 5e-4 diverges. For
# Figures 4 and 5 alone: tables, controls and Figure 1 take each arm's own (tuned.py).
SMALL_RATE, LARGE_RATE = 0.003, 0.01
# How many times back-propagation's the error at the convolutions' output is: with CBDFA Eq. 9 at the default scale
# (about the median along a run at rate 0.003 and decay 5e-4), and with raw +-1 feedback, sqrt(512 / 2).
MATCH_RATIO, UNIT_RATIO = 2.5, 16.0
HELD_OUT = 0.04  # of the training images, for every choice of a setting
BATCH = 100
# Precision changes rounding, not what is learned: runs of one recipe on several machines count together.
_FREE = (*ASIDE, "precision")
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "bp": ("BP", {"rule": "bp"}),
    "cdfa-product": ("CDFA Eq. (7)", {"rule": "dfa", "init": "product"}),
    "cbdfa-random": ("CBDFA random", {"rule": "bdfa", "init": "random"}),
    "cbdfa-product": ("CBDFA Eq. (9)", {"rule": "bdfa", "init": "product"}),
    "bp-bn": ("BP w/ BN", {"rule": "bp", "fc_batch_norm": True}),
    "cdfa-random": ("CDFA random", {"rule": "dfa", "init": "random"}),
    "cdfa-bn": ("CDFA w/ BN", {"rule": "dfa", "init": "product", "fc_batch_norm": True}),
    "cbdfa-bn": ("CBDFA w/ BN", {"rule": "bdfa", "init": "product", "fc_batch_norm": True}),
}
MAIN = ("bp", "cdfa-product", "cbdfa-random", "cbdfa-product")
SEARCHED = ("bp", "cbdfa-product")  # by the search for few images
SMALL_ARMS = (*SEARCHED, "bp-conv-rate-unit")
PRODUCT = ARMS["cbdfa-product"][1]
RANDOM = ARMS["cbdfa-random"][1]
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen": ("frozen random head", {"rule": "frozen"}),
    "bp-one-layer": ("BP, one FC layer", {"rule": "bp", "fc_layers": 1}),
    "fixed-classifier": ("fixed ±1 classifier on the convs", {"rule": "bp", "fc_layers": 1, "fixed_output": True}),
    "bp-dropout": ("BP, dropout 0.5 in the head", {"rule": "bp", "dropout": 0.5}),
    "bp-conv-rate": (f"BP, conv rate × {MATCH_RATIO:g}", {"rule": "bp", "conv_lr_factor": MATCH_RATIO}),
    "cbdfa-unit": ("CBDFA Eq. (9), raw ±1", {**PRODUCT, "scale": "unit"}),
    "bp-conv-rate-unit": (f"BP, conv rate × {UNIT_RATIO:g}", {"rule": "bp", "conv_lr_factor": UNIT_RATIO}),
    "cbdfa-random-unit": ("CBDFA random, raw ±1", {**RANDOM, "scale": "unit"}),
    "cbdfa-random-match": ("CBDFA random, scale match", {**RANDOM, "scale": "match"}),
    "cbdfa-transpose": ("CBDFA Eq. (9), boundary transpose", {**PRODUCT, "boundary": "transpose"}),
    "cbdfa-he": ("CBDFA Eq. (9), scale he", {**PRODUCT, "scale": "he"}),
}
# Of Table 2 ("the parameters of the FC layers are fixed") and of Figure 1.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv-only": ("conv. only", {"rule": "frozen", "fixed_output": True}),
    "dfa-all": ("DFA on every layer", {"rule": "dfa", "init": "random", "layers": "all"}),
}
SWEPT = {**ARMS, **CONTROLS, **OTHERS}
SWEEP_RATES, SWEEP_DECAYS = (0.001, 0.003, 0.01, 0.03), (5e-4, 5e-3, 2e-2)
# Where the convolutions' steps are 16 times as large or more: raw +-1 feedback diverges at 0.003.
LARGE_STEPS = ("cbdfa-unit", "bp-conv-rate-unit", "cbdfa-random-unit")
LOW_SWEEP_RATES = (0.0001, 0.0003, 0.001, 0.003)
SMALL_SIZES = (1000, 5000, 10_000, 50_000)
SMALL_SWEEP_RATES: dict[int, tuple[float, ...]] = {10: (0.001, 0.003), 50: (0.003, 0.01)}  # by batch size
SMALL_SWEEP_DECAYS = (5e-3, 2e-2)


@dataclass(frozen=True)
class Protocol:
    """How much of the data, and how long."""

    name: str
    subset: int | None  # training images, of 50,000
    epochs: int
    text: str
    decay: float | None = None  # weight decay of all arms in place of each arm's own

    @property
    def images(self) -> int:
        return self.subset or 50_000


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("short", 10_000, 10, "10,000 training images, the same for all, 10 epochs (1,000 steps)"),
        # A decay chosen over 500 steps is no choice for 5,000 or 15,000. With BP's rate of 0.01 this is the usual
        # product of the two, 5e-5 (He et al., 2016: 0.1 and 5e-4 or less).
        Protocol("medium", None, 10, "all 50,000 training images, 10 epochs (5,000 steps)", decay=5e-3),
        Protocol("full", None, 30, "all 50,000 training images, 30 epochs (15,000 steps)", decay=5e-3),
    )
}


def protocol_named(name: str) -> Protocol:
    """UsageError where there is none of this name."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol must be one of {', '.join(PROTOCOLS)}; got {name!r}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Recipe:
    """Settings of `TrainConfig`, and where the paper has them."""

    name: str
    title: str
    settings: dict[str, Any] = field(hash=False)
    published: tuple[float, float] | None = None  # top-1 and top-5 in the paper
    same_as: str | None = None  # the recipe of these settings whose results this one shows

    @property
    def source(self) -> str:
        """Name of the recipe whose results these are."""
        return self.same_as or self.name

    def config(self, seed: int, **aside: Any) -> TrainConfig:
        """The settings of one run; `aside` are those that change how it is carried out."""
        return TrainConfig(**self.settings | {"seed": seed} | aside)


def recipes(protocol: Protocol) -> dict[str, Recipe]:
    """All recipes by name, those that matter most first; those of equal settings share the first one's results."""
    found: dict[str, Recipe] = {}
    first: dict[str, str] = {}
    for name, title, settings, published in _entries(protocol):
        key = repr(learned(TrainConfig(**settings)))
        found[name] = Recipe(name, title, settings, published, first.get(key))
        first.setdefault(key, name)
    return found


def learned(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what is learned; those without effect on the rule are left out."""
    aside = {*_FREE, *(("init", "distribution", "scale", "boundary") if config.rule in ("bp", "frozen") else ())}
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in aside}
    return values | {"lr": config.base_lr}


def owners(available: dict[str, Recipe], chosen: Iterable[Recipe]) -> list[Recipe]:
    """The recipes whose results the chosen ones show, each once."""
    return [available[source] for source in dict.fromkeys(recipe.source for recipe in chosen)]


def select(available: dict[str, Recipe], patterns: Iterable[str]) -> list[Recipe]:
    """The recipes that a pattern names: a name, its beginning up to a slash, or with * and ?; UsageError for none."""
    chosen: dict[str, Recipe] = {}
    for pattern in patterns:
        names = [name for name in available if _matches(name, pattern)]
        if not names:
            near = difflib.get_close_matches(pattern, [*available, *{n.rpartition("/")[0] for n in available}], 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "'torchdfa paper list' names them all"
            raise UsageError(f"no recipe matches {pattern!r}; {hint}")
        chosen.update({name: available[name] for name in names})
    return list(chosen.values())


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern.rstrip("/") + "/") or fnmatch.fnmatchcase(name, pattern)


Entry = tuple[str, str, dict[str, Any], "tuple[float, float] | None"]


def _entries(protocol: Protocol) -> Iterator[Entry]:
    yield from _table_1(protocol, "cifar10")
    yield from _controls(protocol)
    yield from _table_1(protocol, "cifar100")
    yield from _small_data(protocol)
    yield from _table_2(protocol)
    yield from _figures(protocol)
    yield from _sweep(protocol)
    yield from _small_sweep(protocol)


def _settings(protocol: Protocol, data: str = "cifar10", **settings: Any) -> dict[str, Any]:
    common = {
        "data": data, "model": "vgg16", "subset": protocol.subset, "epochs": protocol.epochs,
        "batch_size": BATCH, "log_alignment": max(1, protocol.images // BATCH),
    }  # fmt: skip
    return common | settings


def _tuned(protocol: Protocol, arm: str, data: str = "cifar10", **settings: Any) -> dict[str, Any]:
    """An arm at its own learning rate and weight decay, those of CIFAR-10 for both data sets."""
    rate, decay = TUNED[arm]
    chosen = {"lr": rate, "weight_decay": decay if protocol.decay is None else protocol.decay}
    return _settings(protocol, data, **SWEPT[arm][1] | chosen | settings)


def _table_1(protocol: Protocol, data: str) -> Iterator[Entry]:
    for arm, (title, _) in ARMS.items():
        yield f"table1/{data}/{arm}", title, _tuned(protocol, arm, data), TABLE_1[data][arm]


def _controls(protocol: Protocol) -> Iterator[Entry]:
    for arm, (title, _) in CONTROLS.items():
        yield f"control/{arm}", title, _tuned(protocol, arm), None


def _small_data(protocol: Protocol) -> Iterator[Entry]:
    """As many steps on fewer images; on few also with the batch, rate and decay of a search of their own."""
    for size in SMALL_SIZES:
        for arm in SMALL_ARMS:
            title = f"{SWEPT[arm][0]}, {size:,} images"
            yield f"small/{size}/{arm}", title, _tuned(protocol, arm, **_of_size(protocol, size)), None
    for size in SMALL_TUNED:
        for arm, (batch, rate, decay) in SMALL_TUNED[size].items():
            title = f"{ARMS[arm][0]}, {size:,} images, tuned for them"
            settings = _searched(protocol, size, arm, batch, rate, decay)
            yield f"small-tuned/{size}/{arm}", title, settings, None


def _of_size(protocol: Protocol, size: int, batch: int = BATCH) -> dict[str, Any]:
    """So many images for as many steps as the protocol has."""
    steps = protocol.epochs * protocol.images / BATCH
    epochs = max(1, round(steps * batch / size))
    subset = None if size == 50_000 else size
    # Testing costs as much as training on a third of as many images: not after each of many short epochs.
    return {"subset": subset, "epochs": epochs, "batch_size": batch, "test_every": max(1, round(epochs / 10))}


def _table_2(protocol: Protocol) -> Iterator[Entry]:
    arms = {"bp": "bp", "cbdfa": "cbdfa-product", "conv-only": "conv-only"}
    for augment, suffix, words in ((False, "", ""), (True, "-augmented", ", augmented")):
        for name, arm in arms.items():
            title = f"{SWEPT[arm][0]}{words}"
            yield f"table2/{name}{suffix}", title, _tuned(protocol, arm, augment=augment), TABLE_2[f"{name}{suffix}"]


def _figures(protocol: Protocol) -> Iterator[Entry]:
    yield "figure1/bp", "BP", _tuned(protocol, "bp"), None
    yield "figure1/dfa", OTHERS["dfa-all"][0], _tuned(protocol, "dfa-all"), None
    for data in ("cifar10", "cifar100"):
        for arm in ("bp", "cdfa-random", "cbdfa-random"):
            title, settings = ARMS[arm]
            yield f"figure4/{data}/{arm}", title, _settings(protocol, data, **settings, lr=SMALL_RATE), None
    for arm in ("bp", "cdfa-random", "cdfa-product", "cbdfa-random", "cbdfa-product"):
        title, settings = ARMS[arm]
        yield f"figure5/{arm}", title, _settings(protocol, **settings, lr=LARGE_RATE), None


def _sweep(protocol: Protocol) -> Iterator[Entry]:
    """Rate and weight decay of each arm at half the length, tested on held-out training images."""
    for arm, (title, settings) in SWEPT.items():
        for rate, decay in itertools.product(sweep_rates(arm), SWEEP_DECAYS):
            half = {"epochs": max(1, protocol.epochs // 2), "validate": HELD_OUT, "lr": rate, "weight_decay": decay}
            words = f"{title}, rate {rate:g}, decay {decay:g}"
            yield sweep_name(arm, rate, decay), words, _settings(protocol, **settings | half), None


def sweep_rates(arm: str) -> tuple[float, ...]:
    """The learning rates that are tried for an arm."""
    return LOW_SWEEP_RATES if arm in LARGE_STEPS else SWEEP_RATES


def sweep_name(arm: str, rate: float, decay: float) -> str:
    """Name of the recipe that tries an arm at this rate and weight decay."""
    return f"sweep/{arm}/lr{rate:g}-wd{decay:g}"


def small_sweep_name(size: int, arm: str, batch: int, rate: float, decay: float) -> str:
    """Name of the recipe that tries an arm on so many images with this batch, rate and weight decay."""
    return f"small-sweep/{size}/{arm}/b{batch}-lr{rate:g}-wd{decay:g}"


def _searched(protocol: Protocol, size: int, arm: str, batch: int, rate: float, decay: float) -> dict[str, Any]:
    """Few images at these settings."""
    settings = ARMS[arm][1] | _of_size(protocol, size, batch) | {"lr": rate, "weight_decay": decay}
    return _settings(protocol, **settings)


def _small_sweep(protocol: Protocol) -> Iterator[Entry]:
    """Small data want small batches and a large weight decay (Brigato et al., 2021)."""
    for size, arm, (batch, rate, decay) in itertools.product(SMALL_TUNED, SEARCHED, small_sweep_points()):
        settings = _searched(protocol, size, arm, batch, rate, decay) | {"validate": HELD_OUT}
        title = f"{ARMS[arm][0]}, {size:,} images, batch {batch}, rate {rate:g}, decay {decay:g}"
        yield small_sweep_name(size, arm, batch, rate, decay), title, settings, None


def small_sweep_points() -> list[tuple[int, float, float]]:
    """Batch size, learning rate and weight decay of each point of the search for few images."""
    return [
        (b, rate, decay) for b, rates in SMALL_SWEEP_RATES.items() for rate in rates for decay in SMALL_SWEEP_DECAYS
    ]
