"""Whatever a client sends, it gets the same bytes from the short cut as from uvicorn's own protocol, but for date and id."""

import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.settings import Settings
from tests.app.api.test_wire import BODY, Client, Listen, fill

BINARY = json.dumps({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]}).encode()
BODIES = [
    BODY,
    BODY.replace(b"1, 2, 3", b"0.5, -1e-3, 7"),
    b'{"id": "one", ' + BODY[1:],
    BODY[:-1] + b', "id": "two"}',
    BODY[:-1] + b', "id": "\\u00e4"}',
    BODY[:-1] + b', "\\u0069d": "escaped"}',
    b'{"id": "first", ' + BODY[1:-1] + b', "id": "second"}',
    BODY.replace(b"1, 2, 3", b"NaN, 2, 3"),
    BODY.replace(b"1, 2, 3", b"1e400, 2, 3"),
    BODY.replace(b"1, 2, 3", b"1e300, 2, 3"),
    BODY.replace(b"1, 2, 3", b"1, 2"),
    BODY.replace(b"1, 2, 3", b"1, 2, 3, 4"),
    BODY.replace(b"1, 2, 3", b"1, 2, [3]"),
    BODY.replace(b"1, 2, 3", b'1, 2, "3"'),
    BODY.replace(b"1, 2, 3", b""),
    BODY.replace(b"[1, 2, 3]", b"[" * 2000 + b"]" * 2000),
    BODY.replace(b"[1, 3]", b"[3, 1]"),
    BODY.replace(b"[1, 3]", b"[3, 3]").replace(b"[1, 2, 3]", b"[[1, 2, 3], [4, 5, 6], [7, 8, 9]]"),
    BODY.replace(b'"FP32"', b'"FP64"'),
    BODY[:-1],
    BODY + b" ",
    BODY + b"]",
    b"\xef\xbb\xbf" + BODY,
    b"[]",
    b"",
    b"\xff",
    BINARY + bytes(12),
    BINARY + b"\x00\x00\xc0\x7f" * 3,
    BINARY + bytes(11),
]
EXTRA = [
    b"",
    b"Accept: */*\r\nUser-Agent: somebody\r\n",
    b"inference-header-content-length: %d\r\n" % len(BINARY),
    b"Inference-Header-Content-Length: 0\r\n",
    b"Inference-Header-Content-Length: -1\r\n",
    b"Inference-Header-Content-Length: 99999\r\n",
    b"Accept-Encoding: gzip, deflate\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: br\r\n",
    b"Connection: keep-alive\r\n",
    b"X: %s\r\n" % (b"x" * 5000),
    b"Expect: something\r\n",
    b"X-Request-Id: mine\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Content-Length : 3\r\n",
    b"X: a\x00b\r\n",
    b" folded: x\r\n",
    b"Upgrade: websocket\r\n",
    b"no colon\r\n",
    b"X: only a line feed\n",
]
LINES = [b"POST /v2/models/affine/infer HTTP/1.1"] * 6
LINES += [
    b"POST /v2/models/affine/versions/1/infer HTTP/1.1",
    b"POST /v2/models/affine/versions/9/infer HTTP/1.1",
    b"POST /v2/models/other/infer HTTP/1.1",
    b"POST /v2/models/aff%69ne/infer HTTP/1.1",
    b"POST /v2/models/affine/infer?x=1 HTTP/1.1",
    b"POST /v2/models/affine/infer/ HTTP/1.1",
    b"POST /v2/models/../models/affine/infer HTTP/1.1",
    b"POST /v2/models/affine/infer HTTP/1.0",
    b"POST  /v2/models/affine/infer HTTP/1.1",
    b"post /v2/models/affine/infer HTTP/1.1",
    b"GET /v2/models/affine/infer HTTP/1.1",
    b"POST http://127.0.0.1/v2/models/affine/infer HTTP/1.1",
]
LENGTHS = [
    "Content-Length: %d",
    "content-length:%d",
    "CONTENT-LENGTH:  %d",
    "Content-Length: 0%d",
    "Content-Length: +%d",
    "Content-Length: %d ",
]
UNREADABLE = b"Invalid HTTP request received."
ORDINARY = "Content-Length: %d"


def weighted(common: Any, rare: list[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(common), st.sampled_from(rare))


MESSAGES = st.builds(
    lambda line, length, extra, body: line + b"\r\nHost: 127.0.0.1\r\n" + extra + (length % len(body)).encode() + b"\r\n\r\n" + body,
    st.sampled_from(LINES),
    weighted(ORDINARY, LENGTHS),
    weighted(b"", EXTRA),
    weighted(BODY, BODIES),
)


@pytest.fixture(scope="module")
def urls(models: Any, listen: Listen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        found = []
        for name, options in (("own", {}), ("ordinary", {"http": "httptools"})):
            folder = fill(tmp_path_factory.mktemp(name), models)
            found.append(
                stack.enter_context(listen(Settings(workspace=folder, worker="none", request_timeout=0.3), log_level="error", **options))
            )
        yield found[0], found[1]


def talk(url: str, messages: list[bytes], sizes: list[int]) -> list[Any]:
    """Send one message after the other, in pieces of these sizes, each after the answer to the one before it."""
    told: list[Any] = []
    with contextlib.closing(Client(url)) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for message in messages:
            try:
                at = 0
                for size in sizes:
                    client.send(message[at : at + size])
                    at += size
                client.send(message[at:])
                status, headers, body = client.answer()
            except (AssertionError, ConnectionError):
                status, headers, body = 0, {}, UNREADABLE
            if body == UNREADABLE:  # sent, unless what was still coming made the system reset the connection first
                told.append("closed")
                break
            for name in ("date", "x-request-id"):
                if headers.get(name) != "mine":
                    headers.pop(name, None)
            told.append((status, headers, body))
    return told


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.lists(st.integers(1, 300), max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_short_cut_answers_like_the_ordinary_way(urls: tuple[str, str], messages: list[bytes], sizes: list[int]) -> None:
    own, ordinary = urls
    assert talk(own, messages, sizes) == talk(ordinary, messages, sizes)


def test_every_body_and_every_header_is_answered_like_the_ordinary_way(urls: tuple[str, str]) -> None:
    """Each alone, also behind a good request whose form and head are known by then."""
    own, ordinary = urls
    good = LINES[0] + b"\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    for extra, body in [(b"", body) for body in BODIES] + [(extra, BODY) for extra in EXTRA]:
        if b"chunked" in extra or b"99999" in extra:
            continue  # both wait for what does not come: covered where time is no matter
        message = LINES[0] + b"\r\nHost: 127.0.0.1\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body
        assert talk(own, [good, message, good], []) == talk(ordinary, [good, message, good], []), (extra[:80], body[:200])
