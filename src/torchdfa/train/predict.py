"""A trained model on photos that it has not seen: a line for each, and how many are right where that is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train import export, outputs, photos, runs
from torchdfa.train.csvfile import to_csv
from torchdfa.train.intervals import wilson
from torchdfa.train.metrics import metrics
from torchdfa.train.scan import Scan, photos_in, readable

_CHUNK = 256  # photos in memory at a time
_NAMED = 5  # broken photos named on the screen; the CSV names all


@dataclass(frozen=True)
class Photo:
    """One photo: its prediction, or the reason why there is none."""

    path: Path
    found: export.Prediction | None
    reason: str = ""
    true_class: str | None = None  # where the photo lies in a folder named like a class
    trained_on: bool = False


@dataclass(frozen=True)
class Predicted:
    """Predictions for photos; `figures` are those of `metrics` on the photos whose class is known, or None."""

    photos: list[Photo]
    figures: dict[str, Any] | None
    out: Path | None = None  # the CSV file that has them

    def __str__(self) -> str:
        """What a user should know: a line a photo where no CSV has them, how many were left out, how many right."""
        lines = [] if self.out else [f"{readable(p.path)}: {p.found}" for p in self.photos if p.found]
        return "\n".join([*lines, self._count(), *self._accuracy()])

    def _count(self) -> str:
        broken = [photo for photo in self.photos if photo.found is None]
        text = f"{len(self.photos) - len(broken)} photo(s) classified"
        if not broken:
            return text
        named = [f"{readable(photo.path)} ({photo.reason})" for photo in broken[:_NAMED]]
        more = [f"and {len(broken) - _NAMED} more"] if len(broken) > _NAMED else []
        return f"{text}, {len(broken)} left out: {'; '.join(named + more)}"

    def _accuracy(self) -> list[str]:
        trained_on = sum(photo.trained_on for photo in self.photos)
        note = [f"{trained_on} of the photos were trained on and are not counted below"] if trained_on else []
        if self.figures is None:
            return note
        n, top1 = self.figures["samples"], self.figures["top1"]
        low, high = (100 * bound for bound in wilson(top1 / 100, n))
        return [
            *note,
            f"{top1:.1f} % right of the {n} photo(s) in a folder named like a class (95 % interval {low:.1f} to "
            f"{high:.1f} %), balanced accuracy {self.figures['balanced_accuracy']:.1f} %",
        ]


def predict(run: str | Path, source: str | Path, out: str | Path | None = None) -> Predicted:
    """Classify one photo, or every photo under a folder, with the model of a run folder or .safetensors file.

    `out` is a CSV file to write: path, class, probability, the next likeliest, and why a photo was left out.
    Photos that lie in `source/class/` with a known class name give an accuracy; those that the run was trained
    on are left out of it. Raises UsageError where run, photos or `out` cannot be used.
    """
    source, target = Path(source), None if out is None else outputs.usable(Path(out), ".csv")
    model = export.load_model(run)
    files = _files(source)
    trained_on = _trained_on(Path(run))
    done, logits, labels = [], [], []
    for file, result in _outputs(model, files):
        label = _label(file, source, model.classes)
        seen = readable(file.absolute()) in trained_on
        true_class = None if label is None else model.classes[label]
        if isinstance(result, str):
            done.append(Photo(file, None, result, true_class, seen))
            continue
        done.append(Photo(file, export.predictions(result[None], model.classes)[0], "", true_class, seen))
        if label is not None and not seen:
            logits.append(result)
            labels.append(label)
    figures = metrics(torch.stack(logits), torch.tensor(labels), model.classes) if labels else None
    if target is not None:
        runs.write(target, _csv(done, min(5, len(model.classes))))
    return Predicted(done, figures, target)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"{source} does not exist; pass a photo or a folder of photos")
    found = Scan({})
    files = sorted([*photos_in(source, found), *found.heic])  # HEIC is named as left out
    if not files:
        raise UsageError(f"{source} holds no photos ({', '.join(sorted(photos.SUFFIXES))})")
    return files


def _outputs(model: export.TrainedModel, files: list[Path]) -> Iterator[tuple[Path, Tensor | str]]:
    """(file, logits or the reason why there are none), in order."""
    size, channels = model.image_size, len(model.description.mean)

    def decoded(file: Path) -> Tensor | str:
        try:
            return photos.decode_bytes(photos.read(file), size, channels, name=str(file))
        except photos.PhotoError as error:
            return error.reason

    chunks = range(0, len(files), _CHUNK)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool, photos.pillow_warnings(), torch.inference_mode():
        for k in track(chunks, "Reading photos", console=Console(stderr=True), transient=True, disable=len(chunks) < 2):
            part = files[k : k + _CHUNK]
            pixels = list(pool.map(decoded, part))
            images = [image for image in pixels if not isinstance(image, str)]
            logits = iter(model(torch.stack(images)) if images else ())
            for file, image in zip(part, pixels, strict=True):
                yield file, image if isinstance(image, str) else next(logits)


def _label(file: Path, source: Path, classes: tuple[str, ...]) -> int | None:
    """The class whose folder, directly in `source`, the photo lies in."""
    parts = [] if file == source else file.relative_to(source).parts[:-1]
    name = readable(parts[0]) if parts else None
    return classes.index(name) if name in classes else None


def _trained_on(run: Path) -> frozenset[str]:
    """The paths of the photos that a run folder says it was trained on."""
    if not (run / runs.CONFIG).is_file():
        return frozenset()
    data = runs.read(run).config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict) or not isinstance(source.get("train_files"), list):
        return frozenset()
    return frozenset(f"{source.get('path')}/{name}" for name in source["train_files"])


def _csv(done: list[Photo], k: int) -> bytes:
    ranks = range(2, k + 1)
    others = [column for rank in ranks for column in (f"class_{rank}", f"probability_{rank}")]
    header = ["path", "class", "probability", *others, "true_class", "trained_on", "left_out_because"]
    return to_csv(header, (_cells(photo, k) for photo in done))


def _cells(photo: Photo, k: int) -> list[Any]:
    top = photo.found.top5 if photo.found else ((None, None),) * k
    found = [cell for name, probability in top for cell in (name, probability and round(probability, 6))]
    return [str(photo.path), *found, photo.true_class, "yes" if photo.trained_on else "no", photo.reason]
