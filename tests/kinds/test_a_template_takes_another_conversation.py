"""Templates without a system role, with parts only, roles in turn or short ids get the same words in their form."""

from __future__ import annotations

from typing import Any

import pytest

from edgemoe.errors import UsageError
from edgemoe.runtime.text.prompt import render

IN_TURN = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
EITHER = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}{% endfor %}"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


@pytest.mark.parametrize("template", [IN_TURN, NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_text_goes_before_the_first_question(template: str) -> None:
    assert render(template, TURNS) == "[user]Be brief.\n\nhello"


def test_a_system_text_in_the_middle_is_not_lost() -> None:
    messages = [*TURNS, {"role": "assistant", "content": "hi"}, {"role": "system", "content": "Longer."}, TURNS[1]]
    assert render(FIRST_SYSTEM, messages) == "<Be brief.>[user]hello[assistant]hi[user]Longer.\n\nhello"
    last = [*TURNS, {"role": "assistant", "content": "hi"}, {"role": "system", "content": "Longer."}]
    assert "Longer." in render(FIRST_SYSTEM, last)


def test_neighbours_of_one_role_become_one_message_where_roles_take_turns() -> None:
    messages = [{"role": "user", "content": text} for text in ("a", "b", "c")]
    assert render(IN_TURN, messages) == "[user]a\n\nb\n\nc"
    assert render(NO_SYSTEM, messages) == "[user]a[user]b[user]c"


def test_what_a_template_refuses_for_good_is_told_in_its_words() -> None:
    with pytest.raises(UsageError, match="never"):
        render("{{ raise_exception('never') }}", TURNS)


def test_text_is_given_in_parts_where_only_parts_are_shown() -> None:
    assert render(PARTS, TURNS) == "[system]Be brief.[user]hello"
    assert render(EITHER, TURNS) == "Be brief.hello"


def call(name: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "add", "arguments": {"n": name}}}


CALLED: list[dict[str, Any]] = [
    TURNS[1],
    {"role": "assistant", "content": "", "tool_calls": [call("first"), call("second")]},
    {"role": "tool", "content": "one", "tool_call_id": "first"},
    {"role": "tool", "content": "two", "tool_call_id": "second"},
]
SHOWN = (
    "{% for m in messages %}[{{ m.role }}]{% for c in m.tool_calls or [] %}CHECK{{ c.function.arguments | tojson }}"
    "{% endfor %}{{ m.content }}{% endfor %}"
)


def test_ids_are_shortened_where_a_template_insists_on_it() -> None:
    short = SHOWN.replace("CHECK", "{% if c.id | length != 9 %}{{ raise_exception('ids have 9') }}{% endif %}")
    assert render(short, CALLED) == '[user]hello[assistant]{"n": "first"}{"n": "second"}[tool]one[tool]two'


@pytest.mark.parametrize(
    "template",
    [
        SHOWN.replace("CHECK", "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"),
        "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}"
        "{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_calls_come_one_by_one_where_a_template_shows_one(template: str) -> None:
    assert (
        render(template, CALLED) == '[user]hello[assistant]{"n": "first"}[tool]one[assistant]{"n": "second"}[tool]two'
    )


def test_arguments_are_text_where_a_template_wants_text() -> None:
    text = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '<' + c.function.arguments + '>' }}{% endfor %}"
    assert render(text + "{{ m.content }}{% endfor %}", CALLED[:2]) == 'hello<{"n": "first"}><{"n": "second"}>'


def test_templates_that_walk_over_tools_get_an_empty_list() -> None:
    walking = "{% for t in tools %}{{ t }}{% endfor %}{{ messages[-1].content }}"
    assert render(walking, TURNS[1:]) == "hello"


def test_variables_reach_the_template_and_take_no_name_that_is_set() -> None:
    assert render("{{ enable_thinking is defined }}", TURNS) == "False"
    assert render("{{ enable_thinking }}", TURNS, variables={"enable_thinking": False}) == "False"
    with pytest.raises(UsageError, match="`messages`"):
        render("", TURNS, variables={"messages": []})
