"""RoPE and YaRN scaling, by llama.cpp's names: what a person may say of it, and the fields of `emoe_setup`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError

SCALINGS = ("none", "linear", "yarn")
"""By llama.cpp's numbers, `llama_rope_scaling_type`."""

# EMOE_ROPE_* and EMOE_YARN_*: the bit that says that a field is given.
_BITS = {
    "rope_scaling": 1, "rope_freq_base": 2, "rope_freq_scale": 4, "yarn_ext_factor": 8, "yarn_attn_factor": 16,
    "yarn_beta_fast": 32, "yarn_beta_slow": 64, "yarn_orig_ctx": 128,
}  # fmt: skip
FIELDS = (*_BITS, "rope_scale")
"""Those of `Setup`."""


def check(said: Mapping[str, Any]) -> None:
    """said: the fields of `Setup` that are given. Raises UsageError."""
    scaling = said.get("rope_scaling")
    if scaling is not None and scaling not in SCALINGS:
        raise UsageError(f"`{scaling}` is no way to scale RoPE", hint="use `none`, `linear` or `yarn`")
    if "rope_scale" in said and "rope_freq_scale" in said:
        raise UsageError(
            "`--rope-scale` and `--rope-freq-scale` say the same: one is 1 / the other", hint="leave out one of the two"
        )
    for name, value in said.items():
        least = 0 if name == "yarn_ext_factor" else 1e-12
        if name != "rope_scaling" and not (least <= value <= 1e12 and math.isfinite(value)):
            raise UsageError(
                f"`--{name.replace('_', '-')} {value}` makes no sense",
                hint="give 0 or more" if least == 0 else "give a number above 0",
            )


def native(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `emoe_setup`."""
    fields = dict(said)
    if "rope_scaling" in fields:
        fields["rope_scaling"] = SCALINGS.index(fields["rope_scaling"])
    if "rope_scale" in fields:
        fields["rope_freq_scale"] = 1 / fields.pop("rope_scale")
    return {**fields, "rope_given": sum(_BITS[name] for name in fields)} if fields else {}
