"""A prompt is the same from a file and from a pipe, and text that is piped beside `-p` is part of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import needs_library

pytestmark = needs_library


def answer(environment: dict[str, str], model: Path, *arguments: object, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "edgemoe", "run", str(model), "-n", "16", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "raw",
    [b"one\r\ntwo\r\nthree\r\n", b"one\rtwo\rthree", b"\xef\xbb\xbfone\r\ntwo\nthree\n\n"],
    ids=["dos", "mac", "mark"],
)
def test_line_ends_are_the_same_from_a_file_and_from_a_pipe(
    good: Path, environment: dict[str, str], tmp_path: Path, raw: bytes
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(raw)
    plain = answer(environment, good, "-p", "one\ntwo\nthree")
    assert answer(environment, good, "-f", file) == plain
    assert answer(environment, good, stdin=raw) == plain
    assert answer(environment, good, "-p", "-", stdin=raw) == plain
    assert answer(environment, good, "-f", "-", stdin=raw) == plain


def test_text_that_is_piped_in_follows_the_prompt(good: Path, environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "ask.txt"
    file.write_text("Sum up:\n")
    both = answer(environment, good, "-p", "Sum up:\n\nthe text")
    assert answer(environment, good, "-p", "Sum up:", stdin=b"the text\n") == both
    assert answer(environment, good, "-f", file, stdin=b"the text\n") == both
    alone = answer(environment, good, "-p", "Sum up:")
    assert answer(environment, good, "-p", "Sum up:", stdin=b"\n") == alone != both


def test_a_pipe_that_says_nothing_is_waited_for_with_a_word(good: Path, environment: dict[str, str]) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "edgemoe", "run", str(good), "-p", "hi", "-n", "4"],
        stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as child:  # fmt: skip
        os.close(read)
        assert child.stderr is not None
        assert b"waiting for the end of stdin" in child.stderr.readline()
        os.close(write)
        assert child.wait(60) == 0


def test_what_is_no_text_is_refused_from_both(good: Path, environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("über".encode("utf-16"))
    for arguments, stdin in ((["-f", str(file)], b""), ([], file.read_bytes())):
        done = subprocess.run(
            [sys.executable, "-m", "edgemoe", "run", str(good), *arguments],
            input=stdin, capture_output=True, env=environment, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and b"is not UTF-8 text" in done.stderr
