// The model manager: a row for each model, with expandable details; running pulls at the top.

function render({ model, el }) {
  const page = startPage(model, el, "models", "Models", (content) => handlers[content.kind]?.(content));
  const names = make("datalist", { id: `onb-names-${crypto.getRandomValues(new Uint32Array(1))[0]}` });
  const wanted = make("input", { type: "text", list: names.id, placeholder: "Pull a model, such as qwen3:0.6b", "aria-label": "Model to pull", spellcheck: "false", autocomplete: "off" });
  const insecure = make("input", { type: "checkbox" });
  const plain = make("label", { class: "onb-plain", hidden: true }, insecure, "allow plain HTTP to this registry");
  const form = make("form", { class: "onb-pull-form" }, wanted, names, make("button", { class: "onb-button onb-primary", type: "submit" }, "Pull"), plain);
  const pulls = makePulls(page);
  const notice = make("div", { class: "onb-notice", role: "status", hidden: true });
  const list = make("ul", { class: "onb-list", "aria-label": "Installed models" });
  const disk = make("span", { class: "onb-figures" });
  const rows = new Map();
  const polling = poll(page, "look", 3000);
  let lost = "";

  page.root.append(make("header", { class: "onb-title" }, make("strong", {}, "Models"), disk), form, pulls.element, notice, page.slow, list, page.gone);

  const handlers = {
    known: (message) => names.replaceChildren(...message.models.map((one) => make("option", { value: one.name }, one.about))),
    pulls: (message) => pulls.show(message.pulls),
    pulled(message) {
      if (message.error) complain(`${message.name} could not be pulled: ${message.error}`);
      else if (message.error === "") complain(`${message.name} is installed.`, true);
    },
    deleted: (message) => complain(`${message.name} was deleted.`, true),
    problem: (message) => complain(message.text),
    /** Listing the models failed: show the error once, until it works again. */
    lost(message) {
      polling.answered();
      if (lost !== message.text) complain(message.text);
      lost = message.text;
    },
    shown: (message) => rows.get(message.name)?.details(message),
    models(message) {
      polling.answered();
      if (lost && notice.textContent === lost) notice.hidden = true;
      lost = "";
      disk.textContent = message.disk;
      const here = new Set(message.models.map((one) => one.name));
      for (const [name, row] of rows) if (!here.has(name)) {
        if (row.element.contains(document.activeElement)) wanted.focus();
        row.element.remove();
        rows.delete(name);
      }
      message.models.forEach((one, index) => {
        if (!rows.has(one.name)) rows.set(one.name, makeRow(one.name, page));
        const row = rows.get(one.name);
        row.show(one);
        if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
      });
      list.querySelector(".onb-none")?.remove();
      if (!message.models.length) list.append(make("li", { class: "onb-none" }, "No models yet. Pull one above: smollm2 is small and quick."));
    },
  };

  function complain(text, good = false) {
    notice.replaceChildren(make("span", {}, text), iconButton("close", "Close", () => { notice.hidden = true; }));
    notice.toggleAttribute("data-good", good);
    notice.hidden = false;
    if (good) setTimeout(() => { if (notice.hasAttribute("data-good")) notice.hidden = true; }, 4000);
  }
  wanted.addEventListener("input", () => { plain.hidden = !/^[^/]+[.:][^/]*\//.test(wanted.value); });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!wanted.value.trim()) return;
    page.send("pull", { name: wanted.value.trim(), insecure: insecure.checked && !plain.hidden });
    wanted.value = "";
    plain.hidden = true;
  });
  page.send("hello");
  return () => { page.stop(); polling.stop(); };
}

function makeRow(name, page) {
  const about = make("div", { class: "onb-row-about" });
  const badges = make("span", { class: "onb-badges" });
  const unload = iconButton("eject", `Unload ${name} from memory`, () => page.send("unload", { name }), { hidden: true });
  const info = iconButton("info", `Show details of ${name}`, toggle, { "aria-expanded": "false" });
  const remove = iconButton("remove", `Delete ${name}`, ask);
  const sure = make("div", { class: "onb-sure", role: "alertdialog", "aria-label": `Delete ${name}?`, hidden: true });
  const more = make("div", { class: "onb-more", hidden: true });
  const element = make("li", { class: "onb-row", "data-name": name },
    make("div", { class: "onb-row-main" }, make("div", { class: "onb-row-head" }, make("span", { class: "onb-row-name" }, name), badges), about),
    make("div", { class: "onb-row-acts" }, unload, info, remove), sure, more);
  let size = "";

  function ask() {
    const keep = textButton("Keep", leave);
    sure.replaceChildren(make("span", {}, `Delete ${name} (${size}) from the disk?`), make("div", { class: "onb-edit-actions" }, keep,
      textButton("Delete", () => { leave(); page.send("delete", { name }); }, "onb-danger")));
    sure.hidden = false;
    keep.focus();
  }
  function leave() { sure.hidden = true; remove.focus(); }
  function toggle() {
    more.hidden = !more.hidden;
    info.setAttribute("aria-expanded", String(!more.hidden));
    if (!more.hidden) { more.replaceChildren("…"); page.send("show", { name }); }
  }
  element.addEventListener("keydown", (event) => { if (event.key === "Escape" && !sure.hidden) { leave(); event.stopPropagation(); } });

  return {
    element,
    show(now) {
      size = now.size;
      about.textContent = [now.size, now.about, now.changed].filter(Boolean).join(" · ");
      badges.replaceChildren(
        ...(now.running ? [make("span", { class: "onb-fit" }, now.running)] : []),
        ...(!now.running && now.fit && now.fit !== "fits" ? [make("span", { class: "onb-fit", "data-fit": now.fit }, `${now.fit}: needs about ${now.memory}`)] : []));
      unload.hidden = !now.running;
    },
    details(message) {
      more.replaceChildren(
        make("dl", {}, message.facts.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)])),
        ...message.parts.map(([title, text]) => make("details", {}, make("summary", {}, title), make("pre", { tabindex: "0" }, text))));
    },
  };
}

export default { render };
