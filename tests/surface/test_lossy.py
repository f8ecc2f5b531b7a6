"""`--lossy` as people meet it: refused in words, priced in what is shown, measured by `eval`, calibrated by command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import priced
import pytest
import serving
import tinymoe
from console import Cli, needs_library

import edgemoe
from edgemoe.cli.chat import greeting

pytestmark = needs_library

PROSE = "The fox jumps over the dog, and rests in the shade of an old oak until the harvest; winters are long. " * 12


@pytest.fixture(scope="module")
def cheap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 216 MiB of experts, every one of which is cheap to leave out."""
    path = tinymoe.write(
        tmp_path_factory.mktemp("cheap") / "cheap.gguf", "qwen3moe", expert_type="F32", n_expert=96, ff=256
    )
    with edgemoe.open_model(path) as model:
        priced.price(path, 1e-6, int(model.info.n_expert_total))
    return path


@pytest.fixture(scope="module")
def tight(cheap: Path) -> int:
    """A budget for it in which most experts are missing, bytes: of a process that runs nothing else."""
    asked = [sys.executable, "-m", "edgemoe", "plan", str(cheap), "--memory", "1GiB", "--ctx", "256", "--json"]
    done = subprocess.run(asked, capture_output=True, check=True)
    return int(json.loads(done.stdout)["smallest_bytes"]) + (32 << 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--lossy", 0.005), "below 0.01 nats a token"),
        (("--lossy", 2), "cannot be kept"),
        (("--lossy", 0.02, "--draft", 2), "not to be had with `--draft`"),
        (("--lossy", 0.02, "--device", "auto"), "not to be had with `--device`"),
        (("--lossy", 0.02, "--prefetch", "on"), "not to be had with `--prefetch`"),
        (("--lossy", "much"), "much"),
    ],
)
def test_what_cannot_be_is_refused_in_words(cli: Cli, good: Path, arguments: tuple[object, ...], words: str) -> None:
    done = cli("run", good, "-p", "hello", *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_without_a_calibration_the_command_that_makes_one_is_named(cli: Cli, good: Path) -> None:
    for command in (("run", good, "-p", "hello"), ("eval", good)):
        done = cli(*command, "--lossy", 0.02)
        assert done.returncode != 0
        assert f"`edgemoe calibrate {good} --text FILE --for-lossy`" in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2


def test_the_command_that_is_named_does_it(cli: Cli, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    shutil.copy(good, path)
    text = tmp_path / "text.txt"
    text.write_text(PROSE)
    done = cli("calibrate", path, "--text", text, "--for-lossy", "--windows", 4, "--ctx", 64, "--memory", "1GiB")
    assert done.returncode == 0, done.stderr
    assert "lossy  leaving out experts was priced from" in done.stdout
    assert path.with_name("mine.gguf.calibration").is_file()
    done = cli("run", path, "-p", "hello", "-n", 4, "--lossy", 0.05, "--memory", "512MiB", "-v")
    assert done.returncode == 0, done.stderr
    assert "of 0.05 nats a token" in done.stderr


def test_a_calibration_for_lossy_chooses_no_bits(cli: Cli, good: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PROSE)
    out = tmp_path / "short.calibration"
    arguments = ("--text", text, "--for-lossy", "--windows", 4, "--ctx", 64, "--memory", "1GiB", "-o", out)
    assert cli("calibrate", good, *arguments).returncode == 0
    assert cli("calibrate", good, *arguments, "--types", "Q4_0").returncode == 2
    done = cli("convert", good, tmp_path / "out.gguf", "--calibration", out, "--bits", 4)
    assert done.returncode == 2 and "measured no quantization" in done.stderr
    done = cli("convert", good, tmp_path / "out.gguf", "--calibration", out, "--type", "Q4_0")
    assert done.returncode == 0, done.stderr


def test_eval_measures_it_against_the_exact_model(cli: Cli, cheap: Path, tight: int, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "found.json"
    text.write_text(PROSE)
    work = ("--text", text, "--ctx", 48, "--windows", 4, "--threads", 1, "--json", out)
    done = cli("eval", cheap, "--lossy", 0.05, "--against", "exact", "--memory", tight, *work)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    lossy, exact = found["decoding"], found["reference_decoding"]
    assert found["score"]["distance"]["kl"] > 0
    assert lossy["skipped"] > 0 and exact["skipped"] == 0
    assert 0 < lossy["n_slot"] < 3 * 96 and 0 < exact["n_slot"] < 3 * 96
    assert lossy["n_token"] == exact["n_token"] == 4 * 23
    assert "of exact" in done.stdout and "skipped" in done.stdout
    # Where all fits it is the model itself.
    done = cli("eval", cheap, "--lossy", 0.05, "--against", "exact", "--memory", "1GiB", *work)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["decoding"]["skipped"] == 0 and found["score"]["distance"]["kl"] == 0
    done = cli("eval", cheap, "--against", "exact", *work)
    assert done.returncode == 2 and "`--against exact` is for `--lossy`" in done.stderr


def test_the_price_is_shown_where_answers_are(cli: Cli, cheap: Path, tight: int) -> None:
    done = cli("chat", cheap, "--lossy", 0.05, "--memory", tight, "-n", 8, stdin="hello\n/stats\n")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("lossy ")]
    assert "of 0.05 nats a token" in line and "left out" in line
    plan = edgemoe.plan(cheap, memory="1GiB", measure=False)
    assert "LOSSY: at most 0.05 nats a token, exact where experts are in memory" in greeting(plan, 0.8, 0.05)
    assert "LOSSY" not in greeting(plan, 0.8)


def test_a_server_tells_clients_and_prometheus(cheap: Path, tight: int, tmp_path: Path) -> None:
    small = ("--threads", 1, "--ctx", 256, "--memory", tight)
    with serving.serve(tmp_path / "cache", cheap, *small, "--lossy", 0.05) as server:
        body = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 16}
        status, found = server.ask("/v1/chat/completions", body)
        assert status == 200
        told = found["usage"]["lossy"]
        assert told["price_nats"] == 0.05 and told["spent_nats"] > 0 and 0 < told["skip_rate"] < 1
        status, found = server.ask("/v1/responses", {"input": "hello there", "max_output_tokens": 8})
        assert status == 200 and found["usage"]["lossy"]["price_nats"] == 0.05
        values = server.metrics()
        assert values["edgemoe_lossy_price_nats"] == 0.05 and values["edgemoe_lossy_spent_nats"] > 0
        assert values["edgemoe_expert_skips_total"] > 0 and values["edgemoe_skipped_bytes_total"] > 0


def test_an_exact_server_says_nothing_of_it(good: Path, tmp_path: Path) -> None:
    with serving.serve(tmp_path / "cache", good, "--threads", 1, "--ctx", 256, "--memory", "512MiB") as server:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        _, found = server.ask("/v1/chat/completions", body)
        assert "lossy" not in found["usage"]
