"""Write the seeds of the native fuzzers: the smallest files that are models, and a call of each kind.

python tests/fuzz/corpus.py FOLDER      makes FOLDER/gguf and FOLDER/calls
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

N_EXPERT, N_COL, N_ROW = 2, 32, 32
CALLS = {
    "stream": b"\x00\x04\x00stop\x20\x00a text that st and then stop, and more",
    "chat": b"\x01\x06\x00chatml\x04\x00user\x05\x00hello",
    "policy": b"\x02\x01\x04\x04\x00\x02" + bytes(range(60)),
    "plan": b"\x03" + bytes(range(1, 250)),
    "replay": b"\x04\x01\x08\x04\x04" + bytes(range(1, 90)),
}


def model(path: Path, *, arch: str, single: bool, fused: bool) -> None:
    """A header with the experts of one layer. single: a tensor for each expert. fused: gate and up are one."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("a seed")
    writer.add_block_count(1)
    writer.add_expert_used_count(1)
    if single:
        writer.add_uint32("edgemoe.format.version", 1)
    roles = {"gate_up": 2 * N_ROW, "down": N_ROW} if fused else {"up": N_ROW, "gate": N_ROW, "down": N_ROW}
    for role, n_row in roles.items():
        if single:
            for expert in range(N_EXPERT):
                writer.add_tensor(f"blk.0.ffn_{role}_exps.{expert}.weight", np.zeros((1, n_row, N_COL), np.float16))
        else:
            writer.add_tensor(f"blk.0.ffn_{role}_exps.weight", np.zeros((N_EXPERT, n_row, N_COL), np.float16))
    writer.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((N_EXPERT, N_COL), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write all of them."""
    folder = Path(sys.argv[1])
    for name in ("gguf", "calls"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    model(folder / "gguf/stacked", arch="qwen3moe", single=False, fused=False)
    model(folder / "gguf/single", arch="qwen2moe", single=True, fused=False)
    model(folder / "gguf/fused", arch="gemma4", single=False, fused=True)
    for name, data in CALLS.items():
        (folder / "calls" / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
