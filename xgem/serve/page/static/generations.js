/* The history: what this user generated, the latest first. */

import { api, sampleUrl } from "./api.js";
import { $, button, confirmDelete, make, shown, title } from "./dom.js";

const PAGE = 20;
let last = null;

/** The first picture, or else the first report, of what was generated. */
function thumbnail({ id, state, samples }) {
  const figure = make("figure", { className: "thumbnail" });
  if (state !== "done") return figure;
  const outputs = Object.entries(samples);
  const [output, [first]] = outputs.find(([, of]) => typeof of[0].text !== "string") ?? outputs[0];
  const shown =
    typeof first.text === "string"
      ? make("p", { textContent: first.text })
      : make("img", { src: sampleUrl(id, output, first.index, "png"), alt: `Synthetic ${output}`, loading: "lazy" });
  figure.append(make("figcaption", { textContent: "Synthetic" }), shown);
  return figure;
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
  const what = `${title(state)}: ${request.outputs.join(", ")} from ${given}, ${request.model}`;
  item.append(
    thumbnail(generation),
    make(
      "div",
      {},
      make("a", { href: `/generations/${id}`, textContent: when }),
      make("p", { textContent: error ? `${what}. ${error}` : what }),
      make(
        "p",
        { className: "buttons" },
        make("a", {
          href: `/?again=${id}`,
          textContent: "Use again",
          "aria-label": `Use again the request of ${when}`,
        }),
        remove,
      ),
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
