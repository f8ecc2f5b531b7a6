"""One answer, in this process: `python -m edgemoe.bench.answer`, told what to do as JSON on stdin.

Answers once to fill the expert cache, empties the sequence and answers again: that one counts. Prints a JSON line for
each piece of it ({"piece"}), then one with what it took, or {"error", "hint", "exit_code"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from ..errors import EdgeMoEError


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it quietly; the parent speaks
    try:
        last = answer(json.load(sys.stdin))
    except EdgeMoEError as error:
        last = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    _say(last)
    os._exit(1 if "error" in last else 0)  # nothing is left to do but give back memory


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """order: path, share (of the experts that fit, 1 for all), prompt, max_tokens, ctx, threads (or None)."""
    import edgemoe
    from edgemoe.runtime.budget.share import hold_share, share_budget

    setup = edgemoe.Setup(ctx=order["ctx"], threads=order["threads"], n_ubatch=order["n_ubatch"])
    budget_bytes = share_budget(order["path"], order["share"], setup)
    messages = [{"role": "user", "content": order["prompt"]}]
    with edgemoe.load(order["path"], setup.but(memory=budget_bytes)) as engine:
        hold_share(engine, order["share"])
        for _ in engine.chat(messages, max_tokens=order["max_tokens"]):
            pass
        engine.reset()
        before, text = engine.stats(), ""
        for piece in engine.chat(messages, max_tokens=order["max_tokens"]):
            text += piece
            _say({"piece": piece})
        stats, plan = engine.stats(), engine.plan
        took = stats.since(before)
        return {
            "text": text,
            "n_token": took.n_decode,
            "decode_tok_s": took.decode_tok_s,
            "hit_rate": took.hit_rate,
            "read_bytes": took.read_bytes,
            "n_evict": stats.n_evict,
            "n_slot": min(stats.n_slot, plan.n_expert_total),
            "n_expert_total": plan.n_expert_total,
            "budget_bytes": plan.budget_bytes,
            "peak_bytes": stats.peak_bytes,
            "n_ubatch": plan.n_ubatch,
        }


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
