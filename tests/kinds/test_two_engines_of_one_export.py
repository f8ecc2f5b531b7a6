"""One export opened twice in a process: neither engine drops what the other mapped, while it is open or after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_extra  # noqa: F401
import pytest
import tinyhf

import edgemoe
from edgemoe import _native
from edgemoe.converters.convert import open_source


def mapped(files: Path) -> list[tuple[int, int]]:
    """Begin and end of what is mapped of the files below a folder."""
    lines = [line.split(None, 5) for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith(str(files))]
    return [(int(begin, 16), int(end, 16)) for begin, end in ranges]


def test_each_drops_its_own_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first had mapped is anything when it is closed: the heap, for one, which a drop would zero."""
    from edgemoe.converters.onnx.export import Options, export
    from edgemoe.runtime.onnx import backend, residency

    root = tmp_path.resolve()
    monkeypatch.setenv("EDGEMOE_CACHE", str(root / "cache"))
    dropped: list[tuple[int, int]] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(_native, name)

        def map_drop(self, address: int, size: int) -> None:
            dropped.append((address, address + size))
            if any(begin <= address and address + size <= end for begin, end in mapped(root)):
                _native.map_drop(address, size)

    for module in (backend, residency):
        monkeypatch.setattr(module, "_native", Watched())
    export(open_source(tinyhf.write(root / "hf", "mixtral")), root / "made", Options())

    def load() -> Any:
        return edgemoe.load(root / "made", memory="2GiB", ctx=64, warm_start=False)

    def run(engine: Any) -> list[float]:
        engine._sequence.backend.set_cache_bytes(0)
        engine.reset()
        for token in range(10):
            engine.eval([token])
        return [float(value) for value in engine.row()]

    first = load()
    of_first = mapped(root)
    with load() as second:
        dropped.clear()
        wanted = run(second)
        assert dropped and not [d for d in dropped for begin, end in of_first if d[0] < end and begin < d[1]]
        assert run(first) == wanted
        first.close()
        dropped.clear()
        assert run(second) == wanted
        mine = mapped(root)
        assert dropped and all(any(a <= begin and end <= b for a, b in mine) for begin, end in dropped)
