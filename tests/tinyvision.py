"""Write tiny random picture encoders (mmproj) that stock libmtmd loads, and small pictures for them.

python tests/tinyvision.py KIND OUT.gguf [--width N]
"""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]
Tensors = Iterator[tuple[str, tuple[int, ...]]]

EMBD, FF, HEADS, LAYERS, PATCH, SIDE = 64, 96, 2, 2, 16, 4  # of the encoder; SIDE: patches of its position table
DEEPSTACK = 2  # layers of a Qwen3-VL whose output goes to the model's first layers; as in tinymoe_archs


class Size(NamedTuple):
    """width: of the model's input without what goes to deeper layers. ff, layers: of the encoder."""

    width: int
    ff: int = FF
    layers: int = LAYERS


def _block(i: int, ff: int, *, biases: bool, gate: bool, joined: bool = True) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        "ln1": (EMBD,), "ln2": (EMBD,), "attn_out": (EMBD, EMBD), "ffn_up": (ff, EMBD), "ffn_down": (EMBD, ff)
    }  # fmt: skip
    shapes |= {"attn_qkv": (3 * EMBD, EMBD)} if joined else {f"attn_{name}": (EMBD, EMBD) for name in "qkv"}
    if gate:
        shapes["ffn_gate"] = (ff, EMBD)
    for name, shape in shapes.items():
        yield f"v.blk.{i}.{name}.weight", shape
        if biases:
            yield f"v.blk.{i}.{name}.bias", shape[:1]


def _qwen3vl(size: Size) -> Tensors:
    yield "v.patch_embd.weight", (EMBD, 3, PATCH, PATCH)
    yield "v.patch_embd.weight.1", (EMBD, 3, PATCH, PATCH)
    yield "v.patch_embd.bias", (EMBD,)
    yield "v.position_embd.weight", (SIDE * SIDE, EMBD)
    for i in range(size.layers):
        yield from _block(i, size.ff, biases=True, gate=False)
    for i in range(DEEPSTACK):
        yield f"v.deepstack.{i}.norm.weight", (4 * EMBD,)
        yield f"v.deepstack.{i}.norm.bias", (4 * EMBD,)
        yield from _mlp(f"v.deepstack.{i}.fc1", f"v.deepstack.{i}.fc2", size.width)
    yield "v.post_ln.weight", (EMBD,)
    yield "v.post_ln.bias", (EMBD,)
    yield from _mlp("mm.0", "mm.2", size.width)


def _mlp(first: str, second: str, width: int) -> Tensors:
    yield f"{first}.weight", (4 * EMBD, 4 * EMBD)
    yield f"{first}.bias", (4 * EMBD,)
    yield f"{second}.weight", (width, 4 * EMBD)
    yield f"{second}.bias", (width,)


def _gemma4v(size: Size) -> Tensors:
    yield "v.patch_embd.weight", (EMBD, 3, PATCH, PATCH)
    yield "v.position_embd.weight", (2, 64, EMBD)
    for i in range(size.layers):
        yield from _block(i, size.ff, biases=False, gate=True, joined=False)
        yield f"v.blk.{i}.attn_q_norm.weight", (EMBD // HEADS,)
        yield f"v.blk.{i}.attn_k_norm.weight", (EMBD // HEADS,)
        yield f"v.blk.{i}.attn_post_norm.weight", (EMBD,)
        yield f"v.blk.{i}.ffn_post_norm.weight", (EMBD,)
    yield "mm.input_projection.weight", (size.width, EMBD)


def _glm4v(size: Size) -> Tensors:
    yield "v.patch_embd.weight", (EMBD, 3, PATCH, PATCH)
    yield "v.patch_embd.weight.1", (EMBD, 3, PATCH, PATCH)
    yield "v.patch_embd.bias", (EMBD,)
    yield "v.norm_embd.weight", (EMBD,)
    yield "v.position_embd.weight", (SIDE * SIDE, EMBD)
    for i in range(size.layers):
        yield from _block(i, size.ff, biases=False, gate=True)
    yield "v.post_ln.weight", (EMBD,)
    yield "mm.patch_merger.weight", (size.width, EMBD, 2, 2)
    yield "mm.patch_merger.bias", (size.width,)
    yield "mm.model.fc.weight", (size.width, size.width)
    yield "mm.post_norm.weight", (size.width,)
    yield "mm.post_norm.bias", (size.width,)
    yield "mm.up.weight", (FF, size.width)
    yield "mm.gate.weight", (FF, size.width)
    yield "mm.down.weight", (size.width, FF)


def _llama4(size: Size) -> Tensors:
    yield "v.class_embd", (EMBD,)
    yield "v.patch_embd.weight", (EMBD, 3 * PATCH * PATCH)
    yield "v.position_embd.weight", (SIDE * SIDE + 1, EMBD)
    for i in range(size.layers):
        yield from _block(i, size.ff, biases=True, gate=False, joined=False)
    for name in ("pre_ln", "post_ln"):
        yield f"v.{name}.weight", (EMBD,)
        yield f"v.{name}.bias", (EMBD,)
    yield "mm.model.mlp.1.weight", (FF, 4 * EMBD)
    yield "mm.model.mlp.2.weight", (FF, FF)
    yield "mm.model.fc.weight", (size.width, FF)


KINDS: dict[str, tuple[str, Callable[[Size], Tensors]]] = {
    "qwen3vl": ("qwen3vl_merger", _qwen3vl),
    "gemma4v": ("gemma4v", _gemma4v),
    "glm4v": ("glm4v", _glm4v),
    "llama4": ("llama4", _llama4),
}
"""For each kind the name of its projector, and its tensors."""


def write(path: Path, kind: str = "qwen3vl", *, width: int = 256, ff: int = FF, layers: int = LAYERS) -> Path:
    """An encoder for models of this width. ff, layers: of the encoder, for one of some size."""
    projector, tensors = KINDS[kind]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.name", f"tiny {kind} encoder")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", projector)
    writer.add_bool("clip.use_silu" if kind in ("gemma4v", "glm4v") else "clip.use_gelu", True)
    numbers = {
        "image_size": SIDE * PATCH, "patch_size": PATCH, "embedding_length": EMBD, "feed_forward_length": ff,
        "block_count": layers, "projection_dim": width, "attention.head_count": HEADS,
    }  # fmt: skip
    if kind in ("gemma4v", "llama4"):
        numbers["projector.scale_factor"] = 2
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    if kind == "qwen3vl":
        writer.add_array("clip.vision.is_deepstack_layers", [i < DEEPSTACK for i in range(layers)])
    for name, shape in tensors(Size(width, ff, layers)):
        writer.add_tensor(name, _draw(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _draw(name: str, shape: tuple[int, ...]) -> F32Array:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values: F32Array = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name or ".ln" in name or "_ln" in name:
        values *= np.float32(0.1)
        values += np.float32("weight" in name)
    elif len(shape) == 1:
        values *= np.float32(0.1)
    elif "position" not in name:
        values *= np.float32(1.5 / np.prod(shape[1:]) ** 0.5)
    return values


def png(width: int = 96, height: int = 96, seed: int = 0) -> bytes:
    """A picture of coloured squares, as a PNG file."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    pixels = squares.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def main() -> None:
    """Write one encoder as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=256, help="of the model")
    args = parser.parse_args()
    print(write(args.out, args.kind, width=args.width))


if __name__ == "__main__":
    main()
