"""What a request says that is not known here: passed where it changes nothing, else ignored and named, or refused.

A client written for another server sends that server's parameters too. Most of them are at the value that means "as
always"; those that are not are told in the header `X-EdgeMoE-Ignored` and in the log. `--strict` refuses them.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .failures import invalid
from .protocol import ResponseFormat, StreamOptions, decode

HEADER = "X-EdgeMoE-Ignored"
_MAX_NAMES = 32
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOTHING: frozenset[bytes] = frozenset([b"null", b"[]", b"{}", b'""'])
# Parameters of other servers, at the values under which they do what is done here anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,), "early_stopping": (False,),
    "echo": (False,), "id_slot": (-1, 0), "include_stop_str_in_output": (False,),
    "length_penalty": (0, 1), "min_keep": (0, 1), "min_tokens": (0,),
    "n_discard": (0,), "n_indent": (0,), "n_keep": (0, -1), "n_probs": (0,), "no_repeat_ngram_size": (0,),
    "num_beams": (1,), "penalize_nl": (False,), "post_sampling_probs": (False,), "priority": (0,),
    "return_tokens": (False,), "return_token_ids": (False,), "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,), "t_max_predict_ms": (0, -1), "tfs_z": (1,), "top_a": (0,),
    "truncation": ("disabled",), "use_beam_search": (False,),
    "reasoning_format": ("none", "auto"), "function_call": ("none",),
}  # fmt: skip
_NESTED: dict[str, type[msgspec.Struct]] = {"response_format": ResponseFormat, "stream_options": StreamOptions}


def unknown(body: bytes, kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Names of what is said and not known, without what changes nothing. The body is one of this kind."""
    given: dict[str, msgspec.Raw] = decode(body, dict[str, msgspec.Raw])  # type: ignore[arg-type]
    fields = _fields(kind)
    names = [name for name, raw in given.items() if name not in fields and not _is_neutral(name, raw)]
    for name, inner in _NESTED.items():
        raw = given.get(name)
        if name in fields and raw is not None and bytes(raw).startswith(b"{"):
            inside: dict[str, msgspec.Raw] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            names += [f"{name}.{key}" for key in inside if key not in _fields(inner)]
    return tuple(names)


def checked(body: bytes, kind: type[msgspec.Struct], *, strict: bool) -> tuple[str, ...]:
    """`unknown`, of which there is none with `strict`. Raises ApiError."""
    names = unknown(body, kind)
    if names and strict:
        raise invalid(f"unrecognized request argument: `{names[0]:.100}`", names[0][:100], "unknown_parameter")
    return names


def header(names: tuple[str, ...]) -> dict[str, str]:
    """What an answer says of it. Only names that a header can carry."""
    plain = [name if _PLAIN.fullmatch(name) else "?" for name in names[:_MAX_NAMES]]
    return {HEADER: ", ".join(plain)} if plain else {}


def _fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(kind.__struct_encode_fields__)


def _is_neutral(name: str, raw: msgspec.Raw) -> bool:
    text = bytes(raw).strip()
    if text in _NOTHING:
        return True
    if len(text) > 100 or name not in _NEUTRAL:
        return False
    value = msgspec.json.decode(text)
    return any(type(value) in (type(one), float, int) and value == one for one in _NEUTRAL[name])
