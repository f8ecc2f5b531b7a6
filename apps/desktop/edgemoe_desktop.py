"""A window to talk to a model in: the answer as it comes, a slider for the memory budget, what it costs.

    python apps/desktop/edgemoe_desktop.py MODEL [--memory 6GiB]

Needs edgemoe and Python's tkinter (on Debian: python3-tk). The model computes in one thread, the window lives in
another; between them is a queue, and those functions of the engine that any thread may call.
"""

from __future__ import annotations

import argparse
import queue
import threading
import tkinter as tk
from collections.abc import Callable
from dataclasses import dataclass
from tkinter import filedialog, ttk

import edgemoe
from edgemoe.units import format_size

POLL_MS = 30  # between two looks at what the model has said
STATS_MS = 500
BUDGET_MS = 300  # the slider rests this long before the budget changes
TAGS = {"ended": "note"}  # of the events that end something
COLOURS = {
    "paper": "#fbfbf9",
    "ink": "#22262b",
    "faint": "#6c737c",
    "you": "#1d5f8a",
    "error": "#a3262b",
    "line": "#dcdcd6",
}


@dataclass(frozen=True)
class Event:
    """What the worker tells the window. kind: "opened", "piece", "ended", "failed", "refused"."""

    kind: str
    text: str = ""


class Worker:
    """Owns the engine: opens it, answers, one thing after another, in a thread of its own.

    engine: None until a model is open. events: what happened, for the window.
    """

    def __init__(self, threads: int | None = None) -> None:
        """threads: that compute; None: as many as there are cores."""
        self.engine: edgemoe.Engine | None = None
        self._threads = threads
        self.events: queue.Queue[Event] = queue.Queue()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._messages: list[dict[str, str]] = []
        self._thread = threading.Thread(target=self._run, name="edgemoe-desktop", daemon=True)
        self._thread.start()

    def open(self, path: str, memory: str | int) -> None:
        self._jobs.put(lambda: self._open(path, memory))

    def ask(self, question: str) -> None:
        self._jobs.put(lambda: self._answer(question))

    def forget(self) -> None:
        """Begin a new conversation."""
        self._jobs.put(self._messages.clear)

    def cancel(self) -> None:
        if self.engine is not None:
            self.engine.cancel()

    def close(self) -> None:
        self.cancel()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        if self.engine is not None:
            self.engine.close()

    def _open(self, path: str, memory: str | int) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        self._messages.clear()
        try:
            self.engine = edgemoe.load(path, memory=memory, threads=self._threads)
        except edgemoe.EdgeMoEError as error:
            self.events.put(Event("refused", _sentence(error)))
        else:
            self.events.put(Event("opened"))

    def _answer(self, question: str) -> None:
        assert self.engine is not None
        self._messages.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in self.engine.chat(self._messages):
                answer += piece
                self.events.put(Event("piece", piece))
        except edgemoe.Cancelled:
            self.events.put(Event("ended", "stopped"))
        except edgemoe.EdgeMoEError as error:
            self.events.put(Event("failed", _sentence(error)))
        else:
            self.events.put(Event("ended", "the context is full" if self.engine.finish_reason == "length" else ""))
        if answer:
            self._messages.append({"role": "assistant", "content": answer})
        else:
            self._messages.pop()  # a question without an answer would be asked again with the next


def _sentence(error: edgemoe.EdgeMoEError) -> str:
    return f"{error.message}\n{error.hint}" if error.hint else error.message


