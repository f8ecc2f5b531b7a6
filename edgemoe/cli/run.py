"""`edgemoe run`: one prompt, one answer on stdout."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..files import arrives
from ..places import BUILTIN
from .generate import find, load, stream, told
from .options import ModelArgument, SamplingOptions, SeeingOptions, VerboseOption
from .pictures import ImageOption, check_encoder, found, with_pictures
from .status import note, status_line

_WAIT_S = 2.0  # after that a person wants to know what is waited for


def run(
    engine: SeeingOptions,
    sampling: SamplingOptions,
    model: ModelArgument = BUILTIN,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            show_default=False,
            help="The prompt; text that is piped in comes after it; `-` reads stdin alone.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            show_default=False,
            help="Read the prompt from a file; text that is piped in comes after it.",
        ),
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="System prompt.")] = "",
    image: ImageOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Answer one prompt and exit.

    Without -p and -f the prompt is read from stdin. With one of them, text that is piped in follows it:
    `edgemoe run -p "Summarize this:" < notes.txt`. Give `< /dev/null` where stdin is no text for the prompt.
    """
    if raw and system:
        raise UsageError("`--raw` uses no chat template, so `--system` has no place", hint="leave out one of the two")
    if raw and image:
        raise UsageError("`--raw` uses no chat template, so `--image` has no place", hint="leave out one of the two")
    said, pictures = sampling.said(), found(image or ())
    text = _prompt(prompt, file)
    path = find(model, verbose=verbose)
    if pictures:
        check_encoder(path, engine.mmproj)
    else:  # nothing is planned for what is not asked for
        engine = dataclasses.replace(engine, mmproj="off")
    with load(path, engine, verbose=verbose) as opened:
        before = opened.stats()
        limits: dict[str, Any] = {"max_tokens": sampling.max_tokens, "sampling": opened.model.recommended.but(**said)}
        if raw:
            pieces = opened.generate(text, **limits)
        else:
            messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": with_pictures(text, pictures)})
            pieces = told(opened.chat_pieces(messages, **limits))
        _, interrupted = stream(pieces, opened.cancel)
        print(flush=True)
        if verbose:
            note(status_line(opened.stats().since(before)))
    if interrupted:
        raise typer.Exit(130)


def _prompt(prompt: str | None, file: str | None) -> str:
    """What -p or -f says, then what is piped in."""
    if prompt is not None and file is not None:
        raise UsageError("`-p` and `-f` both give a prompt", hint="leave out one of the two")
    parts = []
    if file not in (None, "-"):
        parts.append(_read(Path(str(file)).expanduser()))
    elif prompt not in (None, "-"):
        parts.append(str(prompt))
        if not parts[0].strip():
            raise UsageError("the prompt is empty", hint="give `-p TEXT` or `-f FILE`, or pipe text in")
    elif sys.stdin.isatty() and prompt is None and file is None:
        raise UsageError("there is no prompt", hint="give `-p TEXT` or `-f FILE`, or pipe text in; to talk, use `chat`")
    if not parts or not sys.stdin.isatty():
        parts.append(_piped(expected=not parts))
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise UsageError("the prompt is empty", hint="give `-p TEXT` or `-f FILE`, or pipe text in")
    return text


def _piped(*, expected: bool) -> str:
    """All of stdin. expected: nothing else gives a prompt, so that waiting for it surprises nobody."""
    if not expected and not arrives(sys.stdin.buffer, _WAIT_S):
        note("waiting for the end of stdin, which is open: it becomes part of the prompt (`< /dev/null` for none)")
    return _text(sys.stdin.buffer.read(), "stdin")


def _read(path: Path) -> str:
    try:
        return _text(path.read_bytes(), f"`{path}`")
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}", hint="give a text file") from None


def _text(raw: bytes, where: str) -> str:
    """The same text from a file and from a pipe: lines end as here, whatever system they come from."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not UTF-8 text", hint="give a text file") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
