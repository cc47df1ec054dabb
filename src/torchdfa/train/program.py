"""What `torchdfa train` does: make or reopen a run folder, read the data, train, and leave the result there."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

import torchdfa
from torchdfa.errors import RunError, UsageError
from torchdfa.train import checkpoint, datasets, machine, runs
from torchdfa.train.config import TrainConfig, reconcile
from torchdfa.train.finish import finish
from torchdfa.train.loop import Trainer, build
from torchdfa.train.progress import Display
from torchdfa.train.stop import Stopped, StopSignals

_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# Fixed: runs of several seeds share their subset and their held-out images.
_DATA_SEED = 0


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    deadline: float | None = None,
    quiet: bool = False,
    pictures: bool = True,
) -> runs.Run:
    """Train one network and return its finished run, in the folder `out` (runs/<config.run_name> by default).

    At `deadline` (Unix time) it stops as at a signal: it saves and raises Stopped. `quiet` shows no progress;
    without `pictures` none are drawn at the end.
    """
    return train_all([config], folders([config], out), deadline=deadline, quiet=quiet, pictures=pictures)[0]


def folders(configs: Sequence[TrainConfig], out: str | Path | None) -> list[Path]:
    """The run folder of each: `out` for a single one, its subfolders for several, those of runs/ without it."""
    names = [config.run_name for config in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"--rule names a rule twice: {', '.join(config.rule for config in configs)}")
    if out is not None and len(names) == 1:
        return [Path(out)]
    return [Path("runs" if out is None else out) / name for name in names]


def train_all(
    configs: Sequence[TrainConfig],
    folders: Sequence[Path],
    *,
    deadline: float | None = None,
    quiet: bool = False,
    pictures: bool = True,
) -> list[runs.Run]:
    """Train one run after another on the same data, which the first one's settings name.

    What can be wrong with settings and folders is found before any data are read, and what can be wrong with the
    data for any of the runs before the first trains.
    """
    resolved = [machine.resolve(config) for config in configs]
    launched = [launch(*parts) for parts in zip(configs, resolved, folders, strict=True)]
    made: list[Path] = []
    try:
        for folder in folders if launched[0].is_global_zero else ():
            made += runs.absent(folder)
            runs.create(folder)
        data = _prepare(configs, launched[0])
    except Exception:
        runs.discard(made)
        raise
    found = []
    for i, (config, on, folder, fabric) in enumerate(zip(configs, resolved, folders, launched, strict=True)):
        try:
            found.append(_run(config, on, folder, fabric, data, deadline=deadline, quiet=quiet, pictures=pictures))
        except (RunError, Stopped) as error:
            rest = ",".join(config.rule for config in configs[i + 1 :])
            if rest:
                error.args = (f"{error}; the rest can be trained with --rule {rest} and the other flags as before",)
            raise
    return found


def _prepare(configs: Sequence[TrainConfig], fabric: Fabric) -> datasets.Data:
    """The data of the runs, once it is known that each of them can train on it."""
    data = load(configs[0])
    if fabric.is_global_zero:
        for warning in data.source.get("warnings", []):
            print(f"warning: {warning}", file=sys.stderr)
    torch.set_num_threads(machine.choose_threads(configs[0].threads, data.train_x[0, 0].numel()))
    for config in configs:
        check(config, data, fabric.world_size)
    return data


def check(config: TrainConfig, data: datasets.Data, processes: int) -> None:
    """UsageError or ConversionError where the network cannot be built for the data or trained on them."""
    build(config, data)
    last = len(data.train_y) // processes % (config.batch_size // processes)
    if last == 1 and (config.fc_batch_norm or data.train_x.shape[-1] < 8):
        raise UsageError(
            f"--batch-size {config.batch_size} leaves a last batch of one image out of {len(data.train_y)}, which "
            f"batch norm cannot train on; take --batch-size {config.batch_size + processes}"
        )


def resume(
    folder: str | Path,
    given: Mapping[str, Any] | None = None,
    *,
    deadline: float | None = None,
    quiet: bool = False,
    pictures: bool = True,
) -> runs.Run:
    """Continue a run where its checkpoint left it, bit for bit; returns it finished.

    `deadline`, `quiet` and `pictures` are those of `train`.
    `given` are settings that the user named again: one that differs from the run's raises UsageError.
    """
    folder = Path(folder)
    run = runs.read(folder)
    state = checkpoint.load(folder / runs.CHECKPOINT)
    saved = TrainConfig.from_dict(state["config"])
    config = reconcile(saved, dict(given or {}))
    if (folder / runs.MANIFEST).exists() and config.epochs == saved.epochs:
        return run
    before = run.config.get("resolved", {})
    exact = replace(
        config, device=before.get("device", "auto"), precision=before.get("precision", "auto"),
        threads=before.get("threads"), convolutions=before.get("convolutions", "torch"),
    )  # fmt: skip
    resolved = machine.resolve(exact)
    fabric = launch(exact, resolved, folder)
    if fabric.world_size != state["world_size"]:
        raise UsageError(
            f"{folder} was trained by {state['world_size']} process(es) and is now resumed by {fabric.world_size}; "
            "start as many as before"
        )
    data = load(config)
    torch.set_num_threads(machine.choose_threads(exact.threads, data.train_x[0, 0].numel()))
    if digest(data) != state["data"]:
        raise UsageError(f"{folder} was trained on other images than {config.data} now holds; restore them to resume")
    return _run(config, resolved, folder, fabric, data, state, deadline=deadline, quiet=quiet, pictures=pictures)


def launch(config: TrainConfig, resolved: machine.Resolved, folder: Path) -> Fabric:
    """Fabric on that device and at that precision; several processes where torchrun started several."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if config.batch_size % world:
        raise UsageError(f"--batch-size {config.batch_size} must be a multiple of the {world} processes that share it")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its notes would stand between our lines
    fabric = Fabric(
        accelerator=resolved.device, devices=local, num_nodes=world // local, strategy="ddp" if world > 1 else "auto",
        precision=_FABRIC_PRECISION[resolved.precision], loggers=_loggers(config, folder),  # type: ignore[arg-type]
    )  # fmt: skip
    fabric.launch()
    return fabric


