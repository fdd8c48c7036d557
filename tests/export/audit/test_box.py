"""Bounds on a box: they hold within it, are attained where they can be, and are never taken for bounds of the whole space."""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.audit import AuditError, audit, box, steps, walk
from export.audit import __main__ as command
from export.audit.html import page
from export.audit.intervals import Interval

RNG = np.random.default_rng(0)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(" "), outputs.split(), **attributes)


def graph(nodes, weights, shape, outputs=("y",)):
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_model(helper.make_graph(nodes, "g", [x], ends, held), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def evaluate(model, x):
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": np.asarray(x, np.float32)})[0], np.float64)


def bound(model, low, high):
    return audit(model, box={"x": ((low, high),)}).on_box["y"].bound


@dataclass(eq=False)
class Case:
    """A graph of one operator (and what it needs), a box, and a pair of inputs within it that (nearly) attains the bound there."""

    name: str
    nodes: list
    low: float
    high: float
    at: Any
    step: Any
    weights: dict | None = None
    share: float = 0.97

    def model(self):
        return graph(self.nodes, self.weights, np.shape(self.at))

    def ratio(self):
        x = np.asarray(self.at, np.float32)[None]
        z = x + np.asarray(self.step, np.float32)[None]
        assert min(x.min(), z.min()) >= self.low
        assert max(x.max(), z.max()) <= self.high
        return np.linalg.norm(evaluate(self.model(), z) - evaluate(self.model(), x)) / np.linalg.norm(z.astype(np.float64) - x)


def leading(matrix):
    return np.linalg.svd(matrix)[2][0]


W = RNG.standard_normal((5, 4)).astype(np.float32)
ALIVE = np.array([True, False, True, False, True])
BIAS = np.where(ALIVE, 0.0, -100.0).astype(np.float32)
BIAS[ALIVE] = 100.0
K = RNG.standard_normal((3, 2, 1, 1)).astype(np.float32)
KALIVE = np.array([True, False, True])
V = leading(W[ALIVE])
S, E = np.eye(4)[0] * 1e-3, np.eye(4)[1] * 1e-3
CASES = [
    Case("Mul", [node("Mul", "x x", "y")], -1, 2, np.full(4, 1.999), S),
    Case("Mul", [node("Split", "x", "a b", num_outputs=2, axis=1), node("Mul", "a b", "y")], -1, 2, np.full(2, 1.999), np.full(2, 1e-3)),
    Case("Exp", [node("Exp", "x", "y")], -3, 1, np.full(4, 0.999), S),
    Case("Pow", [node("Pow", "x p", "y")], 0, 2, np.full(4, 1.999), S, {"p": np.float32(3)}),
    Case("Div", [node("Div", "c x", "y")], 0.5, 4, np.full(4, 0.5), S, {"c": np.float32(2)}),
    Case("Div", [node("Split", "x", "a b", num_outputs=2, axis=1), node("Div", "a b", "y")], 0.5, 2, [1.9999, 0.5], [-2.5e-5, 1e-4]),
    Case("Sqrt", [node("Sqrt", "x", "y")], 0.25, 4, np.full(4, 0.25), S),
    Case("Log", [node("Log", "x", "y")], 0.25, 4, np.full(4, 0.25), S),
    Case("Reciprocal", [node("Reciprocal", "x", "y")], 0.5, 1, np.full(4, 0.5), S),
    Case("Sigmoid", [node("Sigmoid", "x", "y")], 2, 3, np.full(4, 2.0), S),
    Case("Tanh", [node("Tanh", "x", "y")], -2, -1, np.full(4, -1.001), S),
    Case("Softmax", [node("Softmax", "x", "y", axis=-1)], -0.01, 0.01, np.zeros(40), 5e-3 * (np.eye(40)[0] - np.eye(40)[1]), share=0.45),
    Case("Relu", [node("Relu", "x", "y")], 1, 2, np.full(4, 1.5), S),
    Case("LeakyRelu", [node("LeakyRelu", "x", "y", alpha=0.5)], -2, -1, np.full(4, -1.5), S),
    Case("Relu", [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "y")], -1, 1, np.zeros(4), V / 4, {"w": W, "b": BIAS}),
    Case("Relu", [node("Conv", "x k b", "h"), node("Relu", "h", "y")], -1, 1, np.zeros((2, 2, 2)),
         leading(K[KALIVE, :, 0, 0])[:, None, None] * np.eye(2)[0][:, None] * np.eye(2)[0] / 4,
         {"k": K, "b": np.where(KALIVE, 50, -50).astype(np.float32)}),
    Case("MatMul", [node("MatMul", "x x", "y")], 0, 1, np.full((1, 1), 0.999), np.full((1, 1), 1e-3)),
]  # fmt: skip


