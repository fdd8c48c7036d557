"""Requests that wait for a run."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from app.inference.outputs import Joined, Outputs
from app.inference.tensors import Array, Shape

Key = tuple[Shape, ...]
Inputs = Mapping[str, Array]


class Result(NamedTuple):
    """Outputs of one request, and the nanoseconds that it waited and ran."""

    outputs: Outputs
    queue_ns: int
    run_ns: int


class Waiting(ABC):
    """One request in the queue.

    Attributes:
        inputs: arrays by name, None where they are still to be read.
        rows: how much of the queue it takes.
        key: what requests of one run have to have in common.
        deadline: on the loop's clock.
        since_ns: when it came.
    """

    __slots__ = ("deadline", "inputs", "key", "rows", "since_ns")

    inputs: Inputs | None
    rows: int
    key: Key
    deadline: float
    since_ns: int

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether nobody waits any more: it was told what came of it, or its caller has gone."""

    @abstractmethod
    def take(self, joined: Joined, begin: int, end: int) -> bool:
        """Take the rows of a run that are its own; return whether its times are counted with those of the others of the run."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Take what went wrong instead."""

    @abstractmethod
    def read(self) -> None:
        """Get the inputs that are still to be read. Raises InvalidRequestError."""


class Awaited(Waiting):
    """One for whose result a coroutine waits."""

    __slots__ = ("future",)

    def __init__(self, inputs: Inputs, rows: int, deadline: float, future: "asyncio.Future[Result]") -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline = deadline
        self.future = future
        self.since_ns = time.perf_counter_ns()
        self.key = key_of(inputs)

    @property
    def gone(self) -> bool:
        """Whether the coroutine was told, or has been cancelled."""
        return self.future.done()

    def read(self) -> None:
        """Do nothing: it came read."""

    def take(self, joined: Joined, begin: int, end: int) -> bool:
        """Wake the coroutine, which counts for itself."""
        self.future.set_result(Result(joined.part(begin, end), joined.begun_ns - self.since_ns, joined.run_ns))
        return False

    def fail(self, error: BaseException) -> None:
        """Wake the coroutine."""
        self.future.set_exception(error)


def key_of(inputs: Inputs) -> Key:
    """Return what has to be alike in the inputs of one run."""
    return tuple([inputs[name].shape[1:] for name in (inputs if len(inputs) == 1 else sorted(inputs))])
