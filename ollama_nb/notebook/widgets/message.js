// One exchange: the question, and the reply while it streams. The kernel sends safe HTML.

function makeExchange(shown, act) {
  const question = make("div", { class: "onb-question" });
  const model = make("div", { class: "onb-who" }, shown.model);
  const thoughtSummary = make("summary", {}, "Thinking");
  const thought = { settled: make("div"), tail: make("div") };
  const thinking = make("details", { class: "onb-thinking", hidden: true }, thoughtSummary, make("div", { class: "onb-text" }, thought.settled, thought.tail));
  const text = { settled: make("div"), tail: make("div") };
  const answer = make("div", { class: "onb-text onb-answer" }, text.settled, text.tail);
  const dots = make("div", { class: "onb-dots", role: "status", "aria-label": "Waiting for the model" }, make("i"), make("i"), make("i"));
  const notes = make("div", { class: "onb-notes" });
  const footer = make("span", { class: "onb-figures" });
  const actions = make("div", { class: "onb-actions" });
  const element = make("article", { class: "onb-exchange", "data-id": shown.id },
    question, make("div", { class: "onb-reply" }, model, thinking, answer, dots, notes, make("div", { class: "onb-foot" }, footer, actions)));

  function showQuestion() {
    const actions = !shown.pending && make("div", { class: "onb-actions" },
      iconButton("copy", "Copy the question", (event) => copyFrom(event.currentTarget, shown.text)),
      iconButton("edit", "Edit the question", edit));
    const pictures = shown.images.length > 0 && make("div", { class: "onb-pictures" }, shown.images.map(picture));
    const bubble = shown.text && make("div", { class: "onb-bubble", dir: "auto" }, shown.text);
    question.replaceChildren(...[pictures, make("div", { class: "onb-sent" }, actions, bubble)].filter(Boolean));
  }

  function edit() {
    const area = make("textarea", { class: "onb-edit", "aria-label": "Edit the question", rows: String(Math.min(12, shown.text.split("\n").length + 1)) });
    const send = () => { if (area.value.trim()) act("again", { id: shown.id, text: area.value }); };
    const leave = () => { showQuestion(); question.querySelector("button:last-child")?.focus(); };
    area.value = shown.text;
    area.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
      if (event.key === "Escape") { event.stopPropagation(); leave(); }
    });
    question.replaceChildren(area, make("div", { class: "onb-edit-actions" }, textButton("Cancel", leave), textButton("Send again", send, "onb-primary")));
    area.focus();
  }

  /** Show the whole exchange. */
  function show(now) {
    shown = now;
    showQuestion();
    model.textContent = now.model;
    for (const [parts, html] of [[thought, now.thinking], [text, now.html]]) {
      parts.settled.innerHTML = html;
      parts.tail.replaceChildren();
    }
    thinking.hidden = !now.thinking;
    thinking.open = Boolean(now.thinking && !now.done && !now.html);
    thoughtSummary.textContent = now.done || now.html ? "Thought" : "Thinking…";
    dots.hidden = now.done || Boolean(now.html || now.thinking);
    notes.replaceChildren(
      ...now.notes.map((html) => { const note = make("div", { class: "onb-note" }); note.innerHTML = html; return note; }),
      ...(now.error ? [make("div", { class: "onb-note onb-error", role: "alert" }, now.error)] : []));
    footer.textContent = now.footer;
    element.setAttribute("aria-busy", String(!now.done));
    actions.replaceChildren(...(now.done ? [
      ...(now.raw ? [iconButton("copy", "Copy the answer", (event) => copyFrom(event.currentTarget, shown.raw))] : []),
      iconButton("again", "Regenerate the answer", () => act("again", { id: shown.id })),
    ] : []));
    addCopyButtons(answer);
  }

  /** Append the new part of the reply. */
  function grow(news) {
    dots.hidden = true;
    for (const [parts, part] of [[thought, news.thinking], [text, news.text]]) {
      if (!part) continue;
      if (part.settled) parts.settled.insertAdjacentHTML("beforeend", part.settled);
      parts.tail.innerHTML = part.tail;
    }
    if (news.thinking && thinking.hidden) { thinking.hidden = false; thinking.open = true; thoughtSummary.textContent = "Thinking…"; }
    if (news.text && thinking.open && thoughtSummary.textContent === "Thinking…") { thinking.open = false; thoughtSummary.textContent = "Thought"; }
    if (news.rate) footer.textContent = `${news.rate} tok/s`;
  }

  show(shown);
  return { element, show, grow };
}

/** Show an image that the user attached. Images in replies are never shown. */
function picture(base64) {
  const type = { i: "png", "/": "jpeg", R: "gif", U: "webp" }[base64[0]] ?? "png";
  return make("img", { src: `data:image/${type};base64,${base64}`, alt: "attached image" });
}

function addCopyButtons(answer) {
  for (const block of answer.querySelectorAll("pre"))
    block.append(iconButton("copy", "Copy the code", (event) => copyFrom(event.currentTarget, block.querySelector("code")?.textContent ?? "")));
}
