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
from io import BufferedReader
from pathlib import Path

from ...errors import StorageError
from ...paths import whole_file
from .checkpoints import Checkpoint, Kept

Talk = Callable[[str], None]

_MAGIC = b"EMOEseq2"
_HASH_BYTES = 32
_COUNTS = struct.Struct("<QQ")  # tokens, checkpoints; then the tokens, the places, the state, the checkpoints' states
_PLACE = struct.Struct("<QQ")  # tokens before a checkpoint, its bytes
_HEAD_BYTES = len(_MAGIC) + _HASH_BYTES + _COUNTS.size
_MAX_TOKENS = 1 << 24
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A state that lies on disk.

    n_bytes: of it, without its tokens. places, sizes: tokens before its checkpoints, and their bytes.
    """

    path: Path
    tokens: array[int]
    n_bytes: int
    places: tuple[int, ...]
    sizes: tuple[int, ...]


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

    def load(self, stored: Stored) -> Kept | None:
        """A state's bytes; None, said and forgotten, where the file has gone or is damaged."""
        self._stored.pop(stored.path, None)
        try:
            with stored.path.open("rb") as stream:
                digest, now = _read_head(stream, stored.path)
                if now != stored:
                    raise ValueError
                state, *checkpoints = (_read(stream, n) for n in (now.n_bytes - sum(now.sizes), *now.sizes))
                whole = not stream.read(1)
            pairs = zip(now.places, checkpoints, strict=True)
            kept = Kept(now.tokens, state, tuple(Checkpoint(n, one) for n, one in pairs))
            if not whole or digest != _digest(_parts(kept)):
                raise ValueError
            os.utime(stored.path)  # it was used now
        except FileNotFoundError:
            return None  # another process needed the room
        except (OSError, ValueError):
            self._talk(f"the state `{stored.path}` is damaged: its conversation is computed again")
            _remove(stored.path)
            return None
        self._stored[stored.path] = stored
        return kept

    def save(self, kept: Kept, *, cuts: bool) -> None:
        """Write a state. What cannot be written is said, and lost. cuts: see `stands_for`."""
        tokens, places = kept.tokens, kept.places
        name = hashlib.blake2b(tokens.tobytes(), digest_size=8).hexdigest()
        path = self.folder / f"{self._key:016x}-{name}.state"
        if path in self._stored:
            with contextlib.suppress(OSError):
                os.utime(path)
            return
        for old in [one for one in self._stored.values() if stands_for(tokens, places, one.tokens, cuts=cuts)]:
            del self._stored[old.path]
            _remove(old.path)
        parts = _parts(kept)
        n_bytes = len(_MAGIC) + _HASH_BYTES + sum(len(part) for part in parts)
        if n_bytes > self.max_bytes:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(n_bytes)
            with whole_file(path, private=True) as stream:
                stream.write(_MAGIC + _digest(parts))
                for part in parts:
                    stream.write(part)
        except (OSError, StorageError) as error:
            reason = error.message if isinstance(error, StorageError) else f"{error.strerror}: `{self.folder}`"
            self._talk(f"the state of a conversation is not kept: {reason}")
            return
        sizes = tuple(len(one.state) for one in kept.checkpoints)
        self._stored[path] = Stored(path, tokens[:], kept.n_bytes, places, sizes)

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
                return _read_head(stream, path)[1]
        except (OSError, ValueError):
            self._talk(f"`{path}` is no state of a conversation: it is left alone")
            return None


def shared(first: array[int], second: array[int]) -> int:
    """Tokens that two sequences begin with."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def stands_for(tokens: array[int], places: tuple[int, ...], old: array[int], *, cuts: bool) -> bool:
    """Whether a sequence, with checkpoints at these places, can be cut to the old one. cuts: whether anywhere."""
    n = len(old)
    return shared(tokens, old) == n and (cuts or n == len(tokens) or n in places)


def _read_head(stream: BufferedReader, path: Path) -> tuple[bytes, Stored]:
    """The hash, and what the state that follows is. Raises ValueError, OSError."""
    head = stream.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
        raise ValueError
    n_token, n_checkpoint = _COUNTS.unpack(head[-_COUNTS.size :])
    if not 0 < n_token <= _MAX_TOKENS or n_checkpoint > n_token:
        raise ValueError
    n_bytes = os.fstat(stream.fileno()).st_size - _HEAD_BYTES - 4 * n_token - _PLACE.size * n_checkpoint
    if n_bytes <= 0:
        raise ValueError
    tokens = array("i")
    tokens.frombytes(stream.read(4 * n_token))
    pairs = tuple(_PLACE.iter_unpack(stream.read(_PLACE.size * n_checkpoint)))
    places, sizes = tuple(n for n, _ in pairs), tuple(size for _, size in pairs)
    if len(pairs) != n_checkpoint or sum(sizes) >= n_bytes or any(not 0 < n <= n_token for n in places):
        raise ValueError
    return head[len(_MAGIC) : -_COUNTS.size], Stored(path, tokens, n_bytes, places, sizes)


def _read(stream: BufferedReader, n_bytes: int) -> bytearray:
    """So many bytes. Raises ValueError where there are fewer."""
    found = bytearray(n_bytes)
    if stream.readinto(found) != n_bytes:
        raise ValueError
    return found


def _parts(kept: Kept) -> list[bytes | bytearray]:
    """What a file has behind its hash."""
    places = b"".join(_PLACE.pack(one.n, len(one.state)) for one in kept.checkpoints)
    counts = _COUNTS.pack(len(kept.tokens), len(kept.checkpoints))
    return [counts, kept.tokens.tobytes(), places, kept.state, *(one.state for one in kept.checkpoints)]


def _digest(parts: list[bytes | bytearray]) -> bytes:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
