"""Stock libmtmd and llama.cpp on a prompt with pictures, and the models that have encoders here."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import architectures
import tinyvision
from exact_engines import N_CTX, Streamed

from edgemoe import _native

ROOM = 96 << 20  # of a cache that can lend an encoder its memory

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3vl": ("qwen3vlmoe", {"n_deepstack_layers": tinyvision.DEEPSTACK}),
    "glm4v": ("glm4moe", {}),
    "gemma4v": ("gemma4", {}),
    "llama4": ("llama4", {}),
}
"""By kind of encoder: the architecture, and keys that its file has besides."""


def model(folder: Path, kind: str, **encoder: int) -> tuple[Path, Path]:
    """A model with its encoder beside it. encoder: see `tinyvision.write`."""
    name, keys = MODELS[kind]
    path = architectures.write(folder / f"{kind}.gguf", name, **keys)
    return path, tinyvision.write(folder / f"mmproj-{kind}.gguf", kind, width=width_of(path), **encoder)


def take(engine: Streamed, mmproj: Path, prompt: Sequence[str | bytes], cache_bytes: int) -> None:
    """Compute a prompt of texts and pictures. cache_bytes: of the expert cache while it does."""
    text = _native.engine_text(engine.handle)
    for i, part in enumerate(prompt):
        if isinstance(part, str):
            tokens = _native.text_tokenize(text, part.encode(), add_special=i == 0, parse_special=True)
            _native.engine_decode(engine.handle, tokens, want_all=False)
            continue
        _native.engine_set_cache_bytes(engine.handle, ROOM)
        picture = _native.picture_add(engine.handle, str(mmproj), part)
        _native.engine_set_cache_bytes(engine.handle, cache_bytes)
        for number, run in groupby(_native.picture_tokens(engine.handle, picture), lambda place: min(place, 0)):
            if number < 0:
                _native.picture_decode(engine.handle, picture, -1 - number)
            else:
                _native.engine_decode(engine.handle, list(run), want_all=False)
        _native.picture_forget(engine.handle, picture)


def width_of(path: Path) -> int:
    import gguf

    found = gguf.GGUFReader(path)
    architecture = found.fields["general.architecture"].contents()
    return int(found.fields[f"{architecture}.embedding_length"].contents())


def stock(
    path: Path,
    mmproj: Path,
    prompt: Sequence[str | bytes],
    tokens: Sequence[int],
    *,
    n_ubatch: int = 64,
    most_rows: int = -1,
) -> list[bytes]:
    """Logits after a prompt of texts and pictures, and after each of some tokens behind it."""
    import llama_cpp.llama_cpp as llama
    import llama_cpp.mtmd_cpp as mtmd

    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = False
    devices = (ctypes.c_void_p * 1)(None)
    model_params.devices = ctypes.addressof(devices)
    loaded = llama.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = N_CTX, 512, n_ubatch, 1, 1
    context = llama.llama_init_from_model(loaded, params)
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
    seeing = mtmd.mtmd_context_params_default()
    seeing.use_gpu, seeing.print_timings, seeing.n_threads = False, False, 1
    seeing.image_max_tokens = most_rows
    sees = mtmd.mtmd_init_from_file(str(mmproj).encode(), loaded, seeing)
    assert sees
    marker = mtmd.mtmd_default_marker().decode()
    text = "".join(marker if isinstance(part, bytes) else part for part in prompt).encode()
    pictures = [part for part in prompt if isinstance(part, bytes)]
    plain = mtmd.mtmd_helper_init_opt_default()
    bitmaps = []
    for one in pictures:
        data = (ctypes.c_uint8 * len(one)).from_buffer_copy(one)
        bitmaps.append(mtmd.mtmd_helper_bitmap_init_from_buf(sees, data, len(one), False, plain))
    chunks = mtmd.mtmd_input_chunks_init()
    given = mtmd.mtmd_input_text(text, len(text), True, True)
    pointers = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
    assert mtmd.mtmd_tokenize(sees, chunks, ctypes.byref(given), pointers, len(bitmaps)) == 0
    n_past = ctypes.c_int32(0)
    done = mtmd.mtmd_helper_eval_chunks(sees, context, chunks, 0, 0, n_ubatch, True, ctypes.byref(n_past))
    assert done == 0
    rows = [ctypes.string_at(llama.llama_get_logits_ith(context, -1), 4 * n_vocab)]
    for i, token in enumerate(tokens):
        batch = llama.llama_batch_init(1, 0, 1)
        batch.n_tokens = 1
        batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0] = token, n_past.value + i, 1, 0
        batch.logits[0] = 1
        assert llama.llama_decode(context, batch) == 0
        llama.llama_batch_free(batch)
        rows.append(ctypes.string_at(llama.llama_get_logits_ith(context, -1), 4 * n_vocab))
    mtmd.mtmd_input_chunks_free(chunks)
    for bitmap in bitmaps:
        mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(sees)
    llama.llama_free(context)
    llama.llama_model_free(loaded)
    return rows
