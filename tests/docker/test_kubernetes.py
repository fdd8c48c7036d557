"""The containers of the manifests, run by hand with the commands, variables, users and mounts that the manifests give them."""

import json
import subprocess
import time
import uuid

import httpx
import numpy as np
import pytest
import yaml

from app.security import ALL, create_key
from tests.docker.conftest import ROOT, free_port

FOLDER = ROOT / "examples" / "deployment" / "kubernetes"


@pytest.fixture
def keys(tmp_path):
    tmp_path.chmod(0o755)
    _, secret = create_key(tmp_path / "keys.json", list(ALL))
    (tmp_path / "keys.json").chmod(0o644)
    return tmp_path, {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def run(built):
    names = []

    def start(container, image, variables, mounts, port):
        names.append(f"specnorm-{uuid.uuid4().hex[:8]}")
        published = free_port()
        security = container["securityContext"]
        options = [
            "--name",
            names[-1],
            "--user",
            str(security.get("runAsUser", 10001)),
            "--cap-drop",
            "ALL",
            "--publish",
            f"127.0.0.1:{published}:{port}",
        ]
        options += ["--network", network, *(["--read-only", "--tmpfs", "/tmp"] if security.get("readOnlyRootFilesystem") else [])]
        options += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        options += [part for source, target in mounts.items() for part in ("--volume", f"{source}:{target}")]
        subprocess.run(["docker", "run", "--detach", *options, image, *container["args"]], check=True, stdout=subprocess.DEVNULL)
        return published, names[-1]

    network = f"specnorm-{uuid.uuid4().hex[:8]}"
    subprocess.run(["docker", "network", "create", network], check=True, stdout=subprocess.DEVNULL)
    yield start
    for name in names:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=False, stdout=subprocess.DEVNULL)
    subprocess.run(["docker", "network", "rm", network], check=False, stdout=subprocess.DEVNULL)


def probed(port, probe, name, seconds=90):
    """Wait until a probe is content."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}{probe['httpGet']['path']}", headers={"Host": "10.1.2.3:8000"}).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=False).stderr)


def asked(port, model, keys):
    body = {"inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP32", "data": np.zeros(64).tolist()}]}
    return httpx.post(f"http://127.0.0.1:{port}/v2/models/{model}/infer", json=body, headers=keys, timeout=10)


def test_the_runtime_for_kserve_serves_the_bundle_that_is_mounted_under_the_name_of_its_service(run, built, keys, tmp_path):
    folder, header = keys
    runtime, _service = yaml.safe_load_all((FOLDER / "kserve.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    image = f"specnorm/serving:{built['SPECNORM_TAG']}"
    made = subprocess.run(["docker", "create", image], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["docker", "cp", f"{made}:/srv/demo/digits", tmp_path / "models"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["docker", "rm", "--volumes", made], check=True, stdout=subprocess.DEVNULL)
    variables = {one["name"]: one["value"].replace("{{.Name}}", "mine") for one in container["env"]}
    mounts = {tmp_path / "models": "/mnt/models:ro", folder: "/etc/specnorm:ro"}
    port, name = run(container, image, variables, mounts, container["ports"][0]["containerPort"])
    probed(port, container["readinessProbe"], name)
    assert asked(port, "mine", header).status_code == 200
    assert asked(port, "mine", {}).status_code == 401


def test_a_replica_of_the_deployment_passes_its_probes_and_asks_for_keys(run, built, keys):
    folder, header = keys
    documents = list(yaml.safe_load_all((FOLDER / "specnorm.yaml").read_text()))
    variables = next(one["data"] for one in documents if one["kind"] == "ConfigMap")
    deployment = next(one for one in documents if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    image = f"specnorm/serving:{built['SPECNORM_TAG']}"
    port, name = run(container, image, variables, {folder: "/etc/specnorm:ro"}, 8000)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        probed(port, container[probe], name)
    assert (asked(port, "digits", {}).status_code, asked(port, "digits", header).status_code) == (401, 200)
    metrics = deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"]
    assert httpx.get(f"http://127.0.0.1:{port}{metrics}").status_code == 200
    stop = container["lifecycle"]["preStop"]["exec"]["command"]
    assert subprocess.run(["docker", "exec", name, *stop], check=False).returncode == 0
    inspected = json.loads(subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True).stdout)[0]
    assert inspected["HostConfig"]["ReadonlyRootfs"]
