"""Collects what arrived in one turn of the event loop into one run.

There is no timer: the flush is queued behind the requests that are ready already, so a request that is alone waits for
nobody. Runs that are expected to be short happen on the loop, the others on one thread; what arrives meanwhile makes
the next batch.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from app.errors import InvalidRequestError, QueueFullError, UnavailableError
from app.inference.outputs import Joined
from app.inference.session import Session, Stop
from app.inference.statistics import Run as Times
from app.inference.statistics import Statistics
from app.inference.tensors import Array
from app.inference.waiting import Awaited, Inputs, Result, Waiting

log = logging.getLogger(__name__)

Run = tuple[Sequence[Waiting], Joined | BaseException]
Together = Callable[[Sequence[Waiting]], Inputs | None]


class Batcher:
    """The queue in front of one session.

    Attributes:
        running: the requests of the run that is under way on the thread.
    """

    def __init__(
        self,
        session: Session,
        statistics: Statistics,
        *,
        together: bool,
        max_batch_rows: int,
        queue_rows: int,
        read: Together = lambda _: None,
    ) -> None:
        """Args: ``together`` tells whether requests may share a run; ``read`` reads those that were left unread, all at once if it can."""
        self._session = session
        self._statistics = statistics
        self._max_batch_rows = max_batch_rows if together else 0
        self._queue_rows = queue_rows
        self._read = read
        self._queue: deque[Waiting] = deque()
        self._rows = 0
        self.running: Sequence[Waiting] = ()
        self._stop: Stop | None = None
        self._flushing = False
        self._thread: ThreadPoolExecutor | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self.running

    @property
    def waiting(self) -> int:
        """How many requests wait for a run."""
        return len(self._queue)

    async def submit(self, inputs: dict[str, Array], rows: int, deadline: float) -> Result:
        """Return what the session gives for ``inputs``.

        Args:
            inputs: arrays by name; where requests are batched, all of ``rows`` rows.
            rows: how much of the queue it takes.
            deadline: on the loop's clock.

        Raises:
            QueueFullError: too many rows wait.
            UnavailableError: the deadline passed.
            InvalidRequestError: the session refuses these inputs.
        """
        loop = asyncio.get_running_loop()
        waiting = Awaited(inputs, rows, deadline, loop.create_future())
        self.enter(loop, waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self.leave(waiting)
            raise

    def enter(self, loop: asyncio.AbstractEventLoop, waiting: Waiting) -> None:
        """Queue a request; see :meth:`submit`."""
        if self._queue and self._rows + waiting.rows > self._queue_rows:
            raise QueueFullError(f"{self._rows} rows wait already, and at most {self._queue_rows} may; try again in a second.")
        self._queue.append(waiting)
        self._rows += waiting.rows
        if self.running:
            self._wake(loop, waiting.deadline)
        elif not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)

    def leave(self, waiting: Waiting) -> None:
        """Give up the place of a request whose caller has gone; a run that nobody waits for any more is ended."""
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._rows -= waiting.rows
        elif self._stop and all(one.gone for one in self.running):
            self._stop()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch; the next one gets its own turn of the loop, so that the sockets are read in between."""
        self._flushing = False
        taken, rows = self._take(loop.time())
        begun = time.perf_counter_ns()
        batch, inputs = self._ready(taken)
        if batch:
            if self._session.quick(rows):
                self._settle(self._execute(batch, inputs, begun))
            else:
                self._start(loop, batch, inputs, begun)
        if self._queue and not self.running:
            self._schedule(loop)

    def _ready(self, batch: list[Waiting]) -> tuple[list[Waiting], Inputs | None]:
        """Read what is still to be read, together where that goes. What cannot be read is refused and left out."""
        unread = [waiting for waiting in batch if waiting.inputs is None]
        if not unread:
            return batch, None
        if len(unread) == len(batch):
            try:
                inputs = self._read(batch)
            except Exception:  # each alone may yet go well, and nobody must wait for ever
                log.exception("the requests of one run could not be read together")
            else:
                if inputs is not None:
                    return batch, inputs
        good: list[Waiting] = []
        for waiting in batch:
            try:
                if waiting.inputs is None:
                    waiting.read()
            except Exception as error:
                waiting.fail(error)
            else:
                good.append(waiting)
        return good, None

    def _take(self, now: float) -> tuple[list[Waiting], int]:
        """Remove the next batch from the queue: requests of like shape, up to the limit of rows, none that is late; and its rows."""
        queue, most, rows, key = self._queue, self._max_batch_rows, 0, None
        batch: list[Waiting] = []
        while queue:
            first = queue[0]
            if first.gone or first.deadline <= now:
                _expire(first)
                self._rows -= first.rows
            elif key is None:
                batch.append(first)
                rows, key = first.rows, first.key
            elif rows + first.rows > most or first.key != key:
                break
            else:
                batch.append(first)
                rows += first.rows
            queue.popleft()
        self._rows -= rows
        return batch, rows

    def _start(self, loop: asyncio.AbstractEventLoop, batch: list[Waiting], inputs: Inputs | None, begun: int) -> None:
        """Run ``batch`` on the thread; its deadlines need a clock, since the queue does not move meanwhile."""
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.running, self._stop = batch, Stop()

        def finish(done: "asyncio.Future[list[Run]]") -> None:
            self.running, self._stop = (), None
            if done.cancelled():
                return
            error = done.exception()
            self._settle([(batch, error)] if error else done.result())
            if self._queue:
                self._schedule(loop)

        self._wake(loop, min(waiting.deadline for waiting in (*batch, *self._queue)))
        loop.run_in_executor(self._thread, self._execute, batch, inputs, begun, self._stop).add_done_callback(finish)

    def _wake(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """See to it that what is late at ``when`` is told so then."""
        if self._alarm is None or when < self._alarm.when():
            if self._alarm:
                self._alarm.cancel()
            self._alarm = loop.call_at(when, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = None
        now = loop.time()
        pending = [waiting for waiting in (*self.running, *self._queue) if not waiting.gone]
        for waiting in pending:
            if waiting.deadline <= now:
                _expire(waiting)
        if self._stop and all(waiting.gone for waiting in self.running):
            self._stop()
        later = [waiting.deadline for waiting in pending if not waiting.gone]
        if later:
            self._wake(loop, min(later))

    def _execute(self, batch: Sequence[Waiting], inputs: Inputs | None, begun: int, stop: Stop | None = None) -> list[Run]:
        """Return what a run gave, or an error; where the whole is refused, each is tried alone.

        Args:
            batch: the requests.
            inputs: of all of them, where they are joined already.
            begun: when getting them ready began.
            stop: a way to end the run.
        """
        rows = sum([waiting.rows for waiting in batch])
        try:
            return [(batch, self._run(batch, inputs, rows, begun, stop))]
        except Exception as error:
            if len(batch) == 1 or (stop is not None and stop.called):  # what was ended on purpose is not run again
                return [(batch, error)]
        runs: list[Run] = []
        at = 0
        for waiting in batch:
            own = inputs and {name: array[at : at + waiting.rows] for name, array in inputs.items()}
            runs += self._execute((waiting,), own, time.perf_counter_ns(), stop)
            at += waiting.rows
        return runs

    def _run(self, batch: Sequence[Waiting], inputs: Inputs | None, rows: int, begun: int, stop: Stop | None) -> Joined:
        if inputs is None:
            own = [waiting.inputs for waiting in batch if waiting.inputs is not None]
            inputs = own[0] if len(own) == 1 else {name: np.concatenate([one[name] for one in own]) for name in own[0]}
        ready = time.perf_counter_ns()
        outputs = self._session.run(inputs, stop)
        computed = time.perf_counter_ns()
        divisible = bool(self._max_batch_rows) and all([array.ndim and array.shape[0] == rows for array in outputs.values()])
        if len(batch) > 1 and not divisible:
            raise InvalidRequestError("an output has not one row for each row of the input")
        self._statistics.executed(rows, Times(ready - begun, computed - ready, time.perf_counter_ns() - computed))
        return Joined(outputs, divisible=divisible, begun_ns=begun, read_ns=ready - begun, run_ns=computed - ready)

    def _settle(self, runs: Sequence[Run]) -> None:
        """Give everyone what is theirs."""
        for batch, joined in runs:
            if isinstance(joined, BaseException):
                for waiting in batch:
                    if not waiting.gone:
                        waiting.fail(joined)
                continue
            at = count = since = 0
            for waiting in batch:
                end = at + waiting.rows
                if not waiting.gone and waiting.take(joined, at, end):  # else late, or its caller has gone
                    count += 1
                    since += waiting.since_ns
                at = end
            if count:
                queue = count * joined.begun_ns - since
                self._statistics.shared(count, decode=joined.read_ns, queue=queue, run=joined.run_ns, encode=joined.write_ns)


def _expire(waiting: Waiting) -> None:
    if not waiting.gone:
        waiting.fail(UnavailableError("The request waited past its deadline; try again later."))
