// An item's page: keys choose and confirm, pictures zoom, and one window is for all of them.
"use strict";

const form = document.getElementById("answer");
const atOnce = { animate: false }; // a picture that is still moving is measured wrongly
const views = Array.from(document.querySelectorAll(".frame img"), (image) => {
  const view = Panzoom(image, { maxScale: 10, minScale: 1, contain: "outside", panOnlyWhenZoomed: true, touchAction: "pan-y" });
  image.parentElement.addEventListener("wheel", view.zoomWithWheel, { passive: false });
  image.addEventListener("panzoomchange", (event) => {
    image.style.touchAction = event.detail.scale > 1 ? "none" : "pan-y"; // a phone's page scrolls until a picture is zoomed
  });
  return view;
});

const level = document.getElementById("level");
const width = document.getElementById("width");

function applyWindow() {
  const slope = 100 / width.value;
  const intercept = 0.5 - (slope * level.value) / 100;
  for (const channel of document.querySelectorAll("#window feFuncR, #window feFuncG, #window feFuncB")) {
    channel.setAttribute("slope", slope);
    channel.setAttribute("intercept", intercept);
  }
}

for (const slider of [level, width]) slider?.addEventListener("input", applyWindow);

const actions = {
  Enter: () => form.requestSubmit(),
  b: () => document.getElementById("back")?.click(),
  "+": () => views.forEach((view) => view.zoomIn(atOnce)),
  "-": () => views.forEach((view) => view.zoomOut(atOnce)),
  0: () => {
    views.forEach((view) => view.reset(atOnce));
    if (level) {
      level.value = 50;
      width.value = 100;
      applyWindow();
    }
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const choice = form.querySelector(`input[data-key="${CSS.escape(event.key)}"]`);
  if (choice) {
    choice.checked = true;
    choice.focus();
  } else if (event.key in actions && !(event.key === "Enter" && event.target.closest("a, button, summary"))) {
    actions[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});

let sent = false; // a second Enter is not a second answer
form.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => {
  sent = false;
});
