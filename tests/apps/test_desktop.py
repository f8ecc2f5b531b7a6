"""apps/desktop: the window under a virtual screen: it answers what Python answers, stops, and follows the slider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgemoe

from .conftest import APPS, need

QUESTION = "what is in the interior?"

# Drives the window through its own widgets; prints what it showed as JSON. argv: model, screenshot.
DRIVER = """
import json, subprocess, sys, time, tkinter as tk
import edgemoe_desktop as desktop

window = desktop.Window(tk.Tk(), threads=1)
shown = {}

def wait(done):
    while not done():  # a hang is ended by who started this
        window.root.update()
        time.sleep(0.005)

def ask(question):
    window.entry.insert(0, question)
    window.entry.event_generate("<Return>")
    window.send() if not window.busy else None

def talk():
    return window.talk.get("1.0", "end-1c")

window.open("/nowhere/absent.gguf", "auto")
wait(lambda: not window.busy)
shown["refused"] = talk()

window.open(sys.argv[1], "2GiB")
wait(lambda: not window.busy)
shown["name"] = window.name.cget("text")

window.entry.insert(0, sys.argv[2])
window.button.invoke()
assert window.busy and window.button.cget("text") == "Stop"
wait(lambda: not window.busy or len(talk()) > 400)
shown["first"] = talk()

# Stop, then the slider in the middle of an answer.
if window.busy:
    window.button.invoke()
wait(lambda: not window.busy)
window.anew.invoke()
wait(lambda: window.worker._jobs.empty())
assert talk() == ""
window.entry.insert(0, sys.argv[2])
window.button.invoke()
wait(lambda: len(talk()) > 60)
low = int(window.slider.cget("from"))
window.slider.set(low + (64 << 20))
wait(lambda: window.worker.engine.plan.budget_bytes == low + (64 << 20))
wait(lambda: not window.busy or len(talk()) > 400)
shown["again"] = talk()
wait(lambda: "tok/s" in window.stats.cget("text"))
shown["stats"] = window.stats.cget("text")
if window.busy:
    window.button.invoke()
wait(lambda: not window.busy)
shown["end"] = talk()
window.close()
print(json.dumps(shown))
"""


@pytest.fixture
def screen() -> str:
    """What runs a command with a screen of its own."""
    pytest.importorskip("tkinter", reason="this Python has no tkinter")
    need("Xvfb")
    return need("xvfb-run")


def test_the_window_talks_stops_and_follows_the_slider(
    screen: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    with edgemoe.load(tiny, memory="2GiB", threads=1) as engine:
        answer = ""
        for piece in engine.chat([{"role": "user", "content": QUESTION}]):
            answer += piece
            if len(answer) > 400:
                break
    path = os.pathsep.join([str(APPS / "desktop"), str(APPS.parent)])
    done = subprocess.run(
        [screen, "-a", sys.executable, "-c", DRIVER, str(tiny), QUESTION],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert "absent.gguf` does not exist" in shown["refused"]
    assert shown["name"] == "tiny qwen3moe"
    assert shown["first"].startswith(f"{QUESTION}\n{answer[:350]}")
    # The budget moved in the middle and the answer did not. (Its prompt was known: rounded otherwise than the first.)
    assert shown["again"].startswith(f"{QUESTION}\n") and len(shown["again"]) > 400
    assert "of experts found" in shown["stats"]
    assert "stopped" in shown["end"]
