from __future__ import annotations

import math

import pytest

from edgemoe import Sampling, UsageError


def test_the_values_reach_the_native_struct() -> None:
    params = Sampling(temp=0.5, top_k=7, top_p=0.9, min_p=0.1, repeat_penalty=1.1, repeat_last_n=32, seed=11).params()
    assert (params.top_k, params.repeat_last_n, params.seed) == (7, 32, 11)
    floats = (params.temp, params.top_p, params.min_p, params.repeat_penalty)
    assert floats == pytest.approx((0.5, 0.9, 0.1, 1.1))


def test_the_likeliest_token_is_taken_unless_asked_otherwise() -> None:
    assert Sampling().temp == 0


def test_without_a_seed_one_is_drawn() -> None:
    assert len({Sampling().params().seed for _ in range(8)}) > 1
    assert Sampling(seed=0).params().seed == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temp", -0.1),
        ("temp", math.nan),
        ("temp", math.inf),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", math.nan),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -1),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_value_without_meaning_is_refused_by_its_flag(name: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert f"--{name.replace('_', '-')} {value}" in str(caught.value)
    assert caught.value.hint


def test_the_limits_themselves_are_allowed() -> None:
    Sampling(temp=0, top_k=0, top_p=1, min_p=0, repeat_last_n=0, seed=2**32 - 1)
    Sampling(min_p=1)
