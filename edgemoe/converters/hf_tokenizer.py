"""A checkpoint's tokenizer and chat template as GGUF metadata.

Merges, special tokens and the template are read by the gguf package. How text is cut before merging is told llama.cpp
by a name; it is found here from the expressions that tokenizer.json itself names, not by running the tokenizer.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, StorageError, UnsupportedError
from .gguf_header import FLOAT32, INT32, Value, encode

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
)
_O200K = _O200K_WORD + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What llama.cpp calls the cut, by the expressions in their order. "gpt2" and "digits" are tokenizer.json's own kinds.
_CUTS: dict[tuple[str, ...], str] = {
    (_QWEN,): "qwen2",
    (_QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1),): "llama-bpe",
    (_O200K,): "gpt-4o",
    ("gpt2",): "gpt-2",
    ("digits", "gpt2"): "refact",
    (r"\p{N}", "gpt2"): "refact",
}
# Those whose expressions are long lists of letters: told by one of them.
_MARKS = (
    ("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", "deepseek-v3"),
    (r"\s?\p{L}+", "deepseek-coder"),
    ("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "deepseek-llm"),
)


def tokenizer_values(
    folder: Path, config: Mapping[str, Any], n_vocab: int, *, pre_tokenizer: str | None = None
) -> dict[str, Value]:
    """All `tokenizer.*` keys. n_vocab: rows of the embedding. Raises FormatError, UnsupportedError."""
    settings, tokenizer = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json")
    try:
        if (folder / "tokenizer.model").is_file():
            values = _sentencepiece(folder / "tokenizer.model", tokenizer, settings, n_vocab)
        elif tokenizer:
            values = _from_json(folder, tokenizer, settings, n_vocab, pre_tokenizer)
        else:
            raise UnsupportedError(
                f"`{folder}` has neither tokenizer.json nor tokenizer.model",
                hint="copy the checkpoint's tokenizer there",
            )
        if isinstance(settings.get("add_prefix_space"), bool):
            values["tokenizer.ggml.add_space_prefix"] = encode(settings["add_prefix_space"])
        values |= _special(folder, n_vocab, merges=values["tokenizer.ggml.model"] == encode("gpt2"))
    except OSError as error:
        raise StorageError(f"cannot read the tokenizer in `{folder}`: {error.strerror or error}") from None
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RecursionError, struct.error) as error:
        raise FormatError(f"the tokenizer in `{folder}` is damaged: {str(error)[:80]}") from None
    return values


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise FormatError(f"`{path}` is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise FormatError(f"`{path}` is damaged: it is not an object")
    return value


def _special(folder: Path, n_vocab: int, *, merges: bool) -> dict[str, Value]:
    import gguf

    logging.getLogger("gguf").setLevel(logging.ERROR)
    vocab = gguf.SpecialVocab(folder, load_merges=merges, n_vocab=n_vocab)
    out: dict[str, Value] = {}
    if merges:
        if not vocab.merges:
            raise FormatError(f"the tokenizer in `{folder}` has no merges")
        if not all(isinstance(merge, str) and " " in merge for merge in vocab.merges):
            raise FormatError(f"the tokenizer in `{folder}` is damaged: a merge is not two pieces of text")
        out["tokenizer.ggml.merges"] = encode(vocab.merges)
    names = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # llama.cpp's spelling
    for kind, token in vocab.special_token_ids.items():
        out[f"tokenizer.ggml.{names.get(kind, kind)}_token_id"] = encode(int(token))
    for kind, add in vocab.add_special_token.items():
        if kind in ("bos", "eos", "sep"):
            out[f"tokenizer.ggml.add_{kind}_token"] = encode(bool(add))
    for name, template in _templates(folder, vocab.chat_template).items():
        if not isinstance(name, str) or not isinstance(template, str):
            raise FormatError(f"the tokenizer in `{folder}` is damaged: a chat template is not text")
        out["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = encode(template)
    return out


def _templates(folder: Path, in_settings: Any) -> dict[Any, Any]:
    """The chat templates by name. Files of their own go before the tokenizer's settings, which may be older."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        return {"default": _template(file), **{path.stem: _template(path) for path in others}}
    found = in_settings or _json(folder / "chat_template.json").get("chat_template")  # the last is a processor's
    if not found:
        return {}
    return {"default": found} if isinstance(found, str) else {entry["name"]: entry["template"] for entry in found}


