"""`edgemoe chat`: a conversation at the terminal, or one question a line from a pipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EdgeMoEError, UsageError
from .conversation import Conversation, fit
from .generate import load, stream
from .options import EngineOptions, ModelArgument, SamplingOptions, VerboseOption
from .status import note, stats_lines, status_line
from .terminal import is_interactive, prepare, read_question

if TYPE_CHECKING:
    from ..runtime.engine import Engine
    from ..runtime.sampling import Sampling

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation, keep the system prompt",
    "/system TEXT": "set the system prompt and forget the conversation; without TEXT show it",
    "/memory SIZE": "change the memory budget now; without SIZE show it",
    "/stats": "tokens, hits, reads and memory since the model was loaded",
    "/regen": "answer the last question again",
    "/save FILE": "write the conversation as JSON messages",
    "/exit": "leave; Ctrl-D does too",
}
_HELP_TAIL = 'Three quotes """ begin and end a message of several lines. Ctrl-C stops an answer.'
_ANSWER_SHARE = 4  # a quarter of the context is kept free for an answer


def chat(
    model: ModelArgument,
    engine: EngineOptions,
    sampling: SamplingOptions,
    system: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="System prompt.")] = "",
    verbose: VerboseOption = False,
) -> None:
    """Talk with a model."""
    chosen = sampling.sampling()
    interactive = is_interactive()
    prepare(interactive)
    with load(model, engine, verbose=verbose) as opened:
        _Chat(opened, chosen, sampling.max_tokens, Conversation(system), interactive, verbose or interactive).run()


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
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._conversation = conversation
        self._interactive = interactive
        self._with_status = with_status
        self._saved: set[Path] = set()

    def run(self) -> None:
        if self._interactive:
            plan = self._engine.plan
            note(f"{plan.model}: {plan.fraction:.0%} of the experts fit, {plan.n_ctx:,} tokens of context; /help")
        interrupted = False
        while True:
            try:
                line = read_question(self._interactive)
                interrupted = False
            except KeyboardInterrupt:
                if interrupted or not self._interactive:
                    raise
                interrupted = True
                print()
                note("Ctrl-D or /exit leaves")
                continue
            if line is None or line.strip() in ("/exit", "/quit", "/bye"):
                return
            if line.strip():
                self._take(line.strip())

    def _take(self, line: str) -> None:
        """One line of input. What goes wrong ends the line, and the program only when nobody is there to go on."""
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._conversation.ask(line)
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
            pieces = engine.chat(conversation.messages(), max_tokens=self._max_tokens, sampling=self._sampling)
            text, interrupted = stream(pieces, engine.cancel)
        except EdgeMoEError:
            conversation.take_back("user")  # a question that cannot be answered must not spoil the next
            raise
        print(flush=True)
        if text:
            conversation.answer(text)
        else:
            conversation.take_back("user")
        after = engine.stats()
        if after.n_past >= after.n_ctx and not interrupted:
            note("the context is full: the answer ends here")
        if self._with_status:
            note(status_line(after.since(before)))

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
        if name == "/help":
            for usage, meaning in COMMANDS.items():
                print(f"{usage:<14}{meaning}")
            print(_HELP_TAIL)
        elif name == "/clear":
            self._conversation.clear()
        elif name == "/system":
            self._system(rest)
        elif name == "/memory":
            self._memory(rest)
        elif name == "/stats":
            print("\n".join(stats_lines(self._engine.stats())))
        elif name == "/regen":
            self._regen()
        elif name == "/save":
            self._save(rest)
        else:
            raise UsageError(f"`{name}` is not a command", hint="`/help` lists them")

    def _system(self, text: str) -> None:
        if text:
            self._conversation = Conversation(text)
        else:
            print(self._conversation.system or "no system prompt")

    def _memory(self, size: str) -> None:
        if size:
            self._engine.set_budget(size)
        print(stats_lines(self._engine.stats())[-2])

    def _regen(self) -> None:
        if not self._conversation.take_back("assistant"):
            raise UsageError("there is no answer to make again")
        if self._sampling.temp == 0:
            note("the temperature is 0: every answer is the same; `--temp 0.7` gives others")
        seed = self._sampling.seed
        # A fixed seed would repeat the answer word for word.
        self._sampling = self._sampling if seed is None else dataclasses.replace(self._sampling, seed=seed + 1)
        self._answer()

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("`/save` needs a file name", hint="write `/save chat.json`")
        path = Path(name).expanduser()
        if path.exists() and path not in self._saved:
            raise UsageError(f"`{path}` exists already", hint="choose another name")
        try:
            text = json.dumps(self._conversation.messages(), ensure_ascii=False, indent=2)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write `{path}`: {error.strerror}", hint="choose another place") from None
        self._saved.add(path)
        note(f"saved to {path}")
