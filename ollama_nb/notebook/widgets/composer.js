// The composer: a text area, images by button, paste or drop, and a button that sends or stops.

const LARGEST_SIDE = 1536; // pixels; models scale larger images down
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

function makeComposer({ send, stop, complain }) {
  const area = make("textarea", { class: "onb-input", rows: "1", placeholder: "Message", "aria-label": "Message", dir: "auto" });
  const files = make("input", { type: "file", accept: IMAGE_TYPES.join(), multiple: true, hidden: true });
  const strip = make("div", { class: "onb-strip", hidden: true });
  const attach = iconButton("image", "Attach an image", () => files.click());
  const go = iconButton("send", "Send", () => (busy ? stop() : submit()), { class: "onb-go" });
  const hint = make("span", { class: "onb-hint" }, "Enter sends · Shift+Enter new line · Esc stops");
  const element = make("div", { class: "onb-composer" }, strip, area, make("div", { class: "onb-bar" }, attach, hint, go), files);
  let images = [], busy = false;

  const grow = () => {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight, 200)}px`;
    go.disabled = !busy && !area.value.trim() && !images.length;
  };
  function submit() {
    if (busy || (!area.value.trim() && !images.length)) return;
    send(area.value, images);
    area.value = "";
    images = [];
    drawStrip();
    grow();
  }
  function drawStrip() {
    strip.hidden = !images.length;
    strip.replaceChildren(...images.map((image, index) => make("div", { class: "onb-thumb" }, picture(image),
      iconButton("close", "Remove this image", () => { images.splice(index, 1); drawStrip(); grow(); area.focus(); }))));
  }
  async function add(list) {
    for (const file of list) {
      if (!IMAGE_TYPES.includes(file.type)) { complain(`${file.name || "The file"} is not an image (PNG, JPEG, WebP or GIF).`); continue; }
      try {
        images.push(await encoded(file));
      } catch {
        complain(`${file.name || "The image"} cannot be read.`);
      }
    }
    drawStrip();
    grow();
    area.focus();
  }

  area.addEventListener("input", grow);
  area.addEventListener("keydown", (event) => {
    // The Enter that ends an input method's composition chooses characters and must not send the message.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  area.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files];
    if (pasted.length) { event.preventDefault(); add(pasted); }
  });
  files.addEventListener("change", () => { add([...files.files]); files.value = ""; });
  grow();

  return {
    element, area, add,
    restore(message) {
      if (area.value || images.length) return;
      area.value = message.text;
      images = message.images;
      drawStrip();
      grow();
    },
    setBusy(now) {
      busy = now;
      go.replaceChildren(icon(now ? "stop" : "send"));
      go.setAttribute("aria-label", now ? "Stop" : "Send");
      go.title = now ? "Stop (Esc)" : "Send (Enter)";
      go.classList.toggle("onb-stop", now);
      grow();
    },
    setModel(name, readsImages) {
      area.placeholder = name ? `Message ${name}` : "Pick a model first";
      attach.title = readsImages ? "Attach an image" : `${name || "This model"} cannot read images`;
      attach.replaceChildren(icon(readsImages ? "image" : "blind"));
    },
  };
}

/** Encode an image as base64, scaled down to what models use. */
async function encoded(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  let blob = file;
  if (scale < 1 || file.size > 2_000_000 || file.type === "image/gif") {
    const canvas = make("canvas", { width: String(Math.round(bitmap.width * scale)), height: String(Math.round(bitmap.height * scale)) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    blob = await new Promise((done) => canvas.toBlob(done, file.type === "image/png" && scale === 1 ? "image/png" : "image/jpeg", 0.9));
  }
  bitmap.close();
  const url = await new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = fail;
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}
