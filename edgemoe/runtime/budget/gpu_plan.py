"""Dividing a model between a GPU and the host: what fits there is measured, which experts go there is decided once.

A placement that was made from what earlier runs learned of the experts is kept and taken again, so that runs repeat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from ... import _native
from ...devices.compute import measure_compute
from ...devices.gpu import Gpu
from ...devices.gpu_speed import tier_seconds
from ...errors import BudgetError, UnsupportedError, UsageError
from ...paths import read_cached, write_cached
from ...units import format_exact, format_size, parse_size
from ..engine.rates import recall
from ..model import Model
from ..setup import Setup
from .placement import Placement, TierTimes, candidates, layers_that_fit, place
from .planner import Plan

Spend = Callable[[Placement, int, Plan | None], Plan]
"""The plan of the host for a placement: with so many bytes taken beside it, and the context of another plan."""

_AUTO_SHARE = 0.85  # of what is free on a GPU
_FOLDER = "placement"
_ROUNDING = 8 << 10  # bytes a stack
_DROP = 8  # experts left out at a time while they do not fit


def gpu_budget(gpu: Gpu, setup: Setup) -> int:
    """Bytes of GPU memory that may be used. Raises UsageError for more than there is."""
    if setup.gpu_memory is None:
        return int(gpu.free_bytes * _AUTO_SHARE)
    wanted = parse_size(setup.gpu_memory)
    if wanted > gpu.total_bytes:
        raise UsageError(
            f"{gpu.name} has {format_size(gpu.total_bytes)}, not {format_size(wanted)}",
            hint=f"use `--gpu-memory {format_exact(int(gpu.free_bytes * _AUTO_SHARE))}` or leave it out",
        )
    return wanted


def plan_for_gpu(model: Model, gpu: Gpu, gpu_bytes: int, spend: Spend, setup: Setup) -> Plan:
    """The plan within gpu_bytes of GPU memory. setup: whether to use what earlier runs learned, and single experts.

    Raises BudgetError when dense weights and KV cache do not fit, UsageError for experts that cannot be there.
    """
    experts = setup.gpu_experts
    dense_only = spend(Placement(0), 0, None)
    if dense_only.gpu_bytes > gpu_bytes:
        raise BudgetError(
            f"{format_size(gpu_bytes)} of GPU memory is too small for {model.info.name}: dense weights and KV cache "
            f"take {format_size(dense_only.gpu_bytes)} with {dense_only.n_ctx} tokens of context",
            hint=f"use `--gpu-memory {format_exact(dense_only.gpu_bytes)}`, a smaller `--ctx`, or `--device cpu`",
            smallest=dense_only.gpu_bytes,
        )
    if experts is not None:
        wanted = Placement(0, _checked(model, experts))
    else:
        wanted = _decide(model, gpu, gpu_bytes, dense_only, n_threads=setup.n_threads, warm=setup.warm_start)
    found = _fit(model, gpu_bytes, wanted, dense_only, spend)
    if experts is not None and len(found.gpu_experts) < len(wanted.experts):
        raise BudgetError(
            f"{format_size(gpu_bytes)} of GPU memory hold {len(found.gpu_experts)} of {len(wanted.experts)} experts",
            hint="give it more with `gpu_memory`, or fewer experts",
        )
    return replace(
        found,
        device=gpu.name,
        device_description=gpu.description,
        device_number=gpu.index + 1,
        gpu_budget_bytes=gpu_bytes,
    )


def _fit(model: Model, gpu_bytes: int, wanted: Placement, dense_only: Plan, spend: Spend) -> Plan:
    """As much of the placement as fits. Compute buffers differ with what is computed where: asked until it fits."""
    n_layer, experts = wanted.n_gpu_layer, list(wanted.experts)
    while n_layer or experts:
        tier_bytes, host_bytes = _native.gpu_experts_measure(model.handle, experts, dense_only.n_ubatch)
        found = spend(Placement(n_layer, tuple(experts)), host_bytes, dense_only)
        found = replace(found, gpu_bytes=found.gpu_bytes + tier_bytes, n_gpu_layer=n_layer, gpu_experts=tuple(experts))
        excess = found.gpu_bytes - gpu_bytes
        if excess <= 0:
            return found
        if not experts:
            n_layer -= 1
            continue
        mean = max(1, tier_bytes // len(experts))
        del experts[-max(_DROP, excess // mean) :]
    return dense_only


def _decide(model: Model, gpu: Gpu, gpu_bytes: int, dense_only: Plan, *, n_threads: int, warm: bool) -> Placement:
    left = gpu_bytes - dense_only.gpu_bytes
    layers = Placement(layers_that_fit(model, left))
    rates = recall(model.info) if warm else None
    can = candidates(model)
    if rates is None or not can or layers.n_gpu_layer == len(can):
        return layers
    name = _name(model, gpu, gpu_bytes, dense_only)
    kept = _kept(model, read_cached(name))
    if kept is not None:
        return kept
    layer = model.layers[can[0]]
    first = sum(other.n_expert for other in model.layers[: can[0]])
    shape = f"{layer.types} {layer.expert_bytes} bytes"
    try:
        tier_bytes, _ = _native.gpu_experts_measure(model.handle, [first], dense_only.n_ubatch)
        start_s, gpu_s = tier_seconds(model.handle, gpu, can[0], model.info.n_expert_used, shape)
    except UnsupportedError:  # experts of another form than up, gate and down: whole layers only
        return layers
    cpu_s = layer.expert_bytes / measure_compute(model.main_type, n_threads)
    times = TierTimes(cpu_s, start_s, gpu_s)
    # Work space, and what rounding a stack of experts up may take in each layer.
    tier_bytes += _ROUNDING * sum(other.n_matrix for other in model.layers) - layer.expert_bytes
    found = place(model, left, rates, times, tier_bytes=tier_bytes)
    write_cached(name, {"n_gpu_layer": found.n_gpu_layer, "experts": list(found.experts)})
    return found


def _name(model: Model, gpu: Gpu, gpu_bytes: int, dense_only: Plan) -> str:
    key = json.dumps([gpu.backend, gpu.description, gpu_bytes, dense_only.n_ctx, dense_only.n_ubatch])
    return f"{_FOLDER}/{model.info.identity:016x}-{sha256(key.encode()).hexdigest()[:8]}.json"


def _kept(model: Model, found: dict[str, object]) -> Placement | None:
    n_layer, experts = found.get("n_gpu_layer"), found.get("experts")
    if not isinstance(n_layer, int) or not isinstance(experts, list) or not 0 <= n_layer <= len(candidates(model)):
        return None
    try:
        return Placement(n_layer, _checked(model, experts))
    except UsageError:  # a damaged file
        return None


def _checked(model: Model, experts: Sequence[object]) -> tuple[int, ...]:
    numbers = [e for e in experts if isinstance(e, int) and 0 <= e < model.info.n_expert_total]
    if len(numbers) < len(experts) or len(set(numbers)) < len(numbers):
        raise UsageError(f"experts are numbered 0 to {model.info.n_expert_total - 1}, each once")
    return tuple(sorted(numbers))
