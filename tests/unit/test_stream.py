from __future__ import annotations

import pytest

from edgemoe.errors import UsageError
from edgemoe.runtime.text.stream import TextStream


def test_only_whole_characters_come_out() -> None:
    stream = TextStream()
    raw = "né€😀".encode()
    pieces = [stream.feed(raw[i : i + 1]) for i in range(len(raw))]
    assert [piece for piece in pieces if piece] == ["n", "é", "€", "😀"]
    assert stream.finish() == ""


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    stream = TextStream()
    assert stream.feed("€".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_bytes_that_are_no_text_do_not_stop_the_stream() -> None:
    stream = TextStream()
    assert stream.feed(b"a\xff\xfeb") == "a\ufffd\ufffdb"


def test_a_stop_string_ends_the_text_before_itself() -> None:
    stream = TextStream(["END"])
    assert stream.feed(b"one END two") == "one "
    assert stream.stopped
    assert stream.feed(b"three") == stream.finish() == ""


def test_a_stop_string_in_pieces_is_never_shown_in_part() -> None:
    stream = TextStream(["<end>"])
    assert "".join(stream.feed(piece) for piece in (b"a", b"<", b"en", b"d>", b"b")) == "a"
    assert stream.stopped


def test_what_only_began_like_a_stop_string_is_shown() -> None:
    stream = TextStream(["<end>"])
    assert stream.feed(b"1 <en") == "1 "
    assert stream.feed(b"try> <e") == "<entry> "
    assert not stream.stopped
    assert stream.finish() == "<e"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    stream = TextStream(["two", "one two"])
    assert stream.feed(b"zero one") == "zero "
    assert stream.feed(b" two three") == ""
    assert stream.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError):
        TextStream(["x", ""])
