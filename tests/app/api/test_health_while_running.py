"""A large model runs off the event loop: whatever else is asked meanwhile is answered."""

import http.client
import json
import select
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import open_registry
from app.settings import Settings
from export.bundle import MODEL

ENDLESS = json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "INT64", "data": [2**60]}]}).encode()
SMALL = {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


@pytest.fixture(params=["short cut", "ordinary"])
def url(tmp_path: Path, models: Any, listen: Callable[..., AbstractContextManager[str]], request: pytest.FixtureRequest) -> Any:
    registry = open_registry(Settings(workspace=tmp_path))
    for name, artifact in {"large": models.loop(), "small": models.affine()}.items():
        registry.promote(name, registry.publish(name, artifact.manifest, {MODEL: artifact.model}), why="test", who="test")
    registry.database.dispose()
    ordinary = {"http": "httptools"} if request.param == "ordinary" else {}
    with listen(Settings(workspace=tmp_path, worker="none", device="cpu"), **ordinary) as url:
        yield url


def test_health_and_other_models_answer_while_a_run_that_would_never_end_goes_on(url: str) -> None:
    running = http.client.HTTPConnection(url.removeprefix("http://"))
    running.request("POST", "/v2/models/large/infer", ENDLESS)
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        while 'nv_inference_request_success{model="large",version="1"} 0' not in client.get("/metrics").text:
            pass
        for _ in range(10):
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/large", "/metrics", "/v2/models/stats"):
                assert client.get(path).status_code == 200
            assert client.post("/v2/models/small/infer", json=SMALL).status_code == 200
        assert not select.select([running.sock], [], [], 0)[0], "the run ended"
    running.close()
