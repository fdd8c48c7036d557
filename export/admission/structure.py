"""What no model may hold, found by walking the file without running any of it."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no stubs here
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
DOMAINS = ONNX_DOMAINS | {"ai.onnx.ml", "com.microsoft"}
BRANCH = "If"
"""The one operator that may hold graphs: it runs one of two, once. What repeats a graph may never return."""
FROM_FILES = frozenset({"EPContext"})
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


class StructureError(ValueError):
    """The file is no model that may be served; the sentence says why."""


def opened(content: bytes) -> ModelProto:
    """Return the model in ``content``, every node and tensor of it looked at.

    Raises:
        StructureError: it is no ONNX model, or holds what none may.
    """
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
        raise StructureError("the file is no ONNX model") from None
    if not model.graph.output or not model.graph.node:
        raise StructureError("the file is no ONNX model: it has no output, or no operator")
    if model.training_info:
        raise StructureError("the model holds graphs for training: export it for inference")
    own = {(function.domain, function.name) for function in model.functions}
    nodes = [*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node))]
    for node in nodes:
        _check_node(node, own)
    defaults = [attribute for function in model.functions for attribute in function.attribute_proto]
    graphs = [model.graph, *(graph for node in nodes for graph in _graphs(node.attribute))]
    for tensor in (*_stored(graphs), *_attached([*defaults, *(attribute for node in nodes for attribute in node.attribute)])):
        _check_tensor(tensor)
    for graph in graphs:
        for value in graph.initializer:
            _check_weights(value)
    _check_values(model.graph)
    return model


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield every node, those of graphs within nodes too."""
    for node in nodes:
        yield node
        for graph in _graphs(node.attribute):
            yield from _nodes(graph.node)


def _graphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_node(node: NodeProto, own: set[tuple[str, str]]) -> None:
    name = f"operator {node.op_type[:64]!r}"
    if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
        raise StructureError(f"{name} is of the domain {node.domain[:64]!r}, which is not known here")
    if node.op_type in FROM_FILES:
        raise StructureError(f"{name} reads other files")
    if any(_graphs(node.attribute)) and not (node.op_type == BRANCH and node.domain in ONNX_DOMAINS):
        raise StructureError(f"{name} repeats a graph, so that a run might never end: it is not served")


def _stored(graphs: Iterable[GraphProto]) -> Iterator[TensorProto]:
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices


def _attached(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors):
            yield sparse.values
            yield sparse.indices


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise StructureError(f"the model keeps {tensor.name[:64]!r} in another file: store it with its weights inside")
    if any(size < 0 for size in tensor.dims):
        raise StructureError(f"the constant {tensor.name[:64]!r} has a negative size")


def _check_weights(tensor: TensorProto) -> None:
    """Refuse NaN: it would be in every answer. Infinity stays, since masks and open ranges are made of it."""
    if tensor.data_type not in FLOATS:
        return
    try:
        numbers = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, RuntimeError):
        raise StructureError(f"the constant {tensor.name[:64]!r} does not have the size that it states") from None
    if np.isnan(numbers.astype(np.float32) if numbers.dtype.itemsize < 4 else numbers).any():
        raise StructureError(f"the constant {tensor.name[:64]!r} holds NaN")


def _check_values(graph: GraphProto) -> None:
    """Refuse inputs and outputs that are no tensors, and inputs whose rank is unknown."""
    stored = {tensor.name for tensor in graph.initializer}
    for role, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.type.WhichOneof("value") not in {"tensor_type", None}:
                raise StructureError(f"the {role} {value.name[:64]!r} is no tensor, and only tensors are served")
            if role == "input" and value.name not in stored and not value.type.tensor_type.HasField("shape"):
                raise StructureError(f"the input {value.name[:64]!r} has no shape: export the model with one (free sizes are fine)")
