"""Every n-th allocation of the native library fails: the call says so, and the next one is right."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import tinymoe

from edgemoe._native.library import library

PROGRAM = Path(__file__).resolve().parents[2] / "build/editable/allocation_test"


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="needs a checkout's native tests: `./dev setup` builds them")
def test_every_allocation_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import llama_cpp

    model = tinymoe.write(tmp_path / "tiny.gguf", "qwen3moe", n_layer=2)
    ours = Path(library()._name).parent
    folders = (str(ours), str(Path(llama_cpp.__file__).parent / "lib"))
    # Of the thousands of places of opening one in 41 (docs/reliability.md tells of all); the others are tried all.
    opening = ("open a model", "plan", "open an engine", "open a session")
    others = ("decode", "prefill", "resize the cache", "sample with a grammar", "answer", "stream of text", "policy")
    for every, activities in (("41", opening), ("1", others)):
        done = subprocess.run(
            [str(PROGRAM), str(model), every, *activities],
            env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(folders)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        with capsys.disabled():
            print(f"\n{done.stdout.rstrip()}", end="")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(activities)
