"""A Hugging Face checkpoint as a source: a folder with config.json, safetensors files and a tokenizer."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import FormatError, StorageError, UsageError
from . import safetensors_file
from .gguf_header import encode
from .hf_config import architecture_of, check_fixed, metadata
from .hf_sampling import sampling_values
from .hf_tensors import Mapped
from .hf_tokenizer import tokenizer_values
from .safetensors_file import Stored
from .source import Source

_INDEX = "model.safetensors.index.json"
_MAX_JSON = 256 << 20


def open_checkpoint(folder: Path, *, pre_tokenizer: str | None = None) -> Source:
    """The model in a folder. Raises UsageError, StorageError, FormatError, UnsupportedError."""
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"`{folder}` is no checkpoint: it has no config.json",
            hint="give a GGUF file, or the folder of a checkpoint",
        )
    config = read_json(folder / "config.json")
    stored, files = _stored(folder)
    with _garbled(folder / "config.json"):
        architecture, row = architecture_of(config)
        check_fixed(config)
        mapped = Mapped(config, stored)
        n_vocab = mapped.dense["token_embd.weight"].ne[-1]
        values = {**metadata(config, n_vocab), "general.name": encode(_name(folder, config))}
    generation = folder / "generation_config.json"
    if generation.is_file():
        values |= sampling_values(read_json(generation))
    values |= tokenizer_values(folder, config, n_vocab, pre_tokenizer=pre_tokenizer)
    experts = {key: tuple(stack[i] for i in range(len(stack))) for key, stack in sorted(mapped.experts.items())}
    dense = tuple(sorted(mapped.dense.values(), key=lambda tensor: _order(tensor.name)))
    return Source(folder, False, row.gguf, values, dense, experts, files, {"architecture": architecture})


@contextlib.contextmanager
def _garbled(path: Path) -> Iterator[None]:
    """What a value of another type than it should have does wrong shows as any of these."""
    try:
        yield
    except KeyError as error:
        raise FormatError(f"`{path}` lacks {error}") from None
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError, struct.error) as error:
        raise FormatError(f"`{path}` is damaged: {str(error)[:80]}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises StorageError, FormatError."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise FormatError(f"`{path}` is larger than any such file")
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FormatError(f"`{path}` is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise FormatError(f"`{path}` is damaged: it is not an object")
    return value


def _stored(folder: Path) -> tuple[dict[str, Stored], tuple[tuple[str, int, int], ...]]:
    index = folder / _INDEX
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise FormatError(f"`{index}` is damaged: it does not say where the weights are")
        names = sorted(set(places.values()))
        if any("/" in name or "\\" in name or name.startswith(".") for name in names):
            raise FormatError(f"`{index}` names files outside its folder")
    else:
        places, names = {}, sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise UsageError(
            f"`{folder}` has no safetensors files", hint="checkpoints in other forms (.bin, .pth) are not read"
        )
    stored: dict[str, Stored] = {}
    files = []
    for name in names:
        if not (folder / name).is_file():
            raise StorageError(f"`{folder / name}` is missing", hint=f"the checkpoint is a set of {len(names)} files")
        tensors, identity = safetensors_file.read(folder / name)
        files.append(identity)
        for key, tensor in tensors.items():
            if key in stored:
                raise FormatError(f"`{key}` is in two files of `{folder}`")
            stored[key] = tensor
    for key in places:
        if key not in stored:
            raise FormatError(f"`{index}` names `{key}`, which no file holds")
    return stored, tuple(files)


def _name(folder: Path, config: dict[str, Any]) -> str:
    given = config.get("_name_or_path")
    return str(given) if isinstance(given, str) and given else folder.resolve().name


def _order(name: str) -> tuple[int, str]:
    """Embedding and output first, then block by block."""
    return (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)
