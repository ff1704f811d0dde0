/* One generation: its progress, then its results. */

import { api, follow, sampleUrl } from "./api.js";
import { $, confirmDelete, make, problem, shown, title } from "./dom.js";
import { Viewers } from "./viewer.js";

const id = encodeURIComponent($("#generation").dataset.id);
const viewers = new Viewers($("#tools"));
const previews = new Map();
let spoken = 0; // the quarter of the steps that was last announced

const STATES = { queued: "Waiting", running: "Generating", done: "Done", failed: "Failed", cancelled: "Cancelled" };

function showState(generation) {
  const { state, position, error } = generation;
  let text = STATES[state];
  if (state === "queued" && position !== null) text += position > 0 ? `, ${position} before it` : ", the next one";
  if ($("#state").textContent !== text) $("#state").textContent = text;
  document.title = `${text} | xgem`;
  problem(error ?? "");
  const running = state === "queued" || state === "running";
  $("#running").hidden = !running;
  if (running) showStep(generation.step, generation.steps);
  showProvenance(generation);
  if (state === "done") showResults(generation);
}

function showStep(step, steps, output) {
  if (!steps) return;
  $("#progress").max = steps;
  $("#progress").value = step;
  $("#step").textContent = `${output ? `${title(output)}, step` : "Step"} ${step} of ${steps}`;
}

/** Progress is shown at each step and announced at each quarter. */
function showProgress({ output, step, steps }) {
  showStep(step, steps, output);
  const quarter = Math.floor((4 * step) / steps);
  if (quarter > spoken) {
    spoken = quarter;
    $("#state").textContent = `Generating, ${25 * quarter} %`;
  }
}

async function showPreview({ output, sample, url }) {
  const key = `${output} ${sample}`;
  if (!previews.has(key)) {
    const text = output === "report";
    const place = text ? make("p") : make("img", { alt: `Preview of ${output} ${sample + 1}` });
    const caption = make(
      "figcaption",
      {},
      make("strong", { textContent: "Synthetic" }),
      `, unfinished: ${output} ${sample + 1}`,
    );
    $("#previews").append(make("figure", {}, caption, place));
    previews.set(key, place);
  }
  const place = previews.get(key);
  if (place.localName === "img") place.src = url;
  else place.textContent = await api(url, { as: "text" }).catch(() => place.textContent); // the results replace it
}

const link = (text, href) => make("a", { href, textContent: text, download: "" });

function showSample(output, sample, section) {
  const name = `${title(output)} ${sample.index + 1}`;
  const format = (kind) => sampleUrl(id, output, sample.index, kind);
  const caption = make("figcaption", {}, make("strong", { textContent: "Synthetic" }), `, ${name}`);
  const figure = make("figure", {}, caption);
  const links = make("p", { className: "buttons" });
  const dicom = link(`${name} as DICOM`, format("dicom"));
  const details = make(
    "details",
    {},
    make("summary", { textContent: "Metadata" }),
    make("pre", { textContent: JSON.stringify(sample.metadata, null, 2), tabIndex: 0 }),
  );
  section.append(make("div", { className: "sample" }, figure, links, details));
  if (typeof sample.text === "string") {
    figure.append(make("blockquote", { className: "report", textContent: sample.text }));
    links.append(link(`${name} as text`, format("txt")), link(`${name} as JSON`, format("json")), dicom);
  } else {
    viewers.add(figure, format("png"), `Synthetic ${name.toLowerCase()}`).start();
    const query = new URLSearchParams({ edit: $("#generation").dataset.id, output, index: sample.index });
    const edit = make("a", { href: `/?${query}`, textContent: `Edit ${name.toLowerCase()}` });
    links.append(link(`${name} as PNG`, format("png")), dicom, edit);
  }
}

function showResults(generation) {
  const place = $("#samples");
  if (place.childElementCount) return; // shown before the connection was lost
  $("#results").hidden = false;
  for (const [output, samples] of Object.entries(generation.samples)) {
    const section = make("div", { className: "columns" });
    place.append(make("h3", { textContent: title(output) }), section);
    for (const sample of samples) showSample(output, sample, section);
  }
  $("#tools").hidden = $("#shortcuts").hidden = !viewers.all.length;
  if (viewers.all.length) viewers.activate(viewers.all[0]);
  const download = (format) => `/api/generations/${id}/download?format=${format}`;
  $("#downloads").append(
    link("All as PNG and text (zip)", download("png")),
    link("All as DICOM (zip)", download("dicom")),
  );
}

/** An input in words. */
function described({ value, structures }) {
  if (value === undefined) return structures ? `masks of ${structures.join(", ")}` : "a file";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function givenPicture(name) {
  const text = `Given: ${name.replace("image-", "start of ")}`;
  const image = make("img", { src: `/api/generations/${id}/inputs/${name}`, alt: text });
  return make("figure", {}, image, make("figcaption", { textContent: text }));
}

function showProvenance({ seed, request, created }) {
  const { inputs, outputs, options, model } = request;
  const given = Object.entries(inputs).map(([name, of]) => `${name}: ${described(of)}`);
  given.push(...request.image.map((output) => `${output} starts from a picture`));
  given.push(...request.mask_image.map((output) => `${output} changes in an area`));
  const rows = {
    Seed: seed,
    Model: model,
    Outputs: outputs.join(", "),
    Inputs: given.join("\n") || "none",
    Options:
      Object.entries(options)
        .map(([name, value]) => `${name}: ${JSON.stringify(value)}`)
        .join("\n") || "defaults",
    Created: new Date(1000 * created).toLocaleString(),
  };
  $("#provenance dl").replaceChildren(
    ...Object.entries(rows).flatMap(([name, text]) => [
      make("dt", { textContent: name }),
      make("dd", { textContent: text }),
    ]),
  );
  $("#provenance").hidden = false;
  if (!$("#given").childElementCount) {
    const views = Object.keys(inputs).filter((name) => ["frontal", "lateral"].includes(name));
    views.push(...request.image.filter((name) => name !== "report").map((output) => `image-${output}`));
    $("#given").append(...views.map(givenPicture));
  }
}

$("#cancel").addEventListener("click", () => shown(() => api(`/api/generations/${id}/cancel`, { method: "POST" })));
$("#remove").addEventListener("click", async () => {
  if (!(await confirmDelete())) return;
  await shown(async () => {
    await api(`/api/generations/${id}`, { method: "DELETE" });
    location.assign("/generations");
  });
});

await shown(async () => {
  const generation = await api(`/api/generations/${id}`);
  showState(generation);
  if (["queued", "running"].includes(generation.state)) {
    follow(id, { state: showState, progress: showProgress, preview: showPreview });
  }
});
