"""The pictures of a conversation, taken out of its messages: templates see text with marks where they were.

A content is a text, or a list of parts as OpenAI's API has them: {"type": "text", "text": ...}, and for a picture
{"type": "image", "image": bytes or the path of a file}, or {"type": "image_url", "image_url": {"url": "data:..."}}.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError

_MOST_BYTES = 64 << 20  # of a picture's file


def lifted(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[bytes], str]:
    """The messages with texts alone, the pictures in order, and the mark that stands for each; nobody can guess it.

    Raises UsageError for parts that are neither.
    """
    pictures: list[bytes] = []
    mark = f"<__picture_{secrets.token_hex(8)}__>"
    plain: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list):
            plain.append(message)
            continue
        texts = []
        for part in content:
            if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                pictures.append(picture_of(part))
                texts.append(mark)
        plain.append({**message, "content": "".join(texts)})
    return plain, pictures, mark


def picture_of(part: Any) -> bytes:
    """The bytes of a part that is a picture. Raises UsageError."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        given = part.get("image")
        if isinstance(given, bytes | bytearray):
            return bytes(given)
        if isinstance(given, str | os.PathLike):
            return read(Path(given).expanduser())
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if isinstance(url, str):
            return of_url(url)
    raise UsageError(
        f"`{part!r:.80}` is no part of a message",
        hint='parts are {"type": "text", "text": "..."} and {"type": "image", "image": FILE}',
    )


def of_url(url: str) -> bytes:
    """The bytes in a `data:` URL. Others are not fetched. Raises UsageError."""
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma:
        raise UsageError(
            f"pictures are not fetched from `{url[:60]}`", hint="send the picture itself: `data:image/png;base64,...`"
        )
    if not head.endswith(";base64"):
        raise UsageError("a picture's `data:` URL must be base64", hint="`data:image/png;base64,...`")
    return of_base64(body)


def of_base64(text: str) -> bytes:
    """Raises UsageError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("a picture's base64 is damaged", hint="send it whole") from None


def read(path: Path) -> bytes:
    """The bytes of a picture's file. Raises UsageError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"`{path}` is larger than {_MOST_BYTES >> 20} MiB", hint="give a smaller picture")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}", hint="give a picture's file") from None
