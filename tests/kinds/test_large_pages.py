"""A kernel with pages of 16 KiB (Raspberry Pi 5, Apple silicon): an export's experts leave memory all the same."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import onnx_extra  # noqa: F401
import pytest
import tinyhf

import edgemoe
from edgemoe import _native
from edgemoe.converters.convert import open_source

LARGE = 16384


def test_the_size_of_a_page_is_asked() -> None:
    from edgemoe.runtime.onnx import model, prepare, residency

    for module in (model, prepare, residency):
        assert vars(module)["PAGE"] == mmap.PAGESIZE


def test_every_piece_that_is_dropped_is_whole_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a kernel answers EINVAL to any other piece, and nothing leaves memory."""
    from edgemoe.converters.onnx.export import Options, export
    from edgemoe.runtime.onnx import model, parts, prepare, residency

    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    for module in (model, parts, prepare, residency):
        monkeypatch.setattr(module, "PAGE", LARGE)
    monkeypatch.setattr(parts, "_run", lambda made, folder: prepare.prepare(made.path, folder))
    # It drops whole mappings, whose sizes are this kernel's.
    monkeypatch.setattr(residency.Residency, "forget", lambda *arguments: None)
    dropped: list[int] = []
    beyond: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(_native, name)

        def map_drop(self, address: int, size: int) -> None:
            _, end = mapping_at(address)
            # This kernel's mappings may end within a page of the other.
            dropped.append(size if address + size < end else -(-size // LARGE) * LARGE)
            beyond.append(max(0, address + size - end))
            _native.map_drop(address, size)

    monkeypatch.setattr(residency, "_native", Watched())
    export(open_source(tinyhf.write(tmp_path / "hf", "mixtral")), tmp_path / "made", Options())
    with edgemoe.load(tmp_path / "made", memory="2GiB", ctx=64, warm_start=False) as engine:
        engine._sequence.backend.set_cache_bytes(0)
        for token in range(20):
            engine.eval([token])
        assert engine.stats().n_evict > 5
    kept = [offset for group in _offsets(tmp_path / "cache") for offset in group]
    assert kept and all(offset % LARGE == 0 for offset in kept)
    assert dropped and all(size % LARGE == 0 for size in dropped)
    assert not any(beyond)  # what lies behind is somebody's memory, and zero after a drop


def mapping_at(address: int) -> tuple[int, int]:
    """Begin and end of the mapping of a file of experts that holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            assert "experts-" in line
            return begin, end
    raise AssertionError(f"nothing is mapped at {address:#x}")


def _offsets(cache: Path) -> list[list[int]]:
    layers = json.loads(next(cache.rglob("prepared.json")).read_text())["layers"]
    return [[blob["offset"] for blob in layer] for layer in layers]
