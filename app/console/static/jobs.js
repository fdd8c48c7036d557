// The list of jobs, and the open one as it runs.

import { cancelJob, ended, events, jobs } from "./api.js";
import { lines } from "./charts.js";
import { confirmed, during } from "./dialogs.js";
import { failure, h } from "./dom.js";
import { percent, plain, time, words } from "./format.js";

const hyperparametersOf = (job) => ({ ...job.hyperparameters, ...job.method?.supervised?.hyperparameters });

/** What a private job has spent, or may spend; rounded up, so that it is never told as less than it is. */
function budget({ target_epsilon: target, delta }, spent) {
  const epsilon = spent ?? target;
  return `private${Number.isFinite(epsilon) ? `: epsilon ${spent === undefined ? "of " : ""}at most ${plain(Math.ceil(epsilon * 1000) / 1000, 12)}` : ""} at delta ${plain(delta)}`;
}

/** The live view of one job: curves and messages, fed until it ends or `signal` says stop. `current()` is the job as last seen. */
function watch(current, signal, finished) {
  const { id } = current();
  const loss = lines("Loss");
  const epsilon = lines("Epsilon spent"); // of a private job, which tells no loss
  const accuracy = lines("Accuracy", { range: [0, 1], show: (y) => percent(y, 0) });
  const sigma = lines("Sigma of each layer");
  const progress = h("progress", { max: 1, "aria-label": "Progress", hidden: true });
  const log = h("ol", { class: "log", tabindex: 0, "aria-label": `Messages of job ${id}` });
  const element = h("div", { class: "watch" }, progress, loss.element, epsilon.element, accuracy.element, sigma.element, log);

  function show({ created_at: at, level, message, type, data }) {
    const step = data?.step;
    if (type === "metrics" && Number.isFinite(step)) {
      const steps = data.steps ?? current().progress?.steps ?? 0;
      loss.add({ loss: data.loss }, step, steps);
      epsilon.add({ epsilon: data.epsilon }, step, steps);
      accuracy.add({ accuracy: data.accuracy }, step, steps);
      sigma.add(data.sigma ?? {}, step, steps);
      if (steps) { progress.hidden = false; progress.value = step / steps; }
      return;
    }
    const end = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    log.append(h("li", { class: level }, h("time", {}, new Date(at * 1000).toLocaleTimeString()), ` ${message}`));
    if (end) log.scrollTop = log.scrollHeight;
  }

  (async () => {
    try {
      for await (const event of events(id, signal)) show(event);
      progress.hidden = true;
      if (!signal.aborted) finished();
    } catch (error) {
      if (!signal.aborted) element.append(failure(error));
    }
  })();
  return element;
}

/** The panel in `place`. `promote(model, version)` is offered when a job is done, unless it made what is `live(model)`; `changed()` is told that one has ended. */
export function jobPanel(place, { promote, live, changed }) {
  const items = new Map();
  const list = h("div", { class: "jobs" });
  const remark = h("div", { class: "muted" });
  place.replaceChildren(remark, list);
  let timer = null;

  function facts(job) {
    const { gradient_mode: mode, n_epochs: epochs, learning_rate: rate, privacy } = hyperparametersOf(job);
    return [`from ${job.model}`, mode, epochs !== undefined && epochs !== "auto" && `${epochs} ${epochs === 1 ? "epoch" : "epochs"}`, rate !== undefined && rate !== "auto" && `learning rate ${plain(rate)}`, privacy && budget(privacy, job.result?.metrics?.epsilon), time(job.created_at)]
      .filter(Boolean).join(" · ");
  }

  function actions(job) {
    const [model, version] = (job.fine_tuned_model ?? "").split(":");
    return h("div", { class: "actions" },
      !ended(job.status) && h("button", { type: "button", onclick: (event) => during(event.currentTarget, async () => {
        if (!await confirmed("Cancel this job?", ["It stops at its next step. What it has learnt so far is not published."], "Cancel the job", "Let it run")) return;
        await cancelJob(job.id);
        await refresh();
      }) }, "Cancel"),
      version && live(model) === version && h("p", { class: "muted" }, `Version ${version} is live.`),
      version && live(model) !== version && h("button", { type: "button", class: "primary", onclick: (event) => during(event.currentTarget, () => promote(model, version)) }, `Promote version ${version}`));
  }

  function create(job) {
    const head = h("summary", {});
    const body = h("div", {});
    const element = h("details", { class: "job", id: `job-${job.id}` }, head, body);
    const item = { element, head, body, actions: h("div", {}), abort: null, job };
    element.addEventListener("toggle", () => {
      item.abort?.abort();
      item.abort = null;
      if (!element.open) return;
      item.abort = new AbortController();
      body.replaceChildren(item.actions, watch(() => item.job, item.abort.signal, refresh));
    });
    items.set(job.id, item);
    return item;
  }

  function show(job) {
    const item = items.get(job.id) ?? create(job);
    const status = job.paused ? (job.status === "running" ? "pausing" : "paused") : job.status;
    const was = item.job.status;
    item.job = job;
    item.head.replaceChildren(h("span", { class: `badge state ${status}` }, words(status)), h("code", {}, job.id), h("small", {}, facts(job)));
    item.actions.replaceChildren(actions(job));
    if (job.error?.message) item.actions.prepend(h("p", { class: "error" }, `${job.error.message}${job.error.code ? ` (${job.error.code})` : ""}`));
    if (was !== job.status && ended(job.status)) changed();
    return item;
  }

  function later(milliseconds) {
    clearTimeout(timer); // two may ask at once; one goes on
    timer = setTimeout(refresh, milliseconds);
  }

  /** Ask for the list again, and once more in a while as long as a job runs. Never throws: what went wrong is shown in the panel. */
  async function refresh() {
    clearTimeout(timer);
    try {
      const { data } = await jobs();
      const order = data.map(show).map((item) => item.element);
      if (order.length !== list.children.length || order.some((element, index) => list.children[index] !== element)) list.replaceChildren(...order);
      remark.replaceChildren(data.length ? "" : "No job yet.");
      if (data.some((job) => !ended(job.status))) later(2500);
    } catch (error) {
      remark.replaceChildren(failure(error, refresh));
      if (error.status === 0) later(5000);
    }
  }

  const open = (id) => {
    const item = items.get(id);
    if (!item) return;
    item.element.open = true;
    item.element.scrollIntoView({ block: "nearest" });
  };
  return { refresh, open };
}
