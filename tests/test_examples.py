"""The examples run as a reader would run them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_certified_digits_example_prints_a_row_per_network_and_accuracy_falls_with_the_radius():
    done = subprocess.run(
        [sys.executable, "examples/certified_digits.py", "--epochs", "3"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines() if "cross entropy" in line or "margin" in line]
    numbers = [[float(word) for word in row[-1].split()[1 if "margin" in row[-1] else 2 :]] for row in rows]
    assert len(numbers) == 3
    for bound, *accuracies, _ in numbers:
        assert 1.99 < bound <= 2
        assert accuracies == sorted(accuracies, reverse=True)
        assert accuracies[0] > 0.8
    spectral, _, orthogonal = numbers
    assert orthogonal[4] > spectral[4]  # certified at 0.5
