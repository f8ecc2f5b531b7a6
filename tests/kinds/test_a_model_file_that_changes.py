"""A model's file that is exchanged, written to, moved or deleted: the new model's text, or words, never a mixture."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import gguf_edit
import pytest
import tinymoe
from gguf_edit import STRING, Parts

import edgemoe
from edgemoe.errors import StorageError

TOKENS = [65, 66, 67, 68]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


def _model(path: Path, seed: int) -> Path:
    """Its header is longer than any look at its beginning: files of one size differ far inside only."""
    source = tinymoe.write(path.with_suffix(".source"), "qwen3moe", expert_type="Q8_0", n_layer=2, seed=seed)

    def lengthen(parts: Parts) -> None:
        parts.set("general.name", STRING, "same")
        parts.keys = {"filler.text": ((STRING,), "x" * 1_200_000), **parts.keys}

    gguf_edit.edited(source, path, lengthen)
    os.utime(path, ns=(0, 0))
    return path


def _open(path: Path) -> edgemoe.Engine:
    # What is read ahead is read before the file changes, or not: only what is needed is read here.
    return edgemoe.load(path, memory="2GiB", ctx=64, threads=2, prefetch="off")


def _logits(path: Path) -> bytes:
    with _open(path) as engine:
        return engine.logits(TOKENS).tobytes()


def _overwrite(path: Path, other: Path) -> None:
    """Into the same inode, with the time of before."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("how", ["exchanged", "overwritten"])
def test_another_model_of_equal_path_size_and_time_gives_its_own_text(tmp_path: Path, how: str) -> None:
    old, new, place = _model(tmp_path / "old.gguf", 1), _model(tmp_path / "new.gguf", 2), tmp_path / "m.gguf"
    assert old.stat().st_size == new.stat().st_size
    shutil.copy2(old, place)
    first = _logits(place)
    if how == "exchanged":
        place.unlink()
        shutil.copy2(new, place)
    else:
        _overwrite(place, new)
    assert _logits(place) == _logits(new) != first


def test_a_file_overwritten_while_it_runs_ends_the_engine_in_words(tmp_path: Path) -> None:
    path, other = _model(tmp_path / "m.gguf", 1), _model(tmp_path / "other.gguf", 2)
    with _open(path) as engine:
        engine.logits(TOKENS)
        _overwrite(path, other)
        for tokens in (list(range(80, 120)), TOKENS):  # experts that were not here; then none that must be read
            with pytest.raises(StorageError, match=r"m\.gguf.*written to while it was in use"):
                engine.logits(tokens)
    assert _logits(path) == _logits(other)


@pytest.mark.parametrize("how", ["another name", "moved", "other rights", "replaced", "deleted"])
def test_a_file_whose_bytes_stay_runs_on(tmp_path: Path, how: str) -> None:
    path, other = _model(tmp_path / "m.gguf", 1), _model(tmp_path / "other.gguf", 2)
    longer = list(range(80, 120))
    with _open(other) as engine:
        wrong = engine.logits(longer).tobytes()
    with _open(path) as engine:
        right = engine.logits(longer).tobytes()
    with _open(path) as engine:
        engine.logits(TOKENS)
        if how == "another name":
            os.link(path, tmp_path / "name.gguf")
        elif how == "moved":
            path.rename(tmp_path / "name.gguf")
        elif how == "other rights":
            path.chmod(0o400)
        elif how == "replaced":
            os.replace(other, path)
        else:
            path.unlink()
        assert engine.logits(longer).tobytes() == right != wrong


def test_a_file_whose_experts_alone_are_overwritten_is_noticed_too(tmp_path: Path) -> None:
    path = _model(tmp_path / "m.gguf", 1)
    parts = gguf_edit.take_apart(path)
    last = max((t for t in parts.tensors if "_exps" in t.name), key=lambda t: t.name)
    parts.change(last.name, lambda t: replace(t, data=t.data[::-1]))
    other = parts.write(tmp_path / "other.gguf")
    with _open(path) as engine:
        engine.logits(TOKENS)
        _overwrite(path, other)
        with pytest.raises(StorageError, match="written to while it was in use"):
            engine.logits(list(range(80, 120)))


def test_a_file_written_anew_as_it_was_runs_on(tmp_path: Path) -> None:
    path, longer = _model(tmp_path / "m.gguf", 1), list(range(80, 120))
    with _open(path) as engine:
        right = engine.logits(longer).tobytes()
    with _open(path) as engine:
        engine.logits(TOKENS)
        path.write_bytes(path.read_bytes())
        assert engine.logits(longer).tobytes() == right
