"""The walk: every node once, in order; what is known of its inputs gives what is known of its outputs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no stubs here
from onnx import TensorProto
from onnx.inliner import inline_local_functions

from export.audit import ambiguous, constants
from export.audit.box import Box, boxed
from export.audit.chain import Certificate, certify
from export.audit.followed import follow
from export.audit.node import Node
from export.audit.relations import Relations
from export.audit.report import AuditedLayer, AuditError, Bounds, Report
from export.audit.steps import undefined, walked
from export.audit.values import Shape, Value
from export.bundle import Lipschitz, Tensor

FLOATING = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    **{getattr(TensorProto, name): name for name in ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")},
    **{TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT: "FP32", TensorProto.DOUBLE: "FP64"},
}
LONGEST = 2**31
"""Bytes that no protocol buffer has: a larger model keeps its weights in other files."""
HINT = "specnorm.certificate."
"""Metadata of a file under this and the name of an output may hold a certificate, which spares the search for it."""


def audit(
    model: bytes | Path | onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    chain: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    layer_seconds: float = math.inf,
    box: Box | None = None,
) -> Report:
    """Return the norms of the linear layers of ``model`` and an L2 Lipschitz bound of each output, or the operators that prevent one.

    Args:
        model: the content of an ONNX file, its path, which takes the least memory, or the model itself.
        input_shapes: shapes that take the place of those in the file, by input; -1 = free.
        chain: also look for the tighter certificate of `export.audit.chain`, and state its bound where it is the least.
        progress: called after every node with how many are done, how many there are, and the name of the next.
        layer_seconds: how long the proof of one norm may take; where it takes longer, its bound is looser, which the report says.
        box: limits that the inputs are said to lie in, one pair or one per channel: the bounds are about inputs within them alone, and
            stand in ``on_box``.

    Raises:
        AuditError: the content is no ONNX model, keeps weights in other files, or names an input that it does not have.
    """
    return certified(model, input_shapes, chain=chain, progress=progress, layer_seconds=layer_seconds, box=box)[0]


def certified(
    model: bytes | Path | onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    chain: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
    layer_seconds: float = math.inf,
    box: Box | None = None,
    watch: Callable[[Node, Sequence[Value]], None] | None = None,
) -> tuple[Report, dict[str, Certificate]]:
    """Return what `audit` does, and what is proved of each output by the quadratic certificate of `chain`, where anything is.

    ``watch`` is shown every node with what is known of its outputs.
    """
    graph, opset, hints = opened(model)
    weights = {tensor.name: constants.initialiser(tensor) for tensor in graph.initializer}
    if not isinstance(model, onnx.ModelProto):
        del graph.initializer[:]  # nobody else's, and the arrays are copies
        graph = released(graph)
    inputs = [value for value in graph.input if value.name not in weights]
    unknown = sorted({*(input_shapes or {}), *(box or {})} - {value.name for value in inputs})
    if unknown:
        raise AuditError(f"the model has no input {unknown[0]!r}; its inputs are {[value.name for value in inputs]}")
    values: dict[str, Value] = {**weights, **started(inputs, input_shapes or {}, box or {})}
    layers: list[AuditedLayer] = []
    relations = Relations()
    for done, (node, produced) in enumerate(walked(graph.node, values, opset, layer_seconds, box is not None), start=1):
        if progress is not None:
            progress(done, max(done, len(graph.node)), graph.node[done].name if done < len(graph.node) else "")
        layers += node.layers
        if chain:
            follow(relations, node, produced)
        if watch is not None:
            watch(node, produced)
    results = [values.get(output.name, undefined(output.name)) for output in graph.output]
    any_float = any(values[value.name].floating for value in inputs)
    certificates = {value.name: found for value in results if (found := certificate(relations, value, hints)) is not None} if chain else {}
    report = Report(
        inputs=tuple(tensor_of(value.name, value.type.tensor_type.elem_type, values[value.name].shape) for value in inputs),
        outputs=tuple(
            tensor_of(output.name, output.type.tensor_type.elem_type, declared(output) if value.shape is None else value.shape)
            for output, value in zip(graph.output, results, strict=True)
        ),
        layers=tuple(layers),
        lipschitz={
            output.name: stated(value, any_float, certificates.get(output.name))
            for output, value in zip(graph.output, results, strict=True)
        },
        bounds={output.name: compared(value, certificates.get(output.name)) for output, value in zip(graph.output, results, strict=True)},
        rows_independent=bool(results) and all(value.rows for value in results),
    )
    return (report, certificates) if box is None else (confined(report, box), {})


def confined(report: Report, box: Box) -> Report:
    """Return a report whose bounds are said to hold within the box, and nowhere else."""
    elsewhere = Lipschitz(bound=None, rigorous=False, method=None, reason="asked for within a box alone")
    limits = {name: tuple((float(low), float(high)) for low, high in pairs) for name, pairs in box.items()}
    return report.model_copy(update={"box": limits, "on_box": report.lipschitz, "lipschitz": dict.fromkeys(report.lipschitz, elsewhere)})


def certificate(relations: Relations, value: Value, hints: Mapping[str, str]) -> Certificate | None:
    """Return what the chain proves of an output that has a bound and was followed."""
    expression = relations.held.get(value.name)
    if expression is None or value.causes or not math.isfinite(value.bound):
        return None
    return certify(expression, hints.get(HINT + value.name))


def compared(value: Value, found: Certificate | None) -> Bounds:
    """Return every bound that is proved of an output, side by side."""
    graph = None if value.causes or not math.isfinite(value.bound) else value.bound
    return Bounds(product=graph if value.chain else None, graph=graph, chain=None if found is None else found.bound)


def opened(model: bytes | Path | onnx.ModelProto) -> tuple[onnx.GraphProto, int, dict[str, str]]:
    """Return the graph, local functions put in their place, the opset of ONNX's own operators, and the metadata.

    Raises:
        AuditError: it is no whole ONNX model, or one that may be read in two ways.
    """
    if isinstance(model, Path) and model.stat().st_size >= LONGEST:
        raise AuditError("the file is no ONNX model: it has 2 GiB or more")
    try:
        content = model.read_bytes() if isinstance(model, Path) else model
        model = onnx.load_from_string(content) if isinstance(content, bytes) else content
        del content
    except DecodeError:
        raise AuditError("the file is no ONNX model") from None
    if not model.graph.output:
        raise AuditError("the file is no ONNX model: it has no output")
    ambiguous.refuse(model)
    if model.functions:
        model = inlined(model)
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise AuditError(f"the model keeps {outside[0]!r} in another file; store it with its weights inside")
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    return model.graph, int(versions[0]) if versions else 1, {entry.key: entry.value for entry in model.metadata_props}


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its local functions put in their place.

    Raises:
        AuditError: they cannot be.
    """
    try:
        return inline_local_functions(model)
    except MemoryError:
        raise
    except Exception as error:  # the inliner is another language's, and raises classes of its own
        raise AuditError(f"its local functions cannot be put in their place: {' '.join(str(error).split())}") from None


