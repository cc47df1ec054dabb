"""The settings of one training run: a frozen value that is checked when made and kept as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torchdfa.errors import UsageError

Model = Literal["cnn", "mlp", "vgg16"]
Rule = Literal["bp", "fa", "dfa", "bdfa", "frozen"]
Init = Literal["random", "product"]
Distribution = Literal["normal", "uniform", "sign"]
Scale = float | Literal["unit", "he", "match"]
Boundary = Literal["direct", "transpose"]
Layers = Literal["head", "all"]
Schedule = Literal["cosine", "step", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Convolutions = Literal["auto", "torch", "winograd", "im2col"]

CHOICES: dict[str, tuple[str, ...]] = {
    "model": get_args(Model),
    "rule": get_args(Rule),
    "init": get_args(Init),
    "distribution": get_args(Distribution),
    "boundary": get_args(Boundary),
    "layers": get_args(Layers),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "device": get_args(Device),
    "convolutions": get_args(Convolutions),
}
SCALES = ("unit", "he", "match")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; raises UsageError naming the wrong one. `lr=None` takes `default_lr`."""

    data: str = "digits"  # digits, cifar10, cifar100 or the path of an image folder
    data_dir: str | None = None
    download: bool = False
    image_size: int | None = None
    subset: int | None = None  # a class-balanced subset of this many training images
    validate: float = 0.0  # this part of the training images takes the place of the test images
    augment: bool = False
    model: Model = "cnn"
    fc_layers: int = 3
    fc_width: int = 512
    fc_batch_norm: bool = False
    dropout: float = 0.0  # after each hidden fully-connected layer
    fixed_output: bool = False  # the output layer never learns; alone it is +-sqrt(2 / units), drawn from the seed
    rule: Rule = "bdfa"
    init: Init = "product"
    distribution: Distribution = "normal"
    scale: Scale | None = None
    boundary: Boundary = "direct"
    layers: Layers = "head"  # what the rule concerns; "all" is conventional DFA, convolutions too
    epochs: int = 15
    batch_size: int = 100
    lr: float | None = None
    conv_lr_factor: float = 1.0  # the convolutions learn at so many times the learning rate
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    precision: Precision = "auto"
    device: Device = "auto"
    convolutions: Convolutions = "auto"  # how 3x3 convolutions are computed
    threads: int | None = None
    test_every: int = 1  # test after every so many epochs, and after the last
    compile: bool = False
    log_alignment: int = 0  # measure the alignment every so many steps; 0 never
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        for name, allowed in CHOICES.items():
            _require(getattr(self, name) in allowed, name, f"be one of {', '.join(allowed)}", self)
        _check_numbers(self)

    @property
    def base_lr(self) -> float:
        """The learning rate that the schedule starts from."""
        return default_lr(self) if self.lr is None else self.lr

    @property
    def label(self) -> str:
        """Name of the rule as tables show it, e.g. "CBDFA product"; the C stands for convolutions kept on BP."""
        if self.rule in ("bp", "frozen"):
            return {"bp": "BP", "frozen": "Frozen"}[self.rule]
        trunk = self.model != "mlp" and self.layers == "head"
        return f"{'C' if trunk else ''}{self.rule.upper()} {self.init}"

    @property
    def run_name(self) -> str:
        """Name of the run's folder where none is given, e.g. "digits-cnn-CBDFA-product-s0"."""
        data = Path(self.data).resolve().name if self.data not in ("digits", "cifar10", "cifar100") else self.data
        return f"{data}-{self.model}-{self.label.replace(' ', '-')}-s{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> TrainConfig:
        """Inverse of `to_dict`; raises UsageError on anything else. Settings added later take their default."""
        if not isinstance(values, dict):
            raise UsageError(f"a run's settings must be a JSON object; found {type(values).__name__}")
        unknown = sorted(set(values) - {f.name for f in fields(cls)}, key=str)
        if unknown:
            raise UsageError(f"a run's settings hold {unknown[0]!r}, which this version of torchdfa does not know")
        return cls(**values)


def default_lr(config: TrainConfig) -> float:
    """Learning rate where none is given: chosen on held-out training images (docs, reproduce).

    VGG-16 on CIFAR-10 is best at 0.01 by back-propagation, with a learning or a frozen head; by feedback of the default
    scale at 0.003, above which it can diverge.
    """
    return 0.003 if config.model == "vgg16" and config.rule in ("fa", "dfa", "bdfa") else 0.01


