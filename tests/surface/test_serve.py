"""`edgemoe serve` over real sockets, with models of random weights: answers, errors, queue, budget, who may ask."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
import tinymoe
from console import Cli, needs_library
from serving import Served

pytestmark = needs_library

# One thread: two of them wait for each other at every barrier when other programs want the cores.
SMALL = ("--threads", 1, "--ctx", 1024, "--memory", "512MiB")
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def models_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    return (
        tinymoe.write(folder / "alpha.gguf", "qwen3moe"),
        tinymoe.write(folder / "beta.gguf", "qwen3moe", seed=1),
    )


@pytest.fixture(scope="module")
def server(models_two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    alpha, beta = models_two
    cache = tmp_path_factory.mktemp("cache")
    with serving.serve(cache, alpha, f"second={beta}", *SMALL, "--queue", 2) as found:
        yield found


def chat(**fields: Any) -> dict[str, Any]:
    # Whether a prompt was computed at once or in part before shows in the last bit, and so in wild samples.
    return {"model": "alpha", "messages": HELLO, "max_tokens": 8, "cache_prompt": False, **fields}


# ---------------------------------------------------------------- answers


def test_an_answer_has_openais_shape(server: Served) -> None:
    status, found = server.ask(CHAT, chat())
    assert status == 200
    assert found["object"] == "chat.completion" and found["model"] == "alpha" and found["id"].startswith("chatcmpl-")
    (choice,) = found["choices"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 8
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 8


def test_a_stream_says_the_same_as_a_whole_answer(server: Served) -> None:
    whole = server.ask(CHAT, chat())[1]["choices"][0]["message"]["content"]
    chunks = list(server.stream(CHAT, chat(stream=True, stream_options={"include_usage": True})))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == whole
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8
    assert all(c["usage"] is None for c in chunks[:-1])
    assert len({c["id"] for c in chunks}) == 1
    without = list(server.stream(CHAT, chat(stream=True)))
    assert all("usage" not in c for c in without)


def test_a_seed_repeats_an_answer_and_several_answers_differ(server: Served) -> None:
    wild = {"temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 12}
    first, second = (server.ask(CHAT, chat(**wild))[1]["choices"] for _ in range(2))
    texts = [choice["message"]["content"] for choice in first]
    assert texts == [choice["message"]["content"] for choice in second]
    assert len(set(texts)) == 3 and [choice["index"] for choice in first] == [0, 1, 2]


def test_a_stop_string_ends_the_answer_and_is_not_in_it(server: Served) -> None:
    text = server.ask(CHAT, chat(max_tokens=20))[1]["choices"][0]["message"]["content"]
    stop = text[5:7]
    choice = server.ask(CHAT, chat(max_tokens=20, stop=stop))[1]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text[: text.index(stop)]


def test_logprobs_of_chats(server: Served) -> None:
    found = server.ask(CHAT, chat(logprobs=True, top_logprobs=3, temperature=0))[1]["choices"][0]
    content = found["logprobs"]["content"]
    assert len(content) == 8
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == found["message"]["content"]
    for one in content:
        assert one["top_logprobs"][0]["token"] == one["token"] and one["logprob"] <= 0
        assert len(one["top_logprobs"]) == 3
    chunks = list(server.stream(CHAT, chat(logprobs=True, stream=True, temperature=0)))
    streamed = [one for c in chunks for one in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in content]


def test_completions_take_texts_and_tokens(server: Served) -> None:
    one = server.ask(TEXT, {"model": "alpha", "prompt": "the", "max_tokens": 6, "echo": True})[1]["choices"]
    assert len(one) == 1 and one[0]["text"].startswith("the") and len(one[0]["text"]) > 3
    tokens = [ord("t"), ord("h"), ord("e")]
    several = server.ask(TEXT, {"model": "alpha", "prompt": [tokens, tokens], "max_tokens": 6})[1]["choices"]
    assert [choice["index"] for choice in several] == [0, 1] and several[0]["text"] == several[1]["text"]
    found = server.ask(TEXT, {"model": "alpha", "prompt": ["the", "in"], "logprobs": 2})[1]
    assert found["usage"]["completion_tokens"] == 32  # 16 each, as OpenAI has it
    logprobs = found["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == found["choices"][0]["text"]
    assert logprobs["text_offset"][:2] == [0, len(logprobs["tokens"][0])]


def test_a_bias_reaches_the_sampler(server: Served) -> None:
    asked = {"model": "alpha", "prompt": "the", "max_tokens": 4}
    found = server.ask(TEXT, {**asked, "logit_bias": {str(ord("Q")): 100}})
    assert found[1]["choices"][0]["text"] == "QQQQ"
    status, found = server.ask(TEXT, {**asked, "logit_bias": {"99999": 1}})
    assert status == 400 and found["error"]["param"] == "logit_bias"


def test_a_schema_is_obeyed(server: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
        "required": ["ok", "n"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for seed in range(4):
        wild = {"temperature": 2, "seed": seed, "max_tokens": 100, "response_format": form}
        choice = server.ask(CHAT, chat(**wild))[1]["choices"][0]
        found = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert isinstance(found["ok"], bool) and found["n"] in (1, 2) and len(found) == 2
    status, found = server.ask(CHAT, chat(response_format={"type": "json_schema"}))
    assert status == 400 and "json_schema.schema" in found["error"]["message"]
    odd = {"name": "x", "schema": {"type": "array", "items": {"enum": [1]}, "maxItems": 2, "uniqueItems": True}}
    form = {"type": "json_schema", "json_schema": {**odd, "strict": True}}
    status, found = server.ask(CHAT, chat(response_format=form))
    assert status == 400 and "`uniqueItems`" in found["error"]["message"]
    status, found = server.ask(CHAT, chat(max_tokens=100, response_format={"type": "json_schema", "json_schema": odd}))
    assert status == 200 and json.loads(found["choices"][0]["message"]["content"]) in ([], [1], [1, 1])


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
    },
}


def test_a_required_tool_is_called(server: Served) -> None:
    asked = chat(tools=[ADD], tool_choice="required", parallel_tool_calls=False, max_tokens=100, temperature=2, seed=1)
    choice = server.ask(CHAT, asked)[1]["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"] and call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"])["a"] in (1, 2)
    chunks = list(server.stream(CHAT, {**asked, "stream": True}))
    parts = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert parts[0]["id"] and parts[0]["type"] == "function" and all(part["index"] == 0 for part in parts)
    assert parts[0]["function"] == {"name": "add", "arguments": ""} and len(parts) > 2
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    # The answer to the call goes back in.
    messages = [*HELLO, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "3"}]
    assert server.ask(CHAT, chat(messages=messages, tools=[ADD]))[0] == 200


def test_the_beginning_of_a_prompt_is_not_computed_twice(server: Served) -> None:
    question = "tell me something about the thing in the other place"
    messages = [{"role": "user", "content": question}]
    first = server.ask(CHAT, chat(messages=messages))[1]
    answer = first["choices"][0]["message"]
    longer = [*messages, answer, {"role": "user", "content": "more"}]
    again = server.ask(CHAT, chat(messages=longer, cache_prompt=True))[1]["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    anew = server.ask(CHAT, chat(messages=longer))[1]["usage"]
    assert anew["prompt_tokens_details"]["cached_tokens"] == 0


def test_models_change_places_inside_one_budget(server: Served) -> None:
    of_alpha = server.ask(CHAT, chat())[1]["choices"][0]["message"]["content"]
    of_second = server.ask(CHAT, chat(model="second"))[1]["choices"][0]["message"]["content"]
    assert of_alpha != of_second
    loaded = {card["id"]: card["loaded"] for card in server.ask("/v1/models")[1]["data"]}
    assert loaded == {"alpha": False, "second": True}
    assert server.ask("/v1/models/second")[1]["id"] == "second"
    assert server.ask(CHAT, chat())[1]["choices"][0]["message"]["content"] == of_alpha
    before = server.rss_bytes()
    for _ in range(4):
        server.ask(CHAT, chat(model="second"))
        server.ask(CHAT, chat())
    assert server.rss_bytes() < before + (16 << 20)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CHAT, {"model": "alpha"}, 400, "messages"),
        (CHAT, chat(messages=[]), 400, "messages"),
        (CHAT, chat(messages=[{"role": "king", "content": "x"}]), 400, "messages[0].role"),
        (CHAT, chat(temperature=3), 400, "temperature"),
        (CHAT, chat(model="gamma"), 404, "gamma"),
        (CHAT, chat(n=100), 400, "n"),
        (CHAT, chat(stop=[""]), 400, "stop"),
        (CHAT, chat(top_logprobs=2), 400, "top_logprobs"),
        (CHAT, chat(tool_choice="required"), 400, "tool_choice"),
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "has no `image_url`"),
        (CHAT, chat(messages=[{"role": "user", "content": "the " * 5000}]), 400, "context"),
        (TEXT, {"model": "alpha", "prompt": ""}, 400, "prompt"),
        (TEXT, {"model": "alpha", "prompt": ["a", 1]}, 400, "mixes"),
        (TEXT, {"model": "alpha", "prompt": [10**6]}, 400, "vocabulary"),
        (TEXT, {"model": "alpha", "prompt": "x", "suffix": "y"}, 400, "suffix"),
        (TEXT, {"model": "alpha", "prompt": "x", "best_of": 3}, 400, "best_of"),
        ("/v1/embeddings", {"model": "alpha", "input": "x"}, 400, "no embeddings"),
        ("/api/budget", {"memory": "1MiB"}, 400, "too small"),
        ("/api/budget", {"memory": "lots"}, 400, "lots"),
        ("/v1/nothing", {}, 404, "/v1/nothing"),
    ],
)
def test_what_makes_no_sense_is_refused_in_openais_shape(
    server: Served, path: str, body: Any, status: int, said: str
) -> None:
    found, answer = server.ask(path, body)
    assert found == status
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in f"{error['param']} {error['message']}"
    assert error["type"] == "invalid_request_error"
    if body.get("messages") and not body.get("stream"):  # a stream is refused with the same status, before it begins
        assert server.ask(path, {**body, "stream": True}) == (found, answer)


def test_bodies_that_are_no_json(server: Served) -> None:
    assert server.ask(CHAT, raw=b"{")[0] == 400
    assert server.ask(CHAT, raw=b"\xff\xfe")[0] == 400
    assert server.ask(CHAT, raw=b"[" * 100_000)[0] == 400
    assert server.ask(CHAT, raw=b"x" * (2 << 20))[0] == 413
    assert server.ask(CHAT, raw=b"{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert server.ask(CHAT)[0] == 405


def test_other_sites_may_not_use_a_server_on_loopback(server: Served) -> None:
    assert server.ask(CHAT, chat(), headers={"Origin": "https://evil.example"})[0] == 403
    assert server.ask("/v1/models", headers={"Host": "evil.example"})[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    status, headers, _ = server.exchange("/v1/models", headers={"Origin": own})
    assert status == 200 and headers["Access-Control-Allow-Origin"] is None


# ---------------------------------------------------------------- queue and clients that go away


def test_the_queue_has_a_bound(server: Served) -> None:
    long = chat(max_tokens=900, stream=True)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(server.exchange(CHAT, chat(max_tokens=600))[0])

    running = server.stream(CHAT, long)
    next(running)
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.close()
    # One runs, two wait; how many find a place depends on when the first ends.
    assert 200 in statuses and 429 in statuses and set(statuses) <= {200, 429}
    assert server.metrics()["edgemoe_requests_refused_total"] == statuses.count(429)


def test_a_refused_request_is_told_when_to_come_back(server: Served) -> None:
    running = [server.stream(CHAT, chat(max_tokens=900, stream=True))]
    next(running[0])
    waiting = [threading.Thread(target=server.ask, args=(CHAT, chat(max_tokens=600))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    end = time.monotonic() + 30
    status, headers, body = 200, None, b""
    while status != 429 and time.monotonic() < end:
        if server.live()["waiting"] == 2:
            status, headers, body = server.exchange(CHAT, chat())
        else:
            break  # the first has ended already: nothing to see
    for thread in waiting:
        thread.join()
    running[0].close()
    if status == 429:
        assert headers is not None and int(headers["Retry-After"]) > 0
        assert json.loads(body)["error"]["type"] == "rate_limit_error"


def test_a_client_that_goes_away_ends_its_answer(server: Served) -> None:
    before = server.metrics()
    stream = server.stream(CHAT, chat(max_tokens=900, stream=True))
    next(stream)
    stream.close()
    server.until_idle()
    connection = socket.create_connection(("127.0.0.1", server.port))  # one that does not stream
    body = json.dumps(chat(max_tokens=900)).encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode() + body)
    while server.live()["state"] == "idle":
        time.sleep(0.01)
    connection.close()
    server.until_idle()
    after = server.metrics()
    assert after["edgemoe_requests_abandoned_total"] == before["edgemoe_requests_abandoned_total"] + 2
    computed = after["edgemoe_decode_tokens_total"] - before["edgemoe_decode_tokens_total"]
    assert computed < 2 * 899
    assert server.ask(CHAT, chat())[0] == 200


# ---------------------------------------------------------------- budget, metrics, page


def test_the_budget_changes_while_it_talks_and_the_answer_does_not(server: Served) -> None:
    asked = chat(max_tokens=120)
    whole = server.ask(CHAT, asked)[1]["choices"][0]["message"]["content"]
    smallest = server.live()["memory"]["smallest"]
    stream = server.stream(CHAT, {**asked, "stream": True})
    chunks = [next(stream), next(stream)]
    status, shown = server.ask("/api/budget", {"memory": smallest})
    assert status == 200 and shown["memory"]["budget"] == smallest
    chunks += list(stream)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole
    # The next model is loaded inside it as well.
    server.ask(CHAT, chat(model="second"))
    assert server.live()["memory"]["budget"] == smallest
    assert server.ask("/api/budget", {"memory": "512MiB"})[0] == 200


def test_metrics_are_what_prometheus_reads(server: Served) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    server.ask(CHAT, chat())
    status, headers, body = server.exchange("/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    tokens = {sample.labels["kind"]: sample.value for sample in families["edgemoe_tokens"].samples}
    assert tokens["completion"] >= 8 and tokens["prompt"] > 0
    assert families["edgemoe_resident_bytes"].samples[0].value > 10 << 20
    loaded = {sample.labels["model"]: sample.value for sample in families["edgemoe_model_loaded"].samples}
    assert loaded == {"alpha": 1, "second": 0}


def test_the_live_view_tells_what_is_going_on(server: Served) -> None:
    server.ask(CHAT, chat())
    live = server.live()
    assert live["models"] == ["alpha", "second"] and live["model"] == "alpha" and live["state"] == "idle"
    experts = live["experts"]
    assert len(experts["layers"]) == len(experts["n_expert"])
    cells = base64.b64decode(experts["cells"])
    assert len(cells) == sum(experts["n_expert"])
    assert any(cell & 1 for cell in cells) and any(cell & 2 for cell in cells)
    memory = live["memory"]
    assert sum(memory["parts"].values()) <= memory["budget"] and memory["rss"] <= memory["budget"]
    assert memory["smallest"] < memory["budget"]


def test_the_page_and_the_document_are_there(server: Served) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, headers, body = server.exchange(path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert b"http://" not in body.replace(b"http://www.w3.org/", b"") and b"https://" not in body
    document = server.ask("/openapi.json")[1]
    assert document["openapi"].startswith("3.1") and CHAT in document["paths"]
    assert server.ask("/health") == (200, {"status": "ok"})


# ---------------------------------------------------------------- keys, addresses, mistakes


def test_a_key_is_wanted_everywhere_but_at_the_door(models_two: tuple[Path, Path], tmp_path: Path) -> None:
    origin = "https://chat.example"
    with serving.serve(
        tmp_path, models_two[0], *SMALL, "--host", "0.0.0.0", "--cors-origin", origin, env={"EDGEMOE_API_KEY": "sesame"}
    ) as server:
        for path in ("/v1/models", "/metrics", "/api/live"):
            status, answer = server.ask(path)
            assert status == 401 and answer["error"]["code"] == "invalid_api_key"
        assert server.ask("/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
        key = {"Authorization": "Bearer sesame"}
        assert server.ask("/v1/models", headers=key)[0] == 200
        assert server.ask(CHAT, chat(), headers=key)[0] == 200
        assert server.ask("/health")[0] == server.ask("/")[0] == 200
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        status, headers, _ = server.exchange(CHAT, method="OPTIONS", headers=asked)
        assert status == 204 and headers["Access-Control-Allow-Origin"] == origin
        status, headers, _ = server.exchange("/v1/models", headers={**key, "Origin": origin})
        assert status == 200 and headers["Access-Control-Allow-Origin"] == origin
        assert "sesame" not in "\n".join(server.talk)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "needs an API key"),
        (("--port", "99999"), "is no port"),
        (("--queue", "-1"), "makes no sense"),
        (("--cors-origin", "chat.example"), "is no origin"),
        (("--memory", "1MiB"), "too small"),
        (("--host", "203.0.113.7", "--api-key", "x"), "cannot listen"),
    ],
)
def test_mistakes_are_one_clear_line(cli: Cli, good: Path, arguments: tuple[str, ...], said: str) -> None:
    done = cli("serve", good, *arguments)
    assert done.returncode in (1, 2) and done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("edgemoe: ") and said in first
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest)


def test_a_port_in_use_is_said_before_a_model_is_loaded(cli: Cli, good: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("serve", good, "--port", taken.getsockname()[1])
    assert done.returncode == 1 and "address already in use" in done.stderr and "hint: " in done.stderr


def test_two_models_of_one_name_are_refused(cli: Cli, good: Path) -> None:
    done = cli("serve", good, good)
    assert done.returncode == 2 and "two models are called `good`" in done.stderr


def test_a_missing_package_is_one_clear_line(environment: dict[str, str], good: Path) -> None:
    program = (
        f"import sys; sys.modules['uvicorn'] = None\nimport edgemoe.cli\nedgemoe.cli.main(['serve', {str(good)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("edgemoe: `edgemoe serve` needs the package `uvicorn`") and "hint: " in done.stderr


def test_the_document_names_the_models_and_what_is_taken(server: Served) -> None:
    document = server.ask("/openapi.json")[1]
    schemas = document["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["model"]["enum"][:2] == ["alpha", "second"]
    assert "200" not in document["paths"]["/v1/embeddings"]["post"]["responses"]
    for path, operations in document["paths"].items():
        for method in operations:
            status = (
                server.ask(path.replace("{model}", "alpha"), {} if method == "post" else None, method=method.upper())
                if path != "/api/live"
                else (200, None)
            )
            assert status[0] in (200, 400), path
