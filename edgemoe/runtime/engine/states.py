"""States of sequences on disk, so that a conversation goes on after a restart without computing it again.

A file is there whole or not at all. It begins with a hash of what follows, so that a damaged one is told from a good
one before anything reads it. Its name begins with the engine's key: the states of other models, setups and libraries
are left alone until the bound makes the oldest go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import StorageError
from ...paths import whole_file

Talk = Callable[[str], None]

_MAGIC = b"EMOEseq1"
_HASH_BYTES = 32
_COUNT = struct.Struct("<Q")  # of tokens; they follow, then the state
_HEAD_BYTES = len(_MAGIC) + _HASH_BYTES + _COUNT.size
_MAX_TOKENS = 1 << 24
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A state that lies on disk. n_bytes: of it, without its tokens."""

    path: Path
    tokens: array[int]
    n_bytes: int


class StateStore:
    """The states of one engine in a folder that all share. max_bytes: of all files there. talk: what went wrong."""

    def __init__(self, folder: Path, max_bytes: int, key: int, talk: Talk) -> None:
        """key: the engine's; see `Backend.state_key`. Reads heads and tokens, no states."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._key = key
        self._talk = talk
        self._stored = {path: stored for path in self._own() if (stored := self._head(path))}

    @property
    def stored(self) -> list[Stored]:
        """The states of this engine."""
        return list(self._stored.values())

    def load(self, stored: Stored) -> bytearray | None:
        """A state's bytes; None, said and forgotten, where the file has gone or is damaged."""
        self._stored.pop(stored.path, None)
        try:
            with stored.path.open("rb") as stream:
                _, digest, tokens = _read_head(stream)
                state = bytearray(stored.n_bytes)
                n_read = stream.readinto(state)
                whole = n_read == len(state) and not stream.read(1)
            if not whole or tokens != stored.tokens or digest != _digest(tokens, state):
                raise ValueError
            os.utime(stored.path)  # it was used now
        except FileNotFoundError:
            return None  # another process needed the room
        except (OSError, ValueError):
            self._talk(f"the state `{stored.path}` is damaged: its conversation is computed again")
            _remove(stored.path)
            return None
        self._stored[stored.path] = stored
        return state

    def save(self, tokens: array[int], state: bytearray, *, cuts: bool) -> None:
        """Write a state. What cannot be written is said, and lost. cuts: it stands for those of its beginnings."""
        name = hashlib.blake2b(tokens.tobytes(), digest_size=8).hexdigest()
        path = self.folder / f"{self._key:016x}-{name}.state"
        if path in self._stored:
            with contextlib.suppress(OSError):
                os.utime(path)
            return
        for old in [one for one in self._stored.values() if cuts and shared(one.tokens, tokens) == len(one.tokens)]:
            del self._stored[old.path]
            _remove(old.path)
        n_bytes = _HEAD_BYTES + 4 * len(tokens) + len(state)
        if n_bytes > self.max_bytes:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(n_bytes)
            with whole_file(path, private=True) as stream:
                stream.write(_MAGIC + _digest(tokens, state) + _COUNT.pack(len(tokens)))
                stream.write(tokens.tobytes())
                stream.write(state)
        except (OSError, StorageError) as error:
            reason = error.message if isinstance(error, StorageError) else f"{error.strerror}: `{self.folder}`"
            self._talk(f"the state of a conversation is not kept: {reason}")
            return
        self._stored[path] = Stored(path, tokens[:], len(state))

    def _make_room(self, n_bytes: int) -> None:
        """Delete the states that were used longest ago, whosever they are."""
        found = []
        for path in self.folder.glob("*.state"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        left = sum(size for _, size, _ in found) + n_bytes
        for _, size, path in sorted(found):
            if left <= self.max_bytes:
                return
            _remove(path)
            self._stored.pop(path, None)
            left -= size

    def _own(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from sorted(self.folder.glob(f"{self._key:016x}-*.state"))

    def _head(self, path: Path) -> Stored | None:
        """What a file says of itself; None, said, for one that is none of ours."""
        try:
            with path.open("rb") as stream:
                n_bytes, _, tokens = _read_head(stream)
            return Stored(path, tokens, n_bytes)
        except (OSError, ValueError):
            self._talk(f"`{path}` is no state of a conversation: it is left alone")
            return None


def shared(first: array[int], second: array[int]) -> int:
    """Tokens that two sequences begin with."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def _read_head(stream: BinaryIO) -> tuple[int, bytes, array[int]]:
    """Bytes of the state that follows, the hash, the tokens. Raises ValueError, OSError."""
    head = stream.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
        raise ValueError
    (n_token,) = _COUNT.unpack(head[-_COUNT.size :])
    n_bytes = os.fstat(stream.fileno()).st_size - _HEAD_BYTES - 4 * n_token
    if not 0 < n_token <= _MAX_TOKENS or n_bytes <= 0:
        raise ValueError
    tokens = array("i")
    tokens.frombytes(stream.read(4 * n_token))
    return n_bytes, head[len(_MAGIC) : -_COUNT.size], tokens


def _digest(tokens: array[int], state: bytearray) -> bytes:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    digest.update(_COUNT.pack(len(tokens)))
    digest.update(tokens.tobytes())
    digest.update(state)
    return digest.digest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
