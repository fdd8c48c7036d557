"""Where the worker of a job runs: a child process of this machine, which goes by the database and never learns who started it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from app.jobs.store import Claim
from app.settings import Settings

TAIL_BYTES = 4096
COMMAND = (sys.executable, "-m", "app.worker")


class Running(Protocol):
    """A worker that was started."""

    @property
    def claim(self) -> Claim:
        """Return what it works at."""
        ...

    def poll(self) -> int | None:
        """Return its exit status (negative: the signal that ended it), or None while it runs."""
        ...

    def ask(self) -> None:
        """Ask it to write a checkpoint and end."""
        ...

    def kill(self) -> None:
        """End it at once, and wait until it has."""
        ...

    def tail(self) -> str:
        """Return the end of what it wrote, once it has ended; for the log, never for a client."""
        ...


class Launcher(Protocol):
    """A place where workers run."""

    def start(self, claim: Claim) -> Running:
        """Start the worker of a claim."""
        ...


class Child:
    """A worker that is a child process."""

    def __init__(self, claim: Claim, process: subprocess.Popen[bytes], output: Path) -> None:
        self._claim = claim
        self._process = process
        self._output = output

    @property
    def claim(self) -> Claim:
        """Return what it works at."""
        return self._claim

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return its exit status (negative: the signal that ended it), or None while it runs."""
        return self._process.poll()

    def ask(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL and wait: it works on a stopped process too."""
        self._process.kill()
        self._process.wait()

    def tail(self) -> str:
        """Return the end of what it wrote, and remove the file."""
        try:
            with self._output.open("rb") as stream:
                stream.seek(max(0, self._output.stat().st_size - TAIL_BYTES))
                return stream.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""
        finally:
            self._output.unlink(missing_ok=True)


class Local:
    """Starts workers as children of this process, with bounded threads; they lower their own priority."""

    def __init__(self, settings: Settings, *, command: Sequence[str] = COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._outputs = settings.workspace / "workers"

    def start(self, claim: Claim) -> Child:
        """Start ``python -m app.worker`` for the claim, in a session of its own so that a key press ends the service first."""
        self._outputs.mkdir(parents=True, exist_ok=True)
        output = self._outputs / f"{claim.job}-{claim.token}.log"
        settings = self._settings
        arguments = ["--workspace", str(settings.workspace.resolve()), "--job", claim.job, "--token", str(claim.token)]
        with output.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603  # our own module; the arguments are ids of ours
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=os.environ | _environment(settings),
            )
        return Child(claim, process, output)


def _environment(settings: Settings) -> dict[str, str]:
    threads = str(settings.job_threads)
    libraries = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    stores = {"SPECNORM_BLOBS_URL": settings.blobs_url} if settings.blobs_url else {}
    if settings.database_url:
        stores["SPECNORM_DATABASE_URL"] = settings.database_url.get_secret_value()
    own = {
        "SPECNORM_JOB_THREADS": threads,
        "SPECNORM_JOB_MAX_BYTES": str(settings.job_max_bytes),
        "SPECNORM_LEASE_SECONDS": str(settings.lease_seconds),
        "PYTHONUNBUFFERED": "1",
    }
    return libraries | stores | own