class Window:
    """The window. busy: the model opens or answers."""

    def __init__(self, root: tk.Tk, *, threads: int | None = None) -> None:
        self.root = root
        self.worker = Worker(threads)
        self.busy = False
        self._slider_job: str | None = None
        self._moving = False  # the slider moves because of us
        root.title("EdgeMoE")
        root.minsize(560, 420)
        root.configure(background=COLOURS["paper"])
        root.protocol("WM_DELETE_WINDOW", self.close)
        self._build()
        root.after(POLL_MS, self._poll)
        root.after(STATS_MS, self._show_stats)

    def _build(self) -> None:
        style = ttk.Style(self.root)
        style.theme_use("clam")
        style.configure(".", background=COLOURS["paper"], foreground=COLOURS["ink"], font=("TkDefaultFont", 10))
        style.configure("Faint.TLabel", foreground=COLOURS["faint"], font=("TkDefaultFont", 9))

        top = ttk.Frame(self.root, padding=(12, 10))
        top.grid(row=0, column=0, sticky="ew")
        top.columnconfigure(1, weight=1)
        self.open_button = ttk.Button(top, text="Open a model…", command=self._choose)
        self.open_button.grid(row=0, column=0)
        self.name = ttk.Label(top, text="no model", style="Faint.TLabel")
        self.name.grid(row=0, column=1, sticky="w", padx=10)
        ttk.Label(top, text="Memory").grid(row=0, column=2, padx=(10, 4))
        self.slider = ttk.Scale(top, length=170, command=self._slide)
        self.slider.grid(row=0, column=3)
        self.memory = ttk.Label(top, text="", width=9, anchor="e")
        self.memory.grid(row=0, column=4)

        middle = ttk.Frame(self.root, padding=(12, 0))
        middle.grid(row=1, column=0, sticky="nsew")
        middle.columnconfigure(0, weight=1)
        middle.rowconfigure(0, weight=1)
        self.talk = tk.Text(
            middle, wrap="word", state="disabled", relief="flat", padx=12, pady=10, background="white",
            foreground=COLOURS["ink"], font=("TkDefaultFont", 11), spacing3=4, highlightthickness=1,
            highlightbackground=COLOURS["line"], width=70, height=18,
        )  # fmt: skip
        self.talk.grid(row=0, column=0, sticky="nsew")
        bar = ttk.Scrollbar(middle, command=self.talk.yview)
        bar.grid(row=0, column=1, sticky="ns")
        self.talk.configure(yscrollcommand=bar.set)
        self.talk.tag_configure("you", foreground=COLOURS["you"], spacing1=8)
        self.talk.tag_configure("note", foreground=COLOURS["faint"])
        self.talk.tag_configure("error", foreground=COLOURS["error"])

        bottom = ttk.Frame(self.root, padding=(12, 8))
        bottom.grid(row=2, column=0, sticky="ew")
        bottom.columnconfigure(0, weight=1)
        self.entry = ttk.Entry(bottom, font=("TkDefaultFont", 11))
        self.entry.grid(row=0, column=0, sticky="ew", ipady=4)
        self.entry.bind("<Return>", lambda _: self.send())
        self.root.bind("<Escape>", lambda _: self.worker.cancel())
        self.button = ttk.Button(bottom, text="Send", command=self.send)
        self.button.grid(row=0, column=1, padx=(8, 0))
        self.anew = ttk.Button(bottom, text="New", command=self._begin_anew)
        self.anew.grid(row=0, column=2, padx=(8, 0))

        self.stats = ttk.Label(self.root, text="", style="Faint.TLabel", padding=(14, 0, 14, 10))
        self.stats.grid(row=3, column=0, sticky="ew")
        self.root.columnconfigure(0, weight=1)
        self.root.rowconfigure(1, weight=1)
        self._set_busy(False)

    # ---------------------------------------------------------------- what the user does

    def open(self, path: str, memory: str | int) -> None:
        self._clear()
        self._write(f"opening {path} …\n", "note")
        self._set_busy(True)
        self.worker.open(path, memory)

    def send(self) -> None:
        """Ask what stands in the entry; while an answer comes, stop it."""
        if self.busy:
            self.worker.cancel()
            return
        question = self.entry.get().strip()
        if not question or self.worker.engine is None:
            return
        self.entry.delete(0, "end")
        self._write(f"{question}\n", "you")
        self._set_busy(True)
        self.worker.ask(question)

    def close(self) -> None:
        self.root.withdraw()
        self.worker.close()
        self.root.destroy()

    def _choose(self) -> None:
        path = filedialog.askopenfilename(title="A model", filetypes=[("GGUF models", "*.gguf")])
        if path:
            self.open(path, "auto")

    def _begin_anew(self) -> None:
        if not self.busy:
            self.worker.forget()
            self._clear()

    def _slide(self, value: str) -> None:
        self.memory.configure(text=format_size(float(value)))
        if self._moving:
            return
        if self._slider_job:
            self.root.after_cancel(self._slider_job)
        self._slider_job = self.root.after(BUDGET_MS, lambda: self.set_budget(int(float(value))))

    def set_budget(self, n_bytes: int) -> None:
        """Also while an answer comes: it stays the same."""
        if self.worker.engine is None:
            return
        try:
            self.worker.engine.set_budget(n_bytes)
        except edgemoe.EdgeMoEError as error:
            self._write(f"\n{_sentence(error)}\n", "error")
        self._show_budget()

    # ---------------------------------------------------------------- what the model does

    def _poll(self) -> None:
        while not self.worker.events.empty():
            event = self.worker.events.get()
            if event.kind == "piece":
                self._write(event.text)
            elif event.kind == "opened":
                self._opened()
            else:
                before = "" if event.kind == "refused" else "\n"  # the end of the answer's last line
                self._write(before + (f"{event.text}\n" if event.text else ""), TAGS.get(event.kind, "error"))
                self._set_busy(False)
        self.root.after(POLL_MS, self._poll)

    def _opened(self) -> None:
        engine = self.worker.engine
        assert engine is not None
        self.name.configure(text=engine.model.info.name, style="TLabel")
        plan = engine.plan
        # Below the smallest nothing works, above the largest nothing changes.
        self.slider.configure(from_=min(plan.smallest_bytes, plan.budget_bytes),
                              to=max(plan.resident_bytes, plan.budget_bytes))  # fmt: skip
        self._show_budget()
        self._clear()
        self._set_busy(False)
        self.entry.focus_set()

    def _show_budget(self) -> None:
        if self.worker.engine is not None:
            self._moving = True
            self.slider.set(self.worker.engine.plan.budget_bytes)
            self._moving = False
            self.memory.configure(text=format_size(self.worker.engine.plan.budget_bytes))

    def _show_stats(self) -> None:
        engine = self.worker.engine
        if engine is not None:
            try:
                s = engine.stats()
            except edgemoe.EdgeMoEError:  # it is being closed
                pass
            else:
                parts = (
                    f"{s.decode_tok_s:.1f} tok/s",
                    f"{s.hit_rate:.0%} of experts found",
                    f"{s.n_slot_used:,} of {engine.model.info.n_expert_total:,} held",
                    f"{format_size(s.read_bytes)} read",
                    f"{format_size(s.rss_bytes)} of {format_size(s.budget_bytes)}",
                    f"{s.n_past:,} of {s.n_ctx:,} tokens",
                )
                self.stats.configure(text="  ·  ".join(parts))
        self.root.after(STATS_MS, self._show_stats)

    # ---------------------------------------------------------------- widgets

    def _write(self, text: str, tag: str = "") -> None:
        at_end = self.talk.yview()[1] > 0.99  # who has scrolled back to read is left there
        self.talk.configure(state="normal")
        self.talk.insert("end", text, tag)
        self.talk.configure(state="disabled")
        if at_end:
            self.talk.see("end")

    def _clear(self) -> None:
        self.talk.configure(state="normal")
        self.talk.delete("1.0", "end")
        self.talk.configure(state="disabled")

    def _set_busy(self, busy: bool) -> None:
        self.busy = busy
        opened = self.worker.engine is not None
        self.button.configure(text="Stop" if busy and opened else "Send", state="normal" if opened else "disabled")
        for widget in (self.open_button, self.anew):
            widget.configure(state="disabled" if busy else "normal")
        self.slider.configure(state="normal" if opened else "disabled")


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk to a Mixture-of-Experts model in a window.")
    parser.add_argument("model", nargs="?", help="a GGUF file; none: choose it in the window")
    parser.add_argument("--memory", default="auto", help="budget of the whole process: 6GiB, 75%% or auto (default)")
    arguments = parser.parse_args()
    window = Window(tk.Tk())
    if arguments.model:
        window.open(arguments.model, arguments.memory)
    window.root.mainloop()


if __name__ == "__main__":
    main()
