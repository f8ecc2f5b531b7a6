"""Tensors of a checkpoint under their GGUF names, with the form that llama.cpp wants.

Names of dense tensors come from the gguf package's map. Experts come one a tensor (Mixtral, Qwen, OLMoE, DeepSeek),
stacked with gate and up in one (newer Qwen, Granite), or packed in MXFP4 and interleaved (gpt-oss).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from .hf_config import Config, architecture_of, n_expert, n_layer, whole
from .hf_expected import expected, is_tied
from .hf_rows import KeyHalf, Mxfp4Rows, TransposedRows, count, rows_of, slice_of
from .safetensors_file import Stored
from .source import DenseTensor, FileRows, Key, PickedRows, Rows

_SINGLE = re.compile(
    r"model\.layers\.(\d{1,6})\.(?:mlp|block_sparse_moe)\.experts\.(\d{1,6})"
    r"\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight"
)
_FUSED = re.compile(
    r"model\.layers\.(\d{1,6})\.(?:mlp\.experts|block_sparse_moe)"
    r"\.(gate_up_proj|down_proj|gate_proj|up_proj|input_linear|output_linear)(\.weight|_blocks|_scales|_bias|)"
)
_ROLES = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")
_IGNORED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


class Mapped:
    """Collects what a checkpoint's tensors become."""

    def __init__(self, config: Config, stored: Mapping[str, Stored]) -> None:
        import gguf

        _, self.row = architecture_of(config)
        self.config, self.stored = config, stored
        self.n_layer, self.n_expert = n_layer(config), n_expert(config)
        kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.row.gguf)
        self._names = gguf.get_tensor_name_map(kind, self.n_layer)
        self.dense: dict[str, DenseTensor] = {}
        self._origin: dict[str, str] = {}  # by GGUF name, of the tensors that keep their place
        self.experts: dict[Key, dict[int, Rows]] = {}
        for name in sorted(stored):
            self._take(name, stored[name])
        self._check()

    # ------------------------------------------------------------------ sorting

    def _take(self, name: str, tensor: Stored) -> None:
        layer = _LAYER.match(name)
        if name.endswith(_IGNORED) or (layer and int(layer[1]) >= self.n_layer):
            return  # layers past the last predict several tokens; llama.cpp leaves them out
        if name.endswith("weight_scale_inv"):
            return  # read with the weights that they scale
        if name == "lm_head.weight" and is_tied(self.config):
            return
        single, fused = _SINGLE.fullmatch(name), _FUSED.fullmatch(name)
        if single:
            self._expert((int(single[1]), "exps", _ROLES[single[3]]), int(single[2]), self._rows(tensor))
        elif fused:
            self._fused(int(fused[1]), fused[2], fused[3], tensor)
        else:
            self._dense(name, tensor)

    def _rows(self, tensor: Stored) -> Rows:
        return rows_of(tensor, self.stored.get(f"{tensor.name}_scale_inv"))

    def _expert(self, key: Key, expert: int, rows: Rows) -> None:
        if expert in self.experts.setdefault(key, {}):
            raise FormatError(f"expert {expert} of layer {key[0]} is there twice")
        self.experts[key][expert] = rows

    def _add(self, name: str, ne: tuple[int, ...], rows: Rows) -> None:
        if name in self.dense:
            raise FormatError(f"two tensors of the checkpoint become `{name}`")
        self.dense[name] = DenseTensor(name, ne, rows)

    # ------------------------------------------------------------------ experts in one tensor

    def _fused(self, layer: int, part: str, suffix: str, tensor: Stored) -> None:
        if self.row.gguf == "gpt-oss":
            self._gpt_oss(layer, part, suffix, tensor)
            return
        if suffix not in ("", ".weight") or len(tensor.shape) != 3:
            raise UnsupportedError(f"`{tensor.name}` is not a stack of experts")
        for expert in range(self.n_expert):
            rows = rows_of(slice_of(tensor, expert, self.n_expert))
            if part in ("gate_up_proj", "input_linear"):  # gate's rows, then up's
                half = rows.n_row // 2
                self._expert((layer, "exps", "gate"), expert, PickedRows(rows, np.arange(half)))
                self._expert((layer, "exps", "up"), expert, PickedRows(rows, np.arange(half, 2 * half)))
            else:
                self._expert((layer, "exps", _ROLES.get(part, "down")), expert, rows)

    def _gpt_oss(self, layer: int, part: str, suffix: str, tensor: Stored) -> None:
        # Gate and up take turns, row by row. down_proj has one role.
        roles = {"gate_up_proj": (("gate", 0, 2), ("up", 1, 2)), "down_proj": (("down", 0, 1),)}.get(part)
        if roles is None:
            raise UnsupportedError(f"`{tensor.name}` is not a tensor of gpt-oss")
        if suffix == "_scales":
            return  # read with the blocks
        for role, first, step in roles:
            if suffix == "_bias":
                if len(tensor.shape) != 2 or tensor.shape[0] != self.n_expert:
                    raise FormatError(f"`{tensor.name}` is {list(tensor.shape)}")
                rows = rows_of(Stored(tensor.name, tensor.file, tensor.dtype, (count(tensor.shape), 1), tensor.offset))
                n = tensor.shape[1] // step
                picked = PickedRows(rows, np.arange(first, count(tensor.shape), step)) if step > 1 else rows
                self._add(f"blk.{layer}.ffn_{role}_exps.bias", (n, self.n_expert), _Reshaped(picked, self.n_expert, n))
                continue
            for expert in range(self.n_expert):
                rows = self._gpt_oss_expert(tensor, suffix, expert, first, step)
                self._expert((layer, "exps", role), expert, rows)

    def _gpt_oss_expert(self, tensor: Stored, suffix: str, expert: int, first: int, step: int) -> Rows:
        if suffix == "":
            stack = slice_of(tensor, expert, self.n_expert)
            base = rows_of(stack)
            if len(stack.shape) != 2 or not isinstance(base, FileRows):
                raise FormatError(f"`{tensor.name}` is {list(tensor.shape)}")
            return TransposedRows(base, first, step)
        scales = self.stored.get(tensor.name.replace("_blocks", "_scales"))
        sound = suffix == "_blocks" and scales is not None and tensor.dtype == scales.dtype == "U8"
        if not sound or len(tensor.shape) != 4 or tensor.shape[3] != 16:
            raise FormatError(f"`{tensor.name}` is not in MXFP4 with its scales")
        assert scales is not None
        if scales.shape != tensor.shape[:3]:
            raise FormatError(f"`{tensor.name}` is {list(tensor.shape)}, its scales are {list(scales.shape)}")
        blocks, exponents = (slice_of(stored, expert, self.n_expert) for stored in (tensor, scales))
        n_row, n_block = tensor.shape[1:3]
        return Mxfp4Rows(blocks.file, blocks.offset, exponents.file, exponents.offset, n_row, 32 * n_block, first, step)

    # ------------------------------------------------------------------ the rest

    def _dense(self, name: str, tensor: Stored) -> None:
        if name.endswith("kv_b_proj.weight") and self.row.gguf == "deepseek2":
            self._kv_b(name, tensor)
            return
        if name.endswith("shared_mlp.input_linear.weight"):
            self._shared_fused(name, tensor)
            return
        asked = name
        if asked.endswith(".sinks"):
            asked += ".weight"
        elif asked.endswith(".e_score_correction_bias"):
            asked = asked.replace("e_score_correction_bias", "e_score_correction.bias")
        mapped = self._map(asked)
        rows = self._rows(tensor)
        if self.row.permuted and re.search(r"\.(q|k)_proj\.(weight|bias)$", name):
            rows = self._permute(name, tensor, rows)
        ne = tuple(reversed(tensor.shape)) or (1,)
        if mapped.endswith("ffn_gate_inp_shexp.weight"):
            ne = (count(tensor.shape),)  # one row; GGUF has it as a vector
        self._add(mapped, ne, rows)
        self._origin[mapped] = name

    def _map(self, name: str) -> str:
        mapped = self._names.get_name(key=name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise UnsupportedError(
                f"the checkpoint's tensor `{name}` has no place in a GGUF of `{self.row.gguf}`",
                hint="it may be a later variant of the architecture",
            )
        return str(mapped)

    def _permute(self, name: str, tensor: Stored, rows: Rows) -> Rows:
        """Heads are halves that rotate against each other; llama.cpp wants neighbours: rows 0, n/2, 1, n/2 + 1, ..."""
        key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        n_head = whole(self.config, key, 0) or whole(self.config, "num_attention_heads")
        total = tensor.shape[0]
        if n_head < 1 or total % (2 * n_head):
            raise FormatError(f"`{name}` has {total} rows, which do not divide into {n_head} heads")
        order = np.arange(total).reshape(n_head, 2, total // n_head // 2).swapaxes(1, 2).reshape(-1)
        if len(tensor.shape) == 1:  # a bias: a row an element
            column = Stored(tensor.name, tensor.file, tensor.dtype, (total, 1), tensor.offset)
            return _Reshaped(PickedRows(rows_of(column), order), 1, total)
        return PickedRows(rows, order)

    def _kv_b(self, name: str, tensor: Stored) -> None:
        n_head, n_key, n_value = (
            whole(self.config, key) for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim")
        )
        rows = self._rows(tensor)
        if len(tensor.shape) != 2 or tensor.shape[0] != n_head * (n_key + n_value):
            raise FormatError(f"`{name}` is {list(tensor.shape)}, {n_head * (n_key + n_value)} rows are due")
        rank = tensor.shape[1]
        values = np.arange(rows.n_row).reshape(n_head, n_key + n_value)[:, n_key:].reshape(-1)
        key_half = KeyHalf(rows, n_head, n_key, n_value)
        self._add(self._map(name.replace("kv_b_proj", "k_b_proj")), (n_key, rank, n_head), key_half)
        self._add(self._map(name.replace("kv_b_proj", "v_b_proj")), (rank, n_value, n_head), PickedRows(rows, values))

    def _shared_fused(self, name: str, tensor: Stored) -> None:
        rows, layer = self._rows(tensor), _LAYER.match(name)
        half = rows.n_row // 2
        assert layer is not None
        for role, first in (("gate", 0), ("up", half)):
            picked = PickedRows(rows, np.arange(first, first + half))
            self._add(f"blk.{layer[1]}.ffn_{role}_shexp.weight", (rows.n_col, half), picked)

    # ------------------------------------------------------------------ completeness

    def _check(self) -> None:
        """Every layer has what its like have; every expert is there, in the shape that config.json says."""
        hidden = whole(self.config, "hidden_size")
        width = whole(self.config, "moe_intermediate_size", 0) or whole(self.config, "intermediate_size")
        for (layer, _, role), stack in sorted(self.experts.items()):
            if len(stack) != self.n_expert or max(stack) != self.n_expert - 1:
                missing = next(i for i in range(len(stack) + 1) if i not in stack)
                what = f"lacks expert {missing}" if missing < self.n_expert else f"has {len(stack)} experts"
                raise FormatError(f"the {role} matrices of layer {layer}: the checkpoint {what} of {self.n_expert}")
            shape = (hidden, width) if role == "down" else (width, hidden)
            for expert, rows in stack.items():
                if (rows.n_row, rows.n_col) != shape:
                    raise FormatError(
                        f"{role} of expert {expert} in layer {layer} is {rows.n_row} x {rows.n_col}, "
                        f"`config.json` says {shape[0]} x {shape[1]}"
                    )
        self._check_expected()
        layers: dict[int, set[str]] = {layer: set() for layer in range(self.n_layer)}
        for name in self.dense:
            found = re.match(r"blk\.(\d+)\.(.*)", name)
            if found:
                layers[int(found[1])].add(found[2])
        mixture = {key[0] for key in self.experts}
        for kind in (mixture, set(layers) - mixture):
            for layer in sorted(kind):
                first = min(kind)
                for name in layers[first] ^ layers[layer]:
                    lacking, having = (layer, first) if name in layers[first] else (first, layer)
                    raise FormatError(f"layer {lacking} lacks `{name}`, which layer {having} has")
                if layer in mixture and {key[2] for key in self.experts if key[0] == layer} != {"gate", "up", "down"}:
                    raise FormatError(f"layer {layer} lacks matrices of its experts")
        dense_first = whole(self.config, "first_k_dense_replace", 0)
        if mixture != set(range(dense_first, self.n_layer)):
            raise FormatError(f"{len(mixture)} layers have experts, `config.json` says {self.n_layer - dense_first}")

    def _check_expected(self) -> None:
        """Every tensor that config.json says is there, in the shape that it says."""
        due = expected(self.config)
        for name, shape in due.items():
            if name not in self.dense:
                raise FormatError(
                    f"the checkpoint lacks `{self._stored_name(name)}`, which `config.json` says it has",
                    hint="a file of it may be missing: download or copy it again",
                )
            found = self.dense[name].ne
            if len(found) != len(shape) or any(want not in (0, have) for have, want in zip(found, shape, strict=True)):
                said = " x ".join(str(size or "any") for size in shape)
                raise FormatError(
                    f"`{self._stored_name(name)}` is {' x '.join(map(str, found))}, `config.json` says {said}"
                )
        if "output.weight" in due and self.dense["output.weight"].ne != self.dense["token_embd.weight"].ne:
            raise FormatError("`lm_head.weight` and the embedding differ in shape")

    def _stored_name(self, name: str) -> str:
        """What a checkpoint calls a tensor: as another layer of this one does, else as others do."""
        if name in self._origin:
            return self._origin[name]
        block = re.match(r"blk\.(\d+)\.", name)
        if block:
            for other, origin in self._origin.items():
                sibling = re.match(r"blk\.(\d+)\.", other)
                if sibling and other[sibling.end() :] == name[block.end() :]:
                    return origin.replace(f".{sibling[1]}.", f".{block[1]}.", 1)
        stem, _, suffix = name.rpartition(".")
        known = [key for key, (_, mapped) in self._names.mapping.items() if mapped == stem]
        usual = [key for key in known if key.startswith("model.") or key == "lm_head"]
        usual.sort(key=lambda key: not (".mlp." in key or ".self_attn." in key))
        return f"{(usual or known or [stem])[0]}.{suffix}"


class _Reshaped:
    """Rows of one element as rows of many."""

    whole_bytes = 0

    def __init__(self, base: Rows, n_row: int, n_col: int) -> None:
        self.base, self.n_row, self.n_col, self.type = base, n_row, n_col, base.type

    def load(self, begin: int, end: int) -> Any:
        return self.base.load(begin * self.n_col, end * self.n_col).reshape(end - begin, -1)
