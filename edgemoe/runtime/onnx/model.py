"""An export as a model: what `edgemoe.json` says of it, checked against the files that are there. Opens no weights."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from ... import _native
from ...errors import EdgeMoEError, FormatError, StorageError, UnsupportedError, UsageError
from ..model import LayerInfo, Model, ModelInfo

MANIFEST, MODEL_FILE, VOCABULARY = "edgemoe.json", "model.onnx", "vocabulary.gguf"
PAGE = mmap.PAGESIZE  # 16 KiB on a Raspberry Pi 5, where a smaller piece of a mapping cannot be dropped
# Each number of the manifest, and the largest that is believed: sizes made of them stay inside 64 bits.
_NUMBERS = {
    "n_layer": 1 << 10, "n_embd": 1 << 20, "n_head": 1 << 12, "n_head_kv": 1 << 12, "head_dim": 1 << 12,
    "n_ff": 1 << 20, "n_expert": 1 << 16, "n_expert_used": 1 << 16, "n_vocab": 1 << 24, "n_ctx": 1 << 24,
}  # fmt: skip
_BLOCKS = (64, 32, 16)  # weights that share a scale
_BITS = (2, 4, 8)
_BITS_FOR_SCALES = 64  # a block, at most, after ONNX Runtime's packing: two floats


def export_at(path: Path) -> Path | None:
    """The folder of an export, given that or a file in it; None for what is no ONNX at all.

    Raises UnsupportedError for ONNX that edgemoe did not make.
    """
    folder = path if path.is_dir() else path.parent
    given = path.is_dir() and (folder / MODEL_FILE).is_file()
    if not given and not (path.is_file() and path.suffix.lower() == ".onnx"):
        return None
    if not (folder / MANIFEST).is_file():
        raise UnsupportedError(
            f"`{path}` is no ONNX export of edgemoe: it lacks {MANIFEST}",
            hint="make one of the model's GGUF or checkpoint: `edgemoe convert SRC OUT --to onnx`",
        )
    return folder


class OnnxModel(Model):
    """The facts of an export, see `Model`. path: its folder. shape: numbers of the manifest. bits: of each expert."""

    format = "onnx"

    def __init__(self, folder: Path) -> None:
        self.path = folder
        manifest, digest = _manifest(folder)
        self.shape: dict[str, int] = {name: _number(manifest, name, folder) for name in _NUMBERS}
        s = self.shape
        if s["n_expert_used"] > s["n_expert"] or s["n_head"] % s["n_head_kv"] or s["n_embd"] % 16 or s["n_ff"] % 16:
            raise _damaged(folder, "its numbers do not fit each other")
        self._template = manifest.get("chat_template")
        self._texts = {key: str(manifest.get(key, "")) for key in ("name", "architecture", "source")}
        if self._template is not None and not isinstance(self._template, str):
            raise _damaged(folder, "`chat_template` is no text")
        self._files = _files(manifest, folder)
        # What was packed of an export is packed again when any of its files is another.
        self._digest = digest << 32 | zlib.crc32(_stamp(folder, self._files).encode())
        self.bits = _expert_bits(manifest, self.shape, folder)
        self._expert_bytes = [_expert_bytes(layer, folder) for layer in manifest["experts"]]
        self.info = self._info()

    @property
    def handle(self) -> _native.ModelHandle:
        raise UnsupportedError(f"`{self.path}` is an ONNX export: this works on GGUF files")

    @property
    def vocabulary(self) -> Path:
        """A GGUF without tensors, for the tokenizer."""
        return self.path / VOCABULARY

    @property
    def dense_file_bytes(self) -> int:
        """Everything that is no expert, as it lies in its file."""
        return self._files["model.onnx.data"]

    def _info(self) -> ModelInfo:
        s = self.shape
        slots = [[self.slot_bytes(bits) for bits in layer] for layer in self.bits]
        expert_bytes = sum(map(sum, self._expert_bytes))
        head = s["n_vocab"] * s["n_embd"] * 9 // 8
        return ModelInfo(
            n_layer=s["n_layer"],
            n_moe_layer=s["n_layer"],
            n_expert=s["n_expert"],
            n_expert_used=s["n_expert_used"],
            n_ctx_train=s["n_ctx"],
            n_embd=s["n_embd"],
            n_vocab=s["n_vocab"],
            n_file=len(self._files),
            direct_io=False,
            file_bytes=sum(self._files.values()),
            dense_bytes=self.dense_file_bytes,
            dense_token_bytes=max(head, self.dense_file_bytes - head),
            expert_bytes=expert_bytes,
            token_bytes=expert_bytes * s["n_expert_used"] // s["n_expert"],
            slot_bytes=sum(map(sum, slots)),
            slot_min_bytes=max(map(sum, slots)),
            n_expert_total=s["n_layer"] * s["n_expert"],
            identity=self._digest,
            architecture=self._texts["architecture"],
            name=self._texts["name"],
        )

    def slot_bytes(self, bits: int) -> int:
        """Memory of an expert of so many bits, at most: packed, whole pages."""
        n_weight = self.shape["n_ff"] * self.shape["n_embd"]
        block = next(size for size in _BLOCKS if self.shape["n_ff"] % size == 0 == self.shape["n_embd"] % size)
        each = (2 * n_weight, n_weight)  # gate and up, and down
        return sum(-(-n * (bits + _BITS_FOR_SCALES // block) // 8 // PAGE) * PAGE + 2 * PAGE for n in each)

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        n_weight = 3 * self.shape["n_ff"] * self.shape["n_embd"]
        found = []
        for layer, (bits, sizes) in enumerate(zip(self.bits, self._expert_bytes, strict=True)):
            counts = Counter(bits)
            mean = sum(sizes) // len(sizes)
            found.append(
                LayerInfo(
                    layer=layer,
                    n_expert=len(bits),
                    n_matrix=2,
                    expert_bytes=mean,
                    slot_bytes=sum(map(self.slot_bytes, bits)) // len(bits),
                    bits_per_weight=8 * mean / n_weight,
                    types=" ".join(f"{n}x{width}-bit" for width, n in sorted(counts.items())),
                )
            )
        return tuple(found)

    def meta(self, key: str) -> str | None:
        names = {"general.name": "name", "general.architecture": "architecture", "edgemoe.source.name": "source"}
        if key == "tokenizer.chat_template":
            return self.chat_template
        return self._texts.get(names.get(key, ""))

    @cached_property
    def chat_template(self) -> str | None:
        template: str | None = self._template
        return template

    @property
    def main_type(self) -> str:
        return ""


def open_export(folder: Path) -> OnnxModel:
    """Raises FormatError for an export that is damaged or not whole, StorageError."""
    return OnnxModel(folder)


def _stamp(folder: Path, names: Iterable[str]) -> str:
    """Changes when a file of the export does."""
    try:
        found = [(folder / name).stat() for name in sorted(names)]
    except OSError as error:
        raise StorageError(f"cannot read `{folder}`: {error.strerror}") from None
    return json.dumps([os.path.realpath(folder), *([s.st_ino, s.st_size, s.st_mtime_ns] for s in found)])


def _manifest(folder: Path) -> tuple[dict[str, Any], int]:
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(folder, "it is not JSON") from None
    if not isinstance(value, dict) or value.get("version") != 1:
        raise _damaged(folder, "it is not of version 1")
    return value, zlib.crc32(raw)


def _number(manifest: dict[str, Any], name: str, folder: Path) -> int:
    value = manifest.get(name)
    if type(value) is not int or not 0 < value <= _NUMBERS[name]:
        raise _damaged(folder, f"`{name}` is {value!r:.80}")
    return value


def _files(manifest: dict[str, Any], folder: Path) -> dict[str, int]:
    files = manifest.get("files")
    if not isinstance(files, dict) or not {MODEL_FILE, VOCABULARY, "model.onnx.data"} <= files.keys():
        raise _damaged(folder, "it does not name the files")
    for name, due in files.items():
        if "/" in name or "\\" in name or "\0" in name or name.startswith(".") or type(due) is not int:
            raise _damaged(folder, f"it names a file `{name[:40]}`")
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise FormatError(
                f"`{folder / name}` is missing", hint="copy the whole folder again, or make the export anew"
            ) from None
        if size != due:
            raise FormatError(
                f"`{folder / name}` has {size:,} bytes, {due:,} are due",
                hint="copy the whole folder again, or make the export anew",
            )
    return files


def _expert_bits(manifest: dict[str, Any], shape: dict[str, int], folder: Path) -> list[list[int]]:
    layers = manifest.get("experts")
    if not isinstance(layers, list) or len(layers) != shape["n_layer"]:
        raise _damaged(folder, "it does not say where the experts are")
    found = []
    for layer in layers:
        experts = layer.get("experts") if isinstance(layer, dict) else None
        if not isinstance(experts, list) or len(experts) != shape["n_expert"]:
            raise _damaged(folder, "a layer has not all experts")
        bits = [expert.get("bits") if isinstance(expert, dict) else None for expert in experts]
        if any(type(width) is not int or width not in _BITS for width in bits):
            raise _damaged(folder, "an expert has neither 2, 4 nor 8 bits")
        found.append([int(width) for width in bits if width is not None])
    return found


def _expert_bytes(layer: dict[str, Any], folder: Path) -> list[int]:
    found = []
    for expert in layer["experts"]:
        places = expert.get("places")
        if not isinstance(places, list) or not places or not all(map(_is_place, places)):
            raise _damaged(folder, "it does not say where an expert is")
        found.append(sum(size for _, size in places))
    return found


def _is_place(value: Any) -> bool:
    """Offset and bytes."""
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _damaged(folder: Path, what: str) -> EdgeMoEError:
    return FormatError(f"`{folder / MANIFEST}` is damaged: {what}", hint="make the export anew")


def not_for_exports(model: Model, what: str) -> None:
    """Raise UsageError where something works on GGUF files alone."""
    if isinstance(model, OnnxModel):
        raise UsageError(f"{what} an ONNX export cannot be", hint="use the GGUF file that it was made from")
