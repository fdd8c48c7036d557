"""The gRPC service: its methods, each a few lines on the catalog, and the statuses of what goes wrong."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import grpc  # type: ignore[import-untyped]  # has no stubs here
import grpc.aio  # type: ignore[import-untyped]  # as above
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]  # as above

from app.api import health
from app.api.errors import BUG, status_of
from app.api.grpc.messages import CLASSES, HEALTH, SERVICE
from app.api.grpc.translate import load_parameters, request, response
from app.api.tracing import Tracing
from app.api.v2 import Repository
from app.api.v2_load import model_file
from app.errors import SpecnormError, UnavailableError
from app.inference import describe
from app.inference.catalog import Catalog
from app.observability import new_request_id, request_id, trace_id, trace_of
from app.security import Access, authorise
from app.settings import Settings
from app.totals import Tree

Totals = Callable[[], Awaitable[Tree]]
Method = Callable[[Any], Awaitable[Any]]

CODES: Final[dict[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_OVERHEAD: Final = 1 << 20  # of a message around its tensors

log = logging.getLogger("app.api")


async def start(
    catalog: Catalog,
    settings: Settings,
    *,
    judged_by: Access,
    repository: Repository,
    totals: Totals,
    tracing: Tracing | None,
    version: str,
) -> "grpc.aio.Server":
    """Return the service, listening on the port of the settings.

    Raises:
        UnavailableError: the port cannot be bound.
    """
    logging.getLogger("grpc").setLevel(max(logging.INFO, log.getEffectiveLevel()))  # at debug it tells of its own event loop
    most = settings.max_binary_bytes + _OVERHEAD
    sizes = [
        ("grpc.max_receive_message_length", most),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(settings.processes > 1)),
    ]
    server = grpc.aio.server(options=sizes)
    methods = Methods(catalog, repository, totals, version)
    guarded = _Guarded(judged_by, tracing)
    handlers = {
        name: guarded.unary(name, "/v2/repository" if name.startswith("Repository") else "/v2", method)
        for name, method in methods.all().items()
    }
    handlers["ModelStreamInfer"] = guarded.stream("ModelInfer", methods.infer)
    for name in ("ServerLive", "ServerReady"):
        handlers[name] = guarded.unary(name, "/v2/health", methods.all()[name])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": guarded.unary("HealthCheck", "/v2/health", methods.check)}),
        )
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError:
        raise UnavailableError(f"{host}:{settings.grpc_port} cannot be bound for gRPC: choose another SPECNORM_GRPC_PORT.") from None
    await server.start()
    log.info("gRPC at %s:%d", host, port)
    return server


class Methods:
    """What each method answers; errors are the core's own."""

    def __init__(self, catalog: Catalog, repository: Repository, totals: Totals, version: str) -> None:
        self._catalog = catalog
        self._repository = repository
        self._totals = totals
        self._version = version

    def all(self) -> dict[str, Method]:
        """Return the methods of one request and one answer, by their names in the protocol."""
        return {
            "ServerLive": self.live,
            "ServerReady": self.ready,
            "ServerMetadata": self.server,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.metadata,
            "ModelConfig": self.config,
            "ModelStatistics": self.statistics,
            "ModelInfer": self.infer,
            "RepositoryIndex": self.index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
        }

    async def live(self, _message: Any) -> Any:
        """Tell that the process lives."""
        return CLASSES["ServerLiveResponse"](live=True)

    async def ready(self, _message: Any) -> Any:
        """Tell whether every model that has a live version serves it."""
        return CLASSES["ServerReadyResponse"](ready=self._catalog.ready)

    async def check(self, _message: Any) -> Any:
        """Tell the same to Kubernetes."""
        try:
            health.ready(self._catalog)
        except UnavailableError:
            return CLASSES["HealthCheckResponse"](status="NOT_SERVING")
        return CLASSES["HealthCheckResponse"](status="SERVING")

    async def server(self, _message: Any) -> Any:
        """Return the metadata of the server."""
        return CLASSES["ServerMetadataResponse"](**describe.server(self._version))

    async def model_ready(self, message: Any) -> Any:
        """Tell whether a version answers; an unknown one is an error."""
        try:
            await self._catalog.get(message.name, message.version or None)
        except UnavailableError:
            return CLASSES["ModelReadyResponse"](ready=False)
        return CLASSES["ModelReadyResponse"](ready=True)

    async def metadata(self, message: Any) -> Any:
        """Return the metadata of a version."""
        return _filled("ModelMetadataResponse", await describe.metadata(self._catalog, message.name, message.version or None))

    async def config(self, message: Any) -> Any:
        """Return the configuration of a version."""
        served = await self._catalog.get(message.name, message.version or None)
        return _filled("ModelConfigResponse", {"config": describe.config(served)})

    async def statistics(self, message: Any) -> Any:
        """Return the statistics of one model, or of all."""
        totals = await self._totals()
        if message.name:
            known = await describe.statistics_of(self._catalog, totals, message.name, message.version or None)
        else:
            known = describe.statistics(totals)
        return _filled("ModelStatisticsResponse", known)

    async def infer(self, message: Any) -> Any:
        """Answer one inference request."""
        served = await self._catalog.get(message.model_name, message.model_version or None)
        return response(*await served.answer_document(*request(message)))

    async def index(self, message: Any) -> Any:
        """Return the state of every version."""
        states = [state for state in await self._catalog.states() if state.state == "READY" or not message.ready]
        models = [{"name": one.model, "version": one.version, "state": one.state, "reason": one.reason} for one in states]
        return _filled("RepositoryIndexResponse", {"models": models})

    async def load(self, message: Any) -> Any:
        """Read the promoted version again, or take in the file that comes along."""
        content = model_file(load_parameters(message.parameters))
        if content is None:
            await self._repository.load(message.model_name)
        else:
            await self._repository.take_in(message.model_name, content)
        return CLASSES["RepositoryModelLoadResponse"]()

    async def unload(self, message: Any) -> Any:
        """Serve a model no more until it is loaded."""
        await self._repository.unload(message.model_name)
        return CLASSES["RepositoryModelUnloadResponse"]()