def names(case):
    return f"{case.name}-{CASES.index(case)}"


@pytest.mark.parametrize("case", CASES, ids=names)
def test_the_bound_of_an_operator_on_a_box_holds_and_is_attained(case):
    found = bound(case.model(), case.low, case.high)
    assert case.share * found <= case.ratio() <= found * (1 + 1e-3)


@pytest.mark.parametrize("case", [case for case in CASES if case.share > 0.9], ids=names)
def test_a_bound_on_a_box_that_is_too_small_by_30_percent_is_caught(case, monkeypatch):
    honest = box.narrowed

    def small(proto, value):
        found = honest(proto, value)
        return replace(found, bound=0.7 * found.bound) if proto.op == case.name else found

    monkeypatch.setattr(steps.box, "narrowed", small)
    assert case.ratio() > bound(case.model(), case.low, case.high) * (1 + 1e-3)


def dense(rows, columns):
    return (RNG.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)


def kernel(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


SQUEEZE = [
    node("Conv", "x k b", "c", pads=[1, 1, 1, 1]), node("BatchNormalization", "c g s m v", "n"), node("Relu", "n", "r"),
    node("GlobalAveragePool", "r", "p"), node("Conv", "p k1", "q"), node("Sigmoid", "q", "z"), node("Mul", "r z", "e"),
    node("ConvTranspose", "e kt", "t", strides=[2, 2]), node("MaxPool", "t", "o", kernel_shape=[2, 2], strides=[2, 2]),
    node("Flatten", "o", "f"), node("Gemm", "f w c0", "y", transB=1, alpha=0.5, beta=2.0),
]  # fmt: skip
SQUEEZED = {
    "k": kernel(6, 2, 3, 3), "b": RNG.standard_normal(6).astype("f4"), "g": kernel(6, 1)[:, 0], "s": kernel(6, 1)[:, 0],
    "m": kernel(6, 1)[:, 0], "v": np.abs(kernel(6, 1)[:, 0]) + 0.5, "k1": kernel(6, 6, 1, 1), "kt": kernel(6, 3, 2, 2), "w": dense(4, 48),
    "c0": RNG.standard_normal(4).astype("f4"),
}  # fmt: skip
ATTENTION = [
    node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("MatMul", "x wv", "v"), node("Transpose", "k", "kt", perm=[0, 2, 1]),
    node("MatMul", "q kt", "s"), node("Softmax", "s", "a", axis=-1), node("MatMul", "a v", "y"),
]  # fmt: skip
NETS = {
    "squeeze-and-excitation": (SQUEEZE, SQUEEZED, (2, 4, 4)),
    "attention": (ATTENTION, {"wq": dense(4, 4), "wk": dense(4, 4), "wv": dense(4, 4)}, (3, 4)),
    "exponential sum": (
        [node("MatMul", "x w", "h"), node("Add", "h b", "i"), node("Exp", "i", "e"), node("ReduceSum", "e one", "s", keepdims=1),
         node("Div", "e s", "y")],
        {"w": dense(4, 6), "b": RNG.standard_normal(6).astype("f4"), "one": np.array([1])}, (4,),
    ),
    "entry by entry": (
        [node("Sigmoid", "x", "s"), node("Add", "x three", "p"), node("Div", "three p", "d"), node("Mul", "s d", "y")],
        {"three": np.float32(3)}, (4,),
    ),
    "normalised": (
        [node("LayerNormalization", "x g b", "n"), node("HardSwish", "n", "h"), node("PRelu", "h a", "p"), node("Elu", "p", "e"),
         node("MatMul", "e e", "y")],
        {"g": np.float32([1, -3, 2]), "b": np.float32([0, 1, -1]), "a": np.float32([[[2.0]]])}, (3, 3),
    ),
    "activations": (
        [node("HardSwish", "x", "h"), node("PRelu", "x a", "p"), node("Elu", "x", "e"), node("Mul", "h p", "m"), node("Mul", "m e", "y")],
        {"a": np.float32([2.0])}, (4,),
    ),
    "perceptron": (
        [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r"), node("Gemm", "r w2", "i", transB=1), node("Tanh", "i", "t"),
         node("Mul", "t t", "y")],
        {"w": dense(12, 4) * 2, "b": RNG.standard_normal(12).astype("f4") * 2, "w2": dense(5, 12)}, (4,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 0.2), (0.5, 0.6)])
def test_no_pair_within_the_box_is_moved_further_than_the_bound_allows(name, low, high):
    nodes, weights, shape = NETS[name]
    model = graph(nodes, weights, shape)
    found = bound(model, low, high)
    rng = np.random.default_rng(1)
    for spread in (1e-2, 1.0):
        x = rng.uniform(low, high, (150, *shape))
        z = np.clip(x + (high - low) * spread * rng.standard_normal(x.shape), low, high)
        moved = np.linalg.norm((evaluate(model, z) - evaluate(model, x)).reshape(150, -1), axis=1)
        apart = np.linalg.norm((np.float32(z).astype(np.float64) - np.float32(x)).reshape(150, -1), axis=1)
        assert (moved <= found * apart * (1 + 1e-3) + 1e-6).all()


def values_of(model, low, high):
    """What the walk knows of every tensor."""
    found = []
    walk.certified(model, box={"x": ((low, high),)}, chain=False, watch=lambda _, produced: found.extend(produced))
    return {value.name: value for value in found}


@cache
def answers(name, low, high):
    """A net that gives all its tensors, and these at corners of the box and its middle."""
    nodes, weights, shape = NETS[name]
    model = graph(nodes, weights, shape, outputs=[output for one in nodes for output in one.output])
    x = np.random.default_rng(2).choice([low, high, (low + high) / 2], (200, *shape)).astype(np.float32)
    x[:3] = np.array([low, high, (low + high) / 2]).reshape(3, *[1] * len(shape))
    return model, dict(zip([output.name for output in model.graph.output], ReferenceEvaluator(model).run(None, {"x": x}), strict=True))


def strays(name, low, high):
    """The tensors of a net with an entry outside of what is said of them."""
    model, found = answers(name, low, high)
    known = values_of(model, low, high)
    wrong = set()
    for output, y in found.items():
        value, slack = known[output], 1e-5 * np.abs(y).max()
        inside = value.limits[0] - slack <= y.min() <= y.max() <= value.limits[1] + slack
        if value.channels is not None:
            each = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
            inside &= bool(
                (each.min(axis=1) >= value.channels.low - slack).all() and (each.max(axis=1) <= value.channels.high + slack).all()
            )
        if not inside:
            wrong.add(output)
    return wrong


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, -1.0)])
def test_every_entry_lies_within_the_limits_of_its_channel(name, low, high):
    assert strays(name, low, high) == set()


