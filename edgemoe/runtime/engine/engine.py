"""A model opened for generation: text in, text out, inside a budget."""

from __future__ import annotations

import copy
import functools
import os
import sys
import weakref
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from ... import _native
from ..._abi import Stats as NativeStats
from ...devices.memory import process_memory
from ...errors import UsageError
from ...units import KIB, MIB, format_size
from ..budget.allowance import Allowance
from ..budget.planner import Plan
from ..model import Model, ModelInfo
from ..setup import READERS
from ..text.bounds import Pace
from ..text.prompt import CHATML_END, ChatPrompt, Message
from ..text.sampling import Sampling
from ..text.stream import Step, TextStream
from ..text.template import resident_bytes as template_bytes
from ..text.thinking import Piece, mark_texts, shown
from .backend import Backend
from .collected import Collected
from .draft import COST_RESIDENT, COST_STREAMED, Lookahead, Payoff, allowed
from .passes import Passes, Sequences
from .pictures import Pictures
from .prefixes import Prefixes
from .prompting import Asked, chat_prompt
from .scoring import scores
from .sequence import TokenSequence, n_computed
from .states import StateStore
from .stats import Stats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NUMPY_BYTES = 28 * MIB  # resident memory that importing it costs, with room to spare
# What llama.cpp's tokenizer takes meanwhile for a byte of text: 45 for prose, 205 for blanks without end.
_TOKENIZER_BYTES = 210
_SHORT_TEXT_BYTES = 16 * KIB  # what the margin bears
_NATIVE_STATS = frozenset(field.name for field in fields(Stats)) & {field[0] for field in NativeStats._fields_}
_CHECK_TOKENS = 32  # computed between two looks at the process's memory


