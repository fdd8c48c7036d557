"""The export script: ``python -m export CHECKPOINT --out DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from export import bundle, checkpoint
from export.pipeline import export_bundle
from export.report import print_report
from specnorm_core.data import Dataset, load


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m export``."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Fold W / sigma, write ONNX, audit its bytes, verify, write the bundle."
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint.safetensors of specnorm, or a folder that holds one")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle; it must not exist or be empty")
    parser.add_argument("--data", help="'digits' or a file: real inputs to verify on (the default is what the checkpoint names)")
    return parser


def _checked(model_shape: tuple[int, ...], source: str | None) -> Dataset | None:
    """Return the data set to verify on, if any.

    Raises:
        ValueError: its inputs have another shape than the model's.
    """
    if source is None:
        return None
    data = load(source)
    if data.x.shape[1:] != model_shape:
        raise ValueError(f"the model takes inputs of shape {model_shape}, {source} has {data.x.shape[1:]}")
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; return 0, or 1 with one sentence on stderr and no bundle written."""
    given = parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        model, provenance = checkpoint.read(given.checkpoint)
        data = _checked(model.input_shape, given.data or provenance.source)
        if data is None:
            console.print("no data set is named: verifying on random inputs from the stated range (give --data for real ones)")
        manifest, files = export_bundle(
            model, provenance.architecture, samples=None if data is None else data.x, domain=provenance.input, labels=provenance.labels,
            training=provenance.training, validation=data, source=provenance.source,
            progress=lambda sentence: console.print(f"  {sentence}"),
        )  # fmt: skip
        bundle.write(given.out, manifest, files)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_report(manifest, console)
    console.print(f"bundle written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
