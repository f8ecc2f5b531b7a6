"""Parts of the converter by themselves: packed and scaled weights, tokenizers, metadata, types, the plan of a file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import tinyhf
import tinymoe

from edgemoe.converters import gguf_header, hf_tokenizer
from edgemoe.converters.convert import Options, convert, open_source, verify_file
from edgemoe.converters.ggml import TARGETS, dequantize, quantize
from edgemoe.converters.gguf_header import decode, decode_strings
from edgemoe.converters.hf_rows import Fp8Rows, KeyHalf, Mxfp4Rows, TransposedRows
from edgemoe.converters.safetensors_file import Stored
from edgemoe.converters.source import FileRows, PickedRows, SourceFile
from edgemoe.errors import FormatError, UnsupportedError
from edgemoe.runtime.formats import open_model

RNG = np.random.default_rng(0)


def stored(path: Path, values: np.ndarray, dtype: str) -> Stored:
    path.write_bytes(values.tobytes())
    return Stored(path.name, SourceFile(path), dtype, values.shape, 0)


# ---------------------------------------------------------------- rows


def test_packed_experts_of_gpt_oss_are_the_same_numbers(tmp_path: Path) -> None:
    n_row, n_block = 6, 3
    blocks = RNG.integers(0, 256, (n_row, n_block, 16), dtype=np.uint8)
    scales = RNG.integers(120, 132, (n_row, n_block), dtype=np.uint8)
    kept = [stored(tmp_path / name, values, "U8") for name, values in (("blocks", blocks), ("scales", scales))]
    # As the model's authors unpack it: low half first, values doubled in no way, exponent biased by 127.
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    codes = np.stack((blocks & 15, blocks >> 4), axis=-1).reshape(n_row, n_block, 32)
    wanted = (table[codes] * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(n_row, -1)
    for first, step in ((0, 1), (0, 2), (1, 2)):
        rows = Mxfp4Rows(kept[0].file, 0, kept[1].file, 0, n_row, 32 * n_block, first, step)
        assert rows.n_row == len(wanted[first::step])
        raw = np.concatenate([rows.load(i, i + 1) for i in range(rows.n_row)])
        assert (raw == rows.load(0, rows.n_row)).all()
        assert (dequantize(raw, "MXFP4", 32 * n_block) == wanted[first::step]).all()
        assert (gguf.dequantize(raw, gguf.GGMLQuantizationType.MXFP4) == wanted[first::step]).all()


def test_scaled_floats_of_8_bits(tmp_path: Path) -> None:
    codes = RNG.integers(0, 127, (300, 200), dtype=np.uint8) | RNG.integers(0, 2, (300, 200), dtype=np.uint8) << 7
    codes[codes & 127 == 127] = 0
    scales = RNG.random((3, 2), np.float32)
    rows = Fp8Rows(stored(tmp_path / "w", codes, "F8_E4M3"), stored(tmp_path / "s", scales, "F32"))
    sign, exponent, mantissa = codes >> 7, codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(int) - 7)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal) * np.where(sign, -1, 1)
    wanted = (value.astype(np.float32) * scales.repeat(128, 0)[:300].repeat(128, 1)[:, :200]).astype(np.float32)
    for begin, end in ((0, 300), (100, 150), (129, 300)):
        assert (dequantize(rows.load(begin, end), "F32", 200) == wanted[begin:end]).all()
    half = scales.astype(np.float16)
    rows = Fp8Rows(rows.stored, stored(tmp_path / "h", half, "F16"))
    ratio = half.astype(np.float32) / scales
    assert np.allclose(dequantize(rows.load(0, 300), "F32", 200)[:128, :128], wanted[:128, :128] * ratio[0, 0])


def test_views_of_a_matrix(tmp_path: Path) -> None:
    values = RNG.standard_normal((24, 10), dtype=np.float32)
    raw = stored(tmp_path / "m", values, "F32")
    base = FileRows(raw.file, 0, "F32", 24, 10)
    picked = np.array([3, 2, 9, 23])
    assert (dequantize(PickedRows(base, picked).load(1, 4), "F32", 10) == values[picked[1:]]).all()
    columns = TransposedRows(base, 1, 2)
    assert (dequantize(columns.load(1, 5), "F32", 24) == values[:, 1::2].T[1:5]).all()
    keys = KeyHalf(base, n_head=4, n_key=4, n_value=2)
    wanted = values.reshape(4, 6, 10)[:, :4].transpose(0, 2, 1).reshape(40, 4)
    assert (dequantize(keys.load(3, 39), "F32", 4) == wanted[3:39]).all()


@pytest.mark.parametrize("name", TARGETS)
def test_every_type_goes_there_and_back(name: str) -> None:
    values = RNG.standard_normal((3, 512), dtype=np.float32)
    raw = quantize(values, name)
    back = dequantize(raw, name, 512)
    assert np.sqrt(np.mean((back - values) ** 2)) < 0.9
    if name in ("Q8_0", "Q4_K", "Q6_K", "MXFP4", "IQ4_XS", "Q2_K"):
        kind = gguf.GGMLQuantizationType[name]
        assert np.allclose(back, gguf.dequantize(raw, kind).reshape(3, 512), atol=1e-6)


def test_importance_moves_the_error_to_what_matters_less() -> None:
    values = RNG.standard_normal((64, 512), dtype=np.float32)
    importance = np.where(np.arange(512) % 2, 100.0, 1.0).astype(np.float32)
    plain, weighted = (dequantize(quantize(values, "Q3_K", w), "Q3_K", 512) - values for w in (None, importance))
    assert np.square(weighted[:, 1::2]).sum() < 0.9 * np.square(plain[:, 1::2]).sum()


# ---------------------------------------------------------------- checkpoints


def fused(folder: Path) -> Path:
    """The same Qwen3 with gate and up of all experts in one tensor, as newer checkpoints have it."""
    tinyhf.write(folder, "qwen3_moe")
    tensors = {}
    for name, shape in tinyhf.shapes_of("qwen3_moe").items():
        if ".experts." not in name:
            tensors[name] = ("BF16", shape, tinyhf.encode(tinyhf.draw(name, shape), "BF16"))
    for layer in range(tinyhf.N_LAYER):
        p = f"model.layers.{layer}.mlp.experts."

        def stack(*parts: str, p: str = p) -> tuple[str, tuple[int, ...], bytes]:
            shapes = tinyhf.shapes_of("qwen3_moe")
            values = np.stack([
                np.concatenate([tinyhf.draw(name, shapes[name]) for name in (f"{p}{e}.{x}.weight" for x in parts)])
                for e in range(tinyhf.N_EXPERT)
            ])  # fmt: skip
            return "BF16", values.shape, tinyhf.encode(values, "BF16")

        tensors[f"{p}gate_up_proj"] = stack("gate_proj", "up_proj")
        tensors[f"{p}down_proj"] = stack("down_proj")
    tinyhf.save(folder, tinyhf.config_of("qwen3_moe"), tensors, n_shard=2)
    return folder


def test_fused_experts_and_shards_make_no_difference(tmp_path: Path) -> None:
    files = []
    for i, folder in enumerate((tinyhf.write(tmp_path / "a", "qwen3_moe", n_shard=1), fused(tmp_path / "b"))):
        source, out = open_source(folder), tmp_path / f"{i}.gguf"
        convert(source, out, Options(type_name="Q8_0"))
        header = gguf_header.read(out)
        values = {k: v for k, v in header.values.items() if k not in ("general.name", "edgemoe.source.name")}
        files.append((values, header.tensors, out.read_bytes()[header.tensors[0].offset :]))
    assert files[0] == files[1]  # the hash of the source too


@pytest.mark.parametrize(
    ("arch", "change"),
    [
        ("qwen2_moe", {"norm_topk_prob": True}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("olmoe", {"clip_qkv": 8.0}),
        ("deepseek_v3", {"topk_method": "group_limited_greedy"}),
        ("deepseek_v2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}}),
        ("mixtral", {"sliding_window": 4096}),
        ("granitemoe", {"attention_bias": True}),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, arch: str, change: dict[str, object]
) -> None:
    folder = tinyhf.write(tmp_path / "hf", arch)
    (folder / "config.json").write_text(json.dumps({**tinyhf.config_of(arch), **change}))
    with pytest.raises(UnsupportedError):
        open_source(folder)


def test_what_the_maker_recommends_for_sampling_is_kept(tmp_path: Path) -> None:
    folder, out = tinyhf.write(tmp_path / "hf", "qwen3_moe"), tmp_path / "out.gguf"
    said = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
        "min_p": None,
    }
    (folder / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": [1]}))
    convert(open_source(folder), out, Options(type_name="Q8_0"))
    with open_model(out) as model:
        found = model.recommended
    values = found.values
    assert [values[name] for name in ("temp", "top_k", "top_p", "repeat_penalty")] == [0.6, 20, 0.95, 1.05]
    assert set(found.given) == {"temp", "top_k", "top_p", "repeat_penalty"}
    # A GGUF keeps what it has.
    convert(open_source(out), tmp_path / "again.gguf", Options(type_name="Q4_0"))
    kept = gguf_header.read(tmp_path / "again.gguf").values
    first = gguf_header.read(out).values
    sampling = {key: value for key, value in first.items() if key.startswith("general.sampling.")}
    assert len(sampling) == 4 and {key: kept[key] for key in sampling} == sampling


def test_sampling_that_is_not_meant_or_makes_no_sense(tmp_path: Path) -> None:
    folder = tinyhf.write(tmp_path / "hf", "qwen3_moe")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert not [key for key in open_source(folder).values if key.startswith("general.sampling.")]
    for said in ({"temperature": "hot"}, {"top_k": 2.5}, {"top_p": True}, {"min_p": 1e300}, {"top_k": [4]}):
        (folder / "generation_config.json").write_text(json.dumps(said))
        with pytest.raises(FormatError, match=f"generation_config.json says `{next(iter(said))}` is"):
            open_source(folder)


# ---------------------------------------------------------------- tokenizers


def test_a_byte_level_tokenizer_is_the_one_it_came_from(tmp_path: Path) -> None:
    values = open_source(tinyhf.write(tmp_path / "hf", "mixtral")).values
    tokens = tinymoe.vocabulary()
    got = decode_strings(values["tokenizer.ggml.tokens"])
    assert got[: len(tokens)] == tokens and got[-1] == f"[PAD{tinyhf.N_VOCAB - 1}]"
    assert decode_strings(values["tokenizer.ggml.merges"]) == tinymoe.MERGES
    assert decode(values["tokenizer.ggml.pre"]) == "qwen2"
    assert decode(values["tokenizer.chat_template"]) == tinymoe.CHAT_TEMPLATE
    kinds = decode(values["tokenizer.ggml.token_type"])
    assert kinds[0] == 1 and kinds[tokens.index("<|im_end|>")] == 3 and kinds[-1] == 5
    assert decode(values["tokenizer.ggml.eos_token_id"]) == tokens.index("<|im_end|>")
    assert decode(values["tokenizer.ggml.add_bos_token"]) is False


def _message(*fields: tuple[int, object]) -> bytes:
    """A protobuf message: strings, floats and small numbers."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += bytes([number << 3, value])
        else:
            raw = value if isinstance(value, bytes) else str(value).encode()
            out += bytes([number << 3 | 2, len(raw)]) + raw
    return bytes(out)


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("▁t", -1.0, 1), ("he", -2.0, 1),
          ("▁the", -3.0, 1), ("▁", -4.0, 1), ("t", -5.0, 1), ("h", -6.0, 1), ("e", -7.0, 1)]  # fmt: skip


