"""Reading a request's body with limits that hold for what it inflates to, and compressing an answer."""

import asyncio
import gzip
import zlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from app.errors import InvalidRequestError, TooLargeError, UnsupportedMediaError

HEADER_LENGTH: Final = b"inference-header-content-length"

# zlib's word for the container: gzip is RFC 1952, and what HTTP calls deflate is RFC 1950.
ENCODINGS: Final[dict[bytes, int]] = {b"deflate": 15, b"gzip": 31}
COMPRESS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"gzip": lambda body: gzip.compress(body, compresslevel=1, mtime=0),
    b"deflate": lambda body: zlib.compress(body, level=1),
}

_WORTH_COMPRESSING: Final = 1024
_WORTH_A_THREAD: Final = 8192
_DISCARDED: Final = 4  # a body so many times over its limit is read to its end, so that the connection can be kept


class Framing(NamedTuple):
    """What the headers say about the body and the answer. The content type says nothing: stock clients send any or none.

    ``size`` is what they say of the size of the body; 0 where it is told piece by piece.
    """

    json_bytes: int | None = None
    encoding: bytes = b"identity"
    accepted: bytes = b""
    size: int = 0


def framing(headers: Iterable[tuple[bytes, bytes]]) -> Framing:
    """Return what lower-case ``headers`` say.

    Raises:
        InvalidRequestError: the length of the JSON part is no plain decimal, or is given twice.
        UnsupportedMediaError: the body is encoded in a way that is not understood.
    """
    json_bytes: int | None = None
    encoding, accepted, size = b"identity", b"", 0
    for name, value in headers:
        if name == HEADER_LENGTH:
            if json_bytes is not None or not value.isdigit() or len(value) > 12:
                raise InvalidRequestError("expected Inference-Header-Content-Length to be one plain decimal number of bytes")
            json_bytes = int(value)
        elif name == b"content-encoding":
            encoding = value.strip().lower() or b"identity"
        elif name == b"accept-encoding":
            accepted = value
        elif name == b"content-length":
            size = int(value) if value.isdigit() else 0  # the parser of HTTP has refused what is none
    if encoding != b"identity" and encoding not in ENCODINGS:
        raise UnsupportedMediaError(f"expected Content-Encoding to be gzip or deflate, got {encoding.decode('latin-1')[:64]!r}")
    return Framing(json_bytes, encoding, accepted, size)


async def read(receive: Receive, how: Framing, *, limit: int, seconds: float) -> bytes:
    """Return the body, inflated.

    Args:
        receive: of ASGI.
        how: its framing.
        limit: most bytes, before and after inflating.
        seconds: how long the client may take to send it.

    Raises:
        TooLargeError: it is larger than ``limit``.
        InvalidRequestError: it does not inflate.
        HTTPException: it did not arrive in time, or is so large that the connection is given up.
        ClientDisconnect: the client went away.
    """
    if how.size > _DISCARDED * limit:  # not even a "100 Continue"
        raise HTTPException(413, str(_too_large(limit)), {"Connection": "close"})
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
    else:
        try:
            async with asyncio.timeout(seconds):
                body = await _collect(receive, message, limit)
        except TimeoutError:
            raise HTTPException(408, f"The body did not arrive within {seconds:g} s.", {"Connection": "close"}) from None
    if how.encoding == b"identity":
        return body
    if len(body) < _WORTH_A_THREAD:
        return inflate(body, how.encoding, limit)
    return await asyncio.to_thread(inflate, body, how.encoding, limit)


async def _collect(receive: Receive, message: Message, limit: int) -> bytes:
    parts = bytearray()
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts += part
        elif size > _DISCARDED * limit:
            raise HTTPException(413, str(_too_large(limit)), {"Connection": "close"})
        else:
            parts.clear()
        if not message.get("more_body", False):
            break
        message = await receive()
    if size > limit:
        raise _too_large(limit)
    return bytes(parts)


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Return ``body`` inflated, of which never more than ``limit`` bytes are held.

    Raises:
        TooLargeError: it inflates to more.
        InvalidRequestError: it is not ``encoding``, is cut short, or something follows it.
    """
    stream = zlib.decompressobj(ENCODINGS[encoding])
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequestError(f"the body is not {encoding.decode()}, as its Content-Encoding says") from None
    if len(content) > limit:
        raise _too_large(limit)
    if not stream.eof:
        raise InvalidRequestError(f"the {encoding.decode()} body is cut short")
    if stream.unused_data:
        raise InvalidRequestError(f"something follows the {encoding.decode()} body")
    return content


async def compress(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """Return the body as the client accepts it, and its encoding where it has one; small ones stay as they are."""
    if len(body) < _WORTH_COMPRESSING:
        return body, None
    offers = {
        name.strip().lower(): weight.replace(b" ", b"") for name, _, weight in (part.partition(b";") for part in accepted.split(b","))
    }
    for name, shrink in COMPRESS.items():
        if name in offers and offers[name] not in {b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"}:
            return (shrink(body) if len(body) < _WORTH_A_THREAD else await asyncio.to_thread(shrink, body)), name
    return body, None


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {limit} bytes, which is the limit.")
