// A real service on a workspace of its own, and a real browser.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { chromium } from "playwright-core";

const ROOT = new URL("../..", import.meta.url).pathname;
const SPECNORM = join(ROOT, ".venv/bin/specnorm");
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

const freePort = () => new Promise((resolve) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

export const workspace = () => mkdtempSync(join(tmpdir(), "specnorm-browser-"));
export const remove = (folder) => rmSync(folder, { recursive: true, force: true });

/** The digits data set as JSON lines: what a user would upload. */
export function digits(folder) {
  const file = join(folder, "digits.jsonl");
  execFileSync(join(ROOT, ".venv/bin/python"), ["-c", `
import json, sys
from sklearn.datasets import load_digits
found = load_digits()
with open(sys.argv[1], "w") as stream:
    for x, y in zip(found.data, found.target):
        stream.write(json.dumps({"input": x.tolist(), "target": int(y)}) + "\\n")
`, file]);
  return file;
}

/** Make a key for everything and return it with the file that holds its hash. */
export function key(folder) {
  const file = join(folder, "keys.json");
  const scopes = ["infer", "train", "admin"].flatMap((scope) => ["--scope", scope]);
  const said = execFileSync(SPECNORM, ["keys", "create", "--file", file, ...scopes], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  return { file, key: said.trim().split(/\s+/).at(-1) };
}

/** Start the service with the demo model and wait until it is ready. */
export async function serve(folder, environment = {}) {
  const port = await freePort();
  const child = spawn(SPECNORM, ["serve", "--demo", "--workspace", join(folder, "workspace"), "--port", String(port)],
    { cwd: folder, env: { ...process.env, ...environment }, stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => { said += text; });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const url = `http://127.0.0.1:${port}/`;
  for (let attempt = 0; attempt < 600; attempt += 1) {
    if (child.exitCode !== null) throw new Error(`the service ended with ${child.exitCode}:\n${said}`);
    const answer = await fetch(`${url}v2/health/ready`).catch(() => null);
    if (answer?.ok) return { url, stop: () => { child.kill("SIGTERM"); return ended; } };
    await pause(200);
  }
  child.kill("SIGKILL");
  throw new Error(`the service did not become ready:\n${said}`);
}

export const browser = () => chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });

/** Open the page and note what it says and asks for; `mistakes()` are script errors, refusals by the policy and foreign addresses. */
export async function visit(chrome, url, options = {}) {
  const context = await chrome.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`script error: ${error}`));
  page.on("console", (message) => { if (/Content Security Policy|Refused to/.test(message.text())) wrong.push(message.text()); });
  page.on("request", (request) => { if (!request.url().startsWith(url) && !request.url().startsWith("blob:")) wrong.push(`asks for ${request.url()}`); });
  await page.goto(url);
  return { page, mistakes: () => wrong };
}

/** The complaints of axe about the page as it stands. */
export async function complaints(page) {
  const source = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"] }));
  return violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 100)).join(" ")}`);
}
