"""OpenAI's stock client against the real service over a real socket, its answers held to its own types without leniency."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import FileObject, Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from sqlalchemy import insert, update

from app.api.v1 import MOST_FILES
from app.db import files

CSV = b"a,b,c,target\n1,2,3,0\n"


def upload(service: Any) -> FileObject:
    made: FileObject = service.openai.files.create(file=("data.csv", CSV), purpose="fine-tune")
    return made


def create(service: Any, **fields: Any) -> FineTuningJob:
    made: FineTuningJob = service.openai.fine_tuning.jobs.create(model="affine", training_file=upload(service).id, **fields)
    return made


def strictly(kind: type[Any], value: Any) -> None:
    """Hold an answer to the client's own type, which its parser only leans on."""
    kind.model_validate(value.model_dump(), strict=True)


def test_files_go_there_and_back(service: Any) -> None:
    made = upload(service)
    strictly(FileObject, made)
    assert service.openai.files.retrieve(made.id) == made
    assert service.openai.files.content(made.id).read() == CSV
    assert [file.id for file in service.openai.files.list(purpose="fine-tune")] == [made.id]
    assert service.openai.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        service.openai.files.retrieve(made.id)


def test_a_file_whose_bytes_have_changed_is_not_given_out(service: Any) -> None:
    made = upload(service)
    (digest,) = [digest for digest, size in service.registry.blobs.store.all() if size == len(CSV)]
    service.registry.blobs.store.path(digest).write_bytes(CSV[::-1])
    with pytest.raises(openai.InternalServerError) as refused:
        service.openai.files.content(made.id)
    assert refused.value.status_code == 503
    assert "has changed on disk" in str(refused.value)


def test_a_download_that_nobody_reads_to_its_end_is_closed(service: Any, tmp_path: Path) -> None:
    content = os.urandom(16 << 20)
    with service.registry.blobs.store.draft([content]) as draft:
        service.registry.blobs.store.settle(draft)
    made = upload(service)
    with service.registry.database.begin() as connection:
        connection.execute(update(files).values(digest=draft.digest))

    def opened() -> int:
        links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(link.is_symlink() and draft.digest in str(link.readlink()) for link in links)

    little = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)])  # not all of it under way at once
    with (
        httpx.Client(base_url=service.http.base_url, transport=little) as reader,
        reader.stream("GET", f"/v1/files/{made.id}/content") as answer,
    ):
        pieces = answer.iter_raw()  # given up, it would hang up
        assert len(next(pieces)) < len(content)
        assert opened() == 1
    for _ in range(1000):
        if not opened():
            return
        time.sleep(0.01)
    raise AssertionError("it is open still")


def test_so_many_files_come_at_once_and_the_client_asks_for_the_others(service: Any) -> None:
    row = {"created_at": 1, "filename": "rows.npz", "purpose": "fine-tune", "bytes": 1, "digest": "0" * 64}
    with service.registry.database.begin() as connection:
        connection.execute(insert(files), [{"id": f"file-{number}", **row} for number in range(MOST_FILES + 5)])
    for query in ({}, {"limit": 10_000}):
        page = service.openai.files.list(**query)
        assert (len(page.data), page.has_more) == (MOST_FILES, True)
    assert [file.id for file in page] == [f"file-{number}" for number in reversed(range(MOST_FILES + 5))]


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ([("file", ("a.csv", CSV)), ("file", ("b.csv", CSV))], "one file"),
        ([("file", ("a.csv", CSV)), ("url", (None, b"http://elsewhere"))], "unknown field 'url'"),
        ([("file", (None, b"a text"))], "with a file name"),
    ],
)
def test_a_form_with_more_in_it_than_one_named_file_is_refused(service: Any, form: Any, sentence: str) -> None:
    refused = service.http.post("/v1/files", data={"purpose": "fine-tune"}, files=form)
    assert refused.status_code == 400
    assert sentence in refused.json()["error"]["message"]
    assert not list(service.openai.files.list())


