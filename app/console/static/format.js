// Numbers for people. A bound is only ever rounded to the safe side: upper bounds up, lower bounds and radii down.

function outward(value, digits, up) {
  if (!Number.isFinite(value) || value === 0) return value;
  const rounded = Number(value.toPrecision(digits));
  if (up ? rounded >= value : rounded <= value) return rounded;
  const unit = 10 ** (Math.floor(Math.log10(Math.abs(value))) - digits + 1);
  return Number((rounded + (up ? unit : -unit)).toPrecision(digits));
}

const show = (value) => (value === null || value === undefined ? "–" : String(value));

/** An upper bound, rounded up to `digits` significant digits. */
export const upper = (value, digits = 5) => show(outward(value, digits, true));

/** A lower bound (a sigma estimate, a certified radius), rounded down. */
export const lower = (value, digits = 5) => show(outward(value, digits, false));

/** A plain number, rounded to nearest. */
export const plain = (value, digits = 4) => (typeof value === "number" ? show(Number(value.toPrecision(digits))) : show(value));

/** A number with a true minus sign and three decimals, for a column. */
export const signed = (value) => value.toFixed(3).replace("-", "−");

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** A metric by its name: accuracies as percent. */
export const metric = (name, value) => (/accuracy/.test(name) && value <= 1 ? percent(value) : plain(value));

/** Seconds since 1970 or an ISO text, in the reader's own time zone. */
export function time(value) {
  if (value === null || value === undefined) return "–";
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(date.getTime()) ? String(value) : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  return count < 2 ** 20 ? `${(count / 1024).toFixed(1)} KiB` : `${(count / 2 ** 20).toFixed(1)} MiB`;
}

export const words = (name) => name.replaceAll("_", " ");

/** Probabilities of `logits` times `temperature`, the largest subtracted first so that nothing overflows. */
export function softmax(logits, temperature = 1) {
  const top = Math.max(...logits);
  const weights = logits.map((value) => Math.exp(temperature * (value - top)));
  const total = weights.reduce((sum, value) => sum + value, 0);
  return weights.map((value) => value / total);
}
