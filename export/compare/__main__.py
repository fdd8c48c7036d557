"""Compare both gradient modes on your own data: `specnorm compare` starts this as a child process."""

import argparse
import itertools
import platform
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from export.bundle import InputDomain
from export.compare import plots
from export.compare.pair import HELD_OUT, Pair, Run
from export.compare.report import FILE, Report, Subject, read, report, show, write
from export.train import describe
from specnorm_core.architecture import ACTIVATIONS, PRESETS, Architecture, build
from specnorm_core.data import DataError, Dataset, load
from specnorm_core.losses import LOSSES
from specnorm_core.norms import spectral_layers
from specnorm_core.training import OPTIMIZERS, Hyperparameters

RATES = {"adam": 3e-3, "sgd": 0.1}
RADII = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Default radii, as multiples of the range of the inputs."""
CURVE = 101
TOOLS = ("specnorm", "torch", "numpy", "onnxruntime")


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}. See `{self.prog} --help`.\n")


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing before there is one."""
        return Text(f"{task.speed:.0f} steps/s" if task.speed else "")


class Stop:
    """Set by the first Ctrl-C; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Listen for Ctrl-C."""
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``specnorm compare``."""
    parser = Parser(prog="specnorm compare", description="Both gradient modes side by side on your data: paired runs, several seeds.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="'digits', or a file of .jsonl, .csv or .npz with class labels")
    source.add_argument("--from", dest="earlier", type=Path, metavar="FILE", help=f"show and draw an earlier {FILE} again; trains nothing")
    parser.add_argument("--arch", default="mlp", help=f"{', '.join(sorted(PRESETS))}, or a file of architecture as JSON")
    parser.add_argument("--activation", default="groupsort", help=f"of a preset: {', '.join(sorted(ACTIVATIONS))}")
    parser.add_argument("--seeds", type=int, default=5, help="how many pairs of runs (5)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the data (20)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per step (64)")
    parser.add_argument("--optimizer", default="adam", choices=sorted(OPTIMIZERS), help="adam, or sgd with momentum 0.9")
    parser.add_argument(
        "--learning-rate", type=float, nargs="+", metavar="RATE",
        help=f"several make a sweep ({', '.join(f'{name}: {rate:g}' for name, rate in RATES.items())})",
    )  # fmt: skip
    parser.add_argument("--loss", default="cross_entropy", choices=sorted(set(LOSSES) - {"mse"}))
    parser.add_argument("--margin", type=float, default=0.5, help="of the loss margin (0.5)")
    parser.add_argument("--temperature", type=float, default=10.0, help="what logits are multiplied with in the loss (10)")
    parser.add_argument(
        "--radii", type=float, nargs="+", metavar="R",
        help=f"radii of certified accuracy, in units of the input ({', '.join(map(str, RADII))} times its range)",
    )  # fmt: skip
    parser.add_argument("--points", type=int, default=20, help="how often a run is measured on its way (20)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; 1 is fastest for small networks")
    parser.add_argument(
        "--out",
        type=Path,
        help="new folder for compare.json and the plots (by default the first free one of comparison-1, comparison-2, …)",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return 0, 1 with one sentence on stderr, or 130 when Ctrl-C ended it early."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    given = parser().parse_args(typed)
    console, notes = Console(highlight=False, markup=False), Console(stderr=True, highlight=False, markup=False)
    try:
        if given.earlier is not None:
            found, folder = read(given.earlier), given.earlier.parent
        else:
            folder = _folder(given.out)
            found = _compare(given, shlex.join(["specnorm", "compare", *typed]), folder, notes)
    except ValidationError as error:
        first = error.errors()[0]
        return _refuse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    except ValueError as error:
        return _refuse(str(error))
    if given.json:
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")
    else:
        show(found, console)
    file = given.earlier or folder / FILE
    notes.print(f"{'stopped; what was measured until then' if found.stopped else 'numbers'}: {file}", soft_wrap=True)
    notes.print(plots.draw_all(found, folder), soft_wrap=True)
    if found.stopped and given.earlier is None:
        return 130
    return 0 if found.rows else 1


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"specnorm compare: {sentence}\n")
    return 1


def _folder(wanted: Path | None) -> Path:
    """Return where the results go: a folder that holds nothing yet.

    Raises:
        ValueError: the one that is wanted holds something.
    """
    if wanted is None:
        return next(folder for number in itertools.count(1) if not (folder := Path(f"comparison-{number}")).exists())
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise ValueError(f"{wanted} exists and is not empty: choose another --out")
    return wanted


def _compare(given: argparse.Namespace, command: str, folder: Path, notes: Console) -> Report:
    """Train all pairs; after each one, what is known is on the disk.

    Raises:
        ValueError: the data, the network or an option is none that can be compared with.
    """
    for option in ("seeds", "points", "threads"):
        if getattr(given, option) < 1:
            raise ValueError(f"--{option} must be at least 1, got {getattr(given, option)}")
    torch.set_num_threads(given.threads)
    data = load(given.data)
    options = [_options(given, rate) for rate in _rates(given)]
    architecture, domain = _network(given, data)
    subject = _subject(given, command, data, architecture, domain)
    notes.print(f"{subject.title}; {len(data)} rows of shape {data.x.shape[1:]}, a fifth of them held out", soft_wrap=True)
    settings = [each.model_copy(update={"seed": seed}) for seed in subject.seeds for each in options]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}") from None
    done: list[Run] = []
    with Stop().listening() as stop, _bar(notes) as bar:
        task = bar.add_task("", total=len(settings) * -(-round(len(data) * (1 - HELD_OUT)) // given.batch_size) * given.epochs, about="")
        for each in settings:
            pair = Pair(architecture, data, each, points=given.points)
            bar.update(task, about=f"seed {each.seed}, rate {each.learning_rate:g}")
            for _ in pair:
                bar.advance(task)
                if stop.asked:
                    break
            else:
                pair.finish(subject.radii, subject.curve_radii, domain)
            done += pair.runs()
            found = report(subject, done, stopped=stop.asked)
            write(folder, found)
            if stop.asked:
                break
    return found


def _bar(console: Console) -> Progress:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps of both"),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[about]}"),
    )
    return Progress(*columns, console=console)


def _rates(given: argparse.Namespace) -> tuple[float, ...]:
    return tuple(given.learning_rate or [RATES[given.optimizer]])


def _options(given: argparse.Namespace, rate: float) -> Hyperparameters:
    return Hyperparameters(
        n_epochs=given.epochs, batch_size=given.batch_size, learning_rate=rate, optimizer=given.optimizer, loss=given.loss,
        temperature=given.temperature, margin=given.margin,
    )  # fmt: skip


def _network(given: argparse.Namespace, data: Dataset) -> tuple[Architecture, InputDomain]:
    """Return the architecture and the domain of its input.

    Raises:
        ValueError: the two do not fit, or there is nothing to compare.
    """
    if data.y.dtype.kind != "i":
        raise DataError("the comparison is of classifiers: the targets must be class labels, integers from 0; these are real numbers")
    if data.classes < 2:
        raise DataError("all rows are of one class: there is nothing to learn")
    if len(data) < 10:
        raise DataError(f"{len(data)} rows are too few: a fifth of them is held out to judge by; at least 10 are needed")
    architecture, domain = describe(given.data, data, arch=given.arch, activation=given.activation, mode="full", loss=given.loss)
    model = build(architecture, seed=0)
    if len(model.output_shape) != 1 or model.output_shape[0] < data.classes:
        raise ValueError(f"the network's output has shape {model.output_shape}, the data have {data.classes} classes")
    if not spectral_layers(model):
        raise ValueError("the network has no spectral layer, so both gradient modes are one")
    return architecture, domain


def _subject(given: argparse.Namespace, command: str, data: Dataset, network: Architecture, domain: InputDomain) -> Subject:
    """Return what the report says of its subject.

    Raises:
        ValueError: a radius is below 0.
    """
    span = float(data.x.max() - data.x.min()) if domain.minimum is None or domain.maximum is None else domain.maximum - domain.minimum
    radii = tuple(given.radii or (radius * (span or 1.0) for radius in RADII))
    if not all(0 <= radius < float("inf") for radius in radii):
        raise ValueError("a radius must be a number from 0")
    layers = spectral_layers(build(network, seed=0))
    rates = _rates(given)
    return Subject(
        command=command,
        versions={"python": platform.python_version()} | {tool: version(tool) for tool in TOOLS},
        data=given.data if given.data == "digits" else Path(given.data).stem,
        data_digest=data.digest,
        rows=len(data),
        held_out=round(len(data) * HELD_OUT),
        input_units=domain.units,
        network=f"{given.arch} ({given.activation})" if given.arch in PRESETS else Path(given.arch).stem,
        architecture=network.model_dump(mode="json"),
        shapes={name: "x".join(map(str, layer.weight.shape)) for name, layer in layers.items()},
        hyperparameters=_options(given, rates[0]).model_dump(exclude={"gradient_mode", "seed", "learning_rate"}),
        threads=given.threads,
        seeds=tuple(range(given.seeds)),
        learning_rates=rates,
        radii=radii,
        curve_radii=tuple(max(radii) * share / (CURVE - 1) for share in range(CURVE)),
    )


if __name__ == "__main__":
    sys.exit(main())
