from __future__ import annotations

import json
from dataclasses import fields, replace

from edgemoe import _abi
from edgemoe.runtime.engine.stats import Stats, reading
from edgemoe.runtime.setup import POLICIES, PREFETCH, READERS

ZERO = Stats(**{field.name: 0 for field in fields(Stats)})  # type: ignore[arg-type]


def test_every_native_counter_is_there() -> None:
    native = {field[0] for field in _abi.Stats._fields_} - {"struct_size", "reserved", "reserved2"}
    assert native <= {field.name for field in fields(Stats)}


def test_names_are_in_the_order_of_the_header() -> None:
    assert [READERS.index(name) for name in ("auto", "threads", "uring")] == [
        _abi.READER_AUTO,
        _abi.READER_THREADS,
        _abi.READER_URING,
    ]
    numbers = {name: getattr(_abi, f"POLICY_{name.upper().replace('-', '_')}") for name in POLICIES}
    assert numbers == {name: number for number, name in enumerate(POLICIES)}
    modes = {name: getattr(_abi, f"PREFETCH_{name.upper()}") for name in PREFETCH}
    assert modes == {name: number for number, name in enumerate(PREFETCH)}


def test_rates_are_derived_and_zero_before_anything_happened() -> None:
    assert (ZERO.decode_tok_s, ZERO.prefill_tok_s, ZERO.hit_rate, ZERO.read_bytes_per_s) == (0, 0, 0, 0)
    stats = replace(
        ZERO, n_decode=10, decode_ns=2 * 10**9, n_prefill=100, prefill_ns=10**9, n_hit=3, n_miss=1, read_bytes=600
    )
    assert (stats.decode_tok_s, stats.prefill_tok_s, stats.hit_rate, stats.read_bytes_per_s) == (5, 100, 0.75, 200)


def test_a_difference_has_new_counters_and_the_newer_state() -> None:
    before = replace(ZERO, n_decode=5, n_miss=7, n_slot=100, rss_bytes=50, prefill_bytes=30)
    after = replace(ZERO, n_decode=9, n_miss=17, n_slot=80, rss_bytes=40, prefill_bytes=30)
    part = after.since(before)
    assert (part.n_decode, part.n_miss, part.n_slot, part.rss_bytes, part.prefill_bytes) == (4, 10, 80, 40, 30)


def test_what_is_a_size_is_a_state() -> None:
    stats = Stats(**{field.name: 7 for field in fields(Stats)})  # type: ignore[arg-type]
    part = stats.since(stats).to_dict()
    counters = {name for name, value in part.items() if value == 0}
    sizes = {name for name in part if name.endswith("_bytes")}
    assert sizes & counters == {"read_bytes", "prefetch_bytes", "row_read_bytes", "skip_bytes"}


def test_how_experts_are_read_says_what_is_not_to_be_had() -> None:
    assert reading(True, "uring", False) == "past the page cache (O_DIRECT), io_uring"
    assert reading(True, "threads", False) == "past the page cache (O_DIRECT), threads (no io_uring)"
    assert reading(False, "threads", False) == "through the page cache (no O_DIRECT), threads"


def test_stats_are_json() -> None:
    assert json.loads(json.dumps(ZERO.to_dict()))["hit_rate"] == 0
