"""Installed without the extra `onnx`: what needs it says so in a line, and everything else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tinyhf
import tinymoe
from console import needs_library

from edgemoe import extras
from edgemoe.errors import UnsupportedError

pytestmark = needs_library

# An interpreter to which the packages are not there.
HIDDEN = """
import importlib.util, sys
real = importlib.util.find_spec
hidden = {"onnx", "onnxruntime"}
importlib.util.find_spec = lambda name, package=None: None if name in hidden else real(name, package)
for name in hidden:
    sys.modules[name] = None
from edgemoe.cli import main
main(sys.argv[1:])
"""


def without_onnx(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDDEN, *map(str, arguments)],
        env={**os.environ, "EDGEMOE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("edgemoe: ") and lines[1].startswith("hint: ") and len(lines) == 2, done.stderr
    assert "edgemoe[onnx]" in lines[1]
    return lines[0]


def test_an_export_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = tinyhf.write(tmp_path / "hf", "mixtral")
    done = without_onnx("convert", source, tmp_path / "out", "--to", "onnx", cache=tmp_path / "cache")
    assert "onnx, which is not installed" in said(done)
    assert not (tmp_path / "out").exists()


def test_the_commands_that_would_run_an_export_say_so(tmp_path: Path) -> None:
    import onnx_extra  # noqa: F401

    from edgemoe.converters.convert import open_source
    from edgemoe.converters.onnx.export import Options, export

    export(open_source(tinyhf.write(tmp_path / "hf", "qwen3_moe")), tmp_path / "made", Options())
    cache = tmp_path / "cache"
    made = tmp_path / "made"
    for arguments in (["run", made, "-p", "x"], ["plan", made], ["inspect", made], ["bench", made]):
        assert "not installed" in said(without_onnx(*arguments, cache=cache)), arguments


def test_a_gguf_needs_none_of_it(tmp_path: Path) -> None:
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    done = without_onnx("run", model, "-p", "x", "-n", "2", "--memory", "1GiB", "--ctx", "64", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr


def test_an_onnxruntime_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('__version__ = "1.23.2"\n')
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"need onnxruntime 1\.31 or newer, 1\.23 is installed"):
        extras.need_onnx()
