"""Text that others wrote, made safe to show: model files, file names and answers may hold control characters.

A terminal obeys them: they move the cursor, change the title, clear the screen. Shown, they are `\\x1b`.
Imports nothing of ours.
"""

from __future__ import annotations

import re

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CONTROL_OF_ANSWERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# In a name also what ends a line or turns the direction of writing, and bytes of a file name that are no UTF-8.
_ODD_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(text: object) -> str:
    """A name or a message in one line, every control character of it escaped."""
    return _ODD_IN_NAMES.sub(_escaped, str(text))


def plain_lines(text: str) -> str:
    """The same for text of several lines: line ends and tabs stay."""
    return "\n".join("\t".join(plain(part) for part in line.split("\t")) for line in text.split("\n"))


def shown(answer: str) -> str:
    """A piece of an answer for a terminal: line ends and tabs stay, other controls are seen and not obeyed."""
    return _CONTROL_OF_ANSWERS.sub(_escaped, answer)


def whole_characters(text: str) -> str:
    """The text with U+FFFD for what is no character: bytes of file names that are no UTF-8, halves of pairs."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        code -= 0xDC00
    return _ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
