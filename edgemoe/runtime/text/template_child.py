"""Renders chat templates in a process of its own: a template is somebody's program. Imports nothing of ours.

`template.py` starts it, writes requests to its stdin and reads answers from its stdout, each a length and JSON. Memory
and processor time are limited by the system, and what a rendering does to this process is nobody else's trouble.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

KEPT = 4  # templates that stay compiled
CPU_S = 2  # processor time of one request


def main() -> None:
    paths = read()
    sys.path[:] = paths["path"]
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_FSIZE", 0)
    import datetime  # noqa: F401  (before files are out of reach)

    import jinja2.ext
    import jinja2.sandbox  # noqa: F401

    taken = address_space()
    while True:
        request = read()
        if not request:
            return
        limit("RLIMIT_CPU", int(time.process_time()) + 1 + CPU_S)
        if taken:
            limit("RLIMIT_AS", max(taken, address_space()) + request["room"])
        answer = answered(request)
        limit("RLIMIT_AS", None)
        write(answer)


def answered(request: dict[str, Any]) -> dict[str, Any]:
    """{"text": ...}, or what went wrong by its kind."""
    import jinja2

    try:
        text = compiled(request["template"])(**request["names"])
        return {"text": text} if len(text) <= request["longest"] else {"memory": f"it wrote {len(text):,} characters"}
    except Refused as refusal:
        return {"refused": str(refusal)[:2000]}
    except jinja2.TemplateSyntaxError as error:
        return {"broken": f"{error} (line {error.lineno})"[:500]}
    except jinja2.TemplateError as error:
        return {"failed": str(error)[:500]}
    except MemoryError:
        return {"memory": "it ran out of memory"}
    except OverflowError as error:
        return {"memory": str(error)[:500]}
    except RecursionError:
        return {"failed": "it calls itself without end"}
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        # What a template does wrong shows as any of these.
        return {"failed": str(error)[:500] or type(error).__name__}


class Refused(Exception):
    """The template called raise_exception."""


@functools.lru_cache(maxsize=KEPT)
def compiled(template: str) -> Callable[..., str]:
    from datetime import datetime

    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import SandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is nothing."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> str:
        raise Refused(message)

    # Like json.dumps with ensure_ascii off; jinja2's own filter escapes HTML.
    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators and tuple(separators),
            sort_keys=sort_keys,
        )

    # Lists and mappings of a rendering are its own: templates may change them.
    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.filters["fromjson"] = json.loads
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render


def address_space() -> int:
    """Bytes; 0 where the system does not count or limit them."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    else:
        return 0


def limit(name: str, most: int | None) -> None:
    """As far as the system lets us: what is not limited here, the parent watches. most: None for no limit."""
    if sys.platform != "win32":
        import resource

        try:
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            soft = resource.RLIM_INFINITY if most is None else most
            if hard != resource.RLIM_INFINITY and (most is None or most > hard):
                soft = hard
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):
            pass


def read() -> dict[str, Any]:
    size = sys.stdin.buffer.read(8)
    if len(size) < 8:
        return {}
    return dict(json.loads(sys.stdin.buffer.read(int.from_bytes(size, "little"))))


def write(answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    sys.stdout.buffer.write(len(data).to_bytes(8, "little") + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
