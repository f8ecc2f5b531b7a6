"""Which type each tensor of the new file gets: what was asked for, checked against the tensor's rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import FormatError, UnsupportedError, UsageError
from .allocation import Allocation
from .from_gguf import expert_name
from .ggml import PLAIN, TARGETS, can_dequantize, fits, target_type
from .gguf_header import Header
from .source import DenseTensor, Key, Rows

DEFAULT_EXPERT = ("Q4_K", "Q8_0", "F16")  # of a checkpoint that is not quantized: the first that its rows divide into
DEFAULT_DENSE = ("Q8_0", "F16")

# Values that stand for themselves, or that decide which experts are used: never quantized, whatever is asked.
_EXACT = ("_norm", "ffn_gate_inp", "exp_probs_b", "attn_sinks", "shortconv.conv", "rope_freqs", "rope_factors")


class Types(Protocol):
    """Names the type of every tensor of the new file."""

    def expert(self, key: Key, expert: int, rows: Rows) -> str: ...
    def dense(self, tensor: DenseTensor) -> str: ...


@dataclass(frozen=True)
class AskedTypes:
    """What a user asks for.

    expert_type: for all experts. allocation: a type an expert matrix. Without either, quantized sources keep theirs.
    dense_type: for the matrices that are no routed experts; None keeps a GGUF's, and is Q8_0 for a checkpoint.
    """

    keep: bool
    expert_type: str | None = None
    allocation: Allocation | None = None
    dense_type: str | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)

    def expert(self, key: Key, expert: int, rows: Rows) -> str:
        layer, family, role = key
        if self.allocation is not None and family == "exps":
            wanted = target_type(self.allocation.of(layer, role, expert))
        elif self.expert_type is not None:
            wanted = self.expert_type
        elif self.keep or rows.type not in PLAIN:
            return rows.type
        else:
            return next(name for name in DEFAULT_EXPERT if fits(name, rows.n_col))
        return _checked(wanted, rows, expert_name(key, expert))

    def dense(self, tensor: DenseTensor) -> str:
        rows = tensor.rows
        if is_exact(tensor):
            return rows.type if self.keep else "F32"
        for pattern, name in self.patterns.items():
            if fnmatch.fnmatchcase(tensor.name, pattern):
                return _checked(target_type(name), rows, tensor.name)
        if self.dense_type is not None:
            # Odd rows among the dense tensors are few and small: they fall to the next types that fit.
            wanted = next(name for name in (self.dense_type, *DEFAULT_DENSE) if fits(name, rows.n_col))
            return _checked(wanted, rows, tensor.name)
        if self.keep or rows.type not in PLAIN:
            return rows.type
        return next(name for name in DEFAULT_DENSE if fits(name, rows.n_col))


@dataclass(frozen=True)
class FileTypes:
    """The types that a finished file has, to compare it with its source."""

    header: Header

    def _of(self, name: str) -> str | None:
        if "by_name" not in self.__dict__:
            self.__dict__["by_name"] = {tensor.name: tensor.type for tensor in self.header.tensors}
        found: str | None = self.__dict__["by_name"].get(name)
        return found

    def expert(self, key: Key, expert: int, rows: Rows) -> str:
        return (
            self._of(expert_name(key, expert)) or self._of(expert_name(key)) or self._missing(expert_name(key, expert))
        )

    def dense(self, tensor: DenseTensor) -> str:
        return self._of(tensor.name) or self._missing(tensor.name)

    def _missing(self, name: str) -> str:
        raise FormatError(f"`{self.header.path}` has no tensor `{name}`", hint="it was made from another model")


def is_exact(tensor: DenseTensor) -> bool:
    """Whether the tensor is left as it is, whatever types are asked for."""
    vector = sum(size > 1 for size in tensor.ne) <= 1
    return vector or tensor.name.endswith(".bias") or any(part in tensor.name for part in _EXACT)


def _checked(wanted: str, rows: Rows, name: str) -> str:
    if wanted == rows.type:
        return wanted
    if not can_dequantize(rows.type):
        raise UnsupportedError(f"`{name}` has type {rows.type}, which cannot be converted")
    if not fits(wanted, rows.n_col):
        fitting = ", ".join(t for t in TARGETS if fits(t, rows.n_col) and t not in PLAIN) or ", ".join(PLAIN)
        raise UsageError(
            f"`{name}` has rows of {rows.n_col} weights, which do not divide into blocks of {wanted}",
            hint=f"types that fit: {fitting}",
        )
    return wanted
