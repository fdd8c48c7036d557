// The console against the real service in a real browser. Run by `make test-browser`.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { browser, complaints, digits, key, remove, serve, visit, workspace } from "./service.mjs";

const pictures = process.env.SCREENSHOTS;
const picture = async (page, name) => {
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
};

let folder, service, chrome, data;
before(async () => {
  if (pictures) mkdirSync(pictures, { recursive: true });
  folder = workspace();
  data = digits(folder);
  [service, chrome] = await Promise.all([serve(folder), browser()]);
});
after(async () => {
  await chrome?.close();
  await service?.stop();
  remove(folder);
});

const open = (options) => visit(chrome, service.url, options);
const PATIENT = { timeout: 240_000 }; // the trainer takes only what the rest of the machine leaves
const press = (page, name) => page.getByRole("button", { name, exact: true }).click();
const confirm = (page) => page.locator("dialog .primary").click();
const notice = async (page, pattern) => assert.match(await page.locator("#notice p").filter({ hasText: pattern }).textContent(), pattern);

test("the page shows the live model with its certificate, and every sigma with its bound", async () => {
  const { page, mistakes } = await open();
  await page.locator("#sigma tbody tr").first().waitFor();
  const model = await (await fetch(`${service.url}admin/models/digits/sigma`)).json();
  assert.equal(await page.locator("#sigma tbody tr").count(), model.layers.length);
  const shown = Number((await page.locator("#certificate .badge").textContent()).split("≤")[1]);
  assert.ok(shown >= model.lipschitz.bound, "a bound is never rounded down");
  assert.match(await page.locator("a.model[aria-current]").textContent(), /digits.*version 1 is live.*gradient mode full/s);
  assert.deepEqual(mistakes(), []);
});

test("an example is classified with the numbers that the interface gives", async () => {
  const { page, mistakes } = await open();
  await press(page, "Example of a 3");
  await page.locator(".verdict").waitFor();
  assert.equal(await page.locator(".verdict b").textContent(), "3");
  const input = (await page.locator("#try textarea").inputValue()).split(" ").map(Number);
  const body = JSON.stringify({ inputs: [{ name: "input", shape: [1, 64], datatype: "FP32", data: input }] });
  const { outputs } = await (await fetch(`${service.url}v2/models/digits/infer`, { method: "POST", body })).json();
  const radius = outputs.find((output) => output.name === "certified_radius").data[0];
  const shown = Number(await page.locator(".radius b").textContent());
  assert.ok(shown <= radius && shown > 0.99 * radius, "a radius is never rounded up");
  assert.equal(await page.locator(".classes tbody tr").count(), outputs.find((output) => output.name === "logits").data.length);
  assert.deepEqual(mistakes(), []);
});

test("a stroke of the pointer and the keys both draw", async () => {
  const { page } = await open();
  const pad = page.locator(".pad");
  await pad.waitFor();
  const { x, y, width, height } = await pad.boundingBox();
  await page.mouse.move(x + width / 2, y + 6);
  await page.mouse.down();
  await page.mouse.move(x + width / 2, y + height - 6, { steps: 10 });
  await page.mouse.up();
  await page.locator(".verdict").waitFor();
  const painted = () => page.locator(".pad .ink").evaluateAll((cells) => cells.filter((cell) => Number(cell.getAttribute("fill-opacity")) > 0).length);
  assert.ok(await painted() >= 8);
  await press(page, "Clear");
  assert.equal(await painted(), 0);
  await pad.focus();
  for (const name of ["ArrowDown", "ArrowRight", "Space"]) await page.keyboard.press(name);
  assert.equal(await painted(), 1);
  await page.locator(".verdict").waitFor();
});

test("a job goes from a file to a new version, which is promoted and taken back", async () => {
  const { page, mistakes } = await open();
  await page.locator("#tune input[type=file]").first().setInputFiles(data);
  await page.getByLabel("simplified").check();
  await page.getByLabel("Epochs").fill("3");
  await press(page, "Start fine-tuning");
  const job = page.locator(".job[open]");
  await job.waitFor();
  await job.locator(".badge.succeeded").waitFor(PATIENT);
  await job.locator("figure:has-text('Loss') polyline").waitFor();
  await job.locator("figure:has-text('Sigma of each layer') polyline").first().waitFor();
  await page.locator("#versions tbody tr").nth(1).waitFor();
  assert.match(await page.locator("#versions tbody tr").first().textContent(), /^2.*from digits:1.*simplified/);
  await page.locator(".job[open]").getByRole("button", { name: "Promote version 2" }).click();
  await confirm(page);
  await notice(page, /Version 2 of digits is live/);
  const live = async () => (await (await fetch(`${service.url}admin/models`)).json())[0].live_version;
  assert.equal(await live(), "2");
  await press(page, "Undo");
  await notice(page, /version 1 of digits is live again/);
  assert.equal(await live(), "1");
  assert.deepEqual(mistakes(), []);
});

