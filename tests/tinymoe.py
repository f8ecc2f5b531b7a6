"""Write tiny Mixture-of-Experts GGUF files with random weights that stock llama.cpp loads and evaluates.

    python tests/tinymoe.py ARCH OUT.gguf [--qtype Q4_K] [--down Q6_K] [--split N] [--seed S]

Every tensor is drawn from the seed and its own name, so files that differ only in quantization or
splitting hold the same weights, and a fused gate_up tensor holds what its two halves would.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import importlib.util
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as QuantType
from tinymoe_archs import TABLE, Arch, Geometry, Keys, Tensor, Value, keys, tensors

F32Array = npt.NDArray[np.float32]
Planned = tuple[Tensor, QuantType]

ARCHS: list[str] = list(TABLE)
"""Every variant `write` knows."""
MOE_ARCHS: list[str] = [name for name, arch in TABLE.items() if arch.geometry.n_expert]
"""Those of them that have experts."""
EXPERT_TYPES: list[str] = [
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "MXFP4",
]  # fmt: skip
"""Types worth testing experts in; any other that ggml can quantize works too."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = ["t h", "th e", "i n", "e r", "a n", "Ġ a", "Ġ the"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# Standard deviations in units of 1/sqrt(row length): unit-scale activations, and routers and experts
# strong enough that tokens choose different experts and a wrong expert shows in the logits.
GAIN = {"matrix": 1.0, "router": 2.0, "gate_up": 1.5, "down": 1.5, "embed": 4.0, "output": 4.0, "conv": 1.0}
# Of tensors whose values stand for themselves: mean and standard deviation.
VECTOR = {"norm": (1.0, 0.1), "bias": (0.0, 0.2), "router_scale": (16.0, 1.0), "decay": (-1.0, 0.2)}
CHOSEN_TYPE = {"matrix": "dense", "embed": "dense", "output": "dense", "gate_up": "experts", "down": "down"}


def vocabulary() -> list[str]:
    """256 bytes in byte order under GPT-2's printable names, what the merges make, control tokens."""
    return byte_names() + [merge.replace(" ", "") for merge in MERGES] + CONTROL


