from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edgemoe import _native
from edgemoe.devices import compute, cpu, storage
from edgemoe.devices.profile import DeviceProfile, contradict
from edgemoe.errors import StorageError
from edgemoe.paths import cache_dir, read_cached, write_cached


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


def test_there_is_a_core_and_it_has_a_name() -> None:
    assert cpu.physical_cores() >= 1
    assert cpu.cpu_name()
    assert all(flag.islower() for flag in cpu.isa_flags())


def test_storage_is_measured_once_a_file_and_block_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def measure(path: str, block_bytes: int, *rest: int) -> dict[str, Any]:
        asked.append(block_bytes)
        return {"bytes_per_s": 10**9, "latency_ns": 80_000, "direct_io": 1}

    monkeypatch.setattr(_native, "storage_measure", measure)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 100)
    assert storage.cached_storage(file, 4096) is None
    first = storage.measure_storage(file, 4096)
    assert (first.bytes_per_s, first.latency_s, first.direct_io) == (1e9, 8e-5, True)
    assert storage.measure_storage(file, 4096) == storage.cached_storage(file, 4096) == first
    storage.measure_storage(file, 8192)
    assert asked == [4096, 8192]
    file.write_bytes(b"y" * 200)  # another file now
    storage.measure_storage(file, 4096)
    storage.measure_storage(file, 4096, fresh=True)
    assert asked == [4096, 8192, 4096, 4096]


def test_lanes_are_the_fewest_that_come_near_the_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speeds = {2: 1.0e9, 4: 1.9e9, 8: 2.0e9, 16: 1.95e9}
    asked: list[tuple[int, int]] = []

    def measure(path: str, block_bytes: int, n_lane: int, max_bytes: int, max_ns: int) -> dict[str, Any]:
        asked.append((n_lane, max_bytes))
        # One round is disturbed: the best of a setting counts.
        slower = 0.2 if len(asked) <= 4 else 1.0
        return {"bytes_per_s": speeds[n_lane] * slower, "latency_ns": 1, "direct_io": 1}

    monkeypatch.setattr(_native, "storage_measure", measure)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x")
    os.truncate(file, 1 << 30)
    assert storage.find_lanes(file, 1 << 16, max_bytes=8 << 20) == 4
    n = len(asked)
    assert {bound for _, bound in asked} == {8 << 20}
    assert storage.find_lanes(file, 1 << 16, max_bytes=8 << 20) == 4  # known
    assert len(asked) == n
    assert storage.find_lanes(file, 1 << 20, max_bytes=8 << 20) == storage.N_LANE  # too little memory to tell
    assert len(asked) == n


def test_lanes_of_a_real_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(os.urandom(4 << 20))
    assert storage.find_lanes(file, 1 << 16, max_bytes=4 << 20) in (2, 4, 8, 16)
    with pytest.raises(StorageError):
        storage.measure_storage(tmp_path, 1)


def test_compute_speed_is_measured_once_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_native, "build_stamp", lambda: "test")

    def measure(name: str, threads: int, ns: int) -> int:
        asked.append(name)
        return 5 * 10**9

    monkeypatch.setattr(_native, "compute_measure", measure)
    assert compute.cached_compute("Q4_K", 2) is None
    assert compute.measure_compute("Q4_K", 2) == compute.measure_compute("Q4_K", 2) == 5e9
    assert compute.cached_compute("Q4_K", 4) is None
    assert asked == ["Q4_K"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is not asked")
def test_a_file_lies_on_a_filesystem(tmp_path: Path) -> None:
    assert storage.describe(tmp_path).filesystem


def test_a_profile_is_json_and_back() -> None:
    speed = storage.StorageSpeed(1e9, 1e-4, 4096, 4, True)
    for found in (DeviceProfile(2, 2, 10, 9, 8, speed, "Q4_K", 5e9), DeviceProfile(2, 2, 10, 9, 8)):
        assert DeviceProfile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' rule; test_files.py has the others")
def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("EDGEMOE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "edgemoe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "edgemoe"


def test_what_is_cached_badly_counts_as_absent() -> None:
    write_cached("x.json", {"a": 1})
    assert read_cached("x.json") == {"a": 1}
    for text in ("", "{", "[1]", "\x00"):
        (cache_dir() / "x.json").write_text(text)
        assert read_cached("x.json") == {}
    assert read_cached("absent.json") == {}
    assert not list(cache_dir().glob("*.tmp"))


def test_a_speed_that_a_run_was_faster_than_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured beside other work, it would make every plan promise too little for ever."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 100)
    speeds = {"storage": 1e8, "compute": 1e9}
    measured = {"latency_ns": 80_000, "direct_io": 1}
    monkeypatch.setattr(_native, "storage_measure", lambda *_: {**measured, "bytes_per_s": speeds["storage"]})
    monkeypatch.setattr(_native, "compute_measure", lambda *_: speeds["compute"])

    def run(read: float | None, computed: float | None) -> tuple[float, float]:
        contradict(file, 4096, "Q4_K", 2, read_bytes_per_s=read, compute_bytes_per_s=computed)
        return storage.measure_storage(file, 4096).bytes_per_s, compute.measure_compute("Q4_K", 2)

    assert run(None, None) == (1e8, 1e9)
    speeds.update(storage=9e8, compute=8e9)
    assert run(1.5e8, 0.9e9) == (1e8, 1e9)  # no contradiction
    assert run(None, 0.1e9) == (1e8, 1e9)  # slower: that run may have had a busy machine
    assert run(8e8, None) == (9e8, 1e9)
    assert run(8e8, 4e9) == (9e8, 8e9)
    assert run(8e8, 4e9) == (9e8, 8e9)
