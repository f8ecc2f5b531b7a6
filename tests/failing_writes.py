"""Every n-th write, sync and rename of what we write fails: nothing is lost, one line says so, the next call works.

    LD_PRELOAD=.../libfailing_writes.so python failing_writes.py LIBRARY FOLDER

Each job runs in a forked child, once for every place at which something can fail. Prints a JSON object a job:
`places` by kind, `errors` (the job said so), `ignored` (it costs the work again), `problems` (there should be none).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tinymoe

import edgemoe
from edgemoe import _abi as abi
from edgemoe import _native
from edgemoe.cli import main as command
from edgemoe.converters import allocation, calibration
from edgemoe.paths import read_cached, write_cached
from edgemoe.runtime.engine import rates
from edgemoe.runtime.formats import open_model

KINDS = ("write", "sync", "rename", "truncate")
ERRORS = (errno.EIO, errno.ENOSPC)
_MOST = 2000


@dataclass(frozen=True)
class Job:
    """run: writes below a folder. before: what stood there. cache: a failure is ignored, and what is there is whole.

    left: names that a failure may leave for the next run to go on with.
    """

    name: str
    run: Callable[[Path], None]
    before: Callable[[Path], None] = lambda folder: None
    cache: bool = False
    left: tuple[str, ...] = ()


def cli(*arguments: object) -> None:
    """A command in this process. Raises EdgeMoEError with what it said when it fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            command([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            first, *_ = said.getvalue().removeprefix("edgemoe: ").partition("\nhint")
            raise edgemoe.EdgeMoEError(first.strip()) from None


def calibrated(n: float) -> calibration.Calibration:
    """One layer's, of this value."""
    layer = calibration.LayerCalibration(
        stats=np.full((4, len(calibration.STATS)), n, np.float32),
        mean_output=np.full((4, 32), n, np.float32),
        importance={"up": np.full((4, 32), n, np.float32)},
        errors={"up": np.full((4, 1), n, np.float32)},
        shapes={"up": (32, 32)},
    )
    return calibration.Calibration({0: layer}, ("Q4_0",), {0: n}, 100)


def jobs(model: Path) -> list[Job]:
    """All that this project writes but downloads."""
    opened = open_model(model)
    info = opened.info
    kinds = {0: {"up": ("Q4_0",) * 4}}

    def usage(n: float) -> Callable[[Path], None]:
        def remember(folder: Path) -> None:
            os.environ["EDGEMOE_CACHE"] = str(folder)
            rates.remember(info, 1000, array("f", [n] * info.n_expert_total))
            rates.remember_hits(info, {"n_hit": int(n * 100), "n_miss": 100, "n_decode": 99, "n_slot": 8})

        return remember

    def placement(n: int) -> Callable[[Path], None]:
        def place(folder: Path) -> None:
            os.environ["EDGEMOE_CACHE"] = str(folder)
            write_cached("placement/0.json", {"n_gpu_layer": n, "experts": list(range(n))})
            assert read_cached("placement/0.json")["n_gpu_layer"] in (1, n)

        return place

    def notes(folder: Path) -> None:
        os.environ["EDGEMOE_CACHE"] = str(folder)
        edgemoe.plan(model, edgemoe.Setup(memory="900M", ctx=64), measure=False)

    def shell(folder: Path) -> None:
        path = str(folder / "a.shell")
        _native.shell_write(opened.handle, path, with_data=True)
        assert _native.shell_check(opened.handle, path)

    def traced(folder: Path) -> None:
        setup = abi.Setup(n_ctx=64, n_ubatch=8, n_threads=1, kv_type=1)
        least = 4 * info.slot_min_bytes
        engine = _native.engine_open(opened.handle, None, setup, least)
        try:
            _native.engine_trace(engine, str(folder / "trace"))
            _native.engine_decode(engine, [1, 2, 3], want_all=False)
            _native.engine_trace(engine, None)
        finally:
            _native.engine_close(engine)

    convert = ("convert", model, "--type", "Q4_0", "--threads", "2")
    partial = ("out.gguf.partial", "out.gguf.partial.journal", "out.gguf.partial.journal.tmp")
    return [
        Job(
            "convert",
            lambda folder: cli(*convert, folder / "out.gguf", "--overwrite"),
            before=lambda folder: cli("convert", model, "--type", "Q8_0", folder / "out.gguf"),
            left=partial,
        ),
        Job(
            "calibration",
            lambda folder: calibration.save(calibrated(2), folder / "c.gguf"),
            before=lambda folder: calibration.save(calibrated(1), folder / "c.gguf"),
        ),
        Job(
            "allocation",
            lambda folder: allocation.save(allocation.Allocation(types=kinds), folder / "a.json"),
            before=lambda folder: allocation.save(allocation.Allocation(types={}), folder / "a.json"),
        ),
        Job("shell", shell),
        Job("trace", traced, left=("trace",)),
        Job("notes of a model", notes, cache=True),
        Job("usage", usage(0.5), before=usage(0.25), cache=True),
        Job("placement", placement(2), before=placement(1), cache=True),
    ]


# ---------------------------------------------------------------- one job, everywhere


def child(library: ctypes.CDLL, job: Job, folder: Path, n: int, error: int) -> dict[str, Any]:
    """What became of a job in which the n-th operation fails."""
    if sys.platform == "win32":
        raise OSError("the library that makes writes fail is for Linux")
    else:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            library.failing_writes_arm(os.fsencode(folder), ctypes.c_long(n), error)
            said = ""
            try:
                job.run(folder)
            except edgemoe.EdgeMoEError as failure:
                said = failure.message or "an error without a word"
            except BaseException as failure:
                said = f"\nunexpected {failure!r}"
            met = library.failing_writes_met()
            counts = [library.failing_writes_count(kind) for kind in range(len(KINDS))]
            library.failing_writes_arm(b"", ctypes.c_long(-1), 0)
            os.write(write, json.dumps({"said": said, "met": met, "counts": counts}).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            text = pipe.read()
        status = os.waitpid(pid, 0)[1]
        return dict(json.loads(text)) if status == 0 and text else {"said": f"\nended with {status}", "met": 0}


def contents(folder: Path) -> dict[str, bytes]:
    # Traces tell of times; of them it counts that they are there.
    return {
        str(path.relative_to(folder)): b"" if path.name == "trace" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def everywhere(library: ctypes.CDLL, job: Job, folder: Path) -> dict[str, Any]:
    """A job, failing at each of its places."""
    start, finished = folder / "start", folder / "finished"
    for path in (start, finished):
        path.mkdir(parents=True)
        job.before(path)
    old = contents(start)
    problems = [] if (first := child(library, job, finished, -1, 0))["said"] == "" else [str(first["said"])]
    new = contents(finished)
    places, n_error, n_ignored = dict.fromkeys(KINDS, 0), 0, 0
    for n in range(_MOST):
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(start, work)
        error = ERRORS[n % len(ERRORS)]
        done = child(library, job, work, n, error)
        if done["met"] < 0:
            return {"job": job.name, "places": places, "errors": n_error, "ignored": n_ignored, "problems": problems}
        places[KINDS[done["met"]]] += 1
        there, said = contents(work), done["said"]
        n_error += bool(said)
        n_ignored += not said
        again = child(library, job, work, -1, 0)
        wrong = {
            "no line": "\n" in said,
            "a cache that cannot be written is an error": said and job.cache,
            "no error, and something else was written": not said and not job.cache and there != new,
            "a file is lost": old.keys() - there.keys(),
            "a file is neither the old one nor the new one": any(
                content not in (old.get(name), new.get(name)) and name not in job.left
                for name, content in there.items()
            ),
            f"the next call fails: {again['said']!r}": again["said"],
            f"the next call leaves {sorted(contents(work))}": contents(work) != new,
        }
        where = f"{n} ({KINDS[done['met']]}, {os.strerror(error)}; {said.strip()!r})"
        problems += [f"{where}: {what}" for what, is_so in wrong.items() if is_so]
    return {"job": job.name, "problems": [f"more than {_MOST} places"]}


def main() -> int:
    """Run all jobs."""
    library, folder = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]).resolve()
    model = tinymoe.write(folder / "model.gguf", "qwen3moe", n_layer=1)
    wanted = sys.argv[3:]
    os.environ["EDGEMOE_CACHE"] = str(folder / "cache")
    for i, job in enumerate(jobs(model)):
        if not wanted or job.name in wanted:
            print(json.dumps(everywhere(library, job, folder / str(i))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
