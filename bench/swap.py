"""100 promotions and rollbacks under full load: failed requests, answers of another version, RSS, and p99 with and without.

.venv/bin/python bench/swap.py [--swaps 100] [--connections 64]
"""

import argparse
import asyncio
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import httpx
import uvloop
from infer import VARIETY, request, server
from inference.network import WIDTHS, network

from app.cli import load
from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.security import create_key
from export import bundle


def rss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def asked(port: int, payloads: list[bytes], connections: int, seconds: float, seen: dict[str, int]) -> load.Load:
    def look(_head: bytes, body: bytes) -> None:
        answer = json.loads(body)
        seen[f"{answer['model_version']}:{answer['parameters']['model_digest'][:8]}"] = 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load.run(load.Target("127.0.0.1", port), payloads, connections=connections, seconds=seconds, seen=look))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--markdown", action="store_true", help="a table to paste")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry = Registry(connect(folder), Blobs(folder / "blobs"))
        for seed in range(3):
            manifest, model = network(WIDTHS["S"], seed=seed)
            version = registry.publish("S", manifest, {bundle.MODEL: model})
            if seed == 0:
                registry.promote("S", version, why="bench", who="bench")
        registry.database.dispose()
        _, key = create_key(folder / "keys.json", ["infer", "admin"])
        environment = {"WORKSPACE": name, "WORKER": "none", "DEVICE": "cpu", "THREADS": "1", "API_KEYS_FILE": str(folder / "keys.json")}
        command = ["-m", "app.cli", "serve", "--port", "PORT"]
        with server(command, cores[-1], **{f"SPECNORM_{name}": value for name, value in environment.items()}) as (pid, port):
            payloads = [request("S", 1, key, number, binary=False) for number in range(VARIETY)]
            swap(options, pid, port, payloads, key)


def swap(options: argparse.Namespace, pid: int, port: int, payloads: list[bytes], key: str) -> None:
    seen: dict[str, int] = {}
    refused: list[str] = []
    done = threading.Event()
    admin = httpx.Client(base_url=f"http://127.0.0.1:{port}/admin/models/S", headers={"Authorization": f"Bearer {key}"}, trust_env=False)

    def promote() -> None:
        for number in range(options.swaps):
            body = {"version": str(number % 3 + 1)}
            answer = admin.post("/rollback") if number % 4 == 3 else admin.post("/promote", json=body)
            if answer.status_code != 200:
                refused.append(answer.text)
            time.sleep(0.02)
        done.set()

    for version in "231":  # all loaded once
        admin.post("/promote", json={"version": version})
    quiet = asked(port, payloads, options.connections, 5, seen)
    before = rss(pid)
    thread = threading.Thread(target=promote)
    thread.start()
    taken: list[float] = []
    failures: list[str] = []
    while not done.is_set():
        part = asked(port, payloads, options.connections, 1, seen)
        taken += part.taken
        failures += part.failures
    thread.join()
    after = rss(pid)
    busy = load.Load(1, taken, [], failures)
    during, without = (1e3 * one.percentile(99) for one in (busy, quiet))
    rows = {
        "swaps, of them refused": f"{options.swaps}, {len(refused)}",
        "requests meanwhile, of them failed": f"{len(taken):,}, {len(failures)}",
        "versions and digests in the answers, one digest each": ", ".join(sorted(seen)),
        "p99 with and without swaps": f"{during:.1f} ms, {without:.1f} ms: {during / without:.2f} ×",
        "RSS before and after": f"{before:.0f} MB, {after:.0f} MB: {100 * (after / before - 1):+.1f} %",
    }
    if options.markdown:
        print(f"| {options.connections} connections | |\n|---|---|")
    for what, value in rows.items():
        print(f"| {what} | {value} |" if options.markdown else f"{what:56} {value}")


if __name__ == "__main__":
    main()
