// Conversations and settings, kept in this browser alone.
"use strict";

const CHATS = "edgemoe-chats", SETTINGS = "edgemoe-settings";
const MOST = 100; // conversations; the one changed longest ago goes first

function stored(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch { // not ours, or no storage is allowed
    return otherwise;
  }
}

/** A conversation: id, title, when it was changed, messages as the server takes them; `cost` beside is for people. */
function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", changed: Date.now(), messages: [] };
}

function isChat(one) {
  return typeof one?.id === "string" && Array.isArray(one.messages) &&
    one.messages.every((m) => (m?.role === "user" || m?.role === "assistant") && typeof m.content === "string");
}

let chats = [stored(CHATS, [])].flat().filter(isChat);
let chat = chats[0] ?? fresh();

/** Keep the conversation that is shown; where the browser has no room, older ones go. */
function keep() {
  chat.changed = Date.now();
  chat.title = (chat.messages[0]?.content ?? "").replace(/\s+/g, " ").slice(0, 60);
  chats = [chat, ...chats.filter((one) => one.id !== chat.id)].filter((one) => one.messages.length).slice(0, MOST);
  for (let kept = chats; ; kept = kept.slice(0, -1)) {
    try {
      localStorage.setItem(CHATS, JSON.stringify(kept));
      return;
    } catch {
      if (kept.length <= 1) return; // it lives as long as the page does
    }
  }
}

function forget(id) {
  chats = chats.filter((one) => one.id !== id);
  try {
    localStorage.setItem(CHATS, JSON.stringify(chats));
  } catch { /* nothing was kept */ }
}

/** What `edgemoe chat` reads with /load. */
function exported(system) {
  const messages = chat.messages.map(({ role, content, reasoning_content }) =>
    reasoning_content ? { role, content, reasoning_content } : { role, content });
  return JSON.stringify(system ? [{ role: "system", content: system }, ...messages] : messages, null, 2) + "\n";
}

// ---------------------------------------------------------------- settings: inputs whose values outlive the page

const INPUTS = [...document.querySelectorAll(".options input")];

function keepSettings() {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(Object.fromEntries(INPUTS.map((one) => [one.id, one.value]))));
  } catch { /* they live as long as the page does */ }
}

for (const [id, value] of Object.entries(stored(SETTINGS, {}))) {
  const input = INPUTS.find((one) => one.id === id);
  if (input) input.value = value;
}
INPUTS.forEach((one) => one.addEventListener("change", keepSettings));
