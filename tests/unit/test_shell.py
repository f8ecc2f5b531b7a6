from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe import _native
from edgemoe.errors import StorageError
from edgemoe.runtime.gguf import shell
from edgemoe.runtime.gguf.shell import measuring_shell, notes_name, shell_for


class Library:
    """Stands in for the native library: a shell is a file whose text is the model's identity."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.fails = False

    def write(self, model: Any, path: str, *, with_data: bool) -> None:
        if self.fails:
            raise StorageError(f"cannot write `{path}`: no space left on device")
        Path(path).write_text(f"{model}" if with_data else f"{model} empty")
        self.written.append(path)

    def check(self, model: Any, path: str) -> bool:
        return os.path.exists(path) and Path(path).read_text() == f"{model}"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    found = Library()
    monkeypatch.setattr(_native, "shell_write", found.write)
    monkeypatch.setattr(_native, "shell_check", found.check)
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    return found


def model(folder: Path, identity: int, *, dense_bytes: int = 1000) -> Any:
    path = folder / f"model{identity}.gguf"
    path.touch()
    info = SimpleNamespace(identity=identity, name=f"model {identity}", dense_bytes=dense_bytes)
    return SimpleNamespace(path=path, handle=identity, info=info)


def test_a_shell_is_written_once_and_its_progress_is_told(library: Library, tmp_path: Path) -> None:
    told: list[str] = []
    path = shell_for(model(tmp_path, 7), progress=told.append)
    assert path.is_relative_to(tmp_path / "cache")
    assert shell_for(model(tmp_path, 7), progress=told.append) == path
    assert len(library.written) == len(told) == 1


def test_a_shell_that_is_not_whole_is_written_anew(library: Library, tmp_path: Path) -> None:
    path = shell_for(model(tmp_path, 7))
    path.write_text("half")
    assert shell_for(model(tmp_path, 7)) == path
    assert path.read_text() == "7" and len(library.written) == 2


def test_another_version_of_the_model_has_another_shell(library: Library, tmp_path: Path) -> None:
    assert shell_for(model(tmp_path, 7)) != shell_for(model(tmp_path, 8))


def test_a_full_disk_is_seen_before_writing(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="free, the dense part of model 7 takes") as caught:
        shell_for(model(tmp_path, 7, dense_bytes=1 << 60))
    assert "`EDGEMOE_CACHE`" in caught.value.hint and not library.written
    library.fails = True
    with pytest.raises(StorageError, match="no space left") as caught:
        shell_for(model(tmp_path, 7))
    assert "`EDGEMOE_CACHE`" in caught.value.hint


def test_a_cache_folder_that_cannot_be_made_is_one_clear_error(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cache folder") as caught:
        shell_for(model(tmp_path, 7))
    assert caught.value.hint


def test_measuring_uses_the_shell_or_one_that_goes_away(library: Library, tmp_path: Path) -> None:
    with measuring_shell(model(tmp_path, 7)) as path:
        assert path.read_text() == "7 empty"
    assert not path.exists()
    whole = shell_for(model(tmp_path, 7))
    with measuring_shell(model(tmp_path, 7)) as path:
        assert path == whole
    assert whole.exists()


def test_shells_of_models_that_are_gone_are_deleted(library: Library, tmp_path: Path) -> None:
    gone = model(tmp_path, 1)
    old, kept = shell_for(gone), shell_for(model(tmp_path, 2))
    for path in (old, kept):
        os.utime(path, (1000, 1000))
    gone.path.unlink()
    shell_for(model(tmp_path, 3))
    assert not old.exists() and not old.with_suffix(".json").exists()
    assert kept.exists()


def test_the_least_recently_used_shells_go_when_there_are_many(library: Library, tmp_path: Path) -> None:
    shells = [shell_for(model(tmp_path, i)) for i in range(8)]
    for i, path in enumerate(shells):
        os.utime(path, (1000 + i, 1000 + i))
    shell_for(model(tmp_path, 0))  # used again, so no longer the oldest
    newest = shell_for(model(tmp_path, 99))
    assert [path.exists() for path in shells] == [True, False, True, True, True, True, True, True]
    assert newest.exists()


def test_shells_used_lately_stay_however_many(library: Library, tmp_path: Path) -> None:
    """Another process may be about to load one."""
    shells = [shell_for(model(tmp_path, i)) for i in range(12)]
    assert all(path.exists() for path in shells)


def test_what_a_dead_process_left_is_deleted_and_what_a_living_one_writes_is_not(
    library: Library, tmp_path: Path
) -> None:
    folder = shell_for(model(tmp_path, 1)).parent
    left = [folder / "0000000000000005.gguf.tmp123", folder / "0000000000000005.123.measure"]
    living = folder / "0000000000000006.gguf.tmp456"
    for path in (*left, living):
        path.touch()
    for path in left:
        os.utime(path, (time.time() - 10**6,) * 2)
    shell_for(model(tmp_path, 2))
    assert not any(path.exists() for path in left) and living.exists()


def test_notes_survive_beside_the_shell(library: Library, tmp_path: Path) -> None:
    subject = model(tmp_path, 7)
    path = shell_for(subject)
    notes = json.loads((tmp_path / "cache" / notes_name(subject)).read_text())
    assert path.with_suffix(".json") == tmp_path / "cache" / notes_name(subject)
    assert notes["source"] == str(subject.path)
    assert shell.cache_dir() == tmp_path / "cache"
