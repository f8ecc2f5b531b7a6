from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from edgemoe.errors import BudgetError, UsageError
from edgemoe.runtime.budget.planner import (
    Budget,
    Plan,
    Speeds,
    hit_rate,
    margin_bytes,
    plan,
    predict,
    resident_bytes,
    smallest_bytes,
)
from edgemoe.runtime.model import ContextSizes, ModelInfo
from edgemoe.units import GIB, MIB, parse_size

UBATCHES = (512, 256, 128, 64, 32)  # that the planner tries, best first

MODEL = ModelInfo(
    n_layer=30,
    n_moe_layer=30,
    n_expert=48,
    n_expert_used=12,
    n_ctx_train=8192,
    n_embd=2048,
    n_vocab=49152,
    n_file=1,
    direct_io=True,
    file_bytes=2770 * MIB,
    dense_bytes=210 * MIB,
    dense_token_bytes=210 * MIB,
    expert_bytes=2440 * MIB,
    token_bytes=610 * MIB,
    slot_bytes=2450 * MIB,
    slot_min_bytes=41 * MIB,
    n_expert_total=1440,
    identity=1,
    architecture="llama",
    name="a model",
)
SPEEDS = Speeds(disk_bytes_per_s=900e6, compute_bytes_per_s=8e9)


def sizes(n_ctx: int, n_ubatch: int) -> ContextSizes:
    compute = n_ubatch * 100 * 1024 + n_ctx * n_ubatch * 4
    scratch = n_ubatch * 16 * 1024
    decode = (compute + scratch) * min(8, n_ubatch) // n_ubatch
    return ContextSizes(
        kv_bytes=n_ctx * 23_040,
        compute_bytes=compute,
        output_bytes=49152 * 4,
        scratch_bytes=scratch,
        vocab_bytes=16 * MIB,
        decode_bytes=decode,
        prefill_bytes=compute + scratch - decode,
    )


def budget(n_bytes: int, **changes: int) -> Budget:
    return Budget(**{"bytes": n_bytes, "process_bytes": 24 * MIB, "n_threads": 2, **changes})


def parts(found: Plan) -> int:
    return found.fixed_bytes + found.margin_bytes + found.cache_bytes


@pytest.mark.parametrize("n_bytes", [340 * MIB, 500 * MIB, 900 * MIB, 1300 * MIB, 2000 * MIB, 6 * GIB])
def test_the_parts_add_up_to_the_budget_unless_every_expert_fits(n_bytes: int) -> None:
    found = plan(MODEL, sizes, budget(n_bytes))
    if found.fraction < 1:
        assert parts(found) == n_bytes
    else:
        assert parts(found) <= n_bytes and found.cache_bytes == MODEL.slot_bytes + found.prefill_bytes


def test_more_memory_never_means_fewer_experts_or_a_smaller_batch() -> None:
    plans = [plan(MODEL, sizes, budget(n_bytes * MIB, n_ctx=2048)) for n_bytes in range(370, 3200, 10)]
    for fewer, more in pairwise(plans):
        assert more.n_ubatch >= fewer.n_ubatch
        assert more.n_slot >= fewer.n_slot
    assert {found.n_ubatch for found in plans} >= {128, 512}


def test_the_batch_is_the_largest_whatever_the_budget_if_the_cache_can_lend_its_work_space() -> None:
    plans = [plan(MODEL, sizes, budget(n_bytes * MIB, n_ctx=2048)) for n_bytes in range(370, 3200, 10)]
    for found in plans:
        lent = {n: sizes(2048, n).prefill_bytes for n in UBATCHES}
        can = [n for n in UBATCHES if max(2 * lent[n], lent[n] + MODEL.slot_min_bytes) <= found.cache_bytes]
        assert found.n_ubatch == can[0]
    assert all(found.n_ubatch == UBATCHES[0] for found in plans if found.budget_bytes >= 450 * MIB)


