"""Pruning: the experts that matter least go, what belongs to them follows, the rest stays as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tinymoe
from calibrated import calibration_of

from edgemoe.converters.calibration import STATS, Calibration, KeptSample
from edgemoe.converters.from_gguf import open_gguf
from edgemoe.converters.gguf_header import decode, encode
from edgemoe.converters.prune import Kept, experts_kept, prune
from edgemoe.converters.source import DenseTensor, Rows, Source
from edgemoe.errors import UnsupportedError, UsageError

BY_EXPERT = {
    "qwen3moe": {"ffn_gate_inp.weight"},
    "gpt-oss": {
        "ffn_gate_inp.weight", "ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias",
    },
    "lfm2moe": {"ffn_gate_inp.weight", "exp_probs_b.bias"},
    "deepseek2-grouped": {"ffn_gate_inp.weight", "exp_probs_b.bias"},
    "gemma4-fused": {"ffn_gate_inp.weight", "ffn_down_exps.scale"},
}  # fmt: skip


def model(tmp_path: Path, arch: str = "qwen3moe") -> Source:
    return open_gguf(tinymoe.write(tmp_path / f"{arch}.gguf", arch))


def matter(calibration: Calibration, least: dict[int, list[int]]) -> Calibration:
    """The same, with these experts of each layer giving next to nothing."""
    layers = dict(calibration.layers)
    for number, experts in least.items():
        stats = layers[number].stats.copy()
        stats[experts, STATS.index("output2")] = 1e-6
        layers[number] = dataclasses.replace(layers[number], stats=stats)
    return dataclasses.replace(calibration, layers=layers)


def content(rows: Rows) -> bytes:
    return rows.load(0, rows.n_row).tobytes()


@pytest.mark.parametrize("arch", sorted(BY_EXPERT))
def test_what_belongs_to_an_expert_goes_and_stays_with_it(tmp_path: Path, arch: str) -> None:
    source = model(tmp_path, arch)
    n = decode(source.values[f"{source.architecture}.expert_count"])
    out = [i * 4 + 1 for i in range(4)] if "grouped" in arch else [0, n - 2]
    known = calibration_of(source)
    known = matter(known, dict.fromkeys(known.layers, out))
    done = prune(source, known, len(out) / n)
    stay = [i for i in range(n) if i not in out]
    assert decode(done.source.values[f"{source.architecture}.expert_count"]) == len(stay)
    assert done.facts["kept"] == {str(number): stay for number in known.layers}
    for key, stack in source.experts.items():
        assert [content(rows) for rows in done.source.experts[key]] == [content(stack[i]) for i in stay]
    changed = set()
    before = {tensor.name: tensor for tensor in source.dense}
    for tensor in done.source.dense:
        old = before[tensor.name]
        if tensor.ne == old.ne:
            assert content(tensor.rows) == content(old.rows)
            continue
        changed.add(tensor.name.split(".", 2)[2])
        assert tensor.ne == (*old.ne[:-1], len(stay))
        if len(old.ne) > 1:
            each = [content_of(old, i) for i in range(n)]
        else:
            each = [value.tobytes() for value in np.frombuffer(content(old.rows), np.float32)]
        assert content(tensor.rows) == b"".join(each[i] for i in stay)
    assert changed == BY_EXPERT[arch]
    for number, layer in done.calibration.layers.items():
        assert np.array_equal(layer.stats, known.layers[number].stats[stay])


def content_of(tensor: DenseTensor, row: int) -> bytes:
    return tensor.rows.load(row, row + 1).tobytes()


def out_of(kept: Kept, n: int) -> list[list[int]]:
    return [sorted(set(range(n)) - set(picked.tolist())) for picked in kept.values()]


def test_super_experts_stay_and_groups_lose_as_many(tmp_path: Path) -> None:
    known = calibration_of(model(tmp_path))
    known = matter(known, {number: [3, 4, 5] for number in known.layers})
    assert out_of(experts_kept(known, 3), 16) == [[3, 4, 5]] * 3
    stats = known.layers[0].stats.copy()
    stats[4, STATS.index("largest")] = 900
    layers = {**known.layers, 0: dataclasses.replace(known.layers[0], stats=stats)}
    guarded = experts_kept(dataclasses.replace(known, layers=layers), 3)
    assert 4 in guarded[0] and 3 not in guarded[0] and 4 not in guarded[1]
    for group in range(4):
        assert [sum(i // 4 == group for i in out) for out in out_of(experts_kept(known, 4, 4), 16)] == [1] * 3


def test_shares_that_make_no_model_are_refused_with_one_that_does(tmp_path: Path) -> None:
    plain, grouped = model(tmp_path), model(tmp_path, "deepseek2-grouped")  # 16 experts, 4 used; 4 groups, 2 used

    def refused(source: Source, share: float) -> tuple[str, str]:
        with pytest.raises(UsageError) as caught:
            prune(source, calibration_of(source), share)
        return caught.value.message, caught.value.hint or ""

    for share in (0.0, 1.0, -0.5, float("nan")):
        assert "makes no sense" in refused(plain, share)[0]
    assert refused(plain, 0.05) == (
        "`--prune 0.05` is less than one of the 16 experts of a layer", "the smallest share is 0.0625",
    )  # fmt: skip
    assert refused(plain, 0.82) == (
        "`--prune 0.82` leaves 3 of 16 experts, a token needs 4", "the largest share is 0.75",
    )  # fmt: skip
    assert decode(prune(plain, calibration_of(plain), 0.75).source.values["qwen3moe.expert_count"]) == 4
    assert refused(grouped, 0.4) == (
        "`--prune 0.4` takes 6 experts of 4 groups, which must lose as many each", "shares that do: 0.25, 0.5",
    )  # fmt: skip
    assert refused(grouped, 0.6)[0] == "`--prune 0.6` leaves 7 of 16 experts, a token needs 8"
    assert prune(grouped, calibration_of(grouped), 0.5).facts["n_expert_left"] == 8


def test_models_whose_experts_cannot_go_are_refused(tmp_path: Path) -> None:
    source = model(tmp_path)
    known = calibration_of(source)

    def refused(changed: Source, calibration: Calibration = known) -> str:
        with pytest.raises(UnsupportedError) as caught:
            prune(changed, calibration, 0.25)
        return caught.value.message

    router = next(tensor for tensor in source.dense if tensor.name == "blk.1.ffn_gate_inp.weight")
    by_token = DenseTensor("blk.0.ffn_gate_tid2eid.weight", router.ne, router.rows)
    assert "the token itself names experts" in refused(dataclasses.replace(source, dense=(*source.dense, by_token)))
    shared = {(layer, "chexps", role): stack for (layer, _, role), stack in source.experts.items()}
    assert "adjugate" in refused(dataclasses.replace(source, experts={**source.experts, **shared}))
    less = dataclasses.replace(known, layers={0: known.layers[0], 2: known.layers[2]})
    assert "nothing of the experts of block 1" in refused(source, less)
    wrong = {**source.values, "qwen3moe.expert_count": encode(12)}
    assert "block 0 has 16 experts, `qwen3moe.expert_count` says 12" in refused(
        dataclasses.replace(source, values=wrong)
    )
    bare = tuple(tensor for tensor in source.dense if tensor is not router)
    assert "the router of block 1 is not found" in refused(dataclasses.replace(source, dense=bare))


def test_an_odd_share_counts_whole_experts(tmp_path: Path) -> None:
    source = model(tmp_path)
    left = {
        share: prune(source, calibration_of(source), share).facts["n_expert_left"] for share in (0.0625, 0.1, 0.3, 0.7)
    }
    assert left == {0.0625: 15, 0.1: 15, 0.3: 12, 0.7: 5}


def test_what_rounding_is_made_good_with_goes_along(tmp_path: Path) -> None:
    source = model(tmp_path)
    known = calibration_of(source)
    n = next(iter(known.layers.values())).n_expert
    w = np.arange(3 * n, dtype=np.float32).reshape(3, n)
    samples = {number: KeptSample(np.zeros((3, 8), np.uint8), w) for number in known.layers}
    known = matter(dataclasses.replace(known, samples=samples), {number: [1] for number in known.layers})
    done = prune(source, known, 1 / n)
    for sample in done.calibration.samples.values():
        assert (sample.load()[1] == np.delete(w, 1, axis=1)).all()
