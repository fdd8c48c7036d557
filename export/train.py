"""Train a network from the command line: data in, checkpoint and bundle out; `specnorm train` starts it as a child process."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from export import bundle
from export.bundle import InputDomain, Manifest, Training
from export.pipeline import export_bundle
from export.report import print_report
from specnorm_core.architecture import ACTIVATIONS, PRESETS, Architecture, Network, build, preset
from specnorm_core.data import DataError, Dataset, load
from specnorm_core.functional import GRADIENTS
from specnorm_core.training import DivergedError, Fit, Hyperparameters

DIGITS = InputDomain(minimum=0.0, maximum=16.0, units="pixel intensity, 0 to 16")


def train(
    data: Dataset, architecture: Architecture, options: Hyperparameters, *, domain: InputDomain, source: str | None, console: Console
) -> tuple[Network, Manifest, dict[str, bytes]]:
    """Return the trained network and its bundle; a fifth of the rows, drawn by the seed, are held out for validation.

    Raises:
        DivergedError: training produced a value that is not finite.
        FoldError, GraphError, VerificationError: as ``export_bundle``.
    """
    rows, held_out = data.split(0.2, options.seed)
    model = build(architecture, seed=options.seed)
    run = Fit(model, rows, options, validation=held_out)
    record = None
    with _bar(console) as bar:
        task = bar.add_task("training", total=run.steps, about="")
        for record in run:
            if record.accuracy is not None:
                bar.update(task, about=f"loss {record.loss:.4f}  held-out accuracy {record.accuracy:.3f}")
            bar.update(task, completed=record.step)
    if record is None:
        raise DataError("the data set is too small to train on")
    numbers = {"loss": record.loss, "accuracy": record.accuracy, "training_lag": max(run.lag.values(), default=0.0)}
    metrics = {name: value for name, value in numbers.items() if value is not None}
    labels = tuple(map(str, range(data.classes))) if options.loss != "mse" else ()
    manifest, files = export_bundle(
        model, architecture.with_gradient_mode(options.gradient_mode), samples=data.x, domain=domain, labels=labels, validation=held_out,
        training=Training(data_digest=data.digest, hyperparameters=options.model_dump(), metrics=metrics, seed=options.seed),
        source=source, progress=lambda sentence: console.print(f"  {sentence}"),
    )  # fmt: skip
    return model, manifest, files


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[about]}"),
    )
    return Progress(*columns, console=console)


def describe(source: str, data: Dataset, *, arch: str, activation: str, mode: Any, loss: str) -> tuple[Architecture, InputDomain]:
    """Return the architecture (a preset's name, or a file) and the input's domain for ``data``.

    Raises:
        ValueError: the preset or the file does not fit the data.
    """
    shape = tuple(data.x.shape[1:])
    outputs = 1 if loss == "mse" else data.classes
    if source == "digits":
        domain, shift, scale = DIGITS, 8.0, 1 / 8
    else:
        low, high = float(data.x.min()), float(data.x.max())
        shift, scale = (low + high) / 2, 2 / (high - low) if high > low else 1.0
        domain = InputDomain(minimum=low, maximum=high)
    if arch in PRESETS:
        return preset(arch, shape, outputs, activation=activation, gradient_mode=mode, shift=shift, scale=float(np.float32(scale))), domain
    if not Path(arch).is_file():
        raise ValueError(f"--arch must be one of {', '.join(sorted(PRESETS))} or a file of architecture as JSON; got {arch!r}")
    architecture = Architecture.model_validate_json(Path(arch).read_bytes())
    if architecture.input_shape != shape:
        raise ValueError(f"the architecture takes inputs of shape {architecture.input_shape}, the data has {shape}")
    return architecture, domain


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m export.train``."""
    parser = argparse.ArgumentParser(prog="specnorm train", description="Train a spectral-normalised network and write its bundle.")
    parser.add_argument("--data", required=True, help="'digits', or a file of .jsonl, .csv or .npz")
    parser.add_argument("--arch", default="mlp", help=f"{', '.join(sorted(PRESETS))}, or a file of architecture as JSON")
    parser.add_argument("--activation", default="groupsort", help=", ".join(sorted(ACTIVATIONS)))
    parser.add_argument("--gradient-mode", default="full", choices=sorted(GRADIENTS))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--loss", default="cross_entropy", help="cross_entropy, margin or mse")
    parser.add_argument("--temperature", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; 1 is fastest for small networks")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle; it must not exist")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return 0, or 1 with one sentence on stderr."""
    given = parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    console = Console(stderr=True)
    try:
        if given.out.exists() and any(given.out.iterdir()):
            raise ValueError(f"{given.out} exists and is not empty: choose another --out")
        data = load(given.data)
        architecture, domain = describe(
            given.data, data, arch=given.arch, activation=given.activation, mode=given.gradient_mode, loss=given.loss
        )
        options = Hyperparameters(
            gradient_mode=given.gradient_mode, n_epochs=given.epochs, batch_size=given.batch_size, learning_rate=given.learning_rate,
            loss=given.loss, temperature=given.temperature, seed=given.seed,
        )  # fmt: skip
        console.print(f"{len(data)} rows of shape {data.x.shape[1:]}, network {given.arch}, gradient mode {given.gradient_mode}")
        _, manifest, files = train(
            data, architecture, options, domain=domain, source="digits" if given.data == "digits" else None, console=console
        )
        bundle.write(given.out, manifest, files)
    except ValidationError as error:
        first = error.errors()[0]
        print(f"error: {'.'.join(map(str, first['loc']))}: {first['msg']}", file=sys.stderr)
        return 1
    except (ValueError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_report(manifest, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
