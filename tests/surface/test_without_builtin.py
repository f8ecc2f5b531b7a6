"""A package that was built without its model: everything else works, and asking for the model is one clear line."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import PACKAGE, Cli, needs_library

pytestmark = needs_library


@pytest.fixture
def cli(tmp_path: Path, environment: dict[str, str]) -> Cli:
    """`edgemoe` from a package without edgemoe/models, made of links; -S leaves an editable install's finder out."""
    package = tmp_path / "site" / "edgemoe"
    package.mkdir(parents=True)
    for entry in PACKAGE.iterdir():
        if entry.name not in ("models", "__pycache__"):
            (package / entry.name).symlink_to(entry.resolve())
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None and numpy.submodule_search_locations
    path = os.pathsep.join([str(package.parent), str(Path(numpy.submodule_search_locations[0]).parent)])
    bare = {**environment, "PYTHONPATH": path, "HOME": str(tmp_path), "EDGEMOE_MODELS": str(tmp_path / "mine")}

    def call(*arguments: object, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "edgemoe", *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=bare, cwd=tmp_path, timeout=timeout, check=False
        )

    return call


@pytest.mark.parametrize("command", [["chat"], ["demo"], ["run", "-p", "hello"], ["plan"], ["inspect"], ["bench"]])
def test_asking_for_it_is_one_line(cli: Cli, command: list[str]) -> None:
    done = cli(*command, stdin="hello\n")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "edgemoe: this installation has no built-in model"
    assert done.stderr.splitlines()[1].startswith("hint: give a model")


def test_other_models_run_and_are_listed(cli: Cli, good: Path, tmp_path: Path) -> None:
    assert "no models found" in cli("models").stdout
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other.gguf").symlink_to(good)
    done = cli("run", "other", "-p", "hello", "-n", "4")
    assert done.returncode == 0, done.stderr
    assert "EDGEMOE_MODELS" in cli("models").stdout
