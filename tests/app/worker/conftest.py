"""A workspace with a small network trained on the real digits, and uploads of them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from app.db import connect
from app.jobs.attempt import Attempt
from app.jobs.request import parse
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry
from app.settings import Settings
from app.worker.__main__ import conclude
from app.worker.pulse import Pulse
from app.worker.tune import tune
from export.bundle import InputDomain, Manifest, Training
from export.pipeline import export_bundle
from specnorm_core.architecture import build, preset
from specnorm_core.data import Dataset, load
from specnorm_core.training import Fit, Hyperparameters


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="session")
def parent(digits: Dataset) -> tuple[Manifest, dict[str, bytes]]:
    """Return the bundle of a network after one epoch: better than chance, and with much to learn."""
    torch.set_num_threads(1)
    architecture = preset("mlp-small", (64,), 10, shift=8.0, scale=0.125)
    model = build(architecture, seed=0)
    options = Hyperparameters(n_epochs=1)
    for _ in Fit(model, digits.subset(np.arange(200)), options):
        pass
    domain = InputDomain(minimum=0.0, maximum=16.0, units="pixel", normalisation="(x - 8) / 8")
    labels = tuple("0123456789")
    return export_bundle(model, architecture, samples=digits.x[:50], domain=domain, labels=labels, training=Training(metrics={}))


class Workspace(NamedTuple):
    folder: Path
    settings: Settings
    registry: Registry
    files: Files
    jobs: Jobs
    digits: Dataset

    def upload(self, rows: slice, name: str = "digits.npz") -> str:
        data = self.digits.subset(np.arange(1797)[rows])
        stream = io.BytesIO()
        np.savez(stream, x=data.x, y=data.y)
        return str(self.files.create(io.BytesIO(stream.getvalue()), name, "fine-tune")["id"])

    def text(self, content: str, name: str) -> str:
        return str(self.files.create(io.BytesIO(content.encode()), name, "fine-tune")["id"])

    def create(self, training_file: str, **fields: Any) -> str:
        return str(self.jobs.create(parse({"model": "digits", "training_file": training_file, **fields}))["id"])

    def attempt(self) -> Attempt:
        claim = self.jobs.claim("test")
        assert claim is not None
        return Attempt(self.registry.database, claim)

    def work(self, attempt: Attempt | None = None, pulse: Pulse | None = None) -> int:
        """Make one attempt here, as the child process would."""
        attempt = attempt or self.attempt()
        pulse = pulse or Pulse(attempt, 0.02)
        with pulse:
            return conclude(attempt, lambda: tune(attempt, self.registry, pulse, threads=1))


@pytest.fixture
def workspace(tmp_path: Path, parent: tuple[Manifest, dict[str, bytes]], digits: Dataset) -> Iterator[Workspace]:
    settings = Settings(workspace=tmp_path, lease_seconds=60.0, drain_seconds=10.0)
    engine = connect(tmp_path)
    registry = Registry(engine, Blobs(tmp_path / "blobs"))
    registry.publish("digits", *parent)
    registry.promote("digits", "1", why="first", who="test")
    yield Workspace(tmp_path, settings, registry, Files(engine, registry.blobs, max_bytes=10**7), Jobs(engine), digits)
    engine.dispose()
