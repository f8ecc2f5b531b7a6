"""`edgemoe devices`: the machine, for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import Cli, needs_library

from edgemoe.cli.devices import _lines
from edgemoe.devices.gpu import Gpu, gpus
from edgemoe.devices.storage import StorageSpeed
from edgemoe.devices.survey import Drive, Survey

pytestmark = needs_library


def test_the_machine_is_described_and_remembered(cli: Cli, good: Path) -> None:
    done = cli("devices", good, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["n_core"] >= 1
    assert facts["available_bytes"] <= facts["limit_bytes"] <= facts["total_bytes"]
    assert "CPU" in facts["backends"]
    assert all(speed > 1e6 for speed in facts["compute"].values())
    assert [speed["n_lane"] for speed in facts["drive"]["large"]] == [1, 2, 4, 8, 16]
    assert all(speed["bytes_per_s"] > 0 for speed in facts["drive"]["large"])
    assert 0 < facts["drive"]["small"]["latency_s"] < 10
    again = json.loads(cli("devices", good, "--json").stdout)
    assert again["drive"] == facts["drive"]
    assert again["compute"] == facts["compute"]
    fresh = json.loads(cli("devices", good, "--json", "--fresh").stdout)
    assert fresh["drive"]["large"] != facts["drive"]["large"]


def test_it_is_readable(cli: Cli, good: Path) -> None:
    done = cli("devices", good)
    assert done.returncode == 0, done.stderr
    for word in ("cpu", "memory", "drive", "1 MiB reads", "4 KiB read", "gpu"):
        assert word in done.stdout


def test_a_file_that_is_not_there_is_one_line(cli: Cli, tmp_path: Path) -> None:
    done = cli("devices", tmp_path / "absent.gguf")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "absent.gguf" in done.stderr


@pytest.mark.parametrize(("unified", "words"), [(False, "70 GiB of it free"), (True, "the system's memory")])
def test_gpus_are_told(unified: bool, words: str) -> None:
    speed = StorageSpeed(1e9, 1e-4, 1 << 20, 1, True)
    drive = Drive("m.gguf", "ext4", "/dev/sda", "/", (speed,), speed, 2)
    gpu = Gpu(1, "CUDA", "CUDA0", "NVIDIA H100", unified, 80 << 30, 70 << 30)
    found = Survey("A CPU", (), 2, 8 << 30, 4 << 30, 3 << 30, {"q8_0": 1e10}, drive, ("CPU", "CUDA"), (gpu,))
    text = "\n".join(_lines(found))
    assert "NVIDIA H100 (CUDA), 80 GiB" in text
    assert words in text
    assert "--device cuda" in text
    assert "limited to 4 GiB" in text


def test_auto_says_what_it_took_and_the_default_is_silent(cli: Cli, good: Path) -> None:
    found = gpus()
    done = cli("plan", good, "--device", "AUTO", "--memory", "2G", "--json")
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout)["device"]
    said = [line for line in done.stderr.splitlines() if "CPU" in line and not line.startswith("ggml_")]
    assert len(said) == 1
    assert said[0].endswith("(`--device cpu` for the CPU)" if found else "no GPU in this llama.cpp; the CPU computes")
    assert (took in said[0]) and (took != "") == bool(found)
    done = cli("plan", good, "--memory", "2G", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["device"] == ""
