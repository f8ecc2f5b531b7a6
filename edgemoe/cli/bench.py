"""`edgemoe bench`: measured speed under a kernel memory limit, beside stock llama.cpp if wanted."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..paths import whole_file
from ..places import BUILTIN
from ..printable import plain
from ..units import format_rate, format_size
from .generate import find
from .options import CachePolicyOption, LossyOption, ModelArgument, PrefetchOption, at_least, output_file
from .status import note

if TYPE_CHECKING:
    from ..bench.runner import Workload
    from ..runtime.setup import Setup

_ROWS = (
    # quantity of the report, label, scale, unit
    ("decode_tok_s", "decode", 1.0, "tok/s"),
    ("prefill_tok_s", "prefill", 1.0, "tok/s"),
    ("first_token_s", "start to first token", 1.0, "s"),
    ("load_s", "load", 1.0, "s"),
    ("hit_rate", "hits in decode", 100.0, "%"),
    ("late_share", "of them on their way", 100.0, "%"),
    ("prefetch_used", "of what was read ahead, used", 100.0, "%"),
    ("stall_share", "waiting in decode", 100.0, "%"),
    ("drive_share", "drive at work in decode", 100.0, "%"),
    ("decode_bytes_per_token", "read per token", 1e-6, "MB"),
    ("policy", "policy: Belady's bytes over ours", 100.0, "%"),
    ("prefill_bytes", "read in prefill", 1e-6, "MB"),
    ("limit_peak_bytes", "peak under the limit", 1 / (1 << 20), "MiB"),
    ("peak_rss_bytes", "peak resident", 1 / (1 << 20), "MiB"),
)


_TELLING = 0.05  # a run that hardly reads is not bounded by the drive


@dataclasses.dataclass(frozen=True)
class WorkloadOptions:
    """What one repetition computes."""

    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Text that is decoded and prefilled.", show_default="a bundled one"),
    ] = None
    warmup: Annotated[int, typer.Option(metavar="N", help="Tokens decoded before timing begins.")] = 8
    decode: Annotated[int, typer.Option(metavar="N", help="Tokens decoded one at a time.")] = 128
    stock_decode: Annotated[int, typer.Option(metavar="N", help="The same for llama.cpp, which may be slow.")] = 24
    prefill: Annotated[int, typer.Option(metavar="N", help="Tokens of the prefill; 0 leaves it out.")] = 512
    warm: Annotated[bool, typer.Option("--warm", help="Fill the caches first: steady state, not a cold start.")] = False

    def workload(self) -> Workload:
        """Raises UsageError."""
        from ..bench.runner import Workload, passage, read_text

        for option, value, least in (
            ("--warmup", self.warmup, 0),
            ("--decode", self.decode, 1),
            ("--stock-decode", self.stock_decode, 1),
            ("--prefill", self.prefill, 0),
        ):
            at_least(option, value, least)
        return Workload(
            text=read_text(self.text) if self.text else passage(),
            n_warmup=self.warmup,
            n_decode=self.decode,
            n_prefill=self.prefill,
            n_stock_decode=min(self.stock_decode, self.decode),
            warm=self.warm,
        )


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """How the engines are opened."""

    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Budget, and the kernel's limit: `6GiB`, `75%`, `auto`.")
    ] = "auto"
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            "-t",
            metavar="N",
            help="Compute threads; `1,2,4` measures with each.",
            show_default="physical cores",
        ),
    ] = None
    ubatch: Annotated[int | None, typer.Option(metavar="N", help="Prefill batch.", show_default="as memory allows")] = (
        None
    )
    policy: CachePolicyOption = "next-use"
    prefetch: PrefetchOption = "auto"
    lossy: LossyOption = 0.0
    read_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", show_default=False, help="Read at most so many bytes a second: a slower drive."),
    ] = None

    def setups(self) -> list[Setup]:
        """One for each number of threads. Raises UsageError."""
        from ..runtime.setup import Setup

        at_least("--ubatch", self.ubatch, 1)
        common = Setup(
            memory=self.memory,
            n_ubatch=self.ubatch,
            policy=self.policy.lower(),
            prefetch=self.prefetch.lower(),
            lossy=self.lossy,
            read_limit=self.read_limit,
        )
        return [common.but(threads=n) for n in _numbers(self.threads)] if self.threads else [common]


def _numbers(text: str) -> list[int]:
    """Of "1,2,4". Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"`--threads {text}` makes no sense", hint="`--threads` takes whole numbers of at least 1: `2`, or `1,2,4`"
        )
    return [int(part) for part in parts]


