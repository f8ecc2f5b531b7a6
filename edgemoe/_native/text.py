"""Functions of edgemoe.h on text: vocabularies, samplers, streams."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence

from .. import _abi as abi
from ..errors import NativeError, UsageError
from .library import SamplerHandle, StreamHandle, TextHandle, check, float_pointer, handle_of, int32_pointer, library


def text_tokenize(text: TextHandle, raw: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
    room = len(raw) + 8  # a token is a byte or more, and a few are added
    while True:
        tokens = array("i", bytes(4 * room))
        pointer = int32_pointer(tokens)
        n = library().emoe_text_tokenize(text, raw, len(raw), int(add_special), int(parse_special), pointer, room)
        if n < 0:
            raise NativeError(f"the tokenizer failed on a text of {len(raw)} bytes")
        if n <= room:
            return tokens[:n].tolist()
        room = n


def text_piece(text: TextHandle, token: int, *, special: bool) -> bytes:
    room = 64
    while True:
        buffer = ctypes.create_string_buffer(room)
        n = library().emoe_text_piece(text, token, int(special), buffer, room)
        if n < 0:
            raise UsageError(f"the vocabulary has no token {token}")
        if n <= room:
            return buffer.raw[:n]
        room = n


def text_is_eog(text: TextHandle, token: int) -> bool:
    return bool(library().emoe_text_is_eog(text, token))


def text_bos(text: TextHandle) -> int:
    return int(library().emoe_text_bos(text))


def text_eos(text: TextHandle) -> int:
    return int(library().emoe_text_eos(text))


def text_fim(text: TextHandle) -> list[int]:
    """Marks for filling in: of prefix, suffix, middle, repository, file; -1 for those that the model has not."""
    return [int(library().emoe_text_fim(text, mark)) for mark in range(5)]


def text_n_vocab(text: TextHandle) -> int:
    return int(library().emoe_text_n_vocab(text))


def text_open(path: str) -> TextHandle:
    """A vocabulary without a model: the caller computes, and tells it the logits."""
    handle, error = ctypes.c_void_p(), abi.Error()
    status = library().emoe_text_open(os.fsencode(path), ctypes.byref(handle), ctypes.byref(error))
    return TextHandle(handle_of(status, handle, error))


def text_close(text: TextHandle) -> None:
    """Of one that was opened alone; an engine's goes with it."""
    library().emoe_text_close(text)


def text_logits(text: TextHandle, row: int, n_vocab: int) -> array[float]:
    """A copy of one row of logits, float32 [n_vocab]. Raises UsageError when there is no such row."""
    pointer = library().emoe_text_logits(text, row)
    if not pointer:
        raise UsageError(f"the last evaluation kept no logits in row {row}")
    found = array("f")
    found.frombytes(ctypes.string_at(pointer, n_vocab * found.itemsize))
    return found


def text_set_logits(text: TextHandle, address: int, n_row: int) -> None:
    """address: of float32 [n_row, n_vocab], which must stay there until the next call."""
    error = abi.Error()
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    check(library().emoe_text_set_logits(text, pointer, n_row, ctypes.byref(error)), error)


# ---------------------------------------------------------------- sampling


def sampler_open(params: abi.SamplerParams) -> SamplerHandle:
    handle, error = ctypes.c_void_p(), abi.Error()
    check(library().emoe_sampler_open(ctypes.byref(params), ctypes.byref(handle), ctypes.byref(error)), error)
    return SamplerHandle(handle.value or 0)


def sampler_close(sampler: SamplerHandle) -> None:
    library().emoe_sampler_close(sampler)


def sampler_sample(sampler: SamplerHandle, text: TextHandle, row: int = 0) -> int:
    return int(library().emoe_sampler_sample(sampler, text, row))


def sampler_constrain(
    sampler: SamplerHandle,
    text: TextHandle,
    *,
    bias: Sequence[tuple[int, float]],
    grammar: str,
    grammar_trigger: str,
    dry_breakers: Sequence[str] | None,
    sequence: str,
    **numbers: float | int,
) -> None:
    """numbers: fields of `emoe_constraint`. dry_breakers: None for llama.cpp's own."""
    error = abi.Error()
    tokens, values = array("i", (token for token, _ in bias)), array("f", (value for _, value in bias))
    breakers = [one.encode("utf-8", "replace") for one in dry_breakers or ()]
    constraint = abi.Constraint(
        n_bias=len(bias),
        bias_tokens=int32_pointer(tokens),
        bias_values=float_pointer(values),
        grammar=grammar.encode("utf-8", "replace") or None,
        grammar_trigger=grammar_trigger.encode("utf-8", "replace") or None,
        sequence=sequence.encode("utf-8", "replace") or None,
        n_dry_breaker=len(breakers),
        dry_breakers=None if dry_breakers is None else (ctypes.c_char_p * (len(breakers) + 1))(*breakers),
        **numbers,
    )
    check(library().emoe_sampler_constrain(sampler, text, ctypes.byref(constraint), ctypes.byref(error)), error)


def text_logprobs(text: TextHandle, row: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and the n_top likeliest tokens with theirs."""
    error, logprob = abi.Error(), ctypes.c_float()
    tokens, values = array("i", bytes(4 * n_top)), array("f", bytes(4 * n_top))
    status = library().emoe_text_logprobs(
        text, row, token, ctypes.byref(logprob), n_top, int32_pointer(tokens), float_pointer(values),
        ctypes.byref(error),
    )  # fmt: skip
    check(status, error)
    return logprob.value, list(zip(tokens, values, strict=True))


# ---------------------------------------------------------------- streams


def stream_open(stop: Sequence[str]) -> StreamHandle:
    """Token bytes to text that ends before the first of the stop texts."""
    handle, error = ctypes.c_void_p(), abi.Error()
    texts = [text.encode("utf-8", "replace") for text in stop]
    pointers = (ctypes.c_char_p * len(texts))(*texts)
    lengths = (ctypes.c_uint64 * len(texts))(*map(len, texts))
    status = library().emoe_stream_open(pointers, lengths, len(texts), ctypes.byref(handle), ctypes.byref(error))
    return StreamHandle(handle_of(status, handle, error))


def stream_close(stream: StreamHandle) -> None:
    library().emoe_stream_close(stream)


def stream_feed(stream: StreamHandle, piece: bytes) -> str:
    """The text that is certain after one more piece, "" if none is."""
    text, n, error = ctypes.c_char_p(), ctypes.c_uint64(), abi.Error()
    status = library().emoe_stream_feed(
        stream, piece, len(piece), ctypes.byref(text), ctypes.byref(n), ctypes.byref(error)
    )
    check(status, error)
    return ctypes.string_at(text, n.value).decode("utf-8") if n.value else ""


def stream_finish(stream: StreamHandle) -> str:
    """What was held back."""
    text, n, error = ctypes.c_char_p(), ctypes.c_uint64(), abi.Error()
    check(library().emoe_stream_finish(stream, ctypes.byref(text), ctypes.byref(n), ctypes.byref(error)), error)
    return ctypes.string_at(text, n.value).decode("utf-8") if n.value else ""


def stream_stopped(stream: StreamHandle) -> bool:
    return bool(library().emoe_stream_stopped(stream))
