"""`edgemoe plan`: how a memory budget would be spent, and how fast that would be."""

from __future__ import annotations

import json

from ..places import BUILTIN
from .generate import find
from .options import JsonOption, ModelArgument, PlanOptions
from .status import note, say


def plan(budget: PlanOptions, model: ModelArgument = BUILTIN, json_output: JsonOption = False) -> None:
    """Show how a memory budget is spent: dense weights, KV cache, experts that fit, predicted speed."""
    import edgemoe

    setup = budget.setup()
    found = edgemoe.plan(find(model), setup)
    if setup.device == "auto":
        note(found.device_line)
    if json_output:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        say(*found.lines())
