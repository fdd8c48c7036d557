"""`/admin`: what is stored, what is live, the sigma of every layer, and the events of a job as they happen."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.errors import ConflictError, InvalidRequestError
from app.inference.catalog import Catalog
from app.jobs.store import Jobs
from app.registry.registry import Registry
from export.bundle import Manifest

WATCH_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 15.0


def router(registry: Registry, catalog: Catalog, jobs: Jobs) -> APIRouter:
    """Return the routes of the registry and of a job's live events."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    _add_reading(routes, registry)
    _add_promotion(routes, registry, catalog)
    _add_events(routes, jobs)
    return routes


def _add_reading(routes: APIRouter, registry: Registry) -> None:
    @routes.get("/models")
    def list_models() -> list[dict[str, Any]]:
        """List the models, with their versions and the one that is live."""
        return [
            {"name": name, "live_version": live, "versions": registry.versions(name)} for name, live in registry.live_versions().items()
        ]

    @routes.get("/models/{name}/versions")
    def list_versions(name: str) -> list[dict[str, Any]]:
        """Return all versions of a model with their manifests, oldest first."""
        return registry.describe(name, manifests=True)

    @routes.get("/models/{name}/versions/{version}")
    def get_version(name: str, version: str) -> dict[str, Any]:
        """Return a version of a model with its manifest."""
        manifest = registry.manifest(name, version)
        line = next(line for line in registry.describe(name) if line["version"] == version)
        return {**line, "manifest": manifest.model_dump(mode="json")}

    @routes.get("/models/{name}/sigma")
    def get_sigma(
        name: str, version: Annotated[str | None, Query(description="The live version where none is named.")] = None
    ) -> dict[str, Any]:
        """Return the norms of every layer before and after the fold, and the Lipschitz bound."""
        chosen = version or registry.live(name)
        if chosen is None:
            raise InvalidRequestError(f"model {name!r} has no live version: name one", param="version")
        return sigma_report(name, chosen, registry.manifest(name, chosen))

    @routes.get("/models/{name}/history")
    def get_history(name: str) -> list[dict[str, Any]]:
        """Return who made which version live when and why, oldest first."""
        return registry.history(name)


def _add_promotion(routes: APIRouter, registry: Registry, catalog: Catalog) -> None:
    # One act per model at a time: the pointer in the database and what this process serves move together.
    turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @routes.post("/models/{name}/promote")
    async def promote(request: Request, name: str, version: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """Make a version live; answered once it is. It is loaded beside the old one, so no request fails."""
        async with turns[name]:
            await catalog.prepare(name, version)
            previous = await asyncio.to_thread(registry.promote, name, version, why="asked for", who=_who(request))
            await catalog.go_live(name, version)
        return {"name": name, "live_version": version, "previous_version": previous}

    @routes.post("/models/{name}/rollback")
    async def rollback(request: Request, name: str) -> dict[str, Any]:
        """Make the version live that was so before; answered once it is."""
        async with turns[name]:
            target = await asyncio.to_thread(registry.previous, name)
            await catalog.prepare(name, target)
            version, previous = await asyncio.to_thread(registry.rollback, name, who=_who(request), expected=target)
            await catalog.go_live(name, version)
        return {"name": name, "live_version": version, "previous_version": previous}

    @routes.delete("/models/{name}/versions/{version}")
    async def delete_version(name: str, version: str) -> dict[str, Any]:
        """Remove a version that is neither live nor the parent of another."""
        async with turns[name]:
            if catalog.live_version(name) == version:
                raise ConflictError(f"{name}:{version} is live: promote another version first")
            await asyncio.to_thread(registry.delete, name, version)
            await catalog.forget(name, version)
        return {"name": name, "version": version, "deleted": True}


def _add_events(routes: APIRouter, jobs: Jobs) -> None:
    @routes.get("/jobs/{job_id}/events", response_class=StreamingResponse)
    async def stream_events(
        job_id: str, last: Annotated[str | None, Header(alias="Last-Event-ID", description="Id of the last event seen.")] = None
    ) -> StreamingResponse:
        """Stream the events of a job, those there are and then those that come, until the job has ended."""
        begin = await asyncio.to_thread(jobs.number_of, job_id, last)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(jobs, job_id, begin), media_type="text/event-stream", headers=headers)


async def _events(jobs: Jobs, job: str, seen: int) -> AsyncIterator[str]:
    """Yield events in the form of server-sent events; between them a comment, so that a proxy sees life."""
    silent = 0.0
    yield ": events of the job, oldest first\n\n"
    while True:
        events, ended = await asyncio.to_thread(jobs.events_since, job, seen)
        for number, event in events:
            seen = number
            yield f"id: {event['id']}\ndata: {json.dumps(event)}\n\n"
        if ended:
            return
        silent = 0.0 if events else silent + WATCH_SECONDS
        if silent >= KEEP_ALIVE_SECONDS:
            silent = 0.0
            yield ": the job goes on\n\n"
        await asyncio.sleep(WATCH_SECONDS)


def sigma_report(name: str, version: str, manifest: Manifest) -> dict[str, Any]:
    """Return what the manifest, which is bound to the served bytes, says of the norms."""
    return {
        "model": name,
        "version": version,
        "gradient_mode": manifest.gradient_mode,
        "layers": [layer.model_dump(mode="json") for layer in manifest.layers],
        "lipschitz": manifest.lipschitz.model_dump(mode="json"),
    }


def _who(request: Request) -> str:
    principal = getattr(request.state, "principal", None)
    return str(principal.id) if principal is not None else "local"
