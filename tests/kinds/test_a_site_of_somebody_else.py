"""Pages and names of somebody else: who is taken for this machine, and who is let in by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

from edgemoe.errors import UsageError
from edgemoe.serve import hosts
from edgemoe.serve.run import Settings

OBSIDIAN, SITE, LOCAL = "app://obsidian.md", "https://chat.example", "http://localhost:*"


@pytest.mark.parametrize(
    "name",
    ["localhost", "LocalHost", "127.0.0.1", "127.1.2.3", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"],
)
def test_this_machine(name: str) -> None:
    assert hosts.is_loopback(name)


@pytest.mark.parametrize(
    "name",
    [
        "127.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io", "localhost.evil.example", "localhost.",
        "127.0.0.1.", "evil.example", "localhost@evil.example", "127.0.0.1@evil.example", "", "0.0.0.0", "::", "[::1]",
        "127.1", "128.0.0.1", "2130706433", "0x7f.0.0.1", "\uff11\uff12\uff17.0.0.1",
    ],
)  # fmt: skip
def test_not_this_machine(name: str) -> None:
    assert not hosts.is_loopback(name)


@pytest.mark.parametrize(
    "text",
    [
        "", "user@localhost", "localhost:80:80", "[::1].evil.example", "[::1]evil", "[::1", "::1", "localhost:port",
        "localhost:99999", "localhost/evil", "local host", "localhost:", "[localhost]", "[::1%25lo]",
    ],
)  # fmt: skip
def test_what_names_no_host(text: str) -> None:
    assert hosts.authority(text) is None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("site")
    model = tinymoe.write(folder / "m.gguf", "qwen3moe")
    sites = [part for site in (OBSIDIAN, SITE, LOCAL) for part in ("--cors-origin", site)]
    options = ("--threads", 1, "--ctx", 256, "--memory", "512MiB", *sites, "--allow-host", "ai.example")
    with serving.serve(folder / "cache", model, *options) as found:
        yield found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8080", "ai.example", "chat.example"])
@needs_library
def test_a_host_that_is_answered(server: Served, host: str) -> None:
    assert server.ask("/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "127.evil.example", "127.0.0.1.evil.example:8080", "localhost.evil.example", "[::1].evil.example",
        "evil.example", "user@localhost", "ai.example.evil.example", "localhost.", "",
    ],
)  # fmt: skip
@needs_library
def test_a_host_that_is_not(server: Served, host: str) -> None:
    for path, body in (("/v1/models", None), ("/api/budget", {"memory": "512MiB"}), ("/health", None)):
        status, answer = server.ask(path, body, headers={"Host": host})
        assert status == 403 and answer["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "origin", [OBSIDIAN, SITE, "http://localhost:5173", "http://localhost", "HTTPS://chat.example"]
)
@needs_library
def test_a_page_that_was_let_in(server: Served, origin: str) -> None:
    asked = "authorization,content-type,x-stainless-arch,x-stainless-os, x-stainless-timeout"
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    status, headers, _ = server.exchange("/v1/chat/completions", method="OPTIONS", headers=preflight)
    assert status == 204 and headers["Access-Control-Allow-Origin"] == origin
    assert headers["Access-Control-Allow-Headers"] == asked
    status, headers, _ = server.exchange("/v1/models", headers={"Origin": origin})
    assert status == 200 and headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    "origin",
    [
        "http://127.evil.example", "https://localhost.evil.example", "https://chat.example.evil.example", "null",
        "https://chat.example:8443", "http://chat.example", "app://evil", "https://user@chat.example", "chat.example",
        "http://127.0.0.1:1", "https://localhost:5173",
    ],
)  # fmt: skip
@needs_library
def test_a_page_that_was_not(server: Served, origin: str) -> None:
    status, answer = server.ask("/v1/models", headers={"Origin": origin})
    assert status == 403 and answer["error"]["code"] == "origin_not_allowed"


@needs_library
def test_a_page_of_another_host_cannot_say_that_host(server: Served) -> None:
    for name in ("127.evil.example", "evil.example"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert server.ask("/v1/models", headers=headers)[0] == 403


@pytest.mark.parametrize("origin", ["chat.example", "https://", "https://a/b", "https://user@a", "*", "https://a:x"])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(UsageError):
        Settings(origins=(origin,)).check()


def test_everybody_is_let_in_with_a_key_only() -> None:
    Settings(origins=("*",), api_key="sesame").check()
    with pytest.raises(UsageError, match="needs an API key"):
        Settings(host="127.evil.example").check()
    with pytest.raises(UsageError, match="is no name"):
        Settings(names=("ai.example:80",)).check()


@needs_library
def test_a_program_need_not_say_that_it_sends_json_but_a_page_must(server: Served) -> None:
    body = b'{"memory": "512MiB"}'
    for kind in ("", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": kind} if kind else {"Content-Type": ""}
        assert server.ask("/api/budget", raw=body, headers=headers)[0] == 200
        for mark in ("Referer", "Sec-Fetch-Site", "Cookie"):
            assert server.ask("/api/budget", raw=body, headers={**headers, mark: "x"})[0] == 415
        assert server.ask("/api/budget", raw=body, headers={**headers, "Origin": SITE})[0] == 415
    assert server.ask("/api/budget", raw=body, headers={"Content-Type": "text/plain"})[0] == 415
