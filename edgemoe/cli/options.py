"""Options that several commands share, each declared and checked once.

A command asks for a group with a parameter of its class (`engine: EngineOptions`); `expand` spells the group's fields
out for the parser. Checks that the library makes itself (sizes, sampling values) are left to it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import StorageError, UsageError

if TYPE_CHECKING:
    from ..runtime.setup import Setup

# A command gives it the default BUILTIN, so that MODEL may be left out.
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        show_default="the built-in model",
        help="A GGUF file, an ONNX export, a name that `edgemoe models` lists, or `hf:owner/repo[:file]`.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", "-t", metavar="N", help="Compute threads.", show_default="physical cores"),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the plan and the costs on stderr.")]
CachePolicyOption = Annotated[
    str,
    typer.Option(
        "--cache-policy",
        metavar="NAME",
        help="Which expert leaves a full cache: `next-use`, `lfru`, `lru`, `lfu` or `mrs`.",
    ),
]
PrefetchOption = Annotated[
    str, typer.Option(metavar="WHEN", help="Read experts ahead: `auto` (where it measures faster), `off` or `on`.")
]
LossyOption = Annotated[
    float,
    typer.Option(
        metavar="NATS",
        help="LOSSY: leave out missing experts that matter little, for so many nats a token (KL): 0.02 or 0.05.",
        show_default="0, exact",
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Of a task, by `edgemoe calibrate`: seeds the expert cache, and has the prices of --lossy.",
    ),
]
MmprojOption = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="The picture encoder, in the budget: a GGUF file, `auto` (mmproj*.gguf beside the model) or `off`.",
    ),
]
ParallelOption = Annotated[
    int,
    typer.Option(
        metavar="N", help="Answers computed at once, each with a context of its own; 1 to 7. None changes another."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _rope(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text, show_default="as the model says", rich_help_panel="RoPE scaling")


@dataclasses.dataclass(frozen=True)
class RopeOptions:
    """How positions are scaled: llama.cpp's options. With them `--ctx` goes beyond the trained context."""

    rope_scaling: Annotated[str | None, _rope("NAME", "`none`, `linear` or `yarn`.")] = None
    rope_scale: Annotated[float | None, _rope("N", "The factor by which the context grows.")] = None
    rope_freq_base: Annotated[float | None, _rope("N", "Base of the frequencies.")] = None
    rope_freq_scale: Annotated[float | None, _rope("N", "Scale of the frequencies: 1 / the factor.")] = None
    yarn_orig_ctx: Annotated[int | None, _rope("N", "Tokens that the model was trained for before it was scaled.")] = (
        None
    )
    yarn_ext_factor: Annotated[float | None, _rope("N", "Extrapolation mix; 0 interpolates fully.")] = None
    yarn_attn_factor: Annotated[float | None, _rope("N", "Scale of attention's magnitude.")] = None
    yarn_beta_slow: Annotated[float | None, _rope("N", "Rotations below which frequencies are scaled.")] = None
    yarn_beta_fast: Annotated[float | None, _rope("N", "Rotations above which frequencies stay.")] = None


@dataclasses.dataclass(frozen=True)
class BudgetOptions(RopeOptions):
    """What a plan is made from."""

    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of the whole process: `6GiB`, `900M`, `75%` or `auto`.", show_default="auto"
        ),
    ] = None
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "-c",
            metavar="N",
            help="Tokens of context, prompt and answers together.",
            show_default="as memory allows",
        ),
    ] = None
    threads: ThreadsOption = None
    kv_type: Annotated[
        str, typer.Option(metavar="TYPE", help="KV cache: `f16`, or `q8_0` for half the memory, which is LOSSY.")
    ] = "f16"

    override_kv: Annotated[
        list[str] | None,
        typer.Option(
            "--override-kv",
            metavar="KEY=TYPE:VALUE",
            help="Metadata that is other than the file says (int, float, bool, str); may be repeated.",
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where dense weights are computed: `cpu`, `vulkan`, `cuda`, `metal`, or `auto` (a GPU if there is).",
        ),
    ] = "cpu"
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of the GPU: dense weights, KV cache, experts of as many layers as fit.",
            show_default="85 % of what is free",
        ),
    ] = None

    def setup(self) -> Setup:
        """What is asked for: each option that is a field of `Setup`, by its name. Raises UsageError."""
        from ..runtime.setup import Setup

        at_least("--ctx", self.ctx, 1)
        at_least("--threads", self.threads, 1)
        known = {field.name for field in dataclasses.fields(Setup)}
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in known}
        # A name may be written in capitals; a value that was left out is the library's default.
        values = {name: value for name, value in given.items() if value is not None}
        return Setup(**{name: value if name == "mmproj" else _lower(value) for name, value in values.items()})


