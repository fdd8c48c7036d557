"""uvicorn's HTTP protocol with a short cut: a plain inference request is answered from the bytes, past ASGI.

What :class:`Shortcut` does not take is fed to uvicorn's own parser, byte for byte. Only one message of a connection is on
its way at a time, so answers keep the order of their requests, pipelined ones included.
"""

import asyncio
import logging
from contextvars import Context
from functools import partial
from typing import Any, Final

from starlette.exceptions import HTTPException
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.api.body import compress
from app.api.shortcut import LAST_LINES, NOSNIFF_LINE, Head, Message, Shortcut, lines, tell
from app.inference.served import Asked, Served

_OK: Final = ("POST", 200)

log = logging.getLogger("app.api")


def protocol(shortcut: Shortcut) -> Any:
    """Return what uvicorn's setting ``http`` takes."""
    return partial(Wire, shortcut)


class Wire(HttpToolsProtocol):
    """One connection."""

    __slots__ = (  # beside the dict of uvicorn's class, for speed alone
        "_asked", "_begun", "_body", "_closing", "_direct", "_end", "_idle_alarm", "_idle_since",
        "_late", "_later", "_message", "_served", "_shortcut", "_task", "_within",
    )  # fmt: skip

    def __init__(
        self,
        shortcut: Shortcut,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shortcut = shortcut
        self._within = False  # uvicorn's parser is in the middle of a message
        self._end = 0  # of the last head that was known
        self._direct = False  # the last message went by the short cut, and nothing is held, awaited or full
        self._message: Message | None = None  # the one that is on its way by the short cut
        self._body = bytearray()
        self._served: Served | None = None  # whom it will be asked once all of it is there
        self._asked: Asked | None = None
        self._task: asyncio.Task[None] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._later = bytearray()  # what came after it
        self._closing = False
        self._begun = 0.0
        self._idle_since = 0.0
        self._idle_alarm: asyncio.TimerHandle | None = None

    # What uvicorn's protocol does, with an eye on where it is.

    def on_message_begin(self) -> None:
        """Begin an ordinary message."""
        self._within = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """End one."""
        self._within = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent: decide which way a message goes, or feed on the one that is under way."""
        if not self._direct:
            if self._message is not None or self._later:
                self._hold(data)
                return
            if self._within or not (self.cycle is None or self.cycle.response_complete):
                super().data_received(data)
                return
        shortcut, loop = self._shortcut, self.loop
        now = self._begun = loop.time()
        # Where it begins like a message that is known, no other end of its head need be looked for.
        message = shortcut.messages.get(data[: self._end]) if now < shortcut.fresh_until else None
        if message is None:
            self._end = data.find(b"\r\n\r\n") + 4
            message = shortcut.message(data, self._end, now)
        if message is None:
            self._direct = False
            super().data_received(data)
            return
        if not self._direct:
            if self.flow.write_paused:
                self._hold(data)
                return
            self._unset_keepalive_if_required()
        self._direct = False
        self._message = message
        _, begin, end, json_bytes, _, served = message
        if len(data) != end:
            self._begin(message, data)
            return
        try:  # as in _ask, without a call: this is what nearly all requests are
            self._asked = served.ask(loop, now, self, data, begin=begin, json_bytes=json_bytes)
        except Exception as error:
            self.refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything: the client has gone."""
        if self._message is not None:
            self._shortcut.answers["POST", 499] += 1
        if self._asked is not None:
            self._asked.drop()
        for running in (self._late, self._idle_alarm, self._task):
            if running is not None:
                running.cancel()
        self._message = None
        self._later.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Answer no more until the client has read what there is."""
        super().pause_writing()
        self._direct = False

    def resume_writing(self) -> None:
        """Go on with what was held back while the client read nothing."""
        super().resume_writing()
        if self._message is None and self._later:
            self.loop.call_soon(self._go_on)

    def shutdown(self) -> None:
        """Answer what is on its way, then close."""
        if self._message is not None:
            self._closing = True
        else:
            super().shutdown()

    # The short cut.

    def _begin(self, message: Message, data: bytes) -> None:
        """Ask with the first message of ``data``, or wait for the rest of it."""
        if len(data) > message.end:
            self._hold(data[message.end :])
            self._ask(message.served, message, data[: message.end], message.begin)
        else:
            self._served = message.served
            self._body += memoryview(data)[message.begin :]
            self._late = self.loop.call_later(self._shortcut.seconds, self._give_up)

    def _hold(self, data: bytes) -> None:
        """Keep what cannot be read yet, or is more of the body that is awaited."""
        message = self._message
        if message is None or self._late is None:
            self._later += data
            if len(self._later) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            return
        missing = message.end - message.begin - len(self._body)
        self._body += memoryview(data)[:missing]
        if len(data) > missing:
            self._later += memoryview(data)[missing:]
        if len(data) >= missing and self._served is not None:
            self._late.cancel()
            self._late = None
            served, body = self._served, bytes(self._body)
            self._served, self._body = None, bytearray()
            self._ask(served, message, body, 0)

    def _give_up(self) -> None:
        self._late = None
        sentence = f"The body did not arrive within {self._shortcut.seconds:g} s."
        self.refuse(HTTPException(408, sentence, {"Connection": "close"}))

    def _ask(self, served: Served, message: Message, data: bytes, begin: int) -> None:
        """Have the model answer what the body says, which begins there."""
        try:
            self._asked = served.ask(self.loop, self._begun, self, data, begin=begin, json_bytes=message.json_bytes)
        except Exception as error:
            self.refuse(error)

    def answer(self, body: bytes, json_bytes: int | None) -> None:
        """Write an answer, from the batcher."""
        shortcut, state, message = self._shortcut, self.server_state, self._message
        try:
            if message is None or not message.plain or json_bytes is not None or self._closing or shortcut.debug:
                self._answer_in_full(body, json_bytes)
            else:
                if shortcut.headers is not state.default_headers:
                    shortcut.renew(state.default_headers)
                self._message = self._asked = None  # as in _send, without a call
                state.total_requests += 1
                shortcut.answers[_OK] += 1
                start = shortcut.starts.get(len(body)) or shortcut.start(len(body))
                self._direct = not self._later
                self.transport.write(b"".join((start, next(shortcut.identities), LAST_LINES, body)))  # may call pause_writing
                if self._later or self._idle_alarm is None:
                    self._rest()
                else:
                    self._idle_since = self.loop.time()
        except Exception:  # must not reach the others that shared the run
            log.exception("an answer could not be written")
            self.transport.abort()

    def _answer_in_full(self, body: bytes, json_bytes: int | None) -> None:
        head = self._going.head
        if head.how.accepted:
            self._task = self.loop.create_task(self._compressed(head, body, json_bytes))
        else:
            self._write(head, 200, lines(json_bytes), body)

    def refuse(self, error: Exception) -> None:
        """Write what went wrong, from the batcher or here."""
        try:
            head = self._going.head
            status, headers, body = self._shortcut.refused(error, head)
            text = b"".join(b"%s: %s\r\n" % (name, value) for name, value in headers if name != b"content-length")
            self._closing = self._closing or (b"connection", b"close") in headers
            self._write(head, status, text, body)
        except Exception:  # must not reach the others that shared the run
            log.exception("an answer could not be written")
            self.transport.abort()

    @property
    def _going(self) -> Message:
        """The message that is on its way."""
        if self._message is None:
            raise RuntimeError("an answer without a request")
        return self._message

    async def _compressed(self, head: Head, body: bytes, json_bytes: int | None) -> None:
        try:
            body, encoding = await compress(body, head.how.accepted)
            more = b"content-encoding: %s\r\nvary: accept-encoding\r\n" % encoding if encoding else b""
            self._write(head, 200, lines(json_bytes) + more, body)
        except Exception:  # nobody awaits this task, and the client must not wait for ever
            log.exception("an answer could not be written")
            self.transport.abort()

    def _write(self, head: Head, status: int, more: bytes, body: bytes) -> None:
        """Write an answer of any kind."""
        own = self._shortcut.identity(head)
        if log.isEnabledFor(logging.DEBUG):
            Context().run(tell, head, own.decode(), status, self.loop.time() - self._begun)  # the loop's may be another request's
        close = b"connection: close\r\n" if self._closing and b"connection: close" not in more else b""
        if self._shortcut.headers is not self.server_state.default_headers:
            self._shortcut.renew(self.server_state.default_headers)
        self._send(
            status,
            b"%s%s%s%scontent-length: %d\r\nx-request-id: %s\r\n%s%s"
            % (STATUS_LINE[status], self._shortcut.lines, more, close, len(body), own, NOSNIFF_LINE, body),
        )

    def _send(self, status: int, answer: bytes) -> None:
        """Send an answer and turn to the next message."""
        self._message = self._asked = self._task = None
        self.server_state.total_requests += 1
        self._shortcut.answers["POST", status] += 1
        self.transport.write(answer)
        if self._closing:
            self.transport.close()
        else:
            self._rest()

    def _rest(self) -> None:
        """Turn to what was held back, or be idle."""
        if self._later:
            self.loop.call_soon(self._go_on)
        else:
            self._direct = not self.flow.write_paused
            self._idle_since = self.loop.time()
            if self._idle_alarm is None:
                self._idle_alarm = self.loop.call_later(self.timeout_keep_alive, self._ring)

    def _go_on(self) -> None:
        """Read what was held back."""
        if self._message is not None or not self._later or self.transport.is_closing():
            return
        later, self._later = bytes(self._later), bytearray()
        self.flow.resume_reading()
        self.data_received(later)

    def _ring(self) -> None:
        """Close a connection that was idle for long enough; one alarm serves all of its requests."""
        self._idle_alarm = None
        if self._message is not None or self._within or self.timeout_keep_alive_task is not None or self.transport.is_closing():
            return  # not idle, or idle since an ordinary answer, which has an alarm of its own
        if self.cycle is not None and not self.cycle.response_complete:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_alarm = self.loop.call_later(left, self._ring)
        else:
            self.transport.close()
