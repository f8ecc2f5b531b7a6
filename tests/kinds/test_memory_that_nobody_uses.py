"""`--page-cache`: a machine with free memory keeps experts that the budget has no room for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tinymoe
from console import needs_library

from edgemoe.bench.limit import LimitUnavailable, memory_limit

pytestmark = needs_library

EDGEMOE = str(Path(sys.executable).with_name("edgemoe"))


def run(tmp_path: Path, model: Path, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [EDGEMOE, "run", str(model), "-p", "a", "-n", "8", "--temp", "0", *options]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, env={**os.environ, "EDGEMOE_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False, timeout=120, **more,
    )  # fmt: skip


def test_the_text_is_the_same(tmp_path: Path) -> None:
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    direct, kept = run(tmp_path, model), run(tmp_path, model, "--page-cache", "-v")
    assert direct.returncode == kept.returncode == 0, kept.stderr
    assert kept.stdout == direct.stdout
    assert "through the page cache, which keeps what it can" in kept.stderr


def test_under_a_limit_of_the_kernel_it_is_refused(tmp_path: Path) -> None:
    """The page cache would count into the limit, and take the place of what is computed with."""
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    try:
        with memory_limit(900 << 20, f"edgemoe-test-{time.monotonic_ns()}") as limit:
            refused = run(tmp_path, model, "--memory", "800MiB", "--page-cache", preexec_fn=limit.joiner())
    except LimitUnavailable as why:
        pytest.skip(str(why))
    assert refused.returncode != 0 and not refused.stdout
    limit_line = "counts into the limit of this process's cgroup, 900 MiB (943718400 bytes): read without it"
    assert limit_line in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
