"""A connection to the database of a workspace: SQLite in its folder, or a PostgreSQL server by URL.

Both keep one promise, on which every statement elsewhere rests: transactions that write come one after another, each
with a lock from its first moment to its last, and numbers that rise become visible in their order. Reading waits for nobody.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.db import postgres, sqlite
from app.db.upgrade import prepare
from app.errors import CorruptError, InvalidRequestError, UnavailableError

DATABASE = "specnorm.db"

SERVERS = {"postgresql+psycopg": postgres.engine, "postgresql": postgres.engine}

SNAPSHOT: dict[str, dict[str, str]] = {"sqlite": {}, "postgresql": {"isolation_level": "REPEATABLE READ"}}  # SQLite's always are


def connect(workspace: Path, url: str | None = None, password: str | None = None) -> Engine:
    """Return an engine on the database of ``workspace``, made where there is none and brought up to this release.

    Args:
        workspace: the folder; the database is ``specnorm.db`` in it unless there is a URL.
        url: ``postgresql+psycopg://user:password@host:port/name``.
        password: the one to use where the URL names none.

    Raises:
        CorruptError: the file is no database, or it is gone while stored files remain.
        UnavailableError: it was written by a newer release, the server does not answer, or the folder cannot be written.
        InvalidRequestError: the URL is none, or not one of a server that is known.
    """
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        lock = (workspace / ".lock").open("a")
    except OSError as error:
        raise UnavailableError(f"the workspace {workspace} cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that open a new workspace at once would both make the file
        engine, name = _embedded(workspace) if url is None else _server(url, password)
        try:
            prepare(engine, name)
        except BaseException:
            engine.dispose()
            raise
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a snapshot for reading, which neither waits for a writer nor holds one up."""
    with engine.connect() as connection:
        yield connection.execution_options(specnorm_reading=True, **SNAPSHOT[engine.dialect.name])


def _embedded(workspace: Path) -> tuple[Engine, str]:
    path = workspace / DATABASE
    empty = not path.exists() or path.stat().st_size == 0
    if empty and any((workspace / "blobs" / "sha256").glob("*")):
        raise CorruptError(f"{path} is missing or empty while stored files remain: restore it, or choose another workspace")
    return sqlite.engine(path), str(path)


def _server(url: str, password: str | None) -> tuple[Engine, str]:
    try:
        parsed = make_url(url)
        make = SERVERS[parsed.drivername]
    except (ArgumentError, KeyError, ValueError):
        raise InvalidRequestError(
            f"SPECNORM_DATABASE_URL must begin with one of: {', '.join(sorted(SERVERS))}; then ://user@host/name"
        ) from None
    if parsed.password is None and password:
        parsed = parsed.set(password=password)
    return make(parsed), f"{parsed.database} at {parsed.host or 'the local socket'}"
