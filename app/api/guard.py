"""What every request passes first, whichever router answers it: id, keys, headers, and a net for mistakes."""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import errors
from app.errors import TooLargeError
from app.observability import Family, Sample, new_request_id, request_id, trace_id, trace_of
from app.security import Access, authorise
from app.settings import Settings

# The console loads nothing from elsewhere and runs no inline script; the API pages draw their icons as data: images.
PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
NOSNIFF = (b"x-content-type-options", b"nosniff")

log = logging.getLogger("app.api")


class Guard:
    """ASGI application in front of all others.

    An unforeseen exception becomes a 500 with a body, and goes no further: were it re-raised, the server would drop
    the connection and the pooled client's next request with it.
    """

    def __init__(self, inner: ASGIApp, access: Access, settings: Settings) -> None:
        self._inner = inner
        self._access = access
        self._settings = settings
        self.answers: Counter[tuple[str, int]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path: str = scope["path"]
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        token = request_id.set(new_request_id(given.decode("latin-1")))
        trace = trace_id.set(trace_of(scope["headers"]) or trace_id.get())
        answer = _Answer(send, path, request_id.get(), time.monotonic())
        try:
            raw_path = scope.get("raw_path")
            principal = authorise(
                self._access, scope["method"], path, scope["headers"], raw_path=raw_path.decode("latin-1") if raw_path else None
            )
            scope.setdefault("state", {})["principal"] = principal
            await self._inner(scope, self._bounded(scope, receive), answer)
        except ClientDisconnect:
            log.debug("%s %s: the client went away", scope["method"], path)
        except Exception as error:
            if not answer.started:
                await errors.response_of(error, path)(scope, receive, answer)
            elif not answer.finished:
                raise  # half an answer is out: only a broken connection can say so
        finally:
            self.count(scope["method"], answer.status or 499)
            request_id.reset(token)
            trace_id.reset(trace)

    def count(self, method: str, status: int) -> None:
        """Take note of an answer; 499 is none, since the client went away."""
        self.answers[method if method in _METHODS else "other", status] += 1

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return a ``receive`` that takes no more than the route's limit; the inference protocol has its own."""
        path: str = scope["path"]
        if path.startswith("/v2") or scope["method"] in {"GET", "HEAD"}:
            return receive
        limit = self._settings.max_upload_bytes + MULTIPART_BYTES if path in UPLOADS else self._settings.max_json_bytes
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(declared) > limit:
            raise TooLargeError(f"The body has {int(declared)} bytes; at most {limit} are taken here.")
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                # FastAPI lets only its own exception through while it reads a body.
                raise HTTPException(413, f"The body is larger than the {limit} bytes that are taken here.")
            return message

        return bounded

    async def families(self) -> AsyncIterator[Family]:
        """Tell how many requests were answered, by method and status."""
        samples = tuple(
            Sample({"method": method, "status": str(status)}, count) for (method, status), count in sorted(self.answers.items())
        )
        yield Family("specnorm_http_requests_total", "counter", "Requests answered.", samples)


UPLOADS = frozenset({"/v1/files", "/admin/models"})
MULTIPART_BYTES = 2**20  # of boundaries, headers and fields around the file

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Answer:
    """The `send` of one request: adds the headers that all answers have, and knows how far it went."""

    def __init__(self, send: Send, path: str, identity: str, begun: float) -> None:
        self._send = send
        self._headers = [(b"x-request-id", identity.encode()), NOSNIFF]
        if not path.startswith("/v2"):
            self._headers.extend(PAGE_HEADERS)
        self._begun = begun
        self._path = path
        self.status: int | None = None
        self.finished = False

    @property
    def started(self) -> bool:
        return self.status is not None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [*message.get("headers", ())]
            named = {name for name, _ in own}
            message = {**message, "headers": [*own, *(header for header in self._headers if header[0] not in named)]}
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s %d after %.1f ms", self._path, self.status, 1e3 * (time.monotonic() - self._begun))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.finished = True
