"""A whole evaluation: the reference and the model are opened one after the other, each inside the same budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..paths import cache_dir
from ..runtime.load import load
from ..runtime.setup import Setup
from . import reference as references
from .perplexity import Score, score
from .reference import Progress, Reference
from .tasks import Task, TaskScore, run_tasks
from .tasks import read_tasks as read_tasks
from .windows import N_OUTPUTS, cut, log_probabilities

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine


@dataclass(frozen=True)
class Request:
    """What is wanted. against: a GGUF or a saved reference. text: None for tasks alone. save: keep the probabilities.

    n_window: None for all of the text. setup: for every engine; its ctx is n_ctx.
    """

    model: str
    against: Path | None
    text: str | None
    n_window: int | None
    n_ctx: int
    tasks: Sequence[Task]
    save: Path | None
    setup: Setup


@dataclass(frozen=True)
class Result:
    """score: of the text. tasks: of the model; reference_tasks: of the reference, when that is a model."""

    score: Score | None
    tasks: TaskScore | None
    reference_tasks: TaskScore | None

    def to_dict(self) -> dict[str, Any]:
        parts = {"score": self.score, "tasks": self.tasks, "reference_tasks": self.reference_tasks}
        return {name: part.to_dict() for name, part in parts.items() if part}


def evaluate(request: Request, progress: Progress) -> Result:
    """Raises whatever opening an engine raises, UsageError for a text that is too short, StorageError."""
    with ExitStack() as stack:
        reference: Reference | None = None
        reference_tasks = None
        if request.against is not None:
            if request.against.is_file() and references.is_reference(request.against):
                if request.text is None:
                    raise UsageError("tasks need a model, not its probabilities", hint="give `--against` a GGUF")
                reference = stack.enter_context(references.open_reference(request.against))
            else:
                with open_engine(str(request.against), request) as engine:
                    if request.text is not None:
                        windows = cut(engine, request.text, request.n_ctx, request.n_window)
                        made = references.make(engine, windows, cache_dir(), progress)
                        reference = stack.enter_context(made)
                    if request.tasks:
                        reference_tasks = run_tasks(engine, request.tasks, progress)
        engine = stack.enter_context(open_engine(request.model, request))
        found, tasks = None, None
        if request.text is not None:
            windows = cut(engine, request.text, request.n_ctx, request.n_window)
            if request.save:
                references.save(engine, windows, request.save, progress)
                saved = stack.enter_context(references.open_reference(request.save))
                rows_of = partial(saved.rows, windows)
            else:
                rows_of = partial(log_probabilities, engine, windows)
            if reference:
                reference.check(windows, engine.n_vocab)
            found = score(engine.model.info.name, windows, rows_of, reference, progress)
        if request.tasks:
            tasks = run_tasks(engine, request.tasks, progress)
        return Result(found, tasks, reference_tasks)


def open_engine(model: str | os.PathLike[str], request: Request) -> Engine:
    """An engine that keeps enough rows of logits."""
    n_outputs = min(N_OUTPUTS, request.n_ctx)
    return load(model, request.setup.but(ctx=request.n_ctx, n_outputs=n_outputs))


def read_text(path: str | None) -> str:
    """A text file, None: the bundled passage. Raises UsageError."""
    from ..bench.runner import passage
    from ..bench.runner import read_text as read

    return passage() if path is None else read(path)
