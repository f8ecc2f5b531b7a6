// What /api/live tells twice a second: speeds, experts, memory.
"use strict";

const size = (bytes) => {
  if (bytes >= 2 ** 30) return `${(bytes / 2 ** 30).toFixed(2)} GiB`;
  return bytes >= 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(0)} MiB` : `${(bytes / 2 ** 10).toFixed(0)} KiB`;
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PARTS = {
  "process": "--p-process", "dense weights": "--p-dense", "KV cache": "--p-kv", "compute": "--p-compute",
  "expert cache": "--p-cache", "margin": "--p-margin",
};
const lines = { speed: [], hits: [], disk: [] };
const SPAN = 120; // points of a line: a minute

function canvas(id, height) {
  const element = $(id);
  const scale = window.devicePixelRatio || 1;
  const width = element.parentElement.clientWidth - (id === "map" ? 0 : 28);
  if (element.width !== Math.round(width * scale) || element.height !== Math.round(height * scale)) {
    element.width = Math.round(width * scale);
    element.height = Math.round(height * scale);
    element.style.height = `${height}px`;
  }
  const pen = element.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function line(name, value, top) {
  const points = lines[name];
  points.push(value);
  if (points.length > SPAN) points.shift();
  const { pen, width, height } = canvas(`${name}-line`, 28);
  const most = top ?? Math.max(...points.map((p) => p ?? 0), 1e-9);
  const x = (i) => width - (points.length - 1 - i) * (width / (SPAN - 1));
  const y = (p) => height - 2 - (p / most) * (height - 4);
  pen.strokeStyle = colour("--accent");
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.beginPath();
  let down = false;
  points.forEach((p, i) => {
    if (p === null) down = false;
    else if (down) pen.lineTo(x(i), y(p));
    else {
      pen.moveTo(x(i), y(p));
      down = true;
    }
  });
  pen.stroke();
}

// Brightness of each cell: 1 when it was just used or read, fading afterwards.
let used = new Float32Array(0), missed = new Float32Array(0), skipped = new Float32Array(0);

function blend(from, to, share) {
  const parse = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  const [a, b] = [parse(from), parse(to)];
  return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * share)).join(" ")})`;
}

