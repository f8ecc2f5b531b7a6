"""The arguments of a call while they are written: an object's JSON that comes in parts. Pure."""

from __future__ import annotations

import json


class ObjectText:
    """Finds where an object ends, whatever stands in its strings. done: it has ended, or what came is no object."""

    def __init__(self) -> None:
        self.done = False
        self._parts: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = False

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, text: str) -> tuple[str, str]:
        """What of a text belongs to the object, and what stands behind it.

        Characters that JSON has no place for in strings, which some models write, come as JSON spells them.
        """
        found: list[str] = []
        n = 0
        while n < len(text) and not self.done:
            found.append(self._next(text[n]))
            n += 1
        part = "".join(found)
        self._parts.append(part)
        return part, text[n:]

    def _next(self, char: str) -> str:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._in_string, self._escaped = char != '"', char == "\\"
            if char < " ":
                return f"\\u{ord(char):04x}"
        elif not self._depth and char != "{":  # blanks may come before it, anything else is no object
            self.done = not char.isspace()
            return ""
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.done = not self._depth
        else:
            self._in_string = char == '"'
        return char

    def whole(self) -> bool:
        """Whether all of it is there, and is JSON."""
        try:
            return self.done and isinstance(json.loads(self.text), dict)
        except (ValueError, RecursionError):
            return False