def _loggers(config: TrainConfig, folder: Path) -> list[Any]:
    if not config.tensorboard:
        return []
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    try:
        return [TensorBoardLogger(folder, name="tensorboard", version="")]
    except ModuleNotFoundError:
        raise UsageError("--tensorboard needs a package that is missing: pip install 'torchdfa[tensorboard]'") from None


def load(config: TrainConfig) -> datasets.Data:
    """The data that the settings name."""
    return datasets.load(
        config.data, data_dir=Path(config.data_dir) if config.data_dir else None, image_size=config.image_size,
        download=config.download, subset=config.subset, validate=config.validate, seed=_DATA_SEED,
    )  # fmt: skip


def digest(data: datasets.Data) -> str:
    """sha256 of all images and labels in their order."""
    found = hashlib.sha256()
    for tensor in (data.train_x, data.train_y, data.test_x, data.test_y):
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.contiguous().numpy().data.cast("B"))
    return found.hexdigest()


def _run(
    config: TrainConfig,
    resolved: machine.Resolved,
    folder: Path,
    fabric: Fabric,
    data: datasets.Data,
    state: dict[str, Any] | None = None,
    *,
    deadline: float | None,
    quiet: bool,
    pictures: bool,
) -> runs.Run:
    first = fabric.is_global_zero
    with runs.hold(folder, wanted=first):
        trainer = Trainer(config, data, fabric, folder, digest(data), convolutions=resolved.convolutions)
        if state is not None:
            checkpoint.restore(trainer, state)
        if first:
            _open(trainer, resolved, folder, fabric)
        if state is None:
            _require_room(trainer)
            trainer.save()
        shown = first and not quiet
        with StopSignals(deadline) as signals, _display(trainer, shown=shown) as display, _compiling(config):
            trainer.fit(display, signals)
            if first:
                finish(trainer, folder, signals, pictures=pictures)
        fabric.barrier()
        return runs.read(folder)


def _require_room(trainer: Trainer) -> None:
    """RunError, before any training, where the disk cannot hold two checkpoints with momentum and the model."""
    needed = 5 * sum(p.numel() * p.element_size() for p in trainer.net.parameters())
    free = shutil.disk_usage(trainer.folder).free
    if free < needed:
        raise RunError(
            f"{trainer.folder} has {free / 1e6:.0f} MB left and the run needs about {needed / 1e6:.0f} MB; free some, "
            "or take another --out"
        )


@contextmanager
def _compiling(config: TrainConfig) -> Iterator[None]:
    """Say in a sentence that torch.compile failed, most often for want of a C++ compiler."""
    try:
        yield
    except Exception as error:
        if not config.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise RunError(f"torch.compile failed ({str(error).strip().splitlines()[0]}); leave --compile out") from error


def _display(trainer: Trainer, *, shown: bool) -> Display:
    return Display(trainer.config.label, trainer.config.epochs, len(trainer.batches), trainer.step_number, shown=shown)


def _open(trainer: Trainer, resolved: machine.Resolved, folder: Path, fabric: Fabric) -> None:
    """Write the settings, and drop what the folder says of the time after the checkpoint."""
    config = trainer.config
    for name in (runs.MANIFEST, runs.RESULT):  # of a finished run that is made longer
        (folder / name).unlink(missing_ok=True)
    runs.write_json(
        folder / runs.CONFIG,
        {
            "format": runs.FORMAT,
            "config": config.to_dict(),
            "label": config.label,
            "resolved": {
                "lr": config.base_lr,
                **asdict(resolved),
                "threads": torch.get_num_threads(),
                "world_size": fabric.world_size,
            },
            "machine": machine.describe(),
            "data": {"source": trainer.data.source, "sha256": trainer.data_digest, "classes": trainer.data.classes,
                     "train_images": len(trainer.data.train_y), "test_images": len(trainer.data.test_y)},
            "report": torchdfa.report(trainer.net).to_dict(),
        },
    )  # fmt: skip
    runs.forget_after(folder, trainer.step_number, trainer.epoch)
