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
from .decoded import Decoder, Decoding
from .perplexity import Score, score
from .reference import Progress, Reference, RowsOf
from .tasks import Task, TaskScore, run_tasks
from .tasks import read_tasks as read_tasks
from .windows import N_OUTPUTS, Windows, cut, log_probabilities

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine

_DECODE_UBATCH = 16


@dataclass(frozen=True)
class Request:
    """What is wanted. against: a GGUF or a saved reference. against_exact: the model itself, without `setup.lossy`, in
    place of that. text: None for tasks alone. save: keep the probabilities.

    n_window: None for all of the text. setup: for every engine; its ctx is n_ctx.
    """

    model: str
    against: Path | None
    against_exact: bool
    text: str | None
    n_window: int | None
    n_ctx: int
    tasks: Sequence[Task]
    save: Path | None
    setup: Setup

    @property
    def decodes(self) -> bool:
        """Token by token: elsewhere nothing is left out."""
        return self.setup.lossy > 0


@dataclass(frozen=True)
class Result:
    """score: of the text. tasks: of the model; reference_tasks: of the reference, when that is a model. decoding: of a
    lossy model; reference_decoding: of the exact one beside it.
    """

    score: Score | None
    tasks: TaskScore | None
    reference_tasks: TaskScore | None
    decoding: Decoding | None = None
    reference_decoding: Decoding | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: part.to_dict() for name, part in vars(self).items() if part}


def evaluate(request: Request, progress: Progress) -> Result:
    """Raises whatever opening an engine raises, UsageError for a text that is too short, StorageError."""
    with ExitStack() as stack:
        reference: Reference | None = None
        reference_tasks = decoding = reference_decoding = None
        if request.against is not None or request.against_exact:
            if request.against and request.against.is_file() and references.is_reference(request.against):
                if request.text is None:
                    raise UsageError("tasks need a model, not its probabilities", hint="give `--against` a GGUF")
                reference = stack.enter_context(references.open_reference(request.against))
            else:
                with open_engine(str(request.against or request.model), request, exact=True) as engine:
                    if request.text is not None:
                        windows = cut(engine, request.text, request.n_ctx, request.n_window)
                        rows_of, decoder = rows(engine, windows, request)
                        made = references.make(engine, windows, rows_of, cache_dir(), progress)
                        reference = stack.enter_context(made)
                        reference_decoding = decoder.found() if decoder else None
                    if request.tasks:
                        reference_tasks = run_tasks(engine, request.tasks, progress)
        engine = stack.enter_context(open_engine(request.model, request))
        found, tasks = None, None
        if request.text is not None:
            windows = cut(engine, request.text, request.n_ctx, request.n_window)
            rows_of, decoder = rows(engine, windows, request)
            if request.save:
                references.save(engine, windows, rows_of, request.save, progress)
                saved = stack.enter_context(references.open_reference(request.save))
                rows_of = partial(saved.rows, windows)
            if reference:
                reference.check(windows, engine.n_vocab)
            found = score(engine.model.info.name, windows, rows_of, reference, progress)
            decoding = decoder.found() if decoder else None
        if request.tasks:
            tasks = run_tasks(engine, request.tasks, progress)
        return Result(found, tasks, reference_tasks, decoding, reference_decoding)


def open_engine(model: str | os.PathLike[str], request: Request, *, exact: bool = False) -> Engine:
    """An engine that keeps enough rows of logits. exact: leave nothing out. To compare them, both begin unlearned."""
    setup = request.setup.but(ctx=request.n_ctx, n_outputs=min(N_OUTPUTS, request.n_ctx))
    if request.decodes:
        setup = setup.but(lossy=0.0 if exact else setup.lossy, warm_start=False)
        if not request.tasks:  # no batch is computed: its work space is the cache's
            setup = setup.but(n_outputs=1, n_ubatch=min(_DECODE_UBATCH, request.n_ctx))
    return load(model, setup)


def rows(engine: Engine, windows: Windows, request: Request) -> tuple[RowsOf, Decoder | None]:
    """How the windows' log-probabilities are computed."""
    if not request.decodes:
        return partial(log_probabilities, engine, windows), None
    decoder = Decoder(engine, windows)
    return decoder.rows, decoder


def read_text(path: str | None) -> str:
    """A text file, None: the bundled passage. Raises UsageError."""
    from ..bench.runner import passage
    from ..bench.runner import read_text as read

    return passage() if path is None else read(path)
