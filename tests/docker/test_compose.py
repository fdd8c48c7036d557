"""`docker compose up` on a real engine: build, up, infer, fine-tune, promote, kills, down and up again. Run by `make test-docker`."""

import contextlib
import functools
import http.server
import io
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
MODEL = "digits"


class Stack:
    """One compose project of our own, on a free port of the loopback address."""

    def __init__(self, environment):
        self.environment, self.url = environment, f"http://127.0.0.1:{environment['PORT']}"

    def compose(self, *arguments, timeout=900):
        command = ["docker", "compose", "--project-name", self.environment["COMPOSE_PROJECT_NAME"], *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def inside(self, service, program):
        return self.compose("exec", "-T", service, "python3", "-c", program).strip()

    def infer(self, rows):
        body = {"inputs": [{"name": "input", "shape": [len(rows), 64], "datatype": "FP32", "data": rows.ravel().tolist()}]}
        answer = httpx.post(f"{self.url}/v2/models/{MODEL}/infer", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, *_):
        pass


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def wheels():
    """A folder of wheels that pip is told of on this machine, offered to the build over the loopback address."""
    folders = [part for part in os.environ.get("PIP_FIND_LINKS", "").split() if Path(part).is_dir()]
    if not folders:
        yield {}
        return
    handler = functools.partial(Quiet, directory=folders[0])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"PIP_FIND_LINKS": f"http://127.0.0.1:{server.server_port}/"}
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def stack():
    with wheels() as links:
        environment = {**os.environ, **links, "PORT": str(free_port()), "COMPOSE_PROJECT_NAME": f"specnorm-{uuid.uuid4().hex[:8]}"}
        environment.setdefault("SPECNORM_BUILD_NETWORK", "host")
        stack = Stack(environment)
        begun = time.monotonic()
        stack.compose("build", timeout=1500)
        built = time.monotonic()
        stack.compose("up", "--detach", "--wait", timeout=180)
        print(f"\nbuild {built - begun:.1f} s, up {time.monotonic() - built:.1f} s")
    yield stack
    stack.compose("down", "--volumes", "--timeout", "20")


@pytest.fixture(scope="session")
def digits():
    return load_digits()


def wait_for_ready(stack, seconds=60):
    for _ in range(seconds * 10):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{stack.url}/v2/health/ready", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(stack.compose("logs", "--tail", "50"))


def test_the_demo_model_answers_with_its_certificate(stack, digits):
    answer = stack.infer(digits.data[:100].astype(np.float32))
    logits = np.reshape(answer["outputs"][0]["data"], (100, 10))
    assert (logits.argmax(axis=1) == digits.target[:100]).mean() > 0.95
    assert 0 < answer["parameters"]["lipschitz_bound"] <= 0.1251
    sigma = httpx.get(f"{stack.url}/admin/models/{MODEL}/sigma").json()
    assert all(layer["folded_sigma_upper"] <= layer["target"] for layer in sigma["layers"])


def test_the_serving_image_holds_no_torch_and_no_onnx_and_runs_as_nobody_special(stack):
    found = stack.inside("service", "import importlib.util as u, os; print([u.find_spec(n) for n in ('torch', 'onnx')], os.getuid())")
    assert found == "[None, None] 10001"
    size = int(stack.compose("images", "--format", "json", "service").partition('"Size":')[2].split(",")[0].strip("} ]\n"))
    print(f"\nserving image {size / 1e6:.0f} MB")
    assert size < 450e6


def test_the_port_is_open_to_this_machine_alone(stack):
    published = json.loads(subprocess.run(
        ["docker", "inspect", stack.compose("ps", "--quiet", "service").strip()], capture_output=True, text=True, check=True
    ).stdout)[0]["HostConfig"]["PortBindings"]  # fmt: skip
    assert {binding["HostIp"] for bindings in published.values() for binding in bindings} == {"127.0.0.1"}


def test_a_job_runs_in_the_worker_and_its_version_goes_live(stack, digits):
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none")
    rows = "\n".join(json.dumps({"input": x.tolist(), "target": int(y)}) for x, y in zip(digits.data, digits.target, strict=True))
    file = client.files.create(file=("digits.jsonl", io.BytesIO(rows.encode())), purpose="fine-tune")
    hyperparameters = {"n_epochs": 2, "gradient_mode": "full"}
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    )
    # A worker that dies loses nothing: the job is claimed again.
    time.sleep(2)
    stack.compose("kill", "--signal", "KILL", "worker")
    stack.compose("start", "worker")
    for _ in range(240):
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in {"succeeded", "failed", "cancelled"}:
            break
        time.sleep(0.5)
    assert job.status == "succeeded", (job.error, stack.compose("logs", "--tail", "80", "worker"))
    version = job.fine_tuned_model.rpartition(":")[2]
    promoted = httpx.post(f"{stack.url}/admin/models/{MODEL}/promote", json={"version": version}, timeout=30)
    assert promoted.json()["live_version"] == version
    assert stack.infer(digits.data[:1].astype(np.float32))["model_version"] == version


def test_a_killed_service_comes_back_with_its_state(stack, digits):
    before = stack.infer(digits.data[:5].astype(np.float32))
    stack.compose("kill", "--signal", "KILL", "service")
    stack.compose("start", "service")
    wait_for_ready(stack)
    assert stack.infer(digits.data[:5].astype(np.float32))["outputs"] == before["outputs"]


def test_down_and_up_keep_models_and_jobs(stack, digits):
    before = stack.infer(digits.data[:5].astype(np.float32))
    jobs = httpx.get(f"{stack.url}/v1/fine_tuning/jobs").json()["data"]
    begun = time.monotonic()
    stack.compose("down", "--timeout", "20")
    stack.compose("up", "--detach", "--wait", timeout=120)
    print(f"\ndown and up {time.monotonic() - begun:.1f} s")
    after = stack.infer(digits.data[:5].astype(np.float32))
    assert (after["model_version"], after["outputs"]) == (before["model_version"], before["outputs"])
    assert httpx.get(f"{stack.url}/v1/fine_tuning/jobs").json()["data"] == jobs


def test_the_console_and_the_api_page_are_there(stack):
    for path in ("/", "/docs", "/openapi.json"):
        assert httpx.get(f"{stack.url}{path}").status_code == 200
