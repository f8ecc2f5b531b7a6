"""The budget in which a share of a model's experts fits: to show, or to measure, what streaming them costs."""

from __future__ import annotations

import contextlib
import os

from ...errors import BudgetError, UsageError
from ...units import format_size
from ..engine.engine import Engine
from ..formats import format_of, open_model
from ..load import plan
from ..model import Model
from ..setup import Setup
from ..text.prompt import first_rendering_bytes
from .planner import Plan


def share_budget(model: Model | str | os.PathLike[str], share: float, setup: Setup | None = None) -> int:
    """Bytes of the whole process with which `share` (0 to 1) of the experts fit, or a little more; never too few.

    Of those that no GPU has. setup: what else is asked for; its memory is not read. 1 is the budget in which all of
    them stay. Raises like `plan`.
    """
    if not isinstance(model, Model):
        with open_model(model, setup.overrides if setup else ()) as opened:
            return share_budget(opened, share, setup)
    asked = (setup or Setup()).but(memory="auto")
    whole = plan(model, asked, measure=False)
    if share >= 1:
        if whole.fraction < 1:
            raise UsageError(
                f"{model.info.name} does not fit into memory whole: that takes {format_size(whole.resident_bytes)}",
                hint="choose a smaller model",
            )
        return whole.resident_bytes
    # The chat template's first rendering takes its memory from the cache: what is left then is what counts.
    left = format_of(model).host_info(model, whole)
    wanted_bytes = round(share * left.slot_bytes) + first_rendering_bytes(model.chat_template)
    budget_bytes = whole.resident_bytes
    # A plan's cache grows with its budget, but for the margin and the batch: the second step only corrects those.
    for _ in range(2):
        found: Plan = plan(model, asked.but(memory=budget_bytes), measure=False)
        budget_bytes = max(budget_bytes - found.cache_bytes + wanted_bytes, found.smallest_bytes)
    return budget_bytes


def hold_share(engine: Engine, share: float) -> None:
    """Lower the budget of an engine opened with `share_budget` to the very share, before it reads any expert."""
    engine.chat_tokens([{"role": "user", "content": "?"}])  # the chat template's engine takes its memory now
    info, stats = engine.host_info, engine.stats()
    if not info.n_expert_total:  # a GPU has them all
        return
    excess = round((stats.n_slot / info.n_expert_total - share) * info.slot_bytes)
    if share < 1 and excess > 0:
        with contextlib.suppress(BudgetError):  # the smallest cache that works holds more
            engine.set_budget(stats.budget_bytes - excess)
