// The chat widget: header with model picker and settings, messages, composer.

const EMPTY_SETTINGS = { system: "", temperature: null, num_ctx: null, think: "auto", format: "text", schema: "" };

function render({ model, el }) {
  const page = startPage(model, el, "chat", "Chat", (content) => handlers[content.kind]?.(content));
  const exchanges = new Map();
  let settings = EMPTY_SETTINGS, models = [], current = "", request = "", offered = null, pending = null;

  const log = make("div", { class: "onb-log", role: "log", "aria-label": "Conversation", "aria-live": "off", tabindex: "0" });
  const announced = make("div", { class: "onb-offscreen", role: "status" });
  const jump = iconButton("down", "Scroll to the latest message", () => { log.scrollTop = log.scrollHeight; }, { class: "onb-icon onb-jump", hidden: true });
  const notice = make("div", { class: "onb-notice", role: "alert", hidden: true });
  const offer = make("div", { class: "onb-offer", hidden: true });
  const pulls = makePulls(page);
  const composer = makeComposer({ send, stop, complain });
  const picker = makePicker({ choose, opened: () => { panel.element.hidden = true; page.send("look"); } });
  const panel = makeSettings((changed) => { settings = { ...settings, ...changed }; page.send("settings", changed); });
  const settingsButton = iconButton("settings", "Settings", () => panel.toggle(settingsButton), { "aria-expanded": "false" });
  const menu = makeMenu([["Download as a notebook", () => page.send("export", { as: "notebook" })], ["Copy as code", () => page.send("export", { as: "code" })]]);

  page.root.append(
    make("header", { class: "onb-head" }, picker.element, make("div", { class: "onb-space" }), settingsButton, menu.element,
      iconButton("fresh", "New conversation", () => { page.send("clear"); composer.area.focus(); })),
    panel.element, make("div", { class: "onb-middle" }, log, jump), notice, offer, pulls.element, page.slow, composer.element, announced, page.gone);

  const handlers = {
    all(message) {
      settings = message.settings;
      request = message.request;
      if (request) pending = null;
      panel.show(settings);
      showModels(message.models.length ? message.models : models, message.model);
      exchanges.clear();
      log.replaceChildren();
      for (const shown of message.exchanges) add(shown);
      if (!message.exchanges.length) log.append(welcome());
      setBusy(Boolean(request));
      handlers.pulls(message);
      toEnd();
    },
    /** A new exchange replaces all from number `at` on: repeating a question drops what follows it. */
    began(message) {
      const focused = log.contains(document.activeElement);
      if (pending && pending.text !== message.exchange.text) giveBack();
      pending = null;
      request = message.request;
      log.querySelector(".onb-welcome")?.remove();
      for (const id of [...exchanges.keys()].slice(message.at)) drop(id);
      add(message.exchange);
      setBusy(true);
      if (focused && !log.contains(document.activeElement)) composer.area.focus();
      toEnd();
    },
    news(message) {
      const below = atEnd();
      exchanges.get(message.id)?.grow(message);
      if (below) toEnd();
    },
    ended(message) {
      const below = atEnd();
      request = "";
      exchanges.get(message.exchange.id)?.show(message.exchange);
      setBusy(false);
      // Screen readers announce the whole answer once, not each piece.
      announced.textContent = message.exchange.error || message.exchange.raw;
      if (below) toEnd();
    },
    models: (message) => showModels(message.models, message.model),
    problem: (message) => complain(message.text),
    copy: (message) => copyText(message.text).then(() => complain("Copied. Paste it into a cell.", 3000)),
    save: (message) => saveFile(message.name, message.text),
    pulls(message) {
      if (message.pulls.some((pull) => pull.name === offered)) hide(offer);
      pulls.show(message.pulls);
    },
    pulled(message) {
      if (message.error) complain(`${message.name} could not be pulled: ${message.error}`);
      else if (message.error === "") { complain(`${message.name} is installed.`, 3000); composer.area.focus(); }
    },
  };

  function add(shown) {
    const exchange = makeExchange(shown, (act, fields) => page.send(act, fields));
    exchanges.set(shown.id, exchange);
    log.append(exchange.element);
  }
  function drop(id) {
    exchanges.get(id)?.element.remove();
    exchanges.delete(id);
  }
  /** Whether the model reads images; true if unknown. */
  function readsImages() { return models.find((one) => one.name === current)?.vision ?? true; }
  function welcome() {
    return make("div", { class: "onb-welcome" }, make("strong", {}, current ? `Ask ${current}` : "Pick a model to begin"),
      make("span", {}, `Everything stays on your server.${readsImages() ? " Images can be pasted or dropped here." : ""}`));
  }
  function send(text, images) {
    log.querySelector(".onb-welcome")?.remove();
    pending = { text, images };
    add({ id: -1, pending: true, text, images, model: current, thinking: "", html: "", raw: "", notes: [], footer: "", done: false, error: "" });
    setBusy(true);
    toEnd();
    page.send("send", { text, images });
  }
  /** Put a refused question back into the composer. */
  function giveBack() {
    drop(-1);
    composer.restore(pending);
    pending = null;
    setBusy(false);
  }
  async function stop() {
    if (!(await cancelOnServer(request))) page.send("stop");
  }
  function choose(chosen) {
    if (chosen.here) return hide(offer), page.send("model", { name: chosen.name }), composer.area.focus();
    offered = chosen.name;
    const pull = textButton("Pull", () => { page.send("pull", { name: chosen.name, pull: chosen.pull }); }, "onb-primary");
    const size = chosen.size ? `${chosen.size} to download, about ${chosen.memory} of memory` : "size unknown";
    const warning = { tight: ": it only just fits.", "too big": ": too big for this machine.", fits: ": it fits this machine." }[chosen.fit] ?? ".";
    offer.replaceChildren(make("div", { class: "onb-offer-text" }, make("strong", {}, chosen.name), ` is not installed — ${size}${warning}`),
      make("div", { class: "onb-edit-actions" }, textButton("Not now", () => { hide(offer); composer.area.focus(); }), pull));
    offer.hidden = false;
    pull.focus();
  }
  function hide(part) { part.hidden = true; offered = null; }
  function showModels(all, name) {
    models = all;
    current = name;
    picker.show(all, name);
    composer.setModel(name, readsImages());
    if (log.querySelector(".onb-welcome")) log.replaceChildren(welcome());
  }
  function setBusy(now) { composer.setBusy(now); page.root.toggleAttribute("data-busy", now); }
  let quiet = 0;
  function complain(text, milliseconds = 0) {
    clearTimeout(quiet);
    notice.replaceChildren(make("span", {}, text), iconButton("close", "Close", () => { notice.hidden = true; }));
    notice.toggleAttribute("data-good", milliseconds > 0);
    notice.hidden = false;
    if (milliseconds) quiet = setTimeout(() => { notice.hidden = true; }, milliseconds);
    else if (pending) giveBack();
  }
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  const toEnd = () => { log.scrollTop = log.scrollHeight; };

  log.addEventListener("scroll", () => { jump.hidden = atEnd(); });
  page.root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    if (!panel.element.hidden) panel.toggle(settingsButton);
    else if (page.root.hasAttribute("data-busy")) stop();
  });
  page.root.addEventListener("dragover", (event) => { event.preventDefault(); event.stopPropagation(); page.root.setAttribute("data-drop", ""); });
  page.root.addEventListener("dragleave", (event) => { if (!page.root.contains(event.relatedTarget)) page.root.removeAttribute("data-drop"); });
  page.root.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    page.root.removeAttribute("data-drop");
    composer.add([...event.dataTransfer.files]);
  });
  page.send("hello");
  return page.stop;
}

