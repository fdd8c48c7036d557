"""The table: what each operator does to a bound and to rows. An operator that is not here has no bound."""

from collections.abc import Callable, Sequence

from onnx import TensorProto

from export.audit import elementwise, linear, moving, reducing
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
    """An entrywise operator without a bound, which still keeps rows apart."""
    values = [value for value in node.inputs if value is not None]
    raise NoBoundError("its slope is not bounded", rows=elementwise.rows_of(*values))


def arg(node: Node) -> Value:
    """ArgMax and ArgMin jump, along one axis."""
    axis = node.axes([int(node.attribute("axis", 0))], node.rank())[0]
    raise NoBoundError("an index jumps", rows=node.input().rows and axis != 0)


RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted(JUMPS | COMPARISONS), jump),
    **dict.fromkeys(sorted(SLOPES), elementwise.slope),
    **dict.fromkeys(sorted(moving.KEEPS_ROWS), moving.move),
    **dict.fromkeys(sorted(reducing.REDUCTIONS), reducing.reduction),
    "Add": elementwise.add,
    "ArgMax": arg,
    "ArgMin": arg,
    "AveragePool": reducing.average_pool,
    "BatchNormalization": linear.batch_normalization,
    "Cast": cast,
    "Concat": moving.concat,
    "Conv": linear.convolution,
    "ConvTranspose": linear.convolution,
    "Div": elementwise.scale,
    "Dropout": moving.identity,
    "Gemm": linear.affine,
    "GlobalAveragePool": reducing.global_pool,
    "GlobalMaxPool": reducing.global_pool,
    "Identity": moving.identity,
    "LogSoftmax": reducing.softmax,
    "MatMul": linear.product,
    "Max": moving.extremum,
    "MaxPool": reducing.max_pool,
    "Mean": elementwise.add,
    "Min": moving.extremum,
    "Mul": elementwise.scale,
    "Pad": moving.pad,
    "Softmax": reducing.softmax,
    "Sub": elementwise.add,
    "Sum": elementwise.add,
    "TopK": moving.top_k,
}
