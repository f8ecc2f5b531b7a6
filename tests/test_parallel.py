"""Several answers at once: each is to the byte what it is alone, whoever else is answered, cancelled or fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tinymoe
from atonce import together

import edgemoe
from edgemoe import Cancelled, Engine, Sampling, StorageError, UnsupportedError, UsageError, _abi
from edgemoe.runtime.engine.passes import Passes
from edgemoe.runtime.gguf.backend import NativeBackend

N = 4
PROMPTS = ("the other", "a", "the theme in the interior and " * 4, "then an inner area there " * 2)
SAMPLINGS = (Sampling(temp=0), Sampling(seed=5), Sampling(temp=0.7, top_k=9, seed=9), Sampling(repeat_penalty=1.3))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def get(arch: str) -> Path:
        path = folder / f"{arch}.gguf"
        return path if path.exists() else tinymoe.write(path, arch, n_layer=4)

    return get


def opened(path: Path, **asked: Any) -> Engine:
    return edgemoe.load(path, **{"memory": "2GiB", "ctx": 512, "threads": 1, "n_ubatch": 16, **asked})


def answer(engine: Engine, i: int, n: int = 30) -> list[tuple[int, bytes, float | None]]:
    """Tokens, bytes and log-probabilities of answer i. A prompt of which a part is there has other batches."""
    prompt = engine.tokenize(PROMPTS[i])
    steps = engine.steps(prompt, max_tokens=n + 3 * i, sampling=SAMPLINGS[i], n_top=0, anew=True)
    return [(step.token, step.piece, step.logprob) for step in steps]


@pytest.fixture(scope="module")
def alone(tiny: Callable[[str], Path]) -> list[Any]:
    with opened(tiny("qwen3moe")) as engine:
        return [answer(engine, i) for i in range(N)]


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "granitemoe"])  # all: tests/exact/test_step.py
def test_answers_at_once_are_what_they_are_alone(tiny: Callable[[str], Path], arch: str) -> None:
    with opened(tiny(arch)) as engine:
        reference = [answer(engine, i) for i in range(N)]
    with opened(tiny(arch), parallel=N) as engine:
        assert len(engine.seats) == N and engine.seats[0] is engine
        for order in ((0, 1, 2, 3), (3, 1, 0), (2, 0)):
            found = together([partial(answer, engine.seats[k], i) for k, i in enumerate(order)])
            assert found == [reference[i] for i in order]


@pytest.mark.slow
def test_trained_weights(smolmoe: Path) -> None:
    """With two threads, whose division of long attention shows."""
    texts = ["The river", "Once upon a time " * 130, "def add(a, b):", "Why is the sky blue? " * 40]
    asked = {"memory": "2GiB", "ctx": 1024, "threads": 2, "n_ubatch": 256}

    def said(engine: Engine, i: int) -> str:
        steps = engine.steps(engine.tokenize(texts[i]), max_tokens=10, sampling=Sampling(seed=i), anew=True)
        return "".join(step.text for step in steps)

    with opened(smolmoe, **asked) as engine:
        reference = [said(engine, i) for i in range(N)]
    with opened(smolmoe, **asked, parallel=N) as engine:
        assert together([partial(said, engine.seats[i], i) for i in range(N)]) == reference


class Recorder(NativeBackend):
    """Writes down what is computed; `fails` is called before it is."""

    def __init__(self, backend: NativeBackend) -> None:
        super().__init__(backend.engine, backend._compare)
        self.log: list[tuple[int, ...]] = []  # (n_tokens, sequence) of decodes, (-1, sequences...) of passes
        self.selected = 0
        self.fails: Callable[[tuple[int, ...]], None] = lambda what: None
        self.n_waiting: Callable[[], int] = lambda: 0  # prompts that are being computed

    def _note(self, *what: int) -> None:
        self.log.append(what)
        self.fails(what)

    def select(self, sequence: int) -> None:
        self.selected = sequence
        super().select(sequence)

    def decode(self, tokens: Sequence[int], *, want_all: bool) -> None:
        self._note(len(tokens), self.selected)
        super().decode(tokens, want_all=want_all)

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        self._note(-1, *sequences)
        super().step(sequences, tokens)


@pytest.fixture
def recorded(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, Recorder]]:
    made: list[Recorder] = []
    init = Passes.__init__

    def recording(self: Passes, backend: Any, *rest: Any) -> None:
        made.append(Recorder(backend))
        made[0].n_waiting = lambda: len(self._prompts)
        init(self, made[0], *rest)

    monkeypatch.setattr(Passes, "__init__", recording)
    with opened(tiny("qwen3moe"), parallel=N) as engine:
        yield engine, made[0]


def test_a_long_prompt_delays_others_by_one_batch_a_token(recorded: tuple[Engine, Recorder], alone: list[Any]) -> None:
    engine, recorder = recorded
    begun = threading.Event()
    prompt = engine.tokenize("the theme in the interior and " * 12)
    assert len(prompt) > 8 * 16

    def wait_for_both(what: tuple[int, ...]) -> None:
        """The first batch of one newcomer is computed when the other has asked, too."""
        end = time.monotonic() + 30
        while what[0] > 1 and what[1] > 0 and recorder.n_waiting() < 2 and time.monotonic() < end:
            time.sleep(0.001)
        recorder.fails = (lambda what: None) if what[0] > 1 and what[1] > 0 else wait_for_both

    recorder.fails = wait_for_both

    def first() -> Any:
        tokens = []
        text = engine.tokenize(PROMPTS[1])
        for step in engine.steps(text, max_tokens=40, sampling=SAMPLINGS[1], n_top=0, anew=True):
            tokens.append((step.token, step.piece, step.logprob))
            if len(tokens) == 5:
                begun.set()
        return tokens

    def newcomer(seat: int) -> Any:
        begun.wait()
        return list(engine.seats[seat].generate(prompt, max_tokens=2))

    found = together([first, lambda: newcomer(1), lambda: newcomer(2)])
    assert found[0][:33] == alone[1] and found[1] == found[2]
    pieces = [what for what in recorder.log if what[0] > 1 and what[1] in (1, 2)]
    assert len(pieces) >= 2 * 8 and max(n for n, _ in pieces) == 16
    # Newcomers take turns...
    order = [seat for _, seat in pieces]
    assert all(a != b for a, b in zip(order[:12], order[1:12], strict=False))
    # ...and between two of their batches the answer that runs gets its token.
    where = [k for k, what in enumerate(recorder.log) if what in pieces]
    running = [k for k, what in enumerate(recorder.log) if what == (1, 0) or (what[0] == -1 and 0 in what[1:])]
    assert all(any(a < k < b for k in running) for a, b in zip(where[:12], where[1:13], strict=True))


def test_a_second_client_waits_for_one_batch_of_the_first(recorded: tuple[Engine, Recorder]) -> None:
    engine, recorder = recorded
    begun, answered = threading.Event(), threading.Event()
    at_first_token = []

    def note(what: tuple[int, ...]) -> None:
        if recorder.log.count((16, 0)) == 3:
            begun.set()
            answered.wait(0.2)  # time to ask in the middle of a batch

    def second() -> None:
        begun.wait()
        for _step in engine.seats[1].steps(engine.tokenize("a theme in there"), max_tokens=1):
            at_first_token.append(list(recorder.log))
        answered.set()

    recorder.fails = note
    found = together([lambda: list(engine.generate("the theme in the interior and " * 14, max_tokens=2)), second])
    assert found[0] and found[1] is None
    (log,) = at_first_token
    assert log.count((16, 0)) <= 3 + 1  # of the batch under way, and the one that may have been next


def test_passes_hold_all_that_run(
    recorded: tuple[Engine, Recorder], alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, recorder = recorded
    monkeypatch.setattr("edgemoe.runtime.engine.passes._LEAST_PATIENCE_S", 0.5)  # busy machines are slow to bring them
    assert together([partial(answer, engine.seats[i], i) for i in range(N)]) == alone
    assert recorder.log.count((-1, 0, 1, 2, 3)) >= 15
    assert engine.stats().n_decode >= sum(len(one) for one in alone) - N


def test_a_cancelled_answer_leaves_the_others_and_its_seat(recorded: tuple[Engine, Recorder], alone: list[Any]) -> None:
    engine, _ = recorded
    seat = engine.seats[2]

    def cancelled() -> Any:
        for n, _step in enumerate(seat.steps(seat.tokenize(PROMPTS[2]), max_tokens=36, sampling=SAMPLINGS[2])):
            if n == 5:
                seat.cancel()

    jobs: list[Callable[[], Any]] = [partial(answer, engine.seats[i], i) for i in range(N)]
    jobs[2] = cancelled
    found = together(jobs)
    assert isinstance(found[2], Cancelled)
    assert [found[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    assert answer(seat, 2) == alone[2]


def test_a_prompt_is_cancelled_between_two_of_its_batches(recorded: tuple[Engine, Recorder], alone: list[Any]) -> None:
    engine, recorder = recorded
    seat = engine.seats[1]

    def stop(what: tuple[int, ...]) -> None:
        if what == (16, 1) and len([one for one in recorder.log if one == what]) == 3:
            threading.Thread(target=seat.cancel).start()

    recorder.fails = stop
    found = together(
        [lambda: answer(engine, 0), lambda: list(seat.generate("the theme in the interior and " * 14, max_tokens=2))]
    )
    assert found[0] == alone[0] and isinstance(found[1], Cancelled)
    assert seat.n_past == 0
    recorder.fails = lambda what: None
    assert answer(seat, 1) == alone[1]


def test_a_failure_is_told_to_whom_it_happened(recorded: tuple[Engine, Recorder], alone: list[Any]) -> None:
    engine, recorder = recorded
    n_pass = 0

    def fail(what: tuple[int, ...]) -> None:
        nonlocal n_pass
        n_pass += what[0] == -1 and 3 in what  # on a busy machine others begin before the fourth
        if (what[0] == -1 and n_pass == 5) or what == (1, 3):
            raise StorageError("a part of the file cannot be read")

    recorder.fails = fail
    found = together([partial(answer, engine.seats[i], i) for i in range(N)])
    assert found[:3] == alone[:3]
    assert isinstance(found[3], StorageError)
    recorder.fails = lambda what: None
    assert answer(engine.seats[3], 3) == alone[3]


def test_a_sequence_that_a_failed_pass_has_lost_is_not_gone_on_with(
    recorded: tuple[Engine, Recorder], alone: list[Any]
) -> None:
    engine, recorder = recorded

    def lose(what: tuple[int, ...]) -> None:
        if what == (-1, 0, 1, 2, 3):
            recorder.fails = lambda what: None
            recorder.select(2)
            recorder.rewind(0)
            raise edgemoe.EdgeMoEError("a state was not taken back")

    recorder.fails = lose
    found = together([partial(answer, engine.seats[i], i) for i in range(N)])
    assert [found[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    assert isinstance(found[2], edgemoe.EdgeMoEError) and engine.seats[2].n_past == 0
    assert answer(engine.seats[2], 2) == alone[2]


def test_a_read_that_fails_once_in_a_pass_fails_nobody(tiny: Callable[[str], Path], alone: list[Any]) -> None:
    with opened(tiny("qwen3moe"), parallel=N, prefetch="off") as engine:
        for seat in engine.seats:
            seat.eval_prompt(seat.tokenize("the"))  # what is read first is not read in a pass
        engine.inject_fault(_abi.FAULT_FAIL, 30)
        found = together([partial(answer, engine.seats[i], i) for i in range(N)])
    # A prompt's own batch may be what failed; a pass is computed again, one by one.
    assert sum(one == other for one, other in zip(found, alone, strict=True)) >= N - 1
    assert all(one in alone or isinstance(one, StorageError) for one in found)


def test_a_conversation_goes_on_wherever_it_sits(recorded: tuple[Engine, Recorder]) -> None:
    engine, _ = recorded
    first = engine.tokenize("the theme in the interior and " * 6)
    begun = "".join(engine.generate(first, max_tokens=8, sampling=SAMPLINGS[0]))
    other = engine.seats[2]
    longer = [*first, *engine.tokens(begun + " then", add_special=False, parse_special=False)]
    want = list(engine.seats[3].steps(longer, max_tokens=5, sampling=SAMPLINGS[0]))  # trades the sequence away
    assert engine.seats[3].n_reused >= len(first)
    assert [one.token for one in other.steps(longer, max_tokens=5, sampling=SAMPLINGS[0])] == [
        one.token for one in want
    ]
    assert other.n_reused >= len(longer) - 1
    assert engine.n_past < len(first)


def test_an_answer_that_runs_is_not_traded_away(recorded: tuple[Engine, Recorder]) -> None:
    engine, _ = recorded
    first = engine.tokenize("the theme in the interior and " * 6)
    left = engine.steps(first, max_tokens=20, sampling=SAMPLINGS[0])
    next(left)
    running = engine.steps(first, max_tokens=20, sampling=SAMPLINGS[0])
    begun = [next(running)]
    del left  # an older answer of the same seat ends only now
    other = list(engine.seats[1].steps([*first, 5], max_tokens=2, sampling=SAMPLINGS[0]))
    assert other and engine.seats[1].n_reused == 0
    assert len([*begun, *running]) >= 20 and engine.n_past >= len(first) + 19


def test_states_are_kept_for_all_seats(recorded: tuple[Engine, Recorder]) -> None:
    engine, _ = recorded
    engine.keep_prefixes(1 << 24)
    first = engine.tokenize("the theme in the interior and " * 6)
    want = "".join(engine.generate(first, max_tokens=6, sampling=SAMPLINGS[0]))
    for seat in engine.seats:  # others take every place
        "".join(seat.generate("an inner area there then " * 9, max_tokens=2))
        "".join(seat.generate("another one here and there " * 9, max_tokens=2))
    assert engine.prefixes[0] >= 1
    assert "".join(engine.seats[1].generate(first, max_tokens=6, sampling=SAMPLINGS[0])) == want
    assert engine.seats[1].n_reused == len(first) - 1


def test_closing_ends_every_answer(tiny: Callable[[str], Path]) -> None:
    engine = opened(tiny("qwen3moe"), parallel=2)
    running = threading.Barrier(3)

    def endless(seat: Engine) -> Any:
        for n, _step in enumerate(seat.steps(seat.tokenize("the"), sampling=Sampling(temp=0, ignore_eos=True))):
            if n == 3:
                running.wait()

    def close() -> None:
        running.wait()
        engine.close()

    found = together([lambda: endless(engine.seats[0]), lambda: endless(engine.seats[1]), close])
    assert all(isinstance(one, Cancelled | UsageError) for one in found[:2]) and found[2] is None
    with pytest.raises(UsageError, match="closed"):
        engine.seats[1].tokenize("the")


@pytest.mark.parametrize(
    ("arch", "words"), [("lfm2moe", "recurrent state"), ("gpt-oss", "sliding window")]
)  # fmt: skip
def test_what_cannot_be_computed_together_is_refused(tiny: Callable[[str], Path], arch: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=f"several at once: .*{words}"):
        edgemoe.plan(tiny(arch), memory="2GiB", ctx=256, parallel=2, measure=False)
    with pytest.raises(UnsupportedError, match=words):
        opened(tiny(arch), parallel=2)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"parallel": 0}, "0 answers at once"),
        ({"parallel": 8}, "8 answers at once"),
        ({"parallel": 2, "draft": "auto"}, "do not go together"),
        ({"parallel": 4, "n_ubatch": 2}, "batches of as many"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        edgemoe.Setup(**asked)


def test_a_plan_has_room_for_every_context(tiny: Callable[[str], Path]) -> None:
    one, four = (edgemoe.plan(tiny("qwen3moe"), memory="2GiB", ctx=256, parallel=n, measure=False) for n in (1, 4))
    assert four.n_ctx == one.n_ctx == 256
    assert four.kv_bytes == pytest.approx(4 * one.kv_bytes, rel=0.05)
    assert four.output_bytes > one.output_bytes
