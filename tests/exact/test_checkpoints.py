"""Checkpoints of every known architecture: stock llama.cpp computes with the converted file what transformers did.

The reference was computed once (tests/hf_reference.py) and is stored; weights are drawn from their names.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tinyhf
from exact_engines import stock, streamed

from edgemoe.converters.convert import Options, convert, open_source, verify_file

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "hf_logits.json").read_text())
STEPS = [GOLDEN["tokens"][: GOLDEN["positions"][0] + 1], GOLDEN["tokens"][GOLDEN["positions"][0] + 1 :]]


def difference(rows: list[bytes], arch: str) -> float:
    """Largest distance from transformers, in standard deviations of its logits."""
    reference = np.array(GOLDEN["logits"][arch], np.float32)
    ours = np.array([np.frombuffer(row, np.float32)[: reference.shape[1]] for row in rows])
    return float(np.abs(ours - reference).max() / reference.std())


@pytest.mark.parametrize("arch", tinyhf.CONFIGS)
def test_a_converted_checkpoint_is_what_transformers_computes(tmp_path: Path, arch: str) -> None:
    source = open_source(tinyhf.write(tmp_path / "hf", arch, n_shard=3))
    out = tmp_path / "plain.gguf"
    exact = Options(type_name="F32", dense_type="F32", uniform_per_layer=True)
    convert(source, out, exact)
    verify_file(source, out, exact)
    # Keys and values are kept in 16 bits (27 layers of it: 0.07). Anything wrong moves the logits by their own size.
    assert difference(stock(out, STEPS), arch) < 0.1

    single = tmp_path / "single.gguf"
    convert(source, single, Options(type_name="F32", dense_type="F32"))
    with streamed(single, share=0.3) as engine:
        assert engine.run(STEPS) == stock(out, STEPS)
