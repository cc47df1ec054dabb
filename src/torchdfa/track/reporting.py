"""`torchdfa otb report`: scores of every tracker in a folder of results, seeds together, rules compared in pairs."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.track import bootstrap, results, table
from torchdfa.track.options import PRESETS
from torchdfa.track.scoring import Scores, evaluate, markdown
from torchdfa.track.sequences import OTB
from torchdfa.train import runs

# As experiments.name_of writes them; the preset stands last before the batch.
FORCED = "candidates around the truth (forced)"  # a condition that is no one-pass evaluation
_NAME = re.compile(rf"^(?P<arm>(?P<rule>.+?(?:-(?P<preset>{'|'.join(PRESETS)}))?)-b(?P<batch>\d+))-s(?P<seed>\d+)$")


@dataclass
class Arm:
    """Trackers that differ in their seed alone, scored over the sequences that all of them have.

    ``left_out`` counts the sequences that only some of them have: a mean of seeds is over the same sequences.
    """

    name: str
    scores: list[Scores]
    left_out: int = 0

    @property
    def rule(self) -> str:
        found = _NAME.match(f"{self.name}-s0")
        return found["rule"] if found else self.name

    @property
    def preset(self) -> str | None:
        found = _NAME.match(f"{self.name}-s0")
        return found["preset"] if found else None

    @property
    def batch(self) -> int | None:
        found = _NAME.match(f"{self.name}-s0")
        return int(found["batch"]) if found else None

    @property
    def weights(self) -> dict[str, str | None]:
        """What each seed was run with."""
        return {s.tracker.removeprefix(self.name): s.weights for s in self.scores}

    def by_sequence(self, measure: str = "auc") -> dict[str, float]:
        """Mean over seeds of one measure of each sequence."""
        names = sorted(self.scores[0].sequences)
        return {n: statistics.fmean(getattr(s.sequences[n], measure) for s in self.scores) for n in names}

    def mean_and_std(self, measure: str) -> tuple[float, float | None]:
        values = [getattr(s, measure) for s in self.scores]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def tracker_folders(paths: Seq[Path]) -> list[Path]:
    """Folders of one tracker's results each: those given, or those within them."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder of results")
        if _holds_results(path):
            found[path] = None
        for inner in sorted(p for p in path.iterdir() if p.is_dir() and p.name not in ("times", "records", "partial")):
            if _holds_results(inner):
                found[inner] = None
    if not found:
        raise UsageError(f"no results in {', '.join(map(str, paths))}: a folder for each tracker, a file a sequence")
    names = [path.name for path in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two folders of results are named {name!r}; rename one")
    return list(found)


def _holds_results(folder: Path) -> bool:
    files = (p for p in folder.iterdir() if p.suffix in (".txt", ".json", ".mat"))
    return any(table.known(p.stem.removesuffix(f"_{folder.name}")) for p in files) or any(folder.glob("*/result.json"))


def score_all(
    paths: Seq[Path], data: OTB, *, rules: str = "otb", missing: str = "error", truncate: bool = False,
    frames: int | None = None,
) -> list[Scores]:  # fmt: skip
    """Scores of every tracker found; one that ran only the first frames is scored on these, or on the first of them.

    A tracker does not look ahead: whole results cut to ``frames`` are those of a run over so many.
    """
    if frames is not None and frames < 2:
        raise UsageError(f"--frames must be at least 2, the first being given; got {frames}")
    scores = []
    for folder in tracker_folders(paths):
        found = results.read(folder)
        results.warn_of_unknown(found)
        config = runs.read_json(folder / runs.CONFIG) if (folder / runs.CONFIG).is_file() else {}
        ran = _frames(folder, config)
        if frames is not None and ran is not None and frames > ran:
            raise UsageError(f"{folder} has the first {ran} frames of each sequence; --frames {frames} is more")
        whole = data if ran is None else data.head(ran)
        scored = evaluate(found, whole, rules=rules, missing=missing, truncate=truncate, frames=frames)
        version = _condition(data, ran if frames is None else frames, forced=bool(config.get("forced")))
        scores.append(dataclasses.replace(scored, version=version, weights=_weights(config)))
    return scores


def _weights(config: Mapping[str, Any]) -> str | None:
    """A short name of the weights that a run had, None where it does not say."""
    found = config.get("weights")
    return found["sha256"][:8] if isinstance(found, dict) and isinstance(found.get("sha256"), str) else None


def _frames(folder: Path, config: Mapping[str, Any]) -> int | None:
    frames = config.get("frames")
    if frames is not None and (type(frames) is not int or frames < 1):
        raise UsageError(f"{folder / runs.CONFIG} is damaged: frames should be a whole number or null, not {frames!r}")
    return frames


def _condition(data: OTB, frames: int | None, *, forced: bool) -> str:
    cut = data if frames is None else data.head(frames)
    return (cut.noted(FORCED) if forced else cut).version


def arms(scores: Seq[Scores]) -> list[Arm]:
    """Seeds gathered; larger batches first."""
    found: dict[str, list[Scores]] = defaultdict(list)
    for s in scores:
        match = _NAME.match(s.tracker)
        found[match["arm"] if match else s.tracker].append(s)
    gathered = [_arm(name, seeds) for name, seeds in found.items()]
    return sorted(gathered, key=lambda arm: (-(arm.batch or 0), arm.rule.partition("-")[0] != "bp", arm.rule))


def _arm(name: str, seeds: Seq[Scores]) -> Arm:
    each = [set(s.sequences) for s in seeds]
    shared = set.intersection(*each)
    if not shared:
        raise UsageError(f"the seeds of {name} have no sequence in common; report them apart, or run what they lack")
    return Arm(name, [s.over(shared) for s in seeds], len(set.union(*each) - shared))


def condition(scores: Seq[Scores]) -> str:
    """The set and condition that all of them are of; UsageError where they differ, as then they cannot be compared."""
    found = {s.version: s.tracker for s in reversed(scores)}
    if len(found) > 1:
        seen = "; ".join(f"{tracker} on {version}" for version, tracker in reversed(found.items()))
        raise UsageError(f"results of different conditions cannot stand together ({seen}); report and plot each apart")
    return next(iter(found))


def pairs(found: Seq[Arm]) -> dict[str, tuple[Arm, Arm]]:
    """Each rule against bp of the same preset and batch size."""
    plain = {(arm.batch, arm.preset): arm for arm in found if arm.rule.partition("-")[0] == "bp"}
    compared = [(arm, plain.get((arm.batch, arm.preset))) for arm in found if arm.batch is not None]
    return {f"{arm.name} - {bp.name}": (arm, bp) for arm, bp in compared if bp is not None and arm is not bp}


def comparisons(found: Seq[Arm], measure: str = "auc") -> dict[str, bootstrap.Comparison]:
    """Paired bootstrap of each pair, over the sequences that both have."""
    compared = {}
    for name, (arm, plain) in pairs(found).items():
        a, b = arm.by_sequence(measure), plain.by_sequence(measure)
        shared = sorted(set(a) & set(b))
        if len(shared) >= 2:
            compared[name] = bootstrap.compare({n: a[n] for n in shared}, {n: b[n] for n in shared})
    return compared


def text(scores: Seq[Scores]) -> str:
    """Everything as Markdown: trackers, seeds together, comparisons, attributes."""
    found = arms(scores)
    parts = [f"{condition(scores)}:", markdown(list(scores))]
    cut = [f"of {s.tracker}'s {name} {n} of {of} frames" for s in scores for name, (n, of) in s.cut.items()]
    parts += [f"Truncated: {', '.join(cut)} counted."] if cut else []
    if len({s.weights for s in scores}) > 1:
        parts.append(_by_weights(scores))
    if any(len(arm.scores) > 1 for arm in found):
        parts.append(_seeds(found))
    compared = comparisons(found)
    if compared:
        unlike = {name for name, (arm, plain) in pairs(found).items() if arm.weights != plain.weights}
        lines = [f"- {name}{' (other weights)' * (name in unlike)}: {value}" for name, value in compared.items()]
        parts.append("Success AUC, difference (paired bootstrap over sequences):\n\n" + "\n".join(lines))
    attributes = _attributes(scores)
    parts += [attributes] if attributes else []
    return "\n\n".join(parts) + "\n"


def _by_weights(scores: Seq[Scores]) -> str:
    """A difference between trackers of other weights is not one of their rules."""
    trackers: dict[str, list[str]] = defaultdict(list)
    for s in scores:
        trackers[s.weights or "not known"].append(s.tracker)
    most = max(trackers, key=lambda weights: len(trackers[weights]))
    others = len(trackers.pop(most))
    said = "; ".join(f"{weights} of {', '.join(sorted(names))}" for weights, names in trackers.items())
    return f"Weights differ: {said}; {most} of the other {others}."


def _seeds(found: Seq[Arm]) -> str:
    rows = ["| tracker | seeds | sequences | success AUC | precision@20 |", "|---|---|---|---|---|"]
    for arm in found:
        figures = []
        for measure in ("auc", "precision20"):
            mean, std = arm.mean_and_std(measure)
            figures.append(f"{mean:.3f}" + (f" ± {std:.3f}" if std is not None else ""))
        rows.append(f"| {arm.name} | {len(arm.scores)} | {len(arm.by_sequence())} | {' | '.join(figures)} |")
    partial = [f"{arm.left_out} of {arm.name}" for arm in found if arm.left_out]
    said = f"\n\nOver the sequences that all seeds have; left out: {', '.join(partial)}." if partial else ""
    return "\n".join(rows) + said


def _attributes(scores: Seq[Scores]) -> str:
    present = [a for a in table.ATTRIBUTES if any(s.with_attribute(a) for s in scores)]
    if not present:
        return ""
    counts = {a: max(len(w.sequences) for s in scores if (w := s.with_attribute(a))) for a in present}
    head = ["success AUC", *(f"{a} ({counts[a]})" for a in present)]
    rows = [head, ["---"] * len(head)]
    for s in sorted(scores, key=lambda s: -s.auc):
        row = [f"{w.auc:.3f}" if (w := s.with_attribute(a)) else "-" for a in present]
        rows.append([s.tracker, *row])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(out: Path, scores: Seq[Scores]) -> None:
    """report.md, performance.json (got10k's layout, a key for each tracker) and comparisons.json."""
    runs.make(out)
    compared: dict[str, Any] = {
        measure: {name: {**vars(c), "verdict": c.verdict} for name, c in comparisons(arms(scores), measure).items()}
        for measure in ("auc", "precision20")
    }
    runs.write(out / "report.md", text(scores).encode())
    runs.write_json(out / "performance.json", {s.tracker: s.to_dict() for s in scores})
    runs.write_json(out / "comparisons.json", compared)
