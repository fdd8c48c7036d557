"""A workspace with a model that can be trained further, and uploads to train it on."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.db import connect
from app.jobs.request import parse
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import Lipschitz, Manifest, Signature, Tensor, digest


class Workspace(NamedTuple):
    folder: Path
    settings: Settings
    registry: Registry
    files: Files
    jobs: Jobs
    file: str

    def create(self, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
        return self.jobs.create(parse({"model": "digits", "training_file": self.file, **fields}), key=key)


def bundle(content: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    signature = Signature(
        inputs=(Tensor(name="input", datatype="FP32", shape=(-1, 2)),), outputs=(Tensor(name="logits", datatype="FP32", shape=(-1, 2)),)
    )
    lipschitz = Lipschitz(bound=1.0, rigorous=True, method="product")
    files = {name: digest(value) for name, value in content.items()}
    return Manifest(signature=signature, lipschitz=lipschitz, gradient_mode="simplified", origin="specnorm", files=files), content


@pytest.fixture
def make_bundle() -> Callable[[dict[str, bytes]], tuple[Manifest, dict[str, bytes]]]:
    return bundle


@pytest.fixture
def workspace(tmp_path: Path, database_url: str | None) -> Iterator[Workspace]:
    settings = Settings(workspace=tmp_path, database_url=database_url, lease_seconds=60.0, job_max_attempts=3, drain_seconds=10.0)
    engine = connect(tmp_path, database_url)
    registry = Registry(engine, Blobs(tmp_path / "blobs"))
    files = Files(engine, registry.blobs, max_bytes=10_000)
    registry.publish("digits", *bundle({"model.onnx": b"graph", "checkpoint.safetensors": b"weights", "architecture.json": b"{}"}))
    registry.promote("digits", "1", why="first", who="test")
    file = files.create(io.BytesIO(b"a,b,target\n1,2,0\n"), "data.csv", "fine-tune")["id"]
    yield Workspace(tmp_path, settings, registry, files, Jobs(engine), file)
    engine.dispose()