def bench(
    engine: BenchOptions,
    work: WorkloadOptions,
    model: ModelArgument = BUILTIN,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="`llama.cpp`: stock mmap under the same limit, and where all fits also with repacked weights; `off`: "
            "the same without prefetch; `exact`: without `--lossy`; or the folder of an ONNX export. May be repeated.",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", help="Repetitions, interleaved; 5 or more say something.")] = 5,
    resident: Annotated[bool, typer.Option(help="Measure compute alone first, for the bound.")] = True,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", show_default=False, help="Write everything measured to a file."),
    ] = None,
) -> None:
    """Measure decode and prefill from cold caches, each repetition in a fresh process under a memory limit."""
    at_least("--repeat", repeat, 1)
    setups, workload = engine.setups(), work.workload()
    others = against or []
    exports = [other for other in others if other not in ("llama.cpp", "off", "exact")]
    if "exact" in others and not engine.lossy:
        raise UsageError("`--against exact` is for `--lossy`", hint="give `--lossy 0.02`, or another side")
    for other in exports:
        if len(exports) > 1 or not Path(other).expanduser().is_dir():
            raise UsageError(
                f"cannot compare with `{other}`", hint="use `--against llama.cpp`, `off`, `exact`, or one ONNX export"
            )
    out = output_file(json_file)

    from ..bench.compare import compare

    path, reports = str(find(model)), []
    for setup in setups:
        report = compare(
            path,
            workload,
            setup=setup,
            n_repeat=repeat,
            against_stock="llama.cpp" in others,
            against_off="off" in others,
            against_exact="exact" in others,
            against_export=str(Path(exports[0]).expanduser()) if exports else None,
            with_resident=resident,
            say=note,
        )
        reports.append(report)
        if out:  # before it is shown: a pipe may be broken, the next setup interrupted
            with whole_file(out) as stream:
                stream.write(json.dumps(reports if len(reports) > 1 else report, indent=1).encode() + b"\n")
        _print(report)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..runtime.engine.stats import reading

    summary, machine, plan, disk = report["summary"], report["machine"], report["plan"], report["disk"]
    limit = "no kernel limit" if report["limit_problem"] else "kernel limit"
    table = Table("", *summary["sides"], box=None, padding=(0, 3, 0, 0))
    for key, label, scale, unit in _ROWS:
        cells = [_cell(side.get(key), scale, unit) for side in summary["sides"].values()]
        if any(cells):
            table.add_row(label, *cells)
    for work in ("decode", "prefill"):
        cells = [_bound_cell(side["bounds"].get(work)) for side in summary["sides"].values()]
        if any(cells):
            table.add_row(f"{work}: pipeline", *cells)
    console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    console.print(
        f"{plain(plan['model'])}, {format_size(plan['budget_bytes'])} ({limit}), {plan['fraction']:.0%} of experts fit"
    )
    console.print(table)
    _print_ratio(console.print, report)
    facts = report["runs"][0]["facts"]  # of EdgeMoE, which runs first
    console.print(f"experts read {reading(facts['direct_io'], facts['reader'], page_cache=False)}")
    storage = machine.get("storage", {})
    direct = "O_DIRECT" if disk["direct_io"] else "buffered"
    console.print(
        f"{machine['cpu']}, {plan['n_threads']} threads of {machine['n_core']} cores, "
        f"{format_size(machine['total_bytes'])} RAM, {machine['os']}; {storage.get('device', '?')} "
        f"{storage.get('filesystem', '?')} at {format_rate(disk['bytes_per_s'])} in blocks of "
        f"{format_size(disk['block_bytes'])} ({direct}); {machine['native']}, {report['git'] or report['version']}"
    )


def _print_ratio(say: Any, report: dict[str, Any]) -> None:
    for against, ratio in report["summary"]["ratios"].items():
        if report["n_repeat"] < 2:
            say("one repetition: no ratio, it would say nothing")
            return
        parts = [f"{name.replace('_', ' ')} {value:.2f}x" for name, value in ratio.items() if isinstance(value, float)]
        say(f"edgemoe over {against}: {', '.join(parts)} (medians of {report['n_repeat']})")
    better = report["summary"]["better_stock"]
    if better and report["plan"]["fraction"] >= 1:
        say(f"of llama.cpp's settings the better here is `{better}`")


def _cell(spread: dict[str, float] | None, scale: float, unit: str) -> str:
    """ "5.1 tok/s (4.9–5.2)"."""
    if not spread:
        return ""
    median, low, high = (_short(spread[key] * scale) for key in ("median", "low", "high"))
    return f"{median} {unit}" if low == high else f"{median} {unit} ({low}–{high})"


def _bound_cell(bound: dict[str, Any] | None) -> str:
    """ "310 ms read, 110 ms compute, 330 ms taken: 94 %"."""
    if not bound or (bound["compute_s"] is None and bound["efficiency"] < _TELLING):
        return ""
    parts = [f"{bound['io_s'] * 1e3:.0f} ms read"]
    if bound["compute_s"]:
        parts.append(f"{bound['compute_s'] * 1e3:.0f} ms compute")
    return f"{', '.join(parts)}, {bound['taken_s'] * 1e3:.0f} ms taken: {bound['efficiency']:.0%}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
