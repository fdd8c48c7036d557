"""A PostgreSQL server for the tests: a cluster in a temporary folder, on a loopback port, gone with the run.

Debian's `postgresql` brings the programs. Where they are missing, tests that need them are not collected, and the
run's first lines say so.
"""

import contextlib
import getpass
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
UNPRIVILEGED = "postgres"  # the server refuses to run as root


def found() -> bool:
    return bool(PROGRAMS)


def header() -> str:
    if found():
        return f"PostgreSQL: {PROGRAMS[-1]}"
    return "PostgreSQL: not installed; the tests on it are not collected (Debian: apt-get install postgresql)"


@contextlib.contextmanager
def running() -> Iterator["Server"]:
    """Run a server in a folder that goes with it; not below pytest's own, which is closed to the user whom the server runs as."""
    folder = Path(tempfile.mkdtemp(prefix="specnorm-postgres-"))
    folder.chmod(0o755)
    server = Server(folder / "cluster")
    yield server
    server.close()
    folder.rmdir()


class Server:
    """A cluster of its own; `database()` gives the URL of a new, empty database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        if os.getuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(folder, user.pw_uid, user.pw_gid)
        self.user = UNPRIVILEGED if os.getuid() == 0 else getpass.getuser()
        self._run("initdb", "--pgdata", str(folder / "data"), "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": "200"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command = [*self._command("postgres"), "-D", str(self._folder / "data"), "-p", str(self.port), *settings]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._identity())
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            if subprocess.run([PROGRAMS[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False).returncode == 0:
                return
            time.sleep(0.02)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self) -> None:
        """End it as at a power cut that spares the disk: connections are cut, nothing is drained."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: immediate shutdown
            self._process.wait()
            self._process = None

    def database(self) -> str:
        name = f"specnorm_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> str:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", database]
        return self._run("psql", *where, "-v", "ON_ERROR_STOP=1", "-qtAc", statement)

    def close(self) -> None:
        self.stop()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)

    def _command(self, program: str) -> list[str]:
        return [str(PROGRAMS[-1] / program)]

    def _identity(self) -> dict[str, str]:
        return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.getuid() == 0 else {}  # type: ignore[dict-item]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            **self._identity(),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
