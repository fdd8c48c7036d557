"""``python -m export.audit MODEL.onnx``: the report as a table or as JSON."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export.audit import AuditError, Report, audit
from export.audit.html import page
from export.audit.report import Bounds, in_words
from export.audit.search import searched, with_search

LAYER_SECONDS = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Print the audit of a file; 0 where the model can be read, 1 where not."""
    options = parser().parse_args(arguments)
    try:
        with progress() as step:
            report = audit(
                options.model,
                dict(options.input_shape),
                chain=True,
                progress=step,
                layer_seconds=options.layer_seconds,
                box=dict(options.box) or None,
            )
            if options.search:
                report = with_search(report, searched(options.model, report, progress=partial(tell, step)))
        if options.html is not None:
            options.html.write_text(page(report, options.model.name), encoding="utf-8")
    except (AuditError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except MemoryError:
        print(f"there is not enough memory for an audit of {options.model}", file=sys.stderr)
        return 1
    print(report.model_dump_json(indent=2) if options.json else as_text(report))
    return 0


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """Yield what tells how far the walk is: a bar on a terminal's stderr, nothing anywhere else."""
    columns = (TextColumn("auditing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, about: bar.update(task, completed=done, total=total, description=about)


def tell(step: Callable[[int, int, str], None], share: float) -> None:
    """Show how much of its time a search has used."""
    step(round(100 * share), 100, "searching from below, percent of its time")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = argparse.ArgumentParser(prog="python -m export.audit", description=__doc__)
    command.add_argument("model", type=Path, help="an ONNX file")
    command.add_argument("--json", action="store_true", help="print the whole report as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="also write the report as one page")
    command.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the model in search of inputs whose outputs lie far apart",
    )
    command.add_argument(
        "--input-shape", type=input_shape, action="append", default=[], metavar="NAME:1,3,32,32", help="shape of an input; -1 = free"
    )
    command.add_argument(
        "--box",
        type=input_box,
        action="append",
        default=[],
        metavar="NAME:0,1",
        help="bounds for inputs between two limits alone, or between two for each channel: NAME:0,1,-1,1,...",
    )
    command.add_argument(
        "--layer-seconds",
        type=seconds,
        default=LAYER_SECONDS,
        metavar="N",
        help=f"longest time for the proof of one layer's norm; then a looser one, marked as such, has to do (default {LAYER_SECONDS:g})",
    )
    return command


def seconds(text: str) -> float:
    """Return a number of seconds that is not negative."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return found


def input_box(text: str) -> tuple[str, tuple[tuple[float, float], ...]]:
    """Return the name and the pairs of limits of ``NAME:0,1``."""
    name, _, limits = text.rpartition(":")
    try:
        numbers = [float(d) for d in limits.split(",")]
    except ValueError:
        numbers = []
    if not name or not numbers or len(numbers) % 2:
        raise argparse.ArgumentTypeError(f"expected NAME:0,1, got {text!r}")
    return name, tuple(zip(numbers[::2], numbers[1::2], strict=True))


def input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the name and the sizes of ``NAME:1,3,32,32``."""
    name, _, sizes = text.rpartition(":")
    try:
        shape = tuple(int(d) for d in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape:
        raise argparse.ArgumentTypeError(f"expected NAME:1,3,32,32, got {text!r}")
    return name, shape


def as_text(report: Report) -> str:
    """Return the report as a reader of a terminal wants it."""
    rows = [("layer", "op", "shape", "sigma at least", "sigma at most", "")]
    rows += [
        (
            layer.name,
            layer.op,
            " x ".join(map(str, layer.shape)),
            f"{layer.sigma_estimate:.9g}",
            f"{layer.sigma_upper:.9g}",
            f"looser: {layer.looser}" if layer.looser else "",
        )
        for layer in report.layers
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if report.box:
        lines.append(f"on the box {in_words(report.box)}, and nowhere else:")
    for name, found in (report.on_box or report.lipschitz).items():
        number = f"at most {found.bound:.9g} ({found.method})" if found.bound is not None else f"no bound: {found.reason}"
        lines.append(f"L2 Lipschitz constant of {name!r}: {number}")
        beside = [f"{key} {value:.6g}" for key, value in report.bounds.get(name, Bounds()).model_dump().items() if value is not None]
        lines += ["  " + ", ".join(beside)] if beside else []
    lines.append(f"rows independent: {'proved' if report.rows_independent else 'not proved'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
