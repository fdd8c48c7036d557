"""A model is served on a CUDA device: it says so, and its answers are those of the CPU."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.inference.session import Session
from app.settings import Settings
from export.bundle import MODEL, Lipschitz, Manifest, Signature, Tensor, digest


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(64, 128)).astype(np.float32) / 8, "b": rng.normal(size=(128, 10)).astype(np.float32) / 11}
    nodes = [
        helper.make_node("MatMul", ["input", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "b"], ["logits"]),
    ]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name, size in (("input", 64), ("logits", 10))}
    initial = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [values["input"]], [values["logits"]], initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture
def manifest(model):
    tensors = {name: Tensor(name=name, datatype="FP32", shape=(-1, size)) for name, size in (("input", 64), ("logits", 10))}
    return Manifest(
        signature=Signature(inputs=(tensors["input"],), outputs=(tensors["logits"],), rows_independent=True),
        lipschitz=Lipschitz(bound=None, rigorous=False, method=None, reason="a test"),
        origin="test",
        files={MODEL: digest(model)},
    )


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_it_runs_there_and_answers_as_the_cpu_does(model, manifest, device):
    there = Session(model, manifest, Settings(_env_file=None, device=device))
    here = Session(model, manifest, Settings(_env_file=None, device="cpu"))
    assert (there.device, there.device_reason) == ("cuda", None)
    assert (here.device, here.device_reason) == ("cpu", None)
    rows = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
    np.testing.assert_allclose(there.run({"input": rows})["logits"], here.run({"input": rows})["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_runs_in_memory_that_is_bound_there_answer_as_the_cpu_does(model, manifest, rows):
    there = Session(model, manifest, Settings(_env_file=None, device="cuda"))
    here = Session(model, manifest, Settings(_env_file=None, device="cpu"))
    kept = []
    for seed in range(3):
        feed = {"input": np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)}
        kept.append((there.run(feed)["logits"], here.run(feed)["logits"]))
    assert there._bindings.find(feed) is not None
    for ours, expected in kept:  # each in memory of its own
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
