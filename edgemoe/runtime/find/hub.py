"""Models by `owner/repo[:file]` on the Hugging Face hub: from the hub's cache where they are, else downloaded into it.

The cache is looked at without the network and without huggingface_hub. A download runs in a child process
(`download.py`): the client's 40 MB of Python would stay in a process that then generates inside a budget.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import EdgeMoEError, FormatError, StorageError, UsageError
from ...places import Place, hub_cache
from .local import find_models, is_model_file, model_name, split_set

_NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?::(.+))?")
_PREFERRED = "q4_k_m"  # what llama.cpp takes of several, too
_KINDS: dict[str, type[EdgeMoEError]] = {
    kind.__name__: kind for kind in (EdgeMoEError, FormatError, StorageError, UsageError)
}


def fetch(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """The file of "owner/repo" or "owner/repo:file" (a file's name or a part of it that only one has: "Q4_K_M").

    Raises UsageError (no such repository or file, several to choose from), StorageError (offline, disk full),
    FormatError (what arrived is not what the hub has).
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UsageError(
            f"`hf:{name}` is no name on the hub", hint="write `hf:owner/repo` or `hf:owner/repo:file.gguf`"
        )
    repo, file = match[1], match[2] or ""
    cached = _cached(repo, file)
    if cached is not None:
        return cached
    if progress:
        progress(f"downloading {repo}")
    return _download(repo, file, progress is not None)


def choose(repo: str, files: Iterable[str], wanted: str) -> list[str]:
    """The files of the model that is meant among those of a repository; all of a split set. Raises UsageError."""
    models = sorted(name for name in files if is_model_file(name))
    if not models:
        raise UsageError(f"`{repo}` has no GGUF files", hint="choose a repository of GGUF files, often named `…-GGUF`")
    if wanted:
        text = wanted.lower().removesuffix(".gguf")
        stems = {name: model_name(Path(name)).lower() for name in models}
        found = [name for name in models if name.lower() == wanted.lower() or stems[name] == text]
        found = found or [name for name in models if text in stems[name]]
    else:
        found = models if len(models) == 1 else [name for name in models if _PREFERRED in name.lower()]
    if len(found) != 1:
        what = f"has {len(found)} models like `{wanted}`" if wanted else f"has {len(models)} models"
        listed = ", ".join(f"`{model_name(Path(name))}`" for name in (found or models)[:6])
        raise UsageError(f"`{repo}` {what}", hint=f"write `hf:{repo}:FILE` with one of {listed}")
    return [path.as_posix() for path in split_set(Path(found[0]))]


def _cached(repo: str, wanted: str) -> Path | None:
    models = [model for model in find_models([Place("", "hub", hub_cache())]) if model.repo.lower() == repo.lower()]
    if not models:
        return None
    paths = {model.path.name: model.path for model in models}
    try:
        return paths[Path(choose(repo, paths, wanted)[0]).name]
    except UsageError:  # not among those that are here: the hub may have it
        return None


def _download(repo: str, wanted: str, with_progress: bool) -> Path:
    order = {"repo": repo, "file": wanted, "cache": str(hub_cache()), "progress": with_progress}
    child = subprocess.run(
        [sys.executable, "-m", f"{(__package__ or '')}.download"],
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise EdgeMoEError(f"the download of `{repo}` ended with status {child.returncode}") from None
    if "error" in answer:
        raise _KINDS.get(answer["kind"], EdgeMoEError)(answer["error"], hint=answer["hint"])
    return Path(answer["path"])
