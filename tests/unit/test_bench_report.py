"""The benchmark's arithmetic, on records made by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgemoe import Setup
from edgemoe.bench.engines import Setting
from edgemoe.bench.report import bound, decode_rate, hit_rate, spread, summarise
from edgemoe.bench.runner import Side, Workload, interleave, passage


def record(side: str, token_s: list[float], prefill_s: float = 2.0, **decode: int) -> dict[str, Any]:
    return {
        "side": side,
        "token_s": token_s,
        "decode": decode,
        "prefill_s": prefill_s,
        "prefill": {"read_bytes": 10**9},
        "first_token_s": 1.0,
        "load_s": 0.5,
        "limit_peak_bytes": None,
        "peak_rss_bytes": 100,
    }


def test_a_spread_is_median_and_extremes() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 3)


def test_the_decode_rate_weighs_tokens_by_their_time() -> None:
    assert decode_rate(record("edgemoe", [0.1, 0.3])) == pytest.approx(5.0)
    assert decode_rate(record("edgemoe", [0.1, 0.3]), 1) == pytest.approx(10.0)


def test_an_engine_without_a_cache_has_no_hit_rate() -> None:
    assert hit_rate(record("llama.cpp", [1.0], drive_bytes=5)) is None
    assert hit_rate(record("edgemoe", [1.0], n_hit=3, n_miss=1)) == 0.75


def test_the_bound_is_the_slower_of_drive_and_computation() -> None:
    assert bound(1e9, 1e9, 0.5, 2.0).efficiency == 0.5
    assert bound(1e9, 1e9, 1.5, 2.0).efficiency == 0.75
    assert bound(0, 1e9, None, 2.0).efficiency == 0.0


def test_ratios_compare_medians_and_the_tokens_that_both_decoded() -> None:
    ours = [record("edgemoe", [0.1, 0.1, 0.4, 0.4], read_bytes=400) for _ in range(3)]
    theirs = [record("llama.cpp", [1.0, 1.0], prefill_s=4.0, drive_bytes=80) for _ in range(3)]
    summary = summarise(ours + theirs, 512, disk_bytes_per_s=1e9)
    ratio = summary["ratios"]["llama.cpp"]
    assert ratio["decode"] == pytest.approx(4.0)
    assert ratio["decode_same_tokens"] == pytest.approx(10.0)
    assert ratio["prefill"] == pytest.approx(2.0)
    assert summary["sides"]["edgemoe"]["decode_bytes_per_token"]["median"] == 100
    assert summary["sides"]["llama.cpp"]["decode_bytes_per_token"]["median"] == 40


def test_single_runs_have_no_ratio() -> None:
    summary = summarise([record("edgemoe", [0.1]), record("llama.cpp", [1.0])], 512, disk_bytes_per_s=None)
    assert summary["ratios"]["llama.cpp"]["decode"] is None


def test_only_ours_is_held_against_the_drive_and_the_resident_run() -> None:
    records = [record("edgemoe", [0.2], read_bytes=10**8), record("llama.cpp", [1.0], drive_bytes=10**8)]
    sides = summarise(records, 512, disk_bytes_per_s=1e9, resident=record("resident", [0.15], prefill_s=1.5))["sides"]
    assert sides["edgemoe"]["bounds"]["decode"]["efficiency"] == pytest.approx(0.75)
    assert sides["edgemoe"]["bounds"]["prefill"]["efficiency"] == pytest.approx(0.75)
    assert sides["llama.cpp"]["bounds"] == {}


def test_repetitions_alternate() -> None:
    setting = Setting("x.gguf", Setup(memory=1, ctx=512, threads=2, policy="lfru"))
    sides = [Side(name, name, setting, 0, 1) for name in ("edgemoe", "llama.cpp")]
    assert [side.name for _, side in interleave(sides, 2)] == ["edgemoe", "llama.cpp", "llama.cpp", "edgemoe"]


def test_a_setting_reaches_the_child_whole() -> None:
    setting = Setting("x.gguf", Setup(memory=1, ctx=512, threads=2, policy="lru", read_limit="100MB", prefetch="off"))
    assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting


def test_the_context_holds_the_longer_of_decode_and_prefill() -> None:
    assert Workload("", 8, 128, 512, 24, warm=False).n_ctx == 512
    assert Workload("", 8, 600, 512, 24, warm=False).n_ctx == 768


def test_the_bundled_passage_is_text_enough_for_the_defaults() -> None:
    assert len(passage().split()) > 1024
