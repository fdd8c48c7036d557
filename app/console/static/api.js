// The service's HTTP interface. An error carries the server's own sentence; a 401 asks for a key and then goes on.

const KEY = "specnorm.key";
let ask = null;

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Who asks for a key: `(sentence) => Promise<string | null>`, null when the user declines. */
export function onSignIn(question) {
  let pending = null;
  ask = (sentence) => (pending ??= question(sentence).finally(() => { pending = null; }));
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** The address of `path` beside the page, so that the console also works below a prefix of a proxy. */
const address = (path) => new URL(path, document.baseURI.split(/[?#]/)[0]);

async function sentence(response) {
  const text = await response.text();
  try {
    const { error, detail } = JSON.parse(text);
    const found = typeof error === "string" ? error : error?.message ?? detail;
    if (typeof found === "string") return found;
  } catch { /* not JSON: the status is all that is known */ }
  return `The service answered ${response.status} ${response.statusText}`.trim() + ".";
}

async function send(path, { json, headers = {}, ...options }) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let response;
    try {
      response = await fetch(address(path), {
        ...options,
        ...(json !== undefined && { body: JSON.stringify(json) }),
        headers: { ...headers, ...(json !== undefined && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) },
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The service cannot be reached.", 0);
    }
    if (response.ok) return response;
    const message = await sentence(response);
    // A call that was under way while another one signed in is simply sent again with the new key.
    if (response.status === 401 && ask) {
      const given = sessionStorage.getItem(KEY) !== key ? sessionStorage.getItem(KEY) : await ask(message);
      if (given) { sessionStorage.setItem(KEY, given); continue; }
    }
    throw new ApiError(message, response.status);
  }
}

const part = encodeURIComponent;
const admin = (model, rest = "") => `admin/models/${part(model)}${rest}`;
const json = async (path, options = {}) => (await send(path, options)).json();
const post = (path, body) => json(path, { method: "POST", json: body });
const inference = (model, version) => `v2/models/${part(model)}/versions/${part(version)}`;

export const models = () => json("admin/models");
/** All versions of a model, newest first. */
export async function versions(model) {
  const found = [], limit = 100;
  for (;;) {
    const after = found.length ? `&after=${found.at(-1).version}` : "";
    const page = await json(admin(model, `/versions?manifests=false&order=desc&limit=${limit}${after}`));
    found.push(...page);
    if (page.length < limit) return found;
  }
}
export const version = (model, name) => json(admin(model, `/versions/${part(name)}`));
export const sigma = (model, name) => json(admin(model, `/sigma?version=${part(name)}`));
export const promote = (model, name) => post(admin(model, "/promote"), { version: name });
export const rollback = (model) => post(admin(model, "/rollback"));
export const metadata = (model, name) => json(inference(model, name));
export const infer = (model, name, inputs, signal) => json(`${inference(model, name)}/infer`, { method: "POST", json: { inputs }, signal });

export const files = () => json("v1/files?purpose=fine-tune&limit=100");
export function upload(file) {
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", file, file.name);
  return json("v1/files", { method: "POST", body });
}

const JOBS = "v1/fine_tuning/jobs";
export const jobs = () => json(`${JOBS}?limit=20`);
export const job = (id) => json(`${JOBS}/${part(id)}`);
export const createJob = (body) => post(JOBS, body);
export const cancelJob = (id) => json(`${JOBS}/${part(id)}/cancel`, { method: "POST" });

async function* stream(id, last, signal) {
  const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
  // Not EventSource: it cannot send a key.
  const response = await send(`admin/jobs/${part(id)}/events`, { headers, signal });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw new ApiError("no event stream", 406);
  let buffer = "";
  const decoder = new TextDecoder();
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer = (buffer + decoder.decode(value, { stream: true })).replaceAll("\r\n", "\n");
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}

async function* poll(id, seen) {
  const fresh = [];
  let after = "";
  for (;;) { // newest first: go back until what is known
    const page = await json(`${JOBS}/${part(id)}/events?limit=100${after && `&after=${part(after)}`}`);
    const unknown = page.data.filter((event) => !seen.has(event.id));
    fresh.push(...unknown);
    if (!page.has_more || unknown.length < page.data.length) break;
    after = page.data.at(-1).id;
  }
  yield* fresh.reverse();
}

const pause = (milliseconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, milliseconds);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

export const ended = (status) => ["succeeded", "failed", "cancelled"].includes(status);

/** Yield the events of a job, each once and oldest first, until it has ended; by stream, or by polling where a stream cannot be had. */
export async function* events(id, signal) {
  const seen = new Set();
  let last = null;
  let streams = true;
  while (!signal.aborted) {
    try {
      const over = ended((await job(id)).status); // asked before reading: what is read afterwards is then complete
      for await (const event of streams ? stream(id, last, signal) : poll(id, seen)) {
        if (seen.has(event.id)) continue;
        seen.add(event.id);
        last = event.id;
        yield event;
      }
      if (over) return;
    } catch (error) {
      if (signal.aborted) return;
      // A connection that broke is tried again; an answer that says no to streaming is not.
      if (error instanceof ApiError && error.status > 0) {
        if (!streams) throw error;
        streams = false;
      }
    }
    await pause(1000, signal);
  }
}
