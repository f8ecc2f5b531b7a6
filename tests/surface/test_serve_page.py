"""The page in a real headless Chromium: it talks, it shows, it changes the budget, by day and by night.

EDGEMOE_SCREENSHOTS=docs ./dev test -m slow -k page     # makes the screenshots of the documentation anew
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import tinymoe
import webdriver
from console import needs_library
from serving import Served
from webdriver import Browser

pytestmark = [pytest.mark.slow, needs_library]

ASK = """
document.getElementById('question').value = arguments[0];
document.getElementById('form').requestSubmit();
"""
DONE = "return !document.getElementById('send').disabled && document.querySelectorAll('.cost').length == %d"
SAID = "return JSON.parse(localStorage.getItem('edgemoe-chats'))[0].messages.map((m) => m.content)"
TURNS = "return document.querySelectorAll('.turn').length"
WRITTEN = "return document.querySelector('.turn.assistant')?.textContent.length > 3"
# Contrast of text with what it stands on, as WCAG computes it, for every element that has text of its own.
CONTRAST = """
const linear = (x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map((x) => linear(x / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$|^transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.disabled &&
    getComputedStyle(e).opacity == 1 && [...e.childNodes].some((n) => n.nodeType == 3 && n.textContent.trim()))
  .map((e) => { const s = getComputedStyle(e), a = light(s.color), b = light(ground(e));
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName, e.textContent.slice(0, 30)]; })
  .filter(([ratio]) => ratio < 4.5);
"""
COLOURS = """
const c = document.getElementById('map'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
return new Set(Array.from({length: d.length / 4}, (_, i) => d.slice(4 * i, 4 * i + 3).join())).size;
"""
UNNAMED = """
return [...document.querySelectorAll('input, select, textarea, button, [role=img]')].filter((e) =>
  !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if webdriver.missing():
        pytest.skip(webdriver.missing())
    with webdriver.browser(tmp_path_factory.mktemp("profile")) as found:
        found.resize(1280, 900)
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    paths = [tinymoe.write(folder / f"{name}.gguf", "qwen3moe", seed=i) for i, name in enumerate(("alpha", "beta"))]
    with serving.serve(folder, *paths, "--threads", 1, "--ctx", 1024, "--memory", "300MiB") as found:
        yield found


def begin(page: Browser, server: Served) -> None:
    """The page with a new conversation."""
    page.open(server.url)
    page.until("return document.getElementById('model').options.length > 0")
    page.run("document.getElementById('clear').click()")


def click(page: Browser, label: str) -> None:
    """The last button of this name."""
    page.run(
        "[...document.querySelectorAll('.actions button')].filter((b) => b.textContent == arguments[0]).at(-1).click()",
        label,
    )


def test_the_page_talks_and_shows_what_happens(page: Browser, server: Served) -> None:
    page.open(server.url)
    page.until("return document.getElementById('model').options.length == 2")
    assert page.run("return document.getElementById('model').value") == "alpha"
    page.run("document.getElementById('max-tokens').value = 40")
    page.run(ASK, "hello there")
    page.until(DONE % 1)
    found = server.ask(
        "/v1/chat/completions",
        {
            "model": "alpha",
            "messages": [{"role": "user", "content": "hello there"}],
            "max_tokens": 40,
        },
    )
    assert page.run(SAID) == ["hello there", found[1]["choices"][0]["message"]["content"]]
    assert "tok/s" in page.run("return document.querySelector('.cost').textContent")
    # The live view has seen it.
    page.until("return /^Experts by layer: [1-9]/.test(document.getElementById('map').getAttribute('aria-label'))")
    page.until("return Number(document.getElementById('speed').textContent) > 0")
    assert page.run(COLOURS) >= 3  # resident, not resident, just used
    assert (
        "budget 300 mib" in page.run("return document.getElementById('memory-bar').getAttribute('aria-label')").lower()
    )
    # The other model takes its place.
    page.run("document.getElementById('model').value = 'beta'")
    page.run(ASK, "hello again")
    page.until(DONE % 2)
    assert server.live()["model"] == "beta"
    assert page.log() == []


def test_an_answer_can_be_stopped(page: Browser, server: Served) -> None:
    for stop in (
        "document.getElementById('stop').click()",
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))",
    ):
        begin(page, server)
        page.run("document.getElementById('max-tokens').value = ''")
        page.run(ASK, "a long one")
        page.until(WRITTEN)
        page.run(stop)
        page.until("return !document.getElementById('send').disabled")
        server.until_idle()
        assert "stopped" in page.run("return document.querySelector('.cost').textContent")
        page.run("document.getElementById('clear').click()")
        assert page.run(TURNS) == 0


def test_an_answer_that_goes_on_does_not_reach_the_next_conversation(page: Browser, server: Served) -> None:
    begin(page, server)
    page.run("document.getElementById('max-tokens').value = ''")
    page.run(ASK, "a long one")
    page.until(WRITTEN)
    page.run("document.getElementById('clear').click()")
    page.until("return !document.getElementById('send').disabled")
    assert page.run(TURNS) == 0
    server.until_idle()


def test_conversations_survive_a_reload(page: Browser, server: Served) -> None:
    begin(page, server)
    page.run("const n = document.getElementById('max-tokens'); n.value = 12; n.dispatchEvent(new Event('change'))")
    for n, question in enumerate(("one", "two")):
        page.run(ASK, question)
        page.until(DONE % (n + 1))
    said = page.run(SAID)
    page.open(server.url)
    assert page.run(SAID) == said and page.run(TURNS) == 4
    assert page.run("return document.getElementById('max-tokens').value") == "12"
    page.run("document.getElementById('clear').click()")
    page.run(ASK, "another")
    page.until(DONE % 1)
    names = "return [...document.getElementById('chats').options].map((o) => o.text)"
    assert page.run(names)[:2] == ["another", "one"]
    choose = "const s = document.getElementById('chats'); s.selectedIndex = 1; s.dispatchEvent(new Event('change'))"
    page.run(choose)
    assert page.run(TURNS) == 4
    assert json.loads(page.run("return exported('be brief')")) == [
        {"role": "system", "content": "be brief"},
        *({"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, said, strict=True)),
    ]
    page.run("document.getElementById('delete').click()")
    assert "one" not in page.run(names)


def test_a_question_is_edited_and_an_answer_made_again(page: Browser, server: Served) -> None:
    begin(page, server)
    page.run("document.getElementById('max-tokens').value = 30")
    page.run(ASK, "one")
    page.until(DONE % 1)
    first = page.run(SAID)
    click(page, "Regenerate")
    page.until(DONE % 1)
    page.until("return !document.querySelector('.writing')")
    again = page.run(SAID)
    assert again[0] == "one" and again[1] != first[1] and len(again) == 2
    click(page, "Edit")
    assert page.run("return document.getElementById('question').value") == "one" and page.run(TURNS) == 0
    page.run(ASK, "another")
    page.until(DONE % 1)
    assert page.run(SAID)[0] == "another"


MARKDOWN = """
Some *text* and `code`:

```python
print("<b>")
```

| a | b |
|---|---|
| 1 | 2 |

[a link](https://example.org) [worse](javascript:alert(1))
<script>window.harmed = 1</script><img src=x onerror="window.harmed = 1">
<div style="position:fixed" onclick="x()">y</div>
<form action="/api/budget"><input name="memory"></form>
"""


def test_an_answer_is_markdown_that_can_do_nothing(page: Browser, server: Served) -> None:
    begin(page, server)
    page.run(
        "const b = document.createElement('div'); b.id = 'probe'; document.body.append(b); render(b, arguments[0])",
        MARKDOWN,
    )

    def found(selector: str) -> int:
        return int(page.run("return document.querySelectorAll('#probe ' + arguments[0]).length", selector))

    assert page.run("return document.querySelector('#probe pre code').textContent") == 'print("<b>")\n'
    assert found("em") == found("table") == found(".code > button") == 1
    assert found("a[href^='https']") == 1 and found("a[rel~=noopener]") == 1
    dangerous = ("script", "img", "form", "input", "[onclick]", "[onerror]", "[style]", "a[href^=javascript]")
    assert {name: found(name) for name in dangerous} == dict.fromkeys(dangerous, 0)
    assert page.run("return window.harmed ?? 0") == 0
    page.run("document.querySelector('#probe .code button').click()")
    page.until("return document.querySelector('#probe .code button').textContent != 'Copy'")
    page.run("document.getElementById('probe').remove()")


def test_the_slider_changes_the_budget_while_it_talks(page: Browser, server: Served) -> None:
    page.open(server.url)
    page.until("return !document.getElementById('budget').disabled")
    begin(page, server)
    page.until("return !document.getElementById('budget').disabled")
    page.run("document.getElementById('max-tokens').value = ''")
    page.run(ASK, "a long one")
    page.until(WRITTEN)
    least = int(page.run("return document.getElementById('budget').min"))
    page.run(
        "const b = document.getElementById('budget'); b.value = b.min;"
        "b.dispatchEvent(new Event('input')); b.dispatchEvent(new Event('change'));"
    )
    page.until("return /the answers stay the same/.test(document.getElementById('budget-hint').textContent)")
    assert abs(server.live()["memory"]["budget"] - least) <= 2 << 20
    page.run("document.getElementById('stop').click()")
    server.until_idle()
    assert server.ask("/api/budget", {"memory": "300MiB"})[0] == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(page: Browser, server: Served, scheme: str) -> None:
    page.scheme(scheme)
    page.open(server.url)
    page.until("return document.getElementById('parts').children.length > 0")
    page.run("document.querySelector('form details').open = true")
    assert page.run(CONTRAST) == []
    assert page.run(UNNAMED) == []
    assert page.run("return document.documentElement.lang") == "en"
    page.resize(400, 900)
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")  # no sideways scrolling on a phone
    page.resize(1280, 900)


def test_the_page_asks_for_the_key(page: Browser, tmp_path: Path) -> None:
    path = tinymoe.write(tmp_path / "tiny.gguf", "qwen3moe")
    with serving.serve(tmp_path, path, "--threads", 1, "--memory", "300MiB", "--api-key", "sesame") as server:
        page.open(server.url)
        page.until("return document.getElementById('key-dialog').open")
        page.run(
            "document.getElementById('key').value = 'sesame'; document.querySelector('#key-dialog button').click()"
        )
        page.until("return document.getElementById('model').options.length == 1")


def test_screenshots(page: Browser, smolmoe: Path, tmp_path: Path) -> None:
    """Light and dark, in the middle of an answer; kept where $EDGEMOE_SCREENSHOTS says."""
    folder = Path(os.environ.get("EDGEMOE_SCREENSHOTS", tmp_path))
    options = ("--memory", "222MiB", "--ctx", 1024, "--threads", 1)
    with serving.serve(tmp_path, f"smolmoe={smolmoe}", *options) as server:
        page.scheme("light")
        page.open(server.url)
        page.until("return document.getElementById('model').options.length")
        page.run("document.getElementById('temperature').value = 0")
        page.run("document.getElementById('max-tokens').value = 60")
        page.run(ASK, "What is the capital of France?")
        page.until(DONE % 1)
        page.run("document.getElementById('max-tokens').value = 300")
        page.run(ASK, "Write a story about a robot who learns to paint.")
        page.until("return [...document.querySelectorAll('.turn.assistant')].at(-1).textContent.length > 150")
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            time.sleep(0.8)  # the next snapshot draws in the new colours
            page.screenshot(folder / f"page-{scheme}.png")
            assert 10_000 < (folder / f"page-{scheme}.png").stat().st_size < 300_000
        page.run("document.getElementById('stop').click()")
        page.scheme("light")
