"""Which GPU a run takes, what is said when there is none, and how many layers' experts fit on one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.devices import gpu
from edgemoe.devices.gpu import Gpu, choose, install_line
from edgemoe.errors import UnsupportedError, UsageError
from edgemoe.runtime.placement import layers_that_fit


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