def _template(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"`{path}` is no UTF-8 text") from None


def _from_json(
    folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any], n_vocab: int, pre_tokenizer: str | None
) -> dict[str, Value]:
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"`{folder}` has a tokenizer of the type {model.get('type')!r}", hint="BPE is known")
    names: list[str | None] = [None] * n_vocab
    kinds = [NORMAL] * n_vocab
    for name, token in model["vocab"].items():
        _put(names, token, name)
    for entry in tokenizer.get("added_tokens") or []:
        token, name = entry["id"], entry["content"]
        control = entry.get("special") or _looks_special(name)
        _put(names, token, name if control else name.replace("\u2581", " "))
        kinds[token] = CONTROL if control else USER_DEFINED
    if model.get("byte_fallback") and not _cuts(tokenizer.get("pre_tokenizer")):
        return _as_sentencepiece(model, names, kinds)
    tokens, kinds = _padded(names, kinds)
    return {
        "tokenizer.ggml.model": encode("gpt2"),
        "tokenizer.ggml.pre": encode(pre_tokenizer or _cut_name(folder, tokenizer, settings)),
        "tokenizer.ggml.tokens": encode(tokens),
        "tokenizer.ggml.token_type": encode(kinds, INT32),
    }


def _put(names: list[str | None], token: Any, name: Any) -> None:
    if type(token) is not int or not isinstance(name, str) or not 0 <= token < len(names):
        raise FormatError(f"the tokenizer has a token {token!r:.40}, the model {len(names)}")
    names[token] = name


def _padded(names: list[str | None], kinds: list[int]) -> tuple[list[str], list[int]]:
    """Rows of the embedding without a token get one that no text becomes."""
    tokens = [f"[PAD{i}]" if name is None else name for i, name in enumerate(names)]
    return tokens, [UNUSED if name is None else kind for name, kind in zip(names, kinds, strict=True)]


def _looks_special(name: str) -> bool:
    return (name.startswith("<|") and name.endswith("|>")) or (name.startswith("<\uff5c") and name.endswith("\uff5c>"))


# ---------------------------------------------------------------- how text is cut


def _cuts(pre: Any) -> tuple[str, ...]:
    """The expressions that cut text, in their order."""
    if not isinstance(pre, dict):
        return ()
    kind = pre.get("type")
    if kind == "Sequence":
        return tuple(cut for part in pre.get("pretokenizers", []) for cut in _cuts(part))
    if kind == "ByteLevel":
        return ("gpt2",) if pre.get("use_regex", True) else ()
    if kind == "Digits":
        return ("digits",) if pre.get("individual_digits") else ("numbers",)
    if kind == "Split":
        expression = pre.get("pattern", {}).get("Regex", "")
        return (expression.replace("\r", r"\r").replace("\n", r"\n"),)
    return () if kind == "Metaspace" else (str(kind),)


def cut_of(name: str) -> list[dict[str, Any]] | None:
    """tokenizer.json's way of the cut that llama.cpp calls so, bytes as letters at its end; None: not known here."""
    name = {"smollm": "refact", "default": "gpt-2"}.get(name, name)
    cuts = next((cuts for cuts, found in _CUTS.items() if found == name), None)
    if cuts is None:
        return None
    made: list[dict[str, Any]] = []
    for cut in cuts:
        if cut == "digits":
            made.append({"type": "Digits", "individual_digits": True})
        elif cut != "gpt2":
            expression = cut.replace(r"\r", "\r").replace(r"\n", "\n")
            made.append({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False})
    regex = "gpt2" in cuts
    return [*made, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}]


