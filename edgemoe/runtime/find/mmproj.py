"""The picture encoder of a model: a GGUF file that was named, or the one beside it whose name begins with `mmproj`."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError

OFF, AUTO = "off", "auto"


def encoder_of(model: Path, wanted: str) -> Path | None:
    """The encoder's file, None for no pictures. wanted: "off", a file, or "auto" for the one beside the model.

    Of several beside the model none is taken: which one belongs to it is not for us to say. Raises UsageError for a
    file that is not there.
    """
    if wanted == OFF:
        return None
    if wanted == AUTO:
        found = beside(model)
        return found[0] if len(found) == 1 else None
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no picture encoder `{path}`", hint="give a GGUF file, or `--mmproj off`")
    return path


def beside(model: Path) -> list[Path]:
    """The files beside a model that are encoders by their names."""
    folder = model if model.is_dir() else model.parent
    return sorted(file for file in folder.glob("*.gguf") if file.name.lower().startswith("mmproj"))
