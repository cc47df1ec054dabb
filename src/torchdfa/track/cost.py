"""What the error path of the head costs by rule: multiplies, bytes, and where the time of tracking went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchdfa
from torchdfa.track.learner import LAYERS, Learner


def error_path(learner: Learner) -> dict[str, Any]:
    """Per example: multiplies that bring the error to fc5 and fc4, and bytes of the weights they read.

    BP multiplies by the live fc6 and fc5; FA by as many fixed weights; DFA by 2 x 512 for each layer; BDFA by signs,
    which are additions.
    """
    shapes = [tuple(learner.layer(name).weight.shape) for name in LAYERS[1:]]
    rule = learner.config.rule if learner.converted else "bp"
    live = sum(rows * columns for rows, columns in shapes)
    direct = sum(shapes[-1][0] * columns for _, columns in shapes)
    bytes_of_feedback = torchdfa.report(learner.head).feedback_bytes if learner.converted and rule != "bp" else 0
    multiplies, additions = {"bp": (live, 0), "fa": (live, 0), "dfa": (direct, 0), "bdfa": (0, direct)}.get(
        rule, (0, 0)
    )
    return {
        "multiplies": multiplies,
        "sign_additions": additions,
        "bytes": {"bp": 4 * live, "frozen": 0}.get(rule, bytes_of_feedback),
    }


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of each part in the time spent, in percent."""
    total = sum(seconds.values())
    return {part: round(100 * value / total, 1) if total else 0.0 for part, value in seconds.items()}
