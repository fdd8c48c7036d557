import itertools
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from scipy import sparse

from export.audit import audit
from export.audit.constants import constant
from export.audit.followed import SLOPES, follow
from export.audit.node import Node
from export.audit.relations import Expression, Relations, System
from export.audit.values import Value
from export.audit.walk import HINT, certified
from specnorm_core.ceiling import proves_positive

RNG = np.random.default_rng(5)


def model(body, *, x="float[N,4] x", y="float[N,M] y", **weights):
    found = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g ({x}) => ({y}) {{ {body} }}')
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return found


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(found, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def jacobians(found, width, count=200, scale=2.0, step=2.0**-9):
    """Central differences at random points: (count, outputs, width), off by about 1e-4."""
    x = (RNG.standard_normal((count, 1, width)) * scale).astype(np.float32)
    moves = np.eye(width, dtype=np.float32)[None] * np.float32(step)
    ahead, behind = (run(found, (x + sign * moves).reshape(-1, width)).reshape(count, width, -1) for sign in (1, -1))
    return ((ahead.astype(float) - behind) / (2 * step)).transpose(0, 2, 1)


def norm(matrix):
    return float(np.linalg.norm(np.asarray(matrix, dtype=float), 2))


WEIGHTS = {"w0": random(6, 4), "w1": random(6, 6), "w2": random(3, 6)}
PAIRS = {"pairs": np.array([0, 3, 2]), "flat": np.array([0, 6]), "last": np.array([2])}
SORT = """{p} = Reshape({x}, pairs) {p}a = ReduceMax({p}, last) {p}b = ReduceMin({p}, last) {p}c = Concat<axis=2>({p}a, {p}b)
    {y} = Reshape({p}c, flat)"""
SPLIT = "{p}l, {p}r = Split<axis=1, num_outputs=2>({x}) {p}a = Max({p}l, {p}r) {p}b = Min({p}r, {p}l) {y} = Concat<axis=1>({p}a, {p}b)"
DEEP = "a = Gemm<transB=1>(x, w0) {first} c = Gemm<transB=1>(b, w1) {second} y = Gemm<transB=1>(d, w2)"
BENDS = {
    "relu": ("b = Relu(a)", "d = Relu(c)"),
    "leaky": ("b = LeakyRelu<alpha=0.2>(a)", "d = LeakyRelu<alpha=0.2>(c)"),
    "abs": ("b = Abs(a)", "d = Abs(c)"),
    "tanh": ("b = Tanh(a)", "d = Tanh(c)"),
    "sigmoid": ("b = Sigmoid(a)", "d = Sigmoid(c)"),
    "sort of pairs": (SORT.format(p="p", x="a", y="b"), SORT.format(p="q", x="c", y="d")),
    "max and min of halves": (SPLIT.format(p="p", x="a", y="b"), SPLIT.format(p="q", x="c", y="d")),
    "residual": ("r = Relu(a) b = Add(a, r)", "s = Relu(c) d = Add(b, s)"),
}


def deep(bend):
    first, second = BENDS[bend]
    return model(DEEP.format(first=first, second=second), **WEIGHTS, **PAIRS)


@pytest.mark.parametrize("bend", BENDS)
def test_the_chain_is_tighter_than_the_graph_and_above_every_slope_that_is_met(bend):
    found = deep(bend)
    report, certificates = certified(found)
    slopes = jacobians(found, 4)
    bounds, pairs = report.bounds["y"], certificates["y"].pairs
    assert max(map(norm, slopes)) <= bounds.chain * (1 + 1e-3) < bounds.graph
    assert report.lipschitz["y"].method == "chain"
    assert report.lipschitz["y"].bound == bounds.chain
    for i, j in itertools.permutations(range(3), 2):
        assert np.linalg.norm(slopes[:, i] - slopes[:, j], axis=1).max() <= pairs[i, j] * (1 + 1e-3)
        assert pairs[i, j] <= 2**0.5 * bounds.chain * (1 + 1e-9)
    assert audit(found).lipschitz["y"].bound == bounds.graph, "only who asks for it waits for it"


def test_two_linear_maps_in_a_row_have_the_norm_of_their_product_and_pairs_the_norm_of_their_difference():
    found = model("a = Gemm<transB=1>(x, w0) b = MatMul(a, m) y = Gemm<transB=1>(b, w2)", **WEIGHTS, m=WEIGHTS["w1"].T.copy())
    whole = WEIGHTS["w2"].astype(float) @ WEIGHTS["w1"].astype(float) @ WEIGHTS["w0"].astype(float)
    report, certificates = certified(found)
    assert norm(whole) <= report.bounds["y"].chain <= norm(whole) * (1 + 1e-7) < report.bounds["y"].graph * 0.9
    for i, j in itertools.combinations(range(3), 2):
        exact = norm((whole[i] - whole[j])[None])
        assert exact <= certificates["y"].pairs[i, j] <= exact * (1 + 1e-6)


LINEAR = {
    "a residual": ("a = MatMul(x, w) y = Add(x, a)", {"w": -0.5 * np.eye(4, dtype=np.float32) + 0.1 * random(4, 4)}),
    "a difference": ("a = MatMul(x, w) y = Sub(a, x)", {"w": random(4, 4)}),
    "batch normalisation": (
        "a = Gemm<transB=1>(x, w) y = BatchNormalization(a, g, b, m, v)",
        {"w": random(5, 4), "g": random(5), "b": random(5), "m": random(5), "v": random(5) ** 2},
    ),
    "constants": (
        "a = Mul(x, c) b = Div(a, d) e = Add(b, c) f = Sub(c, e) y = MatMul(f, w)",
        {"c": random(4), "d": 1 + random(1, 4) ** 2, "w": random(4, 3)},
    ),
    "moves": (
        "a = Reshape(x, s) b = Transpose<perm=[0,2,1]>(a) c, d = Split<axis=1, num_outputs=2>(b) e = Concat<axis=1>(d, d, c) "
        "f = Flatten(e) y = MatMul(f, w)",
        {"s": np.array([0, 2, 2]), "w": random(6, 3)},
    ),
    "a convolution": (
        "a = Reshape(x, s) b = Conv<pads=[1,0,0,1], group=2>(a, k) c = Flatten(b) y = MatMul(c, w)",
        {"s": np.array([0, 2, 2, 1]), "k": random(4, 1, 2, 2), "w": random(8, 3)},
    ),
    "means and sums": (
        "a = Gemm<transB=1>(x, w) b = Reshape(a, s) c = ReduceMean<keepdims=0>(b, one) d = ReduceSum(b, two) e = Flatten(d) "
        "y = Concat<axis=1>(c, e)",
        {"w": random(6, 4), "s": np.array([0, 2, 3]), "one": np.array([1]), "two": np.array([2])},
    ),
    "the mean of an image": (
        "a = Gemm<transB=1>(x, w) b = Reshape(a, s) c = GlobalAveragePool(b) y = Flatten(c)",
        {"w": random(6, 4), "s": np.array([0, 2, 3, 1])},
    ),
    "a scaled product": ("y = Gemm<alpha=0.3, transB=1>(x, w)", {"w": random(5, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("form", LINEAR)
def test_of_a_linear_graph_the_chain_has_the_exact_norm(form):
    body, weights = LINEAR[form]
    found = model(body, **weights)
    exact = norm(jacobians(found, 4, count=1, step=1.0)[0])
    assert certified(found)[0].bounds["y"].chain == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("op", SLOPES)
@pytest.mark.parametrize("weight", [-2.0, -1.0, 0.25, 1.0])
def test_the_slopes_of_a_function_are_neither_too_narrow_nor_too_wide(op, weight):
    """``f(x) + w x`` has slopes from ``low + w`` to ``high + w``: each end is seen at some w, so a narrower one would be caught."""
    inputs = "x, slopes" if op == "PRelu" else "x"
    found = model(f"a = {op}({inputs}) b = Mul(x, w) y = Add(a, b)", x="float[N,1] x", w=np.float32([weight]), slopes=np.float32([-0.3]))
    x = np.linspace(-40, 40, 8001, dtype=np.float32)
    y = run(found, x[:, None]).astype(float).ravel()
    met = np.abs(np.diff(y) / np.diff(x.astype(float))).max()
    chain = certified(found)[0].bounds["y"].chain
    assert met * (1 - 2e-3) <= chain <= met * 1.01 + 0.03


def positive(matrix):
    """Exact: elimination in rationals meets only positive pivots."""
    rows = [list(row) for row in matrix]
    for k, row in enumerate(rows):
        if row[k] <= 0:
            return False
        for other in rows[k + 1 :]:
            factor = other[k] / row[k]
            for j in range(k, len(rows)):
                other[j] -= factor * row[j]
    return True


def inequality(weights, t, Q, start):
    """``[[M, C'], [C, Q]]`` of a chain of Relu layers in rationals, written down from its definition."""
    widths = [weights[0].shape[1], *(len(w) for w in weights[:-1])]
    ends = np.cumsum([0, *widths])
    size, outputs = int(ends[-1]), len(weights[-1])
    whole = [[Fraction(0)] * (size + outputs) for _ in range(size + outputs)]
    for i in range(start):
        whole[i][i] = Fraction(1)
    for layer, w in enumerate(weights[:-1], start=1):
        for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
            at, to = int(ends[layer]) + i, int(ends[layer - 1]) + j
            whole[at][at] = 2 * Fraction(float(t[at]))
            whole[at][to] = whole[to][at] = -Fraction(float(t[at])) * Fraction(float(w[i, j]))
    for i, j in itertools.product(range(outputs), range(weights[-1].shape[1])):
        whole[size + i][int(ends[-2]) + j] = whole[int(ends[-2]) + j][size + i] = Fraction(float(weights[-1][i, j]))
    for i, j in itertools.product(range(outputs), repeat=2):
        whole[size + i][size + j] = Fraction(float(Q[i, j]))
    return whole


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e9])
def test_what_is_proved_in_floats_is_true_in_rationals(scale):
    weights = [random(4, 3) * np.float32(scale), random(4, 4), random(2, 4)]
    found = model(
        "a = Gemm<transB=1>(x, w0) b = Relu(a) c = Gemm<transB=1>(b, w1) d = Relu(c) y = Gemm<transB=1>(d, w2)",
        x="float[N,3] x", **{f"w{i}": w for i, w in enumerate(weights)},
    )  # fmt: skip
    proved = certified(found)[1]["y"]
    assert positive(inequality(weights, proved.multipliers, proved.square, 3))
    assert not positive(inequality(weights, proved.multipliers, proved.square * 0.99, 3)), (
        "the certificate has no room that it need not have"
    )
    q = [[Fraction(float(v)) for v in row] for row in proved.square]
    assert Fraction(proved.pairs[0, 1]) ** 2 >= q[0][0] + q[1][1] - 2 * q[0][1]
    excess = [[(Fraction(proved.bound) ** 2 if i == j else 0) - q[i][j] for j in range(2)] for i in range(2)]
    assert positive(excess), "the bound is above the norm of Q"


def test_a_matrix_is_proved_positive_only_with_room_for_what_may_be_off():
    basis = np.linalg.qr(RNG.standard_normal((40, 40)))[0]
    B = basis @ np.diag(np.linspace(1e-6, 1, 40)) @ basis.T
    B = (B + B.T) / 2
    assert proves_positive(B, 0.0)
    assert proves_positive(B, 0.99e-6)
    assert not proves_positive(B, 1.01e-6)
    assert not proves_positive(np.array([[1.0, 1.0], [1.0, 1.0]]), 0.0), "singular: nothing is left for the rounding"
    assert not proves_positive(np.array([[1.0, 1.0], [1.0, 1.0 - 2.0**-53]]), 0.0)
    assert not proves_positive(np.full((2, 2), np.nan), 0.0)


def test_a_matrix_that_is_not_positive_is_never_proved_to_be_though_its_factorisation_may_run_to_the_end():
    rng, fooled = np.random.default_rng(0), 0
    for _ in range(200):
        A = rng.standard_normal((5, 4))
        B = A @ A.T
        B = (B + B.T) / 2 / np.diagonal(B).max()
        if positive([[Fraction(float(v)) for v in row] for row in B]):
            continue
        assert not proves_positive(B, 0.0)
        try:
            np.linalg.cholesky(B)
            fooled += 1
        except np.linalg.LinAlgError:
            pass
    assert fooled > 5


def test_what_rounding_leaves_out_of_a_composed_map_is_bounded():
    first, second = RNG.standard_normal((2, 2, 2))
    start = Expression(System(1.0, [2]), (2,), {0: sparse.csr_array(first)}, {0: 0.0})
    made = start.behind(second, (2,))
    exact = [[sum(Fraction(second[i, k]) * Fraction(first[k, j]) for k in range(2)) for j in range(2)] for i in range(2)]
    off = sum((exact[i][j] - Fraction(float(made.parts[0].toarray()[i, j]))) ** 2 for i in range(2) for j in range(2))
    assert 0 < off <= Fraction(made.errors[0]) ** 2
    twice = made.behind(second, (2,))
    exact = [[sum(Fraction(second[i, k]) * exact[k][j] for k in range(2)) for j in range(2)] for i in range(2)]
    off = sum((exact[i][j] - Fraction(float(twice.parts[0].toarray()[i, j]))) ** 2 for i in range(2) for j in range(2))
    assert made.errors[0] < twice.errors[0]
    assert off <= Fraction(twice.errors[0]) ** 2


def test_a_selection_rounds_nothing_and_its_errors_grow_where_it_repeats():
    start = Expression(System(1.0, [2]), (2,), {0: sparse.csr_array(np.eye(2))}, {0: 0.0})
    assert start.behind(np.array([[0.1, 0.3], [0.7, 0.2]]), (2,)).errors[0] == 0.0
    wide = start.select(np.array([0, 1, 1]))
    assert wide.behind(np.array([[0.1, 0.3, 0.2]]), (1,)).errors[0] > 0, "two entries of one place are summed, which rounds"


def test_a_certificate_in_the_file_is_checked_and_never_believed():
    found = deep("relu")
    report, certificates = certified(found)
    kept = onnx.ModelProto.FromString(found.SerializeToString())
    kept.metadata_props.add(key=HINT + "y", value=certificates["y"].encode())
    assert certified(kept)[1]["y"].bound == certificates["y"].bound
    for factor, what in [(0.7, "square"), (1.5, "multipliers")]:
        forged = type(certificates["y"])(**(vars(certificates["y"]) | {what: getattr(certificates["y"], what) * factor}))
        kept.metadata_props[0].value = forged.encode()
        assert certified(kept)[0].bounds["y"].chain >= report.bounds["y"].chain * (1 - 1e-6)
    kept.metadata_props[0].value = "no certificate"
    assert certified(kept)[0].bounds["y"].chain == report.bounds["y"].chain


def test_two_tensors_of_one_name_are_two_tensors():
    """Two branches of a graph may each have their own ``l`` and ``r``: what was known of the first pair is no news of the second."""

    def graph(body):
        return parser.parse_graph(f"g (float[N,4] x) => (float[N,M] a) {{ {body} }}").node

    relations = Relations()
    x = Value("x", ("N", 4), bound=1.0, rows=True)
    found = {}
    for branch, scale in (("one", 1.0), ("two", 3.0)):
        w = constant("w", scale * np.eye(4, dtype=np.float32))
        values = {"x": x, "w": w}
        for proto in graph("h = MatMul(x, w) l, r = Split<axis=1, num_outputs=2>(h) a = Max(l, r)"):
            node = Node(proto, tuple(values[name] for name in proto.input), 18)
            results = [Value(name, ("N", 4 if name == "h" else 2), bound=scale, rows=True) for name in proto.output]
            follow(relations, node, results)
            values |= {value.name: value for value in results}
        found[branch] = relations.held["a"]
    assert found["one"].system is found["two"].system
    assert set(found["one"].parts) & set(found["two"].parts) == {0}
    follow(relations, Node(graph("a = Softmax(x)")[0], (x,), 18), [Value("a", ("N", 4), bound=0.5, rows=True)])
    assert "a" not in relations.held


def test_rows_that_are_too_wide_or_not_proved_are_not_followed():
    wide = model("a = Relu(x) y = Abs(a)", x="float[N,4000] x")
    assert certified(wide)[1] == {}
    mixed = model("a = Transpose<perm=[1,0]>(x) b = Relu(a) y = Abs(b)", x="float[4,4] x")
    assert certified(mixed)[1] == {}


def test_behind_an_operator_that_is_not_followed_a_system_starts_anew():
    found = model("a = Gemm<transB=1>(x, w0) b = Softmax(a) c = Gemm<transB=1>(b, w1) d = Relu(c) y = Gemm<transB=1>(d, w2)", **WEIGHTS)
    report, certificates = certified(found)
    assert max(map(norm, jacobians(found, 4))) <= report.bounds["y"].chain < report.bounds["y"].graph
    assert certificates["y"].multipliers.shape == (12,), "the softmax's six numbers, and the six functions behind it"


def test_the_form_holds_only_what_an_output_needs():
    found = model("a = Gemm<transB=1>(x, w0) b = Relu(a) c = Gemm<transB=1>(x, w1) y = Relu(c) z = Gemm<transB=1>(b, w2)",
                  y="float[N,M] y, float[N,K] z", w0=random(6, 4), w1=random(5, 4), w2=random(3, 6))  # fmt: skip
    certificates = certified(found)[1]
    assert certificates["y"].multipliers.shape == (4 + 5,)
    assert certificates["z"].multipliers.shape == (4 + 6,)


def test_a_function_of_what_is_always_nought_hinders_no_certificate():
    found = model("n = Sub(x, x)\nl = LeakyRelu(n)\ny = Add(x, l)", y="float[N,4] y")
    assert audit(found, chain=True).lipschitz["y"].bound == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_what_never_moves_behind_the_input_hinders_no_certificate(op):
    found = model(f"m = {op}(x, x)\ny = Abs(m)", y="float[N,4] y")
    report = audit(found, chain=True)
    assert 1.0 <= report.lipschitz["y"].bound <= 1.0 + 1e-3
    assert norm(jacobians(found, 4)[0]) == pytest.approx(1.0, rel=1e-3)
