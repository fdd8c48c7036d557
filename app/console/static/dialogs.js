// Questions and notices: a confirmation, the sign-in, and the line at the foot of the page that offers to undo.

import { byId, fresh, h } from "./dom.js";

/** Show a dialog whose form ends with a value; `null` when it is dismissed. */
function question(title, content, confirm, read, { dismissable = "Cancel" } = {}) {
  return new Promise((resolve) => {
    const id = fresh("dialog");
    let answer = null;
    const dialog = h("dialog", { "aria-labelledby": id },
      h("form", { method: "dialog", onsubmit: () => { answer = read(); } },
        h("h2", { id }, title), content,
        h("div", { class: "actions" },
          h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, dismissable),
          h("button", { type: "submit", class: "primary" }, confirm))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(answer); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** True when the user confirms. */
export const confirmed = async (title, sentences, action, dismissable = "Cancel") =>
  (await question(title, sentences.map((sentence) => h("p", {}, sentence)), action, () => true, { dismissable })) === true;

/** The key that the user types, or null. */
export function askForKey(sentence) {
  const input = h("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false", pattern: "[!-~]+", title: "A key has no spaces and no letters beyond ASCII." });
  const content = [h("p", { role: "alert" }, sentence), h("label", {}, "Key", input),
    h("p", { class: "muted" }, "It is kept in this tab only, until the tab is closed or you sign out.")];
  return question("Sign in", content, "Sign in", () => input.value.trim() || null, { dismissable: "Not now" });
}

/** Say `sentence` at the foot of the page until it is dismissed, with a button for `undo` where it can be undone. */
export function notify(sentence, { undo = null, failed = false } = {}) {
  const place = byId("notice");
  const close = () => place.replaceChildren();
  const reverse = undo && h("button", { type: "button", onclick: () => { close(); undo(); } }, "Undo");
  const said = h("div", { class: failed ? "notice failed" : "notice" }, h("p", {}, sentence), reverse,
    h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: close }, "✕"));
  place.replaceChildren(said);
  if (!undo && !failed) setTimeout(() => said.remove(), 8000);
  // The button that was pressed may be gone with the row it stood in: a keyboard goes on from here, not from the top.
  if (document.activeElement === document.body) reverse?.focus();
}

/** Run `action` with its button disabled; say what went wrong. */
export async function during(button, action) {
  button.disabled = true;
  try {
    return await action();
  } catch (error) {
    notify(error.message, { failed: true });
  } finally {
    button.disabled = false;
  }
}
