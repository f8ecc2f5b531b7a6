"""From what a person calls a model to its file: a path, a name, or `hf:owner/repo[:file]`. Every command asks here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...places import BUILTIN, builtin_path

if TYPE_CHECKING:
    from .local import Found

_HUB = "hf:"


def resolve(name: str | os.PathLike[str], *, progress: Callable[[str], None] | None = None) -> Path:
    """The file of a model. Nothing is copied; only an `hf:` name that is not in the cache yet is downloaded.

    name: a path (`./model.gguf`), the built-in model's name, a name that `edgemoe models` lists or a part of it that
    only one has, or `hf:owner/repo[:file]`.
    progress: receives a line of text before each step that takes time; None is silent.
    A path is returned as it is, also when nothing is there: who opens it says so.
    Raises UsageError for a name that nothing or several things have, and what a download may raise.
    """
    if isinstance(name, os.PathLike):
        return Path(name).expanduser()
    if not name.strip():
        raise UsageError("an empty name names no model", hint="`edgemoe models` lists what is here")
    if name.startswith(_HUB):
        from .hub import fetch

        return fetch(name.removeprefix(_HUB), progress=progress)
    file = Path(name).expanduser()
    if _is_file(file) or name.startswith((".", "/", "~", os.sep)):
        return file
    if name.lower() == BUILTIN:
        return _builtin()
    from .local import find_models

    models = find_models()
    matches = _matches(name, models)
    if len(matches) == 1:
        return matches[0].path
    if matches:
        raise UsageError(
            f"`{name}` may be any of {len(matches)} models",
            hint="give the whole name: " + _quoted([model.name for model in matches]),
        )
    if name.lower().endswith(".gguf") or file.exists():
        return file
    raise UsageError(f"there is no model `{name}` on this machine", hint=_suggestion(name, models))


def _matches(name: str, models: list[Found]) -> list[Found]:
    """The models that a name may mean, by the first rule that finds any: whole name, file name, part of a name."""
    wanted = name.lower()
    for rule in (
        lambda model: model.name.lower() == wanted,
        lambda model: (
            wanted in (model.path.name.lower(), f"{model.repo}:{model.path.stem}".lower(), model.repo.lower())
        ),
        lambda model: wanted in model.name.lower(),
    ):
        found = [model for model in models if rule(model)]
        if found:
            return found
    return []


def _builtin() -> Path:
    path = builtin_path()
    if path is None:
        raise UsageError(
            "this installation has no built-in model",
            hint="give a model: `edgemoe models` lists what is here; a path or `hf:owner/repo` works too",
        )
    return path


def _suggestion(name: str, models: list[Found]) -> str:
    import difflib

    close = difflib.get_close_matches(name.lower(), [model.name.lower() for model in models], n=1)
    if close:
        return f"did you mean `{next(model.name for model in models if model.name.lower() == close[0])}`?"
    return "`edgemoe models` lists what is here; a path of a GGUF file or `hf:owner/repo` works too"


def _quoted(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} …"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
