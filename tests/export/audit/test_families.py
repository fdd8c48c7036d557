"""Public architectures (fixtures/families.py says how they came to be), with random weights: a bound that holds, or what prevents one."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.audit import audit

FILES = Path(__file__).parent / "fixtures" / "families"
BOUNDED = ("convnext", "densenet", "inception", "mnasnet", "mobilenet_v2", "resnet", "resnext", "shufflenet", "squeezenet", "vgg")
UNBOUNDED = {
    "efficientnet": "Mul",
    "mobilenet_v3": "Mul",
    "vit": "MatMul",
}


@cache
def content(name):
    """A file with the weights that it leaves out, drawn at random."""
    model, rng = onnx.load(FILES / f"{name}.onnx"), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1 and not tensor.raw_data and not tensor.float_data:
            value = rng.standard_normal(tuple(tensor.dims), dtype=np.float32) / np.float32(np.sqrt(np.prod(tensor.dims[1:])))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model.SerializeToString()


def largest_quotient(name, low, high):
    session = ort.InferenceSession(content(name), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    rng, best = np.random.default_rng(1), 0.0
    for spread in (0.03, 0.3):
        a = rng.uniform(low, high, (6, *given.shape[1:])).astype(np.float32)
        b = np.clip(a + spread * (high - low) * rng.standard_normal(a.shape).astype(np.float32), low, high).astype(np.float32)
        ya, yb = (np.stack([session.run(["logits"], {given.name: row[None]})[0].ravel().astype(np.float64) for row in x]) for x in (a, b))
        apart = np.linalg.norm((a.astype(np.float64) - b).reshape(6, -1), axis=1)
        best = max(best, float((np.linalg.norm(ya - yb, axis=1) / apart).max()))
    return best


@pytest.mark.parametrize("name", BOUNDED)
def test_a_public_architecture_has_a_bound_that_no_pair_of_images_exceeds(name):
    report = audit(content(name))
    found = report.lipschitz["logits"]
    assert found.rigorous
    assert report.rows_independent
    assert 0 < largest_quotient(name, -2.0, 2.0) <= found.bound * (1 + 1e-3)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_an_architecture_without_a_constant_is_told_where_and_has_one_on_a_box(name):
    found = audit(content(name)).lipschitz["logits"]
    assert found.bound is None
    assert found.reason.startswith(UNBOUNDED[name])
    places = {f"{node.op_type} at {node.name!r}" for node in onnx.load_from_string(content(name)).graph.node}
    assert all(cause.partition(":")[0] in places for cause in found.reason.split("; "))
    boxed = audit(content(name), box={"input": ((0.0, 1.0),)}).on_box["logits"]
    assert boxed.bound is not None
    assert 0 < largest_quotient(name, 0.0, 1.0) <= boxed.bound * (1 + 1e-3)
