"""Models from elsewhere that wait to be judged: the queue in SQL. A worker's side takes them in `app.jobs.admitter`."""

import secrets
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from app.db import admissions, reading
from app.errors import InvalidRequestError, NotFoundError, QueueFullError
from app.registry.once import once
from app.registry.registry import check_name
from app.registry.shelf import Stored, hold
from export.bundle import MANIFEST

MAX_OPEN = 100
"""Most models that may wait at once."""

WAITING, RUNNING, SUCCEEDED, FAILED = "waiting", "running", "succeeded", "failed"


class Admission(NamedTuple):
    """One that was claimed: what is to be judged, and the model that it is to become a version of."""

    id: str
    model: str
    files: dict[str, str]


class Admissions:
    """Imports in SQL. Safe to share between threads and processes."""

    def __init__(self, database: Engine) -> None:
        self.database = database

    def create(self, model: str, files: Mapping[str, Stored], *, key: str | None = None) -> dict[str, Any]:
        """Queue an import and return its object.

        Args:
            model: name of the model that it becomes the next version of.
            files: what was stored, by name: one ``.onnx`` file, or those of a bundle with its manifest.
            key: idempotency key; the same key with the same files gives the same import.

        Raises:
            InvalidRequestError: the name is none, or the files are neither.
            QueueFullError: too many wait already.
        """
        check_name(model)
        if MANIFEST not in files and (len(files) != 1 or not next(iter(files)).lower().endswith(".onnx")):
            raise InvalidRequestError(f"expected one .onnx file, or the files of a bundle with its {MANIFEST}; got {sorted(files)}"[:300])
        digests = {name: stored.digest for name, stored in files.items()}
        with self.database.begin() as connection:
            hold(connection, *files.values())
            name = once(connection, "import", key, [model, digests], lambda: _insert(connection, model, digests))
            return _object(_find(connection, name))

    def get(self, name: str) -> dict[str, Any]:
        """Return the object of an import, or raise NotFoundError."""
        with reading(self.database) as connection:
            return _object(_find(connection, name))

    def withdraw(self, name: str, why: str) -> bool:
        """End an import that nobody has begun with; return whether that was so."""
        with self.database.begin() as connection:
            statement = update(admissions).where(admissions.c.id == name, admissions.c.state == WAITING)
            return connection.execute(statement.values(state=FAILED, error=why, finished_at=int(time.time()))).rowcount == 1

    def claim(self, owner: str) -> Admission | None:
        """Take the oldest import that waits, or return None; one guarded statement, so two claimants never get the same."""
        oldest = select(func.min(admissions.c.number)).where(admissions.c.state == WAITING).scalar_subquery()
        statement = (
            update(admissions)
            .where(admissions.c.number == oldest, admissions.c.state == WAITING)
            .values(state=RUNNING, owner=owner)
            .returning(admissions.c.id, admissions.c.model, admissions.c.files)
        )
        with reading(self.database) as connection:
            if connection.execute(select(admissions.c.number).where(admissions.c.state == WAITING).limit(1)).first() is None:
                return None
        with self.database.begin() as connection:
            row = connection.execute(statement).first()
        return None if row is None else Admission(row.id, row.model, row.files)

    def beat(self, owner: str) -> None:
        """Show that the owner still works at what it claimed."""
        with self.database.begin() as connection:
            mine = update(admissions).where(admissions.c.owner == owner, admissions.c.state == RUNNING)
            connection.execute(mine.values(heartbeat=admissions.c.heartbeat + 1))

    def running(self) -> dict[str, int]:
        """Return the heartbeat counter of every import that somebody works at."""
        with reading(self.database) as connection:
            query = select(admissions.c.id, admissions.c.heartbeat).where(admissions.c.state == RUNNING)
            return {row.id: row.heartbeat for row in connection.execute(query)}

    def fail(self, name: str, why: str) -> None:
        """End an import that somebody works at; nothing where it has ended."""
        with self.database.begin() as connection:
            statement = update(admissions).where(admissions.c.id == name, admissions.c.state == RUNNING)
            connection.execute(statement.values(state=FAILED, error=why, finished_at=int(time.time())))


def succeed(connection: Connection, name: str, version: str) -> None:
    """End an import well, within the transaction that publishes its version.

    Raises:
        NotFoundError: it has ended meanwhile; nothing is to be published.
    """
    statement = update(admissions).where(admissions.c.id == name, admissions.c.state == RUNNING)
    if connection.execute(statement.values(state=SUCCEEDED, version=version, finished_at=int(time.time()))).rowcount != 1:
        raise NotFoundError(f"the import {name} is over")


def _insert(connection: Connection, model: str, files: Mapping[str, str]) -> str:
    waiting = connection.scalar(select(func.count()).select_from(admissions).where(admissions.c.state.in_((WAITING, RUNNING))))
    if (waiting or 0) >= MAX_OPEN:
        raise QueueFullError(f"{waiting} models wait to be judged already: try again when one has been")
    name = f"import-{secrets.token_hex(12)}"
    row = {"id": name, "created_at": int(time.time()), "state": WAITING, "model": model, "files": dict(files)}
    connection.execute(insert(admissions).values(**row))
    return name


def _find(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(admissions).where(admissions.c.id == name)).first()
    if row is None:
        raise NotFoundError(f"there is no import {name[:80]!r}")
    return row


def _object(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "model.import",
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "status": row.state,
        "model": row.model,
        "version": row.version,
        "error": row.error,
    }