RULES = sorted(set(box.CHANNELS) & {one.op_type for nodes, _, _ in NETS.values() for one in nodes})


@pytest.mark.parametrize("op", RULES)
def test_limits_of_a_channel_that_are_too_narrow_by_30_percent_are_caught(op, monkeypatch):
    honest = box.CHANNELS[op]

    def narrow(proto):
        found = honest(proto)
        if found is None:
            return None
        middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
        return Interval(middle - 0.7 * half, middle + 0.7 * half)

    monkeypatch.setitem(box.CHANNELS, op, narrow)
    corners = [(0.0, 1.0), (-2.0, -1.0), (-2.0, 2.0), (-0.01, 0.01)]
    assert any(strays(name, low, high) for name in NETS for low, high in corners)


MODEL = graph([node("Mul", "x x", "y")], None, (3,))


def test_a_bound_on_a_box_never_stands_where_a_bound_of_the_whole_space_does():
    report = audit(MODEL, box={"x": ((0.0, 1.0),)})
    assert report.on_box["y"].bound == pytest.approx(2.0)
    assert report.lipschitz["y"].bound is None
    assert not report.lipschitz["y"].rigorous
    assert "within a box" in report.lipschitz["y"].reason
    assert walk.certified(MODEL, box={"x": ((0.0, 1.0),)})[0].lipschitz["y"].bound is None
    assert audit(MODEL).on_box == audit(MODEL).box == {}


