"""Whether a model that was found runs in a budget, and how fast: what `edgemoe models` says of each."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BudgetError, EdgeMoEError, UnsupportedError
from .budget.planner import Plan
from .find.local import Found
from .formats import open_model
from .load import plan


@dataclass(frozen=True)
class Verdict:
    """kind: "runs", "too small" (the budget), "not streamed" (dense, or experts of another kind), "broken".

    plan: how it would run. smallest_bytes: the smallest budget that works, 0 if not known. reason: why it does not run.
    """

    kind: str
    n_expert_total: int = 0
    smallest_bytes: int = 0
    plan: Plan | None = None
    reason: str = ""


def judge(found: Found, *, memory: str | int = "auto", measure: bool = True) -> Verdict:
    """Read a model's headers and plan it. measure: spend a second on the speed of its drive if it is not known."""
    try:
        with open_model(found.path) as model:
            n_expert_total = model.info.n_expert_total
            try:
                made = plan(model, memory=memory, measure=measure)
            except BudgetError as error:
                return Verdict("too small", n_expert_total, error.smallest, reason=error.message)
    except UnsupportedError as error:
        return Verdict("not streamed", reason=_short(error.message, found))
    except EdgeMoEError as error:
        return Verdict("broken", reason=_short(error.message, found))
    return Verdict("runs", n_expert_total, made.smallest_bytes, made)


def _short(message: str, found: Found) -> str:
    """An error's message without the path, which stands beside it."""
    return message.replace(f"`{found.path}` is ", "").replace(f"`{found.path}`", "the file")
