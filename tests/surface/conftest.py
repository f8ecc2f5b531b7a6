"""Fixtures of the console tests: tiny models, and `edgemoe` as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import PACKAGE, Cli


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a child: a cache folder of its own, the checkout's package, no colours."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    cache = str(tmp_path_factory.mktemp("cache"))
    state = str(tmp_path_factory.mktemp("state"))
    own = {"EDGEMOE_CACHE": cache, "EDGEMOE_STATE": state}
    return {**os.environ, **own, "PYTHONPATH": path, "NO_COLOR": "1", "PYTHONUTF8": "1"}


@pytest.fixture(scope="session")
def cli(environment: dict[str, str]) -> Cli:
    """Runs `python -m edgemoe` to its end."""

    def call(*arguments: object, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgemoe", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good tiny MoE and with files that are wrong in one way each."""
    import tinymoe

    folder = tmp_path_factory.mktemp("models")
    good = tinymoe.write(folder / "good.gguf", "qwen3moe")
    tinymoe.write(folder / "dense.gguf", "llama-dense")
    content = good.read_bytes()
    (folder / "truncated.gguf").write_bytes(content[: len(content) // 2])
    (folder / "stub.gguf").write_bytes(content[:100])
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "text.gguf").write_text("this is not a model\n" * 100)
    split = tinymoe.write(folder / "split.gguf", "qwen3moe", n_split=2)
    split.with_name("split-00002-of-00002.gguf").unlink()
    (folder / "folder.gguf").mkdir()
    return folder


@pytest.fixture(scope="session")
def good(models: Path) -> Path:
    return models / "good.gguf"
