"""Each model is asked for calls in the form that its own template shows, and its calls are read in that form."""
# ruff: noqa: RUF001  (DeepSeek's own bars)

from __future__ import annotations

import json
from typing import Any

import pytest

from edgemoe.runtime.text import bounds
from edgemoe.runtime.text.messages import shown_calls
from edgemoe.serve.call_reader import CallBegun, CallPart, CallReader, Item
from edgemoe.serve.calls import Call, Known, calls_grammar
from edgemoe.serve.forms import CHANNELS, HERMES, form_of, told_by

_BEGIN = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}"
)
_END = "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def template(calls: str) -> str:
    return _BEGIN + calls + _END


def each(body: str, before: str = "", between: str = "", after: str = "") -> str:
    """A template whose calls are written so; NAME, GIVEN, and KEY with VALUE for each argument."""
    loop = body.replace("NAME", "{{ c.function.name }}").replace("GIVEN", "{{ c.function.arguments | tojson }}")
    comma = f"{{% if not loop.last %}}{{{{ {between!r} }}}}{{% endif %}}" if between else ""
    return template(f"{{{{ {before!r} }}}}{{% for c in m.tool_calls %}}{loop}{comma}{{% endfor %}}{{{{ {after!r} }}}}")


def tagged(head: str, pair: str, tail: str, before: str = "", after: str = "") -> str:
    value = "{% if v is string %}{{ v }}{% else %}{{ v | tojson }}{% endif %}"
    inner = pair.replace("KEY", "{{ k }}").replace("VALUE", value)
    return each(f"{head}{{% for k, v in c.function.arguments.items() %}}{inner}{{% endfor %}}{tail}", before, "", after)


FORMS: dict[str, str] = {
    "Hermes": each('{{ \'<tool_call>\n\' }}{"name": "NAME", "arguments": GIVEN}{{ \'\n</tool_call>\n\' }}'),
    "GLM": tagged("<tool_call>NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", "</tool_call>"),
    "GLM, no lines": tagged("<tool_call>NAME", "<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>", "</tool_call>"),
    "Qwen3-Coder": tagged(
        "{{ '\n<tool_call>\n' }}<function=NAME>{{ '\n' }}",
        "<parameter=KEY>{{ '\n' }}VALUE{{ '\n' }}</parameter>{{ '\n' }}",
        "</function>{{ '\n' }}</tool_call>",
    ),
    "MiniMax": tagged(
        "<invoke name=\"NAME\">{{ '\n' }}",
        "<parameter name=\"KEY\">VALUE</parameter>{{ '\n' }}",
        "</invoke>{{ '\n' }}",
        "<minimax:tool_call>\n",
        "</minimax:tool_call>",
    ),
    "Kimi": each(
        "<|tool_call_begin|>functions.NAME:{{ loop.index0 }}<|tool_call_argument_begin|>GIVEN<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
    ),
    "DeepSeek": each(
        "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>GIVEN<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
    "Mistral": each('{"name": "NAME", "arguments": GIVEN, "id": "{{ c.id }}"}', "[TOOL_CALLS][", ", ", "]"),
    "Mistral, later": each("[TOOL_CALLS]NAME[ARGS]GIVEN"),
    "Llama 3": each('{"name": "NAME", "parameters": GIVEN}'),
    "a list": each('{"name": "NAME", "arguments": GIVEN}', "<tool_calls>[", ", ", "]</tool_calls>"),
}
HARMONY = each(" to=functions.NAME<|channel|>commentary json<|message|>GIVEN<|call|>")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "sure": {"type": "boolean"},
    },
    "required": ["city"],
}
TOOLS = [Known("weather", SCHEMA), Known("ping", {"type": "object", "properties": {}})]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("weather", {"city": 'Sõo <b>"x"</b>\n&', "days": 3, "tags": ["a", "</b>"], "sure": True}),
    ("ping", {}),
    ("weather", {"city": "7"}),
]


@pytest.mark.parametrize("step", [1, 6, 10_000])
@pytest.mark.parametrize("name", list(FORMS))
def test_calls_are_read_as_the_template_writes_them(name: str, step: int) -> None:
    form = form_of(FORMS[name])
    assert form.native and told_by(FORMS[name])
    made = CALLS if form.between is not None else CALLS[:1]
    shown = shown_calls(FORMS[name], calls=json.dumps(made))
    text = "Well. " + shown[shown.index(form.trigger) : shown.rindex("<|end|>")]
    reader = CallReader(form, TOOLS)
    found: list[Item] = []
    for i in range(0, len(text), step):
        found += reader.feed(text[i : i + step])
    found += reader.finish()
    calls = [(item.name, json.loads(item.arguments)) for item in found if isinstance(item, Call)]
    assert calls == made
    assert "".join(item for item in found if isinstance(item, str)).strip() == "Well."
    parts = [item.text for item in found if isinstance(item, CallPart)]
    assert "".join(parts) == "".join(item.arguments for item in found if isinstance(item, Call))
    # Arguments that are JSON come while they are written; what is no JSON comes whole.
    assert (len(parts) > len(made)) == (step < 1000 and not form.tagged)


@pytest.mark.parametrize("name", list(FORMS))
def test_half_a_call_is_never_text(name: str) -> None:
    form = form_of(FORMS[name])
    shown = shown_calls(FORMS[name], calls=json.dumps(CALLS[:1]))
    text = shown[shown.index(form.trigger) : shown.rindex("<|end|>")]
    whole: list[Item] = [item for item in CallReader(form, TOOLS).feed(text) if isinstance(item, Call)]
    for cut in range(len(form.trigger), len(text)):
        reader = CallReader(form, TOOLS)
        told = [*reader.feed(text[:cut]), *reader.finish()]
        found = [item for item in told if not isinstance(item, CallBegun | CallPart)]
        assert found in ([], whole), text[:cut]


@pytest.mark.parametrize("name", list(FORMS))
def test_the_grammar_of_a_form_is_one(name: str) -> None:
    text, notes = calls_grammar(form_of(FORMS[name]), TOOLS, required=True, parallel=True)
    bounds.check(text)
    assert text.startswith("root ::= ") and not notes


def test_channels_are_known_by_their_marks() -> None:
    assert form_of(HARMONY) is CHANNELS and told_by(HARMONY)


@pytest.mark.parametrize(
    "source",
    [
        None,
        "{{ messages[0].content }}",
        template("{% for c in m.tool_calls %}<call>{{ c.function.name }}({{ c.function.arguments }}){% endfor %}"),
        template(
            "{% for c in m.tool_calls %}<|tool_call_start|>[{{ c.function.name }}()]<|tool_call_end|>{% endfor %}"
        ),
    ],
)
def test_what_shows_no_form_that_is_read_here_is_asked_in_words(source: str | None) -> None:
    assert form_of(source) is HERMES and not told_by(source)
