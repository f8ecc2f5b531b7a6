"""From messages to the tokens of a prompt: the model's template, then its tokenizer and its picture encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ... import _native
from ...errors import UsageError
from ..text.parts import lifted
from ..text.prompt import ChatPrompt, Message, first_rendering_bytes, render, rendering_bytes, text_bytes
from ..text.thinking import thinking_of
from .sequence import TokenSequence


class Tokenize(Protocol):
    def __call__(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


@dataclass(frozen=True)
class Asked:
    """What is to be answered. tools, variables: see `prompt.render`. begun: what the answer begins with already."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any] | None
    begun: str


def chat_prompt(
    asked: Asked,
    template: str | None,
    sequence: TokenSequence,
    tokenize: Tokenize,
    room: Callable[[int, str], AbstractContextManager[None]],
) -> ChatPrompt:
    """The prompt, and how its answer is read. room: makes the expert cache give way. Raises UsageError, FormatError."""
    bos, eos = (_text_of(sequence.text, token(sequence.text)) for token in (_native.text_bos, _native.text_eos))
    messages, pictures, mark = lifted(asked.messages)
    n_bytes = max(first_rendering_bytes(template), rendering_bytes(text_bytes(messages)))
    with room(n_bytes, "the chat template"):
        text = render(template, messages, bos=bos, eos=eos, tools=asked.tools, variables=asked.variables) + asked.begun
    texts = text.split(mark)
    if len(texts) != len(pictures) + 1:
        raise UsageError("the model's chat template shows no pictures, or shows one twice", hint="leave them out")
    # As llama.cpp does: a template that writes BOS itself gets no second one.
    tokens = tokenize(texts[0], add_special=not (bos and text.startswith(bos)), parse_special=True)
    for picture, behind in zip(sequence.tokens_of(pictures), texts[1:], strict=True):
        tokens += picture + tokenize(behind, add_special=False, parse_special=True)
    return ChatPrompt(tokens, thinking_of(template, text))


def _text_of(text: _native.TextHandle, token: int) -> str:
    return "" if token < 0 else _native.text_piece(text, token, special=True).decode("utf-8", "replace")
