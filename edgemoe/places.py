"""Where models lie on a person's machine: the built-in one, and the folders in which other programs keep theirs."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .paths import user_cache, xdg_cache

BUILTIN = "smolmoe-135m"
"""Name of the model that comes with the package."""


@dataclass(frozen=True)
class Place:
    """A folder with models. kind: how they lie in it: a Hugging Face hub cache, Ollama's store, files in folders."""

    label: str
    kind: Literal["hub", "ollama", "files"]
    folder: Path


def builtin_path() -> Path | None:
    """The built-in model, None where the package was built without it."""
    # An editable install has its Python files and its built files in two folders; both are on __path__.
    folders = [Path(folder, "models") for folder in sys.modules[__package__ or "edgemoe"].__path__]
    apart = importlib.util.find_spec("edgemoe_smolmoe")  # a ready wheel comes with it in a package of its own
    folders += [Path(folder) for folder in (apart.submodule_search_locations or [] if apart else [])]
    return next((path for folder in folders if (path := folder / f"{BUILTIN}.gguf").is_file()), None)


def model_places() -> list[Place]:
    """The places that exist, the user's own first; each folder once."""
    places: dict[str, Place] = {}
    for place in _known_places():
        if place.folder.is_dir():
            places.setdefault(os.path.realpath(place.folder), place)
    return list(places.values())


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads; it may not exist yet."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else xdg_cache() / "huggingface") / "hub"


def _known_places() -> Iterator[Place]:
    home = Path(os.path.expanduser("~"))
    for own in filter(None, os.environ.get("EDGEMOE_MODELS", "").split(os.pathsep)):
        yield Place("EDGEMOE_MODELS", "files", Path(own).expanduser())
    yield Place("Hugging Face", "hub", hub_cache())
    for folder in (home / ".lmstudio" / "models", xdg_cache() / "lm-studio" / "models"):
        yield Place("LM Studio", "files", folder)
    ollama = os.environ.get("OLLAMA_MODELS")
    # The last is the home of the user that Ollama's Linux service runs as.
    for folder in (
        Path(ollama).expanduser() if ollama else home / ".ollama/models",
        Path("/usr/share/ollama/.ollama/models"),
    ):
        yield Place("Ollama", "ollama", folder)
    llama = os.environ.get("LLAMA_CACHE")
    yield Place("llama.cpp", "files", Path(llama).expanduser() if llama else user_cache() / "llama.cpp")
