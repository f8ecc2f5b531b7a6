"""Fixtures of all tests: real models from ../shared where they are, and the header line of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def pytest_report_header() -> str:
    from edgemoe import _native

    try:
        return f"libedgemoe on {_native.build_info()}"
    except Exception as error:
        return f"libedgemoe: {error}"


@pytest.fixture(scope="session")
def smolmoe() -> Path:
    """SmolMoE-135M, a trained MoE that chats."""
    path = SHARED / "models" / "smolmoe-135m-q8_0.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def wikitext() -> str:
    """Real English text."""
    path = SHARED / "text" / "wikitext2-test.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path.read_text(encoding="utf-8")[:60_000]
