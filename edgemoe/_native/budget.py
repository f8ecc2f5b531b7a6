"""Functions of edgemoe.h on budgets: plans, predictions, allowances."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from .. import _abi as abi
from .library import AllowanceHandle, ModelHandle, check, library, values

Outcome = tuple[int, abi.Error, int]
"""Status, its sentence, and the smallest budget that would do (0: not known)."""


class Callback:
    """A function of ours for the library, which knows no exceptions: the first one is kept and raised afterwards."""

    def __init__(self) -> None:
        self._failure: BaseException | None = None

    def run(self, function: Callable[..., None], *arguments: Any) -> int:
        """Status of calling it."""
        try:
            function(*arguments)
        except BaseException as error:
            self._failure = self._failure or error
            return abi.ERR_INTERNAL
        return abi.OK

    def reraise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def plan_make(model: ModelHandle, cache_dir: str, setup: abi.Setup) -> tuple[abi.Plan, int, abi.Error]:
    """(plan, status, error): of a budget that is too small the plan says what would do."""
    found, error = abi.Plan(), abi.Error()
    status = library().emoe_plan_make(
        model, os.fsencode(cache_dir), ctypes.byref(setup), ctypes.byref(found), ctypes.byref(error)
    )
    return found, status, error


def plan_choose(
    info: abi.ModelInfo, sizes: Callable[[int, int], dict[str, int]], setup: abi.Setup
) -> tuple[abi.Plan, int, abi.Error]:
    """As `plan_make`, for any model. sizes(n_ctx, n_ubatch): the fields of `emoe_context_sizes`."""
    found, error, callback = abi.Plan(), abi.Error(), Callback()

    def fill(n_ctx: int, n_ubatch: int, to: Any) -> None:
        for name, value in sizes(n_ctx, n_ubatch).items():
            setattr(to.contents, name, value)

    def answer(_: object, n_ctx: int, n_ubatch: int, to: Any) -> int:
        return callback.run(fill, n_ctx, n_ubatch, to)

    ask = abi.SizesFunction(answer)

    status = library().emoe_plan_choose(
        ctypes.byref(info), ask, None, ctypes.byref(setup), ctypes.byref(found), ctypes.byref(error)
    )
    callback.reraise()
    return found, status, error


def margin_bytes(budget_bytes: int) -> int:
    return int(library().emoe_margin_bytes(budget_bytes))


def budget_bytes(kind: int, memory: int, resident_bytes: int) -> int:
    """Bytes of a budget as it was asked for (BUDGET_*), when every expert fits in resident_bytes."""
    found, error = ctypes.c_uint64(), abi.Error()
    check(library().emoe_budget_bytes(kind, memory, resident_bytes, ctypes.byref(found), ctypes.byref(error)), error)
    return found.value


def hit_rate(fraction: float) -> float:
    return float(library().emoe_plan_hit_rate(fraction))


def plan_predict(info: abi.ModelInfo, fraction: float, speeds: abi.Speeds) -> dict[str, Any]:
    found, error = abi.Prediction(), abi.Error()
    status = library().emoe_plan_predict(
        ctypes.byref(info), fraction, ctypes.byref(speeds), ctypes.byref(found), ctypes.byref(error)
    )
    check(status, error)
    return values(found)


class Allowance:
    """A native allowance and the functions of ours that it calls. Close it.

    resize: resizes the cache. resident: resident bytes; None: of this process.
    """

    def __init__(
        self,
        plan: abi.Plan,
        info: abi.ModelInfo,
        untouched_bytes: int,
        resize: Callable[[int], None],
        resident: Callable[[], int] | None,
    ) -> None:
        self._callback = Callback()
        self._resize = abi.ResizeFunction(lambda _, n_bytes: self._callback.run(resize, n_bytes))
        self._resident = abi.ResidentFunction((lambda _: resident()) if resident else 0)
        self._handle = AllowanceHandle(0)
        self.opened = self._open(plan, info, untouched_bytes)

    def _open(self, plan: abi.Plan, info: abi.ModelInfo, untouched_bytes: int) -> Outcome:
        handle, smallest, error = ctypes.c_void_p(), ctypes.c_uint64(), abi.Error()
        status = library().emoe_allowance_open(
            ctypes.byref(plan), ctypes.byref(info), untouched_bytes, self._resize, self._resident, None,
            ctypes.byref(handle), ctypes.byref(smallest), ctypes.byref(error),
        )  # fmt: skip
        self._callback.reraise()
        self._handle = AllowanceHandle(handle.value or 0)
        return status, error, smallest.value

    def close(self) -> None:
        handle, self._handle = self._handle, AllowanceHandle(0)
        library().emoe_allowance_close(handle)

    def plan(self) -> dict[str, Any]:
        found, error = abi.Plan(), abi.Error()
        check(library().emoe_allowance_get_plan(self._handle, ctypes.byref(found), ctypes.byref(error)), error)
        return values(found)

    def spend(self, budget_bytes: int) -> Outcome:
        smallest, error = ctypes.c_uint64(), abi.Error()
        status = library().emoe_allowance_spend(self._handle, budget_bytes, ctypes.byref(smallest), ctypes.byref(error))
        self._callback.reraise()
        return status, error, smallest.value

    def check(self) -> None:
        error = abi.Error()
        status = library().emoe_allowance_check(self._handle, ctypes.byref(error))
        self._callback.reraise()
        check(status, error)

    def give_way(self, n_bytes: int, what: str) -> tuple[int, Outcome]:
        """Resident bytes for `take_back`, and how it went."""
        before, smallest, error = ctypes.c_uint64(), ctypes.c_uint64(), abi.Error()
        status = library().emoe_allowance_give_way(
            self._handle, n_bytes, what.encode("utf-8", "replace"), ctypes.byref(before), ctypes.byref(smallest),
            ctypes.byref(error),
        )  # fmt: skip
        self._callback.reraise()
        return before.value, (status, error, smallest.value)

    def take_back(self, before: int, n_bytes: int) -> None:
        error = abi.Error()
        status = library().emoe_allowance_take_back(self._handle, before, n_bytes, ctypes.byref(error))
        self._callback.reraise()
        check(status, error)
