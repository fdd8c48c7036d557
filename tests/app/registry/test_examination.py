"""A workspace is looked through: each thing that is damaged is told, with what to do, and nothing where all is well."""

import contextlib
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update

from app.db import DATABASE, aliases, blobs, connect, files, history, jobs, models, version_files, versions
from app.jobs.request import parse
from app.registry.blobs import Blobs
from app.registry.examination import RESTORE, Finding, examine
from app.registry.files import Files
from app.registry.registry import Registry
from export.bundle import digest


@pytest.fixture
def used(registry: Registry, make: Callable[..., Any]) -> Registry:
    """A workspace with two versions, an alias, an upload and a job that somebody works at."""
    for number in (1, 2):
        registry.publish("digits", *make(b"graph %d" % number))
    registry.promote("digits", "1", why="", who="anna")
    registry.set_alias("digits", "stable", "2", who="anna")
    file = Files(registry.database, registry.blobs, max_bytes=100).create(io.BytesIO(b"a,target\n"), "data.csv", "fine-tune")["id"]
    request = parse({"model": "digits:1", "training_file": file}).model_dump()
    job = {"created_at": 1, "state": "running", "request": request, "model": "digits", "parent": "digits:1", "training_file": file}
    with registry.database.begin() as connection:
        connection.execute(insert(jobs).values(id="job-1", attempt=1, owner="me", heartbeat=1, **job))
    return registry


def found(registry: Registry, *, beating: bool = True) -> list[Finding]:
    def wait(_seconds: float) -> None:
        if beating:
            execute(registry, update(jobs).values(heartbeat=jobs.c.heartbeat + 1))

    return list(examine(registry, wait=wait))


def execute(registry: Registry, statement: Any) -> None:
    with registry.database.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # foreign keys are not looked at
        connection.execute(statement)


def unbound(registry: Registry, statement: Any) -> None:
    """Execute past the foreign keys, as a damaged disk would."""
    with registry.database.connect() as connection:
        raw = connection.connection.dbapi_connection
        if registry.database.dialect.name == "sqlite":
            raw.execute("PRAGMA foreign_keys = OFF")  # type: ignore[union-attr]
    execute(registry, statement)


def test_nothing_is_told_of_a_workspace_in_use(used: Registry) -> None:
    assert found(used) == []


def stored(registry: Registry) -> tuple[Path, str]:
    digest = registry.manifest("digits", "1").model_digest
    assert isinstance(registry.blobs.store, Blobs)
    return registry.blobs.store.path(digest), digest


DAMAGES: dict[str, tuple[Callable[[Registry], Any], str, str]] = {
    "a file is gone": (lambda r: stored(r)[0].unlink(), "model.onnx of digits:1: the stored file .* is missing", RESTORE),
    "a file has changed": (lambda r: stored(r)[0].write_bytes(b"other"), "model.onnx of digits:1: .* has changed on disk", RESTORE),
    "a size is wrong": (
        lambda r: execute(r, update(blobs).where(blobs.c.digest == stored(r)[1]).values(bytes=1)), "has 1 bytes, there are 7", RESTORE
    ),
    "a manifest has changed": (
        lambda r: execute(r, update(versions).where(versions.c.version == 1).values(manifest="{}")),
        "the manifest of digits:1 has changed", RESTORE,
    ),
    "a row of a version is gone": (
        lambda r: execute(r, delete(version_files).where(version_files.c.version == 1)), "rows of digits:1 name other files", RESTORE
    ),
    "what is live is not there": (lambda r: execute(r, update(models).values(live=9)), "digits:9 is live and not there", "promote digits"),
    "the history ends elsewhere": (
        lambda r: execute(r, update(history).values(after=2)), "history of digits ends with 2, and 1 is live", "promote digits"
    ),
    "a number would come twice": (
        lambda r: execute(r, update(models).values(next_version=2)), "next version of digits would be 2", RESTORE
    ),
    "an alias names nothing": (
        lambda r: unbound(r, update(aliases).values(version=9)), "digits@stable is version 9, which is not there", "alias digits stable"
    ),
    "an open job lacks its file": (lambda r: execute(r, delete(files)), "job-1 is to train on file-.*, which is not there", "cancel job-1"),
    "an open job lacks its model": (
        lambda r: execute(r, update(jobs).values(parent="digits:9")), "job-1 is to train digits:9, which is not there", "cancel job-1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_told_with_what_to_do(used: Registry, damage: str) -> None:
    act, what, do = DAMAGES[damage]
    act(used)
    told = [one for one in found(used) if one.problem]
    assert any(re.search(what, one.what) and do in one.do for one in told), told


def test_what_a_crash_left_is_told_and_is_no_problem(used: Registry) -> None:
    store = used.blobs.store
    with store.draft([b"stray"]) as draft:
        assert list(store.idle()) == []  # somebody writes it
        store.settle(draft)
    (stored(used)[0].parents[1] / "tmp" / "left").write_bytes(b"half")
    used.blobs.put(b"swept")
    store.delete(digest(b"swept"))
    told = found(used, beating=False)
    assert not any(one.problem for one in told)
    words = ["1 stored files are in no row yet", "1 rows are of stored files", "attempt 1 at job-1 shows no life", "the draft left"]
    assert [any(word in one.what for one in told) for word in words] == [True] * 4
    assert len(told) == 4
    used.blobs.sweep(older_than=-1)
    assert [one.what for one in found(used)] == []


def test_a_damaged_file_of_the_database_is_told(tmp_path: Path) -> None:
    connect(tmp_path).dispose()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_state'").fetchone()
        (size,) = raw.execute("PRAGMA page_size").fetchone()
    with (tmp_path / DATABASE).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 64)
    engine = connect(tmp_path)
    told = found(Registry(engine, Blobs(tmp_path / "blobs")))
    engine.dispose()
    assert "the database file is damaged" in told[0].what
    assert told[0].problem


def test_the_command_ends_with_1_where_something_is_amiss_and_says_it_as_json_too(
    used: Registry, tmp_path: Path, database_url: str | None
) -> None:
    environment = {**os.environ, **({} if database_url is None else {"SPECNORM_DATABASE_URL": database_url})}

    def doctor(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.cli", "doctor", "--store", "--workspace", str(tmp_path), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    execute(used, update(jobs).values(owner=None))
    well = doctor()
    assert well.returncode == 0
    assert "nothing is amiss" in well.stdout
    stored(used)[0].unlink()
    ill = doctor("--json")
    (told,) = [row for row in json.loads(ill.stdout) if row["check"] == "store"]
    assert (ill.returncode, told["ok"], told["do"]) == (1, False, RESTORE)
    assert "model.onnx of digits:1" in told["found"]
