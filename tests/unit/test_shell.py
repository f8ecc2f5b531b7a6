"""The folder of shells: what is kept, what goes, and what two users of it do to each other."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import tinymoe

import edgemoe
from edgemoe import _abi as abi
from edgemoe.errors import StorageError
from edgemoe.runtime.gguf import shell
from edgemoe.runtime.gguf.model import GgufModel, open_gguf


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEMOE_CACHE", str(folder))
    return folder


def model(folder: Path, n: int) -> GgufModel:
    path = folder / f"model{n}.gguf"
    if not path.exists():
        tinymoe.write(path, "qwen3moe", n_layer=1, n_expert=4, n_used=2)
        os.utime(path, (n + 1, n + 1))
    return open_gguf(path)


def shell_for(model: GgufModel, **more: Any) -> Path:
    """The shell of a run on a GPU, which is filled from it: elsewhere none is written."""
    path = shell.shell_for(model, abi.Setup(device=1), **more)
    assert path is not None
    return path


def age(path: Path, seconds: float = 10**6) -> None:
    """As if it had last been used so long ago."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_without_a_gpu_no_copy_of_dense_weights_is_written(cache: Path, tmp_path: Path) -> None:
    with edgemoe.load(model(tmp_path, 7).path, memory="2GiB", ctx=64, threads=1) as engine:
        engine.eval([1, 2, 3])
        assert engine.stats().dense_bytes == pytest.approx(engine.model.info.dense_bytes, rel=0.01)
    assert [path.suffix for path in (cache / "shells").iterdir()] == [".notes"]
    assert shell.shell_for(model(tmp_path, 7), abi.Setup()) is None


def test_a_shell_that_nobody_wanted_for_long_is_deleted(tmp_path: Path) -> None:
    """Older versions wrote one for every model."""
    old = shell_for(model(tmp_path, 1))
    age(old, 40 * 24 * 3600)
    edgemoe.load(model(tmp_path, 2).path, memory="2GiB", ctx=64, threads=1).close()
    assert not old.exists()


def test_a_shell_is_written_once_and_its_progress_is_told(cache: Path, tmp_path: Path) -> None:
    told: list[str] = []
    path = shell_for(model(tmp_path, 7), progress=told.append)
    written = path.stat().st_ino
    assert path.is_relative_to(cache)
    assert shell_for(model(tmp_path, 7), progress=told.append) == path
    assert path.stat().st_ino == written and len(told) == 1


def test_a_shell_that_is_not_whole_is_written_anew(tmp_path: Path) -> None:
    path = shell_for(model(tmp_path, 7))
    whole = path.read_bytes()
    for damaged in (b"", b"half", whole[: len(whole) // 2], b"x" * len(whole)):
        path.write_bytes(damaged)
        assert shell_for(model(tmp_path, 7)) == path
        assert path.read_bytes() == whole


def test_another_version_of_the_model_has_another_shell(tmp_path: Path) -> None:
    before = shell_for(model(tmp_path, 7))
    tinymoe.write(tmp_path / "model7.gguf", "qwen3moe", n_layer=1, n_expert=8, n_used=2)
    assert shell_for(model(tmp_path, 7)) != before


def test_a_cache_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cache folder") as caught:
        shell_for(model(tmp_path, 7))
    assert caught.value.hint
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "shells").touch()
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "home"))
    with pytest.raises(StorageError, match="cannot make the cache folder") as caught:
        shell_for(model(tmp_path, 7))
    assert "`EDGEMOE_CACHE`" in caught.value.hint


def test_measuring_leaves_nothing_but_notes(cache: Path, tmp_path: Path) -> None:
    with model(tmp_path, 7) as opened:
        edgemoe.plan(opened, memory="2GiB", ctx=256, measure=False)
    (notes,) = (cache / "shells").iterdir()
    assert notes.suffix == ".notes"
    written = shell_for(model(tmp_path, 7))
    assert written.with_suffix(".notes") == notes  # what was measured survives beside the shell
    assert len(notes.read_text().splitlines()) > 3


def test_shells_of_models_that_are_gone_are_deleted_with_all_that_is_theirs(tmp_path: Path) -> None:
    gone, kept = shell_for(model(tmp_path, 1)), shell_for(model(tmp_path, 2))
    legacy = [gone.with_suffix(suffix) for suffix in (".json", ".sizes")]  # of older versions
    for path in legacy:
        path.write_text("{}")
    for path in (gone, kept):
        age(path)
    (tmp_path / "model1.gguf").unlink()
    shell_for(model(tmp_path, 3))
    assert not any(path.exists() for path in (gone, gone.with_suffix(".notes"), *legacy))
    assert kept.exists() and kept.with_suffix(".notes").exists()


def test_notes_of_no_model_and_no_shell_are_deleted(cache: Path, tmp_path: Path) -> None:
    folder = shell_for(model(tmp_path, 1)).parent
    orphans = [folder / "00000000000000aa.notes", folder / "00000000000000ab.sizes"]
    young = folder / "00000000000000ac.notes"
    for path in (*orphans, young):
        path.write_text("edgemoe notes 1\nsource /nowhere/x.gguf\nlibrary none\n")
    for path in orphans:
        age(path)
    mine = folder / "my-own-file.txt"
    mine.touch()
    age(mine)
    shell_for(model(tmp_path, 2))
    assert not any(path.exists() for path in orphans)
    assert young.exists() and mine.exists()


def test_the_least_recently_used_shells_go_when_there_are_many(tmp_path: Path) -> None:
    shells = [shell_for(model(tmp_path, i)) for i in range(8)]
    for i, path in enumerate(shells):
        age(path, 10**6 - i)
    shell_for(model(tmp_path, 0))  # used again, so no longer the oldest
    newest = shell_for(model(tmp_path, 99))
    assert [path.exists() for path in shells] == [True, False, True, True, True, True, True, True]
    assert newest.exists()


def test_shells_used_lately_stay_however_many(tmp_path: Path) -> None:
    """Another process may be about to load one."""
    shells = [shell_for(model(tmp_path, i)) for i in range(12)]
    assert all(path.exists() for path in shells)


def test_what_a_dead_process_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    folder = shell_for(model(tmp_path, 1)).parent
    left = [folder / "0000000000000005.gguf.tmp123", folder / "0000000000000005.123.measure"]
    living = folder / "0000000000000006.gguf.tmp456"
    for path in (*left, living):
        path.touch()
    for path in left:
        age(path)
    shell_for(model(tmp_path, 2))
    assert not any(path.exists() for path in left) and living.exists()


def test_a_name_with_a_line_in_it_is_kept_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb%c"
    folder.mkdir()
    written = shell_for(model(folder, 1))
    age(written)
    shell_for(model(tmp_path, 2))
    assert written.exists()  # its model was found: it is not one of those that are gone
