"""One attempt at a job, as the worker that makes it sees it: every write names the token, and is refused once it is stale."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, insert, select, update

from app.db import files, job_checkpoints, job_events, jobs
from app.errors import ConflictError, NotFoundError
from app.jobs import rows
from app.jobs.machine import Event, State
from app.jobs.request import JobRequest
from app.jobs.store import Claim, owned
from app.registry.shelf import Stored, hold


class FencedError(ConflictError):
    """This attempt no longer owns the job: another one was made, or the job has ended."""


class Upload(NamedTuple):
    """An uploaded data set: its bytes by digest, its format by the extension of its name."""

    digest: str
    filename: str


class Assignment(NamedTuple):
    """What is to be done."""

    state: State
    request: JobRequest
    parent_model: str
    parent_version: str
    target: str
    training: Upload
    validation: Upload | None


class Kept(NamedTuple):
    """A checkpoint: its bytes by digest, and the numbers that were known when it was written."""

    digest: str
    metrics: dict[str, float]


class Attempt:
    """The worker's side of a claim. Any method raises FencedError when the claim has ended."""

    def __init__(self, database: Engine, claim: Claim) -> None:
        self.claim = claim
        self._database = database

    def assignment(self) -> Assignment:
        """Return what is to be done."""
        with self._fenced() as (connection, row):
            model, _, version = row.parent.rpartition(":")
            training = _upload(connection, row.training_file)
            validation = None if row.validation_file is None else _upload(connection, row.validation_file)
            return Assignment(State(row.state), JobRequest.model_validate(row.request), model, version, row.model, training, validation)

    def heartbeat(self, seconds: float = 0.0) -> bool:
        """Show life, with the seconds that went by since the last sign of it, and return whether the job is to pause."""
        with self._fenced() as (connection, row):
            values = {"heartbeat": jobs.c.heartbeat + 1, "spent": jobs.c.spent + seconds}
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(values))
            return bool(row.paused)

    def accept(self, message: str) -> None:
        """The data are good: the job is queued."""
        self._move(Event.ACCEPT, message)

    def start(self, message: str) -> None:
        """Training begins."""
        self._move(Event.START, message)

    def event(self, message: str, *, level: rows.Level = "info", data: dict[str, Any] | None = None) -> None:
        """Append an event; with ``data`` it carries metrics."""
        with self._fenced() as (connection, row):
            rows.append(connection, row.id, message, level=level, data=data)

    def progress(self, message: str, data: dict[str, Any], *, step: int, steps: int, seconds_left: float) -> None:
        """Append the metrics of a step, and say when the job may be done."""
        with self._fenced() as (connection, row):
            rows.append(connection, row.id, message, data=data)
            values = {"step": step, "steps": steps, "estimated_finish": int(time.time() + seconds_left)}
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(values))

    def checkpoint(self, stored: Stored, *, step: int, metrics: dict[str, float]) -> None:
        """Make the ``stored`` bytes what the next attempt goes on from; those before it are dropped."""
        with self._fenced() as (connection, row):
            hold(connection, stored)
            connection.execute(update(job_checkpoints).where(job_checkpoints.c.job == row.id).values(digest=None))
            found = {"id": f"ftckpt-{secrets.token_hex(12)}", "job": row.id, "created_at": rows.now(connection, row.id), "step": step}
            connection.execute(insert(job_checkpoints).values(**found, metrics=metrics, digest=stored.digest))

    def last_checkpoint(self) -> Kept | None:
        """Return what to go on from."""
        with self._fenced() as (connection, row):
            kept = job_checkpoints.c
            query = select(kept.digest, kept.metrics).where(kept.job == row.id, kept.digest.is_not(None))
            found = connection.execute(query.order_by(kept.number.desc()).limit(1)).first()
            return None if found is None else Kept(*found)

    def charge(self, steps: int, message: str, data: dict[str, Any]) -> None:
        """Write down that ``steps`` private steps count as taken, over all attempts: on the disk before the first of them begins."""
        self.event(message, data={"steps_charged": steps, **data})

    def charged(self) -> int:
        """Return how many private steps of all attempts count as taken."""
        with self._fenced() as (connection, row):
            steps = job_events.c.data["steps_charged"].as_integer()
            query = select(steps).where(job_events.c.job == row.id, steps.is_not(None)).order_by(job_events.c.number.desc())
            return connection.scalar(query.limit(1)) or 0

    def release(self, message: str) -> None:
        """Put the job back into the queue."""
        self._move(Event.RELEASE, message)

    def fail(self, code: str, message: str, *, param: str | None = None) -> None:
        """End the job as failed, with a reason that a client may read."""
        with self._fenced() as (connection, row):
            rows.fail(connection, row, code, message, param=param)

    def succeed(self, message: str, **values: Any) -> None:
        """End the job well, writing ``values`` (``result``, ``spectral``, …) to its row."""
        with self._database.begin() as connection:
            self.succeed_within(connection, message, **values)

    def succeed_within(self, connection: Connection, message: str, **values: Any) -> None:
        """End the job well as part of the transaction that publishes its model."""
        row = self.guard(connection)
        rows.move(connection, row, Event.SUCCEED, **values)
        rows.append(connection, row.id, message)

    def guard(self, connection: Connection) -> Row[Any]:
        """Return the job's row, held against other writers, or raise FencedError."""
        row = connection.execute(owned(self.claim).with_for_update()).first()
        if row is None:
            raise FencedError
        return row

    def _move(self, event: Event, message: str) -> None:
        with self._fenced() as (connection, row):
            rows.move(connection, row, event)
            rows.append(connection, row.id, message)

    @contextmanager
    def _fenced(self) -> Iterator[tuple[Connection, Row[Any]]]:
        with self._database.begin() as connection:
            yield connection, self.guard(connection)


def _upload(connection: Connection, file: str) -> Upload:
    row = connection.execute(select(files.c.digest, files.c.filename).where(files.c.id == file)).first()
    if row is None:
        raise NotFoundError(f"the file {file} is gone")
    return Upload(row.digest, row.filename)
