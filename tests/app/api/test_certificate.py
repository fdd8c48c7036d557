"""What a served model says of its certificate: in its metadata, its manifest and its answers, the same numbers."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

import specnorm_core as sn
from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export.pipeline import export_bundle
from specnorm_core.architecture import Architecture, Linear, Sort


def test_metadata_manifest_and_answers_tell_of_one_certificate(
    tmp_path: Path, listen: Callable[..., contextlib.AbstractContextManager[str]]
) -> None:
    registry = Registry(connect(tmp_path), Blobs(tmp_path / "blobs"))
    manifests = {}
    for name, labels in (("classifier", ("a", "b", "c")), ("regressor", ())):
        spec = Architecture(input_shape=(4,), layers=(Linear(features=6), Sort(), Linear(features=3)), shift=0.5, scale=0.25)
        model = sn.build(spec, seed=0)
        sn.power_iteration(model, 50)
        manifests[name], files = export_bundle(model, spec, labels=labels)
        registry.promote(name, registry.publish(name, manifests[name], files), why="test", who="test")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    body = {"inputs": [{"name": "input", "shape": [5, 4], "datatype": "FP32", "data": x.ravel().tolist()}]}
    with listen(Settings(workspace=tmp_path, worker="none")) as url, httpx.Client(base_url=url, timeout=30) as http:
        for name, manifest in manifests.items():
            told, certificate = http.get(f"/v2/models/{name}").json()["properties"], manifest.lipschitz
            assert (float(told["lipschitz_bound"]), told["lipschitz_norm"]) == (certificate.bound, "l2")
            assert told["lipschitz_method"] == certificate.method == "chain"
            assert tuple(json.loads(told["sensitivity"])) == certificate.sensitivity
            assert told["input_normalisation"] == "(x - 0.5) * 0.25, inside the graph"
            stored = http.get(f"/admin/models/{name}/versions/1").json()["manifest"]
            assert stored["lipschitz"]["sensitivity"] == list(certificate.sensitivity)
            assert stored["input"]["normalisation"] == told["input_normalisation"]
            answer = http.post(f"/v2/models/{name}/infer", json=body).json()
            outputs = [output["name"] for output in answer["outputs"]]
            assert outputs == (["logits", "certified_radius"] if name == "classifier" else ["prediction"])
            assert answer["parameters"]["lipschitz_bound"] == certificate.bound
