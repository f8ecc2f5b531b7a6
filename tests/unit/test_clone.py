"""A clone without symbolic links (git's default on Windows) imports as any other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = ("edgemoe.runtime.load", "edgemoe.converters.convert", "edgemoe.devices.survey", "edgemoe.cli")
SCRIPT = f"""
import importlib, sys
sys.path.insert(0, sys.argv[1])
sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]  # no editable install's
for name in {MODULES!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
"""


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no git checkout")
def test_a_clone_without_links_imports(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git = ["git", "-c", "core.symlinks=false", "-c", "safe.directory=*"]
    subprocess.run([*git, "clone", "-q", "--no-checkout", f"file://{ROOT}", str(clone)], check=True)
    subprocess.run([*git, "-C", str(clone), "checkout", "-q", "HEAD", "--", "edgemoe", "runtime"], check=True)
    assert not (clone / "runtime").is_symlink()
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(clone)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