def released(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Return a copy of what is left of a graph: the memory of what was deleted is given back with that of its whole file."""
    left = onnx.GraphProto()
    left.CopyFrom(graph)
    return left


def started(inputs: Iterable[onnx.ValueInfoProto], overridden: Mapping[str, Sequence[int]], box: Box) -> dict[str, Value]:
    """Return the inputs of the graph, those of the ``box`` with their limits; axis 0 is the batch where all of them share its size."""
    shapes = {value.name: declared(value, overridden.get(value.name)) for value in inputs}
    leading = {shape[0] if shape else None for shape in shapes.values()}
    rows = len(leading) == 1 and None not in leading
    values = {}
    for value in inputs:
        floating = value.type.tensor_type.elem_type in FLOATING
        values[value.name] = Value(value.name, shapes[value.name], floating=floating, bound=1.0 if floating else 0.0, rows=rows)
        if value.type.WhichOneof("value") != "tensor_type":
            values[value.name] = replace(values[value.name], bound=math.inf, causes=(f"input {value.name!r} is no tensor",), rows=False)
    return {name: boxed(value, box[name]) if name in box else value for name, value in values.items()}


def declared(value: onnx.ValueInfoProto, overridden: Sequence[int] | None = None) -> Shape | None:
    """Return the shape that the file gives a tensor (or what overrides it), free sizes by name."""
    if overridden is not None:
        return tuple(int(d) if int(d) > 0 else f"{value.name}/{i}" if i else "batch" for i, d in enumerate(overridden))
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.dim_value > 0 else d.dim_param or f"{value.name}/{i}" for i, d in enumerate(dims))


def tensor_of(name: str, element: int, shape: Shape | None) -> Tensor:
    """Return name, datatype and shape as the inference protocol words them."""
    return Tensor.model_validate(
        {"name": name, "datatype": DATATYPES.get(element, "BYTES"), "shape": tuple(d if isinstance(d, int) else -1 for d in shape or ())}
    )


def stated(value: Value, any_float: bool, found: Certificate | None = None) -> Lipschitz:
    """Return the least bound that is proved of an output, or the reason that there is none."""
    reason = "; ".join(value.causes) or (None if any_float else "the model has no floating-point input")
    if reason is not None or not math.isfinite(value.bound):
        return Lipschitz(bound=None, rigorous=False, method=None, reason=reason or "the bound is not finite")
    notes = "; ".join(value.notes) or None
    bound = value.bound if found is None else min(value.bound, found.bound)
    method = "chain" if bound < value.bound else "product" if value.chain else "graph"
    sensitivity = () if found is None else tuple(min(bound, one) for one in found.sensitivity)
    return Lipschitz(bound=bound, rigorous=not value.notes, method=method, reason=notes, sensitivity=sensitivity)
