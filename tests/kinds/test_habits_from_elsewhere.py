"""What people bring along: flags of llama.cpp and Ollama, quotes, pasted lines, no MODEL, sets of files, seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import serving
import tinymoe
from console import Cli, needs_library
from terminal import terminal

from edgemoe.errors import UsageError
from edgemoe.places import BUILTIN
from edgemoe.runtime.text.sampling import Sampling


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "-m", "x.gguf", "-p", "hi"), "MODEL stands without an option: `edgemoe run MODEL`"),
        (("run", "--model=x.gguf"), "MODEL stands without an option"),
        (("chat", "x.gguf", "-ngl", "99"), "`--device auto` and `--gpu-memory SIZE`"),
        (("chat", "x.gguf", "--ctx-size", "4096"), "`--ctx N`"),
        (("run", "x.gguf", "--n-predict", "5"), "`--max-tokens N`"),
        (("run", "x.gguf", "--temperature", "1"), "`--temp T`"),
        (("chat", "-hf", "owner/repo"), "hf:owner/repo"),
        (("run", "x.gguf", "why is the sky blue?"), "edgemoe run x.gguf -p TEXT"),
        (("serve", "x.gguf", "--alias", "m"), "NAME=MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_of_others_get_a_hint(cli: Cli, arguments: tuple[str, ...], hint: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2 and hint in done.stderr.splitlines()[-1], done.stderr


@needs_library
def test_short_flags_work(cli: Cli, good: Path) -> None:
    done = cli("run", good, "-c", "512", "-t", "1", "-n", "2", "-p", "hi", "-v")
    assert done.returncode == 0 and "512 tokens" in done.stderr and "1 threads" in done.stderr


@needs_library
def test_what_stands_between_three_quotes_is_a_message(cli: Cli, good: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    texts = ["// what does this do?\nint x;", "/exit", "/help", "    /usr/bin/env"]
    lines = "".join(f'"""{text}"""\n' for text in texts) + f"/save {saved}\n"
    done = cli("chat", good, "-n", "2", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert [m["content"] for m in json.loads(saved.read_text()) if m["role"] == "user"] == texts


@needs_library
def test_lines_that_are_pasted_together_are_one_message(
    good: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit knows no bracketed paste")
    saved = tmp_path / "chat.json"
    with terminal(["chat", str(good), "-n", "2"], environment, kind="xterm") as person:
        person.expect(">>> ")
        person.type("\x1b[200~/* one\ntwo */\nthree\x1b[201~\r")
        person.expect("tok/s")
        person.expect(">>> ")
        person.type(f"/save {saved}\r")
        person.expect("saved to")
        person.type("/set parameter num_ctx 4096\r")
        person.expect("the context is given at the start")
        person.type("/load llama3\r")
        person.expect("for another model start again")
    assert [m["content"] for m in json.loads(saved.read_text()) if m["role"] == "user"] == ["/* one\ntwo */\nthree"]


@needs_library
def test_without_a_model_commands_take_the_built_in_one(cli: Cli, smolmoe: Path, tmp_path: Path) -> None:
    with serving.serve(tmp_path) as served:
        assert served.ask("/v1/models")[1]["data"][0]["id"] == BUILTIN
    for command in ("eval", "calibrate", "serve"):
        said = " ".join(cli(command, "--help").stdout.split())
        assert "default: (the built-in model)]" in said and "built-in model); required" not in said


@needs_library
@pytest.mark.parametrize("part", [1, 2])
def test_a_set_of_files_is_served_by_the_sets_name(tmp_path: Path, part: int) -> None:
    tinymoe.write(tmp_path / "model.gguf", "qwen3moe", expert_type="Q8_0", n_split=2)
    with serving.serve(tmp_path / "cache", tmp_path / f"model-0000{part}-of-00002.gguf") as served:
        assert served.ask("/v1/models")[1]["data"][0]["id"] == "model"


@needs_library
def test_every_seed_is_repeatable(cli: Cli, good: Path) -> None:
    ask = ("run", good, "-p", "hi", "-n", "24", "--temp", "1", "--seed", 2**32 - 1)
    assert cli(*ask).stdout == cli(*ask).stdout
    done = cli("chat", good, "-n", "4", "--temp", "1", "--seed", 2**32 - 1, stdin="hi\n/regen\n")
    assert done.returncode == 0, done.stderr


@needs_library
def test_a_min_p_of_one_takes_the_likeliest(cli: Cli, good: Path) -> None:
    ask = ("run", good, "-p", "hi", "-n", "8")
    assert cli(*ask, "--temp", "1", "--min-p", "1").stdout == cli(*ask, "--temp", "0").stdout


@pytest.mark.parametrize(
    "values",
    [{"temp": 1e39}, {"repeat_penalty": 1e39}, {"repeat_penalty": 1e-50}, {"top_p": 1e-50}, {"presence_penalty": 1e39}],
    ids=str,
)
def test_numbers_beyond_single_precision_are_refused_with_a_hint(values: dict[str, float]) -> None:
    with pytest.raises(UsageError) as refused:
        Sampling(**values)  # type: ignore[arg-type]
    assert refused.value.hint
