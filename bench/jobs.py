"""What fine-tuning costs serving, and how long lists take: p99 at half load with and without a job, in pairs; lists over full tables.

Service, load and job share the cores that there are. The load is paced: every request has its time, by which its latency counts,
whether or not those before it were late. Half load is half the rate that the same load reaches unpaced. The job is resumed and
paused between windows. Lists are asked of 10,000 jobs with five events each and a file for each, of 1,000 versions of a model that were
live in turn, and of 500 models more.

.venv/bin/python bench/jobs.py [--seconds 5] [--pairs 5] [--connections 16] [--only serving|lists]
"""

import argparse
import asyncio
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop
from infer import alive, cpu
from openai import OpenAI
from sqlalchemy import insert, select, update

from app.cli import load
from app.db import connect, files, history, job_events, jobs, models, version_files, versions
from app.jobs.request import parse
from export.bundle import digest

JOBS, EVENTS, VERSIONS, MODELS = 10_000, 5, 1_000, 500
LISTS = (
    "/v1/fine_tuning/jobs?limit=100",
    "/v1/fine_tuning/jobs?metadata[team]=none",
    "/v1/fine_tuning/jobs?metadata=null",
    f"/v1/fine_tuning/jobs/ftjob-{JOBS // 2}/events",
    f"/v1/fine_tuning/jobs/ftjob-{JOBS // 2}/checkpoints",
    "/v1/files",
    "/v1/files?purpose=fine-tune&limit=100",
    "/v1/models",
    "/admin/models",
    "/admin/models/digits/versions",
    "/admin/models/digits/versions?manifests=false&order=desc",
    f"/admin/models/digits/versions/{VERSIONS // 2}",
    "/admin/models/digits/history",
)


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[int, int]]:
    """Run `specnorm serve --demo` on all cores and give its pid and port."""
    log = (folder / "log").open("wb")
    command = [sys.executable, "-m", "app.cli", "serve", "--demo", "--port", "0", "--workspace", str(folder / "workspace")]
    with subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "SPECNORM_DEVICE": "cpu"}) as child:
        try:
            while b" at http://127.0.0.1:" not in (written := (folder / "log").read_bytes()):
                if child.poll() is not None:
                    raise SystemExit(written.decode())
                time.sleep(0.1)
            port = int(written.partition(b" at http://127.0.0.1:")[2].split()[0])
            while not alive(port):
                time.sleep(0.1)
            yield child.pid, port
        finally:
            child.terminate()
            log.close()


def requests() -> list[bytes]:
    found = []
    for number in range(64):
        row = np.random.default_rng(number).integers(0, 17, 64).tolist()
        body = f'{{"inputs":[{{"name":"input","shape":[1,64],"datatype":"FP32","data":{row}}}]}}'.encode()
        found.append(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return found


async def paced(port: int, payloads: list[bytes], *, connections: int, rate: float, seconds: float) -> list[float]:
    """Ask ``rate`` times a second over all connections and return the seconds from when each was due until it was answered."""
    taken: list[float] = []
    begun = time.perf_counter()

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(number, int(rate * seconds), connections):
            due = begun + at / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(payloads[at % len(payloads)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            taken.append(time.perf_counter() - due)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    return taken


def run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def p99(taken: list[float]) -> float:
    return 1e3 * sorted(taken)[int(0.99 * len(taken))]


def until(client: OpenAI, job: str, *, running: bool) -> None:
    """Wait until the job trains, or nobody works at it."""
    while (found := client.fine_tuning.jobs.retrieve(job)).status in {"succeeded", "failed"} or (found.status == "running") is not running:
        if found.status in {"succeeded", "failed"}:
            raise SystemExit(f"the job ended too early: {found.error}")
        time.sleep(0.2)


def serving(port: int, options: argparse.Namespace) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
    payloads = requests()
    target = load.Target("127.0.0.1", port)
    most = [run(load.run(target, payloads, connections=options.connections, seconds=options.seconds)).rate for _ in range(3)]
    rate = statistics.median(most) / 2
    rng, stream = np.random.default_rng(0), io.BytesIO()
    np.savez(stream, x=rng.integers(0, 17, (1500, 64)).astype(np.float32), y=rng.integers(0, 10, 1500))
    file = client.files.create(file=("rows.npz", stream.getvalue()), purpose="fine-tune").id
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 10_000}}}
    job = client.fine_tuning.jobs.create(model="digits", training_file=file, method=method).id
    pairs = []
    for _ in range(options.pairs):
        until(client, job, running=True)
        time.sleep(1)  # what comes before the first step is over
        beside = run(paced(port, payloads, connections=options.connections, rate=rate, seconds=options.seconds))
        client.fine_tuning.jobs.pause(job)
        until(client, job, running=False)
        alone = run(paced(port, payloads, connections=options.connections, rate=rate, seconds=options.seconds))
        client.fine_tuning.jobs.resume(job)
        pairs.append((p99(beside), p99(alone)))
        print(f"  p99 {pairs[-1][0]:.2f} ms with the job, {pairs[-1][1]:.2f} ms without: {pairs[-1][0] / pairs[-1][1]:.2f} ×")
    client.fine_tuning.jobs.cancel(job)
    ratios = sorted(one / other for one, other in pairs)
    print(f"{rate:.0f} requests/s, half of what there is, on {len(os.sched_getaffinity(0))} cores with the load itself")
    print(f"p99 with a job: {statistics.median(ratios):.2f} × that without ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} pairs)")


