"""The whole of a comparison: what `compare.json` holds, and the table that a terminal shows."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from export.bundle import Frozen
from export.compare.pair import MODES, Run
from export.compare.summary import Difference, RateRow, Row, Spread, best_rates, rate_rows, rows

FILE = "compare.json"
NOTES = """certified: share of held-out rows that are right and proved to stay so within r, in the units of the input
raw sigma: of the weights before the fold, a rigorous upper bound; stable rank: |W|_F² / sigma²
correction: |Lam u v'| / |G'X|, what simplified drops beside what it keeps, mean along training"""


class Subject(Frozen):
    """What was compared: the data, the network and how it was trained; ``command`` does it again. ``shapes`` are of the weights."""

    command: str
    versions: dict[str, str]
    data: str
    data_digest: str
    rows: int
    held_out: int
    input_units: str
    network: str
    architecture: dict[str, Any]
    shapes: dict[str, str]
    hyperparameters: dict[str, Any]
    threads: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    radii: tuple[float, ...]
    curve_radii: tuple[float, ...]

    @property
    def title(self) -> str:
        """What was trained on what, in one line."""
        options = self.hyperparameters
        return f"{self.data}, {self.network}, {options['optimizer']}, T = {options['temperature']:g}, {options['n_epochs']} epochs"


class Report(Frozen):
    """All numbers. ``rows`` are at ``rates``, each mode's best learning rate; ``stopped`` says that runs are missing."""

    format: Literal[1] = 1
    subject: Subject
    stopped: bool
    runs: tuple[Run, ...]
    rates: dict[str, float]
    rows: tuple[Row, ...]
    sweep: tuple[RateRow, ...]

    @property
    def title(self) -> str:
        """The subject, with the learning rates that the rows are at, and how many pairs there are."""
        rates, tried = set(self.rates.values()), len(self.subject.learning_rates)
        which = (
            ", ".join(f"{mode} at rate {rate:g}" for mode, rate in self.rates.items())
            if len(rates) > 1
            else "".join(f"rate {rate:g}" for rate in rates)
        )
        best = f" (the best of {tried})" if tried > 1 and rates else ""
        seeds = len({run.seed for run in self.runs})
        return f"{self.subject.title}, {which or 'no rate'}{best}, {seeds} seed{'s' * (seeds != 1)}"


def report(subject: Subject, runs: list[Run], *, stopped: bool) -> Report:
    """Return the report of ``runs``."""
    sweep = rate_rows(runs)
    rates = best_rates(sweep)
    return Report(subject=subject, stopped=stopped, runs=tuple(runs), rates=rates, rows=rows(runs, rates, subject.radii), sweep=sweep)


def write(folder: Path, found: Report) -> Path:
    """Write ``compare.json`` into ``folder``, whole or not at all, and return its path."""
    path, draft = folder / FILE, folder / f".{FILE}"
    draft.write_text(found.model_dump_json(indent=1))
    os.replace(draft, path)
    return path


def read(path: Path) -> Report:
    """Return the report in ``path``, what follows from its runs worked out anew.

    Raises:
        ValueError: there is none.
    """
    try:
        found = Report.model_validate_json(path.read_bytes())
        return report(found.subject, [*found.runs], stopped=found.stopped)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is not what `specnorm compare` wrote: {error.errors()[0]['msg']}") from None


def show(found: Report, console: Console) -> None:
    """Print the table, and one line per run that ended in no number."""
    console.print(found.title, style="bold", soft_wrap=True)
    if len(found.sweep) > 1:
        console.print("held-out accuracy by learning rate; failed: runs of full, of simplified, that gave no model")
        console.print(_sweep(found))
    if found.rows:
        console.print(_measures(found))
        console.print(
            "mean ± standard deviation over the seeds; differences: of pairs, 95 % interval (Student's t)\n" + NOTES, soft_wrap=True
        )
    else:
        console.print("no pair of runs was finished: there is nothing to compare")
    for run in found.runs:
        if run.failure is not None:
            console.print(f"{run.mode}, seed {run.seed}, learning rate {run.learning_rate:g}: {run.failure}", soft_wrap=True)


def _measures(found: Report) -> Table:
    same = len(set(found.rates.values())) == 1
    table = _table()
    table.add_column("measure")
    for mode in MODES:
        table.add_column(mode if same else f"{mode}, rate {found.rates[mode]:g}", justify="right")
    table.add_column("full - simplified", justify="right")
    for row in found.rows:
        table.add_row(row.measure, plus_minus(row.full), plus_minus(row.simplified), interval(row.difference, ratio=row.ratio))
    return table


def _sweep(found: Report) -> Table:
    table = _table()
    for column in ("rate", "full", "simplified", "full - simplified", "failed"):
        table.add_column(column, justify="right")
    for row in found.sweep:
        sides = (plus_minus(side) if side else "-" for side in (row.full, row.simplified))
        failed = ", ".join(f"{row.failed[mode]}/{row.runs[mode]}" for mode in MODES)
        table.add_row(f"{row.learning_rate:g}", *sides, interval(row.difference) if row.difference else "-", failed)
    return table


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), header_style="bold")


def plus_minus(value: Spread) -> str:
    """Return ``mean ± sd``."""
    return number(value.mean) if value.sd is None else f"{number(value.mean)} ± {number(value.sd, like=value.mean)}"


def interval(value: Difference, *, ratio: bool = False) -> str:
    """Return ``+mean (low to high)``, or ``x mean (low to high)``."""
    sign = "x " if ratio else "+" if value.mean > 0 else ""
    if value.low is None or value.high is None:
        return f"{sign}{number(value.mean)}"
    widest = max(abs(value.low), abs(value.high))
    return f"{sign}{number(value.mean, like=widest)} ({number(value.low, like=widest)} to {number(value.high, like=widest)})"


def number(value: float, *, like: float | None = None) -> str:
    """Return ``value`` with three digits after the point, fewer where it (or what it stands beside) is large."""
    size = abs(value if like is None else like)
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
