"""schemathesis makes requests from the OpenAPI document, sensible ones and others: none may end in a 5xx."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import serving
import tinymoe
from console import needs_library

pytestmark = [pytest.mark.slow, needs_library]


def test_no_request_makes_the_server_fail(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        pytest.skip(f"{command} is not there")
    path = tinymoe.write(tmp_path / "tiny.gguf", "qwen3moe")
    with serving.serve(tmp_path / "cache", path, "--threads", 1, "--ctx", 64, "--memory", "512MiB") as server:
        done = subprocess.run(
            [
                command, "run", f"{server.url}/openapi.json",
                "--checks", "not_a_server_error,response_schema_conformance",
                "--exclude-path", "/api/live",  # it never ends
                "--mode", "all", "--max-examples", "60", "--seed", "1", "--phases", "examples,coverage,fuzzing",
                "--request-timeout", "60", "--suppress-health-check", "all",
            ],
            capture_output=True, text=True, check=False, timeout=900, cwd=tmp_path,
        )  # fmt: skip
        shutil.rmtree(tmp_path / ".hypothesis", ignore_errors=True)
        assert done.returncode == 0, done.stdout[-6000:]
        assert server.ask("/health")[0] == 200
        assert "Traceback" not in "\n".join(server.talk)
