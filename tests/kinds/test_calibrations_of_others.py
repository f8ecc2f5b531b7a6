"""`--calibration` with llama.cpp's importance matrix, with another model's file, and with values that are none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tinymoe
from console import Cli, needs_library

from edgemoe.converters import calibration, imatrix
from edgemoe.converters.calibration import STATS, Calibration, LayerCalibration
from edgemoe.converters.from_gguf import open_gguf
from edgemoe.errors import FormatError

Change = Callable[[str, np.ndarray], np.ndarray]
N_EXPERT, N_COL, ROLES = 16, 256, ("gate", "up", "down")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return tinymoe.write(path, "qwen3moe", expert_type="Q8_0", n_layer=2)


def write_imatrix(path: Path, change: Change = lambda name, values: values, *, n_layer: int = 2) -> Path:
    """As llama-imatrix writes it: sums of squares and counts, for dense matrices too."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 10)
    writer.add_uint32("imatrix.chunk_size", 512)
    rng = np.random.default_rng(1)
    for layer in range(n_layer):
        tensors = {f"blk.{layer}.attn_q.weight": 1, **{f"blk.{layer}.ffn_{r}_exps.weight": N_EXPERT for r in ROLES}}
        for name, n in tensors.items():
            sums = rng.uniform(1, 200, (n, N_COL)).astype(np.float32)
            for what, values in ((".in_sum2", sums), (".counts", np.full((n, 1), 100, np.float32))):
                writer.add_tensor(name + what, change(name + what, values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def whole(*, broken: tuple[str, float] | None = None) -> Calibration:
    """A calibration of ours, with one value set otherwise."""
    rng = np.random.default_rng(2)
    layers = {}
    for number in range(2):
        tables = {
            "stats": rng.uniform(1, 2, (N_EXPERT, len(STATS))).astype(np.float32),
            "mean_output": rng.uniform(-1, 1, (N_EXPERT, N_COL)).astype(np.float32),
            "importance": rng.uniform(1, 2, (N_EXPERT, N_COL)).astype(np.float32),
            "errors": rng.uniform(0, 0.1, (N_EXPERT, 2)).astype(np.float32),
        }
        if broken and broken[0] in tables:
            tables[broken[0]][3, 1] = broken[1]
        layers[number] = LayerCalibration(
            tables["stats"],
            tables["mean_output"],
            dict.fromkeys(ROLES, tables["importance"]),
            dict.fromkeys(ROLES, tables["errors"]),
            dict.fromkeys(ROLES, (N_COL, N_COL)),
        )
    sensitivity = {0: 0.1, 1: broken[1] if broken and broken[0] == "sensitivity" else 0.1}
    return Calibration(layers, ("Q4_K", "Q8_0"), sensitivity, 512)


def test_an_importance_matrix_of_llama_cpp_weighs_columns(cli: Cli, model: Path, tmp_path: Path) -> None:
    file = write_imatrix(tmp_path / "i.gguf")
    known = imatrix.load(file, open_gguf(model))
    assert known.n_token == 5120
    (tmp_path / "plain").mkdir()
    made = []
    for out, more in ((tmp_path / "plain/o.gguf", ()), (tmp_path / "o.gguf", ("--calibration", file))):
        done = cli("convert", model, out, "--type", "Q4_K", *more)
        assert done.returncode == 0, done.stderr
        made.append({t.name: t.data.tobytes() for t in gguf.GGUFReader(out).tensors})
    assert "an importance matrix of llama.cpp" in done.stderr and "2 other matrices" in done.stderr
    assert made[0].keys() == made[1].keys() and made[0] != made[1]
    for flag in ("--bits", "--size", "--prune"):
        refused = cli("convert", model, tmp_path / "b.gguf", flag, "3", "--calibration", file)
        assert refused.returncode == 2 and f"which `{flag}` needs" in refused.stderr
        assert "edgemoe calibrate" in refused.stderr


def write_dat(path: Path, change: Change = lambda name, values: values, *, n_layer: int = 2) -> Path:
    """As llama-imatrix wrote it until 2025: mean squares times calls, all experts of a matrix in one array."""
    rng = np.random.default_rng(1)
    entries = []
    for layer in range(n_layer):
        names = {f"blk.{layer}.attn_q.weight": 1, **{f"blk.{layer}.ffn_{r}_exps.weight": N_EXPERT for r in ROLES}}
        for name, n in names.items():
            values = change(name, 7 * rng.uniform(1, 2, n * N_COL).astype(np.float32))
            entries.append(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 7, len(values)))
            entries[-1] += values.tobytes()
    path.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries) + struct.pack("<ii", 7, 4) + b"text")
    return path


