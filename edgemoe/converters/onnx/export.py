"""An export from beginning to end: a folder that is there whole or not at all, and that ONNX Runtime has run once."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import EdgeMoEError, FormatError, StorageError, UsageError
from ...files import sync_folder
from ...units import MIB, format_size, parse_size
from ..allocation import Allocation
from ..convert import DEFAULT_MEMORY, Progress, check_unchanged, cores, held_bytes
from ..source import Source
from ..target import Importance
from ..types import is_exact
from . import weights
from .bits import asked_bits, widths_of
from .geometry import Geometry, geometry_of
from .graph import DENSE_BLOCK, Graph, build, expert_file, to_model
from .quantize import block_of
from .tokenizer import end_tokens, special_tokens, write_tokenizer

MODEL_FILE, MANIFEST = "model.onnx", "edgemoe.json"
VERSION = 1


@dataclass(frozen=True)
class Options:
    """As the command's options of the same names."""

    type_name: str | None = None
    allocation: Allocation | None = None
    importance: Importance | None = None
    facts: Mapping[str, Any] | None = None
    dense_type: str | None = None
    n_ctx: int | None = None
    memory: str | int | None = None
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Report:
    """What an export did. bits: experts by width. notes: sentences about what came otherwise than asked."""

    path: Path
    file_bytes: int
    n_node: int
    bits: Mapping[int, int]
    mean_bits: float
    notes: tuple[str, ...] = field(default=())


def export(source: Source, out: Path, options: Options, *, progress: Progress | None = None) -> Report:
    """Write the folder `out`. Raises UsageError, UnsupportedError, FormatError, StorageError; then there is none."""
    _check_out(source, out, overwrite=options.overwrite)
    geometry = geometry_of(source, n_ctx=options.n_ctx)
    widths = widths_of(source, options.type_name, options.allocation)
    block = block_of(geometry.n_embd, geometry.n_ff)
    if block is None:
        raise UsageError(
            f"experts of {geometry.n_embd} x {geometry.n_ff} do not divide into blocks of 16, 32 or 64 weights",
            hint="convert to GGUF instead",
        )
    graph = build(geometry, widths.layers, _dense_bits(source, options), block)
    jobs = list(weights.jobs_of(graph, source, _dense_bits(source, options), options.importance))
    memory = DEFAULT_MEMORY if options.memory is None else parse_size(options.memory)
    longest = max(geometry.n_embd, geometry.n_ff)
    n_worker = weights.workers_for(jobs, longest, memory, options.threads or cores(), held_bytes())
    with _folder(out, overwrite=options.overwrite) as folder:
        _check_space(folder, sum(graph.sizes.values()))
        files = weights.Files(folder, graph.sizes)
        try:
            weights.run(jobs, files, n_worker, _counted(progress, source.n_weight))
            files.sync()
        finally:
            files.close()
        check_unchanged(source)
        notes = [*widths.notes, *write_tokenizer(source, folder)]
        metadata = _metadata(geometry, widths.layers, options.facts)
        model = to_model(graph, metadata)
        _write(folder / MODEL_FILE, model.SerializeToString())
        _write_genai(source, geometry, folder)
        del model
        try_out(folder, geometry)
        _write(folder / MANIFEST, json.dumps(_manifest(source, graph, widths.layers, folder), indent=1).encode())
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    each = [bits for layer in widths.layers.values() for bits in layer]
    counts = {bits: each.count(bits) for bits in sorted(set(each))}
    return Report(out, n_bytes, len(graph.nodes), counts, sum(each) / len(each), tuple(notes))


def try_out(folder: Path, geometry: Geometry) -> None:
    """The checker's word, and one token computed. Raises FormatError.

    The checker does not look into nodes of `com.microsoft`: only running shows that they are right. Without packing,
    ONNX Runtime computes slowly and takes the weights from the files, so a model larger than memory is tried as well.
    """
    import numpy as np
    import onnx
    import onnxruntime as ort

    path = os.fspath(folder / MODEL_FILE)
    try:
        onnx.checker.check_model(path, full_check=True)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        shape = (1, geometry.n_head_kv, 0, geometry.head_dim)
        past = {
            f"past_key_values.{layer}.{part}": np.zeros(shape, np.float32)
            for layer in range(geometry.n_layer)
            for part in ("key", "value")
        }
        ones = np.ones((1, 1), np.int64)
        (logits,) = session.run(["logits"], {"input_ids": 0 * ones, "attention_mask": ones, **past})
    except EdgeMoEError:
        raise
    except Exception as error:
        raise FormatError(f"ONNX does not take this export: {str(error).splitlines()[0][:200]}") from None
    if logits.shape != (1, 1, geometry.n_vocab) or not np.isfinite(logits).all():
        raise FormatError("ONNX Runtime computes no numbers from this export", hint="the source may be damaged")


def _dense_bits(source: Source, options: Options) -> dict[str, int]:
    """Of each dense matrix; what is no matrix, and the routers, stay floats."""
    found = {}
    for tensor in source.dense:
        if is_exact(tensor):
            continue
        fits = tensor.rows.n_col % DENSE_BLOCK == 0
        wanted = 8 if options.dense_type is None else _dense_width(options.dense_type)
        found[tensor.name] = wanted if fits else 32
    return found


def _dense_width(name: str) -> int:
    bits = asked_bits(name)
    return 32 if bits > 8 else 4 if bits <= 4 else 8


