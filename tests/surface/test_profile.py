"""`--profile`: what a calibration says of a task seeds the cache, changes no answer, and must be of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tinymoe
from calibrated import calibration_file
from console import Cli, needs_library

import edgemoe
from edgemoe import _native
from edgemoe.converters import calibration as files
from edgemoe.errors import FormatError, StorageError, UnsupportedError

pytestmark = needs_library


@pytest.fixture(scope="module")
def profile(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_file(good, tmp_path_factory.mktemp("profile") / "task.calibration")


def test_it_seeds_the_policy_and_changes_no_answer(good: Path, profile: Path) -> None:
    known = files.load(profile)
    logits = []
    for given in (None, str(profile)):
        with edgemoe.load(good, memory="2GiB", ctx=64, profile=given, warm_start=False) as engine:
            rates = list(_native.engine_rates(engine._sequence.backend.engine))
            engine.eval(engine.tokenize("The fox rests"))
            logits.append(bytes(engine.row()))
    assert logits[0] == logits[1]
    wanted = [float(n) / known.n_token for layer in known.layers.values() for n in layer.stats[:, 0]]
    assert rates == pytest.approx(wanted, rel=1e-5)


def test_a_run_with_one_keeps_nothing_of_what_it_learned(
    cli: Cli, environment: dict[str, str], profile: Path, tmp_path: Path
) -> None:
    model = tinymoe.write(tmp_path / "own.gguf", "qwen3moe")  # as the fixture's, which others run
    usage = Path(environment["EDGEMOE_CACHE"], "usage")

    def learned(*more: object) -> int:
        before = set(usage.glob("*.f32"))
        done = cli("run", model, "-p", "the fox " * 40, "-n", 8, "--ctx", 256, *more)
        assert done.returncode == 0, done.stderr
        return len(set(usage.glob("*.f32")) - before)

    assert learned("--profile", profile) == 0
    assert learned() == 1


def test_what_is_no_profile_of_this_model_is_refused(cli: Cli, good: Path, profile: Path, tmp_path: Path) -> None:
    other = tinymoe.write(tmp_path / "other.gguf", "qwen3moe", n_expert=12)
    for path, kind in ((tmp_path / "absent", StorageError), (good, FormatError)):
        with pytest.raises(kind):
            edgemoe.load(good, profile=str(path))
    with pytest.raises(FormatError, match="another model"):
        edgemoe.plan(other, profile=str(profile))
    with pytest.raises(UnsupportedError, match="does not say what leaving out"):
        edgemoe.load(good, profile=str(profile), lossy=0.05)
    done = cli("run", other, "-p", "hello", "--profile", profile)
    assert done.returncode == 1 and "another model" in done.stderr and len(done.stderr.splitlines()) <= 2
