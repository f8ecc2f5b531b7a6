"""`edgemoe calibrate`: one file at the end, the same whether it was interrupted or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from console import Cli, needs_library

pytestmark = needs_library

PROSE = "".join(
    f"In the year {1800 + i} the harvest of parish {i * 7 % 31} was {'poor' if i % 3 else 'good'}; {i} wagons left.\n"
    for i in range(80)
)
TYPES = ("IQ3_XXS", "Q4_K", "Q8_0")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrate") / "text.txt"
    path.write_text(PROSE)
    return path


def request(model: Path, out: Path, moments: int = 0) -> Any:
    from edgemoe import Setup
    from edgemoe.quality.calibrate import Request

    return Request(str(model), out, [("text", PROSE)], 5, 48, TYPES, False, moments, Setup(memory="1GiB", threads=2))


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_the_command_writes_what_convert_needs(cli: Cli, good: Path, text: Path, tmp_path: Path) -> None:
    from edgemoe.converters.allocate import allocate
    from edgemoe.converters.calibration import load

    out = tmp_path / "good.calibration"
    arguments = ("--text", text, "--windows", 5, "--ctx", 48, "--types", ",".join(TYPES).lower(), "-o", out)
    done = cli("calibrate", good, *arguments, "--memory", "1GiB")
    assert done.returncode == 0, done.stderr
    assert "48 experts in 3 layers, 240 tokens" in done.stdout
    assert "5/5 collecting" in done.stderr or "4/5 collecting" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    found = load(out)
    assert found.types == TYPES and found.n_token == 240
    assert sorted(found.layers) == [0, 1, 2] and all(value > 0 for value in found.sensitivity.values())
    for layer in found.layers.values():
        assert layer.stats[:, 0].sum() == 240 * 4  # tokens, experts of each: in the last layer as well
        assert layer.stats[:, 1].sum() == pytest.approx(240, rel=1e-3)  # the router's weights of a token sum to 1
        for errors in layer.errors.values():
            used = errors[layer.stats[:, 0] > 0]
            assert (used[:, 0] > 10 * used[:, 1:].max(1)).all()  # fewer bits, more error
            assert (used[:, 1] < 1e-6).all()  # the source's own type
            assert (used[:, 0] < 0.2).all() and (used[:, 2] < 1e-3).all()
    chosen = allocate(found, bits=4.0)
    assert chosen.facts["bits"] <= 4.0


def test_an_interrupted_calibration_goes_on(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from edgemoe.quality import calibrate as module
    from edgemoe.quality import experts

    whole = module.calibrate(request(good, tmp_path / "whole"), quiet)
    computed: list[int] = []
    original = experts.compute_window

    def until_the_third(engine: Any, windows: Any, i: int) -> None:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(i)
        original(engine, windows, i)

    monkeypatch.setattr(module, "_CHECKPOINT_S", 0.0)
    monkeypatch.setattr(module, "_CHECKPOINT_TIMES", 0)
    monkeypatch.setattr(module, "compute_window", until_the_third)
    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        module.calibrate(request(good, out), quiet)
    assert not out.exists() and (tmp_path / "again.partial").is_dir()

    def note(engine: Any, windows: Any, i: int) -> None:
        computed.append(i)
        original(engine, windows, i)

    monkeypatch.setattr(module, "compute_window", note)
    monkeypatch.setattr(module, "measure_sensitivity", fail_at(experts.measure_sensitivity, 1))
    with pytest.raises(KeyboardInterrupt):
        module.calibrate(request(good, out), quiet)
    assert computed == [0, 1, 2, 3, 4]  # none twice
    monkeypatch.undo()
    found = module.calibrate(request(good, out), quiet)
    assert not (tmp_path / "again.partial").exists()
    for number, layer in whole.layers.items():
        np.testing.assert_allclose(found.layers[number].stats, layer.stats, rtol=1e-4)
        for role, importance in layer.importance.items():
            np.testing.assert_allclose(found.layers[number].importance[role], importance, rtol=1e-3)
        assert 0.3 < found.sensitivity[number] / whole.sensitivity[number] < 3


def test_kept_inputs_make_rounding_errors_good(cli: Cli, good: Path, tmp_path: Path) -> None:
    import gguf

    from edgemoe.converters.calibration import load
    from edgemoe.quality import calibrate as module

    made = {name: tmp_path / name for name in ("plain", "kept")}
    module.calibrate(request(good, made["plain"]), quiet)
    module.calibrate(request(good, made["kept"], moments=1 << 30), quiet)
    found = load(made["kept"])
    assert not load(made["plain"]).samples and sorted(found.samples) == [0, 1, 2]
    for number, layer in found.layers.items():
        x, w = found.samples[number].load()
        assert x.shape == (240, 256) and w.shape == (240, 16)
        # All tokens are in the sample: what is summed over them is the importance.
        expected = (w.T**2) @ x**2
        assert abs(layer.importance["up"] - expected).max() < 0.02 * expected.max()

    files = {}
    for name, calibration in made.items():
        files[name] = tmp_path / f"{name}.gguf"
        arguments = (good, files[name], "--type", "Q3_K", "--calibration", calibration, "--verify")
        done = cli("convert", *arguments)
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stdout
    tensors = {name: {t.name: t for t in gguf.GGUFReader(path).tensors} for name, path in files.items()}
    changed = [n for n, t in tensors["kept"].items() if t.data.tobytes() != tensors["plain"][n].data.tobytes()]
    assert changed and all("_exps." in name for name in changed)
    assert files["kept"].stat().st_size <= files["plain"].stat().st_size + 256  # a fact more in the header

    # Rounded otherwise than the file says: verification notices, with and without the sample.
    done = cli("convert", good, files["kept"], "--calibration", made["plain"], "--verify")
    assert done.returncode != 0 and "is not what its source becomes" in done.stderr
    done = cli("convert", good, files["plain"], "--calibration", made["kept"], "--verify")
    assert done.returncode == 0, done.stderr


def test_a_damaged_sample_is_refused(good: Path, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    from edgemoe.converters.calibration import load
    from edgemoe.errors import FormatError
    from edgemoe.quality import calibrate as module

    module.calibrate(request(good, tmp_path / "kept", moments=1 << 30), quiet)
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "kept").tensors if t.name == "blk.1.edgemoe.sample.weight")
    with (tmp_path / "kept").open("r+b") as stream:
        stream.seek(tensor.data_offset + 40)
        stream.write(np.float32(np.nan).tobytes())
    with pytest.raises(FormatError, match="weights that are no numbers"):
        load(tmp_path / "kept").samples[1].load()


def fail_at(function: Any, n: int) -> Any:
    calls: list[int] = []

    def wrapped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return function(*arguments)

    return wrapped


def test_mistakes_are_named(cli: Cli, good: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    out = tmp_path / "out"
    for arguments, message in (
        ((good, "-o", out), "there is no text"),
        ((good, "-o", out, "--text", short), "a window takes"),
        ((good, "-o", out, "--text", text, "--types", "Q9_Z"), "is not a type"),
        ((good, "-o", tmp_path / "no" / "out", "--text", text), "cannot write"),
        ((tmp_path / "absent.gguf", "-o", out, "--text", text), "does not exist"),
    ):
        done = cli("calibrate", *arguments)
        assert done.returncode in (1, 2), arguments
        assert message in done.stderr and "Traceback" not in done.stderr
        assert not out.exists()
