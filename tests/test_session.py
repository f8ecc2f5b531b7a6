"""The session of edgemoe.h: what an app without Python gets is what Python gets."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinymoe
from csession import CSession, TooSmall, answer_params, make_plan, message_array

import edgemoe
from edgemoe import Cancelled, ContextFullError, FormatError, Sampling, UnsupportedError, UsageError, _native
from edgemoe import _abi as abi
from edgemoe.bench.limit import LimitUnavailable, memory_limit
from edgemoe.units import MIB

TALK = [("system", "you are the other thing"), ("user", "what is in the interior?")]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
BUDGET = 700 * MIB  # of a process that has pytest in it: every tiny expert fits


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache folder for both sides."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymoe.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "qwen3moe", n_layer=4, n_expert=16, n_used=4)


@pytest.fixture(scope="module")
def opened(path: Path, cache: Path) -> Iterator[CSession]:
    with CSession(path, cache, memory=BUDGET, n_ctx=512, n_threads=1) as session:
        yield session


@pytest.fixture
def session(opened: CSession) -> CSession:
    opened.set_budget(BUDGET)
    return opened


def ask(session: CSession, talk: list[tuple[str, str]]) -> None:
    """Makes the prompt known: from then on only its last token is computed, so that each answer is rounded alike."""
    list(session.chat(talk, answer_params(1)))


@pytest.fixture(scope="module")
def engine(path: Path, cache: Path) -> Iterator[edgemoe.Engine]:
    with edgemoe.load(path, memory=BUDGET, ctx=512, threads=1) as found:
        yield found


def needed(model: Path, cache: Path, **params: int) -> int:
    with pytest.raises(TooSmall) as error:
        make_plan(model, cache, memory=MIB, **params)
    return error.value.smallest


# ---------------------------------------------------------------- the same text


@pytest.mark.parametrize("sampler", [{}, {"temp": 0.9, "seed": 3}, {"temp": 1.2, "top_k": 0, "seed": 8}])
def test_a_conversation_has_pythons_tokens_and_text(
    session: CSession, engine: edgemoe.Engine, sampler: dict[str, float]
) -> None:
    list(session.prompt("~", answer_params(1)))  # neither side knows the prompt
    engine.reset()
    theirs = list(session.chat(TALK, answer_params(60, (), **sampler)))
    ours = list(engine.chat(MESSAGES, max_tokens=60, sampling=Sampling(**sampler)))  # type: ignore[arg-type]
    assert theirs == ours  # piece by piece
    n = len(engine.chat_tokens(MESSAGES))
    assert session.tokens[:n] == engine.chat_tokens(MESSAGES)
    assert len(session.tokens) == engine.n_past


def test_plain_text_goes_on_as_in_python(session: CSession, engine: edgemoe.Engine) -> None:
    text = "the theme in the interior" * 20  # several batches
    list(session.prompt("~", answer_params(1)))
    engine.reset()
    theirs = "".join(session.prompt(text, answer_params(40, ["zq", "\u20ac"])))
    assert theirs == "".join(engine.generate(text, max_tokens=40, stop=["zq", "\u20ac"]))


def test_overridden_metadata_is_heeded_as_in_python(path: Path, cache: Path) -> None:
    override = "qwen3moe.expert_used_count=int:1"
    texts = (ctypes.c_char_p * 1)(override.encode())
    setup = {"memory": BUDGET, "n_ctx": 512, "n_threads": 1}
    with CSession(path, cache, **setup, override_kv=texts, n_override_kv=1) as session:
        theirs = "".join(session.prompt("the theme in the interior", answer_params(20)))
    with edgemoe.load(path, memory=BUDGET, ctx=512, threads=1, override_kv=[override]) as engine:
        assert theirs == "".join(engine.generate("the theme in the interior", max_tokens=20))
    with CSession(path, cache, **setup) as session:
        assert theirs != "".join(session.prompt("the theme in the interior", answer_params(20)))


def test_a_trained_model_answers_as_in_python(smolmoe: Path, cache: Path) -> None:
    talk = [("system", "You are helpful."), ("user", "Name the planets.")]
    messages = [{"role": role, "content": text} for role, text in talk]
    with edgemoe.load(smolmoe, memory="2GiB", ctx=512, threads=1) as engine:
        ours = "".join(engine.chat(messages, max_tokens=32, sampling=Sampling(temp=0.7, seed=5)))
    with CSession(smolmoe, cache, memory=2048 * MIB, n_ctx=512, n_threads=1) as session:
        theirs = "".join(session.chat(talk, answer_params(32, temp=0.7, seed=5)))
    assert theirs == ours
    assert len(ours) > 20


def test_a_second_question_computes_only_what_is_new(session: CSession, engine: edgemoe.Engine) -> None:
    "".join(session.prompt("another theme", answer_params(1)))
    answer = "".join(session.chat(TALK, answer_params(20)))
    longer = [*TALK, ("assistant", answer), ("user", "and the other?")]
    before = session.stats.n_prefill
    again = "".join(session.chat(longer, answer_params(20)))
    assert session.stats.n_prefill - before < len(session.tokens) - 40
    # The same way there: what is computed in one batch is rounded as one.
    engine.reset()
    assert answer == "".join(engine.chat(MESSAGES, max_tokens=20))
    messages = [{"role": role, "content": text} for role, text in longer]
    assert again == "".join(engine.chat(messages, max_tokens=20))


def test_a_recurrent_model_begins_anew_and_says_the_same(tmp_path: Path, cache: Path) -> None:
    model = tinymoe.write(tmp_path / "recurrent.gguf", "lfm2moe")
    with CSession(model, cache, memory=BUDGET, n_ctx=256, n_threads=1) as session:
        first = "".join(session.prompt("the theme in the other", answer_params(10)))  # a recurrent one has no prefix
        "".join(session.prompt("the theme of another", answer_params(10)))
        assert "".join(session.prompt("the theme in the other", answer_params(10))) == first


# ---------------------------------------------------------------- how it ends


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(session: CSession) -> None:
    ask(session, TALK)
    whole = "".join(session.chat(TALK, answer_params(60)))
    assert session.finish == abi.FINISH_LENGTH
    stop = whole[20:23]
    cut = "".join(session.chat(TALK, answer_params(60, [stop])))
    assert cut == whole[: whole.index(stop)]
    assert session.finish == abi.FINISH_STOP
    assert list(session.rest()) == []  # it has ended


def test_the_answer_ends_where_the_context_does(path: Path, cache: Path) -> None:
    with CSession(path, cache, memory=BUDGET, n_ctx=256, n_threads=1) as session:
        text = "".join(session.chat(TALK, answer_params()))
        assert len(session.tokens) == 256 and text
        assert session.finish == abi.FINISH_LENGTH


def test_a_prompt_longer_than_the_context_is_refused(session: CSession) -> None:
    with pytest.raises(ContextFullError, match="the context holds 512"):
        session.prompt("x y " * 400, answer_params(5))


def test_cancel_ends_an_answer_and_the_next_is_whole(session: CSession) -> None:
    ask(session, TALK)
    whole = list(session.chat(TALK, answer_params(40)))
    pieces = []
    with pytest.raises(Cancelled):
        for piece in session.chat(TALK, answer_params(40)):
            pieces.append(piece)
            if len(pieces) == 3:
                session.cancel()
    assert pieces == whole[:3]
    assert session.finish == abi.FINISH_NONE
    assert list(session.rest()) == []
    assert list(session.chat(TALK, answer_params(40))) == whole


def test_a_prompt_under_way_can_be_cancelled_and_shares_the_session_with_nobody(smolmoe: Path, cache: Path) -> None:
    ended: list[BaseException] = []
    with CSession(smolmoe, cache, memory=2048 * MIB, n_ctx=4096, n_threads=1, n_ubatch=64) as session:

        def compute() -> None:
            try:
                session.prompt("The quick brown fox. " * 600, answer_params(1))
            except Cancelled as error:
                ended.append(error)

        thread = threading.Thread(target=compute)
        thread.start()
        try:
            while thread.is_alive() and session.stats.n_read == 0:
                pass
            with pytest.raises(UsageError, match="busy in another thread"):
                session.prompt("something else", answer_params(1))
        finally:
            session.cancel()
            thread.join()
        assert ended
        assert len(session.tokens) < 3000
        assert "".join(session.prompt("The capital of France is", answer_params(4)))


# ---------------------------------------------------------------- budget


def test_both_sides_measure_a_shape_once_and_keep_it_in_one_file(path: Path, tmp_path: Path) -> None:
    """There were two caretakers of the folder, each with a file of its own, which orphaned the other's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_CACHE", str(tmp_path))
        theirs = make_plan(path, tmp_path, memory=BUDGET, n_threads=2)
        (notes,) = (tmp_path / "shells").iterdir()
        written = (notes.stat().st_ino, notes.read_bytes())
        ours = edgemoe.plan(path, memory=BUDGET, threads=2, measure=False)
        assert (notes.stat().st_ino, notes.read_bytes()) == written  # Python asked for nothing anew
        for name in ("kv_bytes", "compute_bytes", "scratch_bytes", "prefill_bytes", "n_ctx", "n_ubatch", "dense_bytes"):
            assert getattr(theirs, name) == getattr(ours, name), name
        with edgemoe.load(path, memory=BUDGET, threads=2):
            pass
        assert list((tmp_path / "shells").iterdir()) == [notes]


