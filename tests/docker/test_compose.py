"""`docker compose up` on a real engine: build, up, infer, fine-tune, promote, kills, down and up again. Run by `make test-docker`."""

import io
import json
import subprocess
import time

import httpx
import numpy as np
import openai

from tests.app.db.test_upgrade import RELEASES, released
from tests.docker.conftest import MODEL, Stack


def test_the_demo_model_answers_with_its_certificate(stack, digits):
    answer = stack.infer(digits.data[:100].astype(np.float32))
    logits = np.reshape(answer["outputs"][0]["data"], (100, 10))
    assert (logits.argmax(axis=1) == digits.target[:100]).mean() > 0.95
    assert 0 < answer["parameters"]["lipschitz_bound"] <= 0.1251
    sigma = httpx.get(f"{stack.url}/admin/models/{MODEL}/sigma").json()
    assert all(layer["folded_sigma_upper"] <= layer["target"] for layer in sigma["layers"])


def test_the_port_is_open_to_this_machine_alone(stack):
    published = stack.containers("service")[0]["HostConfig"]["PortBindings"]
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
    stack.kill("worker")
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
    stack.kill("service")
    time.sleep(0.5)
    stack.wait_for("/v2/health/ready")
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


def test_containers_can_write_nothing_but_their_state_and_have_no_rights(stack):
    for service in ("service", "worker"):
        container = stack.containers(service)[0]
        host = container["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges:true"])
        assert (host["Memory"] > 0, host["PidsLimit"], container["State"]["Health"]["Status"]) == (True, 512, "healthy")
        assert container["Config"]["User"] == "10001:10001"


def test_the_service_gets_more_of_a_busy_processor_than_a_job(stack):
    shares = {service: stack.containers(service)[0]["HostConfig"]["CpuShares"] for service in ("service", "worker")}
    assert shares["service"] >= 4 * shares["worker"]


def test_the_grace_to_stop_is_longer_than_the_drain(stack):
    container = stack.containers("service")[0]
    drain = next(float(line.partition("=")[2]) for line in container["Config"]["Env"] if line.startswith("SPECNORM_DRAIN_SECONDS="))
    assert container["Config"]["StopTimeout"] > drain


def test_doctor_finds_nothing_wrong_in_either_container(stack):
    for service, wrong in (("service", ["address"]), ("worker", [])):  # the address is taken: by the service itself
        command = ["docker", "compose", "exec", "-T", service, "specnorm", "doctor", "--json"]
        done = subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=False)
        assert [row["check"] for row in json.loads(done.stdout) if not row["ok"]] == wrong, done.stderr


def test_the_volume_of_the_last_release_is_taken_over_with_all_that_is_in_it(built, tmp_path):
    oldest = min(path.name for path in RELEASES.iterdir())
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    released(oldest, workspace)
    stack = Stack(built)
    try:
        stack.compose("create", "service")
        container = stack.containers("service")[0]
        (volume,) = (mount["Source"] for mount in container["Mounts"] if mount["Destination"] == "/data")
        subprocess.run(["cp", "--recursive", f"{workspace}/.", volume], check=True)
        subprocess.run(["chown", "--recursive", "10001:10001", volume], check=True)
        stack.compose("up", "--detach", "service", timeout=120)
        stack.wait_for("/v2/health/live")  # not ready: the files of that release's versions are words in place of graphs
        models = httpx.get(f"{stack.url}/admin/models").json()
        assert {model["name"]: (model["live_version"], model["versions"]) for model in models} == {
            "digits": ("2", ["1", "2", "3"]),
            "wine": (None, ["1", "2"]),
        }
        assert len(httpx.get(f"{stack.url}/v1/fine_tuning/jobs").json()["data"]) == 4
    finally:
        stack.close()
