"""From a path and a setup to a plan, and to an engine: the order in which things are opened, measured and refused."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..units import parse_memory
from .budget.planner import Plan, resolve_budget
from .engine.engine import Engine
from .find.mmproj import AUTO, OFF, encoder_of
from .formats import format_of, open_model
from .model import Model
from .setup import Progress, Setup


def load(
    path: str | os.PathLike[str], setup: Setup | None = None, *, progress: Progress | None = None, **asked: Any
) -> Engine:
    """Open a model for generation inside a memory budget; close it, or use it in a `with` statement.

    path: a GGUF file, any file of a split set, the folder of an ONNX export, or a model's name (see `edgemoe.resolve`).
    setup: what is asked for; asked: fields of `Setup` by name instead, or over it: `load(path, memory="4GiB")`.
    progress: receives a line of text before each step that takes time.

    Raises BudgetError naming the smallest budget that works, before anything is loaded; UsageError, FormatError,
    UnsupportedError, StorageError.
    """
    wanted = _setup(setup, asked)
    with ExitStack() as undo:
        model = undo.enter_context(open_model(path, wanted.overrides))
        wanted = _with_encoder(model, wanted)
        form = format_of(model)
        form.check(model, wanted)
        made = form.plan(model, wanted, measure=False)
        host_info = form.host_info(model, made)
        backend = form.backend(model, wanted, made, progress)
        # With a GPU no budget is known to be enough.
        enough = sys.maxsize if made.device else made.resident_bytes

        def resolve(memory: str | int) -> int:
            return resolve_budget(parse_memory(memory), enough)

        engine = Engine(
            model,
            backend,
            made,
            host_info,
            resolve=resolve,
            warm_start=wanted.warm_start and wanted.profile is None,
            n_draft=wanted.n_draft,
            n_row=wanted.n_rows,
            parallel=wanted.parallel,
            mmproj=None if wanted.mmproj == OFF else Path(wanted.mmproj),
        )
        undo.pop_all()
        return engine


def plan(
    model: Model | str | os.PathLike[str], setup: Setup | None = None, *, measure: bool = True, **asked: Any
) -> Plan:
    """How `load` with the same arguments would spend the budget, with the decode speed to expect; loads nothing.

    measure: spend up to two seconds on the speed of storage and kernels if it is not known; otherwise predict only
    from what is known. Raises like `load`.
    """
    wanted = _setup(setup, asked)
    if not isinstance(model, Model):
        with open_model(model, wanted.overrides) as opened:
            return plan(opened, wanted, measure=measure)
    wanted = _with_encoder(model, wanted)
    form = format_of(model)
    form.check(model, wanted)
    return form.plan(model, wanted, measure=measure)


def _with_encoder(model: Model, wanted: Setup) -> Setup:
    """With the file of the picture encoder, or "off"."""
    if wanted.mmproj == AUTO and (model.format != "gguf" or wanted.parallel > 1):
        return wanted.but(mmproj=OFF)
    return wanted.but(mmproj=encoder_of(model.path, os.fspath(wanted.mmproj)) or OFF)


def _setup(setup: Setup | None, asked: dict[str, Any]) -> Setup:
    if setup is None:
        return Setup(**asked)
    return setup.but(**asked) if asked else setup