def test_each_channel_may_have_limits_of_its_own():
    model = graph([node("Mul", "x x", "y")], None, (2, 3))
    assert audit(model, box={"x": ((0.0, 1.0), (-3.0, 2.0))}).on_box["y"].bound == pytest.approx(6.0)


@pytest.mark.parametrize("pairs", [((1.0, 0.0),), ((0.0, np.inf),), ((0.0, 1.0),) * 2, ((np.nan, 1.0),)])
def test_limits_that_are_no_box_are_refused(pairs):
    with pytest.raises(AuditError, match="box of 'x'"):
        audit(MODEL, box={"x": pairs})


def test_an_input_that_is_not_there_is_refused():
    with pytest.raises(AuditError, match="no input 'z'"):
        audit(MODEL, box={"z": ((0.0, 1.0),)})


def test_the_table_the_json_and_the_page_say_that_the_bound_is_of_the_box_alone(tmp_path, capsys):
    file = tmp_path / "square.onnx"
    file.write_bytes(MODEL.SerializeToString())
    assert command.main([str(file), "--box", "x:0,1", "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "on the box x in [0, 1], and nowhere else:\nL2 Lipschitz constant of 'y': at most 2" in out
    assert "graph 2, searched 1.9" in out
    assert "outside of it these bounds do not hold" in (tmp_path / "page.html").read_text()
    assert "box" not in page(audit(MODEL), "square").partition("</style>")[2]
    assert command.main([str(file), "--box", "x:0,1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["box"] == {"x": [[0.0, 1.0]]}
    assert told["lipschitz"]["y"]["bound"] is None
    assert told["on_box"]["y"]["bound"] == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["x", "x:0", "x:0,1,2", "x:a,b", ":0,1"])
def test_a_box_that_cannot_be_read_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        command.main(["model.onnx", "--box", text])
    assert "expected NAME:0,1" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (3, 1)])
def test_the_parts_of_a_split_have_the_limits_of_no_other_channels(sizes):
    links = (["x", "s"], ["a", "b"]), (["b"], ["c"]), (["c", "c"], ["y"])
    nodes = [
        helper.make_node(op, *link, **({"axis": 1} if op == "Split" else {}))
        for op, link in zip(("Split", "Neg", "Mul"), links, strict=True)
    ]
    split = numpy_helper.from_array(np.array(sizes), "s")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name, width in (("x", 4), ("y", sizes[1]))]
    found = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [split]), opset_imports=[helper.make_opsetid("", 18)])
    report = audit(found, box={"x": ((0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 4.0))})
    assert report.on_box["y"].bound == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("nodes", "weights", "shape", "slope"),
    [
        ([(["x", "a"], ["s"], "ReduceSum"), (["s", "s"], ["y"], "Mul")], {"a": np.array([1])}, (4,), 16.0),
        ([(["x", "t"], ["m"], "MatMul"), (["m", "m"], ["y"], "Mul")], {}, (1, 3), 4 * 3**1.5),
    ],
)
def test_a_sum_of_entries_reaches_as_far_as_all_of_them_together(nodes, weights, shape, slope):
    made = [helper.make_node(op, *link) for *link, op in nodes]
    if len(shape) == 2:
        made = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), *made]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, given) for name, given in (("x", ["N", *shape]), ("y", None)))
    found = helper.make_model(helper.make_graph(made, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)])
    bound = audit(found, box={"x": ((0.0, 1.0),)}).on_box["y"].bound
    assert slope * (1 - 1e-9) <= bound <= slope * (1 + 1e-6)  # at the corner where all numbers are 1
