"""ONNX exports behind `formats.Format`: ONNX Runtime computes, we say which experts are in memory."""

from __future__ import annotations

import sys
from pathlib import Path

from ... import _native
from ...errors import FormatError, StorageError, UnsupportedError, UsageError
from ...extras import need_onnx
from ..budget.planner import Plan, choose, finish
from ..model import Model, ModelInfo
from ..setup import POLICIES, Progress, Setup
from ..text.template import first_rendering_bytes
from ..text.template import resident_bytes as template_bytes
from .backend import OnnxBackend
from .model import OnnxModel, export_at, open_export
from .parts import parts_of
from .sizes import ExportSizes, note_overhead

TRACED = False


def open(path: Path, override_kv: tuple[str, ...]) -> Model | None:
    """The export in a folder, given that or a file in it; None for what is no ONNX at all."""
    folder = export_at(path)
    if folder is not None and override_kv:
        raise UnsupportedError("an ONNX export has no metadata to override", hint="leave `--override-kv` out")
    return None if folder is None else open_export(folder)


def check(model: Model, setup: Setup) -> None:
    """Raise UsageError or UnsupportedError for options that only the GGUF path has."""
    if setup.parallel > 1:
        raise UnsupportedError(
            "an ONNX export answers one after the other", hint="leave `--parallel` out, or use the GGUF file"
        )
    given = {
        "prefetch": setup.prefetch == "on",
        "reader": setup.reader == "uring",
        "read-limit": setup.read_bytes_per_s,
        "kv-type": setup.kv_type != "f16",
        "draft": setup.n_draft or 0,
        "lossy": setup.lossy,
        "profile": setup.profile,
        "page-cache": setup.page_cache,
        "device": setup.device != "cpu",
        "mmproj": setup.mmproj != "off",
        **{name.replace("_", "-"): True for name in setup.rope},
    }
    for name, value in given.items():
        if value:
            raise UsageError(
                f"this `--{name}` is not to be had with an ONNX export", hint="leave it out, or use the GGUF file"
            )


def plan(model: OnnxModel, setup: Setup, *, measure: bool) -> Plan:
    """See `Format.plan`. No speed is predicted."""
    _check_system()
    import numpy  # noqa: F401  # what this process has anyway is counted before the budget is divided
    import onnxruntime  # noqa: F401

    sizes = ExportSizes(model, n_threads=setup.n_threads, n_outputs=setup.n_rows)
    native = setup.native(
        later_bytes=first_rendering_bytes(model.chat_template),
        process_bytes=_native.rss_bytes() + template_bytes(),
    )
    return finish(model.info, choose(model.info, sizes, native), None, n_ctx=setup.ctx)


def host_info(model: OnnxModel, plan: Plan) -> ModelInfo:
    """See `Format.host_info`: no GPU has anything."""
    return model.info


def files(model: OnnxModel, progress: Progress | None) -> list[Path]:
    """See `Format.files`: the export's own, and its experts as they were packed."""
    _check_system()
    return [*sorted(model.path.iterdir()), *sorted(parts_of(model, progress=progress).iterdir())]


def backend(model: OnnxModel, setup: Setup, plan: Plan, progress: Progress | None) -> OnnxBackend:
    """See `Format.backend`. What loading took beyond the plan is noted for the next plan."""
    parts = parts_of(model, progress=progress)
    if progress:
        progress(f"loading {model.info.name}")
    before = _native.rss_bytes()
    try:
        made = OnnxBackend(
            model,
            parts,
            n_ctx=plan.n_ctx,
            n_ubatch=plan.n_ubatch,
            n_threads=setup.n_threads,
            n_outputs=setup.n_rows,
            policy=POLICIES.index(setup.policy),
        )
    except OSError as error:
        raise StorageError(f"cannot read `{error.filename or parts}`: {error.strerror or error}") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise FormatError(
            f"the packed parts of `{model.path}` are damaged: {str(error)[:80]}",
            hint=f"remove `{parts}`, and they are made again",
        ) from None
    _native.trim_heap()
    grown = _native.rss_bytes() - before
    known = plan.kv_bytes + model.info.dense_bytes + made.residency.used_bytes
    note_overhead(model, setup.n_threads, max(0, grown - known))
    return made


def _check_system() -> None:
    if sys.platform == "linux":
        need_onnx()
    else:
        raise UnsupportedError(
            "an ONNX export is run under a budget on Linux only", hint="stock ONNX Runtime runs it here, without one"
        )
