// Small charts as SVG: horizontal bars, and lines that grow while a job runs.

import { h, s } from "./dom.js";
import { plain } from "./format.js";

/**
 * One horizontal bar on a scale from `from` to `to`, with marks across it.
 * `marks`: `[{at, kind}]`, where `kind` (`upper`, `target`) names the look. Zero is where the bar starts.
 */
export function bar(value, { from = 0, to, kind = "bar", marks = [], label }) {
  const place = (x) => `${(100 * Math.min(1, Math.max(0, (x - from) / (to - from || 1)))).toFixed(3)}%`;
  const [left, right] = [Math.min(value, 0), Math.max(value, 0)];
  const width = `${(100 * Math.min(1, (right - left) / (to - from || 1))).toFixed(3)}%`;
  return s("svg", { class: "bar", role: "img", "aria-label": label, height: 18, width: "100%" },
    s("rect", { class: "track", x: 0, y: 3, width: "100%", height: 12, rx: 2 }),
    s("rect", { class: kind, x: place(left), y: 3, width, height: 12, rx: 2 }),
    from < 0 && s("line", { class: "zero", x1: place(0), x2: place(0), y1: 0, y2: 18 }),
    marks.map((mark) => s("line", { class: mark.kind, x1: place(mark.at), x2: place(mark.at), y1: 0, y2: 18 })));
}

function ticks(low, high, wanted = 4) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(6)));
  return found;
}

const MARGIN = { top: 8, right: 18, bottom: 22, left: 46 };
const HEIGHT = 150;

/** Keep at most about `limit` of `points`, the last always among them. */
function thin(points, limit) {
  if (points.length <= limit) return points;
  const stride = Math.ceil(points.length / limit);
  return points.filter((_, index) => index % stride === 0 || index === points.length - 1);
}

/**
 * A line chart over steps. `add({name: y}, step)` appends, a name not seen before starts a new line.
 * `range` fixes the y axis, `show` writes a value. `element` is hidden until there is a point.
 */
export function lines(title, { range = null, show = (y) => plain(y, 4) } = {}) {
  const series = new Map();
  const drawing = s("svg", { class: "lines", height: HEIGHT, width: "100%", role: "img" });
  const legend = h("figcaption", {});
  const element = h("figure", { hidden: true }, legend, drawing);
  let steps = 0;
  let scheduled = false;
  let cursor = null;

  function scales() {
    const width = Math.max(drawing.clientWidth, 160);
    const all = [...series.values()].flat();
    const values = all.map(([, y]) => y);
    let [low, high] = range ?? [Math.min(...values), Math.max(...values)];
    if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
    const first = Math.min(...all.map(([x]) => x));
    const last = Math.max(steps, first + 1);
    return {
      width, low, high, first, last,
      x: (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right),
      y: (value) => MARGIN.top + ((high - value) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom),
    };
  }

  const nearest = (points) => points.reduce((best, point) => (Math.abs(point[0] - cursor) < Math.abs(best[0] - cursor) ? point : best));

  function draw() {
    scheduled = false;
    element.hidden = series.size === 0;
    if (element.hidden) return;
    const { width, low, high, first, last, x, y } = scales();
    const shown = [...series].map(([name, points]) => [name, cursor === null ? points.at(-1) : nearest(points)]);
    legend.replaceChildren(h("strong", {}, title), ...shown.map(([name, [step, value]], index) =>
      h("span", { class: `key line-${index % 6}` }, series.size > 1 && `${name} `, h("b", {}, show(value)), index === 0 && cursor !== null && ` at step ${step}`)));
    drawing.setAttribute("aria-label", `${title}: ${shown.map(([name, point]) => `${name} ${show(point[1])}`).join(", ")}`);
    drawing.replaceChildren(
      ...ticks(low, high).map((value) => s("g", {},
        s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
        s("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, show(value)))),
      ...ticks(first, last, width / 110).filter(Number.isInteger).map((value) =>
        s("text", { x: x(value), y: HEIGHT - 6, "text-anchor": "middle" }, String(value))),
      cursor !== null && s("line", { class: "zero", x1: x(shown[0][1][0]), x2: x(shown[0][1][0]), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }) || "",
      ...[...series.values()].map((points, index) =>
        s("polyline", { class: `line-${index % 6}`, points: thin(points, width).map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") })),
      ...shown.map(([, [step, value]], index) => s("circle", { class: `line-${index % 6}`, cx: x(step), cy: y(value), r: 3 })));
  }

  function schedule() {
    if (!scheduled) requestAnimationFrame(draw);
    scheduled = true;
  }

  drawing.addEventListener("pointermove", (event) => {
    const { width, first, last } = scales();
    const share = (event.offsetX - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    cursor = first + Math.min(1, Math.max(0, share)) * (last - first);
    schedule();
  });
  drawing.addEventListener("pointerleave", () => { cursor = null; schedule(); });
  new ResizeObserver(schedule).observe(element);

  return {
    element,
    add(values, step, total = 0) {
      steps = Math.max(steps, step, total);
      for (const [name, value] of Object.entries(values)) {
        if (!Number.isFinite(value)) continue;
        if (!series.has(name)) series.set(name, []);
        series.get(name).push([step, value]);
      }
      element.hidden = series.size === 0;
      schedule();
    },
  };
}
