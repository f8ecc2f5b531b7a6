"""Real clients against a real server: a table for docs/server.md of what was run with each, and how it ended.

    .venv/bin/python tests/client_matrix.py [NAME...]     # all; needs PyPI, npm, node, an hour and 3 GB of disk

Each client is installed into an environment of its own below $EDGEMOE_CLIENT_ENVS (default: a temporary folder) and
asked as its documentation shows. Not collected by pytest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import serving

BUILTIN = "smolmoe-135m"
_LONGEST_S = 900


@dataclass(frozen=True)
class Client:
    """packages: what pip (or npm) installs. what: in words. code: ends with 0 when all of it is right.

    The code is Python's, or JavaScript's; URL and MODEL are the server's.
    """

    name: str
    packages: tuple[str, ...]
    what: str
    code: str
    npm: bool = False


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
    Client("llama-index", ("llama-index-llms-openai-like",), "complete, chat, stream", f"""
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
c = OpenAILike(model=MODEL, api_base=URL + "/v1", api_key="none", is_chat_model=True, max_tokens=30, timeout=600)
m = [ChatMessage(role="user", content="{_ASK}")]
assert "Paris" in c.complete("{_ASK}").text
assert "Paris" in c.chat(m).message.content
assert "Paris" in "".join(p.delta or "" for p in c.stream_chat(m))
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
    Client("aider", ("aider-chat",), "a question from the command line", f"""
import os, pathlib, subprocess, sys, tempfile
d = tempfile.mkdtemp()
e = dict(os.environ, HOME=d, OPENAI_API_BASE=URL + "/v1", OPENAI_API_KEY="none")
aider = pathlib.Path(sys.executable).with_name("aider")
r = subprocess.run([aider, "--model", "openai/" + MODEL, "--message", "{_ASK}", "--chat-mode", "ask",
    "--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings", "--no-pretty", "--analytics-disable",
    "--timeout", "600"], env=e, cwd=d, capture_output=True, text=True, stdin=subprocess.DEVNULL)
assert "capital" in r.stdout and "received" in r.stdout, r.stdout + r.stderr
"""),
    Client("openai, node", ("openai",), "chat, stream, tool call, responses", f"""
import OpenAI from "openai"; import assert from "node:assert";
const c = new OpenAI({{baseURL: URL + "/v1", apiKey: "none", timeout: 6e5}});
const messages = [{{role: "user", content: "{_ASK}"}}];
const r = await c.chat.completions.create({{model: MODEL, messages, max_tokens: 20}});
assert(r.choices[0].message.content.includes("Paris"));
let text = "";
for await (const p of await c.chat.completions.create({{model: MODEL, messages, max_tokens: 20, stream: true}}))
    text += p.choices[0]?.delta?.content ?? "";
assert(text.includes("Paris"));
const parameters = {{type: "object", properties: {{n: {{enum: [1, 2]}}}}, required: ["n"]}};
const t = c.chat.completions.stream({{model: MODEL, messages, tool_choice: "required", parallel_tool_calls: false,
    tools: [{{type: "function", function: {{name: "pick", parameters}}}}]}});
const call = (await t.finalChatCompletion()).choices[0].message.tool_calls[0];
assert([1, 2].includes(JSON.parse(call.function.arguments).n));
const said = await c.responses.create({{model: MODEL, input: "{_ASK}", max_output_tokens: 20}});
assert(said.output_text.includes("Paris"));
""", npm=True),
    Client("Vercel AI SDK", ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"),
           "text, stream, object, tool; over responses and chat", f"""
import assert from "node:assert"; import {{z}} from "zod";
import {{generateText, streamText, generateObject, tool}} from "ai";
import {{createOpenAI}} from "@ai-sdk/openai"; import {{createOpenAICompatible}} from "@ai-sdk/openai-compatible";
const openai = createOpenAI({{baseURL: URL + "/v1", apiKey: "none"}});
const other = createOpenAICompatible({{name: "edgemoe", baseURL: URL + "/v1", supportsStructuredOutputs: true}});
for (const model of [openai(MODEL), openai.chat(MODEL), other(MODEL)]) {{
    const asked = {{model, prompt: "{_ASK}", maxOutputTokens: 20, maxRetries: 0}};
    assert((await generateText(asked)).text.includes("Paris"));
    let text = ""; for await (const p of streamText(asked).textStream) text += p;
    assert(text.includes("Paris"));
    const schema = z.object({{size: z.enum(["small", "large"])}});
    assert((await generateObject({{model, schema, prompt: "An elephant.", maxRetries: 0}})).object.size);
    const pick = tool({{inputSchema: schema}});
    const more = {{tools: {{pick}}, toolChoice: "required", maxRetries: 0}};
    const called = streamText({{model, prompt: "An elephant.", ...more}});
    assert((await called.toolCalls)[0].input.size);
}}
""", npm=True),
    Client("Codex CLI", ("@openai/codex",), "`codex exec` with a question", f"""
import assert from "node:assert"; import fs from "node:fs"; import os from "node:os"; import path from "node:path";
import {{spawnSync}} from "node:child_process";
const home = fs.mkdtempSync(path.join(os.tmpdir(), "codex-"));
fs.writeFileSync(path.join(home, "brief.md"), "Be brief.");
fs.writeFileSync(path.join(home, "config.toml"), `model = "${{MODEL}}"
model_provider = "local"
model_instructions_file = "${{home}}/brief.md"
[model_providers.local]
name = "local"
base_url = "${{URL}}/v1"
wire_api = "responses"
stream_idle_timeout_ms = 600000
`);
const done = spawnSync("node_modules/.bin/codex", ["exec", "--skip-git-repo-check", "-s", "read-only", "{_ASK}"],
    {{env: {{...process.env, CODEX_HOME: home}}, stdio: ["ignore", "pipe", "pipe"], encoding: "utf8"}});
fs.rmSync(home, {{recursive: true}});
assert(done.status === 0 && done.stdout.includes("capital"), done.stdout + done.stderr);
""", npm=True),
)  # fmt: skip


