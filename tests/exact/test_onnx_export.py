"""An export runs in stock ONNX Runtime and says what its dequantized weights say, and what transformers says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tinyhf
from onnx_extra import onnx, onnxruntime
from onnx_reference import Export

from edgemoe.converters.allocation import Allocation
from edgemoe.converters.convert import open_source
from edgemoe.converters.onnx.export import Options, export

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "hf_logits.json").read_text())
TOKENS: list[int] = GOLDEN["tokens"]
ARCHS = ("mixtral", "qwen3_moe", "olmoe")
N_LAYER, N_EXPERT = 2, tinyhf.N_EXPERT


class Stock:
    """model.onnx in ONNX Runtime as anyone would run it: no code of ours."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        inputs = self._session.get_inputs()[2:]
        self._names = [value.name for value in inputs]
        self._past = [np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for value in inputs]
        self._n = 0

    def __call__(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of each of the next tokens."""
        self._n += len(tokens)
        feed: dict[str, Any] = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, self._n), np.int64)}
        logits, *self._past = self._session.run(None, feed | dict(zip(self._names, self._past, strict=True)))
        found: npt.NDArray[np.float32] = logits[0]
        return found


def mixed(bits: Sequence[str]) -> Allocation:
    """The widths in turn."""
    names = tuple(bits[i % len(bits)] for i in range(N_EXPERT))
    return Allocation({layer: dict.fromkeys(("gate", "up", "down"), names) for layer in range(N_LAYER)})


def far(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The median row's largest distance, in standard deviations: a router's near-tie may turn single rows."""
    return float(np.median(np.abs(a - b).max(-1)) / b.std())


@pytest.mark.parametrize("arch", ARCHS)
def test_eight_bits_are_nearly_what_transformers_computes(tmp_path: Path, arch: str) -> None:
    source = open_source(tinyhf.write(tmp_path / "hf", arch))
    export(source, tmp_path / "out", Options(type_name="8", dense_type="F32"))
    golden = np.array(GOLDEN["logits"][arch], np.float32)
    rows = Stock(tmp_path / "out")(TOKENS)[GOLDEN["positions"]][:, : golden.shape[1]]
    assert np.abs(rows - golden).max() / golden.std() < 0.15
    exact = Export(tmp_path / "out").logits(TOKENS)[GOLDEN["positions"]][:, : golden.shape[1]]
    assert np.abs(exact - golden).max() / golden.std() < 0.06


@pytest.mark.parametrize("arch", ARCHS)
def test_mixed_widths_are_what_their_weights_say_in_prefill_and_decode(tmp_path: Path, arch: str) -> None:
    source = open_source(tinyhf.write(tmp_path / "hf", arch))
    report = export(source, tmp_path / "out", Options(allocation=mixed(("2", "Q4_K", "8", "3"))))
    assert report.bits == {2: 4, 4: 8, 8: 4} and "3 bits are kept in 4" in report.notes[0]
    reference = Export(tmp_path / "out").logits(TOKENS)
    whole = Stock(tmp_path / "out")(TOKENS)
    assert far(whole, reference) < 0.15
    stock = Stock(tmp_path / "out")
    steps = np.concatenate([stock(TOKENS[:30]), *(stock([token]) for token in TOKENS[30:])])
    assert far(steps, reference) < 0.15
    top = np.sort(reference, -1)
    clear = top[:, -1] - top[:, -2] > 0.3 * reference.std()
    assert clear.sum() > 10
    assert (whole.argmax(-1) == reference.argmax(-1))[clear].mean() > 0.9


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    source = open_source(tinyhf.write(tmp_path / "hf", "qwen3_moe"))
    export(source, tmp_path / "out", Options(allocation=mixed(("2", "4", "8"))))
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["edgemoe.expert_bits"]) == [[2, 4, 8, 2, 4, 8, 2, 4]] * N_LAYER
    inputs = [value.name for value in model.graph.input]
    assert inputs[:4] == ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert not where or int(where["offset"]) % 4096 == 0
    manifest = json.loads((tmp_path / "out" / "edgemoe.json").read_text())
    for layer in manifest["experts"]:
        size = (tmp_path / "out" / layer["file"]).stat().st_size
        places = sorted(tuple(place) for expert in layer["experts"] for place in expert["places"])
        assert all(a + n <= b for (a, n), (b, _) in zip(places, [*places[1:], (size, 0)], strict=True))
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert genai["type"] == "qwen3" and genai["decoder"]["filename"] == "model.onnx"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "hf" / "tokenizer.json").read_bytes()


def test_gguf_and_checkpoint_become_the_same_export(tmp_path: Path) -> None:
    from edgemoe.converters.convert import Options as GgufOptions
    from edgemoe.converters.convert import convert

    source = open_source(tinyhf.write(tmp_path / "hf", "mixtral"))
    convert(source, tmp_path / "m.gguf", GgufOptions(type_name="F32", dense_type="F32"))
    exports = []
    for i, given in enumerate((source, open_source(tmp_path / "m.gguf"))):
        export(given, tmp_path / f"out{i}", Options(type_name="4"))
        exports.append({file.name: file.read_bytes() for file in (tmp_path / f"out{i}").glob("*.data")})
    assert exports[0] == exports[1]
