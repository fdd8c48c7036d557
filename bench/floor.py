"""What Python can reach at most here: protocols under uvloop that only answer, or only run the model, beside a plain FastAPI application.

`constant` answers the same bytes to every read; `run` runs the model on one row before it does; neither looks at a request. What
the service and the plain application take is in the same table. CPU is the server's for a request.

.venv/bin/python bench/floor.py [--seconds 2] [--pairs 3] [--load wrk] [--markdown]
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infer import PLAIN, VARIETY, Figure, measure, request, server
from inference.generator import DEFAULT, GENERATORS
from inference.network import WIDTHS, network

from app.main import open_registry
from app.security import create_key
from app.settings import Settings
from export import bundle

BARE = Path(__file__).parent / "inference" / "bare.py"


def rows_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    manifest, model = network(WIDTHS["S"])
    (folder / "S.onnx").write_bytes(model)
    registry = open_registry(Settings(workspace=folder))
    registry.promote("S", registry.publish("S", manifest, {bundle.MODEL: model}), why="bench", who="bench")
    registry.database.dispose()
    _, key = create_key(folder / "keys.json", ["infer"])
    payloads = [request("S", 1, key, number, binary=False) for number in range(VARIETY)]
    path = str(folder / "S.onnx")
    service = {"WORKSPACE": str(folder), "WORKER": "none", "DEVICE": "cpu", "THREADS": "1", "API_KEYS_FILE": str(folder / "keys.json")}
    commands = {
        "constant bytes": [str(BARE), "constant", path, "PORT"],
        "the model, then constant bytes": [str(BARE), "run", path, "PORT"],
        "specnorm": ["-m", "app.cli", "serve", "--port", "PORT"],
        "plain FastAPI": [str(PLAIN), path, "PORT"],
    }
    for name, command in commands.items():
        with server(command, cores[-1], **{f"SPECNORM_{word}": value for word, value in service.items()}) as at:
            for connections in (64, 1):
                measure(at, payloads, connections, options)
                found = [measure(at, payloads, connections, options) for _ in range(options.pairs)]
                told = [statistics.median(getattr(one, field) for one in found) for field in Figure._fields]
                rate, p50, p99, cpu, load = told
                yield name, str(connections), f"{rate:,.0f}", f"{1e3 * p50:.2f}", f"{1e3 * p99:.2f}", f"{1e6 * cpu:.0f}", f"{load:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=3, help="how often each is measured")
    parser.add_argument("--load", choices=sorted(GENERATORS), default=DEFAULT)
    parser.add_argument("--markdown", action="store_true", help="a table to paste")
    options = parser.parse_args()
    head = ("what answers", "connections", "requests/s", "p50, ms", "p99, ms", "CPU, µs", "part of a core that the load took")
    form = "| {} | {} | {} | {} | {} | {} | {} |" if options.markdown else "{:32} {:>12} {:>12} {:>9} {:>9} {:>8} {:>9}"
    print(form.format(*head))
    if options.markdown:
        print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(options, Path(folder)):
            print(form.format(*row), flush=True)


if __name__ == "__main__":
    main()
