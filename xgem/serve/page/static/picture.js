/* A place for a picture: choose or drop a file, and see it as the model will. */

import { api } from "./api.js";
import { $, fieldProblem, fromTemplate, setFile } from "./dom.js";

export class Picture {
  /**
   * `name`: of the field that is sent, or "" if none is. `view`: frontal or lateral. `settings()`: model and reading.
   * `changed()` is called after each change.
   */
  constructor(place, name, view, label, settings, changed = () => {}) {
    Object.assign(this, { name, view, settings, changed, levels: null });
    place.append(fromTemplate("picture"));
    this.root = place.lastElementChild;
    this.input = $("input", this.root);
    this.figure = $("figure", this.root);
    $(".name", this.root).textContent = label;
    if (name) this.input.dataset.field = name;
    $("img", this.figure).alt = `${label}, as the model sees it`;
    this.input.addEventListener("change", () => this.#show());
    $("button", this.figure).addEventListener("click", () => this.set(null));
    $("button", this.figure).setAttribute("aria-label", `Remove ${label}`);
    this.root.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.root.classList.add("over");
    });
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.root.classList.remove("over");
      if (event.dataTransfer.files.length) this.set(event.dataTransfer.files[0]);
    });
  }

  get file() {
    return this.input.files[0] ?? null;
  }

  /** Put a file here, or with null take it away. */
  set(file) {
    setFile(this.input, file);
    return this.#show();
  }

  /** Read it again: for another model, or with other options. */
  refresh() {
    return this.file ? this.#show() : undefined;
  }

  async #show() {
    const file = this.file;
    fieldProblem(this.input, "");
    this.figure.hidden = true;
    this.levels = null;
    if (file) await this.#preview(file);
    if (file === this.file) this.changed();
  }

  async #preview(file) {
    const { model, reading } = this.settings();
    const body = new FormData();
    body.append("file", file);
    body.append("view", this.view);
    body.append("model", model);
    body.append("reading", JSON.stringify(reading));
    try {
      const seen = await api("/page/picture", { method: "POST", body, as: "blob" });
      if (file !== this.file) return; // another one was chosen meanwhile
      const image = $("img", this.figure);
      URL.revokeObjectURL(image.src);
      image.src = URL.createObjectURL(seen);
      this.levels = await levelsOf(seen);
      $("output", this.figure).textContent = file.name;
      this.figure.hidden = false;
    } catch (error) {
      if (file === this.file) fieldProblem(this.input, error.message);
    }
  }
}

/** Grey levels of a square picture, row by row. */
export async function levelsOf(blob) {
  const image = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height).data.filter((_, index) => index % 4 === 0);
}
