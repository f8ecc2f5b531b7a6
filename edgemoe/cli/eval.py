"""`edgemoe eval`: perplexity, distance to a reference model, small tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..places import BUILTIN
from ..units import format_size
from .options import LossyOption, ModelArgument, ProfileOption, ThreadsOption, at_least, output_file
from .progress import Bar
from .status import say

if TYPE_CHECKING:
    from ..quality.decoded import Decoding
    from ..quality.perplexity import Score
    from ..quality.session import Result
    from ..quality.tasks import TaskScore

_EXACT = "exact"  # in place of a reference


def eval(
    model: ModelArgument = BUILTIN,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            show_default=False,
            help="What to measure the distance to: a GGUF, a file of `--save`; with `--lossy` `exact`: itself.",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text to score.", show_default="a bundled one, short")
    ] = None,
    windows: Annotated[int | None, typer.Option(metavar="N", help="Windows of it.", show_default="all")] = None,
    ctx: Annotated[
        int, typer.Option("--ctx", "-c", metavar="N", help="Tokens a window; the second half is scored.")
    ] = 512,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Multiple choice and exact match, a JSON object a line; `bundled`: 80 small ones.",
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default=False, help="Keep the model's probabilities, for `--against` later. Large."
        ),
    ] = None,
    lossy: LossyOption = 0.0,
    profile: ProfileOption = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the whole process.")] = "auto",
    threads: ThreadsOption = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", show_default=False, help="Write everything to a file.")
    ] = None,
) -> None:
    """Measure quality: perplexity as llama.cpp's perplexity tool does, KL divergence to a reference, tasks.

    With --tasks and without --text only the tasks are done.
    """
    at_least("--windows", windows, 1)
    at_least("--ctx", ctx, 8)
    at_least("--threads", threads, 1)
    if save is not None and against is not None:
        raise UsageError("`--save` keeps a reference, `--against` reads one", hint="leave out one of the two")
    if save is not None and tasks is not None and text is None:
        raise UsageError("`--save` keeps what a text gives", hint="give `--text FILE`")
    against_exact = against == _EXACT
    if against_exact and not lossy:
        raise UsageError(f"`--against {_EXACT}` is for `--lossy`", hint="give `--lossy 0.02`, or another reference")
    out = output_file(json_file)

    # Before an engine is planned: what these imports take is part of its process.
    from ..quality import session
    from ..runtime.setup import Setup

    bar = Bar()
    try:
        result = session.evaluate(
            session.Request(
                model=model,
                against=Path(against).expanduser() if against and not against_exact else None,
                against_exact=against_exact,
                text=None if tasks and text is None else session.read_text(text),
                n_window=windows,
                n_ctx=ctx,
                tasks=session.read_tasks(tasks) if tasks else (),
                save=output_file(save),
                setup=Setup(memory=memory, threads=threads, lossy=lossy, profile=profile),
            ),
            bar,
        )
    finally:
        bar.end()
    if out:
        out.write_text(json.dumps(result.to_dict(), indent=1) + "\n", "utf-8")
    say(*lines(result))


def lines(result: Result) -> list[str]:
    found = []
    if result.score:
        found += _score_lines(result.score)
    if result.decoding:
        found += _decoding_lines(result.decoding, result.reference_decoding)
    if result.tasks:
        found.append(_task_line(result.tasks))
    if result.tasks and result.reference_tasks:
        lost, won = result.tasks.changes(result.reference_tasks)
        found += [_task_line(result.reference_tasks), f"{'changed':<11} {lost} became wrong, {won} became right"]
    return found


def _score_lines(score: Score) -> list[str]:
    found = [
        f"{score.model}: {score.n_window} windows of {score.n_ctx} tokens, {score.n_token:,} scored",
        f"perplexity  {score.ppl:.4f} ± {score.ppl_error:.4f}",
    ]
    far = score.distance
    if far:
        found += [
            f"reference   {far.ppl:.4f} ({far.reference}), ln ratio {far.ln_ratio:+.5f} ± {far.ln_ratio_error:.5f}",
            f"KL          {far.kl:.6f} ± {far.kl_error:.6f} mean, {far.kl_median:.6f} median, "
            f"{far.kl_p90:.6f} at 90 %, {far.kl_p99:.6f} at 99 %, {far.kl_max:.6f} at most",
            f"same top    {far.top1:.2%}",
        ]
    return found


def _decoding_lines(lossy: Decoding, exact: Decoding | None) -> list[str]:
    def line(label: str, of: Decoding) -> str:
        reads = f"{format_size(of.read_bytes)} read a token, {of.hit_rate:.1%} hits with room for {of.n_slot:,} experts"
        return f"{label:<11} {of.tok_s:.2f} tok/s, {reads}"

    less = f", {lossy.read_bytes / exact.read_bytes:.3f} of exact" if exact and exact.read_bytes else ""
    return [
        *([line("exact", exact)] if exact else []),
        line("lossy", lossy) + less,
        f"{'skipped':<11} {lossy.skipped:.2%} of expert uses, {lossy.spent_nats:.4f} nats a token at the end",
    ]


def _task_line(tasks: TaskScore) -> str:
    parts = []
    if tasks.n_choice:
        parts.append(f"{tasks.n_choice_right} of {tasks.n_choice} choices")
    if tasks.n > tasks.n_choice:
        parts.append(f"{tasks.n_right - tasks.n_choice_right} of {tasks.n - tasks.n_choice} exact matches")
    return f"tasks       {tasks.share:.1%} ± {tasks.share_error:.1%} right ({', '.join(parts)}), {tasks.model}"
