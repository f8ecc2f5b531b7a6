"""Keep the process inside its budget by resizing the expert cache: everything else takes what it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ...devices.memory import process_memory
from ...errors import BudgetError
from ...units import format_exact, format_size
from .planner import Plan, margin_bytes

if TYPE_CHECKING:
    from ..gguf.model import ModelInfo


def resident_memory() -> int:
    """Resident bytes of this process."""
    return process_memory().rss


class Allowance:
    """Divides a budget between the cache and the rest. Any thread may call it; it is reentrant, for signal handlers.

    plan: how the budget is spent now. lock: held while the cache is resized; who owns the cache may hold it as well.
    """

    def __init__(
        self,
        plan: Plan,
        info: ModelInfo,
        set_cache_bytes: Callable[[int], None],
        *,
        untouched_bytes: int,
        resident: Callable[[], int] = resident_memory,
    ) -> None:
        """Made when everything but the cache's content is in place, and gives the cache what is really left.

        untouched_bytes: allocated, but not resident before the first long prompt. Raises BudgetError.
        """
        self.plan = plan
        self.lock = threading.RLock()
        self._info = info
        self._set_cache_bytes = set_cache_bytes
        self._resident = resident
        self._fixed_bytes = resident() + untouched_bytes
        self.spend(plan.budget_bytes)

    def spend(self, budget_bytes: int) -> None:
        """Divide a new budget. Raises BudgetError, and changes nothing, if it is too small for what is loaded."""
        with self.lock:
            cache_bytes = self._cache_bytes(budget_bytes)
            self._set_cache_bytes(cache_bytes)
            self._note(budget_bytes, cache_bytes)

    def check(self) -> None:
        """Shrink the cache if the process has grown far into the margin: the caller's own data, libraries."""
        with self.lock:
            budget_bytes = self.plan.budget_bytes
            margin = margin_bytes(budget_bytes)
            excess = self._resident() - (budget_bytes - margin)
            if excess > margin // 2:
                self._grow(excess)

    @contextmanager
    def growing(self, n_bytes: int, what: str) -> Iterator[None]:
        """Something is about to take up to n_bytes: the cache gives way first, and gets back what was not taken.

        Raises BudgetError when the cache and half of the margin cannot give that much.
        """
        with self.lock:
            plan = self.plan
            # Not what the cache has: where every expert fits, there may be room beside it.
            left = plan.budget_bytes - plan.margin_bytes - self._fixed_bytes
            spare = left - plan.cache_min_bytes + plan.margin_bytes // 2
            if n_bytes > spare:
                needed = plan.budget_bytes + n_bytes - spare
                raise BudgetError(
                    f"{what} takes up to {format_size(n_bytes)}, the budget leaves {format_size(max(0, spare))}",
                    hint=f"use `--memory {format_exact(needed)}`",
                    smallest=needed,
                )
            self._grow(n_bytes)
            before = self._resident()
        try:
            yield
        finally:
            self._grow(self._resident() - before - n_bytes)

    def _cache_bytes(self, budget_bytes: int) -> int:
        info, least, margin = self._info, self.plan.cache_min_bytes, margin_bytes(budget_bytes)
        left = budget_bytes - margin - self._fixed_bytes
        # What the plan could only estimate may eat half of the margin.
        if left < least - margin // 2:
            smallest = self._fixed_bytes + least + margin
            raise BudgetError(
                f"{format_size(budget_bytes)} is too small for {info.name}: it takes {format_size(smallest)} here",
                hint=f"use `--memory {format_exact(smallest)}`, or a smaller `--ctx`",
                smallest=smallest,
            )
        return max(least, min(left, info.slot_bytes + self.plan.prefill_bytes))

    def _grow(self, n_bytes: int) -> None:
        """The rest has grown by n_bytes, or shrunk. The cache keeps its smallest size: the margin is for that."""
        with self.lock:
            self._fixed_bytes += n_bytes
            try:
                self.spend(self.plan.budget_bytes)
            except BudgetError:
                self._set_cache_bytes(self.plan.cache_min_bytes)
                self._note(self.plan.budget_bytes, self.plan.cache_min_bytes)

    def _note(self, budget_bytes: int, cache_bytes: int) -> None:
        plan, info = self.plan, self._info
        parts = plan.fixed_bytes - plan.process_bytes
        fraction = min(1.0, cache_bytes / info.slot_bytes)
        self.plan = replace(
            plan,
            budget_bytes=budget_bytes,
            process_bytes=max(0, self._fixed_bytes - parts),
            margin_bytes=margin_bytes(budget_bytes),
            cache_bytes=cache_bytes,
            n_slot=int(fraction * info.n_expert_total),
            fraction=fraction,
            prediction=plan.prediction if budget_bytes == plan.budget_bytes else None,
        )
