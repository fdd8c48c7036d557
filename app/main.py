"""The composition root: settings → stores → catalog → routes. Nothing else constructs."""

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp, Receive, Scope, Send

from app import console
from app.api import admin, docs, errors, metrics, session, v1, v2
from app.api.guard import Guard
from app.api.imports import Imports
from app.api.promotion import Promotion
from app.api.shortcut import Shortcut
from app.api.tracing import Traced, Tracing, from_environment
from app.api.wire import protocol
from app.errors import SpecnormError, UnavailableError
from app.inference import describe
from app.inference.catalog import Catalog
from app.inference.runtime import installed
from app.jobs.admissions import Admissions
from app.jobs.admitter import Admitter
from app.jobs.dispatch import Dispatcher
from app.jobs.launcher import Local
from app.jobs.store import Jobs
from app.jobs.watch import Watch
from app.link import Answer
from app.observability import Metrics
from app.registry.files import Files, expire
from app.registry.once import forget
from app.registry.registry import Registry
from app.registry.retention import Retention
from app.registry.workspace import open_registry
from app.security import Access, access
from app.settings import Settings
from app.siblings import Siblings
from app.totals import Tree, merge

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
VERSION = importlib.metadata.version("specnorm")
FOLLOW_SECONDS = 0.5
RETRY_SECONDS = 30.0
SPOOL_BYTES = 1 << 16
"""Of an upload that is coming in, what is kept in memory; the rest is in a file of the folder that TMPDIR names."""

log = logging.getLogger(__name__)


class Service(NamedTuple):
    """The service as one ASGI application, and uvicorn's setting ``http`` that lets plain inference requests past it.

    ``end_streams`` ends the answers that would go on for ever, so that the rest can be answered to its end.
    """

    app: ASGIApp
    http: Any
    end_streams: Callable[[], None]


def create_app(settings: Settings) -> ASGIApp:
    """Return the service as one ASGI application; see :func:`create_service`."""
    return create_service(settings).app


def create_service(settings: Settings, siblings: Siblings | None = None, tracing: Tracing | None = None) -> Service:
    """Return the service.

    Args:
        settings: all of them.
        siblings: the other processes of the same service, where there are any.
        tracing: where spans go; by default what the variables `OTEL_*` say.

    Raises:
        InvalidRequestError: the settings would serve others without keys, or the file of keys cannot be read.
        CorruptError, UnavailableError: the workspace cannot be used, or not exactly one ONNX Runtime is installed.
    """
    installed()
    judged_by = access(settings)
    tracing = tracing or from_environment(VERSION)
    registry = open_registry(settings)
    database = registry.database
    catalog = Catalog(registry, settings)
    siblings = siblings or Siblings()
    promotion = Promotion(registry, catalog, siblings)
    imports = Imports(Admissions(database), registry.blobs, promotion)
    take_in = partial(imports.load, wait=settings.import_seconds, who="/v2/repository")
    repository = v2.Repository(promotion.load, promotion.unload, take_in)
    page = Metrics()

    async def own() -> Tree:
        return merge((describe.numbers(catalog), await page.numbers()))

    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        async with siblings.joined(own, _answers(catalog)):
            await catalog.start()
            for models in await siblings.others("unloaded"):  # a process that is started anew serves what the others serve
                for model in models:
                    await catalog.unload(model)
            with _running(_tasks(settings, registry, catalog)) as tasks:
                async with _grpc(settings, judged_by=judged_by, catalog=catalog, repository=repository, siblings=siblings, tracing=tracing):
                    yield
            await asyncio.gather(*tasks, return_exceptions=True)
            await catalog.close()
        database.dispose()

    api = _api(settings, judged_by, registry, lifespan)
    watch = Watch(Jobs(database))
    api.include_router(admin.router(registry, promotion, imports, watch))
    inference = v2.InferApp(catalog, settings, version=VERSION, repository=repository, totals=siblings.totals)
    guard = Guard(_Fork(inference, api), judged_by, settings)
    page.add(guard.families)
    page.add(lambda: metrics.live(catalog))
    page.add(lambda: metrics.stored(database), whole=True)
    api.router.routes.append(metrics.route(page, siblings.totals))
    if tracing is not None:
        return Service(Traced(guard, tracing), "httptools", watch.close)
    return Service(guard, protocol(Shortcut(catalog, settings, judged_by, guard.answers)), watch.close)


def _answers(catalog: Catalog) -> dict[str, Answer]:
    """Return what this process does when a sibling asks."""

    async def unloaded() -> list[str]:
        return sorted(catalog.unloaded)

    return {
        "catch_up": catalog.catch_up,
        "reload": catalog.reload,
        "unload": catalog.unload,
        "forget": catalog.forget,
        "follow_aliases": catalog.aliases.follow,
        "unloaded": unloaded,
    }


def create_dispatcher(settings: Settings, database: Engine | None = None) -> Dispatcher:
    """Return what runs the jobs of a workspace."""
    jobs = Jobs(database or open_registry(settings).database)
    return Dispatcher(jobs, Local(settings), settings, limit=settings.jobs_at_once)


