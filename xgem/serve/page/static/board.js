/* A canvas of the model's grid on which areas are painted and boxes are drawn, with the pointer or the keyboard. */

import { $, fromTemplate, make } from "./dom.js";
import { levelsOf } from "./picture.js";

const COLOURS = [
  [255, 99, 71],
  [65, 156, 255],
  [255, 200, 40],
  [50, 205, 120],
  [200, 110, 255],
  [255, 140, 200],
  [0, 210, 210],
  [170, 220, 60],
  [255, 160, 90],
  [150, 150, 255],
];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const UNDO = 30;
const OPACITY = 0.45;

/** The colour of the layer or class with this number, as red, green and blue. */
export const colour = (number) => COLOURS[number % COLOURS.length];

export class Board {
  /** `tools`: from name to label; `layer`: the name of the layer to paint; `changed()` is called after each change. */
  constructor(place, { label, tools, layer, changed = () => {} }) {
    place.append(fromTemplate("board"));
    Object.assign(this, {
      changed,
      layer,
      size: 256,
      under: null,
      layers: new Map(),
      order: [layer],
      boxes: [],
      undone: [],
    });
    this.boxClass = "";
    this.canvas = $("canvas", place);
    this.where = $(".where", place);
    this.brush = $(".brush", place);
    this.canvas.setAttribute("aria-label", label);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    const group = `tool-${label}`;
    for (const [value, text] of Object.entries(tools)) {
      const input = make("input", { type: "radio", name: group, value, checked: !this.tool });
      this.tool ??= value;
      input.addEventListener("change", () => (this.tool = value));
      $("fieldset", place).append(make("label", {}, input, ` ${text}`));
    }
    const size = () => ($(".size", place).textContent = `${this.brush.value} pixels`);
    this.brush.addEventListener("input", () => [size(), this.draw()]);
    size();
    $(".undo", place).addEventListener("click", () => this.undo());
    $(".clear", place).addEventListener("click", () => this.clear());
    this.#listen();
    this.resize(this.size);
  }

  /** Another grid: everything that was drawn is removed. */
  resize(size) {
    this.size = this.canvas.width = this.canvas.height = size;
    this.cursor = { x: size / 2, y: size / 2 };
    this.layers.clear();
    this.boxes = [];
    this.undone = [];
    this.under = null;
    this.draw();
    this.changed();
  }

  /** Grey levels to draw on (size * size), or null. */
  setUnder(levels) {
    this.under = levels?.length === this.size ** 2 ? levels : null;
    this.draw();
  }

