import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import uvicorn
from tritonclient.utils import InferenceServerException

from app.api.shortcut import Shortcut
from app.api.v2 import InferApp, openapi
from app.api.wire import protocol
from app.errors import ForbiddenError, UnauthenticatedError
from app.inference.catalog import Catalog
from app.settings import Settings
from export.bundle import InputDomain

JSON_LIMIT = 200_000
BINARY_LIMIT = 400_000


class Running:
    """The application behind a real server on a loopback port."""

    def __init__(self, catalog: Catalog, app: InferApp, http: Any) -> None:
        self._catalog = catalog
        self._app = app
        self._server = uvicorn.Server(uvicorn.Config(self._serve, interface="asgi3", http=http, port=0, log_level="error", lifespan="on"))
        self._thread = threading.Thread(target=self._server.run)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        await self._catalog.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._catalog.close()
        await send({"type": "lifespan.shutdown.complete"})

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._server.should_exit = True
        self._thread.join()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send one request on the one connection, which has to survive it."""
        if self.connection.sock is None:
            self.connection.connect()
        kept = self.connection.sock
        self.connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = self.connection.getresponse()
        content = answer.read()
        assert self.connection.sock is kept, "the connection was closed"
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, headers, content = self.ask(method, path, None if body is None else json.dumps(body).encode())
        assert headers["content-type"] == "application/json"
        return status, json.loads(content)


def start(folder: Any, settings: Settings, *, ordinary: bool = False, **hooks: Any) -> Running:
    catalog = Catalog(folder, settings)
    http = "httptools" if hooks or ordinary else protocol(Shortcut(catalog, settings, None, Counter()))
    return Running(catalog, InferApp(catalog, settings, version="0.1", **hooks), http)


def limits(**values: Any) -> dict[str, Any]:
    return {"max_json_bytes": JSON_LIMIT, "max_binary_bytes": BINARY_LIMIT, **values}


def fill(folder: Any, models: Any) -> None:
    """Versions 1 and 2 of `m`, which multiply by their number; 2 is live."""
    for version in (1, 2):
        domain = InputDomain(minimum=-100.0, maximum=100.0, units="pixel")
        artifact = models.affine(float(version), domain=domain, labels=("x", "y", "z"))
        folder.add("m", str(version), artifact, live=version == 2)


@pytest.fixture
def serve(folder: Any, settings_with: Callable[..., Settings]) -> Iterator[Callable[..., Running]]:
    """Starts a server of its own for a test that changes or measures it."""
    with contextlib.ExitStack() as stack:
        yield lambda hooks=None, **values: stack.enter_context(start(folder, settings_with(**limits(**values)), **(hooks or {})))


@pytest.fixture(scope="module", params=["short cut", "ordinary"])
def server(
    models: Any,
    folder_at: Any,
    settings_with: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Running]:
    folder = folder_at(tmp_path_factory.mktemp("served") / "bundles")
    fill(folder, models)
    with start(folder, settings_with(**limits()), ordinary=request.param == "ordinary") as running:
        yield running


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3], **changes}


GOOD = {"inputs": [entry()]}
INFER = "/v2/models/m/infer"


def test_health_and_metadata_have_the_protocols_keys(server: Running) -> None:
    assert server.json("GET", "/v2/health/live") == (200, {"live": True})
    assert server.ask("HEAD", "/v2/health/live")[::2] == (200, b"")
    assert server.json("GET", "/v2/health/ready") == (200, {"live": True, "ready": True})
    assert server.json("GET", "/v2/models/m/ready") == (200, {"name": "m", "ready": True})
    for path in ("/v2", "/v2/"):
        status, said = server.json("GET", path)
        assert (status, said["name"], said["version"]) == (200, "specnorm", "0.1")
        assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(said["extensions"])
    status, said = server.json("GET", "/v2/models/m")
    assert status == 200
    assert said["versions"] == ["1", "2"]
    assert said["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}]
    assert [output["name"] for output in said["outputs"]] == ["logits", "certified_radius"]
    assert said["properties"]["version"] == "2"
    assert all(isinstance(text, str) for text in said["properties"].values())


def test_an_unversioned_path_is_the_live_version_and_others_answer_under_their_own(server: Running) -> None:
    for path, version, number in ((INFER, "2", 5.0), ("/v2/models/m/versions/1/infer", "1", 2.5)):
        status, answer = server.json("POST", path, {**GOOD, "id": "a"})
        assert (status, answer["model_version"], answer["id"]) == (200, version, "a")
        assert answer["outputs"][0]["data"][1] == number
        assert answer["parameters"]["lipschitz_bound"] == 1.0
        assert len(answer["parameters"]["model_digest"]) == 64


BAD: dict[str, tuple[str, str, bytes | None, dict[str, str], int]] = {
    "unknown route": ("GET", "/v2/nope", None, {}, 404),
    "trailing slash": ("GET", "/v2/models/m/", None, {}, 404),
    "empty name": ("GET", "/v2/models//infer", None, {}, 404),
    "slash in a name": ("GET", "/v2/models/a%2Fb", None, {}, 404),
    "unknown model": ("POST", "/v2/models/%C3%A4%20b/infer", b"{}" * 1000, {}, 404),
    "unknown version": ("POST", "/v2/models/m/versions/9/infer", b"{}", {}, 404),
    "version outside the store": ("POST", "/v2/models/m/versions/..%2F1/infer", b"{}", {}, 404),
    "wrong method": ("GET", INFER, None, {}, 405),
    "delete": ("DELETE", "/v2/models/m", None, {}, 405),
    "not JSON": ("POST", INFER, b"{", {}, 400),
    "empty": ("POST", INFER, b"", {}, 400),
    "header length of letters": ("POST", INFER, b"{}", {"Inference_Header_Content_Length": "x"}, 400),
    "header length negative": ("POST", INFER, b"{}", {"Inference_Header_Content_Length": "-1"}, 400),
    "header length with a sign": ("POST", INFER, b"{}", {"Inference_Header_Content_Length": "+2"}, 400),
    "header length of 40 digits": ("POST", INFER, b"{}", {"Inference_Header_Content_Length": "9" * 40}, 400),
    "header length beyond the body": ("POST", INFER, b"{}", {"Inference_Header_Content_Length": "3"}, 400),
    "JSON part beyond the limit": ("POST", INFER, b"{}", {"Inference_Header_Content_Length": str(JSON_LIMIT + 1)}, 413),
    "unknown encoding": ("POST", INFER, b"{}", {"Content_Encoding": "br"}, 415),
    "two encodings": ("POST", INFER, b"{}", {"Content_Encoding": "gzip, gzip"}, 415),
    "not gzip": ("POST", INFER, b"{}", {"Content_Encoding": "gzip"}, 400),
    "gzip cut short": ("POST", INFER, gzip.compress(json.dumps(GOOD).encode())[:-3], {"Content_Encoding": "gzip"}, 400),
    "something after gzip": (
        "POST",
        INFER,
        gzip.compress(json.dumps({"inputs": [entry()]}).encode()) + b"x",
        {"Content_Encoding": "gzip"},
        400,
    ),
    "gzip bomb": ("POST", INFER, gzip.compress(b" " * 50_000_000, 1), {"Content_Encoding": "gzip"}, 413),
    "too large": ("POST", INFER, b" " * (JSON_LIMIT + 1), {}, 413),
    "far too large for JSON, small for binary": ("POST", INFER, b" " * BINARY_LIMIT, {}, 413),
    "index of the wrong kind": ("POST", "/v2/repository/index", b"[]", {}, 400),
    "ready of the wrong kind": ("POST", "/v2/repository/index", b'{"ready": 1}', {}, 400),
    "load of an unknown model": ("POST", "/v2/repository/models/n/load", b"", {}, 404),
    "load with files": ("POST", "/v2/repository/models/m/load", b'{"parameters": {"file:../../x": "AA=="}}', {}, 400),
    "unload of an unknown model": ("POST", "/v2/repository/models/n/unload", b'{"parameters": {"unload_dependents": false}}', {}, 404),
    "trace": ("GET", "/v2/trace/setting", None, {}, 404),
    "shared memory": ("GET", "/v2/systemsharedmemory/status", None, {}, 404),
    "generate": ("POST", "/v2/models/m/generate", b"{}", {}, 404),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_a_sentence_and_the_connection_stays(server: Running, case: str) -> None:
    method, path, body, headers, expected = BAD[case]
    status, said, content = server.ask(method, path, body, **headers)
    assert status == expected
    assert said["content-type"] == "application/json"
    error = json.loads(content)
    assert list(error) == ["error"]
    assert " " in error["error"]
    assert "/tmp" not in error["error"]
    if status == 405:
        assert said["allow"] in {"GET", "POST"}
    if status == 415:
        assert said["accept-encoding"] == "gzip, deflate"
    assert server.json("POST", INFER, GOOD)[0] == 200  # on the same connection


def test_a_body_without_end_is_given_up(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        received = b""
        raw.settimeout(0.001)
        for _ in range(10_000):
            try:
                raw.sendall(chunk)
                received = raw.recv(4096)
                break
            except TimeoutError:
                continue
            except (ConnectionError, BrokenPipeError):
                break
        else:
            pytest.fail("the server reads for ever")
        assert not received or b" 413 " in received
    assert server.json("POST", INFER, GOOD)[0] == 200


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"])
def test_a_body_that_is_said_to_be_far_too_large_is_not_awaited(server: Running, more: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        size = 100 * JSON_LIMIT
        raw.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (more, size))
        received = b"".join(iter(lambda: raw.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received


def test_many_small_chunks_are_one_body(server: Running) -> None:
    chunks = (bytes([byte]) for byte in json.dumps(GOOD).encode())
    server.connection.request("POST", INFER, chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    answer = server.connection.getresponse()
    assert (answer.status, json.loads(answer.read())["model_name"]) == (200, "m")


def test_a_body_that_does_not_arrive_is_given_up(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    folder.add("m", "1", models.affine(), live=True)
    server = serve(request_timeout=0.1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{")
        assert b" 408 " in raw.recv(4096)


@pytest.mark.parametrize("content_type", ["", "application/json", "application/octet-stream", "text/plain", "application/x-pickle"])
def test_the_content_type_decides_nothing(server: Running, content_type: str) -> None:
    headers = {"Content_Type": content_type} if content_type else {}
    assert server.ask("POST", INFER, json.dumps(GOOD).encode(), **headers)[0] == 200


@pytest.mark.parametrize(("encoding", "shrink"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_request_is_inflated_and_the_json_length_is_of_the_inflated(
    server: Running, encoding: str, shrink: Callable[[bytes], bytes]
) -> None:
    text = json.dumps({"inputs": [{k: v for k, v in entry(parameters={"binary_data_size": 12}).items() if k != "data"}]}).encode()
    body = shrink(text + np.array([1, 2, 3], np.float32).tobytes())
    status, _, content = server.ask("POST", INFER, body, Content_Encoding=encoding, Inference_Header_Content_Length=str(len(text)))
    assert (status, json.loads(content)["outputs"][0]["data"]) == (200, [2, 4, 6])


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate, br", "gzip"), ("deflate", "deflate"), ("br, zstd", None), ("gzip;q=0, deflate", "deflate"), ("gzip; q=0", None)],
)
def test_only_answers_of_infer_are_compressed(server: Running, accepted: str, encoding: str | None) -> None:
    body = json.dumps({"inputs": [entry(shape=[200, 3], data=[1] * 600)]}).encode()
    status, headers, content = server.ask("POST", INFER, body, Accept_Encoding=accepted)
    assert (status, headers.get("content-encoding")) == (200, encoding)
    plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding](content)
    assert len(json.loads(plain)["outputs"][0]["data"]) == 600
    for method, path in (("GET", "/v2/models/m/config"), ("GET", "/v2/models/stats"), ("POST", "/v2/models/x/infer")):
        assert "content-encoding" not in server.ask(method, path, Accept_Encoding=accepted)[1]


def test_an_input_outside_the_range_is_flagged(server: Running) -> None:
    _, answer = server.json("POST", INFER, {"inputs": [entry(data=[0, 101, 0])]})
    assert answer["parameters"]["input_out_of_range"] is True


def test_past_the_deadline_is_503_and_says_when_to_come_back(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    folder.add("slow", "1", models.loop(), live=True)
    server = serve()
    body = {
        "inputs": [{"name": "input", "shape": [1, 1], "datatype": "INT64", "data": [2**60]}],
        "parameters": {"timeout": 50_000},
    }
    status, headers, content = server.ask("POST", "/v2/models/slow/infer", json.dumps(body).encode())
    assert (status, headers["retry-after"]) == (503, "1")
    assert "deadline" in json.loads(content)["error"]


def test_past_the_queue_is_429_and_the_admitted_are_answered(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    folder.add("slow", "1", models.loop(), live=True)
    server = serve(queue_rows=2)

    def send(trips: int, timeout: int = 0) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        given = {"name": "input", "shape": [1, 1], "datatype": "INT64", "data": [trips]}
        connection.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [given], "parameters": {"timeout": timeout}}))
        return connection

    endless = send(2**60, timeout=1_000_000)
    for _ in range(3):
        server.json("GET", "/v2/health/live")  # the server reads its sockets in turn, so now it runs the first
    others = [send(1) for _ in range(8)]
    answers = [connection.getresponse() for connection in (endless, *others)]
    statuses = [answer.status for answer in answers]
    assert statuses[0] == 503
    assert set(statuses[1:]) == {200, 429}
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status != 200)
    for connection in (endless, *others):
        connection.close()


def test_a_caller_that_hangs_up_frees_the_model_for_the_next(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    folder.add("slow", "1", models.loop(), live=True)
    server = serve(queue_rows=2)
    body = json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "INT64", "data": [2**60]}]}).encode()
    for _ in range(4):  # one runs, others wait: each gives its place back
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            server.json("GET", "/v2/health/live")
    begun = time.monotonic()
    answer = server.json("POST", "/v2/models/slow/infer", json.loads(body.replace(str(2**60).encode(), b"7")))
    assert (answer[0], answer[1]["outputs"][0]["data"]) == (200, [7])
    assert time.monotonic() - begun < 20  # the deadline of those that went is 30 s


def test_keys_and_metrics_are_asked_and_told(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    folder.add("m", "1", models.affine(), live=True)
    told: list[tuple[str, str, int, int]] = []

    class Told:
        def observe(self, model: str, version: str, code: int, seconds: float, rows: int) -> None:
            told.append((model, version, code, rows))

    def authorise(headers: Any, method: str, path: str) -> None:
        key = dict(headers).get(b"authorization")
        if key is None:
            raise UnauthenticatedError
        if path.startswith("/v2/repository"):
            raise ForbiddenError

    server = serve({"authorise": authorise, "metrics": Told()})
    assert server.ask("POST", INFER, b"{}")[0] == 401
    assert server.ask("POST", "/v2/repository/index", Authorization="x")[0] == 403
    assert server.ask("POST", INFER, json.dumps(GOOD).encode(), Authorization="x")[0] == 200
    assert server.ask("POST", INFER, b"{", Authorization="x")[0] == 400
    assert server.ask("POST", "/v2/models/other/infer", b"{", Authorization="x")[0] == 404
    assert told == [("m", "1", 200, 1), ("m", "1", 400, 0), ("", "", 404, 0)]


def test_not_ready_is_503_and_the_index_says_why(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    folder.add("broken", "1", models.affine(), live=True)
    folder.damage("broken", "1")
    server = serve()
    assert server.json("GET", "/v2/health/live")[0] == 200
    for path in ("/v2/health/ready", "/v2/models/broken/ready", "/v2/models/broken"):
        assert server.json("GET", path)[0] == 503
    _, index = server.json("POST", "/v2/repository/index")
    assert [(row["name"], row["version"], row["state"]) for row in index] == [("broken", "1", "UNAVAILABLE")]
    assert "sha256" in index[0]["reason"]


def test_a_load_reads_the_promoted_version_again(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    fill(folder, models)
    server = serve()
    folder.promoted["m"] = "1"
    assert server.json("POST", INFER, GOOD)[1]["model_version"] == "2"
    assert server.json("POST", "/v2/repository/models/m/load")[0] == 200
    assert server.json("POST", INFER, GOOD)[1]["model_version"] == "1"


def test_the_openapi_text_names_every_route_and_resolves(server: Running) -> None:
    document = openapi()
    for path, methods in document["paths"].items():
        real = path.replace("{model}", "m").replace("{version}", "1")
        for method in methods:
            assert server.ask(method.upper(), real, b"" if method == "post" else None)[0] not in {404, 405}, path
    assert server.json("POST", "/v2/repository/models/m/load")[0] == 200  # it was unloaded among the others
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        text = text.replace(f'"#/components/schemas/{name}"', "")
    assert "#/components" not in text


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    own = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield own
    own.close()


def tensor(array: np.ndarray, *, binary: bool) -> Any:
    given = triton.InferInput("input", list(array.shape), "FP32")
    given.set_data_from_numpy(array, binary_data=binary)
    return given


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_the_stock_client_gets_the_same_numbers_in_every_way(
    client: Any, binary_in: bool, binary_out: bool | None, compression: str | None
) -> None:
    given = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    answer = client.infer(
        "m",
        [tensor(given, binary=binary_in)],
        outputs=outputs,
        request_id="ü",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_array_equal(answer.as_numpy("logits"), 2 * given)
    assert answer.get_response()["id"] == "ü"


def test_the_stock_client_finds_every_route(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("m", "9")
    assert client.get_server_metadata()["name"] == "specnorm"
    assert client.get_model_metadata("m", "1")["versions"] == ["1"]
    config = client.get_model_config("m")
    assert (config["max_batch_size"], config["input"][0]["dims"], config["input"][0]["data_type"]) == (256, [3], "TYPE_FP32")
    assert [(row["version"], row["state"]) for row in client.get_model_repository_index()] == [("1", "READY"), ("2", "READY")]
    client.load_model("m")
    client.unload_model("m")
    assert not client.is_model_ready("m")
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="was unloaded"):
        client.get_model_metadata("m")
    client.load_model("m")
    assert client.is_model_ready("m")
    with pytest.raises(InferenceServerException, match=r"expected shape \[-1, 3\]"):
        client.infer("m", [tensor(np.zeros((1, 2), np.float32), binary=True)])


def test_the_stock_client_reads_classes_and_statistics(folder: Any, models: Any, serve: Callable[..., Running]) -> None:
    fill(folder, models)
    client = triton.InferenceServerClient(f"127.0.0.1:{serve().port}")
    asked = [triton.InferRequestedOutput("logits", class_count=2)]
    answer = client.infer("m", [tensor(np.array([[1, 2.5, -3]], np.float32), binary=True)], outputs=asked)
    assert answer.as_numpy("logits").tolist() == [[b"5.0:1:y", b"2.0:0:x"]]
    client.infer("m", [tensor(np.zeros((4, 3), np.float32), binary=False)])
    with pytest.raises(InferenceServerException):
        client.infer("m", [tensor(np.zeros((1, 2), np.float32), binary=True)])
    (told,) = client.get_inference_statistics("m", "2")["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (5, 2)
    assert told["inference_stats"]["success"]["count"] == 2
    assert told["inference_stats"]["fail"]["count"] == 1
    assert [batch["batch_size"] for batch in told["batch_stats"]] == [1, 4]
    assert {row["version"] for row in client.get_inference_statistics()["model_stats"]} == {"2"}
    client.close()


def test_the_stock_asynchronous_client_is_served_too(server: Running) -> None:
    async def use() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as own:
            assert await own.is_server_ready()
            assert (await own.get_model_metadata("m"))["name"] == "m"
            assert (await own.get_inference_statistics())["model_stats"]
            given = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
            for binary in (True, False):
                answer = await own.infer("m", [tensor(given, binary=binary)], response_compression_algorithm="gzip")
                np.testing.assert_array_equal(answer.as_numpy("logits"), 2 * given)
            with pytest.raises(InferenceServerException, match="no model"):
                await own.infer("n", [tensor(given, binary=True)])

    asyncio.run(use())


def test_a_raw_body_is_one_row_and_the_answer_is_binary(client: Any) -> None:
    # The stock client has no call for it, so its own transport is used.
    answer = client._post(
        "v2/models/m/infer",
        np.array([1, 2, 3], np.float32).tobytes(),
        {"Inference-Header-Content-Length": "0"},
        None,
    )
    result = triton.InferenceServerClient.parse_response_body(
        answer.read(), header_length=int(answer.get("inference-header-content-length"))
    )
    assert result.as_numpy("logits").tolist() == [[2, 4, 6]]
