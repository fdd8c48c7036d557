"""Time of the rigorous upper bound of sigma as a multiple of numpy's float64 SVD (values only), and its slack: median of paired runs.

.venv/bin/python bench/bounds.py [--sizes 512,1024] [--runs 5]
"""

import argparse
import statistics
import time

import numpy as np

from specnorm_core.bounds import sigma_estimate, sigma_upper

SVD_UP_TO = 2048


def timed(function, matrix):
    begun = time.perf_counter()
    value = function(matrix)
    return time.perf_counter() - begun, value


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="256,512,1024,4096")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    for n in map(int, given.sizes.split(",")):
        ratios, slacks, seconds = [], [], []
        for run in range(given.runs if n <= SVD_UP_TO else 1):
            matrix = np.random.default_rng(run).normal(size=(n, n))
            spent, upper = timed(sigma_upper, matrix)
            seconds.append(spent)
            if n <= SVD_UP_TO:
                other, values = timed(lambda m: np.linalg.svd(m, compute_uv=False), matrix)
                ratios.append(spent / other)
                slacks.append(upper / values[0] - 1)
            else:
                slacks.append(upper / sigma_estimate(matrix) - 1)
        against = f"{statistics.median(ratios):.2f} x SVD ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "against the lower bound"
        print(f"n {n}: {statistics.median(seconds) * 1e3:.0f} ms, {against}, slack at most {max(slacks):.1e}")


if __name__ == "__main__":
    main()
