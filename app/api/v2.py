"""The Open Inference Protocol under ``/v2``, as a raw ASGI application: it is the hot path.

Everything that a client may get wrong ends in `{"error": "<sentence>"}`, and on a connection that stays usable.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.api import health
from app.api.body import HEADER_LENGTH, Framing, compress, framing, read
from app.api.errors import response_of, status_of
from app.api.v2_load import model_file
from app.api.v2_schema import openapi
from app.errors import InvalidRequestError, NotFoundError, SpecnormError, TooLargeError, UnavailableError
from app.inference import describe
from app.inference.catalog import Catalog, Served
from app.inference.statistics import Metrics
from app.settings import Settings
from app.totals import Tree

__all__ = ["InferApp", "Repository", "openapi"]

Headers = tuple[tuple[bytes, bytes], ...]
Authorise = Callable[[Iterable[tuple[bytes, bytes]], str, str], object]
AnswerT = TypeVar("AnswerT")

_JSON: Final[Headers] = ((b"content-type", b"application/json"),)


class Reply(NamedTuple):
    """What goes out with status 200: stock clients take no other for success."""

    body: bytes
    headers: Headers = _JSON


async def _takes_none(_model: str, _content: bytes) -> None:
    raise UnavailableError("Models are not taken in here.")


class Repository(NamedTuple):
    """What the repository's routes do with a model: load it again, unload it, take in a file as its next version."""

    load: Callable[[str], Awaitable[None]]
    unload: Callable[[str], Awaitable[None]]
    take_in: Callable[[str, bytes], Awaitable[None]] = _takes_none


class Call(NamedTuple):
    """One request on its way: the model and version that its path names, and what is still to be read."""

    headers: Iterable[tuple[bytes, bytes]]
    receive: Receive
    model: str = ""
    version: str | None = None


Endpoint = Callable[[Call], Awaitable[Reply]]


