"""The worker's heartbeat, and what it learns by it: that the job is to pause, or is no longer this worker's."""

import os
import threading
import time
from types import TracebackType

from app.errors import SpecnormError
from app.jobs.attempt import Attempt, FencedError


class InterruptedJobError(SpecnormError):
    """The attempt is to end early; the job goes back to the queue."""


class Pulse:
    """A thread that shows life every ``seconds``, and keeps what was heard until the worker asks.

    The worker's parent going away counts as a request to end: an orphan would hold the job for as long as it trains.
    """

    def __init__(self, attempt: Attempt, seconds: float) -> None:
        self._attempt = attempt
        self._seconds = seconds
        self._reason: SpecnormError | None = None
        self._over = threading.Event()
        self._parent = os.getppid()
        self._beaten = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def interrupted(self) -> bool:
        """Return whether :meth:`check` would raise."""
        return self._reason is not None

    def interrupt(self, why: str) -> None:
        """Ask the worker to end early."""
        self._reason = self._reason or InterruptedJobError(why)

    def check(self) -> None:
        """Go on, or raise what was heard.

        Raises:
            InterruptedJobError: the job is paused, or the worker is to end.
            FencedError: the job is no longer this worker's: it was cancelled, or taken over.
        """
        if self._reason is not None:
            raise self._reason

    def _beat(self) -> None:
        self._listen()
        while not self._over.wait(self._seconds) and not isinstance(self._reason, FencedError):
            self._listen()

    def _listen(self) -> None:
        now = time.monotonic()
        try:
            pause = self._attempt.heartbeat(now - self._beaten)
        except FencedError as error:
            self._reason = error
            return
        except SpecnormError:
            return  # the database is busy or full; the lease decides for how long that may go on
        self._beaten = now
        if pause:
            self.interrupt("it was paused")
        if os.getppid() != self._parent:
            self.interrupt("the service that started its worker has ended")
