// Talking to the server that this page is from: requests with a key where one is wanted, and streams of events.
"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "edgemoe-api-key";

let asking = null; // one dialog for all requests that were refused

function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, $("key").value);
      $("key").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function call(path, body, signal) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store",
    });
    if (response.ok) return response;
    if (response.status === 401) {
      await askKey();
      continue;
    }
    const failure = new Error(`the server answered ${response.status}`);
    try {
      const { message, code } = (await response.json()).error;
      Object.assign(failure, { message, code });
    } catch { /* not ours: a proxy's page */ }
    throw failure;
  }
}

// Objects of a server-sent event stream.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;
      const data = block.slice(6);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
