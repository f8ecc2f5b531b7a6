"""Rounding with errors compensated: the layouts of every type, and that the product's error falls."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from console import needs_library

from edgemoe.converters import compensate, ggml
from edgemoe.converters.compensate import Factor, factor_of, second_moments
from edgemoe.errors import EdgeMoEError

pytestmark = needs_library

N_COL = 512
TYPES = tuple(name for name in ggml.TARGETS if name not in ggml.PLAIN and not name.startswith("TQ"))
WITH_CODES = tuple(name for name in TYPES if not name.startswith("IQ1"))  # the others are rounded by whole blocks


@functools.cache
def inputs(n: int, seed: int) -> np.ndarray:
    """Correlated as activations are: a spectrum that falls, columns of different size."""
    fixed = np.random.default_rng(1)
    turn = np.linalg.qr(fixed.standard_normal((N_COL, N_COL)))[0] * np.arange(1, N_COL + 1) ** -0.5
    size = np.exp(0.5 * fixed.standard_normal(N_COL))
    rng = np.random.default_rng(seed)
    return np.asarray((rng.standard_normal((n, N_COL)) @ turn.T) * size, np.float32)


def weights(n_row: int = 6) -> np.ndarray:
    return (np.random.default_rng(2).standard_normal((n_row, N_COL)) * 0.02).astype(np.float32)


def identity() -> Factor:
    return Factor(((0, np.eye(N_COL, dtype=np.float32)),))


@pytest.mark.parametrize("name", TYPES)
def test_where_inputs_are_independent_weights_are_rounded_no_worse_than_by_ggml(name: str) -> None:
    """A code in a wrong place would be wrong by the size of a weight."""
    w, ones = weights(), np.ones(N_COL, np.float32)
    ours = ggml.dequantize(compensate.quantize(w, name, identity(), ones), name, N_COL)
    plain = ggml.dequantize(ggml.quantize(w, name, ones), name, N_COL)
    assert np.square(ours - w).sum() <= 1.02 * np.square(plain - w).sum()


@pytest.mark.parametrize("name", WITH_CODES)
def test_the_error_of_a_product_falls_on_inputs_that_were_not_seen(name: str) -> None:
    w, seen, unseen = weights(), inputs(2048, 3), inputs(1024, 4)
    factor = factor_of(second_moments(seen, np.ones(len(seen))))
    assert factor is not None
    importance = np.square(seen).mean(0)

    def error(raw: np.ndarray) -> float:
        return float(np.square(unseen @ (ggml.dequantize(raw, name, N_COL) - w).T).sum())

    compensated = error(compensate.quantize(w, name, factor, importance))
    assert compensated < 0.92 * error(ggml.quantize(w, name, importance))


def test_the_factor_is_that_of_the_inverse_of_the_damped_moments() -> None:
    x = inputs(300, 5)
    (moments,) = second_moments(x, np.ones(len(x)))
    factor = factor_of([moments])
    assert factor is not None
    ((first, upper),) = factor.parts
    damped = moments.astype(np.float64) + np.eye(N_COL) * 0.02 * np.trace(moments.astype(np.float64)) / N_COL
    assert first == 0 and not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper.T.astype(np.float64) @ upper @ damped, np.eye(N_COL), atol=2e-3)


def test_rows_too_long_for_one_factor_are_compensated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensate, "MOST_COLUMNS", 256)
    seen, w = inputs(1024, 6), weights()
    factor = factor_of(second_moments(seen, np.ones(len(seen))))
    assert factor is not None and [first for first, _ in factor.parts] == [0, 256]
    whole = compensate.quantize(w, "Q4_K", factor, None)
    second = factor.parts[1][1]
    alone = compensate.quantize(np.ascontiguousarray(w[:, 256:]), "Q4_K", Factor(((0, second),)), None)
    assert np.array_equal(whole[:, 144:], alone)


def test_moments_that_say_nothing_make_no_factor() -> None:
    x = inputs(8, 7).copy()
    assert factor_of(second_moments(x, np.zeros(8))) is None
    x[3, 5] = np.inf
    with np.errstate(invalid="ignore"):
        assert factor_of(second_moments(x, np.ones(8))) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_no_block_can_hold_is_refused(value: float) -> None:
    w = weights(2)
    w[1, 7] = value
    with pytest.raises(EdgeMoEError, match="no block can hold"):
        compensate.quantize(w, "Q4_K", identity(), None)


def test_a_factor_that_is_none_is_refused() -> None:
    with pytest.raises(EdgeMoEError, match="not positive at column 3"):
        upper = np.eye(N_COL, dtype=np.float32)
        upper[3, 3] = 0
        compensate.quantize(weights(2), "Q4_K", Factor(((0, upper),)), None)
