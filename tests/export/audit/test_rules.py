"""Every rule of the table, on a graph of one operator and a pair of inputs that attains its factor (or nearly so)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.audit import audit, rules
from export.audit.values import Value


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(" "), outputs.split(), **attributes)


def graph(nodes, weights, *, shape, opset=18, outputs=("y",)):
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], ends, weights), opset_imports=domains)


def evaluate(model, x, output=0):
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[output])


RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 4)).astype(np.float32)
K = RNG.standard_normal((2, 3, 2, 2)).astype(np.float32)


@dataclass(eq=False)
class Case:
    """A graph from ``x`` to ``y`` and the inputs between which its bound is (nearly) attained: ``at`` and ``at + step``."""

    op: str
    nodes: list
    at: Any
    step: Any
    weights: dict | None = None
    opset: int = 18
    share: float = 0.98
    outputs: tuple = ("y",)
    rows: bool = True

    def model(self):
        batch = "batch" if self.rows else 1
        return graph(self.nodes, self.weights, shape=[batch, *np.shape(self.at)], opset=self.opset, outputs=self.outputs)

    def ratio(self):
        x = np.asarray(self.at, np.float32)[None]
        z = x + np.asarray(self.step, np.float32)[None]
        model = self.model()
        moved = sum(np.sum((evaluate(model, z, i).astype(np.float64) - evaluate(model, x, i)) ** 2) for i in range(len(self.outputs)))
        return np.sqrt(moved) / np.linalg.norm(z.astype(np.float64) - x)


def entry(op, at, step=1e-3, *, weights=None, opset=18, **attributes):
    inputs = " ".join(["x", *(weights or {})])
    return Case(op, [node(op, inputs, "y", **attributes)], np.full(4, at), np.full(4, step), weights, opset=opset)


def one(op, at, step, weights=None, **attributes):
    kept = {name: attributes.pop(name) for name in ("opset", "outputs", "share", "rows") if name in attributes}
    nodes = [node(op.rpartition(".")[2], " ".join(["x", *(weights or {})]), " ".join(kept.get("outputs", ("y",))), **attributes)]
    return Case(op, nodes, at, step, weights, **kept)


def learned(op, at, step, outputs="y", **attributes):
    return Case(f"ai.onnx.ml.{op}", [node(op, "x", outputs, domain="ai.onnx.ml", **attributes)], at, step)


def top(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64))[2][0]


def spike(shape, *place):
    image = np.zeros(shape, np.float32)
    image[place] = 1
    return image


def dense_of(case_nodes, weights, shape, opset=18):
    """The matrix of a linear graph, column by column."""
    model = graph(case_nodes, weights, shape=["batch", *shape], opset=opset)
    size = int(np.prod(shape))
    zero = evaluate(model, np.zeros((1, *shape), np.float32))
    return np.stack([(evaluate(model, np.eye(size, dtype=np.float32)[i].reshape(1, *shape)) - zero).ravel() for i in range(size)], axis=1)


def linear(op, shape, weights, *, share=0.98, opset=18, names=None, before="", rows=True, **attributes):
    last = node(op, names or " ".join([before[:1] or "x", *weights]), "y", **attributes)
    nodes = [node(before, "x k", before[:1]), last] if before else [last]
    return Case(
        op, nodes, np.zeros(shape), top(dense_of(nodes, weights, shape, opset)).reshape(shape), weights, share=share, opset=opset, rows=rows
    )


FOUR = np.zeros(4)
E0, E1 = np.eye(4)[0], np.eye(4)[1]
PAIRS = np.array([3.0, 2.0, 1.0, 0.0])
CASES = [
    entry("Abs", 1.0), entry("Atan", 0.0), entry("Asinh", 0.0), entry("Celu", 1.0, alpha=2.0), entry("Cos", np.pi / 2),
    entry("Clip", 0.5, weights={"low": np.float32(0), "high": np.float32(1)}), entry("Elu", -2e-3, alpha=3.0), entry("Erf", 0.0),
    entry("Gelu", 1.4142, opset=20), entry("Gelu", 1.4142, opset=20, approximate="tanh"), entry("HardSigmoid", 0.0, alpha=0.7),
    entry("HardSwish", 2.99), entry("LeakyRelu", -1.0, alpha=3.0), entry("LeakyRelu", 1.0), entry("Mish", 1.4906),
    entry("Neg", 0.0), entry("PRelu", -1.0, weights={"a": np.float32([2, 2, 2, 2])}), entry("Relu", 1.0), entry("Selu", -2e-3),
    entry("Sigmoid", 0.0), entry("Sin", 0.0), entry("Softplus", 12.0), entry("Softsign", 0.0), entry("Swish", 2.3994, opset=24),
    entry("Tanh", 0.0), entry("Cast", 1.0, to=11), entry("Dropout", 1.0), entry("Identity", 1.0),
    entry("Mul", 1.0, weights={"c": np.float32(-3)}), entry("Div", 1.0, weights={"c": np.float32(0.2)}),
    entry("Sub", 1.0, weights={"c": np.float32(8)}), entry("Add", 1.0, weights={"c": np.float32([1, 2, 3, 4])}),
    Case("Add", [node("Add", "x x", "y")], FOUR, E0), Case("Sub", [node("Neg", "x", "n"), node("Sub", "x n", "y")], FOUR, E0),
    Case("Sum", [node("Sum", "x x x", "y")], FOUR, E0), Case("Mean", [node("Mean", "x x", "y")], FOUR, E0),
    linear("Gemm", (4,), {"w": W}, transB=1, alpha=-2.0), linear("Gemm", (3,), {"w": W}), linear("MatMul", (3,), {"w": W}),
    linear("MatMul", (2, 3), {"w": W}),
    linear("Conv", (3, 6, 6), {"w": K}, share=0.9, pads=[1, 1, 1, 1]), linear("Conv", (3, 6, 6), {"w": K}, strides=[2, 2]),
    linear("ConvTranspose", (2, 4, 4), {"w": K}, share=0.9), linear("ConvTranspose", (2, 3, 3), {"w": K}, strides=[2, 2]),
    linear("BatchNormalization", (2, 3), {"g": np.float32([1, -6]), "b": np.ones(2, "f4"), "m": np.ones(2, "f4"), "v": np.float32([1, 4])}),
    linear("AveragePool", (1, 6, 6), {}, kernel_shape=[2, 2], strides=[2, 2]),
    linear("AveragePool", (1, 5, 5), {}, kernel_shape=[3, 3], pads=[1] * 4),
    linear("AveragePool", (1, 5, 5), {}, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    linear("GlobalAveragePool", (2, 3, 3), {}),
    Case("MaxPool", [node("MaxPool", "x", "y", kernel_shape=[3, 3])], np.zeros((1, 6, 6)), spike((1, 6, 6), 0, 2, 2)),
    Case("MaxPool", [node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2])], np.zeros((1, 7, 7)), spike((1, 7, 7), 0, 2, 2)),
    Case("MaxPool", [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])], np.zeros((1, 6, 6)), spike((1, 6, 6), 0, 2, 2)),
    one("GlobalMaxPool", np.zeros((2, 3, 3)), spike((2, 3, 3), 0, 1, 1)),
    one("ReduceMean", FOUR, np.ones(4), {"axes": np.array([1])}), one("ReduceSum", FOUR, np.ones(4), {"axes": np.array([1])}),
    one("ReduceL1", np.ones(4), np.ones(4), {"axes": np.array([1])}), one("ReduceL2", np.ones(4), np.ones(4), {"axes": np.array([1])}),
    one("ReduceMax", FOUR, E0, {"axes": np.array([1])}), one("ReduceMin", FOUR, -E0, {"axes": np.array([1])}),
    one("ReduceMax", FOUR, E0, axes=[1], opset=13), one("ReduceLogSumExp", 20 * E0, E0, {"axes": np.array([1])}),
    one("Softmax", [0, 0, -40, -40], 1e-3 * (E0 - E1), axis=-1), one("LogSoftmax", 20 * E0, E0 - (1 - E0) / 3, axis=1),
    one("Reshape", FOUR, E0, {"s": np.array([0, 2, 2])}), one("Flatten", np.zeros((2, 2)), spike((2, 2), 0, 1)),
    one("Transpose", np.zeros((2, 3)), spike((2, 3), 0, 1), perm=[0, 2, 1]),
    one("Squeeze", np.zeros((1, 3)), spike((1, 3), 0, 1), {"a": np.array([1])}),
    one("Unsqueeze", FOUR, E0, {"a": np.array([2])}), one("Slice", FOUR, E1, {"s": np.array([1]), "e": np.array([3]), "a": np.array([1])}),
    one("Split", FOUR, E0, num_outputs=2, axis=1, outputs=("y", "z")), one("Gather", FOUR, E1, {"i": np.array([1, -3, 0])}, axis=1),
    one("DepthToSpace", np.zeros((4, 2, 2)), spike((4, 2, 2), 0, 1, 1), blocksize=2),
    one("SpaceToDepth", np.zeros((1, 4, 4)), spike((1, 4, 4), 0, 1, 1), blocksize=2),
    Case("Concat", [node("Concat", "x x", "y", axis=1)], FOUR, E0),
    Case("Concat", [node("Tanh", "x", "t"), node("Concat", "x t", "y", axis=1)], FOUR, 1e-3 * E0),
    Case("Max", [node("Max", "x c", "y")], FOUR, E0, {"c": np.float32(-1)}),
    Case("Min", [node("Min", "x c", "y")], FOUR, E0, {"c": np.float32(2)}),
    Case("Max", [node("Split", "x", "a b", num_outputs=2, axis=1), node("Max", "a b", "y")], PAIRS, E0),
    Case("Min", [node("Split", "x", "a b", num_outputs=2, axis=1), node("Min", "a b", "y")], PAIRS, np.eye(4)[2]),
    one("Pad", FOUR, E0, {"p": np.array([0, 2, 0, 0])}, mode="edge"),
    one("Pad", FOUR, E0, {"p": np.array([0, 1, 0, 1]), "v": np.float32(0)}),
    one("Pad", FOUR, E1, {"p": np.array([0, 1, 0, 1])}, mode="reflect"),
    Case("TopK", [node("TopK", "x k", "y i", axis=1)], PAIRS, E0, {"k": np.array([2])}),
    entry("Shrink", 1.0, lambd=0.5, bias=0.5), entry("ThresholdedRelu", 1.0, alpha=0.0),
    entry("CastLike", 1.0, weights={"t": np.float32(0)}),
    one("Compress", FOUR, E1, {"c": np.array([False, True, True])}, axis=1), one("Trilu", np.zeros((2, 3)), spike((2, 3), 0, 2)),
    Case("Where", [node("Where", "c x k", "y")], FOUR, E0, {"c": np.array([True, False, True, True]), "k": np.float32(7)}),
    Case("Where", [node("Gather", "x i", "z", axis=1), node("Where", "c x z", "y")], FOUR, E0,
         {"c": np.array([True, False, True, True]), "i": np.array([1, 0, 2, 3])}),
    one("GatherElements", FOUR, E1, {"i": np.array([[1, -3, 1, 0]])}, axis=1, rows=False),
    one("GatherND", FOUR, E1, {"i": np.array([[0, 1], [-1, -3], [0, 0]])}, rows=False),
    Case("ScatterElements", [node("Slice", "x one two one", "u"), node("ScatterElements", "x i u", "y", axis=1)], FOUR, E1,
         {"i": np.array([[0]]), "one": np.array([1]), "two": np.array([2])}, rows=False),
    Case("ScatterND", [node("Slice", "x one two one", "u"), node("Squeeze", "u one", "v"), node("ScatterND", "x i v", "y")], FOUR, E1,
         {"i": np.array([[0, 0]]), "one": np.array([1]), "two": np.array([2])}, rows=False),
    one("ReverseSequence", FOUR, E0, {"n": np.array([3])}, time_axis=1, batch_axis=0, rows=False),
    linear("CumSum", (5,), {"a": np.array(1)}), linear("CumSum", (5,), {"a": np.array(1)}, exclusive=1, reverse=1),
    linear("Einsum", (3,), {"w": W}, equation="bi,io->bo"), linear("Einsum", (2, 3), {"w": W}, names="w x", equation="io,bsi->bos"),
    linear("Einsum", (3, 4), {"w": W}, equation="bio,io->bo"), linear("Einsum", (3, 2), {"w": W}, equation="bik,io->bo"),
    one("Expand", np.zeros((1, 3)), spike((1, 3), 0, 1), {"s": np.array([1, 4, 3])}), one("Tile", FOUR, E1, {"r": np.array([1, 3])}),
    Case("Resize", [node("Resize", "x  s", "y", mode="nearest")],
         np.zeros((1, 2, 3)), spike((1, 2, 3), 0, 1, 1), {"s": np.float32([1, 1, 2, 3])}),
    linear("Resize", (1, 3, 4), {"s": np.float32([1, 1, 2, 2])}, names="x  s", mode="linear", share=0.9),
    linear("Resize", (1, 3, 4), {"s": np.array([1, 1, 5, 9])}, names="x   s", mode="linear", coordinate_transformation_mode="align_corners",
           rows=False, share=0.7),
    Case("Upsample", [node("Upsample", "x s", "y", mode="nearest")], np.zeros((1, 2, 3)), spike((1, 2, 3), 0, 1, 1),
         {"s": np.float32([1, 1, 2, 3])}, opset=9),
    one("LpPool", spike((1, 6), 0, 2), spike((1, 6), 0, 2), kernel_shape=[2]),
    one("LayerNormalization", FOUR, 1e-3 * (E0 - E1), {"g": np.float32([2, 2, -1, 1])}, epsilon=1.0),
    one("RMSNormalization", FOUR, 1e-3 * E1, {"g": np.float32([1, -2, 1, 1])}, epsilon=1.0, opset=23),
    one("InstanceNormalization", np.zeros((2, 4)), 1e-3 * np.outer([0, 1], E0 - E1), {"g": np.float32([1, -2]), "b": np.zeros(2, "f4")},
        epsilon=1.0),
    one("GroupNormalization", np.zeros((2, 4)), 1e-3 * np.outer([0, 1], E0 - E1), {"g": np.float32([1, -2]), "b": np.zeros(2, "f4")},
        epsilon=1.0, num_groups=2, opset=21),
    one("LRN", np.zeros((3, 2, 2)), 1e-3 * spike((3, 2, 2), 0, 1, 1), size=1, bias=2.0, alpha=0.0),
    linear("BatchNormalization", (3,), {"k": W, "g": np.float32([1, 2, 3, 9]), "b": np.ones(4, "f4"), "m": np.ones(4, "f4"),
                                       "v": np.float32([1, 1, 2, 99])}, names="G g b m v", before="Gemm"),
    linear("BatchNormalization", (3, 4, 4), {"k": K, "g": np.float32([1, 9]), "b": np.ones(2, "f4"), "m": np.ones(2, "f4"),
                                            "v": np.float32([1, 2])}, names="C g b m v", before="Conv", share=0.95),
    Case("Mul", [node("Clip", "x low high", "a"), node("Gather", "a i", "b", axis=1), node("Mul", "a b", "y")],
         np.full(2, 0.999), np.full(2, 1e-3),
         {"low": np.float32(-1), "high": np.float32(1), "i": np.array([1, 0])}),
    Case("Div", [node("Clip", "x low high", "a"), node("Div", "c a", "y")], FOUR + 1, np.full(4, 1e-3),
         {"low": np.float32(1), "high": np.float32(2), "c": np.float32(3)}),
    Case("MatMul", [node("Clip", "x low high", "a"), node("MatMul", "a a", "y")], np.full((1, 1), 0.999), np.full((1, 1), 1e-3),
         {"low": np.float32(-1), "high": np.float32(1)}),
    Case("MatMul", [node("MatMul", "x w", "y")],
         np.zeros((2, 1, 3)), np.stack([np.zeros((1, 3)), top(W.T)[None]]), {"w": np.stack([W, 3 * W])}),
    Case("Add", [node("Split", "x", "a b", num_outputs=2, axis=1), node("Add", "a b", "y")], FOUR, [1, 0, 1, 0]),
    learned("LinearClassifier", FOUR, top(np.kron(W, [1])), "l y", coefficients=W.ravel().tolist(), classlabels_ints=[0, 1, 2],
            intercepts=[0.0] * 3),
    learned("LinearRegressor", FOUR, E1, coefficients=[0.0, 3.0, 0.0, 0.0], intercepts=[1.0], targets=1),
    learned("Scaler", FOUR, E1, offset=[1.0, 0, 0, 0], scale=[1.0, -3, 2, 1]), learned("Imputer", FOUR, E1, imputed_value_floats=[1.0],
                                                                                     replaced_value_float=float("nan")),
    Case("ai.onnx.ml.ArrayFeatureExtractor", [node("ArrayFeatureExtractor", "x i", "y", domain="ai.onnx.ml")],
         FOUR, E1, {"i": np.array([1, 1, 0])}),
    Case("ai.onnx.ml.FeatureVectorizer", [node("FeatureVectorizer", "x x", "y", domain="ai.onnx.ml", inputdimensions=[4, 4])], FOUR, E1),
    Case("ai.onnx.ml.Normalizer", [
        node("LinearClassifier", "x", "l s", domain="ai.onnx.ml", coefficients=[*E0, *E1], classlabels_ints=[0, 1], intercepts=[0.0] * 2,
             post_transform="SOFTMAX"), node("Normalizer", "s", "y", domain="ai.onnx.ml", norm="L1")], FOUR, 1e-3 * (E0 - E1)),
]  # fmt: skip
QUANTISED, RECURRENT = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}, {"GRU", "LSTM", "RNN"}
NO_FACTOR = set(rules.JUMPS | rules.COMPARISONS | QUANTISED | RECURRENT | {"ArgMax", "ArgMin"})


def names(case):
    return f"{case.op}-{CASES.index(case)}"


def holds(case):
    found = [audit(case.model()).lipschitz[name].bound for name in case.outputs]
    bound = np.sqrt(sum(b**2 for b in found)) if len(found) > 1 else found[0]
    return case.ratio() <= bound * (1 + 1e-4)


@pytest.mark.parametrize("case", CASES, ids=names)
def test_the_bound_of_each_operator_holds_and_is_attained(case):
    bounds = [audit(case.model()).lipschitz[name].bound for name in case.outputs]
    assert None not in bounds
    assert holds(case)
    assert case.ratio() >= case.share * max(bounds)


@pytest.mark.parametrize("case", CASES, ids=names)
def test_a_factor_that_is_too_small_by_30_percent_is_caught(case, monkeypatch):
    honest = rules.RULES[case.op]

    def small(proto) -> list[Value]:
        found = honest(proto)
        values = [found] if isinstance(found, Value) else list(found)
        return [replace(value, bound=0.7 * value.bound) for value in values]

    monkeypatch.setitem(rules.RULES, case.op, small)
    assert not holds(case)


def test_every_rule_with_a_factor_has_such_a_case():
    assert {case.op for case in CASES} == set(rules.RULES) - NO_FACTOR


@pytest.mark.parametrize("case", [case for case in CASES if case.rows], ids=names)
def test_each_of_these_operators_is_proved_to_keep_rows_apart_and_does(case):
    model = case.model()
    assert audit(model).rows_independent
    x = np.random.default_rng(1).standard_normal((3, *np.shape(case.at))).astype(np.float32)
    apart = np.concatenate([evaluate(model, row[None]) for row in x])
    assert np.allclose(evaluate(model, x), apart, atol=1e-6)
