"""KServe's client, in its own environment (KSERVE_PYTHON), against the service in this one. `make test-clients` runs it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from app.cli.workspace import registry
from export.bundle import MODEL


def test_kserves_client_gets_through_its_whole_surface(tmp_path: Path, models: Any) -> None:
    stored = registry(tmp_path)
    for name, artifact in {"affine": models.affine(2.0), "half": models.identity("FP16", -1, 3, bound=None)}.items():
        stored.publish(name, artifact.manifest, {MODEL: artifact.model})
        stored.promote(name, "1", why="test", who="test")
    stored.database.dispose()
    with socket.socket() as http, socket.socket() as rpc:
        for probe in (http, rpc):
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (http, rpc)]
    command = [sys.executable, "-m", "app.cli", "serve", "--workspace", str(tmp_path), "--port", str(ports[0]), "--worker", "none"]
    with subprocess.Popen(command, env={**os.environ, "SPECNORM_GRPC_PORT": str(ports[1])}, stdout=subprocess.DEVNULL) as service:
        try:
            for port in ports:
                _await(port)
            script = Path(__file__).with_name("kserve_client.py")
            arguments = [os.environ["KSERVE_PYTHON"], str(script), f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
        finally:
            service.terminate()
    assert done.returncode == 0, done.stderr[-4000:]


def _await(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nobody listens on {port}")
