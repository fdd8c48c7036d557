"""Judges the models that wait: one at a time, each in a child process, beside the training jobs and never behind them."""

import asyncio
import importlib.util
import logging
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection

from app.errors import SpecnormError
from app.jobs.admissions import Admission, Admissions, succeed
from app.registry import live
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import MANIFEST, BundleError, read

POLL_SECONDS: Final = 0.2
BEAT_SECONDS: Final = 1.0
_SAID: Final = "specnorm: "
_SAID_BYTES: Final = 8192

log = logging.getLogger(__name__)


class _Trial(NamedTuple):
    admission: Admission
    process: "subprocess.Popen[bytes]"
    folder: Path
    began: float

    @property
    def bundle(self) -> Path:
        """Where the child leaves, or was given, the bundle."""
        return self.folder / ("given" if MANIFEST in self.admission.files else "bundle")

    @property
    def said(self) -> str:
        """What the child wrote, or the beginning of it."""
        with (self.folder / "said").open("rb") as stream:
            return stream.read(_SAID_BYTES).decode(errors="replace").strip()

    def end(self) -> None:
        """Stop the child, and remove what it worked with."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Admitter:
    """One place that judges models, among any number on the same workspace.

    What a dead one left is ended as failed: its heartbeat counter has stood still for ``lease_seconds`` on the clock
    of whoever looks. Where the package onnx is missing nothing can be judged, so nothing is claimed.
    """

    def __init__(
        self, admissions: Admissions, registry: Registry, settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._admissions = admissions
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._owner = secrets.token_hex(8)
        self._trial: _Trial | None = None
        self._beaten = 0.0
        self._seen: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Judge until cancelled."""
        if importlib.util.find_spec("onnx") is None:
            log.warning("models from elsewhere cannot be judged here: the extra `train` is not installed")
            return
        try:
            while True:
                try:
                    await asyncio.to_thread(self.turn)
                except Exception:  # whatever it was: the next model is to be judged once it is over
                    log.exception("judging models is held up")
                    await asyncio.sleep(1.0)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self.close()

    def turn(self) -> None:
        """Look once: at the trial that runs, at those whose judge has died, at models that wait."""
        now = self._clock()
        if self._trial is not None:
            self._attend(self._trial, now)
        else:
            admission = self._admissions.claim(self._owner)
            if admission is not None:
                self._start(admission)
        self._watch(now)

    def close(self) -> None:
        """End the trial that runs; its import has failed."""
        if self._trial is not None:
            self._trial.end()
            self._admissions.fail(self._trial.admission.id, "the worker was stopped meanwhile: send it again")
            self._trial = None

    def _start(self, admission: Admission) -> None:
        folder = Path(tempfile.mkdtemp(prefix="specnorm-import-"))
        given = folder / "given"
        try:
            given.mkdir()
            for name, digest in admission.files.items():
                (given / name).write_bytes(self._registry.blobs.get(digest))
        except (SpecnormError, OSError):
            shutil.rmtree(folder, ignore_errors=True)
            self._admissions.fail(admission.id, "what was sent can no longer be read: send it again")
            raise
        if MANIFEST in admission.files:
            arguments = ["export.check", str(given)]
        else:
            arguments = ["export.admission", str(given / next(iter(admission.files))), "--out", str(folder / "bundle")]
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(  # noqa: S603  # our own modules; the arguments are paths of ours
                [sys.executable, "-m", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
            )
        self._trial = _Trial(admission, process, folder, self._clock())

    def _attend(self, trial: _Trial, now: float) -> None:
        if trial.process.poll() is None and now - trial.began < self._settings.import_seconds:
            if now - self._beaten >= BEAT_SECONDS:
                self._beaten = now
                self._admissions.beat(self._owner)
            return
        self._trial = None
        try:
            problem = self._judged(trial)
            if problem is not None:
                self._admissions.fail(trial.admission.id, problem)
        finally:
            trial.end()

    def _judged(self, trial: _Trial) -> str | None:
        """Publish what the trial admits, or return why it does not."""
        if trial.process.poll() is None:
            return f"its trial took longer than {self._settings.import_seconds:g} seconds"
        said = trial.said
        if trial.process.returncode:
            if said.startswith(_SAID) and "\n" not in said:
                return said.removeprefix(_SAID)
            log.error("import %s: the process that judges it wrote:\n%s", trial.admission.id, said)
            return f"the process that judges it ended with status {trial.process.returncode}"
        try:
            manifest, files = read(trial.bundle)
            self._registry.publish(
                trial.admission.model, manifest, files, within=lambda connection, version: _published(connection, trial.admission, version)
            )
        except (BundleError, SpecnormError) as error:
            return str(error)
        return None

    def _watch(self, now: float) -> None:
        running = self._admissions.running()
        self._seen = {name: seen for name, seen in self._seen.items() if running.get(name) == seen[0]}
        for name, heartbeat in running.items():
            _, since = self._seen.setdefault(name, (heartbeat, now))
            if now - since >= self._settings.lease_seconds:
                self._admissions.fail(name, "the worker that judged it has died: send it again")


def _published(connection: Connection, admission: Admission, version: str) -> None:
    """End the import with its publication; the first version of a model goes live with it."""
    succeed(connection, admission.id, version)
    if live.known(connection, admission.model).live is None:
        live.promote(connection, admission.model, version, why="the first version", who=admission.id)
