"""Real clients against a real server: a table for docs/server.md of what was run with each, and how it ended.

    .venv/bin/python tests/client_matrix.py [NAME...]     # all of them; needs PyPI, minutes and about 1 GB of disk

Each client is installed into an environment of its own below $EDGEMOE_CLIENT_ENVS (default: a temporary folder) and
asked as its documentation shows. Not collected by pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import serving

BUILTIN = "smolmoe-135m"
_LONGEST_S = 600


@dataclass(frozen=True)
class Client:
    """packages: what pip installs. what: in words. code: ends with 0 when all of it is right; URL is the server's."""

    name: str
    packages: tuple[str, ...]
    what: str
    code: str


_ASK = "What is the capital of France?"
CLIENTS = (
    Client("openai, chat", ("openai",), "chat, stream, schema, tool call", f"""
import json, openai
c = openai.OpenAI(base_url=URL + "/v1", api_key="none")
m = [{{"role": "user", "content": "{_ASK}"}}]
assert "Paris" in c.chat.completions.create(model=MODEL, messages=m, max_tokens=20).choices[0].message.content
parts = c.chat.completions.create(model=MODEL, messages=m, max_tokens=20, stream=True)
assert "Paris" in "".join(p.choices[0].delta.content or "" for p in parts)
s = {{"type": "object", "properties": {{"n": {{"enum": [1, 2]}}}}, "required": ["n"], "additionalProperties": False}}
f = {{"type": "json_schema", "json_schema": {{"name": "x", "schema": s, "strict": True}}}}
r = c.chat.completions.create(model=MODEL, messages=m, response_format=f)
assert json.loads(r.choices[0].message.content)["n"] in (1, 2)
t = [{{"type": "function", "function": {{"name": "pick", "parameters": s}}}}]
r = c.chat.completions.create(model=MODEL, messages=m, tools=t, tool_choice="required", parallel_tool_calls=False)
assert r.choices[0].message.tool_calls[0].function.name == "pick"
"""),
    Client("openai, responses", ("openai",), "create, stream, previous_response_id, tool call", f"""
import openai
c = openai.OpenAI(base_url=URL + "/v1", api_key="none")
r = c.responses.create(model=MODEL, input="{_ASK}", instructions="Be brief.", max_output_tokens=30)
assert "Paris" in r.output_text
r = c.responses.create(model=MODEL, input="And of Spain?", previous_response_id=r.id, max_output_tokens=20)
assert r.output_text
with c.responses.stream(model=MODEL, input="{_ASK}") as s:
    assert "Paris" in "".join(e.delta for e in s if e.type == "response.output_text.delta")
    assert s.get_final_response().status == "completed"
t = [{{"type": "function", "name": "pick", "parameters": {{"type": "object", "properties": {{}}}}}}]
r = c.responses.create(model=MODEL, input="x", tools=t, tool_choice="required", parallel_tool_calls=False)
assert r.output[0].type == "function_call"
"""),
    Client("openai-agents", ("openai-agents",), "an agent with the responses API", f"""
import openai
from agents import Agent, Runner, OpenAIResponsesModel, set_tracing_disabled
set_tracing_disabled(True)
model = OpenAIResponsesModel(MODEL, openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none"))
assert "Paris" in Runner.run_sync(Agent(name="a", instructions="Be brief.", model=model), "{_ASK}").final_output
"""),
    Client("anthropic", ("anthropic",), "messages, stream, count_tokens, tool call", f"""
import anthropic
c = anthropic.Anthropic(base_url=URL, api_key="none")
m = [{{"role": "user", "content": "{_ASK}"}}]
assert "Paris" in c.messages.create(model=MODEL, max_tokens=30, messages=m, system="Be brief.").content[0].text
with c.messages.stream(model=MODEL, max_tokens=30, messages=m) as s:
    assert "Paris" in "".join(s.text_stream)
assert c.messages.count_tokens(model=MODEL, messages=m).input_tokens > 5
t = [{{"name": "pick", "input_schema": {{"type": "object", "properties": {{}}}}}}]
one = {{"type": "any", "disable_parallel_tool_use": True}}
r = c.messages.create(model=MODEL, max_tokens=60, messages=m, tools=t, tool_choice=one)
assert r.stop_reason == "tool_use"
"""),
    Client("ollama", ("ollama",), "chat, generate, streams, list, show, ps", f"""
import ollama
c = ollama.Client(host=URL)
m = [{{"role": "user", "content": "{_ASK}"}}]
assert "Paris" in c.chat(model=MODEL, messages=m).message.content
assert "Paris" in "".join(p.message.content for p in c.chat(model=MODEL, messages=m, stream=True))
assert "Paris" in c.generate(model=MODEL, prompt="{_ASK}").response
assert [p for p in c.generate(model=MODEL, prompt="{_ASK}", stream=True)][-1].done
assert c.list().models[0].model == MODEL and c.show(MODEL).details.format == "gguf" and c.ps().models
"""),
    Client("litellm", ("litellm",), "OpenAI's, Anthropic's and Ollama's ways", f"""
import litellm
m = [{{"role": "user", "content": "{_ASK}"}}]
for model, base in (("openai/" + MODEL, URL + "/v1"), ("anthropic/" + MODEL, URL), ("ollama_chat/" + MODEL, URL)):
    r = litellm.completion(model=model, messages=m, api_base=base, api_key="none", max_tokens=30)
    assert "Paris" in r.choices[0].message.content, model
"""),
    Client("LangChain", ("langchain-openai", "langchain-anthropic", "langchain-ollama"), "invoke, stream", f"""
from langchain_openai import ChatOpenAI
from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
for c in (ChatOpenAI(model=MODEL, base_url=URL + "/v1", api_key="none"), ChatOllama(model=MODEL, base_url=URL),
          ChatAnthropic(model=MODEL, base_url=URL, api_key="none", max_tokens=30)):
    assert "Paris" in c.invoke("{_ASK}").content, c
    assert "Paris" in "".join(str(p.text if hasattr(p, "text") and not callable(p.text) else p.content)
                              for p in c.stream("{_ASK}")), c
"""),
    Client("instructor", ("instructor",), "an object of a pydantic class", """
import enum, instructor, openai, pydantic
Size = enum.Enum("Size", {"small": "small", "large": "large"})
class Thing(pydantic.BaseModel):
    size: Size
c = instructor.from_openai(openai.OpenAI(base_url=URL + "/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
r = c.chat.completions.create(model=MODEL, response_model=Thing, messages=[{"role": "user", "content": "An elephant."}])
assert isinstance(r, Thing)
"""),
    Client("pydantic-ai", ("pydantic-ai-slim[openai]",), "agents over chat and responses", f"""
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
p = OpenAIProvider(base_url=URL + "/v1", api_key="none")
for m in (OpenAIChatModel(MODEL, provider=p), OpenAIResponsesModel(MODEL, provider=p)):
    assert "Paris" in Agent(m).run_sync("{_ASK}").output, m
"""),
    Client("lm-eval", ("lm-eval[api]",), "its reading of scored prompts", """
from lm_eval.models.openai_completions import LocalCompletionsAPI
import requests
def score(context, rest):
    body = {"model": MODEL, "prompt": context + rest, "max_tokens": 0, "echo": True, "logprobs": 1}
    told = requests.post(URL + "/v1/completions", json=body).json()
    values, greedy = LocalCompletionsAPI.parse_logprobs(told, tokens=[[0] * 99], ctxlens=[4])[0]
    return values
assert score("The capital of France is", " Paris") > score("The capital of France is", " a banana boat")
"""),
    Client("llm", ("llm",), "a prompt from the command line", f"""
import os, pathlib, subprocess, sys, tempfile
d = tempfile.mkdtemp()
pathlib.Path(d, "extra-openai-models.yaml").write_text(
    f"- model_id: m\\n  model_name: {{MODEL}}\\n  api_base: {{URL}}/v1\\n")
e = dict(os.environ, LLM_USER_PATH=d, OPENAI_API_KEY="none")
r = subprocess.run([sys.executable, "-m", "llm", "-m", "m", "{_ASK}"], env=e, capture_output=True, text=True,
                   stdin=subprocess.DEVNULL)
assert "Paris" in r.stdout, r.stderr
"""),
)  # fmt: skip