def test_the_old_form_weighs_columns_too(cli: Cli, model: Path, tmp_path: Path) -> None:
    file = write_dat(tmp_path / "i.dat")
    known = imatrix.load(file, open_gguf(model))
    assert isinstance(known, imatrix.ImportanceMatrix) and known.n_dense == 2
    for values in known.columns.values():
        assert values.shape == (N_EXPERT, N_COL) and values.min() >= 1 and values.max() <= 2
    done = cli("convert", model, tmp_path / "o.gguf", "--type", "Q4_K", "--calibration", file)
    assert done.returncode == 0 and "an importance matrix of llama.cpp" in done.stderr
    refused = cli("convert", model, tmp_path / "b.gguf", "--bits", "3", "--calibration", file)
    assert refused.returncode == 2 and "which `--bits` needs" in refused.stderr
    other = write_dat(tmp_path / "other.dat", lambda name, values: values[: len(values) // 2])
    refused = cli("convert", model, tmp_path / "b.gguf", "--type", "Q4_K", "--calibration", other)
    assert refused.returncode == 2 and "is of another model" in refused.stderr


@pytest.mark.parametrize("cut", [6, 20, 40, 3000])
def test_and_is_refused_where_it_ends_too_soon(model: Path, tmp_path: Path, cut: int) -> None:
    file = write_dat(tmp_path / "i.dat")
    file.write_bytes(file.read_bytes()[:-cut] if cut == 3000 else file.read_bytes()[:cut])
    with pytest.raises(FormatError):
        imatrix.load(file, open_gguf(model))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_and_where_a_value_is_none(model: Path, tmp_path: Path, value: float) -> None:
    def change(name: str, values: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_up_exps.weight":
            values[3] = value
        return values

    with pytest.raises(FormatError, match=r"is damaged: the values of `blk.1.ffn_up_exps.weight` hold the value"):
        imatrix.load(write_dat(tmp_path / "i.dat", change), open_gguf(model))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1.0])
@pytest.mark.parametrize("part", [".in_sum2", ".counts"])
def test_values_that_no_measurement_gives_are_refused_in_llama_cpps(
    model: Path, tmp_path: Path, value: float, part: str
) -> None:
    def change(name: str, values: np.ndarray) -> np.ndarray:
        if name == f"blk.1.ffn_up_exps.weight{part}":
            values[3, 0] = value
        return values

    with pytest.raises(FormatError, match="of up of block 1 hold the value"):
        imatrix.load(write_imatrix(tmp_path / "i.gguf", change), open_gguf(model))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("table", ["stats", "mean_output", "importance", "errors", "sensitivity"])
def test_and_in_ours_when_written_and_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, table: str
) -> None:
    file = tmp_path / "c.gguf"
    fits_no_rows = table == "errors" and value == np.inf  # how a type is marked that does not fit
    if fits_no_rows:
        calibration.save(whole(broken=(table, value)), file)
        calibration.load(file)
        return
    with pytest.raises(FormatError, match="hold the value"):
        calibration.save(whole(broken=(table, value)), file)
    assert not file.exists()
    with monkeypatch.context() as without:
        without.setattr(calibration, "_check_numbers", lambda found: None)
        calibration.save(whole(broken=(table, value)), file)
    with pytest.raises(FormatError, match="hold the value"):
        calibration.load(file)


@needs_library
def test_that_of_another_model_is_refused_with_every_option(cli: Cli, model: Path, tmp_path: Path) -> None:
    other = write_imatrix(tmp_path / "i.gguf", lambda name, values: values[:, : values.shape[1] // 2 or 1].copy())
    done = cli("convert", model, tmp_path / "o.gguf", "--type", "Q4_K", "--calibration", other)
    assert done.returncode == 2 and "is of another model" in done.stderr
    short = write_imatrix(tmp_path / "s.gguf", n_layer=1)
    done = cli("convert", model, tmp_path / "o.gguf", "--type", "Q4_K", "--calibration", short)
    assert done.returncode == 0 and "nothing of the experts of block 1" in done.stderr
