"""Damaged JSON, traces and caches end in one line, or are as if they were not there: cases that a fuzzer found."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyhf

from edgemoe.converters.convert import open_source
from edgemoe.converters.gguf_header import encode
from edgemoe.errors import EdgeMoEError, FormatError
from edgemoe.paths import cache_dir, read_cached
from edgemoe.places import Place
from edgemoe.runtime.engine.trace import MAGIC, read_trace
from edgemoe.runtime.find.local import find_models

ODD: list[Any] = [None, True, -1, 2**64, 10**400, 1e39, float("nan"), "", "x", "\ud800", [], [1], {}, {"a": 1}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    folder.mkdir(exist_ok=True)
    tensors = {n: ("BF16", s, bytes(2 * int(np.prod(s)))) for n, s in tinyhf.shapes_of("qwen3_moe").items()}
    tinyhf.save(folder, tinyhf.config_of("qwen3_moe"), tensors, n_shard=2)
    return folder


def opens_or_says_so(folder: Path) -> None:
    try:
        open_source(folder)
    except EdgeMoEError as error:
        assert "\n" not in error.message


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_any_value_of_any_type_in_a_checkpoint(checkpoint: Path, name: str) -> None:
    file = checkpoint / name
    good = file.read_bytes()
    value = json.loads(good)
    places: list[tuple[dict[str, Any], str]] = [(value, key) for key in value]
    places += [(value[key], inner) for key in value if isinstance(value[key], dict) for inner in list(value[key])[:8]]
    try:
        for holder, key in places:
            kept = holder[key]
            for odd in ODD:
                holder[key] = odd
                file.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
                opens_or_says_so(checkpoint)
            holder[key] = kept
        for raw in (b"", b"[" * 100_000, good[: len(good) // 2], b"\xff\xfe"):
            file.write_bytes(raw)
            opens_or_says_so(checkpoint)
    finally:
        file.write_bytes(good)


def test_an_integer_among_merges_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "tokenizer.json"
    good = file.read_bytes()
    value = json.loads(good)
    try:
        for odd in (7, None, "one", ["a"]):
            value["model"]["merges"][3] = odd
            file.write_text(json.dumps(value))
            with pytest.raises(FormatError, match="the tokenizer in `.*` is damaged"):
                open_source(checkpoint)
    finally:
        file.write_bytes(good)
    with pytest.raises(TypeError):
        encode(["a", 7])


def trace_of(path: Path, **changes: Any) -> Path:
    about = {"model": "m", "n_slot": 4, "n_expert_used": 2, "n_expert": [8], "blocks": [0], "expert_bytes": [100]}
    head = json.dumps({**about, **changes}).encode()
    uses = struct.pack("<HIfB", 0, 1, changes.get("weight", 0.5), 0)
    path.write_bytes(MAGIC + struct.pack("<I", len(head)) + head + b"\x02" + struct.pack("<HIQH", 0, 1, 5, 1) + uses)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"n_expert": [65535] * 65538, "expert_bytes": [1] * 65538},  # more than 32 bits number
        {"n_expert": [8.5]}, {"n_expert": "8"}, {"n_expert": [True]}, {"expert_bytes": [1, 2]}, {"expert_bytes": None},
        {"n_expert_used": 0}, {"n_expert_used": "2"}, {"model": 7}, {"weight": float("nan")}, {"weight": float("inf")},
    ],
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_a_trace_that_no_engine_writes_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    read_trace(trace_of(tmp_path / "good"))
    with pytest.raises(FormatError, match="is damaged"):
        read_trace(trace_of(tmp_path / "bad", **changes))


def test_remembered_measurements_that_are_none_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemoe.devices import compute, storage

    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path))
    for raw in (b"[" * 100_000, b"{", b"7", b"\xff"):
        (cache_dir() / "x.json").write_bytes(raw)
        assert read_cached("x.json") == {}
    model = tmp_path / "model"
    model.write_bytes(b"GGUF")
    key = storage._key(model, 4096, storage.N_LANE)
    good = {"bytes_per_s": 1e9, "latency_s": 1e-4, "block_bytes": 4096, "n_lane": 4, "direct_io": True}
    for field in ("bytes_per_s", "latency_s"):
        for odd in ("fast", None, 0, -1, float("nan"), float("inf"), [1]):
            (cache_dir() / "storage.json").write_text(json.dumps({key: {**good, field: odd}}))
            assert storage.cached_storage(model, 4096) is None
    (cache_dir() / "storage.json").write_text(json.dumps({key: good}))
    assert storage.cached_storage(model, 4096) is not None
    monkeypatch.setattr(compute, "_key", lambda *known: "k")
    (cache_dir() / "compute.json").write_text('{"k": Infinity}')
    assert compute.cached_compute("Q4_K", 2) is None


def test_a_manifest_that_names_no_blob_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "manifests/registry.ollama.ai/library/m"
    folder.mkdir(parents=True)
    for i, digest in enumerate(("sha256:\0", "../../../etc/passwd", 7, None, "sha256:00")):
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
        (folder / str(i)).write_text(json.dumps({"layers": [layer]}))
    (folder / "deep").write_bytes(b"[" * 100_000)
    assert find_models([Place("Ollama", "ollama", tmp_path)]) == []


def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    (tmp_path / "disk/publisher/model").mkdir(parents=True)
    (tmp_path / "disk/publisher/model/linked.gguf").write_bytes(b"GGUF")
    models = tmp_path / "models"
    models.mkdir()
    (models / "publisher").symlink_to(tmp_path / "disk/publisher")
    (models / "back").symlink_to(models)
    (models / "self").symlink_to("self")
    (tmp_path / "disk/publisher/up").symlink_to(tmp_path)
    found = find_models([Place("EDGEMOE_MODELS", "files", models)])
    assert [model.name for model in found] == ["linked"]
