"""`edgemoe inspect` and `edgemoe plan`: for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path

import serving
from console import Cli, needs_library

pytestmark = needs_library


def test_inspect_tells_what_a_person_asks(cli: Cli, good: Path) -> None:
    done = cli("inspect", good)
    assert done.returncode == 0, done.stderr
    for word in ("qwen3moe", "experts", "per token", "dense weights", "smallest budget", "--memory", "Q4_K"):
        assert word.lower() in done.stdout.lower(), word


def test_inspect_json_adds_up(cli: Cli, good: Path) -> None:
    facts = json.loads(cli("inspect", good, "--json").stdout)
    assert len(facts["layers"]) == facts["n_moe_layer"]
    assert facts["n_expert_total"] == sum(layer["n_expert"] for layer in facts["layers"])
    assert facts["expert_bytes"] == sum(layer["expert_bytes"] * layer["n_expert"] for layer in facts["layers"])
    assert facts["smallest_budget_bytes"] > facts["dense_bytes"]


def test_plan_adds_up_to_the_budget(cli: Cli, good: Path) -> None:
    done = cli("plan", good, "--memory", "512M", "--ctx", "1024", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    parts = ("process", "dense", "kv", "decode", "output", "margin", "cache")
    assert sum(plan[f"{part}_bytes"] for part in parts) <= plan["budget_bytes"] == 512 << 20
    assert plan["n_ctx"] == 1024
    assert plan["fraction"] == 1
    assert plan["prefill_bytes"] == plan["compute_bytes"] + plan["scratch_bytes"] - plan["decode_bytes"]
    assert plan["prefill_bytes"] <= plan["cache_bytes"]
    assert plan["reader"] in ("uring", "threads")


def test_plan_of_several_answers_is_what_the_server_takes(cli: Cli, good: Path, tmp_path: Path) -> None:
    options = ("--memory", "512M", "--ctx", 1024, "--threads", 1, "--parallel", 3)
    told = json.loads(cli("plan", good, *options, "--json").stdout)
    one = json.loads(cli("plan", good, *options[:-2], "--json").stdout)
    assert told["n_sequence"] == 3 and told["kv_bytes"] > 2.5 * one["kv_bytes"]
    assert "1,024 tokens for each of 3 answers" in cli("plan", good, *options).stdout
    with serving.serve(tmp_path / "cache", good, *options) as server:
        parts = server.live()["memory"]["parts"]
    assert (parts["KV cache"], parts["dense weights"]) == (told["kv_bytes"], told["dense_bytes"])
    # Libraries included: what a process has beside the plan differs by little from one to the next.
    assert abs(parts["process"] - told["process_bytes"]) < 8 << 20


def test_plan_is_readable(cli: Cli, good: Path) -> None:
    done = cli("plan", good, "--memory", "512M")
    assert "expert cache" in done.stdout
    assert "lent" in done.stdout
    assert "the page cache" in done.stdout
    assert "tok/s" in done.stdout
    assert done.stderr == ""
