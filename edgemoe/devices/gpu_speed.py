"""How long a GPU takes for experts one by one: what giving them a row costs, and what each of them does."""

from __future__ import annotations

from statistics import median

from .. import _native
from ..paths import read_cached, write_cached
from .gpu import Gpu

_ROUNDS = 3


def tier_seconds(
    model: _native.ModelHandle, gpu: Gpu, layer: int, n_expert_used: int, shape: str
) -> tuple[float, float]:
    """(start, each): n experts of a layer and their results back take start + n * each seconds, for one token.

    Measured with the experts of MoE layer `layer`, once a machine, library and `shape` (words for what an expert is).
    Raises UnsupportedError when they cannot be on a GPU one by one.
    """
    key = f"{gpu.backend} {gpu.description}; {_native.build_stamp()}; {shape}; {n_expert_used}"
    known = read_cached("gpu.json").get(key)
    if isinstance(known, list) and len(known) == 2 and all(isinstance(x, float) and x >= 0 for x in known):
        return known[0], known[1]
    most = max(2, n_expert_used)
    few, many = (
        median(_native.gpu_experts_speed(model, gpu.index + 1, layer, n) for _ in range(_ROUNDS)) / 1e9
        for n in (1, most)
    )
    each = max(0.0, (many - few) / (most - 1))
    found = (max(0.0, few - each), each)
    write_cached("gpu.json", {**read_cached("gpu.json"), key: list(found)})
    return found
