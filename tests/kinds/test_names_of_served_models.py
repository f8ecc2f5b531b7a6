"""What a model is called that `edgemoe serve` was given: without one the built-in model, of split files their set."""

from __future__ import annotations

from pathlib import Path

import serving
import tinymoe
from console import needs_library

pytestmark = needs_library


def test_any_part_of_a_split_model_has_the_sets_name(tmp_path: Path) -> None:
    tinymoe.write(tmp_path / "model.gguf", "qwen3moe", n_split=3)
    for part in (1, 2):
        given = tmp_path / f"model-{part:05}-of-00003.gguf"
        with serving.serve(tmp_path / "cache", given, "--threads", 1, "--ctx", 256, "--memory", "512MiB") as server:
            assert [card["id"] for card in server.ask("/v1/models")[1]["data"]] == ["model"]


def test_without_a_model_the_built_in_one_is_served(tmp_path: Path) -> None:
    from edgemoe.places import BUILTIN

    with serving.serve(tmp_path / "cache", "--threads", 1, "--ctx", 256, "--memory", "300MiB") as server:
        assert [card["id"] for card in server.ask("/v1/models")[1]["data"]] == [BUILTIN]