def test_a_budget_too_small_is_refused_with_the_smallest(path: Path, cache: Path) -> None:
    process = 500 * MIB
    with pytest.raises(TooSmall) as refused:
        CSession(path, cache, memory=process, process_bytes=process, n_threads=1)
    smallest = refused.value.smallest
    assert re.search(rf"it needs {smallest // MIB} MiB \({smallest} bytes\)", str(refused.value))
    with CSession(path, cache, memory=smallest, process_bytes=process, n_threads=1) as session:
        assert session.plan.budget_bytes == smallest
        assert "".join(session.chat(TALK, answer_params(10)))


def test_the_budget_changes_in_the_middle_and_the_answer_does_not(smolmoe: Path, cache: Path) -> None:
    with CSession(smolmoe, cache, memory=2048 * MIB, n_ctx=512, n_threads=1) as session:
        talk = [("user", "Tell me about the sea.")]
        ask(session, talk)
        whole = list(session.chat(talk, answer_params(30)))
        roomy = session.plan
        with pytest.raises(edgemoe.BudgetError, match="is too small for"):
            session.set_budget(50 * MIB)
        assert session.plan.budget_bytes == roomy.budget_bytes
        pieces = []
        for piece in session.chat(talk, answer_params(30)):
            pieces.append(piece)
            if len(pieces) == 5:
                session.memory_warning(abi.MEMORY_LOW)
            if len(pieces) == 10:
                session.memory_warning(abi.MEMORY_CRITICAL)
            if len(pieces) == 15:
                low = session.stats
                assert low.n_slot_used <= session.plan.n_slot + 1
                assert session.plan.cache_bytes == roomy.slot_min_bytes + roomy.prefill_bytes
            if len(pieces) == 20:
                session.memory_warning(abi.MEMORY_NORMAL)
        assert pieces == whole
        assert session.stats.n_evict > 0
        assert session.plan.cache_bytes == roomy.cache_bytes
        with pytest.raises(UsageError, match="level 7"):
            session.memory_warning(7)