def test_what_is_lent_is_no_fixed_part() -> None:
    found = plan(MODEL, sizes, budget(900 * MIB, n_ctx=2048))
    size = sizes(2048, found.n_ubatch)
    assert found.prefill_bytes == size.prefill_bytes > 50 * MIB
    kept = size.vocab_bytes + size.kv_bytes + size.output_bytes + size.decode_bytes
    assert found.fixed_bytes == 24 * MIB + MODEL.dense_bytes + kept
    small = plan(MODEL, sizes, budget(900 * MIB, n_ctx=2048, n_ubatch=32))
    assert (small.fixed_bytes, small.n_slot) == (found.fixed_bytes, found.n_slot)
    assert found.cache_min_bytes == MODEL.slot_min_bytes + size.prefill_bytes > small.cache_min_bytes


def test_a_model_smaller_than_its_work_space_gets_a_batch_that_leaves_it_experts() -> None:
    tiny = replace(MODEL, slot_bytes=60 * MIB, slot_min_bytes=4 * MIB)
    all_fit = resident_bytes(tiny, sizes, budget(0, n_ctx=4096))
    assert plan(tiny, sizes, budget(all_fit, n_ctx=4096)).n_ubatch == 512
    found = plan(tiny, sizes, budget(all_fit - 20 * MIB, n_ctx=4096))
    assert found.fraction == 1 and found.n_ubatch < 512
    assert found.cache_bytes - found.prefill_bytes >= found.cache_bytes / 2


def test_the_smallest_budget_works_and_one_below_is_refused_by_name() -> None:
    smallest = smallest_bytes(MODEL, sizes, budget(0))
    found = plan(MODEL, sizes, budget(smallest))
    assert found.cache_bytes >= found.cache_min_bytes == MODEL.slot_min_bytes + sizes(512, 32).prefill_bytes
    assert found.smallest_bytes == smallest
    with pytest.raises(BudgetError) as caught:
        plan(MODEL, sizes, budget(smallest - 16 * MIB))
    assert caught.value.smallest == smallest
    assert f"--memory {smallest // MIB}MiB" in caught.value.hint
    assert caught.value.exit_code == 2


def test_the_smallest_budget_can_lend_the_smallest_batch_its_work_space() -> None:
    def greedy(n_ctx: int, n_ubatch: int) -> ContextSizes:
        size = sizes(n_ctx, n_ubatch)
        return replace(size, prefill_bytes=size.prefill_bytes + (5 * MIB if n_ubatch == UBATCHES[-1] else 500 * MIB))

    assert smallest_bytes(MODEL, greedy, budget(0)) == smallest_bytes(MODEL, sizes, budget(0)) + 5 * MIB


def test_the_hint_of_a_refusal_can_be_followed() -> None:
    with pytest.raises(BudgetError) as caught:
        plan(MODEL, sizes, budget(1))
    advised = parse_size(caught.value.hint.split("`")[1].split()[1])
    found = plan(MODEL, sizes, budget(advised))
    assert found.cache_bytes >= found.cache_min_bytes


def test_what_comes_later_raises_the_smallest_budget_and_is_the_caches_until_then() -> None:
    with_later = budget(900 * MIB, later_bytes=9 * MIB)
    assert plan(MODEL, sizes, with_later).cache_bytes == plan(MODEL, sizes, budget(900 * MIB)).cache_bytes
    assert smallest_bytes(MODEL, sizes, with_later) >= smallest_bytes(MODEL, sizes, budget(0)) + 9 * MIB


def test_every_expert_fits_in_the_resident_budget_with_the_largest_batch() -> None:
    resident = resident_bytes(MODEL, sizes, budget(0))
    found = plan(MODEL, sizes, budget(resident))
    assert (found.fraction, found.n_slot, found.n_ubatch, found.n_ctx) == (1, 1440, 512, 4096)
    assert found.cache_bytes - found.prefill_bytes >= MODEL.slot_bytes  # also while a batch is computed
    less = plan(MODEL, sizes, budget(resident - 20 * MIB))
    assert less.cache_bytes - less.prefill_bytes < MODEL.slot_bytes
    assert plan(MODEL, sizes, budget(resident - 20 * MIB - found.prefill_bytes)).fraction < 1


