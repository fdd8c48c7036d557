"""Collects what arrived in one turn of the event loop into one run.

There is no timer: the flush is queued behind the requests that are ready already, so a request that is alone waits for
nobody. Runs that are expected to be short happen on the loop, the others on one thread; what arrives meanwhile makes
the next batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from app.errors import InvalidRequestError, QueueFullError, UnavailableError
from app.inference.outputs import Joined, Outputs, Part
from app.inference.session import Session, Stop
from app.inference.statistics import Run, Statistics
from app.inference.tensors import Array, Shape

Key = tuple[Shape, ...]


class Result(NamedTuple):
    """Outputs of one request, and the nanoseconds that it waited and ran."""

    outputs: Outputs
    queue_ns: int
    run_ns: int


class Waiter(Protocol):
    """Whoever waits for a result; a future of asyncio is one."""

    def done(self) -> bool:
        """Return whether it was told already, or has gone."""
        ...

    def set_result(self, result: Result, /) -> None:
        """Take the result."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Take what went wrong instead."""
        ...


class Waiting:
    """One request in the queue; times are of the loop's clock, but for the nanoseconds."""

    __slots__ = ("deadline", "future", "inputs", "key", "rows", "since_ns")

    def __init__(self, inputs: dict[str, Array], rows: int, deadline: float, future: Waiter) -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline = deadline
        self.future = future
        self.since_ns = time.perf_counter_ns()
        self.key: Key = tuple([inputs[name].shape[1:] for name in (inputs if len(inputs) == 1 else sorted(inputs))])


class Batcher:
    """The queue in front of one session."""

    def __init__(self, session: Session, statistics: Statistics, *, together: bool, max_batch_rows: int, queue_rows: int) -> None:
        self._session = session
        self._statistics = statistics
        self._max_batch_rows = max_batch_rows if together else 0
        self._queue_rows = queue_rows
        self._queue: deque[Waiting] = deque()
        self._rows = 0
        self._running: Sequence[Waiting] = ()
        self._stop: Stop | None = None
        self._flushing = False
        self._thread: ThreadPoolExecutor | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self._running

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
        future: asyncio.Future[Result] = loop.create_future()
        waiting = self.enter(loop, inputs, rows, deadline, future)
        try:
            return await future
        except asyncio.CancelledError:
            self.leave(waiting)
            raise

    def enter(self, loop: asyncio.AbstractEventLoop, inputs: dict[str, Array], rows: int, deadline: float, waiter: Waiter) -> Waiting:
        """Queue a request, of which ``waiter`` will be told; see :meth:`submit`."""
        if self._queue and self._rows + rows > self._queue_rows:
            raise QueueFullError(f"{self._rows} rows wait already, and at most {self._queue_rows} may; try again in a second.")
        waiting = Waiting(inputs, rows, deadline, waiter)
        self._queue.append(waiting)
        self._rows += rows
        if self._running:
            self._wake(loop, deadline)
        else:
            self._schedule(loop)
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """Give up the place of a request whose caller has gone; a run that nobody waits for any more is ended."""
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._rows -= waiting.rows
        elif self._stop and all(one.future.done() for one in self._running):
            self._stop()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch; the next one gets its own turn of the loop, so that the sockets are read in between."""
        self._flushing = False
        batch = self._take(loop.time())
        if not batch:
            return
        if not self._session.quick(sum(waiting.rows for waiting in batch)):
            self._start(loop, batch)
            return
        _settle(batch, self._execute(batch))
        if self._queue:
            self._schedule(loop)

    def _take(self, now: float) -> list[Waiting]:
        """Remove the next batch from the queue: requests of like shape, up to the limit of rows, none that is late."""
        batch: list[Waiting] = []
        rows = 0
        while self._queue:
            first = self._queue[0]
            if first.future.done() or first.deadline <= now:
                _expire(first)
            elif batch and (rows + first.rows > self._max_batch_rows or first.key != batch[0].key):
                break
            else:
                batch.append(first)
                rows += first.rows
            self._queue.popleft()
            self._rows -= first.rows
        return batch

    def _start(self, loop: asyncio.AbstractEventLoop, batch: list[Waiting]) -> None:
        """Run ``batch`` on the thread; its deadlines need a clock, since the queue does not move meanwhile."""
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._running, self._stop = batch, Stop()

        def finish(done: "asyncio.Future[list[Result | Exception]]") -> None:
            self._running, self._stop = (), None
            if done.cancelled():
                return
            error = done.exception()
            _settle(batch, [error] * len(batch) if error else done.result())
            if self._queue:
                self._schedule(loop)

        self._wake(loop, min(waiting.deadline for waiting in (*batch, *self._queue)))
        loop.run_in_executor(self._thread, self._execute, batch, self._stop).add_done_callback(finish)

    def _wake(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """See to it that what is late at ``when`` is told so then."""
        if self._alarm is None or when < self._alarm.when():
            if self._alarm:
                self._alarm.cancel()
            self._alarm = loop.call_at(when, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = None
        now = loop.time()
        pending = [waiting for waiting in (*self._running, *self._queue) if not waiting.future.done()]
        for waiting in pending:
            if waiting.deadline <= now:
                _expire(waiting)
        if self._stop and all(waiting.future.done() for waiting in self._running):
            self._stop()
        later = [waiting.deadline for waiting in pending if not waiting.future.done()]
        if later:
            self._wake(loop, min(later))

    def _execute(self, batch: Sequence[Waiting], stop: Stop | None = None) -> list[Result | Exception]:
        """Return a result or an error for each of ``batch``; where the whole is refused, each is tried alone."""
        start = time.perf_counter_ns()
        rows = sum(waiting.rows for waiting in batch)
        try:
            outputs, run = self._run_together(batch, rows, stop)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for waiting in batch for result in self._execute((waiting,), stop)]
        self._statistics.executed(rows, run)
        return [Result(part, start - waiting.since_ns, run.infer) for waiting, part in zip(batch, outputs, strict=True)]

    def _run_together(self, batch: Sequence[Waiting], rows: int, stop: Stop | None) -> tuple[list[Outputs], Run]:
        begun = time.perf_counter_ns()
        if len(batch) == 1:
            alone: Outputs = self._session.run(batch[0].inputs, stop)
            if self._max_batch_rows and all(array.ndim and array.shape[0] == rows for array in alone.values()):
                alone = Part(Joined(alone), 0, rows)
            return [alone], Run(0, time.perf_counter_ns() - begun, 0)
        joined = {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in batch[0].inputs}
        ready = time.perf_counter_ns()
        outputs = self._session.run(joined, stop)
        computed = time.perf_counter_ns()
        if any(not array.ndim or array.shape[0] != rows for array in outputs.values()):
            raise InvalidRequestError("an output has not one row for each row of the input")
        shared = Joined(outputs)
        parts: list[Outputs] = []
        at = 0
        for waiting in batch:
            parts.append(Part(shared, at, at + waiting.rows))
            at += waiting.rows
        return parts, Run(ready - begun, computed - ready, time.perf_counter_ns() - computed)


def _expire(waiting: Waiting) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(UnavailableError("The request waited past its deadline; try again later."))


def _settle(batch: Sequence[Waiting], results: Sequence[Result | BaseException]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.future.done():  # late, or its caller has gone
            continue
        if isinstance(result, BaseException):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)
