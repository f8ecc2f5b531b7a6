"""`edgemoe chat`: a conversation at the terminal, or one question a line from a pipe."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EdgeMoEError, StorageError, UsageError
from ..paths import cache_dir
from ..places import BUILTIN
from ..printable import plain
from ..units import format_size
from . import past, settings
from .conversation import Conversation, Message, fit
from .generate import find, load, stream, told, write
from .options import EngineOptions, ModelArgument, SamplingOptions, SeeingOptions, VerboseOption
from .panel import lines, look, memory_rows
from .pictures import ImageOption, check_encoder, found, text_of
from .status import note, say, status_line
from .terminal import FENCE, Question, is_interactive, prepare, read_question

if TYPE_CHECKING:
    from ..runtime.budget.planner import Plan
    from ..runtime.engine.engine import Engine
    from ..runtime.text.sampling import Sampling

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation, keep the system prompt",
    "/system TEXT": "set the system prompt and forget the conversation; without TEXT show it",
    "/memory SIZE": "change the memory budget now; without SIZE show it",
    "/stats": "hits, reads, memory and experts in it since the model was loaded",
    "/stats live": "the same under each answer while it comes, on or off",
    "/image FILE": "a picture for the next question; without FILE: none after all",
    "/regen": "answer the last question again",
    "/set NAME VALUE": "change how answers are picked: `/set temp 0.7`; without NAME show it",
    "/save FILE": "write the conversation as JSON messages",
    "/load FILE": "go on with a conversation that was saved",
    "/resume": "go on with the last conversation with this model",
    "/exit": "leave; Ctrl-D does too",
}
# What users of Ollama and llama.cpp type.
_ELSEWHERE = {
    "/show": "`edgemoe inspect MODEL` shows what is in a model; `/stats` what it does",
    "/reset": "it is `/clear`",
    "/read": "`edgemoe run -f FILE` asks a file; here, paste it",
}
_HELP_TAIL = 'Three quotes """ begin and end a message of several lines. Ctrl-C stops an answer.'
_BUILTIN_SHARE = 1 / 3  # of the built-in model's experts, where no budget is given
_BUILTIN_CTX = 2048
_STATE_BYTES = 1 << 30  # of the folder in which states of conversations are kept
_REMEMBERED = 0.06  # of the budget: what a changed conversation goes back to
_ANSWER_SHARE = 4  # a quarter of the context is kept free for an answer


def chat(
    engine: SeeingOptions,
    sampling: SamplingOptions,
    model: ModelArgument = BUILTIN,
    system: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="System prompt.")] = "",
    image: ImageOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last conversation with this model.")] = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Leave nothing behind: no conversation, no typed lines.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Talk with a model. Without MODEL: with the built-in one, in a third of the memory that its experts take."""
    said, pictures = sampling.said(), found(image or ())
    interactive = is_interactive()
    prepare(interactive)
    path = find(model, verbose=verbose)
    if pictures:
        check_encoder(path, engine.mmproj)
    conversation = Conversation.of(past.recall(path), system) if resume else Conversation(system)
    keeps = (interactive or resume) and not no_history
    is_small = model == BUILTIN and engine.memory is None and not _has_gpu(engine)
    if is_small:
        engine = _small(path, engine)
    with load(path, engine, verbose=verbose) as opened:
        if is_small:
            from ..runtime.budget.share import hold_share

            hold_share(opened, _BUILTIN_SHARE)
        opened.keep_prefixes(int(opened.plan.budget_bytes * _REMEMBERED))
        if keeps:
            opened.keep_states(cache_dir() / "states", _STATE_BYTES, note)
        chosen = opened.model.recommended.but(**said)
        talk = _Chat(
            opened, chosen, sampling.max_tokens, conversation, interactive, verbose or interactive, path, keeps=keeps
        )
        talk.pictures = pictures
        if not (interactive and keeps):
            return talk.run()
        past.load_lines()
        try:
            talk.run()
        finally:
            past.save_lines()


def _small(path: Path, options: SeeingOptions) -> SeeingOptions:
    """The options with a budget for a third of the experts: nobody named one, and streaming is what there is to see."""
    from ..runtime.budget.share import share_budget

    options = dataclasses.replace(options, ctx=options.ctx or _BUILTIN_CTX)
    return dataclasses.replace(options, memory=str(share_budget(path, _BUILTIN_SHARE, options.setup())))


def _has_gpu(options: EngineOptions) -> bool:
    """Whether a GPU was asked for and is there: who does that wants speed, and much of the model is there then."""
    device = options.setup().device
    if device == "cpu":
        return False
    from ..devices.gpu import choose

    return choose(device) is not None


