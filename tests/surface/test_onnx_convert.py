"""`edgemoe convert --to onnx` as a person uses it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_extra  # noqa: F401
import pytest
import tinyhf
import tinymoe
from console import Cli, needs_library

from edgemoe.converters.convert import open_source

pytestmark = needs_library


def refused(cli: Cli, *arguments: object) -> str:
    done = cli("convert", *arguments, "--to", "onnx")
    assert done.returncode in (1, 2), done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("edgemoe: ") and len(lines) <= 2, done.stderr
    return lines[0]


def test_a_checkpoint_becomes_a_folder(cli: Cli, tmp_path: Path) -> None:
    source = tinyhf.write(tmp_path / "hf", "mixtral")
    done = cli("convert", source, tmp_path / "out", "--to", "onnx", "--type", "q3_k", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["experts_by_bits"] == {"4": 16}
    assert report["notes"] == ["48 matrices of q3_k are kept in 4 bits: ONNX Runtime has 2, 4 and 8"]
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) == report["file_bytes"]

    assert "exists" in refused(cli, source, tmp_path / "out")
    again = cli("convert", source, tmp_path / "out", "--to", "onnx", "--type", "8", "--overwrite")
    assert again.returncode == 0 and "16 of 8 bits" in again.stdout, again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_refusals_leave_nothing(cli: Cli, tmp_path: Path) -> None:
    source = tinyhf.write(tmp_path / "hf", "mixtral")
    (tmp_path / "mine").mkdir()
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    assert "`--size` is for `--to gguf`" in refused(cli, source, out, "--size", "1G")
    assert "`--verify`" in refused(cli, source, out, "--verify")
    assert "not a type" in refused(cli, source, out, "--type", "int4")
    assert "is not an export of edgemoe" in refused(cli, source, tmp_path / "mine", "--overwrite")
    assert "holds the source" in refused(cli, source, source, "--overwrite")
    assert "too small" in refused(cli, source, out, "--memory", "20M")
    assert "there is no folder" in refused(cli, source, tmp_path / "no" / "out")
    other = tinyhf.write(tmp_path / "granite", "granitemoe")
    assert "no ONNX export of the architecture `granitemoe`" in refused(cli, other, out)
    shared = tinymoe.write(tmp_path / "shared.gguf", "qwen2moe")
    assert "no ONNX export" in refused(cli, shared, out)
    done = cli("convert", source, out, "--to", "tflite")
    assert done.returncode == 2 and "`tflite` is not a format" in done.stderr
    shared.unlink()
    assert sorted(path for path in tmp_path.iterdir() if path.name != "granite") == before


def test_what_a_killed_process_left_is_removed(cli: Cli, tmp_path: Path) -> None:
    left = tmp_path / "out.999999999.partial"
    left.mkdir()
    (left / "model.onnx.data").write_bytes(b"x")
    source = tinyhf.write(tmp_path / "hf", "olmoe")
    assert cli("convert", source, tmp_path / "out", "--to", "onnx").returncode == 0
    assert not left.exists()


@pytest.mark.parametrize("arch", ["olmoe", "qwen3moe"])
def test_a_gguf_gets_a_tokenizer_file_that_cuts_as_llama_cpp_does(tmp_path: Path, arch: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    import edgemoe
    from edgemoe.converters.onnx.export import Options, export

    path = tinymoe.write(tmp_path / "m.gguf", arch)
    export(open_source(path), tmp_path / "out", Options())
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    with edgemoe.load(path, memory="1GiB", ctx=64) as engine:
        for text in ("Hello world, 1234!", "<|im_start|>user\nhi  there<|im_end|>", "Ünï 漢字 don't"):
            assert made.encode(text).ids == engine.tokenize(text)


@pytest.mark.slow
def test_genai_says_what_stock_onnx_runtime_says(smolmoe: Path, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    import edgemoe
    from edgemoe.converters.onnx.export import Options, export

    export(open_source(smolmoe), tmp_path / "out", Options())
    with edgemoe.load(tmp_path / "out", memory="1GiB", ctx=128) as engine:
        prompt = engine.chat_tokens([{"role": "user", "content": "What is the capital of France?"}])
        ours = [step.token for step in engine.steps(prompt, max_tokens=12) if step.token >= 0]
    model = genai.Model(str(tmp_path / "out"))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + 12, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    found = []
    for _ in ours:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found == ours
