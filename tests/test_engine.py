"""The Python API over a tiny model with random weights: what a program can ask of an engine, and what it is told."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tinymoe
from gguf_edit import STRING, Parts, edited

import edgemoe
from edgemoe import (
    BudgetError,
    Cancelled,
    ContextFullError,
    Engine,
    FormatError,
    Sampling,
    StorageError,
    UnsupportedError,
    UsageError,
    _abi,
)
from edgemoe.units import MIB

GREEDY = Sampling(temp=0)
TEXT = "the theme in the interior and the other thing there"


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
def engine(path: Path) -> Iterator[Engine]:
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=2, n_outputs=16) as found:
        yield found


@pytest.fixture(autouse=True)
def empty(engine: Engine) -> None:
    engine.reset()


def test_a_model_says_what_it_is(path: Path) -> None:
    with edgemoe.open_model(path) as model:
        info = model.info
        assert (info.architecture, info.n_moe_layer, info.n_expert, info.n_expert_used) == ("qwen3moe", 4, 16, 4)
        assert info.n_expert_total == 64 and info.file_bytes == path.stat().st_size
        assert [layer.layer for layer in model.layers] == [0, 1, 2, 3]
        assert model.layers[0].n_matrix == 3 and 4 < model.layers[0].bits_per_weight < 5
        assert model.meta("general.architecture") == "qwen3moe"
        assert model.meta("nonsense") is None
        assert model.chat_template is not None and "im_start" in model.chat_template
        assert model.main_type.upper() == "Q4_K" and model.block_bytes == 256 * 256 * 144 // 256
    assert model.info is info
    with pytest.raises(UsageError, match="closed"):
        model.meta("general.name")


def test_a_plan_refuses_before_loading_and_its_smallest_budget_works(path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        edgemoe.plan(path, memory="1M", ctx=256, measure=False)
    smallest = caught.value.smallest
    assert f"--memory {smallest // MIB}MiB" in caught.value.hint
    assert edgemoe.plan(path, memory=smallest + 4 * MIB, ctx=256, measure=False).n_ctx == 256
    with edgemoe.load(path, memory=smallest + 4 * MIB, ctx=256) as small:
        assert "".join(small.generate(TEXT, max_tokens=4, sampling=GREEDY))


def test_a_plan_predicts_from_what_it_measures(path: Path) -> None:
    found = edgemoe.plan(path, memory="2GiB", ctx=256)
    assert found.prediction is not None and 0 < found.prediction.low <= found.prediction.high
    assert found.fraction == 1 and found.prediction.reason.startswith("compute")


def test_what_auto_gives_keeps_every_expert_while_the_chat_template_loads(path: Path, tmp_path: Path) -> None:
    def ask_for_a_process(parts: Parts) -> None:  # as templates do that are more than ChatML
        key = "tokenizer.chat_template"
        parts.set(key, STRING, f"{parts.keys[key][1]}{{# of its own #}}")

    path = edited(path, tmp_path / "own.gguf", ask_for_a_process)
    program = (
        "import edgemoe, sys\n"
        "from edgemoe.runtime.text import template\n"
        "with edgemoe.load(sys.argv[1], ctx=256, threads=2) as engine:\n"
        "    assert engine.plan.budget_bytes == engine.plan.resident_bytes\n"
        "    for question in ('hello', 'hello ' * 20):\n"
        "        list(engine.chat([{'role': 'user', 'content': question}], max_tokens=8))\n"
        "    stats = engine.stats()\n"
        "    assert template.resident_bytes() > 0\n"
        "    assert stats.n_slot == engine.model.info.n_expert_total, stats\n"
        "    assert stats.n_evict == 0, stats\n"
        "    assert engine.plan.fraction == 1\n"
    )
    for _ in range(2):  # with nothing measured yet, and with everything
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_row_of_logits_is_planned_for(path: Path) -> None:
    one, many = (edgemoe.plan(path, memory="2GiB", ctx=256, n_outputs=n, measure=False) for n in (1, 64))
    with edgemoe.open_model(path) as model:
        row = model.info.n_vocab * 4
    assert row <= one.output_bytes < 64 * row <= many.output_bytes


def test_how_experts_are_read_is_in_the_plan_and_in_the_counters(path: Path, engine: Engine) -> None:
    stats, found = engine.stats(), engine.plan
    assert (found.direct_io, found.reader) == (stats.direct_io, stats.reader)
    planned = edgemoe.plan(path, memory="2GiB", ctx=256, measure=False)
    assert (planned.direct_io, planned.reader) == (stats.direct_io, stats.reader)
    with edgemoe.load(path, memory="2GiB", ctx=256, buffered=True) as buffered:
        assert (buffered.plan.direct_io, buffered.plan.reader) == (False, "threads")
        assert (buffered.stats().direct_io, buffered.stats().reader) == (False, "threads")
    with edgemoe.load(path, memory="2GiB", ctx=256, page_cache=True) as kept:
        assert kept.plan.page_cache and kept.stats().page_cache and not kept.stats().direct_io
        assert "through the page cache, which keeps what it can" in "\n".join(kept.plan.lines())


def test_the_largest_batch_gives_back_what_it_borrowed(path: Path) -> None:
    with edgemoe.load(path, memory="2GiB", ctx=512, threads=2, n_ubatch=64) as found:
        whole = found.stats().cache_bytes
        assert found.plan.prefill_bytes > 0 and whole == found.model.info.slot_bytes
        found._sequence.backend.set_cache_bytes(found.plan.cache_min_bytes)
        small = found.stats().cache_bytes
        assert small < whole
        found.eval([65 + i % 50 for i in range(400)])
        assert found.stats().cache_bytes == small
        with pytest.raises(BudgetError):
            found._sequence.backend.set_cache_bytes(found.plan.cache_min_bytes - 1)


def test_the_same_seed_gives_the_same_text_and_pieces_are_whole(engine: Engine) -> None:
    hot = Sampling(temp=1.5, seed=7)
    first, again = ("".join(engine.generate(TEXT, max_tokens=24, sampling=hot)) for _ in range(2))
    other = "".join(engine.generate(TEXT, max_tokens=24, sampling=Sampling(temp=1.5, seed=8)))
    assert first == again != other


def test_an_answer_ends_for_a_reason(engine: Engine) -> None:
    text = "".join(engine.generate(TEXT, max_tokens=8, sampling=GREEDY))
    assert engine.finish_reason == "length" and text
    cut = "".join(engine.generate(TEXT, max_tokens=8, sampling=GREEDY, stop=[text[2:4]]))
    assert engine.finish_reason == "stop" and cut == text[: text.index(text[2:4])]
    list(engine.generate(engine.tokenize(TEXT * 20)[: engine.n_ctx - 3], sampling=GREEDY))
    assert engine.finish_reason == "length" and engine.n_past == engine.n_ctx


def test_text_and_tokens_are_two_views_of_the_same(engine: Engine) -> None:
    tokens = engine.tokenize("héllo €😀 the end", special=False)
    assert engine.detokenize(tokens) == "héllo €😀 the end"
    ending = engine.tokenize("<|im_end|>")
    assert len(ending) == 1 < len(engine.tokenize("<|im_end|>", special=False))
    assert engine.detokenize(ending, special=True) == "<|im_end|>"
    assert engine.detokenize(ending) == ""
    engine.tokenize("lone \ud800 surrogate")


def test_chat_goes_through_the_models_template(engine: Engine) -> None:
    messages = [{"role": "user", "content": "hello"}]
    tokens = engine.chat_tokens(messages)
    assert engine.detokenize(tokens, special=True) == ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    answer = "".join(engine.chat(messages, max_tokens=6, sampling=GREEDY))
    assert answer == "".join(engine.generate(tokens, max_tokens=6, sampling=GREEDY))


def test_a_second_turn_computes_only_what_is_new(engine: Engine) -> None:
    tokens = engine.tokenize(TEXT)
    list(engine.generate(tokens, max_tokens=1, sampling=GREEDY))
    before = engine.stats()
    list(engine.generate([*tokens, *tokens], max_tokens=1, sampling=GREEDY))
    assert engine.stats().since(before).n_prefill == len(tokens)
    before = engine.stats()
    list(engine.generate([*tokens, *tokens], max_tokens=1, sampling=GREEDY))
    assert engine.stats().since(before).n_decode == 1  # the last token again, for its logits


def test_logits_are_those_of_the_whole_sequence(engine: Engine) -> None:
    tokens = engine.tokenize(TEXT)[:9]
    logits = engine.logits(tokens)
    assert logits.shape == (engine.n_vocab,) and logits.dtype == "float32"
    engine.reset()
    engine.eval(tokens)
    assert engine.row().tobytes() == logits.tobytes()
    engine.reset()
    engine.eval(tokens, want_all=True)
    rows = [engine.row(i) for i in range(len(tokens))]
    assert rows[-1] == engine.row(8) and rows[0] != rows[1]
    with pytest.raises(UsageError):
        engine.row(9)
    assert engine.n_past == 9
    engine.rewind(4)
    assert engine.n_past == 4


def test_a_small_cache_streams_and_says_the_same(path: Path, engine: Engine) -> None:
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=2) as small:
        small._sequence.backend.set_cache_bytes(small.plan.cache_min_bytes)
        text = "".join(small.generate(TEXT, max_tokens=24, sampling=GREEDY))
        stats = small.stats()
        assert stats.n_miss > 0 and stats.n_evict > 0 and stats.read_bytes > 0
        assert sum(small.resident()) == stats.n_slot_used <= stats.n_slot
    assert text == "".join(engine.generate(TEXT, max_tokens=24, sampling=GREEDY))


def test_the_budget_can_change_during_an_answer(path: Path, engine: Engine) -> None:
    expected = "".join(engine.generate(TEXT, max_tokens=32, sampling=GREEDY))
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=2) as moving:
        smallest = moving.plan.fixed_bytes + moving.plan.cache_min_bytes + 12 * MIB
        pieces = moving.generate(TEXT, max_tokens=32, sampling=GREEDY)
        text = next(pieces)
        worker = threading.Thread(target=moving.set_budget, args=(smallest,))
        worker.start()
        worker.join()
        text += next(pieces)
        assert moving.stats().cache_bytes < moving.model.info.slot_bytes
        assert moving.stats().budget_bytes == moving.plan.budget_bytes == smallest
        with pytest.raises(BudgetError) as caught:
            moving.set_budget("1MiB")
        assert caught.value.smallest > MIB
        moving.set_budget("auto")
        text += "".join(pieces)
        assert moving.stats().cache_bytes == moving.model.info.slot_bytes
    assert text == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "lots"}, "is not a size"),
        ({"memory": "0"}, "holds nothing"),
        ({"memory": 1 << 59}, ""),
        ({"ctx": 0}, "context of 0 tokens"),
        ({"threads": 0}, "0 threads"),
        ({"threads": 100_000}, "100000 threads"),
        ({"n_ubatch": 0}, "batch of 0"),
        ({"n_outputs": 0}, "logits of 0"),
        ({"n_outputs": 1 << 33}, "logits of 8589934592"),
        ({"policy": "fifo"}, "`fifo`"),
        ({"reader": "carrier pigeon"}, "`carrier pigeon`"),
        ({"kv_type": "q2_k"}, "`q2_k`"),
        ({"read_lanes": -1}, "-1 reads"),
        ({"read_limit": "fast"}, "`fast`"),
        ({"reader": "uring", "buffered": True}, "io_uring reads neither"),
        ({"reader": "uring", "read_limit": "4M"}, "io_uring reads neither"),
    ],
)
def test_absurd_arguments_are_refused_in_words(path: Path, arguments: dict[str, object], message: str) -> None:
    if not message:  # more than the machine has, but the model cannot use it: harmless
        edgemoe.load(path, **arguments).close()  # type: ignore[arg-type]
        return
    with pytest.raises(UsageError, match=message) as caught:
        edgemoe.load(path, **arguments)  # type: ignore[arg-type]
    assert caught.value.hint


def test_prompts_that_cannot_be_answered_are_refused_at_once(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.generate([])
    with pytest.raises(UsageError, match=r"has 300 tokens, the context holds 256") as caught:
        engine.generate([65] * 300)
    assert "--ctx" in caught.value.hint
    with pytest.raises(UsageError, match="token 100000 is not in the vocabulary"):
        engine.generate([100_000])
    with pytest.raises(UsageError, match="token -1"):
        engine.eval([-1])
    with pytest.raises(UsageError, match="0 tokens"):
        engine.generate(TEXT, max_tokens=0)
    with pytest.raises(UsageError):
        engine.chat([])
    with pytest.raises(UsageError):
        engine.eval([])
    with pytest.raises(UsageError):
        engine.eval([65] * 17, want_all=True)
    engine.eval([65] * 250)
    with pytest.raises(ContextFullError):
        engine.eval([65] * 7)
    assert engine.n_past == 250


def test_cancelling_from_another_thread_ends_a_prefill(path: Path) -> None:
    with edgemoe.load(path, memory="2GiB", ctx=2048, read_limit="4M") as slow:
        timer = threading.Timer(0.3, slow.cancel)
        timer.start()
        begin = time.monotonic()
        with pytest.raises(Cancelled):
            slow.eval([65 + i % 50 for i in range(1500)])
        assert time.monotonic() - begin < 30
        assert slow.n_past == 0
        timer.join()
        pieces = slow.generate(TEXT, max_tokens=8, sampling=GREEDY)
        next(pieces)
        slow.cancel()
        with pytest.raises(Cancelled):
            list(pieces)


@contextlib.contextmanager
def interrupted(handler: Callable[..., object]) -> Iterator[None]:
    """Ctrl-C in a moment, which calls the handler."""
    old = signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, old)


def test_a_signal_handler_runs_during_a_prefill(path: Path) -> None:
    with (
        edgemoe.load(path, memory="2GiB", ctx=2048, read_limit="4M") as slow,
        interrupted(lambda *_: slow.cancel()),
        pytest.raises(Cancelled),
    ):
        slow.eval([65 + i % 50 for i in range(1500)])


def test_an_interrupt_leaves_the_engine_usable(path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with edgemoe.load(path, memory="2GiB", ctx=2048, read_limit="4M") as slow:
        with interrupted(interrupt), pytest.raises(KeyboardInterrupt):
            slow.eval([65 + i % 50 for i in range(1500)])
        assert slow.n_past == 0
        slow.eval([65])


def test_one_thread_at_a_time_and_one_answer_at_a_time(path: Path, engine: Engine) -> None:
    first = engine.generate(TEXT, max_tokens=8, sampling=GREEDY)
    next(first)
    list(engine.generate("another", max_tokens=2, sampling=GREEDY))
    with pytest.raises(UsageError, match="in the middle of this answer"):
        list(first)
    with edgemoe.load(path, memory="2GiB", ctx=2048, read_limit="4M") as slow:

        def compute() -> None:
            with pytest.raises(Cancelled):
                slow.eval([65 + i % 50 for i in range(1500)])

        worker = threading.Thread(target=compute)
        worker.start()
        time.sleep(0.2)
        with pytest.raises(UsageError, match="busy"):
            slow.eval([65])
        slow.stats()
        slow.cancel()
        worker.join()


def test_after_a_failed_read_the_engine_goes_on(path: Path, engine: Engine) -> None:
    expected = "".join(engine.generate(TEXT, max_tokens=8, sampling=GREEDY))
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=2) as shaky:
        shaky.inject_fault(_abi.FAULT_FAIL, 3)
        with pytest.raises(StorageError):
            list(shaky.generate(TEXT, max_tokens=8, sampling=GREEDY))
        assert "".join(shaky.generate(TEXT, max_tokens=8, sampling=GREEDY)) == expected


def test_a_closed_engine_says_so(path: Path) -> None:
    found = edgemoe.load(path, memory="2GiB", ctx=256)
    pieces = found.generate(TEXT, max_tokens=4)
    found.close()
    found.close()
    found.cancel()
    for call in (
        lambda: next(pieces),
        lambda: found.eval([65]),
        found.stats,
        found.resident,
        lambda: found.tokenize("x"),
    ):
        with pytest.raises(UsageError, match="closed"):
            call()
    with pytest.raises(UsageError, match="closed"):
        found.set_budget("1GiB")


def test_files_that_are_no_model_are_one_clear_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        edgemoe.load(tmp_path / "absent.gguf")
    with pytest.raises(UsageError, match="is a folder") as folder:
        edgemoe.load(path.parent)
    assert str(path) in folder.value.hint
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"not a model" * 1000)
    with pytest.raises(FormatError) as caught:
        edgemoe.open_model(noise)
    assert caught.value.hint
    whole = path.read_bytes()
    for n_bytes in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        noise.write_bytes(whole[:n_bytes])
        with pytest.raises(FormatError):
            edgemoe.open_model(noise)
    dense = tinymoe.write(tmp_path / "dense.gguf", "llama-dense")
    with pytest.raises(UnsupportedError) as refused:
        edgemoe.open_model(dense)
    assert "llama.cpp" in refused.value.hint
