"""An export under a budget says byte for byte what stock ONNX Runtime says of the whole file, whatever is evicted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_extra  # noqa: F401
import pytest
import tinyhf

import edgemoe
from edgemoe.converters.allocation import Allocation
from edgemoe.converters.convert import open_source
from edgemoe.converters.onnx.export import Options, export

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 256, 40)]


class Stock:
    """model.onnx in one session."""

    def __init__(self, folder: Path, n_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = n_threads, 3
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        inputs = self._session.get_inputs()[2:]
        self._names = [value.name for value in inputs]
        self._past = [np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for value in inputs]
        self._n = 0

    def __call__(self, tokens: Sequence[int]) -> bytes:
        """Logits of the last of the next tokens."""
        self._n += len(tokens)
        feed: dict[str, Any] = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, self._n), np.int64)}
        logits, *self._past = self._session.run(None, feed | dict(zip(self._names, self._past, strict=True)))
        return bytes(logits[0, -1].tobytes())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


def made(tmp_path: Path, arch: str, widths: Sequence[str] = ("2", "4", "8")) -> Path:
    names = tuple(widths[i % len(widths)] for i in range(tinyhf.N_EXPERT))
    types = {layer: dict.fromkeys(("gate", "up", "down"), names) for layer in range(tinyhf.N_LAYER)}
    export(open_source(tinyhf.write(tmp_path / "hf", arch)), tmp_path / arch, Options(allocation=Allocation(types)))
    return tmp_path / arch


def tightest(engine: edgemoe.Engine) -> None:
    """As little for the experts as can be: one layer's."""
    backend = engine._sequence.backend
    backend.set_cache_bytes(0)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "olmoe"])
def test_evicting_changes_no_byte(tmp_path: Path, arch: str, n_threads: int) -> None:
    folder = made(tmp_path, arch)
    stock = Stock(folder, n_threads)
    steps = [TOKENS[:17], *([token] for token in TOKENS[17:30]), TOKENS[30:]]
    expected = [stock(step) for step in steps]
    with edgemoe.load(folder, memory="2GiB", ctx=64, threads=n_threads, warm_start=False) as engine:
        tightest(engine)
        found = []
        for step in steps:
            engine.eval(step)
            found.append(engine.row().tobytes())
        stats = engine.stats()
        assert stats.n_evict > 10 and stats.n_slot_used < 2 * tinyhf.N_EXPERT
        engine.set_budget("2GiB")
        engine.rewind(17)
        engine.eval(steps[1])
        assert engine.row().tobytes() == expected[1]
    assert found == expected


@pytest.mark.usefixtures("cache")
def test_chat_sampling_and_grammar_are_the_engines_own(tmp_path: Path) -> None:
    with edgemoe.load(made(tmp_path, "qwen3_moe"), memory="2GiB", ctx=128) as engine:
        messages = [{"role": "user", "content": "hello"}]
        greedy = "".join(engine.chat(messages, max_tokens=12))
        again = "".join(engine.chat(messages, max_tokens=12, sampling=edgemoe.Sampling(temp=0.0, seed=4)))
        assert greedy == again and engine.n_reused > 0
        warm = edgemoe.Sampling(temp=1.5, seed=1)
        assert "".join(engine.chat(messages, max_tokens=12, sampling=warm)) != greedy
        held = edgemoe.Sampling(grammar='root ::= "ab" "ba"*')
        text = "".join(engine.generate("x", max_tokens=6, sampling=held))
        assert text.startswith("ab") and set(text) <= {"a", "b"}
        steps = list(engine.steps(engine.tokenize("hello"), max_tokens=3, n_top=4))
        assert len(steps[0].top) == 4 and steps[0].logprob == steps[0].top[0][1]


@pytest.mark.usefixtures("cache")
def test_logits_of_all_tokens_and_of_none(tmp_path: Path) -> None:
    folder = made(tmp_path, "mixtral", ("4",))
    with edgemoe.load(folder, memory="2GiB", ctx=64, n_outputs=40, warm_start=False) as engine:
        engine.eval(TOKENS, want_all=True)
        rows = [engine.row(i).tobytes() for i in range(40)]
        assert len(set(rows)) > 30
        with pytest.raises(edgemoe.UsageError):
            engine.row(40)
        engine.reset()
        with pytest.raises(edgemoe.UsageError):
            engine.row()
        engine.eval(TOKENS)
        assert engine.row().tobytes() == rows[-1]
        with pytest.raises(edgemoe.ContextFullError):
            engine.eval(TOKENS)
        assert engine.n_past == 40


@pytest.mark.usefixtures("cache")
def test_a_cancelled_prompt_leaves_the_sequence_as_it_was(tmp_path: Path) -> None:
    with edgemoe.load(made(tmp_path, "mixtral"), memory="2GiB", ctx=512, n_ubatch=32) as engine:
        engine.eval(TOKENS[:5])
        done = threading.Event()

        def cancel_until_done() -> None:  # one that comes between two calls is forgotten by the next
            while not done.wait(0.02):
                engine.cancel()

        canceller = threading.Thread(target=cancel_until_done)
        canceller.start()
        try:
            with pytest.raises(edgemoe.Cancelled):
                while True:
                    engine.eval((TOKENS * 12)[:480])
                    engine.rewind(5)
        finally:
            done.set()
            canceller.join()
        assert engine.n_past == 5
        engine.eval([7])
        assert engine.n_past == 6


@pytest.mark.usefixtures("cache")
def test_what_an_earlier_run_learned_is_kept(tmp_path: Path) -> None:
    folder = made(tmp_path, "mixtral")
    with edgemoe.load(folder, memory="2GiB", ctx=128) as engine:
        engine.eval((TOKENS * 3)[:100])
        assert {state & 2 for state in engine.experts()[0]} <= {0, 2} and sum(engine.resident()) > 0
    assert list((tmp_path / "cache" / "usage").iterdir())
    with edgemoe.load(folder, memory="2GiB", ctx=128) as engine:
        assert max(engine._sequence.backend.residency.rates()) > 0  # type: ignore[attr-defined]
