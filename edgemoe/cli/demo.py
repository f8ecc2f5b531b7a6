"""`edgemoe demo`: the same prompt with every expert in memory and with a third of them, side by side."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..errors import EdgeMoEError
from ..places import BUILTIN
from ..printable import plain_lines, shown
from ..units import format_size
from .generate import find
from .options import JsonOption, ModelArgument, ThreadsOption, at_least

_PROMPT = "What is the capital of France?"
_WIDTH = 100  # of both columns where no terminal says
_TITLES = ("every expert in memory", "a third of them")


def demo(
    model: ModelArgument = BUILTIN,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What both answer.")] = _PROMPT,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", help="Longest answer.")] = 64,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Answer one prompt with every expert in memory, then with a third of them: the same words, in less memory."""
    at_least("--max-tokens", max_tokens, 1)
    at_least("--threads", threads, 1)
    path = find(model)
    from ..bench.pair import answer_twice

    with _columns(not json_output) as on_piece:
        sides = answer_twice(path, prompt, max_tokens=max_tokens, threads=threads, on_piece=on_piece)
    equal = sides[0]["text"] == sides[1]["text"]
    if json_output:
        print(json.dumps({"prompt": prompt, "equal": equal, "resident": sides[0], "streamed": sides[1]}, indent=2))
    else:
        print("\n".join(report(plain_lines(prompt), *sides)))
    if not equal:
        raise EdgeMoEError(
            "the two texts differ, and they must not", hint="this is a bug: please report it with the two texts"
        )


@contextmanager
def _columns(wanted: bool) -> Iterator[Callable[[int, str], None]]:
    """Inside, the callable receives the pieces; at a terminal both columns fill as they come."""
    if not (wanted and sys.stdout.isatty()):
        yield lambda side, piece: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = ["", ""]
    with Live(console=Console(highlight=False, markup=False), auto_refresh=False, transient=True) as live:

        def show(side: int, piece: str) -> None:
            texts[side] += shown(piece)
            table = Table(*_TITLES, box=None, padding=(0, 2, 0, 0), expand=True)
            table.add_row(*(Text(text or "…") for text in texts))
            live.update(table, refresh=True)

        live.update(Text("loading both, one after the other …"), refresh=True)
        yield show


def report(prompt: str, resident: dict[str, Any], streamed: dict[str, Any]) -> list[str]:
    """Both answers in columns, what they took, and whether they are the same."""
    lines = [f"> {prompt}", ""]
    sides = (resident, streamed)
    lines += _beside(*_TITLES)
    terminal = sys.stdout.isatty()
    lines += _beside(*(shown(side["text"].strip()) if terminal else side["text"].strip() for side in sides))
    lines.append("")
    for cell in (_experts, _memory, _speed, _reads):
        lines += _beside(*(cell(side) for side in sides))
    lines.append("")
    if resident["text"] == streamed["text"]:
        saved = 1 - streamed["peak_bytes"] / resident["peak_bytes"]
        lines.append(f"The texts are equal, byte for byte, in {saved:.0%} less memory.")
    else:
        lines.append("THE TEXTS DIFFER.")
    return lines


def _beside(left: str, right: str) -> list[str]:
    """Two texts in columns of half the width."""
    half = _WIDTH // 2 - 2
    columns = [
        [row for line in text.split("\n") for row in textwrap.wrap(line, half) or [""]] for text in (left, right)
    ]
    height = max(map(len, columns))
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return [f"{one:<{half}}    {other}".rstrip() for one, other in rows]


def _experts(side: dict[str, Any]) -> str:
    share = side["n_slot"] / side["n_expert_total"]
    return f"room for {side['n_slot']:,} of {side['n_expert_total']:,} experts ({share:.0%})"


def _memory(side: dict[str, Any]) -> str:
    return f"peak memory {format_size(side['peak_bytes'])}, budget {format_size(side['budget_bytes'])}"


def _speed(side: dict[str, Any]) -> str:
    return f"{side['decode_tok_s']:.1f} tok/s over {side['n_token']:,} tokens"


def _reads(side: dict[str, Any]) -> str:
    read = side["read_bytes"] / max(1, side["n_token"])
    return f"{side['hit_rate']:.0%} of expert uses were in memory, {format_size(read)} read a token"
