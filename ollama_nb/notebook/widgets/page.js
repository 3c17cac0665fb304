// Shared by all widgets: elements, icons, clipboard, messages to the kernel and requests to the server.

const ICONS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
  blind: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01M3 21L21 3",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M5 19h3.5L19 8.5 15.5 5 5 15.5z",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  fresh: "M12 5v14M5 12h14",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  down: "M6 10l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  info: "M12 11v6M12 7.5h.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  eject: "M6 14l6-7 6 7zM6 18h12",
};

const FOCUSABLE = new Set(["button", "input", "textarea", "select", "summary"]);

/** Create an element with attributes, event listeners (`onclick`) and children. Text never becomes markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  // Without this attribute, JupyterLab's shortcuts ("d" "d" deletes a cell) work while the element has the focus.
  if (FOCUSABLE.has(tag) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Create an icon button. The label is its tooltip and its name for screen readers. */
function iconButton(name, label, onclick, attributes = {}) {
  return make("button", { type: "button", class: "onb-icon", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

function textButton(label, onclick, kind = "") {
  return make("button", { type: "button", class: `onb-button ${kind}`, onclick }, label);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard API is missing on pages loaded over plain HTTP from another machine.
    const area = make("textarea", { class: "onb-offscreen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** Copy the text and show a check mark on the button for a moment. */
async function copyFrom(button, text) {
  await copyText(text);
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(...before), 1200);
}

function saveFile(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Cancel a request on the Jupyter server that served this page; false if that server does not know the request.
 *  Unlike a message to the kernel, this works while the kernel is busy. */
function cancelOnServer(id) {
  return id ? askServer("DELETE", `api/requests/${encodeURIComponent(id)}`) : false;
}

function cancelBatchOnServer(id) {
  return askServer("POST", `v1/batches/${encodeURIComponent(id)}/cancel`);
}

/** Send a request to the Jupyter server that served this page; false if it fails. */
async function askServer(method, path) {
  const data = document.getElementById("jupyter-config-data");
  if (!data) return false;
  try {
    const config = JSON.parse(data.textContent);
    const xsrf = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
    const headers = { ...(xsrf && { "X-XSRFToken": decodeURIComponent(xsrf[1]) }), ...(config.token && { Authorization: `token ${config.token}` }) };
    const url = new URL(`${config.baseUrl}ollama/${path}`, location.href);
    return (await fetch(url, { method, headers, credentials: "same-origin" })).ok;
  } catch {
    return false;
  }
}

const CHANGES = ["comm_live_update", "comm:close"];

/** Create the root of a widget: it keeps key events to itself and shows when the kernel is busy or gone. */
function startPage(model, el, name, label, handle) {
  const gone = make("div", { class: "onb-gone", role: "alert", hidden: true }, "The kernel is no longer running. Run the cell again to continue.");
  const slow = make("div", { class: "onb-slow", role: "status", hidden: true }, "Waiting for the kernel: a cell is running.");
  const root = make("section", { class: `onb onb-${name}`, role: "group", "aria-label": label });
  let waiting = 0;

  const showGone = (dead) => {
    gone.hidden = !dead;
    root.toggleAttribute("data-gone", dead);
    for (const part of root.children) if (part !== gone) part.inert = dead;
  };
  const listen = (content) => {
    clearTimeout(waiting);
    slow.hidden = true;
    if (!gone.hidden) showGone(false);
    handle(content);
  };
  const send = (act, fields = {}, { patient = false } = {}) => {
    clearTimeout(waiting);
    if (!patient) waiting = setTimeout(() => { slow.hidden = !gone.hidden; }, 1500);
    try {
      model.send({ do: act, ...fields });
    } catch { // the kernel has shut down
      clearTimeout(waiting);
      showGone(true);
    }
  };
  // The kernel went away or came back; only a kernel that still has this widget answers.
  const liveChanged = () => {
    clearTimeout(waiting);
    slow.hidden = true;
    showGone(true);
    send("hello", {}, { patient: true });
  };

  for (const type of ["keydown", "keyup", "keypress"]) root.addEventListener(type, (event) => event.stopPropagation());
  model.on("msg:custom", listen);
  for (const change of CHANGES) model.on(change, liveChanged);
  el.append(root);
  const stop = () => {
    clearTimeout(waiting);
    model.off("msg:custom", listen);
    for (const change of CHANGES) model.off(change, liveChanged);
  };
  return { root, gone, slow, send, stop };
}

/** Create the list of running pulls. Rows are kept across updates, so that their buttons can be pressed. */
function makePulls(page) {
  const element = make("div", { class: "onb-pulls", hidden: true });
  const rows = new Map();

  function row(pull) {
    const figures = make("span", { class: "onb-figures" });
    const bar = make("progress", { "aria-label": `Pulling ${pull.name}` });
    const cancel = async () => page.send("stop_pull", { name: pull.name, cancelled: await cancelOnServer(pull.id) });
    const line = make("div", { class: "onb-pull" }, make("div", { class: "onb-pull-head" }, make("strong", {}, pull.name), figures), bar,
      iconButton("close", `Cancel pulling ${pull.name}`, cancel));
    return { line, show(now) {
      figures.textContent = now.figures || now.status;
      if (now.total) { bar.max = now.total; bar.value = now.completed; }
      else bar.removeAttribute("value");
    } };
  }
  return {
    element,
    show(pulls) {
      const ids = new Set(pulls.map((pull) => pull.id));
      for (const [id, { line }] of rows) if (!ids.has(id)) { line.remove(); rows.delete(id); }
      for (const pull of pulls) {
        if (!rows.has(pull.id)) { rows.set(pull.id, row(pull)); element.append(rows.get(pull.id).line); }
        rows.get(pull.id).show(pull);
      }
      element.hidden = !pulls.length;
    },
  };
}

/** Send a message periodically while the widget is visible, one at a time. Call `answered` for each answer. */
function poll(page, act, milliseconds) {
  let seen = true, asked = 0;
  const watcher = new IntersectionObserver(([entry]) => { seen = entry.isIntersecting; });
  watcher.observe(page.root);
  const timer = setInterval(() => {
    // An answer can be lost while the page sleeps, so the message is sent again after a while.
    if (!seen || document.hidden || !page.gone.hidden || (asked && Date.now() - asked < 15_000)) return;
    asked = Date.now();
    page.send(act, {}, { patient: true });
  }, milliseconds);
  return { answered: () => { asked = 0; }, stop: () => { clearInterval(timer); watcher.disconnect(); } };
}
