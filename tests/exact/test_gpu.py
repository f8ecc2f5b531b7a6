"""With a GPU: the bytes of stock llama.cpp with the same placement, at every cache size, in the memory that was given.

Needs a llama.cpp with a GPU backend, or one named by GGML_BACKEND_PATH; Mesa's software driver will do
(GGML_VK_VISIBLE_DEVICES=0).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tinymoe
from exact_engines import OnGpu, relative_error, stock, streamed

import edgemoe
from edgemoe.devices.gpu import Gpu, gpus
from edgemoe.errors import BudgetError, EdgeMoEError, UnsupportedError, UsageError
from edgemoe.runtime.engine.rates import remember
from edgemoe.runtime.formats import open_model

CTX: Any = {"ctx": 512, "n_ubatch": 64, "threads": 1}


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    try:
        found = gpus()
    except EdgeMoEError as error:
        pytest.skip(str(error))
    if not found:
        pytest.skip("this llama.cpp sees no GPU")
    return found[0]


def moe_layers(path: Path) -> list[int]:
    """Blocks with experts."""
    with open_model(path) as model:
        return [layer.layer for layer in model.layers]


def smallest_gpu_memory(path: Path, gpu: Gpu, **shape: Any) -> int:
    """What dense weights and KV cache take, asked of the refusal of a byte too little."""
    with pytest.raises(BudgetError) as refused:
        edgemoe.plan(path, device=gpu.backend.lower(), gpu_memory=1, memory="4G", **shape)
    assert refused.value.smallest
    return refused.value.smallest


def experts_bytes(path: Path, n_layer: int) -> int:
    """Of the last so many layers, with some room for alignment."""
    with open_model(path) as model:
        return (n_layer << 14) + sum(
            layer.expert_bytes * layer.n_expert for layer in model.layers[len(model.layers) - n_layer :]
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "n_layer"),
    [*((arch, 1) for arch in tinymoe.MOE_ARCHS), *((arch, n) for arch in ("qwen2moe", "qwen3moe") for n in (0, 3))],
)
def test_stock_with_the_same_placement_says_the_same(
    tiny: Callable[..., Path], tokens: list[int], gpu: Gpu, arch: str, n_layer: int
) -> None:
    """Prefill in batches of 64 and 36, then single tokens; the CPU's experts in a cache that evicts."""
    path = tiny(arch)
    layers = moe_layers(path)
    steps = [tokens[:100], tokens[100:103], *([t] for t in tokens[103:120])]
    reference = stock(path, steps, gpu=OnGpu(gpu.index, tuple(layers[: len(layers) - n_layer])))
    with streamed(path, share=0.2, device=gpu.index + 1, n_gpu_layer=n_layer) as engine:
        rows = engine.run(steps)
        stats = engine.stats()
    assert rows == reference
    assert len(set(rows)) == len(rows)
    assert (stats["n_evict"] > 0) == (n_layer < len(layers))


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", ["off", "on"])
def test_eviction_changes_nothing(tiny: Callable[..., Path], tokens: list[int], gpu: Gpu, prefetch: str) -> None:
    """Two layers' experts of three in slots for a sixth of them, against all of them resident."""
    path = tiny("qwen3moe")
    steps = [tokens[:150], *([t] for t in tokens[150:190])]
    rows, n_evict = [], []
    for share in (0.1, 1.0):
        with streamed(
            path, share=share, device=gpu.index + 1, n_gpu_layer=1, prefetch=("auto", "off", "on").index(prefetch)
        ) as engine:
            rows.append(engine.run(steps))
            n_evict.append(engine.stats()["n_evict"])
    assert rows[0] == rows[1]
    assert n_evict[0] > 100
    assert n_evict[1] == 0


