"""`edgemoe plan`: how a memory budget would be spent, and how fast that would be."""

from __future__ import annotations

import json

from ..places import BUILTIN
from .generate import find
from .options import JsonOption, ModelArgument, ParallelOption, PlanOptions
from .serve import libraries
from .status import note, say


def plan(
    budget: PlanOptions, model: ModelArgument = BUILTIN, parallel: ParallelOption = 1, json_output: JsonOption = False
) -> None:
    """Show how a memory budget is spent: dense weights, KV cache, experts that fit, predicted speed.

    With `--parallel` it is what `edgemoe serve --parallel` takes, its libraries included.
    """
    import edgemoe

    setup = budget.setup().but(parallel=parallel)
    if parallel > 1:
        libraries()
    found = edgemoe.plan(find(model), setup)
    if setup.device == "auto":
        note(found.device_line)
    if json_output:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        say(*found.lines())
