"""`/v1`: files, fine-tuning jobs and models, in the shapes that OpenAI's client reads.

Every endpoint is a plain function, which runs on a thread: all of them wait for SQL or the disk.
"""

import json
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from app.api.download import Download
from app.errors import InvalidRequestError, NotFoundError
from app.jobs.request import Hyperparameters, JobRequest, Privacy, parse
from app.jobs.shape import ORGANIZATION
from app.jobs.store import Jobs
from app.registry.files import Files
from app.registry.paging import Page
from app.registry.registry import Registry

MAX_JOB_BYTES = 1 << 20
MOST_FILES = 1000

Key = Annotated[str | None, Header(alias="Idempotency-Key", description="The same key and request make one thing, however often sent.")]
After = Annotated[str | None, Query(description="Id of the last item seen; it is not listed again.")]
Limit = Annotated[int, Query(ge=1, le=100)]
JobId = str


def router(files: Files, jobs: Jobs, registry: Registry) -> APIRouter:
    """Return the routes of files, jobs and models."""
    routes = APIRouter(prefix="/v1")
    _add_files(routes, files)
    _add_jobs(routes, jobs)
    _add_models(routes, registry)
    return routes


async def _one_file(request: Request) -> None:
    """Refuse a form with more in it than is taken, or with a file that has no name."""
    form = await request.form()
    unknown = sorted(set(form) - {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"})
    if unknown:
        raise InvalidRequestError(
            f"unknown field {unknown[0][:80]!r}: an upload takes file, purpose and expires_after", param=unknown[0][:80]
        )
    given = form.getlist("file")
    if len(given) > 1:
        raise InvalidRequestError("an upload is one file; send the others by themselves", param="file")
    if any(isinstance(one, str) for one in given):
        raise InvalidRequestError("file must be an upload with a file name, not a text", param="file")


def _add_files(routes: APIRouter, files: Files) -> None:
    @routes.post("/files", tags=["files"], dependencies=[Depends(_one_file)])
    def create_file(
        file: Annotated[UploadFile, File(description="A data set: .jsonl, .csv, .npz or .parquet.")],
        purpose: Annotated[str, Form(description="fine-tune")],
        anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]", description="From when it is kept.")] = None,
        seconds: Annotated[
            int | None, Form(alias="expires_after[seconds]", ge=3600, le=2_592_000, description="How long it is kept.")
        ] = None,
        key: Key = None,
    ) -> dict[str, Any]:
        """Upload a data set. It is judged when a job reads it."""
        if (anchor is None) != (seconds is None):
            raise InvalidRequestError("expires_after needs both anchor and seconds", param="expires_after")
        return files.create(file.file, file.filename or "", purpose, seconds=seconds, key=key)

    @routes.get("/files", tags=["files"])
    def list_files(
        after: After = None,
        limit: Annotated[
            int, Query(ge=1, le=10_000, description=f"At most {MOST_FILES} come at once; `has_more` tells of others.")
        ] = 10_000,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """List the uploads."""
        return _listed(files.list(after=after, limit=min(limit, MOST_FILES), order=order, purpose=purpose))

    @routes.get("/files/{file_id}", tags=["files"])
    def get_file(file_id: str) -> dict[str, Any]:
        """Say what is known of an upload."""
        return files.get(file_id)

    @routes.get("/files/{file_id}/content", tags=["files"], response_class=StreamingResponse)
    def get_file_content(file_id: str) -> StreamingResponse:
        """Return the bytes of an upload."""
        return Download(files.open(file_id))

    @routes.delete("/files/{file_id}", tags=["files"])
    def delete_file(file_id: str) -> dict[str, Any]:
        """Forget an upload that no open job needs."""
        files.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}


async def _job_request(request: Request) -> JobRequest:
    """Return the job that the body asks for; the content type never decides."""
    body = await request.body()
    if len(body) > MAX_JOB_BYTES:
        raise InvalidRequestError(f"a job is described in at most {MAX_JOB_BYTES} bytes")
    try:
        return parse(json.loads(body, parse_constant=_refuse))
    except (ValueError, RecursionError):
        raise InvalidRequestError("the body is not valid JSON") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _add_jobs(routes: APIRouter, jobs: Jobs) -> None:  # a table of routes, each of a line
    path = "/fine_tuning/jobs"

    @routes.post(path, tags=["fine-tuning"], openapi_extra={"requestBody": _job_body()})
    def create_job(request: Annotated[JobRequest, Depends(_job_request)], key: Key = None) -> dict[str, Any]:
        """Queue a fine-tuning job."""
        return jobs.create(request, key=key)

    @routes.get(path, tags=["fine-tuning"])
    def list_jobs(request: Request, after: After = None, limit: Limit = 20) -> dict[str, Any]:
        """List the jobs, newest first; `metadata[name]=value` and `metadata=null` choose among them."""
        query = request.query_params
        wanted = {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[") and name.endswith("]")}
        return _listed(jobs.list(after=after, limit=limit, metadata=wanted, without_metadata=query.get("metadata") == "null"))

    @routes.get(path + "/{job_id}", tags=["fine-tuning"])
    def get_job(job_id: JobId) -> dict[str, Any]:
        """Return a job."""
        return jobs.get(job_id)

    @routes.post(path + "/{job_id}/cancel", tags=["fine-tuning"])
    def cancel_job(job_id: JobId) -> dict[str, Any]:
        """Cancel a job, at once. What it has learned is lost; its events stay."""
        return jobs.cancel(job_id)

    @routes.post(path + "/{job_id}/pause", tags=["fine-tuning"])
    def pause_job(job_id: JobId) -> dict[str, Any]:
        """Hold a job back: it keeps what it has learned, and waits as `queued` with `paused: true`."""
        return jobs.pause(job_id)

    @routes.post(path + "/{job_id}/resume", tags=["fine-tuning"])
    def resume_job(job_id: JobId) -> dict[str, Any]:
        """Let a paused job go on, as if it had never been held back."""
        return jobs.resume(job_id)

    @routes.get(path + "/{job_id}/events", tags=["fine-tuning"])
    def list_events(job_id: JobId, after: After = None, limit: Limit = 20) -> dict[str, Any]:
        """List what happened to a job, newest first."""
        return _listed(jobs.events(job_id, after=after, limit=limit))

    @routes.get(path + "/{job_id}/checkpoints", tags=["fine-tuning"])
    def list_checkpoints(job_id: JobId, after: After = None, limit: Limit = 10) -> dict[str, Any]:
        """List the checkpoints of a job, newest first."""
        return _listed(jobs.checkpoints(job_id, after=after, limit=limit))


def _add_models(routes: APIRouter, registry: Registry) -> None:
    @routes.get("/models", tags=["models"], response_model=dict[str, Any])
    def list_models() -> Response:
        """List every version of every model as `name:version`, and again as `name@alias` where it has one."""
        aliases = registry.aliases()
        found = []
        for name, versions in registry.everywhere().items():
            found += [_model(f"{name}:{version}", created) for version, created in versions.items()]
            named = aliases.get(name, {}).items()
            found += [_model(f"{name}@{alias}", versions[version]) for alias, version in named if version in versions]
        return Response(orjson.dumps({"object": "list", "data": found}), media_type="application/json")

    @routes.get("/models/{model}", tags=["models"])
    def get_model(model: str) -> dict[str, Any]:
        """Return one version of a model: the one named by number or alias, or else the live one."""
        name, version = registry.resolve(model)
        if version is None:
            raise NotFoundError(f"model {name!r} has no live version", param="model")
        return _model(model, registry.line(name, version)["created"])


def _model(identity: str, created: int) -> dict[str, Any]:
    return {"id": identity, "object": "model", "created": created, "owned_by": ORGANIZATION}


def _listed(page: Page) -> dict[str, Any]:
    items = page.items
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": items, "has_more": page.has_more, **ends}


def _job_body() -> dict[str, Any]:
    """Return the request body as OpenAPI text: hyperparameters where OpenAI's client puts them."""
    fields = JobRequest.model_json_schema()
    fields.pop("$defs", None)
    hyperparameters = Hyperparameters.model_json_schema()
    hyperparameters.pop("$defs", None)  # a reference into it would point nowhere from here
    hyperparameters["properties"]["privacy"] |= {"anyOf": [Privacy.model_json_schema(), {"type": "null"}]}
    supervised = {"type": "object", "properties": {"hyperparameters": hyperparameters}}
    method = {"type": "object", "properties": {"type": {"const": "supervised"}, "supervised": supervised}}
    fields["properties"] |= {"hyperparameters": hyperparameters, "method": method, "seed": {"type": "integer", "minimum": 0}}
    return {"required": True, "content": {"application/json": {"schema": fields}}}
