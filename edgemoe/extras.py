"""Packages that a plain install leaves out: what is said where one is wanted and missing."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from .errors import UnsupportedError

_ONNXRUNTIME = (1, 31)  # the first with `accuracy_level` of QMoE and its fast kernels; the same in pyproject.toml


def need_onnx() -> None:
    """Raise UnsupportedError unless onnx is here, and onnxruntime in a version that will do. Imports neither."""
    hint = "`pip install 'edgemoe[onnx]'`: it takes Python 3.11 or newer, and is not to be had for Intel Macs or Alpine"
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UnsupportedError(f"ONNX exports need the package {name}, which is not installed", hint=hint)
    version = _version("onnxruntime")
    if version is not None and version < _ONNXRUNTIME:
        here, least = (".".join(map(str, v)) for v in (version, _ONNXRUNTIME))
        raise UnsupportedError(f"ONNX exports need onnxruntime {least} or newer, {here} is installed", hint=hint)


def _version(package: str) -> tuple[int, int] | None:
    """Of the package's own text: importlib.metadata costs memory that experts can use. None: it does not say."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        try:
            text = (Path(folder) / "__init__.py").read_text("utf-8", "replace")
        except OSError:
            continue
        found = re.search(r'^__version__ = "(\d+)\.(\d+)', text, re.MULTILINE)
        if found:
            return int(found[1]), int(found[2])
    return None
