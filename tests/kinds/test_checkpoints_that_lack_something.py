"""A checkpoint of which a tensor is lost: llama.cpp would make do without some, with another model's answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import tinyhf
import tinymoe

from edgemoe.converters.convert import Options, convert, open_source
from edgemoe.converters.from_safetensors import open_checkpoint
from edgemoe.converters.hf_config import ARCHITECTURES
from edgemoe.errors import FormatError, UnsupportedError
from edgemoe.runtime.formats import open_model

SMALL = [arch for arch in tinyhf.CONFIGS if arch != "deepseek_v2_lite"]  # 27 layers of the same


def save(folder: Path, arch: str, *, without: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {
        name: ("BF16", shape, bytes(2 * int(np.prod(shape))))
        for name, shape in tinyhf.shapes_of(arch).items()
        if name != without
    }
    tinyhf.save(folder, tinyhf.config_of(arch), tensors, n_shard=1)
    return folder


def test_every_architecture_is_tried() -> None:
    tried = {tinyhf.CONFIGS[arch]["architectures"][0] for arch in SMALL}
    assert set(ARCHITECTURES) - tried == {"GraniteMoeSharedForCausalLM"}


@pytest.mark.parametrize("arch", SMALL)
def test_each_tensor_is_missed(tmp_path: Path, arch: str) -> None:
    open_checkpoint(save(tmp_path, arch))
    for name in tinyhf.shapes_of(arch):
        with pytest.raises((FormatError, UnsupportedError)) as refused:
            open_checkpoint(save(tmp_path, arch, without=name))
        if ".experts" not in name and "_linear" not in name and ".kv_b_proj" not in name:
            assert f"lacks `{name}`" in str(refused.value)


def test_a_shape_that_config_does_not_say_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": 16}))
    with pytest.raises(FormatError, match=re.escape("`model.layers.0.self_attn.q_proj.weight` is 64 x 128")):
        open_checkpoint(folder)


def test_a_template_of_its_own_goes_before_an_older_one(tmp_path: Path) -> None:
    folder = save(tmp_path, "qwen3_moe")
    (folder / "chat_template.jinja").write_text("NEW {{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("TOOLS")
    values = open_checkpoint(folder).values
    assert values["tokenizer.chat_template"].raw[8:] == b"NEW {{ messages }}"
    assert values["tokenizer.chat_template.tool_use"].raw[8:] == b"TOOLS"
    (folder / "tokenizer_config.json").unlink()
    assert open_checkpoint(folder).values["tokenizer.chat_template"].raw[8:] == b"NEW {{ messages }}"


def old_form(model: Path, out: Path) -> Path:
    """A Mixtral file as of 2023: each expert in a tensor of its own."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            writer.add_key_value(
                key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    for tensor in reader.tensors:
        match = re.fullmatch(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight", tensor.name)
        parts = [(tensor.name, tensor.data)] if not match else [
            (f"{match[1]}.{i}.weight", expert) for i, expert in enumerate(tensor.data)
        ]  # fmt: skip
        for name, data in parts:
            writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_old_mixtral_files_get_words_and_a_way_out(tmp_path: Path) -> None:
    new = tinymoe.write(tmp_path / "new.gguf", "llama", expert_type="Q8_0", n_layer=2)
    old = old_form(new, tmp_path / "old.gguf")
    with pytest.raises(UnsupportedError, match="in the form of before April 2024") as refused:
        open_model(old)
    assert "edgemoe convert" in refused.value.hint and "dense" not in str(refused.value)
    for source, out in ((new, "a.gguf"), (old, "b.gguf")):
        convert(open_source(source), tmp_path / out, Options())
    tensors = [
        {t.name: t.data.tobytes() for t in gguf.GGUFReader(tmp_path / name).tensors} for name in ("a.gguf", "b.gguf")
    ]
    assert tensors[0] == tensors[1]
