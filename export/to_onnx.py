"""Write a folded network as an ONNX graph: plain weights and a free batch axis."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from export.graph import Graph
from specnorm_core.activations import FullSort, GroupSort
from specnorm_core.architecture import Network

OPSET, WRAPPING_OPSET = 18, 19
"""Only ``Pad`` of mode ``wrap`` needs the later one, which the CUDA kernels of ONNX Runtime do not all have."""
IR_VERSION = 10
"""ONNX Runtime 1.18 and later read it."""
PAD_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
LOGITS, PREDICTION = "logits", "prediction"


class GraphError(ValueError):
    """A layer has no form in the graph; the sentence names it."""


def _linear(graph: Graph, name: str, layer: nn.Linear) -> str:
    inputs = [graph.at, graph.weight(f"{name}.weight", layer.weight.detach().numpy())]
    if layer.bias is not None:
        inputs.append(graph.weight(f"{name}.bias", layer.bias.detach().numpy()))
    return graph.node("Gemm", inputs, name, transB=1)


def _conv(graph: Graph, name: str, layer: Any) -> str:
    pads, source = list(layer.padding) * 2, graph.at
    if layer.padding_mode != "zeros":
        widths = graph.weight(f"{name}.pads", np.array([0, 0, *layer.padding] * 2, dtype=np.int64))
        source, pads = graph.node("Pad", [graph.at, widths], f"{name}.padded", mode=PAD_MODES[layer.padding_mode]), [0] * len(pads)
    return _convolution(graph, "Conv", name, layer, [source], pads=pads)


def _transposed(graph: Graph, name: str, layer: Any) -> str:
    pads, extra = list(layer.padding) * 2, list(layer.output_padding)
    return _convolution(graph, "ConvTranspose", name, layer, [graph.at], pads=pads, output_padding=extra)


def _convolution(graph: Graph, op: str, name: str, layer: Any, inputs: list[str], **attributes: Any) -> str:
    inputs = [*inputs, graph.weight(f"{name}.weight", layer.weight.detach().numpy())]
    if layer.bias is not None:
        inputs.append(graph.weight(f"{name}.bias", layer.bias.detach().numpy()))
    return graph.node(
        op, inputs, name, kernel_shape=list(layer.kernel_size), strides=list(layer.stride), dilations=list(layer.dilation),
        group=layer.groups, **attributes,
    )  # fmt: skip


def _opset(graph: Graph) -> int:
    """Return the oldest opset that has all of it."""
    wraps = any(attribute.s == b"wrap" for node in graph.nodes for attribute in node.attribute)
    return WRAPPING_OPSET if wraps else OPSET


def _reshape(graph: Graph, source: str, name: str, shape: list[int]) -> str:
    return graph.node("Reshape", [source, graph.weight(f"{name}.shape", np.array(shape, dtype=np.int64))], name)


def _sort(graph: Graph, name: str, size: int, shape: tuple[int, ...]) -> str:
    """Sort groups: (B, C, ...) → (B, C/size, size, ...) → TopK of all → back; MaxMin takes max and min over the pairs, which costs less."""
    channels, *rest = shape
    if size == 1:  # FullSort of one feature
        return graph.node("Identity", [graph.at], name)
    pairs = _reshape(graph, graph.at, f"{name}.groups", [0, channels // size, size, *rest])
    if size > 2:
        everything = graph.weight(f"{name}.size", np.array([size], dtype=np.int64))
        outputs = [f"{name}.sorted", f"{name}.order"]
        graph.nodes.append(helper.make_node("TopK", [pairs, everything], outputs, name=outputs[0], axis=2))
        return _reshape(graph, outputs[0], name, [0, channels, *rest])
    axes = graph.weight(f"{name}.axes", np.array([2], dtype=np.int64))
    high = graph.node("ReduceMax", [pairs, axes], f"{name}.max", keepdims=1)
    low = graph.node("ReduceMin", [pairs, axes], f"{name}.min", keepdims=1)
    return _reshape(graph, graph.node("Concat", [high, low], f"{name}.sorted", axis=2), name, [0, channels, *rest])


WRITERS: dict[type[nn.Module], Callable[[Graph, str, Any, tuple[int, ...]], str]] = {
    nn.Linear: lambda graph, name, layer, shape: _linear(graph, name, layer),
    nn.Conv1d: lambda graph, name, layer, shape: _conv(graph, name, layer),
    nn.Conv2d: lambda graph, name, layer, shape: _conv(graph, name, layer),
    nn.Conv3d: lambda graph, name, layer, shape: _conv(graph, name, layer),
    nn.ConvTranspose2d: lambda graph, name, layer, shape: _transposed(graph, name, layer),
    nn.ReLU: lambda graph, name, layer, shape: graph.node("Relu", [graph.at], name),
    nn.Flatten: lambda graph, name, layer, shape: _reshape(graph, graph.at, name, [0, math.prod(shape)]),
    nn.Unflatten: lambda graph, name, layer, shape: _reshape(graph, graph.at, name, [0, *layer.unflattened_size]),
    GroupSort: lambda graph, name, layer, shape: _sort(graph, name, layer.size, shape),
    FullSort: lambda graph, name, layer, shape: _sort(graph, name, shape[0], shape),
    nn.LeakyReLU: lambda graph, name, layer, shape: graph.node("LeakyRelu", [graph.at], name, alpha=float(layer.negative_slope)),
    nn.Tanh: lambda graph, name, layer, shape: graph.node("Tanh", [graph.at], name),
    nn.Softplus: lambda graph, name, layer, shape: graph.node("Softplus", [graph.at], name),
}


def to_onnx(folded: Network, *, classifier: bool) -> onnx.ModelProto:
    """Return the graph of ``folded``: ``input`` to ``logits`` (``prediction`` of a regressor).

    Raises:
        GraphError: a layer has no form in the graph.
    """
    import torch  # noqa: PLC0415  # only the shapes of the layers' outputs need it

    graph = Graph()
    if folded.shift:
        graph.at = graph.node("Sub", ["input", graph.weight("shift", np.float32(folded.shift))], "shifted")
    if folded.scale != 1:
        graph.at = graph.node("Mul", [graph.at, graph.weight("scale", np.float32(folded.scale))], "normalised")
    x = torch.zeros(1, *folded.input_shape)
    for name, layer in folded.named_children():
        if type(layer) not in WRITERS:
            raise GraphError(f"layer {name!r} ({type(layer).__name__}) has no form in the graph")
        graph.at = WRITERS[type(layer)](graph, name, layer, tuple(x.shape[1:]))
        x = layer(x)
    output = LOGITS if classifier else PREDICTION
    graph.node("Identity", [graph.at], output)
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *x.shape[1:]])]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *folded.input_shape])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "specnorm", inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", _opset(graph))], producer_name="specnorm", ir_version=IR_VERSION,
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model
