// The versions of a model: where each comes from and how well it does; what is live, and going forth and back.

import { promote, rollback } from "./api.js";
import { confirmed, during, notify } from "./dialogs.js";
import { h } from "./dom.js";
import { metric, time, upper, words } from "./format.js";

/** Make `version` live after asking; `done` is called once it is. */
export async function promoteWithUndo(model, version, live, done) {
  const sentences = [
    live ? `Version ${live} answers until version ${version} is loaded and warm; no request fails.` : `It is loaded and warmed first.`,
    "You can undo this at once.",
  ];
  if (await confirmed(`Make version ${version} of ${model} live?`, sentences, "Promote")) await goLive(() => promote(model, version), done);
}

async function goLive(action, done) {
  const { name, live_version: live, previous_version: previous } = await action();
  await done();
  const undo = async () => {
    try {
      await promote(name, previous);
      await done();
      notify(`Undone: version ${previous} of ${name} is live again.`);
    } catch (error) {
      notify(error.message, { failed: true });
    }
  };
  notify(`Version ${live} of ${name} is live.`, { undo: previous ? undo : null });
}

async function rollbackWithUndo(model, live, done) {
  const sentences = [`The version that was live before version ${live} answers again as soon as it is warm; no request fails.`];
  if (await confirmed(`Roll ${model} back?`, sentences, "Roll back")) await goLive(() => rollback(model), done);
}

function origin(version) {
  if (version.parent && version.job) return [`from ${version.parent} by `, h("a", { href: `#job-${version.job}` }, "fine-tuning")];
  if (version.parent) return `from ${version.parent}`;
  return version.job ? "by a job" : "published";
}

const metrics = (version) => Object.entries(version.metrics ?? {});

/** The table; `shown` is the version that the rest of the page is about, `select(version)` changes it. */
export function versionTable(model, versions, { live, shown, select, done }) {
  const name = (version) => h("th", { scope: "row" },
    h("button", { type: "button", class: "link", onclick: () => select(version.version) }, version.version),
    version.version === live && h("span", { class: "badge live" }, "live"));
  const broken = (version) => h("tr", {}, name(version), h("td", { colspan: 7, class: "error" }, version.corrupt));
  const row = (version) => version.corrupt ? broken(version) : h("tr", { "aria-current": version.version === shown && "true" },
    name(version),
    h("td", { "data-label": "Created" }, time(version.created)),
    h("td", { "data-label": "Origin" }, origin(version)),
    h("td", { "data-label": "Gradient mode" }, version.gradient_mode ?? "–"),
    h("td", { class: "number", "data-label": "Lipschitz ≤" }, typeof version.lipschitz_bound === "number" ? upper(version.lipschitz_bound, 7) : "none"),
    h("td", { "data-label": "Metrics" }, metrics(version).length ? metrics(version).map(([name, value]) => h("span", { class: "metric" }, `${words(name)} `, h("b", {}, metric(name, value)))) : "–"),
    h("td", { "data-label": "sha256" }, h("code", { title: version.model_digest }, version.model_digest.slice(0, 12))),
    h("td", {}, version.version !== live && h("button", { type: "button",
      onclick: (event) => during(event.currentTarget, () => promoteWithUndo(model, version.version, live, done)),
      "aria-label": `Promote version ${version.version}` }, "Promote")));
  return [
    h("table", { class: "stack" }, h("caption", { class: "hidden" }, `Versions of ${model}, the newest first`),
      h("thead", {}, h("tr", {}, ["Version", "Created", "Origin", "Gradient mode", "Lipschitz ≤", "Metrics", "sha256 of model.onnx", ""].map((name) =>
        name ? h("th", { scope: "col", class: name.startsWith("Lip") && "number" }, name) : h("td", {})))),
      h("tbody", {}, versions.map(row))),
    live && versions.length > 1 && h("div", { class: "actions" }, h("button", { type: "button",
      onclick: (event) => during(event.currentTarget, () => rollbackWithUndo(model, live, done)) }, "Roll back to the version live before")),
  ];
}
