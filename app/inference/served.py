"""One loaded version: bytes in, bytes out."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from app.inference.answer import Encoded, named
from app.inference.batcher import Batcher
from app.inference.codec import Codec
from app.inference.flat import Form
from app.inference.outputs import Joined, Outputs
from app.inference.request import Request, shares_runs
from app.inference.session import Session
from app.inference.statistics import Statistics, Times, traced
from app.inference.waiting import Inputs, Waiting, key_of
from app.registry.artifact import Artifact
from app.settings import Settings

AnswerT = TypeVar("AnswerT")


class Response(NamedTuple):
    """Outputs of one request by name, and the nanoseconds that it waited and ran."""

    outputs: Outputs
    queue_ns: int
    run_ns: int


class Caller(Protocol):
    """Whoever asked. Is told once, unless the request is dropped."""

    def answer(self, body: bytes, json_bytes: int | None, /) -> None:
        """Take an answer, and the size of its JSON part where binary data follow."""
        ...

    def refuse(self, error: Exception, /) -> None:
        """Take what went wrong instead."""
        ...


class Read(NamedTuple):
    """A request that was read in full, and the nanoseconds that it took."""

    request: Request
    ns: int


class Asked(Waiting):
    """One request on its way through the batcher, without a coroutine: unread where its form is known.

    Attributes:
        form, numbers, id: what is unread, where the form is known.
    """

    __slots__ = ("_begin", "_caller", "_data", "_json_bytes", "_outside", "_read", "_served", "form", "gone", "id", "numbers")

    gone: bool
    form: Form
    numbers: bytes
    id: str | None

    def __init__(
        self, served: "Served", caller: Caller, since_ns: int, now: float, data: bytes, *, begin: int, json_bytes: int | None
    ) -> None:
        """Args: ``now`` is the loop's time, and ``begin`` where the body begins in ``data``, which was received."""
        self.since_ns = since_ns
        self.gone = False
        self._served = served
        self._caller = caller
        self._data = data
        self._begin = begin
        self._json_bytes = json_bytes
        self._outside = False
        self._read: Read | None = None
        # While a run is under way on the thread, nothing is gained by reading later.
        found = None if served.batcher.running else served.codec.find(data, begin, json_bytes)
        if found is None:
            timeout = self._decode().timeout
        else:
            self.form, self.numbers, self.id = form, _, _ = found
            self.inputs = None
            self.rows = form.rows
            self.key = form.key
            timeout = form.timeout
        limit = served.timeout
        self.deadline = now + (limit if timeout is None or timeout > limit else timeout)

    def read(self) -> None:
        """Read it in full."""
        self._decode()

    def _decode(self) -> Request:
        begun = time.perf_counter_ns()
        request = self._served.codec.decode(self._data[self._begin :], self._json_bytes)
        self.inputs = request.inputs
        self.rows = request.rows
        self.key = key_of(request.inputs)
        self._read = Read(request, time.perf_counter_ns() - begun)
        return request

    def take(self, joined: Joined, begin: int, end: int) -> bool:
        """Encode the result and pass it on."""
        self.gone = True
        if self.rows == 1 and self._read is None and self.form.plain:
            rows = joined.rows.get(self._outside) or self._served.codec.rows(joined, self._outside)
            if rows is not None:
                self._caller.answer(rows[begin] if self.id is None else named(rows[begin], self.id), None)
                return True
        computed = time.perf_counter_ns()
        try:
            encoded = self._encode(joined.part(begin, end))
        except Exception as error:
            self.fail(error)
            return False
        decode_ns = joined.read_ns if self._read is None else self._read.ns
        times = Times(decode_ns, joined.begun_ns - self.since_ns, joined.run_ns, time.perf_counter_ns() - computed)
        self._served.statistics.succeeded(times)
        self._caller.answer(*encoded)
        return False

    def _encode(self, outputs: Outputs) -> Encoded:
        codec = self._served.codec
        if self._read is not None:
            return codec.encode(self._read.request, outputs)
        form = self.form
        request = Request({}, self.rows, form.wanted, self.id, None, self._outside, form.plain)
        return codec.raw(request, outputs, form.heads) if form.raw else codec.encode(request, outputs)

    def fail(self, error: BaseException) -> None:
        """Pass on what went wrong."""
        self.gone = True
        self._served.statistics.failed(time.perf_counter_ns() - self.since_ns)
        self._caller.refuse(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def drop(self) -> None:
        """Have nothing more to do with it: the caller has gone."""
        if not self.gone:
            self.gone = True  # pyright: ignore[reportIncompatibleMethodOverride]  # an attribute for speed alone
            self._served.statistics.failed(time.perf_counter_ns() - self.since_ns)
            self._served.batcher.leave(self)

    @staticmethod
    def together(codec: Codec, batch: Sequence[Waiting]) -> Inputs | None:
        """Return the inputs of requests that are all unread, None where one has to be looked at alone."""
        asked = cast(Sequence[Asked], batch)  # of all that wait, they alone come unread
        found = codec.together(asked)
        if found is None:
            return None
        array, flags = found
        if True in flags:
            for one, outside in zip(asked, flags, strict=True):
                one._outside = outside
        return {asked[0].form.tensor.name: array}


class Served:
    """One loaded version. Whoever holds it can use it to the end, live or not any more.

    Attributes:
        digest: sha256 of its ``model.onnx``.
        device: where it really runs, ``cpu`` or ``cuda``.
        device_reason: why it does not run on CUDA, where the settings would have let it.
        batched: whether its requests share runs.
        max_batch_rows: of how many rows at most.
        statistics: what it has done since the process started.
        codec: reads its requests and writes its answers.
        batcher: the queue of requests.
        timeout: how long they wait at most, in seconds.
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
        self.device_reason = session.device_reason
        self.max_batch_rows = settings.max_batch_rows
        self.batched = shares_runs(artifact.manifest.signature)
        self._quick = session.quick(1)
        self.timeout = settings.request_timeout
        self.codec = Codec(name, version, artifact.manifest, max_rows=settings.queue_rows)
        self.batcher = Batcher(
            session,
            statistics,
            together=self.batched,
            max_batch_rows=settings.max_batch_rows,
            queue_rows=settings.queue_rows,
            read=partial(Asked.together, self.codec),
        )

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return self.batcher.idle

    @property
    def waiting(self) -> int:
        """How many requests wait for a run."""
        return self.batcher.waiting

    @property
    def quick(self) -> bool:
        """Whether a run of one row is so short that nobody need ask meanwhile if its caller is still there."""
        return self._quick

    def ask(
        self, loop: asyncio.AbstractEventLoop, now: float, caller: Caller, data: bytes, *, begin: int = 0, json_bytes: int | None = None
    ) -> Asked:
        """Begin what :meth:`answer` does for the body that ``data`` holds from ``begin`` on; ``caller`` is told in a later turn.

        Raises what :meth:`Codec.decode` raises, and QueueFullError; or the caller is told that.
        """
        begun = time.perf_counter_ns()
        try:
            asked = Asked(self, caller, begun, now, data, begin=begin, json_bytes=json_bytes)
            self.batcher.enter(loop, asked)
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
        limit = self.timeout if request.timeout is None else min(self.timeout, request.timeout)
        return Response(*await self.batcher.submit(request.inputs, request.rows, asyncio.get_running_loop().time() + limit))

    async def answer(self, body: bytes, json_bytes: int | None = None) -> tuple[Encoded, int]:
        """Do all of one request, bytes to bytes, and count it; returns the answer and its rows."""
        return await self._counted(lambda: self.codec.decode(body, json_bytes), self.codec.encode)

    async def answer_document(self, document: dict[str, Any], raw: memoryview | None) -> tuple[dict[str, Any], list[bytes]]:
        """Do all of one request that comes as an object and the binary data of its inputs; the answer goes the same way."""
        answer, _ = await self._counted(lambda: self.codec.read(document, raw), self.codec.write)
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
        trace = traced.get()
        if trace is not None:
            trace(self, request.rows, begun, times)
        return encoded, request.rows
