// The model picker: installed models, then suggestions. Type to filter, choose with the arrow keys and Enter.

function makePicker({ choose, opened }) {
  const list = make("ul", { class: "onb-choices", role: "listbox", id: `onb-list-${crypto.getRandomValues(new Uint32Array(1))[0]}` });
  const filter = make("input", {
    class: "onb-filter", type: "text", placeholder: "Find a model, or type a name to pull", "aria-label": "Find a model",
    role: "combobox", "aria-expanded": "true", "aria-controls": list.id, autocomplete: "off", spellcheck: "false",
  });
  const name = make("span", { class: "onb-model-name" }, "Pick a model");
  const button = make("button", { type: "button", class: "onb-picker", "aria-haspopup": "listbox", "aria-expanded": "false", title: "Model" }, name, icon("down"));
  const popup = make("div", { class: "onb-popup", hidden: true }, filter, list);
  const element = make("div", { class: "onb-picker-place" }, button, popup);
  let models = [], current = "", at = 0;

  const rows = () => [...list.querySelectorAll("[role=option]")];
  const close = (focus = true) => {
    popup.hidden = true;
    button.setAttribute("aria-expanded", "false");
    if (focus) button.focus();
  };
  const open = () => {
    filter.value = "";
    popup.hidden = false;
    button.setAttribute("aria-expanded", "true");
    draw();
    filter.focus();
    opened();
  };
  const pick = (model) => { close(); choose(model); };
  const move = (to) => {
    const options = rows();
    at = Math.max(0, Math.min(options.length - 1, to));
    options.forEach((option, index) => option.setAttribute("aria-selected", String(index === at)));
    filter.setAttribute("aria-activedescendant", options[at]?.id ?? "");
    options[at]?.scrollIntoView({ block: "nearest" });
  };

  function row(model, index) {
    const badge = model.fit && make("span", { class: "onb-fit", "data-fit": model.fit }, { fits: "fits", tight: "tight", "too big": "too big" }[model.fit]);
    const figures = model.size && `${model.here ? model.size : `${model.size} to download`} · about ${model.memory} of memory`;
    return make("li", { role: "option", id: `${list.id}-${index}`, "aria-selected": "false", onclick: () => pick(model), onmousemove: () => at !== index && move(index) },
      make("div", { class: "onb-row-head" }, make("span", { class: "onb-row-name" }, model.name), model.name === current && make("span", { class: "onb-tick" }, icon("check")), badge),
      make("div", { class: "onb-row-about" }, [model.about, figures].filter(Boolean).join(" · ")));
  }

  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    const shown = models.filter((model) => `${model.name} ${model.about}`.toLowerCase().includes(wanted));
    if (wanted && !models.some((model) => model.name === wanted)) shown.push({ name: filter.value.trim(), about: "pull this name", here: false, vision: true, thinks: true });
    const groups = [["Installed", shown.filter((model) => model.here)], ["Available to pull", shown.filter((model) => !model.here)]];
    let index = 0;
    list.replaceChildren(...groups.filter(([, some]) => some.length).map(([title, some]) =>
      make("li", { role: "presentation" }, make("div", { class: "onb-group", id: `${list.id}-${title[0]}` }, title),
        make("ul", { role: "group", "aria-labelledby": `${list.id}-${title[0]}` }, some.map((model) => row(model, index++))))));
    move(wanted ? 0 : Math.max(0, shown.findIndex((model) => model.name === current)));
    list.options = groups.flatMap(([, some]) => some);
  }

  button.addEventListener("click", () => (popup.hidden ? open() : close()));
  button.addEventListener("keydown", (event) => { if (event.key === "ArrowDown") { event.preventDefault(); open(); } });
  filter.addEventListener("input", draw);
  filter.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 5, PageUp: -5 }[event.key];
    if (step) move(at + step);
    else if (event.key === "Enter" && list.options[at]) pick(list.options[at]);
    else if (event.key === "Escape") { close(); event.stopPropagation(); }
    else return;
    event.preventDefault();
  });
  element.addEventListener("focusout", (event) => { if (!popup.hidden && !element.contains(event.relatedTarget)) close(false); });
  popup.addEventListener("mousedown", (event) => { if (event.target !== filter) event.preventDefault(); });

  return {
    element,
    show(all, model) {
      models = all;
      current = model;
      name.textContent = model || "Pick a model";
      if (!popup.hidden) draw();
    },
  };
}
