"""A workspace of real files, the real processes on it, and the faults that befall them."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import Connection

from app.db import connect, reading
from app.jobs.attempt import Attempt
from app.jobs.request import parse
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.examination import examine
from app.registry.files import Files
from app.registry.registry import Registry
from app.registry.workspace import open_registry
from app.settings import Settings
from app.worker.__main__ import conclude
from app.worker.pulse import Pulse
from app.worker.tune import tune
from export.bundle import InputDomain, Training
from export.pipeline import export_bundle
from specnorm_core.architecture import build, preset
from specnorm_core.data import Dataset, load
from specnorm_core.training import Fit, Hyperparameters

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GUARD = 300.0
"""Seconds after which what a test waits for counts as never coming about."""
JOB = {
    "model": "digits:1",
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 32, "checkpoint_every": 10, "learning_rate": 0.01}},
    },
}
"""84 steps, a checkpoint after every tenth and after the last."""


def wait_until(met: Callable[[], Any], what: str) -> Any:
    """Return what ``met`` returns, once that is true."""
    end = time.monotonic() + GUARD
    while time.monotonic() < end:
        if found := met():
            return found
        time.sleep(0.05)
    raise AssertionError(f"it never came about that {what}")


class Process:
    """A command of the product as a process, what it writes in a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path, folder: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True, cwd=folder)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def written(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would, and return its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=GUARD)


class Service(Process):
    """`specnorm serve`, with the stock client on it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.openai = self.http = None  # type: ignore[assignment]  # until it listens

    def listens(self) -> "Service":
        def address() -> str | None:
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended: {self.written}")
            found = re.search(r"at (http://\S+)\n", self.written)
            return found and found[1]

        self.url = wait_until(address, "the service listens")
        self.http: httpx.Client = httpx.Client(base_url=self.url, timeout=GUARD)
        self.openai: OpenAI = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=GUARD)
        return self

    def kill(self) -> None:
        super().kill()
        self.close()

    def stop(self) -> int:
        self.close()
        return super().stop()

    def close(self) -> None:
        for client in (self.http, self.openai):
            if client is not None:
                client.close()

    def upload(self, content: bytes, name: str = "rows.npz", **headers: str) -> str:
        return self.openai.files.create(file=(name, content), purpose="fine-tune", extra_headers=headers).id

    def create(self, file: str, **fields: Any) -> str:
        return self.openai.fine_tuning.jobs.create(training_file=file, **JOB, extra_body=fields).id  # type: ignore[arg-type]

    def job(self, job: str) -> Any:
        return self.openai.fine_tuning.jobs.retrieve(job)

    def events(self, job: str) -> list[Any]:
        """Return the events of a job, oldest first."""
        return list(self.openai.fine_tuning.jobs.list_events(job, limit=100))[::-1]

    def told(self, job: str) -> list[str]:
        return [event.message for event in self.events(job)]

    def ended(self, job: str) -> Any:
        found = wait_until(lambda: (one := self.job(job)).status in {"succeeded", "failed", "cancelled"} and one, f"{job} ends")
        return found

    def succeeded(self, job: str) -> list[str]:
        """Wait for the end of a job, which is a success and the only one, and return what its events say."""
        end, told = self.ended(job), self.told(job)
        assert end.status == "succeeded", told
        assert sum(message.startswith("The job succeeded") for message in told) == 1
        assert told[-1].startswith("The job succeeded")
        return told

    def versions(self) -> dict[str, Any]:
        found = self.http.get("/admin/models/digits/versions").raise_for_status().json()
        return {line["version"]: line for line in found}

    def live(self) -> str:
        found = self.http.get("/admin/models").raise_for_status().json()
        return str(next(model["live_version"] for model in found if model["name"] == "digits"))

    def infer(self, version: str | None = None) -> Any:
        """Return what the model says of one row, after the protocol's rules."""
        path = "/v2/models/digits" + ("" if version is None else f"/versions/{version}") + "/infer"
        body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 64], "data": [float(n % 17) for n in range(64)]}]}
        answer = self.http.post(path, json=body).raise_for_status().json()
        return answer["model_version"], [output["data"] for output in answer["outputs"]]


