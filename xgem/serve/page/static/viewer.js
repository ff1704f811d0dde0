/* A picture with window and level, zoom and pan. */

import { $, make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WHOLE = { width: 256, level: 128, invert: false };
const PAN = 40;

/** DICOM's linear function (PS3.3, C.11.2.1.2.1) on grey levels 0 to 255, as slope and intercept on [0, 1]. */
export function linear({ width, level, invert }) {
  const slope = 255 / (width - 1);
  const intercept = 0.5 - (level - 0.5) / (width - 1);
  return invert ? { slope: -slope, intercept: 1 - intercept } : { slope, intercept };
}

class Viewer {
  constructor(figure, image, number, viewers) {
    Object.assign(this, { figure, image, viewers, window: { ...WHOLE } });
    this.frame = image.parentElement;
    this.functions = this.#filter(number);
    image.style.filter = `url(#window-${number})`;
    this.zoom = window.Panzoom(image, { maxScale: 16, minScale: 1, animate: false, noBind: true });
    this.#listen();
    this.show();
  }

  #filter(number) {
    const element = (name, attributes, ...children) => {
      const made = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      made.append(...children);
      return made;
    };
    const functions = ["feFuncR", "feFuncG", "feFuncB"].map((name) => element(name, { type: "linear" }));
    $("#filters").append(
      element(
        "filter",
        { id: `window-${number}`, "color-interpolation-filters": "sRGB", x: 0, y: 0, width: 1, height: 1 },
        element("feComponentTransfer", {}, ...functions),
      ),
    );
    return functions;
  }

  show() {
    const { slope, intercept } = linear(this.window);
    for (const part of this.functions) {
      part.setAttribute("slope", slope);
      part.setAttribute("intercept", intercept);
    }
  }

  place() {
    return { scale: this.zoom.getScale(), ...this.zoom.getPan() };
  }

  moveTo({ scale, x, y }) {
    this.zoom.zoom(scale, { animate: false, silent: true, force: true });
    this.zoom.pan(x, y, { animate: false, silent: true, force: true });
  }

  #listen() {
    const { frame, viewers } = this;
    let from = null; // of a drag that sets the window
    frame.addEventListener("contextmenu", (event) => event.preventDefault());
    frame.addEventListener("focus", () => viewers.activate(this));
    frame.addEventListener("pointerdown", (event) => {
      frame.focus({ preventScroll: true });
      viewers.activate(this);
      if (event.button === 2 || event.shiftKey) {
        event.preventDefault();
        from = { x: event.clientX, y: event.clientY, ...this.window };
      } else if (event.button === 0) this.zoom.handleDown(event);
      frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener("pointermove", (event) => {
      if (from) {
        viewers.setWindow({ width: from.width + event.clientX - from.x, level: from.level + event.clientY - from.y });
      } else this.zoom.handleMove(event);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      frame.addEventListener(name, (event) => {
        from = null;
        this.zoom.handleUp(event);
      });
    }
    frame.addEventListener(
      "wheel",
      (event) => {
        if (document.activeElement === frame || event.ctrlKey) this.zoom.zoomWithWheel(event);
      },
      { passive: false },
    );
    this.image.addEventListener("panzoomchange", () => viewers.moved(this));
    frame.addEventListener("keydown", (event) => {
      const { width, level } = this.window;
      const act = {
        "+": () => viewers.zoomIn(),
        "=": () => viewers.zoomIn(),
        "-": () => viewers.zoomOut(),
        w: () => viewers.setWindow({ width: width - 8 }),
        W: () => viewers.setWindow({ width: width + 8 }),
        l: () => viewers.setWindow({ level: level - 4 }),
        L: () => viewers.setWindow({ level: level + 4 }),
        i: () => viewers.invert(),
        r: () => viewers.reset(),
        ArrowLeft: () => viewers.pan(-PAN, 0),
        ArrowRight: () => viewers.pan(PAN, 0),
        ArrowUp: () => viewers.pan(0, -PAN),
        ArrowDown: () => viewers.pan(0, PAN),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });
  }
}

/** All pictures of a page with their tools, a form; what is done to one is done to all while they are linked. */
export class Viewers {
  constructor(tools) {
    this.all = [];
    this.tools = tools;
    const { elements } = tools;
    for (const name of ["width", "level"]) {
      elements[name].addEventListener("input", () => this.setWindow({ [name]: elements[name].valueAsNumber }));
    }
    elements["zoom-in"].addEventListener("click", () => this.zoomIn());
    elements["zoom-out"].addEventListener("click", () => this.zoomOut());
    elements.invert.addEventListener("click", () => this.invert());
    elements.reset.addEventListener("click", () => this.reset());
    elements.linked.addEventListener("change", () => this.active && this.setWindow({}) && this.moved(this.active));
    tools.addEventListener("submit", (event) => event.preventDefault());
  }

  /** A frame for a picture at `url`, described by `alt`; put it into the page, then call `start`. */
  add(figure, url, alt) {
    const image = make("img", { src: url, alt, draggable: false });
    const frame = make("div", {
      className: "frame",
      tabIndex: 0,
      "aria-label": `${alt}; keys are listed under Keys and pointer`,
    });
    frame.setAttribute("role", "group");
    frame.append(image);
    figure.append(frame);
    return { start: () => this.all.push(new Viewer(figure, image, this.all.length, this)) };
  }

  get linked() {
    return this.tools.elements.linked.checked;
  }

  get targets() {
    return this.linked ? this.all : this.all.filter((one) => one === this.active);
  }

  activate(viewer) {
    this.active = viewer;
    for (const one of this.all) one.figure.classList.toggle("active", one === viewer);
    this.#showTools();
  }

  setWindow(changes) {
    const wanted = { ...this.active.window, ...changes };
    wanted.width = Math.min(Math.max(Math.round(wanted.width), 2), 512);
    wanted.level = Math.min(Math.max(Math.round(wanted.level), 0), 255);
    for (const one of this.targets) {
      one.window = { ...wanted };
      one.show();
    }
    this.#showTools();
    return true;
  }

  #showTools() {
    const { window: shown } = this.active;
    for (const name of ["width", "level"]) {
      const input = this.tools.elements[name];
      input.value = shown[name];
      $("span", input.parentElement).textContent = shown[name];
    }
    this.tools.elements.invert.setAttribute("aria-pressed", String(shown.invert));
  }

  invert() {
    this.setWindow({ invert: !this.active.window.invert });
  }

  zoomIn() {
    this.active.zoom.zoomIn({ animate: false });
  }

  zoomOut() {
    this.active.zoom.zoomOut({ animate: false });
  }

  pan(x, y) {
    const scale = this.active.zoom.getScale();
    this.active.zoom.pan(x / scale, y / scale, { relative: true });
  }

  reset() {
    this.setWindow(WHOLE);
    this.active.moveTo({ scale: 1, x: 0, y: 0 });
    this.moved(this.active);
  }

  /** The others follow one that was moved. */
  moved(viewer) {
    const place = viewer.place();
    for (const one of this.targets) if (one !== viewer) one.moveTo(place);
  }
}
