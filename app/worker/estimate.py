"""What a job would take, measured on its own first steps; nothing of it is kept."""

import time
from itertools import islice

from torch import nn

from app.jobs.request import CANONICAL
from app.worker.failure import JobFailedError
from specnorm_core.data import Dataset
from specnorm_core.training import DivergedError, Fit, Hyperparameters

STEPS = 8
"""Steps that are timed, after a first one in which libraries set themselves up."""


def estimate(model: nn.Module, data: Dataset, options: Hyperparameters, *, validation: Dataset | None) -> dict[str, float]:
    """Return ``rows``, ``validation_rows``, ``steps``, ``seconds_per_step`` and ``seconds``; of a private run also ``epsilon``.

    Raises:
        JobFailedError: the first steps fail already.
    """
    run = Fit(model, data, options, validation=validation)
    began = last = time.monotonic()
    done = 0
    try:
        for record in islice(run, 1 + STEPS):
            last = time.monotonic()
            done = record.step
            began = last if done == 1 and record.steps > 1 else began
    except DivergedError as error:
        raise JobFailedError("diverged", str(error), param=f"{CANONICAL}.learning_rate") from error
    pace = (last - began) / max(1, done - 1)
    spent = {} if run.plan is None else {"epsilon": run.plan.epsilon(run.steps)}
    rows = {"rows": len(data), "validation_rows": len(validation) if validation else 0}
    return {**rows, "steps": run.steps, "seconds_per_step": pace, "seconds": pace * run.steps, **spent}
