"""Reads that fail, come short, end early or late, at any place: one clear error, and the engine goes on, exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from exact_engines import streamed

from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe._abi import PREFETCH_OFF, PREFETCH_ON
from edgemoe.errors import Cancelled, ContextFullError, EdgeMoEError, StorageError

FAIL, SHORT, TRUNCATE, DELAY = 1, 2, 3, 4
READERS = {"threads": 1, "auto": 0}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("n_token", [1, 60], ids=["decode", "prefill"])
@pytest.mark.parametrize("kind", [FAIL, TRUNCATE], ids=["fail", "truncate"])
def test_a_failed_read_is_one_error_and_the_engine_goes_on(
    tiny: Callable[..., Path], tokens: list[int], kind: int, n_token: int, reader: str
) -> None:
    path = tiny("llama")
    prompt, step, then = tokens[:20], tokens[20 : 20 + n_token], [[t] for t in tokens[100:104]]
    # Nothing read ahead: every read is one that somebody needs.
    with streamed(path, share=0.0, reader=READERS[reader], prefetch=PREFETCH_OFF) as engine:
        reference = engine.run([prompt, step, *then])
        engine.rewind()
        engine.run([prompt])
        n_failed = 0
        for n in range(200):
            _native.engine_inject_fault(engine.handle, kind, n)
            try:
                _native.engine_decode(engine.handle, step, want_all=False)
            except StorageError as error:
                n_failed += 1
                assert "expert" in error.message
                assert path.name in error.message
                assert "\n" not in error.message
                assert _native.engine_n_past(engine.handle) == len(prompt)  # as before the call
            else:
                engine.rewind(len(prompt))
                break  # n is past the last read of the step: every one of them has failed once
        assert n_failed > 3
        _native.engine_inject_fault(engine.handle, kind, 2**64 - 1)
        assert engine.run([step, *then]) == reference[1:]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [SHORT, DELAY], ids=["short", "delay"])
def test_a_short_or_late_read_changes_nothing(
    tiny: Callable[..., Path], tokens: list[int], kind: int, reader: str
) -> None:
    steps = [tokens[:30], *([t] for t in tokens[30:34])]
    with streamed(tiny("llama"), share=0.0, reader=READERS[reader]) as engine:
        reference = engine.run(steps)
        for n in range(0, 40, 3):
            engine.rewind()
            _native.engine_inject_fault(engine.handle, kind, n)
            assert engine.run(steps) == reference


def test_a_file_cut_while_open_is_one_error(tiny: Callable[..., Path], tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny("llama").read_bytes())
    with streamed(path, share=0.0) as engine:
        engine.run([tokens[:5]])
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(len(content) // 3)
        with pytest.raises(StorageError, match="early"):
            engine.run([[t] for t in tokens[5:40]])
        path.write_bytes(content)
        before = _native.engine_n_past(engine.handle)
        engine.run([tokens[40:44]])
        assert _native.engine_n_past(engine.handle) == before + 4


def test_cancel_ends_a_prefill(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("llama"), share=0.0, reader=1, lanes=1) as engine:
        for n in range(0, 400, 7):  # slow every one of many reads
            _native.engine_inject_fault(engine.handle, DELAY, n)
        reference = engine.run([tokens[:10]])
        engine.rewind()
        _native.engine_inject_fault(engine.handle, DELAY, 0)
        timer = threading.Timer(0.01, _native.engine_cancel, [engine.handle])
        timer.start()
        with pytest.raises(Cancelled):
            engine.run([tokens[:300]])
        timer.join()
        assert _native.engine_n_past(engine.handle) == 0
        _native.engine_cancel(engine.handle)  # nothing is under way: no effect
        assert engine.run([tokens[:10]]) == reference


def test_a_full_context_is_one_error(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("llama"), share=0.5) as engine:
        engine.run([tokens[:300], tokens[:200]])
        with pytest.raises(ContextFullError, match="512"):
            engine.run([tokens[:13]])
        assert _native.engine_n_past(engine.handle) == 500
        engine.run([tokens[:12]])


def test_tokens_that_do_not_exist_are_refused(tiny: Callable[..., Path]) -> None:
    with streamed(tiny("llama"), share=0.5) as engine:
        for bad in (-1, 10**6):
            with pytest.raises(EdgeMoEError, match="vocabulary"):
                engine.run([[bad]])


def test_a_file_replaced_before_it_is_opened_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Old dense weights must not meet the experts of another file."""
    path, shell = tmp_path / "replaced.gguf", str(tmp_path / "shell")
    path.write_bytes(tiny("llama").read_bytes())
    model = _native.model_open(str(path))
    _native.shell_write(model, shell, with_data=True)
    cache = _native.model_info(model)["slot_min_bytes"]
    path.write_bytes(tiny("llama", seed=1).read_bytes())
    setup = abi.Setup(n_ctx=64, n_ubatch=8, n_threads=1)
    with pytest.raises(StorageError, match="changed"):
        _native.engine_open(model, shell, setup, cache)
    with pytest.raises(StorageError, match="changed"):
        _native.shell_write(model, shell, with_data=True)
    _native.model_close(model)


@pytest.mark.parametrize("kind", [FAIL, TRUNCATE], ids=["fail", "truncate"])
def test_a_failed_read_ahead_harms_nothing(tiny: Callable[..., Path], tokens: list[int], kind: int) -> None:
    path = tiny("qwen2moe")
    steps = [tokens[:20], *([t] for t in tokens[20:50])]
    n_failed = n_done = 0
    with streamed(path, share=0.6, prefetch=PREFETCH_ON) as engine:
        reference = engine.run(steps)
        for n in range(40):
            engine.rewind()
            try:
                for step, row in zip(steps, reference, strict=True):
                    if len(step) == 1:
                        _native.engine_inject_fault(engine.handle, kind, n % 7)
                    _native.engine_decode(engine.handle, step, want_all=False)
                    assert engine.row() == row
                    n_done += 1
            except StorageError:
                n_failed += 1
            _native.engine_inject_fault(engine.handle, kind, 2**64 - 1)
        assert engine.stats()["n_prefetch"] > 0
        assert n_done > 40
        engine.rewind()
        assert engine.run(steps) == reference
    assert n_failed > 0