  #remember() {
    const layers = [...this.layers].map(([name, data]) => [name, data.slice()]);
    this.undone.push({ layers, boxes: this.boxes.map((box) => ({ ...box })) });
    if (this.undone.length > UNDO) this.undone.shift();
  }

  undo() {
    const before = this.undone.pop();
    if (!before) return;
    this.layers = new Map(before.layers);
    this.boxes = before.boxes;
    this.draw();
    this.changed();
  }

  clear() {
    this.#remember();
    this.layers.clear();
    this.boxes = [];
    this.draw();
    this.changed();
  }

  remove(name) {
    this.#remember();
    this.layers.delete(name);
    this.draw();
    this.changed();
  }

  addBox(box) {
    this.#remember();
    this.boxes.push(box);
    this.draw();
    this.changed();
  }

  removeBox(index) {
    this.#remember();
    this.boxes.splice(index, 1);
    this.draw();
    this.changed();
  }

  /** Take a layer from a picture of the grid, black where it is not painted; whether it was one. */
  async load(name, blob) {
    const levels = await levelsOf(blob).catch(() => []);
    if (levels.length !== this.size ** 2) return false;
    this.layers.set(
      name,
      levels.map((level) => (level ? 1 : 0)),
    );
    this.draw();
    this.changed();
    return true;
  }

  /** Layers that are not empty, from name to data. */
  painted() {
    return new Map([...this.layers].filter(([, data]) => data.includes(1)));
  }

  /** Every pixel whose centre is within the brush, at each half pixel from one point to another. */
  #stroke(from, to) {
    if (!this.layers.has(this.layer)) this.layers.set(this.layer, new Uint8Array(this.size ** 2));
    const data = this.layers.get(this.layer);
    const value = this.tool === "eraser" ? 0 : 1;
    const radius = Number(this.brush.value) / 2;
    const count = Math.max(1, Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)));
    for (let step = 0; step <= count; step += 1) {
      const x = from.x + ((to.x - from.x) * step) / count;
      const y = from.y + ((to.y - from.y) * step) / count;
      for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(this.size - 1, y + radius); row += 1) {
        for (
          let column = Math.max(0, Math.floor(x - radius));
          column <= Math.min(this.size - 1, x + radius);
          column += 1
        ) {
          if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2) data[row * this.size + column] = value;
        }
      }
    }
    this.draw();
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.size / this.canvas.clientWidth;
    const limited = (value) => Math.min(Math.max(value, 0), this.size);
    return {
      x: limited((event.clientX - box.left - this.canvas.clientLeft) * scale),
      y: limited((event.clientY - box.top - this.canvas.clientTop) * scale),
    };
  }

  #listen() {
    const { canvas } = this;
    let start = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.#remember();
      start = this.cursor = this.#at(event);
      if (this.tool !== "box") this.#stroke(start, start);
    });
    canvas.addEventListener("pointermove", (event) => {
      const point = this.#at(event);
      if (start && this.tool === "box") this.drag = this.#boxOf(start, point);
      else if (start) this.#stroke(this.cursor, point);
      this.cursor = point;
      this.draw();
    });
    const end = (event) => {
      if (!start) return;
      const point = this.#at(event);
      if (this.tool === "box" && this.drag && point.x !== start.x && point.y !== start.y) this.boxes.push(this.drag);
      start = this.drag = null;
      this.draw();
      this.changed();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", (event) => {
      if (event.key === " ") this.#release();
    });
    canvas.addEventListener("blur", () => this.#release());
    canvas.addEventListener("focus", () => this.draw());
  }

  #key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      this.undo();
    } else if (event.key === " ") {
      event.preventDefault();
      if (event.repeat) return;
      this.#remember();
      this.held = { ...this.cursor };
      if (this.tool !== "box") this.#stroke(this.cursor, this.cursor);
    } else if (event.key in STEPS) {
      event.preventDefault();
      const [right, down] = STEPS[event.key].map((step) => step * (event.shiftKey ? 8 : 1));
      const limited = (value) => Math.min(Math.max(value, 0), this.size);
      const next = { x: limited(this.cursor.x + right), y: limited(this.cursor.y + down) };
      if (this.held && this.tool === "box") this.drag = this.#boxOf(this.held, next);
      else if (this.held) this.#stroke(this.cursor, next);
      this.cursor = next;
      this.where.textContent = `Column ${Math.round(next.x)}, row ${Math.round(next.y)}`;
      this.draw();
    }
  }

  #release() {
    if (this.held && this.drag && this.drag.w > 0 && this.drag.h > 0) this.boxes.push(this.drag);
    if (this.held) this.changed();
    this.held = this.drag = null;
    this.draw();
  }

  /** The box between two points, in fractions of the picture to a thousandth. */
  #boxOf(a, b) {
    const part = (pixels) => Math.round((1000 * pixels) / this.size) / 1000;
    const [x, y] = [part(Math.min(a.x, b.x)), part(Math.min(a.y, b.y))];
    const [right, bottom] = [part(Math.max(a.x, b.x)), part(Math.max(a.y, b.y))];
    return { label: this.boxClass, x, y, w: part((right - x) * this.size), h: part((bottom - y) * this.size) };
  }

  draw() {
    const { size, context } = this;
    const image = context.createImageData(size, size);
    const pixels = image.data;
    for (let index = 0; index < size ** 2; index += 1) {
      pixels.fill(this.under ? this.under[index] : 0, 4 * index, 4 * index + 3);
      pixels[4 * index + 3] = 255;
    }
    for (const [name, data] of this.layers) {
      const shade = colour(this.order.indexOf(name));
      for (let index = 0; index < data.length; index += 1) {
        if (!data[index]) continue;
        for (let channel = 0; channel < 3; channel += 1) {
          const at = 4 * index + channel;
          pixels[at] = (1 - OPACITY) * pixels[at] + OPACITY * shade[channel];
        }
      }
    }
    context.putImageData(image, 0, 0);
    context.lineWidth = Math.max(1, size / 256);
    for (const box of this.drag ? [...this.boxes, this.drag] : this.boxes) {
      context.strokeStyle = `rgb(${colour(this.classes?.indexOf(box.label) ?? 0)})`;
      context.strokeRect(box.x * size, box.y * size, box.w * size, box.h * size);
    }
    if (document.activeElement === this.canvas || this.canvas.matches(":hover")) {
      context.strokeStyle = "white";
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, this.tool === "box" ? 2 : Number(this.brush.value) / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** A layer as a PNG of the grid: 255 where it is painted, else 0. */
  async png(data) {
    const canvas = new OffscreenCanvas(this.size, this.size);
    const context = canvas.getContext("2d", { alpha: false });
    const image = context.createImageData(this.size, this.size);
    image.data.fill(255);
    for (let index = 0; index < data.length; index += 1) {
      if (!data[index]) image.data.fill(0, 4 * index, 4 * index + 3);
    }
    context.putImageData(image, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }
}
