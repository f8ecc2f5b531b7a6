"""From an export and a budget to a plan, and to an engine: the same order, planner and engine as for GGUF."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from ... import _native
from ...devices.memory import process_memory
from ...errors import BudgetError, UnsupportedError, UsageError
from ..engine.engine import Engine
from ..budget.planner import Budget, Plan, resident_bytes
from ..budget.planner import plan as make_plan
from ..text.prompt import first_rendering_bytes
from .backend import OnnxBackend
from .model import OnnxModel
from .parts import parts_of
from .sizes import ExportSizes, note_overhead

Resolve = Callable[[int], int]
"""Bytes of the budget that was asked for, given those in which every expert fits."""


def plan_export(
    model: OnnxModel, resolve: Resolve, *, n_ctx: int | None, n_ubatch: int | None, n_threads: int, n_outputs: int
) -> Plan:
    """Spend a budget on an export. Raises BudgetError, UsageError."""
    _check_system()
    import numpy  # noqa: F401  # what this process has anyway is counted before the budget is divided
    import onnxruntime  # noqa: F401

    _native.library()
    sizes = ExportSizes(model, n_threads=n_threads, n_outputs=n_outputs)
    later_bytes = first_rendering_bytes(model.chat_template)
    budget = Budget(0, process_memory().rss, n_threads, n_ctx, n_ubatch, later_bytes)
    budget = replace(budget, bytes=resolve(resident_bytes(model.info, sizes, budget)))
    return make_plan(model.info, sizes, budget, reader="threads")


def load_export(
    model: OnnxModel,
    resolve: Resolve,
    again: Callable[[str | int], int],
    *,
    n_ctx: int | None,
    n_ubatch: int | None,
    n_threads: int,
    n_outputs: int,
    policy: int,
    warm_start: bool,
    progress: Callable[[str], None] | None,
) -> Engine:
    """Open an export inside a budget. again: bytes of a later budget as a user writes it. Raises as `load` does."""
    shape = {"n_ubatch": n_ubatch, "n_threads": n_threads, "n_outputs": n_outputs}
    plan = plan_export(model, resolve, n_ctx=n_ctx, **shape)  # type: ignore[arg-type]
    parts = parts_of(model, progress=progress)
    if progress:
        progress(f"loading {model.info.name}")
    before = process_memory().rss
    backend = OnnxBackend(
        model, parts, n_ctx=plan.n_ctx, n_ubatch=plan.n_ubatch, n_threads=n_threads, n_outputs=n_outputs, policy=policy
    )
    _native.trim_heap()
    grown = process_memory().rss - before
    known = plan.kv_bytes + model.info.dense_bytes + backend.residency.used_bytes
    note_overhead(model, n_threads, max(0, grown - known))
    try:
        return Engine(model, backend, plan, resolve=again, warm_start=warm_start)
    except BudgetError:
        # What was measured just now is known to the next plan, which says what works before it loads.
        raise


def _check_system() -> None:
    if sys.platform != "linux":
        raise UnsupportedError(
            "an ONNX export is run under a budget on Linux only", hint="stock ONNX Runtime runs it here, without one"
        )


def refuse_options(given: dict[str, object]) -> None:
    """Raise UsageError for options that only the GGUF path has."""
    for name, value in given.items():
        if value:
            raise UsageError(
                f"this `--{name}` is not to be had with an ONNX export", hint="leave it out, or use the GGUF file"
            )
