"""A model without some of its experts: stock llama.cpp runs the stacked file, and both layouts give its logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from calibrated import calibration_of
from exact_engines import stock, streamed

from edgemoe.converters.convert import Options, convert, open_source
from edgemoe.converters.prune import prune

SHARES = {
    "llama": 0.25, "qwen3moe": 0.7, "qwen2moe": 0.5, "deepseek2": 0.5, "deepseek2-grouped": 0.25,
    "deepseek2-fused": 0.3, "gpt-oss": 0.5, "lfm2moe": 0.4, "gemma4-fused": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("arch", sorted(SHARES))
def test_stock_runs_it_and_both_layouts_equal_it(
    tiny: Callable[..., Path], tokens: list[int], tmp_path: Path, arch: str
) -> None:
    source = open_source(tiny(arch))
    pruned = prune(source, calibration_of(source), SHARES[arch]).source
    convert(pruned, tmp_path / "stacked.gguf", Options(uniform_per_layer=True))
    convert(pruned, tmp_path / "single.gguf", Options())
    steps = [tokens[:100], *([token] for token in tokens[100:108])]
    reference = stock(tmp_path / "stacked.gguf", steps)
    assert reference != stock(tiny(arch), steps)
    for name in ("stacked", "single"):
        with streamed(tmp_path / f"{name}.gguf", share=0.3) as engine:
            assert engine.run(steps) == reference
