"""Readers of live events over real sockets: many, some of whom go away without a word."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.main import create_service
from app.settings import Settings


def met(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


def test_a_reader_that_vanishes_is_forgotten_and_the_others_are_told_the_rest(service: Any, tmp_path: Path) -> None:
    file = service.openai.files.create(file=("data.csv", b"a,target\n1,0\n"), purpose="fine-tune").id
    job = service.openai.fine_tuning.jobs.create(model="affine", training_file=file).id
    attempt = service.attempt()
    second = create_service(Settings(workspace=tmp_path, worker="none"))  # on the same workspace
    watch = second.end_streams.__self__  # type: ignore[attr-defined]  # to see whom it tells
    server = uvicorn.Server(uvicorn.Config(second.app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    met(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/admin/jobs/{job}/events"
    try:
        with httpx.Client(timeout=30) as vanishing, httpx.Client(timeout=30) as staying:
            gone = [vanishing.send(vanishing.build_request("GET", url), stream=True) for _ in range(5)]
            with staying.stream("GET", url) as stays:
                met(lambda: len(watch._readers) == 6)
                for response in gone:
                    response.close()
                met(lambda: len(watch._readers) == 1)
                attempt.fail("diverged", "NaN")
                told = [line for line in stays.iter_lines() if line.startswith("data:")]
        assert "NaN" in told[-1]
        met(lambda: not watch._readers)
        met(watch._ticking.done)
    finally:
        server.should_exit = True
        thread.join()
