/* The form: what is given, what is wanted, how; sent as one request. */

import { Annotations } from "./annotations.js";
import { api, sampleUrl } from "./api.js";
import { Board } from "./board.js";
import { $, $$, fieldProblem, make, option, problem, setFile, shown, title } from "./dom.js";
import { Options } from "./options.js";
import { Picture } from "./picture.js";

const VIEWS = ["frontal", "lateral"];
const form = $("#request");
const settings = () => ({ model: form.elements.model.value, reading: options.reading() });
const pictures = new Map(); // given views, by name
const starts = new Map(); // pictures that outputs start from, by output
const edits = new Map(); // boards of what may change, by output
let checkpoints = [];
let options;
let annotations;
let trace;

const checkpoint = () => checkpoints.find((one) => one.name === form.elements.model.value);

/** What any output of the checkpoint takes. */
const takenBy = ({ inputs, takes }) =>
  inputs.filter((name) => Object.values(takes).some((names) => names.includes(name)));

function build() {
  annotations = new Annotations();
  for (const view of VIEWS) {
    const place = make("div", {});
    place.dataset.input = view;
    $("#pictures").append(place);
    pictures.set(view, new Picture(place, view, view, `${title(view)} radiograph`, settings, update));
    const start = make("div", { hidden: true });
    start.dataset.output = view;
    $("#starts").append(start);
    starts.set(
      view,
      new Picture(start, `image:${view}`, view, `${title(view)} starts from`, settings, () => startChanged(view)),
    );
  }
  trace = new Picture($("#trace"), "", "frontal", "Picture to draw on (it is not sent)", settings, update);
  for (const about of options.known.filter(({ name }) => ["voi", "rescale", "invert", "allow_any"].includes(name))) {
    options.control(about.name).addEventListener("change", refresh);
  }
}

const refresh = () => {
  for (const picture of [...pictures.values(), ...starts.values(), trace]) {
    if (!picture.root.closest("[hidden]")) picture.refresh();
  }
};

/** A board on the picture that an output starts from, for the area that may change. */
function startChanged(view) {
  const { file, levels } = starts.get(view);
  const before = edits.get(view);
  if (before && (before.file !== file || before.board.size ** 2 !== levels?.length)) {
    before.root.remove();
    edits.delete(view);
  }
  if (levels && !edits.has(view)) {
    const root = make("details", {}, make("summary", { textContent: `Change only an area of the ${view}` }));
    root.append(make("p", { textContent: "Paint what may change. If nothing is painted, all of the picture may." }));
    const place = make("div", { className: "board" });
    root.append(place);
    root.dataset.field = `mask_image:${view}`;
    $("#edits").append(root);
    const board = new Board(place, {
      label: `Area of the ${view} that may change`,
      tools: { brush: "Brush", eraser: "Eraser" },
      layer: "edit",
    });
    board.resize(Math.sqrt(levels.length));
    edits.set(view, { root, board, file });
  }
  edits.get(view)?.board.setUnder(levels);
  update();
}

/** Show what the checkpoint takes and gives; what is given is no output. */
function update() {
  const { outputs } = checkpoint();
  const given = givenInputs();
  for (const element of $$("[data-input]")) element.hidden = !takenBy(checkpoint()).includes(element.dataset.input);
  for (const box of $$("#outputs input")) {
    box.disabled = given.has(box.value);
    if (box.disabled) box.checked = false;
  }
  for (const element of $$("#starts [data-output]")) element.hidden = !outputs.includes(element.dataset.output);
  $("#start").hidden = !outputs.some((output) => VIEWS.includes(output));
  $("#strength").hidden = ![...starts.values()].some((picture) => picture.file);
  annotations.board.setUnder(
    (trace.file ? trace : starts.get("frontal").file ? starts.get("frontal") : pictures.get("frontal")).levels,
  );
}

