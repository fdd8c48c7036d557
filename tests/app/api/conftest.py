"""The real service on a real socket, with a model of three versions that multiply by 1, 2 and 3."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from openai import OpenAI

from app.api.tracing import Tracing
from app.db import connect
from app.jobs.attempt import Attempt
from app.jobs.store import Jobs
from app.main import create_service
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import MODEL, digest


class Service(NamedTuple):
    registry: Registry
    jobs: Jobs
    http: httpx.Client
    openai: OpenAI

    def attempt(self) -> Attempt:
        claim = self.jobs.claim("test")
        assert claim is not None
        return Attempt(self.registry.database, claim)


@contextlib.contextmanager
def listening(settings: Settings, *, tracing: Tracing | None = None, **options: Any) -> Iterator[str]:
    service = create_service(settings, tracing=tracing)
    chosen = {"http": service.http, "log_level": "warning", **options}
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, timeout_graceful_shutdown=2, **chosen))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def listen() -> Callable[..., contextlib.AbstractContextManager[str]]:
    return listening


@pytest.fixture
def service(tmp_path: Path, models: Any) -> Iterator[Service]:
    engine = connect(tmp_path)
    registry = Registry(engine, Blobs(tmp_path / "blobs"))
    for scale in (1.0, 2.0, 3.0):
        artifact = models.affine(scale)
        files = {MODEL: artifact.model, "checkpoint.safetensors": b"weights", "architecture.json": b"{}"}
        manifest = artifact.manifest.model_copy(update={"files": {name: digest(content) for name, content in files.items()}})
        registry.publish("affine", manifest, files)
    registry.promote("affine", "1", why="first", who="test")
    settings = Settings(workspace=tmp_path, worker="none", max_upload_bytes=5000, max_open_jobs=10)
    with (
        listening(settings) as url,
        httpx.Client(base_url=url, timeout=30) as http,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai,
    ):
        yield Service(registry, Jobs(engine), http, openai)
    engine.dispose()
