"""Inference without ASGI: the requests that need nothing but the model, from the bytes of a message to those of its answer.

A request takes the short cut where its head is a plain one: POST to the infer route of a loaded version, HTTP/1.1 kept
alive, a Content-Length within the limit, no transfer or content encoding, no ``Expect``, nothing to decode in its path.
Any other goes the ordinary way, which gives the same answer.
"""

import logging
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.api.body import HEADER_LENGTH, Framing, framing
from app.api.errors import response_of
from app.api.guard import NOSNIFF
from app.errors import SpecnormError
from app.inference.catalog import Catalog
from app.inference.served import Served
from app.observability import new_request_id, request_id, trace_id, trace_of
from app.security import Access, authorise
from app.settings import Settings

log = logging.getLogger("app.api")

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Final = b"content-type: application/json\r\n"
NOSNIFF_LINE: Final = b"%s: %s\r\n\r\n" % NOSNIFF
LAST_LINES: Final = b"\r\n" + NOSNIFF_LINE

_BEGINS: Final = b"POST /v2/models/"
_PATH: Final = re.compile(rb"/v2/models/([A-Za-z0-9._-]+)(?:/versions/([0-9]+))?/infer")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: ?([0-9]{1,10})\r\n", re.IGNORECASE)
_NOT_HERE: Final = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})
_UNIQUE: Final = frozenset({b"x-request-id", b"traceparent"})
_LARGEST_HEAD: Final = 4096
_MOST_HEADS: Final = 1024
_MOST_MESSAGES: Final = 4096
_MOST_STARTS: Final = 4096
_JUDGED_AFRESH: Final = 0.05  # seconds after which a change of the keys takes effect here


class Head(NamedTuple):
    """What a message says before its body, but for the length of that."""

    path: str
    model: str
    version: str | None
    headers: Headers
    how: Framing
    request_id: bytes
    limit: int


class Message(NamedTuple):
    """A head, where the body begins behind it and ends, and of the head what each request needs.

    ``plain``: neither an id of the caller's nor compression is asked for. ``served``: the version that answers it.
    """

    head: Head
    begin: int
    end: int
    json_bytes: int | None
    plain: bool
    served: Served


