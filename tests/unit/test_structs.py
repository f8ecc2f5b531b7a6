"""Structs of the C interface grow at the end only: older callers are served, newer ones are told so."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinymoe

from edgemoe import UsageError, _native
from edgemoe import _abi as abi


@pytest.fixture
def model(tmp_path: Path) -> Iterator[_native.ModelHandle]:
    handle = _native.model_open(str(tinymoe.write(tmp_path / "m.gguf", "qwen3moe")))
    yield handle
    _native.model_close(handle)


def call(function: Any, *arguments: Any) -> None:
    error = abi.Error()
    _native.check(function(*arguments, ctypes.byref(error)), error)


def info_of(model: _native.ModelHandle, size: int) -> abi.ModelInfo:
    """Filled by the library for a caller whose struct has so many bytes; the rest is 0xEE as before."""
    info = abi.ModelInfo()
    ctypes.memset(ctypes.byref(info), 0xEE, ctypes.sizeof(info))
    info.struct_size = size
    call(_native.library().emoe_model_get_info, model, ctypes.byref(info))
    return info


def test_an_older_callers_result_is_filled_as_far_as_it_goes(model: _native.ModelHandle) -> None:
    whole, size = info_of(model, ctypes.sizeof(abi.ModelInfo)), abi.ModelInfo.file_bytes.offset
    older = info_of(model, size)
    assert bytes(older)[4:size] == bytes(whole)[4:size]
    assert older.struct_size == size
    assert set(bytes(older)[size:]) == {0xEE}  # nothing is written behind the caller's struct


def test_what_an_older_caller_does_not_know_is_zero(tmp_path: Path, model: _native.ModelHandle) -> None:
    library = _native.library()
    setup = abi.Setup(n_ctx=64, n_ubatch=8, n_threads=1)
    sizes, fewer = abi.ContextSizes(), abi.ContextSizes()
    shell = str(tmp_path / "shell")
    _native.shell_write(model, shell, with_data=False)
    call(library.emoe_context_measure, model, shell.encode(), ctypes.byref(setup), ctypes.byref(sizes))
    setup.n_outputs, setup.kv_type, setup.device = 9999, 77, 55  # garbage behind the older struct's end
    setup.struct_size = abi.Setup.n_outputs.offset
    call(library.emoe_context_measure, model, shell.encode(), ctypes.byref(setup), ctypes.byref(fewer))
    assert (fewer.kv_bytes, fewer.compute_bytes) == (sizes.kv_bytes, sizes.compute_bytes)


@pytest.mark.parametrize("name", [name for name, struct in abi.STRUCTS.items() if hasattr(struct, "struct_size")])
def test_every_struct_begins_with_its_size(name: str) -> None:
    assert abi.STRUCTS[name]._fields_[0] == ("struct_size", ctypes.c_uint32)


@pytest.mark.parametrize("which", ["result", "machine", "plan", "sampler"])
def test_a_newer_caller_is_told_which_side_is_newer(model: _native.ModelHandle, which: str) -> None:
    library, setup, out = _native.library(), abi.Setup(), ctypes.c_void_p()
    structs: dict[str, abi.Struct] = {
        "result": abi.ModelInfo(),
        "machine": abi.MemoryInfo(),
        "plan": abi.Plan(),
        "sampler": abi.SamplerParams(),
    }
    struct = structs[which]

    def ask() -> None:
        given = ctypes.byref(struct)
        if which == "result":
            call(library.emoe_model_get_info, model, given)
        elif which == "machine":
            call(library.emoe_memory_get, None, given)
        elif which == "plan":
            call(library.emoe_plan_make, model, b"/tmp", ctypes.byref(setup), given)
        else:
            call(library.emoe_sampler_open, given, ctypes.byref(out))

    struct.struct_size += 8
    with pytest.raises(UsageError, match="the caller's header is newer than the library"):
        ask()
    struct.struct_size = 0
    with pytest.raises(UsageError, match="the struct_size of emoe_.* is 0: set it to sizeof"):
        ask()


def test_the_abi_number_moved_with_the_structs() -> None:
    assert _native.library().emoe_abi_version() == abi.ABI_VERSION >= 2
