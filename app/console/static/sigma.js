// The report of a version: sigma of each layer before and after the fold, and what the bound rests on.

import { bar } from "./charts.js";
import { h } from "./dom.js";
import { lower, plain, upper } from "./format.js";

const METHODS = {
  product: "the upper bounds of all layers multiplied, with the constants of what lies between (activations, the scaling of the input)",
  graph: "upper bounds followed through every node of the graph, added where branches meet",
};

/** The bound in one pill: a certificate, or none. */
export function badge(bound, reason = null) {
  if (typeof bound !== "number") return h("span", { class: "badge none", title: reason }, "no certificate");
  return h("span", { class: "badge", title: `Lipschitz bound ${bound}` }, `✓ Lipschitz ≤ ${upper(bound, 7)}`);
}

/** What is promised about the whole graph, in one sentence. */
export function certificate(lipschitz) {
  if (lipschitz.bound === null) return `There is no certificate: ${lipschitz.reason ?? "no bound was found"}.`.replace(/\.\.$/, ".");
  const rigour = lipschitz.rigorous ? "Rigorous, rounding included" : "Not rigorous: an estimate, no promise";
  const method = METHODS[lipschitz.method] ?? `by the method “${lipschitz.method}”`;
  return `No change of the input can change the logits by more than ${upper(lipschitz.bound, 7)} times its own size (L2). ${rigour}: ${method}.`;
}

function row(layer, trained, folded) {
  const before = `trained: estimate ${lower(layer.sigma_estimate)}, upper bound ${upper(layer.sigma_upper)}`;
  const after = `served: at most ${upper(layer.folded_sigma_upper, 8)}, target ${layer.target}`;
  const within = layer.folded_sigma_upper <= layer.target;
  return h("tr", {},
    h("th", { scope: "row" }, h("code", {}, layer.name), h("small", {}, `${layer.kind} ${layer.shape.join("×")}`)),
    h("td", { "data-label": "Trained" },
      bar(layer.sigma_estimate, { to: trained, marks: [{ at: layer.sigma_upper, kind: "upper" }], label: before }),
      h("small", {}, `${lower(layer.sigma_estimate)} ≤ σ ≤ `, h("b", {}, upper(layer.sigma_upper)),
        layer.norm === "matricised" && `, operator ≤ ${upper(layer.operator_sigma_upper)}`)),
    h("td", { "data-label": "Served" },
      bar(layer.folded_sigma_upper, { to: folded, kind: within ? "bar folded" : "bar over", marks: [{ at: layer.target, kind: "target" }], label: after }),
      h("small", {}, h("b", {}, upper(layer.folded_sigma_upper, 8)), layer.constraint === "none" ? ", no constraint" : ` of ${layer.target}`)),
    h("td", { class: "number", "data-label": "Stable rank" }, plain(layer.stable_rank, 3)));
}

/** The whole report as elements. */
export function report({ layers, lipschitz }) {
  const explanation = h("p", { class: "muted" }, "Sigma estimates are lower bounds; what is promised rests on the upper bound.");
  if (!layers.length) return [h("p", {}, certificate(lipschitz)), h("p", { class: "muted" }, "No layer of this model has a measured sigma.")];
  const trained = 1.05 * Math.max(...layers.map((layer) => layer.sigma_upper));
  const folded = 1.15 * Math.max(...layers.flatMap((layer) => [layer.folded_sigma_upper, layer.target]));
  return [
    h("p", {}, certificate(lipschitz)), explanation,
    h("p", { class: "legend", "aria-hidden": "true" },
      h("span", { class: "key estimate" }, "estimate"), h("span", { class: "key upper" }, "upper bound"),
      h("span", { class: "key folded" }, "folded"), h("span", { class: "key target" }, "target")),
    h("table", { class: "sigma" },
      h("caption", { class: "hidden" }, "Sigma of each layer as trained and as served"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), h("th", { scope: "col" }, "As trained"), h("th", { scope: "col" }, "As served, folded"),
        h("th", { scope: "col", class: "number" }, "Stable rank"))),
      h("tbody", {}, layers.map((layer) => row(layer, trained, folded)))),
  ];
}
