"""Filling in the middle of a text: the prompt that a model was trained on for it, as llama.cpp's server makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.engine.engine import Engine
from .failures import invalid

_REPOSITORY, _FILE = "myproject\n", "filename\n"  # llama.cpp's: nobody tells their names
_SNIPPET = "\n\n--- snippet ---\n\n"
_ANSWER_SHARE = 4  # a quarter of the context is kept free for an answer


@dataclass(frozen=True)
class Middle:
    """What is around the place to be filled. extra: (file name, text) of other files. begun: the fill's first words."""

    prefix: str
    suffix: str
    extra: Sequence[tuple[str, str]] = ()
    begun: str = ""


def prompt_of(engine: Engine, middle: Middle, max_tokens: int | None) -> list[int]:
    """The tokens that ask for the middle: what is far from it is left out where the context is short.

    max_tokens: of the answer. Raises ApiError where the model has no marks for that.
    """
    prefix_mark, suffix_mark, middle_mark, repository_mark, file_mark = engine.fim_marks()
    if min(prefix_mark, suffix_mark, middle_mark) < 0:
        raise invalid("this model was not trained to fill in the middle of a text: it has no marks for it", "suffix")

    def plain(text: str) -> list[int]:
        return engine.tokens(text, add_special=False, parse_special=False)

    most = engine.n_ctx // _ANSWER_SHARE
    room = engine.n_ctx - min(max_tokens or most, most)
    begun = plain(middle.begun)
    before = plain(middle.prefix)
    before = before[max(0, len(before) - 3 * (room // 4)) :]
    first = engine.tokens("", add_special=True, parse_special=False)
    behind = plain(middle.suffix)[: max(0, room // 4 - 3 - len(first) - len(begun))]
    extra: list[int] = []
    if repository_mark >= 0:
        extra += [repository_mark, *plain(_REPOSITORY)]
    for name, text in middle.extra:
        extra += [file_mark, *plain(f"{name}\n")] if file_mark >= 0 else plain(_SNIPPET)
        extra += plain(text)
    if file_mark >= 0:
        extra += [file_mark, *plain(_FILE)]
    asked = [*first, prefix_mark, *before, *begun, suffix_mark, *behind, middle_mark]
    return [*extra[max(0, len(extra) - max(0, room - len(asked))) :], *asked]
