"""Two conversions to one target: the second is refused, and never touches what the first has finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgemoe.converters.output import Output
from edgemoe.errors import UsageError


def test_while_the_first_writes_the_second_is_refused(tmp_path: Path) -> None:
    first, refused = Output(tmp_path / "o.gguf", "one", 1, 8, 8), pytest.raises(UsageError, match="is being written by")
    with first, refused:
        Output(tmp_path / "o.gguf", "two", 1, 8, 8)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_second_opens_as_the_first_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out, lock = tmp_path / "o.gguf", pytest.importorskip("fcntl").flock
    first = Output(out, "one", 1, 8, 8)

    def late(fd: int, how: int) -> None:
        # Between opening OUT.partial and locking it, the other process gives it its name and goes.
        if not out.exists():
            first.publish(b"finished")
            first.__exit__(None, None, None)
        lock(fd, how)

    monkeypatch.setattr("edgemoe.files.fcntl.flock", late)
    if overwrite:
        with Output(out, "two", 1, 8, 8) as second:
            assert out.read_bytes()[:8] == b"finished"
            second.publish(b"the next")
        assert out.read_bytes()[:8] == b"the next"
    else:
        with pytest.raises(UsageError, match="another process has just written it"):
            Output(out, "two", 1, 8, 8, overwrite=False)
        assert out.read_bytes()[:8] == b"finished"
        assert os.listdir(tmp_path) == ["o.gguf"]