def test_what_comes_later_raises_the_budget_in_which_every_expert_fits() -> None:
    resident = resident_bytes(MODEL, sizes, budget(0))
    assert resident_bytes(MODEL, sizes, budget(0, later_bytes=12 * MIB)) >= resident + 12 * MIB


def test_a_context_nobody_asked_for_makes_room_for_experts() -> None:
    n_ctx = [plan(MODEL, sizes, budget(n_bytes * MIB)).n_ctx for n_bytes in (330, 400, 500, 2000)]
    assert n_ctx == sorted(n_ctx)
    assert n_ctx[0] < 4096 and n_ctx[-1] == 4096


def test_a_context_asked_for_is_kept_or_refused() -> None:
    assert plan(MODEL, sizes, budget(600 * MIB, n_ctx=8192)).n_ctx == 8192
    with pytest.raises(BudgetError) as caught:
        plan(MODEL, sizes, budget(400 * MIB, n_ctx=8192))
    assert "`--ctx`" in caught.value.hint


def test_no_context_is_longer_than_the_model_was_trained_for() -> None:
    assert plan(MODEL, sizes, budget(6 * GIB, n_ctx=100_000)).n_ctx == 8192


def test_a_batch_asked_for_is_kept() -> None:
    for n_ubatch in (*UBATCHES, 17):
        assert plan(MODEL, sizes, budget(900 * MIB, n_ubatch=n_ubatch)).n_ubatch == n_ubatch
    assert plan(MODEL, sizes, budget(900 * MIB, n_ctx=64, n_ubatch=512)).n_ubatch == 64


def test_the_batch_borrows_at_most_half_of_the_cache() -> None:
    for n_bytes in (370, 400, 500, 900, 1300, 2000):
        found = plan(MODEL, sizes, budget(n_bytes * MIB))
        assert found.prefill_bytes <= found.cache_bytes / 2 or found.n_ubatch == UBATCHES[-1]
        assert found.cache_bytes - found.prefill_bytes >= MODEL.slot_min_bytes


@pytest.mark.parametrize("changes", [{"n_ctx": 0}, {"n_ctx": -5}, {"n_ubatch": 0}])
def test_absurd_shapes_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        plan(MODEL, sizes, budget(GIB, **changes))


def test_the_margin_grows_with_the_budget() -> None:
    assert margin_bytes(100 * MIB) == 12 * MIB
    assert margin_bytes(4000 * MIB) == 60 * MIB


def test_the_hit_curve_goes_through_what_was_measured() -> None:
    """Of the shipped policy, by replay of two texts (docs/experiments/hit-curve.md): it was another policy's."""
    replayed = {0: 0, 0.02: 0.044, 0.05: 0.147, 0.16: 0.452, 0.32: 0.698, 0.5: 0.859, 0.59: 0.913, 0.8: 0.983, 1: 1}
    for fraction, hits in replayed.items():
        assert hit_rate(fraction) == pytest.approx(hits, abs=0.02)
    assert 0.45 < hit_rate(0.2) < 0.70
    assert hit_rate(2) == 1


def test_predictions_bracket_what_the_prototype_measured() -> None:
    # Design, section 3: fraction of experts that fit -> tokens a second, at 0.9 GB/s and 112 ms of compute.
    speeds = Speeds(0.9e9, 2 * (MODEL.dense_token_bytes + MODEL.token_bytes) / 0.112)
    for fraction, measured in ((0.59, 5.96), (0.32, 2.75), (0.16, 1.55)):
        found = predict(MODEL, fraction, speeds)
        assert found.low * 0.9 <= measured <= found.high * 1.1
    resident = predict(MODEL, 1, speeds)
    assert resident.low == resident.high == pytest.approx(1 / 0.112)


def test_a_prediction_says_what_it_waits_for() -> None:
    assert predict(MODEL, 0.3, SPEEDS).reason.startswith("storage")
    assert predict(MODEL, 1, SPEEDS).reason.startswith("compute")
    assert plan(MODEL, sizes, budget(900 * MIB)).prediction is None


