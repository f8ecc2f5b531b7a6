"""Calibration from beginning to end: run a text, probe each layer with noise, measure quantizers, write one file.

What is finished lies in OUT.partial/, so that a run that was killed goes on where it was; every file there is written
to another name first. The folder goes when OUT is there.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..converters import calibration as files
from ..converters import expert_error
from ..converters.calibration import Calibration, KeptSample, LayerCalibration, Prices
from ..converters.convert import open_source
from ..converters.expert_error import Quantizer
from ..converters.factors import LayerFactors
from ..converters.ggml import fits
from ..converters.source import Rows, Source
from ..devices.memory import available_memory
from ..errors import StorageError, UnsupportedError, UsageError
from ..files import lock_folder
from ..runtime.find.names import resolve
from ..runtime.load import load
from ..runtime.setup import Setup
from .experts import (
    LayerSums,
    Probe,
    Sensitivity,
    Shape,
    compute_window,
    floor_at,
    floor_layers,
    measure_floor,
    measure_sensitivity,
    read_sums,
    spared_of,
)
from .prices import N_STEP, measure_prices
from .reference import Progress
from .windows import F32, N_OUTPUTS, Windows

if TYPE_CHECKING:
    from ..runtime.engine.collected import Collected
    from ..runtime.engine.engine import Engine

TYPES = (
    "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0",
)  # fmt: skip
"""Measured where rows divide by 256."""
TYPES_32 = ("MXFP4", "IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Measured where they divide by 32 only."""
N_SAMPLE = 768  # tokens a layer whose inputs are kept to measure quantizers
MOST_SAMPLES = 4096  # where rounding errors are to be made good
N_PROBE = 2  # windows on which noise is measured
_GIVEN = 16  # tokens of a probe's window that are not scored
_CHARS_PER_TOKEN = 16
_CHECKPOINT_S = 30.0
_CHECKPOINT_TIMES = 20  # as long as it took to write: samples may be large


@dataclass(frozen=True)
class Request:
    """texts: name and content of each. n_window: windows of n_ctx tokens, spread evenly over the texts.
    types: None: all that fit. for_lossy: only what `--lossy` needs: no quantizer is measured. moments: bytes for inputs
    that are kept so that a conversion can make rounding errors good; 0: none are, and quantizers are measured without.

    setup: for the engine; its ctx is n_ctx.
    """

    model: str
    out: Path
    texts: Sequence[tuple[str, str]]
    n_window: int
    n_ctx: int
    types: Sequence[str] | None
    for_lossy: bool
    moments: int
    setup: Setup


def calibrate(request: Request, progress: Progress) -> Calibration:
    """Raises whatever opening the model raises, UsageError for a text that is too short, StorageError."""
    source = open_source(resolve(request.model))
    roles = _roles(source)
    shapes = [_shape(source, layer, roles[layer]) for layer in sorted(roles)]
    types = () if request.for_lossy else _types(source, request.types)
    n_sample = samples_within(request.moments, shapes, request.n_window * request.n_ctx)
    with _partial(request, source, types, n_sample) as store:
        sums, sensitivity, prices = _run(request, store, shapes, n_sample, progress)
        _check_known(sums)
        layers: dict[int, LayerCalibration] = {}
        for i, number in enumerate(sorted(roles)):
            progress("measuring quantizers", i, len(roles))
            errors = store.arrays(f"errors-{number}")
            if errors is None and types:
                errors = _errors(source, number, roles[number], sums[i], types, request)
                store.keep(f"errors-{number}", errors)
            layers[number] = _layer(source, number, roles[number], sums[i], errors or {})
        progress("measuring quantizers", len(roles), len(roles))
        facts = {
            "model": source.path.name,
            "text": ", ".join(name for name, _ in request.texts),
            "n_window": request.n_window,
            "n_ctx": request.n_ctx,
            "n_sample": n_sample,
            "floor": ", ".join(f"{sensitivity.floor[i]:.5f}" for i in sorted(sensitivity.floor)),
        }
        by_number = {number: sensitivity.by_layer[i] for i, number in enumerate(sorted(roles))}
        n_token = request.n_window * request.n_ctx
        kept = {number: KeptSample(sums[i].x, sums[i].w) for i, number in enumerate(sorted(roles))}
        samples = kept if request.moments else {}
        found = Calibration(layers, types, by_number, n_token, facts, prices, samples)
        files.save(found, request.out)
        store.done()
    return found


# ---------------------------------------------------------------- the engine's part