/** Names of what is given, of what the checkpoint takes. */
function givenInputs() {
  const { sex, age, severity, report } = form.elements;
  const given = annotations.given;
  const filled = {
    frontal: pictures.get("frontal").file,
    lateral: pictures.get("lateral").file,
    report: report.value.trim(),
    demographics: sex.value || age.value,
    severity: severity.value,
    ...given,
  };
  return new Set(takenBy(checkpoint()).filter((name) => filled[name]));
}

function checkpointChanged() {
  const { outputs } = checkpoint();
  const wanted = chosenOutputs();
  $("#takes").textContent = `Takes ${takenBy(checkpoint()).join(", ")}. Generates ${outputs.join(", ")}.`;
  $("#outputs").replaceChildren(
    ...outputs.map((name) => {
      const box = make("input", { type: "checkbox", name: "output", value: name, checked: wanted.includes(name) });
      return make("label", {}, box, ` ${title(name)}`);
    }),
  );
  if (outputs.length === 1) $("#outputs input").checked = true;
  annotations.setCheckpoint(checkpoint());
  update();
  refresh();
}

const chosenOutputs = () => $$("#outputs input:checked").map((box) => box.value);

const startsSent = (outputs) => [...starts].filter(([output, { file }]) => file && outputs.includes(output));

/** The request as multipart form data, or null where a number is malformed. */
async function body() {
  const given = givenInputs();
  const { elements } = form;
  for (const name of ["severity", "age"]) {
    if (elements[name].validity.badInput) {
      fieldProblem(elements[name], "Not a number.");
      return null;
    }
  }
  const outputs = chosenOutputs();
  const sent = startsSent(outputs);
  const values = options.values({ started: sent.length > 0 });
  if (values === null) return null;
  const inputs = {};
  if (given.has("report")) inputs.report = elements.report.value.trim();
  if (given.has("severity")) inputs.severity = elements.severity.valueAsNumber;
  if (given.has("demographics")) {
    inputs.demographics = {};
    if (elements.sex.value) inputs.demographics.sex = elements.sex.value;
    if (elements.age.value) inputs.demographics.age = elements.age.valueAsNumber;
  }
  const data = new FormData();
  if (given.has("boxes") && annotations.boxes.annotations.length) inputs.boxes = annotations.boxes;
  data.append("request", JSON.stringify({ inputs, outputs, options: values, model: elements.model.value }));
  for (const [view, { file }] of pictures) if (given.has(view)) data.append(view, file);
  for (const name of ["mask", "boxes"]) {
    if (given.has(name) && elements[name].files.length) data.append(name, elements[name].files[0]);
  }
  if (given.has("mask")) await annotations.append(data);
  for (const [output, { file }] of sent) {
    data.append(`image:${output}`, file);
    const board = edits.get(output)?.board;
    const area = board?.painted().get("edit");
    if (area) data.append(`mask_image:${output}`, await board.png(area), `${output}.png`);
  }
  return data;
}

/** Show an error of the API at the field that it begins with, or at the top. */
function showRefusal(message) {
  const start = message.slice(0, 60).toLowerCase();
  const named = $$("[data-field]", form)
    .filter((field) => !field.closest("[hidden]"))
    .map((field) => ({
      field,
      at: start.search(new RegExp(`(^|[^\\w:])${field.dataset.field.replace(/\W/g, "\\$&")}([^\\w:]|$)`)),
    }))
    .filter(({ at }) => at >= 0)
    .sort((a, b) => a.at - b.at);
  if (named.length) fieldProblem(named[0].field, message);
  else problem(message);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  problem("");
  for (const field of $$("[data-field]", form)) fieldProblem(field, "");
  const submit = $("[type=submit]", form);
  submit.setAttribute("aria-busy", "true");
  submit.disabled = true;
  try {
    const data = await body();
    if (data === null) return;
    const { id } = await api("/api/generations", { method: "POST", body: data });
    location.assign(`/generations/${id}`);
  } catch (error) {
    submit.disabled = false; // so that the focus can be moved
    showRefusal(error.message);
  } finally {
    submit.removeAttribute("aria-busy");
    submit.disabled = false;
  }
});

