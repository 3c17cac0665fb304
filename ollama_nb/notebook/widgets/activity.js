// The activity widget: a live view of the server's requests and unfinished batches.

function render({ model, el }) {
  const page = startPage(model, el, "activity", "Activity", (content) => handlers[content.kind]?.(content));
  const sum = make("span", { class: "onb-figures", role: "status" });
  const notice = make("div", { class: "onb-notice", role: "alert", hidden: true });
  const list = make("ul", { class: "onb-list", "aria-label": "Requests" });
  const rows = new Map();
  const polling = poll(page, "look", 500);

  page.root.append(make("header", { class: "onb-title" }, make("strong", {}, "Activity"), sum), notice, page.slow, list, page.gone);

  const handlers = {
    queue({ requests, batches }) {
      polling.answered();
      notice.hidden = true;
      const all = [...batches, ...requests];
      const ids = new Set(all.map((one) => one.id));
      for (const [id, row] of rows) if (!ids.has(id)) { row.element.remove(); rows.delete(id); }
      for (const one of all) {
        if (!rows.has(one.id)) {
          rows.set(one.id, one.endpoint ? makeBatch(one, page) : makeRow(one, page));
          list.append(rows.get(one.id).element);
        }
        rows.get(one.id).show(one);
      }
      list.querySelector(".onb-none")?.remove();
      if (!all.length) list.append(make("li", { class: "onb-none" }, "No running or waiting requests."));
      const speed = requests.reduce((all, one) => all + one.tokens_per_second, 0);
      sum.textContent = requests.length ? `${requests.length} request${requests.length > 1 ? "s" : ""}${speed ? ` · ${speed.toFixed(1)} tok/s` : ""}` : "";
    },
    problem(message) {
      polling.answered();
      rows.clear();
      list.replaceChildren(); // the state is unknown now
      sum.textContent = "";
      if (!notice.hidden && notice.textContent === message.text) return; // screen readers have announced it
      notice.replaceChildren(make("span", {}, message.text));
      notice.hidden = false;
    },
  };
  page.send("hello");
  return () => { page.stop(); polling.stop(); };
}

function makeRow(request, page) {
  const state = make("span", { class: "onb-fit" });
  const about = make("div", { class: "onb-row-about onb-figures" });
  const cancel = async () => { if (!(await cancelOnServer(request.id))) page.send("cancel", { id: request.id }); };
  const element = make("li", { class: "onb-row", "data-id": request.id },
    make("div", { class: "onb-row-main" }, make("div", { class: "onb-row-head" }, make("span", { class: "onb-row-name" }, request.model), state), about),
    make("div", { class: "onb-row-acts" }, iconButton("stop", `Cancel this ${request.kind} request`, cancel)));
  return {
    element,
    show(now) {
      state.textContent = now.position ? `${now.state}, place ${now.position}` : now.state;
      state.dataset.fit = now.state === "generating" ? "" : "tight";
      const seconds = Math.max(0, (Date.now() - Date.parse(now.created_at)) / 1000);
      about.textContent = [now.kind, `${seconds.toFixed(0)} s`, now.prompt_tokens && `prompt ${now.prompt_tokens}`, now.output_tokens && `${now.output_tokens} tokens`,
        now.tokens_per_second && `${now.tokens_per_second.toFixed(1)} tok/s`,
        now.drafted_tokens && `drafts ${Math.round((100 * now.accepted_tokens) / now.drafted_tokens)} % accepted`].filter(Boolean).join(" · ");
    },
  };
}

function makeBatch(batch, page) {
  const state = make("span", { class: "onb-fit" });
  const about = make("div", { class: "onb-row-about onb-figures" });
  const bar = make("progress", { "aria-label": "Progress of the batch" });
  const cancel = async () => { if (!(await cancelBatchOnServer(batch.id))) page.send("cancel_batch", { id: batch.id }); };
  const button = iconButton("stop", "Cancel this batch", cancel);
  const element = make("li", { class: "onb-row", "data-id": batch.id },
    make("div", { class: "onb-row-main" }, make("div", { class: "onb-row-head" }, make("span", { class: "onb-row-name" }, "Batch"), state), about, bar),
    make("div", { class: "onb-row-acts" }, button));
  return {
    element,
    show(now) {
      const done = now.completed + now.failed;
      state.textContent = now.status.replace("_", " ");
      state.dataset.fit = now.status === "in_progress" ? "" : "tight";
      button.disabled = !["validating", "in_progress"].includes(now.status);
      if (now.total) { bar.max = now.total; bar.value = done; }
      about.textContent = [now.model, now.endpoint, now.total && `${done} of ${now.total}`, now.failed && `${now.failed} failed`].filter(Boolean).join(" · ");
    },
  };
}

export default { render };
