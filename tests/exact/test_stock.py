"""Streamed logits are stock llama.cpp's, byte for byte, for every architecture and in both regimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tinymoe
from exact_engines import relative_error, stock, streamed

from edgemoe import _native


@pytest.mark.parametrize("arch", tinymoe.MOE_ARCHS)
def test_decode_equals_stock(tiny: Callable[..., Path], tokens: list[int], arch: str) -> None:
    path = tiny(arch)
    steps = [[t] for t in tokens[:256]]
    reference = stock(path, steps)
    with streamed(path, share=0.3) as engine:
        rows = engine.run(steps)
        stats = engine.stats()
    assert stats["n_miss"] > 0
    assert stats["n_evict"] > 0
    assert stats["n_hit"] > 0
    assert rows == reference
    assert len(set(reference)) > 200  # the model really says different things


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("arch", tinymoe.MOE_ARCHS)
def test_prefill_equals_stock(tiny: Callable[..., Path], tokens: list[int], arch: str, share: float) -> None:
    path = tiny(arch)
    # Batches of 64 and 36, then single tokens: experts with one row, with fewer than 8, and with many.
    steps = [tokens[:100], tokens[100:103], *([t] for t in tokens[103:120])]
    reference = stock(path, steps)
    with streamed(path, share=share) as engine:
        rows = engine.run(steps)
        stats = engine.stats()
    assert stats["n_miss"] > 0
    if share == 0:
        assert stats["n_streamed"] > 0  # more experts than slots: they passed through
    # The bar is 1e-3 in relative error; what is reached is equality.
    assert max(relative_error(a, b) for a, b in zip(rows, reference, strict=True)) < 1e-3
    assert rows == reference


@pytest.mark.parametrize(
    "expert_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_XS", "MXFP4"]
)
def test_every_quantization_equals_stock(tiny: Callable[..., Path], tokens: list[int], expert_type: str) -> None:
    path = tiny("qwen3moe", expert_type=expert_type)
    steps = [tokens[:64], *([t] for t in tokens[64:80])]
    reference = stock(path, steps)
    with streamed(path, share=0.3) as engine:
        assert engine.run(steps) == reference
        assert engine.stats()["n_evict"] > 0


def test_types_that_differ_by_matrix_and_layer_equal_stock(tiny: Callable[..., Path], tokens: list[int]) -> None:
    """As Q4_K_M files are: slots of several sizes."""
    path = tiny("qwen3moe", expert_type=("Q4_K", "Q5_K"), down_type=("Q6_K", "Q4_K", "Q8_0"))
    steps = [tokens[:64], *([t] for t in tokens[64:120])]
    reference = stock(path, steps)
    for share in (0.0, 0.4):
        with streamed(path, share=share) as engine:
            assert engine.run(steps) == reference
            assert engine.stats()["n_evict"] > 0


@pytest.mark.parametrize("n_split", [2, 5])
def test_split_files_equal_the_single_file(tiny: Callable[..., Path], tokens: list[int], n_split: int) -> None:
    steps = [[t] for t in tokens[:20]]
    with streamed(tiny("qwen3moe"), share=0.3) as engine:
        reference = engine.run(steps)
    first = tiny("qwen3moe", n_split=n_split)
    last = first.with_name(first.name.replace("-00001-of", f"-{n_split:05d}-of"))
    for path in (first, last):  # any file of the set names it
        with streamed(path, share=0.3) as engine:
            assert engine.run(steps) == reference


@pytest.mark.slow
def test_smolmoe_equals_stock(smolmoe: Path, wikitext: str, tmp_path: Path) -> None:
    """A trained model, real text: 256 tokens of decode after a prefill of 200.

    The same number of threads on both sides: from 512 tokens of context on, llama.cpp's flash attention divides the KV
    cache among its threads, so its own sums depend on how many there are.
    """
    link = tmp_path / "smolmoe.gguf"
    link.symlink_to(smolmoe)
    with streamed(link, share=0.2, threads=2) as engine:
        vocabulary = _native.engine_text(engine.handle)
        text = _native.text_tokenize(vocabulary, wikitext.encode(), add_special=False, parse_special=False)[:456]
        steps = [text[:200], *([t] for t in text[200:])]
        rows = engine.run(steps)
        stats = engine.stats()
    assert len(text) == 456
    assert stats["n_evict"] > 1000
    assert stats["n_hit"] > 1000
    assert rows == stock(link, steps, threads=2)
