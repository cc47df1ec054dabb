"""What a table of runs shows and what it does not, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchdfa.train.arms import differing, short
from torchdfa.train.intervals import difference

Row = dict[str, Any]

_EXPLAINS_THE_IMAGES = ("data", "image_size", "subset", "validate")


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know before the figures are set against each other."""
    found = [f"note: {row['rule']} is not finished: {row['status']} done" for row in rows if not row["finished"]]
    settings = _told(differing([row["settings"] for row in rows]))
    if settings:
        found.append(f"warning: the runs differ in more than the rule: {settings}")
    machine = _told(differing([row["machine"] for row in rows]))
    if machine:
        found.append(f"warning: seconds and images/s cannot be compared, the runs differ in {machine}")
    for row in rows:
        if len(set(row["seeds"])) < row["n"]:
            found.append(f"warning: runs of {row['rule']} share a seed, so their spread says too little")
    missing = _not_shown([row for row in rows if row["finished"]])
    return found + ([f"not shown here: {missing}"] if missing else [])


def sentence(rows: Sequence[Row]) -> str:
    """One sentence on which rule did better, no stronger than the test set and the seeds allow."""
    done = sorted((row for row in rows if row["finished"]), key=lambda row: -row["top1"])
    if not done:
        return "No run has finished, so there is nothing to compare yet."
    if len(done) == 1:
        only, (low, high) = done[0], done[0]["interval"]
        return (
            f"{only['rule']} got {_percent(only['top1'], only)} of {_where(only)} right (95 % interval "
            f"{_percent(low, only)} to {_percent(high, only)}); there is no other finished run to compare it with."
        )
    if not _same_test(done):
        return "The runs were not tested on the same images, so their figures cannot be set against each other."
    return f"On {_where(done[0])}, {_ranking(done)}; {_seeds(done)}{_control(done)}."


def clearly_better(a: Row, b: Row) -> bool:
    """Whether a's top-1 is above b's by more than the test set (95 %) and, where known, the seeds explain."""
    low, _ = difference(a["top1"] / 100, a["test_images"], b["top1"] / 100, b["test_images"])
    return low > 0 and a["top1"] - b["top1"] > (a["top1_std"] or 0) + (b["top1_std"] or 0)


def _ranking(done: Sequence[Row]) -> str:
    best, rest = done[0], done[1:]
    behind = [row for row in rest if clearly_better(best, row)]
    close = [row for row in rest if row not in behind]
    clauses = [f"{_named(best)} is highest"]
    if close:
        clauses.append(f"{_list(close)} {_verb(close, 'lie')} too near it to be called worse (95 %)")
    if behind:
        clauses.append(f"{_list(behind)} {_verb(behind, 'fall')} short by more than chance explains")
    return "; ".join(clauses)


def _seeds(done: Sequence[Row]) -> str:
    if all(row["n"] == 1 for row in done):
        return "each is one run, and another seed may change the order"
    if any(row["n"] == 1 for row in done):
        return "some are one run only, and another seed may change the order"
    return f"all are means over at least {min(row['n'] for row in done)} seeds"


def _control(done: Sequence[Row]) -> str:
    """What the frozen control, if there is one, says about the arms with feedback."""
    frozen = [row for row in done if _rule(row) == "frozen"]
    feedback = [row for row in done if _rule(row) not in ("bp", "frozen")]
    if not frozen or not feedback:
        return ""
    idle = [row for row in feedback if not clearly_better(row, frozen[0])]
    if idle:
        return f"; {_list(idle)} {_is(idle)} not clearly above the frozen control, whose hidden layers never learn"
    return f"; {_list(feedback)} {_is(feedback)} above the frozen control, so the hidden layers have learned"


def _not_shown(done: Sequence[Row]) -> str:
    rules, missing = {_rule(row) for row in done}, []
    if rules - {"bp", "frozen"} and len(done) > 1:
        if "frozen" not in rules:
            missing.append("what the feedback itself teaches (no run with --rule frozen)")
        if "bp" not in rules:
            missing.append("what backpropagation reaches (no run with --rule bp)")
    rates = {row["lr"] for row in done}
    if len(rules) > 1 and len(rates) == 1:
        missing.append(f"whether another learning rate than {rates.pop():g} suits one of the rules better")
    return "; ".join(missing)


def _told(differences: dict[str, list[Any]]) -> str:
    explained = any(key in differences for key in _EXPLAINS_THE_IMAGES)
    keys = [key for key in differences if not (explained and key in ("images", "test images"))]
    return "; ".join(f"{key} ({', '.join(short(value) for value in differences[key])})" for key in keys)


def _same_test(rows: Sequence[Row]) -> bool:
    """Whether all arms were tested on the same images, as far as settings and checksums tell."""
    found = differing([row["settings"] for row in rows])
    changed = {"data", "image_size", "validate", "test images"} & set(found)
    return not changed and ("images" not in found or "subset" in found)


def _where(row: Row) -> str:
    held_out = "held-out training" if row["settings"].get("validate") else "test"
    return f"the {row['test_images']} {held_out} images of {row['data']}"


def _verb(rows: Sequence[Row], plural: str) -> str:
    return f"{plural}s" if len(rows) == 1 else plural


def _is(rows: Sequence[Row]) -> str:
    return "is" if len(rows) == 1 else "are"


def _list(rows: Sequence[Row]) -> str:
    names = [_named(row) for row in rows]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _named(row: Row) -> str:
    return f"{row['rule']} ({_percent(row['top1'], row)})"


def _percent(value: float, row: Row) -> str:
    return f"{value:.{2 if row['test_images'] >= 1000 else 1}f} %"


def _rule(row: Row) -> str:
    return str(row["rule_settings"]["rule"])
