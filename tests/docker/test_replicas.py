"""Three replicas on PostgreSQL behind nginx: one dies, a promotion reaches all, and no request fails."""

import concurrent.futures
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests import postgres
from tests.docker.conftest import MODEL, ROOT, Stack, stand_in

# Does on an empty volume what the image of Docker Hub does.
START = """
import os, pathlib, subprocess
data = pathlib.Path("/var/lib/postgresql/data/cluster")
if not data.exists():
    user, password = os.environ["POSTGRES_USER"], os.environ["POSTGRES_PASSWORD_FILE"]
    options = ["--auth", "scram-sha-256", "--username", user, "--pwfile", password, "--encoding", "UTF8", "--locale", "C"]
    subprocess.run(["initdb", "--pgdata", data, *options], check=True)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\\n")
    create = f"CREATE DATABASE {os.environ['POSTGRES_DB']}"
    subprocess.run(["postgres", "--single", "-D", data, "postgres"], input=create.encode(), check=True)
where = ["-c", "listen_addresses=*", "-c", "unix_socket_directories=/var/run/postgresql"]
os.execvp("postgres", ["postgres", "-D", str(data), *where])
"""

PUBLISH = f"""
from app.registry.workspace import open_registry
from app.settings import Settings
registry = open_registry(Settings())
print(registry.publish({MODEL!r}, registry.manifest({MODEL!r}, "1"), registry.files({MODEL!r}, "1")))
"""


def images():
    programs = postgres.PROGRAMS[-1]
    share = Path("/usr/share/postgresql", programs.parent.name)
    lines = [
        "RUN getent passwd postgres || useradd --system postgres",
        "RUN install -d -o postgres -m 3777 /var/lib/postgresql/data /var/run/postgresql",
        f"ENV PATH={programs}:$PATH",
        f"RUN printf '%s' {START.encode().hex()} | python3 -c 'import sys; print(bytes.fromhex(sys.stdin.read()).decode())' > /start.py",
        'ENTRYPOINT ["python3", "/start.py"]',
    ]
    elves = [str(programs / name) for name in ("postgres", "initdb", "pg_isready")]
    yield "POSTGRES_IMAGE", stand_in("specnorm-test/postgres", *elves, folders=(share, programs.parent / "lib"), lines=lines)
    yield "NGINX_IMAGE", stand_in("specnorm-test/nginx", "nginx")


@pytest.fixture(scope="module")
def replicas(built, tmp_path_factory):
    password = tmp_path_factory.mktemp("secrets") / "password"
    password.write_text("of the test\n")
    password.chmod(0o644)
    password.parent.chmod(0o755)
    environment = {
        **built,
        **dict(images()),
        "DATABASE_PASSWORD_FILE": str(password),
        "SPECNORM_DATABASE_URL": "postgresql+psycopg://specnorm@postgres/specnorm",
        "COMPOSE_PROFILES": "postgres",
    }
    stack = Stack(environment, ROOT / "docker-compose.yml", ROOT / "examples" / "deployment" / "replicas.yml")
    with stack.up("--scale", "service=3"):
        yield stack


class Load:
    """Callers who ask again and again, and keep what they were told."""

    def __init__(self, url, rows, callers=6):
        self.url, self.failures, self.versions = f"{url}/v2/models/{MODEL}/infer", [], []
        self.body = {"inputs": [{"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]}
        self.over = threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor(callers)
        self.callers = [self.pool.submit(self._ask) for _ in range(callers)]

    def _ask(self):
        with httpx.Client(timeout=30) as client:
            while not self.over.is_set():
                try:
                    answer = client.post(self.url, json=self.body)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.versions.append(answer.json()["model_version"])
                else:
                    self.failures.append(answer.text)

    def end(self):
        self.over.set()
        for caller in self.callers:
            caller.result()
        self.pool.shutdown()


def test_no_request_fails_while_a_replica_dies_and_comes_back(replicas, digits):
    load = Load(replicas.url, digits.data[:4].astype(np.float32))
    time.sleep(2)
    before = len(load.versions)
    replicas.kill("service")
    time.sleep(6)
    load.end()
    print(f"\n{len(load.versions)} answers, {len(load.versions) - before} of them after the kill")
    assert load.failures == []
    assert len(load.versions) > before > 0
    assert len({container["Id"] for container in replicas.containers("service")}) == 3


def test_a_promotion_is_soon_live_on_every_replica_and_no_request_fails(replicas, digits):
    replicas.wait_for("/v2/health/ready")
    version = replicas.inside("service", PUBLISH)
    addresses = [next(iter(one["NetworkSettings"]["Networks"].values()))["IPAddress"] for one in replicas.containers("service")]
    assert len(addresses) == 3
    load = Load(replicas.url, digits.data[:4].astype(np.float32), callers=2)
    httpx.post(f"{replicas.url}/admin/models/{MODEL}/promote", json={"version": version}, timeout=30).raise_for_status()
    begun = time.monotonic()
    live = {}
    while set(live) != set(addresses) and time.monotonic() < begun + 30:
        for address in addresses:
            answer = httpx.post(f"http://{address}:8000/v2/models/{MODEL}/infer", headers={"Host": "service"}, json=load.body).json()
            if answer["model_version"] == version and address not in live:
                live[address] = round(time.monotonic() - begun, 2)
    load.end()
    print(f"\nlive after {sorted(live.values())} s")
    assert set(live) == set(addresses)
    assert load.failures == []
