"""How long clients of `edgemoe serve` wait: for a refusal on a kept-alive connection, and behind another client.

    python tests/serving_waits.py [MODEL] [--runs 5]

For docs/experiments/serving-waits.md; no test.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import serving
from serving import Served

CHAT = "/v1/chat/completions"
N_REFUSED = 500


def refusals(server: Served) -> list[float]:
    """Milliseconds of each 400 on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    found = []
    for _ in range(N_REFUSED):
        begin = time.perf_counter()
        connection.request("POST", CHAT, b'{"messages": 1}', {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        found.append((time.perf_counter() - begin) * 1000)
        assert answer.status == 400
    connection.close()
    return found


def asked(text: str, n_token: int) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": text}], "max_tokens": n_token, "stream": True, "cache_prompt": False,
        "ignore_eos": True,
    }  # fmt: skip


def first_token_s(server: Served, text: str) -> float:
    """Until the first text of an answer."""
    begin = time.monotonic()
    stream = server.stream(CHAT, asked(text, 4))
    next(chunk for chunk in stream if chunk["choices"][0]["delta"].get("content"))
    found = time.monotonic() - begin
    stream.close()
    return found


def behind_a_long_prompt(server: Served, words: int) -> tuple[float, float, float]:
    """Seconds: a short question's first token alone, while another's long prompt is computed, and one batch of that."""
    long, short = "the theme of the interior " * words, "What is the capital of France?"
    alone = first_token_s(server, short)
    before = server.metrics()
    done = threading.Event()

    def other() -> None:
        for _ in server.stream(CHAT, asked(long, 1)):
            pass
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    while not server.live()["running"]:
        time.sleep(0.005)
    time.sleep(0.05)
    beside = first_token_s(server, short)
    assert not done.is_set(), "the long prompt was too short to be waited for"
    thread.join()
    after = server.metrics()
    spent = {
        key: after[f"edgemoe_prefill_{key}_total"] - before[f"edgemoe_prefill_{key}_total"]
        for key in ("seconds", "tokens")
    }
    return alone, beside, spent["seconds"] / spent["tokens"] * 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="*", type=Path)
    parser.add_argument("--memory", default="700MiB")
    parser.add_argument("--words", type=int, default=400, help="of the long prompt, five tokens each")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    options = [*given.model, "--memory", given.memory, "--ctx", 8192, "--parallel", 2]
    p50, waits = [], []
    with tempfile.TemporaryDirectory() as cache, serving.serve(Path(cache), *options) as server:
        refusals(server)
        for _ in range(given.runs):
            ms = sorted(refusals(server))
            p50.append((statistics.median(ms), ms[int(0.95 * len(ms))]))
            waits.append(behind_a_long_prompt(server, given.words))
            print(json.dumps({"p50_p95_ms": p50[-1], "alone_beside_batch_s": waits[-1]}), flush=True)
    print(
        f"400 on a kept-alive connection: p50 {statistics.median(one[0] for one in p50):.2f} ms "
        f"({min(one[0] for one in p50):.2f} to {max(one[0] for one in p50):.2f}), "
        f"p95 {statistics.median(one[1] for one in p50):.2f} ms"
    )
    for i, name in enumerate(("first token alone", "first token beside a long prompt", "a batch of 512 of that")):
        values = [one[i] for one in waits]
        print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    print("load", Path("/proc/loadavg").read_text().split()[0])


if __name__ == "__main__":
    main()
