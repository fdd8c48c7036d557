"""What import-linter cannot see: `importlib`, and what libraries bring along."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from export.bundle import MODEL, Lipschitz, Manifest, Signature, Tensor, digest

SERVE = """
import json, sys
from pathlib import Path
from starlette.testclient import TestClient
from app.main import create_app
from app.settings import Settings

with TestClient(create_app(Settings(workspace=Path(sys.argv[1]), _env_file=None)), base_url="http://127.0.0.1") as client:
    body = {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    answers = [client.post("/v2/models/m/infer", json=body)]
    paths = ("/", "/docs", "/openapi.json", "/metrics", "/admin/models", "/v1/models", "/v1/fine_tuning/jobs")
    answers += [client.get(path) for path in paths]
print(json.dumps({"status": [a.status_code for a in answers], "modules": sorted(sys.modules), "answer": answers[0].json()}))
"""

CLI = """
import json, sys
import app.cli
print(json.dumps(sorted(sys.modules)))
"""


def publish_identity(workspace: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("input", "logits")]
    node = helper.make_node("MatMul", ["input", "w"], ["logits"])
    graph = helper.make_graph([node], "g", value[:1], value[1:], [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    tensors = [Tensor(name=name, datatype="FP32", shape=(-1, 2)) for name in ("input", "logits")]
    manifest = Manifest(
        signature=Signature(inputs=(tensors[0],), outputs=(tensors[1],), rows_independent=True),
        lipschitz=Lipschitz(bound=1.0, rigorous=True, method="product"),
        origin="test",
        files={MODEL: digest(model)},
    )
    registry = Registry(connect(workspace), Blobs(workspace / "blobs"))
    registry.promote("m", registry.publish("m", manifest, {MODEL: model}), why="test", who="test")


def run(source: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(modules: list[str], *packages: str) -> list[str]:
    return [name for name in modules if name.partition(".")[0] in packages]


def test_the_serving_process_answers_and_loads_neither_torch_nor_onnx(tmp_path: Path) -> None:
    publish_identity(tmp_path)
    seen = json.loads(run(SERVE, str(tmp_path)))
    assert seen["status"] == [200] * 8
    assert seen["answer"]["outputs"][0]["data"] == [1.0, 2.0]
    assert seen["answer"]["parameters"]["lipschitz_bound"] == 1.0
    assert loaded(seen["modules"], "onnxruntime")
    assert not loaded(seen["modules"], "torch", "onnx", "scipy", "sklearn", "specnorm_core")


def test_the_command_loads_nothing_heavy_before_it_knows_what_to_do() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "numpy", "scipy", "sqlalchemy", "fastapi", "uvicorn", "httpx", "rich")
    assert not loaded(json.loads(run(CLI)), *heavy)


@pytest.mark.parametrize("module", ["specnorm_core.bounds", "export.audit", "export.bundle"])
def test_bounds_audit_and_format_load_no_torch(module: str) -> None:
    assert not loaded(json.loads(run(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")), "torch")