def test_a_plan_is_json_and_text() -> None:
    found = plan(MODEL, sizes, budget(900 * MIB), SPEEDS)
    assert json.loads(json.dumps(found.to_dict()))["cache_bytes"] == found.cache_bytes
    text = "\n".join(found.lines())
    assert f"{found.n_slot:,} of 1,440 experts" in text
    assert "past the page cache (O_DIRECT), threads (no io_uring)" in text
    assert "past the page cache (O_DIRECT), io_uring" in "\n".join(
        plan(MODEL, sizes, budget(900 * MIB), reader="uring").lines()
    )
    assert "(no O_DIRECT), threads" in "\n".join(
        plan(replace(MODEL, direct_io=False), sizes, budget(900 * MIB)).lines()
    )
    assert "tok/s" in text and f"{found.smallest_bytes // MIB}MiB" in text
    assert "tok/s" not in "\n".join(plan(MODEL, sizes, budget(900 * MIB)).lines())


def test_the_same_arguments_give_the_same_plan() -> None:
    assert plan(MODEL, sizes, budget(GIB), SPEEDS) == plan(MODEL, sizes, budget(GIB), SPEEDS)


TABLES = replace(MODEL, dense_bytes=MODEL.dense_bytes + 5000 * MIB, table_bytes=5000 * MIB)


def test_tables_stay_in_the_file_until_everything_fits() -> None:
    enough = resident_bytes(TABLES, sizes, budget(1))
    assert enough > resident_bytes(MODEL, sizes, budget(1)) + 4999 * MIB
    tight, whole = plan(TABLES, sizes, budget(enough - 64 * MIB)), plan(TABLES, sizes, budget(enough))
    assert (tight.table_bytes, tight.dense_bytes, tight.fraction) == (5000 * MIB, 210 * MIB, 1.0)
    assert 0 < tight.row_cache_bytes <= 8 * MIB
    assert (whole.table_bytes, whole.dense_bytes, whole.row_cache_bytes) == (0, 5210 * MIB, 0)
    assert any("which stay in the file" in line for line in tight.lines())
    assert not any("which stay in the file" in line for line in whole.lines())


def test_a_tight_budget_gives_experts_what_tables_leave() -> None:
    """As if there were no tables, but for the rows' few bytes; and the smallest budget is named likewise."""
    without, found = plan(MODEL, sizes, budget(900 * MIB)), plan(TABLES, sizes, budget(900 * MIB))
    assert without.cache_bytes - found.cache_bytes == found.row_cache_bytes
    assert parts(found) == 900 * MIB
    smallest = smallest_bytes(TABLES, sizes, budget(1))
    assert smallest - smallest_bytes(MODEL, sizes, budget(1)) in (8 * MIB, 9 * MIB)
    assert plan(TABLES, sizes, budget(smallest)).table_bytes == 5000 * MIB


def test_a_small_table_is_in_memory_always() -> None:
    small = replace(MODEL, table_bytes=4 * MIB)
    assert plan(small, sizes, budget(900 * MIB)).to_dict() == plan(MODEL, sizes, budget(900 * MIB)).to_dict()


@pytest.mark.parametrize("n_ctx", [None, 2048])
def test_a_model_that_does_not_fit_is_measured_twice(n_ctx: int | None) -> None:
    """Measuring a shape of a large model takes a second: the smallest is asked first, and the largest for the hint."""
    asked: list[tuple[int, int]] = []

    def counted(n_ctx: int, n_ubatch: int) -> ContextSizes:
        asked.append((n_ctx, n_ubatch))
        return sizes(n_ctx, n_ubatch)

    with pytest.raises(BudgetError):
        plan(MODEL, counted, Budget(bytes=64 * MIB, process_bytes=24 * MIB, n_threads=2, n_ctx=n_ctx))
    assert len(set(asked)) == 2
    asked.clear()
    plan(MODEL, counted, Budget(bytes=400 * MIB, process_bytes=24 * MIB, n_threads=2, n_ctx=n_ctx))
    assert len(set(asked)) < 10
