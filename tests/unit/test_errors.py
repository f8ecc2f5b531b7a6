from __future__ import annotations

import pytest

import edgemoe
from edgemoe import _abi, _native, errors
from edgemoe.errors import BudgetError, Cancelled, EdgeMoEError, NativeError, UsageError


def test_an_error_is_its_message_and_carries_a_hint() -> None:
    error = UsageError("`x` is a folder", hint="give a file")
    assert str(error) == error.message == "`x` is a folder"
    assert error.hint == "give a file"
    assert EdgeMoEError("x").hint == ""


def test_what_was_used_wrongly_exits_with_2_and_what_failed_with_1() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeMoEError)]
    wrong = {kind.__name__ for kind in kinds if kind.exit_code == 2}
    assert wrong == {"UsageError", "BudgetError"}
    assert {kind.exit_code for kind in kinds} - {2} == {1, Cancelled.exit_code}


def test_a_budget_error_names_the_smallest_that_works() -> None:
    assert BudgetError("x", smallest=7).smallest == 7
    assert BudgetError("x").smallest == 0


def test_every_error_is_reachable_from_the_package() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, EdgeMoEError):
            assert getattr(edgemoe, name) is kind
    with pytest.raises(AttributeError):
        _ = edgemoe.nonsense


def test_every_status_has_its_exception_and_the_librarys_sentence() -> None:
    statuses = [value for name, value in vars(_abi).items() if name.startswith("ERR_")]
    kinds = set()
    for status in statuses:
        with pytest.raises(EdgeMoEError, match=r"the sentence") as caught:
            _native.check(status, _abi.Error(message=b"the sentence"))
        kinds.add(type(caught.value))
    assert len(kinds) == len(statuses) == 8
    with pytest.raises(NativeError, match="status 99"):
        _native.check(99, _abi.Error())
    _native.check(_abi.OK, _abi.Error(message=b"ignored"))
