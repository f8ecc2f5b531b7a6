"""The native rooms look one way: base below io, cache, pipeline; llama.cpp in two rooms; the C interface on top."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent.parent / "native"
SOURCES = NATIVE / "src"

# What the files of a room may include of ours, beside their own room and edgemoe.h.
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "io": {"base"},
    "cache": {"base"},
    "pipeline": {"base", "io", "cache"},
    "budget": {"base"},
    "text": {"base"},
    "llama": {"base", "io", "cache", "pipeline"},
    "engine": {"base", "io", "cache", "pipeline", "llama"},
    "store": {"base", "budget", "llama"},
    "session": {"base", "budget", "text"},
    "capi": {"base", "io", "cache", "pipeline", "budget", "text", "llama", "engine", "store", "session"},
}
KNOWS_LLAMA = {"llama", "engine"}
MOST_FILE_LINES = 600
MOST_FUNCTION_LINES = 60

OURS = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
THEIRS = re.compile(r"^#include <((?:ggml|gguf|llama)[^>]*)>", re.MULTILINE)
# A type or function of theirs; what is merely called after them (build_info's text, our folder's names) is none.
NAME_OF_THEIRS = re.compile(r"\b(?:ggml|gguf|llama)_\w+|\b(?:GGML|LLAMA)_\w+")
# Comments, strings (raw ones first), characters: what braces in them mean is nothing.
NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|R"\((?:.*?)\)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL)
NO_FUNCTION = re.compile(r"^\s*(?:\w+\s+)*(?:namespace|class|struct|enum|union|extern)\b[^()]*$")


def sources() -> list[Path]:
    found = sorted(p for p in SOURCES.rglob("*") if p.suffix in {".h", ".cpp"})
    assert len(found) > 80
    return found


def name_of(path: Path) -> str:
    return path.relative_to(SOURCES).as_posix()


def room_of(name: str) -> str:
    return name.split("/")[0]


def code_of(path: Path) -> str:
    """The text with comments and literals blanked, lines where they were."""
    return NOT_CODE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), path.read_text())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Heads of the functions that a file defines, in classes too, and their lines from the head to the last brace."""
    code = code_of(path)
    code = re.sub(
        r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: re.sub(r"[^\n]", " ", m.group()), code, flags=re.MULTILINE
    )
    opened: list[tuple[bool, str, int]] = []  # is a function, its head, where the head begins
    head_at = 0
    for at, sign in enumerate(code):
        if sign not in "{};":
            continue
        if sign == "{":
            head = code[head_at:at]
            inside = any(is_function for is_function, _, _ in opened)
            begin = head_at + len(head) - len(head.lstrip())
            opened.append((not inside and "(" in head and not NO_FUNCTION.match(head), " ".join(head.split()), begin))
        elif sign == "}":
            is_function, head, begin = opened.pop()
            if is_function:
                yield head, code.count("\n", begin, at) + 1
        head_at = at + 1
    assert not opened, f"{path}: braces that do not match"


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_includes_only_what_lies_below_it(room: str) -> None:
    files = [path for path in sources() if room_of(name_of(path)) == room]
    assert files
    for path in files:
        for included in OURS.findall(path.read_text()):
            assert (SOURCES / included).is_file(), f"{name_of(path)} includes {included}"
            assert room_of(included) in ALLOWED[room] | {room}, f"{name_of(path)} includes {included}"


def test_every_file_is_in_a_room() -> None:
    assert {room_of(name_of(path)) for path in sources()} == set(ALLOWED)


def test_two_rooms_know_llama_cpp() -> None:
    for path in sources():
        if room_of(name_of(path)) in KNOWS_LLAMA:
            continue
        assert not THEIRS.findall(path.read_text()), f"{name_of(path)} includes a header of llama.cpp"
        assert not NAME_OF_THEIRS.findall(code_of(path)), f"{name_of(path)} uses a name of llama.cpp"


def test_no_includes_go_round() -> None:
    includes = {name_of(path): OURS.findall(path.read_text()) for path in sources()}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for included in includes[name]:
            visit(included, [*way, name])
        done.add(name)

    for name in includes:
        visit(name, [])


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    for path in [*sources(), *sorted((NATIVE / "tests").rglob("*.*"))]:
        n = len(path.read_text().splitlines())
        assert n <= MOST_FILE_LINES, f"{path.relative_to(NATIVE)} has {n} lines"


def test_no_function_is_longer_than_a_screen() -> None:
    found = {f"{name_of(path)}: {head}": n for path in sources() for head, n in functions(path)}
    assert len(found) > 500
    too_long = {head: n for head, n in found.items() if n > MOST_FUNCTION_LINES}
    assert not too_long


def test_functions_are_found_and_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.cpp"
    path.write_text(
        "namespace n {\n"
        "struct A {\n"
        "    int f() const { return g_; }\n"
        '    const char *brace = "{"; // {\n'
        "};\n"
        "A::A(int a,\n"
        "     int b)\n"
        "    : a_(a) {\n"
        "    for (;;) {\n"
        "    }\n"
        "    auto const l = [&](int x) { return x; };\n"
        "}\n"
        "int const table[] = {1, 2};\n"
        "} // namespace n\n"
    )
    assert [(head.split("(")[0], n) for head, n in functions(path)] == [("int f", 1), ("A::A", 7)]


def test_every_function_of_the_header_is_called_with_nonsense() -> None:
    header = (NATIVE / "include" / "edgemoe.h").read_text()
    declared = set(re.findall(r"\bEMOE_API\b[^;(]*?\b(emoe_\w+)\(", header))
    assert len(declared) > 100
    called = "".join((NATIVE / "tests" / f"handles_{part}.cpp").read_text() for part in ("test", "gguf"))
    assert not {name for name in declared if f"{name}(" not in called}
