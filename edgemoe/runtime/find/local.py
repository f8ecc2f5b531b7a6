"""The models that are on this machine, by name: looks into folders, opens nothing. Never copies or writes."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...places import BUILTIN, Place, builtin_path, model_places

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})$")
_DIGEST = re.compile(r"[\w+.-]+:[0-9A-Fa-f]+")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_DEEPEST = 6  # folders below a link
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Found:
    """A GGUF file on this machine; of a split set the first file.

    name: what `resolve` takes, unique among those found together. place: who keeps it there. n_bytes: all files.
    repo: "owner/repo" where the place says so, else "".
    """

    name: str
    path: Path
    place: str
    n_bytes: int
    repo: str = ""


def find_models(places: Iterable[Place] | None = None) -> list[Found]:
    """The built-in model and every GGUF in the places where users keep them; each file once, whatever links to it.

    places: None for those of this machine.
    """
    found = []
    builtin = builtin_path() if places is None else None
    if builtin:
        found.append(Found(BUILTIN, builtin, "built in", builtin.stat().st_size))
    for place in model_places() if places is None else places:
        look = {"hub": _in_hub, "ollama": _in_ollama, "files": _in_folder}[place.kind]
        found += sorted(look(place), key=lambda model: model.name.lower())
    once = {os.path.realpath(model.path): model for model in reversed(found)}
    return _distinct([once[path] for path in reversed(once)])


def model_name(path: Path) -> str:
    """ "Qwen3-30B-A3B-Q4_K_M" of ".../Qwen3-30B-A3B-Q4_K_M-00001-of-00002.gguf"."""
    part = _PART.match(path.stem)
    return part[1] if part else path.stem


def split_set(path: Path) -> list[Path]:
    """Every file of the set that a path begins, in order, whether it exists or not; the path alone if it is no set."""
    part = _PART.match(path.stem)
    if not part:
        return [path]
    return [path.with_name(f"{part[1]}-{i:05}-of-{part[3]}{path.suffix}") for i in range(1, int(part[3]) + 1)]


def is_model_file(name: str) -> bool:
    """A GGUF that holds a language model, by its name: no later part of a split set, no image projector."""
    stem, suffix = os.path.splitext(os.path.basename(name))
    part = _PART.match(stem)
    return suffix.lower() == ".gguf" and not stem.lower().startswith("mmproj") and (part is None or int(part[2]) == 1)


def _found(path: Path, place: Place, *, name: str = "", repo: str = "") -> Iterator[Found]:
    """A whole model: a download under way lacks files, and is none."""
    try:
        n_bytes = sum(file.stat().st_size for file in split_set(path))
    except OSError:
        return
    yield Found(name or model_name(path), path, place.label, n_bytes, repo)


def _files_below(root: Path) -> Iterator[Path]:
    """Every file below a folder, linked folders followed, each folder once: a link that leads back in ends there.

    What lies deeper below a link than any program keeps models is left out: it may lead to the root of a disk.
    """
    seen: set[tuple[int, int]] = set()
    todo = deque([(root, 0)])  # with the folders since the link that led there
    while todo:
        folder, depth = todo.popleft()
        try:
            status = folder.stat()
            inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # not ours to read, or gone
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in inside:
            if entry.name.startswith("."):
                continue
            path = Path(folder, entry.name)
            if os.path.isdir(path):
                deeper = depth + 1 if depth or entry.is_symlink() else 0
                if deeper <= _DEEPEST:
                    todo.append((path, deeper))
            else:
                yield path


def _in_folder(place: Place) -> Iterator[Found]:
    for file in _files_below(place.folder):
        if is_model_file(file.name):
            yield from _found(file, place)


def _in_hub(place: Place) -> Iterator[Found]:
    """models--OWNER--REPO/snapshots/REVISION/FILE, a link to a blob; the newest snapshot of a file counts."""
    for repo in sorted(place.folder.glob("models--*--*")):
        owner, _, name = repo.name.removeprefix("models--").partition("--")
        files: dict[str, Path] = {}
        for snapshot in sorted(repo.glob("snapshots/*"), key=_age):
            for file in sorted(_files_below(snapshot)):
                if is_model_file(file.name):
                    files[str(file.relative_to(snapshot))] = file
        for file in files.values():
            yield from _found(file, place, repo=f"{owner}/{name}")


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a link to nothing
        return 0.0


def _in_ollama(place: Place) -> Iterator[Found]:
    """manifests/HOST/OWNER/MODEL/TAG names the blob that holds the weights."""
    root = place.folder / "manifests"
    for manifest in sorted(path for path in _files_below(root) if path.is_file()):
        blob = _ollama_blob(place.folder, manifest)
        if blob is not None:
            parts = manifest.relative_to(root).parts
            yield from _found(blob, place, name=_ollama_name(parts))


def _ollama_blob(folder: Path, manifest: Path) -> Path | None:
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        layers = json.loads(manifest.read_text("utf-8"))["layers"]
        digest = next(layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL)
        return folder / "blobs" / digest.replace(":", "-") if _DIGEST.fullmatch(digest) else None
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None  # not a manifest


def _ollama_name(parts: tuple[str, ...]) -> str:
    """As Ollama writes it: "qwen3:30b", "someone/model:tag", "hf.co/owner/repo:tag"."""
    *where, model, tag = parts
    if where and where[0] == "registry.ollama.ai":
        where = where[1:] if where[1:] != ["library"] else []
    return "/".join([*where, model]) + ("" if tag == "latest" else f":{tag}")


def _distinct(models: list[Found]) -> list[Found]:
    """A name that several have gets its repository or its path."""
    count = Counter(model.name.lower() for model in models)
    renamed = [
        model
        if count[model.name.lower()] == 1 or model.place == "built in"
        else replace(model, name=f"{model.repo}:{model.name}" if model.repo else str(model.path))
        for model in models
    ]
    again = Counter(model.name.lower() for model in renamed)
    return [model if again[model.name.lower()] == 1 else replace(model, name=str(model.path)) for model in renamed]
