"""Certified MNIST digits: two orthogonal GroupSort networks, one for small radii and one for large, proved of the exported bytes.

    python examples/mnist10k.py --out mnist.npz
    python examples/certified_mnist.py --data mnist.npz --plot certified.png

8,000 of the digits train, 2,000 are held out. Each network is three orthogonal layers of 256 units and a last one; what differs is the
margin that its loss asks for: how far from the decision boundary, in L2 with pixels in [0, 1], a digit must lie to cost nothing. The
training digits are also shown turned, scaled and shifted a little. The accuracies are read from the outputs of the exported graph.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from export import verify
from export.bundle import InputDomain
from export.pipeline import export_bundle
from specnorm_core.architecture import Architecture, Orthogonal, Sort, build
from specnorm_core.data import DataError, Dataset, load
from specnorm_core.training import Fit, Hyperparameters

RADII = (0.1, 0.25, 0.5, 1.0, 1.58)
SIDE = 28
COPIES = 10
"""Times that each digit is shown, each time moved otherwise, before all are shown again."""
MARGINS = {"small radii": 1.0, "large radii": 3.0}


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images ``x (N, 784)``, each turned by up to 10 degrees, scaled by up to 10 % and shifted by up to a pixel."""
    turn, scale, right, down = (torch.rand(4, len(x), generator=generator) * 2 - 1).unbind()
    turn, scale = turn * np.pi / 18, 1 + scale / 10
    shift = 2 / SIDE  # a pixel: grid coordinates run from -1 to 1
    rows = (scale * turn.cos(), -scale * turn.sin(), right * shift, scale * turn.sin(), scale * turn.cos(), down * shift)
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), (len(x), 1, SIDE, SIDE), align_corners=False)
    return F.grid_sample(x.view(-1, 1, SIDE, SIDE), grid, align_corners=False).flatten(1)


def network(width: int) -> Architecture:
    """Return the network: three hidden orthogonal layers of ``width`` units."""
    hidden = [spec for _ in range(3) for spec in (Orthogonal(features=width), Sort())]
    return Architecture(input_shape=(SIDE * SIDE,), layers=(*hidden, Orthogonal(features=10)))


def train(data: Dataset, margin: float, given: argparse.Namespace, progress: Progress) -> tuple[torch.nn.Module, Architecture]:
    """Return the trained network and what it is built from."""
    generator = torch.Generator().manual_seed(given.seed)
    x = torch.from_numpy(data.x)
    copies = min(COPIES, given.passes)
    shown = Dataset(torch.cat([moved(x, generator) for _ in range(copies)]).numpy(), np.tile(data.y, copies), data.digest)
    options = Hyperparameters(
        n_epochs=given.passes // copies, batch_size=128, learning_rate=1e-2, schedule="one_cycle", loss="margin", temperature=1.0,
        margin=margin, seed=given.seed,
    )  # fmt: skip
    architecture = network(given.width)
    model = build(architecture, seed=given.seed)
    task = progress.add_task(f"margin {margin:g}", total=None)
    for record in Fit(model, shown, options):
        progress.update(task, completed=record.step, total=record.steps)
    return model, architecture


def measure(model: torch.nn.Module, architecture: Architecture, data: Dataset, held_out: Dataset) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the Lipschitz bound, which held-out digits are right, and the certified radius of each, all of the exported graph."""
    domain = InputDomain(minimum=0.0, maximum=1.0, units="pixel intensity, 0 to 1")
    manifest, files = export_bundle(model, architecture, samples=data.x[:1000], labels=tuple("0123456789"), domain=domain)
    served = verify.run(files["model.onnx"], held_out.x)
    assert manifest.lipschitz.bound is not None  # noqa: S101  # every layer of it has one
    return manifest.lipschitz.bound, served["logits"].argmax(axis=1) == held_out.y, served["certified_radius"]


def plot(curves: dict[str, tuple[np.ndarray, np.ndarray]], to: Path) -> None:
    """Draw certified accuracy against the radius."""
    from matplotlib import pyplot  # noqa: PLC0415  # an extra: only the plot needs it

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    at = np.linspace(0, 3, 301)
    for (name, (right, radius)), dashes in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(at, [(right & (radius >= r)).mean() for r in at], dashes, label=f"{name} (margin {MARGINS[name]:g})")
    axes.set(
        xlabel="radius (L2, pixels 0 to 1)", ylabel="certified accuracy", title="2,000 held-out MNIST digits", xlim=(0, 3), ylim=(0, 1)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(to, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export, measure; print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="what examples/mnist10k.py wrote: x (N, 784) from 0 to 1, and y")
    parser.add_argument("--passes", type=int, default=20, help="times that each digit is shown (default 20)")
    parser.add_argument("--width", type=int, default=256, help="units of a hidden layer (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, the moves and the order of the rows (default 0)")
    parser.add_argument("--plot", type=Path, help="a PNG or SVG to draw (needs the extra `plots`)")
    given = parser.parse_args(arguments)
    try:
        data, held_out = load(given.data).split(0.2)
    except DataError as error:
        parser.error(str(error))
    if data.x.shape[1:] != (SIDE * SIDE,):
        parser.error(f"--data must hold rows of {SIDE * SIDE} pixels, these have shape {data.x.shape[1:]}")
    table = Table("network", "L", "clean", *(f"r = {r:g}" for r in RADII), "seconds", box=None, padding=(0, 2, 0, 0))
    curves = {}
    with Progress(transient=True) as progress:
        for name, margin in MARGINS.items():
            start = time.monotonic()
            model, architecture = train(data, margin, given, progress)
            bound, right, radius = measure(model, architecture, data, held_out)
            curves[name] = right, radius
            numbers = [float((right & (radius >= r)).mean()) for r in (0.0, *RADII)]
            table.add_row(name, *(f"{number:.3f}" for number in (bound, *numbers)), f"{time.monotonic() - start:.0f}")
    Console(width=110).print(table)
    if given.plot:
        plot(curves, given.plot)


if __name__ == "__main__":
    main()