class _Guarded:
    """Makes handlers of methods: keys are asked for first, and what goes wrong becomes a status."""

    def __init__(self, judged_by: Access, tracing: Tracing | None) -> None:
        self._judged_by = judged_by
        self._tracing = tracing

    def unary(self, name: str, path: str, method: Method) -> Any:
        async def handle(message: Any, context: Any) -> Any:
            begun = _begin(context)
            try:
                self._judge(path, context)
                with self._traced(name, context):
                    answer = await method(message)
            except Exception as error:
                code, sentence = _status(error)
                _tell(name, code, begun)
                await context.abort(code, sentence)
            else:
                _tell(name, grpc.StatusCode.OK, begun)
                return answer

        return grpc.unary_unary_rpc_method_handler(
            handle, CLASSES[f"{name}Request"].FromString, CLASSES[f"{name}Response"].SerializeToString
        )

    def stream(self, name: str, method: Method) -> Any:
        kind = CLASSES["ModelStreamInferResponse"]

        async def handle(messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            begun = _begin(context)
            try:
                self._judge("/v2", context)
            except SpecnormError as error:
                code, sentence = _status(error)
                _tell(name, code, begun)
                await context.abort(code, sentence)
            async for message in messages:
                begun = _begin(context)
                try:
                    with self._traced(name, context):
                        response = await method(message)
                except Exception as error:
                    code, sentence = _status(error)
                    _tell(name, code, begun)
                    yield kind(error_message=sentence, infer_response={"id": message.id})
                else:
                    _tell(name, grpc.StatusCode.OK, begun)
                    yield kind(infer_response=response)

        return grpc.stream_stream_rpc_method_handler(handle, CLASSES[f"{name}Request"].FromString, kind.SerializeToString)

    def _judge(self, path: str, context: Any) -> None:
        """Ask for a key. Without keys only this machine can reach the port, and no page of a browser speaks gRPC to it."""
        if self._judged_by.keys is not None:
            authorise(self._judged_by, "POST", path, _headers(context))

    def _traced(self, name: str, context: Any) -> AbstractContextManager[Any]:
        if self._tracing is None or name != "ModelInfer":
            return nullcontext()
        attributes = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": name}
        return self._tracing.request(f"{SERVICE}/{name}", _headers(context), attributes)


def _begin(context: Any) -> float:
    """Give what is logged from here on the id and the trace of a request, and return the time."""
    headers = _headers(context)
    given = next((value.decode() for name, value in headers if name == b"x-request-id"), None)
    request_id.set(new_request_id(given))
    trace_id.set(trace_of(headers))
    context.set_trailing_metadata((("x-request-id", request_id.get()),))
    return time.monotonic()


def _tell(name: str, code: grpc.StatusCode, begun: float) -> None:
    """Write the one line of a request."""
    log.debug("gRPC %s %s after %.1f ms", name, code.name, 1e3 * (time.monotonic() - begun))


def _headers(context: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in context.invocation_metadata() if isinstance(value, str)]


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, SpecnormError):
        return CODES.get(status_of(error), grpc.StatusCode.INTERNAL), str(error)
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return grpc.StatusCode.INTERNAL, BUG


def _filled(name: str, value: dict[str, Any]) -> Any:
    return ParseDict(value, CLASSES[name](), ignore_unknown_fields=True)
