"""One private step, ours and Opacus', as a multiple of the non-private step of plain nn.Linear in the same run: median of paired runs.

A step is everything: forward, backward, clipping, noise, SGD and, for spectral layers, one power iteration. PyTorch has one thread; a
second one draws the noise, so the time by the clock is less than the processor's where a second core is idle. Memory is the most that a
step holds at one time beside model and batch: what PyTorch allocates, and what NumPy and Python do. Opacus runs on plain nn.Linear, since
it refuses other spectral layers than ours.

.venv/bin/python bench/privacy.py [--sizes 512:64,1024:128] [--runs 5] [--no-opacus]
"""

import argparse
import os
import platform
import statistics
import time
import tracemalloc
import warnings
from importlib.util import find_spec

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import specnorm_core as sn
from specnorm_core import privacy

if find_spec("opacus"):
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

C, NOISE = 1.0, 1.0


def layer(kind, n):
    return nn.Sequential(kind(n, n))


def mlp(kind, n):
    return nn.Sequential(kind(n, n), nn.ReLU(), kind(n, n), nn.ReLU(), kind(n, 10))


MODELS = {"One layer": layer, "MLP of three": mlp}


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
    """Return the time by the clock and of the processor, all threads together."""
    begun = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begun[0]) / repeats, (time.process_time() - begun[1]) / repeats


def peak(step):
    """Return the most bytes that ``step`` holds at a time, beside those held before it: of both kinds, were they at their most together."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        tracemalloc.reset_peak()
        step()
        most_python = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    held = most = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most + most_python


def table(n, batch, kind, names, runs):
    """Print the rows of one network."""
    x, make = torch.randn(batch, n), MODELS[kind]
    steps = {name: CANDIDATES[name](make, n, x) for name in names}
    once = {name: (step(), seconds(step, 1)[0])[1] for name, step in steps.items()}
    repeats = {name: max(1, min(50, int(0.25 / once[name]))) for name in names}
    times = [{name: seconds(step, repeats[name]) for name, step in steps.items()} for _ in range(runs)]
    # Fresh ones, without gradients that the step would free first; of three, since the profiler now and then loses what a step allocated.
    memory = {name: max(peak(CANDIDATES[name](make, n, x)) for _ in range(3)) for name in names}
    first = names[0]
    clock, processor = (statistics.median(run[first][at] for run in times) * 1e3 for at in (0, 1))
    plain = f"{first} {clock:.2f} ms ({processor:.2f} of the processor), {memory[first] / 2**20:.2f} MiB"
    print(f"\n**{kind}, {n} wide, batch {batch}**: {plain}\n")
    print("| step | time by the clock | processor time | memory |\n|---|---|---|---|")
    for name in names[1:]:
        columns = []
        for at in (0, 1):
            ratios = sorted(run[name][at] / run[first][at] for run in times)
            columns.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"| {name} | {' | '.join(columns)} | {memory[name] / memory[first]:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="512:64,1024:128")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-opacus", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [name for name in CANDIDATES if "Opacus" not in name or not (given.no_opacus or find_spec("opacus") is None)]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"PyTorch {torch.__version__} on {platform.machine()}, 1 thread of {cores} cores, load {load:.1f} at the start.")
    print(f"Multiples of the non-private step of the same run; median of {given.runs} paired runs (least to most).")
    for size in given.sizes.split(","):
        n, batch = map(int, size.split(":"))
        for kind in MODELS:
            table(n, batch, kind, names, given.runs)


if __name__ == "__main__":
    main()
