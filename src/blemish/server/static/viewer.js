// A picture that can be looked into: its overlay fades, and it zooms by changing what part of it the view box shows.
const FADE = "fade";

function whole(stage) {
  const image = stage.querySelector("image");
  return { x: 0, y: 0, width: +image.getAttribute("width"), height: +image.getAttribute("height") };
}

function show(stage, box) {
  const all = whole(stage);
  const width = Math.min(all.width, Math.max(all.width / 40, box.width));
  const height = (width * all.height) / all.width;
  const x = Math.min(all.width - width, Math.max(0, box.x));
  const y = Math.min(all.height - height, Math.max(0, box.y));
  stage.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
  stage.classList.toggle("zoomed", width < all.width);
}

const seen = (stage) => stage.viewBox.baseVal;

// The point of the picture under the pointer.
function point(stage, event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
}

function zoom(stage, factor, centre) {
  const box = seen(stage);
  const { x, y } = centre || { x: box.x + box.width / 2, y: box.y + box.height / 2 };
  show(stage, { x: x - (x - box.x) / factor, y: y - (y - box.y) / factor, width: box.width / factor });
}

function fade(value) {
  document.querySelectorAll(".fades").forEach((layer) => layer.setAttribute("opacity", value / 100));
}

function watch(stage) {
  let held = null;
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !stage.classList.contains("zoomed")) return; // the page scrolls
    event.preventDefault();
    zoom(stage, event.deltaY < 0 ? 1.25 : 0.8, point(stage, event));
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => zoom(stage, 2, point(stage, event)));
  stage.addEventListener("pointerdown", (event) => {
    if (!stage.classList.contains("zoomed")) return;
    held = point(stage, event);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held) return;
    const at = point(stage, event);
    const box = seen(stage);
    show(stage, { x: box.x + held.x - at.x, y: box.y + held.y - at.y, width: box.width });
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (held = null));
  stage.addEventListener("keydown", (event) => {
    const box = seen(stage);
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "+" || event.key === "=") zoom(stage, 1.5);
    else if (event.key === "-") zoom(stage, 1 / 1.5);
    else if (event.key === "0") show(stage, whole(stage));
    else if (steps[event.key] && stage.classList.contains("zoomed")) {
      const [right, down] = steps[event.key];
      show(stage, { x: box.x + (right * box.width) / 8, y: box.y + (down * box.height) / 8, width: box.width });
    } else return;
    event.preventDefault();
    event.stopPropagation(); // 0 to 9 may mean kinds of defects
  });
}

// Make every picture that is new on the page one that can be looked into.
export function watchStages() {
  document.querySelectorAll(".stage:not([data-watched])").forEach((stage) => {
    stage.dataset.watched = "";
    watch(stage);
    const slider = document.getElementById(FADE);
    slider.value = sessionStorage.getItem(FADE) ?? 100;
    fade(slider.value);
    slider.addEventListener("input", () => {
      sessionStorage.setItem(FADE, slider.value);
      fade(slider.value);
    });
    document.querySelectorAll("[data-zoom]").forEach((button) =>
      button.addEventListener("click", () => (+button.dataset.zoom ? zoom(stage, +button.dataset.zoom) : show(stage, whole(stage)))));
  });
}