def test_a_sentencepiece_vocabulary_from_its_own_file_and_from_merges(tmp_path: Path) -> None:
    pieces = b"".join(_message((1, _message((1, text), (2, score), (3, kind)))) for text, score, kind in PIECES)
    (tmp_path / "tokenizer.model").write_bytes(pieces + _message((2, b"\x08\x01")))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    own = hf_tokenizer.tokenizer_values(tmp_path, {}, 12)
    assert decode(own["tokenizer.ggml.model"]) == "llama"
    assert decode_strings(own["tokenizer.ggml.tokens"]) == [text for text, _, _ in PIECES] + ["[PAD11]"]
    assert decode(own["tokenizer.ggml.token_type"]) == [kind for _, _, kind in PIECES] + [5]
    assert decode(own["tokenizer.ggml.scores"])[4:7] == [-1.0, -2.0, -3.0]
    assert decode(own["tokenizer.ggml.add_bos_token"]) is True and decode(own["tokenizer.ggml.bos_token_id"]) == 1

    (tmp_path / "tokenizer.model").unlink()
    tokenizer = {
        "model": {
            "type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
            "vocab": {text: i for i, (text, _, _) in enumerate(PIECES)}, "merges": ["▁ t", "h e", "▁t he"],
        },
        "added_tokens": [{"id": i, "content": PIECES[i][0], "special": True} for i in range(3)],
        "normalizer": {"type": "Sequence"}, "pre_tokenizer": None,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    merged = hf_tokenizer.tokenizer_values(tmp_path, {}, 12)
    assert merged["tokenizer.ggml.tokens"] == own["tokenizer.ggml.tokens"]
    scores = decode(merged["tokenizer.ggml.scores"])
    assert scores[4] > scores[5] > scores[6] > scores[8]  # in the order in which the merges are made
    assert decode(merged["tokenizer.ggml.token_type"])[3] == 6


CUTS = {
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥\u3040-ゟ\u30a0-ヿ]+", r"[\r\n]|\s+"],
    "llama-bpe": [hf_tokenizer._QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)],
    "gpt-4o": [hf_tokenizer._O200K.replace(r"\r", "\r").replace(r"\n", "\n")],
}


