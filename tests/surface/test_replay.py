"""`--trace` and `edgemoe replay`: what is recorded is what happened, and the replay agrees with the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import Cli

import edgemoe
from edgemoe.bench.replay import locality, misses, timeline
from edgemoe.errors import FormatError, StorageError
from edgemoe.runtime.engine.trace import read_trace
from edgemoe.runtime.setup import POLICIES


@pytest.fixture(scope="module")
def recorded(good: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, edgemoe.Stats]:
    path = tmp_path_factory.mktemp("trace") / "run.trace"
    plan = edgemoe.plan(good, memory="90%", ctx=256)
    budget = plan.smallest_bytes + (plan.resident_bytes - plan.smallest_bytes) // 2
    with edgemoe.load(good, memory=budget, ctx=256, policy="lru", prefetch="off", warm_start=False) as engine:
        tokens = [(i * 7) % engine.n_vocab for i in range(60)]
        engine.trace(path)
        for token in tokens:
            engine.eval([token])
        stats = engine.stats()
        engine.trace(None)
        engine.reset()
        engine.eval(tokens[:20])  # not recorded
    return path, stats


def test_a_trace_counts_what_the_engine_counted(recorded: tuple[Path, edgemoe.Stats]) -> None:
    path, stats = recorded
    trace = read_trace(path)
    n_layer = len(trace.n_expert)
    assert len(trace.visit_layer) == 60 * n_layer
    assert len(trace.use_expert) == stats.n_hit + stats.n_miss
    assert sum(1 for state in trace.use_state if state == 0) == stats.n_miss
    assert len(trace.batches) == 60
    assert sum(read[3] for read in trace.reads) == stats.read_bytes
    assert all(0 <= weight <= 1 for weight in trace.use_weight)
    assert sum(trace.use_weight) > 0


def test_replay_of_the_engines_policy_gives_the_engines_misses(recorded: tuple[Path, edgemoe.Stats]) -> None:
    path, stats = recorded
    trace = read_trace(path)
    n_use, n_miss = misses(trace, POLICIES.index("lru"), stats.n_slot)
    assert n_use == stats.n_hit + stats.n_miss
    assert n_miss == stats.n_miss
    best = misses(trace, 100, stats.n_slot)[1]
    assert best <= min(misses(trace, number, stats.n_slot)[1] for number in range(len(POLICIES)))


def test_the_command_prints_every_policy(cli: Cli, recorded: tuple[Path, edgemoe.Stats], tmp_path: Path) -> None:
    path, _ = recorded
    out = tmp_path / "timeline.json"
    done = cli("replay", str(path), "--skip", "4", "--bandwidth", "1G", "--compute", "5", "--timeline", str(out))
    assert done.returncode == 0, done.stderr
    for name in (*POLICIES, "belady", "SRP", "verdict"):
        assert name in done.stdout
    lanes = {event["tid"] for event in json.loads(out.read_text())["traceEvents"]}
    assert {"batch", "expert products", "llama.cpp", "read 00"} <= lanes
    answer = json.loads(cli("replay", str(path), "--json").stdout)
    assert answer["policies"][-1]["policy"] == "belady"
    assert 0 < answer["locality"]["srp"] <= 1


def test_locality_of_a_constant_routing_is_whole(recorded: tuple[Path, edgemoe.Stats]) -> None:
    trace = read_trace(recorded[0]).decode_visits()
    k = trace.about["n_expert_used"]
    for i in range(len(trace.use_expert)):
        trace.use_expert[i] = i % k
    found = locality(trace)
    assert found["srp"] == found["sch"]["1"] == found["neighbours"] == 1.0
    assert timeline(trace)["traceEvents"]


def test_what_is_no_trace_is_refused_in_a_line(cli: Cli, recorded: tuple[Path, edgemoe.Stats], tmp_path: Path) -> None:
    raw = recorded[0].read_bytes()
    bad = tmp_path / "bad"
    for content in (b"", b"GGUF" + bytes(40), raw[:9], raw[:40], raw[:12] + bytes(len(raw) - 12)):
        bad.write_bytes(content)
        with pytest.raises(FormatError):
            read_trace(bad)
    done = cli("replay", str(bad))
    assert done.returncode != 0
    assert "trace" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(StorageError):
        read_trace(tmp_path / "none")
    bad.write_bytes(raw[:-3])  # the last record was cut off: the rest is good
    assert read_trace(bad).visit_layer
