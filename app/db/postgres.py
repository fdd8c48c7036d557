"""What is PostgreSQL's alone: one lock for all transactions that write, limits on how long it is held, and its errors by their class."""

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from app.errors import SpecnormError, StorageFullError, UnavailableError

CONNECT_SECONDS = 5
WAIT_SECONDS = 30
LOCK = 0x5BEC
"""The number of the advisory lock; it is of one database, so others on the same server do not wait for it."""

# A process that was stopped within a transaction must not hold the others up for ever: the server ends its session.
_LIMITS = {"lock_timeout": f"{WAIT_SECONDS}s", "idle_in_transaction_session_timeout": f"{WAIT_SECONDS}s", "timezone": "UTC"}

_NAMED: dict[str, type[SpecnormError]] = {"53100": StorageFullError}  # by SQLSTATE; disk_full
_GONE = (OperationalError, InterfaceError, InternalError)


def engine(url: URL) -> Engine:
    """Return an engine on the server at ``url``; a connection that was lost is made anew.

    Raises:
        UnavailableError: the driver is not installed.
    """
    options = " ".join(f"-c {name}={value}" for name, value in _LIMITS.items())
    try:
        made = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_SECONDS, "options": options, "application_name": "specnorm"},
            pool_pre_ping=True,
            pool_size=8,
            max_overflow=24,
            pool_timeout=WAIT_SECONDS,
        )
    except ModuleNotFoundError:
        raise UnavailableError("SPECNORM_DATABASE_URL is set, but its driver is not installed: install specnorm[postgres].") from None
    event.listen(made, "begin", _begin)
    event.listen(made, "handle_error", _name_error)
    return made


def _begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("specnorm_reading", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")


def _name_error(context: ExceptionContext) -> SpecnormError | None:
    """Return what is raised instead."""
    kind = _NAMED.get(_state(context.original_exception))
    if kind is None and isinstance(context.sqlalchemy_exception, _GONE):
        kind = UnavailableError
    return None if kind is None else kind()


def _state(error: Any) -> str:
    return getattr(error, "sqlstate", None) or ""
