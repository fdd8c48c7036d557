"""A registry on every kind of database that this machine has, and bundles small enough to read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from export.bundle import Lipschitz, Manifest, Signature, Tensor, digest

Bundle = tuple[Manifest, dict[str, bytes]]


def bundle(model: bytes = b"graph", **files: bytes) -> Bundle:
    content = {"model.onnx": model, **{name.replace("_", "."): value for name, value in files.items()}}
    manifest = Manifest(
        signature=Signature(
            inputs=(Tensor(name="input", datatype="FP32", shape=(-1, 4)),), outputs=(Tensor(name="logits", datatype="FP32", shape=(-1, 3)),)
        ),
        lipschitz=Lipschitz(bound=1.0, rigorous=True, method="product"),
        gradient_mode="full",
        origin="specnorm",
        files={name: digest(value) for name, value in content.items()},
    )
    return manifest, content


@pytest.fixture(scope="session")
def make() -> Callable[..., Bundle]:
    return bundle


@pytest.fixture
def database(tmp_path: Path, database_url: str | None) -> Iterator[Engine]:
    engine = connect(tmp_path, database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(tmp_path: Path, database: Engine) -> Registry:
    return Registry(database, Blobs(tmp_path / "blobs"))


@pytest.fixture
def published(registry: Registry) -> Registry:
    """Three versions of `digits`, none of them live."""
    for number in (1, 2, 3):
        registry.publish("digits", *bundle(b"graph %d" % number))
    return registry