def altered(version: Any, number: int) -> dict[str, str]:
    """Return a manifest of that version's own, so that no two are the same text."""
    text = version.manifest.replace('"origin":"specnorm"', f'"origin":"specnorm {number}"')
    return {"manifest": text, "manifest_digest": digest(text.encode())}


def fill(workspace: Path) -> None:
    """Put the rows of many jobs and versions into the tables."""
    engine = connect(workspace)
    request = parse({"model": "digits:1", "training_file": "file-x", "metadata": {"team": "vision"}}).model_dump()
    with engine.begin() as connection:
        version = connection.execute(select(versions).where(versions.c.version == 1)).one()
        parts = connection.execute(select(version_files).where(version_files.c.version == 1)).all()
        more = range(2, VERSIONS + 1)
        connection.execute(
            insert(versions), [{**version._mapping, "version": number, "job": None, **altered(version, number)} for number in more]
        )
        connection.execute(insert(version_files), [{**part._mapping, "version": number} for number in more for part in parts])
        connection.execute(update(models).values(next_version=VERSIONS + 1))
        names = [f"model{number}" for number in range(MODELS)]
        connection.execute(insert(models), [{"name": name, "live": None, "next_version": 2} for name in names])
        connection.execute(insert(versions), [{**version._mapping, "model": name, "job": None} for name in names])
        move = {"model": "digits", "at": 1, "what": "promote", "who": "bench", "why": "bench"}
        connection.execute(insert(history), [{**move, "after": number} for number in more])
        file = {"created_at": 1, "filename": "rows.npz", "purpose": "fine-tune", "bytes": 1, "digest": "0" * 64}
        connection.execute(insert(files), [{"id": f"file-{number}", **file} for number in range(JOBS)])
        job = {"created_at": 1, "finished_at": 2, "state": "succeeded", "request": request, "model": "digits", "parent": "digits:1"}
        rows = [{"id": f"ftjob-{number}", "training_file": f"file-{number}", "attempt": 1, **job} for number in range(JOBS)]
        connection.execute(insert(jobs), rows)
        event = {"created_at": 1, "level": "info", "type": "message", "message": "Training goes on."}
        told = [{"id": f"e{number}-{at}", "job": f"ftjob-{number}", **event} for number in range(JOBS) for at in range(EVENTS)]
        connection.execute(insert(job_events), told)
    engine.dispose()


def lists(pid: int, port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for path in LISTS:
            client.get(path).raise_for_status()
            taken, before = [], cpu(pid)
            for _ in range(20):
                begun = time.perf_counter()
                client.get(path)
                taken.append(1e3 * (time.perf_counter() - begun))
            used = 1e3 * (cpu(pid) - before) / 20
            print(f"{path:58} {statistics.median(taken):7.1f} ms (up to {max(taken):.1f}), server's CPU {used:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", choices=["serving", "lists"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as (pid, port):
        if options.only != "lists":
            serving(port, options)
        if options.only != "serving":
            fill(Path(name) / "workspace")
            lists(pid, port)


if __name__ == "__main__":
    main()
