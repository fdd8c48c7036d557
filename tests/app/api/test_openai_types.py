"""Every answer of `/v1`, byte by byte, held strictly to the types of OpenAI's client: no field missing, none of another type."""

from typing import Any

import pytest
from openai.pagination import SyncCursorPage, SyncPage
from openai.types import FileDeleted, FileObject, Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import BaseModel, ValidationError

JOBS = "/v1/fine_tuning/jobs"


def strictly(kind: type[BaseModel], answer: Any) -> Any:
    """Hold the bytes of an answer to a type of the client, which its own parser only leans on; and return them as JSON."""
    assert answer.status_code == 200, answer.text
    kind.model_validate_json(answer.content, strict=True)
    missing = {name for name, field in kind.model_fields.items() if field.is_required()} - answer.json().keys()
    assert not missing
    return answer.json()


@pytest.fixture
def file(service: Any) -> str:
    answer = service.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("data.csv", b"a,b,c,target\n1,2,3,0\n")})
    return str(strictly(FileObject, answer)["id"])


@pytest.fixture
def job(service: Any, file: str) -> str:
    answer = service.http.post(JOBS, json={"model": "affine", "training_file": file})
    return str(strictly(FineTuningJob, answer)["id"])


def test_files_are_the_clients_files_until_they_are_deleted(service: Any, file: str) -> None:
    strictly(FileObject, service.http.get(f"/v1/files/{file}"))
    page = strictly(SyncCursorPage[FileObject], service.http.get("/v1/files"))
    assert (page["object"], page["has_more"]) == ("list", False)
    assert strictly(FileDeleted, service.http.delete(f"/v1/files/{file}")) == {"id": file, "object": "file", "deleted": True}


def test_a_job_is_the_clients_job_whatever_happens_to_it(service: Any, job: str) -> None:
    for act in ("pause", "resume"):
        strictly(FineTuningJob, service.http.post(f"{JOBS}/{job}/{act}"))
    made = service.attempt()
    made.accept("The data are good.")
    strictly(FineTuningJob, service.http.get(f"{JOBS}/{job}"))
    made.start("Training starts.")
    made.progress("Step 1 of 2", {"loss": 0.5}, step=1, steps=2, seconds_left=3)
    strictly(FineTuningJob, service.http.get(f"{JOBS}/{job}"))
    made.fail("bad_data", "line 3: no number", param="training_file")
    assert strictly(FineTuningJob, service.http.get(f"{JOBS}/{job}"))["status"] == "failed"
    page = strictly(SyncCursorPage[FineTuningJob], service.http.get(JOBS))
    assert (page["object"], page["has_more"]) == ("list", False)


def test_a_cancelled_and_a_successful_job_are_the_clients_too(service: Any, file: str, job: str) -> None:
    assert strictly(FineTuningJob, service.http.post(f"{JOBS}/{job}/cancel"))["status"] == "cancelled"
    other = service.http.post(JOBS, json={"model": "affine", "training_file": file, "metadata": {"a": "b"}, "seed": 3, "suffix": "x"})
    made = service.attempt()
    made.accept("good")
    made.start("go")
    made.succeed("done", fine_tuned_model="affine:4")
    assert strictly(FineTuningJob, service.http.get(f"{JOBS}/{other.json()['id']}"))["fine_tuned_model"] == "affine:4"


def test_events_and_checkpoints_are_the_clients(service: Any, job: str) -> None:
    made = service.attempt()
    made.accept("good")
    made.start("go")
    made.progress("Step 1 of 2", {"loss": 0.5, "sigma": {"0": 1.5}}, step=1, steps=2, seconds_left=3)
    made.checkpoint(service.registry.blobs.put(b"0"), step=1, metrics={"train_loss": 0.5, "valid_loss": 0.25})
    events = strictly(SyncCursorPage[FineTuningJobEvent], service.http.get(f"{JOBS}/{job}/events"))
    assert {event["type"] for event in events["data"]} == {"message", "metrics"}
    page = strictly(SyncCursorPage[FineTuningJobCheckpoint], service.http.get(f"{JOBS}/{job}/checkpoints"))
    (checkpoint,) = page["data"]
    assert checkpoint["metrics"] == {"step": 1, "train_loss": 0.5, "valid_loss": 0.25}


def test_models_are_the_clients(service: Any) -> None:
    strictly(SyncPage[Model], service.http.get("/v1/models"))
    strictly(Model, service.http.get("/v1/models/affine:2"))


def test_a_missing_field_would_be_seen(service: Any, job: str) -> None:
    answer = service.http.get(f"{JOBS}/{job}").json()
    for name in (name for name, field in FineTuningJob.model_fields.items() if field.is_required()):
        with pytest.raises(ValidationError, match=name):
            FineTuningJob.model_validate({key: value for key, value in answer.items() if key != name}, strict=True)


def test_every_error_of_the_jobs_has_all_four_fields_and_a_sentence(service: Any, file: str, job: str) -> None:
    http = service.http
    answers = [
        (404, http.get(f"{JOBS}/none")),
        (404, http.get("/v1/nothing")),
        (405, http.put(JOBS)),
        (400, http.get(JOBS, params={"limit": 101})),
        (400, http.get(JOBS, params={"after": "none"})),
        (400, http.get(f"{JOBS}/{job}/events", params={"after": "none"})),
        (400, http.post(JOBS, json={"model": "affine"})),
        (400, http.post(JOBS, json={"model": "affine", "training_file": file, "surprise": 1})),
        (400, http.delete(f"/v1/files/{file}")),
        (400, http.post(f"{JOBS}/{job}/resume")),
    ]
    for status, answer in answers:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert len(error["message"].split()) >= 4
        assert error["code"]
        assert error["type"]


def test_the_cursor_of_one_list_means_nothing_in_another(service: Any, file: str, job: str) -> None:
    other = service.http.post(JOBS, json={"model": "affine", "training_file": file}).json()["id"]
    event = service.http.get(f"{JOBS}/{other}/events").json()["data"][0]["id"]
    assert service.http.get(f"{JOBS}/{job}/events", params={"after": event}).status_code == 400
