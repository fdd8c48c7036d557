"""`/admin`: what is stored, what is live, the sigma of every layer, and the events of a job as they happen."""

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, BinaryIO, Literal, cast

import orjson
from fastapi import APIRouter, Body, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from app.api.download import Download
from app.api.imports import Imports
from app.api.promotion import Promotion
from app.errors import InvalidRequestError
from app.jobs.watch import News, Watch
from app.registry.archive import SUFFIX, pack, unpack
from app.registry.lineage import lineage
from app.registry.registry import Registry
from app.registry.shelf import Shelf, Stored
from app.registry.store import CHUNK
from export.bundle import Manifest

Key = Annotated[str | None, Header(alias="Idempotency-Key", description="The same key and request act once, however often sent.")]
Limit = Annotated[int, Query(ge=1, le=100)]
MAX_BUNDLE_BYTES = 2 * 2**30

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def router(registry: Registry, promotion: Promotion, imports: Imports, watch: Watch) -> APIRouter:
    """Return the routes of the registry, of imports, and of a job's live events."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    _add_reading(routes, registry, promotion)
    _add_promotion(routes, promotion)
    _add_imports(routes, imports)
    _add_events(routes, watch)
    return routes


def _add_reading(routes: APIRouter, registry: Registry, promotion: Promotion) -> None:
    @routes.get("/models")
    def list_models() -> list[dict[str, Any]]:
        """List the models, with the device that the live version runs on here; ``problem``: why that one is not served."""
        problems, devices, aliases, live = promotion.problems(), promotion.devices(), registry.aliases(), registry.live_versions()
        return [
            {"name": name, "live_version": live.get(name), "versions": list(versions)}
            | {"aliases": aliases.get(name, {}), "device": devices.get(name)}
            | ({"problem": problems[name]} if name in problems else {})
            for name, versions in registry.everywhere().items()
        ]

    @routes.get("/models/{name}/versions", response_model=list[dict[str, Any]])
    def list_versions(
        request: Request,
        name: str,
        after: Annotated[int | None, Query(ge=1, description="The last version seen; it is not listed again.")] = None,
        limit: Limit = 100,
        order: Literal["asc", "desc"] = "asc",
        *,
        manifests: Annotated[bool, Query(description="Whether each comes with its whole manifest.")] = True,
    ) -> Response:
        """Return the versions of a model with their manifests, oldest first; the header `Link` names the next page where there is one."""
        found = registry.describe(name, manifests=manifests, after=after, limit=limit + 1, newest_first=order == "desc")
        return _page(request, found, limit, "version")

    @routes.get("/models/{name}/versions/{version}")
    def get_version(name: str, version: str) -> dict[str, Any]:
        """Return a version of a model with its manifest."""
        manifest = registry.manifest(name, version)
        return {**registry.line(name, version), "manifest": manifest.model_dump(mode="json"), "lineage": lineage(registry, name, version)}

    @routes.get("/models/{name}/versions/{version}/bundle", response_class=Response)
    def get_bundle(name: str, version: str) -> Response:
        """Return a version's bundle as one file, a zip archive, which an import takes."""
        out = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - the download closes it
        try:
            pack(out, registry.manifest(name, version), registry.opener(name, version))
        except BaseException:
            out.close()
            raise
        return Download(out, media_type="application/zip", filename=f"{name}-{version}{SUFFIX}")

    @routes.get("/resolve")
    def resolve(name: Annotated[str, Query(description="NAME:VERSION, NAME@ALIAS, or NAME for the live version.")]) -> dict[str, Any]:
        """Say which model and version a name means."""
        model, version = registry.resolve(name)
        return {"model": model, "version": version}

    @routes.get("/models/{name}/sigma")
    def get_sigma(
        name: str, version: Annotated[str | None, Query(description="The live version where none is named.")] = None
    ) -> dict[str, Any]:
        """Return the norms of every layer before and after the fold, and the Lipschitz bound."""
        chosen = version or registry.live(name)
        if chosen is None:
            raise InvalidRequestError(f"model {name!r} has no live version: name one", param="version")
        return sigma_report(name, chosen, registry.manifest(name, chosen))

    @routes.get("/models/{name}/history", response_model=list[dict[str, Any]])
    def get_history(
        request: Request,
        name: str,
        after: Annotated[int, Query(ge=0, description="The number of the last line seen; it is not listed again.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    ) -> Response:
        """Return who made which version live when and why, oldest first; the header `Link` names the next page where there is one."""
        return _page(request, registry.history(name, after=after, limit=limit + 1), limit, "number")


def _page(request: Request, found: list[dict[str, Any]], limit: int, cursor: str) -> Response:
    """Return the first ``limit`` of ``found``, and where there are more, the address of those after them."""
    headers = {}
    if len(found) > limit:
        following = request.url.include_query_params(after=found[limit - 1][cursor], limit=limit)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    # Written here: FastAPI would walk through every value of every manifest.
    return Response(orjson.dumps(found[:limit]), media_type="application/json", headers=headers)


def _add_promotion(routes: APIRouter, promotion: Promotion) -> None:
    @routes.post("/models/{name}/promote")
    async def promote(request: Request, name: str, version: Annotated[str, Body(embed=True)], key: Key = None) -> dict[str, Any]:
        """Make a version live; answered once it is. It is loaded beside the old one, so no request fails."""
        return await promotion.promote(name, version, who=_who(request), key=key)

    @routes.post("/models/{name}/rollback")
    async def rollback(request: Request, name: str, key: Key = None) -> dict[str, Any]:
        """Make the version live that was so before; answered once it is."""
        return await promotion.rollback(name, who=_who(request), key=key)

    @routes.put("/models/{name}/aliases/{alias}")
    async def set_alias(request: Request, name: str, alias: str, version: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """Point `name@alias` at a version; answered once every process serves it so. It is loaded first, so no request fails."""
        return await promotion.name(name, alias, version, who=_who(request))

    @routes.delete("/models/{name}/aliases/{alias}")
    async def delete_alias(name: str, alias: str) -> dict[str, Any]:
        """Forget an alias; the version stays."""
        return await promotion.unname(name, alias)

    @routes.delete("/models/{name}/versions/{version}")
    async def delete_version(name: str, version: str) -> dict[str, Any]:
        """Remove a version that is neither live nor the parent of another."""
        return await promotion.delete(name, version)


def _add_imports(routes: APIRouter, imports: Imports) -> None:
    @routes.post("/models")
    async def import_model(
        request: Request,
        response: Response,
        *,
        name: Annotated[str, Form(description="Name of the model that it becomes the next version of.")],
        file: Annotated[list[UploadFile], File(description="One .onnx file, or a bundle: every file of it, or one .zip.")],
        wait: Annotated[float, Query(ge=0, le=600, description="Seconds to wait for the end before 202 is answered.")] = 60.0,
        key: Key = None,
    ) -> dict[str, Any]:
        """Have a worker judge a model, and publish it. The first version of a model goes live; 202 while it is still being judged."""
        unknown = sorted(set(await request.form()) - {"name", "file"})
        if unknown:
            raise InvalidRequestError(
                f"unknown field {unknown[0][:80]!r}: an import takes name and file, and nothing is fetched from elsewhere"
            )
        files = await asyncio.to_thread(_stored, imports.blobs, file)
        found = await imports.submit(name, files, wait=wait, key=key)
        response.status_code = 200 if found["finished_at"] is not None else 202
        return found

    @routes.get("/imports/{import_id}")
    def get_import(import_id: str) -> dict[str, Any]:
        """Say how far an import is."""
        return imports.admissions.get(import_id)


def _stored(blobs: Shelf, uploads: list[UploadFile]) -> dict[str, Stored]:
    """Store the uploads and return them by name."""
    if len(uploads) == 1 and (uploads[0].filename or "").endswith(SUFFIX):
        return {name: blobs.put(content) for name, content in unpack(uploads[0].file, limit=MAX_BUNDLE_BYTES)}
    stored: dict[str, Stored] = {}
    for upload in uploads:
        name = upload.filename or ""
        if not _PLAIN.fullmatch(name) or name in stored:
            raise InvalidRequestError(f"{name[:80]!r} is no plain file name, or comes twice", param="file")
        stored[name] = blobs.put(iter(partial(upload.file.read, CHUNK), b""))
    return stored


def _add_events(routes: APIRouter, watch: Watch) -> None:
    @routes.get("/jobs/{job_id}/events", response_class=StreamingResponse)
    async def stream_events(
        job_id: str,
        after: Annotated[str | None, Query(description="Id of the last event seen; it is not told again.")] = None,
        last: Annotated[str | None, Header(alias="Last-Event-ID", description="The same, as a browser says it that comes back.")] = None,
    ) -> Response:
        """Stream the events of a job, those there are and then those that come, until it has ended; 204 where that was seen already."""
        number, first = await watch.begin(job_id, last or after)
        if first.ended and not first.events:
            return Response(status_code=204)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(watch, job_id, number, first), media_type="text/event-stream", headers=headers)


async def _events(watch: Watch, job: str, number: int, first: News) -> AsyncIterator[str]:
    """Yield events in the form of server-sent events; between them a comment, so that a proxy sees life."""
    yield ": events of the job, oldest first\n\n" + _told(first)
    if first.ended:
        return
    async with aclosing(watch.follow(job, number)) as coming:
        async for news in coming:
            yield _told(news) or ": the job goes on\n\n"


def _told(news: News) -> str:
    return "".join(f"id: {event['id']}\ndata: {json.dumps(event)}\n\n" for event in news.events)


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
