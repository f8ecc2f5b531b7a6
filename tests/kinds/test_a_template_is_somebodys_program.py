"""A chat template that loops, grows, crashes or reaches out ends with one line, and the next one runs."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from edgemoe.errors import FormatError, UsageError
from edgemoe.runtime.text import template as templates
from edgemoe.runtime.text.prompt import render

HELLO = [{"role": "user", "content": "hello"}]
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = CHANGE %}{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format('') }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ range(99999) | map('string') | map('center', 99999) | join }}",
        DOUBLED.replace("CHANGE", "ns.x ~ ns.x"),
        DOUBLED.replace("CHANGE", "ns.x + ns.x"),
        DOUBLED.replace("CHANGE", "ns.x | replace('a', 'aaaa')"),
        DOUBLED.replace("CHANGE", "[ns.x, ns.x, ns.x]"),
        "{% set l = [0] %}{% for i in range(64) %}{% set _ = l.extend(l) %}{% endfor %}{{ l | length }}",
        "{% for i in range(99999) %}{{ messages[0].content * 99 }}{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for %}",
    ],
)
def test_what_grows_without_end_is_stopped_in_words(template: str) -> None:
    before = templates.resident_bytes()
    with pytest.raises(FormatError, match="chat template"):
        render(template, HELLO)
    assert render("{{ messages[0].content }}", HELLO) == "hello"
    assert templates.resident_bytes() < before + 40 * 1024**2


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    ],
)
def test_what_never_ends_is_stopped_by_its_processor_time(template: str) -> None:
    begin = time.process_time()
    with pytest.raises(FormatError, match="stopped"):
        render(template, HELLO)
    assert time.process_time() - begin < 1, "this process waits, and computes nothing"
    assert render("{{ messages[0].content }}", HELLO) == "hello"


def test_templates_may_change_what_they_made() -> None:
    template = "{% set l = [] %}{% for m in messages %}{% set _ = l.append(m.content) %}{% endfor %}{{ l | join('-') }}"
    messages = [*HELLO, {"role": "assistant", "content": "b"}]
    assert render(template, messages) == "hello-b"
    changing = "{% set _ = messages.pop() %}{% set _ = messages[0].update(content='x') %}{{ messages | length }}"
    assert render(changing, messages) == "1" and messages[0] == {"role": "user", "content": "hello"}


def test_nothing_outside_is_in_reach() -> None:
    for attack in (
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self._TemplateReference__context.environment }}",
    ):
        try:
            assert render(attack, HELLO) in ("", "hello")
        except (FormatError, UsageError):
            continue


def test_a_killed_process_is_an_error_once_and_started_again() -> None:
    assert render("{{ messages[0].content }}", HELLO) == "hello"
    child = templates._process._child
    assert child is not None
    child.kill()
    child.wait()
    assert templates.first_rendering_bytes("x") > 0
    assert render("{{ messages[0].content }}", HELLO) == "hello"


@pytest.mark.parametrize(
    ("limited", "script", "why"),
    [
        (False, "kept = []\nwhile True: kept.append(bytes(1 << 20)); time.sleep(0.002)", "it ran out of memory"),
        (False, "time.sleep(60)", "no answer in 0.5 s"),
        (True, "time.sleep(60)", "no answer in 0.5 s"),
    ],
)
def test_a_process_that_the_system_does_not_bound_is_watched(
    limited: bool, script: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_LIMITED", limited)
    monkeypatch.setattr(templates, "_PATIENCE_S", 30 if "kept" in script else 0.5)
    with subprocess.Popen([sys.executable, "-c", f"import time\n{script}"]) as child:
        with templates._Watch(child, 1 << 20) as watch:
            assert child.wait(60) != 0
        assert watch.why == why


def test_a_process_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    templates._process.stop()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(Exception, match=r"cannot be started: No such file") as caught:
        render("{{ messages[0].content }}", HELLO)
    assert getattr(caught.value, "hint", "")
    assert render(None, HELLO).startswith("<|im_start|>user")


def test_a_long_conversation_is_rendered() -> None:
    text = "é < 😀 " * 100_000
    assert (
        render("{% for m in messages %}[{{ m.content }}]{% endfor %}", [{"role": "user", "content": text}])
        == f"[{text}]"
    )
