"""With a GPU: runs repeat to the byte, streaming changes none, and what the GPU computes is close to the CPU.

Needs a llama.cpp with a GPU backend, or one named by GGML_BACKEND_PATH; Mesa's software driver will do
(GGML_VK_VISIBLE_DEVICES=0).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

import edgemoe
from edgemoe.devices.gpu import gpus
from edgemoe.errors import BudgetError, EdgeMoEError
from edgemoe.runtime.model import open_model

# Nats, worst token. Random weights: a rounding that changes one expert changes much (0.12 on Mesa's driver).
MOST_KL = 0.3


@pytest.fixture(scope="module")
def device() -> str:
    try:
        found = gpus()
    except EdgeMoEError as error:
        pytest.skip(str(error))
    if not found:
        pytest.skip("this llama.cpp sees no GPU")
    return found[0].backend.lower()


def run(path: Path, tokens: list[int], device: str, gpu_memory: int | None, memory: str) -> list[array[float]]:
    """Logits after a prefill and after each of some single tokens."""
    with edgemoe.load(
        path, device=device, gpu_memory=gpu_memory, memory=memory, ctx=256, n_ubatch=64, threads=2, warm_start=False
    ) as engine:
        engine.eval(tokens[:70])
        rows = [engine.row()]
        for token in tokens[70:90]:
            engine.eval([token])
            rows.append(engine.row())
    return rows


def gpu_bytes(path: Path, device: str, n_layer: int) -> int:
    """GPU memory for dense weights and the experts of so many layers, asked of the refusal of a byte too little."""
    with pytest.raises(BudgetError) as refused:
        edgemoe.plan(path, device=device, gpu_memory=1, memory="4G", ctx=256, n_ubatch=64, threads=2)
    assert refused.value.smallest
    with open_model(path) as model:
        experts = sum(layer.expert_bytes * layer.n_expert for layer in model.layers[len(model.layers) - n_layer :])
    return refused.value.smallest + experts


def worst_kl(rows: list[array[float]], others: list[array[float]]) -> float:
    worst = 0.0
    for row, other in zip(rows, others, strict=True):
        p, q = ([math.exp(x - max(logits)) for x in logits] for logits in (row, other))
        p_sum, q_sum = sum(p), sum(q)
        worst = max(worst, sum(a / p_sum * math.log(a / p_sum * q_sum / b) for a, b in zip(p, q, strict=True) if a > 0))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe"])
@pytest.mark.parametrize("n_layer", [0, 1])
def test_a_gpu_repeats_and_is_close_to_the_cpu(
    tiny: Callable[..., Path], tokens: list[int], device: str, arch: str, n_layer: int
) -> None:
    path = tiny(arch)
    given = gpu_bytes(path, device, n_layer)
    plan = edgemoe.plan(path, device=device, gpu_memory=given, memory="4G", ctx=256, n_ubatch=64, threads=2)
    assert plan.n_gpu_layer == n_layer
    rows = run(path, tokens, device, given, "4G")
    assert rows == run(path, tokens, device, given, "4G")
    assert worst_kl(run(path, tokens, "cpu", None, "4G"), rows) < MOST_KL


def test_too_little_gpu_memory_is_refused_with_what_it_takes(tiny: Callable[..., Path], device: str) -> None:
    with pytest.raises(BudgetError, match="GPU memory is too small"):
        edgemoe.load(tiny("qwen2moe"), device=device, gpu_memory=1, memory="4G", ctx=256)
