"""The picture encoder of a model: a GGUF file beside it whose name begins with `mmproj`, or one that was named."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError

OFF, AUTO = "off", "auto"


def encoder_of(model: Path, wanted: str) -> Path | None:
    """The encoder's file, None for no pictures. wanted: "off", a file, or "auto" for the one beside the model.

    Raises UsageError for a file that is not there, and where there are several beside the model.
    """
    if wanted == OFF:
        return None
    if wanted != AUTO:
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no picture encoder `{path}`", hint="give a GGUF file, or `--mmproj off`")
        return path
    folder = model if model.is_dir() else model.parent
    found = sorted(file for file in folder.glob("*.gguf") if file.name.lower().startswith("mmproj"))
    if len(found) > 1:
        names = ", ".join(f"`{file.name}`" for file in found[:4])
        raise UsageError(f"several picture encoders are beside the model: {names}", hint="name one: `--mmproj FILE`")
    return found[0] if found else None
