"""The turns of a chat as plain messages, and which of them still fit the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .pictures import with_pictures

Message = dict[str, Any]


def fit(messages: Sequence[Message], count: Callable[[Sequence[Message]], int], room: int) -> tuple[list[Message], int]:
    """The newest messages that take at most `room` tokens, and the number of turns left out.

    A turn is a question and its answer; the oldest go first, the system message and the last question never do.
    count: tokens of a prompt made from messages.
    """
    kept, n_dropped = list(messages), 0
    while count(kept) > room:
        questions = [i for i, message in enumerate(kept) if message["role"] == "user"]
        if len(questions) < 2:
            break
        del kept[questions[0] : questions[1]]
        n_dropped += 1
    return kept, n_dropped


class Conversation:
    """What was said so far. system: the system message, "" for none."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[Message] = []

    def messages(self) -> list[Message]:
        """What the model's template takes."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    @classmethod
    def of(cls, messages: Sequence[Message], system: str = "") -> Conversation:
        """One that goes on. system: in place of the messages' own."""
        own = next((message["content"] for message in messages if message["role"] == "system"), "")
        made = cls(system or own)
        made.replace_turns(messages)
        return made

    def ask(self, text: str, pictures: Sequence[Path] = ()) -> None:
        self.turns.append({"role": "user", "content": with_pictures(text, pictures)})

    def answer(self, text: str, thinking: str = "") -> None:
        """thinking: what the model thought before; its template decides what of it the next turn sees."""
        turn = {"role": "assistant", "content": text}
        self.turns.append({**turn, "reasoning_content": thinking} if thinking else turn)

    def replace_turns(self, messages: Sequence[Message]) -> None:
        """Keep only these of `messages()`."""
        self.turns = [message for message in messages if message["role"] != "system"]

    def take_back(self, role: str) -> bool:
        """Remove the last message if it is of this role."""
        if self.turns and self.turns[-1]["role"] == role:
            self.turns.pop()
            return True
        return False

    def clear(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns.clear()
