"""The ctypes mirror says what native/include/edgemoe.h says."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgemoe import _abi
from edgemoe._native.signatures import FUNCTIONS

HEADER = Path(__file__).parent.parent / "native" / "include" / "edgemoe.h"
TEXT = re.sub(r"/\*.*?\*/|^#.*?$", "", HEADER.read_text(), flags=re.DOTALL | re.MULTILINE)

SCALARS: dict[object, str] = {
    ctypes.c_uint32: "uint32_t",
    ctypes.c_int32: "int32_t",
    ctypes.c_uint64: "uint64_t",
    ctypes.c_int64: "int64_t",
    ctypes.c_float: "float",
    ctypes.c_double: "double",
    ctypes.c_uint8: "uint8_t",
    None: "void",
}


def declared_functions() -> dict[str, tuple[str, list[str]]]:
    found = re.findall(r"EMOE_API\s+(.+?)\b(emoe_\w+)\(([^)]*)\);", TEXT, flags=re.DOTALL)
    return {
        name: (returns.strip(), [] if args.strip() == "void" else [" ".join(arg.split()) for arg in args.split(",")])
        for returns, name, args in found
    }


def c_type(declaration: str) -> str:
    """`const int32_t *tokens` -> `int32_t *`, with handles as `void *` and statuses as `int32_t`."""
    kind = re.sub(r"\bconst\b", "", declaration)
    stars = kind.count("*")
    base = kind.replace("*", " ").split()[0]
    handles = (
        "emoe_model", "emoe_engine", "emoe_text", "emoe_sampler", "emoe_stream", "emoe_allowance", "emoe_session",
        "emoe_policy",
    )  # fmt: skip
    if base in CALLBACKS:
        return base
    base = "int32_t" if base == "emoe_status" else "void" if base in handles else base
    return f"{base} {'*' * stars}".strip()


CALLBACKS = {
    "emoe_sizes_fn": _abi.SizesFunction,
    "emoe_resize_fn": _abi.ResizeFunction,
    "emoe_resident_fn": _abi.ResidentFunction,
}


def mirrored(kind: object) -> str:
    for name, function in CALLBACKS.items():
        if kind is function:
            return name
    if kind is ctypes.c_char_p:
        return "char *"
    if kind is ctypes.c_void_p:
        return "void *"
    if kind in SCALARS:
        return SCALARS[kind]
    if kind is ctypes.POINTER(ctypes.c_void_p):
        return "void **"
    if kind is ctypes.POINTER(ctypes.c_char_p):
        return "char **"
    target = kind._type_  # type: ignore[attr-defined]
    names = {struct: name for name, struct in _abi.STRUCTS.items()}
    return f"{names.get(target) or SCALARS[target]} *"


def test_every_function_of_the_header_is_bound_with_its_types() -> None:
    declared = declared_functions()
    assert len(declared) > 30
    assert set(declared) == set(FUNCTIONS)
    for name, (returns, args) in declared.items():
        restype, argtypes = FUNCTIONS[name]
        assert c_type(returns) == mirrored(restype), name
        assert [c_type(arg) for arg in args] == [mirrored(kind) for kind in argtypes], name


def test_every_callback_of_the_header_is_mirrored() -> None:
    declared = re.findall(r"typedef (\w+) \(\*(emoe_\w+_fn)\)\(([^)]*)\);", TEXT)
    assert {name for _, name, _ in declared} == set(CALLBACKS)
    for returns, name, args in declared:
        function: Any = CALLBACKS[name]
        assert c_type(returns) == mirrored(function._restype_), name
        assert [c_type(arg) for arg in args.split(",")] == [mirrored(kind) for kind in function._argtypes_], name


def test_every_struct_of_the_header_is_mirrored_field_by_field() -> None:
    declared = {
        name: re.findall(r"(\w+)(?:\[\w+\])?;", body)
        for name, body in re.findall(r"typedef struct (emoe_\w+) \{(.*?)\}", TEXT, flags=re.DOTALL)
    }
    assert declared == {name: [field[0] for field in struct._fields_] for name, struct in _abi.STRUCTS.items()}


def test_every_constant_of_the_header_is_mirrored() -> None:
    declared = dict(
        re.findall(
            r"#define EMOE_((?:OK|ERR_|BUDGET_|POLICY_|PREFETCH_|EXPERT_|MAX_|REPLAY_|READER_|FINISH_|MEMORY_|FAULT_"
            r"|DEVICE_|ABI_)\w*) (\d+)",
            HEADER.read_text(),
        )
    )
    assert len(declared) > 10
    assert declared == {name: str(getattr(_abi, name, None)) for name in declared}


def test_a_compiler_finds_the_same_sizes_and_offsets(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines, expected = [], []
    for name, struct in _abi.STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            )
            offset = getattr(struct, field)
            expected.append(f"{name}.{field} {offset.offset} {offset.size}")
    body = "\n".join(lines)
    source = tmp_path / "abi.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{\n{body}\nreturn 0;\n}}\n'
    )
    subprocess.run([compiler, "-std=c11", "-Wall", "-Werror", str(source), "-o", str(tmp_path / "abi")], check=True)
    printed = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == expected


def test_a_struct_knows_its_size() -> None:
    assert _abi.Stats().struct_size == ctypes.sizeof(_abi.Stats)
    assert _abi.Setup(n_ctx=7).n_ctx == 7
