"""The table: what each operator does to a bound and to rows. An operator that is not here has no bound."""

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from export.audit import borders, classical, contraction, elementwise, linear, moving, normalising, reducing, resizing, sorting
from export.audit.elementwise import COMPARISONS, JUMPS, SLOPES
from export.audit.node import Node
from export.audit.values import NoBoundError, Value

Rule = Callable[[Node], Value | Sequence[Value]]

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE}


def cast(node: Node) -> Value:
    """Cast to float32 or float64 leaves the numbers as they are, up to rounding; any other type jumps."""
    x = node.input()
    if int(node.attribute("to", 0)) not in FLOATS:
        raise NoBoundError("it rounds to a type that jumps", rows=x.rows)
    return elementwise.entrywise(node, x, 1.0)


def jump(node: Node) -> Value:
    """Entrywise without a bounded slope: only as a part of a formula, or between limits, there is a bound."""
    values = [value for value in node.inputs if value is not None]
    raise NoBoundError("its slope is not bounded", rows=elementwise.rows_of(*values))


def arg(node: Node) -> Value:
    """ArgMax and ArgMin jump, along one axis."""
    axis = node.axes([int(node.attribute("axis", 0))], node.rank())[0]
    raise NoBoundError("an index jumps", rows=node.input().rows and axis != 0)


def cast_like(node: Node) -> Value:
    """CastLike to the type of a constant."""
    x, like = node.input(), node.constant(1)
    if like.dtype not in (np.float32, np.float64):
        raise NoBoundError("it rounds to a type that jumps", rows=x.rows)
    return elementwise.entrywise(node, x, 1.0)


def quantised(node: Node) -> Value:
    """QuantizeLinear and its like round, which jumps; constants that they make are folded before."""
    scale = node.input(1).constant if node.present(1) else None
    rows = node.input().rows and (scale is None or scale.size == 1 or int(node.attribute("axis", 1)) != 0)
    raise NoBoundError("it rounds to a type that jumps", rows=rows and node.op != "DynamicQuantizeLinear")


def recurrent(node: Node) -> Value:
    """LSTM, GRU and RNN: the norms of their weights, but no bound, because they are not followed over time."""
    for kind, place in (("input weight", 1), ("recurrent weight", 2)):
        for weight in node.constant(place):
            linear.layer(node, kind, weight.shape, linear.matrix_norms(weight, node.seconds / 4))
    raise NoBoundError("it is not followed over time", rows=False)


RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted(JUMPS | COMPARISONS), jump),
    **dict.fromkeys(sorted(SLOPES), elementwise.slope),
    **dict.fromkeys(sorted(moving.KEEPS_ROWS), moving.move),
    **dict.fromkeys(sorted(reducing.REDUCTIONS), reducing.reduction),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"], quantised),
    **dict.fromkeys(["GRU", "LSTM", "RNN"], recurrent),
    **{f"ai.onnx.ml.{op}": rule for op, rule in classical.RULES.items()},
    "Add": elementwise.add,
    "ArgMax": arg,
    "ArgMin": arg,
    "AveragePool": reducing.average_pool,
    "BatchNormalization": normalising.batch_normalization,
    "Cast": cast,
    "CastLike": cast_like,
    "Concat": moving.concat,
    "Conv": linear.convolution,
    "ConvTranspose": linear.convolution,
    "CumSum": reducing.running_sum,
    "Div": elementwise.scale,
    "Dropout": moving.identity,
    "Einsum": contraction.einsum,
    "Expand": resizing.expand,
    "GatherElements": moving.pick,
    "GatherND": moving.pick,
    "Gemm": linear.affine,
    "GlobalAveragePool": reducing.global_pool,
    "GlobalMaxPool": reducing.global_pool,
    "GroupNormalization": normalising.over_pixels,
    "Identity": moving.identity,
    "InstanceNormalization": normalising.over_pixels,
    "LRN": normalising.local_response,
    "LayerNormalization": normalising.over_last_axes,
    "LogSoftmax": reducing.softmax,
    "LpPool": reducing.norm_pool,
    "MatMul": linear.product,
    "Max": sorting.extremum,
    "MaxPool": reducing.max_pool,
    "Mean": elementwise.add,
    "Min": sorting.extremum,
    "Mul": elementwise.scale,
    "Pad": borders.pad,
    "RMSNormalization": normalising.over_last_axes,
    "Resize": resizing.resize,
    "ReverseSequence": moving.permute,
    "ScatterElements": moving.scatter,
    "ScatterND": moving.scatter,
    "Softmax": reducing.softmax,
    "Sub": elementwise.add,
    "Sum": elementwise.add,
    "Tile": resizing.tile,
    "TopK": sorting.top_k,
    "Trilu": moving.mask,
    "Upsample": resizing.resize,
    "Where": moving.choose,
}