@dataclasses.dataclass(frozen=True)
class PlanOptions(BudgetOptions):
    """What a plan is shown for."""

    mmproj: MmprojOption = "auto"


@dataclasses.dataclass(frozen=True)
class EngineOptions(BudgetOptions):
    """What an engine is loaded with."""

    policy: CachePolicyOption = "next-use"
    prefetch: PrefetchOption = "auto"
    draft: Annotated[
        str,
        typer.Option(
            metavar="N", help="Guess up to N tokens from the text and verify them at once: `off`, `auto`, or 1 to 6."
        ),
    ] = "off"
    lossy: LossyOption = 0.0
    profile: ProfileOption = None
    page_cache: Annotated[
        bool,
        typer.Option(
            "--page-cache",
            help="Let the system's page cache keep experts in memory that nobody uses, outside the budget.",
        ),
    ] = False
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default=False, help="Record routing and reads for `edgemoe replay`; slower."),
    ] = None


@dataclasses.dataclass(frozen=True)
class SeeingOptions(EngineOptions):
    """What an engine is loaded with that may be shown pictures."""

    mmproj: MmprojOption = "auto"


_MODELS = "as the model's maker says, else llama.cpp's"


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen, and when to stop."""

    temp: Annotated[
        float | None,
        typer.Option(metavar="T", help="Temperature; 0 always takes the likeliest token.", show_default=_MODELS),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(metavar="N", help="Choose among the N likeliest; 0 is off.", show_default=_MODELS),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Choose among the likeliest of mass P; 1 is off.", show_default=_MODELS),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Drop what is below P of the likeliest; 0 is off.", show_default=_MODELS),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", help="Penalty for repeated tokens; 1 is off.", show_default=_MODELS),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Same seed, same answer; -1 draws one.", show_default="1234"),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Longest answer.", show_default="no limit")
    ] = None

    def said(self) -> dict[str, Any]:
        """What is said, by the names of the library's Sampling; the rest is the model's. Raises UsageError."""
        from ..runtime.text.sampling import Sampling

        at_least("--max-tokens", self.max_tokens, 1)
        said = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        said.pop("max_tokens", None)
        if said.get("seed") == -1:
            said["seed"] = None
        Sampling(**said)  # refused before a model is loaded
        return said


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the fields of each option group in its signature as parameters of their own."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    # Not get_type_hints: on Python 3.10 it hides an Annotated whose default is None inside an Optional.
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        hint = parameter.annotation
        if not dataclasses.is_dataclass(hint):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        assert isinstance(hint, type)
        fields, field_hints = dataclasses.fields(hint), get_type_hints(hint, include_extras=True)
        groups[parameter.name] = (hint, [field.name for field in fields])
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=field_hints[f.name])
            for f in fields
        ]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for name, (group, names) in groups.items():
            values[name] = group(**{field: values.pop(field) for field in names})
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) and value[:1].isalpha() else value


def at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(
            f"`{option} {value}` makes no sense", hint=f"`{option}` takes a whole number of at least {least}"
        )


def output_file(name: str | None) -> Path | None:
    """A file that a command will write, tried before an hour is spent computing what goes there."""
    if name is None:
        return None
    path = Path(name).expanduser()
    existed = path.exists()
    try:
        path.touch()
        if not existed:
            path.unlink()
    except OSError as error:
        raise StorageError(f"cannot write `{path}`: {error.strerror}", hint="choose another place") from None
    return path
