"""The examples run as a reader would run them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_certified_digits_example_prints_a_row_per_network_and_accuracy_falls_with_the_radius():
    done = run("examples/certified_digits.py", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines() if "cross entropy" in line or "margin" in line]
    numbers = [[float(word) for word in row[-1].split()[1 if "margin" in row[-1] else 2 :]] for row in rows]
    assert len(numbers) == 3
    for bound, *accuracies, _ in numbers:
        assert 1 < bound <= 2
        assert accuracies == sorted(accuracies, reverse=True)
        assert accuracies[0] > 0.8
    spectral, _, orthogonal = numbers
    assert orthogonal[0] > 1.99  # an orthogonal net attains the product of its norms; of the others a chain proves less
    assert orthogonal[4] > spectral[4]  # certified at 0.5


def test_the_certified_mnist_example_trades_accuracy_at_small_radii_for_large_ones_and_draws_both(tmp_path):
    digits = load_digits()
    large = np.zeros((600, 28, 28), dtype=np.float32)
    large[:, 2:26, 2:26] = np.kron(digits.images[:600] / 16, np.ones((3, 3)))  # real digits at the size of MNIST's
    np.savez(tmp_path / "digits.npz", x=large.reshape(600, -1), y=digits.target[:600])
    plot = tmp_path / "plot.png"
    options = ("--passes", "4", "--width", "64", "--plot", str(plot))
    done = run("examples/certified_mnist.py", "--data", str(tmp_path / "digits.npz"), *options)
    assert done.returncode == 0, done.stderr
    small, big = ([float(word) for word in line.split()[2:]] for line in done.stdout.splitlines() if "radii" in line)
    for bound, *accuracies, _ in (small, big):
        assert 0.99 < bound <= 1
        assert accuracies == sorted(accuracies, reverse=True)
    assert small[1] > 0.7
    assert small[1] + big[5] > big[1] + small[5]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_certified_mnist_example_refuses_other_images_in_a_sentence(tmp_path):
    np.savez(tmp_path / "digits.npz", x=np.zeros((10, 64), dtype=np.float32), y=np.arange(10))
    done = run("examples/certified_mnist.py", "--data", str(tmp_path / "digits.npz"))
    assert (done.returncode, "rows of 784 pixels" in done.stderr) == (2, True)
