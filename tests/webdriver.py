"""A real headless Chromium, driven over the W3C WebDriver protocol: the twenty lines of it that these tests need."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# As root in a closed network: no sandbox, and none of Chromium's own requests to the outside.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def missing() -> str:
    """What is not installed, "" when everything is."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not found: apt install chromium chromium-driver" if absent else ""


class Browser:
    """A window."""

    def __init__(self, url: str, session: str) -> None:
        self._url = f"{url}/session/{session}"

    def open(self, url: str) -> None:
        self._call("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script's `return`."""
        return self._call("execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, *, seconds: float = 60) -> Any:
        """The first value of a script that is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"never became true: {script}")

    def scheme(self, name: str) -> None:
        """What `prefers-color-scheme` says: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self._call("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def resize(self, width: int, height: int) -> None:
        params = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": params})

    def screenshot(self, path: Path) -> None:
        with urllib.request.urlopen(f"{self._url}/screenshot", timeout=900) as answer:
            path.write_bytes(base64.b64decode(json.load(answer)["value"]))

    def log(self) -> list[str]:
        """What the page reported to the console since the last call: warnings and errors."""
        found = self._call("se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] in ("WARNING", "SEVERE")]

    def _call(self, path: str, body: Any) -> Any:
        return _post(f"{self._url}/{path}", body)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in the given folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: urllib.request.urlopen(f"{url}/status", timeout=5).close())
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _post(f"{url}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(url, session)
        finally:
            urllib.request.urlopen(
                urllib.request.Request(f"{url}/session/{session}", method="DELETE"), timeout=900
            ).close()
    finally:
        driver.terminate()
        driver.wait(30)


def _post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=900) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {json.load(error)['value']['message']}") from None


def _wait(attempt: Callable[[], None], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            attempt()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
