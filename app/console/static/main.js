// The page: which model and version it is about, and who shows what of it.

import * as api from "./api.js";
import { askForKey, notify } from "./dialogs.js";
import { byId, failure, h } from "./dom.js";
import { jobPanel } from "./jobs.js";
import { badge, report } from "./sigma.js";
import { tryPanel } from "./try.js";
import { tunePanel } from "./tune.js";
import { promoteWithUndo, versionTable } from "./versions.js";

const page = { models: [], model: null, version: null, lines: new Map() };
const drawn = new Map(); // model → examples kept in "Try it"
let tune = null;
let turn = 0; // answers that arrive after the reader has gone on to something else are dropped

/** Put what `make` gives into the element `id`, or why it could not be had. */
async function fill(id, make) {
  const mine = turn;
  const place = byId(id);
  place.setAttribute("aria-busy", "true");
  try {
    const content = await make();
    if (mine === turn) place.replaceChildren(...[content].flat(3).filter(Boolean));
  } catch (error) {
    if (mine === turn) place.replaceChildren(failure(error, () => fill(id, make)));
  } finally {
    if (mine === turn) place.removeAttribute("aria-busy");
  }
}

const modelOf = (name) => page.models.find((model) => model.name === name);
const lineOf = (version) => page.lines.get(page.model)?.find((line) => line.version === version);

function card(model) {
  const lines = page.lines.get(model.name);
  const live = lines?.find((line) => line.version === model.live_version);
  return h("a", { class: "card model", href: `#${model.name}`, "aria-current": model.name === page.model && "true" },
    h("b", {}, model.name), h("span", {}, model.live_version ? `version ${model.live_version} is live` : "no version is live"),
    live && badge(live.lipschitz_bound),
    live?.model_digest && h("small", {}, live.gradient_mode ? `gradient mode ${live.gradient_mode} · ` : "", h("code", { title: `sha256 of model.onnx: ${live.model_digest}` }, live.model_digest.slice(0, 12))));
}

function showCards() {
  if (page.models.length) byId("models").replaceChildren(h("div", { class: "cards" }, page.models.map(card)));
  else byId("models").replaceChildren(h("p", {}, "There is no model yet. ", h("code", {}, "specnorm train --data digits --name digits"), " makes one."));
}

/** Ask for all models again; the open one keeps its version unless that is gone. */
async function load() {
  page.models = await api.models();
  const lists = await Promise.all(page.models.map((model) => api.versions(model.name)));
  // Newest first.
  page.lines = new Map(page.models.map((model, index) => [model.name, lists[index].toSorted((a, b) => Number(b.version) - Number(a.version))]));
  byId("sign-out").hidden = !api.hasKey();
  showCards();
}

async function reload() {
  await load();
  showVersions();
  await jobsPanel.refresh();
}

function showVersions() {
  const { live_version: live } = modelOf(page.model);
  const lines = page.lines.get(page.model);
  byId("versions").replaceChildren(...versionTable(page.model, lines, { live, shown: page.version, select: go, done: reload }).filter(Boolean));
  byId("version").replaceChildren(...lines.map((line) =>
    h("option", { value: line.version, selected: line.version === page.version }, line.version === live ? `${line.version} (live)` : line.version)));
}

function teach(input, target) {
  const examples = drawn.get(page.model) ?? [];
  drawn.set(page.model, [...examples, { input, target }]);
  tune?.refresh().catch((error) => notify(error.message, { failed: true }));
  const count = examples.length + 1;
  notify(`Kept: ${count} ${count === 1 ? "example" : "examples"} to fine-tune with.`, { undo: () => { drawn.set(page.model, examples); tune?.refresh(); } });
}

function showVersion() {
  turn += 1;
  const { model, version } = page;
  const manifest = api.version(model, version).then((found) => found.manifest);
  manifest.catch(() => {}); // each panel says so itself
  byId("model-title").textContent = model;
  fill("certificate", async () => {
    const { lipschitz } = await manifest;
    return badge(lipschitz.bound, lipschitz.reason);
  });
  fill("sigma", async () => report(await api.sigma(model, version)));
  fill("try", async () => tryPanel(model, version, await api.metadata(model, version), await manifest, { teach }));
  fill("tune", async () => {
    tune = tunePanel(model, version, lineOf(version)?.gradient_mode, { examples: () => drawn.get(model) ?? [], started });
    await tune.refresh();
    return tune.element;
  });
}

const go = (version) => { location.hash = `#${page.model}:${version}`; };

async function started(job) {
  await jobsPanel.refresh();
  jobsPanel.open(job.id);
}

/** Show what the address names: `#model`, `#model:version` or `#job-id`. */
function follow() {
  const target = decodeURIComponent(location.hash.slice(1));
  if (target.startsWith("job-") && byId(target)) { jobsPanel.open(target.slice(4)); return; }
  const [name, version] = target.split(":");
  const model = modelOf(name) ?? page.models[0];
  byId("model").hidden = !model;
  if (!model) return;
  const lines = page.lines.get(model.name);
  page.model = model.name;
  page.version = lines.find((line) => line.version === version)?.version ?? model.live_version ?? lines[0]?.version ?? null;
  byId("model").hidden = page.version === null;
  showCards();
  if (page.version === null) return;
  showVersions();
  showVersion();
}

const jobsPanel = jobPanel(byId("jobs"), {
  promote: (model, version) => promoteWithUndo(model, version, modelOf(model)?.live_version, reload),
  live: (model) => modelOf(model)?.live_version,
  changed: () => reload().catch((error) => notify(error.message, { failed: true })),
});

async function begin() {
  try {
    await load();
  } catch (error) {
    byId("models").replaceChildren(failure(error, begin));
    return;
  }
  const wanted = location.hash;
  follow();
  await jobsPanel.refresh();
  if (wanted.startsWith("#job-")) jobsPanel.open(decodeURIComponent(wanted.slice(5)));
}

api.onSignIn(askForKey);
byId("sign-out").addEventListener("click", () => { api.forgetKey(); location.reload(); });
byId("version").addEventListener("change", (event) => go(event.target.value));
addEventListener("hashchange", follow);
begin();
