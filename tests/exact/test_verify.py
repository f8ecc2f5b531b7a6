"""Tokens verified in one pass have the logits, to the byte, that they have when decoded one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tinymoe
from exact_engines import stock, streamed

from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe.errors import StorageError, UnsupportedError

CANNOT = {"lfm2moe": "recurrent", "gpt-oss": "sliding window", "gemma4-fused": "sliding window"}


@pytest.mark.parametrize("arch", tinymoe.MOE_ARCHS)
def test_a_pass_equals_stock_decoding_one_by_one(tiny: Callable[..., Path], tokens: list[int], arch: str) -> None:
    path = tiny(arch)
    reference = stock(path, [[t] for t in tokens[:48]])
    with streamed(path, share=0.3) as engine:
        try:
            _native.engine_can_verify(engine.handle)
        except UnsupportedError as error:
            assert CANNOT[arch] in str(error)
            with pytest.raises(UnsupportedError, match=CANNOT[arch]):
                engine.verify(tokens[:2])
            return
        assert arch not in CANNOT
        rows = engine.run([[t] for t in tokens[:10]])
        for begin, n in ((10, 2), (12, 3), (15, 7), (22, 1), (23, 4), (27, 5), (32, 6), (38, 7), (45, 3)):
            rows += engine.verify(tokens[begin : begin + n])
        stats = engine.stats()
    assert rows == reference
    assert stats["n_miss"] > 0
    assert stats["n_evict"] > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_that_ggml_divides_among_threads(tiny: Callable[..., Path], tokens: list[int], threads: int) -> None:
    """From 512 cells on; the passes cross 512 and 768, where a token's own graph would show fewer cells."""
    path = tiny("qwen3moe")
    text = (tokens + tokens)[:790]
    with streamed(path, share=0.3, threads=threads, n_ctx=1024) as engine:
        for begin in (505, 760):
            engine.rewind()
            engine.run([text[:begin]])
            singles = engine.run([[t] for t in text[begin : begin + 21]])
            engine.rewind(begin)
            passes = [row for i in range(begin, begin + 21, 7) for row in engine.verify(text[i : i + 7])]
            assert passes == singles
        assert len(set(singles)) == 21


@pytest.mark.parametrize("expert_type", ["F32", "F16", "BF16", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"])
def test_every_quantization(tiny: Callable[..., Path], tokens: list[int], expert_type: str) -> None:
    path = tiny("qwen3moe", expert_type=expert_type)
    with streamed(path, share=0.3) as engine:
        singles = engine.run([[t] for t in tokens[:21]])
        engine.rewind()
        assert engine.verify(tokens[:7]) + engine.verify(tokens[7:14]) + engine.verify(tokens[14:21]) == singles


def test_passes_prefill_and_decode_may_alternate(tiny: Callable[..., Path], tokens: list[int]) -> None:
    """llama.cpp uses a graph of n tokens again, for a pass and for a prefill of n."""
    path = tiny("qwen3moe")
    steps = [tokens[:20], *([t] for t in tokens[20:24]), tokens[24:28], *([t] for t in tokens[28:32]), tokens[32:36]]
    reference = stock(path, steps)
    with streamed(path, share=0.3) as engine:
        rows = engine.run(steps[:1]) + engine.verify(tokens[20:24])
        rows += engine.run([tokens[24:28]]) + engine.verify(tokens[28:32]) + engine.run([tokens[32:36]])
    assert rows == reference


def test_what_turned_out_wrong_is_cut(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("qwen3moe"), share=0.3) as engine:
        engine.run([tokens[:20]])
        right = engine.run([[t] for t in tokens[20:24]])
        engine.rewind(20)
        assert engine.verify([*tokens[20:22], *tokens[90:93]])[:2] == right[:2]
        engine.rewind(22)
        assert engine.run([[t] for t in tokens[22:24]]) == right[2:]


def test_a_failed_pass_leaves_the_sequence_as_it_was(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("qwen3moe"), share=0.3, prefetch=abi.PREFETCH_OFF) as engine:
        engine.run([tokens[:20]])
        _native.engine_inject_fault(engine.handle, abi.FAULT_FAIL, 3)
        with pytest.raises(StorageError):
            engine.verify(tokens[200:207])
        assert _native.engine_n_past(engine.handle) == 20
        again = engine.verify(tokens[20:24])
        engine.rewind(20)
        assert engine.run([[t] for t in tokens[20:24]]) == again
