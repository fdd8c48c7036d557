"""One private step, ours and Opacus', as a multiple of the non-private step of plain nn.Linear in the same run: median of paired runs.

A step is everything: forward, backward, clipping, noise, SGD and, for spectral layers, one power iteration. Memory is the most that a step
allocates at one time beside model and batch. Opacus runs on plain nn.Linear, since it refuses other spectral layers than ours.

.venv/bin/python bench/privacy.py [--sizes 512:64,1024:128] [--runs 5] [--no-opacus]
"""

import argparse
import statistics
import time
import warnings

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from torch.profiler import ProfilerActivity, profile

import specnorm_core as sn
from specnorm_core import privacy

C, NOISE = 1.0, 1.0


def layer(kind, n):
    return nn.Sequential(kind(n, n))


def mlp(kind, n):
    return nn.Sequential(kind(n, n), nn.ReLU(), kind(n, n), nn.ReLU(), kind(n, 10))


MODELS = {"one layer": layer, "MLP of three": mlp}


def losses(out):
    return out.square().mean(dim=1)


def plain(make, n, x):
    model = make(nn.Linear, n)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        losses(model(x)).mean().backward()
        optimizer.step()

    return step


def ours(source, mode, noise=NOISE):
    def candidate(make, n, x):
        model = make(lambda a, b: sn.SpectralLinear(a, b, gradient_mode=mode), n)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def step():
            privacy.set_gradients(
                model, lambda: losses(model(x)), max_grad_norm=C, noise_multiplier=noise, expected_rows=len(x), source=source
            )
            optimizer.step()
            sn.power_iteration(model)

        return step

    return candidate


def opacus(mode):
    def candidate(make, n, x):
        inner = make(nn.Linear, n)
        sgd = torch.optim.SGD(inner.parameters(), lr=1e-3)
        options = {"noise_multiplier": NOISE, "max_grad_norm": C, "expected_batch_size": len(x)}
        if mode == "hooks":
            model, optimizer = GradSampleModule(inner), DPOptimizer(sgd, **options)

            def step():
                optimizer.zero_grad()
                losses(model(x)).mean().backward()
                optimizer.step()

            return step
        model = GradSampleModuleFastGradientClipping(inner, max_grad_norm=C, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(sgd, **options)

        class Rows(nn.Module):
            reduction = "mean"

            def forward(self, out, _target):
                return losses(out) if self.reduction == "none" else losses(out).mean()

        criterion = DPLossFastGradientClipping(model, optimizer, Rows(), loss_reduction="mean")

        def ghost():
            optimizer.zero_grad()
            criterion(model(x), x).backward()
            optimizer.step()

        return ghost

    return candidate


CANDIDATES = {
    "nn.Linear, not private": plain,
    "ours, full": ours(privacy.Secure(), "full"),
    "ours, simplified": ours(privacy.Secure(), "simplified"),
    "ours, full, no noise": ours(privacy.Secure(), "full", noise=0.0),
    "ours, full, seeded noise": ours(privacy.Seeded(0), "full"),
    "Opacus hooks on nn.Linear": opacus("hooks"),
    "Opacus ghost on nn.Linear": opacus("ghost"),
}


def seconds(step, repeats):
    begun = time.thread_time()
    for _ in range(repeats):
        step()
    return (time.thread_time() - begun) / repeats


def peak(step):
    """Return the most bytes that ``step`` holds at a time, beside those held before it; found by adding up what torch allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="512:64,1024:128")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-opacus", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread; median of {given.runs} paired runs (least to most); peak memory of one step")
    names = [name for name in CANDIDATES if not (given.no_opacus and "Opacus" in name)]
    for size in given.sizes.split(","):
        n, batch = map(int, size.split(":"))
        for kind, make in MODELS.items():
            x = torch.randn(batch, n)
            steps = {name: CANDIDATES[name](make, n, x) for name in names}
            once = {name: (step(), seconds(step, 1))[1] for name, step in steps.items()}
            repeats = {name: max(1, min(50, int(0.25 / once[name]))) for name in names}
            runs = [{name: seconds(step, repeats[name]) for name, step in steps.items()} for _ in range(given.runs)]
            memory = {name: peak(CANDIDATES[name](make, n, x)) for name in names}  # fresh: without gradients that the step would free first
            first = names[0]
            base = statistics.median(run[first] for run in runs)
            print(f"\nn {n}, batch {batch}, {kind}: {first} {base * 1e3:.2f} ms, {memory[first] / 2**20:.2f} MiB")
            for name in names[1:]:
                ratios = sorted(run[name] / run[first] for run in runs)
                spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"  {name:28s} {statistics.median(ratios):6.2f} x {spread:18s} memory {memory[name] / memory[first]:6.2f} x")


if __name__ == "__main__":
    main()
