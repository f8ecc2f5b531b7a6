"""What contexts of a model will allocate: measured by llama.cpp itself, remembered beside the model's shell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ... import _native
from ...paths import read_cached, write_cached
from .model import ContextSizes, Model
from .shell import measuring_shell, notes_name


class SizeBook:
    """Measures contexts of one model on demand. A context manager: it may hold a temporary shell, and saves at the end.

    Calling it with (n_ctx, n_ubatch) gives ContextSizes, at once if that shape was ever measured with this library.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_threads: int,
        n_outputs: int,
        kv_type: str,
        device: int = 0,
        device_name: str = "",
        n_gpu_layer: int = 0,
    ) -> None:
        self._model = model
        self._context: dict[str, Any] = {"n_threads": n_threads, "n_outputs": n_outputs, "kv_type": kv_type}
        self._device_name = device_name
        if device:
            self._context |= {"device": device, "n_gpu_layer": n_gpu_layer}
        self._closing = contextlib.ExitStack()
        self._shell: Path | None = None
        self._library = _native.build_stamp()
        notes = read_cached(notes_name(model))
        self._known = dict(_readable(notes.get("sizes"))) if notes.get("library") == self._library else {}
        self._changed = False

    def __call__(self, n_ctx: int, n_ubatch: int) -> ContextSizes:
        key = " ".join(map(str, (n_ctx, n_ubatch, *self._context.values(), *self._device_name.split())))
        if key not in self._known:
            if self._shell is None:
                self._shell = self._closing.enter_context(measuring_shell(self._model))
            self._known[key] = self._model.measure(self._shell, n_ctx=n_ctx, n_ubatch=n_ubatch, **self._context)
            self._changed = True
        # The vocabulary is measured as growth of the process: the second time it finds the memory of the first.
        vocab_bytes = max(size.vocab_bytes for size in self._known.values())
        return replace(self._known[key], vocab_bytes=vocab_bytes)

    def __enter__(self) -> SizeBook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()
        if self._changed:
            _native.trim_heap()
            name = notes_name(self._model)
            sizes = {key: asdict(size) for key, size in self._known.items()}
            write_cached(name, {**read_cached(name), "library": self._library, "sizes": sizes})


def _readable(sizes: object) -> Iterator[tuple[str, ContextSizes]]:
    if isinstance(sizes, dict):
        for key, size in sizes.items():
            with contextlib.suppress(TypeError):  # written by another version
                yield key, ContextSizes(**size)
