"""Every expert matrix in a type of its own: streamed equals resident, and stock llama.cpp where that can say it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from exact_engines import relative_error, stock, streamed

from edgemoe.converters.allocation import Allocation
from edgemoe.converters.convert import Options, convert, open_source

# Six ways to quantize activations: Q8_K, Q8_0, Q8_1, F16, BF16 and none.
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_XXS", "Q8_0", "Q4_0", "MXFP4", "Q4_1", "F16", "BF16", "F32")

ARCHS = ["llama", "qwen3moe", "qwen2moe", "deepseek2", "deepseek2-fused", "gpt-oss"]


def any_types(source: Path, seed: int = 0) -> Allocation:
    """A type for every matrix of every expert, by lot."""
    generator = random.Random(seed)
    types: dict[int, dict[str, tuple[str, ...]]] = {}
    for (layer, _, role), stack in open_source(source).experts.items():
        types.setdefault(layer, {})[role] = tuple(generator.choice(TYPES) for _ in stack)
    return Allocation(types)


@pytest.fixture(scope="module")
def mixed(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("mixed")

    def get(arch: str) -> Path:
        out = folder / f"{arch}.gguf"
        if not out.exists():
            source = tiny(arch, expert_type="F16")
            convert(open_source(source), out, Options(allocation=any_types(source)))
        return out

    return get


@pytest.fixture(scope="module")
def steps(tokens: list[int]) -> list[list[int]]:
    """Prefills with many, few and single rows an expert, then decode."""
    return [tokens[:100], tokens[100:103], *([t] for t in tokens[103:130])]


@pytest.mark.parametrize("share", [0.0, 0.35])
@pytest.mark.parametrize("arch", ARCHS)
def test_streamed_equals_resident(
    mixed: Callable[[str], Path], steps: list[list[int]], arch: str, share: float
) -> None:
    with streamed(mixed(arch), share=1.0) as engine:
        resident = engine.run(steps)
        assert engine.stats()["n_evict"] == 0
    for threads in (1, 3):
        with streamed(mixed(arch), share=share, threads=threads) as engine:
            assert engine.run(steps) == resident
            assert engine.stats()["n_evict"] > 0
    assert len(set(resident)) == len(steps)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_expert_is_computed_in_its_own_type(
    mixed: Callable[[str], Path], steps: list[list[int]], tmp_path: Path, arch: str
) -> None:
    """Stock llama.cpp on the same weights in F32: only the rounding of activations is between them."""
    plain = tmp_path / "plain.gguf"
    convert(open_source(mixed(arch)), plain, Options(type_name="F32", uniform_per_layer=True))
    with streamed(mixed(arch), share=0.3) as engine:
        ours = engine.run(steps)
    errors = [relative_error(a, b) for a, b in zip(ours, stock(plain, steps), strict=True)]
    assert sorted(errors)[len(errors) // 2] < 0.05  # a tie of the router may fall otherwise, and moves one row


@pytest.mark.parametrize("expert_type", ["Q4_K", "Q8_0", "Q4_1", "F16"])
def test_one_type_equals_stock_on_the_stacked_file(
    tiny: Callable[..., Path], steps: list[list[int]], tmp_path: Path, expert_type: str
) -> None:
    source = tiny("qwen3moe", expert_type=expert_type, down_type="Q6_K")
    convert(open_source(source), tmp_path / "single.gguf", Options())
    reference = stock(source, steps)
    for share in (0.0, 0.4):
        with streamed(tmp_path / "single.gguf", share=share) as engine:
            assert engine.run(steps) == reference
            assert engine.stats()["n_evict"] > 0


def test_stacked_again_is_the_file_it_came_from(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """There and back: stock llama.cpp loads it, and every tensor is as it was."""
    import gguf

    source = tiny("qwen3moe", expert_type=("Q4_K", "Q5_K"), down_type="Q6_K")
    convert(open_source(source), tmp_path / "single.gguf", Options())
    convert(open_source(tmp_path / "single.gguf"), tmp_path / "again.gguf", Options(uniform_per_layer=True))
    before, after = ({t.name: t for t in gguf.GGUFReader(p).tensors} for p in (source, tmp_path / "again.gguf"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tensor_type == after[name].tensor_type
        assert (tensor.data == after[name].data).all()
    assert stock(tmp_path / "again.gguf", [[1, 2, 3]]) == stock(source, [[1, 2, 3]])


def test_all_types_that_can_be_written_can_be_computed(
    tiny: Callable[..., Path], tokens: list[int], tmp_path: Path
) -> None:
    from edgemoe.converters.ggml import TARGETS

    source = tiny("qwen3moe", expert_type="F16", n_expert=len(TARGETS), n_layer=1)
    types = dict.fromkeys(("gate", "up", "down"), TARGETS)
    layers = {key[0] for key in open_source(source).experts}
    convert(open_source(source), tmp_path / "all.gguf", Options(allocation=Allocation(dict.fromkeys(layers, types))))
    steps = [tokens[:64], *([t] for t in tokens[64:90])]
    with streamed(tmp_path / "all.gguf", share=1.0) as engine:
        resident = engine.run(steps)
    with streamed(tmp_path / "all.gguf", share=0.2) as engine:
        assert engine.run(steps) == resident


def test_experts_that_are_missing_double_or_of_another_shape_are_refused(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from edgemoe import _native
    from edgemoe.converters import gguf_header
    from edgemoe.errors import EdgeMoEError

    convert(open_source(tiny("llama")), tmp_path / "good.gguf", Options())
    header = gguf_header.read(tmp_path / "good.gguf")
    tensors = [(t.name, t.ne, t.type) for t in header.tensors]
    expert = next(i for i, t in enumerate(tensors) if t[0] == "blk.1.ffn_up_exps.3.weight")
    name, (n_col, n_row), kind = tensors[expert]
    values = dict(header.values)
    newer = {**values, "edgemoe.format.version": gguf_header.encode(2)}
    without = {k: v for k, v in values.items() if k != "edgemoe.format.version"}
    for expected, kv, changed in (
        ("experts", values, []),
        ("experts", values, [(name.replace(".3.", ".300."), (n_col, n_row), kind)]),
        ("x", values, [(name, (n_row, n_col * 2), kind)]),
        ("another tensor", values, [(name, (n_col, n_row), kind), (name.replace(".3.", "."), (n_col, n_row, 8), kind)]),
        ("version", newer, [tensors[expert]]),
        ("version", without, [tensors[expert]]),
    ):
        listed = [*tensors[:expert], *changed, *tensors[expert + 1 :]]
        _, data_bytes = gguf_header.place(listed, 4096)
        bad = tmp_path / "bad.gguf"
        content = gguf_header.build(kv, listed, 4096)
        bad.write_bytes(content + bytes(data_bytes))
        with pytest.raises(EdgeMoEError, match=expected):
            _native.model_close(_native.model_open(str(bad)))


def test_an_expert_is_one_read(tiny: Callable[..., Path], tokens: list[int], tmp_path: Path) -> None:
    stacked, single = tiny("qwen3moe", expert_type="Q4_K"), tmp_path / "single.gguf"
    convert(open_source(stacked), single, Options())
    for path, n_matrix in ((single, 1), (stacked, 3)):  # a stacked file's matrices lie apart
        with streamed(path, share=0.5) as engine:
            engine.run([[t] for t in tokens[:60]])
            stats = engine.stats()
        assert stats["n_miss"] > 50 and stats["n_streamed"] == 0
        most = n_matrix * (stats["n_miss"] + stats["n_prefetch"])
        assert n_matrix * stats["n_miss"] <= stats["n_read"] <= most