@pytest.mark.slow
def test_a_small_budget_evicts_and_says_the_same(tiny: Callable[..., Path], tokens: list[int], gpu: Gpu) -> None:
    """The same through the library: --memory and --gpu-memory, and a budget that shrinks while it runs."""
    path = tiny("qwen3moe", n_expert=64, n_layer=4)
    given = smallest_gpu_memory(path, gpu, **CTX) + experts_bytes(path, 1) + (1 << 20)
    arguments: Any = {"device": gpu.backend.lower(), "gpu_memory": given, "warm_start": False, **CTX}
    rows = []
    with edgemoe.load(path, memory="auto", **arguments) as engine:
        whole = engine.plan
        assert (whole.device, whole.n_gpu_layer, whole.n_expert_total) == (gpu.name, 1, 3 * 64)
        assert (whole.fraction, whole.n_slot) == (1, 3 * 64)
        loaded = engine.stats()  # the tokens that loading computes pass through the smallest cache
        for step in (tokens[:70], *([t] for t in tokens[70:90])):
            engine.eval(step)
            rows.append(engine.row())
        assert engine.stats().since(loaded).n_evict == 0
        assert engine.stats().n_slot >= whole.n_slot
    with edgemoe.load(path, memory="4G", **arguments) as engine:
        engine.eval(tokens[:70])
        assert engine.row() == rows[0]
        with pytest.raises(BudgetError) as refused:
            engine.set_budget(1 << 20)
        engine.set_budget(refused.value.smallest)
        for token, row in zip(tokens[70:90], rows[1:], strict=True):
            engine.eval([token])
            assert engine.row() == row
        stats, plan = engine.stats(), engine.plan
    assert stats.n_evict > 0
    # What the plan says of a smaller budget is of the experts that the GPU has not.
    assert plan.n_expert_total == 3 * 64
    assert plan.n_slot == int(plan.fraction * plan.n_expert_total)
    assert 0 < plan.n_slot < 3 * 64
    assert abs(plan.n_slot - stats.n_slot) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "shape"),
    [("qwen3moe", {"ctx": 512, "n_ubatch": 64}), ("gpt-oss", {"ctx": 4096, "n_ubatch": 512}), ("granitemoe", {})],
)
def test_the_gpu_gets_no_more_than_was_given(tiny: Callable[..., Path], gpu: Gpu, arch: str, shape: Any) -> None:
    """Against what llama.cpp says that it allocated there, for budgets around every number of layers."""
    path = tiny(arch)
    smallest, n = smallest_gpu_memory(path, gpu, **shape), len(moe_layers(path))
    n_layers = []
    for n_layer in range(n + 1):
        for more in (0, 4 << 20) if n_layer == n else (0,):
            given = smallest + experts_bytes(path, n_layer) + more
            with edgemoe.load(path, device=gpu.backend.lower(), gpu_memory=given, memory="4G", **shape) as engine:
                plan, taken = engine.plan, engine.stats().gpu_bytes
                engine.eval(range(200))
                assert engine.stats().gpu_bytes == taken
            assert 0 < taken <= plan.gpu_bytes <= given == plan.gpu_budget_bytes
            assert plan.gpu_bytes - taken < 2 << 20  # nor are layers kept away for nothing
            n_layers.append(plan.n_gpu_layer)
    assert all(a <= b for a, b in pairwise(n_layers))
    assert (n_layers[0], n_layers[-1]) == (0, n)


def test_too_little_gpu_memory_is_refused_with_what_it_takes(tiny: Callable[..., Path], gpu: Gpu) -> None:
    with pytest.raises(BudgetError, match="GPU memory is too small"):
        edgemoe.load(tiny("qwen2moe"), device=gpu.backend.lower(), gpu_memory=1, memory="4G", ctx=256)


def test_drafts_are_for_the_cpu(tiny: Callable[..., Path], gpu: Gpu) -> None:
    with pytest.raises(UnsupportedError, match="cannot verify drafts"):
        edgemoe.load(tiny("qwen3moe"), device=gpu.backend.lower(), memory="4G", draft=3, **CTX)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe", "olmoe", "deepseek2"])
