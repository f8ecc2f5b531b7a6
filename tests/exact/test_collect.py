"""What is collected is what experts really met and gave: recomputed from the weights, for every architecture.

And collecting changes no logit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinymoe

import edgemoe
from edgemoe import _abi as abi

N = 96


def collect(path: Path, tokens: list[int]) -> tuple[bytes, list[dict[str, Any]]]:
    """Logits after the tokens, and what was collected, by layer: 60 tokens at once, then one at a time."""
    import numpy as np

    from edgemoe.converters.convert import open_source

    source = open_source(path)
    numbers = sorted({layer for layer, _, _ in source.experts})
    layers = []
    with (
        edgemoe.load(path, memory="1GiB", ctx=128, threads=2, n_outputs=60) as engine,
        engine.collecting(N, 1) as collected,
    ):
        engine.eval(tokens[:60], want_all=True)  # else the last layer sees only the last token
        for token in tokens[60:N]:
            engine.eval([token])
        row = engine.row().tobytes()
        for i, number in enumerate(numbers):
            roles = [role for layer, _, role in source.experts if layer == number]
            down = source.experts[(number, "exps", "down")]
            n_in = source.experts[(number, "exps", "gate_up" if "gate_up" in roles else "up")][0].n_col
            n_expert = len(down)

            def read(kind: int, *shape: int, layer: int = i) -> Any:
                values = collected.read(layer, kind, int(np.prod(shape)))
                return np.frombuffer(values, np.float32).reshape(shape)

            layers.append(
                {
                    "number": number,
                    "roles": roles,
                    "experts": read(abi.COLLECT_EXPERTS, n_expert, 5),
                    "in": read(abi.COLLECT_IN, n_expert, n_in),
                    "hidden": read(abi.COLLECT_HIDDEN, n_expert, down[0].n_col),
                    "out": read(abi.COLLECT_OUTPUT, n_expert, down[0].n_row),
                    "x": read(abi.COLLECT_SAMPLE_X, N, n_in),
                    "w": read(abi.COLLECT_SAMPLE_W, N, n_expert),
                    "state": read(abi.COLLECT_STATE, 5),
                }
            )
    return row, layers


def resident_row(path: Path, tokens: list[int]) -> bytes:
    with edgemoe.load(path, memory="1GiB", ctx=128, threads=2, n_outputs=60) as engine:
        engine.eval(tokens[:60], want_all=True)
        for token in tokens[60:N]:
            engine.eval([token])
        return engine.row().tobytes()


# The others scale, bias or gate their experts in ways that relative_errors does not follow; what they meet is checked.
KNOWN_FORM = ("llama", "qwen3moe", "qwen2moe", "olmoe", "deepseek2", "deepseek2-grouped", "deepseek2-fused", "gpt-oss",
              "granitemoe", "lfm2moe")  # fmt: skip


@pytest.mark.parametrize("arch", tinymoe.MOE_ARCHS)
def test_sums_are_those_of_the_model(tiny: Callable[..., Path], tokens: list[int], arch: str) -> None:
    import numpy as np

    from edgemoe.converters import expert_error
    from edgemoe.converters.convert import open_source

    path = tiny(arch, expert_type="Q8_0")
    row, layers = collect(path, tokens)
    assert row == resident_row(path, tokens)
    source = open_source(path)
    act = expert_error.activation_of(source.architecture)
    for layer in layers:
        stats, x, w = layer["experts"], layer["x"], layer["w"].astype(np.float64)
        n_used = (w > 0).sum(1)
        assert (n_used == n_used[0]).all() and stats[:, 0].sum() == n_used.sum()
        assert list(layer["state"][:2]) == [N, N]
        assert layer["state"][3:].tolist() == [1, 1]  # router and residual were found
        np.testing.assert_allclose(stats[:, 2], (w**2).sum(0), rtol=1e-4)
        np.testing.assert_allclose(layer["in"], (w**2).T @ np.square(x, dtype=np.float64), rtol=1e-3, atol=1e-6)
        if arch not in KNOWN_FORM:
            continue
        stacks = {role: source.experts[(layer["number"], "exps", role)] for role in layer["roles"]}
        biases = expert_error.load_biases(source.dense, layer["number"], layer["roles"])
        for expert in np.flatnonzero(stats[:, 0])[:6]:
            m = expert_error.load_expert(stacks, int(expert), biases)
            assert m is not None
            own = w[:, expert] > 0
            met, count = x[own], w[own, expert] ** 2
            hidden = expert_error.GATED[act](met @ m.gate.T + m.gate_bias, met @ m.up.T + m.up_bias)
            out = hidden @ m.down.T  # down's bias is added after the product that is watched
            # Activations are quantized to 8 bits before they are multiplied.
            np.testing.assert_allclose(layer["hidden"][expert].sum(), (count @ hidden**2).sum(), rtol=0.03)
            np.testing.assert_allclose(stats[expert, 3], count @ (out**2).sum(1), rtol=0.03)
            np.testing.assert_allclose(stats[expert, 4], np.abs(out).max(), rtol=0.05)
            size = np.sqrt((out.sum(0) ** 2).mean())
            np.testing.assert_allclose(layer["out"][expert], out.sum(0), atol=0.1 * size)


def test_noise_has_the_size_that_was_asked_for_and_ends(tiny: Callable[..., Path], tokens: list[int]) -> None:
    path = tiny("qwen3moe", expert_type="Q8_0")
    clean = resident_row(path, tokens)
    opened = edgemoe.load(path, memory="1GiB", ctx=128, threads=2, n_outputs=60)
    with opened as engine, engine.collecting(1, 1) as collected:
        collected.noise(1, 0.5)
        engine.eval(tokens[:60])
        experts = collected.read(1, abi.COLLECT_EXPERTS, 16 * 5)
        noise2, output2 = collected.read(1, abi.COLLECT_STATE, 5)[2], sum(experts[3::5])
        assert noise2 == pytest.approx(0.25 * output2, rel=1e-3)
        assert collected.read(0, abi.COLLECT_STATE, 5)[2] == 0
        for token in tokens[60:N]:
            engine.eval([token])
        assert engine.row().tobytes() != clean
        collected.no_noise()
        engine.reset()
        engine.eval(tokens[:60], want_all=True)
        for token in tokens[60:N]:
            engine.eval([token])
        assert engine.row().tobytes() == clean


def test_nothing_is_read_that_is_not_there(tiny: Callable[..., Path]) -> None:
    with edgemoe.load(tiny("qwen3moe"), memory="1GiB", ctx=128) as engine:
        with engine.collecting(1, 1) as collected:
            for layer, kind, n in ((3, 0, 80), (0, 0, 81), (0, 99, 1)):
                with pytest.raises(edgemoe.EdgeMoEError):
                    collected.read(layer, kind, n)
        with pytest.raises(edgemoe.EdgeMoEError, match="nothing is collected"):
            collected.read(0, 0, 80)
