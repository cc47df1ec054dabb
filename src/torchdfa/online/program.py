"""What `torchdfa online` does: run streams through heads, and leave figures, curves and the head in a folder."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.online import parameters, store, streams
from torchdfa.online.head import OnlineHead
from torchdfa.online.prequential import Record, evaluate
from torchdfa.train import machine, runs
from torchdfa.train.csvfile import to_csv
from torchdfa.train.stop import Stopped, StopSignals

SETTINGS, CURVES, TABLE, PICTURE, HEAD = "online.json", "curves.csv", "table.csv", "curves.png", "head.safetensors"

OF_A_HEAD = ("rule", "hidden", "lr", "momentum", "replay", "classes")  # settings without effect on a loaded one


class StreamStopped(Stopped):
    """A stream stopped at a signal; what was learned is saved."""

    def __init__(self, signum: int, folder: Path, samples: int) -> None:
        more = f"; go on with --load {folder / HEAD} and another --out" if samples else ""
        Exception.__init__(self, f"stopped after {samples} samples of the stream{more}")
        self.signum, self.folder = signum, folder


@dataclass(frozen=True)
class OnlineConfig:
    """Settings of `torchdfa online`, named as its flags; UsageError for a wrong one."""

    rule: str = "bdfa"  # one or several with commas
    hidden: str = "512"  # widths with commas; "none" is softmax regression
    lr: float = 0.01
    momentum: float = 0.0
    replay: int = 0
    classes: str | None = None
    order: str = "random,class,bursts"
    repeats: int = 3
    delay: int = 0
    window: int | None = None
    seed: int = 0
    load: str | None = None

    def __post_init__(self) -> None:
        _require(self.repeats >= 1, "repeats", "be at least 1", self.repeats)
        _require(self.delay >= 0, "delay", "be 0 or a number of samples", self.delay)
        _require(self.window is None or self.window >= 1, "window", "be at least 1", self.window)
        _require(0 <= self.seed < 2**63, "seed", "lie in 0 <= seed < 2^63", self.seed)
        for order in self.orders:
            _require(order in streams.ORDERS, "order", f"be one of {', '.join(streams.ORDERS)}", order)
        _require(self.load is None or len(self.rules) == 1, "rule", "be one alone with --load", self.rule)
        if self.load is None:
            for rule in self.rules:
                parameters.check(self.head(rule, self.seed))

    @property
    def rules(self) -> list[str]:
        return [rule.strip() for rule in self.rule.split(",")]

    @property
    def orders(self) -> list[str]:
        return [order.strip() for order in self.order.split(",")]

    def head(self, rule: str, seed: int) -> OnlineHead:
        """A new head, or the one in the file that `load` names."""
        if self.load is not None:
            return OnlineHead.load(self.load)
        try:
            sizes = tuple(int(width) for width in self.hidden.split(",")) if self.hidden != "none" else ()
        except ValueError:
            raise UsageError(f'--hidden must be widths with commas, or "none"; got {self.hidden!r}') from None
        made: dict[str, Any] = {"hidden_layer_sizes": sizes, "learning_rate": self.lr, "momentum": self.momentum}
        return OnlineHead(rule=rule, replay=self.replay, seed=seed, **made)  # type: ignore[arg-type]


def _require(holds: bool, name: str, rule: str, found: object) -> None:
    if not holds:
        raise UsageError(f"--{name} must {rule}; got {found!r}")


def online(source: str, config: OnlineConfig, out: str | Path | None = None) -> list[dict[str, Any]]:
    """Test, then train along streams of `source`: an .npz of X and y, or CSV lines in a file or, for "-", from stdin.

    Returns a row of figures for each stream. What can be wrong with settings, files and the folder is found before
    anything is learned.
    """
    folder = Path("runs/online" if out is None else out)
    if source.endswith(".npz"):
        data = streams.read_npz(Path(source))
        return _run(folder, config, source, _of_arrays(config, data), data)
    rule = "be left out for a stream that is read once, as it comes"
    _require(config.order in (OnlineConfig.order, "given"), "order", rule, config.order)
    _require(config.repeats in (OnlineConfig.repeats, 1), "repeats", rule, config.repeats)
    config = replace(config, order="given", repeats=1)
    _require(len(config.rules) == 1, "rule", "be one alone for a stream that is read once", config.rule)
    labels = None if config.classes is None else sorted(name.strip() for name in config.classes.split(","))
    if source == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):  # a wrong byte would else take a whole buffer of lines with it
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline="")
        return _run(folder, config, source, [({}, streams.read_lines(sys.stdin), labels)], {})
    try:
        with Path(source).open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            return _run(folder, config, source, [({}, streams.read_lines(lines), labels)], {})
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from None


Stream = tuple[dict[str, Any], Iterable[streams.Sample], Any]


def _of_arrays(config: OnlineConfig, data: dict[str, NDArray[Any]]) -> Iterator[Stream]:
    x, y = data["X"], data["y"]
    for order in config.orders:
        for number in range(1 if order == "given" else config.repeats):
            indices = streams.order(y, order, config.seed + number)
            yield {"order": order, "number": number}, streams.samples(x, y, indices.tolist()), np.unique(y)


def _run(
    folder: Path, config: OnlineConfig, source: str, found: Iterable[Stream], data: dict[str, NDArray[Any]]
) -> list[dict[str, Any]]:
    head = config.head(config.rules[0], config.seed)  # a head that cannot be read is found before the folder is made
    runs.create(folder)
    with runs.hold(folder), StopSignals() as signals:
        settings = {"source": source, **_settings(config, head)}
        runs.write_json(folder / SETTINGS, {"format": 1, "settings": settings, "machine": machine.describe()})
        rows: list[dict[str, Any]] = []
        refusal = None
        for key, rule, stream, classes in _turns(config, found):
            head = config.head(rule, config.seed)
            record = _learn(config, head, stream, classes, data, signals)
            if not record.updates:
                refusal = record.last_refusal
                break
            rows.append({"rule": head.rule, **key} | _figures(config, head, record, data))
            _print(rows[-1])
            if signals.signum:
                break
        if rows:
            _conclude(folder, head, rows)
        else:
            (folder / SETTINGS).unlink()  # so that the folder can be used again
    if signals.signum:
        raise StreamStopped(signals.signum, folder, rows[-1]["samples"] if rows else 0)
    if not rows:
        why = f" ({refusal.splitlines()[0].rstrip('.')})" if refusal else ""
        form = "" if data else "; lines must be label,number,number,... in UTF-8"
        raise UsageError(f"{'stdin' if source == '-' else source} holds no sample that could be learned{why}{form}")
    return rows


def _settings(config: OnlineConfig, head: OnlineHead) -> dict[str, Any]:
    """What is recorded: of a loaded head its own parameters, not those that it would have been made with."""
    values = asdict(config)
    if config.load is None:
        return values
    return {name: values[name] for name in values if name not in OF_A_HEAD} | {"head": store.plain_parameters(head)}


def _turns(config: OnlineConfig, found: Iterable[Stream]) -> Iterator[tuple[dict[str, Any], str, Any, Any]]:
    """Each stream for each rule."""
    for key, stream, classes in found:
        samples = list(stream) if len(config.rules) > 1 else stream
        for rule in config.rules:
            yield key, rule, samples, classes


def _learn(
    config: OnlineConfig,
    head: OnlineHead,
    samples: Iterable[streams.Sample],
    classes: Any,
    data: dict[str, NDArray[Any]],
    signals: StopSignals,
) -> Record:
    """One stream through one head."""

    def each(record: Record, full: bool) -> bool:
        if full and not data:
            print(f"{record.samples} samples  {record.windowed:.2f} % of the last {record.window}", flush=True)
        return bool(signals.signum)

    window = config.window or (max(1, len(data["y"]) // 20) if data else 100)
    return evaluate(head, samples, classes=classes, window=window, delay=config.delay, each=each)


def _figures(config: OnlineConfig, head: OnlineHead, record: Record, data: dict[str, NDArray[Any]]) -> dict[str, Any]:
    figures = {"window": record.window, "delay": config.delay, **record.figures(), "undone": head.undone_}
    if "X_test" in data:
        figures["test"] = round(100 * head.score(data["X_test"], data["y_test"]), 3)
    return figures | {"bytes": head.memory().to_dict(), "last_refusal": record.last_refusal, "points": record.points}


def _print(row: dict[str, Any]) -> None:
    where = f"{row['order']} {row['number']}  " if "order" in row else ""
    test = f", {row['test']:.2f} % of the test set afterwards" if "test" in row else ""
    print(
        f"{row['rule']}  {where}{row['accuracy']:.2f} % before learning, {row['last_window']:.2f} % at the end{test}; "
        f"{row['updates_per_second'] or 0:.0f} updates/s",
        flush=True,
    )
    for name, what in (("refused", "samples could not be used"), ("undone", "updates were not made")):
        if row[name]:
            last = (row["last_refusal"] or "").partition("\n")[0] if name == "refused" else ""
            print(f"warning: {row[name]} {what}{last and ': '}{last}", file=sys.stderr)


def _conclude(folder: Path, head: OnlineHead, rows: list[dict[str, Any]]) -> None:
    """Table, curves, picture, the head of the last stream, checksums."""
    from torchdfa.online.pictures import curves

    runs.write_json(folder / runs.RESULT, {"format": 1, "streams": rows})
    names = [name for name in rows[0] if name not in ("points", "bytes", "last_refusal")]
    table = [[row[name] for name in names] + [sum(_held(row["bytes"]))] for row in rows]
    runs.write(folder / TABLE, to_csv([*names, "bytes"], table))
    lines = [[row["rule"], row.get("order"), row.get("number"), *point] for row in rows for point in row["points"]]
    header = ("rule", "order", "number", "samples", "accuracy of the window", "accuracy", "balanced accuracy")
    runs.write(folder / CURVES, to_csv(header, lines))
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        if row["points"]:
            found.setdefault(row.get("order", "given"), {}).setdefault(row["rule"], []).append(row["points"])
    if found:
        curves(found, rows[0]["window"], folder / PICTURE)
    head.save(folder / HEAD)
    runs.write_manifest(folder)
    print(f"table, curves{', picture' if found else ''} and the last head: {folder}")
    if any(row.get("order") in ("class", "bursts") for row in rows) and not head.replay:
        print(
            "Accuracy before learning is no measure of what is kept where classes come one after the other: it is high "
            "for a head that says what came last. Look at the test set, or keep samples with --replay."
        )


def _held(memory: dict[str, int]) -> Iterator[int]:
    return (value for name, value in memory.items() if name != "feedback_stored")
