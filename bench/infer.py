"""The service beside a plain FastAPI application and beside ONNX Runtime in process: ratios, measured in turn in one run.

One serving process on one core, the load on another (as far as there are two). Keys, limits, validation and metrics are on;
the access log is off on both sides. Every figure is the median of paired runs. CPU is that of the server for one request, user
and system, which depends less on who else uses the machine than the rate does.

.venv/bin/python bench/infer.py [--seconds 2] [--pairs 5] [--load wrk] [--only json|binary] [--markdown]
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from inference.generator import DEFAULT, GENERATORS
from inference.network import WIDTHS, network

from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.security import create_key
from export import bundle

VARIETY = 64  # different rows, so that lengths and numbers differ from request to request
PLAIN = Path(__file__).parent / "inference" / "plain.py"
OTHERS = ("mosec", "mlserver", "bentoml", "kserve", "tritonserver")


class Figure(NamedTuple):
    rate: float
    p50: float
    p99: float
    cpu: float
    load: float


def request(model: str, rows: int, key: str, number: int, *, binary: bool) -> bytes:
    data = np.random.default_rng(number).random((rows, WIDTHS[model][0]), dtype=np.float32)
    entry: dict[str, Any] = {"name": "input", "shape": list(data.shape), "datatype": "FP32"}
    more = ""
    if binary:
        entry["parameters"] = {"binary_data_size": data.nbytes}
        text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        more = f"Inference-Header-Content-Length: {len(text)}\r\n"
        body = text + data.tobytes()
    else:
        body = json.dumps({"inputs": [{**entry, "data": data.ravel().tolist()}]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nContent-Type: application/json\r\n"
    return f"{head}{more}Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def server(command: list[str], core: int | None, **environment: str) -> Iterator[tuple[int, int]]:
    """Start a server, on one core or on any, and give its pid and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace("PORT", str(port)) for word in command]
    with subprocess.Popen([sys.executable, *words], env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as child:
        try:
            if core is not None:
                os.sched_setaffinity(child.pid, {core})
            while not alive(port):
                time.sleep(0.05)
            yield child.pid, port
        finally:
            child.terminate()


def alive(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live", timeout=60).status == 200
    except OSError:
        return False


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(at: tuple[int, int], payloads: list[bytes], connections: int, options: argparse.Namespace) -> Figure:
    pid, port = at
    before = cpu(pid)
    found = GENERATORS[options.load](port, payloads, connections, options.seconds)
    return Figure(found.rate, found.p50, found.p99, (cpu(pid) - before) / found.count, found.load)


def in_process(model: bytes, width: int, seconds: float) -> tuple[float, float]:
    """Return the rows of one thread of ONNX Runtime, 64 at a time, for a second by the clock and for one of its CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"input": np.random.default_rng(0).random((64, width), dtype=np.float32)}
    session.run(None, feed)
    begun, own, runs = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - begun < seconds:
        session.run(None, feed)
        runs += 1
    return 64 * runs / (time.perf_counter() - begun), 64 * runs / (time.thread_time() - own)


def rows_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Measure case by case: what, ours, beside what, ratio."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    registry = Registry(connect(folder), Blobs(folder / "blobs"))
    models = {name: network(widths) for name, widths in WIDTHS.items()}
    for name, (manifest, model) in models.items():
        registry.promote(name, registry.publish(name, manifest, {bundle.MODEL: model}), why="bench", who="bench")
    registry.database.dispose()
    (folder / "S.onnx").write_bytes(models["S"][1])
    _, key = create_key(folder / "keys.json", ["infer"])
    ours = server(
        ["-m", "app.cli", "serve", "--port", "PORT"],
        cores[-1],
        SPECNORM_WORKSPACE=str(folder),
        SPECNORM_WORKER="none",
        SPECNORM_DEVICE="cpu",
        SPECNORM_THREADS="1",
        SPECNORM_API_KEYS_FILE=str(folder / "keys.json"),
    )
    with ours as own, server([str(PLAIN), str(folder / "S.onnx"), "PORT"], cores[-1]) as peer:
        for connections in (64, 1) if "json" in options.only else ():
            payloads = [request("S", 1, key, number, binary=False) for number in range(VARIETY)]
            for one in (own, peer):
                measure(one, payloads, connections, options)  # warm
            pairs = [
                (measure(own, payloads, connections, options), measure(peer, payloads, connections, options)) for _ in range(options.pairs)
            ]
            yield from compared(f"JSON, 1 row, {connections} connection{'s' * (connections > 1)}, S", pairs)
        for name in WIDTHS if "binary" in options.only else ():
            payloads = [request(name, 64, key, number, binary=True) for number in range(16)]
            measure(own, payloads, 16, options)
            shares = []
            for _ in range(options.pairs):
                found = measure(own, payloads, 16, options)
                os.sched_setaffinity(0, {cores[-1]})
                limit = in_process(models[name][1], WIDTHS[name][0], 1.0)
                os.sched_setaffinity(0, {cores[0]})
                shares.append((64 * found.rate, limit[0], 64 / (found.cpu or 1e-9), limit[1], found.load))
            for what, (ours_at, limit_at) in {"rows/s": (0, 1), "rows for a second of CPU": (2, 3)}.items():
                told = [f"{statistics.median(share[at] for share in shares):,.0f}" for at in (ours_at, limit_at)]
                part = spread([100 * share[ours_at] / share[limit_at] for share in shares], "%")
                yield f"binary, 64 rows, 16 connections, {name}: {what}", told[0], f"{told[1]} in process", part
            yield "… part of its core that the load took", f"{statistics.median(share[4] for share in shares):.0%}", "", ""


def compared(case: str, pairs: list[tuple[Figure, Figure]]) -> Iterator[tuple[str, str, str, str]]:
    def told(name: str, scale: float, form: str) -> tuple[str, str]:
        return tuple(form.format(scale * statistics.median(getattr(pair[side], name) for pair in pairs)) for side in (0, 1))  # type: ignore[return-value]

    yield f"{case}: requests/s", *told("rate", 1, "{:,.0f}"), spread([a.rate / b.rate for a, b in pairs], "×")
    yield "… p50, ms", *told("p50", 1e3, "{:.2f}"), spread([a.p50 / b.p50 for a, b in pairs], "×")
    yield "… p99, ms", *told("p99", 1e3, "{:.2f}"), spread([a.p99 / b.p99 for a, b in pairs], "×")
    yield "… server's CPU for a request, µs", *told("cpu", 1e6, "{:.0f}"), spread([b.cpu / a.cpu for a, b in pairs], "× less")
    yield "… part of its core that the load took", *told("load", 1, "{:.0%}"), ""


def spread(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.3g} {unit} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--load", choices=sorted(GENERATORS), default=DEFAULT, help="what asks: wrk, or that of `specnorm bench`")
    parser.add_argument("--only", nargs="+", choices=("json", "binary"), default=("json", "binary"))
    parser.add_argument("--markdown", action="store_true", help="a table to paste")
    options = parser.parse_args()
    missing = [name for name in OTHERS if not (importlib.util.find_spec(name) or shutil.which(name))]
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}; load by {options.load}")
    print(f"medians of {options.pairs} pairs of {options.seconds} s")
    print(f"not installed, so not compared: {', '.join(missing)}\n")
    if options.markdown:
        print("| case | specnorm | beside it | ratio (least to most) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(options, Path(folder)):
            print(f"| {' | '.join(row)} |" if options.markdown else "{:58} {:>12} {:>22}   {}".format(*row), flush=True)


if __name__ == "__main__":
    main()
