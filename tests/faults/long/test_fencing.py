"""A worker that is stopped (SIGSTOP) past its lease and goes on later (SIGCONT) can write nothing; several services share one workspace."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import postgres

LEASE = "5"

pytestmark = pytest.mark.parametrize("machine", ["sqlite", *(["postgresql"] if postgres.found() else [])], indirect=True)


@pytest.mark.parametrize(
    ("place", "call"),
    [("app.worker.tune:load", 1), ("app.jobs.attempt:Attempt.checkpoint", 4), ("app.registry.registry:Registry.publish", 1)],
)
def test_a_worker_that_wakes_after_its_lease_is_refused(machine: Any, uninterrupted: Any, until: Any, place: str, call: int) -> None:
    fault = machine.fault("app.worker", place, "STOP", call=call)
    service = machine.serve(fault, lease_seconds=LEASE)
    job = service.create(service.upload(machine.data))
    worker = until(lambda: machine.struck(fault), "the worker is stopped")
    os.kill(service.pid, signal.SIGSTOP)
    other = machine.serve(lease_seconds=LEASE)
    told = other.succeeded(job)
    assert told.count("The job goes back to the queue: its worker showed no life for one lease.") == 1
    known = everything(machine)
    os.kill(worker, signal.SIGCONT)
    os.kill(service.pid, signal.SIGCONT)
    until(lambda: worker not in machine.workers(), "the worker has ended")
    assert everything(machine) == known
    assert service.job(job) == other.job(job)
    assert service.infer("3") == other.infer("3")
    assert service.stop() == 0
    machine.whole(other, uninterrupted)


def test_a_worker_that_wakes_beside_its_successor_is_refused(machine: Any, uninterrupted: Any, until: Any) -> None:
    """Here the job still runs, as somebody else's: it is the number of the attempt that tells the two apart."""
    first = machine.fault("app.worker", "app.jobs.attempt:Attempt.checkpoint", "STOP", call=4)
    second = machine.fault("app.worker", "app.registry.registry:Registry.publish", "STOP")
    service = machine.serve(first, lease_seconds="60")
    job = service.create(service.upload(machine.data))
    stale = until(lambda: machine.struck(first), "the first worker is stopped")
    os.kill(service.pid, signal.SIGSTOP)
    other = machine.serve(second, lease_seconds="15")
    successor = until(lambda: machine.struck(second), "the second worker is stopped")
    known = everything(machine)
    os.kill(stale, signal.SIGCONT)
    until(lambda: stale not in machine.workers() or everything(machine) != known, "the first worker has ended, or written")
    assert everything(machine) == known
    for pid in (successor, service.pid):
        os.kill(pid, signal.SIGCONT)
    other.succeeded(job)
    assert service.stop() == 0
    machine.whole(other, uninterrupted)


def everything(machine: Any) -> dict[str, list[Any]]:
    """Return every row that a worker could write."""
    tables = ("jobs", "job_events", "job_checkpoints", "models", "versions", "version_files", "history")
    with machine.database() as connection:
        return {table: [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table}")] for table in tables}


def test_two_services_and_a_worker_do_each_job_once(machine: Any, uninterrupted: Any, until: Any) -> None:
    """Three places that run jobs, one of which is killed with its worker; six jobs."""
    first, second = machine.serve(lease_seconds=LEASE), machine.serve(lease_seconds=LEASE)
    third = machine.start("app.cli", "worker", lease_seconds=LEASE)
    file = first.upload(machine.data)
    jobs = [first.create(file) for _ in range(6)]
    until(lambda: sum(one.job(job).status == "running" for one in [second] for job in jobs) == 3, "three jobs run at once")
    victims = [pid for pid in machine.workers() if parent(pid) == third.pid]
    third.kill()
    for pid in victims:
        machine.kill(pid)
    for job in jobs:
        second.succeeded(job)
    versions = second.versions()
    assert sorted(line["job"] for line in versions.values() if line["job"]) == sorted(jobs)
    made = [line | {"job": None, "created": None, "version": None} for line in versions.values() if line["job"]]
    assert made == [uninterrupted | {"job": None, "created": None, "version": None}] * 6
    assert first.stop() == second.stop() == 0
    machine.examined()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
