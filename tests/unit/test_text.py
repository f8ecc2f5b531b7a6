"""A vocabulary alone: text and sampling where somebody else computes. What computes is another kind of handle."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinymoe

from edgemoe import Sampling, UsageError, _native
from edgemoe import _abi as abi


@pytest.fixture
def text(tmp_path: Path) -> Iterator[_native.TextHandle]:
    handle = _native.text_open(str(tinymoe.write(tmp_path / "m.gguf", "qwen3moe")))
    yield handle
    _native.text_close(handle)


def test_tokens_and_pieces_of_a_vocabulary_alone(text: _native.TextHandle) -> None:
    tokens = _native.text_tokenize(text, b"hello", add_special=False, parse_special=False)
    assert b"".join(_native.text_piece(text, token, special=False) for token in tokens) == b"hello"
    with pytest.raises(UsageError, match="kept no logits in row 0"):
        _native.text_logits(text, 0, 4)


def test_it_samples_from_the_logits_that_it_is_told(text: _native.TextHandle) -> None:
    n_vocab = _native.text_n_vocab(text)
    rows = array("f", bytes(4 * 2 * n_vocab))
    rows[7], rows[n_vocab + 9] = 5.0, 5.0
    sampler = Sampling().open(text)
    assert _native.sampler_sample(sampler, text) == -1  # it was told of none yet
    _native.text_set_logits(text, rows.buffer_info()[0], 2)
    assert [_native.sampler_sample(sampler, text, row) for row in (0, 1, 2)] == [7, 9, -1]
    _native.sampler_close(sampler)


def test_what_computes_refuses_a_handle_that_is_none(text: _native.TextHandle) -> None:
    """A vocabulary used to be an engine without one inside: verifying on it ended the process."""
    library, error = _native.library(), abi.Error()
    one = (ctypes.c_int32 * 1)(1)
    assert library.emoe_engine_verify(None, one, 1, ctypes.byref(error)) == abi.ERR_ARGUMENT
    assert library.emoe_engine_can_verify(None, ctypes.byref(error)) == abi.ERR_ARGUMENT
    assert error.message == b"engine is null"


def test_an_engines_logits_are_its_own(tmp_path: Path) -> None:
    model = _native.model_open(str(tinymoe.write(tmp_path / "m.gguf", "qwen3moe")))
    shell = str(tmp_path / "shell")
    _native.shell_write(model, shell, with_data=True)
    engine = _native.engine_open(model, shell, abi.Setup(n_ctx=64, n_ubatch=8, n_threads=1), 1 << 20)
    _native.model_close(model)
    try:
        text = _native.engine_text(engine)
        with pytest.raises(UsageError, match="an engine computes its logits itself"):
            _native.text_set_logits(text, 0, 0)
        _native.text_close(text)  # does nothing: it is the engine's
        _native.engine_decode(engine, [1, 2, 3], want_all=False)
        assert len(_native.text_logits(text, 0, _native.text_n_vocab(text))) == _native.text_n_vocab(text)
    finally:
        _native.engine_close(engine)
