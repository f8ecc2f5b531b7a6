"""GGUF files as a source: stock ones with stacked experts, split sets, and our own with a tensor an expert."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import FormatError, StorageError, UnsupportedError
from . import gguf_header
from .ggml import row_bytes
from .gguf_header import Header, TensorInfo
from .source import ROLES, DenseTensor, FileRows, Key, Rows, Source, SourceFile, check_same_shape

_EXPERT = re.compile(r"blk\.(0|[1-9]\d{0,5})\.ffn_(gate_up|up|gate|down)_(exps|chexps)(?:\.(0|[1-9]\d{0,5}))?\.weight")
# One expert, in files from before April 2024.
_OLD_EXPERT = re.compile(r"blk\.(0|[1-9]\d{0,5})\.ffn_(gate|up|down)\.(0|[1-9]\d{0,5})\.weight")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_DROPPED = ("split.", "general.alignment", "edgemoe.")  # facts of the source's files, not of the model


def open_gguf(path: Path) -> Source:
    """The model in a file, or in the set that it belongs to. Raises StorageError, FormatError, UnsupportedError."""
    headers = _headers(path)
    first = headers[0]
    architecture = gguf_header.decode(first.values.get("general.architecture"))
    if not isinstance(architecture, str):
        raise FormatError(f"`{path}` does not name its architecture (key `general.architecture`)")
    dense: list[DenseTensor] = []
    stacks: dict[Key, dict[int, Rows]] = {}
    seen: set[str] = set()
    for header in headers:
        file = SourceFile(header.path)
        for tensor in header.tensors:
            if tensor.name in seen:
                raise FormatError(f"two tensors of `{path}` are called `{tensor.name}`")
            seen.add(tensor.name)
            if not _add_expert(tensor, file, stacks):
                dense.append(DenseTensor(tensor.name, tensor.ne, _rows(tensor, file)))
    if not stacks:
        raise UnsupportedError(
            f"`{path}` is a dense model ({architecture}): it has no routed experts",
            hint="edgemoe converts Mixture-of-Experts models; llama.cpp quantizes dense ones",
        )
    values = {key: value for key, value in first.values.items() if not key.startswith(_DROPPED)}
    experts = {key: _stack(key, stacks[key]) for key in sorted(stacks)}
    return Source(path, True, architecture, values, tuple(dense), experts, tuple(h.identity for h in headers))


def expert_name(key: Key, expert: int | None = None) -> str:
    """ "blk.3.ffn_up_exps.weight", or "blk.3.ffn_up_exps.17.weight" for one expert."""
    layer, family, role = key
    return f"blk.{layer}.ffn_{role}_{family}{'' if expert is None else f'.{expert}'}.weight"


def _headers(path: Path) -> list[Header]:
    given = gguf_header.read(path)
    count = gguf_header.decode(given.values.get("split.count")) or 1
    if count == 1:
        return [given]
    match = _SPLIT.fullmatch(path.name)
    number = gguf_header.decode(given.values.get("split.no"))
    if not match or int(match[3]) != count:
        raise FormatError(
            f"`{path}` is part of a set of {count} files, but its name does not end in -of-{count:05d}.gguf"
        )
    headers = []
    for i in range(int(count)):
        part = path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf")
        if not part.exists():
            raise StorageError(f"`{part}` is missing", hint=f"the model is a set of {count} files")
        header = given if part == path else gguf_header.read(part)
        number = gguf_header.decode(header.values.get("split.no"))
        if number != i or gguf_header.decode(header.values.get("split.count")) != count:
            raise FormatError(f"`{part}` is not part {i + 1} of {count} of this set")
        headers.append(header)
    total = gguf_header.decode(headers[0].values.get("split.tensors.count"))
    found = sum(len(header.tensors) for header in headers)
    if isinstance(total, int) and total != found:
        raise FormatError(f"the set of `{path}` holds {found} tensors, its header says {total}")
    return headers


def _rows(tensor: TensorInfo, file: SourceFile) -> FileRows:
    return FileRows(file, tensor.offset, tensor.type, tensor.n_row, tensor.n_col)


def _add_expert(tensor: TensorInfo, file: SourceFile, stacks: dict[Key, dict[int, Rows]]) -> bool:
    """Add the experts that the tensor holds; False when it holds none."""
    match, old = _EXPERT.fullmatch(tensor.name), _OLD_EXPERT.fullmatch(tensor.name)
    if match is not None:
        layer, role, family, number = match.groups()
    elif old is not None:
        layer, role, number = old.groups()
        family = "exps"
    else:
        return False
    ne = (*tensor.ne, 1, 1, 1)[:4]
    if ne[3] != 1 or (number is None) == (ne[2] == 1):
        return False
    stack = stacks.setdefault((int(layer), family, role), {})
    if number is not None:
        if int(number) in stack:
            raise FormatError(f"`{tensor.name}` holds an expert that another tensor holds too")
        stack[int(number)] = _rows(tensor, file)
        return True
    if stack:
        raise FormatError(f"`{tensor.name}` holds experts that another tensor holds too")
    size = row_bytes(tensor.type, ne[0]) * ne[1]
    for expert in range(ne[2]):
        stack[expert] = FileRows(file, tensor.offset + expert * size, tensor.type, ne[1], ne[0])
    return True


def _stack(key: Key, found: dict[int, Rows]) -> tuple[Rows, ...]:
    name = expert_name(key)
    if max(found) + 1 != len(found):
        raise FormatError(f"`{name}` has {len(found)} experts, and one of them has number {max(found)}")
    stack = tuple(found[expert] for expert in range(len(found)))
    check_same_shape(stack, name)
    return stack


def check_layers(source: Source) -> None:
    """Raises FormatError when a layer lacks a matrix, or its matrices differ in experts."""
    for layer, family in sorted({key[:2] for key in source.experts}):
        stacks = {
            role: source.experts[layer, family, role] for role in ROLES if (layer, family, role) in source.experts
        }
        if "down" not in stacks or len(stacks) not in (2, 3):
            raise FormatError(f"the experts of block {layer} have the matrices {', '.join(stacks)}")
        counts = {len(stack) for stack in stacks.values()}
        if len(counts) != 1:
            raise FormatError(f"the matrices of block {layer} have {' and '.join(map(str, sorted(counts)))} experts")
