// The conversation: asked over the server's own OpenAI API, shown as it comes.
"use strict";

const RENDER_MS = 120; // between two renderings of an answer that is being written
let answering = null; // AbortController of the answer under way

// ---------------------------------------------------------------- showing

const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 40;
const toEnd = () => { $("log").scrollTop = $("log").scrollHeight; };

function element(tag, kind, text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

/** A folded place for what the model thinks. */
function thinking(text) {
  const fold = element("details", "thinking");
  fold.append(element("summary", "", "Thinking"), element("div", "", text));
  return fold;
}

function show(message, index) {
  $("empty").hidden = true;
  const box = element("div", `turn ${message.role}`);
  if (message.reasoning_content) $("log").append(thinking(message.reasoning_content));
  if (message.role === "assistant") render(box, message.content);
  else box.textContent = message.content;
  $("log").append(box);
  const line = element("div", `actions ${message.role}`);
  line.append(action("Copy", (button) => copy(message.content, button)));
  if (message.role === "user") line.append(action("Edit", () => edit(index)));
  else line.append(action("Regenerate", () => regenerate(index)));
  if (message.cost) line.append(element("span", "cost", message.cost));
  $("log").append(line);
}

function showAll() {
  [...$("log").children].forEach((one) => one.id === "empty" || one.remove());
  $("empty").hidden = false;
  chat.messages.forEach(show);
  toEnd();
  showChats();
}

function showChats() {
  const all = chat.messages.length ? chats : [chat, ...chats];
  $("chats").replaceChildren(...all.map((one) => new Option(one.title || "New conversation", one.id)));
  $("chats").value = chat.id;
}

function buttons() {
  $("send").disabled = answering !== null;
  $("stop").disabled = answering === null;
}

// ---------------------------------------------------------------- asking

function body(messages, again) {
  const system = $("system").value.trim();
  const asked = {
    model: $("model").value, stream: true, stream_options: { include_usage: true }, return_progress: true,
    messages: (system ? [{ role: "system", content: system }] : []).concat(
      messages.map(({ role, content, reasoning_content }) => ({ role, content, reasoning_content }))),
  };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"]) {
    const value = $(name.replace("_", "-")).value; // what is empty is the model's own
    if (value !== "") asked[name] = Number(value);
  }
  if (again) asked.seed = -1; // another answer, not the same one
  return asked;
}

/** The answer to what the conversation holds. Leaves out the oldest turns where the context is full. */
async function request(again, signal) {
  for (let from = 0; ; from += 2) {
    try {
      const response = await call("v1/chat/completions", body(chat.messages.slice(from), again), signal);
      return { response, n_dropped: from / 2 };
    } catch (error) {
      if (error.code !== "context_length_exceeded" || from + 2 >= chat.messages.length) throw error;
    }
  }
}

class Answer {
  constructor(box) {
    this.box = box;
    this.text = this.thought = this.reason = "";
    this.usage = null;
    this.begin = performance.now();
    this.first = this.rendered = 0;
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices[0], progress = chunk.prompt_progress;
    if (progress && !this.first) {
      this.box.dataset.progress = `reading the prompt: ${Math.round((100 * progress.processed) / progress.total)} %`;
    }
    if (!choice) return;
    this.reason = choice.finish_reason ?? this.reason;
    const { reasoning_content: thought, content } = choice.delta;
    if (!thought && !content) return;
    this.first ||= performance.now();
    delete this.box.dataset.progress;
    const follow = atEnd();
    if (thought) {
      this.fold ??= this.box.parentElement.insertBefore(thinking(""), this.box);
      this.thought += thought;
      this.fold.lastChild.textContent = this.thought;
    }
    if (content) {
      this.text += content;
      if (performance.now() - this.rendered > RENDER_MS) {
        render(this.box, this.text);
        this.rendered = performance.now();
      }
    }
    if (follow) toEnd();
  }

  /** What it cost, in words. */
  cost(n_dropped) {
    const parts = [];
    if (this.usage && this.first) {
      const { prompt_tokens: read, completion_tokens: written } = this.usage;
      const cached = this.usage.prompt_tokens_details.cached_tokens;
      parts.push(`${read} tokens read${cached ? ` (${cached} known)` : ""}, ${written} written`);
      const seconds = (performance.now() - this.first) / 1000;
      if (written > 1) parts.push(`${((written - 1) / seconds).toFixed(1)} tok/s`);
      parts.push(`first after ${((this.first - this.begin) / 1000).toFixed(1)} s`);
    }
    if (this.reason === "length") parts.push("cut at the limit");
    if (this.reason === "stopped") parts.push("stopped");
    if (n_dropped) parts.push(`the context is full: the oldest ${n_dropped === 1 ? "turn is" : `${n_dropped} turns are`} left out`);
    return parts.join(", ");
  }
}

async function ask(again = false) {
  const asked = chat; // another may be shown before the answer ends
  const box = element("div", "turn assistant writing");
  $("log").append(box);
  toEnd();
  const answer = new Answer(box);
  answering = new AbortController();
  buttons();
  let n_dropped = 0, failure = "";
  try {
    const found = await request(again, answering.signal);
    n_dropped = found.n_dropped;
    for await (const chunk of events(found.response)) answer.take(chunk);
  } catch (error) {
    if (error.name === "AbortError") answer.reason = "stopped";
    else failure = error.message;
  } finally {
    answering = null;
    buttons();
  }
  if (answer.text) {
    const message = { role: "assistant", content: answer.text, cost: answer.cost(n_dropped) };
    if (answer.thought) message.reasoning_content = answer.thought;
    asked.messages.push(message);
  } else {
    const question = asked.messages.pop(); // a question without an answer must not spoil the next
    if (asked === chat && !$("question").value) $("question").value = question.content;
  }
  if (asked !== chat) return; // it was left
  keep();
  showAll();
  if (failure) {
    $("empty").hidden = true;
    $("log").append(element("div", "turn error", failure));
    toEnd();
  }
}

function say(question) {
  chat.messages.push({ role: "user", content: question });
  keep();
  showAll();
  ask();
}

function edit(index) {
  answering?.abort();
  $("question").value = chat.messages[index].content;
  chat.messages.length = index;
  keep();
  showAll();
  $("question").focus();
}

function regenerate(index) {
  if (answering) return;
  chat.messages.length = index;
  showAll();
  ask(true);
}

function open(one) {
  answering?.abort();
  chat = one;
  showAll();
  $("question").focus();
}

// ---------------------------------------------------------------- what a person does

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || answering) return; // what is typed during an answer stays for after it
  $("question").value = "";
  say(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") answering?.abort();
});
$("stop").addEventListener("click", () => answering?.abort());
$("clear").addEventListener("click", () => open(fresh()));
$("delete").addEventListener("click", () => {
  forget(chat.id);
  open(chats[0] ?? fresh());
});
$("chats").addEventListener("change", () => {
  open(chats.find((one) => one.id === $("chats").value) ?? chat);
});
$("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported($("system").value.trim())], { type: "application/json" }));
  link.download = "chat.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
$("file").addEventListener("change", async () => {
  for (const file of $("file").files) {
    const text = await file.text();
    const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((m) => m[0].length + 1)));
    $("question").value += `${$("question").value ? "\n\n" : ""}${file.name}:\n${fence}\n${text.trimEnd()}\n${fence}\n`;
  }
  $("file").value = "";
  $("question").focus();
});

showAll();
