"""Einsum of one tensor, or of a tensor and a constant: for each index that all share, a matrix."""

import math

import numpy as np

from export.audit.linear import largest_of, layer, matrix_norms
from export.audit.node import Node
from export.audit.values import Array, Dim, NoBoundError, Value, root, times


def einsum(node: Node) -> Value:
    """Einsum with at most one operand that is no constant: the largest norm of its matrices, one per shared index."""
    operands, output = labels(node)
    moving = [place for place in range(len(node.inputs)) if node.input(place).constant is None]
    if len(moving) != 1 or len(operands) > 2:
        raise NoBoundError("it multiplies two tensors that both depend on the input")
    x, mine = node.input(moving[0]), operands[moving[0]]
    if x.shape is None or len(x.shape) != len(mine):
        raise NoBoundError("its equation does not fit its input")
    size: dict[str, Dim] = dict(zip(mine, x.shape, strict=True))
    others = operands[1 - moving[0]] if len(operands) == 2 else ""
    sigma = 1.0
    if len(operands) == 2:
        weight = node.constant(1 - moving[0])
        if weight.ndim != len(others) or any(size.get(label, d) != d for label, d in zip(others, weight.shape, strict=True)):
            raise NoBoundError("its equation does not fit its constant, or an axis of unknown size")
        size.update({label: int(d) for label, d in zip(others, weight.shape, strict=True)})
        stack = matrices(weight, others, mine, output)
        norms = largest_of([matrix_norms(matrix, node.seconds / len(stack)) for matrix in stack])
        sigma = layer(node, "linear", weight.shape, norms).sigma_upper
    summed = [size[label] for label in mine if label not in output and label not in others]
    if not all(isinstance(d, int) for d in summed):
        raise NoBoundError("it sums over an axis of unknown size")
    factor = times(sigma, root(float(math.prod(int(d) for d in summed))))
    rows = x.rows and output[:1] == mine[:1] and mine[:1] not in others
    return Value(node.proto.output[0], tuple(size[label] for label in output), bound=times(x.bound, factor), rows=rows, chain=x.chain)


def labels(node: Node) -> tuple[list[str], str]:
    """Return the labels of the operands and of the output.

    Raises:
        NoBoundError: the equation has an ellipsis, or a label twice in one operand.
    """
    equation = node.attribute("equation", b"").decode().replace(" ", "")
    left, arrow, output = equation.partition("->")
    operands = left.split(",")
    if not arrow:
        output = "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    if "." in equation or any(len(set(part)) != len(part) for part in (*operands, output)) or len(operands) != len(node.inputs):
        raise NoBoundError("its equation has no rule")
    if not set(output) <= set(left):
        raise NoBoundError("its equation has no rule")
    return operands, output


def matrices(weight: Array, labels: str, other: str, output: str) -> Array:
    """Return the constant as ``(shared, out, in)``: shared by all three, its own, summed with the tensor; what it sums alone is summed."""
    alone = tuple(i for i, label in enumerate(labels) if label not in other and label not in output)
    kept = [label for label in labels if label in other or label in output]
    summed = weight.astype(np.float64).sum(axis=alone) if alone else weight.astype(np.float64)
    shared = [label for label in kept if label in other and label in output]
    out = [label for label in kept if label not in other]
    inner = [label for label in kept if label in other and label not in output]
    ordered = summed.transpose([kept.index(label) for label in shared + out + inner])
    sizes = [
        math.prod(ordered.shape[a:b]) for a, b in ((0, len(shared)), (len(shared), len(shared) + len(out)), (len(shared) + len(out), None))
    ]
    return ordered.reshape(sizes)