class Engine:
    """One model, one sequence of tokens. Made by `edgemoe.load`; close it, or use it in a `with` statement.

    Used from one thread at a time; `set_budget`, `cancel`, `stats` and `resident` may be called from any.

    model: what is in the file (closed: info, layers, chat_template, recommended remain). host_info: without a GPU's
    experts.
    n_vocab, n_ctx: tokens in the vocabulary, and that the context holds.
    finish_reason: why the last answer ended: "stop" (the model or a stop string ended it), "length" (max_tokens, or
    the context is full), "" (it did not end).
    n_reused: tokens of the last answer's prompt that were in the engine already.
    seats: with `parallel` an engine for each answer that may be computed at once, this one first: each with a sequence
    of its own, for a thread of its own. Closing one closes all.
    """

    def __init__(
        self,
        model: Model,
        backend: Backend,
        plan: Plan,
        host_info: ModelInfo,
        *,
        resolve: Callable[[str | int], int],
        warm_start: bool = True,
        n_draft: int | None = 0,
        n_row: int = 1,
        parallel: int = 1,
        mmproj: Path | None = None,
    ) -> None:
        """backend: the engine's from now on; with the smallest cache, which grows when it is known what is left for it.

        host_info: the model without the experts that a GPU has. resolve: bytes of a budget as the user writes it.
        warm_start: see `Setup`.
        n_draft: most tokens drafted at once; None: MAX_DRAFT where the model can verify them.
        n_row: tokens whose logits one computation keeps, at most. parallel: sequences of a backend that is `Sequences`.
        """
        self.model, self.host_info = model, host_info
        self.finish_reason, self.n_reused = "", 0
        self._resolve = resolve
        self._n_row = min(n_row, plan.n_ubatch)
        self._payoff = Payoff(COST_STREAMED if plan.n_slot < plan.n_expert_total else COST_RESIDENT)
        self._n_drafted = self._n_draft_used = 0
        self._states: StateStore | None = None
        self._unchecked = 0  # tokens since the last look at the process's memory
        places: Sequence[Backend] = [backend]
        if parallel > 1:
            places = Passes(cast("Sequences", backend), parallel, plan.n_ubatch).seats()
            backend = places[0]
        self._finalizer = weakref.finalize(self, backend.close)
        self._finalizer.atexit = False  # the process's end frees everything; a daemon thread may still be computing
        # What the headers and loading took is the cache's from here on; what answers need of the model is read first.
        _ = (model.layers, model.chat_template, model.recommended)
        model.close()
        self._warm_start, self._tracing = warm_start, False
        if warm_start:
            backend.recall(model.info)
        _native.trim_heap()
        try:
            self._n_draft = min(allowed(backend, n_draft), plan.n_ubatch - 1)
            stats = backend.stats()
            # What was planned, as it came out.
            lent = {name: stats[name] for name in ("decode_bytes", "prefill_bytes")}
            plan = replace(plan, direct_io=bool(stats["direct_io"]), reader=READERS[stats["reader"]], **lent)
            # Weights and KV cache are in place; these buffers fill as tokens are computed.
            untouched = stats["untouched_bytes"]
            self._allowance = Allowance(
                plan, host_info, backend.set_cache_bytes, untouched_bytes=untouched, resident=_resident_bytes,
                computed=lambda: n_computed(sequences),
            )  # fmt: skip
            control, longest = self._allowance.lock, max(model.info.n_ctx_train, plan.n_ctx)
            sequences = tuple(TokenSequence(place, control, longest=longest) for place in places)
        except BaseException:
            self._finalizer()
            raise
        self._sequence = sequences[0]
        self._sequence.pictures = Pictures(mmproj) if mmproj else None
        self.n_vocab, self.n_ctx = self._sequence.n_vocab, self._sequence.n_ctx
        self.seats: tuple[Engine, ...] = (self, *(copy.copy(self) for _ in sequences[1:]))
        for seat, sequence in zip(self.seats, sequences, strict=True):
            seat._sequence, seat.seats = sequence, self.seats
            sequence.siblings = tuple(other for other in sequences if other is not sequence)

    # ---------------------------------------------------------------- budget

    @property
    def plan(self) -> Plan:
        """How the budget is spent now."""
        return self._allowance.plan

    def set_budget(self, memory: str | int) -> None:
        """Change the budget ("4GiB", "50%", "auto", bytes), from any thread, also during generation.

        The output does not change. Memory is given back before the next layer is computed.
        Raises BudgetError when that is too small for what is loaded, UsageError.
        """
        budget_bytes = self._resolve(memory)
        with self._control():
            self._allowance.spend(budget_bytes)

    def stats(self) -> Stats:
        """Counters since load and the state of now. Any thread."""
        with self._control() as backend:
            native = backend.stats()
        memory = process_memory()
        known = {name: native[name] for name in _NATIVE_STATS}
        flags = {name: bool(native[name]) for name in ("direct_io", "page_cache", "prefetch_paused")}
        known["n_decode"] += self._n_draft_used  # a pass counts as one token
        return Stats(
            **{**known, **flags, "reader": READERS[native["reader"]]},
            n_draft=self._n_drafted,
            n_draft_used=self._n_draft_used,
            rss_bytes=memory.rss,
            peak_bytes=memory.peak,
            budget_bytes=self.plan.budget_bytes,
            n_past=self.n_past,
            n_ctx=self.n_ctx,
        )

    def resident(self) -> tuple[int, ...]:
        """Experts in the cache, for each of `model.layers`. Any thread."""
        with self._control() as backend:
            return tuple(backend.resident(i) for i in range(self.model.info.n_moe_layer))

    def experts(self) -> tuple[bytes, ...]:
        """For each of `model.layers` one byte for each expert: EXPERT_* bits of `edgemoe._abi`. Any thread.

        1: in the cache. Of the layer's last visit: 2: used, 4: had to be read, 8: was read ahead.
        """
        with self._control() as backend:
            return tuple(backend.experts(i) for i in range(self.model.info.n_moe_layer))

    def accuracy(self) -> tuple[tuple[float | None, ...], ...]:
        """For each of `model.layers` the share of its experts that were predicted 1, 2, 3, 4 layers ahead. Any thread.

        Among the k likeliest, measured against the real router; None where nothing was predicted.
        """
        with self._control() as backend:
            counts = [backend.accuracy(i) for i in range(self.model.info.n_moe_layer)]
        return tuple(
            tuple(found / used if used else None for used, found in zip(*layer, strict=True)) for layer in counts
        )

    def trace(self, path: str | os.PathLike[str] | None) -> None:
        """Record routing, residency, reads and stalls into a file until called again; None ends it. See docs/trace.md.

        Between answers. A traced run is no benchmark. Raises StorageError.
        """
        from .trace import header

        with self._control() as backend:
            text = header(self.model, backend.stats()["n_slot"])
            backend.trace(None if path is None else os.fspath(path), text)
            self._tracing = path is not None

    def room(self, n_bytes: int, what: str) -> AbstractContextManager[None]:
        """For what the caller adds to the process (a library, a table): the expert cache gives way first.

        Inside the `with` up to n_bytes may be taken; the cache gets back what was not. Raises BudgetError.
        """
        return self._allowance.growing(n_bytes, what) if n_bytes else nullcontext()

    # ---------------------------------------------------------------- text

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text. special: begin with BOS where the model wants one, and read "<|im_end|>" as one token."""
        return self.tokens(text, add_special=special, parse_special=special)

    def tokens(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """`tokenize`, with both halves of `special` on their own."""
        raw = text.encode("utf-8", "replace")  # lone surrogates, as a terminal may produce, become "?"
        n_bytes = _TOKENIZER_BYTES * len(raw) if len(raw) > _SHORT_TEXT_BYTES else 0
        with self.room(n_bytes, f"reading a text of {format_size(len(raw))}"):
            tokens = _native.text_tokenize(
                self._sequence.text, raw, add_special=add_special, parse_special=parse_special
            )
            if n_bytes:
                _native.trim_heap()
        if add_special and self._adds_end:
            tokens.pop()
        return tokens

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of tokens. special: that of control tokens too. Raises UsageError for a token that does not exist."""
        self._sequence.check(tokens)
        pieces = (_native.text_piece(self._sequence.text, token, special=special) for token in tokens)
        return b"".join(pieces).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes of one token, maybe part of a character; of control tokens too."""
        self._sequence.check((token,))
        return _native.text_piece(self._sequence.text, token, special=True)

    def fim_marks(self) -> list[int]:
        """The tokens that mark prefix, suffix, middle, repository and file where the middle is filled in; -1: none."""
        return _native.text_fim(self._sequence.text)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Continue a prompt (text or tokens), yielding whole characters as they come.

        max_tokens: longest answer; None: until the model ends or the context is full. sampling: None is `Sampling()`,
        the likeliest token always; `engine.model.recommended.but()` is what the commands use.
        stop: strings that end the answer and are not part of it.
        The part of the prompt that is in the engine already is not computed again.
        Raises UsageError for an empty prompt or one longer than the context; while iterating StorageError, Cancelled.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        return self._answer(tokens, max_tokens, sampling, stop)

    def steps(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        n_top: int | None = None,
        special: bool = False,
        stop_tokens: Collection[int] = (),
        anew: bool = False,
    ) -> Iterator[Step]:
        """`generate` token by token. n_top: give log-probabilities, and those of the n_top likeliest tokens.

        special: the text of control tokens too. stop_tokens: end the answer as the model's own end tokens do.
        anew: compute the whole prompt, whatever is in the engine already.
        """
        # Checked now, computed when the answer is asked for.
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"an answer of {max_tokens} tokens makes no sense", hint="use `--max-tokens 1` or more")
        self._sequence.check_prompt(tokens)
        stream = TextStream((stop,) if isinstance(stop, str) else stop)
        self._sequence.begin()
        self.finish_reason, self.n_reused = "", 0
        return self._compute(
            list(tokens), max_tokens, sampling or Sampling(), stream, n_top, special, stop_tokens, anew
        )

    def scores(self, tokens: Sequence[int], n_top: int) -> Iterator[Step]:
        """The log-probability of each token of a prompt given those before it, computed anew from the first on.

        The first has none. At most `Setup.n_rows` tokens are computed at once. Raises what `generate` raises.
        """
        self._sequence.check_prompt(tokens)
        self._sequence.begin()
        return scores(self._sequence, self._append, tokens, n_top, self._n_row)

    def eval_prompt(self, tokens: Sequence[int]) -> None:
        """Compute a prompt and no token after it; what is in the engine already is reused."""
        self._sequence.check_prompt(tokens)
        self._sequence.begin()
        self.finish_reason, self.n_reused = "length", self._become(tokens)
        self._sequence.rest(self._sequence.epoch)

    def check(self, tokens: Sequence[int], sampling: Sampling) -> None:
        """Raise what `steps` would raise before it computes: UsageError for a prompt or a grammar that cannot be."""
        self._sequence.check_prompt(tokens)
        _native.sampler_close(sampling.open(self._sequence.text))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Answer messages ({"role": "user", "content": "..."}) through the model's chat template; else as `generate`.

        A model without a template is asked in ChatML (`engine.model.chat_template` is None then).
        """
        return shown(self.chat_pieces(messages, max_tokens=max_tokens, sampling=sampling, stop=stop))

    def chat_pieces(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Iterator[Piece]:
        """`chat` with the model's thinking told from its answer. variables: see `prompt.render`."""
        prompt = self.chat_prompt(messages, variables=variables)
        if self.model.chat_template is None:
            stop = (*stop, CHATML_END)
        return prompt.thinking.pieces(self._answer(prompt.tokens, max_tokens, sampling, stop))

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, begun: str = ""
    ) -> list[int]:
        """The prompt that `chat` computes for these messages. tools: see `prompt.render`.

        begun: what the answer begins with already, to be gone on with.

        Raises UsageError, FormatError.
        """
        return self.chat_prompt(messages, tools=tools, begun=begun).tokens

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        begun: str = "",
    ) -> ChatPrompt:
        """`chat_tokens`, and how the answer is read. tools, variables: see `prompt.render`. Raises likewise."""
        wanted = Asked(messages, tools, variables, begun)
        return chat_prompt(wanted, self.model.chat_template, self._sequence, self.tokens, self.room)

    @functools.cached_property
    def _adds_end(self) -> bool:
        """Whether the vocabulary ends texts with a token: behind what a model is to continue it has no place."""
        whole, bare = (
            _native.text_tokenize(self._sequence.text, b"a", add_special=special, parse_special=False)
            for special in (True, False)
        )
        return whole[-len(bare) :] != bare

    @functools.cached_property
    def _mark_pieces(self) -> dict[int, bytes]:
        """The bytes of marks around thinking where they are control tokens: they are part of what the model says."""
        pieces = {}
        for text in mark_texts(self.model.chat_template):
            tokens = self.tokens(text, add_special=False, parse_special=True)
            if len(tokens) == 1:
                pieces[tokens[0]] = text.encode()
        return pieces

    def _answer(
        self, tokens: list[int], max_tokens: int | None, sampling: Sampling | None, stop: Sequence[str]
    ) -> Iterator[str]:
        steps = self.steps(tokens, max_tokens=max_tokens, sampling=sampling, stop=stop)
        return (step.text for step in steps if step.text)

    def _compute(
        self,
        tokens: list[int],
        max_tokens: int | None,
        sampling: Sampling,
        stream: TextStream,
        n_top: int | None,
        special: bool,
        stop_tokens: Collection[int],
        anew: bool,
    ) -> Iterator[Step]:
        sampler = sampling.open(self._sequence.text)
        ahead: Lookahead | None = None
        try:
            self.n_reused = self._become(tokens, anew=anew)
            epoch, n_token = self._sequence.epoch, 0
            ahead = Lookahead(self._sequence, self._n_draft, self._payoff)
            append = functools.partial(self._append, epoch=epoch)
            pace = Pace(sampling.grammar)
            while True:
                pace.begin()
                token, piece = self._sequence.sample(sampler, epoch, row=ahead.row, special=special)
                pace.end()
                if piece is None or token in stop_tokens:
                    self.finish_reason = "stop"
                    break
                n_token += 1
                piece = piece or self._mark_pieces.get(token, b"")
                logprob, top = (None, []) if n_top is None else self._sequence.logprobs(token, n_top, row=ahead.row)
                yield Step(token, piece, stream.feed(piece), logprob, tuple(top))
                if stream.stopped:
                    self.finish_reason = "stop"
                    break
                if n_token == max_tokens or self.n_past - ahead.n_pending >= self.n_ctx:
                    self.finish_reason = "length"
                    break
                n_draft, n_used = ahead.n_draft, ahead.n_used
                ahead.append(token, append)
                self._n_drafted += ahead.n_draft - n_draft
                self._n_draft_used += ahead.n_used - n_used
        finally:
            _native.sampler_close(sampler)
            if ahead:
                ahead.close()
                self._sequence.rest(epoch)
        text = stream.finish()
        if text:
            yield Step(-1, b"", text)

    # ---------------------------------------------------------------- tokens

    @property
    def n_past(self) -> int:
        """Tokens in the sequence."""
        return self._sequence.n_past

    @property
    def progress(self) -> tuple[int, int]:
        """Of a long prompt that is being computed: its tokens so far, and those that were there already. Any thread."""
        with self._control() as backend:
            return backend.n_past, self._sequence.n_kept

    def eval(self, tokens: Sequence[int], want_all: bool = False) -> None:
        """Compute tokens after those in the sequence: one is decode, more are prefill.

        Afterwards `row()` has the logits of the last, or with want_all `row(i)` those of each (at most n_outputs).
        Raises UsageError, ContextFullError, StorageError, Cancelled; the sequence is then as before, except that a
        recurrent model's is empty.
        """
        self._sequence.check(tokens)
        self._sequence.begin()
        self._append(tokens, want_all=want_all)

    def row(self, i: int = 0) -> array[float]:
        """Logits of row i of the last `eval`: a copy, float32 [n_vocab]. Raises UsageError if there is no such row."""
        return self._sequence.row(i)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after `tokens` as the whole sequence: float32 [n_vocab]. What is in the engine already is reused."""
        self._sequence.check_prompt(tokens)
        self._sequence.begin()
        with self.room(0 if "numpy" in sys.modules else _NUMPY_BYTES, "numpy"):
            import numpy
        self._become(tokens)
        return numpy.frombuffer(self.row(), dtype=numpy.float32)

    def rewind(self, n: int) -> None:
        """Cut the sequence to its first n tokens. Raises UnsupportedError for a recurrent model unless n is 0."""
        self._sequence.rewind(n)

    def keep_prefixes(self, max_bytes: int) -> None:
        """Remember conversations that others take the place of, in up to so many bytes of the budget; 0: none."""
        with self._control() as backend:
            cuts = backend.can_cut()
        trails, n_batch = [seat._sequence.trail for seat in self.seats], self.plan.n_ubatch
        keeps = max_bytes or self._states
        if self._sequence.prefixes:
            self._sequence.prefixes.forget()
        room = self._allowance
        kept = Prefixes(max_bytes, room, trails, cuts=cuts, n_batch=n_batch, store=self._states) if keeps else None
        for seat in self.seats:
            seat._sequence.remember_in(kept)

    def keep_states(self, folder: Path, max_bytes: int, talk: Callable[[str], None]) -> None:
        """Keep conversations on disk, those that memory has no room for and at the end all; take up those of before.

        max_bytes: of all files in the folder, which several engines may share. talk: gets a line for what fails.
        """
        with self._control() as backend:
            self._states = StateStore(folder, max_bytes, backend.state_key(), talk)
        self.keep_prefixes(self._sequence.prefixes.max_bytes if self._sequence.prefixes else 0)

    @property
    def prefixes(self) -> tuple[int, int]:
        """Conversations that are remembered beside the one in the engine, and their bytes. Any thread."""
        kept = self._sequence.prefixes
        return (kept.n_kept, kept.n_bytes) if kept else (0, 0)

    def reset(self) -> None:
        """Empty the sequence; the cache keeps its experts."""
        self._sequence.rewind(0)

    def _become(self, tokens: Sequence[int], *, anew: bool = False) -> int:
        n_reused = self._sequence.become(tokens, anew=anew)
        self._allowance.check()
        return n_reused

    def _append(self, tokens: Sequence[int], *, want_all: bool = False, epoch: int | None = None) -> None:
        self._sequence.append(tokens, want_all=want_all, epoch=epoch)
        self._unchecked += len(tokens)
        if self._unchecked >= _CHECK_TOKENS:
            self._unchecked = 0
            self._allowance.check()

    # ---------------------------------------------------------------- life

    def cancel(self) -> None:
        """End what is being computed soon: who waits for it gets Cancelled. Any thread, and signal handlers."""
        self._sequence.cancel()

    def collect_bytes(self, n_sample: int) -> int:
        """Memory that `collecting` takes, with room for two copies of its sums."""
        return 3 * _native.collect_bytes(self._sequence.backend.engine, n_sample)

    @contextmanager
    def collecting(self, n_sample: int, stride: int) -> Iterator[Collected]:
        """Inside, what experts meet and give is summed up; see EMOE_COLLECT_* in edgemoe.h.

        n_sample: tokens whose activations are kept, every stride-th. Raises BudgetError when there is no room for it.
        """
        n_bytes = self.collect_bytes(n_sample)
        with self.room(n_bytes, f"calibration data of {format_size(n_bytes)}"):
            _native.collect_begin(self._sequence.backend.engine, n_sample, stride)
            try:
                yield Collected(self._sequence, n_sample)
            finally:
                with self._control() as backend:
                    _native.collect_end(backend.engine)

    def inject_fault(self, kind: int, n: int) -> None:
        """For tests: make the n-th read from now go wrong; kinds are FAULT_* of `edgemoe._abi`."""
        with self._control() as backend:
            _native.engine_inject_fault(backend.engine, kind, n)

    def close(self) -> None:
        """Give everything back, ending what another thread is computing. May be called again."""
        if self._finalizer.alive:
            self._leave()
        for seat in self.seats:
            seat._sequence.close()
        self._finalizer()

    def _leave(self) -> None:
        """What outlives the engine: the trace's end, and what the cache has learned."""
        with self._control() as backend:
            if self._warm_start:
                backend.remember(self.model.info)
            if self._tracing:
                self._tracing = False
                backend.trace(None, "{}")

    @contextmanager
    def _control(self) -> Iterator[Backend]:
        """The backend for a call that any thread may make: it stays open meanwhile."""
        with self._allowance.lock:
            yield self._sequence.backend

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _resident_bytes() -> int:
    """Of this process and of the one that renders templates for it."""
    return _native.rss_bytes() + template_bytes()