class Shortcut:
    """What the connections of one service share.

    Attributes:
        debug: whether every request is logged.
        seconds: how long a body may take.
        headers: those of every answer, see :meth:`renew`.
        lines: the same as text.
        identities: ids for the requests that bring none.
        messages: what is known of messages, by their whole heads; until the loop's time is ``fresh_until``.
        starts: of plain answers, by the length of their body, up to the id.

    Args:
        catalog: what is served.
        settings: limits.
        access: what requests are judged by.
        answers: how many there were, by method and status.
    """

    def __init__(self, catalog: Catalog, settings: Settings, access: Access | None, answers: Counter[tuple[str, int]]) -> None:
        self._catalog = catalog
        catalog.on_swap = self._forget
        self._settings = settings
        self._access = access
        self.answers = answers
        self._heads: dict[bytes, Head] = {}
        self.messages: dict[bytes, Message] = {}
        self.headers: list[tuple[bytes, bytes]] = []
        self.lines = b""
        self.starts: dict[int, bytes] = {}
        self.identities = _identities(uuid.uuid4().hex[:16].encode())
        self.debug = False
        self._keys: object = None
        self.fresh_until = 0.0
        self.seconds = settings.request_timeout

    def message(self, data: bytes, end: int, now: float) -> Message | None:
        """Return the message that ``data`` begins with, None where it must go the ordinary way.

        Args:
            data: what the connection has to read; the beginning of a message.
            end: where its head ends.
            now: on the loop's clock.
        """
        if now >= self.fresh_until:
            self._refresh(now)
        return self.messages.get(data[:end]) or self._read(data, end)

    def _read(self, data: bytes, end: int) -> Message | None:
        """Return the message whose head ends at ``end``, if it is a plain one."""
        length = _LENGTH.search(data, 0, end - 2) if data.startswith(_BEGINS) and 4 <= end <= _LARGEST_HEAD else None
        if length is None:
            return None
        begin, stop = length.span(1)
        # A parsed head may stand for any that differs in the digits of its one length alone.
        key = data[:begin] + data[stop:end]
        head = self._heads.get(key) or self._parse(key, data[:end])
        size = int(length.group(1))
        if head is None or size > head.limit:
            return None
        served = self._catalog.at_hand(head.model, head.version)
        if served is None:
            return None
        message = Message(head, end, end + size, head.how.json_bytes, not (head.how.accepted or head.request_id), served)
        if key in self._heads and self._catalog.is_live(served):
            if len(self.messages) >= _MOST_MESSAGES:
                self.messages.clear()
            self.messages[data[:end]] = message
        return message

    def renew(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Take in the headers that uvicorn gives all answers; it makes a new list every second."""
        self.headers = headers
        self.lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.starts.clear()

    def start(self, size: int) -> bytes:
        """Return what a plain answer with a body of ``size`` bytes begins with, up to its id."""
        text = b"%s%s%scontent-length: %d\r\nx-request-id: " % (STATUS_LINE[200], self.lines, JSON, size)
        if len(self.starts) < _MOST_STARTS:
            self.starts[size] = text
        return text

    def identity(self, head: Head) -> bytes:
        """Return the id of a request: the caller's where it is fit to be echoed."""
        given = head.request_id and new_request_id(head.request_id.decode("latin-1")).encode()
        return given or next(self.identities)

    def refused(self, error: Exception, head: Head) -> tuple[int, Sequence[tuple[bytes, bytes]], bytes]:
        """Return status, headers and body of the answer to a request that ended in ``error``."""
        response = response_of(error, head.path)
        return response.status_code, response.raw_headers, bytes(response.body)

    def _refresh(self, now: float) -> None:
        """Forget what was judged by other keys than those of now."""
        self.fresh_until = now + _JUDGED_AFRESH
        self.debug = log.isEnabledFor(logging.DEBUG)
        keys = self._access.keys.current() if self._access and self._access.keys else None
        if keys is not self._keys:
            self._heads.clear()
            self.messages.clear()
            self._keys = keys

    def _forget(self) -> None:
        """Forget which versions answer what."""
        self.messages.clear()

    def _parse(self, key: bytes, text: bytes) -> Head | None:
        """Return a head that is allowed here, and keep it where it is likely to come again."""
        raw = _Raw.of(text)
        match = _PATH.fullmatch(raw.url) if raw else None
        if raw is None or match is None:
            return None
        path, model, version = raw.url.decode(), match[1].decode(), match[2].decode() if match[2] else None
        headers = tuple(raw.headers)
        try:
            if self._access is not None:
                authorise(self._access, "POST", path, headers, raw_path=path)
            how = framing(headers)
        except SpecnormError:
            return None
        limit = self._settings.max_json_bytes if how.json_bytes is None else self._settings.max_binary_bytes
        if how.json_bytes is not None and how.json_bytes > self._settings.max_json_bytes:
            return None
        given = next((value for name, value in headers if name == b"x-request-id"), b"")
        head = Head(path, model, version, headers, how, given, limit)
        if _UNIQUE.isdisjoint(name for name, _ in headers):
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[key] = head
        return head


class _Raw:
    """Callbacks of httptools' parser for one head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    @classmethod
    def of(cls, text: bytes) -> "_Raw | None":
        """Return what ``text`` says where it is exactly one head, and one that the short cut is for."""
        raw = cls()
        parser = httptools.HttpRequestParser(raw)
        try:
            parser.feed_data(text[:-1])
            early = raw.complete
            parser.feed_data(text[-1:])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        names = [name for name, _ in raw.headers]
        plain = not early and raw.complete and parser.get_method() == b"POST" and parser.get_http_version() == "1.1"
        if not plain or not parser.should_keep_alive() or names.count(b"content-length") != 1 or not _NOT_HERE.isdisjoint(names):
            return None
        return raw

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _identities(series: bytes) -> Iterator[bytes]:
    """Give ids of 32 digits that begin with ``series``, which is this service's own, and go on with a number.

    Most of a number is that of the one before: only its end is put behind it, from a table.
    """
    ends = [b"%02x" % end for end in range(256)]
    for block in count():
        begin = b"%s%014x" % (series, block)
        for end in ends:
            yield begin + end


def lines(json_bytes: int | None) -> bytes:
    """Return the lines of an answer's head that its framing says."""
    if json_bytes is None:
        return JSON
    return b"content-type: application/octet-stream\r\n%s: %d\r\n" % (HEADER_LENGTH, json_bytes)


def tell(head: Head, identity: str, status: int, seconds: float) -> None:
    """Write the one line of a request."""
    request_id.set(identity)
    trace_id.set(trace_of(head.headers))
    log.debug("%s %d after %.1f ms", head.path, status, 1e3 * seconds)
