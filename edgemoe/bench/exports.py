"""ONNX exports as sides of a benchmark, beside the GGUF files that they were made from."""

from __future__ import annotations

from pathlib import Path

import edgemoe

from ..errors import UsageError
from ..runtime.formats import format_of
from .engines import Setting
from .report import ONNX, OURS
from .runner import Say, Side


def onnx_side(path: str, setting: Setting, limit_bytes: int, n_decode: int, say: Say) -> tuple[Side, list[Path]]:
    """The same work by an export, with the same budget, and its files. Raises BudgetError when it is too small."""
    other = Setting(path, setting.setup.but(prefetch="auto", read_limit=None))
    with edgemoe.open_model(path, setting.setup.overrides) as model:
        if model.format != "onnx":
            raise UsageError(f"`{path}` is no ONNX export", hint="`edgemoe convert SRC OUT --to onnx` makes one")
        edgemoe.plan(model, other.setup)  # raises where it does not fit, before anything runs
        files = format_of(model).files(model, say)
    return Side(ONNX, OURS, other, limit_bytes, n_decode), files
