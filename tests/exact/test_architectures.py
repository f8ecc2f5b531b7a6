"""Any model: every architecture with experts that the pinned llama.cpp knows, streamed, is stock byte for byte.

Every optional tensor is in the files (tests/architectures.py). Three caches: the smallest, one that evicts, one that
holds all; with the smallest, tables stay in the file and are read by row.
"""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import architectures
import numpy as np
import pytest
from exact_engines import stock, streamed

from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe.errors import UnsupportedError

FAST = ("deepseek2", "gemma4-per-layer", "gpt-oss", "llama4", "nemotron-latent", "qwen4exp")
REFUSED = {
    "llada-moe": "diffusion",
    "rnd1": "diffusion",
    "refact": "never multiplies by its experts",  # llama.cpp loads such a file and computes it without them
}
MEANINGLESS = {"llama-embed"}  # logits of a model that makes embeddings


def _marked(name: str) -> object:
    return pytest.param(name, marks=() if name in FAST else pytest.mark.slow)


@pytest.mark.parametrize("name", [_marked(name) for name in architectures.names()])
def test_every_architecture_equals_stock(tmp_path: Path, tokens: list[int], name: str) -> None:
    model = architectures.write(tmp_path / "model.gguf", name)
    steps = [tokens[:100], tokens[100:103], *([t] for t in tokens[103:135])]
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[name]), streamed(model, share=0.0):
            pass
        return
    expected = stock(model, steps)
    for share, row_cache_bytes in ((0.0, 1 << 20), (0.4, 0), (1.0, 0)):
        with streamed(model, share=share, row_cache_bytes=row_cache_bytes) as engine:
            assert engine.run(steps) == expected, share
            stats = engine.stats()
        assert stats["n_miss"] > 0
        assert (stats["n_row_miss"] > 0) == (row_cache_bytes > 0)  # each has a table of its own
    values = np.frombuffer(b"".join(expected), np.float32)
    assert np.isfinite(values).all()
    assert len(set(expected)) == len(steps) or name in MEANINGLESS  # the model really says different things


@pytest.mark.parametrize("name", [_marked(name) for name in architectures.names() if name not in REFUSED])
def test_tokens_verified_together_are_those_decoded_alone(tmp_path: Path, tokens: list[int], name: str) -> None:
    """Or the architecture says that it cannot, before or when it is asked to; it never gives other logits."""
    model = architectures.write(tmp_path / "model.gguf", name)
    with streamed(model, share=1.0, n_ctx=1024) as engine:
        for n_past in (30, 600):  # from 512 on attention is divided among threads
            prompt = (tokens * 2)[:n_past]
            engine.rewind()
            alone = engine.run([prompt, *([t] for t in tokens[:5])])[1:]
            engine.rewind()
            engine.run([prompt])
            try:
                assert engine.verify(tokens[:5]) == alone
            except UnsupportedError as refused:
                assert "cannot verify drafts" in refused.message
                assert _native.engine_n_past(engine.handle) == n_past


@pytest.mark.parametrize("name", ["kimi-k3", "llama4", "nemotron-latent"])
def test_routers_whose_input_no_expert_sees_are_followed_too(tmp_path: Path, tokens: list[int], name: str) -> None:
    """Experts are given a weighted or narrower copy there; what the router saw is read by somebody after them."""
    model = architectures.write(tmp_path / "model.gguf", name)
    steps = [[t] for t in tokens[:120]]
    with streamed(model, share=0.3, prefetch=abi.PREFETCH_ON) as engine:
        assert engine.run(steps) == stock(model, steps)
        assert engine.stats()["n_prefetch"] > 0
        used, found = map(sum, zip(*(map(sum, _native.engine_accuracy(engine.handle, i)) for i in (0, 1)), strict=True))
    assert used > 100
    assert found > 1.2 * used / 4  # a token uses a fourth of a layer's experts, or less


def test_every_class_of_the_pinned_llama_is_listed() -> None:
    """A new architecture fails here until somebody has looked whether it has experts (tests/architectures.json)."""
    package = importlib.util.find_spec("llama_cpp")
    assert package and package.origin
    library = Path(package.origin).parent / "lib" / "libllama.so"
    if not library.exists():
        pytest.skip(f"{library} is not here: names of classes are read from a Linux library")
    # The names of types, as the compiler writes them: their length, then the name.
    named = re.findall(rb"\0(\d+)(llama_model_\w+)\0", library.read_bytes())
    found = {name.decode()[len("llama_model_") :] for length, name in named if int(length) == len(name)} - {"base"}
    assert len(found) > 100
    assert found == architectures.classes()


def test_a_table_of_n_grams_that_is_larger_than_the_budget(tmp_path: Path, tokens: list[int]) -> None:
    """Hashes reach every row; the same rows are found again where the text says the same again."""
    model = architectures.write(tmp_path / "model.gguf", "qwen4exp", n_gram_rows=1_000_000)
    assert model.stat().st_size > 64 << 20
    again = [tokens[:100], *([t] for t in tokens[:20])]
    steps = [*again, *([t] for t in tokens[20:40]), tokens[:100]]
    expected = stock(model, steps)
    with streamed(model, share=0.0, row_cache_bytes=1 << 20) as engine:
        assert engine.run(steps) == expected
        stats = engine.stats()
    n_looked_up = sum(map(len, steps)) * 5  # a token's embedding and four n-grams
    assert math.ceil(n_looked_up / 4) < stats["n_row_miss"] < n_looked_up
    assert stats["n_row_hit"] > 100
    assert stats["dense_bytes"] < 32 << 20
