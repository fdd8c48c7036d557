"""The two networks of the comparison, random weights, with a ReLU between the layers."""

import itertools
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from export import bundle

WIDTHS = {"S": (64, 128, 128, 10), "M": (784, 1024, 1024, 10)}


def network(widths: tuple[int, ...], *, seed: int = 0) -> tuple[bundle.Manifest, bytes]:
    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    weights: dict[str, np.ndarray] = {}
    last = "input"
    for at, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        final = at == len(widths) - 2
        weights[f"w{at}"] = (rng.standard_normal((wide, narrow)) / wide**0.5).astype(np.float32)
        weights[f"b{at}"] = np.zeros(narrow, np.float32)
        nodes.append(helper.make_node("Gemm", [last, f"w{at}", f"b{at}"], ["logits" if final else f"h{at}"]))
        if not final:
            nodes.append(helper.make_node("Relu", [f"h{at}"], [f"r{at}"]))
        last = f"r{at}"
    shapes = {"input": (None, widths[0]), "logits": (None, widths[-1])}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [info["input"]], [info["logits"]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    tensors = {
        name: bundle.Tensor(name=name, datatype="FP32", shape=tuple(-1 if size is None else size for size in shape))
        for name, shape in shapes.items()
    }
    manifest = bundle.Manifest(
        signature=bundle.Signature(inputs=(tensors["input"],), outputs=(tensors["logits"],), rows_independent=True),
        input=bundle.InputDomain(minimum=0.0, maximum=1.0),
        lipschitz=bundle.Lipschitz(bound=None, rigorous=False, method=None, reason="random weights"),
        origin="bench",
        files={bundle.MODEL: bundle.digest(model)},
    )
    return manifest, model
