"""Which turns of a chat still fit the context."""

from __future__ import annotations

from collections.abc import Sequence

from edgemoe.cli.conversation import Conversation, Message, fit


def count(messages: Sequence[Message]) -> int:
    """A token a word."""
    return sum(len(message["content"].split()) for message in messages)


def talk(*words: str, system: str = "") -> Conversation:
    conversation = Conversation(system)
    for i, text in enumerate(words):
        (conversation.answer if i % 2 else conversation.ask)(text)
    return conversation


def test_what_fits_is_kept() -> None:
    messages = talk("a b", "c d", "e").messages()
    assert fit(messages, count, 5) == (messages, 0)


def test_the_oldest_turn_goes_first_and_whole() -> None:
    messages = talk("a b", "c d", "e f", "g h", "i").messages()
    kept, n_dropped = fit(messages, count, 5)
    assert [message["content"] for message in kept] == ["e f", "g h", "i"]
    assert n_dropped == 1


def test_the_system_message_and_the_last_question_stay() -> None:
    kept, n_dropped = fit(talk("a", "b", "c d e", system="s").messages(), count, 2)
    assert [message["content"] for message in kept] == ["s", "c d e"]
    assert n_dropped == 1


def test_a_question_that_is_too_long_alone_is_left_to_the_engine() -> None:
    kept, n_dropped = fit(talk("a b c").messages(), count, 1)
    assert (len(kept), n_dropped) == (1, 0)


def test_only_the_last_message_of_the_right_role_is_taken_back() -> None:
    conversation = talk("question", "answer")
    assert not conversation.take_back("user")
    assert conversation.take_back("assistant")
    assert [turn["content"] for turn in conversation.turns] == ["question"]
