"""The database of a workspace: its tables, and a connection that is safe to share with the worker processes.

SQLite in WAL mode by default. The statements elsewhere are SQLAlchemy Core without a dialect's own words, so that
another server can take its place; what is SQLite's alone is in this module.
"""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DatabaseError

from app.errors import CorruptError, SpecnormError, StorageFullError, UnavailableError

SCHEMA = 1
DATABASE = "specnorm.db"
BUSY_SECONDS = 30.0

_NAMED: dict[int, type[SpecnormError]] = {
    sqlite3.SQLITE_FULL: StorageFullError,
    sqlite3.SQLITE_BUSY: UnavailableError,
    sqlite3.SQLITE_READONLY: UnavailableError,
    sqlite3.SQLITE_CANTOPEN: UnavailableError,
    sqlite3.SQLITE_IOERR: UnavailableError,
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_NOTADB: CorruptError,
}

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("live", Integer),
    Column("next_version", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created", Integer, nullable=False),
    Column("parent", String(128)),
    Column("job", String(64), unique=True),
    Column("manifest", Text, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
)

version_files = Table(
    "version_files",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"], ondelete="CASCADE"),
)

history = Table(
    "history",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("model", ForeignKey("models.name"), nullable=False),
    Column("at", Integer, nullable=False),
    Column("what", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("before", Integer),
    Column("after", Integer, nullable=False),
    sqlite_autoincrement=True,
)

files = Table(
    "files",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("state", String(20), nullable=False),
    Column("paused", Boolean, nullable=False, default=False),
    Column("cancel", Boolean, nullable=False, default=False),
    Column("request", JSON, nullable=False),
    Column("model", String(64), nullable=False),
    Column("parent", String(128), nullable=False),
    # No foreign key: a finished job still names files that were deleted since.
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    # `attempt` is the fencing token: whoever writes for the job names the attempt that it was given.
    Column("attempt", Integer, nullable=False, default=0),
    Column("owner", String(64)),
    Column("heartbeat", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("step", Integer),
    Column("steps", Integer),
    Column("estimated_finish", Integer),
    Column("fine_tuned_model", String(160)),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("spectral", JSON(none_as_null=True)),
    Index("jobs_by_state", "state", "number"),
    sqlite_autoincrement=True,
)

job_events = Table(
    "job_events",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON(none_as_null=True)),
    Index("events_by_job", "job", "number"),
    sqlite_autoincrement=True,
)

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("digest", String(64)),
    Index("checkpoints_by_job", "job", "number"),
    sqlite_autoincrement=True,
)

admissions = Table(
    "admissions",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("state", String(20), nullable=False),
    Column("model", String(64), nullable=False),
    Column("files", JSON, nullable=False),
    Column("owner", String(64)),
    Column("heartbeat", Integer, nullable=False, default=0),
    Column("version", String(16)),
    Column("error", Text),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("resource", String(64), nullable=False),
)


def connect(workspace: Path) -> Engine:
    """Return an engine on the database of ``workspace``, which is made if there is none.

    Raises:
        CorruptError: the file is no database, or it is gone while stored files remain.
        UnavailableError: it was written by another release, or the folder cannot be written.
    """
    path = workspace / DATABASE
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        lock = (workspace / ".lock").open("a")
    except OSError as error:
        raise UnavailableError(f"the workspace {workspace} cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that open a new workspace at once would both make the schema
        if _empty(path) and any((workspace / "blobs" / "sha256").glob("*")):
            raise CorruptError(f"{path} is missing or empty while stored files remain: restore it, or choose another workspace")
        engine = _engine(path)
        try:
            _prepare(engine, path)
        except BaseException:
            engine.dispose()
            raise
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a snapshot for reading, which neither waits for a writer nor holds one up."""
    with engine.connect() as connection:
        yield connection.execution_options(specnorm_reading=True)


def _empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_size=8, max_overflow=64
    )
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", _name_error)
    return engine


def _set_up(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver guesses
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("specnorm_reading", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _name_error(context: ExceptionContext) -> None:
    kind = _NAMED.get(getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF)  # the low byte is the primary code
    if kind is not None:
        context.chained_exception = kind()


def _prepare(engine: Engine, path: Path) -> None:
    try:
        with engine.begin() as connection:
            if not engine.dialect.has_table(connection, schema_version.name):
                metadata.create_all(connection)
                connection.execute(insert(schema_version).values(version=SCHEMA))
            elif not engine.dialect.has_table(connection, admissions.name):
                admissions.create(connection)  # a table that releases before it do not miss
            found = connection.execute(select(schema_version.c.version)).scalar()
    except (SpecnormError, DatabaseError, sqlite3.DatabaseError) as error:
        kind = type(error) if isinstance(error, SpecnormError) else CorruptError
        raise kind(f"the database {path} cannot be used: {error.__cause__ or error}") from None
    if found != SCHEMA:
        raise UnavailableError(f"{path} has schema version {found}, this release reads {SCHEMA}: use the release that wrote it")
