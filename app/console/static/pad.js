// A drawing pad of n × n cells. A stroke is painted on a bitmap four times as fine, and a cell's value is the share of
// its 16 points that are painted: this is how the digits data set was made, so a drawing looks to the model as its data do.

import { h, s } from "./dom.js";

const FINE = 4;
const RADIUS = 1.9; // of the brush, in fine points: a stroke about as thick as those of the data set

/** `{element, values(), set(values), clear()}`; `changed` is called after each change. Values run from `minimum` to `maximum`. */
export function pad(size, { minimum, maximum, changed }) {
  const fine = size * FINE;
  let points = new Uint8Array(fine * fine);
  let exact = null; // values that were set as they are, until somebody paints on them
  let erasing = false;
  let previous = null;
  const cursor = { x: 0, y: 0 };

  const cells = Array.from({ length: size * size }, (_, index) =>
    s("rect", { class: "ink", x: index % size, y: Math.floor(index / size), width: 1, height: 1, "fill-opacity": 0 }));
  const marker = s("rect", { class: "marker", x: 0, y: 0, width: 1, height: 1 });
  const drawing = s("svg", {
    class: "pad", viewBox: `0 0 ${size} ${size}`, tabindex: 0, role: "application", "aria-roledescription": "drawing pad",
    "aria-label": `Drawing pad of ${size} by ${size} cells. Arrow keys move, space paints or clears a cell, Delete clears all.`,
  }, s("rect", { class: "paper", width: size, height: size }), cells,
  Array.from({ length: size - 1 }, (_, index) => [
    s("line", { class: "grid", x1: index + 1, x2: index + 1, y1: 0, y2: size }), s("line", { class: "grid", y1: index + 1, y2: index + 1, x1: 0, x2: size })]), marker);
  const spoken = h("p", { class: "hidden", "aria-live": "polite" });
  const eraser = h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => {
    erasing = !erasing;
    eraser.setAttribute("aria-pressed", erasing);
  } }, "Erase");
  const element = h("div", { class: "pad-box" }, drawing, spoken,
    h("div", { class: "actions" }, eraser, h("button", { type: "button", class: "quiet", onclick: () => clear() }, "Clear")));

  function share(x, y) {
    let painted = 0;
    for (let row = 0; row < FINE; row += 1) {
      for (let column = 0; column < FINE; column += 1) painted += points[(y * FINE + row) * fine + x * FINE + column];
    }
    return painted / FINE ** 2;
  }

  const shares = () => cells.map((_, index) => share(index % size, Math.floor(index / size)));
  const values = () => exact ?? shares().map((part) => minimum + part * (maximum - minimum));

  function show() {
    const parts = exact ? exact.map((value) => (value - minimum) / (maximum - minimum)) : shares();
    cells.forEach((cell, index) => cell.setAttribute("fill-opacity", parts[index].toFixed(3)));
    changed();
  }

  /** Turn exact values into points, so that painting on an example goes on from it. */
  function soften() {
    if (!exact) return;
    const kept = exact;
    exact = null;
    points.fill(0);
    kept.forEach((value, index) => {
      const wanted = Math.round(FINE ** 2 * (value - minimum) / (maximum - minimum));
      for (let point = 0; point < wanted; point += 1) {
        const [x, y] = [(index % size) * FINE + (point % FINE), Math.floor(index / size) * FINE + Math.floor(point / FINE)];
        points[y * fine + x] = 1;
      }
    });
  }

  function stamp(cx, cy, value) {
    for (let y = Math.max(0, Math.floor(cy - RADIUS)); y <= Math.min(fine - 1, cy + RADIUS); y += 1) {
      for (let x = Math.max(0, Math.floor(cx - RADIUS)); x <= Math.min(fine - 1, cx + RADIUS); x += 1) {
        if ((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= RADIUS ** 2) points[y * fine + x] = value;
      }
    }
  }

  function stroke(event) {
    const box = drawing.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * fine, ((event.clientY - box.top) / box.height) * fine];
    const [fromX, fromY] = previous ?? [x, y];
    const count = Math.max(1, Math.ceil(Math.hypot(x - fromX, y - fromY)));
    for (let step = 1; step <= count; step += 1) stamp(fromX + ((x - fromX) * step) / count, fromY + ((y - fromY) * step) / count, erasing ? 0 : 1);
    previous = [x, y];
    show();
  }

  function clear() {
    exact = null;
    points = new Uint8Array(fine * fine);
    show();
  }

  function toggle() {
    soften();
    const value = share(cursor.x, cursor.y) > 0 ? 0 : 1;
    for (let row = 0; row < FINE; row += 1) points.fill(value, (cursor.y * FINE + row) * fine + cursor.x * FINE, (cursor.y * FINE + row) * fine + (cursor.x + 1) * FINE);
    show();
  }

  function move(dx, dy) {
    cursor.x = Math.min(size - 1, Math.max(0, cursor.x + dx));
    cursor.y = Math.min(size - 1, Math.max(0, cursor.y + dy));
    marker.setAttribute("x", cursor.x);
    marker.setAttribute("y", cursor.y);
  }

  const KEYS = {
    ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1), " ": toggle, Delete: clear,
  };
  drawing.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
    spoken.textContent = `row ${cursor.y + 1}, column ${cursor.x + 1}: ${share(cursor.x, cursor.y) > 0 ? "painted" : "empty"}`;
  });
  drawing.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drawing.setPointerCapture(event.pointerId);
    soften();
    previous = null;
    stroke(event);
  });
  drawing.addEventListener("pointermove", (event) => { if (drawing.hasPointerCapture(event.pointerId)) stroke(event); });

  return { element, values, clear, set: (given) => { exact = [...given]; show(); } };
}
