"""Load on a server: many kept-alive connections, each of which asks again as soon as it is answered."""

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import NamedTuple, cast

from app.errors import UnavailableError

_LATE = 30.0  # a server may take so long for what it has when the time is up


class Target(NamedTuple):
    """Where the requests go; ``tls`` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class Load(NamedTuple):
    """What came of it: seconds from first to last, and the seconds of every answer with the second at which it came."""

    seconds: float
    taken: list[float]
    at: list[float]
    failures: list[str]

    def percentile(self, percent: float) -> float:
        """Return the seconds within which so many percent of the requests were answered, 0 where none was."""
        ordered = sorted(self.taken)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.taken) / self.seconds


class Connection(asyncio.Protocol):
    """One connection: writes a request, reads its answer by Content-Length, and so on."""

    def __init__(self, payloads: Sequence[bytes], first: int, answered: Callable[[float, bytes, bytes], bool]) -> None:
        """Args: requests in turn from ``first`` on; ``answered`` gets seconds, head and body, and returns whether to go on."""
        self._payloads = cycle(range(len(payloads)))
        self._requests = payloads
        for _ in range(first):
            next(self._payloads)
        self._answered = answered
        self._held = b""
        self._begun = 0.0
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)
        self._send(self._transport)

    def _send(self, transport: asyncio.Transport) -> None:
        self._begun = time.perf_counter()
        transport.write(self._requests[next(self._payloads)])

    def data_received(self, data: bytes) -> None:
        """Take an answer apart once all of it is there, and send the next request."""
        data = self._held + data if self._held else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or len(data) < end + _length(data[:end]):
            self._held = data
            return
        self._held = b""
        on = self._answered(time.perf_counter() - self._begun, data[:end], data[end:])
        if self._transport is not None and on:
            self._send(self._transport)
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for the end."""
        if not self.ended.done():
            self.ended.set_result(None)


def _length(head: bytes) -> int:
    at = head.find(b"content-length:")
    if at < 0:
        head = head.lower()
        at = head.find(b"content-length:")
    return int(head[at + 15 : head.index(b"\r", at)]) if at >= 0 else 0


async def run(
    target: Target,
    payloads: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    seen: Callable[[bytes, bytes], None] = lambda _head, _body: None,
    tick: Callable[[float], None] = lambda _part: None,
) -> Load:
    """Ask for ``seconds`` over ``connections`` at once.

    Args:
        target: the server.
        payloads: whole HTTP requests, which every connection sends in turn.
        connections: how many at once.
        seconds: how long new requests are sent.
        seen: gets head and body of every answer.
        tick: gets the part of the time that has passed, now and then.

    Raises:
        UnavailableError: nobody answers.
    """
    taken: list[float] = []
    at: list[float] = []
    failures: list[str] = []
    begun = time.perf_counter()
    end = begun + seconds

    def answered(duration: float, head: bytes, body: bytes) -> bool:
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 200"):
            taken.append(duration)
            at.append(now - begun)
            seen(head, body)
        else:
            failures.append(f"{head[9:12].decode()}: {body[:300].decode(errors='replace')}")
        return now < end

    loop = asyncio.get_running_loop()
    try:
        opened = await asyncio.gather(
            *(
                loop.create_connection(
                    lambda first=number: Connection(payloads, first % len(payloads), answered),
                    target.host,
                    target.port,
                    ssl=target.tls,
                )
                for number in range(connections)
            )
        )
    except OSError as error:
        raise UnavailableError(f"No service answers at {target.host}:{target.port}: {error}") from None
    ends = asyncio.gather(*(protocol.ended for _, protocol in opened))
    while not ends.done() and time.perf_counter() < end + _LATE:
        tick(min(1.0, (time.perf_counter() - begun) / seconds))
        await asyncio.wait([ends], timeout=0.1)
    if not ends.done():
        ends.cancel()
        failures.append(f"no answer within {_LATE:g} s after the end")
    gone = sum(1 for _ in opened) - sum(1 for _, protocol in opened if protocol.ended.done())
    return Load(time.perf_counter() - begun, taken, at, failures + ["a connection did not end"] * gone)
