/* The history: what this user generated, the latest first. */

import { api, sampleUrl } from "./api.js";
import { $, button, confirmDelete, make, shown, title } from "./dom.js";

const PAGE = 20;
let last = null;

function thumbnail({ id, state, samples, request }) {
  if (state !== "done") return make("div", { className: "thumbnail" });
  const picture = Object.entries(samples ?? {}).find(([, of]) => of.length && typeof of[0].text !== "string");
  if (picture) {
    const [output, [first]] = picture;
    return make("img", { className: "thumbnail", src: sampleUrl(id, output, first.index, "png"), alt: `Synthetic ${output}`, loading: "lazy" });
  }
  const text = Object.values(samples ?? {}).flat()[0]?.text ?? request.outputs.join(", ");
  return make("p", { className: "thumbnail", textContent: text });
}

function row(generation) {
  const { id, state, created, request, error } = generation;
  const when = new Date(1000 * created).toLocaleString();
  const item = make("li", { className: "generation" });
  const remove = button("Delete", async () => {
    if (!(await confirmDelete())) return;
    await shown(async () => {
      await api(`/api/generations/${id}`, { method: "DELETE" });
      item.remove();
      counted();
    });
  });
  remove.setAttribute("aria-label", `Delete the generation of ${when}`);
  const given = Object.keys(request.inputs).join(", ") || "nothing";
  item.append(
    thumbnail(generation),
    make("div", {},
      make("a", { href: `/generations/${id}`, textContent: when }),
      make("p", { textContent: `${title(state)}: ${request.outputs.join(", ")} from ${given}, ${request.model ?? "default model"}${error ? `. ${error}` : ""}` }),
      make("p", { className: "buttons" }, make("a", { href: `/?again=${id}`, textContent: "Use again", "aria-label": `Use again the request of ${when}` }), remove),
    ),
  );
  return item;
}

function counted() {
  $("#empty").textContent = $("#list").childElementCount ? "" : "Nothing has been generated yet.";
}

async function load() {
  const query = new URLSearchParams({ limit: PAGE, ...(last ? { before: last } : {}) });
  const { generations } = await api(`/api/generations?${query}`);
  const first = $("#list").childElementCount;
  $("#list").append(...generations.map(row));
  last = generations.at(-1)?.id ?? last;
  $("#more").hidden = generations.length < PAGE;
  counted();
  if (first) $("a", $("#list").children[first])?.focus();
}

$("#more").addEventListener("click", () => shown(load));
await shown(load);
