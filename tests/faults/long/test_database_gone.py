"""The database server is gone for half a minute in mid training: what is loaded serves on, nothing is lost, all goes on by itself."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import postgres

SECONDS = 30.0
pytestmark = pytest.mark.parametrize("machine", ["postgresql"] if postgres.found() else [], indirect=True)


@contextlib.contextmanager
def stopped(server: postgres.Server) -> Iterator[None]:
    """The server has ended, as at a power cut."""
    server.stop()
    yield
    server.start()


@contextlib.contextmanager
def silent(server: postgres.Server) -> Iterator[None]:
    """The server takes connections and answers nobody."""
    children = [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
    for pid in (server.pid, *children):
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in (*children, server.pid):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("gone", [stopped, silent])
def test_a_database_that_is_gone_for_half_a_minute_costs_no_job(
    machine: Any, postgres_server: postgres.Server, uninterrupted: Any, until: Any, gone: Any
) -> None:
    fault = machine.fault("app.worker", "app.jobs.attempt:Attempt.checkpoint", "STOP", call=4)
    service = machine.serve(fault, lease_seconds="8")
    before = service.infer()
    job = service.create(service.upload(machine.data))
    worker = until(lambda: machine.struck(fault), "the worker is in mid training")
    with gone(postgres_server):
        os.kill(worker, signal.SIGCONT)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert service.infer() == before
            assert service.http.get("/v2/health/live").status_code == 200
            time.sleep(0.5)
        if gone is stopped:
            with pytest.raises(openai.InternalServerError) as refused:
                service.job(job)
            assert refused.value.status_code == 503
    service.succeeded(job)
    machine.whole(service, uninterrupted)
