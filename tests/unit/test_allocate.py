"""Allocation: the program is optimal, keeps its budget and its guards; the baselines are what they say they are."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgemoe.converters.allocate import (
    METHODS,
    Table,
    allocate,
    expected_misses,
    make_table,
    solve,
    super_experts,
)
from edgemoe.converters.calibration import Calibration, LayerCalibration, load, save
from edgemoe.converters.ggml import bits, row_bytes
from edgemoe.errors import FormatError, StorageError, UsageError

TYPES = ("IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q5_K", "Q6_K", "Q8_0")
ERRORS = np.array([0.053, 0.024, 0.0148, 0.0053, 0.0011, 0.00027, 0.00001])
SHAPES = {"gate": (512, 256), "up": (512, 256), "down": (256, 512)}


def calibration(*, n_layer: int = 4, n_expert: int = 16, seed: int = 0, outlier: bool = False) -> Calibration:
    """Experts used like those of a trained model: a few often, many seldom; early layers matter more."""
    rng = np.random.default_rng(seed)
    layers = {}
    for number in range(1, 1 + n_layer):
        tokens = np.sort(rng.zipf(1.5, n_expert).clip(1, 400))[::-1].astype(np.float32)
        output2 = tokens * rng.uniform(0.5, 2.0, n_expert)
        largest = rng.uniform(1, 2, n_expert)
        if outlier and number == 2:
            largest[5] = 900
        stats = np.stack([tokens, tokens / 8, tokens / 64, output2, largest], 1).astype(np.float32)
        layers[number] = LayerCalibration(
            stats,
            rng.standard_normal((n_expert, 256)).astype(np.float32),
            {role: rng.uniform(0.1, 1, (n_expert, n_col)).astype(np.float32) for role, (_, n_col) in SHAPES.items()},
            {role: (ERRORS * rng.uniform(0.8, 1.2, (n_expert, 1))).astype(np.float32) for role in SHAPES},
            SHAPES,
        )
    return Calibration(layers, TYPES, {i: 0.01 / i for i in layers}, 500, {"model": "m", "text": "t", "n_ctx": 500})


def bytes_of(found: object, known: Calibration) -> int:
    types = found.types  # type: ignore[attr-defined]
    return sum(
        n_row * row_bytes(name, n_col)
        for number, layer in known.layers.items()
        for role, (n_row, n_col) in layer.shapes.items()
        for name in types[number][role]
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_program_finds_what_trying_everything_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_row, n_type = 6, 4
    n_bytes = np.sort(rng.integers(1, 40, (n_row, n_type)), 1).astype(np.float64) + np.arange(n_type, dtype=np.float64)
    damage = np.sort(rng.uniform(0, 10, (n_row, n_type)), 1)[:, ::-1].copy()
    table = Table(tuple(((0, "up", i),) for i in range(n_row)), ("a", "b", "c", "d"), n_bytes, damage)
    budget = float(n_bytes.min(1).sum() + 0.5 * (n_bytes.max(1) - n_bytes.min(1)).sum())
    best = min(
        sum(damage[row, i] for row, i in enumerate(choice))
        for choice in itertools.product(range(n_type), repeat=n_row)
        if sum(n_bytes[row, i] for row, i in enumerate(choice)) <= budget
    )
    chosen, bound = solve(table, budget)
    rows = np.arange(n_row)
    found = damage[rows, chosen].sum()
    assert n_bytes[rows, chosen].sum() <= budget
    assert bound - 1e-9 <= best <= found + 1e-9
    # Of so few matrices one step may be missing; the bound says by how much at most.
    largest_step = (damage[:, :-1] - damage[:, 1:]).max()
    assert found - bound <= largest_step


def test_with_many_matrices_nothing_is_left_to_gain() -> None:
    facts = allocate(calibration(n_layer=12, n_expert=64), bits=3.2).facts
    assert facts["least_possible"] <= facts["predicted_divergence"] <= 1.002 * facts["least_possible"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [2.75, 3.25, 4.5])
def test_every_method_keeps_its_budget_and_uses_it(method: str, target: float) -> None:
    known = calibration()
    found = allocate(known, bits=target, method=method)
    n_weight = sum(16 * n_row * n_col for _ in known.layers for n_row, n_col in SHAPES.values())
    assert 8 * bytes_of(found, known) / n_weight == pytest.approx(found.facts["bits"])
    assert found.facts["bits"] <= target
    if method != "uniform":
        assert found.facts["bits"] > target - 0.25
    same = allocate(known, n_bytes=bytes_of(found, known), method=method)
    assert same.types == found.types


def test_the_more_freedom_the_less_damage() -> None:
    known = calibration()
    damage = {m: allocate(known, bits=3.25, method=m).facts["predicted_divergence"] for m in METHODS}
    assert damage["program"] < damage["edgemoe"] < damage["uniform"]
    assert damage["program"] < damage["per-layer"] < damage["uniform"]
    assert damage["program"] < damage["frequency"]


def test_the_baselines_are_what_they_say() -> None:
    known = calibration()
    uniform = allocate(known, bits=3.25, method="uniform")
    assert {name for roles in uniform.types.values() for names in roles.values() for name in names} == {"IQ3_XXS"}
    layered = allocate(known, bits=3.25, method="per-layer")
    assert all(len(set(names)) == 1 for roles in layered.types.values() for names in roles.values())
    assert len({names[0] for roles in layered.types.values() for names in roles.values()}) > 1
    for method in ("frequency", "edgemoe"):
        ranked = allocate(known, bits=3.25, method=method)
        count = Counter(name for roles in ranked.types.values() for names in roles.values() for name in names)
        assert len(count) == 2 and abs(bits(min(count)) - bits(max(count))) > 1
    often = allocate(known, bits=3.25, method="frequency")
    for number, layer in known.layers.items():
        high = [bits(name) for name in often.types[number]["up"]]
        tokens = layer.stats[:, 0]
        assert all(high[a] >= high[b] for a in range(16) for b in range(16) if tokens[a] > tokens[b])


def test_a_super_expert_is_found_and_guarded() -> None:
    assert super_experts(calibration()) == []
    known = calibration(outlier=True)
    assert super_experts(known) == [(2, 5)]
    found = allocate(known, bits=2.75)
    assert {found.types[2][role][5] for role in SHAPES} == {"Q8_0"}
    assert found.facts["super_experts"] == [[2, 5]]
    assert found.facts["bits"] <= 2.75


def test_an_expert_that_was_never_used_is_not_free() -> None:
    known = calibration()
    known.layers[1].stats[7] = 0
    table = make_table(known)
    damage = {items[0]: table.damage[row] for row, items in enumerate(table.items)}
    assert (damage[(1, "up", 7)][:-1] > 0).all()


def test_what_cannot_be_is_refused() -> None:
    known = calibration()
    for wrong in ({"bits": 2.0}, {"n_bytes": 1000}, {}, {"bits": 3.0, "n_bytes": 5}, {"bits": 3.0, "method": "magic"}):
        with pytest.raises(UsageError):
            allocate(known, **wrong)
    with pytest.raises(UsageError, match="no errors of Q4_0"):
        allocate(known, bits=3.0, types=["Q4_0"])


def test_misses_are_those_of_a_cache() -> None:
    known = calibration(n_expert=64)
    rate = {(i, e): float(n) / 500 for i, layer in known.layers.items() for e, n in enumerate(layer.stats[:, 0])}
    misses = expected_misses(known, 40)
    assert all(0 <= misses[key] <= rate[key] for key in rate)
    cached = sum(1 - misses[key] / rate[key] for key in rate)
    assert cached == pytest.approx(40, rel=1e-3)
    assert sum(expected_misses(known, 80).values()) < sum(misses.values())
    assert set(expected_misses(known, 10_000).values()) == {0.0}


def test_the_streaming_term_takes_bits_from_what_is_often_read() -> None:
    known = calibration(n_expert=64)
    misses = expected_misses(known, 40)

    def read(found: object) -> float:
        types = found.types  # type: ignore[attr-defined]
        return sum(misses[(i, e)] * bits(types[i][role][e]) for i in known.layers for role in SHAPES for e in range(64))

    plain = allocate(known, bits=3.5)
    streamed = allocate(known, bits=3.5, misses=misses, miss_cost=1e-3)
    assert read(streamed) < read(plain)


def test_a_calibration_is_a_file_that_others_read_too(tmp_path: Path) -> None:
    import gguf

    known = calibration(outlier=True)
    path = tmp_path / "a.gguf"
    save(known, path)
    found = load(path)
    assert (found.types, found.n_token) == (known.types, 500)
    assert dict(found.sensitivity) == pytest.approx(dict(known.sensitivity))
    for number, layer in known.layers.items():
        other = found.layers[number]
        assert other.shapes == layer.shapes
        np.testing.assert_array_equal(other.stats, layer.stats)
        np.testing.assert_array_equal(other.mean_output, layer.mean_output)
        for role in SHAPES:
            np.testing.assert_array_equal(other.importance[role], layer.importance[role])
            np.testing.assert_array_equal(other.errors[role], layer.errors[role])
    assert allocate(found, bits=3.0).types == allocate(known, bits=3.0).types
    # As llama.cpp's importance matrices are.
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    names = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
    assert names["blk.1.ffn_up_exps.weight.in_sum2"] == [256, 16]
    assert names["blk.1.ffn_up_exps.weight.counts"] == [1, 16]
    weights = found.importance((1, "exps", "down"), 3)
    assert weights is not None and weights.shape == (512,) and (weights > 0).all()
    assert found.importance((99, "exps", "down"), 3) is None


def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    save(calibration(), path)
    whole = path.read_bytes()
    for content in (b"", b"GGUF", whole[: len(whole) // 2], b"text" * 100):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="is no calibration"):
            load(path)
    with pytest.raises(StorageError):
        load(tmp_path / "absent")
    with pytest.raises(StorageError):
        save(calibration(), tmp_path / "no" / "a.gguf")