def _cut_name(folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any]) -> str:
    cuts = _cuts(tokenizer.get("pre_tokenizer"))
    name = _CUTS.get(cuts) or next((name for mark, name in _MARKS if mark in cuts), None)
    if name is None:
        raise UnsupportedError(
            f"`{folder}` cuts text in a way that is not known here", hint="name llama.cpp's with `--pre-tokenizer NAME`"
        )
    if name == "refact" and settings.get("clean_up_tokenization_spaces") is False:
        return "smollm"  # the same cut, and no spaces are taken out of answers
    return name


# ---------------------------------------------------------------- SentencePiece


def _as_sentencepiece(model: dict[str, Any], names: list[str | None], kinds: list[int]) -> dict[str, Value]:
    """A SentencePiece vocabulary that was stored as merges: a token's score is the place of the merge that makes it."""
    place: dict[str, int] = {}
    for i, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        place.setdefault(left + right, i)
    scores = [0.0] * len(names)
    for token, name in enumerate(names):
        if name is None or kinds[token] != NORMAL:
            continue
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            kinds[token] = BYTE
        elif name == model.get("unk_token"):
            kinds[token] = UNKNOWN
        else:
            scores[token] = -float(place.get(name, len(place)))
    return _spm_values(names, kinds, scores)


def _spm_values(names: list[str | None], kinds: list[int], scores: list[float]) -> dict[str, Value]:
    tokens, kinds = _padded(names, kinds)
    scores = [-10000.0 if kind == UNUSED else score for kind, score in zip(kinds, scores, strict=True)]
    return {
        "tokenizer.ggml.model": encode("llama"),
        "tokenizer.ggml.pre": encode("default"),
        "tokenizer.ggml.tokens": encode(tokens),
        "tokenizer.ggml.scores": encode(scores, FLOAT32),
        "tokenizer.ggml.token_type": encode(kinds, INT32),
    }


def _sentencepiece(path: Path, tokenizer: dict[str, Any], settings: dict[str, Any], n_vocab: int) -> dict[str, Value]:
    """tokenizer.model: a protobuf whose field 1 is repeated, a piece each (1 text, 2 score, 3 kind)."""
    names: list[str | None] = [None] * n_vocab
    kinds, scores = [NORMAL] * n_vocab, [0.0] * n_vocab
    raw = path.read_bytes()
    pieces = [value for field, value in _fields(raw) if field == 1 and isinstance(value, bytes)]
    if not pieces:
        raise FormatError(f"`{path}` holds no tokens")
    for token, piece in enumerate(pieces):
        parts = dict(_fields(piece))
        text = parts.get(1, b"")
        _put(names, token, text.decode("utf-8", "replace") if isinstance(text, bytes) else None)
        score, kind = parts.get(2, b"\0\0\0\0"), parts.get(3, NORMAL)
        scores[token] = struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0
        kinds[token] = kind if isinstance(kind, int) and NORMAL <= kind <= BYTE else NORMAL
    decoder = settings.get("added_tokens_decoder") or {}
    added = {int(token): entry for token, entry in decoder.items()}
    added |= {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    for token, entry in added.items():
        if kinds[token] == UNKNOWN or (token < len(pieces) and kinds[token] == CONTROL):
            continue
        _put(names, token, entry["content"])
        kinds[token] = CONTROL if entry.get("special") or _looks_special(entry["content"]) else USER_DEFINED
        scores[token] = -1000.0
    return _spm_values(names, kinds, scores)


def _fields(raw: bytes) -> list[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message; varints as int, the rest as bytes."""
    out: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
            out.append((tag >> 3, value))
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            if wire != 2:
                raise ValueError(f"a field of the wire type {wire}")
            size, at = _varint(raw, at)
        if at + size > len(raw):
            raise ValueError("it ends in the middle")
        out.append((tag >> 3, raw[at : at + size]))
        at += size
    return out


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = raw[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
