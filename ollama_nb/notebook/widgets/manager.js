// The model manager: a row a model, opened for details; pulls on top.

function render({ model, el }) {
  const page = startPage(model, el, "models", "Models", (content) => hear[content.kind]?.(content));
  const names = make("datalist", { id: `onb-names-${crypto.getRandomValues(new Uint32Array(1))[0]}` });
  const wanted = make("input", { type: "text", list: names.id, placeholder: "Pull a model, such as qwen3:0.6b", "aria-label": "Model to pull", spellcheck: "false", autocomplete: "off" });
  const insecure = make("input", { type: "checkbox" });
  const plain = make("label", { class: "onb-plain", hidden: true }, insecure, "allow plain HTTP to this registry");
  const form = make("form", { class: "onb-pull-form" }, wanted, names, make("button", { class: "onb-button onb-primary", type: "submit" }, "Pull"), plain);
  const pulls = makePulls(page);
  const notice = make("div", { class: "onb-notice", role: "status", hidden: true });
  const list = make("ul", { class: "onb-list", "aria-label": "Models on this machine" });
  const disk = make("span", { class: "onb-figures" });
  const rows = new Map();
  const asking = keepAsking(page, "look", 3000);
  let lost = "";

  page.root.append(make("header", { class: "onb-title" }, make("strong", {}, "Models"), disk), form, pulls.element, notice, page.slow, list, page.gone);

  const hear = {
    known: (told) => names.replaceChildren(...told.models.map((one) => make("option", { value: one.name }, one.about))),
    pulls: (told) => pulls.show(told.pulls),
    pulled(told) {
      if (told.error) complain(`${told.name} could not be pulled: ${told.error}`);
      else if (told.error === "") complain(`${told.name} is here.`, true);
    },
    deleted: (told) => complain(`${told.name} is deleted.`, true),
    problem: (told) => complain(told.text),
    /** Asking for the list failed: told once, and only until it works again. */
    lost(told) {
      asking.answered();
      if (lost !== told.text) complain(told.text);
      lost = told.text;
    },
    shown: (told) => rows.get(told.name)?.details(told),
    models(told) {
      asking.answered();
      if (lost && notice.textContent === lost) notice.hidden = true;
      lost = "";
      disk.textContent = told.disk;
      const here = new Set(told.models.map((one) => one.name));
      for (const [name, row] of rows) if (!here.has(name)) {
        if (row.element.contains(document.activeElement)) wanted.focus();
        row.element.remove();
        rows.delete(name);
      }
      told.models.forEach((one, index) => {
        if (!rows.has(one.name)) rows.set(one.name, makeRow(one.name, page));
        const row = rows.get(one.name);
        row.show(one);
        if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
      });
      list.querySelector(".onb-none")?.remove();
      if (!told.models.length) list.append(make("li", { class: "onb-none" }, "No models yet. Pull one above: smollm2 is small and quick."));
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
  return () => { page.stop(); asking.stop(); };
}

function makeRow(name, page) {
  const about = make("div", { class: "onb-row-about" });
  const badges = make("span", { class: "onb-badges" });
  const unload = iconButton("eject", `Take ${name} out of memory`, () => page.send("unload", { name }), { hidden: true });
  const info = iconButton("info", `Show ${name}`, toggle, { "aria-expanded": "false" });
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
    details(told) {
      more.replaceChildren(
        make("dl", {}, told.facts.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)])),
        ...told.parts.map(([title, text]) => make("details", {}, make("summary", {}, title), make("pre", { tabindex: "0" }, text))));
    },
  };
}

export default { render };