class InferApp:
    """ASGI application of every route below ``/v2``.

    Args:
        catalog: what is served.
        settings: limits.
        version: of the product, for the server's metadata.
        authorise: called with headers, method and path before anything else; raises where the caller may not.
        metrics: told of every inference request.
        repository: what loads and unloads do; by default they are of this process, and take no files.
        totals: the numbers of the whole service; by default those of this process.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        *,
        version: str = "",
        authorise: Authorise | None = None,
        metrics: Metrics | None = None,
        repository: Repository | None = None,
        totals: Callable[[], Awaitable[Tree]] | None = None,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._version = version
        self._authorise = authorise
        self._metrics = metrics
        self._repository = repository or Repository(catalog.reload, catalog.unload)
        self._totals = totals or self._own
        self._fixed: dict[tuple[str, ...], tuple[str, Endpoint]] = {
            (): ("GET", self._server),
            ("",): ("GET", self._server),
            ("health", "live"): ("GET", self._live),
            ("health", "ready"): ("GET", self._ready),
            ("models", "stats"): ("GET", self._all_statistics),
            ("repository", "index"): ("POST", self._index),
        }
        self._of_model: dict[tuple[str, ...], tuple[str, Endpoint]] = {
            (): ("GET", self._metadata),
            ("ready",): ("GET", self._model_ready),
            ("infer",): ("POST", self._infer),
            ("config",): ("GET", self._config),
            ("stats",): ("GET", self._statistics),
        }
        self._of_repository: dict[str, Endpoint] = {"load": self._load, "unload": self._unload}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; no exception leaves, or the server would drop the connection."""
        path: str = scope["path"]
        try:
            if self._authorise is not None:
                self._authorise(scope["headers"], scope["method"], path)
            method, endpoint, model, version = self._find(path)
            if scope["method"] not in ({"GET", "HEAD"} if method == "GET" else {method}):
                raise HTTPException(405, f"expected the method {method}, got {scope['method']}", {"Allow": method})
            reply = await endpoint(Call(scope["headers"], receive, model, version))
        except ClientDisconnect:
            return
        except Exception as error:
            await response_of(error, path)(scope, receive, send)
            return
        length = (b"content-length", str(len(reply.body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*reply.headers, length]})
        await send({"type": "http.response.body", "body": reply.body})

    def _find(self, path: str) -> tuple[str, Endpoint, str, str | None]:
        """Return method, endpoint, model and version of ``path``."""
        parts = tuple(path.split("/")[2:])
        found = self._fixed.get(parts)
        if found:
            return *found, "", None
        match parts:
            case ("models", model, "versions", version, *rest) if model and version:
                found = self._of_model.get(tuple(rest))
                if found:
                    return *found, model, version
            case ("models", model, *rest) if model:
                found = self._of_model.get(tuple(rest))
                if found:
                    return *found, model, None
            case ("repository", "models", model, action) if model and action in self._of_repository:
                return "POST", self._of_repository[action], model, None
        raise NotFoundError("There is no such route.")

    async def _infer(self, call: Call) -> Reply:
        begun = time.perf_counter()
        served: Served | None = None
        code, rows = 500, 0
        try:
            how = framing(call.headers)
            served = await self._catalog.get(call.model, call.version)
            limit = self._settings.max_json_bytes if how.json_bytes is None else self._settings.max_binary_bytes
            if how.json_bytes is not None and how.json_bytes > self._settings.max_json_bytes:
                raise TooLargeError(f"The JSON part has {how.json_bytes} bytes, and {self._settings.max_json_bytes} is the limit.")
            body = await read(call.receive, how, limit=limit, seconds=self._settings.request_timeout)
            answer = served.answer(body, how.json_bytes)
            encoded, rows = await (answer if served.quick else _while_there(answer, call.receive))
            code = 200
            return await _framed(encoded.body, encoded.json_bytes, how)
        except Exception as error:
            code = _code(error)
            raise
        finally:
            if self._metrics is not None:
                name, version = (served.name, served.version) if served else ("", "")
                self._metrics.observe(name, version, code, time.perf_counter() - begun, rows)

    async def _server(self, call: Call) -> Reply:
        return _json(describe.server(self._version))

    async def _live(self, call: Call) -> Reply:
        return _json(health.live())

    async def _ready(self, call: Call) -> Reply:
        return _json(health.ready(self._catalog))

    async def _metadata(self, call: Call) -> Reply:
        return _json(await describe.metadata(self._catalog, call.model, call.version))

    async def _model_ready(self, call: Call) -> Reply:
        served = await self._catalog.get(call.model, call.version)
        return _json({"name": served.name, "ready": True})

    async def _config(self, call: Call) -> Reply:
        served = await self._catalog.get(call.model, call.version)
        return _json(describe.config(served))

    async def _statistics(self, call: Call) -> Reply:
        return _json(await describe.statistics_of(self._catalog, await self._totals(), call.model, call.version))

    async def _all_statistics(self, call: Call) -> Reply:
        return _json(describe.statistics(await self._totals()))

    async def _own(self) -> Tree:
        return describe.numbers(self._catalog)

    async def _index(self, call: Call) -> Reply:
        only_ready = (await self._document(call, self._settings.max_json_bytes)).get("ready", False)
        if type(only_ready) is not bool:
            raise InvalidRequestError("expected ready to be a boolean")
        states = [state for state in await self._catalog.states() if state.state == "READY" or not only_ready]
        return _json([{"name": name, "version": version, "state": state, "reason": reason} for name, version, state, reason in states])

    async def _load(self, call: Call) -> Reply:
        parameters = (await self._document(call, self._settings.max_binary_bytes)).get("parameters") or {}
        content = model_file(parameters)
        if content is None:
            await self._repository.load(call.model)
        else:
            await self._repository.take_in(call.model, content)
        return _json({})

    async def _unload(self, call: Call) -> Reply:
        await self._document(call, self._settings.max_json_bytes)
        await self._repository.unload(call.model)
        return _json({})

    async def _document(self, call: Call, limit: int) -> dict[str, Any]:
        """Return the small JSON object of a repository request; an empty body is an empty object."""
        how = framing(call.headers)
        body = await read(call.receive, how, limit=limit, seconds=self._settings.request_timeout)
        try:
            document = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError as error:
            raise InvalidRequestError(f"the body is not JSON: {error}") from None
        if type(document) is not dict:
            raise InvalidRequestError("expected the body to be empty or a JSON object")
        return document


async def _while_there(answer: Coroutine[Any, Any, AnswerT], receive: Receive) -> AnswerT:
    """Return the answer, or cancel the work for it when the client goes away.

    Raises:
        ClientDisconnect: it did.
    """
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()


def _code(error: Exception) -> int:
    """Return what the metrics call the end of a request; 499 is a client that went away."""
    if isinstance(error, SpecnormError):
        return status_of(error)
    if isinstance(error, HTTPException):
        return error.status_code
    return 499 if isinstance(error, ClientDisconnect) else 500


def _json(value: Any) -> Reply:
    return Reply(orjson.dumps(value))


async def _framed(body: bytes, json_bytes: int | None, how: Framing) -> Reply:
    """Return an inference answer under its headers. The length of the JSON part counts before compression."""
    headers = _JSON if json_bytes is None else ((b"content-type", b"application/octet-stream"), (HEADER_LENGTH, str(json_bytes).encode()))
    if how.accepted:
        body, encoding = await compress(body, how.accepted)
        if encoding:
            headers = (*headers, (b"content-encoding", encoding), (b"vary", b"accept-encoding"))
    return Reply(body, headers)
