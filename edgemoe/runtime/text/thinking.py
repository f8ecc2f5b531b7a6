"""Tell a model's thinking from its answer, by the marks that its chat template knows. Pure.

Two families: marks around the thinking (`<think>…</think>` and its kin), which the prompt may have opened already, and
gpt-oss' channels, whose calls of tools are told apart here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Piece:
    """A part of an answer. A call's text is its arguments, as the model wrote them; its first piece has its name."""

    kind: Literal["text", "thinking", "call"]
    text: str
    name: str = ""


@dataclass(frozen=True)
class Marks:
    """What stands around the thinking."""

    open: str
    close: str


MARKS = (
    Marks("<think>", "</think>"),
    Marks("<mm:think>", "</mm:think>"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<think:opensource>", "</think:opensource>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|channel>thought\n", "<channel|>"),
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),
)
SHOWN = MARKS[0]
"""How thinking is marked in texts that people read."""

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
CHANNELS = (CHANNEL, MESSAGE, START, *_ENDS, "<|constrain|>")


@dataclass(frozen=True)
class Thinking:
    """How an answer to one prompt is read. marks: None where nothing is told apart, or channels are."""

    marks: Marks | None = None
    channels: bool = False
    opened: bool = False

    def reader(self) -> Reader:
        if self.channels:
            return ChannelReader()
        return MarkReader(self.marks, opened=self.opened) if self.marks else PlainReader()

    def pieces(self, texts: Iterable[str]) -> Iterator[Piece]:
        """An answer that comes in these texts."""
        reader = self.reader()
        for text in texts:
            yield from reader.feed(text)
        yield from reader.finish()


def thinking_of(template: str | None, prompt: str = "") -> Thinking:
    """By a chat template, and by how the prompt that it made ends."""
    if not template:
        return Thinking()
    if CHANNEL in template and MESSAGE in template:
        return Thinking(channels=True)
    for marks in MARKS:
        opening = marks.open.strip()
        if opening in template or marks.close in template or _built(marks, template):
            return Thinking(marks, opened=prompt.rstrip().endswith(opening))
    return Thinking()


def _built(marks: Marks, template: str) -> bool:
    """Hunyuan's template makes its marks from a name."""
    return marks.open == "<think:opensource>" and "<think{}>" in template


def mark_texts(template: str | None) -> tuple[str, ...]:
    """Marks whose text belongs to an answer even where they are control tokens."""
    found = [text for marks in MARKS for text in (marks.open.strip(), marks.close)]
    found = [text for text in found if text != "<|channel>thought"]
    return (*found, *CHANNELS) if thinking_of(template).channels else tuple(found)


class Reader(Protocol):
    """Text in, pieces out. What may be the beginning of a mark is held back."""

    def feed(self, text: str) -> Iterator[Piece]: ...

    def finish(self) -> Iterator[Piece]: ...


class PlainReader:
    """Nothing is told apart."""

    def feed(self, text: str) -> Iterator[Piece]:
        if text:
            yield Piece("text", text)

    def finish(self) -> Iterator[Piece]:
        return iter(())


class MarkReader:
    """Thinking between marks at the beginning of an answer; later marks are text."""

    def __init__(self, marks: Marks, *, opened: bool) -> None:
        self._marks = marks
        self._held = ""
        self._state: Literal["start", "thinking", "after", "text"] = "thinking" if opened else "start"
        self._blank = True  # nothing has been thought yet

    def feed(self, text: str) -> Iterator[Piece]:
        self._held += text
        while True:
            state = self._state
            if state == "start":
                self._begin()
            elif state == "thinking":
                yield from self._think()
            elif state == "after":
                self._held = self._held.lstrip()
                if self._held:
                    self._state = "text"
            if self._state == state:
                break
        if self._state == "text" and self._held:
            held, self._held = self._held, ""
            yield Piece("text", held)

    def _begin(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._marks.open):
            self._held = begun[len(self._marks.open) :]
            self._state = "thinking"
        elif begun.startswith(self._marks.close):  # thinking nothing
            self._held = begun[len(self._marks.close) :]
            self._state = "after"
        elif not any(mark.startswith(begun) for mark in (self._marks.open, self._marks.close)):
            self._state = "text"

    def _think(self) -> Iterator[Piece]:
        thought, found, rest = self._held.partition(self._marks.close)
        if self._blank:
            thought = thought.lstrip()
        if found:
            self._held, self._state = rest, "after"
            thought = thought.rstrip()
        else:
            # A mark that has begun, and blanks before it, wait.
            keep = begun_mark(thought, self._marks.close)
            ready = thought[: len(thought) - keep].rstrip()
            self._held, thought = thought[len(ready) :], ready
        if thought:
            self._blank = False
            yield Piece("thinking", thought)

    def finish(self) -> Iterator[Piece]:
        held, self._held = self._held, ""
        if self._state == "thinking" and held.strip():
            yield Piece("thinking", held.rstrip())
        elif held.strip():
            yield Piece("text", held)


