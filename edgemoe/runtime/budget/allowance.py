"""Keep the process inside its budget by resizing the expert cache: everything else takes what it takes.

What is given to whom is reckoned natively (native/src/budget/allowance.cpp); here it is asked for and told.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ... import _native
from ..._abi import ERR_MEMORY
from ...errors import BudgetError
from ...units import format_exact, format_size
from .planner import Plan

if TYPE_CHECKING:
    from ..model import ModelInfo

_FOLLOWS = ("budget_bytes", "process_bytes", "margin_bytes", "cache_bytes", "n_slot", "fraction")
"""Fields of a plan that follow from the budget."""


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
        resident: Callable[[], int] | None = None,
        computed: Callable[[], int] = int,
    ) -> None:
        """Made when everything but the cache's content is in place, and gives the cache what is really left.

        untouched_bytes: allocated, but not resident before the first long prompt. resident: resident bytes of this
        process; None: as the system says. computed: a number that changes while others compute, and fill the cache.
        Raises BudgetError.
        """
        self._computed = computed
        self._n_growing = self._n_grown = 0  # under way, and begun
        self.plan = plan
        self.lock = threading.RLock()
        self._native = _native.Allowance(plan.native(), info.native(), untouched_bytes, set_cache_bytes, resident)
        self._finalizer = weakref.finalize(self, self._native.close)
        self._check(plan.budget_bytes, self._native.opened)
        self._note()

    def spend(self, budget_bytes: int) -> None:
        """Divide a new budget. Raises BudgetError, and changes nothing, if it is too small for what is loaded."""
        with self.lock:
            self._check(budget_bytes, self._native.spend(budget_bytes))
            self._note()

    def check(self) -> None:
        """Shrink the cache if the process has grown far into the margin: the caller's own data, libraries."""
        with self.lock:
            self._native.check()
            self._note()

    @contextmanager
    def growing(self, n_bytes: int, what: str) -> Iterator[None]:
        """Something is about to take up to n_bytes: the cache gives way first, and gets back what was not taken.

        What grew is measured. Where others grew meanwhile it cannot be told from that: all is given back then, and
        `check` sees what stayed. Raises BudgetError when the cache and half of the margin cannot give that much.
        """
        with self.lock:
            before = self.hold(n_bytes, what)
            alone, computed = self._n_growing == 0, self._computed()
            self._n_growing += 1
            self._n_grown += 1
            n_grown = self._n_grown
        try:
            yield
        finally:
            with self.lock:
                self._n_growing -= 1
                alone = alone and self._n_grown == n_grown and self._computed() == computed
                self.release(n_bytes, before if alone else 0)

    def hold(self, n_bytes: int, what: str) -> int:
        """The cache gives way for something that stays until `release`. Raises BudgetError.

        Returns the resident bytes before it.
        """
        with self.lock:
            before, (status, error, needed) = self._native.give_way(n_bytes, what)
            if status == ERR_MEMORY and needed:
                spare = max(0, n_bytes - (needed - self.plan.budget_bytes))
                raise BudgetError(
                    f"{what} takes up to {format_size(n_bytes)}, the budget leaves {format_size(spare)}",
                    hint=f"use `--memory {format_exact(needed)}`",
                    smallest=needed,
                )
            _native.check(status, error)
            self._note()
            return before

    def release(self, n_bytes: int, before: int = 0) -> None:
        """What the cache gave way for has gone; with the resident bytes before it, but for what has stayed since."""
        with self.lock:
            self._native.take_back(before, n_bytes)
            self._note()

    def _check(self, budget_bytes: int, outcome: _native.Outcome) -> None:
        status, error, smallest = outcome
        if status == ERR_MEMORY and smallest:
            raise BudgetError(
                f"{format_size(budget_bytes)} is too small for {self.plan.model}: "
                f"it takes {format_size(smallest)} here",
                hint=f"use `--memory {format_exact(smallest)}`, or a smaller `--ctx`",
                smallest=smallest,
            )
        _native.check(status, error)

    def _note(self) -> None:
        now = self._native.plan()
        kept = now["budget_bytes"] == self.plan.budget_bytes
        changes = {name: now[name] for name in _FOLLOWS}
        self.plan = replace(self.plan, **changes, prediction=self.plan.prediction if kept else None)
