"""A token of each of several sequences in one pass: their logits equal, to the byte, those of decoding alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tinymoe
from exact_engines import stock, streamed

from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe.errors import ContextFullError, NativeError, StorageError, UnsupportedError, UsageError

CANNOT = {"lfm2moe": "recurrent", "gpt-oss": "sliding window", "gemma4-fused": "sliding window"}
N = 4


def texts(tokens: list[int], n_prompt: Sequence[int], n_token: int) -> list[list[int]]:
    """A text for each sequence, all different, of a prompt and n_token more."""
    return [(tokens * 4)[7 * i : 7 * i + n + n_token] for i, n in enumerate(n_prompt)]


def alone(path: Path, text: Sequence[int], n_prompt: int) -> list[bytes]:
    return stock(path, [text[:n_prompt], *([t] for t in text[n_prompt:])])


@pytest.mark.parametrize("arch", tinymoe.MOE_ARCHS)
def test_several_sequences_equal_stock_decoding_each_alone(
    tiny: Callable[..., Path], tokens: list[int], arch: str
) -> None:
    path = tiny(arch)
    lengths = (5, 1, 23, 40)
    all_texts = texts(tokens, lengths, 10)
    if arch in CANNOT:
        with pytest.raises(UnsupportedError, match=CANNOT[arch]), streamed(path, share=0.3, n_sequence=N):
            pass
        return
    reference = [alone(path, text, n) for text, n in zip(all_texts, lengths, strict=True)]
    with streamed(path, share=0.3, n_sequence=N) as engine:
        rows: list[list[bytes]] = [[] for _ in range(N)]

        def prompt(i: int) -> None:
            engine.select(i)
            _native.engine_decode(engine.handle, all_texts[i][: lengths[i]], want_all=False)
            rows[i].append(engine.row_of(i))

        def step(*numbers: int) -> None:
            given = {i: all_texts[i][lengths[i] + len(rows[i]) - 1] for i in numbers}
            for i, row in zip(numbers, engine.step(given), strict=True):
                rows[i].append(row)

        # Newcomers come between the others' tokens, and some end before others, not in the order of their numbers.
        prompt(0)
        step(0)
        prompt(1)
        step(1, 0)
        prompt(3)
        step(0, 1, 3)
        prompt(2)
        for numbers in ((0, 1, 2, 3), (0, 2), (1, 3), (3, 0), (2, 1, 0), (0, 2, 3), (1,), (3, 1), (0, 3), (0, 1, 2, 3)):
            step(*numbers)
        stats = engine.stats()
    for i in range(N):
        assert rows[i] == reference[i][: len(rows[i])]
        assert len(set(rows[i])) == len(rows[i]) >= 6
    assert stats["n_miss"] > 0
    assert stats["n_decode"] == sum(len(one) - 1 for one in rows) + 1  # a prompt of one token is decoded, too


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_cache_does_not_show(tiny: Callable[..., Path], tokens: list[int], share: float) -> None:
    """From experts that pass through to layers that are llama.cpp's own to multiply by."""
    path = tiny("qwen3moe")
    lengths = (30, 9, 64)
    all_texts = texts(tokens, lengths, 6)
    reference = [alone(path, text, n) for text, n in zip(all_texts, lengths, strict=True)]
    with streamed(path, share=share, n_sequence=3) as engine:
        for i, n in enumerate(lengths):
            engine.select(i)
            _native.engine_decode(engine.handle, all_texts[i][:n], want_all=False)
        for k in range(6):
            rows = engine.step({i: all_texts[i][n + k] for i, n in enumerate(lengths)})
            assert rows == [one[k + 1] for one in reference]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_that_ggml_divides_among_threads(tiny: Callable[..., Path], tokens: list[int], threads: int) -> None:
    """From 512 cells on, in some sequences and not in others; one graph shows all of them as many cells."""
    path = tiny("qwen3moe")
    lengths = (506, 30, 763, 250)
    all_texts = texts(tokens, lengths, 12)
    with streamed(path, share=0.3, threads=threads, n_ctx=1024) as engine:
        reference = []
        for text, n in zip(all_texts, lengths, strict=True):
            engine.rewind()
            reference.append(engine.run([text[:n], *([t] for t in text[n:])]))
    with streamed(path, share=0.3, threads=threads, n_ctx=1024, n_sequence=N) as engine:
        for i in range(N):
            engine.select(i)
            _native.engine_decode(engine.handle, all_texts[i][: lengths[i]], want_all=False)
            assert engine.row_of(i) == reference[i][0]
        for k in range(12):
            rows = engine.step({i: all_texts[i][lengths[i] + k] for i in range(N)})
            assert rows == [one[k + 1] for one in reference]


