"""llama.cpp's own endpoints: `/completion`, `/tokenize`, `/detokenize`, `/apply-template`, `/props` and `/slots`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..runtime.engine.engine import Engine
from . import prompts, sampled
from .answers import completion_work
from .catalog import Entry
from .failures import invalid
from .flow import Asked, Flow
from .infill import Middle
from .native_shape import NativeShape
from .prompts import Defaults
from .protocol import MAX_TOP_LOGPROBS, ChatRequest, CompletionRequest, Index, Prompt, Sampled
from .tools import offered
from .wire import json_response


class NativeRequest(Sampled, kw_only=True):
    """n_probs: of the likeliest tokens at each place. return_tokens: an answer's tokens beside its text."""

    prompt: Prompt
    n_probs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_tokens: bool | None = None


class ExtraFile(Struct):
    text: str
    filename: str = "tmp"


class InfillRequest(Sampled, kw_only=True):
    """input_extra: other files that help. prompt: the first words of what is filled in. The rest as `NativeRequest`."""

    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] | None = None
    prompt: str | None = None
    n_probs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_tokens: bool | None = None


class TokenizeRequest(Struct, kw_only=True):
    """add_special: begin with the model's own first token. parse_special: read "<|im_end|>" as one token."""

    content: str
    model: str | None = ""
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    tokens: Annotated[list[Index], Meta(max_length=2**20)]
    model: str | None = ""


class Native:
    def __init__(self, flow: Flow, defaults: Defaults) -> None:
        self._flow = flow
        self._defaults = defaults

    async def completion(self, request: Request) -> Response:
        asked = await self._flow.asked(request, NativeRequest)
        prompt = asked.value.prompt
        if not isinstance(prompt, str) and any(not isinstance(one, int) for one in prompt):
            raise invalid("`prompt` is one text or the tokens of one; several are for `/v1/completions`", "prompt")
        return await self._answered(request, asked)

    async def infill(self, request: Request) -> Response:
        return await self._answered(request, await self._flow.asked(request, InfillRequest))

    async def _answered(self, request: Request, asked: Asked) -> Response:
        value: NativeRequest | InfillRequest = asked.value
        model = self._flow.worker.catalog.named(value.model)
        stream, progress = bool(value.stream), bool(value.return_progress)
        shape = NativeShape(model, with_tokens=bool(value.return_tokens), with_probs=bool(value.n_probs))
        del value
        work = self._flow.later(asked, lambda one: completion_work(_completion(one), self._defaults, _middle(one)))
        return await self._flow.answer(
            request, model, work, shape, stream=stream, progress=progress, headers=asked.headers
        )

    async def tokenize(self, request: Request) -> Response:
        def build(one: TokenizeRequest) -> Any:
            def work(engine: Engine) -> Iterator[Any]:
                special = one.parse_special is not False
                tokens = engine.tokens(one.content, add_special=bool(one.add_special), parse_special=special)
                yield [_piece(engine, token) for token in tokens] if one.with_pieces else tokens

            return work

        tokens, headers = await self._flow.result(request, TokenizeRequest, build)
        return json_response({"tokens": tokens}, 200, headers)

    async def detokenize(self, request: Request) -> Response:
        def build(one: DetokenizeRequest) -> Any:
            def work(engine: Engine) -> Iterator[Any]:
                yield engine.detokenize(prompts.tokens_of(engine, one.tokens, "tokens"), special=True)

            return work

        text, headers = await self._flow.result(request, DetokenizeRequest, build)
        return json_response({"content": text}, 200, headers)

    async def apply_template(self, request: Request) -> Response:
        def build(one: ChatRequest) -> Any:
            chat, begun = sampled.continued(one)
            shown = offered(chat)

            def work(engine: Engine) -> Iterator[Any]:
                # The tokens' own text: what the model is really shown.
                yield engine.detokenize(prompts.shown_tokens(engine, chat, shown, begun), special=True)

            return work

        text, headers = await self._flow.result(request, ChatRequest, build)
        return json_response({"prompt": text}, 200, headers)

    async def props(self, request: Request) -> Response:
        catalog = self._flow.worker.catalog
        name, engine = catalog.current or (catalog.first, None)
        entry = catalog.entries[name]
        return json_response({
            "default_generation_settings": {"n_ctx": entry.n_ctx, "params": self._params(entry)},
            "total_slots": self._flow.worker.n_seat,
            "model_alias": name,
            "model_path": str(entry.path),
            "chat_template": (engine.model.chat_template if engine else None) or "",
            "modalities": {"vision": entry.reads_pictures, "audio": False},
            "build_info": f"edgemoe {__version__}",
            "is_sleeping": False,
        })  # fmt: skip

    async def slots(self, request: Request) -> Response:
        worker = self._flow.worker
        name, _ = worker.catalog.current or (worker.catalog.first, None)
        entry, busy = worker.catalog.entries[name], worker.busy
        return json_response([
            {"id": seat, "n_ctx": entry.n_ctx, "speculative": False, "is_processing": seat in busy,
             "n_waiting": worker.n_waiting, "params": self._params(entry)}
            for seat in range(worker.n_seat)
        ])  # fmt: skip

    def _params(self, entry: Entry) -> dict[str, Any]:
        """What a request gets that names nothing."""
        chosen = entry.recommended.but(**self._defaults.said)
        names = (
            "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
            "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier", "xtc_probability",
            "xtc_threshold",
        )  # fmt: skip
        found = {name: getattr(chosen, name) for name in names}
        return {**found, "temperature": chosen.temp, "seed": chosen.seed, "n_predict": self._defaults.max_tokens or -1}


def _completion(one: NativeRequest | InfillRequest) -> CompletionRequest:
    """As `/v1/completions` takes it: but without a limit, where none is said."""
    shared = {name: getattr(one, name) for name in Sampled.__struct_fields__}
    given = one.n_predict if one.n_predict is not None else one.max_tokens
    shared |= {"n_predict": -1 if given is None else given, "max_tokens": None}
    return CompletionRequest(prompt=one.prompt or "", logprobs=one.n_probs or None, **shared)


def _middle(one: NativeRequest | InfillRequest) -> Middle | None:
    if isinstance(one, NativeRequest):
        return None
    extra = [(file.filename, file.text) for file in one.input_extra or ()]
    return Middle(one.input_prefix, one.input_suffix, extra, one.prompt or "")


def _piece(engine: Engine, token: int) -> dict[str, Any]:
    raw = engine.piece(token)
    try:
        return {"id": token, "piece": raw.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(raw)}
