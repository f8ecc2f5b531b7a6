"""OpenAI's requests with llama.cpp's additions: types, ranges and defaults, checked as they are decoded.

The OpenAPI document is made from these classes. What a request may carry without effect here is listed in each class
under that heading. What is not known is told apart by `tolerance`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .failures import ApiError, of_decoding

MAX_CHOICES = 8
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

Seed: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop: TypeAlias = str | Annotated[list[str], Meta(max_length=MAX_STOPS)]
Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=2)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Limit: TypeAlias = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
"""Tokens of an answer; -1: as many as come. 0 is for completions: nothing but the prompt is computed."""
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Amount: TypeAlias = Annotated[float, Meta(ge=0, le=1e6)]
Index: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
# A text, several, the tokens of one, or the tokens of several: `prompts.texts_or_tokens` sorts that out.
Prompt: TypeAlias = str | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=2**20)]
Bias: TypeAlias = dict[str, Annotated[float, Meta(ge=-100, le=100)]]


class StreamOptions(Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(Struct, kw_only=True):
    """What chat and completion requests share.

    From top_k on they are llama.cpp's additions to OpenAI's parameters: see `Sampling`; repetition_penalty is another
    name of repeat_penalty, n_predict one of max_tokens. cache_prompt: false computes the whole prompt anew, so that the
    answer does not depend on what came before in the last bit. json_schema: the answer is JSON of it, as with
    `response_format`. timings_per_token: with each piece of a stream. return_progress: tell how much of a prompt is
    computed before a stream's first token.
    """

    model: str | None = ""
    temperature: Temperature | None = None
    top_p: Probability | None = None
    n: Choices | None = None
    max_tokens: Limit | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, lt=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    cache_prompt: bool | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: Limit | None = None
    n_predict: Limit | None = None
    typical_p: Probability | None = None
    top_n_sigma: Annotated[float, Meta(ge=-1, le=1e6)] | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    dry_multiplier: Amount | None = None
    dry_base: Amount | None = None
    dry_allowed_length: Index | None = None
    dry_penalty_last_n: Limit | None = None
    dry_sequence_breakers: Annotated[list[str], Meta(max_length=64)] | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Amount | None = None
    mirostat_eta: Amount | None = None
    dynatemp_range: Amount | None = None
    dynatemp_exponent: Amount | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[Index], Meta(max_length=256)] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    # without effect here
    user: str | None = None


class ImageUrl(Struct):
    """A picture: its `data:` URL. Others are not fetched."""

    url: str
    detail: str | None = None  # without effect here


class Part(Struct):
    """A piece of a message: text, or in a user's message a picture."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "refusal", "input_text", "image_url"]})]
    text: str | None = None
    image_url: ImageUrl | str | None = None


class FunctionCall(Struct):
    name: str
    arguments: str | None = "{}"


class ToolCall(Struct):
    function: FunctionCall
    id: str | None = ""
    type: Literal["function"] | None = "function"


class Message(Struct):
    """Unknown keys are left out: clients send back what other servers gave them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(Struct):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(Struct):
    name: str | None = ""
    description: str | None = None
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | None = None


class ResponseFormat(Struct):
    """schema: as llama-server takes it beside `json_object`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | UnsetType | None = UNSET


class ChatRequest(Sampled, kw_only=True):
    """continue_final_message: whether an assistant's message at the end is gone on with; not said: it is."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    # for the chat template: variables of its own, and the two that most of them know
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    # without effect here
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(Sampled, kw_only=True):
    prompt: Prompt
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES, description="the same as `n`")] | None = None
    suffix: Annotated[str, Meta(description="what comes after the answer, of models that fill in")] | None = None


class EmbeddingRequest(Struct, kw_only=True):
    model: str | None = ""
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None  # without effect here


class BudgetRequest(Struct, forbid_unknown_fields=True):
    """memory: as `--memory` takes it: "6GiB", "75%", "auto", or bytes."""

    memory: str | Count


def decode(body: bytes, kind: type[msgspec.Struct]) -> Any:
    """A request. Raises ApiError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise of_decoding(error) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON that can be read: {type(error).__name__}") from None
