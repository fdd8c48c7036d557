import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.db import connect
from app.errors import CorruptError, InvalidRequestError
from app.inference.catalog import Catalog
from app.main import create_app, follow
from app.observability import configure_logging
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.security import COOKIE, create_key
from app.settings import Settings
from export.bundle import MODEL

ROW = {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


@pytest.fixture
def registry(tmp_path: Path, models: Any) -> Registry:
    registry = Registry(connect(tmp_path), Blobs(tmp_path / "blobs"))
    for scale in (1.0, 2.0):
        artifact = models.affine(scale)
        registry.publish("affine", artifact.manifest, {MODEL: artifact.model})
    registry.promote("affine", "1", why="test", who="test")
    return registry


@contextlib.contextmanager
def serving(workspace: Path, **options: Any) -> Iterator[TestClient]:
    application = create_app(Settings(workspace=workspace, worker="none", **options))
    with TestClient(application, base_url="http://127.0.0.1", raise_server_exceptions=True) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path, registry: Registry) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def test_each_prefix_goes_to_its_own_router(client: TestClient) -> None:
    answer = client.post("/v2/models/affine/infer", json=ROW)
    assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0]
    assert [(one["name"], one["live_version"], one["versions"]) for one in client.get("/admin/models").json()] == [
        ("affine", "1", ["1", "2"])
    ]
    assert client.get("/v1/models").json()["object"] == "list"
    assert client.get("/").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/v2x", "/v2/nothing", "/docs/", "/admin/models/", "/admin/nothing", "/redoc", "//admin/models"])
def test_what_is_not_there_is_404_in_one_shape(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert set(answer.json()) == {"error"}


def test_no_redirect_leads_past_a_check(client: TestClient) -> None:
    assert client.get("/admin/models/", follow_redirects=False).status_code == 404


def test_the_openapi_text_holds_the_raw_path_and_the_routed_ones(client: TestClient) -> None:
    text = client.get("/openapi.json").json()
    paths = text["paths"]
    assert {"/v1/files", "/admin/models", "/session"} <= set(paths)
    assert any(path.startswith("/v2/models/") and path.endswith("/infer") for path in paths)
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(text)))
    assert named <= set(text["components"]["schemas"])


def test_the_api_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "http" not in page.text
    assert "script>\n" in page.text
    assert not re.search(r"<script>|style=|onload=", page.text)
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{path}").status_code == 200, path
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_a_promotion_is_served_when_it_is_answered(client: TestClient) -> None:
    answer = client.post("/admin/models/affine/promote", json={"version": "2"})
    assert answer.json() == {"name": "affine", "live_version": "2", "previous_version": "1"}
    assert client.post("/v2/models/affine/infer", json=ROW).json()["model_version"] == "2"


def test_the_metrics_have_tritons_names_and_the_certificate(client: TestClient) -> None:
    client.post("/v2/models/affine/infer", json=ROW)
    client.post("/v2/models/affine/infer", json={"inputs": []})
    client.post("/admin/models/affine/promote", json={"version": "2"})
    text = client.get("/metrics").text
    for line in (
        'nv_inference_request_success{model="affine",version="1"} 1',
        'nv_inference_request_failure{model="affine",version="1"} 1',
        'nv_inference_count{model="affine",version="1"} 1',
        'specnorm_batch_rows_bucket{model="affine",version="1",le="1"} 1',
        'nv_inference_pending_request_count{model="affine",version="2"} 0',
        'specnorm_lipschitz_bound{model="affine",version="2"} 1.0',
        'specnorm_swaps_total{model="affine",what="promote"} 2',
        'specnorm_http_requests_total{method="POST",status="400"} 1',
        "# TYPE nv_inference_request_success counter",
    ):
        assert line in text.splitlines()
    assert 'nv_inference_request_duration_us{model="affine",version="1"}' in text


