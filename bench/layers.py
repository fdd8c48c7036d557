"""Forward + backward + one power iteration of a spectral layer, in time and in peak extra memory, as a multiple of plain nn.Linear.

.venv/bin/python bench/layers.py [--sizes 512:1,512:64] [--runs 7] [--markdown] [--json FILE]

One thread. A run times every candidate in turn, in short interleaved rounds, by the processor time of the thread; a ratio is that of two
medians of one run; the table shows the median of the runs (least to most). The input requires a gradient. Memory is the most that
tensors take at once within a step beyond what is there before it, as PyTorch's profiler records it, with the output alive.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import specnorm_core as sn

SIZES = "512:1,512:64,512:1024,1024:1,1024:64,4096:1,4096:64"
PLAIN = "nn.Linear"
TORCHLIP = "deel-torchlip, no Björck"


def by_itself(layer):
    """A layer that needs nothing after a step."""
    return layer, lambda: None


def refreshed(mode):
    def make(n):
        layer = sn.SpectralLinear(n, n, gradient_mode=mode)
        return layer, layer.refresh

    return make


def attached(n):
    """As `attach` and `fit` run it: from the hook of an optimiser's step, of which only the hook is timed."""
    layer = sn.SpectralLinear(n, n)
    return layer, lambda: sn.power_iteration(layer)


def torchlip(n):
    return by_itself(importlib.import_module("deel.torchlip").SpectralLinear(n, n, eps_bjorck=None).train())


CANDIDATES = {
    PLAIN: lambda n: by_itself(nn.Linear(n, n)),
    "PyTorch parametrization": lambda n: by_itself(nn.utils.parametrizations.spectral_norm(nn.Linear(n, n)).train()),
    "PyTorch hook": lambda n: by_itself(nn.utils.spectral_norm(nn.Linear(n, n)).train()),
    TORCHLIP: torchlip,
    "specnorm full": refreshed("full"),
    "specnorm simplified": refreshed("simplified"),
    "specnorm full, attached": attached,
}


def step(layer, after, x, g):
    layer.zero_grad(set_to_none=True)
    x.grad = None
    layer(x).backward(g)
    after()


def peak(layer, after, x, g):
    """The most bytes that a step takes beyond those before it."""
    layer.zero_grad(set_to_none=True)
    x.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = layer(x)
        y.backward(g)
        after()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        record.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    taken = most = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        taken += event["args"]["Bytes"]
        most = max(most, taken)
    return most


def run(made, x, g, rounds):
    """The median time of a step of each candidate, in seconds, over interleaved rounds."""
    taken = {name: [] for name in made}
    for _ in range(rounds):
        for name, candidate in made.items():
            step(*candidate, x, g)  # finds the caches as its own last step left them
            begun = time.thread_time()
            step(*candidate, x, g)
            taken[name].append(time.thread_time() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(n, batch, names, runs):
    x, g = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
    made = {name: CANDIDATES[name](n) for name in names}
    for candidate in made.values():
        step(*candidate, x, g)
    rounds = max(2, min(100, int(3e8 / (n * n * (batch + 10)))))
    times = [run(made, x, g, rounds) for _ in range(runs)]
    memory = {name: peak(*candidate, x, g) for name, candidate in made.items()}
    return {
        name: {
            "seconds": statistics.median(one[name] for one in times),
            "time": sorted(one[name] / one[PLAIN] for one in times),
            "memory": memory[name] / memory[PLAIN],
        }
        for name in names
    }


def cell(found):
    time_ = found["time"]
    return f"{statistics.median(time_):.2f} ({time_[0]:.2f}–{time_[-1]:.2f}) / {found['memory']:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=SIZES, help="width:batch, ...")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/layers.md")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in CANDIDATES if name != TORCHLIP or importlib.util.find_spec("deel") is not None]
    if TORCHLIP not in names:
        print("deel-torchlip is not installed, and not measured: pip install --no-deps deel-torchlip")
    print(f"torch {torch.__version__}, 1 thread, {given.runs} paired runs: time, median (least to most) / peak extra memory, of {PLAIN}")
    results = {}
    if given.markdown:
        print("| width, batch | nn.Linear, ms | " + " | ".join(names[1:]) + " |\n|" + "---|" * (len(names) + 1))
    for size in given.sizes.split(","):
        n, batch = map(int, size.split(":"))
        results[size] = found = measure(n, batch, names, given.runs)
        plain = found[PLAIN]["seconds"] * 1e3
        if given.markdown:
            print(f"| {n}, {batch} | {plain:.2f} | " + " | ".join(cell(found[name]) for name in names[1:]) + " |", flush=True)
        else:
            print(f"\nwidth {n}, batch {batch}: {PLAIN} {plain:.3f} ms")
            for name in names[1:]:
                print(f"  {name:26s} {cell(found[name])}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"torch": torch.__version__, "runs": given.runs, "sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
