"""Fixtures of the apps' tests: programs built as a developer builds them, with the compilers of this machine."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgemoe

APPS = Path(__file__).resolve().parent.parent.parent / "apps"


def need(tool: str) -> str:
    """The path of a tool; skips the test that cannot do without it."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"`{tool}` is not installed")
    return found


def packages() -> tuple[Path, Path]:
    """The folder of libedgemoe.so, and that of libllama.so."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec and spec.submodule_search_locations
    ours = next(
        Path(folder) / "lib" for folder in edgemoe.__path__ if any((Path(folder) / "lib").glob("libedgemoe.so"))
    )
    return ours, Path(spec.submodule_search_locations[0]) / "lib"


@pytest.fixture(scope="session")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """apps/embed-c, built with gcc alone against the installed packages."""
    need("gcc")
    program = tmp_path_factory.mktemp("embed") / "embed"
    command = [str(APPS / "embed-c" / "build.sh"), str(program)]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    import tinymoe

    return tinymoe.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "qwen3moe", n_layer=4, n_expert=16, n_used=4)
