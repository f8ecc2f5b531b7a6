"""llama.cpp's own server tests against `edgemoe serve`, beside llama-server, on the same model.

    .venv/bin/python tests/llama_suite.py TESTS XLLAMACPP [NAME...]

TESTS: llama.cpp's folder `tools/server/tests`, which is in the sdist of llama-cpp-python, with `models/templates`
three folders above it. XLLAMACPP: a Python that has the packages xllamacpp (llama-server as a library), pytest,
filelock, requests, wget, openai and anthropic. NAME: files of tests, without `test_` and `.py`; default: those of
docs/server.md.

The suite starts a server for each test, with options of its own. Here both servers are started in its place with the
same model, of which the suite's texts and numbers know nothing: what fails on both is the model's. Not collected by
pytest; takes some minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tinymoe

NAMES = ("chat_completion", "compat_oai_responses", "compat_anthropic", "tokenize", "kv_keep_only_active", "infill")
PLUGIN = """
import sys
sys.path.insert(0, "")
import utils
utils.ServerPreset.load_all = staticmethod(lambda: None)  # would download models
"""
FLAGS = {"--no-jinja", "--jinja", "--no-slots", "--slots", "--metrics", "--offline", "--cont-batching", "--kv-unified"}


def options(args: list[str]) -> dict[str, str]:
    """llama-server's options by name; flags are ""."""
    found: dict[str, str] = {}
    rest = list(args)
    while rest:
        name = rest.pop(0)
        takes = name not in FLAGS and bool(rest) and not rest[0].startswith("--")
        found[name] = rest.pop(0) if takes else ""
    return found


def model_for(given: dict[str, str], folder: Path) -> Path:
    """A tiny model that chats by the template that is asked for. Both servers get it."""
    file = given.get("--chat-template-file")
    text = Path(file).read_text() if file else tinymoe.CHAT_TEMPLATE
    path = folder / f"{Path(file).stem if file else 'chatml'}.gguf"
    if not path.exists():
        tinymoe.CHAT_TEMPLATE = text
        tinymoe.write(path, "qwen3moe")
    return path


def serve_edgemoe(given: dict[str, str], model: Path) -> None:
    n_slot = int(given.get("--parallel", "1"))
    alias = given.get("--alias", "model")
    command = [
        sys.executable, "-m", "edgemoe", "serve", f"{alias}={model}", "--host", given["--host"],
        "--port", given["--port"], "--ctx", str(int(given.get("--ctx-size", "2048")) // n_slot),
        "--parallel", str(n_slot), "--temp", given["--temp"], "--seed", given["--seed"], "--memory", "400MiB",
        "--threads", "1", "--keep-states", "0",
    ]  # fmt: skip
    for theirs, ours in (("--n-predict", "--max-tokens"), ("--api-key", "--api-key")):
        if theirs in given:
            command += [ours, given[theirs]]
    os.execv(sys.executable, command)


LLAMA = """
import json, signal, sys, threading
import xllamacpp as x
given, model = json.loads(sys.argv[1]), sys.argv[2]
p = x.CommonParams()
p.model.path, p.model_alias = model, {given.get("--alias", "model")}
p.hostnames, p.port = [given["--host"]], int(given["--port"])
p.n_ctx, p.n_parallel = int(given.get("--ctx-size", 2048)), int(given.get("--parallel", 1))
p.sampling.temp, p.sampling.seed = float(given["--temp"]), int(given["--seed"])
p.n_predict = int(given.get("--n-predict", -1))
p.use_jinja, p.cpuparams.n_threads, p.n_gpu_layers, p.warmup = "--jinja" in given, 1, 0, False
p.endpoint_slots, p.endpoint_metrics = "--slots" in given, "--metrics" in given
if "--api-key" in given:
    p.api_keys = [given["--api-key"]]
server = x.Server(p)
signal.signal(signal.SIGTERM, lambda *_: __import__("os")._exit(0))
threading.Event().wait()
"""


def run(suite: Path, python: str, which: str, names: tuple[str, ...]) -> dict[str, str]:
    """Each test's outcome."""
    with tempfile.TemporaryDirectory(prefix="llama-suite-") as folder:
        Path(folder, "quiet_plugin.py").write_text(PLUGIN)
        shim = Path(folder, "server")
        own = Path(__file__).resolve()
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {own} --as {which} {python} {folder} "$@"\n')
        shim.chmod(0o755)
        environment = {
            **os.environ, "LLAMA_SERVER_BIN_PATH": str(shim), "PYTHONPATH": f"{folder}:{suite}", "PORT": "18431",
            "EDGEMOE_CACHE": f"{folder}/cache",
        }  # fmt: skip
        files = [str(suite / "unit" / f"test_{name}.py") for name in names]
        command = [python, "-m", "pytest", "-p", "quiet_plugin", "-q", "-rA", "--tb=short", "--no-header", *files]
        done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, check=False)
        Path(tempfile.gettempdir(), f"llama-suite-{which}.log").write_text(done.stdout + done.stderr)
        found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) unit/(\S+::.*?)(?: - .*)?$", done.stdout, re.M)
        return {name: result.lower() for result, name in found}


def main() -> None:
    if sys.argv[1] == "--as":
        which, python, folder, *args = sys.argv[2:]
        given = options(args)
        model = model_for(given, Path(folder))
        if which == "edgemoe":
            serve_edgemoe(given, model)
        os.execv(python, [python, "-c", LLAMA, json.dumps(given), str(model)])
    suite, python = Path(sys.argv[1]).resolve(), sys.argv[2]
    names = tuple(sys.argv[3:]) or NAMES
    ours, theirs = (run(suite, python, which, names) for which in ("edgemoe", "llama-server"))
    print("| tests | pass here | pass on llama-server | of |\n|---|---|---|---|")
    for name in names:
        own = [test for test in sorted({*ours, *theirs}) if test.startswith(f"test_{name}.py")]
        here, there = (sum(each.get(test) == "passed" for test in own) for each in (ours, theirs))
        print(f"| {name} | {here} | {there} | {len(own)} |")
    for test in sorted({*ours, *theirs}):
        if ours.get(test) != theirs.get(test):
            print(f"{test}: {ours.get(test)} here, {theirs.get(test)} on llama-server")


if __name__ == "__main__":
    main()
