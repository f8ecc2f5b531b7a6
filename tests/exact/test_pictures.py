"""Logits behind pictures are stock libmtmd's and llama.cpp's, byte for byte, for each kind of encoder and cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import seeing
import tinyvision
from exact_engines import Streamed, streamed

from edgemoe import _native
from edgemoe.errors import FormatError, StorageError, UnsupportedError, UsageError

TOKENS = [40, 50, 60, 70, 80, 90]
FIRST, SECOND = tinyvision.png(112, 80), tinyvision.png(64, 128, seed=1)
PROMPT = ("Look at this: ", FIRST, " and then at this: ", SECOND, " What is it?")
# Gemma's rows see each other: a picture is one batch.
UBATCH = {"gemma4v": 256}

Model = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("seeing")
    made: dict[str, tuple[Path, Path]] = {}
    return lambda kind: made.setdefault(kind, made.get(kind) or seeing.model(folder, kind))


def small_cache(path: Path) -> int:
    with_info = _native.model_open(str(path))
    info = _native.model_info(with_info)
    _native.model_close(with_info)
    return int(max(info["slot_min_bytes"], 0.3 * info["slot_bytes"])) + (2 << 20)


def rows_after(engine: Streamed, tokens: list[int]) -> list[bytes]:
    return [engine.row(), *engine.run([[token] for token in tokens])]


@pytest.mark.parametrize("kind", tinyvision.KINDS)
@pytest.mark.parametrize("cache", ["small", "all"])
def test_pictures_equal_stock(model: Model, kind: str, cache: str) -> None:
    path, mmproj = model(kind)
    n_ubatch = UBATCH.get(kind, 64)
    reference = seeing.stock(path, mmproj, PROMPT, TOKENS, n_ubatch=n_ubatch)
    with streamed(path, share=1.0 if cache == "all" else 0.3, n_ubatch=n_ubatch) as engine:
        seeing.take(engine, mmproj, PROMPT, small_cache(path) if cache == "small" else seeing.ROOM)
        assert rows_after(engine, TOKENS) == reference
        assert (engine.stats()["n_evict"] > 0) == (cache == "small")
    assert len(set(reference)) == len(reference)
    assert reference != seeing.stock(path, mmproj, ("Look at this: ", SECOND, *PROMPT[2:]), TOKENS, n_ubatch=n_ubatch)


def test_rows_that_are_read_at_once_are_no_more_than_a_batch(model: Model) -> None:
    """As with stock's `--image-max-tokens`, where stock alone would end the process."""
    path, mmproj = model("gemma4v")
    prompt = ("Look: ", tinyvision.png(640, 480), " What is it?")
    reference = seeing.stock(path, mmproj, prompt, TOKENS, n_ubatch=128, most_rows=128)
    with streamed(path, share=1.0, n_ubatch=128) as engine:
        seeing.take(engine, mmproj, prompt, seeing.ROOM)
        assert 100 < _native.engine_n_past(engine.handle) < 200
        assert rows_after(engine, TOKENS) == reference
    with streamed(path, share=1.0, n_ubatch=32) as engine, pytest.raises(UnsupportedError, match="at once"):
        seeing.take(engine, mmproj, prompt, seeing.ROOM)


def test_a_sequence_is_cut_before_and_behind_a_picture(model: Model) -> None:
    """Rows of a picture share positions with M-RoPE: what comes behind it is at the right one again."""
    path, mmproj = model("qwen3vl")
    reference = seeing.stock(path, mmproj, PROMPT[:3], TOKENS)
    with streamed(path, share=1.0) as engine:
        seeing.take(engine, mmproj, PROMPT[:1], seeing.ROOM)
        before = _native.engine_n_past(engine.handle)
        seeing.take(engine, mmproj, PROMPT[1:2], seeing.ROOM)
        behind = _native.engine_n_past(engine.handle)
        seeing.take(engine, mmproj, PROMPT[3:], seeing.ROOM)
        engine.rewind(behind)
        seeing.take(engine, mmproj, PROMPT[2:3], seeing.ROOM)
        assert rows_after(engine, TOKENS) == reference
        engine.rewind(before)
        seeing.take(engine, mmproj, PROMPT[1:3], seeing.ROOM)
        assert rows_after(engine, TOKENS) == reference
        with pytest.raises(UnsupportedError, match="cannot be cut"):
            engine.rewind(behind - len("<|vision_end|>") - 3)  # inside the picture
        assert _native.engine_n_past(engine.handle) == 0


def test_a_state_with_a_picture_goes_on_as_it_was(model: Model) -> None:
    path, mmproj = model("qwen3vl")
    with streamed(path, share=1.0) as engine:
        seeing.take(engine, mmproj, PROMPT, seeing.ROOM)
        state = _native.engine_state(engine.handle, _native.engine_state_bytes(engine.handle))
        rows = engine.run([[token] for token in TOKENS])
        engine.rewind(0)
        engine.run([TOKENS])
        _native.engine_set_state(engine.handle, state)
        assert engine.run([[token] for token in TOKENS]) == rows


def test_what_is_no_picture_or_no_encoder_is_said(model: Model, tmp_path: Path) -> None:
    path, mmproj = model("qwen3vl")
    _, other = seeing.model(tmp_path, "glm4v")
    narrow = tinyvision.write(tmp_path / "narrow.gguf", width=128)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(mmproj.read_bytes()[:-5000])
    nothing = tmp_path / "nothing.gguf"
    nothing.write_bytes(b"GGUF of nobody")
    with streamed(path, share=1.0) as engine:
        _native.engine_set_cache_bytes(engine.handle, seeing.ROOM)

        def add(encoder: Path, data: bytes) -> None:
            _native.picture_add(engine.handle, str(encoder), data)

        for data in (b"", b"no picture at all", FIRST[:20]):
            with pytest.raises(UsageError, match="no picture"):
                add(mmproj, data)
        with pytest.raises(UsageError, match="112 x 80 pixels is damaged"):
            add(mmproj, FIRST[:60])
        with pytest.raises(UnsupportedError, match="n_embd = 384"):
            add(narrow, FIRST)
        with pytest.raises(UnsupportedError, match="mismatch"):
            add(other, FIRST)
        with pytest.raises(UnsupportedError, match="its architecture is `qwen3vlmoe`"):
            add(path, FIRST)
        with pytest.raises(FormatError, match="cut off"):
            add(cut, FIRST)
        with pytest.raises(FormatError, match="no GGUF"):
            add(nothing, FIRST)
        with pytest.raises(StorageError, match="nowhere"):
            add(tmp_path / "nowhere.gguf", FIRST)
        add(mmproj, FIRST)  # and the engine goes on
