"""`/stats live`: the answer with a table under it that is redrawn while tokens come."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..printable import shown
from ..units import MIB
from .panel import Snapshot, level, look, rows

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine

RICH_BYTES = 20 * MIB  # what rich takes of a process, with room to spare: the expert cache gives it up
_REDRAW_S = 0.15
_COLOURS = ("grey35", "blue", "blue", "cyan", "cyan", "green", "green", "yellow", "bright_yellow")
_PANEL_LINES = 14  # of the table, kept free under the text


@contextmanager
def live_view(engine: Engine) -> Iterator[Callable[[str], None]]:
    """Inside, the callable shows the next piece of an answer, and the table follows. The text stays at the end."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    begin, drawn, written = engine.stats(), 0.0, ""
    console = Console(highlight=False, markup=False)

    def draw() -> Group:
        return Group(Text(_tail(written)), _table(look(engine, since=begin)))

    # What rich draws is taken away at the end: an answer longer than the screen could not be scrolled back to.
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def show(piece: str) -> None:
            nonlocal drawn, written
            written += shown(piece)
            if time.monotonic() - drawn > _REDRAW_S:
                live.update(draw(), refresh=True)
                drawn = time.monotonic()

        try:
            yield show
        finally:
            live.update(Text(""), refresh=True)
    print(written, end="", flush=True)
    print("\n" if written else "", end="")
    console.print(_table(look(engine, since=begin)))


def _tail(text: str) -> str:
    """The last lines of a text that leave room for the table."""
    size = shutil.get_terminal_size()
    room = max(3, size.lines - _PANEL_LINES)
    folded = [
        line[i : i + size.columns] for line in text.split("\n") for i in range(0, max(1, len(line)), size.columns)
    ]
    return "\n".join(folded[-room:])


def _table(snapshot: Snapshot) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for label, text in rows(snapshot):
        is_strip = label.strip() == "by layer"
        grid.add_row(Text(label, style="dim"), _coloured(snapshot, text) if is_strip else Text(text, style="dim"))
    return grid


def _coloured(snapshot: Snapshot, text: str) -> Any:
    from rich.text import Text

    coloured = Text()
    for character, n, of in zip(text, snapshot.resident, snapshot.n_expert, strict=True):
        coloured.append(character, style=_COLOURS[level(n, of)])
    return coloured
