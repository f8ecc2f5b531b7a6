"""What goes to a GPU: whole layers or single experts, by what would be fastest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.runtime.budget.placement import TierTimes, place

N_LAYER, N_EXPERT, N_USED = 4, 8, 2


def model(types: tuple[str, ...] = ("up=Q4_K down=Q4_K",) * N_LAYER) -> Any:
    return SimpleNamespace(layers=[SimpleNamespace(expert_bytes=100, n_expert=N_EXPERT, types=t) for t in types])


def skewed() -> list[float]:
    """Expert 0 of every layer is used by 9 of 10 tokens, the others share the rest."""
    return [0.9 if e == 0 else (N_USED - 0.9) / (N_EXPERT - 1) for _ in range(N_LAYER) for e in range(N_EXPERT)]


def test_where_the_way_to_the_gpu_is_short_the_most_used_experts_go_there() -> None:
    times = TierTimes(cpu_s=1.0, start_s=0.01, gpu_s=0.01)
    found = place(model(), 400, skewed(), times, tier_bytes=0)
    assert found.n_gpu_layer == 0
    assert found.experts == tuple(layer * N_EXPERT for layer in range(N_LAYER))
    assert found.expert_s == pytest.approx(N_LAYER * (N_USED - 0.9 + times.start_s))


def test_where_it_is_long_whole_layers_go() -> None:
    """A row's way there and back takes longer than the CPU does for all of a layer's experts."""
    times = TierTimes(cpu_s=1.0, start_s=3.0, gpu_s=0.01)
    found = place(model(), 1700, skewed(), times, tier_bytes=0)
    assert (found.n_gpu_layer, found.experts) == (2, ())


def test_no_more_goes_there_than_the_gpu_can_compute_meanwhile() -> None:
    """A slow GPU gets experts until it would be the one that is waited for."""
    times = TierTimes(cpu_s=1.0, start_s=0.0, gpu_s=2.0)
    found = place(
        model(), 100 * N_LAYER * N_EXPERT - 1, [N_USED / N_EXPERT] * (N_LAYER * N_EXPERT), times, tier_bytes=0
    )
    # Of 2 experts a token 2/3 there take as long as 4/3 here: 2.67 of 8, so 2, or 3 if that is no slower than none.
    assert found.n_gpu_layer == 0
    assert 2 * N_LAYER <= len(found.experts) <= 3 * N_LAYER
    assert found.expert_s < N_LAYER * N_USED


def test_work_space_counts_and_everything_fits() -> None:
    times = TierTimes(cpu_s=1.0, start_s=0.01, gpu_s=0.01)
    assert len(place(model(), 400, skewed(), times, tier_bytes=150).experts) == 2
    assert place(model(), 99, skewed(), times, tier_bytes=0).experts == ()
    assert place(model(), 100 * N_LAYER * N_EXPERT, skewed(), times, tier_bytes=0).n_gpu_layer == N_LAYER


def test_layers_of_several_types_stay() -> None:
    times = TierTimes(cpu_s=1.0, start_s=0.01, gpu_s=0.01)
    types = ("up=Q4_K down=Q4_K", "up=Q4_K+ down=Q4_K", "up=Q4_K down=Q4_K", "up=Q4_K down=Q4_K")
    found = place(model(types), 10_000, skewed(), times, tier_bytes=0)
    assert found.n_gpu_layer == 3
    assert not found.experts