def test_experts_one_by_one_say_what_their_layer_says(
    tiny: Callable[..., Path], tokens: list[int], gpu: Gpu, arch: str
) -> None:
    """All experts of the last layer, computed beside the CPU's products, against the layer in llama.cpp's own graph."""
    path = tiny(arch)
    with open_model(path) as model:
        n, n_last = model.info.n_expert_total, model.layers[-1].n_expert
    steps = [tokens[:100], tokens[100:103], *([t] for t in tokens[103:120])]
    rows, used = [], []
    for placement in ({"n_gpu_layer": 1}, {"gpu_experts": range(n - n_last, n)}):
        with streamed(path, share=0.2, device=gpu.index + 1, **placement) as engine:
            rows.append(engine.run(steps))
            used.append(engine.stats()["n_gpu"])
    if arch == "deepseek2":  # there the driver joins the layer's last product with what follows, and rounds once less
        assert relative_error(rows[0][0], rows[1][0]) < 1e-3
    else:
        assert rows[0] == rows[1]
    assert used[0] == 0
    assert used[1] >= len(steps)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe"])
def test_three_tiers_repeat_whatever_is_evicted(
    tiny: Callable[..., Path], tokens: list[int], gpu: Gpu, arch: str
) -> None:
    """A third of the experts on the GPU; the others in slots for a tenth, or all resident; and with a whole layer."""
    path = tiny(arch)
    with open_model(path) as model:
        n, n_last = model.info.n_expert_total, model.layers[-1].n_expert
    steps = [tokens[:150], *([t] for t in tokens[150:190])]
    for n_layer in (0, 1):
        experts = range(0, n - n_layer * n_last, 3)
        rows, n_evict = [], []
        for share, threads in ((1.0, 2), (0.1, 2), (0.1, 1)):
            placement: Any = {"device": gpu.index + 1, "n_gpu_layer": n_layer, "gpu_experts": experts}
            with streamed(path, share=share, threads=threads, **placement) as engine:
                rows.append(engine.run(steps))
                stats = engine.stats()
            n_evict.append(stats["n_evict"])
            assert stats["n_gpu"] > len(steps)
        assert rows[0] == rows[1] == rows[2]
        assert n_evict[0] == 0
        assert n_evict[1] > 50


def test_experts_that_no_gpu_takes_are_refused(tiny: Callable[..., Path], gpu: Gpu) -> None:
    path = tiny("qwen2moe")
    with (
        pytest.raises(UsageError, match="ascending"),
        streamed(path, share=1, device=gpu.index + 1, gpu_experts=[3, 1]),
    ):
        pass
    with pytest.raises(UsageError, match="experts are numbered"):
        edgemoe.plan(path, device=gpu.backend.lower(), gpu_experts=[0, 10_000], memory="4G", **CTX)
    with pytest.raises(UsageError, match="for a GPU"):
        edgemoe.plan(path, gpu_experts=[0], memory="4G", **CTX)


def test_a_placement_is_kept(
    tiny: Callable[..., Path], gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided once from what earlier runs learned; the same again when they have learned more."""
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path))
    path = tiny("qwen3moe", n_expert=64, n_layer=4)
    given = smallest_gpu_memory(path, gpu, **CTX) + experts_bytes(path, 1) + (4 << 20)
    arguments: Any = {"device": gpu.backend.lower(), "gpu_memory": given, "memory": "4G", **CTX}
    assert edgemoe.plan(path, **arguments).n_gpu_layer == 1  # nothing is known of them: whole layers
    with open_model(path) as model:
        rates = array("f", [0.5 if e % 7 == 0 else 0.01 for e in range(model.info.n_expert_total)])
        remember(model.info, 100, rates)
    monkeypatch.setattr("edgemoe.runtime.budget.gpu_plan.tier_seconds", lambda *_: (1e-9, 1e-9))
    first = edgemoe.plan(path, **arguments)
    assert first.gpu_experts
    assert {e for e in range(256 - 64 * first.n_gpu_layer) if e % 7 == 0} <= set(first.gpu_experts)
    assert first.gpu_bytes <= given
    with open_model(path) as model:
        remember(model.info, 100, array("f", [0.1] * model.info.n_expert_total))
    again = edgemoe.plan(path, **arguments)
    assert (again.n_gpu_layer, again.gpu_experts) == (first.n_gpu_layer, first.gpu_experts)
