"""`edgemoe shrink`: a table that adds up, the fastest within the price, and the file that it names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymoe
from calibrated import calibration_of
from console import Cli, needs_library

from edgemoe.converters import calibration as files
from edgemoe.converters.calibration import STATS, Prices
from edgemoe.converters.convert import open_source
from edgemoe.quality.prices import nats_of, skipped_uses

pytestmark = needs_library

PRICES = Prices(np.ones(48 * 3, np.float32), [0.001, 0.002, 0.004], [0.002, 0.02, 0.08], [0.01, 0.03, 0.09])


def calibrated(path: Path, *, cost: float) -> Path:
    """A calibration beside the model in which all that its experts give costs so many nats a token a layer."""
    known = calibration_of(open_source(path))
    layers = {}
    for number, layer in known.layers.items():
        stats = layer.stats.copy()
        output2 = stats[:, STATS.index("output2")]
        stats[:, STATS.index("output2")] = output2 * (known.n_token * cost / 0.1 / output2.sum())
        layers[number] = dataclasses.replace(layer, stats=stats)
    prices = dataclasses.replace(PRICES, cost=np.ones(sum(x.n_expert for x in layers.values()), np.float32))
    files.save(dataclasses.replace(known, layers=layers, prices=prices), path.with_name(path.name + ".calibration"))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tinymoe.write(tmp_path_factory.mktemp("shrink") / "m.gguf", "qwen3moe", expert_type="Q8_0")
    return calibrated(path, cost=0.1)


def shown(cli: Cli, model: Path, *arguments: object) -> dict[str, Any]:
    done = cli("shrink", model, "--json", "--memory", "400M", "--ctx", 256, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_table_goes_from_what_is_there_to_what_costs_most(cli: Cli, model: Path) -> None:
    found = shown(cli, model, "--price", 0.05)
    ways = found["ways"]
    assert (ways[0]["kind"], ways[0]["nats"]) == ("exact", 0)
    assert {way["kind"] for way in ways} == {"exact", "bits", "prune"}  # all fits: nothing would be left out
    for kind in ("bits", "prune"):
        rows = [way for way in ways if way["kind"] == kind]
        assert [way["nats"] for way in rows] == sorted(way["nats"] for way in rows)
        assert [way["expert_bytes"] for way in rows] == sorted((w["expert_bytes"] for w in rows), reverse=True)
        assert all(way["expert_bytes"] < ways[0]["expert_bytes"] for way in rows)
        assert any(0.6 * 0.05 < way["nats"] <= 0.05 for way in rows)  # the most that the price allows
    assert all(way["low"] <= way["high"] and way["fraction"] == 1 for way in ways)
    best = ways[found["best"]]
    assert best["nats"] <= 0.05 and best["high"] == max(w["high"] for w in ways if w["nats"] <= 0.05)


def test_what_it_names_is_what_it_writes(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    arguments = ("--price", 0.3, "--memory", "400M", "--ctx", 256)
    best = (found := shown(cli, model, "--price", 0.3))["ways"][found["best"]]
    asked = cli("shrink", model, *arguments)  # nobody there to ask: it says how
    assert asked.returncode == 0 and "to write it: `edgemoe convert" in asked.stdout and "* --" in asked.stdout
    assert [path.name for path in model.parent.iterdir() if path.suffix == ".gguf"] == [model.name]
    done = cli("shrink", model, *arguments, "-o", out)
    assert done.returncode == 0, done.stderr
    assert best["kind"] in ("bits", "prune") and f"* --{best['kind']}" in done.stdout
    written = cli("inspect", out, "--json")
    size = json.loads(written.stdout)["expert_bytes"]
    assert size == pytest.approx(best["expert_bytes"], rel=0.03)


def test_what_cannot_be_is_said_in_a_line(cli: Cli, good: Path, model: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        done = cli("shrink", *arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) <= 3, done.stderr
        return done.stderr

    assert "there is no calibration" in refused(good)
    assert "buys nothing" in refused(model, "--price", 0)
    assert "writes no model" in refused(model, "--json", "--yes")
    assert "is a folder" in refused(tmp_path)
    assert "LOSSY" in cli("shrink", "--help").stdout


def test_sums_of_costs_become_nats_as_they_were_measured() -> None:
    assert nats_of(PRICES, 0.0) == 0 and nats_of(PRICES, 0.001) == 0.01  # any change costs the floor
    assert nats_of(PRICES, 0.05) == pytest.approx(0.06) and nats_of(PRICES, 0.16) == pytest.approx(0.18)
    assert nats_of(None, 0.07) == 0.07
    assert skipped_uses(PRICES, 0.03) == pytest.approx(0.02 / (0.002 * 2 / 3))
