"""RoPE and YaRN scaled by llama.cpp's own parameters: stock's logits with the same, beyond the trained context too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exact_engines import stock, streamed

import edgemoe
from edgemoe import Setup

# Python's names to those of llama_context_params.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"rope_scaling": "linear", "rope_scale": 4}, {"rope_scaling_type": 1, "rope_freq_scale": 0.25}),
    "base": ({"rope_freq_base": 5e5}, {"rope_freq_base": 5e5}),
    "yarn": (
        {"rope_scaling": "yarn", "rope_scale": 3, "yarn_orig_ctx": 128},
        {"rope_scaling_type": 2, "rope_freq_scale": 1 / 3, "yarn_orig_ctx": 128},
    ),
    "yarn in full": (
        {
            "rope_scaling": "yarn", "rope_freq_scale": 0.5, "yarn_orig_ctx": 256, "yarn_ext_factor": 0.0,
            "yarn_attn_factor": 1.25, "yarn_beta_fast": 24.0, "yarn_beta_slow": 2.0,
        },
        {
            "rope_scaling_type": 2, "rope_freq_scale": 0.5, "yarn_orig_ctx": 256, "yarn_ext_factor": 0.0,
            "yarn_attn_factor": 1.25, "yarn_beta_fast": 24.0, "yarn_beta_slow": 2.0,
        },
    ),
    "none": ({"rope_scaling": "none"}, {"rope_scaling_type": 0}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss"])  # the second is scaled by its own file
def test_scaled_positions_equal_stock(tiny: Callable[..., Path], tokens: list[int], arch: str, case: str) -> None:
    said, params = CASES[case]
    path, steps = tiny(arch), [tokens[:150], *([t] for t in tokens[150:170])]
    native = Setup(**said).native()
    fields = {name: getattr(native, name) for name, *_ in native._fields_ if name.startswith(("rope_", "yarn_"))}
    with streamed(path, share=0.3, **fields) as engine:
        rows = engine.run(steps)
    assert rows == stock(path, steps, **params)
    plain = stock(path, steps)
    # gpt-oss has other values in its file; for the others "none" is what they do anyway.
    assert (rows == plain) == (case == "none" and arch == "qwen3moe")


def test_a_context_beyond_training_holds_what_it_says(tiny: Callable[..., Path], tokens: list[int]) -> None:
    path = tiny("qwen3moe")  # trained for 4,096 tokens
    setup = Setup(memory="2GiB", ctx=6144, threads=1, rope_scaling="yarn", rope_scale=2, yarn_orig_ctx=4096)
    plan = edgemoe.plan(path, setup, measure=False)
    assert plan.n_ctx == 6144 and plan.context_line == ""
    assert edgemoe.plan(path, memory="2GiB", ctx=6144, measure=False).n_ctx == 4096
    prompt = (tokens * 20)[:4200]
    with edgemoe.load(path, setup) as engine:
        assert engine.n_ctx == 6144
        engine.eval(prompt)
        row = engine.row().tobytes()
        n_ubatch = engine.plan.n_ubatch
    reference = stock(
        path, [prompt], n_ubatch=n_ubatch, n_ctx=6144, n_batch=n_ubatch, rope_scaling_type=2, rope_freq_scale=0.5,
        yarn_orig_ctx=4096,
    )  # fmt: skip
    assert row == reference[0]
