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

/** The form for `model:version`. `examples()` are the drawings kept in "Try it"; `started(job)` is told of a new job. */
export function tunePanel(model, version, mode, { examples, started }) {
  const file = h("input", { type: "file", accept: ".jsonl,.csv,.npz" });
  const known = h("select", {}, h("option", { value: "" }, "a new file, chosen below"));
  const upload_ = h("label", {}, "File (JSONL, CSV or NPZ)", file,
    h("small", { class: "muted" }, "JSONL: one ", h("code", {}, '{"input": […], "target": …}'), " a line. CSV: a header, the target in the last column."));
  const choose = () => { upload_.hidden = known.value !== ""; file.required = known.value === ""; };
  known.addEventListener("change", choose);

  async function refresh() {
    const kept = known.value;
    const { data } = await files();
    const drawn = examples().length;
    known.replaceChildren(h("option", { value: "" }, "a new file, chosen below"),
      ...(drawn ? [h("option", { value: DRAWN }, `${drawn} ${drawn === 1 ? "example" : "examples"} kept in “Try it”`)] : []),
      ...data.map((one) => h("option", { value: one.id }, `${one.filename}, ${bytes(one.bytes)}, ${time(one.created_at)}`)));
    known.value = [...known.options].some((option) => option.value === kept) ? kept : "";
    choose();
  }

  const modes = h("fieldset", {}, h("legend", {}, "Gradient mode"), Object.entries(MODES).map(([name, sentence]) =>
    h("label", { class: "choice" }, h("input", { type: "radio", name: "gradient_mode", value: name, checked: name === (mode ?? "full") }),
      h("span", {}, h("b", {}, name), ` – ${sentence}`))));
  const epochs = h("input", { type: "number", min: 1, max: 10000, step: 1, placeholder: "default", inputmode: "numeric" });
  const rate = h("input", { type: "number", min: 0, step: "any", placeholder: "default", inputmode: "decimal" });
  const button = h("button", { type: "submit", class: "primary" }, "Start fine-tuning");

  async function start() {
    const chosen = known.value && known.value !== DRAWN ? { id: known.value } : await upload(known.value === DRAWN ? jsonl(examples()) : file.files[0]);
    const hyperparameters = { gradient_mode: modes.querySelector(":checked").value };
    if (epochs.value) hyperparameters.n_epochs = epochs.valueAsNumber;
    if (rate.value) hyperparameters.learning_rate = rate.valueAsNumber;
    try {
      const job = await createJob({ model: `${model}:${version}`, training_file: chosen.id, method: { type: "supervised", supervised: { hyperparameters } } });
      notify(`Job ${job.id} is ${job.status.replaceAll("_", " ")}.`);
      started(job);
    } finally {
      await refresh();
      known.value = chosen.id; // so that a second try does not upload the same again
      choose();
    }
  }

  const form = h("form", { onsubmit: (event) => { event.preventDefault(); during(button, start); } },
    h("p", { class: "muted" }, `Starts from version ${version} of ${model}. The result is a new version, never live by itself.`),
    h("label", {}, "Training data", known), upload_, modes,
    h("div", { class: "pair" }, h("label", {}, "Epochs", epochs), h("label", {}, "Learning rate", rate)),
    h("div", { class: "actions" }, button));
  choose();
  return { element: form, refresh };
}
