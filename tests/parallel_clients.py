"""Clients of `edgemoe serve`, one after the other and several at once: speeds, waits, and whether the bytes are alike.

    python tests/parallel_clients.py MODEL --memory 1300MiB --runs 5

For docs/experiments/parallel-answers.md; no test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import serving
from serving import Served

SUBJECTS = ("a lighthouse in winter", "how bread is baked", "the first railways", "a letter that came too late",
            "why leaves turn red", "a market at dawn", "learning to sail")  # fmt: skip


@dataclass
class Client:
    """first_s: until the first piece of text, from when all asked. end_s: until the last."""

    text: str = ""
    n_token: int = 0
    first_s: float = 0.0
    end_s: float = 0.0

    def ask(self, server: Served, i: int, n_token: int, begin: float) -> None:
        prompt = f"Tell me about {SUBJECTS[i]}, at length and in many words."
        request = {
            "messages": [{"role": "user", "content": prompt}], "max_tokens": n_token, "seed": i, "temperature": 0.8,
            "stream": True, "stream_options": {"include_usage": True}, "cache_prompt": False, "ignore_eos": True,
        }  # fmt: skip
        for event in server.stream("/v1/chat/completions", request):
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and not self.text:
                    self.first_s = time.monotonic() - begin
                self.text += piece
            if event.get("usage"):
                self.n_token = event["usage"]["completion_tokens"]
        self.end_s = time.monotonic() - begin


def at_once(server: Served, n_client: int, n_token: int, wait_s: float = 0.0) -> list[Client]:
    """wait_s: between one client and the next."""
    clients = [Client() for _ in range(n_client)]
    begin = time.monotonic()
    threads = []
    for i, client in enumerate(clients):
        threads.append(threading.Thread(target=client.ask, args=(server, i, n_token, begin + i * wait_s)))
        threads[-1].start()
        time.sleep(wait_s)
    for thread in threads:
        thread.join()
    return clients


def speed(clients: list[Client]) -> float:
    return sum(client.n_token for client in clients) / max(client.end_s for client in clients)


def spent(done: dict[str, float]) -> str:
    """What the server's counters say of a run."""
    decode_s, n = done["edgemoe_decode_seconds_total"], done["edgemoe_decode_tokens_total"]
    read = done["edgemoe_read_bytes_total"] / 1e6
    prefill_s = done["edgemoe_prefill_seconds_total"]
    return f"decode alone {n / decode_s:.2f} tok/s, prompts {prefill_s:.1f} s, {read / n:.0f} MB read a token"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", default="1300MiB")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    speeds: dict[int, list[float]] = {1: [], given.clients: []}
    waits: dict[int, list[float]] = {1: [], given.clients: []}
    texts: set[tuple[str, ...]] = set()
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(given.runs):
            for parallel, found in speeds.items():
                options: list[Any] = [given.model, "--memory", given.memory, "--ctx", given.ctx]
                with serving.serve(Path(cache), *options, "--parallel", parallel) as server:
                    at_once(server, 1, 8)  # what is read once
                    before = server.metrics()
                    clients = at_once(server, given.clients, given.tokens)
                    done = {name: value - before.get(name, 0) for name, value in server.metrics().items()}
                    found.append(speed(clients))
                    texts.add(tuple(one.text for one in clients))
                    waits[parallel].append(at_once(server, 2, 24, 2.0)[1].first_s)
                    peak = server.live()["memory"]["peak"] / (1 << 20)
                told = f"{found[-1]:.2f} tok/s, second client {waits[parallel][-1]:.1f} s, peak {peak:.0f} MiB"
                print(f"--parallel {parallel}: {told}, load {psutil.getloadavg()[0]:.1f}", flush=True)
                print(f"  {spent(done)}", flush=True)
    for parallel, found in speeds.items():
        for what, values, unit in (
            ("all clients", found, "tok/s"),
            ("second client's first words", waits[parallel], "s"),
        ):
            low, high = min(values), max(values)
            print(f"--parallel {parallel}, {what}: {statistics.median(values):.2f} {unit} ({low:.2f} to {high:.2f})")
    print("every text is the same in all runs" if len(texts) == 1 else "TEXTS DIFFER")


if __name__ == "__main__":
    main()
