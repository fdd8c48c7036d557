"""One loaded version: bytes in, bytes out."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from app.inference.batcher import Batcher, Result, Waiting
from app.inference.codec import Codec, Encoded, Request, shares_runs
from app.inference.outputs import Outputs
from app.inference.session import Session
from app.inference.statistics import Statistics, Times
from app.registry.artifact import Artifact
from app.settings import Settings

AnswerT = TypeVar("AnswerT")


class Response(NamedTuple):
    """Outputs of one request by name, and the nanoseconds that it waited and ran."""

    outputs: Outputs
    queue_ns: int
    run_ns: int


class Asked:
    """One request on its way through the batcher, without a coroutine: `answered` is called once, unless it is dropped."""

    __slots__ = ("_answered", "_begun", "_decoded", "_served", "gone", "request", "waiting")

    def __init__(self, served: "Served", request: Request, answered: Callable[[Encoded | Exception], None], begun: int) -> None:
        self._served = served
        self._answered = answered
        self._begun = begun
        self._decoded = time.perf_counter_ns()
        self.request = request
        self.gone = False
        self.waiting: Waiting | None = None

    def done(self) -> bool:
        """Return whether nobody waits any more."""
        return self.gone

    def set_result(self, result: Result, /) -> None:
        """Encode the result, count it, and pass it on."""
        self.gone = True
        computed = time.perf_counter_ns()
        try:
            encoded = self._served.encode(self.request, result.outputs)
        except Exception as error:
            self._fail(error)
            return
        times = Times(self._decoded - self._begun, result.queue_ns, result.run_ns, time.perf_counter_ns() - computed)
        self._served.statistics.succeeded(times)
        self._answered(encoded)

    def set_exception(self, exception: BaseException, /) -> None:
        """Pass on what went wrong."""
        self.gone = True
        self._fail(exception if isinstance(exception, Exception) else RuntimeError(repr(exception)))

    def _fail(self, error: Exception) -> None:
        self._served.statistics.failed(time.perf_counter_ns() - self._begun)
        self._answered(error)

    def drop(self) -> None:
        """Have nothing more to do with it: the caller has gone."""
        if not self.gone and self.waiting is not None:
            self.gone = True
            self._served.statistics.failed(time.perf_counter_ns() - self._begun)
            self._served.leave(self.waiting)


class Served:
    """One loaded version. Whoever holds it can use it to the end, live or not any more.

    Attributes:
        digest: sha256 of its ``model.onnx``.
        device: where it really runs, ``cpu`` or ``cuda``.
        batched: whether its requests share runs.
        max_batch_rows: of how many rows at most.
        statistics: what it has done since the process started.
    """

    def __init__(self, name: str, version: str, artifact: Artifact, settings: Settings, statistics: Statistics) -> None:
        """Load and warm it; blocks, and raises what :class:`Session` raises."""
        self.name = name
        self.version = version
        self.manifest = artifact.manifest
        self.digest = artifact.manifest.model_digest
        self.statistics = statistics
        session = Session(artifact.model, artifact.manifest, settings)
        self.device = session.device
        self.max_batch_rows = settings.max_batch_rows
        self.batched = shares_runs(artifact.manifest.signature)
        self._quick = session.quick(1)
        self._timeout = settings.request_timeout
        self._codec = Codec(name, version, artifact.manifest, max_rows=settings.queue_rows)
        self._batcher = Batcher(
            session,
            statistics,
            together=self.batched,
            max_batch_rows=settings.max_batch_rows,
            queue_rows=settings.queue_rows,
        )

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._batcher.idle

    @property
    def waiting(self) -> int:
        """How many requests wait for a run."""
        return self._batcher.waiting

    @property
    def quick(self) -> bool:
        """Whether a run of one row is so short that nobody need ask meanwhile if its caller is still there."""
        return self._quick

    def decode(self, body: bytes, json_bytes: int | None = None) -> Request:
        """Return the request in ``body``; see :meth:`Codec.decode`."""
        return self._codec.decode(body, json_bytes)

    def encode(self, request: Request, outputs: Outputs) -> Encoded:
        """Return the answer to ``request``; see :meth:`Codec.encode`."""
        return self._codec.encode(request, outputs)

    def leave(self, waiting: Waiting) -> None:
        """Give up the place of a request; see :meth:`Batcher.leave`."""
        self._batcher.leave(waiting)

    def ask(
        self, loop: asyncio.AbstractEventLoop, body: bytes, json_bytes: int | None, answered: Callable[[Encoded | Exception], None]
    ) -> Asked:
        """Begin what :meth:`answer` does, and have ``answered`` called from a later turn of the loop.

        Raises what :meth:`decode` raises, and QueueFullError.
        """
        begun = time.perf_counter_ns()
        try:
            request = self._codec.decode(body, json_bytes)
            asked = Asked(self, request, answered, begun)
            limit = self._timeout if request.timeout is None else min(self._timeout, request.timeout)
            asked.waiting = self._batcher.enter(loop, request.inputs, request.rows, loop.time() + limit, asked)
        except BaseException:
            self.statistics.failed(time.perf_counter_ns() - begun)
            raise
        return asked

    async def infer(self, request: Request) -> Response:
        """Return what the model gives for ``request``.

        Raises:
            QueueFullError: too many rows wait for this version.
            UnavailableError: the deadline passed.
            InvalidRequestError: the graph cannot be run on these inputs.
        """
        limit = self._timeout if request.timeout is None else min(self._timeout, request.timeout)
        return Response(*await self._batcher.submit(request.inputs, request.rows, asyncio.get_running_loop().time() + limit))

    async def answer(self, body: bytes, json_bytes: int | None = None) -> tuple[Encoded, int]:
        """Do all of one request, bytes to bytes, and count it; returns the answer and its rows."""
        return await self._counted(lambda: self._codec.decode(body, json_bytes), self._codec.encode)

    async def answer_document(self, document: dict[str, Any], raw: memoryview | None) -> tuple[dict[str, Any], list[bytes]]:
        """Do all of one request that comes as an object and the binary data of its inputs; the answer goes the same way."""
        answer, _ = await self._counted(lambda: self._codec.read(document, raw), self._codec.write)
        return answer

    async def _counted(self, decode: Callable[[], Request], encode: Callable[[Request, Outputs], AnswerT]) -> tuple[AnswerT, int]:
        begun = time.perf_counter_ns()
        try:
            request = decode()
            decoded = time.perf_counter_ns()
            response = await self.infer(request)
            computed = time.perf_counter_ns()
            encoded = encode(request, response.outputs)
        except BaseException:
            self.statistics.failed(time.perf_counter_ns() - begun)
            raise
        times = Times(decoded - begun, response.queue_ns, response.run_ns, time.perf_counter_ns() - computed)
        self.statistics.succeeded(times)
        return encoded, request.rows
