"""Rows as plain values: read in one snapshot, written in one transaction, whatever the two databases are."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, or_, select, update

from app.db.connection import reading
from app.db.tables import blobs, files, job_checkpoints, metadata, revision, schema_version, version_files
from app.errors import ConflictError

Line = tuple[str, dict[str, Any]]
BATCH = 500

# Parents before children. What a new database has already is not copied.
TABLES: tuple[Table, ...] = tuple(table for table in metadata.sorted_tables if table not in {revision, schema_version})


def _digest(row: Mapping[str, Any]) -> list[str]:
    return [row["digest"]] if row["digest"] is not None else []


def _awaited(row: Mapping[str, Any]) -> list[str]:
    return list(row["files"].values()) if row["finished_at"] is None else []


# Which stored files a row names, by the name of its table.
NAMING: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "version_files": _digest,
    "files": _digest,
    "job_checkpoints": _digest,
    "admissions": _awaited,
}


def touch(database: Engine) -> None:
    """Make every stored file that a row names young, so that a sweep leaves it alone for as long as a backup may take."""
    named = or_(*(blobs.c.digest.in_(select(table.c.digest)) for table in (version_files, files, job_checkpoints)))
    with database.begin() as connection:
        connection.execute(update(blobs).where(named).values(touched=int(time.time())))


def read(database: Engine) -> Iterator[Line]:
    """Yield every row of one snapshot with the name of its table."""
    with reading(database) as connection:
        yield from _rows(connection)


def write(database: Engine, lines: Iterable[Line]) -> int:
    """Write rows into a database that has none, all or nothing, and return their number.

    Raises:
        ConflictError: the database is not empty.
    """
    count = 0
    with database.begin() as connection:
        for table in TABLES:
            if connection.execute(select(func.count()).select_from(table)).scalar():
                raise ConflictError(f"there are rows in the table {table.name} already: choose an empty database")
        for name, group in groupby(lines, itemgetter(0)):
            table = metadata.tables[name]
            batch: list[dict[str, Any]] = []
            for _, row in group:
                batch.append(row)
                count += 1
                if len(batch) == BATCH:
                    connection.execute(insert(table), batch)
                    batch = []
            if batch:
                connection.execute(insert(table), batch)
        _go_on_counting(connection)
    return count


def transfer(source: Engine, target: Engine) -> int:
    """Copy all rows into an empty database while nobody writes to the first, and return their number."""
    with source.begin() as connection:
        return write(target, _rows(connection))


def _rows(connection: Connection) -> Iterator[Line]:
    for table in TABLES:
        for row in connection.execute(select(table).order_by(*table.primary_key.columns)):
            yield table.name, dict(row._mapping)


def _go_on_counting(connection: Connection) -> None:
    """Let numbers go on after the highest that was copied; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in TABLES:
        if "number" in table.c:
            highest = connection.scalar(select(func.max(table.c.number)))
            sequence = func.pg_get_serial_sequence(table.name, "number")
            connection.execute(select(func.setval(sequence, highest or 1, highest is not None)))
