"""Two serving processes beside one, and how soon a health check is answered at full load. Ratios are of pairs, measured in turn.

Nothing is tied to a core: two processes are worth what the cores that are free let them be, so the part of a core that the load
took, and the CPU that the service got, are told beside every rate. Keys, limits, validation and metrics are on.

.venv/bin/python bench/processes.py [--seconds 2] [--pairs 5] [--load wrk] [--processes 2] [--markdown]
"""

import argparse
import contextlib
import http.client
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from infer import cpu, request, server, spread
from inference.generator import DEFAULT, GENERATORS, Found
from inference.network import WIDTHS, network

from app.main import open_registry
from app.security import create_key
from app.settings import Settings
from export import bundle

CASES = {"binary, 64 rows, 16 connections": (64, 16, True), "JSON, 1 row, 64 connections": (1, 64, False)}
HEALTH_CASE = "JSON, 1 row, 64 connections"


class Measured(NamedTuple):
    found: Found
    cpu: float  # seconds of CPU that the service got in a second


def members(pid: int) -> list[int]:
    """Return the process and those that it started."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def measure(at: tuple[int, int], payloads: list[bytes], connections: int, options: argparse.Namespace) -> Measured:
    pid, port = at
    before, begun = sum(map(cpu, members(pid))), time.perf_counter()
    found = GENERATORS[options.load](port, payloads, connections, options.seconds)
    return Measured(found, (sum(map(cpu, members(pid))) - before) / (time.perf_counter() - begun))


class Health(threading.Thread):
    """Asks for health on one connection, again and again, until it is stopped."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._done = threading.Event()
        self.taken: list[float] = []

    def run(self) -> None:
        while not self._done.wait(0.005):
            begun = time.perf_counter()
            self._connection.request("GET", "/v2/health/live")
            answer = self._connection.getresponse()
            answer.read()
            self.taken.append(time.perf_counter() - begun)

    def stop(self) -> list[float]:
        self._done.set()
        self.join()
        self._connection.close()
        return sorted(self.taken)


@contextlib.contextmanager
def service(folder: Path, processes: int) -> Iterator[tuple[int, int]]:
    environment = {"WORKSPACE": str(folder), "WORKER": "none", "DEVICE": "cpu", "THREADS": "1", "API_KEYS_FILE": str(folder / "keys.json")}
    command = ["-m", "app.cli", "serve", "--port", "PORT", "--processes", str(processes)]
    with server(command, None, **{f"SPECNORM_{name}": value for name, value in environment.items()}) as at:
        yield at


def rows_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    registry = open_registry(Settings(workspace=folder))
    manifest, model = network(WIDTHS["M"])
    registry.promote("M", registry.publish("M", manifest, {bundle.MODEL: model}), why="bench", who="bench")
    registry.database.dispose()
    _, key = create_key(folder / "keys.json", ["infer"])
    with service(folder, 1) as one, service(folder, options.processes) as several:
        for case, (rows, connections, binary) in CASES.items():
            payloads = [request("M", rows, key, number, binary=binary) for number in range(16)]
            measure(one, payloads, connections, options), measure(several, payloads, connections, options)  # warm
            pairs = [tuple(measure(at, payloads, connections, options) for at in (one, several)) for _ in range(options.pairs)]
            yield from compared(f"M, {case}", rows, pairs)
        rows, connections, binary = CASES[HEALTH_CASE]
        payloads = [request("M", rows, key, number, binary=binary) for number in range(16)]
        for what, at in (("one process", one), (f"{options.processes} processes", several)):
            health = Health(at[1])
            health.start()
            for _ in range(options.pairs):
                measure(at, payloads, connections, options)
            taken = health.stop()
            told = [f"{1e3 * taken[int(len(taken) * part)]:.1f}" for part in (0.5, 0.99)]
            yield f"health at full load (M, {HEALTH_CASE}), {what}", f"p50 {told[0]} ms", f"p99 {told[1]} ms", f"of {len(taken)} checks"


def compared(case: str, rows: int, pairs: list[tuple[Measured, ...]]) -> Iterator[tuple[str, ...]]:
    def told(value: str, scale: float, form: str) -> tuple[str, str]:
        values = [[getattr(side.found, value) if value != "cpu" else side.cpu for side in pair] for pair in pairs]
        middle = [form.format(scale * statistics.median(column)) for column in zip(*values, strict=True)]
        return middle[0], middle[1]

    yield f"{case}: rows/s", *told("rate", rows, "{:,.0f}"), spread([b.found.rate / a.found.rate for a, b in pairs], "×")
    yield "… p99, ms", *told("p99", 1e3, "{:.1f}"), spread([b.found.p99 / a.found.p99 for a, b in pairs], "×")
    yield "… CPU that the service got", *told("cpu", 1, "{:.2f}"), spread([b.cpu / a.cpu for a, b in pairs], "×")
    yield "… part of a core that the load took", *told("load", 1, "{:.0%}"), ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--load", choices=sorted(GENERATORS), default=DEFAULT)
    parser.add_argument("--markdown", action="store_true", help="a table to paste")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}, load by {options.load}; medians of {options.pairs} pairs\n")
    if options.markdown:
        print(f"| case | one process | {options.processes} processes | ratio (least to most) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(options, Path(folder)):
            print(f"| {' | '.join(row)} |" if options.markdown else "{:70} {:>12} {:>12}   {}".format(*row), flush=True)


if __name__ == "__main__":
    main()
