"""`hf:owner/repo[:file]`, with the real client and a hub of our own on this machine."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import Cli, needs_library

pytestmark = [
    needs_library,
    pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed"),
]

COMMIT = "1" * 40
REPO = "owner/Tiny-GGUF"


class Hub(http.server.ThreadingHTTPServer):
    """One repository. asked: every request. lie: with wrong digests. cut: bytes after which a download breaks off, and
    every one after it, until it is 0 again.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []
        self.cut = 0
        self.down = False
        self.lie = False

    def digest(self, name: str) -> str:
        return "0" * 64 if self.lie else hashlib.sha256(self.files[name]).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [
                {
                    "rfilename": name,
                    "size": len(content),
                    "blobId": "2" * 40,
                    "lfs": {"sha256": hub.digest(name), "size": len(content), "pointerSize": 130},
                }
                for name, content in hub.files.items()
            ]
            body = json.dumps({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
            return self._send(200, body, {"Content-Type": "application/json"}, with_body)
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in hub.files:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        content, first = hub.files[name], 0
        headers = {"ETag": f'"{hub.digest(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206 if first else 200, content[first:], headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        if self.server.cut and len(body) > self.server.cut:
            self.wfile.write(b"" if self.server.down else body[: self.server.cut])
            self.server.down = self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def hub(good: Path) -> Iterator[Hub]:
    server = Hub({"README.md": b"hello", "tiny-Q4_K_M.gguf": good.read_bytes(), "other-Q8_0.gguf": b"GGUF"})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; children speak to our hub."""
    for name, value in {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setitem(environment, name, value)
    return tmp_path / "hub"


def test_a_model_is_downloaded_once_checked_and_then_needs_no_network(cli: Cli, hub: Hub, cache: Path) -> None:
    done = cli("run", f"hf:{REPO}", "-p", "hello", "-n", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    n_asked = len(hub.asked)
    assert n_asked
    again = cli("run", f"hf:{REPO}:tiny-Q4_K_M.gguf", "-p", "hello", "-n", "4")
    assert again.stdout == done.stdout
    assert len(hub.asked) == n_asked
    listed = json.loads(cli("models", "--json").stdout)
    ours = next(model for model in listed if model["repo"] == REPO)
    assert (ours["name"], ours["kind"]) == ("tiny-Q4_K_M", "runs")
    assert ours["plan"]["prediction"]["high"] > 0
    assert Path(ours["path"]).is_relative_to(cache)  # it lies where the hub's client keeps it, and nowhere else


def test_a_download_that_broke_off_is_continued_by_the_next_process(cli: Cli, hub: Hub, cache: Path) -> None:
    hub.files["tiny-Q4_K_M.gguf"] += bytes(24 << 20)  # the client writes pieces of 10 MiB
    hub.cut = 16 << 20
    broken = cli("inspect", f"hf:{REPO}")
    assert broken.returncode == 1
    assert "cannot download" in broken.stderr and "Traceback" not in broken.stderr
    hub.cut, n_asked = 0, len(hub.asked)
    done = cli("inspect", f"hf:{REPO}")
    assert done.returncode == 0, done.stderr
    gets = [line for line in hub.asked[n_asked:] if line.startswith("GET /owner")]
    assert [line.rpartition(" ")[2] for line in gets] == [f"bytes={10 << 20}-"]


def test_a_damaged_file_is_refused_and_not_kept(cli: Cli, hub: Hub, cache: Path) -> None:
    hub.lie = True
    done = cli("inspect", f"hf:{REPO}")
    assert done.returncode == 1
    assert "arrived damaged" in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in cache.rglob("*.gguf") if path.exists()]


def test_a_file_that_is_not_there_lists_those_that_are(cli: Cli, hub: Hub, cache: Path) -> None:
    done = cli("run", f"hf:{REPO}:Q2_K", "-p", "hello")
    assert done.returncode == 2
    assert "has 0 models like `Q2_K`" in done.stderr and "`tiny-Q4_K_M`" in done.stderr


def test_an_unknown_repository_is_one_line(cli: Cli, cache: Path) -> None:
    done = cli("run", "hf:owner/nothing", "-p", "hello")
    assert done.returncode in (1, 2)
    assert "owner/nothing" in done.stderr and "hint: " in done.stderr and "Traceback" not in done.stderr


def test_offline_is_one_line(
    cli: Cli, cache: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environment, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    done = cli("run", f"hf:{REPO}", "-p", "hello")
    assert done.returncode == 1
    assert f"cannot download `{REPO}`" in done.stderr and "check the network" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    monkeypatch.setitem(environment, "HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in cli("run", f"hf:{REPO}", "-p", "hello").stderr


def test_without_the_client_the_cache_still_serves_and_a_download_says_what_is_missing(
    cli: Cli, hub: Hub, cache: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("inspect", f"hf:{REPO}").returncode == 0
    blocked = tmp_path / "blocked" / "huggingface_hub"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed')")
    path = os.pathsep.join([str(blocked.parent), environment["PYTHONPATH"]])
    monkeypatch.setitem(environment, "PYTHONPATH", path)
    assert cli("inspect", f"hf:{REPO}").returncode == 0
    done = cli("inspect", "hf:owner/more")
    assert done.returncode == 2
    assert "huggingface_hub" in done.stderr and "pip install huggingface_hub" in done.stderr