def greeting(plan: Plan, temp: float, lossy_nats: float = 0) -> str:
    """One line on the model, the budget and what streams; what it may cost."""
    budget = f"{plan.model} in {format_size(plan.budget_bytes)}"
    if not plan.n_expert_total:
        experts = f"all experts are on {plan.device}"
    elif plan.fraction >= 1:
        experts = f"all {plan.n_expert_total:,} experts fit, each is read once"
    else:
        experts = f"{plan.fraction:.0%} of the experts fit, the others stream from storage when a word needs them"
    price = f"LOSSY: at most {lossy_nats:g} nats a token, exact where experts are in memory; " if lossy_nats else ""
    return f"{budget}: {experts}; {price}{plan.n_ctx:,} tokens of context; temp {temp:g}; /help"


def _is_command(question: Question) -> bool:
    """A line that begins with a slash; of pasted lines, which may be a file, only if it is a command that exists."""
    if question.quoted or not question.text.startswith("/"):
        return False
    known = {usage.split()[0] for usage in COMMANDS}
    return "\n" not in question.text or question.text.split()[0] in known


class _Chat:
    """The loop of questions, commands and answers."""

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        max_tokens: int | None,
        conversation: Conversation,
        interactive: bool,
        with_status: bool,
        path: Path,
        *,
        keeps: bool,
    ) -> None:
        """path: the model's. keeps: the conversation, for the next chat."""
        self._path = path
        self._keeps = keeps
        self._last = past.last(path) if keeps else []  # this one takes its place with its first answer
        self._engine = engine
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._conversation = conversation
        self._interactive = interactive
        self._with_status = with_status
        self.pictures: list[Path] = []  # that go with the next question
        self._saved: set[Path] = set()
        self._live = False

    def run(self) -> None:
        if self._interactive:
            note(greeting(self._engine.plan, self._sampling.temp, self._engine.stats().lossy_nats))
        if self._conversation.turns:
            self._tell_taken_up()
        interrupted = False
        while True:
            try:
                question = read_question(self._interactive)
                interrupted = False
            except KeyboardInterrupt:
                if interrupted or not self._interactive:
                    raise
                interrupted = True
                print()
                note("Ctrl-D or /exit leaves")
                continue
            if question is None or (not question.quoted and question.text in ("/exit", "/quit", "/bye")):
                return
            if question.text.strip():
                self._take(question)

    def _take(self, question: Question) -> None:
        """One message or command. What goes wrong ends it, and the program only when nobody is there to go on."""
        try:
            if _is_command(question):
                self._command(question.text)
            else:
                pictures, self.pictures = self.pictures, []
                self._conversation.ask(question.text, pictures)
                self._answer()
        except EdgeMoEError as error:
            if not self._interactive:
                raise
            note(f"{error.message}\nhint: {error.hint}" if error.hint else error.message)

    def _answer(self) -> None:
        engine, conversation = self._engine, self._conversation
        before = engine.stats()
        try:
            self._make_room()
            parts: dict[str, str] = {}
            pieces = engine.chat_pieces(conversation.messages(), max_tokens=self._max_tokens, sampling=self._sampling)
            _, interrupted = self._show(told(pieces, parts, dimmed=False if self._live else None))
        except EdgeMoEError:
            conversation.take_back("user")  # a question that cannot be answered must not spoil the next
            raise
        if not self._live:
            print(flush=True)
        if parts:
            conversation.answer(parts.get("text", ""), parts.get("thinking", ""))
        else:
            conversation.take_back("user")
        self._remember()
        after = engine.stats()
        if after.n_past >= after.n_ctx and not interrupted:
            note("the context is full: the answer ends here")
        if self._with_status:
            note(status_line(after.since(before)))

    def _remember(self) -> None:
        """For the next chat's `--resume`, after each answer: who knows how this one ends."""
        if not self._keeps:
            return
        try:
            past.remember(self._path, self._conversation.messages())
        except StorageError as error:
            self._keeps = False
            note(f"{error.message}; this conversation cannot be resumed")

    def _tell_taken_up(self) -> None:
        questions = [text_of(turn["content"]) for turn in self._conversation.turns if turn["role"] == "user"]
        last = plain(" ".join(questions[-1].split())[:60]) if questions else ""
        note(f"{len(questions)} questions taken up; the last was: {last}" if last else "an empty conversation")

    def _go_on(self, messages: Sequence[Message]) -> None:
        self._conversation = Conversation.of(messages)
        self._tell_taken_up()

    def _resume(self) -> None:
        if not self._last:
            raise UsageError("there is no earlier conversation with this model", hint="`/load FILE` takes a saved one")
        self._go_on(self._last)

    def _image(self, name: str) -> None:
        if not name:
            self.pictures = []
            return note("no picture goes with the next question")
        picture = found([name])
        if not self._engine.plan.picture_bytes:
            check_encoder(self._path, "off")
        self.pictures += picture
        note(f"{len(self.pictures)} pictures go with the next question" if len(self.pictures) > 1 else "ask about it")

    def _set(self, text: str) -> None:
        if text:
            self._sampling, self._max_tokens = settings.changed(self._sampling, self._max_tokens, text)
        else:
            print("\n".join(settings.lines(self._sampling, self._max_tokens)))

    def _load(self, name: str) -> None:
        if not name:
            raise UsageError("`/load` needs a file name", hint="write `/load chat.json`")
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(f"there is no file `{path}`", hint="for another model start again: `edgemoe chat MODEL`")
        self._go_on(past.read(path))

    def _show(self, pieces: Iterator[str]) -> tuple[str, bool]:
        if not self._live:
            return stream(pieces, self._engine.cancel, write)
        from .live import live_view

        with live_view(self._engine) as show:
            return stream(pieces, self._engine.cancel, show)

    def _make_room(self) -> None:
        """Leave out the oldest turns when the conversation outgrows the context, and say so."""
        engine = self._engine
        room = engine.n_ctx - min(self._max_tokens or engine.n_ctx, engine.n_ctx // _ANSWER_SHARE)
        messages, n_dropped = fit(self._conversation.messages(), lambda kept: len(engine.chat_tokens(kept)), room)
        if n_dropped:
            self._conversation.replace_turns(messages)
            turns = "turn is" if n_dropped == 1 else f"{n_dropped} turns are"
            note(f"the context is full: the oldest {turns} forgotten")

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/help", "/?"):
            for usage, meaning in COMMANDS.items():
                print(f"{usage:<17}{meaning}")
            print(_HELP_TAIL)
        elif name == "/clear":
            self._conversation.clear()
        elif name == "/system":
            self._system(rest)
        elif name == "/memory":
            self._memory(rest)
        elif name == "/stats":
            self._stats(rest)
        elif name == "/image":
            self._image(rest)
        elif name == "/regen":
            self._regen()
        elif name == "/set":
            self._set(rest)
        elif name == "/load":
            self._load(rest)
        elif name == "/resume":
            self._resume()
        elif name == "/save":
            self._save(rest)
        else:
            hint = _ELSEWHERE.get(
                name, f"`/help` lists them; a message that begins so goes between {FENCE} and {FENCE}"
            )
            raise UsageError(f"`{name:.40}` is not a command", hint=hint)

    def _system(self, text: str) -> None:
        if text:
            self._conversation = Conversation(text)
        else:
            say(self._conversation.system or "no system prompt")

    def _memory(self, size: str) -> None:
        if size:
            self._engine.set_budget(size)
        for label, text in memory_rows(self._engine.stats()):
            print(f"{label:<11}{text}")

    def _stats(self, how: str) -> None:
        if not how:
            print("\n".join(lines(look(self._engine))))
        elif how != "live":
            raise UsageError(f"`/stats {how}` shows nothing", hint="write `/stats` or `/stats live`")
        elif not self._interactive:
            raise UsageError("`/stats live` needs a terminal", hint="write `/stats`")
        else:
            self._switch_live()

    def _switch_live(self) -> None:
        if not self._live and "rich.live" not in sys.modules:
            from .live import RICH_BYTES

            with self._engine.room(RICH_BYTES, "the live view"):
                import rich.live
                import rich.table  # noqa: F401
        self._live = not self._live
        note("the table follows each answer; `/stats live` again ends it" if self._live else "no table any more")

    def _regen(self) -> None:
        if not self._conversation.take_back("assistant"):
            raise UsageError("there is no answer to make again")
        if self._sampling.temp == 0:
            note("the temperature is 0: every answer is the same; `/set temp 0.7` gives others")
        from ..runtime.text.sampling import MAX_SEED

        seed = self._sampling.seed
        # A fixed seed would repeat the answer word for word.
        self._sampling = (
            self._sampling if seed is None else dataclasses.replace(self._sampling, seed=(seed + 1) % (MAX_SEED + 1))
        )
        self._answer()

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("`/save` needs a file name", hint="write `/save chat.json`")
        path = Path(name).expanduser()
        if path.exists() and path not in self._saved:
            raise UsageError(f"`{path}` exists already", hint="choose another name")
        try:
            path.write_bytes(past.written(self._conversation.messages()))
        except OSError as error:
            raise UsageError(f"cannot write `{path}`: {error.strerror}", hint="choose another place") from None
        self._saved.add(path)
        note(f"saved to {path}")
