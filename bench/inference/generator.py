"""The load: wrk where it is installed, otherwise the generator of `specnorm bench`, which takes twice the CPU for a request."""

import asyncio
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from app.cli import load

SCRIPT: Final = Path(__file__).with_name("replay.lua")


class Found(NamedTuple):
    """Answers, their number for a second, percentiles in seconds, and the part of its core that the load took."""

    count: int
    rate: float
    p50: float
    p99: float
    load: float


def wrk(port: int, payloads: list[bytes], connections: int, seconds: float) -> Found:
    """Have wrk ask for ``seconds``, on one thread."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(b"%08d" % len(payload) + payload for payload in payloads))
        file.flush()
        before = _children()
        begun = time.perf_counter()
        text = subprocess.run(
            [
                str(shutil.which("wrk")),
                "-t1",
                f"-c{connections}",
                f"-d{seconds:g}s",
                "--timeout",
                "30s",
                "-s",
                str(SCRIPT),
                f"http://127.0.0.1:{port}/",
            ],
            env={**os.environ, "REPLAY": file.name},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        part = (_children() - before) / (time.perf_counter() - begun)
    words = next(line for line in text.splitlines() if line.startswith("replayed ")).split()[1:]
    count, microseconds, p50, p99, failures = map(int, words)
    if failures or not count:
        raise SystemExit(f"{failures} requests failed, {count} were answered:\n{text}")
    return Found(count, 1e6 * count / microseconds, p50 / 1e6, p99 / 1e6, part)


def own(port: int, payloads: list[bytes], connections: int, seconds: float) -> Found:
    """Ask with what `specnorm bench` asks with."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        before = time.process_time()
        found = runner.run(load.run(load.Target("127.0.0.1", port), payloads, connections=connections, seconds=seconds))
    if found.failures:
        raise SystemExit(f"a request failed: {found.failures[0]}")
    part = (time.process_time() - before) / found.seconds
    return Found(len(found.taken), found.rate, found.percentile(50), found.percentile(99), part)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


GENERATORS: Final[dict[str, Callable[[int, list[bytes], int, float], Found]]] = {"wrk": wrk, "own": own}
DEFAULT: Final = "wrk" if shutil.which("wrk") else "own"
