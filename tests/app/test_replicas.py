"""Three services that share nothing but a database and a bucket: what one promotes, all serve, whole, within a second."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.registry.registry import Registry
from app.registry.workspace import open_registry
from app.settings import Settings
from tests import postgres, s3

REPLICAS = 3
VERSIONS = 4
WAIT = 20.0


class Replicas:
    """Their addresses, the registry that they share, and what they need to be told of it."""

    def __init__(self, folder: Path, environment: dict[str, str], registry: Registry) -> None:
        self.registry = registry
        self._environment = {**os.environ, **environment, "SPECNORM_WORKER": "none", "SPECNORM_PORT": "0"}
        self.processes = [self._start(folder / str(number)) for number in range(REPLICAS)]
        self.urls = [self._address(process) for process in self.processes]

    def _start(self, workspace: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app.cli", "serve", "--workspace", str(workspace)]
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, text=True)

    def _address(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().split(" at ")[1].strip()

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def replicas(tmp_path: Path, models: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicas]:
    """On PostgreSQL and S3."""
    with contextlib.ExitStack() as ends:
        bucket = s3.Server()
        ends.callback(bucket.close)
        environment = {**bucket.environment, "SPECNORM_BLOBS_URL": bucket.bucket()}
        for name, text in bucket.environment.items():
            monkeypatch.setenv(name, text)
        server: postgres.Server = request.getfixturevalue("postgres_server")
        environment["SPECNORM_DATABASE_URL"] = server.database()
        url = SecretStr(environment["SPECNORM_DATABASE_URL"])
        registry = open_registry(Settings(workspace=tmp_path / "own", database_url=url, blobs_url=environment["SPECNORM_BLOBS_URL"]))
        ends.callback(registry.database.dispose)
        for number in range(VERSIONS):
            artifact = models.affine(scale=float(number + 1))
            registry.publish("affine", artifact.manifest, {"model.onnx": artifact.model})
        registry.promote("affine", "1", why="test", who="test")
        replicas = Replicas(tmp_path, environment, registry)
        ends.callback(replicas.close)
        yield replicas


class Callers:
    """Ask one replica each, over and over; keep every answer with the moment at which it was had."""

    def __init__(self, urls: list[str]) -> None:
        self.answers: list[tuple[int, float, str, float]] = []
        self.failures: list[str] = []
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(len(urls))
        self._tasks = [self._pool.submit(self._ask, number, url) for number, url in enumerate(urls)]

    def _ask(self, replica: int, url: str) -> None:
        body = {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 1.0, 1.0]}]}
        with httpx.Client(trust_env=False) as client:
            while not self._over.wait(0.01):
                answer = client.post(f"{url}/v2/models/affine/infer", json=body)
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                    continue
                told = answer.json()
                self.answers.append((replica, time.monotonic(), told["model_version"], told["outputs"][0]["data"][0]))

    def end(self) -> None:
        self._over.set()
        for task in self._tasks:
            task.result()
        self._pool.shutdown()


if postgres.found():

    def test_a_promotion_is_live_on_every_replica_and_no_answer_comes_from_two_versions(replicas: Replicas) -> None:
        callers = Callers(replicas.urls)
        promoted = {}
        try:
            for number in range(2, VERSIONS + 1):
                url = replicas.urls[number % REPLICAS]
                httpx.post(
                    f"{url}/admin/models/affine/promote", json={"version": str(number)}, trust_env=False, timeout=30
                ).raise_for_status()
                promoted[str(number)] = time.monotonic()
                until = time.monotonic() + WAIT
                while {answer[0] for answer in list(callers.answers) if answer[2] == str(number)} != set(range(REPLICAS)):
                    assert time.monotonic() < until, (f"version {number} is not served by all", callers.failures[:1])
                    time.sleep(0.02)
        finally:
            callers.end()
        assert callers.failures == []
        first = {version: output for _, _, version, output in callers.answers}
        assert len(set(first.values())) == VERSIONS
        assert all(first[version] == output for _, _, version, output in callers.answers)
        for replica in range(REPLICAS):
            seen = [int(version) for number, _, version, _ in callers.answers if number == replica]
            assert seen == sorted(seen)
        late = {
            (version, replica): min(moment for one, moment, told, _ in callers.answers if (one, told) == (replica, version)) - moment
            for version, moment in promoted.items()
            for replica in range(REPLICAS)
        }
        print(f"live {min(late.values()):.2f} to {max(late.values()):.2f} s after the promotion was answered")
