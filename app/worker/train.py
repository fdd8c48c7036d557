"""The training of a job: records become events, checkpoints become what the next attempt goes on from."""

import math
import time
from typing import Any

from torch import nn

from app.errors import CorruptError, NotFoundError
from app.jobs.attempt import Attempt
from app.jobs.request import CANONICAL
from app.registry.shelf import Shelf
from app.worker.failure import JobFailedError
from app.worker.guarantee import above
from app.worker.pulse import Pulse
from specnorm_core.data import Dataset
from specnorm_core.training import DivergedError, Fit, Hyperparameters, StepRecord

EVENTS = 50
"""Events with metrics that are spread over an attempt."""
SECONDS = 2.0
"""However long its steps take, an attempt that someone watches tells how far it is after so long."""


def train(
    model: nn.Module,
    data: Dataset,
    options: Hyperparameters,
    *,
    validation: Dataset | None,
    attempt: Attempt,
    blobs: Shelf,
    pulse: Pulse,
) -> tuple[dict[str, float], Fit]:
    """Train ``model`` in place, from the job's last checkpoint if it has one, and return the last metrics and the run.

    Raises:
        JobFailedError: training diverged, or cannot be private.
        SpecnormError: what :meth:`Pulse.check` raises, once the training so far is kept.
    """
    run, known = _run(model, data, options, validation=validation, attempt=attempt, blobs=blobs)
    diary = _Diary(run, attempt, blobs, known)
    try:
        diary.charge()
        for record in run:
            diary.note(record)
            if record.step % options.checkpoint_every == 0 or record.step == record.steps or pulse.interrupted:
                diary.keep()
                diary.charge(over=pulse.interrupted)
            pulse.check()
    except DivergedError as error:
        raise JobFailedError("diverged", f"{error}{diary.last_finite()}", param=f"{CANONICAL}.learning_rate") from error
    model.eval()
    return diary.metrics(), run


def _run(
    model: nn.Module, data: Dataset, options: Hyperparameters, *, validation: Dataset | None, attempt: Attempt, blobs: Shelf
) -> tuple[Fit, dict[str, float]]:
    """Return the run as its last checkpoint left it, with the numbers of then, or a new one where there is none that can be used."""
    kept, begun = attempt.last_checkpoint(), attempt.charged()
    if kept is not None:
        try:
            run = Fit(model, data, options, validation=validation, resume=blobs.get(kept.digest), begun=begun)
        except (CorruptError, NotFoundError, ValueError) as error:
            attempt.event(f"The last checkpoint cannot be used, training starts anew: {error}", level="warn")
        else:
            attempt.event(f"Training goes on after step {run.step} of {run.steps}.")
            return run, kept.metrics
    try:
        return Fit(model, data, options, validation=validation, begun=begun), {}
    except ValueError as error:
        if options.privacy is None:
            raise
        raise JobFailedError("not_private", f"this job cannot be private: {error}", param="privacy") from error


class _Diary:
    """What is known of a run so far, and how much of it was written down."""

    def __init__(self, run: Fit, attempt: Attempt, blobs: Shelf, known: dict[str, float]) -> None:
        self._run, self._attempt, self._blobs = run, attempt, blobs
        self._first = self._noted = run.step
        self._began = self._told = time.monotonic()
        self._record: StepRecord | None = None
        self._finite: StepRecord | None = None
        self._loss = known.get("train_loss")
        self._accuracy = known.get("accuracy")
        self._sigma: dict[str, float] = {}

    def note(self, record: StepRecord) -> None:
        """Take in a record, and append an event when enough has happened since the last."""
        self._record, self._loss = record, record.loss
        self._finite = record if record.loss is None or math.isfinite(record.loss) else self._finite
        self._accuracy = record.accuracy if record.accuracy is not None else self._accuracy
        self._sigma = record.sigmas or self._sigma
        now = time.monotonic()
        due = record.step - self._noted >= -(-record.steps // EVENTS) or now - self._told >= SECONDS
        if not due and record.step != record.steps:
            return
        self._noted, self._told = record.step, now
        pace = (now - self._began) / (record.step - self._first)
        data = {"step": record.step, "steps": record.steps, "epoch": record.epoch, **self._numbers(), "sigma": _finite(self._sigma)}
        epsilon = self._run.epsilon
        told = f"loss {record.loss:.6g}" if epsilon is None else f"epsilon {above(epsilon)}"
        message = f"Step {record.step} of {record.steps}: {told}"
        left = pace * (record.steps - record.step)
        self._attempt.progress(message, data, step=record.step, steps=record.steps, seconds_left=left)

    def keep(self) -> None:
        """Store a checkpoint, unless what it would keep is past saving."""
        if self._record is not None and self._record is self._finite:
            metrics = {"train_loss" if name == "loss" else name: value for name, value in self._numbers().items()}
            self._attempt.checkpoint(self._blobs.put(self._run.checkpoint()), step=self._record.step, metrics=metrics)

    def charge(self, *, over: bool = False) -> None:
        """Write down as spent what a private run takes up to its next checkpoint, before it does; ``over``: what it did take."""
        run = self._run
        if run.plan is None:
            return
        every = run.options.checkpoint_every
        ahead = 0 if over else min(every - run.step % every, run.steps - run.step)
        steps = run.begun + ahead
        spent = {"epsilon": run.plan.epsilon(steps), "delta": run.plan.privacy.delta}
        when = "is spent" if ahead == 0 else f"counts as spent before the next {ahead} steps are taken"
        self._attempt.charge(steps, f"Epsilon {above(spent['epsilon'])} at delta {spent['delta']:g} {when}: {steps} steps in all.", spent)

    def metrics(self) -> dict[str, float]:
        """Return the last numbers, for the manifest."""
        return self._numbers()

    def last_finite(self) -> str:
        """Return the last good loss as words; a private run tells none."""
        if self._finite is None:
            return " (no loss was finite)" if self._run.plan is None else ""
        return "" if self._finite.loss is None else f" (the last finite loss was {self._finite.loss:.6g}, at step {self._finite.step})"

    def _numbers(self) -> dict[str, float]:
        found: dict[str, Any] = {
            "loss": self._loss,
            "accuracy": self._accuracy,
            "epsilon": self._run.epsilon,
        }
        return _finite(found)


def _finite(numbers: dict[str, Any]) -> dict[str, float]:
    """Return the numbers that JSON can carry."""
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
