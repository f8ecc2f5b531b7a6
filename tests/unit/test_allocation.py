"""The file that carries an allocation: what is written is read, and anything else is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.converters.allocation import Allocation, load, save
from edgemoe.errors import FormatError, StorageError

MIXED = Allocation(
    types={0: {"gate": ("Q2_K", "Q4_K"), "up": ("Q2_K", "Q4_K"), "down": ("Q3_K", "Q6_K")}, 7: {"gate_up": ("Q8_0",)}},
    dense={"blk.*.attn_*.weight": "Q6_K"},
    facts={"bits": 3.0},
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(MIXED, tmp_path / "a.json")
    assert load(tmp_path / "a.json") == MIXED
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_matrix_has_a_type_and_another_model_is_refused() -> None:
    assert MIXED.of(0, "down", 1) == "Q6_K"
    for layer, role, expert in ((1, "down", 0), (0, "gate_up", 0), (0, "down", 2)):
        with pytest.raises(FormatError, match="has no type for"):
            MIXED.of(layer, role, expert)


GOOD = {"version": 1, "types": {"0": {"up": ["Q4_0"]}}}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {**GOOD, "version": 2},
        {**GOOD, "types": {}},
        {**GOOD, "types": {"x": {"up": ["Q4_0"]}}},
        {**GOOD, "types": {"-1": {"up": ["Q4_0"]}}},
        {**GOOD, "types": {"0": {"sideways": ["Q4_0"]}}},
        {**GOOD, "types": {"0": {"up": []}}},
        {**GOOD, "types": {"0": {"up": [4]}}},
        {**GOOD, "dense": {"a": 1}},
    ],
)
def test_anything_else_is_refused(value: object, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(FormatError):
        load(tmp_path / "a.json")


def test_no_json_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("GGUF")
    with pytest.raises(FormatError, match="not JSON"):
        load(tmp_path / "a.json")
    with pytest.raises(StorageError, match="cannot read"):
        load(tmp_path / "b.json")
    with pytest.raises(StorageError, match="cannot write"):
        save(MIXED, tmp_path / "no" / "a.json")
