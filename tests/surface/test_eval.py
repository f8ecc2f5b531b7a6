"""`edgemoe eval`: figures that stock llama.cpp gives too, a distance that is 0 to itself, tasks that can fail."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from console import Cli, needs_library

pytestmark = needs_library

PROSE = (
    "The quick brown fox jumps over the lazy dog, and then it rests in the shade of an old oak. Nobody had seen it "
    "before the harvest; the miller's daughter said that it came from the hills, where winters are long.\n"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "text.txt"
    path.write_text(PROSE)
    return path


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good model's weights in fewer bits."""
    import tinymoe

    return tinymoe.write(tmp_path_factory.mktemp("worse") / "worse.gguf", "qwen3moe", expert_type="Q2_K")


def evaluate(cli: Cli, out: Path, *arguments: object) -> dict[str, Any]:
    done = cli("eval", *arguments, "--json", out)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(out.read_text())
    return value


def stock_perplexity(path: Path, tokens: Sequence[int], n_ctx: int, n_window: int) -> float:
    """As llama.cpp's perplexity tool defines it, from the logits of stock llama.cpp, a token at a time."""
    import numpy as np
    from exact_engines import stock

    losses = []
    for i in range(n_window):
        window = tokens[i * n_ctx : (i + 1) * n_ctx]
        rows = stock(path, [window[: n_ctx // 2], *([token] for token in window[n_ctx // 2 : -1])])
        for row, token in zip(rows[1:], window[n_ctx // 2 + 1 :], strict=True):
            logits = np.frombuffer(row, np.float32).astype(np.float64)
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])
    return math.exp(sum(losses) / len(losses))


def test_perplexity_is_that_of_stock_llama_cpp(cli: Cli, good: Path, text: Path, tmp_path: Path) -> None:
    import edgemoe

    with edgemoe.load(good, memory="1GiB", ctx=64) as engine:
        assert engine.tokenize("") == []  # else the test would have to put BOS where the command does
        tokens = engine.tokenize(PROSE, special=False)
    found = evaluate(cli, tmp_path / "a.json", good, "--text", text, "--ctx", 48, "--windows", 3)["score"]
    assert (found["n_window"], found["n_token"], found["distance"]) == (3, 3 * 23, None)
    assert found["ppl"] == pytest.approx(stock_perplexity(good, tokens, 48, 3), rel=1e-3)
    assert 0 < found["ppl_error"] < found["ppl"]


def test_a_model_has_no_distance_to_itself_and_some_to_another(
    cli: Cli, good: Path, worse: Path, text: Path, tmp_path: Path
) -> None:
    common = ("--text", text, "--ctx", 48, "--windows", 3)
    far = evaluate(cli, tmp_path / "a.json", worse, "--against", good, *common)["score"]
    saved = tmp_path / "good.reference"
    own = evaluate(cli, tmp_path / "b.json", good, "--save", saved, *common)["score"]
    same = evaluate(cli, tmp_path / "c.json", good, "--against", saved, *common)["score"]
    assert evaluate(cli, tmp_path / "d.json", worse, "--against", saved, *common)["score"] == far
    near, far = same["distance"], far["distance"]
    assert near["kl"] == near["kl_max"] == near["ln_ratio"] == 0
    assert near["top1"] == 1
    assert own["ppl"] == same["ppl"] == near["ppl"] == far["ppl"]
    assert 0 < far["kl_median"] <= far["kl_p90"] <= far["kl_p99"] <= far["kl_max"]
    assert 0 < far["kl"] < 20 and far["top1"] < 1


def test_a_reference_of_another_text_is_refused(cli: Cli, good: Path, text: Path, tmp_path: Path) -> None:
    saved = tmp_path / "good.reference"
    assert cli("eval", good, "--text", text, "--ctx", 32, "--windows", 1, "--save", saved).returncode == 0
    done = cli("eval", good, "--text", text, "--ctx", 32, "--windows", 2, "--against", saved)
    assert done.returncode == 2 and "of another text" in done.stderr
    saved.write_bytes(saved.read_bytes()[:-4])
    done = cli("eval", good, "--text", text, "--ctx", 32, "--windows", 1, "--against", saved)
    assert done.returncode == 1 and "no whole reference" in done.stderr and "Traceback" not in done.stderr


def test_a_text_that_is_too_short_is_refused(cli: Cli, good: Path, text: Path) -> None:
    done = cli("eval", good, "--text", text, "--ctx", 64, "--windows", 100)
    assert done.returncode == 2
    assert "100 windows of 64 need more" in done.stderr


def test_tasks_are_scored(cli: Cli, good: Path, worse: Path, tmp_path: Path) -> None:
    import edgemoe

    with edgemoe.load(good, memory="1GiB", ctx=64) as engine:
        prompts = ["The fox", "Nobody had seen"]
        written = ["".join(engine.generate(prompt, max_tokens=4, stop=("\n",))) for prompt in prompts]
    lines: list[dict[str, Any]] = [
        {"prompt": prompts[0], "answer": ["no such text", written[0].upper()], "max_tokens": 4},
        {"prompt": prompts[1], "answer": "never this", "max_tokens": 4, "id": "wrong"},
        {"prompt": "It rests in", "choices": [" the shade", " qzxv#"], "answer": 0},
        {"prompt": "It rests in", "choices": [" the shade", " qzxv#"], "answer": 1},
        {"prompt": "It rests in", "choices": ["the", "them"], "answer": 0, "chat": True},
    ]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    value = evaluate(cli, tmp_path / "a.json", good, "--tasks", tasks, "--ctx", 256, "--against", worse)
    found = value["tasks"]
    assert "score" not in value
    assert value["reference_tasks"]["n"] == found["n"] == 5
    assert [answer[2] for answer in found["answers"][:2]] == [True, False]
    assert found["answers"][1][0] == "wrong"
    # Of the same two choices exactly one is right, whatever a random model prefers.
    assert found["answers"][2][1] == found["answers"][3][1]
    assert found["answers"][2][2] != found["answers"][3][2]
    assert found["n_right"] == sum(answer[2] for answer in found["answers"])
    said = cli("eval", good, "--tasks", tasks, "--ctx", 256, "--against", good).stdout
    assert "changed     0 became wrong, 0 became right" in said and " ± " in said


@pytest.mark.parametrize(
    "line",
    ["not JSON", "[]", '{"prompt": ""}', '{"prompt": "a"}', '{"prompt": "a", "choices": ["b"], "answer": 1}',
     '{"prompt": "a", "choices": [1], "answer": 0}', '{"prompt": "a", "answer": "b", "max_tokens": 0}'],
)  # fmt: skip
def test_a_wrong_task_is_named(cli: Cli, good: Path, tmp_path: Path, line: str) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    done = cli("eval", good, "--tasks", tasks)
    assert done.returncode == 1
    assert "line 2" in done.stderr and "Traceback" not in done.stderr


def test_nonsense_is_refused(cli: Cli, good: Path, tmp_path: Path) -> None:
    for arguments in (("--windows", 0), ("--ctx", 2), ("--save", tmp_path / "a", "--against", good)):
        assert cli("eval", good, *arguments).returncode == 2
    assert cli("eval", good, "--against", tmp_path / "absent.gguf").returncode == 2
    assert cli("eval", good, "--json", tmp_path / "no" / "a.json").returncode == 1
