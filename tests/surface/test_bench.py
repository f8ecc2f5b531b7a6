"""`edgemoe bench`: the whole way on a tiny model. Asserts what was measured, never how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import Cli, needs_library

pytestmark = needs_library

SMALL = ("--warmup", "1", "--decode", "6", "--stock-decode", "3", "--prefill", "32", "--repeat", "2", "--threads", "2")


@pytest.fixture(scope="module")
def bench_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of a few MiB, so that a budget holds some of them and not all."""
    import tinymoe

    return tinymoe.write(tmp_path_factory.mktemp("bench") / "b.gguf", "qwen3moe", n_expert=64, n_used=4, n_layer=6)


def test_both_engines_run_interleaved_under_the_same_limit(cli: Cli, bench_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    smallest = json.loads(cli("plan", bench_model, "--ctx", "256", "--memory", "1G", "--json").stdout)["smallest_bytes"]
    memory = str(smallest + (8 << 20))
    done = cli("bench", bench_model, "--memory", memory, "--against", "llama.cpp", "--json", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "edgemoe over llama.cpp" in done.stdout
    assert "experts read" in done.stdout and "the page cache" in done.stdout
    report = json.loads(out.read_text())
    runs = report["runs"]
    assert [run["side"] for run in runs] == ["edgemoe", "llama.cpp", "llama.cpp", "edgemoe"]
    assert [len(run["token_s"]) for run in runs] == [6, 3, 3, 6]
    ours = runs[0]
    assert ours["facts"]["reader"] in ("uring", "threads") and ours["facts"]["direct_io"] in (True, False)
    assert ours["decode"]["n_hit"] + ours["decode"]["n_miss"] == 6 * 6 * 4  # tokens, layers, experts of each
    assert ours["prefill"]["read_bytes"] > 0
    for run in runs:
        assert run["limit_bytes"] in (0, report["plan"]["budget_bytes"])
        assert run["limit_peak_bytes"] is None or run["limit_peak_bytes"] <= run["limit_bytes"]
    assert report["machine"]["cpu"] and report["disk"]["bytes_per_s"] > 0
    assert report["summary"]["ratios"]["llama.cpp"]["decode"] > 0


def test_a_broken_pipe_loses_no_report(environment: dict[str, str], bench_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    read, write = os.pipe()
    os.close(read)
    options = ["--json", str(out), *SMALL, "--no-resident", "--repeat", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "edgemoe", "bench", str(bench_model), *options],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=120,
    )
    os.close(write)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert len(json.loads(out.read_text())["runs"]) == 1


def test_one_repetition_prints_no_ratio(cli: Cli, bench_model: Path) -> None:
    done = cli("bench", bench_model, "--against", "llama.cpp", *SMALL, "--repeat", "1", "--no-resident")
    assert done.returncode == 0, done.stderr
    assert "no ratio" in done.stdout


def test_a_text_that_is_too_short_is_refused(cli: Cli, bench_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("too short")
    done = cli("bench", bench_model, "--text", text, *SMALL)
    assert done.returncode == 2
    assert "the benchmark needs 32" in done.stderr
    assert "Traceback" not in done.stderr
