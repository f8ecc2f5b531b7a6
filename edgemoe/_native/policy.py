"""Functions of edgemoe.h on eviction policies, alone and over recorded routing."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

from .. import _abi as abi
from .library import PolicyHandle, check, float_pointer, library, uint32_pointer


def policy_open(kind: int, n_expert: Sequence[int], n_expert_used: int) -> PolicyHandle:
    handle, error, counts = ctypes.c_void_p(), abi.Error(), array("I", n_expert)
    status = library().emoe_policy_open(
        kind, uint32_pointer(counts), len(counts), n_expert_used, ctypes.byref(handle), ctypes.byref(error)
    )
    check(status, error)
    return PolicyHandle(handle.value or 0)


def policy_close(policy: PolicyHandle) -> None:
    library().emoe_policy_close(policy)


def policy_visit(
    policy: PolicyHandle, layer: int, n_token: int, experts: array[int], n_row: array[int], weight: array[float]
) -> None:
    """experts, n_row: uint32; weight: float32; one entry an expert that was used."""
    error = abi.Error()
    status = library().emoe_policy_visit(
        policy, layer, n_token, uint32_pointer(experts), uint32_pointer(n_row), float_pointer(weight), len(experts),
        ctypes.byref(error),
    )  # fmt: skip
    check(status, error)


def policy_badness(policy: PolicyHandle, n: int) -> array[float]:
    """Of all n experts: the larger, the sooner to be given up."""
    error, found = abi.Error(), array("f", bytes(4 * n))
    check(library().emoe_policy_badness(policy, float_pointer(found), n, ctypes.byref(error)), error)
    return found


def policy_rates(policy: PolicyHandle) -> array[float]:
    n = int(library().emoe_policy_rates(policy, None, 0))
    rates = array("f", bytes(4 * n))
    library().emoe_policy_rates(policy, float_pointer(rates), n)
    return rates


def policy_warm_start(policy: PolicyHandle, rates: array[float]) -> None:
    library().emoe_policy_warm_start(policy, float_pointer(rates), len(rates))


# ---------------------------------------------------------------- replay


def replay(
    *,
    n_expert: Sequence[int],
    n_expert_used: int,
    policy: int,
    per_layer: bool,
    n_slot: int,
    visits: tuple[array[int], array[int], array[int]],
    uses: tuple[array[int], array[int], array[float]],
    from_visit: int,
) -> tuple[int, int]:
    """(uses, misses). visits: layer, n_token, n_use (uint32 each); uses: expert, n_row (uint32), weight (float32)."""

    experts = array("I", n_expert)
    params = abi.ReplayParams(
        n_layer=len(experts),
        n_expert=uint32_pointer(experts),
        n_expert_used=n_expert_used,
        policy=policy,
        per_layer=int(per_layer),
        n_slot=n_slot,
        n_visit=len(visits[0]),
        layer=uint32_pointer(visits[0]),
        n_token=uint32_pointer(visits[1]),
        n_use=uint32_pointer(visits[2]),
        expert=uint32_pointer(uses[0]),
        n_row=uint32_pointer(uses[1]),
        weight=float_pointer(uses[2]),
        from_visit=from_visit,
    )
    n_use, n_miss, error = ctypes.c_uint64(), ctypes.c_uint64(), abi.Error()
    status = library().emoe_replay(ctypes.byref(params), ctypes.byref(n_use), ctypes.byref(n_miss), ctypes.byref(error))
    check(status, error)
    return n_use.value, n_miss.value
