"""Leaving out experts at a price: what is left out adds nothing, what is not is exact, and all of it where all fits."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Callable
from math import inf
from pathlib import Path

import gguf_edit
import priced
import pytest
from exact_engines import Streamed, streamed

from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe.errors import EdgeMoEError, FormatError, UnsupportedError
from edgemoe.runtime.engine.trace import read_trace

ARCHS = ("llama", "qwen3moe", "qwen2moe", "gpt-oss", "deepseek2", "deepseek2-fused")


@pytest.fixture
def model(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A tiny model of its own folder, with a price of each expert."""

    def get(arch: str, cost: float = 1e-6) -> Path:
        path = tmp_path / f"{arch}.gguf"
        shutil.copy(tiny(arch), path)
        priced.price(path, cost, n_expert(path))
        return path

    return get


def n_expert(path: Path) -> int:
    opened = _native.model_open(str(path))
    try:
        return int(_native.model_info(opened)["n_expert_total"])
    finally:
        _native.model_close(opened)


@pytest.mark.parametrize("arch", ARCHS)
def test_where_all_fits_every_bit_is_the_same(model: Callable[..., Path], tokens: list[int], arch: str) -> None:
    path = model(arch)
    # Nothing is there at first, nor after three tokens.
    steps = [*([t] for t in tokens[:3]), tokens[3:40], *([t] for t in tokens[40:70])]
    with streamed(path, share=1.0) as exact:
        rows = exact.run(steps)
    with streamed(path, share=1.0, lossy=0.05) as engine:
        assert engine.run(steps) == rows
        stats = engine.stats()
        assert (stats["n_skip"], stats["spent_nats"], stats["lossy_nats"]) == (0, 0, 0.05)
        assert stats["n_miss"] > 0 and stats["n_evict"] == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_little_is_read_and_the_prompt_is_exact(model: Callable[..., Path], tokens: list[int], arch: str) -> None:
    path = model(arch)
    prompt, answer = tokens[:40], tokens[40:80]
    with streamed(path, share=0.3) as exact:
        rows = exact.run([prompt, *([t] for t in answer)])
        read = exact.stats()["read_bytes"]
    with streamed(path, share=0.3, lossy=0.05) as engine:
        assert engine.run([prompt]) == rows[:1]
        assert engine.stats()["n_skip"] == 0
        # A prompt whose last piece is one token is a prompt.
        engine.rewind()
        assert engine.run([tokens[:65]]) and engine.stats()["n_skip"] == 0
        engine.rewind()
        got = engine.run([prompt, *([t] for t in answer)])
        stats = engine.stats()
    assert got[0] == rows[0] and got[-1] != rows[-1]
    assert stats["n_skip"] > 0 and stats["skip_bytes"] > 0 and 0 < stats["spent_nats"] <= 0.05
    assert stats["read_bytes"] < 3 * read  # three prompts
    assert all(value == value and abs(value) < 1e6 for row in got for value in array("f", row))