def samples_within(n_bytes: int, shapes: Sequence[Shape], n_token: int) -> int:
    """Tokens a layer whose inputs are kept within n_bytes: in float32 by the engine, in BF16 here; weights twice."""
    each = sum(6 * shape.n_in + 8 * shape.n_expert for shape in shapes)
    return min(n_token, max(N_SAMPLE, min(MOST_SAMPLES, n_bytes // each)))


def _run(
    request: Request, store: _Store, shapes: list[Shape], n_sample: int, progress: Progress
) -> tuple[list[LayerSums], Sensitivity, Prices | None]:
    done, sums = store.sums()
    sensitivity = store.sensitivity()
    prices = store.prices()
    floors = floor_layers(len(shapes))
    if done == request.n_window and len(sensitivity.by_layer) == len(shapes) and sums and prices:
        return sums, sensitivity, prices
    n_outputs = min(N_OUTPUTS, request.n_ctx)
    with load(request.model, request.setup.but(ctx=request.n_ctx, n_outputs=n_outputs)) as engine:
        windows = spread(engine, request.texts, request.n_ctx, request.n_window)
        n_token = request.n_window * request.n_ctx
        n_left = -(-n_sample * (request.n_window - done) // request.n_window)
        _make_room(engine, request, n_left)
        with engine.collecting(n_left, max(1, n_token // n_sample)) as collected:
            keep_at = time.monotonic() + _CHECKPOINT_S
            for i in range(done, request.n_window):
                progress("collecting", i, request.n_window)
                compute_window(engine, windows, i)
                last = i + 1 == request.n_window
                if last or time.monotonic() > keep_at:
                    begin = time.monotonic()
                    total = read_sums(collected, shapes)
                    for ours, before in zip(total, sums, strict=False):
                        ours.add(before)
                    store.keep_sums(i + 1, total)
                    took = time.monotonic() - begin
                    keep_at = time.monotonic() + max(_CHECKPOINT_S, _CHECKPOINT_TIMES * took)
                    if last:
                        sums = total
            # The end of the text: what was collected last, from all over it.
            picked = range(max(0, request.n_window - N_PROBE), request.n_window)
            tokens = tuple(token for i in picked for token in windows.window(i))
            given = min(_GIVEN, request.n_ctx // 2)
            probed = Windows(tokens, request.n_ctx, windows.bos, given)
            spared = spared_of(sums)
            n_probe = len(shapes) + len(floors) + 1
            probe = Probe(engine, probed, store.folder, lambda i: progress("probing layers", 0, n_probe))
            try:
                for layer in floors:
                    if layer not in sensitivity.floor:
                        sensitivity.floor[layer] = measure_floor(probe, collected, layer, spared[layer])
                        store.keep_sensitivity(sensitivity)
                    progress("probing layers", 1 + len(sensitivity.floor), n_probe)
                for layer in range(len(shapes)):
                    if layer not in sensitivity.by_layer:
                        floor = floor_at(sensitivity.floor, layer, len(shapes))
                        sensitivity.by_layer[layer] = measure_sensitivity(probe, collected, layer, floor, spared[layer])
                        store.keep_sensitivity(sensitivity)
                    progress("probing layers", 1 + len(floors) + len(sensitivity.by_layer), n_probe)
                prices = _prices(request, store, probe, collected, sums, sensitivity, progress)
            finally:
                probe.close()
    return sums, sensitivity, prices


def _prices(
    request: Request,
    store: _Store,
    probe: Probe,
    collected: Collected,
    sums: Sequence[LayerSums],
    sensitivity: Sensitivity,
    progress: Progress,
) -> Prices | None:
    """None where they cannot be measured, unless they are what was asked for."""
    steps = iter(range(1, N_STEP + 1))
    try:
        found = measure_prices(
            probe, collected, sums, sensitivity.by_layer, lambda: progress("pricing skips", next(steps), N_STEP)
        )
    except UnsupportedError:
        if request.for_lossy:
            raise
        return None
    store.keep_prices(found)
    return found


def spread(engine: Engine, texts: Sequence[tuple[str, str]], n_ctx: int, n_window: int) -> Windows:
    """Windows from all over the texts, each text giving as many. Raises UsageError when one is too short."""
    tokens: list[int] = []
    for i in range(n_window):
        name, text = texts[i % len(texts)]
        n_of_text = -(-(n_window - i % len(texts)) // len(texts))
        begin = len(text) * (i // len(texts)) // n_of_text
        begin = text.find("\n", begin) + 1 if begin else 0
        found = engine.tokenize(text[begin : begin + n_ctx * _CHARS_PER_TOKEN], special=False)
        if len(found) < n_ctx:  # the last one may begin too late
            found = engine.tokenize(text[-n_ctx * _CHARS_PER_TOKEN :], special=False)[-n_ctx:]
        if len(found) < n_ctx:
            raise UsageError(
                f"the text `{name}` has {len(found):,} tokens, a window takes {n_ctx:,}",
                hint="give a longer text, or a smaller `--ctx`",
            )
        tokens += found[:n_ctx]
    beginning = engine.tokenize("")
    return Windows(tuple(tokens), n_ctx, beginning[0] if beginning else -1, n_ctx // 2)


def _make_room(engine: Engine, request: Request, n_sample: int) -> None:
    """`auto` gives an engine no more than all its experts take; what is collected comes beside them."""
    need = engine.collect_bytes(n_sample)
    if request.setup.wanted.kind == "auto":
        engine.set_budget(engine.plan.budget_bytes + min(need, int(available_memory() * 0.8)))


def _check_known(sums: Sequence[LayerSums]) -> None:
    if all(layer.n_seen == 0 for layer in sums):
        raise UnsupportedError("the engine computed none of this model's experts")


# ---------------------------------------------------------------- quantizers


def _errors(
    source: Source, number: int, roles: Sequence[str], sums: LayerSums, types: Sequence[str], request: Request
) -> dict[str, Any]:
    """By role, [n_expert, type]."""
    stacks = {role: source.experts[(number, "exps", role)] for role in roles}
    biases = expert_error.load_biases(source.dense, number, roles)
    act = expert_error.activation_of(source.architecture)
    n_expert = len(stacks[roles[0]])
    fitting = {role: [name for name in types if fits(name, stacks[role][0].n_col)] for role in roles}
    x, w = KeptSample(sums.x, sums.w).load()
    # What errors are made good with, and what is left of them, must not be the same tokens.
    factors = LayerFactors(source, number, x[::2], w[::2]) if request.moments else None
    if factors:
        x, w = x[1::2], w[1::2]

    def one(expert: int) -> dict[str, Any]:
        importance = {role: _importance(sums, role, expert) for role in (*roles, "gate", "up", "down")}
        matrices = expert_error.load_expert(stacks, expert, biases)
        common = [name for name in types if all(name in fitting[role] for role in roles)]
        if matrices is None or common != [name for name in types if name in fitting["down"]]:
            plain = Quantizer(importance)
            return {
                role: expert_error.weight_errors(_matrix(stacks[role][expert]), role, plain, fitting[role])
                for role in roles
            }
        made = {role: factors.factor(role, expert) for role in ("gate", "up", "down")} if factors else {}
        met = expert_error.Met.of(x, w, expert)
        found = expert_error.relative_errors(matrices, met, Quantizer(importance, made), common, act)
        if "gate_up" in roles:
            found["gate_up"] = found["gate"] + found["up"]
        return {role: found[role] for role in roles}

    with concurrent.futures.ThreadPoolExecutor(request.setup.threads or os.cpu_count() or 1) as pool:
        rows = list(pool.map(one, range(n_expert)))
    table = {}
    for role in roles:
        values = np.full((n_expert, len(types)), np.inf, np.float32)
        values[:, [types.index(name) for name in fitting[role]]] = [row[role] for row in rows]
        table[role] = values
    return table


def _importance(sums: LayerSums, role: str, expert: int) -> F32 | None:
    moments = (sums.moments_hidden if role == "down" else sums.moments_in)[expert]
    return np.asarray(moments + 1e-6 * moments.mean(), np.float32) if moments.any() else None


def _matrix(rows: Rows) -> F32:
    from ..converters.ggml import dequantize

    return dequantize(rows.load(0, rows.n_row), rows.type, rows.n_col)


def _layer(
    source: Source, number: int, roles: Sequence[str], sums: LayerSums, errors: Mapping[str, Any]
) -> LayerCalibration:
    importance = {
        role: (sums.moments_hidden if role == "down" else sums.moments_in).astype(np.float32) for role in roles
    }
    count = np.maximum(sums.experts[:, :1], 1)
    shapes = {}
    for role in roles:
        rows = source.experts[(number, "exps", role)][0]
        shapes[role] = (rows.n_row, rows.n_col)
    return LayerCalibration(
        sums.experts.astype(np.float32), (sums.output / count).astype(np.float32), importance, errors, shapes
    )


def _roles(source: Source) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for layer, family, role in source.experts:
        if family == "exps":
            found.setdefault(layer, []).append(role)
    if not found:
        raise UnsupportedError(f"`{source.path}` has no routed experts to calibrate")
    return found


def _shape(source: Source, layer: int, roles: Sequence[str]) -> Shape:
    first = source.experts[(layer, "exps", next(role for role in ("gate_up", "up") if role in roles))]
    down = source.experts[(layer, "exps", "down")]
    return Shape(len(down), first[0].n_col, down[0].n_col, down[0].n_row)


def _types(source: Source, asked: Sequence[str] | None) -> tuple[str, ...]:
    lengths = {stack[0].n_col for stack in source.experts.values()}
    if asked is None:
        wide = any(n % 256 == 0 for n in lengths)
        narrow = any(n % 256 for n in lengths)
        return tuple(dict.fromkeys((*(TYPES if wide else ()), *(TYPES_32 if narrow else ()))))
    from ..converters.ggml import target_type

    types = tuple(dict.fromkeys(target_type(name) for name in asked))
    for n in lengths:
        if not any(fits(name, n) for name in types):
            raise UsageError(f"none of these types fits rows of {n} weights", hint=f"one that does: {TYPES_32[2]}")
    return types


# ---------------------------------------------------------------- what is finished


_ARRAYS = ("experts", "moments_in", "moments_hidden", "output", "x", "w")


class _Store:
    """OUT.partial/: what a run that is killed leaves for the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arrays(self, name: str) -> dict[str, Any] | None:
        try:
            with np.load(self.folder / f"{name}.npz") as found:
                return dict(found)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None  # not there, or damaged: it is computed again

    def keep(self, name: str, arrays: Mapping[str, Any]) -> None:
        temporary = self.folder / f"{name}.tmp.npz"
        try:
            np.savez(temporary, **arrays)
            os.replace(temporary, self.folder / f"{name}.npz")
        except OSError as error:
            raise StorageError(f"cannot write in `{self.folder}`: {error.strerror}") from None

    def sums(self) -> tuple[int, list[LayerSums]]:
        found = self.arrays("sums")
        if found is None or not {"seen", "done"} <= found.keys():
            return 0, []
        try:
            layers = [
                LayerSums(**{name: found[f"{name}-{i}"] for name in _ARRAYS}, n_seen=int(found["seen"][i]))
                for i in range(len(found["seen"]))
            ]
        except KeyError:
            return 0, []
        return int(found["done"]), layers

    def keep_sums(self, done: int, layers: Sequence[LayerSums]) -> None:
        arrays: dict[str, Any] = {
            "done": np.array(done),
            "seen": np.array([layer.n_seen for layer in layers]),
        }
        for i, layer in enumerate(layers):
            for name in _ARRAYS:
                arrays[f"{name}-{i}"] = getattr(layer, name)
        self.keep("sums", arrays)

    def sensitivity(self) -> Sensitivity:
        try:
            value = json.loads((self.folder / "sensitivity.json").read_text("utf-8"))
            return Sensitivity(
                {int(i): float(v) for i, v in value["by_layer"].items()},
                {int(i): float(v) for i, v in value["floor"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return Sensitivity()  # not there, or damaged

    def keep_sensitivity(self, sensitivity: Sensitivity) -> None:
        temporary = self.folder / "sensitivity.tmp"
        temporary.write_text(json.dumps({"by_layer": sensitivity.by_layer, "floor": sensitivity.floor}), "utf-8")
        os.replace(temporary, self.folder / "sensitivity.json")

    def prices(self) -> Prices | None:
        found = self.arrays("prices")
        if found is None or not set(files.PRICES) <= found.keys():
            return None
        return Prices(found["cost"], *(found[name].tolist() for name in files.PRICES[1:]))

    def keep_prices(self, prices: Prices) -> None:
        self.keep("prices", {name: np.asarray(getattr(prices, name)) for name in files.PRICES})

    def done(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _partial(request: Request, source: Source, types: Sequence[str], n_sample: int) -> Iterator[_Store]:
    """The folder for this work, empty unless the same work was begun in it."""
    digest = hashlib.sha256()
    for _, text in request.texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
    what = {
        "files": [list(file) for file in source.files],
        "texts": digest.hexdigest(),
        "n_window": request.n_window,
        "n_ctx": request.n_ctx,
        "types": list(types),
        "n_sample": n_sample,
        "compensated": request.moments > 0,
    }
    folder = request.out.with_name(f"{request.out.name}.partial")
    lock = _begin(request, folder, what)
    try:
        yield _Store(folder)
    finally:
        os.close(lock)


def _begin(request: Request, folder: Path, what: Mapping[str, Any]) -> int:
    """Make the folder and lock it; what other work left in it goes. Returns the open folder."""
    note, lock = folder / "what.json", -1
    try:
        folder.mkdir(exist_ok=True)
        lock = lock_folder(folder)
        if not _is_of(note, what):
            for path in folder.iterdir():
                path.unlink()
        note.write_text(json.dumps(what), "utf-8")
    except BlockingIOError:
        raise UsageError(
            f"`{request.out}` is being made by another process", hint="wait for it, or choose another `-o`"
        ) from None
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        raise StorageError(
            f"cannot use `{folder}`: {error.strerror or error}", hint="remove it, or choose another `-o`"
        ) from None
    return lock


def _is_of(note: Path, what: Mapping[str, Any]) -> bool:
    """Whether the note is of this work."""
    try:
        return bool(json.loads(note.read_text("utf-8")) == what)
    except (OSError, ValueError, RecursionError):
        return False
