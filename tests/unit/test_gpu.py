"""Which GPU a run takes, what is said when there is none, and how many layers' experts fit on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinymoe

import edgemoe
from edgemoe import _abi as abi
from edgemoe.cli.chat import _has_gpu, _small
from edgemoe.cli.options import SeeingOptions
from edgemoe.cli.panel import strip
from edgemoe.devices import gpu
from edgemoe.devices.gpu import Gpu, choose, install_line
from edgemoe.errors import UnsupportedError, UsageError
from edgemoe.runtime.budget.allowance import Allowance
from edgemoe.runtime.budget.placement import layers_that_fit
from edgemoe.runtime.budget.planner import margin_bytes, plan
from edgemoe.runtime.formats import open_model
from edgemoe.runtime.gguf.model import GgufModel
from edgemoe.units import GIB, MIB

from .test_planner import MODEL, budget, sizes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says which GPUs ggml lists."""

    def has(*found: Gpu) -> None:
        monkeypatch.setattr(gpu, "gpus", lambda: list(found))

    return has


def card(index: int, backend: str, *, unified: bool = False) -> Gpu:
    return Gpu(index, backend, f"{backend}{index}", "a card", unified, 8 << 30, 7 << 30)


def test_without_a_gpu_auto_is_the_cpu_and_a_name_is_one_clear_line(machine: Any) -> None:
    machine()
    assert choose("auto") is None
    assert choose("cpu") is None
    with pytest.raises(UnsupportedError) as raised:
        choose("cuda")
    assert "CUDA" in raised.value.message
    assert install_line("cuda") in raised.value.hint
    assert 'CMAKE_ARGS="-DGGML_CUDA=on" pip install llama-cpp-python==' in install_line("cuda")


def test_auto_prefers_a_card_with_memory_of_its_own(machine: Any) -> None:
    machine(card(0, "Vulkan", unified=True), card(1, "CUDA"))
    chosen = choose("auto")
    assert chosen is not None and chosen.index == 1
    vulkan = choose("vulkan")
    assert vulkan is not None and vulkan.index == 0
    assert choose("cpu") is None
    with pytest.raises(UnsupportedError):
        choose("metal")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="not a device"):
        choose("tpu")


def test_layers_go_to_the_gpu_from_the_last_on_while_they_fit() -> None:
    def layer(types: str = "up=Q4_K down=Q4_K") -> SimpleNamespace:
        return SimpleNamespace(expert_bytes=10, n_expert=8, types=types)

    model: Any = SimpleNamespace(layers=(layer(), layer(), layer("up=Q4_K+ down=Q4_K"), layer()))
    assert [layers_that_fit(model, n) for n in (0, 79, 80, 160, 239, 240, 1000)] == [0, 0, 1, 2, 2, 3, 3]


def test_the_plan_of_a_smaller_budget_knows_what_the_gpu_has(tmp_path: Path) -> None:
    """What the host is left with is reckoned natively, of a real GPU: tests/exact/test_gpu.py asks for it."""
    with open_model(tinymoe.write(tmp_path / "m.gguf", "qwen3moe", n_expert=16, n_layer=4)) as model:
        assert isinstance(model, GgufModel)
        whole, layer_bytes = model.info, model.layers[0].slot_bytes * 16
        assert model.host_info(abi.Setup()) == whole
        with pytest.raises(UsageError, match="no device 99"):
            model.host_info(abi.Setup(device=100, n_gpu_layer=3))
    left = replace(whole, n_expert_total=16, slot_bytes=whole.slot_bytes - 3 * layer_bytes)

    cache: list[int] = []
    resident = 100 * MIB
    made = replace(plan(MODEL, sizes, budget(2000 * MIB)), n_gpu_layer=3, prefill_bytes=0)
    made = replace(made, slot_min_bytes=left.slot_min_bytes, n_expert_total=16)
    allowance = Allowance(made, left, cache.append, untouched_bytes=0, resident=lambda: resident)
    assert (allowance.plan.n_slot, allowance.plan.fraction) == (16, 1)
    half = left.slot_bytes // 2
    allowance.spend(resident + half + margin_bytes(resident + half))
    assert (allowance.plan.n_slot, allowance.plan.n_expert_total) == (int(16 * cache[-1] / left.slot_bytes), 16)
    assert 7 <= allowance.plan.n_slot <= 8


@pytest.mark.parametrize(
    ("device", "found", "small"), [("cpu", True, True), ("auto", False, True), ("auto", True, False)]
)
def test_the_chat_without_a_budget_gives_a_gpu_all_it_has(
    monkeypatch: pytest.MonkeyPatch, machine: Any, device: str, found: bool, small: bool
) -> None:
    machine(*[card(1, "CUDA")][: int(found)])
    asked: dict[str, Any] = {}

    def share_budget(path: Path, share: float, setup: edgemoe.Setup) -> int:
        asked.update(vars(setup))
        return 77 * MIB

    monkeypatch.setattr("edgemoe.runtime.budget.share.share_budget", share_budget)
    options = SeeingOptions(device=device, gpu_memory=None if device == "cpu" else "1G", threads=2)
    assert _has_gpu(options) is not small
    assert _small(Path("m.gguf"), options).memory == str(77 * MIB)
    # What the budget is planned for is what is loaded.
    assert {"device": device, "gpu_memory": options.gpu_memory, "threads": 2}.items() <= asked.items()


def test_auto_says_what_it_took() -> None:
    made = plan(MODEL, sizes, budget(2000 * MIB))
    assert made.device_line == "no GPU in this llama.cpp; the CPU computes"
    made = replace(made, device="CUDA0", device_description="NVIDIA H100", gpu_bytes=3 * GIB, gpu_budget_bytes=4 * GIB)
    assert made.device_line == "device: CUDA0, NVIDIA H100 (`--device cpu` for the CPU)"
    assert any("3 GiB of 4 GiB on CUDA0: dense weights, KV cache" in line for line in made.lines())


def test_layers_on_a_gpu_are_shown_apart() -> None:
    assert strip((0, 4, 0), (8, 8, 0)) == "·▄G"
