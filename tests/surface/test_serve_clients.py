"""The clients that people have, unchanged, against a trained model that chats: openai, LangChain, llm."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import serving
from console import needs_library
from serving import Served

openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.slow, needs_library]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
        },
    },
}
# A prompt that is in the engine in part rounds otherwise than one computed at once: where answers are compared, anew.
ANEW = {"cache_prompt": False}
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(smolmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cache = tmp_path_factory.mktemp("cache")
    with serving.serve(cache, f"smolmoe={smolmoe}", "--memory", "300MiB", "--ctx", 1024, "--threads", 1) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["smolmoe"]
    assert client.models.retrieve("smolmoe").object == "model"


def test_an_answer_that_is_right(client: Any) -> None:
    found = client.chat.completions.create(model="smolmoe", messages=FRANCE, max_completion_tokens=20, temperature=0)
    assert "Paris" in found.choices[0].message.content
    assert found.usage.completion_tokens <= 20


def test_streaming(client: Any) -> None:
    whole = client.chat.completions.create(model="smolmoe", messages=FRANCE, max_tokens=80, extra_body=ANEW)
    text, usage = "", None
    with client.chat.completions.create(
        model="smolmoe", messages=FRANCE, max_tokens=80, stream=True, stream_options={"include_usage": True},
        extra_body=ANEW,
    ) as stream:  # fmt: skip
        for chunk in stream:
            usage = chunk.usage or usage
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content
    assert usage is not None and usage.completion_tokens == whole.usage.completion_tokens
    with client.chat.completions.stream(model="smolmoe", messages=FRANCE, max_tokens=80, extra_body=ANEW) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == text
        assert stream.get_final_completion().choices[0].message.content == text


def test_logprobs(client: Any) -> None:
    found = client.chat.completions.create(
        model="smolmoe", messages=FRANCE, max_tokens=5, logprobs=True, top_logprobs=2
    )
    content = found.choices[0].logprobs.content
    assert "".join(one.token for one in content) == found.choices[0].message.content
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in content)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_tools_that_must_be_called(client: Any, choice: Any) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
    asked: Any = {
        "model": "smolmoe", "messages": messages, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 120,
        "parallel_tool_calls": False, "extra_body": ANEW,
    }  # fmt: skip
    found = client.chat.completions.create(**asked).choices[0]
    assert found.finish_reason == "tool_calls"
    (call,) = found.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"}
    with client.chat.completions.stream(**asked) as stream:
        last = stream.get_final_completion().choices[0].message
    assert json.loads(last.tool_calls[0].function.arguments) == arguments
    # The result goes back, and the model goes on.
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}
    again = client.chat.completions.create(
        model="smolmoe", messages=[*messages, found.message, result], tools=[WEATHER], max_tokens=30
    )
    assert again.choices[0].message.content or again.choices[0].message.tool_calls


def test_tools_that_may_be_called(client: Any) -> None:
    found = client.chat.completions.create(model="smolmoe", messages=FRANCE, tools=[WEATHER], max_tokens=60).choices[0]
    for call in found.message.tool_calls or []:
        assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) >= {"city", "unit"}
    assert found.message.tool_calls or found.message.content


def test_a_json_schema(client: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    short = Annotated[str, pydantic.Field(max_length=20)]  # a small model finds no end by itself
    City = pydantic.create_model("City", name=(short, ...), country=(short, ...), large=(bool, ...))
    parsed = client.chat.completions.parse(
        model="smolmoe",
        messages=[{"role": "user", "content": "Describe the city of Paris as JSON."}],
        response_format=City,
        max_tokens=100,
    )
    city = parsed.choices[0].message.parsed
    assert city.name and city.country and isinstance(city.large, bool)
    found = client.chat.completions.create(
        model="smolmoe",
        messages=FRANCE,
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0.7,
        seed=3,
    ).choices[0]
    if found.finish_reason == "stop":
        assert isinstance(json.loads(found.message.content), dict)


def test_completions(client: Any) -> None:
    prompt = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    asked: Any = {"model": "smolmoe", **prompt, "extra_body": ANEW}
    text = client.completions.create(**asked).choices[0].text
    assert len(text.split()) > 3
    found = client.completions.create(**asked, stop=[text[8:12]]).choices[0]
    assert found.finish_reason == "stop" and found.text == text[: text.index(text[8:12])]
    pieces = client.completions.create(**asked, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.models.retrieve("gpt-4o")  # in an answer any name is the one model's
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="smolmoe", messages=FRANCE, temperature=9)
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="smolmoe", input="x")


# ---------------------------------------------------------------- others

LANGCHAIN = """
import sys
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

class City(BaseModel):
    name: str
    large: bool

def multiply(a: int, b: int) -> int:
    "Multiply two numbers."
    return a * b

model = ChatOpenAI(model="smolmoe", base_url=sys.argv[1], api_key="none", max_tokens=100)
print("Paris" in model.invoke("What is the capital of France?").content)
print("Paris" in "".join(chunk.content for chunk in model.stream("What is the capital of France?")))
print(isinstance(model.with_structured_output(City).invoke("Describe Paris as JSON."), City))
calls = model.bind_tools([multiply], tool_choice="multiply").invoke("What is 6 times 7?").tool_calls
print(calls[0]["name"] == "multiply" and {"a", "b"} == set(calls[0]["args"]))
"""


def interpreter(*packages: str) -> str:
    """A Python that has the packages: this one, or that of $EDGEMOE_CLIENTS (they bring 150 MB). Else skips."""
    if all(importlib.util.find_spec(package) for package in packages):
        return sys.executable
    other = os.environ.get("EDGEMOE_CLIENTS", "")
    if not other:
        pytest.skip(f"{', '.join(packages)}: not installed; EDGEMOE_CLIENTS=PYTHON names one that has them")
    return other


def test_langchain(server: Served) -> None:
    python = interpreter("langchain_openai")
    command = [python, "-c", LANGCHAIN, f"{server.url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split() == ["True"] * 4, done.stdout + done.stderr


def test_llm(server: Served, tmp_path: Path) -> None:
    python = interpreter("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: smolmoe\n  api_base: {server.url}/v1\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    for extra in ([], ["--no-stream"]):
        command = [
            python,
            "-m",
            "llm",
            "-m",
            "local",
            "-o",
            "max_tokens",
            "20",
            *extra,
            "What is the capital of France?",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert "Paris" in done.stdout, done.stdout + done.stderr
