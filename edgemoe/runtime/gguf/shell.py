"""The shell of a model: a GGUF with its metadata and dense weights only, which llama.cpp loads instead of the model.

Derived data, kept in the cache folder under the model's identity, made anew when in doubt: all of that is decided and
done in native code (native/src/store), and told here.
"""

from __future__ import annotations

import os
from pathlib import Path

from ... import _native
from ...errors import StorageError
from ...paths import cache_dir
from ...units import format_size
from ..setup import Progress
from .model import GgufModel


def shell_for(model: GgufModel, *, progress: Progress | None = None) -> Path:
    """The model's shell, written if there is none or it is not whole. Raises StorageError (disk full, unreadable)."""
    folder = os.fspath(cache_dir())
    try:
        _, whole = _native.shell_find(model.handle, folder)
        if progress and not whole:
            progress(f"copying the dense weights ({format_size(model.info.dense_bytes)}, once a model)")
        return Path(_native.shell_make(model.handle, folder))
    except StorageError as error:
        raise StorageError(
            error.message, hint="free some space, or set `EDGEMOE_CACHE` to a folder on another disk"
        ) from None
