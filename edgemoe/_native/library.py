"""Load libedgemoe, declare its functions, turn its statuses into exceptions.

The library is loaded at the first call. A ready wheel has its own llama.cpp beside it, under names of its own, which
the loader finds by itself. Installed from source it uses llama-cpp-python's: libllama is opened as the very file that
the llama_cpp package opens, without importing that package, so that a process never holds two copies of it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import sys
from array import array
from pathlib import Path
from typing import Any, NewType

from .. import _abi as abi
from ..errors import (
    BudgetError,
    Cancelled,
    ContextFullError,
    EdgeMoEError,
    FormatError,
    NativeError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from .signatures import FUNCTIONS

LLAMA_VERSION = "0.3.36"  # of llama-cpp-python; the same pin as in pyproject.toml: its C structs are no stable ABI

ModelHandle = NewType("ModelHandle", int)
EngineHandle = NewType("EngineHandle", int)
SamplerHandle = NewType("SamplerHandle", int)
PolicyHandle = NewType("PolicyHandle", int)
TextHandle = NewType("TextHandle", int)
StreamHandle = NewType("StreamHandle", int)
AllowanceHandle = NewType("AllowanceHandle", int)

_ERRORS: dict[int, type[EdgeMoEError]] = {
    abi.ERR_ARGUMENT: UsageError,
    abi.ERR_IO: StorageError,
    abi.ERR_FORMAT: FormatError,
    abi.ERR_UNSUPPORTED: UnsupportedError,
    abi.ERR_MEMORY: BudgetError,
    abi.ERR_CANCELLED: Cancelled,
    abi.ERR_CONTEXT: ContextFullError,
    abi.ERR_INTERNAL: NativeError,
}


def check(status: int, error: abi.Error) -> None:
    """Raise the exception of a status other than EMOE_OK, with the library's sentence."""
    if status != abi.OK:
        message = error.message.decode("utf-8", "replace") or f"the native library failed with status {status}"
        raise _ERRORS.get(status, NativeError)(message)


def _library_name(stem: str) -> str:
    if sys.platform == "win32":
        return f"{stem}.dll"
    elif sys.platform == "darwin":
        return f"lib{stem}.dylib"
    else:
        return f"lib{stem}.so"


def bundled() -> bool:
    """Whether llama.cpp is part of this installation. llama-cpp-python is not needed then, and is not looked at."""
    return (_edgemoe_library().parent / _library_name("edgemoe-llama")).is_file()


def ggml_library() -> Path:
    """ggml's own functions, quantizers among them: the copy that libedgemoe uses. Raises NativeError."""
    if bundled():
        return _edgemoe_library().parent / _library_name("edgemoe-ggml-base")
    return llama_package() / "lib" / _library_name("ggml-base")


def llama_package() -> Path:
    """The folder of the installed llama-cpp-python, its version checked. Raises NativeError."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = list(spec.submodule_search_locations or []) if spec else []
    install = f"install `llama-cpp-python=={LLAMA_VERSION}` in this Python environment"
    if not folders:
        raise NativeError("llama-cpp-python is not installed", hint=install)
    folder = Path(folders[0])
    # The text of the package, not importlib.metadata: that costs 6 MB of memory that the expert cache can use.
    found = re.search(r'^__version__ = "([^"]+)"', (folder / "__init__.py").read_text("utf-8"), re.MULTILINE)
    version = found[1] if found else "of an unknown version"
    if version != LLAMA_VERSION:
        raise NativeError(f"llama-cpp-python is {version}, edgemoe needs exactly {LLAMA_VERSION}", hint=install)
    path = folder / "lib" / _library_name("llama")
    if not path.is_file():
        raise NativeError(f"llama-cpp-python has no `{path}`", hint=install)
    return folder


def _edgemoe_library() -> Path:
    # An editable install has its Python files and its built files in two folders; both are on __path__.
    folders = [Path(folder) / "lib" for folder in sys.modules["edgemoe"].__path__]
    for folder in folders:
        path = folder / _library_name("edgemoe")
        if path.is_file():
            return path
    raise NativeError(
        f"`{_library_name('edgemoe')}` is missing from `{folders[0]}`",
        hint="reinstall edgemoe; in a checkout, `pip install -e .` builds it",
    )


@functools.cache
def library() -> ctypes.CDLL:
    """libedgemoe, loaded and with its types declared. Raises NativeError."""
    ours = _edgemoe_library()
    llama = None if bundled() else llama_package() / "lib" / _library_name("llama")
    try:
        if llama is not None:
            ctypes.CDLL(str(llama))  # libedgemoe asks for it by its SONAME, and is given the one that is there
        loaded = ctypes.CDLL(str(ours))
    except OSError as error:
        raise NativeError(f"cannot load the native library: {error}", hint="reinstall edgemoe") from None
    loaded.emoe_abi_version.restype = ctypes.c_uint32
    version = loaded.emoe_abi_version()
    if version != abi.ABI_VERSION:
        raise NativeError(
            f"`{ours}` has interface version {version}, this package needs {abi.ABI_VERSION}",
            hint="reinstall edgemoe; in a checkout, `pip install -e .` builds it anew",
        )
    for name, (restype, argtypes) in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = restype, argtypes
    _check_processor(loaded)
    return loaded


def _check_processor(loaded: ctypes.CDLL) -> None:
    """pip keeps the llama.cpp that it compiled: a home folder or an image then takes it to another machine."""
    error = abi.Error()
    if loaded.emoe_processor_check(ctypes.byref(error)) != abi.OK:
        raise UnsupportedError(
            error.message.decode("utf-8", "replace"),
            hint="compile it here: `pip install --force-reinstall --no-deps --no-cache-dir "
            f"llama-cpp-python=={LLAMA_VERSION}`",
        )


def values(struct: abi.Struct) -> dict[str, Any]:
    """Fields of a struct by name, text decoded; without those that only concern the ABI."""
    values = {field[0]: getattr(struct, field[0]) for field in struct._fields_}
    values.pop("struct_size")
    values.pop("reserved", None)
    return {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for key, value in values.items()
    }


def build_info() -> str:
    """What the library was compiled against and what it runs on."""
    return str(library().emoe_build_info().decode("utf-8", "replace"))


@functools.cache
def build_stamp() -> str:
    """Changes whenever the library does: for what was measured with it."""
    return str(library().emoe_build_stamp().decode("utf-8", "replace"))


def set_log_level(level: int) -> None:
    """Which log lines of llama.cpp reach stderr: 0 none, 1 errors, 2 warnings, 3 everything."""
    library().emoe_set_log_level(level)


def handle_of(status: int, handle: ctypes.c_void_p, error: abi.Error) -> int:
    """The address that a function wrote, or its exception."""
    check(status, error)
    return handle.value or 0


def float_pointer(values: array[float]) -> Any:
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_float))


def int32_pointer(values: array[int]) -> Any:
    # Not `c_int32 * n`: ctypes keeps an array type for every n that was ever used.
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_int32))


def uint32_pointer(values: array[int]) -> Any:
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_uint32))
