"""Pictures in prompts: encoded when they first come, told apart by what is in them, encoded again where that is needed.

A prompt is a list of tokens. What the model sees of a picture are rows of embeddings. Each stands in the list as a
number below zero, drawn from the hash of the picture and of the encoder. So prompts are compared, kept and taken up
again with pictures in them as without, and one picture is never taken for another.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from ... import _native
from ...errors import BudgetError, UnsupportedError, UsageError
from .backend import Backend

_MOST_KNOWN = 64  # pictures whose tokens are remembered


class Row(int):
    """A row of a picture in a prompt: a number that no token has.

    picture: the bytes of its file. part: of the picture; a part is computed as a whole. index: in the part.
    """

    picture: bytes
    part: int
    index: int

    @classmethod
    def of(cls, number: int, picture: bytes, part: int, index: int) -> Row:
        row = cls(number)
        row.picture, row.part, row.index = picture, part, index
        return row


def runs(tokens: Sequence[int]) -> Iterator[list[int]]:
    """Tokens in the pieces in which they are computed: of text, or the rows of a part of a picture."""
    if not tokens:
        yield []  # which nobody can compute: refused as ever
    n_part = 0

    def piece(token: int) -> int:
        nonlocal n_part
        if not isinstance(token, Row):
            return 0
        n_part += token.index == 0
        return n_part

    for _, run in groupby(tokens, piece):
        yield list(run)


def whole_parts(tokens: Sequence[int], n: int) -> int:
    """The most of the first n tokens after which no part of a picture has only begun."""
    token = tokens[n] if n < len(tokens) else 0
    return n - token.index if isinstance(token, Row) else n


class Pictures:
    """mmproj: the encoder's file."""

    def __init__(self, mmproj: Path) -> None:
        self.mmproj = mmproj
        status = mmproj.stat()
        self._encoder = f"{mmproj.resolve()} {status.st_size} {status.st_mtime_ns}".encode()
        self._known: OrderedDict[bytes, list[int]] = OrderedDict()  # by hash
        self._encoded: dict[bytes, int] = {}  # numbers of those whose rows are in memory, by hash

    def tokens(self, backend: Backend, pictures: Sequence[bytes]) -> list[list[int]]:
        """What pictures are in a prompt: tokens and rows. pictures: the bytes of their files."""
        keys = {self._key(data) for data in pictures}
        for key in self._encoded.keys() - keys:  # of a prompt that was not computed
            _native.picture_forget(backend.engine, self._encoded.pop(key))
        return [self._tokens_of(backend, data) for data in pictures]

    def _tokens_of(self, backend: Backend, data: bytes) -> list[int]:
        key = self._key(data)
        if key not in self._known:
            number = self._encode(backend, key, data)
            self._known[key] = _native.picture_tokens(backend.engine, number)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._rows(key, data)

    def compute(self, backend: Backend, first: Row) -> None:
        """Compute the part that begins with this row."""
        key = self._key(first.picture)
        number = self._encoded.get(key) or self._encode(backend, key, first.picture)
        try:
            _native.picture_decode(backend.engine, number, first.part)
        except UnsupportedError as error:
            raise UnsupportedError(error.message, hint="a larger `--memory` makes batches larger") from None

    def forget(self, backend: Backend) -> None:
        """Give the memory of rows back: a prompt is computed, or another one begins."""
        while self._encoded:
            _native.picture_forget(backend.engine, self._encoded.popitem()[1])

    def _encode(self, backend: Backend, key: bytes, data: bytes) -> int:
        """Raises BudgetError, UsageError for what is no picture, UnsupportedError for another model's encoder."""
        try:
            self._encoded[key] = _native.picture_add(backend.engine, os.fspath(self.mmproj), data)
        except BudgetError as error:
            raise BudgetError(error.message, hint="give a smaller picture, or a larger `--memory`") from None
        except UsageError as error:
            raise UsageError(error.message, hint=_format_hint(data)) from None
        except UnsupportedError as error:
            where = "libmtmd comes with an installation from source: `pip install .`"
            hint = where if "libmtmd" in error.message else "name the encoder of this model: `--mmproj FILE`"
            raise UnsupportedError(error.message, hint=hint) from None
        return self._encoded[key]

    def _key(self, data: bytes) -> bytes:
        return hashlib.sha256(self._encoder + b"\0" + data).digest()

    def _rows(self, key: bytes, data: bytes) -> list[int]:
        known = self._known[key]
        drawn = array("I")  # as many rows as the batch allows: of two numbers of them none are the same
        drawn.frombytes(hashlib.shake_256(key + len(known).to_bytes(4, "big")).digest(drawn.itemsize * len(known)))
        found, counts = [], dict[int, int]()
        for token, number in zip(known, drawn, strict=True):
            if token >= 0:
                found.append(token)
                continue
            index = counts.get(token, 0)
            counts[token] = index + 1
            found.append(Row.of(-1 - (number >> 1), data, -1 - token, index))
        return found


def _format_hint(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "it is WebP: save it as JPEG or PNG"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "it is HEIC or AVIF: save it as JPEG or PNG"
    return "give a JPEG or PNG file that other programs open"
