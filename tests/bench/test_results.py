"""The page on kernels says what the committed results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from torchdfa.bench.table import latest, ratios

ROOT = Path(__file__).resolve().parents[2]
RESULTS = {(r["bench"], r["case"]): r for r in latest(ROOT / "benchmarks" / "results" / "kernels.jsonl")}
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
RATIO = re.compile(r"^\| (\w+) (.+?) \| (.+? / .+?) \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|$", re.MULTILINE)
RATIOS = RATIO.findall(PAGE)


@pytest.mark.parametrize("bench, case, pair, median, low, high", RATIOS)
def test_every_ratio_is_a_result(bench: str, case: str, pair: str, median: str, low: str, high: str) -> None:
    found = dict(ratios(RESULTS[bench, case]))[pair]
    assert [f"{found[key]:.2f}" for key in ("median", "p20", "p80")] == [median, low, high]


def test_every_product_and_head_is_on_the_page() -> None:
    assert {(b, c) for b, c, *_ in RATIOS} == {key for key in RESULTS if key[0] not in ("memory", "update")}


def test_memory_is_a_result() -> None:
    (memory,) = (r["memory"] for (bench, case), r in RESULTS.items() if bench == "memory" and case[0] == "(")
    for kind, name in (("dense", "float32 matrix"), ("kernel", "bits, kernel"), ("seed", "seed")):
        held, added = (memory[kind][key] / 2**20 for key in ("held_bytes", "extra_peak_bytes"))
        assert f"| {name} | {held:.1f} | {added:.1f} |" in PAGE


def test_results_name_their_machine() -> None:
    for result in RESULTS.values():
        assert result["kernel"] == "avx2"
        assert {"cpu", "cpu_flags", "torch", "threads"} <= set(result["machine"])


def test_products_with_avx512_are_results() -> None:
    found = {
        (r["kernel"], r["case"]): dict(ratios(r))["dense / sign_mm"]
        for line in (ROOT / "benchmarks" / "results" / "kernels_xeon.jsonl").read_text(encoding="utf-8").splitlines()
        if (r := json.loads(line))
    }
    shown = re.findall(r"^\| (\([\d,]+\)) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(shown) == 11
    for case, *cells in shown:
        for kernel, text in zip(("avx2", "avx512"), cells, strict=True):
            median, low, high = (f"{found[kernel, case][key]:.2f}" for key in ("median", "p20", "p80"))
            assert text == f"{median} ({low} to {high})"


UPDATES = {(r["bench"], r["case"]): r for r in latest(ROOT / "benchmarks" / "results" / "updates.jsonl")}


def test_the_page_on_updates_says_what_their_results_say() -> None:
    page = (ROOT / "docs" / "optim.md").read_text(encoding="utf-8")
    shown = {(bench, case, pair): values for bench, case, pair, *values in RATIO.findall(page)}
    measured = {
        (*key, pair): [f"{found[kind]:.2f}" for kind in ("median", "p20", "p80")]
        for key, result in UPDATES.items()
        for pair, found in result.get("cpu_ratio", {}).items()
    }
    assert shown == measured
    for (_, case), result in UPDATES.items():
        for name, found in result.get("memory", {}).items():
            held, beside = (found[key] / 2**20 for key in ("held_bytes", "extra_peak_bytes"))
            assert f"| {case} | {name} | {held:.1f} | {beside:.1f} |" in page


def test_what_fusing_could_save_is_as_decided() -> None:
    decisions = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    parts = [r["cpu_ratio"] for r in latest(ROOT / "benchmarks" / "results" / "backward_parts.jsonl")]
    masks = max(p["masks / backward"]["median"] for p in parts)
    saved = max(
        p["projections / backward"]["median"] * (1 - 1 / p["projections / one product"]["median"]) for p in parts
    )
    assert f"take at most {100 * masks:.1f} %, and one product for all layers in place of one each" in decisions
    assert f"would save at most {100 * saved:.1f} %" in decisions


def test_a_direct_backward_peaks_no_higher_than_backprop() -> None:
    for result in latest(ROOT / "benchmarks" / "results" / "backward_parts.jsonl"):
        for kind, mib in result["peak_mib"]["bdfa"].items():
            assert mib <= result["peak_mib"]["bp"][kind]
