"""What docs/seam.md relies on is still there: symbols, names in the log, one copy of each library, the page itself."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tinymoe

from edgemoe import _abi as abi
from edgemoe import _native

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "seam.md").read_text(encoding="utf-8")


def _symbols() -> list[str]:
    """Every function that the page names in full."""
    table = PAGE.split("## Functions")[1].split("## Struct fields")[0]
    return sorted(set(re.findall(r"`((?:llama|ggml|gguf)_[a-z0-9_]+)`", table)))


def test_the_page_names_what_the_code_calls() -> None:
    sources = [p.read_text() for p in (ROOT / "native" / "src").rglob("*.cpp") if "tests" not in p.parts]
    called = set(re.findall(r"\b((?:llama|ggml|gguf)_[a-z0-9_]+)\s*\(", "\n".join(sources)))
    named = set(_symbols())
    wild = [re.compile(w.replace("*", ".*") + "$") for w in re.findall(r"`((?:llama|ggml|gguf)_[a-z0-9_]*\*)`", PAGE)]
    unnamed = {s for s in called - named if not any(w.match(s) for w in wild)}
    assert not unnamed
    assert len(named) > 30


@pytest.mark.parametrize("symbol", _symbols())
def test_symbol_is_there(symbol: str) -> None:
    _native.library()
    libraries = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    found = {p for p in libraries if re.search(r"lib(llama|ggml[a-z-]*)\.so", p)}
    assert any(hasattr(ctypes.CDLL(p), symbol) for p in found)


def test_the_log_states_the_sizes(tmp_path: Path) -> None:
    model = _native.model_open(str(tinymoe.write(tmp_path / "m.gguf", "qwen3moe")))
    shell = str(tmp_path / "shell")
    _native.shell_write(model, shell, with_data=False)
    sizes = [
        _native.context_measure(model, shell, abi.Setup(n_ctx=n_ctx, n_ubatch=64, n_threads=1)) for n_ctx in (256, 512)
    ]
    _native.model_close(model)
    # 3 layers, K and V, 2 bytes: twice the cells are twice the bytes (up to the two decimals of the log).
    assert sizes[0]["kv_bytes"] > 0
    assert sizes[1]["kv_bytes"] / sizes[0]["kv_bytes"] == pytest.approx(2, rel=0.05)
    assert sizes[0]["compute_bytes"] > 0
    assert sizes[0]["output_bytes"] > 0


def test_experts_are_never_mapped(tmp_path: Path) -> None:
    """The shell is shortened before it is mapped: no page of the experts' hole is resident after loading."""
    path = tinymoe.sparse_big(tmp_path / "big.gguf", 2 << 30)
    script = """
import sys
from edgemoe import _abi as abi, _native
path, shell = sys.argv[1:]
model = _native.model_open(path)
_native.shell_write(model, shell, with_data=True)
setup = abi.Setup(n_ctx=64, n_ubatch=8, n_threads=1)
cache = _native.model_info(model)["slot_min_bytes"]
engine = _native.engine_open(model, shell, setup, cache)
import re
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(peak * 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "shell")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert int(run.stdout) < 300 << 20


@pytest.mark.parametrize("order", [("llama_cpp", "edgemoe._native"), ("edgemoe._native", "llama_cpp")])
def test_one_copy_of_libllama(order: tuple[str, str]) -> None:
    script = f"""
import importlib
for name in {order!r}:
    module = importlib.import_module(name)
    if name == "edgemoe._native":
        module.library()
print(len({{l.split()[-1] for l in open("/proc/self/maps") if "/libllama.so" in l}}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "1"
