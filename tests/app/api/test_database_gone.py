"""PostgreSQL goes away under a running service: inference goes on, the rest says 503 and when to ask again, and it heals by itself."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.registry.workspace import open_registry
from app.settings import Settings
from export.bundle import MODEL
from tests import postgres

INPUT = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}

if postgres.found():

    @pytest.fixture
    def server() -> Iterator[postgres.Server]:
        """One of its own, which no other test needs while it is stopped."""
        with postgres.running() as server:
            yield server

    def test_inference_goes_on_while_the_database_is_gone_and_the_rest_comes_back_with_it(
        server: postgres.Server, tmp_path: Path, models: Any, listen: Callable[..., Any]
    ) -> None:
        settings = Settings(workspace=tmp_path, database_url=server.database(), worker="none")
        registry = open_registry(settings)
        artifact = models.affine(2.0)
        registry.publish("affine", artifact.manifest, {MODEL: artifact.model})
        registry.promote("affine", "1", why="", who="test")
        registry.database.dispose()
        with listen(settings) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:

            def infer() -> Any:
                return http.post("/v2/models/affine/infer", json=INPUT)

            def upload() -> httpx.Response:
                return http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("d.csv", b"a,target\n")})

            assert infer().json()["outputs"][0]["data"] == [2.0, 4.0, 6.0]
            assert upload().status_code == 200
            server.stop()
            for call in (lambda: http.get("/admin/models"), upload, lambda: http.post("/admin/models/affine/rollback")):
                gone = call()
                assert gone.status_code == 503, gone.text
                assert int(gone.headers["retry-after"]) >= 1
                assert infer().status_code == 200
            assert "traceback" not in gone.text.lower()
            assert http.get("/v2/health/live").status_code == 200
            server.start()
            deadline = time.monotonic() + 30
            while http.get("/admin/models").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert http.get("/admin/models").json()[0]["live_version"] == "1"
            assert upload().status_code == 200
            assert len(http.get("/v1/files").json()["data"]) == 2
