"""Write a small GGUF of any architecture with experts that the pinned llama.cpp knows.

    python tests/architectures.py NAME OUT.gguf [--n-gram-rows N]

`architectures.json` has their geometries: keys that most of them share (`common`), and for each its own keys, its
tensors, and those of its blocks ("0-3": blocks 0 to 3). Shapes are in numpy order. A name with a suffix is a variant
of the same architecture: with blocks that guess ahead (mtp), with an attention that picks (topk), of Gemma 4 with
embeddings a layer (per-layer). `classes`: what llama.cpp's source calls an architecture, where that is not its name.

Weights are drawn as tinymoe's are. Rows of tables are Q8_0, experts Q4_0, all else is F32, as far as rows divide.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import tinymoe
from gguf import GGMLQuantizationType as QuantType
from tinymoe_archs import Tensor

DATA = Path(__file__).with_name("architectures.json")
_WIDE = ("ple.layer_multipliers", "ple.head_offsets", "ple.head_vocab_sizes")  # arrays of 64 bits
TABLE = "per_layer_token_embd.weight"
_PERIOD = 65_537  # rows of a large table after which they repeat


@functools.cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DATA.read_text())
    return found


def names() -> list[str]:
    """Every architecture and variant, in order."""
    return list(_data()["models"])


def classes() -> set[str]:
    """The classes of llama.cpp's source (llama_model_X) that are listed: with experts, without, and what is neither."""
    data = _data()
    ours = {model["architecture"] for model in data["models"].values()}
    plain = {data["classes"].get(name, name.replace("-", "_").replace(".", "_")) for name in ours}
    return plain | set(data["without_experts"]) | set(data["other"])


def write(path: Path, name: str, *, n_gram_rows: int = 0, **more: Any) -> Path:
    """Write one model. n_gram_rows: of the table of n-grams, where the architecture has one; 0: a few. more: keys."""
    model = _data()["models"][name]
    keys = {**_data()["common"], **model["keys"], **more}
    plan = [(tensor, _type_of(tensor)) for tensor in _tensors(model)]
    if n_gram_rows:
        keys |= _n_gram_keys(keys, n_gram_rows)
        last = [item for item in plan if item[0].name == TABLE]
        plan = [item for item in plan if item[0].name != TABLE] + last
    writer = gguf.GGUFWriter(path, "")
    for key, value in tinymoe.base_keys(model["architecture"], f"small {name}").items():
        tinymoe.add(writer, key, value)
    for key, value in keys.items():
        full = key if key.startswith("xielu.") else f"{model['architecture']}.{key}"
        if key in _WIDE:
            writer.add_key_value(full, value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT64)
        elif key != "vocab_size":
            tinymoe.add(writer, full, value)
    if not n_gram_rows:
        tinymoe.write_tensors(writer, plan)
        return path
    table, qtype = plan[-1]
    plan[-1] = (table._replace(shape=(n_gram_rows, table.shape[1])), qtype)
    n_bytes = tinymoe.write_tensors(writer, plan, n_written=len(plan) - 1)
    some = tinymoe.quantize(tinymoe.draw(table._replace(shape=(_PERIOD, table.shape[1])), 0), qtype).tobytes()
    with path.open("ab") as file:
        for begin in range(0, n_bytes, len(some)):
            file.write(some[: n_bytes - begin])
    return path


def _n_gram_keys(keys: dict[str, Any], n_row: int) -> dict[str, Any]:
    """Hashes that reach every row of a table, each head its own part."""
    n_head = len(keys["ple.head_offsets"])
    part = n_row // n_head
    return {
        "ple.head_offsets": [part * head for head in range(n_head)],
        "ple.head_vocab_sizes": [part] * n_head,
        "ple.layer_multipliers": [2654435761, 40503 * 65537, 2246822519][: len(keys["ple.layer_multipliers"])],
    }


def _tensors(model: dict[str, Any]) -> Iterator[Tensor]:
    untied = any(line.startswith("output.weight ") for line in model["tensors"])
    for line in model["tensors"]:
        yield _tensor(line, untied)
    for blocks, lines in model["blocks"].items():
        for block in _numbers(blocks):
            for line in lines:
                yield _tensor(f"blk.{block}.{line}", untied)


def _numbers(ranges: str) -> Iterator[int]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _tensor(line: str, untied: bool) -> Tensor:
    name, _, shape = line.partition(" ")
    sizes = tuple(int(size) for size in shape.split("x"))
    return Tensor(name, sizes, _role(name, len(sizes), untied))


def _role(name: str, n_dim: int, untied: bool) -> str:
    last = name.split(".")[-2] if name.endswith((".weight", ".bias", ".scale")) else name.split(".")[-1]
    if last == "ffn_gate_tid2eid":
        return "ids"
    if last == "ssm_a":
        return "decay"
    if "norm" in last or name.endswith(".scale"):
        return "norm"
    if n_dim == 1 or name.endswith(".bias"):
        return "bias"
    if last.endswith("exps"):
        return "down" if "down" in last else "gate_up"
    if last == "ffn_gate_inp":
        return "router"
    if last in ("output", "token_embd"):
        return "output" if last == "output" or not untied else "embed"
    return "conv" if "conv" in last else "matrix"


def _type_of(tensor: Tensor) -> QuantType:
    if tensor.role == "ids":
        return QuantType.I32
    if tensor.shape[-1] % 32 == 0:
        if tensor.role in ("gate_up", "down"):
            return QuantType.Q4_0
        if tensor.role in ("embed", "output") or tensor.name == TABLE:
            return QuantType.Q8_0
    return QuantType.F32


def main() -> None:
    """Write one model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names())
    parser.add_argument("out", type=Path)
    parser.add_argument("--n-gram-rows", type=int, default=0)
    args = parser.parse_args()
    print(f"{write(args.out, args.name, n_gram_rows=args.n_gram_rows)}")


if __name__ == "__main__":
    main()
