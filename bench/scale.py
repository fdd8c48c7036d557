"""What saturates first: 1,000 models, 10,000 requests a second, 100 jobs. A simulation on costs that are measured here first.

Measured on this machine: the memory of one more loaded model, the question that every serving process asks twice a second, and the
transactions of a running job. Taken from docs/speed.md: what a request costs alone and what it costs in a crowd. Simulated: serving
processes that take all waiting requests in one turn, and the one lock that transactions take in turn.

.venv/bin/python bench/scale.py [--models 1000] [--requests 10000] [--jobs 100] [--database-url postgresql://…] [--seconds 20]
"""

import argparse
import bisect
import dataclasses
import heapq
import io
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime as ort
from inference.network import WIDTHS, network

from app.db import connect
from app.jobs.attempt import Attempt
from app.jobs.request import JobRequest
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry
from export import bundle

ALONE_US, CROWD_US, CROWD = 294.0, 42.0, 64
"""Processor time of a JSON request of one row by itself, and of each of so many that wait together (docs/speed.md)."""

FOLLOWS = 2.0
BEATS, REPORTS = 1.0, 0.5
"""Questions of a serving process, heartbeats and reports of progress of a job, each for a second."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds and bytes, as measured."""

    model_bytes: dict[str, float]
    follow: float
    heartbeat: float
    progress: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000, help="a second")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--database-url", help="an empty database; SQLite without")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are simulated")
    options = parser.parse_args()
    costs = measured(options.models, options.database_url)
    for name, size in costs.model_bytes.items():
        whole = f"{options.models} of them {options.models * size / 1e9:.1f} GB in each process"
        print(f"memory: a model of size {name} takes {size / 1e6:.2f} MB, {whole}")
    print(f"database: {', '.join(f'{what} {getattr(costs, what) * 1e3:.2f} ms' for what in ('follow', 'heartbeat', 'progress'))}")
    print("\n| processes | busy | mean answer, ms | p99, ms | questions of the database, cores |\n|---|---|---|---|---|")
    for processes in (1, 2, 4, 8, 16, 32):
        busy, waits = serve(options.requests / processes, options.seconds)
        told = "without end | without end" if busy >= 1 else f"{statistics.mean(waits) * 1e3:.2f} | {quantile(waits, 0.99) * 1e3:.2f}"
        print(f"| {processes} | {busy:.0%} | {told} | {processes * FOLLOWS * costs.follow:.2f} |")
    print("\n| jobs | lock taken | mean wait, ms | p99, ms |\n|---|---|---|---|")
    for jobs in (options.jobs // 10, options.jobs, options.jobs * 5, options.jobs * 10):
        busy, waits = lock(jobs, costs, options.seconds)
        print(f"| {jobs} | {busy:.1%} | {statistics.mean(waits) * 1e3:.2f} | {quantile(waits, 0.99) * 1e3:.2f} |")


def measured(models: int, url: str | None) -> Costs:
    """Return the costs on this machine: of processor time where the work is our own, of the clock where a database does it."""
    with tempfile.TemporaryDirectory() as folder:
        engine = connect(Path(folder), url)
        registry = Registry(engine, Blobs(Path(folder) / "blobs"))
        manifest, graph = network(WIDTHS["S"])
        files = {"model.onnx": graph, "architecture.json": b"{}", "checkpoint.safetensors": b"of no use"}
        manifest = manifest.model_copy(update={"files": {name: bundle.digest(content) for name, content in files.items()}})
        for number in range(models):
            registry.publish(f"m{number}", manifest, files)
            registry.promote(f"m{number}", "1", why="bench", who="bench")
        attempt = started(Jobs(engine), Files(engine, registry.blobs, max_bytes=1 << 20))
        report = {"step": 1, "loss": 0.5, "sigma": {str(layer): 1.0 for layer in range(4)}}
        costs = Costs(
            model_bytes={name: memory(name) for name in WIDTHS},
            follow=median(registry.live_versions, 20),
            heartbeat=median(lambda: attempt.heartbeat(0.0), 100),
            progress=median(lambda: attempt.progress("a step", report, step=1, steps=2, seconds_left=1.0), 100),
        )
        engine.dispose()
    return costs


def started(jobs: Jobs, files: Files) -> Attempt:
    """Return a job at which somebody works."""
    file = files.create(io.BytesIO(b"a,target\n1,0\n"), filename="a.csv", purpose="fine-tune")
    jobs.create(JobRequest.model_validate({"model": "m0", "training_file": file["id"]}))
    claim = jobs.claim("bench")
    if claim is None:
        raise SystemExit("the database given is not empty: it has other jobs")
    attempt = Attempt(jobs.database, claim)
    attempt.accept("bench")
    attempt.start("bench")
    return attempt


def memory(name: str, count: int = 20) -> float:
    """Return by how much this process grows with one more session."""
    graph = network(WIDTHS[name])[1]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    before = resident()
    kept = [ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for _ in range(count)]
    return (resident() - before) / len(kept)


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def median(act: Callable[[], object], times: int) -> float:
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        act()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process."""
    draw, now = random.Random(seed), 0.0  # noqa: S311 - a simulation
    while (now := now + draw.expovariate(rate)) < seconds:
        yield now


def serve(rate: float, seconds: float) -> tuple[float, list[float]]:
    """One event loop: a turn takes all that wait, for a fixed cost and one for each. Return how busy it was, and the times of answers."""
    each = (CROWD_US * CROWD - ALONE_US) / (CROWD - 1) / 1e6
    fixed = ALONE_US / 1e6 - each
    moments = list(arrivals(rate, seconds, seed=1))
    took: list[float] = []
    first, free, busy = 0, 0.0, 0.0
    while first < len(moments):
        begun = max(free, moments[first])
        last = bisect.bisect_right(moments, begun, lo=first)
        turn = fixed + each * (last - first)
        free, busy = begun + turn, busy + turn
        took += [free - moment for moment in moments[first:last]]
        first = last
    return busy / seconds, took


def lock(jobs: int, costs: Costs, seconds: float) -> tuple[float, list[float]]:
    """Every transaction of every job behind one lock, first come, first served."""
    kinds = [(BEATS, costs.heartbeat), (REPORTS, costs.progress)]
    events = heapq.merge(
        *([(moment, cost) for moment in arrivals(rate * jobs, seconds, seed)] for seed, (rate, cost) in enumerate(kinds, 2))
    )
    free = busy = 0.0
    waits = []
    for moment, cost in events:
        begun = max(free, moment)
        waits.append(begun - moment)
        free, busy = begun + cost, busy + cost
    return busy / seconds, waits


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]


if __name__ == "__main__":
    main()
