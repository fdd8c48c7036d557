"""The proved bound of random convolutions, transposed ones, pools and pads against the dense matrix: 1,000 cases, no violation allowed."""

import argparse
import sys
from collections import Counter

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.audit import audit


def case(rng):
    """Return an operator's name and a model of it alone."""
    op = str(rng.choice(["Conv", "ConvTranspose", "AveragePool", "Pad"]))
    axes = int(rng.integers(1, 3))
    sizes = [int(n) for n in rng.integers(3, 7 if axes == 2 else 12, axes)]
    kernel, strides = [int(k) for k in rng.integers(1, 4, axes)], [int(s) for s in rng.integers(1, 4, axes)]
    dilations = [int(d) for d in rng.integers(1, 3, axes)] if op in {"Conv", "ConvTranspose"} else [1] * axes
    pads = [int(rng.integers(0, min(2, k))) for k in kernel]
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads * 2}
    inputs, weights, channels = ["x"], [], int(rng.integers(1, 4))
    if op == "Pad":
        mode = str(rng.choice(["edge", "reflect", "constant", "wrap"]))
        widths = [int(p) for p in rng.integers(0, 3, 2 * axes)]
        full = [0, 0, *widths[:axes], 0, 0, *widths[axes:]]
        pad = helper.make_node("Pad", ["x", "p"], ["y"], mode=mode)
        return f"Pad {mode}", model(pad, [("p", np.array(full))], [channels, *sizes])
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(0, 2))
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    else:
        groups = int(rng.choice([1, 2]))
        channels, out = 2 * channels, 2 * int(rng.integers(1, 3))
        attributes |= {"dilations": dilations, "group": groups}
        shape = (out, channels // groups, *kernel) if op == "Conv" else (channels, out // groups, *kernel)
        weights, inputs = [("w", rng.standard_normal(shape).astype(np.float32))], ["x", "w"]
    node = helper.make_node(op, inputs, ["y"], **attributes)
    return op, model(node, weights, [channels, *sizes])


def model(node, weights, shape):
    """Return a graph of one node."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph([node], "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 19)])


def dense_norm(found):
    """Return the norm of the matrix of a linear graph, column by column."""
    shape = [d.dim_value for d in found.graph.input[0].type.tensor_type.shape.dim[1:]]
    size = int(np.prod(shape))
    columns = ReferenceEvaluator(found).run(None, {"x": np.eye(size, dtype=np.float32).reshape(size, *shape)})[0]
    return float(np.linalg.norm(np.asarray(columns, np.float64).reshape(size, -1), 2))


def ratios(count, seed=0):
    """Yield operator and bound over exact norm, for as many cases as asked."""
    rng = np.random.default_rng(seed)
    while count:
        op, found = case(rng)
        try:
            exact = dense_norm(found)
        except Exception:  # noqa: S112  # the reference refuses sizes that leave no window, and such a graph is no case
            continue
        bound = audit(found).lipschitz["y"].bound
        if bound is None or exact == 0:
            continue
        count -= 1
        yield op, bound / exact


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    found = list(ratios(chosen.cases, chosen.seed))
    broken = [(op, ratio) for op, ratio in found if ratio < 1 - 1e-6]
    print(f"{len(found)} cases, {len(broken)} violations")
    for op, count in sorted(Counter(op for op, _ in found).items()):
        values = [ratio for name, ratio in found if name == op]
        print(f"{op:15} {count:5} cases   bound / exact: median {np.median(values):.3f}, largest {max(values):.3f}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
