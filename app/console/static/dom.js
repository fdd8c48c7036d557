// Elements made from data. Text is always set as text, never parsed as HTML, so no answer of a server can become markup.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; `on…` attributes are listeners, `null`/`false` attributes and children are left out. */
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);

/** The same in the SVG namespace. */
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

/** What to show where something failed: the sentence, and a way to try again. */
export function failure(error, again) {
  return h("p", { class: "error", role: "alert" }, error.message, again && " ",
    again && h("button", { type: "button", class: "quiet", onclick: again }, "Try again"));
}

let count = 0;
/** A fresh id, to tie a label or a description to an element. */
export const fresh = (prefix) => `${prefix}-${++count}`;
