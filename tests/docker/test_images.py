"""What is in the images, and how soon the service answers."""

import json
import subprocess
import tomllib

import pytest

from tests.docker.conftest import ROOT, inspect


def inside(image, program, *options):
    command = ["docker", "run", "--rm", "--network", "none", *options, image, "python3", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def serving(built):
    return f"specnorm/serving:{built['SPECNORM_TAG']}"


@pytest.fixture
def worker(built):
    return f"specnorm/worker:{built['SPECNORM_TAG']}"


def test_the_serving_image_is_small_and_holds_no_torch_no_onnx_and_nothing_that_installs(serving):
    found = inside(serving, "import importlib.util as u; print([n for n in ('torch', 'onnx', 'specnorm', 'setuptools') if u.find_spec(n)])")
    assert found == "[]"
    size = inspect(serving)["Size"]
    print(f"\nserving image {size / 1e6:.0f} MB")
    assert size <= 400e6


def test_the_serving_image_speaks_to_postgresql_and_s3_and_the_worker_trains_privately_and_reads_parquet(serving, worker):
    every = "import importlib.util as u; print([n for n in {} if not u.find_spec(n)])"
    assert inside(serving, every.format(["psycopg", "obstore", "grpc", "onnxruntime"])) == "[]"
    assert inside(worker, every.format(["psycopg", "obstore", "torch", "onnx", "opacus", "pyarrow"])) == "[]"


def test_images_say_what_they_are_and_list_every_package_at_its_locked_version(serving, worker):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for image, lock in ((serving, "serving-cpu"), (worker, "worker-cpu")):
        labels = {name.rpartition(".")[2]: text for name, text in inspect(image)["Config"]["Labels"].items()}
        assert (labels["version"], labels["revision"], labels["licenses"]) == (version, "tested", "Apache-2.0")
        listed = json.loads(inside(image, "print(open('/srv/sbom.json').read())"))
        components = {part["name"].lower().replace("_", "-"): part["version"] for part in listed["components"]}
        assert components.pop("specnorm") == version
        components.pop("torch", None)
        text = (ROOT / ".ci" / "locks" / f"{lock}.txt").read_text()
        locked = {f"{name} {number}" for name, number in (line.split()[0].split("==") for line in text.splitlines() if "==" in line)}
        assert {f"{name} {number}" for name, number in components.items()} <= locked


def test_nothing_is_compiled_where_the_service_runs(serving):
    program = """
import importlib.util, os, sys
import app.cli.process, app.main
sources = [file for module in sys.modules.values() if (file := getattr(module, "__file__", None) or "").endswith(".py")]
print([file for file in sources if not os.path.exists(importlib.util.cache_from_source(file))])
"""
    assert inside(serving, program, "--read-only") == "[]"


def test_the_commands_are_given_to_the_kernel_and_not_to_a_shell(serving, worker):
    assert inspect(serving)["Config"]["Cmd"] == ["specnorm", "serve"]
    assert inspect(worker)["Config"]["Cmd"][:2] == ["specnorm", "worker"]
    for image in (serving, worker):
        assert inspect(image)["Config"]["Healthcheck"]["Test"][0] == "CMD"
        assert inspect(image)["Config"]["User"] == "10001:10001"
