"""What every writer of a job's rows shares: an event is appended, and a state left, in one way only."""

import secrets
import time
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from app.db import job_checkpoints, job_events, jobs
from app.errors import NotFoundError
from app.jobs.machine import LEAVES, TERMINAL, Event, State, advance

Level = Literal["info", "warn", "error"]


def find(connection: Connection, job: str, *, held: bool = False) -> Row[Any]:
    """Return the row of a job (``held`` against other writers), or raise NotFoundError."""
    query = select(jobs).where(jobs.c.id == job)
    row = connection.execute(query.with_for_update() if held else query).first()
    if row is None:
        raise NotFoundError(f"there is no fine-tuning job {job[:80]!r}", param="fine_tuning_job_id")
    return row


def now(connection: Connection, job: str) -> int:
    """Return the seconds since 1970, or those of the job's last event where the clock was set back meanwhile."""
    last = select(job_events.c.created_at).where(job_events.c.job == job).order_by(job_events.c.number.desc()).limit(1)
    return max(int(time.time()), connection.scalar(last) or 0)


def append(connection: Connection, job: str, message: str, *, level: Level = "info", data: dict[str, Any] | None = None) -> None:
    """Append an event; one with ``data`` is of the type ``metrics``."""
    row = {"id": f"ftevent-{secrets.token_hex(12)}", "job": job, "created_at": now(connection, job), "level": level}
    kind = "message" if data is None else "metrics"
    connection.execute(insert(job_events).values(**row, type=kind, message=message, data=data))


def move(connection: Connection, row: Row[Any], event: Event, **values: Any) -> State:
    """Take a job from the state of ``row`` to the one after ``event``, writing ``values`` with it.

    Leaving the work (for good, or back to the queue) ends the lease, and an end drops the checkpoints' bytes.

    Raises:
        IllegalTransitionError: ``event`` means nothing in that state; nothing is written.
    """
    state = advance(State(row.state), event)
    if event in LEAVES:
        values |= {"owner": None, "estimated_finish": None}
    if state in TERMINAL:
        values |= {"finished_at": now(connection, row.id), "paused": False}
        connection.execute(update(job_checkpoints).where(job_checkpoints.c.job == row.id).values(digest=None))
    connection.execute(update(jobs).where(jobs.c.id == row.id).values(state=state.value, **values))
    return state


def fail(connection: Connection, row: Row[Any], code: str, message: str, *, param: str | None = None) -> None:
    """End a job as failed, with the reason in its error and as its last event."""
    move(connection, row, Event.FAIL, error={"code": code, "message": message, "param": param})
    append(connection, row.id, f"The job failed ({code}): {message}", level="error")


def lost(row: Row[Any], why: str) -> str:
    """Say why no further attempt is made."""
    told = f"{row.losses + 1} workers were lost, the last one at {reached(row)}: {why}"
    return f"{told}. It is not tried again; the service's log has what they wrote"


def reached(row: Row[Any]) -> str:
    """Say how far a job got."""
    return "no step yet" if row.step is None else f"step {row.step} of {row.steps}"
