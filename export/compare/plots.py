"""Plots for a report: both modes in colours and dashes that everybody can tell apart, a band of one standard deviation over the seeds."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.compare.pair import MODES, Run
from export.compare.report import FILE, Report
from export.compare.trace import Point

MISSING = "no plots, since matplotlib is not installed: `pip install 'specnorm[plots]'`, then `specnorm compare --from {file}` draws them"
STYLE: dict[str, dict[str, Any]] = {
    "full": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "simplified": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
}
"""Okabe and Ito's blue and vermilion."""
PANELS = 6
"""Most panels of one figure; of deeper networks the first and last layers are shown."""

Curves = dict[str, tuple[Sequence[float], np.ndarray]]
"""By mode: x, and one row of y per seed."""


def draw_all(found: Report, folder: Path) -> str:
    """Write the plots into ``folder`` and return a sentence that says so, or why there are none."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        return MISSING.format(file=folder / FILE)
    drawn = [name for name, draw in PLOTS.items() if _draw(Figure, draw, found, folder / name)]
    return f"plots: {', '.join(str(folder / name) for name in drawn)}" if drawn else "no plots: nothing was finished"


def _draw(figure_type: Any, draw: Callable[[Any, Report], bool], found: Report, path: Path) -> bool:
    figure = figure_type(layout="constrained")
    if not draw(figure, found):
        return False
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _finished(found: Report, mode: str) -> list[Run]:
    return [run for run in found.runs if run.mode == mode and run.result is not None and run.learning_rate == found.rates.get(mode)]


def _along(found: Report, of: Callable[[Point], float | None]) -> Curves:
    """Return ``of`` each point, as curves over epochs; points that no number is known of are gaps."""
    curves: Curves = {}
    for mode in MODES:
        runs = _finished(found, mode)
        if runs:
            values = [[np.nan if (value := of(point)) is None else value for point in run.trace] for run in runs]
            curves[mode] = [point.epoch for point in runs[0].trace], np.asarray(values)
    return curves


def _band(axes: Any, curves: Curves, *, most: float | None = None) -> None:
    # Nothing drawn here can be below 0, nor a share above 1: a band that went on would tell of what cannot be.
    for mode, (x, y) in curves.items():
        known = ~np.isnan(y).all(axis=0)
        at, rows = np.asarray(x)[known], y[:, known]
        mean, sd = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0, ddof=1 if len(rows) > 1 else 0)
        axes.plot(at, mean, label=mode, markersize=4, markevery=max(1, len(at) // 10), linewidth=1.8, **STYLE[mode])
        axes.fill_between(
            at, np.clip(mean - sd, 0, None), np.clip(mean + sd, None, most), color=STYLE[mode]["color"], alpha=0.18, linewidth=0
        )


def _tidy(axes: Any, *, x: str, y: str, title: str | None = None) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _head(figure: Any, found: Report, title: str, about: str | None = None) -> None:
    band = "; mean and one standard deviation" if len(found.subject.seeds) > 1 else ""
    lines = textwrap.wrap(f"{about or found.title}{band}", width=int(figure.get_figwidth() * 15.5))
    height = figure.get_figheight()
    figure.text(0.01, 1 - 0.08 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(0.01, 1 - 0.32 / height, "\n".join(lines), fontsize=8, color="#555555", va="top")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (0.4 + 0.14 * len(lines)) / height))


def _shares(figure: Any, found: Report, curves: Curves, *, title: str, x: str, y: str) -> bool:
    if not curves:
        return False
    figure.set_size_inches(7, 4.3)
    axes = figure.add_subplot()
    _band(axes, curves, most=1.0)
    _tidy(axes, x=x, y=y)
    axes.legend(title="gradient mode", frameon=False)
    _head(figure, found, title)
    return True


def _accuracy(figure: Any, found: Report) -> bool:
    curves = _along(found, lambda point: point.accuracy)
    return _shares(figure, found, curves, title="Held-out accuracy along training", x="epoch", y="share classified rightly")


def _certified(figure: Any, found: Report) -> bool:
    curves: Curves = {}
    for mode in MODES:
        proved = [run.result.curve for run in _finished(found, mode) if run.result is not None and run.result.curve is not None]
        if proved:
            curves[mode] = found.subject.curve_radii, np.asarray(proved)
    x = f"L2 radius ({found.subject.input_units})" if found.subject.input_units != "as given" else "L2 radius (units of the input)"
    title = "Certified accuracy: right, and proved to stay so within the radius"
    if not _shares(figure, found, curves, title=title, x=x, y="share of held-out rows"):
        return False
    reached = np.flatnonzero(
        np.max([shares.mean(axis=0) for _, shares in curves.values()], axis=0) > 0.005
    )  # where there is anything to see
    figure.axes[0].set_xlim(0, found.subject.curve_radii[min(int(reached.max(initial=0)) + 1, len(found.subject.curve_radii) - 1)])
    return True


def _layers(figure: Any, found: Report, value: str, *, title: str, y: str, line: float | None = None) -> bool:
    """Draw one panel per layer."""
    runs = [run for mode in MODES for run in _finished(found, mode)]
    if not runs:
        return False
    names = list(runs[0].trace[0].layers)
    if len(names) > PANELS:
        names = [*names[: PANELS // 2], *names[-PANELS // 2 :]]
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure.set_size_inches(max(3.0 * columns, 6), 3.1 * lines + 0.9)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for index, (axes, name) in enumerate(zip(panels.flat, names, strict=False)):
        if line is not None:
            axes.axhline(line, color="#777777", linewidth=1, linestyle=":")
        _band(axes, _along(found, lambda point, name=name: getattr(point.layers[name], value)))  # type: ignore[misc]  # bound now
        _tidy(axes, x="epoch", y=y if index % columns == 0 else "", title=f"layer {name}, {found.subject.shapes[name]}")
    panels.flat[0].set_ylim(bottom=0)  # shared, hence last: it ends the automatic scale of all panels
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    panels.flat[0].legend(title="gradient mode", frameon=False, fontsize=8, title_fontsize=8)
    _head(figure, found, title)
    return True


def _sigma(figure: Any, found: Report) -> bool:
    return _layers(figure, found, "sigma", title="Spectral norm of the raw weights along training", y="sigma(W)", line=1.0)


def _stable_rank(figure: Any, found: Report) -> bool:
    return _layers(figure, found, "stable_rank", title="Stable rank of the weights along training", y="|W|_F² / sigma(W)²")


def _correction(figure: Any, found: Report) -> bool:
    title = "Size of the correction term, relative to the rest of the gradient"
    return _layers(figure, found, "correction", title=title, y="|Lam u v'| / |G'X|")


def _sweep(figure: Any, found: Report) -> bool:
    if len(found.sweep) < 2:
        return False
    figure.set_size_inches(7, 4.3)
    axes = figure.add_subplot()
    for mode in MODES:
        known = [(row.learning_rate, side) for row in found.sweep if (side := getattr(row, mode)) is not None]
        axes.errorbar(
            [rate for rate, _ in known], [side.mean for _, side in known], yerr=[side.sd or 0 for _, side in known],
            label=mode, capsize=3, markersize=5, linewidth=1.8, **STYLE[mode],
        )  # fmt: skip
        failed = [(row.learning_rate, row.failed[mode]) for row in found.sweep if row.failed[mode]]
        axes.plot(
            [rate for rate, _ in failed],
            [0] * len(failed),
            "x",
            color=STYLE[mode]["color"],
            label=f"{mode}: not finite" if failed else None,
        )
    axes.set_xscale("log")
    _tidy(axes, x="learning rate", y="held-out accuracy")
    axes.legend(title="gradient mode", frameon=False)
    _head(figure, found, "Held-out accuracy by learning rate", f"{found.subject.title}, {len(found.subject.seeds)} seeds")
    return True


PLOTS: dict[str, Callable[[Any, Report], bool]] = {
    "accuracy.png": _accuracy,
    "sigma.png": _sigma,
    "correction.png": _correction,
    "stable_rank.png": _stable_rank,
    "certified.png": _certified,
    "sweep.png": _sweep,
}
