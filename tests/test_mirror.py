"""What a host without Python decides natively is what Python decides: plans of budgets, and text from bytes."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgemoe.errors import BudgetError
from edgemoe.runtime.gguf.model import ContextSizes, ModelInfo
from edgemoe.runtime.budget.planner import Budget, plan
from edgemoe.runtime.text.stream import TextStream
from edgemoe.units import KIB, MIB

MIRROR = Path(__file__).resolve().parent.parent / "build" / "editable" / "mirror"

pytestmark = pytest.mark.skipif(not MIRROR.exists(), reason="the native tests are not built: `./dev setup`")


def ask(lines: Sequence[str]) -> list[str]:
    done = subprocess.run([MIRROR], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@dataclass(frozen=True)
class Case:
    """A model, how its contexts grow, a budget."""

    model: ModelInfo
    coefficients: tuple[int, ...]
    budget: Budget

    def sizes(self, n_ctx: int, n_ubatch: int) -> ContextSizes:
        kv, compute, attention, output, scratch, vocab, decode, prefill = self.coefficients
        return ContextSizes(
            kv_bytes=n_ctx * kv,
            compute_bytes=n_ubatch * compute + n_ctx * n_ubatch * attention,
            output_bytes=output,
            scratch_bytes=n_ubatch * scratch,
            vocab_bytes=vocab,
            decode_bytes=decode,
            prefill_bytes=n_ubatch * prefill,
        )

    def line(self) -> str:
        m, b = self.model, self.budget
        model = (m.n_ctx_train, m.n_vocab, m.dense_bytes, m.slot_bytes, m.slot_min_bytes, m.n_expert_total)
        budget = (b.bytes, b.process_bytes, b.n_threads, b.n_ctx or 0, b.n_ubatch or 0)
        return " ".join(map(str, ("plan", *model, *self.coefficients, *budget)))

    def answer(self) -> str:
        try:
            found = plan(self.model, self.sizes, self.budget)
        except BudgetError as error:
            return f"small {error.smallest}"
        values = (
            found.n_ctx, found.n_ubatch, found.cache_bytes, found.n_slot, found.margin_bytes, found.process_bytes,
            found.smallest_bytes, found.resident_bytes,
        )  # fmt: skip
        return " ".join(map(str, values))


def case(rng: random.Random) -> Case:
    slot = rng.randrange(1, 20_000) * 300 * KIB + rng.randrange(4096)
    model = ModelInfo(
        n_layer=1, n_moe_layer=1, n_expert=1, n_expert_used=1, n_embd=1,
        n_ctx_train=rng.choice((0, 256, 700, 2048, 8192, 131072)), n_vocab=rng.randrange(1000, 200_000), n_file=1,
        direct_io=True, file_bytes=1, dense_bytes=rng.randrange(1, 2000) * MIB, dense_token_bytes=1, expert_bytes=1,
        token_bytes=1, slot_bytes=slot, slot_min_bytes=slot // rng.randrange(2, 100),
        n_expert_total=rng.randrange(8, 20_000), identity=1, architecture="llama", name="a model",
    )  # fmt: skip
    coefficients = (
        rng.randrange(1000, 200_000), rng.randrange(1000, 100_000), rng.randrange(8), rng.randrange(1, MIB),
        rng.randrange(1000, 50_000), rng.randrange(30 * MIB), rng.randrange(20 * MIB), rng.randrange(1000, 300_000),
    )  # fmt: skip
    most = model.dense_bytes + slot + 1000 * MIB
    budget = Budget(
        bytes=rng.randrange(model.dense_bytes // 2, most),
        process_bytes=rng.randrange(10 * MIB, 300 * MIB),
        n_threads=rng.randrange(1, 9),
        n_ctx=rng.choice((None, None, None, 1, 100, 3000, 200_000)),
        n_ubatch=rng.choice((None, None, None, 1, 100, 2000)),
    )
    return Case(model, coefficients, budget)


def test_two_thousand_budgets_are_spent_alike() -> None:
    rng = random.Random(5)
    cases = [case(rng) for _ in range(2000)]
    answers = ask([one.line() for one in cases])
    expected = [one.answer() for one in cases]
    assert answers == expected
    shapes = {tuple(answer.split()[:2]) for answer in expected if not answer.startswith("small")}
    assert len(shapes) > 15  # many contexts and batches were chosen
    assert 100 < sum(answer.startswith("small") for answer in expected) < 1500


def test_the_budget_that_is_named_as_the_smallest_works() -> None:
    rng = random.Random(6)
    cases = [case(rng) for _ in range(300)]
    tried = []
    for one, answer in zip(cases, ask([one.line() for one in cases]), strict=True):
        smallest = int(answer.split()[1] if answer.startswith("small") else answer.split()[6])
        for n_bytes in (smallest, smallest - 5 * MIB):
            tried.append(Case(one.model, one.coefficients, Budget(**{**vars(one.budget), "bytes": n_bytes})))
    answers = ask([one.line() for one in tried])
    assert all(not answer.startswith("small") for answer in answers[::2])
    assert all(answer.startswith("small") for answer in answers[1::2])


def pieces(rng: random.Random) -> list[bytes]:
    """Valid text, and text broken in every way, cut anywhere."""
    text = "".join(rng.choice("aäß€😀\x00 \n<|im_end|>STOP") for _ in range(rng.randrange(1, 40))).encode()
    broken = bytearray(text)
    for _ in range(rng.choice((0, 0, 1, 4))):
        broken.insert(rng.randrange(len(broken) + 1), rng.randrange(256))
    for _ in range(rng.choice((0, 0, 3))):
        if broken:
            del broken[rng.randrange(len(broken))]
    cuts = sorted(rng.randrange(len(broken) + 1) for _ in range(rng.randrange(8)))
    return [bytes(broken[a:b]) for a, b in zip([0, *cuts], [*cuts, len(broken)], strict=True) if a < b]


def test_bytes_become_the_same_text_piece_by_piece() -> None:
    rng = random.Random(7)
    lines, expected = [], []
    for _ in range(3000):
        stop = rng.choice(([], ["STOP"], ["<|im_end|>", "ä"], ["€😀", "a", "STO"]))
        given = pieces(rng)
        lines.append(" ".join(["stream", ",".join(s.encode().hex() for s in stop) or "-", *(p.hex() for p in given)]))
        stream = TextStream(stop)
        texts = [*(stream.feed(piece) for piece in given), stream.finish()]
        expected.append(" ".join([*(text.encode().hex() or "-" for text in texts), str(int(stream.stopped))]))
    assert ask(lines) == expected
    assert sum(line.endswith("1") for line in expected) > 500
