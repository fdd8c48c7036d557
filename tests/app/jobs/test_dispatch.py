"""Real child processes, which hold the job's claim as the real worker does but train nothing."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs.dispatch import Dispatcher
from app.jobs.launcher import Local

WORKER = """
import sys, time
from pathlib import Path
from app.jobs.attempt import Attempt
from app.jobs.store import Claim
from app.registry.workspace import open_registry
from app.settings import Settings
from app.worker.__main__ import conclude
from app.worker.pulse import Pulse
import signal
folder, job, token = Path(sys.argv[2]), sys.argv[4], int(sys.argv[6])
attempt = Attempt(open_registry(Settings(workspace=folder)).database, Claim(job, token))
def work():
    if attempt.assignment().state == "validating_files":
        attempt.accept("good")
    attempt.start("go")
    (folder / f"pid-{token}").write_text(str(__import__("os").getpid()))
    while not (folder / "finish").exists():
        pulse.check()
        time.sleep(0.01)
    attempt.succeed("done")
pulse = Pulse(attempt, 0.05)
signal.signal(signal.SIGTERM, lambda *_: pulse.interrupt("asked to end"))
with pulse:
    status = conclude(attempt, work)
sys.exit(status)
"""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def local(workspace: Any) -> Local:
    script = workspace.folder / "worker.py"
    script.write_text(WORKER)
    return Local(workspace.settings, command=[sys.executable, str(script)])


def until(dispatcher: Dispatcher, met: Callable[[], bool]) -> None:
    for _ in range(2000):
        dispatcher.turn()
        if met():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


def pid(folder: Path, token: int) -> int | None:
    path = folder / f"pid-{token}"
    return int(path.read_text()) if path.exists() and path.read_text() else None


def status(workspace: Any, job: str) -> str:
    return str(workspace.jobs.get(job)["status"])


def test_a_job_whose_worker_is_killed_runs_again_and_ends_once(workspace: Any, local: Local) -> None:
    job = workspace.create()["id"]
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings, clock=Clock())
    until(dispatcher, lambda: pid(workspace.folder, 1) is not None)
    os.kill(pid(workspace.folder, 1) or 0, signal.SIGKILL)
    until(dispatcher, lambda: pid(workspace.folder, 2) is not None)
    (workspace.folder / "finish").touch()
    until(dispatcher, lambda: status(workspace, job) == "succeeded")
    told = [event["message"] for event in workspace.jobs.events(job, limit=100).items]
    assert told.count("done") == 1
    assert sum("status -9" in message for message in told) == 1
    dispatcher.close()


def test_a_stopped_worker_of_another_dispatcher_is_taken_over_and_refused_when_it_goes_on(workspace: Any, local: Local) -> None:
    job = workspace.create()["id"]
    claim = workspace.jobs.claim("somebody who is gone")
    old = local.start(claim)
    while pid(workspace.folder, 1) is None:
        time.sleep(0.01)
    clock = Clock()
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings, clock=clock)
    dispatcher.turn()
    clock.now += 100
    time.sleep(0.2)  # the heart beats meanwhile, so that the time that passed means nothing
    dispatcher.turn()
    assert status(workspace, job) == "running"
    stop(workspace, old.pid)
    dispatcher.turn()
    clock.now += 100
    until(dispatcher, lambda: pid(workspace.folder, 2) is not None)
    os.kill(old.pid, signal.SIGCONT)
    while old.poll() is None:
        time.sleep(0.01)
    assert old.poll() == 0
    assert status(workspace, job) == "running"
    assert [lease.token for lease in workspace.jobs.leases()] == [2]
    (workspace.folder / "finish").touch()
    until(dispatcher, lambda: status(workspace, job) == "succeeded")
    dispatcher.close()


def stop(workspace: Any, process: int) -> None:
    """Stop a worker right after a heartbeat, while this process has the lock: in the middle of one it would hold the database for all."""
    before = workspace.jobs.leases()
    while workspace.jobs.leases() == before:
        time.sleep(0.001)
    with workspace.jobs.database.begin():
        os.kill(process, signal.SIGSTOP)


def test_a_stopped_worker_of_ones_own_is_killed_after_one_lease(workspace: Any, local: Local) -> None:
    workspace.create()
    clock = Clock()
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings, clock=clock)
    until(dispatcher, lambda: pid(workspace.folder, 1) is not None)
    stop(workspace, pid(workspace.folder, 1) or 0)
    dispatcher.turn()
    clock.now += workspace.settings.lease_seconds
    until(dispatcher, lambda: pid(workspace.folder, 2) is not None)
    with pytest.raises(ProcessLookupError):
        os.kill(pid(workspace.folder, 1) or 0, 0)
    dispatcher.close()


def test_closing_asks_the_workers_to_end_and_leaves_their_jobs_in_the_queue(workspace: Any, local: Local) -> None:
    job = workspace.create()["id"]

    async def serve() -> None:
        dispatcher = Dispatcher(workspace.jobs, local, workspace.settings)
        task = asyncio.create_task(dispatcher.run())
        while pid(workspace.folder, 1) is None:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(serve())
    assert status(workspace, job) == "queued"
    assert workspace.jobs.leases() == []
    assert list((workspace.folder / "workers").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid(workspace.folder, 1) or 0, 0)


def gone(process: int | None) -> bool:
    try:
        os.kill(process or 0, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_worker_of_a_cancelled_job_ends_when_its_heart_beats_and_the_next_job_takes_its_place(workspace: Any, local: Local) -> None:
    job = workspace.create()["id"]
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings, clock=Clock())
    until(dispatcher, lambda: pid(workspace.folder, 1) is not None)
    first = pid(workspace.folder, 1)
    assert workspace.jobs.cancel(job)["status"] == "cancelled"
    until(dispatcher, lambda: gone(first))
    (workspace.folder / "pid-1").unlink()
    other = workspace.create()["id"]
    until(dispatcher, lambda: pid(workspace.folder, 1) is not None)
    assert [status(workspace, name) for name in (job, other)] == ["cancelled", "running"]
    dispatcher.close()


def test_a_worker_that_goes_on_for_a_lease_after_its_job_was_cancelled_is_killed(workspace: Any, local: Local) -> None:
    # Its pulse beats once and is too slow to notice: it is stopped in no transaction, which would hold the database for all.
    (workspace.folder / "worker.py").write_text(WORKER.replace("0.05", "3600"))
    job = workspace.create()["id"]
    clock = Clock()
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings, clock=clock)
    until(dispatcher, lambda: pid(workspace.folder, 1) is not None and [lease.heartbeat for lease in workspace.jobs.leases()] == [2])
    worker = pid(workspace.folder, 1)
    with workspace.jobs.database.begin():
        os.kill(worker or 0, signal.SIGSTOP)
    workspace.jobs.cancel(job)
    dispatcher.turn()
    assert not gone(worker)
    clock.now += workspace.settings.lease_seconds
    until(dispatcher, lambda: gone(worker))
    assert status(workspace, job) == "cancelled"
    dispatcher.close()


@pytest.mark.parametrize(("asked", "limit"), [({"max_seconds": 0.1}, 6 * 3600.0), ({}, 0.1)])
def test_a_job_that_takes_longer_than_it_may_fails(workspace: Any, local: Local, asked: dict[str, float], limit: float) -> None:
    job = workspace.create(**asked)["id"]
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings.model_copy(update={"job_max_seconds": limit}), clock=Clock())
    until(dispatcher, lambda: status(workspace, job) == "failed")
    error = workspace.jobs.get(job)["error"]
    told = "the job took longer than the 0.1 seconds that it may take; it got to no step yet"
    assert (error["code"], error["param"], error["message"]) == ("timeout", "max_seconds", told)
    until(dispatcher, lambda: gone(pid(workspace.folder, 1)))
    dispatcher.close()


def test_as_many_jobs_run_at_once_as_the_limit_says(workspace: Any, local: Local) -> None:
    made = [workspace.create()["id"] for _ in range(3)]
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings, limit=2, clock=Clock())
    until(dispatcher, lambda: [status(workspace, job) for job in made] == ["running", "running", "validating_files"])
    (workspace.folder / "finish").touch()
    until(dispatcher, lambda: all(status(workspace, job) == "succeeded" for job in made))
    dispatcher.close()


def test_a_worker_that_dies_at_once_every_time_loses_the_job_and_its_words_go_to_the_log(
    workspace: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = workspace.create()["id"]
    local = Local(workspace.settings, command=[sys.executable, "-c", "import sys; sys.exit('a secret path')"])
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings)
    until(dispatcher, lambda: status(workspace, job) == "failed")
    assert workspace.jobs.get(job)["error"]["code"] == "lost"
    assert "a secret path" in caplog.text
    assert not any("secret" in event["message"] for event in workspace.jobs.events(job, limit=100).items)


def test_a_command_that_cannot_be_started_loses_the_job(workspace: Any) -> None:
    job = workspace.create()["id"]
    dispatcher = Dispatcher(workspace.jobs, Local(workspace.settings, command=["/nonexistent"]), workspace.settings)
    until(dispatcher, lambda: status(workspace, job) == "failed")
