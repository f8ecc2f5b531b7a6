"""Turn chat messages into a prompt, with the model's own Jinja template as Hugging Face renders it.

jinja2 is imported at the first rendering.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import FormatError, UsageError
from ...units import MIB

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}; further keys reach the template."""

_JINJA_BYTES = 12 * MIB  # importing jinja2: 8 MiB, or 12 where nothing of it is compiled yet
_COMPILED_BYTES = 300  # for a byte of template: 80 to 290 for those of 60 models

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_END = "<|im_end|>"
"""Ends an answer under CHATML, also where the vocabulary has no such token."""


def first_rendering_bytes(template: str | None) -> int:
    """Resident memory that the first rendering in this process will take, at most; 0 after it."""
    if "jinja2" in sys.modules:
        return 0
    return _JINJA_BYTES + _COMPILED_BYTES * len(template or CHATML)


def render(
    template: str | None,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt text for messages. template: Jinja source, or None for CHATML. bos, eos: texts of these tokens.

    tools: function descriptions for templates that show them; others leave them out.

    Raises UsageError for malformed messages and for those that the template refuses; FormatError for a broken template.
    """
    _check(messages)
    import jinja2

    try:
        return _compiled(template if template is not None else CHATML)(
            messages=[dict(message) for message in messages],
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
            tools=[dict(tool) for tool in tools] if tools else None,
            documents=None,
        )
    except _Refused as refusal:
        raise UsageError(
            f"the model's chat template refuses these messages: {refusal}", hint="try without a system prompt"
        ) from None
    except jinja2.TemplateError as error:
        raise FormatError(
            f"the model's chat template is broken: {error}", hint="give the prompt as plain text with `edgemoe run`"
        ) from None
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        # A template is a program of its own: what it does wrong shows as any of these.
        raise FormatError(f"the model's chat template failed: {error or type(error).__name__}") from None


class _Refused(Exception):
    """The template called raise_exception."""


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise UsageError("there are no messages to answer")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UsageError(
                f"`{message!r:.80}` is not a message", hint='messages look like {"role": "user", "content": "..."}'
            )


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Callable[..., str]:
    import json
    from datetime import datetime

    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is nothing."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> str:
        raise _Refused(message)

    # Like json.dumps with ensure_ascii off; jinja2's own filter escapes HTML.
    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render
