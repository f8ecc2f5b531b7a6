"""Answers with drafts are the answers without, token for token and to the last bit of their probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import architectures
import pytest
import tinymoe

import edgemoe
from edgemoe import Engine, Sampling, UnsupportedError, UsageError
from edgemoe.runtime.engine import engine as engine_module
from edgemoe.runtime.engine.draft import Payoff

PROMPT = list(range(20, 50)) * 3  # what stands there once may come again


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return tinymoe.write(folder / "tiny.gguf", "qwen3moe", n_layer=4, n_expert=16, n_used=4)


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Engine]:
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=1, draft="off") as found:
        yield found


@pytest.fixture(scope="module")
def drafting(path: Path) -> Iterator[Engine]:
    """What is drafted shall not depend on how busy this machine is: a drafted token costs a tenth of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "COST_RESIDENT", 0.1)
        patch.setattr(Payoff, "computed", lambda *_: None)
        yield from opened(path)


def opened(path: Path) -> Iterator[Engine]:
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=1, draft="auto") as found:
        yield found


# Of two words or three: what came before comes again, now and then otherwise.
FEW = ((21, 100.0), (22, 100.0), (23, 99.0))
SAMPLINGS = {
    "greedy": Sampling(temp=0),
    "two words": Sampling(temp=0, logit_bias=FEW[:2]),
    "warm": Sampling(temp=0.5, seed=5, logit_bias=FEW),
    "hot": Sampling(temp=2.0, seed=5),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_steps_are_equal(plain: Engine, drafting: Engine, sampling: Sampling) -> None:
    before = drafting.stats()
    answers = []
    for engine in (plain, drafting):
        engine.reset()
        answers.append(list(engine.steps(PROMPT, max_tokens=120, sampling=sampling, n_top=2)))
    assert answers[0] == answers[1]
    assert len(answers[0]) > 20
    assert plain.n_past == drafting.n_past
    assert plain.stats().n_draft == 0
    done = drafting.stats().since(before)
    if sampling.logit_bias:
        assert 0 < done.n_draft_used < done.n_draft
    assert done.n_decode == len(answers[1]) - 1  # the first comes with the prompt


def test_every_way_out_leaves_the_same_sequence(plain: Engine, drafting: Engine) -> None:
    text = plain.detokenize([step.token for step in plain.steps(PROMPT, max_tokens=60, sampling=Sampling(temp=0))])
    for n in range(1, 30, 3):
        sequences = []
        for engine in (plain, drafting):
            engine.reset()
            steps = engine.steps(PROMPT, sampling=Sampling(temp=0))
            for _ in range(n):
                next(steps)
            steps.close()  # type: ignore[attr-defined]
            left = engine.n_past
            engine.reset()
            "".join(engine.generate(PROMPT, max_tokens=60, stop=[text[n : n + 3]], sampling=Sampling(temp=0)))
            sequences.append((left, engine.n_past, engine.finish_reason))
        assert sequences[0] == sequences[1]


def test_the_context_may_be_filled_to_its_end(plain: Engine, drafting: Engine) -> None:
    answers = []
    for engine in (plain, drafting):
        engine.reset()
        answers.append("".join(engine.generate(PROMPT * 2, sampling=Sampling(temp=0))))
        assert engine.finish_reason == "length"
        assert engine.n_past == engine.n_ctx
    assert answers[0] == answers[1]


def test_a_conversation_goes_on(plain: Engine, drafting: Engine) -> None:
    for engine in (plain, drafting):
        engine.reset()
    tokens = PROMPT[:40]
    for _ in range(4):
        parts = [[s.token for s in engine.steps(tokens, max_tokens=20)] for engine in (plain, drafting)]
        assert parts[0] == parts[1]
        assert plain.n_reused == drafting.n_reused
        tokens = [*tokens, *parts[0][:20], 21, 22, 23]


def test_a_model_that_cannot_verify_is_refused_only_when_asked(tmp_path: Path) -> None:
    path = tinymoe.write(tmp_path / "window.gguf", "gpt-oss")
    with pytest.raises(UnsupportedError, match="cannot verify drafts: it attends to a sliding window"):
        edgemoe.load(path, memory="2GiB", ctx=256, threads=1, draft=3)
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=1, draft="auto") as engine:
        assert len(list(engine.steps(PROMPT, max_tokens=30, sampling=Sampling(temp=0)))) > 0
        assert engine.stats().n_draft == 0


def test_a_model_that_turns_out_not_to_verify_goes_on_token_by_token(tmp_path: Path) -> None:
    """MiniMax M3 attends otherwise to several tokens than to one: that shows when the first draft is computed."""
    path = architectures.write(tmp_path / "m3.gguf", "minimax-m3")
    sampling = Sampling(temp=0, logit_bias=FEW[:2])
    answers = []
    for draft in ("off", "auto", 4):
        with edgemoe.load(path, memory="2GiB", ctx=256, threads=1, draft=draft) as engine:
            answers.append([list(engine.steps(PROMPT, max_tokens=40, sampling=sampling, n_top=1)) for _ in range(2)])
            assert engine.stats().n_draft == 0
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0][0]) == 40


@pytest.mark.parametrize("draft", [7, -1, "some", 1.5])
def test_absurd_drafts_are_refused(path: Path, draft: object) -> None:
    with pytest.raises(UsageError, match="a draft of"):
        edgemoe.load(path, memory="2GiB", draft=draft)


def test_a_pass_is_no_longer_than_a_batch(path: Path) -> None:
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=1, n_ubatch=2, draft="auto") as engine:
        assert len(list(engine.steps(PROMPT, max_tokens=30, sampling=Sampling(temp=0)))) > 0