class Machine:
    """One workspace, and every process that runs on it."""

    def __init__(self, folder: Path, scratch: Path, data: bytes, url: str | None = None) -> None:
        self.folder, self.scratch, self.data, self.url = folder, scratch, data, url
        self._started: list[Process] = []
        self._faults = 0
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE / "place"), str(ROOT)]),
            "SPECNORM_WORKSPACE": str(folder),
            "SPECNORM_LEASE_SECONDS": "30",
            "SPECNORM_DEVICE": "cpu",
            "SPECNORM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        if url is not None:
            self.environment["SPECNORM_DATABASE_URL"] = url

    def fault(self, process: str, place: str, act: str, **options: Any) -> dict[str, Any]:
        """Return a fault to start a process with."""
        self._faults += 1
        return {"process": process, "place": place, "act": act, "spent": str(self.scratch / f"spent{self._faults}"), **options}

    @staticmethod
    def struck(fault: dict[str, Any]) -> int | None:
        """Return the process that the fault befell, if it has."""
        spent = Path(fault["spent"])
        return int(spent.read_text() or "0") or None if spent.exists() else None

    def serve(self, *faults: dict[str, Any], environment: Mapping[str, str] = MappingProxyType({}), **settings: str) -> Service:
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
        service = Service(*self._begin(command, faults, settings, environment))
        self._started.append(service)
        return service.listens()

    def start(self, *arguments: str, faults: Sequence[dict[str, Any]] = (), **settings: str) -> Process:
        process = Process(*self._begin([sys.executable, "-m", *arguments], faults, settings))
        self._started.append(process)
        return process

    def run(self, *arguments: str, faults: Sequence[dict[str, Any]] = (), **settings: str) -> tuple[int, str]:
        """Run a command of the product to its end; its status, and what it wrote."""
        process = self.start(*arguments, faults=faults, **settings)
        return process.process.wait(timeout=GUARD), process.written

    def examined(self) -> None:
        """The store is whole: every row has its bytes, every pointer its target, nothing else is kept, nothing half written is left."""
        assert not list((self.folder / "blobs" / "tmp").iterdir())
        engine = connect(self.folder, self.url)
        registry = Registry(engine, Blobs(self.folder / "blobs"))
        registry.blobs.sweep(older_than=0)
        assert list(examine(registry)) == []
        engine.dispose()
        status, written = self.run("app.cli", "models", "verify", "--json")
        assert status == 0, written

    def whole(self, service: Service, uninterrupted: dict[str, Any]) -> None:
        """There is the one new version, the same as if nothing had happened; what was live still is; the store is whole."""
        versions = service.versions()
        assert list(versions) == ["1", "2", "3"]
        but = {"job": None, "created": None}
        assert versions["3"] | but == uninterrupted | but
        assert service.live() == service.infer()[0] == "1"
        assert service.stop() == 0
        self.examined()

    def workers(self) -> list[int]:
        """Return the processes that work at jobs of this workspace, whoever started them."""
        return [pid for pid in self.processes() if b"app.worker" in _command(pid)]

    def processes(self) -> list[int]:
        """Return every process that was given this workspace."""
        mine = f"SPECNORM_WORKSPACE={self.folder}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mine in _read(pid, "environ").split(b"\0")]

    @staticmethod
    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def database(self) -> Iterator[Connection]:
        """Open the database for reading, past the product."""
        engine = connect(self.folder, self.url)
        try:
            with reading(engine) as connection:
                yield connection
        finally:
            engine.dispose()

    def end(self) -> None:
        for process in self._started:
            if isinstance(process, Service):
                process.close()
        for pid in self.processes():
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.process.wait()

    def _begin(
        self,
        command: Sequence[str],
        faults: Sequence[dict[str, Any]],
        settings: Mapping[str, str],
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Any, ...]:
        more = {f"SPECNORM_{name.upper()}": value for name, value in settings.items()}
        whole = {**self.environment, **environment, **more, "FAULTS": json.dumps(list(faults))}
        return command, whole, self.scratch / f"log{len(self._started)}", self.scratch


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is another's
        return b""


def _command(pid: int) -> bytes:
    return _read(pid, "cmdline").replace(b"\0", b" ")


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="session")
def data(digits: Dataset) -> bytes:
    """Return a data set of 200 rows as a file."""
    rows, stream = digits.subset(np.arange(200)), io.BytesIO()
    np.savez(stream, x=rows.x, y=rows.y)
    return stream.getvalue()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """Return a workspace whose model `digits` has the live version 1 and the version 2."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("template")
    architecture = preset("mlp-small", (64,), 10, shift=8.0, scale=0.125)
    domain = InputDomain(minimum=0.0, maximum=16.0, units="pixel", normalisation="(x - 8) / 8")
    database = connect(folder)
    registry = Registry(database, Blobs(folder / "blobs"))
    for seed in (0, 1):
        model = build(architecture, seed=seed)
        for _ in Fit(model, digits.subset(np.arange(200)), Hyperparameters(n_epochs=1)):
            pass
        labels = tuple("0123456789")
        made = export_bundle(model, architecture, samples=digits.x[:50], domain=domain, labels=labels, training=Training(metrics={}))
        registry.publish("digits", *made)
    registry.promote("digits", "1", why="first", who="test")
    database.dispose()
    return folder


@pytest.fixture(params=["sqlite"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, template: Path, data: bytes) -> Iterator[Machine]:
    """A machine with a workspace of its own; a test may ask for ``postgresql`` in place of SQLite."""
    folder, scratch = tmp_path / "workspace", tmp_path / "scratch"
    scratch.mkdir()
    url = None
    if request.param == "sqlite":
        shutil.copytree(template, folder)
    else:
        url = request.getfixturevalue("postgres_server").database()
        transplant(template, folder, url)
    made = Machine(folder, scratch, data, url)
    yield made
    made.end()


def transplant(template: Path, folder: Path, url: str) -> None:
    """Publish what the template holds in a new workspace whose database is a server's."""
    old, new = open_registry(Settings(workspace=template)), open_registry(Settings(workspace=folder, database_url=SecretStr(url)))
    for version in old.versions("digits"):
        new.publish("digits", old.manifest("digits", version), old.files("digits", version))
    new.promote("digits", "1", why="first", who="test")
    old.database.dispose()
    new.database.dispose()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, template: Path, data: bytes) -> Any:
    """Return the line of the version that the job comes to where nothing happens; it is done in this process."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "workspace"
    shutil.copytree(template, folder)
    database = connect(folder)
    registry, jobs = Registry(database, Blobs(folder / "blobs")), Jobs(database)
    file = Files(database, registry.blobs, max_bytes=len(data)).create(io.BytesIO(data), "rows.npz", "fine-tune")["id"]
    jobs.create(parse({**JOB, "training_file": file}))
    claim = jobs.claim("test")
    assert claim is not None
    attempt = Attempt(database, claim)
    pulse = Pulse(attempt, 1.0)
    with pulse:
        assert conclude(attempt, lambda: tune(attempt, registry, pulse, threads=1)) == 0
    found = registry.describe("digits", manifests=True)[2]
    database.dispose()
    return json.loads(json.dumps(found))
