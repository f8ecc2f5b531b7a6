from __future__ import annotations

from dataclasses import replace

import pytest

from edgemoe.errors import BudgetError
from edgemoe.runtime.budget.allowance import Allowance
from edgemoe.runtime.budget.planner import Plan, plan, resident_bytes
from edgemoe.runtime.model import ModelInfo
from edgemoe.units import MIB

from .test_planner import MODEL, budget, sizes


class Process:
    """A process whose memory is known, and its cache."""

    def __init__(self, outside_bytes: int, cache_min_bytes: int | None = None) -> None:
        self.outside_bytes = outside_bytes
        self.cache_min_bytes = CACHE_MIN_BYTES if cache_min_bytes is None else cache_min_bytes
        self.cache_bytes = 0
        self.smallest_cache_bytes = MODEL.slot_bytes * 2

    def resident(self) -> int:
        return self.outside_bytes + self.cache_bytes

    def set_cache_bytes(self, n_bytes: int) -> None:
        assert n_bytes >= self.cache_min_bytes  # what the native engine would refuse
        self.cache_bytes = n_bytes
        self.smallest_cache_bytes = min(self.smallest_cache_bytes, n_bytes)


def start(outside: int = 430, budget_mib: int = 900) -> tuple[Process, Allowance]:
    process = Process(outside * MIB)
    allowance = Allowance(
        chosen(budget_mib), MODEL, process.set_cache_bytes, untouched_bytes=0, resident=process.resident
    )
    return process, allowance


def chosen(budget_mib: int) -> Plan:
    return replace(plan(MODEL, sizes, budget(2000 * MIB)), budget_bytes=budget_mib * MIB)


CACHE_MIN_BYTES = chosen(900).cache_min_bytes
TINY = replace(MODEL, slot_bytes=5 * MIB, slot_min_bytes=MIB // 2)  # less than what it lends


def test_the_cache_gets_what_is_really_left() -> None:
    process, allowance = start()
    margin = allowance.plan.margin_bytes
    assert process.resident() + margin == 900 * MIB
    assert allowance.plan.cache_bytes == process.cache_bytes
    assert allowance.plan.fixed_bytes + process.cache_bytes + margin == pytest.approx(900 * MIB, abs=MIB)


def test_memory_that_is_not_touched_yet_is_kept_free() -> None:
    process = Process(380 * MIB)
    Allowance(chosen(900), MODEL, process.set_cache_bytes, untouched_bytes=50 * MIB, resident=process.resident)
    other, _ = start(430)
    assert process.cache_bytes == other.cache_bytes


def test_the_cache_is_never_larger_than_the_model() -> None:
    process, allowance = start(budget_mib=6000)
    assert process.cache_bytes == MODEL.slot_bytes + allowance.plan.prefill_bytes  # and what it lends
    assert allowance.plan.fraction == 1


@pytest.mark.parametrize("info", [MODEL, TINY], ids=["model", "tiny"])
def test_every_expert_stays_when_what_comes_later_comes(info: ModelInfo) -> None:
    """The budget of `auto`: the chat template's first rendering takes nobody's place."""
    later = 12 * MIB
    resident = resident_bytes(info, sizes, budget(0, later_bytes=later))
    found = plan(info, sizes, budget(resident, later_bytes=later))
    process = Process(found.fixed_bytes - found.decode_bytes, cache_min_bytes=found.cache_min_bytes)
    allowance = Allowance(
        found, info, process.set_cache_bytes, untouched_bytes=found.decode_bytes, resident=process.resident
    )
    with allowance.growing(later, "the chat template"):
        process.outside_bytes += later
    allowance.check()
    assert process.smallest_cache_bytes >= info.slot_bytes + found.prefill_bytes
    assert (allowance.plan.fraction, allowance.plan.n_slot) == (1, info.n_expert_total)


def test_a_new_budget_moves_the_cache_and_nothing_else() -> None:
    process, allowance = start()
    before = process.cache_bytes
    allowance.spend(700 * MIB)
    assert before - process.cache_bytes == pytest.approx(200 * MIB, abs=4 * MIB)
    assert allowance.plan.budget_bytes == 700 * MIB
    allowance.spend(900 * MIB)
    assert process.cache_bytes == before


def test_a_budget_below_what_is_loaded_is_refused_and_changes_nothing() -> None:
    process, allowance = start()
    before = process.cache_bytes
    with pytest.raises(BudgetError) as caught:
        allowance.spend(400 * MIB)
    assert (process.cache_bytes, allowance.plan.budget_bytes) == (before, 900 * MIB)
    allowance.spend(caught.value.smallest)
    assert process.cache_bytes == CACHE_MIN_BYTES


def test_when_the_rest_grows_far_into_the_margin_the_cache_gives_way() -> None:
    process, allowance = start()
    before = process.cache_bytes
    process.outside_bytes += 2 * MIB
    allowance.check()
    assert process.cache_bytes == before  # that is what the margin is for
    process.outside_bytes += 100 * MIB
    allowance.check()
    assert process.resident() <= 900 * MIB - allowance.plan.margin_bytes
    process.outside_bytes += 2000 * MIB
    allowance.check()
    assert process.cache_bytes == CACHE_MIN_BYTES


def test_room_is_made_before_something_grows_and_given_back_after() -> None:
    process, allowance = start()
    before = process.cache_bytes
    with allowance.growing(28 * MIB, "numpy"):
        assert process.cache_bytes == before - 28 * MIB
        process.outside_bytes += 20 * MIB
    assert process.cache_bytes == before - 20 * MIB


def test_what_cannot_fit_is_refused_before_it_happens() -> None:
    process, allowance = start(budget_mib=560)
    before = process.cache_bytes
    with (
        pytest.raises(BudgetError, match="a text of 9 MiB takes up to"),
        allowance.growing(2000 * MIB, "a text of 9 MiB"),
    ):
        raise AssertionError
    assert process.cache_bytes == before


def test_what_others_take_meanwhile_is_not_counted_as_what_grew() -> None:
    """The cache is filled by answers under way: `/api/budget` was refused for that, with ever larger needs."""
    process = Process(430 * MIB)
    n_computed = 0
    allowance = Allowance(
        chosen(900), MODEL, process.set_cache_bytes, untouched_bytes=0, resident=process.resident,
        computed=lambda: n_computed,
    )  # fmt: skip
    before = process.cache_bytes
    for _ in range(10):
        with allowance.growing(28 * MIB, "a request"):
            n_computed += 1
            process.outside_bytes += 5 * MIB
    assert process.cache_bytes == before
    process.outside_bytes -= 50 * MIB
    with allowance.growing(28 * MIB, "a request"), allowance.growing(20 * MIB, "another"):
        process.outside_bytes += 5 * MIB
    assert process.cache_bytes == before
    allowance.spend(900 * MIB)


def test_what_is_held_is_given_back_when_it_has_gone() -> None:
    process, allowance = start()
    before = process.cache_bytes
    allowance.hold(20 * MIB, "a state")
    assert process.cache_bytes == before - 20 * MIB
    with pytest.raises(BudgetError, match="a state takes up to"):
        allowance.hold(2000 * MIB, "a state")
    assert process.cache_bytes == before - 20 * MIB
    allowance.release(20 * MIB)
    assert process.cache_bytes == before
