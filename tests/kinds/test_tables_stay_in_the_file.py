"""Tables, which are only looked up by row (n-grams, embeddings that are no output), are no dense weights.

On a tight budget they stay in the file: a budget smaller than the table is enough, the answers are those of stock
llama.cpp, and what goes wrong with a row goes wrong as with an expert.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import architectures
import bounded
import gguf_edit
import pytest
import tinymoe
from exact_engines import Streamed, stock, streamed
from gguf_edit import Parts

import edgemoe
from edgemoe import _native
from edgemoe.errors import StorageError
from edgemoe.units import MIB

FAIL, SHORT, TRUNCATE = 1, 2, 3
TOKENS = [*range(60, 90), *range(97, 123)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def n_grams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 400 MiB, in a model of 40."""
    path = tmp_path_factory.mktemp("n-grams") / "model.gguf"
    return architectures.write(path, "qwen4exp", n_gram_rows=6_200_000)


@pytest.fixture
def engine(n_grams: Path) -> Iterator[Streamed]:
    with streamed(n_grams, share=1.0, row_cache_bytes=1 << 20) as opened:
        yield opened


def test_a_budget_smaller_than_the_table_is_enough(n_grams: Path) -> None:
    with edgemoe.open_model(n_grams) as model:
        assert model.info.table_bytes > 400 * MIB
        assert model.info.dense_token_bytes == model.info.dense_bytes - model.info.table_bytes
    here = _native.rss_bytes()  # of this process, which has run other tests
    plan = edgemoe.plan(n_grams, edgemoe.Setup(memory=here + 250 * MIB, ctx=512), measure=False)
    assert (plan.fraction, plan.n_slot) == (1.0, plan.n_expert_total)
    assert plan.table_bytes > 400 * MIB
    assert plan.smallest_bytes < here + 150 * MIB
    assert plan.resident_bytes > 400 * MIB
    assert any("rows" in line and "which stay in the file" in line for line in plan.lines())


def test_the_answer_is_stocks_and_the_kernel_agrees_about_the_memory(n_grams: Path, tmp_path: Path) -> None:
    env = {**os.environ, "EDGEMOE_CACHE": str(tmp_path / "cache")}
    text = "The rows of a table are read when a token needs them, and not before. " * 12
    result = bounded.run_limited(n_grams, text, 200 * MIB, 300, 40, env)
    assert result["n_past"] >= 339


@pytest.mark.parametrize("memory", ["200MiB", "2GiB"], ids=["by row", "in memory"])
def test_logits_are_those_of_stock(n_grams: Path, memory: str) -> None:
    code = (
        "import json, sys, edgemoe\n"
        "with edgemoe.load(sys.argv[1], memory=sys.argv[2], ctx=512, threads=1, n_ubatch=64) as engine:\n"
        "    engine.eval(json.loads(sys.argv[3]))\n"
        "    stats = engine.stats()\n"
        "    print(json.dumps([engine.row().tobytes().hex(), stats.to_dict()]))\n"
    )
    command = [sys.executable, "-c", code, str(n_grams), memory, json.dumps(TOKENS)]
    row, stats = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert bytes.fromhex(row) == stock(n_grams, [TOKENS])[0]
    by_row = memory == "200MiB"
    assert (stats["row_cache_bytes"] > 0, stats["n_row_miss"] > 0) == (by_row, by_row)
    assert (stats["dense_bytes"] > 400 * MIB) == (not by_row)


@pytest.mark.parametrize("kind", [FAIL, TRUNCATE], ids=["fail", "truncate"])
def test_a_row_that_cannot_be_read_fails_one_call(n_grams: Path, engine: Streamed, kind: int) -> None:
    steps = [TOKENS, [65], [33]]
    expected = stock(n_grams, steps)
    engine.run(steps[:1])  # all experts are here now: what is read from here on is rows
    engine.rewind()
    for n in range(4):
        assert engine.run([[1 + 2 * n]])
        before = _native.engine_n_past(engine.handle)
        _native.engine_inject_fault(engine.handle, kind, n)
        with pytest.raises(StorageError, match=r"rows of `\w+\.weight`: .*model\.gguf") as failed:
            _native.engine_decode(engine.handle, [200 + n, 210 + n, 220 + n, 230 + n], want_all=False)
        assert "\n" not in failed.value.message
        assert _native.engine_n_past(engine.handle) in (before, 0)  # a recurrent state was emptied
        _native.engine_inject_fault(engine.handle, kind, 2**64 - 1)
    engine.rewind()
    assert engine.run(steps) == expected


def test_a_short_read_of_a_row_changes_nothing(n_grams: Path, engine: Streamed) -> None:
    steps = [TOKENS, [65], [33]]
    expected = stock(n_grams, steps)
    for n in (0, 3, 9):
        engine.rewind()
        _native.engine_inject_fault(engine.handle, SHORT, n)
        assert engine.run(steps) == expected


def test_a_table_that_was_written_to_is_noticed(n_grams: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(n_grams.read_bytes())
    with streamed(path, share=1.0, row_cache_bytes=1 << 20) as engine:
        engine.run([TOKENS])
        with path.open("r+b") as file:  # the table is last: all of its second half
            file.seek(path.stat().st_size // 2)
            for _ in range(60):
                file.write(bytes(4 << 20))
                file.truncate(max(n_grams.stat().st_size, file.tell()))
        with pytest.raises(StorageError, match="was written to while it was in use"):
            engine.run([[t] for t in range(130, 200)])


def test_an_embedding_that_is_the_output_too_is_dense(tmp_path: Path) -> None:
    tied, untied = tinymoe.write(tmp_path / "t.gguf", "granitemoe"), tinymoe.write(tmp_path / "u.gguf", "qwen3moe")
    tables = []
    for path in (tied, untied):
        with edgemoe.open_model(path) as model:
            tables.append(model.info.table_bytes)
    assert tables[0] == 0
    assert tables[1] > 0
    with streamed(tied, share=0.5, row_cache_bytes=1 << 20) as engine:
        assert engine.run([TOKENS]) == stock(tied, [TOKENS])
        assert engine.stats()["row_cache_bytes"] == 0


def test_an_output_that_was_added_makes_the_embedding_a_table(tmp_path: Path) -> None:
    """Gemma 4, tied in published files: the same weights under both names give the same answers, by row too."""
    tied = tinymoe.write(tmp_path / "tied.gguf", "gemma4-fused")

    def untie(parts: Parts) -> None:
        embedding = next(tensor for tensor in parts.tensors if tensor.name == "token_embd.weight")
        parts.tensors.append(replace(embedding, name="output.weight"))

    untied = gguf_edit.edited(tied, tmp_path / "untied.gguf", untie)
    with streamed(untied, share=0.3, row_cache_bytes=1 << 20) as engine:
        assert engine.run([TOKENS]) == stock(tied, [TOKENS]) == stock(untied, [TOKENS])
        assert engine.stats()["n_row_miss"] > 0
