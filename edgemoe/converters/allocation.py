"""Which type every expert matrix gets: plain data, and the JSON file that carries it from `allocate` to `convert`.

It decides nothing and knows no model: allocate.py makes one, the converter reads one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, StorageError
from ..paths import whole_file

VERSION = 1
ROLES = ("gate", "up", "gate_up", "down")
"""Of an expert's matrices, as in `blk.<layer>.ffn_<role>_exps.weight`; gate_up is the two of gpt-oss in one tensor."""


@dataclass(frozen=True)
class Allocation:
    """A ggml type name ("Q3_K", as `ggml_type_name` says it in upper case) for every matrix of every routed expert.

    types: block number -> role -> one type name an expert. dense: tensor name, in which `*` stands for anything ->
    type name; what no pattern names keeps the source's type. facts: what it was made from and expects, for people
    and metadata; no reader may depend on them.
    """

    types: Mapping[int, Mapping[str, tuple[str, ...]]]
    dense: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def of(self, layer: int, role: str, expert: int) -> str:
        """The type of one matrix. Raises FormatError when this allocation does not name it."""
        try:
            return self.types[layer][role][expert]
        except (KeyError, IndexError):
            raise FormatError(
                f"the allocation has no type for blk.{layer} {role} of expert {expert}",
                hint="it was made for another model: make one for this one",
            ) from None


def save(allocation: Allocation, path: str | os.PathLike[str]) -> None:
    """Write it as JSON, atomically. Raises StorageError."""
    file = Path(path)
    value = {
        "version": VERSION,
        "facts": dict(allocation.facts),
        "types": {
            str(layer): {role: list(names) for role, names in roles.items()}
            for layer, roles in allocation.types.items()
        },
        "dense": dict(allocation.dense),
    }
    with whole_file(file) as stream:
        stream.write(json.dumps(value, indent=1).encode("utf-8"))


def load(path: str | os.PathLike[str]) -> Allocation:
    """Read what `save` wrote. Raises StorageError, or FormatError when it is something else.

    That the type names exist and fit the model's rows is checked where they are used.
    """
    file = Path(path)
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read `{file}`: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FormatError(f"`{file}` is not an allocation: not JSON") from None
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise FormatError(f"`{file}` is not an allocation of version {VERSION}")
    facts = value.get("facts", {})
    types, dense = _types(value.get("types"), file), value.get("dense", {})
    if not isinstance(dense, dict) or not all(isinstance(name, str) for name in dense.values()):
        raise FormatError(f"`{file}`: `dense` is not names of types by tensor")
    return Allocation(types, dense, facts if isinstance(facts, dict) else {})


def _types(value: object, file: Path) -> dict[int, dict[str, tuple[str, ...]]]:
    bad = FormatError(f"`{file}`: `types` is not layer -> role -> names of types")
    if not isinstance(value, dict) or not value:
        raise bad
    types: dict[int, dict[str, tuple[str, ...]]] = {}
    for layer, roles in value.items():
        # isascii: int() also takes digits of other scripts.
        if not (layer.isascii() and layer.isdigit() and len(layer) < 6 and isinstance(roles, dict)):
            raise bad
        types[int(layer)] = {}
        for role, names in roles.items():
            known = role in ROLES and isinstance(names, list) and names
            if not known or not all(isinstance(name, str) for name in names):
                raise bad
            types[int(layer)][role] = tuple(names)
    return types
