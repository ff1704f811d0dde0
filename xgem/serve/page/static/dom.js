/* Elements of the page. */

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with properties (names with a hyphen are attributes) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** The content of a <template>. */
export const fromTemplate = (id) => $(`template#${id}`).content.cloneNode(true);

export const option = (value, text = value) => make("option", { value, textContent: text });

export const button = (text, act) => {
  const element = make("button", { type: "button", className: "secondary", textContent: text });
  element.addEventListener("click", act);
  return element;
};

export const title = (name) => {
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
};

/** A message at the top of the page; the empty text removes it. */
export function problem(text) {
  const place = $("#problem");
  place.textContent = text;
  if (text) place.focus();
}

/** Run what may fail, and show why it did. */
export async function shown(act) {
  try {
    return await act();
  } catch (error) {
    problem(error.message);
    return undefined;
  }
}

let numbered = 0;

/** A message at a field; the empty text removes it. */
export function fieldProblem(field, text) {
  const control = field.matches("input, select, textarea") ? field : ($("input, select, textarea", field) ?? field);
  let place = field.errorPlace;
  if (!place && !text) return;
  if (!place) {
    place = make("small", { className: "error", id: `error-${(numbered += 1)}` });
    place.setAttribute("role", "alert");
    field.errorPlace = place;
    (control.closest("label") ?? control).after(place);
  }
  place.textContent = text;
  if (text) {
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-errormessage", place.id);
    for (let box = control.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    (field.matches("fieldset") ? field : control).focus();
  } else {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-errormessage");
  }
}

/** Ask whether to delete, in the page's dialog. */
export function confirmDelete() {
  const dialog = $("#delete");
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "delete"), { once: true });
  });
}

/** Put a file into a file input; null takes it away. */
export function setFile(input, file) {
  const files = new DataTransfer();
  if (file) files.items.add(file);
  input.files = files.files;
}