@pytest.mark.parametrize("expert_type", ["F32", "BF16", "Q4_0", "Q4_K", "IQ4_XS", "MXFP4"])
def test_every_quantization(tiny: Callable[..., Path], tokens: list[int], expert_type: str) -> None:
    path = tiny("qwen3moe", expert_type=expert_type)
    with streamed(path, share=0.3, n_sequence=7) as engine:
        singles = []
        for i in range(7):
            engine.select(i)
            _native.engine_decode(engine.handle, tokens[i : i + 9], want_all=False)
            _native.engine_decode(engine.handle, [tokens[50 + i]], want_all=False)
            singles.append(engine.row_of(i))
            engine.rewind(9)
        assert engine.step({i: tokens[50 + i] for i in range(7)}) == singles


def test_states_cuts_and_rows_are_a_sequence_s_own(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("qwen3moe"), share=0.3, n_sequence=3) as engine:
        for i in range(3):
            engine.select(i)
            _native.engine_decode(engine.handle, tokens[10 * i : 10 * i + 20], want_all=False)
        first = engine.row_of(0)
        engine.select(1)
        state = _native.engine_state(engine.handle, _native.engine_state_bytes(engine.handle))
        right = engine.step({1: 5})
        assert engine.row_of(0) == first  # what others compute changes nothing of it
        engine.select(2)
        _native.engine_set_state(engine.handle, state)
        assert engine.step({2: 5}) == right
        assert engine.step({2: 6, 1: 6})[0] == engine.row_of(1)
        engine.rewind(20)  # of sequence 2 alone
        assert _native.engine_n_past(engine.handle) == 20
        engine.select(1)
        assert _native.engine_n_past(engine.handle) == 22
        assert engine.step({2: 5}) == right


def test_places_are_exchanged_only_where_memory_can_be_lent(tiny: Callable[..., Path], tokens: list[int]) -> None:
    """Sequences 0 and 2 become neighbours; with a cache that has nothing to lend they are computed one by one."""
    path = tiny("qwen3moe")
    rows = []
    for share in (0.9, 0.0):
        with streamed(path, share=share, n_sequence=3, n_ubatch=8) as engine:
            for i in range(3):
                engine.select(i)
                engine.run([tokens[i : i + 8], *([t] for t in tokens[20 : 20 + 100 * (i == 1)])])
            rows.append([engine.step({0: k, 2: k + 1}) for k in range(3, 9)] + [engine.step({1: 4, 0: 5, 2: 6})])
    assert rows[0] == rows[1]


def test_a_failed_step_leaves_all_sequences_as_they_were(tiny: Callable[..., Path], tokens: list[int]) -> None:
    with streamed(tiny("qwen3moe"), share=0.3, prefetch=abi.PREFETCH_OFF, n_sequence=2) as engine:
        for i in range(2):
            engine.select(i)
            _native.engine_decode(engine.handle, tokens[i : i + 20], want_all=False)
        _native.engine_inject_fault(engine.handle, abi.FAULT_FAIL, 3)
        with pytest.raises(StorageError):
            engine.step({0: tokens[200], 1: tokens[201]})
        for i in range(2):
            engine.select(i)
            assert _native.engine_n_past(engine.handle) == 20
        both = engine.step({0: 7, 1: 8})
        for i in range(2):
            engine.select(i)
            engine.rewind(20)
            _native.engine_decode(engine.handle, [7 + i], want_all=False)
            assert engine.row_of(i) == both[i]


def test_what_makes_no_sense_is_refused(tiny: Callable[..., Path], tokens: list[int]) -> None:
    path = tiny("qwen3moe")
    with streamed(path, share=0.3, n_sequence=2, n_ctx=256) as engine:
        for sequences, words in (([0, 0], "named twice"), ([2], "sequence 2")):
            with pytest.raises((UsageError, NativeError), match=words):
                _native.engine_step(engine.handle, sequences, [1] * len(sequences))
        with pytest.raises((UsageError, NativeError), match="vocabulary"):
            engine.step({0: -1})
        with pytest.raises((UsageError, NativeError), match="sequence 2"):
            engine.select(2)
        engine.run([(tokens * 2)[:256]])
        with pytest.raises(ContextFullError):
            engine.step({0: 1, 1: 1})
        assert engine.step({1: 1})
    with pytest.raises((UsageError, NativeError), match="8 sequences"), streamed(path, share=0.3, n_sequence=8):
        pass
