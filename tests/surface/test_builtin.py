"""The built-in model, as a newcomer meets it: chat with nothing else, a budget, the same words, models by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from console import PACKAGE, Cli, needs_library

from edgemoe.places import BUILTIN, builtin_path

pytestmark = [
    needs_library,
    pytest.mark.skipif(builtin_path() is None, reason=f"edgemoe/models/{BUILTIN}.gguf is not in this checkout"),
]

QUESTION = "What is the capital of France?\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home directory."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    """A newcomer's: nothing but a home and the package."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    return {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONUTF8": "1"}


@pytest.fixture(scope="module")
def cli(environment: dict[str, str]) -> Cli:
    def call(*arguments: object, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgemoe", *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=environment, timeout=timeout, check=False
        )

    return call


@pytest.fixture(scope="module")
def small(cli: Cli) -> subprocess.CompletedProcess[str]:
    return cli("chat", "-n", "24", stdin=f"{QUESTION}/stats\n")


def test_chat_with_nothing_else_answers_in_a_third_of_the_experts(small: subprocess.CompletedProcess[str]) -> None:
    assert small.returncode == 0, small.stderr
    assert "Paris" in small.stdout
    assert "evicted" in small.stdout and ", 0 evicted" not in small.stdout  # the others really were streamed
    room = int(small.stdout.split("room for ")[1].split("\n")[0].replace(",", ""))
    assert 0.25 < room / 1440 < 0.36


def test_the_words_are_those_of_the_whole_model_in_memory(cli: Cli, small: subprocess.CompletedProcess[str]) -> None:
    whole = cli("chat", "--memory", "auto", "--ctx", "2048", "-n", "24", stdin=f"{QUESTION}/stats\n")
    assert whole.returncode == 0, whole.stderr
    assert ", 0 evicted" in whole.stdout
    assert whole.stdout.split("\n")[0] == small.stdout.split("\n")[0]


def test_the_demo_shows_equal_texts_and_two_honest_peaks(cli: Cli) -> None:
    done = cli("demo", "-n", "12", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    resident, streamed = found["resident"], found["streamed"]
    assert found["equal"] and resident["text"] == streamed["text"] and "Paris" in resident["text"]
    assert resident["n_slot"] == resident["n_expert_total"] and resident["hit_rate"] == 1
    assert streamed["n_slot"] == pytest.approx(streamed["n_expert_total"] / 3, rel=0.05)
    assert streamed["read_bytes"] > 0 == resident["read_bytes"]
    assert streamed["peak_bytes"] < resident["peak_bytes"]
    for side in (resident, streamed):
        assert side["peak_bytes"] <= side["budget_bytes"] and side["decode_tok_s"] > 0


def test_models_lists_the_built_in_one_and_a_file_in_a_hub_cache(
    cli: Cli, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import tinymoe

    hub = home / ".cache/huggingface/hub/models--someone--Tiny-MoE-GGUF"
    (hub / "blobs").mkdir(parents=True)
    tinymoe.write(hub / "blobs" / "cafe", "qwen3moe")
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "snapshots" / "abc" / "tiny-moe-Q4_K.gguf").symlink_to(hub / "blobs" / "cafe")
    studio = home / ".lmstudio/models/someone/dense"
    studio.mkdir(parents=True)
    tinymoe.write(studio / "small-dense.gguf", "llama-dense")
    (studio / "half.gguf").write_bytes(b"GGUF")
    try:
        listed = {model["name"]: model for model in json.loads(cli("models", "--json").stdout)}
        table = cli("models").stdout
        answer = cli("run", "tiny-moe", "-p", "hello", "-n", "4")
    finally:
        shutil.rmtree(studio)
        shutil.rmtree(hub)
    assert next(iter(listed)) == BUILTIN
    assert listed[BUILTIN]["kind"] == listed["tiny-moe-Q4_K"]["kind"] == "runs"
    assert listed["tiny-moe-Q4_K"]["plan"]["prediction"]["low"] > 0
    assert listed["small-dense"]["kind"] == "not streamed" and "dense" in listed["small-dense"]["reason"]
    assert listed["half"]["kind"] == "broken" and listed["half"]["reason"]
    assert "tok/s" in next(line for line in table.splitlines() if line.startswith("tiny-moe-Q4_K"))
    assert "not streamed" in next(line for line in table.splitlines() if line.startswith("small-dense"))
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr


def test_models_judge_for_the_budget_that_is_asked_about(cli: Cli) -> None:
    (ours,) = json.loads(cli("models", "--memory", "64M", "--json").stdout)
    assert ours["kind"] == "too small" and ours["smallest_bytes"] > 64 << 20
    assert "too little memory" in cli("models", "--memory", "64M").stdout


@pytest.mark.slow
def test_the_answer_needs_no_network(environment: dict[str, str]) -> None:
    command = ["unshare", "-n", sys.executable, "-m", "edgemoe", "chat", "-n", "24"]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("this system gives no network namespaces")
    done = subprocess.run(command, input=QUESTION, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