/** Create the settings form. */
function makeSettings(changed) {
  const number = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));
  const field = (label, control) => {
    control.setAttribute("aria-label", label);
    return make("label", { class: "onb-field" }, make("span", {}, label), control);
  };
  const select = (name, options) => make("select", { onchange: (event) => { changed({ [name]: event.target.value }); draw(); } },
    Object.entries(options).map(([value, label]) => make("option", { value }, label)));
  const system = make("textarea", { rows: "3", placeholder: "How the model should behave", dir: "auto", onchange: () => changed({ system: system.value }) });
  const temperature = make("input", { type: "number", min: "0", max: "2", step: "0.1", placeholder: "model default", onchange: () => changed({ temperature: number(temperature.value) }) });
  const context = make("input", { type: "number", min: "128", step: "1024", placeholder: "automatic", onchange: () => changed({ num_ctx: number(context.value) }) });
  const think = select("think", { auto: "automatic", on: "on", off: "off", low: "low", medium: "medium", high: "high" });
  const format = select("format", { text: "text", json: "JSON", schema: "JSON Schema" });
  const schema = make("textarea", { rows: "4", class: "onb-code", placeholder: '{"type": "object", …}', spellcheck: "false", onchange: () => changed({ schema: schema.value }) });
  const schemaField = field("Schema", schema);
  schemaField.classList.add("onb-wide");
  const systemField = field("System prompt", system);
  systemField.classList.add("onb-wide");
  const element = make("div", { class: "onb-settings", hidden: true, role: "group", "aria-label": "Settings" },
    systemField, field("Temperature", temperature), field("Context (tokens)", context), field("Thinking", think), field("Answer as", format), schemaField);
  const draw = () => { schemaField.hidden = format.value !== "schema"; };
  return {
    element,
    toggle(button) {
      element.hidden = !element.hidden;
      button.setAttribute("aria-expanded", String(!element.hidden));
      (element.hidden ? button : system).focus();
    },
    show(settings) {
      for (const [control, value] of [[system, settings.system], [temperature, settings.temperature], [context, settings.num_ctx], [think, settings.think], [format, settings.format], [schema, settings.schema]])
        if (control !== document.activeElement) control.value = value ?? "";
      draw();
    },
  };
}

function makeMenu(entries) {
  const items = make("div", { class: "onb-popup onb-menu", role: "menu", hidden: true },
    entries.map(([label, act]) => make("button", { type: "button", role: "menuitem", onclick: () => { close(); act(); } }, label)));
  const button = iconButton("save", "Export", () => { items.hidden ? open() : close(); }, { "aria-haspopup": "menu", "aria-expanded": "false" });
  const element = make("div", { class: "onb-picker-place" }, button, items);
  const open = () => { items.hidden = false; button.setAttribute("aria-expanded", "true"); items.firstChild.focus(); };
  const close = () => { items.hidden = true; button.setAttribute("aria-expanded", "false"); button.focus(); };
  element.addEventListener("keydown", (event) => {
    if (items.hidden) return;
    const all = [...items.children], at = all.indexOf(document.activeElement);
    if (event.key === "Escape") { close(); event.stopPropagation(); }
    else if (event.key === "ArrowDown") all[(at + 1) % all.length].focus();
    else if (event.key === "ArrowUp") all[(at + all.length - 1) % all.length].focus();
    else return;
    event.preventDefault();
  });
  element.addEventListener("focusout", (event) => { if (!items.hidden && !element.contains(event.relatedTarget)) { items.hidden = true; button.setAttribute("aria-expanded", "false"); } });
  return { element };
}

export default { render };
