"""What cannot be cut at any token goes on from a checkpoint: of recurrent models and sliding windows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import architectures
import pytest
from console import needs_library

import edgemoe
from edgemoe.errors import BudgetError, NativeError, UsageError
from edgemoe.runtime.engine import checkpoints

pytestmark = needs_library

RECURRENT = ["lfm2moe", "granitehybrid", "qwen3next"]
N_BATCH, N_STEP = 32, 64
SETUP: dict[str, Any] = {"memory": "2GiB", "ctx": 1024, "threads": 2, "n_ubatch": N_BATCH}
SHARE = 32 << 20


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "STEP_TOKENS", N_STEP)


def tokens(engine: edgemoe.Engine, n: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(engine.n_vocab) for _ in range(n)]


@pytest.fixture(params=RECURRENT)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[edgemoe.Engine]:
    with edgemoe.load(architectures.write(tmp_path / "m.gguf", request.param), **SETUP) as found:
        found.keep_prefixes(SHARE)
        yield found


def rows(engine: edgemoe.Engine, prompt: list[int], *, anew: bool = False) -> list[Any]:
    """Logits after a prompt, and after two tokens more."""
    engine._sequence.become(prompt, anew=anew)
    found = [engine.row()]
    for token in (3, 5):
        engine.eval([token])
        found.append(engine.row())
    return found


@pytest.mark.parametrize("n_same", [290, 200, 100])
def test_a_changed_tail_equals_computing_anew(engine: edgemoe.Engine, n_same: int) -> None:
    """Byte for byte, since a checkpoint lies between two batches."""
    first = tokens(engine, 300, 1)
    changed = first[:n_same] + tokens(engine, 20, 2)
    engine.eval_prompt(first)
    found = rows(engine, changed)
    n_kept = engine._sequence.n_kept
    assert n_same - N_STEP < n_kept <= n_same and n_kept % N_BATCH == 0
    before = engine.stats().n_prefill
    assert rows(engine, changed, anew=True) == found
    assert engine.stats().n_prefill - before == len(changed)  # and n_kept fewer with the checkpoint


def test_only_what_changed_is_computed(engine: edgemoe.Engine) -> None:
    first = tokens(engine, 300, 1)
    engine.eval_prompt(first)
    before = engine.stats().n_prefill
    engine.eval_prompt(first[:270] + tokens(engine, 20, 2))
    assert engine.stats().n_prefill - before <= 20 + N_STEP + N_BATCH
    before = engine.stats().n_prefill
    engine.eval_prompt(first[:270] + tokens(engine, 20, 2))  # the same again, as when an answer is asked for anew
    assert engine.stats().n_prefill - before <= N_BATCH


def test_a_turn_that_is_told_otherwise_goes_on_from_the_turn_before(engine: edgemoe.Engine) -> None:
    prompt = tokens(engine, 100, 1)
    list(engine.generate(prompt, max_tokens=10))
    answered = engine._sequence.n_past
    engine.eval_prompt([*list(engine._sequence._tokens), *tokens(engine, 40, 3)])
    engine.eval_prompt([*list(engine._sequence._tokens)[:answered], *tokens(engine, 40, 4)])
    assert engine.n_reused == answered
    engine.eval_prompt([*prompt, *tokens(engine, 40, 5)])  # the answer told otherwise
    assert engine.n_reused == len(prompt)


def test_a_conversation_set_aside_takes_its_checkpoints_along(engine: edgemoe.Engine, tmp_path: Path) -> None:
    first = tokens(engine, 300, 1)
    changed = first[:200] + tokens(engine, 20, 2)
    told: list[str] = []
    engine.keep_states(tmp_path / "states", 1 << 30, told.append)
    engine.keep_prefixes(SHARE)
    engine.eval_prompt(first)
    engine.eval_prompt(tokens(engine, 60, 9))
    found = rows(engine, changed)
    assert engine._sequence.n_kept == 192
    assert rows(engine, changed, anew=True) == found
    engine.eval_prompt(first)
    path, engine.model = engine.model.path, engine.model
    engine.close()
    with edgemoe.load(path, **SETUP) as again:
        again.keep_states(tmp_path / "states", 1 << 30, told.append)
        again.keep_prefixes(SHARE)
        assert rows(again, changed) == found
        assert again._sequence.n_kept == 192 and not told


def test_checkpoints_stay_inside_their_share(engine: edgemoe.Engine) -> None:
    first = tokens(engine, 600, 1)
    engine.eval_prompt(first)
    size = len(engine._sequence.trail.checkpoints[0].state)
    share = 9 * size  # four for the sequence in the engine
    engine.keep_prefixes(share)
    engine.eval_prompt(tokens(engine, 700, 2))
    for seed in (3, 4, 5):
        engine.eval_prompt([*list(engine._sequence._tokens)[:640], *tokens(engine, 60, seed)])
        places = engine._sequence.trail.places
        assert 2 <= len(places) <= 4 and places[-1] == 700
        assert engine.prefixes[1] <= share
    engine.keep_prefixes(size)
    engine.eval_prompt(tokens(engine, 700, 6))
    assert engine.prefixes == (0, 0)


def test_where_the_experts_need_the_memory_there_is_no_checkpoint(
    engine: edgemoe.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokens(engine, 200, 1)
    found = rows(engine, first)

    def refuse(n_bytes: int, what: str) -> Any:
        raise BudgetError(f"no room for {n_bytes} bytes of {what}")

    assert engine._sequence.prefixes
    monkeypatch.setattr(engine._sequence.prefixes._room, "hold", refuse)
    assert rows(engine, tokens(engine, 100, 2)) and not engine._sequence.trail.places
    assert rows(engine, first) == found and engine._sequence.n_kept == 0


def test_a_checkpoint_that_is_none_is_refused(engine: edgemoe.Engine) -> None:
    backend = engine._sequence.backend
    assert backend.checkpoint_bytes() == 0
    prompt = tokens(engine, 50, 1)
    engine._sequence.become(prompt)
    checkpoint = backend.checkpoint(backend.checkpoint_bytes())
    whole = backend.state(backend.state_bytes())
    changed = bytearray(checkpoint)
    changed[-1] ^= 1
    for wrong in (bytearray(b"x"), checkpoint[:-1], changed, whole):
        with pytest.raises((UsageError, NativeError)):
            backend.set_checkpoint(wrong)
        assert backend.n_past == 50
    with pytest.raises((UsageError, NativeError)):
        backend.set_state(checkpoint)
    engine.reset()
    engine.eval(prompt[:20])
    with pytest.raises((UsageError, NativeError)):
        backend.set_checkpoint(checkpoint)  # the sequence is shorter
    assert backend.n_past == 20


@pytest.mark.parametrize("arch", ["gpt-oss", "deepseek4"])
def test_a_sliding_window_goes_on_from_a_checkpoint(tmp_path: Path, arch: str) -> None:
    """Its cells lie elsewhere then, so that several threads divide them otherwise: one thread sums up the same."""
    with edgemoe.load(architectures.write(tmp_path / "m.gguf", arch), **{**SETUP, "threads": 1}) as engine:
        engine.keep_prefixes(SHARE)
        first = tokens(engine, 900, 1)
        changed = first[:500] + tokens(engine, 20, 2)
        engine.eval_prompt(first)
        found = rows(engine, changed)
        assert engine._sequence.n_kept == 448
        assert rows(engine, changed, anew=True) == found


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [(0, 10, [10]), (0, 32, [32]), (0, 33, [32, 33]), (0, 300, [64, 128, 192, 256, 288, 300]), (7, 50, [39, 50])],
)
def test_where_a_prompt_pauses(begin: int, end: int, expected: list[int]) -> None:
    assert list(checkpoints.stops(begin, end, N_BATCH)) == expected


def test_what_does_not_fit_is_thinned_evenly() -> None:
    all_of_them = tuple(checkpoints.Checkpoint(n, bytearray(10)) for n in (100, 200, 300, 310, 400))
    kept = [tuple(one.n for one in checkpoints.thinned(all_of_them, n_bytes)) for n_bytes in (50, 49, 30, 10, 9)]
    assert kept == [(100, 200, 300, 310, 400), (100, 200, 300, 400), (200, 300, 400), (400,), ()]
