"""The seam between a model's format and everything above it: a format opens, plans, and gives a backend.

GGUF and ONNX are two folders beside each other that know nothing of one another; a third would be one more line here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from .budget.planner import Plan
from .engine.backend import Backend
from .find.names import resolve
from .model import Model, ModelInfo
from .setup import Progress, Setup


class Format(Protocol):
    """What a module `<format>/format.py` has. TRACED: its engine can record what it does."""

    TRACED: bool

    def open(self, path: Path, override_kv: tuple[str, ...]) -> Model | None:
        """The headers of a model; None when the path is not of this format. Raises FormatError and its like."""

    def check(self, model: Model, setup: Setup) -> None:
        """Raise UsageError or UnsupportedError for what this format does not have of a setup."""

    def plan(self, model: Any, setup: Setup, *, measure: bool) -> Plan:
        """How the budget is spent. measure: spend time on speeds that are not known. Raises BudgetError, UsageError."""

    def host_info(self, model: Any, plan: Plan) -> ModelInfo:
        """The model as the host sees it, without the experts that a GPU has by this plan."""

    def files(self, model: Any, progress: Progress | None) -> list[Path]:
        """Every file that running it reads; what is derived is made first. For who measures."""

    def backend(self, model: Any, setup: Setup, plan: Plan, progress: Progress | None) -> Backend:
        """The model opened, with the smallest cache. Raises StorageError, UnsupportedError."""


# In the order in which they are asked: GGUF takes every file, and says what is wrong with it.
FORMATS = ("onnx", "gguf")


def format_of(model: Model) -> Format:
    """The module of a model's format, loaded now: what a format needs is imported by who uses it."""
    return _module(model.format)


def open_model(path: str | os.PathLike[str], override_kv: Sequence[str] = ()) -> Model:
    """Read the headers of a GGUF file; of all files of a split set, given any of them; or of an ONNX export.

    path: a file, the folder of an export, or the name of a model (see `edgemoe.resolve`). override_kv: see `Setup`.
    Raises UsageError (no such file, a folder), StorageError, FormatError, UnsupportedError (not a MoE).
    """
    file = resolve(path)
    for name in FORMATS:
        if name == "onnx" and not (file.is_dir() or file.suffix.lower() == ".onnx"):
            continue  # its module is not worth loading
        model = _module(name).open(file, tuple(override_kv))
        if model is not None:
            return model
    raise AssertionError("the last format takes every file")


def _module(name: str) -> Format:
    module: Any = importlib.import_module(f".{name}.format", __package__)
    found: Format = module
    return found
