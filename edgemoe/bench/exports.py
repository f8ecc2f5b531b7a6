"""ONNX exports as sides of a benchmark: what must be there before a repetition, and which files its caches hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import edgemoe

from ..errors import UsageError
from ..runtime.gguf.model import Model, is_export
from .engines import Setting
from .report import ONNX, OURS
from .runner import Say, Side


def export_files(model: Model, say: Say) -> list[Path]:
    """Every file that running an export reads; its experts are packed first if they are not. [] for a GGUF."""
    if not is_export(model):
        return []
    from ..runtime.onnx.parts import parts_of

    return sorted(model.path.iterdir()) + sorted(parts_of(model, progress=say).iterdir())


def onnx_side(path: str, setting: Setting, limit_bytes: int, n_decode: int, say: Say) -> tuple[Side, list[Path]]:
    """The same work by an export, with the same budget. Raises BudgetError when that is too small for it."""
    with edgemoe.open_model(path) as model:
        if not is_export(model):
            raise UsageError(f"`{path}` is no ONNX export", hint="`edgemoe convert SRC OUT --to onnx` makes one")
        edgemoe.plan(  # raises where it does not fit, before anything runs
            model,
            memory=setting.memory_bytes,
            ctx=setting.n_ctx,
            threads=setting.n_threads,
            n_ubatch=setting.n_ubatch or None,
        )
        files = export_files(model, say)
    other = replace(setting, path=path, prefetch="auto", read_limit=0)
    return Side(ONNX, OURS, other, limit_bytes, n_decode), files
