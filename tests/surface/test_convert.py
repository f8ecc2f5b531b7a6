"""`edgemoe convert` as a person uses it: whole commands, kills, full disks, and inputs that lie."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tinyhf
import tinymoe
from console import Cli, needs_library

from edgemoe.converters import gguf_header
from edgemoe.converters.convert import open_source
from edgemoe.errors import EdgeMoEError

pytestmark = needs_library


def refused(cli: Cli, source: Path, out: Path, *arguments: object) -> str:
    """The one line that the command says instead of writing anything."""
    before = sorted(out.parent.iterdir())
    done = cli("convert", source, out, *arguments)
    assert done.returncode in (1, 2), done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("edgemoe: ") and len(lines) <= 2, done.stderr
    assert len(lines) == 1 or lines[1].startswith("hint: ")
    assert sorted(out.parent.iterdir()) == before
    return lines[0]


# ---------------------------------------------------------------- models


def test_smolmoe_converts_verifies_and_chats(cli: Cli, smolmoe: Path, tmp_path: Path) -> None:
    out = tmp_path / "smolmoe-q4.gguf"
    done = cli("convert", smolmoe, out, "--type", "q4_0", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["types"] == {"Q4_0": 30 * 48 * 3, "Q8_0": 121, "F32": 91}
    assert report["verified"]["n_bytes"] > 100e6 and 0.05 < report["verified"]["relative_rms_error"]["Q4_0"] < 0.1
    shown = cli("inspect", out)
    assert "1,440" in shown.stdout and "up=q4_0 gate=q4_0 down=q4_0" in shown.stdout
    answer = cli("run", out, "-p", "What is the capital of France?", "-n", "20", "--memory", "400M")
    assert "France" in answer.stdout


def write_as_checkpoint(gguf_file: Path, folder: Path) -> None:
    """SmolMoE as its trainer would have saved it: a Mixtral in float32, query and key rows in Hugging Face's order."""
    import numpy as np

    from edgemoe.converters.from_gguf import open_gguf
    from edgemoe.converters.ggml import dequantize
    from edgemoe.converters.gguf_header import decode, decode_strings

    source = open_gguf(gguf_file)
    value = {key.removeprefix("llama."): decode(raw) for key, raw in source.values.items()}
    names = {
        "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "block_sparse_moe.gate",
    }  # fmt: skip
    tensors = {}
    for tensor in source.dense:
        values = dequantize(tensor.rows.load(0, tensor.rows.n_row), tensor.rows.type, tensor.rows.n_col)
        name = names.get(tensor.name)
        if name is None:
            _, block, stem, _ = tensor.name.split(".")
            name = f"model.layers.{block}.{names[stem]}.weight"
            if stem in ("attn_q", "attn_k"):
                n_head = value["attention.head_count" if stem == "attn_q" else "attention.head_count_kv"]
                values = values.reshape(n_head, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        shape = tuple(reversed(tensor.ne))
        tensors[name] = ("F32", shape, np.ascontiguousarray(values).tobytes())
    for (layer, _, role), stack in source.experts.items():
        for expert, rows in enumerate(stack):
            part = {"gate": "w1", "down": "w2", "up": "w3"}[role]
            values = dequantize(rows.load(0, rows.n_row), rows.type, rows.n_col)
            name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"
            tensors[name] = ("F32", tuple(values.shape), values.tobytes())
    config = {
        "architectures": ["MixtralForCausalLM"], "hidden_size": value["embedding_length"],
        "intermediate_size": value["feed_forward_length"], "num_attention_heads": value["attention.head_count"],
        "num_key_value_heads": value["attention.head_count_kv"], "num_hidden_layers": value["block_count"],
        "num_local_experts": value["expert_count"], "num_experts_per_tok": value["expert_used_count"],
        "max_position_embeddings": value["context_length"], "rope_theta": value["rope.freq_base"],
        "rms_norm_eps": value["attention.layer_norm_rms_epsilon"], "hidden_act": "silu", "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "_name_or_path": decode(source.values["general.name"]),
    }  # fmt: skip
    tinyhf.save(folder, config, tensors, n_shard=3)
    tokens = decode_strings(source.values["tokenizer.ggml.tokens"])
    kinds = decode(source.values["tokenizer.ggml.token_type"])
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "added_tokens": [
            {"id": i, "content": name, "special": True} for i, name in enumerate(tokens) if kinds[i] == 3
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "model": {
            "type": "BPE", "vocab": {name: i for i, name in enumerate(tokens)},
            "merges": decode_strings(source.values["tokenizer.ggml.merges"]),
        },
    }  # fmt: skip
    settings = {
        "bos_token": tokens[1], "eos_token": tokens[2], "unk_token": tokens[0], "pad_token": tokens[2],
        "add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "chat_template": decode(source.values["tokenizer.chat_template"]),
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


@pytest.mark.slow
def test_smolmoe_as_a_checkpoint_is_smolmoe(cli: Cli, smolmoe: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    write_as_checkpoint(smolmoe, tmp_path / "hf")
    out = tmp_path / "again.gguf"
    done = cli("convert", tmp_path / "hf", out, "--type", "Q8_0", "--uniform-per-layer", "--verify", timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = gguf_header.read(smolmoe), gguf_header.read(out)
    for key, value in before.values.items():
        if key not in ("general.file_type", "general.license"):
            assert after.values[key] == value, key
    known = {tensor.name: tensor for tensor in after.tensors}
    assert known.keys() == {tensor.name for tensor in before.tensors}
    with smolmoe.open("rb") as a, out.open("rb") as b:
        for tensor in before.tensors:  # 8 bits and back to 8 bits: no byte changes
            assert known[tensor.name].type == tensor.type
            a.seek(tensor.offset)
            b.seek(known[tensor.name].offset)
            assert a.read(tensor.n_bytes) == b.read(tensor.n_bytes), tensor.name
    answers = {cli("run", path, "-p", "Why is the sky blue?", "-n", "24").stdout for path in (smolmoe, out)}
    assert len(answers) == 1


def test_a_tiny_checkpoint_chats(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = cli("convert", tinyhf.write(tmp_path / "hf", "mixtral"), out, "--verify")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout and "48 Q8_0" not in done.stdout
    done = cli("run", out, "-p", "hello", "-n", "8", "--memory", "400M")
    assert done.returncode == 0 and done.stdout.strip()


def test_experts_of_many_types_plan_run_and_are_shown(cli: Cli, good: Path, tmp_path: Path) -> None:
    types = {"up": ["Q2_K", "Q3_K"] * 8, "gate": ["Q2_K"] * 16, "down": ["Q8_0"] + ["Q3_K"] * 15}
    allocation, out = tmp_path / "allocation.json", tmp_path / "out.gguf"
    allocation.write_text(json.dumps({"version": 1, "types": {str(layer): types for layer in range(3)}}))
    done = cli("convert", good, out, "--allocation", allocation)
    assert done.returncode == 0, done.stderr
    assert "up=q2_K+ gate=q2_K down=q3_K+" in cli("inspect", out).stdout
    done = cli("plan", out, "--memory", "400M", "--json")
    assert done.returncode == 0, done.stderr
    done = cli("run", out, "-p", "hello", "-n", "4", "--memory", "400M")
    assert done.returncode == 0 and done.stdout.strip()


def test_a_damaged_file_does_not_verify(cli: Cli, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert cli("convert", good, out).returncode == 0
    assert cli("convert", good, out, "--verify").returncode == 0
    content = bytearray(out.read_bytes())
    content[-5000] ^= 1
    out.write_bytes(content)
    done = cli("convert", good, out, "--verify")
    assert done.returncode == 1 and "row" in done.stderr and "ffn_down_exps" in done.stderr
    other = tinymoe.write(tmp_path / "other.gguf", "qwen3moe", seed=1)
    assert cli("convert", other, out, "--verify").returncode == 1


# ---------------------------------------------------------------- interruptions


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts enough that a conversion takes a second or so."""
    path = tmp_path_factory.mktemp("larger") / "larger.gguf"
    return tinymoe.write(path, "qwen3moe", expert_type="F16", n_layer=2, n_expert=64)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_leaves_nothing_and_goes_on(
    cli: Cli, larger: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    import gguf

    from edgemoe import _native

    command = [sys.executable, "-m", "edgemoe", "convert", str(larger), str(tmp_path / "out.gguf"), "--type", "Q4_K"]
    begin = time.monotonic()
    assert cli("convert", larger, tmp_path / "reference.gguf", "--type", "Q4_K").returncode == 0
    whole_s = time.monotonic() - begin
    reference = (tmp_path / "reference.gguf").read_bytes()
    out, partial = tmp_path / "out.gguf", tmp_path / "out.gguf.partial"
    generator, n_kill, n_partial = random.Random(5), 0, 0
    while n_kill < 20:
        if generator.random() < 0.3:  # from the beginning again, now and then
            for path in (partial, partial.with_name(partial.name + ".journal"), out):
                path.unlink(missing_ok=True)
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.random() * whole_s)
        child.kill()
        if child.wait() == 0 or out.exists():  # it was faster
            assert out.read_bytes() == reference
            out.unlink()
            continue
        n_kill += 1
        if partial.exists():
            n_partial += 1
            with pytest.raises(EdgeMoEError):
                _native.model_open(str(partial))
            with pytest.raises(ValueError):
                gguf.GGUFReader(partial)
    assert n_partial > 5
    done = cli("convert", larger, out, "--type", "Q4_K")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "reference.gguf"]


def test_it_goes_on_where_it_stopped_and_only_with_the_same_work(
    cli: Cli, larger: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out, journal = tmp_path / "out.gguf", tmp_path / "out.gguf.partial.journal"
    command = [sys.executable, "-m", "edgemoe", "convert", str(larger), str(out), "--type", "IQ3_S", "--threads", "1"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not journal.exists() or journal.read_text().count("\n") < 20:
        assert child.poll() is None
        time.sleep(0.02)
    busy = cli("convert", larger, out, "--type", "IQ3_S")
    assert busy.returncode == 2 and "another process" in busy.stderr
    child.kill()
    child.wait()
    saved = (tmp_path / "out.gguf.partial").read_bytes(), journal.read_bytes()
    done = cli("convert", larger, out, "--type", "IQ3_S", "--json", "--verify")
    assert json.loads(done.stdout)["n_resumed"] >= 20

    out.unlink()
    (tmp_path / "out.gguf.partial").write_bytes(saved[0])
    journal.write_bytes(saved[1])
    done = cli("convert", larger, out, "--type", "Q8_0", "--json", "--verify")  # other work: from the beginning
    assert json.loads(done.stdout)["n_resumed"] == 0
    assert not journal.exists()


def test_a_disk_that_fills_up_is_one_line_and_the_work_is_kept(
    larger: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: the write fails, as it does on a full one."""
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "edgemoe", "convert", str(larger), str(out), "--type", "Q8_0"]

    resource = pytest.importorskip("resource")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1 and done.stderr.startswith("edgemoe: cannot write") and "Traceback" not in done.stderr
    assert not out.exists()
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0


def test_what_no_disk_holds_is_refused_before_anything_is_written(cli: Cli, tmp_path: Path) -> None:
    huge = tinymoe.sparse_big(tmp_path / "huge.gguf", 1 << 42)
    (tmp_path / "to").mkdir()
    assert "free" in refused(cli, huge, tmp_path / "to" / "out.gguf")


@pytest.mark.slow
def test_memory_stays_inside_the_limit(environment: dict[str, str], tmp_path: Path) -> None:
    from edgemoe.bench.limit import LimitUnavailable, memory_limit

    source, memory = tinymoe.sparse_big(tmp_path / "big.gguf", 1 << 30, expert_type="F16", n_expert=64), 256 << 20
    command = [sys.executable, "-m", "edgemoe", "convert", str(source), str(tmp_path / "out.gguf"), "--type", "Q8_0"]
    try:
        with memory_limit(memory, f"edgemoe-convert-{time.monotonic_ns()}") as limit:
            done = subprocess.run(
                [*command, "--memory", str(memory)], env=environment, preexec_fn=limit.joiner(), check=False,
                capture_output=True, text=True,
            )  # fmt: skip
            assert limit.n_kill() == 0 and done.returncode == 0, done.stderr
    except LimitUnavailable as error:
        pytest.skip(str(error))


# ---------------------------------------------------------------- inputs that lie


def test_wrong_uses_are_one_line(cli: Cli, good: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert "does not exist" in refused(cli, tmp_path / "none.gguf", out)
    assert "dense" in refused(cli, models / "dense.gguf", out)
    assert "truncated" in refused(cli, models / "truncated.gguf", out)
    assert "header" in refused(cli, models / "stub.gguf", out)
    assert "not a GGUF" in refused(cli, models / "text.gguf", out)
    assert "not a GGUF" in refused(cli, models / "empty.gguf", out)
    assert "missing" in refused(cli, models / "split-00001-of-00002.gguf", out)
    assert "is the source" in refused(cli, good, good, "--overwrite")
    assert "exists" in refused(cli, good, models / "text.gguf")
    assert "folder" in refused(cli, good, tmp_path)
    assert cli("convert", good, tmp_path / "no" / "out.gguf").stderr.startswith("edgemoe: there is no folder")
    assert "not a type" in refused(cli, good, out, "--type", "Q9_K")
    assert "contradict" in refused(cli, good, out, "--type", "Q4_0", "--bits", "3")
    assert "--calibration" in refused(cli, good, out, "--bits", "3")
    assert "too small" in refused(cli, good, out, "--memory", "10M", "--type", "Q8_0")
    assert "makes no sense" in refused(cli, good, out, "--threads", "0")


def test_no_damaged_gguf_header_is_more_than_one_line(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    n_head, path, n_bad = content.index(b"blk.0.attn_k.weight") + 400, tmp_path / "bad.gguf", 0
    extremes = (b"\xff" * 8, b"\0" * 8, (1 << 62).to_bytes(8, "little"), (1 << 31).to_bytes(8, "little"))
    for seed in range(400):
        generator, bad = random.Random(seed), bytearray(content)
        at = generator.randrange(n_head - 64)
        match seed % 4:
            case 0:
                bad[at] = generator.randrange(256)
            case 1:
                bad[at : at + 8] = generator.choice(extremes)
            case 2:
                del bad[generator.randrange(len(bad)) :]
            case _:
                bad[at : at + 40] = bad[generator.randrange(n_head - 64) :][:40]
        path.write_bytes(bad)
        try:
            open_source(path)
        except EdgeMoEError as error:
            n_bad += 1
            assert error.message and "\n" not in error.message
    assert n_bad > 200


Damage = Callable[[Path], None]


def _header(change: Callable[[dict[str, dict[str, object]]], None]) -> Damage:
    """Changes the header of the first shard, in place."""

    def damage(folder: Path) -> None:
        path = folder / "model-00001-of-00002.safetensors"
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])

    return damage


def _config(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


SHARD, EMBED = "model-00001-of-00002.safetensors", "model.embed_tokens.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
EMPTY: dict[str, object] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
DAMAGES: dict[str, tuple[str, Damage]] = {
    "truncated": ("truncated", _bytes(SHARD, lambda raw: raw[: len(raw) // 2])),
    "stub": ("truncated", _bytes(SHARD, lambda raw: raw[:5])),
    "endless header": ("no safetensors", _bytes(SHARD, lambda raw: b"\xff" * 8 + raw[8:])),
    "no JSON": ("damaged", _bytes(SHARD, lambda raw: raw[:8] + b"[" * 1000 + raw[1008:])),
    "twice in a file": ("are called", _bytes(SHARD, lambda raw: raw.replace(b".q_proj.", b".k_proj.", 1))),
    "size overflows": ("no sound", _header(lambda h: h[EMBED].update(shape=[1 << 40, 1 << 40]))),
    "negative": ("no sound", _header(lambda h: h[EMBED].update(shape=[-272, -64]))),
    "true is no number": ("no sound", _header(lambda h: h[EMBED].update(shape=[True, 64]))),
    "unknown dtype": ("unknown type", _header(lambda h: h[EMBED].update(dtype="Q4"))),
    "wrong dtype": ("stored as I16", _header(lambda h: h[EMBED].update(dtype="I16"))),
    "overlap": ("inside another", _header(lambda h: h[Q].update(data_offsets=[100, 100 + 64 * 64 * 2]))),
    "foreign tensor": ("no place", _header(lambda h: h.update({"model.what.weight": EMPTY}))),
    "shard missing": ("missing", lambda folder: (folder / SHARD).unlink()),
    "index lies": (
        "no file holds",
        _bytes("model.safetensors.index.json", lambda raw: raw.replace(b"layers.1.input", b"layers.1.output")),
    ),
    "index leaves the folder": (
        "outside",
        _bytes("model.safetensors.index.json", lambda raw: raw.replace(SHARD.encode(), b"../../etc/passwd")),
    ),
    "config no JSON": ("not JSON", _bytes("config.json", lambda raw: raw[:50])),
    "absurd layers": ("", _config(num_hidden_layers=1 << 40)),
    "absurd experts": ("lacks expert", _config(num_local_experts=1 << 30)),
    "no experts": ("dense", _config(num_local_experts=None)),
    "layers missing": ("", _config(num_hidden_layers=3)),
    "no number": ("whole number", _config(num_attention_heads="4")),
    "other width": ("says", _config(intermediate_size=48)),
    "unknown class": ("not converted", _config(architectures=["LlamaForCausalLM"])),
    "other activation": ("hidden_act", _config(hidden_act="gelu")),
    "other quantization": ("quantized by", _config(quantization_config={"quant_method": "gptq"})),
    "other rope": ("rope", _config(rope_scaling={"type": "longrope", "factor": 2.0})),
    "tokenizer gone": ("tokenizer", lambda folder: (folder / "tokenizer.json").unlink()),
    "tokenizer damaged": ("tokenizer", _bytes("tokenizer.json", lambda raw: raw.replace(b'"merges"', b'"mergers"'))),
    "token out of range": ("token", _bytes("tokenizer.json", lambda raw: raw.replace(b'"id": 263', b'"id": 99999'))),
    "unknown cut": ("--pre-tokenizer", _bytes("tokenizer.json", lambda raw: raw.replace(b"p{N}|", b"p{N}{2}|"))),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, name: str) -> None:
    said, damage = DAMAGES[name]
    folder = tinyhf.write(tmp_path / "hf", "mixtral")
    damage(folder)
    with pytest.raises(EdgeMoEError) as error:
        open_source(folder)
    text = f"{error.value.message} {error.value.hint}"
    assert said in text and "\n" not in text


def test_no_damaged_shard_is_more_than_one_line(tmp_path: Path) -> None:
    folder = tinyhf.write(tmp_path / "hf", "mixtral")
    content, n_bad = (folder / SHARD).read_bytes(), 0
    n_head = 8 + int.from_bytes(content[:8], "little")
    for seed in range(200):
        generator, bad = random.Random(seed), bytearray(content)
        at = generator.randrange(n_head)
        match seed % 3:
            case 0:
                bad[at] = generator.randrange(256)
            case 1:
                bad[at : at + 1] = generator.choice((b"9999999999", b'"', b"{", b"-1", b"1e308", b"\\ud800", b"NaN"))
            case _:
                del bad[at : at + generator.randrange(1, 60)]
        (folder / SHARD).write_bytes(bad)
        try:
            open_source(folder)
        except EdgeMoEError as error:
            n_bad += 1
            assert error.message and "\n" not in error.message
    assert n_bad > 150


def test_the_command_says_so_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    folder = tinyhf.write(tmp_path / "hf", "mixtral")
    DAMAGES["truncated"][1](folder)
    (tmp_path / "to").mkdir()
    assert "truncated" in refused(cli, folder, tmp_path / "to" / "out.gguf")


def test_a_value_that_is_no_number_is_found_before_the_quantizer(cli: Cli, tmp_path: Path) -> None:
    folder = tinyhf.write(tmp_path / "hf", "mixtral")
    raw = bytearray((folder / SHARD).read_bytes())
    raw[-1], raw[-2] = 0x7F, 0xC0  # a NaN in bfloat16
    (folder / SHARD).write_bytes(raw)
    (tmp_path / "to").mkdir()
    assert "finite" in refused(cli, folder, tmp_path / "to" / "out.gguf")
