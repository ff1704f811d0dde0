/* Masks and boxes: the board, the list of what was drawn, number fields of boxes. */

import { Board, colour } from "./board.js";
import { $, button, make, option, title } from "./dom.js";

const SIDES = { x: "Left", y: "Top", w: "Width", h: "Height" };

export class Annotations {
  constructor() {
    this.root = $("#annotations");
    this.board = new Board($(".board", this.root), {
      label: "Masks and boxes",
      tools: { brush: "Brush", eraser: "Eraser", box: "Box" },
      layer: "",
      changed: () => this.#list(),
    });
    this.structure = $("#structure");
    this.structure.addEventListener("change", () => (this.board.layer = this.structure.value));
    this.boxClass = $("#box-class");
    this.boxClass.addEventListener("change", () => (this.board.boxClass = this.boxClass.value));
    $("#add-box").addEventListener("click", () => {
      this.board.addBox({ label: this.boxClass.value, x: 0.1, y: 0.4, w: 0.25, h: 0.25 });
      $("#boxes li:last-child input").focus();
    });
  }

  /** For a checkpoint: its grid and names. What was drawn is kept where the new one knows it. */
  setCheckpoint({ size, structures = [], box_classes: classes = [], inputs }) {
    const { board } = this;
    if (size !== board.size) board.resize(size);
    for (const [select, names] of [
      [this.structure, structures],
      [this.boxClass, classes],
    ]) {
      const chosen = select.value;
      select.replaceChildren(...names.map((name) => option(name, title(name))));
      if (names.includes(chosen)) select.value = chosen;
    }
    for (const name of board.layers.keys()) if (!structures.includes(name)) board.layers.delete(name);
    board.boxes = board.boxes.filter((box) => classes.includes(box.label));
    Object.assign(board, { order: structures, classes, layer: this.structure.value, boxClass: this.boxClass.value });
    this.root.hidden = !inputs.includes("mask") && !inputs.includes("boxes");
    board.draw();
    this.#list();
  }

  #list() {
    if (!this.board) return; // the board is being made
    const { board } = this;
    const masks = [...board.painted()].map(([name, data]) => {
      const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
      swatch.style.backgroundColor = `rgb(${colour(board.order.indexOf(name))})`;
      const remove = button("Remove", () => board.remove(name));
      remove.setAttribute("aria-label", `Remove ${name}`);
      return make("li", {}, swatch, `${title(name)}, ${data.reduce((sum, value) => sum + value, 0)} pixels `, remove);
    });
    $("#drawn").replaceChildren(...masks);
    $("#boxes").replaceChildren(...board.boxes.map((box, index) => this.#boxFields(box, index)));
  }

  #boxFields(box, index) {
    const fields = Object.entries(SIDES).map(([side, text]) => {
      const input = make("input", { type: "number", min: "0", max: "1", step: "0.001", value: box[side] });
      input.addEventListener("input", () => {
        box[side] = input.valueAsNumber;
        this.board.draw();
      });
      return make("label", {}, text, input);
    });
    const remove = button("Remove", () => this.board.removeBox(index));
    remove.setAttribute("aria-label", `Remove box ${index + 1}`);
    return make(
      "li",
      {},
      `Box ${index + 1}: ${title(box.label)}, in fractions of the picture`,
      make("div", { className: "sides" }, ...fields),
      remove,
    );
  }

  /** The boxes as COCO, which says that they are in pixels of the model's grid, whatever an output starts from. */
  get boxes() {
    const { size, boxes, classes } = this.board;
    return {
      images: [{ id: 1, width: size, height: size }],
      annotations: boxes.map(({ label, x, y, w, h }, index) => ({
        id: index + 1,
        image_id: 1,
        category_id: classes.indexOf(label) + 1,
        bbox: [x, y, w, h].map((side) => side * size),
      })),
      categories: classes.map((name, index) => ({ id: index + 1, name })),
    };
  }

  async append(body) {
    for (const [name, data] of this.board.painted())
      body.append(`mask:${name}`, await this.board.png(data), `${name}.png`);
  }

  /** Boxes of an earlier request; `value`: a list in fractions of the picture, or COCO. */
  setBoxes(value) {
    this.board.boxes = boxesOf(value);
    this.board.draw();
    this.#list();
  }

  /** Whether anything is given, drawn or as a file. */
  get given() {
    const file = (name) => $(`[name=${name}]`, this.root).files.length > 0;
    return { mask: this.board.painted().size > 0 || file("mask"), boxes: this.board.boxes.length > 0 || file("boxes") };
  }
}

function boxesOf(value) {
  if (Array.isArray(value)) return value.map(({ label, bbox: [x, y, w, h] }) => ({ label, x, y, w, h }));
  if (!value?.annotations) return [];
  const [{ width, height }] = value.images;
  return value.annotations.map(({ category_id: kind, bbox: [x, y, w, h] }) => ({
    label: value.categories.find(({ id }) => id === kind).name,
    x: x / width,
    y: y / height,
    w: w / width,
    h: h / height,
  }));
}