def test_a_file_goes_when_its_time_is_over(service: Any) -> None:
    made = service.openai.files.create(file=("data.csv", CSV), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    strictly(FileObject, made)
    assert made.expires_at == made.created_at + 3600
    for wrong in ({"anchor": "created_at", "seconds": 1}, {"anchor": "now", "seconds": 3600}, {"seconds": 3600}):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            service.openai.files.create(file=("data.csv", CSV), purpose="fine-tune", expires_after=wrong)


def test_every_file_is_seen_once_through_the_clients_paging(service: Any) -> None:
    made = [upload(service).id for _ in range(5)]
    assert [file.id for file in service.openai.files.list(limit=2)] == made[::-1]
    assert [file.id for file in service.openai.files.list(limit=2, order="asc")] == made


@pytest.mark.parametrize(
    ("act", "kind", "param"),
    [
        (lambda c: c.files.create(file=("data.pkl", b"x"), purpose="fine-tune"), openai.BadRequestError, "file"),
        (lambda c: c.files.create(file=("data.csv", b"x"), purpose="batch"), openai.BadRequestError, "purpose"),
        (lambda c: c.files.create(file=("data.csv", b"x" * 6000), purpose="fine-tune"), openai.APIStatusError, "file"),
        (lambda c: c.files.retrieve("file-none"), openai.NotFoundError, "file_id"),
        (lambda c: c.files.list(after="file-none"), openai.BadRequestError, "after"),
        (lambda c: c.fine_tuning.jobs.create(model="affine", training_file="file-none"), openai.BadRequestError, "training_file"),
        (lambda c: c.fine_tuning.jobs.create(model="none", training_file="file-none"), openai.BadRequestError, "training_file"),
        (lambda c: c.fine_tuning.jobs.retrieve("ftjob-none"), openai.NotFoundError, "fine_tuning_job_id"),
        (lambda c: c.fine_tuning.jobs.cancel("ftjob-none"), openai.NotFoundError, "fine_tuning_job_id"),
        (lambda c: c.fine_tuning.jobs.list(limit=0), openai.BadRequestError, "limit"),
        (lambda c: c.models.retrieve("none"), openai.NotFoundError, None),
    ],
)
def test_errors_have_the_shape_and_class_that_the_client_knows(
    service: Any, act: Callable[[OpenAI], Any], kind: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        act(service.openai)
    assert caught.value.param == param
    assert caught.value.code
    assert caught.value.type == "invalid_request_error"


def test_a_job_has_every_field_of_the_clients_type_from_its_first_answer_to_its_last(service: Any) -> None:
    job = create(service, seed=7, suffix="mine", metadata={"team": "a"}, method={"type": "supervised"})
    strictly(FineTuningJob, job)
    assert (job.status, job.seed, job.metadata) == ("validating_files", 7, {"team": "a"})
    made = service.attempt()
    made.accept("The data are good.")
    made.start("Training starts.")
    made.progress("Step 1 of 2", {"loss": 0.5}, step=1, steps=2, seconds_left=3)
    made.checkpoint(service.registry.blobs.put(b"0"), step=1, metrics={"train_loss": 0.5})
    running = service.openai.fine_tuning.jobs.retrieve(job.id)
    strictly(FineTuningJob, running)
    assert running.status == "running"
    assert running.estimated_finish is not None
    (checkpoint,) = service.openai.fine_tuning.jobs.checkpoints.list(job.id)
    strictly(FineTuningJobCheckpoint, checkpoint)
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (1, 0.5)
    made.fail("bad_data", "line 3: no number", param="training_file")
    failed = service.openai.fine_tuning.jobs.retrieve(job.id)
    strictly(FineTuningJob, failed)
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("bad_data", "training_file")
    events = list(service.openai.fine_tuning.jobs.list_events(job.id, limit=2))
    for event in events:
        strictly(FineTuningJobEvent, event)
    assert len(events) == len({event.id for event in events}) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"gradient_mode": "simplified"}}}},
        {"hyperparameters": {"gradient_mode": "simplified"}},
        {"extra_body": {"gradient_mode": "simplified"}},
    ],
)
def test_gradient_mode_comes_back_in_both_places_wherever_it_was_said(service: Any, fields: Any) -> None:
    job = create(service, **fields)
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.model_extra["gradient_mode"] == "simplified"
    assert job.hyperparameters.model_extra["gradient_mode"] == "simplified"