def byte_names() -> list[str]:
    """GPT-2's printable name of each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def write(
    path: Path | str,
    arch: str,
    *,
    expert_type: str | Sequence[str] = "Q4_K",
    down_type: str | Sequence[str] | None = None,
    dense_type: str = "Q8_0",
    seed: int = 0,
    n_split: int = 1,
    empty_first: bool = False,
    **geometry: int,
) -> Path:
    """Write a tiny model and return the file to load.

    `expert_type` is the type of the experts, `down_type` that of their down matrices if another; a sequence of
    types is dealt to the layers in turn. `n_split` > 1 writes PATH-00001-of-0000N.gguf and so on, the first without
    tensors if `empty_first`. `geometry` overrides fields of `tinymoe_archs.Geometry`: n_layer, n_expert, n_used...
    """
    row = TABLE[arch]
    geo = dataclasses.replace(row.geometry, **geometry)
    types = {"dense": dense_type, "experts": expert_type, "down": down_type or expert_type}
    plan = [(tensor, _type_of(tensor, types)) for tensor in tensors(row, geo, len(vocabulary()))]
    path = Path(path)
    if n_split == 1:
        _save(path, _key_values(row, geo, f"tiny {arch}"), plan, seed)
        return path

    chunks = _chunks(plan, n_split - empty_first)
    if empty_first:
        chunks.insert(0, [])
    paths = [path.with_name(f"{path.stem}-{i + 1:05d}-of-{n_split:05d}.gguf") for i in range(n_split)]
    for i, (shard, chunk) in enumerate(zip(paths, chunks, strict=True)):
        key_values: Keys = {} if i else _key_values(row, geo, f"tiny {arch}")
        _save(shard, key_values, chunk, seed, split=(i, n_split, len(plan)))
    return paths[0]


def sparse_big(
    path: Path | str,
    n_bytes: int,
    *,
    expert_type: str = "Q4_K",
    seed: int = 0,
    n_layer: int = 12,
    n_expert: int = 512,
    n_used: int = 2,
    hidden: int = 256,
) -> Path:
    """Write a qwen3moe of at least `n_bytes` whose experts are a hole, so all zeros: only dense weights take disk.

    The experts' width makes up the size; they come after all dense tensors.
    """
    row = TABLE["qwen3moe"]
    bytes_of_256 = _row_bytes(256, QuantType[expert_type])
    per_width = n_layer * n_expert * 3 * hidden * bytes_of_256 // 256
    ff = -(-n_bytes // (per_width * 256)) * 256
    geo = dataclasses.replace(row.geometry, n_layer=n_layer, n_expert=n_expert, n_used=n_used, hidden=hidden, ff=ff)
    types = {"dense": "Q8_0", "experts": expert_type, "down": expert_type}
    plan = [(tensor, _type_of(tensor, types)) for tensor in tensors(row, geo, len(vocabulary()))]
    plan.sort(key=lambda item: item[0].role in ("gate_up", "down"))
    n_dense = sum(tensor.role not in ("gate_up", "down") for tensor, _ in plan)
    _save(Path(path), _key_values(row, geo, "sparse big"), plan, seed, n_written=n_dense)
    return Path(path)


def draw(tensor: Tensor, seed: int) -> F32Array:
    """The tensor's values."""
    if tensor.role == "ids":  # a table of experts' numbers, all different in a row
        numbers = np.add.outer(np.arange(tensor.shape[0]), np.arange(tensor.shape[1]) * 3)
        return (numbers % 16).astype(np.float32)
    if tensor.name.endswith("ffn_gate_up_exps.weight"):
        n, rows, cols = tensor.shape
        halves = [tensor.name.replace("gate_up", half) for half in ("gate", "up")]
        return np.concatenate([draw(Tensor(half, (n, rows // 2, cols), "gate_up"), seed) for half in halves], axis=1)
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    values = rng.standard_normal(tensor.shape, dtype=np.float32)
    if tensor.role in VECTOR:
        mean, deviation = VECTOR[tensor.role]
        values = values * np.float32(deviation) + np.float32(mean)
    else:
        values *= np.float32(GAIN[tensor.role] / tensor.shape[-1] ** 0.5)
    if tensor.role == "output":
        # Greedy text stays printable and never ends.
        quiet = [i for i, name in enumerate(vocabulary()) if name in CONTROL or i < 32 or 127 <= i < 256]
        values[quiet] *= np.float32(0.1)
    if tensor.name in ("output_norm.weight", "token_embd_norm.weight"):
        # With tied embeddings and positive norms a token would always predict itself.
        values *= rng.choice(np.array([-1, 1], np.float32), tensor.shape)
    return values


def quantize(values: F32Array, qtype: QuantType) -> npt.NDArray[np.uint8]:
    """The values in ggml's `qtype`, as bytes of rows."""
    if qtype == QuantType.I32:
        return values.astype(np.int32).view(np.uint8)
    rows = np.ascontiguousarray(values, np.float32)
    cols = rows.shape[-1]
    out = np.empty((*rows.shape[:-1], _row_bytes(cols, qtype)), np.uint8)
    # Only the 1- and 2-bit types look at an importance matrix.
    flat = np.ones(cols, np.float32) if _ggml().ggml_quantize_requires_imatrix(int(qtype)) else None
    importance = flat.ctypes.data if flat is not None else None
    _ggml().ggml_quantize_chunk(int(qtype), rows.ctypes.data, out.ctypes.data, 0, rows.size // cols, cols, importance)
    return out


@functools.cache
def _ggml() -> ctypes.CDLL:
    # gguf-py quantizes no K-types; ggml does. Its library is found without importing llama_cpp, which is slow.
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise RuntimeError("tinymoe needs llama-cpp-python, for its ggml library")
    library = ctypes.CDLL(str(min((Path(package.origin).parent / "lib").glob("*ggml-base*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return library


def _row_bytes(cols: int, qtype: QuantType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    if cols % block:
        raise ValueError(f"rows of {cols} do not divide into {qtype.name} blocks of {block}")
    return cols // block * size


def _type_of(tensor: Tensor, types: Mapping[str, str | Sequence[str]]) -> QuantType:
    chosen = types[CHOSEN_TYPE[tensor.role]] if tensor.role in CHOSEN_TYPE else "F32"
    if not isinstance(chosen, str):
        chosen = chosen[int(tensor.name.split(".")[1]) % len(chosen)]
    return QuantType[chosen]


def _chunks(plan: list[Planned], n: int) -> list[list[Planned]]:
    return [plan[len(plan) * i // n : len(plan) * (i + 1) // n] for i in range(n)]


def _key_values(arch: Arch, geo: Geometry, name: str) -> dict[str, Value]:
    own = {f"{arch.gguf}.{key}": value for key, value in keys(arch, geo).items()}
    return {**base_keys(arch.gguf, name), **own}


def base_keys(gguf_name: str, name: str) -> dict[str, Value]:
    """Keys that do not depend on the geometry: names and the tokenizer."""
    tokens = vocabulary()
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    return {
        "general.architecture": gguf_name,
        "general.name": name,
        "general.quantization_version": 2,
        f"{gguf_name}.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",  # the default detokenizes without spaces before punctuation
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [control if token in CONTROL else normal for token in tokens],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _save(
    path: Path,
    key_values: Keys,
    plan: list[Planned],
    seed: int,
    *,
    split: tuple[int, int, int] | None = None,
    n_written: int | None = None,
) -> None:
    """Write one file; tensors of the plan after the first `n_written` become a hole."""
    writer = gguf.GGUFWriter(path, "")  # "" adds no architecture, which later files of a split go without
    for key, value in key_values.items():
        add(writer, key, value)
    if split:
        number, count, n_tensors = split
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", n_tensors)
    hole = write_tensors(writer, plan, seed, n_written)
    os.truncate(path, path.stat().st_size + hole)


def write_tensors(writer: gguf.GGUFWriter, plan: list[Planned], seed: int = 0, n_written: int | None = None) -> int:
    """Finish a file: header, keys, tensors. Returns the bytes that those after the first `n_written` would take."""
    sizes = []
    for tensor, qtype in plan:
        byte_shape = (*tensor.shape[:-1], _row_bytes(tensor.shape[-1], qtype))
        sizes.append(int(np.prod(byte_shape, dtype=np.int64)))
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), sizes[-1], raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, qtype in plan[:n_written]:
        writer.write_tensor_data(quantize(draw(tensor, seed), qtype))
    writer.close()
    return sum(writer.ggml_pad(size, writer.data_alignment) for size in sizes[len(plan[:n_written]) :])


def add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    """One key, in the type that llama.cpp reads."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def main() -> None:
    """Write one model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", choices=ARCHS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--qtype", default="Q4_K", help="type of the experts")
    parser.add_argument("--down", help="type of their down matrices, if another")
    parser.add_argument("--split", type=int, default=1, metavar="N", help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    first = write(args.out, args.arch, expert_type=args.qtype, down_type=args.down, seed=args.seed, n_split=args.split)
    print(f"{first}: {first.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
