"""The clock of the machine is set an hour forward or back in mid training: no lease is stolen, no job lost, no time stamp falls."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest


class Clock:
    """The wall clock of the processes that are started with its environment."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Set it so many seconds ahead of the true one."""
        self._file.write_text(f"{seconds}\n")


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_jumps_steals_no_lease_and_no_time_stamp_falls(machine: Any, uninterrupted: Any, until: Any, jump: int) -> None:
    clock = Clock(machine.scratch)
    fault = machine.fault("app.worker", "app.jobs.attempt:Attempt.checkpoint", "STOP", call=4)
    service = machine.serve(fault, environment=clock.environment)
    job = service.create(service.upload(machine.data))
    worker = until(lambda: machine.struck(fault), "the worker is in mid training")
    clock.jump(jump)
    rival = machine.serve()  # it goes by the true clock, and looks for leases that have run out
    rival.create(rival.upload(machine.data), dry_run=True)
    until(lambda: rival.openai.fine_tuning.jobs.list(limit=1).data[0].status == "succeeded", "the rival has looked, and done another job")
    os.kill(worker, signal.SIGCONT)
    told = service.succeeded(job)
    assert sum(message.startswith("Attempt ") for message in told) == 1, told
    events, end = service.events(job), service.job(job)
    stamps = [end.created_at, *(event.created_at for event in events), end.finished_at]
    assert stamps == sorted(stamps)
    assert (stamps[-1] - stamps[0] >= 3600) == (jump > 0)
    kept = [checkpoint.created_at for checkpoint in service.openai.fine_tuning.jobs.checkpoints.list(job, limit=100)]
    assert kept == sorted(kept, reverse=True)
    for by, act, version in ((7200, "promote", "3"), (-7200, "rollback", "1"), (0, "promote", "2"), (0, "rollback", "1")):
        clock.jump(by)
        assert service.http.post(f"/admin/models/digits/{act}", json={"version": version}).json()["live_version"] == version
    history = [move["at"] for move in service.http.get("/admin/models/digits/history").json()]
    assert len(history) == 5
    assert history == sorted(history)
    rival.stop()
    machine.whole(service, uninterrupted)
