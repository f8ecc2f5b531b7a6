"""Make the built-in model: quantize SmolMoE-135M with importance weights, and price the result against its source.

    python -m edgemoe.converters.smolmoe weigh SOURCE TEXT GRAMS.npz             what weights are multiplied with
    python -m edgemoe.converters.smolmoe make SOURCE GRAMS.npz OUT.gguf [SPEC]   the file
    python -m edgemoe.converters.smolmoe price N SOURCE TEXT GRAMS.npz SPEC...   KL of candidates over N windows

Each takes minutes on two cores. SPEC: `embd=q5_1,q+k=q5_0,...,else=q8_0`, by the roles of ROLES, or a GGUF file that is
priced. SHIPPED is the one in the package; why is in edgemoe/models/README.md. For maintainers.

Stock llama.cpp computes everything, through the bindings of llama-cpp-python, so that nothing of ours is part of what
is measured. ggml's own quantizers round.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as QuantType

F32 = npt.NDArray[np.float32]

NAME = "SmolMoE-135M"
# Rows of 576 and of 32 weights: types of blocks of 32.
SHIPPED = "else=q8_0,gate+up=iq4_nl,down=q5_1,embd=q5_0,q+k=q5_0,v=q8_0,o=q5_1,router=f16"

ROLES = {
    "token_embd": "embd",  # also the output: the two are tied
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate_inp": "router",
    "ffn_gate_exps": "gate",
    "ffn_up_exps": "up",
    "ffn_down_exps": "down",
}

# Share of the mean square input that counts as noise in every column; 0 rounds plainly. The embedding is looked up too,
# where each weight stands for itself, so there errors are spread less. A row of down is one block: little to spread.
DAMPING = {"embd": 0.2, "down": 0.0, "else": 0.02}

N_CTX = 512
N_SCORED = N_CTX // 2  # the second half of each window, as llama.cpp's perplexity tool does
N_THREADS = 1  # of a shared machine: two that wait for each other are slower than one


# ---------------------------------------------------------------- stock llama.cpp


class Stock:
    """A model in stock llama.cpp with one context of N_CTX tokens. watch: sees every product (see Watcher)."""

    def __init__(self, path: Path, watch: Watcher | None = None) -> None:
        self._log = llama_cpp.llama_log_callback(lambda level, text, _: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load `{path}`")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = N_CTX
        context.n_threads = context.n_threads_batch = N_THREADS
        if watch is not None:
            context.cb_eval = watch.callback
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(N_CTX, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), room, len(room), True, True)
        return list(room[:n])

    def logits(self, window: list[int], n_scored: int = N_SCORED) -> F32:
        """Logits of the last n_scored tokens of a window: [n_scored, n_vocab]."""
        batch = self._batch
        batch.n_tokens = len(window)
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
            batch.logits[i] = i >= len(window) - n_scored
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama.cpp failed to decode")
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.array(np.ctypeslib.as_array(pointer, shape=(n_scored, self.n_vocab)), np.float32)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def windows(stock: Stock, text: str, n: int) -> list[list[int]]:
    """n windows of N_CTX tokens, evenly over the text."""
    tokens = stock.tokenize(text)
    n_whole = len(tokens) // N_CTX
    chosen = [i * n_whole // n for i in range(min(n, n_whole))]
    return [tokens[i * N_CTX : (i + 1) * N_CTX] for i in chosen]


# ---------------------------------------------------------------- importance


class _Tensor(ctypes.Structure):
    """ggml_tensor of the pinned ggml (docs/seam.md)."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class Watcher:
    """Sums, for each weight, the outer products of what it is multiplied with: [experts or 1, columns, columns].

    Products by weights that share an input share its sum: it is kept under the name of `INPUT_OF`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, F32] = {}
        self.counts: dict[str, npt.NDArray[np.float64]] = {}
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._see)

    def _see(self, address: int, ask: bool, _: object) -> bool:
        node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if not node.src[0]:
            return not ask
        name = node.src[0].contents.name.decode()
        if _role(name) is None or input_of(name) != name:
            return not ask
        rows = node.src[1].contents
        if ask or rows.type != 0:  # not F32: the tokens that look up embeddings
            return True
        n_expert, n_column = node.src[0].contents.ne[2], rows.ne[0]
        values = _view(rows, np.float32)  # [tokens, used or 1, columns]
        sums = self.sums.setdefault(name, np.zeros((n_expert, n_column, n_column), np.float32))
        counts = self.counts.setdefault(name, np.zeros(n_expert))
        if n_expert == 1:
            flat = values.reshape(-1, n_column)
            sums[0] += flat.T @ flat
            counts[0] += len(flat)
            return True
        ids = _view(node.src[2].contents, np.int32)[0]  # [tokens, used]
        for expert in range(n_expert):
            chosen = values[ids == expert]
            sums[expert] += chosen.T @ chosen
            counts[expert] += len(chosen)
        return True

    def means(self) -> dict[str, F32]:
        """Mean outer products; an expert seen too seldom leans on the mean of its layer."""
        found = {}
        for name, sums in self.sums.items():
            counts = self.counts[name][:, None, None]
            layer = sums.sum(axis=0) / max(1.0, counts.sum())
            found[name] = ((sums + _LEAN * layer) / (counts + _LEAN)).astype(np.float32)
        return found


_LEAN = 64  # tokens that the mean of a layer counts for
INPUT_OF = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_gate_exps": "ffn_gate_inp", "ffn_up_exps": "ffn_gate_inp"}


def input_of(name: str) -> str:
    """The weight whose input is that of `name`."""
    *layer, stem, suffix = name.split(".")
    return ".".join([*layer, INPUT_OF.get(stem, stem), suffix])


def _view(tensor: Any, dtype: Any) -> npt.NDArray[Any]:
    """The first three dimensions of a tensor in memory, outermost first."""
    ne, nb = tensor.ne, tensor.nb
    n_bytes = sum((ne[i] - 1) * nb[i] for i in range(3)) + nb[0]
    raw = np.frombuffer((ctypes.c_char * n_bytes).from_address(tensor.data), dtype=np.uint8)
    flat = raw[: n_bytes // 4 * 4].view(dtype)
    return np.lib.stride_tricks.as_strided(flat, (ne[2], ne[1], ne[0]), (nb[2], nb[1], nb[0]))


def weigh(source: Path, text: str, out: Path, n_window: int = 14) -> None:
    watcher = Watcher()
    stock = Stock(source, watcher)
    for i, window in enumerate(windows(stock, text, n_window)):
        stock.logits(window)
        _say(f"window {i + 1}/{n_window}, {len(watcher.sums)} tensors")
    means = watcher.means()
    stock.close()
    np.savez(out, **cast(Any, means))


# ---------------------------------------------------------------- quantization


@functools.cache
def _ggml() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(p for p in sorted(folder.iterdir()) if p.name.startswith("libggml-base"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return library


@dataclass(frozen=True)
class Block:
    """How a type of 32 weights a block lies in memory: scale, offset if any, high bits if any, 16 bytes of low bits."""

    values: F32
    has_offset: bool
    n_bit: int


BLOCKS = {
    QuantType.Q4_0: Block(np.arange(16, dtype=np.float32) - 8, False, 4),
    QuantType.Q4_1: Block(np.arange(16, dtype=np.float32), True, 4),
    QuantType.Q5_0: Block(np.arange(32, dtype=np.float32) - 16, False, 5),
    QuantType.Q5_1: Block(np.arange(32, dtype=np.float32), True, 5),
    QuantType.IQ4_NL: Block(
        np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32), False, 4
    ),
}


def chunk(rows: F32, kind: QuantType, importance: F32) -> npt.NDArray[np.uint8]:
    """Rows in a ggml type, rounded by ggml. importance: a weight a column."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, importance = np.ascontiguousarray(rows, np.float32), np.ascontiguousarray(importance, np.float32)
    out = np.empty((len(rows), rows.shape[1] // block * block_bytes), np.uint8)
    _ggml().ggml_quantize_chunk(
        int(kind), rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], importance.ctypes.data
    )
    return out


def compensate(rows: F32, kind: QuantType, gram: F32, damping: float) -> npt.NDArray[np.uint8]:
    """Rows in a ggml type of blocks of 32, each column's rounding error made good by the columns after it.

    The method is GPTQ's (Frantar et al. 2022): with inputs X and gram = X^T X, the error of the product is smallest
    when what rounding a column does to it is spread over the columns that are still free, by the inverse of gram.
    ggml chooses each block's scale from the weights as they have become by then; only its codes are chosen here.
    """
    block = BLOCKS[kind]
    n_row, n_column = rows.shape
    rows = rows.astype(np.float64)
    importance = np.diag(gram)
    damped = gram.astype(np.float64) + np.eye(n_column) * damping * importance.mean()
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper
    packed = []
    for begin in range(0, n_column, 32):
        end = begin + 32
        raw = chunk(rows[:, begin:end].astype(np.float32), kind, importance[begin:end])
        head = raw[:, : 4 if block.has_offset else 2].copy().view(np.float16).astype(np.float64)
        scale = head[:, 0]
        offset = head[:, 1] if block.has_offset else np.zeros(n_row)
        codes = np.empty((n_row, 32), np.uint8)
        errors = np.empty((n_row, 32))
        for j in range(begin, end):
            codes[:, j - begin] = _nearest(rows[:, j], scale, offset, block.values)
            rounded = scale * block.values[codes[:, j - begin]] + offset
            errors[:, j - begin] = (rows[:, j] - rounded) / inverse[j, j]
            rows[:, j + 1 : end] -= np.outer(errors[:, j - begin], inverse[j, j + 1 : end])
        rows[:, end:] -= errors @ inverse[begin:end, end:]
        packed.append(_pack(raw, codes, block))
    return np.concatenate(packed, axis=1)


def _nearest(weights: Any, scale: Any, offset: Any, values: F32) -> Any:
    """Codes of the values nearest to the weights, which are scale * value + offset."""
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.nan_to_num((weights - offset) / scale, nan=0.0, posinf=0.0, neginf=0.0)
    return np.searchsorted((values[1:] + values[:-1]) / 2, wanted)


def _pack(raw: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], block: Block) -> npt.NDArray[np.uint8]:
    """A block's bytes with its head kept and its codes replaced: weight i shares a byte with weight i + 16."""
    out: npt.NDArray[np.uint8] = raw.copy()
    low = codes & 15
    out[:, -16:] = low[:, :16] | (low[:, 16:] << 4)
    if block.n_bit == 5:
        bits = (codes >> 4).astype(np.uint32) << np.arange(32, dtype=np.uint32)
        out[:, -20:-16] = bits.sum(axis=1, dtype=np.uint32)[:, None].view(np.uint8)
    return out


