"""A session of edgemoe.h as an app uses it: no planner, engine or stream of the Python package."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgemoe import _abi as abi
from edgemoe import _native

Messages = Sequence[tuple[str, str]]


def answer_params(max_tokens: int = 0, stop: Sequence[str] = (), **sampler: float) -> abi.AnswerParams:
    """Greedy unless `temp` says otherwise, with Python's defaults."""
    values = {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0, "repeat_last_n": 64, **sampler}
    texts = (ctypes.c_char_p * len(stop))(*(text.encode() for text in stop))
    chosen = ctypes.pointer(abi.SamplerParams(**values))
    return abi.AnswerParams(max_tokens=max_tokens, stop=texts, n_stop=len(stop), sampler=chosen)


def message_array(messages: Messages) -> ctypes.Array[abi.Message]:
    return (abi.Message * len(messages))(*(abi.Message(role.encode(), text.encode()) for role, text in messages))


def make_plan(model: Path, cache: Path, **params: int) -> abi.Plan:
    """Raises what the status says; a BudgetError has `smallest`."""
    handle = _native.model_open(str(model))
    found, error = abi.Plan(), abi.Error()
    try:
        status = _native.library().emoe_plan_make(
            handle, os.fsencode(cache), ctypes.byref(abi.Setup(**params)), ctypes.byref(found),
            ctypes.byref(error),
        )  # fmt: skip
    finally:
        _native.model_close(handle)
    if status == abi.ERR_MEMORY:
        raise TooSmall(found.smallest_bytes, error.message.decode())
    _native.check(status, error)
    return found


class TooSmall(Exception):
    def __init__(self, smallest: int, message: str) -> None:
        super().__init__(message)
        self.smallest = smallest


class CSession:
    def __init__(self, model: Path, cache: Path, **params: Any) -> None:
        self._library = _native.library()
        handle, error, planned = ctypes.c_void_p(), abi.Error(), abi.Plan()
        status = self._library.emoe_session_open(
            os.fsencode(model), os.fsencode(cache), ctypes.byref(abi.Setup(**params)), ctypes.byref(handle),
            ctypes.byref(planned), ctypes.byref(error),
        )  # fmt: skip
        if status == abi.ERR_MEMORY:
            raise TooSmall(planned.smallest_bytes, error.message.decode())
        _native.check(status, error)
        self._handle = handle

    def _call(self, name: str, *arguments: object) -> None:
        error = abi.Error()
        status = getattr(self._library, name)(self._handle, *arguments, ctypes.byref(error))
        _native.check(status, error)

    def chat(self, messages: Messages, params: abi.AnswerParams, *, template: str | None = None) -> Iterator[str]:
        name = template.encode() if template else None
        self._call("emoe_session_chat", message_array(messages), len(messages), name, ctypes.byref(params))
        return self.rest()

    def prompt(self, text: str, params: abi.AnswerParams) -> Iterator[str]:
        raw = text.encode()
        self._call("emoe_session_prompt", raw, len(raw), ctypes.byref(params))
        return self.rest()

    def rest(self) -> Iterator[str]:
        while True:
            text, n_bytes = ctypes.c_char_p(), ctypes.c_uint64()
            self._call("emoe_session_next", ctypes.byref(text), ctypes.byref(n_bytes))
            address = ctypes.cast(text, ctypes.c_void_p)
            if not address:
                return
            yield ctypes.string_at(address, n_bytes.value).decode()  # strict: whole characters only

    @property
    def finish(self) -> int:
        return int(self._library.emoe_session_finish(self._handle))

    @property
    def tokens(self) -> list[int]:
        n = self._library.emoe_session_tokens(self._handle, None, 0)
        values = (ctypes.c_int32 * n)()
        assert self._library.emoe_session_tokens(self._handle, values, n) == n
        return list(values)

    def cancel(self) -> None:
        self._library.emoe_session_cancel(self._handle)

    def set_budget(self, n_bytes: int) -> None:
        self._call("emoe_session_set_budget", n_bytes)

    def memory_warning(self, level: int) -> None:
        self._call("emoe_session_memory_warning", level)

    @property
    def plan(self) -> abi.Plan:
        found = abi.Plan()
        self._call("emoe_session_get_plan", ctypes.byref(found))
        return found

    @property
    def stats(self) -> abi.Stats:
        found, error = abi.Stats(), abi.Error()
        engine = self._library.emoe_session_engine(self._handle)
        _native.check(self._library.emoe_engine_get_stats(engine, ctypes.byref(found), ctypes.byref(error)), error)
        return found

    def close(self) -> None:
        self._library.emoe_session_close(self._handle)
        self._handle = ctypes.c_void_p()

    def __enter__(self) -> CSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