_HEADER = re.compile(r"\s*(?:assistant)?\s*(?:to=(?P<to>[^\s<]+))?\s*(?:<\|channel\|>\s*(?P<channel>\w*))?")
_TO = re.compile(r"to=(?:functions\.)?(?P<name>[a-zA-Z0-9_-]+)")


class ChannelReader:
    """gpt-oss' messages: `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`."""

    def __init__(self) -> None:
        self._held = ""
        self._where: Literal["header", "text", "thinking", "call", "between"] = "header"
        self._name = ""

    def feed(self, text: str) -> Iterator[Piece]:
        self._held += text
        while self._held:
            before = (self._where, self._held)
            if self._where == "header":
                self._read_header()
            elif self._where == "between":
                self._skip()
            else:
                yield from self._read_body()
            if (self._where, self._held) == before:
                return

    def _read_header(self) -> None:
        header, found, rest = self._held.partition(MESSAGE)
        if found:
            call = _TO.search(header)
            channel = _HEADER.match(header)
            if call:
                self._where, self._name = "call", call["name"]
            else:
                self._where = "thinking" if channel and channel["channel"] == "analysis" else "text"
            self._held = rest
            return
        known = _HEADER.match(self._held)
        beyond = self._held[known.end() :] if known else self._held
        # Not a header, nor the beginning of one: the model answers without channels.
        told = beyond.strip() and not beyond.lstrip().startswith("<")
        begun = known and (known["channel"] or known["to"])
        if told and not begun and not any(word.startswith(beyond.strip()) for word in ("assistant", "to=")):
            self._where, self._held = "text", beyond

    def _skip(self) -> None:
        """Between two messages there is nothing but the mark of the next."""
        _, found, rest = self._held.partition(START)
        if found:
            self._where, self._held = "header", rest
        elif CHANNEL in self._held:
            self._where = "header"

    def _read_body(self) -> Iterator[Piece]:
        ends = [(self._held.find(mark), mark) for mark in (*_ENDS, START) if mark in self._held]
        if ends:
            at, mark = min(ends)
            body, self._held = self._held[:at], self._held[at + len(mark) :]
            yield from self._piece(body)
            self._where = "header" if mark == START else "between"
            return
        keep = begun_mark(self._held, *_ENDS, START)
        body, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        yield from self._piece(body)

    def _piece(self, body: str) -> Iterator[Piece]:
        if not body or self._where not in ("text", "thinking", "call"):
            return
        yield Piece(self._where, body, self._name if self._where == "call" else "")
        self._name = ""

    def finish(self) -> Iterator[Piece]:
        """Half a header is nothing."""
        held, self._held = self._held, ""
        yield from self._piece(held)


def begun_mark(text: str, *marks: str) -> int:
    """Characters at the end of a text with which one of the marks, which are not in it, may have begun."""
    longest = min(len(text), max(map(len, marks)) - 1)
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0)


def shown(pieces: Iterator[Piece]) -> Iterator[str]:
    """Pieces as one text for people: thinking in `<think>…</think>`, calls of tools as they were written."""
    thinking = False
    for piece in pieces:
        if piece.kind == "thinking" and not thinking:
            thinking = True
            yield f"{SHOWN.open}\n"
        elif piece.kind != "thinking" and thinking:
            thinking = False
            yield f"\n{SHOWN.close}\n\n"
        yield said(piece)
    if thinking:
        yield f"\n{SHOWN.close}\n"


def said(piece: Piece) -> str:
    """A piece's text for people: of a call also the function's name."""
    return f"{piece.name} {piece.text}" if piece.name else piece.text


def parted(text: str, thinking: Thinking) -> tuple[str, str]:
    """Thinking and answer of a whole text."""
    reader = thinking.reader()
    pieces = [*reader.feed(text), *reader.finish()]
    thought = "".join(piece.text for piece in pieces if piece.kind == "thinking")
    return thought, "".join(piece.text for piece in pieces if piece.kind == "text")
