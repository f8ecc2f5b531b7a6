// An answer's Markdown as HTML that can do nothing: no script, no style, nothing from elsewhere.
"use strict";

const SAFE = { FORBID_TAGS: ["style", "img", "svg", "math", "form", "input", "button", "iframe", "video", "audio"],
  FORBID_ATTR: ["style", "class", "id", "name"], ALLOW_DATA_ATTR: false };

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // no permission, or a page without https on another machine
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    button.textContent = document.execCommand("copy") ? "Copied" : "Not allowed";
    area.remove();
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function action(label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "small";
  button.textContent = label;
  button.addEventListener("click", () => act(button));
  return button;
}

function render(box, text) {
  box.innerHTML = DOMPurify.sanitize(marked.parse(text, { gfm: true, breaks: true }), SAFE);
  for (const link of box.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of box.querySelectorAll("pre > code")) {
    const frame = document.createElement("div");
    frame.className = "code";
    code.parentElement.replaceWith(frame);
    frame.append(action("Copy", (button) => copy(code.textContent, button)), code.parentElement);
    code.parentElement.tabIndex = 0; // it scrolls sideways
  }
}
