// The form that starts a fine-tune job.

import { createJob, files, upload } from "./api.js";
import { during, notify } from "./dialogs.js";
import { h } from "./dom.js";
import { bytes, time } from "./format.js";

const MODES = {
  full: "The exact gradient, as PyTorch's spectral norm has it: sigma is differentiated too. The default.",
  simplified: "Sigma is taken as a constant: a little faster, not the gradient of the loss, and usually less accurate.",
};

const DRAWN = "drawn";

function jsonl(examples) {
  const lines = examples.map(({ input, target }) => JSON.stringify({ input, target }));
  return new File([`${lines.join("\n")}\n`], "drawn.jsonl", { type: "application/jsonl" });
}

/** A choice of data: none (where that is allowed), a file known already, the drawings, or a new file. */
function source(title, { optional = false, examples = () => [] }) {
  const file = h("input", { type: "file", accept: ".jsonl,.csv,.npz", "aria-label": `${title}: new file` });
  const choice = h("select", {});
  const fresh = h("div", {}, file, !optional && h("small", { class: "muted" },
    "JSONL: one ", h("code", {}, '{"input": […], "target": …}'), " a line. CSV: a header, the target in the last column. NPZ: x and y."));
  const update = () => {
    fresh.hidden = choice.value !== "new";
    file.required = !fresh.hidden;
  };
  const element = h("div", { class: "source", onchange: update }, h("label", {}, title, choice), fresh);

  return {
    element,
    chosen: () => choice.value !== "none",
    /** Offer `known` files and select `wanted`, or what was selected before. */
    offer(known, wanted = choice.value) {
      const drawn = examples().length;
      choice.replaceChildren(...[
        optional && h("option", { value: "none" }, "none"), h("option", { value: "new" }, "a new file"),
        drawn > 0 && h("option", { value: DRAWN }, `${drawn} ${drawn === 1 ? "example" : "examples"} kept in “Try it”`),
        ...known.map((one) => h("option", { value: one.id }, `${one.filename}, ${bytes(one.bytes)}, ${time(one.created_at)}`)),
      ].filter(Boolean));
      choice.value = [...choice.options].some((option) => option.value === wanted) ? wanted : choice.options[0].value;
      update();
    },
    /** The id of the chosen file, uploaded first where it is new; null for none. */
    async id() {
      if (choice.value === "none") return null;
      if (choice.value !== "new" && choice.value !== DRAWN) return choice.value;
      return (await upload(choice.value === DRAWN ? jsonl(examples()) : file.files[0])).id;
    },
  };
}

/** The form for `model:version`. `examples()` are the drawings kept in "Try it"; `started(job)` is told of a new job. */
export function tunePanel(model, version, mode, { examples, started }) {
  const training = source("Training data", { examples });
  const validation = source("Validation data", { optional: true });
  const promote = h("input", { type: "checkbox" });
  const automatic = h("label", { class: "choice" }, promote, h("span", {}, "Make the result live if it is not worse on the validation data"));
  const modes = h("fieldset", {}, h("legend", {}, "Gradient mode"), Object.entries(MODES).map(([name, sentence]) =>
    h("label", { class: "choice" }, h("input", { type: "radio", name: "gradient_mode", value: name, checked: name === (mode ?? "full") }),
      h("span", {}, h("b", {}, name), ` – ${sentence}`))));
  const epochs = h("input", { type: "number", min: 1, max: 10000, step: 1, placeholder: "default", inputmode: "numeric" });
  const rate = h("input", { type: "number", min: 0, step: "any", placeholder: "default", inputmode: "decimal" });
  const button = h("button", { type: "submit", class: "primary" }, "Start fine-tuning");
  const update = () => { automatic.hidden = !validation.chosen(); };

  async function refresh(trained, validated) {
    const { data } = await files();
    training.offer(data, trained);
    validation.offer(data, validated);
    update();
  }

  async function start() {
    const file = await training.id();
    const other = await validation.id();
    const hyperparameters = { gradient_mode: modes.querySelector(":checked").value };
    if (epochs.value) hyperparameters.n_epochs = epochs.valueAsNumber;
    if (rate.value) hyperparameters.learning_rate = rate.valueAsNumber;
    try {
      const job = await createJob({
        model: `${model}:${version}`, training_file: file, method: { type: "supervised", supervised: { hyperparameters } },
        ...(other && { validation_file: other, promote: promote.checked ? "if_not_worse" : "never" }),
      });
      notify(`Job ${job.id} is ${job.status.replaceAll("_", " ")}.`);
      started(job);
    } finally {
      await refresh(file, other ?? "none"); // so that a second try does not upload the same again
    }
  }

  const element = h("form", { onchange: update, onsubmit: (event) => { event.preventDefault(); during(button, start); } },
    h("p", { class: "muted" }, `Starts from version ${version} of ${model}. The result is a new version; it is live only when you say so.`),
    training.element, validation.element, automatic, modes,
    h("div", { class: "pair" }, h("label", {}, "Epochs", epochs), h("label", {}, "Learning rate", rate)),
    h("div", { class: "actions" }, button));
  return { element, refresh };
}