def test_a_wrong_gradient_mode_is_answered_with_the_right_ones(service: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="full, simplified") as caught:
        create(service, hyperparameters={"gradient_mode": "best"})
    assert caught.value.param == "method.supervised.hyperparameters.gradient_mode"


def test_state_conflicts_are_400_since_the_client_sends_a_409_again(service: Any) -> None:
    jobs = service.openai.fine_tuning.jobs
    job = create(service)
    assert jobs.pause(job.id).model_extra["paused"] is True
    with pytest.raises(openai.BadRequestError):
        jobs.pause(job.id)
    with pytest.raises(openai.BadRequestError, match="needs"):
        service.openai.files.delete(job.training_file)
    assert jobs.resume(job.id).status == "validating_files"
    assert jobs.cancel(job.id).status == "cancelled"
    for act in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError):
            act(job.id)
    assert service.openai.files.delete(job.training_file).deleted


def test_jobs_are_listed_newest_first_and_chosen_by_metadata(service: Any) -> None:
    made = [create(service, metadata={"n": str(n)}).id for n in range(4)]
    plain = create(service).id
    jobs = service.openai.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2)] == [plain, *made[::-1]]
    assert [job.id for job in jobs.list(metadata={"n": "2"})] == [made[2]]
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [plain]


def test_past_so_many_open_jobs_the_answer_is_429_until_one_has_ended(service: Any) -> None:
    jobs, file = service.openai.fine_tuning.jobs, upload(service).id
    made = [jobs.create(model="affine", training_file=file).id for _ in range(10)]
    with pytest.raises(openai.RateLimitError, match="10 jobs wait or run already") as caught:
        jobs.create(model="affine", training_file=file)
    assert caught.value.response.headers["Retry-After"]
    jobs.cancel(made[3])
    assert jobs.create(model="affine", training_file=file).status == "validating_files"


def test_an_idempotency_key_makes_one_of_each(service: Any) -> None:
    key = {"Idempotency-Key": "k1"}
    files = {service.openai.files.create(file=("data.csv", CSV), purpose="fine-tune", extra_headers=key).id for _ in range(2)}
    assert len(files) == 1
    (file,) = files
    jobs = {service.openai.fine_tuning.jobs.create(model="affine", training_file=file, extra_headers=key).id for _ in range(2)}
    assert len(jobs) == 1
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        service.openai.fine_tuning.jobs.create(model="affine:2", training_file=file, extra_headers=key)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model":"affine","training_file":"f","seed":NaN}', b"[" * 100_000, b"\xff", b'{"model":"\\ud800"}'],
)
def test_a_body_that_is_no_job_is_400_whatever_its_content_type(service: Any, body: bytes) -> None:
    for kind in ({}, {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}):
        answer = service.http.post("/v1/fine_tuning/jobs", content=body, headers=kind)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_models_are_listed_as_versions_and_a_bare_name_is_the_live_one(service: Any) -> None:
    found = list(service.openai.models.list())
    assert [model.id for model in found] == ["affine:1", "affine:2", "affine:3"]
    strictly(Model, found[0])
    assert service.openai.models.retrieve("affine").id == "affine"
    assert service.openai.models.retrieve("affine:2").id == "affine:2"


def test_a_job_and_its_file_are_in_the_openapi_text(service: Any) -> None:
    text = service.http.get("/openapi.json").json()
    body = text["paths"]["/v1/fine_tuning/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["model", "training_file"]
    known = body["properties"]["method"]["properties"]["supervised"]["properties"]["hyperparameters"]["properties"]
    assert known == body["properties"]["hyperparameters"]["properties"]
    for name, field in known.items():
        assert "default" in field or {"type": "null"} in field["anyOf"], name  # FastAPI leaves out a default of null
        assert field["description"].endswith((".", "`")), name
        if field.get("type") in {"integer", "number"}:
            assert field.keys() & {"minimum", "exclusiveMinimum"}, name
    assert (known["n_epochs"]["default"], known["n_epochs"]["minimum"], known["n_epochs"]["maximum"]) == (20, 1, 10_000)
    assert known["gradient_mode"]["anyOf"][0]["enum"] == ["full", "simplified"]
    assert known["learning_rate"]["default"] == 0.003
    assert body["properties"]["dry_run"]["default"] is False
