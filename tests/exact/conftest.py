"""Models of the exactness tests, written once a session."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tinymoe


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny random-weight model of an architecture; the same arguments give the same file."""
    folder = tmp_path_factory.mktemp("tiny")
    written: dict[str, Path] = {}

    def get(arch: str, **options: object) -> Path:
        key = "-".join([arch, *(f"{k}={v}" for k, v in sorted(options.items()))])
        if key not in written:
            name = "".join(c if c.isalnum() or c in "-=." else "_" for c in key)
            written[key] = tinymoe.write(folder / f"{name}.gguf", arch, **options)  # type: ignore[arg-type]
        return written[key]

    return get


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    """400 tokens of the tiny models' vocabulary, always the same."""
    generator = random.Random(7)
    return [generator.randrange(0, 256) for _ in range(400)]
