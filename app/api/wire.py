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
from app.api.shortcut import NOSNIFF_LINE, Head, Message, Shortcut, lines
from app.inference.served import Asked, Served
from app.observability import request_id, trace_id, trace_of

_OK: Final = ("POST", 200)

log = logging.getLogger("app.api")


def protocol(shortcut: Shortcut) -> Any:
    """Return what uvicorn's setting ``http`` takes."""
    return partial(Wire, shortcut)


class Wire(HttpToolsProtocol):
    """One connection."""

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
        if self._message is not None or self._later:
            self._hold(data)
            return
        message, now = None, 0.0
        if not self._within and (self.cycle is None or self.cycle.response_complete):
            shortcut = self._shortcut
            now = self._begun = self.loop.time()
            end = data.find(b"\r\n\r\n") + 4
            message = (shortcut.messages.get(data[:end]) if now < shortcut.fresh_until else None) or shortcut.message(data, end, now)
        served = None if message is None else self._shortcut.at_hand(message.model, message.version)
        if message is None or served is None:
            super().data_received(data)
        elif self.flow.write_paused:
            self._hold(data)
        else:
            if self.timeout_keep_alive_task is not None:
                self._unset_keepalive_if_required()
            self._message = message
            if len(data) != message.end:
                self._begin(message, served, data)
                return
            try:  # as in _ask, without a call: this is what nearly all requests are
                self._asked = served.ask(self.loop, now, self, data, begin=message.begin, json_bytes=message.json_bytes)
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

    def _begin(self, message: Message, served: Served, data: bytes) -> None:
        """Ask with the first message of ``data``, or wait for the rest of it."""
        if len(data) > message.end:
            self._hold(data[message.end :])
            self._ask(served, message, data[: message.end], message.begin)
        else:
            self._served = served
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
            if message is None or not message.plain or json_bytes is not None or self._closing or log.isEnabledFor(logging.DEBUG):
                self._answer_in_full(body, json_bytes)
            else:
                if shortcut.headers is not state.default_headers:
                    shortcut.renew(state.default_headers)
                self._message = self._asked = None  # as in _send, without a call
                state.total_requests += 1
                shortcut.answers[_OK] += 1
                self.transport.write(shortcut.answer % (len(body), next(shortcut.numbers), body))
                self._rest()
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
            self._log(head, own.decode(), status)
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
            self._idle_since = self.loop.time()
            if self._idle_alarm is None:
                self._idle_alarm = self.loop.call_later(self.timeout_keep_alive, self._ring)

    def _log(self, head: Head, identity: str, status: int) -> None:
        """Write the one line of a request, in a context of its own: the loop's may be another request's."""

        def line() -> None:
            request_id.set(identity)
            trace_id.set(trace_of(head.headers))
            log.debug("%s %d after %.1f ms", head.path, status, 1e3 * (self.loop.time() - self._begun))

        Context().run(line)

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
