"""Logits do not depend on budget, threads, policy or I/O engine, nor on budgets that change meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from exact_engines import streamed

from edgemoe import _native
from edgemoe._abi import READ_BUFFERED, READ_PAGE_CACHE
from edgemoe.errors import UnsupportedError
from edgemoe.runtime.setup import POLICIES, PREFETCH

READERS = {"threads": (1, 0), "io_uring": (2, 0), "buffered": (0, READ_BUFFERED), "page cache": (0, READ_PAGE_CACHE)}


@pytest.fixture(scope="module")
def steps(tokens: list[int]) -> list[list[int]]:
    return [tokens[:70], *([t] for t in tokens[70:100]), tokens[100:110], *([t] for t in tokens[110:120])]


@pytest.fixture(scope="module")
def resident(tiny: Callable[..., Path], steps: list[list[int]]) -> list[bytes]:
    with streamed(tiny("qwen2moe"), share=1.0, threads=1) as engine:
        rows = engine.run(steps)
        assert engine.stats()["n_evict"] == 0
    return rows


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("share", [0.0, 0.35, 0.7])
def test_streamed_equals_resident(
    tiny: Callable[..., Path],
    steps: list[list[int]],
    resident: list[bytes],
    share: float,
    prefetch: str,
    threads: int,
    reader: str,
) -> None:
    kind, buffered = READERS[reader]
    ahead = PREFETCH.index(prefetch)
    try:
        with streamed(
            tiny("qwen2moe"), share=share, prefetch=ahead, threads=threads, reader=kind, buffered=buffered
        ) as engine:
            rows = engine.run(steps)
            stats = engine.stats()
    except UnsupportedError as error:
        assert reader == "io_uring"
        pytest.skip(str(error))
    assert stats["n_miss"] > 0
    assert stats["n_evict"] > 0
    assert (stats["n_prefetch"] > 0) == (prefetch != "off") or share == 0.0  # the least cache has no room for guesses
    assert stats["direct_io"] == (0 if buffered else stats["direct_io"])
    assert rows == resident


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prefetch", PREFETCH)
def test_no_policy_changes_a_logit(
    tiny: Callable[..., Path], steps: list[list[int]], resident: list[bytes], policy: str, prefetch: str
) -> None:
    number, ahead = POLICIES.index(policy), PREFETCH.index(prefetch)
    with streamed(tiny("qwen2moe"), share=0.35, policy=number, prefetch=ahead, threads=2) as engine:
        assert engine.run(steps) == resident
        assert engine.stats()["n_evict"] > 0


def test_the_cache_may_change_at_any_moment(
    tiny: Callable[..., Path], steps: list[list[int]], resident: list[bytes]
) -> None:
    path = tiny("qwen2moe")
    model = _native.model_open(str(path))
    info = _native.model_info(model)
    _native.model_close(model)
    sizes = set()
    with streamed(path, share=1.0) as engine:
        low, high = info["slot_min_bytes"] + engine.stats()["prefill_bytes"], info["slot_bytes"]
        stop = threading.Event()

        def change() -> None:
            i = 0
            while not stop.is_set():
                _native.engine_set_cache_bytes(engine.handle, low + (high - low) * (i * 37 % 100) // 100)
                sizes.add(engine.stats()["n_slot"])
                i += 1
                time.sleep(0.0005)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(4):
                engine.rewind()
                assert engine.run(steps) == resident
        finally:
            stop.set()
            thread.join()
        assert engine.stats()["n_evict"] > 0
    assert len(sizes) > 5


def test_a_rewound_sequence_goes_on_as_if_never_left(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("qwen3moe"), share=0.3) as engine:
        straight = engine.run([tokens[:30], tokens[30:40]])[-1]
        engine.rewind(30)
        engine.run([tokens[50:60]])
        engine.rewind(30)
        assert engine.run([tokens[30:40]])[-1] == straight


def test_two_engines_of_one_model_in_one_process(tiny: Callable[..., Path], tokens: list[int]) -> None:
    path = tiny("qwen3moe")
    with streamed(path, share=0.3) as one, streamed(path, share=1.0) as other:
        rows = [engine.run([tokens[:30], tokens[30:31]]) for engine in (one, other, one)]
        assert one.stats()["dense_bytes"] == other.stats()["dense_bytes"] > 0  # both out of the page cache
        one.rewind()
        assert one.run([tokens[:30], tokens[30:31]]) == rows[0] == rows[1]
