"""The lines about what an answer cost."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.cli.panel import Snapshot, level, lines, memory_rows, strip
from edgemoe.cli.status import status_line
from edgemoe.runtime.engine.stats import Stats
from edgemoe.units import MIB

from .test_stats import ZERO

ANSWER = replace(
    ZERO,
    n_decode=10,
    decode_ns=2 * 10**9,
    n_hit=3,
    n_miss=1,
    read_bytes=20 * MIB,
    rss_bytes=148 * MIB,
    budget_bytes=160 * MIB,
    direct_io=True,
    reader="uring",
)


def test_one_line_says_speed_hits_reads_and_memory() -> None:
    assert status_line(ANSWER) == "10 tokens at 5.0 tok/s, 75% hits, 2 MiB/token, 148 MiB of 160 MiB"


def test_slower_ways_of_reading_are_not_silent() -> None:
    assert status_line(replace(ANSWER, reader="threads")).endswith(", no io_uring")
    assert status_line(replace(ANSWER, direct_io=False, reader="threads")).endswith(", no O_DIRECT")
    assert "reading    past the page cache (O_DIRECT), io_uring" in lines(snapshot(ANSWER))
    assert "reading    through the page cache (no O_DIRECT), threads" in lines(
        snapshot(replace(ANSWER, direct_io=False, reader="threads"))
    )


def test_what_is_left_out_is_said_beside_what_was_named() -> None:
    lossy = replace(ANSWER, lossy_nats=0.02, spent_nats=0.0137, n_skip=1)
    assert ", lossy: 0.014 of 0.02 nats a token, 20.0% of uses left out, " in status_line(lossy)
    assert "lossy      0.014 of 0.02 nats a token, 20.0% of uses left out" in lines(snapshot(lossy))
    assert not any(line.startswith("lossy") for line in lines(snapshot(ANSWER)))


def snapshot(stats: Stats, resident: tuple[int, ...] = (0, 4), n_expert: tuple[int, ...] = (8, 8)) -> Snapshot:
    return Snapshot(stats, stats, resident, n_expert)


def test_the_parts_of_memory_add_up_to_what_is_resident() -> None:
    stats = replace(
        ANSWER, dense_bytes=50 * MIB, kv_bytes=20 * MIB, decode_bytes=4 * MIB, cache_bytes=40 * MIB,
        n_slot=100, n_slot_used=50, peak_bytes=150 * MIB,
    )  # fmt: skip
    assert memory_rows(stats) == [
        ("memory", "148 MiB of 160 MiB, at most 150 MiB"),
        ("  of it", "dense 50, KV 20, compute 4, experts 20, process 54 MiB"),
    ]


def test_the_strip_shows_none_some_and_all_apart() -> None:
    assert strip((0, 1, 24, 47, 48), (48,) * 5) == "·▁▄▇█"
    assert [level(n, 3) for n in (0, 1, 2, 3)] == [0, 2, 5, 8]
    assert strip((), ()) == ""


def test_stats_show_hits_reads_bandwidth_and_experts_by_layer() -> None:
    text = lines(snapshot(replace(ANSWER, n_slot=4, n_miss=1)))
    assert "hits       75.0% of expert uses; 1 misses, 0 evicted" in text
    assert "storage    2 MiB a token at 10 MB/s; compute waited 0.0 s for 0 reads" in text
    assert "experts    4 of 16 in memory (25%), room for 4" in text
    assert "  by layer ·▄" in text
