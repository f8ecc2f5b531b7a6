"""`edgemoe serve`: an OpenAI-compatible server and its page."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from ..errors import NativeError
from ..places import BUILTIN
from ..units import parse_size
from .options import ParallelOption, SamplingOptions, SeeingOptions
from .status import note

ModelArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        show_default="the built-in model",
        help="GGUF files or names that `edgemoe models` lists; `NAME=MODEL` serves one under a name of your own. "
        "One is in memory at a time.",
    ),
]


def serve(
    engine: SeeingOptions,
    sampling: SamplingOptions,
    models: ModelArguments = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; other addresses than loopback need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes any that is free.")] = 8080,
    api_key: Annotated[
        str,
        typer.Option(
            metavar="KEY", envvar="EDGEMOE_API_KEY", show_default=False, help="What clients must send to be answered."
        ),
    ] = "",
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            show_default="none",
            help="A site whose pages may use this server, like `https://chat.example`, `app://obsidian.md` or "
            "`http://localhost:*`; repeatable.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="none",
            help="A name that requests may call this server by, like that of a proxy before it; repeatable.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option(metavar="N", help="Requests that may wait; more are refused.")] = 32,
    parallel: ParallelOption = 1,
    remember: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", help="Of the budget, at most, for conversations that others took the place of; 0: none."
        ),
    ] = 6.0,
    keep_states: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="On disk, at most, for conversations: what memory has no room for, and all when the server ends. "
            "The next start takes them up; 0: none.",
        ),
    ] = "1GiB",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests with parameters that are not known, not ignore these.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for each request on stderr.")] = False,
) -> None:
    """Serve models to OpenAI clients, with a page to look at. Sampling options are for requests that name none."""
    said = sampling.said()
    setup = engine.setup().but(parallel=parallel)
    libraries()
    from ..serve.prompts import Defaults
    from ..serve.run import Settings, serve

    settings = Settings(
        host, port, api_key, tuple(cors_origin or ()), queue, tuple(allow_host or ()), strict, remember / 100,
        parse_size(keep_states),
    )  # fmt: skip
    log = note if verbose else None
    serve(models or [BUILTIN], setup, settings, Defaults(said, sampling.max_tokens), talk=note, log=log)


def libraries() -> None:
    """Load the server with the libraries that it needs: they are part of its process. Raises NativeError."""
    try:
        importlib.import_module("edgemoe.serve.run")
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "msgspec"):
            raise
        raise NativeError(
            f"`edgemoe serve` needs the package `{error.name}`, which is not installed",
            hint=f"`pip install {error.name}` in this Python environment",
        ) from None
