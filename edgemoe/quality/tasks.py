"""Small tasks from a JSONL file: multiple choice and exact match. Perplexity hides damage that these show.

One JSON object a line:
    {"prompt": "The sky is", "choices": [" blue", " made of cheese"], "answer": 0}
    {"prompt": "2 + 2 =", "answer": "4"}             or several right ones: "answer": ["4", "four"]
Optional: "chat": true puts the prompt into the model's chat template; "max_tokens" of an exact match, 32 if absent;
"id" for the report.

A choice's score is its log-likelihood after the prompt, divided by its bytes. An exact match takes the likeliest token
each time, to the end of the line, and compares without regard to case, blanks around, or a full stop at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, StorageError, UnsupportedError, UsageError
from .windows import F32, log_rows, log_softmax

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine

BUNDLED = "bundled"
"""In place of a file: 80 small tasks that come along, which even a model of 135 million weights can do in part."""

_MAX_TOKENS = 32


@dataclass(frozen=True)
class Task:
    """One line. choices is empty for an exact match; right: index of the right choice, or the right texts."""

    name: str
    prompt: str
    choices: tuple[str, ...]
    right: tuple[int, ...] | tuple[str, ...]
    chat: bool
    max_tokens: int


@dataclass(frozen=True)
class TaskScore:
    """n_right of n. answers: what was chosen or written, in the file's order."""

    model: str
    n: int
    n_right: int
    n_choice: int
    n_choice_right: int
    answers: tuple[tuple[str, int | str, bool], ...]

    @property
    def share(self) -> float:
        """Of the tasks that were done right."""
        return self.n_right / self.n

    @property
    def share_error(self) -> float:
        """Standard error of `share`."""
        return math.sqrt(self.share * (1 - self.share) / self.n)

    def changes(self, reference: TaskScore) -> tuple[int, int]:
        """Tasks that only the reference did right, and that only this model did. Of the same tasks."""
        pairs = [(ours[2], theirs[2]) for ours, theirs in zip(self.answers, reference.answers, strict=True)]
        return sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_tasks(name: str) -> list[Task]:
    """Of a file, or those that are here. Raises StorageError, or FormatError naming the line that is wrong."""
    path = Path(__file__).parent / "tasks.jsonl" if name == BUNDLED else Path(name).expanduser()
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"`{path}` is not UTF-8 text") from None
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    tasks = [_task(f"`{path}` line {n}", line, n) for n, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise FormatError(f"`{path}` has no tasks")
    return tasks


def _task(place: str, line: str, n: int) -> Task:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise FormatError(f"{place} is not JSON") from None
    hint = "see `docs/quality.md` for what a line looks like"
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or not value["prompt"]:
        raise FormatError(f"{place} has no `prompt`", hint=hint)
    choices, answer = value.get("choices", []), value.get("answer")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise FormatError(f"{place}: `choices` are not texts", hint=hint)
    right: tuple[int, ...] | tuple[str, ...]
    if choices:
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise FormatError(f"{place}: `answer` is not the number of a choice, from 0", hint=hint)
        right = (answer,)
    else:
        texts = [answer] if isinstance(answer, str) else answer
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise FormatError(f"{place}: `answer` is neither a text nor several", hint=hint)
        right = tuple(texts)
    max_tokens = value.get("max_tokens", _MAX_TOKENS)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise FormatError(f"{place}: `max_tokens` is not a number of at least 1", hint=hint)
    chat = value.get("chat", False) is True
    return Task(str(value.get("id", n)), value["prompt"], tuple(choices), right, chat, max_tokens)


def run_tasks(engine: Engine, tasks: Sequence[Task], progress: Callable[[str, int, int], None]) -> TaskScore:
    """Do all tasks. Raises UsageError for one that is longer than the context."""
    answers: list[tuple[str, int | str, bool]] = []
    n_choice = n_choice_right = 0
    for i, task in enumerate(tasks):
        progress(f"{engine.model.info.name}: tasks", i, len(tasks))
        if task.choices:
            chosen = _choose(engine, task)
            n_choice += 1
            n_choice_right += chosen in task.right
            answers.append((task.name, chosen, chosen in task.right))
        else:
            text = _write(engine, task)
            answers.append((task.name, text, plain(text) in {plain(str(right)) for right in task.right}))
    progress(f"{engine.model.info.name}: tasks", len(tasks), len(tasks))
    n_right = sum(right for _, _, right in answers)
    return TaskScore(engine.model.info.name, len(tasks), n_right, n_choice, n_choice_right, tuple(answers))


def plain(text: str) -> str:
    """What an exact match compares."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def _write(engine: Engine, task: Task) -> str:
    limits: dict[str, Any] = {"max_tokens": min(task.max_tokens, engine.n_ctx), "stop": ("\n",)}
    if task.chat:
        return "".join(engine.chat([{"role": "user", "content": task.prompt}], **limits)).strip()
    return "".join(engine.generate(task.prompt, **limits)).strip()


def _choose(engine: Engine, task: Task) -> int:
    scores = []
    if task.chat:
        prompt = engine.chat_tokens([{"role": "user", "content": task.prompt}])
        wholes = [prompt + engine.tokenize(choice, special=False) for choice in task.choices]
    else:
        wholes = [engine.tokenize(task.prompt + choice) for choice in task.choices]
        prompt = engine.tokenize(task.prompt)
    engine.reset()
    for choice, whole in zip(task.choices, wholes, strict=True):
        # A choice may merge with the prompt's last token: what is scored begins where the two tokenizations part.
        pairs = zip(prompt, whole, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(whole)))
        common = max(1, min(common, len(whole) - 1))
        if len(whole) > engine.n_ctx or common >= len(whole):
            raise UsageError(
                f"task {task.name} has {len(whole):,} tokens, the context holds {engine.n_ctx:,}", hint="raise `--ctx`"
            )
        scores.append(_likelihood(engine, whole, common) / len(choice.encode()))
    return max(range(len(scores)), key=scores.__getitem__)


def _likelihood(engine: Engine, whole: Sequence[int], n_prompt: int) -> float:
    """Of the tokens after the first n_prompt, given those. What the engine has of the prompt is not computed again."""
    # The prompt's last token is computed anew for its logits.
    try:
        engine.rewind(min(engine.n_past, n_prompt - 1))
    except UnsupportedError:  # recurrent state cannot be cut
        engine.reset()
    engine.eval(whole[engine.n_past : n_prompt])
    total = float(log_softmax(_last(engine))[whole[n_prompt]])
    for row, token in zip(log_rows(engine, whole[n_prompt:-1]), whole[n_prompt + 1 :], strict=True):
        total += float(row[token])
    return total


def _last(engine: Engine) -> F32:
    import numpy as np

    return np.frombuffer(engine.row(), dtype=np.float32)
