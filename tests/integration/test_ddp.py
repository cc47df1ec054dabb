"""Two real processes under DistributedDataParallel (gloo). Names mistake 07: each rank draws its own feedback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradients
from integration.ddp_worker import batch, feedback, network
from torchdfa import convert_

WORKER = Path(__file__).with_name("ddp_worker.py")
RULES = ["fa", "dfa", "bdfa", "frozen"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", str(WORKER)]
    workers = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        _, stderr = worker.communicate(timeout=240)
        assert worker.returncode == 0, stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(first: dict[str, Tensor | None], second: dict[str, Tensor | None]) -> None:
    assert first
    gradients.assert_equal(first, second)


@pytest.mark.parametrize("rule", RULES)
def test_07_ranks_hold_equal_feedback_gradients_and_weights(rule: str, ranks: list[dict[str, Any]]) -> None:
    assert_same(ranks[0][rule]["gradients"], ranks[1][rule]["gradients"])
    assert_same(ranks[0][rule]["weights"], ranks[1][rule]["weights"])
    assert ranks[0][rule]["feedback"].keys() == ranks[1][rule]["feedback"].keys()
    for name, matrix in ranks[0][rule]["feedback"].items():
        assert torch.equal(matrix, ranks[1][rule]["feedback"][name])


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_those_of_the_whole_batch_in_one_process(rule: str, ranks: list[dict[str, Any]]) -> None:
    model = convert_(network(), rule)
    x, y = (torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True))
    gradients.assert_close(ranks[0][rule]["gradients"], gradients.of(model, F.cross_entropy(model(x), y)))


def test_07_feedback_drawn_apart_becomes_that_of_the_first_rank(ranks: list[dict[str, Any]]) -> None:
    drawn = [seen["drawn"] for seen in ranks]
    assert any(not torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    expected = feedback(convert_(network(), "bdfa", seed=0))
    for seen in ranks:
        assert seen["careless"]["feedback"].keys() == expected.keys()
        for name, matrix in expected.items():
            assert torch.equal(seen["careless"]["feedback"][name], matrix), name
    assert_same(ranks[0]["careless"]["weights"], ranks[1]["careless"]["weights"])


def test_accumulation_without_synchronising(ranks: list[dict[str, Any]]) -> None:
    assert_same(ranks[0]["accumulated"], ranks[1]["accumulated"])
    model = convert_(network(), "dfa")
    losses = [F.cross_entropy(model(batch(seed)[0]), batch(seed)[1]) for seed in range(4)]
    gradients.assert_close(ranks[0]["accumulated"], gradients.of(model, torch.stack(losses).sum() / 2))
