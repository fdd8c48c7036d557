// "Try it": an input drawn or typed, and the answer of one version with its certificate.

import { infer } from "./api.js";
import { bar } from "./charts.js";
import { failure, h } from "./dom.js";
import { lower, percent, plain, signed, softmax, upper } from "./format.js";
import { pad } from "./pad.js";
import { DIGITS } from "./samples.js";

const NUMERIC = /^(FP|INT|UINT)/;

/** The side of the square image that `tensor` is, or null: only where the range of the pixels is known. */
function side(tensor, domain) {
  const shape = tensor.shape.slice(1);
  const count = shape.reduce((product, extent) => product * extent, 1);
  const n = Math.sqrt(count);
  const square = shape.length === 1 || (shape.at(-1) === n && shape.at(-2) === n);
  const ranged = typeof domain?.minimum === "number" && typeof domain?.maximum === "number";
  return ranged && square && Number.isInteger(n) && n >= 4 && n <= 32 ? n : null;
}

/** The numbers of a text in any layout: spaces, commas, brackets. */
function numbers(text) {
  const found = text.split(/[\s,;[\]]+/).filter(Boolean).map(Number);
  if (found.some(Number.isNaN)) throw new Error("Write numbers only, separated by spaces or commas.");
  return found;
}

/** The shape for one row of `count` numbers: a free dimension takes what is left over. */
function shapeFor(tensor, count) {
  const shape = [1, ...tensor.shape.slice(1)];
  const known = shape.filter((extent) => extent > 0).reduce((product, extent) => product * extent, 1);
  return shape.map((extent) => (extent < 0 ? Math.floor(count / known) : extent));
}

