"""GPUs as ggml lists them, and which of them a run takes. The backends are those of the installed llama.cpp.

A backend that was built as a library of its own (ggml's GGML_BACKEND_DL) is loaded from GGML_BACKEND_PATH, ggml's own
variable for it.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

from .. import _native
from .._abi import DEVICE_GPU, DEVICE_IGPU
from ..errors import UnsupportedError, UsageError

BACKENDS = {"vulkan": "Vulkan", "cuda": "CUDA", "metal": "Metal"}
"""What `--device` calls a backend, and what ggml calls it. ggml's Metal names itself MTL in some versions."""
DEVICES = ("auto", "cpu", *BACKENDS)
_OTHER_NAMES = {"MTL": "Metal"}


@dataclass(frozen=True)
class Gpu:
    """One GPU. index: among all of ggml's devices. unified: it computes in the system's memory.

    backend: "CUDA", "Vulkan", "Metal". Sizes in bytes, 0 where not known; free_bytes: now.
    """

    index: int
    backend: str
    name: str
    description: str
    unified: bool
    total_bytes: int
    free_bytes: int


def gpus() -> list[Gpu]:
    """Every GPU of the backends that this llama.cpp has. Wakes their drivers, which takes memory in this process."""
    return [
        Gpu(
            index=index,
            backend=_OTHER_NAMES.get(found["backend"], found["backend"]),
            name=found["name"],
            description=found["description"],
            unified=found["kind"] == DEVICE_IGPU,
            total_bytes=found["total_bytes"],
            free_bytes=found["free_bytes"],
        )
        for index, found in enumerate(_devices())
        if found["kind"] in (DEVICE_GPU, DEVICE_IGPU)
    ]


def backends() -> tuple[str, ...]:
    """Names of what ggml computes with here, "CPU" among them."""
    return tuple(sorted({_OTHER_NAMES.get(found["backend"], found["backend"]) for found in _devices()}))


def choose(device: str) -> Gpu | None:
    """The GPU that `--device` names, None for the CPU. "auto": the first discrete GPU, else the first, else the CPU.

    Raises UsageError for an unknown name, UnsupportedError with the install line when there is no such GPU.
    """
    if device not in DEVICES:
        raise UsageError(f"`{device}` is not a device", hint="use one of " + ", ".join(f"`{name}`" for name in DEVICES))
    if device == "cpu":
        return None
    found = gpus()
    if device == "auto":
        return min(found, key=lambda gpu: (gpu.unified, gpu.index), default=None)
    wanted = [gpu for gpu in found if gpu.backend == BACKENDS[device]]
    if not wanted:
        raise UnsupportedError(
            f"this llama.cpp sees no {BACKENDS[device]} device", hint=f"if there is one: `{install_line(device)}`"
        )
    return wanted[0]


def install_line(device: str) -> str:
    """The command that installs llama.cpp with a backend."""
    if _native.bundled():  # it computes on the CPU only: from source, then
        return (
            f'CMAKE_ARGS="-DGGML_{BACKENDS[device].upper()}=on" pip install --no-binary edgemoe,llama-cpp-python'
            " --no-cache-dir --force-reinstall edgemoe"
        )
    return (
        f'CMAKE_ARGS="-DGGML_{BACKENDS[device].upper()}=on" pip install llama-cpp-python=={_native.LLAMA_VERSION}'
        " --no-cache-dir --force-reinstall --no-deps"
    )


def _devices() -> list[dict[str, Any]]:
    _load_extra()
    return _native.devices()


@functools.cache
def _load_extra() -> None:
    path = os.environ.get("GGML_BACKEND_PATH", "")
    if path:
        _native.backend_load(path)