async def work(settings: Settings, registry: Registry | None = None) -> None:
    """Run the jobs of a workspace and judge the models that wait in it, until cancelled."""
    registry = registry or open_registry(settings)
    database = registry.database
    async with asyncio.TaskGroup() as group:
        group.create_task(create_dispatcher(settings, database).run())
        group.create_task(Admitter(Admissions(database), registry, settings).run())


class _Fork:
    """Sends ``/v2`` straight to the inference protocol and all else to FastAPI."""

    def __init__(self, inference: ASGIApp, api: ASGIApp) -> None:
        self._inference = inference
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        await (self._inference if path == "/v2" or path.startswith("/v2/") else self._api)(scope, receive, send)


@asynccontextmanager
async def _grpc(
    settings: Settings, *, judged_by: Access, catalog: Catalog, repository: v2.Repository, siblings: Siblings, tracing: Tracing | None
) -> AsyncIterator[None]:
    """Serve gRPC too, where the settings name a port."""
    if settings.grpc_port is None:
        yield
        return
    try:
        from app.api.grpc.server import start  # noqa: PLC0415  # an extra
    except ImportError:
        raise UnavailableError("SPECNORM_GRPC_PORT is set, but gRPC is not installed: install specnorm[grpc].") from None
    server = await start(
        catalog, settings, judged_by=judged_by, repository=repository, totals=siblings.totals, tracing=tracing, version=VERSION
    )
    try:
        yield
    finally:
        await server.stop(settings.drain_seconds)


def _api(settings: Settings, judged_by: Access, registry: Registry, lifespan: Lifespan) -> FastAPI:
    """Return every route but the inference protocol's; its lifespan is that of the whole service."""
    jobs = Jobs(registry.database, max_open=settings.max_open_jobs)
    files = Files(registry.database, registry.blobs, max_bytes=settings.max_upload_bytes)
    api = FastAPI(
        title="specnorm",
        version=VERSION,
        description="Spectral-normalised networks whose every answer carries a Lipschitz bound that holds.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(api)
    MultiPartParser.spool_max_size = SPOOL_BYTES
    api.include_router(v1.router(files, jobs, registry))
    api.include_router(session.router(judged_by))
    api.include_router(console.router())
    api.router.routes.append(docs.route())
    api.openapi = docs.describe(api, v2.openapi)  # type: ignore[method-assign]  # the way that FastAPI documents
    return api


def _tasks(settings: Settings, registry: Registry, catalog: Catalog) -> Iterator[asyncio.Task[None]]:
    """Start what runs beside the requests."""
    yield asyncio.create_task(follow(registry, catalog))
    yield asyncio.create_task(_tidy(settings, registry, catalog))
    if settings.worker == "local":
        yield asyncio.create_task(work(settings, registry))


async def _tidy(settings: Settings, registry: Registry, catalog: Catalog) -> None:
    """Remove the versions, uploads and keys that are kept no longer, and free what no row names, now and again and again."""
    retention = Retention(settings.keep_versions, settings.keep_days * 24 * 3600.0)
    while True:
        try:
            for model, version in await asyncio.to_thread(retention.apply, registry):
                log.info("%s version %s is kept no longer", model, version)
                await catalog.forget(model, version)
            await asyncio.to_thread(expire, registry.database)
            await asyncio.to_thread(forget, registry.database)
            await asyncio.to_thread(registry.blobs.sweep)
        except (SpecnormError, OSError) as error:
            log.error("tidying is held up: %s", error)
        await asyncio.sleep(settings.tidy_seconds)


@contextmanager
def _running(tasks: Iterator[asyncio.Task[None]]) -> Iterator[list[asyncio.Task[None]]]:
    started = list(tasks)
    try:
        yield started
    finally:
        for task in started:
            task.cancel()


async def follow(registry: Registry, catalog: Catalog) -> None:
    """Serve what others promote in the same workspace: a finished job, the command line, another replica.

    Only the catalog reads what to load, in turn with the promotions of this process, so it never goes back.
    """
    retry: dict[tuple[str, str], float] = {}
    now = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        with suppress(SpecnormError, SQLAlchemyError):  # the database is busy or gone: what is loaded goes on serving
            await catalog.aliases.follow()
            behind = catalog.problems()
            for model, version in (await asyncio.to_thread(registry.live_versions)).items():
                settled = (catalog.live_version(model) == version and model not in behind) or model in catalog.unloaded
                if version is None or settled or retry.get((model, version), 0.0) > now():
                    continue
                retry[model, version] = now() + RETRY_SECONDS
                await _catch_up(catalog, model, version)


async def _catch_up(catalog: Catalog, model: str, version: str) -> None:
    try:
        await catalog.catch_up(model)
    except SpecnormError as error:
        log.error("%s version %s is live and cannot be served: %s", model, version, error)
    except Exception:  # one model must not end the watch over the others
        log.exception("%s version %s is live and cannot be served", model, version)
    else:
        log.info("%s version %s is live", model, catalog.live_version(model))
