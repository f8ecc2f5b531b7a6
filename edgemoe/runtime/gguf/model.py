"""The headers of a GGUF file."""

from __future__ import annotations

import os
import weakref
from functools import cached_property
from pathlib import Path

from ... import _native
from ..._abi import Setup as NativeSetup
from ...errors import EdgeMoEError, FormatError, StorageError, UnsupportedError, UsageError
from ..model import ContextSizes, LayerInfo, Model, ModelInfo
from ..text.sampling import Recommended


class GgufModel(Model):
    """See `Model`; of a split set it is all files."""

    format = "gguf"

    def __init__(self, path: Path, handle: _native.ModelHandle, override_kv: tuple[str, ...]) -> None:
        self.path, self.override_kv = path, override_kv
        self._handle: _native.ModelHandle | None = handle
        self._finalizer = weakref.finalize(self, _native.model_close, handle)
        self.info = _info(_native.model_info(handle))

    @property
    def handle(self) -> _native.ModelHandle:
        """For the native calls of this package. Raises UsageError after `close`."""
        if self._handle is None:
            raise UsageError(f"the model `{self.path}` is closed")
        return self._handle

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        return tuple(LayerInfo(**_native.model_layer(self.handle, i)) for i in range(self.info.n_moe_layer))

    def meta(self, key: str) -> str | None:
        return _native.model_meta(self.handle, key)

    @cached_property
    def recommended(self) -> Recommended:
        return Recommended.read(self.handle)

    def host_info(self, setup: NativeSetup) -> ModelInfo:
        """The model as the host sees it when a GPU has the experts that `setup` names."""
        return _info(_native.model_host_info(self.handle, setup))

    def measure(self, shell: Path, setup: NativeSetup) -> ContextSizes:
        """What a context of setup's shape will allocate, asked of llama.cpp itself through a shell of this model."""
        return ContextSizes(**_native.context_measure(self.handle, os.fspath(shell), setup))

    def close(self) -> None:
        self._handle = None
        self._finalizer()


def open_gguf(file: Path, override_kv: tuple[str, ...] = ()) -> GgufModel:
    """override_kv: see `Setup`.

    Raises UsageError (no such file, a folder), StorageError, FormatError, UnsupportedError (not a MoE).
    """
    _check_file(file)
    try:
        handle = _native.model_open(os.fspath(file), override_kv)
    except FormatError as error:
        raise _hinted(error, "the file may be incomplete: compare its size, or download or copy it again") from None
    except UnsupportedError as error:
        raise _hinted(error, _unsupported_hint(error.message, file)) from None
    except StorageError as error:
        raise _hinted(error, "check that every file of the model is there and readable") from None
    return GgufModel(file, handle, override_kv)


def _info(values: dict[str, object]) -> ModelInfo:
    return ModelInfo(**{**values, "direct_io": bool(values["direct_io"])})  # type: ignore[arg-type]


def _check_file(file: Path) -> None:
    try:
        if file.is_dir():
            inside = sorted(file.glob("*.gguf"))
            hint = f"give the file in it: `{inside[0]}`" if inside else "give a GGUF file"
            raise UsageError(f"`{file}` is a folder", hint=hint)
        found = file.is_file()
    except OSError as error:
        raise StorageError(f"cannot look at `{file}`: {error.strerror}") from None
    if not found:
        what = "is not a regular file" if file.exists() else "does not exist"
        raise UsageError(f"`{file}` {what}", hint="give the path of a GGUF file")


def _unsupported_hint(message: str, file: Path) -> str:
    if "no longer reads" in message:
        return f"`edgemoe convert {file} NEW.gguf` makes a file of today's form, or download a newer one"
    if "be overridden" in message:
        return "leave it out: `edgemoe convert` writes files of another layout"
    if "dense model" in message:
        return "edgemoe runs Mixture-of-Experts GGUF files; llama.cpp runs dense ones"
    return "take another file of the model"


def _hinted(error: EdgeMoEError, hint: str) -> EdgeMoEError:
    return type(error)(error.message, hint=error.hint or hint)
