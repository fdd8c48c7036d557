"""The short cut for inference: what a client sees of a connection is what uvicorn's own protocol shows."""

import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from app.db import connect
from app.observability import FORMATS
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.security import create_key
from app.settings import Settings
from export.bundle import MODEL

Listen = Callable[..., AbstractContextManager[str]]
BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
INFER = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def request(body: bytes = BODY, *lines: bytes) -> bytes:
    return INFER + b"".join(line + b"\r\n" for line in lines) + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Client:
    def __init__(self, url: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20)
        self.held = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self.held:
            self._more()
        head, _, rest = self.held.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        self.held = rest
        while len(self.held) < length:
            self._more()
        body, self.held = self.held[:length], self.held[length:]
        return int(status.split()[1]), headers, body

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.send(data)
        return self.answer()

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        self.held += data


def fill(folder: Path, models: Any) -> Path:
    database = connect(folder)
    registry = Registry(database, Blobs(folder / "blobs"))
    artifact = models.affine()
    registry.publish("affine", artifact.manifest, {MODEL: artifact.model})
    registry.promote("affine", "1", why="first", who="test")
    database.dispose()
    return folder


@pytest.fixture
def workspace(tmp_path: Path, models: Any) -> Path:
    return fill(tmp_path, models)


@pytest.fixture(scope="module")
def url(models: Any, listen: Listen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = fill(tmp_path_factory.mktemp("wire"), models)
    with listen(Settings(workspace=folder, worker="none", request_timeout=0.5)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with contextlib.closing(Client(url)) as one:
        yield one


def data(answer: tuple[int, dict[str, str], bytes]) -> Any:
    assert answer[0] == 200, answer
    return json.loads(answer[2])["outputs"][0]["data"]


def test_both_ways_give_the_same_answer_under_the_same_headers(client: Client) -> None:
    quick = client.ask(request())
    ordinary = client.ask(request(BODY, b"Expect: nothing", b"Connection: keep-alive").replace(b"/infer", b"/infer?x"))
    assert quick[2] == ordinary[2]
    assert set(quick[1]) == set(ordinary[1])
    for headers in (quick[1], ordinary[1]):
        del headers["date"], headers["x-request-id"]
    assert quick[1] == ordinary[1]


def test_an_id_is_echoed_or_made_and_none_comes_twice(client: Client) -> None:
    assert client.ask(request(BODY, b"X-Request-Id: mine"))[1]["x-request-id"] == "mine"
    made = {client.ask(request(BODY, b"X-Request-Id: not fit"))[1]["x-request-id"] for _ in range(3)}
    made |= {client.ask(request())[1]["x-request-id"] for _ in range(3)}
    assert len(made) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


def test_pipelined_requests_are_answered_in_their_order_whichever_way_they_go(client: Client) -> None:
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    bodies = [BODY.replace(b"1, 2, 3", b"%d, 0, 0" % number) for number in range(20)]
    client.send(b"".join(request(body) + (health if number % 3 == 0 else b"") for number, body in enumerate(bodies)))
    for number in range(20):
        assert data(client.answer())[0] == number
        if number % 3 == 0:
            assert json.loads(client.answer()[2]) == {"live": True}


KINDS = ["plain", "plain", "id", "rows", "bad", "slow", "gone"]


def distinct(kind: str, own: int) -> bytes:
    body = BODY.replace(b"1, 2, 3", b"%d, 0, 0" % own)
    if kind == "id":
        body = b'{"id": "%d", ' % own + body[1:]
    elif kind == "rows":
        body = body.replace(b"[1, 3]", b"[2, 3]").replace(b", 0, 0", b", 0, 0, 0, 0, %d" % own)
    elif kind == "bad":
        body = body.replace(b", 0, 0", b", 0")
    return request(body)


def expected(kind: str, own: int) -> Any:
    numbers = [own, 0, 0, 0, 0, own] if kind == "rows" else [own, 0, 0]
    return (400, None, None) if kind == "bad" else (200, numbers, str(own) if kind == "id" else None)


def found(answer: tuple[int, dict[str, str], bytes]) -> Any:
    document = json.loads(answer[2])
    return answer[0], document.get("outputs", [{}])[0].get("data"), document.get("id")


def test_no_answer_goes_to_a_wrong_caller_though_some_are_refused_and_some_go_away(url: str) -> None:
    random = Random(0)
    clients = [Client(url) for _ in range(24)]
    for number in range(15):
        asked: dict[int, Any] = {}
        for at, client in enumerate(clients):
            kind, own = random.choice(KINDS), 1000 * number + at
            data = distinct(kind, own)
            if kind == "slow":
                client.send(data[:-30])
                time.sleep(0.001)
                data = data[-30:]
            client.send(data)
            if kind == "gone":
                client.close()
                clients[at] = Client(url)
            else:
                asked[at] = expected(kind, own)
        assert {at: found(clients[at].answer()) for at in asked} == asked
    for client in clients:
        client.close()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_in_pieces_is_one_request(client: Client, size: int) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    text = request() * 2
    for at in range(0, len(text), size):
        client.send(text[at : at + size])
        time.sleep(0.0005)
    assert data(client.answer()) == data(client.answer()) == [1, 2, 3]


def test_a_large_body_of_many_reads_is_one_body(client: Client) -> None:
    rows = 16000
    body = json.dumps({"inputs": [{"name": "input", "shape": [rows, 3], "datatype": "FP32", "data": [0.5] * 3 * rows}]}).encode()
    for _ in range(2):
        assert len(data(client.ask(request(body)))) == 3 * rows


def test_a_body_that_does_not_arrive_is_408_and_the_end(client: Client) -> None:
    client.send(request()[:-1])
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (408, "close")
    assert client.socket.recv(1) == b""


def test_expect_chunks_and_close_are_as_http_has_them(client: Client) -> None:
    client.send(request(BODY, b"Expect: 100-continue")[: -len(BODY)])
    assert client.answer()[0] == 100
    assert data(client.ask(BODY)) == [1, 2, 3]
    chunked = INFER + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert data(client.ask(chunked)) == [1, 2, 3]
    assert data(client.ask(request())) == [1, 2, 3]
    assert client.ask(request(BODY, b"Connection: close"))[1]["connection"] == "close"
    assert client.socket.recv(1) == b""


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 3",),
        (b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked"),
        (b"Content-Length : 5",),
        (b"X: a\x00b",),
        (b" folded: x",),
    ],
)
def test_a_head_that_two_readers_could_read_differently_is_refused_also_after_a_good_one(client: Client, lines: tuple[bytes, ...]) -> None:
    assert client.ask(request())[0] == 200
    client.send(INFER + b"Content-Length: %d\r\n" % len(BODY) + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + BODY)
    assert client.answer()[0] == 400


def test_a_bad_request_on_the_short_cut_is_a_sentence_and_the_connection_stays(client: Client) -> None:
    status, headers, body = client.ask(request(b"{"))
    assert (status, headers["content-type"], list(json.loads(body))) == (400, "application/json", ["error"])
    assert data(client.ask(request())) == [1, 2, 3]


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(workspace: Path, listen: Listen) -> None:
    with listen(Settings(workspace=workspace, worker="none"), timeout_keep_alive=1) as url, contextlib.closing(Client(url)) as client:
        for _ in range(8):  # longer than the limit altogether
            assert data(client.ask(request())) == [1, 2, 3]
            time.sleep(0.2)
        assert client.socket.recv(1) == b""


def test_a_key_that_is_taken_back_is_refused_and_a_new_one_taken(workspace: Path, listen: Listen) -> None:
    path = workspace / "keys.json"
    _, secret = create_key(path, ["infer"])
    with listen(Settings(workspace=workspace, worker="none", api_keys_file=path)) as url, contextlib.closing(Client(url)) as client:
        bearer = b"Authorization: Bearer %s" % secret.encode()
        assert client.ask(request())[0] == 401
        assert client.ask(request(BODY, bearer))[0] == 200
        path.unlink()
        _, other = create_key(path, ["infer"])
        time.sleep(0.1)
        assert client.ask(request(BODY, bearer))[0] == 401
        assert client.ask(request(BODY, b"Authorization: Bearer %s" % other.encode()))[0] == 200


def test_what_is_answered_is_counted(workspace: Path, listen: Listen) -> None:
    with listen(Settings(workspace=workspace, worker="none")) as url, contextlib.closing(Client(url)) as client:
        for body in (BODY, BODY, b"{"):
            client.ask(request(body))
        page = client.ask(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")[2].decode()
    assert 'specnorm_http_requests_total{method="POST",status="200"} 2' in page
    assert 'specnorm_http_requests_total{method="POST",status="400"} 1' in page
    assert 'nv_inference_request_success{model="affine",version="1"} 2' in page
    assert 'nv_inference_request_failure{model="affine",version="1"} 1' in page


@pytest.mark.parametrize("path", [b"/infer", b"/infer?ordinary"])
def test_a_request_writes_one_line_at_debug_with_its_id_and_its_trace(
    client: Client, caplog: pytest.LogCaptureFixture, path: bytes
) -> None:
    lines: list[dict[str, str]] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(FORMATS["json"]().format(record)))

    sink = Sink()
    logging.getLogger("app.api").addHandler(sink)
    trace = b"0af7651916cd43dd8448eb211c80319c"
    with caplog.at_level(logging.DEBUG, "app.api"):
        for parent in (b"00-%s-b7ad6b7169203331-01" % trace, b"00-%s-b7ad6b7169203331-01" % (b"0" * 32)):
            client.ask(request(BODY, b"X-Request-Id: mine", b"Traceparent: " + parent).replace(b"/infer", path, 1))
    logging.getLogger("app.api").removeHandler(sink)
    assert [(line["request_id"], line.get("trace_id")) for line in lines] == [("mine", trace.decode()), ("mine", None)]
    assert all("/v2/models/affine/infer 200 after" in line["message"] for line in lines)
