"""A size or a number of bits becomes types, and the file keeps to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinymoe

from edgemoe.converters.budget import allocation_for, size_of
from edgemoe.converters.calibration import STATS, Calibration, LayerCalibration
from edgemoe.converters.convert import Options, convert, open_source, verify_file
from edgemoe.converters.ggml import bits as bits_of
from edgemoe.converters.source import Source
from edgemoe.converters.target import make_target
from edgemoe.converters.types import AskedTypes
from edgemoe.errors import UsageError

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(tinymoe.write(tmp_path_factory.mktemp("m") / "m.gguf", "qwen3moe", expert_type="F16"))


def calibration_of(source: Source) -> Calibration:
    """Experts of random importance, and errors that fall with the bits."""
    rng = np.random.default_rng(0)
    layers = {}
    for layer in sorted({key[0] for key in source.experts}):
        stacks = {key[2]: stack for key, stack in source.experts.items() if key[0] == layer}
        n = len(stacks["down"])
        errors = np.array([[4.0 ** -bits_of(name) for name in TYPES]]) * rng.uniform(0.5, 2, (n, 1))
        layers[layer] = LayerCalibration(
            rng.uniform(0.01, 10, (n, len(STATS))).astype(np.float32),
            np.zeros((n, 256), np.float32),
            {role: rng.uniform(0.1, 2, (n, stack[0].n_col)).astype(np.float32) for role, stack in stacks.items()},
            {role: errors.astype(np.float32) for role in stacks},
            {role: (stack[0].n_row, stack[0].n_col) for role, stack in stacks.items()},
        )
    return Calibration(layers, TYPES, dict.fromkeys(layers, 1.0), 1000)


@pytest.mark.parametrize("bits", [2.7, 3.2, 4.5])
def test_bits_are_kept_and_used_up(source: Source, bits: float, tmp_path: Path) -> None:
    calibration = calibration_of(source)
    chosen = allocation_for(source, calibration, bits=bits)
    options = Options(allocation=chosen, importance=calibration.importance)
    report = convert(source, tmp_path / "out.gguf", options)
    assert bits - 0.05 < report.expert_bits <= bits
    assert len(report.types) > 3
    verify_file(source, tmp_path / "out.gguf", options)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_size_is_the_size_of_the_file(source: Source, stacked: bool, tmp_path: Path) -> None:
    calibration = calibration_of(source)
    sizes = [
        size_of(make_target(source, AskedTypes(True, expert_type=name), stacked=stacked)) for name in ("Q2_K", "Q6_K")
    ]
    asked = sum(sizes) // 2
    chosen = allocation_for(source, calibration, file_bytes=asked, stacked=stacked)
    report = convert(source, tmp_path / "out.gguf", Options(allocation=chosen, uniform_per_layer=stacked))
    assert (tmp_path / "out.gguf").stat().st_size == report.file_bytes <= asked
    assert report.file_bytes > asked - (sizes[1] - sizes[0]) * (0.3 if stacked else 0.05)
    with pytest.raises(UsageError):
        allocation_for(source, calibration, file_bytes=sizes[0] // 2, stacked=stacked)


def test_the_calibration_of_another_model_is_refused(source: Source, tmp_path: Path) -> None:
    other = open_source(tinymoe.write(tmp_path / "o.gguf", "qwen3moe", expert_type="F16", n_expert=12))
    with pytest.raises(UsageError, match="another model"):
        allocation_for(other, calibration_of(source), bits=3)
    for bits in (0.0, -1.0, 99.0, float("nan")):
        with pytest.raises(UsageError):
            allocation_for(source, calibration_of(source), bits=bits)