def rows(names: list[str], envs: Path) -> Iterator[str]:
    """A line of the table for each client."""
    chosen = [client for client in CLIENTS if not names or any(client.name.startswith(name) for name in names)]
    with serving.serve(envs / "cache", "--memory", "700MiB", "--ctx", 8192) as server:
        for client in chosen:
            folder = _environment(envs, client)
            if folder is None:
                yield f"| {client.name} | {client.what} | cannot be installed here |"
                continue
            try:
                command = _command(folder, client, server.url)
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_LONGEST_S, check=False, cwd=folder
                )
                said = (done.stderr.strip().splitlines() or ["?"])[-1]
                result = "passes" if done.returncode == 0 else f"fails: {said[:100]}"
            except subprocess.TimeoutExpired:
                result = f"fails: not done after {_LONGEST_S} s"
            yield f"| {client.name} {_version(folder, client)} | {client.what} | {result} |"


def _command(folder: Path, client: Client, url: str) -> list[str]:
    if client.npm:
        code = f"const URL = {url!r}, MODEL = {BUILTIN!r};\n{client.code}"
        return ["node", "--input-type=module", "-e", code]
    return [str(folder / "bin" / "python"), "-c", f"URL, MODEL = {url!r}, {BUILTIN!r}\n{client.code}"]


def _environment(envs: Path, client: Client) -> Path | None:
    """A folder that has the packages: a virtual environment, or one with node_modules."""
    names = "-".join(name.partition("[")[0].replace("/", "-") for name in client.packages)
    folder = envs / f"{'npm' if client.npm else 'pip'}-{names}"
    if (folder / "made").exists():
        return folder
    if client.npm:
        if not shutil.which("npm"):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        install = ["npm", "install", "--no-audit", "--no-fund", "--silent", *client.packages]
    else:
        venv.create(folder, with_pip=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *client.packages]
    if subprocess.run(install, check=False, cwd=folder).returncode:
        return None
    (folder / "made").touch()
    return folder


def _version(folder: Path, client: Client) -> str:
    name = client.packages[0].partition("[")[0]
    if client.npm:
        return str(json.loads((folder / "node_modules" / name / "package.json").read_text())["version"])
    ask = f"import importlib.metadata as m; print(m.version({name!r}))"
    python = folder / "bin" / "python"
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
