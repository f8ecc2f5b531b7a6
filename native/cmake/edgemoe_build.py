"""The build backend: scikit-build-core's, with a word about compilers before anything is compiled, and two installs.

From source, libedgemoe links the llama.cpp of llama-cpp-python, which pip compiles first and which stays a dependency.
With EDGEMOE_LLAMA_SOURCE, the folder of llama.cpp's sources, the wheel holds a llama.cpp of its own (`./dev wheel`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403  # the other hooks

_NO_COMPILER = """\
edgemoe: no C++ compiler found, and this installs from source: llama.cpp and libedgemoe are compiled here
hint: `apt install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora), `apk add g++ linux-headers` (Alpine),
      `xcode-select --install` (macOS); or install a ready wheel, which compiles nothing"""


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    _need_compiler()
    return list(_backend.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    _need_compiler()
    return list(_backend.get_requires_for_build_editable(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: Mapping[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    _show_llama()
    return str(_backend.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: Mapping[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    _show_llama()
    return str(_backend.build_editable(wheel_directory, config_settings, metadata_directory))


def _show_llama() -> None:
    """Tell CMake where llama-cpp-python is: isolated, pip puts what hooks require elsewhere than the backend."""
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None or os.environ.get("EDGEMOE_LLAMA_SOURCE"):
        return
    folders = [str(Path(package.origin).parent.parent), os.environ.get("CMAKE_PREFIX_PATH", "")]
    os.environ["CMAKE_PREFIX_PATH"] = os.pathsep.join(filter(None, folders))


def _need_compiler() -> None:
    """End here, in a sentence, where pip would show what CMake says while it compiles a requirement."""
    if sys.platform == "win32" or "CMAKE_CXX_COMPILER" in os.environ.get("CMAKE_ARGS", ""):
        return  # found by other ways than PATH
    named = os.environ.get("CXX", "").split()
    if not any(map(shutil.which, [*named[:1], "c++", "g++", "clang++"])):
        sys.exit(_NO_COMPILER)


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the wheel depends on beside the list in pyproject.toml (scikit-build-core asks)."""
    return {"dependencies": [settings["wheel" if os.environ.get("EDGEMOE_LLAMA_SOURCE") else "source"]]}