def test_more_than_the_machine_has_is_refused(tmp_path: Path, cache: Path) -> None:
    model = tinymoe.sparse_big(tmp_path / "big.gguf", 1 << 40)
    with pytest.raises(UsageError, match="more than this process may use"):
        make_plan(model, cache, memory=1 << 50)


LIMITED = """
import sys
from csession import make_plan
import edgemoe
path, cache, memory = sys.argv[1], sys.argv[2], int(sys.argv[3])
asked = {"c": lambda: make_plan(path, cache, memory=memory), "python": lambda: edgemoe.plan(path, memory=memory)}
for name, ask in asked.items():
    try:
        ask()
        print(name, "took it")
    except edgemoe.UsageError as error:
        print(name, error.message)
"""


def test_both_sides_know_the_limit_of_a_cgroup(smolmoe: Path, cache: Path) -> None:
    """Native code used to look at the machine's pages alone."""
    tests = Path(__file__).parent
    try:
        with memory_limit(220 * MIB, f"edgemoe-session-{time.monotonic_ns()}") as limit:
            done = subprocess.run(
                [sys.executable, "-c", LIMITED, str(smolmoe), str(cache), str(400 * MIB)],
                capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tests)}, preexec_fn=limit.joiner(),
            )  # fmt: skip
    except LimitUnavailable as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["c", "python"]
    for line in lines:
        assert "more than this process may use, 220 MiB" in line


