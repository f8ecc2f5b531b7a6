"""An export as a person uses it: every command takes it, the budget holds, and what is damaged says so in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_extra  # noqa: F401
import pytest
import tinyhf
from bounded import budgets, run_limited
from console import Cli, needs_library

from edgemoe.converters.convert import open_source
from edgemoe.converters.onnx.export import Options, export

pytestmark = needs_library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small export."""
    home = tmp_path_factory.mktemp("onnx")
    export(open_source(tinyhf.write(home / "hf", "qwen3_moe")), home / "export", Options())
    return home / "export"


def test_plan_inspect_run_and_chat_take_it(cli: Cli, folder: Path) -> None:
    plan = cli("plan", folder, "--memory", "1GiB", "--json")
    assert plan.returncode == 0 and json.loads(plan.stdout)["n_expert_total"] == 16, plan.stderr
    shown = cli("inspect", folder)
    assert shown.returncode == 0 and "8x4-bit" in shown.stdout, shown.stderr + shown.stdout
    answer = cli("run", folder, "-p", "hello", "-n", "5", "--memory", "1GiB", "--ctx", "64", "-v")
    assert answer.returncode == 0 and "tok/s" in answer.stderr, answer.stderr
    talk = cli("chat", folder, "--memory", "1GiB", "--ctx", "128", "-n", "5", stdin="hello\n")
    assert talk.returncode == 0, talk.stderr
    same = cli("run", folder / "model.onnx", "-p", "hello", "-n", "5", "--memory", "1GiB", "--ctx", "64")
    assert same.stdout == answer.stdout


def test_what_cannot_be_is_refused_before_anything_is_packed(cli: Cli, folder: Path) -> None:
    done = cli("run", folder, "-p", "x", "--memory", "50M")
    assert done.returncode == 2 and "too small" in done.stderr and "use `--memory" in done.stderr
    refused = cli("run", folder, "-p", "x", "--kv-type", "q8_0")
    assert refused.returncode == 2 and "kv-type" in refused.stderr


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("foreign", "is no ONNX export of edgemoe"),
        ("cut", "are due"),
        ("missing", "is missing"),
        ("garbage", "cannot take"),
        ("json", "is damaged"),
        ("number", "is damaged: `n_head` is"),
        ("outside", "is damaged: it names a file"),
        ("bits", "neither 2, 4 nor 8 bits"),
        ("vocabulary", "llama.cpp refuses the vocabulary"),
    ],
)
def test_what_is_damaged_or_foreign_says_so_in_a_line(
    cli: Cli, folder: Path, tmp_path: Path, harm: str, said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "edgemoe.json").read_text())
    if harm == "foreign":
        (copy / "edgemoe.json").unlink()
    elif harm == "cut":
        data = copy / "experts-00001.onnx.data"
        data.write_bytes(data.read_bytes()[:-100])
    elif harm == "missing":
        (copy / "experts-00001.onnx.data").unlink()
    elif harm in ("garbage", "vocabulary"):
        path = copy / ("model.onnx" if harm == "garbage" else "vocabulary.gguf")
        path.write_bytes(b"\x99" * path.stat().st_size)
    elif harm == "json":
        (copy / "edgemoe.json").write_text("{")
    else:
        changes = {"number": {"n_head": "4"}, "outside": {"files": {**manifest["files"], "../x": 1}}, "bits": {}}
        manifest |= changes[harm]
        if harm == "bits":
            manifest["experts"][0]["experts"][2]["bits"] = 3
        (copy / "edgemoe.json").write_text(json.dumps(manifest))
    done = cli("run", copy, "-p", "x", "-n", "1", "--memory", "1GiB", "--ctx", "64")
    lines = done.stderr.strip().splitlines()
    lines = [line for line in lines if not line.startswith(("packing", "loading"))]
    assert done.returncode in (1, 2) and said in lines[0] and len(lines) <= 2, done.stderr
    assert lines[0].startswith("edgemoe: ")


@pytest.mark.slow
def test_budgets_hold_under_the_kernels_limit(
    smolmoe: Path, wikitext: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    export(open_source(smolmoe), tmp_path / "out", Options(type_name="4"))
    n_prompt, n_answer = 600, 150
    smallest, resident = budgets(tmp_path / "out", n_prompt + n_answer, environment)
    n_evict = []
    for budget in (smallest, (smallest + resident) // 2, resident):
        result = run_limited(tmp_path / "out", wikitext, budget, n_prompt, n_answer, environment)
        assert result["n_past"] >= n_prompt + n_answer - 1
        assert result["peak"] <= budget
        n_evict.append(result["evict"])
    assert n_evict[0] > 1000
    assert n_evict == sorted(n_evict, reverse=True)


@pytest.mark.slow
def test_a_benchmark_has_both_ways_in_one_table(cli: Cli, tmp_path: Path) -> None:
    import tinymoe

    path = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    export(open_source(path), tmp_path / "out", Options())
    few = ("--decode", "4", "--warmup", "1", "--prefill", "16", "--repeat", "1", "--no-resident", "--memory", "300M")
    done = cli("bench", path, "--against", tmp_path / "out", *few, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    sides = json.loads((tmp_path / "r.json").read_text())["summary"]["sides"]
    assert set(sides) == {"edgemoe", "onnx"} and "onnx" in done.stdout.splitlines()[1]
    alone = cli("bench", tmp_path / "out", *few)
    assert alone.returncode == 0 and "decode" in alone.stdout, alone.stderr
    wrong = cli("bench", path, "--against", tmp_path, *few)
    assert wrong.returncode == 2 and "is a folder" in wrong.stderr
