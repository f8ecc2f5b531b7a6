"""Tokenizer files of an export: a checkpoint's own, or a tokenizer.json made of what a GGUF says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import StorageError
from .. import gguf_header
from ..gguf_header import Value, decode, decode_strings
from ..hf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, cut_of
from ..source import Source

VOCABULARY = "vocabulary.gguf"
_COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "config.json",
)  # fmt: skip
_SPACE = "\u2581"


def write_tokenizer(source: Source, folder: Path) -> list[str]:
    """Write all files; sentences about what could not be written. Raises StorageError."""
    notes: list[str] = []
    try:
        (folder / VOCABULARY).write_bytes(gguf_header.build(source.values, [], gguf_header.ALIGNMENT))
        if source.is_gguf:
            _from_gguf(source.values, folder, notes)
        else:
            for name in _COPIED:
                if (source.path / name).is_file():
                    shutil.copyfile(source.path / name, folder / name)
        template = decode(source.values.get("tokenizer.chat_template"))
        if isinstance(template, str):
            (folder / "chat_template.jinja").write_text(template, "utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the tokenizer into `{folder}`: {error.strerror}") from None
    return notes


def special_tokens(values: Mapping[str, Value]) -> dict[str, int]:
    """Of bos, eos, unknown and padding those that there are."""
    found = {
        kind: decode(values.get(f"tokenizer.ggml.{kind}_token_id")) for kind in ("bos", "eos", "unknown", "padding")
    }
    return {kind: token for kind, token in found.items() if isinstance(token, int)}


def end_tokens(values: Mapping[str, Value]) -> list[int]:
    """Those that end an answer: as the metadata says, and those that are called so."""
    tokens = decode_strings(values.get("tokenizer.ggml.tokens"))
    found = {special_tokens(values).get("eos", -1), decode(values.get("tokenizer.ggml.eot_token_id"))}
    named = {"<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|end_of_text|>"}
    found |= {token for token, name in enumerate(tokens) if name in named}
    return sorted(token for token in found if isinstance(token, int) and 0 <= token < len(tokens))


def _from_gguf(values: Mapping[str, Value], folder: Path, notes: list[str]) -> None:
    tokens = decode_strings(values.get("tokenizer.ggml.tokens"))
    kinds = decode(values.get("tokenizer.ggml.token_type")) or [NORMAL] * len(tokens)
    model, cut = decode(values.get("tokenizer.ggml.model")), str(decode(values.get("tokenizer.ggml.pre")) or "default")
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == CONTROL}
        for i, (name, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    if model == "gpt2" and (pre := cut_of(cut)) is not None:
        made = _byte_level(tokens, decode_strings(values.get("tokenizer.ggml.merges")), pre)
    elif model == "llama":
        prefix = decode(values.get("tokenizer.ggml.add_space_prefix")) is not False
        made = _sentencepiece(tokens, kinds, decode(values.get("tokenizer.ggml.scores")) or [], prefix)
    else:
        notes.append(f"no tokenizer.json: the tokenizer `{model}` with the cut `{cut}` cannot be written as one")
        return
    special = special_tokens(values)
    post = None
    if decode(values.get("tokenizer.ggml.add_bos_token")) and "bos" in special:
        post = _begins_with(tokens[special["bos"]], special["bos"])
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **made}
    if post is not None:
        whole["post_processor"] = post
    _write_json(folder / "tokenizer.json", whole)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {names[kind]: tokens[token] for kind, token in special.items() if token < len(tokens)}
    template = decode(values.get("tokenizer.chat_template"))
    if isinstance(template, str):
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)


def _byte_level(tokens: Sequence[str], merges: Sequence[str], pre: Sequence[dict[str, Any]]) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*pre]},
        "post_processor": level,
        "decoder": level,
        "model": _bpe(tokens, [merge.split(" ", 1) for merge in merges]),
    }


def _bpe(tokens: Sequence[str], merges: Sequence[Sequence[str]], **changed: Any) -> dict[str, Any]:
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {name: i for i, name in enumerate(tokens)}, "merges": list(merges),
    }  # fmt: skip
    return model | changed


def _sentencepiece(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float], prefix: bool
) -> dict[str, Any]:
    """The pieces as merges: any two that make a third, the likelier third first."""
    place = {name: i for i, name in enumerate(tokens)}
    found = []
    for token, name in enumerate(tokens):
        if kinds[token] not in (NORMAL, USER_DEFINED) or len(name) < 2:
            continue
        for cut in range(1, len(name)):
            left, right = place.get(name[:cut]), place.get(name[cut:])
            if left is not None and right is not None:
                found.append((-scores[token], token, left, right))
    found.sort()
    unknown = next((tokens[i] for i, kind in enumerate(kinds) if kind == UNKNOWN), None)
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    start: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": ([{"type": "Prepend", "prepend": _SPACE}] if prefix else []) + spaces,
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *(start if prefix else []),
            ],
        },
        "model": _bpe(
            tokens, [(tokens[left], tokens[right]) for _, _, left, right in found], unk_token=unknown,
            fuse_unk=True, byte_fallback=any(kind == BYTE for kind in kinds),
        ),
    }  # fmt: skip


def _begins_with(name: str, token: int) -> dict[str, Any]:
    special, first = {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
