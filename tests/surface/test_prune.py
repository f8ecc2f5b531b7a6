"""`edgemoe convert --prune`: what a person sees of a model that loses experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calibrated import calibration_file
from console import Cli, needs_library

from edgemoe.converters import gguf_header

pytestmark = needs_library


@pytest.fixture(scope="module")
def known(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_file(good, tmp_path_factory.mktemp("prune") / "good.calibration")


def test_a_pruned_model_is_written_verified_shown_and_runs(cli: Cli, good: Path, known: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.gguf"
    arguments = ("convert", good, out, "--prune", "0.25", "--calibration", known, "--verify")
    done = cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    pruned = json.loads(done.stdout)["pruned"]
    assert (pruned["n_expert"], pruned["n_expert_left"]) == (16, 12) and 0.1 < pruned["uses_lost"] < 0.4
    assert [len(kept) for kept in pruned["kept"].values()] == [12] * 3
    again = cli(*arguments)  # of a file that exists: only the comparison
    assert again.returncode == 0 and again.stdout.startswith("verified: "), again.stderr
    other = cli("convert", good, out, "--prune", "0.5", "--calibration", known, "--verify")
    assert other.returncode == 1 and "where" in other.stderr
    assert "36" in cli("inspect", out).stdout
    answer = cli("run", out, "-p", "the", "-n", "4", "--memory", "auto")
    assert answer.returncode == 0, answer.stderr


def test_it_says_lossy_and_goes_with_bits(cli: Cli, good: Path, known: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.gguf"
    done = cli("convert", good, out, "--prune", "0.5", "--bits", "6", "--calibration", known)
    assert done.returncode == 0, done.stderr
    assert "LOSSY: 8 of 16 experts a layer are left; the others had " in done.stdout
    facts = json.loads(gguf_header.decode(gguf_header.read(out).values["edgemoe.facts"]))
    assert facts["prune"]["share"] == 0.5 and facts["allocation"]["bits"] <= 6
    shown = cli("convert", "--help").stdout
    assert "LOSSY: leave out this share" in " ".join(shown.replace("│", " ").split())


def test_what_cannot_be_is_refused_in_a_line(cli: Cli, good: Path, known: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    (tmp_path / "types.json").write_text("{}")

    def refused(*arguments: object) -> str:
        done = cli("convert", good, out, *arguments)
        assert done.returncode == 2 and not out.exists() and len(done.stderr.splitlines()) <= 3, done.stderr
        return done.stderr

    assert "`--prune` needs `--calibration`" in refused("--prune", "0.25")
    assert "a token needs 4" in refused("--prune", "0.9", "--calibration", known)
    assert "makes no sense" in refused("--prune", "25", "--calibration", known)
    assert "`--prune` is for `--to gguf`" in refused("--prune", "0.25", "--calibration", known, "--to", "onnx")
    both = ("--prune", "0.25", "--calibration", known, "--allocation", tmp_path / "types.json")
    assert "`--allocation` numbers all experts" in refused(*both)
