"""Several serving processes on one port: real ones, killed and stopped for real."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc

from app.cli.processes import _environment
from app.cli.workspace import registry
from app.settings import Settings
from export.bundle import MODEL

BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
INFER = "/v2/models/affine/infer"
PATIENCE = 240.0  # of a machine that has much else to do


class Said(NamedTuple):
    status: int
    body: bytes
    by: str  # which process answered: its own part of the request's id

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running(NamedTuple):
    parent: subprocess.Popen[str]
    port: int
    grpc_port: int

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Said:
        """Send one request on a connection of its own, which goes to any of the processes."""
        connection = self.connection()
        try:
            return say(connection, method, path, body)
        finally:
            connection.close()

    def of_each(self, method: str, path: str, body: bytes | None = None, *, processes: int = 2) -> dict[str, Said]:
        """Ask until every process has answered, and return the answer of each."""
        said: dict[str, Said] = {}
        while len(said) < processes:
            one = self.ask(method, path, body)
            said[one.by] = one
        return said

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()]


def say(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> Said:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return Said(answer.status, answer.read(), answer.headers["x-request-id"][:16])


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, models: Any) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "ws"
    stored = registry(folder)
    for scale in (1.0, 2.0):
        artifact = models.affine(scale)
        stored.publish("affine", artifact.manifest, {MODEL: artifact.model})
    stored.promote("affine", "1", why="test", who="test")
    stored.database.dispose()
    return folder


@contextmanager
def serving(workspace: Path) -> Iterator[Running]:
    command = [sys.executable, "-m", "app.cli", "serve", "--workspace", str(workspace), "--port", "0", "--worker", "none"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECNORM_")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        grpc_port = probe.getsockname()[1]
    said = {"SPECNORM_THREADS": "1", "SPECNORM_GRPC_PORT": str(grpc_port)}
    parent = subprocess.Popen([*command, "--processes", "2"], stdout=subprocess.PIPE, text=True, env=clean | said)
    assert parent.stdout is not None
    try:
        lines: list[str] = []
        for line in parent.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        found = re.search(r"127\.0\.0\.1:(\d+)", "".join(lines))
        assert found
        yield Running(parent, int(found[1]), grpc_port)
    finally:
        if parent.poll() is None:
            parent.terminate()
        with suppress(subprocess.TimeoutExpired):
            parent.wait(PATIENCE)
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.fixture(scope="module")
def service(workspace: Path) -> Iterator[Running]:
    with serving(workspace) as running:
        yield running


def successes(page: bytes) -> int:
    return sum(int(value) for value in re.findall(rb"^nv_inference_request_success\{.*\} (\d+)$", page, re.MULTILINE))


def test_whichever_process_is_asked_the_numbers_are_those_of_all(service: Running) -> None:
    before = successes(service.ask("GET", "/metrics").body)
    answered = Counter(service.ask("POST", INFER, BODY).by for _ in range(20))
    while len(answered) < 2:
        answered[service.ask("POST", INFER, BODY).by] += 1
    service.ask("POST", INFER, b"{")
    for page in service.of_each("GET", "/metrics").values():
        assert successes(page.body) - before == sum(answered.values())
        assert b"\nspecnorm_processes 2\n" in page.body
        counts = re.findall(rb'^specnorm_batch_rows_bucket\{.*le="\+Inf"\} (\d+)$', page.body, re.MULTILINE)
        assert sum(map(int, counts)) == successes(page.body)
    for said in service.of_each("GET", "/v2/models/affine/stats").values():
        told = said.json["model_stats"]
        assert sum(one["inference_stats"]["success"]["count"] for one in told) - before == sum(answered.values())
        assert sum(one["inference_count"] for one in told) - before == sum(answered.values())
        assert sum(batch["compute_infer"]["count"] for one in told for batch in one["batch_stats"]) == sum(
            o["execution_count"] for o in told
        )
        assert sum(one["inference_stats"]["fail"]["count"] for one in told) == 1


def test_a_promotion_is_live_in_every_process_when_it_is_answered(service: Running) -> None:
    for version in ("2", "1", "2", "1"):
        assert service.ask("POST", "/admin/models/affine/promote", json.dumps({"version": version}).encode()).status == 200
        answers = service.of_each("POST", INFER, BODY)
        assert {answer.json["model_version"] for answer in answers.values()} == {version}
    assert service.ask("POST", "/admin/models/affine/rollback", b"{}").status == 200
    assert {answer.json["model_version"] for answer in service.of_each("POST", INFER, BODY).values()} == {"2"}


def test_what_is_promoted_past_the_service_is_served_by_every_process_too(service: Running, workspace: Path) -> None:
    def served() -> set[str]:
        return {one.json["model_version"] for one in service.of_each("POST", INFER, BODY).values()}

    stored = registry(workspace)
    end = time.monotonic() + PATIENCE
    for version in ("1", "2"):
        stored.promote("affine", version, why="from elsewhere", who="test")
        while served() != {version}:
            assert time.monotonic() < end
    stored.database.dispose()


def test_a_model_is_unloaded_and_loaded_in_every_process(service: Running) -> None:
    assert service.ask("POST", "/v2/repository/models/affine/unload").status == 200
    assert {one.status for one in service.of_each("POST", INFER, BODY).values()} == {503}
    assert service.ask("POST", "/v2/repository/models/affine/load").status == 200
    assert {one.status for one in service.of_each("POST", INFER, BODY).values()} == {200}


def test_grpc_is_shared_too_and_tells_the_same_numbers(service: Running) -> None:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{service.grpc_port}") as client:
        given = tritonclient.grpc.InferInput("input", [1, 3], "FP32")
        given.set_data_from_numpy(np.ones((1, 3), np.float32))
        client.infer("affine", [given])
        told = client.get_inference_statistics("affine").model_stats
    over_http = service.ask("GET", "/v2/models/affine/stats").json["model_stats"]
    assert [one.inference_stats.success.count for one in told] == [one["inference_stats"]["success"]["count"] for one in over_http]


def test_a_port_that_several_processes_share_is_shared_with_no_other_service(service: Running, workspace: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "serve", "--processes", "2", "--port", str(service.port), "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert re.fullmatch(r"specnorm: .* cannot be bound: .*\n", done.stderr)


def test_a_process_that_is_killed_costs_its_own_connections_no_count_and_is_started_again(workspace: Path) -> None:
    with serving(workspace) as service:
        assert service.ask("POST", "/v2/repository/models/affine/load").status == 200
        doomed = service.children()[0]
        answered: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        done = threading.Event()

        def load(least: int = 0) -> None:
            """Ask on one connection after the other, each for as long as it lives."""
            while not done.is_set() or least > 0:
                by, connection = "", service.connection()
                try:
                    while not done.is_set() or least > 0:
                        by = say(connection, "POST", INFER, BODY).by
                        answered[by] += 1
                        least -= 1
                except (OSError, http.client.HTTPException):
                    failed[by] += 1
                finally:
                    connection.close()

        while len(answered) < 2:  # both have something to lose
            done.set()
            load(50)
        done.clear()
        threads = [threading.Thread(target=load) for _ in range(6)]
        for thread in threads:
            thread.start()
        first = set(answered)
        shown = [successes(service.ask("GET", "/metrics").body) for _ in range(3)]
        already = answered.copy()
        os.kill(doomed, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while set(answered) == first and time.monotonic() < end:  # until a process that was not there before answers
            with suppress(OSError, http.client.HTTPException):  # a connection that waited for the one that died
                shown.append(successes(service.ask("GET", "/metrics").body))
                answered[service.ask("POST", INFER, BODY).by] += 1
            if gone(doomed) and len(shown) > 20:
                done.set()  # the new one has to start beside it
                time.sleep(0.05)
        done.set()
        for thread in threads:
            thread.join()
        (new,) = {by for by in answered if by} - first
        (survivor,) = first & set(service.of_each("POST", INFER, BODY))
        assert failed[survivor] == failed[new] == 0
        page = service.ask("GET", "/metrics").body
        assert shown == sorted(shown)
        assert successes(page) >= shown[2] + answered[survivor] - already[survivor] + answered[new]
        assert b"\nspecnorm_process_restarts_total 1\n" in page
        assert len(service.children()) == 2
        assert doomed not in service.children()


def test_a_signal_to_the_parent_answers_what_is_on_its_way_and_leaves_no_process(workspace: Path) -> None:
    with serving(workspace) as service:
        pids = service.children()
        connections = [service.connection() for _ in range(8)]
        for connection in connections:
            connection.putrequest("POST", INFER)
            connection.putheader("Content-Length", str(len(BODY)))
            connection.endheaders(BODY[:10])
        wait_for(lambda: service.ask("GET", "/v2/health/live").status == 200)
        service.parent.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        for connection in connections:
            connection.send(BODY[10:])
        assert [connection.getresponse().status for connection in connections] == [200] * 8
        assert service.parent.wait(PATIENCE) == 0
        assert all(gone(pid) for pid in pids)
        for connection in connections:
            connection.close()


def test_when_the_parent_is_killed_its_processes_end_too(workspace: Path) -> None:
    with serving(workspace) as service:
        pids = service.children()
        service.parent.kill()
        wait_for(lambda: all(gone(pid) for pid in pids))


def test_a_service_whose_processes_cannot_start_says_so_and_ends(tmp_path: Path) -> None:
    key = tmp_path / "keys.json"
    key.write_text("no keys")
    environment = os.environ | {"SPECNORM_API_KEYS_FILE": str(key)}
    command = [sys.executable, "-m", "app.cli", "serve", "--processes", "2", "--port", "0", "--workspace", str(tmp_path / "ws")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("specnorm: The service did not start; the lines above say why.\n")


def test_settings_arrive_as_they_are_and_only_the_first_process_runs_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = Settings(
        workspace=tmp_path,
        processes=3,
        port=1234,
        grpc_port=1235,
        allowed_hosts=("a", "b"),
        metrics_public=True,
        device="cpu",
        worker="local",
    )
    arrived = []
    for index in range(3):
        for name, value in _environment(given, index).items():
            monkeypatch.setenv(name, value)
        arrived.append(Settings(_env_file=None))
    assert [one.worker for one in arrived] == ["local", "none", "none"]
    assert all(one.model_copy(update={"worker": "local"}) == given for one in arrived)