def _require(holds: bool, name: str, rule: str, config: TrainConfig) -> None:
    if not holds:
        raise UsageError(f"--{name.replace('_', '-')} must {rule}; got {getattr(config, name)!r}")


def _check_types(config: TrainConfig) -> None:
    for f in fields(config):
        value, kind = getattr(config, f.name), str(f.type).split(" | ")[0]
        optional = str(f.type).endswith("| None")
        if f.name == "scale" or (optional and value is None):
            continue
        wanted = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(kind, (str,))
        right = isinstance(value, wanted) and (kind == "bool" or not isinstance(value, bool))
        _require(right, f.name, f"be of type {kind if kind in ('int', 'float', 'bool') else 'str'}", config)


def _check_numbers(config: TrainConfig) -> None:
    for name in ("epochs", "batch_size", "fc_layers", "fc_width", "test_every"):
        _require(getattr(config, name) >= 1, name, "be at least 1", config)
    for name in ("image_size", "subset", "threads"):
        _require(getattr(config, name) is None or getattr(config, name) >= 1, name, "be at least 1", config)
    _require(config.lr is None or 0 < config.lr < math.inf, "lr", "be a positive number", config)
    _require(0 <= config.momentum < 1, "momentum", "lie in 0 <= momentum < 1", config)
    factor_is_right = 0 < config.conv_lr_factor < math.inf
    _require(factor_is_right, "conv_lr_factor", "be a positive number", config)
    _require(0 <= config.dropout < 1, "dropout", "lie in 0 <= dropout < 1", config)
    _require(0 <= config.weight_decay < math.inf, "weight_decay", "be 0 or a positive number", config)
    _require(0 <= config.validate < 1, "validate", "be a fraction, 0 <= validate < 1", config)
    _require(config.log_alignment >= 0, "log_alignment", "be 0 or a number of steps", config)
    _require(0 <= config.seed < 2**63, "seed", "lie in 0 <= seed < 2^63", config)
    _require(_scale_is_right(config.scale), "scale", f"be a positive number or one of {', '.join(SCALES)}", config)
    whole_head = not config.fixed_output or config.fc_layers == 1 or config.rule == "frozen"
    _require(whole_head, "fixed_output", "go with --fc-layers 1 or --rule frozen: nothing of the head learns", config)
    concerned = config.rule == "bp" or config.layers == "all" or config.fc_layers > 1
    _require(concerned, "fc_layers", f"be at least 2 with --rule {config.rule}, or take --layers all", config)


def _scale_is_right(scale: Any) -> bool:
    if isinstance(scale, (int, float)) and not isinstance(scale, bool):
        return 0 < scale < math.inf
    return scale is None or scale in SCALES


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of the step with this number (0 first) in a run of `steps`.

    "cosine" falls to 0 over the run, "step" is divided by 10 after a half and again after three quarters of it.
    """
    if config.schedule == "cosine":
        return config.base_lr * (1 + math.cos(math.pi * step / steps)) / 2
    if config.schedule == "step":
        return config.base_lr * 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
    return config.base_lr


# Where the data lie and whether they may be fetched decides nothing about the run; the images' checksum does.
_FREE_ON_RESUME = ("data_dir", "download")


def reconcile(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings to resume with, when a user gave some again; UsageError where one differs from the run's."""
    for name, value in given.items():
        kept = config.base_lr if name == "lr" else getattr(config, name)
        if value == kept or name in _FREE_ON_RESUME:
            continue
        if name == "epochs" and value > kept:
            _require_extendable(config, value)
            continue
        raise UsageError(
            f"--{name.replace('_', '-')} {value} conflicts with the run to resume, which has {kept}; leave "
            "the flag out, or begin a new run without --resume"
        )
    return replace(config, **{name: value for name, value in given.items() if name != "lr"})


def _require_extendable(config: TrainConfig, epochs: int) -> None:
    if config.schedule != "constant":
        raise UsageError(
            f"--epochs {epochs} conflicts with the run to resume, which has {config.epochs}: its "
            f"{config.schedule} schedule was laid out over them; only runs with --schedule constant can be made longer"
        )
