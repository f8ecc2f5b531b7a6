"""EdgeMoE: run Mixture-of-Experts GGUF models inside a hard memory budget.

    import edgemoe

    with edgemoe.load("model.gguf", memory="4GiB") as engine:
        for piece in engine.chat([{"role": "user", "content": "What is the capital of France?"}]):
            print(piece, end="", flush=True)

Experts are streamed from storage into a cache of fixed size; the output is exactly what the unstreamed model says.
Importing this package is cheap: everything below is loaded at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import BudgetError as BudgetError
    from .errors import Cancelled as Cancelled
    from .errors import ContextFullError as ContextFullError
    from .errors import EdgeMoEError as EdgeMoEError
    from .errors import FormatError as FormatError
    from .errors import NativeError as NativeError
    from .errors import StorageError as StorageError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import UsageError as UsageError
    from .runtime.budget.planner import Plan as Plan
    from .runtime.engine.engine import Engine as Engine
    from .runtime.engine.stats import Stats as Stats
    from .runtime.find.local import find_models as find_models
    from .runtime.find.names import resolve as resolve
    from .runtime.formats import open_model as open_model
    from .runtime.load import load as load
    from .runtime.load import plan as plan
    from .runtime.model import Model as Model
    from .runtime.setup import Setup as Setup
    from .runtime.text.sampling import Sampling as Sampling

__version__ = "0.2.0"

_HOME = {
    "BudgetError": ".errors",
    "Cancelled": ".errors",
    "ContextFullError": ".errors",
    "EdgeMoEError": ".errors",
    "FormatError": ".errors",
    "NativeError": ".errors",
    "StorageError": ".errors",
    "UnsupportedError": ".errors",
    "UsageError": ".errors",
    "find_models": ".runtime.find.local",
    "Engine": ".runtime.engine.engine",
    "load": ".runtime.load",
    "plan": ".runtime.load",
    "Model": ".runtime.model",
    "open_model": ".runtime.formats",
    "resolve": ".runtime.find.names",
    "Plan": ".runtime.budget.planner",
    "Sampling": ".runtime.text.sampling",
    "Setup": ".runtime.setup",
    "Stats": ".runtime.engine.stats",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module `edgemoe` has no attribute `{name}`")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
