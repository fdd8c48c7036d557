"""What every test shares: real parts, one thread of torch each (two cores are often all there is)."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    return postgres.header()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    # Not below pytest's own folder: that is closed to the user whom the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="specnorm-postgres-"))
    folder.chmod(0o755)
    server = postgres.Server(folder / "cluster")
    yield server
    server.close()
    folder.rmdir()


@pytest.fixture(params=["sqlite", *(["postgresql"] if postgres.found() else [])])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """The `url` of `app.db.connect`, once for every kind of database that this machine has; each test gets an empty one."""
    if request.param == "sqlite":
        return None
    server: postgres.Server = request.getfixturevalue("postgres_server")
    return server.database()
