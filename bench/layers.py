"""Forward + backward + one power iteration of a spectral layer, as a multiple of plain nn.Linear in the same run: median of paired runs.

.venv/bin/python bench/layers.py [--sizes 512:1,512:64,1024:64] [--runs 7]
"""

import argparse
import statistics
import time

import torch
from torch import nn

import specnorm_core as sn


def plain(n):
    return nn.Linear(n, n), lambda layer: None


def parametrization(n):
    return nn.utils.parametrizations.spectral_norm(nn.Linear(n, n)).train(), lambda layer: None


def ours(mode):
    def make(n):
        layer = sn.SpectralLinear(n, n, gradient_mode=mode)
        return layer, lambda layer: layer.refresh(1)

    return make


CANDIDATES = {
    "nn.Linear": plain,
    "PyTorch parametrization": parametrization,
    "specnorm full": ours("full"),
    "specnorm simplified": ours("simplified"),
}


def seconds(layer, after, x, g, repeats):
    begun = time.perf_counter()
    for _ in range(repeats):
        layer.zero_grad(set_to_none=True)
        layer(x).backward(g)
        after(layer)
    return (time.perf_counter() - begun) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="512:1,512:64,512:1024,1024:1,1024:64,4096:1,4096:64")
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread; median of {given.runs} paired runs (least to most)")
    for size in given.sizes.split(","):
        n, batch = map(int, size.split(":"))
        x, g = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
        made = {name: make(n) for name, make in CANDIDATES.items()}
        repeats = max(1, int(2e8 / (n * n * (batch + 4))))
        for layer, after in made.values():
            seconds(layer, after, x, g, 2)
        runs = [{name: seconds(*pair, x, g, repeats) for name, pair in made.items()} for _ in range(given.runs)]
        print(f"\nn {n}, batch {batch}: nn.Linear {statistics.median(run['nn.Linear'] for run in runs) * 1e3:.3f} ms")
        for name in list(CANDIDATES)[1:]:
            ratios = sorted(run[name] / run["nn.Linear"] for run in runs)
            print(f"  {name:26s} {statistics.median(ratios):5.2f} x  ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
