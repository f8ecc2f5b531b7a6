"""Functions of edgemoe.h on models, their shells, and what contexts of them allocate."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

from .. import _abi as abi
from .library import ModelHandle, check, library, values

_PATH_BYTES = 4096


def model_open(path: str, override_kv: Sequence[str] = ()) -> ModelHandle:
    """override_kv: "KEY=TYPE:VALUE"."""
    handle, error, n = ctypes.c_void_p(), abi.Error(), len(override_kv)
    texts = (ctypes.c_char_p * n)(*(text.encode("utf-8", "replace") for text in override_kv))
    status = library().emoe_model_open_with(os.fsencode(path), texts, n, ctypes.byref(handle), ctypes.byref(error))
    check(status, error)
    return ModelHandle(handle.value or 0)


def model_close(model: ModelHandle) -> None:
    library().emoe_model_close(model)


def model_info(model: ModelHandle) -> dict[str, Any]:
    info, error = abi.ModelInfo(), abi.Error()
    check(library().emoe_model_get_info(model, ctypes.byref(info), ctypes.byref(error)), error)
    return values(info)


def model_host_info(model: ModelHandle, setup: abi.Setup) -> dict[str, Any]:
    """The model as the host sees it when a GPU has the experts that `setup` names."""
    info, error = abi.ModelInfo(), abi.Error()
    status = library().emoe_model_get_host_info(model, ctypes.byref(setup), ctypes.byref(info), ctypes.byref(error))
    check(status, error)
    return values(info)


def model_recommendation(model: ModelHandle | None) -> dict[str, Any]:
    """Fields of `emoe_recommendation`; None for llama.cpp's own values."""
    found, error = abi.Recommendation(), abi.Error()
    check(library().emoe_model_get_recommendation(model, ctypes.byref(found), ctypes.byref(error)), error)
    return values(found)


def model_layer(model: ModelHandle, index: int) -> dict[str, Any]:
    info, error = abi.LayerInfo(), abi.Error()
    check(library().emoe_model_get_layer(model, index, ctypes.byref(info), ctypes.byref(error)), error)
    return values(info)


def model_meta(model: ModelHandle, key: str) -> str | None:
    """A metadata value as text, None when the key is absent or an array."""
    name, room = key.encode("utf-8"), 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = library().emoe_model_meta(model, name, buffer, room)
        if length < room:
            return None if length < 0 else buffer.raw[:length].decode("utf-8", "replace")
        room = length + 1


def shell_write(model: ModelHandle, path: str, *, with_data: bool) -> None:
    error = abi.Error()
    check(library().emoe_shell_write(model, os.fsencode(path), int(with_data), ctypes.byref(error)), error)


def shell_check(model: ModelHandle, path: str) -> bool:
    """Whether `path` is a finished shell of this model."""
    return bool(library().emoe_shell_check(model, os.fsencode(path), None) == abi.OK)


def shell_find(model: ModelHandle, cache_dir: str, setup: abi.Setup) -> tuple[str, bool]:
    """Where the model's shell is in a cache folder, "" where none is needed; and whether it is there and finished."""
    path, whole, error = ctypes.create_string_buffer(_PATH_BYTES), ctypes.c_uint32(), abi.Error()
    status = library().emoe_shell_find(
        model, os.fsencode(cache_dir), ctypes.byref(setup), path, _PATH_BYTES, ctypes.byref(whole), ctypes.byref(error)
    )
    check(status, error)
    return os.fsdecode(path.value), bool(whole.value)


def shell_make(model: ModelHandle, cache_dir: str, setup: abi.Setup) -> str:
    """Where the model's shell is in a cache folder, written if there was none; "" where none is needed."""
    path, error = ctypes.create_string_buffer(_PATH_BYTES), abi.Error()
    status = library().emoe_shell_make(
        model, os.fsencode(cache_dir), ctypes.byref(setup), path, _PATH_BYTES, ctypes.byref(error)
    )
    check(status, error)
    return os.fsdecode(path.value)


def context_measure(model: ModelHandle, shell: str | None, setup: abi.Setup) -> dict[str, Any]:
    sizes, error = abi.ContextSizes(), abi.Error()
    status = library().emoe_context_measure(
        model, shell and os.fsencode(shell), ctypes.byref(setup), ctypes.byref(sizes), ctypes.byref(error)
    )
    check(status, error)
    return values(sizes)
