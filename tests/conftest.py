"""What every test shares: real parts, one thread of torch each (two cores are often all there is)."""

import os
from collections.abc import Iterator

import pytest

from tests import postgres

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    return postgres.header()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", *(["postgresql"] if postgres.found() else [])])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """The `url` of `app.db.connect`, once for every kind of database that this machine has; each test gets an empty one."""
    if request.param == "sqlite":
        return None
    server: postgres.Server = request.getfixturevalue("postgres_server")
    return server.database()
