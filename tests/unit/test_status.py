"""The lines about what an answer cost."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.cli.status import stats_lines, status_line
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
    assert "reading  past the page cache (O_DIRECT), io_uring" in stats_lines(ANSWER)
    assert "reading  through the page cache (no O_DIRECT), threads" in stats_lines(
        replace(ANSWER, direct_io=False, reader="threads")
    )
