"""Calibrations of tiny models without the run that measures one: random, in the shapes of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemoe.converters.calibration import STATS, Calibration, LayerCalibration, save
from edgemoe.converters.convert import open_source
from edgemoe.converters.source import Source


def calibration_of(source: Source, seed: int = 0) -> Calibration:
    """Experts that matter more or less by lot."""
    rng = np.random.default_rng(seed)
    layers = {}
    for number in sorted({layer for layer, _, _ in source.experts}):
        stacks = {role: stack for (layer, _, role), stack in source.experts.items() if layer == number}
        n = len(stacks["down"])
        layers[number] = LayerCalibration(
            rng.uniform(1, 2, (n, len(STATS))).astype(np.float32),
            np.zeros((n, stacks["down"][0].n_row), np.float32),
            {role: rng.uniform(0.1, 1, (n, s[0].n_col)).astype(np.float32) for role, s in stacks.items()},
            {role: rng.uniform(0, 0.1, (n, 2)).astype(np.float32) for role in stacks},
            {role: (s[0].n_row, s[0].n_col) for role, s in stacks.items()},
        )
    return Calibration(layers, ("Q4_K", "Q8_0"), dict.fromkeys(layers, 0.1), 512)


def calibration_file(model: Path, path: Path) -> Path:
    """One in a file."""
    save(calibration_of(open_source(model)), path)
    return path