def test_a_request_id_is_echoed_where_it_is_fit_and_made_where_not(client: TestClient) -> None:
    assert client.get("/v2", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = [client.get("/v2", headers={"x-request-id": given}).headers["x-request-id"] for given in ("a b", "x" * 200, "<script>")]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert len(set(made)) == 3


def test_a_bug_is_500_with_a_body_and_the_next_request_is_answered(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as client:
        monkeypatch.setattr(Registry, "live_versions", lambda _self: 1 / 0)
        answer = client.get("/admin/models", headers={"x-request-id": "the-one"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "the-one")
        assert set(answer.json()) == {"error"}
        assert "division" not in answer.text
        assert "ZeroDivisionError" in caplog.text
        assert client.get("/v2/health/live").status_code == 200


def test_a_body_over_the_limit_is_413_whether_or_not_it_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, max_json_bytes=100) as client:
        declared = client.post("/v1/fine_tuning/jobs", content=b"x" * 200)
        streamed = client.post("/v1/fine_tuning/jobs", content=iter([b"x" * 60] * 4))
    assert (declared.status_code, streamed.status_code) == (413, 413)
    assert "error" in streamed.json()


def test_with_keys_every_guarded_route_asks_for_one(tmp_path: Path, registry: Registry) -> None:
    _, secret = create_key(tmp_path / "keys.json", ["admin"])
    with serving(tmp_path, api_keys_file=tmp_path / "keys.json") as client:
        routed = [(path, method) for path, methods in client.get("/openapi.json").json()["paths"].items() for method in methods]
        assert len(routed) > 20
        for path, method in routed:
            if not path.startswith(("/v2/health", "/session")):
                answer = client.request(method, re.sub(r"\{[^}]+\}", "x", path))
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert client.post("/v2/models/affine/infer", json=ROW, headers={"Authorization": f"Bearer {secret}"}).status_code == 403


def test_a_browser_signs_in_once(tmp_path: Path) -> None:
    key, secret = create_key(tmp_path / "keys.json", ["admin"])
    with serving(tmp_path, api_keys_file=tmp_path / "keys.json") as client:
        assert client.post("/session", json={"key": "wrong"}).status_code == 401
        answer = client.post("/session", json={"key": secret})
        assert answer.json() == {"id": key.id, "scopes": ["admin"]}
        cookie = answer.headers["set-cookie"].lower()
        assert cookie.startswith(COOKIE)
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/admin/models").status_code == 200
        client.delete("/session")
        assert client.get("/admin/models").status_code == 401


def test_an_address_that_others_reach_is_refused_without_keys(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="loopback"):
        create_app(Settings(workspace=tmp_path, host="0.0.0.0"))


def test_a_version_that_cannot_be_served_keeps_no_other_from_serving(tmp_path: Path, registry: Registry, models: Any) -> None:
    artifact = models.affine(3.0)
    registry.promote("broken", registry.publish("broken", artifact.manifest, {MODEL: artifact.model}), why="test", who="test")
    blob = tmp_path / "blobs" / "sha256" / artifact.manifest.model_digest
    blob.chmod(0o644)
    blob.write_bytes(b"changed")
    with pytest.raises(CorruptError):
        registry.artifact("broken", "1")
    with serving(tmp_path) as client:
        assert client.post("/v2/models/affine/infer", json=ROW).status_code == 200
        assert client.post("/v2/models/broken/infer", json=ROW).status_code == 503
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/metrics").status_code == 200


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


def test_what_another_process_promotes_is_served(tmp_path: Path, registry: Registry) -> None:
    async def scenario() -> None:
        catalog = Catalog(registry, Settings(workspace=tmp_path))
        await catalog.start()
        watch = asyncio.create_task(follow(registry, catalog))
        Registry(connect(tmp_path), Blobs(tmp_path / "blobs")).promote("affine", "2", why="test", who="another")
        await until(lambda: catalog.live_version("affine") == "2")
        assert not watch.done()
        watch.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_log_line_names_its_request(tmp_path: Path, form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    try:
        configure_logging("debug", form)
        with serving(tmp_path) as client:
            client.get("/v2", headers={"x-request-id": "the-one"})
    finally:
        logging.basicConfig(level="WARNING", handlers=before, force=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "/v2" in line and "app.api" in line]
    assert "the-one" in lines[0]
    assert (json.loads(lines[0])["request_id"] == "the-one") if form == "json" else lines[0]