/** A file of an earlier request, as it was sent in this form field. */
async function fileOf(id, field) {
  const blob = await api(`/api/generations/${id}/files/${encodeURIComponent(field)}`, { as: "blob" });
  return new File([blob], field, { type: blob.type });
}

/** Fill in what an earlier request was given; returns the names of what the form cannot show. */
async function refillInputs(id, inputs) {
  const { elements } = form;
  const known = ["report", "severity", "demographics", "mask", "boxes", ...VIEWS];
  const left = Object.keys(inputs).filter((name) => !known.includes(name));
  elements.report.value = inputs.report?.value ?? "";
  elements.severity.value = inputs.severity?.value ?? "";
  const people = inputs.demographics?.value ?? {};
  elements.sex.value = people.sex ?? "";
  elements.age.value = people.age ?? "";
  if (typeof people === "string" || people.race) left.push("demographics");
  for (const view of VIEWS) if (inputs[view]) await pictures.get(view).set(await fileOf(id, view));
  for (const name of ["mask", "boxes"])
    if (inputs[name]?.file && !inputs[name].structures) setFile(elements[name], await fileOf(id, name));
  for (const structure of inputs.mask?.structures ?? []) {
    if (!(await annotations.board.load(structure, await fileOf(id, `mask:${structure}`))))
      left.push(`mask of ${structure}`);
  }
  annotations.setBoxes(inputs.boxes?.value);
  annotations.root.open = annotations.given.mask || annotations.given.boxes;
  return left;
}

/** Pictures that an earlier request started from, and the areas that could change. */
async function refillStarts(id, { image, mask_image: areas }) {
  const left = image.filter((output) => !VIEWS.includes(output)).map((output) => `start of ${output}`);
  for (const output of image.filter((name) => VIEWS.includes(name))) {
    await starts.get(output).set(await fileOf(id, `image:${output}`));
    if (!areas.includes(output)) continue;
    const { board, root } = edits.get(output);
    if (!(await board.load("edit", await fileOf(id, `mask_image:${output}`)))) left.push(`area of ${output}`);
    root.open = true;
  }
  return left;
}

/** Fill the form with an earlier request: `?again=ID`, or `?edit=ID&output=frontal&index=0` to start from a sample. */
async function refill(query) {
  const id = query.get("again") ?? query.get("edit");
  if (!id) return;
  const generation = await api(`/api/generations/${encodeURIComponent(id)}`);
  const { inputs, outputs, options: used, model } = generation.request;
  const offered = checkpoints.some((one) => one.name === model);
  if (offered) form.elements.model.value = model;
  checkpointChanged();
  options.fill({ ...used, seed: generation.seed });
  const left = offered ? [] : [`model ${model}`];
  left.push(...(await refillInputs(id, inputs)));
  const output = query.get("output");
  for (const box of $$("#outputs input")) box.checked = output ? box.value === output : outputs.includes(box.value);
  if (output) {
    const sample = await api(sampleUrl(id, output, Number(query.get("index")), "png"), { as: "blob" });
    await starts.get(output).set(new File([sample], `${output}.png`, { type: sample.type }));
  } else left.push(...(await refillStarts(id, generation.request)));
  $("#start").open = [...starts.values()].some((picture) => picture.file);
  update();
  if (left.length) problem(`Not taken over from the earlier request: ${left.join(", ")}.`);
}

$("#example").addEventListener("change", (event) => {
  if (event.target.value) form.elements.report.value = event.target.value;
  update();
});
form.elements.model.addEventListener("change", checkpointChanged);
for (const event of ["input", "change"]) {
  form.addEventListener(event, ({ target }) => {
    if (target.name && target.name !== "model" && checkpoints.length) update();
  });
}
// A file dropped beside a place for pictures must not replace the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

await shown(async () => {
  const [models, known] = await Promise.all([api("/api/checkpoints"), api("/api/options")]);
  checkpoints = models.checkpoints;
  options = new Options(known.options);
  form.elements.model.replaceChildren(...checkpoints.map(({ name }) => option(name)));
  build();
  checkpointChanged();
  await refill(new URLSearchParams(location.search));
});
form.removeAttribute("aria-busy");
