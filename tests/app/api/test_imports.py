"""Models from elsewhere over HTTP, judged by a real worker: what is admitted is served, what is not changes nothing."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from app.api import imports
from app.db import connect
from app.jobs.admissions import Admissions
from app.jobs.admitter import Admitter
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings


def dense(scale: float) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(scale * np.eye(3, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


class Worker:
    """Judges in a thread what waits in a workspace."""

    def __init__(self, workspace: Path) -> None:
        self.registry = Registry(connect(workspace), Blobs(workspace / "blobs"))
        self.admissions = Admissions(self.registry.database)
        self.admitter = Admitter(self.admissions, self.registry, Settings(workspace=workspace, lease_seconds=5))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._turn)

    def _turn(self) -> None:
        while not self._over.wait(0.05):
            self.admitter.turn()

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.admitter.close()
        self.registry.database.dispose()


@pytest.fixture
def http(tmp_path: Path, listen: Callable[[Settings], contextlib.AbstractContextManager[str]]) -> Iterator[httpx.Client]:
    with listen(Settings(workspace=tmp_path, worker="none")) as url, httpx.Client(base_url=url, timeout=90) as client:
        yield client


def row(http: httpx.Client, model: str) -> list[float]:
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    found = http.post(f"/v2/models/{model}/infer", json=body)
    assert found.status_code == 200, found.text
    numbers: list[float] = found.json()["outputs"][0]["data"]
    return numbers


def test_a_model_is_judged_published_and_served_with_its_certificate_when_the_answer_comes(tmp_path: Path, http: httpx.Client) -> None:
    with Worker(tmp_path):
        found = http.post("/admin/models", data={"name": "mine"}, files={"file": ("m.onnx", dense(2))}, headers={"Idempotency-Key": "k"})
        assert (found.status_code, found.json()["status"], found.json()["version"]) == (200, "succeeded", "1"), found.text
        again = http.post("/admin/models", data={"name": "mine"}, files={"file": ("m.onnx", dense(2))}, headers={"Idempotency-Key": "k"})
        assert again.json() == found.json() == http.get(f"/admin/imports/{found.json()['id']}").json()
        assert row(http, "mine") == [2, 4, 6]
        assert 2 <= http.get("/admin/models/mine/sigma").json()["lipschitz"]["bound"] < 2.001

        client = triton.InferenceServerClient(httpx.URL(http.base_url).netloc.decode(), network_timeout=90)
        client.load_model("mine", config="{}", files={"file:7/model.onnx": dense(3)})
        assert row(http, "mine") == [3, 6, 9]
        assert client.get_model_metadata("mine")["versions"] == ["1", "2"]
        with pytest.raises(InferenceServerException, match="no ONNX model") as refused:
            client.load_model("mine", config="{}", files={"file:3/model.onnx": b"\x80\x04nothing"})
        assert "400" in str(refused.value.status())
        assert row(http, "mine") == [3, 6, 9]
        client.unload_model("mine")
        assert not client.is_model_ready("mine")
        assert {(one["state"], one["reason"]) for one in client.get_model_repository_index()} == {("UNAVAILABLE", "unloaded")}
        assert http.post("/v2/models/mine/infer", json={}).status_code == 503
        assert http.post("/v2/models/mine/versions/1/infer", json={}).status_code == 503
        assert http.get("/v2/health/ready").status_code == 200
        time.sleep(0.7)  # whoever follows the promoted version must not bring it back
        assert not client.is_model_ready("mine")
        client.load_model("mine")
        assert row(http, "mine") == [3, 6, 9]
        client.close()


def test_without_a_worker_it_is_503_with_a_sentence_and_nothing_is_left_waiting(
    tmp_path: Path, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "CLAIM_SECONDS", 0.2)
    found = http.post("/admin/models", data={"name": "mine"}, files={"file": ("m.onnx", dense(2))})
    assert found.status_code == 503
    assert "specnorm worker" in found.json()["error"]
    body = {"parameters": {"config": "{}", "file:1/model.onnx": base64.b64encode(dense(1)).decode()}}
    assert http.post("/v2/repository/models/mine/load", json=body).status_code == 503
    assert Admissions(connect(tmp_path)).claim("somebody") is None


def test_who_does_not_wait_gets_202_and_the_id_to_ask_with(http: httpx.Client) -> None:
    found = http.post("/admin/models?wait=0", data={"name": "mine"}, files={"file": ("m.onnx", dense(2))})
    assert found.status_code == 202
    assert http.get(f"/admin/imports/{found.json()['id']}").json()["status"] == "waiting"


BAD: dict[str, tuple[dict[str, str], list[tuple[str, Any]]]] = {
    "no file": ({"name": "m"}, []),
    "no name": ({}, [("file", ("m.onnx", b"x"))]),
    "a name that is none": ({"name": "../m"}, [("file", ("m.onnx", b"x"))]),
    "a path": ({"name": "m"}, [("file", ("../m.onnx", b"x"))]),
    "another format": ({"name": "m"}, [("file", ("m.pkl", b"x"))]),
    "no manifest": ({"name": "m"}, [("file", ("a.onnx", b"x")), ("file", ("b.json", b"x"))]),
    "one name twice": ({"name": "m"}, [("file", ("a.onnx", b"x")), ("file", ("a.onnx", b"x"))]),
    "an address to fetch from": ({"name": "m", "url": "http://example.org/m.onnx"}, [("file", ("m.onnx", b"x"))]),
}


def test_what_is_no_import_is_400(http: httpx.Client) -> None:
    for case, (data, files) in BAD.items():
        found = http.post("/admin/models", data=data, files=files or None)
        assert found.status_code == 400, case
        assert set(found.json()) == {"error"}, case


LOADS: dict[str, Any] = {
    "path traversal": {"file:../../x/model.onnx": ""},
    "another name": {"file:1/weights.bin": ""},
    "no version": {"file:model.onnx": ""},
    "a name of 256 characters": {f"file:1/{'m' * 256}": ""},
    "NUL": {"file:1/model.onnx\0": ""},
    "two files": {"file:1/model.onnx": "", "file:2/model.onnx": ""},
    "no base64": {"file:1/model.onnx": "%%%"},
    "no text": {"file:1/model.onnx": 1},
    "empty": {"file:1/model.onnx": ""},
    "config that is no JSON": {"config": "{"},
    "config that is an array": {"config": "[]"},
    "another backend": {"config": json.dumps({"backend": "python"})},
    "unknown": {"model_uri": "http://example.org"},
    "no object": [1],
}


def test_what_is_no_load_is_400_and_writes_nothing(tmp_path: Path, http: httpx.Client) -> None:
    before = sorted(tmp_path.rglob("*"))
    for case, parameters in LOADS.items():
        found = http.post("/v2/repository/models/m/load", json={"parameters": parameters})
        assert found.status_code == 400, case
        assert set(found.json()) == {"error"}, case
    assert sorted(tmp_path.rglob("*")) == before


def test_an_import_whose_judge_has_died_ends_as_failed(tmp_path: Path) -> None:
    registry = Registry(connect(tmp_path), Blobs(tmp_path / "blobs"))
    admissions = Admissions(registry.database)
    made = admissions.create("m", {"m.onnx": registry.blobs.put(b"x")})
    assert admissions.claim("dead") is not None
    now = [0.0]
    other = Admitter(admissions, registry, Settings(workspace=tmp_path, lease_seconds=10), clock=lambda: now[0])
    for clock, status in ((0.0, "running"), (9.0, "running"), (10.5, "failed")):
        now[0] = clock
        other.turn()
        assert admissions.get(made["id"])["status"] == status
    registry.database.dispose()
