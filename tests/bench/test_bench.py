"""The benches: samples in turns, records that say where they come from, tables from records alone."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from torchdfa import cli
from torchdfa.bench import harness, heads, memory, products, program, table, updates
from torchdfa.bench.harness import Case
from torchdfa.bench.heads import TINY
from torchdfa.bench.peers import HookedDFA
from torchdfa.errors import UsageError


def test_quantiles() -> None:
    assert harness.quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 0.0], 3) == {"median": 2.5, "p20": 1.0, "p80": 4.0}
    assert harness.quantiles([7.0], 3) == {"median": 7.0, "p20": 7.0, "p80": 7.0}


def test_jobs_take_turns_after_one_run_that_is_not_counted() -> None:
    log: list[str] = []
    jobs = {name: (lambda name=name: name, log.append) for name in "abc"}
    samples = harness.in_turns(jobs, 4)
    assert log[:3] == ["a", "b", "c"]
    rounds = [log[3 * i : 3 * i + 3] for i in range(1, 5)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert {name: len(s) for name, s in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_ratio_is_that_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": iter([0, 2.0, 30.0, 4.0]), "fast": iter([0, 1.0, 10.0, 4.0])}
    monkeypatch.setattr(harness, "timed", lambda job: harness.Sample(*[next(times[job[0]])] * 2))
    case = Case("x", "y", lambda: {name: (name, None) for name in times}, (("slow / fast", "slow", "fast"),))  # type: ignore[misc]
    found = harness.record(case, 3)
    assert found["cpu_ratio"] == {"slow / fast": {"median": 2.0, "p20": 1.4, "p80": 2.6}}
    assert found["cpu_ms"]["slow"]["median"] == 4000.0
    assert found["machine"]["torch"] == torch.__version__
    assert found["kernel"]


def test_variants_of_a_product_agree() -> None:
    jobs = products._jobs(5, 70, 900)
    kernel, chunks = (jobs[name][1](None) for name in ("sign_mm", "chunks"))
    torch.testing.assert_close(kernel, chunks, rtol=1e-4, atol=1e-4)


def test_heads_learn_by_what_they_are_named() -> None:
    """The hooked peer computes the gradients of our dense rule from the same feedback."""
    x, y = TINY.data()
    ours = heads._models(TINY)["dfa"]
    peer = HookedDFA(TINY.build())
    places = list(peer.feedback)
    peer.feedback = {i: ours[i].feedback.matrix for i in places}
    for model in (ours, peer):
        torch.nn.functional.cross_entropy(model(x), y).backward()
    for name, parameter in ours.named_parameters():
        twin = peer.layers.get_parameter(name)
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-4, atol=1e-6)


def test_measures_appends_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.jsonl"
    arguments = ["bench", "backward", "step", "--only", "64-128", "--rounds", "2", "--out", str(out)]
    assert cli.main(arguments) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["bench"], r["case"]) for r in records] == [(b, "64-128-128-10, batch 32") for b in ("backward", "step")]
    assert set(records[0]["cpu_ms"]) == {"bp", "dfa", "bdfa"}
    assert {"bp / bdfa", "hooked dfa / dfa"} <= set(records[1]["cpu_ratio"])
    capsys.readouterr()
    assert cli.main(["bench", "--show", str(out)]) == 0
    assert "bp / bdfa" in capsys.readouterr().out
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "kernels.jsonl"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nonsense"], "bench 'nonsense' must be one of sign_mm"),
        (["--size", "huge"], "--size 'huge' must be one of small, full"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--threads", "-1"], "--threads -1 must be at least 1"),
        (["--only", "("], "--only '(' must be a regular expression"),
        (["sign_mm", "--only", "no such case"], "--only 'no such case' matches no case of sign_mm"),
        (["--out", "no-such-folder/r.jsonl"], "--out no-such-folder/r.jsonl must be a file in a folder that exists"),
        (["--show", "missing.jsonl"], "missing.jsonl holds no results"),
        (
            ["--show", str(RESULTS), "--only", "xyz"],
            "--only 'xyz' matches no result of sign_mm, backward, step",
        ),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_last_result_of_a_case_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"bench": "b", "case": c, "n": n}) + "\n" for c, n in ("x1", "y2", "x3")))
    assert [r["n"] for r in table.latest(path)] == ["3", "2"]


def test_memory_in_processes_of_their_own() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs /proc")
    found: dict[str, Any] = dict(memory.measure(2, 2000, 4096, ("kernel", "chunks")))
    assert found["chunks"]["held_bytes"] == found["kernel"]["held_bytes"] == 2000 * 512
    assert found["chunks"]["extra_peak_bytes"] < 20 * 2**20  # the whole matrix would be 33 MB


def test_updates_are_those_of_sgd() -> None:
    weights = []
    for kind in updates.KINDS:
        model, optimizer, x, y = updates.prepared(TINY, "bdfa", kind, 0.9)
        for _ in range(3):
            updates.step(optimizer, updates.forward(model, x, y))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[1:], weights[:1] * 2)
    assert {kind for _, kind in (name.split(", ") for name in updates._jobs(TINY, 0.0))} == set(updates.KINDS)


def test_peaks_of_updates_in_processes_of_their_own() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs /proc")
    head = heads.Head((1024, 2048, 2048, 10), 2, trunk=False)
    found = updates.memory(head, ("bp",))
    gradients = 4 * (1024 * 2048 + 2048 * 2048)
    assert found["bp, fused SGD"]["held_bytes"] == found["bp, in backward"]["held_bytes"] > 2 * gradients
    saved = found["bp, fused SGD"]["extra_peak_bytes"] - found["bp, in backward"]["extra_peak_bytes"]
    assert saved > 0.8 * gradients


_FAULTS = """
import resource, torch
from torchdfa.bench.memory import keep_freed
keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(33 * 2**20, dtype=torch.uint8)  # more than what glibc may come to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(faults() for _ in range(40)))
"""


def test_memory_that_is_kept_is_not_mapped_again() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("needs glibc")
    done = subprocess.run([sys.executable, "-c", _FAULTS], check=True, capture_output=True, text=True)
    first, *later = map(int, done.stdout.split())  # the heap grows until a block of this alignment fits in
    assert first > 1000
    assert min(later) < 10


def test_ratios_of_several_threads_are_of_wall_times_and_stand_beside_those_of_one(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    before = torch.get_num_threads()
    try:
        for threads in ("1", "2"):
            arguments = ["backward", "--only", "64-128", "--rounds", "1", "--threads", threads, "--out", str(out)]
            assert cli.main(["bench", *arguments]) == 0
    finally:
        torch.set_num_threads(before)
    one, two = table.latest(out)
    assert [one["case"], two["case"]] == ["64-128-128-10, batch 32", "64-128-128-10, batch 32, 2 threads"]
    assert dict(table.ratios(one)) == one["cpu_ratio"]
    assert dict(table.ratios(two)) == two["wall_ratio"]


def test_names_are_complete() -> None:
    modules = (products, heads, updates)
    found = {case.bench for size in program.SIZES for module in modules for case in module.cases(size)}
    assert found | {"memory"} == set(program.BENCHES)
    with pytest.raises(UsageError, match="bench 'x'"):
        program.bench(["x"], size="small", only="", rounds=1, threads=1, keep_memory=False, out=None, show=None)
