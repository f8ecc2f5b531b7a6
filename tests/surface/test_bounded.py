"""The budget holds for the whole process, from load to exit: five budgets, each under a kernel limit of that size."""

from __future__ import annotations

from pathlib import Path

import pytest
import tinymoe
from bounded import budgets, run_limited

from edgemoe.files import disk_bytes


@pytest.mark.slow
def test_five_budgets_hold_with_a_long_prompt_and_a_long_answer(
    smolmoe: Path, wikitext: str, environment: dict[str, str]
) -> None:
    n_prompt, n_answer = 4000, 1000
    smallest, resident = budgets(smolmoe, n_prompt + n_answer, environment)
    assert smallest < resident
    n_evict = []
    for i in range(5):
        budget = smallest + (resident - smallest) * i // 4
        result = run_limited(smolmoe, wikitext, budget, n_prompt, n_answer, environment)
        assert result["n_past"] >= n_prompt + n_answer - 1
        assert result["peak"] <= budget
        n_evict.append(result["evict"])
    assert n_evict[0] > 1000  # the smallest budgets really were too small for all experts
    assert n_evict == sorted(n_evict, reverse=True)


def test_a_model_four_times_the_machines_memory_loads(tmp_path: Path, environment: dict[str, str]) -> None:
    """Its experts are a hole in the file; loading neither maps nor reads them."""
    from edgemoe.devices.memory import total_memory

    path = tinymoe.sparse_big(tmp_path / "big.gguf", 4 * total_memory())
    assert path.stat().st_size > 3.9 * total_memory()
    with path.open("rb") as file:
        if disk_bytes(file.fileno()) > 1 << 30:
            pytest.skip("this file system has no sparse files")
    result = run_limited(path, "some text", 1 << 30, 6, 10, environment)
    assert result["miss"] > 0
    assert result["peak"] <= 1 << 30
