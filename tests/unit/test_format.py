"""docs/format.md is what the converter writes: the dump in it is made here, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np

from edgemoe.converters import gguf_header
from edgemoe.converters.allocation import Allocation
from edgemoe.converters.convert import Options, convert
from edgemoe.converters.source import DenseTensor, FileRows, Key, Rows, Source, SourceFile

PAGE = Path(__file__).parent.parent.parent / "docs" / "format.md"


def example(folder: Path) -> Path:
    """The page's file: one layer, two experts of 32 x 32. Of each matrix only the first weight is not zero."""
    raw = folder / "weights.bin"
    values = np.zeros((7, 1024), np.float32)
    values[:, 0] = range(1, 8)
    raw.write_bytes(values.tobytes())
    file = SourceFile(raw)

    def rows(place: int, n_row: int) -> FileRows:
        return FileRows(file, 4096 * place, "F32", n_row, 32)

    experts: dict[Key, tuple[Rows, ...]] = {
        (0, "exps", role): (rows(1 + 2 * i, 32), rows(2 + 2 * i, 32)) for i, role in enumerate(("up", "gate", "down"))
    }
    values_of = {"general.architecture": gguf_header.encode("llama")}
    dense = (DenseTensor("output_norm.weight", (32,), rows(0, 1)),)
    source = Source(Path("example"), False, "llama", values_of, dense, experts, ())
    out = folder / "example.gguf"
    convert(source, out, Options(allocation=_types()))
    return out


def _types() -> Allocation:
    return Allocation({0: {"up": ("Q8_0", "F16"), "gate": ("Q8_0", "F16"), "down": ("F16", "F16")}})


def dump(content: bytes) -> str:
    """As `xxd -g 4` shows it, runs of equal lines left out."""
    lines, last, skipping = [], b"", False
    for at in range(0, len(content), 16):
        line = content[at : at + 16]
        if line == last and at + 16 < len(content):
            if not skipping:
                lines.append("*")
            skipping = True
            continue
        skipping, last = False, line
        groups = " ".join(line[i : i + 4].hex() for i in range(0, len(line), 4))
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        lines.append(f"{at:06x}: {groups:<35}  {text}")
    return "\n".join(lines)


def test_the_dump_in_the_page_is_what_is_written(tmp_path: Path) -> None:
    shown = re.search(r"```text\n(000000: .*?)\n```", PAGE.read_text("utf-8"), re.S)
    assert shown and shown[1] == dump(example(tmp_path).read_bytes())


def test_other_readers_list_it(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(example(tmp_path))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 7
    assert tensors["blk.0.ffn_up_exps.0.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert tensors["blk.0.ffn_up_exps.1.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert reader.fields["edgemoe.format.version"].contents() == 1
    assert [round(b, 2) for b in reader.fields["edgemoe.expert.bits"].contents()] == [11.0, 16.0]


def test_an_expert_is_one_aligned_stretch(tmp_path: Path) -> None:
    header = gguf_header.read(example(tmp_path))
    order = [tensor.name for tensor in header.tensors]
    assert order[0] == "output_norm.weight"
    assert order[1:4] == [f"blk.0.ffn_{role}_exps.0.weight" for role in ("up", "gate", "down")]
    for a, b in zip(header.tensors[1:], header.tensors[2:], strict=False):
        assert a.offset % 4096 == 0 and 0 <= b.offset - (a.offset + a.n_bytes) < 4096
