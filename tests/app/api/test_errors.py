import errno
import json

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from app import errors as domain
from app.api import errors
from app.jobs.machine import IllegalTransitionError


class Body(BaseModel):
    count: int


def application() -> FastAPI:
    api = FastAPI()
    errors.install(api)

    @api.post("/v1/things")
    @api.post("/admin/things")
    def create(body: Body) -> None:
        raise domain.ConflictError("it is running", param="job")

    return api


def answer(method: str, path: str, **options: object) -> tuple[int, dict, dict]:
    response = TestClient(application(), raise_server_exceptions=False).request(method, path, **options)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json(), dict(response.headers)


def test_every_error_class_has_a_status() -> None:
    kinds = [kind for kind in vars(domain).values() if isinstance(kind, type) and issubclass(kind, domain.SpecnormError)]
    assert set(errors.STATUS) == set(kinds)


def test_a_subclass_has_the_status_of_its_nearest_listed_class() -> None:
    assert errors.status_of(IllegalTransitionError.__new__(IllegalTransitionError)) == 409


def test_a_conflict_is_409_but_400_where_the_stock_client_would_send_it_again() -> None:
    assert errors.status_of(domain.ConflictError(), "/admin/models") == 409
    assert errors.status_of(domain.ConflictError(), "/v1/fine_tuning/jobs") == 400
    assert errors.status_of(domain.ConflictError(), "/v10/x") == 409


def test_an_error_under_v1_is_openais_object() -> None:
    status, body, _ = answer("POST", "/v1/things", json={"count": 1})
    assert status == 400
    assert body == {"error": {"message": "it is running", "type": "invalid_request_error", "param": "job", "code": "conflict"}}


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_body_that_is_not_said_to_be_json_is_refused_for_that(kind: str) -> None:
    status, body, _ = answer("POST", "/admin/things", content=b'{"count": 1}', headers={"Content-Type": kind})
    assert (status, body) == (400, {"error": "The body is read where its Content-Type is application/json."})


def test_an_error_elsewhere_is_one_string() -> None:
    status, body, _ = answer("POST", "/admin/things", json={"count": 1})
    assert (status, body) == (409, {"error": "it is running"})


def test_a_wrong_parameter_is_a_sentence_that_names_it_and_does_not_echo_its_value() -> None:
    status, body, _ = answer("POST", "/v1/things", json={"count": "secret"})
    assert status == 400
    assert body["error"]["param"] == "count"
    assert "secret" not in json.dumps(body)


def test_malformed_json_is_400() -> None:
    status, body, _ = answer("POST", "/admin/things", content=b"{", headers={"content-type": "application/json"})
    assert (status, body) == (400, {"error": "The body is not valid JSON."})


def test_an_unknown_path_is_404_in_the_shape_of_its_prefix() -> None:
    assert answer("GET", "/nowhere")[:2] == (404, {"error": "There is no such route."})
    status, body, _ = answer("GET", "/v1/nowhere")
    assert (status, body["error"]["code"]) == (404, "not_found")


def test_a_wrong_method_keeps_its_allow_header() -> None:
    status, body, headers = answer("DELETE", "/admin/things")
    assert (status, headers["allow"]) == (405, "POST")
    assert isinstance(body["error"], str)


@pytest.mark.parametrize(("error", "status"), [(domain.QueueFullError(), 429), (domain.UnavailableError(), 503)])
def test_what_may_be_tried_again_says_when(error: domain.SpecnormError, status: int) -> None:
    response = errors.response_of(error, "/v2/models/m/infer")
    assert (response.status_code, response.headers["retry-after"]) == (status, "1")


def test_a_bug_tells_nothing_of_itself_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    response = errors.response_of(KeyError("/secret/path"), "/v2/models")
    assert response.status_code == 500
    assert json.loads(response.body) == {"error": errors.BUG}
    assert "/secret/path" in caplog.text


def test_a_full_disk_is_507_wherever_it_shows() -> None:
    assert errors.response_of(OSError(errno.ENOSPC, "No space left on device", "/secret"), "/v1/files").status_code == 507


def test_text_that_utf8_cannot_carry_is_escaped() -> None:
    response = errors.response_of(domain.InvalidRequestError("bad \ud800 id"), "/v2/x")
    assert json.loads(response.body) == {"error": "bad \ud800 id"}


def test_headers_of_a_refusal_by_the_framework_are_kept() -> None:
    response = errors.response_of(HTTPException(405, headers={"Allow": "GET"}), "/v2/x")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
