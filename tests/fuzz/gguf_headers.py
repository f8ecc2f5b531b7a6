"""Open GGUF files whose headers lie, until the time is up: an answer or one line of words, never a dead process.

    python tests/fuzz/gguf_headers.py [SECONDS] [--seed N] [--keep FOLDER]

A file is a tiny model with one to three changes that a change of bytes hardly finds: a number of the metadata made
extreme, a key lost or given another type, a tensor of another type, shape or name, one lost or doubled. Every file
follows from its seed. Seeds that were once findings are in seeds.txt beside this file and go first; so a finding is
kept by writing its seed there. The exit code is 1 when anything was found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gguf
import gguf_edit
import tinymoe
from gguf_edit import Parts, TensorPart
from inchild import is_finding, outcome

SEEDS = Path(__file__).with_name("seeds.txt")
ARCHS = ("qwen3moe", "deepseek2-grouped", "gpt-oss", "lfm2moe", "gemma4-fused")
NUMBERS = (0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
REALS = (0.0, -1.0, 1e-45, 1e30, -1e30, float("inf"), float("nan"))
DIMENSIONS = (0, 1, 2, 31, 32, 256, 4096, 2**20)
_INT, _REAL, _TEXT, _LIST = {0, 1, 2, 3, 4, 5, 10, 11}, {6, 12}, 8, 9
_MOST_BYTES = 16 << 20  # of one tensor
_BITS = {0: 8, 1: 7, 2: 16, 3: 15, 4: 32, 5: 31, 10: 64, 11: 63}


def change_number(parts: Parts, rng: random.Random) -> str:
    """A number that the architecture reads."""
    arch = str(parts.keys["general.architecture"][1])
    name = rng.choice([k for k, (t, _) in parts.keys.items() if k.startswith(arch) and t[0] in _INT | _REAL])
    kind = parts.keys[name][0][0]
    value = rng.choice(REALS) if kind in _REAL else rng.choice([n for n in NUMBERS if n < 2 ** _BITS[kind]])
    parts.set(name, kind, value)
    return f"{name} = {value}"


def change_kind(parts: Parts, rng: random.Random) -> str:
    """A key under another type."""
    name = rng.choice(list(parts.keys))
    kind = rng.choice((4, 5, 6, 7, _TEXT, _LIST))
    value: object = {4: 3, 5: -1, 6: 0.5, 7: True, _TEXT: "text", _LIST: [1, 2, 3]}[kind]
    parts.keys[name] = ((kind, 4) if kind == _LIST else (kind,), value)
    return f"{name} of type {kind}"


def change_list(parts: Parts, rng: random.Random) -> str:
    """A list that is shorter, longer, or empty."""
    name = rng.choice([k for k, (t, _) in parts.keys.items() if t[0] == _LIST])
    types, value = parts.keys[name]
    n = rng.choice((0, 1, len(value) // 2, len(value) + 1, len(value) * 3))
    parts.keys[name] = (types, (list(value) * 4)[:n])
    return f"{name} of {n}"


def lose_key(parts: Parts, rng: random.Random) -> str:
    name = rng.choice(list(parts.keys))
    del parts.keys[name]
    return f"no {name}"


def change_type(parts: Parts, rng: random.Random) -> str:
    """A tensor of another type, its bytes as many as that takes."""
    tensor = rng.choice(parts.tensors)
    kinds = [k for k in gguf.GGMLQuantizationType if tensor.shape[0] % gguf.GGML_QUANT_SIZES[k][0] == 0]
    return _put(parts, replace(tensor, type=int(rng.choice(kinds))))


def change_shape(parts: Parts, rng: random.Random) -> str:
    tensor = rng.choice(parts.tensors)
    shape = list(tensor.shape)
    match rng.randrange(4):
        case 0:
            shape[rng.randrange(len(shape))] = rng.choice(DIMENSIONS)
        case 1:
            shape.reverse()
        case 2:
            shape = shape[:-1] or [1]
        case _:
            shape = [*shape, rng.choice((1, 2))][:4]
    return _put(parts, replace(tensor, shape=tuple(shape)))


def lose_tensor(parts: Parts, rng: random.Random) -> str:
    tensor = parts.tensors.pop(rng.randrange(len(parts.tensors)))
    return f"no {tensor.name}"


def rename_tensor(parts: Parts, rng: random.Random) -> str:
    """Under the name of another, of another block, or with an expert's number."""
    i = rng.randrange(len(parts.tensors))
    old = parts.tensors[i].name
    new = rng.choice(
        (rng.choice(parts.tensors).name, old.replace("blk.0", "blk.999999"), old.replace(".weight", ".7.weight"))
    )
    parts.tensors[i] = replace(parts.tensors[i], name=new)
    return f"{old} as {new}"


def change_arch(parts: Parts, rng: random.Random) -> str:
    arch = rng.choice(("llada-moe", "rnd1", "nomic-bert-moe", "glm4moe", "deepseek2", "qwen2moe", "olmoe", "t5", ""))
    parts.rename_arch(arch)
    return f"as {arch!r}"


CHANGES: Sequence[Callable[[Parts, random.Random], str]] = (
    change_number, change_number, change_number, change_kind, change_list, lose_key, change_type, change_type,
    change_shape, change_shape, lose_tensor, rename_tensor, change_arch,
)  # fmt: skip


def _put(parts: Parts, tensor: TensorPart) -> str:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.type)]
    n_byte = -(-tensor.shape[0] // block) * size
    for n in tensor.shape[1:]:
        n_byte *= n
    data = (tensor.data * (n_byte // max(1, len(tensor.data)) + 1))[: min(n_byte, _MOST_BYTES)]
    parts.change(tensor.name, lambda _: replace(tensor, data=data))
    return f"{tensor.name} {gguf.GGMLQuantizationType(tensor.type).name} {tensor.shape}"


def make(folder: Path, seed: int) -> tuple[Path, str]:
    """The file of a seed, and what was changed."""
    rng = random.Random(seed)
    arch = rng.choice(ARCHS)
    base = folder / f"{arch}.gguf"
    if not base.exists():
        tinymoe.write(base, arch, n_layer=2)
    parts, done = gguf_edit.take_apart(base), [arch]
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            done.append(rng.choice(CHANGES)(parts, rng))
        except (IndexError, KeyError):  # an earlier change took what this one wants
            continue
    return parts.write(folder / "lie.gguf"), ", ".join(done)


def main() -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first; the others follow it")
    parser.add_argument("--keep", type=Path, help="a folder for the files of findings")
    args = parser.parse_args()
    known = [int(line.split()[0]) for line in SEEDS.read_text().splitlines() if line and line[0] != "#"]
    n_file, found, end = 0, 0, time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(prefix="edgemoe-fuzz-") as name:
        os.environ["EDGEMOE_CACHE"] = str(Path(name) / "cache")
        while time.monotonic() < end or n_file < len(known):
            seed = known[n_file] if n_file < len(known) else args.seed + n_file - len(known)
            path, changes = make(Path(name), seed)
            n_file += 1
            said = outcome(path)
            if is_finding(said):
                found += 1
                print(f"{seed}: {changes}: {said!r}", flush=True)
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    (args.keep / f"{seed}.gguf").write_bytes(path.read_bytes())
    print(f"{n_file} files, the first of seed {args.seed}: {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
