"""Brings a database to the schema of this release, in one transaction: made where there is none, upgraded where it is older."""

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import DatabaseError

from app.db.tables import metadata, revision, schema_version
from app.errors import CorruptError, SpecnormError, UnavailableError

HEAD = "0002"
FOLDER = Path(__file__).with_name("migrations")
UNDER_REVISIONS = 2


def prepare(engine: Engine, name: str) -> None:
    """Bring the database to :data:`HEAD`. Whoever comes second waits, and finds it done.

    Raises:
        CorruptError: this is no database, or not one of ours.
        UnavailableError: a newer release wrote it, or it cannot be reached.
    """
    try:
        with engine.connect() as connection:
            _set_foreign_keys(connection, on=False)  # a table that a revision rewrites is dropped for a moment
            try:
                with connection.begin():
                    _bring_up(connection, name)
            finally:
                _set_foreign_keys(connection, on=True)
    except (SpecnormError, DatabaseError, sqlite3.DatabaseError) as error:
        kind = type(error) if isinstance(error, SpecnormError) else CorruptError
        raise kind(f"the database {name} cannot be used: {error.__cause__ or error}") from None


def revisions() -> list[str]:
    """Return the revisions that this release knows, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*.py"))


def _bring_up(connection: Connection, name: str) -> None:
    found = _found(connection)
    if found is None:
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=UNDER_REVISIONS))
        connection.execute(insert(revision).values(version_num=HEAD))
    elif found not in revisions():
        raise UnavailableError(
            f"its schema {found} is newer than {HEAD}, the newest that this release knows: use the release that wrote it"
        )
    elif found != HEAD:
        _upgrade(connection, found)
        if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
            raise CorruptError("rows of it name others that are not there")


def _found(connection: Connection) -> str | None:
    """Return the revision of a database, or None for an empty one."""
    dialect = connection.dialect
    if dialect.has_table(connection, revision.name):
        found: str | None = connection.scalar(select(revision.c.version_num))
    elif dialect.has_table(connection, schema_version.name):
        number = connection.scalar(select(schema_version.c.version))
        found = None if number is None else f"{number:04d}"
    else:
        return None
    if found is None:
        raise CorruptError("it does not say which schema it has")
    return found


def _upgrade(connection: Connection, found: str) -> None:
    from alembic import command  # noqa: PLC0415 - only where there is something to do
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    if not connection.dialect.has_table(connection, revision.name):
        command.stamp(config, found)
    command.upgrade(config, HEAD)


def _set_foreign_keys(connection: Connection, *, on: bool) -> None:
    if connection.dialect.name == "sqlite":
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - for the type checker
        raw.execute(f"PRAGMA foreign_keys = {'ON' if on else 'OFF'}")
