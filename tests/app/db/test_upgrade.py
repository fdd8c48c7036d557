"""A database of every release is brought to this one with all its rows; two starts at once make one upgrade."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, insert, inspect, select

from app.db import DATABASE, connect, metadata, reading
from app.db import jobs as jobs_table
from app.db.tables import revision, schema_version
from app.db.upgrade import FOLDER, HEAD, revisions
from app.errors import CorruptError, UnavailableError
from app.jobs.admissions import Admissions
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.once import forget
from app.registry.registry import Registry

DROPPED = {("jobs", "cancel")}
"""Columns that a revision took away, by table."""

RELEASES = Path(__file__).with_name("releases")


def released(number: str, workspace: Path) -> Path:
    """Lay out the workspace that the release with the schema `number` left."""
    shutil.copytree(RELEASES / number / "blobs", workspace / "blobs")
    with contextlib.closing(sqlite3.connect(workspace / DATABASE)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.executescript((RELEASES / number / "specnorm.sql").read_text())
    return workspace


def rows(path: Path) -> dict[str, list[dict[str, object]]]:
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.row_factory = sqlite3.Row
        names = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
        return {name: [dict(row) for row in raw.execute(f"SELECT * FROM {name}")] for name in names}


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_server_default": True}), metadata))


def test_every_released_schema_has_a_database_here_and_the_newest_revision_is_what_this_release_writes() -> None:
    script = ScriptDirectory(str(FOLDER))
    assert script.get_heads() == [HEAD]
    assert revisions() == sorted(one.revision for one in script.walk_revisions())
    assert {path.name for path in RELEASES.iterdir() if path.is_dir()} == set(revisions()) - {HEAD}


@pytest.mark.parametrize("number", [number for number in revisions() if number != HEAD])
def test_a_database_of_a_release_keeps_every_row_and_ends_as_a_new_one_begins(tmp_path: Path, number: str) -> None:
    workspace = released(number, tmp_path)
    before = rows(workspace / DATABASE)
    engine = connect(workspace)
    assert differences(engine) == []
    engine.dispose()
    after = rows(workspace / DATABASE)
    assert after["alembic_version"] == [{"version_num": HEAD}]
    for table, lines in before.items():
        if table != schema_version.name:
            kept = [{name: value for name, value in line.items() if (table, name) not in DROPPED} for line in lines]
            assert [line.items() <= now.items() for line, now in zip(kept, after[table], strict=True)] == [True] * len(lines), table
    assert sum(map(len, before.values())) > 30


def test_what_the_first_users_have_goes_on_working(tmp_path: Path) -> None:
    engine = connect(released("0001", tmp_path))
    registry = Registry(engine, Blobs(tmp_path / "blobs"))
    assert {name: registry.versions(name) for name in registry.models()} == {"digits": ["1", "2", "3"], "wine": ["1", "2"]}
    assert [registry.files(name, version)["model.onnx"] for name in registry.models() for version in registry.versions(name)] == [
        b"graph 1", b"graph 2", b"graph 3", b"graph 7", b"graph 8"
    ]  # fmt: skip
    assert registry.rollback("digits", who="anna") == ("1", "2")
    jobs = Jobs(engine)
    assert [job["fine_tuned_model"] for job in jobs.list().items] == [None, None, None, "digits:3"]
    assert [job["metadata"] for job in jobs.list(metadata={"team": "red"}).items] == [{"team": "red"}]
    assert jobs.claim("anybody") is not None
    files = Files(engine, registry.blobs, max_bytes=1000)
    (file,) = files.list().items
    with files.open(file["id"]) as content:
        assert content.read() == b"a,b,target\n1,2,0\n"
    assert Admissions(engine).running() == {}
    engine.dispose()


def test_a_job_that_was_asked_to_cancel_and_a_key_are_not_forgotten_by_the_upgrade(tmp_path: Path) -> None:
    workspace = released("0001", tmp_path)
    with contextlib.closing(sqlite3.connect(workspace / DATABASE)) as raw, raw:
        raw.execute("UPDATE jobs SET cancel = 1, state = 'running', owner = 'worker' WHERE number = 1")
        raw.execute("DELETE FROM idempotency")
        raw.execute("INSERT INTO idempotency (scope, key, fingerprint, resource) VALUES ('file', 'k', 'f', 'file-1')")
    engine = connect(workspace)
    (job, *others) = Jobs(engine).list(limit=100).items[::-1]
    assert (job["status"], job["estimated_finish"]) == ("cancelled", None)
    assert job["finished_at"] >= job["created_at"]
    assert Jobs(engine).leases() == []
    assert len(others) == 3
    assert forget(engine) == 0
    assert forget(engine, older_than=-1) == 1
    engine.dispose()


def test_an_upgrade_that_fails_halfway_changes_nothing(tmp_path: Path) -> None:
    workspace = released("0001", tmp_path)
    with contextlib.closing(sqlite3.connect(workspace / DATABASE)) as raw, raw:
        raw.execute("CREATE TABLE blobs (digest)")  # in the way of what the revision makes, after it has made other tables
    before = rows(workspace / DATABASE)
    with pytest.raises(CorruptError, match="blobs"):
        connect(workspace)
    assert rows(workspace / DATABASE) == before


def open_at_once(*workspaces: Path, url: str | None = None) -> list[int]:
    """Have a process for each folder open the database, all at the same moment, and return their exit codes."""
    look = "import sys; from pathlib import Path; from app.db import connect; sys.stdin.read(); connect(Path(sys.argv[1]), *sys.argv[2:])"
    arguments = [] if url is None else [url]
    starts = [subprocess.Popen([sys.executable, "-c", look, folder, *arguments], stdin=subprocess.PIPE) for folder in workspaces]
    for start in starts:
        assert start.stdin is not None
        start.stdin.close()
    return [start.wait() for start in starts]


def test_services_that_start_at_once_on_an_old_database_upgrade_it_once(tmp_path: Path) -> None:
    workspace = released("0001", tmp_path)
    assert open_at_once(*[workspace] * 3) == [0, 0, 0]
    assert rows(workspace / DATABASE)["alembic_version"] == [{"version_num": HEAD}]


def test_a_new_database_has_the_schema_that_the_revisions_lead_to(tmp_path: Path, database_url: str | None) -> None:
    made = connect(tmp_path / "new", database_url)
    assert differences(made) == []
    made.dispose()


def test_starts_at_once_on_an_empty_database_make_it_once(tmp_path: Path, database_url: str | None) -> None:
    # A folder each, as two machines have: only the database itself can keep them apart.
    folders = [tmp_path / ("one" if database_url is None else str(number)) for number in range(3)]
    assert open_at_once(*folders, url=database_url) == [0, 0, 0]
    engine = connect(folders[0], database_url)
    with reading(engine) as connection:
        assert connection.execute(select(revision)).all() == [(HEAD,)]
        assert connection.execute(select(schema_version)).all() == [(2,)]
    engine.dispose()


def test_the_schema_of_a_newer_release_is_refused_in_one_sentence(tmp_path: Path, database_url: str | None) -> None:
    engine = connect(tmp_path, database_url)
    with engine.begin() as connection:
        connection.execute(revision.update().values(version_num="9999"))
    engine.dispose()
    with pytest.raises(UnavailableError, match=r"schema 9999 is newer than .* use the release that wrote it") as refused:
        connect(tmp_path, database_url)
    assert "\n" not in str(refused.value)


def test_a_release_before_the_revisions_refuses_an_upgraded_database(tmp_path: Path) -> None:
    connect(released("0001", tmp_path)).dispose()
    assert rows(tmp_path / DATABASE)["schema_version"] == [{"version": 2}]  # it reads this, and takes nothing but 1


def test_a_database_that_does_not_say_its_schema_is_refused(tmp_path: Path, database_url: str | None) -> None:
    engine = connect(tmp_path, database_url)
    with engine.begin() as connection:
        connection.execute(revision.delete())
    engine.dispose()
    with pytest.raises(CorruptError, match="does not say which schema"):
        connect(tmp_path, database_url)


def test_the_revisions_lead_from_nothing_to_the_same_schema_on_every_database(tmp_path: Path, database_url: str | None) -> None:
    engine = connect(tmp_path, database_url)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        metadata.tables["schema_version"].create(connection)
        connection.execute(insert(schema_version).values(version=0))
    engine.dispose()
    from app.db import upgrade

    raw = create_engine(engine.url)
    with raw.begin() as connection:
        metadata.tables["schema_version"].drop(connection)
        upgrade._upgrade(connection, "base")
    assert differences(raw) == []
    assert set(inspect(raw).get_table_names()) == set(metadata.tables)
    raw.dispose()


def test_alembic_is_not_loaded_where_there_is_nothing_to_upgrade(tmp_path: Path) -> None:
    look = (
        "import sys; from pathlib import Path; from app.db import connect;"
        "[connect(Path(sys.argv[1])) for _ in range(2)]; print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_json_that_a_job_carries_survives(tmp_path: Path) -> None:
    engine = connect(released("0001", tmp_path))
    with reading(engine) as connection:
        kept = connection.execute(select(jobs_table.c.request).order_by(jobs_table.c.number)).scalars().all()
    assert [json.loads(json.dumps(one))["model"] for one in kept] == ["digits"] * 4
    engine.dispose()
