"""The models that a server offers by name, one of them loaded at a time, all inside one budget.

A request for another model closes the loaded one first: its memory is the other's. The conversation in it is forgotten.
Used by the worker's thread, but for `current`, `setup` and `set_memory`, which any thread may use.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import _native
from ..errors import UnsupportedError, UsageError
from ..paths import cache_dir
from ..printable import whole_characters
from ..runtime.engine.engine import Engine
from ..runtime.engine.stats import Stats
from ..runtime.find.local import model_name
from ..runtime.find.names import resolve
from ..runtime.formats import open_model
from ..runtime.load import load, plan
from ..runtime.setup import Setup
from ..runtime.text.sampling import Recommended
from .failures import ApiError

Talk = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """A model on offer. created: when its file was last changed, in seconds since 1970.

    n_ctx: tokens that are served of the n_ctx_train that it was trained for. size_bytes: of its file. kind: its
    architecture. reads_pictures: an encoder is planned for.
    """

    name: str
    path: Path
    created: int
    n_ctx_train: int
    n_ctx: int
    size_bytes: int
    kind: str
    n_expert: int
    recommended: Recommended
    reads_pictures: bool


@dataclass
class Totals:
    """Counters of engines that were closed since, so that those of the server only grow."""

    values: dict[str, int] = field(default_factory=dict)

    def add(self, stats: Stats) -> None:
        for name, value in stats.to_dict().items():
            if isinstance(value, int) and not isinstance(value, bool):
                self.values[name] = self.values.get(name, 0) + value


class Catalog:
    """Names to models. setup: how each of them is opened; its memory is the budget now."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        setup: Setup,
        talk: Talk,
        *,
        prefix_share: float = 1 / 16,
        state_bytes: int = 0,
    ) -> None:
        """Reads headers. prefix_share: of the budget, for `Prefixes`. state_bytes: on disk, for `StateStore`.

        Raises UsageError for two models of one name, and what `open_model` and `plan` raise.
        """
        self.setup = setup
        self.current: tuple[str, Engine] | None = None
        self.loading = ""
        self.totals = Totals()
        self._budget_bytes = 0
        self._prefix_share, self._state_bytes = prefix_share, state_bytes
        self._talk = talk
        self._single: set[str] = set()  # models that cannot answer several at once
        self.entries: dict[str, Entry] = {}
        for given in paths:
            self._add(os.fspath(given))

    def _add(self, given: str) -> None:
        """given: what `resolve` takes, or NAME= and that."""
        label, _, rest = given.rpartition("=")
        labelled = bool(label) and not Path(given).expanduser().exists()
        wanted = rest if labelled else given
        file = resolve(wanted, progress=self._talk)
        # A file is served under its own name, a set of files under the set's, a model that has a name under that.
        name = label if labelled else model_name(file) if Path(wanted).expanduser().exists() else wanted
        name = whole_characters(name)  # clients must be able to send it
        with open_model(file) as model:
            # Refused now rather than at the first request for it.
            try:
                made = plan(model, self._setup(name), measure=False)
            except UnsupportedError as error:
                if self.setup.parallel == 1:
                    raise
                made = plan(model, self.setup.but(parallel=1), measure=False)
                self._one_by_one(name, error)
            info, recommended = model.info, model.recommended
        if name in self.entries:
            raise UsageError(f"two models are called `{name}`", hint=f"name one of them: `other={file}`")
        found = file.stat()
        self.entries[name] = Entry(
            name, file, int(found.st_mtime), info.n_ctx_train, made.n_ctx, found.st_size, info.architecture,
            info.n_expert, recommended, made.picture_bytes > 0,
        )  # fmt: skip

    @property
    def first(self) -> str:
        """The model that is loaded at the start."""
        return next(iter(self.entries))

    def check(self, name: str) -> None:
        """Raise ApiError 404 for a model that is not on offer."""
        if name not in self.entries:
            known = ", ".join(f"`{entry}`" for entry in self.entries)
            raise ApiError(
                404, f"there is no model `{name:.200}`: this server has {known}", code="model_not_found", param="model"
            )

    def named(self, name: str | None) -> str:
        """The model that a request means: whatever it says where there is only one. Raises ApiError 404."""
        if name and name in self.entries:
            return name
        # Ollama's clients add a tag, other servers' clients an owner; some know no other name than the one built in.
        if len(self.entries) == 1 or not name:
            return self.first
        plain = name.removesuffix(":latest")
        self.check(plain)
        return plain

    def engine(self, name: str) -> Engine:
        """The engine of a model, loaded if it is not. Raises what `load` raises; then no model is loaded."""
        if self.current and self.current[0] == name:
            return self.current[1]
        self.close()
        self.loading = name
        begin = time.monotonic()
        try:
            engine = self._load(name)
        finally:
            self.loading = ""
        engine.keep_prefixes(self._prefix_bytes(engine))
        if self._state_bytes:
            engine.keep_states(cache_dir() / "states", self._state_bytes, self._talk)
        self.current = (name, engine)
        if self.setup.device == "auto":
            self._talk(engine.plan.device_line)
        if engine.plan.context_line:
            self._talk(engine.plan.context_line)
        share = f"{engine.plan.fraction:.0%} of its experts fit"
        context = f"{engine.n_ctx:,} tokens of context"
        if len(engine.seats) > 1:
            context += f" for each of {len(engine.seats)} answers at once"
        self._talk(f"{name} is loaded in {time.monotonic() - begin:.1f} s: {share}, {context}")
        return engine

    def _load(self, name: str) -> Engine:
        try:
            return load(self.entries[name].path, self._setup(name))
        except UnsupportedError as error:  # seen in the graph, which a plan does not look at
            if self._setup(name).parallel == 1:
                raise
            engine = load(self.entries[name].path, self.setup.but(parallel=1))
            self._one_by_one(name, error)
            return engine

    def _setup(self, name: str) -> Setup:
        """How this model is opened."""
        return self.setup.but(parallel=1) if name in self._single else self.setup

    def _one_by_one(self, name: str, error: UnsupportedError) -> None:
        self._single.add(name)
        self._talk(f"`--parallel {self.setup.parallel}` is not for {name}, which answers one after the other: {error}")

    def _prefix_bytes(self, engine: Engine) -> int:
        """Of the budget, for conversations that others take the place of."""
        budget = engine.plan.budget_bytes
        return int(budget * self._prefix_share)

    def close(self) -> None:
        """Unload what is loaded and give its memory back."""
        if self.current is None:
            return
        engine = self.current[1]
        self.current = None
        self.totals.add(engine.stats())
        engine.close()
        del engine
        gc.collect()
        _native.trim_heap()

    def budget_bytes(self) -> int:
        """Of the model that is loaded, or that was: any thread."""
        if self.current:
            self._budget_bytes = self.current[1].plan.budget_bytes
        return self._budget_bytes

    def set_memory(self, memory: str | int) -> None:
        """Change the budget, of the model that is loaded and of those to come. Raises BudgetError, UsageError."""
        loaded, wanted = self.current, self.setup.but(memory=memory)
        if loaded:
            # First: what is remembered may not fit beside the experts any more.
            loaded[1].keep_prefixes(0)
            try:
                loaded[1].set_budget(memory)
            finally:
                loaded[1].keep_prefixes(self._prefix_bytes(loaded[1]))
        else:
            first = self.first
            plan(self.entries[first].path, wanted.but(parallel=self._setup(first).parallel), measure=False)
        self.setup = wanted
