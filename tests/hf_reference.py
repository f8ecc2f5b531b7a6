"""Writes golden/hf_logits.json: what transformers computes with the checkpoints of tinyhf. No test runs this.

    pip install torch transformers gguf   # in an environment of its own
    PYTHONPATH=. python tests/hf_reference.py

tests/exact/test_checkpoints.py compares stock llama.cpp on the converted files with it.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

import tinyhf

GOLDEN = Path(__file__).parent / "golden" / "hf_logits.json"
POSITIONS, N_LOGIT = (7, 39), 40
_generator = random.Random(3)
TOKENS = [_generator.randrange(0, 256) for _ in range(40)]


def main() -> None:
    """Compute and store the logits of the architectures named, or of all."""
    import importlib

    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"logits": {}}
    golden |= {"torch": torch.__version__, "transformers": transformers.__version__, "tokens": TOKENS}
    golden["positions"] = list(POSITIONS)
    for arch in sys.argv[1:] or list(tinyhf.CONFIGS):
        with tempfile.TemporaryDirectory() as folder:
            tinyhf.write(Path(folder), arch)
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            assert not info["missing_keys"] and not info["unexpected_keys"], info
            with torch.no_grad():
                logits = model(torch.tensor([TOKENS])).logits[0]
        golden["logits"][arch] = [[round(float(x), 4) for x in logits[p, :N_LOGIT]] for p in POSITIONS]
        print(arch, float(logits.std()), int(logits[-1].argmax()))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
