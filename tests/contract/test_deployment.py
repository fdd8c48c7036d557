"""The images, compose, rules, dashboard and manifests speak of what there is: versions, commands, routes, metrics, settings."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from app.cli import root
from app.security import scope_of
from app.settings import Settings

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "examples" / "deployment"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
MANIFESTS = [
    document for name in ("specnorm", "kserve") for document in yaml.safe_load_all((ASSETS / "kubernetes" / f"{name}.yaml").read_text())
]
UNUSED = 1  # a port at which nobody listens
TEXTS = [path for path in sorted(ASSETS.rglob("*")) if path.suffix in {".yaml", ".yml", ".json", ".conf"}]


def containers() -> list[dict[str, Any]]:
    specs = [one["spec"].get("template", one)["spec"] for one in MANIFESTS if "spec" in one]
    return [container for spec in specs for container in spec.get("containers", [])]


def metrics_known() -> set[str]:
    page = (ROOT / "docs" / "reference.md").read_text()
    listed = set(re.findall(r"^\| `((?:nv_inference|specnorm|process)_\w+)` \|", page, re.MULTILINE))
    return listed | {f"{name}{suffix}" for name in listed for suffix in ("_bucket", "_sum", "_count")}


def test_the_version_is_the_same_everywhere() -> None:
    assert re.findall(r"ARG VERSION=(\S+)", DOCKERFILE) == [PROJECT["version"]]
    images = [service["image"] for service in COMPOSE["services"].values() if service["image"].startswith("specnorm/")]
    assert {image.partition(":")[2] for image in images} == {f"${{SPECNORM_TAG:-{PROJECT['version']}}}"}
    ours = [one["image"] for one in containers() if one["image"].startswith("specnorm/")]
    assert {image.partition(":")[2] for image in ours} == {PROJECT["version"]}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("serving-cpu", ["cpu", "postgres", "s3", "grpc", "otel"]), ("worker-cpu", ["cpu", "postgres", "s3", "train", "privacy", "parquet"])],
)
def test_locks_hold_all_that_the_project_asks_for_each_file_by_its_hash(lock: str, extras: list[str]) -> None:
    text = (ROOT / ".ci" / "locks" / f"{lock}.txt").read_text() + (ROOT / ".ci" / "locks" / "torch-cpu.txt").read_text()
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {entry.partition("==")[0] for entry in entries}
    asked = [*PROJECT["dependencies"], *(need for extra in extras for need in PROJECT["optional-dependencies"][extra])]
    assert {re.split(r"[\[><=]", need)[0] for need in asked} <= locked


def test_every_command_of_an_image_and_of_a_manifest_is_one_of_ours() -> None:
    lines = [json.loads(line) for line in re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    lines += [container["args"] for container in containers()]
    assert len(lines) == 5
    for program, *words in lines:
        told = CliRunner().invoke(root, [*words, "--help"])
        assert (program, told.exit_code) == ("specnorm", 0), shlex.join(words)


def test_a_container_that_is_not_alive_is_told_so_by_its_check(tmp_path: Path) -> None:
    checks = [json.loads(line) for line in re.findall(r"^  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    checks += [container["livenessProbe"]["exec"]["command"] for container in containers() if "exec" in container.get("livenessProbe", {})]
    assert len(checks) == 3
    alive = tmp_path / "alive"
    alive.touch()
    for program, *words in checks:
        told = [word.replace("/tmp/alive", str(alive)).replace("8000", str(UNUSED)) for word in words]
        found = subprocess.run([sys.executable, *told], capture_output=True, text=True, check=False)
        if str(alive) in told[-1]:
            assert (found.returncode, found.stderr) == (0, "")
            old = [word.replace("/tmp/alive", str(ROOT / "LICENSE")) for word in words]
            assert subprocess.run([sys.executable, *old], capture_output=True, text=True, check=False).stderr == ""
        else:
            assert found.returncode == 1
            assert "ConnectionRefusedError" in found.stderr
        assert program == "python3"


def test_every_probe_asks_a_route_that_needs_no_key() -> None:
    probes = [container[kind] for container in containers() for kind in container if kind.endswith("Probe")]
    paths = [probe["httpGet"]["path"] for probe in probes if "httpGet" in probe]
    assert len(paths) == 4
    assert {scope_of(path) for path in paths} == {None}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_metrics_and_settings_that_are_named_exist(path: Path) -> None:
    text = path.read_text() + ((ROOT / "docker-compose.yml").read_text() if path.name == "replicas.yml" else "")
    named = set(re.findall(r"\b(?:nv_inference_\w+|specnorm_(?!database|s3_|blobs)\w+)\b", text))
    assert named <= metrics_known()
    settings = {f"SPECNORM_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bSPECNORM_[A-Z_]+\b", text)) <= settings | {"SPECNORM_TAG", "SPECNORM_BUILD_NETWORK"}
    assert {f"SPECNORM_{name.upper()}" for name in re.findall(r"\bspecnorm_((?:database|s3|blobs)_\w+)", text)} <= settings


def test_a_grace_to_stop_is_longer_than_the_drain() -> None:
    drain = float(COMPOSE["x-environment"]["SPECNORM_DRAIN_SECONDS"])
    assert float(COMPOSE["x-specnorm"]["stop_grace_period"].removesuffix("s")) > drain
    (ours,) = (one["data"] for one in MANIFESTS if one["kind"] == "ConfigMap")
    graces = [one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for one in MANIFESTS if one["kind"] == "Deployment"]
    assert min(graces) > float(ours["SPECNORM_DRAIN_SECONDS"]) + 5  # preStop


def test_no_container_is_root_or_may_write_its_image() -> None:
    for name, service in COMPOSE["services"].items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
    for container in containers():
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