def _metadata(geometry: Geometry, widths: Mapping[int, list[int]], facts: Mapping[str, Any] | None) -> dict[str, str]:
    found = {
        "edgemoe.version": str(VERSION),
        "edgemoe.architecture": geometry.architecture,
        "edgemoe.name": geometry.name,
        "edgemoe.expert_bits": json.dumps([widths[layer] for layer in sorted(widths)]),
    }
    if facts:
        found["edgemoe.facts"] = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return found


def _manifest(source: Source, graph: Graph, widths: Mapping[int, list[int]], folder: Path) -> dict[str, Any]:
    """What our runtime wants to know before it opens anything: shapes, and where each expert lies."""
    from ..gguf_header import decode

    g = graph.geometry
    experts: list[list[dict[str, Any]]] = [[{} for _ in layer] for layer in widths.values()]
    for group in graph.groups:
        tensors = [graph.blobs[group.name(m, part)] for m in ("gate_up", "down") for part in ("qweight", "scales")]
        for place, expert in enumerate(group.experts):
            sizes = [blob.n_bytes // blob.dims[0] for blob in tensors]
            places = [[blob.offset + place * n, n] for blob, n in zip(tensors, sizes, strict=True)]
            experts[group.layer][expert] = {"bits": group.bits, "places": places}
    return {
        "version": VERSION,
        "architecture": g.architecture,
        "name": g.name,
        "n_layer": g.n_layer,
        "n_embd": g.n_embd,
        "n_head": g.n_head,
        "n_head_kv": g.n_head_kv,
        "head_dim": g.head_dim,
        "n_ff": g.n_ff,
        "n_expert": g.n_expert,
        "n_expert_used": g.n_expert_used,
        "n_vocab": g.n_vocab,
        "n_ctx": g.n_ctx,
        "source": source.path.resolve().name,
        "chat_template": decode(source.values.get("tokenizer.chat_template")),
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "experts": [
            {"file": expert_file(layer), "experts": experts[layer]} for layer in range(g.n_layer)
        ],
    }  # fmt: skip


def _write_genai(source: Source, geometry: Geometry, folder: Path) -> None:
    """genai_config.json, as onnxruntime-genai reads it."""
    g, special, ends = geometry, special_tokens(source.values), end_tokens(source.values)
    config = {
        "model": {
            "type": g.family.genai,
            "bos_token_id": special.get("bos", ends[0] if ends else 0),
            "eos_token_id": ends,
            "pad_token_id": special.get("padding", ends[0] if ends else 0),
            "context_length": g.n_ctx,
            "vocab_size": g.n_vocab,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_FILE,
                "head_size": g.head_dim,
                "hidden_size": g.n_embd,
                "num_attention_heads": g.n_head,
                "num_hidden_layers": g.n_layer,
                "num_key_value_heads": g.n_head_kv,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False, "early_stopping": True, "max_length": g.n_ctx, "min_length": 0, "num_beams": 1,
            "num_return_sequences": 1, "past_present_share_buffer": True, "repetition_penalty": 1.0,
            "temperature": 1.0, "top_k": 1, "top_p": 1.0, "diversity_penalty": 0.0, "length_penalty": 1.0,
            "no_repeat_ngram_size": 0,
        },
    }  # fmt: skip
    _write(folder / "genai_config.json", json.dumps(config, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write `{path}`: {error.strerror}") from None


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    lock, done = threading.Lock(), [0]

    def count(n: int) -> None:
        if progress is not None:
            with lock:
                done[0] += n
                progress("converting", done[0], total)

    return count


# ---------------------------------------------------------------- the folder


def _check_out(source: Source, out: Path, *, overwrite: bool) -> None:
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder `{out.parent}`", hint="make it first")
    inside = os.path.realpath(out)
    if any(name == inside or name.startswith(inside + os.sep) for name, _, _ in source.files):
        raise UsageError(f"`{out}` holds the source", hint="choose another name")
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"`{out}` exists", hint="choose another name, or add `--overwrite`")
    if not (out / MANIFEST).is_file() or out.is_symlink():
        raise UsageError(f"`{out}` is not an export of edgemoe: it is not replaced", hint="choose another name")


@contextlib.contextmanager
def _folder(out: Path, *, overwrite: bool) -> Any:
    """A folder beside `out` that takes its name at the end, or is gone. Raises StorageError."""
    _clear_dead(out)
    folder = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise StorageError(f"cannot make the folder `{folder}`: {error.strerror}") from None
    try:
        yield folder
        try:
            _put_in_place(folder, out, overwrite=overwrite)
        except OSError as error:
            raise StorageError(f"cannot write `{out}`: {error.strerror}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, out: Path, *, overwrite: bool) -> None:
    sync_folder(folder)
    old = out.with_name(f"{out.name}.{os.getpid()}.old")
    if overwrite and out.exists():
        os.replace(out, old)
    os.rename(folder, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clear_dead(out: Path) -> None:
    """Remove what a killed process left. A live one's, with the same number or not, is left alone."""
    for path in out.parent.glob(f"{glob.escape(out.name)}.*.partial"):
        number = path.name[len(out.name) + 1 : -len(".partial")]
        if number.isdigit() and not os.path.exists(f"/proc/{number}") and os.path.isdir("/proc"):
            shutil.rmtree(path, ignore_errors=True)


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need + 64 * MIB:
        raise StorageError(
            f"`{folder.parent}` has {format_size(free)} free, the export takes {format_size(need)}",
            hint="free some space, or write to another disk",
        )
