"""Folding of what does not depend on the inputs, without letting a small file ask for a large array."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto, numpy_helper

from export.audit.node import Node
from export.audit.report import AuditError
from export.audit.values import Array, Dim, Value

LARGEST = 2**27
"""Most numbers that a folded constant may hold."""


def broadcast_size(arrays: Sequence[Array]) -> int:
    """Return the size of the arrays broadcast."""
    shape: tuple[int, ...] = np.broadcast_shapes(*(a.shape for a in arrays))
    return math.prod(shape)


def product_size(arrays: Sequence[Array]) -> int:
    """Return at least the size of a matrix product."""
    left, right = arrays
    inner = int(right.shape[-2]) if right.ndim > 1 else int(right.size)
    return int(left.size // max(1, left.shape[-1])) * int(right.size // max(1, inner))


def no_larger(arrays: Sequence[Array]) -> int:
    """Return the size of operators that give no more numbers than they take."""
    return sum(a.size for a in arrays)


SIZES: dict[str, Callable[[Sequence[Array]], int]] = {
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less", "Where", "Max", "Min", "And", "Or"], broadcast_size),
    **dict.fromkeys(
        ["Abs", "Cast", "Ceil", "Concat", "Constant", "Floor", "Identity", "Neg", "Reciprocal", "Reshape", "Flatten"], no_larger
    ),
    **dict.fromkeys(["Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Transpose", "Unsqueeze", "Not", "Exp", "Tanh"], no_larger),
    **dict.fromkeys(["ReduceSum", "ReduceMean", "ReduceL2", "ReduceProd", "ReduceMax", "ReduceMin"], no_larger),
    **dict.fromkeys(["GreaterOrEqual", "LessOrEqual", "Mod", "Sum", "Mean", "Xor", "QuantizeLinear", "DequantizeLinear"], broadcast_size),
    **dict.fromkeys(["Clip", "Erf", "Log", "Relu", "Round", "Sigmoid", "Sign", "Softmax", "Softplus", "Trilu", "CumSum"], no_larger),
    **dict.fromkeys(["ReduceSumSquare", "ReduceL1", "ReduceLogSumExp", "ScatterND", "ScatterElements", "Compress"], no_larger),
    "GatherElements": lambda arrays: arrays[1].size,
    "GatherND": lambda arrays: arrays[0].size * arrays[1].size,
    "EyeLike": no_larger,
    "ConstantOfShape": lambda arrays: math.prod(int(d) for d in arrays[0].ravel()),
    "Expand": lambda arrays: arrays[0].size * math.prod(max(1, int(d)) for d in arrays[1].ravel()),
    "Gather": lambda arrays: arrays[0].size * arrays[1].size,
    "MatMul": product_size,
    "Range": lambda arrays: math.ceil(abs(float(arrays[1]) - float(arrays[0])) / max(abs(float(arrays[2])), 1e-300)),
    "Tile": lambda arrays: arrays[0].size * math.prod(int(d) for d in arrays[1].ravel()),
}
"""How many numbers an operator gives; only operators that are here are folded."""


LOOSE = frozenset(
    ["CumSum", "Erf", "Exp", "Log", "MatMul", "Mean", "Pow", "Sigmoid", "Softmax", "Softplus", "Sum", "Tanh"]
    + [op for op in SIZES if op.startswith("Reduce") and op not in {"ReduceMax", "ReduceMin"}]
)
"""Operators that IEEE 754 does not settle: sums of several terms have an order, and functions are approximations."""


def fold(node: Node) -> list[Value] | None:
    """Return the outputs of a node whose inputs are all constant; None where it is not one that is folded.

    Raises:
        NoBoundError: it cannot be computed.
    """
    given = [value for value in node.inputs if value is not None]
    arrays = [value.constant for value in given if value.constant is not None]
    if node.op not in SIZES or len(arrays) != len(given) or (not arrays and node.op != "Constant"):
        return None
    try:
        size = SIZES[node.op](arrays)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    if size > LARGEST:
        return None
    found = [constant(name, array) for name, array in zip(node.proto.output, node.run({}), strict=True)]
    notes = tuple(dict.fromkeys([*(note for value in given for note in value.notes), *note_of(node, [*given, *found])]))
    return [replace(value, notes=notes) for value in found] if notes else found


def note_of(node: Node, values: Sequence[Value]) -> list[str]:
    """Return what the value of a constant leaves out: runtimes sum and approximate as they like, and round what meets quantised ones."""
    if node.op in LOOSE and any(value.floating for value in values):
        return [f"{node.place}: it makes a constant whose last digits differ between runtimes"]
    return [f"{node.place}: runtimes may round what meets quantised weights"] if node.op == "DequantizeLinear" else []


def constant(name: str, array: Array) -> Value:
    """Return the value of a constant tensor."""
    small_integers = array.dtype.kind in "iu" and array.ndim <= 1 and array.size <= 64
    return Value(
        name,
        tuple(map(int, array.shape)),
        floating=is_floating(array),
        constant=array,
        sizes=tuple(map(int, array.ravel())) if small_integers else None,
    )


def initialiser(tensor: TensorProto, name: str | None = None) -> Value:
    """Return the value of a constant of the file, under its own name or another.

    Raises:
        AuditError: its bytes are not those of a tensor.
    """
    try:
        return constant(tensor.name if name is None else name, np.asarray(numpy_helper.to_array(tensor)))
    except MemoryError:
        raise
    except Exception as error:  # NumPy and ONNX raise whatever they like at bytes that do not fit
        why = " ".join(str(error).split())
        raise AuditError(f"the constant {tensor.name!r} cannot be read: {why}") from None


def is_floating(array: Array) -> bool:
    """Say whether an array holds floating-point numbers; bfloat16 and the like are no numpy kind of their own."""
    return array.dtype.kind == "f" or (array.dtype.kind == "V" and "float" in array.dtype.name)


def sizes(node: Node) -> list[Value] | None:
    """Return what a node computes from the sizes of tensors, free ones by name; None where it does no such thing."""
    found = SIZE_RULES[node.op](node) if node.op in SIZE_RULES and node.inputs and node.inputs[0] is not None else None
    if found is None:
        return None
    name, (values, scalar) = node.proto.output[0], found
    shape: tuple[Dim, ...] = () if scalar else (len(values),)
    if all(isinstance(d, int) for d in values):
        return [constant(name, np.array([int(d) for d in values], dtype=np.int64).reshape([int(d) for d in shape]))]
    return [Value(name, shape, floating=False, sizes=values)]


Sizes = tuple[tuple[Dim, ...], bool] | None


def shape_of(node: Node) -> Sizes:
    """Shape: the sizes themselves."""
    shape = node.input().shape
    if shape is None:
        return None
    end = node.attribute("end", None)
    return shape[int(node.attribute("start", 0)) : len(shape) if end is None else int(end)], False


def chosen(node: Node) -> Sizes:
    """Gather along the only axis."""
    held, index = node.input().sizes, node.input(1).constant
    if held is None or index is None or index.ndim > 1 or node.input().shape == ():
        return None
    try:
        return tuple(held[int(i)] for i in index.ravel()), index.ndim == 0
    except IndexError:
        return None


def joined(node: Node) -> Sizes:
    """Concat of vectors."""
    parts = [node.input(place) for place in range(len(node.inputs))]
    if any(part.sizes is None or part.shape is None or len(part.shape) != 1 for part in parts):
        return None
    return tuple(d for part in parts for d in part.sizes or ()), False


def kept(scalar: bool | None) -> Callable[[Node], Sizes]:
    """The same numbers, as a vector or a scalar; None: as they were."""

    def rule(node: Node) -> Sizes:
        x = node.input()
        if x.sizes is None or (scalar is not None and len(x.sizes) != 1):
            return None
        return x.sizes, x.shape == () if scalar is None else scalar

    return rule


def cut(node: Node) -> Sizes:
    """Slice of a vector."""
    x = node.input()
    if x.sizes is None or x.shape is None or len(x.shape) != 1:
        return None
    place = np.arange(len(x.sizes), dtype=np.int64)
    return tuple(x.sizes[int(i)] for i in node.run({0: place})[0]), False


def cast(node: Node) -> Sizes:
    """Cast to 32 or 64 bits of integer."""
    return kept(None)(node) if int(node.attribute("to", 0)) in {TensorProto.INT32, TensorProto.INT64} else None


SIZE_RULES: dict[str, Callable[[Node], Sizes]] = {
    "Cast": cast,
    "Concat": joined,
    "Gather": chosen,
    "Identity": kept(None),
    "Shape": shape_of,
    "Slice": cut,
    "Squeeze": kept(True),
    "Unsqueeze": kept(False),
}