function drawMap(experts) {
  const { layers, n_expert: widths } = experts;
  const cells = Uint8Array.from(atob(experts.cells), (c) => c.charCodeAt(0)); // bits: see Engine.experts
  const total = widths.reduce((a, b) => a + b, 0);
  if (used.length !== total) {
    used = new Float32Array(total);
    missed = new Float32Array(total);
    skipped = new Float32Array(total);
  }
  const most = Math.max(...widths), margin = 26;
  const outer = $("map").parentElement.clientWidth;
  const columns = most > 160 ? Math.ceil(most / 2) : most; // very wide layers take two lines
  const fold = Math.ceil(most / columns);
  const step = Math.max(2, (outer - margin) / columns);
  const high = Math.min(Math.max(3, step), Math.max(3, 300 / (layers.length * fold)));
  const { pen } = canvas("map", Math.ceil(high * layers.length * fold));
  const gap = step > 5 ? 1 : 0.5;
  const palette = Object.fromEntries(["empty", "resident", "used", "missed", "skipped", "predicted", "quiet"].map((n) => [n, colour(`--${n}`)]));
  pen.font = `${Math.min(10, Math.max(8, high))}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  let at = 0, resident = 0, predicted = 0, read = 0;
  layers.forEach((layer, row) => {
    const top = row * fold * high;
    if (row === 0 || row === layers.length - 1 || (row % 5 === 0 && layers.length - row > 2)) {
      pen.fillStyle = palette.quiet;
      pen.fillText(layer, margin - 6, Math.max(5, top + (fold * high) / 2)); // the first is not to be cut
    }
    for (let e = 0; e < widths[row]; e++, at++) {
      const bits = cells[at];
      used[at] = bits & 2 ? 1 : used[at] * 0.8;
      missed[at] = bits & 4 ? 1 : missed[at] * 0.7;
      skipped[at] = bits & 16 ? 1 : skipped[at] * 0.7;
      resident += bits & 1;
      predicted += bits & 8 ? 1 : 0;
      read += bits & 4 ? 1 : 0;
      const x = margin + (e % columns) * step, y = top + Math.floor(e / columns) * high;
      let fill = bits & 1 ? palette.resident : palette.empty;
      if (missed[at] > 0.3) fill = blend(fill, palette.missed, missed[at]);
      else if (skipped[at] > 0.3) fill = blend(fill, palette.skipped, skipped[at]);
      else if (used[at] > 0.05) fill = blend(fill, palette.used, used[at]);
      pen.fillStyle = fill;
      pen.fillRect(x, y, step - gap, high - gap);
      if (bits & 8) {
        pen.strokeStyle = palette.predicted;
        pen.lineWidth = 1.5;
        pen.strokeRect(x + 0.75, y + 0.75, step - gap - 1.5, high - gap - 1.5);
      }
    }
  });
  const share = Math.round((100 * resident) / Math.max(1, total));
  $("map-note").textContent = `${resident.toLocaleString("en")} of ${total.toLocaleString("en")} in memory (${share} %), ` +
    `${layers.length} layers × ${most}`;
  $("map").setAttribute("aria-label", `Experts by layer: ${resident} of ${total} in memory, ${read} just read, ${predicted} predicted`);
}

let dragging = false;

function drawMemory(memory) {
  const parts = Object.entries(memory.parts);
  const bar = $("memory-bar"), list = $("parts");
  if (bar.children.length !== parts.length) {
    bar.replaceChildren(...parts.map(() => document.createElement("i")));
    list.replaceChildren(...parts.map(() => document.createElement("li")));
  }
  const whole = Math.max(memory.budget, parts.reduce((sum, [, bytes]) => sum + bytes, 0));
  parts.forEach(([name, bytes], i) => {
    const fill = `var(${PARTS[name] ?? "--p-process"})`;
    bar.children[i].style.width = `${(100 * bytes) / whole}%`;
    bar.children[i].style.background = fill;
    const item = list.children[i], dot = document.createElement("i"), value = document.createElement("b");
    dot.style.background = fill;
    value.textContent = size(bytes);
    item.replaceChildren(dot, `${name} `, value);
  });
  const text = parts.map(([name, bytes]) => `${name} ${size(bytes)}`).join(", ");
  bar.setAttribute("aria-label", `Budget ${size(memory.budget)}: ${text}`);
  $("memory-note").textContent = `${size(memory.rss)} used now, ${size(memory.peak)} at most, of ${size(memory.budget)}`;
  const slider = $("budget");
  if (dragging) return;
  slider.disabled = false;
  slider.min = memory.smallest;
  slider.max = Math.min(memory.limit, Math.max(memory.resident, memory.budget));
  slider.value = memory.budget;
  $("budget-text").textContent = size(memory.budget);
}

async function setBudget() {
  const hint = $("budget-hint");
  try {
    await call("api/budget", { memory: Number($("budget").value) });
    hint.className = "";
    hint.textContent = `${size(Number($("budget").value))} from the next layer on; the answers stay the same`;
  } catch (error) {
    hint.className = "bad";
    hint.textContent = error.message;
  } finally {
    dragging = false;
  }
}

$("budget").addEventListener("input", () => {
  dragging = true;
  $("budget-text").textContent = size(Number($("budget").value));
});
$("budget").addEventListener("change", setBudget);

function drawModels(names, current) {
  const select = $("model");
  if (select.children.length === names.length) return;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (current) select.value = current;
}

function draw(live) {
  drawModels(live.models, live.model);
  const waiting = live.waiting ? `, ${live.waiting} waiting` : "";
  $("state").textContent = live.state === "busy" ? `answering${live.running > 1 ? ` ${live.running} at once` : ""}${waiting}` : `${live.state}${waiting}`;
  if (!live.memory) return;
  const { recent, total, context } = live;
  const speed = recent.decode_tok_s || null;
  const average = total.decode_tok_s;
  $("speed").textContent = (speed ?? average).toFixed(1);
  $("speed").style.opacity = speed ? 1 : 0.55; // the mean so far, while nothing is computed
  line("speed", speed ?? 0);
  const hits = recent.hit_rate ?? (total.n_decode ? total.hit_rate : null);
  $("hits").textContent = hits === null ? "–" : `${(100 * hits).toFixed(0)} %`;
  $("hits").style.opacity = recent.hit_rate === null ? 0.55 : 1;
  line("hits", recent.hit_rate, 1);
  const disk = recent.read_bytes_per_s / 1e6;
  $("disk").textContent = disk >= 1000 ? (disk / 1000).toFixed(1) : disk.toFixed(0);
  $("disk-unit").textContent = disk >= 1000 ? "GB/s" : "MB/s";
  line("disk", disk);
  $("context").textContent = context.n_past.toLocaleString("en");
  $("context-of").textContent = `of ${context.n_ctx.toLocaleString("en")}`;
  $("context-bar").style.width = `${(100 * context.n_past) / context.n_ctx}%`;
  drawMap(live.experts);
  drawMemory(live.memory);
  const lossy = live.lossy, percent = lossy && (100 * lossy.skip_rate).toFixed(1);
  $("reading").textContent = `Experts are read ${live.reading}.` + (lossy ? ` Lossy: ${lossy.spent_nats.toFixed(3)} of ` +
    `${lossy.price_nats} nats a token spent, ${percent} % of expert uses left out.` : "");
  $("legend-skipped").hidden = !lossy;
}

async function watch() {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await call("api/live");
      for await (const live of events(response)) {
        wait = 500;
        draw(live);
      }
    } catch { /* shown below, and tried again */ }
    $("state").textContent = "the server does not answer";
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

watch();