# ---------------------------------------------------------------- templates


def without_template(tmp_path: Path, text: str = "") -> Path:
    """The tiny model, its chat template replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinymoe, "CHAT_TEMPLATE", text)
        return tinymoe.write(tmp_path / "other.gguf", "qwen3moe")


@pytest.mark.parametrize("text", ["", "{{ messages | tojson }} in a way of its own"])
def test_nothing_is_guessed_when_the_template_is_not_known(tmp_path: Path, cache: Path, text: str) -> None:
    model = without_template(tmp_path, text)
    with CSession(model, cache, memory=BUDGET, n_ctx=256, n_threads=1) as session:
        with pytest.raises(UnsupportedError, match='"chatml" can be asked for'):
            session.chat(TALK, answer_params(5))
        assert "".join(session.chat(TALK, answer_params(5), template="chatml"))


def render(template: str, messages: list[tuple[str, str]]) -> str:
    buffer, n, error = ctypes.create_string_buffer(4096), ctypes.c_uint64(), abi.Error()
    status = _native.library().emoe_chat_render(
        template.encode(), message_array(messages), len(messages), buffer, 4096, ctypes.byref(n), ctypes.byref(error)
    )
    _native.check(status, error)
    assert n.value == len(buffer.value)
    return buffer.value.decode()


def test_a_prompt_can_be_looked_at() -> None:
    assert render("chatml", [("user", "hi")]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render(tinymoe.CHAT_TEMPLATE, [("user", "hi")]) == render("chatml", [("user", "hi")])
    with pytest.raises(UsageError, match="no messages"):
        render("chatml", [])


# ---------------------------------------------------------------- files


def test_the_cache_folder_is_shared_with_python(path: Path, cache: Path, opened: CSession) -> None:
    notes = [file for file in (cache / "shells").glob("*.notes") if f"source {path}\n" in file.read_text()]
    assert notes
    with edgemoe.load(path, memory=BUDGET, ctx=512, threads=1):
        assert notes == [file for file in (cache / "shells").glob("*.notes") if f"source {path}\n" in file.read_text()]
    assert not [file for file in (cache / "shells").iterdir() if file.suffix != ".notes"]


def test_what_is_lost_from_the_cache_folder_is_made_anew(path: Path, tmp_path: Path) -> None:
    for content in (b"", b"edgemoe notes 1\nlibrary another\nctx 512 ubatch 32: 1 1 1 1 1 1 1 1 1\n", b"\xff" * 100):
        with CSession(path, tmp_path / "own", memory=BUDGET, n_threads=1) as session:
            (notes,) = (tmp_path / "own" / "shells").glob("*.notes")
            assert "".join(session.chat(TALK, answer_params(3)))
        assert notes.read_text().startswith("edgemoe notes 1\nsource /") and "\nlibrary ggml" in notes.read_text()
        notes.write_bytes(content)


def test_a_folder_or_file_that_is_none_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(edgemoe.StorageError, match="cannot make the cache folder"):
        CSession(path, tmp_path / "file", memory=BUDGET)
    with pytest.raises(edgemoe.StorageError):
        CSession(tmp_path / "absent.gguf", tmp_path, memory=BUDGET)
    (tmp_path / "text.gguf").write_text("this is no model" * 100)
    with pytest.raises(FormatError):
        CSession(tmp_path / "text.gguf", tmp_path, memory=BUDGET)
