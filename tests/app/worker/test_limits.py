"""What one job may take of the machine: the real worker process at its bounds."""

import io
import sys
from typing import Any

import numpy as np
import pytest

from app.jobs.dispatch import Dispatcher
from app.jobs.launcher import Local
from app.worker.failure import failure_of

# The real worker, but for its priority: beside other tests it would wait for the processor most of the time.
COMMAND = [sys.executable, "-c", "import sys, app.worker.__main__ as w; w.yield_to_others = lambda: None; sys.exit(w.main())"]


def test_a_job_that_needs_more_memory_than_it_may_have_fails_and_says_how_much_that_is(workspace: Any) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros((1_000_000, 64), np.float32), y=np.arange(1_000_000) % 10)
    stream.seek(0)
    job = workspace.create(workspace.files.create(stream, "large.npz", "fine-tune")["id"], hyperparameters={"n_epochs": 1})
    settings = workspace.settings.model_copy(update={"job_max_bytes": 600 * 2**20})
    dispatcher = Dispatcher(workspace.jobs, Local(settings, command=COMMAND), settings)
    while workspace.jobs.get(job)["status"] not in {"failed", "succeeded"}:
        dispatcher.turn()
    dispatcher.close()
    error = workspace.jobs.get(job)["error"]
    assert (error["code"], "more memory than the 600 MiB that it may have" in error["message"]) == ("oom", True), error
    assert workspace.registry.live("digits") == "1"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")])
def test_every_way_to_run_out_of_memory_is_told_as_such(error: Exception) -> None:
    assert failure_of(error).code == "oom"
