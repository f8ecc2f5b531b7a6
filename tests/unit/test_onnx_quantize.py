"""Codes for ONNX Runtime: what is symmetric stays as it is, packing is undone, and nothing is worse than it must be."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.converters.allocation import Allocation
from edgemoe.converters.ggml import dequantize as from_ggml
from edgemoe.converters.ggml import quantize as to_ggml
from edgemoe.converters.onnx.bits import asked_bits, native_bits, widths_of
from edgemoe.converters.onnx.quantize import block_of, dequantize, quantize
from edgemoe.converters.source import Source
from edgemoe.errors import UsageError

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_symmetric_ggml_blocks_come_out_exactly(kind: str, bits: int) -> None:
    values = from_ggml(to_ggml(RANDOM.standard_normal((16, 128), np.float32), kind), kind, 128)
    packed, scales = quantize(values, bits, 32)
    assert scales.dtype == np.float16
    assert (dequantize(packed, scales, bits) == values).all()


@pytest.mark.parametrize(("bits", "worst"), [(2, 0.36), (4, 0.10), (8, 0.007)])
def test_error_of_normal_weights(bits: int, worst: float) -> None:
    values = RANDOM.standard_normal((64, 256), np.float32)
    packed, scales = quantize(values, bits, 64)
    assert packed.shape == (64, 256 * bits // 8) and scales.shape == (64, 4)
    found = dequantize(packed, scales, bits)
    assert np.sqrt(np.square(found - values).mean()) < worst


def test_importance_moves_the_error_where_it_counts_less() -> None:
    values = RANDOM.standard_normal((32, 64), np.float32)
    weight = np.where(np.arange(64) % 2, 100.0, 1.0).astype(np.float32)
    plain = dequantize(*quantize(values, 2, 32), 2) - values
    weighed = dequantize(*quantize(values, 2, 32, weight), 2) - values
    assert np.square(weighed[:, 1::2]).sum() < np.square(plain[:, 1::2]).sum()


def test_zeros_and_what_float16_cannot_hold() -> None:
    packed, scales = quantize(np.zeros((2, 32), np.float32), 4, 32)
    assert (dequantize(packed, scales, 4) == 0).all()
    huge = np.full((1, 32), 1e9, np.float32)
    assert np.isfinite(dequantize(*quantize(huge, 8, 32), 8)).all()


def test_blocks_divide_both_lengths() -> None:
    assert [block_of(*lengths) for lengths in ((2048, 768), (576, 32), (48, 64), (100, 64))] == [64, 32, 16, None]


def test_never_fewer_bits_than_asked_for() -> None:
    asked = {
        "Q2_K": 2,
        "IQ3_S": 3,
        "Q4_K": 4,
        "MXFP4": 4,
        "Q5_0": 5,
        "Q6_K": 6,
        "Q8_0": 8,
        "TQ1_0": 1,
        "3": 3,
        "F16": 16,
    }
    assert {name: asked_bits(name) for name in asked} == asked
    assert [native_bits(n) for n in (1, 2, 3, 4, 5, 6, 8, 16)] == [2, 2, 4, 4, 8, 8, 8, 8]
    for name in ("Q9", "0", "17", "four"):
        with pytest.raises(UsageError):
            asked_bits(name)


class _Rows:
    type, n_row, n_col, whole_bytes = "F32", 32, 32, 0

    def load(self, begin: int, end: int) -> np.ndarray:
        raise AssertionError


def test_an_expert_has_one_width_and_what_changed_is_told() -> None:
    from pathlib import Path

    stack = (_Rows(), _Rows(), _Rows())
    experts = {(0, "exps", role): stack for role in ("gate", "up", "down")}
    source = Source(Path("m"), False, "llama", {}, (), experts, ())
    asked = {"gate": ("Q2_K", "Q3_K", "Q8_0"), "up": ("Q2_K", "Q3_K", "Q8_0"), "down": ("Q2_K", "Q4_K", "Q8_0")}
    found = widths_of(source, None, Allocation({0: asked}))
    assert found.layers == {0: [2, 4, 8]}
    assert found.notes == ["2 matrices of Q3_K are kept in 4 bits: ONNX Runtime has 2, 4 and 8"]
    uneven = widths_of(source, None, Allocation({0: {**asked, "down": ("Q4_0", "Q4_0", "Q8_0")}}))
    assert uneven.layers == {0: [4, 4, 8]}
    assert uneven.notes[-1].startswith("1 experts have one width")
    assert widths_of(source, None, None).layers == {0: [4, 4, 4]}


def test_a_mean_of_bits_is_kept_with_one_width_an_expert() -> None:
    from pathlib import Path

    from edgemoe.converters.calibration import Calibration, LayerCalibration
    from edgemoe.converters.onnx.bits import allocate_widths

    n, shapes = 8, {"gate": (512, 256), "up": (512, 256), "down": (256, 512)}
    errors = np.array([0.05, 0.006, 0.00001])
    stats = np.ones((n, 5), np.float32)
    stats[:, 3] = np.arange(1, n + 1) ** 3  # what an expert gives, squared
    layer = LayerCalibration(
        stats,
        np.zeros((n, 256), np.float32),
        {role: np.ones((n, n_col), np.float32) for role, (_, n_col) in shapes.items()},
        {role: np.tile(errors, (n, 1)).astype(np.float32) for role in shapes},
        shapes,
    )
    known = Calibration({0: layer}, ("Q2_K", "Q4_K", "Q8_0"), {0: 0.01}, 100, {"model": "m", "text": "t", "n_ctx": 1})
    experts = {(0, "exps", role): (_Rows(),) * n for role in shapes}
    source = Source(Path("m"), False, "llama", {}, (), experts, ())
    chosen = allocate_widths(source, known, bits_a_weight=4.0)
    widths = widths_of(source, None, chosen).layers[0]
    assert sum(widths) / n <= 4.0 and set(widths) == {2, 4, 8}
    assert widths == sorted(widths)  # the more an expert gives, the more bits
    assert all(chosen.types[0][role] == chosen.types[0]["gate"] for role in shapes)
    with pytest.raises(UsageError):
        allocate_widths(source, known, bits_a_weight=1.0)
