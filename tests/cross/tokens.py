"""The ids of a greedy answer, printed as `embed-c --tokens` does, for ./dev cross.

Arguments: MODEL MEMORY N_IDS, then the ids: the prompt's, of which N_IDS is the number, then any others, of which only
the number counts: as many are generated.
"""

from __future__ import annotations

import sys

import edgemoe


def main(model: str, memory: str, n_prompt: int, ids: list[int]) -> None:
    prompt, n_answer = ids[:n_prompt], len(ids) - n_prompt
    with edgemoe.load(model, memory=memory, threads=2, ctx=512) as engine:
        answer = [step.token for step in engine.steps(prompt, max_tokens=n_answer) if step.token >= 0]
        fit = f"{engine.plan.n_slot} of {engine.plan.n_expert_total} experts fit"
    print("tokens:", *prompt, *answer)
    print(f"tokens.py: {fit}", file=sys.stderr)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(text) for text in sys.argv[4:]])
