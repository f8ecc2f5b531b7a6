from __future__ import annotations

import pytest

from edgemoe.errors import UsageError
from edgemoe.units import GIB, MIB, Memory, format_exact, format_rate, format_size, parse_memory, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 * GIB),
        ("6G", 6 * GIB),
        ("6g", 6 * GIB),
        ("6GB", 6 * 10**9),
        ("900M", 900 * MIB),
        ("160MB", 160 * 10**6),
        ("1.5G", 3 * GIB // 2),
        (".5GiB", GIB // 2),
        (" 12 KiB ", 12 * 1024),
        ("3k", 3072),
        ("3kB", 3000),
        ("2T", 2048 * GIB),
        ("4096", 4096),
        ("17B", 17),
        (4096, 4096),
    ],
)
def test_sizes_mean_what_users_of_llama_cpp_expect(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "6X", "-1G", "1e9", "6 G B", "1.5.2G", "nan", "0x10", "1,5G", "99999999T", "9" * 400]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert text in str(caught.value) and "`6GiB`" in caught.value.hint


def test_memory_is_bytes_a_share_or_auto() -> None:
    assert parse_memory("4GiB") == Memory("bytes", 4 * GIB)
    assert parse_memory(12345) == Memory("bytes", 12345)
    assert parse_memory("75%") == Memory("percent", 75)
    assert parse_memory("12.5 %") == Memory("percent", 12.5)
    assert parse_memory(" AUTO") == Memory("auto", 0)


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "%", "x%", "nan%", "0", "0G", "much"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_memory(text)
    assert caught.value.hint


def test_a_budget_is_printed_as_it_can_be_written() -> None:
    for text in ("900MiB", "75%", "12.5%", "auto"):
        assert str(parse_memory(text)) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (12_345, "12 KiB"),
        (221 * MIB, "221 MiB"),
        (MIB - 1, "1 MiB"),
        (GIB - 1, "1 GiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (int(2.77 * GIB), "2.77 GiB"),
        (24 * GIB, "24 GiB"),
        (-5 * MIB, "-5 MiB"),
    ],
)
def test_sizes_are_printed_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


def test_an_exact_size_rounds_up_and_can_be_read_back() -> None:
    assert format_exact(137 * MIB) == "137MiB"
    assert format_exact(137 * MIB + 1) == "138MiB"
    assert parse_size(format_exact(137 * MIB + 1)) >= 137 * MIB + 1


def test_rates_are_printed_as_drives_are_sold() -> None:
    assert [format_rate(rate) for rate in (12e3, 850e6, 999.9e6, 2.14e9)] == [
        "12 kB/s",
        "850 MB/s",
        "1.0 GB/s",
        "2.1 GB/s",
    ]
