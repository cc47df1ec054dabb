"""`torchdfa otb report`: scores of every tracker in a folder of results, seeds together, rules compared in pairs."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.track import bootstrap, results, table
from torchdfa.track.scoring import Scores, evaluate, markdown
from torchdfa.track.sequences import OTB
from torchdfa.train import runs

_NAME = re.compile(r"^(?P<arm>(?P<rule>.+)-b(?P<batch>\d+))-s(?P<seed>\d+)$")


@dataclass
class Arm:
    """Trackers that differ in their seed alone."""

    name: str
    scores: list[Scores] = field(default_factory=list)

    @property
    def rule(self) -> str:
        found = _NAME.match(f"{self.name}-s0")
        return found["rule"] if found else self.name

    @property
    def batch(self) -> int | None:
        found = _NAME.match(f"{self.name}-s0")
        return int(found["batch"]) if found else None

    def by_sequence(self, measure: str = "auc") -> dict[str, float]:
        """Mean over seeds of one measure of each sequence that all of them have."""
        names = set.intersection(*(set(s.sequences) for s in self.scores))
        return {n: statistics.fmean(getattr(s.sequences[n], measure) for s in self.scores) for n in sorted(names)}

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
    paths: Seq[Path], data: OTB, *, rules: str = "otb", missing: str = "error", truncate: bool = False
) -> list[Scores]:
    """Scores of every tracker found; one that ran only the first frames is scored on these."""
    scores = []
    for folder in tracker_folders(paths):
        found = results.read(folder)
        results.warn_of_unknown(found)
        scores.append(evaluate(found, _as_run(folder, data), rules=rules, missing=missing, truncate=truncate))
    return scores


def _as_run(folder: Path, data: OTB) -> OTB:
    config = runs.read_json(folder / runs.CONFIG) if (folder / runs.CONFIG).is_file() else {}
    cut = data.head(config["frames"]) if config.get("frames") else data
    return cut.noted("candidates around the truth (forced)") if config.get("forced") else cut


def arms(scores: Seq[Scores]) -> list[Arm]:
    """Seeds gathered; larger batches first."""
    found: dict[str, Arm] = {}
    for s in scores:
        match = _NAME.match(s.tracker)
        name = match["arm"] if match else s.tracker
        found.setdefault(name, Arm(name)).scores.append(s)
    return sorted(found.values(), key=lambda arm: (-(arm.batch or 0), arm.rule != "bp", arm.rule))


def pairs(found: Seq[Arm]) -> dict[str, tuple[Arm, Arm]]:
    """Each rule against bp of the same batch size."""
    by_batch: dict[int | None, list[Arm]] = defaultdict(list)
    for arm in found:
        by_batch[arm.batch].append(arm)
    chosen = {}
    for batch, group in by_batch.items():
        plain = next((arm for arm in group if arm.rule == "bp"), None)
        for arm in group if batch is not None and plain is not None else ():
            if plain is not None and arm is not plain:
                chosen[f"{arm.name} - {plain.name}"] = (arm, plain)
    return chosen


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
    parts = [f"{' / '.join(dict.fromkeys(s.version for s in scores))}:", markdown(list(scores))]
    if any(len(arm.scores) > 1 for arm in found):
        parts.append(_seeds(found))
    compared = comparisons(found)
    if compared:
        lines = [f"- {name}: {value}" for name, value in compared.items()]
        parts.append("Success AUC, difference (paired bootstrap over sequences):\n\n" + "\n".join(lines))
    attributes = _attributes(scores)
    parts += [attributes] if attributes else []
    return "\n\n".join(parts) + "\n"


def _seeds(found: Seq[Arm]) -> str:
    rows = ["| tracker | seeds | success AUC | precision@20 |", "|---|---|---|---|"]
    for arm in found:
        figures = []
        for measure in ("auc", "precision20"):
            mean, std = arm.mean_and_std(measure)
            figures.append(f"{mean:.3f}" + (f" ± {std:.3f}" if std is not None else ""))
        rows.append(f"| {arm.name} | {len(arm.scores)} | {' | '.join(figures)} |")
    return "\n".join(rows)


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
