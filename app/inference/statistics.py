"""Counts and times of one version, in the words of the protocol's statistics extension."""

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol

from app.totals import Tree, value_of

_TALLIES: Final = ("success", "fail", "queue", "decode", "run", "encode")


class Metrics(Protocol):
    """Whoever wants to hear of every inference request that was answered."""

    def observe(self, model: str, version: str, code: int, seconds: float, rows: int) -> None:
        """Take note of one answer; ``model`` and ``version`` are empty where the request named none that exists."""
        ...


class Tally:
    """How often, and for how many nanoseconds altogether."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count ``ns`` nanoseconds."""
        self.count += count
        self.ns += ns

    def describe(self) -> dict[str, int]:
        """Return the protocol's object."""
        return {"count": self.count, "ns": self.ns}

    @classmethod
    def of(cls, tree: Mapping[str, int]) -> "Tally":
        """Return what :meth:`describe` gave."""
        own = cls()
        own.add(tree["ns"], tree["count"])
        return own


class Times(NamedTuple):
    """Nanoseconds that one request spent in each part."""

    decode: int
    queue: int
    run: int
    encode: int


# Told of the parts of a request that is traced: what answered it, its rows, when it began (perf_counter_ns), and its times.
traced: ContextVar[Callable[[Any, int, int, Times], None] | None] = ContextVar("traced", default=None)


class Run(NamedTuple):
    """Nanoseconds that one run spent joining its requests, in the model, and parting its results."""

    input: int
    infer: int
    output: int


class Batches:
    """What all runs of one size took."""

    __slots__ = ("infer", "input", "output")

    def __init__(self) -> None:
        self.input, self.infer, self.output = Tally(), Tally(), Tally()

    def add(self, run: Run) -> None:
        """Count one run."""
        self.input.count += 1  # in line: this is done for every run
        self.input.ns += run.input
        self.infer.count += 1
        self.infer.ns += run.infer
        self.output.count += 1
        self.output.ns += run.output

    def describe(self, rows: int) -> dict[str, Any]:
        """Return the protocol's object."""
        return {"batch_size": rows, **self.tree()}

    def tree(self) -> Tree:
        """Return the numbers alone."""
        parts = {"compute_input": self.input, "compute_infer": self.infer, "compute_output": self.output}
        return {name: tally.describe() for name, tally in parts.items()}

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Batches":
        """Return what :meth:`tree` gave."""
        own = cls()
        own.input, own.infer, own.output = (Tally.of(tree[name]) for name in ("compute_input", "compute_infer", "compute_output"))
        return own


class Statistics:
    """What one version has done since the process started; outlives its session."""

    def __init__(self, *, model_bytes: int) -> None:
        self.model_bytes = model_bytes
        self.last_inference_ms = 0
        self.inference_count = 0
        self.execution_count = 0
        self.success, self.fail, self.queue = Tally(), Tally(), Tally()
        self.decode, self.run, self.encode = Tally(), Tally(), Tally()
        self.batches: dict[int, Batches] = {}

    def succeeded(self, times: Times) -> None:
        """Count one request that was answered."""
        decode, queue, run, encode = times
        self.success.count += 1  # the five in line: this is done for every request
        self.success.ns += decode + queue + run + encode
        self.queue.count += 1
        self.queue.ns += queue
        self.decode.count += 1
        self.decode.ns += decode
        self.run.count += 1
        self.run.ns += run
        self.encode.count += 1
        self.encode.ns += encode
        self.last_inference_ms = time.time_ns() // 1_000_000

    def shared(self, count: int, *, decode: int, queue: int, run: int, encode: int) -> None:
        """Count requests that were answered from one run.

        Args:
            count: how many.
            decode: nanoseconds that each of them was read in, with the others.
            queue: nanoseconds that they waited, altogether.
            run: nanoseconds that the model took.
            encode: nanoseconds that each of their answers was written in, with the others.
        """
        self.success.count += count  # in line, as above
        self.success.ns += queue + count * (decode + run + encode)
        self.queue.count += count
        self.queue.ns += queue
        self.decode.count += count
        self.decode.ns += count * decode
        self.run.count += count
        self.run.ns += count * run
        self.encode.count += count
        self.encode.ns += count * encode
        self.last_inference_ms = time.time_ns() // 1_000_000

    def failed(self, ns: int) -> None:
        """Count one request that was refused or failed."""
        self.fail.add(ns)

    def executed(self, rows: int, run: Run) -> None:
        """Count one run of the session that gave ``rows`` rows."""
        self.execution_count += 1
        self.inference_count += rows
        batches = self.batches.get(rows)
        if batches is None:
            batches = self.batches[rows] = Batches()
        batches.add(run)

    def tree(self) -> Tree:
        """Return it as numbers that add up with those of other processes; see :mod:`app.totals`."""
        return {
            "model_bytes": {"max": self.model_bytes},
            "last_inference_ms": {"max": self.last_inference_ms},
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            **{name: getattr(self, name).describe() for name in _TALLIES},
            "batches": {str(rows): batches.tree() for rows, batches in list(self.batches.items())},
        }

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Statistics":
        """Return what :meth:`tree` gave, or a sum of such."""
        own = cls(model_bytes=int(value_of(tree["model_bytes"])))
        own.last_inference_ms = int(value_of(tree["last_inference_ms"]))
        own.inference_count, own.execution_count = tree["inference_count"], tree["execution_count"]
        for name in _TALLIES:
            setattr(own, name, Tally.of(tree[name]))
        own.batches = {int(rows): Batches.of(batches) for rows, batches in tree["batches"].items()}
        return own

    def describe(self, model: str, version: str, memory: Mapping[str, int]) -> dict[str, Any]:
        """Return the protocol's object; ``memory`` is in bytes by kind, and empty while the version is not loaded."""
        nothing = Tally().describe()
        return {
            "name": model,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": self.success.describe(),
                "fail": self.fail.describe(),
                "queue": self.queue.describe(),
                "compute_input": self.decode.describe(),
                "compute_infer": self.run.describe(),
                "compute_output": self.encode.describe(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [batches.describe(rows) for rows, batches in sorted(self.batches.items())],
            "memory_usage": [{"type": kind, "id": 0, "byte_size": size} for kind, size in memory.items()],
        }
