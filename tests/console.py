"""What the console tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import edgemoe

PACKAGE = Path(edgemoe.__file__).resolve().parent

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
"""cli("run", model, stdin="..."): a finished `edgemoe`, with its text and its exit code."""

needs_library = pytest.mark.skipif(
    not any((PACKAGE / "lib").glob("*edgemoe*")), reason="libedgemoe is not built: `./dev setup` builds it"
)
