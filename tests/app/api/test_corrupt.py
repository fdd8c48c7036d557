"""A version whose bytes are not those recorded is never served; what was served before goes on, and everyone is told."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import health
from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import MODEL

Listen = Callable[..., contextlib.AbstractContextManager[str]]
ROW = {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}


class Workspace:
    """Versions 1, 2 … of one model multiply by their number; the bytes of each can be changed and put back."""

    def __init__(self, folder: Path, models: Any, versions: int) -> None:
        self.folder = folder
        self.registry = Registry(connect(folder), Blobs(folder / "blobs"))
        self.artifacts = {}
        for number in range(1, versions + 1):
            artifact = models.honest(float(number))
            version = self.registry.publish("m", artifact.manifest, {MODEL: artifact.model})
            self.artifacts[version] = artifact

    def live(self, *versions: str) -> None:
        for version in versions:
            self.registry.promote("m", version, why="test", who="test")

    def put(self, version: str, content: bytes) -> None:
        path = self.folder / "blobs" / "sha256" / self.artifacts[version].manifest.model_digest
        path.chmod(0o644)
        path.write_bytes(content)

    def damage(self, version: str) -> None:
        whole = self.artifacts[version].model
        self.put(version, whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit

    def mend(self, version: str) -> None:
        self.put(version, self.artifacts[version].model)


@pytest.fixture
def workspace(tmp_path: Path, models: Any) -> Workspace:
    return Workspace(tmp_path, models, 3)


@pytest.fixture
def start(workspace: Workspace, listen: Listen) -> Callable[[], contextlib.AbstractContextManager[httpx.Client]]:
    @contextlib.contextmanager
    def started() -> Iterator[httpx.Client]:
        with listen(Settings(workspace=workspace.folder, worker="none")) as url, httpx.Client(base_url=url, timeout=30) as http:
            yield http

    return started


def answer(http: httpx.Client) -> tuple[str, float]:
    got = http.post("/v2/models/m/infer", json=ROW)
    assert got.status_code == 200, got.text
    return got.json()["model_version"], got.json()["outputs"][0]["data"][0]


def test_a_corrupt_version_is_not_promoted_and_the_one_before_goes_on(workspace: Workspace, start: Any) -> None:
    workspace.live("1")
    workspace.damage("2")
    with start() as http:
        got = http.post("/admin/models/m/promote", json={"version": "2"})
        assert got.status_code == 503, got.text
        assert "model.onnx of m:2 cannot be read" in got.json()["error"]
        assert answer(http) == ("1", 1.0)
        told = http.get("/admin/models").json()[0]
        assert (told["live_version"], "problem" in told) == ("1", False)
        index = {one["version"]: one for one in http.post("/v2/repository/index", json={}).json()}
        assert (index["2"]["state"], "cannot be read" in index["2"]["reason"]) == ("UNAVAILABLE", True)
        assert http.post("/v2/models/m/versions/2/infer", json=ROW).status_code == 503
        workspace.mend("2")
        assert http.post("/admin/models/m/promote", json={"version": "2"}).status_code == 200
        assert answer(http) == ("2", 2.0)


def test_where_the_live_version_is_corrupt_at_the_start_the_one_before_serves_and_everyone_is_told(
    workspace: Workspace, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    workspace.live("1", "3", "2")
    workspace.damage("2")
    with caplog.at_level(logging.ERROR), start() as http:
        assert answer(http) == ("3", 3.0)
        said = "version 2 is live and cannot be served: model.onnx of m:2 cannot be read"
        ready = http.get("/v2/health/ready")
        assert ready.status_code == 200
        assert ready.json()["problems"]["m"].startswith(said)
        assert ready.json()["problems"]["m"].endswith("; version 3 is in its place")
        assert http.get("/v2/models/m").json()["properties"]["problem"].startswith(said)
        assert http.get("/admin/models").json()[0]["problem"].startswith(said)
        assert http.get("/admin/models").json()[0]["live_version"] == "2"
        assert http.get("/v2/models/m/ready").status_code == 200
        assert http.post("/v2/models/m/versions/2/infer", json=ROW).status_code == 503
        logged = [record.getMessage() for record in caplog.records]
        assert "m version 3 is served in its place" in logged
        assert any(line.startswith("m version 2 is not served: model.onnx of m:2 cannot be read") for line in logged)
        workspace.mend("2")
        assert http.post("/v2/repository/models/m/load", json={}).status_code == 200
        assert answer(http) == ("2", 2.0)
        assert "problems" not in http.get("/v2/health/ready").json()
        assert "problem" not in http.get("/v2/models/m").json()["properties"]
        assert "problem" not in http.get("/admin/models").json()[0]


def test_a_rollback_makes_what_serves_in_its_place_the_live_version(workspace: Workspace, start: Any) -> None:
    workspace.live("1", "2")
    workspace.damage("2")
    with start() as http:
        assert answer(http) == ("1", 1.0)
        assert http.post("/admin/models/m/rollback").json()["live_version"] == "1"
        assert http.get("/v2/health/ready").json() == {"live": True, "ready": True}
        assert answer(http) == ("1", 1.0)


def test_what_another_process_rolls_back_is_a_problem_no_longer(workspace: Workspace, start: Any) -> None:
    workspace.live("1", "2")
    workspace.damage("2")
    with start() as http:
        assert "problems" in http.get("/v2/health/ready").json()
        workspace.registry.rollback("m", who="another")
        for _ in range(200):
            if "problems" not in http.get("/v2/health/ready").json():
                break
            time.sleep(0.05)
        assert http.get("/v2/health/ready").json() == {"live": True, "ready": True}
        assert answer(http) == ("1", 1.0)


def test_where_the_one_before_is_corrupt_too_or_there_is_none_the_model_is_503_with_the_reason(workspace: Workspace, start: Any) -> None:
    workspace.live("1")
    workspace.damage("1")
    for promoted in ((), ("2",)):
        workspace.live(*promoted)
        workspace.damage("2")
        with start() as http:
            got = http.post("/v2/models/m/infer", json=ROW)
            assert got.status_code == 503
            assert "cannot be read" in got.json()["error"]
            assert http.get("/v2/health/ready").status_code == 503


def test_a_reload_of_a_version_that_was_changed_meanwhile_leaves_what_is_loaded_and_tells(workspace: Workspace, start: Any) -> None:
    workspace.live("1")
    with start() as http:
        assert answer(http) == ("1", 1.0)
        workspace.damage("1")
        assert http.post("/v2/repository/models/m/load", json={}).status_code == 503
        assert answer(http) == ("1", 1.0)
        assert http.get("/v2/health/ready").json() == {"live": True, "ready": True}, "what answers is the live version, whole"


def test_health_has_no_problems_to_tell_of_where_there_are_none(start: Any, workspace: Workspace) -> None:
    workspace.live("1")
    with start() as http:
        assert http.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert health.live() == {"live": True}
