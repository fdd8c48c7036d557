"""The jobs of a workspace, as clients and the dispatcher see them."""

import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, and_, func, insert, select, update

from app.db import files, job_checkpoints, job_events, jobs, reading, version_files
from app.errors import InvalidRequestError, NotFoundError, QueueFullError
from app.jobs import rows
from app.jobs.machine import TERMINAL, Event, State, hold
from app.jobs.request import JobRequest
from app.jobs.shape import checkpoint_object, event_object, job_object
from app.registry import live
from app.registry.files import present
from app.registry.once import once
from app.registry.paging import Page, page
from app.registry.registry import OPEN_STATES
from export.bundle import ARCHITECTURE, CHECKPOINT, parse

HEAD_START = 100
"""Jobs made earlier that one goes before, for each step that its priority is higher."""

CLAIMABLE = (State.VALIDATING.value, State.QUEUED.value)


class Claim(NamedTuple):
    """A job that is the claimant's, for as long as its writes name this token."""

    job: str
    token: int


class Lease(NamedTuple):
    """Who works at a job, the counter that stands still when nobody does any more, and the seconds spent and allowed."""

    job: str
    token: int
    owner: str
    heartbeat: int
    spent: float
    max_seconds: float | None


class Jobs:
    """Fine-tune jobs in SQL. Safe to share between threads and processes."""

    def __init__(self, database: Engine, *, max_open: int = 1000) -> None:
        self.database = database
        self._max_open = max_open

    def create(self, request: JobRequest, *, key: str | None = None) -> dict[str, Any]:
        """Queue a job and return its object.

        Args:
            request: what is asked for.
            key: idempotency key; the same key with the same request gives the same job.

        Raises:
            InvalidRequestError: a file or the model does not exist, or the model cannot be trained further.
            QueueFullError: too many jobs wait already.
        """
        name = f"ftjob-{secrets.token_hex(12)}"
        with self.database.begin() as connection:
            name = once(connection, "job", key, request.model_dump(), lambda: self._insert(connection, name, request))
            return job_object(rows.find(connection, name))

    def get(self, job: str) -> dict[str, Any]:
        """Return the object of a job, or raise NotFoundError."""
        with reading(self.database) as connection:
            return job_object(rows.find(connection, job))

    def list(
        self, *, after: str | None = None, limit: int = 20, metadata: dict[str, str] | None = None, without_metadata: bool = False
    ) -> Page:
        """Return the jobs that come after the one named ``after``, newest first.

        Args:
            after: id of the last job seen.
            limit: most jobs to return.
            metadata: only jobs whose metadata have these values.
            without_metadata: only jobs without metadata.
        """
        query = select(jobs)
        for name, value in (metadata or {}).items():
            query = query.where(jobs.c.request["metadata"][name].as_string() == value)
        if without_metadata:
            query = query.where(jobs.c.request["metadata"].as_string().is_(None))
        with reading(self.database) as connection:
            return page(connection, query, jobs, job_object, after=after, limit=limit)

    def events(self, job: str, *, after: str | None = None, limit: int = 20) -> Page:
        """Return the events of a job that come after the one named ``after``, newest first."""
        with reading(self.database) as connection:
            rows.find(connection, job)
            query = select(job_events).where(job_events.c.job == job)
            return page(connection, query, job_events, event_object, after=after, limit=limit)

    def events_since(self, job: str, number: int) -> tuple[Sequence[tuple[int, dict[str, Any]]], bool]:
        """Return the events numbered above ``number``, oldest first, and whether the job has ended and no more will come."""
        with reading(self.database) as connection:
            ended = State(rows.find(connection, job).state) in TERMINAL
            query = select(job_events).where(job_events.c.job == job, job_events.c.number > number).order_by(job_events.c.number)
            return [(row.number, event_object(row)) for row in connection.execute(query)], ended

    def news(self, names: Collection[str], number: int) -> dict[str, tuple[Sequence[tuple[int, dict[str, Any]]], bool]]:
        """Return :meth:`events_since` for each of several jobs, by one query."""
        found: dict[str, tuple[list[tuple[int, dict[str, Any]]], bool]] = {}
        fresh = and_(job_events.c.job == jobs.c.id, job_events.c.number > number)
        query = select(jobs.c.id.label("of"), jobs.c.state, job_events).outerjoin(job_events, fresh).where(jobs.c.id.in_(names))
        with reading(self.database) as connection:
            for row in connection.execute(query.order_by(job_events.c.number)):
                events, _ = found.setdefault(row.of, ([], State(row.state) in TERMINAL))
                if row.number is not None:
                    events.append((row.number, event_object(row)))
        return dict(found)

    def number_of(self, job: str, event: str | None) -> int:
        """Return the number of an event of a job, for :meth:`events_since`; 0 where none is named.

        Raises:
            NotFoundError: there is no such job.
            InvalidRequestError: it has no such event.
        """
        with reading(self.database) as connection:
            rows.find(connection, job)
            if event is None:
                return 0
            found = connection.scalar(select(job_events.c.number).where(job_events.c.id == event, job_events.c.job == job))
        if found is None:
            raise InvalidRequestError(f"the job has no event {event[:80]!r} to go on after", param="after")
        return int(found)

    def checkpoints(self, job: str, *, after: str | None = None, limit: int = 10) -> Page:
        """Return the checkpoints of a job that come after the one named ``after``, newest first."""
        with reading(self.database) as connection:
            rows.find(connection, job)
            query = select(job_checkpoints).where(job_checkpoints.c.job == job)
            return page(connection, query, job_checkpoints, checkpoint_object, after=after, limit=limit)

    def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job at once, whoever works at it: that worker can write nothing any more, and ends when it sees so.

        Raises:
            NotFoundError: there is no such job.
            IllegalTransitionError: it has ended.
        """
        with self.database.begin() as connection:
            rows.move(connection, rows.find(connection, job, held=True), Event.CANCEL)
            rows.append(connection, job, "The job was cancelled.")
            return job_object(rows.find(connection, job))

    def pause(self, job: str) -> dict[str, Any]:
        """Hold a job back: its worker writes a checkpoint and puts it back into the queue, where it waits for :meth:`resume`.

        Raises:
            NotFoundError: there is no such job.
            IllegalTransitionError: it has ended, or is paused already.
        """
        return self._hold(job, Event.PAUSE, "The job is asked to pause.")

    def resume(self, job: str) -> dict[str, Any]:
        """Let a paused job go on from its last checkpoint.

        Raises:
            NotFoundError: there is no such job.
            IllegalTransitionError: it has ended, or is not paused.
        """
        return self._hold(job, Event.RESUME, "The job was resumed.")

    def claim(self, owner: str) -> Claim | None:
        """Take the job that waits and comes first, or return None; one guarded statement, so two claimants never get the same.

        The higher priority comes first, and of two with the same the older. A step of priority is a start of
        :data:`HEAD_START` jobs, so however many urgent ones come, none waits for ever behind them.
        """
        free = _free()
        first = (
            select(jobs.c.number)
            .where(*free)
            .order_by(jobs.c.number - HEAD_START * jobs.c.priority, jobs.c.number)
            .limit(1)
            .scalar_subquery()
        )
        statement = (
            update(jobs)
            .where(jobs.c.number == first, *free)
            .values(owner=owner, attempt=jobs.c.attempt + 1, heartbeat=jobs.c.heartbeat + 1)
            .returning(jobs.c.id, jobs.c.attempt)
        )
        with self.database.begin() as connection:
            row = connection.execute(statement).first()
        return None if row is None else Claim(row.id, row.attempt)

    def waiting(self) -> bool:
        """Return whether :meth:`claim` would find a job, without the lock that a claim takes."""
        with reading(self.database) as connection:
            return connection.execute(select(jobs.c.number).where(*_free()).limit(1)).first() is not None

    def leases(self) -> Sequence[Lease]:
        """Return the leases of all jobs that somebody works at."""
        with reading(self.database) as connection:
            limit = jobs.c.request["max_seconds"].as_float()
            query = select(jobs.c.id, jobs.c.attempt, jobs.c.owner, jobs.c.heartbeat, jobs.c.spent, limit)
            held = query.where(jobs.c.state.in_(OPEN_STATES), jobs.c.owner.is_not(None))  # the states are for the index
            return [Lease(*row) for row in connection.execute(held)]

    def lose(self, claim: Claim, *, why: str, max_attempts: int, heartbeat: int | None = None) -> State | None:
        """Take a job from a worker that is dead or silent: back to the queue, or failed once that happened too often.

        Args:
            claim: whose claim ends.
            why: for the job's events.
            max_attempts: how many workers may be lost before the job is.
            heartbeat: do nothing if the counter no longer stands here.

        Returns:
            The new state, or None where the claim had ended already.
        """
        with self.database.begin() as connection:
            row = connection.execute(owned(claim).with_for_update()).first()
            if row is None or heartbeat not in {None, row.heartbeat}:
                return None
            if row.losses + 1 >= max_attempts:
                rows.fail(connection, row, "lost", rows.lost(row, why))
                return State.FAILED
            rows.append(connection, claim.job, f"The job goes back to the queue: {why}.", level="warn")
            return rows.move(connection, row, Event.RELEASE, losses=row.losses + 1)

    def give_up(self, claim: Claim, code: str, message: str, *, param: str | None = None) -> None:
        """End a job as failed for a reason that its worker cannot tell; nothing where the claim had ended already."""
        with self.database.begin() as connection:
            row = connection.execute(owned(claim).with_for_update()).first()
            if row is not None:
                rows.fail(connection, row, code, f"{message}; it got to {rows.reached(row)}", param=param)

    def _hold(self, job: str, event: Event, message: str) -> dict[str, Any]:
        with self.database.begin() as connection:
            row = rows.find(connection, job, held=True)
            paused = hold(State(row.state), event, paused=row.paused)
            connection.execute(update(jobs).where(jobs.c.id == job).values(paused=paused))
            rows.append(connection, job, message if row.owner or not paused else "The job was paused.")
            return job_object(rows.find(connection, job))

    def _insert(self, connection: Connection, name: str, request: JobRequest) -> str:
        waiting = connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.state.not_in([state.value for state in TERMINAL])))
        if (waiting or 0) >= self._max_open:
            raise QueueFullError(f"{waiting} jobs wait or run already: try again when one has ended")
        for param in ("training_file", "validation_file"):
            file = getattr(request, param)
            if file is not None and connection.scalar(select(files.c.id).where(files.c.id == file, present())) is None:
                raise InvalidRequestError(f"there is no file {file[:80]!r}: upload it to /v1/files first", param=param)
        version = _base(connection, request)
        mode = request.hyperparameters.gradient_mode or parse(version.manifest).gradient_mode or "full"
        hyperparameters = request.hyperparameters.model_copy(update={"gradient_mode": mode})
        connection.execute(
            insert(jobs).values(
                id=name,
                created_at=int(time.time()),
                state=State.VALIDATING.value,
                request=request.model_copy(update={"hyperparameters": hyperparameters}).model_dump(),
                model=request.target,
                priority=request.priority,
                parent=f"{version.model}:{version.version}",
                training_file=request.training_file,
                validation_file=request.validation_file,
            )
        )
        rows.append(connection, name, f"The job was created; it trains {version.model}:{version.version} further.")
        return name


def owned(claim: Claim) -> Select[Any]:
    """Select the row of a job, if the claim on it still holds."""
    return select(jobs).where(jobs.c.id == claim.job, jobs.c.attempt == claim.token, jobs.c.owner.is_not(None))


def _free() -> tuple[ColumnElement[bool], ...]:
    return jobs.c.owner.is_(None), jobs.c.paused.is_(False), jobs.c.state.in_(CLAIMABLE)


def _base(connection: Connection, request: JobRequest) -> Row[Any]:
    """Return the version to train from: the one named, or else the live one."""
    name, version = request.base
    try:
        version = version or live.text(live.known(connection, name).live)
        if version is None:
            raise InvalidRequestError(f"model {name!r} has no live version: name one, as in `{name}:1`", param="model")
        row = live.find(connection, name, version)
    except NotFoundError as error:
        raise InvalidRequestError(str(error), param="model") from None
    query = select(version_files.c.name).where(version_files.c.model == name, version_files.c.version == row.version)
    missing = {CHECKPOINT, ARCHITECTURE} - set(connection.scalars(query))
    if missing:
        raise InvalidRequestError(
            f"{name}:{version} has no {' and no '.join(sorted(missing))}: it cannot be trained further", param="model"
        )
    return row
