"""Metadata that a file has wrong is put right at the command line, as with llama.cpp."""

from __future__ import annotations

from pathlib import Path

from console import Cli, needs_library

pytestmark = needs_library


def test_commands_heed_them(cli: Cli, good: Path) -> None:
    ask = ("run", good, "--raw", "-p", "the thing", "-n", "8", "--memory", "300MiB", "--temp", "0")
    plain = cli(*ask)
    both = ("--override-kv", "qwen3moe.rope.freq_base=float:10", "--override-kv", "qwen3moe.expert_used_count=int:1")
    repaired = cli(*ask, *both)
    assert plain.returncode == repaired.returncode == 0, repaired.stderr
    assert plain.stdout != repaired.stdout
    assert cli("plan", good, "--memory", "300MiB", *both).returncode == 0
    refused = cli(*ask, "--override-kv", "qwen3moe.block_count=int:1")
    assert refused.returncode == 1 and "laid out" in refused.stderr and "Traceback" not in refused.stderr
