"""Spans, seen by OpenTelemetry's own SDK in memory, and by a receiver of its wire format."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from app.api.tracing import Tracing, from_environment
from app.errors import InvalidRequestError
from app.main import open_registry
from app.settings import Settings
from export.bundle import MODEL

BODY = json.dumps({"inputs": [{"name": "input", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}).encode()
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
PARTS = ["decode", "queue", "run", "encode"]


class Traced(NamedTuple):
    url: str
    grpc_port: int
    exporter: InMemorySpanExporter

    def spans(self) -> tuple[Any, list[Any]]:
        """Return the one span of a request and those of its parts, in the order of their beginnings."""
        spans = self.exporter.get_finished_spans()
        (request,) = [span for span in spans if span.kind is SpanKind.SERVER]
        parts = [span for span in spans if span.kind is SpanKind.INTERNAL]
        return request, sorted(parts, key=lambda span: span.start_time)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, models: Any) -> Path:
    folder = tmp_path_factory.mktemp("traced") / "ws"
    registry = open_registry(Settings(workspace=folder))
    artifact = models.affine(2.0)
    registry.promote("m", registry.publish("m", artifact.manifest, {MODEL: artifact.model}), why="test", who="test")
    registry.database.dispose()
    return folder


@pytest.fixture(scope="module")
def running(workspace: Path, listen: Callable[..., AbstractContextManager[str]], free_port: int) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(workspace=workspace, worker="none", device="cpu", grpc_port=free_port)
    with listen(settings, tracing=Tracing(provider, "1")) as url:
        yield Traced(url, free_port, exporter)


@pytest.fixture(scope="module")
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def traced(running: Traced) -> Traced:
    running.exporter.clear()
    return running


def test_a_request_is_a_span_of_its_callers_trace_and_its_parts_follow_each_other_within_it(traced: Traced) -> None:
    answer = httpx.post(f"{traced.url}/v2/models/m/infer", content=BODY, headers=GIVEN, trust_env=False)
    assert answer.status_code == 200
    request, parts = traced.spans()
    assert request.name == "POST /v2/models/{model}/infer"
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.attributes["http.response.status_code"] == 200
    assert (request.attributes["specnorm.model"], request.attributes["specnorm.version"], request.attributes["specnorm.rows"]) == (
        "m",
        "1",
        2,
    )
    assert [part.name for part in parts] == PARTS
    assert all(part.parent.span_id == request.context.span_id and part.context.trace_id == request.context.trace_id for part in parts)
    assert all(before.end_time == after.start_time for before, after in pairwise(parts))
    # The clocks of the wall and of the process are read one after the other.
    assert request.start_time - 10**6 <= parts[0].start_time <= parts[-1].end_time <= request.end_time + 10**6


def test_without_a_caller_that_is_traced_a_request_begins_a_trace_of_its_own(traced: Traced) -> None:
    for _ in range(2):
        assert httpx.post(f"{traced.url}/v2/models/m/versions/1/infer", content=BODY, trust_env=False).status_code == 200
    requests = [span for span in traced.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [span.name for span in requests] == ["POST /v2/models/{model}/versions/{version}/infer"] * 2
    assert all(span.parent is None for span in requests)
    assert requests[0].context.trace_id != requests[1].context.trace_id


def test_a_request_that_is_refused_is_a_span_without_parts(traced: Traced) -> None:
    assert httpx.post(f"{traced.url}/v2/models/m/infer", content=b"{", headers=GIVEN, trust_env=False).status_code == 400
    request, parts = traced.spans()
    assert (request.attributes["http.response.status_code"], parts) == (400, [])
    assert request.status.status_code is StatusCode.UNSET  # the caller's fault, not the service's


def test_other_routes_have_no_spans(traced: Traced) -> None:
    for path in ("/v2/health/live", "/metrics", "/v2/models/m", "/admin/models"):
        assert httpx.get(traced.url + path, headers=GIVEN, trust_env=False).status_code == 200
    assert traced.exporter.get_finished_spans() == ()


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_stock_clients_pass_their_trace_on(traced: Traced, kind: str) -> None:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[kind]
    address = traced.url.removeprefix("http://") if kind == "http" else f"127.0.0.1:{traced.grpc_port}"
    with module.InferenceServerClient(address) as client:
        given = module.InferInput("input", [1, 3], "FP32")
        given.set_data_from_numpy(np.ones((1, 3), np.float32))
        assert client.infer("m", [given], headers=dict(GIVEN)).as_numpy("logits").tolist() == [[2.0] * 3]
    request, parts = traced.spans()
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.name == ("POST /v2/models/{model}/infer" if kind == "http" else "inference.GRPCInferenceService/ModelInfer")
    assert [part.name for part in parts] == PARTS


def test_a_request_that_is_not_sampled_costs_no_parts(workspace: Path, listen: Callable[..., AbstractContextManager[str]]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with listen(Settings(workspace=workspace, worker="none", device="cpu"), tracing=Tracing(provider, "1")) as url:
        assert httpx.post(f"{url}/v2/models/m/infer", content=BODY, trust_env=False).status_code == 200
    assert exporter.get_finished_spans() == ()


class Receiver(HTTPServer):
    """Takes what an exporter of OTLP over HTTP sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.taken: list[tuple[str, ExportTraceServiceRequest]] = []


class _Taking(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_a_service_sends_its_spans_to_the_receiver_that_the_standard_variables_name(workspace: Path) -> None:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, daemon=True)
        thread.start()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SPECNORM_", "OTEL_"))}
        said = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        command = [sys.executable, "-m", "app.cli", "serve", "--workspace", str(workspace), "--port", "0", "--worker", "none"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean | said) as service:
            assert service.stdout is not None
            try:
                lines = iter(service.stdout.readline, "")
                found = next(match for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
                answer = httpx.post(f"{found[0]}/v2/models/m/infer", content=BODY, headers=GIVEN, trust_env=False)
            finally:
                service.terminate()  # what was not sent yet is sent at the end
            assert answer.status_code == 200
        assert service.returncode == 0
        receiver.shutdown()
        thread.join()
    assert {path for path, _ in receiver.taken} == {"/v1/traces"}
    resources = [resource for _, message in receiver.taken for resource in message.resource_spans]
    attributes = {one.key: one.value.string_value for resource in resources for one in resource.resource.attributes}
    assert (attributes["service.name"], attributes["deployment.environment"]) == ("specnorm", "test")
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == sorted([*PARTS, "POST /v2/models/{model}/infer"])
    assert {span.trace_id.hex() for span in spans} == {TRACE}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_nothing_is_traced_that_nobody_asked_for(environment: dict[str, str]) -> None:
    assert from_environment("1", environment) is None


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_what_is_not_had_is_refused_with_what_is(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match=r"otlp and none|http/protobuf"):
        from_environment("1", environment)


ABSENT = """
import sys
sys.modules.update({name: None for name in ("opentelemetry.sdk", "opentelemetry.sdk.trace", "opentelemetry.exporter")})
from app.main import create_service
from app.settings import Settings
from pathlib import Path
create_service(Settings(workspace=Path(sys.argv[1]), worker="none"))
print("started")
"""


@pytest.mark.parametrize(("exporter", "expected"), [("", "started"), ("otlp", "install specnorm[otel]")])
def test_without_the_extra_the_service_starts_unless_traces_are_asked_for(workspace: Path, exporter: str, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {"OTEL_TRACES_EXPORTER": exporter}
    done = subprocess.run([sys.executable, "-c", ABSENT, str(workspace)], capture_output=True, text=True, env=environment, check=False)
    assert expected in done.stdout + done.stderr
