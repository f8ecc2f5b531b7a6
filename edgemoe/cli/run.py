"""`edgemoe run`: one prompt, one answer on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..places import BUILTIN
from .generate import load, stream, told
from .options import EngineOptions, ModelArgument, SamplingOptions, VerboseOption
from .status import note, status_line


def run(
    engine: EngineOptions,
    sampling: SamplingOptions,
    model: ModelArgument = BUILTIN,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", show_default=False, help="The prompt; `-` reads stdin."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE", show_default=False, help="Read the prompt from a file."),
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="System prompt.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Answer one prompt and exit. Without -p and -f the prompt is read from stdin."""
    if raw and system:
        raise UsageError("`--raw` uses no chat template, so `--system` has no place", hint="leave out one of the two")
    chosen = sampling.sampling()
    text = _prompt(prompt, file)
    with load(model, engine, verbose=verbose) as opened:
        before = opened.stats()
        limits = {"max_tokens": sampling.max_tokens, "sampling": chosen}
        if raw:
            pieces = opened.generate(text, **limits)
        else:
            messages = [{"role": "system", "content": system}] if system else []
            pieces = told(opened.chat_pieces([*messages, {"role": "user", "content": text}], **limits))
        _, interrupted = stream(pieces, opened.cancel)
        print(flush=True)
        if verbose:
            note(status_line(opened.stats().since(before)))
    if interrupted:
        raise typer.Exit(130)


def _prompt(prompt: str | None, file: str | None) -> str:
    if prompt is not None and file is not None:
        raise UsageError("`-p` and `-f` both give a prompt", hint="leave out one of the two")
    if file is not None and file != "-":
        text = _read(file)
    elif prompt is not None and prompt != "-":
        text = prompt
    elif sys.stdin.isatty() and prompt is None and file is None:
        raise UsageError("there is no prompt", hint="give `-p TEXT` or `-f FILE`, or pipe text in; to talk, use `chat`")
    else:
        text = sys.stdin.buffer.read().decode("utf-8", "replace").rstrip("\r\n")
    if not text.strip():
        raise UsageError("the prompt is empty", hint="give `-p TEXT` or `-f FILE`, or pipe text in")
    return text


def _read(file: str) -> str:
    path = Path(file).expanduser()
    try:
        return path.read_text("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"`{path}` is not UTF-8 text", hint="give a text file") from None
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}", hint="give a text file") from None
