"""Every n-th write, sync and rename fails: what was there stays, one line says so, the next call does the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_every_write_that_fails(
    environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "libfailing_writes.so"
    source = TESTS / "failing_writes.c"
    subprocess.run(
        ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True
    )
    (tmp_path / "work").mkdir()
    path = os.pathsep.join((str(TESTS), environment["PYTHONPATH"]))
    done = subprocess.run(
        [sys.executable, str(TESTS / "failing_writes.py"), str(library), str(tmp_path / "work")],
        env={**environment, "PYTHONPATH": path, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    with capsys.disabled():
        for job in found:
            print(f"\n{job['job']:16} {job['places']} {job['errors']} errors, {job['ignored']} ignored", end="")
    assert [problem for job in found for problem in job["problems"]] == []
    # Each has its places: a trace grows where it lies, all else is written, synced and renamed.
    assert len(found) == 8 and all(job["places"]["write"] for job in found)
    assert all(job["places"][kind] for job in found if job["job"] != "trace" for kind in ("sync", "rename"))
