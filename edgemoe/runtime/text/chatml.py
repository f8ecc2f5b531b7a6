"""ChatML without a template's process: templates whose whole source is known, and what these render. Pure.

Only sources of which every character is understood count: what is rendered here is what jinja2 renders, and all others
run in `template_child.py`. tests/unit/test_chatml.py compares the two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

END = "<|im_end|>"
"""Ends an answer under ChatML, also where the vocabulary has no such token."""


@dataclass(frozen=True)
class ChatML:
    """What one such template does. system: what it says where a conversation begins without a system text."""

    system: str = ""
    joins: bool = False  # with `+`, which takes texts only

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """The prompt. Raises TypeError, in jinja2's words, for what the template cannot join."""
        turns = []
        if self.system and messages and messages[0]["role"] != "system":
            turns.append(self.system)
        for message in messages:
            content = "" + message["content"] if self.joins else str(message["content"])
            turns.append(f"<|im_start|>{message['role']}\n{content}{END}\n")
        return "".join(turns) + ("<|im_start|>assistant\n" if add_generation_prompt else "")


@functools.lru_cache(8)
def chatml_of(template: str) -> ChatML | None:
    """None for a template that is not known to be ChatML and nothing else."""
    found = _KNOWN.fullmatch(template)
    if found is None:
        return None
    system = found["system"]
    return ChatML((system or "").replace(r"\n", "\n"), joins=found["joined"] is not None)


def _tag(*words: str) -> str:
    """A statement; jinja2 takes the line's end behind it as a part of it."""
    return r"\{%\s*" + r"\s+".join(words) + r"\s*%\}\n?"


def _text(text: str) -> str:
    return rf"'{text}'"


def _known() -> re.Pattern[str]:
    start, end, line = re.escape("<|im_start|>"), re.escape(END), r"(?:\\n|\n)"
    role, content = (rf"(?:(?P=m)\['{key}'\]|(?P=m)\.{key})" for key in ("role", "content"))
    plus = r"\s*\+\s*"
    joined = plus.join(
        (_text(start), role, _text(line), content, rf"(?:{_text(end + line)}|{_text(end)}{plus}{_text(line)})")
    )
    told = rf"{start}system{line}(?:[^'\\\r{{}}]|\\n)*{end}{line}"
    default = (
        _tag("if", r"loop\.first", "and", r"messages\[0\]\['role'\]", "!=", "'system'")
        + rf"\{{\{{\s*'(?P<system>{told})'\s*\}}\}}"
        + _tag("endif")
    )
    shown = rf"{start}\{{\{{\s*{role}\s*\}}\}}\n\{{\{{\s*{content}\s*\}}\}}{end}\n"
    turn = rf"(?:{shown}|(?P<joined>(?:{default})?\{{\{{\s*{joined}\s*\}}\}}))"
    begun = rf"(?:{start}assistant\n|\{{\{{\s*{_text(f'{start}assistant{line}')}\s*\}}\}})"
    return re.compile(
        _tag("for", r"(?P<m>message|msg|m)", "in", "messages") + turn + _tag("endfor")
        + _tag("if", "add_generation_prompt") + begun + _tag("endif")
    )  # fmt: skip


_KNOWN = _known()
