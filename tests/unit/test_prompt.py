from __future__ import annotations

import datetime
import subprocess
import sys

import pytest

from edgemoe.errors import FormatError, UsageError
from edgemoe.runtime.text.prompt import first_rendering_bytes, render

HELLO = [{"role": "user", "content": "hello"}]
ROUND = [*HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "bye"}]


def test_without_a_template_chatml_is_used() -> None:
    assert render(None, HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert render(None, HELLO, add_generation_prompt=False) == "<|im_start|>user\nhello<|im_end|>\n"


@pytest.mark.skipif(sys.platform != "linux", reason="what a Python with jinja2 takes was measured on Linux alone")
def test_the_memory_of_the_first_rendering_is_known_and_is_nothing_afterwards() -> None:
    program = (
        "import sys\n"
        "from edgemoe.devices.memory import process_memory\n"
        "from edgemoe.runtime.text.prompt import first_rendering_bytes, render\n"
        "from edgemoe.runtime.text.template import resident_bytes\n"
        "expected, before = first_rendering_bytes(sys.argv[1]), process_memory().rss\n"
        "render(sys.argv[1], [{'role': 'user', 'content': 'hello'}])\n"
        "assert first_rendering_bytes(sys.argv[1]) == 0 and 'jinja2' not in sys.modules\n"
        "print(expected, process_memory().rss - before, resident_bytes())\n"
    )
    branches = "".join(
        f"{{% if messages[0].role == 'role {i}' %}}{{{{ messages[0].content | trim }}}}{{% endif %}}"
        for i in range(200)
    )
    for template in ("{{ messages[0].content }}", branches):
        done = subprocess.run([sys.executable, "-c", program, template], capture_output=True, text=True, check=True)
        expected, here, there = map(int, done.stdout.split())
        assert here + there <= expected and expected / 2 < there, len(template)


def test_chatml_runs_no_template() -> None:
    assert first_rendering_bytes(None) == 0


def test_bos_eos_and_the_generation_prompt_reach_the_template() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert (
        render(template, ROUND, bos="<s>", eos="</s>") == "<s>[user]hello</s>[assistant]hi</s>[user]bye</s>[assistant]"
    )


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    template = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}"
    assert render(template, HELLO) == "hello\n"


def test_templates_find_what_hugging_face_gives_them() -> None:
    assert render("{{ messages | tojson }}", [{"role": "user", "content": "é <b>"}]) == (
        '[{"role": "user", "content": "é <b>"}]'
    )
    assert render("{{ strftime_now('%Y') }}", HELLO) == str(datetime.date.today().year)
    assert (
        render("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}", ROUND)
        == "hello"
    )
    assert render("{% generation %}a{{ messages[0].content }}{% endgeneration %}", HELLO) == "ahello"
    assert render("{{ tools is none }}", HELLO) == "True"


def test_keys_beside_role_and_content_reach_the_template() -> None:
    assert render("{{ messages[0].name }}", [{"role": "user", "content": "", "name": "Ada"}]) == "Ada"


def test_messages_that_the_template_refuses_are_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="System role not supported"):
        render("{{ raise_exception('System role not supported') }}", HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[0].content.nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ 1 + 'a' }}",
        "{{ messages | nofilter }}",
    ],
)
def test_a_broken_template_is_one_clear_error(template: str) -> None:
    with pytest.raises(FormatError, match="chat template"):
        render(template, HELLO)


def test_a_template_cannot_reach_the_system() -> None:
    for attack in ("{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}"):
        with pytest.raises(FormatError):
            render(attack, HELLO)


@pytest.mark.parametrize(
    "messages", [[], ["hello"], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}]]
)
def test_what_is_no_message_is_refused(messages: list[object]) -> None:
    with pytest.raises(UsageError):
        render(None, messages)  # type: ignore[arg-type]
