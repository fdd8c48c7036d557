"""From runs to rows: mean and spread per mode, and the difference of each pair with a confidence interval."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from export.bundle import Frozen
from export.compare.pair import MODES, Run

CONFIDENCE = 0.95
STEP_TIME = "ms per step"


class Spread(Frozen):
    """Mean and standard deviation (None of a single value) over ``n`` seeds."""

    mean: float
    sd: float | None
    n: int


class Difference(Frozen):
    """Mean over the pairs of full less simplified, with its 95 % interval: of Student's t, None of a single pair.

    Of ratios the mean is the geometric one and the interval that of their logarithms, so that neither goes below 0.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


class Row(Frozen):
    """One measure of both modes; ``ratio`` says that ``difference`` is of full over simplified."""

    measure: str
    full: Spread
    simplified: Spread
    difference: Difference
    ratio: bool = False


class RateRow(Frozen):
    """One learning rate: held-out accuracy of the finished runs (None where there is none), and how many runs ended in no number."""

    learning_rate: float
    full: Spread | None
    simplified: Spread | None
    difference: Difference | None
    failed: dict[str, int]
    runs: dict[str, int]


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of ``values``, at least one."""
    return Spread(mean=float(np.mean(values)), sd=float(np.std(values, ddof=1)) if len(values) > 1 else None, n=len(values))


def difference(values: Sequence[float]) -> Difference:
    """Return the mean of ``values``, one per pair, and its 95 % interval."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Difference(mean=mean, low=None, high=None, n=n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Difference(mean=mean, low=mean - half, high=mean + half, n=n)


def ratio(values: Sequence[float]) -> Difference:
    """Return the geometric mean of ``values``, one ratio > 0 per pair, and its 95 % interval."""
    logs = difference([math.log(value) for value in values])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Difference(mean=math.exp(logs.mean), low=low, high=high, n=logs.n)


def measures(run: Run, radii: Sequence[float]) -> dict[str, float]:
    """Return all that the table says of a finished run, by name.

    Sigma and stable rank are at the end; the correction is the mean along training of ``norm(Lam u v') / norm(G'X)``.
    """
    if run.result is None:
        raise ValueError("this run has no result: it failed or was stopped")
    found = {"held-out accuracy": run.result.accuracy}
    found |= {f"certified at r = {radius:g}": value for radius, value in zip(radii, run.result.certified or (), strict=False)}
    layers = run.result.layers
    found["largest raw sigma"] = max(layer.sigma_upper for layer in layers.values())
    for what, title in (("sigma_upper", "raw sigma"), ("stable_rank", "stable rank")):
        known = {name: value for name, layer in layers.items() if (value := getattr(layer, what)) is not None}
        found |= {f"{title}, layer {name}": float(value) for name, value in known.items()}
    for name in layers:
        sizes = [point.layers[name].correction for point in run.trace if name in point.layers]
        if any(size is not None for size in sizes):
            found[f"correction, layer {name}"] = float(np.mean([size for size in sizes if size is not None]))
    found[STEP_TIME] = float(np.median(run.seconds)) * 1e3
    return found


def best_rates(rows: Sequence[RateRow]) -> dict[str, float]:
    """Return the learning rate at which each mode has the highest mean accuracy; without any finished run, none."""
    best: dict[str, float] = {}
    for mode in MODES:
        means = {row.learning_rate: found.mean for row in rows if (found := getattr(row, mode)) is not None}
        if means:
            best[mode] = max(means, key=lambda rate: means[rate])
    return best


def rate_rows(runs: Sequence[Run]) -> tuple[RateRow, ...]:
    """Return one row per learning rate, in ascending order."""
    return tuple(
        _rate_row(rate, [run for run in runs if run.learning_rate == rate]) for rate in sorted({run.learning_rate for run in runs})
    )


def _rate_row(rate: float, runs: Sequence[Run]) -> RateRow:
    found = {mode: {run.seed: run.result.accuracy for run in runs if run.mode == mode and run.result} for mode in MODES}
    full, simplified = (found[mode] for mode in MODES)
    both = sorted(full.keys() & simplified.keys())
    return RateRow(
        learning_rate=rate,
        full=spread([*full.values()]) if full else None,
        simplified=spread([*simplified.values()]) if simplified else None,
        difference=difference([full[seed] - simplified[seed] for seed in both]) if both else None,
        failed={mode: sum(run.mode == mode and run.failure is not None for run in runs) for mode in MODES},
        runs={mode: sum(run.mode == mode and (run.failure is not None or run.result is not None) for run in runs) for mode in MODES},
    )


def rows(runs: Sequence[Run], rates: Mapping[str, float], radii: Sequence[float]) -> tuple[Row, ...]:
    """Return one row per measure over the seeds at which both modes finished, each at its learning rate of ``rates``."""
    full, simplified = (
        {run.seed: run for run in runs if (run.mode, run.learning_rate) == (mode, rates.get(mode)) and run.result} for mode in MODES
    )
    seeds = sorted(full.keys() & simplified.keys())
    if not seeds:
        return ()
    values = [[measures(side[seed], radii) for seed in seeds] for side in (full, simplified)]
    shared = [name for name in values[0][0] if all(name in found for side in values for found in side)]
    ratios = step_ratios(runs)
    return tuple(
        Row(
            measure=name, full=spread([found[name] for found in values[0]]), simplified=spread([found[name] for found in values[1]]),
            difference=(
                ratio([ratios[seed] for seed in seeds])
                if name == STEP_TIME
                else difference([a[name] - b[name] for a, b in zip(*values, strict=True)])
            ),
            ratio=name == STEP_TIME,
        )
        for name in shared
    )  # fmt: skip


def step_ratios(runs: Sequence[Run]) -> dict[int, float]:
    """Return by seed the median, over steps that were done one after the other, of the time of full over that of simplified."""
    steps: dict[int, list[float]] = {}
    sides = {(run.mode, run.seed, run.learning_rate): run.seconds for run in runs}
    for (mode, seed, rate), seconds in sides.items():
        if mode == "full":
            steps.setdefault(seed, []).extend(a / b for a, b in zip(seconds, sides["simplified", seed, rate], strict=False))
    return {seed: float(np.median(found)) for seed, found in steps.items()}
