"""Every n-th read goes wrong in every way, with each reader, whatever the engine does: the whole table.

A read that fails or that finds the file's end is one line, and the sequence is as before. One that is short, late or
interrupted is nothing. After each the same tokens give the logits of a run without faults, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from exact_engines import Streamed, streamed

from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe.errors import StorageError

pytestmark = pytest.mark.slow

WRONG = {"EIO": abi.FAULT_FAIL, "end of file": abi.FAULT_TRUNCATE}
HARMLESS = {"short": abi.FAULT_SHORT, "late": abi.FAULT_DELAY, "EINTR": abi.FAULT_INTERRUPT}
READERS = {"io_uring": 2, "threads": 1}
OFF = 2**64 - 1


@dataclass(frozen=True)
class Activity:
    """What the engine does meanwhile. share: of the experts that have a slot."""

    begin: int
    end: int
    share: float = 0.0
    prefetch: int = abi.PREFETCH_OFF
    budgets: bool = False

    def steps(self, tokens: list[int], *, n_step: int = 1) -> list[list[int]]:
        if self.end - self.begin == 1:
            return [[token] for token in tokens[self.begin : self.begin + n_step]]
        return [tokens[self.begin : self.end]]


ACTIVITIES = {
    "decode": Activity(20, 21),
    "prefill": Activity(20, 80),
    "reads ahead": Activity(20, 21, share=0.6, prefetch=abi.PREFETCH_ON),
    "budget change": Activity(20, 80, share=0.4, budgets=True),
}


@contextmanager
def budgets_that_change(engine: Streamed, least: int, *, wanted: bool) -> Iterator[None]:
    """Another thread gives the cache another size all the time."""
    stop = threading.Event()

    def change() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            _native.engine_set_cache_bytes(engine.handle, least * (1 + turn % 4))
            stop.wait(0.0005)

    thread = threading.Thread(target=change)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if wanted:
            thread.join()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("activity", ACTIVITIES)
def test_the_whole_table(
    tiny: Callable[..., Path], tokens: list[int], activity: str, reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if reader == "io_uring" and not _native.io_uring_allowed():
        pytest.skip("this system does not allow io_uring")
    doing = ACTIVITIES[activity]
    path = tiny("qwen2moe")
    model = _native.model_open(str(path))
    info = _native.model_info(model)
    _native.model_close(model)
    least = 2 * info["slot_min_bytes"]  # beside what a batch borrows
    room = max(least, int(doing.share * info["slot_bytes"]))
    prompt, steps = tokens[:20], doing.steps(tokens, n_step=2)
    with streamed(path, share=doing.share, reader=READERS[reader], prefetch=doing.prefetch) as engine:
        reference = engine.run([prompt, *steps])[1:]
        for kind, fault in {**WRONG, **HARMLESS}.items():
            n_try = n_error = 0
            for n in range(1000):
                engine.rewind()
                for n_bytes in (least, room):  # all but the last experts are forgotten
                    _native.engine_set_cache_bytes(engine.handle, n_bytes)
                engine.run([prompt])
                before = engine.stats()["n_read"]
                done = 0
                with budgets_that_change(engine, least, wanted=doing.budgets):
                    _native.engine_inject_fault(engine.handle, fault, n)
                    try:
                        for step, row in zip(steps, reference, strict=True):
                            _native.engine_decode(engine.handle, step, want_all=False)
                            assert engine.row() == row, (kind, n)
                            done += 1
                    except StorageError as error:
                        n_error += 1
                        assert kind in WRONG, (n, error.message)
                        assert path.name in error.message and "\n" not in error.message
                    # A fault that nothing met, for example one of a read ahead that was not made, is over.
                    _native.engine_inject_fault(engine.handle, 0, OFF)
                    assert _native.engine_n_past(engine.handle) == len(prompt) + sum(map(len, steps[:done]))
                    assert engine.run(steps[done:]) == reference[done:], (kind, n)
                n_try += 1
                if engine.stats()["n_read"] - before < n:
                    break  # past the last read
            with capsys.disabled():
                print(f"\n{activity:14} {reader:9} {kind:12} {n_try:4} places {n_error:4} errors", end="")
            assert n_try > 5
            assert (n_error > 3) == (kind in WRONG), (kind, n_error)