def quantize(weights: F32, kind: QuantType, gram: F32, damping: float) -> npt.NDArray[np.uint8]:
    """weights: [experts, rows, columns]; gram: [experts or 1, columns, columns]; damping: 0 rounds plainly."""
    if damping == 0 or kind not in BLOCKS:
        return np.stack([chunk(rows, kind, np.diag(gram[i % len(gram)])) for i, rows in enumerate(weights)])
    if len(gram) == 1:  # one inverse for all
        whole: npt.NDArray[np.uint8] = compensate(weights.reshape(-1, weights.shape[-1]), kind, gram[0], damping)
        return np.asarray(whole.reshape((*weights.shape[:2], -1)), np.uint8)
    return np.stack([compensate(rows, kind, gram[i], damping) for i, rows in enumerate(weights)])


def _role(name: str) -> str | None:
    return ROLES.get(name.removesuffix(".weight").split(".")[-1])


def parse(spec: str) -> Callable[[str], QuantType | None]:
    """The type of a tensor by its name: its layer's role (`down.0-2=q5_1`), its role, or `else`."""
    rules: dict[str, QuantType] = {}
    for rule in spec.split(","):
        roles, _, kind = rule.partition("=")
        for role in roles.split("+"):
            base, _, layers = role.partition(".")
            first, _, last = layers.partition("-")
            names = [f"{base}.{i}" for i in range(int(first), int(last or first) + 1)] if layers else [base]
            rules.update(dict.fromkeys(names, QuantType[kind.upper()]))

    def kind_of(name: str) -> QuantType | None:
        role = _role(name)
        if role is None:
            return None
        layer = name.split(".")[1] if name.startswith("blk.") else ""
        fallback = QuantType.F32 if role == "router" else rules["else"]
        return rules.get(f"{role}.{layer}", rules.get(role, fallback))

    return kind_of


