"""Templates that are ChatML and nothing else need no process, and give what jinja2 gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import tinymoe

from edgemoe.errors import FormatError
from edgemoe.runtime.text import template as templates
from edgemoe.runtime.text.chatml import chatml_of
from edgemoe.runtime.text.prompt import render

JOINED = (
    "{% for message in messages %}SYSTEM{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT = (
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a kind café 😀<|im_end|>\\n' }}{% endif %}"
)
KNOWN = {
    "shown": tinymoe.CHAT_TEMPLATE,
    "joined": JOINED.replace("SYSTEM", ""),
    "a default system text": JOINED.replace("SYSTEM", DEFAULT),
    "line ends as they are": JOINED.replace("SYSTEM", DEFAULT).replace("\\n", "\n"),
    "names after points": JOINED.replace("SYSTEM", "").replace("['role']", ".role").replace("['content']", ".content"),
    "one end": JOINED.replace("SYSTEM", "").replace("'<|im_end|>' + '\\n'", "'<|im_end|>\\n'"),
    "tags on lines": JOINED.replace("SYSTEM", DEFAULT).replace("%}", "%}\n"),
    "another name": JOINED.replace("SYSTEM", "").replace("message ", "m ").replace("message[", "m["),
}  # fmt: skip
UNKNOWN = (
    "{{ messages }}",
    JOINED.replace("SYSTEM", " "),
    JOINED.replace("SYSTEM", "") + " ",
    JOINED.replace("SYSTEM", "{% if loop.first %}{{ 'x' }}{% endif %}"),
    JOINED.replace("SYSTEM", "").replace("assistant", "model"),
    JOINED.replace("SYSTEM", "").replace("message['content']", "message['content'] | trim"),
    JOINED.replace("SYSTEM", "").replace("{%", "{%-", 1),
    JOINED.replace("SYSTEM", "").replace("message['role']", "msg['role']"),
    JOINED.replace("SYSTEM", DEFAULT.replace("kind", "{{ kind }}")),
)

ASKED = {"role": "user", "content": "What is 'this' {{ thing }} <|im_end|>\r\n\\n é?\n"}
CONVERSATIONS = (
    [ASKED],
    [{"role": "system", "content": "Be brief."}, ASKED],
    [ASKED, {"role": "assistant", "content": ""}, ASKED],
    [ASKED, {"role": "system", "content": "late"}],
    [{"role": "tool", "content": "\x00\ud800"}, ASKED],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "é"}]}],
    [{"role": "user", "content": 1.5}],
)


def said(template: str, names: Mapping[str, Any]) -> str:
    try:
        return templates.run(template, names)
    except FormatError as error:
        return f"error: {error.message}"


@pytest.mark.parametrize("template", KNOWN.values(), ids=KNOWN)
def test_what_is_rendered_here_is_what_jinja2_renders(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chatml_of(template)
    for messages in CONVERSATIONS:
        for add in (True, False):
            names = {"messages": messages, "add_generation_prompt": add, "bos_token": "<s>", "tools": None}
            here = said(template, names)
            with monkeypatch.context() as patch:
                patch.setattr(templates, "chatml_of", lambda _: None)
                assert here == said(template, names)


@pytest.mark.parametrize("template", UNKNOWN)
def test_all_others_run_in_their_process(template: str) -> None:
    assert chatml_of(template) is None
    templates._process.stop()
    assert templates.first_rendering_bytes(template) > 0


def test_no_process_is_started_and_none_is_charged() -> None:
    templates._process.stop()
    for template in KNOWN.values():
        assert templates.first_rendering_bytes(template) == 0
        assert render(template, [ASKED]).endswith("<|im_start|>assistant\n")
    assert not templates._process.runs
