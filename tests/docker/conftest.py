"""The images, built once, and compose projects of our own. Where no registry is at hand, other people's images are stood in for."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path

import httpx
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
MODEL = "digits"
PORT_OF_WHEELS = 8765
"""Always the same: it is a part of what the engine keeps the built layers under."""


class Stack:
    """One compose project, on a free port of the loopback address."""

    def __init__(self, environment, *files):
        self.port = free_port()
        self.environment = {**environment, "PORT": str(self.port), "COMPOSE_PROJECT_NAME": f"specnorm-{uuid.uuid4().hex[:8]}"}
        self.files = [part for file in files for part in ("--file", str(file))]
        self.url = f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments, timeout=900):
        command = ["docker", "compose", *self.files, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def inside(self, service, program):
        return self.compose("exec", "-T", service, "python3", "-c", program).strip()

    def containers(self, service):
        return [inspect(name) for name in self.compose("ps", "--all", "--quiet", service).split()]

    def kill(self, service):
        """End the process of a container as the kernel would, unknown to the engine."""
        for container in self.containers(service)[:1]:
            os.kill(container["State"]["Pid"], 9)

    def infer(self, rows, model=MODEL):
        body = {"inputs": [{"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]}
        answer = httpx.post(f"{self.url}/v2/models/{model}/infer", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for(self, path, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}{path}", timeout=2).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(self.compose("logs", "--tail", "50"))

    @contextlib.contextmanager
    def up(self, *arguments):
        """Start it, and take it down with all that it keeps."""
        try:
            self.compose("up", "--detach", "--wait", *arguments, timeout=300)
            yield self
        finally:
            self.close()

    def close(self):
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "25")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, *_):
        pass


def inspect(name):
    return json.loads(subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True).stdout)[0]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def wheels():
    """A folder of wheels that pip is told of on this machine, offered to the build over the loopback address: PyTorch may be there."""
    folders = [part for part in os.environ.get("PIP_FIND_LINKS", "").split() if Path(part).is_dir()]
    if not folders:
        yield {}
        return
    handler = functools.partial(Quiet, directory=folders[0])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT_OF_WHEELS), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"TORCH_FROM": f"--no-index --find-links http://127.0.0.1:{server.server_port}/"}
    server.shutdown()
    server.server_close()


def stand_in(tag, *programs, folders=(), lines=()):
    """Make an image of programs that this machine has: it takes the place of one from Docker Hub."""
    with tempfile.TemporaryDirectory() as context:
        files = {Path(shutil.which(program) or program) for program in programs}
        for program in list(files):
            told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
            files |= {Path(word) for line in told.splitlines() for word in line.split() if word.startswith("/")}
        for file in files:
            target = Path(context, "files", *file.parent.resolve().parts[1:], file.name)  # /lib is a link in the base
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        for folder in folders:
            shutil.copytree(folder, Path(context, "files", *Path(folder).parts[1:]), dirs_exist_ok=True)
        Path(context, "Dockerfile").write_text("\n".join(["FROM python:3.11-slim-bookworm", "COPY files /", *lines, ""]))
        subprocess.run(["docker", "build", "--quiet", "--network", "none", "--tag", tag, context], check=True, stdout=subprocess.DEVNULL)
    return tag


@pytest.fixture(scope="session")
def built():
    """What the environment of every project has: the images are there, and where they came from."""
    with wheels() as links:
        environment = {**os.environ, **links, "SPECNORM_TAG": f"test-{uuid.uuid4().hex[:8]}", "REVISION": "tested"}
        environment.setdefault("SPECNORM_BUILD_NETWORK", "host")
        begun = time.monotonic()
        Stack(environment).compose("build", timeout=2400)
        print(f"\nbuild {time.monotonic() - begun:.1f} s")
        yield environment
    images = [f"specnorm/{kind}:{environment['SPECNORM_TAG']}" for kind in ("serving", "worker")]
    subprocess.run(["docker", "rmi", *images], check=False, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def stack(built):
    begun = time.monotonic()
    with Stack(built).up() as stack:
        print(f"\nup {time.monotonic() - begun:.1f} s")
        yield stack


@pytest.fixture(scope="session")
def digits():
    return load_digits()
