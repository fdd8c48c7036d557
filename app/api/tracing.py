"""OpenTelemetry: a span for each inference request, and in it those of reading it, its waiting, its run and its answer.

Switched on by the standard variables `OTEL_*`. With traces every request takes the ordinary way through ASGI, past no part
of which it could hurry; without them nothing here is imported but this module.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InvalidRequestError, UnavailableError
from app.inference.served import Served
from app.inference.statistics import Times, traced
from app.observability import trace_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_PATH: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: of OpenTelemetry's SDK.
        version: of the product.
    """

    def __init__(self, provider: "TracerProvider", version: str) -> None:
        from opentelemetry import propagate, trace  # noqa: PLC0415 - an extra

        self._tracer = provider.get_tracer("specnorm", version)
        self._api = trace
        self._extract = propagate.extract

    @contextmanager
    def request(self, name: str, headers: Iterable[tuple[bytes, bytes]], attributes: Mapping[str, str]) -> "Iterator[Span]":
        """Have a span of that name meanwhile, the child of the caller's where the headers tell of one."""
        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers}
        with self._tracer.start_as_current_span(
            name, context=self._extract(carrier), kind=self._api.SpanKind.SERVER, attributes=dict(attributes)
        ) as span:
            tokens = traced.set(partial(self._parts, span)), trace_id.set(f"{span.get_span_context().trace_id:032x}")
            try:
                yield span
            finally:
                traced.reset(tokens[0])
                trace_id.reset(tokens[1])

    def _parts(self, span: "Span", served: Served, rows: int, begun: int, times: Times) -> None:
        """Add what was measured of a request: one span for each part, one after the other."""
        if not span.is_recording():
            return
        span.set_attributes({"specnorm.model": served.name, "specnorm.version": served.version, "specnorm.rows": rows})
        within = self._api.set_span_in_context(span)
        at = time.time_ns() - (time.perf_counter_ns() - begun)
        for name, ns in zip(times._fields, times, strict=True):
            self._tracer.start_span(name, context=within, start_time=at).end(at + ns)
            at += ns

    def failed(self, span: "Span") -> None:
        """Mark a span as one of a request that the service is to blame for."""
        span.set_status(self._api.StatusCode.ERROR)


class Traced:
    """ASGI application in front of all others: the spans of inference requests."""

    def __init__(self, inner: ASGIApp, tracing: Tracing) -> None:
        self._inner = inner
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is None:
            await self._inner(scope, receive, send)
            return
        route = "/v2/models/{model}/infer" if match[2] is None else "/v2/models/{model}/versions/{version}/infer"
        method: str = scope["method"]
        attributes = {"http.request.method": method, "http.route": route, "url.path": scope["path"], "url.scheme": scope["scheme"]}
        with self._tracing.request(f"{method} {route}", scope["headers"], attributes) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        self._tracing.failed(span)
                await send(message)

            await self._inner(scope, receive, noting)


def from_environment(version: str, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return what the standard variables ask for, None where they ask for no traces.

    Raises:
        InvalidRequestError: they ask for an exporter or a protocol that is not had here.
        UnavailableError: OpenTelemetry is not installed.
    """
    asked = environment.get("OTEL_TRACES_EXPORTER", "").strip() or ("otlp" if any(map(environment.get, _ENDPOINTS)) else "none")
    if asked == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if asked not in EXPORTERS:
        raise InvalidRequestError(f"OTEL_TRACES_EXPORTER is {asked[:80]!r}; there are {', '.join(sorted(EXPORTERS))} and none.")
    for name in _PROTOCOLS:
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise InvalidRequestError(f"{name} is {environment[name][:80]!r}; traces are sent as http/protobuf.")
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an extra

        exporter = EXPORTERS[asked]()
    except ImportError:
        raise UnavailableError("OTEL_* asks for traces, but OpenTelemetry is not installed: install specnorm[otel].") from None
    own = {} if "OTEL_SERVICE_NAME" in environment else {SERVICE_NAME: "specnorm"}
    provider = TracerProvider(resource=Resource.create(own))
    provider.add_span_processor(BatchSpanProcessor(exporter))  # the SDK sends what is left when the process ends
    return Tracing(provider, version)


def _otlp() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

    return OTLPSpanExporter()


def _console() -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415 - an extra

    return ConsoleSpanExporter()


EXPORTERS: Final = {"otlp": _otlp, "console": _console}