def test_what_is_never_left_out_is_exact(model: Callable[..., Path], tokens: list[int]) -> None:
    path = model("qwen3moe", inf)
    steps = [tokens[:40], *([t] for t in tokens[40:80])]
    with streamed(path, share=0.3) as exact, streamed(path, share=0.3, lossy=0.05) as engine:
        assert engine.run(steps) == exact.run(steps)
        assert engine.stats()["n_skip"] == 0 and engine.stats()["n_miss"] > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_an_expert_left_out_adds_nothing(
    model: Callable[..., Path], tokens: list[int], tmp_path: Path, arch: str
) -> None:
    """The same as if its down matrix were zero, to the bit, in decode: gate, up and down agree on what is left out."""
    path = model(arch)
    total = n_expert(path)
    text = [[t] for t in tokens[:24]]
    with streamed(path, share=1.0) as engine:
        clean, layer, expert, used = engine.run(text), *lesser(engine, path, tokens[:24], tmp_path)
        missing = bytearray(total)
        missing[layer * (total // layers_of(path)) + expert] = 1
        engine.rewind()
        _native.collect_skip(engine.handle, array("f", [1e-6] * total), bytes(missing), 1.0)
        assert _native.collect_skipped(engine.handle) == 0
        got = engine.run(text)
        assert _native.collect_skipped(engine.handle) > 0
        assert engine.stats()["n_skip"] == used
        _native.collect_skip(engine.handle, array("f"), b"", 0.0)
        engine.rewind()
        assert engine.run(text) == clean
    assert got != clean
    with streamed(zeroed(path, layer, expert, tmp_path), share=1.0) as engine:
        assert engine.run(text) == got


def test_experts_left_out_are_in_no_trace_and_shown_as_such(
    model: Callable[..., Path], tokens: list[int], tmp_path: Path
) -> None:
    path = model("qwen3moe")
    with streamed(path, share=0.3, lossy=0.05) as engine:
        engine.run([tokens[:40]])
        before = engine.stats()
        _native.engine_trace(engine.handle, str(tmp_path / "trace"), header(path))
        engine.run([[t] for t in tokens[40:80]])
        _native.engine_trace(engine.handle, None, "{}")
        after = engine.stats()
        states = b"".join(_native.engine_experts(engine.handle, i) for i in range(layers_of(path)))
    trace = read_trace(tmp_path / "trace")
    uses = after["n_hit"] + after["n_miss"] - before["n_hit"] - before["n_miss"]
    assert len(trace.use_expert) == uses
    assert after["n_skip"] > 0
    shown = [state for state in states if state & abi.EXPERT_SKIPPED]
    assert shown and not any(state & (abi.EXPERT_USED | abi.EXPERT_MISSED) for state in shown)


def test_prices_are_read_from_the_model_itself(model: Callable[..., Path], tokens: list[int]) -> None:
    path = model("qwen3moe")
    total = n_expert(path)
    path.with_name(path.name + ".calibration").unlink()
    with (
        pytest.raises(UnsupportedError, match=r"edgemoe calibrate .* --for-lossy"),
        streamed(path, share=0.3, lossy=0.05),
    ):
        pass
    parts = gguf_edit.take_apart(path)
    for name, values in {"cost": [1e-6] * total, "limit": priced.LIMIT, "raw": priced.RAW, "nats": priced.NATS}.items():
        parts.keys[f"edgemoe.lossy.{name}"] = ((9, gguf_edit.F32), list(values))
    with streamed(parts.write(path.with_name("priced.gguf")), share=0.3, lossy=0.05) as engine:
        engine.run([tokens[:40], *([t] for t in tokens[40:60])])
        assert engine.stats()["n_skip"] > 0


@pytest.mark.parametrize("damage", ["experts", "order", "sign", "file"])
def test_prices_that_are_none_of_the_model_are_refused(model: Callable[..., Path], damage: str) -> None:
    path = model("qwen3moe")
    beside = path.with_name(path.name + ".calibration")
    total = n_expert(path)
    if damage == "experts":
        priced.write(beside, [1.0] * (total + 1))
    elif damage == "order":
        priced.write(beside, [1.0] * total, priced.NATS[::-1])
    elif damage == "sign":
        priced.write(beside, [-1.0] * total)
    else:
        beside.write_bytes(b"not a GGUF")
    with pytest.raises(FormatError, match="calibration"), streamed(path, share=0.3, lossy=0.05):
        pass


@pytest.mark.parametrize("values", [{"lossy": 0.009}, {"lossy": 1.5}, {"lossy": -1.0}, {"lossy": float("nan")},
                                    {"lossy": 0.02, "prefetch": abi.PREFETCH_ON},
                                    {"lossy": 0.02, "device": 1}])  # fmt: skip
def test_setups_that_cannot_be_kept_are_refused(model: Callable[..., Path], values: dict[str, float]) -> None:
    with pytest.raises(EdgeMoEError, match="price"), streamed(model("llama"), share=1.0, **values):  # type: ignore[arg-type]
        pass


# ---------------------------------------------------------------- helpers


def header(path: Path) -> str:
    from edgemoe.runtime.engine.trace import header as make
    from edgemoe.runtime.formats import open_model

    with open_model(path) as opened:
        _ = opened.layers
        return make(opened, 0)


def layers_of(path: Path) -> int:
    opened = _native.model_open(str(path))
    try:
        return int(_native.model_info(opened)["n_moe_layer"])
    finally:
        _native.model_close(opened)


def lesser(engine: Streamed, path: Path, tokens: list[int], folder: Path) -> tuple[int, int, int]:
    """(layer, expert, uses) of the most used expert that is never a token's heaviest."""
    engine.rewind()
    _native.engine_trace(engine.handle, str(folder / "trace"), header(path))
    engine.run([[t] for t in tokens])
    _native.engine_trace(engine.handle, None, "{}")
    trace = read_trace(folder / "trace")
    count: dict[tuple[int, int], int] = {}
    heaviest: set[tuple[int, int]] = set()
    at = 0
    for layer, n_use in zip(trace.visit_layer, trace.visit_n_use, strict=True):
        uses = range(at, at + n_use)
        at += n_use
        for i in uses:
            key = (layer, trace.use_expert[i])
            count[key] = count.get(key, 0) + 1
        best = max(uses, key=lambda i: trace.use_weight[i])
        heaviest.add((layer, trace.use_expert[best]))
    n, (layer, expert) = max((n, key) for key, n in count.items() if key not in heaviest)
    return layer, expert, n


def zeroed(path: Path, layer: int, expert: int, folder: Path) -> Path:
    """The model with the expert's down matrix zero."""
    parts = gguf_edit.take_apart(path)
    numbers = sorted({int(t.name.split(".")[1]) for t in parts.tensors if "ffn_down_exps" in t.name})
    name = f"blk.{numbers[layer]}.ffn_down_exps.weight"

    def change(tensor: gguf_edit.TensorPart) -> gguf_edit.TensorPart:
        size = len(tensor.data) // tensor.shape[2]
        data = bytearray(tensor.data)
        data[expert * size : (expert + 1) * size] = bytes(size)
        return gguf_edit.TensorPart(tensor.name, tensor.shape, tensor.type, bytes(data))

    parts.change(name, change)
    return parts.write(folder / "zeroed.gguf")
