"""What is SQLite's alone: WAL, a lock from the first moment of a transaction that writes, and its errors by their class."""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

from app.errors import CorruptError, SpecnormError, StorageFullError, UnavailableError

BUSY_SECONDS = 30.0

_NAMED: dict[int, type[SpecnormError]] = {
    sqlite3.SQLITE_FULL: StorageFullError,
    sqlite3.SQLITE_BUSY: UnavailableError,
    sqlite3.SQLITE_LOCKED: UnavailableError,
    sqlite3.SQLITE_PROTOCOL: UnavailableError,
    sqlite3.SQLITE_NOMEM: UnavailableError,
    sqlite3.SQLITE_READONLY: UnavailableError,
    sqlite3.SQLITE_CANTOPEN: UnavailableError,
    sqlite3.SQLITE_IOERR: UnavailableError,
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_NOTADB: CorruptError,
}


def engine(path: Path) -> Engine:
    """Return an engine on the file ``path``, which its first transaction makes."""
    made = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_size=8, max_overflow=64
    )
    event.listen(made, "connect", _set_up)
    event.listen(made, "begin", _begin)
    event.listen(made, "handle_error", _name_error)
    return made


def _set_up(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver guesses
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("specnorm_reading", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _name_error(context: ExceptionContext) -> SpecnormError | None:
    """Return what is raised instead."""
    kind = _NAMED.get(getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF)  # the low byte is the primary code
    return None if kind is None else kind()
