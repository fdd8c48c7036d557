"""Lists stay quick however long the tables are: by the plans of their statements, not by a clock."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert

from app.db import connect, files, history, job_checkpoints, job_events, jobs, models, versions
from app.jobs.request import parse
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry

ROWS = 300


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """Return a database with some hundred rows in every table that is listed."""
    engine = connect(tmp_path)
    numbers = range(1, ROWS + 1)
    with engine.begin() as connection:
        connection.execute(insert(models), [{"name": name, "live": 1, "next_version": ROWS} for name in ("a", "b")])
        one = {"created": 1, "manifest": "{}", "manifest_digest": "0"}
        connection.execute(insert(versions), [{"model": name, "version": n, **one} for name in ("a", "b") for n in numbers])
        move = {"at": 1, "what": "promote", "who": "t", "why": "t", "after": 1}
        connection.execute(insert(history), [{"model": name, **move} for name in ("a", "b") for _ in numbers])
        file = {"created_at": 1, "purpose": "fine-tune", "filename": "f.csv", "bytes": 1, "digest": "0" * 64}
        connection.execute(insert(files), [{"id": f"file-{n}", **file} for n in numbers])
        request = parse({"model": "a:1", "training_file": "file-1"}).model_dump()
        job = {"created_at": 1, "state": "succeeded", "request": request, "model": "a", "parent": "a:1", "training_file": "file-1"}
        connection.execute(insert(jobs), [{"id": f"job-{n}", **job} for n in numbers])
        said = {"created_at": 1, "level": "info", "type": "message", "message": "m"}
        connection.execute(insert(job_events), [{"id": f"event-{n}", "job": f"job-{n % 9 + 1}", **said} for n in numbers])
        kept = {"created_at": 1, "step": 1, "metrics": {}}
        connection.execute(insert(job_checkpoints), [{"id": f"kept-{n}", "job": f"job-{n % 9 + 1}", **kept} for n in numbers])
    yield engine
    engine.dispose()


def asked(engine: Engine, job: str) -> dict[str, Any]:
    """Return what lists something, by name, each as a call."""
    store = Jobs(engine)
    registry = Registry(engine, Blobs(Path(str(engine.url.database)).parent / "blobs"))
    uploads = Files(engine, registry.blobs, max_bytes=1)
    return {
        "jobs": lambda: store.list(limit=20),
        "jobs after one": lambda: store.list(limit=20, after="job-200"),
        "events": lambda: store.events(job, limit=20),
        "events after one": lambda: store.events(job, limit=20, after="event-200"),
        "events since": lambda: store.events_since(job, 100),
        "checkpoints": lambda: store.checkpoints(job, limit=20),
        "leases": store.leases,
        "waiting": store.waiting,
        "files": lambda: uploads.list(limit=20),
        "files after one": lambda: uploads.list(limit=20, after="file-200"),
        "versions": lambda: registry.versions("a"),
        "a page of versions": lambda: registry.describe("a", after=200, limit=20, newest_first=True),
        "all versions": registry.everywhere,
        "history": lambda: registry.history("a", after=20, limit=20),
    }


def test_no_list_reads_a_table_from_end_to_end_or_sorts_it(database: Engine) -> None:
    statements: list[tuple[str, str, Any]] = []
    current = [""]

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE")):
            statements.append((current[0], statement, parameters))

    event.listen(database, "before_cursor_execute", note)
    for name, call in asked(database, "job-3").items():
        current[0] = name
        call()
    event.remove(database, "before_cursor_execute", note)
    assert {name for name, _, _ in statements} == asked(database, "job-3").keys()
    with database.connect() as connection:
        for name, statement, parameters in statements:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert not [step for step in plan if "TEMP B-TREE" in step], (name, statement, plan)
            # Along the primary key a scan ends with the page.
            scans = [step for step in plan if step.startswith("SCAN") and "USING" not in step and "LIMIT" not in statement]
            assert not scans, (name, statement, plan)


def test_the_versions_of_all_models_are_one_statement(database: Engine) -> None:
    statements: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *heard: statements.append(heard[2]))
    registry = Registry(database, Blobs(Path(str(database.url.database)).parent / "blobs"))
    assert registry.everywhere() == {name: {str(number): 1 for number in range(1, ROWS + 1)} for name in ("a", "b")}
    assert [statement for statement in statements if statement.startswith("SELECT")] == statements[-1:]
