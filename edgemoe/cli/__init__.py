"""The `edgemoe` command: one module a subcommand, each parses, calls the library and prints.

What goes wrong ends here as `edgemoe: MESSAGE` and `hint: HINT` on stderr. Exit codes: 0, 1 failed, 2 used wrongly,
130 interrupted. Data goes to stdout, talk to stderr. `edgemoe --help` loads neither llama.cpp nor numpy.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..errors import EdgeMoEError
from ..printable import plain
from .bench import bench
from .calibrate import calibrate
from .chat import chat
from .convert import convert
from .demo import demo
from .devices import devices
from .eval import eval
from .inspect import inspect
from .models import models
from .options import expand
from .plan import plan
from .replay import replay
from .run import run
from .serve import serve
from .shrink import shrink
from .spellings import hint_for
from .streams import discard, prepare_streams

# The parser's own errors. Their class is click's or typer's copy of click's, depending on typer's version.
_ParserError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="edgemoe",
    help="Run Mixture-of-Experts GGUF models inside a hard memory budget, with exact output.",
    add_completion=False,
    rich_markup_mode=None,  # rich costs memory that the expert cache can use
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"edgemoe {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


_COMMANDS = (chat, run, serve, models, demo, inspect, devices, plan, bench, replay, convert, calibrate, shrink, eval)

for _command in _COMMANDS:
    app.command(_command.__name__)(expand(_command))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    prepare_streams()
    code = _run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_flush(code))


def _flush(code: int) -> int:
    """Write what is still buffered. Returns the exit code: that of a failure if this is the first."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError) and code == 0:
            _report(f"cannot write to stdout: {(error.strerror or str(error)).lower()}", _os_hint(error))
            return 1
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        command = typer.main.get_command(app)
        with command.make_context("edgemoe", list(arguments)) as context:
            command.invoke(context)
        return 0
    except typer.Exit as done:
        return done.exit_code
    except EdgeMoEError as error:
        _report(error.message, error.hint)
        return error.exit_code
    except _ParserError as error:
        _report(_our_style(error), hint_for(arguments, error) or _usage_hint(error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        discard(sys.stdout)
        return 1
    except MemoryError:
        _report("this machine has no memory left", "use a smaller `--memory` or a smaller `--ctx`")
        return 1
    except OSError as error:
        place = f"`{error.filename}`: " if error.filename else ""
        _report(f"{place}{(error.strerror or str(error)).lower()}", _os_hint(error))
        return 1


def _report(message: str, hint: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        print(f"edgemoe: {plain(message)}", file=sys.stderr)
        if hint:
            print(f"hint: {plain(hint)}", file=sys.stderr)


def _our_style(error: Exception) -> str:
    """The parser writes "Missing argument 'MODEL'."; we write "missing argument `MODEL`"."""
    message: str = getattr(error, "format_message", error.__str__)()
    text = re.sub(r"'([^']*)'", r"`\1`", " ".join(message.split())).rstrip(".").replace(". Did", ": did")
    return text[:1].lower() + text[1:]


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"`{getattr(context, 'command_path', 'edgemoe')} --help` lists what it takes"


def _os_hint(error: OSError) -> str:
    return "free some space or choose another place" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
