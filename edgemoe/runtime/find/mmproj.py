"""The picture encoder of a model: a GGUF file that was named, or the one beside it whose name begins with `mmproj`."""

from __future__ import annotations

from pathlib import Path

from ... import _native
from ...errors import UnsupportedError, UsageError

OFF, AUTO = "off", "auto"
_NAME_ONE = "name one: `--mmproj FILE`"


def encoder_of(model: Path, wanted: str) -> Path | None:
    """The encoder's file, None for no pictures. wanted: "off", a file, or "auto" for the one beside the model.

    Of several beside the model none is taken: which one belongs to it is not for us to say. Nor is one where nothing
    could read it. Raises UsageError for a file that is not there.
    """
    if wanted == OFF:
        return None
    if wanted == AUTO:
        found = beside(model)
        return found[0] if len(found) == 1 and not _native.bundled() else None
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no picture encoder `{path}`", hint="give a GGUF file, or `--mmproj off`")
    return path


def why_none(model: Path) -> UnsupportedError:
    """Why "auto" finds a model no encoder."""
    several = ", ".join(f"`{file.name}`" for file in beside(model))
    if _native.bundled():
        return UnsupportedError(
            "this installation of edgemoe has a llama.cpp of its own, without libmtmd: it reads no pictures",
            hint="install from source: `pip install .` in a checkout",
        )
    if "," in several:
        return UnsupportedError(f"several picture encoders are beside the model: {several}", hint=_NAME_ONE)
    return UnsupportedError(
        f"`{model.name}` has no picture encoder here", hint=f"put its mmproj file beside it, or {_NAME_ONE}"
    )


def beside(model: Path) -> list[Path]:
    """The files beside a model that are encoders by their names."""
    folder = model if model.is_dir() else model.parent
    return sorted(file for file in folder.glob("*.gguf") if file.name.lower().startswith("mmproj"))
