"""Calibrations that say what leaving out a tiny model's experts costs, made up: `--lossy` without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf

LIMIT, RAW, NATS = (1e-3, 1e-2, 1e-1), (1e-3, 1e-2, 1e-1), (5e-3, 5e-2, 5e-1)


def price(model: Path, cost: float | Sequence[float], n_expert: int = 0) -> Path:
    """Write MODEL.calibration: the cost of every expert, or of each of n_expert the same."""
    costs = [cost] * n_expert if isinstance(cost, float) else list(cost)
    return write(model.with_name(model.name + ".calibration"), costs)


def write(path: Path, cost: Sequence[float], nats: Sequence[float] = NATS) -> Path:
    writer = gguf.GGUFWriter(path, "none")
    for name, values in {"cost": cost, "limit": LIMIT, "raw": RAW, "nats": nats}.items():
        writer.add_array(f"edgemoe.lossy.{name}", list(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
