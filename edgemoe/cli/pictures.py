"""Pictures at the command line: files that go with a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError

ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        show_default=False,
        help="A picture that goes with the question (JPEG, PNG, GIF, BMP); repeatable.",
    ),
]


def found(names: Sequence[str]) -> list[Path]:
    """Files of pictures. Raises UsageError for one that is not there."""
    files = [Path(name).expanduser() for name in names]
    for file in files:
        if not file.is_file():
            raise UsageError(f"there is no picture `{file}`", hint="give a JPEG or PNG file")
    return [file.resolve() for file in files]


def check_encoder(model: Path, mmproj: str) -> None:
    """Raise UnsupportedError, before a model is loaded, where nothing reads its pictures."""
    from ..runtime.find.mmproj import encoder_of, why_none

    if encoder_of(model, mmproj) is None:
        raise why_none(model)


def with_pictures(text: str, files: Sequence[Path]) -> str | list[dict[str, Any]]:
    """The content of a message: pictures first, as most models were trained."""
    if not files:
        return text
    return [*({"type": "image", "image": str(file)} for file in files), {"type": "text", "text": text}]


def text_of(content: Any) -> str:
    """The text of a content, with its pictures by their names."""
    if isinstance(content, str):
        return content
    named = (f"[{Path(part['image']).name}]" if part["type"] == "image" else part["text"] for part in content)
    return " ".join(named)


def is_content(value: Any) -> bool:
    """Whether a value out of a file is what `with_pictures` makes."""
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") in ("image", "text") and isinstance(part.get(part["type"]), str)
        for part in value
    )