def make(source: Path, grams: dict[str, F32], spec: str, out: Path) -> int:
    """Write the quantized model; bytes of the file. Written to a temporary name, synced, renamed."""
    reader = gguf.GGUFReader(source)
    kind_of = parse(spec)
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(temporary, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = NAME if key == "general.name" else field.contents()
        if key != "general.file_type":  # names one type for all; there are several
            writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_uint32("general.file_type", 1024)  # LLAMA_FTYPE_GUESSED: mixed
    for tensor in reader.tensors:
        kind = kind_of(tensor.name)
        if kind is None or kind == tensor.tensor_type:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        data = _quantized(tensor, kind, grams[input_of(tensor.name)])
        if kind in (QuantType.F16, QuantType.F32):
            writer.add_tensor(tensor.name, data)
        else:
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out.stat().st_size


_done: dict[tuple[str, QuantType], npt.NDArray[Any]] = {}


def _quantized(tensor: Any, kind: QuantType, gram: F32) -> npt.NDArray[Any]:
    """A tensor in another type, remembered: candidates share most of theirs."""
    key = (tensor.name, kind)
    if key not in _done:
        shape = tuple(int(n) for n in tensor.shape[::-1])
        full = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if kind in (QuantType.F16, QuantType.F32):
            _done[key] = full.astype(np.float16 if kind == QuantType.F16 else np.float32)
        else:
            cube = full.reshape((-1, *shape[-2:]))
            damping = DAMPING.get(_role(tensor.name) or "", DAMPING["else"])
            _done[key] = quantize(cube, kind, gram, damping).reshape((*shape[:-1], -1))
    return _done[key]


# ---------------------------------------------------------------- price


def log_probabilities(logits: F32) -> F32:
    shifted: F32 = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def price(source: Path, text: str, grams: dict[str, F32], specs: list[str], n_window: int = 24) -> None:
    """Print a row a candidate: MB, perplexity, KL of the source to it in nats, how often both like the same token."""
    with tempfile.TemporaryDirectory() as folder:
        base = Stock(source)
        chosen = windows(base, text, n_window)
        reference = [log_probabilities(base.logits(window)).astype(np.float16) for window in chosen]
        base.close()
        _row("source", source.stat().st_size, list(_scores(reference, reference, chosen)))
        for spec in specs:
            begin = time.monotonic()
            if Path(spec).exists():
                _row(spec, Path(spec).stat().st_size, _price_one(Path(spec), reference, chosen))
                continue
            path = Path(folder, "candidate.gguf")
            size = make(source, grams, spec, path)
            made_s = time.monotonic() - begin
            _row(spec, size, _price_one(path, reference, chosen))
            _say(f"made in {made_s:.0f} s, priced in {time.monotonic() - begin - made_s:.0f} s")


def _price_one(
    path: Path, reference: list[npt.NDArray[np.float16]], chosen: list[list[int]]
) -> list[tuple[float, float, float]]:
    stock = Stock(path)
    found = (log_probabilities(stock.logits(window)) for window in chosen)
    scores = list(_scores(found, reference, chosen))
    stock.close()
    return scores


def _scores(found: Any, reference: Any, chosen: list[list[int]]) -> Iterator[tuple[float, float, float]]:
    """(negative log likelihood a token, KL, agreement) of each window."""
    for ours, other, window in zip(found, reference, chosen, strict=True):
        wanted = np.asarray(window[-N_SCORED + 1 :])
        truth = other[:-1].astype(np.float32)
        ours = ours[:-1].astype(np.float32)
        likelihood = -ours[np.arange(len(wanted)), wanted].mean()
        kl = (np.exp(truth) * (truth - ours)).sum(axis=1).mean()
        same = (truth.argmax(axis=1) == ours.argmax(axis=1)).mean()
        yield float(likelihood), float(kl), float(same)


def _row(name: str, size: int, scores: list[tuple[float, float, float]]) -> None:
    likelihood, kl, same = np.asarray(scores).T
    error = kl.std(ddof=1) / np.sqrt(len(kl)) if len(kl) > 1 else 0.0
    perplexity = np.exp(likelihood.mean())
    cells = f"{size / 1e6:.1f} | {perplexity:.2f} | {kl.mean():.4f} ± {error:.4f} | {same.mean():.1%}"
    print(f"| `{name}` | {cells} |", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["weigh", source, text, out]:
            weigh(Path(source), Path(text).read_text("utf-8"), Path(out))
        case ["make", source, weights, out, *spec]:
            size = make(Path(source), dict(np.load(weights)), spec[0] if spec else SHIPPED, Path(out))
            _say(f"{size / 1e6:.1f} MB")
        case ["price", n_window, source, text, weights, *specs]:
            price(Path(source), Path(text).read_text("utf-8"), dict(np.load(weights)), specs, int(n_window))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
