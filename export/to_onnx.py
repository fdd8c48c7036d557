"""Write a folded network as an ONNX graph: plain weights, a free batch axis, and the certificate as an output of the graph itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.rounding import Affine
from specnorm_core.activations import FullSort, GroupSort
from specnorm_core.architecture import Network

OPSET, WRAPPING_OPSET = 18, 19
"""Only ``Pad`` of mode ``wrap`` needs the later one, which the CUDA kernels of ONNX Runtime do not all have."""
IR_VERSION = 10
"""ONNX Runtime 1.18 and later read it."""
PAD_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
LOGITS, PREDICTION, RADIUS = "logits", "prediction", "certified_radius"


class GraphError(ValueError):
    """A layer has no form in the graph; the sentence names it."""


@dataclass(frozen=True)
class Certificate:
    """What the radius is computed from: the Lipschitz bound of the logits and the bound of their float32 error."""

    lipschitz: float
    error: Affine


class Graph:
    """Nodes and weights in the making; ``at`` is the tensor that the next node takes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.at = "input"

    @property
    def opset(self) -> int:
        """The oldest opset that has all of it."""
        wraps = any(attribute.s == b"wrap" for node in self.nodes for attribute in node.attribute)
        return WRAPPING_OPSET if wraps else OPSET

    def weight(self, name: str, value: np.ndarray | np.generic) -> str:
        """Add a constant and return its name."""
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, named as the node, and return that name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name


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


def to_onnx(folded: Network, *, classifier: bool, certificate: Certificate | None = None) -> onnx.ModelProto:
    """Return the graph of ``folded``: ``input`` to ``logits`` (``prediction`` of a regressor), and ``certified_radius`` with a certificate.

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
    if certificate is not None:
        _radius(graph, certificate, math.prod(folded.input_shape))
        outputs.append(helper.make_tensor_value_info(RADIUS, TensorProto.FLOAT, ["batch"]))
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *folded.input_shape])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "specnorm", inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", graph.opset)], producer_name="specnorm", ir_version=IR_VERSION,
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def coefficients(certificate: Certificate, entries: int) -> tuple[np.float32, np.float32, np.float32]:
    """Return ``(c, k1, k0)`` of ``radius = max(0, c margin - k1 norm(x) - k0)``, each rounded towards a smaller radius.

    Within the radius r no *served* answer has another class: a margin moves by at most ``sqrt(2) L`` per unit of input, and the computed
    logits are off by at most ``err(x)`` here and ``err(x) + slope r`` there, each of which moves a margin by at most ``sqrt(2)`` of itself:
    ``sqrt(2) (L + slope) r <= margin - 2 sqrt(2) err(x)``.
    """
    root = math.sqrt(2) * (1 + 2.0**-50)
    slack = 1 + 2.0**-20  # the graph's own few float32 operations, and the rounding of these three numbers
    divisor = root * (certificate.lipschitz + certificate.error.slope) * slack
    norm_slack = slack * (1 + (entries + 4) * 2.0**-24)  # the computed norm of x may be too low by this
    k1 = 2 * root * certificate.error.slope / divisor * slack * norm_slack
    k0 = 2 * root * certificate.error.offset / divisor * slack
    c = np.float32(1 / divisor / slack)
    return np.float32(np.nextafter(c, np.float32(0))), _above(k1), _above(k0)


def _above(value: float) -> np.float32:
    return np.float32(np.nextafter(np.float32(value), np.float32(np.inf)))


def _radius(graph: Graph, certificate: Certificate, entries: int) -> None:
    """Add the nodes of ``certified_radius (B,)``."""
    named = zip(("radius.c", "radius.k1", "radius.k0"), coefficients(certificate, entries), strict=True)
    c, k1, k0 = (graph.weight(name, value) for name, value in named)
    flat = _reshape(graph, "input", "radius.flat", [0, entries])
    axis = graph.weight("radius.axis", np.array([1], dtype=np.int64))
    norm = graph.node("ReduceL2", [flat, axis], "radius.norm", keepdims=0)
    graph.weight("radius.two", np.array([2], dtype=np.int64))
    graph.nodes.append(helper.make_node("TopK", [LOGITS, "radius.two"], ["radius.best", "radius.order"], name="radius.top", axis=1))
    columns = [
        graph.node("Gather", ["radius.best", graph.weight(f"radius.at{i}", np.array(i, dtype=np.int64))], f"radius.best{i}", axis=1)
        for i in (0, 1)
    ]
    margin = graph.node("Mul", [graph.node("Sub", columns, "radius.margin"), c], "radius.scaled")
    error = graph.node("Add", [graph.node("Mul", [norm, k1], "radius.relative"), k0], "radius.error")
    graph.node("Max", [graph.node("Sub", [margin, error], "radius.signed"), graph.weight("radius.zero", np.float32(0))], RADIUS)
