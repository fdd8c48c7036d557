"""Runs the jobs of a workspace: claims one, starts its worker, and takes over what a dead or silent worker left."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from app.jobs.launcher import Launcher, Running
from app.jobs.store import Claim, Jobs, Lease
from app.settings import Settings

POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    lease: Lease
    since: float


class Dispatcher:
    """One place that runs jobs, among any number on the same workspace.

    No clock is compared with another's: a lease has ended when its heartbeat counter has stood still for
    ``lease_seconds`` on this dispatcher's own monotonic clock.

    Args:
        jobs: the jobs.
        launcher: where their workers run.
        settings: ``lease_seconds``, ``job_max_attempts``, ``job_max_seconds``, ``drain_seconds``.
        limit: most workers at once.
        clock: seconds that never go back.
    """

    def __init__(
        self, jobs: Jobs, launcher: Launcher, settings: Settings, *, limit: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._launcher = launcher
        self._settings = settings
        self._limit = limit
        self._clock = clock
        self._owner = secrets.token_hex(8)
        self._running: dict[Claim, Running] = {}
        self._seen: dict[str, _Seen] = {}
        self._let_go: dict[Claim, float] = {}

    async def run(self) -> None:
        """Dispatch until cancelled; then ask the workers to write a checkpoint and end, and wait for them."""
        try:
            while True:
                try:
                    await asyncio.to_thread(self.turn)
                except Exception:  # whatever it was: jobs are to go on once it is over
                    log.exception("dispatching is held up")
                    await asyncio.sleep(1.0)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await asyncio.shield(asyncio.to_thread(self.close))

    def turn(self) -> None:
        """Look once: at workers that ended, at leases that ran out, at jobs that wait."""
        self._reap()
        self._watch()
        while len(self._running) < self._limit and self._jobs.waiting():
            claim = self._jobs.claim(self._owner)
            if claim is None:
                return
            self._start(claim)

    def close(self) -> None:
        """End all workers: first by asking, after ``drain_seconds`` by force; their jobs go back to the queue."""
        for worker in self._running.values():
            worker.ask()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self._running and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        for claim in list(self._running):
            self._kill(claim, "the worker did not end in time")

    def _start(self, claim: Claim) -> None:
        try:
            self._running[claim] = self._launcher.start(claim)
        except OSError as error:
            log.error("job %s: its worker cannot be started: %s", claim.job, error)
            self._lose(claim, "its worker could not be started")

    def _reap(self) -> None:
        for claim, worker in list(self._running.items()):
            status = worker.poll()
            if status is not None:
                self._ended(claim, f"its worker ended with status {status}")

    def _watch(self) -> None:
        now = self._clock()
        leases = {lease.job: lease for lease in self._jobs.leases()}
        self._seen = {job: seen for job, seen in self._seen.items() if leases.get(job) == seen.lease}
        for job, lease in leases.items():
            seen = self._seen.setdefault(job, _Seen(lease, now))
            if now - seen.since < self._settings.lease_seconds:
                continue
            claim = Claim(lease.job, lease.token)
            if claim in self._running:
                self._kill(claim, "its worker showed no life for one lease")
            else:
                self._lose(claim, "its worker showed no life for one lease", heartbeat=lease.heartbeat)
        self._limit_time(leases)
        self._end_outcasts(leases, now)

    def _limit_time(self, leases: Mapping[str, Lease]) -> None:
        """Fail the jobs that were worked at for too long."""
        for lease in leases.values():
            claim = Claim(lease.job, lease.token)
            allowed = min(lease.max_seconds or math.inf, self._settings.job_max_seconds)
            if lease.spent > allowed and claim in self._running:
                self._running[claim].kill()
                why = f"the job took longer than the {allowed:g} seconds that it may take"
                self._jobs.give_up(claim, "timeout", why, param="max_seconds")
                self._ended(claim, "its worker took too long")

    def _end_outcasts(self, leases: Mapping[str, Lease], now: float) -> None:
        """Kill workers that went on for one lease after their job had ended or was taken from them."""
        held = {Claim(lease.job, lease.token) for lease in leases.values()}
        self._let_go = {claim: self._let_go.get(claim, now) for claim in self._running if claim not in held}
        for claim, since in self._let_go.items():
            if now - since >= self._settings.lease_seconds:
                self._kill(claim, "its worker went on after that")

    def _kill(self, claim: Claim, why: str) -> None:
        self._running[claim].kill()
        self._ended(claim, why)

    def _ended(self, claim: Claim, why: str) -> None:
        tail = self._running.pop(claim).tail()
        if tail:
            log.warning("job %s: the worker of attempt %d wrote:\n%s", claim.job, claim.token, tail)
        self._lose(claim, why)

    def _lose(self, claim: Claim, why: str, *, heartbeat: int | None = None) -> None:
        state = self._jobs.lose(claim, why=why, max_attempts=self._settings.job_max_attempts, heartbeat=heartbeat)
        if state is not None:
            log.warning("job %s, attempt %d: %s; it is %s now", claim.job, claim.token, why, state)
