"""Turn chat messages into a prompt, with the model's own Jinja template as Hugging Face renders it.

Templates run in a process of their own (`template.py`); ChatML, for models without one, needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError
from . import messages as conversations
from .chatml import END as CHATML_END
from .chatml import ChatML
from .template import Refused, first_rendering_bytes, rendering_bytes
from .thinking import Thinking

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}; further keys reach the template."""

RESERVED = frozenset(("messages", "tools", "documents", "bos_token", "eos_token", "add_generation_prompt"))
"""Names in a template that a caller's own may not take."""


@dataclass(frozen=True)
class ChatPrompt:
    """The tokens of a conversation, and how the answer to it is read."""

    tokens: list[int]
    thinking: Thinking


def render(
    template: str | None,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text for messages. template: Jinja source, or None for ChatML. bos, eos: texts of these tokens.

    tools: function descriptions for templates that show them; others leave them out. variables: further names that the
    template may ask for, like `enable_thinking`; others leave them out, too.

    Raises UsageError for malformed messages and for those that the template refuses; FormatError for a template that is
    broken or takes too much.
    """
    _check(messages)
    taken = sorted(RESERVED & (variables or {}).keys())
    if taken:
        raise UsageError(f"the variable `{taken[0]}` of a chat template is set already", hint="use another name")
    if template is None:
        return ChatML().render(messages, add_generation_prompt=add_generation_prompt)
    names = {
        **(variables or {}),
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": add_generation_prompt,
        "tools": [dict(tool) for tool in tools] if tools else None,
        "documents": None,
    }
    try:
        return conversations.fitted(template, messages, names)
    except Refused as refusal:
        raise UsageError(
            f"the model's chat template refuses these messages: {refusal}", hint="change what it names"
        ) from None


def text_bytes(messages: Sequence[Message]) -> int:
    """About how long the messages are."""
    return sum(
        len(str(message.get("content") or "")) + len(str(message.get("tool_calls") or "")) for message in messages
    )


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise UsageError("there are no messages to answer")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UsageError(
                f"`{message!r:.80}` is not a message", hint='messages look like {"role": "user", "content": "..."}'
            )


__all__ = [
    "CHATML_END",
    "RESERVED",
    "ChatPrompt",
    "Message",
    "first_rendering_bytes",
    "render",
    "rendering_bytes",
    "text_bytes",
]
