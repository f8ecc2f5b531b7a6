"""What leaving out an expert costs, from what calibration collected: its layer's sensitivity times its output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgemoe.quality.experts import LayerSums
from edgemoe.quality.prices import costs_of, less_used


def sums(rows: Sequence[tuple[float, float, float, float, float]]) -> LayerSums:
    """rows: of each expert, tokens, router weight, w^2, w^2 |output|^2, largest |output|."""
    nothing = np.zeros(0)
    return LayerSums(np.array(rows), nothing, nothing, nothing, nothing.astype(np.float32), nothing.astype(np.float32))


def test_an_expert_costs_its_output_times_the_sensitivity_of_its_layer() -> None:
    loud, quiet = (1e6, 0, 1e6, 4e6, 1.0), (1e6, 0, 1e6, 1e6, 1.0)
    first, second = costs_of([sums([loud, quiet]), sums([quiet, loud])], [1.0, 10.0])
    assert first == pytest.approx([4, 1], rel=1e-3)
    assert second == pytest.approx([10, 40], rel=1e-3)


def test_an_expert_that_was_seldom_used_is_judged_by_its_layer_as_well() -> None:
    common, rare = (1e6, 0, 1e6, 1e6, 1.0), (1, 0, 1, 100, 1.0)
    (cost,) = costs_of([sums([common, common, rare])], [1.0])
    assert cost[0] == pytest.approx(1, rel=1e-3)
    assert 1 < cost[2] < 10  # not the 100 of its only use


def test_super_experts_and_the_unknown_are_never_left_out() -> None:
    layer = [(100, 0, 100, 100, 1.0)] * 300
    odd = sums([*layer, (100, 0, 100, 100, 1000.0), (0, 0, 0, 0, 0.0)])
    found = costs_of([odd, sums(layer), sums(layer), sums(layer)], [1.0] * 4)
    assert np.isinf(found[0]).tolist() == [False] * 300 + [True, True]
    # Outliers in the last quarter are nothing of the kind.
    found = costs_of([sums(layer), sums(layer), sums(layer), odd], [1.0] * 4)
    assert np.isinf(found[3]).tolist() == [False] * 301 + [True]


def test_the_less_used_half_of_each_layer_counts_as_missing() -> None:
    use = [(n, 0.0, 1.0, 1.0, 1.0) for n in (5.0, 1.0, 9.0, 0.0, 7.0)]
    assert less_used([sums(use), sums(use[:2])]) == [bytes([0, 1, 0, 1, 0]), bytes([0, 1])]