test("a private job shows what it spent in the place of a loss", async () => {
  const { page, mistakes } = await open();
  const option = page.locator("#tune select").nth(0).locator("option", { hasText: "digits.jsonl" }).first();
  await option.waitFor({ state: "attached" });
  const privacy = { max_grad_norm: 1, noise_multiplier: 1, delta: 1e-5 };
  const body = { model: "digits", training_file: await option.getAttribute("value"), hyperparameters: { n_epochs: 2, privacy } };
  const answer = await fetch(`${service.url}v1/fine_tuning/jobs`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const { id } = await answer.json();
  await page.reload();
  const job = page.locator(`#job-${id}`);
  await job.locator("summary").click();
  await job.locator(".badge.succeeded").waitFor(PATIENT);
  await job.locator("figure:has-text('Epsilon spent') polyline").waitFor();
  assert.equal(await job.locator("figure:has-text('Loss')").isVisible(), false);
  await job.locator("summary", { hasText: /private: epsilon at most \d+(\.\d+)? at delta/ }).waitFor();
  assert.deepEqual(mistakes(), []);
});

test("validation data give a curve of the accuracy, and let a result that is not worse go live by itself", async () => {
  const { page } = await open();
  const [training, validation] = [page.locator("#tune select").nth(0), page.locator("#tune select").nth(1)];
  const option = training.locator("option", { hasText: "digits.jsonl" }).first();
  await option.waitFor({ state: "attached" });
  const known = await option.getAttribute("value");
  await training.selectOption(known);
  await validation.selectOption(known);
  await page.getByLabel("Make the result live").check();
  await page.getByLabel("Epochs").fill("3");
  await press(page, "Start fine-tuning");
  const job = page.locator(".job[open]");
  await job.locator(".badge.succeeded").waitFor(PATIENT);
  await job.locator("figure:has-text('Accuracy') polyline").waitFor();
  assert.match(await job.locator(".log").textContent(), /is live now|is not promoted/);
});

test("what the service refuses is shown in its own words", async () => {
  const { page } = await open();
  await page.locator("#tune input[type=file]").first().setInputFiles({ name: "bad.jsonl", mimeType: "application/jsonl", buffer: Buffer.from('{"input": [1, 2], "target": 0}\nnonsense\n') });
  await press(page, "Start fine-tuning");
  await page.locator(".job[open] .badge.failed").waitFor(PATIENT);
  const { data: jobs } = await (await fetch(`${service.url}v1/fine_tuning/jobs?limit=1`)).json();
  assert.ok((await page.locator(".job[open] p.error").textContent()).includes(jobs[0].error.message));
});

test("a running job is cancelled after asking", async () => {
  const { page } = await open();
  await page.locator("#tune input[type=file]").first().setInputFiles(data);
  await page.getByLabel("Epochs").fill("60");
  await press(page, "Start fine-tuning");
  await page.locator(".job[open] polyline").first().waitFor(PATIENT);
  await picture(page, "desktop-running");
  await press(page, "Cancel");
  await confirm(page);
  await page.locator(".job[open] .badge.cancelled").waitFor(PATIENT);
});

test("drawings that were kept become training data", async () => {
  const { page } = await open();
  await press(page, "Example of a 7");
  await page.getByLabel("Right class").selectOption("7");
  await press(page, "Keep as an example");
  await notice(page, /1 example to fine-tune with/);
  await page.locator("#tune select").first().selectOption("drawn");
  await page.getByLabel("Epochs").fill("1");
  await press(page, "Start fine-tuning");
  await page.locator(".job[open] .badge:is(.succeeded, .failed)").waitFor(PATIENT);
  const { data: files } = await (await fetch(`${service.url}v1/files`)).json();
  const content = await (await fetch(`${service.url}v1/files/${files[0].id}/content`)).json();
  assert.deepEqual([content.target, content.input.length], [7, 64]);
});

for (const colorScheme of ["light", "dark"]) {
  test(`nobody is shut out, in ${colorScheme} colours`, async () => {
    const { page } = await visit(chrome, service.url, { colorScheme, bypassCSP: true }); // the policy would refuse axe itself
    await press(page, "Example of a 5");
    await page.locator(".verdict").waitFor();
    await page.locator("#sigma table").waitFor();
    const job = page.locator(".job:has(.succeeded) summary").last();
    if (await job.count()) { await job.click(); await page.locator(".job[open] circle").first().waitFor(); }
    assert.deepEqual(await complaints(page), []);
    await picture(page, `desktop-${colorScheme}`);
  });
}

test("a phone shows everything without scrolling sideways", async () => {
  const { page } = await open({ viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 });
  await page.getByRole("button", { name: "Example of a 8" }).tap();
  await page.locator(".verdict").waitFor();
  await page.locator("#sigma table").waitFor();
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  await picture(page, "phone");
});

test("where keys are needed the page asks for one, and forgets it on sign-out", async () => {
  const kept = workspace();
  const made = key(kept);
  const guarded = await serve(kept, { SPECNORM_API_KEYS_FILE: made.file });
  try {
    const { page, mistakes } = await visit(chrome, guarded.url);
    const field = page.getByLabel("Key");
    await field.fill("wrong");
    await confirm(page);
    await page.locator("dialog p[role=alert]").waitFor();
    await field.fill(made.key);
    await confirm(page);
    await page.locator("#sigma table").waitFor();
    await press(page, "Example of a 1");
    await page.locator(".verdict").waitFor();
    await press(page, "Sign out");
    await page.locator("dialog").waitFor();
    assert.deepEqual(mistakes(), []);
  } finally {
    await guarded.stop();
    remove(kept);
  }
});
