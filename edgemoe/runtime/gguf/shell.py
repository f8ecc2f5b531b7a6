"""The shell of a model: a GGUF with its metadata and dense weights only, which llama.cpp loads instead of the model.

Derived data, kept in the cache folder under the model's identity, made anew when in doubt: all of that is decided and
done in native code (native/src/store), and told here.
"""

from __future__ import annotations

import os
from pathlib import Path

from ... import _native
from ..._abi import Setup as NativeSetup
from ...errors import StorageError
from ...paths import cache_dir
from ...units import format_size
from ..setup import Progress
from .model import GgufModel


def shell_for(model: GgufModel, setup: NativeSetup, *, progress: Progress | None = None) -> Path | None:
    """The model's shell as a file, written if there is none or it is not whole; None where none is needed.

    A GPU is filled from such a file. Without one the shell is in memory while the model is loaded, and dense weights
    are read from the model's own file. Raises StorageError (disk full, unreadable).
    """
    folder = os.fspath(cache_dir())
    try:
        _, whole = _native.shell_find(model.handle, folder, setup)
        if progress and not whole:
            progress(f"copying the dense weights for the GPU ({format_size(model.info.dense_bytes)}, once a model)")
        path = _native.shell_make(model.handle, folder, setup)
    except StorageError as error:
        raise StorageError(
            error.message, hint="free some space, or set `EDGEMOE_CACHE` to a folder on another disk"
        ) from None
    return Path(path) if path else None
