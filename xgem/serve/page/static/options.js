/* Options of a request as form controls, from what the API says of each. */

import { $, fieldProblem, make, option, title } from "./dom.js";

// Shown first, with shorter names
const NAMES = {
  seed: "Seed",
  num_samples: "Samples",
  num_inference_steps: "Steps",
  guidance_scale: "Guidance",
  sampler: "Sampler",
  joint: "Several outputs jointly",
};
const COMMON = Object.keys(NAMES);
const PER_OUTPUT = ["guidance_scale"]; // one number, or one for each output: lateral=2,report=1.5

function control(about) {
  const { default: normal, limits, unset } = about;
  const type = PER_OUTPUT.includes(about.name) ? "text" : about.type;
  const name = `option:${about.name}`;
  if (type === "choice" || (type === "boolean" && normal === null)) {
    const choices =
      type === "choice"
        ? about.choices.map((choice) => [choice, choice])
        : [
            ["true", "Yes"],
            ["false", "No"],
          ];
    const select = make("select", { name });
    if (normal === null) select.append(option("", unset ? title(unset) : "Not set"));
    select.append(...choices.map(([value, text]) => option(value, title(text))));
    select.value = normal ?? "";
    return select;
  }
  if (type === "boolean") return make("input", { type: "checkbox", name, checked: normal });
  const input = make("input", {
    name,
    type: type === "text" ? "text" : "number",
    placeholder: String(normal ?? unset ?? ""),
  });
  if (type !== "text") input.step = type === "integer" ? "1" : "any";
  if (limits?.low !== undefined && limits.low !== null) input.min = limits.low;
  if (limits?.high !== undefined && limits.high !== null) input.max = limits.high;
  return input;
}

function parsed(type, text) {
  if (text === "") return "";
  if (type === "boolean") return text === "true";
  return type === "integer" || type === "number" ? Number(text) : text;
}

/** Numbers by output from "lateral=2,report=1.5"; null if it is not that. */
function perOutput(text) {
  const pairs = text.split(",").map((part) => part.split("=").map((side) => side.trim()));
  const good = pairs.every((pair) => pair.length === 2 && pair[0] && pair[1] && !Number.isNaN(Number(pair[1])));
  return good ? Object.fromEntries(pairs.map(([name, number]) => [name, Number(number)])) : null;
}

export class Options {
  constructor(known) {
    this.known = known;
    const order = (about) => (COMMON.includes(about.name) ? COMMON.indexOf(about.name) : COMMON.length);
    for (const about of [...this.known].sort((a, b) => order(a) - order(b))) {
      const field = control(about);
      field.dataset.field = about.name;
      const help = make("small", { id: `help-${about.name}`, textContent: about.help });
      field.setAttribute("aria-describedby", help.id);
      const text = NAMES[about.name] ?? title(about.name);
      const label = make("label", {}, ...(field.type === "checkbox" ? [field, ` ${text}`] : [text, field]));
      this.place(about.name).append(make("div", {}, label, help));
    }
  }

  place(name) {
    if (name === "strength") return $("#strength");
    return COMMON.includes(name) ? $("#options") : $("#more-options");
  }

  control(name) {
    return $(`[name="option:${name}"]`);
  }

  /** The options that differ from their defaults; null where a number is malformed, which its field then says. */
  values({ started }) {
    const values = {};
    for (const { name, type, default: normal } of this.known) {
      const field = this.control(name);
      if (field.validity.badInput) {
        fieldProblem(field, "Not a number.");
        return null;
      }
      if (name === "strength" && !started) continue;
      const text = field.value.trim();
      const value =
        field.type === "checkbox" ? field.checked : text.includes("=") ? perOutput(text) : parsed(type, text);
      if (Number.isNaN(value) || value === null) {
        fieldProblem(field, "Not a number.");
        return null;
      }
      if (value !== "" && value !== normal) values[name] = value;
    }
    return values;
  }

  fill(values) {
    for (const { name, default: normal } of this.known) {
      const value = values[name] ?? normal;
      const field = this.control(name);
      if (field.type === "checkbox") field.checked = value;
      else if (value === null || (value === normal && field.localName === "input")) field.value = "";
      else
        field.value =
          typeof value === "object"
            ? Object.entries(value)
                .map((pair) => pair.join("="))
                .join(",")
            : String(value);
    }
  }

  /** How pictures are to be read, as far as set. */
  reading() {
    const values = this.values({ started: false }) ?? {};
    const names = ["voi", "rescale", "invert", "allow_any"];
    return Object.fromEntries(Object.entries(values).filter(([name]) => names.includes(name)));
  }
}
