"""One object for what a person asks: checked where it is made, taken whole by everybody."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tinymoe

import edgemoe
from edgemoe import Setup, UnsupportedError, UsageError
from edgemoe import _abi as abi
from edgemoe.cli.options import EngineOptions
from edgemoe.serve.catalog import Catalog


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("memory", "lots", "is not a size"),
        ("ctx", 0, "a context of 0 tokens"),
        ("threads", 0, "0 threads make no sense"),
        ("threads", 1000, "1000 threads make no sense"),
        ("n_ubatch", -1, "a batch of -1 tokens"),
        ("n_outputs", 0, "logits of 0 tokens"),
        ("kv_type", "f8", "`f8` is not a type for the KV cache"),
        ("policy", "fifo", "`fifo` is not a cache policy"),
        ("prefetch", "maybe", "`maybe` is not a way to prefetch"),
        ("draft", "9", "a draft of `9` tokens"),
        ("lossy", 0.005, "below 0.01 nats a token the first routing that flips costs more"),
        ("lossy", -1.0, "cannot be kept"),
        ("lossy", 7.0, "above 1 little is left"),
        ("lossy", float("nan"), "cannot be kept"),
        ("reader", "dma", "`dma` is not a reader"),
        ("read_lanes", 65, "65 reads at once"),
        ("read_limit", "fast", "`fast` is not a size"),
        ("device", "tpu", "`tpu` is not a device"),
        ("gpu_memory", "1G", "`--gpu-memory` is for a GPU"),
        ("gpu_experts", (1,), "`gpu_experts` are for a GPU"),
    ],
)
def test_values_without_sense_are_refused_where_they_are_given(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Setup(**{name: value})
    assert caught.value.hint


def test_every_number_reaches_the_native_struct() -> None:
    setup = Setup(
        memory="12.5%", ctx=300, threads=3, n_ubatch=20, kv_type="q8_0", policy="lru", prefetch="off", draft=2,
        buffered=True, reader="threads", read_lanes=7, read_limit="1MB",
    )  # fmt: skip
    native = setup.native(later_bytes=5, process_bytes=6, device=1, gpu_experts=(4, 9))
    assert (native.memory_kind, native.memory) == (abi.BUDGET_SHARE, 125_000)
    assert (native.n_ctx, native.n_threads, native.n_ubatch, native.n_outputs) == (300, 3, 20, 3)
    assert (native.kv_type, native.policy, native.prefetch, native.reader) == (8, abi.POLICY_LRU, 1, 1)
    assert (native.buffered, native.n_read_lane, native.read_bytes_per_s) == (1, 7, 10**6)
    assert (native.later_bytes, native.process_bytes, native.device) == (5, 6, 1)
    assert list(native.gpu_experts[: native.n_gpu_expert]) == [4, 9]


def test_a_lossy_price_goes_with_nothing_that_needs_all_experts() -> None:
    assert Setup(lossy=0.02, draft="off", prefetch="off").native().lossy_nats == 0.02
    assert Setup().native().lossy_nats == 0
    for name, value in {"draft": "auto", "device": "vulkan", "prefetch": "on", "parallel": 2}.items():
        with pytest.raises(UsageError, match=f"`--{name}`"):
            Setup(lossy=0.02, **{name: value})  # type: ignore[arg-type]


def test_the_commands_options_are_its_fields_by_name() -> None:
    """Adding an option is one field here and one there: nothing between them lists their names."""
    options = EngineOptions(memory="1G", ctx=77, threads=2, kv_type="Q8_0", device="AUTO", prefetch="OFF", draft="3")
    setup = options.setup()
    assert setup == Setup(memory="1G", ctx=77, threads=2, kv_type="q8_0", device="auto", prefetch="off", draft="3")
    fields = {field.name for field in dataclasses.fields(EngineOptions)} - {"trace"}  # that is no setup: it is done
    assert fields <= {field.name for field in dataclasses.fields(Setup)}
    assert EngineOptions().setup() == Setup()


def test_an_unknown_name_is_not_dropped() -> None:
    with pytest.raises(TypeError, match="context"):
        edgemoe.load("model.gguf", context=7)


def test_a_server_checks_its_models_with_all_that_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device, GPU memory and drafts used to be dropped, at the start and when the budget was changed."""
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    path = tinymoe.write(tmp_path / "window.gguf", "gpt-oss")
    asked: list[Setup] = []
    plan = edgemoe.plan

    def record(model: Any, setup: Setup, **more: Any) -> Any:
        asked.append(setup)
        return plan(model, setup.but(device="cpu", gpu_memory=None), **more)

    monkeypatch.setattr("edgemoe.serve.catalog.plan", record)
    setup = Setup(memory="700MiB", ctx=256, device="vulkan", gpu_memory="1G", draft="auto", kv_type="q8_0")
    catalog = Catalog([path], setup, lambda _: None)
    catalog.set_memory("800MiB")
    assert asked == [setup, setup.but(memory="800MiB")]
    assert catalog.setup.memory == "800MiB"


def test_a_server_refuses_a_device_that_is_not_there_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgemoe.devices.gpu.gpus", list)
    path = tinymoe.write(tmp_path / "tiny.gguf", "qwen3moe")
    with pytest.raises(UnsupportedError, match="sees no Metal device"):
        Catalog([path], Setup(memory="700MiB", device="metal"), lambda _: None)