@pytest.mark.parametrize("name", CUTS)
def test_the_way_text_is_cut_is_found(tmp_path: Path, name: str) -> None:
    splits = [{"type": "Split", "pattern": {"Regex": expression}} for expression in CUTS[name]]
    pre = {"type": "Sequence", "pretokenizers": [*splits, {"type": "ByteLevel", "use_regex": False}]}
    assert hf_tokenizer._cut_name(tmp_path, {"pre_tokenizer": pre}, {}) == name


# ---------------------------------------------------------------- files


def test_any_gguf_is_a_source_split_or_stacked_or_mixed(tmp_path: Path) -> None:
    whole = tinymoe.write(tmp_path / "a.gguf", "qwen3moe", expert_type="F16")
    split = tinymoe.write(tmp_path / "b.gguf", "qwen3moe", expert_type="F16", n_split=3)
    digests = set()
    for i, path in enumerate((whole, split)):
        out = tmp_path / f"out{i}.gguf"
        convert(open_source(path), out, Options(type_name="Q4_K"))
        verify_file(open_source(path), out, Options())
        digests.add(decode(gguf_header.read(out).values["edgemoe.source.sha256"]))
    assert len(digests) == 1
    again = tmp_path / "again.gguf"
    convert(open_source(tmp_path / "out0.gguf"), again, Options(uniform_per_layer=True))
    assert {t.type for t in gguf_header.read(again).tensors if "exps" in t.name} == {"Q4_K"}


def test_dense_types_leave_what_decides_alone(tmp_path: Path) -> None:
    source = open_source(tinymoe.write(tmp_path / "a.gguf", "gpt-oss"))
    convert(source, tmp_path / "b.gguf", Options(dense_type="Q4_K"))
    types = {t.name.split(".", 2)[-1]: t.type for t in gguf_header.read(tmp_path / "b.gguf").tensors}
    assert types["attn_q.weight"] == "Q4_K" and types["ffn_gate_inp.weight"] == types["attn_sinks.weight"] == "F32"
    assert types["ffn_up_exps.bias"] == "F32"
