"""Functions of edgemoe.h on pictures."""

from __future__ import annotations

import ctypes
import os
from array import array

from .. import _abi as abi
from .library import EngineHandle, check, int32_pointer, library


def picture_add(engine: EngineHandle, mmproj: str, data: bytes) -> int:
    """Encode a picture; the number by which it is known until `picture_forget`."""
    number, error = ctypes.c_uint64(), abi.Error()
    status = library().emoe_engine_picture_add(
        engine, os.fsencode(mmproj), data, len(data), ctypes.byref(number), ctypes.byref(error)
    )
    check(status, error)
    return number.value


def picture_tokens(engine: EngineHandle, picture: int) -> list[int]:
    """What it is in a prompt: tokens, and -1 - i for each row of its part i."""
    n, error = ctypes.c_uint32(), abi.Error()

    def ask(tokens: array[int]) -> None:
        pointer = int32_pointer(tokens) if tokens else None
        status = library().emoe_engine_picture_tokens(
            engine, picture, pointer, len(tokens), ctypes.byref(n), ctypes.byref(error)
        )
        check(status, error)

    ask(array("i"))
    tokens = array("i", bytes(4 * n.value))
    ask(tokens)
    return tokens.tolist()


def picture_decode(engine: EngineHandle, picture: int, part: int) -> None:
    error = abi.Error()
    check(library().emoe_engine_picture_decode(engine, picture, part, ctypes.byref(error)), error)


def picture_forget(engine: EngineHandle, picture: int) -> None:
    library().emoe_engine_picture_forget(engine, picture)
