"""What goes wrong in a database has its name in `app.errors`, wherever in a transaction it is met."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import insert

from app.db import connect, models, reading
from app.errors import SpecnormError, StorageFullError, UnavailableError


def test_a_database_that_cannot_grow_is_a_full_disk_and_takes_rows_again_with_room(tmp_path: Path) -> None:
    engine = connect(tmp_path)
    with engine.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    rows = [{"name": f"m{number:060}", "live": None, "next_version": 1} for number in range(1000)]
    with pytest.raises(StorageFullError, match="disk is full"), engine.begin() as connection:
        connection.execute(insert(models), rows)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        connection.execute(insert(models), rows)
    engine.dispose()


def test_a_commit_that_fails_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real connection, whose file system refuses what the commit writes, as a full disk does at that moment."""
    engine = connect(tmp_path)

    def refused(_connection: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(engine.dialect, "do_commit", refused)
    with pytest.raises(StorageFullError), engine.begin() as connection:
        connection.execute(insert(models).values(name="a", live=None, next_version=1))
    monkeypatch.undo()
    with reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM models").scalar() == 0
    engine.dispose()


def test_a_database_that_somebody_else_holds_is_unavailable(tmp_path: Path) -> None:
    engine = connect(tmp_path)
    other = sqlite3.connect(tmp_path / "specnorm.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA busy_timeout = 0")  # type: ignore[union-attr]  # it is SQLite's
    with pytest.raises(UnavailableError) as refused, engine.begin():
        pass
    assert isinstance(refused.value, SpecnormError)
    other.close()
    with engine.begin() as connection:
        connection.execute(insert(models).values(name="a", live=None, next_version=1))
    engine.dispose()