function classes(logits, labels, temperature) {
  const probabilities = softmax(logits, temperature);
  const [from, to] = [Math.min(0, ...logits), Math.max(0, ...logits)];
  const best = logits.indexOf(Math.max(...logits));
  const name = (index) => labels?.[index] ?? String(index);
  return { best: name(best), table: h("table", { class: "classes" },
    h("caption", { class: "hidden" }, "Logit and probability of each class"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Class"), h("th", { scope: "col" }, "Logit"), h("th", { scope: "col", class: "number" }, "Probability"))),
    h("tbody", {}, logits.map((logit, index) => h("tr", { class: index === best && "best" },
      h("th", { scope: "row" }, name(index)),
      h("td", {}, bar(logit, { from, to, kind: index === best ? "bar" : "bar rest", label: plain(logit) }), h("span", { class: "number" }, signed(logit))),
      h("td", { class: "number" }, percent(probabilities[index])))))) };
}

function radius(answer, units) {
  const found = answer.outputs.find((output) => output.name === "certified_radius")?.data[0];
  if (typeof found === "number") {
    return h("p", { class: "radius" }, h("b", {}, lower(found, 4)), ` certified radius: no change of the input below this L2 size${units} can change the class.`);
  }
  return h("p", { class: "muted" }, `No certified radius: ${answer.parameters?.lipschitz_reason ?? "this model has no certificate"}.`.replace(/\.\.$/, "."));
}

const KNOWN = new Set(["lipschitz_bound", "lipschitz_reason", "model_digest"]);

function result(answer, manifest) {
  const temperature = manifest?.training?.hyperparameters?.temperature ?? 1;
  const units = manifest?.input?.units && manifest.input.units !== "as given" ? ` (${manifest.input.units})` : "";
  const logits = answer.outputs.find((output) => output.name === "logits");
  const remarks = Object.entries(answer.parameters ?? {}).filter(([name, value]) => !KNOWN.has(name) && value !== false);
  const bound = answer.parameters?.lipschitz_bound;
  const parts = [];
  if (logits && logits.data.length > 1) {
    const { best, table } = classes(logits.data, manifest?.signature?.labels, temperature);
    parts.push(h("p", { class: "verdict" }, "Class ", h("b", {}, best)), radius(answer, units), table,
      h("p", { class: "muted" }, temperature === 1 ? "Probabilities: softmax of the logits." : `Probabilities: softmax of ${plain(temperature)} × logits, the temperature of the training.`));
  } else {
    parts.push(h("dl", {}, answer.outputs.map((output) => [h("dt", {}, output.name), h("dd", {}, output.data.slice(0, 64).map((value) => plain(value, 6)).join(", "))])));
  }
  parts.push(remarks.map(([name, value]) => h("p", { class: "warning" }, `${name.replaceAll("_", " ")}${value === true ? "" : `: ${value}`}`)));
  parts.push(h("p", { class: "muted" }, `Answered by version ${answer.model_version}${typeof bound === "number" ? `, Lipschitz ≤ ${upper(bound, 7)}` : ""}.`));
  return parts;
}

/** The panel for one version: `metadata` from /v2, `manifest` from the registry. `teach(values, label)` keeps a drawing as an example. */
export function tryPanel(model, version, metadata, manifest, { teach }) {
  const output = h("div", { class: "answer", "aria-live": "polite", "aria-atomic": "true" }, h("p", { class: "muted" }, "The answer appears here."));
  let running = null;

  async function ask(read) {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    try {
      const inputs = read();
      const started = performance.now();
      const answer = await infer(model, version, inputs, signal);
      output.replaceChildren(...result(answer, manifest).flat(), h("p", { class: "muted" }, `${(performance.now() - started).toFixed(0)} ms there and back.`));
    } catch (error) {
      if (error.name !== "AbortError") output.replaceChildren(failure(error));
    }
  }

  const tensor = metadata.inputs[0];
  const size = metadata.inputs.length === 1 && NUMERIC.test(tensor.datatype) ? side(tensor, manifest?.input) : null;
  const typed = metadata.inputs.map((input) => ({ input, area: h("textarea", { rows: 4, spellcheck: "false", inputmode: "decimal" }) }));
  const readTyped = () => typed.map(({ input, area }) => {
    const data = numbers(area.value);
    return { name: input.name, datatype: input.datatype, shape: shapeFor(input, data.length), data };
  });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); ask(readTyped); } },
    typed.map(({ input, area }) => h("label", {}, `${input.name}: ${input.datatype} [${input.shape.join(", ")}], one row`, area)),
    h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Ask")));
  if (!metadata.inputs.every((input) => NUMERIC.test(input.datatype))) return [h("p", {}, "This model takes an input that cannot be typed here.")];
  if (size === null) return [form, output];

  const drawing = pad(size, { ...manifest.input, changed });
  function changed() {
    const data = drawing.values();
    typed[0].area.value = data.map((value) => plain(value, 4)).join(" ");
    if (data.every((value) => value === manifest.input.minimum)) { running?.abort(); output.replaceChildren(h("p", { class: "muted" }, "Draw, or choose an example.")); return; }
    ask(() => [{ name: tensor.name, datatype: tensor.datatype, shape: [1, ...tensor.shape.slice(1)], data }]);
  }
  const isDigits = size === 8 && manifest.input.maximum === 16;
  const examples = isDigits && h("div", { class: "examples", role: "group", "aria-label": "Examples from the data set" },
    DIGITS.map((values, digit) => h("button", { type: "button", class: "quiet", "aria-label": `Example of a ${digit}`, onclick: () => drawing.set(values) }, String(digit))));
  const outputs = metadata.outputs.find((one) => one.name === "logits")?.shape.at(-1) ?? 0;
  const labels = manifest.signature?.labels?.length ? manifest.signature.labels : Array.from({ length: Math.max(0, outputs) }, (_, index) => String(index));
  const label = h("select", { "aria-label": "Right class" }, labels.map((name, index) => h("option", { value: index }, name)));
  const teaching = labels.length > 1 && h("p", { class: "teach" }, "Wrong, or unsure? This is a ", label, " ",
    h("button", { type: "button", class: "quiet", onclick: () => teach(drawing.values(), Number(label.value)) }, "Keep as an example"));
  output.replaceChildren(h("p", { class: "muted" }, "Draw, or choose an example."));
  return [h("div", { class: "try" }, drawing.element, output, h("div", { class: "more" },
    isDigits && h("p", { class: "muted" }, "Draw large, or take a scan from the data set:"), examples, teaching,
    h("details", {}, h("summary", {}, "As numbers"), form)))];
}