def rows(names: list[str], envs: Path) -> Iterator[str]:
    """A line of the table for each client."""
    chosen = [client for client in CLIENTS if not names or any(client.name.startswith(name) for name in names)]
    with serving.serve(envs / "cache", "--memory", "300MiB", "--ctx", 2048) as server:
        for client in chosen:
            python = _environment(envs, client.packages)
            if python is None:
                yield f"| {client.name} | {client.what} | cannot be installed here |"
                continue
            code = f"URL, MODEL = {server.url!r}, {BUILTIN!r}\n{client.code}"
            done = subprocess.run(
                [python, "-c", code], capture_output=True, text=True, timeout=_LONGEST_S, check=False, cwd=envs
            )
            said = (done.stderr.strip().splitlines() or ["?"])[-1]
            yield f"| {client.name} {_version(python, client.packages)} | {client.what} | " + (
                "passes |" if done.returncode == 0 else f"fails: {said[:100]} |"
            )


def _environment(envs: Path, packages: tuple[str, ...]) -> Path | None:
    """The Python of an environment that has the packages."""
    folder = envs / "-".join(name.partition("[")[0] for name in packages)
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=False)
        if done.returncode:
            return None
        (folder / "made").touch()
    return python


def _version(python: Path, packages: tuple[str, ...]) -> str:
    name = packages[0].partition("[")[0]
    ask = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    given = os.environ.get("EDGEMOE_CLIENT_ENVS")
    envs = Path(given or tempfile.mkdtemp(prefix="edgemoe-clients-"))
    envs.mkdir(parents=True, exist_ok=True)
    print("| client | what was run | result |\n|---|---|---|")
    for row in rows(sys.argv[1:], envs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
